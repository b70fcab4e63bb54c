/* SPDX-License-Identifier: MIT */
/* Sockets on an agent's node: each connection is a stream whose channel 0 goes both ways. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fail.h"
#include "base/fd.h"
#include "node/agent_private.h"

enum { ADDRESS_MAX = 4096 };

int fcvm_agent_channel(
	struct fcvm_channel_spec *channel, uint8_t id, bool tx, bool rx, int *ret_ours)
{
	int fds[2];

	/* Non-blocking from birth: each program takes several, and setting flags costs more than
	 * making them. */
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
		return -errno;
	*channel = (struct fcvm_channel_spec){.fd = fds[1], .id = id, .tx = tx, .rx = rx};
	*ret_ours = fds[0];
	return 0;
}

/* CONNECT and ACCEPT: opens the stream and lets it go on by itself for as long as its bytes flow.
 */
static int open_socket(struct fcvm_node *n, unsigned op, const struct fcvm_wire_writer *w,
	const uint8_t *payload, const struct fcvm_until *until, const char *what, int *ret_fd,
	struct fcvm_err *err)
{
	struct fcvm_channel_spec channel;
	struct fcvm_stream *s;
	_cleanup_close_ int ours = -1;
	int k;

	if (w->bad)
		return fcvm_fail_errno(err, -ENAMETOOLONG, "%s: %s", n->name, what);
	k = fcvm_agent_channel(&channel, 0, true, true, &ours);
	if (k < 0)
		return fcvm_fail_errno(err, k, "%s: %s: socketpair", n->name, what);
	k = fcvm_link_open(agent_link(n), op, payload, w->at - payload, &channel, 1, until, what,
		&s, NULL, NULL, err);
	if (k < 0)
		return k;
	fcvm_stream_release(s, true);
	*ret_fd = fcvm_steal_fd(ours);
	return 0;
}

int fcvm_agent_connect(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
	int *ret_fd, struct fcvm_err *err)
{
	_cleanup_free_ char *what = fcvm_asprintf("connect to %s", address);
	uint8_t payload[ADDRESS_MAX];
	struct fcvm_wire_writer w = fcvm_wire_writer(payload, sizeof payload);

	if (!what)
		return fcvm_fail_errno(err, -ENOMEM, "%s: connect", n->name);
	fcvm_wire_put_string(&w, address);
	return open_socket(n, FCVM_WIRE_CONNECT, &w, payload, until, what, ret_fd, err);
}

/* ---- listeners ---- */

struct agent_listener {
	struct fcvm_listener l;
	struct fcvm_stream *stream;
	char *accepting; /* "accept on ADDRESS" */
};

static int agent_accept(
	struct fcvm_listener *l, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err)
{
	struct agent_listener *a = (struct agent_listener *)l;
	uint8_t payload[4];
	struct fcvm_wire_writer w = fcvm_wire_writer(payload, sizeof payload);

	fcvm_wire_put_u32(&w, fcvm_stream_id(a->stream));
	return open_socket(
		l->node, FCVM_WIRE_ACCEPT, &w, payload, until, a->accepting, ret_fd, err);
}

static void agent_listener_free(struct fcvm_listener *l)
{
	struct agent_listener *a = (struct agent_listener *)l;

	fcvm_stream_release(a->stream, false);
	free(a->accepting);
}

int fcvm_agent_listen(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
	struct fcvm_listener **ret, struct fcvm_err *err)
{
	_cleanup_free_ char *what = fcvm_asprintf("listen on %s", address);
	struct agent_listener *a = calloc(1, sizeof *a);
	uint8_t payload[ADDRESS_MAX];
	struct fcvm_wire_writer w = fcvm_wire_writer(payload, sizeof payload);
	int k = 0;

	if (a) {
		a->l.address = strdup(address);
		a->accepting = fcvm_asprintf("accept on %s", address);
	}
	fcvm_wire_put_string(&w, address);
	if (!what || !a || !a->l.address || !a->accepting)
		k = fcvm_fail_errno(err, -ENOMEM, "%s: listen", n->name);
	else if (w.bad)
		k = fcvm_fail_errno(err, -ENAMETOOLONG, "%s: %s", n->name, what);
	else
		k = fcvm_link_open(agent_link(n), FCVM_WIRE_LISTEN, payload, w.at - payload, NULL,
			0, until, what, &a->stream, NULL, NULL, err);
	if (k < 0) {
		if (a) {
			free(a->l.address);
			free(a->accepting);
		}
		free(a);
		return k;
	}
	a->l.accept = agent_accept;
	a->l.free = agent_listener_free;
	a->l.node = fcvm_node_ref(n);
	*ret = &a->l;
	return 0;
}
