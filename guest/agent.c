/* SPDX-License-Identifier: MIT */
/* The agent's start, its loop, and the ways it is run (agent.h). */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/virtio_ids.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/kvm.h"
#include "base/tree.h"

int watch_set(struct agent *a, struct watch *w, uint32_t events)
{
	struct epoll_event e = {.events = events | EPOLLET, .data.ptr = w};

	if (epoll_ctl(a->epoll, w->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, w->fd, &e) < 0)
		return -errno;
	w->epoll = a->epoll;
	w->registered = true;
	return 0;
}

void watch_close(struct watch *w)
{
	/* To close it would not do: a child that a hand (hands.c) is about to make a program of has it, too, and for as long
	 * there would be events for what is freed. */
	if (w->registered)
		epoll_ctl(w->epoll, EPOLL_CTL_DEL, w->fd, NULL);
	w->fd = fcvm_close(w->fd);
	w->registered = false;
}

/* ---- signals ---- */

static void on_signal(struct agent *a, struct watch *w, uint32_t events)
{
	struct signalfd_siginfo si;

	while (read(w->fd, &si, sizeof si) == sizeof si) {
		if (si.ssi_signo == SIGCHLD)
			process_reap(a);
		else if (a->init)
			a->power = FCVM_WIRE_POWEROFF; /* ctrl-alt-del, or somebody's kill 1 */
		else
			a->stopping = true;
	}
}

static int watch_signals(struct agent *a)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	a->signals.ready = on_signal;
	a->signals.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (a->signals.fd < 0)
		return -errno;
	return watch_set(a, &a->signals, EPOLLIN);
}

/* ---- the loop ---- */

static bool has_work(struct agent *a)
{
	if (!TAILQ_EMPTY(&a->orphans))
		return true;
	for (unsigned i = 0; i < LINKS; i++)
		if (a->links[i] && link_has_work(a->links[i]))
			return true;
	return false;
}

static void serve_links(struct agent *a)
{
	for (unsigned i = 0; i < LINKS; i++)
		if (a->links[i])
			link_receive(a->links[i]);
	/* Only now: a link that takes over may have forgotten streams that another was waiting for. */
	for (unsigned i = 0; i < LINKS; i++) {
		if (!a->links[i])
			continue;
		stream_pump_link(a->links[i]);
		link_flush(a->links[i]);
	}
}

/* A result that announces the end is worth a moment, but not for ever. */
static void power_when_told(struct agent *a)
{
	for (int tries = 0; tries < 100; tries++) {
		bool waiting = false;

		for (unsigned i = 0; i < LINKS; i++) {
			if (!a->links[i] || a->links[i]->out_start == a->links[i]->out_end)
				continue;
			a->links[i]->blocked = false;
			link_flush(a->links[i]);
			waiting |= a->links[i]->out_start < a->links[i]->out_end;
		}
		if (!waiting)
			break;
		nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
	}
	init_power(a, a->power);
	a->power = -1;
}

static int run(struct agent *a)
{
	struct epoll_event events[32];

	while (!a->stopping) {
		int n = epoll_wait(a->epoll, events, sizeof events / sizeof *events,
				has_work(a) ? 0 : -1);

		if (n < 0 && errno != EINTR)
			return -errno;
		for (int i = 0; i < n; i++) {
			struct watch *w = events[i].data.ptr;

			if (w->fd >= 0)
				w->ready(a, w, events[i].events);
		}
		serve_links(a);
		stream_pump_orphans(a);
		stream_free_dead(a);
		if (a->power >= 0)
			power_when_told(a);
	}
	return 0;
}

/* ---- the end ---- */

/* Waits for the processes that were just killed, at most a second, so that nothing of ours is left behind. */
static void reap_all(struct agent *a)
{
	for (int tries = 0; tries < 200; tries++) {
		bool left = false;

		process_reap(a);
		for (unsigned i = 0; i < BUCKETS; i++) {
			struct stream *s;

			LIST_FOREACH(s, &a->by_pid[i], by_pid)
				left |= !s->exited && s->doomed;
		}
		if (!left)
			break;
		nanosleep(&(struct timespec){.tv_nsec = 5 * 1000 * 1000}, NULL);
	}
}

