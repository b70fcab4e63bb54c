/* SPDX-License-Identifier: MIT */
/* Frames and payloads: what was put is got, and nothing else is taken for a frame. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "wire/wire.h"

static int parse(const void *buf, size_t size, struct fcvm_wire_header *h, size_t *skip)
{
	const uint8_t *payload;
	/* A copy of exactly its size, for the sanitiser to see what is read beyond. */
	uint8_t *own = malloc(size + !size);
	int r;

	if (size)
		memcpy(own, buf, size);
	r = fcvm_wire_parse(own, size, h, &payload, skip);
	if (r > 0)
		CHECK(payload + h->length == own + r);
	free(own);
	return r;
}

static void test_frames(void)
{
	struct fcvm_wire_header h;
	uint8_t buf[64] = {0};
	size_t skip;

	fcvm_wire_put_header(buf + 5, FCVM_WIRE_DATA, 15, 0x01020304, 3, 0xa0b0c0d0);
	CHECK(buf[5] == 0xfc && buf[9] == 4 && buf[12] == 1 && buf[13] == 3 && buf[17] == 0xd0);
	CHECK(parse(buf, 24, &h, &skip) == 24 && skip == 5);
	CHECK(h.type == FCVM_WIRE_DATA && h.channel == 15 && h.stream == 0x01020304);
	CHECK(h.length == 3 && h.arg == 0xa0b0c0d0);
	for (size_t n = 0; n < 24; n++)
		CHECK(parse(buf, n, &h, &skip) == 0 && skip == (n < 5 ? n : 5));
	CHECK(parse(buf + 5, 40, &h, &skip) == 19 && skip == 0);
}

static void test_bad_frames(void)
{
	static const struct {
		uint8_t at, value;
	} bad[] = {
		{0, 0xfb}, {0, 1}, {1, 0}, {1, FCVM_WIRE_CLOSE + 1}, {1, 255},
		{2, FCVM_WIRE_MAX_CHANNEL}, {3, 1}, {11, 1}, {10, 3},
	};
	struct fcvm_wire_header h;
	uint8_t buf[16];
	size_t skip;

	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
		fcvm_wire_put_header(buf, FCVM_WIRE_OPEN, 0, 1, 0, 0);
		CHECK(parse(buf, 16, &h, &skip) == 16);
		buf[bad[i].at] = bad[i].value;
		CHECK(parse(buf, 16, &h, &skip) == -EBADMSG);
	}
	/* DATA has the lower bound, and an alien byte is one at once. */
	fcvm_wire_put_header(buf, FCVM_WIRE_DATA, 0, 1, FCVM_WIRE_MAX_DATA + 1, 0);
	CHECK(parse(buf, 16, &h, &skip) == -EBADMSG);
	fcvm_wire_put_header(buf, FCVM_WIRE_OPEN, 0, 1, FCVM_WIRE_MAX_PAYLOAD, 0);
	CHECK(parse(buf, 16, &h, &skip) == 0);
	CHECK(parse("\0\0x", 3, &h, &skip) == -EBADMSG);
}

static void test_payloads(void)
{
	uint8_t buf[64], bytes[3];
	struct fcvm_wire_writer w = fcvm_wire_writer(buf, sizeof buf);
	struct fcvm_wire_reader r;

	fcvm_wire_put_u32(&w, 0xdeadbeef);
	fcvm_wire_put_u64(&w, 0x0123456789abcdef);
	fcvm_wire_put_bytes(&w, "abc", 3);
	fcvm_wire_put_string(&w, "text");
	fcvm_wire_put_string(&w, NULL);
	CHECK(!w.bad && w.at - buf == 4 + 8 + 3 + 9 + 5);
	r = fcvm_wire_reader(buf, w.at - buf);
	CHECK(fcvm_wire_get_u32(&r) == 0xdeadbeef);
	CHECK(fcvm_wire_get_u64(&r) == 0x0123456789abcdef);
	fcvm_wire_get_bytes(&r, bytes, 3);
	CHECK(memcmp(bytes, "abc", 3) == 0);
	CHECK(strcmp(fcvm_wire_get_string(&r), "text") == 0);
	CHECK(!fcvm_wire_reader_ok(&r)); /* not all of it was read */
	CHECK(strcmp(fcvm_wire_get_string(&r), "") == 0 && fcvm_wire_reader_ok(&r));
	/* The first failure sticks, and yields zeros. */
	memset(bytes, 1, 3);
	fcvm_wire_get_bytes(&r, bytes, 3);
	CHECK(r.bad && !bytes[0] && !bytes[2] && fcvm_wire_get_u32(&r) == 0);
	/* A writer that is full stays so. */
	w = fcvm_wire_writer(buf, 10);
	fcvm_wire_put_u64(&w, 1);
	fcvm_wire_put_u32(&w, 2);
	fcvm_wire_put_bytes(&w, "x", 1);
	CHECK(w.bad && w.at == buf + 8);
}

static const char *string_of(const void *buf, size_t size, bool *ret_ok)
{
	struct fcvm_wire_reader r = fcvm_wire_reader(buf, size);
	const char *s = fcvm_wire_get_string(&r);

	*ret_ok = fcvm_wire_reader_ok(&r);
	return s;
}

static void test_strings(void)
{
	bool ok;

	CHECK(strcmp(string_of("\2\0\0\0ab\0", 7, &ok), "ab") == 0 && ok);
	CHECK(!*string_of("\2\0\0\0ab\0", 6, &ok) && !ok);           /* its NUL is missing */
	CHECK(!*string_of("\2\0\0\0abc\0", 8, &ok) && !ok);          /* is another byte */
	CHECK(!*string_of("\2\0\0\0a\0\0", 7, &ok) && !ok);          /* one is inside */
	CHECK(!*string_of("\xff\xff\xff\xff" "ab", 7, &ok) && !ok);  /* length + 1 wraps */
	CHECK(!*string_of("\0\0\0", 3, &ok) && !ok);
	CHECK(!*string_of("\0\0\0\0", 5, &ok) && ok);
}

int main(void)
{
	test_frames();
	test_bad_frames();
	test_payloads();
	test_strings();
	CHECK_DONE();
}
