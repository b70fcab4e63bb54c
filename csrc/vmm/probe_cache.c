/* SPDX-License-Identifier: MIT */
/*
 * What a probe found, kept in the run folder: asking a VMM and timing KVM takes a quarter of a second, which is half of
 * what a quick start takes. It holds as long as all that it was found by stays what it was: the boot, the
 * files (their inodes), and whether this user may open /dev/kvm.
 */
#include "vmm/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "store/store.h"

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

char *fcvm_probe_find_program(const char *name)
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

char *fcvm_probe_unpacked(const char *folder, const char *program)
{
	const char *data = getenv("FCVM_DATA"), *home = getenv("HOME"), *xdg = getenv("XDG_DATA_HOME");

	if (data && *data)
		return fcvm_asprintf("%s/%s/bin/%s", data, folder, program);
	if (xdg && *xdg)
		return fcvm_asprintf("%s/fcvm/%s/bin/%s", xdg, folder, program);
	return home && *home ? fcvm_asprintf("%s/.local/share/fcvm/%s/bin/%s", home, folder, program) : strdup("");
}

int fcvm_probe_key(char ret[static 17], const char *binary, const char *file, const char *what)
{
	_cleanup_free_ char *path = fcvm_probe_find_program(binary);
	_cleanup_free_ char *program = path ? state_of(path) : NULL;
	_cleanup_free_ char *other = state_of(file ? file : "/");
	_cleanup_free_ char *boot = NULL;
	_cleanup_close_ int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	char kvm_state[32];

	snprintf(kvm_state, sizeof kvm_state, "kvm %d", kvm < 0 ? errno : 0);
	if (!program || !other)
		return -ENOMEM;
	if (fcvm_file_read(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 100, &boot, NULL) < 0)
		return -ENOENT;
	fcvm_hash_strings(ret, FCVM_VERSION, what, boot, program, file ? other : "", kvm_state, NULL);
	return 0;
}

bool fcvm_probe_cache_read(const char *cache, const char *key, struct vmm_probe *p)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	_cleanup_free_ char *text = NULL;
	struct vmm_probe q = {0};
	size_t size;

	if (!cache || fcvm_file_read(AT_FDCWD, cache, CACHE_MAX, &text, &size) < 0)
		return false;
	if (fcvm_json_parse(text, size, &j, NULL) < 0 || strcmp(fcvm_json_string(j, "key", ""), key) != 0)
		return false;
	q.binary = strdup(fcvm_json_string(j, "binary", ""));
	q.version = strdup(fcvm_json_string(j, "version", ""));
	q.accel = strdup(fcvm_json_string(j, "accel", ""));
	q.why = strdup(fcvm_json_string(j, "why", ""));
	q.machine = strdup(fcvm_json_string(j, "machine", ""));
	q.tsc_khz = fcvm_json_int(j, "tsc_khz", 0);
	q.own = fcvm_json_take(j, "own");
	if (q.binary && q.version && q.accel && q.why && q.machine) {
		fcvm_vmm_probe_done(p);
		*p = q;
		return true;
	}
	fcvm_vmm_probe_done(&q);
	return false;
}

void fcvm_probe_cache_write(const char *cache, const char *key, const struct vmm_probe *p)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = fcvm_json_object();
	_cleanup_free_ char *text = NULL;

	if (!cache || !j)
		return;
	fcvm_json_set_string(j, "key", key);
	fcvm_json_set_string(j, "binary", p->binary);
	fcvm_json_set_string(j, "version", p->version);
	fcvm_json_set_string(j, "accel", p->accel);
	fcvm_json_set_string(j, "why", p->why);
	fcvm_json_set_string(j, "machine", p->machine);
	fcvm_json_set_int(j, "tsc_khz", p->tsc_khz);
	if (p->own)
		fcvm_json_set(j, "own", fcvm_json_ref(p->own));
	text = fcvm_json_print(j, 2);
	if (text) /* what cannot be kept is found anew */
		fcvm_file_replace(AT_FDCWD, cache, text, strlen(text), 0600, false);
}
