/* SPDX-License-Identifier: MIT */
/*
 * Preloaded into QEMU: owns the mapping of guest RAM.
 *
 * QEMU is told that RAM is a shared file (memory-backend-file,share=on), so with x-ignore-shared its device state
 * never holds RAM. Of a restored VM that would be a lie to be paid for by every other clone; so here the one mapping of
 * that size is made private, and the file is opened for reading only: whatever QEMU does, the kernel keeps it from
 * changing the file. The driver waits for our hello with mode private before it lets a restore go on.
 *
 * A booted VM writes to its file until its first snapshot. Then the file is given away and PRIVATE replaces the
 * mapping in one step: mmap(MAP_FIXED) holds the address space's lock, so who touches RAM at that moment sees the same
 * bytes before and after.
 *
 * It lives in a foreign process: no output, no signals, one thread on a small stack, made when RAM is mapped. All
 * mappings of its own go straight to the kernel, past the interposer.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fork.h"
#include "ignne.h"
#include "ram_wire.h"

#define EXPORT __attribute__((visibility("default")))

enum {
	STACK = 64 * 1024,
	ENTRIES = 8192, /* of pagemap read at a time */
	TABLE = 2 << 20, /* what one page table covers */
	ORPHANED = 72, /* exit status */
};

/* Set by the constructor and by the mapping of RAM, which both come before the thread. */
static uint64_t ram_size;       /* 0: not for us */
static char ram_path[FCVM_RAM_PATH]; /* of a private one; "" if shared */
static char *ram;
static int ram_fd = -1;         /* the backing file, for reading; ours */
static int qemu_fd = -1;        /* QEMU's own descriptor of it */
/* The thread's. */
static enum fcvm_ram_mode mode;
static uint64_t entries[ENTRIES];
static void *aside = MAP_FAILED; /* to be unmapped when there is time */

__attribute__((constructor)) static void begin(void)
{
	const char *size = getenv(FCVM_RAM_ENV_SIZE);
	const char *path = getenv(FCVM_RAM_ENV_PRIVATE);

	/* What QEMU runs, such as exec: migration's shell, is none of our business. */
	unsetenv("LD_PRELOAD");
	for (int fd = 3; fd <= FCVM_RAM_CONTROL; fd++)
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	if (!size || (path && strlen(path) >= sizeof ram_path))
		return;
	fcvm_ignne_never();
	ram_size = strtoull(size, NULL, 10);
	mode = path ? FCVM_RAM_IS_PRIVATE : FCVM_RAM_IS_SHARED;
	if (!path)
		return;
	strcpy(ram_path, path);
	/* QEMU asks for huge pages for its translation buffer: 14 MiB a clone, whatever of it is used. */
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
}

/* ---- bytes ---- */

/* Descriptors that came with the last request; -1: none. */
static int passed[FCVM_RAM_FORK_FDS];

static void drop_passed(void)
{
	for (unsigned i = 0; i < FCVM_RAM_FORK_FDS; i++) {
		if (passed[i] >= 0)
			close(passed[i]);
		passed[i] = -1;
	}
}

static void keep_passed(struct msghdr *m)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		drop_passed();
		memcpy(passed, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
	}
}

static bool receive(void *to, size_t size)
{
	char control[CMSG_SPACE(sizeof passed)] __attribute__((aligned(8)));

	for (char *at = to; size > 0;) {
		struct iovec v = {at, size};
		struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
		ssize_t n = recvmsg(FCVM_RAM_CONTROL, &m, MSG_CMSG_CLOEXEC);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		keep_passed(&m);
		at += n;
		size -= n;
	}
	return true;
}

