/* SPDX-License-Identifier: MIT */
/*
 * Goes on from a saved state. The file may be torn, or made by somebody else: nothing of it is believed. What it says of
 * files is looked at when they are opened (shelf.c); what is left of its claims can hurt only the guest that it is for.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"
#include "fusepipe/host/server.h"
#include "fusepipe/host/state.h"

struct loader {
	struct server *s;
	const struct state_header *header;
	const char *at, *end;
};

/* The next `size` bytes, or NULL: there are not so many. */
static const void *next(struct loader *l, uint64_t size)
{
	const void *p = l->at;
	uint64_t padded = (size + 7) & ~7ULL;

	if (padded < size || padded > (uint64_t)(l->end - l->at))
		return NULL;
	l->at += padded;
	return p;
}

static int load_generations(struct loader *l)
{
	const struct state_header *h = l->header;
	const uint32_t *g = next(l, ((uint64_t)h->node_slots + h->handle_slots) * sizeof *g);
	int r;

	if (!g)
		return -EBADMSG;
	r = nodes_reserve(l->s, h->node_slots, g);
	return r ? r : handles_reserve(l->s, h->handle_slots, g + h->node_slots);
}

static bool is_type(uint32_t type)
{
	return type == S_IFREG || type == S_IFDIR || type == S_IFLNK || type == S_IFIFO || type == S_IFSOCK ||
		type == S_IFCHR || type == S_IFBLK;
}

static struct file_handle *handle_from(const struct state_node *in, const void *bytes)
{
	struct file_handle *h = malloc(sizeof *h + in->handle_size);

	if (!h)
		return NULL;
	h->handle_bytes = in->handle_size;
	h->handle_type = in->handle_type;
	memcpy(h->f_handle, bytes, in->handle_size);
	return h;
}

/* Always there, so that what is opened by a handle is looked at. */
static struct place *place_from(const struct state_node *in, const char *path)
{
	size_t size = in->path_size ? in->path_size : 1;
	struct place *p = malloc(sizeof *p + size);

	if (!p)
		return NULL;
	*p = (struct place){.born_s = in->born_s, .born_ns = in->born_ns};
	memcpy(p->path, in->path_size ? path : "", size);
	return p;
}

static int load_node(struct loader *l)
{
	struct server *s = l->s;
	const struct state_node *in = next(l, sizeof *in);
	const void *bytes = in ? next(l, in->handle_size) : NULL;
	const char *path = bytes ? next(l, in->path_size) : NULL;
	struct node n;

	if (!path || in->handle_size > MAX_HANDLE_SZ || in->path_size > PATH_MAX || !is_type(in->type) ||
		(in->path_size && strnlen(path, in->path_size) + 1 != in->path_size) ||
		in->flags & ~(uint32_t)(STATE_UNLISTED | STATE_ELSEWHERE))
		return -EBADMSG;
	if (in->handle_size && s->shelf < 0)
		return -EPERM;
	n = (struct node){.unlisted = in->flags & STATE_UNLISTED, .lookups = in->lookups, .ino = in->ino, .type = in->type,
		.dev = in->flags & STATE_ELSEWHERE ? in->dev : s->root_dev, .kept_size = in->kept_size,
		.kept_mtime = {.tv_sec = in->kept_s, .tv_nsec = in->kept_ns}};
	n.shelved = in->handle_size ? handle_from(in, bytes) : NULL;
	n.place = place_from(in, path);
	if (!n.place || (in->handle_size && !n.shelved)) {
		free(n.shelved);
		free(n.place);
		return -ENOMEM;
	}
	return node_restore(s, in->index, &n);
}

/* Whatever its node's index says: a node that the guest knows, or NULL. */
static struct node *known(struct server *s, uint32_t index)
{
	return index && index < s->nodes.size && node_at(&s->nodes, index)->known ? node_at(&s->nodes, index) : NULL;
}

