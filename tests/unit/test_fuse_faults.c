/* SPDX-License-Identifier: MIT */
/* The volume's server: what went wrong once. */
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <time.h>

#include "test_fuse_serve.h"

static const struct fcvm_fuse_volume plain = {.timeout_s = 1};

/* A message whose padding comes later, and by itself, is served when it is there. */
static void test_padding_alone(void)
{
	char message[64];
	struct fuse_out_header h;
	struct guest g;
	size_t size;

	start(&g, &plain);
	CHECK(init(&g) == 0);
	size = put(message, 1000, FUSE_LOOKUP, 1, "file", 5);
	CHECK(size == 48);
	CHECK(fcvm_fd_write_full(g.fd, message, 45) == 0);
	usleep(50000);
	CHECK(fcvm_fd_write_full(g.fd, message + 45, 3) == 0);
	CHECK(take_reply(&g, &h) && h.unique == 1000 && h.error == 0);
	/* The same before another message, whose bytes come with the padding. */
	CHECK(fcvm_fd_write_full(g.fd, message, 46) == 0);
	usleep(50000);
	CHECK(fcvm_fd_write_full(g.fd, message + 46, 2) == 0 && fcvm_fd_write_full(g.fd, message, 48) == 0);
	CHECK(take_reply(&g, &h) && h.error == 0 && take_reply(&g, &h) && h.error == 0);
	CHECK(stop(&g) == 0);
}

/* CREATE as the user `uid`, which its header says. */
static int create_as(struct guest *g, uid_t uid, uint64_t parent, const char *name, uint32_t flags)
{
	struct {
		struct fuse_in_header h;
		struct fuse_create_in in;
		char name[32];
	} m = {.h = {.opcode = FUSE_CREATE, .unique = ++g->unique, .nodeid = parent, .uid = uid, .gid = uid},
		.in = {.flags = flags | O_CREAT, .mode = S_IFREG | 0644, .umask = 022}};
	struct fuse_out_header h;

	m.h.len = (uint32_t)(sizeof m.h + sizeof m.in + strlen(name) + 1);
	strcpy(m.name, name);
	if (fcvm_fd_write_full(g->fd, &m, (m.h.len + 7) & ~7U) || !take_reply(g, &h))
		return -EPIPE;
	CHECK(h.unique == g->unique);
	return h.error;
}

static uint64_t made_node(struct guest *g, const char *name)
{
	CHECK(name_call(g, FUSE_LOOKUP, 1, name) == 0);
	return found(g);
}

static void make_file(const char *name, uid_t uid, mode_t mode)
{
	char path[128];

	snprintf(path, sizeof path, "%s/%s", inside, name);
	CHECK(fcvm_file_replace(AT_FDCWD, path, "text", 4, 0600, false) == 0 && !chown(path, uid, uid) && !chmod(path, mode));
}

static off_t size_of(const char *name)
{
	char path[128];
	struct stat st;

	snprintf(path, sizeof path, "%s/%s", inside, name);
	return lstat(path, &st) ? -1 : st.st_size;
}

/*
 * The guest's kernel takes what CREATE opens for made by it, and checks nothing: so a file that is there is opened for
 * the caller only if he may; else ESTALE makes the kernel look the name up again, and decide.
 */
