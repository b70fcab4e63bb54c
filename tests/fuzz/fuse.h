/* SPDX-License-Identifier: MIT */
/*
 * What the fuzzers of the volume's server share: a folder to serve, with a secret beside it, and a guest that is made
 * of the input's bytes: messages that mostly pass the validator, with names and ids that mostly exist.
 */
#ifndef FCVM_TESTS_FUZZ_FUSE_H
#define FCVM_TESTS_FUZZ_FUSE_H

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static char top[] = "/dev/shm/fcvm-fuzz-XXXXXX", folder[64];
static uint64_t secret; /* what stands in the file beside the folder */

static inline void require(bool so)
{
	if (!so)
		abort();
}

static inline void remove_top(void)
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
	fcvm_random(&secret, sizeof secret);
	require(!fcvm_file_replace(AT_FDCWD, path, &secret, sizeof secret, 0600, false));
	/* As the server has it. */
	signal(SIGPIPE, SIG_IGN);
	require(!chdir("/proc/self/fd"));
	return 0;
}

/* A file, and a link to what is outside. */
static inline void folder_make(void)
{
	char path[80];

	require(!mkdir(folder, 0755));
	snprintf(path, sizeof path, "%s/a", folder);
	require(!fcvm_file_replace(AT_FDCWD, path, "inside", 6, 0644, false));
	snprintf(path, sizeof path, "%s/link", folder);
	require(!symlink("../secret", path));
}

static inline void folder_remove(void)
{
	require(!fcvm_tree_remove(AT_FDCWD, folder));
}

/* ---- the guest ---- */

struct guest {
	const uint8_t *at, *end; /* of the input */
	uint64_t nodes[8], handles[8];
	uint8_t opcodes[8 + 256]; /* asked last by that unique */
};

static inline struct guest guest_of(const uint8_t *data, size_t size)
{
	return (struct guest){.at = data, .end = data + size, .nodes = {1, 1, 1, 1, 1, 1, 1, 99}};
}

static inline uint8_t byte(struct guest *g)
{
	return g->at < g->end ? *g->at++ : 0;
}

/* Unseen by the fuzzer, which would learn it and write it itself. */
__attribute__((no_sanitize("coverage"))) static inline bool is_inside(const char *body, size_t size)
{
	for (uint64_t word; size >= sizeof word; body++, size--) {
		memcpy(&word, body, sizeof word);
		if (word == secret)
			return false;
	}
	return true;
}

/* A reply, or a message of control.h. Ids of nodes and handles are kept for later messages. */
static inline void guest_hears(struct guest *g, const struct fuse_out_header *h, const char *body)
{
	size_t size = h->len - sizeof *h;
	uint32_t opcode = h->unique < sizeof g->opcodes ? g->opcodes[h->unique] : 0;

	require(is_inside(body, size));
	if (!h->unique)
		return;
	require(h->error <= 0 && h->error > -4096);
	if (h->error)
		return;
	if (size >= sizeof(struct fuse_entry_out) && (opcode == FUSE_LOOKUP || opcode == FUSE_CREATE ||
		opcode == FUSE_MKDIR || opcode == FUSE_TMPFILE))
		memcpy(&g->nodes[h->unique % 8], body, 8);
	if (opcode == FUSE_OPEN || opcode == FUSE_OPENDIR)
		memcpy(&g->handles[h->unique % 8], body, 8);
	if (opcode == FUSE_CREATE && size > sizeof(struct fuse_entry_out))
		memcpy(&g->handles[h->unique % 8], body + sizeof(struct fuse_entry_out), 8);
}

static inline size_t put_name(char *to, struct guest *g)
{
	static const char *const names[] = {"a", "b", "c", "d", "link", "user.x", "..", "a/b", "system.posix_acl_access", ""};
	const char *name = names[byte(g) % 10];

	strcpy(to, name);
	return strlen(name) + 1;
}

/* Whole, with its padding; asked twice of one unique, only the last counts. */
union message {
	struct fuse_in_header h;
	uint64_t words[512];
	char bytes[4096];
};

