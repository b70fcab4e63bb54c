/* SPDX-License-Identifier: MIT */
/*
 * The receiver's half of base/tree.h.
 *
 * Theory of operation: a sender walks depth first, so the folder of each entry is the last one that was begun or
 * one of its ancestors. The open ones are kept as a stack of descriptors; an entry first closes those that it is
 * not beneath, and its path must then be the top's plus one component. So each name is resolved beneath a
 * descriptor that this program opened, never by a path of the stream. A folder gets its owner, mode and time
 * when it is closed. Folders that were there before are merged into and keep theirs.
 */
#include "base/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"

enum {
	PATH_ROOM = 4096,
	MAX_DEPTH = 512,
	CHUNK = 64 * 1024,
};

struct level {
	int fd;
	size_t path_len;
	bool made; /* by us */
	struct fcvm_tree_entry entry;
};

struct unpacker {
	int fd;
	bool keep_owner;
	const char *root; /* the path as given */
	struct fcvm_err *err;
	char *leaf;       /* where a root that is no folder goes */
	bool root_made;   /* the root is a folder that we have made */
	unsigned depth;
	size_t in_start, in_end;
	const char *shown;      /* in messages: path, or as much of previous as is a folder's */
	size_t shown_len;
	char path[PATH_ROOM];   /* of the entry at hand */
	char target[PATH_ROOM];
	char previous[PATH_ROOM]; /* of the entry before: each open folder's path is a prefix of it */
	struct level levels[MAX_DEPTH];
	char in[CHUNK];
};

static int fail_at(struct unpacker *u, int code, const char *what)
{
	return fcvm_fail_errno(u->err, code, "%s %s%s%.*s", what, u->leaf ? u->leaf : u->root,
		u->shown_len ? "/" : "", (int)u->shown_len, u->shown);
}

static int malformed(struct unpacker *u, const char *what)
{
	return fcvm_fail(u->err, -EBADMSG, "unpack %s: malformed stream: %s", u->root, what);
}

/* ---- in ---- */

static int fill(struct unpacker *u)
{
	ssize_t n;

	do
		n = read(u->fd, u->in, sizeof u->in);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return fcvm_fail_errno(u->err, -errno, "unpack %s: receive", u->root);
	if (n == 0)
		return fcvm_fail(u->err, -ENODATA, "unpack %s: the stream ended early", u->root);
	u->in_start = 0;
	u->in_end = n;
	return 0;
}

/* At most `size` bytes of what has come, at least one; *ret points at them. */
static ssize_t take(struct unpacker *u, uint64_t size, const char **ret)
{
	size_t have = u->in_end - u->in_start;

	if (have == 0) {
		int r = fill(u);

		if (r < 0)
			return r;
		have = u->in_end;
	}
	if (have > size)
		have = size;
	*ret = u->in + u->in_start;
	u->in_start += have;
	return have;
}

static int get(struct unpacker *u, void *to, size_t size)
{
	char *at = to;

	while (size > 0) {
		const char *from;
		ssize_t n = take(u, size, &from);

		if (n < 0)
			return n;
		memcpy(at, from, n);
		at += n;
		size -= n;
	}
	return 0;
}

static int get_text(struct unpacker *u, char *to, size_t size)
{
	int r;

	*to = 0;
	if (size >= PATH_ROOM)
		return malformed(u, "a path too long");
	r = get(u, to, size);
	to[r == 0 ? size : 0] = 0;
	if (r == 0 && strlen(to) != size)
		return malformed(u, "a NUL in a path");
	return r;
}

/* Of a stream whose root is no folder. */
static int expect_end(struct unpacker *u)
{
	struct fcvm_tree_entry e;
	int r = get(u, &e, sizeof e);

	if (r == 0 && (e.magic != 0xf5 || e.type != FCVM_TREE_END))
		return malformed(u, "more than a file");
	return r;
}

/* ---- attributes ---- */

static mode_t mode_of(const struct unpacker *u, const struct fcvm_tree_entry *e)
{
	return e->mode & (u->keep_owner ? 07777 : 01777);
}

