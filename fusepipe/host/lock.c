/* SPDX-License-Identifier: MIT */
/*
 * Locks that exclude other guests and the host's processes.
 *
 * flock(2): the handle's descriptor is the lock's owner here as it is there. POSIX locks: one open file description
 * per (file, owner) with OFD locks, which conflict with the host's POSIX locks as with other owners'. They are given
 * back when the guest flushes for that owner, as close(2) demands.
 *
 * A lock that must wait waits in a list, not in a thread: it is tried again after each batch of requests (one of them
 * may have been the unlock) and every LOCK_RETRY_MS (loop.c) for the sake of those who hold it elsewhere. So a guest's
 * waiting costs no thread, and an INTERRUPT just takes it off the list. There is no deadlock detection across owners
 * (EDEADLK is one that POSIX permits, not demands).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

#include "base/cleanup.h"
#include "base/until.h"
#include "fusepipe/abi.h"
#include "fusepipe/host/server.h"

enum { OWNERS_MAX = 16384, RANGES_MAX = 65536 };

static struct lock_owner *find_owner(struct node *n, uint64_t owner)
{
	for (struct lock_owner *o = n->owners; o; o = o->next)
		if (o->owner == owner)
			return o;
	return NULL;
}

static struct lock_owner *make_owner(struct server *s, struct node *n, uint64_t handle, uint64_t owner, int *ret)
{
	struct lock_owner *o = find_owner(n, owner);

	if (!o) {
		o = s->nowners < OWNERS_MAX ? malloc(sizeof *o) : NULL;
		if (!o) {
			*ret = -ENOLCK;
			return NULL;
		}
		*o = (struct lock_owner){.next = n->owners, .owner = owner, .fd = -1};
		n->owners = o;
		s->nowners++;
	}
	o->handle = handle;
	return o;
}

static struct flock flock_of(const struct lock_range *r)
{
	return (struct flock){.l_type = (short)r->type, .l_whence = SEEK_SET, .l_start = r->start,
		.l_len = r->end == INT64_MAX ? 0 : r->end - r->start + 1};
}

/*
 * Opens the file as this kind of lock needs it, no further: whoever has a program open for writing keeps the host from
 * running it. To look (F_UNLCK) any way will do. What an owner has is taken along: it is for reading, so the descriptors
 * do not stand in each other's way.
 */
static int open_owner(struct server *s, struct node *n, struct lock_owner *o, int type)
{
	int mode = type == F_WRLCK ? O_RDWR : O_RDONLY, fd;

	if (o->fd >= 0 && (type == F_UNLCK || o->mode == O_RDWR || o->mode == (type == F_WRLCK ? O_WRONLY : O_RDONLY)))
		return 0;
	fd = node_reopen(s, n, mode);
	/* A user may be allowed to write it only. */
	if (fd == -EACCES && type != F_RDLCK)
		fd = node_reopen(s, n, mode = O_WRONLY);
	/* Of fcntl(F_SETLK) EACCES would say that somebody has it. */
	if (fd < 0)
		return fd == -EACCES ? -ENOLCK : fd;
	for (const struct lock_range *r = o->ranges; r; r = r->next) {
		struct flock lock = flock_of(r);

		if (!r->lost && fcntl(fd, F_OFD_SETLK, &lock)) {
			close(fd);
			return -ENOLCK;
		}
	}
	fcvm_close(o->fd);
	o->fd = fd;
	o->mode = mode;
	return 0;
}

/* ---- what an owner has locked: kept for the state that is saved, the kernel does not tell it ---- */

static void drop_range(struct server *s, struct lock_range **at)
{
	struct lock_range *r = *at;

	*at = r->next;
	free(r);
	s->nranges--;
}

