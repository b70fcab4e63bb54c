/* SPDX-License-Identifier: MIT */
/* A growable byte buffer with a bound; a FIFO when consumed from the front. Zero-initialised is empty. */
#ifndef FCVM_BASE_BUF_H
#define FCVM_BASE_BUF_H

#include <stddef.h>

struct fcvm_buf {
	char *data;    /* malloc'ed; the bytes are data[start] .. data[start + size - 1] */
	size_t start;
	size_t size;
	size_t capacity;
};

/* Room for `more` bytes at the end; returns where they go, or NULL when out of memory. */
void *fcvm_buf_reserve(struct fcvm_buf *b, size_t more);
/* Appends. 0 or -ENOMEM. */
int fcvm_buf_append(struct fcvm_buf *b, const void *data, size_t size);
/* Counts `size` reserved bytes as written. */
void fcvm_buf_grew(struct fcvm_buf *b, size_t size);
/* Drops bytes at the front; an empty buffer larger than 64 KiB gives its memory back. */
void fcvm_buf_consume(struct fcvm_buf *b, size_t size);
static inline char *fcvm_buf_head(struct fcvm_buf *b)
{
	return b->data + b->start;
}
/* Frees the memory; the buffer is empty and usable again. */
void fcvm_buf_done(struct fcvm_buf *b);

#endif
