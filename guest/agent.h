/* SPDX-License-Identifier: MIT */
/*
 * The agent: what makes a guest (or any machine) a node. It speaks csrc/wire over its links and runs programs,
 * moves trees and connects sockets for whoever holds a link.
 *
 * Theory of operation
 *
 * - One thread that serves, one epoll. A turn of the loop (agent.c) is: wait; let each event set flags and queue the stream
 *   it belongs to; read each link once and obey its whole frames; pump the queued streams, one chunk per channel,
 *   round robin; write each link's output in as few writes as it takes; free what died. So the frames that one
 *   turn gives rise to leave together, and an event never meets a freed object: closing only closes, memory goes
 *   at the turn's end.
 * - Everything is registered edge-triggered, once, for input only. EPOLLOUT is asked for when a write hit EAGAIN.
 *   A virtio port whose host side is closed reads as end of file and polls as EPOLLHUP for ever: edge-triggered
 *   that costs one wake-up, and the host's return is the next.
 * - Memory is bounded whatever the host does. A link's input and output are fixed arrays (untouched pages cost
 *   nothing). Above OUT_SOFT bytes of output no further request is obeyed and no program's output is taken; what
 *   one request or one pump may add fits in the slack above it. Input for programs is bounded by the window of
 *   each channel and by PENDING_MAX over all.
 * - A link outlives its carriers where those are connections: a snapshot ends every one of them, in the guest that is
 *   restored and in the one that goes on, and none of the guest's programs may notice.
 * - struct stream is an open stream, and the process behind it. When the host lets go of a process that is to
 *   live (DETACH, or the guest was restored), the stream leaves its link but stays as the process's drain: output
 *   is read and dropped, so that the program neither blocks nor dies of SIGPIPE.
 * - Children are reaped by SIGCHLD (signalfd) for all at once, since PID 1 must reap strangers too; a pid is
 *   looked up in by_pid. Between exit and reaping it cannot be reused, so it is safe to signal. Members of the
 *   group that outlive their leader keep the group's number in use; they are remembered for the lease's end.
 * - The loop relays the streams of volumes, so it must not wait for one. What may touch a file system is a job for a
 *   hand (hands.c), a thread that may wait: files, paths of sockets, users, and the start of programs, as vfork holds
 *   the thread until exec has read the program. The loop makes the job and takes what became of it.
 * - Trees are moved, and big ones removed, and volumes mounted, by this very program run anew (--pack, --unpack,
 *   --remove, --mount, --unmount), as processes like any other.
 */
#ifndef FCVM_GUEST_AGENT_H
#define FCVM_GUEST_AGENT_H

#include <stdbool.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/fail.h"
#include "base/proc.h"
#include "wire/wire.h"

enum {
	LINKS = 4,
	HEADER = sizeof(struct fcvm_wire_header),
	OUT_SOFT = 256 * 1024,
	/* The slack holds one DATA frame, and the results of as many pending ACCEPTs as there can be. */
	OUT_SIZE = OUT_SOFT + FCVM_WIRE_MAX_DATA + FCVM_WIRE_MAX_STREAMS * 64 + 16 * 1024,
	IN_SIZE = FCVM_WIRE_MAX_PAYLOAD + 64 * 1024,
	CREDIT_STEP = FCVM_WIRE_WINDOW / 4,
	PENDING_MAX = 32 * 1024 * 1024,
	BUCKETS = 256,
	FOLDERS_MAX = 1024, /* leased ones, of a link */
	MAX_CHANNELS = 8, /* of FCVM_WIRE_SPAWN, beyond the first three */
};

struct agent;
struct job;
struct stream;
LIST_HEAD(stream_list, stream);
TAILQ_HEAD(stream_queue, stream);

/* ---- watches: a descriptor in the epoll set ---- */

struct watch {
	int fd; /* -1: closed */
	int epoll; /* that watches it, if it is registered; borrowed */
	bool registered;
	void (*ready)(struct agent *a, struct watch *w, uint32_t events);
};

int watch_set(struct agent *a, struct watch *w, uint32_t events); /* edge-triggered; 0 or -errno */
void watch_close(struct watch *w);

/* ---- links ---- */

enum carrier {
	CARRIER_PORT,  /* virtio-serial: an end of file means that the host is away */
	CARRIER_VSOCK, /* a connection; the link waits for the next one when it ends (door.c) */
	CARRIER_UNIX,  /* the same */
	CARRIER_FD,    /* an end of file ends the link, and the last one the agent */
};

struct folder { /* of a lease */
	LIST_ENTRY(folder) entry;
	char path[];
};

