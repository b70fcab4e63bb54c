/* SPDX-License-Identifier: MIT */
/* A VM's volumes: mounted, brought to rest and back, saved, restored; unmounted. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/log.h"
#include "core/vm.h"
#include "fusepipe/control.h"

enum { DEFAULT_MOUNT_MS = 30000, PLUG_MS = 30000, UNDO_MS = 2000 };

_Static_assert((int)FCVM_MANIFEST_IDS == (int)FCVM_FUSE_MAX_IDS && (int)FCVM_MANIFEST_READERS == (int)FCVM_FUSE_MAX_STREAMS,
	"what a manifest may ask for is what a server can do");

/* ---- servers ---- */

/* The same ranges in the server's words. */
static struct fcvm_fuse_ids *server_ids(const struct fcvm_manifest_ids *from, size_t n)
{
	struct fcvm_fuse_ids *ids = calloc(n + 1, sizeof *ids);

	for (size_t i = 0; ids && i < n; i++)
		ids[i] = (struct fcvm_fuse_ids){from[i].guest, from[i].host, from[i].count};
	return ids;
}

/* state: what another has saved; NULL: it begins with nothing. */
static int start_server(struct fcvm_vm *vm, size_t i, const char *state, const struct fcvm_until *until, struct fcvm_err *err)
{
	const struct fcvm_manifest_volume *c = &vm->volumes.config[i];
	_cleanup_free_ struct fcvm_fuse_ids *uids = server_ids(c->uids, c->nuids), *gids = server_ids(c->gids, c->ngids);
	_cleanup_free_ char *name = fcvm_asprintf("%s:%s", vm->name, c->guest), *program = NULL;
	struct fcvm_volume_config config = {
		.serve = {.folder = c->host, .readonly = c->readonly, .devices = c->devices, .local_locks = c->local_locks,
			.uids = uids, .nuids = (unsigned)c->nuids, .gids = gids, .ngids = (unsigned)c->ngids,
			.timeout_s = c->timeout_s, .ready_fd = -1},
		.name = name,
		.dirfd = vm->folder.lease.dirfd,
		.number = c->number,
		.state_file = state,
	};
	struct fcvm_volume *handle;
	unsigned rate = 0;
	int r = uids && gids && name ? fcvm_store_libexec("fcvm-volume", &program, err)
				     : fcvm_fail_errno(err, -ENOMEM, "%s: volume at %s", vm->name, c->guest);

	if (r == 0)
		r = volume_trace_rate(vm->name, c->guest, &rate, err);
	if (r < 0)
		return r;
	config.program = program;
	config.traces = rate > 0;
	r = fcvm_volume_start(&handle, runtime_node(vm->rt), &config, until, err);
	if (r < 0)
		return r;
	pthread_mutex_lock(&vm->lock);
	vm->volumes.server[i] = (struct volume_server){.handle = handle};
	pthread_mutex_unlock(&vm->lock);
	return 0;
}

static void end_server(struct fcvm_vm *vm, size_t i)
{
	struct fcvm_volume *handle;

	pthread_mutex_lock(&vm->lock);
	handle = vm->volumes.server[i].handle;
	vm->volumes.server[i] = (struct volume_server){.handle = NULL};
	pthread_mutex_unlock(&vm->lock);
	fcvm_volume_free(handle);
}

void volumes_end(struct fcvm_vm *vm)
{
	for (size_t i = 0; i < vm->volumes.n; i++)
		end_server(vm, i);
}

/* ---- streams ---- */

/* A stream to the pump of volume `number`: one of its own where the driver has such and the pump listens, else within the
 * agent's link. *own: whether the first way is worth trying. */
static int connect_stream(struct fcvm_vm *vm, unsigned number, bool *own, const struct fcvm_until *until, int *ret,
	struct fcvm_err *err)
{
	int r = *own ? vm->with.driver->stream(vm->vmm, number, until, ret, err) : -ECONNREFUSED;
	char address[64];

	if (r != -ECONNREFUSED)
		return r;
	*own = false;
	snprintf(address, sizeof address, "unix:@" FCVM_FUSE_ADDRESS, number);
	return fcvm_node_connect(vm->agent, address, until, ret, err);
}

/* The stream of a device in the guest, where the driver has such: -1 and 0 where not. Of a VMM that was asked and not heard
 * nobody knows what it has, so it is not asked in haste. */
