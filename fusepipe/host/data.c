/* SPDX-License-Identifier: MIT */
/*
 * Files that the guest opens and closes without a word (policy.c: a guest whose locks are its own). Their messages come
 * with no handle; here a node is given one when it is needed: one to read by, which stays, and one to write by.
 *
 * The one to write by is closed when it was not used for a moment: as long as there is one the host cannot execute the
 * file (ETXTBSY), and nobody says when the guest's programs are done with it. One that could not be opened again stays
 * (git makes its packs read-only, and then writes them). Of those that stay there are so many, then those that were not
 * used lately make room: first those to read by.
 */
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/until.h"
#include "fusepipe/abi.h"
#include "fusepipe/host/server.h"

enum {
	IDLE_NS = 10 * 1000 * 1000,
	BATCH = 16, /* one in so many is closed at a time */
};

bool data_unopened(const struct server *s)
{
	return s->init_flags & FUSE_NO_OPEN_SUPPORT;
}

int data_flags(const struct server *s, int flags)
{
	/* A descriptor that serves all who have the file open is of no kind of its own. */
	return flags & (data_unopened(s) ? O_ACCMODE : OPEN_FLAGS);
}

static uint64_t id_of(struct server *s, uint32_t index)
{
	return (uint64_t)handle_at(&s->handles, index)->generation << 32 | index;
}

static void drop(struct server *s, uint32_t *index)
{
	uint32_t dropped = *index;

	if (!dropped || handle_at(&s->handles, dropped)->jobs)
		return;
	*index = 0;
	s->data.open--;
	handle_release(s, id_of(s, dropped));
}

void data_drop(struct server *s, struct node *n, bool writing)
{
	drop(s, &n->reading);
	if (writing && n->writing && handle_at(&s->handles, n->writing)->stays)
		drop(s, &n->writing);
}

static void make_room(struct server *s)
{
	struct nodes *t = &s->nodes;
	uint32_t enough = s->data.max - s->data.max / BATCH - 1;

	for (uint32_t i = 0; i / 2 < t->size && s->data.open > enough; i++) {
		struct node *n;

		s->data.hand = s->data.hand + 1 < t->size ? s->data.hand + 1 : FUSE_ROOT_ID;
		n = node_at(t, s->data.hand);
		if (n->used_at != s->turn)
			data_drop(s, n, i >= t->size);
	}
}

/* Takes fd. 0 or -errno. */
static int keep(struct server *s, uint32_t node, int fd, bool writes)
{
	struct node *n = node_at(&s->nodes, node);
	int64_t id = handle_new(s, fd, node, n->type == S_IFDIR);
	struct handle *h;

	if (id < 0)
		return (int)id;
	h = handle_at(&s->handles, handle_index((uint64_t)id));
	if (writes) {
		n->writing = handle_index((uint64_t)id);
		h->next = s->data.writers;
		s->data.writers = n->writing;
		h->used_at = s->now;
	} else {
		n->reading = handle_index((uint64_t)id);
		s->data.open++;
	}
	return 0;
}

static int open_to(struct server *s, uint32_t node, bool writes)
{
	struct node *n = node_at(&s->nodes, node);
	int fd;

	if (!writes && s->data.open >= s->data.max)
		make_room(s);
	fd = n->type == S_IFDIR && writes ? -EISDIR : node_reopen(s, n, writes ? O_RDWR : O_RDONLY);
	/* Who may write need not be one who may read. */
	if (fd == -EACCES && writes)
		fd = node_reopen(s, n, O_WRONLY);
	return fd < 0 ? fd : keep(s, node, fd, writes);
}

struct handle *data_handle(struct server *s, uint64_t ino, uint64_t *fh, enum data_use use)
{
	const bool folder = use == DATA_FOLDER;
	struct node *n;
	bool writes;
	int r = 0;

	errno = EBADF;
	if (!data_unopened(s))
		return handle_get(s, *fh, folder);
	/* It was given none. */
	if (*fh)
		return NULL;
	n = node_get(s, ino);
	if (!n) {
		errno = ESTALE;
		return NULL;
	}
	n->used_at = s->turn;
	writes = use == DATA_WRITE || (use == DATA_ANY && n->writing);
	if (!(writes ? n->writing : n->reading))
		r = open_to(s, node_index(ino), writes);
	if (r == -EACCES && use == DATA_ANY)
		r = open_to(s, node_index(ino), writes = true);
	if (r) {
		errno = -r;
		return NULL;
	}
	*fh = id_of(s, writes ? n->writing : n->reading);
	handle_at(&s->handles, handle_index(*fh))->used_at = s->now;
	errno = EBADF;
	return handle_get(s, *fh, folder);
}

void data_made(struct server *s, uint64_t ino, int fd, int flags)
{
	if ((flags & O_ACCMODE) == O_RDONLY || node_get(s, ino)->writing)
		fcvm_close(fd);
	else
		keep(s, node_index(ino), fd, true);
}

/* One to write by that was not used for a moment. */
static void retire(struct server *s, uint32_t index)
{
	struct handle *h = handle_at(&s->handles, index);
	struct node *n = node_at(&s->nodes, h->node);

	if (n->lookups && faccessat(n->fd, "", W_OK, AT_EACCESS | AT_EMPTY_PATH)) {
		if (s->data.open >= s->data.max)
			make_room(s);
		h->stays = true;
		s->data.open++;
	} else {
		n->writing = 0;
		handle_release(s, id_of(s, index));
	}
}

void data_step(struct server *s)
{
	uint32_t *at = &s->data.writers;
	int64_t now = *at ? fcvm_now_ns() : 0;

	if (!*at || now - s->data.looked_at < IDLE_NS)
		return;
	s->data.looked_at = now;
	while (*at) {
		uint32_t index = *at;
		struct handle *h = handle_at(&s->handles, index);

		if (h->jobs || now - h->used_at < IDLE_NS) {
			at = &h->next;
			continue;
		}
		*at = h->next;
		retire(s, index);
	}
}
