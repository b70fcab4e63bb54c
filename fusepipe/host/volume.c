/* SPDX-License-Identifier: MIT */
/*
 * The handle of a server: starts it, tells it what to do (command.h) and waits for its word. A server that ends instead
 * is said so, with the last line of its log.
 */
#include "fusepipe/host/volume.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"
#include "fusepipe/host/command.h"

enum {
	LOG_MAX = 256 * 1024,
	TRACES_MAX = 4 << 20,  /* a file of half of that, and the one before it */
	FDS_FIRST = 3,         /* what it inherits: control, counters, state */
	GO_ON_MS = 2000,       /* for the RESUME after a pause that failed */
	END_MS = 1000,
	ARGS = 16,
};

struct fcvm_volume {
	char *name;
	struct fcvm_process *process;
	struct fcvm_drain *log, *traces;
	int control;
	uint32_t number; /* of the last command */
};

/* ---- its words ---- */

/* Of a server that is gone: how that was, and what it said last. */
static int died(struct fcvm_volume *v, const char *doing, struct fcvm_err *err)
{
	const struct fcvm_until soon = fcvm_until_ms(1000, -1);
	struct fcvm_exit how = {.code = -1};
	char tail[1024], *line;
	size_t n;

	fcvm_process_wait(v->process, &soon, &how, NULL);
	n = fcvm_drain_tail(v->log, tail, sizeof tail);
	while (n && tail[n - 1] == '\n')
		tail[--n] = 0;
	line = strrchr(tail, '\n');
	line = line ? line + 1 : tail;
	if (how.signal)
		return fcvm_fail(err, -EPIPE, "volume %s: %s: its server was killed by signal %d%s%s: unmount it and mount it again",
			v->name, doing, how.signal, *line ? ": " : "", line);
	return fcvm_fail(err, -EPIPE, "volume %s: %s: its server has ended%s%s: unmount it and mount it again", v->name, doing,
		*line ? ": " : "", line);
}

