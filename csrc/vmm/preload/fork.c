/* SPDX-License-Identifier: MIT */
/*
 * fork(2) for a process with threads: all of them are in the child, too.
 *
 * Why: under TCG most of what a restored guest's first program costs is QEMU's translating of guest code (165 of 180
 * ms). A copy of a QEMU that has done so has the translations, shares their pages with all other copies, and takes
 * milliseconds to make.
 *
 * Theory of operation
 *
 * - Every other thread is parked: a signal whose handler notes where its frame is and waits. What a thread was doing
 *   when it was interrupted is all in that frame, on its own stack.
 * - This thread forks by clone(2). The child has the memory of all threads, and of them only this one. So for each
 *   it makes a new thread on the old one's stack with the old one's thread pointer, whose first and only act is
 *   rt_sigreturn: it goes on where the old one was interrupted, with the same locks held.
 * - Locks are therefore as consistent as in the parent. What a thread's number is kept in (the C library's
 *   descriptor of it) is set to the new number by clone itself.
 * - Descriptors are shared with the parent after a fork. Sockets are replaced by those that came with the request;
 *   an eventfd that two processes read would lose wake-ups, so each is replaced by one of the child's own with the
 *   same count. Where there is anything else with state (io_uring, timers, an epoll in use) there is no copy.
 * - CLONE_PARENT makes the child its parent's sibling: a child of the owner's, who can wait for it, and PDEATHSIG
 *   means the owner's end.
 */
#include "fork.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
	PARK = SIGFPE, /* of the few that QEMU blocks in no thread, and it has no handler for it */
	THREADS = 128,
	EVENTS = 256,
	ROUNDS = 20,      /* of looking for threads that came meanwhile */
	PARK_MS = 1000,   /* for all of them */
	FAILED = 71,      /* exit status of a child that could not be completed */
};

struct parked {
	int tid;
	int done;         /* futex: the two below are set; 2: it has ended instead */
	void *frame;      /* its struct ucontext, on its stack */
	uintptr_t thread; /* its thread pointer */
};

static struct parked threads[THREADS];
static unsigned nthreads;
static int released; /* futex: counts the releases */
static long tid_at;  /* where the C library keeps a thread's number, from its thread pointer */

static void wait_on(int *at, int value, int ms)
{
	struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l};

	syscall(SYS_futex, at, FUTEX_WAIT, value, ms < 0 ? NULL : &t, NULL, 0);
}

