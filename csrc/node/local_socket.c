/* SPDX-License-Identifier: MIT */
/* Sockets on the local node. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/address.h"
#include "base/fail.h"
#include "base/fd.h"
#include "node/node_private.h"

/* The address and a socket for it, non-blocking. fd or -errno, with the message. */
static int make_socket(
	const char *verb, const char *text, struct fcvm_address *ret, struct fcvm_err *err)
{
	int k = fcvm_address_parse(text, ret);

	if (k == -EINVAL)
		return fcvm_fail(
			err, k, "local: %s %s: want unix:/path or tcp:ADDRESS:PORT", verb, text);
	if (k == 0)
		k = fcvm_address_socket(ret);
	return k < 0 ? fcvm_fail_errno(err, k, "local: %s %s", verb, text) : k;
}

/* ---- connect ---- */

static int await_connected(int fd, const struct fcvm_until *until)
{
	struct pollfd p = {.fd = fd, .events = POLLOUT};
	socklen_t size = sizeof(int);
	int code = 0;
	int k = fcvm_until_poll(until, &p, 1);

	if (k < 0)
		return k;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size) < 0)
		return -errno;
	return -code;
}

/* A Unix listener whose backlog is full cannot be polled for: only a blocking connect waits in its
 * queue. */
static int connect_full(int fd, const struct fcvm_address *a, const struct fcvm_until *until)
{
	const struct timeval slice = {.tv_usec = 50 * 1000};
	int k = fcvm_fd_nonblock(fd, false);

	if (k < 0)
		return k;
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &slice, sizeof slice);
	while (connect(fd, &a->any, a->size) < 0) {
		struct fcvm_until now = fcvm_until_sooner(until, 0);

		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		k = fcvm_until_poll(&now, NULL, 0);
		if (k == -ECANCELED || fcvm_until_left_ms(until) == 0)
			return k;
	}
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){0}, sizeof slice);
	return fcvm_fd_nonblock(fd, true);
}

int fcvm_local_connect(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
	int *ret_fd, struct fcvm_err *err)
{
	_cleanup_(fcvm_address_done) struct fcvm_address a;
	_cleanup_close_ int fd = make_socket("connect to", address, &a, err);
	int k = 0;

	if (fd < 0)
		return fd;
	if (connect(fd, &a.any, a.size) < 0) {
		k = -errno;
		if (k == -EINPROGRESS || k == -EINTR)
			k = await_connected(fd, until);
		else if (k == -EAGAIN)
			k = connect_full(fd, &a, until);
	}
	if (k < 0)
		return fcvm_fail_errno(err, k, "local: connect to %s", address);
	*ret_fd = fcvm_steal_fd(fd);
	return 0;
}

/* ---- listen ---- */

struct local_listener {
	struct fcvm_listener l;
	int fd;
	bool has_file;
};

static int local_accept(
	struct fcvm_listener *l, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err)
{
	struct pollfd p = {.fd = ((struct local_listener *)l)->fd, .events = POLLIN};

	for (;;) {
		int fd = accept4(p.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		int k = -errno;

		if (fd >= 0) {
			*ret_fd = fd;
			return 0;
		}
		if (k == -EAGAIN)
			k = fcvm_until_poll(until, &p, 1);
		else if (k == -EINTR || k == -ECONNABORTED)
			k = 0;
		if (k < 0)
			return fcvm_fail_errno(err, k, "local: accept on %s", l->address);
	}
}

static void local_listener_free(struct fcvm_listener *l)
{
	struct local_listener *ll = (struct local_listener *)l;

	if (ll->has_file)
		unlink(l->address + strlen("unix:"));
	fcvm_close(ll->fd);
}

static int bind_and_listen(int fd, const struct fcvm_address *a)
{
	int one = 1;

	/* A Unix socket's file takes its mode from the socket's own: nobody else can connect even
	 * at first. */
	if (fcvm_address_has_file(a))
		fchmod(fd, 0600);
	else if (a->any.sa_family != AF_UNIX)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	return bind(fd, &a->any, a->size) < 0 || listen(fd, 128) < 0 ? -errno : 0;
}

int fcvm_local_listen(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
	struct fcvm_listener **ret, struct fcvm_err *err)
{
	_cleanup_(fcvm_address_done) struct fcvm_address a;
	_cleanup_close_ int fd = make_socket("listen on", address, &a, err);
	struct local_listener *ll;
	int k;

	if (fd < 0)
		return fd;
	ll = calloc(1, sizeof *ll);
	if (ll)
		ll->l.address = strdup(address);
	k = ll && ll->l.address ? bind_and_listen(fd, &a) : -ENOMEM;
	if (k < 0) {
		if (ll)
			free(ll->l.address);
		free(ll);
		return fcvm_fail_errno(err, k, "local: listen on %s", address);
	}
	ll->l.accept = local_accept;
	ll->l.free = local_listener_free;
	ll->l.node = fcvm_node_ref(n);
	ll->fd = fcvm_steal_fd(fd);
	ll->has_file = fcvm_address_has_file(&a);
	*ret = &ll->l;
	return 0;
}
