/* SPDX-License-Identifier: MIT */
/*
 * An HTTP API's client: one connection to a socket on a node, kept alive between calls. A call that is given up, or
 * whose answer is no HTTP, closes it, and the next one connects again.
 *
 * libcurl makes descriptors of its own (to wake a wait, which is not used) that are not closed by an exec, and no call tells
 * which they are: programs that others in this process start inherit them. fcvm_proc_spawn() closes them.
 *
 * Threads: one at a time. Blocking: until `until` (NULL: for ever), or the server's end.
 */
#ifndef FCVM_VMM_FC_HTTP_H
#define FCVM_VMM_FC_HTTP_H

#include "base/json.h"
#include "node/node.h"

struct fcvm_http;

/* Does not connect yet. dirfd: of a folder on this host where each connection leaves its name for a moment; duplicated.
 * exit_fd: readable once the server has ended; borrowed, -1: none. */
int fcvm_http_new(struct fcvm_http **ret, struct fcvm_node *node, const char *address, int dirfd, int exit_fd,
	struct fcvm_err *err);
void fcvm_http_free(struct fcvm_http *h); /* NULL allowed */

/* Connects ahead of the first call. */
int fcvm_http_connect(struct fcvm_http *h, const struct fcvm_until *until, struct fcvm_err *err);

/*
 * One call: "PUT", "/snapshot/load". body: NULL for none. ret: the answer, NULL if it is of no interest.
 * -EIO: refused, with the server's own words (its fault_message; else the status and what it sent); -ECONNRESET: it
 * ended, or hung up; -EPROTO: its answer is no HTTP, or longer than 64 KiB; -EBADMSG: no JSON, though `ret` wants it.
 */
int fcvm_http_call(struct fcvm_http *h, const char *method, const char *path, const struct fcvm_json *body,
	const struct fcvm_until *until, struct fcvm_json **ret, struct fcvm_err *err);

/* How many calls and connections there were: what clones cost is counted by tests. */
unsigned fcvm_http_calls(const struct fcvm_http *h);
unsigned fcvm_http_connections(const struct fcvm_http *h);

FCVM_CLEANUP(struct fcvm_http, fcvm_http_free)

#endif
