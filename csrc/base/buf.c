/* SPDX-License-Identifier: MIT */
#include "base/buf.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void *fcvm_buf_reserve(struct fcvm_buf *b, size_t more)
{
	size_t capacity = b->capacity ? b->capacity : 1024;
	char *data;

	if (b->capacity - b->start - b->size >= more)
		return b->data + b->start + b->size;
	if (more > SIZE_MAX / 2 - b->size)
		return NULL;
	while (capacity < b->size + more)
		capacity *= 2;
	/* Squeezing out what was consumed makes room, but pays only if that was at least as much as is left. */
	if (capacity == b->capacity && b->start < b->size)
		capacity *= 2;
	if (capacity == b->capacity) {
		memmove(b->data, b->data + b->start, b->size);
		b->start = 0;
		return b->data + b->size;
	}
	data = malloc(capacity);
	if (!data)
		return NULL;
	if (b->size)
		memcpy(data, b->data + b->start, b->size);
	free(b->data);
	b->data = data;
	b->start = 0;
	b->capacity = capacity;
	return b->data + b->size;
}

int fcvm_buf_append(struct fcvm_buf *b, const void *data, size_t size)
{
	void *to = size ? fcvm_buf_reserve(b, size) : NULL;

	if (!size)
		return 0;
	if (!to)
		return -ENOMEM;
	memcpy(to, data, size);
	b->size += size;
	return 0;
}

void fcvm_buf_grew(struct fcvm_buf *b, size_t size)
{
	b->size += size;
}

void fcvm_buf_consume(struct fcvm_buf *b, size_t size)
{
	b->start += size;
	b->size -= size;
	if (b->size > 0)
		return;
	b->start = 0;
	if (b->capacity > 64 * 1024)
		fcvm_buf_done(b);
}

void fcvm_buf_done(struct fcvm_buf *b)
{
	free(b->data);
	*b = (struct fcvm_buf){0};
}
