/* SPDX-License-Identifier: MIT */
/* The state of a server that is quiet, as state.h says. */
#include <errno.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"
#include "fusepipe/host/server.h"
#include "fusepipe/host/state.h"

static int put(struct fcvm_buf *b, const void *data, size_t size)
{
	static const char zeros[8];
	int r = size ? fcvm_buf_append(b, data, size) : 0;

	return r || !(size % 8) ? r : fcvm_buf_append(b, zeros, 8 - size % 8);
}

static int put_generations(struct server *s, struct fcvm_buf *b)
{
	_cleanup_free_ uint32_t *g = calloc((size_t)s->nodes.size + s->handles.size + 1, sizeof *g);
	uint32_t *at = g;

	if (!g)
		return -ENOMEM;
	for (uint32_t i = 0; i < s->nodes.size; i++)
		*at++ = node_at(&s->nodes, i)->generation;
	for (uint32_t i = 0; i < s->handles.size; i++)
		*at++ = handle_at(&s->handles, i)->generation;
	return put(b, g, (size_t)(at - g) * sizeof *g);
}

/* By what it can be found again: its descriptor if it can be had, else what is known of it. */
static int put_node(struct server *s, struct fcvm_buf *b, uint32_t index)
{
	struct node *n = node_at(&s->nodes, index);
	_cleanup_close_ int opened = n->fd < 0 ? shelf_take(s, n) : -1;
	const int fd = n->fd < 0 ? opened : n->fd;
	_cleanup_free_ struct file_handle *made = n->shelved || fd < 0 || s->shelf < 0 || n->dev != s->root_dev ? NULL :
		shelf_handle(fd);
	_cleanup_free_ struct place *found = fd < 0 ? NULL : shelf_place(s, fd);
	const struct file_handle *h = n->shelved ? n->shelved : made;
	const struct place *place = found ? found : n->place;
	struct state_node out = {.index = index, .type = n->type, .lookups = n->lookups, .dev = n->dev, .ino = n->ino,
		.kept_s = n->kept_mtime.tv_sec, .kept_ns = n->kept_mtime.tv_nsec, .kept_size = n->kept_size,
		.flags = (n->unlisted ? STATE_UNLISTED : 0) | (n->dev != s->root_dev ? STATE_ELSEWHERE : 0)};
	int r;

	if (fd >= 0 && !found)
		return -ENOMEM;
	if (h) {
		out.handle_type = h->handle_type;
		out.handle_size = h->handle_bytes;
	}
	if (place) {
		out.born_s = place->born_s;
		out.born_ns = place->born_ns;
		out.path_size = (uint32_t)strlen(place->path) + 1;
	}
	r = put(b, &out, sizeof out);
	if (!r && h)
		r = put(b, h->f_handle, h->handle_bytes);
	return r || !place ? r : put(b, place->path, out.path_size);
}

static int put_handle(struct server *s, struct fcvm_buf *b, uint32_t index)
{
	const struct handle *h = handle_at(&s->handles, index);
	int flags = h->lost ? 0 : fcntl(h->fd, F_GETFL);
	struct state_handle out = {.index = index, .node = h->node, .flags = (uint32_t)flags & OPEN_FLAGS, .folder = h->folder,
		.flock = h->flock, .lost = h->lost};

	return put(b, &out, sizeof out);
}

static int put_owner(struct fcvm_buf *b, uint32_t node, const struct lock_owner *o)
{
	struct state_owner out = {.owner = o->owner, .handle = o->handle, .node = node, .pid = o->pid};
	int r;

	for (const struct lock_range *at = o->ranges; at; at = at->next)
		out.ranges++;
	r = put(b, &out, sizeof out);
	for (const struct lock_range *at = o->ranges; at && !r; at = at->next)
		r = put(b, &(struct state_range){.start = at->start, .end = at->end, .type = (uint64_t)at->type},
			sizeof(struct state_range));
	return r;
}

static int put_tables(struct server *s, struct fcvm_buf *b, struct state_header *h)
{
	int r = put_generations(s, b);

	for (uint32_t i = FUSE_ROOT_ID + 1; i < s->nodes.size && !r; i++) {
		if (!node_at(&s->nodes, i)->known)
			continue;
		h->nodes++;
		r = put_node(s, b, i);
	}
	/* Of data.c's the guest does not know. */
	for (uint32_t i = 1; !data_unopened(s) && i < s->handles.size && !r; i++) {
		if (handle_at(&s->handles, i)->fd < 0 && !handle_at(&s->handles, i)->lost)
			continue;
		h->handles++;
		r = put_handle(s, b, i);
	}
	for (uint32_t i = FUSE_ROOT_ID; i < s->nodes.size && !r; i++) {
		for (const struct lock_owner *o = node_at(&s->nodes, i)->owners; o && !r; o = o->next) {
			h->owners += o->ranges != NULL;
			r = o->ranges ? put_owner(b, i, o) : 0;
		}
	}
	return r;
}

static int put_waiters(struct server *s, struct fcvm_buf *b, struct state_header *h)
{
	int r = 0;

	for (const struct waiter *w = s->waiters; w && !r; w = w->next, h->waiters++)
		r = put(b, &(struct state_waiter){.stream = (uint64_t)(w->stream - s->streams), .header = w->header,
			.in = w->in}, sizeof(struct state_waiter));
	for (const struct replay *w = s->replays; w && !r; w = w->next, h->waiters++)
		r = put(b, &(struct state_waiter){.stream = w->stream, .header = w->message.header, .in = w->message.in},
			sizeof(struct state_waiter));
	return r;
}

int state_save(struct server *s, int fd, struct fcvm_err *err)
{
	const struct node *root = node_at(&s->nodes, FUSE_ROOT_ID);
	struct state_header h = {.magic = STATE_MAGIC, .version = STATE_VERSION, .header_size = sizeof h, .root_ino = root->ino,
		.root_lookups = root->lookups, .init_flags = s->init_flags, .init = s->init, .streams = s->nstreams,
		.node_slots = s->nodes.size, .handle_slots = s->handles.size};
	struct fcvm_buf b = {.data = NULL};
	int r;

	/* Its place is kept for it. */
	r = put(&b, &h, sizeof h);
	if (!r)
		r = put_tables(s, &b, &h);
	if (!r)
		r = put_waiters(s, &b, &h);
	if (!r && b.size > STATE_MAX)
		r = -EFBIG;
	if (!r) {
		h.size = b.size;
		h.check = state_check(fcvm_buf_head(&b) + sizeof h, b.size - sizeof h);
		memcpy(fcvm_buf_head(&b), &h, sizeof h);
		r = fcvm_fd_write_full(fd, fcvm_buf_head(&b), b.size);
	}
	fcvm_buf_done(&b);
	return r ? fcvm_fail_errno(err, r, "volume %s: writing its state", s->volume.folder) : 0;
}
