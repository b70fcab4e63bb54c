/* SPDX-License-Identifier: MIT */
/* What the tests of the store and of its images share: a temporary folder, children that check. */
#ifndef FCVM_TESTS_TEST_STORE_H
#define FCVM_TESTS_TEST_STORE_H

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "check.h"
#include "store/store.h"

static char *base; /* of everything here */

#define SAYS(err, part) (strstr((err).message, part) || (fprintf(stderr, "  says: %s\n", (err).message), 0))

static inline char *in(const char *name)
{
	return fcvm_asprintf("%s/%s", base, name);
}

static inline void put(const char *dir, const char *name, const void *data, size_t size)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	CHECK(fd >= 0 && fcvm_file_replace(fd, name, data, size, 0600, false) == 0);
	fcvm_close(fd);
}

static inline bool exists(const char *dir, const char *name)
{
	_cleanup_free_ char *path = fcvm_asprintf("%s/%s", dir, name);
	struct stat st;

	return lstat(path, &st) == 0;
}

/* Entries of a folder whose names do not begin with `except`. */
static inline unsigned count(const char *dir, const char *except)
{
	_cleanup_closedir_ DIR *d = opendir(dir);
	struct dirent *e;
	unsigned n = 0;

	while (d && (e = readdir(d)))
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && strcmp(e->d_name, except) != 0)
			n++;
	return n;
}

static inline struct fcvm_store *open_store(struct fcvm_node *node)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	struct fcvm_store *s = NULL;

	if (fcvm_store_open(&s, node, &err) < 0)
		fprintf(stderr, "%s\n", err.message);
	CHECK(s);
	return s;
}

/* Runs fn in a child process and counts its failures as ours. */
static inline pid_t begin(void (*fn)(void))
{
	pid_t pid = fork();

	if (pid == 0) {
		check_failed = 0;
		fn();
		fflush(NULL);
		_exit(check_failed > 0);
	}
	return pid;
}

static inline bool ended_well(pid_t pid)
{
	int status = -1;

	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static inline void overwrite(const char *dir, const char *file, off_t at, const char *text)
{
	_cleanup_free_ char *path = fcvm_asprintf("%s/%s", dir, file);
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	CHECK(fd >= 0 && pwrite(fd, text, strlen(text), at) == (ssize_t)strlen(text));
	close(fd);
}

/* Makes the folder, and the environment that puts the store into it. */
static inline int begin_store_test(void)
{
	static char template[] = "/tmp/fcvm-store-XXXXXX";
	_cleanup_free_ char *data = NULL, *run = NULL;

	base = mkdtemp(template);
	if (!base)
		return -errno;
	data = in("data");
	run = in("run");
	return setenv("FCVM_DATA", data, 1) < 0 || setenv("FCVM_RUN", run, 1) < 0 ? -errno : 0;
}

#endif
