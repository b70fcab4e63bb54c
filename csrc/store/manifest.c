/* SPDX-License-Identifier: MIT */
/*
 * manifest.json, format 3: an object of the members of struct fcvm_manifest, `format`, and
 *
 *   "volumes": [what fcvm_manifest_volume_json() says of each]
 *   "files": {"memory": {"size": N, "hash": "32 hexadecimal digits"}, "state": {...}, "volume-0.state": {...}}
 *                            hash "": not taken
 *   "hash": "32 hexadecimal digits"   the last member, on a line of its own: XXH3-128 of all the bytes before it
 *
 * The hashes find damage (a full disk, a torn copy), not malice.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "store/store_private.h"

enum { FORMAT = 3, TEXT_MAX = 4096, INDENT = 2 };

static const char hash_before[] = "  \"hash\": \"", hash_after[] = "\"\n}\n";
enum { HASH_LINE = sizeof hash_before - 1 + STORE_HASH - 1 + sizeof hash_after - 1 };

unsigned store_files(const struct fcvm_manifest *m)
{
	return STORE_FILE_VOLUMES + (unsigned)m->nvolumes;
}

void store_file_name(const struct fcvm_manifest *m, unsigned i, char to[static STORE_FILE_NAME])
{
	if (i < STORE_FILE_VOLUMES)
		snprintf(to, STORE_FILE_NAME, "%s", i == STORE_FILE_MEMORY ? "memory" : "state");
	else
		snprintf(to, STORE_FILE_NAME, "volume-%u.state", m->volumes[i - STORE_FILE_VOLUMES].number);
}

static const struct {
	const char *name;
	size_t offset;
	bool must; /* not be empty */
} strings[] = {
	{"driver", offsetof(struct fcvm_manifest, driver), true},
	{"version", offsetof(struct fcvm_manifest, version), true},
	{"accel", offsetof(struct fcvm_manifest, accel), false},
	{"machine", offsetof(struct fcvm_manifest, machine), false},
	{"image", offsetof(struct fcvm_manifest, image), false},
	{"kernel", offsetof(struct fcvm_manifest, kernel), false},
	{"agent", offsetof(struct fcvm_manifest, agent), false},
	{"vm_name", offsetof(struct fcvm_manifest, vm_name), false},
	{"host_cpu", offsetof(struct fcvm_manifest, host_cpu), false},
};
enum { STRINGS = sizeof strings / sizeof *strings };

static const struct {
	const char *name;
	int64_t least, most;
} numbers[] = {
	{"memory", 1 << 20, INT64_C(1) << 46},
	{"vcpus", 1, 1024},
	{"generation", 0, INT64_MAX},
	{"created_ns", 0, INT64_MAX},
	{"tsc_khz", 0, 100000000},
	{"nested", 0, 1},
	{"balloon", 0, 1},
	{"jail", 0, 1},
};
enum { MEMORY, VCPUS, GENERATION, CREATED, TSC, NESTED, BALLOON, JAIL, NUMBERS };

static char **string_of(struct fcvm_manifest *m, unsigned i)
{
	return (char **)((char *)m + strings[i].offset);
}

static const char *const_string_of(const struct fcvm_manifest *m, unsigned i)
{
	const char *s = *string_of((struct fcvm_manifest *)m, i);

	return s ? s : "";
}

void fcvm_manifest_done(struct fcvm_manifest *m)
{
	for (unsigned i = 0; i < STRINGS; i++)
		free(*string_of(m, i));
	for (size_t i = 0; i < m->nvolumes; i++)
		fcvm_manifest_volume_done(&m->volumes[i]);
	free(m->volumes);
	memset(m, 0, sizeof *m);
}

/* ---- parsing ---- */

