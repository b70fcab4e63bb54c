/* SPDX-License-Identifier: MIT */
/*
 * fcvm logs: a VM's console.
 *
 * Theory of operation of --follow: the log is console.log in the VM's run folder, which becomes
 * console.log.1 when it is long, and goes with the folder when the VM does (renamed first, then
 * removed). inotify on the folder tells of all of that. The file is opened before it is read for
 * the first time, so that nothing falls between.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"
#include "fcvm.h"
#include "host/interrupt.h"
#include "host/terminal.h"
#include "host/verb.h"

FCVM_CLEANUP(struct fcvm_vm, fcvm_vm_free)

static int show(const char *id)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	_cleanup_free_ char *text = NULL;
	size_t size = 0;

	if (fcvm_vm_log(id, &text, &size, &err) < 0)
		return failed(&err);
	terminal_write(stdout, text, size);
	if (size && text[size - 1] != '\n')
		putchar('\n');
	return 0;
}

/* Copies what has been added to stdout. False: nobody reads that. */
static bool copy_rest(int fd)
{
	char buf[16384];
	ssize_t n;

	while ((n = read(fd, buf, sizeof buf)) > 0)
		if (!terminal_write(stdout, buf, (size_t)n))
			return false;
	return fflush(stdout) == 0;
}

static bool is_same(int fd, const char *path)
{
	struct stat a, b;

	return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_ino == b.st_ino &&
	       a.st_dev == b.st_dev;
}

/* Reads all waiting events; true: the folder has gone. */
static bool has_gone(int watch)
{
	_Alignas(struct inotify_event) char buf[4096];
	bool gone = false;
	ssize_t n;

	while ((n = read(watch, buf, sizeof buf)) > 0)
		for (char *p = buf; p < buf + n;) {
			const struct inotify_event *e = (const struct inotify_event *)p;

			gone |= (e->mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_IGNORED)) != 0;
			p += sizeof *e + e->len;
		}
	return gone;
}

static int follow_file(const char *dir, const char *path, int watch, struct fcvm_err *err)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct pollfd p[] = {
		{.fd = watch, .events = POLLIN}, {.fd = interrupt_fd(), .events = POLLIN}};
	bool gone = false;

	if (inotify_add_watch(watch, dir,
		    IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF) < 0)
		return fcvm_fail_errno(err, -errno, "watch %s", dir);
	for (;;) {
		if (fd >= 0 && !copy_rest(fd))
			return 0;
		if (gone)
			return 0;
		if (fd < 0 || !is_same(fd, path)) {
			fcvm_close(fd);
			fd = open(path, O_RDONLY | O_CLOEXEC);
			if (fd >= 0)
				continue;
		}
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			return fcvm_fail_errno(err, -errno, "watch %s", dir);
		if (interrupt_signal())
			return 0;
		gone = has_gone(watch);
	}
}

static int follow(const char *id)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	_cleanup_(cleanup_fcvm_vm_free) struct fcvm_vm *vm = NULL;
	_cleanup_close_ int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	_cleanup_free_ char *path = NULL;
	struct fcvm_vm_info info;

	if (watch < 0) {
		fcvm_fail_errno(&err, -errno, "watch %s", id);
		return failed(&err);
	}
	if (fcvm_vm_attach(&vm, id, &err) < 0)
		return failed(&err);
	fcvm_vm_get_info(vm, &info);
	path = fcvm_asprintf("%s/console.log", info.dir);
	if (!path)
		abort();
	if (follow_file(info.dir, path, watch, &err) < 0)
		return failed(&err);
	return interrupt_signal() ? EXIT_SIGNAL + interrupt_signal() : 0;
}

static int run(const struct args *args)
{
	return args_has(args, "follow") ? follow(args->operands[0]) : show(args->operands[0]);
}

static const struct option options[] = {
	{'f', "follow", NULL, "go on with what is added, until the VM ends"},
	{0},
};

const struct verb verb_logs = {
	.name = "logs",
	.operands = "ID",
	.summary = "Print a VM's console",
	.help = "The last part of it: the log is bounded. ID is an id or a name that fcvm ls\n"
		"shows.",
	.options = options,
	.min = 1,
	.max = 1,
	.run = run,
};
