/* SPDX-License-Identifier: MIT */
/*
 * What the host half's files share. All state belongs to the one thread that runs the loop (loop.c): tables, buffers,
 * credentials. What may block is given to the pool (pool.c) as a job; a job touches its own memory and a descriptor
 * that is kept open for it, and comes back to the loop to be answered.
 */
#ifndef FUSEPIPE_HOST_SERVER_H
#define FUSEPIPE_HOST_SERVER_H

#define FUSE_USE_VERSION 314
#include <fuse3/fuse_lowlevel.h>
#include <pthread.h>
#include <stdbool.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "fusepipe/abi.h"
#include "fusepipe/control.h"
#include "fusepipe/counters.h"
#include "fusepipe/host/host.h"

struct server;
struct lock_owner;

/* ---- buffers (stream.c) ---- */

/* Bytes data[start] .. data[end - 1]; mapped, so that what was never touched costs nothing. */
struct bytes {
	char *data;
	size_t start, end, capacity;
	size_t high; /* the furthest that was used since memory was last given back */
};

struct stream {
	int fd;
	uint32_t events; /* epoll's, as registered */
	struct bytes in, out;
	bool ended;
	bool left; /* the guest has said that it is over */
	unsigned owes_paused, owes_quiet; /* how many PAUSED and QUIET are to come */
};

/* ---- nodes (node.c) ---- */

struct node {
	int fd;              /* O_PATH; -1: shelved, or not there; see node_fd() */
	bool known;          /* to the guest; else free */
	bool closed;         /* the host's kernel's own: to be looked at from outside (node_path()) */
	bool unlisted;       /* not to be found by (dev, ino) any more: that is another file now */
	uint32_t generation;
	uint32_t next;       /* of the hash chain, or of the free list */
	uint32_t handles;
	uint32_t reading, writing; /* handles that the guest does not know of (data.c); 0 */
	uint64_t lookups;
	uint64_t dev, ino;
	uint32_t type;       /* S_IFMT */
	struct timespec kept_mtime; /* of the contents at the last open: unchanged, the guest may keep its pages */
	int64_t kept_size;
	struct lock_owner *owners;  /* POSIX lock owners (lock.c) */
	struct file_handle *shelved; /* malloc'ed: what to open it by (shelf.c) */
	struct place *place; /* malloc'ed: where it was when the state was saved that this server goes on from (shelf.c) */
	uint64_t used_at;   /* the turn in which its descriptor was last used */
};

struct place {
	uint64_t born_s;
	uint32_t born_ns; /* 0 and 0: not known */
	char path[];      /* beneath the root; "": nowhere */
};

enum { NODES_OPEN = 65536 /* where others can be shelved; each holds a file of the host in its memory, above 1 KiB */ };

struct nodes {
	struct node **chunks;
	uint32_t size, used, free, max;
	uint32_t open, max_open, hand; /* descriptors, and where the search for those to shelve goes on */
	uint32_t *buckets;
	uint32_t mask;
};

/* ---- open files and folders (handle.c) ---- */

struct handle {
	int fd; /* -1: free */
	uint32_t generation;
	uint32_t next;  /* of the free list, or of data.c's writers */
	uint32_t node;  /* its index */
	uint32_t jobs;  /* that use fd now */
	int64_t at;     /* of a folder: where the descriptor stands */
	int64_t used_at; /* when; of those of data.c */
	bool stays;     /* to write by, and not to be had again: none of data.c's writers any more */
	bool folder;
	bool released;  /* close when the last job is done */
	bool lost;      /* in use without a descriptor: its file was gone when the state was loaded */
	uint8_t flock;  /* LOCK_SH, LOCK_EX: held, or taken for held by the guest (see lock_range); 0 */
};

struct handles {
	struct handle **chunks;
	uint32_t size, used, free, lost;
};

/* ---- what is not opened by the guest (data.c) ---- */

struct data {
	uint32_t open, max, hand; /* those that stay, and where the search for those to close goes on */
	uint32_t writers;
	int64_t looked_at; /* the writers, for idle ones */
};

/* ---- jobs (pool.c) ---- */

