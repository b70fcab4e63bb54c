/* SPDX-License-Identifier: MIT */
/* What tests of the volume's server ask of this host. */
#ifndef FCVM_TESTS_FUSE_H
#define FCVM_TESTS_FUSE_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

/* KiB of the process that are in memory. */
static inline size_t memory_of(pid_t pid)
{
	char path[64], line[256];
	size_t kb = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "VmRSS: %zu", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb;
}

/* Whether files of that folder can be found by handles, by us. */
static inline bool has_handles(const char *folder)
{
	struct {
		struct file_handle h;
		char bytes[MAX_HANDLE_SZ];
	} h = {.h.handle_bytes = MAX_HANDLE_SZ};
	int mount;

	return !geteuid() && !name_to_handle_at(AT_FDCWD, folder, &h.h, &mount, 0);
}

#endif