static void times_of(const struct fcvm_tree_entry *e, struct timespec ret[static 2])
{
	int64_t sec = e->mtime_ns / 1000000000, nsec = e->mtime_ns % 1000000000;

	if (nsec < 0) {
		sec--;
		nsec += 1000000000;
	}
	ret[0] = (struct timespec){.tv_nsec = UTIME_OMIT};
	ret[1] = (struct timespec){.tv_sec = sec, .tv_nsec = nsec};
}

static int set_attributes(struct unpacker *u, int fd, const struct fcvm_tree_entry *e)
{
	struct timespec times[2];

	times_of(e, times);
	/* In this order: a change of owner takes the set-id bits away. */
	if (u->keep_owner && fchown(fd, e->uid, e->gid) < 0)
		return fail_at(u, -errno, "set the owner of");
	if (fchmod(fd, mode_of(u, e)) < 0)
		return fail_at(u, -errno, "set the mode of");
	/* A time that the file system cannot hold is no reason to fail. */
	futimens(fd, times);
	return 0;
}

/* ---- folders ---- */

static int push(struct unpacker *u, int fd, bool made, const struct fcvm_tree_entry *e)
{
	u->levels[u->depth++] = (struct level){
		.fd = fd,
		.path_len = e->path_len,
		.made = made,
		.entry = *e,
	};
	return 0;
}

static int pop(struct unpacker *u)
{
	struct level *l = &u->levels[--u->depth];
	int r = 0;

	if (l->made) {
		u->shown = u->previous;
		u->shown_len = l->path_len;
		r = set_attributes(u, l->fd, &l->entry);
	}
	l->fd = fcvm_close(l->fd);
	return r;
}

static void show(struct unpacker *u)
{
	u->shown = u->path;
	u->shown_len = strlen(u->path);
}

