/* SPDX-License-Identifier: MIT */
/* A VM's life: made, started, paused, stopped, freed. vm.h has the theory. */
#include "core/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"

enum { DEFAULT_STOP_MS = 10000, DEFAULT_PING_MS = 5000, PAUSE_MS = 10000, GO_ON_MS = 30000, DEFAULT_VMM_MS = 10000, FREEZE_MS = 2000, END_MS = 5000 };

/* With less a kernel of today's does not get as far as its init. */
#define MEMORY_MIN (96 * FCVM_MIB)

static const char *const state_names[] = {"new", "starting", "running", "paused", "ended"};

/* ---- making ---- */

static char *copy(const char *s)
{
	return s ? strdup(s) : NULL;
}

/* What was asked for, or what the user wants by default. */
static char *copy_or_env(const char *s, const char *name)
{
	const char *env = getenv(name);

	return s ? strdup(s) : env && *env ? strdup(env) : NULL;
}

struct fcvm_vm *vm_ref(struct fcvm_vm *vm)
{
	atomic_fetch_add(&vm->refs, 1);
	return vm;
}

void vm_unref(struct fcvm_vm *vm)
{
	if (atomic_fetch_sub(&vm->refs, 1) != 1)
		return;
	free(vm->name);
	free(vm->image_name);
	free(vm->accel_wanted);
	free(vm->driver_wanted);
	free(vm->cmdline);
	free(vm->image);
	free(vm->kernel);
	free(vm->attached_id);
	free(vm->attached_dir);
	free(vm->attached_node);
	volumes_done(&vm->volumes);
	pthread_mutex_destroy(&vm->lock);
	fcvm_close(vm->mount_turn);
	place_put(vm->place);
	if (vm->host)
		vm_unref(vm->host);
	runtime_put(vm->rt);
	free(vm);
}

int vm_alloc(struct fcvm_vm **ret, const struct fcvm_vm_config *config, struct fcvm_err *err)
{
	struct fcvm_vm *vm = calloc(1, sizeof *vm);
	int r;

	if (!vm)
		return fcvm_fail_errno(err, -ENOMEM, "make a VM");
	atomic_init(&vm->refs, 1);
	pthread_mutex_init(&vm->lock, NULL);
	vm->folder = (struct folder)FOLDER_INIT;
	vm->mount_turn = turns_new(1);
	vm->name = config->name ? strdup(config->name) : make_name();
	vm->image_name = copy(config->image ? config->image : "mini");
	vm->accel_wanted = copy_or_env(config->accel, "FCVM_ACCEL");
	vm->driver_wanted = copy_or_env(config->driver, "FCVM_DRIVER");
	vm->cmdline = copy(config->cmdline ? config->cmdline : "");
	vm->image = copy("");
	vm->kernel = copy("");
	vm->memory = config->memory ? config->memory : 256 * FCVM_MIB;
	vm->vcpus = config->vcpus ? config->vcpus : 1;
	vm->cold = config->cold;
	vm->nested = config->nested;
	vm->balloon = config->balloon;
	vm->jail = config->jail;
	vm->host = config->node ? vm_ref(config->node) : NULL;
	r = vm->name && vm->image_name && vm->cmdline && vm->image && vm->kernel ? 0 : -ENOMEM;
	if (r == 0 && vm->mount_turn < 0)
		r = vm->mount_turn;
	r = r < 0 ? fcvm_fail_errno(err, r, "make a VM") : runtime_get(&vm->rt, err);
	if (r < 0) {
		vm_unref(vm);
		return r;
	}
	*ret = vm;
	return 0;
}

int fcvm_vm_new(struct fcvm_vm **ret, const struct fcvm_vm_config *config, struct fcvm_err *err)
{
	uint64_t memory = config->memory ? config->memory : 256 * FCVM_MIB;
	struct fcvm_vm *vm;
	int r = 0;

	if (memory % FCVM_MIB != 0 || memory < MEMORY_MIN || memory > 1024 * FCVM_GIB)
		return fcvm_fail(err, -EINVAL,
			"memory of %llu bytes: want whole MiB, from 96 MiB to 1024 GiB",
			(unsigned long long)memory);
	if (config->vcpus > 64)
		return fcvm_fail(err, -EINVAL, "%u vCPUs: want 1 to 64", config->vcpus);
	if (config->name)
		r = check_name("name", config->name, err);
	if (r == 0 && config->image)
		r = check_name("image", config->image, err);
	if (r == 0)
		r = vm_alloc(&vm, config, err);
	if (r < 0)
		return r;
	r = config->root ? volume_configure_root(&vm->volumes, vm->name, config->root, err) : 0;
	for (size_t i = 0; i < config->nvolumes && r == 0; i++)
		r = volume_configure(&vm->volumes, vm->name, &config->volumes[i], err);
	if (r < 0) {
		vm_unref(vm);
		return r;
	}
	*ret = vm;
	return 0;
}

