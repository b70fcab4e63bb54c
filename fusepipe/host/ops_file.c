/* SPDX-License-Identifier: MIT */
/* Operations on open files. What is in the host's page cache is answered at once; what may wait goes to the pool. */
#include <errno.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fusepipe/abi.h"
#include "fusepipe/host/server.h"

/* One copy's most: the reply's count has 32 bits, and a job is not to last for ever. */
enum { COPY_MAX = 256 << 20 };

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct server *s = server_of(req);
	struct node *n = node_get(s, ino);
	bool keep = false;
	int64_t id;
	int fd, r;

	if (data_unopened(s)) {
		fuse_reply_err(req, ENOSYS);
		return;
	}
	fd = !n ? -ESTALE : n->type != S_IFREG ? -ENXIO : node_reopen(s, n, fi->flags & OPEN_FLAGS);
	r = fd < 0 ? fd : policy_open(s, n, fd, &keep);
	if (r < 0) {
		fcvm_close(fd);
		fuse_reply_err(req, -r);
		return;
	}
	fi->keep_cache = keep;
	id = handle_new(s, fd, node_index(ino), false);
	if (id < 0) {
		fuse_reply_err(req, (int)-id);
		return;
	}
	fi->fh = (uint64_t)id;
	fuse_reply_open(req, fi);
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct server *s = server_of(req);

	/* flock's lock goes with the descriptor. */
	if (data_unopened(s)) {
		fuse_reply_err(req, 0);
	} else if (handle_get(s, fi->fh, false)) {
		handle_release(s, fi->fh);
		fuse_reply_err(req, 0);
	} else {
		fuse_reply_err(req, EBADF);
	}
}

static void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct server *s = server_of(req);
	struct handle *h = handle_get(s, fi->fh, false);
	int fd;

	if (data_unopened(s)) {
		fuse_reply_err(req, ENOSYS);
		return;
	}
	if (!h) {
		fuse_reply_err(req, EBADF);
		return;
	}
	lock_owner_gone(s, node_at(&s->nodes, h->node), fi->lock_owner);
	/* What a file system has to say at close(2), as NFS about its writes. */
	fd = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
	fuse_reply_err(req, fd >= 0 && close(fd) ? errno : 0);
}

/* ---- reading ---- */

static void run_read(struct job *j)
{
	size_t got = 0;
	ssize_t n;

	do {
		n = pread(j->fd, j->data + got, j->size - got, j->a + (off_t)got);
		got += n > 0 ? (size_t)n : 0;
	} while (got < j->size && (n > 0 || (n < 0 && errno == EINTR)));
	/* An error, not what was read before it: less than was asked for is the file's end to the guest. */
	j->result = n < 0 ? -errno : (int64_t)got;
}

static void answer_read(struct server *s, struct job *j)
{
	if (j->result < 0)
		fuse_reply_err(j->req, (int)-j->result);
	else
		fuse_reply_buf(j->req, j->data, (size_t)j->result);
}

/* What needs no waiting: the whole count, or less at the end of the file; -EAGAIN otherwise. */
static ssize_t read_now(int fd, char *to, size_t size, off_t off)
{
	size_t got = 0;

	while (got < size) {
		struct iovec iov = {to + got, size - got};
		ssize_t n = preadv2(fd, &iov, 1, off + (off_t)got, RWF_NOWAIT);

		if (n < 0 && errno == EOPNOTSUPP)
			n = pread(fd, iov.iov_base, iov.iov_len, off + (off_t)got);
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		got += n;
	}
	return (ssize_t)got;
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct server *s = server_of(req);
	struct handle *h = data_handle(s, ino, &fi->fh, DATA_READ);
	char *to = stream_payload(s->current);
	struct job *j;
	ssize_t n;

	if (!h) {
		fuse_reply_err(req, errno);
		return;
	}
	if (size > FCVM_FUSE_MAX_DATA)
		size = FCVM_FUSE_MAX_DATA;
	n = read_now(h->fd, to, size, off);
	if (n >= 0) {
		fuse_reply_buf(req, to, n);
		return;
	}
	j = n == -EAGAIN ? job_new(s, req, fi->fh, size) : NULL;
	if (!j) {
		fuse_reply_err(req, n == -EAGAIN ? ENOMEM : (int)-n);
		return;
	}
	j->a = off;
	j->run = run_read;
	j->answer = answer_read;
	job_start(s, j);
}

/* ---- writing ---- */

