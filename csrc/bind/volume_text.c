/* SPDX-License-Identifier: MIT */
#include "bind/volume_text.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fail.h"

int fcvm_volume_host(char ret[static PATH_MAX], const char *path)
{
	char here[PATH_MAX] = "";
	int n;

	if (realpath(path, ret))
		return 0;
	/* It is not there, or not to be reached: who mounts it says so, of the place where it was looked for. */
	if (*path != '/' && !getcwd(here, sizeof here))
		return -errno;
	n = snprintf(ret, PATH_MAX, "%s%s%s", here, *path == '/' ? "" : "/", path);
	return n < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static bool parse_unsigned(const char *text, unsigned long most, uint32_t *ret, const char **end)
{
	char *stop;
	unsigned long n;

	errno = 0;
	n = strtoul(text, &stop, 10);
	if (*text < '0' || *text > '9' || errno || n > most)
		return false;
	*ret = (uint32_t)n;
	*end = stop;
	return true;
}

static_assert(FCVM_MAX_IDS == 340, "as it is told below");

/* GUEST:HOST:COUNT. NULL, or what is wanted instead. */
static const char *parse_ids(const char *text, struct fcvm_vm_ids *ids, size_t *n)
{
	struct fcvm_vm_ids *to = &ids[*n];

	if (*n == FCVM_MAX_IDS)
		return "a map has at most 340 ranges";
	if (!parse_unsigned(text, UINT32_MAX, &to->guest, &text) || *text++ != ':' ||
		!parse_unsigned(text, UINT32_MAX, &to->host, &text) || *text++ != ':' ||
		!parse_unsigned(text, UINT32_MAX, &to->count, &text) || *text || !to->count)
		return "a map wants GUEST:HOST:COUNT, such as 0:1000:1";
	++*n;
	return NULL;
}

static bool parse_readers(const char *text, unsigned *ret)
{
	uint32_t n;

	if (!parse_unsigned(text, 256, &n, &text) || *text || n == 0)
		return false;
	*ret = n;
	return true;
}

static bool parse_timeout(const char *text, double *ret)
{
	char *end;
	double s;

	errno = 0;
	s = strtod(text, &end);
	if (*text < '0' || *text > '9' || errno || *end || !(s <= 1e9) || strpbrk(text, "xX"))
		return false;
	*ret = s;
	return true;
}

static bool parse_locks(const char *text, bool *ret)
{
	*ret = strcmp(text, "guest") == 0;
	return *ret || strcmp(text, "host") == 0;
}

/* One option. NULL, or what is wanted instead. */
static const char *parse_option(struct fcvm_volume_text *t, const char *name, const char *value)
{
	struct fcvm_vm_volume *v = &t->volume;

	if (!value) {
		if (strcmp(name, "ro") == 0 || strcmp(name, "rw") == 0)
			v->readonly = name[1] == 'o';
		else if (strcmp(name, "devices") == 0)
			v->devices = true;
		else
			return "there are ro, rw, devices, locks=, readers=, timeout=, uid_map= and gid_map=";
		return NULL;
	}
	if (strcmp(name, "locks") == 0)
		return parse_locks(value, &v->local_locks) ? NULL : "locks=host or locks=guest is wanted";
	if (strcmp(name, "readers") == 0)
		return parse_readers(value, &v->readers) ? NULL : "readers= wants a number from 1 to 256";
	if (strcmp(name, "timeout") == 0)
		return parse_timeout(value, &v->timeout_s) ? NULL : "timeout= wants seconds, such as 0.5";
	if (strcmp(name, "uid_map") == 0)
		return parse_ids(value, t->uid_map, &v->nuid_map);
	if (strcmp(name, "gid_map") == 0)
		return parse_ids(value, t->gid_map, &v->ngid_map);
	return "there are ro, rw, devices, locks=, readers=, timeout=, uid_map= and gid_map=";
}

static int parse_options(struct fcvm_volume_text *t, const char *text, const char *options, struct fcvm_err *err)
{
	while (options) {
		size_t n = strcspn(options, ",");
		char option[96], *value;
		const char *wanted;

		if (n >= sizeof option)
			return fcvm_fail(err, -EINVAL, "volume '%.200s': no option is that long", text);
		memcpy(option, options, n);
		option[n] = 0;
		value = strchr(option, '=');
		if (value)
			*value++ = 0;
		wanted = parse_option(t, option, value);
		if (wanted)
			return fcvm_fail(err, -EINVAL, "volume '%.200s': option '%.*s': %s", text, (int)n, options, wanted);
		options = options[n] ? options + n + 1 : NULL;
	}
	return 0;
}

int fcvm_volume_parse(struct fcvm_volume_text *ret, const char *text, struct fcvm_err *err)
{
	const char *colon = strstr(text, ":/"), *options;
	char host[PATH_MAX];
	size_t size;

	*ret = (struct fcvm_volume_text){.volume = FCVM_VM_VOLUME_INIT};
	if (!colon || colon == text)
		return fcvm_fail(err, -EINVAL,
			"volume '%s': HOST:GUEST[:ro] is wanted, a folder here and an absolute path in the guest: src:/work", text);
	size = strcspn(colon + 1, ":");
	options = colon[1 + size] ? colon + 1 + size + 1 : NULL;
	if ((size_t)(colon - text) >= sizeof host || size >= sizeof ret->guest)
		return fcvm_fail(err, -EINVAL, "volume '%.60s...': a path is too long", text);
	memcpy(host, text, (size_t)(colon - text));
	host[colon - text] = 0;
	memcpy(ret->guest, colon + 1, size);
	ret->guest[size] = 0;
	if (fcvm_volume_host(ret->host, host) < 0)
		return fcvm_fail(err, -EINVAL, "volume '%.60s': there is no such path here", text);
	ret->volume.host = ret->host;
	ret->volume.guest = ret->guest;
	ret->volume.uid_map = ret->uid_map;
	ret->volume.gid_map = ret->gid_map;
	return parse_options(ret, text, options, err);
}
