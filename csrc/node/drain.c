/* SPDX-License-Identifier: MIT */
/* A program's output into a log of bounded size, by the local node's reactor. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "node/node_private.h"

enum { TAIL = 4096, CHUNK = 16 * 1024 };

struct fcvm_drain {
	_Atomic unsigned refs;  /* the handle's and the source's */
	struct fcvm_node *node; /* the handle's: keeps the reactor alive */
	pthread_mutex_t lock;
	/* lock: */
	struct fcvm_source *source;
	int fd; /* -1: at its end */
	int dirfd;
	int log;
	char *name, *old_name;
	size_t limit, written; /* of the current file */
	char tail[TAIL];       /* a ring */
	size_t total;          /* bytes that ever went into it */
};

static void ref_drain(void *data)
{
	atomic_fetch_add(&((struct fcvm_drain *)data)->refs, 1);
}

static void unref_drain(void *data)
{
	struct fcvm_drain *d = data;

	if (atomic_fetch_sub(&d->refs, 1) != 1)
		return;
	fcvm_close(d->fd);
	fcvm_close(d->dirfd);
	fcvm_close(d->log);
	pthread_mutex_destroy(&d->lock);
	free(d->name);
	free(d->old_name);
	free(d);
}

/* ---- into the file ---- */

static int open_log(struct fcvm_drain *d)
{
	struct stat st;

	d->log = openat(
		d->dirfd, d->name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (d->log < 0)
		return -errno;
	d->written = fstat(d->log, &st) == 0 ? (size_t)st.st_size : 0;
	return 0;
}

static void rotate(struct fcvm_drain *d)
{
	d->log = fcvm_close(d->log);
	renameat(d->dirfd, d->name, d->dirfd, d->old_name);
	open_log(d);
}

/* A log that cannot be written (a full disk) must not stop the program whose output it is. */
static void write_log(struct fcvm_drain *d, const char *data, size_t size)
{
	while (size > 0) {
		size_t room = d->limit / 2 > d->written ? d->limit / 2 - d->written : 0;
		size_t step = size < room ? size : room;

		if (room == 0) {
			rotate(d);
			if (d->log < 0 || d->written >= d->limit / 2)
				return;
			continue;
		}
		if (d->log < 0 || fcvm_fd_write_full(d->log, data, step) < 0)
			return;
		d->written += step;
		data += step;
		size -= step;
	}
}

static void keep_tail(struct fcvm_drain *d, const char *data, size_t size)
{
	size_t skip = size > TAIL ? size - TAIL : 0;

	d->total += skip;
	for (size_t i = skip; i < size; i++)
		d->tail[d->total++ % TAIL] = data[i];
}

/* One read. False: nothing is there now, or it has ended. */
static bool drink(struct fcvm_drain *d)
{
	char chunk[CHUNK];
	ssize_t n;

	if (d->fd < 0)
		return false;
	n = read(d->fd, chunk, sizeof chunk);
	if (n < 0 && errno == EINTR)
		return true;
	if (n < 0 && errno == EAGAIN)
		return false;
	if (n <= 0) { /* also EIO, as a terminal hangs up */
		fcvm_source_remove(fcvm_steal_ptr(d->source));
		d->fd = fcvm_close(d->fd);
		return false;
	}
	keep_tail(d, chunk, n);
	write_log(d, chunk, n);
	return true;
}

static void on_ready(void *data, uint64_t tag, uint32_t events)
{
	struct fcvm_drain *d = data;

	pthread_mutex_lock(&d->lock);
	for (int i = 0; i < 4 && drink(d); i++)
		;
	pthread_mutex_unlock(&d->lock);
}

static const struct fcvm_source_class drain_class = {on_ready, ref_drain, unref_drain};

/* ---- the handle ---- */

int fcvm_node_drain(struct fcvm_node *local, int fd, int dirfd, const char *name, size_t limit,
	struct fcvm_drain **ret, struct fcvm_err *err)
{
	struct fcvm_drain *d = calloc(1, sizeof *d);
	struct fcvm_reactor *reactor;
	int k;

	if (!d) {
		fcvm_close(fd);
		return fcvm_fail_errno(err, -ENOMEM, "log %s", name);
	}
	atomic_init(&d->refs, 1);
	pthread_mutex_init(&d->lock, NULL);
	d->fd = fd;
	d->log = -1;
	d->limit = limit < 2 ? 2 : limit;
	d->name = strdup(name);
	d->old_name = fcvm_asprintf("%s.1", name);
	d->dirfd = dirfd == AT_FDCWD ? open(".", O_PATH | O_DIRECTORY | O_CLOEXEC)
				     : fcntl(dirfd, F_DUPFD_CLOEXEC, 3);
	k = d->dirfd < 0 ? -errno : d->name && d->old_name ? fcvm_fd_nonblock(fd, true) : -ENOMEM;
	if (k == 0)
		k = open_log(d);
	if (k < 0)
		fcvm_fail_errno(err, k, "log %s", name);
	else
		k = fcvm_local_reactor(local, &reactor, err);
	if (k == 0) {
		pthread_mutex_lock(&d->lock);
		k = fcvm_reactor_add(reactor, fd, EPOLLIN, &drain_class, d, 0, &d->source);
		pthread_mutex_unlock(&d->lock);
		if (k < 0)
			fcvm_fail_errno(err, k, "log %s: watch its source", name);
	}
	if (k < 0) {
		unref_drain(d);
		return k;
	}
	d->node = fcvm_node_ref(local);
	*ret = d;
	return 0;
}

size_t fcvm_drain_tail(struct fcvm_drain *d, char *to, size_t size)
{
	size_t have, n;

	if (size == 0)
		return 0;
	pthread_mutex_lock(&d->lock);
	have = d->total < TAIL ? d->total : TAIL;
	n = have < size - 1 ? have : size - 1;
	for (size_t i = 0; i < n; i++)
		to[i] = d->tail[(d->total - n + i) % TAIL];
	pthread_mutex_unlock(&d->lock);
	to[n] = 0;
	return n;
}

void fcvm_drain_free(struct fcvm_drain *d)
{
	struct fcvm_node *node;

	if (!d)
		return;
	pthread_mutex_lock(&d->lock);
	/* What a pipe can hold is little; who goes on writing is not waited for. */
	for (int i = 0; i < 64 && drink(d); i++)
		;
	fcvm_source_remove(fcvm_steal_ptr(d->source));
	pthread_mutex_unlock(&d->lock);
	node = d->node;
	unref_drain(d);
	fcvm_node_unref(node);
}
