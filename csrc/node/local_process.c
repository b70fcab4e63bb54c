/* SPDX-License-Identifier: MIT */
/* Programs on the local node. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "node/node_private.h"

enum { MAX_FDS = 32, MAX_GROUPS = 64 };

struct local_process {
	struct fcvm_process p;
	struct fcvm_proc proc;
	int tty; /* our own handle of the pty's master, for resize; -1 */
};

static struct local_process *local_of(struct fcvm_process *p)
{
	return (struct local_process *)p;
}

/* ---- what a handle does ---- */

static int collect(struct fcvm_process *p, struct fcvm_exit *ret, struct fcvm_err *err)
{
	int k = fcvm_proc_wait(&local_of(p)->proc, NULL, ret);

	return k < 0 ? fcvm_fail_errno(
			       err, k, "local: %s: wait for process %d", p->what, (int)p->pid)
		     : 0;
}

static int send_signal(struct fcvm_process *p, int signo, struct fcvm_err *err)
{
	int k = fcvm_proc_kill(&local_of(p)->proc, signo, true);

	return k < 0 ? fcvm_fail_errno(err, k, "local: %s: send signal %d", p->what, signo) : 0;
}

static int resize(struct fcvm_process *p, unsigned rows, unsigned columns, struct fcvm_err *err)
{
	struct winsize w = {.ws_row = rows, .ws_col = columns};

	if (local_of(p)->tty < 0)
		return fcvm_fail(err, -ENOTTY, "local: %s: resize: it has no terminal", p->what);
	if (ioctl(local_of(p)->tty, TIOCSWINSZ, &w) < 0)
		return fcvm_fail_errno(err, -errno, "local: %s: resize", p->what);
	return 0;
}

static void free_process(struct fcvm_process *p)
{
	struct local_process *l = local_of(p);
	struct fcvm_until now = fcvm_until_ms(0, -1);
	struct fcvm_exit exit;

	fcvm_close(l->tty);
	if (l->proc.pidfd < 0)
		return;
	/* The rest of its group goes too, as in a guest when the lease ends: while the leader is not reaped,
	 * the group's number is its own. */
	if (!p->ended && !p->detached)
		fcvm_proc_kill(&l->proc, SIGKILL, true);
	if (!p->ended && fcvm_proc_wait(&l->proc, &now, &exit) == -ETIMEDOUT) {
		fcvm_local_reap(p->node, &l->proc, !p->detached);
		return;
	}
	fcvm_proc_done(&l->proc);
}

static const struct process_ops ops = {collect, send_signal, resize, free_process};

/* ---- its descriptors ---- */

struct ends {
	int child[MAX_FDS];
	unsigned n;
	unsigned nowned; /* of them, the first ones are ours to close */
};

static int make_pair(struct fcvm_process *p, unsigned i, bool pipe, struct ends *e)
{
	int fds[2];
	int k = pipe ? fcvm_fd_pipe(fds) : fcvm_fd_pair(fds);

	if (k < 0)
		return k;
	p->fds[i] = fds[0];
	e->child[i] = fds[1];
	return fcvm_fd_nonblock(fds[0], true);
}

static int make_tty(struct local_process *l, const struct fcvm_spawn *spec, struct ends *e)
{
	struct winsize w = {.ws_row = spec->rows, .ws_col = spec->columns};
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	int unlock = 0;

	if (master < 0)
		return -errno;
	l->p.fds[0] = master;
	if (ioctl(master, TIOCSPTLCK, &unlock) < 0 || ioctl(master, TIOCSWINSZ, &w) < 0)
		return -errno;
	for (unsigned i = 0; i < 3; i++) {
		e->child[i] = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
		if (e->child[i] < 0)
			return -errno;
	}
	l->p.fds[1] = fcntl(master, F_DUPFD_CLOEXEC, 3);
	l->tty = fcntl(master, F_DUPFD_CLOEXEC, 3);
	return l->p.fds[1] < 0 || l->tty < 0 ? -errno : 0;
}

