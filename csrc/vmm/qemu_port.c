/* SPDX-License-Identifier: MIT */
/*
 * Virtio ports that are plugged into a guest and out of it while it runs: the streams of its volumes, straight between
 * QEMU and who serves them. Each is a chardev and a device. The device is part of the guest's state: who restores has
 * to have it. The chardev is this host's: it is changed for another one when somebody else is to be at its end. One
 * that leads nowhere is a ring buffer, which to the guest is as open as a socket. While a VM is paused QEMU takes the
 * device off its chardev, and then it can be changed for no other.
 *
 * By descriptors that go with QMP's messages: on this host only.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "vmm/qemu_private.h"
#include "wire/wire.h"

enum { BUSY_MS = 500, UNDO_MS = 2000 };

/* format's text as a command's arguments. */
static int command(struct qemu *q, const char *name, const struct fcvm_until *until, struct fcvm_err *err,
	const char *format, ...) __attribute__((format(printf, 5, 6)));

static int command(struct qemu *q, const char *name, const struct fcvm_until *until, struct fcvm_err *err,
	const char *format, ...)
{
	struct fcvm_json *arguments = NULL;
	char text[400];
	va_list ap;
	int k;

	va_start(ap, format);
	vsnprintf(text, sizeof text, format, ap);
	va_end(ap);
	k = fcvm_json_parse(text, strlen(text), &arguments, err);
	return k < 0 ? k : fcvm_qmp_call(q->qmp, name, arguments, until, NULL, err);
}

/* A chardev that is there, or is not yet, for the descriptor of that name in QEMU. */
static int set_chardev(struct qemu *q, unsigned number, bool there, bool leads, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	const char *verb = there ? "chardev-change" : "chardev-add";

	if (!leads)
		return command(q, verb, until, err, "{\"id\":\"" QEMU_PORT_CHARDEV "\",\"backend\":{\"type\":\"ringbuf\","
			"\"data\":{\"size\":%d}}}", number, QEMU_PORT_NOWHERE);
	return command(q, verb, until, err, "{\"id\":\"" QEMU_PORT_CHARDEV "\",\"backend\":{\"type\":\"socket\",\"data\":"
		"{\"server\":false,\"addr\":{\"type\":\"fd\",\"data\":{\"str\":\"volume\"}}}}}", number);
}

/* The device lets go of it a moment after it has gone. */
static int remove_chardev(struct qemu *q, unsigned number, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_until soon = fcvm_until_sooner(until, BUSY_MS);

	for (;;) {
		struct fcvm_until moment = fcvm_until_sooner(&soon, 1);
		int k = command(q, "chardev-remove", until, err, "{\"id\":\"" QEMU_PORT_CHARDEV "\"}", number);

		if (k != -EIO || fcvm_until_passed(&soon) || fcvm_until_poll(&moment, NULL, 0) != -ETIMEDOUT)
			return k;
	}
}

static int add_port(struct qemu *q, unsigned number, const struct fcvm_until *until, struct fcvm_err *err)
{
	int k = set_chardev(q, number, false, true, until, err);

	if (k == 0)
		k = command(q, "device_add", until, err, "{\"driver\":\"virtserialport\",\"id\":\"" QEMU_PORT_DEVICE "\",\"nr\":%u,"
			"\"chardev\":\"" QEMU_PORT_CHARDEV "\",\"name\":\"" FCVM_WIRE_PORT_STREAM "\"}", number,
			QEMU_PORT_FIRST + number, number, number);
	/* What was given up may come to be all the same. */
	if (k < 0) {
		struct fcvm_until soon = fcvm_until_ms(UNDO_MS, -1);

		command(q, "device_del", &soon, NULL, "{\"id\":\"" QEMU_PORT_DEVICE "\"}", number);
		remove_chardev(q, number, &soon, NULL);
	} else {
		q->ports |= 1u << number;
	}
	return k;
}

int fcvm_qemu_plug(struct vmm *v, unsigned number, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err)
{
	struct qemu *q = qemu_of(v);
	bool there = number < QEMU_PORTS && q->ports & 1u << number;
	int fds[2] = {-1, -1}, k = 0;

	if (number >= QEMU_PORTS || !fcvm_node_is_local(v->node))
		return fcvm_fail(err, -EOPNOTSUPP, "%s: no virtio port for volume %u", v->name, number);
	if (ret_fd) {
		k = fcvm_fd_pair(fds);
		if (k < 0)
			return fcvm_fail_errno(err, k, "%s: virtio port of volume %u", v->name, number);
		k = fcvm_qmp_send_fd(q->qmp, "volume", fds[1], until, err);
	}
	if (k == 0)
		k = there ? set_chardev(q, number, true, ret_fd, until, err) : add_port(q, number, until, err);
	fcvm_close(fds[1]);
	if (k < 0) {
		struct fcvm_until soon = fcvm_until_ms(UNDO_MS, -1);

		/* Nobody may have taken it. */
		if (ret_fd)
			command(q, "closefd", &soon, NULL, "{\"fdname\":\"volume\"}");
		fcvm_close(fds[0]);
		return fcvm_qemu_fail(q, k, err);
	}
	if (ret_fd)
		*ret_fd = fds[0];
	return 0;
}

int fcvm_qemu_unplug(struct vmm *v, unsigned number, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct qemu *q = qemu_of(v);
	int k;

	if (number >= QEMU_PORTS || !(q->ports & 1u << number))
		return 0;
	k = command(q, "device_del", until, err, "{\"id\":\"" QEMU_PORT_DEVICE "\"}", number);
	/* Whatever became of the first: the next one to be plugged in under its number is to find nothing. */
	q->ports &= ~(1u << number);
	if (k == 0)
		k = remove_chardev(q, number, until, err);
	else
		remove_chardev(q, number, until, NULL);
	return k < 0 ? fcvm_qemu_fail(q, k, err) : 0;
}
