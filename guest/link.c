/* SPDX-License-Identifier: MIT */
/* A link: bytes in and out, frames, HELLO and resynchronisation (wire/wire.h). */
#include "agent.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"

static const char hello_magic[8] = {'F', 'C', 'V', 'M', 'L', 'I', 'N', 'K'};

static void on_ready(struct agent *a, struct watch *w, uint32_t events)
{
	struct link *l = (struct link *)w; /* its first member */

	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		l->readable = true;
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		l->blocked = false;
}

int link_new(struct agent *a, enum carrier carrier, struct link **ret)
{
	struct link *l = NULL;
	unsigned i = 0;

	while (i < LINKS && a->links[i])
		i++;
	if (i < LINKS)
		l = calloc(1, sizeof *l);
	if (!l)
		return i < LINKS ? -ENOMEM : -EMFILE;
	l->agent = a;
	l->carrier = carrier;
	l->watch.fd = -1;
	l->watch.ready = on_ready;
	l->synced = true;
	TAILQ_INIT(&l->ready);
	a->links[i] = *ret = l;
	return 0;
}

void link_lose_carrier(struct link *l)
{
	watch_close(&l->watch);
	l->readable = l->blocked = l->out_watched = l->stalled = false;
	l->synced = true;
	l->after_zero = l->greeted = false;
	l->in_start = l->in_end = 0;
	l->out_start = l->out_end = l->head_left = l->freeze_left = 0;
}

int link_carry(struct link *l, int fd)
{
	int r;

	link_lose_carrier(l);
	l->watch.fd = fd;
	r = watch_set(l->agent, &l->watch, EPOLLIN);
	if (r < 0)
		watch_close(&l->watch);
	return r;
}

int link_open(struct agent *a, int fd, enum carrier carrier)
{
	struct link *l;
	int r = link_new(a, carrier, &l);

	if (r < 0) {
		fcvm_close(fd);
		return r;
	}
	r = link_carry(l, fd);
	if (r < 0)
		link_close(l);
	return r;
}

/* Forgets all streams. kill: the lease has ended; else the guest was restored and its programs go on. last: the agent
 * ends with this link. */
static void forget(struct link *l, bool kill, bool last)
{
	for (unsigned i = 0; i < BUCKETS; i++)
		while (!LIST_EMPTY(&l->streams[i]))
			stream_drop(LIST_FIRST(&l->streams[i]), kill);
	process_end_lease(l, kill);
	files_end_lease(l, kill, last);
	l->last_stream = 0;
}

void link_close(struct link *l)
{
	struct agent *a = l->agent;
	bool others = false;

	for (unsigned i = 0; i < LINKS; i++) {
		if (a->links[i] == l)
			a->links[i] = NULL;
		others |= a->links[i] != NULL;
	}
	forget(l, true, !others);
	watch_close(&l->watch);
	a->stopping |= !others;
	free(l);
}

/* ---- out ---- */

uint8_t *link_build(struct link *l, size_t size)
{
	if (OUT_SIZE - l->out_end < size) {
		memmove(l->out, l->out + l->out_start, l->out_end - l->out_start);
		l->out_end -= l->out_start;
		l->out_start = 0;
	}
	return l->out + l->out_end;
}

static void append(struct link *l, enum fcvm_wire_type type, unsigned channel, uint32_t stream,
	const void *payload, size_t size, uint32_t arg)
{
	uint8_t *at = link_build(l, HEADER + size);

	/* The slack above OUT_SOFT is made so that this cannot be (agent.h); a lost frame ends the trust. */
	if (OUT_SIZE - l->out_end < HEADER + size) {
		link_lose_sync(l);
		return;
	}
	fcvm_wire_put_header(at, type, channel, stream, size, arg);
	if (size)
		memcpy(at + HEADER, payload, size);
	link_built(l, HEADER + size);
}

void link_frame(struct link *l, enum fcvm_wire_type type, unsigned channel, uint32_t stream, uint32_t arg)
{
	append(l, type, channel, stream, NULL, 0, arg);
}

void link_result(struct link *l, uint32_t stream, const void *payload, size_t size)
{
	append(l, FCVM_WIRE_RESULT, 0, stream, payload, size, 0);
}