struct link {
	struct watch watch; /* its carrier; fd -1: there is none now */
	struct agent *agent;
	enum carrier carrier;
	bool readable;   /* a read may bring something */
	bool blocked;    /* a write hit EAGAIN */
	bool out_watched;
	bool stalled;    /* whole frames may be left in `in` because of too much output */
	bool synced;     /* at a frame boundary; else looking for a HELLO */
	bool after_zero; /* while looking: the byte before in_start was zero */
	bool greeted;    /* a HELLO was accepted */
	uint32_t last_stream;
	unsigned nstreams;
	struct stream_list streams[BUCKETS]; /* by id */
	struct stream_queue ready;           /* to be pumped */
	LIST_HEAD(, folder) folders;
	unsigned nfolders; /* at most FOLDERS_MAX */
	size_t in_start, in_end;
	size_t out_start, out_end;
	size_t head_left;   /* bytes left of the frame at out_start, 0: at its header */
	size_t freeze_left; /* while frozen: bytes that may still leave */
	uint8_t in[IN_SIZE];
	uint8_t out[OUT_SIZE];
};

struct agent {
	int epoll;
	struct watch signals;
	bool init;     /* we are PID 1 */
	bool stopping; /* leave the loop */
	bool frozen;
	bool volumes;  /* there was one: only hands touch file systems */
	bool rooted;   /* ROOT has been, or is being, obeyed */
	struct rlimit nofile; /* of programs; its own is higher where it is PID 1 */
	struct watch hands;
	LIST_HEAD(, job) jobs; /* not done yet */
	int power; /* enum fcvm_wire_power to be done once the result is out, or -1 */
	uint64_t generation;
	size_t pending; /* bytes held for programs, all channels */
	unsigned nleft; /* groups without leader in by_pid */
	struct stream_list by_pid[BUCKETS];
	struct stream_queue orphans; /* streams without a link that are to be drained */
	struct stream_list dead;     /* freed at the turn's end */
	struct link *links[LINKS];
	struct door {
		struct watch listener;
		struct watch caller; /* connects to the host */
		struct link *link;   /* whom the connections carry */
		const char *path;    /* of the Unix socket, or NULL; borrowed */
	} door;
};

/* One that nobody carries yet. 0 or -errno. */
int link_new(struct agent *a, enum carrier carrier, struct link **ret);
/* fd, which is non-blocking and taken, carries the link from now on. What its predecessor left half sent is dropped,
 * on both sides; the streams wait for what HELLO says. 0, or -errno and it has no carrier. */
int link_carry(struct link *l, int fd);
void link_lose_carrier(struct link *l);
/* Both in one. */
int link_open(struct agent *a, int fd, enum carrier carrier); /* takes fd; 0 or -errno */
void link_receive(struct link *l);
void link_flush(struct link *l);
void link_close(struct link *l);        /* ends the lease and frees the link */
bool link_has_work(const struct link *l); /* could go on without waiting */
/* Room for output that nobody asked for at this moment. Before its HELLO a host is told nothing. */
static inline bool link_has_room(const struct link *l)
{
	return l->greeted && l->out_end - l->out_start < OUT_SOFT && !l->agent->frozen;
}
/* Where a frame of `size` bytes in all may be built; link_built() then queues what was built. */
uint8_t *link_build(struct link *l, size_t size);
static inline void link_built(struct link *l, size_t size)
{
	l->out_end += size;
}
void link_frame(struct link *l, enum fcvm_wire_type type, unsigned channel, uint32_t stream, uint32_t arg);
void link_result(struct link *l, uint32_t stream, const void *payload, size_t size);
/* code: -errno */
void link_refuse(struct link *l, uint32_t stream, int code, const char *fmt, ...) FCVM_PRINTF(4, 5);
/* The host broke the rules: it is told by a RESULT of stream 0, and nothing counts until it says HELLO anew. */
void link_lose_sync(struct link *l);

/* ---- streams ---- */

/* One descriptor and the channels it carries. */
struct channel {
	struct watch watch;
	struct stream *stream;
	uint8_t source_id, sink_id;
	bool source; /* its bytes go to the host */
	bool sink;   /* the host's bytes go to it */
	enum { CHANNEL_PIPE, CHANNEL_SOCKET, CHANNEL_TTY } type;
	/* source */
	bool readable;
	bool hung_up; /* nobody can write any more */
	bool eof_sent;
	uint32_t credit;
	uint32_t drain; /* once the process has ended: bytes that were still in the pipe */
	/* sink */
	bool blocked; /* a write hit EAGAIN */
	bool eof;     /* the host's; done when pending is empty */
	bool deaf;    /* nobody reads any more: swallow */
	uint8_t eot;  /* TTY: characters of the end of input that are through */
	uint32_t owed;     /* bytes of the window in use */
	uint32_t consumed; /* of them, passed on: to be given back */
	struct fcvm_buf pending;
};

