/* SPDX-License-Identifier: MIT */
/*
 * The Firecracker driver: the way to the agent. Firecracker puts the guest's vsock on Unix sockets (docs/vsock.md of
 * its sources): who listens on v.sock_PORT is called by the guest; who connects to v.sock and sends "CONNECT PORT\n"
 * calls the guest, and reads "OK PORT\n" before the stream begins. A guest that boots calls us, so that nobody has to
 * try until its agent is there; one that was restored, or saved, listens already and is called.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/fail.h"
#include "base/fd.h"
#include "vmm/fc_private.h"
#include "wire/wire.h"

enum {
	AT_ONCE = 4,         /* refusals that are followed by another try at once */
	FIRST_PAUSE_MS = 2,
	LAST_PAUSE_MS = 200,
	REFUSED_MS = 20000,  /* for so long a guest may refuse */
	STREAM_REFUSED_MS = 2000, /* the same, whose agent has said that somebody listens */
	PATIENCE_MS = 50,    /* a call is answered in a few on an idle host */
	LAST_PATIENCE_MS = 4000,
	NOBODY = 1,          /* a port */
	KICK_MS = 4000,
	ANSWER_MAX = 32,
};

int fcvm_fc_listen(struct fc *f, const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_free_ char *address = fcvm_asprintf("unix:%s/" FC_VSOCK "_%u", f->dir, FCVM_WIRE_VSOCK_PORT);
	int k;

	if (!address)
		return fcvm_fail_errno(err, -ENOMEM, "%s: boot", f->vmm.name);
	k = fcvm_node_listen(f->vmm.node, address, until, &f->listener, err);
	return k < 0 ? (fcvm_fail_prefix(err, "%s: boot", f->vmm.name), k) : 0;
}

/* ---- called by the guest ---- */

/* One descriptor that tells of both the caller's cancellation and Firecracker's end. */
static int either(int cancel_fd, int exit_fd)
{
	_cleanup_close_ int fd = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLIN};

	if (fd < 0 || epoll_ctl(fd, EPOLL_CTL_ADD, exit_fd, &e) < 0)
		return -errno;
	if (cancel_fd >= 0 && epoll_ctl(fd, EPOLL_CTL_ADD, cancel_fd, &e) < 0)
		return -errno;
	return fcvm_steal_fd(fd);
}

static bool has_ended(struct fc *f)
{
	struct fcvm_until now = fcvm_until_ms(0, -1);
	struct pollfd p = {.fd = fcvm_vmm_exit_fd(&f->vmm), .events = POLLIN};

	return fcvm_until_poll(&now, &p, 1) > 0;
}

static int accept_agent(struct fc *f, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err)
{
	_cleanup_close_ int stop = either(until ? until->cancel_fd : -1, fcvm_vmm_exit_fd(&f->vmm));
	struct fcvm_until both = fcvm_until_sooner(until, -1);
	int k;

	if (stop < 0)
		return fcvm_fail_errno(err, stop, "%s: wait for its agent", f->vmm.name);
	both.cancel_fd = stop;
	k = fcvm_listener_accept(f->listener, &both, ret_fd, NULL);
	if (k == 0) {
		fcvm_listener_free(fcvm_steal_ptr(f->listener));
		return 0;
	}
	if (k == -ECANCELED && has_ended(f))
		return fcvm_fail(err, -ECONNRESET, "%s: it ended before its agent called", f->vmm.name);
	if (k == -ETIMEDOUT)
		return fcvm_fail(err, k, "%s: its agent has not called on vsock port %u", f->vmm.name,
			FCVM_WIRE_VSOCK_PORT);
	return fcvm_fail_errno(err, k, "%s: wait for its agent on vsock port %u", f->vmm.name, FCVM_WIRE_VSOCK_PORT);
}

/* ---- calling the guest ---- */

/* Byte by byte: what comes after the line is the agent's. -ECONNREFUSED: it was closed instead. */
static int read_answer(struct fc *f, int fd, const struct fcvm_until *until, char answer[static ANSWER_MAX])
{
	struct pollfd fds[2] = {{.fd = fd, .events = POLLIN}, {.fd = fcvm_vmm_exit_fd(&f->vmm), .events = POLLIN}};

	for (unsigned n = 0; n + 1 < ANSWER_MAX;) {
		ssize_t got = recv(fd, answer + n, 1, MSG_DONTWAIT);
		int k;

		if (got > 0) {
			answer[n + 1] = 0;
			if (answer[n++] == '\n')
				return 0;
			continue;
		}
		if (got == 0 || errno == ECONNRESET)
			return -ECONNREFUSED;
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		k = fcvm_until_poll(until, fds, 2);
		if (k < 0)
			return k;
		if (!fds[0].revents)
			return -ECONNRESET;
	}
	return -EPROTO;
}

/* -ECONNREFUSED: by the guest. */
static int call_once(struct fc *f, unsigned port, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err)
{
	_cleanup_free_ char *address = fcvm_asprintf("unix:%s/" FC_VSOCK, f->dir);
	_cleanup_close_ int fd = -1;
	char request[ANSWER_MAX], answer[ANSWER_MAX] = "";
	int k = address ? fcvm_node_connect(f->vmm.node, address, until, &fd, err) : -ENOMEM;

	if (k == -ECONNREFUSED || k == -ENOENT)
		return -ECONNRESET; /* it is Firecracker that is not there */
	snprintf(request, sizeof request, "CONNECT %u\n", port);
	if (k == 0)
		k = fcvm_fd_send_until(fd, request, strlen(request), until);
	if (k == -EPIPE || (k == -ECONNRESET && fd >= 0))
		k = -ECONNREFUSED;
	if (k == 0)
		k = read_answer(f, fd, until, answer);
	if (k == 0 && strncmp(answer, "OK ", 3) != 0)
		k = -EPROTO;
	if (k == 0)
		*ret_fd = fcvm_steal_fd(fd);
	return k;
}

