/* SPDX-License-Identifier: MIT */
/* Programs and transfers on an agent's node: streams with an EXIT. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "node/agent_private.h"

struct agent_process {
	struct fcvm_process p;
	struct fcvm_stream *stream; /* NULL: was not opened */
	bool tty;
};

static struct agent_process *agent_of(struct fcvm_process *p)
{
	return (struct agent_process *)p;
}

/* ---- what a handle does ---- */

static int collect(struct fcvm_process *p, struct fcvm_exit *ret, struct fcvm_err *err)
{
	return fcvm_stream_exit(agent_of(p)->stream, ret, err);
}

static int send_signal(struct fcvm_process *p, int signo, struct fcvm_err *err)
{
	return fcvm_stream_send(agent_of(p)->stream, FCVM_WIRE_SIGNAL, signo, err);
}

static int resize(struct fcvm_process *p, unsigned rows, unsigned columns, struct fcvm_err *err)
{
	if (!agent_of(p)->tty)
		return fcvm_fail(
			err, -ENOTTY, "%s: %s: resize: it has no terminal", p->node->name, p->what);
	return fcvm_stream_send(agent_of(p)->stream, FCVM_WIRE_RESIZE, rows << 16 | columns, err);
}

static void free_process(struct fcvm_process *p)
{
	struct agent_process *a = agent_of(p);
	struct fcvm_exit exit;

	if (!a->stream)
		return;
	/* CLOSE kills it. Streams that the caller took go on; then it is killed by name. */
	if (p->taken && !p->detached && fcvm_stream_exit(a->stream, &exit, NULL) == -EAGAIN)
		fcvm_stream_send(a->stream, FCVM_WIRE_SIGNAL, SIGKILL, NULL);
	fcvm_stream_release(a->stream, p->taken);
}

static const struct process_ops ops = {collect, send_signal, resize, free_process};

/* ---- opening ---- */

struct channels {
	struct fcvm_channel_spec spec[PROCESS_FDS];
	unsigned n;
};

static int add_channel(struct fcvm_process *p, struct channels *c, unsigned i, bool tx, bool rx)
{
	int k = fcvm_agent_channel(&c->spec[c->n], i, tx, rx, &p->fds[i]);

	if (k == 0)
		c->n++;
	return k;
}

static int new_process(struct fcvm_node *n, const char *verb, const char *object,
	struct fcvm_process **ret, struct fcvm_err *err)
{
	struct agent_process *a = calloc(1, sizeof *a);

	if (!a || fcvm_process_init(&a->p, &ops, n, verb, object) < 0) {
		free(a);
		return fcvm_fail_errno(err, -ENOMEM, "%s: %s %s", n->name, verb, object);
	}
	*ret = &a->p;
	return 0;
}

/* Opens the stream with the channels, which it takes; k: how making them went. */
static int open_process(struct fcvm_process *p, unsigned op, const void *payload, size_t size,
	int k, struct channels *c, const struct fcvm_until *until, void **ret_reply,
	size_t *ret_reply_size, struct fcvm_err *err)
{
	struct agent_process *a = agent_of(p);

	if (k < 0) {
		for (unsigned i = 0; i < c->n; i++)
			fcvm_close(c->spec[i].fd);
		return fcvm_fail_errno(
			err, k, "%s: %s: make its descriptors", p->node->name, p->what);
	}
	k = fcvm_link_open(agent_link(p->node), op, payload, size, c->spec, c->n, until, p->what,
		&a->stream, ret_reply, ret_reply_size, err);
	if (k == 0)
		p->exit_fd = fcvm_stream_exit_fd(a->stream);
	return k;
}

/* ---- programs ---- */

static size_t size_of(const char *const *list, uint32_t *ret_count)
{
	size_t size = 0;

	*ret_count = 0;
	for (; list && *list; list++) {
		size += strlen(*list) + 5;
		++*ret_count;
	}
	return size;
}

/* The payload of SPAWN; malloc'ed. */
static int describe(struct fcvm_process *p, const struct fcvm_spawn *spec, void **ret,
	size_t *ret_size, struct fcvm_err *err)
{
	struct fcvm_wire_spawn head = {
		.flags = (spec->tty ? FCVM_WIRE_TTY : 0) |
			 (spec->null_stdin ? FCVM_WIRE_NULL_STDIN : 0) |
			 (spec->merge_stderr ? FCVM_WIRE_MERGE : 0) |
			 (spec->detach ? FCVM_WIRE_DETACH : 0) |
			 (spec->clear_env ? FCVM_WIRE_CLEAR_ENV : 0),
		.rows = spec->rows,
		.columns = spec->columns,
		.channels = spec->channels,
	};
	size_t size = sizeof head + size_of(spec->argv, &head.nargv) +
		      size_of(spec->env, &head.nenv) + (spec->cwd ? strlen(spec->cwd) : 0) +
		      (spec->user ? strlen(spec->user) : 0) + 10;
	struct fcvm_wire_writer w;
	void *payload;

	if (size > FCVM_WIRE_MAX_PAYLOAD)
		return fcvm_fail(err, -E2BIG,
			"%s: %s: arguments and environment take %zu bytes, at most %u go to an "
			"agent",
			p->node->name, p->what, size, FCVM_WIRE_MAX_PAYLOAD);
	payload = malloc(size);
	if (!payload)
		return fcvm_fail_errno(err, -ENOMEM, "%s: %s", p->node->name, p->what);
	w = fcvm_wire_writer(payload, size);
	fcvm_wire_put_bytes(&w, &head, sizeof head);
	fcvm_wire_put_string(&w, spec->cwd);
	fcvm_wire_put_string(&w, spec->user);
	for (uint32_t i = 0; i < head.nargv; i++)
		fcvm_wire_put_string(&w, spec->argv[i]);
	for (uint32_t i = 0; i < head.nenv; i++)
		fcvm_wire_put_string(&w, spec->env[i]);
	*ret = payload;
	*ret_size = w.at - (uint8_t *)payload;
	return 0;
}

