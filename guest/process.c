/* SPDX-License-Identifier: MIT */
/* Programs and tree workers: started, signalled, reaped. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"

extern char **environ;

static const char self[] = "/proc/self/exe";

enum { MAX_FDS = 3 + MAX_CHANNELS };

/* The child's ends, closed once it has them. */
struct ends {
	int fd[MAX_FDS];
	unsigned n;
};

static void ends_done(struct ends *e)
{
	for (unsigned i = 0; i < e->n; i++)
		fcvm_close(e->fd[i]);
}

/* ---- descriptors ---- */

static int make_pipe(struct channel *c, struct ends *e, unsigned fd, bool source)
{
	int p[2], r = fcvm_fd_pipe(p);

	if (r < 0)
		return r;
	e->fd[fd] = p[source];
	c->watch.fd = p[!source];
	c->type = CHANNEL_PIPE;
	/* A pipe's flags besides O_NONBLOCK are nobody's, so they need not be asked for. */
	fcntl(c->watch.fd, F_SETFL, O_NONBLOCK);
	if (!source) {
		channel_sink(c, fd);
		return 0;
	}
	channel_source(c, fd);
	return channel_watch(c);
}

static int make_socket(struct channel *c, struct ends *e, unsigned fd)
{
	int p[2], r = fcvm_fd_pair(p);

	if (r < 0)
		return r;
	e->fd[fd] = p[1];
	c->watch.fd = p[0];
	c->type = CHANNEL_SOCKET;
	fcntl(c->watch.fd, F_SETFL, O_NONBLOCK);
	channel_source(c, fd);
	channel_sink(c, fd);
	return channel_watch(c);
}

static int make_tty(struct channel *c, struct ends *e, unsigned rows, unsigned columns,
	const struct user *u)
{
	struct winsize size = {.ws_row = rows, .ws_col = columns};
	int unlock = 0, slave;

	c->watch.fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (c->watch.fd < 0 || ioctl(c->watch.fd, TIOCSPTLCK, &unlock) < 0)
		return -errno;
	slave = ioctl(c->watch.fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0)
		return -errno;
	ioctl(slave, TIOCSWINSZ, &size);
	if (u->set && fchown(slave, u->uid, -1) < 0) {
		/* Another owner still can use what it has open. */
	}
	e->fd[0] = slave;
	for (unsigned i = 1; i < 3; i++) {
		e->fd[i] = fcntl(slave, F_DUPFD_CLOEXEC, 3);
		if (e->fd[i] < 0)
			return -errno;
	}
	c->type = CHANNEL_TTY;
	channel_sink(c, 0);
	channel_source(c, 1);
	return channel_watch(c);
}

/* ---- starting ---- */

static const char *env_value(char **env, const char *name)
{
	size_t size = strlen(name);

	for (; *env; env++)
		if (strncmp(*env, name, size) == 0 && (*env)[size] == '=')
			return *env + size + 1;
	return NULL;
}

/* Sets a variable given as NAME=value in the first `n` of env, replacing its namesake; returns the new n. */
static unsigned env_set(const char **env, unsigned n, const char *variable)
{
	size_t size = strcspn(variable, "=") + 1;

	for (unsigned i = 0; i < n; i++) {
		if (strncmp(env[i], variable, size) == 0) {
			env[i] = variable;
			return n;
		}
	}
	env[n] = variable;
	return n + 1;
}

enum { ENV_EXTRA = 8 }; /* what default_env() may add to environ, and the NULL */

struct default_env { /* where the made up ones are kept */
	char home[300], user[80], logname[80];
};

