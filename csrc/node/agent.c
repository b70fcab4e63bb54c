/* SPDX-License-Identifier: MIT */
/* The agent node: each operation is a request over its link (link.h); payloads as in wire/wire.h.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "node/agent_private.h"

/* ---- requests that end with their result ---- */

enum { REQUEST_MAX = 2 * (PATH_MAX + 8) + 64 };

struct request {
	struct fcvm_wire_writer w;
	uint8_t buf[REQUEST_MAX];
};

static void begin(struct request *q)
{
	q->w = fcvm_wire_writer(q->buf, sizeof q->buf);
}

/* Sends it. The reply must have exactly `size` bytes, which go to `reply` (NULL: any). */
static int call(struct fcvm_node *n, unsigned op, struct request *q, const struct fcvm_until *until,
	const char *verb, const char *object, void *reply, size_t size, struct fcvm_err *err)
{
	_cleanup_free_ char *what = fcvm_asprintf("%s%s%s", verb, object[0] ? " " : "", object);
	_cleanup_free_ void *got = NULL;
	size_t got_size;
	int k;

	if (!what)
		return fcvm_fail_errno(err, -ENOMEM, "%s: %s", n->name, verb);
	if (q->w.bad)
		return fcvm_fail_errno(err, -ENAMETOOLONG, "%s: %s", n->name, what);
	k = fcvm_link_call(
		agent_link(n), op, q->buf, q->w.at - q->buf, until, what, &got, &got_size, err);
	if (k == 0 && reply && got_size != size)
		k = fcvm_fail(err, -EPROTO,
			"%s: %s: the agent answered with %zu bytes instead of %zu", n->name, what,
			got_size, size);
	if (k == 0 && reply)
		memcpy(reply, got, size);
	return k;
}

static int agent_stat(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
	struct fcvm_node_stat *ret, struct fcvm_err *err)
{
	struct fcvm_wire_stat st;
	struct request q;
	int k;

	begin(&q);
	fcvm_wire_put_string(&q.w, path);
	k = call(n, FCVM_WIRE_STAT, &q, until, "stat", path, &st, sizeof st, err);
	if (k < 0)
		return k;
	*ret = (struct fcvm_node_stat){
		.size = st.size,
		.mtime_ns = st.mtime_ns,
		.mode = st.mode,
		.uid = st.uid,
		.gid = st.gid,
	};
	return 0;
}

static int agent_mkdir(struct fcvm_node *n, const char *path, mode_t mode, bool parents, bool lease,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	struct request q;

	begin(&q);
	fcvm_wire_put_u32(&q.w, mode);
	fcvm_wire_put_u32(&q.w, (parents ? 1 : 0) | (lease ? 2 : 0));
	fcvm_wire_put_string(&q.w, path);
	return call(n, FCVM_WIRE_MKDIR, &q, until, "mkdir", path, NULL, 0, err);
}

static int two_paths(struct fcvm_node *n, unsigned op, const char *verb, const char *from,
	const char *to, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct request q;

	begin(&q);
	fcvm_wire_put_string(&q.w, from);
	fcvm_wire_put_string(&q.w, to);
	return call(n, op, &q, until, verb, from, NULL, 0, err);
}

static int agent_rename(struct fcvm_node *n, const char *from, const char *to,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	return two_paths(n, FCVM_WIRE_RENAME, "rename", from, to, until, err);
}

static int agent_reflink(struct fcvm_node *n, const char *from, const char *to,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	return two_paths(n, FCVM_WIRE_REFLINK, "reflink", from, to, until, err);
}

static int agent_remove(
	struct fcvm_node *n, const char *path, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct request q;

	begin(&q);
	fcvm_wire_put_string(&q.w, path);
	return call(n, FCVM_WIRE_REMOVE, &q, until, "remove", path, NULL, 0, err);
}

/* The agent's text, ended and printable whatever it sent. */
static void copy_text(char *to, const char *from, size_t size)
{
	size_t i;

	for (i = 0; i < size - 1 && from[i]; i++)
		to[i] = (unsigned char)from[i] < 0x20 || from[i] == 0x7f ? '?' : from[i];
	to[i] = 0;
}

static int agent_info(struct fcvm_node *n, const struct fcvm_until *until,
	struct fcvm_node_info *ret, struct fcvm_err *err)
{
	struct fcvm_wire_info info;
	struct request q;
	int k;

