/* SPDX-License-Identifier: MIT */
#include "bind/jobs.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/until.h"
#include "fcvm.h"

enum {
	STACK_SIZE = 256 * 1024,
	IDLE_SECONDS = 5,
};

struct fcvm_worker {
	struct fcvm_jobs *jobs;
	struct fcvm_worker *next;
	pthread_t thread;
};

/* ---- lists ---- */

static void list_init(struct fcvm_job_link *list)
{
	list->prev = list->next = list;
}

static bool list_empty(const struct fcvm_job_link *list)
{
	return list->next == list;
}

static void link_before(struct fcvm_job_link *where, struct fcvm_job *job)
{
	job->link.prev = where->prev;
	job->link.next = where;
	where->prev->next = &job->link;
	where->prev = &job->link;
}

static void link_remove(struct fcvm_job *job)
{
	job->link.prev->next = job->link.next;
	job->link.next->prev = job->link.prev;
	job->link.prev = job->link.next = NULL;
}

static struct fcvm_job *job_of(struct fcvm_job_link *link)
{
	return (struct fcvm_job *)link;
}

static void signal_fd(int fd)
{
	ssize_t r;

	/* full means readable, which is what is wanted */
	r = write(fd, &(uint64_t){1}, sizeof(uint64_t));
	(void)r;
}

static void clear_fd(int fd)
{
	uint64_t n;
	ssize_t r;

	r = read(fd, &n, sizeof n);
	(void)r;
}

/* ---- all with the lock held ---- */

