/* SPDX-License-Identifier: MIT */
/* Operations on what a file is, not what it holds: attributes, extended attributes, the file system's figures. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "fusepipe/abi.h"
#include "fusepipe/host/server.h"

enum { XATTR_MAX = 65536 };

/* The descriptor to ask: the open file's, which lives on when its name is gone, else the node's; or -errno. */
static int ask(struct server *s, uint64_t ino, const struct fuse_file_info *fi)
{
	struct node *n = node_get(s, ino);
	struct handle *h = fi ? handle_get(s, fi->fh, false) : NULL;

	return h ? h->fd : n ? node_path(s, n) : -ESTALE;
}

static void reply_attr(fuse_req_t req, int fd)
{
	struct server *s = server_of(req);
	struct stat st;

	if (fstatat(fd, "", &st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW)) {
		fuse_reply_err(req, errno);
		return;
	}
	stat_to_guest(s, &st);
	fuse_reply_attr(req, &st, policy_attr_timeout(s));
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	int fd = ask(server_of(req), ino, fi);

	if (fd < 0)
		fuse_reply_err(req, -fd);
	else
		reply_attr(req, fd);
}

/* chmod knows no AT_EMPTY_PATH before Linux 6.6: by way of /proc/self/fd, the working folder. */
static int set_mode(struct server *s, const struct node *n, int fd, mode_t mode)
{
	char self[16];

	if (n->type == S_IFLNK)
		return -EOPNOTSUPP;
	snprintf(self, sizeof self, "%d", fd);
	cred_fsetid(s, true);
	return fchmodat(AT_FDCWD, self, mode & 07777, 0) ? -errno : 0;
}

static int set_owner(struct server *s, int fd, const struct stat *to, int what)
{
	uint32_t uid = -1, gid = -1;

	if (what & FUSE_SET_ATTR_UID && !uid_to_host(s, to->st_uid, &uid))
		return -EOVERFLOW;
	if (what & FUSE_SET_ATTR_GID && !gid_to_host(s, to->st_gid, &gid))
		return -EOVERFLOW;
	return fchownat(fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) ? -errno : 0;
}

static int set_size(struct server *s, struct node *n, const struct handle *h, off_t size)
{
	const struct fuse_setattr_in *in = (const void *)(s->message + 1);
	int fd = h ? h->fd : node_reopen(s, n, O_WRONLY), r;

	if (fd < 0)
		return fd;
	cred_fsetid(s, !(in->valid & FATTR_KILL_SUIDGID));
	r = ftruncate(fd, size) ? -errno : 0;
	if (!h)
		close(fd);
	return r;
}

static int set_times(int fd, const struct stat *to, int what)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};

	if (what & FUSE_SET_ATTR_ATIME_NOW)
		times[0].tv_nsec = UTIME_NOW;
	else if (what & FUSE_SET_ATTR_ATIME)
		times[0] = to->st_atim;
	if (what & FUSE_SET_ATTR_MTIME_NOW)
		times[1].tv_nsec = UTIME_NOW;
	else if (what & FUSE_SET_ATTR_MTIME)
		times[1] = to->st_mtim;
	return utimensat(fd, "", times, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) ? -errno : 0;
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *to, int what, struct fuse_file_info *fi)
{
	struct server *s = server_of(req);
	struct node *n = node_get(s, ino);
	struct handle *h = fi ? handle_get(s, fi->fh, false) : NULL;
	int fd = n ? node_fd(s, n) : -ESTALE, r = fd < 0 ? fd : fi && !h && (fi->fh || !data_unopened(s)) ? -EBADF : 0;

	if (!r && what & FUSE_SET_ATTR_MODE)
		r = set_mode(s, n, fd, to->st_mode);
	/* Nothing to set is chown(-1, -1): it has its effect on set-id bits. */
	if (!r && (what & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID) || !what))
		r = set_owner(s, fd, to, what);
	if (!r && what & FUSE_SET_ATTR_SIZE)
		r = set_size(s, n, h, to->st_size);
	if (!r && what & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME_NOW))
		r = set_times(fd, to, what);
	if (r)
		fuse_reply_err(req, -r);
	else
		reply_attr(req, fd);
}

static void fill_time(struct fuse_sx_time *t, const struct statx_timestamp *from)
{
	*t = (struct fuse_sx_time){.tv_sec = from->tv_sec, .tv_nsec = from->tv_nsec};
}

