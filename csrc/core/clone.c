/* SPDX-License-Identifier: MIT */
/*
 * VMs out of snapshots. There are two ways to one:
 *
 *   restored: a VMM is started (or was, and waits), loads the device state and maps the memory;
 *   copied:   where the driver can copy a VMM, one is restored as a template, runs something so that all that costs
 *             only once is done, and is paused for good; the clones are copies of it.
 *
 * A single clone is restored; who wants several (fcvm_snapshot_prepare, or a second clone) gets the template.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/log.h"
#include "core/snapshot.h"

enum { DEFAULT_CLONE_MS = 60000, DEFAULT_PREPARE_MS = 60000, WARM_UP_MS = 20000, WARM_UPS = 2, COPY_MS = 10000 };

/* ---- restoring ---- */

static int wait_for_restore(struct fcvm_vm *vm, const char *memory, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	struct vmm_machine m;
	struct vmm *vmm;
	int r = folder_new(vm->place, until, &vm->folder, err);

	if (r < 0)
		return r;
	m = vm_machine(vm);
	m.memory_file = memory;
	r = vm->with.driver->wait(&m, vm->with.probe, until, &vmm, err);
	if (r == 0)
		vm_adopt(vm, vmm);
	return r;
}

static void adopt_waiting(struct fcvm_vm *vm, struct waiting *w)
{
	pthread_mutex_lock(&vm->lock);
	vm->folder = w->folder;
	pthread_mutex_unlock(&vm->lock);
	vm_adopt(vm, w->vmm);
	fcvm_vmm_rename(vm->vmm, vm->name);
	free(w);
}

int vm_restore(struct fcvm_vm *vm, const char *dir, const struct fcvm_manifest *m, struct waiting *waiting,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_free_ char *memory = fcvm_asprintf("%s/memory", dir);
	_cleanup_free_ char *state = fcvm_asprintf("%s/state", dir);
	int r = memory && state ? 0 : fcvm_fail_errno(err, -ENOMEM, "%s: restore", vm->name);

	if (waiting)
		adopt_waiting(vm, waiting);
	else if (r == 0)
		r = wait_for_restore(vm, memory, until, err);
	if (r == 0)
		r = vm->with.driver->restore(vm->vmm, state, until, err);
	if (r == 0)
		r = vm_connect_agent(vm, m->generation + 1, until, err);
	return r;
}

/* With its volumes served from what is in `states`. Who could not be given an identity of its own is not handed out. */
static int become(struct fcvm_vm *vm, const char *states, uint64_t generation, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	int r = volumes_restore(vm, states, until, err);

	return r < 0 ? r : vm_identify(vm, generation, until, err);
}

/* Where its volumes' states are: here, wherever it is. */
static const char *states_of(const struct fcvm_snapshot *s)
{
	return place_is_here(s->place) ? s->dir : s->folder.lease.path;
}

static int restore_clone(struct fcvm_snapshot *s, struct fcvm_vm *vm, struct waiting *waiting, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	int r = vm_restore(vm, s->dir, &s->manifest, waiting, until, err);

	return r < 0 ? r : become(vm, states_of(s), s->manifest.generation + 1, until, err);
}

/* ---- objects ---- */

static int make_vm(struct fcvm_snapshot *s, const char *name, struct fcvm_vm **ret, struct fcvm_err *err)
{
	struct fcvm_vm_config config = {
		.name = name,
		.image = s->manifest.image,
		.memory = s->manifest.memory,
		.vcpus = s->manifest.vcpus,
	};
	struct fcvm_vm *vm;
	int r = vm_alloc(&vm, &config, err);

	if (r < 0)
		return r;
	vm->with = s->with;
	vm->place = place_ref(s->place);
	vm->nested = s->manifest.nested;
	vm->balloon = s->manifest.balloon;
	vm->jail = s->manifest.jail;
	vm->clone = true;
	vm->warm = true;
	vm->busy = true;
	vm->state = FCVM_VM_STARTING;
	free(vm->image);
	free(vm->kernel);
	vm->image = strdup(s->manifest.image);
	vm->kernel = strdup(s->manifest.kernel);
	r = vm->image && vm->kernel ? volumes_copy(&vm->volumes, s->manifest.volumes, s->manifest.nvolumes, vm->name, err)
				    : fcvm_fail_errno(err, -ENOMEM, "clone");
	if (r < 0) {
		fcvm_vm_free(vm);
		return r;
	}
	*ret = vm;
	return 0;
}

