/* SPDX-License-Identifier: MIT */
/* Drives a process or transfer to its end: input in, output out, all at once. */
#ifndef FCVM_NODE_RUN_H
#define FCVM_NODE_RUN_H

#include <sys/uio.h>

#include "base/buf.h"
#include "node/node_private.h"

struct fcvm_sink {
	/* Takes all of it; a negative result (with err set) ends the run. */
	int (*take)(struct fcvm_sink *s, const void *data, size_t size, struct fcvm_err *err);
};

/* Keeps the first `limit` bytes. */
struct fcvm_collector {
	struct fcvm_sink sink;
	struct fcvm_buf buf;
	size_t limit;
	bool truncated;
};

void fcvm_collector_init(struct fcvm_collector *c, size_t limit);
/* The text of a failed transfer as one printable line; "" if there is none. */
const char *fcvm_collector_line(struct fcvm_collector *c);

/*
 * Writes the pieces of input to fd 0 and closes it, feeds what comes on fds 1 and 2 to the sinks,
 * until the process has ended and both are at their end. Consumes `input`. -ETIMEDOUT, -ECANCELED,
 * -ECONNRESET.
 */
int fcvm_run(struct fcvm_process *p, struct iovec *input, unsigned ninput, struct fcvm_sink *out,
	struct fcvm_sink *text, const struct fcvm_until *until, struct fcvm_exit *ret,
	struct fcvm_err *err);

/* "NODE: WHAT: ..." for a wait that failed with code. */
int fcvm_run_failed(const struct fcvm_process *p, int code, struct fcvm_err *err);

/* "NODE: WHAT: text" of a transfer that ended badly, with the errno that is its exit status. */
int fcvm_run_refused(
	const struct fcvm_process *p, struct fcvm_collector *text, struct fcvm_err *err);

#endif