struct job {
	struct job *next;
	struct job *with; /* done together with it: run by the first one's run (sync.c) */
	struct stream *stream;
	fuse_req_t req;   /* NULL: answered raw, to `unique` */
	uint64_t unique;
	uint32_t opcode;
	int64_t began;            /* when its request was taken */
	uint32_t handle, handle2; /* indices, 0: none */
	int fd, fd2;
	void (*run)(struct job *j);                 /* in the pool: sets result (a count or -errno) */
	void (*answer)(struct server *s, struct job *j); /* in the loop; NULL: result as an error or success */
	int64_t result;
	int64_t a, b, c;  /* run's arguments */
	uint32_t flags;
	bool fsetid;      /* what run does leaves set-id bits alone */
	int64_t ran;      /* 0; if this is to be measured, -1, and then how long */
	size_t size;
	char *data;       /* malloc'ed with the job */
};

struct pool {
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	struct job *first, **last;         /* to be run; by mutex */
	struct job *done, **done_last;     /* to be answered; by mutex */
	unsigned threads, idle, queued;    /* by mutex */
	bool stop;                         /* by mutex */
	pthread_t thread[16];
	int event;                         /* an eventfd: `done` is not empty */
	unsigned pending;                  /* the loop's: jobs not yet answered */
	size_t pending_bytes;
};

/* ---- fsync (sync.c) ---- */

struct sync {
	int fd;              /* of the file system; -1: each by itself */
	bool in_memory;      /* there is nothing to wait for */
	bool running;        /* a group; the next one gathers */
	struct job *first, **last;
	unsigned count;
	int64_t began;       /* the group that runs */
	int64_t not_before;  /* is there to be another group */
};

/* ---- locks (lock.c) ---- */

/* A part of a file that an owner has locked: from start to end, both in it. */
struct lock_range {
	struct lock_range *next;
	int64_t start, end;
	int type;
	bool lost; /* the guest takes it for its own, and somebody had it when the state was loaded */
};

struct lock_owner {
	struct lock_owner *next;
	uint64_t owner;
	uint64_t handle; /* by which it was last asked for */
	uint32_t pid;    /* in the guest, of the last who locked */
	int fd, mode;    /* -1: not yet; O_ACCMODE */
	struct lock_range *ranges;
};

enum {
	WAITERS_MAX = 4096,
	INTERRUPTS = 1024, /* most are of what was answered already, and push those out that still wait for theirs */
};

struct waiter {
	struct waiter *next;
	struct stream *stream;
	fuse_req_t req;
	int64_t began;
	int flock; /* its operation, or 0: POSIX */
	bool interrupted; /* and could not be told yet */
	struct flock lock;
	struct fuse_in_header header; /* the message, to be served again by a server that goes on */
	struct fuse_lk_in in;
};

/* ---- standing still (control.c) ---- */

enum phase {
	WAITING, /* for the first streams */
	RUNNING,
	PAUSING, /* PAUSE was sent: until all have PAUSED and all is answered */
	ENDING,  /* END was sent: until all are QUIET */
	QUIET,
};

struct control {
	int fd;
	enum phase phase;
	uint32_t pause;  /* the command that is replied to when all is quiet; 0: none */
	bool ended;
	int fds[FCVM_FUSE_MAX_STREAMS]; /* of an ATTACH under way */
	unsigned nfds;
};

/* A message that waits for its streams, of a state that was loaded. */
struct replay {
	struct replay *next;
	unsigned stream;
	struct {
		struct fuse_in_header header;
		struct fuse_lk_in in;
	} message;
};

struct server {
	struct fcvm_fuse_volume volume;
	bool privileged;     /* callers' ids are taken on */
	struct fuse_session *session;
	uint64_t init_flags; /* as negotiated */
	uint64_t init_unique;
	struct nodes nodes;
	struct handles handles;
	struct data data;
	struct pool pool;
	struct sync sync;
	struct waiter *waiters;
	struct replay *replays;
	unsigned nwaiters, nowners, nranges;
	uint64_t interrupted[INTERRUPTS]; /* that came before what they interrupt, a ring */
	unsigned ninterrupted;

