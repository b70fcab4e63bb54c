/* SPDX-License-Identifier: MIT */
/* What is there: the VMs of all processes of this user, snapshots, images; attaching, killing, cleaning up. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/log.h"
#include "core/vm.h"

enum { LOG_MAX = 64 << 20 };

int64_t process_start(int pid)
{
	_cleanup_free_ char *text = NULL;
	char path[32], *at;
	long long start = 0;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	if (pid <= 0 || fcvm_file_read(AT_FDCWD, path, 4096, &text, NULL) < 0)
		return 0;
	/* The second field is the name in parentheses, and may hold anything. */
	at = strrchr(text, ')');
	if (!at || at[1] != ' ' || at[2] == 'Z')
		return 0;
	at += 2;
	for (unsigned field = 3; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at && sscanf(at, "%lld", &start) == 1 ? start : 0;
}

/* Text of j for a public call; j is freed. */
static int give(struct fcvm_json *j, char **ret, struct fcvm_err *err)
{
	char *text = j ? fcvm_json_print(j, 0) : NULL;

	fcvm_json_free(j);
	if (!text)
		return fcvm_fail_errno(err, -ENOMEM, "make a report");
	if (ret)
		*ret = text;
	else
		free(text);
	return 0;
}

/* ---- VMs ---- */

static bool is_elsewhere(const struct fcvm_json *vm)
{
	return *fcvm_json_string(vm, "node", "") != 0;
}

static bool vmm_lives(const struct fcvm_json *vm)
{
	int64_t start = process_start(fcvm_json_int(vm, "pid", 0));

	/* Of a process on another node only the owner knows; it is there, its lock says. */
	if (is_elsewhere(vm))
		return true;
	return start != 0 && start == fcvm_json_int(vm, "pid_start", -1);
}

static int add_vm(void *data, const char *id, const char *path, bool alive, const struct fcvm_json *json)
{
	static const char *const strings[] = {"id", "name", "state", "image", "driver", "accel", "node"};
	static const char *const numbers[] = {"memory", "vcpus", "pid", "owner", "generation", "started"};
	struct fcvm_json *array = data, *vm;

	if (!alive || !json)
		return 0;
	vm = fcvm_json_object();
	if (!vm)
		return -ENOMEM;
	for (unsigned i = 0; i < sizeof strings / sizeof *strings; i++)
		fcvm_json_set_string(vm, strings[i], fcvm_json_string(json, strings[i], ""));
	for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++)
		fcvm_json_set_int(vm, numbers[i], fcvm_json_int(json, numbers[i], 0));
	fcvm_json_set_bool(vm, "warm", fcvm_json_bool(json, "warm", false));
	fcvm_json_set_int(vm, "uptime", fcvm_realtime_ns() / 1000000000 - fcvm_json_int(json, "started", 0));
	fcvm_json_set_string(vm, "dir", path);
	/* Its owner may not have noticed yet. */
	if (!vmm_lives(json))
		fcvm_json_set_string(vm, "state", "ended");
	return fcvm_json_append(array, vm);
}

int fcvm_list_vms(char **ret_json, struct fcvm_err *err)
{
	struct fcvm_json *array = fcvm_json_array();
	struct runtime *rt;
	int r = runtime_get(&rt, err);

	if (r == 0) {
		r = fcvm_lease_each(runtime_store(rt), add_vm, array, err);
		runtime_put(rt);
	}
	if (r < 0) {
		fcvm_json_free(array);
		return r;
	}
	return give(array, ret_json, err);
}

struct sought {
	const char *what; /* id or name */
	unsigned found;
	char id[16];
	char *path;
	char *text; /* its vm.json, as text */
};