static int load_handle(struct loader *l)
{
	struct server *s = l->s;
	const struct state_handle *in = next(l, sizeof *in);
	struct node *n = in ? known(s, in->node) : NULL;
	struct handle h;
	int r;

	if (!n || in->folder > 1 || in->lost > 1 || n->type != (in->folder ? S_IFDIR : S_IFREG) || in->flags & ~OPEN_FLAGS ||
		(in->flock && in->flock != LOCK_SH && in->flock != LOCK_EX))
		return -EBADMSG;
	h = (struct handle){.fd = in->lost ? -1 : node_reopen(s, n, (int)in->flags | (in->folder ? O_DIRECTORY : 0)),
		.node = in->node, .folder = in->folder};
	if (h.fd < 0 && !in->lost)
		note(s, "%s: an open %s could not be opened again: %s: whoever uses it gets ESTALE",
			n->place && *n->place->path ? n->place->path : "a file that was removed",
			in->folder ? "folder" : "file", strerror(-h.fd));
	if (h.fd < 0)
		h.fd = -1;
	r = handle_restore(s, in->index, &h);
	if (r || h.fd < 0 || !in->flock)
		return r;
	/* Had or not: see lock_restore(). */
	handle_at(&s->handles, in->index)->flock = in->flock;
	if (flock(h.fd, in->flock | LOCK_NB))
		note(s, "inode %llu: flock: somebody else has it now: the guest's lock is lost", (unsigned long long)n->ino);
	return 0;
}

static int load_owner(struct loader *l)
{
	const struct state_owner *in = next(l, sizeof *in);
	struct node *n = in ? known(l->s, in->node) : NULL;
	const struct state_range *from = n ? next(l, (uint64_t)in->ranges * sizeof *from) : NULL;
	struct lock_range *ranges = NULL;
	int r = 0;

	if (!from || n->type != S_IFREG)
		return -EBADMSG;
	ranges = calloc((size_t)in->ranges + 1, sizeof *ranges);
	if (!ranges)
		return -ENOMEM;
	for (uint32_t i = 0; i < in->ranges && !r; i++) {
		if (from[i].start < 0 || from[i].end < from[i].start || (from[i].type != F_RDLCK && from[i].type != F_WRLCK))
			r = -EBADMSG;
		ranges[i] = (struct lock_range){.start = from[i].start, .end = from[i].end, .type = (int)from[i].type,
			.next = i + 1 < in->ranges ? &ranges[i + 1] : NULL};
	}
	if (!r && in->ranges) {
		int lost = lock_restore(l->s, n, &(struct lock_owner){.owner = in->owner, .handle = in->handle,
			.pid = in->pid, .ranges = ranges});

		if (lost)
			note(l->s, "inode %llu: POSIX lock: %s: the guest's lock is lost", (unsigned long long)n->ino,
				lost > 0 ? "somebody else has it now" : strerror(-lost));
	}
	free(ranges);
	return r;
}

static int load_waiter(struct loader *l)
{
	struct server *s = l->s;
	const struct state_waiter *in = next(l, sizeof *in);
	struct replay *w, **last = &s->replays;

	if (!in || in->stream >= l->header->streams || in->header.opcode != FUSE_SETLKW || !in->header.unique ||
		in->header.len != sizeof in->header + sizeof in->in)
		return -EBADMSG;
	w = malloc(sizeof *w);
	if (!w)
		return -ENOMEM;
	*w = (struct replay){.stream = (unsigned)in->stream, .message.header = in->header, .message.in = in->in};
	while (*last)
		last = &(*last)->next;
	*last = w;
	return 0;
}

/* libfuse hears the INIT that it would have seen; the guest has its answer already. */
static int replay_init(struct loader *l)
{
	struct server *s = l->s;
	struct {
		struct fuse_in_header h;
		struct fuse_init_in in;
	} m = {.h = {.len = sizeof m, .opcode = FUSE_INIT, .unique = 2}, .in = l->header->init};
	int r;

	if (!l->header->init_flags)
		return 0;
	s->current = NULL;
	r = session_take(s, &m, sizeof m);
	s->init_unique = 0;
	if (r || !s->init_flags)
		return -EBADMSG;
	s->init = l->header->init;
	/* The guest's kernel goes on with what was agreed on. */
	return s->init_flags == l->header->init_flags ? 0 : -EPROTO;
}

