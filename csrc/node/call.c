/* SPDX-License-Identifier: MIT */
/* What the rest of the node layer does with a link: open streams, wait for results, let go. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"
#include "node/link_private.h"

/* The agent's text as one printable line. */
static void tame(char *to, size_t room, const struct fcvm_buf *from)
{
	size_t n = from->size < room - 1 ? from->size : room - 1;

	for (size_t i = 0; i < n; i++) {
		unsigned char c = fcvm_buf_head((struct fcvm_buf *)from)[i];

		to[i] = c < 0x20 || c == 0x7f ? '?' : c;
	}
	to[n] = 0;
}

static int refused(struct fcvm_stream *s, const char *what, struct fcvm_err *err)
{
	char text[1024];

	if (s->link->dead && s->reply.size == 0)
		return fcvm_link_why_locked(s->link, what, err);
	tame(text, sizeof text, &s->reply);
	if (!text[0])
		return fcvm_fail_errno(err, s->error, "%s: %s", s->link->name, what);
	return fcvm_fail(err, s->error, "%s: %s", s->link->name, text);
}

/* Sends OPEN. FREEZE and THAW pass the gate: they move it. */
static int begin_locked(struct fcvm_link *l, unsigned op, const void *payload, size_t size,
	int event, const struct fcvm_channel_spec *channels, unsigned nchannels, const char *what,
	struct fcvm_stream **ret, struct fcvm_err *err)
{
	struct fcvm_stream *s = fcvm_stream_new_locked(l, op, event, channels, nchannels);
	int k = 0;

	if (!s)
		return fcvm_fail(
			err, -ENOMEM, "%s: %s: out of memory or stream numbers", l->name, what);
	s->handle = true;
	if (op == FCVM_WIRE_FREEZE)
		k = fcvm_link_open_freeze_locked(l, s->id);
	else if (op == FCVM_WIRE_THAW)
		fcvm_link_open_thaw_locked(l, s->id);
	else
		fcvm_link_frame_locked(l, FCVM_WIRE_OPEN, 0, s->id, payload, size, op);
	if (k < 0) {
		s->handle = false;
		fcvm_stream_close_locked(s);
		return fcvm_fail_errno(err, k, "%s: %s: the carrier is full", l->name, what);
	}
	*ret = s;
	return 0;
}

static int await_locked(struct fcvm_stream *s, const struct fcvm_until *until, const char *what,
	struct fcvm_err *err)
{
	struct fcvm_link *l = s->link;
	eventfd_t count;
	int k = 0;

	while (s->state == STREAM_OPENING && k >= 0) {
		struct pollfd p = {.fd = s->event, .events = POLLIN};

		fcvm_link_unlock(l);
		k = fcvm_link_poll(l, until, &p, 1);
		fcvm_link_lock(l);
	}
	if (s->state == STREAM_OPENING)
		return fcvm_fail_errno(err, k, "%s: %s: waiting for the agent", l->name, what);
	if (s->error < 0)
		return refused(s, what, err);
	/* From here on the event says EXIT. */
	eventfd_read(s->event, &count);
	if (s->exited || s->lost)
		eventfd_write(s->event, 1);
	return 0;
}

int fcvm_link_open(struct fcvm_link *l, unsigned op, const void *payload, size_t size,
	struct fcvm_channel_spec *channels, unsigned nchannels, const struct fcvm_until *until,
	const char *what, struct fcvm_stream **ret, void **ret_reply, size_t *ret_reply_size,
	struct fcvm_err *err)
{
	struct fcvm_stream *s = NULL;
	int event = fcvm_fd_event();
	int k = event < 0 ? fcvm_fail_errno(err, event, "%s: %s: eventfd", l->name, what) : 0;

	fcvm_link_lock(l);
	if (k == 0 && op == FCVM_WIRE_FREEZE && l->dead)
		k = fcvm_link_why_locked(l, what, err);
	if (k == 0 && op != FCVM_WIRE_FREEZE && (op != FCVM_WIRE_THAW || l->dead))
		k = fcvm_link_admit_locked(l, until, what, err);
	if (k == 0) {
		k = begin_locked(l, op, payload, size, event, channels, nchannels, what, &s, err);
	} else {
		fcvm_close(event);
		for (unsigned i = 0; i < nchannels; i++)
			fcvm_close(channels[i].fd);
	}
	if (k == 0)
		k = await_locked(s, until, what, err);
	if (k == 0 && ret_reply) {
		/* One more byte: a caller that prints it need not care. */
		*ret_reply = fcvm_buf_append(&s->reply, "", 1) < 0 ? NULL : malloc(s->reply.size);
		if (!*ret_reply) {
			k = fcvm_fail_errno(err, -ENOMEM, "%s: %s", l->name, what);
		} else {
			memcpy(*ret_reply, fcvm_buf_head(&s->reply), s->reply.size);
			*ret_reply_size = s->reply.size - 1;
		}
	}
	if (k == 0) {
		fcvm_buf_done(&s->reply);
		*ret = s;
	} else if (s) {
		s->handle = false;
		fcvm_stream_close_locked(s);
	}
	fcvm_link_unlock(l);
	return k;
}

int fcvm_link_call(struct fcvm_link *l, unsigned op, const void *payload, size_t size,
	const struct fcvm_until *until, const char *what, void **ret_reply, size_t *ret_reply_size,
	struct fcvm_err *err)
{
	struct fcvm_stream *s;
	int k = fcvm_link_open(
		l, op, payload, size, NULL, 0, until, what, &s, ret_reply, ret_reply_size, err);

	if (k == 0)
		fcvm_stream_release(s, false);
	return k;
}

uint32_t fcvm_stream_id(const struct fcvm_stream *s)
{
	return s->id;
}

int fcvm_stream_exit_fd(const struct fcvm_stream *s)
{
	return s->event;
}

int fcvm_stream_exit(struct fcvm_stream *s, struct fcvm_exit *ret, struct fcvm_err *err)
{
	struct fcvm_link *l = s->link;
	int k = -EAGAIN;

	fcvm_link_lock(l);
	if (s->exited) {
		*ret = s->exit;
		k = 0;
	} else if (l->dead) {
		k = fcvm_link_why_locked(l, "wait for a program", err);
	} else if (s->lost) {
		k = fcvm_fail(err, -ECONNRESET, "%s: the agent has let go of the program", l->name);
	}
	fcvm_link_unlock(l);
	return k;
}

int fcvm_stream_send(struct fcvm_stream *s, unsigned type, uint32_t arg, struct fcvm_err *err)
{
	struct fcvm_link *l = s->link;
	int k = 0;

	fcvm_link_lock(l);
	if (l->dead)
		k = fcvm_link_why_locked(l, "signal or resize", err);
	else if (s->state == STREAM_OPEN && !s->exited)
		fcvm_link_frame_locked(l, type, 0, s->id, NULL, 0, arg);
	fcvm_link_unlock(l);
	return k;
}

void fcvm_stream_release(struct fcvm_stream *s, bool linger)
{
	struct fcvm_link *l = s->link;

	fcvm_link_lock(l);
	s->handle = false;
	if (!linger || l->dead)
		fcvm_stream_close_locked(s);
	else
		fcvm_stream_settle_locked(s);
	fcvm_link_unlock(l);
}