static int make_fds(struct local_process *l, const struct fcvm_spawn *spec, struct ends *e)
{
	int k = 0;

	e->n = e->nowned = 0;
	if (spec->channels > PROCESS_FDS - 3 || spec->ninherit > MAX_FDS - 3 - spec->channels)
		return -E2BIG;
	e->nowned = 3 + spec->channels;
	e->n = e->nowned + spec->ninherit;
	for (unsigned i = 0; i < e->n; i++)
		e->child[i] = -1;
	if (spec->tty) {
		k = make_tty(l, spec, e);
	} else {
		/* stdin is a socket, so that our writes to one who left raise no SIGPIPE. */
		if (!spec->null_stdin)
			k = make_pair(&l->p, 0, false, e);
		if (k == 0)
			k = make_pair(&l->p, 1, true, e);
		if (k == 0 && !spec->merge_stderr)
			k = make_pair(&l->p, 2, true, e);
		if (k == 0 && spec->merge_stderr) {
			e->child[2] = fcntl(e->child[1], F_DUPFD_CLOEXEC, 3);
			k = e->child[2] < 0 ? -errno : 0;
		}
	}
	for (unsigned i = 3; k == 0 && i < 3 + spec->channels; i++)
		k = make_pair(&l->p, i, false, e);
	for (unsigned i = 0; i < spec->ninherit; i++)
		e->child[e->nowned + i] = spec->inherit[i];
	return k;
}

/* ---- environment and user ---- */

static size_t count(const char *const *list)
{
	size_t n = 0;

	while (list && list[n])
		n++;
	return n;
}

static bool named_in(const char *entry, const char *const *list)
{
	const char *eq = strchr(entry, '=');
	size_t size = eq ? (size_t)(eq - entry) + 1 : strlen(entry);

	for (; list && *list; list++)
		if (strncmp(*list, entry, size) == 0)
			return true;
	return false;
}

/* Ours with spec's added or in their place; the strings are borrowed. */
static const char **make_env(const struct fcvm_spawn *spec)
{
	const char *const *own = spec->clear_env ? NULL : (const char *const *)environ;
	const char **env = calloc(count(own) + count(spec->env) + 1, sizeof *env);
	size_t n = 0;

	if (!env)
		return NULL;
	for (; own && *own; own++)
		if (!named_in(*own, spec->env))
			env[n++] = *own;
	for (size_t i = 0; spec->env && spec->env[i]; i++)
		env[n++] = spec->env[i];
	return env;
}

struct ids {
	uid_t uid;
	gid_t gid;
	gid_t groups[MAX_GROUPS];
	int ngroups;
};

/* Digits to the string's end, or to `stop`. (uid_t)-1 means "unchanged" to the kernel, so it is none. */
static bool parse_id(const char *text, char stop, uint32_t *ret, const char **ret_end)
{
	uint64_t n = 0;
	const char *at = text;

	for (; *at >= '0' && *at <= '9' && n < UINT32_MAX; at++)
		n = n * 10 + (uint64_t)(*at - '0');
	*ret = n;
	*ret_end = at;
	return at > text && n < UINT32_MAX && (*at == 0 || *at == stop);
}

static int find_user(const char *user, struct ids *ret, struct fcvm_err *err)
{
	char buf[4096];
	const char *end;
	struct passwd pw, *found = NULL;
	uint32_t uid = 0, gid = 0;
	bool number = parse_id(user, ':', &uid, &end);
	bool has_gid = number && *end == ':';

	if ((has_gid && !parse_id(end + 1, 0, &gid, &end)) || (!number && strchr(user, ':')))
		return fcvm_fail(
			err, -EINVAL, "local: user %s: want a name, UID or UID:GID", user);
	if (number)
		getpwuid_r(uid, &pw, buf, sizeof buf, &found);
	else
		getpwnam_r(user, &pw, buf, sizeof buf, &found);
	if (!found && !number)
		return fcvm_fail(err, -ENOENT, "local: there is no user %s", user);
	*ret = (struct ids){.uid = found ? found->pw_uid : (uid_t)uid,
		.gid = has_gid ? gid : found ? found->pw_gid : (gid_t)uid};
	ret->ngroups = MAX_GROUPS;
	if (!found) {
		ret->ngroups = 1;
		ret->groups[0] = ret->gid;
	} else if (getgrouplist(found->pw_name, ret->gid, ret->groups, &ret->ngroups) < 0) {
		ret->ngroups = MAX_GROUPS;
	}
	return 0;
}

/* ---- */

