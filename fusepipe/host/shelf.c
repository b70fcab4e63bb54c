/* SPDX-License-Identifier: MIT */
/*
 * More files than descriptors. A guest with memory to spare may know of far more files than the process may have
 * descriptors, and never forget one. So those of nodes that were not used lately are closed, and opened again by the
 * file handle (name_to_handle_at(2)) when they are. A handle names one file for ever: if that was removed it is stale,
 * though its inode number be in use again.
 *
 * Opening by a handle goes past the folder's walls, so those that come out of a saved state are not taken on trust:
 * what they open has to be found beneath the folder. It takes CAP_DAC_READ_SEARCH and a file system that has them;
 * elsewhere nothing is shelved, nor are files with open handles or locks, those that may be open without a name, and
 * those on file systems mounted beneath. Of such a guest may know as many as there are descriptors for, further ones
 * are refused (ENFILE).
 */
#include <errno.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/cleanup.h"
#include "fusepipe/host/server.h"

enum {
	BATCH = 16, /* one in so many of those that may be open is closed at a time */
};

/* ---- file handles ---- */

struct full_handle {
	struct file_handle h;
	unsigned char bytes[MAX_HANDLE_SZ];
};

static bool handle_of(int fd, struct full_handle *ret)
{
	int mount;

	*ret = (struct full_handle){.h.handle_bytes = MAX_HANDLE_SZ};
	return name_to_handle_at(fd, "", &ret->h, &mount, AT_EMPTY_PATH) == 0;
}

struct file_handle *shelf_handle(int fd)
{
	struct full_handle h;
	struct file_handle *ret;

	if (!handle_of(fd, &h))
		return NULL;
	ret = malloc(sizeof h.h + h.h.handle_bytes);
	if (ret)
		memcpy(ret, &h, sizeof h.h + h.h.handle_bytes);
	return ret;
}

void shelf_open(struct server *s, int root_fd)
{
	struct full_handle h;
	char self[16];
	int fd, again;

	/* Not as O_PATH, which open_by_handle_at(2) does not take. */
	snprintf(self, sizeof self, "%d", root_fd);
	fd = open(self, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	s->shelf = -1;
	if (fd < 0 || !handle_of(root_fd, &h)) {
		fcvm_close(fd);
		return;
	}
	again = open_by_handle_at(fd, &h.h, O_PATH | O_CLOEXEC);
	s->shelf = again < 0 ? fcvm_close(fd) : fd;
	fcvm_close(again);
}

/* ---- making room ---- */

/* Without a name, and the guest may have it open without a word (data.c): it would end with its last descriptor. */
static bool is_last(struct server *s, const struct node *n)
{
	struct stat st;

	return data_unopened(s) && (fstatat(n->fd, "", &st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) || !st.st_nlink);
}

static bool shelve(struct server *s, struct node *n)
{
	if (n->used_at != s->turn)
		data_drop(s, n, false);
	if (n->fd < 0 || !n->known || n->handles || n->owners || n->dev != s->root_dev || n->used_at == s->turn ||
		is_last(s, n))
		return false;
	if (!n->shelved) {
		n->shelved = shelf_handle(n->fd);
		if (!n->shelved)
			return false;
	}
	n->fd = fcvm_close(n->fd);
	s->nodes.open--;
	return true;
}

int shelf_make_room(struct server *s)
{
	struct nodes *t = &s->nodes;
	uint32_t few = t->max_open / BATCH + 1, enough = t->max_open - few;

	if (t->open < t->max_open)
		return 0;
	/* One round at most: 2 is the first that is not the root, which stays open. */
	for (uint32_t i = 0; s->shelf >= 0 && i < t->size && t->open > enough; i++) {
		t->hand = t->hand + 1 < t->size ? t->hand + 1 : 2;
		shelve(s, node_at(t, t->hand));
	}
	/* What cannot be shelved stays open: then there are more, as far as the limit for descriptors goes. */
	if (t->open > enough)
		t->max_open = s->max_open - t->max_open < few ? s->max_open : t->max_open + few;
	return t->open < t->max_open ? 0 : -ENFILE;
}

/* ---- places: where files of a saved state were ---- */

/* Where an open file is beneath the root, as the kernel tells it now. "": nowhere that is known. */
static void path_of(struct server *s, int fd, char *to, size_t size)
{
	char self[16], root[PATH_MAX];
	ssize_t n, skip;

	to[0] = 0;
	snprintf(self, sizeof self, "%d", node_at(&s->nodes, FUSE_ROOT_ID)->fd);
	skip = readlinkat(AT_FDCWD, self, root, sizeof root);
	snprintf(self, sizeof self, "%d", fd);
	n = readlinkat(AT_FDCWD, self, to, size - 1);
	if (skip == 1) /* "/" */
		skip = 0;
	if (skip < 0 || n <= skip + 1 || memcmp(to, root, skip) != 0 || to[skip] != '/') {
		to[0] = 0;
		return;
	}
	memmove(to, to + skip + 1, n - skip - 1);
	to[n - skip - 1] = 0;
}

struct place *shelf_place(struct server *s, int fd)
{
	char path[PATH_MAX];
	struct statx st = {.stx_mask = 0};
	struct place *p;

	path_of(s, fd, path, sizeof path);
	if (statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_BTIME | STATX_NLINK, &st) || !st.stx_nlink)
		path[0] = 0;
	p = malloc(sizeof *p + strlen(path) + 1);
	if (!p)
		return NULL;
	*p = (struct place){.born_s = (uint64_t)st.stx_btime.tv_sec, .born_ns = st.stx_btime.tv_nsec};
	strcpy(p->path, path);
	return p;
}

