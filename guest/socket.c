/* SPDX-License-Identifier: MIT */
/* CONNECT, LISTEN and ACCEPT: sockets of this machine as streams. */
#include "agent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"

union address {
	struct sockaddr any;
	struct sockaddr_un un;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

static int parse_tcp(const char *text, union address *ret, socklen_t *ret_size)
{
	const char *colon = strrchr(text, ':');
	char host[64];
	size_t size;
	char *end;
	long port;

	if (!colon || colon[1] < '0' || colon[1] > '9')
		return -EINVAL;
	port = strtol(colon + 1, &end, 10);
	size = colon - text;
	if (*end || port > 65535 || size >= sizeof host)
		return -EINVAL;
	if (size > 1 && text[0] == '[' && text[size - 1] == ']') {
		text++;
		size -= 2;
	}
	memcpy(host, text, size);
	host[size] = 0;
	memset(ret, 0, sizeof *ret);
	if (inet_pton(AF_INET, strcmp(host, "localhost") == 0 ? "127.0.0.1" : host,
			&ret->in.sin_addr) == 1) {
		ret->in.sin_family = AF_INET;
		ret->in.sin_port = htons(port);
		*ret_size = sizeof ret->in;
		return 0;
	}
	if (inet_pton(AF_INET6, host, &ret->in6.sin6_addr) != 1)
		return -EINVAL;
	ret->in6.sin6_family = AF_INET6;
	ret->in6.sin6_port = htons(port);
	*ret_size = sizeof ret->in6;
	return 0;
}

static int parse_address(const char *text, union address *ret, socklen_t *ret_size)
{
	if (strncmp(text, "tcp:", 4) == 0)
		return parse_tcp(text + 4, ret, ret_size);
	if (strncmp(text, "unix:", 5) != 0 || !text[5])
		return -EINVAL;
	text += 5;
	if (strlen(text) >= sizeof ret->un.sun_path)
		return -ENAMETOOLONG;
	memset(ret, 0, sizeof *ret);
	ret->un.sun_family = AF_UNIX;
	strcpy(ret->un.sun_path, text);
	*ret_size = sizeof ret->un;
	return 0;
}

/* Makes a non-blocking socket for the address. fd or -errno, and the refusal is sent. */
static int make_socket(struct link *l, uint32_t id, const char *what, const char *text,
	struct fcvm_wire_reader *r, union address *address, socklen_t *size)
{
	int code = fcvm_wire_reader_ok(r) ? parse_address(text, address, size) : -EINVAL;
	int fd = -1, one = 1;

	if (code == 0) {
		fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		code = fd < 0 ? -errno : 0;
	}
	if (code < 0) {
		link_refuse(l, id, code, "%s %s: %s%s", what, text, strerror(-code),
			code == -EINVAL ? " (want unix:/path or tcp:ADDRESS:PORT)" : "");
		return code;
	}
	if (address->any.sa_family != AF_UNIX)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return fd;
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
	union address address;
	struct stream *s;
	socklen_t size;
	int fd = make_socket(l, id, "connect to", text, r, &address, &size);

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
	if (connect(fd, &address.any, size) == 0) {
		connected(s);
	} else if (errno != EINPROGRESS ||
		   watch_set(l->agent, &s->channels[0].watch, EPOLLIN | EPOLLOUT) < 0) {
		link_refuse(l, id, -errno, "connect to %s: %s", text, strerror(errno));
		stream_bury(s);
	}
}

/* ---- LISTEN ---- */

static int bind_and_listen(int fd, const union address *address, socklen_t size)
{
	int one = 1, r = 0;
	mode_t mask;

	if (address->any.sa_family != AF_UNIX)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	mask = umask(0177);
	if (bind(fd, &address->any, size) < 0)
		r = -errno;
	umask(mask);
	if (r == 0 && listen(fd, 128) < 0)
		r = -errno;
	return r;
}

void socket_open_listen(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	const char *text = fcvm_wire_get_string(r);
	union address address;
	struct stream *s;
	socklen_t size;
	int fd = make_socket(l, id, "listen on", text, r, &address, &size);
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
	code = bind_and_listen(fd, &address, size);
	if (code == 0 && address.any.sa_family == AF_UNIX) {
		s->path = strdup(address.un.sun_path);
		if (!s->path) {
			unlink(address.un.sun_path);
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
