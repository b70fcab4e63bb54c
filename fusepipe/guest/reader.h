/* SPDX-License-Identifier: MIT */
/* What pump.c (threads, connections) and reader.c (one reader's turns) share. */
#ifndef FUSEPIPE_GUEST_READER_H
#define FUSEPIPE_GUEST_READER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pump {
	int stop;         /* an eventfd that every thread watches: readable once it is over */
	_Atomic int why;  /* of the end: the first -errno of a thread; 0: it goes on. -ENODEV: unmounted */
	bool reconnects;  /* there is a listener */
	unsigned patience_ms; /* with a reader that has no stream */
	unsigned trace_rate;
};

/* Bytes data[start] .. data[end - 1], messages padded to 8. */
struct side {
	char *data;
	size_t start, end, high;
};

enum phase {
	READER_RUNS,
	READER_PAUSED, /* has said PAUSED: takes nothing from its device */
	READER_QUIET,  /* has said QUIET: its stream may end and another come */
};

/* In an event: of a stream that has not become the reader's yet. */
enum { READER_OFFERED = 1 << 16 };

/* All of the thread that gives it its turns, but for epoll and offered, by which reader_offer() hands over a stream. */
struct reader {
	const struct pump *pump;
	unsigned number;
	int epoll;          /* of its thread; borrowed. Events carry (number | READER_OFFERED) << 32 | the descriptor */
	int device, stream; /* stream -1: none yet, or none while it is quiet */
	_Atomic int offered; /* a stream that waits for its turn to become the reader's; -1: none */
	bool active;         /* it had a turn since this was made false */
	bool had_stream;
	int64_t alone_ns;    /* when it last became one without a stream */
	enum phase phase;
	struct side requests, replies;
	unsigned waiting; /* requests that have no reply yet */
	uint32_t device_events, stream_events; /* as registered */
	bool device_watched;
	/* traces */
	uint64_t taken;    /* requests from the device */
	uint64_t received; /* when the stream was read last; ns */
	uint64_t replied;  /* unique of the last reply */
	uint64_t delivered; /* when the device had taken that */
};

/* 0 or -errno; in either case to be given to reader_done(). The device is taken. */
int reader_init(struct reader *r, const struct pump *p, unsigned number, int epoll, int device);
/* Tells the host that the mount has ended, if that can be told at once. */
void reader_leave(struct reader *r);
/* Closes what is left. */
void reader_done(struct reader *r);
/* A stream for it, from any thread; taken, also on failure. It may find no need of it and close it. 0 or -errno. */
int reader_offer(struct reader *r, int stream);
/* Before its first turn. 0 or -errno. */
int reader_begin(struct reader *r);
/* What epoll has told of one of its descriptors; it may be closed by now. 0, or -errno: it is over, for all readers. */
int reader_turn(struct reader *r, bool offered, int fd, uint32_t events);
/* Whether it waits for a stream; how long it may: 0, or why it is over now. For its thread. */
bool reader_alone(const struct reader *r);
int reader_patience(const struct reader *r);
/* It has buffers that reader_trim() would give back; to be called when it has had nothing to do for a while. */
bool reader_used(const struct reader *r);
void reader_trim(struct reader *r);
/* It is over, for all of them. why: -errno; the first counts. */
void pump_end(struct pump *p, int why);

#endif
