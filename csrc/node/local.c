/* SPDX-License-Identifier: MIT */
/* The local node: its threads (spawner, reactor), who reaps what, the folders of its lease. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>

#include "base/fail.h"
#include "base/fd.h"
#include "node/node_private.h"

/* A process whose handle is gone. */
struct reap {
	struct local_node *local;
	struct reap *next;
	struct fcvm_proc proc;
	struct fcvm_source *source;
	bool killed;
	bool listed; /* local's lock */
};

struct folder {
	struct folder *next;
	char path[];
};

struct local_node {
	struct fcvm_node node;
	pthread_mutex_t lock;
	/* lock: */
	pthread_cond_t wanted; /* the spawner has work */
	pthread_cond_t done;   /* a spawn is done */
	pthread_t spawner;
	bool spawner_runs;
	bool stop;
	struct fcvm_local_spawn *first, **last;
	struct fcvm_reactor *reactor;
	struct reap *reaps;
	struct folder *folders;
};

static struct local_node *local_of(struct fcvm_node *n)
{
	return (struct local_node *)n;
}

/* ---- the spawner: PDEATHSIG follows the thread that forked, and this one lives as long as the
 * node ---- */

static void *spawner(void *arg)
{
	struct local_node *local = arg;

	pthread_mutex_lock(&local->lock);
	for (;;) {
		struct fcvm_local_spawn *s = local->first;

		if (!s && local->stop)
			break;
		if (!s) {
			pthread_cond_wait(&local->wanted, &local->lock);
			continue;
		}
		local->first = s->next;
		if (!local->first)
			local->last = &local->first;
		pthread_mutex_unlock(&local->lock);
		s->result = fcvm_proc_spawn(s->spec, s->ret, s->err);
		pthread_mutex_lock(&local->lock);
		s->done = true;
		pthread_cond_broadcast(&local->done);
	}
	pthread_mutex_unlock(&local->lock);
	return NULL;
}

int fcvm_local_fork(struct fcvm_node *n, const struct fcvm_proc_spec *spec, struct fcvm_proc *ret,
	struct fcvm_err *err)
{
	struct local_node *local = local_of(n);
	struct fcvm_local_spawn s = {.spec = spec, .ret = ret, .err = err};
	sigset_t all, old;
	int k = 0;

	pthread_mutex_lock(&local->lock);
	if (!local->spawner_runs) {
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		k = -pthread_create(&local->spawner, NULL, spawner, local);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		local->spawner_runs = k == 0;
	}
	if (k == 0) {
		*local->last = &s;
		local->last = &s.next;
		pthread_cond_signal(&local->wanted);
		while (!s.done)
			pthread_cond_wait(&local->done, &local->lock);
	}
	pthread_mutex_unlock(&local->lock);
	return k < 0 ? fcvm_fail_errno(err, k, "local: start the spawner's thread") : s.result;
}

/* ---- the reactor, and reaping by it ---- */

int fcvm_local_reactor(struct fcvm_node *n, struct fcvm_reactor **ret, struct fcvm_err *err)
{
	struct local_node *local = local_of(n);
	int k = 0;

	pthread_mutex_lock(&local->lock);
	if (!local->reactor)
		k = fcvm_reactor_new(&local->reactor);
	*ret = local->reactor;
	pthread_mutex_unlock(&local->lock);
	return k < 0 ? fcvm_fail_errno(err, k, "local: start the reactor's thread") : 0;
}

/* Before its pidfd is closed: a child that is about to exec may hold a copy of that, and epoll
 * would not notice. On any thread but the reactor's r may be gone afterwards. */
static void unlist(struct reap *r)
{
	struct reap **at = &r->local->reaps;

	while (*at != r)
		at = &(*at)->next;
	*at = r->next;
	r->listed = false;
	fcvm_source_remove(fcvm_steal_ptr(r->source));
}

static void reap_now(struct fcvm_proc *p, int timeout_ms)
{
	struct fcvm_until until = fcvm_until_ms(timeout_ms, -1);
	struct fcvm_exit exit;

	fcvm_proc_wait(p, &until, &exit);
	fcvm_proc_done(p);
}

static void on_end(void *data, uint64_t tag, uint32_t events)
{
	struct reap *r = data;

	pthread_mutex_lock(&r->local->lock);
	if (r->listed) {
		struct fcvm_proc proc = r->proc;

		unlist(r);
		reap_now(&proc, 0);
	}
	pthread_mutex_unlock(&r->local->lock);
}

static void keep_reap(void *data)
{
}

static const struct fcvm_source_class reap_class = {on_end, keep_reap, free};

