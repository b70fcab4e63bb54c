/* SPDX-License-Identifier: MIT */
/* The sender's half of base/tree.h. The tree may change meanwhile: what vanishes is left out. */
#include "base/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "structs are sent as they are in memory");

enum {
	PATH_ROOM = 4096,
	MAX_DEPTH = 512, /* one descriptor each */
	CHUNK = 64 * 1024,
	SMALL = 64 * 1024,
	SMALL_MAX = 16 * 1024 * 1024, /* a file that said it was small */
};

struct packer {
	int fd;
	bool not_socket;
	const char *root; /* for messages */
	size_t path_len;
	size_t used; /* of out */
	struct fcvm_err *err;
	char path[PATH_ROOM];
	char out[CHUNK];
	char chunk[CHUNK];
};

static int fail_at(struct packer *p, int code, const char *what)
{
	return fcvm_fail_errno(p->err, code, "%s %s%s%s", what, p->root, p->path_len ? "/" : "", p->path);
}

/* ---- out ---- */

static int send_all(struct packer *p, const char *data, size_t size)
{
	while (size > 0) {
		/* A receiver that has gone is an error of this call, not the end of the process. */
		ssize_t n = p->not_socket ? write(p->fd, data, size) : send(p->fd, data, size, MSG_NOSIGNAL);

		if (n < 0 && errno == ENOTSOCK && !p->not_socket) {
			p->not_socket = true;
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return fail_at(p, -errno, "send");
		data += n;
		size -= n;
	}
	return 0;
}

static int flush(struct packer *p)
{
	size_t size = p->used;

	p->used = 0;
	return send_all(p, p->out, size);
}

static int put(struct packer *p, const void *data, size_t size)
{
	int r = 0;

	if (size > sizeof p->out - p->used)
		r = flush(p);
	if (r == 0 && size > sizeof p->out)
		return send_all(p, data, size);
	if (r == 0 && size > 0) {
		memcpy(p->out + p->used, data, size);
		p->used += size;
	}
	return r;
}

static int64_t mtime_of(const struct stat *st)
{
	int64_t ns;

	if (__builtin_mul_overflow((int64_t)st->st_mtim.tv_sec, 1000000000, &ns) ||
		__builtin_add_overflow(ns, (int64_t)st->st_mtim.tv_nsec, &ns))
		return 0;
	return ns;
}

static int put_entry(struct packer *p, enum fcvm_tree_type type, const struct stat *st, uint64_t size,
	const char *target)
{
	struct fcvm_tree_entry e = {
		.magic = 0xf5,
		.type = type,
		.path_len = p->path_len,
		.mode = st->st_mode,
		.uid = st->st_uid,
		.gid = st->st_gid,
		.mtime_ns = mtime_of(st),
		.size = size,
		.target_len = target ? strlen(target) : 0,
		.rdev = type == FCVM_TREE_DEVICE ? st->st_rdev : 0,
	};
	int r = put(p, &e, sizeof e);

	if (r == 0)
		r = put(p, p->path, p->path_len);
	if (r == 0)
		r = put(p, target, e.target_len);
	return r;
}

static int put_extent(struct packer *p, uint64_t offset, const void *data, uint64_t size)
{
	uint64_t head[2] = {offset, size};
	int r = put(p, head, sizeof head);

	return r == 0 ? put(p, data, size) : r;
}

/* ---- files ---- */

/* Read before it is announced: its size is then right also in /proc, where files claim to be empty. */
static int pack_small(struct packer *p, int fd, const struct stat *st)
{
	_cleanup_(fcvm_buf_done) struct fcvm_buf all = {0};
	int r;

	for (;;) {
		char *at = fcvm_buf_reserve(&all, CHUNK);
		ssize_t n;

		if (!at)
			return fail_at(p, -ENOMEM, "read");
		n = read(fd, at, CHUNK);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return fail_at(p, -errno, "read");
		fcvm_buf_grew(&all, n);
		if (n == 0)
			break;
		if (all.size > SMALL_MAX)
			return fail_at(p, -EFBIG, "read");
	}
	r = put_entry(p, FCVM_TREE_FILE, st, all.size, NULL);
	if (r == 0 && all.size > 0)
		r = put_extent(p, 0, all.data, all.size);
	return r == 0 ? put_extent(p, 0, NULL, 0) : r;
}

/* An extent is announced when it has been read, so that a file that shrinks meanwhile does no harm. */
static int pack_range(struct packer *p, int fd, off_t from, off_t to)
{
	while (from < to) {
		size_t want = to - from < CHUNK ? to - from : CHUNK;
		ssize_t n = pread(fd, p->chunk, want, from);
		int r;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return fail_at(p, -errno, "read");
		if (n == 0)
			return 0;
		r = put_extent(p, from, p->chunk, n);
		if (r < 0)
			return r;
		from += n;
	}
	return 0;
}

static int pack_large(struct packer *p, int fd, const struct stat *st)
{
	int r = put_entry(p, FCVM_TREE_FILE, st, st->st_size, NULL);
	off_t at = 0;

	while (r == 0 && at < st->st_size) {
		off_t from = lseek(fd, at, SEEK_DATA), to;

		if (from < 0 && errno == ENXIO)
			break;
		if (from < 0)
			from = at; /* it cannot tell: all is data */
		to = lseek(fd, from, SEEK_HOLE);
		if (to < 0 || to > st->st_size)
			to = st->st_size;
		if (to <= from)
			break; /* cut off meanwhile */
		r = pack_range(p, fd, from, to);
		at = to;
	}
	return r == 0 ? put_extent(p, 0, NULL, 0) : r;
}

static int pack_symlink(struct packer *p, int dirfd, const char *name, const struct stat *st)
{
	char target[PATH_ROOM];
	ssize_t n = readlinkat(dirfd, name, target, sizeof target - 1);

	if (n < 0)
		return errno == ENOENT && p->path_len ? 0 : fail_at(p, -errno, "read symlink");
	target[n] = 0;
	return put_entry(p, FCVM_TREE_SYMLINK, st, 0, target);
}

/* ---- the walk ---- */

static int pack_entry(struct packer *p, int dirfd, const char *name, unsigned depth);

/* Takes fd. */
static int pack_children(struct packer *p, int fd, unsigned depth)
{
	_cleanup_closedir_ DIR *dir = fdopendir(fd);
	size_t own = p->path_len;
	struct dirent *e;
	int r = 0;

	if (!dir) {
		fcvm_close(fd);
		return fail_at(p, -ENOMEM, "read folder");
	}
	while (r == 0 && (errno = 0, e = readdir(dir))) {
		size_t size = strlen(e->d_name);

		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		if (own + 1 + size >= sizeof p->path)
			return fail_at(p, -ENAMETOOLONG, "read folder");
		if (own > 0)
			p->path[p->path_len++] = '/';
		memcpy(p->path + p->path_len, e->d_name, size + 1);
		p->path_len += size;
		r = pack_entry(p, dirfd(dir), e->d_name, depth);
		if (r == 0) {
			p->path_len = own;
			p->path[own] = 0;
		}
	}
	return r == 0 && errno ? fail_at(p, -errno, "read folder") : r;
}

/* Files and folders: what was opened is what counts, not what the name meant a moment ago. */
static int pack_opened(struct packer *p, int dirfd, const char *name, unsigned depth)
{
	/* Non-blocking, as a fifo may have taken the name. */
	_cleanup_close_ int fd =
		openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	struct stat st;
	int r;

	if (fd < 0 && errno == ENOENT && p->path_len)
		return 0;
	if (fd < 0 || fstat(fd, &st) < 0)
		return fail_at(p, -errno, "open");
	if (S_ISREG(st.st_mode))
		return st.st_size <= SMALL ? pack_small(p, fd, &st) : pack_large(p, fd, &st);
	if (!S_ISDIR(st.st_mode))
		return 0;
	if (depth == 0)
		return fail_at(p, -ELOOP, "read folder");
	r = put_entry(p, FCVM_TREE_DIR, &st, 0, NULL);
	return r == 0 ? pack_children(p, fcvm_steal_fd(fd), depth - 1) : r;
}

static int pack_entry(struct packer *p, int dirfd, const char *name, unsigned depth)
{
	struct stat st;

	if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT && p->path_len ? 0 : fail_at(p, -errno, "read");
	switch (st.st_mode & S_IFMT) {
	case S_IFREG:
	case S_IFDIR:
		return pack_opened(p, dirfd, name, depth);
	case S_IFLNK:
		return pack_symlink(p, dirfd, name, &st);
	case S_IFIFO:
		return put_entry(p, FCVM_TREE_FIFO, &st, 0, NULL);
	case S_IFCHR:
	case S_IFBLK:
		return put_entry(p, FCVM_TREE_DEVICE, &st, 0, NULL);
	default: /* a socket means nothing elsewhere */
		return p->path_len ? 0 : fail_at(p, -EOPNOTSUPP, "copy");
	}
}

int fcvm_tree_pack(int fd, const char *path, struct fcvm_err *err)
{
	static const struct stat none;
	_cleanup_free_ struct packer *p = malloc(sizeof *p);
	int r;

	if (!p)
		return fcvm_fail_errno(err, -ENOMEM, "read %s", path);
	/* Not cleared as a whole: its buffers are large. */
	p->fd = fd;
	p->not_socket = false;
	p->root = path;
	p->err = err;
	p->path_len = p->used = 0;
	p->path[0] = 0;
	r = pack_entry(p, AT_FDCWD, path, MAX_DEPTH);
	if (r < 0)
		return r;
	r = put_entry(p, FCVM_TREE_END, &none, 0, NULL);
	return r == 0 ? flush(p) : r;
}
