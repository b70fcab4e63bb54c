/* SPDX-License-Identifier: MIT */
/*
 * fuse-inprocess SRC MOUNTPOINT [--timeout SECONDS] - the rival on one host: a passthrough on libfuse3's low-level API in
 * the usual way, in the process that reads /dev/fuse itself, with libfuse's own threads (fuse_session_loop_mt, a clone of
 * the device each). It does what libfuse's example passthrough_ll does at its defaults (contents are dropped at each open,
 * payloads are spliced where libfuse can), with two differences in its favour: nodes are found by hash, and the table
 * of descriptors is grown before there are threads, where each doubling would wait for all processors.
 *
 * Returns when it is mounted; ends with the mount.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

enum { BUCKETS = 4096, GROWN = 16000 };

struct node {
	struct node *next;
	int fd; /* O_PATH */
	dev_t dev;
	ino_t ino;
	uint64_t lookups;
};

static struct node root, *buckets[BUCKETS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* buckets and lookups */
static double timeout_s = 1;

static struct node *node_of(fuse_ino_t ino)
{
	return ino == FUSE_ROOT_ID ? &root : (struct node *)(uintptr_t)ino;
}

static int fd_of(fuse_ino_t ino)
{
	return node_of(ino)->fd;
}

static struct node **bucket_of(dev_t dev, ino_t ino)
{
	return &buckets[(ino * 0x9e3779b97f4a7c15 ^ dev) % BUCKETS];
}

/* Takes fd. */
static struct node *node_get(int fd, const struct stat *st)
{
	struct node **bucket = bucket_of(st->st_dev, st->st_ino), *n;

	pthread_mutex_lock(&mutex);
	for (n = *bucket; n && (n->ino != st->st_ino || n->dev != st->st_dev);)
		n = n->next;
	if (n) {
		close(fd);
	} else if ((n = malloc(sizeof *n))) {
		*n = (struct node){.next = *bucket, .fd = fd, .dev = st->st_dev, .ino = st->st_ino};
		*bucket = n;
	}
	if (n)
		n->lookups++;
	pthread_mutex_unlock(&mutex);
	return n;
}

static void node_forget(struct node *n, uint64_t count)
{
	struct node **at;

	if (n == &root)
		return;
	pthread_mutex_lock(&mutex);
	n->lookups -= count;
	if (!n->lookups) {
		for (at = bucket_of(n->dev, n->ino); *at != n;)
			at = &(*at)->next;
		*at = n->next;
	}
	count = n->lookups;
	pthread_mutex_unlock(&mutex);
	if (!count) {
		close(n->fd);
		free(n);
	}
}

/* 0 or an errno. */
static int find(fuse_ino_t parent, const char *name, struct fuse_entry_param *e)
{
	int fd = openat(fd_of(parent), name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct node *n;

	*e = (struct fuse_entry_param){.attr_timeout = timeout_s, .entry_timeout = timeout_s};
	if (fd < 0)
		return errno;
	if (fstatat(fd, "", &e->attr, AT_EMPTY_PATH)) {
		int error = errno;

		close(fd);
		return error;
	}
	n = node_get(fd, &e->attr);
	e->ino = (uintptr_t)n;
	return n ? 0 : ENOMEM;
}

static void reply_entry(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param e;
	int error = find(parent, name, &e);

	if (error)
		fuse_reply_err(req, error);
	else
		fuse_reply_entry(req, &e);
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	conn->want |= conn->capable & (FUSE_CAP_FLOCK_LOCKS | FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	reply_entry(req, parent, name);
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count)
{
	node_forget(node_of(ino), count);
	fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < count; i++)
		node_forget(node_of(forgets[i].ino), forgets[i].nlookup);
	fuse_reply_none(req);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;

	if (fstatat(fd_of(ino), "", &st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW))
		fuse_reply_err(req, errno);
	else
		fuse_reply_attr(req, &st, timeout_s);
}

static void path_of(char path[static 64], fuse_ino_t ino)
{
	snprintf(path, 64, "/proc/self/fd/%d", fd_of(ino));
}

static struct timespec time_of(struct timespec t, int valid, int set, int now)
{
	if (!(valid & set))
		t.tv_nsec = UTIME_OMIT;
	else if (valid & now)
		t.tv_nsec = UTIME_NOW;
	return t;
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *st, int valid, struct fuse_file_info *fi)
{
	uid_t uid = valid & FUSE_SET_ATTR_UID ? st->st_uid : (uid_t)-1;
	gid_t gid = valid & FUSE_SET_ATTR_GID ? st->st_gid : (gid_t)-1;
	char path[64];
	int r = 0;

	path_of(path, ino);
	if (valid & FUSE_SET_ATTR_MODE)
		r = chmod(path, st->st_mode);
	if (!r && valid & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID))
		r = fchownat(fd_of(ino), "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW);
	if (!r && valid & FUSE_SET_ATTR_SIZE)
		r = fi ? ftruncate((int)fi->fh, st->st_size) : truncate(path, st->st_size);
	if (!r && valid & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME)) {
		struct timespec times[2] = {
			time_of(st->st_atim, valid, FUSE_SET_ATTR_ATIME, FUSE_SET_ATTR_ATIME_NOW),
			time_of(st->st_mtim, valid, FUSE_SET_ATTR_MTIME, FUSE_SET_ATTR_MTIME_NOW),
		};

		r = utimensat(AT_FDCWD, path, times, 0);
	}
	if (r)
		fuse_reply_err(req, errno);
	else
		op_getattr(req, ino, fi);
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	if (mkdirat(fd_of(parent), name, mode))
		fuse_reply_err(req, errno);
	else
		reply_entry(req, parent, name);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	fuse_reply_err(req, unlinkat(fd_of(parent), name, 0) ? errno : 0);
}

static void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	fuse_reply_err(req, unlinkat(fd_of(parent), name, AT_REMOVEDIR) ? errno : 0);
}

