/* SPDX-License-Identifier: MIT */
/* Locks: POSIX and flock, between processes, waiting, interrupted. */
#include "posix.h"

static void lock(int fd, int cmd, short type, long from, long len)
{
	struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = from, .l_len = len, .l_pid = 0};
	int r = fcntl(fd, cmd, &l);

	note("lock %d %d %ld+%ld=%d %s", cmd, type, from, len, r, r ? strerrorname_np(errno) : "");
	if (cmd == F_GETLK && !r)
		note(" %d %ld+%ld pid %s", l.l_type, (long)l.l_start, (long)l.l_len,
			!l.l_pid ? "none" : l.l_pid == getppid() ? "parent" : "other");
	note("\n");
}

static void other_locker(void)
{
	int fd = open("f", O_RDWR), f2 = open("f", O_RDWR);

	lock(fd, F_SETLK, F_WRLCK, 5, 5);
	lock(fd, F_SETLK, F_RDLCK, 5, 5);
	lock(fd, F_GETLK, F_WRLCK, 0, 0);
	lock(fd, F_SETLK, F_RDLCK, 25, 1);
	lock(fd, F_GETLK, F_WRLCK, 20, 5);
	lock(fd, F_SETLK, F_WRLCK, 100, 10);
	lock(fd, F_SETLK, F_WRLCK, 5LL << 30, 10);
	DO(flock(fd, LOCK_EX | LOCK_NB));
	DO(flock(f2, LOCK_SH | LOCK_NB));
	close(fd);
	close(f2);
}

static void locks(void)
{
	int fd = open("f", O_CREAT | O_RDWR, 0666), second = open("f", O_RDONLY);

	fchmod(fd, 0666);
	lock(fd, F_SETLK, F_WRLCK, 0, 10);
	lock(fd, F_SETLK, F_RDLCK, 20, 10);
	lock(second, F_SETLK, F_WRLCK, 50, 10);
	lock(second, F_SETLK, F_RDLCK, 50, 10);
	DO(flock(fd, LOCK_EX));
	as(1000, 1000, 1000, other_locker);
	lock(fd, F_SETLK, F_UNLCK, 3, 4);
	as(1000, 1000, 1000, other_locker);
	DO(flock(fd, LOCK_SH));
	/* Any close of the file gives all of the process's POSIX locks back, and no flock. */
	close(second);
	as(1000, 1000, 1000, other_locker);
	close(fd);
	as(1000, 1000, 1000, other_locker);
}

static void waits(void)
{
	int fd = open("f", O_RDWR);
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	DO(fcntl(fd, F_SETLKW, &l));
	DO(flock(fd, LOCK_EX));
	close(fd);
}

static void on_alarm(int signo)
{
}

static void interrupted_waits(void)
{
	struct sigaction act = {.sa_handler = on_alarm};
	int fd = open("f", O_RDWR);
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	sigaction(SIGALRM, &act, NULL);
	ualarm(100000, 0);
	DO(fcntl(fd, F_SETLKW, &l));
	ualarm(100000, 0);
	DO(flock(fd, LOCK_EX));
	close(fd);
}

static void waiting_locks(void)
{
	int fd = open("f", O_CREAT | O_RDWR, 0666);
	pid_t pid;

	fchmod(fd, 0666);
	lock(fd, F_SETLK, F_WRLCK, 0, 0);
	DO(flock(fd, LOCK_EX));
	as(1000, 1000, 1000, interrupted_waits);
	pid = fork();
	if (!pid) {
		/* The lock is this parent's: the child inherits none. */
		written = 0;
		alarm(10);
		waits();
		_exit(!strstr(transcript, "=0") || strstr(transcript, "-1"));
	}
	usleep(100000);
	lock(fd, F_SETLK, F_UNLCK, 0, 0);
	DO(flock(fd, LOCK_UN));
	int status;
	waitpid(pid, &status, 0);
	note("waited %d\n", status);
	close(fd);
}

static void from_another(void)
{
	int fd = open("f", O_RDWR);

	lock(fd, F_OFD_SETLK, F_WRLCK, 0, 10);
	lock(fd, F_OFD_SETLK, F_RDLCK, 10, 10);
	lock(fd, F_SETLK, F_WRLCK, 20, 10);
	lock(fd, F_OFD_GETLK, F_WRLCK, 0, 0);
	close(fd);
}

/* Locks of an open file, not of a process: they go with its last descriptor, and with no other's. */
static void open_file_locks(void)
{
	int a = open("f", O_CREAT | O_RDWR, 0666), b = open("f", O_RDWR), copy = dup(a), reads = open("f", O_RDONLY);

	fchmod(a, 0666);
	lock(a, F_OFD_SETLK, F_WRLCK, 0, 10);
	lock(b, F_OFD_SETLK, F_WRLCK, 5, 10);
	lock(b, F_OFD_SETLK, F_RDLCK, 10, 10);
	lock(reads, F_OFD_SETLK, F_WRLCK, 30, 1);
	lock(reads, F_OFD_SETLK, F_RDLCK, 15, 10);
	as(1000, 1000, 1000, from_another);
	close(a);
	as(1000, 1000, 1000, from_another);
	close(copy);
	/* RELEASE has no one who waits for it. */
	usleep(100000);
	as(1000, 1000, 1000, from_another);
	close(b);
	close(reads);
	usleep(100000);
	as(1000, 1000, 1000, from_another);
}

const struct posix_case posix_locks[] = {
	CASE(locks), CASE(waiting_locks), CASE(open_file_locks),
	{NULL, NULL},
};
