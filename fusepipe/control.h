/* SPDX-License-Identifier: MIT */
/*
 * What the two halves of a volume tell each other in the stream, between the kernel's messages and framed like those
 * (host/host.h). The kernel never sees these. To the host they are requests of these opcodes; to the guest, replies with
 * `unique` 0 and one of these in `error`, where the kernel's own notifications have a small number.
 *
 * Standing still, so that a snapshot can be taken. The host sends PAUSE on every stream. A reader that has it takes no
 * more requests from its device and sends PAUSED behind its last one. When PAUSED has come on every stream and all
 * requests are answered, except locks that wait for their turn (they are part of the host's state), the host sends END
 * behind the last reply of every stream; the guest answers QUIET when it has given the kernel all that was before it.
 * After the last QUIET nothing is in flight, in either direction, and the host's state is the volume's. A stream that
 * ends while it is quiet means nothing: its guest may have been restored somewhere; the reader waits for the next
 * connection. A stream that ends otherwise is the end of the mount: callers get ENOTCONN. RESUME on every stream, the same
 * or a new one, goes on. It may come at any time, also before PAUSED or QUIET was sent, and to one that does not stand still;
 * but every PAUSE on a stream has one PAUSED as its answer there, and every END one QUIET, so that the host can tell a late
 * one from that to another.
 *
 * Streams belong to readers by number: a reply must go to the device that gave the request. So what a host sends first
 * is struct fcvm_fuse_greeting. A stream that is no connection, but a device of the guest's, is its reader's from the
 * beginning, and outlives a restore; each new host greets on it.
 *
 * Traces. Of every Nth request the guest says so by TRACE in front of it; the host, if it wants any, sends TRACE back behind
 * the reply, and the guest closes with TRACED. So the host has all times and does the arithmetic: four stamps, two of either
 * clock, tell the clocks' difference as NTP does.
 */
#ifndef FUSEPIPE_CONTROL_H
#define FUSEPIPE_CONTROL_H

#include <stdint.h>

enum fcvm_fuse_to_guest { /* fuse_out_header.error, with unique 0 */
	FCVM_FUSE_PAUSE = 0x10001,
	FCVM_FUSE_END = 0x10002,
	FCVM_FUSE_RESUME = 0x10003,
	FCVM_FUSE_TRACE_BACK = 0x10004, /* u64 unique of the request */
	FCVM_FUSE_GREETING = 0x10005,   /* struct fcvm_fuse_greeting is this message */
};

enum fcvm_fuse_to_host { /* fuse_in_header.opcode */
	FCVM_FUSE_PAUSED = 0x46430001,
	FCVM_FUSE_QUIET = 0x46430002,
	FCVM_FUSE_TRACE = 0x46430003,  /* struct fcvm_fuse_trace, `received` and `delivered` 0 */
	FCVM_FUSE_TRACED = 0x46430004, /* struct fcvm_fuse_trace */
	FCVM_FUSE_LEFT = 0x46430005,   /* the mount has ended; nothing follows. A device tells its other end of no end */
};

/* Nanoseconds of the guest's CLOCK_MONOTONIC. */
struct fcvm_fuse_trace {
	uint64_t unique;
	uint64_t dequeued;  /* the request was read from the device */
	uint64_t received;  /* the reply was read from the stream */
	uint64_t delivered; /* the device has taken it */
};

struct fcvm_fuse_order { /* as struct fuse_out_header */
	uint32_t len;
	int32_t error;
	uint64_t unique;
};
#define FCVM_FUSE_ORDER(what) ((struct fcvm_fuse_order){.len = sizeof(struct fcvm_fuse_order), .error = (what)})

struct fcvm_fuse_greeting {
	struct fcvm_fuse_order order;
	uint32_t reader; /* 0 ... */
	uint32_t zero;
};
#define FCVM_FUSE_GREETING_TO(number) \
	((struct fcvm_fuse_greeting){ \
		.order = {.len = sizeof(struct fcvm_fuse_greeting), .error = FCVM_FUSE_GREETING}, .reader = (number)})

/* The pump's address in its guest: "unix:@" and this, with the volume's number; by vsock FCVM_WIRE_VSOCK_STREAMS + that
 * number; a virtio port of the name FCVM_WIRE_PORT_STREAM, with that number, is its first reader's stream. */
#define FCVM_FUSE_ADDRESS "fcvm-volume-%u"

#endif
