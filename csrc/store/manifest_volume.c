/* SPDX-License-Identifier: MIT */
/* What a manifest says of a VM's volumes; vm.json says it in the same words. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fail.h"
#include "store/store_private.h"

enum { PATH_BYTES = 4095 };
#define TIMEOUT_MAX 1e9

void fcvm_manifest_volume_done(struct fcvm_manifest_volume *v)
{
	free(v->host);
	free(v->guest);
	free(v->uids);
	free(v->gids);
	memset(v, 0, sizeof *v);
}

static struct fcvm_manifest_ids *copy_ids(const struct fcvm_manifest_ids *ids, size_t n)
{
	struct fcvm_manifest_ids *copy = n ? calloc(n, sizeof *copy) : NULL;

	if (copy)
		memcpy(copy, ids, n * sizeof *copy);
	return copy;
}

int fcvm_manifest_volume_copy(struct fcvm_manifest_volume *to, const struct fcvm_manifest_volume *from)
{
	struct fcvm_manifest_volume v = *from;

	v.host = strdup(from->host);
	v.guest = strdup(from->guest);
	v.uids = copy_ids(from->uids, from->nuids);
	v.gids = copy_ids(from->gids, from->ngids);
	if (!v.host || !v.guest || (v.nuids && !v.uids) || (v.ngids && !v.gids)) {
		fcvm_manifest_volume_done(&v);
		return -ENOMEM;
	}
	*to = v;
	return 0;
}

/* ---- writing ---- */

static int append_ids(struct fcvm_json *array, const struct fcvm_manifest_ids *ids)
{
	struct fcvm_json *j = fcvm_json_object();

	if (j && fcvm_json_set_int(j, "guest", ids->guest) == 0 && fcvm_json_set_int(j, "host", ids->host) == 0 &&
		fcvm_json_set_int(j, "count", ids->count) == 0)
		return fcvm_json_append(array, j);
	fcvm_json_free(j);
	return -ENOMEM;
}

static struct fcvm_json *map_json(const struct fcvm_manifest_ids *ids, size_t n)
{
	struct fcvm_json *array = fcvm_json_array();
	int r = array ? 0 : -ENOMEM;

	for (size_t i = 0; i < n && r == 0; i++)
		r = append_ids(array, &ids[i]);
	if (r == 0)
		return array;
	fcvm_json_free(array);
	return NULL;
}

struct fcvm_json *fcvm_manifest_volume_json(const struct fcvm_manifest_volume *v)
{
	struct fcvm_json *j = fcvm_json_object();

	if (j && fcvm_json_set_int(j, "number", v->number) == 0 && fcvm_json_set_string(j, "host", v->host) == 0 &&
		fcvm_json_set_string(j, "guest", v->guest) == 0 && fcvm_json_set_bool(j, "readonly", v->readonly) == 0 &&
		fcvm_json_set_bool(j, "devices", v->devices) == 0 &&
		fcvm_json_set_string(j, "locks", v->local_locks ? "guest" : "host") == 0 &&
		fcvm_json_set_int(j, "readers", v->readers) == 0 && fcvm_json_set_real(j, "timeout", v->timeout_s) == 0 &&
		fcvm_json_set_bool(j, "root", v->root) == 0 && fcvm_json_set_bool(j, "port", v->port) == 0 &&
		fcvm_json_set(j, "uid_map", map_json(v->uids, v->nuids)) == 0 &&
		fcvm_json_set(j, "gid_map", map_json(v->gids, v->ngids)) == 0)
		return j;
	fcvm_json_free(j);
	return NULL;
}

/* ---- parsing ---- */

/* An absolute path that can be shown on a terminal. */
static int parse_path(const struct fcvm_json *j, const char *name, char **ret, struct fcvm_err *err)
{
	const char *s = fcvm_json_string(j, name, "");

	if (*s != '/' || strlen(s) > PATH_BYTES)
		return fcvm_fail(err, -EINVAL, "\"%s\" is missing or no absolute path", name);
	for (const char *c = s; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 127)
			return fcvm_fail(err, -EINVAL, "\"%s\" has a control character", name);
	*ret = strdup(s);
	return *ret ? 0 : fcvm_fail_errno(err, -ENOMEM, "\"%s\"", name);
}

static int parse_map(const struct fcvm_json *j, const char *name, struct fcvm_manifest_ids **ret, size_t *ret_n,
	struct fcvm_err *err)
{
	const struct fcvm_json *array = fcvm_json_get(j, name);
	size_t n = fcvm_json_count(array);