/*
 * A guest hears that a snapshot has cut its connections with its next vsock interrupt; a call that causes this interrupt
 * is either ignored, as one that it has already, or answered and cut with the others. So the first call is to a port where
 * nobody listens: its refusal comes when the guest has heard.
 */
static int kick(struct fc *f, const struct fcvm_until *until)
{
	struct fcvm_until moment = fcvm_until_sooner(until, KICK_MS);
	_cleanup_close_ int fd = -1;
	int k = call_once(f, NOBODY, &moment, &fd, NULL);

	return k == -ECONNREFUSED || k == -ETIMEDOUT ? 0 : k;
}

/*
 * Until it is answered. Firecracker 1.12 numbers its ends of connections from the start again when a snapshot is
 * loaded. If one was open in the guest, the call may get that one's number: until the guest has heard that they are all
 * gone it ignores such a call, and then refuses it. So a call has its time and is made again, each with another number;
 * one at a time, since the agent takes the last one. A guest without the agent refuses all of them: then *ret_refused is
 * set when time is up, which is -ETIMEDOUT, or before that -ECONNREFUSED.
 */
static int call(struct fc *f, unsigned port, int refused_ms, const struct fcvm_until *until, int *ret_fd, bool *ret_refused,
	struct fcvm_err *err)
{
	struct fcvm_until refused = fcvm_until_sooner(until, refused_ms);
	struct pollfd p = {.fd = fcvm_vmm_exit_fd(&f->vmm), .events = POLLIN};
	/* Where loading took long, an answer does, too. */
	int pause_ms = FIRST_PAUSE_MS, patience_ms = f->load_ms > PATIENCE_MS ? f->load_ms : PATIENCE_MS;

	for (unsigned n = 0;; n++) {
		struct fcvm_until moment = fcvm_until_sooner(until, patience_ms);
		int k = call_once(f, port, &moment, ret_fd, err);

		/* One that the deadline has cut short tells nothing new. */
		if (k != -ETIMEDOUT || !fcvm_until_passed(until))
			*ret_refused = k == -ECONNREFUSED;
		if (k == -ETIMEDOUT && !fcvm_until_passed(until)) {
			patience_ms = patience_ms * 2 < LAST_PATIENCE_MS ? patience_ms * 2 : LAST_PATIENCE_MS;
			continue;
		}
		if (k != -ECONNREFUSED)
			return k;
		if (n < AT_ONCE)
			continue;
		moment = fcvm_until_sooner(&refused, pause_ms);
		k = fcvm_until_poll(&moment, &p, 1);
		if (k > 0)
			return -ECONNRESET;
		if (k != -ETIMEDOUT)
			return k;
		if (fcvm_until_passed(&refused))
			return fcvm_until_passed(until) ? -ETIMEDOUT : -ECONNREFUSED;
		pause_ms = pause_ms * 2 < LAST_PAUSE_MS ? pause_ms * 2 : LAST_PAUSE_MS;
	}
}

static int call_agent(struct fc *f, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err)
{
	bool refused = false;
	int k = kick(f, until);

	if (k == 0)
		k = call(f, FCVM_WIRE_VSOCK_PORT, REFUSED_MS, until, ret_fd, &refused, err);
	if (refused && (k == -ECONNREFUSED || k == -ETIMEDOUT))
		return fcvm_fail(err, k == -ETIMEDOUT ? k : -EHOSTUNREACH, "%s: nobody in the guest listens on vsock port "
			"%u: its agent does not run, or has no vsock", f->vmm.name, FCVM_WIRE_VSOCK_PORT);
	switch (k) {
	case 0:
		return 0;
	case -ECONNRESET:
		return fcvm_fail(err, k, "%s: reach its agent by " FC_VSOCK, f->vmm.name);
	case -EPROTO:
		return fcvm_fail(err, k, "%s: reach its agent: Firecracker's answer to CONNECT is not OK", f->vmm.name);
	default:
		return fcvm_fail_errno(err, k, "%s: reach its agent by " FC_VSOCK " (CONNECT %u)", f->vmm.name,
			FCVM_WIRE_VSOCK_PORT);
	}
}

int fcvm_fc_carrier(struct vmm *v, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err)
{
	struct fc *f = fc_of(v);
	int k = fcvm_fc_want(f, 1u << FC_RUNNING, "reach its agent", err);

	if (k < 0)
		return k;
	k = f->listener ? accept_agent(f, until, ret_fd, err) : call_agent(f, until, ret_fd, err);
	return k < 0 ? fcvm_fc_fail(f, k, err) : 0;
}

int fcvm_fc_stream(struct vmm *v, unsigned number, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err)
{
	struct fc *f = fc_of(v);
	unsigned port = FCVM_WIRE_VSOCK_STREAMS + number;
	bool refused = false;
	int k = fcvm_fc_want(f, 1u << FC_RUNNING, "reach its guest", err);

	if (k < 0)
		return k;
	k = call(f, port, STREAM_REFUSED_MS, until, ret_fd, &refused, err);
	if (refused && (k == -ECONNREFUSED || k == -ETIMEDOUT))
		return fcvm_fail(err, -ECONNREFUSED, "%s: nobody in the guest listens on vsock port %u", f->vmm.name, port);
	if (k < 0)
		fcvm_fail_errno(err, k, "%s: reach vsock port %u of its guest", f->vmm.name, port);
	return k < 0 ? fcvm_fc_fail(f, k, err) : 0;
}
