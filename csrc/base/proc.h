/* SPDX-License-Identifier: MIT */
/*
 * Starting, watching and ending processes by pidfd. Used by the local node and by the agent.
 *
 * PDEATHSIG follows the thread that forked, so spawn with die_with_parent from a thread that lives as long as
 * the children should. The child is made by a vfork-like clone: cheap whatever the parent's size.
 */
#ifndef FCVM_BASE_PROC_H
#define FCVM_BASE_PROC_H

#include <stdbool.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/until.h"

struct fcvm_proc_spec {
	const char *const *argv; /* argv[0] is looked up in PATH (of env, else of this process) if it has no '/' */
	const char *const *env;  /* NULL: this process's */
	const char *cwd;         /* NULL: unchanged */
	const int *fds;          /* fds[i] becomes fd i of the child; -1: /dev/null; everything else is closed */
	unsigned nfds;           /* at least 3, at most 32 */
	bool die_with_parent;    /* PDEATHSIG SIGKILL, set last before exec, with the lost race checked */
	bool new_session;        /* setsid; with ctty, fd 0 becomes the controlling terminal */
	bool ctty;
	bool new_group;          /* setpgid(0, 0); implied by new_session */
	bool set_ids;            /* switch to uid, gid and groups below before exec */
	uid_t uid;
	gid_t gid;
	const gid_t *groups;
	unsigned ngroups;
	const struct rlimit *nofile; /* its limit of descriptors; NULL: this process's */
};

struct fcvm_proc {
	pid_t pid;
	int pidfd; /* owned */
};

#define FCVM_PROC_INIT {.pid = 0, .pidfd = -1}

/* How a process ended. */
struct fcvm_exit {
	int code;   /* exit status, when signal is 0 */
	int signal; /* the signal that ended it, or 0 */
};

/*
 * Returns 0 with the child past its exec, or -errno of the step that failed in the child (exec, chdir, setuid,
 * named in the message). Nothing is left to reap on failure. ret->pid is set as soon as there is a child, for another
 * thread that reaps for the whole process; on failure *ret says nothing.
 */
int fcvm_proc_spawn(const struct fcvm_proc_spec *spec, struct fcvm_proc *ret, struct fcvm_err *err);

/* Waits and reaps. 0, -ETIMEDOUT, -ECANCELED, -ECHILD (somebody else reaped it). Call once per process. */
int fcvm_proc_wait(struct fcvm_proc *p, const struct fcvm_until *until, struct fcvm_exit *ret);

/* signal by pidfd; a process that is gone is no error. group: the whole process group (pid is its leader). */
int fcvm_proc_kill(const struct fcvm_proc *p, int signo, bool group);

/* Closes the pidfd; neither kills nor reaps. */
void fcvm_proc_done(struct fcvm_proc *p);

#endif