static int make_clone(struct fcvm_snapshot *s, const char *name, struct fcvm_vm **ret, struct fcvm_err *err)
{
	_cleanup_free_ char *made = NULL;

	if (!name) {
		pthread_mutex_lock(&s->lock);
		made = fcvm_asprintf("%.56s-%u", s->manifest.vm_name, ++s->counter);
		pthread_mutex_unlock(&s->lock);
		if (!made)
			return fcvm_fail_errno(err, -ENOMEM, "clone");
	}
	return make_vm(s, name ? name : made, ret, err);
}

/* ---- the template ---- */

static bool can_copy(const struct fcvm_snapshot *s)
{
	return s->with.driver->can_fork && s->with.driver->can_fork(s->with.probe, place_node(s->place));
}

/*
 * Has the guest do what each clone will do first, so that it is translated once and not in each: be given an identity
 * (its own generation, so that it still takes a greeting for a restore), and run programs. Whether those are there,
 * and what they say, is nobody's concern.
 */
static int warm_up(struct fcvm_vm *vm, const struct fcvm_manifest *m, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	static const char *const programs[] = {"sh", "-c", "hostname; uname; cat /proc/version; ls / | head -1", NULL};
	struct fcvm_until soon = fcvm_until_sooner(until, WARM_UP_MS);
	struct fcvm_spawn spec = {.argv = programs, .null_stdin = true};

	for (unsigned i = 0; i < WARM_UPS; i++) {
		struct fcvm_output out = {0};
		int r = vm_give_identity(vm, m->generation, m->vm_name, until, err);

		if (r < 0)
			return r;
		if (fcvm_node_exec(vm->agent, &spec, NULL, 0, 4096, &soon, &out, NULL) == 0)
			fcvm_output_done(&out);
	}
	return 0;
}

/* What its copies' volumes go on from. Its own servers end: their locks are the copies', too. */
static int save_volumes(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = volumes_save(vm, vm->folder.lease.path, until, err);

	volumes_end(vm);
	return r;
}

/* Its copies' agents are frozen like its own, at a frame's boundary, until they are greeted. */
static int make_template(struct fcvm_snapshot *s, const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_free_ char *name = fcvm_asprintf("%.50s.template", s->manifest.vm_name);
	struct fcvm_vm *vm = NULL;
	int r = name ? make_vm(s, name, &vm, err) : fcvm_fail_errno(err, -ENOMEM, "clone");

	if (r == 0)
		r = vm_restore(vm, s->dir, &s->manifest, NULL, until, err);
	if (r == 0)
		r = volumes_restore(vm, states_of(s), until, err);
	if (r == 0)
		r = warm_up(vm, &s->manifest, until, err);
	if (r == 0)
		r = volumes_pause(vm, until, err);
	if (r == 0)
		r = volumes_part(vm, until, err);
	if (r == 0)
		r = vm_quiesce(vm, until, err);
	if (r == 0)
		r = save_volumes(vm, until, err);
	if (r < 0) {
		if (vm)
			vm_explain(vm, r, "prepare clones", err);
		fcvm_vm_free(vm);
		return r;
	}
	s->template = vm;
	pthread_mutex_lock(&s->lock);
	s->several = true;
	pthread_mutex_unlock(&s->lock);
	return 0;
}

/* Somebody may have killed a VMM while it waited. */
static bool lives(const struct fcvm_snapshot *s, const struct vmm *vmm)
{
	struct pollfd p = {.fd = fcvm_vmm_exit_fd(vmm), .events = POLLIN};

	return poll(&p, 1, 0) == 0;
}