/* Takes start to end out of what there is; *spare becomes the second part of what is cut in two. */
static void cut_ranges(struct server *s, struct lock_owner *o, int64_t start, int64_t end, struct lock_range **spare)
{
	struct lock_range **at = &o->ranges, *r;

	while ((r = *at)) {
		if (r->end < start || r->start > end) {
			at = &r->next;
		} else if (r->start < start && r->end > end) {
			**spare = (struct lock_range){.next = r->next, .start = end + 1, .end = r->end, .type = r->type,
				.lost = r->lost};
			r->end = start - 1;
			r->next = fcvm_steal_ptr(*spare);
			s->nranges++;
			return;
		} else if (r->start < start) {
			r->end = start - 1;
			at = &r->next;
		} else if (r->end > end) {
			r->start = end + 1;
			at = &r->next;
		} else {
			drop_range(s, at);
		}
	}
}

/* What touches and is of the same kind becomes one, as the kernel does it. */
static void join_ranges(struct server *s, struct lock_owner *o, struct lock_range *fresh)
{
	struct lock_range **at = &o->ranges, *r;

	while ((r = *at)) {
		if (r->type != fresh->type || r->lost != fresh->lost ||
			!(r->end == fresh->start - 1 || (fresh->end < INT64_MAX && r->start == fresh->end + 1))) {
			at = &r->next;
			continue;
		}
		fresh->start = r->start < fresh->start ? r->start : fresh->start;
		fresh->end = r->end > fresh->end ? r->end : fresh->end;
		drop_range(s, at);
	}
	fresh->next = o->ranges;
	o->ranges = fresh;
	s->nranges++;
}

/* The kernel has it so, or not (lost); spares are two ranges, of which what is left over is freed. */
static void keep_range(struct server *s, struct lock_owner *o, const struct flock *lock, bool lost,
	struct lock_range **spares)
{
	int64_t start = lock->l_start, end = lock->l_len ? start + lock->l_len - 1 : INT64_MAX;

	cut_ranges(s, o, start, end, &spares[0]);
	if (lock->l_type == F_UNLCK)
		return;
	*spares[1] = (struct lock_range){.start = start, .end = end, .type = lock->l_type, .lost = lost};
	join_ranges(s, o, fcvm_steal_ptr(spares[1]));
}

static void drop_owner(struct server *s, struct lock_owner **at)
{
	struct lock_owner *o = *at;

	*at = o->next;
	fcvm_close(o->fd);
	while (o->ranges)
		drop_range(s, &o->ranges);
	free(o);
	s->nowners--;
}

void lock_owner_gone(struct server *s, struct node *n, uint64_t owner)
{
	for (struct lock_owner **at = &n->owners; *at; at = &(*at)->next) {
		if ((*at)->owner == owner) {
			drop_owner(s, at);
			return;
		}
	}
}

/*
 * An owner may be an open file (F_OFD_SETLK): no FLUSH comes for it, and it ends with its handle. One that is a process
 * has flushed when its last handle is released.
 */
void lock_handle_gone(struct server *s, struct node *n, uint64_t handle)
{
	for (struct lock_owner **at = &n->owners; *at;) {
		if ((*at)->handle == handle)
			drop_owner(s, at);
		else
			at = &(*at)->next;
	}
}

void lock_node_gone(struct server *s, struct node *n)
{
	while (n->owners)
		drop_owner(s, &n->owners);
}

/* Who of ours holds what stands in another's way: the one who himself sees nothing there. 0: not ours. */
static uint32_t holder(struct node *n, uint64_t not_owner, const struct flock *held)
{
	for (struct lock_owner *o = n->owners; o; o = o->next) {
		struct flock probe = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = held->l_start,
			.l_len = held->l_len};

		if (o->owner != not_owner && o->ranges && !fcntl(o->fd, F_OFD_GETLK, &probe) &&
			(probe.l_type == F_UNLCK || probe.l_start != held->l_start || probe.l_len != held->l_len))
			return o->pid;
	}
	return 0;
}

