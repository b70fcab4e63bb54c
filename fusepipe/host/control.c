/* SPDX-License-Identifier: MIT */
/*
 * The server's owner (command.h), and standing still (../control.h).
 *
 * WAITING --ATTACH--> RUNNING --PAUSE--> PAUSING --all PAUSED, all answered--> ENDING --all QUIET--> QUIET --RESUME-->
 * RUNNING. From PAUSING and ENDING a RESUME leads back at any time: each PAUSE and each END has one answer, which is
 * counted, so one that comes late is not taken for another's. QUIET is also where a server begins that goes on from a
 * saved state. From there an ATTACH brings new streams and has them go on (RESUME), as the first one does.
 *
 * Nothing is answered in ENDING and QUIET: what waits for a lock goes on waiting.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"
#include "fusepipe/host/command.h"
#include "fusepipe/host/server.h"

enum { CONTROL_ROOM = 64 };

void note(struct server *s, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	if (!s->note)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	s->note(text);
}

static void reply(struct server *s, uint32_t number, int result, const char *text)
{
	struct fcvm_volume_reply r = {.number = number, .result = result};

	snprintf(r.text, sizeof r.text, "%s", text);
	/* Whoever does not listen has gone or is about to. */
	(void)!send(s->control.fd, &r, offsetof(struct fcvm_volume_reply, text) + strlen(r.text) + 1,
		MSG_DONTWAIT | MSG_NOSIGNAL);
}

int control_open(struct server *s, int fd)
{
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = &s->control};

	s->control.fd = fd;
	return fd >= 0 && epoll_ctl(s->epoll, EPOLL_CTL_ADD, fd, &e) ? -errno : 0;
}

void control_end(struct server *s, int r, const struct fcvm_err *err)
{
	if (s->control.fd >= 0)
		reply(s, 0, r, r ? err->message : "");
}

static void drop_fds(struct control *c)
{
	while (c->nfds)
		fcvm_close(c->fds[--c->nfds]);
}

void control_done(struct server *s)
{
	drop_fds(&s->control);
	s->control.fd = fcvm_close(s->control.fd);
}

bool control_goes_on(const struct server *s)
{
	const struct control *c = &s->control;

	return c->fd >= 0 && !c->ended && (c->phase == WAITING || c->phase == QUIET);
}

/* ---- standing still ---- */

/* On all streams, or none. */
static bool send_all(struct server *s, int32_t code)
{
	for (unsigned i = 0; i < s->nstreams; i++)
		if (s->streams[i].ended || s->streams[i].out.capacity - s->streams[i].out.end < CONTROL_ROOM)
			return false;
	for (unsigned i = 0; i < s->nstreams; i++) {
		struct stream *st = &s->streams[i];

		stream_control(st, code, NULL, 0);
		st->owes_paused += code == FCVM_FUSE_PAUSE;
		st->owes_quiet += code == FCVM_FUSE_END;
	}
	return true;
}

static void enter(struct server *s, enum phase phase)
{
	s->control.phase = phase;
	count_state(s, phase == WAITING ? FCVM_FUSE_STATE_WAITING : phase == QUIET ? FCVM_FUSE_STATE_QUIET :
		FCVM_FUSE_STATE_RUNNING);
}

/* The PAUSE under way, if there is one, has come to this. */
static void pause_over(struct server *s, int result, const char *text)
{
	if (s->control.pause)
		reply(s, s->control.pause, result, text);
	s->control.pause = 0;
}

static void go_on(struct server *s)
{
	trace_forget(s);
	/* A guest that left hundreds of these unread is not one of ours. */
	if (!send_all(s, FCVM_FUSE_RESUME))
		for (unsigned i = 0; i < s->nstreams; i++)
			stream_end(s, &s->streams[i]);
	enter(s, RUNNING);
}

static bool all(const struct server *s, enum phase phase)
{
	for (unsigned i = 0; i < s->nstreams; i++)
		if (phase == PAUSING ? s->streams[i].owes_paused : s->streams[i].owes_quiet)
			return false;
	return true;
}

void control_step(struct server *s)
{
	struct control *c = &s->control;

	if ((c->phase == PAUSING || c->phase == ENDING) && s->open_streams < s->nstreams) {
		pause_over(s, -ECONNRESET, "the guest has ended its mount");
		enter(s, RUNNING);
	}
	if (c->phase == PAUSING && all(s, PAUSING) && !s->pool.pending && !s->late && send_all(s, FCVM_FUSE_END))
		enter(s, ENDING);
	if (c->phase == ENDING && all(s, ENDING)) {
		enter(s, QUIET);
		pause_over(s, 0, "");
	}
}

bool control_message(struct server *s, struct stream *st, const struct fuse_in_header *h)
{
	switch (h->opcode) {
	case FCVM_FUSE_PAUSED:
		st->owes_paused -= st->owes_paused > 0;
		return true;
	case FCVM_FUSE_QUIET:
		st->owes_quiet -= st->owes_quiet > 0;
		return true;
	case FCVM_FUSE_TRACE:
	case FCVM_FUSE_TRACED:
		trace_message(s, h);
		return true;
	case FCVM_FUSE_LEFT:
		st->left = true;
		return true;
	default:
		return false;
	}
}