static int seek(void *data, const char *id, const char *path, bool alive, const struct fcvm_json *json)
{
	struct sought *s = data;

	if (!alive || !json)
		return 0;
	if (strcmp(id, s->what) != 0 && strcmp(fcvm_json_string(json, "name", ""), s->what) != 0)
		return 0;
	s->found++;
	if (s->found > 1)
		return 0;
	snprintf(s->id, sizeof s->id, "%s", id);
	s->path = strdup(path);
	s->text = fcvm_json_print(json, 0);
	return s->path && s->text ? 0 : -ENOMEM;
}

/* The one VM that is meant. ret_json and ret_dir: the caller's. */
static int find_vm(struct runtime *rt, const char *id, struct fcvm_json **ret_json, char **ret_dir, struct fcvm_err *err)
{
	struct sought s = {.what = id};
	int r = fcvm_lease_each(runtime_store(rt), seek, &s, err);

	if (r == 0 && s.found == 0)
		r = fcvm_fail(err, -ENOENT, "no VM '%s' is running; 'fcvm ls' shows those that are", id);
	if (r == 0 && s.found > 1)
		r = fcvm_fail(err, -ENOTUNIQ, "%u VMs are named '%s'; give the id that 'fcvm ls' shows", s.found, id);
	if (r == 0)
		r = fcvm_json_parse(s.text, strlen(s.text), ret_json, err);
	free(s.text);
	if (r < 0)
		free(s.path);
	else
		*ret_dir = s.path;
	return r;
}

/* The same for who needs nothing else of the runtime. */
static int locate(const char *id, struct fcvm_json **ret_json, char **ret_dir, struct fcvm_err *err)
{
	struct runtime *rt;
	int r = runtime_get(&rt, err);

	if (r < 0)
		return r;
	r = find_vm(rt, id, ret_json, ret_dir, err);
	runtime_put(rt);
	return r;
}

static int connect_in(const char *dir)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	_cleanup_close_ int dirfd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (dirfd < 0 || fd < 0)
		return -errno;
	snprintf(at.sun_path, sizeof at.sun_path, "/proc/self/fd/%d/agent.sock", dirfd);
	if (connect(fd, (struct sockaddr *)&at, sizeof at) < 0)
		return -errno;
	return fcvm_steal_fd(fd);
}

static int fill_attached(struct fcvm_vm *vm, const struct fcvm_json *json, const char *dir, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(5000, 5000);
	int fd;

	vm->attached = true;
	/* As its owner has said last; paused later on, it does not answer until it is resumed. */
	vm->state = strcmp(fcvm_json_string(json, "state", ""), "paused") == 0 ? FCVM_VM_PAUSED : FCVM_VM_RUNNING;
	vm->attached_id = strdup(fcvm_json_string(json, "id", ""));
	vm->attached_dir = strdup(dir);
	vm->attached_node = strdup(fcvm_json_string(json, "node", ""));
	vm->generation = fcvm_json_int(json, "generation", 0);
	vm->pid = is_elsewhere(json) ? 0 : fcvm_json_int(json, "pid", 0);
	vm->warm = fcvm_json_bool(json, "warm", false);
	vm->started_ns = fcvm_now_ns() - (fcvm_realtime_ns() - fcvm_json_int(json, "started", 0) * 1000000000);
	if (!vm->attached_id || !vm->attached_dir || !vm->attached_node)
		return fcvm_fail_errno(err, -ENOMEM, "%s: attach", vm->name);
	fd = connect_in(dir);
	if (fd < 0)
		return fcvm_fail_errno(err, fd, "%s: attach: connect to %s/agent.sock", vm->name, dir);
	return fcvm_node_agent(&vm->agent, runtime_node(vm->rt), fd, vm->name, vm->generation, &until, err);
}

