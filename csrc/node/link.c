/* SPDX-License-Identifier: MIT */
/* A link's life: frames out, frames in, the reader's role, its end. link.h has the theory. */
#include "node/link_private.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"

struct fcvm_link *fcvm_link_ref(struct fcvm_link *l)
{
	atomic_fetch_add(&l->refs, 1);
	return l;
}

void fcvm_link_unref(struct fcvm_link *l)
{
	if (atomic_fetch_sub(&l->refs, 1) != 1)
		return;
	fcvm_close(l->carrier);
	fcvm_buf_done(&l->in);
	fcvm_buf_done(&l->out);
	pthread_mutex_destroy(&l->lock);
	free(l->name);
	free(l);
}

/* ---- its end ---- */

void fcvm_link_end_locked(struct fcvm_link *l, int code, const char *fmt, ...)
{
	va_list ap;

	if (l->dead)
		return;
	l->dead = true;
	l->why = code;
	va_start(ap, fmt);
	vsnprintf(l->why_text, sizeof l->why_text, fmt, ap);
	va_end(ap);
	/* Whoever reads or polls the carrier wakes up. */
	shutdown(l->carrier, SHUT_RDWR);
}

int fcvm_link_why_locked(struct fcvm_link *l, const char *what, struct fcvm_err *err)
{
	return fcvm_fail(err, -ECONNRESET, "%s: %s: the link to the agent has ended: %s", l->name,
		what, l->why_text);
}

static void bury(struct fcvm_link *l)
{
	l->buried = true;
	fcvm_source_remove(fcvm_steal_ptr(l->source));
	fcvm_client_close_all_locked(l);
	for (unsigned i = 0; i < BUCKETS; i++) {
		struct fcvm_stream *s = l->streams[i];

		while (s) {
			struct fcvm_stream *next = s->next;

			fcvm_stream_link_ended_locked(s);
			s = next;
		}
	}
	fcvm_link_wake_waiters_locked(l);
	fcvm_buf_done(&l->out);
}

void fcvm_link_lock(struct fcvm_link *l)
{
	pthread_mutex_lock(&l->lock);
}

void fcvm_link_unlock(struct fcvm_link *l)
{
	if (l->clients_gone && !l->dead)
		fcvm_client_bury_locked(l);
	if (l->dead && !l->buried)
		bury(l);
	pthread_mutex_unlock(&l->lock);
}

void fcvm_link_end(struct fcvm_link *l, const char *why)
{
	fcvm_link_lock(l);
	fcvm_link_end_locked(l, -ECONNRESET, "%s", why);
	fcvm_link_unlock(l);
}

void fcvm_link_free(struct fcvm_link *l)
{
	if (!l)
		return;
	fcvm_link_end(l, "closed");
	fcvm_link_unref(l);
}

/* ---- out ---- */

static void watch_carrier(struct fcvm_link *l)
{
	uint32_t events = (l->reading ? 0 : EPOLLIN) | (l->out_waits ? EPOLLOUT : 0);

	if (!l->source)
		return;
	if (!events)
		fcvm_source_mute(l->source);
	else if (fcvm_source_set(l->source, events) < 0)
		fcvm_link_end_locked(l, -ENOMEM, "cannot watch the carrier");
}

static void send_out(struct fcvm_link *l)
{
	while (l->out.size > 0) {
		ssize_t n = send(l->carrier, fcvm_buf_head(&l->out), l->out.size,
			MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == ENOBUFS))
			break;
		if (n < 0) {
			fcvm_link_end_locked(l, -ECONNRESET, "sending: %s", strerror(errno));
			return;
		}
		fcvm_buf_consume(&l->out, n);
	}
	if (l->out_waits != (l->out.size > 0)) {
		l->out_waits = !l->out_waits;
		watch_carrier(l);
	}
}

void fcvm_link_flush_locked(struct fcvm_link *l)
{
	if (!l->dead && !l->frozen)
		send_out(l);
}

void fcvm_link_frame_locked(struct fcvm_link *l, unsigned type, unsigned channel, uint32_t stream,
	const void *payload, size_t size, uint32_t arg)
{
	char *at;

	if (l->dead)
		return;
	if (l->out.size > OUT_MAX) {
		fcvm_link_end_locked(l, -ECONNRESET,
			"the agent takes nothing, and %zu bytes wait for it", l->out.size);
		return;
	}
	at = fcvm_buf_reserve(&l->out, HEADER + size);
	if (!at) {
		fcvm_link_end_locked(l, -ENOMEM, "out of memory");
		return;
	}
	fcvm_wire_put_header(at, type, channel, stream, size, arg);
	if (size)
		memcpy(at + HEADER, payload, size);
	fcvm_buf_grew(&l->out, HEADER + size);
	if (!l->out_waits)
		fcvm_link_flush_locked(l);
}

