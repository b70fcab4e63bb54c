/* SPDX-License-Identifier: MIT */
/* A program's output into a log of bounded size, by the local node's reactor. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fail.h"
#include "base/fd.h"
#include "node/node_private.h"

enum { TAIL = 4096, CHUNK = 16 * 1024, ASIDE_MAX = 64 * 1024 };

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
	int bell;              /* an eventfd that is rung when something has come; -1: nobody waits */
	char *prefix;          /* of the lines that are kept aside; NULL: all go into the log */
	struct fcvm_buf line;  /* one that begins like those, as far as it is there */
	bool in_log;           /* the line's beginning is in the log already */
	char *aside;           /* the last such line */
	unsigned asides;       /* how many there were */
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
	fcvm_close(d->bell);
	pthread_mutex_destroy(&d->lock);
	fcvm_buf_done(&d->line);
	free(d->prefix);
	free(d->aside);
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

static void put(struct fcvm_drain *d, const char *data, size_t size)
{
	keep_tail(d, data, size);
	write_log(d, data, size);
}

/* ---- lines that are kept aside ---- */

/* Of the line that has been read so far: it may be one. */
static bool begins_aside(struct fcvm_drain *d)
{
	size_t n = strlen(d->prefix);

	return d->line.size <= ASIDE_MAX &&
		memcmp(fcvm_buf_head(&d->line), d->prefix, n < d->line.size ? n : d->line.size) == 0;
}

static void put_line(struct fcvm_drain *d)
{
	if (d->line.size > 0)
		put(d, fcvm_buf_head(&d->line), d->line.size);
	fcvm_buf_consume(&d->line, d->line.size);
}

static void keep_aside(struct fcvm_drain *d)
{
	char *line = strndup(fcvm_buf_head(&d->line), d->line.size - 1);

	fcvm_buf_consume(&d->line, d->line.size);
	if (!line)
		return;
	free(d->aside);
	d->aside = line;
	d->asides++;
}

/* A piece of one line, with its end or without. */
static void take_piece(struct fcvm_drain *d, const char *data, size_t size)
{
	bool ends = data[size - 1] == '\n';

	if (d->in_log) {
		put(d, data, size);
	} else if (fcvm_buf_append(&d->line, data, size) < 0 || !begins_aside(d)) {
		put_line(d);
	} else {
		if (ends)
			keep_aside(d);
		return;
	}
	d->in_log = !ends;
}

static void take(struct fcvm_drain *d, const char *data, size_t size)
{
	while (d->prefix && size > 0) {
		const char *end = memchr(data, '\n', size);
		size_t n = end ? (size_t)(end - data) + 1 : size;

		take_piece(d, data, n);
		data += n;
		size -= n;
	}
	if (size > 0)
		put(d, data, size);
	if (d->bell >= 0)
		eventfd_write(d->bell, 1);
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
		put_line(d);
		take(d, NULL, 0);
		return false;
	}
	take(d, chunk, n);
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
	d->log = d->bell = -1;
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
	/* Who asks because a program has ended is not to miss what it said last. */
	for (int i = 0; i < 64 && drink(d); i++)
		;
	have = d->total < TAIL ? d->total : TAIL;
	n = have < size - 1 ? have : size - 1;
	for (size_t i = 0; i < n; i++)
		to[i] = d->tail[(d->total - n + i) % TAIL];
	pthread_mutex_unlock(&d->lock);
	to[n] = 0;
	return n;
}

int fcvm_drain_set_aside(struct fcvm_drain *d, const char *prefix)
{
	char *copy = strdup(prefix);

	if (!copy)
		return -ENOMEM;
	pthread_mutex_lock(&d->lock);
	free(d->prefix);
	d->prefix = copy;
	pthread_mutex_unlock(&d->lock);
	return 0;
}

unsigned fcvm_drain_asides(struct fcvm_drain *d)
{
	unsigned n;

	pthread_mutex_lock(&d->lock);
	n = d->asides;
	pthread_mutex_unlock(&d->lock);
	return n;
}

/* ---- waiting ---- */

/* What is waited for: text in the tail, or (NULL) more lines kept aside than `seen`. */
struct awaited {
	const char *text;
	unsigned seen;
};

static bool is_there(struct fcvm_drain *d, const struct awaited *a)
{
	char tail[TAIL];
	size_t n = d->total < TAIL ? d->total : TAIL;

	if (!a->text)
		return d->asides != a->seen;
	for (size_t i = 0; i < n; i++)
		tail[i] = d->tail[(d->total - n + i) % TAIL];
	return memmem(tail, n, a->text, strlen(a->text)) != NULL;
}

/* With the lock; it is let go meanwhile. */
static int await_bell(struct fcvm_drain *d, int also, const struct fcvm_until *until)
{
	struct pollfd fds[2] = {{.fd = d->bell, .events = POLLIN}, {.fd = also, .events = POLLIN}};
	eventfd_t count;
	int k;

	pthread_mutex_unlock(&d->lock);
	k = fcvm_until_poll(until, fds, 2);
	pthread_mutex_lock(&d->lock);
	if (k < 0)
		return k;
	eventfd_read(d->bell, &count);
	/* What was said last is in the pipe at the latest when `also` tells of the end. */
	for (int i = 0; i < 64 && fds[1].revents && drink(d); i++)
		;
	return fds[1].revents ? -ECONNRESET : 0;
}

static int await(struct fcvm_drain *d, const struct awaited *a, int also, const struct fcvm_until *until)
{
	int k = 0;

	if (d->bell < 0)
		d->bell = fcvm_fd_event();
	if (d->bell < 0)
		return d->bell;
	while (!is_there(d, a)) {
		if (k < 0 || d->fd < 0)
			return k < 0 ? k : -ECONNRESET;
		k = await_bell(d, also, until);
	}
	return 0;
}

int fcvm_drain_await(struct fcvm_drain *d, const char *text, int also, const struct fcvm_until *until)
{
	int k;

	pthread_mutex_lock(&d->lock);
	k = await(d, &(struct awaited){.text = text}, also, until);
	pthread_mutex_unlock(&d->lock);
	return k;
}

int fcvm_drain_await_aside(struct fcvm_drain *d, unsigned seen, int also, const struct fcvm_until *until, char **ret)
{
	char *line = NULL;
	int k;

	pthread_mutex_lock(&d->lock);
	k = await(d, &(struct awaited){.seen = seen}, also, until);
	if (k == 0)
		line = strdup(d->aside);
	pthread_mutex_unlock(&d->lock);
	if (k == 0 && !line)
		return -ENOMEM;
	if (k == 0)
		*ret = line;
	return k;
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
	put_line(d);
	fcvm_source_remove(fcvm_steal_ptr(d->source));
	pthread_mutex_unlock(&d->lock);
	node = d->node;
	unref_drain(d);
	fcvm_node_unref(node);
}
