/* SPDX-License-Identifier: MIT */
#include "core/runtime.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/log.h"

enum { ACCELS = 3 }; /* chosen, kvm, tcg */

struct probed {
	bool done;
	int result;
	struct fcvm_err err;
	struct vmm_probe probe;
};

struct runtime {
	unsigned refs; /* the_lock */
	struct fcvm_node *node;
	struct fcvm_store *store;
	pthread_mutex_t probe_lock; /* held while probing, so that nothing is probed twice */
	struct probed (*probed)[ACCELS]; /* by driver; probe_lock */
	int turns; /* of restoring */
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

static unsigned ndrivers(void)
{
	unsigned n = 0;

	while (fcvm_vmm_drivers[n])
		n++;
	return n;
}

static void runtime_free(struct runtime *rt)
{
	for (unsigned i = 0; rt->probed && i < ndrivers(); i++)
		for (unsigned j = 0; j < ACCELS; j++)
			if (rt->probed[i][j].done && rt->probed[i][j].result == 0)
				fcvm_vmm_probe_done(&rt->probed[i][j].probe);
	free(rt->probed);
	fcvm_close(rt->turns);
	fcvm_store_close(rt->store);
	fcvm_node_unref(rt->node);
	pthread_mutex_destroy(&rt->probe_lock);
	free(rt);
}

static int runtime_new(struct runtime **ret, struct fcvm_err *err)
{
	struct runtime *rt = calloc(1, sizeof *rt);
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	int r;

	if (!rt)
		return fcvm_fail_errno(err, -ENOMEM, "start fcvm");
	rt->refs = 1;
	pthread_mutex_init(&rt->probe_lock, NULL);
	rt->turns = turns_new(cpus > 0 ? cpus : 1);
	rt->probed = calloc(ndrivers(), sizeof *rt->probed);
	r = rt->turns < 0 ? rt->turns : rt->probed ? 0 : -ENOMEM;
	if (r < 0)
		fcvm_fail_errno(err, r, "start fcvm");
	if (r == 0)
		r = fcvm_node_local(&rt->node, err);
	if (r == 0)
		r = fcvm_store_open(&rt->store, rt->node, err);
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

/* ---- drivers ---- */

static int probe_once(struct runtime *rt, unsigned driver, const char *accel, const struct vmm_probe **ret,
	struct fcvm_err *err)
{
	struct probed *p = &rt->probed[driver][!accel ? 0 : strcmp(accel, "kvm") == 0 ? 1 : 2];

	if (!p->done) {
		const struct vmm_ops *ops = fcvm_vmm_drivers[driver];
		_cleanup_free_ char *cache = fcvm_asprintf("%s/.probe-%s-%s", fcvm_store_run(rt->store), ops->name,
			accel ? accel : "any");

		p->result = ops->probe(rt->node, accel, cache, &p->probe, &p->err);
		p->done = true;
	}
	if (p->result < 0 && err)
		*err = p->err;
	*ret = &p->probe;
	return p->result;
}

int runtime_choose(struct runtime *rt, const char *driver, const char *accel, struct choice *ret,
	struct fcvm_err *err)
{
	int r = -EINVAL;
	bool known = false;

	if (accel && strcmp(accel, "kvm") != 0 && strcmp(accel, "tcg") != 0)
		return fcvm_fail(err, -EINVAL, "accel '%s' is not known; want kvm or tcg", accel);
	pthread_mutex_lock(&rt->probe_lock);
	for (unsigned i = 0; fcvm_vmm_drivers[i] && r < 0; i++) {
		if (driver && strcmp(driver, fcvm_vmm_drivers[i]->name) != 0)
			continue;
		known = true;
		ret->driver = fcvm_vmm_drivers[i];
		r = probe_once(rt, i, accel, &ret->probe, err);
	}
	pthread_mutex_unlock(&rt->probe_lock);
	if (!known)
		return fcvm_fail(err, -EINVAL, "driver '%s' is not known; there is: %s", driver,
			fcvm_vmm_drivers[0]->name);
	return r;
}

/* ---- turns ---- */

int turns_new(unsigned n)
{
	int fd = eventfd(n, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);

	return fd < 0 ? -errno : fd;
}

int turns_take(int turns, const struct fcvm_until *until, const char *what, struct fcvm_err *err)
{
	struct pollfd p = {.fd = turns, .events = POLLIN};
	uint64_t one;

	while (read(turns, &one, sizeof one) < 0) {
		int r = fcvm_until_poll(until, &p, 1);

		if (r < 0)
			return fcvm_fail_errno(err, r, "waiting for %s", what);
	}
	return 0;
}

void turns_give(int turns)
{
	eventfd_write(turns, 1);
}

int runtime_turn_take(struct runtime *rt, const struct fcvm_until *until, struct fcvm_err *err)
{
	return turns_take(rt->turns, until, "other restores to be done", err);
}

void runtime_turn_give(struct runtime *rt)
{
	turns_give(rt->turns);
}
