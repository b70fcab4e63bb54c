/* SPDX-License-Identifier: MIT */
/* Operations on names: look up, make, link, rename, remove. Each opens one component beneath a node's folder. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fusepipe/abi.h"
#include "fusepipe/host/server.h"

/*
 * fd or -errno. The validator lets pass neither '/' nor ".."; this holds if it were wrong, and when the host renames
 * things meanwhile.
 */
int node_open_beneath(struct server *s, struct node *parent, const char *name, uint64_t flags, mode_t mode)
{
	int dir = node_fd(s, parent);
	struct open_how how = {
		.flags = flags | O_NOFOLLOW | O_CLOEXEC,
		.mode = flags & O_CREAT ? mode & 07777 : 0,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
	};

	if (dir < 0)
		return dir;
	for (;;) {
		int fd = (int)syscall(SYS_openat2, dir, name, &how, sizeof how);

		if (fd >= 0 || (errno != EAGAIN && errno != EINTR))
			return fd < 0 ? -errno : fd;
	}
}

int node_reopen(struct server *s, struct node *n, int flags)
{
	char name[16];
	int fd = node_fd(s, n);

	/* The working folder is /proc/self/fd. Never a device or a FIFO: that would act, or wait. */
	if (n->type != S_IFREG && n->type != S_IFDIR)
		return n->type == S_IFLNK ? -ELOOP : -ENXIO;
	if (fd < 0)
		return fd;
	snprintf(name, sizeof name, "%d", fd);
	fd = open(name, flags | O_CLOEXEC | O_NOCTTY);
	if (fd < 0 && errno == EPERM && flags & O_NOATIME)
		fd = open(name, (flags & ~O_NOATIME) | O_CLOEXEC | O_NOCTTY);
	return fd < 0 ? -errno : fd;
}

void stat_to_guest(const struct server *s, struct stat *st)
{
	/* A file system mounted beneath the folder has numbers of its own, which must not meet the folder's. */
	if (st->st_dev != s->root_dev)
		st->st_ino ^= (ino_t)(major(st->st_dev) * 256 + minor(st->st_dev) + 1) << 44;
	st->st_uid = uid_to_guest(s, st->st_uid);
	st->st_gid = gid_to_guest(s, st->st_gid);
}

int entry_of(struct server *s, int fd, struct fuse_entry_param *e)
{
	int64_t index;

	*e = (struct fuse_entry_param){.ino = 0};
	if (fstatat(fd, "", &e->attr, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW)) {
		int r = -errno;

		fcvm_close(fd);
		return r;
	}
	index = node_know(s, fd, &e->attr);
	if (index < 0)
		return (int)index;
	e->ino = node_id(&s->nodes, (uint32_t)index);
	stat_to_guest(s, &e->attr);
	policy_entry(s, e);
	return 0;
}

int entry_by_name(struct server *s, struct node *parent, const char *name, struct fuse_entry_param *e)
{
	int fd = node_open_beneath(s, parent, name, O_PATH, 0);

	return fd < 0 ? fd : entry_of(s, fd, e);
}

static void reply_entry(fuse_req_t req, int r, const struct fuse_entry_param *e)
{
	if (r < 0)
		fuse_reply_err(req, -r);
	else
		fuse_reply_entry(req, e);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct server *s = server_of(req);
	struct node *n = node_get(s, parent);
	struct fuse_entry_param e;

	reply_entry(req, n ? entry_by_name(s, n, name, &e) : -ESTALE, &e);
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t lookups)
{
	node_forget(server_of(req), ino, lookups);
	fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	struct server *s = server_of(req);

	for (size_t i = 0; i < count; i++)
		node_forget(s, forgets[i].ino, forgets[i].nlookup);
	fuse_reply_none(req);
}

static void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
	struct server *s = server_of(req);
	struct node *n = node_get(s, ino);
	int fd = n ? node_fd(s, n) : -ESTALE;
	char target[PATH_MAX + 1];
	ssize_t size;

	if (fd < 0) {
		fuse_reply_err(req, -fd);
		return;
	}
	size = readlinkat(fd, "", target, sizeof target);
	if (size < 0 || size == sizeof target) {
		fuse_reply_err(req, size < 0 ? errno : ENAMETOOLONG);
		return;
	}
	target[size] = 0;
	fuse_reply_readlink(req, target);
}

/* Creations: `r` is what the system call said; then the new name is looked up. */
static void made(fuse_req_t req, struct node *parent, const char *name, int r)
{
	struct fuse_entry_param e;

	if (r < 0)
		r = -errno;
	else
		r = entry_by_name(server_of(req), parent, name, &e);
	reply_entry(req, r, &e);
}