static bool transmit(const void *from, size_t size)
{
	for (const char *at = from; size > 0;) {
		ssize_t n = write(FCVM_RAM_CONTROL, at, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		at += n;
		size -= n;
	}
	return true;
}

static int write_at(int fd, const char *from, size_t size, off_t offset)
{
	while (size > 0) {
		ssize_t n = pwrite(fd, from, size, offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		from += n;
		offset += n;
		size -= n;
	}
	return 0;
}

/* Past the interposer. */
static void *map_raw(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, at, size, prot, flags, fd, offset);
}

/* ---- DIRTY ---- */

/* A page of ours alone: in memory and not the file's, or swapped out (Documentation/admin-guide/mm/pagemap.rst). */
static bool is_private(uint64_t entry)
{
	bool present = entry >> 63 & 1, swapped = entry >> 62 & 1, of_file = entry >> 61 & 1;

	return (present || swapped) && !of_file;
}

static int write_runs(int out, size_t first, size_t count, size_t page, uint64_t *ret_bytes)
{
	for (size_t i = 0; i < count;) {
		size_t run = i;
		int k;

		while (run < count && is_private(entries[run]))
			run++;
		if (run == i) {
			i++;
			continue;
		}
		k = write_at(out, ram + (first + i) * page, (run - i) * page, (first + i) * page);
		if (k < 0)
			return k;
		*ret_bytes += (run - i) * page;
		i = run;
	}
	return 0;
}

static int dirty(const char *path, uint64_t *ret_bytes)
{
	size_t page = sysconf(_SC_PAGESIZE), total = ram_size / page;
	int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int out = open(path, O_WRONLY | O_CLOEXEC);
	int k = map < 0 || out < 0 ? -errno : 0;

	for (size_t first = 0; k == 0 && first < total;) {
		size_t want = total - first < ENTRIES ? total - first : ENTRIES;
		ssize_t n = pread(map, entries, want * sizeof entries[0],
			((uintptr_t)ram / page + first) * sizeof entries[0]);

		if (n <= 0) {
			k = n < 0 ? -errno : -EIO;
			break;
		}
		k = write_runs(out, first, n / sizeof entries[0], page, ret_bytes);
		first += n / sizeof entries[0];
	}
	if (map >= 0)
		close(map);
	if (out >= 0 && close(out) < 0 && k == 0)
		k = -errno;
	return k;
}

/* ---- COPY ---- */

/* A clone of the whole file where the file system can (btrfs, XFS); else written from a mapping of its own, which takes
 * a fifth less time on tmpfs than copy_file_range, and half less than mapping the target as well. */
static int copy_extents(int out, uint64_t *ret_bytes)
{
	const char *from = map_raw(NULL, ram_size, PROT_READ, MAP_SHARED, ram_fd, 0);
	off_t at = 0, end = ram_size;
	int k = 0;

	if (from == MAP_FAILED)
		return -errno;
	while (k == 0 && at < end) {
		off_t data = lseek(ram_fd, at, SEEK_DATA), hole;

		if (data < 0) {
			k = errno == ENXIO ? 0 : -errno;
			break;
		}
		hole = lseek(ram_fd, data, SEEK_HOLE);
		if (hole < 0 || hole > end)
			hole = end;
		k = write_at(out, from + data, hole - data, data);
		*ret_bytes += hole - data;
		at = hole;
	}
	munmap((void *)from, ram_size);
	return k;
}

static int copy(const char *path, uint64_t *ret_bytes)
{
	int out = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int k = 0;

	if (out < 0)
		return -errno;
	if (ioctl(out, FICLONE, ram_fd) < 0) {
		if (ftruncate(out, ram_size) < 0)
			k = -errno;
		else
			k = copy_extents(out, ret_bytes);
	}
	if (close(out) < 0 && k == 0)
		k = -errno;
	/* What the guest has changed so far is written too: DIRTY does it again, into pages that are there by then. */
	if (k == 0 && mode == FCVM_RAM_IS_PRIVATE)
		k = dirty(path, ret_bytes);
	if (k < 0)
		unlink(path);
	return k;
}

/* ---- PRIVATE ---- */

/*
 * Replacing a mapping drops its pages first, 60 us for each MiB, while the VM is paused. So its page tables are moved
 * aside and dropped after the answer. The mapping itself stays, empty: who touches it gets the file's page. (130 MiB
 * in use: 7.5 ms to replace, 0.08 to move and replace.)
 */
static void move_aside(void)
{
	size_t offset = (uintptr_t)ram % TABLE;
	char *room = map_raw(NULL, ram_size + 2 * TABLE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *to;

	if (room == MAP_FAILED)
		return;
	/* Whole tables can be moved if both ends lie alike in theirs. */
	to = room + TABLE - (uintptr_t)room % TABLE + offset;
	aside = room;
	/* Fails before Linux 5.13, which costs the time. */
	mremap(ram, ram_size, ram_size, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to);
}

static int make_private(void)
{
	if (mode == FCVM_RAM_IS_PRIVATE)
		return 0;
	move_aside();
	if (map_raw(ram, ram_size, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_NORESERVE, ram_fd, 0) ==
		MAP_FAILED)
		return -errno;
	mode = FCVM_RAM_IS_PRIVATE;
	/* The file is others' from now on: QEMU's way to write to it goes. */
	if (dup3(ram_fd, qemu_fd, O_CLOEXEC) < 0)
		_exit(70); /* cannot be; but what could write to a published file must not live */
	return 0;
}

/* ---- FORK ---- */

static bool say_hello(void)
{
	struct fcvm_ram_hello hello = {
		.magic = FCVM_RAM_MAGIC,
		.version = FCVM_RAM_VERSION,
		.mode = mode,
		.pid = getpid(),
		.size = ram_size,
	};

	return transmit(&hello, sizeof hello);
}

/* In the copy `child` is set, and there is nobody to reply to. */
static int copy_process(bool *child)
{
	static const int targets[FCVM_RAM_FORK_FDS] = {3, 4, FCVM_RAM_CONTROL, 1, 2};
	long k;

	if (mode != FCVM_RAM_IS_PRIVATE || passed[FCVM_RAM_FORK_FDS - 1] < 0)
		return -EINVAL;
	k = fcvm_fork(passed, targets, FCVM_RAM_FORK_FDS);
	if (k == 0) {
		for (unsigned i = 0; i < FCVM_RAM_FORK_FDS; i++)
			passed[i] = -1;
		*child = true;
		return 0;
	}
	drop_passed();
	return k > 0 ? 0 : k;
}

/* ---- the thread ---- */

static int carry_out(const struct fcvm_ram_request *request, const char *path, uint64_t *ret_bytes, bool *child)
{
	switch (request->command) {
	case FCVM_RAM_COPY:
		return copy(path, ret_bytes);
	case FCVM_RAM_DIRTY:
		return mode == FCVM_RAM_IS_PRIVATE ? dirty(path, ret_bytes) : -EBUSY;
	case FCVM_RAM_PRIVATE:
		return make_private();
	case FCVM_RAM_FORK:
		return copy_process(child);
	default:
		return -EOPNOTSUPP;
	}
}

static void *serve(void *unused)
{
	static char path[FCVM_RAM_PATH];
	struct fcvm_ram_request request;

	memset(passed, -1, sizeof passed);
	if (!say_hello())
		_exit(ORPHANED);
	while (receive(&request, sizeof request)) {
		struct fcvm_ram_reply reply = {.magic = FCVM_RAM_MAGIC, .id = request.id};
		bool child = false;

		if (request.magic != FCVM_RAM_MAGIC || request.path_length >= sizeof path)
			break;
		if (!receive(path, request.path_length))
			break;
		path[request.path_length] = 0;
		reply.error = -carry_out(&request, path, &reply.bytes, &child);
		reply.mode = mode;
		if (child ? !say_hello() : !transmit(&reply, sizeof reply))
			break;
		if (aside != MAP_FAILED)
			munmap(aside, ram_size + 2 * TABLE);
		aside = MAP_FAILED;
	}
	/* Whoever had us started is gone, or lost count: nobody could end this VM. */
	_exit(ORPHANED);
}

static int start_thread(void)
{
	pthread_attr_t attr;
	sigset_t all, old;
	pthread_t thread;
	int k;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	k = pthread_create(&thread, &attr, serve, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return -k;
}

/* ---- what QEMU calls ---- */

static void *map_ram(void *at, int prot, int flags, int fd, off_t offset)
{
	char name[32] = "/proc/self/fd/";
	struct stat st;
	size_t end = strlen(name);
	void *got;

	/* A published file must be out of QEMU's reach whatever it does. */
	if (mode == FCVM_RAM_IS_PRIVATE && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY) {
		errno = EPERM;
		return MAP_FAILED;
	}
	/* A smaller file would be holes, then SIGBUS. */
	if (offset != 0 || fstat(fd, &st) < 0 || (uint64_t)st.st_size < ram_size) {
		errno = EINVAL;
		return MAP_FAILED;
	}
	for (int digits = fd > 999 ? 1000 : fd > 99 ? 100 : fd > 9 ? 10 : 1; digits > 0; digits /= 10)
		name[end++] = '0' + fd / digits % 10;
	ram_fd = open(name, O_RDONLY | O_CLOEXEC);
	if (ram_fd < 0)
		return MAP_FAILED;
	if (mode == FCVM_RAM_IS_SHARED)
		fchmod(fd, 0600); /* QEMU has made it for everybody to read */
	else
		flags = (flags & ~MAP_TYPE) | MAP_PRIVATE | MAP_NORESERVE;
	got = map_raw(at, ram_size, prot, flags, fd, 0);
	if (got == MAP_FAILED)
		return got;
	ram = got;
	qemu_fd = fd;
	if (start_thread() < 0) {
		errno = EAGAIN;
		return MAP_FAILED;
	}
	return got;
}

EXPORT void *mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
	int type = flags & MAP_TYPE;

	/* MAP_SHARED_VALIDATE is what MAP_SYNC comes with. */
	if (ram_size && size == ram_size && fd >= 0 && !ram && (type == MAP_SHARED || type == MAP_SHARED_VALIDATE))
		return map_ram(at, prot, flags, fd, offset);
	return map_raw(at, size, prot, flags, fd, offset);
}

EXPORT void *mmap64(void *at, size_t size, int prot, int flags, int fd, off_t offset)
	__attribute__((alias("mmap")));

/* QEMU asks for huge pages whatever it is given. In a file that becomes a snapshot they make 2 MiB of each page.
 * And it keeps RAM from being forked, which is what fork.c is for. */
EXPORT int madvise(void *at, size_t size, int advice)
{
	if (advice == MADV_DONTFORK)
		return 0;
	if (advice == MADV_HUGEPAGE && ram && (char *)at >= ram && (char *)at < ram + ram_size)
		return 0;
	return syscall(SYS_madvise, at, size, advice);
}

/* The published file: for reading only, and not made anew when it has gone. */
static int open_raw(const char *path, int flags, mode_t bits)
{
	if (ram_path[0] && strcmp(path, ram_path) == 0) {
		if (flags & O_CREAT) {
			errno = ENOENT;
			return -1;
		}
		flags = (flags & ~(O_ACCMODE | O_TRUNC)) | O_RDONLY;
	}
	return syscall(SYS_openat, AT_FDCWD, path, flags, bits);
}

EXPORT int open(const char *path, int flags, ...)
{
	mode_t bits = 0;

	if (flags & (O_CREAT | __O_TMPFILE)) {
		va_list ap;

		va_start(ap, flags);
		bits = va_arg(ap, mode_t);
		va_end(ap);
	}
	return open_raw(path, flags, bits);
}

EXPORT int open64(const char *path, int flags, ...) __attribute__((alias("open")));

/* What <fcntl.h> makes of open with two arguments when fortified. */
EXPORT int __open_2(const char *path, int flags);
EXPORT int __open64_2(const char *path, int flags);

int __open_2(const char *path, int flags)
{
	return open_raw(path, flags, 0);
}

int __open64_2(const char *path, int flags)
{
	return open_raw(path, flags, 0);
}

/* A ring that two processes share is of no use to either (fork.c); QEMU falls back to epoll, and the memory is saved. */
EXPORT int io_uring_queue_init(unsigned entries_wanted, void *ring, unsigned flags);

int io_uring_queue_init(unsigned entries_wanted, void *ring, unsigned flags)
{
	return -ENOSYS;
}