static int plug_port(struct fcvm_vm *vm, size_t i, int *ret, struct fcvm_err *err)
{
	struct fcvm_until patient = fcvm_until_ms(PLUG_MS, -1);
	const struct vmm_ops *driver = vm->with.driver;
	struct fcvm_err why = FCVM_ERR_INIT;
	int r = driver->plug ? driver->plug(vm->vmm, vm->volumes.config[i].number, &patient, ret, &why) : -EOPNOTSUPP;

	if (r == -EOPNOTSUPP) {
		*ret = -1;
		return 0;
	}
	if (r < 0 && err)
		*err = why;
	return r;
}

static void unplug_port(struct fcvm_vm *vm, size_t i)
{
	struct fcvm_until patient = fcvm_until_ms(PLUG_MS, -1);

	if (vm->volumes.config[i].port)
		vm->with.driver->unplug(vm->vmm, vm->volumes.config[i].number, &patient, NULL);
}

/* One for each reader. port: the first one's, taken, or -1. */
static int connect_server(struct fcvm_vm *vm, size_t i, int port, const struct fcvm_until *until, struct fcvm_err *err)
{
	const struct fcvm_manifest_volume *c = &vm->volumes.config[i];
	bool own = vm->with.driver->stream != NULL;
	int streams[FCVM_MANIFEST_READERS] = {port};
	unsigned n = port >= 0;
	int r = 0;

	while (n < c->readers && r == 0) {
		r = connect_stream(vm, c->number, &own, until, &streams[n], err);
		if (r == 0)
			n++;
	}
	if (r < 0) {
		while (n > 0)
			fcvm_close(streams[--n]);
		fcvm_fail_prefix(err, "%s: volume at %s", vm->name, c->guest);
		return r;
	}
	r = fcvm_volume_attach(vm->volumes.server[i].handle, streams, n, until, err);
	if (r == 0)
		vm->volumes.server[i].quiet = false;
	return r;
}

/* Where the volume is mounted already. */
static int connect_again(struct fcvm_vm *vm, size_t i, const struct fcvm_until *until, struct fcvm_err *err)
{
	int port = -1, r = vm->volumes.config[i].port ? plug_port(vm, i, &port, err) : 0;

	return r < 0 ? r : connect_server(vm, i, port, until, err);
}

/* ---- mounting ---- */

static void undo_mount(struct fcvm_vm *vm, const char *target)
{
	struct fcvm_until soon = fcvm_until_ms(UNDO_MS, -1);

	fcvm_node_unmount(vm->agent, target, true, &soon, NULL);
}

static int mount_one(struct fcvm_vm *vm, size_t i, const struct fcvm_until *until, struct fcvm_err *err)
{
	const struct fcvm_manifest_volume *c = &vm->volumes.config[i];
	char source[32];
	struct fcvm_mount m = {
		.number = c->number,
		.source = source,
		.target = c->root ? VOLUME_ROOT : c->guest,
		.readonly = c->readonly,
		.readers = c->readers,
	};
	int r = volume_trace_rate(vm->name, c->guest, &m.trace_rate, err), port = -1;

	snprintf(source, sizeof source, "volume-%u", c->number);
	if (r == 0)
		r = start_server(vm, i, NULL, until, err);
	if (r == 0)
		r = plug_port(vm, i, &port, err);
	m.port = port >= 0;
	pthread_mutex_lock(&vm->lock);
	vm->volumes.config[i].port = m.port;
	pthread_mutex_unlock(&vm->lock);
	if (r == 0) {
		r = fcvm_node_mount(vm->agent, &m, until, err);
		if (r < 0)
			fcvm_close(port);
		/* Its RESULT may have been on its way. */
		if (r == -ETIMEDOUT || r == -ECANCELED)
			undo_mount(vm, m.target);
	}
	if (r == 0) {
		r = connect_server(vm, i, port, until, err);
		if (r == 0 && c->root)
			r = fcvm_node_switch_root(vm->agent, VOLUME_ROOT, until, err);
		if (r < 0)
			undo_mount(vm, m.target);
	}
	if (r < 0) {
		end_server(vm, i);
		unplug_port(vm, i);
	}
	return r;
}

int volumes_mount(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = 0;

	/* The root is the first of them. */
	for (size_t i = 0; i < vm->volumes.n && r == 0; i++)
		r = mount_one(vm, i, until, err);
	return r;
}