static int parse_strings(const struct fcvm_json *j, struct fcvm_manifest *m, struct fcvm_err *err)
{
	for (unsigned i = 0; i < STRINGS; i++) {
		const char *s = fcvm_json_string(j, strings[i].name, NULL);

		if (!s || strlen(s) > TEXT_MAX)
			return fcvm_fail(err, -EINVAL, "manifest.json: \"%s\" is missing, no text or too long",
				strings[i].name);
		if (strings[i].must && !*s)
			return fcvm_fail(err, -EINVAL, "manifest.json: \"%s\" is empty", strings[i].name);
		for (const char *c = s; *c; c++)
			if ((unsigned char)*c < ' ' || *c == 127) /* it will be shown on a terminal */
				return fcvm_fail(err, -EINVAL, "manifest.json: \"%s\" has a control character",
					strings[i].name);
		*string_of(m, i) = strdup(s);
		if (!*string_of(m, i))
			return fcvm_fail_errno(err, -ENOMEM, "manifest.json");
	}
	return 0;
}

static int parse_numbers(const struct fcvm_json *j, struct fcvm_manifest *m, struct fcvm_err *err)
{
	int64_t n[NUMBERS];

	for (unsigned i = 0; i < NUMBERS; i++) {
		n[i] = fcvm_json_int(j, numbers[i].name, INT64_MIN);
		if (n[i] < numbers[i].least || n[i] > numbers[i].most)
			return fcvm_fail(err, -EINVAL,
				"manifest.json: \"%s\" is missing or no whole number from %" PRId64 " to %" PRId64,
				numbers[i].name, numbers[i].least, numbers[i].most);
	}
	m->memory = n[MEMORY];
	m->vcpus = (unsigned)n[VCPUS];
	m->generation = n[GENERATION];
	m->created_ns = n[CREATED];
	m->tsc_khz = n[TSC];
	m->nested = n[NESTED];
	m->balloon = n[BALLOON];
	m->jail = n[JAIL];
	return 0;
}

static bool is_hash(const char *s, size_t size)
{
	return size == STORE_HASH - 1 && strspn(s, "0123456789abcdef") >= size;
}

static int parse_volumes(const struct fcvm_json *j, struct fcvm_manifest *m, struct fcvm_err *err)
{
	const struct fcvm_json *list = fcvm_json_get(j, "volumes");
	int r = list ? fcvm_manifest_volumes_parse(list, &m->volumes, &m->nvolumes, err)
		     : fcvm_fail(err, -EINVAL, "\"volumes\" is missing");

	if (r < 0)
		fcvm_fail_prefix(err, "manifest.json");
	return r;
}

static int parse_files(const struct fcvm_json *j, const struct fcvm_manifest *m,
	struct store_file files[static STORE_FILES], struct fcvm_err *err)
{
	const struct fcvm_json *list = fcvm_json_get(j, "files");

	for (unsigned i = 0; i < store_files(m); i++) {
		char name[STORE_FILE_NAME];
		const struct fcvm_json *file = (store_file_name(m, i, name), fcvm_json_get(list, name));
		int64_t size = fcvm_json_int(file, "size", -1);
		const char *hash = fcvm_json_string(file, "hash", NULL);

		if (size < 0)
			return fcvm_fail(err, -EINVAL, "manifest.json: \"files\" has no size of \"%s\"", name);
		if (!hash || (*hash && !is_hash(hash, strlen(hash))))
			return fcvm_fail(err, -EINVAL,
				"manifest.json: \"files\": the hash of \"%s\" is missing or no 32 hexadecimal digits",
				name);
		files[i].size = size;
		snprintf(files[i].hash, STORE_HASH, "%s", hash);
	}
	return 0;
}

