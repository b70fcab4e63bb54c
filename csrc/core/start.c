/* SPDX-License-Identifier: MIT */
/* Starting a VM: from a kept snapshot of one like it, or by booting it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/log.h"
#include "core/vm.h"

enum { DEFAULT_START_MS = 120000, GREETINGS = 8 };

/* ---- what other processes see ---- */

int vm_publish(struct fcvm_vm *vm, const char *state, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = fcvm_json_object();
	_cleanup_free_ char *text = NULL;
	int r = -ENOMEM;

	if (j) {
		fcvm_json_set_string(j, "id", vm->folder.lease.id);
		fcvm_json_set_string(j, "name", vm->name);
		fcvm_json_set_string(j, "state", state);
		fcvm_json_set_string(j, "image", vm->image);
		fcvm_json_set_string(j, "driver", vm->with.driver->name);
		fcvm_json_set_string(j, "accel", vm->with.probe->accel);
		fcvm_json_set_int(j, "memory", vm->memory);
		fcvm_json_set_int(j, "vcpus", vm->vcpus);
		fcvm_json_set_string(j, "node", place_name(vm->place));
		fcvm_json_set_int(j, "pid", vm->pid);
		if (place_is_here(vm->place))
			fcvm_json_set_int(j, "pid_start", process_start(vm->pid));
		fcvm_json_set_int(j, "owner", getpid());
		fcvm_json_set_int(j, "generation", vm->generation);
		fcvm_json_set_bool(j, "warm", vm->warm);
		fcvm_json_set(j, "volumes", volumes_json(&vm->volumes));
		fcvm_json_set_int(j, "started",
			(fcvm_realtime_ns() - (fcvm_now_ns() - vm->started_ns)) / 1000000000);
		text = fcvm_json_print(j, 0);
	}
	if (text)
		r = fcvm_file_replace(vm->folder.lease.dirfd, "vm.json", text, strlen(text), 0600, false);
	return r < 0 ? fcvm_fail_errno(err, r, "%s: write %s/vm.json", vm->name, vm->folder.lease.path) : 0;
}

/* Sockets have short paths; the run folder may be anywhere. */
static int listen_in(int dirfd)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	snprintf(at.sun_path, sizeof at.sun_path, "/proc/self/fd/%d/agent.sock", dirfd);
	unlinkat(dirfd, "agent.sock", 0); /* of a connection before */
	/* Nobody but this user gets into the run folder, so the socket's own mode is of no importance. */
	if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 64) < 0)
		return -errno;
	return fcvm_steal_fd(fd);
}

static int serve_others(struct fcvm_vm *vm, struct fcvm_err *err)
{
	int fd = listen_in(vm->folder.lease.dirfd);

	if (fd < 0)
		return fcvm_fail_errno(err, fd, "%s: listen on %s/agent.sock", vm->name, vm->folder.lease.path);
	return fcvm_node_serve(vm->agent, fd, err);
}

/* ---- the agent ---- */

static int greet_agent(struct fcvm_vm *vm, uint64_t generation, const struct fcvm_until *until, struct fcvm_node **ret,
	struct fcvm_err *err)
{
	int fd = -1;
	int r = vm->with.driver->carrier(vm->vmm, until, &fd, err);

	return r < 0 ? r : fcvm_node_agent(ret, runtime_node(vm->rt), fd, vm->name, generation, until, err);
}

/* Where a save cuts the streams, the guest learns that it did with its next interrupt, which may be that of the new stream:
 * then this one is cut as well. */
int vm_connect_agent(struct fcvm_vm *vm, uint64_t generation, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	struct fcvm_node *agent;
	int r = greet_agent(vm, generation, until, &agent, err);

	for (int i = 0; i < GREETINGS && r == -ECONNRESET && vm->with.driver->save_cuts && !vm_ends_within(vm, 0); i++)
		r = greet_agent(vm, generation, until, &agent, err);
	if (r < 0)
		return r;
	pthread_mutex_lock(&vm->lock);
	vm->agent = agent;
	pthread_mutex_unlock(&vm->lock);
	return 0;
}

int vm_give_identity(struct fcvm_vm *vm, uint64_t generation, const char *hostname, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	uint8_t random[16];
	char machine_id[33];
	struct fcvm_identity id = {.generation = generation, .hostname = hostname, .machine_id = machine_id};

	fcvm_random(random, sizeof random);
	for (unsigned i = 0; i < sizeof random; i++)
		snprintf(machine_id + 2 * i, 3, "%02x", random[i]);
	return fcvm_node_identify(vm->agent, &id, until, err);
}