/* The folder in which something is to be made for the caller, its descriptor open; NULL: answered. */
static struct node *make_in(fuse_req_t req, fuse_ino_t parent)
{
	struct server *s = server_of(req);
	struct node *n = node_get(s, parent);
	int fd = n ? node_fd(s, n) : -ESTALE, r = fd < 0 ? fd : nodes_room(s);

	/* Without room nothing is made: it would be there, and yet refused. */
	if (r) {
		fuse_reply_err(req, -r);
		return NULL;
	}
	cred_take(s, fuse_req_ctx(req));
	/* The guest's kernel has cleared the set-group-id bit where it must be. */
	cred_fsetid(s, true);
	return n;
}

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	struct server *s = server_of(req);
	struct node *n;

	/* A device that a guest makes would be one on the host; 0:0 is overlayfs's whiteout, and none. */
	if ((S_ISBLK(mode) || (S_ISCHR(mode) && rdev)) && !s->volume.devices) {
		fuse_reply_err(req, EPERM);
		return;
	}
	n = make_in(req, parent);
	if (n)
		made(req, n, name, mknodat(n->fd, name, mode, rdev));
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	struct node *n = make_in(req, parent);

	if (n)
		made(req, n, name, mkdirat(n->fd, name, mode));
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	struct node *n = make_in(req, parent);

	if (n)
		made(req, n, name, symlinkat(target, n->fd, name));
}

static void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
	struct server *s = server_of(req);
	struct node *n = node_get(s, ino), *folder = node_get(s, parent);
	struct fuse_entry_param e;
	int fd = n ? node_fd(s, n) : -ESTALE, dir = folder ? node_fd(s, folder) : -ESTALE;
	char self[16];
	int r;

	if (fd < 0 || dir < 0) {
		fuse_reply_err(req, fd < 0 ? -fd : -dir);
		return;
	}
	snprintf(self, sizeof self, "%d", fd);
	r = linkat(AT_FDCWD, self, dir, name, AT_SYMLINK_FOLLOW);
	/* The same node, not whatever the name is by now. */
	r = r < 0 ? -errno : fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (r >= 0)
		r = entry_of(s, r, &e);
	reply_entry(req, r, &e);
}

static void remove_name(fuse_req_t req, fuse_ino_t parent, const char *name, int flags)
{
	struct server *s = server_of(req);
	struct node *n = node_get(s, parent);
	int dir = n ? node_fd(s, n) : -ESTALE;

	fuse_reply_err(req, dir < 0 ? -dir : unlinkat(dir, name, flags) ? errno : 0);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	remove_name(req, parent, name, 0);
}

static void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	remove_name(req, parent, name, AT_REMOVEDIR);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t to, const char *new_name,
	unsigned flags)
{
	struct server *s = server_of(req);
	struct node *n = node_get(s, parent), *m = node_get(s, to);
	int from = n ? node_fd(s, n) : -ESTALE, into = m ? node_fd(s, m) : -ESTALE;

	if (from < 0 || into < 0)
		fuse_reply_err(req, from < 0 ? -from : -into);
	else
		fuse_reply_err(req, renameat2(from, name, into, new_name, flags) ? errno : 0);
}

/* A new open file of an entry. The entry's lookup is taken back on failure. */
static int opened(struct server *s, int fd, struct fuse_entry_param *e, struct fuse_file_info *fi)
{
	int64_t id;

	if (data_unopened(s)) {
		data_made(s, e->ino, fd, fi->flags);
		fi->keep_cache = true;
		return 0;
	}
	id = handle_new(s, fd, node_index(e->ino), false);
	if (id < 0) {
		node_forget(s, e->ino, 1);
		return (int)id;
	}
	fi->fh = (uint64_t)id;
	return 0;
}

/* The node of a file just made, by its descriptor: its name may be another's already. */
static int entry_of_file(struct server *s, int fd, struct fuse_entry_param *e)
{
	char name[16];
	int path;

	snprintf(name, sizeof name, "%d", fd);
	path = open(name, O_PATH | O_CLOEXEC);
	return path < 0 ? -errno : entry_of(s, path, e);
}

/* fs.protected_regular: in a folder that is sticky and others may write to, O_CREAT opens nobody else's file. */
static bool is_protected(struct server *s, struct node *folder, const struct stat *file)
{
	struct stat st;

	if (fstatat(node_fd(s, folder), "", &st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW))
		return true;
	return st.st_mode & S_ISVTX && st.st_mode & (S_IWGRP | S_IWOTH) && file->st_uid != st.st_uid &&
		file->st_uid != s->fsuid;
}

/*
 * Somebody else made it first. The guest's kernel takes it for made by this caller and checks nothing; so it is opened
 * with what his ids alone permit. Whatever else there may be (his groups, his capabilities, a link to be followed) is for
 * that kernel to decide: ESTALE makes it look the name up again.
 */
