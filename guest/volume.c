/* SPDX-License-Identifier: MIT */
/*
 * Volumes: MOUNT and UNMOUNT. The agent itself touches no mount, which may wait for the very host whose frames the agent
 * carries: workers do. The one that mounts leaves the pump behind as a process that belongs to nobody's lease.
 */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "base/address.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "base/until.h"
#include "fusepipe/control.h"
#include "fusepipe/guest/guest.h"
#include "wire/wire.h"

enum { NUMBER_SIZE = 12, PORT_MS = 5000, MOUNTINFO_MAX = 4 << 20, SOON_TRIES = 300 };

void volume_open_mount(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	char number[NUMBER_SIZE], flags[NUMBER_SIZE], readers[NUMBER_SIZE], rate[NUMBER_SIZE];
	struct fcvm_wire_mount m;
	const char *source, *target;
	int code;

	fcvm_wire_get_bytes(r, &m, sizeof m);
	source = fcvm_wire_get_string(r);
	target = fcvm_wire_get_string(r);
	if (!fcvm_wire_reader_ok(r) || *target != '/' || (m.flags & ~(FCVM_WIRE_MOUNT_READONLY | FCVM_WIRE_MOUNT_PORT)))
		return link_refuse(l, id, -EINVAL, "mount %s: malformed request", target);
	if (m.readers < 1 || m.readers > FCVM_FUSE_MAX_READERS)
		return link_refuse(l, id, -EINVAL, "mount %s: %u readers: 1 to %d there may be", target,
			(unsigned)m.readers, FCVM_FUSE_MAX_READERS);
	code = l->agent->init ? modules_need("fuse") : 0;
	if (code < 0)
		return link_refuse(l, id, code, "mount %s: load the kernel module fuse: %s", target, strerror(-code));
	l->agent->volumes = true;
	snprintf(number, sizeof number, "%u", (unsigned)m.number);
	snprintf(flags, sizeof flags, "%u", (unsigned)m.flags);
	snprintf(readers, sizeof readers, "%u", (unsigned)m.readers);
	snprintf(rate, sizeof rate, "%u", (unsigned)m.trace_rate);
	process_open_errand(l, id, "mount", target,
		(const char *[]){"--mount", target, source, number, flags, readers, rate, NULL});
}

void volume_open_unmount(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	uint32_t flags = fcvm_wire_get_u32(r);
	const char *target = fcvm_wire_get_string(r);

	if (!fcvm_wire_reader_ok(r) || *target != '/' || flags > 1)
		return link_refuse(l, id, -EINVAL, "unmount %s: malformed request", target);
	process_open_errand(l, id, "unmount", target, (const char *[]){"--unmount", target, flags ? "1" : "0", NULL});
}

/* ---- the workers ---- */

/* What /proc/self/mountinfo says of a place. */
struct place {
	bool volume;           /* one is mounted there, */
	char top[64];          /* beneath this type of file system, perhaps its own; "": nothing is */
	char within[PATH_MAX]; /* the last that is mounted in it; "": nothing is */
};

/* Its octal escapes, of what would end a field. */
static void unescape(char *text)
{
	char *to = text;

	for (; *text; text++, to++) {
		*to = *text;
		if (*text == '\\' && text[1] && text[2] && text[3]) {
			*to = (char)((text[1] & 3) << 6 | (text[2] & 7) << 3 | (text[3] & 7));
			text += 3;
		}
	}
	*to = 0;
}

/* A line: id, parent, device, root, where it is mounted, ... " - " type ... */
static void note_mount(struct place *p, const char *target, char *line)
{
	size_t size = strlen(target);
	char *dash = strstr(line, " - "), *at, *save = NULL;

	if (!dash)
		return;
	*dash = 0;
	at = strtok_r(line, " ", &save);
	for (unsigned i = 0; i < 4 && at; i++)
		at = strtok_r(NULL, " ", &save);
	if (!at)
		return;
	unescape(at);
	if (strcmp(at, target) == 0) {
		snprintf(p->top, sizeof p->top, "%.*s", (int)strcspn(dash + 3, " "), dash + 3);
		p->volume |= strcmp(p->top, "fuse.fcvm") == 0;
		p->within[0] = 0;
	} else if (strncmp(at, target, size) == 0 && at[size] == '/') {
		snprintf(p->within, sizeof p->within, "%s", at);
	}
}

static void look(struct place *p, const char *target)
{
	_cleanup_free_ char *text = NULL;
	char *line, *save = NULL;

	*p = (struct place){.volume = false};
	if (fcvm_file_read(AT_FDCWD, "/proc/self/mountinfo", MOUNTINFO_MAX, &text, NULL) < 0)
		return;
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		note_mount(p, target, line);
}

