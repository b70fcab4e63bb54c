/* SPDX-License-Identifier: MIT */
/*
 * What the volume's server gives to its pool, and what of it the guest sees. The system calls that may last are this file's
 * own here: slow, or failing, as a test has it.
 */
#include <linux/futex.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>

#include "base/until.h"
#include "test_fuse_serve.h"

/* Shared with the server. */
static struct {
	int64_t file_system; /* not 0: what all are of */
	bool bad_sectors;    /* all but the first */
	int fallocate_ms, sync_ms, syncfs_ms, sync_error;
	unsigned syncs, datasyncs, group_syncs, syncs_in_loop;
} *calls;

/* The server may not sleep, but wait. */
static void last(int ms)
{
	struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
	uint32_t word = 0;

	if (ms)
		syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0);
}

int fstatfs(int fd, struct statfs *to)
{
	int r = (int)syscall(SYS_fstatfs, fd, to);

	if (!r && calls->file_system)
		to->f_type = calls->file_system;
	return r;
}

ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t off, int flags)
{
	if (calls->bad_sectors) {
		errno = EAGAIN;
		return -1;
	}
	return syscall(SYS_preadv2, fd, iov, count, off, 0, flags);
}

ssize_t pread(int fd, void *to, size_t size, off_t off)
{
	if (calls->bad_sectors && off) {
		errno = EIO;
		return -1;
	}
	return syscall(SYS_pread64, fd, to, calls->bad_sectors ? 512 : size, off);
}

int fallocate(int fd, int mode, off_t off, off_t length)
{
	last(calls->fallocate_ms);
	return (int)syscall(SYS_fallocate, fd, mode, off, length);
}

static int some_sync(unsigned *count)
{
	__atomic_add_fetch(count, 1, __ATOMIC_RELAXED);
	if (syscall(SYS_gettid) == getpid())
		calls->syncs_in_loop++;
	last(calls->sync_ms);
	errno = calls->sync_error;
	return errno ? -1 : 0;
}

int fsync(int fd)
{
	return some_sync(&calls->syncs);
}

int fdatasync(int fd)
{
	return some_sync(&calls->datasyncs);
}

int syncfs(int fd)
{
	last(calls->syncfs_ms);
	calls->group_syncs++;
	return 0;
}

static struct guest g;
static uint64_t node, fh;

static void begin(const char *name)
{
	struct fuse_open_in in = {.flags = O_RDWR | O_SYNC};

	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1});
	CHECK(init(&g) == 0);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, name) == 0);
	node = found(&g);
	CHECK(call(&g, FUSE_OPEN, node, &in, sizeof in) == 0);
	fh = opened(&g);
}

static void end(void)
{
	CHECK(stop(&g) == 0);
	memset(calls, 0, sizeof *calls);
}

/* `n` requests at once, as 1000, 1001... */
static void send_some(uint32_t opcode, const void *body, size_t size, uint64_t n)
{
	char message[8192];
	size_t all = 0;

	for (uint64_t i = 0; i < n; i++)
		all += put(message + all, 1000 + i, opcode, node, body, size);
	CHECK(fcvm_fd_write_full(g.fd, message, all) == 0);
}

/* How long `n` replies take that are without an error, ms. */
static int64_t take_some(unsigned n)
{
	int64_t began = fcvm_now_ns();
	struct fuse_out_header h;

	while (n) {
		if (!take_reply(&g, &h) || (h.unique && h.error))
			return INT64_MAX;
		n -= h.unique != 0;
	}
	return (fcvm_now_ns() - began) / 1000000;
}

/* A disk's error after what could be read is an error: not the end of the file. */
static void test_bad_sectors(void)
{
	struct fuse_read_in rd = {.size = 8192};

	begin("big");
	rd.fh = fh;
	CHECK(call(&g, FUSE_READ, node, &rd, sizeof rd) == 0 && g.reply_size == 8192);
	calls->bad_sectors = true;
	CHECK(call(&g, FUSE_READ, node, &rd, sizeof rd) == -EIO);
	rd.size = 512;
	CHECK(call(&g, FUSE_READ, node, &rd, sizeof rd) == 0 && g.reply_size == 512);
	end();
}

/* Those that come together run together, though one thread has nothing to do. */
static void test_burst(void)
{
	struct fuse_fallocate_in more = {.length = 4096};

	begin("file");
	more.fh = fh;
	send_some(FUSE_FALLOCATE, &more, sizeof more, 1);
	take_some(1);
	usleep(50000);
	calls->fallocate_ms = 300;
	send_some(FUSE_FALLOCATE, &more, sizeof more, 8);
	CHECK(take_some(8) < 1200);
	end();
}

