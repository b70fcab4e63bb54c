/* SPDX-License-Identifier: MIT */
/* Streams' buffers. A request is read in place and its reply is made in place: payloads are not copied here. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fusepipe/abi.h"
#include "fusepipe/host/server.h"

enum {
	CAPACITY = 2 * FCVM_FUSE_MAX_MESSAGE, /* so that a message that begins in the first half ends within */
	KEEP = 4096,                          /* of memory, when there is nothing to do */
};

int bytes_init(struct bytes *b)
{
	void *p = mmap(NULL, CAPACITY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return -errno;
	*b = (struct bytes){.data = p, .capacity = CAPACITY};
	return 0;
}

void bytes_done(struct bytes *b)
{
	if (b->data)
		munmap(b->data, b->capacity);
	*b = (struct bytes){.data = NULL};
}

static void bytes_trim(struct bytes *b)
{
	if (b->start != b->end || b->high <= KEEP)
		return;
	madvise(b->data + KEEP, b->capacity - KEEP, MADV_DONTNEED);
	b->high = b->start = b->end = 0;
}

void stream_trim(struct stream *st)
{
	bytes_trim(&st->in);
	bytes_trim(&st->out);
}

/* Reads once: > 0 something came, 0 nothing now, -ENODATA the end, -errno. */
int stream_read(struct stream *st)
{
	struct bytes *b = &st->in;
	ssize_t n;

	if (b->start == b->end)
		b->start = b->end = 0;
	/* What has begun could not end here: to the front with it. */
	if (b->start > b->capacity - FCVM_FUSE_MAX_MESSAGE) {
		memmove(b->data, b->data + b->start, b->end - b->start);
		b->end -= b->start;
		b->start = 0;
	}
	if (b->end == b->capacity)
		return 0;
	do {
		n = read(st->fd, b->data + b->end, b->capacity - b->end);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? 0 : -errno;
	if (n == 0)
		return -ENODATA;
	b->end += n;
	if (b->end > b->high)
		b->high = b->end;
	return 1;
}

/* Writes what there is: 1 all of it, 0 the peer takes no more now, -errno. */
int stream_flush(struct stream *st)
{
	struct bytes *b = &st->out;

	while (b->start < b->end) {
		ssize_t n = write(st->fd, b->data + b->start, b->end - b->start);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -errno;
		b->start += n;
	}
	b->start = b->end = 0;
	return 1;
}

bool stream_room(const struct stream *st)
{
	return st->out.capacity - st->out.end >= FCVM_FUSE_MAX_MESSAGE;
}

void *stream_payload(struct stream *st)
{
	return st->out.data + st->out.end + sizeof(struct fuse_out_header);
}

void stream_reply(struct stream *st, const struct iovec *iov, int count)
{
	struct bytes *b = &st->out;

	for (int i = 0; i < count; i++) {
		char *to = b->data + b->end;

		/* What was made in place (stream_payload) is there already. */
		if (to != iov[i].iov_base)
			memcpy(to, iov[i].iov_base, iov[i].iov_len);
		b->end += iov[i].iov_len;
	}
	while (b->end % 8)
		b->data[b->end++] = 0;
	if (b->end > b->high)
		b->high = b->end;
}

/* Room for these is left by stream_room(): they are small, and only so many are sent to one who reads nothing. */
bool stream_control(struct stream *st, int32_t code, const void *body, size_t size)
{
	struct fuse_out_header h = {.len = sizeof h + size, .error = code};
	struct iovec iov[2] = {{&h, sizeof h}, {(void *)body, size}};

	if (st->ended || st->out.capacity - st->out.end < sizeof h + size + 8)
		return false;
	stream_reply(st, iov, size ? 2 : 1);
	return true;
}
