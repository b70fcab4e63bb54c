/* SPDX-License-Identifier: MIT */
/*
 * fuse-protocol - what the protocol costs a message, as JSON: ns, median, min and max of ROUNDS rounds. "mix": framing and
 * validator over requests as a build sends them (lookups most, then getattr, open, read, write of 4 KiB, release);
 * "opcodes": the validator alone, each opcode alone; "reply": the server puts a reply into its stream, a read's payload
 * being there already; "socket": such a reply written to a socket and read from its other end, by one thread.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/until.h"
#include "fusepipe/abi.h"
#include "fusepipe/host/server.h"
#include "fusepipe/validate.h"

enum { ROUNDS = 15, MESSAGES = 50000, TRIPS = 2000, MIX = 16 };

struct message {
	struct fuse_in_header h;
	char body[8192];
};

struct kind {
	uint32_t opcode;
	uint32_t fixed; /* bytes of the body before the names */
	const char *name, *second;
};

#define FIXED(type) sizeof(struct type)
static const struct kind kinds[] = {
	{FUSE_LOOKUP, 0, "fuse_protocol.c"}, {FUSE_FORGET, FIXED(fuse_forget_in)}, {FUSE_GETATTR, FIXED(fuse_getattr_in)},
	{FUSE_SETATTR, FIXED(fuse_setattr_in)}, {FUSE_READLINK, 0}, {FUSE_SYMLINK, 0, "name", "../there/it.is"},
	{FUSE_MKNOD, FIXED(fuse_mknod_in), "fifo"}, {FUSE_MKDIR, FIXED(fuse_mkdir_in), "folder"}, {FUSE_UNLINK, 0, "object.o"},
	{FUSE_RMDIR, 0, "folder"}, {FUSE_RENAME, FIXED(fuse_rename_in), "object.o.tmp", "object.o"},
	{FUSE_LINK, FIXED(fuse_link_in), "second"}, {FUSE_OPEN, FIXED(fuse_open_in)}, {FUSE_READ, FIXED(fuse_read_in)},
	{FUSE_WRITE, FIXED(fuse_write_in)}, {FUSE_STATFS, 0}, {FUSE_RELEASE, FIXED(fuse_release_in)},
	{FUSE_FSYNC, FIXED(fuse_fsync_in)}, {FUSE_GETXATTR, FIXED(fuse_getxattr_in), "security.capability"},
	{FUSE_LISTXATTR, FIXED(fuse_getxattr_in)}, {FUSE_REMOVEXATTR, 0, "user.color"}, {FUSE_FLUSH, FIXED(fuse_flush_in)},
	{FUSE_OPENDIR, FIXED(fuse_open_in)}, {FUSE_READDIR, FIXED(fuse_read_in)}, {FUSE_RELEASEDIR, FIXED(fuse_release_in)},
	{FUSE_FSYNCDIR, FIXED(fuse_fsync_in)}, {FUSE_GETLK, FIXED(fuse_lk_in)}, {FUSE_SETLK, FIXED(fuse_lk_in)},
	{FUSE_SETLKW, FIXED(fuse_lk_in)}, {FUSE_CREATE, FIXED(fuse_create_in), "fuse_protocol.c.o.tmp"},
	{FUSE_INTERRUPT, FIXED(fuse_interrupt_in)}, {FUSE_FALLOCATE, FIXED(fuse_fallocate_in)},
	{FUSE_READDIRPLUS, FIXED(fuse_read_in)}, {FUSE_RENAME2, FIXED(fuse_rename2_in), "object.o.tmp", "object.o"},
	{FUSE_LSEEK, FIXED(fuse_lseek_in)}, {FUSE_COPY_FILE_RANGE, FIXED(fuse_copy_file_range_in)},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static void make(struct message *m, const struct kind *k)
{
	char *at = m->body + k->fixed;

	*m = (struct message){.h = {.opcode = k->opcode, .unique = 2, .nodeid = 1}};
	if (k->name)
		at = stpcpy(at, k->name) + 1;
	if (k->second)
		at = stpcpy(at, k->second) + 1;
	if (k->opcode == FUSE_WRITE) {
		((struct fuse_write_in *)m->body)->size = 4096;
		at += 4096;
	}
	m->h.len = (uint32_t)(at - (char *)m);
	if (fcvm_fuse_validate(m, m->h.len)) {
		fprintf(stderr, "fuse-protocol: no message: %s\n", fcvm_fuse_opcode_name(k->opcode));
		exit(1);
	}
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void print(const char *before, const char *name, double ns[ROUNDS])
{
	qsort(ns, ROUNDS, sizeof *ns, by_value);
	printf("%s\"%s\": {\"median\": %.2f, \"min\": %.2f, \"max\": %.2f}", before, name, ns[ROUNDS / 2], ns[0], ns[ROUNDS - 1]);
}

/* `which` holds MIX messages. */
static void requests(const char *before, const char *name, struct message *const *which, bool frame)
{
	double ns[ROUNDS];

	for (unsigned round = 0; round < ROUNDS; round++) {
		int64_t from = fcvm_now_ns();

		for (unsigned i = 0; i < MESSAGES; i++) {
			const struct message *m = which[i % MIX];

			if ((frame && fcvm_fuse_frame(m, sizeof *m) != (int)m->h.len) || fcvm_fuse_validate(m, m->h.len))
				abort();
		}
		ns[round] = (double)(fcvm_now_ns() - from) / MESSAGES;
	}
	print(before, name, ns);
}

static void put_reply(struct stream *st, size_t size, const void *body)
{
	struct fuse_out_header h = {.len = (uint32_t)(sizeof h + size), .unique = 2};
	struct iovec iov[2] = {{&h, sizeof h}, {body ? (void *)body : stream_payload(st), size}};

	stream_reply(st, iov, 2);
}

static void replies(const char *before, const char *name, struct stream *st, size_t size, const void *body)
{
	double ns[ROUNDS];

	for (unsigned round = 0; round < ROUNDS; round++) {
		int64_t from = fcvm_now_ns();

		for (unsigned i = 0; i < MESSAGES; i++) {
			put_reply(st, size, body);
			st->out.end = 0;
		}
		ns[round] = (double)(fcvm_now_ns() - from) / MESSAGES;
	}
	print(before, name, ns);
}

static void through(struct stream *st, int other, size_t size)
{
	static char to[FCVM_FUSE_MAX_MESSAGE];
	size_t rest;

	put_reply(st, size, NULL);
	rest = st->out.end;
	if (stream_flush(st) != 1)
		abort();
	while (rest) {
		ssize_t n = read(other, to, rest);

		if (n <= 0)
			abort();
		rest -= (size_t)n;
	}
}

static void sockets(const char *before, const char *name, struct stream *st, size_t size)
{
	double ns[ROUNDS];
	int pair[2], room = 4 << 20;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) ||
		setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room))
		setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	st->fd = pair[0];
	for (unsigned round = 0; round < ROUNDS; round++) {
		int64_t from = fcvm_now_ns();

		for (unsigned i = 0; i < TRIPS; i++)
			through(st, pair[1], size);
		ns[round] = (double)(fcvm_now_ns() - from) / TRIPS;
	}
	print(before, name, ns);
	close(pair[0]);
	close(pair[1]);
}

