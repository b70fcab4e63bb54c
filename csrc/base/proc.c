/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: clone(CLONE_VM | CLONE_VFORK) runs child_main() in this process's memory, on a stack of its
 * own inside the parent's frame, while the calling thread sleeps until the child has executed its program or
 * given up; what went wrong is then simply in struct child. As the memory is shared, the child calls nothing but
 * the kernel (syscall()), no signal handler may run in it (all are blocked before the clone, reset in the child,
 * and only then let in), and its functions are not instrumented by sanitizers.
 */
#include "base/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fail.h"

/* Older libc headers lack these. */
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif
enum { WAIT_PIDFD = 3, SIGNAL_PROCESS_GROUP = 1 << 2 };

#if defined(__clang__)
#define BARE __attribute__((disable_sanitizer_instrumentation))
#else
#define BARE __attribute__((no_sanitize("address", "thread", "undefined")))
#endif

enum {
	MAX_FDS = 32,
	SIGNALS = 64,
	PATH_SIZE = 4096,
	STACK_SIZE = 16 * 1024,
};

/* ThreadSanitizer's own clone() is for children with memory of their own; glibc's goes by this name as well. */
#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN
#endif
#elif defined(__SANITIZE_THREAD__)
#define UNDER_TSAN
#endif
#if defined(__GLIBC__) && defined(UNDER_TSAN)
int __clone(int (*)(void *), void *, int, void *, ...);
#define clone __clone
#endif

extern char **environ;

enum step {
	STEP_NONE,
	STEP_SIGNALS,
	STEP_SESSION,
	STEP_NULL,
	STEP_FDS,
	STEP_CTTY,
	STEP_CHDIR,
	STEP_GROUPS,
	STEP_GID,
	STEP_UID,
	STEP_PARENT,
	STEP_EXEC,
};

struct child {
	const struct fcvm_proc_spec *spec;
	const char *const *env;
	const char *search; /* PATH, or NULL if argv[0] is a path */
	pid_t parent;
	pid_t *pid; /* where it says who it is, before all else */
	/* what became of it, told by the child */
	enum step failed;
	int error;
	char path[PATH_SIZE];
	_Alignas(16) char stack[STACK_SIZE];
};

/* ---- in the child ---- */

BARE static void give_up(struct child *c, enum step step, int error)
{
	c->failed = step;
	c->error = error;
	for (;;)
		syscall(SYS_exit_group, 127);
}

BARE static void reset_signals(struct child *c)
{
	/* struct sigaction of the kernel; all zero is SIG_DFL on every architecture */
	uint64_t action[8] = {0}, none = 0;

	for (int i = 1; i <= SIGNALS; i++)
		if (i != SIGKILL && i != SIGSTOP)
			syscall(SYS_rt_sigaction, i, action, NULL, SIGNALS / 8);
	if (syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, SIGNALS / 8) < 0)
		give_up(c, STEP_SIGNALS, errno);
}

/* Sources first move out of the way of the targets, so that no target overwrites a source still to come. */
BARE static void arrange_fds(struct child *c)
{
	int from[MAX_FDS], nfds = c->spec->nfds, null = -1;

	for (int i = 0; i < nfds; i++) {
		from[i] = c->spec->fds[i];
		if (from[i] < 0) {
			if (null < 0)
				null = syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
			if (null < 0)
				give_up(c, STEP_NULL, errno);
			from[i] = null;
		}
		if (from[i] < nfds)
			from[i] = syscall(SYS_fcntl, from[i], F_DUPFD_CLOEXEC, nfds);
		if (from[i] < 0)
			give_up(c, STEP_FDS, errno);
	}
	for (int i = 0; i < nfds; i++)
		if (syscall(SYS_dup3, from[i], i, 0) < 0)
			give_up(c, STEP_FDS, errno);
	if (syscall(SYS_close_range, nfds, ~0u, 0) == 0)
		return;
	if (errno != ENOSYS)
		give_up(c, STEP_FDS, errno);
	/* Before Linux 5.9. Ours are close-on-exec; this is for those of the program that we are part of. */
	for (int i = nfds; i < 4096; i++)
		syscall(SYS_close, i);
}