static void test_create_existing(void)
{
	char path[128];
	struct guest g;
	uint64_t sticky;

	if (geteuid())
		return;
	make_file("secret", 0, 0600);
	make_file("shared", 0, 0666);
	make_file("set-id", 0, 06777);
	snprintf(path, sizeof path, "%s/sticky", inside);
	CHECK(!mkdir(path, 0755) && !chmod(path, 01777));
	make_file("sticky/others", 2000, 0666);
	make_file("sticky/own", 1000, 0644);
	start(&g, &plain);
	CHECK(init(&g) == 0);
	CHECK(create_as(&g, 1000, 1, "secret", O_RDONLY) == -ESTALE);
	CHECK(create_as(&g, 1000, 1, "secret", O_WRONLY | O_TRUNC) == -ESTALE && size_of("secret") == 4);
	CHECK(create_as(&g, 1000, 1, "shared", O_RDWR | O_EXCL) == -EEXIST && size_of("shared") == 4);
	CHECK(create_as(&g, 1000, 1, "shared", O_RDWR) == 0 && size_of("shared") == 4);
	CHECK(create_as(&g, 1000, 1, "shared", O_RDWR | O_TRUNC) == 0 && size_of("shared") == 0);
	CHECK(create_as(&g, 0, 1, "secret", O_WRONLY | O_TRUNC) == 0 && size_of("secret") == 0);
	/* Writing clears set-id bits, but for root's. */
	CHECK(create_as(&g, 1000, 1, "set-id", O_WRONLY | O_TRUNC) == 0);
	snprintf(path, sizeof path, "%s/set-id", inside);
	CHECK(!stat(path, &(struct stat){.st_mode = 0}));
	struct stat st;
	CHECK(!stat(path, &st) && (st.st_mode & 07777) == 0777);
	/* fs.protected_regular: another's file in a sticky folder that all may write to is not opened by O_CREAT. */
	sticky = made_node(&g, "sticky");
	CHECK(create_as(&g, 1000, sticky, "others", O_RDWR) == -ESTALE);
	CHECK(create_as(&g, 1000, sticky, "own", O_RDWR | O_TRUNC) == 0 && size_of("sticky/own") == 0);
	/* What is no file is for the guest's kernel to open, or to refuse. */
	CHECK(create_as(&g, 0, 1, "out", O_RDWR) == -ESTALE);
	CHECK(create_as(&g, 0, 1, "dir", O_RDONLY) == -ESTALE);
	CHECK(create_as(&g, 0, 1, "fifo", O_RDWR) == -ESTALE);
	/* The next creation is the caller's again. */
	CHECK(create_as(&g, 1000, 1, "fresh", O_RDWR) == 0);
	snprintf(path, sizeof path, "%s/fresh", inside);
	CHECK(!stat(path, &st) && st.st_uid == 1000);
	CHECK(create_as(&g, 0, 1, "fresh-too", O_RDWR) == 0);
	CHECK(name_call(&g, FUSE_UNLINK, 1, "fresh-too") == 0);
	CHECK(stop(&g) == 0);
}

static void unmount(const char *path)
{
	CHECK(umount2(path, MNT_DETACH) == 0);
}

/* The host's /proc mounted beneath the folder, as it is beneath "/": a folder to mount on, and nothing in it. */
static void test_proc(void)
{
	struct fuse_open_in in = {.flags = O_RDONLY};
	char path[128], file[128], self[64];
	struct fuse_getattr_in attr = {.getattr_flags = 0};
	struct fuse_setattr_in mode = {.valid = FATTR_MODE, .mode = 0555};
	struct guest g;
	uint64_t proc;

	if (geteuid())
		return;
	chmod(folder, 0755);
	CHECK(!mkdir((snprintf(path, sizeof path, "%s/proc", inside), path), 0755));
	make_file("version", 0, 0644);
	snprintf(file, sizeof file, "%s/version", inside);
	if (mount("proc", path, "proc", 0, NULL) || mount("/proc/version", file, NULL, MS_BIND, NULL))
		return;
	for (how.uid = 0;; how.uid = 12345) {
		start(&g, &plain);
		CHECK(init(&g) == 0);
		proc = made_node(&g, "proc");
		CHECK(call(&g, FUSE_GETATTR, proc, &attr, sizeof attr) == 0);
		snprintf(self, sizeof self, "%d", g.server);
		CHECK(name_call(&g, FUSE_LOOKUP, proc, "self") == -EACCES);
		CHECK(name_call(&g, FUSE_LOOKUP, proc, "sys") == -EACCES);
		CHECK(name_call(&g, FUSE_LOOKUP, proc, self) == -EACCES);
		CHECK(call(&g, FUSE_OPENDIR, proc, &in, sizeof in) == -EACCES);
		CHECK(call(&g, FUSE_SETATTR, proc, &mode, sizeof mode) == -EACCES);
		CHECK(call(&g, FUSE_OPEN, made_node(&g, "version"), &in, sizeof in) == -EACCES);
		CHECK(stop(&g) == 0);
		if (how.uid)
			break;
	}
	how.uid = 0;
	unmount(path);
	unmount(file);
}

