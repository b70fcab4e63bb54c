/* SPDX-License-Identifier: MIT */
/* What agent.c, agent_process.c and agent_socket.c share. */
#ifndef FCVM_NODE_AGENT_PRIVATE_H
#define FCVM_NODE_AGENT_PRIVATE_H

#include "node/link.h"
#include "node/node_private.h"
#include "wire/wire.h"

struct agent_node {
	struct fcvm_node node;
	struct fcvm_node *local; /* referenced: its reactor pumps */
	struct fcvm_link *link;
	_Atomic uint64_t generation;
};

static inline struct fcvm_link *agent_link(struct fcvm_node *n)
{
	return ((struct agent_node *)n)->link;
}

/* A socketpair: *ret_ours for the caller, non-blocking; the other end in `channel`, to be taken by
 * fcvm_link_open. -errno. */
int fcvm_agent_channel(
	struct fcvm_channel_spec *channel, uint8_t id, bool tx, bool rx, int *ret_ours);

/* agent_process.c */
int fcvm_agent_spawn(struct fcvm_node *n, const struct fcvm_spawn *spec,
	const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err);
int fcvm_agent_get(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
	struct fcvm_process **ret, struct fcvm_err *err);
int fcvm_agent_put(struct fcvm_node *n, const char *path, const char *base_name, bool keep_owner,
	const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err);

/* agent_socket.c */
int fcvm_agent_connect(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
	int *ret_fd, struct fcvm_err *err);
int fcvm_agent_listen(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
	struct fcvm_listener **ret, struct fcvm_err *err);

#endif
