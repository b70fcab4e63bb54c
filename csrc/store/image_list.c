/* SPDX-License-Identifier: MIT */
/* Images that are there: listed, removed, thinned out. How they are made is in image.c. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

#include "base/fail.h"
#include "base/fd.h"
#include "store/image_private.h"

/* images/NAME/current/image.json; ret_key: malloc'ed. NULL if there is none. */
static struct fcvm_json *read_current(struct fcvm_store *s, int images, const char *name, char **ret_key)
{
	_cleanup_free_ char *key = store_image_current(s, name);
	_cleanup_close_ int dir = key ? store_open_dir(images, name) : -1;
	_cleanup_close_ int fd = dir >= 0 ? store_open_dir(dir, key) : -1;
	struct fcvm_json *j = fd >= 0 ? store_read_json(fd, "image.json") : NULL;

	if (j && ret_key)
		*ret_key = fcvm_steal_ptr(key);
	return j;
}

/* ---- listing ---- */

struct list {
	struct fcvm_store *s;
	struct fcvm_json *array;
};

static int list_one(void *data, int images, const char *name)
{
	struct list *l = data;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	_cleanup_free_ char *key = NULL, *dir = NULL;
	struct fcvm_json *entry;

	if (!store_name_ok(name) || !(j = read_current(l->s, images, name, &key)))
		return 0;
	entry = fcvm_json_object();
	dir = fcvm_asprintf("%s/images/%s/%s", l->s->data, name, key);
	if (!entry || !dir) {
		fcvm_json_free(entry);
		return -ENOMEM;
	}
	fcvm_json_set_string(entry, "name", name);
	fcvm_json_set_string(entry, "key", key);
	fcvm_json_set_string(entry, "kernel", fcvm_json_string(j, "release", ""));
	fcvm_json_set_int(entry, "created", fcvm_json_int(j, "created", 0));
	fcvm_json_set_int(entry, "bytes", (int64_t)store_bytes(images, name)); /* old keys too */
	fcvm_json_set_string(entry, "dir", dir);
	return fcvm_json_append(l->array, entry);
}

int fcvm_image_list(struct fcvm_store *s, struct fcvm_json *array, struct fcvm_err *err)
{
	_cleanup_close_ int images = store_make_dir(s->data_fd, "images");
	struct list l = {.s = s, .array = array};
	int r = images < 0 ? images : store_each(images, list_one, &l);

	return r < 0 ? fcvm_fail_errno(err, r, "list %s/images", s->data) : 0;
}

/* ---- removing ---- */

/* -EBUSY if a key's folder is in use. */
static int check_unused(void *data, int dir, const char *name)
{
	_cleanup_close_ int fd = store_open_dir(dir, name);

	return fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK ? -EBUSY : 0;
}

int fcvm_image_remove(struct fcvm_store *s, const char *name, struct fcvm_err *err)
{
	_cleanup_close_ int images = -1, dir = -1, lock = -1;
	struct fcvm_until soon = fcvm_until_sooner(NULL, 5000);
	int r;

	if (!store_name_ok(name))
		return fcvm_fail(err, -EINVAL, "\"%.80s\" is no image's name", name);
	images = store_make_dir(s->data_fd, "images");
	if (images < 0)
		return fcvm_fail_errno(err, images, "open %s/images", s->data);
	dir = store_open_dir(images, name);
	if (dir < 0)
		return fcvm_fail(err, -ENOENT, "there is no image %s in %s/images", name, s->data);
	lock = store_lock(images, ".lock", &soon);
	if (lock < 0)
		return fcvm_fail_errno(err, lock, "remove image %s: another process builds it", name);
	r = store_each(dir, check_unused, NULL);
	if (r == -EBUSY)
		return fcvm_fail(err, r, "image %s is in use: a virtual machine boots from it; try again", name);
	if (r == 0)
		r = store_discard(images, name);
	return r < 0 ? fcvm_fail_errno(err, r, "remove image %s", name) : 0;
}

/* ---- thinning out ---- */

struct thin {
	struct fcvm_store *s;
	struct fcvm_json *report;
	int64_t oldest; /* time of what is young enough */
	const char *name, *current; /* of the image that is looked at */
	char *releases; /* "\nRELEASE\n..." of kernels in use */
	char *dir;
};

/* An old key, or what a build left behind that died. */
static int thin_key(void *data, int dir, const char *entry)
{
	struct thin *t = data;
	_cleanup_close_ int fd = -1;
	_cleanup_free_ char *path = NULL;
	uint64_t bytes;

	if (strcmp(entry, "current") == 0 || (t->current && strcmp(entry, t->current) == 0))
		return 0;
	fd = store_open_dir(dir, entry);
	if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0)
		return 0;
	path = fcvm_asprintf("%s/images/%s", t->s->data, t->name);
	bytes = store_bytes(dir, entry);
	if (path && store_discard(dir, entry) == 0)
		store_report(t->report, "image", path, entry, bytes);
	return 0;
}

static int thin_image(void *data, int images, const char *name)
{
	struct thin *t = data;
	_cleanup_close_ int dir = -1;
	_cleanup_free_ char *key = NULL;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	char *more;

	if (strncmp(name, ".trash-", 7) == 0)
		store_discard(images, name);
	if (!store_name_ok(name) || (dir = store_open_dir(images, name)) < 0)
		return 0;
	j = read_current(t->s, images, name, &key);
	t->name = name;
	t->current = key;
	store_each(dir, thin_key, t);
	t->name = t->current = NULL;
	more = fcvm_asprintf("%s%s\n", t->releases, fcvm_json_string(j, "release", ""));
	if (!more)
		return -ENOMEM;
	free(t->releases);
	t->releases = more;
	return 0;
}

static int thin_kernel(void *data, int kernels, const char *release)
{
	struct thin *t = data;
	_cleanup_free_ char *line = fcvm_asprintf("\n%s\n", release);
	struct stat st;
	uint64_t bytes;

	if (!line || fstatat(kernels, release, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return 0;
	if (store_name_ok(release) && (strstr(t->releases, line) || st.st_mtime >= t->oldest))
		return 0;
	bytes = store_bytes(kernels, release);
	if (store_discard(kernels, release) == 0)
		store_report(t->report, "kernel", t->dir, release, bytes);
	return 0;
}

int store_gc_images(struct fcvm_store *s, int64_t max_age_s, struct fcvm_json *report, struct fcvm_err *err)
{
	const struct fcvm_until at_once = {.deadline_ns = 0, .cancel_fd = -1};
	_cleanup_close_ int images = store_make_dir(s->data_fd, "images");
	_cleanup_close_ int kernels = store_make_dir(s->data_fd, "kernels");
	_cleanup_close_ int lock = images < 0 ? -1 : store_lock(images, ".lock", &at_once);
	struct thin t = {.s = s, .report = report, .oldest = time(NULL) - max_age_s};
	int r = images < 0 ? images : kernels < 0 ? kernels : 0;

	if (r == 0 && lock < 0) /* one is being built: the next time */
		return 0;
	t.releases = strdup("\n");
	t.dir = fcvm_asprintf("%s/kernels", s->data);
	if (r == 0)
		r = t.releases && t.dir ? store_each(images, thin_image, &t) : -ENOMEM;
	if (r == 0)
		r = store_each(kernels, thin_kernel, &t);
	free(t.releases);
	free(t.dir);
	return r < 0 ? fcvm_fail_errno(err, r, "look through %s/images", s->data) : 0;
}
