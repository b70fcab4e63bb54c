/* SPDX-License-Identifier: MIT */
/*
 * The door: where a host comes in by itself, over vsock or a Unix socket. Behind it there is one link, and whoever has
 * come last carries it. A connection ends with each snapshot and each restore, so its end says nothing about the
 * lease; the HELLO on the next one does (link.c).
 *
 * Over vsock the agent also calls, once, at its start: a host that listens on that port has its link as soon as there
 * is an agent, and need not try in a loop.
 */
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "base/address.h"
#include "base/fd.h"

/* -1: there is nobody, or it is none that may come in. */
static int accept_host(struct door *d)
{
	struct sockaddr_vm peer = {0};
	socklen_t size = sizeof peer;
	int fd = accept4(d->listener.fd, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);

	/* Programs of this machine, and its own guests, can reach the port as well. */
	if (fd >= 0 && d->link->carrier == CARRIER_VSOCK &&
		(peer.svm_family != AF_VSOCK || peer.svm_cid != VMADDR_CID_HOST)) {
		fcvm_close(fd);
		errno = ECONNABORTED;
		return -1;
	}
	return fd;
}

/* accept(2) looks for a descriptor before it looks for somebody to give it to. */
static bool somebody_waits(const struct door *d)
{
	struct pollfd p = {.fd = d->listener.fd, .events = POLLIN};

	return poll(&p, 1, 0) == 1;
}

static void on_listener(struct agent *a, struct watch *w, uint32_t events)
{
	struct door *d = &a->door;

	for (;;) {
		int fd = accept_host(d);

		if (fd >= 0)
			link_carry(d->link, fd);
		else if ((errno == EMFILE || errno == ENFILE) && d->link->watch.fd >= 0 && somebody_waits(d))
			link_lose_carrier(d->link); /* its place is for who comes */
		else if (errno != EINTR && errno != ECONNABORTED)
			return;
	}
}

static void on_caller(struct agent *a, struct watch *w, uint32_t events)
{
	int fd = w->fd;

	/* Refused, or the host was quicker. */
	if ((events & (EPOLLERR | EPOLLHUP)) || a->door.link->watch.fd >= 0) {
		watch_close(w);
		return;
	}
	/* From here on it is the link's watch. */
	epoll_ctl(a->epoll, EPOLL_CTL_DEL, fd, NULL);
	*w = (struct watch){.fd = -1};
	link_carry(a->door.link, fd);
}

static void call_host(struct agent *a)
{
	const struct sockaddr_vm host = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = FCVM_WIRE_VSOCK_PORT};
	struct watch *w = &a->door.caller;

	w->fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	w->ready = on_caller;
	if (w->fd >= 0 && ((connect(w->fd, (const struct sockaddr *)&host, sizeof host) < 0 && errno != EINPROGRESS) ||
				  watch_set(a, w, EPOLLOUT) < 0))
		watch_close(w);
}

/* fd: it listens; taken. */
static int open_door(struct agent *a, int fd, enum carrier carrier)
{
	struct door *d = &a->door;
	struct link *l;
	int r = link_new(a, carrier, &l);

	d->listener.fd = fd;
	d->listener.ready = on_listener;
	if (r == 0)
		r = watch_set(a, &d->listener, EPOLLIN);
	if (r == 0)
		d->link = l;
	else
		watch_close(&d->listener);
	return r;
}

int door_open_vsock(struct agent *a)
{
	const struct sockaddr_vm all = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = FCVM_WIRE_VSOCK_PORT};
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int r;

	if (fd < 0)
		return -errno;
	if (bind(fd, (const struct sockaddr *)&all, sizeof all) < 0 || listen(fd, 8) < 0) {
		r = -errno;
		fcvm_close(fd);
		return r;
	}
	r = open_door(a, fd, CARRIER_VSOCK);
	if (r == 0)
		call_host(a);
	return r;
}

int door_open_unix(struct agent *a, const char *path)
{
	_cleanup_free_ char *text = fcvm_asprintf("unix:%s", path);
	_cleanup_(fcvm_address_done) struct fcvm_address address = {.dirfd = -1};
	int r = text ? fcvm_address_parse(text, &address) : -ENOMEM;
	int fd = r < 0 ? r : fcvm_address_socket(&address);

	if (fd < 0)
		return fd;
	r = socket_listen(fd, &address);
	if (r < 0) {
		fcvm_close(fd);
		return r;
	}
	r = open_door(a, fd, CARRIER_UNIX);
	if (r < 0)
		unlink(path);
	else
		a->door.path = path;
	return r;
}

void door_close(struct agent *a)
{
	watch_close(&a->door.listener);
	watch_close(&a->door.caller);
	if (a->door.path)
		unlink(a->door.path);
}
