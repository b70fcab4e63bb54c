/* SPDX-License-Identifier: MIT */
/*
 * A volume's server as its owner sees it: the process fcvm-volume, confined to its folder, and what can be asked of it.
 * It ends with its owner or its handle. One call at a time.
 */
#ifndef FUSEPIPE_HOST_VOLUME_H
#define FUSEPIPE_HOST_VOLUME_H

#include "base/json.h"
#include "base/until.h"
#include "fusepipe/host/host.h"
#include "node/node.h"

struct fcvm_volume;

struct fcvm_volume_config {
	struct fcvm_fuse_volume serve; /* ready_fd is not looked at */
	const char *program;           /* the path of fcvm-volume */
	const char *name;              /* for messages: "quiet-heron:/work" */
	int dirfd;                     /* where its files go: counters, log, traces; borrowed */
	unsigned number;               /* of the files: volume-0.counters, volume-0.log */
	const char *state_file;        /* NULL: a new one; else what fcvm_volume_save() wrote */
	bool traces;                   /* what its guest would have traced is */
};

/* Started and waiting for its first streams. local: the node of this host. */
int fcvm_volume_start(struct fcvm_volume **ret, struct fcvm_node *local, const struct fcvm_volume_config *config,
	const struct fcvm_until *until, struct fcvm_err *err);
/* Its streams from now on, which are taken over (also on failure), instead of those before, which must be quiet or ended;
 * greets on each and has the guest go on. */
int fcvm_volume_attach(struct fcvm_volume *v, const int *streams, unsigned nstreams, const struct fcvm_until *until,
	struct fcvm_err *err);
/* Quiet (control.h). After a failure it goes on. */
int fcvm_volume_pause(struct fcvm_volume *v, const struct fcvm_until *until, struct fcvm_err *err);
/* Quiet: its tables into a file made here, by which another server can go on for a guest in the same state. */
int fcvm_volume_save(struct fcvm_volume *v, const char *file, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_volume_resume(struct fcvm_volume *v, const struct fcvm_until *until, struct fcvm_err *err);
/* Readable once its process has ended; borrowed. */
int fcvm_volume_exit_fd(const struct fcvm_volume *v);
pid_t fcvm_volume_pid(const struct fcvm_volume *v);
/* Ends it; NULL allowed. */
void fcvm_volume_free(struct fcvm_volume *v);

/*
 * What a server counted, from its file in a run folder, also while it runs or after it ended, and from any process:
 * { state, ops = { read = { count, errors, p50_us, p99_us, max_us, histogram_ns = [...] }, ... }, bytes_read, bytes_written,
 * files, handles, trace = { read = { count, total = {p50_us, p99_us}, to_srv, fs, to_cli }, ... } }. -ENOENT: none.
 */
int fcvm_volume_counters(int dirfd, unsigned number, struct fcvm_json **ret, struct fcvm_err *err);

#endif