static struct message *message_of(struct message *m, uint32_t opcode)
{
	while (m->h.opcode != opcode)
		m++;
	return m;
}

int main(void)
{
	static const uint32_t mix[MIX] = {FUSE_LOOKUP, FUSE_GETATTR, FUSE_LOOKUP, FUSE_OPEN, FUSE_LOOKUP, FUSE_READ, FUSE_LOOKUP,
		FUSE_RELEASE, FUSE_LOOKUP, FUSE_GETATTR, FUSE_LOOKUP, FUSE_OPEN, FUSE_GETATTR, FUSE_WRITE, FUSE_READ, FUSE_RELEASE};
	static struct message m[KINDS];
	static struct fuse_attr_out attr;
	struct message *which[MIX];
	struct stream st = {.fd = -1};

	if (bytes_init(&st.out))
		return 1;
	for (unsigned i = 0; i < KINDS; i++)
		make(&m[i], &kinds[i]);
	for (unsigned i = 0; i < MIX; i++)
		which[i] = message_of(m, mix[i]);
	requests("{", "mix", which, true);
	for (unsigned i = 0; i < MIX; i++)
		which[i] = message_of(m, FUSE_LOOKUP);
	requests(", ", "lookup", which, true);
	printf(", \"opcodes\": ");
	for (unsigned i = 0; i < KINDS; i++) {
		for (unsigned j = 0; j < MIX; j++)
			which[j] = &m[i];
		requests(i ? ", " : "{", fcvm_fuse_opcode_name(m[i].h.opcode), which, false);
	}
	replies("}, \"reply\": {", "attr", &st, sizeof attr, &attr);
	replies(", ", "read_4k", &st, 4096, NULL);
	replies(", ", "read_64k", &st, 65536, NULL);
	replies(", ", "read_128k", &st, 131072, NULL);
	sockets("}, \"socket\": {", "attr", &st, sizeof attr);
	sockets(", ", "read_4k", &st, 4096);
	sockets(", ", "read_64k", &st, 65536);
	sockets(", ", "read_128k", &st, 131072);
	printf("}}\n");
	bytes_done(&st.out);
	return 0;
}