struct vmm_machine vm_machine(const struct fcvm_vm *vm)
{
	return (struct vmm_machine){
		.node = place_node(vm->place),
		.local = runtime_node(vm->rt),
		.name = vm->name,
		.dir = folder_path(&vm->folder),
		.dirfd = vm->folder.lease.dirfd,
		.memory = vm->memory,
		.vcpus = vm->vcpus,
		.nested = vm->nested,
		.balloon = vm->balloon,
		.jail = vm->jail,
		.track = !vm->clone,
		.ports = volumes_ports(vm->volumes.config, vm->volumes.n),
	};
}

/* ---- who may do what ---- */

int vm_begin(struct fcvm_vm *vm, unsigned want, const char *what, struct fcvm_err *err)
{
	int r = 0;

	pthread_mutex_lock(&vm->lock);
	if (vm->attached)
		r = fcvm_fail(err, -EPERM, "%s: %s: it belongs to another process", vm->name, what);
	else if (vm->busy)
		r = fcvm_fail(err, -EBUSY, "%s: %s: another call is changing its state", vm->name, what);
	else if (!(want & 1u << vm->state))
		r = fcvm_fail(err, -EINVAL, "%s: %s: it is %s", vm->name, what, state_names[vm->state]);
	else
		vm->busy = true;
	pthread_mutex_unlock(&vm->lock);
	return r;
}

void vm_finish(struct fcvm_vm *vm, enum fcvm_vm_state state)
{
	pthread_mutex_lock(&vm->lock);
	vm->state = state;
	vm->busy = false;
	pthread_mutex_unlock(&vm->lock);
}

int vm_agent(struct fcvm_vm *vm, const char *what, struct fcvm_node **ret, struct fcvm_err *err)
{
	int r = 0;

	pthread_mutex_lock(&vm->lock);
	if (!vm->agent && vm->state == FCVM_VM_RUNNING)
		r = fcvm_fail(err, -EAGAIN, "%s: %s: its agent is not connected: %s", vm->name, what,
			vm->busy ? "a snapshot is being taken" : "it did not answer after the last snapshot");
	else if (!vm->agent)
		r = fcvm_fail(err, -EINVAL, "%s: %s: it is %s", vm->name, what, state_names[vm->state]);
	else if (vm->state == FCVM_VM_PAUSED)
		r = fcvm_fail(err, -EINVAL, "%s: %s: it is paused; resume it first", vm->name, what);
	else
		*ret = fcvm_node_ref(vm->agent);
	pthread_mutex_unlock(&vm->lock);
	return r;
}

/* ---- how it ended ---- */

/* A descriptor that tells of the VMM's end, of the caller's own; -1: there is no VMM any more. */
static int end_fd(struct fcvm_vm *vm)
{
	int fd = -1;

	pthread_mutex_lock(&vm->lock);
	if (vm->vmm)
		fd = fcntl(fcvm_vmm_exit_fd(vm->vmm), F_DUPFD_CLOEXEC, 3);
	pthread_mutex_unlock(&vm->lock);
	return fd;
}

bool vm_ends_within(struct fcvm_vm *vm, int ms)
{
	_cleanup_close_ int fd = end_fd(vm);
	struct fcvm_until until = fcvm_until_ms(ms, -1);
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return fd >= 0 && fcvm_until_poll(&until, &p, 1) > 0;
}

/* The lock is held: takes note of how the VMM ended, if it has. */
static void collect(struct fcvm_vm *vm)
{
	struct fcvm_until now = fcvm_until_ms(0, -1);
	struct fcvm_exit how = {0};

	if (!vm->vmm || fcvm_vmm_wait_exit(vm->vmm, &now, &how, NULL) < 0)
		return;
	vm->exit = how;
	vm->collected = true;
}

