/* SPDX-License-Identifier: MIT */
/*
 * A server's saved state (save.c, load.c): this header, then what its counts say, in this order, each record at a multiple
 * of 8 bytes. Of this machine's byte order, as the guest's memory is.
 *
 * Files are told by file handle (name_to_handle_at(2)) where there is one, and by their path beneath the root; times and
 * offsets are the guest's or the host's own and not here.
 */
#ifndef FUSEPIPE_HOST_STATE_H
#define FUSEPIPE_HOST_STATE_H

#include <linux/fuse.h>
#include <stdint.h>

#define STATE_MAGIC "fcvmVOL"

enum { STATE_VERSION = 2, STATE_MAX = 1 << 30 };

struct state_header {
	char magic[8];
	uint32_t version;
	uint32_t header_size;
	uint64_t size;  /* of all */
	uint64_t check; /* of what follows the header */
	uint64_t root_ino;
	uint64_t root_lookups;
	uint64_t init_flags; /* as negotiated; 0: it was not */
	struct fuse_init_in init;
	uint32_t streams;
	uint32_t node_slots, handle_slots; /* that many uint32_t of generations each come first */
	uint32_t nodes, handles, owners, waiters;
	uint32_t reserved;
};

enum { STATE_UNLISTED = 1, STATE_ELSEWHERE = 2 /* not on the root's file system: dev counts */ };

struct state_node {
	uint32_t index, type;
	uint64_t lookups, dev, ino;
	int64_t kept_s, kept_ns, kept_size;
	uint64_t born_s;
	uint32_t born_ns;
	uint32_t flags;
	int32_t handle_type;
	uint32_t handle_size; /* bytes of the file handle that follow; 0: none */
	uint32_t path_size;   /* and of the path, with its NUL */
	uint32_t reserved;
};

struct state_handle {
	uint32_t index, node;
	uint32_t flags; /* open(2)'s */
	uint8_t folder, flock, lost, reserved;
};

struct state_owner {
	uint64_t owner;
	uint64_t handle; /* its id, by which the owner last asked */
	uint32_t node, pid;
	uint32_t ranges; /* that many follow */
	uint32_t reserved;
};

struct state_range {
	int64_t start, end;
	uint64_t type;
};

struct state_waiter {
	uint64_t stream;
	struct fuse_in_header header;
	struct fuse_lk_in in;
};

static inline uint64_t state_check(const void *data, uint64_t size)
{
	const unsigned char *p = data;
	uint64_t h = 0xcbf29ce484222325ULL, word;

	/* By words: it is torn files that are to be found. */
	for (; size >= sizeof word; size -= sizeof word, p += sizeof word) {
		__builtin_memcpy(&word, p, sizeof word);
		h = (h ^ word) * 0x9e3779b97f4a7c15ULL;
		h ^= h >> 29;
	}
	for (; size; size--)
		h = (h ^ *p++) * 0x100000001b3ULL;
	return h;
}

#endif