	/* credentials as they stand */
	uint32_t fsuid, fsgid;
	mode_t umask;
	bool fsetid;
	uint64_t root_dev;
	uint64_t turn;   /* counts messages and answers */
	int shelf;       /* the root, as open_by_handle_at(2) wants it; -1: nothing can be shelved */
	unsigned max_open; /* descriptors of nodes, as far as the limit goes */

	struct fuse_init_in init; /* as the guest sent it */
	struct control control;
	struct fcvm_fuse_counters *counters;
	int64_t now;     /* when the message that is served was taken */
	int64_t turn_at; /* and what came with it was read */
	struct traces *traces;
	bool tracing;    /* some are under way */
	int traces_fd;
	void (*note)(const char *text);

	int epoll;
	struct job *late;        /* done, without room for their answers */
	struct stream *streams;  /* FCVM_FUSE_MAX_STREAMS */
	unsigned nstreams, open_streams;
	struct stream *current;              /* where replies go; NULL: nowhere */
	const struct fuse_in_header *message; /* the one being served; NULL in a job's answer */
};

/* node.c: by id, NULL if there is none such. The root is 1 and always there. */
int nodes_init(struct server *s, int root_fd, const struct stat *st);
void nodes_done(struct server *s);
struct node *node_get(struct server *s, uint64_t id);
struct node *node_at(struct nodes *t, uint32_t index);
uint64_t node_id(const struct nodes *t, uint32_t index);
uint32_t node_index(uint64_t id);
/* Takes fd (also on failure). One more lookup of the node that is (st->dev, st->ino). Its index, or -errno. */
int64_t node_know(struct server *s, int fd, const struct stat *st);
int nodes_room(struct server *s); /* for one more; 0 or -ENFILE */
void node_forget(struct server *s, uint64_t id, uint64_t lookups);
void node_put(struct server *s, uint32_t index); /* frees it if nothing holds it */
/* Its O_PATH descriptor, good for this turn; -ESTALE if the file is gone, -EACCES if it is closed, -ENFILE, or -errno. */
int node_fd(struct server *s, struct node *n);
int node_path(struct server *s, struct node *n); /* the same, closed or not: to tell its attributes */

/* For a state that is loaded: so many slots, none in use; then those that are; then the rest are free. */
int nodes_reserve(struct server *s, uint32_t size, const uint32_t *generations);
int node_restore(struct server *s, uint32_t index, const struct node *n); /* takes what it points to, also on failure */
void nodes_restored(struct server *s);

/* shelf.c */
void shelf_open(struct server *s, int root_fd);
int shelf_make_room(struct server *s);                     /* for one more descriptor; 0 or -ENFILE */
int shelf_take(struct server *s, struct node *n);          /* a descriptor of it, not yet its own; or -errno */
bool shelf_is(struct server *s, const struct node *n, int fd); /* whether fd is the very file that was shelved */
struct file_handle *shelf_handle(int fd);                  /* malloc'ed; NULL: there is none */
struct place *shelf_place(struct server *s, int fd);       /* malloc'ed; NULL when out of memory */

/* handle.c: ids as nodes'. */
int64_t handle_new(struct server *s, int fd, uint32_t node, bool folder); /* takes fd; the id, or -errno */
struct handle *handle_get(struct server *s, uint64_t id, bool folder);
struct handle *handle_at(struct handles *t, uint32_t index);
uint32_t handle_index(uint64_t id);
void handle_release(struct server *s, uint64_t id);
void handle_unused(struct server *s, uint32_t index); /* one job less */
void handles_done(struct server *s);
/* As the nodes'. fd -1: the file is gone. */
int handles_reserve(struct server *s, uint32_t size, const uint32_t *generations);
int handle_restore(struct server *s, uint32_t index, const struct handle *h);
void handles_restored(struct server *s);
/* Of a message by a lost handle: -ESTALE, or 1 if all it wanted was to close it. 0: it is none such. */
int handle_lost(struct server *s, const struct fuse_in_header *h);

