/* SPDX-License-Identifier: MIT */
#include "node/reactor.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"

enum {
	BATCH = 64,      /* events taken from the kernel at once */
	GRAVES_MAX = 64, /* removed sources that may wait for the thread's next turn */
};

struct fcvm_reactor {
	int epoll;
	int wake; /* eventfd: look at `stop` and `graves` */
	pthread_t thread;
	pthread_mutex_t lock;
	bool stop;                  /* lock */
	struct fcvm_source *graves; /* lock; removed, perhaps in the batch being worked on */
	unsigned ngraves;           /* lock */
};

struct fcvm_source {
	struct fcvm_reactor *reactor;
	struct fcvm_source *next; /* reactor's lock; in graves */
	const struct fcvm_source_class *class;
	void *data;
	uint64_t tag;
	int fd;
	uint32_t events; /* the owner's lock: callers of _set, _mute and _remove exclude each other
			  */
	bool added;      /* the same; known to epoll */
	bool removed;    /* reactor's lock */
};

static void bury(struct fcvm_source *graves)
{
	while (graves) {
		struct fcvm_source *s = graves;

		graves = s->next;
		s->class->unref(s->data);
		free(s);
	}
}

static bool is_removed(struct fcvm_source *s)
{
	bool removed;

	pthread_mutex_lock(&s->reactor->lock);
	removed = s->removed;
	pthread_mutex_unlock(&s->reactor->lock);
	return removed;
}

static void *run(void *arg)
{
	struct fcvm_reactor *r = arg;
	struct epoll_event events[BATCH];
	bool stop = false;

	while (!stop) {
		struct fcvm_source *graves;
		int n = epoll_wait(r->epoll, events, BATCH, -1);

		for (int i = 0; i < n; i++) {
			struct fcvm_source *s = events[i].data.ptr;
			uint64_t count;

			if (!s)
				(void)!read(r->wake, &count, sizeof count);
			else if (!is_removed(s))
				s->class->ready(s->data, s->tag, events[i].events);
		}
		/* What was removed before now cannot come out of epoll_wait any more. */
		pthread_mutex_lock(&r->lock);
		graves = fcvm_steal_ptr(r->graves);
		r->ngraves = 0;
		stop = r->stop;
		pthread_mutex_unlock(&r->lock);
		bury(graves);
	}
	return NULL;
}

static void wake(struct fcvm_reactor *r)
{
	uint64_t one = 1;

	(void)!write(r->wake, &one, sizeof one);
}

static int start(struct fcvm_reactor *r)
{
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
	sigset_t all, old;
	int k;

	r->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (r->epoll < 0)
		return -errno;
	r->wake = fcvm_fd_event();
	if (r->wake < 0)
		return r->wake;
	if (epoll_ctl(r->epoll, EPOLL_CTL_ADD, r->wake, &e) < 0)
		return -errno;
	/* Signals are the program's, not this thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	k = pthread_create(&r->thread, NULL, run, r);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -k;
}

int fcvm_reactor_new(struct fcvm_reactor **ret)
{
	struct fcvm_reactor *r = calloc(1, sizeof *r);
	int k;

	if (!r)
		return -ENOMEM;
	r->epoll = r->wake = -1;
	pthread_mutex_init(&r->lock, NULL);
	k = start(r);
	if (k < 0) {
		fcvm_close(r->epoll);
		fcvm_close(r->wake);
		pthread_mutex_destroy(&r->lock);
		free(r);
		return k;
	}
	*ret = r;
	return 0;
}

void fcvm_reactor_free(struct fcvm_reactor *r)
{
	if (!r)
		return;
	pthread_mutex_lock(&r->lock);
	r->stop = true;
	pthread_mutex_unlock(&r->lock);
	wake(r);
	pthread_join(r->thread, NULL);
	bury(r->graves);
	close(r->epoll);
	close(r->wake);
	pthread_mutex_destroy(&r->lock);
	free(r);
}

int fcvm_reactor_add(struct fcvm_reactor *r, int fd, uint32_t events,
	const struct fcvm_source_class *class, void *data, uint64_t tag, struct fcvm_source **ret)
{
	struct fcvm_source *s = calloc(1, sizeof *s);
	struct epoll_event e = {.events = events, .data.ptr = s};

	if (!s)
		return -ENOMEM;
	*s = (struct fcvm_source){
		.reactor = r,
		.class = class,
		.data = data,
		.tag = tag,
		.fd = fd,
		.events = events,
		.added = true,
	};
	if (epoll_ctl(r->epoll, EPOLL_CTL_ADD, fd, &e) < 0) {
		int k = -errno;

		free(s);
		return k;
	}
	class->ref(data);
	*ret = s;
	return 0;
}

int fcvm_source_set(struct fcvm_source *s, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.ptr = s};

	if (s->added && s->events == events)
		return 0;
	if (epoll_ctl(s->reactor->epoll, s->added ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, s->fd, &e) < 0) {
		int k = -errno;

		fcvm_source_mute(s);
		return k;
	}
	s->added = true;
	s->events = events;
	return 0;
}

void fcvm_source_mute(struct fcvm_source *s)
{
	if (!s->added)
		return;
	epoll_ctl(s->reactor->epoll, EPOLL_CTL_DEL, s->fd, NULL);
	s->added = false;
}

void fcvm_source_remove(struct fcvm_source *s)
{
	struct fcvm_reactor *r;
	bool many;

	if (!s)
		return;
	r = s->reactor;
	fcvm_source_mute(s);
	pthread_mutex_lock(&r->lock);
	s->removed = true;
	s->next = r->graves;
	r->graves = s;
	many = ++r->ngraves >= GRAVES_MAX;
	pthread_mutex_unlock(&r->lock);
	if (many)
		wake(r);
}