static inline void guest_asks(struct guest *g, union message *m)
{
	char *body = (char *)(&m->h + 1);
	uint8_t shape;
	size_t fixed, size = 0;

	*m = (union message){.h = {.opcode = byte(g) % (FCVM_FUSE_OPCODES + 2), .unique = 8 + byte(g)}};
	shape = byte(g);
	fixed = (shape % 8) * 8;
	m->h.nodeid = g->nodes[byte(g) % 8];
	m->h.uid = byte(g);
	/* The first word of a body is a handle more often than not. */
	for (; size < fixed; size++)
		body[size] = size < 8 || shape & 64 ? 0 : (char)byte(g);
	if (fixed >= 8 && shape & 64)
		memcpy(body, &g->handles[byte(g) % 8], 8);
	else if (fixed >= 8)
		memcpy(body, &g->nodes[byte(g) % 8], 8);
	for (unsigned i = 0; i < (shape & 64 ? 4U : 0U) && fixed > 8; i++)
		body[8 + byte(g) % (fixed - 8)] = (char)byte(g);
	if (shape & 8)
		size += put_name(body + size, g);
	if (shape & 16)
		size += put_name(body + size, g);
	if (shape & 32) {
		size_t more = byte(g);

		/* Payload, with the count where WRITE has it. */
		memset(body + size, 'p', more);
		if (fixed >= 24)
			memcpy(body + 16, &(uint32_t){(uint32_t)more}, 4);
		size += more;
	}
	m->h.len = sizeof m->h + size;
	g->opcodes[m->h.unique] = (uint8_t)m->h.opcode;
}

/* A message by hand. */
static inline void message_make(union message *m, uint32_t opcode, uint64_t unique, uint64_t node, const void *body,
	size_t size)
{
	*m = (union message){.h = {.len = sizeof m->h + size, .opcode = opcode, .unique = unique, .nodeid = node}};
	if (size)
		memcpy(&m->h + 1, body, size);
}

static inline void message_init(union message *m)
{
	const struct fuse_init_in in = {.major = 7, .minor = 45, .flags = 0xffffffff, .flags2 = 0xffffffff};

	message_make(m, FUSE_INIT, 7, 0, &in, sizeof in);
}

static inline size_t padded(size_t size)
{
	return (size + 7) & ~7UL;
}

/* ---- a server without its loop ---- */

struct bare {
	struct server s;
	struct stream st;
};

static inline void bare_begin(struct bare *b)
{
	static struct fcvm_fuse_counters counters;
	int root = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct stat about;

	/* As the server has it; not at first, for libFuzzer takes the signal then. */
	signal(SIGXFSZ, SIG_IGN);
	/* Ids of the process are not the input's to change. */
	*b = (struct bare){.s = {.volume = {.folder = folder, .timeout_s = 1, .max_nodes = 64}, .privileged = false,
		.umask = -1, .max_open = 16, .shelf = -1, .sync.fd = -1, .epoll = -1, .nstreams = 1}, .st = {.fd = -1}};
	require(!fstat(root, &about));
	b->s.root_dev = about.st_dev;
	shelf_open(&b->s, root);
	sync_open(&b->s, root);
	require(!nodes_init(&b->s, root, &about) && !pool_init(&b->s.pool) && !session_open(&b->s, NULL));
	require(!bytes_init(&b->st.in) && !bytes_init(&b->st.out));
	b->s.counters = &counters;
	b->s.streams = b->s.current = &b->st;
}

static inline void bare_end(struct bare *b)
{
	server_parts_done(&b->s);
	bytes_done(&b->st.in);
	bytes_done(&b->st.out);
}

/* Jobs are waited for, so that each input does the same each time. Then the guest hears the replies. */
static inline void bare_settle(struct bare *b, struct guest *g)
{
	struct server *s = &b->s;
	struct bytes *out = &b->st.out;

	sync_step(s);
	while (s->pool.pending) {
		struct job *next;

		for (struct job *j = pool_take_all(&s->pool); j; j = next) {
			next = j->next;
			job_answer(s, j);
		}
	}
	lock_retry(s);
	s->current = &b->st;
	while (out->start < out->end) {
		const struct fuse_out_header *h = (const void *)(out->data + out->start);

		require(out->end - out->start >= sizeof *h && h->len >= sizeof *h && h->len <= out->end - out->start);
		guest_hears(g, h, (const char *)(h + 1));
		out->start += padded(h->len);
	}
	out->start = out->end = 0;
}

static inline void bare_take(struct bare *b, struct guest *g, union message *m)
{
	if (count_take(&b->s, &b->st, m, m->h.len) == 0)
		bare_settle(b, g);
}

#endif
