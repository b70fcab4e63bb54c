/* SPDX-License-Identifier: MIT */
/*
 * The protocol of a link: one reliable byte stream between a host and an agent that carries many independent
 * streams. Pure encoders and parsers on (buf, len); no I/O, no allocation, no libc beyond memcpy and strlen, so
 * that the agent, the host and the fuzzer share them. All integers are little endian.
 *
 * Theory of operation
 *
 * - Every frame is a 16-byte header and at most FCVM_WIRE_MAX_PAYLOAD bytes. Its first byte is never zero; zero
 *   bytes between frames are skipped one by one, so a host that meets an agent in the middle of a frame (its
 *   predecessor died) sends FCVM_WIRE_RESYNC zeros and then HELLO, and is understood whatever was half sent.
 * - HELLO (host) opens the link or takes it over: the agent forgets all streams of the link, answers WELCOME with
 *   the nonce, and only frames after that WELCOME count. If HELLO names another generation than the agent's, the
 *   guest was restored in between: running processes lose their streams and go on. If the same, the last
 *   owner is gone: processes of its lease are killed, folders of its lease removed.
 * - The host opens streams, with ids that only grow. OPEN names an operation; the agent answers each OPEN with
 *   exactly one RESULT (arg: 0 or a positive errno; on failure the payload is a message). Unary operations end
 *   there. The others (SPAWN, GET, PUT, CONNECT, LISTEN, ACCEPT) go on after RESULT 0 with DATA and EOF per
 *   channel, SPAWN, GET and PUT with one EXIT (of GET and PUT: 0 or a positive errno), until CLOSE. The side that wants no more sends CLOSE, the other
 *   answers with its own; frames of unknown streams are dropped.
 * - Channels: 0 towards the agent (stdin), 1 and 2 from it (stdout, stderr), 3 and up both ways (descriptors 3
 *   and up of a spawned program). CONNECT and ACCEPT streams use channel 0 both ways.
 * - EOF ends what its sender sends on a channel. A host's EOF on a channel that only the agent sends on (1, 2) says
 *   that nobody reads it any more: the agent closes it, so the program's next write raises SIGPIPE; frames that
 *   were on their way are dropped. On a terminal it means nothing. A CONNECT or ACCEPT stream whose socket has
 *   ended both ways is closed by the agent.
 * - Credit: per stream, channel and direction the sender may have FCVM_WIRE_WINDOW bytes in flight; CREDIT (arg:
 *   bytes) gives back what the receiver has passed on. Who sends more is in error: a host closes the carrier; an
 *   agent, whose carrier may be a port that cannot be closed, sends a RESULT with EPROTO on stream 0, which no
 *   OPEN has, and obeys nothing until the next HELLO. An agent that cannot hold what all streams together have in
 *   flight ends one of them with CLOSE.
 * - FREEZE: after its RESULT the agent sends nothing on any link until HELLO or THAW; the host has then nothing
 *   in flight either, so a snapshot taken now holds a link at a frame boundary.
 */
#ifndef FCVM_WIRE_WIRE_H
#define FCVM_WIRE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FCVM_WIRE_VERSION     1
#define FCVM_WIRE_MAGIC       0xfc
#define FCVM_WIRE_MAX_PAYLOAD (128u * 1024)
#define FCVM_WIRE_MAX_DATA    (64u * 1024)  /* payload of one DATA frame */
#define FCVM_WIRE_WINDOW      (256u * 1024) /* bytes in flight per stream, channel and direction */
#define FCVM_WIRE_MAX_STREAMS 4096u
#define FCVM_WIRE_MAX_CHANNEL 16u
#define FCVM_WIRE_RESYNC      (FCVM_WIRE_MAX_PAYLOAD + 64u)
#define FCVM_WIRE_PORT_NAME   "fcvm.0" /* the virtio-serial port */
#define FCVM_WIRE_PORT_STREAM "fcvm.volume.%u" /* a volume's, with its number */
#define FCVM_WIRE_VSOCK_PORT  5252u /* vsock: the agent listens on it; and at its start connects to the host's of this number */
#define FCVM_WIRE_VSOCK_STREAMS 652u /* vsock: volumes' pumps listen on it and the next ones; below 1024 only root may */

struct fcvm_wire_header {
	uint8_t magic;
	uint8_t type;    /* enum fcvm_wire_type */
	uint8_t channel; /* of DATA, EOF, CREDIT; else 0 */
	uint8_t reserved;
	uint32_t stream;
	uint32_t length; /* of the payload */
	uint32_t arg;
};
_Static_assert(sizeof(struct fcvm_wire_header) == 16, "on the wire");