static void agent_free(struct agent *a)
{
	door_close(a);
	for (unsigned i = 0; i < LINKS; i++)
		if (a->links[i])
			link_close(a->links[i]);
	reap_all(a);
	for (unsigned i = 0; i < BUCKETS; i++) {
		struct stream *s, *next;

		for (s = LIST_FIRST(&a->by_pid[i]); s; s = next) {
			next = LIST_NEXT(s, by_pid);
			stream_bury(s);
		}
	}
	stream_free_dead(a);
	watch_close(&a->signals);
	fcvm_close(a->epoll);
	free(a);
}

static struct agent *agent_new(void)
{
	struct agent *a = calloc(1, sizeof *a);

	if (!a)
		return NULL;
	a->init = getpid() == 1;
	getrlimit(RLIMIT_NOFILE, &a->nofile);
	if (a->init)
		setrlimit(RLIMIT_NOFILE, &(struct rlimit){.rlim_cur = a->nofile.rlim_max, .rlim_max = a->nofile.rlim_max});
	/* What a program leaves behind is ours to reap, as it is PID 1's. */
	if (!a->init)
		prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	a->power = -1;
	a->signals.fd = a->hands.fd = a->door.listener.fd = a->door.caller.fd = -1;
	TAILQ_INIT(&a->orphans);
	a->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (a->epoll < 0 || watch_signals(a) < 0 || hands_init(a) < 0) {
		agent_free(a);
		return NULL;
	}
	return a;
}

/* ---- the ways it is run ---- */

/* The text on stderr, the errno as exit status. */
static int worker_done(int r, const struct fcvm_err *err)
{
	if (r >= 0)
		return 0;
	fcvm_fd_write_full(STDERR_FILENO, err->message, strlen(err->message));
	return r > -256 ? -r : EIO;
}

static int probe_kvm(void)
{
	char why[256];
	int r = fcvm_kvm_probe(why, sizeof why);

	if (dprintf(STDOUT_FILENO, "%s\n", why) < 0)
		return EIO;
	return r > -256 ? -r : EIO;
}

/* The workers (see theory of operation); -1: argv is none of theirs. */
static int worker(int argc, char **argv)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	int first = 0;

	if (argc == 3 && strcmp(argv[1], "--pack") == 0)
		return worker_done(fcvm_tree_pack(STDOUT_FILENO, argv[2], &err), &err);
	if (argc == 5 && strcmp(argv[1], "--unpack") == 0)
		return worker_done(fcvm_tree_unpack(STDIN_FILENO, argv[3], *argv[4] ? argv[4] : NULL,
						   argv[2][0] == '1', &err),
				&err);
	if (argc == 8 && strcmp(argv[1], "--mount") == 0)
		return worker_done(volume_mount(argv, &err), &err);
	if (argc == 4 && strcmp(argv[1], "--unmount") == 0)
		return worker_done(volume_unmount(argv, &err), &err);
	if (argc == 2 && strcmp(argv[1], "--probe-kvm") == 0)
		return probe_kvm();
	if (argc >= 3 && strcmp(argv[1], "--remove") == 0) {
		for (int i = 2; i < argc; i++) {
			int r = fcvm_tree_remove(AT_FDCWD, argv[i]);

			first = first ? first : -r;
		}
		return first;
	}
	return -1;
}

/*
 * The links of the machine itself: its port's, vsock's, or both. The kernel tells of neither the port's driver nor its
 * name in a way that can be waited for; where vsock is there, a console without the port is not waited for long.
 */
