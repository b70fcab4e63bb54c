/* SPDX-License-Identifier: MIT */
/* What a caller wants of a volume: checked, copied, and what was left open decided. */
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "core/volume.h"

#define DEFAULT_TIMEOUT_S 1.0
#define MAX_TIMEOUT_S     1e9

enum { MAX_TRACE_RATE = 1000000000 };

static_assert((int)FCVM_MAX_VOLUMES == (int)FCVM_MANIFEST_VOLUMES, "what a VM may have goes into its snapshot");
static_assert((int)FCVM_MAX_IDS == (int)FCVM_MANIFEST_IDS, "and so do their maps");

void volumes_done(struct volumes *v)
{
	for (size_t i = 0; i < v->n; i++)
		fcvm_manifest_volume_done(&v->config[i]);
	v->n = 0;
}

size_t volumes_mounted(const struct volumes *v)
{
	return v->n && v->server[0].handle ? v->n : 0;
}

void volume_forget(struct volumes *v, size_t i)
{
	fcvm_manifest_volume_done(&v->config[i]);
	v->n--;
	memmove(&v->config[i], &v->config[i + 1], (v->n - i) * sizeof v->config[0]);
	memmove(&v->server[i], &v->server[i + 1], (v->n - i) * sizeof v->server[0]);
	v->server[v->n] = (struct volume_server){.handle = NULL};
}

int volume_find(const struct fcvm_manifest_volume *v, size_t n, const char *guest)
{
	_cleanup_free_ char *plain = fcvm_path_plain(guest);

	for (size_t i = 0; plain && i < n; i++)
		if (strcmp(v[i].guest, plain) == 0)
			return (int)i;
	return -1;
}

int volume_fail_none(const char *vm_name, const char *doing, const char *guest, struct fcvm_err *err)
{
	return fcvm_fail(err, -ENOENT, "%s: %s %.200s: no volume is mounted there; 'fcvm volumes %s' shows those that are",
		vm_name, doing, guest, vm_name);
}

static int check_guest(const struct volumes *to, const char *vm, const char *guest, char **ret, struct fcvm_err *err)
{
	char *plain = guest && *guest == '/' ? fcvm_path_plain(guest) : NULL;

	if (!plain || strlen(plain) >= PATH_MAX || strcmp(plain, "/") == 0 || strcmp(plain, VOLUME_ROOT) == 0) {
		free(plain);
		return fcvm_fail(err, -EINVAL, "%s: volume at '%.200s': want an absolute path in the guest without '..'%s", vm,
			guest ? guest : "", guest && strspn(guest, "/.") == strlen(guest) ? "; for '/' there is root" : "");
	}
	if (volume_find(to->config, to->n, plain) >= 0) {
		fcvm_fail(err, -EEXIST, "%s: volume at %s: there is one already; unmount that first", vm, plain);
		free(plain);
		return -EEXIST;
	}
	*ret = plain;
	return 0;
}

/* The folder that is meant, whatever happens to names and links later. */
static int check_host(const char *vm, const char *guest, const char *host, char **ret, struct fcvm_err *err)
{
	char *real = host && *host ? realpath(host, NULL) : NULL;
	struct stat st;
	int r = real ? 0 : host && *host ? -errno : -ENOENT;

	if (r == 0 && stat(real, &st) < 0)
		r = -errno;
	if (r == 0 && !S_ISDIR(st.st_mode))
		r = -ENOTDIR;
	if (r < 0) {
		free(real);
		return fcvm_fail_errno(err, r, "%s: volume at %s: folder '%.200s' of this host", vm, guest, host ? host : "");
	}
	*ret = real;
	return 0;
}

static int check_map(const char *vm, const char *guest, const struct fcvm_vm_ids *ids, size_t n,
	struct fcvm_manifest_ids **ret, struct fcvm_err *err)
{
	if (n && geteuid() != 0)
		return fcvm_fail(err, -EPERM, "%s: volume at %s: maps of ids are root's only: without, all is done as this user",
			vm, guest);
	if (n > FCVM_MANIFEST_IDS)
		return fcvm_fail(err, -EINVAL, "%s: volume at %s: %zu ranges of ids: at most %d there may be", vm, guest, n,
			(int)FCVM_MANIFEST_IDS);
	*ret = n ? calloc(n, sizeof **ret) : NULL;
	if (n && !*ret)
		return fcvm_fail_errno(err, -ENOMEM, "%s: volume at %s", vm, guest);
	for (size_t i = 0; i < n; i++) {
		if (!ids[i].count || ids[i].count > UINT32_MAX - ids[i].guest || ids[i].count > UINT32_MAX - ids[i].host)
			return fcvm_fail(err, -EINVAL, "%s: volume at %s: range %zu of ids, %u from %u as %u: no such ids", vm, guest,
				i + 1, ids[i].count, ids[i].guest, ids[i].host);
		(*ret)[i] = (struct fcvm_manifest_ids){ids[i].guest, ids[i].host, ids[i].count};
	}
	return 0;
}

/* The variable's number, if it is set. */
static int number_of(const char *name, unsigned min, unsigned max, const char *vm, const char *guest, unsigned *ret,
	struct fcvm_err *err)
{
	const char *env = getenv(name);
	unsigned long n;
	char *end;

	if (!env || !*env)
		return 0;
	errno = 0;
	n = strtoul(env, &end, 10);
	if (*env < '0' || *env > '9' || *end || errno || n < min || n > max)
		return fcvm_fail(err, -EINVAL, "%s: volume at %s: %s is '%.40s': want %u to %u", vm, guest, name, env, min, max);
	*ret = (unsigned)n;
	return 0;
}

