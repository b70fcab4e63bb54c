/* SPDX-License-Identifier: MIT */
/* What the agent does as PID 1: the machine's start and end. */
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"

static const struct {
	const char *type, *where, *options;
	unsigned long flags;
	bool must;
} mounts[] = {
	{"proc", "/proc", NULL, MS_NOSUID | MS_NOEXEC | MS_NODEV, true},
	{"sysfs", "/sys", NULL, MS_NOSUID | MS_NOEXEC | MS_NODEV, true},
	{"devtmpfs", "/dev", "mode=0755", MS_NOSUID, true},
	{"devpts", "/dev/pts", "gid=5,mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC, false},
	{"tmpfs", "/dev/shm", "mode=1777", MS_NOSUID | MS_NODEV, false},
	{"tmpfs", "/run", "mode=0755", MS_NOSUID | MS_NODEV, false},
	{"tmpfs", "/tmp", "mode=1777", MS_NOSUID | MS_NODEV, false},
	{"cgroup2", "/sys/fs/cgroup", NULL, MS_NOSUID | MS_NOEXEC | MS_NODEV, false},
};

static void mount_all(void)
{
	for (unsigned i = 0; i < sizeof mounts / sizeof *mounts; i++) {
		mkdir(mounts[i].where, 0755);
		/* EBUSY: the kernel, or an earlier init, has done it. */
		if (mount(mounts[i].type, mounts[i].where, mounts[i].type, mounts[i].flags,
				mounts[i].options) < 0 &&
			errno != EBUSY && mounts[i].must)
			dprintf(STDERR_FILENO, "fcvm-agent: mount %s on %s: %s\n", mounts[i].type,
				mounts[i].where, strerror(errno));
	}
}

/* The kernel opens /dev/console for PID 1 only if the root file system has one. */
static void open_console(void)
{
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);

	if (fd < 0)
		fd = open("/dev/null", O_RDWR);
	if (fd < 0)
		return;
	for (int i = 0; i < 3; i++)
		if (fd != i)
			dup2(fd, i);
	if (fd > 2)
		fcvm_close(fd);
}

static void raise_loopback(void)
{
	struct ifreq ifr = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	_cleanup_close_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd >= 0)
		ioctl(fd, SIOCSIFFLAGS, &ifr);
}

/*
 * Terminal signals need no care: the kernel keeps from PID 1 every signal it has no handler for. Ctrl-alt-del
 * comes as SIGINT, which the loop takes for a wish to power off.
 */
void init_machine(void)
{
	umask(022);
	mount_all();
	open_console();
	reboot(RB_DISABLE_CAD);
	sethostname("fcvm", 4);
	raise_loopback();
	modules_load();
	if (chdir("/") < 0)
		dprintf(STDERR_FILENO, "fcvm-agent: chdir /: %s\n", strerror(errno));
}

/* ---- the end ---- */

/* Whether the process is one that users of volumes may still need (volume.c). */
static bool is_pump(pid_t pid, const char *program)
{
	_cleanup_free_ char *line = NULL;
	char path[64], own[PATH_MAX];
	size_t size;
	ssize_t n;

	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	n = readlink(path, own, sizeof own - 1);
	own[n < 0 ? 0 : n] = 0;
	snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
	if (strcmp(own, program) != 0 || fcvm_file_read(AT_FDCWD, path, 64 * 1024, &line, &size) < 0)
		return false;
	return size > strlen(line) + 1 && strcmp(line + strlen(line) + 1, "--mount") == 0;
}

/* Of the kernel's own threads, and of who has ended, there is no program. */
static bool has_program(pid_t pid)
{
	char path[64], to[1];

	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	return readlink(path, to, sizeof to) >= 0;
}

/* Signals all but us and the pumps; 0: it only looks. How many there are. */
static unsigned signal_users(int signo)
{
	_cleanup_closedir_ DIR *dir = opendir("/proc");
	char program[PATH_MAX] = "";
	struct dirent *e;
	unsigned found = 0;

	if (readlink("/proc/self/exe", program, sizeof program - 1) < 0)
		return 0;
	while (dir && (e = readdir(dir))) {
		pid_t pid = (pid_t)strtol(e->d_name, NULL, 10);

		if (pid > 1 && pid != getpid() && has_program(pid) && !is_pump(pid, program))
			found += kill(pid, signo) == 0;
	}
	return found;
}

/* Until none of them is left or the time is up. */
static bool await_users(int tries)
{
	for (; tries > 0; tries--) {
		if (signal_users(0) == 0)
			return true;
		nanosleep(&(struct timespec){.tv_nsec = 5 * 1000 * 1000}, NULL);
	}
	return false;
}

/* Some machines cannot be powered off, only reset, which their monitor takes for the end; their owner says so. */
static bool reset_is_off(void)
{
	_cleanup_free_ char *line = NULL;

	return fcvm_file_read(AT_FDCWD, "/proc/cmdline", 64 * 1024, &line, NULL) == 0 &&
	       strstr(line, "fcvm.poweroff=reboot");
}

/* In a process of its own: what is written to volumes until the last moment may have to be carried by us. */
static void end_machine(int what)
{
	if (fork() > 0)
		return;
	/* -1 is everybody but PID 1 and this process; pumps do not mind. */
	kill(-1, SIGTERM);
	if (!await_users(400)) {
		signal_users(SIGKILL);
		await_users(100);
	}
	/* With the pumps: what was closed by force, and what the kernel itself has in a volume, is written by them. */
	sync();
	kill(-1, SIGKILL);
	mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	if (what == FCVM_WIRE_POWEROFF && !reset_is_off())
		reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

/* Elsewhere the machine's own init knows how. */
static void ask_init(int what)
{
	const char *verb = what == FCVM_WIRE_REBOOT ? "reboot" : "poweroff";
	struct fcvm_proc p = FCVM_PROC_INIT;
	struct fcvm_err err = FCVM_ERR_INIT;
	struct fcvm_proc_spec spec = {
		.argv = (const char *[]){verb, NULL},
		.fds = (const int[]){-1, -1, -1},
		.nfds = 3,
		.new_session = true,
	};

	if (fcvm_proc_spawn(&spec, &p, &err) < 0)
		dprintf(STDERR_FILENO, "fcvm-agent: %s: %s\n", verb, err.message);
	fcvm_proc_done(&p); /* the loop reaps it */
}

void init_power(struct agent *a, int what)
{
	if (a->init)
		end_machine(what);
	else
		ask_init(what);
}
