/* SPDX-License-Identifier: MIT */
/* The virtio-serial port of a name: /sys/class/virtio-ports/vportNpM/name holds it, /dev/vportNpM is it. */
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/until.h"

static bool is_named(const char *device, const char *name)
{
	_cleanup_free_ char *text = NULL;
	char path[300];

	snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", device);
	if (fcvm_file_read(AT_FDCWD, path, 4096, &text, NULL) < 0)
		return false;
	text[strcspn(text, "\n")] = 0;
	return strcmp(text, name) == 0;
}

static int try_open(const char *name)
{
	_cleanup_closedir_ DIR *dir = opendir("/sys/class/virtio-ports");
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		char path[300];
		int fd;

		if (e->d_name[0] == '.' || !is_named(e->d_name, name))
			continue;
		snprintf(path, sizeof path, "/dev/%s", e->d_name);
		fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		return fd < 0 ? -errno : fd;
	}
	return -ENOENT;
}

int port_open(const char *name, int timeout_ms)
{
	int64_t deadline = fcvm_now_ns() + timeout_ms * 1000000ll;
	long wait_ms = 2;

	/* The kernel tells of neither the driver nor the name in a way that can be waited for. */
	for (;;) {
		int fd = try_open(name);

		if (fd >= 0 || fcvm_now_ns() >= deadline)
			return fd;
		nanosleep(&(struct timespec){.tv_nsec = wait_ms * 1000000}, NULL);
		wait_ms = wait_ms < 100 ? wait_ms * 2 : 200;
	}
}