static void op_getlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock)
{
	struct server *s = server_of(req);
	struct node *n = node_get(s, ino);
	struct lock_owner *o;
	int r = n ? 0 : -ESTALE;

	o = n ? make_owner(s, n, fi->fh, fi->lock_owner, &r) : NULL;
	if (o)
		r = open_owner(s, n, o, F_UNLCK);
	if (r) {
		fuse_reply_err(req, -r);
		return;
	}
	lock->l_pid = 0;
	if (fcntl(o->fd, F_OFD_GETLK, lock)) {
		fuse_reply_err(req, errno);
		return;
	}
	/* A process of the host has no number in the guest. */
	lock->l_pid = lock->l_type == F_UNLCK ? 0 : (pid_t)holder(n, fi->lock_owner, lock);
	fuse_reply_lock(req, lock);
}

/* 0, -EAGAIN: another has it, or -errno. The guest takes what is restored for its own, whoever has it. */
static int set_lock(struct server *s, struct node *n, struct lock_owner *o, const struct flock *lock, bool restored)
{
	_cleanup_free_ struct lock_range *first = malloc(sizeof *first), *second = malloc(sizeof *second);
	struct lock_range *spares[] = {first, second};
	struct flock own = *lock;
	int r;

	own.l_pid = 0;
	if (!first || !second || (own.l_type != F_UNLCK && s->nranges >= RANGES_MAX))
		return -ENOLCK;
	r = open_owner(s, n, o, own.l_type);
	if (r)
		return r;
	if (fcntl(o->fd, F_OFD_SETLK, &own))
		r = errno == EACCES ? -EAGAIN : -errno;
	if (r && !(restored && r == -EAGAIN))
		return r;
	keep_range(s, o, &own, r != 0, spares);
	first = spares[0];
	second = spares[1];
	return r;
}

/* Whether the handle is open for what such a lock is about. */
static bool may_lock(struct server *s, uint64_t handle, int type)
{
	const struct handle *h = handle_get(s, handle, false);
	int mode = h ? fcntl(h->fd, F_GETFL) & O_ACCMODE : -1;

	return h && mode != (type == F_RDLCK ? O_WRONLY : type == F_WRLCK ? O_RDONLY : -1);
}

/* 0, -EAGAIN: another has it, or -errno. */
static int try_posix(struct server *s, struct node *n, uint64_t handle, uint64_t owner, const struct flock *lock)
{
	struct lock_owner *o;
	int r = 0;

	if (!may_lock(s, handle, lock->l_type))
		return -EBADF;
	if (lock->l_type == F_UNLCK && !find_owner(n, owner))
		return 0;
	o = make_owner(s, n, handle, owner, &r);
	if (!o)
		return r;
	r = set_lock(s, n, o, lock, false);
	if (!r && lock->l_type != F_UNLCK)
		o->pid = (uint32_t)lock->l_pid;
	return r;
}

static int try_flock(struct server *s, uint64_t handle, int op)
{
	struct handle *h = handle_get(s, handle, false);

	if (!h)
		return -EBADF;
	if (flock(h->fd, op | LOCK_NB)) {
		/* Who changes the kind of a lock has given the old one up by then. */
		if (errno == EWOULDBLOCK)
			h->flock = 0;
		return -errno;
	}
	h->flock = op & LOCK_UN ? 0 : (uint8_t)(op & (LOCK_SH | LOCK_EX));
	return 0;
}

static bool was_interrupted(struct server *s, uint64_t unique)
{
	for (unsigned i = 0; i < sizeof s->interrupted / sizeof *s->interrupted; i++) {
		if (s->interrupted[i] == unique) {
			s->interrupted[i] = 0;
			return true;
		}
	}
	return false;
}

/* Takes the request: onto the list, or answers why not. */
static void wait_for(struct server *s, fuse_req_t req, const struct waiter *how)
{
	struct waiter *w, **last = &s->waiters;
	int r = was_interrupted(s, s->message->unique) ? -EINTR : s->nwaiters >= WAITERS_MAX ? -ENOLCK : 0;

	w = r ? NULL : malloc(sizeof *w);
	if (!w) {
		fuse_reply_err(req, r ? -r : ENOLCK);
		return;
	}
	*w = *how;
	w->stream = s->current;
	w->req = req;
	w->began = s->now;
	w->header = *s->message;
	memcpy(&w->in, s->message + 1, sizeof w->in);
	w->next = NULL;
	while (*last)
		last = &(*last)->next;
	*last = w;
	s->nwaiters++;
}

