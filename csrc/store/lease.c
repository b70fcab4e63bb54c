/* SPDX-License-Identifier: MIT */
/*
 * Leases: folders that are removed by whoever comes by once their owner has died, which is told by the flock on
 * their file `lock`.
 *
 *   .new-ID --lock taken--> ID --removal begins--> .trash-XXXX --> gone
 *
 * A lease in the making has no lock for a moment. It is made under a shared lock of the parent's file .gate, and
 * .new-* are swept only under an exclusive one: whatever is found then is nobody's.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>

#include "base/fail.h"
#include "base/fd.h"
#include "store/store_private.h"

#define GATE  ".gate"
#define NEW   ".new-"
#define TRASH ".trash-"

static int open_gate(int dirfd, int operation)
{
	_cleanup_close_ int fd =
		openat(dirfd, GATE, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);

	if (fd < 0)
		return -errno;
	while (flock(fd, operation) < 0)
		if (errno != EINTR)
			return -errno;
	return fcvm_steal_fd(fd);
}

static bool is_id(const char *name)
{
	return strlen(name) == 8 && strspn(name, "0123456789abcdef") == 8;
}

/* One try under the gate; -EEXIST: the id is taken. */
static int make(int dirfd, struct fcvm_lease *l)
{
	char fresh[24];
	unsigned tag;
	int r;

	fcvm_random(&tag, sizeof tag);
	snprintf(l->id, sizeof l->id, "%08x", tag);
	snprintf(fresh, sizeof fresh, NEW "%s", l->id);
	if (mkdirat(dirfd, fresh, 0700) < 0)
		return -errno;
	l->dirfd = store_open_dir(dirfd, fresh);
	r = l->dirfd;
	if (r >= 0) {
		l->lock_fd = openat(l->dirfd, "lock", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		/* Renaming onto another lease fails since that is not empty. */
		r = l->lock_fd < 0 || flock(l->lock_fd, LOCK_EX | LOCK_NB) < 0 ||
					    renameat(dirfd, fresh, dirfd, l->id) < 0
			    ? -errno
			    : 0;
	}
	if (r < 0) {
		fcvm_tree_remove(dirfd, fresh);
		l->dirfd = l->dirfd < 0 ? -1 : fcvm_close(l->dirfd);
		l->lock_fd = l->lock_fd < 0 ? -1 : fcvm_close(l->lock_fd);
	}
	return r == -ENOTEMPTY ? -EEXIST : r;
}

static int lease_new(int dirfd, const char *dir, struct fcvm_lease *ret, struct fcvm_err *err)
{
	struct fcvm_lease l = FCVM_LEASE_INIT;
	_cleanup_close_ int gate = open_gate(dirfd, LOCK_SH);
	int r = gate;

	for (int tries = 0; gate >= 0 && tries < 16; tries++) {
		r = make(dirfd, &l);
		if (r != -EEXIST)
			break;
	}
	if (r == -ENOSPC || r == -EDQUOT)
		return fcvm_store_disk_full(r, dir, 0, "make a folder", err);
	if (r < 0)
		return fcvm_fail_errno(err, r, "make a folder in %s", dir);
	l.path = fcvm_asprintf("%s/%s", dir, l.id);
	if (!l.path) {
		store_discard(dirfd, l.id);
		fcvm_close(l.dirfd);
		fcvm_close(l.lock_fd);
		return fcvm_fail_errno(err, -ENOMEM, "make a folder in %s", dir);
	}
	*ret = l;
	return 0;
}

static void lease_done(int dirfd, struct fcvm_lease *l)
{
	if (!l->path)
		return;
	store_discard(dirfd, l->id);
	l->dirfd = fcvm_close(l->dirfd);
	l->lock_fd = fcvm_close(l->lock_fd); /* last: until here nobody else sweeps it */
	free(fcvm_steal_ptr(l->path));
	l->id[0] = 0;
}

int fcvm_lease_new(struct fcvm_store *s, struct fcvm_lease *ret, struct fcvm_err *err)
{
	return lease_new(s->run_fd, s->run, ret, err);
}

void fcvm_lease_done(struct fcvm_store *s, struct fcvm_lease *l)
{
	lease_done(s->run_fd, l);
}

int store_work_new(struct fcvm_store *s, struct fcvm_lease *ret, struct fcvm_err *err)
{
	_cleanup_free_ char *dir = fcvm_asprintf("%s/tmp", s->data);

	return dir ? lease_new(s->tmp_fd, dir, ret, err) : fcvm_fail_errno(err, -ENOMEM, "make a folder");
}

void store_work_done(struct fcvm_store *s, struct fcvm_lease *l)
{
	lease_done(s->tmp_fd, l);
}

/* ---- looking at others' ---- */

/* Tries the lock of the folder. True: its owner is dead; ret_lock: the lock, now ours, or -1 if there is none. */
static bool owner_is_dead(int folder, int operation, int *ret_lock)
{
	_cleanup_close_ int fd = openat(folder, "lock", O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	/* We never make a folder of such a name without a lock; another error says nothing about its owner. */
	if (fd < 0)
		return errno == ENOENT || errno == ELOOP || errno == EISDIR || errno == ENXIO;
	if (flock(fd, operation | LOCK_NB) < 0)
		return false;
	*ret_lock = fcvm_steal_fd(fd);
	return true;
}

struct walk {
	struct fcvm_store *s;
	int (*fn)(void *data, const char *id, const char *path, bool alive, const struct fcvm_json *json);
	void *data;
};

static int visit(void *data, int dirfd, const char *name)
{
	struct walk *w = data;
	_cleanup_close_ int folder = -1, lock = -1;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *json = NULL;
	_cleanup_free_ char *path = NULL;
	bool alive;

	if (!is_id(name))
		return 0;
	folder = store_open_dir(dirfd, name);
	if (folder < 0) /* gone meanwhile, or not ours: a symbolic link, a file */
		return 0;
	/* Shared, so that two who look at the same time do not take each other for the owner. */
	alive = !owner_is_dead(folder, LOCK_SH, &lock);
	json = store_read_json(folder, "vm.json");
	path = fcvm_asprintf("%s/%s", w->s->run, name);
	return path ? w->fn(w->data, name, path, alive, json) : -ENOMEM;
}

int fcvm_lease_each(struct fcvm_store *s,
	int (*fn)(void *data, const char *id, const char *path, bool alive, const struct fcvm_json *json),
	void *data, struct fcvm_err *err)
{
	struct walk w = {.s = s, .fn = fn, .data = data};

	/* What goes wrong in fn is fn's to say. */
	return store_each(s->run_fd, visit, &w);
}

/* ---- sweeping ---- */

struct sweep {
	const char *dir, *what;
	struct fcvm_json *report;
	int first; /* failure */
	char failed[300];
};

static void sweep_away(struct sweep *w, int dirfd, const char *name, const char *what)
{
	uint64_t bytes = w->report ? store_bytes(dirfd, name) : 0;
	int r = store_discard(dirfd, name);

	if (r == 0)
		store_report(w->report, what, w->dir, name, bytes);
	else if (w->first == 0) {
		w->first = r;
		snprintf(w->failed, sizeof w->failed, "%s", name);
	}
}

static int sweep_unmade(void *data, int dirfd, const char *name)
{
	if (strncmp(name, NEW, strlen(NEW)) == 0)
		sweep_away(data, dirfd, name, "unfinished");
	return 0;
}

static int sweep_rest(void *data, int dirfd, const char *name)
{
	struct sweep *w = data;
	_cleanup_close_ int folder = -1, lock = -1;
	const char *what = w->what;

	if (strncmp(name, TRASH, strlen(TRASH)) == 0) {
		sweep_away(w, dirfd, name, "unfinished");
		return 0;
	}
	if (!is_id(name))
		return 0;
	folder = store_open_dir(dirfd, name);
	if (folder < 0 || !owner_is_dead(folder, LOCK_EX, &lock))
		return 0;
	if (!what)
		what = faccessat(folder, "vm.json", F_OK, AT_SYMLINK_NOFOLLOW) == 0	   ? "vm"
		       : faccessat(folder, "manifest.json", F_OK, AT_SYMLINK_NOFOLLOW) == 0 ? "snapshot"
											     : "unfinished";
	sweep_away(w, dirfd, name, what);
	return 0;
}

int store_sweep_dir(int dirfd, const char *dir, const char *what, struct fcvm_json *report, struct fcvm_err *err)
{
	struct sweep w = {.dir = dir, .what = what, .report = report};
	int r, gate;

	/* Busy: somebody is making a lease now; what is left over is swept the next time. */
	gate = open_gate(dirfd, LOCK_EX | LOCK_NB);
	if (gate >= 0) {
		store_each(dirfd, sweep_unmade, &w);
		fcvm_close(gate);
	}
	r = store_each(dirfd, sweep_rest, &w);
	if (r < 0)
		return fcvm_fail_errno(err, r, "sweep %s", dir);
	if (w.first < 0)
		return fcvm_fail_errno(err, w.first, "remove %s/%s", dir, w.failed);
	return 0;
}

int fcvm_store_sweep(struct fcvm_store *s, struct fcvm_json *report, struct fcvm_err *err)
{
	return store_sweep_dir(s->run_fd, s->run, NULL, report, err);
}