int fcvm_manifest_parse(const char *text, size_t size, struct fcvm_manifest *ret, struct fcvm_json **ret_json,
	struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	struct store_file files[STORE_FILES];
	struct fcvm_manifest m = {.memory = 0};
	int64_t format;
	int r;

	if (size > STORE_MANIFEST_MAX)
		return fcvm_fail(err, -EINVAL, "manifest.json: larger than 1 MiB");
	r = fcvm_json_parse(text, size, &j, err);
	if (r < 0) {
		fcvm_fail_prefix(err, "manifest.json");
		if (r == -EBADMSG && err)
			err->code = EINVAL;
		return r == -EBADMSG ? -EINVAL : r;
	}
	format = fcvm_json_int(j, "format", -1);
	if (format != FORMAT)
		return fcvm_fail(err, -EINVAL,
			format > FORMAT ? "manifest.json: format %" PRId64 " is newer than what this fcvm knows (%d)"
					: "manifest.json: \"format\" is missing or unknown (%" PRId64 ", known: %d)",
			format, (int)FORMAT);
	r = parse_strings(j, &m, err);
	if (r == 0)
		r = parse_numbers(j, &m, err);
	if (r == 0)
		r = parse_volumes(j, &m, err);
	if (r == 0)
		r = parse_files(j, &m, files, err);
	if (r < 0) {
		fcvm_manifest_done(&m);
		return r;
	}
	*ret = m;
	if (ret_json)
		*ret_json = fcvm_steal_ptr(j);
	return 0;
}

int fcvm_manifest_fits(const struct fcvm_manifest *m, const char *snapshot, const struct fcvm_manifest_differs *here,
	struct fcvm_err *err)
{
	const struct {
		const char *what, *then, *now;
	} pairs[] = {
		{"the driver", m->driver, here->driver},
		{m->driver, m->version, here->version},
		{"accelerator", m->accel, here->accel},
		{"machine", m->machine, here->machine},
		{"the processor", m->host_cpu, here->host_cpu},
	};

	for (unsigned i = 0; i < sizeof pairs / sizeof *pairs; i++)
		if (pairs[i].now && strcmp(pairs[i].then, pairs[i].now) != 0)
			return fcvm_fail(err, -EINVAL,
				"snapshot %s was taken with %s %s, here is %s; take it anew on this machine, or use it where "
				"it was taken",
				snapshot, pairs[i].what, *pairs[i].then ? pairs[i].then : "(none)",
				*pairs[i].now ? pairs[i].now : "(none)");
	/* The guest was told a frequency that its clock goes by. What is measured differs by less than this. */
	if (m->tsc_khz && here->tsc_khz &&
		llabs((long long)m->tsc_khz - (long long)here->tsc_khz) > (long long)m->tsc_khz / 500)
		return fcvm_fail(err, -EINVAL,
			"snapshot %s was taken where the TSC runs at %" PRIu64 " kHz, here it is %" PRIu64
			" kHz; take it anew on this machine, or use it where it was taken",
			snapshot, m->tsc_khz, here->tsc_khz);
	return 0;
}

/* ---- writing ---- */

static struct fcvm_json *build_volumes(const struct fcvm_manifest *m)
{
	struct fcvm_json *list = fcvm_json_array();

	for (size_t i = 0; list && i < m->nvolumes; i++) {
		struct fcvm_json *v = fcvm_manifest_volume_json(&m->volumes[i]);

		if (!v || fcvm_json_append(list, v) < 0) {
			fcvm_json_free(list);
			list = NULL;
		}
	}
	return list;
}

static struct fcvm_json *build_files(const struct fcvm_manifest *m, const struct store_file files[static STORE_FILES])
{
	struct fcvm_json *list = fcvm_json_object();
	char name[STORE_FILE_NAME];

	for (unsigned i = 0; list && i < store_files(m); i++) {
		struct fcvm_json *file = fcvm_json_object();

		if (fcvm_json_set_int(file, "size", (int64_t)files[i].size) < 0 ||
			fcvm_json_set_string(file, "hash", files[i].hash) < 0) {
			fcvm_json_free(file);
			file = NULL;
		}
		store_file_name(m, i, name);
		if (!file || fcvm_json_set(list, name, file) < 0) {
			fcvm_json_free(list);
			list = NULL;
		}
	}
	return list;
}