BARE static void switch_ids(struct child *c)
{
	const struct fcvm_proc_spec *s = c->spec;

	if (syscall(SYS_setgroups, (size_t)s->ngroups, s->groups) < 0)
		give_up(c, STEP_GROUPS, errno);
	if (syscall(SYS_setresgid, s->gid, s->gid, s->gid) < 0)
		give_up(c, STEP_GID, errno);
	if (syscall(SYS_setresuid, s->uid, s->uid, s->uid) < 0)
		give_up(c, STEP_UID, errno);
}

/* Puts the folder at *search, a slash and the name into c->path, and moves *search on. False: too long. */
BARE static bool next_candidate(struct child *c, const char **search)
{
	const char *at = *search, *name = c->spec->argv[0];
	bool empty = *at == ':' || !*at;
	size_t n = 0;

	if (empty)
		c->path[n++] = '.';
	for (; *at && *at != ':'; at++)
		if (n < PATH_SIZE)
			c->path[n++] = *at;
	*search = *at ? at + 1 : NULL;
	if (n < PATH_SIZE)
		c->path[n++] = '/';
	for (; *name && n < PATH_SIZE; name++)
		c->path[n++] = *name;
	if (n >= PATH_SIZE)
		return false;
	c->path[n] = 0;
	return true;
}

/* What is not there, or not for us, does not end the search. Unlike execvp(3) no shell is tried on ENOEXEC. */
BARE static void execute(struct child *c)
{
	const char *search = c->search;
	int error = ENOENT;

	if (!search) {
		syscall(SYS_execve, c->spec->argv[0], c->spec->argv, c->env);
		give_up(c, STEP_EXEC, errno);
	}
	while (search) {
		if (!next_candidate(c, &search))
			continue;
		syscall(SYS_execve, c->path, c->spec->argv, c->env);
		if (errno == EACCES)
			error = EACCES;
		else if (errno != ENOENT && errno != ENOTDIR)
			give_up(c, STEP_EXEC, errno);
	}
	give_up(c, STEP_EXEC, error);
}

BARE static int child_main(void *data)
{
	struct child *c = data;
	const struct fcvm_proc_spec *s = c->spec;

	*c->pid = (pid_t)syscall(SYS_getpid);
	reset_signals(c);
	if (s->new_session && syscall(SYS_setsid) < 0)
		give_up(c, STEP_SESSION, errno);
	if (s->new_group && !s->new_session && syscall(SYS_setpgid, 0, 0) < 0)
		give_up(c, STEP_SESSION, errno);
	arrange_fds(c);
	if (s->nofile && syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, s->nofile, NULL) < 0)
		give_up(c, STEP_FDS, errno);
	if (s->ctty && syscall(SYS_ioctl, 0, TIOCSCTTY, 0) < 0)
		give_up(c, STEP_CTTY, errno);
	if (s->cwd && syscall(SYS_chdir, s->cwd) < 0)
		give_up(c, STEP_CHDIR, errno);
	if (s->set_ids)
		switch_ids(c);
	if (s->die_with_parent) {
		/* Last, as changing ids clears it; a parent that died before has sent nothing. */
		if (syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
			give_up(c, STEP_PARENT, errno);
		if (syscall(SYS_getppid) != c->parent)
			give_up(c, STEP_PARENT, ESRCH);
	}
	execute(c);
	return 127;
}

/* ---- in the parent ---- */

static const char *find_env(const char *const *env, const char *name)
{
	size_t size = strlen(name);

	for (; *env; env++)
		if (strncmp(*env, name, size) == 0 && (*env)[size] == '=')
			return *env + size + 1;
	return NULL;
}

static const char *search_path(const struct child *c)
{
	const char *path;

	if (strchr(c->spec->argv[0], '/'))
		return NULL;
	path = find_env(c->env, "PATH");
	if (!path && environ)
		path = find_env((const char *const *)environ, "PATH");
	return path ? path : "/usr/local/bin:/usr/bin:/bin";
}

static int explain(const struct child *c, struct fcvm_err *err)
{
	static const char *const names[] = {
		[STEP_SIGNALS] = "reset signals",
		[STEP_SESSION] = "make a session or process group",
		[STEP_NULL] = "open /dev/null",
		[STEP_FDS] = "hand over file descriptors",
		[STEP_CTTY] = "make its terminal the controlling one",
		[STEP_GROUPS] = "setgroups",
		[STEP_PARENT] = "tie it to its parent's life",
	};
	const char *program = c->spec->argv[0];
	int code = -c->error;

	switch (c->failed) {
	case STEP_EXEC:
		return fcvm_fail_errno(err, code, "exec %s", program);
	case STEP_CHDIR:
		return fcvm_fail_errno(err, code, "start %s: chdir %s", program, c->spec->cwd);
	case STEP_GID:
		return fcvm_fail_errno(err, code, "start %s: setgid %u", program, c->spec->gid);
	case STEP_UID:
		return fcvm_fail_errno(err, code, "start %s: setuid %u", program, c->spec->uid);
	default:
		return fcvm_fail_errno(err, code, "start %s: %s", program, names[c->failed]);
	}
}

