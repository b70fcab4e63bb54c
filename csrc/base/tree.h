/* SPDX-License-Identifier: MIT */
/*
 * A file or folder as a byte stream, for copies between nodes: the sender packs, the receiver unpacks.
 *
 * Format, version 1, all integers little endian: records of struct fcvm_tree_entry, the path (relative to the
 * packed root, empty for the root itself, no "." or ".." components, no leading '/'), for symlinks the target;
 * for regular files then extents (u64 offset, u64 length, data) ended by one of length 0: holes are not sent.
 * The stream ends with an entry of type FCVM_TREE_END. Sockets are skipped.
 *
 * Unpacking treats the stream as hostile: names are checked, parents are opened beneath the destination without
 * following symlinks, set-id bits are dropped unless keep_owner is set. Entries come depth first, each folder
 * before what it holds.
 */
#ifndef FCVM_BASE_TREE_H
#define FCVM_BASE_TREE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum fcvm_tree_type {
	FCVM_TREE_END = 0,
	FCVM_TREE_FILE = 1,
	FCVM_TREE_DIR = 2,
	FCVM_TREE_SYMLINK = 3,
	FCVM_TREE_FIFO = 4,
	FCVM_TREE_DEVICE = 5, /* char or block, told by mode; unpacked only with keep_owner and privilege */
};

struct fcvm_tree_entry {
	uint8_t magic;   /* 0xf5 */
	uint8_t type;    /* enum fcvm_tree_type */
	uint16_t path_len;
	uint32_t mode;   /* permission and type bits as in st_mode */
	uint32_t uid;
	uint32_t gid;
	int64_t mtime_ns;
	uint64_t size;   /* of a regular file */
	uint32_t target_len;
	uint32_t rdev;
};
_Static_assert(sizeof(struct fcvm_tree_entry) == 40, "on the wire");

/*
 * Packs `path` (a symlink as such; its own name is not sent) into fd, blocking. A receiver that has gone is -EPIPE
 * on a socket; on a pipe it also raises SIGPIPE, as write(2) does.
 */
int fcvm_tree_pack(int fd, const char *path, struct fcvm_err *err);

/*
 * Unpacks from fd to `path`, blocking. If the stream's root is a folder, path is made or merged into; if a file,
 * path is the file (written as path.fcvm-XXXXXX and renamed) or, if path is an existing folder and base_name is
 * not NULL, path/base_name. On failure the file at hand, and the root if it was made, are removed; what was already
 * put into a folder that was there stays. Folders that were there keep their owner, mode and time; files that were
 * there are replaced. Without keep_owner set-user-ID and set-group-ID bits are dropped.
 */
int fcvm_tree_unpack(int fd, const char *path, const char *base_name, bool keep_owner, struct fcvm_err *err);

#endif