/* data.c */
bool data_unopened(const struct server *s); /* files are not opened nor closed by messages: their handles are 0 */
int data_flags(const struct server *s, int flags); /* what a guest's open flags may ask of the host */
enum data_use { DATA_READ, DATA_WRITE, DATA_ANY, DATA_FOLDER };
/* The handle of a message; of one that has none (0) the node's own, made if need be, and *fh its id. NULL, and errno. */
struct handle *data_handle(struct server *s, uint64_t ino, uint64_t *fh, enum data_use use);
void data_made(struct server *s, uint64_t ino, int fd, int flags); /* takes fd, of a file that was made */
void data_drop(struct server *s, struct node *n, bool writing);    /* what stays of its handles and no job uses */
void data_step(struct server *s);                                  /* after each turn: those to write by, if idle */

/* control.c */
int control_open(struct server *s, int fd);
void control_turn(struct server *s);             /* there is something to read */
bool control_message(struct server *s, struct stream *st, const struct fuse_in_header *h); /* whether it was one */
void control_step(struct server *s);             /* after each turn */
void control_end(struct server *s, int r, const struct fcvm_err *err); /* the setting up failed (r < 0), or is done */
void control_done(struct server *s);
bool control_goes_on(const struct server *s);    /* streams or not */

/* loop.c */
int stream_open(struct server *s, struct stream *st, int fd); /* takes fd, also on failure */
void stream_end(struct server *s, struct stream *st);
/* Frees what a server has beside its streams, its owner's control, traces and counters. */
void server_parts_done(struct server *s);