static void reap(int pidfd)
{
	siginfo_t si;

	while (waitid((idtype_t)WAIT_PIDFD, pidfd, &si, WEXITED) < 0 && errno == EINTR)
		;
}

/* The pid, or -errno. */
static pid_t run_child(struct child *c, int *ret_pidfd)
{
	uint64_t all = UINT64_MAX, old;
	pid_t pid;

	/* By syscall: the libc's wrapper would keep its internal signals unblocked. */
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, SIGNALS / 8);
	pid = clone(child_main, c->stack + sizeof c->stack, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD,
		c, ret_pidfd);
	if (pid < 0)
		pid = -errno;
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, SIGNALS / 8);
	return pid;
}

int fcvm_proc_spawn(const struct fcvm_proc_spec *spec, struct fcvm_proc *ret, struct fcvm_err *err)
{
	struct child c; /* not cleared: most of it is the stack */
	int pidfd = -1;
	pid_t pid;

	if (!spec->argv || !spec->argv[0] || !*spec->argv[0])
		return fcvm_fail(err, -EINVAL, "start a program: its name is empty");
	if (spec->nfds < 3 || spec->nfds > MAX_FDS)
		return fcvm_fail(err, -EINVAL, "start %s: %u descriptors, want 3 to %d", spec->argv[0],
			spec->nfds, (int)MAX_FDS);
	c.spec = spec;
	c.env = spec->env ? spec->env : (const char *const *)environ;
	c.search = search_path(&c);
	c.parent = getpid();
	c.pid = &ret->pid;
	c.failed = STEP_NONE;
	c.error = 0;
	pid = run_child(&c, &pidfd);
	if (pid < 0)
		return fcvm_fail_errno(err, pid, "start %s: clone", spec->argv[0]);
	if (c.failed != STEP_NONE) {
		reap(pidfd);
		fcvm_close(pidfd);
		return explain(&c, err);
	}
	*ret = (struct fcvm_proc){.pid = pid, .pidfd = pidfd};
	return 0;
}

int fcvm_proc_wait(struct fcvm_proc *p, const struct fcvm_until *until, struct fcvm_exit *ret)
{
	struct pollfd ended = {.fd = p->pidfd, .events = POLLIN};
	siginfo_t si = {.si_pid = 0};
	int r = fcvm_until_poll(until, &ended, 1);

	if (r < 0)
		return r;
	while (waitid((idtype_t)WAIT_PIDFD, p->pidfd, &si, WEXITED) < 0)
		if (errno != EINTR)
			return -errno;
	*ret = (struct fcvm_exit){
		.code = si.si_code == CLD_EXITED ? si.si_status : 0,
		.signal = si.si_code == CLD_EXITED ? 0 : si.si_status,
	};
	return 0;
}

int fcvm_proc_kill(const struct fcvm_proc *p, int signo, bool group)
{
	unsigned flags = group ? SIGNAL_PROCESS_GROUP : 0;
	int r;

	if (p->pid <= 0 || p->pidfd < 0)
		return 0;
	r = syscall(SYS_pidfd_send_signal, p->pidfd, signo, NULL, flags);
	if (r < 0 && errno == EINVAL && group && signo >= 0 && signo <= SIGNALS)
		/* Before Linux 6.9. The number is safe while the leader is not reaped or members are left. */
		r = kill(-p->pid, signo);
	/* Who has left its group, or has none of its own yet, is meant all the same. */
	if (group && (signo == SIGKILL || (r < 0 && errno == ESRCH)))
		r = syscall(SYS_pidfd_send_signal, p->pidfd, signo, NULL, 0);
	return r < 0 && errno != ESRCH ? -errno : 0;
}

void fcvm_proc_done(struct fcvm_proc *p)
{
	if (p)
		p->pidfd = fcvm_close(p->pidfd);
}
