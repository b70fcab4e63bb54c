/* SPDX-License-Identifier: MIT */
/* VMs out of snapshots: the VMMs that wait, and what turns one into a clone. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "core/snapshot.h"

enum { DEFAULT_CLONE_MS = 60000, DEFAULT_PREPARE_MS = 60000 };

/* ---- restoring ---- */

static int wait_for_restore(struct fcvm_vm *vm, const char *memory, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	struct vmm_machine m;
	struct vmm *vmm;
	int r = fcvm_lease_new(runtime_store(vm->rt), &vm->lease, err);

	if (r < 0)
		return r;
	m = vm_machine(vm);
	m.memory_file = memory;
	r = vm->with.driver->wait(&m, vm->with.probe, until, &vmm, err);
	if (r == 0)
		vm_adopt(vm, vmm);
	return r;
}

int vm_restore(struct fcvm_vm *vm, const char *dir, const struct fcvm_manifest *m, struct waiting *waiting,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_free_ char *memory = fcvm_asprintf("%s/memory", dir);
	_cleanup_free_ char *state = fcvm_asprintf("%s/state", dir);
	int r = memory && state ? 0 : fcvm_fail_errno(err, -ENOMEM, "%s: restore", vm->name);

	if (waiting) {
		pthread_mutex_lock(&vm->lock);
		vm->lease = waiting->lease;
		pthread_mutex_unlock(&vm->lock);
		vm_adopt(vm, waiting->vmm);
		vm->with.driver->rename(vm->vmm, vm->name);
		free(waiting);
	} else if (r == 0) {
		r = wait_for_restore(vm, memory, until, err);
	}
	if (r == 0)
		r = vm->with.driver->restore(vm->vmm, state, until, err);
	if (r == 0)
		r = vm->with.driver->resume(vm->vmm, until, err);
	if (r == 0)
		r = vm_connect_agent(vm, m->generation + 1, until, err);
	/* Who could not be given an identity of its own is not handed out. */
	if (r == 0)
		r = vm_identify(vm, m->generation + 1, until, err);
	return r;
}

/* ---- waiting VMMs ---- */

static void free_waiting(struct fcvm_snapshot *s, struct waiting *w)
{
	s->with.driver->free(w->vmm);
	fcvm_lease_done(runtime_store(s->rt), &w->lease);
	free(w);
}

void snapshot_end_waiting(struct fcvm_snapshot *s)
{
	for (struct waiting *w = s->waiting; w; w = w->next)
		s->with.driver->kill(w->vmm);
	while (s->waiting) {
		struct waiting *w = s->waiting;

		s->waiting = w->next;
		free_waiting(s, w);
	}
}

static int make_waiting(struct fcvm_snapshot *s, const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_free_ char *memory = fcvm_asprintf("%s/memory", s->dir);
	struct waiting *w = calloc(1, sizeof *w);
	struct vmm_machine m;
	int r = w && memory ? 0 : fcvm_fail_errno(err, -ENOMEM, "prepare a clone");

	if (w)
		w->lease = (struct fcvm_lease)FCVM_LEASE_INIT;
	if (r == 0)
		r = fcvm_lease_new(runtime_store(s->rt), &w->lease, err);
	if (r == 0) {
		m = (struct vmm_machine){
			.node = runtime_node(s->rt),
			.name = s->manifest.vm_name,
			.dir = w->lease.path,
			.dirfd = w->lease.dirfd,
			.memory = s->manifest.memory,
			.vcpus = s->manifest.vcpus,
			.memory_file = memory,
		};
		r = s->with.driver->wait(&m, s->with.probe, until, &w->vmm, err);
	}
	if (r < 0) {
		if (w)
			fcvm_lease_done(runtime_store(s->rt), &w->lease);
		free(w);
		return r;
	}
	pthread_mutex_lock(&s->lock);
	w->next = s->waiting;
	s->waiting = w;
	s->nwaiting++;
	pthread_mutex_unlock(&s->lock);
	return 0;
}

int fcvm_snapshot_prepare(struct fcvm_snapshot *s, unsigned count, int64_t timeout_ms, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, DEFAULT_PREPARE_MS);
	int r = 0;

	for (;;) {
		unsigned n;

		pthread_mutex_lock(&s->lock);
		n = s->nwaiting;
		pthread_mutex_unlock(&s->lock);
		if (r < 0 || n >= count)
			return r;
		r = make_waiting(s, &until, err);
	}
}

static struct waiting *take_any(struct fcvm_snapshot *s)
{
	struct waiting *w;

	pthread_mutex_lock(&s->lock);
	w = s->waiting;
	if (w) {
		s->waiting = w->next;
		s->nwaiting--;
	}
	pthread_mutex_unlock(&s->lock);
	return w;
}

/* One that lives: somebody may have killed it while it waited. */
static struct waiting *take_waiting(struct fcvm_snapshot *s)
{
	struct waiting *w;

	while ((w = take_any(s))) {
		struct pollfd p = {.fd = s->with.driver->exit_fd(w->vmm), .events = POLLIN};

		if (poll(&p, 1, 0) == 0)
			break;
		free_waiting(s, w);
	}
	return w;
}

/* ---- the call ---- */

static int make_clone(struct fcvm_snapshot *s, const char *name, struct fcvm_vm **ret, struct fcvm_err *err)
{
	_cleanup_free_ char *made = NULL;
	struct fcvm_vm_config config = {
		.name = name,
		.image = s->manifest.image,
		.memory = s->manifest.memory,
		.vcpus = s->manifest.vcpus,
	};
	int r;

	if (!name) {
		pthread_mutex_lock(&s->lock);
		made = fcvm_asprintf("%.56s-%u", s->manifest.vm_name, ++s->counter);
		pthread_mutex_unlock(&s->lock);
		config.name = made;
		if (!made)
			return fcvm_fail_errno(err, -ENOMEM, "clone");
	}
	r = vm_alloc(ret, &config, err);
	if (r < 0)
		return r;
	(*ret)->with = s->with;
	(*ret)->warm = true;
	(*ret)->busy = true;
	(*ret)->state = FCVM_VM_STARTING;
	free((*ret)->image);
	(*ret)->image = strdup(s->manifest.image);
	return (*ret)->image ? 0 : fcvm_fail_errno(err, -ENOMEM, "clone");
}

int fcvm_snapshot_clone(struct fcvm_snapshot *s, const char *name, int64_t timeout_ms, struct fcvm_vm **ret,
	struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, DEFAULT_CLONE_MS);
	struct fcvm_err why = FCVM_ERR_INIT;
	struct fcvm_vm *vm = NULL;
	int r = name ? check_name("name", name, err) : 0;

	if (r < 0)
		return r;
	r = make_clone(s, name, &vm, &why);
	if (r == 0)
		r = runtime_turn_take(s->rt, &until, &why);
	if (r == 0) {
		vm->started_ns = fcvm_now_ns();
		r = vm_explain(vm, vm_restore(vm, s->dir, &s->manifest, take_waiting(s), &until, &why), "clone",
			&why);
		runtime_turn_give(s->rt);
	}
	if (r < 0) {
		if (err)
			*err = why;
		fcvm_vm_free(vm);
		return r;
	}
	vm_finish(vm, FCVM_VM_RUNNING);
	*ret = vm;
	return 0;
}