/* All but the last member, up to and with the comma and newline before it; NULL: err is set. */
static char *build(const struct fcvm_manifest *m, const struct store_file files[static STORE_FILES],
	struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = fcvm_json_object();
	struct fcvm_json *list;
	const int64_t n[NUMBERS] = {
		(int64_t)m->memory, m->vcpus, (int64_t)m->generation, m->created_ns,
		(int64_t)m->tsc_khz, m->nested, m->balloon, m->jail};
	char *text, *end;
	int r = fcvm_json_set_int(j, "format", FORMAT);

	for (unsigned i = 0; r == 0 && i < STRINGS; i++) {
		r = fcvm_json_set_string(j, strings[i].name, const_string_of(m, i));
		if (r < 0)
			fcvm_fail_errno(err, r, "manifest.json: \"%s\"", strings[i].name);
	}
	for (unsigned i = 0; r == 0 && i < NUMBERS; i++)
		r = fcvm_json_set_int(j, numbers[i].name, n[i]);
	list = r == 0 ? build_volumes(m) : NULL;
	list = list && fcvm_json_set(j, "volumes", list) == 0 ? build_files(m, files) : NULL;
	if (!list || fcvm_json_set(j, "files", list) < 0 || !(text = fcvm_json_print(j, INDENT))) {
		if (r == 0)
			fcvm_fail_errno(err, -ENOMEM, "manifest.json");
		return NULL;
	}
	/* "...}\n}" -> "...},\n" */
	end = strrchr(text, '}');
	strcpy(end - 1, ",\n");
	return text;
}

int store_manifest_put(int dirfd, const struct fcvm_manifest *m, const struct store_file files[static STORE_FILES],
	bool sync, struct fcvm_err *err)
{
	_cleanup_free_ char *body = build(m, files, err);
	_cleanup_free_ char *text = NULL;
	_cleanup_(fcvm_manifest_done) struct fcvm_manifest again = {.memory = 0};
	char hash[STORE_HASH];
	int r;

	if (!body)
		return err ? -err->code : -EINVAL;
	store_hash_bytes(hash, body, strlen(body));
	text = fcvm_asprintf("%s%s%s%s", body, hash_before, hash, hash_after);
	if (!text)
		return fcvm_fail_errno(err, -ENOMEM, "manifest.json");
	/* What could not be read again is not to be written. */
	r = fcvm_manifest_parse(text, strlen(text), &again, NULL, err);
	if (r < 0)
		return r;
	r = fcvm_file_replace(dirfd, "manifest.json", text, strlen(text), 0600, sync);
	return r < 0 ? fcvm_fail_errno(err, r, "write manifest.json") : 0;
}

static int hash_of(int dirfd, const char *name, bool hash, struct store_file *ret, struct fcvm_err *err)
{
	_cleanup_close_ int fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat st;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0)
		return fcvm_fail_errno(err, -errno, "open %s", name);
	if (!S_ISREG(st.st_mode))
		return fcvm_fail(err, -EINVAL, "%s is no regular file", name);
	ret->size = st.st_size;
	r = hash ? store_hash_file(fd, -1, ret->hash) : 0;
	return r < 0 ? fcvm_fail_errno(err, r, "read %s", name) : 0;
}

int fcvm_manifest_write(const char *dir, const struct fcvm_manifest *m, bool full, struct fcvm_err *err)
{
	_cleanup_close_ int fd = store_open_dir(AT_FDCWD, dir);
	struct store_file files[STORE_FILES] = {{.size = 0}};
	int r = fd;

	if (fd < 0)
		return fcvm_fail_errno(err, fd, "open %s", dir);
	r = 0;
	for (unsigned i = 0; r == 0 && i < store_files(m); i++) {
		char name[STORE_FILE_NAME];

		store_file_name(m, i, name);
		r = hash_of(fd, name, full || i != STORE_FILE_MEMORY, &files[i], err);
	}
	if (r == 0)
		r = store_manifest_put(fd, m, files, full, err);
	if (r < 0)
		fcvm_fail_prefix(err, "snapshot in %s", dir);
	return r;
}

