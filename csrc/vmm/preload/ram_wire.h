/* SPDX-License-Identifier: MIT */
/*
 * What the driver and the preload library in QEMU say to each other, over descriptor FCVM_RAM_CONTROL of QEMU. Fixed
 * width, little endian (the machines we run on are). The library speaks first: one fcvm_ram_hello once guest RAM is
 * mapped. Then each request gets one reply, in order.
 */
#ifndef FCVM_VMM_PRELOAD_RAM_WIRE_H
#define FCVM_VMM_PRELOAD_RAM_WIRE_H

#include <stdint.h>

#define FCVM_RAM_MAGIC   0x4d415246u /* "FRAM" */
#define FCVM_RAM_VERSION 3
#define FCVM_RAM_CONTROL 5
#define FCVM_RAM_PATH    4096

/* QEMU's environment. */
#define FCVM_RAM_ENV_SIZE    "FCVM_RAM_SIZE"    /* bytes, decimal */
#define FCVM_RAM_ENV_PRIVATE "FCVM_RAM_PRIVATE" /* the file's path: map it privately, and open it for reading only */

enum fcvm_ram_mode { FCVM_RAM_IS_SHARED = 1, FCVM_RAM_IS_PRIVATE = 2 };

enum fcvm_ram_command {
	/* Makes the file at path and copies the backing file into it, holes left out. The guest may run if RAM is
	 * mapped privately (the backing file does not change then). */
	FCVM_RAM_COPY = 1,
	/* Writes the pages that differ from the backing file to the file at path, at their offsets. VM paused,
	 * private only. */
	FCVM_RAM_DIRTY = 2,
	/* Maps the backing file privately from now on, whatever it is called by now. VM paused. */
	FCVM_RAM_PRIVATE = 3,
	/* Copies QEMU, as a child of its own parent. VM paused, private only. With the request come five descriptors
	 * (SCM_RIGHTS): the copy's QMP, agent, control, stdout, stderr. The copy says hello on
	 * its own control channel. */
	FCVM_RAM_FORK = 4,
};

#define FCVM_RAM_FORK_FDS 5

struct fcvm_ram_hello {
	uint32_t magic;
	uint32_t version;
	uint32_t mode;
	uint32_t pid; /* QEMU's own */
	uint64_t size;
};
_Static_assert(sizeof(struct fcvm_ram_hello) == 24, "on the wire");

struct fcvm_ram_request {
	uint32_t magic;
	uint32_t command;
	uint32_t id;
	uint32_t path_length; /* the path follows, without a NUL; at most FCVM_RAM_PATH - 1 */
};
_Static_assert(sizeof(struct fcvm_ram_request) == 16, "on the wire");

struct fcvm_ram_reply {
	uint32_t magic;
	uint32_t id;
	int32_t error; /* a positive errno; 0: done */
	uint32_t mode; /* after it */
	uint64_t bytes; /* written */
};
_Static_assert(sizeof(struct fcvm_ram_reply) == 24, "on the wire");

#endif
