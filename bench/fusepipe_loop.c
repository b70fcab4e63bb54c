/* SPDX-License-Identifier: MIT */
/*
 * fusepipe-loop - both halves of a volume on one host, joined by socketpairs: the code that a guest and its host run,
 * without the VM. For benches, POSIX tests and outside test suites.
 *
 * Three processes: the server, the pump, and this one, which mounts, waits for either to end or for SIGTERM/SIGINT,
 * and unmounts. Without --foreground it returns when the mount answers.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"
#include "fusepipe/guest/guest.h"
#include "fusepipe/host/host.h"

enum { IDS_MAX = 16, TIMEOUT_S = 1 };

struct loop {
	struct fcvm_fuse_volume volume;
	struct fcvm_fuse_ids ids[IDS_MAX];
	char folder[PATH_MAX], target[PATH_MAX];
	unsigned readers;
	bool foreground;
	int host[FCVM_FUSE_MAX_STREAMS], guest[FCVM_FUSE_MAX_STREAMS];
	int device;
	pid_t server, pump;
};

static const char help[] =
	"usage: fusepipe-loop SRC MOUNTPOINT [OPTION]...\n"
	"\n"
	"Mounts the folder SRC at MOUNTPOINT by both halves of a volume, without a VM. Returns\n"
	"when the mount answers; umount MOUNTPOINT ends it. Needs root and /dev/fuse.\n"
	"\n"
	"  --readers N           threads and streams (1)\n"
	"  --cache MODE          what the mount may take for granted: auto, names and attributes\n"
	"                        for a second (the default); none, nothing\n"
	"  --timeout SECONDS     the same for so long\n"
	"  --foreground          return when the mount ends: by umount, SIGINT or SIGTERM\n"
	"  --readonly            nothing is written\n"
	"  --devices             devices may be made\n"
	"  --local-locks         locks exclude within the mount only\n"
	"  --max-nodes N         files that may be known at a time (1,000,000)\n"
	"  --map GUEST:HOST:COUNT\n"
	"                        so many user and group ids from GUEST on are those from HOST\n"
	"                        on; may be given more than once\n"
	"  --help                this text\n";

static int usage(void)
{
	fprintf(stderr, "usage: fusepipe-loop SRC MOUNTPOINT [--readers N] [--cache auto|none] [--foreground] [OPTION]...\n"
		"       (fusepipe-loop --help says more)\n");
	return 2;
}

static bool add_ids(struct loop *l, const char *text)
{
	struct fcvm_fuse_ids *ids = &l->ids[l->volume.nuids];

	if (l->volume.nuids == IDS_MAX || sscanf(text, "%u:%u:%u", &ids->guest, &ids->host, &ids->count) != 3)
		return false;
	l->volume.uids = l->volume.gids = l->ids;
	l->volume.ngids = ++l->volume.nuids;
	return true;
}

static bool set_cache(struct loop *l, const char *mode)
{
	bool none = !strcmp(mode, "none");

	l->volume.timeout_s = none ? 0 : TIMEOUT_S;
	return none || !strcmp(mode, "auto");
}

static bool take_option(struct loop *l, int c)
{
	switch (c) {
	case 'n':
		l->readers = (unsigned)atoi(optarg);
		return true;
	case 'c':
		return set_cache(l, optarg);
	case 't':
		l->volume.timeout_s = atof(optarg);
		return true;
	case 'f':
		return l->foreground = true;
	case 'r':
		return l->volume.readonly = true;
	case 'd':
		return l->volume.devices = true;
	case 'l':
		return l->volume.local_locks = true;
	case 'm':
		l->volume.max_nodes = (unsigned)atoi(optarg);
		return true;
	case 'i':
		return add_ids(l, optarg);
	case 'h':
		fputs(help, stdout);
		exit(0);
	default:
		return false;
	}
}

static bool parse(struct loop *l, int argc, char **argv)
{
	static const struct option options[] = {
		{"readers", required_argument, NULL, 'n'},   {"readonly", no_argument, NULL, 'r'},
		{"devices", no_argument, NULL, 'd'},         {"timeout", required_argument, NULL, 't'},
		{"max-nodes", required_argument, NULL, 'm'}, {"map", required_argument, NULL, 'i'},
		{"foreground", no_argument, NULL, 'f'},      {"local-locks", no_argument, NULL, 'l'},
		{"cache", required_argument, NULL, 'c'},     {"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
		if (!take_option(l, c))
			return false;
	return optind + 2 == argc && l->readers >= 1 && l->readers <= FCVM_FUSE_MAX_STREAMS;
}

/* In a child: says what went wrong and ends. */
static void end(int r, const struct fcvm_err *err)
{
	if (r)
		fprintf(stderr, "fusepipe-loop: %s\n", err->message);
	_exit(r != 0);
}

static pid_t start(struct loop *l, bool server, int ready)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	pid_t parent = getpid(), pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	/* The keyboard's interrupt is the parent's to handle. */
	signal(SIGINT, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	for (unsigned i = 0; i < l->readers; i++)
		close(server ? l->guest[i] : l->host[i]);
	l->volume.ready_fd = ready;
	if (server)
		end(fcvm_fuse_serve(&l->volume, l->host, l->readers, &err), &err);
	end(fcvm_fuse_pump(&(struct fcvm_fuse_pump){.device = l->device, .readers = l->readers, .streams = l->guest,
				   .nstreams = l->readers, .listeners = {-1, -1}, .end_fd = -1},
		    &err),
		&err);
	return -1;
}

