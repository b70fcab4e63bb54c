/* SPDX-License-Identifier: MIT */
#include "wire/wire.h"

#include <errno.h>
#include <string.h>

static void store32(uint8_t *to, uint32_t v)
{
	to[0] = v;
	to[1] = v >> 8;
	to[2] = v >> 16;
	to[3] = v >> 24;
}

static uint32_t load32(const uint8_t *from)
{
	return from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

void fcvm_wire_put_header(void *to, enum fcvm_wire_type type, unsigned channel, uint32_t stream,
	uint32_t length, uint32_t arg)
{
	uint8_t *h = to;

	h[0] = FCVM_WIRE_MAGIC;
	h[1] = type;
	h[2] = channel;
	h[3] = 0;
	store32(h + 4, stream);
	store32(h + 8, length);
	store32(h + 12, arg);
}

int fcvm_wire_parse(const void *buf, size_t size, struct fcvm_wire_header *ret, const uint8_t **ret_payload,
	size_t *ret_skip)
{
	const uint8_t *at = buf;
	struct fcvm_wire_header h;
	size_t skip = 0;

	while (skip < size && at[skip] == 0)
		skip++;
	*ret_skip = skip;
	at += skip;
	size -= skip;
	if (size > 0 && at[0] != FCVM_WIRE_MAGIC)
		return -EBADMSG;
	if (size < sizeof h)
		return 0;
	h = (struct fcvm_wire_header){
		.magic = at[0],
		.type = at[1],
		.channel = at[2],
		.reserved = at[3],
		.stream = load32(at + 4),
		.length = load32(at + 8),
		.arg = load32(at + 12),
	};
	if (h.type < FCVM_WIRE_HELLO || h.type > FCVM_WIRE_CLOSE || h.reserved != 0 ||
		h.channel >= FCVM_WIRE_MAX_CHANNEL)
		return -EBADMSG;
	if (h.length > (h.type == FCVM_WIRE_DATA ? FCVM_WIRE_MAX_DATA : FCVM_WIRE_MAX_PAYLOAD))
		return -EBADMSG;
	if (size - sizeof h < h.length)
		return 0;
	*ret = h;
	*ret_payload = at + sizeof h;
	return skip + sizeof h + h.length;
}

/* The next `size` bytes, or NULL with the reader marked bad. */
static const uint8_t *take(struct fcvm_wire_reader *r, size_t size)
{
	const uint8_t *at = r->at;

	if (r->bad || (size_t)(r->end - r->at) < size) {
		r->bad = true;
		return NULL;
	}
	r->at += size;
	return at;
}

uint32_t fcvm_wire_get_u32(struct fcvm_wire_reader *r)
{
	const uint8_t *at = take(r, 4);

	return at ? load32(at) : 0;
}

uint64_t fcvm_wire_get_u64(struct fcvm_wire_reader *r)
{
	const uint8_t *at = take(r, 8);

	return at ? load32(at) | (uint64_t)load32(at + 4) << 32 : 0;
}

void fcvm_wire_get_bytes(struct fcvm_wire_reader *r, void *to, size_t size)
{
	const uint8_t *at = take(r, size);

	if (at)
		memcpy(to, at, size);
	else
		memset(to, 0, size);
}

const char *fcvm_wire_get_string(struct fcvm_wire_reader *r)
{
	uint32_t size = fcvm_wire_get_u32(r);
	const uint8_t *at;

	if (size >= FCVM_WIRE_MAX_PAYLOAD) {
		r->bad = true;
		return "";
	}
	at = take(r, (size_t)size + 1);
	if (!at)
		return "";
	if (memchr(at, 0, (size_t)size + 1) != at + size) {
		r->bad = true;
		return "";
	}
	return (const char *)at;
}

bool fcvm_wire_reader_ok(const struct fcvm_wire_reader *r)
{
	return !r->bad && r->at == r->end;
}

/* Room for `size` bytes, or NULL with the writer marked bad. */
static uint8_t *give(struct fcvm_wire_writer *w, size_t size)
{
	uint8_t *at = w->at;

	if (w->bad || (size_t)(w->end - w->at) < size) {
		w->bad = true;
		return NULL;
	}
	w->at += size;
	return at;
}

void fcvm_wire_put_u32(struct fcvm_wire_writer *w, uint32_t v)
{
	uint8_t *at = give(w, 4);

	if (at)
		store32(at, v);
}

void fcvm_wire_put_u64(struct fcvm_wire_writer *w, uint64_t v)
{
	fcvm_wire_put_u32(w, v);
	fcvm_wire_put_u32(w, v >> 32);
}

void fcvm_wire_put_bytes(struct fcvm_wire_writer *w, const void *from, size_t size)
{
	uint8_t *at = give(w, size);

	if (at && size)
		memcpy(at, from, size);
}

void fcvm_wire_put_string(struct fcvm_wire_writer *w, const char *s)
{
	size_t size;

	if (!s)
		s = "";
	size = strlen(s);
	fcvm_wire_put_u32(w, size);
	fcvm_wire_put_bytes(w, s, size + 1);
}