/* How another process's child ended is not ours to know. */
static int explain_attached(struct fcvm_vm *vm, int r, const char *what, struct fcvm_err *err)
{
	_cleanup_close_ int fd = syscall(SYS_pidfd_open, (pid_t)vm->pid, 0);
	struct fcvm_until soon = fcvm_until_ms(500, -1);
	struct pollfd p = {.fd = fd, .events = POLLIN};

	if (vm->pid > 0 && (fd < 0 || fcvm_until_poll(&soon, &p, 1) > 0))
		fcvm_fail(err, r, "%s: %s: its VMM (process %d) has ended", vm->name, what, vm->pid);
	return r;
}

int vm_explain(struct fcvm_vm *vm, int r, const char *what, struct fcvm_err *err)
{
	bool lost = r == -ECONNRESET || r == -EPIPE || r == -ENOTCONN || r == -EPROTO;
	struct fcvm_exit how;
	char tail[2048] = "", was[sizeof err->message];

	if (r < 0 && lost && vm->attached)
		return explain_attached(vm, r, what, err);
	if (r >= 0 || !err || vm->attached || !vm_ends_within(vm, lost ? 500 : 0))
		return r;
	pthread_mutex_lock(&vm->lock);
	collect(vm);
	if (vm->vmm && vm->collected) {
		how = vm->exit;
		fcvm_vmm_tail(vm->vmm, tail, sizeof tail);
		snprintf(was, sizeof was, "%s", err->message);
		if (how.signal)
			fcvm_fail(err, r, "%s: %s: its VMM (%s, process %d) was ended by signal %d (%s)%s%s", vm->name,
				what, vm->with.driver->name, vm->pid, how.signal, strsignal(how.signal),
				/* what a write to a mapped file gets that there is no room for */
				how.signal == SIGBUS ? ": the disk is full that its memory is on, " : "",
				how.signal == SIGBUS ? folder_path(&vm->folder) : "");
		else if (how.code == 0)
			fcvm_fail(err, r, "%s: %s: the guest has powered off", vm->name, what);
		else
			fcvm_fail(err, r, "%s: %s: its VMM (%s, process %d) has ended with status %d: %s",
				vm->name, what, vm->with.driver->name, vm->pid, how.code, was);
		fcvm_fail_detail(err, tail, strlen(tail));
	}
	pthread_mutex_unlock(&vm->lock);
	return r;
}

void vm_add_tail(struct fcvm_vm *vm, struct fcvm_err *err)
{
	char tail[2048];

	if (err && !err->detail[0] && fcvm_vm_console(vm, tail, sizeof tail) > 0)
		fcvm_fail_detail(err, tail, strlen(tail));
}

void vm_tear_down(struct fcvm_vm *vm)
{
	struct fcvm_node *agent;
	struct place *node;
	struct folder folder;
	struct vmm *vmm;

	pthread_mutex_lock(&vm->lock);
	agent = fcvm_steal_ptr(vm->agent);
	node = fcvm_steal_ptr(vm->node);
	if (vm->vmm)
		fcvm_vmm_kill(vm->vmm);
	pthread_mutex_unlock(&vm->lock);
	/* What runs on it is gone with it, and need not be removed. */
	if (node && agent)
		fcvm_node_hang_up(agent, "the VM has ended");
	place_put(node);
	fcvm_node_unref(agent);
	volumes_end(vm);
	/* Who waits for its end, waits with us: the VMM is there until its end is known. */
	vm_ends_within(vm, END_MS);
	pthread_mutex_lock(&vm->lock);
	collect(vm);
	vmm = fcvm_steal_ptr(vm->vmm);
	folder = vm->folder;
	vm->folder = (struct folder)FOLDER_INIT;
	memcpy(vm->folder.lease.id, folder.lease.id, sizeof folder.lease.id);
	pthread_mutex_unlock(&vm->lock);
	if (vmm)
		fcvm_vmm_free(vmm);
	if (vm->place)
		folder_done(vm->place, &folder);
}

/* ---- stopped for a while ---- */

int vm_quiesce(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = vm->agent ? volumes_pause(vm, until, err)
			  : fcvm_fail(err, -EAGAIN, "%s: its agent did not answer after the last snapshot", vm->name);

	if (r < 0)
		return r;
	r = fcvm_node_freeze(vm->agent, until, err);
	if (r < 0) {
		struct fcvm_until soon = fcvm_until_ms(FREEZE_MS, -1);

		volumes_go_on(vm, false, &soon, NULL);
		return r;
	}
	vm->frozen = true;
	r = vm->with.driver->pause(vm->vmm, until, err);
	if (r < 0)
		vm_go_on(vm, NULL);
	return r;
}