static int start_server(struct loop *l, struct fcvm_err *err)
{
	int ready[2], r = 0;
	char byte;

	if (pipe2(ready, O_CLOEXEC))
		return fcvm_fail_errno(err, -errno, "pipe");
	l->server = start(l, true, ready[1]);
	close(ready[1]);
	if (l->server < 0)
		r = fcvm_fail_errno(err, -errno, "fork");
	else if (read(ready[0], &byte, 1) != 1)
		r = fcvm_fail(err, -EIO, "%s: the server did not start", l->folder);
	close(ready[0]);
	return r;
}

/* Mounts, and sees that the mount answers. */
static int start_guest(struct loop *l, struct fcvm_err *err)
{
	struct stat st;

	l->device = fcvm_fuse_mount(l->folder, l->target, l->volume.readonly, err);
	if (l->device < 0)
		return l->device;
	l->pump = start(l, false, -1);
	if (l->pump < 0)
		return fcvm_fail_errno(err, -errno, "fork");
	l->device = fcvm_close(l->device);
	for (unsigned i = 0; i < l->readers; i++) {
		close(l->host[i]);
		close(l->guest[i]);
	}
	return stat(l->target, &st) ? fcvm_fail_errno(err, -errno, "%s", l->target) : 0;
}

/* The pump ends with 0 when somebody else has unmounted; what is there now is not ours. */
static bool unmounted(const struct loop *l)
{
	siginfo_t info = {.si_pid = 0};

	return l->pump > 0 && !waitid(P_PID, (id_t)l->pump, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid &&
	       info.si_code == CLD_EXITED && !info.si_status;
}

static void take_down(struct loop *l)
{
	if ((l->pump || l->device >= 0) && !unmounted(l)) {
		/* Busy: it goes when the last who is in it leaves; until then the pump serves it. */
		if (umount2(l->target, 0) && errno == EBUSY)
			umount2(l->target, MNT_DETACH);
	}
	if (l->pump > 0)
		waitpid(l->pump, NULL, 0);
	else if (l->server > 0)
		kill(l->server, SIGTERM);
	if (l->server > 0)
		waitpid(l->server, NULL, 0);
}

/* Until told to end (0), or a child did so of itself (1). */
static int wait_for_end(const struct loop *l, const sigset_t *signals)
{
	int signo;

	for (;;) {
		if (sigwait(signals, &signo))
			continue;
		if (signo != SIGCHLD)
			return 0;
		if (waitid(P_PID, l->server, &(siginfo_t){0}, WEXITED | WNOHANG | WNOWAIT) == 0) {
			siginfo_t info = {.si_pid = 0};

			waitid(P_PID, l->server, &info, WEXITED | WNOHANG | WNOWAIT);
			if (info.si_pid)
				return 1;
			waitid(P_PID, l->pump, &info, WEXITED | WNOHANG | WNOWAIT);
			if (info.si_pid)
				return info.si_code != CLD_EXITED || info.si_status;
		}
	}
}

/* The parent of a background loop: ends with the mount's first answer. */
static void to_background(int *ret_report)
{
	int report[2];
	char byte = 1;

	if (pipe2(report, O_CLOEXEC) || (fflush(NULL), 0))
		exit(1);
	if (fork()) {
		close(report[1]);
		_exit(read(report[0], &byte, 1) == 1 ? byte : 1);
	}
	close(report[0]);
	setsid();
	*ret_report = report[1];
}

int main(int argc, char **argv)
{
	struct loop l = {.readers = 1, .volume = {.timeout_s = TIMEOUT_S, .ready_fd = -1}, .device = -1};
	struct fcvm_err err = FCVM_ERR_INIT;
	int report = -1, r;
	sigset_t signals;

	if (!parse(&l, argc, argv))
		return usage();
	if (!realpath(argv[optind], l.folder) || !realpath(argv[optind + 1], l.target)) {
		fprintf(stderr, "fusepipe-loop: %s, %s: %s\n", argv[optind], argv[optind + 1], strerror(errno));
		return 1;
	}
	l.volume.folder = l.folder;
	if (!l.foreground)
		to_background(&report);
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	for (unsigned i = 0; i < l.readers; i++) {
		int pair[2];

		r = fcvm_fd_pair(pair);
		if (r) {
			fprintf(stderr, "fusepipe-loop: socketpair: %s\n", strerror(-r));
			return 1;
		}
		l.host[i] = pair[0];
		l.guest[i] = pair[1];
	}
	r = start_server(&l, &err);
	if (!r)
		r = start_guest(&l, &err);
	if (r)
		fprintf(stderr, "fusepipe-loop: %s\n", err.message);
	if (report >= 0) {
		fcvm_fd_write_full(report, r ? "\1" : "\0", 1);
		close(report);
	}
	if (!r)
		r = wait_for_end(&l, &signals);
	take_down(&l);
	return r != 0;
}
