/* SPDX-License-Identifier: MIT */
/* What the files of the store share. */
#ifndef FCVM_STORE_STORE_PRIVATE_H
#define FCVM_STORE_STORE_PRIVATE_H

#include <sys/stat.h>

#include "store/store.h"

struct fcvm_store {
	struct fcvm_node *node; /* referenced */
	char *data, *run;       /* absolute, without symbolic links */
	int data_fd, run_fd, tmp_fd;
};

enum {
	STORE_MANIFEST_MAX = 1024 * 1024, /* bytes of any JSON file that is read */
	STORE_NAME_MAX = 64,
	STORE_HASH = 33, /* XXH3-128 as text, with its NUL */
};

/* ---- files (files.c): what was found is taken as it is, never through a symbolic link ---- */

/* A regular file of at most max bytes. 0, -ELOOP (a symbolic link), -EINVAL (no regular file), -EFBIG, -errno. */
int store_read_file(int dirfd, const char *name, size_t max, char **ret, size_t *ret_size);
/* A JSON object of a regular file, or NULL. */
struct fcvm_json *store_read_json(int dirfd, const char *name);
/* An fd or -errno. */
int store_open_dir(int dirfd, const char *name);
/* Makes it if it is missing. An fd or -errno. */
int store_make_dir(int dirfd, const char *name);
/* Calls fn for each entry but "." and ".."; entries may be removed meanwhile. Its non-zero return ends the walk. */
int store_each(int dirfd, int (*fn)(void *data, int dirfd, const char *name), void *data);
/* What removing it would give back to the disk. */
uint64_t store_bytes(int dirfd, const char *name);
/* Renamed first, so that it is gone at once and for good, whoever dies meanwhile. */
int store_discard(int dirfd, const char *name);
/* {what, path, bytes} of dir/name; report may be NULL. */
void store_report(struct fcvm_json *report, const char *what, const char *dir, const char *name, uint64_t bytes);
/* Letters, digits, "._-", at most 64, not beginning with '.' or '-'. */
bool store_name_ok(const char *name);
/* An exclusive flock on dirfd/name (made if missing): an fd, or -EWOULDBLOCK, -ETIMEDOUT, -ECANCELED, -errno. */
int store_lock(int dirfd, const char *name, const struct fcvm_until *until);
/* 1024 -> "1 KiB", for messages. */
const char *store_size(uint64_t bytes, char to[static 24]);

/* ---- leases (lease.c) beneath any folder; data/tmp is where things are made ---- */

int store_work_new(struct fcvm_store *s, struct fcvm_lease *ret, struct fcvm_err *err);
void store_work_done(struct fcvm_store *s, struct fcvm_lease *l);
int store_sweep_dir(int dirfd, const char *dir, const char *what, struct fcvm_json *report, struct fcvm_err *err);

/* ---- hashes (hash.c) ---- */

void store_hash_bytes(char ret[static STORE_HASH], const void *data, size_t size);
/*
 * Hash of a file's size and content, whether zeros are holes or not. to >= 0: is made a sparse copy on the way
 * (an empty file; reflinked where the disk can). Several threads. 0 or -errno.
 */
int store_hash_file(int from, int to, char ret[static STORE_HASH]);

/* ---- manifests (manifest.c) ---- */

/* Of a snapshot: the most there may be. Behind the VMM's come the volumes'. */
enum {
	STORE_FILE_MEMORY,
	STORE_FILE_STATE,
	STORE_FILE_VOLUMES,
	STORE_FILES = STORE_FILE_VOLUMES + FCVM_MANIFEST_VOLUMES,
	STORE_FILE_NAME = 32,
};
unsigned store_files(const struct fcvm_manifest *m); /* how many there are */
void store_file_name(const struct fcvm_manifest *m, unsigned i, char to[static STORE_FILE_NAME]);
struct store_file {
	uint64_t size;
	char hash[STORE_HASH]; /* "": not known */
};
int store_manifest_put(int dirfd, const struct fcvm_manifest *m, const struct store_file files[static STORE_FILES],
	bool sync, struct fcvm_err *err);

/* ---- images ---- */

int store_gc_images(struct fcvm_store *s, int64_t max_age_s, struct fcvm_json *report, struct fcvm_err *err);
/* malloc'ed key of the image in use, or NULL. */
char *store_image_current(struct fcvm_store *s, const char *name);

#endif