	if (!array || n > FCVM_MANIFEST_IDS)
		return fcvm_fail(err, -EINVAL, "\"%s\" is missing or no list of at most %d ranges", name, (int)FCVM_MANIFEST_IDS);
	*ret = n ? calloc(n, sizeof **ret) : NULL;
	if (n && !*ret)
		return fcvm_fail_errno(err, -ENOMEM, "\"%s\"", name);
	for (size_t i = 0; i < n; i++) {
		const struct fcvm_json *ids = fcvm_json_at(array, i);
		int64_t guest = fcvm_json_int(ids, "guest", -1), host = fcvm_json_int(ids, "host", -1);
		int64_t count = fcvm_json_int(ids, "count", -1);

		if (guest < 0 || host < 0 || count < 1 || guest > UINT32_MAX || host > UINT32_MAX ||
			count > UINT32_MAX - guest || count > UINT32_MAX - host)
			return fcvm_fail(err, -EINVAL, "\"%s\": range %zu is none of user ids", name, i + 1);
		(*ret)[i] = (struct fcvm_manifest_ids){(uint32_t)guest, (uint32_t)host, (uint32_t)count};
	}
	*ret_n = n;
	return 0;
}

static int parse_one(const struct fcvm_json *j, struct fcvm_manifest_volume *v, struct fcvm_err *err)
{
	int64_t number = fcvm_json_int(j, "number", -1), readers = fcvm_json_int(j, "readers", -1);
	const char *locks = fcvm_json_string(j, "locks", "");
	int r;

	v->timeout_s = fcvm_json_real(j, "timeout", -1);
	if (number < 0 || number >= FCVM_MANIFEST_VOLUMES)
		return fcvm_fail(err, -EINVAL, "\"number\" is missing or none from 0 to %d", FCVM_MANIFEST_VOLUMES - 1);
	if (readers < 1 || readers > FCVM_MANIFEST_READERS)
		return fcvm_fail(err, -EINVAL, "\"readers\" is missing or none from 1 to %d", (int)FCVM_MANIFEST_READERS);
	if (!(v->timeout_s >= 0 && v->timeout_s <= TIMEOUT_MAX))
		return fcvm_fail(err, -EINVAL, "\"timeout\" is missing or no time");
	if (strcmp(locks, "host") != 0 && strcmp(locks, "guest") != 0)
		return fcvm_fail(err, -EINVAL, "\"locks\" is neither \"host\" nor \"guest\"");
	v->number = (unsigned)number;
	v->readers = (unsigned)readers;
	v->local_locks = *locks == 'g';
	v->readonly = fcvm_json_bool(j, "readonly", false);
	v->devices = fcvm_json_bool(j, "devices", false);
	v->root = fcvm_json_bool(j, "root", false);
	v->port = fcvm_json_bool(j, "port", false);
	r = parse_path(j, "host", &v->host, err);
	if (r == 0)
		r = parse_path(j, "guest", &v->guest, err);
	if (r == 0)
		r = parse_map(j, "uid_map", &v->uids, &v->nuids, err);
	return r == 0 ? parse_map(j, "gid_map", &v->gids, &v->ngids, err) : r;
}

int fcvm_manifest_volumes_parse(const struct fcvm_json *array, struct fcvm_manifest_volume **ret, size_t *ret_n,
	struct fcvm_err *err)
{
	size_t n = fcvm_json_count(array);
	struct fcvm_manifest_volume *v;
	uint32_t taken = 0;
	int r = 0;

	if (n > FCVM_MANIFEST_VOLUMES || (n && !fcvm_json_at(array, 0)))
		return fcvm_fail(err, -EINVAL, "\"volumes\" is no list of at most %d", (int)FCVM_MANIFEST_VOLUMES);
	v = n ? calloc(n, sizeof *v) : NULL;
	if (n && !v)
		return fcvm_fail_errno(err, -ENOMEM, "\"volumes\"");
	for (size_t i = 0; i < n && r == 0; i++) {
		r = parse_one(fcvm_json_at(array, i), &v[i], err);
		if (r == 0 && taken & 1u << v[i].number)
			r = fcvm_fail(err, -EINVAL, "its number is another's");
		if (r < 0)
			fcvm_fail_prefix(err, "\"volumes\": volume %zu", i + 1);
		else
			taken |= 1u << v[i].number;
	}
	if (r < 0) {
		for (size_t i = 0; i < n; i++)
			fcvm_manifest_volume_done(&v[i]);
		free(v);
		return r;
	}
	*ret = v;
	*ret_n = n;
	return 0;
}