/* ---- reading ---- */

static int check_own_hash(const char *text, size_t size, struct fcvm_err *err)
{
	const char *line = size < HASH_LINE ? NULL : text + size - HASH_LINE;
	const char *hash = line ? line + sizeof hash_before - 1 : NULL;
	char real[STORE_HASH];

	if (!line || memcmp(line, hash_before, sizeof hash_before - 1) != 0 || !is_hash(hash, STORE_HASH - 1) ||
		memcmp(hash + STORE_HASH - 1, hash_after, sizeof hash_after - 1) != 0)
		return fcvm_fail(err, -EINVAL, "manifest.json does not end with its hash");
	store_hash_bytes(real, text, size - HASH_LINE);
	if (memcmp(real, hash, STORE_HASH - 1) != 0)
		return fcvm_fail(err, -EINVAL, "manifest.json was changed: its hash is %s, it says %.32s", real, hash);
	return 0;
}

static int check_file(int dirfd, const char *name, const struct store_file *want, struct fcvm_err *err)
{
	struct store_file have = {.size = 0};
	int r = hash_of(dirfd, name, false, &have, err);

	if (r == -ENOENT)
		return fcvm_fail(err, -EINVAL, "%s is missing", name);
	if (r == -ELOOP)
		return fcvm_fail(err, -EINVAL, "%s is a symbolic link", name);
	if (r < 0)
		return r;
	if (have.size != want->size)
		return fcvm_fail(err, -EINVAL, "%s has %" PRIu64 " bytes, had %" PRIu64, name, have.size, want->size);
	if (!*want->hash)
		return 0;
	r = hash_of(dirfd, name, true, &have, err);
	if (r == 0 && strcmp(have.hash, want->hash) != 0)
		r = fcvm_fail(err, -EINVAL, "%s was changed: its hash is %s, was %s", name, have.hash, want->hash);
	return r;
}

static int read_and_check(int fd, struct fcvm_manifest *ret, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	_cleanup_free_ char *text = NULL;
	struct store_file files[STORE_FILES];
	size_t size;
	int r = store_read_file(fd, "manifest.json", STORE_MANIFEST_MAX, &text, &size);

	if (r == -ENOENT)
		return fcvm_fail(err, -EINVAL, "manifest.json is missing");
	if (r == -ELOOP || r == -EINVAL || r == -EFBIG)
		return fcvm_fail(err, -EINVAL, "manifest.json is no regular file of at most 1 MiB");
	if (r < 0)
		return fcvm_fail_errno(err, r, "read manifest.json");
	r = fcvm_manifest_parse(text, size, ret, &j, err);
	if (r == 0)
		r = check_own_hash(text, size, err);
	if (r == 0)
		r = parse_files(j, ret, files, err);
	for (unsigned i = 0; r == 0 && i < store_files(ret); i++) {
		char name[STORE_FILE_NAME];

		store_file_name(ret, i, name);
		r = check_file(fd, name, &files[i], err);
	}
	return r;
}

int fcvm_manifest_read(const char *dir, const char *snapshot, struct fcvm_manifest *ret, struct fcvm_err *err)
{
	_cleanup_close_ int fd = store_open_dir(AT_FDCWD, dir);
	struct fcvm_manifest m = {.memory = 0};
	struct fcvm_err why = FCVM_ERR_INIT;
	int r;

	if (fd < 0)
		return fcvm_fail_errno(err, fd, "snapshot %s: open %s", snapshot, dir);
	r = read_and_check(fd, &m, &why);
	if (r < 0) {
		fcvm_manifest_done(&m);
		return r == -EINVAL ? fcvm_fail(err, r, "snapshot %s is damaged: %.1200s; remove it and take it anew",
					      snapshot, why.message)
				    : fcvm_fail(err, r, "snapshot %s: %.1200s", snapshot, why.message);
	}
	*ret = m;
	return 0;
}