static void op_rename(fuse_req_t req, fuse_ino_t from, const char *name, fuse_ino_t to, const char *as, unsigned flags)
{
	fuse_reply_err(req, renameat2(fd_of(from), name, fd_of(to), as, flags) ? errno : 0);
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	int fd = openat(fd_of(parent), name, (fi->flags | O_CREAT | O_CLOEXEC) & ~O_NOFOLLOW, mode), error;
	struct fuse_entry_param e;

	if (fd < 0) {
		fuse_reply_err(req, errno);
		return;
	}
	fi->fh = (uint64_t)fd;
	error = find(parent, name, &e);
	if (error) {
		close(fd);
		fuse_reply_err(req, error);
	} else {
		fuse_reply_create(req, &e, fi);
	}
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	char path[64];
	int fd;

	path_of(path, ino);
	fd = open(path, (fi->flags | O_CLOEXEC) & ~O_NOFOLLOW);
	fi->fh = (uint64_t)fd;
	if (fd < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_open(req, fi);
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	close((int)fi->fh);
	fuse_reply_err(req, 0);
}

static void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	fuse_reply_err(req, close(dup((int)fi->fh)) ? errno : 0);
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int data, struct fuse_file_info *fi)
{
	fuse_reply_err(req, (data ? fdatasync((int)fi->fh) : fsync((int)fi->fh)) ? errno : 0);
}

static struct fuse_bufvec of_file(const struct fuse_file_info *fi, size_t size, off_t offset)
{
	struct fuse_bufvec v = FUSE_BUFVEC_INIT(size);

	v.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
	v.buf[0].fd = (int)fi->fh;
	v.buf[0].pos = offset;
	return v;
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
	struct fuse_bufvec v = of_file(fi, size, offset);

	fuse_reply_data(req, &v, FUSE_BUF_SPLICE_MOVE);
}

static void op_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *in, off_t offset, struct fuse_file_info *fi)
{
	struct fuse_bufvec v = of_file(fi, fuse_buf_size(in), offset);
	ssize_t n = fuse_buf_copy(&v, in, 0);

	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else
		fuse_reply_write(req, (size_t)n);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct statvfs st;

	if (fstatvfs(fd_of(ino), &st))
		fuse_reply_err(req, errno);
	else
		fuse_reply_statfs(req, &st);
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	int fd = openat(fd_of(ino), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);

	fi->fh = (uintptr_t)d;
	if (!d)
		fuse_reply_err(req, errno);
	else
		fuse_reply_open(req, fi);
}

