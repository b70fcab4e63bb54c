/* SPDX-License-Identifier: MIT */
/*
 * Trees of the local node: base/tree.h packs and unpacks on a thread of the transfer's own. The
 * thread has one end of a socketpair, which it never closes: so the handle can shut it down,
 * whatever became of the caller's end, and the thread comes out of its read or write.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/tree.h"
#include "node/node_private.h"

struct local_transfer {
	struct fcvm_process p;
	pthread_t thread;
	bool runs;
	bool put, keep_owner;
	char *path, *base_name;
	int data, text; /* the thread's ends */
	int event;
	int result; /* written by the thread before the event */
};

static struct local_transfer *transfer_of(struct fcvm_process *p)
{
	return (struct local_transfer *)p;
}

static void *transfer(void *arg)
{
	struct local_transfer *t = arg;
	struct fcvm_err err = FCVM_ERR_INIT;

	if (t->put)
		t->result = fcvm_tree_unpack(t->data, t->path, t->base_name, t->keep_owner, &err);
	else
		t->result = fcvm_tree_pack(t->data, t->path, &err);
	if (t->result > 0)
		t->result = 0;
	if (t->result < 0)
		send(t->text, err.message, strlen(err.message), MSG_DONTWAIT | MSG_NOSIGNAL);
	shutdown(t->data, SHUT_RDWR);
	shutdown(t->text, SHUT_RDWR);
	eventfd_write(t->event, 1);
	return NULL;
}

static int collect(struct fcvm_process *p, struct fcvm_exit *ret, struct fcvm_err *err)
{
	eventfd_t count;

	/* Also orders the thread's writes before ours. */
	if (transfer_of(p)->runs) {
		pthread_join(transfer_of(p)->thread, NULL);
		transfer_of(p)->runs = false;
	}
	eventfd_read(p->exit_fd, &count);
	eventfd_write(p->exit_fd, 1);
	*ret = (struct fcvm_exit){.code = -transfer_of(p)->result};
	return 0;
}

static int stop(struct fcvm_process *p, int signo, struct fcvm_err *err)
{
	shutdown(transfer_of(p)->data, SHUT_RDWR);
	return 0;
}

static int resize(struct fcvm_process *p, unsigned rows, unsigned columns, struct fcvm_err *err)
{
	return fcvm_fail(err, -ENOTTY, "local: %s: resize: it has no terminal", p->what);
}

static void free_transfer(struct fcvm_process *p)
{
	struct local_transfer *t = transfer_of(p);

	if (t->runs) {
		shutdown(t->data, SHUT_RDWR);
		pthread_join(t->thread, NULL);
	}
	fcvm_close(t->data);
	fcvm_close(t->text);
	fcvm_close(t->event);
	free(t->path);
	free(t->base_name);
}

static const struct process_ops ops = {collect, stop, resize, free_transfer};

static int make_pair(struct fcvm_process *p, unsigned i, int *ret_theirs)
{
	int fds[2];
	int k = fcvm_fd_pair(fds);

	if (k < 0)
		return k;
	p->fds[i] = fds[0];
	*ret_theirs = fds[1];
	return fcvm_fd_nonblock(fds[0], true);
}

static int start(struct local_transfer *t)
{
	sigset_t all, old;
	int k = make_pair(&t->p, t->put ? 0 : 1, &t->data);

	if (k == 0)
		k = make_pair(&t->p, 2, &t->text);
	if (k < 0)
		return k;
	t->event = t->p.exit_fd = fcvm_fd_event();
	if (t->event < 0)
		return t->event;
	/* A reader that goes is an error of write(2) to this thread, no SIGPIPE to the program. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	k = -pthread_create(&t->thread, NULL, transfer, t);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	t->runs = k == 0;
	return k;
}

static int begin(struct fcvm_node *n, const char *verb, const char *path, const char *base_name,
	bool put, bool keep_owner, struct fcvm_process **ret, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_process_free) struct fcvm_process *p = NULL;
	struct local_transfer *t = calloc(1, sizeof *t);
	int k;

	if (!t || fcvm_process_init(&t->p, &ops, n, verb, path) < 0) {
		free(t);
		return fcvm_fail_errno(err, -ENOMEM, "local: %s %s", verb, path);
	}
	p = &t->p;
	t->data = t->text = t->event = -1;
	t->put = put;
	t->keep_owner = keep_owner;
	t->path = strdup(path);
	t->base_name = base_name ? strdup(base_name) : NULL;
	k = t->path && (t->base_name || !base_name) ? start(t) : -ENOMEM;
	if (k < 0)
		return fcvm_fail_errno(err, k, "local: %s", p->what);
	*ret = fcvm_steal_ptr(p);
	return 0;
}

int fcvm_local_get(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
	struct fcvm_process **ret, struct fcvm_err *err)
{
	return begin(n, "get", path, NULL, false, false, ret, err);
}

int fcvm_local_put(struct fcvm_node *n, const char *path, const char *base_name, bool keep_owner,
	const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err)
{
	return begin(n, "put", path, base_name, true, keep_owner, ret, err);
}
