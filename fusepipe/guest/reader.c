/* SPDX-License-Identifier: MIT */
/*
 * One reader: a device (or clone) and a stream, both non-blocking, watched by its thread's epoll. Requests are read from the device one
 * after the other for as long as there are any, and written to the stream at once; replies are read from the stream as
 * many as there are, and written to the device one by one, as it wants them.
 *
 * Nothing is allocated once it runs: two mappings, of which only what was used is there, and is given back when idle.
 * A host that is slow to read fills the buffer of requests; then the device is not read, and callers wait in the
 * kernel, where they can be interrupted.
 *
 * With several readers the device wakes one thread for a request (EPOLLEXCLUSIVE), not all. A reader that takes none
 * watches it all the same, for the unmounting; not exclusively, or it would swallow what wakes the others.
 *
 * Phases are control.h's. A stream that ends while the reader is quiet is closed; the next one comes as an event of a
 * descriptor that the reader has not seen yet (reader_offer).
 */
#include "fusepipe/guest/reader.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/until.h"
#include "fusepipe/abi.h"
#include "fusepipe/control.h"

enum {
	CAPACITY = 2 * FCVM_FUSE_MAX_MESSAGE,
	CONTROL = 4096, /* behind it: what only the halves understand always has room */
	MAPPING = CAPACITY + CONTROL,
	TRACE_SIZE = sizeof(struct fuse_in_header) + sizeof(struct fcvm_fuse_trace),
};