/* The same guest goes on, so its names are what they were; its random pool must not be that of its clones. */
int vm_reconnect(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_identity id = {.generation = vm->generation + 1};
	struct fcvm_node *agent;
	struct place *node;
	bool seen = vm->generation > 0; /* by other processes */
	int r, volumes = 0;

	pthread_mutex_lock(&vm->lock);
	agent = fcvm_steal_ptr(vm->agent);
	node = fcvm_steal_ptr(vm->node);
	pthread_mutex_unlock(&vm->lock);
	if (agent)
		fcvm_node_hang_up(agent, "a snapshot was taken, and this driver's streams do not outlive that");
	place_put(node);
	fcvm_node_unref(agent);
	vm->frozen = false;
	r = vm_connect_agent(vm, id.generation, until, err);
	/* Before it is asked: if only its answer is lost, it must not be greeted by its own generation the next time. */
	vm->generation = id.generation;
	/* One that cannot go on keeps nobody from the rest. */
	if (r == 0)
		volumes = volumes_go_on(vm, true, until, err);
	if (r == 0)
		r = fcvm_node_identify(vm->agent, &id, until, err);
	if (r < 0)
		return r; /* still cut: it is tried again when it goes on the next time */
	vm->cut = false;
	if (seen)
		r = serve_others(vm, err);
	if (seen && r == 0)
		r = vm_publish(vm, "running", err);
	return r < 0 ? r : volumes;
}

int vm_identify(struct fcvm_vm *vm, uint64_t generation, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = vm_give_identity(vm, generation, vm->name, until, err);

	if (r < 0)
		return r;
	vm->generation = generation;
	r = serve_others(vm, err);
	return r < 0 ? r : vm_publish(vm, "running", err);
}

/* ---- boot ---- */

int vm_set_image(struct fcvm_vm *vm, const struct fcvm_image *image, struct fcvm_err *err)
{
	char *name = fcvm_asprintf("%s/%s", image->name, image->key);
	char *release = strdup(image->release ? image->release : "");

	if (!name || !release) {
		free(name);
		free(release);
		return fcvm_fail_errno(err, -ENOMEM, "%s: start", vm->name);
	}
	pthread_mutex_lock(&vm->lock);
	free(vm->image);
	free(vm->kernel);
	vm->image = name;
	vm->kernel = release;
	pthread_mutex_unlock(&vm->lock);
	return 0;
}

void vm_adopt(struct fcvm_vm *vm, struct vmm *vmm)
{
	pthread_mutex_lock(&vm->lock);
	vm->vmm = vmm;
	vm->pid = fcvm_vmm_pid(vmm);
	vm->collected = false;
	if (vm->killed)
		fcvm_vmm_kill(vmm);
	pthread_mutex_unlock(&vm->lock);
}

/* What is booted, where it is booted, in the form that the VMM takes. */
static int place_kernel(struct fcvm_vm *vm, const struct fcvm_image *image, const struct fcvm_until *until,
	char **ret_kernel, char **ret_initrd, struct fcvm_err *err)
{
	_cleanup_free_ char *elf = NULL;
	int r = 0;

	if (vm->with.driver->wants_elf)
		r = fcvm_image_elf_kernel(runtime_store(vm->rt), image, until, &elf, err);
	if (r == 0)
		r = place_file(vm->place, elf ? elf : image->kernel, until, ret_kernel, err);
	if (r == 0)
		r = place_file(vm->place, vm->nested ? image->initrd_nested : image->initrd, until, ret_initrd, err);
	return r;
}

static int boot(struct fcvm_vm *vm, const struct fcvm_image *image, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	_cleanup_free_ char *cmdline = fcvm_asprintf("%s %s", image->cmdline, vm->cmdline);
	_cleanup_free_ char *kernel = NULL, *initrd = NULL;
	struct vmm_machine m;
	struct vmm *vmm;
	int r;

	if (!cmdline)
		return fcvm_fail_errno(err, -ENOMEM, "%s: boot", vm->name);
	fcvm_say(FCVM_SAY_PROGRESS, "boot %s (%s, %s/%s)", vm->name, vm->image_name, vm->with.driver->name,
		vm->with.probe->accel);
	r = folder_new(vm->place, until, &vm->folder, err);
	if (r == 0)
		r = place_kernel(vm, image, until, &kernel, &initrd, err);
	if (r < 0)
		return r;
	m = vm_machine(vm);
	m.kernel = kernel;
	m.initrd = initrd;
	m.cmdline = cmdline;
	r = vm->with.driver->boot(&m, vm->with.probe, until, &vmm, err);
	if (r < 0)
		return r;
	vm_adopt(vm, vmm);
	return vm_connect_agent(vm, 0, until, err);
}

