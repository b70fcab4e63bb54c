/* SPDX-License-Identifier: MIT */
/*
 * The host's end of a link (wire/wire.h): its streams, and the pumps between them and socketpairs.
 *
 * Theory of operation
 *
 * - One lock per link protects everything of it but the input buffer. Who writes a frame writes it
 * to the carrier at once if nothing waits before it; else it queues and the reactor goes on when
 * the carrier takes more.
 * - Who reads the carrier holds the reader's role. At rest that is the reactor. A thread that waits
 * for something of this link (fcvm_link_poll) takes the role if it is free: the answer then wakes
 * it directly and not by way of the reactor's thread. Meanwhile the carrier is not in the reactor's
 * set for input.
 * - A stream's channel is one end of a socketpair whose other end the caller has. Towards the agent
 * it is read only while there is credit and the output queue is short, so a slow agent fills the
 * socket and the caller's writes block. From the agent what the socket does not take waits in `in`,
 * at most a window of it, and credit goes back as it drains: a slow caller stalls only this
 * channel.
 * - A stream is in the table until nobody needs it: no handle of ours (process, call, listener) and
 * no channel with bytes to move. The agent's frames for ids that are no more are dropped.
 * - A link that ends, for whatever reason, is marked dead at once and buried when the lock is left:
 * then nothing is in the middle of a stream's list.
 */
#ifndef FCVM_NODE_LINK_H
#define FCVM_NODE_LINK_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/proc.h"
#include "base/until.h"
#include "node/reactor.h"

struct fcvm_link;
struct fcvm_stream;

/* Takes the carrier (also on failure), greets the agent. name: copied. Returns with the agent's
 * generation. */
int fcvm_link_new(struct fcvm_link **ret, struct fcvm_reactor *r, int carrier, const char *name,
	uint64_t generation, const struct fcvm_until *until, uint64_t *ret_generation,
	struct fcvm_err *err);
/* Ends it: everything pending fails. The memory goes when the reactor has let go of it. NULL
 * allowed. */
void fcvm_link_free(struct fcvm_link *l);
/* Ends it all the same, and leaves the memory to fcvm_link_free(). */
void fcvm_link_end(struct fcvm_link *l, const char *why);

/* fcvm_until_poll, which meanwhile reads the carrier if nobody else does. At most 60 entries. */
int fcvm_link_poll(
	struct fcvm_link *l, const struct fcvm_until *until, struct pollfd *fds, unsigned n);

/* One channel of a stream that is to be opened. */
struct fcvm_channel_spec {
	int fd;     /* our end, a non-blocking socket; taken over (also on failure) */
	uint8_t id; /* channel number */
	bool tx;    /* what is read from fd goes to the agent */
	bool rx;    /* what comes from the agent is written to fd */
};

/*
 * Opens a stream and waits for its RESULT. On success the caller has a handle, to be given back by
 * fcvm_stream_release. what: "exec /bin/true", for messages. ret_reply: malloc'ed, NULL allowed.
 */
int fcvm_link_open(struct fcvm_link *l, unsigned op, const void *payload, size_t size,
	struct fcvm_channel_spec *channels, unsigned nchannels, const struct fcvm_until *until,
	const char *what, struct fcvm_stream **ret, void **ret_reply, size_t *ret_reply_size,
	struct fcvm_err *err);

/* An operation that ends with its RESULT. */
int fcvm_link_call(struct fcvm_link *l, unsigned op, const void *payload, size_t size,
	const struct fcvm_until *until, const char *what, void **ret_reply, size_t *ret_reply_size,
	struct fcvm_err *err);

uint32_t fcvm_stream_id(const struct fcvm_stream *s);
/* Readable from EXIT on, or when the link or the stream has ended; lives as long as the handle. */
int fcvm_stream_exit_fd(const struct fcvm_stream *s);
/* 0; -EAGAIN: not yet; -ECONNRESET. */
int fcvm_stream_exit(struct fcvm_stream *s, struct fcvm_exit *ret, struct fcvm_err *err);
/* SIGNAL and RESIZE. */
int fcvm_stream_send(struct fcvm_stream *s, unsigned type, uint32_t arg, struct fcvm_err *err);
/* Gives the handle back. linger: channels with bytes still to move go on until they end; else all
 * is closed. */
void fcvm_stream_release(struct fcvm_stream *s, bool linger);

int fcvm_link_freeze(struct fcvm_link *l, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_link_thaw(struct fcvm_link *l, const struct fcvm_until *until, struct fcvm_err *err);

/* node/serve.c: relays other processes' links. listen_fd is taken over. */
int fcvm_link_serve(struct fcvm_link *l, int listen_fd, uint64_t generation, struct fcvm_err *err);
/* The agent has another generation from now on. */
void fcvm_link_serve_generation(struct fcvm_link *l, uint64_t generation);

#endif
