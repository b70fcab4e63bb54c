/* SPDX-License-Identifier: MIT */
/* A volume's server in a process of its own, and a guest that is made by hand: whatever it sends, it sends itself. */
#ifndef FCVM_TESTS_FUSE_SERVE_H
#define FCVM_TESTS_FUSE_SERVE_H

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "check.h"
#include "fusepipe/abi.h"
#include "fusepipe/host/host.h"
#include "test_fuse.h"

struct guest {
	int fd;     /* the stream that call() asks by */
	int second; /* -1: there is none */
	pid_t server;
	uint64_t unique;
	char reply[65536];
	size_t reply_size;
};

struct server_how {
	uid_t uid;           /* not 0: it runs as this user, as it does for those who are not root */
	bool two;            /* streams */
	void (*first)(void); /* what it does before it serves; NULL: nothing */
};

static struct server_how how;
static char folder[] = "/tmp/fcvm-fuse-serve-XXXXXX", inside[64];

static inline void start(struct guest *g, const struct fcvm_fuse_volume *v)
{
	struct fcvm_fuse_volume volume = *v;
	int pair[2], more[2] = {-1, -1};

	*g = (struct guest){.unique = 100};
	CHECK(fcvm_fd_pair(pair) == 0 && (!how.two || fcvm_fd_pair(more) == 0));
	volume.folder = inside;
	volume.ready_fd = -1;
	g->server = fork();
	if (!g->server) {
		struct fcvm_err err = FCVM_ERR_INIT;
		int r;

		close(pair[1]);
		fcvm_close(more[1]);
		signal(SIGPIPE, SIG_IGN);
		if (how.uid && (setgroups(0, NULL) || setgid(how.uid) || setuid(how.uid)))
			_exit(3);
		if (how.first)
			how.first();
		r = fcvm_fuse_serve(&volume, (int[]){pair[0], more[0]}, 1 + how.two, &err);
		if (r && r != -EBADMSG)
			fprintf(stderr, "server: %s\n", err.message);
		_exit(r == -EBADMSG ? 9 : r != 0);
	}
	close(pair[0]);
	fcvm_close(more[0]);
	g->fd = pair[1];
	g->second = more[1];
}

/* How the server ended: its exit status, or 1000 and the signal. */
static inline int stop(struct guest *g)
{
	int status;

	close(g->fd);
	fcvm_close(g->second);
	waitpid(g->server, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static inline size_t put(void *to, uint64_t unique, uint32_t opcode, uint64_t node, const void *body, size_t size)
{
	struct fuse_in_header h = {.len = sizeof h + size, .opcode = opcode, .unique = unique, .nodeid = node};

	memset(to, 0, (sizeof h + size + 7) & ~7UL);
	memcpy(to, &h, sizeof h);
	memcpy((char *)to + sizeof h, body, size);
	return (h.len + 7) & ~7UL;
}

static inline bool take_reply(struct guest *g, struct fuse_out_header *h)
{
	struct pollfd p = {.fd = g->fd, .events = POLLIN};

	if (poll(&p, 1, 20000) != 1 || fcvm_fd_read_full(g->fd, h, sizeof *h))
		return false;
	g->reply_size = h->len - sizeof *h;
	return h->len >= sizeof *h && g->reply_size <= sizeof g->reply &&
		!fcvm_fd_read_full(g->fd, g->reply, (g->reply_size + 7) & ~7UL);
}

/* Asks and takes the reply: its error, or -EPIPE: none. */
static inline int call(struct guest *g, uint32_t opcode, uint64_t node, const void *body, size_t size)
{
	char message[8192];
	struct fuse_out_header h;
	uint64_t unique = ++g->unique;

	if (fcvm_fd_write_full(g->fd, message, put(message, unique, opcode, node, body, size)))
		return -EPIPE;
	do {
		if (!take_reply(g, &h))
			return -EPIPE;
	} while (!h.unique); /* notifications */
	CHECK(h.unique == unique);
	return h.error;
}

static inline int init(struct guest *g)
{
	struct fuse_init_in in = {.major = 7, .minor = 45, .max_readahead = 131072, .flags = 0xffffffff, .flags2 = 0xffffffff};

	return call(g, FUSE_INIT, 0, &in, sizeof in);
}

static inline int name_call(struct guest *g, uint32_t opcode, uint64_t node, const char *name)
{
	return call(g, opcode, node, name, strlen(name) + 1);
}

static inline uint64_t found(const struct guest *g)
{
	return ((const struct fuse_entry_out *)g->reply)->nodeid;
}

static inline uint64_t opened(const struct guest *g)
{
	return ((const struct fuse_open_out *)g->reply)->fh;
}

static inline void set_up(void)
{
	char path[128];
	int fd;

	if (!mkdtemp(folder))
		exit(1);
	snprintf(inside, sizeof inside, "%s/volume", folder);
	mkdir(inside, 0755);
	fcvm_file_replace(AT_FDCWD, (snprintf(path, sizeof path, "%s/outside", folder), path), "secret", 6, 0600, false);
	fcvm_file_replace(AT_FDCWD, (snprintf(path, sizeof path, "%s/file", inside), path), "text", 4, 0600, false);
	if (symlink("..", (snprintf(path, sizeof path, "%s/out", inside), path)))
		exit(1);
	mkfifo((snprintf(path, sizeof path, "%s/fifo", inside), path), 0600);
	mkdir((snprintf(path, sizeof path, "%s/dir", inside), path), 0755);
	fd = open((snprintf(path, sizeof path, "%s/big", inside), path), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, 64 << 20))
		exit(1);
	close(fd);
}

#endif