/* The reply to command `number`; those to others, which were given up, are passed over. */
static int await(struct fcvm_volume *v, uint32_t number, const char *doing, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	for (;;) {
		struct fcvm_volume_reply reply = {.number = 0};
		struct pollfd fd = {.fd = v->control, .events = POLLIN};
		int r = fcvm_until_poll(until, &fd, 1);
		ssize_t size;

		if (r < 0)
			return fcvm_fail_errno(err, r, "volume %s: %s", v->name, doing);
		size = recv(v->control, &reply, sizeof reply, MSG_DONTWAIT);
		if (size < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (size <= (ssize_t)offsetof(struct fcvm_volume_reply, text))
			return died(v, doing, err);
		if (reply.number != number)
			continue;
		reply.text[sizeof reply.text - 1] = 0;
		return reply.result ? fcvm_fail(err, reply.result, "volume %s: %s: %s", v->name, doing, reply.text) : 0;
	}
}

static int send_command(struct fcvm_volume *v, const struct fcvm_volume_request *q, const int *fds, unsigned n)
{
	union {
		struct cmsghdr h;
		char space[CMSG_SPACE(FCVM_VOLUME_FDS * sizeof(int))];
	} u = {.space = {0}};
	struct iovec iov = {(void *)q, sizeof *q};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	if (n) {
		m.msg_control = &u;
		m.msg_controllen = CMSG_SPACE(n * sizeof(int));
		u.h = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(n * sizeof(int))};
		memcpy(CMSG_DATA(&u.h), fds, n * sizeof(int));
	}
	return sendmsg(v->control, &m, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* One command with its descriptors, and its reply. */
static int command(struct fcvm_volume *v, enum fcvm_volume_command what, const char *doing, const int *fds, unsigned n,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_volume_request q = {.command = what, .number = ++v->number, .total = n};
	int r;

	do {
		unsigned some = n - q.first > FCVM_VOLUME_FDS ? FCVM_VOLUME_FDS : n - q.first;

		r = send_command(v, &q, fds + q.first, some);
		q.first += some;
	} while (!r && q.first < n);
	if (r == -EPIPE || r == -ECONNRESET)
		return died(v, doing, err);
	return r ? fcvm_fail_errno(err, r, "volume %s: %s", v->name, doing) : await(v, q.number, doing, until, err);
}

int fcvm_volume_attach(struct fcvm_volume *v, const int *streams, unsigned nstreams, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	int r;

	if (nstreams && nstreams <= FCVM_FUSE_MAX_STREAMS)
		r = command(v, FCVM_VOLUME_ATTACH, "connecting it to its guest", streams, nstreams, until, err);
	else
		r = fcvm_fail(err, -EINVAL, "volume %s: %u readers: 1 to %d there may be", v->name, nstreams, FCVM_FUSE_MAX_STREAMS);
	for (unsigned i = 0; i < nstreams; i++)
		fcvm_close(streams[i]);
	return r;
}

int fcvm_volume_resume(struct fcvm_volume *v, const struct fcvm_until *until, struct fcvm_err *err)
{
	return command(v, FCVM_VOLUME_RESUME, "going on", NULL, 0, until, err);
}

int fcvm_volume_pause(struct fcvm_volume *v, const struct fcvm_until *until, struct fcvm_err *err)
{
	int r = command(v, FCVM_VOLUME_PAUSE, "coming to rest", NULL, 0, until, err);
	struct fcvm_until soon = fcvm_until_ms(GO_ON_MS, -1);

	/* Whatever it was: its guest is not to be left standing. */
	if (r)
		fcvm_volume_resume(v, &soon, NULL);
	return r;
}

int fcvm_volume_save(struct fcvm_volume *v, const char *file, const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_close_ int fd = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	int r;

	if (fd < 0)
		return fcvm_fail_errno(err, -errno, "volume %s: saving its state: create %s", v->name, file);
	r = command(v, FCVM_VOLUME_SAVE, "saving its state", &fd, 1, until, err);
	if (r)
		unlink(file);
	return r;
}

/* ---- its process ---- */

/* The command line; words are its numbers' memory. */
struct line {
	const char *argv[ARGS + 2 * FCVM_FUSE_MAX_IDS * 2];
	unsigned argc;
	char numbers[64];
	char *maps;
};

static void add_ids(struct line *l, size_t *used, const char *option, const struct fcvm_fuse_ids *ids, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		char *text = l->maps + *used;

		*used += sprintf(text, "%u:%u:%u", ids[i].guest, ids[i].host, ids[i].count) + 1;
		l->argv[l->argc++] = option;
		l->argv[l->argc++] = text;
	}
}

static int make_line(struct line *l, const struct fcvm_volume_config *c, bool state)
{
	const struct fcvm_fuse_volume *s = &c->serve;
	char *max_nodes = l->numbers + 32;
	size_t used = 0;

	if (s->nuids > FCVM_FUSE_MAX_IDS || s->ngids > FCVM_FUSE_MAX_IDS)
		return -E2BIG;
	l->maps = malloc(40 * (s->nuids + s->ngids) + 1);
	if (!l->maps)
		return -ENOMEM;
	l->argc = 0;
	l->argv[l->argc++] = c->program;
	l->argv[l->argc++] = "--control=3";
	l->argv[l->argc++] = "--counters=4";
	if (state)
		l->argv[l->argc++] = "--state=5";
	if (s->readonly)
		l->argv[l->argc++] = "--readonly";
	if (s->devices)
		l->argv[l->argc++] = "--devices";
	if (s->local_locks)
		l->argv[l->argc++] = "--local-locks";
	if (c->traces)
		l->argv[l->argc++] = "--traces";
	snprintf(l->numbers, 32, "--timeout=%.9g", s->timeout_s);
	l->argv[l->argc++] = l->numbers;
	if (s->max_nodes) {
		snprintf(max_nodes, 32, "--max-nodes=%u", s->max_nodes);
		l->argv[l->argc++] = max_nodes;
	}
	add_ids(l, &used, "--uid", s->uids, s->nuids);
	add_ids(l, &used, "--gid", s->gids, s->ngids);
	l->argv[l->argc++] = "--";
	l->argv[l->argc++] = s->folder;
	l->argv[l->argc] = NULL;
	return 0;
}

/* Its stdout and stderr go into files of bounded size. */
static int keep_words(struct fcvm_volume *v, struct fcvm_node *local, const struct fcvm_volume_config *c, struct fcvm_err *err)
{
	char name[32];
	int r;

	snprintf(name, sizeof name, "volume-%u.log", c->number);
	r = fcvm_node_drain(local, fcvm_process_take_fd(v->process, 2), c->dirfd, name, LOG_MAX, &v->log, err);
	if (r)
		return r;
	snprintf(name, sizeof name, "volume-%u.trace", c->number);
	return fcvm_node_drain(local, fcvm_process_take_fd(v->process, 1), c->dirfd, name, TRACES_MAX, &v->traces, err);
}

/* fds: control, counters, state. */
static int spawn(struct fcvm_volume *v, struct fcvm_node *local, const struct fcvm_volume_config *c, const int *fds,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_free_ struct line *l = calloc(1, sizeof *l);
	struct fcvm_spawn spec = {.null_stdin = true, .inherit = fds, .ninherit = fds[2] >= 0 ? 3 : 2};
	int r = l ? make_line(l, c, fds[2] >= 0) : -ENOMEM;

	if (r) {
		r = fcvm_fail_errno(err, r, "volume %s: starting its server", v->name);
	} else {
		spec.argv = l->argv;
		r = fcvm_node_spawn(local, &spec, until, &v->process, err);
		if (r)
			fcvm_fail_prefix(err, "volume %s: starting its server", v->name);
	}
	if (l)
		free(l->maps);
	return r ? r : keep_words(v, local, c, err);
}

static int open_files(struct fcvm_volume *v, const struct fcvm_volume_config *c, int *fds, struct fcvm_err *err)
{
	char name[32];
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return fcvm_fail_errno(err, -errno, "volume %s: socketpair", v->name);
	v->control = pair[0];
	fds[0] = pair[1];
	snprintf(name, sizeof name, "volume-%u.counters", c->number);
	/* Another file than one that somebody may be reading still. */
	unlinkat(c->dirfd, name, 0);
	fds[1] = openat(c->dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fds[1] < 0)
		return fcvm_fail_errno(err, -errno, "volume %s: create %s", v->name, name);
	if (!c->state_file)
		return 0;
	fds[2] = open(c->state_file, O_RDONLY | O_CLOEXEC);
	return fds[2] < 0 ? fcvm_fail_errno(err, -errno, "volume %s: open %s", v->name, c->state_file) : 0;
}

int fcvm_volume_start(struct fcvm_volume **ret, struct fcvm_node *local, const struct fcvm_volume_config *config,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_volume *v = calloc(1, sizeof *v);
	int fds[3] = {-1, -1, -1}, r;

	if (!v)
		return fcvm_fail_errno(err, -ENOMEM, "volume %s", config->name);
	v->control = -1;
	v->name = strdup(config->name);
	r = v->name ? open_files(v, config, fds, err) : fcvm_fail_errno(err, -ENOMEM, "volume %s", config->name);
	if (!r)
		r = spawn(v, local, config, fds, until, err);
	for (unsigned i = 0; i < 3; i++)
		fcvm_close(fds[i]);
	if (!r)
		r = await(v, 0, "starting its server", until, err);
	if (r) {
		fcvm_volume_free(v);
		return r;
	}
	*ret = v;
	return 0;
}

int fcvm_volume_exit_fd(const struct fcvm_volume *v)
{
	return fcvm_process_exit_fd(v->process);
}

pid_t fcvm_volume_pid(const struct fcvm_volume *v)
{
	return fcvm_process_pid(v->process);
}

void fcvm_volume_free(struct fcvm_volume *v)
{
	const struct fcvm_until soon = fcvm_until_ms(END_MS, -1);
	struct fcvm_exit how;

	if (!v)
		return;
	/* It ends of itself, and its locks and counters with it; not if a disk keeps it. */
	fcvm_close(v->control);
	if (v->process)
		fcvm_process_wait(v->process, &soon, &how, NULL);
	fcvm_process_free(v->process);
	fcvm_drain_free(v->log);
	fcvm_drain_free(v->traces);
	free(v->name);
	free(v);
}
