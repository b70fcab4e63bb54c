/* SPDX-License-Identifier: MIT */
/* What VMs tell of their volumes, in vm.json and by the counters and traces of the servers: the same for all processes. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "core/vm.h"

enum { VM_JSON_MAX = 4 << 20, TRACES_MAX = 64 << 20 };

/* What a manifest says, and the process. */
static struct fcvm_json *volume_json(const struct fcvm_manifest_volume *c, const struct volume_server *s)
{
	struct fcvm_json *j = fcvm_manifest_volume_json(c);
	pid_t pid = s->handle ? fcvm_volume_pid(s->handle) : 0;

	if (!j || fcvm_json_set_int(j, "pid", pid) < 0 || fcvm_json_set_int(j, "pid_start", process_start(pid)) < 0) {
		fcvm_json_free(j);
		return NULL;
	}
	return j;
}

struct fcvm_json *volumes_json(const struct volumes *v)
{
	struct fcvm_json *array = fcvm_json_array();

	for (size_t i = 0; i < v->n && array; i++) {
		struct fcvm_json *j = v->server[i].handle ? volume_json(&v->config[i], &v->server[i]) : NULL;

		if (v->server[i].handle && (!j || fcvm_json_append(array, j) < 0)) {
			fcvm_json_free(array);
			array = NULL;
		}
	}
	return array;
}

/* ---- reading ---- */

/* Its folder on this host, opened; -1: it has none (not started, or ended). */
static int open_dir(struct fcvm_vm *vm)
{
	int fd = -1;

	pthread_mutex_lock(&vm->lock);
	if (vm->attached)
		fd = open(vm->attached_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	else if (vm->folder.lease.path)
		fd = open(vm->folder.lease.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	pthread_mutex_unlock(&vm->lock);
	return fd;
}

/* From here on, whatever its counters say, a server that is gone has ended. */
static int add_counted(struct fcvm_json *j, int dirfd, unsigned number, bool lives)
{
	static const char *const members[] = {"files", "handles", "bytes_read", "bytes_written", "ops", "trace"};
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *counted = NULL;
	int r = fcvm_volume_counters(dirfd, number, &counted, NULL);

	/* One that was unmounted at this moment. */
	if (r < 0)
		return fcvm_json_set_string(j, "state", "ended");
	r = fcvm_json_set_string(j, "state", lives ? fcvm_json_string(counted, "state", "") : "ended");
	for (unsigned i = 0; i < sizeof members / sizeof *members && r == 0; i++) {
		struct fcvm_json *value = fcvm_json_take(counted, members[i]);

		if (value)
			r = fcvm_json_set(j, members[i], value);
	}
	return r;
}

static int describe(const struct fcvm_manifest_volume *v, const struct fcvm_json *said, int dirfd, struct fcvm_json *array)
{
	struct fcvm_json *j = fcvm_manifest_volume_json(v);
	int64_t pid = fcvm_json_int(said, "pid", 0), start = process_start((int)pid);
	int r = j ? fcvm_json_set_int(j, "pid", pid) : -ENOMEM;

	if (r == 0)
		r = add_counted(j, dirfd, v->number, start && start == fcvm_json_int(said, "pid_start", -1));
	if (r == 0)
		return fcvm_json_append(array, j);
	fcvm_json_free(j);
	return r;
}

/* What vm.json says of them. */
struct list {
	struct fcvm_json *json;
	struct fcvm_manifest_volume *v;
	size_t n;
};

static void list_done(struct list *l)
{
	for (size_t i = 0; i < l->n; i++)
		fcvm_manifest_volume_done(&l->v[i]);
	free(l->v);
	fcvm_json_free(l->json);
}

static int read_list(const char *vm, int dirfd, struct list *ret, struct fcvm_err *err)
{
	_cleanup_free_ char *text = NULL;
	size_t size;
	int r = fcvm_file_read(dirfd, "vm.json", VM_JSON_MAX, &text, &size);

	if (r < 0)
		return fcvm_fail_errno(err, r, "%s: volumes: read vm.json", vm);
	r = fcvm_json_parse(text, size, &ret->json, err);
	if (r == 0)
		r = fcvm_manifest_volumes_parse(fcvm_json_get(ret->json, "volumes"), &ret->v, &ret->n, err);
	if (r < 0)
		fcvm_fail_prefix(err, "%s: volumes: vm.json", vm);
	return r;
}

static int describe_all(const char *vm, int dirfd, struct fcvm_json *array, struct fcvm_err *err)
{
	_cleanup_(list_done) struct list l = {.n = 0};
	int r = read_list(vm, dirfd, &l, err);

	if (r < 0)
		return r;
	for (size_t i = 0; i < l.n && r == 0; i++)
		r = describe(&l.v[i], fcvm_json_at(fcvm_json_get(l.json, "volumes"), i), dirfd, array);
	return r < 0 ? fcvm_fail_errno(err, r, "%s: volumes", vm) : 0;
}

int fcvm_vm_volumes(struct fcvm_vm *vm, char **ret_json, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *array = fcvm_json_array();
	_cleanup_close_ int dirfd = open_dir(vm);
	char *text;
	int r = 0;

	if (array && dirfd >= 0)
		r = describe_all(vm->name, dirfd, array, err);
	if (r < 0)
		return r;
	text = array ? fcvm_json_print(array, 0) : NULL;
	if (!text)
		return fcvm_fail_errno(err, -ENOMEM, "%s: volumes", vm->name);
	*ret_json = text;
	return 0;
}

int fcvm_vm_traces(struct fcvm_vm *vm, const char *guest, char **ret_text, size_t *ret_size, struct fcvm_err *err)
{
	_cleanup_close_ int dirfd = open_dir(vm);
	_cleanup_(list_done) struct list l = {.n = 0};
	_cleanup_free_ char *old = NULL, *new = NULL;
	size_t nold = 0, nnew = 0;
	char name[64], *text;
	int r = dirfd < 0 ? 0 : read_list(vm->name, dirfd, &l, err), i = volume_find(l.v, l.n, guest);

	if (r < 0)
		return r;
	if (i < 0)
		return volume_fail_none(vm->name, "traces of", guest, err);
	snprintf(name, sizeof name, "volume-%u.trace", l.v[i].number);
	r = fcvm_file_read(dirfd, name, TRACES_MAX, &new, &nnew);
	if (r < 0)
		return fcvm_fail_errno(err, r, "%s: traces of %.200s: read %s", vm->name, guest, name);
	snprintf(name, sizeof name, "volume-%u.trace.1", l.v[i].number);
	fcvm_file_read(dirfd, name, TRACES_MAX, &old, &nold);
	text = malloc(nold + nnew + 1);
	if (!text)
		return fcvm_fail_errno(err, -ENOMEM, "%s: traces of %.200s", vm->name, guest);
	if (nold)
		memcpy(text, old, nold);
	memcpy(text + nold, new, nnew + 1);
	*ret_text = text;
	*ret_size = nold + nnew;
	return 0;
}