static void op_setlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock, int sleep)
{
	struct server *s = server_of(req);
	struct node *n = node_get(s, ino);
	int r = n ? try_posix(s, n, fi->fh, fi->lock_owner, lock) : -ESTALE;

	if (!r && lock->l_type != F_UNLCK)
		policy_changed(s, ino);
	if (r == -EAGAIN && sleep)
		wait_for(s, req, &(struct waiter){.lock = *lock});
	else
		fuse_reply_err(req, -r);
}

static void op_flock(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int op)
{
	struct server *s = server_of(req);
	int r = try_flock(s, fi->fh, op);

	if (!r && !(op & LOCK_UN))
		policy_changed(s, ino);
	if (r == -EWOULDBLOCK && !(op & LOCK_NB))
		wait_for(s, req, &(struct waiter){.flock = op | LOCK_NB});
	else
		fuse_reply_err(req, -r);
}

static int try_again(struct server *s, struct waiter *w)
{
	struct node *n;

	if (w->flock)
		return try_flock(s, w->in.fh, w->flock);
	n = node_get(s, w->header.nodeid);
	return n ? try_posix(s, n, w->in.fh, w->in.owner, &w->lock) : -ESTALE;
}

static void answer(struct server *s, struct waiter **at, int r)
{
	struct waiter *w = *at;
	size_t from = w->stream ? w->stream->out.end : 0;

	*at = w->next;
	s->nwaiters--;
	s->current = w->stream;
	if (!r)
		policy_changed(s, w->header.nodeid);
	fuse_reply_err(w->req, -r);
	count_answer(s, w->stream, from, &(struct answered){.unique = w->header.unique, .opcode = w->header.opcode,
		.began = w->began, .fs = fcvm_now_ns() - w->began});
	free(w);
}

void lock_retry(struct server *s)
{
	struct waiter **at = &s->waiters;

	while (*at) {
		int r;

		s->turn++;
		r = !stream_room((*at)->stream) ? -EAGAIN : (*at)->interrupted ? -EINTR : try_again(s, *at);
		if (r == -EAGAIN)
			at = &(*at)->next;
		else
			answer(s, at, r);
	}
}

void lock_interrupt(struct server *s, uint64_t unique)
{
	struct stream *current = s->current;

	for (struct waiter **at = &s->waiters; *at; at = &(*at)->next) {
		if ((*at)->header.unique != unique)
			continue;
		/* Without room it hears of it later: the guest does not read its replies. */
		if (stream_room((*at)->stream))
			answer(s, at, -EINTR);
		else
			(*at)->interrupted = true;
		s->current = current;
		return;
	}
	/* It was answered already, or comes by another stream and is still under way. */
	s->interrupted[s->ninterrupted++ % (sizeof s->interrupted / sizeof *s->interrupted)] = unique;
}

void lock_done(struct server *s)
{
	while (s->waiters) {
		s->waiters->stream = NULL;
		answer(s, &s->waiters, -EINTR);
	}
}

int lock_restore(struct server *s, struct node *n, const struct lock_owner *from)
{
	int r = 0, lost = 0;
	struct lock_owner *o = make_owner(s, n, from->handle, from->owner, &r);

	if (!o)
		return r;
	o->pid = from->pid;
	for (const struct lock_range *at = from->ranges; at; at = at->next) {
		struct flock lock = flock_of(at);

		r = set_lock(s, n, o, &lock, true);
		if (r && r != -EAGAIN)
			return r;
		lost |= r != 0;
	}
	return lost;
}

void ops_locks(struct fuse_lowlevel_ops *ops)
{
	ops->getlk = op_getlk;
	ops->setlk = op_setlk;
	ops->flock = op_flock;
}