/* Its agent hears of us again, and its volumes are served. */
static int wake_agent(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = 0;

	if (vm->cut)
		return vm_reconnect(vm, until, err);
	if (vm->frozen)
		r = fcvm_node_thaw(vm->agent, until, err);
	vm->frozen = false;
	return r < 0 ? r : volumes_go_on(vm, false, until, err);
}

static int go_on_within(struct fcvm_vm *vm, int ms, struct fcvm_err *err)
{
	struct fcvm_until until = fcvm_until_ms(ms, -1);
	int r = vm->with.driver->resume(vm->vmm, &until, err);
	/* One that could not be paused runs, and its agent is to answer. */
	int r2 = r < 0 && vm->cut ? 0 : wake_agent(vm, &until, r < 0 ? NULL : err);

	return r < 0 ? r : r2;
}

int vm_go_on(struct fcvm_vm *vm, struct fcvm_err *err)
{
	return go_on_within(vm, GO_ON_MS, err);
}

/* ---- as a node ---- */

int vm_as_place(struct fcvm_vm *vm, const struct fcvm_until *until, struct place **ret, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *agent = NULL;
	struct place *made = NULL;
	int r = vm_agent(vm, "run a VM on it", &agent, err);

	if (r < 0)
		return r;
	pthread_mutex_lock(&vm->lock);
	if (vm->node && place_node(vm->node) == agent)
		*ret = place_ref(vm->node);
	else
		r = -ENOENT;
	pthread_mutex_unlock(&vm->lock);
	if (r == 0)
		return 0;
	r = place_new_on(&made, agent, runtime_here(vm->rt), until, err);
	if (r < 0)
		return vm_explain(vm, r, "run a VM on it", err);
	/* Two that made one at the same time keep the first. */
	pthread_mutex_lock(&vm->lock);
	if (!vm->node && vm->agent == agent)
		vm->node = place_ref(made);
	*ret = vm->node && vm->node != made ? place_ref(vm->node) : place_ref(made);
	pthread_mutex_unlock(&vm->lock);
	place_put(made);
	return 0;
}

/* ---- the calls ---- */

void fcvm_vm_free(struct fcvm_vm *vm)
{
	if (!vm)
		return;
	vm_tear_down(vm);
	pthread_mutex_lock(&vm->lock);
	vm->state = FCVM_VM_ENDED;
	pthread_mutex_unlock(&vm->lock);
	vm_unref(vm);
}

int fcvm_vm_pause(struct fcvm_vm *vm, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(PAUSE_MS, PAUSE_MS), soon = fcvm_until_sooner(&until, FREEZE_MS);
	int r = vm_begin(vm, 1u << FCVM_VM_RUNNING, "pause", err);

	if (r < 0)
		return r;
	/* An agent that does not answer is no reason not to pause, nor is a volume that does not come to rest. */
	if (vm->agent)
		volumes_pause(vm, &soon, NULL);
	vm->frozen = vm->agent && fcvm_node_freeze(vm->agent, &soon, NULL) == 0;
	r = vm->with.driver->pause(vm->vmm, &until, err);
	if (r < 0)
		go_on_within(vm, END_MS, NULL); /* a VMM that does not answer is not waited for again */
	else if (r == 0)
		vm_publish(vm, "paused", NULL);
	r = vm_explain(vm, r, "pause", err);
	vm_finish(vm, r < 0 ? FCVM_VM_RUNNING : FCVM_VM_PAUSED);
	return r;
}

int fcvm_vm_resume(struct fcvm_vm *vm, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(GO_ON_MS, GO_ON_MS);
	int r = vm_begin(vm, 1u << FCVM_VM_PAUSED, "resume", err);
	bool answers;

	if (r < 0)
		return r;
	answers = vm->frozen && !vm->cut;
	r = vm->with.driver->resume(vm->vmm, &until, err);
	if (r < 0) {
		vm_finish(vm, FCVM_VM_PAUSED);
		return vm_explain(vm, r, "resume", err);
	}
	/* From here on it runs, whatever its agent says. */
	r = wake_agent(vm, &until, err);
	/* Its clock stood still as well, whatever its volumes say. Who is reconnected is told the time with the identity. */
	if (answers && vm->agent) {
		int clock = fcvm_node_set_clock(vm->agent, fcvm_realtime_ns(), &until, r < 0 ? NULL : err);

		r = r < 0 ? r : clock;
	}
	vm_publish(vm, "running", NULL);
	vm_finish(vm, FCVM_VM_RUNNING);
	return vm_explain(vm, r, "resume", err);
}