static void arm_timer(struct fcvm_jobs *jobs)
{
	struct itimerspec at = {.it_value.tv_sec = 0};

	if (!list_empty(&jobs->sleeping)) {
		int64_t ns = job_of(jobs->sleeping.next)->wake_ns;

		at.it_value.tv_sec = ns / 1000000000;
		at.it_value.tv_nsec = ns % 1000000000;
	}
	timerfd_settime(jobs->timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

/* The one place where a job becomes DONE. It is in one of the lists. */
static void end_job(struct fcvm_jobs *jobs, struct fcvm_job *job, int result)
{
	link_remove(job);
	if (job->state == FCVM_JOB_QUEUED)
		jobs->queued--;
	job->result = result;
	job->state = FCVM_JOB_DONE;
	if (list_empty(&jobs->done))
		signal_fd(jobs->done_fd);
	link_before(&jobs->done, job);
	pthread_cond_broadcast(&jobs->ended);
}

static void cancel_job(struct fcvm_jobs *jobs, struct fcvm_job *job)
{
	if (job->must_finish)
		return;
	switch (job->state) {
	case FCVM_JOB_QUEUED:
		end_job(jobs, job, -ECANCELED);
		break;
	case FCVM_JOB_SLEEPING:
		end_job(jobs, job, -ECANCELED);
		arm_timer(jobs);
		break;
	case FCVM_JOB_RUNNING:
		signal_fd(job->cancel_fd);
		break;
	case FCVM_JOB_NEW:
	case FCVM_JOB_DONE:
	case FCVM_JOB_TAKEN:
		break;
	}
}

static void wake_sleepers(struct fcvm_jobs *jobs)
{
	int64_t now = fcvm_now_ns();
	bool any = false;

	while (!list_empty(&jobs->sleeping) && job_of(jobs->sleeping.next)->wake_ns <= now) {
		end_job(jobs, job_of(jobs->sleeping.next), 0);
		any = true;
	}
	if (any)
		arm_timer(jobs);
}

/* ---- workers ---- */

/* Waits for a job; NULL: end. */
static struct fcvm_job *next_job(struct fcvm_jobs *jobs)
{
	struct timespec until;
	struct fcvm_job *job;
	int r = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += IDLE_SECONDS;
	while (list_empty(&jobs->queue)) {
		if (jobs->quit || r == ETIMEDOUT)
			return NULL;
		jobs->idle++;
		r = pthread_cond_timedwait(&jobs->work, &jobs->lock, &until);
		jobs->idle--;
	}
	job = job_of(jobs->queue.next);
	link_remove(job);
	jobs->queued--;
	job->state = FCVM_JOB_RUNNING;
	link_before(&jobs->running, job);
	return job;
}

static void worker_gone(struct fcvm_jobs *jobs, struct fcvm_worker *w)
{
	struct fcvm_worker **p = &jobs->workers;

	while (*p != w)
		p = &(*p)->next;
	*p = w->next;
	w->next = jobs->gone;
	jobs->gone = w;
	jobs->nworkers--;
	pthread_cond_broadcast(&jobs->ended);
}

static void *worker_main(void *arg)
{
	struct fcvm_worker *w = arg;
	struct fcvm_jobs *jobs = w->jobs;
	struct fcvm_job *job;
	int r;

	pthread_mutex_lock(&jobs->lock);
	while ((job = next_job(jobs))) {
		pthread_mutex_unlock(&jobs->lock);
		fcvm_cancel_by(job->cancel_fd);
		r = job->run(job);
		fcvm_cancel_by(-1);
		pthread_mutex_lock(&jobs->lock);
		end_job(jobs, job, r);
	}
	worker_gone(jobs, w);
	pthread_mutex_unlock(&jobs->lock);
	return NULL;
}

/* Joins workers that have ended: the code they run may be unloaded after us. */
static void join_gone(struct fcvm_jobs *jobs)
{
	struct fcvm_worker *w, *next;

	pthread_mutex_lock(&jobs->lock);
	w = fcvm_steal_ptr(jobs->gone);
	pthread_mutex_unlock(&jobs->lock);
	for (; w; w = next) {
		next = w->next;
		pthread_join(w->thread, NULL);
		free(w);
	}
}

/* With the lock held, so that the worker is in the list before it looks for itself there. */
static int start_worker(struct fcvm_jobs *jobs)
{
	sigset_t all, before;
	pthread_attr_t attr;
	struct fcvm_worker *w;
	int r;

	w = calloc(1, sizeof *w);
	if (!w)
		return -ENOMEM;
	w->jobs = jobs;
	r = pthread_attr_init(&attr);
	if (r == 0) {
		pthread_attr_setstacksize(&attr, STACK_SIZE);
		/* signals are for the threads of the program we are in */
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &before);
		r = pthread_create(&w->thread, &attr, worker_main, w);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
		pthread_attr_destroy(&attr);
	}
	if (r != 0) {
		free(w);
		return -r;
	}
	w->next = jobs->workers;
	jobs->workers = w;
	jobs->nworkers++;
	return 0;
}

/* ---- the set ---- */

static int open_fds(struct fcvm_jobs *jobs)
{
	struct epoll_event e = {.events = EPOLLIN};

	jobs->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (jobs->done_fd < 0)
		return -errno;
	jobs->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (jobs->timer_fd < 0)
		return -errno;
	jobs->fd = epoll_create1(EPOLL_CLOEXEC);
	if (jobs->fd < 0)
		return -errno;
	if (epoll_ctl(jobs->fd, EPOLL_CTL_ADD, jobs->done_fd, &e) < 0 ||
		epoll_ctl(jobs->fd, EPOLL_CTL_ADD, jobs->timer_fd, &e) < 0)
		return -errno;
	return 0;
}

int fcvm_jobs_init(struct fcvm_jobs *jobs)
{
	pthread_condattr_t attr;

	*jobs = (struct fcvm_jobs){.done_fd = -1, .timer_fd = -1, .fd = -1};
	list_init(&jobs->queue);
	list_init(&jobs->running);
	list_init(&jobs->sleeping);
	list_init(&jobs->done);
	pthread_mutex_init(&jobs->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&jobs->work, &attr);
	pthread_cond_init(&jobs->ended, &attr);
	pthread_condattr_destroy(&attr);
	return open_fds(jobs);
}

void fcvm_jobs_done(struct fcvm_jobs *jobs)
{
	pthread_mutex_lock(&jobs->lock);
	jobs->quit = true;
	while (!list_empty(&jobs->queue))
		end_job(jobs, job_of(jobs->queue.next), -ECANCELED);
	for (struct fcvm_job_link *l = jobs->running.next; l != &jobs->running; l = l->next)
		cancel_job(jobs, job_of(l));
	pthread_cond_broadcast(&jobs->work);
	while (jobs->nworkers > 0)
		pthread_cond_wait(&jobs->ended, &jobs->lock);
	pthread_mutex_unlock(&jobs->lock);
	join_gone(jobs);
	jobs->fd = fcvm_close(jobs->fd);
	jobs->timer_fd = fcvm_close(jobs->timer_fd);
	jobs->done_fd = fcvm_close(jobs->done_fd);
}

int fcvm_jobs_submit(struct fcvm_jobs *jobs, struct fcvm_job *job)
{
	int r = 0;

	join_gone(jobs);
	job->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (job->cancel_fd < 0)
		return -errno;
	pthread_mutex_lock(&jobs->lock);
	if (jobs->quit)
		r = -ECANCELED;
	else if (jobs->queued >= jobs->idle && jobs->nworkers < FCVM_JOBS_WORKERS)
		r = start_worker(jobs);
	/* fewer workers than wished are no failure as long as there is one */
	if (r < 0 && (jobs->nworkers == 0 || jobs->quit)) {
		pthread_mutex_unlock(&jobs->lock);
		job->cancel_fd = fcvm_close(job->cancel_fd);
		return r;
	}
	job->state = FCVM_JOB_QUEUED;
	link_before(&jobs->queue, job);
	jobs->queued++;
	pthread_cond_signal(&jobs->work);
	pthread_mutex_unlock(&jobs->lock);
	return 0;
}

void fcvm_jobs_sleep(struct fcvm_jobs *jobs, struct fcvm_job *job, int64_t wake_ns)
{
	struct fcvm_job_link *where;

	pthread_mutex_lock(&jobs->lock);
	job->wake_ns = wake_ns;
	job->state = FCVM_JOB_SLEEPING;
	for (where = jobs->sleeping.next; where != &jobs->sleeping; where = where->next) {
		if (job_of(where)->wake_ns > wake_ns)
			break;
	}
	link_before(where, job);
	arm_timer(jobs);
	pthread_mutex_unlock(&jobs->lock);
}

void fcvm_jobs_cancel(struct fcvm_jobs *jobs, struct fcvm_job *job)
{
	pthread_mutex_lock(&jobs->lock);
	cancel_job(jobs, job);
	pthread_mutex_unlock(&jobs->lock);
}

/* One pass over a list; returns whether there are any. end_job() moves jobs out of the list under
 * us. */
static bool cancel_in(struct fcvm_jobs *jobs, struct fcvm_job_link *list, const void *subject)
{
	struct fcvm_job_link *next;
	bool any = false;

	for (struct fcvm_job_link *l = list->next; l != list; l = next) {
		next = l->next;
		if (job_of(l)->subject == subject) {
			cancel_job(jobs, job_of(l));
			any = true;
		}
	}
	return any;
}

void fcvm_jobs_cancel_on(struct fcvm_jobs *jobs, const void *subject)
{
	pthread_mutex_lock(&jobs->lock);
	cancel_in(jobs, &jobs->queue, subject);
	cancel_in(jobs, &jobs->running, subject);
	pthread_mutex_unlock(&jobs->lock);
}

void fcvm_jobs_end_calls_on(struct fcvm_jobs *jobs, const void *subject)
{
	pthread_mutex_lock(&jobs->lock);
	cancel_in(jobs, &jobs->queue, subject);
	while (cancel_in(jobs, &jobs->running, subject))
		pthread_cond_wait(&jobs->ended, &jobs->lock);
	pthread_mutex_unlock(&jobs->lock);
}

void fcvm_jobs_forget(struct fcvm_jobs *jobs, struct fcvm_job *job)
{
	pthread_mutex_lock(&jobs->lock);
	cancel_job(jobs, job);
	/* what must finish and has not begun is begun, and waited for like the rest */
	while (job->state == FCVM_JOB_QUEUED || job->state == FCVM_JOB_RUNNING)
		pthread_cond_wait(&jobs->ended, &jobs->lock);
	if (job->state == FCVM_JOB_DONE)
		link_remove(job);
	job->state = FCVM_JOB_TAKEN;
	pthread_mutex_unlock(&jobs->lock);
	job->cancel_fd = fcvm_close(job->cancel_fd);
}

struct fcvm_job *fcvm_jobs_take(struct fcvm_jobs *jobs)
{
	struct fcvm_job *job = NULL;

	pthread_mutex_lock(&jobs->lock);
	wake_sleepers(jobs);
	if (list_empty(&jobs->done)) {
		clear_fd(jobs->done_fd);
	} else {
		job = job_of(jobs->done.next);
		link_remove(job);
		job->state = FCVM_JOB_TAKEN;
	}
	pthread_mutex_unlock(&jobs->lock);
	if (job)
		job->cancel_fd = fcvm_close(job->cancel_fd);
	return job;
}

void fcvm_jobs_wake(struct fcvm_jobs *jobs)
{
	signal_fd(jobs->done_fd);
}
