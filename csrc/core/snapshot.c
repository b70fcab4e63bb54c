/* SPDX-License-Identifier: MIT */
/* Snapshots: taken of a VM, published, opened by name. */
#include "core/snapshot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"

enum { DEFAULT_SNAPSHOT_MS = 60000 };

/* ---- saving a VM into a folder ---- */

/* A failure to write into dir gets a message that helps where the disk is full. */
static int full(const struct fcvm_vm *vm, const char *dir, int r, struct fcvm_err *err)
{
	if (r != -ENOSPC && r != -EDQUOT)
		return r;
	fcvm_store_disk_full(r, dir, vm->memory, "snapshot", err);
	fcvm_fail_prefix(err, "%s", vm->name);
	return r;
}

int vm_save(struct fcvm_vm *vm, const struct folder *to, bool stop, const struct fcvm_until *until, double *ret_pause_ms,
	double *ret_downtime_ms, struct fcvm_err *err)
{
	const char *dir = folder_path(to);
	_cleanup_free_ char *memory = fcvm_asprintf("%s/memory", dir);
	_cleanup_free_ char *state = fcvm_asprintf("%s/state", dir);
	struct fcvm_manifest m = vm_manifest(vm);
	bool running = vm->state != FCVM_VM_PAUSED;
	int64_t from, resumed = 0;
	int r, r2 = 0;

	if (!memory || !state)
		return fcvm_fail_errno(err, -ENOMEM, "%s: snapshot", vm->name);
	/* What a save cuts cannot be had back: all that could refuse it comes first. */
	r = running ? 0 : volumes_check_quiet(vm, err);
	if (r == 0)
		r = vm->with.driver->prepare_save(vm->vmm, memory, until, err);
	if (r == 0 && running)
		r = vm_quiesce(vm, until, err);
	if (r < 0)
		return full(vm, dir, r, err);
	from = fcvm_now_ns();
	vm->cut = vm->with.driver->save_cuts;
	r = vm->with.driver->save(vm->vmm, state, memory, until, err);
	if (r == 0)
		r = volumes_save(vm, to->lease.path, until, err);
	/* A source that goes on does so before the manifest is written: that needs nothing of it. */
	if (running && (r < 0 || !stop)) {
		r2 = vm_go_on(vm, r < 0 ? NULL : err);
		resumed = fcvm_now_ns();
	}
	if (r < 0)
		return full(vm, dir, r, err);
	/* On another node it is in its handle's memory only. */
	if (r2 == 0 && place_is_here(vm->place)) {
		r = fcvm_manifest_write(dir, &m, false, err);
		if (r < 0 && running && stop)
			vm_go_on(vm, NULL);
	}
	if (ret_pause_ms)
		*ret_pause_ms = (fcvm_now_ns() - from) / 1e6;
	if (ret_downtime_ms)
		*ret_downtime_ms = resumed ? (resumed - from) / 1e6 : 0;
	return r < 0 ? r : r2;
}

/* ---- handles ---- */

static int copy_volumes(struct fcvm_manifest *to, const struct fcvm_manifest *from)
{
	to->nvolumes = 0;
	to->volumes = from->nvolumes ? calloc(from->nvolumes, sizeof *to->volumes) : NULL;
	while (to->volumes && to->nvolumes < from->nvolumes &&
		fcvm_manifest_volume_copy(&to->volumes[to->nvolumes], &from->volumes[to->nvolumes]) == 0)
		to->nvolumes++;
	return to->nvolumes == from->nvolumes ? 0 : -ENOMEM;
}

