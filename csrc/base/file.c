/* SPDX-License-Identifier: MIT */
/* Whole files and folders (base/fd.h). */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"

enum { MAX_DEPTH = 512 }; /* one descriptor each while a tree is removed */

/* openat2(2), for headers that lack it: linux/openat2.h. */
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
enum { NO_CROSSING = 0x01 };
struct open_how_v0 {
	uint64_t flags, mode, resolve;
};

void fcvm_random(void *buf, size_t size)
{
	char *at = buf;

	while (size > 0) {
		ssize_t n = getrandom(at, size, 0);

		if (n < 0)
			continue; /* EINTR: getrandom has no other failure with these arguments */
		at += n;
		size -= n;
	}
}

char *fcvm_asprintf(const char *fmt, ...)
{
	char *s = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&s, fmt, ap) < 0)
		s = NULL;
	va_end(ap);
	return s;
}

int fcvm_file_read(int dirfd, const char *path, size_t max, char **ret, size_t *ret_size)
{
	_cleanup_close_ int fd = -1;

	fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fcvm_fd_read_all(fd, max, ret, ret_size);
}

int fcvm_fd_read_all(int fd, size_t max, char **ret, size_t *ret_size)
{
	_cleanup_free_ char *data = NULL;
	size_t size = 0, room = 4096;

	for (;;) {
		ssize_t n;
		char *bigger = realloc(data, room + 1);

		if (!bigger)
			return -ENOMEM;
		data = bigger;
		n = read(fd, data + size, room - size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		size += n;
		if (size > max)
			return -EFBIG;
		if (size == room)
			room *= 2;
	}
	data[size] = 0;
	*ret = fcvm_steal_ptr(data);
	if (ret_size)
		*ret_size = size;
	return 0;
}

int fcvm_file_replace(int dirfd, const char *name, const void *data, size_t size, mode_t mode, bool sync)
{
	_cleanup_close_ int fd = -1;
	_cleanup_free_ char *temporary = NULL;
	unsigned tag;
	int r;

	fcvm_random(&tag, sizeof tag);
	temporary = fcvm_asprintf("%s.tmp.%08x", name, tag);
	if (!temporary)
		return -ENOMEM;
	fd = openat(dirfd, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
	if (fd < 0)
		return -errno;
	r = fcvm_fd_write_full(fd, data, size);
	if (r == 0 && sync && fsync(fd) < 0)
		r = -errno;
	if (r == 0 && renameat(dirfd, temporary, dirfd, name) < 0)
		r = -errno;
	if (r < 0)
		unlinkat(dirfd, temporary, 0);
	else if (sync && dirfd >= 0)
		fsync(dirfd);
	return r;
}

int fcvm_file_reflink(const char *from, const char *to)
{
	_cleanup_close_ int in = -1;
	_cleanup_close_ int out = -1;
	struct stat st;
	int r = 0;

	in = open(from, O_RDONLY | O_CLOEXEC);
	if (in < 0 || fstat(in, &st) < 0)
		return -errno;
	out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, st.st_mode & 0777);
	if (out < 0)
		return -errno;
	if (ioctl(out, FICLONE, in) < 0) {
		/* The kernel has several words for "this file system cannot". */
		r = errno == ENOTTY || errno == EINVAL || errno == EXDEV ? -EOPNOTSUPP : -errno;
		unlink(to);
	}
	return r;
}

int fcvm_dir_make(const char *path, mode_t mode)
{
	_cleanup_free_ char *copy = strdup(path);
	struct stat st;
	char *slash;

	if (!copy)
		return -ENOMEM;
	for (slash = copy + 1; *copy && (slash = strchr(slash, '/')); slash++) {
		*slash = 0;
		if (mkdir(copy, mode) < 0 && errno != EEXIST)
			return -errno;
		*slash = '/';
	}
	if (mkdir(copy, mode) == 0)
		return 0;
	if (errno != EEXIST)
		return -errno;
	return stat(copy, &st) < 0 ? -errno : S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

int fcvm_dir_create(const char *path, mode_t mode, bool parents)
{
	_cleanup_free_ char *copy = strdup(path);
	size_t size = strlen(path);
	struct stat st;
	char *slash;
	int r = 0;

	if (!copy)
		return -ENOMEM;
	while (size > 1 && copy[size - 1] == '/')
		copy[--size] = 0;
	slash = strrchr(copy, '/');
	if (parents && slash && slash > copy) {
		*slash = 0;
		r = fcvm_dir_make(copy, mode);
		*slash = '/';
	}
	if (r < 0)
		return r;
	if (mkdir(copy, mode) == 0)
		return chmod(copy, mode) < 0 ? -errno : 1; /* umask or not */
	if (errno != EEXIST || !parents)
		return -errno;
	return stat(copy, &st) < 0 ? -errno : S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

/* Empties the folder fd (closed here). */
static int empty_dir(int fd, dev_t device, unsigned depth);

/* A folder, but not what is mounted there: a bind mount of the same file system is told by openat2 only. */
static int open_beneath(int dirfd, const char *name, dev_t device)
{
	struct open_how_v0 how = {
		.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
		.resolve = NO_CROSSING,
	};
	struct stat st;
	int fd = syscall(SYS_openat2, dirfd, name, &how, sizeof how);

	/* Before Linux 5.6, or kept away by a seccomp filter that does not know it. */
	if (fd < 0 && (errno == ENOSYS || errno == EPERM))
		fd = openat(dirfd, name, how.flags);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0 || st.st_dev != device) {
		fcvm_close(fd);
		return -EXDEV;
	}
	return fd;
}

static int remove_entry(int dirfd, const char *name, dev_t device, unsigned depth)
{
	int fd, r;

	if (unlinkat(dirfd, name, 0) == 0 || errno == ENOENT)
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return -errno;
	if (depth == 0)
		return -ELOOP;
	/* Mounts on the way to the tree are the caller's. */
	fd = depth < MAX_DEPTH ? open_beneath(dirfd, name, device)
			       : openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return depth < MAX_DEPTH ? fd : -errno;
	r = empty_dir(fd, device, depth - 1);
	if (unlinkat(dirfd, name, AT_REMOVEDIR) < 0 && errno != ENOENT && r == 0)
		r = -errno;
	return r;
}

static int empty_dir(int fd, dev_t device, unsigned depth)
{
	_cleanup_closedir_ DIR *dir = fdopendir(fd);
	struct dirent *e;
	int first = 0;

	if (!dir) {
		fcvm_close(fd);
		return -ENOMEM;
	}
	fchmod(fd, 0700);
	while ((e = readdir(dir))) {
		int r;

		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		r = remove_entry(dirfd(dir), e->d_name, device, depth);
		if (r < 0 && first == 0)
			first = r;
	}
	return first;
}

int fcvm_tree_remove(int dirfd, const char *name)
{
	struct stat st;

	if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno;
	return remove_entry(dirfd, name, st.st_dev, MAX_DEPTH);
}

char *fcvm_path_plain(const char *path)
{
	char *plain = malloc(strlen(path) + 2), *to = plain;

	while (plain && *path) {
		size_t n = strcspn(path, "/");

		if (n == 2 && path[0] == '.' && path[1] == '.') {
			free(plain);
			return NULL;
		}
		if (n && !(n == 1 && *path == '.')) {
			*to++ = '/';
			memcpy(to, path, n);
			to += n;
		}
		path += n + (path[n] == '/');
	}
	if (plain && to == plain)
		*to++ = '/';
	if (plain)
		*to = 0;
	return plain;
}