enum fcvm_wire_type {
	FCVM_WIRE_HELLO = 1,   /* host: struct fcvm_wire_hello */
	FCVM_WIRE_WELCOME = 2, /* agent: struct fcvm_wire_hello */
	FCVM_WIRE_OPEN = 3,    /* host: arg = enum fcvm_wire_op, payload by operation */
	FCVM_WIRE_RESULT = 4,  /* agent: arg = errno, payload by operation, or a message (not NUL-terminated) */
	FCVM_WIRE_DATA = 5,
	FCVM_WIRE_EOF = 6,
	FCVM_WIRE_CREDIT = 7,  /* arg = bytes */
	FCVM_WIRE_SIGNAL = 8,  /* host: arg = signal number, to the process group */
	FCVM_WIRE_RESIZE = 9,  /* host: arg = rows << 16 | columns */
	FCVM_WIRE_EXIT = 10,   /* agent: arg = exit status, or 0x100 + signal number */
	FCVM_WIRE_CLOSE = 11,
};

enum fcvm_wire_op {
	FCVM_WIRE_PING = 1,      /* payload (at most 4096 bytes) comes back in RESULT */
	FCVM_WIRE_INFO = 2,      /* RESULT: struct fcvm_wire_info */
	FCVM_WIRE_IDENTITY = 3,  /* struct fcvm_wire_identity, string hostname, string machine_id */
	FCVM_WIRE_CLOCK = 4,     /* u64 CLOCK_REALTIME in ns */
	FCVM_WIRE_FREEZE = 5,
	FCVM_WIRE_THAW = 6,
	FCVM_WIRE_POWER = 7,     /* u32: enum fcvm_wire_power; RESULT comes before it takes effect */
	FCVM_WIRE_SPAWN = 8,     /* struct fcvm_wire_spawn and strings; RESULT: u32 pid */
	FCVM_WIRE_GET = 9,       /* string path; channel 1: tree stream (base/tree.h), channel 2: error text; EXIT */
	FCVM_WIRE_PUT = 10,      /* u32 flags (1: keep owner), string path, string base name or empty; channel 0 */
	FCVM_WIRE_CONNECT = 11,  /* string address: "unix:/path", "unix:@name" (abstract) or "tcp:127.0.0.1:80" */
	FCVM_WIRE_LISTEN = 12,   /* string address; the stream lives as long as the listener */
	FCVM_WIRE_ACCEPT = 13,   /* u32 stream of the listener; RESULT when somebody has connected */
	FCVM_WIRE_MKDIR = 14,    /* u32 mode, u32 flags (1: parents, 2: removed when the link ends; EEXIST
	                          * if it was there), string path */
	FCVM_WIRE_RENAME = 15,   /* string from, string to */
	FCVM_WIRE_REMOVE = 16,   /* string path; recursive; a missing one is no error */
	FCVM_WIRE_STAT = 17,     /* string path (not followed); RESULT: struct fcvm_wire_stat */
	FCVM_WIRE_REFLINK = 18,  /* string from, string to: FICLONE, EOPNOTSUPP where the file system cannot */
	FCVM_WIRE_MOUNT = 19,    /* struct fcvm_wire_mount, string source (as /proc/mounts shows it), string target */
	FCVM_WIRE_UNMOUNT = 20,  /* u32 flags (1: now, whoever uses it), string target */
	FCVM_WIRE_ROOT = 21,     /* string path: of a mount, which from now on is, under a tmpfs, the root of the agent and of
	                          * whatever it starts. PID 1 only, once; else EPERM */
};

/* A volume, pumped by a process of its own that listens at FCVM_FUSE_ADDRESS for the agent's connections. RESULT once that
 * is so; a look at the target waits for the host until a stream is connected to each reader. One that is given up before its
 * RESULT is undone. */
enum fcvm_wire_mount_flags {
	FCVM_WIRE_MOUNT_READONLY = 1,
	FCVM_WIRE_MOUNT_PORT = 2, /* the first reader's stream is the port FCVM_WIRE_PORT_STREAM */
};
struct fcvm_wire_mount {
	uint32_t number;
	uint32_t flags;
	uint32_t readers;    /* 1 to 256 */
	uint32_t trace_rate; /* every Nth request; 0: none */
};
_Static_assert(sizeof(struct fcvm_wire_mount) == 16, "on the wire");

enum fcvm_wire_power { FCVM_WIRE_POWEROFF = 0, FCVM_WIRE_REBOOT = 1 };

struct fcvm_wire_hello {
	char magic[8]; /* "FCVMLINK" */
	uint32_t version;
	uint32_t flags;      /* WELCOME: bit 0: the agent is PID 1 */
	uint64_t nonce;      /* chosen by the host, comes back */
	uint64_t generation; /* HELLO: the one the host believes in; WELCOME: the agent's */
};
_Static_assert(sizeof(struct fcvm_wire_hello) == 32, "on the wire");