static void wake(int *at)
{
	syscall(SYS_futex, at, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static uintptr_t thread_pointer(void)
{
	uintptr_t p;

	__asm__("mov %%fs:0, %0" : "=r"(p));
	return p;
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}

/* ---- folders of numbers, without the C library's: its readdir allocates, and a parked thread may hold that lock ---- */

struct walk {
	int fd;
	long size, at;
	char entries[4096] __attribute__((aligned(8)));
};

static bool walk_begin(struct walk *w, const char *path)
{
	w->size = w->at = 0;
	w->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return w->fd >= 0;
}

/* The next name that is a number; -1: there is none. */
static int walk_next(struct walk *w)
{
	for (;;) {
		/* The kernel's struct linux_dirent64: inode, offset, record length, type, name. */
		const char *entry = w->entries + w->at, *name = entry + 19;
		unsigned short length;
		int number = 0;

		if (w->at >= w->size) {
			w->at = 0;
			w->size = syscall(SYS_getdents64, w->fd, w->entries, sizeof w->entries);
			if (w->size <= 0)
				return -1;
			continue;
		}
		memcpy(&length, entry + 16, sizeof length);
		w->at += length;
		if (*name < '0' || *name > '9')
			continue;
		while (*name >= '0' && *name <= '9')
			number = number * 10 + *name++ - '0';
		return number;
	}
}

/* ---- parking ---- */

static void on_park(int signo, siginfo_t *info, void *frame)
{
	/* Before it looks itself up: a release that comes in between then counts for it. */
	int was = __atomic_load_n(&released, __ATOMIC_SEQ_CST);
	unsigned n = __atomic_load_n(&nthreads, __ATOMIC_SEQ_CST);
	int saved = errno, tid = syscall(SYS_gettid);

	if (info->si_code != SI_TKILL) { /* a real one: as if we were not there */
		signal(PARK, SIG_DFL);
		return;
	}
	for (unsigned i = 0; i < n; i++) {
		if (threads[i].tid != tid)
			continue;
		threads[i].frame = frame;
		threads[i].thread = thread_pointer();
		__atomic_store_n(&threads[i].done, 1, __ATOMIC_SEQ_CST);
		wake(&threads[i].done);
		while (__atomic_load_n(&released, __ATOMIC_SEQ_CST) == was)
			wait_on(&released, was, -1);
		break;
	}
	errno = saved;
}

/* A thread that gets its signal only now finds no entry of its own, and goes on. */
static void release(void)
{
	__atomic_store_n(&nthreads, 0, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&released, 1, __ATOMIC_SEQ_CST);
	wake(&released);
}

static bool known(int tid)
{
	for (unsigned i = 0; i < nthreads; i++)
		if (threads[i].tid == tid)
			return true;
	return false;
}

/* Signals the threads that are new since the last round; how many, or -errno. */
static int signal_new(int self)
{
	struct walk w;
	int n = 0, tid;

	if (!walk_begin(&w, "/proc/self/task"))
		return -errno;
	while (n >= 0 && (tid = walk_next(&w)) >= 0) {
		if (tid == self || known(tid))
			continue;
		if (nthreads == THREADS) {
			n = -E2BIG;
			break;
		}
		threads[nthreads] = (struct parked){.tid = tid};
		__atomic_add_fetch(&nthreads, 1, __ATOMIC_SEQ_CST);
		if (syscall(SYS_tgkill, getpid(), tid, PARK) < 0)
			threads[nthreads - 1].done = 2;
		n++;
	}
	close(w.fd);
	return n;
}

static int await_parked(int64_t deadline)
{
	for (unsigned i = 0; i < nthreads; i++) {
		while (__atomic_load_n(&threads[i].done, __ATOMIC_SEQ_CST) == 0) {
			if (now_ms() > deadline)
				return -EBUSY;
			wait_on(&threads[i].done, 0, 20);
			if (syscall(SYS_tgkill, getpid(), threads[i].tid, 0) < 0)
				threads[i].done = 2;
		}
	}
	return 0;
}

static int park_all(void)
{
	int64_t deadline = now_ms() + PARK_MS;
	int self = syscall(SYS_gettid), k = 1;

	nthreads = 0;
	/* A thread that was not parked yet may have made another. */
	for (unsigned i = 0; k > 0 && i < ROUNDS; i++) {
		k = signal_new(self);
		if (k >= 0 && await_parked(deadline) < 0)
			k = -EBUSY;
	}
	return k > 0 ? -EBUSY : k;
}

/* ---- the child ---- */

static bool starts_with(const char *text, const char *with)
{
	return strncmp(text, with, strlen(with)) == 0;
}

/* What a descriptor is, as /proc tells: "socket:[1]", "anon_inode:[eventfd]", a path. */
static void kind_of(int fd, char to[64])
{
	char path[40];
	ssize_t n;

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	n = readlink(path, to, 63);
	to[n > 0 ? n : 0] = 0;
}

static unsigned number_in_info(int fd, const char *label)
{
	char path[40], text[512] = "", *at;
	ssize_t n;
	int info;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	n = read(info, text, sizeof text - 1);
	close(info);
	text[n > 0 ? n : 0] = 0;
	at = strstr(text, label);
	/* The count is hexadecimal, the rest is compared only. */
	return at ? strtoul(at + strlen(label), NULL, 16) : 0;
}

/*
 * The eventfds of this process; how many, or -EOPNOTSUPP if there is something with state that a copy would share. An
 * epoll without members (QEMU makes some and uses none) is harmless; which it is, its fdinfo tells.
 */
static int list_events(int list[EVENTS])
{
	static const char *const shared[] = {"anon_inode:[io_uring]", "anon_inode:[timerfd]", "anon_inode:inotify",
		"anon_inode:kvm", "anon_inode:[userfaultfd]"};
	struct walk w;
	int n = 0, fd;

	if (!walk_begin(&w, "/proc/self/fd"))
		return -errno;
	while (n >= 0 && (fd = walk_next(&w)) >= 0) {
		char kind[64];

		kind_of(fd, kind);
		for (unsigned i = 0; i < sizeof shared / sizeof *shared; i++)
			if (starts_with(kind, shared[i]))
				n = -EOPNOTSUPP;
		if (strcmp(kind, "anon_inode:[eventpoll]") == 0 && number_in_info(fd, "tfd:") != 0)
			n = -EOPNOTSUPP;
		if (n >= 0 && strcmp(kind, "anon_inode:[eventfd]") == 0) {
			if (n == EVENTS)
				n = -E2BIG;
			else
				list[n++] = fd;
		}
	}
	close(w.fd);
	return n;
}

/* In the child. Two numbers of one eventfd stay one. */
static bool own_events(const int list[EVENTS], int n)
{
	unsigned ids[EVENTS];

	for (int i = 0; i < n; i++)
		ids[i] = number_in_info(list[i], "eventfd-id:");
	for (int i = 0; i < n; i++) {
		int flags = fcntl(list[i], F_GETFL), twin = 0, fd;

		while (twin < i && (ids[i] == 0 || ids[twin] != ids[i]))
			twin++;
		fd = twin < i ? list[twin]
			      : eventfd(number_in_info(list[i], "eventfd-count:"),
					EFD_CLOEXEC | (flags & O_NONBLOCK ? EFD_NONBLOCK : 0));
		if (fd < 0 || dup3(fd, list[i], O_CLOEXEC) < 0)
			return false;
		if (twin == i)
			close(fd);
	}
	return true;
}

/* A thread that goes on from p's frame. Its number, or -errno. */
static long revive(const struct parked *p)
{
	int *tid = (int *)(p->thread + tid_at);
	register long child_tid __asm__("r10") = (long)tid;
	register long tls __asm__("r8") = p->thread;
	long k;

	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "mov %[sigreturn], %%eax\n\t"
			 "syscall\n\t"
			 "1:"
			 : "=a"(k)
			 : "a"(SYS_clone),
			 "D"(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
				 CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID),
			 "S"(p->frame), "d"(tid), "r"(child_tid), "r"(tls), [sigreturn] "i"(SYS_rt_sigreturn)
			 : "rcx", "r11", "memory");
	return k;
}

static int events[EVENTS];
static int nevents;

static void be_the_child(pid_t owner, const int *fds, const int *targets, unsigned n)
{
	*(int *)(thread_pointer() + tid_at) = syscall(SYS_gettid);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* A group of its own, as who is spawned has one: processes are ended by group. */
	if (getppid() != owner || setpgid(0, 0) < 0 || !own_events(events, nevents))
		_exit(FAILED);
	for (unsigned i = 0; i < n; i++)
		if (dup3(fds[i], targets[i], O_CLOEXEC) < 0)
			_exit(FAILED);
	for (unsigned i = 0; i < n; i++)
		close(fds[i]);
	for (unsigned i = 0; i < nthreads; i++)
		if (threads[i].done == 1 && revive(&threads[i]) < 0)
			_exit(FAILED);
}

/* ---- */

/* Where this thread's number stands in its descriptor (glibc's struct pthread, which is no public structure). */
static bool find_tid(void)
{
	uintptr_t at = thread_pointer();
	int tid = syscall(SYS_gettid);

	for (long offset = 0x100; tid_at == 0 && offset < 0x800; offset += sizeof(int))
		if (*(int *)(at + offset) == tid)
			tid_at = offset;
	return tid_at != 0;
}

long fcvm_fork(const int *fds, const int *targets, unsigned n)
{
	struct sigaction action = {.sa_sigaction = on_park, .sa_flags = SA_SIGINFO | SA_RESTART};
	pid_t owner = getppid();
	long k;

	if (!find_tid())
		return -EOPNOTSUPP;
	sigfillset(&action.sa_mask);
	if (sigaction(PARK, &action, NULL) < 0)
		return -errno;
	k = park_all();
	if (k == 0) {
		nevents = list_events(events);
		k = nevents < 0 ? nevents : 0;
	}
	if (k == 0) {
		/* Not by the C library: its locks may be held by a parked thread, whose twin will release them. */
		k = syscall(SYS_clone, CLONE_PARENT, 0, 0, 0, 0);
		if (k < 0)
			k = -errno;
		if (k == 0) {
			be_the_child(owner, fds, targets, n);
			return 0;
		}
	}
	release();
	return k;
}