void fcvm_local_reap(struct fcvm_node *n, struct fcvm_proc *p, bool killed)
{
	struct local_node *local = local_of(n);
	struct reap *r = calloc(1, sizeof *r);
	struct fcvm_reactor *reactor;
	int k;

	k = fcvm_local_reactor(n, &reactor, NULL);
	if (!r || k < 0) {
		free(r);
		if (killed)
			reap_now(p, 2000);
		else
			fcvm_proc_done(p);
		return;
	}
	*r = (struct reap){.local = local, .proc = *p, .killed = killed};
	pthread_mutex_lock(&local->lock);
	r->next = local->reaps;
	local->reaps = r;
	r->listed = true;
	k = fcvm_reactor_add(reactor, p->pidfd, EPOLLIN, &reap_class, r, 0, &r->source);
	if (k < 0)
		local->reaps = r->next;
	pthread_mutex_unlock(&local->lock);
	if (k == 0)
		return;
	free(r);
	if (killed)
		reap_now(p, 2000);
	else
		fcvm_proc_done(p);
}

/* ---- the lease ---- */

int fcvm_local_lease(struct fcvm_node *n, const char *path)
{
	struct local_node *local = local_of(n);
	size_t size = strlen(path) + 1;
	struct folder *f = malloc(sizeof *f + size);

	if (!f)
		return -ENOMEM;
	memcpy(f->path, path, size);
	pthread_mutex_lock(&local->lock);
	f->next = local->folders;
	local->folders = f;
	pthread_mutex_unlock(&local->lock);
	return 0;
}

void fcvm_local_unlease(struct fcvm_node *n, const char *path)
{
	struct local_node *local = local_of(n);

	pthread_mutex_lock(&local->lock);
	for (struct folder **at = &local->folders; *at;) {
		struct folder *f = *at;

		if (strcmp(f->path, path) == 0) {
			*at = f->next;
			free(f);
		} else {
			at = &f->next;
		}
	}
	pthread_mutex_unlock(&local->lock);
}

/* ---- life ---- */

static void end_reaps(struct local_node *local)
{
	pthread_mutex_lock(&local->lock);
	while (local->reaps) {
		struct fcvm_proc proc = local->reaps->proc;
		bool killed = local->reaps->killed;

		unlist(local->reaps);
		if (killed)
			reap_now(&proc, 2000);
		else
			fcvm_proc_done(&proc);
	}
	pthread_mutex_unlock(&local->lock);
}

static void local_free(struct fcvm_node *n)
{
	struct local_node *local = local_of(n);

	end_reaps(local);
	fcvm_reactor_free(local->reactor);
	pthread_mutex_lock(&local->lock);
	local->stop = true;
	pthread_cond_signal(&local->wanted);
	pthread_mutex_unlock(&local->lock);
	if (local->spawner_runs)
		pthread_join(local->spawner, NULL);
	while (local->folders) {
		struct folder *f = local->folders;

		local->folders = f->next;
		fcvm_tree_remove(AT_FDCWD, f->path);
		free(f);
	}
	pthread_cond_destroy(&local->wanted);
	pthread_cond_destroy(&local->done);
	pthread_mutex_destroy(&local->lock);
	free(local);
}

static int local_poll(
	struct fcvm_node *n, const struct fcvm_until *until, struct pollfd *fds, unsigned count)
{
	return fcvm_until_poll(until, fds, count);
}

static const struct node_ops local_ops = {
	.free = local_free,
	.poll = local_poll,
	.spawn = fcvm_local_spawn,
	.connect = fcvm_local_connect,
	.listen = fcvm_local_listen,
	.get = fcvm_local_get,
	.put = fcvm_local_put,
	.read_file = fcvm_local_read_file,
	.write_file = fcvm_local_write_file,
	.stat = fcvm_local_stat,
	.mkdir = fcvm_local_mkdir,
	.rename = fcvm_local_rename,
	.remove = fcvm_local_remove,
	.reflink = fcvm_local_reflink,
	.info = fcvm_local_info,
};

bool fcvm_node_is_local(const struct fcvm_node *n)
{
	return n->ops == &local_ops;
}

int fcvm_node_local(struct fcvm_node **ret, struct fcvm_err *err)
{
	struct local_node *local = calloc(1, sizeof *local);

	if (local)
		local->node.name = strdup("local");
	if (!local || !local->node.name) {
		free(local);
		return fcvm_fail_errno(err, -ENOMEM, "local node");
	}
	local->node.ops = &local_ops;
	atomic_init(&local->node.refs, 1);
	pthread_mutex_init(&local->lock, NULL);
	pthread_cond_init(&local->wanted, NULL);
	pthread_cond_init(&local->done, NULL);
	local->last = &local->first;
	*ret = &local->node;
	return 0;
}
