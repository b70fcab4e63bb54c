/* SPDX-License-Identifier: MIT */
/* The common part of processes, transfers and listeners. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "node/node_private.h"

int fcvm_process_init(struct fcvm_process *p, const struct process_ops *ops, struct fcvm_node *n,
	const char *verb, const char *object)
{
	for (unsigned i = 0; i < PROCESS_FDS; i++)
		p->fds[i] = -1;
	p->exit_fd = -1;
	p->what = fcvm_asprintf("%s %s", verb, object);
	if (!p->what)
		return -ENOMEM;
	p->ops = ops;
	p->node = fcvm_node_ref(n);
	return 0;
}

int fcvm_process_fd(const struct fcvm_process *p, unsigned i)
{
	return i < PROCESS_FDS ? p->fds[i] : -1;
}

int fcvm_process_take_fd(struct fcvm_process *p, unsigned i)
{
	if (i >= PROCESS_FDS)
		return -1;
	if (p->fds[i] >= 0)
		p->taken = true;
	return fcvm_steal_fd(p->fds[i]);
}

void fcvm_process_close_fd(struct fcvm_process *p, unsigned i)
{
	if (i >= PROCESS_FDS || p->fds[i] < 0)
		return;
	/* As somebody at the terminal would tell it (the first may only send off an unfinished line); it stays
	 * open by its other descriptor. */
	if (i == 0 && p->eot && write(p->fds[0], "\4\4", 2) < 0)
		p->eot = false;
	p->fds[i] = fcvm_close(p->fds[i]);
}

pid_t fcvm_process_pid(const struct fcvm_process *p)
{
	return p->pid;
}

int fcvm_process_exit_fd(const struct fcvm_process *p)
{
	return p->exit_fd;
}

int fcvm_process_wait(struct fcvm_process *p, const struct fcvm_until *until, struct fcvm_exit *ret,
	struct fcvm_err *err)
{
	struct pollfd fd = {.fd = p->exit_fd, .events = POLLIN};
	int k = 1;

	if (!p->ended) {
		k = p->node->ops->poll(p->node, until, &fd, 1);
		if (k < 0)
			return fcvm_fail_errno(
				err, k, "%s: %s: waiting for its end", p->node->name, p->what);
		k = p->ops->collect(p, &p->exit, err);
		if (k < 0)
			return k;
		p->ended = true;
	}
	*ret = p->exit;
	return 0;
}

int fcvm_process_signal(struct fcvm_process *p, int signo, struct fcvm_err *err)
{
	if (signo < 1 || signo >= NSIG)
		return fcvm_fail(
			err, -EINVAL, "%s: %s: %d is no signal", p->node->name, p->what, signo);
	return p->ended ? 0 : p->ops->signal(p, signo, err);
}

int fcvm_process_resize(
	struct fcvm_process *p, unsigned rows, unsigned columns, struct fcvm_err *err)
{
	if (rows > 0xffff || columns > 0xffff)
		return fcvm_fail(err, -EINVAL, "%s: %s: a terminal of %u x %u is too large",
			p->node->name, p->what, rows, columns);
	return p->ended ? 0 : p->ops->resize(p, rows, columns, err);
}

void fcvm_process_free(struct fcvm_process *p)
{
	if (!p)
		return;
	for (unsigned i = 0; i < PROCESS_FDS; i++)
		fcvm_close(p->fds[i]);
	p->ops->free(p);
	fcvm_node_unref(p->node);
	free(p->what);
	free(p);
}

int fcvm_listener_accept(
	struct fcvm_listener *l, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err)
{
	return l->accept(l, until, ret_fd, err);
}

void fcvm_listener_free(struct fcvm_listener *l)
{
	if (!l)
		return;
	l->free(l);
	fcvm_node_unref(l->node);
	free(l->address);
	free(l);
}
