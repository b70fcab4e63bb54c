/* SPDX-License-Identifier: MIT */
/* Folders and files of the store (store_private.h). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <time.h>

#include "base/fail.h"
#include "base/fd.h"
#include "store/store_private.h"

int store_read_file(int dirfd, const char *name, size_t max, char **ret, size_t *ret_size)
{
	/* O_NONBLOCK: a FIFO must not hang us. */
	_cleanup_close_ int fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	_cleanup_free_ char *data = NULL;
	struct stat st;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	if ((uint64_t)st.st_size > max)
		return -EFBIG;
	data = malloc(st.st_size + 1);
	if (!data)
		return -ENOMEM;
	r = fcvm_fd_read_full(fd, data, st.st_size);
	if (r < 0)
		return r;
	data[st.st_size] = 0;
	*ret = fcvm_steal_ptr(data);
	if (ret_size)
		*ret_size = st.st_size;
	return 0;
}

struct fcvm_json *store_read_json(int dirfd, const char *name)
{
	_cleanup_free_ char *text = NULL;
	struct fcvm_json *j = NULL;
	size_t size;

	if (store_read_file(dirfd, name, STORE_MANIFEST_MAX, &text, &size) < 0 ||
		fcvm_json_parse(text, size, &j, NULL) < 0)
		return NULL;
	return j;
}

int store_open_dir(int dirfd, const char *name)
{
	int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int store_make_dir(int dirfd, const char *name)
{
	if (mkdirat(dirfd, name, 0700) < 0 && errno != EEXIST)
		return -errno;
	return store_open_dir(dirfd, name);
}

int store_each(int dirfd, int (*fn)(void *data, int dirfd, const char *name), void *data)
{
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *e;
	int fd, r = 0;

	fd = store_open_dir(dirfd, "."); /* a position of its own */
	if (fd < 0)
		return fd;
	dir = fdopendir(fd);
	if (!dir) {
		r = -errno;
		fcvm_close(fd);
		return r;
	}
	while (r == 0 && (e = readdir(dir)))
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			r = fn(data, dirfd, e->d_name);
	return r;
}

static int add_bytes(void *data, int dirfd, const char *name)
{
	*(uint64_t *)data += store_bytes(dirfd, name);
	return 0;
}

uint64_t store_bytes(int dirfd, const char *name)
{
	_cleanup_close_ int fd = -1;
	uint64_t bytes;
	struct stat st;

	if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return 0;
	bytes = (uint64_t)st.st_blocks * 512;
	if (!S_ISDIR(st.st_mode))
		return bytes;
	fd = store_open_dir(dirfd, name);
	if (fd >= 0)
		store_each(fd, add_bytes, &bytes);
	return bytes;
}

int store_discard(int dirfd, const char *name)
{
	char trash[32];
	unsigned tag;

	fcvm_random(&tag, sizeof tag);
	snprintf(trash, sizeof trash, ".trash-%08x", tag);
	if (renameat(dirfd, name, dirfd, trash) == 0)
		return fcvm_tree_remove(dirfd, trash);
	/* A full or read-only disk, or gone already. */
	return errno == ENOENT ? 0 : fcvm_tree_remove(dirfd, name);
}

void store_report(struct fcvm_json *report, const char *what, const char *dir, const char *name, uint64_t bytes)
{
	_cleanup_free_ char *path = fcvm_asprintf("%s/%s", dir, name);
	struct fcvm_json *entry;

	if (!report || !path)
		return;
	entry = fcvm_json_object();
	fcvm_json_set_string(entry, "what", what);
	fcvm_json_set_string(entry, "path", path);
	fcvm_json_set_int(entry, "bytes", (int64_t)bytes);
	fcvm_json_append(report, entry);
}

bool store_name_ok(const char *name)
{
	size_t size = name ? strlen(name) : 0;

	/* + and ~ are in kernels' releases: 6.12.117+deb13-cloud-amd64. */
	return size > 0 && size <= STORE_NAME_MAX && name[0] != '.' && name[0] != '-' &&
	       strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+~") == size;
}

/* flock cannot be waited for together with a cancel fd, so this looks again every 20 ms. */
int store_lock(int dirfd, const char *name, const struct fcvm_until *until)
{
	/* For writing, since some network file systems lock only what is open for it. */
	_cleanup_close_ int fd =
		openat(dirfd, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);

	if (fd < 0)
		return -errno;
	while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		struct fcvm_until turn = fcvm_until_sooner(until, 20);
		int r;

		if (errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		r = fcvm_until_poll(&turn, NULL, 0);
		if (r < 0 && r != -ETIMEDOUT)
			return r;
		if (fcvm_until_left_ms(until) == 0)
			return -ETIMEDOUT;
	}
	return fcvm_steal_fd(fd);
}

const char *store_size(uint64_t bytes, char to[static 24])
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
	unsigned unit = 0;
	double n = (double)bytes;

	while (n >= 1024 && unit < 4) {
		n /= 1024;
		unit++;
	}
	snprintf(to, 24, n < 10 && unit > 0 ? "%.1f %s" : "%.0f %s", n, units[unit]);
	return to;
}

int fcvm_store_disk_full(int code, const char *path, uint64_t needed, const char *what, struct fcvm_err *err)
{
	char want[24], have[24];
	struct statvfs fs;

	if (statvfs(path, &fs) < 0)
		return fcvm_fail_errno(err, code, "%s: the disk of %s", what, path);
	store_size((uint64_t)fs.f_bavail * fs.f_frsize, have);
	if (code == -EDQUOT)
		return fcvm_fail_errno(err, code, "%s: your quota on the disk of %s; remove something from it", what,
			path);
	if (needed == 0)
		return fcvm_fail(err, code,
			"%s: the disk of %s is full (%s are free); free some (fcvm gc), or set another folder", what, path,
			have);
	return fcvm_fail(err, code,
		"%s: needs %s, and the disk of %s has %s free; free some (fcvm gc), or set another folder", what,
		store_size(needed, want), path, have);
}