enum stream_kind {
	STREAM_PROCESS,
	STREAM_TRANSFER, /* a process that ends properly when its pipes close */
	STREAM_ERRAND,   /* a process whose end is the RESULT */
	STREAM_JOB,      /* nothing but a job, whose end is the RESULT */
	STREAM_CONNECTING,
	STREAM_SOCKET,
	STREAM_LISTENER,
	STREAM_ACCEPTING,
};

struct stream {
	LIST_ENTRY(stream) by_id; /* or in agent.dead */
	LIST_ENTRY(stream) by_pid;
	TAILQ_ENTRY(stream) ready;
	TAILQ_ENTRY(stream) waiter; /* of ACCEPTING, in its listener */
	struct agent *agent;
	struct link *link;  /* NULL: forgotten by its host */
	struct link *lease; /* whose end kills the process; NULL: nobody's */
	uint32_t id;
	enum stream_kind kind;
	bool queued;
	struct job *job; /* that is to give its RESULT; until then nothing is pumped */
	/* process */
	struct fcvm_proc proc; /* pid 0: none */
	bool exited;           /* and reaped */
	bool exit_sent;
	bool doomed;           /* killed, or its pipes closed: its end is only a matter of time */
	bool group_left;       /* others of its group live on */
	uint32_t status; /* as in FCVM_WIRE_EXIT */
	/* listener, ACCEPTING */
	struct stream *listener;
	struct stream_queue waiters;
	char *path; /* the address; of a Unix listener, the file to be unlinked; of an errand, what it is about */
	/* errand */
	const char *verb;
	int text; /* a pipe with what it says of a failure, once it has exited; -1: nothing */
	unsigned nchannels;
	struct channel channels[];
};

struct stream *stream_new(struct link *l, uint32_t id, enum stream_kind kind, unsigned nchannels);
struct stream *stream_find(struct link *l, uint32_t id);
void stream_queue(struct stream *s);
/* The host lets go of it. kill: the process is ended, unless it was started to be detached. */
void stream_drop(struct stream *s, bool kill);
/* The same from our side, with CLOSE. */
void stream_end(struct stream *s);
/* Frees it once the turn is over, whatever state it is in; of a process only after it was reaped. */
void stream_bury(struct stream *s);
void stream_free_dead(struct agent *a);
/* Pumps what is queued (one round). */
void stream_pump_link(struct link *l);
void stream_pump_orphans(struct agent *a);
void stream_data(struct stream *s, unsigned channel, const uint8_t *data, size_t size);
void stream_eof(struct stream *s, unsigned channel);
void stream_credit(struct stream *s, unsigned channel, uint32_t bytes);

/* channel.c */
void channel_init(struct channel *c, struct stream *s, int fd); /* takes fd, non-blocking */
void channel_source(struct channel *c, uint8_t id);
void channel_sink(struct channel *c, uint8_t id);
int channel_watch(struct channel *c); /* for input */
void channel_close(struct channel *c);
bool channel_pull(struct channel *c); /* one chunk towards the host; true: there may be more */
void channel_push(struct channel *c, const uint8_t *data, size_t size);
void channel_flush(struct channel *c); /* what is pending for the program */
bool channel_discard(struct channel *c);
void channel_return_credit(struct channel *c);
void channel_process_ended(struct channel *c);

/* ---- jobs, and the hands that do them (hands.c) ---- */

struct job {
	LIST_ENTRY(job) entry;     /* in agent.jobs */
	TAILQ_ENTRY(job) waiting;  /* for a hand, or for the loop */
	struct agent *agent;
	struct stream *stream;     /* whose RESULT it is; NULL: nobody's, or its host has let go */
	void (*work)(struct job *j); /* in a hand, where nothing but the job may be touched; sets code, and err if it is < 0 */
	void (*done)(struct job *j); /* in the loop, whatever became of it; the job is freed behind it */
	int code;
	bool starts; /* a process: it is a struct start (start.c) */
	struct fcvm_err err;
	struct fcvm_wire_reader request; /* the job's own copy */
};

/*
 * Makes a job of `size` bytes, the first of which are a struct job and the others zero, for the stream (or NULL), with a
 * copy of what is left of `r` (or NULL). NULL: out of memory; a stream is then refused and buried.
 */
void *job_new(struct agent *a, struct stream *s, size_t size, const struct fcvm_wire_reader *r);
/* The same with a new stream of the kind and so many channels. */
void *job_new_stream(struct link *l, uint32_t id, enum stream_kind kind, unsigned nchannels, size_t size,
	const struct fcvm_wire_reader *r);