static int open_existing(struct server *s, struct node *folder, const char *name, int flags, struct fuse_entry_param *e)
{
	int fd = node_open_beneath(s, folder, name, O_PATH, 0), r;
	struct stat st;
	struct node *n;

	if (fd < 0)
		return fd == -ENOENT ? -ESTALE : fd;
	if (fstatat(fd, "", &st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode) || is_protected(s, folder, &st)) {
		fcvm_close(fd);
		return -ESTALE;
	}
	r = entry_of(s, fd, e);
	if (r)
		return r;
	n = node_get(s, e->ino);
	fd = cred_powers(s, false) ? node_reopen(s, n, flags) : -EACCES;
	cred_powers(s, true);
	if (fd < 0)
		node_forget(s, e->ino, 1);
	return fd == -EACCES || fd == -EPERM ? -ESTALE : fd;
}

static int create(fuse_req_t req, struct node *folder, const char *name, mode_t mode, struct fuse_entry_param *e,
	struct fuse_file_info *fi)
{
	struct server *s = server_of(req);
	int flags = data_flags(s, fi->flags), r = 0;
	int fd = node_open_beneath(s, folder, name, flags | O_CREAT | O_EXCL, mode);

	if (fd >= 0)
		r = entry_of_file(s, fd, e);
	else if (fd == -EEXIST && !(fi->flags & O_EXCL))
		fd = open_existing(s, folder, name, flags | (fi->flags & O_TRUNC), e);
	if (fd < 0)
		return fd;
	if (r) {
		fcvm_close(fd);
		return r;
	}
	return opened(s, fd, e, fi);
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	struct node *folder = make_in(req, parent);
	struct fuse_entry_param e;
	int r;

	if (!folder)
		return;
	r = create(req, folder, name, mode, &e, fi);
	if (r)
		fuse_reply_err(req, -r);
	else
		fuse_reply_create(req, &e, fi);
}

static void fill_attr(struct fuse_attr *a, const struct stat *st)
{
	*a = (struct fuse_attr){
		.ino = st->st_ino, .size = st->st_size, .blocks = st->st_blocks, .atime = st->st_atim.tv_sec,
		.mtime = st->st_mtim.tv_sec, .ctime = st->st_ctim.tv_sec, .atimensec = st->st_atim.tv_nsec,
		.mtimensec = st->st_mtim.tv_nsec, .ctimensec = st->st_ctim.tv_nsec, .mode = st->st_mode,
		.nlink = st->st_nlink, .uid = st->st_uid, .gid = st->st_gid, .rdev = st->st_rdev,
		.blksize = st->st_blksize,
	};
}

static int tmpfile_in(struct server *s, const struct fuse_in_header *h, struct fuse_entry_param *e,
	struct fuse_file_info *fi)
{
	const struct fuse_create_in *in = (const void *)(h + 1);
	struct fuse_ctx caller = {.uid = h->uid, .gid = h->gid, .umask = in->umask};
	struct node *folder = node_get(s, h->nodeid);
	int fd = folder ? node_fd(s, folder) : -ESTALE, r;
	char name[16];

	if (fd < 0)
		return fd;
	cred_take(s, &caller);
	cred_fsetid(s, true);
	snprintf(name, sizeof name, "%d", fd);
	fd = open(name, O_TMPFILE | O_CLOEXEC | data_flags(s, (int)in->flags) | ((int)in->flags & O_EXCL), in->mode & 07777);
	if (fd < 0)
		return -errno;
	r = entry_of_file(s, fd, e);
	if (r) {
		fcvm_close(fd);
		return r;
	}
	fi->flags = (int)in->flags;
	return opened(s, fd, e, fi);
}

void op_tmpfile(struct server *s, const struct fuse_in_header *h)
{
	struct fuse_file_info fi = {.fh = 0};
	struct fuse_entry_param e;
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} out = {.open.fh = 0};
	int r = tmpfile_in(s, h, &e, &fi);

	if (r) {
		session_reply(s, h->unique, r, NULL, 0);
		return;
	}
	out.entry.nodeid = e.ino;
	out.entry.attr_valid = out.entry.entry_valid = (uint64_t)e.attr_timeout;
	fill_attr(&out.entry.attr, &e.attr);
	out.open.fh = fi.fh;
	session_reply(s, h->unique, 0, &out, sizeof out);
}

void ops_names(struct fuse_lowlevel_ops *ops)
{
	ops->lookup = op_lookup;
	ops->forget = op_forget;
	ops->forget_multi = op_forget_multi;
	ops->readlink = op_readlink;
	ops->mknod = op_mknod;
	ops->mkdir = op_mkdir;
	ops->symlink = op_symlink;
	ops->link = op_link;
	ops->unlink = op_unlink;
	ops->rmdir = op_rmdir;
	ops->rename = op_rename;
	ops->create = op_create;
}