/* Keeps what is needed to start the next one like it without booting. Nothing depends on its success, but that the VM is
 * there afterwards. */
static int keep_warm(struct fcvm_vm *vm, const char *key, const struct fcvm_until *until, struct fcvm_err *ret_err)
{
	struct folder folder = FOLDER_INIT;
	struct fcvm_err err = FCVM_ERR_INIT;
	_cleanup_free_ char *dir = NULL, *memory = NULL;
	struct fcvm_manifest m;
	int r = folder_new(vm->place, until, &folder, &err);

	fcvm_say(FCVM_SAY_PROGRESS, "keep a snapshot of %s for quick starts", vm->name);
	if (r == 0)
		r = vm_save(vm, &folder, false, until, NULL, NULL, &err);
	if (r == 0) {
		m = vm_manifest(vm);
		r = fcvm_snapshot_publish(runtime_store(vm->rt), folder_path(&folder), &m, "warm", key, &dir, &err);
		memory = r == 0 ? fcvm_asprintf("%s/memory", dir) : NULL;
		if (memory)
			fcvm_vmm_moved(vm->vmm, memory);
	}
	if (r < 0)
		fcvm_say(FCVM_SAY_WARNING, "%s: no snapshot for quick starts was kept: %s", vm->name, err.message);
	folder_done(vm->place, &folder);
	if (vm->agent)
		return 0;
	if (ret_err)
		*ret_err = err;
	return r;
}

/* ---- warm start ---- */

static void warm_key(const struct fcvm_vm *vm, const struct fcvm_image *image, char ret[static 17])
{
	const struct vmm_probe *p = vm->with.probe;
	char numbers[64];

	snprintf(numbers, sizeof numbers, "%llu %u%s%s", (unsigned long long)vm->memory, vm->vcpus,
		vm->nested ? " nested" : "", vm->balloon ? " balloon" : "");
	fcvm_hash_strings(ret, "warm 4", image->key, image->cmdline, vm->cmdline, numbers, vm->with.driver->name,
		p->version, p->accel, p->machine, host_cpu(vm->with.probe), FCVM_VERSION, NULL);
}

/* A failure that is the snapshot's: it is damaged, or the VMM, having begun to read it, says no or dies. */
static bool is_no_good(int r)
{
	return r == -EINVAL || r == -EIO || r == -EBADMSG || r == -ECONNRESET || r == -EPIPE || r == -EPROTO;
}

/* What has booted or was restored becomes this VM, with its volumes, before anything runs in it. */
static int become(struct fcvm_vm *vm, uint64_t generation, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = volumes_mount(vm, until, err);

	return r < 0 ? r : vm_identify(vm, generation, until, err);
}

/* 0: restored; -ENOENT: there is none that can be used; else the failure of a start that was tried. */
static int start_warm(struct fcvm_vm *vm, const char *key, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_store *store = runtime_store(vm->rt);
	_cleanup_free_ char *dir = NULL;
	_cleanup_close_ int hold = -1;
	struct fcvm_err why = FCVM_ERR_INIT;
	struct fcvm_manifest m = {0};
	int r = fcvm_snapshot_find(store, "warm", key, &dir, NULL);

	if (r == 0)
		hold = fcvm_snapshot_hold(dir);
	if (r < 0 || hold < 0)
		return -ENOENT;
	r = fcvm_manifest_read(dir, key, &m, &why);
	if (r == 0)
		r = manifest_fits_choice(&m, key, &vm->with, &why);
	if (r == 0)
		r = vm_restore(vm, dir, &m, NULL, until, &why);
	if (r == 0)
		vm->generation = m.generation;
	fcvm_manifest_done(&m);
	if (r == 0 || vm->killed || !is_no_good(r)) {
		if (err && r < 0)
			*err = why;
		return r;
	}
	vm_tear_down(vm);
	fcvm_say(FCVM_SAY_WARNING, "%s: its kept snapshot is of no use and is dropped: %s", vm->name, why.message);
	hold = fcvm_close(hold);
	fcvm_snapshot_remove(store, "warm", key, NULL);
	return -ENOENT;
}

/* ---- */

static int same_name(void *data, const char *id, const char *path, bool alive, const struct fcvm_json *json)
{
	return alive && json && strcmp(fcvm_json_string(json, "name", ""), data) == 0 ? -EEXIST : 0;
}