/* What a file opened with O_SYNC or O_DSYNC waits for at each write: not in the loop, which the others wait for. */
static void answer_write(fuse_req_t req, uint64_t fh, size_t put)
{
	struct server *s = server_of(req);
	const struct fuse_write_in *in = (const void *)(s->message + 1);
	struct job *j = NULL;

	if (!put || !(in->flags & O_DSYNC)) {
		fuse_reply_write(req, put);
		return;
	}
	j = job_new(s, req, fh, 0);
	if (j)
		sync_wait(s, j, (in->flags & O_SYNC) != O_SYNC, put);
	else
		fuse_reply_err(req, ENOMEM);
}

static void op_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct server *s = server_of(req);
	const struct fuse_write_in *in = (const void *)(s->message + 1);
	struct handle *h = data_handle(s, ino, &fi->fh, DATA_WRITE);
	size_t put = 0;
	/*
	 * O_APPEND as the file's flags are now. What comes from the guest's page cache has its place already, and comes
	 * by any handle.
	 */
	int how = in->flags & O_APPEND && !(in->write_flags & FUSE_WRITE_CACHE) ? RWF_APPEND : 0;

	if (!h) {
		fuse_reply_err(req, errno);
		return;
	}
	/* Which bits go depends on the writer's group too. */
	if (in->write_flags & FUSE_WRITE_KILL_SUIDGID)
		cred_take(s, &(struct fuse_ctx){.uid = s->message->uid, .gid = s->message->gid, .umask = s->umask});
	cred_fsetid(s, !(in->write_flags & FUSE_WRITE_KILL_SUIDGID));
	while (put < size) {
		struct iovec iov = {(char *)data + put, size - put};
		ssize_t n = pwritev2(h->fd, &iov, 1, off + (off_t)put, how);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && !put) {
			fuse_reply_err(req, errno);
			return;
		}
		if (n <= 0)
			break;
		put += n;
	}
	answer_write(req, fi->fh, put);
}

/* ---- what may last ---- */

/* A job on an open file; NULL: answered. */
static struct job *job_on(fuse_req_t req, uint64_t ino, uint64_t fh, enum data_use use)
{
	struct server *s = server_of(req);
	struct job *j;

	if (!data_handle(s, ino, &fh, use)) {
		fuse_reply_err(req, errno);
		return NULL;
	}
	j = job_new(s, req, fh, 0);
	if (!j)
		fuse_reply_err(req, ENOMEM);
	return j;
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct job *j = job_on(req, ino, fi->fh, DATA_ANY);

	if (j)
		sync_wait(server_of(req), j, datasync, 0);
}

/* Neither message says whether its caller may keep set-id bits; root may, as a rule. */
static bool keeps_set_ids(const struct server *s)
{
	return s->privileged && s->message->uid == 0;
}

/* A job has changed the file of the handle with this index: now, for what was told before is what it was. */
static void changed(struct server *s, uint32_t handle)
{
	policy_changed(s, node_id(&s->nodes, handle_at(&s->handles, handle)->node));
}

static void run_fallocate(struct job *j)
{
	cred_thread_fsetid(j->fsetid);
	j->result = fallocate(j->fd, (int)j->flags, j->a, j->b) ? -errno : 0;
}

static void answer_fallocate(struct server *s, struct job *j)
{
	changed(s, j->handle);
	fuse_reply_err(j->req, (int)-j->result);
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t length, struct fuse_file_info *fi)
{
	struct job *j = job_on(req, ino, fi->fh, DATA_WRITE);

	if (!j)
		return;
	j->flags = mode;
	j->a = off;
	j->b = length;
	j->fsetid = keeps_set_ids(server_of(req));
	j->run = run_fallocate;
	j->answer = answer_fallocate;
	job_start(server_of(req), j);
}

static void run_copy(struct job *j)
{
	off64_t from = j->a, to = j->b;
	ssize_t n;

	cred_thread_fsetid(j->fsetid);
	n = copy_file_range(j->fd, &from, j->fd2, &to, (size_t)j->c, j->flags);
	j->result = n < 0 ? -errno : n;
}

static void answer_copy(struct server *s, struct job *j)
{
	struct fuse_copy_file_range_out out = {.bytes_copied = (uint64_t)j->result};

	changed(s, j->handle2);
	if (!j->req)
		session_reply(s, j->unique, j->result < 0 ? (int)j->result : 0, &out, j->result < 0 ? 0 : sizeof out);
	else if (j->result < 0)
		fuse_reply_err(j->req, (int)-j->result);
	else
		fuse_reply_write(j->req, (size_t)j->result);
}

