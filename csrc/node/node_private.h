/* SPDX-License-Identifier: MIT */
/* The two kinds of node, process and listener behind node.h. */
#ifndef FCVM_NODE_NODE_PRIVATE_H
#define FCVM_NODE_NODE_PRIVATE_H

#include <poll.h>
#include <stdatomic.h>

#include "node/node.h"
#include "node/reactor.h"

struct node_ops {
	void (*free)(struct fcvm_node *n);
	/* fcvm_until_poll; an agent node reads its link meanwhile. */
	int (*poll)(struct fcvm_node *n, const struct fcvm_until *until, struct pollfd *fds,
		unsigned count);
	int (*spawn)(struct fcvm_node *n, const struct fcvm_spawn *spec,
		const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err);
	int (*connect)(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
		int *ret_fd, struct fcvm_err *err);
	int (*listen)(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
		struct fcvm_listener **ret, struct fcvm_err *err);
	int (*get)(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
		struct fcvm_process **ret, struct fcvm_err *err);
	int (*put)(struct fcvm_node *n, const char *path, const char *base_name, bool keep_owner,
		const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err);
	int (*read_file)(struct fcvm_node *n, const char *path, size_t max,
		const struct fcvm_until *until, char **ret, size_t *ret_size, struct fcvm_err *err);
	int (*write_file)(struct fcvm_node *n, const char *path, const void *data, size_t size,
		mode_t mode, const struct fcvm_until *until, struct fcvm_err *err);
	int (*stat)(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
		struct fcvm_node_stat *ret, struct fcvm_err *err);
	int (*mkdir)(struct fcvm_node *n, const char *path, mode_t mode, bool parents, bool lease,
		const struct fcvm_until *until, struct fcvm_err *err);
	int (*rename)(struct fcvm_node *n, const char *from, const char *to,
		const struct fcvm_until *until, struct fcvm_err *err);
	int (*remove)(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
		struct fcvm_err *err);
	int (*reflink)(struct fcvm_node *n, const char *from, const char *to,
		const struct fcvm_until *until, struct fcvm_err *err);
	int (*info)(struct fcvm_node *n, const struct fcvm_until *until, struct fcvm_node_info *ret,
		struct fcvm_err *err);
};

struct fcvm_node {
	const struct node_ops *ops;
	_Atomic unsigned refs;
	char *name;
};

enum { PROCESS_FDS = 3 + 8 };

struct process_ops {
	/* The process has ended (exit_fd is readable). */
	int (*collect)(struct fcvm_process *p, struct fcvm_exit *ret, struct fcvm_err *err);
	int (*signal)(struct fcvm_process *p, int signo, struct fcvm_err *err);
	int (*resize)(
		struct fcvm_process *p, unsigned rows, unsigned columns, struct fcvm_err *err);
	/* Kills if it must; the common part is freed by the caller. */
	void (*free)(struct fcvm_process *p);
};

struct fcvm_process {
	const struct process_ops *ops;
	struct fcvm_node *node; /* referenced */
	char *what;             /* "exec /bin/true", for messages */
	int fds[PROCESS_FDS];
	bool taken; /* one of the fds was given away */
	bool leaky; /* others may hold its output open: at its end what is there is all */
	bool eot;   /* fd 0 is a terminal: closing it takes a character */
	bool detached;
	bool ended; /* collected: `exit` is valid */
	struct fcvm_exit exit;
	pid_t pid;
	int exit_fd; /* borrowed from the kind */
};

struct fcvm_listener {
	int (*accept)(struct fcvm_listener *l, const struct fcvm_until *until, int *ret_fd,
		struct fcvm_err *err);
	void (*free)(struct fcvm_listener *l);
	struct fcvm_node *node; /* referenced */
	char *address;
};

/* process.c: fills in the common part; the fds are -1. what is copied. 0 or -ENOMEM. */
int fcvm_process_init(struct fcvm_process *p, const struct process_ops *ops, struct fcvm_node *n,
	const char *verb, const char *object);

/* local.c */
/* The reactor, started at need. */
int fcvm_local_reactor(struct fcvm_node *local, struct fcvm_reactor **ret, struct fcvm_err *err);
/* Remembers a folder that goes with the node. */
int fcvm_local_lease(struct fcvm_node *local, const char *path);
void fcvm_local_unlease(struct fcvm_node *local, const char *path);

/* local_process.c: called by local.c on the spawner's thread, and the hand-over in the other
 * direction. */
struct fcvm_local_spawn {
	const struct fcvm_proc_spec *spec;
	struct fcvm_proc *ret;
	struct fcvm_err *err;
	int result;
	bool done;
	struct fcvm_local_spawn *next;
};
int fcvm_local_fork(struct fcvm_node *local, const struct fcvm_proc_spec *spec,
	struct fcvm_proc *ret, struct fcvm_err *err);
/* Reaps it when it ends; takes the pidfd over. killed: it is about to. */
void fcvm_local_reap(struct fcvm_node *local, struct fcvm_proc *p, bool killed);

int fcvm_local_spawn(struct fcvm_node *n, const struct fcvm_spawn *spec,
	const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err);

/* local_socket.c */
int fcvm_local_connect(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
	int *ret_fd, struct fcvm_err *err);
int fcvm_local_listen(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
	struct fcvm_listener **ret, struct fcvm_err *err);

/* local_transfer.c */
int fcvm_local_get(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
	struct fcvm_process **ret, struct fcvm_err *err);
int fcvm_local_put(struct fcvm_node *n, const char *path, const char *base_name, bool keep_owner,
	const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err);

/* local_file.c: the rest of a local node's operations */
int fcvm_local_read_file(struct fcvm_node *n, const char *path, size_t max,
	const struct fcvm_until *until, char **ret, size_t *ret_size, struct fcvm_err *err);
int fcvm_local_write_file(struct fcvm_node *n, const char *path, const void *data, size_t size,
	mode_t mode, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_local_stat(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
	struct fcvm_node_stat *ret, struct fcvm_err *err);
int fcvm_local_mkdir(struct fcvm_node *n, const char *path, mode_t mode, bool parents, bool lease,
	const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_local_rename(struct fcvm_node *n, const char *from, const char *to,
	const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_local_remove(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
	struct fcvm_err *err);
int fcvm_local_reflink(struct fcvm_node *n, const char *from, const char *to,
	const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_local_info(struct fcvm_node *n, const struct fcvm_until *until, struct fcvm_node_info *ret,
	struct fcvm_err *err);

/* transfer.c: read_file and write_file by way of get and put */
int fcvm_transfer_read_file(struct fcvm_node *n, const char *path, size_t max,
	const struct fcvm_until *until, char **ret, size_t *ret_size, struct fcvm_err *err);
int fcvm_transfer_write_file(struct fcvm_node *n, const char *path, const void *data, size_t size,
	mode_t mode, const struct fcvm_until *until, struct fcvm_err *err);

#endif