void link_refuse(struct link *l, uint32_t stream, int code, const char *fmt, ...)
{
	char text[1024];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	if (n < 0)
		n = 0;
	append(l, FCVM_WIRE_RESULT, 0, stream, text, n < (int)sizeof text ? n : (int)sizeof text - 1,
		-code);
}

/* Counts `n` bytes as gone, and where in its frame the output now stands. */
static void wrote(struct link *l, size_t n)
{
	while (n > 0) {
		size_t step;

		if (l->head_left == 0) {
			uint32_t length;

			memcpy(&length, l->out + l->out_start + offsetof(struct fcvm_wire_header, length),
				sizeof length);
			l->head_left = HEADER + length;
		}
		step = n < l->head_left ? n : l->head_left;
		l->out_start += step;
		l->head_left -= step;
		n -= step;
	}
	if (l->out_start == l->out_end)
		l->out_start = l->out_end = 0;
}

/*
 * Only a link that is blocked listens for room: else each buffer that the host takes would wake us. And only the
 * change is told: EPOLL_CTL_MOD reports anew what is there, EPOLLHUP of a port without host included.
 */
static void watch_output(struct link *l, bool on)
{
	if (l->out_watched != on && watch_set(l->agent, &l->watch, EPOLLIN | (on ? EPOLLOUT : 0)) == 0)
		l->out_watched = on;
}

void link_flush(struct link *l)
{
	/* Nobody carries it: its streams are lost, whatever the next HELLO says, and must not pile up. */
	if (l->watch.fd < 0)
		l->out_start = l->out_end = l->head_left = 0;
	while (!l->blocked && l->watch.fd >= 0) {
		size_t size = l->out_end - l->out_start;
		ssize_t n;

		if (l->agent->frozen && size > l->freeze_left)
			size = l->freeze_left;
		if (size == 0) {
			watch_output(l, false);
			return;
		}
		n = write(l->watch.fd, l->out + l->out_start, size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN) {
			/* Nobody is there to read it; the end shows when reading. */
			wrote(l, size);
			l->freeze_left -= l->agent->frozen ? size : 0;
			return;
		}
		if (n < 0) {
			l->blocked = true;
			watch_output(l, true);
			return;
		}
		wrote(l, n);
		l->freeze_left -= l->agent->frozen ? n : 0;
	}
}

/* ---- requests ---- */

static void open_ping(struct link *l, uint32_t id, const uint8_t *payload, size_t size)
{
	if (size > 4096)
		link_refuse(l, id, -EINVAL, "ping: %zu bytes are too many", size);
	else
		link_result(l, id, payload, size);
}

static void open_freeze(struct link *l, uint32_t id, bool freeze)
{
	struct agent *a = l->agent;

	if (!freeze)
		a->frozen = false;
	link_result(l, id, NULL, 0);
	if (!freeze)
		return;
	a->frozen = true;
	for (unsigned i = 0; i < LINKS; i++)
		if (a->links[i])
			a->links[i]->freeze_left = a->links[i]->out_end - a->links[i]->out_start;
}

static void open_power(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	uint32_t what = fcvm_wire_get_u32(r);

	if (!fcvm_wire_reader_ok(r) || what > FCVM_WIRE_REBOOT) {
		link_refuse(l, id, -EINVAL, "power: not a request");
	} else if (l->carrier != CARRIER_PORT && l->carrier != CARRIER_VSOCK) {
		link_refuse(l, id, -EPERM, "power: only over the machine's own port or vsock");
	} else {
		link_result(l, id, NULL, 0);
		l->agent->power = what;
	}
}

