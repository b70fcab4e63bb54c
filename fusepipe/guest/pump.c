/* SPDX-License-Identifier: MIT */
/*
 * The pump: threads that share the readers (reader.c), no more than there are processors, so that readers cost memory
 * only while they carry something; and the calling thread, which waits for connections. One becomes a reader's stream
 * once it has said which reader's (struct fcvm_fuse_greeting). The end of one reader is the end of all: the kernel ends
 * a connection only when the last of its devices is closed, and until then callers of the one that is gone would wait.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"
#include "base/until.h"
#include "fusepipe/abi.h"
#include "fusepipe/control.h"
#include "fusepipe/guest/guest.h"
#include "fusepipe/guest/reader.h"

enum {
	STACK = 64 * 1024,      /* of which a page is used */
	GREETING_MS = 30 * 1000,
	PATIENCE_MS = 60 * 1000, /* a host that mounts or restores connects at once; without one callers are to be told so */
	GUESTS = FCVM_FUSE_MAX_READERS, /* that have not greeted yet */
	FDS_EACH = 4,           /* device, stream, a connection on its way, and at most one epoll */
	MIND_MS = 1000,         /* without anything to do */
	MIND_TURNS = 4096,      /* or so often: a reader that had none meanwhile is idle though others are not */
	EVENTS = 32,
	NICE = -20,
	LISTENERS = FCVM_FUSE_LISTENERS,
};

/* A thread, and the readers whose turns it takes: each `step`th from its own number on. */
struct worker {
	struct pump *pump;
	struct reader *readers; /* all there are */
	unsigned number, step, nreaders;
	int epoll; /* of all their descriptors: with one for each, a request would wake all of them */
	pthread_t thread;
};

/* What is polled beside the callers: the stop, the end, the listeners. */
enum { FIXED = 2 + LISTENERS };

/* A connection that is yet to say whose it is. */
struct caller {
	int fd;
	int64_t deadline_ns;
	size_t got;
	struct fcvm_fuse_greeting greeting;
};

struct door {
	const struct fcvm_fuse_pump *config;
	struct pump *pump;
	struct reader *readers;
	struct caller *callers; /* [GUESTS], the oldest first */
	struct pollfd *polled;  /* [FIXED + GUESTS] */
	unsigned n;
};

void pump_end(struct pump *p, int why)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&p->why, &none, why))
		fcvm_fd_write_full(p->stop, &(uint64_t){1}, sizeof(uint64_t));
}

/* ---- connections ---- */

static void forget_caller(struct door *d, unsigned i)
{
	d->n--;
	memmove(&d->callers[i], &d->callers[i + 1], (d->n - i) * sizeof d->callers[0]);
}

/* On this machine only the peer; over vsock only the host. */
static bool may_connect(const struct fcvm_fuse_pump *config, int fd)
{
	struct sockaddr_vm address;
	struct ucred peer;
	socklen_t size = sizeof address;

	if (getpeername(fd, (struct sockaddr *)&address, &size) == 0 && address.svm_family == AF_VSOCK)
		return address.svm_cid == VMADDR_CID_HOST;
	size = sizeof peer;
	return !config->peer || (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
					peer.pid == config->peer && peer.uid == geteuid());
}

static void accept_caller(struct door *d, int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0)
		return;
	if (!may_connect(d->config, fd)) {
		fcvm_close(fd);
		return;
	}
	if (d->n == GUESTS) {
		fcvm_close(d->callers[0].fd);
		forget_caller(d, 0);
	}
	d->callers[d->n++] = (struct caller){.fd = fd, .deadline_ns = fcvm_now_ns() + GREETING_MS * INT64_C(1000000)};
}

/* True: nothing more is to be heard from it here. */
static bool hear_caller(struct door *d, struct caller *c)
{
	ssize_t n = read(c->fd, (char *)&c->greeting + c->got, sizeof c->greeting - c->got);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n > 0)
		c->got += (size_t)n;
	if (n > 0 && c->got < sizeof c->greeting)
		return false;
	if (n > 0 && c->greeting.order.error == FCVM_FUSE_GREETING && c->greeting.reader < d->config->readers)
		reader_offer(&d->readers[c->greeting.reader], c->fd);
	else
		fcvm_close(c->fd);
	return true;
}

/* Until the next of them has waited for too long. */
static int patience_ms(const struct door *d)
{
	int64_t left = d->n ? (d->callers[0].deadline_ns - fcvm_now_ns()) / 1000000 + 1 : 0;

	return !d->n ? -1 : left < 0 ? 0 : (int)left;
}

