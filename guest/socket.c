/* SPDX-License-Identifier: MIT */
/* CONNECT, LISTEN and ACCEPT: sockets of this machine as streams. */
#include "agent.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/address.h"

/* Makes a non-blocking socket for the address. fd or -errno, and the refusal is sent. */
static int make_socket(struct link *l, uint32_t id, const char *what, const char *text,
	struct fcvm_wire_reader *r, struct fcvm_address *address)
{
	int code;

	*address = (struct fcvm_address){.dirfd = -1};
	code = fcvm_wire_reader_ok(r) ? fcvm_address_parse(text, address) : -EINVAL;
	if (code == 0)
		code = fcvm_address_socket(address);
	if (code < 0)
		link_refuse(l, id, code, "%s %s: %s%s", what, text, strerror(-code),
			code == -EINVAL ? " (want unix:/path or tcp:ADDRESS:PORT)" : "");
	return code;
}

/* Makes the stream one of a connected socket and says so. */
static void connected(struct stream *s)
{
	struct channel *c = &s->channels[0];

	s->kind = STREAM_SOCKET;
	c->type = CHANNEL_SOCKET;
	c->readable = c->blocked = false;
	channel_source(c, 0);
	channel_sink(c, 0);
	/* Also reports what is there already. */
	if (channel_watch(c) < 0) {
		link_refuse(s->link, s->id, -ENOMEM, "connection: cannot watch it");
		stream_bury(s);
		return;
	}
	link_result(s->link, s->id, NULL, 0);
}

/* ---- CONNECT ---- */

void socket_pump_connecting(struct stream *s)
{
	socklen_t size = sizeof(int);
	int code = 0;

	if (getsockopt(s->channels[0].watch.fd, SOL_SOCKET, SO_ERROR, &code, &size) < 0)
		code = errno;
	if (code == 0) {
		connected(s);
		return;
	}
	link_refuse(s->link, s->id, -code, "connect to %s: %s", s->path, strerror(code));
	stream_bury(s);
}

void socket_open_connect(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	const char *text = fcvm_wire_get_string(r);
	_cleanup_(fcvm_address_done) struct fcvm_address address;
	struct stream *s;
	int fd = make_socket(l, id, "connect to", text, r, &address);

	if (fd < 0)
		return;
	s = stream_new(l, id, STREAM_CONNECTING, 1);
	if (s)
		s->path = strdup(text);
	if (!s || !s->path) {
		fcvm_close(fd);
		if (s)
			stream_bury(s);
		link_refuse(l, id, -ENOMEM, "connect to %s: out of memory", text);
		return;
	}
	s->channels[0].watch.fd = fd;
	if (connect(fd, &address.any, address.size) == 0) {
		connected(s);
	} else if (errno != EINPROGRESS ||
		   watch_set(l->agent, &s->channels[0].watch, EPOLLIN | EPOLLOUT) < 0) {
		link_refuse(l, id, -errno, "connect to %s: %s", text, strerror(errno));
		stream_bury(s);
	}
}

/* ---- LISTEN ---- */

static int bind_and_listen(int fd, const struct fcvm_address *address)
{
	int one = 1, r = 0;
	mode_t mask;

	if (address->any.sa_family != AF_UNIX)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	mask = umask(0177);
	if (bind(fd, &address->any, address->size) < 0)
		r = -errno;
	umask(mask);
	if (r == 0 && listen(fd, 128) < 0)
		r = -errno;
	return r;
}

void socket_open_listen(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	const char *text = fcvm_wire_get_string(r);
	_cleanup_(fcvm_address_done) struct fcvm_address address;
	struct stream *s;
	int fd = make_socket(l, id, "listen on", text, r, &address);
	int code;

	if (fd < 0)
		return;
	s = stream_new(l, id, STREAM_LISTENER, 1);
	if (!s) {
		fcvm_close(fd);
		link_refuse(l, id, -ENOMEM, "listen on %s: out of memory", text);
		return;
	}
	s->channels[0].watch.fd = fd;
	code = bind_and_listen(fd, &address);
	if (code == 0 && address.any.sa_family == AF_UNIX) {
		s->path = strdup(text + strlen("unix:"));
		if (!s->path) {
			unlink(text + strlen("unix:"));
			code = -ENOMEM;
		}
	}
	if (code == 0)
		code = channel_watch(&s->channels[0]);
	if (code == 0) {
		link_result(l, id, NULL, 0);
		return;
	}
	link_refuse(l, id, code, "listen on %s: %s", text, strerror(-code));
	stream_drop(s, true);
}

/* ---- ACCEPT ---- */

void socket_pump_listener(struct stream *s)
{
	struct channel *c = &s->channels[0];
	struct stream *w;

	while ((w = TAILQ_FIRST(&s->waiters)) && c->readable && link_has_room(s->link)) {
		int fd = accept4(c->watch.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
			continue;
		if (fd < 0 && errno == EAGAIN) {
			c->readable = false;
			return;
		}
		TAILQ_REMOVE(&s->waiters, w, waiter);
		w->kind = STREAM_SOCKET;
		if (fd < 0) {
			link_refuse(w->link, w->id, -errno, "accept: %s", strerror(errno));
			stream_bury(w);
			continue;
		}
		w->channels[0].watch.fd = fd;
		connected(w);
	}
	if (w && c->readable)
		stream_queue(s);
}

void socket_open_accept(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	uint32_t which = fcvm_wire_get_u32(r);
	struct stream *listener = fcvm_wire_reader_ok(r) ? stream_find(l, which) : NULL;
	struct stream *s;

	if (!listener || listener->kind != STREAM_LISTENER) {
		link_refuse(l, id, -EBADF, "accept: stream %u is no listener", (unsigned)which);
		return;
	}
	s = stream_new(l, id, STREAM_ACCEPTING, 1);
	if (!s) {
		link_refuse(l, id, -ENOMEM, "accept: out of memory");
		return;
	}
	s->listener = listener;
	TAILQ_INSERT_TAIL(&listener->waiters, s, waiter);
	if (listener->channels[0].readable)
		stream_queue(listener);
}