/* ---- commands ---- */

static void do_pause(struct server *s, uint32_t number)
{
	struct control *c = &s->control;

	if (c->phase == QUIET) {
		reply(s, number, 0, "");
	} else if (!s->nstreams || s->open_streams < s->nstreams) {
		reply(s, number, -ENOTCONN, "no guest is connected");
	} else if (!send_all(s, FCVM_FUSE_PAUSE)) {
		reply(s, number, -EBUSY, "the guest does not read its replies");
	} else {
		c->pause = number;
		enter(s, PAUSING);
	}
}

static void do_resume(struct server *s, uint32_t number)
{
	enum phase phase = s->control.phase;

	if (phase == QUIET && s->open_streams < s->nstreams) {
		reply(s, number, -ENOTCONN, "its streams have ended: it needs new ones");
		return;
	}
	if (phase == QUIET || phase == PAUSING || phase == ENDING)
		go_on(s);
	reply(s, number, 0, "");
}

static void do_save(struct server *s, uint32_t number, int fd)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	int r;

	if (s->control.phase != QUIET)
		r = fcvm_fail(&err, -EBUSY, "it is not quiet");
	else
		r = fd < 0 ? fcvm_fail(&err, -EBADF, "no file came with the command") : state_save(s, fd, &err);
	reply(s, number, r, r ? err.message : "");
	fcvm_close(fd);
}

/* All the streams of an ATTACH are there. */
static int attach(struct server *s, struct fcvm_err *err)
{
	struct control *c = &s->control;
	int r = 0;

	if (c->phase != WAITING && c->phase != QUIET && s->open_streams)
		return fcvm_fail(err, -EBUSY, "it is in use: to be paused before it gets new streams");
	if (s->nstreams && s->nstreams != c->nfds)
		return fcvm_fail(err, -EINVAL, "%u streams for a guest that reads with %u", c->nfds, s->nstreams);
	for (unsigned i = 0; i < s->nstreams; i++)
		stream_end(s, &s->streams[i]);
	s->nstreams = c->nfds;
	for (unsigned i = 0; i < c->nfds && !r; i++) {
		const struct fcvm_fuse_greeting greeting = FCVM_FUSE_GREETING_TO(i);
		struct iovec iov = {(void *)&greeting, sizeof greeting};

		r = stream_open(s, &s->streams[i], fcvm_steal_fd(c->fds[i]));
		if (!r)
			stream_reply(&s->streams[i], &iov, 1);
	}
	if (r)
		return fcvm_fail_errno(err, r, "its streams");
	/* Also before INIT: a reader that was saved then stands still, and does not tell. */
	go_on(s);
	state_replay(s);
	return 0;
}

/* One message of an ATTACH. */
static void do_attach(struct server *s, const struct fcvm_volume_request *q, int *fds, unsigned n)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	struct control *c = &s->control;
	int r = 0;

	if (q->first == 0)
		drop_fds(c);
	if (!q->total || q->total > FCVM_FUSE_MAX_STREAMS || q->first != c->nfds || !n || n > q->total - q->first)
		r = fcvm_fail(&err, -EINVAL, "%u streams, from %u on, of %u: 1 to %d there may be", n, q->first, q->total,
			FCVM_FUSE_MAX_STREAMS);
	for (unsigned i = 0; i < n; i++) {
		if (r)
			fcvm_close(fds[i]);
		else
			c->fds[c->nfds++] = fds[i];
	}
	if (!r && c->nfds < q->total)
		return;
	if (!r)
		r = attach(s, &err);
	drop_fds(c);
	reply(s, q->number, r, r ? err.message : "");
}

static void execute(struct server *s, const struct fcvm_volume_request *q, int *fds, unsigned n)
{
	pause_over(s, -ECANCELED, "another command came");
	if (q->command == FCVM_VOLUME_ATTACH) {
		do_attach(s, q, fds, n);
		return;
	}
	for (unsigned i = 1; i < n; i++)
		fcvm_close(fds[i]);
	if (q->command == FCVM_VOLUME_SAVE) {
		do_save(s, q->number, n ? fds[0] : -1);
		return;
	}
	if (n)
		fcvm_close(fds[0]);
	if (q->command == FCVM_VOLUME_PAUSE)
		do_pause(s, q->number);
	else if (q->command == FCVM_VOLUME_RESUME)
		do_resume(s, q->number);
	else
		reply(s, q->number, -ENOSYS, "a command that is not known");
}

void control_turn(struct server *s)
{
	union {
		struct cmsghdr h;
		char space[CMSG_SPACE(FCVM_VOLUME_FDS * sizeof(int))];
	} u;
	struct fcvm_volume_request q = {.command = 0};
	struct iovec iov = {&q, sizeof q};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof u};
	int fds[FCVM_VOLUME_FDS];
	unsigned n = 0;
	ssize_t size = recvmsg(s->control.fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (size <= 0) {
		s->control.ended = true;
		return;
	}
	for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
			continue;
		n = (unsigned)((h->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(h), n * sizeof(int));
	}
	execute(s, &q, fds, n);
}
