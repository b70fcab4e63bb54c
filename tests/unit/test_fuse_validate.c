/* SPDX-License-Identifier: MIT */
/* What passes as a FUSE message, opcode by opcode; sizes are those of the ABI (Linux 6.18), written out. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "fusepipe/abi.h"
#include "fusepipe/validate.h"

struct message {
	struct fuse_in_header h;
	char body[4096];
};

/* The verdict on `size` bytes in a block of exactly that size, for the sanitiser to see what is read beyond. */
static int verdict(const void *message, size_t size)
{
	void *own = malloc(size + !size);
	int r;

	memcpy(own, message, size);
	r = fcvm_fuse_validate(own, size);
	free(own);
	return r;
}

static int checked(struct message *m, size_t body)
{
	m->h.len = sizeof m->h + body;
	return verdict(m, m->h.len);
}

static struct message make(uint32_t opcode)
{
	return (struct message){.h = {.opcode = opcode, .unique = 8, .nodeid = 1}};
}

/* An opcode's fixed part and what follows it; `count_at`: where the number of the bytes that follow stands. */
static const struct {
	uint32_t opcode;
	unsigned fixed;
	const char *rest;
	unsigned rest_size;
	int count_at;
} good[] = {
	{1, 0, "name", 5, -1},           {2, 8, "", 0, -1},       {3, 16, "", 0, -1},
	{4, 88, "", 0, -1},              {5, 0, "", 0, -1},       {6, 0, "name\0/tar/get", 14, -1},
	{8, 16, "n", 2, -1},             {9, 8, "n", 2, -1},      {10, 0, "n", 2, -1},
	{11, 0, "n", 2, -1},             {12, 8, "a\0b", 4, -1},  {13, 8, "n", 2, -1},
	{14, 8, "", 0, -1},              {15, 40, "", 0, -1},     {16, 40, "data", 4, 16},
	{17, 0, "", 0, -1},              {18, 24, "", 0, -1},     {20, 16, "", 0, -1},
	{21, 16, "user.x\0value", 12, -2}, {22, 8, "user.x", 7, -1}, {23, 8, "", 0, -1},
	{24, 0, "user.x", 7, -1},        {25, 24, "", 0, -1},     {26, 16, "", 0, -1},
	{26, 64, "", 0, -1},             {27, 8, "", 0, -1},      {28, 40, "", 0, -1},
	{29, 24, "", 0, -1},             {30, 16, "", 0, -1},     {31, 48, "", 0, -1},
	{32, 48, "", 0, -1},             {33, 48, "", 0, -1},     {34, 8, "", 0, -1},
	{35, 16, "n", 2, -1},            {36, 8, "", 0, -1},      {37, 16, "", 0, -1},
	{38, 0, "", 0, -1},              {39, 32, "data", 4, 24}, {40, 24, "", 0, -1},
	{41, 40, "data", 4, 16},         {42, 8, "", 0, -1},      {43, 32, "", 0, -1},
	{44, 40, "", 0, -1},             {45, 16, "a\0b", 4, -1}, {46, 24, "", 0, -1},
	{47, 56, "", 0, -1},             {50, 8, "", 0, -1},      {51, 16, "/", 2, -1},
	{52, 24, "", 0, -1},             {53, 56, "", 0, -1},
};

static size_t fill(struct message *m, unsigned i)
{
	uint32_t count = good[i].rest_size;

	*m = make(good[i].opcode);
	memcpy(m->body + good[i].fixed, good[i].rest, good[i].rest_size);
	if (good[i].count_at == -2)
		count = 5;
	if (good[i].count_at != -1)
		memcpy(m->body + (good[i].count_at < 0 ? 0 : good[i].count_at), &count, sizeof count);
	return good[i].fixed + good[i].rest_size;
}

static void test_opcodes(void)
{
	bool known[64] = {false};

	for (unsigned i = 0; i < sizeof good / sizeof *good; i++) {
		struct message m;
		size_t size = fill(&m, i);

		known[m.h.opcode] = true;
		CHECK(checked(&m, size) == 0);
		if (checked(&m, size))
			fprintf(stderr, "opcode %u\n", m.h.opcode);
		/* Any other length is wrong, but for INIT's two. */
		CHECK(checked(&m, size + 8) == -EINVAL);
		for (size_t less = 0; less < size; less++)
			CHECK(checked(&m, less) == -EINVAL || (m.h.opcode == 26 && less == 16));
		/* The header's length against the stream's. */
		m.h.len = sizeof m.h + size;
		CHECK(verdict(&m, m.h.len - (size > 0)) == (size ? -EBADMSG : 0));
		CHECK(verdict(&m, m.h.len + 1) == -EBADMSG);
	}
	for (uint32_t opcode = 0; opcode < 5000; opcode++) {
		struct message m = make(opcode);

		if (opcode >= 64 || !known[opcode])
			CHECK(checked(&m, 8) == -ENOSYS && fcvm_fuse_wants_reply(&m));
	}
}

