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

enum { DEFAULT_STOP_MS = 10000, DEFAULT_PING_MS = 5000, QMP_MS = 10000, FREEZE_MS = 2000, END_MS = 5000 };

/* With less a kernel of today's does not get as far as its init. */
#define MEMORY_MIN (96 * FCVM_MIB)

static const char *const state_names[] = {"new", "starting", "running", "paused", "ended"};

/* ---- making ---- */

static char *copy(const char *s)
{
	return s ? strdup(s) : NULL;
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
	pthread_mutex_destroy(&vm->lock);
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
	vm->lease = (struct fcvm_lease)FCVM_LEASE_INIT;
	vm->name = config->name ? strdup(config->name) : make_name();
	vm->image_name = copy(config->image ? config->image : "mini");
	vm->accel_wanted = copy(config->accel);
	vm->driver_wanted = copy(config->driver);
	vm->cmdline = copy(config->cmdline ? config->cmdline : "");
	vm->image = copy("");
	vm->kernel = copy("");
	vm->memory = config->memory ? config->memory : 256 * FCVM_MIB;
	vm->vcpus = config->vcpus ? config->vcpus : 1;
	vm->cold = config->cold;
	r = vm->name && vm->image_name && vm->cmdline && vm->image && vm->kernel ? runtime_get(&vm->rt, err)
		: fcvm_fail_errno(err, -ENOMEM, "make a VM");
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
	return r < 0 ? r : vm_alloc(ret, config, err);
}

struct vmm_machine vm_machine(const struct fcvm_vm *vm)
{
	return (struct vmm_machine){
		.node = runtime_node(vm->rt),
		.name = vm->name,
		.dir = vm->lease.path,
		.dirfd = vm->lease.dirfd,
		.memory = vm->memory,
		.vcpus = vm->vcpus,
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
	if (!vm->agent)
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
		fd = fcntl(vm->with.driver->exit_fd(vm->vmm), F_DUPFD_CLOEXEC, 3);
	pthread_mutex_unlock(&vm->lock);
	return fd;
}

static bool ends_within(struct fcvm_vm *vm, int ms)
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

	if (!vm->vmm || vm->with.driver->wait_exit(vm->vmm, &now, &how, NULL) < 0)
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