static int choose_readers(const char *vm, const char *guest, unsigned wanted, unsigned *ret, struct fcvm_err *err)
{
	if (wanted > FCVM_MANIFEST_READERS)
		return fcvm_fail(err, -EINVAL, "%s: volume at %s: %u readers: want 1 to %d", vm, guest, wanted,
			(int)FCVM_MANIFEST_READERS);
	*ret = wanted ? wanted : 1;
	return wanted ? 0 : number_of("FCVM_FUSE_READERS", 1, FCVM_MANIFEST_READERS, vm, guest, ret, err);
}

int volume_trace_rate(const char *vm_name, const char *guest, unsigned *ret, struct fcvm_err *err)
{
	*ret = 0;
	return number_of("FCVM_FUSE_TRACE_RATE", 0, MAX_TRACE_RATE, vm_name, guest, ret, err);
}

/* Whether a snapshot and vm.json can tell of it. */
static int check_text(const char *vm, const struct fcvm_manifest_volume *c, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *array = fcvm_json_array();
	struct fcvm_json *j = array ? fcvm_manifest_volume_json(c) : NULL;
	struct fcvm_manifest_volume *again = NULL;
	size_t n = 0;
	int r;

	if (!j)
		return fcvm_fail(err, -EINVAL, "%s: volume at %.200s: its paths are not UTF-8", vm, c->guest);
	fcvm_json_append(array, j);
	r = fcvm_manifest_volumes_parse(array, &again, &n, err);
	if (r < 0)
		return fcvm_fail_prefix(err, "%s: volume of folder '%.200s'", vm, c->host);
	fcvm_manifest_volume_done(again);
	free(again);
	return 0;
}

static unsigned free_number(const struct volumes *v)
{
	uint32_t taken = 0;

	for (size_t i = 0; i < v->n; i++)
		taken |= 1u << v->config[i].number;
	return (unsigned)__builtin_ctz(~taken);
}

static int add(struct volumes *to, const char *vm, struct fcvm_manifest_volume *c, struct fcvm_err *err)
{
	unsigned rate;
	int r;

	if (to->n == FCVM_MAX_VOLUMES)
		return fcvm_fail(err, -ENOSPC, "%s: volume at %s: a VM may have %d volumes", vm, c->guest, (int)FCVM_MAX_VOLUMES);
	c->number = free_number(to);
	r = volume_trace_rate(vm, c->guest, &rate, err);
	if (r == 0)
		r = check_text(vm, c, err);
	if (r < 0)
		return r;
	to->config[to->n] = *c;
	to->server[to->n] = (struct volume_server){.handle = NULL};
	to->n++;
	return 0;
}

static int fill(struct volumes *to, const char *vm, const struct fcvm_vm_volume *v, struct fcvm_manifest_volume *c,
	struct fcvm_err *err)
{
	int r = check_guest(to, vm, v->guest, &c->guest, err);

	if (r == 0)
		r = check_host(vm, c->guest, v->host, &c->host, err);
	if (r == 0 && v->devices && geteuid() != 0)
		r = fcvm_fail(err, -EPERM, "%s: volume at %s: devices are made by root only", vm, c->guest);
	if (r == 0 && !(c->timeout_s <= MAX_TIMEOUT_S))
		r = fcvm_fail(err, -EINVAL, "%s: volume at %s: timeout of %g s: want 0 to %g", vm, c->guest, v->timeout_s,
			MAX_TIMEOUT_S);
	if (r == 0)
		r = check_map(vm, c->guest, v->uid_map, v->nuid_map, &c->uids, err);
	if (r == 0)
		r = check_map(vm, c->guest, v->gid_map, v->ngid_map, &c->gids, err);
	if (r == 0)
		r = choose_readers(vm, c->guest, v->readers, &c->readers, err);
	return r == 0 ? add(to, vm, c, err) : r;
}

int volume_configure(struct volumes *to, const char *vm_name, const struct fcvm_vm_volume *v, struct fcvm_err *err)
{
	struct fcvm_manifest_volume c = {
		.readonly = v->readonly,
		.devices = v->devices,
		.local_locks = v->local_locks,
		.timeout_s = v->timeout_s < 0 ? DEFAULT_TIMEOUT_S : v->timeout_s,
		.nuids = v->nuid_map,
		.ngids = v->ngid_map,
	};
	int r = fill(to, vm_name, v, &c, err);

	if (r < 0)
		fcvm_manifest_volume_done(&c);
	return r;
}

int volume_configure_root(struct volumes *to, const char *vm_name, const char *folder, struct fcvm_err *err)
{
	struct fcvm_manifest_volume c = {.readonly = true, .root = true, .timeout_s = DEFAULT_TIMEOUT_S, .guest = strdup("/")};
	int r = c.guest ? check_host(vm_name, "/", folder, &c.host, err) : fcvm_fail_errno(err, -ENOMEM, "%s", vm_name);

	if (r == 0)
		r = choose_readers(vm_name, "/", 0, &c.readers, err);
	if (r == 0)
		r = add(to, vm_name, &c, err);
	if (r < 0)
		fcvm_manifest_volume_done(&c);
	return r;
}

int volumes_copy(struct volumes *to, const struct fcvm_manifest_volume *from, size_t n, const char *vm_name,
	struct fcvm_err *err)
{
	for (size_t i = 0; i < n; i++) {
		struct stat st;

		if (stat(from[i].host, &st) < 0 || !S_ISDIR(st.st_mode))
			return fcvm_fail(err, -ENOENT, "%s: its snapshot has a volume at %s, of folder %s of this host, which is gone: "
				"put it back, or take the snapshot anew without it", vm_name, from[i].guest, from[i].host);
		if (fcvm_manifest_volume_copy(&to->config[i], &from[i]) < 0)
			return fcvm_fail_errno(err, -ENOMEM, "%s", vm_name);
		to->n++;
	}
	return 0;
}
