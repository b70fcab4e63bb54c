/* SPDX-License-Identifier: MIT */
/*
 * The node seam: a place where programs run and files are. The local node does these operations by
 * system calls, an agent node by a link to the agent in a guest. Callers cannot tell them apart:
 * every byte stream is a file descriptor of this process, which can be polled, read, written and
 * shut down; behind an agent node the reactor thread pumps between it and the link.
 *
 * Threads: every function may be called from any thread; a process, transfer or listener by one at
 * a time. Blocking: where a `until` is taken, at most until then (NULL: for ever). When an agent
 * node's link ends, pending calls fail with -ECONNRESET within the same second, streams read EOF;
 * what had come in by then for a stream that nobody read, and that its socket did not hold (at most
 * FCVM_WIRE_WINDOW bytes), is lost.
 */
#ifndef FCVM_NODE_NODE_H
#define FCVM_NODE_NODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/proc.h"
#include "base/until.h"

struct fcvm_node;    /* reference counted */
struct fcvm_process; /* a program that the node runs for us, or a transfer */
struct fcvm_listener;

/* ---- nodes ---- */

/* This host. Starts two threads at need: the spawner, from which children are forked (PDEATHSIG
 * follows it), and the reactor. Both end with the last reference. */
int fcvm_node_local(struct fcvm_node **ret, struct fcvm_err *err);

/*
 * A guest, by the byte stream to its agent. Takes ownership of carrier (also on failure). Sends
 * HELLO and waits for WELCOME (retrying with resync), so the agent need not be up yet. local: whose
 * reactor does the pumping; referenced. name: for messages, copied. generation: the one the agent
 * is believed to have (0: just booted).
 */
int fcvm_node_agent(struct fcvm_node **ret, struct fcvm_node *local, int carrier, const char *name,
	uint64_t generation, const struct fcvm_until *until, struct fcvm_err *err);

struct fcvm_node *fcvm_node_ref(struct fcvm_node *n);
void fcvm_node_unref(
	struct fcvm_node *n); /* NULL allowed; the last one closes the link and joins threads */

const char *fcvm_node_name(const struct fcvm_node *n); /* "local" or the agent's */
bool fcvm_node_is_local(const struct fcvm_node *n);
uint64_t fcvm_node_generation(
	const struct fcvm_node *n); /* the agent's at WELCOME or last identity; local: 0 */

/* ---- programs ---- */

struct fcvm_spawn {
	const char *const *argv; /* NULL-terminated */
	const char *const
		*env; /* "NAME=value", added to the node's default environment; NULL: none */
	const char
		*cwd; /* NULL: the node's default ("/" in a guest, unchanged on the local node) */
	const char *user; /* NULL or "": the agent's own; "name", "uid" or "uid:gid" */
	bool null_stdin;  /* stdin is /dev/null */
	bool merge_stderr;
	bool clear_env;
	bool detach; /* outlives this handle */
	bool tty;    /* a pty of rows x columns on stdin and stdout, no stderr */
	unsigned rows, columns;
	unsigned channels; /* further two-way streams: fds 3, 4, ... of the program; at most 8 */
	/* Local node only; an agent node refuses them: */
	const int *inherit; /* fds of this process handed on as fds 3 + channels, ... */
	unsigned ninherit;
};

/* Starts it. The program runs in a process group of its own and dies with the node's lease (local:
 * with this process) unless detached. -ENOENT and the like if it cannot be executed. */
int fcvm_node_spawn(struct fcvm_node *n, const struct fcvm_spawn *spec,
	const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err);

/*
 * Takes a process over that became a child of this one without fcvm_node_spawn (a VMM's copy of itself). Local node
 * only. fds: our ends of its descriptors as fcvm_process_fd tells them, -1: none; taken over, also on failure, as is
 * the process: it is killed then. verb and object: for messages.
 */
int fcvm_node_adopt(struct fcvm_node *local, pid_t pid, const int *fds, unsigned nfds, const char *verb,
	const char *object, struct fcvm_process **ret, struct fcvm_err *err);

/* Our end of its stdin (i = 0), stdout (1), stderr (2), channels (3...): non-blocking, borrowed; -1
 * if there is none or it was closed or taken. For tty, 0 and 1 are two descriptors of
 * one terminal. */
int fcvm_process_fd(const struct fcvm_process *p, unsigned i);
int fcvm_process_take_fd(struct fcvm_process *p, unsigned i); /* now the caller's */
void fcvm_process_close_fd(
	struct fcvm_process *p, unsigned i); /* stdin: the program reads EOF; stdout, stderr: its writes
					      * raise SIGPIPE (not those to a terminal) */
