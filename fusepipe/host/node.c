/* SPDX-License-Identifier: MIT */
/*
 * The files that the guest knows of: an O_PATH descriptor each, found by id or by (device, inode).
 *
 * An id is (generation << 32 | index), so that one which was given back, or never was given, finds nothing. A node
 * lives as long as the guest has lookups of it or open handles. While its descriptor is open the inode number cannot
 * be used again; one that is shelved (shelf.c) is looked at closely when its number turns up.
 */
#include <errno.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

#include "base/cleanup.h"
#include "fusepipe/host/server.h"

enum {
	CHUNK = 512,
	FIRST_BUCKETS = 1024,
	ROOT = FUSE_ROOT_ID,
	CONFIGFS = 0x62656570, /* its magic number, which no header has */
};

struct node *node_at(struct nodes *t, uint32_t index)
{
	return &t->chunks[index / CHUNK][index % CHUNK];
}

uint32_t node_index(uint64_t id)
{
	return (uint32_t)id;
}

uint64_t node_id(const struct nodes *t, uint32_t index)
{
	return (uint64_t)t->chunks[index / CHUNK][index % CHUNK].generation << 32 | index;
}

struct node *node_get(struct server *s, uint64_t id)
{
	uint32_t index = (uint32_t)id;
	struct node *n;

	if (!index || index >= s->nodes.size)
		return NULL;
	n = node_at(&s->nodes, index);
	return n->known && n->generation == id >> 32 ? n : NULL;
}

static uint32_t *bucket(const struct nodes *t, uint64_t dev, uint64_t ino)
{
	uint64_t h = (ino ^ dev << 40) * 0x9e3779b97f4a7c15ULL;

	return &t->buckets[(h >> 32) & t->mask];
}

static void link_node(struct nodes *t, uint32_t index)
{
	struct node *n = node_at(t, index);
	uint32_t *head = bucket(t, n->dev, n->ino);

	n->next = *head;
	*head = index;
}

static int grow_buckets(struct nodes *t)
{
	uint32_t count = (t->mask + 1) * 4, *fresh = calloc(count, sizeof *fresh), *old = t->buckets;
	uint32_t old_count = t->mask + 1;

	if (!fresh)
		return -ENOMEM;
	t->buckets = fresh;
	t->mask = count - 1;
	for (uint32_t i = 0; i < old_count; i++) {
		for (uint32_t at = old[i], next; at; at = next) {
			next = node_at(t, at)->next;
			link_node(t, at);
		}
	}
	free(old);
	return 0;
}

static int grow(struct nodes *t)
{
	uint32_t nchunks = t->size / CHUNK;
	struct node **chunks = realloc(t->chunks, (nchunks + 1) * sizeof *chunks);
	struct node *chunk;

	if (!chunks)
		return -ENOMEM;
	t->chunks = chunks;
	chunk = calloc(CHUNK, sizeof *chunk);
	if (!chunk)
		return -ENOMEM;
	chunks[nchunks] = chunk;
	for (uint32_t i = CHUNK; i-- > 0;) {
		uint32_t index = nchunks * CHUNK + i;

		chunk[i].fd = -1;
		/* 0 is no index, 1 is the root's. */
		if (index <= ROOT)
			continue;
		chunk[i].next = t->free;
		t->free = index;
	}
	t->size += CHUNK;
	return 0;
}

int nodes_init(struct server *s, int root_fd, const struct stat *st)
{
	struct nodes *t = &s->nodes;
	struct node *root;

	*t = (struct nodes){.max = s->volume.max_nodes, .mask = FIRST_BUCKETS - 1, .hand = ROOT,
		.max_open = s->max_open < NODES_OPEN ? s->max_open : NODES_OPEN};
	t->buckets = calloc(FIRST_BUCKETS, sizeof *t->buckets);
	if (!t->buckets || grow(t) < 0)
		return -ENOMEM;
	root = node_at(t, ROOT);
	*root = (struct node){.fd = root_fd, .known = true, .dev = st->st_dev, .ino = st->st_ino, .type = S_IFDIR, .lookups = 1};
	link_node(t, ROOT);
	t->used = t->open = 1;
	return 0;
}

void nodes_done(struct server *s)
{
	struct nodes *t = &s->nodes;

	for (uint32_t i = 0; i < t->size; i++) {
		lock_node_gone(s, node_at(t, i));
		fcvm_close(node_at(t, i)->fd);
		free(node_at(t, i)->shelved);
		free(node_at(t, i)->place);
	}
	for (uint32_t i = 0; i < t->size / CHUNK; i++)
		free(t->chunks[i]);
	free(t->chunks);
	free(t->buckets);
	*t = (struct nodes){.size = 0};
}

static void unlist(struct nodes *t, uint32_t index)
{
	struct node *n = node_at(t, index);
	uint32_t *at;

	for (at = bucket(t, n->dev, n->ino); *at != index; at = &node_at(t, *at)->next)
		;
	*at = n->next;
	n->unlisted = true;
}

/*
 * What the kernel tells and can be told by files: the host's processes and devices. Where the folder has such a thing
 * mounted in it (as "/" has), the guest may see that it is there, no more.
 */
