/* SPDX-License-Identifier: MIT */
#include "core/runtime.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/log.h"

struct runtime {
	unsigned refs; /* the_lock */
	struct fcvm_node *node;
	struct fcvm_store *store;
	struct place *here;
};

static pthread_mutex_t the_lock = PTHREAD_MUTEX_INITIALIZER;
static struct runtime *the_runtime; /* the_lock */
static _Thread_local int cancel_fd = -1;

void fcvm_cancel_by(int fd)
{
	cancel_fd = fd;
}

struct fcvm_until call_until(int64_t timeout_ms, int64_t otherwise_ms)
{
	return fcvm_until_ms(timeout_ms == FCVM_DEFAULT_TIMEOUT ? otherwise_ms : timeout_ms, cancel_fd);
}

const char *fcvm_version(void)
{
	return FCVM_VERSION;
}

/* The two enums are the same numbers; the inner layers know only the inner one. */
static pthread_mutex_t sink_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
	void (*sink)(void *data, enum fcvm_log_level level, const char *text);
	void *data;
} user_sink; /* sink_lock */

static void pass_on(void *data, int level, const char *text)
{
	pthread_mutex_lock(&sink_lock);
	if (user_sink.sink)
		user_sink.sink(user_sink.data, (enum fcvm_log_level)level, text);
	pthread_mutex_unlock(&sink_lock);
}

void fcvm_set_log(void (*sink)(void *data, enum fcvm_log_level level, const char *text), void *data)
{
	pthread_mutex_lock(&sink_lock);
	user_sink.sink = sink;
	user_sink.data = data;
	pthread_mutex_unlock(&sink_lock);
	fcvm_log_to(sink ? pass_on : NULL, NULL);
}

/* ---- life ---- */

static void runtime_free(struct runtime *rt)
{
	place_put(rt->here);
	fcvm_store_close(rt->store);
	fcvm_node_unref(rt->node);
	free(rt);
}

static int runtime_new(struct runtime **ret, struct fcvm_err *err)
{
	struct runtime *rt = calloc(1, sizeof *rt);
	int r;

	if (!rt)
		return fcvm_fail_errno(err, -ENOMEM, "start fcvm");
	rt->refs = 1;
	r = fcvm_node_local(&rt->node, err);
	if (r == 0)
		r = fcvm_store_open(&rt->store, rt->node, err);
	if (r == 0)
		r = place_new_here(&rt->here, rt->node, rt->store, err);
	if (r < 0) {
		runtime_free(rt);
		return r;
	}
	/* What a killed owner left goes before anything new comes. Not being able to is no reason to stop. */
	fcvm_store_sweep(rt->store, NULL, NULL);
	*ret = rt;
	return 0;
}

int runtime_get(struct runtime **ret, struct fcvm_err *err)
{
	int r = 0;

	pthread_mutex_lock(&the_lock);
	if (the_runtime)
		the_runtime->refs++;
	else
		r = runtime_new(&the_runtime, err);
	if (r == 0)
		*ret = the_runtime;
	pthread_mutex_unlock(&the_lock);
	return r;
}

void runtime_put(struct runtime *rt)
{
	if (!rt)
		return;
	pthread_mutex_lock(&the_lock);
	if (--rt->refs > 0)
		rt = NULL;
	else
		the_runtime = NULL;
	/* Under the lock: a new one must not meet the old one's threads and folders half gone. */
	if (rt)
		runtime_free(rt);
	pthread_mutex_unlock(&the_lock);
}

struct fcvm_node *runtime_node(struct runtime *rt)
{
	return rt->node;
}

struct fcvm_store *runtime_store(struct runtime *rt)
{
	return rt->store;
}

struct place *runtime_here(struct runtime *rt)
{
	return rt->here;
}