/* It is the caller's turn, as in the next one. */
static void drop_template(struct fcvm_snapshot *s)
{
	fcvm_vm_free(s->template);
	s->template = NULL;
}

static int want_template(struct fcvm_snapshot *s, const struct fcvm_until *until, struct fcvm_err *err)
{
	if (s->template && !lives(s, s->template->vmm))
		drop_template(s);
	return s->template ? 0 : make_template(s, until, err);
}

/* The template and its folder may be gone before the copy's servers begin. */
static int take_states(struct fcvm_snapshot *s, struct fcvm_vm *vm, struct fcvm_err *err)
{
	for (size_t i = 0; i < vm->volumes.n; i++) {
		char name[32];

		snprintf(name, sizeof name, "volume-%u.state", vm->volumes.config[i].number);
		if (linkat(s->template->folder.lease.dirfd, name, vm->folder.lease.dirfd, name, 0) < 0)
			return fcvm_fail_errno(err, -errno, "%s: clone: %s/%s", vm->name, s->template->folder.lease.path, name);
	}
	return 0;
}

/* The template's copy as vm's VMM. Anything but a lost deadline or a cancellation can be made up for by restoring. */
static int copy_template(struct fcvm_snapshot *s, struct fcvm_vm *vm, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	_cleanup_free_ char *memory = fcvm_asprintf("%s/memory", s->dir);
	struct vmm_machine m = vm_machine(vm);
	struct vmm *vmm;
	int r = memory ? turns_take(s->template_turn, until, "the snapshot's template", err)
		       : fcvm_fail_errno(err, -ENOMEM, "%s: clone", vm->name);

	if (r < 0)
		return r;
	m.memory_file = memory;
	r = want_template(s, until, err);
	if (r == 0)
		r = take_states(s, vm, err);
	if (r == 0) {
		/* Milliseconds, which a caller's cancellation must not cut short: the template is everybody's. */
		struct fcvm_until soon = fcvm_until_ms(COPY_MS, -1);

		r = vm->with.driver->fork(s->template->vmm, &m, &soon, &vmm, err);
		if (r < 0) {
			vm_explain(s->template, r, "clone", err);
			drop_template(s); /* the next one makes another */
		}
	}
	if (r == 0)
		vm_adopt(vm, vmm);
	turns_give(s->template_turn);
	return r;
}

static int clone_by_copy(struct fcvm_snapshot *s, struct fcvm_vm *vm, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	struct fcvm_err why = FCVM_ERR_INIT;
	uint64_t generation = s->manifest.generation + 1;
	int r = folder_new(vm->place, until, &vm->folder, err);

	if (r < 0)
		return r;
	r = copy_template(s, vm, until, &why);
	if (r < 0 && (r == -ECANCELED || fcvm_until_left_ms(until) == 0)) {
		if (err)
			*err = why;
		return r;
	}
	if (r < 0) {
		fcvm_say(FCVM_SAY_WARNING, "%s: it is restored, since the template could not be copied: %s", vm->name,
			why.message);
		folder_done(vm->place, &vm->folder);
		vm->folder = (struct folder)FOLDER_INIT;
		return restore_clone(s, vm, NULL, until, err);
	}
	r = vm->with.driver->resume(vm->vmm, until, err);
	if (r == 0)
		r = vm_connect_agent(vm, generation, until, err);
	return r < 0 ? r : become(vm, vm->folder.lease.path, generation, until, err);
}

/* ---- waiting VMMs ---- */

static void free_waiting(struct fcvm_snapshot *s, struct waiting *w)
{
	fcvm_vmm_free(w->vmm);
	folder_done(s->place, &w->folder);
	free(w);
}

void snapshot_end_waiting(struct fcvm_snapshot *s)
{
	for (struct waiting *w = s->waiting; w; w = w->next)
		fcvm_vmm_kill(w->vmm);
	drop_template(s);
	while (s->waiting) {
		struct waiting *w = s->waiting;

		s->waiting = w->next;
		free_waiting(s, w);
	}
}

