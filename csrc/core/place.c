/* SPDX-License-Identifier: MIT */
#include "core/place.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/log.h"

enum { ACCELS = 3, /* chosen, kvm, tcg */ REMOVE_MS = 10000 };

struct probed {
	bool done;
	int result;
	struct fcvm_err err;
	struct vmm_probe probe;
};

struct copied {
	struct copied *next;
	char *here, *there;
};

struct place {
	atomic_uint refs;
	struct fcvm_node *node;
	struct fcvm_store *store;
	struct place *here; /* this host; NULL: it is it */
	char *dir;          /* the same */
	int probe_turn; /* who has it may use `probed`, and probe: nothing is probed twice */
	struct probed (*probed)[ACCELS]; /* by driver */
	int turns;     /* of restoring */
	int file_turn; /* who has it may use `copied`, and copy */
	struct copied *copied;
};

/* ---- turns ---- */

int turns_new(unsigned n)
{
	int fd = eventfd(n, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);

	return fd < 0 ? -errno : fd;
}

int turns_take(int turns, const struct fcvm_until *until, const char *what, struct fcvm_err *err)
{
	struct pollfd p = {.fd = turns, .events = POLLIN};
	uint64_t one;

	while (read(turns, &one, sizeof one) < 0) {
		int r = fcvm_until_poll(until, &p, 1);

		if (r < 0)
			return fcvm_fail_errno(err, r, "waiting for %s", what);
	}
	return 0;
}

void turns_give(int turns)
{
	eventfd_write(turns, 1);
}

int place_turn_take(struct place *p, const struct fcvm_until *until, struct fcvm_err *err)
{
	return turns_take(p->turns, until, "other restores to be done", err);
}

void place_turn_give(struct place *p)
{
	turns_give(p->turns);
}

/* ---- life ---- */

static unsigned ndrivers(void)
{
	unsigned n = 0;

	while (fcvm_vmm_drivers[n])
		n++;
	return n;
}

static void place_free(struct place *p)
{
	struct fcvm_until soon = fcvm_until_ms(REMOVE_MS, -1);

	for (unsigned i = 0; p->probed && i < ndrivers(); i++)
		for (unsigned j = 0; j < ACCELS; j++)
			if (p->probed[i][j].done && p->probed[i][j].result == 0)
				fcvm_vmm_probe_done(&p->probed[i][j].probe);
	free(p->probed);
	while (p->copied) {
		struct copied *c = p->copied;

		p->copied = c->next;
		free(c->here);
		free(c->there);
		free(c);
	}
	if (p->dir) {
		fcvm_node_remove(p->node, p->dir, &soon, NULL);
		fcvm_node_unref(p->node);
	}
	free(p->dir);
	fcvm_close(p->turns);
	fcvm_close(p->file_turn);
	fcvm_close(p->probe_turn);
	free(p);
}

static struct place *place_new(struct fcvm_node *node, struct fcvm_store *store, long cpus)
{
	struct place *p = calloc(1, sizeof *p);

	if (!p)
		return NULL;
	atomic_init(&p->refs, 1);
	p->node = node;
	p->store = store;
	p->turns = turns_new(cpus > 0 ? cpus : 1);
	p->file_turn = turns_new(1);
	p->probe_turn = turns_new(1);
	p->probed = calloc(ndrivers(), sizeof *p->probed);
	if (p->turns >= 0 && p->file_turn >= 0 && p->probe_turn >= 0 && p->probed)
		return p;
	place_free(p);
	return NULL;
}

int place_new_here(struct place **ret, struct fcvm_node *node, struct fcvm_store *store, struct fcvm_err *err)
{
	struct place *p = place_new(node, store, sysconf(_SC_NPROCESSORS_ONLN));

	if (!p)
		return fcvm_fail_errno(err, -ENOMEM, "start fcvm");
	*ret = p;
	return 0;
}