/* By a path alone a node is found only for as long as nothing is renamed. What is gone says so when it is asked for. */
static void open_placed(struct server *s)
{
	for (uint32_t i = FUSE_ROOT_ID + 1; i < s->nodes.size; i++)
		if (node_at(&s->nodes, i)->known && !node_at(&s->nodes, i)->shelved)
			node_path(s, node_at(&s->nodes, i));
}

static int load(struct loader *l)
{
	static int (*const parts[])(struct loader *) = {load_node, load_handle, load_owner, load_waiter};
	const struct state_header *h = l->header;
	const uint32_t counts[] = {h->nodes, h->handles, h->owners, h->waiters};
	int r = replay_init(l);

	if (!r)
		r = load_generations(l);
	for (unsigned part = 0; part < 4 && !r; part++) {
		for (uint32_t i = 0; i < counts[part] && !r; i++)
			r = parts[part](l);
		if (part == 0) {
			nodes_restored(l->s);
			open_placed(l->s);
		}
		if (part == 1)
			handles_restored(l->s);
	}
	if (!r && l->at != l->end)
		r = -EBADMSG;
	if (r)
		return r;
	node_at(&l->s->nodes, FUSE_ROOT_ID)->lookups = h->root_lookups;
	l->s->nstreams = h->streams;
	l->s->control.phase = QUIET;
	count_state(l->s, FCVM_FUSE_STATE_QUIET);
	return 0;
}

static bool is_whole(const struct state_header *h, size_t size)
{
	return size >= sizeof *h && !memcmp(h->magic, STATE_MAGIC, sizeof h->magic) && h->header_size == sizeof *h &&
		h->size == size && h->check == state_check(h + 1, size - sizeof *h) && h->streams <= FCVM_FUSE_MAX_STREAMS &&
		h->waiters <= WAITERS_MAX;
}

int state_load(struct server *s, int fd, struct fcvm_err *err)
{
	_cleanup_free_ char *data = NULL;
	const struct state_header *h;
	struct loader l = {.s = s};
	size_t size;
	int r = fcvm_fd_read_all(fd, STATE_MAX, &data, &size);

	if (r)
		return fcvm_fail_errno(err, r, "volume %s: reading its saved state", s->volume.folder);
	h = (const void *)data;
	if (size >= sizeof *h && !memcmp(h->magic, STATE_MAGIC, sizeof h->magic) && h->version != STATE_VERSION)
		return fcvm_fail(err, -EPROTO, "volume %s: its saved state is of format %u, this fcvm reads %d: restore the "
			"snapshot with the fcvm that made it", s->volume.folder, h->version, STATE_VERSION);
	l.header = h;
	l.at = (const char *)(h + 1);
	l.end = data + size;
	r = is_whole(h, size) ? load(&l) : -EBADMSG;
	if (r == -EBADMSG)
		return fcvm_fail(err, r, "volume %s: its saved state is damaged: the snapshot cannot be restored with this volume",
			s->volume.folder);
	if (r == -EPROTO)
		return fcvm_fail(err, r, "volume %s: its saved state was made with other options (id maps, locks): restore it "
			"with the same", s->volume.folder);
	if (r == -EPERM)
		return fcvm_fail(err, r, "volume %s: its state was saved by root's fcvm, or on a file system with file handles: "
			"restore it as root and there", s->volume.folder);
	return r ? fcvm_fail_errno(err, r, "volume %s: going on from its saved state", s->volume.folder) : 0;
}

void state_replay(struct server *s)
{
	struct replay *r;

	while ((r = s->replays)) {
		struct stream *st = &s->streams[r->stream];

		s->replays = r->next;
		s->current = st;
		count_take(s, st, &r->message, r->message.header.len);
		free(r);
	}
}
