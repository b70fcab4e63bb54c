/* SPDX-License-Identifier: MIT */
/* What the tests of csrc/base share: a folder of their own under /tmp. */
#ifndef FCVM_TESTS_TEST_BASE_H
#define FCVM_TESTS_TEST_BASE_H

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "check.h"

static char folder[] = "/tmp/fcvm-test-base-XXXXXX";

static inline const char *at(const char *name)
{
	static char path[4][300];
	static unsigned i;

	i = (i + 1) % 4;
	snprintf(path[i], sizeof path[i], "%s/%s", folder, name);
	return path[i];
}

static inline bool holds(const char *path, const char *text)
{
	_cleanup_free_ char *data = NULL;
	size_t size;

	return fcvm_file_read(AT_FDCWD, path, 1 << 20, &data, &size) == 0 && strcmp(data, text) == 0;
}

static inline void put(const char *path, const char *text)
{
	CHECK(fcvm_file_replace(AT_FDCWD, path, text, strlen(text), 0644, false) == 0);
}

#endif
