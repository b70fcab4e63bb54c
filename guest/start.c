/* SPDX-License-Identifier: MIT */
/*
 * Programs and tree workers: how they are started. The loop makes the pipes, a hand all that looks at files, and the loop
 * takes the process into its table; meanwhile it may have ended (process_ended_early).
 */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/tree.h"

extern char **environ;

static const char self[] = "/proc/self/exe";

enum {
	MAX_FDS = 3 + MAX_CHANNELS,
	ERRAND_TEXT = 32 * 1024, /* of its arguments */
};

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

static int make_tty(struct channel *c, struct ends *e, unsigned rows, unsigned columns)
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

static unsigned default_env(bool init, struct default_env *d, const char **env,
	const struct user *u, bool tty)
{
	unsigned n = 0;

	/* What the kernel hands to PID 1 is not meant for programs. */
	for (char **e = environ; !init && *e; e++)
		env[n++] = *e;
	if (init || !env_value(environ, "PATH"))
		n = env_set(env, n,
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	if (u->set) {
		snprintf(d->home, sizeof d->home, "HOME=%s", u->home);
		n = env_set(env, n, d->home);
	} else if (init || !env_value(environ, "HOME")) {
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

static void nothing(struct job *j)
{
	(void)j;
}

struct start {
	struct job job;
	struct ends ends;
	struct fcvm_proc proc;    /* its pid is there as soon as it is */
	bool detach, nested;      /* nested: we are not PID 1, and it must not outlive us */
	bool ended;               /* and reaped */
	siginfo_t end;
	struct fcvm_proc_spec spec;
	const char *argv[REMOVE_MAX + 3]; /* of a worker */
};

/* Its stream has so many channels; NULL: refused. */
static struct start *start_new(struct link *l, uint32_t id, enum stream_kind kind, unsigned nchannels, size_t size,
	const struct fcvm_wire_reader *r)
{
	struct start *t = job_new_stream(l, id, kind, nchannels, size, r);

	if (!t)
		return NULL;
	memset(t->ends.fd, -1, sizeof t->ends.fd);
	t->ends.n = 3;
	t->proc = (struct fcvm_proc)FCVM_PROC_INIT;
	t->nested = !l->agent->init;
	return t;
}

static void start_work(struct job *j)
{
	struct start *t = (struct start *)j;

	t->spec.fds = t->ends.fd;
	t->spec.nfds = t->ends.n;
	t->spec.new_group = true;
	t->spec.die_with_parent = t->nested && !t->detach;
	t->spec.nofile = &j->agent->nofile;
	j->code = fcvm_proc_spawn(&t->spec, &t->proc, &j->err);
}

/* It runs, and whoever wanted it is gone. */
static void abandon(struct start *t)
{
	if (!t->ended)
		fcvm_proc_kill(&t->proc, SIGKILL, true);
	fcvm_proc_done(&t->proc);
}

/* Of one that runs: it is in the process table and its stream's own. False: there is none, and a refusal is sent. */
static bool take_process(struct start *t)
{
	struct stream *s = t->job.stream;

	ends_done(&t->ends);
	if (t->job.code == 0 && !s)
		abandon(t);
	if (t->job.code < 0 || !s) {
		job_answer(&t->job);
		return false;
	}
	s->proc = t->proc;
	s->lease = t->detach ? NULL : s->link;
	LIST_INSERT_HEAD(&s->agent->by_pid[s->proc.pid % BUCKETS], s, by_pid);
	return true;
}

/* What has happened on its channels, and to it, before it was taken. */
static void catch_up(struct start *t)
{
	if (t->ended)
		process_ended(t->job.stream, &t->end);
	else
		stream_queue(t->job.stream);
}

void process_ended_early(struct agent *a, const siginfo_t *si)
{
	struct job *j;

	LIST_FOREACH(j, &a->jobs, entry) {
		struct start *t = (struct start *)j;

		if (!j->starts || t->proc.pid != si->si_pid || t->ended)
			continue;
		t->ended = true;
		t->end = *si;
		return;
	}
}

static void run_start(struct start *t, void (*work)(struct job *), void (*done)(struct job *))
{
	t->job.starts = true;
	t->job.work = work;
	t->job.done = done;
	job_run(&t->job, false);
}

/* Before it is to be run: refused. */
static void give_up(struct start *t, int code)
{
	ends_done(&t->ends);
	t->job.code = code;
	t->job.work = nothing;
	t->job.done = job_answer;
	job_run(&t->job, true);
}

/* ---- SPAWN ---- */

struct request { /* borrowed from the job's copy */
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

static int make_channels(struct stream *s, const struct request *q, struct ends *e, struct fcvm_err *err)
{
	struct channel *c = s->channels;
	bool tty = q->head.flags & FCVM_WIRE_TTY;
	int r = 0;

	if (tty) {
		r = make_tty(c++, e, q->head.rows, q->head.columns);
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

struct spawn {
	struct start start;
	struct request request;
	struct user user;
	struct default_env made;
	bool init;
};

static void spawn_work(struct job *j)
{
	struct spawn *p = (struct spawn *)j;
	const struct request *q = &p->request;
	struct user *u = &p->user;
	_cleanup_free_ const char **env = NULL;
	bool tty = q->head.flags & FCVM_WIRE_TTY;
	unsigned n = 0;

	j->code = user_find(q->user, u, &j->err);
	if (j->code < 0)
		return;
	if (tty && u->set && fchown(p->start.ends.fd[0], u->uid, -1) < 0) {
		/* Another owner still can use what it has open. */
	}
	while (environ[n])
		n++;
	env = malloc((n + q->head.nenv + ENV_EXTRA) * sizeof *env);
	if (!env) {
		j->code = fcvm_fail(&j->err, -ENOMEM, "spawn %s: out of memory", q->argv[0]);
		return;
	}
	n = q->head.flags & FCVM_WIRE_CLEAR_ENV ? 0 : default_env(p->init, &p->made, env, u, tty);
	for (uint32_t i = 0; i < q->head.nenv; i++)
		n = env_set(env, n, q->env[i]);
	env[n] = NULL;
	p->start.spec = (struct fcvm_proc_spec){
		.argv = q->argv,
		.env = env,
		.cwd = *q->cwd ? q->cwd : "/",
		.new_session = tty,
		.ctty = tty,
		.set_ids = u->set,
		.uid = u->uid,
		.gid = u->gid,
		.groups = u->groups,
		.ngroups = u->ngroups,
	};
	start_work(j);
}

static void spawn_done(struct job *j)
{
	struct spawn *p = (struct spawn *)j;
	uint32_t pid;

	free(p->request.argv);
	if (!take_process(&p->start))
		return;
	pid = p->start.proc.pid;
	link_result(j->stream->link, j->stream->id, &pid, sizeof pid);
	catch_up(&p->start);
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
	struct fcvm_wire_reader peek = *r;
	struct fcvm_wire_spawn head;
	struct spawn *p;
	int code;

	fcvm_wire_get_bytes(&peek, &head, sizeof head);
	if (head.channels > MAX_CHANNELS) {
		link_refuse(l, id, -EINVAL, "spawn: %u channels, at most %u", (unsigned)head.channels, (unsigned)MAX_CHANNELS);
		return;
	}
	p = (struct spawn *)start_new(l, id, STREAM_PROCESS, channels_of(&head), sizeof *p, r);
	if (!p)
		return;
	p->init = l->agent->init;
	p->start.detach = head.flags & FCVM_WIRE_DETACH;
	p->start.ends.n = 3 + head.channels;
	code = read_request(&p->request, &p->start.job.request, &p->start.job.err);
	if (code == 0)
		code = make_channels(p->start.job.stream, &p->request, &p->start.ends, &p->start.job.err);
	if (code == 0)
		return run_start(&p->start, spawn_work, spawn_done);
	free(p->request.argv);
	give_up(&p->start, code);
}

/* ---- workers: this program again ---- */

static void transfer_done(struct job *j)
{
	struct start *t = (struct start *)j;

	if (!take_process(t))
		return;
	link_result(j->stream->link, j->stream->id, NULL, 0);
	catch_up(t);
}

/* data: the channel of the tree, 0 or 1. */
static void run_transfer(struct start *t, int data)
{
	struct stream *s = t->job.stream;
	int r = make_pipe(&s->channels[0], &t->ends, data, data == 1);

	if (r == 0)
		r = make_pipe(&s->channels[1], &t->ends, 2, true);
	t->spec.argv = t->argv;
	if (r == 0)
		return run_start(t, start_work, transfer_done);
	fcvm_fail_errno(&t->job.err, r, "%s: make pipes", t->argv[1] + 2);
	give_up(t, r);
}

static void malformed(struct start *t, const char *what)
{
	give_up(t, fcvm_fail(&t->job.err, -EINVAL, "%s: malformed request", what));
}

void process_open_get(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	struct start *t = start_new(l, id, STREAM_TRANSFER, 2, sizeof *t, r);
	const char *path;

	if (!t)
		return;
	path = fcvm_wire_get_string(&t->job.request);
	if (!fcvm_wire_reader_ok(&t->job.request) || !*path)
		return malformed(t, "get");
	memcpy(t->argv, ((const char *[]){self, "--pack", path}), 3 * sizeof *t->argv);
	run_transfer(t, 1);
}

void process_open_put(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	struct start *t = start_new(l, id, STREAM_TRANSFER, 2, sizeof *t, r);
	const char *path, *base;
	uint32_t flags;

	if (!t)
		return;
	flags = fcvm_wire_get_u32(&t->job.request);
	path = fcvm_wire_get_string(&t->job.request);
	base = fcvm_wire_get_string(&t->job.request);
	if (!fcvm_wire_reader_ok(&t->job.request) || !*path)
		return malformed(t, "put");
	memcpy(t->argv, ((const char *[]){self, "--unpack", flags & 1 ? "1" : "0", path, base}), 5 * sizeof *t->argv);
	run_transfer(t, 0);
}

/* ---- errands ---- */

static void errand_done(struct job *j)
{
	struct start *t = (struct start *)j;

	if (t->job.code < 0 && j->stream)
		fcvm_fail_prefix(&j->err, "%s %s", j->stream->verb, j->stream->path);
	if (!take_process(t))
		return;
	if (!j->stream->link)
		process_doom(j->stream);
	catch_up(t);
}

/* Its stderr is read when it is over: what it says fits a pipe. 0 or -errno. */
static int prepare_errand(struct start *t, const char *verb, const char *object, const char *const *args)
{
	struct stream *s = t->job.stream;
	int p[2], r;

	s->verb = verb;
	s->path = strdup(object);
	t->argv[0] = self;
	for (unsigned i = 0; i < ERRAND_ARGS && args[i]; i++)
		t->argv[i + 1] = args[i];
	t->spec.argv = t->argv;
	r = s->path ? fcvm_fd_pipe(p) : -ENOMEM;
	if (r < 0)
		return fcvm_fail_errno(&t->job.err, r, "%s %s: make a pipe", verb, object);
	s->text = p[0];
	t->ends.fd[2] = p[1];
	fcntl(s->text, F_SETFL, O_NONBLOCK);
	return 0;
}

void process_open_errand(struct link *l, uint32_t id, const char *verb, const char *object, const char *const *args)
{
	uint8_t text[ERRAND_TEXT];
	struct fcvm_wire_writer w = {.at = text, .end = text + sizeof text};
	const char *copies[ERRAND_ARGS + 1] = {NULL};
	struct fcvm_wire_reader r;
	struct start *t;
	int code;

	for (unsigned i = 0; i < ERRAND_ARGS && args[i]; i++)
		fcvm_wire_put_string(&w, args[i]);
	if (w.bad) {
		link_refuse(l, id, -ENAMETOOLONG, "%s: %s", verb, strerror(ENAMETOOLONG));
		return;
	}
	r = fcvm_wire_reader(text, (size_t)(w.at - text));
	t = start_new(l, id, STREAM_ERRAND, 0, sizeof *t, &r);
	if (!t)
		return;
	for (unsigned i = 0; i < ERRAND_ARGS && args[i]; i++)
		copies[i] = fcvm_wire_get_string(&t->job.request);
	code = prepare_errand(t, verb, object, copies);
	if (code < 0)
		give_up(t, code);
	else
		run_start(t, start_work, errand_done);
}

/* ---- REMOVE ---- */

struct remove_job {
	struct job job;
	const char *path;
	bool removed;
};

/* What takes one call; a tree can take long, so a process of its own does it. */
static void remove_work(struct job *j)
{
	struct remove_job *m = (struct remove_job *)j;

	m->removed = unlink(m->path) == 0 || errno == ENOENT || rmdir(m->path) == 0;
}

static void remove_done(struct job *j)
{
	struct remove_job *m = (struct remove_job *)j;
	struct stream *s = j->stream;
	struct link *l = s ? s->link : NULL;
	uint32_t id = s ? s->id : 0;

	if (l && m->removed)
		files_forget(l, m->path);
	if (!l || m->removed || j->code < 0)
		return job_answer(j);
	stream_bury(s);
	process_open_errand(l, id, "remove", m->path, (const char *[]){"--remove", m->path, NULL});
}

void process_open_remove(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	struct remove_job *m = job_new_stream(l, id, STREAM_JOB, 0, sizeof *m, r);

	if (!m)
		return;
	m->path = fcvm_wire_get_string(&m->job.request);
	m->job.done = remove_done;
	if (fcvm_wire_reader_ok(&m->job.request) && *m->path) {
		m->job.work = remove_work;
		return job_run(&m->job, false);
	}
	m->job.code = fcvm_fail(&m->job.err, -EINVAL, "remove: malformed request");
	m->job.work = nothing;
	job_run(&m->job, true);
}

static void remove_trees_work(struct job *j)
{
	struct start *t = (struct start *)j;

	start_work(j);
	for (unsigned i = 2; j->code < 0 && t->argv[i]; i++)
		fcvm_tree_remove(AT_FDCWD, t->argv[i]);
}

/* It is reaped as any orphan is. */
static void alone_done(struct job *j)
{
	struct start *t = (struct start *)j;

	for (unsigned i = 2; t->argv[i]; i++)
		free((char *)t->argv[i]);
	if (j->code == 0)
		fcvm_proc_done(&t->proc);
}

/* This program, in a process of its own that nobody waits for. args: copied. */
static void run_alone(struct agent *a, const char *option, const char *const *args, unsigned n, void (*work)(struct job *))
{
	struct start *t = job_new(a, NULL, sizeof *t, NULL);

	if (!t)
		return;
	memset(t->ends.fd, -1, sizeof t->ends.fd);
	t->ends.n = 3;
	t->detach = true;
	t->argv[0] = self;
	t->argv[1] = option;
	for (unsigned i = 0, k = 2; i < n; i++) {
		t->argv[k] = strdup(args[i]);
		k += t->argv[k] != NULL;
	}
	t->spec.argv = t->argv;
	run_start(t, work, alone_done);
}

void process_remove(struct agent *a, const char *const *paths, unsigned n)
{
	run_alone(a, "--remove", paths, n, remove_trees_work);
}

void process_unmount(struct agent *a, const char *target)
{
	run_alone(a, "--unmount", (const char *[]){target, "1"}, 2, start_work);
}
