/* SPDX-License-Identifier: MIT */
/*
 * Open files and folders: a descriptor each. Ids as nodes' (node.c); an id that was released finds nothing. Those of a
 * state that was loaded whose file was gone are lost: they answer ESTALE until they are closed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "fusepipe/abi.h"
#include "fusepipe/host/server.h"

enum { CHUNK = 256, MAX = 1 << 20 };

struct handle *handle_at(struct handles *t, uint32_t index)
{
	return &t->chunks[index / CHUNK][index % CHUNK];
}

uint32_t handle_index(uint64_t id)
{
	return (uint32_t)id;
}

static int grow(struct handles *t)
{
	uint32_t nchunks = t->size / CHUNK;
	struct handle **chunks = realloc(t->chunks, (nchunks + 1) * sizeof *chunks);
	struct handle *chunk;

	if (!chunks)
		return -ENOMEM;
	t->chunks = chunks;
	chunk = calloc(CHUNK, sizeof *chunk);
	if (!chunk)
		return -ENOMEM;
	chunks[nchunks] = chunk;
	for (uint32_t i = CHUNK; i-- > 0;) {
		chunk[i].fd = -1;
		/* 0 is no index. */
		if (nchunks || i) {
			chunk[i].next = t->free;
			t->free = nchunks * CHUNK + i;
		}
	}
	t->size += CHUNK;
	return 0;
}

int64_t handle_new(struct server *s, int fd, uint32_t node, bool folder)
{
	struct handles *t = &s->handles;
	struct handle *h;
	uint32_t index;

	if (!t->free && grow(t) < 0) {
		fcvm_close(fd);
		return -ENOMEM;
	}
	index = t->free;
	h = handle_at(t, index);
	t->free = h->next;
	t->used++;
	/* The id is a positive int64_t: generations stay below 2^31. */
	*h = (struct handle){.fd = fd, .generation = h->generation & 0x7fffffff, .node = node, .folder = folder};
	node_at(&s->nodes, node)->handles++;
	return (int64_t)h->generation << 32 | index;
}

struct handle *handle_get(struct server *s, uint64_t id, bool folder)
{
	uint32_t index = (uint32_t)id;
	struct handle *h;

	if (!index || index >= s->handles.size)
		return NULL;
	h = handle_at(&s->handles, index);
	return h->fd >= 0 && !h->released && h->generation == id >> 32 && h->folder == folder ? h : NULL;
}

static void close_handle(struct server *s, uint32_t index)
{
	struct handle *h = handle_at(&s->handles, index);

	lock_handle_gone(s, node_at(&s->nodes, h->node), (uint64_t)h->generation << 32 | index);
	s->handles.lost -= h->lost;
	h->lost = false;
	h->fd = fcvm_close(h->fd);
	h->generation++;
	h->next = s->handles.free;
	s->handles.free = index;
	s->handles.used--;
	node_at(&s->nodes, h->node)->handles--;
	node_put(s, h->node);
}

void handle_release(struct server *s, uint64_t id)
{
	struct handle *h = handle_at(&s->handles, handle_index(id));

	h->released = true;
	if (!h->jobs)
		close_handle(s, handle_index(id));
}

void handle_unused(struct server *s, uint32_t index)
{
	struct handle *h = handle_at(&s->handles, index);

	if (!--h->jobs && h->released)
		close_handle(s, index);
}

void handles_done(struct server *s)
{
	struct handles *t = &s->handles;

	for (uint32_t i = 1; i < t->size; i++)
		if (handle_at(t, i)->fd >= 0 || handle_at(t, i)->lost)
			close_handle(s, i);
	for (uint32_t i = 0; i < t->size / CHUNK; i++)
		free(t->chunks[i]);
	free(t->chunks);
	*t = (struct handles){.size = 0};
}

/* ---- a state that is loaded ---- */

int handles_reserve(struct server *s, uint32_t size, const uint32_t *generations)
{
	struct handles *t = &s->handles;

	if (size > MAX)
		return -EBADMSG;
	while (t->size < size)
		if (grow(t) < 0)
			return -ENOMEM;
	for (uint32_t i = 1; i < size; i++)
		handle_at(t, i)->generation = generations[i] & 0x7fffffff;
	return 0;
}

int handle_restore(struct server *s, uint32_t index, const struct handle *h)
{
	struct handles *t = &s->handles;
	struct handle *to = index && index < t->size ? handle_at(t, index) : NULL;

	if (!to || to->fd >= 0 || to->lost) {
		fcvm_close(h->fd);
		return -EBADMSG;
	}
	*to = (struct handle){.fd = h->fd, .generation = to->generation, .node = h->node, .folder = h->folder,
		.at = -1, .lost = h->fd < 0};
	t->used++;
	t->lost += to->lost;
	node_at(&s->nodes, h->node)->handles++;
	return 0;
}

void handles_restored(struct server *s)
{
	struct handles *t = &s->handles;

	t->free = 0;
	for (uint32_t i = t->size; i-- > 1;) {
		if (handle_at(t, i)->fd >= 0 || handle_at(t, i)->lost)
			continue;
		handle_at(t, i)->next = t->free;
		t->free = i;
	}
}

static struct handle *lost_at(struct server *s, const char *body, size_t at)
{
	uint64_t id;
	uint32_t index;
	struct handle *h;

	memcpy(&id, body + at, sizeof id);
	index = (uint32_t)id;
	if (!index || index >= s->handles.size)
		return NULL;
	h = handle_at(&s->handles, index);
	return h->lost && h->generation == id >> 32 ? h : NULL;
}

int handle_lost(struct server *s, const struct fuse_in_header *h)
{
	const char *body = (const char *)(h + 1);
	struct handle *lost = NULL;

	switch (h->opcode) {
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		lost = lost_at(s, body, offsetof(struct fuse_release_in, fh));
		if (lost)
			close_handle(s, (uint32_t)((const struct fuse_release_in *)body)->fh);
		return lost != NULL;
	case FUSE_READ:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
	case FUSE_WRITE:
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
	case FUSE_FLUSH:
	case FUSE_GETLK:
	case FUSE_SETLK:
	case FUSE_SETLKW:
	case FUSE_LSEEK:
	case FUSE_FALLOCATE:
	case FUSE_IOCTL:
		lost = lost_at(s, body, 0);
		break;
	case FUSE_GETATTR:
		if (((const struct fuse_getattr_in *)body)->getattr_flags & FUSE_GETATTR_FH)
			lost = lost_at(s, body, offsetof(struct fuse_getattr_in, fh));
		break;
	case FUSE_SETATTR:
		if (((const struct fuse_setattr_in *)body)->valid & FATTR_FH)
			lost = lost_at(s, body, offsetof(struct fuse_setattr_in, fh));
		break;
	case FUSE_COPY_FILE_RANGE:
	case FUSE_COPY_FILE_RANGE_64:
		lost = lost_at(s, body, offsetof(struct fuse_copy_file_range_in, fh_in));
		if (!lost)
			lost = lost_at(s, body, offsetof(struct fuse_copy_file_range_in, fh_out));
		break;
	default:
		break;
	}
	return lost ? -ESTALE : 0;
}