static void poll_door(struct door *d)
{
	unsigned n = d->n;

	d->polled[0] = (struct pollfd){.fd = d->pump->stop, .events = POLLIN};
	d->polled[1] = (struct pollfd){.fd = d->config->end_fd, .events = POLLIN};
	for (unsigned i = 0; i < LISTENERS; i++)
		d->polled[2 + i] = (struct pollfd){.fd = d->config->listeners[i], .events = POLLIN};
	for (unsigned i = 0; i < n; i++)
		d->polled[FIXED + i] = (struct pollfd){.fd = d->callers[i].fd, .events = POLLIN};
	if (poll(d->polled, FIXED + n, patience_ms(d)) < 0)
		return;
	if (d->polled[1].revents)
		pump_end(d->pump, -ECANCELED);
	/* From the last on: those before keep their places. */
	for (unsigned i = n; i-- > 0;) {
		if (d->polled[FIXED + i].revents && hear_caller(d, &d->callers[i]))
			forget_caller(d, i);
	}
	while (d->n && d->callers[0].deadline_ns <= fcvm_now_ns()) {
		fcvm_close(d->callers[0].fd);
		forget_caller(d, 0);
	}
	for (unsigned i = 0; i < LISTENERS; i++)
		if (d->polled[2 + i].revents)
			accept_caller(d, d->config->listeners[i]);
}

/* Until it is over. */
static void mind_door(const struct fcvm_fuse_pump *config, struct pump *p, struct reader *readers)
{
	_cleanup_free_ struct caller *callers = p->reconnects ? calloc(GUESTS, sizeof *callers) : NULL;
	struct pollfd polled[FIXED + GUESTS];
	struct door d = {.config = config, .pump = p, .readers = readers, .callers = callers, .polled = polled};

	if (p->reconnects && !callers)
		pump_end(p, -ENOMEM);
	while (!atomic_load(&p->why))
		poll_door(&d);
	while (d.n)
		fcvm_close(callers[--d.n].fd);
}

/* ---- threads ---- */

enum { STOP = UINT32_MAX }; /* for a reader's number, in events of the pump's stop */

/* It has something to do though nothing happens. */
static bool worker_minds(const struct worker *w)
{
	for (unsigned i = w->number; i < w->nreaders; i += w->step)
		if (reader_used(&w->readers[i]) || reader_alone(&w->readers[i]))
			return true;
	return false;
}

/* Gives back the buffers of those that had no turn since the last time; idle: none had. 0, or -errno: one has waited for
 * a stream for too long. */
static int worker_mind(const struct worker *w, bool idle)
{
	int result = 0;

	for (unsigned i = w->number; i < w->nreaders && !result; i += w->step) {
		if (idle || !w->readers[i].active)
			reader_trim(&w->readers[i]);
		w->readers[i].active = false;
		result = reader_patience(&w->readers[i]);
	}
	return result;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct epoll_event events[EVENTS];
	unsigned turns = 0;
	int result = 0;

	/* Of this thread. Else each caller that is given its reply takes the processor away at once (the kernel's scheduler until
	 * 6.6), and requests go one by one that could have gone together: 256 threads' reads take twice as long. */
	setpriority(PRIO_PROCESS, 0, NICE);
	while (!result) {
		int n = epoll_wait(w->epoll, events, EVENTS, worker_minds(w) ? MIND_MS : -1);

		if (n < 0 && errno != EINTR)
			result = -errno;
		if (!result && (n == 0 || ++turns % MIND_TURNS == 0))
			result = worker_mind(w, n == 0);
		for (int i = 0; i < n && !result; i++) {
			uint32_t number = (uint32_t)(events[i].data.u64 >> 32);
			int fd = (int)(uint32_t)events[i].data.u64;

			result = number == STOP ? -ECANCELED
						: reader_turn(&w->readers[number & ~READER_OFFERED], number & READER_OFFERED, fd,
							  events[i].events);
		}
	}
	pump_end(w->pump, result);
	return NULL;
}

static int worker_init(struct worker *w)
{
	struct epoll_event e = {.events = EPOLLIN, .data.u64 = (uint64_t)STOP << 32};

	w->epoll = epoll_create1(EPOLL_CLOEXEC);
	return w->epoll < 0 || epoll_ctl(w->epoll, EPOLL_CTL_ADD, w->pump->stop, &e) ? -errno : 0;
}

static int worker_start(struct worker *w)
{
	pthread_attr_t attr;
	int result = 0;

	for (unsigned i = w->number; i < w->nreaders && !result; i += w->step)
		result = reader_begin(&w->readers[i]);
	if (result)
		return result;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	result = pthread_create(&w->thread, &attr, work, w);
	pthread_attr_destroy(&attr);
	return -result;
}

static unsigned count_workers(unsigned readers)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);

	return processors < 1 ? 1 : readers < processors ? readers : (unsigned)processors;
}

static void run_workers(const struct fcvm_fuse_pump *config, struct pump *p, struct worker *workers, unsigned n)
{
	unsigned started = 0;
	int result = 0;

	while (started < n && !result) {
		result = worker_start(&workers[started]);
		started += !result;
	}
	if (result)
		pump_end(p, result);
	mind_door(config, p, workers->readers);
	while (started)
		pthread_join(workers[--started].thread, NULL);
}