static int start_waiting(struct fcvm_snapshot *s, struct waiting *w, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	_cleanup_free_ char *memory = fcvm_asprintf("%s/memory", s->dir);
	struct vmm_machine m = {
		.node = place_node(s->place),
		.local = runtime_node(s->rt),
		.name = s->manifest.vm_name,
		.memory = s->manifest.memory,
		.vcpus = s->manifest.vcpus,
		.nested = s->manifest.nested,
		.balloon = s->manifest.balloon,
		.jail = s->manifest.jail,
		.memory_file = memory,
		.ports = volumes_ports(s->manifest.volumes, s->manifest.nvolumes),
	};
	int r = memory ? folder_new(s->place, until, &w->folder, err)
		       : fcvm_fail_errno(err, -ENOMEM, "prepare a clone");

	if (r < 0)
		return r;
	m.dir = folder_path(&w->folder);
	m.dirfd = w->folder.lease.dirfd;
	r = s->with.driver->wait(&m, s->with.probe, until, &w->vmm, err);
	if (r < 0)
		folder_done(s->place, &w->folder);
	return r;
}

static int add_waiting(struct fcvm_snapshot *s, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct waiting *w = calloc(1, sizeof *w);
	int r;

	if (!w)
		return fcvm_fail_errno(err, -ENOMEM, "prepare a clone");
	w->folder = (struct folder)FOLDER_INIT;
	r = start_waiting(s, w, until, err);
	if (r < 0) {
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
	unsigned n = 0;
	int r = 0;

	if (count > 0 && can_copy(s)) {
		r = turns_take(s->template_turn, &until, "the snapshot's template", err);
		if (r < 0)
			return r;
		r = want_template(s, &until, err);
		turns_give(s->template_turn);
		return r;
	}
	while (r == 0 && n < count) {
		pthread_mutex_lock(&s->lock);
		n = s->nwaiting;
		pthread_mutex_unlock(&s->lock);
		if (n < count)
			r = add_waiting(s, &until, err);
	}
	return r;
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

static struct waiting *take_waiting(struct fcvm_snapshot *s)
{
	struct waiting *w;

	while ((w = take_any(s)) && !lives(s, w->vmm))
		free_waiting(s, w);
	return w;
}

/* ---- the call ---- */

/* The first clone of a snapshot without a template is restored: it may be the only one. */
static bool by_copy(struct fcvm_snapshot *s)
{
	bool first;

	if (!can_copy(s))
		return false;
	pthread_mutex_lock(&s->lock);
	first = !s->several;
	s->several = true;
	pthread_mutex_unlock(&s->lock);
	return !first;
}

int fcvm_snapshot_clone(struct fcvm_snapshot *s, const char *name, int64_t timeout_ms, struct fcvm_vm **ret,
	struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, DEFAULT_CLONE_MS);
	struct fcvm_err why = FCVM_ERR_INIT;
	struct fcvm_vm *vm = NULL;
	int r = name ? check_name("name", name, err) : 0;

	if (r == 0 && name)
		r = vm_check_name_free(s->rt, name, err);
	if (r < 0)
		return r;
	r = make_clone(s, name, &vm, &why);
	if (r == 0)
		r = place_turn_take(s->place, &until, &why);
	if (r == 0) {
		vm->started_ns = fcvm_now_ns();
		r = by_copy(s) ? clone_by_copy(s, vm, &until, &why)
			       : restore_clone(s, vm, take_waiting(s), &until, &why);
		r = vm_explain(vm, r, "clone", &why);
		place_turn_give(s->place);
	}
	if (r < 0) {
		if (vm && r == -ETIMEDOUT)
			vm_add_tail(vm, &why);
		if (err)
			*err = why;
		fcvm_vm_free(vm);
		return r;
	}
	vm->ready_ns = fcvm_now_ns();
	vm_finish(vm, FCVM_VM_RUNNING);
	*ret = vm;
	return 0;
}