/* ---- operations wait at the gate while the link is frozen or has much to send ---- */

void fcvm_link_wake_waiters_locked(struct fcvm_link *l)
{
	for (struct waiter *w = l->waiters; w; w = w->next)
		eventfd_write(w->event, 1);
}

static bool admits(const struct fcvm_link *l)
{
	return !l->frozen && !l->freezing && l->out.size <= OUT_HARD && l->nstreams < STREAMS_MAX;
}

int fcvm_link_admit_locked(
	struct fcvm_link *l, const struct fcvm_until *until, const char *what, struct fcvm_err *err)
{
	struct waiter w = {.event = -1};
	struct waiter **at;
	int k = 0;

	if (l->dead || admits(l))
		return l->dead ? fcvm_link_why_locked(l, what, err) : 0;
	w.event = fcvm_fd_event();
	if (w.event < 0)
		return fcvm_fail_errno(err, w.event, "%s: %s: eventfd", l->name, what);
	w.next = l->waiters;
	l->waiters = &w;
	while (k >= 0 && !l->dead && !admits(l)) {
		struct pollfd p = {.fd = w.event, .events = POLLIN};
		eventfd_t count;

		fcvm_link_unlock(l);
		k = fcvm_link_poll(l, until, &p, 1);
		fcvm_link_lock(l);
		eventfd_read(w.event, &count);
		if (k >= 0 && !l->dead && !admits(l) && fcvm_until_passed(until))
			k = -ETIMEDOUT;
	}
	for (at = &l->waiters; *at != &w; at = &(*at)->next)
		;
	*at = w.next;
	fcvm_close(w.event);
	if (l->dead)
		return fcvm_link_why_locked(l, what, err);
	if (k < 0)
		return fcvm_fail_errno(err, k, "%s: %s: waiting for the link, which is %s", l->name,
			what, l->frozen || l->freezing ? "frozen" : "busy");
	return 0;
}

/* The output has drained, or the valve was opened. */
static void room_again(struct fcvm_link *l)
{
	if (fcvm_link_has_room(l)) {
		fcvm_stream_pump_all_locked(l);
		fcvm_client_room_locked(l);
	}
	if (l->waiters)
		fcvm_link_wake_waiters_locked(l);
}

/* ---- in ---- */

static void obey(struct fcvm_link *l, const struct fcvm_wire_header *h, const uint8_t *payload)
{
	struct fcvm_stream *s;

	switch (h->type) {
	case FCVM_WIRE_RESULT:
	case FCVM_WIRE_DATA:
	case FCVM_WIRE_EOF:
	case FCVM_WIRE_CREDIT:
	case FCVM_WIRE_EXIT:
	case FCVM_WIRE_CLOSE:
		break;
	default:
		fcvm_link_end_locked(l, -EPROTO,
			"the agent sent a frame of type %u, which only hosts send", h->type);
		return;
	}
	if (h->stream == 0 && h->type == FCVM_WIRE_RESULT) {
		fcvm_link_end_locked(l, -EPROTO,
			"the agent says that what we sent is against the rules");
		return;
	}
	if (h->stream == 0 || h->stream >= l->next_id) {
		fcvm_link_end_locked(l, -EPROTO,
			"the agent answered on stream %u, which was never opened",
			(unsigned)h->stream);
		return;
	}
	s = fcvm_stream_find_locked(l, h->stream);
	if (!s)
		return; /* we have let go of it while this was on its way */
	if (s->relay)
		fcvm_client_frame_locked(s, h, payload);
	else
		fcvm_stream_frame_locked(s, h, payload);
}

static void obey_all(struct fcvm_link *l)
{
	while (!l->dead && l->in.size > 0) {
		struct fcvm_wire_header h;
		const uint8_t *payload;
		size_t skip = 0;
		int n = fcvm_wire_parse(fcvm_buf_head(&l->in), l->in.size, &h, &payload, &skip);

		if (n < 0) {
			fcvm_link_end_locked(l, -EPROTO, "the agent sent what is no frame");
		} else if (n == 0) {
			fcvm_buf_consume(&l->in, skip);
			return;
		} else {
			obey(l, &h, payload);
			fcvm_buf_consume(&l->in, n);
		}
	}
}