int volumes_restore(struct fcvm_vm *vm, const char *states, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = 0;

	for (size_t i = 0; i < vm->volumes.n && r == 0; i++) {
		_cleanup_free_ char *state = fcvm_asprintf("%s/volume-%u.state", states, vm->volumes.config[i].number);

		r = state ? start_server(vm, i, state, until, err) : fcvm_fail_errno(err, -ENOMEM, "%s: restore", vm->name);
		if (r == 0)
			r = connect_again(vm, i, until, err);
	}
	return r;
}

/* ---- standing still ---- */

static bool has_ended(const struct volume_server *s)
{
	struct pollfd p = {.fd = s->handle ? fcvm_volume_exit_fd(s->handle) : -1, .events = POLLIN};

	return p.fd >= 0 && poll(&p, 1, 0) > 0;
}

/* One that has ended stands still, and could go into no snapshot. */
static int check_served(struct fcvm_vm *vm, struct fcvm_err *err)
{
	for (size_t i = 0; i < vm->volumes.n; i++)
		if (has_ended(&vm->volumes.server[i]))
			return fcvm_fail(err, -EIO, "%s: its volume at %s has ended: the guest has unmounted it, or its server died; "
				"unmount it here as well, and mount it again if it is to be there", vm->name,
				vm->volumes.config[i].guest);
	return 0;
}

int volumes_check_quiet(struct fcvm_vm *vm, struct fcvm_err *err)
{
	for (size_t i = 0; i < volumes_mounted(&vm->volumes); i++)
		if (!vm->volumes.server[i].quiet)
			return fcvm_fail(err, -EBUSY, "%s: volume at %s did not come to rest when the VM was paused; resume it first",
				vm->name, vm->volumes.config[i].guest);
	return check_served(vm, err);
}

int volumes_pause(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = check_served(vm, err);

	for (size_t i = 0; i < vm->volumes.n && r == 0; i++) {
		struct volume_server *s = &vm->volumes.server[i];

		if (!s->handle)
			continue;
		r = fcvm_volume_pause(s->handle, until, err);
		s->quiet = r == 0;
	}
	if (r < 0) {
		struct fcvm_until soon = fcvm_until_ms(UNDO_MS, -1);

		volumes_go_on(vm, false, &soon, NULL);
	}
	return r;
}

int volumes_save(struct fcvm_vm *vm, const char *states, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = 0;

	for (size_t i = 0; i < volumes_mounted(&vm->volumes) && r == 0; i++) {
		_cleanup_free_ char *state = fcvm_asprintf("%s/volume-%u.state", states, vm->volumes.config[i].number);

		r = state ? fcvm_volume_save(vm->volumes.server[i].handle, state, until, err)
			  : fcvm_fail_errno(err, -ENOMEM, "%s: snapshot", vm->name);
	}
	return r;
}

/* At rest the guest takes a stream's end for a snapshot's, and would wait for another. So it is given one that has it go
 * on and ends: whoever uses the volume is told. */
static void tell_of_end(struct fcvm_vm *vm, size_t i)
{
	const struct {
		struct fcvm_fuse_greeting greeting;
		struct fcvm_fuse_order go_on;
	} words = {FCVM_FUSE_GREETING_TO(0), FCVM_FUSE_ORDER(FCVM_FUSE_RESUME)};
	struct fcvm_until soon = fcvm_until_ms(UNDO_MS, -1);
	bool own = false;
	int fd;

	if (!vm->agent || !has_ended(&vm->volumes.server[i]) ||
		connect_stream(vm, vm->volumes.config[i].number, &own, &soon, &fd, NULL) < 0)
		return;
	fcvm_fd_send_until(fd, &words, sizeof words, &soon);
	fcvm_close(fd);
}

int volumes_go_on(struct fcvm_vm *vm, bool cut, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = 0;

	for (size_t i = 0; i < vm->volumes.n; i++) {
		struct volume_server *s = &vm->volumes.server[i];
		int one = 0;

		if (s->handle && s->quiet)
			one = cut ? connect_again(vm, i, until, r < 0 ? NULL : err)
				  : fcvm_volume_resume(s->handle, until, r < 0 ? NULL : err);
		if (one < 0)
			tell_of_end(vm, i);
		/* Nothing more can be done for one that has ended. */
		if (one == 0 || has_ended(s))
			s->quiet = false;
		r = r < 0 ? r : one;
	}
	return r;
}

