/* SPDX-License-Identifier: MIT */
/*
 * The host half of a volume: serves one host folder to the streams of a guest, with the kernel's FUSE ABI as the
 * protocol and libfuse3's low-level API behind fcvm_fuse_validate().
 *
 * A stream (both ways): messages as the guest's /dev/fuse gives and takes them, each begins at a multiple of 8
 * bytes; what is between is zero. A reply goes out on the stream that brought its request.
 */
#ifndef FUSEPIPE_HOST_HOST_H
#define FUSEPIPE_HOST_HOST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* `count` ids from `guest` on are those from `host` on. */
struct fcvm_fuse_ids {
	uint32_t guest, host, count;
};

enum { FCVM_FUSE_MAX_IDS = 340 }; /* of a map: as many as a user namespace may have */

struct fcvm_fuse_volume {
	const char *folder;
	bool readonly;
	bool devices;                     /* a guest may make block and character devices here */
	bool local_locks;                 /* locks exclude within the guest only; then it need not tell of opening and closing */
	const struct fcvm_fuse_ids *uids; /* none: as they are. An id that no entry names is nobody's */
	unsigned nuids;
	const struct fcvm_fuse_ids *gids;
	unsigned ngids;
	double timeout_s;                 /* how long the guest may take names and attributes for granted */
	unsigned max_nodes;               /* files a guest may know of at a time; 0: 1,000,000 */
	int ready_fd;                     /* taken over: gets a byte once all is set up, and its end then or never; -1: none */
};

enum { FCVM_FUSE_MAX_STREAMS = 256 };

/* What a server has that serves for somebody (volume.h). All are taken over; -1: none. */
struct fcvm_fuse_service {
	int control;  /* streams and orders come by it (command.h); its end is the server's */
	int counters; /* a file for struct fcvm_fuse_counters */
	int state;    /* a file with what another server saved, to go on from */
	int traces;   /* gets a line for each request that was traced; what it does not take at once is lost. -1: none is */
	void (*note)(const char *text); /* told what may interest its owner; NULL allowed */
};

/*
 * Serves until all streams are closed, in the calling process, which is changed for good before the first message is
 * read: its own mount namespace rooted at the folder, no new privileges, only the capabilities that serving needs, a
 * system call filter. So call it in a process made for it, single-threaded. The streams (stream sockets or pipe-like
 * fds, made non-blocking) are taken over. As root, callers' ids count; otherwise everything is done as this user.
 *
 * 0 at the end of the streams; -EBADMSG: a guest sent what is no message; or -errno of what could not be set up.
 */
int fcvm_fuse_serve(const struct fcvm_fuse_volume *volume, const int *streams, unsigned nstreams, struct fcvm_err *err);

/* The same for streams that come by service->control, until that ends, or they do while they are not quiet (control.h). */
int fcvm_fuse_serve_for(const struct fcvm_fuse_volume *volume, const struct fcvm_fuse_service *service,
	struct fcvm_err *err);

#endif
