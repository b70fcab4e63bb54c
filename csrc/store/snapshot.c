/* SPDX-License-Identifier: MIT */
/*
 * Published snapshots: data/snapshots/NAME and data/warm/KEY.
 *
 * Made in tmp/ID/new and renamed into place. Who uses one holds a shared flock on its folder; who removes it
 * takes an exclusive one, renames it into tmp/ID (a lease of its own, so that what is left of a removal that
 * dies is swept) and then looks no further: whoever holds or finds it afterwards sees that the path is gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statvfs.h>

#include "base/fail.h"
#include "base/fd.h"
#include "store/store_private.h"

static const char remedy_take[] = "fcvm snapshot ls shows those that are there";

/* Opens data/KIND (made if missing). An fd or -errno with the message set. */
static int open_kind(struct fcvm_store *s, const char *kind, struct fcvm_err *err)
{
	int fd;

	if (strcmp(kind, "snapshots") != 0 && strcmp(kind, "warm") != 0)
		return fcvm_fail(err, -EINVAL, "snapshots are kept in \"snapshots\" and \"warm\", not in \"%s\"", kind);
	fd = store_make_dir(s->data_fd, kind);
	return fd < 0 ? fcvm_fail_errno(err, fd, "open %s/%s", s->data, kind) : fd;
}

static int check_name(const char *name, struct fcvm_err *err)
{
	if (store_name_ok(name))
		return 0;
	return fcvm_fail(err, -EINVAL,
		"snapshot name \"%.80s\": use letters, digits and \"._-\", at most %d, beginning with a letter or digit",
		name ? name : "", (int)STORE_NAME_MAX);
}

static int not_there(const char *name, struct fcvm_err *err)
{
	return fcvm_fail(err, -ENOENT, "there is no snapshot %s; %s", name, remedy_take);
}

/* ---- publishing ---- */