int fcvm_vm_attach(struct fcvm_vm **ret, const char *id, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *json = NULL;
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	_cleanup_free_ char *dir = NULL;
	struct fcvm_vm *vm = NULL;
	struct runtime *rt;
	int r = runtime_get(&rt, err);

	if (r < 0)
		return r;
	r = find_vm(rt, id, &json, &dir, err);
	if (r == 0) {
		config.name = fcvm_json_string(json, "name", "?");
		config.image = fcvm_json_string(json, "image", "?");
		config.accel = fcvm_json_string(json, "accel", "?");
		config.driver = fcvm_json_string(json, "driver", "?");
		config.memory = fcvm_json_int(json, "memory", 0);
		config.vcpus = fcvm_json_int(json, "vcpus", 1);
		r = vm_alloc(&vm, &config, err);
	}
	if (r == 0)
		r = fill_attached(vm, json, dir, err);
	runtime_put(rt);
	if (r < 0) {
		fcvm_vm_free(vm);
		return r;
	}
	*ret = vm;
	return 0;
}

int fcvm_kill_vm(const char *id, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *json = NULL;
	_cleanup_free_ char *dir = NULL;
	_cleanup_close_ int pidfd = -1;
	int r = locate(id, &json, &dir, err);

	if (r < 0)
		return r;
	if (is_elsewhere(json))
		return fcvm_fail(err, -EPERM, "%s: it runs on %s: ask its owner, process %lld, or end that VM", id,
			fcvm_json_string(json, "node", ""), (long long)fcvm_json_int(json, "owner", 0));
	/* The pidfd first: whatever it is of then, the start time tells whether that is the VMM. */
	pidfd = syscall(SYS_pidfd_open, (pid_t)fcvm_json_int(json, "pid", 0), 0);
	if (pidfd < 0 || !vmm_lives(json))
		return fcvm_fail(err, -ESRCH, "%s: its VMM has ended already", id);
	if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) < 0)
		return fcvm_fail_errno(err, -errno, "%s: kill its VMM", id);
	return 0;
}

int fcvm_vm_log(const char *id, char **ret_text, size_t *ret_size, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *json = NULL;
	_cleanup_free_ char *dir = NULL, *old = NULL, *new = NULL;
	_cleanup_close_ int dirfd = -1;
	size_t nold = 0, nnew = 0;
	int r = locate(id, &json, &dir, err);

	if (r < 0)
		return r;
	dirfd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	fcvm_file_read(dirfd, "console.log.1", LOG_MAX, &old, &nold);
	r = fcvm_file_read(dirfd, "console.log", LOG_MAX, &new, &nnew);
	if (r < 0)
		return fcvm_fail_errno(err, r, "%s: read %s/console.log", id, dir);
	*ret_text = malloc(nold + nnew + 1);
	if (!*ret_text)
		return fcvm_fail_errno(err, -ENOMEM, "%s: read its console log", id);
	if (nold)
		memcpy(*ret_text, old, nold);
	memcpy(*ret_text + nold, new, nnew + 1);
	*ret_size = nold + nnew;
	return 0;
}

/* ---- the store ---- */

/* A call on the store that fills a report. */
static int report(int (*fn)(struct fcvm_store *s, struct fcvm_json *report, struct fcvm_err *err),
	char **ret_json, struct fcvm_err *err)
{
	struct fcvm_json *array = fcvm_json_array();
	struct runtime *rt;
	int r = array ? runtime_get(&rt, err) : fcvm_fail_errno(err, -ENOMEM, "make a report");

	if (r == 0) {
		r = fn(runtime_store(rt), array, err);
		runtime_put(rt);
	}
	if (r < 0) {
		fcvm_json_free(array);
		return r;
	}
	return give(array, ret_json, err);
}

int fcvm_list_snapshots(char **ret_json, struct fcvm_err *err)
{
	return report(fcvm_snapshot_list, ret_json, err);
}

int fcvm_list_images(char **ret_json, struct fcvm_err *err)
{
	return report(fcvm_image_list, ret_json, err);
}