	if (fd < 0 || fcvm_until_poll(&soon, &p, 1) > 0)
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
	if (r >= 0 || !err || vm->attached || !ends_within(vm, lost ? 500 : 0))
		return r;
	pthread_mutex_lock(&vm->lock);
	collect(vm);
	if (vm->vmm && vm->collected) {
		how = vm->exit;
		vm->with.driver->tail(vm->vmm, tail, sizeof tail);
		snprintf(was, sizeof was, "%s", err->message);
		if (how.signal)
			fcvm_fail(err, r, "%s: %s: its VMM (%s, process %d) was ended by signal %d (%s)%s%s", vm->name,
				what, vm->with.driver->name, vm->pid, how.signal, strsignal(how.signal),
				/* what a write to a mapped file gets that there is no room for */
				how.signal == SIGBUS ? ": the disk is full that its memory is on, " : "",
				how.signal == SIGBUS ? vm->lease.path : "");
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
	struct fcvm_lease lease;
	struct vmm *vmm;

	pthread_mutex_lock(&vm->lock);
	agent = fcvm_steal_ptr(vm->agent);
	if (vm->vmm)
		vm->with.driver->kill(vm->vmm);
	pthread_mutex_unlock(&vm->lock);
	fcvm_node_unref(agent);
	/* Who waits for its end, waits with us: the VMM is there until its end is known. */
	ends_within(vm, END_MS);
	pthread_mutex_lock(&vm->lock);
	collect(vm);
	vmm = fcvm_steal_ptr(vm->vmm);
	lease = vm->lease;
	vm->lease = (struct fcvm_lease)FCVM_LEASE_INIT;
	memcpy(vm->lease.id, lease.id, sizeof lease.id);
	pthread_mutex_unlock(&vm->lock);
	if (vmm)
		vm->with.driver->free(vmm);
	fcvm_lease_done(runtime_store(vm->rt), &lease);
}

/* ---- stopped for a while ---- */

int vm_quiesce(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = fcvm_node_freeze(vm->agent, until, err);

	if (r < 0)
		return r;
	r = vm->with.driver->pause(vm->vmm, until, err);
	if (r < 0)
		vm_go_on(vm, NULL);
	return r;
}

int vm_go_on(struct fcvm_vm *vm, struct fcvm_err *err)
{
	struct fcvm_until until = fcvm_until_ms(QMP_MS, -1);
	int r = vm->with.driver->resume(vm->vmm, &until, err);
	int r2 = fcvm_node_thaw(vm->agent, &until, r < 0 ? NULL : err);

	return r < 0 ? r : r2;
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
	struct fcvm_until until = call_until(QMP_MS, QMP_MS), soon = fcvm_until_sooner(&until, FREEZE_MS);
	int r = vm_begin(vm, 1u << FCVM_VM_RUNNING, "pause", err);

	if (r < 0)
		return r;
	/* An agent that does not answer is no reason not to pause. */
	vm->frozen = fcvm_node_freeze(vm->agent, &soon, NULL) == 0;
	r = vm->with.driver->pause(vm->vmm, &until, err);
	if (r < 0 && vm->frozen)
		vm_go_on(vm, NULL);
	else if (r == 0)
		vm_publish(vm, "paused", NULL);
	r = vm_explain(vm, r, "pause", err);
	vm_finish(vm, r < 0 ? FCVM_VM_RUNNING : FCVM_VM_PAUSED);
	return r;
}

int fcvm_vm_resume(struct fcvm_vm *vm, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(QMP_MS, QMP_MS);
	int r = vm_begin(vm, 1u << FCVM_VM_PAUSED, "resume", err);

	if (r < 0)
		return r;
	r = vm->frozen ? vm_go_on(vm, err) : vm->with.driver->resume(vm->vmm, &until, err);
	if (r == 0)
		vm_publish(vm, "running", NULL);
	r = vm_explain(vm, r, "resume", err);
	vm_finish(vm, r < 0 ? FCVM_VM_PAUSED : FCVM_VM_RUNNING);
	return r;
}

/* The guest ends by itself, or not: its deadline is the caller's. */
static void power_off(struct fcvm_vm *vm, const struct fcvm_until *until)
{
	_cleanup_close_ int fd = end_fd(vm);
	struct pollfd p = {.fd = fd, .events = POLLIN};

	if (vm->state == FCVM_VM_PAUSED && vm_go_on(vm, NULL) < 0)
		return;
	if (vm->agent && fcvm_node_power(vm->agent, false, until, NULL) == 0)
		fcvm_until_poll(until, &p, 1);
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
		vm->with.driver->kill(vm->vmm);
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
	if (!vm->collected)
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
	snprintf(ret->id, sizeof ret->id, "%s", vm->attached ? vm->attached_id : vm->lease.id);
	snprintf(ret->dir, sizeof ret->dir, "%s", vm->attached ? vm->attached_dir : vm->lease.path ? vm->lease.path : "");
	snprintf(ret->image, sizeof ret->image, "%s", *vm->image ? vm->image : vm->image_name);
	pthread_mutex_unlock(&vm->lock);
	if (!vm->attached && (ret->state == FCVM_VM_RUNNING || ret->state == FCVM_VM_PAUSED) &&
		ends_within(vm, 0))
		ret->state = FCVM_VM_ENDED;
}

size_t fcvm_vm_console(struct fcvm_vm *vm, char *to, size_t size)
{
	size_t n = 0;

	to[0] = 0;
	pthread_mutex_lock(&vm->lock);
	if (vm->vmm)
		n = vm->with.driver->tail(vm->vmm, to, size);
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