static unsigned default_env(const struct agent *a, struct default_env *d, const char **env,
	const struct user *u, bool tty)
{
	unsigned n = 0;

	/* What the kernel hands to PID 1 is not meant for programs. */
	for (char **e = environ; !a->init && *e; e++)
		env[n++] = *e;
	if (a->init || !env_value(environ, "PATH"))
		n = env_set(env, n,
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	if (u->set) {
		snprintf(d->home, sizeof d->home, "HOME=%s", u->home);
		n = env_set(env, n, d->home);
	} else if (a->init || !env_value(environ, "HOME")) {
		n = env_set(env, n, "HOME=/root");
	}
	if (*u->name) {
		snprintf(d->user, sizeof d->user, "USER=%s", u->name);
		snprintf(d->logname, sizeof d->logname, "LOGNAME=%s", u->name);
		n = env_set(env, n, d->user);
		n = env_set(env, n, d->logname);
	}
	if (tty)
		n = env_set(env, n, "TERM=linux");
	return n;
}

/* Starts it; on success it is in the process table and its stream's own. */
static int start(struct stream *s, struct fcvm_proc_spec *spec, struct ends *e, bool detach,
	struct fcvm_err *err)
{
	struct agent *a = s->agent;
	int r;

	spec->fds = e->fd;
	spec->nfds = e->n;
	spec->die_with_parent = !a->init && !detach;
	r = fcvm_proc_spawn(spec, &s->proc, err);
	if (r < 0) {
		s->proc = (struct fcvm_proc)FCVM_PROC_INIT;
		return r;
	}
	s->lease = detach ? NULL : s->link;
	LIST_INSERT_HEAD(&a->by_pid[s->proc.pid % BUCKETS], s, by_pid);
	return 0;
}

struct request { /* of SPAWN, borrowed from the frame */
	struct fcvm_wire_spawn head;
	const char *cwd, *user;
	const char **argv; /* [nargv + 1] and behind it [nenv] */
	const char **env;
};

static int read_request(struct request *q, struct fcvm_wire_reader *r, struct fcvm_err *err)
{
	size_t left;

	fcvm_wire_get_bytes(r, &q->head, sizeof q->head);
	q->cwd = fcvm_wire_get_string(r);
	q->user = fcvm_wire_get_string(r);
	left = r->end - r->at;
	/* A string takes five bytes at least. */
	if (q->head.nargv == 0 || q->head.nargv > left / 5 || q->head.nenv > left / 5)
		return fcvm_fail(err, -EINVAL, "spawn: malformed request");
	if (q->head.channels > MAX_CHANNELS)
		return fcvm_fail(err, -EINVAL, "spawn: %u channels, at most %u",
			(unsigned)q->head.channels, (unsigned)MAX_CHANNELS);
	q->argv = malloc((q->head.nargv + 1 + q->head.nenv) * sizeof *q->argv);
	if (!q->argv)
		return fcvm_fail(err, -ENOMEM, "spawn: out of memory");
	q->env = q->argv + q->head.nargv + 1;
	for (uint32_t i = 0; i < q->head.nargv; i++)
		q->argv[i] = fcvm_wire_get_string(r);
	q->argv[q->head.nargv] = NULL;
	for (uint32_t i = 0; i < q->head.nenv; i++)
		q->env[i] = fcvm_wire_get_string(r);
	if (!fcvm_wire_reader_ok(r))
		return fcvm_fail(err, -EINVAL, "spawn: malformed request");
	return 0;
}

static int make_channels(struct stream *s, const struct request *q, const struct user *u,
	struct ends *e, struct fcvm_err *err)
{
	struct channel *c = s->channels;
	bool tty = q->head.flags & FCVM_WIRE_TTY;
	int r = 0;

	if (tty) {
		r = make_tty(c++, e, q->head.rows, q->head.columns, u);
		if (r < 0)
			return fcvm_fail_errno(err, r, "spawn %s: make a terminal", q->argv[0]);
	} else {
		if (!(q->head.flags & FCVM_WIRE_NULL_STDIN))
			r = make_pipe(c++, e, 0, false);
		if (r == 0)
			r = make_pipe(c++, e, 1, true);
		if (r == 0 && q->head.flags & FCVM_WIRE_MERGE)
			r = (e->fd[2] = fcntl(e->fd[1], F_DUPFD_CLOEXEC, 3)) < 0 ? -errno : 0;
		else if (r == 0)
			r = make_pipe(c++, e, 2, true);
	}
	for (unsigned i = 0; i < q->head.channels && r >= 0; i++)
		r = make_socket(c++, e, 3 + i);
	return r < 0 ? fcvm_fail_errno(err, r, "spawn %s: make its pipes", q->argv[0]) : 0;
}

static int spawn(struct stream *s, const struct request *q, struct fcvm_err *err)
{
	_cleanup_(ends_done) struct ends e = {.n = 3 + q->head.channels};
	_cleanup_free_ const char **env = NULL;
	struct default_env made;
	struct user u;
	unsigned n = 0;
	int r;

	memset(e.fd, -1, sizeof e.fd);
	r = user_find(q->user, &u, err);
	if (r == 0)
		r = make_channels(s, q, &u, &e, err);
	if (r < 0)
		return r;
	while (environ[n])
		n++;
	env = malloc((n + q->head.nenv + ENV_EXTRA) * sizeof *env);
	if (!env)
		return fcvm_fail(err, -ENOMEM, "spawn %s: out of memory", q->argv[0]);
	n = 0;
	if (!(q->head.flags & FCVM_WIRE_CLEAR_ENV))
		n = default_env(s->agent, &made, env, &u, q->head.flags & FCVM_WIRE_TTY);
	for (uint32_t i = 0; i < q->head.nenv; i++)
		n = env_set(env, n, q->env[i]);
	env[n] = NULL;
	return start(s,
		&(struct fcvm_proc_spec){
			.argv = q->argv,
			.env = env,
			.cwd = *q->cwd ? q->cwd : "/",
			.new_session = q->head.flags & FCVM_WIRE_TTY,
			.ctty = q->head.flags & FCVM_WIRE_TTY,
			.new_group = true,
			.set_ids = u.set,
			.uid = u.uid,
			.gid = u.gid,
			.groups = u.groups,
			.ngroups = u.ngroups,
		},
		&e, q->head.flags & FCVM_WIRE_DETACH, err);
}

static unsigned channels_of(const struct fcvm_wire_spawn *head)
{
	if (head->flags & FCVM_WIRE_TTY)
		return 1 + head->channels;
	return 3 - !!(head->flags & FCVM_WIRE_NULL_STDIN) - !!(head->flags & FCVM_WIRE_MERGE) +
	       head->channels;
}

void process_open_spawn(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	struct request q = {.argv = NULL};
	struct stream *s = NULL;
	int code = read_request(&q, r, &err);

	if (code == 0) {
		s = stream_new(l, id, STREAM_PROCESS, channels_of(&q.head));
		code = s ? spawn(s, &q, &err) : fcvm_fail(&err, -ENOMEM, "spawn: out of memory");
	}
	if (code < 0) {
		link_refuse(l, id, code, "%s", err.message);
		if (s)
			stream_bury(s);
	} else {
		uint32_t pid = s->proc.pid;

		link_result(l, id, &pid, sizeof pid);
	}
	free(q.argv);
}

/* ---- workers: this program again ---- */

/* data: the channel of the tree, 0 or 1, or -1 for none. */
static void open_worker(struct link *l, uint32_t id, enum stream_kind kind, const char *const *argv,
	int data)
{
	_cleanup_(ends_done) struct ends e = {.n = 3};
	struct stream *s = stream_new(l, id, kind, data < 0 ? 0 : 2);
	struct fcvm_err err = FCVM_ERR_INIT;
	int r = s ? 0 : fcvm_fail(&err, -ENOMEM, "out of memory");

	memset(e.fd, -1, sizeof e.fd);
	if (r == 0 && data >= 0) {
		r = make_pipe(&s->channels[0], &e, data, data == 1);
		if (r == 0)
			r = make_pipe(&s->channels[1], &e, 2, true);
		if (r < 0)
			fcvm_fail_errno(&err, r, "make pipes");
	}
	if (r == 0)
		r = start(s, &(struct fcvm_proc_spec){.argv = argv, .new_group = true}, &e, false,
			&err);
	if (r < 0) {
		link_refuse(l, id, r, "%s: %s", argv[1] + 2, err.message);
		if (s)
			stream_bury(s);
	} else if (data >= 0) {
		link_result(l, id, NULL, 0);
	}
}

void process_open_get(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	const char *path = fcvm_wire_get_string(r);

	if (fcvm_wire_reader_ok(r) && *path)
		open_worker(l, id, STREAM_TRANSFER, (const char *[]){self, "--pack", path, NULL}, 1);
	else
		link_refuse(l, id, -EINVAL, "get: malformed request");
}

void process_open_put(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	uint32_t flags = fcvm_wire_get_u32(r);
	const char *path = fcvm_wire_get_string(r);
	const char *base = fcvm_wire_get_string(r);

	if (fcvm_wire_reader_ok(r) && *path)
		open_worker(l, id, STREAM_TRANSFER,
			(const char *[]){self, "--unpack", flags & 1 ? "1" : "0", path, base, NULL},
			0);
	else
		link_refuse(l, id, -EINVAL, "put: malformed request");
}

void process_open_remove(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	const char *path = fcvm_wire_get_string(r);
	struct stream *s;

	if (!fcvm_wire_reader_ok(r) || !*path) {
		link_refuse(l, id, -EINVAL, "remove: malformed request");
		return;
	}
	/* What takes one call is done here; a tree can take long, so a process of its own does it. */
	if (unlink(path) == 0 || errno == ENOENT || rmdir(path) == 0) {
		files_forget(l, path);
		link_result(l, id, NULL, 0);
		return;
	}
	open_worker(l, id, STREAM_REMOVE, (const char *[]){self, "--remove", path, NULL}, -1);
	s = stream_find(l, id);
	if (s)
		s->path = strdup(path);
}

int process_remove(struct agent *a, const char *const *paths, unsigned n)
{
	const char *argv[REMOVE_MAX + 3] = {self, "--remove"};
	struct fcvm_proc_spec spec = {
		.argv = argv, .fds = (const int[]){-1, -1, -1}, .nfds = 3, .new_group = true};
	struct fcvm_proc proc;
	int r;

	memcpy(argv + 2, paths, n * sizeof *paths);
	r = fcvm_proc_spawn(&spec, &proc, NULL);
	/* It is reaped as any orphan is. */
	if (r == 0)
		fcvm_proc_done(&proc);
	return r;
}

/* ---- signals and the end ---- */

void process_signal(struct stream *s, uint32_t signo)
{
	if (s->proc.pid && !s->exited && signo > 0 && signo < NSIG)
		fcvm_proc_kill(&s->proc, signo, true);
}

void process_resize(struct stream *s, uint32_t size)
{
	struct winsize w = {.ws_row = size >> 16, .ws_col = size & 0xffff};

	if (s->nchannels > 0 && s->channels[0].type == CHANNEL_TTY && s->channels[0].watch.fd >= 0)
		ioctl(s->channels[0].watch.fd, TIOCSWINSZ, &w);
}

/* Ends a process that runs. A tree worker ends by itself, tidily, once its pipes are closed. */
void process_doom(struct stream *s)
{
	s->doomed = true;
	s->lease = NULL;
	if (s->kind != STREAM_PROCESS)
		return;
	if (s->exited)
		kill(-s->proc.pid, SIGKILL); /* the number is safe while others of the group are left */
	else
		fcvm_proc_kill(&s->proc, SIGKILL, true);
}

static struct stream *find_running(struct agent *a, pid_t pid)
{
	struct stream *s;

	LIST_FOREACH(s, &a->by_pid[pid % BUCKETS], by_pid)
		if (s->proc.pid == pid && !s->exited)
			return s;
	return NULL;
}

static void ended(struct stream *s, const siginfo_t *si)
{
	s->exited = true;
	s->status = si->si_code == CLD_EXITED ? (uint32_t)si->si_status & 0xff : 0x100u + si->si_status;
	if (s->lease && kill(-s->proc.pid, 0) == 0) {
		s->group_left = true;
		s->agent->nleft++;
	}
	if (!s->link) {
		for (unsigned i = 0; i < s->nchannels; i++)
			channel_close(&s->channels[i]);
		if (!s->group_left)
			stream_bury(s);
		return;
	}
	for (unsigned i = 0; i < s->nchannels; i++)
		channel_process_ended(&s->channels[i]);
	stream_queue(s);
}

/* Groups whose last member is gone: their number is free for others now, and must not be signalled. */
static void forget_empty_groups(struct agent *a)
{
	for (unsigned i = 0; i < BUCKETS && a->nleft > 0; i++) {
		struct stream *s, *next;

		for (s = LIST_FIRST(&a->by_pid[i]); s; s = next) {
			next = LIST_NEXT(s, by_pid);
			if (!s->group_left || kill(-s->proc.pid, 0) == 0)
				continue;
			s->group_left = false;
			a->nleft--;
			if (!s->link)
				stream_bury(s);
		}
	}
}

void process_reap(struct agent *a)
{
	siginfo_t si;

	for (;;) {
		struct stream *s;

		si.si_pid = 0;
		if (waitid(P_ALL, 0, &si, WEXITED | WNOHANG) < 0 || si.si_pid == 0)
			break;
		s = find_running(a, si.si_pid); /* NULL: an orphan that came to PID 1 */
		if (s)
			ended(s, &si);
	}
	if (a->nleft > 0)
		forget_empty_groups(a);
}

void process_end_lease(struct link *l, bool kill_all)
{
	struct agent *a = l->agent;

	forget_empty_groups(a);
	for (unsigned i = 0; i < BUCKETS; i++) {
		struct stream *s, *next;

		for (s = LIST_FIRST(&a->by_pid[i]); s; s = next) {
			next = LIST_NEXT(s, by_pid);
			if (s->lease != l)
				continue;
			if (kill_all)
				process_doom(s);
			s->lease = NULL;
			if (s->exited)
				stream_bury(s);
		}
	}
}
