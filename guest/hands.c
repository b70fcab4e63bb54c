/* SPDX-License-Identifier: MIT */
/*
 * Hands: threads that do what may wait for a file system. One is made when all others are at work, so that a volume
 * that does not answer holds only those who want something of it. As long as there is no volume the loop does the jobs
 * itself: to pass them on costs two changes of threads.
 *
 * What hands share is static: one that hangs when the agent ends hangs in memory that is not freed. Each has a root, a
 * working folder and a umask of its own (CLONE_FS), so that a new root, and a job's umask, are nobody else's.
 */
#include "agent.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/fd.h"

enum {
	HANDS_MAX = 1024,
	SPARE = 4,           /* of those that have nothing to do, so many stay */
	STACK = 256 * 1024,  /* little of it is used */
};

TAILQ_HEAD(job_queue, job);

static struct {
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct job_queue todo, done;
	unsigned ntodo, hands, idle;
	int event;       /* readable: something is done */
	bool keep;       /* a program's PDEATHSIG follows the thread that started it */
	_Atomic int root; /* -1: the agent's */
} pool = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.more = PTHREAD_COND_INITIALIZER,
	.todo = TAILQ_HEAD_INITIALIZER(pool.todo),
	.done = TAILQ_HEAD_INITIALIZER(pool.done),
	.event = -1,
	.root = -1,
};

/* ---- a hand ---- */

/* Goes where the root is now. *root: where this hand's is. */
static int follow_root(int *root)
{
	int now = atomic_load(&pool.root);

	if (*root == now)
		return 0;
	if (fchdir(now) < 0 || chroot(".") < 0)
		return -errno;
	*root = now;
	return 0;
}

static void work(struct job *j, int *root)
{
	int r = follow_root(root);

	if (r == 0)
		j->work(j);
	else
		j->code = fcvm_fail_errno(&j->err, r, "enter the root folder");
}

static void *hand(void *data)
{
	int root = -1;

	unshare(CLONE_FS);
	pthread_mutex_lock(&pool.lock);
	while (pool.keep || pool.idle < SPARE || pool.ntodo > 0) {
		struct job *j;

		pool.idle++;
		while (!(j = TAILQ_FIRST(&pool.todo)))
			pthread_cond_wait(&pool.more, &pool.lock);
		pool.idle--;
		TAILQ_REMOVE(&pool.todo, j, waiting);
		pool.ntodo--;
		pthread_mutex_unlock(&pool.lock);
		work(j, &root);
		pthread_mutex_lock(&pool.lock);
		TAILQ_INSERT_TAIL(&pool.done, j, waiting);
		fcvm_fd_write_full(pool.event, &(uint64_t){1}, sizeof(uint64_t));
	}
	pool.hands--;
	pthread_mutex_unlock(&pool.lock);
	return NULL;
}

/* Under the lock. */
static int hire(void)
{
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attr, hand, NULL);
	pthread_attr_destroy(&attr);
	pool.hands += r == 0;
	return -r;
}

/* ---- the loop's side ---- */

static void finish(struct job *j)
{
	LIST_REMOVE(j, entry);
	if (j->stream)
		j->stream->job = NULL;
	j->done(j);
	free(j);
}

static void on_done(struct agent *a, struct watch *w, uint32_t events)
{
	struct job_queue done = TAILQ_HEAD_INITIALIZER(done);
	struct job *j;
	uint64_t n;

	if (read(w->fd, &n, sizeof n) < 0 && errno != EAGAIN)
		return;
	pthread_mutex_lock(&pool.lock);
	TAILQ_CONCAT(&done, &pool.done, waiting);
	pthread_mutex_unlock(&pool.lock);
	while ((j = TAILQ_FIRST(&done))) {
		TAILQ_REMOVE(&done, j, waiting);
		finish(j);
	}
}

/* 0, or -errno and nobody will do it. */
static int pass_on(struct job *j)
{
	int r = 0;

	pthread_mutex_lock(&pool.lock);
	if (pool.ntodo >= pool.idle && pool.hands < HANDS_MAX)
		r = hire();
	if (pool.hands > 0) {
		TAILQ_INSERT_TAIL(&pool.todo, j, waiting);
		pool.ntodo++;
		pthread_cond_signal(&pool.more);
		r = 0;
	}
	pthread_mutex_unlock(&pool.lock);
	return r;
}

void job_run(struct job *j, bool quick)
{
	int r;

	if (quick || !j->agent->volumes) {
		j->work(j);
		finish(j);
		return;
	}
	r = pass_on(j);
	if (r == 0)
		return;
	j->code = fcvm_fail_errno(&j->err, r, "start a thread");
	finish(j);
}

void *job_new(struct agent *a, struct stream *s, size_t size, const struct fcvm_wire_reader *r)
{
	size_t left = r && !r->bad ? (size_t)(r->end - r->at) : 0;
	struct job *j = calloc(1, size + left);

	if (!j) {
		if (s) {
			link_refuse(s->link, s->id, -ENOMEM, "out of memory");
			stream_bury(s);
		}
		return NULL;
	}
	j->agent = a;
	j->stream = s;
	if (s)
		s->job = j;
	if (left)
		memcpy((uint8_t *)j + size, r->at, left);
	j->request = fcvm_wire_reader((uint8_t *)j + size, left);
	j->request.bad = r && r->bad;
	LIST_INSERT_HEAD(&a->jobs, j, entry);
	return j;
}

void *job_new_stream(struct link *l, uint32_t id, enum stream_kind kind, unsigned nchannels, size_t size,
	const struct fcvm_wire_reader *r)
{
	struct stream *s = stream_new(l, id, kind, nchannels);

	if (!s)
		link_refuse(l, id, -ENOMEM, "out of memory");
	return s ? job_new(l->agent, s, size, r) : NULL;
}

void job_answer(struct job *j)
{
	struct stream *s = j->stream;

	if (!s)
		return;
	if (!s->link)
		return stream_bury(s);
	if (j->code < 0)
		link_refuse(s->link, s->id, j->code, "%s", j->err.message);
	else
		link_result(s->link, s->id, NULL, 0);
	stream_bury(s);
}

int hands_init(struct agent *a)
{
	a->hands.ready = on_done;
	a->hands.fd = pool.event = fcvm_fd_event();
	pool.keep = !a->init;
	return pool.event < 0 ? pool.event : watch_set(a, &a->hands, EPOLLIN);
}

void hands_set_root(int fd)
{
	atomic_store(&pool.root, fd);
}
