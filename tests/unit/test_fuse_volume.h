/* SPDX-License-Identifier: MIT */
/* A guest made by hand for a volume's server: messages as a kernel sends them, control messages as its pump does. */
#ifndef FCVM_TESTS_FUSE_VOLUME_H
#define FCVM_TESTS_FUSE_VOLUME_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "check.h"
#include "fusepipe/abi.h"
#include "fusepipe/control.h"
#include "test_fuse.h"

enum { READERS = 2 };

struct guest {
	int fd[READERS]; /* its ends of the streams */
	unsigned at;     /* the reader that asks */
	uint64_t unique;
	struct fuse_out_header h; /* of the last reply */
	char reply[65536];
	size_t reply_size;
	unsigned answers; /* counted while it goes quiet */
};

static inline bool take_reply(struct guest *g, unsigned reader, int ms)
{
	struct pollfd p = {.fd = g->fd[reader], .events = POLLIN};

	if (poll(&p, 1, ms) != 1 || fcvm_fd_read_full(p.fd, &g->h, sizeof g->h))
		return false;
	g->reply_size = g->h.len - sizeof g->h;
	return g->h.len >= sizeof g->h && g->reply_size <= sizeof g->reply &&
		!fcvm_fd_read_full(p.fd, g->reply, (g->reply_size + 7) & ~7UL);
}

static inline void send_message(struct guest *g, unsigned reader, uint64_t unique, uint32_t opcode, uint64_t node,
	const void *body, size_t size)
{
	char message[8192] = {0};
	struct fuse_in_header h = {.len = sizeof h + size, .opcode = opcode, .unique = unique, .nodeid = node};

	memcpy(message, &h, sizeof h);
	if (size)
		memcpy(message + sizeof h, body, size);
	CHECK(fcvm_fd_write_full(g->fd[reader], message, (h.len + 7) & ~7UL) == 0);
}

/* Asks and takes the reply: its error, or -EPIPE: none. Notifications are passed over. */
static inline int call(struct guest *g, uint32_t opcode, uint64_t node, const void *body, size_t size)
{
	uint64_t unique = g->unique += 2;

	send_message(g, g->at, unique, opcode, node, body, size);
	do {
		if (!take_reply(g, g->at, 10000))
			return -EPIPE;
	} while (!g->h.unique);
	CHECK(g->h.unique == unique);
	return g->h.error;
}

static inline int init(struct guest *g)
{
	struct fuse_init_in in = {.major = 7, .minor = 45, .max_readahead = 131072, .flags = 0xffffffff, .flags2 = 0xffffffff};

	return call(g, FUSE_INIT, 0, &in, sizeof in);
}

/* A node id, 0: there is none. */
static inline uint64_t look_up(struct guest *g, uint64_t parent, const char *name)
{
	return call(g, FUSE_LOOKUP, parent, name, strlen(name) + 1) ? 0 : ((struct fuse_entry_out *)g->reply)->nodeid;
}

/* A handle, 0: none; its error is in g->h. */
static inline uint64_t open_node(struct guest *g, uint64_t node, bool folder, int flags)
{
	struct fuse_open_in in = {.flags = flags};

	return call(g, folder ? FUSE_OPENDIR : FUSE_OPEN, node, &in, sizeof in) ? 0 : ((struct fuse_open_out *)g->reply)->fh;
}

static inline int read_node(struct guest *g, uint64_t node, uint64_t fh)
{
	struct fuse_read_in in = {.fh = fh, .size = 4096};

	return call(g, FUSE_READ, node, &in, sizeof in);
}

static inline int release(struct guest *g, uint64_t node, uint64_t fh, bool folder)
{
	struct fuse_release_in in = {.fh = fh};

	return call(g, folder ? FUSE_RELEASEDIR : FUSE_RELEASE, node, &in, sizeof in);
}

static inline struct fuse_lk_in lock_of(uint64_t fh, uint64_t owner, uint32_t type, uint64_t start, uint64_t end)
{
	return (struct fuse_lk_in){.fh = fh, .owner = owner, .lk = {.start = start, .end = end, .type = type, .pid = 7}};
}

static inline int set_lock(struct guest *g, uint64_t node, struct fuse_lk_in lk)
{
	return call(g, FUSE_SETLK, node, &lk, sizeof lk);
}

/* ---- what its pump does ---- */

/* Both ends of its streams; the host's in host. */
static inline void make_streams(struct guest *g, int *host)
{
	for (unsigned i = 0; i < READERS; i++) {
		int pair[2];

		CHECK(fcvm_fd_pair(pair) == 0);
		host[i] = pair[0];
		g->fd[i] = pair[1];
	}
}

/* The next message of each reader is this control message; it answers with `answer`, if that is not 0. */
static inline bool obeys(struct guest *g, int32_t code, uint32_t answer)
{
	for (unsigned i = 0; i < READERS; i++) {
		if (!take_reply(g, i, 10000) || g->h.unique || g->h.error != code)
			return false;
		if (answer)
			send_message(g, i, 0, answer, 0, NULL, 0);
	}
	return true;
}

/* And told to go on. */
static inline bool greeted(struct guest *g)
{
	for (unsigned i = 0; i < READERS; i++) {
		struct fcvm_fuse_greeting greeting;

		if (fcvm_fd_read_full(g->fd[i], &greeting, sizeof greeting) || greeting.order.error != FCVM_FUSE_GREETING ||
			greeting.reader != i)
			return false;
	}
	return obeys(g, FCVM_FUSE_RESUME, 0);
}

/* As obeys(), for one reader; replies that come before are counted. */
static inline bool obeys_after_all(struct guest *g, unsigned reader, int32_t code, uint32_t answer)
{
	do {
		if (!take_reply(g, reader, 10000))
			return false;
		g->answers += g->h.unique && !g->h.error;
	} while (g->h.unique || g->h.error != code);
	send_message(g, reader, 0, answer, 0, NULL, 0);
	return true;
}

/* For a thread: goes quiet when it is told to. */
static inline void *go_quiet(void *arg)
{
	struct guest *g = arg;
	bool well = true;

	for (unsigned i = 0; i < READERS; i++)
		well = well && obeys_after_all(g, i, FCVM_FUSE_PAUSE, FCVM_FUSE_PAUSED);
	for (unsigned i = 0; i < READERS; i++)
		well = well && obeys_after_all(g, i, FCVM_FUSE_END, FCVM_FUSE_QUIET);
	return well ? g : NULL;
}

#endif
