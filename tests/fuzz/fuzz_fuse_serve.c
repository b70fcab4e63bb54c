/* SPDX-License-Identifier: MIT */
/*
 * libFuzzer over the volume's server behind its validator, libfuse included: a guest's messages, in any order, on a
 * folder of its own. The input is a list of small records, of which messages are made that mostly pass the validator,
 * with names and ids that mostly exist. Nothing may be found outside the folder, nothing may leak.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "fusepipe/abi.h"
#include "fusepipe/host/server.h"
#include "fusepipe/validate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static char top[] = "/dev/shm/fcvm-fuzz-XXXXXX", folder[64];

static void require(bool so)
{
	if (!so)
		abort();
}

static void remove_top(void)
{
	fcvm_tree_remove(AT_FDCWD, top);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	const struct rlimit small = {.rlim_cur = 1 << 20, .rlim_max = 1 << 20};
	char path[128];

	/* A fuzzer finds fallocate. */
	setrlimit(RLIMIT_FSIZE, &small);
	require(mkdtemp(top) != NULL);
	atexit(remove_top);
	snprintf(folder, sizeof folder, "%s/volume", top);
	snprintf(path, sizeof path, "%s/secret", top);
	require(!fcvm_file_replace(AT_FDCWD, path, "outside", 7, 0600, false));
	require(!chdir("/proc/self/fd"));
	return 0;
}

static void begin(struct server *s, struct stream *st, int root)
{
	struct stat about;

	/* As the server has it; not at first, for libFuzzer takes the signal then. */
	signal(SIGXFSZ, SIG_IGN);
	*s = (struct server){.volume = {.folder = folder, .timeout_s = 1, .max_nodes = 64}, .umask = -1, .max_open = 16,
		.shelf = -1, .epoll = -1};
	require(!fstat(root, &about));
	s->root_dev = about.st_dev;
	s->privileged = false; /* ids of the process are not the input's to change */
	shelf_open(s, root);
	*st = (struct stream){.fd = -1};
	require(!nodes_init(s, root, &about) && !pool_init(&s->pool) && !bytes_init(&st->in) && !bytes_init(&st->out));
	require(!session_open(s, NULL));
	s->current = st;
}

static void finish(struct server *s, struct stream *st)
{
	pool_done(s);
	lock_done(s);
	session_close(s);
	handles_done(s);
	nodes_done(s);
	bytes_done(&st->in);
	bytes_done(&st->out);
	fcvm_close(s->shelf);
}

struct input {
	const uint8_t *at, *end;
};

static uint8_t byte(struct input *in)
{
	return in->at < in->end ? *in->at++ : 0;
}

/* Replies as the guest would take them; ids of nodes and handles are kept for later messages. */
static void read_replies(struct stream *st, uint64_t *nodes, uint64_t *handles, uint32_t opcode)
{
	struct bytes *b = &st->out;

	while (b->start < b->end) {
		struct fuse_out_header h;
		const char *body = b->data + b->start + sizeof h;
		size_t size;

		require(b->end - b->start >= sizeof h);
		memcpy(&h, b->data + b->start, sizeof h);
		require(h.len >= sizeof h && h.len <= b->end - b->start && h.error <= 0 && h.error > -4096);
		size = h.len - sizeof h;
		require(!memmem(body, size, "outside", 7));
		if (h.unique && !h.error && size >= sizeof(struct fuse_entry_out) &&
			(opcode == FUSE_LOOKUP || opcode == FUSE_CREATE || opcode == FUSE_MKDIR || opcode == FUSE_TMPFILE))
			memcpy(&nodes[h.unique % 8], body, 8);
		if (h.unique && !h.error && (opcode == FUSE_OPEN || opcode == FUSE_OPENDIR))
			memcpy(&handles[h.unique % 8], body, 8);
		if (h.unique && !h.error && opcode == FUSE_CREATE && size > sizeof(struct fuse_entry_out))
			memcpy(&handles[h.unique % 8], body + sizeof(struct fuse_entry_out), 8);
		b->start += (h.len + 7) & ~7UL;
	}
	b->start = b->end = 0;
}

/* Jobs are waited for, so that each input does the same each time. */
static void settle(struct server *s, struct stream *st)
{
	while (s->pool.pending) {
		struct job *next;

		for (struct job *j = pool_take_all(&s->pool); j; j = next) {
			next = j->next;
			job_answer(s, j);
		}
	}
	s->current = st;
	lock_retry(s);
	s->current = st;
}

static size_t put_name(char *to, struct input *in)
{
	static const char *const names[] = {"a", "b", "c", "d", "link", "user.x", "..", "a/b", "system.posix_acl_access", ""};
	const char *name = names[byte(in) % 10];

	strcpy(to, name);
	return strlen(name) + 1;
}

static void one_message(struct server *s, struct stream *st, struct input *in, uint64_t *nodes, uint64_t *handles)
{
	union {
		struct fuse_in_header h;
		uint64_t words[512];
		char bytes[4096];
	} m = {.h = {.opcode = byte(in) % (FCVM_FUSE_OPCODES + 2), .unique = 8 + byte(in)}};
	char *body = (char *)(&m.h + 1);
	uint8_t shape = byte(in);
	size_t fixed = (shape % 8) * 8, size = 0;

	if (m.h.opcode == FUSE_INIT)
		return;
	m.h.nodeid = nodes[byte(in) % 8];
	m.h.uid = byte(in);
	/* The first word of a body is a handle more often than not. */
	for (; size < fixed; size++)
		body[size] = size < 8 || shape & 64 ? 0 : (char)byte(in);
	if (fixed >= 8 && shape & 64)
		memcpy(body, &handles[byte(in) % 8], 8);
	else if (fixed >= 8)
		memcpy(body, &nodes[byte(in) % 8], 8);
	for (unsigned i = 0; i < (shape & 64 ? 4U : 0U) && fixed > 8; i++)
		body[8 + byte(in) % (fixed - 8)] = (char)byte(in);
	if (shape & 8)
		size += put_name(body + size, in);
	if (shape & 16)
		size += put_name(body + size, in);
	if (shape & 32) {
		size_t more = byte(in);

		/* Payload, with the count where WRITE has it. */
		memset(body + size, 'p', more);
		if (fixed >= 24)
			memcpy(body + 16, &(uint32_t){(uint32_t)more}, 4);
		size += more;
	}
	m.h.len = sizeof m.h + size;
	if (session_take(s, &m, m.h.len) == 0)
		settle(s, st);
	read_replies(st, nodes, handles, m.h.opcode);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct {
		struct fuse_in_header h;
		struct fuse_init_in in;
	} init = {{.len = sizeof init, .opcode = FUSE_INIT, .unique = 7},
		{.major = 7, .minor = 45, .flags = 0xffffffff, .flags2 = 0xffffffff}};
	uint64_t nodes[8] = {1, 1, 1, 1, 1, 1, 1, 99}, handles[8] = {0};
	struct input in = {data, data + size};
	struct server s;
	struct stream st;
	char path[80];
	int root;

	require(!mkdir(folder, 0755));
	snprintf(path, sizeof path, "%s/link", folder);
	require(!symlink("../secret", path));
	root = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
	begin(&s, &st, root);
	require(session_take(&s, &init, sizeof init) == 0 && s.init_flags);
	read_replies(&st, nodes, handles, FUSE_INIT);
	while (in.at < in.end)
		one_message(&s, &st, &in, nodes, handles);
	finish(&s, &st);
	require(!fcvm_tree_remove(AT_FDCWD, folder));
	return 0;
}