/* Guests' memory lives in it, so it is on a tmpfs where there is a large one. */
static char *choose_dir(struct fcvm_node *node, const struct fcvm_until *until)
{
	struct fcvm_node_stat st;
	bool shm = fcvm_node_stat(node, "/dev/shm", until, &st, NULL) == 0 && S_ISDIR(st.mode);
	unsigned tag;

	fcvm_random(&tag, sizeof tag);
	return fcvm_asprintf("%s/fcvm-%08x", shm ? "/dev/shm" : "/run", tag);
}

int place_new_on(struct place **ret, struct fcvm_node *node, struct place *here, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	_cleanup_free_ char *dir = NULL;
	struct fcvm_node_info info;
	struct place *p;
	int r = fcvm_node_info(node, until, &info, err);

	if (r < 0)
		return r;
	dir = choose_dir(node, until);
	p = dir ? place_new(node, here->store, info.processors) : NULL;
	if (!p)
		return fcvm_fail_errno(err, -ENOMEM, "use %s as a node", fcvm_node_name(node));
	/* With the link's end it goes by itself. */
	r = fcvm_node_mkdir(node, dir, 0700, false, true, until, err);
	if (r < 0) {
		place_free(p);
		return r;
	}
	fcvm_node_ref(node);
	p->here = here;
	p->dir = fcvm_steal_ptr(dir);
	*ret = p;
	return 0;
}

struct place *place_ref(struct place *p)
{
	atomic_fetch_add(&p->refs, 1);
	return p;
}

void place_put(struct place *p)
{
	if (p && atomic_fetch_sub(&p->refs, 1) == 1)
		place_free(p);
}

struct fcvm_node *place_node(const struct place *p)
{
	return p->node;
}

bool place_is_here(const struct place *p)
{
	return !p->dir;
}

const char *place_name(const struct place *p)
{
	return p->dir ? fcvm_node_name(p->node) : "";
}

/* ---- drivers ---- */

static int probe_once(struct place *p, unsigned driver, const char *accel, const struct fcvm_until *until,
	const struct vmm_probe **ret, struct fcvm_err *err)
{
	struct probed *d = &p->probed[driver][!accel ? 0 : strcmp(accel, "kvm") == 0 ? 1 : 2];

	if (!d->done) {
		const struct vmm_ops *ops = fcvm_vmm_drivers[driver];
		_cleanup_free_ char *cache = p->dir ? NULL : fcvm_asprintf("%s/.probe-%s-%s",
			fcvm_store_run(p->store), ops->name, accel ? accel : "any");

		d->result = ops->probe(p->node, accel, cache, until, &d->probe, &d->err);
		/* One that was given up is no verdict, and the next who asks may have more time. */
		d->done = !fcvm_vmm_probe_gave_up(d->result);
	}
	if (d->result < 0 && err)
		*err = d->err;
	if (d->result == 0)
		*ret = &d->probe;
	return d->result;
}

static int unknown_driver(const char *driver, struct fcvm_err *err)
{
	char names[200] = "";
	size_t n = 0;

	for (unsigned i = 0; fcvm_vmm_drivers[i] && n < sizeof names; i++)
		n += snprintf(names + n, sizeof names - n, "%s%s", i ? ", " : "", fcvm_vmm_drivers[i]->name);
	return fcvm_fail(err, -EINVAL, "driver '%s' is not known; there are: %s", driver, names);
}

/* What was not had for want of time is not made up for by another driver. */
static bool is_over(int r, const struct fcvm_until *until)
{
	return r == -ECANCELED || (r == -ETIMEDOUT && fcvm_until_passed(until));
}

int place_choose(struct place *p, const char *driver, const char *accel, const struct fcvm_until *until,
	struct choice *ret, struct fcvm_err *err)
{
	struct choice with;
	bool known = false;
	int r;