static void no_threads(void)
{
	setrlimit(RLIMIT_NPROC, &(struct rlimit){.rlim_cur = 0, .rlim_max = 0});
}

/* A user with as many processes as he may have: what the pool would do is done all the same. */
static void test_no_threads(void)
{
	struct fuse_open_in in = {.flags = O_RDWR};
	struct fuse_fsync_in sync = {.fh = 0};
	struct fuse_fallocate_in more = {.length = 8192};
	struct guest g;
	uint64_t node;

	if (geteuid())
		return;
	chmod(folder, 0755);
	make_file("threads", 12345, 0600);
	how = (struct server_how){.uid = 12345, .first = no_threads};
	start(&g, &plain);
	CHECK(init(&g) == 0);
	node = made_node(&g, "threads");
	CHECK(call(&g, FUSE_OPEN, node, &in, sizeof in) == 0);
	sync.fh = more.fh = opened(&g);
	CHECK(call(&g, FUSE_FSYNC, node, &sync, sizeof sync) == 0);
	CHECK(call(&g, FUSE_FALLOCATE, node, &more, sizeof more) == 0 && size_of("threads") == 8192);
	CHECK(call(&g, FUSE_FSYNC, node, &sync, sizeof sync) == 0);
	CHECK(stop(&g) == 0);
	how = (struct server_how){.uid = 0};
}

static void small_files(void)
{
	setrlimit(RLIMIT_FSIZE, &(struct rlimit){.rlim_cur = 8192, .rlim_max = 8192});
}

/* A limit on the size of files, of the shell that started the server: EFBIG, and it serves on. */
static void test_file_size_limit(void)
{
	struct fuse_open_in in = {.flags = O_RDWR};
	struct fuse_fallocate_in more = {.length = 1 << 20};
	struct fuse_setattr_in cut = {.valid = FATTR_SIZE, .size = 8193};
	struct fuse_write_in *write_in;
	char body[sizeof *write_in + 16] = {0};
	struct guest g;
	uint64_t node;

	make_file("limited", geteuid(), 0600);
	how = (struct server_how){.first = small_files};
	start(&g, &plain);
	CHECK(init(&g) == 0);
	node = made_node(&g, "limited");
	CHECK(call(&g, FUSE_OPEN, node, &in, sizeof in) == 0);
	more.fh = opened(&g);
	write_in = (void *)body;
	*write_in = (struct fuse_write_in){.fh = more.fh, .size = 16, .offset = 8188};
	/* As much as there is room for, and then no more. */
	CHECK(call(&g, FUSE_WRITE, node, body, sizeof body) == 0 && ((struct fuse_write_out *)g.reply)->size == 4);
	write_in->offset = 8192;
	CHECK(call(&g, FUSE_WRITE, node, body, sizeof body) == -EFBIG);
	CHECK(call(&g, FUSE_SETATTR, node, &cut, sizeof cut) == -EFBIG);
	CHECK(call(&g, FUSE_FALLOCATE, node, &more, sizeof more) == -EFBIG);
	CHECK(size_of("limited") == 8192);
	CHECK(stop(&g) == 0);
	how = (struct server_how){.uid = 0};
}

/* Opened; whether the guest may keep the pages that it has of it. */
static bool may_keep(struct guest *g, uint64_t node)
{
	struct fuse_open_in in = {.flags = O_RDONLY};

	CHECK(call(g, FUSE_OPEN, node, &in, sizeof in) == 0);
	return ((struct fuse_open_out *)g->reply)->open_flags & FOPEN_KEEP_CACHE;
}