static int start(struct local_process *l, const struct fcvm_spawn *spec, const struct ends *e,
	struct fcvm_err *err)
{
	_cleanup_free_ const char **env = make_env(spec);
	struct ids ids;
	struct fcvm_proc_spec ps = {
		.argv = spec->argv,
		.env = env,
		.cwd = spec->cwd,
		.fds = e->child,
		.nfds = e->n,
		.die_with_parent = !spec->detach,
		.new_session = spec->tty || spec->detach,
		.ctty = spec->tty,
		.new_group = true,
	};
	int k;

	if (!env)
		return fcvm_fail_errno(err, -ENOMEM, "local: %s", l->p.what);
	if (spec->user && spec->user[0]) {
		k = find_user(spec->user, &ids, err);
		if (k < 0)
			return k;
		ps.set_ids = ids.uid != geteuid() || geteuid() == 0;
		ps.uid = ids.uid;
		ps.gid = ids.gid;
		ps.groups = ids.groups;
		ps.ngroups = ids.ngroups;
	}
	k = fcvm_local_fork(l->p.node, &ps, &l->proc, err);
	if (k < 0) {
		fcvm_fail_prefix(err, "local"); /* it names the program already */
		return k;
	}
	l->p.pid = l->proc.pid;
	l->p.exit_fd = l->proc.pidfd;
	return 0;
}

int fcvm_local_spawn(struct fcvm_node *n, const struct fcvm_spawn *spec,
	const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_process_free) struct fcvm_process *p = NULL;
	struct local_process *l;
	struct ends e;
	int k;

	if (!spec->argv || !spec->argv[0])
		return fcvm_fail(err, -EINVAL, "local: exec: no program is named");
	l = calloc(1, sizeof *l);
	if (!l || fcvm_process_init(&l->p, &ops, n, "exec", spec->argv[0]) < 0) {
		free(l);
		return fcvm_fail_errno(err, -ENOMEM, "local: exec %s", spec->argv[0]);
	}
	p = &l->p;
	p->detached = spec->detach;
	p->leaky = !spec->tty;
	p->eot = spec->tty;
	l->tty = -1;
	l->proc = (struct fcvm_proc)FCVM_PROC_INIT;
	k = make_fds(l, spec, &e);
	if (k < 0)
		fcvm_fail_errno(err, k, "local: %s: make its descriptors", p->what);
	else
		k = start(l, spec, &e, err);
	for (unsigned i = 0; i < e.nowned; i++)
		fcvm_close(e.child[i]);
	if (k < 0)
		return k;
	*ret = fcvm_steal_ptr(p);
	return 0;
}

/* Of a process that is ours already. On failure it is the caller's still. */
static int take_over(struct local_process *l, pid_t pid)
{
	l->proc.pid = pid;
	/* A child that nobody has waited for: the pid cannot be another's. */
	l->proc.pidfd = syscall(SYS_pidfd_open, pid, 0);
	if (l->proc.pidfd < 0)
		return -errno;
	l->p.pid = pid;
	l->p.exit_fd = l->proc.pidfd;
	return 0;
}

static bool is_child(pid_t pid)
{
	siginfo_t info;

	return pid > 1 && waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

int fcvm_node_adopt(struct fcvm_node *local, pid_t pid, const int *fds, unsigned nfds, const char *verb,
	const char *object, struct fcvm_process **ret, struct fcvm_err *err)
{
	struct local_process *l = calloc(1, sizeof *l);
	int k = l ? 0 : -ENOMEM;

	if (l) {
		l->tty = -1;
		l->proc = (struct fcvm_proc)FCVM_PROC_INIT;
		k = fcvm_process_init(&l->p, &ops, local, verb, object);
	}
	if (!is_child(pid))
		k = -ECHILD;
	else if (k == 0)
		k = take_over(l, pid);
	if (k < 0) {
		/* Never on somebody's word alone: who is no child of ours is none of our business. */
		if (k != -ECHILD) {
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
		}
		for (unsigned i = 0; i < nfds; i++)
			fcvm_close(fds[i]);
		if (l && l->p.node)
			fcvm_process_free(&l->p);
		else
			free(l);
		return fcvm_fail_errno(err, k, "local: %s %s: take process %d over", verb, object, (int)pid);
	}
	memcpy(l->p.fds, fds, nfds * sizeof *fds);
	*ret = &l->p;
	return 0;
}