/* One that was unmounted just now may still be on its way out. */
static int bind_soon(int fd, const struct sockaddr *address, socklen_t size)
{
	for (unsigned tries = 0; bind(fd, address, size) < 0; tries++) {
		if (errno != EADDRINUSE || tries == SOON_TRIES)
			return -errno;
		nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
	}
	return listen(fd, FCVM_FUSE_MAX_READERS) < 0 ? -errno : 0;
}

/* By way of the agent. */
static int listen_unix(const char *target, unsigned number, struct fcvm_err *err)
{
	_cleanup_(fcvm_address_done) struct fcvm_address address = {.dirfd = -1};
	_cleanup_close_ int fd = -1;
	char text[64];
	int r;

	snprintf(text, sizeof text, "unix:@" FCVM_FUSE_ADDRESS, number);
	r = fcvm_address_parse(text, &address);
	if (r == 0)
		r = fd = fcvm_address_socket(&address);
	if (r >= 0)
		r = bind_soon(fd, &address.any, address.size);
	if (r == -EADDRINUSE)
		return fcvm_fail(err, r, "mount %s: there is a volume %u already, or somebody still uses it", target, number);
	return r < 0 ? fcvm_fail_errno(err, r, "mount %s: listen on %s", target, text) : fcvm_steal_fd(fd);
}

/* Straight from the host. 0 and -1: there is no vsock, or we may not; then it comes by the other way. A port that is taken
 * is a failure: the host would give the volume to whoever listens. */
static int listen_vsock(const char *target, unsigned number, int *ret, struct fcvm_err *err)
{
	const struct sockaddr_vm address = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = FCVM_WIRE_VSOCK_STREAMS + number};
	_cleanup_close_ int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int r = fd < 0 ? -errno : bind_soon(fd, (const struct sockaddr *)&address, sizeof address);

	if (r == -EADDRINUSE)
		return fcvm_fail(err, r, "mount %s: somebody listens on vsock port %u already", target, address.svm_port);
	*ret = r < 0 ? -1 : fcvm_steal_fd(fd);
	return 0;
}

/* It was plugged in just now: the kernel may not have heard all of it yet, that there is a host behind it last. */
static int await_port(const char *target, unsigned number, struct fcvm_err *err)
{
	struct fcvm_until until = fcvm_until_ms(PORT_MS, -1);
	_cleanup_close_ int fd = -1;
	char name[32];

	snprintf(name, sizeof name, FCVM_WIRE_PORT_STREAM, number);
	for (;;) {
		struct pollfd p = {.events = POLLOUT};

		p.fd = fd = port_open(name);
		if (fd >= 0 && poll(&p, 1, 0) >= 0 && !(p.revents & POLLHUP))
			return fcvm_steal_fd(fd);
		if (fcvm_until_passed(&until))
			return fcvm_fail(err, -ENODEV, "mount %s: the virtio port %s, which the host says is there: %s", target, name,
				fd < 0 ? strerror(-fd) : "no host is behind it");
		/* Not yet; or one of the same name that is on its way out. */
		fd = fcvm_close(fd);
		nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
	}
}

/* What ps tells of the pump, in place of the worker's arguments. They are one behind the other. */
static void show_as(char **argv, unsigned argc, const char *target)
{
	char text[PATH_MAX + 64];
	char *from = argv[0];
	size_t room = (size_t)(argv[argc - 1] + strlen(argv[argc - 1]) + 1 - from);
	int n = snprintf(text, sizeof text, "fcvm-agent%c--mount%c%s", 0, 0, target) + 1;

	if (n > (int)room)
		return;
	memset(from, 0, room);
	memcpy(from, text, (size_t)n);
	prctl(PR_SET_MM, PR_SET_MM_ARG_END, from + n, 0, 0);
	prctl(PR_SET_NAME, "fcvm-agent");
}

/* In a process of its own, which the machine's shutdown and a terminal's end do not concern: whoever still writes then
 * needs it. */
static int pump(const char *target, const struct fcvm_fuse_pump *config)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), r;

	setsid();
	signal(SIGTERM, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	for (int i = 0; null >= 0 && i < 3; i++)
		dup2(null, i);
	if (null > 2)
		fcvm_close(null);
	r = chdir("/") < 0 ? -errno : fcvm_fuse_pump(config, NULL);
	/* The agent is gone, and nobody can ever connect again; or nobody has. */
	if (r == -ECANCELED || r == -ETIMEDOUT)
		umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW);
	return r;
}

/* A look at one that nobody serves would wait for ever. */
static int await_place(const char *target, struct fcvm_err *err)
{
	struct place p;

	for (unsigned tries = 0; look(&p, target), p.volume; tries++) {
		if (tries == SOON_TRIES)
			return fcvm_fail(err, -EBUSY, "mount %s: a volume is mounted there already; unmount that first", target);
		nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
	}
	return 0;
}