/* Has it done: at once where there is no volume, else by a hand. quick: it touches no file system. */
void job_run(struct job *j, bool quick);
/* A done() of those that need no more than their RESULT. */
void job_answer(struct job *j);
int hands_init(struct agent *a); /* 0 or -errno */
/* The root of all that hands do from now on, a descriptor that is kept. */
void hands_set_root(int fd);

/* ---- processes (start.c, process.c), users and environment (user.c) ---- */

void process_open_spawn(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
void process_open_get(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
void process_open_put(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
void process_open_remove(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
/* Runs this program with the arguments (copied; NULL-terminated, at most ERRAND_ARGS); its end is the RESULT: the exit
 * status an errno, its stderr the message. */
enum { ERRAND_ARGS = 8 };
void process_open_errand(struct link *l, uint32_t id, const char *verb, const char *object, const char *const *args);
/* Removes trees by a process of its own that nobody waits for. paths: copied, at most REMOVE_MAX. */
enum { REMOVE_MAX = 64 };
void process_remove(struct agent *a, const char *const *paths, unsigned n);
/* A volume, whoever uses it; the same. */
void process_unmount(struct agent *a, const char *target);
void process_reap(struct agent *a);
void process_ended(struct stream *s, const siginfo_t *si);
/* A process that is still being started may end: then it is remembered (start.c). */
void process_ended_early(struct agent *a, const siginfo_t *si);
void process_doom(struct stream *s);
/* Of an errand whose RESULT nobody gets: if it has mounted something, that goes. */
void process_undo(struct stream *s);
void process_signal(struct stream *s, uint32_t signo);
void process_resize(struct stream *s, uint32_t size);
void process_end_lease(struct link *l, bool kill);

struct user {
	bool set;
	uid_t uid;
	gid_t gid;
	gid_t groups[64];
	unsigned ngroups;
	char name[64];  /* "" if not known */
	char home[256];
};

/* "", "name", "uid" or "uid:gid". 0 or -errno. */
int user_find(const char *what, struct user *ret, struct fcvm_err *err);

/* ---- sockets (socket.c) ---- */

void socket_open_connect(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
void socket_open_listen(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
void socket_open_accept(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
void socket_pump_connecting(struct stream *s);
void socket_pump_listener(struct stream *s);
struct fcvm_address;
int socket_listen(int fd, const struct fcvm_address *address); /* 0 or -errno; a path is its owner's only */

/* ---- files (files.c) ---- */

void files_unlink(struct agent *a, const char *path);

void files_open_mkdir(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
void files_open_rename(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
void files_open_stat(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
void files_open_reflink(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
/* Of what was removed by request. */
void files_forget(struct link *l, const char *path);
/* removed: by worker processes, or, if the agent ends, before this returns. */
void files_end_lease(struct link *l, bool removed, bool last);

/* ---- volumes (volume.c), one as the root (root.c) ---- */

void root_open(struct link *l, uint32_t id, struct fcvm_wire_reader *r);

void volume_open_mount(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
void volume_open_unmount(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
/* The workers: --mount TARGET SOURCE NUMBER FLAGS READERS RATE, --unmount TARGET NOW. 0 or -errno. The first one's pump
 * goes on in a process of its own, which does not return. argv: the program's own, which it may write over. */
int volume_mount(char **argv, struct fcvm_err *err);
int volume_unmount(char **argv, struct fcvm_err *err);

/* ---- where hosts come in (door.c): one of the two, once; 0 or -errno ---- */

int door_open_vsock(struct agent *a);
int door_open_unix(struct agent *a, const char *path); /* borrowed until door_close */
void door_close(struct agent *a);

/* ---- the machine: identity.c, init.c, modules.c, port.c ---- */

void identity_open_info(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
void identity_open_identity(struct link *l, uint32_t id, struct fcvm_wire_reader *r);
void identity_open_clock(struct link *l, uint32_t id, struct fcvm_wire_reader *r);

void init_machine(void);                    /* of PID 1: mounts, modules, network */
void init_power(struct agent *a, int what); /* as PID 1 does not return */
void modules_load(void);
/* Loads what is there for `need:NAME`. 0, also if nothing is (then it is built in, or somebody else's), or -errno. */
int modules_need(const char *name);

bool virtio_has(unsigned kind); /* a device of that kind: VIRTIO_ID_... of linux/virtio_ids.h */
/* The port's non-blocking fd, -ENOENT if it is not there (yet), or -errno. */
int port_open(const char *name);

#endif