static void test_header(void)
{
	struct message m = make(FUSE_GETATTR);

	m.h.len = 56;
	for (size_t n = 0; n < 56; n++)
		CHECK(verdict(&m, n) == -EBADMSG);
	m.h.nodeid = 0;
	CHECK(checked(&m, 16) == -EINVAL);
	m = make(FUSE_GETATTR);
	m.h.unique = 0;
	CHECK(checked(&m, 16) == -EBADMSG);
	m = make(FUSE_FORGET);
	m.h.unique = 0;
	CHECK(checked(&m, 8) == 0);
	m = make(FUSE_INIT);
	m.h.nodeid = 0;
	CHECK(checked(&m, 64) == 0);
	CHECK(!fcvm_fuse_wants_reply(&(struct message){.h = {.opcode = FUSE_FORGET}}));
	CHECK(!fcvm_fuse_wants_reply(&(struct message){.h = {.opcode = FUSE_BATCH_FORGET}}));
	CHECK(!fcvm_fuse_wants_reply(&(struct message){.h = {.opcode = FUSE_INTERRUPT}}));
	CHECK(!fcvm_fuse_wants_reply(&(struct message){.h = {.opcode = FUSE_NOTIFY_REPLY}}));
	CHECK(fcvm_fuse_wants_reply(&(struct message){.h = {.opcode = FUSE_LOOKUP}}));
}

static void test_names(void)
{
	static const struct {
		const char *name;
		unsigned size;
		int verdict;
	} names[] = {
		{"a", 2, 0},          {"...", 4, 0},        {".a", 3, 0},          {"..a", 4, 0},
		{"", 1, -EINVAL},     {".", 2, -EINVAL},    {"..", 3, -EINVAL},    {"/", 2, -EINVAL},
		{"a/", 3, -EINVAL},   {"/a", 3, -EINVAL},   {"../x", 5, -EINVAL},  {"a/../b", 7, -EINVAL},
		{"a", 1, -EINVAL},    {"ab", 2, -EINVAL},   {"a\0b", 4, -EINVAL},  {"a\0", 3, -EINVAL},
		{"\xff\x01", 3, 0},   {" ", 2, 0},
	};
	static const uint32_t opcodes[] = {FUSE_LOOKUP, FUSE_UNLINK, FUSE_RMDIR};

	for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
		for (unsigned k = 0; k < 3; k++) {
			struct message m = make(opcodes[k]);

			memcpy(m.body, names[i].name, names[i].size);
			CHECK(checked(&m, names[i].size) == names[i].verdict);
		}
	}
}

static void test_two_names(void)
{
	static const struct {
		const char *names;
		unsigned size;
		int rename, symlink;
	} pairs[] = {
		{"a\0b", 4, 0, 0},
		{"a\0..", 5, -EINVAL, 0},
		{"a\0/b/..", 8, -EINVAL, 0},
		{"..\0a", 5, -EINVAL, -EINVAL},
		{"a/b\0a", 6, -EINVAL, -EINVAL},
		{"a\0", 3, -EINVAL, -EINVAL},
		{"a\0b", 3, -EINVAL, -EINVAL},
		{"a\0b\0c", 6, -EINVAL, -EINVAL},
		{"a", 2, -EINVAL, -EINVAL},
	};

	for (unsigned i = 0; i < sizeof pairs / sizeof *pairs; i++) {
		struct message m = make(FUSE_SYMLINK);

		memcpy(m.body, pairs[i].names, pairs[i].size);
		CHECK(checked(&m, pairs[i].size) == pairs[i].symlink);
		m = make(FUSE_RENAME2);
		memcpy(m.body + 16, pairs[i].names, pairs[i].size);
		CHECK(checked(&m, 16 + pairs[i].size) == pairs[i].rename);
	}
}