void op_statx(struct server *s, const struct fuse_in_header *h)
{
	const struct fuse_statx_in *in = (const void *)(h + 1);
	struct fuse_file_info fi = {.fh = in->fh};
	int fd = ask(s, h->nodeid, in->getattr_flags & FUSE_GETATTR_FH ? &fi : NULL);
	struct fuse_statx_out out = {.attr_valid = (uint64_t)policy_attr_timeout(s)};
	struct statx x;
	struct stat st;

	if (fd < 0 || statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, in->sx_mask, &x) ||
		fstatat(fd, "", &st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW)) {
		session_reply(s, h->unique, fd < 0 ? fd : -errno, NULL, 0);
		return;
	}
	stat_to_guest(s, &st);
	out.stat = (struct fuse_statx){
		.mask = x.stx_mask, .blksize = x.stx_blksize, .attributes = x.stx_attributes, .nlink = x.stx_nlink,
		.uid = st.st_uid, .gid = st.st_gid, .mode = x.stx_mode, .ino = st.st_ino, .size = x.stx_size,
		.blocks = x.stx_blocks, .attributes_mask = x.stx_attributes_mask, .rdev_major = x.stx_rdev_major,
		.rdev_minor = x.stx_rdev_minor, .dev_major = x.stx_dev_major, .dev_minor = x.stx_dev_minor,
	};
	fill_time(&out.stat.atime, &x.stx_atime);
	fill_time(&out.stat.btime, &x.stx_btime);
	fill_time(&out.stat.ctime, &x.stx_ctime);
	fill_time(&out.stat.mtime, &x.stx_mtime);
	session_reply(s, h->unique, 0, &out, sizeof out);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	int fd = ask(server_of(req), ino, NULL);
	struct statvfs st;

	if (fd < 0)
		fuse_reply_err(req, -fd);
	else if (fstatvfs(fd, &st))
		fuse_reply_err(req, errno);
	else
		fuse_reply_statfs(req, &st);
}

/* ---- extended attributes: by path only, so by way of /proc/self/fd ---- */

/* An ACL holds ids, and what a file's capabilities permit counts on the host: not where ids are translated. */
static bool is_refused(const struct server *s, const char *name)
{
	if (!strncmp(name, "system.posix_acl_", 17))
		return !(s->init_flags & FUSE_POSIX_ACL);
	return cred_mapped(s) && !strcmp(name, "security.capability");
}

/* 0 with the path, or -errno. */
static int xattr_path(struct server *s, uint64_t ino, const char *name, char path[static 16])
{
	struct node *n = node_get(s, ino);
	int fd = n ? node_fd(s, n) : -ESTALE;

	if (fd < 0)
		return fd;
	if (name && is_refused(s, name))
		return -EOPNOTSUPP;
	snprintf(path, 16, "%d", fd);
	return 0;
}

/* An attribute's value; NULL: their names. */
static void read_xattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	struct server *s = server_of(req);
	void *to = stream_payload(s->current);
	char path[16];
	int r = xattr_path(s, ino, name, path);
	ssize_t n;

	if (r) {
		fuse_reply_err(req, -r);
		return;
	}
	if (size > XATTR_MAX)
		size = XATTR_MAX;
	n = name ? getxattr(path, name, size ? to : NULL, size) : listxattr(path, size ? to : NULL, size);
	if (n < 0)
		fuse_reply_err(req, errno);
	else if (!size)
		fuse_reply_xattr(req, n);
	else
		fuse_reply_buf(req, to, n);
}

static void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	read_xattr(req, ino, name, size);
}

static void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	read_xattr(req, ino, NULL, size);
}

static void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	char path[16];
	int r = xattr_path(server_of(req), ino, name, path);

	fuse_reply_err(req, r ? -r : removexattr(path, name) ? errno : 0);
}

void op_setxattr_ext(struct server *s, const struct fuse_in_header *h)
{
	const struct fuse_setxattr_in *in = (const void *)(h + 1);
	const char *name = (const char *)(in + 1), *value = name + strlen(name) + 1;
	struct fuse_ctx caller = {.uid = h->uid, .gid = h->gid};
	char path[16];
	int r = xattr_path(s, h->nodeid, name, path);

	if (!r) {
		/* An ACL's mode bits may cost the set-group-id bit: the guest's kernel says whether they do. */
		cred_take(s, &caller);
		cred_fsetid(s, !(in->setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID));
		r = setxattr(path, name, value, in->size, (int)in->flags) ? -errno : 0;
	}
	session_reply(s, h->unique, r, NULL, 0);
}

void ops_attributes(struct fuse_lowlevel_ops *ops)
{
	ops->getattr = op_getattr;
	ops->setattr = op_setattr;
	ops->statfs = op_statfs;
	ops->getxattr = op_getxattr;
	ops->listxattr = op_listxattr;
	ops->removexattr = op_removexattr;
}