	if (accel && strcmp(accel, "kvm") != 0 && strcmp(accel, "tcg") != 0)
		return fcvm_fail(err, -EINVAL, "accel '%s' is not known; want kvm or tcg", accel);
	r = turns_take(p->probe_turn, until, "another call to find out which VMMs there are", err);
	if (r < 0)
		return r;
	r = -EINVAL;
	for (unsigned i = 0; fcvm_vmm_drivers[i] && r < 0 && !is_over(r, until); i++) {
		if (driver && strcmp(driver, fcvm_vmm_drivers[i]->name) != 0)
			continue;
		known = true;
		with.driver = fcvm_vmm_drivers[i];
		r = probe_once(p, i, accel, until, &with.probe, err);
	}
	turns_give(p->probe_turn);
	if (!known)
		return unknown_driver(driver, err);
	if (r == 0)
		*ret = with;
	return r;
}

/* ---- files ---- */

static int copy_file(struct place *p, const char *path, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct copied *c = calloc(1, sizeof *c);
	const char *name = strrchr(path, '/');
	char key[17];
	int r = c ? 0 : -ENOMEM;

	if (c) {
		fcvm_hash_strings(key, path, NULL);
		c->here = strdup(path);
		c->there = fcvm_asprintf("%s/%s-%s", p->dir, key, name ? name + 1 : path);
		r = c->here && c->there ? 0 : -ENOMEM;
	}
	if (r < 0)
		fcvm_fail_errno(err, r, "copy %s", path);
	else
		fcvm_say(FCVM_SAY_PROGRESS, "copy %s to %s", path, fcvm_node_name(p->node));
	if (r == 0)
		r = fcvm_node_copy(p->here->node, path, p->node, c->there, until, err);
	if (r < 0) {
		if (c) {
			free(c->here);
			free(c->there);
		}
		free(c);
		return r;
	}
	c->next = p->copied;
	p->copied = c;
	return 0;
}

static const char *find_copy(const struct place *p, const char *path)
{
	for (const struct copied *c = p->copied; c; c = c->next)
		if (strcmp(c->here, path) == 0)
			return c->there;
	return NULL;
}

int place_file(struct place *p, const char *path, const struct fcvm_until *until, char **ret, struct fcvm_err *err)
{
	int r = 0;

	if (!p->dir) {
		*ret = strdup(path);
		return *ret ? 0 : fcvm_fail_errno(err, -ENOMEM, "%s", path);
	}
	r = turns_take(p->file_turn, until, "files to be copied", err);
	if (r < 0)
		return r;
	if (!find_copy(p, path))
		r = copy_file(p, path, until, err);
	if (r == 0) {
		*ret = strdup(find_copy(p, path));
		r = *ret ? 0 : fcvm_fail_errno(err, -ENOMEM, "%s", path);
	}
	turns_give(p->file_turn);
	return r;
}

/* ---- folders ---- */

int folder_new(struct place *p, const struct fcvm_until *until, struct folder *ret, struct fcvm_err *err)
{
	struct folder f = FOLDER_INIT;
	int r = fcvm_lease_new(p->store, &f.lease, err);

	if (r == 0 && p->dir) {
		f.there = fcvm_asprintf("%s/%s", p->dir, f.lease.id);
		r = f.there ? fcvm_node_mkdir(p->node, f.there, 0700, false, false, until, err)
			: fcvm_fail_errno(err, -ENOMEM, "make a folder on %s", fcvm_node_name(p->node));
		if (r < 0) {
			free(fcvm_steal_ptr(f.there));
			fcvm_lease_done(p->store, &f.lease);
		}
	}
	if (r == 0)
		*ret = f;
	return r;
}

void folder_done(struct place *p, struct folder *f)
{
	struct fcvm_until soon = fcvm_until_ms(REMOVE_MS, -1);

	if (f->there)
		fcvm_node_remove(p->node, f->there, &soon, NULL);
	free(fcvm_steal_ptr(f->there));
	if (f->lease.path)
		fcvm_lease_done(p->store, &f->lease);
}

const char *folder_path(const struct folder *f)
{
	return f->there ? f->there : f->lease.path;
}
