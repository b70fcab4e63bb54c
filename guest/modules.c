/* SPDX-License-Identifier: MIT */
/*
 * The kernel modules that PID 1 loads, by /etc/modules-load. Lines, obeyed in their order:
 *
 *   PATH             loads it
 *   virtio:N PATH    if there is a virtio device of that kind (linux/virtio_ids.h); what makes a bus's devices known
 *                    must come before
 *   cpu:FLAG PATH    if /proc/cpuinfo has the flag
 *   need:NAME PATH   once something needs it (modules_need), not at the start
 *   # ...            says something
 */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"

static int load_module(const char *path)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	const char *end = strrchr(path, '.');
	int flags = end && strcmp(end, ".ko") != 0 ? 4 /* MODULE_INIT_COMPRESSED_FILE */ : 0;

	if (fd < 0)
		return -errno;
	if (syscall(SYS_finit_module, fd, "", flags) < 0 && errno != EEXIST)
		return -errno;
	return 0;
}

/* In the first processor's part, however many there are. */
static bool cpu_has(const char *flag)
{
	_cleanup_close_ int fd = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC);
	char text[16 * 1024], *line, *word;
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

	text[n < 0 ? 0 : n] = 0;
	line = strstr(text, "\nflags");
	if (!line)
		return false;
	line++;
	line[strcspn(line, "\n")] = 0;
	while ((word = strsep(&line, " \t")))
		if (strcmp(word, flag) == 0)
			return true;
	return false;
}

static bool is_met(const char *condition)
{
	if (strncmp(condition, "virtio:", 7) == 0)
		return virtio_has(strtoul(condition + 7, NULL, 10));
	if (strncmp(condition, "cpu:", 4) == 0)
		return cpu_has(condition + 4);
	if (strncmp(condition, "need:", 5) == 0)
		return false;
	dprintf(STDERR_FILENO, "fcvm-agent: /etc/modules-load: %s: not a condition\n", condition);
	return false;
}

void modules_load(void)
{
	_cleanup_free_ char *list = NULL;
	const char *last = "";
	char *rest, *path;
	bool met = true;

	if (fcvm_file_read(AT_FDCWD, "/etc/modules-load", 1024 * 1024, &list, NULL) < 0)
		return;
	for (rest = list; (path = strsep(&rest, "\n"));) {
		const char *condition = *path == '/' ? "" : strsep(&path, " ");
		int r;

		if (!path || *path != '/')
			continue;
		/* Lines of one condition stand together: a module, behind those it needs. */
		if (strcmp(condition, last) != 0)
			met = !*condition || is_met(condition);
		last = condition;
		r = met ? load_module(path) : 0;
		if (r < 0)
			dprintf(STDERR_FILENO, "fcvm-agent: load %s: %s\n", path, strerror(-r));
	}
}

int modules_need(const char *name)
{
	_cleanup_free_ char *list = NULL;
	char *rest, *path;
	int r = 0;

	if (fcvm_file_read(AT_FDCWD, "/etc/modules-load", 1024 * 1024, &list, NULL) < 0)
		return 0;
	for (rest = list; r == 0 && (path = strsep(&rest, "\n"));) {
		const char *condition = strsep(&path, " ");

		if (path && *path == '/' && strncmp(condition, "need:", 5) == 0 && strcmp(condition + 5, name) == 0)
			r = load_module(path);
	}
	return r;
}
