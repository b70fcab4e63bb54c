/* SPDX-License-Identifier: MIT */
/* Small things with file descriptors and files. All descriptors made here are O_CLOEXEC. */
#ifndef FCVM_BASE_FD_H
#define FCVM_BASE_FD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/until.h"

int fcvm_fd_pair(int ret[static 2]);               /* a SOCK_STREAM socketpair; -errno */
int fcvm_fd_pipe(int ret[static 2]);               /* [0] reads, [1] writes; -errno */
int fcvm_fd_nonblock(int fd, bool on);             /* -errno */
int fcvm_fd_event(void);                           /* an eventfd, non-blocking; fd or -errno */

/* Blocking, for blocking fds and regular files: all of it, or -errno; reading: -ENODATA at an early end. */
int fcvm_fd_read_full(int fd, void *buf, size_t size);
int fcvm_fd_write_full(int fd, const void *buf, size_t size);

/* The same on sockets and pipes under a deadline (works whether or not the fd is non-blocking for sockets). */
int fcvm_fd_send_until(int fd, const void *buf, size_t size, const struct fcvm_until *until);

/*
 * Reads a whole file of at most `max` bytes beneath dirfd (AT_FDCWD allowed) into a NUL-terminated malloc'ed
 * buffer, caller frees. Returns 0, -EFBIG, or -errno; no error message.
 */
int fcvm_file_read(int dirfd, const char *path, size_t max, char **ret, size_t *ret_size);

/* The same of an open descriptor, from where it stands. */
int fcvm_fd_read_all(int fd, size_t max, char **ret, size_t *ret_size);

/* Writes name.tmp.<random> beneath dirfd and renames it over name. sync: fsync file and folder. -errno. */
int fcvm_file_replace(int dirfd, const char *name, const void *data, size_t size, mode_t mode, bool sync);

/* Makes `to` a copy of the file `from` that shares its blocks (FICLONE). 0 or -errno, -EOPNOTSUPP if the file system
 * cannot; then `to` is not there. */
int fcvm_file_reflink(const char *from, const char *to);

/* Makes each missing folder of the path with the mode. 0 or -errno. */
int fcvm_dir_make(const char *path, mode_t mode);

/* Makes a folder that has exactly the mode, whatever the umask. parents: as fcvm_dir_make those before it. 1, or 0 if
 * it was there already (without parents that is -EEXIST), or -errno. */
int fcvm_dir_create(const char *path, mode_t mode, bool parents);

/* Removes a file or folder with all it holds, never following symlinks or crossing into another mount; a missing
 * one is no error. 0 or the first -errno (the rest is removed all the same). */
int fcvm_tree_remove(int dirfd, const char *name);

/* Without what means nothing in an absolute path: "//", "/./" and a slash at the end; malloc'ed. NULL: it has "..", or no
 * memory. */
char *fcvm_path_plain(const char *path);

/* Random bytes from getrandom(2); cannot fail. */
void fcvm_random(void *buf, size_t size);

/* malloc'ed printf; NULL only when out of memory. */
char *fcvm_asprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