/* save.c, load.c */
int state_save(struct server *s, int fd, struct fcvm_err *err);
int state_load(struct server *s, int fd, struct fcvm_err *err);
void state_replay(struct server *s); /* the streams are there */
void note(struct server *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* count.c */
int count_open(struct server *s, int fd);
void count_done(struct server *s);
/* Serves one message of the stream, and counts it. As session_take(). */
int count_take(struct server *s, struct stream *st, void *message, size_t size);
/* A request that was not answered at once has been, with what is in the stream from `from` on. fs: what the host's file
 * system took of the time, where that was measured. */
struct answered {
	uint64_t unique;
	uint32_t opcode;
	int64_t began, fs;
};
void count_answer(struct server *s, struct stream *st, size_t from, const struct answered *a);
void count_trace(struct server *s, uint32_t opcode, int64_t total, int64_t fs, int64_t to_srv, int64_t to_cli); /* -1: ? */
void count_state(struct server *s, enum fcvm_fuse_counters_state state);

/* trace.c */
void trace_message(struct server *s, const struct fuse_in_header *h);
void trace_answered(struct server *s, struct stream *st, uint64_t unique, uint32_t opcode, int64_t fs);
void trace_forget(struct server *s); /* the guest's clock may be another now */
void trace_done(struct server *s);

/* cred.c */
void cred_take(struct server *s, const struct fuse_ctx *caller); /* creations are the caller's from here on */
void cred_fsetid(struct server *s, bool on);                     /* whether set-id bits survive what comes */
bool cred_powers(struct server *s, bool on);                      /* false: what the caller's ids alone permit; true: all again */
bool cred_thread_fsetid(bool on);                                 /* the same for a thread of the pool */
bool cred_mapped(const struct server *s); /* ids are translated, so the guest's root is none of the host's */
uint32_t uid_to_guest(const struct server *s, uint32_t uid);
uint32_t gid_to_guest(const struct server *s, uint32_t gid);
bool uid_to_host(const struct server *s, uint32_t uid, uint32_t *ret);
bool gid_to_host(const struct server *s, uint32_t gid, uint32_t *ret);

/* policy.c: which operations are sent at all, and what replies allow the guest to keep. */
uint64_t policy_init_flags(const struct server *s, uint64_t offered);
void policy_entry(const struct server *s, struct fuse_entry_param *e);
double policy_attr_timeout(const struct server *s);
int policy_open(struct server *s, struct node *n, int fd, bool *ret_keep_cache); /* 0, or -errno: not this file */
void policy_changed(struct server *s, uint64_t node); /* what the guest knows of its attributes is old */

/* sandbox.c: *ret_root is the folder, O_PATH; no system call filter yet. */
int sandbox_enter(struct server *s, int *ret_root, struct fcvm_err *err);
int sandbox_confine(struct server *s, struct fcvm_err *err);

/* session.c */
int session_open(struct server *s, struct fcvm_err *err);
void session_close(struct server *s);
/* One message of the current stream. 0, or -EBADMSG. */
int session_take(struct server *s, void *message, size_t size);
/* A reply made by hand, to what libfuse does not know. */
void session_reply(struct server *s, uint64_t unique, int error, const void *body, size_t size);
struct server *server_of(fuse_req_t req);

/* pool.c */
int pool_init(struct pool *p);
void pool_done(struct server *s);
/* A job on handles that are there (0: none), with room for `size` bytes; NULL when out of memory. */
struct job *job_new(struct server *s, fuse_req_t req, uint64_t handle, size_t size);
void job_second(struct server *s, struct job *j, uint64_t handle);
void job_start(struct server *s, struct job *j);
bool pool_full(const struct server *s);
struct job *pool_take_all(struct pool *p); /* what is done, a list */
void job_answer(struct server *s, struct job *j);

/* sync.c */
void sync_open(struct server *s, int root_fd);
/* A job on an open file, to be started or answered: with `written`, of a write that has put so many bytes; 0: an fsync's. */
void sync_wait(struct server *s, struct job *j, bool datasync, size_t written);
int sync_ms(const struct server *s); /* until sync_step() is to be called, whatever comes; -1: not */
void sync_step(struct server *s); /* after each turn: starts what has gathered */
void sync_done(struct server *s); /* before the pool is */

/* stream.c */
int bytes_init(struct bytes *b);
void bytes_done(struct bytes *b);
int stream_read(struct stream *st);
int stream_flush(struct stream *st);
bool stream_room(const struct stream *st); /* for one more reply of any size */
void *stream_payload(struct stream *st);   /* where the next reply's payload would be */
void stream_reply(struct stream *st, const struct iovec *iov, int count);
void stream_trim(struct stream *st);
/* A message of control.h. False: the guest has not read as many before. */
bool stream_control(struct stream *st, int32_t code, const void *body, size_t size);

/* lock.c */
/* What an owner had; 1: not all, somebody else has it. That is saved again, for a server that finds it free. */
int lock_restore(struct server *s, struct node *n, const struct lock_owner *from);
void lock_owner_gone(struct server *s, struct node *n, uint64_t owner);
void lock_handle_gone(struct server *s, struct node *n, uint64_t handle);
void lock_node_gone(struct server *s, struct node *n);
void lock_retry(struct server *s);
void lock_interrupt(struct server *s, uint64_t unique);
void lock_done(struct server *s);

/* ops_*.c, lock.c: each puts its operations in. */
void ops_names(struct fuse_lowlevel_ops *ops);
void ops_attributes(struct fuse_lowlevel_ops *ops);
void ops_files(struct fuse_lowlevel_ops *ops);
void ops_folders(struct fuse_lowlevel_ops *ops);
void ops_locks(struct fuse_lowlevel_ops *ops);
/* Those of messages that libfuse does not know; each answers. */
void op_setxattr_ext(struct server *s, const struct fuse_in_header *h);
void op_statx(struct server *s, const struct fuse_in_header *h);
void op_tmpfile(struct server *s, const struct fuse_in_header *h);
void op_syncfs(struct server *s, const struct fuse_in_header *h);
void op_copy_64(struct server *s, const struct fuse_in_header *h);

/* ops_name.c */
int node_open_beneath(struct server *s, struct node *parent, const char *name, uint64_t flags, mode_t mode); /* fd or -errno */
int node_reopen(struct server *s, struct node *n, int flags); /* the file itself, from its O_PATH descriptor; fd or -errno */
int entry_of(struct server *s, int fd, struct fuse_entry_param *e); /* one more lookup; takes fd, also on failure */
int entry_by_name(struct server *s, struct node *parent, const char *name, struct fuse_entry_param *e);
void stat_to_guest(const struct server *s, struct stat *st);
/* See data_flags(): O_APPEND and O_SYNC go by each write, O_DIRECT is about the guest's cache. */
enum { OPEN_FLAGS = O_ACCMODE | O_NOATIME };

#endif