static void test_counts(void)
{
	static const uint32_t counts[] = {0, 3, 5, 0x7fffffff, 0x80000000, 0xfffffffc, 0xffffffff};
	struct message m;

	for (unsigned i = 0; i < sizeof counts / sizeof *counts; i++) {
		m = make(FUSE_WRITE);
		memcpy(m.body + 16, &counts[i], 4);
		CHECK(checked(&m, 44) == -EINVAL);
		m = make(FUSE_IOCTL);
		memcpy(m.body + 24, &counts[i], 4);
		CHECK(checked(&m, 36) == -EINVAL);
		m = make(FUSE_BATCH_FORGET);
		memcpy(m.body, &counts[i], 4);
		CHECK(checked(&m, 8 + 16) == -EINVAL);
		m = make(FUSE_SETXATTR);
		memcpy(m.body, &counts[i], 4);
		memcpy(m.body + 16, "user.x\0abcd", 11);
		CHECK(checked(&m, 16 + 11) == -EINVAL);
	}
	/* 2^28 forgets of 16 bytes are 0 bytes in 32 bits. */
	m = make(FUSE_BATCH_FORGET);
	memcpy(m.body, &(uint32_t){1U << 28}, 4);
	CHECK(checked(&m, 8) == -EINVAL);
	memcpy(m.body, &(uint32_t){2}, 4);
	CHECK(checked(&m, 8 + 32) == 0);
}

/* None is negotiated: what follows the names is nothing that a guest may send. */
static void test_extensions(void)
{
	static const uint32_t opcodes[] = {FUSE_CREATE, FUSE_TMPFILE, FUSE_MKNOD, FUSE_RENAME2};
	static const uint32_t groups[4] = {16, 32, 1, 1000};

	for (unsigned i = 0; i < sizeof opcodes / sizeof *opcodes; i++) {
		struct message m = make(opcodes[i]);

		memcpy(m.body + 16, "n", 2);
		memcpy(m.body + 18, groups, sizeof groups);
		for (unsigned units = 0; units < 4; units++) {
			m.h.total_extlen = units;
			CHECK(checked(&m, 18 + sizeof groups) == -EINVAL);
		}
	}
}

static void test_frames(void)
{
	uint32_t length = 40;
	char name[FCVM_FUSE_NAME];

	for (size_t n = 0; n < 4; n++)
		CHECK(fcvm_fuse_frame(&length, n) == 0);
	CHECK(fcvm_fuse_frame(&length, 4) == 40);
	for (length = 0; length < 40; length++)
		CHECK(fcvm_fuse_frame(&length, 4) == -EBADMSG);
	length = (1 << 20) + 4096;
	CHECK(fcvm_fuse_frame(&length, 4) == (int)length);
	length++;
	CHECK(fcvm_fuse_frame(&length, 4) == -EBADMSG);
	length = 0xffffffff;
	CHECK(fcvm_fuse_frame(&length, 4) == -EBADMSG);
	CHECK(!strcmp(fcvm_fuse_opcode_name(1), "LOOKUP") && !strcmp(fcvm_fuse_opcode_name(7), "?"));
	CHECK(!strcmp(fcvm_fuse_operation_name(53, name), "copy_file_range_64") && !strcmp(fcvm_fuse_operation_name(54, name), "?"));
	CHECK(!strcmp(fcvm_fuse_opcode_name(53), "COPY_FILE_RANGE_64") && !strcmp(fcvm_fuse_opcode_name(54), "?"));
}

/* A part of a file begins where it does, and ends there or behind. */
static void test_lock_ranges(void)
{
	static const uint32_t opcodes[] = {FUSE_GETLK, FUSE_SETLK, FUSE_SETLKW};
	static const uint64_t last = INT64_MAX;
	static const struct {
		uint64_t start, end;
		int verdict;
	} ranges[] = {
		{0, 0, 0}, {0, last, 0}, {last, last, 0}, {5, 4, -EINVAL}, {last, 0, -EINVAL}, {0, last + 1, -EINVAL},
		{~0ULL, ~0ULL, -EINVAL}, {~0ULL, 0, -EINVAL},
	};

	for (unsigned i = 0; i < 3; i++) {
		for (unsigned k = 0; k < sizeof ranges / sizeof *ranges; k++) {
			struct fuse_lk_in in = {.lk = {.start = ranges[k].start, .end = ranges[k].end, .type = 1}};
			struct message m = make(opcodes[i]);

			memcpy(m.body, &in, sizeof in);
			CHECK(checked(&m, sizeof in) == ranges[k].verdict);
		}
	}
}

int main(void)
{
	test_frames();
	test_header();
	test_opcodes();
	test_names();
	test_two_names();
	test_counts();
	test_lock_ranges();
	test_extensions();
	CHECK_DONE();
}
