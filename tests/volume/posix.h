/* SPDX-License-Identifier: MIT */
/* What the cases of posix.c share: calls that are written down, and looks at what they left. */
#ifndef FCVM_TESTS_POSIX_H
#define FCVM_TESTS_POSIX_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <grp.h>
#include <linux/falloc.h>
#include <unistd.h>

void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Writes down what a call said; returns it. */
long said(const char *what, long r);

/* The call and what it said, of those that return 0. Descriptors are noted as "fd". */
#define DO(call) said(#call, (long)(call))
#define OPEN(var, ...)                                                                             \
	int var = open(__VA_ARGS__);                                                               \
	note("open " #__VA_ARGS__ "=%s\n", var < 0 ? strerrorname_np(errno) : "fd")

void look(const char *name);                               /* type, mode, links, owner, size */
void make(const char *name, mode_t mode, const char *text);
/* Runs f as another user, whose notes count. Groups: gid and one more. */
void as(uid_t uid, gid_t gid, gid_t more, void (*f)(void));

extern char transcript[1 << 16];
extern size_t written;

struct posix_case {
	const char *name;
	void (*run)(void);
};

#define CASE(f) {#f, f}
/* Each file's, ended by one without a name. */
extern const struct posix_case posix_names[], posix_data[], posix_attributes[], posix_access[], posix_locks[];

#endif
