/* SPDX-License-Identifier: MIT */
/*
 * libFuzzer over the state that a volume's server goes on from. A server with open files, locks and one who waits saves
 * its own; the input edits that, and what is left of it are messages of the guest that goes on. The header's size and
 * check are made right again, or all would end there.
 */
#include <sys/file.h>
#include <sys/mman.h>

#include "fuse.h"
#include "fusepipe/host/state.h"

enum { ROOM = 65536 };

static void ask(struct bare *b, struct guest *g, uint32_t opcode, uint64_t node, const void *body, size_t size)
{
	static uint64_t unique;
	union message m;

	unique = 8 + (unique + 1) % 8;
	message_make(&m, opcode, unique, node, body, size);
	g->opcodes[unique] = (uint8_t)opcode;
	bare_take(b, g, &m);
	/* What was found or opened last is at 0. */
	g->nodes[0] = g->nodes[unique % 8];
	g->handles[0] = g->handles[unique % 8];
}

static void lock(struct bare *b, struct guest *g, uint32_t opcode, uint64_t owner, uint32_t type, uint32_t flags)
{
	const struct fuse_lk_in in = {.fh = g->handles[0], .owner = owner, .lk = {.start = 2, .end = 9, .type = type},
		.lk_flags = flags};

	ask(b, g, opcode, g->nodes[0], &in, sizeof in);
}

/* What the guest had done; its ids are the first of their tables'. */
static void live(struct bare *b, struct guest *g)
{
	struct {
		struct fuse_create_in in;
		char name[8];
	} create = {{.flags = O_RDWR, .mode = S_IFREG | 0644}, "gone"};
	const struct fuse_open_in rdwr = {.flags = O_RDWR}, folder_in = {.flags = O_RDONLY | O_DIRECTORY};
	union message m;

	message_init(&m);
	bare_take(b, g, &m);
	ask(b, g, FUSE_OPENDIR, 1, &folder_in, sizeof folder_in);
	ask(b, g, FUSE_LOOKUP, 1, "link", 5);
	ask(b, g, FUSE_CREATE, 1, &create, sizeof create.in + 5);
	ask(b, g, FUSE_UNLINK, 1, "gone", 5);
	ask(b, g, FUSE_LOOKUP, 1, "a", 2);
	ask(b, g, FUSE_OPEN, g->nodes[0], &rdwr, sizeof rdwr);
	lock(b, g, FUSE_SETLK, 1, F_WRLCK, 0);
	lock(b, g, FUSE_SETLK, 3, LOCK_EX, FUSE_LK_FLOCK);
	lock(b, g, FUSE_SETLKW, 2, F_WRLCK, 0);
}

/* Where in it, and what to do there: a byte is changed, a word is another, bytes go or come. */
static size_t edit(struct guest *g, char *state, size_t size)
{
	static const uint32_t words[] = {0, 1, 2, 3, 255, 256, 257, 4095, 4096, 65536, 0x7fffffff, 0x80000000, 0xffffffff,
		0xfffffff8};
	uint8_t how = byte(g);
	size_t at = (size_t)(byte(g) | byte(g) << 8) % (size + 1), n = how / 4 % 16 * 8;

	switch (how % 4) {
	case 0:
		if (at < size)
			state[at] ^= (char)byte(g);
		return size;
	case 1:
		at &= ~3UL;
		if (at + 4 <= size)
			memcpy(state + at, &words[byte(g) % (sizeof words / sizeof *words)], 4);
		return size;
	case 2:
		n = n < size - at ? n : size - at;
		memmove(state + at, state + at + n, size - at - n);
		return size - n;
	default:
		n = size + n <= ROOM ? n : 0;
		memmove(state + at + n, state + at, size - at);
		for (size_t i = 0; i < n; i++)
			state[at + i] = (char)byte(g);
		return size + n;
	}
}

static size_t save_and_edit(struct guest *g, char *state)
{
	struct state_header *h = (struct state_header *)state;
	int fd = memfd_create("state", MFD_CLOEXEC);
	uint8_t edits, how = byte(g);
	struct bare b;
	ssize_t size;

	bare_begin(&b);
	b.s.volume.local_locks = how & 1;
	live(&b, g);
	require(state_save(&b.s, fd, NULL) == 0);
	bare_end(&b);
	size = pread(fd, state, ROOM, 0);
	fcvm_close(fd);
	require(size > (ssize_t)sizeof *h && size < ROOM);
	for (edits = byte(g) % 8; edits; edits--)
		size = (ssize_t)edit(g, state, (size_t)size);
	if (size < (ssize_t)sizeof *h)
		return (size_t)size;
	h->size = (uint64_t)size;
	h->check = state_check(h + 1, (size_t)size - sizeof *h);
	return (size_t)size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static _Alignas(8) char state[ROOM];
	struct guest g = guest_of(data, size);
	struct fcvm_err err = FCVM_ERR_INIT;
	int fd = memfd_create("state", MFD_CLOEXEC);
	union message m;
	struct bare b;
	int r;

	folder_make();
	require(!fcvm_fd_write_full(fd, state, save_and_edit(&g, state)) && lseek(fd, 0, SEEK_SET) == 0);
	bare_begin(&b);
	b.s.volume.local_locks = size && data[0] & 1;
	r = state_load(&b.s, fd, &err);
	fcvm_close(fd);
	require(r == 0 || (r < 0 && err.message[0]));
	/* As saved it is taken. */
	require(r == 0 || size >= 3);
	if (r == 0 && b.s.nstreams == 1) {
		b.s.current = &b.st;
		state_replay(&b.s);
		bare_settle(&b, &g);
	}
	while (r == 0 && g.at < g.end) {
		guest_asks(&g, &m);
		bare_take(&b, &g, &m);
	}
	bare_end(&b);
	folder_remove();
	return 0;
}