/* ---- start and end ---- */

static int clone_device(int device)
{
	_cleanup_close_ int clone = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	uint32_t of = (uint32_t)device;

	if (clone < 0 || ioctl(clone, FUSE_DEV_IOC_CLONE, &of))
		return -errno;
	return fcvm_steal_fd(clone);
}

/* Many readers take more descriptors than a process usually may have. */
static void allow_descriptors(unsigned readers)
{
	struct rlimit limit;
	rlim_t want = readers * FDS_EACH + 64;

	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= want)
		return;
	limit.rlim_cur = want;
	if (limit.rlim_max < want)
		limit.rlim_max = want;
	setrlimit(RLIMIT_NOFILE, &limit);
}

static int make_workers(const struct fcvm_fuse_pump *config, struct pump *p, struct reader *readers, struct worker *workers,
	unsigned n)
{
	int result = 0;

	for (unsigned i = 0; i < n; i++)
		workers[i] = (struct worker){.pump = p, .readers = readers, .number = i, .step = n, .nreaders = config->readers,
			.epoll = -1};
	for (unsigned i = 0; i < n && !result; i++)
		result = worker_init(&workers[i]);
	return result;
}

/* What is said to a host whose stream is not even a reader's. */
static void refuse(int stream)
{
	const struct fuse_in_header left = {.len = sizeof left, .opcode = FCVM_FUSE_LEFT};

	(void)!write(stream, &left, sizeof left);
	fcvm_close(stream);
}

static void refuse_streams(const struct fcvm_fuse_pump *config)
{
	for (unsigned i = 0; i < config->nstreams; i++)
		refuse(config->streams[i]);
}

/* The streams are taken. ret_made: how many of the readers are to be given to reader_done(). */
static int make_readers(const struct fcvm_fuse_pump *config, struct pump *p, struct reader *readers,
	const struct worker *workers, unsigned nworkers, unsigned *ret_made)
{
	int result = 0;

	for (unsigned i = 0; i < config->readers && !result; i++) {
		result = reader_init(&readers[i], p, i, workers[i % nworkers].epoll,
			i ? clone_device(config->device) : config->device);
		*ret_made = i + 1;
	}
	for (unsigned i = 0; i < config->nstreams; i++) {
		if (result)
			refuse(config->streams[i]);
		else
			result = reader_offer(&readers[i], config->streams[i]);
	}
	return result;
}

/* Until it is over: why; the descriptors are closed but for the listeners. */
static int pump_with(const struct fcvm_fuse_pump *config, struct pump *p, struct reader *readers, struct worker *workers,
	unsigned n)
{
	unsigned made = 0;
	int result = p->stop < 0 ? p->stop : make_workers(config, p, readers, workers, n);

	if (result)
		refuse_streams(config);
	else
		result = make_readers(config, p, readers, workers, n, &made);
	if (!result) {
		run_workers(config, p, workers, n);
		result = atomic_load(&p->why);
	}
	for (unsigned i = 0; i < made; i++)
		reader_leave(&readers[i]);
	if (!made)
		fcvm_close(config->device);
	while (made)
		reader_done(&readers[--made]);
	for (unsigned i = 0; i < n; i++)
		fcvm_close(workers[i].epoll);
	return result;
}

int fcvm_fuse_pump(const struct fcvm_fuse_pump *config, struct fcvm_err *err)
{
	bool fits = config->readers >= 1 && config->readers <= FCVM_FUSE_MAX_READERS && config->nstreams <= config->readers;
	unsigned n = fits ? count_workers(config->readers) : 0;
	_cleanup_free_ struct reader *readers = fits ? calloc(config->readers, sizeof *readers) : NULL;
	_cleanup_free_ struct worker *workers = fits ? calloc(n, sizeof *workers) : NULL;
	struct pump p = {.trace_rate = config->trace_rate,
		.patience_ms = config->patience_ms ? config->patience_ms : PATIENCE_MS};
	int result = !fits ? -EINVAL : !readers || !workers ? -ENOMEM : 0;

	for (unsigned i = 0; i < LISTENERS; i++)
		p.reconnects |= config->listeners[i] >= 0;
	allow_descriptors(fits ? config->readers : 0);
	p.stop = fcvm_fd_event();
	if (result) {
		fcvm_close(config->device);
		refuse_streams(config);
		fcvm_fail_errno(err, result, "volume: %u readers", config->readers);
	} else {
		result = pump_with(config, &p, readers, workers, n);
		/* ENODEV is the end of a mount. */
		if (result == -ENODEV)
			result = 0;
		else
			fcvm_fail_errno(err, result, "volume: the stream to the host");
	}
	for (unsigned i = 0; i < LISTENERS; i++)
		fcvm_close(config->listeners[i]);
	fcvm_close(p.stop);
	return result;
}