static void obey_open(struct link *l, const struct fcvm_wire_header *h, const uint8_t *payload)
{
	struct fcvm_wire_reader r = fcvm_wire_reader(payload, h->length);
	uint32_t id = h->stream;

	switch (h->arg) {
	case FCVM_WIRE_PING:
		return open_ping(l, id, payload, h->length);
	case FCVM_WIRE_INFO:
		return identity_open_info(l, id, &r);
	case FCVM_WIRE_IDENTITY:
		return identity_open_identity(l, id, &r);
	case FCVM_WIRE_CLOCK:
		return identity_open_clock(l, id, &r);
	case FCVM_WIRE_FREEZE:
	case FCVM_WIRE_THAW:
		return open_freeze(l, id, h->arg == FCVM_WIRE_FREEZE);
	case FCVM_WIRE_POWER:
		return open_power(l, id, &r);
	case FCVM_WIRE_SPAWN:
		return process_open_spawn(l, id, &r);
	case FCVM_WIRE_GET:
		return process_open_get(l, id, &r);
	case FCVM_WIRE_PUT:
		return process_open_put(l, id, &r);
	case FCVM_WIRE_CONNECT:
		return socket_open_connect(l, id, &r);
	case FCVM_WIRE_LISTEN:
		return socket_open_listen(l, id, &r);
	case FCVM_WIRE_ACCEPT:
		return socket_open_accept(l, id, &r);
	case FCVM_WIRE_MKDIR:
		return files_open_mkdir(l, id, &r);
	case FCVM_WIRE_RENAME:
		return files_open_rename(l, id, &r);
	case FCVM_WIRE_REMOVE:
		return process_open_remove(l, id, &r);
	case FCVM_WIRE_STAT:
		return files_open_stat(l, id, &r);
	case FCVM_WIRE_REFLINK:
		return files_open_reflink(l, id, &r);
	case FCVM_WIRE_MOUNT:
		return volume_open_mount(l, id, &r);
	case FCVM_WIRE_UNMOUNT:
		return volume_open_unmount(l, id, &r);
	case FCVM_WIRE_ROOT:
		return root_open(l, id, &r);
	default:
		link_refuse(l, id, -ENOSYS, "operation %u: this agent (%s) does not know it",
			(unsigned)h->arg, FCVM_VERSION);
	}
}

static void obey_hello(struct link *l, const struct fcvm_wire_header *h, const uint8_t *payload)
{
	struct fcvm_wire_hello hello;
	struct agent *a = l->agent;
	bool fits;

	if (h->length != sizeof hello || memcmp(payload, hello_magic, sizeof hello_magic) != 0)
		return link_lose_sync(l);
	memcpy(&hello, payload, sizeof hello);
	fits = hello.version == FCVM_WIRE_VERSION;
	a->frozen = false;
	forget(l, hello.generation == a->generation, false);
	/* What is half sent is finished, so that a host that has followed the frames still can. */
	l->out_end = l->out_start + l->head_left;
	l->greeted = fits;
	hello.version = FCVM_WIRE_VERSION;
	hello.flags = a->init;
	hello.generation = a->generation;
	append(l, FCVM_WIRE_WELCOME, 0, 0, &hello, sizeof hello, 0);
}

static void obey_close(struct stream *s)
{
	/* Each OPEN has its one RESULT, also if nobody waits for it any more. */
	if (s->job || s->kind == STREAM_ACCEPTING || s->kind == STREAM_CONNECTING || s->kind == STREAM_ERRAND)
		link_refuse(s->link, s->id, -ECANCELED, "given up");
	stream_end(s);
}

static void obey_stream(struct stream *s, const struct fcvm_wire_header *h, const uint8_t *payload)
{
	switch (h->type) {
	case FCVM_WIRE_DATA:
		return stream_data(s, h->channel, payload, h->length);
	case FCVM_WIRE_EOF:
		return stream_eof(s, h->channel);
	case FCVM_WIRE_CREDIT:
		return stream_credit(s, h->channel, h->arg);
	case FCVM_WIRE_SIGNAL:
		return process_signal(s, h->arg);
	case FCVM_WIRE_RESIZE:
		return process_resize(s, h->arg);
	case FCVM_WIRE_CLOSE:
		return obey_close(s);
	}
}

static void obey(struct link *l, const struct fcvm_wire_header *h, const uint8_t *payload)
{
	struct stream *s;

	if (h->type == FCVM_WIRE_HELLO)
		return obey_hello(l, h, payload);
	if (!l->greeted)
		return;
	if (h->type != FCVM_WIRE_OPEN) {
		s = stream_find(l, h->stream);
		if (s)
			obey_stream(s, h, payload);
		return;
	}
	/* Ids only grow; and while nothing may be sent, results cannot pile up without bound. */
	if (h->stream <= l->last_stream || l->out_end - l->out_start >= OUT_SOFT)
		return link_lose_sync(l);
	l->last_stream = h->stream;
	if (l->nstreams >= FCVM_WIRE_MAX_STREAMS)
		link_refuse(l, h->stream, -EMFILE, "%u streams are open on this link; close some",
			l->nstreams);
	else
		obey_open(l, h, payload);
}

