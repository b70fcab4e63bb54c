/* SPDX-License-Identifier: MIT */
/* Files and memory of the local node. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "node/node_private.h"

int fcvm_local_read_file(struct fcvm_node *n, const char *path, size_t max,
	const struct fcvm_until *until, char **ret, size_t *ret_size, struct fcvm_err *err)
{
	_cleanup_close_ int fd = -1;
	struct stat st;
	int k;

	/* Nothing but a regular file, as of an agent: opening or reading another may block for ever. */
	fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	k = fd < 0 || fstat(fd, &st) < 0 ? -errno : 0;
	if (k == 0 && S_ISDIR(st.st_mode))
		k = -EISDIR;
	if (k == 0 && !S_ISREG(st.st_mode))
		return fcvm_fail(err, -EINVAL, "local: read %s: it is no regular file", path);
	if (k == 0)
		k = fcvm_fd_read_all(fd, max, ret, ret_size);
	if (k == -EFBIG)
		return fcvm_fail(err, k, "local: read %s: it has more than %zu bytes", path, max);
	return k < 0 ? fcvm_fail_errno(err, k, "local: read %s", path) : 0;
}

int fcvm_local_write_file(struct fcvm_node *n, const char *path, const void *data, size_t size,
	mode_t mode, const struct fcvm_until *until, struct fcvm_err *err)
{
	int k = fcvm_file_replace(AT_FDCWD, path, data, size, mode & 07777, false);

	/* The umask is this process's, not the file's. */
	if (k == 0 && chmod(path, mode & 07777) < 0)
		k = -errno;
	return k < 0 ? fcvm_fail_errno(err, k, "local: write %s", path) : 0;
}

int fcvm_local_stat(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
	struct fcvm_node_stat *ret, struct fcvm_err *err)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		return fcvm_fail_errno(err, -errno, "local: stat %s", path);
	*ret = (struct fcvm_node_stat){
		.size = st.st_size,
		.mtime_ns = st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec,
		.mode = st.st_mode,
		.uid = st.st_uid,
		.gid = st.st_gid,
	};
	return 0;
}

int fcvm_local_mkdir(struct fcvm_node *n, const char *path, mode_t mode, bool parents, bool lease,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	int k = fcvm_dir_create(path, mode & 07777, parents);

	/* What was there is somebody's: a lease must not remove it. */
	if (lease && k >= 0)
		k = k > 0 ? fcvm_local_lease(n, path) : -EEXIST;
	return k < 0 ? fcvm_fail_errno(err, k, "local: mkdir %s", path) : 0;
}

int fcvm_local_rename(struct fcvm_node *n, const char *from, const char *to,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	if (rename(from, to) < 0)
		return fcvm_fail_errno(err, -errno, "local: rename %s to %s", from, to);
	return 0;
}

int fcvm_local_remove(
	struct fcvm_node *n, const char *path, const struct fcvm_until *until, struct fcvm_err *err)
{
	int k = fcvm_tree_remove(AT_FDCWD, path);

	if (k == 0)
		fcvm_local_unlease(n, path);
	return k < 0 ? fcvm_fail_errno(err, k, "local: remove %s", path) : 0;
}

int fcvm_local_reflink(struct fcvm_node *n, const char *from, const char *to,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	int k = fcvm_file_reflink(from, to);

	return k < 0 ? fcvm_fail_errno(err, k, "local: reflink %s to %s", from, to) : 0;
}

/* ---- what the node is ---- */

static uint64_t memory_available(void)
{
	_cleanup_free_ char *text = NULL;
	const char *at;

	if (fcvm_file_read(AT_FDCWD, "/proc/meminfo", 64 * 1024, &text, NULL) < 0)
		return 0;
	at = strstr(text, "MemAvailable:");
	return at ? strtoull(at + strlen("MemAvailable:"), NULL, 10) * 1024 : 0;
}

int fcvm_local_info(struct fcvm_node *n, const struct fcvm_until *until, struct fcvm_node_info *ret,
	struct fcvm_err *err)
{
	struct timespec up;
	struct sysinfo si;

	if (sysinfo(&si) < 0)
		return fcvm_fail_errno(err, -errno, "local: sysinfo");
	clock_gettime(CLOCK_BOOTTIME, &up);
	*ret = (struct fcvm_node_info){
		.uptime_ns = up.tv_sec * 1000000000ll + up.tv_nsec,
		.realtime_ns = fcvm_realtime_ns(),
		.memory_total = (uint64_t)si.totalram * si.mem_unit,
		.memory_available = memory_available(),
		.processors = sysconf(_SC_NPROCESSORS_ONLN),
		.version = FCVM_VERSION,
	};
	gethostname(ret->hostname, sizeof ret->hostname - 1);
	return 0;
}