/* The guest ends by itself, or not: its deadline is the caller's. */
static void power_off(struct fcvm_vm *vm, const struct fcvm_until *until)
{
	_cleanup_close_ int fd = end_fd(vm);
	struct fcvm_until soon = fcvm_until_sooner(until, END_MS);
	struct pollfd p = {.fd = fd, .events = POLLIN};
	int r;

	if (vm->state == FCVM_VM_PAUSED && (vm->with.driver->resume(vm->vmm, until, NULL) < 0 ||
		wake_agent(vm, until, NULL) < 0))
		return;
	r = vm->agent ? fcvm_node_power(vm->agent, false, until, NULL) : -ENOTCONN;
	/* The guest may have reset its machine, and with it the stream, before its answer was carried. */
	if (r == 0 || r == -ECONNRESET)
		fcvm_until_poll(r == 0 ? until : &soon, &p, 1);
}

int fcvm_vm_stop(struct fcvm_vm *vm, int64_t timeout_ms, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, DEFAULT_STOP_MS);
	int r;

	pthread_mutex_lock(&vm->lock);
	r = vm->state == FCVM_VM_ENDED && !vm->busy && !vm->vmm;
	pthread_mutex_unlock(&vm->lock);
	if (r)
		return 0;
	r = vm_begin(vm, 1u << FCVM_VM_RUNNING | 1u << FCVM_VM_PAUSED | 1u << FCVM_VM_ENDED, "stop", err);
	if (r < 0)
		return r;
	if (vm->vmm)
		power_off(vm, &until);
	vm_tear_down(vm);
	vm_finish(vm, FCVM_VM_ENDED);
	return 0;
}

int fcvm_vm_kill(struct fcvm_vm *vm, struct fcvm_err *err)
{
	if (vm->attached)
		return fcvm_kill_vm(vm->attached_id, err);
	pthread_mutex_lock(&vm->lock);
	vm->killed = vm->state == FCVM_VM_STARTING;
	if (vm->vmm)
		fcvm_vmm_kill(vm->vmm);
	pthread_mutex_unlock(&vm->lock);
	return 0;
}

int fcvm_vm_wait(struct fcvm_vm *vm, int64_t timeout_ms, int *ret_status, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, FCVM_NO_TIMEOUT);
	_cleanup_close_ int fd = end_fd(vm);
	struct pollfd p = {.fd = fd, .events = POLLIN};
	int r = 0;

	if (vm->attached)
		return fcvm_fail(err, -EPERM, "%s: wait: it belongs to another process", vm->name);
	if (fd >= 0) {
		r = fcvm_until_poll(&until, &p, 1);
		if (r < 0)
			return fcvm_fail_errno(err, r, "%s: waiting for its end", vm->name);
	}
	pthread_mutex_lock(&vm->lock);
	collect(vm);
	if (!vm->collected && vm->vmm)
		r = fcvm_fail(err, -ECONNRESET, "%s: wait: %s, which it ran on, is gone", vm->name, place_name(vm->place));
	else if (!vm->collected)
		r = fcvm_fail(err, -EINVAL, "%s: wait: it is %s", vm->name, state_names[vm->state]);
	else if (!vm->busy)
		vm->state = FCVM_VM_ENDED;
	if (r >= 0)
		*ret_status = vm->exit.signal ? 0x100 + vm->exit.signal : vm->exit.code;
	pthread_mutex_unlock(&vm->lock);
	return r < 0 ? r : 0;
}

static const char *accel_of(const struct fcvm_vm *vm)
{
	return vm->with.probe ? vm->with.probe->accel : vm->accel_wanted ? vm->accel_wanted : "";
}