static int copy_manifest(struct fcvm_manifest *to, const struct fcvm_manifest *from)
{
	*to = *from;
	to->driver = strdup(from->driver);
	to->version = strdup(from->version);
	to->accel = strdup(from->accel);
	to->machine = strdup(from->machine);
	to->image = strdup(from->image);
	to->kernel = strdup(from->kernel);
	to->agent = strdup(from->agent);
	to->vm_name = strdup(from->vm_name);
	to->host_cpu = strdup(from->host_cpu);
	if (copy_volumes(to, from) < 0)
		return -ENOMEM;
	return to->driver && to->version && to->accel && to->machine && to->image && to->kernel && to->agent &&
		to->vm_name && to->host_cpu ? 0 : -ENOMEM;
}

static int snapshot_new(struct fcvm_snapshot **ret, const char *name, struct fcvm_err *err)
{
	struct fcvm_snapshot *s = calloc(1, sizeof *s);
	int r = s ? 0 : -ENOMEM;

	if (s) {
		pthread_mutex_init(&s->lock, NULL);
		s->folder = (struct folder)FOLDER_INIT;
		s->hold = -1;
		s->name = strdup(name ? name : "");
		s->template_turn = turns_new(1);
		r = s->name && s->template_turn >= 0 ? runtime_get(&s->rt, err) : -ENOMEM;
	}
	if (r < 0) {
		fcvm_snapshot_free(s);
		return r == -ENOMEM ? fcvm_fail_errno(err, r, "snapshot") : r;
	}
	*ret = s;
	return 0;
}

void fcvm_snapshot_free(struct fcvm_snapshot *s)
{
	if (!s)
		return;
	if (s->rt) {
		snapshot_end_waiting(s);
		if (s->place)
			folder_done(s->place, &s->folder);
		place_put(s->place);
	}
	fcvm_close(s->hold);
	fcvm_manifest_done(&s->manifest);
	free(s->name);
	free(s->dir);
	pthread_mutex_destroy(&s->lock);
	fcvm_close(s->template_turn);
	runtime_put(s->rt);
	free(s);
}

void fcvm_snapshot_get_info(struct fcvm_snapshot *s, struct fcvm_snapshot_info *ret)
{
	pthread_mutex_lock(&s->lock);
	*ret = (struct fcvm_snapshot_info){
		.id = s->name[0] ? s->name : s->folder.lease.id,
		.name = s->name,
		.dir = s->dir,
		.memory = s->manifest.memory,
		.vcpus = s->manifest.vcpus,
		.pause_ms = s->pause_ms,
		.downtime_ms = s->downtime_ms,
		.waiting = s->nwaiting,
	};
	pthread_mutex_unlock(&s->lock);
}

/* ---- taking ---- */

/* Moves what was saved into the data folder, under its name. */
static int keep(struct fcvm_snapshot *s, struct fcvm_err *err)
{
	struct fcvm_store *store = runtime_store(s->rt);
	char *dir;
	int r = fcvm_snapshot_publish(store, folder_path(&s->folder), &s->manifest, "snapshots", s->name, &dir, err);

	if (r < 0)
		return r;
	folder_done(s->place, &s->folder);
	s->folder = (struct folder)FOLDER_INIT;
	s->dir = dir;
	s->hold = fcvm_snapshot_hold(dir);
	return 0;
}

/* The VM's next snapshot may build on this one, which is elsewhere now. */
static void tell_moved(struct fcvm_vm *vm, const char *dir)
{
	_cleanup_free_ char *memory = fcvm_asprintf("%s/memory", dir);

	if (memory)
		fcvm_vmm_moved(vm->vmm, memory);
}

/* What was saved becomes the snapshot's. */
static int take_in(struct fcvm_vm *vm, struct fcvm_snapshot *s, struct fcvm_err *err)
{
	struct fcvm_manifest m = vm_manifest(vm);
	int r = copy_manifest(&s->manifest, &m);

	if (r == 0 && s->name[0]) {
		r = keep(s, err);
		if (r == 0)
			tell_moved(vm, s->dir);
		return r;
	}
	s->dir = strdup(folder_path(&s->folder));
	if (r < 0 || !s->dir)
		return fcvm_fail_errno(err, -ENOMEM, "%s: snapshot", vm->name);
	return 0;
}