int vm_check_name_free(struct runtime *rt, const char *name, struct fcvm_err *err)
{
	int r = fcvm_lease_each(runtime_store(rt), same_name, (void *)name, err);

	return r == -EEXIST ? fcvm_fail(err, r, "%s: a VM of this name is running; see 'fcvm ls'", name) : r;
}

static int choose_place(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct place *place = NULL, *before;
	int r = 0;

	if (vm->host)
		r = vm_as_place(vm->host, until, &place, err);
	else
		place = place_ref(runtime_here(vm->rt));
	/* What was chosen for an earlier start goes with its place. */
	pthread_mutex_lock(&vm->lock);
	before = vm->place;
	vm->place = place;
	vm->with = (struct choice){.driver = NULL};
	pthread_mutex_unlock(&vm->lock);
	place_put(before);
	return r;
}

/* What was asked for and this driver does not have. */
static int check_features(const struct fcvm_vm *vm, const struct vmm_ops *driver, struct fcvm_err *err)
{
	if (vm->nested && !driver->can_nest)
		return fcvm_fail(err, -EOPNOTSUPP, "%s: guests of driver %s cannot run VMs; qemu's can", vm->name, driver->name);
	if (vm->balloon && !driver->balloon)
		return fcvm_fail(err, -EOPNOTSUPP, "%s: driver %s has no balloon; firecracker has", vm->name, driver->name);
	if (vm->jail && !driver->can_jail)
		return fcvm_fail(err, -EOPNOTSUPP, "%s: driver %s cannot confine its VMM; firecracker can", vm->name,
			driver->name);
	return 0;
}

/* The one that was asked for, or the first that works and has what was asked for. */
static int choose_driver(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct choice with = {.driver = NULL};
	int r = -EINVAL;

	if (vm->driver_wanted) {
		r = place_choose(vm->place, vm->driver_wanted, vm->accel_wanted, until, &with, err);
		if (r == 0)
			r = check_features(vm, with.driver, err);
	}
	for (unsigned i = 0; !vm->driver_wanted && fcvm_vmm_drivers[i] && r < 0 && !fcvm_until_passed(until) && r != -ECANCELED;
		i++) {
		r = check_features(vm, fcvm_vmm_drivers[i], err);
		if (r == 0)
			r = place_choose(vm->place, fcvm_vmm_drivers[i]->name, vm->accel_wanted, until, &with, err);
	}
	if (r == 0) {
		pthread_mutex_lock(&vm->lock);
		vm->with = with;
		pthread_mutex_unlock(&vm->lock);
	}
	return r;
}

static int start(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_image image = {0};
	char key[17];
	bool cold;
	int r = vm_check_name_free(vm->rt, vm->name, err);

	if (r == 0)
		r = choose_place(vm, until, err);
	if (r == 0)
		r = choose_driver(vm, until, err);
	if (r == 0)
		r = fcvm_image_get(runtime_store(vm->rt), vm->image_name, until, &image, NULL, err);
	if (r < 0)
		return r;
	r = vm_set_image(vm, &image, err);
	warm_key(vm, &image, key);
	/* Such snapshots are this host's. */
	cold = vm->cold || !place_is_here(vm->place);
	vm->warm = !cold;
	if (r == 0)
		r = cold ? -ENOENT : start_warm(vm, key, until, err);
	if (r == -ENOENT) {
		vm->warm = false;
		r = boot(vm, &image, until, err);
		if (r == 0 && !cold)
			r = keep_warm(vm, key, until, err);
	}
	if (r == 0)
		r = become(vm, vm->generation + 1, until, err);
	fcvm_image_done(&image);
	return r;
}

int fcvm_vm_start(struct fcvm_vm *vm, int64_t timeout_ms, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, DEFAULT_START_MS);
	struct fcvm_err why = FCVM_ERR_INIT;
	int r = vm_begin(vm, 1u << FCVM_VM_NEW, "start", err);

	if (r < 0)
		return r;
	pthread_mutex_lock(&vm->lock);
	vm->state = FCVM_VM_STARTING;
	vm->killed = false;
	vm->started_ns = fcvm_now_ns();
	pthread_mutex_unlock(&vm->lock);
	r = vm_explain(vm, start(vm, &until, &why), "start", &why);
	if (r == 0) {
		vm->ready_ns = fcvm_now_ns();
		vm_finish(vm, FCVM_VM_RUNNING);
		return 0;
	}
	vm_add_tail(vm, &why);
	vm_tear_down(vm);
	vm->pid = 0;
	vm->started_ns = 0;
	vm_finish(vm, FCVM_VM_NEW);
	snprintf(why.op, sizeof why.op, "start");
	if (err)
		*err = why;
	return r;
}