void fcvm_vm_get_info(struct fcvm_vm *vm, struct fcvm_vm_info *ret)
{
	pthread_mutex_lock(&vm->lock);
	*ret = (struct fcvm_vm_info){
		.name = vm->name,
		.driver = vm->with.driver ? vm->with.driver->name : "",
		.node = vm->attached_node ? vm->attached_node : vm->place ? place_name(vm->place) : "",
		.accel = accel_of(vm),
		.state = vm->state,
		.memory = vm->memory,
		.vcpus = vm->vcpus,
		.pid = vm->pid,
		.generation = vm->generation,
		.uptime_ms = vm->started_ns && vm->state != FCVM_VM_ENDED
			? (fcvm_now_ns() - vm->started_ns) / 1000000 : 0,
		.start_ms = vm->ready_ns ? (vm->ready_ns - vm->started_ns) / 1e6 : 0,
		.warm = vm->warm,
		.attached = vm->attached,
	};
	snprintf(ret->id, sizeof ret->id, "%s", vm->attached ? vm->attached_id : vm->folder.lease.id);
	snprintf(ret->dir, sizeof ret->dir, "%s", vm->attached ? vm->attached_dir
		: vm->folder.lease.path ? vm->folder.lease.path : "");
	snprintf(ret->image, sizeof ret->image, "%s", *vm->image ? vm->image : vm->image_name);
	pthread_mutex_unlock(&vm->lock);
	if (!vm->attached && (ret->state == FCVM_VM_RUNNING || ret->state == FCVM_VM_PAUSED) &&
		vm_ends_within(vm, 0))
		ret->state = FCVM_VM_ENDED;
}

/* ---- what only some drivers have ---- */

/* Takes the VM as vm_begin() does; ret_state is what it goes back to by vm_finish(). */
static int begin(struct fcvm_vm *vm, const char *what, enum fcvm_vm_state *ret_state, struct fcvm_err *err)
{
	int r = vm_begin(vm, 1u << FCVM_VM_RUNNING | 1u << FCVM_VM_PAUSED, what, err);

	if (r < 0)
		return r;
	*ret_state = vm->state;
	return 0;
}

int fcvm_vm_balloon(struct fcvm_vm *vm, uint64_t bytes, int64_t timeout_ms, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, DEFAULT_VMM_MS);
	enum fcvm_vm_state before;
	int r = begin(vm, "balloon", &before, err);

	if (r < 0)
		return r;
	if (bytes >= vm->memory)
		r = fcvm_fail(err, -EINVAL, "%s: balloon: it has %llu MiB of memory, of which %llu cannot be taken", vm->name,
			(unsigned long long)(vm->memory / FCVM_MIB), (unsigned long long)(bytes / FCVM_MIB));
	else if (!vm->balloon)
		r = fcvm_fail(err, -EOPNOTSUPP, "%s: balloon: it has none; start it with balloon = true", vm->name);
	else
		r = vm_explain(vm, vm->with.driver->balloon(vm->vmm, bytes, &until, err), "balloon", err);
	vm_finish(vm, before);
	return r;
}

int fcvm_vm_metrics(struct fcvm_vm *vm, int64_t timeout_ms, char **ret_json, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, DEFAULT_VMM_MS);
	enum fcvm_vm_state before;
	int r = begin(vm, "metrics", &before, err);

	if (r < 0)
		return r;
	if (!vm->with.driver->metrics)
		r = fcvm_fail(err, -EOPNOTSUPP, "%s: driver %s has no metrics; firecracker has", vm->name,
			vm->with.driver->name);
	else
		r = vm_explain(vm, vm->with.driver->metrics(vm->vmm, &until, ret_json, err), "metrics", err);
	vm_finish(vm, before);
	return r;
}

size_t fcvm_vm_console(struct fcvm_vm *vm, char *to, size_t size)
{
	size_t n = 0;

	to[0] = 0;
	pthread_mutex_lock(&vm->lock);
	if (vm->vmm)
		n = fcvm_vmm_tail(vm->vmm, to, size);
	pthread_mutex_unlock(&vm->lock);
	return n;
}

int fcvm_vm_ping(struct fcvm_vm *vm, int64_t timeout_ms, int64_t *ret_ns, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, DEFAULT_PING_MS);
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *agent = NULL;
	int64_t from = fcvm_now_ns();
	int r = vm_agent(vm, "ping", &agent, err);

	if (r == 0)
		r = vm_explain(vm, fcvm_node_ping(agent, &until, err), "ping", err);
	if (r == 0 && ret_ns)
		*ret_ns = fcvm_now_ns() - from;
	return r;
}