/* The size of what was put at `to`; 0: it has no room. */
static size_t put_entry(fuse_req_t req, fuse_ino_t ino, const struct dirent *de, char *to, size_t room, bool plus)
{
	struct fuse_entry_param e = {.attr = {.st_ino = de->d_ino, .st_mode = (mode_t)de->d_type << 12}};
	bool dots = !strcmp(de->d_name, ".") || !strcmp(de->d_name, "..");
	size_t n;

	if (!plus)
		n = fuse_add_direntry(req, to, room, de->d_name, &e.attr, de->d_off);
	else if (dots || !find(ino, de->d_name, &e))
		n = fuse_add_direntry_plus(req, to, room, de->d_name, &e, de->d_off);
	else
		return 0;
	if (n <= room)
		return n;
	if (plus && !dots)
		node_forget(node_of(e.ino), 1);
	return 0;
}

static void list(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi, bool plus)
{
	DIR *d = (DIR *)(uintptr_t)fi->fh;
	char *buf = malloc(size);
	size_t at = 0, n = 1;
	struct dirent *de;

	if (telldir(d) != offset)
		seekdir(d, offset);
	while (buf && n) {
		long before = telldir(d);

		de = readdir(d);
		n = de ? put_entry(req, ino, de, buf + at, size - at, plus) : 0;
		at += n;
		if (de && !n)
			seekdir(d, before);
	}
	if (buf)
		fuse_reply_buf(req, buf, at);
	else
		fuse_reply_err(req, ENOMEM);
	free(buf);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
	list(req, ino, size, offset, fi, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
	list(req, ino, size, offset, fi, true);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	closedir((DIR *)(uintptr_t)fi->fh);
	fuse_reply_err(req, 0);
}

static const struct fuse_lowlevel_ops ops = {
	.init = op_init, .lookup = op_lookup, .forget = op_forget, .forget_multi = op_forget_multi, .getattr = op_getattr,
	.setattr = op_setattr, .mkdir = op_mkdir, .unlink = op_unlink, .rmdir = op_rmdir, .rename = op_rename,
	.create = op_create, .open = op_open, .release = op_release, .flush = op_flush, .fsync = op_fsync, .read = op_read,
	.write_buf = op_write_buf, .statfs = op_statfs, .opendir = op_opendir, .readdir = op_readdir,
	.readdirplus = op_readdirplus, .releasedir = op_releasedir,
};

static void grow_descriptors(void)
{
	struct rlimit limit;

	if (!getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	close(fcntl(0, F_DUPFD_CLOEXEC, GROWN));
}

static int serve(const char *target)
{
	char *argv[] = {"fuse-inprocess", "-oallow_other,default_permissions,fsname=fuse-inprocess", NULL};
	struct fuse_args args = FUSE_ARGS_INIT(2, argv);
	struct fuse_session *session = fuse_session_new(&args, &ops, sizeof ops, NULL);
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	int r = 1;

	fuse_loop_cfg_set_clone_fd(config, 1);
	if (session && !fuse_session_mount(session, target)) {
		if (!fuse_daemonize(0)) {
			grow_descriptors();
			r = fuse_session_loop_mt(session, config) < 0;
		}
		fuse_session_unmount(session);
	}
	if (session)
		fuse_session_destroy(session);
	fuse_loop_cfg_destroy(config);
	fuse_opt_free_args(&args);
	return r;
}

int main(int argc, char **argv)
{
	char target[PATH_MAX];

	if (argc == 5 && !strcmp(argv[3], "--timeout"))
		timeout_s = atof(argv[4]);
	else if (argc != 3) {
		fprintf(stderr, "usage: fuse-inprocess SRC MOUNTPOINT [--timeout SECONDS]\n");
		return 2;
	}
	root.fd = open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root.fd < 0 || !realpath(argv[2], target)) {
		fprintf(stderr, "fuse-inprocess: %s, %s: %s\n", argv[1], argv[2], strerror(errno));
		return 1;
	}
	umask(0);
	return serve(target);
}
