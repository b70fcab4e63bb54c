/* SPDX-License-Identifier: MIT */
/*
 * What may block: fsync, reads from the disk, copies. Threads are made as they are needed, at most as many as
 * write-and-fsync gains from (16). They run a job's system call and nothing else; answers are the loop's, which hears
 * of them through an eventfd, as many at a time as there are.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/until.h"
#include "fusepipe/abi.h"
#include "fusepipe/host/server.h"

enum {
	JOBS_MAX = 4096,
	JOB_BYTES_MAX = 64 << 20,
	STACK = 128 * 1024,
};

int pool_init(struct pool *p)
{
	*p = (struct pool){.last = &p->first, .done_last = &p->done};
	p->event = fcvm_fd_event();
	if (p->event < 0)
		return p->event;
	pthread_mutex_init(&p->mutex, NULL);
	pthread_cond_init(&p->wake, NULL);
	return 0;
}

static void run(struct job *j)
{
	int64_t began = j->ran ? fcvm_now_ns() : 0;

	j->run(j);
	for (; began && j; j = j->with)
		j->ran = fcvm_now_ns() - began;
}

/* By the mutex. The loop takes all that is done: it need not be told twice. */
static void done(struct pool *p, struct job *j)
{
	bool first = !p->done;

	for (; j; j = j->with) {
		j->next = NULL;
		*p->done_last = j;
		p->done_last = &j->next;
	}
	if (first)
		eventfd_write(p->event, 1);
}

static void *work(void *arg)
{
	struct pool *p = arg;

	pthread_mutex_lock(&p->mutex);
	while (!p->stop || p->first) {
		struct job *j = p->first;

		if (!j) {
			p->idle++;
			pthread_cond_wait(&p->wake, &p->mutex);
			p->idle--;
			continue;
		}
		p->first = j->next;
		p->queued--;
		if (!p->first)
			p->last = &p->first;
		pthread_mutex_unlock(&p->mutex);
		run(j);
		pthread_mutex_lock(&p->mutex);
		done(p, j);
	}
	pthread_mutex_unlock(&p->mutex);
	return NULL;
}

static void one_more_thread(struct pool *p)
{
	pthread_attr_t attr;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	if (!pthread_create(&p->thread[p->threads], &attr, work, p))
		p->threads++;
	pthread_attr_destroy(&attr);
}

struct job *job_new(struct server *s, fuse_req_t req, uint64_t handle, size_t size)
{
	struct job *j = malloc(sizeof *j + size);
	struct handle *h;

	if (!j)
		return NULL;
	*j = (struct job){.stream = s->current, .req = req, .unique = s->message->unique,
		.opcode = s->message->opcode, .began = s->now, .ran = s->tracing ? -1 : 0, .handle = handle_index(handle),
		.fd = -1, .fd2 = -1, .size = size, .data = (char *)(j + 1)};
	if (j->handle) {
		h = handle_at(&s->handles, j->handle);
		h->jobs++;
		j->fd = h->fd;
	}
	s->pool.pending++;
	s->pool.pending_bytes += size;
	return j;
}

void job_second(struct server *s, struct job *j, uint64_t handle)
{
	struct handle *h = handle_at(&s->handles, handle_index(handle));

	j->handle2 = handle_index(handle);
	h->jobs++;
	j->fd2 = h->fd;
}

void job_start(struct server *s, struct job *j)
{
	struct pool *p = &s->pool;

	pthread_mutex_lock(&p->mutex);
	if (p->idle)
		pthread_cond_signal(&p->wake);
	/* Those that are idle are so until they run: each has one of the jobs before this coming. */
	if (p->queued >= p->idle && p->threads < sizeof p->thread / sizeof *p->thread)
		one_more_thread(p);
	if (p->threads) {
		p->queued++;
		j->next = NULL;
		*p->last = j;
		p->last = &j->next;
	} else {
		/* The user may have no more processes: slowly, then, but not never. */
		run(j);
		done(p, j);
		if (s->privileged)
			cred_thread_fsetid(s->fsetid); /* which it may have changed */
	}
	pthread_mutex_unlock(&p->mutex);
}

bool pool_full(const struct server *s)
{
	return s->pool.pending >= JOBS_MAX || s->pool.pending_bytes >= JOB_BYTES_MAX;
}

struct job *pool_take_all(struct pool *p)
{
	struct job *done;
	eventfd_t n;

	pthread_mutex_lock(&p->mutex);
	eventfd_read(p->event, &n);
	done = p->done;
	p->done = NULL;
	p->done_last = &p->done;
	pthread_mutex_unlock(&p->mutex);
	return done;
}

void job_answer(struct server *s, struct job *j)
{
	s->current = j->stream;
	if (j->answer)
		j->answer(s, j);
	else
		fuse_reply_err(j->req, j->result < 0 ? (int)-j->result : 0);
	if (j->handle)
		handle_unused(s, j->handle);
	if (j->handle2)
		handle_unused(s, j->handle2);
	s->pool.pending--;
	s->pool.pending_bytes -= j->size;
	free(j);
}

/* Waits for what is running; answers go nowhere. */
void pool_done(struct server *s)
{
	struct pool *p = &s->pool;

	if (p->event < 0)
		return;
	pthread_mutex_lock(&p->mutex);
	p->stop = true;
	pthread_cond_broadcast(&p->wake);
	pthread_mutex_unlock(&p->mutex);
	for (unsigned i = 0; i < p->threads; i++)
		pthread_join(p->thread[i], NULL);
	for (struct job *j = pool_take_all(p), *next; j; j = next) {
		next = j->next;
		j->stream = NULL;
		job_answer(s, j);
	}
	pthread_cond_destroy(&p->wake);
	pthread_mutex_destroy(&p->mutex);
	p->event = fcvm_close(p->event);
}
