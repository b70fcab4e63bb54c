/* SPDX-License-Identifier: MIT */
/* What link.c, stream.c, call.c and serve.c share. Functions that end in _locked want the link's
 * lock. */
#ifndef FCVM_NODE_LINK_PRIVATE_H
#define FCVM_NODE_LINK_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/buf.h"
#include "node/link.h"
#include "wire/wire.h"

enum {
	HEADER = sizeof(struct fcvm_wire_header),
	OUT_SOFT = 256 * 1024,      /* above it no pump adds to the output */
	OUT_HARD = 1024 * 1024,     /* above it new operations wait */
	OUT_MAX = 16 * 1024 * 1024, /* an agent that takes nothing: the link is given up */
	BUCKETS = 256,
	CREDIT_STEP = FCVM_WIRE_WINDOW / 4,
	/* The agent keeps room for this many beside what others open through the same port. */
	STREAMS_MAX = FCVM_WIRE_MAX_STREAMS - 64,
};

enum stream_state {
	STREAM_OPENING, /* OPEN is sent */
	STREAM_OPEN,    /* RESULT 0 has come */
	STREAM_ENDED,   /* refused, a call that is done, or CLOSE was sent: no more frames */
};

struct channel {
	int fd;                     /* our end; -1: done */
	struct fcvm_source *source; /* NULL: not watched yet */
	struct fcvm_buf in;         /* from the agent, not taken by fd yet; at most a window */
	uint32_t tx_credit;         /* bytes that we may send */
	uint32_t rx_credit;         /* bytes that the agent may send */
	uint32_t rx_owed;           /* passed on and not credited yet */
	uint8_t id;
	bool two_way;
	bool tx;      /* may send: EOF has not been sent */
	bool rx;      /* EOF has not come */
	bool hung_up; /* the caller has closed its end */
	bool muted;   /* no events wanted */
};

struct client; /* serve.c */
struct relay;

struct fcvm_stream { /* all: link's lock, but what never changes */
	struct fcvm_link *link;
	struct fcvm_stream *next; /* in its bucket */
	uint32_t id;
	unsigned op;
	enum stream_state state;
	int error; /* -errno of a RESULT, once ENDED */
	struct fcvm_buf reply;
	int event;   /* eventfd: RESULT came; then: EXIT came; never changes */
	bool handle; /* somebody of ours refers to it */
	bool exited;
	bool lost; /* it ended without EXIT */
	struct fcvm_exit exit;
	struct relay *relay; /* not NULL: a client's stream; the rest below is unused then */
	unsigned nchannels;
	struct channel channels[];
};

/* Somebody who waits for the link to take operations again; on its stack. */
struct waiter {
	struct waiter *next;
	int event;
};

struct fcvm_link {
	_Atomic unsigned refs;
	struct fcvm_reactor *reactor; /* not used once dead */
	char *name;
	pthread_mutex_t lock;
	/* The reader's: */
	struct fcvm_buf in;
	/* lock: */
	int carrier; /* never changes until the memory goes */
	struct fcvm_source *source;
	bool reading;   /* a caller has the reader's role */
	bool out_waits; /* EPOLLOUT is asked for */
	bool dead;      /* no further frames in or out */
	bool buried;
	bool frozen;   /* the valve: frames gather in `out` */
	bool freezing; /* operations wait, pumps stand, what is there is sent */
	int why;       /* -errno and message of the end */
	char why_text[256];
	struct fcvm_buf out;
	uint32_t next_id;
	unsigned nstreams;
	struct fcvm_stream *streams[BUCKETS];
	struct waiter *waiters;
	/* serve.c */
	struct fcvm_source *listen_source;
	int listen_fd;
	uint64_t serve_generation;
	int spare_fd; /* given up for a moment when there are no descriptors left */
	struct client *clients;
	unsigned nclients;
	bool clients_gone; /* some are to be buried */
	uint64_t next_client;
};

/* ---- link.c ---- */

struct fcvm_link *fcvm_link_ref(struct fcvm_link *l);
void fcvm_link_unref(struct fcvm_link *l);
void fcvm_link_lock(struct fcvm_link *l);
void fcvm_link_unlock(struct fcvm_link *l); /* buries it if it died */
/* Marks it dead; code: -errno. The first reason counts. */
void fcvm_link_end_locked(struct fcvm_link *l, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
int fcvm_link_why_locked(struct fcvm_link *l, const char *what, struct fcvm_err *err);
void fcvm_link_frame_locked(struct fcvm_link *l, unsigned type, unsigned channel, uint32_t stream,
	const void *payload, size_t size, uint32_t arg);
/* Sends what waits, as far as the carrier takes it. */
void fcvm_link_flush_locked(struct fcvm_link *l);
/* Pumps may add to the output. */
static inline bool fcvm_link_has_room(const struct fcvm_link *l)
{
	return !l->dead && !l->frozen && !l->freezing && l->out.size < OUT_SOFT;
}
void fcvm_link_wake_waiters_locked(struct fcvm_link *l);
/* Waits until operations may start. Called and returns with the lock held; on failure err is set.
 */
int fcvm_link_admit_locked(struct fcvm_link *l, const struct fcvm_until *until, const char *what,
	struct fcvm_err *err);

/* Sends OPEN of FREEZE and shuts the valve behind it; -EAGAIN: the carrier did not take all of it.
 */
int fcvm_link_open_freeze_locked(struct fcvm_link *l, uint32_t id);
/* Sends OPEN of THAW, then what gathered behind the valve. */
void fcvm_link_open_thaw_locked(struct fcvm_link *l, uint32_t id);

/* ---- stream.c ---- */

/* Goes on after its RESULT. */
bool fcvm_stream_lasts(unsigned op);
struct fcvm_stream *fcvm_stream_find_locked(struct fcvm_link *l, uint32_t id);
/* Makes one and puts it into the table, with the next id. event and the channels' fds are taken
 * over. */
struct fcvm_stream *fcvm_stream_new_locked(struct fcvm_link *l, unsigned op, int event,
	const struct fcvm_channel_spec *channels, unsigned nchannels);
void fcvm_stream_frame_locked(
	struct fcvm_stream *s, const struct fcvm_wire_header *h, const uint8_t *payload);
/* Sends CLOSE if the agent has it open, closes the channels; freed if there is no handle. */
void fcvm_stream_close_locked(struct fcvm_stream *s);
/* Closes it if nobody and no channel needs it any more; may free it. */
void fcvm_stream_settle_locked(struct fcvm_stream *s);
void fcvm_stream_link_ended_locked(struct fcvm_stream *s); /* as above, for a dead link */
void fcvm_stream_pump_all_locked(struct fcvm_link *l);     /* there is room again */

/* ---- serve.c ---- */

void fcvm_client_frame_locked(
	struct fcvm_stream *s, const struct fcvm_wire_header *h, const uint8_t *payload);
void fcvm_client_bury_locked(struct fcvm_link *l); /* those that are gone */
void fcvm_client_close_all_locked(struct fcvm_link *l);
void fcvm_client_room_locked(
	struct fcvm_link *l); /* the link has room again: read the clients again */

#endif