/* One read of the carrier. The caller has the reader's role. Returns false at its end, or if
 * nothing was there. */
static bool read_carrier(struct fcvm_link *l)
{
	size_t size = 64 * 1024;
	char *at = fcvm_buf_reserve(&l->in, size);
	ssize_t n = -1;

	errno = ENOMEM;
	if (at)
		n = recv(l->carrier, at, size, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	fcvm_link_lock(l);
	if (n > 0) {
		fcvm_buf_grew(&l->in, n);
		obey_all(l);
	} else if (n == 0) {
		fcvm_link_end_locked(l, -ECONNRESET, "the other side closed it");
	} else {
		fcvm_link_end_locked(l, -ECONNRESET, "receiving: %s", strerror(errno));
	}
	fcvm_link_unlock(l);
	if (l->in.size == 0)
		fcvm_buf_done(&l->in);
	return n == (ssize_t)size;
}

static void on_carrier(void *data, uint64_t tag, uint32_t events)
{
	struct fcvm_link *l = data;
	bool mine;

	fcvm_link_lock(l);
	/* Not what gathers behind a FREEZE: it waits for nobody. */
	if (events & EPOLLOUT && l->out_waits && !l->dead) {
		bool was_long = l->out.size >= OUT_SOFT;

		send_out(l);
		if (l->out.size == 0 || (was_long && l->out.size < OUT_SOFT))
			room_again(l);
	}
	/* The callback may have been on its way when a caller took the role. */
	mine = !l->reading && !l->dead;
	if (mine)
		l->reading = true;
	fcvm_link_unlock(l);
	if (!mine)
		return;
	for (int i = 0; i < 4 && read_carrier(l); i++)
		;
	fcvm_link_lock(l);
	l->reading = false;
	watch_carrier(l);
	fcvm_link_unlock(l);
}

static bool take_role(struct fcvm_link *l)
{
	bool taken;

	fcvm_link_lock(l);
	taken = !l->reading && !l->dead;
	if (taken) {
		l->reading = true;
		watch_carrier(l);
	}
	fcvm_link_unlock(l);
	return taken;
}

int fcvm_link_poll(
	struct fcvm_link *l, const struct fcvm_until *until, struct pollfd *fds, unsigned n)
{
	struct pollfd all[62];
	int k;

	if (n > 60)
		return -EINVAL;
	if (!take_role(l))
		return fcvm_until_poll(until, fds, n);
	memcpy(all, fds, n * sizeof *fds);
	for (;;) {
		all[n] = (struct pollfd){.fd = l->carrier, .events = POLLIN};
		k = fcvm_until_poll(until, all, n + 1);
		if (k < 0)
			break;
		if (!all[n].revents)
			break;
		if (k > 1) {
			k--;
			break;
		}
		read_carrier(l);
		fcvm_link_lock(l);
		k = l->dead;
		fcvm_link_unlock(l);
		/* An agent that never stops sending does not stop the clock. */
		if (k || fcvm_until_passed(until)) {
			k = fcvm_until_poll(until, all, n);
			break;
		}
	}
	if (k > 0)
		memcpy(fds, all, n * sizeof *fds);
	fcvm_link_lock(l);
	l->reading = false;
	watch_carrier(l);
	fcvm_link_unlock(l);
	return k;
}

/* ---- freeze ---- */

static int freeze_call(struct fcvm_link *l, const struct fcvm_until *until, struct fcvm_err *err)
{
	int k = 0;

	/* What was begun before is sent first. */
	fcvm_link_lock(l);
	while (k == 0 && !l->dead && l->out.size > 0) {
		struct pollfd p = {.fd = l->carrier, .events = POLLOUT};

		fcvm_link_unlock(l);
		k = fcvm_until_poll(until, &p, 1);
		fcvm_link_lock(l);
		k = k < 0 ? k : 0;
		fcvm_link_flush_locked(l);
		if (k == 0 && l->out.size > 0 && fcvm_until_passed(until))
			k = -ETIMEDOUT;
	}
	fcvm_link_unlock(l);
	if (k < 0)
		return fcvm_fail_errno(
			err, k, "%s: freeze: the agent does not take what waits for it", l->name);
	return fcvm_link_call(l, FCVM_WIRE_FREEZE, NULL, 0, until, "freeze", NULL, NULL, err);
}

static void reopen_locked(struct fcvm_link *l)
{
	l->frozen = l->freezing = false;
	fcvm_link_flush_locked(l);
	room_again(l);
}

int fcvm_link_freeze(struct fcvm_link *l, const struct fcvm_until *until, struct fcvm_err *err)
{
	int k;

	fcvm_link_lock(l);
	k = fcvm_link_admit_locked(l, until, "freeze", err);
	if (k == 0)
		l->freezing = true;
	fcvm_link_unlock(l);
	if (k < 0)
		return k;
	k = freeze_call(l, until, err);
	fcvm_link_lock(l);
	if (k < 0) {
		/* It may be frozen or not; THAW does no harm. */
		fcvm_link_frame_locked(l, FCVM_WIRE_OPEN, 0, l->next_id++, NULL, 0, FCVM_WIRE_THAW);
		reopen_locked(l);
	}
	fcvm_link_unlock(l);
	return k;
}

int fcvm_link_thaw(struct fcvm_link *l, const struct fcvm_until *until, struct fcvm_err *err)
{
	fcvm_link_lock(l);
	if (!l->frozen && !l->dead) {
		fcvm_link_unlock(l);
		return 0;
	}
	fcvm_link_unlock(l);
	return fcvm_link_call(l, FCVM_WIRE_THAW, NULL, 0, until, "thaw", NULL, NULL, err);
}

int fcvm_link_open_freeze_locked(struct fcvm_link *l, uint32_t id)
{
	fcvm_link_frame_locked(l, FCVM_WIRE_OPEN, 0, id, NULL, 0, FCVM_WIRE_FREEZE);
	/* Nothing may follow FREEZE on its way. */
	l->frozen = true;
	return l->out.size > 0 ? -EAGAIN : 0;
}

void fcvm_link_open_thaw_locked(struct fcvm_link *l, uint32_t id)
{
	struct fcvm_buf held = l->out;

	l->out = (struct fcvm_buf){0};
	l->frozen = l->freezing = false;
	fcvm_link_frame_locked(l, FCVM_WIRE_OPEN, 0, id, NULL, 0, FCVM_WIRE_THAW);
	if (held.size && fcvm_buf_append(&l->out, fcvm_buf_head(&held), held.size) < 0)
		fcvm_link_end_locked(l, -ENOMEM, "out of memory");
	fcvm_buf_done(&held);
	reopen_locked(l);
}

/* ---- its beginning ---- */

static void ref_link(void *data)
{
	fcvm_link_ref(data);
}

static void unref_link(void *data)
{
	fcvm_link_unref(data);
}

static const struct fcvm_source_class carrier_class = {on_carrier, ref_link, unref_link};

static const char hello_magic[8] = {'F', 'C', 'V', 'M', 'L', 'I', 'N', 'K'};

/* Sends HELLO behind `zeros` zeros. -EAGAIN: the carrier is full of earlier ones. */
static int queue_hello(struct fcvm_link *l, size_t zeros, uint64_t generation, uint64_t *ret_nonce)
{
	struct fcvm_wire_hello hello = {.version = FCVM_WIRE_VERSION, .generation = generation};
	char *at;

	if (l->out.size > 0)
		return -EAGAIN;
	memcpy(hello.magic, hello_magic, sizeof hello_magic);
	fcvm_random(&hello.nonce, sizeof hello.nonce);
	at = fcvm_buf_reserve(&l->out, zeros + HEADER + sizeof hello);
	if (!at)
		return -ENOMEM;
	memset(at, 0, zeros);
	fcvm_wire_put_header(at + zeros, FCVM_WIRE_HELLO, 0, 0, sizeof hello, 0);
	memcpy(at + zeros + HEADER, &hello, sizeof hello);
	fcvm_buf_grew(&l->out, zeros + HEADER + sizeof hello);
	*ret_nonce = hello.nonce;
	return 0;
}

/* Looks for the WELCOME with our nonce. What stands before it belongs to an earlier owner, and may
 * begin in the middle of a frame. */
static bool find_welcome(struct fcvm_link *l, uint64_t nonce, struct fcvm_wire_hello *ret)
{
	const size_t size = HEADER + sizeof *ret;

	while (l->in.size >= size) {
		struct fcvm_wire_header h;
		const uint8_t *payload;
		size_t skip = 0;
		int n = -1;

		if (*fcvm_buf_head(&l->in) != 0)
			n = fcvm_wire_parse(fcvm_buf_head(&l->in), size, &h, &payload, &skip);
		if (n == (int)size && h.type == FCVM_WIRE_WELCOME) {
			memcpy(ret, payload, sizeof *ret);
			if (memcmp(ret->magic, hello_magic, sizeof hello_magic) == 0 &&
				ret->nonce == nonce) {
				fcvm_buf_consume(&l->in, n);
				return true;
			}
		}
		fcvm_buf_consume(&l->in, 1);
	}
	return false;
}

static int hello_io(struct fcvm_link *l, const struct fcvm_until *until)
{
	struct pollfd p = {.fd = l->carrier, .events = POLLIN};
	char *at;
	ssize_t n;
	int k;

	send_out(l);
	if (l->dead)
		return l->why;
	p.events |= l->out.size > 0 ? POLLOUT : 0;
	k = fcvm_until_poll(until, &p, 1);
	if (k < 0)
		return k;
	if (!(p.revents & ~POLLOUT))
		return 0;
	at = fcvm_buf_reserve(&l->in, 16 * 1024);
	if (!at)
		return -ENOMEM;
	n = recv(l->carrier, at, 16 * 1024, MSG_DONTWAIT);
	if (n > 0)
		fcvm_buf_grew(&l->in, n);
	else if (n == 0)
		return -ECONNRESET;
	else if (errno != EAGAIN && errno != EINTR)
		return -errno;
	return 0;
}

/*
 * The first HELLO goes with a few zeros only: an agent that has just booted, or was frozen when its
 * snapshot was taken, is at a frame's boundary. Who does not answer within a second gets all it
 * takes to resynchronise.
 */
static int greet(struct fcvm_link *l, uint64_t generation, const struct fcvm_until *until,
	uint64_t *ret, struct fcvm_err *err)
{
	struct fcvm_wire_hello welcome;
	struct fcvm_until soon;
	uint64_t nonce = 0;
	int64_t start = fcvm_now_ns();
	int k = queue_hello(l, 16, generation, &nonce);

	soon = fcvm_until_sooner(until, 1000);
	while (k == 0) {
		k = hello_io(l, &soon);
		if (k == 0 && find_welcome(l, nonce, &welcome))
			break;
		if (k == 0 && fcvm_until_passed(&soon))
			k = -ETIMEDOUT;
		if (k == -ETIMEDOUT && fcvm_until_left_ms(until) != 0) {
			soon = fcvm_until_sooner(until, 1000);
			k = queue_hello(l, FCVM_WIRE_RESYNC, generation, &nonce);
			k = k == -EAGAIN ? 0 : k;
		}
	}
	if (k == -ETIMEDOUT)
		return fcvm_fail(err, k, "%s: no answer from the agent within %.1f s", l->name,
			(fcvm_now_ns() - start) / 1e9);
	if (k < 0)
		return fcvm_fail_errno(err, k, "%s: waiting for the agent", l->name);
	if (welcome.version != FCVM_WIRE_VERSION)
		return fcvm_fail(err, -EPROTONOSUPPORT,
			"%s: the agent speaks version %u of the link's protocol, this fcvm version "
			"%u; build "
			"the image anew",
			l->name, (unsigned)welcome.version, FCVM_WIRE_VERSION);
	*ret = welcome.generation;
	return 0;
}

int fcvm_link_new(struct fcvm_link **ret, struct fcvm_reactor *r, int carrier, const char *name,
	uint64_t generation, const struct fcvm_until *until, uint64_t *ret_generation,
	struct fcvm_err *err)
{
	struct fcvm_link *l = calloc(1, sizeof *l);
	int k;

	if (!l) {
		fcvm_close(carrier);
		return fcvm_fail_errno(err, -ENOMEM, "%s: link", name);
	}
	atomic_init(&l->refs, 1);
	pthread_mutex_init(&l->lock, NULL);
	l->carrier = carrier;
	l->listen_fd = l->spare_fd = -1;
	l->next_id = 1;
	l->reactor = r;
	l->name = strdup(name);
	k = l->name ? fcvm_fd_nonblock(carrier, true) : -ENOMEM;
	if (k < 0)
		fcvm_fail_errno(err, k, "%s: link", name);
	else
		k = greet(l, generation, until, ret_generation, err);
	if (k < 0) {
		fcvm_link_unref(l);
		return k;
	}
	fcvm_link_lock(l);
	l->out_waits = false;
	k = fcvm_reactor_add(r, carrier, EPOLLIN, &carrier_class, l, 0, &l->source);
	if (k < 0)
		fcvm_fail_errno(err, k, "%s: watch the carrier", name);
	else
		send_out(l);
	fcvm_link_unlock(l);
	/* Frames that came in one piece with WELCOME would be of nobody: nothing is open yet. */
	if (k < 0) {
		fcvm_link_free(l);
		return k;
	}
	*ret = l;
	return 0;
}