pid_t fcvm_process_pid(const struct fcvm_process *p); /* on its node */
int fcvm_process_exit_fd(
	const struct fcvm_process *p); /* becomes readable when it ended; borrowed */

/* -ETIMEDOUT, -ECANCELED, -ECONNRESET (the node is gone). May be called again with the same answer.
 */
int fcvm_process_wait(struct fcvm_process *p, const struct fcvm_until *until, struct fcvm_exit *ret,
	struct fcvm_err *err);
int fcvm_process_signal(struct fcvm_process *p, int signo, struct fcvm_err *err); /* to its group */
int fcvm_process_resize(
	struct fcvm_process *p, unsigned rows, unsigned columns, struct fcvm_err *err);
/* Kills it if it still runs and is not detached, without waiting for long; closes its streams. NULL
 * allowed. */
void fcvm_process_free(struct fcvm_process *p);

/*
 * Runs a program to its end with the given stdin bytes (NULL: /dev/null, whatever spec says),
 * collecting at most `limit` bytes each of stdout and stderr (what is over is read and dropped,
 * *ret truncated set). On -ETIMEDOUT and -ECANCELED it is killed. Caller frees ret with
 * fcvm_node_output_done.
 */
struct fcvm_output {
	char *out; /* NUL-terminated for convenience */
	size_t out_size;
	char *err;
	size_t err_size;
	struct fcvm_exit exit;
	bool truncated;
};
int fcvm_node_exec(struct fcvm_node *n, const struct fcvm_spawn *spec, const void *input,
	size_t input_size, size_t limit, const struct fcvm_until *until, struct fcvm_output *ret,
	struct fcvm_err *err);
void fcvm_output_done(struct fcvm_output *o);

/* ---- sockets: address "unix:/path", "unix:@abstract-name" or "tcp:ADDRESS:PORT" ---- */

/* A connected stream socket; non-blocking; the caller's. shutdown(SHUT_WR) passes EOF on. */
int fcvm_node_connect(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
	int *ret_fd, struct fcvm_err *err);
/* A Unix socket's file is made with mode 0600 and removed by _free. */
int fcvm_node_listen(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
	struct fcvm_listener **ret, struct fcvm_err *err);
int fcvm_listener_accept(
	struct fcvm_listener *l, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err);
void fcvm_listener_free(struct fcvm_listener *l);

/* ---- files ---- */

/* A transfer in the format of base/tree.h: get: read fd 1, then wait; put: write fd 0, close it,
 * then wait. exit.code is 0 or a positive errno, then the reason is on fd 2 as text. */
int fcvm_node_get(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
	struct fcvm_process **ret, struct fcvm_err *err);
int fcvm_node_put(struct fcvm_node *n, const char *path, const char *base_name, bool keep_owner,
	const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err);

/* Copies a file or folder from one node to another (both may be the same). If `to` is an existing
 * folder the source goes into it by its own name, as cp -a does; `from` ending in "/." or "/"
 * copies its content. */
int fcvm_node_copy(struct fcvm_node *from_node, const char *from, struct fcvm_node *to_node,
	const char *to, const struct fcvm_until *until, struct fcvm_err *err);

/* One regular file to and from memory. ret is malloc'ed and NUL-terminated; more than max bytes:
 * -EFBIG. */
int fcvm_node_read_file(struct fcvm_node *n, const char *path, size_t max,
	const struct fcvm_until *until, char **ret, size_t *ret_size, struct fcvm_err *err);
int fcvm_node_write_file(struct fcvm_node *n, const char *path, const void *data, size_t size,
	mode_t mode, const struct fcvm_until *until, struct fcvm_err *err);

struct fcvm_node_stat {
	uint64_t size;
	int64_t mtime_ns;
	mode_t mode;
	uid_t uid;
	gid_t gid;
};
int fcvm_node_stat(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
	struct fcvm_node_stat *ret, struct fcvm_err *err);
/* The folder gets exactly this mode if it is made. lease: it is removed when the node's lease ends (local: when the
 * node is freed); so one that is there already is -EEXIST then, parents or not. */