/* ---- in ---- */

void link_lose_sync(struct link *l)
{
	bool greeted = l->greeted;

	l->synced = false;
	l->after_zero = false;
	l->greeted = false;
	/* Else the host would wait for ever on a link that is silent. Whoever is about to take over skips it. */
	if (greeted)
		link_refuse(l, 0, -EPROTO, "what the host sent is against the rules");
}

/* Drops bytes up to something that looks like a HELLO behind a zero; synced if it is one. */
static void seek_hello(struct link *l)
{
	static const uint8_t start[4] = {FCVM_WIRE_MAGIC, FCVM_WIRE_HELLO, 0, 0};
	const size_t size = HEADER + sizeof(struct fcvm_wire_hello);

	while (l->in_start < l->in_end) {
		const uint8_t *from = l->in + l->in_start;
		size_t have = l->in_end - l->in_start;
		const uint8_t *at = memchr(from, FCVM_WIRE_MAGIC, have);

		if (!at) {
			l->after_zero = l->in[l->in_end - 1] == 0;
			l->in_start = l->in_end;
			return;
		}
		if (at > from)
			l->after_zero = at[-1] == 0;
		l->in_start += at - from;
		have -= at - from;
		if (l->after_zero && memcmp(at, start, have < sizeof start ? have : sizeof start) == 0) {
			if (have < size)
				return;
			if (memcmp(at + HEADER, hello_magic, sizeof hello_magic) == 0) {
				l->synced = true;
				return;
			}
		}
		l->after_zero = false;
		l->in_start++;
	}
}

static bool throttled(const struct link *l)
{
	/* While frozen nothing drains, yet THAW must be seen: obey() sees to the bound then. */
	return l->out_end - l->out_start >= OUT_SOFT && !l->agent->frozen;
}

/* Obeys the frames that are whole. */
static void obey_all(struct link *l)
{
	l->stalled = false;
	while (l->in_start < l->in_end) {
		struct fcvm_wire_header h;
		const uint8_t *payload;
		size_t skip;
		int n;

		if (throttled(l)) {
			l->stalled = true;
			return;
		}
		if (!l->synced) {
			seek_hello(l);
			if (!l->synced)
				return;
		}
		n = fcvm_wire_parse(l->in + l->in_start, l->in_end - l->in_start, &h, &payload, &skip);
		if (n < 0) {
			link_lose_sync(l);
			continue;
		}
		if (n == 0) {
			l->in_start += skip;
			return;
		}
		l->in_start += n;
		/* A frame with a zero behind it was cut off, and the zeros of the next owner's
		 * resynchronisation have filled it up: it must not be obeyed. */
		if (h.type != FCVM_WIRE_HELLO && l->in_start < l->in_end && l->in[l->in_start] == 0)
			continue;
		obey(l, &h, payload);
	}
}

/* One read. Returns false if the link has ended. */
static bool fill(struct link *l)
{
	ssize_t n;

	if (l->in_start == l->in_end) {
		l->in_start = l->in_end = 0;
	} else if (IN_SIZE - l->in_end < 32 * 1024) {
		memmove(l->in, l->in + l->in_start, l->in_end - l->in_start);
		l->in_end -= l->in_start;
		l->in_start = 0;
	}
	n = read(l->watch.fd, l->in + l->in_end, IN_SIZE - l->in_end);
	if (n > 0) {
		l->in_end += n;
		return true;
	}
	if (n < 0 && errno == EINTR)
		return true;
	l->readable = false;
	if (l->carrier == CARRIER_PORT || (n < 0 && errno == EAGAIN))
		return true;
	if (l->carrier == CARRIER_FD)
		return false;
	link_lose_carrier(l);
	return true;
}

void link_receive(struct link *l)
{
	if (l->readable && !throttled(l) && !fill(l)) {
		link_close(l);
		return;
	}
	obey_all(l);
}

bool link_has_work(const struct link *l)
{
	if (!throttled(l) && (l->readable || l->stalled))
		return true;
	return link_has_room(l) && !TAILQ_EMPTY(&l->ready);
}