static int spawn_channels(struct fcvm_process *p, const struct fcvm_spawn *spec, struct channels *c)
{
	int k = 0;

	if (spec->tty || !spec->null_stdin)
		k = add_channel(p, c, 0, true, false);
	if (k == 0)
		k = add_channel(p, c, 1, false, true);
	if (k == 0 && !spec->tty && !spec->merge_stderr)
		k = add_channel(p, c, 2, false, true);
	for (unsigned i = 0; k == 0 && i < spec->channels; i++)
		k = add_channel(p, c, 3 + i, true, true);
	return k;
}

static int check(struct fcvm_node *n, const struct fcvm_spawn *spec, struct fcvm_err *err)
{
	if (!spec->argv || !spec->argv[0])
		return fcvm_fail(err, -EINVAL, "%s: exec: no program is named", n->name);
	if (spec->ninherit)
		return fcvm_fail(err, -EOPNOTSUPP,
			"%s: exec %s: descriptors of this process cannot be handed into a guest; "
			"use channels",
			n->name, spec->argv[0]);
	if (spec->channels > PROCESS_FDS - 3 || spec->rows > 0xffff || spec->columns > 0xffff)
		return fcvm_fail(err, -EINVAL,
			"%s: exec %s: too many channels, or too large a terminal", n->name,
			spec->argv[0]);
	return 0;
}

int fcvm_agent_spawn(struct fcvm_node *n, const struct fcvm_spawn *spec,
	const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_process_free) struct fcvm_process *p = NULL;
	_cleanup_free_ void *payload = NULL, *reply = NULL;
	struct channels c = {.n = 0};
	struct fcvm_wire_reader r;
	size_t size = 0, reply_size = 0;
	int k = check(n, spec, err);

	if (k == 0)
		k = new_process(n, "exec", spec->argv[0], &p, err);
	if (k == 0)
		k = describe(p, spec, &payload, &size, err);
	if (k < 0)
		return k;
	p->detached = spec->detach;
	agent_of(p)->tty = spec->tty;
	k = spawn_channels(p, spec, &c);
	k = open_process(p, FCVM_WIRE_SPAWN, payload, size, k, &c, until, &reply, &reply_size, err);
	if (k < 0)
		return k;
	r = fcvm_wire_reader(reply, reply_size);
	p->pid = fcvm_wire_get_u32(&r);
	if (!fcvm_wire_reader_ok(&r) || p->pid <= 0)
		return fcvm_fail(err, -EPROTO,
			"%s: %s: the agent answered without a process number", n->name, p->what);
	*ret = fcvm_steal_ptr(p);
	return 0;
}

/* ---- transfers ---- */

/* data: the channel of the tree. */
static int open_transfer(struct fcvm_node *n, unsigned op, const char *verb, const char *path,
	const struct fcvm_wire_writer *w, const uint8_t *payload, unsigned data,
	const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_process_free) struct fcvm_process *p = NULL;
	struct channels c = {.n = 0};
	int k = new_process(n, verb, path, &p, err);

	if (k < 0)
		return k;
	if (w->bad)
		return fcvm_fail_errno(err, -ENAMETOOLONG, "%s: %s", n->name, p->what);
	k = add_channel(p, &c, data, data == 0, data == 1);
	if (k == 0)
		k = add_channel(p, &c, 2, false, true);
	k = open_process(p, op, payload, w->at - payload, k, &c, until, NULL, NULL, err);
	if (k < 0)
		return k;
	*ret = fcvm_steal_ptr(p);
	return 0;
}

int fcvm_agent_get(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
	struct fcvm_process **ret, struct fcvm_err *err)
{
	uint8_t payload[8 * 1024];
	struct fcvm_wire_writer w = fcvm_wire_writer(payload, sizeof payload);

	fcvm_wire_put_string(&w, path);
	return open_transfer(n, FCVM_WIRE_GET, "get", path, &w, payload, 1, until, ret, err);
}

int fcvm_agent_put(struct fcvm_node *n, const char *path, const char *base_name, bool keep_owner,
	const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err)
{
	uint8_t payload[8 * 1024];
	struct fcvm_wire_writer w = fcvm_wire_writer(payload, sizeof payload);

	fcvm_wire_put_u32(&w, keep_owner ? 1 : 0);
	fcvm_wire_put_string(&w, path);
	fcvm_wire_put_string(&w, base_name);
	return open_transfer(n, FCVM_WIRE_PUT, "put", path, &w, payload, 0, until, ret, err);
}
