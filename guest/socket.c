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
#include "base/fd.h"

struct socket_job {
	struct job job;
	const char *text;
	int fd;         /* what was made, or -1 */
	bool connecting;
	bool has_file;  /* of a listener, to be unlinked */
};

static struct socket_job *open_job(struct link *l, uint32_t id, enum stream_kind kind, const struct fcvm_wire_reader *r)
{
	struct socket_job *k = job_new_stream(l, id, kind, 1, sizeof *k, r);

	if (!k)
		return NULL;
	k->fd = -1;
	k->text = fcvm_wire_get_string(&k->job.request);
	if (!fcvm_wire_reader_ok(&k->job.request))
		k->text = "";
	return k;
}

/* Its address has no path. */
static bool is_quick(const struct socket_job *k)
{
	return strncmp(k->text, "unix:", 5) != 0 || k->text[5] == '@';
}

/* Makes a non-blocking socket for the address. 0 or -errno, and the refusal is there. */
static int make_socket(struct socket_job *k, const char *what, struct fcvm_address *address)
{
	int code = fcvm_address_parse(k->text, address);

	if (code == 0)
		code = k->fd = fcvm_address_socket(address);
	if (code < 0)
		fcvm_fail(&k->job.err, code, "%s %s: %s%s", what, k->text, strerror(-code),
			code == -EINVAL ? " (want unix:/path or tcp:ADDRESS:PORT)" : "");
	return code < 0 ? code : 0;
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

static void connect_work(struct job *j)
{
	struct socket_job *k = (struct socket_job *)j;
	_cleanup_(fcvm_address_done) struct fcvm_address address = {.dirfd = -1};

	j->code = make_socket(k, "connect to", &address);
	if (j->code < 0 || connect(k->fd, &address.any, address.size) == 0)
		return;
	k->connecting = errno == EINPROGRESS;
	if (!k->connecting)
		j->code = fcvm_fail_errno(&j->err, -errno, "connect to %s", k->text);
}

static void connect_done(struct job *j)
{
	struct socket_job *k = (struct socket_job *)j;
	struct stream *s = j->stream;

	if (!s) {
		fcvm_close(k->fd);
		return;
	}
	s->channels[0].watch.fd = k->fd;
	s->path = strdup(k->text);
	if (j->code == 0 && !s->path)
		j->code = fcvm_fail(&j->err, -ENOMEM, "connect to %s: out of memory", k->text);
	if (j->code == 0 && k->connecting && watch_set(s->agent, &s->channels[0].watch, EPOLLIN | EPOLLOUT) < 0)
		j->code = fcvm_fail_errno(&j->err, -errno, "connect to %s", k->text);
	if (j->code < 0)
		job_answer(j);
	else if (!k->connecting)
		connected(s);
}

void socket_open_connect(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	struct socket_job *k = open_job(l, id, STREAM_CONNECTING, r);

	if (!k)
		return;
	k->job.work = connect_work;
	k->job.done = connect_done;
	job_run(&k->job, is_quick(k));
}

/* ---- LISTEN ---- */

int socket_listen(int fd, const struct fcvm_address *address)
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

static void listen_work(struct job *j)
{
	struct socket_job *k = (struct socket_job *)j;
	_cleanup_(fcvm_address_done) struct fcvm_address address = {.dirfd = -1};

	j->code = make_socket(k, "listen on", &address);
	if (j->code < 0)
		return;
	j->code = socket_listen(k->fd, &address);
	if (j->code < 0)
		fcvm_fail_errno(&j->err, j->code, "listen on %s", k->text);
	else
		k->has_file = fcvm_address_has_file(&address);
}

static void listen_done(struct job *j)
{
	struct socket_job *k = (struct socket_job *)j;
	const char *path = k->has_file ? k->text + strlen("unix:") : NULL;
	struct stream *s = j->stream;

	if (s && j->code == 0 && path) {
		s->path = strdup(path);
		if (!s->path)
			j->code = fcvm_fail(&j->err, -ENOMEM, "listen on %s: out of memory", k->text);
	}
	if (s)
		s->channels[0].watch.fd = k->fd;
	else
		fcvm_close(k->fd);
	if (s && j->code == 0 && channel_watch(&s->channels[0]) < 0)
		j->code = fcvm_fail_errno(&j->err, -errno, "listen on %s", k->text);
	if (s && j->code == 0)
		return link_result(s->link, s->id, NULL, 0);
	if (path)
		files_unlink(j->agent, path);
	job_answer(j);
}

void socket_open_listen(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	struct socket_job *k = open_job(l, id, STREAM_LISTENER, r);

	if (!k)
		return;
	k->job.work = listen_work;
	k->job.done = listen_done;
	job_run(&k->job, is_quick(k));
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