uint32_t volumes_ports(const struct fcvm_manifest_volume *v, size_t n)
{
	uint32_t ports = 0;

	for (size_t i = 0; i < n; i++)
		ports |= v[i].port ? 1u << v[i].number : 0;
	return ports;
}

int volumes_part(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = 0;

	for (size_t i = 0; i < vm->volumes.n && r == 0; i++)
		if (vm->volumes.config[i].port)
			r = vm->with.driver->plug(vm->vmm, vm->volumes.config[i].number, until, NULL, err);
	return r;
}

/* ---- the calls ---- */

/* Who mounts or unmounts waits for others that do; for other changes nobody does. */
static int begin_mount(struct fcvm_vm *vm, const char *what, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = turns_take(vm->mount_turn, until, "another mount to be done", err);

	if (r < 0) {
		fcvm_fail_prefix(err, "%s: %s", vm->name, what);
		return r;
	}
	r = vm_begin(vm, 1u << FCVM_VM_RUNNING, what, err);
	if (r < 0)
		turns_give(vm->mount_turn);
	return r;
}

static void finish_mount(struct fcvm_vm *vm)
{
	vm_finish(vm, FCVM_VM_RUNNING);
	turns_give(vm->mount_turn);
}

/* What others see of it is not what it is: that undoes nothing. */
static void tell_others(struct fcvm_vm *vm)
{
	struct fcvm_err err = FCVM_ERR_INIT;

	if (vm_publish(vm, "running", &err) < 0)
		fcvm_say(FCVM_SAY_WARNING, "other processes do not see its volumes as they are: %s", err.message);
}

static int mount_another(struct fcvm_vm *vm, const struct fcvm_vm_volume *v, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	struct volumes all = vm->volumes; /* the folder may keep who looks at it waiting */
	size_t i = all.n;
	int r = volume_configure(&all, vm->name, v, err);

	if (r < 0)
		return r;
	pthread_mutex_lock(&vm->lock);
	vm->volumes = all;
	pthread_mutex_unlock(&vm->lock);
	r = mount_one(vm, i, until, err);
	if (r == 0) {
		tell_others(vm);
		return 0;
	}
	pthread_mutex_lock(&vm->lock);
	volume_forget(&vm->volumes, i);
	pthread_mutex_unlock(&vm->lock);
	return r;
}

int fcvm_vm_mount(struct fcvm_vm *vm, const struct fcvm_vm_volume *v, int64_t timeout_ms, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, DEFAULT_MOUNT_MS);
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *agent = NULL;
	int r = begin_mount(vm, "mount", &until, err);

	if (r < 0)
		return r;
	r = vm_agent(vm, "mount", &agent, err);
	if (r == 0)
		r = vm_explain(vm, mount_another(vm, v, &until, err), "mount", err);
	finish_mount(vm);
	return r;
}

/* What the guest has unmounted itself is no failure, nor what ended with its server. */
static int unmount_one(struct fcvm_vm *vm, size_t i, bool force, const struct fcvm_until *until, struct fcvm_err *err)
{
	const struct fcvm_manifest_volume *c = &vm->volumes.config[i];
	struct fcvm_err why = FCVM_ERR_INIT;
	int r;

	if (c->root)
		return fcvm_fail(err, -EBUSY, "%s: unmount /: it is the guest's root; it goes with the VM", vm->name);
	r = fcvm_node_unmount(vm->agent, c->guest, force, until, &why);
	if (r < 0 && r != -EINVAL && r != -ENOENT) {
		if (err)
			*err = why;
		return r;
	}
	end_server(vm, i);
	unplug_port(vm, i);
	pthread_mutex_lock(&vm->lock);
	volume_forget(&vm->volumes, i);
	pthread_mutex_unlock(&vm->lock);
	tell_others(vm);
	return 0;
}

int fcvm_vm_unmount(struct fcvm_vm *vm, const char *guest, bool force, int64_t timeout_ms, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, DEFAULT_MOUNT_MS);
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *agent = NULL;
	int r = begin_mount(vm, "unmount", &until, err), i;

	if (r < 0)
		return r;
	r = vm_agent(vm, "unmount", &agent, err);
	i = volume_find(vm->volumes.config, vm->volumes.n, guest);
	if (r == 0 && i < 0)
		r = volume_fail_none(vm->name, "unmount", guest, err);
	if (r == 0)
		r = vm_explain(vm, unmount_one(vm, (size_t)i, force, &until, err), "unmount", err);
	finish_mount(vm);
	return r;
}
