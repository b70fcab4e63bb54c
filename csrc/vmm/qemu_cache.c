/* SPDX-License-Identifier: MIT */
/*
 * What a probe found, kept in the run folder: asking QEMU and timing KVM takes a quarter of a second, which is half of
 * what a quick start takes. It holds as long as all that it was found by stays what it was: the boot, the
 * binary and the library (their inodes), and whether this user may open /dev/kvm.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/json.h"
#include "store/store.h"
#include "vmm/qemu_private.h"

enum { CACHE_MAX = 16 * 1024 };

static char *state_of(const char *path)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return fcvm_asprintf("%s: %d", path, errno);
	return fcvm_asprintf("%s: %llu %llu %lld %lld.%09ld", path, (unsigned long long)st.st_dev,
		(unsigned long long)st.st_ino, (long long)st.st_size, (long long)st.st_mtim.tv_sec,
		st.st_mtim.tv_nsec);
}

/* Where PATH leads to; name itself if it is a path, or is nowhere. */
static char *resolve(const char *name)
{
	_cleanup_free_ char *path = strdup(getenv("PATH") ? getenv("PATH") : "");
	char *save = NULL;

	for (char *dir = path && !strchr(name, '/') ? strtok_r(path, ":", &save) : NULL; dir;
		dir = strtok_r(NULL, ":", &save)) {
		char *full = fcvm_asprintf("%s/%s", dir, name);

		if (full && access(full, X_OK) == 0)
			return full;
		free(full);
	}
	return strdup(name);
}

static int make_key(const struct vmm_probe *p, const char *want, char ret[static 17])
{
	_cleanup_free_ char *path = resolve(p->binary);
	_cleanup_free_ char *binary = path ? state_of(path) : NULL;
	_cleanup_free_ char *library = state_of(p->library);
	_cleanup_free_ char *boot = NULL;
	_cleanup_close_ int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	char kvm_state[32];

	snprintf(kvm_state, sizeof kvm_state, "kvm %d", kvm < 0 ? errno : 0);
	if (!binary || !library)
		return -ENOMEM;
	if (fcvm_file_read(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 100, &boot, NULL) < 0)
		return -ENOENT;
	fcvm_hash_strings(ret, FCVM_VERSION, QEMU_TCG_CPU, want ? want : "", boot, binary, library, kvm_state, NULL);
	return 0;
}

static int fill(struct vmm_probe *p, const struct fcvm_json *j)
{
	p->version = strdup(fcvm_json_string(j, "version", ""));
	p->accel = strdup(fcvm_json_string(j, "accel", ""));
	p->why = strdup(fcvm_json_string(j, "why", ""));
	p->machine = strdup(fcvm_json_string(j, "machine", ""));
	p->tsc_khz = fcvm_json_int(j, "tsc_khz", 0);
	p->file_uri = fcvm_json_bool(j, "file_uri", false);
	return p->version && p->accel && p->why && p->machine ? 0 : -ENOMEM;
}

bool fcvm_qemu_cache_read(const char *cache, const char *want, struct vmm_probe *p)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	_cleanup_free_ char *text = NULL;
	char key[17];
	size_t size;

	if (!cache || make_key(p, want, key) < 0 || fcvm_file_read(AT_FDCWD, cache, CACHE_MAX, &text, &size) < 0)
		return false;
	if (fcvm_json_parse(text, size, &j, NULL) < 0 || strcmp(fcvm_json_string(j, "key", ""), key) != 0)
		return false;
	if (fill(p, j) == 0)
		return true;
	free(p->version);
	free(p->accel);
	free(p->why);
	free(p->machine);
	p->version = p->accel = p->why = p->machine = NULL;
	return false;
}

void fcvm_qemu_cache_write(const char *cache, const char *want, const struct vmm_probe *p)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = fcvm_json_object();
	_cleanup_free_ char *text = NULL;
	char key[17];

	if (!cache || !j || make_key(p, want, key) < 0)
		return;
	fcvm_json_set_string(j, "key", key);
	fcvm_json_set_string(j, "version", p->version);
	fcvm_json_set_string(j, "accel", p->accel);
	fcvm_json_set_string(j, "why", p->why);
	fcvm_json_set_string(j, "machine", p->machine);
	fcvm_json_set_int(j, "tsc_khz", p->tsc_khz);
	fcvm_json_set_bool(j, "file_uri", p->file_uri);
	text = fcvm_json_print(j, 2);
	if (text) /* what cannot be kept is found anew */
		fcvm_file_replace(AT_FDCWD, cache, text, strlen(text), 0600, false);
}