int fcvm_inspect_snapshot(const char *name, char **ret_json, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *json = NULL;
	_cleanup_free_ char *dir = NULL, *path = NULL, *text = NULL;
	struct fcvm_manifest m = {0};
	struct runtime *rt;
	size_t size = 0;
	int r = check_name("snapshot", name, err);

	if (r == 0)
		r = runtime_get(&rt, err);
	if (r < 0)
		return r;
	r = fcvm_snapshot_find(runtime_store(rt), "snapshots", name, &dir, err);
	runtime_put(rt);
	if (r < 0)
		return r;
	path = fcvm_asprintf("%s/manifest.json", dir);
	r = path ? fcvm_file_read(AT_FDCWD, path, 1 << 20, &text, &size) : -ENOMEM;
	if (r < 0)
		return fcvm_fail_errno(err, r, "snapshot %s: read its manifest", name);
	r = fcvm_manifest_parse(text, size, &m, NULL, err);
	fcvm_manifest_done(&m);
	if (r < 0)
		return r;
	*ret_json = fcvm_steal_ptr(text);
	return 0;
}

int fcvm_remove_snapshot(const char *name, struct fcvm_err *err)
{
	struct runtime *rt;
	int r = check_name("snapshot", name, err);

	if (r == 0)
		r = runtime_get(&rt, err);
	if (r < 0)
		return r;
	r = fcvm_snapshot_remove(runtime_store(rt), "snapshots", name, err);
	runtime_put(rt);
	return r;
}

int fcvm_build_image(const char *name, char **ret_json, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(FCVM_NO_TIMEOUT, FCVM_NO_TIMEOUT);
	struct fcvm_image image = {0};
	struct fcvm_err why = FCVM_ERR_INIT;
	_cleanup_free_ char *elf = NULL;
	struct fcvm_json *j;
	struct runtime *rt;
	bool built = false;
	int r = runtime_get(&rt, err);

	if (r < 0)
		return r;
	r = fcvm_image_get(runtime_store(rt), name, &until, &image, &built, err);
	/* For drivers that want that. Others do with a kernel that has none. */
	if (r == 0 && fcvm_image_elf_kernel(runtime_store(rt), &image, &until, &elf, &why) < 0)
		fcvm_say(FCVM_SAY_WARNING, "%s; Firecracker cannot boot it", why.message);
	runtime_put(rt);
	if (r < 0)
		return r;
	j = fcvm_json_object();
	if (j) {
		fcvm_json_set_string(j, "name", image.name);
		fcvm_json_set_string(j, "key", image.key);
		fcvm_json_set_bool(j, "built", built);
		fcvm_json_set_string(j, "dir", image.dir);
	}
	fcvm_image_done(&image);
	return give(j, ret_json, err);
}

int fcvm_remove_image(const char *name, struct fcvm_err *err)
{
	struct runtime *rt;
	int r = check_name("image", name, err);

	if (r == 0)
		r = runtime_get(&rt, err);
	if (r < 0)
		return r;
	r = fcvm_image_remove(runtime_store(rt), name, err);
	runtime_put(rt);
	return r;
}

int fcvm_gc(int64_t max_age_s, char **ret_json, struct fcvm_err *err)
{
	struct fcvm_json *removed = fcvm_json_array(), *all = fcvm_json_object();
	struct runtime *rt = NULL;
	int64_t bytes = 0;
	int r = removed && all ? runtime_get(&rt, err) : fcvm_fail_errno(err, -ENOMEM, "gc");

	if (r == 0)
		r = fcvm_store_gc(runtime_store(rt), max_age_s, removed, err);
	runtime_put(rt);
	if (r < 0) {
		fcvm_json_free(removed);
		fcvm_json_free(all);
		return r;
	}
	for (size_t i = 0; i < fcvm_json_count(removed); i++)
		bytes += fcvm_json_int(fcvm_json_at(removed, i), "bytes", 0);
	fcvm_json_set(all, "removed", removed);
	fcvm_json_set_int(all, "bytes", bytes);
	return give(all, ret_json, err);
}