/* Opens what is at a path beneath the root; or -errno. */
static int open_place(struct server *s, const char *path)
{
	struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS};
	int fd = *path ? (int)syscall(SYS_openat2, node_at(&s->nodes, FUSE_ROOT_ID)->fd, path, &how, sizeof how) : -1;

	return fd >= 0 ? fd : *path ? -errno : -ESTALE;
}

/* By its numbers and, where no handle says more, the time it was made. */
static bool is_node(struct server *s, const struct node *n, int fd)
{
	struct statx st;
	struct stat about;

	if (fstatat(fd, "", &about, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) ||
		statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_BTIME, &st))
		return false;
	return about.st_ino == n->ino && about.st_dev == n->dev && (about.st_mode & S_IFMT) == n->type &&
		(n->shelved || !n->place || (n->place->born_s == (uint64_t)st.stx_btime.tv_sec &&
		n->place->born_ns == st.stx_btime.tv_nsec));
}

/*
 * Whether what was opened by a handle out of a file is the volume's: it is where it was, or where the kernel says it is
 * now; or it has no name any more, and so no folder.
 */
static bool is_beneath(struct server *s, const struct node *n, int fd)
{
	char now[PATH_MAX];
	const char *paths[] = {n->place->path, now};
	struct stat st;

	path_of(s, fd, now, sizeof now);
	for (unsigned i = 0; i < 2; i++) {
		_cleanup_close_ int there = open_place(s, paths[i]);

		if (there >= 0 && is_node(s, n, there))
			return is_node(s, n, fd);
	}
	return !fstatat(fd, "", &st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) && !st.st_nlink && S_ISREG(st.st_mode);
}

static int take_place(struct server *s, struct node *n)
{
	int fd = open_place(s, n->place->path);

	if (fd >= 0 && is_node(s, n, fd))
		return fd;
	fcvm_close(fd);
	return fd >= 0 || fd == -ENOENT || fd == -ENOTDIR ? -ESTALE : fd;
}

/* ---- opening again, by the one or the other ---- */

int shelf_take(struct server *s, struct node *n)
{
	int fd;

	if (!n->shelved)
		return n->place ? take_place(s, n) : -ESTALE;
	fd = open_by_handle_at(s->shelf, n->shelved, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (n->place && !is_beneath(s, n, fd)) {
		fcvm_close(fd);
		return -ESTALE;
	}
	return fd;
}

bool shelf_is(struct server *s, const struct node *n, int fd)
{
	struct full_handle h;

	if (!n->shelved)
		return n->place && is_node(s, n, fd);
	return handle_of(fd, &h) && h.h.handle_type == n->shelved->handle_type &&
		h.h.handle_bytes == n->shelved->handle_bytes &&
		!memcmp(h.h.f_handle, n->shelved->f_handle, h.h.handle_bytes);
}