	begin(&q);
	k = call(n, FCVM_WIRE_INFO, &q, until, "info", "", &info, sizeof info, err);
	if (k < 0)
		return k;
	*ret = (struct fcvm_node_info){
		.generation = info.generation,
		.uptime_ns = info.uptime_ns,
		.realtime_ns = info.realtime_ns,
		.memory_total = info.memory_total,
		.memory_available = info.memory_available,
		.processors = info.processors,
	};
	copy_text(ret->version, info.version, sizeof ret->version);
	copy_text(ret->hostname, info.hostname, sizeof ret->hostname);
	return 0;
}

/* ---- the node ---- */

static void agent_free(struct fcvm_node *n)
{
	struct agent_node *a = (struct agent_node *)n;

	fcvm_link_free(a->link);
	fcvm_node_unref(a->local);
	free(a);
}

static int agent_poll(
	struct fcvm_node *n, const struct fcvm_until *until, struct pollfd *fds, unsigned count)
{
	return fcvm_link_poll(agent_link(n), until, fds, count);
}

static const struct node_ops agent_ops = {
	.free = agent_free,
	.poll = agent_poll,
	.spawn = fcvm_agent_spawn,
	.connect = fcvm_agent_connect,
	.listen = fcvm_agent_listen,
	.get = fcvm_agent_get,
	.put = fcvm_agent_put,
	.read_file = fcvm_transfer_read_file,
	.write_file = fcvm_transfer_write_file,
	.stat = agent_stat,
	.mkdir = agent_mkdir,
	.rename = agent_rename,
	.remove = agent_remove,
	.reflink = agent_reflink,
	.info = agent_info,
};

int fcvm_node_agent(struct fcvm_node **ret, struct fcvm_node *local, int carrier, const char *name,
	uint64_t generation, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct agent_node *a = calloc(1, sizeof *a);
	struct fcvm_reactor *reactor = NULL;
	uint64_t found = 0;
	int k;

	if (a)
		a->node.name = strdup(name);
	if (!a || !a->node.name)
		k = fcvm_fail_errno(err, -ENOMEM, "%s", name);
	else
		k = fcvm_local_reactor(local, &reactor, err);
	if (k < 0)
		fcvm_close(carrier);
	else
		k = fcvm_link_new(&a->link, reactor, carrier, name, generation, until, &found, err);
	if (k < 0) {
		if (a)
			free(a->node.name);
		free(a);
		return k;
	}
	a->node.ops = &agent_ops;
	atomic_init(&a->node.refs, 1);
	a->local = fcvm_node_ref(local);
	atomic_init(&a->generation, found);
	*ret = &a->node;
	return 0;
}

uint64_t fcvm_node_generation(const struct fcvm_node *n)
{
	return n->ops == &agent_ops ? atomic_load(&((const struct agent_node *)n)->generation) : 0;
}

/* ---- agent nodes only ---- */

static int need_agent(const struct fcvm_node *n, const char *what, struct fcvm_err *err)
{
	if (n->ops == &agent_ops)
		return 0;
	return fcvm_fail(err, -EOPNOTSUPP, "%s: %s: only a guest can do that", n->name, what);
}

int fcvm_node_ping(struct fcvm_node *n, const struct fcvm_until *until, struct fcvm_err *err)
{
	int k = need_agent(n, "ping", err);
	uint64_t sent, got;
	struct request q;

	if (k < 0)
		return k;
	fcvm_random(&sent, sizeof sent);
	begin(&q);
	fcvm_wire_put_bytes(&q.w, &sent, sizeof sent);
	k = call(n, FCVM_WIRE_PING, &q, until, "ping", "", &got, sizeof got, err);
	if (k == 0 && got != sent)
		k = fcvm_fail(
			err, -EPROTO, "%s: ping: the agent answered with something else", n->name);
	return k;
}