struct fcvm_wire_info {
	uint64_t generation;
	uint64_t uptime_ns;     /* CLOCK_BOOTTIME */
	uint64_t realtime_ns;
	uint64_t memory_total;  /* bytes */
	uint64_t memory_available;
	uint32_t processors;
	uint32_t streams;       /* open now, all links */
	char version[32];       /* of the agent */
	char hostname[64];
};
_Static_assert(sizeof(struct fcvm_wire_info) == 144, "on the wire");

struct fcvm_wire_identity {
	uint64_t generation;  /* the new one */
	uint64_t realtime_ns;
	uint8_t seed[64];     /* goes into the kernel's random pool, credited, and reseeds it */
};
_Static_assert(sizeof(struct fcvm_wire_identity) == 80, "on the wire");

enum fcvm_wire_spawn_flags {
	FCVM_WIRE_TTY = 1,    /* a pty of rows x columns; channel 0 in, 1 out; no channel 2 */
	FCVM_WIRE_NULL_STDIN = 2,
	FCVM_WIRE_MERGE = 4,  /* stderr into stdout */
	FCVM_WIRE_DETACH = 8, /* not killed when stream or link ends */
	FCVM_WIRE_CLEAR_ENV = 16, /* env replaces the agent's default environment instead of adding to it */
};

struct fcvm_wire_spawn {
	uint32_t flags;
	uint16_t rows;
	uint16_t columns;
	uint32_t channels;    /* descriptors 3 .. 3 + channels - 1 are sockets to the host; at most 8 */
	uint32_t nargv;
	uint32_t nenv;
	/* then strings: cwd (empty: /), user ("", "name", "uid", "uid:gid"), argv..., env... */
};
_Static_assert(sizeof(struct fcvm_wire_spawn) == 20, "on the wire");

struct fcvm_wire_stat {
	uint64_t size;
	int64_t mtime_ns;
	uint32_t mode; /* as st_mode */
	uint32_t uid;
	uint32_t gid;
	uint32_t reserved;
};
_Static_assert(sizeof(struct fcvm_wire_stat) == 32, "on the wire");

/* ---- frames ---- */

/* Encodes a header (16 bytes) at `to`. */
void fcvm_wire_put_header(void *to, enum fcvm_wire_type type, unsigned channel, uint32_t stream,
	uint32_t length, uint32_t arg);

/*
 * Looks for a frame at the front of (buf, size). Returns
 *   > 0: the bytes it takes, *ret filled in and *ret_payload pointing into buf (ret->length bytes);
 *     0: not complete yet; *ret_skip may still be > 0;
 *   -EBADMSG: not a frame (magic, type, channel or length out of bounds, DATA over FCVM_WIRE_MAX_DATA).
 * *ret_skip: the zero bytes at the front that are to be dropped first (the frame starts after them and the
 * return value includes them).
 */
int fcvm_wire_parse(const void *buf, size_t size, struct fcvm_wire_header *ret, const uint8_t **ret_payload,
	size_t *ret_skip);

/* ---- payloads: a cursor that cannot run over; the first failure sticks ---- */

struct fcvm_wire_reader {
	const uint8_t *at;
	const uint8_t *end;
	bool bad;
};

struct fcvm_wire_writer {
	uint8_t *at;
	uint8_t *end;
	bool bad; /* it did not fit */
};

static inline struct fcvm_wire_reader fcvm_wire_reader(const void *buf, size_t size)
{
	return (struct fcvm_wire_reader){buf, (const uint8_t *)buf + size, false};
}
static inline struct fcvm_wire_writer fcvm_wire_writer(void *buf, size_t size)
{
	return (struct fcvm_wire_writer){buf, (uint8_t *)buf + size, false};
}

uint32_t fcvm_wire_get_u32(struct fcvm_wire_reader *r); /* 0 when bad */
uint64_t fcvm_wire_get_u64(struct fcvm_wire_reader *r);
void fcvm_wire_get_bytes(struct fcvm_wire_reader *r, void *to, size_t size); /* zeros when bad */
/* A string is u32 length (without NUL), the bytes, one NUL. Borrowed from the buffer; "" when bad; a NUL inside
 * is bad. */
const char *fcvm_wire_get_string(struct fcvm_wire_reader *r);
/* True if nothing was bad and all of it was read. */
bool fcvm_wire_reader_ok(const struct fcvm_wire_reader *r);

void fcvm_wire_put_u32(struct fcvm_wire_writer *w, uint32_t v);
void fcvm_wire_put_u64(struct fcvm_wire_writer *w, uint64_t v);
void fcvm_wire_put_bytes(struct fcvm_wire_writer *w, const void *from, size_t size);
void fcvm_wire_put_string(struct fcvm_wire_writer *w, const char *s); /* NULL is "" */

#endif
