/* SPDX-License-Identifier: MIT */
/*
 * fsync, for many at once: of those that wait, as soon as there are a few, one syncfs(2) does them all. Each had come before
 * it began, so what they ask for is written when it ends; and the disk's cache is emptied once instead of once each.
 *
 * Not where that would say or do less than fsync, or cost more:
 * - on file systems other than those whose syncfs is known to be its superset; nor for what is mounted beneath the folder;
 * - once a syncfs failed: whose error it was it does not tell. Its group is done one by one, and so is all from then on, for
 *   the next syncfs would be silent about what the first one has told. The descriptor is there from the start, before any
 *   file is open, so no error is older than it;
 * - while one takes long, and for a while after: it writes what anybody has written to the file system.
 */
#include <errno.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/until.h"
#include "fusepipe/host/server.h"

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

enum {
	GROUP_MIN = 4,
	LONG_NS = 100 * 1000 * 1000,
	PAUSE_FACTOR = 64, /* so many times as long as one took that was too long there is no other */
};

void sync_open(struct server *s, int root_fd)
{
	struct statfs f;
	char self[16];

	/* Not as O_PATH, which syncfs(2) does not take. */
	snprintf(self, sizeof self, "%d", root_fd);
	s->sync = (struct sync){.fd = -1, .last = &s->sync.first};
	if (fstatfs(root_fd, &f))
		return;
	s->sync.in_memory = f.f_type == TMPFS_MAGIC || f.f_type == RAMFS_MAGIC;
	if (f.f_type == EXT4_SUPER_MAGIC || f.f_type == BTRFS_SUPER_MAGIC || f.f_type == XFS_SUPER_MAGIC)
		s->sync.fd = open(self, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static void run_one(struct job *j)
{
	j->result = (j->flags ? fdatasync(j->fd) : fsync(j->fd)) ? -errno : 0;
}

static void run_group(struct job *j)
{
	bool failed = syncfs(j->fd2) != 0;

	j->c = failed;
	for (struct job *one = j; one; one = one->with) {
		one->result = 0;
		if (failed)
			run_one(one);
	}
}

static void answer_one(struct server *s, struct job *j)
{
	if (j->result < 0 || !j->a)
		fuse_reply_err(j->req, (int)-j->result);
	else
		fuse_reply_write(j->req, (size_t)j->a);
}

static void answer_group(struct server *s, struct job *j)
{
	int64_t now = fcvm_now_ns(), took = now - s->sync.began;

	s->sync.running = false;
	if (j->c)
		s->sync.fd = fcvm_close(s->sync.fd);
	else if (took > LONG_NS)
		s->sync.not_before = now + took * PAUSE_FACTOR;
	answer_one(s, j);
}

void sync_wait(struct server *s, struct job *j, bool datasync, size_t written)
{
	bool ours = node_at(&s->nodes, handle_at(&s->handles, j->handle)->node)->dev == s->root_dev;

	j->flags = datasync;
	j->a = (int64_t)written;
	j->run = run_one;
	j->answer = answer_one;
	if (ours && s->sync.in_memory) {
		j->run(j);
		job_answer(s, j);
	} else if (!ours || s->sync.fd < 0) {
		job_start(s, j);
	} else {
		*s->sync.last = j;
		s->sync.last = &j->next;
		s->sync.count++;
	}
}

int sync_ms(const struct server *s)
{
	int64_t left;

	if (!s->sync.running || !s->sync.first)
		return -1;
	left = s->sync.began + LONG_NS - fcvm_now_ns();
	return left > 0 ? (int)(left / 1000000) + 1 : 0;
}

void sync_step(struct server *s)
{
	struct sync *y = &s->sync;
	struct job *first = y->first;
	int64_t now;

	if (!first)
		return;
	now = fcvm_now_ns();
	if (y->running && now - y->began < LONG_NS)
		return;
	if (!y->running && y->fd >= 0 && y->count >= GROUP_MIN && now >= y->not_before) {
		for (struct job *j = first; j; j = j->next)
			j->with = j->next;
		first->run = run_group;
		first->answer = answer_group;
		first->fd2 = y->fd;
		first->next = NULL;
		y->began = now;
		y->running = true;
		job_start(s, first);
	} else {
		for (struct job *j = first, *next; j; j = next) {
			next = j->next;
			job_start(s, j);
		}
	}
	y->first = NULL;
	y->last = &y->first;
	y->count = 0;
}

void sync_done(struct server *s)
{
	/* What waits yet is done, as what runs is. */
	s->sync.running = false;
	if (s->sync.last)
		sync_step(s);
}