int fcvm_node_mkdir(struct fcvm_node *n, const char *path, mode_t mode, bool parents, bool lease,
	const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_node_rename(struct fcvm_node *n, const char *from, const char *to,
	const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_node_remove(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
	struct fcvm_err *err);
int fcvm_node_reflink(struct fcvm_node *n, const char *from, const char *to,
	const struct fcvm_until *until, struct fcvm_err *err);

/* ---- what the node is ---- */

struct fcvm_node_info {
	uint64_t generation;
	int64_t uptime_ns;
	int64_t realtime_ns;
	uint64_t memory_total; /* bytes */
	uint64_t memory_available;
	unsigned processors;
	char version[32];
	char hostname[64];
};
int fcvm_node_info(struct fcvm_node *n, const struct fcvm_until *until, struct fcvm_node_info *ret,
	struct fcvm_err *err);

/* ---- agent nodes only (-EOPNOTSUPP on the local node) ---- */

int fcvm_node_ping(struct fcvm_node *n, const struct fcvm_until *until, struct fcvm_err *err);
struct fcvm_identity {
	uint64_t generation;
	const char *hostname;   /* NULL: unchanged */
	const char *machine_id; /* 32 hexadecimal digits; NULL: unchanged */
};
/* Also sets the clock to this host's and reseeds the random pool. */
int fcvm_node_identify(struct fcvm_node *n, const struct fcvm_identity *id,
	const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_node_set_clock(struct fcvm_node *n, int64_t realtime_ns, const struct fcvm_until *until,
	struct fcvm_err *err);
/* After freeze nothing is in flight in either direction; other calls on the node wait for thaw. */
int fcvm_node_freeze(struct fcvm_node *n, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_node_thaw(struct fcvm_node *n, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_node_power(
	struct fcvm_node *n, bool reboot, const struct fcvm_until *until, struct fcvm_err *err);

/* A volume of the agent's machine (wire.h: MOUNT, UNMOUNT, ROOT). target: made if it is missing. What is mounted is pumped
 * until it is unmounted or its streams end, whoever holds the link. */
struct fcvm_mount {
	unsigned number;
	const char *source;
	const char *target;
	bool readonly;
	bool port; /* its first reader's stream is a virtio port of the guest's (FCVM_WIRE_PORT_STREAM) */
	unsigned readers;
	unsigned trace_rate;
};
int fcvm_node_mount(struct fcvm_node *n, const struct fcvm_mount *m, const struct fcvm_until *until, struct fcvm_err *err);
/* -EBUSY: it is in use; now: it goes all the same, for its users when they leave it. */
int fcvm_node_unmount(struct fcvm_node *n, const char *target, bool now, const struct fcvm_until *until,
	struct fcvm_err *err);
int fcvm_node_switch_root(struct fcvm_node *n, const char *path, const struct fcvm_until *until, struct fcvm_err *err);

/* Ends the link though others still refer to the node: what they wait for fails with -ECONNRESET and this reason. For a
 * carrier that is known to be dead and does not tell. */
void fcvm_node_hang_up(struct fcvm_node *n, const char *why);

/*
 * Lets other processes use this agent: accepts on listen_fd (a listening Unix socket; taken over)
 * until the node goes, and relays their streams as links of their own (WELCOME is answered here,
 * ids are mapped, what a client leaves open is closed when it goes). At most 64 at once. Their
 * freeze, identity, clock and power are refused.
 */
int fcvm_node_serve(struct fcvm_node *n, int listen_fd, struct fcvm_err *err);

/*
 * Drains fd (taken over) into a log file of bounded size beneath dirfd: `name` grows to at most
 * limit / 2, then becomes name.1. Keeps the last 4 KiB in memory. Ends at EOF or when the drain is
 * freed. Local node.
 */
struct fcvm_drain;
int fcvm_node_drain(struct fcvm_node *local, int fd, int dirfd, const char *name, size_t limit,
	struct fcvm_drain **ret, struct fcvm_err *err);
/* With all that was written until now. NUL-terminated; bytes written. */
size_t fcvm_drain_tail(struct fcvm_drain *d, char *to, size_t size);
/* Waits until text is among the last 4 KiB. -ECONNRESET: its end came first, or `also` (-1: none) became readable. One
 * thread at a time, as for await_aside. No error message: the caller knows what was being waited for. */
int fcvm_drain_await(struct fcvm_drain *d, const char *text, int also, const struct fcvm_until *until);
/* From the next line on: those that begin with prefix do not go into the log; the last one is kept, if it has no more
 * than 64 KiB. -ENOMEM. */
int fcvm_drain_set_aside(struct fcvm_drain *d, const char *prefix);
unsigned fcvm_drain_asides(struct fcvm_drain *d); /* how many such lines there were */
/* Waits for more such lines than `seen`: ret is the last one, malloc'ed, without its newline. */
int fcvm_drain_await_aside(
	struct fcvm_drain *d, unsigned seen, int also, const struct fcvm_until *until, char **ret);
void fcvm_drain_free(struct fcvm_drain *d);           /* reads what is still there first */

FCVM_CLEANUP(struct fcvm_node, fcvm_node_unref)
FCVM_CLEANUP(struct fcvm_process, fcvm_process_free)

#endif