/* That attributes have changed is told after they have: what is asked before has the old ones. */
static void test_told_after(void)
{
	struct fuse_fallocate_in more = {.length = 65536};
	struct fuse_getattr_in attr = {.getattr_flags = 0};
	struct fuse_out_header h;

	begin("file");
	more.fh = fh;
	calls->fallocate_ms = 300;
	send_some(FUSE_FALLOCATE, &more, sizeof more, 1);
	send_some(FUSE_GETATTR, &attr, sizeof attr, 1);
	CHECK(take_reply(&g, &h) && h.unique == 1000 && ((struct fuse_attr_out *)g.reply)->attr.size < 65536);
	CHECK(take_reply(&g, &h) && h.unique == 0);
	CHECK(take_reply(&g, &h) && h.unique == 1000 && h.error == 0);
	end();
}

/* A write that is to be on the disk when it is answered keeps nobody else waiting. */
static void test_synchronous_writes(void)
{
	struct {
		struct fuse_write_in in;
		char data[8];
	} m = {.in = {.size = 4, .flags = O_RDWR | O_DSYNC}, .data = "data"};
	struct fuse_getattr_in attr = {.getattr_flags = 0};
	char path[128], *text = NULL;
	struct fuse_out_header h;

	begin("file");
	m.in.fh = fh;
	calls->sync_ms = 300;
	send_some(FUSE_WRITE, &m, sizeof m.in + 4, 1);
	CHECK(call(&g, FUSE_GETATTR, node, &attr, sizeof attr) == 0);
	CHECK(take_reply(&g, &h) && h.unique == 1000 && !h.error && ((struct fuse_write_out *)g.reply)->size == 4);
	CHECK(calls->datasyncs == 1 && calls->syncs == 0);
	m.in.flags = O_RDWR | O_SYNC;
	CHECK(call(&g, FUSE_WRITE, node, &m, sizeof m.in + 4) == 0 && calls->syncs == 1);
	calls->sync_error = EIO;
	CHECK(call(&g, FUSE_WRITE, node, &m, sizeof m.in + 4) == -EIO);
	m.in.flags = O_RDWR;
	CHECK(call(&g, FUSE_WRITE, node, &m, sizeof m.in + 4) == 0 && calls->syncs == 2);
	CHECK(calls->syncs_in_loop == 0);
	snprintf(path, sizeof path, "%s/file", inside);
	CHECK(fcvm_file_read(AT_FDCWD, path, 1 << 20, &text, NULL) == 0 && !memcmp(text, "data", 4));
	free(text);
	end();
}

/* A file system in memory has nothing to wait for; a disk that is mounted beneath it has. */
static void test_sync_beneath(void)
{
	struct fuse_fsync_in sync = {.fh = 0};
	char path[128], file[128];

	calls->file_system = TMPFS_MAGIC;
	begin("file");
	sync.fh = fh;
	CHECK(call(&g, FUSE_FSYNC, node, &sync, sizeof sync) == 0);
	CHECK(calls->syncs_in_loop == 1);
	end();
	if (geteuid())
		return;
	/* On the file itself: begin() looks it up in the root. */
	snprintf(path, sizeof path, "%s/dir", inside);
	CHECK(mount("disk", path, "tmpfs", 0, NULL) == 0);
	snprintf(path, sizeof path, "%s/dir/other", inside);
	snprintf(file, sizeof file, "%s/file", inside);
	CHECK(fcvm_file_replace(AT_FDCWD, path, "text", 4, 0600, false) == 0 && mount(path, file, NULL, MS_BIND, NULL) == 0);
	calls->file_system = TMPFS_MAGIC;
	begin("file");
	sync.fh = fh;
	CHECK(call(&g, FUSE_FSYNC, node, &sync, sizeof sync) == 0);
	CHECK(calls->syncs == 1 && calls->syncs_in_loop == 0);
	end();
	CHECK(umount2(file, MNT_DETACH) == 0);
	snprintf(path, sizeof path, "%s/dir", inside);
	CHECK(umount2(path, MNT_DETACH) == 0);
}

/* Many at once are one syncfs; who comes while that takes long does not wait for it. */
static void test_slow_group(void)
{
	struct fuse_fsync_in sync = {.fh = 0};

	calls->file_system = EXT4_SUPER_MAGIC;
	begin("file");
	sync.fh = fh;
	calls->syncfs_ms = 2000;
	send_some(FUSE_FSYNC, &sync, sizeof sync, 8);
	usleep(20000);
	send_some(FUSE_FSYNC, &sync, sizeof sync, 8);
	CHECK(take_some(8) < 1000);
	CHECK(calls->syncs == 8 && calls->group_syncs == 0);
	CHECK(take_some(8) < 5000);
	CHECK(calls->syncs == 8 && calls->group_syncs == 1);
	end();
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	calls = mmap(NULL, sizeof *calls, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	set_up();
	test_bad_sectors();
	test_burst();
	test_told_after();
	test_synchronous_writes();
	test_sync_beneath();
	test_slow_group();
	fcvm_tree_remove(AT_FDCWD, folder);
	CHECK_DONE();
}