/* What an event of a descriptor of this reader's carries. */
static uint64_t tag_of(const struct reader *r, int fd)
{
	return (uint64_t)r->number << 32 | (uint32_t)fd;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* ---- buffers ---- */

static int side_init(struct side *d)
{
	void *p = mmap(NULL, MAPPING, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return -errno;
	d->data = p;
	return 0;
}

static void side_trim(struct side *d)
{
	if (d->start == d->end && d->high)
		madvise(d->data, MAPPING, MADV_DONTNEED);
	if (d->start == d->end)
		d->start = d->end = 0;
	d->high = 0;
}

static void side_grew(struct side *d, size_t size)
{
	d->end += size;
	while (d->end % 8)
		d->data[d->end++] = 0;
	if (d->end > d->high)
		d->high = d->end;
}

/* For a message of any size, and a trace in front of it. */
static bool has_room(const struct side *d)
{
	return d->end + TRACE_SIZE + FCVM_FUSE_MAX_MESSAGE <= CAPACITY;
}

/* ---- what the kernel does not see ---- */

static void put_control(char *to, uint32_t opcode, const void *body, size_t size)
{
	struct fuse_in_header h = {.len = sizeof h + size, .opcode = opcode};

	memcpy(to, &h, sizeof h);
	if (size)
		memcpy(to + sizeof h, body, size);
}

/* Behind the requests so far. -EPROTO: the host asks and does not read. */
static int say(struct reader *r, uint32_t opcode, const void *body, size_t size)
{
	struct side *d = &r->requests;

	if (d->end + sizeof(struct fuse_in_header) + size > MAPPING)
		return -EPROTO;
	put_control(d->data + d->end, opcode, body, size);
	side_grew(d, sizeof(struct fuse_in_header) + size);
	return 0;
}

/* A trace that has no room is not worth a stream. */
static void close_trace(struct reader *r, const void *body)
{
	struct fcvm_fuse_trace t = {.unique = 0};

	memcpy(&t.unique, body, sizeof t.unique);
	if (r->pump->trace_rate && t.unique == r->replied) {
		t.received = r->received;
		t.delivered = r->delivered;
	}
	if (r->requests.end + TRACE_SIZE <= CAPACITY + CONTROL / 2)
		say(r, FCVM_FUSE_TRACED, &t, sizeof t);
}

/* By a new host, on a stream that was there before it. */
static bool is_greeting(const struct reader *r, const struct fuse_out_header *h, const void *body)
{
	struct fcvm_fuse_greeting g;

	if (h->len != sizeof g)
		return false;
	memcpy(&g.reader, body, sizeof g.reader);
	return g.reader == r->number;
}

static int obey(struct reader *r, const struct fuse_out_header *h, const void *body)
{
	switch ((uint32_t)h->error) {
	case FCVM_FUSE_PAUSE:
		if (r->phase != READER_RUNS)
			return 0;
		r->phase = READER_PAUSED;
		return say(r, FCVM_FUSE_PAUSED, "", 0);
	case FCVM_FUSE_END:
		if (r->phase != READER_PAUSED)
			return -EBADMSG;
		r->phase = READER_QUIET;
		return say(r, FCVM_FUSE_QUIET, "", 0);
	case FCVM_FUSE_RESUME:
		r->phase = READER_RUNS;
		return 0;
	case FCVM_FUSE_TRACE_BACK:
		if (h->len != sizeof *h + sizeof(uint64_t))
			return -EBADMSG;
		close_trace(r, body);
		return 0;
	case FCVM_FUSE_GREETING:
		return is_greeting(r, h, body) ? 0 : -EBADMSG;
	default:
		return -EBADMSG;
	}
}

/* ---- requests ---- */

/* Nobody answers it, so nothing would close its trace. */
static bool is_answered(const struct fuse_in_header *h)
{
	return h->opcode != FUSE_FORGET && h->opcode != FUSE_BATCH_FORGET && h->opcode != FUSE_INTERRUPT &&
	       h->opcode != FUSE_NOTIFY_REPLY;
}

/* The request that was read behind a gap: a trace into the gap, or the gap goes. */
static void fill_gap(struct side *d, const struct fuse_in_header *h, size_t size)
{
	if (is_answered(h)) {
		struct fcvm_fuse_trace t = {.unique = h->unique, .dequeued = now_ns()};

		put_control(d->data + d->end, FCVM_FUSE_TRACE, &t, sizeof t);
		d->end += TRACE_SIZE;
	} else {
		memmove(d->data + d->end, d->data + d->end + TRACE_SIZE, size);
	}
	side_grew(d, size);
}

/*
 * Reads what requests there are, as long as one of any size has room. One that nobody else waits beside is most often its
 * caller's only one: it goes without a look for more, which costs as much as the reading.
 * 0, -ENODEV: unmounted, or -errno.
 */
static int take_requests(struct reader *r)
{
	struct side *d = &r->requests;
	unsigned rate = r->pump->trace_rate;

	while (has_room(d)) {
		size_t gap = rate && r->taken % rate == 0 ? TRACE_SIZE : 0;
		ssize_t n = read(r->device, d->data + d->end + gap, CAPACITY - d->end - gap);
		struct fuse_in_header h;

		/* ENOENT: its caller was interrupted just now. */
		if (n < 0 && (errno == EINTR || errno == ENOENT))
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -errno;
		memcpy(&h, d->data + d->end + gap, sizeof h);
		r->taken++;
		if (gap)
			fill_gap(d, &h, (size_t)n);
		else
			side_grew(d, (size_t)n);
		r->waiting += is_answered(&h);
		if (r->waiting == 1)
			break;
	}
	return 0;
}

static int send_requests(struct reader *r)
{
	struct side *d = &r->requests;

	while (d->start < d->end) {
		ssize_t n = write(r->stream, d->data + d->start, d->end - d->start);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -errno;
		d->start += n;
	}
	d->start = d->end = 0;
	return 0;
}

/* ---- replies ---- */

static int give_reply(struct reader *r, const struct fuse_out_header *h, const void *reply)
{
	/* Not the kernel's notifications; and a host may say what it likes. */
	if (h->unique && r->waiting)
		r->waiting--;
	while (write(r->device, reply, h->len) < 0) {
		if (errno == EINTR)
			continue;
		/* ENOENT: nobody waits for it any more (interrupted, forgotten name). */
		if (errno == ENOENT)
			break;
		return -errno;
	}
	if (r->pump->trace_rate) {
		r->replied = h->unique;
		r->delivered = now_ns();
	}
	return 0;
}

/* Gives the kernel what replies are whole. 0, or -errno. */
static int give_replies(struct reader *r)
{
	struct side *d = &r->replies;

	while (d->end - d->start >= sizeof(struct fuse_out_header)) {
		const char *at = d->data + d->start;
		struct fuse_out_header h;
		size_t padded;
		int result;

		memcpy(&h, at, sizeof h);
		padded = ((size_t)h.len + 7) & ~7UL;
		if (h.len < sizeof h || h.len > FCVM_FUSE_MAX_MESSAGE)
			return -EBADMSG;
		if (d->end - d->start < padded)
			break;
		/* The kernel's own notifications have small numbers there. */
		result = !h.unique && h.error >= (int)FCVM_FUSE_PAUSE ? obey(r, &h, at + sizeof h) : give_reply(r, &h, at);
		if (result)
			return result;
		d->start += padded;
	}
	return 0;
}

/* Room for a whole message behind what there is: what has begun could not end otherwise. */
static void make_room(struct side *d)
{
	if (d->start == d->end)
		d->start = d->end = 0;
	if (d->start + FCVM_FUSE_MAX_MESSAGE > CAPACITY) {
		memmove(d->data, d->data + d->start, d->end - d->start);
		d->end -= d->start;
		d->start = 0;
	}
}

/* Reads what the host has sent, as long as a message lacks its end. */
static int take_replies(struct reader *r)
{
	struct side *d = &r->replies;
	int result;

	do {
		ssize_t n;

		make_room(d);
		n = read(r->stream, d->data + d->end, CAPACITY - d->end);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		if (n == 0)
			return -EPIPE;
		if (r->pump->trace_rate)
			r->received = now_ns();
		d->end += n;
		if (d->end > d->high)
			d->high = d->end;
		result = give_replies(r);
	} while (!result && d->start < d->end);
	return result;
}

/* ---- what is watched ---- */

/* The end of the connection always; requests only if they can be taken. */
static int watch_device(struct reader *r)
{
	bool takes = r->phase == READER_RUNS && r->stream >= 0 && has_room(&r->requests);
	struct epoll_event e = {.events = takes ? EPOLLIN | EPOLLEXCLUSIVE : 0, .data.u64 = tag_of(r, r->device)};

	if (r->device_watched && r->device_events == e.events)
		return 0;
	/* An exclusive one cannot be modified. */
	if (r->device_watched && epoll_ctl(r->epoll, EPOLL_CTL_DEL, r->device, &e))
		return -errno;
	r->device_watched = true;
	r->device_events = e.events;
	return epoll_ctl(r->epoll, EPOLL_CTL_ADD, r->device, &e) ? -errno : 0;
}

static int watch_stream(struct reader *r)
{
	uint32_t events = EPOLLIN | (r->requests.start < r->requests.end ? EPOLLOUT : 0);
	struct epoll_event e = {.events = events, .data.u64 = tag_of(r, r->stream)};

	if (r->stream < 0 || r->stream_events == events)
		return 0;
	r->stream_events = events;
	return epoll_ctl(r->epoll, EPOLL_CTL_MOD, r->stream, &e) ? -errno : 0;
}

int reader_offer(struct reader *r, int stream)
{
	/* Writable is what it is at once: so the reader hears of it. */
	struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.u64 = (uint64_t)READER_OFFERED << 32 | tag_of(r, stream)};
	int result = fcvm_fd_nonblock(stream, true);

	if (!result && epoll_ctl(r->epoll, EPOLL_CTL_ADD, stream, &e))
		result = -errno;
	/* One that was not taken up yet makes way. */
	fcvm_close(result ? stream : atomic_exchange(&r->offered, stream));
	return result;
}

static void drop_stream(struct reader *r)
{
	r->stream = fcvm_close(r->stream);
	r->alone_ns = fcvm_now_ns();
	r->requests.start = r->requests.end = r->replies.start = r->replies.end = 0;
}

/* The first one, or one that comes while it is quiet. */
static void adopt(struct reader *r, int stream)
{
	if (stream < 0)
		return; /* its event came first, and comes again */
	if (r->stream >= 0 && r->phase != READER_QUIET) {
		fcvm_close(stream);
		return;
	}
	drop_stream(r);
	r->stream = stream;
	r->had_stream = true;
	r->stream_events = 0; /* no longer an offered one's */
}

/* ---- a turn ---- */

/* A stream that ends. 0: so it may. */
static int lose_stream(struct reader *r, int why)
{
	if (r->phase != READER_QUIET || !r->pump->reconnects)
		return why;
	drop_stream(r);
	return 0;
}

/* ENOTCONN: of a vsock that a restore has reset. */
static bool is_end(int result)
{
	return result == -EPIPE || result == -ECONNRESET || result == -ENOTCONN;
}

static int hear_device(struct reader *r, uint32_t events)
{
	if (events & EPOLLERR)
		return -ENODEV;
	return r->phase == READER_RUNS && r->stream >= 0 ? take_requests(r) : 0;
}

int reader_turn(struct reader *r, bool offered, int fd, uint32_t events)
{
	int result = 0;

	r->active = true;
	if (fd == r->device)
		result = hear_device(r, events);
	else if (offered)
		adopt(r, atomic_exchange(&r->offered, -1));
	else if (fd == r->stream && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		result = take_replies(r);
	if (!result && r->stream >= 0)
		result = send_requests(r);
	if (is_end(result))
		result = lose_stream(r, result);
	if (!result)
		result = watch_device(r);
	return result ? result : watch_stream(r);
}

int reader_begin(struct reader *r)
{
	return watch_device(r);
}

bool reader_alone(const struct reader *r)
{
	return r->stream < 0;
}

int reader_patience(const struct reader *r)
{
	if (!reader_alone(r) || fcvm_now_ns() - r->alone_ns < r->pump->patience_ms * INT64_C(1000000))
		return 0;
	return r->had_stream ? -EPIPE : -ETIMEDOUT;
}

bool reader_used(const struct reader *r)
{
	return r->requests.high || r->replies.high;
}

void reader_trim(struct reader *r)
{
	side_trim(&r->requests);
	side_trim(&r->replies);
}

/* ---- its life ---- */

int reader_init(struct reader *r, const struct pump *p, unsigned number, int epoll, int device)
{
	int result;

	*r = (struct reader){.pump = p, .number = number, .epoll = epoll, .device = device, .stream = -1, .offered = -1,
		.alone_ns = fcvm_now_ns()};
	if (device < 0)
		return device;
	result = fcvm_fd_nonblock(device, true);
	if (!result)
		result = side_init(&r->requests);
	return result ? result : side_init(&r->replies);
}

void reader_leave(struct reader *r)
{
	if (r->stream < 0)
		r->stream = atomic_exchange(&r->offered, -1);
	if (r->stream >= 0 && say(r, FCVM_FUSE_LEFT, NULL, 0) == 0)
		send_requests(r);
}

void reader_done(struct reader *r)
{
	fcvm_close(r->device);
	fcvm_close(r->stream);
	fcvm_close(r->offered);
	if (r->requests.data)
		munmap(r->requests.data, MAPPING);
	if (r->replies.data)
		munmap(r->replies.data, MAPPING);
}
