/* SPDX-License-Identifier: MIT */
/* What nobody needs any more (fcvm_store_gc). */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/fail.h"
#include "base/fd.h"
#include "store/store_private.h"

enum { TWO_WEEKS = 14 * 24 * 3600 };

struct warm {
	struct fcvm_store *s;
	struct fcvm_json *report;
	const char *dir;
	int64_t oldest; /* time of the last use that is still young enough */
};

/* Its image is no longer the current one of its name: it will not be found under its key again. */
static bool is_outdated(struct fcvm_store *s, const char *image)
{
	_cleanup_free_ char *name = strdup(image), *current = NULL;
	char *slash = name ? strchr(name, '/') : NULL;

	if (!slash)
		return false;
	*slash = 0;
	if (!store_name_ok(name))
		return false;
	current = store_image_current(s, name);
	return current && strcmp(current, slash + 1) != 0;
}

static int look_at_warm(void *data, int dirfd, const char *name)
{
	struct warm *w = data;
	_cleanup_close_ int fd = store_open_dir(dirfd, name);
	_cleanup_free_ char *text = NULL;
	struct fcvm_manifest m = {.memory = 0};
	struct stat st;
	uint64_t bytes;
	size_t size;
	bool useless;

	if (fd < 0 || fstat(fd, &st) < 0 || !store_name_ok(name))
		return 0;
	useless = st.st_mtime < w->oldest ||
		  store_read_file(fd, "manifest.json", STORE_MANIFEST_MAX, &text, &size) < 0 ||
		  fcvm_manifest_parse(text, size, &m, NULL, NULL) < 0 || is_outdated(w->s, m.image);
	fcvm_manifest_done(&m);
	if (!useless)
		return 0;
	bytes = store_bytes(dirfd, name);
	/* One in use is left for the next time. */
	if (fcvm_snapshot_remove(w->s, "warm", name, NULL) == 0)
		store_report(w->report, "warm", w->dir, name, bytes);
	return 0;
}

static int gc_warm(struct fcvm_store *s, int64_t max_age_s, struct fcvm_json *report, struct fcvm_err *err)
{
	_cleanup_close_ int fd = store_make_dir(s->data_fd, "warm");
	_cleanup_free_ char *dir = fcvm_asprintf("%s/warm", s->data);
	struct warm w = {.s = s, .report = report, .dir = dir, .oldest = time(NULL) - max_age_s};
	int r = !dir ? -ENOMEM : fd < 0 ? fd : store_each(fd, look_at_warm, &w);

	return r < 0 ? fcvm_fail_errno(err, r, "look through %s/warm", s->data) : 0;
}

int fcvm_store_gc(struct fcvm_store *s, int64_t max_age_s, struct fcvm_json *report, struct fcvm_err *err)
{
	_cleanup_free_ char *tmp = fcvm_asprintf("%s/tmp", s->data);
	int r, first = 0;

	if (max_age_s < 0)
		max_age_s = TWO_WEEKS;
	if (!tmp)
		return fcvm_fail_errno(err, -ENOMEM, "gc");
	/* Each goes on where another failed; the first failure is told. */
	first = store_gc_images(s, max_age_s, report, err);
	r = gc_warm(s, max_age_s, report, first < 0 ? NULL : err);
	first = first < 0 ? first : r;
	r = store_sweep_dir(s->tmp_fd, tmp, "unfinished", report, first < 0 ? NULL : err);
	first = first < 0 ? first : r;
	r = fcvm_store_sweep(s, report, first < 0 ? NULL : err);
	return first < 0 ? first : r;
}