/* The place by the name that mountinfo has for it. The last of it is not looked at: it may be a volume that nobody serves. */
static char *resolve(const char *wanted)
{
	const char *name = strrchr(wanted, '/') + 1;
	_cleanup_free_ char *parent = strndup(wanted, (size_t)(name - wanted)), *real = parent ? realpath(parent, NULL) : NULL;

	return real ? fcvm_asprintf("%s/%s", strcmp(real, "/") == 0 ? "" : real, name) : strdup(wanted);
}

/* A folder that nothing of ours is mounted on, made if need be. *ret: what to mount on. */
static int make_place(const char *wanted, char **ret, struct fcvm_err *err)
{
	_cleanup_free_ char *before = resolve(wanted), *real = NULL;
	struct stat st;
	int r = before ? await_place(before, err) : fcvm_fail_errno(err, -ENOMEM, "mount %s", wanted);

	if (r < 0)
		return r;
	r = fcvm_dir_make(wanted, 0755);
	if (r < 0)
		return fcvm_fail_errno(err, r, "mount %s: make the folder", wanted);
	real = resolve(wanted);
	if (!real || lstat(real, &st) < 0)
		return fcvm_fail_errno(err, real ? -errno : -ENOMEM, "mount %s", wanted);
	if (S_ISLNK(st.st_mode))
		return fcvm_fail(err, -ELOOP, "mount %s: it is a symbolic link; name the folder that it leads to", wanted);
	*ret = fcvm_steal_ptr(real);
	return 0;
}

int volume_mount(char **argv, struct fcvm_err *err)
{
	_cleanup_free_ char *target = NULL;
	pid_t agent = getppid(), child;
	_cleanup_close_ int end = (int)syscall(SYS_pidfd_open, agent, 0);
	_cleanup_close_ int here = -1, vsock = -1, port = -1;
	struct fcvm_fuse_pump config = {.peer = agent,
		.end_fd = end,
		.readers = (unsigned)strtoul(argv[6], NULL, 10),
		.trace_rate = (unsigned)strtoul(argv[7], NULL, 10)};
	unsigned number = (unsigned)strtoul(argv[4], NULL, 10), flags = (unsigned)strtoul(argv[5], NULL, 10);
	int r = make_place(argv[2], &target, err);
	sigset_t term;

	if (r < 0)
		return r;
	here = listen_unix(target, number, err);
	if (here < 0)
		return here;
	r = listen_vsock(target, number, &vsock, err);
	if (r < 0)
		return r;
	if (flags & FCVM_WIRE_MOUNT_PORT) {
		port = await_port(target, number, err);
		if (port < 0)
			return port;
		config.streams = &port;
		config.nstreams = 1;
	}
	/* Who gives up now finds either nothing mounted, or a volume that can be unmounted. */
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	sigprocmask(SIG_BLOCK, &term, NULL);
	config.device = fcvm_fuse_mount(argv[3], target, flags & FCVM_WIRE_MOUNT_READONLY, err);
	if (config.device < 0)
		return config.device;
	child = fork();
	if (child == 0) {
		show_as(argv, 8, target);
		config.listeners[0] = fcvm_steal_fd(here);
		config.listeners[1] = fcvm_steal_fd(vsock);
		_exit(pump(target, &config) < 0);
	}
	fcvm_close(config.device);
	if (child > 0)
		return 0;
	r = -errno;
	umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW);
	return fcvm_fail_errno(err, r, "mount %s: fork", target);
}

int volume_unmount(char **argv, struct fcvm_err *err)
{
	_cleanup_free_ char *target = resolve(argv[2]);
	bool now = argv[3][0] == '1';
	struct place p;

	if (!target)
		return fcvm_fail_errno(err, -ENOMEM, "unmount %s", argv[2]);
	look(&p, target);
	if (p.top[0] && !p.volume)
		return fcvm_fail(err, -EINVAL, "unmount %s: a file system %s is there, and no volume", target, p.top);
	if (strcmp(p.top, "fuse.fcvm") != 0 && p.volume)
		return fcvm_fail(err, -EBUSY, "unmount %s: a file system %s is mounted over it; unmount that first", target, p.top);
	if (umount2(target, UMOUNT_NOFOLLOW | (now ? MNT_DETACH : 0)) == 0)
		return 0;
	if (errno != EBUSY)
		return fcvm_fail_errno(err, -errno, "unmount %s", target);
	if (p.within[0])
		return fcvm_fail(err, -EBUSY, "unmount %s: %s is mounted in it; unmount that first, or force the unmount", target,
			p.within);
	return fcvm_fail(err, -EBUSY, "unmount %s: a program has a file or folder of it open, or is in it; end it, "
		"or force the unmount", target);
}