static int copy_file(int from_dir, int to_dir, const char *name, struct store_file *ret)
{
	_cleanup_close_ int from = openat(from_dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	_cleanup_close_ int to = -1;
	struct stat st;
	int r;

	if (from < 0 || fstat(from, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	to = openat(to_dir, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (to < 0)
		return -errno;
	ret->size = st.st_size;
	r = store_hash_file(from, to, ret->hash);
	if (r == 0 && fsync(to) < 0)
		r = -errno;
	return r;
}

/* Everything but the rename. */
static int fill(struct fcvm_store *s, int from, int to, const struct fcvm_manifest *m, struct fcvm_err *err)
{
	struct store_file files[STORE_FILES] = {{.size = 0}};
	uint64_t needed = 64 * 1024; /* the manifest, the folder */
	char name[STORE_FILE_NAME];
	int r = 0;

	for (unsigned i = 0; i < store_files(m); i++) {
		store_file_name(m, i, name);
		needed += store_bytes(from, name);
	}
	/* No check beforehand: a reflink needs next to nothing. */
	for (unsigned i = 0; r == 0 && i < store_files(m); i++) {
		store_file_name(m, i, name);
		r = copy_file(from, to, name, &files[i]);
		if (r == -ENOSPC || r == -EDQUOT)
			return fcvm_store_disk_full(r, s->data, needed, "keep it", err);
		if (r < 0)
			return fcvm_fail_errno(err, r, "copy %s to %s", name, s->data);
	}
	r = store_manifest_put(to, m, files, true, err);
	if (r == -ENOSPC || r == -EDQUOT)
		return fcvm_store_disk_full(r, s->data, needed, "keep it", err);
	return r;
}

/* -EEXIST without a message. */
static int make_and_rename(struct fcvm_store *s, int from, const struct fcvm_manifest *m, int kind_fd,
	const char *name, struct fcvm_err *err)
{
	struct fcvm_lease work = FCVM_LEASE_INIT;
	_cleanup_close_ int to = -1;
	int r = store_work_new(s, &work, err);

	if (r < 0)
		return r;
	to = store_make_dir(work.dirfd, "new");
	r = to < 0 ? fcvm_fail_errno(err, to, "make a folder in %s", work.path) : fill(s, from, to, m, err);
	/* Onto an existing one this fails, since that is not empty. */
	if (r == 0 && (fsync(to) < 0 || renameat(work.dirfd, "new", kind_fd, name) < 0)) {
		r = errno == ENOTEMPTY ? -EEXIST : -errno;
		if (r != -EEXIST)
			fcvm_fail_errno(err, r, "rename into place in %s", s->data);
	}
	if (r == 0)
		fsync(kind_fd);
	store_work_done(s, &work);
	return r;
}

int fcvm_snapshot_publish(struct fcvm_store *s, const char *from_dir, const struct fcvm_manifest *m,
	const char *kind, const char *name, char **ret_dir, struct fcvm_err *err)
{
	_cleanup_close_ int kind_fd = -1, from = -1;
	_cleanup_free_ char *dir = NULL;
	int r = check_name(name, err);

	if (r < 0)
		return r;
	kind_fd = open_kind(s, kind, err);
	if (kind_fd < 0)
		return kind_fd;
	from = store_open_dir(AT_FDCWD, from_dir);
	if (from < 0)
		return fcvm_fail_errno(err, from, "snapshot %s: open %s", name, from_dir);
	dir = fcvm_asprintf("%s/%s/%s", s->data, kind, name);
	if (!dir)
		return fcvm_fail_errno(err, -ENOMEM, "snapshot %s", name);
	/* Looked at first, since the copy may be long; the rename decides. */
	if (faccessat(kind_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
		r = -EEXIST;
	else {
		r = make_and_rename(s, from, m, kind_fd, name, err);
		if (r < 0 && r != -EEXIST) {
			fcvm_fail_prefix(err, "snapshot %s", name);
			return r;
		}
	}
	if (r == -EEXIST && strcmp(kind, "warm") != 0)
		return fcvm_fail(err, r, "snapshot %s exists already; remove it first, or take another name", name);
	if (ret_dir)
		*ret_dir = fcvm_steal_ptr(dir);
	return 0;
}

/* ---- using ---- */

int fcvm_snapshot_find(struct fcvm_store *s, const char *kind, const char *name, char **ret_dir,
	struct fcvm_err *err)
{
	_cleanup_close_ int kind_fd = -1, fd = -1;
	int r = check_name(name, err);
	char *dir;

	if (r < 0)
		return r;
	kind_fd = open_kind(s, kind, err);
	if (kind_fd < 0)
		return kind_fd;
	fd = store_open_dir(kind_fd, name);
	if (fd == -ENOENT)
		return not_there(name, err);
	if (fd == -ENOTDIR || fd == -ELOOP)
		return fcvm_fail(err, -EINVAL, "snapshot %s: %s/%s/%s is a symbolic link or a file; remove it", name,
			s->data, kind, name);
	if (fd < 0)
		return fcvm_fail_errno(err, fd, "snapshot %s: open %s/%s/%s", name, s->data, kind, name);
	dir = fcvm_asprintf("%s/%s/%s", s->data, kind, name);
	if (!dir)
		return fcvm_fail_errno(err, -ENOMEM, "snapshot %s", name);
	futimens(fd, NULL); /* for gc's eyes; on a disk that is read-only gc does nothing either */
	*ret_dir = dir;
	return 0;
}

/* True: the open folder is still what the path names. */
static bool still_there(int fd, int dirfd, const char *path)
{
	struct stat open_st, path_st;

	return fstat(fd, &open_st) == 0 && fstatat(dirfd, path, &path_st, AT_SYMLINK_NOFOLLOW) == 0 &&
	       open_st.st_ino == path_st.st_ino && open_st.st_dev == path_st.st_dev;
}

int fcvm_snapshot_hold(const char *dir)
{
	_cleanup_close_ int fd = store_open_dir(AT_FDCWD, dir);

	if (fd < 0)
		return fd;
	if (flock(fd, LOCK_SH | LOCK_NB) < 0)
		return errno == EWOULDBLOCK ? -ENOENT : -errno; /* it is being removed */
	return still_there(fd, AT_FDCWD, dir) ? fcvm_steal_fd(fd) : -ENOENT;
}

/* ---- removing ---- */

int fcvm_snapshot_remove(struct fcvm_store *s, const char *kind, const char *name, struct fcvm_err *err)
{
	struct fcvm_lease work = FCVM_LEASE_INIT;
	_cleanup_close_ int kind_fd = -1, fd = -1;
	int r = check_name(name, err);

	if (r < 0)
		return r;
	kind_fd = open_kind(s, kind, err);
	if (kind_fd < 0)
		return kind_fd;
	fd = store_open_dir(kind_fd, name);
	if (fd == -ENOENT)
		return not_there(name, err);
	if (fd == -ENOTDIR || fd == -ELOOP) /* somebody's symbolic link or file: only that goes */
		return unlinkat(kind_fd, name, 0) < 0 ? fcvm_fail_errno(err, -errno, "remove snapshot %s", name) : 0;
	if (fd < 0)
		return fcvm_fail_errno(err, fd, "remove snapshot %s: open %s/%s/%s", name, s->data, kind, name);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK
			       ? fcvm_fail(err, -EBUSY,
					 "snapshot %s is in use by a program that has it open (fcvm.snapshot); end that first", name)
			       : fcvm_fail_errno(err, -errno, "remove snapshot %s: lock it", name);
	if (!still_there(fd, kind_fd, name))
		return not_there(name, err);
	/* On a full disk there may be no room even for a folder. */
	if (store_work_new(s, &work, NULL) == 0 && renameat(kind_fd, name, work.dirfd, "old") == 0)
		r = 0;
	else
		r = store_discard(kind_fd, name);
	store_work_done(s, &work);
	return r < 0 ? fcvm_fail_errno(err, r, "remove snapshot %s", name) : 0;
}

/* ---- listing ---- */

static void describe(int fd, struct fcvm_json *entry)
{
	_cleanup_free_ char *text = NULL;
	struct fcvm_manifest m = {.memory = 0};
	struct fcvm_err why = FCVM_ERR_INIT;
	size_t size;
	int r = store_read_file(fd, "manifest.json", STORE_MANIFEST_MAX, &text, &size);

	if (r < 0)
		fcvm_fail_errno(&why, r, "manifest.json");
	else
		r = fcvm_manifest_parse(text, size, &m, NULL, &why);
	if (r < 0) {
		fcvm_json_set_string(entry, "damaged", why.message);
		return;
	}
	fcvm_json_set_int(entry, "created", m.created_ns / 1000000000);
	fcvm_json_set_int(entry, "memory", (int64_t)m.memory);
	fcvm_json_set_int(entry, "vcpus", m.vcpus);
	fcvm_json_set_string(entry, "vm_name", m.vm_name);
	fcvm_json_set_string(entry, "image", m.image);
	fcvm_json_set_string(entry, "driver", m.driver);
	fcvm_json_set_string(entry, "version", m.version);
	fcvm_json_set_string(entry, "accel", m.accel);
	fcvm_manifest_done(&m);
}

static int list_one(void *data, int dirfd, const char *name)
{
	_cleanup_close_ int fd = -1;
	struct fcvm_json *entry;

	if (!store_name_ok(name))
		return 0;
	fd = store_open_dir(dirfd, name);
	if (fd < 0)
		return 0;
	entry = fcvm_json_object();
	if (!entry)
		return -ENOMEM;
	fcvm_json_set_string(entry, "name", name);
	describe(fd, entry);
	fcvm_json_set_int(entry, "bytes", (int64_t)store_bytes(dirfd, name));
	return fcvm_json_append(data, entry);
}

int fcvm_snapshot_list(struct fcvm_store *s, struct fcvm_json *array, struct fcvm_err *err)
{
	_cleanup_close_ int kind_fd = open_kind(s, "snapshots", err);
	int r;

	if (kind_fd < 0)
		return kind_fd;
	r = store_each(kind_fd, list_one, array);
	return r < 0 ? fcvm_fail_errno(err, r, "list %s/snapshots", s->data) : 0;
}