/* Of the file `ino`. 0, or -errno: nothing was started. */
static int copy(struct server *s, fuse_req_t req, uint64_t ino, const struct fuse_copy_file_range_in *in)
{
	uint64_t from = in->fh_in, to = in->fh_out;
	struct job *j;

	if (!data_handle(s, ino, &from, DATA_READ) || !data_handle(s, in->nodeid_out, &to, DATA_WRITE))
		return -errno;
	j = job_new(s, req, from, 0);
	if (!j)
		return -ENOMEM;
	job_second(s, j, to);
	j->a = (int64_t)in->off_in;
	j->b = (int64_t)in->off_out;
	j->c = in->len > COPY_MAX ? COPY_MAX : (int64_t)in->len;
	j->flags = (uint32_t)in->flags;
	j->fsetid = keeps_set_ids(s);
	j->run = run_copy;
	j->answer = answer_copy;
	job_start(s, j);
	return 0;
}

static void op_copy_file_range(fuse_req_t req, fuse_ino_t in, off_t off_in, struct fuse_file_info *fi_in,
	fuse_ino_t out, off_t off_out, struct fuse_file_info *fi_out, size_t len, int flags)
{
	const struct fuse_copy_file_range_in how = {.fh_in = fi_in->fh, .off_in = off_in, .nodeid_out = out, .fh_out = fi_out->fh,
		.off_out = off_out, .len = len, .flags = flags};
	int r = copy(server_of(req), req, in, &how);

	if (r)
		fuse_reply_err(req, -r);
}

void op_copy_64(struct server *s, const struct fuse_in_header *h)
{
	int r = copy(s, NULL, h->nodeid, (const void *)(h + 1));

	if (r)
		session_reply(s, h->unique, r, NULL, 0);
}

static void run_syncfs(struct job *j)
{
	j->result = syncfs(j->fd) ? -errno : 0;
	close(j->fd);
}

static void answer_raw(struct server *s, struct job *j)
{
	session_reply(s, j->unique, (int)j->result, NULL, 0);
}

void op_syncfs(struct server *s, const struct fuse_in_header *h)
{
	struct node *n = node_get(s, h->nodeid);
	/* syncfs(2) takes no O_PATH descriptor. */
	int fd = n ? node_reopen(s, n, O_RDONLY) : -ESTALE;
	struct job *j = fd < 0 ? NULL : job_new(s, NULL, 0, 0);

	if (!j) {
		session_reply(s, h->unique, fd < 0 ? fd : -ENOMEM, NULL, 0);
		fcvm_close(fd);
		return;
	}
	j->fd = fd;
	j->run = run_syncfs;
	j->answer = answer_raw;
	job_start(s, j);
}

/* ---- the rest ---- */

static void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
	struct handle *h = data_handle(server_of(req), ino, &fi->fh, DATA_READ);
	off_t at;

	if (!h) {
		fuse_reply_err(req, errno);
		return;
	}
	at = lseek(h->fd, off, whence);
	if (at < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_lseek(req, at);
}

/* lsattr and chattr; any other ioctl could be anything. */
static void op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned cmd, void *arg, struct fuse_file_info *fi, unsigned flags,
	const void *in, size_t in_size, size_t out_size)
{
	struct server *s = server_of(req);
	struct handle *h = data_handle(s, ino, &fi->fh, flags & FUSE_IOCTL_DIR ? DATA_FOLDER : DATA_ANY);
	bool set = cmd == FS_IOC_SETFLAGS || cmd == FS_IOC_FSSETXATTR;
	union {
		int flags;
		struct fsxattr x;
	} u = {.flags = 0};
	size_t size = cmd == FS_IOC_GETFLAGS || cmd == FS_IOC_SETFLAGS ? sizeof u.flags : sizeof u.x;

	if (!h) {
		fuse_reply_err(req, errno);
		return;
	}
	if (!set && cmd != FS_IOC_GETFLAGS && cmd != FS_IOC_FSGETXATTR) {
		fuse_reply_err(req, ENOTTY);
		return;
	}
	if ((set ? in_size : out_size) < size || (set && s->volume.readonly)) {
		fuse_reply_err(req, set && s->volume.readonly ? EROFS : EINVAL);
		return;
	}
	if (set)
		memcpy(&u, in, size);
	if (ioctl(h->fd, cmd, &u))
		fuse_reply_err(req, errno);
	else
		fuse_reply_ioctl(req, 0, &u, set ? 0 : size);
}

void ops_files(struct fuse_lowlevel_ops *ops)
{
	ops->open = op_open;
	ops->release = op_release;
	ops->flush = op_flush;
	ops->read = op_read;
	ops->write = op_write;
	ops->fsync = op_fsync;
	ops->fallocate = op_fallocate;
	ops->copy_file_range = op_copy_file_range;
	ops->lseek = op_lseek;
	ops->ioctl = op_ioctl;
}