/* Closes the folders that u->path is not beneath; *ret_name is then its last component. */
static int enter(struct unpacker *u, const char **ret_name)
{
	const char *name;
	int r;

	for (;;) {
		struct level *top = &u->levels[u->depth - 1];
		size_t n = top->path_len;

		/* The root's path is empty, so this ends. */
		if (n == 0 || (strncmp(u->path, u->previous, n) == 0 && u->path[n] == '/')) {
			name = u->path + n + (n > 0);
			break;
		}
		r = pop(u);
		if (r < 0)
			return r;
	}
	if (!*name || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		return malformed(u, "an entry outside of its folder");
	*ret_name = name;
	show(u);
	return 0;
}

static int unpack_root_dir(struct unpacker *u, const struct fcvm_tree_entry *e)
{
	int fd;

	if (mkdir(u->root, 0700) == 0)
		u->root_made = true;
	else if (errno != EEXIST)
		return fail_at(u, -errno, "make folder");
	fd = open(u->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return fail_at(u, -errno, "open folder");
	return push(u, fd, u->root_made, e);
}

static int unpack_dir(struct unpacker *u, int dirfd, const char *name, const struct fcvm_tree_entry *e)
{
	bool made;
	int fd;

	if (u->depth == MAX_DEPTH)
		return fail_at(u, -ELOOP, "make folder");
	made = mkdirat(dirfd, name, 0700) == 0;
	if (!made && errno != EEXIST)
		return fail_at(u, -errno, "make folder");
	fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return fail_at(u, -errno, "open folder");
	return push(u, fd, made, e);
}

/* ---- files ---- */

/* Writes the extents; the file is new and empty. */
static int unpack_data(struct unpacker *u, int fd, uint64_t size)
{
	if (size > INT64_MAX || (size > 0 && ftruncate(fd, size) < 0))
		return fail_at(u, size > INT64_MAX ? -EFBIG : -errno, "make");
	for (;;) {
		uint64_t head[2];
		int r = get(u, head, sizeof head);

		if (r < 0 || head[1] == 0)
			return r;
		if (head[0] > size || head[1] > size - head[0])
			return malformed(u, "data beyond the end of its file");
		while (head[1] > 0) {
			const char *data;
			ssize_t n = take(u, head[1], &data), written;

			if (n < 0)
				return n;
			for (ssize_t done = 0; done < n; done += written) {
				written = pwrite(fd, data + done, n - done, head[0] + done);
				if (written < 0 && errno == EINTR)
					written = 0;
				if (written < 0)
					return fail_at(u, -errno, "write");
			}
			head[0] += n;
			head[1] -= n;
		}
	}
}

/* Under another name first, so that what is there stays whole until the new one, and a stream of one file, is. */
static int unpack_file(struct unpacker *u, int dirfd, const char *name, const struct fcvm_tree_entry *e)
{
	_cleanup_free_ char *temporary = NULL;
	_cleanup_close_ int fd = -1;
	uint32_t tag;
	int r;

	fcvm_random(&tag, sizeof tag);
	/* Named after its own file only where the name was ours to choose: one of the stream may be too long. */
	temporary = fcvm_asprintf("%s.fcvm-%06x", dirfd == AT_FDCWD ? name : "", tag & 0xffffff);
	if (!temporary)
		return fail_at(u, -ENOMEM, "make");
	fd = openat(dirfd, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail_at(u, -errno, "make");
	r = unpack_data(u, fd, e->size);
	if (r == 0)
		r = set_attributes(u, fd, e);
	if (r == 0 && u->leaf)
		r = expect_end(u);
	if (r == 0 && renameat(dirfd, temporary, dirfd, name) < 0)
		r = fail_at(u, -errno, "put in place");
	if (r < 0)
		unlinkat(dirfd, temporary, 0);
	return r;
}

static int make_special(struct unpacker *u, int dirfd, const char *name, const struct fcvm_tree_entry *e)
{
	mode_t kind = e->type == FCVM_TREE_FIFO ? S_IFIFO : e->mode & S_IFMT;
	int r;

	if (e->type == FCVM_TREE_SYMLINK)
		r = symlinkat(u->target, dirfd, name);
	else
		r = mknodat(dirfd, name, kind | 0600, e->type == FCVM_TREE_FIFO ? 0 : e->rdev);
	return r < 0 ? -errno : 0;
}

/* The file itself must not be opened: a device's driver would see it. */
static int set_special_attributes(struct unpacker *u, int dirfd, const char *name,
	const struct fcvm_tree_entry *e)
{
	_cleanup_close_ int fd = openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct timespec times[2];
	char proc[64];

	if (fd < 0)
		return fail_at(u, -errno, "open");
	if (u->keep_owner && fchownat(fd, "", e->uid, e->gid, AT_EMPTY_PATH) < 0)
		return fail_at(u, -errno, "set the owner of");
	/* chmod by descriptor takes no O_PATH one, but follows this. */
	snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
	if (e->type != FCVM_TREE_SYMLINK && chmod(proc, mode_of(u, e)) < 0)
		return fail_at(u, -errno, "set the mode of");
	times_of(e, times);
	utimensat(dirfd, name, times, AT_SYMLINK_NOFOLLOW);
	return 0;
}

static int unpack_special(struct unpacker *u, int dirfd, const char *name, const struct fcvm_tree_entry *e)
{
	int r = make_special(u, dirfd, name, e);

	if (r == -EEXIST && unlinkat(dirfd, name, 0) == 0)
		r = make_special(u, dirfd, name, e);
	if (r < 0)
		return fail_at(u, r, "make");
	r = set_special_attributes(u, dirfd, name, e);
	if (r < 0)
		unlinkat(dirfd, name, 0);
	return r;
}

/* ---- entries ---- */

/* One that is no folder. */
static int unpack_leaf(struct unpacker *u, int dirfd, const char *name, const struct fcvm_tree_entry *e)
{
	switch (e->type) {
	case FCVM_TREE_FILE:
		return unpack_file(u, dirfd, name, e);
	case FCVM_TREE_DEVICE:
		if (!S_ISCHR(e->mode) && !S_ISBLK(e->mode))
			return malformed(u, "a device of no kind");
		/* Who does not trust the stream with owners must not let it choose /dev/mem with mode 0666. */
		if (!u->keep_owner)
			return fail_at(u, -EPERM, "device files are only made when owners are kept: make");
		return unpack_special(u, dirfd, name, e);
	default:
		return unpack_special(u, dirfd, name, e);
	}
}

/* The next record's head, path and target. */
static int get_entry(struct unpacker *u, struct fcvm_tree_entry *e)
{
	int r = get(u, e, sizeof *e);

	if (r == 0 && e->magic != 0xf5)
		return malformed(u, "no entry where one should be");
	if (r == 0 && e->type > FCVM_TREE_DEVICE)
		return malformed(u, "an entry of unknown type");
	if (r == 0 && (e->type == FCVM_TREE_SYMLINK) != (e->target_len > 0))
		return malformed(u, "a symlink without target, or a target without symlink");
	if (r == 0)
		r = get_text(u, u->path, e->path_len);
	if (r == 0)
		r = get_text(u, u->target, e->target_len);
	show(u);
	return r;
}

static int unpack_children(struct unpacker *u)
{
	for (;;) {
		struct fcvm_tree_entry e;
		const char *name = "";
		int dirfd, r = get_entry(u, &e);

		if (r < 0 || e.type == FCVM_TREE_END)
			return r;
		r = enter(u, &name);
		if (r < 0)
			return r;
		strcpy(u->previous, u->path);
		dirfd = u->levels[u->depth - 1].fd;
		r = e.type == FCVM_TREE_DIR ? unpack_dir(u, dirfd, name, &e) :
					      unpack_leaf(u, dirfd, name, &e);
		if (r < 0)
			return r;
	}
}

/* Where a root that is no folder goes, malloc'ed: path, or base_name in it if it is a folder. */
static char *leaf_path(const char *path, const char *base_name)
{
	struct stat st;

	if (base_name && stat(path, &st) == 0 && S_ISDIR(st.st_mode))
		return fcvm_asprintf("%s/%s", path, base_name);
	return strdup(path);
}

static int unpack_root(struct unpacker *u, const char *base_name)
{
	struct fcvm_tree_entry e;
	int r = get_entry(u, &e);

	if (r < 0)
		return r;
	if (*u->path || e.type == FCVM_TREE_END)
		return malformed(u, "it does not begin with its root");
	if (e.type == FCVM_TREE_DIR) {
		r = unpack_root_dir(u, &e);
		if (r == 0)
			r = unpack_children(u);
		while (u->depth > 0 && r == 0)
			r = pop(u);
		return r;
	}
	if (base_name && (!*base_name || strchr(base_name, '/') || strcmp(base_name, ".") == 0 ||
				 strcmp(base_name, "..") == 0))
		return fcvm_fail(u->err, -EINVAL, "unpack %s: not a file name: '%s'", u->root, base_name);
	u->leaf = leaf_path(u->root, base_name);
	if (!u->leaf)
		return fail_at(u, -ENOMEM, "make");
	if (e.type != FCVM_TREE_FILE)
		r = expect_end(u);
	return r == 0 ? unpack_leaf(u, AT_FDCWD, u->leaf, &e) : r;
}

int fcvm_tree_unpack(int fd, const char *path, const char *base_name, bool keep_owner, struct fcvm_err *err)
{
	struct unpacker *u = malloc(sizeof *u);
	int r;

	if (!u)
		return fcvm_fail_errno(err, -ENOMEM, "unpack %s", path);
	/* Not cleared as a whole: its buffers are large. */
	u->fd = fd;
	u->keep_owner = keep_owner;
	u->root = path;
	u->err = err;
	u->leaf = NULL;
	u->root_made = false;
	u->depth = 0;
	u->in_start = u->in_end = 0;
	u->path[0] = u->target[0] = u->previous[0] = 0;
	show(u);
	r = unpack_root(u, base_name);
	while (u->depth > 0)
		fcvm_close(u->levels[--u->depth].fd);
	if (r < 0 && u->root_made)
		fcvm_tree_remove(AT_FDCWD, path);
	free(u->leaf);
	free(u);
	return r;
}
