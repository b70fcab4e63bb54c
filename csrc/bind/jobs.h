/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: blocking calls that a Lua task makes, run by worker threads. Knows no Lua.
 *
 * A job is submitted by the Lua thread, run by a worker, and taken back by the Lua thread when it
 * is done; the fd is readable while there is one to take. A sleep is a job without a worker: a
 * timer.
 *
 *	NEW -submit-> QUEUED -worker-> RUNNING -> DONE -take-> TAKEN
 *	NEW -sleep-> SLEEPING -time, cancel-> DONE
 *	QUEUED -cancel-> DONE
 *
 * A running job is cancelled by its eventfd, which the worker has given to fcvm_cancel_by(): it
 * ends when the call returns. Workers are started as they are needed, up to FCVM_JOBS_WORKERS;
 * further jobs wait in the queue. An idle worker ends after a while.
 *
 * Who owns what: the caller owns the memory of a job, which must stay until the job was taken or
 * forgotten. All functions are for one thread, the Lua thread, but for fcvm_jobs_end_calls_on(),
 * which is for any.
 */
#ifndef FCVM_BIND_JOBS_H
#define FCVM_BIND_JOBS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum { FCVM_JOBS_WORKERS = 256 };

enum fcvm_job_state {
	FCVM_JOB_NEW,
	FCVM_JOB_QUEUED,
	FCVM_JOB_SLEEPING,
	FCVM_JOB_RUNNING,
	FCVM_JOB_DONE,
	FCVM_JOB_TAKEN,
};

struct fcvm_job_link {
	struct fcvm_job_link *prev, *next;
};

struct fcvm_job {
	struct fcvm_job_link link; /* first, so that a link is a job; lock: the list it is in */
	int (*run)(struct fcvm_job *job); /* on a worker; returns job->result */
	const void *subject; /* what it works on, see fcvm_jobs_end_calls_on(); NULL: nothing */
	bool must_finish;    /* ignores being cancelled */
	int cancel_fd;       /* -1 before submit; run may poll it; owned */
	enum fcvm_job_state state; /* lock */
	int64_t wake_ns;           /* of a sleep */
	int result;                /* >= 0 or -errno; the worker's until DONE */
	struct fcvm_err err;       /* the worker's until DONE */
};

struct fcvm_worker;

struct fcvm_jobs {
	pthread_mutex_t lock;
	pthread_cond_t work;  /* a job was queued, or the end has come */
	pthread_cond_t ended; /* a job has ended */
	struct fcvm_job_link queue, running, done; /* lock */
	struct fcvm_job_link sleeping;             /* lock; the next to wake first */
	struct fcvm_worker *workers, *gone; /* lock; gone: have ended, to be joined */
	unsigned nworkers, idle, queued;    /* lock */
	bool quit;                          /* lock */
	int done_fd;  /* eventfd: done is not empty, or somebody called fcvm_jobs_wake() */
	int timer_fd; /* the next sleep's end */
	int fd;       /* epoll of the two */
};

#define FCVM_JOB_INIT {.cancel_fd = -1}

/* 0 or -errno; done may follow either way, and several times. */
int fcvm_jobs_init(struct fcvm_jobs *jobs);
/* Cancels what runs, waits for it, and ends the workers. */
void fcvm_jobs_done(struct fcvm_jobs *jobs);

/* 0, or -errno: then the job is NEW still. */
int fcvm_jobs_submit(struct fcvm_jobs *jobs, struct fcvm_job *job);
/* Done, with result 0, at wake_ns of CLOCK_MONOTONIC. */
void fcvm_jobs_sleep(struct fcvm_jobs *jobs, struct fcvm_job *job, int64_t wake_ns);
/* Has it end with -ECANCELED soon; returns at once. Harmless in every state. */
void fcvm_jobs_cancel(struct fcvm_jobs *jobs, struct fcvm_job *job);
/* Cancels all jobs on the subject. */
void fcvm_jobs_cancel_on(struct fcvm_jobs *jobs, const void *subject);
/* The same, and waits until none is queued or runs. From any thread. */
void fcvm_jobs_end_calls_on(struct fcvm_jobs *jobs, const void *subject);
/* Cancels and waits; afterwards nobody knows the job. Closes its fd. */
void fcvm_jobs_forget(struct fcvm_jobs *jobs, struct fcvm_job *job);

/* The next job that is done, or NULL; then the fd is no longer readable. */
struct fcvm_job *fcvm_jobs_take(struct fcvm_jobs *jobs);
/* Makes the fd readable until the next take that finds nothing. */
void fcvm_jobs_wake(struct fcvm_jobs *jobs);

#endif