static int open_links(struct agent *a)
{
	enum { WAIT_MS = 60 * 1000, PORT_MS = 2000, DEVICE_MS = 2000 };
	int64_t start = fcvm_now_ns();
	long wait_ms = 2;

	for (;;) {
		bool vsock = a->door.link || (virtio_has(VIRTIO_ID_VSOCK) && door_open_vsock(a) == 0);
		int fd = port_open(FCVM_WIRE_PORT_NAME);
		int64_t waited_ms = (fcvm_now_ns() - start) / 1000000;

		if (fd >= 0)
			return link_open(a, fd, CARRIER_PORT);
		if (vsock && (waited_ms >= PORT_MS || !virtio_has(VIRTIO_ID_CONSOLE)))
			return 0;
		/* Such devices are there before programs are, or do not come. */
		if (!a->init && waited_ms >= DEVICE_MS && !virtio_has(VIRTIO_ID_VSOCK) && !virtio_has(VIRTIO_ID_CONSOLE))
			return -ENODEV;
		if (waited_ms >= WAIT_MS) {
			dprintf(STDERR_FILENO, "fcvm-agent: no vsock, and virtio-serial port %s: %s%s\n",
				FCVM_WIRE_PORT_NAME, strerror(-fd), a->init ? "; waiting on" : "");
			if (!a->init)
				return fd == -ENOENT && !virtio_has(VIRTIO_ID_VSOCK) ? -ENODEV : fd;
			start = fcvm_now_ns();
		}
		nanosleep(&(struct timespec){.tv_nsec = wait_ms * 1000000}, NULL);
		wait_ms = wait_ms < 100 ? wait_ms * 2 : 200;
	}
}

/* fd >= 0: the one link; path: where it is to come in; neither: the machine's own. */
static int open_first(struct agent *a, int fd, const char *path)
{
	int r;

	if (path) {
		r = door_open_unix(a, path);
		if (r < 0)
			dprintf(STDERR_FILENO, "fcvm-agent: listen on %s: %s\n", path, strerror(-r));
		return r;
	}
	if (fd < 0)
		return open_links(a);
	r = fcvm_fd_nonblock(fd, true);
	return r < 0 ? r : link_open(a, fd, CARRIER_FD);
}

/* In the unit, which does not start it again then. */
enum { EXIT_NO_DEVICE = 3 };

static int serve(int fd, const char *path)
{
	struct agent *a;
	int r;

	if (getpid() == 1)
		init_machine();
	a = agent_new();
	if (!a) {
		dprintf(STDERR_FILENO, "fcvm-agent: cannot start: %s\n", strerror(errno));
		return 1;
	}
	r = open_first(a, fd, path);
	if (r == 0) {
		if (fd < 0)
			dprintf(STDERR_FILENO, "fcvm-agent %s ready\n", FCVM_VERSION);
		r = run(a);
	}
	if (r == -ENODEV && fd < 0 && !path)
		dprintf(STDERR_FILENO, "fcvm-agent: this machine has neither virtio-serial port %s nor vsock\n",
			FCVM_WIRE_PORT_NAME);
	else if (r < 0 && !path)
		dprintf(STDERR_FILENO, "fcvm-agent: %s\n", strerror(-r));
	agent_free(a);
	return r == -ENODEV ? EXIT_NO_DEVICE : r < 0;
}

static int usage(void)
{
	dprintf(STDERR_FILENO,
			"fcvm-agent %s: serves programs, files and sockets of this machine over a link\n"
			"usage: fcvm-agent [--fd N | --listen PATH]\n"
			"  --fd N         serve the stream on descriptor N and end with it\n"
			"  --listen PATH  serve who connects to this Unix socket; the next one takes over\n"
			"  (none)         serve the virtio-serial port %s and vsock port %u, as there are; as PID 1 set\n"
			"                 the machine up first\n",
			FCVM_VERSION, FCVM_WIRE_PORT_NAME, FCVM_WIRE_VSOCK_PORT);
	return 2;
}

int main(int argc, char **argv)
{
	int r;

	/* As PID 1 the kernel hands on what it did not understand of its command line. */
	if (getpid() == 1)
		return serve(-1, NULL);
	r = worker(argc, argv);
	if (r >= 0)
		return r;
	if (argc == 1)
		return serve(-1, NULL);
	if (argc == 2 && strcmp(argv[1], "--version") == 0)
		return dprintf(STDOUT_FILENO, "fcvm-agent %s\n", FCVM_VERSION) < 0;
	if (argc == 3 && strcmp(argv[1], "--listen") == 0)
		return serve(-1, argv[2]);
	if (argc == 3 && strcmp(argv[1], "--fd") == 0) {
		char *end;
		long fd = strtol(argv[2], &end, 10);

		if (*argv[2] && !*end && fd >= 0 && fd < INT_MAX)
			return serve((int)fd, NULL);
	}
	return usage();
}