/* The clock of a file's times stands still for some ms: what was written just now may be written again unseen. */
static void test_same_tick(void)
{
	struct timespec old[2] = {{.tv_sec = 1000000}, {.tv_sec = 1000000}}, written[2];
	char path[128];
	struct guest g;
	uint64_t node;
	int fd;

	make_file("ticks", geteuid(), 0600);
	fd = open((snprintf(path, sizeof path, "%s/ticks", inside), path), O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0 && !futimens(fd, old));
	start(&g, &plain);
	CHECK(init(&g) == 0);
	node = made_node(&g, "ticks");
	CHECK(!may_keep(&g, node) && may_keep(&g, node));
	/* A tick of a second, for the sake of machines that are busy. */
	clock_gettime(CLOCK_REALTIME, written);
	written[0].tv_sec++;
	written[1] = written[0];
	CHECK(pwrite(fd, "once", 4, 0) == 4 && !futimens(fd, written));
	CHECK(!may_keep(&g, node));
	CHECK(pwrite(fd, "then", 4, 0) == 4 && !futimens(fd, written));
	CHECK(!may_keep(&g, node));
	usleep(1100000);
	CHECK(!may_keep(&g, node) && may_keep(&g, node));
	close(fd);
	CHECK(stop(&g) == 0);
}

/* lsattr and chattr of a folder. */
static void test_folder_flags(void)
{
	struct fuse_open_in in = {.flags = O_RDONLY};
	struct {
		struct fuse_ioctl_in in;
		int flags;
	} m = {.in = {.flags = FUSE_IOCTL_DIR, .cmd = FS_IOC_GETFLAGS, .out_size = sizeof(int)}};
	const char *got;
	char path[128];
	struct guest g;
	int flags = 0, fd, r;
	uint64_t dir;

	snprintf(path, sizeof path, "%s/dir", inside);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	r = ioctl(fd, FS_IOC_GETFLAGS, &flags) ? -errno : 0;
	start(&g, &plain);
	CHECK(init(&g) == 0);
	dir = made_node(&g, "dir");
	CHECK(call(&g, FUSE_OPENDIR, dir, &in, sizeof in) == 0);
	m.in.fh = opened(&g);
	CHECK(call(&g, FUSE_IOCTL, dir, &m, sizeof m.in) == r);
	got = g.reply + sizeof(struct fuse_ioctl_out);
	CHECK(r || !memcmp(got, &flags, sizeof flags));
	if (!r) {
		flags |= FS_NODUMP_FL;
		m.in = (struct fuse_ioctl_in){.fh = m.in.fh, .flags = FUSE_IOCTL_DIR, .cmd = FS_IOC_SETFLAGS, .in_size = sizeof(int)};
		m.flags = flags;
		CHECK(call(&g, FUSE_IOCTL, dir, &m, sizeof m.in + sizeof m.flags) == 0);
		CHECK(!ioctl(fd, FS_IOC_GETFLAGS, &flags) && flags & FS_NODUMP_FL);
	}
	close(fd);
	CHECK(stop(&g) == 0);
}

/* What is taken over is closed, whatever becomes of it: who waits at the other end is told. */
static void test_closed_on_failure(void)
{
	struct fcvm_fuse_volume volume = {.folder = "/nonexistent/folder"};
	struct fcvm_err err = FCVM_ERR_INIT;
	int fds[3][2];
	char byte;

	for (unsigned i = 0; i < 3; i++)
		CHECK(fcvm_fd_pair(fds[i]) == 0 && fcvm_fd_nonblock(fds[i][1], true) == 0);
	volume.ready_fd = fds[2][0];
	CHECK(fcvm_fuse_serve(&volume, (int[]){fds[0][0], fds[1][0]}, 2, &err) == -ENOENT);
	for (unsigned i = 0; i < 3; i++) {
		CHECK(read(fds[i][1], &byte, 1) == 0);
		close(fds[i][1]);
	}
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	set_up();
	test_padding_alone();
	test_create_existing();
	test_proc();
	test_no_threads();
	test_file_size_limit();
	test_same_tick();
	test_folder_flags();
	test_closed_on_failure();
	fcvm_tree_remove(AT_FDCWD, folder);
	CHECK_DONE();
}