static bool is_kernels(int fd)
{
	static const unsigned long kinds[] = {PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC,
		DEBUGFS_MAGIC, TRACEFS_MAGIC, SECURITYFS_MAGIC, BPF_FS_MAGIC, EFIVARFS_MAGIC, PSTOREFS_MAGIC, BINFMTFS_MAGIC,
		SELINUX_MAGIC, SMACK_MAGIC, CONFIGFS, NSFS_MAGIC};
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return true;
	for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if ((unsigned long)fs.f_type == kinds[i])
			return true;
	return false;
}

static void take_fd(struct server *s, struct node *n, int fd)
{
	n->fd = fd;
	n->closed = n->dev != s->root_dev && is_kernels(fd);
	s->nodes.open++;
	free(n->place);
	n->place = NULL;
}

/* The node that is this file, or 0. One that was shelved takes the descriptor, if it is the same file still. */
static uint32_t find(struct server *s, int *fd, const struct stat *st)
{
	struct nodes *t = &s->nodes;

	for (uint32_t index = *bucket(t, st->st_dev, st->st_ino); index; index = node_at(t, index)->next) {
		struct node *n = node_at(t, index);

		if (n->ino != st->st_ino || n->dev != st->st_dev)
			continue;
		if (n->fd >= 0)
			return index;
		if (!shelf_is(s, n, *fd)) {
			/* That one is gone, and its number was given to this file. */
			unlist(t, index);
			return 0;
		}
		if (shelf_make_room(s))
			return index;
		take_fd(s, n, fcvm_steal_fd(*fd));
		return index;
	}
	return 0;
}

int node_path(struct server *s, struct node *n)
{
	int fd;

	n->used_at = s->turn;
	if (n->fd >= 0)
		return n->fd;
	fd = shelf_make_room(s) ? -ENFILE : shelf_take(s, n);
	if (fd < 0)
		return fd;
	take_fd(s, n, fd);
	return fd;
}

int node_fd(struct server *s, struct node *n)
{
	int fd = node_path(s, n);

	return fd >= 0 && n->closed ? -EACCES : fd;
}

int nodes_room(struct server *s)
{
	return s->nodes.used >= s->nodes.max ? -ENFILE : shelf_make_room(s);
}

int64_t node_know(struct server *s, int fd, const struct stat *st)
{
	_cleanup_close_ int own = fd;
	struct nodes *t = &s->nodes;
	uint32_t index = find(s, &own, st);
	struct node *n;

	if (index) {
		node_at(t, index)->lookups++;
		return index;
	}
	if (nodes_room(s))
		return -ENFILE;
	if ((!t->free && grow(t) < 0) || (t->used > t->mask && grow_buckets(t) < 0))
		return -ENOMEM;
	index = t->free;
	n = node_at(t, index);
	t->free = n->next;
	t->used++;
	*n = (struct node){.known = true, .used_at = s->turn, .generation = n->generation, .dev = st->st_dev, .ino = st->st_ino,
		.type = st->st_mode & S_IFMT, .lookups = 1, .kept_size = -1};
	take_fd(s, n, fcvm_steal_fd(own));
	link_node(t, index);
	return index;
}

void node_put(struct server *s, uint32_t index)
{
	struct nodes *t = &s->nodes;
	struct node *n = node_at(t, index);

	if (!n->known || n->lookups || n->handles || index == ROOT)
		return;
	if (!n->unlisted)
		unlist(t, index);
	lock_node_gone(s, n);
	t->open -= n->fd >= 0;
	n->fd = fcvm_close(n->fd);
	n->known = false;
	free(n->shelved);
	free(n->place);
	n->shelved = NULL;
	n->place = NULL;
	n->generation++;
	n->next = t->free;
	t->free = index;
	t->used--;
}

void node_forget(struct server *s, uint64_t id, uint64_t lookups)
{
	struct node *n = node_get(s, id);

	if (!n)
		return;
	n->lookups -= lookups < n->lookups ? lookups : n->lookups;
	if (!n->lookups)
		data_drop(s, n, true);
	node_put(s, node_index(id));
}

/* ---- a state that is loaded ---- */

int nodes_reserve(struct server *s, uint32_t size, const uint32_t *generations)
{
	struct nodes *t = &s->nodes;

	if (size > t->max + CHUNK)
		return -ENFILE;
	while (t->size < size)
		if (grow(t) < 0)
			return -ENOMEM;
	for (uint32_t i = ROOT + 1; i < size; i++)
		node_at(t, i)->generation = generations[i];
	return 0;
}

int node_restore(struct server *s, uint32_t index, const struct node *n)
{
	struct nodes *t = &s->nodes;
	struct node *to = index > ROOT && index < t->size ? node_at(t, index) : NULL;

	if (!to || to->known || t->used >= t->max || (t->used > t->mask && grow_buckets(t) < 0)) {
		free(n->shelved);
		free(n->place);
		return to && !to->known && t->used < t->max ? -ENOMEM : -EBADMSG;
	}
	*to = (struct node){.fd = -1, .known = true, .unlisted = n->unlisted, .generation = to->generation,
		.lookups = n->lookups, .dev = n->dev, .ino = n->ino, .type = n->type, .kept_mtime = n->kept_mtime,
		.kept_size = n->kept_size, .shelved = n->shelved, .place = n->place};
	if (!n->unlisted)
		link_node(t, index);
	t->used++;
	return 0;
}

void nodes_restored(struct server *s)
{
	struct nodes *t = &s->nodes;

	t->free = 0;
	for (uint32_t i = t->size - 1; i > ROOT; i--) {
		if (node_at(t, i)->known)
			continue;
		node_at(t, i)->next = t->free;
		t->free = i;
	}
}