/* On failure the VM is as before. */
static int take(struct fcvm_vm *vm, struct fcvm_snapshot *s, bool stop, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	char *taken = NULL;
	int r;

	s->with = vm->with;
	s->place = place_ref(vm->place);
	if (s->name[0] && fcvm_snapshot_find(runtime_store(s->rt), "snapshots", s->name, &taken, NULL) == 0) {
		free(taken);
		return fcvm_fail(err, -EEXIST, "snapshot %s exists; remove it with 'fcvm snapshot rm %s'", s->name,
			s->name);
	}
	if (s->name[0] && !place_is_here(vm->place))
		return fcvm_fail(err, -EOPNOTSUPP, "%s: it runs on %s, and snapshots are kept by name on this host only; take one "
			"without a name", vm->name, place_name(vm->place));
	r = folder_new(s->place, until, &s->folder, err);
	if (r == 0)
		r = vm_save(vm, &s->folder, stop, until, &s->pause_ms, &s->downtime_ms, err);
	if (r < 0)
		return r;
	r = take_in(vm, s, err);
	if (r < 0 && stop && vm->state != FCVM_VM_PAUSED)
		vm_go_on(vm, NULL);
	return r;
}

int fcvm_vm_snapshot(struct fcvm_vm *vm, const struct fcvm_snapshot_config *config, int64_t timeout_ms,
	struct fcvm_snapshot **ret, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, DEFAULT_SNAPSHOT_MS);
	struct fcvm_snapshot *s = NULL;
	enum fcvm_vm_state before;
	int r = config->name ? check_name("snapshot", config->name, err) : 0;

	if (r == 0)
		r = vm_begin(vm, 1u << FCVM_VM_RUNNING | 1u << FCVM_VM_PAUSED, "snapshot", err);
	if (r < 0)
		return r;
	before = vm->state;
	r = snapshot_new(&s, config->name, err);
	if (r == 0)
		r = vm_explain(vm, take(vm, s, config->stop, &until, err), "snapshot", err);
	if (r < 0) {
		fcvm_snapshot_free(s);
		vm_finish(vm, before);
		return r;
	}
	if (config->stop)
		vm_tear_down(vm);
	vm_finish(vm, config->stop ? FCVM_VM_ENDED : before);
	*ret = s;
	return 0;
}

/* ---- opening ---- */

static int choose_as_then(struct fcvm_snapshot *s, const char *name, struct fcvm_err *err)
{
	const struct fcvm_manifest *m = &s->manifest;
	int r;

	s->place = place_ref(runtime_here(s->rt));
	r = place_choose(s->place, m->driver, m->accel, NULL, &s->with, err);

	if (r < 0)
		fcvm_fail_prefix(err, "snapshot %s was taken with %s/%s, which cannot be had here", name, m->driver,
			m->accel);
	return r;
}

int fcvm_snapshot_open(struct fcvm_snapshot **ret, const char *name, struct fcvm_err *err)
{
	struct fcvm_snapshot *s;
	int r = check_name("snapshot", name, err);

	if (r == 0)
		r = snapshot_new(&s, name, err);
	if (r < 0)
		return r;
	r = fcvm_snapshot_find(runtime_store(s->rt), "snapshots", name, &s->dir, err);
	if (r == 0) {
		s->hold = fcvm_snapshot_hold(s->dir);
		if (s->hold < 0)
			r = fcvm_fail_errno(err, s->hold, "snapshot %s: it is being removed", name);
	}
	if (r == 0)
		r = fcvm_manifest_read(s->dir, name, &s->manifest, err);
	if (r == 0)
		r = choose_as_then(s, name, err);
	if (r == 0)
		r = manifest_fits_choice(&s->manifest, name, &s->with, err);
	if (r < 0) {
		fcvm_snapshot_free(s);
		return r;
	}
	*ret = s;
	return 0;
}
