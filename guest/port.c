/* SPDX-License-Identifier: MIT */
/* Virtio devices, and the virtio-serial port of a name: /sys/class/virtio-ports/vportNpM/name holds it, /dev/vportNpM
 * is it. */
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fd.h"

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

int port_open(const char *name)
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

bool virtio_has(unsigned kind)
{
	_cleanup_closedir_ DIR *dir = opendir("/sys/bus/virtio/devices");
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		_cleanup_free_ char *text = NULL;
		char path[300];

		snprintf(path, sizeof path, "/sys/bus/virtio/devices/%s/device", e->d_name);
		if (e->d_name[0] != '.' && fcvm_file_read(AT_FDCWD, path, 4096, &text, NULL) == 0 &&
			strtoul(text, NULL, 16) == kind)
			return true;
	}
	return false;
}
