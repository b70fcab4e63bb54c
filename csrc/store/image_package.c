/* SPDX-License-Identifier: MIT */
/*
 * Debian packages, fetched as any user by the machine's own apt (its mirrors, proxies, keys and checks are its
 * configuration's), and unpacked without installing: an ar archive whose member data.tar.* is a tar (deb(5)).
 */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/log.h"
#include "store/image_private.h"

enum { OUTPUT_MAX = 1024 * 1024, FILE_MAX = 256 * 1024 * 1024 };

static void cleanup_archive(struct archive **a)
{
	if (*a)
		archive_read_free(*a);
}

static void cleanup_strings(char ***list)
{
	store_strings_free(*list);
}

void store_strings_free(char **list)
{
	for (char **one = list; list && *one; one++)
		free(*one);
	free(list);
}

/* ---- apt ---- */

/* The last line that says something, for a message. */
static const char *last_line(char *text)
{
	char *end = text + strlen(text), *line;

	while (end > text && (end[-1] == '\n' || end[-1] == ' '))
		*--end = 0;
	line = strrchr(text, '\n');
	return line ? line + 1 : text;
}

/* Runs it to an end with status 0; ret may be NULL. */
static int run(struct fcvm_store *s, const char *const *argv, const char *cwd, const struct fcvm_until *until,
	char **ret, struct fcvm_err *err)
{
	const struct fcvm_spawn spec = {
		.argv = argv,
		.env = (const char *[]){"LC_ALL=C", "DEBIAN_FRONTEND=noninteractive", NULL},
		.cwd = cwd,
		.null_stdin = true,
	};
	struct fcvm_output o = {.out = NULL};
	int r = fcvm_node_exec(s->node, &spec, NULL, 0, OUTPUT_MAX, until, &o, err);

	if (r == -ENOENT)
		return fcvm_fail(err, r,
			"%s is not on this machine, and Debian's kernel and busybox are fetched by it; set FCVM_KERNEL, "
			"FCVM_MODULES and FCVM_BUSYBOX to files of your own",
			argv[0]);
	if (r < 0)
		return r;
	if (o.exit.code != 0 || o.exit.signal != 0)
		r = fcvm_fail(err, -EIO, "%s %s: %.400s", argv[0], argv[1], last_line(o.err));
	else if (ret)
		*ret = fcvm_steal_ptr(o.out);
	fcvm_output_done(&o);
	return r;
}

/* The value of a field in the first paragraph that has it; cut out of text. */
static char *field(char *text, const char *name)
{
	size_t length = strlen(name);

	for (char *rest = text, *line; (line = strsep(&rest, "\n"));)
		if (strncmp(line, name, length) == 0 && line[length] == ':')
			return line + length + 1;
	return NULL;
}

static bool begins_with_one(const char *s, const char *const *prefixes)
{
	for (; *prefixes; prefixes++)
		if (strncmp(s, *prefixes, strlen(*prefixes)) == 0)
			return true;
	return false;
}

int store_package_depends(struct fcvm_store *s, const char *package, const char *const *prefixes,
	const struct fcvm_until *until, char ***ret, struct fcvm_err *err)
{
	const char *const argv[] = {"apt-cache", "show", "--no-all-versions", package, NULL};
	_cleanup_(cleanup_strings) char **list = NULL;
	_cleanup_free_ char *text = NULL;
	char *rest, *one;
	unsigned n = 0;
	int r = run(s, argv, NULL, until, &text, err);

	if (r < 0 && r != -EIO)
		return r;
	if (r < 0 || !*text)
		return fcvm_fail(err, -ENOENT,
			"apt knows no package %s: run 'apt-get update' as root, or see that its sources have Debian's main",
			package);
	rest = field(text, "Depends");
	while (rest && (one = strsep(&rest, ","))) {
		char **bigger;

		one += strspn(one, " ");
		one[strcspn(one, " (:|")] = 0;
		if (!begins_with_one(one, prefixes))
			continue;
		bigger = realloc(list, (n + 2) * sizeof *list);
		if (!bigger)
			return fcvm_fail_errno(err, -ENOMEM, "package %s", package);
		list = bigger;
		list[n] = strdup(one);
		list[n + 1] = NULL;
		if (!list[n++])
			return fcvm_fail_errno(err, -ENOMEM, "package %s", package);
	}
	*ret = list ? fcvm_steal_ptr(list) : calloc(1, sizeof *list);
	return *ret ? 0 : fcvm_fail_errno(err, -ENOMEM, "package %s", package);
}

