/* SPDX-License-Identifier: MIT */
/*
 * What a volume's server counted: a file that it has mapped, volume-N.counters, written by its loop alone with relaxed
 * stores, to be read by anyone at any time, also after it ended. Times are nanoseconds.
 */
#ifndef FUSEPIPE_COUNTERS_H
#define FUSEPIPE_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

#define FCVM_FUSE_COUNTERS_MAGIC 0x31726e756f43ULL

enum {
	FCVM_FUSE_COUNTERS_VERSION = 1,
	FCVM_FUSE_COUNTED = 64,  /* opcodes; 0: those not known */
	FCVM_FUSE_BUCKETS = 160, /* four to an octave: bucket 4 * log2(t) + the two bits below the first */
};

enum fcvm_fuse_counters_state {
	FCVM_FUSE_STATE_WAITING, /* for its first streams */
	FCVM_FUSE_STATE_RUNNING,
	FCVM_FUSE_STATE_QUIET,
	FCVM_FUSE_STATE_ENDED,
};

struct fcvm_fuse_histogram {
	_Atomic uint64_t bucket[FCVM_FUSE_BUCKETS];
};

struct fcvm_fuse_operation {
	_Atomic uint64_t count, errors, max;
	struct fcvm_fuse_histogram time; /* from when it was taken from the stream to its reply */
};

/* Of the requests that were traced: all of the way, from the device to the server, in the host's file system, back. */
struct fcvm_fuse_traced {
	_Atomic uint64_t count;
	struct fcvm_fuse_histogram total, to_srv, fs, to_cli;
};

struct fcvm_fuse_counters {
	uint64_t magic;
	uint64_t version;
	_Atomic uint64_t state;
	_Atomic uint64_t files, handles;
	_Atomic uint64_t bytes_read, bytes_written;
	struct fcvm_fuse_operation ops[FCVM_FUSE_COUNTED];
	struct fcvm_fuse_traced traced[FCVM_FUSE_COUNTED];
};

static inline unsigned fcvm_fuse_bucket(uint64_t ns)
{
	unsigned log = ns < 4 ? 2 : 63 - (unsigned)__builtin_clzll(ns);
	unsigned bucket = 4 * log + (ns < 4 ? 0 : (unsigned)(ns >> (log - 2) & 3));

	return bucket < FCVM_FUSE_BUCKETS ? bucket : FCVM_FUSE_BUCKETS - 1;
}

/* The middle of a bucket. */
static inline uint64_t fcvm_fuse_bucket_ns(unsigned bucket)
{
	unsigned log = bucket / 4;

	return log < 2 ? 0 : (1ULL << log) + ((2ULL * (bucket % 4) + 1) << log >> 3);
}

#endif
