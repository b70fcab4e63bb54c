/* SPDX-License-Identifier: MIT */
/* The driver's end of the control channel to the preload library (preload/ram_wire.h). */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fail.h"
#include "base/fd.h"
#include "vmm/qemu_private.h"

enum {
	/* RAM is mapped before QMP answers, which was waited for: so the hello is there, or never comes. */
	HELLO_MS = 1000,
	REPLY_MS = 1000, /* for the rest of an answer that has begun */
};

/* All of it, or -errno; -ECONNRESET when QEMU has gone. */
static int read_all(struct qemu_ram *r, void *to, size_t size, const struct fcvm_until *until)
{
	for (char *at = to; size > 0;) {
		struct pollfd fds[2] = {{.fd = r->fd, .events = POLLIN}, {.fd = r->exit_fd, .events = POLLIN}};
		ssize_t n = recv(r->fd, at, size, MSG_DONTWAIT);
		int k;

		if (n > 0) {
			at += n;
			size -= n;
			continue;
		}
		if (n == 0)
			return -ECONNRESET;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		k = fcvm_until_poll(until, fds, 2);
		if (k < 0)
			return k;
		if (!fds[0].revents)
			return -ECONNRESET;
	}
	return 0;
}

int fcvm_qemu_ram_greet(struct qemu_ram *r, uint64_t memory, bool private, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	/* A copy has its library for sure, and the processor perhaps late. */
	struct fcvm_until soon = r->exit_fd < 0 ? *until : fcvm_until_sooner(until, HELLO_MS);
	struct fcvm_ram_hello h;
	int k = read_all(r, &h, sizeof h, &soon);

	if (k == -ETIMEDOUT && fcvm_until_left_ms(until) != 0)
		return fcvm_fail(err, -ELIBACC, "%s: QEMU has not loaded the preload library", r->name);
	if (k < 0)
		return fcvm_fail_errno(err, k, "%s: wait for the preload library in QEMU", r->name);
	if (h.magic != FCVM_RAM_MAGIC || h.version != FCVM_RAM_VERSION)
		return fcvm_fail(err, -EPROTO, "%s: the preload library in QEMU speaks version %u, not %u: "
			"reinstall libfcvm-ram.so", r->name, h.version, FCVM_RAM_VERSION);
	if (h.size != memory || h.mode != (private ? FCVM_RAM_IS_PRIVATE : FCVM_RAM_IS_SHARED))
		return fcvm_fail(err, -EPROTO, "%s: QEMU maps %llu bytes of RAM in mode %u, not %llu in mode %u",
			r->name, (unsigned long long)h.size, h.mode, (unsigned long long)memory,
			private ? FCVM_RAM_IS_PRIVATE : FCVM_RAM_IS_SHARED);
	r->private = private;
	r->pid = h.pid;
	return 0;
}

static const char *doing(enum fcvm_ram_command command)
{
	switch (command) {
	case FCVM_RAM_COPY:
		return "copy the memory that it was started from to";
	case FCVM_RAM_DIRTY:
		return "write its changed memory to";
	case FCVM_RAM_PRIVATE:
		return "map its memory privately";
	case FCVM_RAM_FORK:
		return "copy itself";
	}
	return "?";
}

/* The answer to request id. Those to earlier ones that were given up meanwhile come first. */
static int read_reply(struct qemu_ram *r, enum fcvm_ram_command command, uint32_t id, const struct fcvm_until *until,
	struct fcvm_ram_reply *ret)
{
	struct fcvm_until soon = fcvm_until_ms(REPLY_MS, -1);
	int k;

	do {
		struct pollfd fds[2] = {{.fd = r->fd, .events = POLLIN}, {.fd = r->exit_fd, .events = POLLIN}};

		k = fcvm_until_poll(until, fds, 2);
		if (k == -ETIMEDOUT || k == -ECANCELED) {
			/* It is still owed to us. How the memory is mapped must not be in doubt, though. */
			r->broken = r->broken || command == FCVM_RAM_PRIVATE;
			return k;
		}
		k = k < 0 ? k : read_all(r, ret, sizeof *ret, &soon);
	} while (k == 0 && ret->magic == FCVM_RAM_MAGIC && (int32_t)(ret->id - id) < 0);
	if (k == 0 && (ret->magic != FCVM_RAM_MAGIC || ret->id != id))
		k = -EPROTO;
	if (k < 0)
		r->broken = true;
	return k;
}

int fcvm_qemu_ram_call(struct qemu_ram *r, enum fcvm_ram_command command, const char *path,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	char message[sizeof(struct fcvm_ram_request) + FCVM_RAM_PATH];
	struct fcvm_ram_request request = {
		.magic = FCVM_RAM_MAGIC,
		.command = command,
		.id = ++r->id,
		.path_length = path ? strlen(path) : 0,
	};
	struct fcvm_ram_reply reply;
	int k = 0;

	if (r->broken)
		return fcvm_fail(err, -EPIPE, "%s: %s %s: an earlier one was given up", r->name, doing(command),
			path ? path : "");
	if (request.path_length >= FCVM_RAM_PATH)
		return fcvm_fail_errno(err, -ENAMETOOLONG, "%s: %s %s", r->name, doing(command), path);
	memcpy(message, &request, sizeof request);
	if (path)
		memcpy(message + sizeof request, path, request.path_length);
	k = fcvm_fd_send_until(r->fd, message, sizeof request + request.path_length, until);
	if (k < 0)
		r->broken = true;
	else
		k = read_reply(r, command, request.id, until, &reply);
	if (k == 0 && reply.error)
		k = reply.error > 0 && reply.error < 4096 ? -reply.error : -EPROTO;
	if (k < 0)
		return fcvm_fail_errno(err, k, "%s: %s %s", r->name, doing(command), path ? path : "");
	r->private = reply.mode == FCVM_RAM_IS_PRIVATE;
	return 0;
}

int fcvm_qemu_ram_fork(struct qemu_ram *r, const int fds[FCVM_RAM_FORK_FDS], const struct fcvm_until *until,
	struct fcvm_err *err)
{
	struct fcvm_ram_request request = {.magic = FCVM_RAM_MAGIC, .command = FCVM_RAM_FORK, .id = ++r->id};
	char control[CMSG_SPACE(FCVM_RAM_FORK_FDS * sizeof(int))] __attribute__((aligned(8))) = {0};
	struct iovec v = {&request, sizeof request};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	struct fcvm_ram_reply reply;
	int k = r->broken ? -EPIPE : 0;

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(FCVM_RAM_FORK_FDS * sizeof(int));
	memcpy(CMSG_DATA(c), fds, FCVM_RAM_FORK_FDS * sizeof(int));
	/* The channel is empty between requests: so small a message is taken whole or not at all. */
	if (k == 0 && sendmsg(r->fd, &m, MSG_NOSIGNAL) != (ssize_t)sizeof request)
		k = -EPIPE;
	if (k == 0)
		k = read_all(r, &reply, sizeof reply, until);
	if (k == 0 && (reply.magic != FCVM_RAM_MAGIC || reply.id != request.id))
		k = -EPROTO;
	if (k < 0)
		r->broken = true;
	else if (reply.error)
		k = reply.error > 0 && reply.error < 4096 ? -reply.error : -EPROTO;
	if (k < 0)
		return fcvm_fail_errno(err, k, "%s: have QEMU copy itself", r->name);
	return 0;
}