static int download(struct fcvm_store *s, const char *package, const char *work, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	const char *const argv[] = {"apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", "-o",
		"Acquire::Retries=2", "-o", "Acquire::http::Timeout=30", "-o", "Acquire::https::Timeout=30", package, NULL};
	struct fcvm_err why = FCVM_ERR_INIT;
	int r;

	fcvm_say(FCVM_SAY_PROGRESS, "fetch %s", package);
	r = run(s, argv, work, until, NULL, &why);
	if (r == -EIO)
		return fcvm_fail(err, r,
			"fetch package %s: %.600s; is there a network? 'apt-get update' as root may help, and FCVM_KERNEL, "
			"FCVM_MODULES and FCVM_BUSYBOX name files to be used instead",
			package, why.message);
	return r < 0 ? fcvm_fail(err, r, "fetch package %s: %.1200s", package, why.message) : 0;
}

/* ---- unpacking ---- */

static int archive_fail(struct archive *a, const char *what, struct fcvm_err *err)
{
	const char *why = archive_error_string(a);

	return fcvm_fail(err, archive_errno(a) == ENOMEM ? -ENOMEM : -EBADMSG, "unpack %s: %s", what,
		why ? why : "damaged");
}

struct inner {
	struct archive *outer;
	char buffer[64 * 1024];
};

static la_ssize_t read_inner(struct archive *a, void *data, const void **ret)
{
	struct inner *in = data;
	la_ssize_t n = archive_read_data(in->outer, in->buffer, sizeof in->buffer);

	if (n < 0)
		archive_set_error(a, archive_errno(in->outer), "%s", archive_error_string(in->outer));
	*ret = in->buffer;
	return n;
}

