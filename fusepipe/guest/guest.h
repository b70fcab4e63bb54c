/* SPDX-License-Identifier: MIT */
/*
 * The guest half of a volume: a mount of the kernel's FUSE, and a pump that carries its messages to the host and back
 * (host/host.h says how a stream looks, control.h what the halves tell each other). It knows nothing of what the
 * messages mean.
 *
 * For the static agent: no library but libc; one process for each volume, so that a slow volume is nobody else's
 * trouble.
 */
#ifndef FUSEPIPE_GUEST_GUEST_H
#define FUSEPIPE_GUEST_GUEST_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"

enum { FCVM_FUSE_MAX_READERS = 256, FCVM_FUSE_LISTENERS = 2 };

/*
 * Mounts on the folder `target`; `source` is what /proc/mounts shows first. Returns the device, to be pumped, or
 * -errno. Before it is pumped every look at the folder waits.
 */
int fcvm_fuse_mount(const char *source, const char *target, bool readonly, struct fcvm_err *err);

struct fcvm_fuse_pump {
	int device;          /* fcvm_fuse_mount()'s; taken */
	unsigned readers;    /* 1 to FCVM_FUSE_MAX_READERS; the first has the device, each further one a clone of it */
	const int *streams;  /* of the first readers; taken. The others' come to the listeners */
	unsigned nstreams;
	int listeners[FCVM_FUSE_LISTENERS]; /* listening sockets, taken, or -1. To one of vsock only the host may connect */
	pid_t peer;          /* who may connect to the others (SO_PEERCRED): this process, as our user; 0: anybody */
	int end_fd;          /* once it is readable, it is over: -ECANCELED; borrowed, or -1 */
	unsigned trace_rate; /* every Nth request of a reader; 0: none */
	unsigned patience_ms; /* for a reader's stream to come; 0: a minute */
};

/*
 * Carries messages until the volume is unmounted (0), or until a stream ends or breaks the rules, or a connection to the
 * device does (-errno): then for all readers, and whatever the kernel still waits for fails with ENOTCONN or
 * ECONNABORTED. But a stream that ends while its reader is quiet (control.h) only makes that wait for the next one, if
 * there are listeners; for `patience_ms`, then it is over as well, with -ETIMEDOUT if there never was one. There are as
 * many threads as readers, but no more than processors. SIGPIPE must be ignored. When it returns all are closed.
 */
int fcvm_fuse_pump(const struct fcvm_fuse_pump *config, struct fcvm_err *err);

#endif