int fcvm_node_identify(struct fcvm_node *n, const struct fcvm_identity *id,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	int k = need_agent(n, "identify", err);
	struct fcvm_wire_identity head = {.generation = id->generation};
	struct request q;

	if (k < 0)
		return k;
	fcvm_random(head.seed, sizeof head.seed);
	head.realtime_ns = fcvm_realtime_ns();
	begin(&q);
	fcvm_wire_put_bytes(&q.w, &head, sizeof head);
	fcvm_wire_put_string(&q.w, id->hostname);
	fcvm_wire_put_string(&q.w, id->machine_id);
	k = call(n, FCVM_WIRE_IDENTITY, &q, until, "identify", "", NULL, 0, err);
	explicit_bzero(head.seed, sizeof head.seed);
	explicit_bzero(q.buf, sizeof head);
	if (k == 0) {
		atomic_store(&((struct agent_node *)n)->generation, id->generation);
		fcvm_link_serve_generation(agent_link(n), id->generation);
	}
	return k;
}

int fcvm_node_set_clock(struct fcvm_node *n, int64_t realtime_ns, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	int k = need_agent(n, "set the clock", err);
	struct request q;

	if (k < 0)
		return k;
	begin(&q);
	fcvm_wire_put_u64(&q.w, realtime_ns);
	return call(n, FCVM_WIRE_CLOCK, &q, until, "set the clock", "", NULL, 0, err);
}

int fcvm_node_power(
	struct fcvm_node *n, bool reboot, const struct fcvm_until *until, struct fcvm_err *err)
{
	const char *what = reboot ? "reboot" : "power off";
	int k = need_agent(n, what, err);
	struct request q;

	if (k < 0)
		return k;
	begin(&q);
	fcvm_wire_put_u32(&q.w, reboot ? FCVM_WIRE_REBOOT : FCVM_WIRE_POWEROFF);
	return call(n, FCVM_WIRE_POWER, &q, until, what, "", NULL, 0, err);
}

int fcvm_node_freeze(struct fcvm_node *n, const struct fcvm_until *until, struct fcvm_err *err)
{
	int k = need_agent(n, "freeze", err);

	return k < 0 ? k : fcvm_link_freeze(agent_link(n), until, err);
}

int fcvm_node_thaw(struct fcvm_node *n, const struct fcvm_until *until, struct fcvm_err *err)
{
	int k = need_agent(n, "thaw", err);

	return k < 0 ? k : fcvm_link_thaw(agent_link(n), until, err);
}

int fcvm_node_mount(struct fcvm_node *n, const struct fcvm_mount *m, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_wire_mount head = {.number = m->number,
		.flags = (m->readonly ? FCVM_WIRE_MOUNT_READONLY : 0) | (m->port ? FCVM_WIRE_MOUNT_PORT : 0),
		.readers = m->readers,
		.trace_rate = m->trace_rate};
	int k = need_agent(n, "mount a volume", err);
	struct request q;

	if (k < 0)
		return k;
	begin(&q);
	fcvm_wire_put_bytes(&q.w, &head, sizeof head);
	fcvm_wire_put_string(&q.w, m->source);
	fcvm_wire_put_string(&q.w, m->target);
	return call(n, FCVM_WIRE_MOUNT, &q, until, "mount", m->target, NULL, 0, err);
}

int fcvm_node_unmount(struct fcvm_node *n, const char *target, bool now, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	int k = need_agent(n, "unmount a volume", err);
	struct request q;

	if (k < 0)
		return k;
	begin(&q);
	fcvm_wire_put_u32(&q.w, now);
	fcvm_wire_put_string(&q.w, target);
	return call(n, FCVM_WIRE_UNMOUNT, &q, until, "unmount", target, NULL, 0, err);
}

int fcvm_node_switch_root(struct fcvm_node *n, const char *path, const struct fcvm_until *until, struct fcvm_err *err)
{
	int k = need_agent(n, "switch its root", err);
	struct request q;

	if (k < 0)
		return k;
	begin(&q);
	fcvm_wire_put_string(&q.w, path);
	return call(n, FCVM_WIRE_ROOT, &q, until, "switch the root to", path, NULL, 0, err);
}

void fcvm_node_hang_up(struct fcvm_node *n, const char *why)
{
	if (need_agent(n, "hang up", NULL) == 0)
		fcvm_link_end(agent_link(n), why);
}

int fcvm_node_serve(struct fcvm_node *n, int listen_fd, struct fcvm_err *err)
{
	int k = need_agent(n, "serve", err);

	if (k < 0) {
		fcvm_close(listen_fd);
		return k;
	}
	return fcvm_link_serve(agent_link(n), listen_fd, fcvm_node_generation(n), err);
}