static int write_entry(struct archive *a, struct archive_entry *e, int dirfd, const char *name, struct fcvm_err *err)
{
	_cleanup_close_ int fd = openat(dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	char buffer[64 * 1024];
	int64_t left = FILE_MAX;
	la_ssize_t n;

	if (fd < 0)
		return errno == EEXIST ? 0 : fcvm_fail_errno(err, -errno, "unpack %s", name);
	while ((n = archive_read_data(a, buffer, sizeof buffer)) > 0) {
		int r = fcvm_fd_write_full(fd, buffer, n);

		left -= n;
		if (left < 0)
			r = -EFBIG;
		if (r < 0)
			return fcvm_fail_errno(err, r, "unpack %s", name);
	}
	return n < 0 ? archive_fail(a, name, err) : 0;
}

static int unpack_tar(struct archive *outer, const char *what, int dirfd, store_take_fn *take, struct fcvm_err *err)
{
	_cleanup_(cleanup_archive) struct archive *a = archive_read_new();
	_cleanup_free_ struct inner *in = calloc(1, sizeof *in);
	struct archive_entry *e;
	int r = 0, got = ARCHIVE_EOF;

	if (!a || !in)
		return fcvm_fail_errno(err, -ENOMEM, "unpack %s", what);
	in->outer = outer;
	archive_read_support_filter_all(a);
	archive_read_support_format_tar(a);
	if (archive_read_open(a, in, NULL, read_inner, NULL) != ARCHIVE_OK)
		return archive_fail(a, what, err);
	while (r == 0 && (got = archive_read_next_header(a, &e)) == ARCHIVE_OK) {
		const char *path = archive_entry_pathname(e);
		char to[256];

		if (path && strncmp(path, "./", 2) == 0)
			path += 2;
		/* `to` is a name, whatever the path says. */
		if (path && archive_entry_filetype(e) == AE_IFREG && take(path, to) && !strchr(to, '/'))
			r = write_entry(a, e, dirfd, to, err);
	}
	return r == 0 && got != ARCHIVE_EOF ? archive_fail(a, what, err) : r;
}

static int unpack_deb(int work, const char *name, int dirfd, store_take_fn *take, struct fcvm_err *err)
{
	_cleanup_(cleanup_archive) struct archive *a = archive_read_new();
	_cleanup_close_ int fd = openat(work, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	struct archive_entry *e;
	int got;

	if (!a || fd < 0)
		return fcvm_fail_errno(err, a ? -errno : -ENOMEM, "open %s", name);
	archive_read_support_format_ar(a);
	if (archive_read_open_fd(a, fd, 64 * 1024) != ARCHIVE_OK)
		return archive_fail(a, name, err);
	while ((got = archive_read_next_header(a, &e)) == ARCHIVE_OK) {
		const char *path = archive_entry_pathname(e);

		if (path && strncmp(path, "data.tar", 8) == 0)
			return unpack_tar(a, name, dirfd, take, err);
	}
	return got == ARCHIVE_EOF ? fcvm_fail(err, -EBADMSG, "unpack %s: it has no data.tar", name)
				  : archive_fail(a, name, err);
}

struct unpack {
	int dirfd;
	store_take_fn *take;
	struct fcvm_err *err;
};

static int unpack_one(void *data, int dirfd, const char *name)
{
	struct unpack *u = data;
	int r;

	if (fnmatch("*.deb", name, 0) != 0)
		return 0;
	r = unpack_deb(dirfd, name, u->dirfd, u->take, u->err);
	unlinkat(dirfd, name, 0);
	return r;
}

int store_packages_unpack(struct fcvm_store *s, const char *const *packages, const char *work, int dirfd,
	store_take_fn *take, const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_close_ int fd = store_open_dir(AT_FDCWD, work);
	struct unpack u = {.dirfd = dirfd, .take = take, .err = err};
	int r = fd < 0 ? fcvm_fail_errno(err, fd, "open %s", work) : 0;

	for (; r == 0 && *packages; packages++)
		r = download(s, *packages, work, until, err);
	return r < 0 ? r : store_each(fd, unpack_one, &u);
}

int store_decompress(const char *path, size_t max, char **ret, size_t *ret_size, struct fcvm_err *err)
{
	_cleanup_(cleanup_archive) struct archive *a = archive_read_new();
	_cleanup_free_ char *data = NULL;
	struct archive_entry *e;
	size_t size = 0, room = 64 * 1024;
	la_ssize_t n = 1;

	if (!a)
		return fcvm_fail_errno(err, -ENOMEM, "read %s", path);
	archive_read_support_filter_all(a);
	archive_read_support_format_raw(a);
	if (archive_read_open_filename(a, path, 64 * 1024) != ARCHIVE_OK ||
		archive_read_next_header(a, &e) != ARCHIVE_OK)
		return archive_fail(a, path, err);
	while (n > 0) {
		char *bigger = realloc(data, room);

		if (!bigger)
			return fcvm_fail_errno(err, -ENOMEM, "read %s", path);
		data = bigger;
		n = archive_read_data(a, data + size, room - size);
		if (n > 0)
			size += n;
		if (size > max)
			return fcvm_fail_errno(err, -EFBIG, "read %s", path);
		if (size == room)
			room *= 2;
	}
	if (n < 0)
		return archive_fail(a, path, err);
	*ret = fcvm_steal_ptr(data);
	*ret_size = size;
	return 0;
}
