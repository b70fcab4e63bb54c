/* SPDX-License-Identifier: MIT */
/*
 * The loop. A stream is read as much as there is, its messages are served one after the other into its buffer of
 * replies, and that is written at once: requests and replies come and go in batches, as large as the load makes them.
 *
 * Everything is bounded. A message is taken only while there is room for a reply of any size; a guest that reads no
 * replies is not read from (its stream waits for EPOLLOUT instead). Nor is any while the pool has all it may hold:
 * then jobs that are done make the loop go on. Jobs that are done and find no room wait in `late`.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"
#include "fusepipe/host/server.h"
#include "fusepipe/validate.h"

enum {
	LOCK_RETRY_MS = 10,
	WRITERS_MS = 10,
	TRIM_MS = 1000,
	EVENTS = 64,
	FLUSH_BYTES = 64 * 1024, /* of replies: the guest can go on with these while the rest is being made */
};

void stream_end(struct server *s, struct stream *st)
{
	if (st->ended)
		return;
	st->ended = true;
	epoll_ctl(s->epoll, EPOLL_CTL_DEL, st->fd, NULL);
	st->fd = fcvm_close(st->fd);
	st->in.start = st->in.end = st->out.start = st->out.end = 0;
	s->open_streams--;
}

static void end_all(struct server *s)
{
	for (unsigned i = 0; i < s->nstreams; i++)
		stream_end(s, &s->streams[i]);
}

/* How many bytes the next message takes, with its padding; 0: they are not all there yet, -EBADMSG. */
static int whole_message(const struct bytes *b)
{
	int length = fcvm_fuse_frame(b->data + b->start, b->end - b->start), padded = (length + 7) & ~7;

	if (length <= 0)
		return length;
	return b->end - b->start < (size_t)padded ? 0 : padded;
}

/* Serves what is there. 0: all of it, or as far as it goes now; -EBADMSG. */
static int serve_messages(struct server *s, struct stream *st)
{
	struct bytes *b = &st->in;

	s->current = st;
	while (stream_room(st) && !pool_full(s)) {
		const struct fuse_in_header *h = (const void *)(b->data + b->start);
		int size = whole_message(b);

		if (size <= 0)
			return size;
		if (count_take(s, st, b->data + b->start, h->len) < 0)
			return -EBADMSG;
		b->start += (size_t)size;
		if (st->out.end - st->out.start >= FLUSH_BYTES && stream_flush(st) < 0)
			return -EPIPE;
	}
	return 0;
}

static bool has_message(const struct stream *st)
{
	return whole_message(&st->in) > 0;
}

/* What to hear about a stream next. Reading waits while there is a message that could not be taken. */
static void watch(struct server *s, struct stream *st)
{
	struct epoll_event e = {.data.ptr = st};

	if (st->ended)
		return;
	if (!has_message(st))
		e.events |= EPOLLIN;
	if (st->out.start < st->out.end)
		e.events |= EPOLLOUT;
	if (e.events == st->events)
		return;
	st->events = e.events;
	epoll_ctl(s->epoll, EPOLL_CTL_MOD, st->fd, &e);
}

/* One turn of a stream: read, serve, write. 0, or -errno: it is over. */
static int turn(struct server *s, struct stream *st, uint32_t events)
{
	int r;

	if (st->out.start < st->out.end && (r = stream_flush(st)) < 0)
		return r;
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && !has_message(st)) {
		r = stream_read(st);
		if (r < 0)
			return r;
	}
	s->now = s->turn_at = fcvm_now_ns();
	r = serve_messages(s, st);
	if (r)
		return r;
	if (st->left)
		return -ENODATA;
	r = stream_flush(st);
	return r < 0 ? r : 0;
}

/* A stream that breaks the protocol ends them all: whoever sent that is not to be trusted with the others. */
static int take_turn(struct server *s, struct stream *st, uint32_t events)
{
	int r = st->ended ? 0 : turn(s, st, events);

	if (r == -EBADMSG) {
		end_all(s);
		return r;
	}
	if (r < 0)
		stream_end(s, st);
	watch(s, st);
	return 0;
}

static void answer_job(struct server *s, struct job *j)
{
	struct stream *st = j->stream;
	size_t from = st ? st->out.end : 0;
	const struct answered a = {.unique = j->unique, .opcode = j->opcode, .began = j->began, .fs = j->ran};

	job_answer(s, j);
	count_answer(s, st, from, &a);
}

static void answer_jobs(struct server *s)
{
	struct job **at = &s->late;

	while (*at)
		at = &(*at)->next;
	*at = pool_take_all(&s->pool);
	for (at = &s->late; *at;) {
		struct job *j = *at;

		if (!j->stream->ended && !stream_room(j->stream)) {
			at = &j->next;
			continue;
		}
		*at = j->next;
		if (j->stream->ended)
			j->stream = NULL;
		answer_job(s, j);
	}
}

/* After jobs and locks: their answers go out, and what had to wait for the pool goes on. */
static int go_on(struct server *s)
{
	int r = 0;

	for (unsigned i = 0; i < s->nstreams && !r; i++) {
		struct stream *st = &s->streams[i];

		if (!st->ended && (st->out.start < st->out.end || has_message(st)))
			r = take_turn(s, st, 0);
	}
	return r;
}

static bool used(const struct server *s)
{
	for (unsigned i = 0; i < s->nstreams; i++)
		if (s->streams[i].in.high || s->streams[i].out.high)
			return true;
	return false;
}

static void trim(struct server *s)
{
	for (unsigned i = 0; i < s->nstreams; i++) {
		if (!s->streams[i].ended)
			stream_trim(&s->streams[i]);
		s->streams[i].in.high = s->streams[i].out.high = 0;
	}
}

/* Locks are tried again; not while nothing may be answered. */
static bool retries(const struct server *s)
{
	return s->nwaiters && s->control.phase != ENDING && s->control.phase != QUIET;
}

static int wait_ms(const struct server *s)
{
	int ms = retries(s) ? LOCK_RETRY_MS : s->data.writers ? WRITERS_MS : used(s) ? TRIM_MS : -1, sync = sync_ms(s);

	return sync >= 0 && (ms < 0 || sync < ms) ? sync : ms;
}

static int take_event(struct server *s, const struct epoll_event *e)
{
	if (e->data.ptr == &s->control)
		control_turn(s);
	else if (e->data.ptr)
		return take_turn(s, e->data.ptr, e->events);
	return 0;
}

static int run(struct server *s)
{
	int r = 0;

	while ((s->open_streams || control_goes_on(s)) && !s->control.ended && !r) {
		struct epoll_event events[EVENTS];
		int n = epoll_wait(s->epoll, events, EVENTS, wait_ms(s));

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0 && !retries(s) && !s->data.writers)
			trim(s);
		for (int i = 0; i < n && !r; i++)
			r = take_event(s, &events[i]);
		if (s->pool.pending)
			answer_jobs(s);
		if (retries(s))
			lock_retry(s);
		control_step(s);
		if (!r)
			r = go_on(s);
		sync_step(s);
		data_step(s);
		count_state(s, (enum fcvm_fuse_counters_state)s->counters->state);
	}
	return r;
}

int stream_open(struct server *s, struct stream *st, int fd)
{
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = st};
	int r = fcvm_fd_nonblock(fd, true);

	*st = (struct stream){.fd = fd, .events = EPOLLIN, .in = st->in, .out = st->out, .ended = true};
	if (!r && !st->in.data)
		r = bytes_init(&st->in);
	if (!r && !st->out.data)
		r = bytes_init(&st->out);
	if (!r && epoll_ctl(s->epoll, EPOLL_CTL_ADD, fd, &e))
		r = -errno;
	if (r) {
		st->fd = fcvm_close(fd);
		return r;
	}
	st->ended = false;
	s->open_streams++;
	return 0;
}

void server_parts_done(struct server *s)
{
	sync_done(s);
	pool_done(s);
	lock_done(s);
	session_close(s);
	handles_done(s);
	nodes_done(s);
	for (struct replay *next; s->replays; s->replays = next) {
		next = s->replays->next;
		free(s->replays);
	}
	fcvm_close(s->shelf);
	fcvm_close(s->sync.fd);
}

static void server_done(struct server *s)
{
	end_all(s);
	for (struct job *next; s->late; s->late = next) {
		next = s->late->next;
		s->late->stream = NULL;
		job_answer(s, s->late);
	}
	server_parts_done(s);
	for (unsigned i = 0; s->streams && i < FCVM_FUSE_MAX_STREAMS; i++) {
		bytes_done(&s->streams[i].in);
		bytes_done(&s->streams[i].out);
	}
	free(s->streams);
	control_done(s);
	trace_done(s);
	count_done(s);
	fcvm_close(s->epoll);
}

/* The tables, empty; takes root. */
static int set_up_tables(struct server *s, int root, const struct fcvm_fuse_service *service)
{
	struct epoll_event e = {.events = EPOLLIN};
	struct stat st;
	int r;

	if (fstat(root, &st)) {
		r = -errno;
		fcvm_close(root);
		return r;
	}
	s->root_dev = st.st_dev;
	shelf_open(s, root);
	sync_open(s, root);
	r = nodes_init(s, root, &st);
	if (!r)
		r = pool_init(&s->pool);
	if (r)
		return r;
	s->streams = calloc(FCVM_FUSE_MAX_STREAMS, sizeof *s->streams);
	s->epoll = epoll_create1(EPOLL_CLOEXEC);
	for (unsigned i = 0; s->streams && i < FCVM_FUSE_MAX_STREAMS; i++)
		s->streams[i] = (struct stream){.fd = -1, .ended = true};
	if (!s->streams || s->epoll < 0 || epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->pool.event, &e))
		return s->streams ? -errno : -ENOMEM;
	return control_open(s, service->control);
}

/* All that must be there before the first message. */
static int set_up(struct server *s, const struct fcvm_fuse_service *service, struct fcvm_err *err)
{
	int root, r;

	/* Beyond the limit for a file's size it is EFBIG, and no end of the server. */
	signal(SIGXFSZ, SIG_IGN);
	r = count_open(s, service->counters);
	if (r)
		return fcvm_fail_errno(err, r, "volume %s: its counters", s->volume.folder);
	r = sandbox_enter(s, &root, err);
	if (r)
		return r;
	r = set_up_tables(s, root, service);
	if (r)
		return fcvm_fail_errno(err, r, "volume %s: setting up the server", s->volume.folder);
	r = session_open(s, err);
	if (!r)
		r = sandbox_confine(s, err);
	if (!r && service->state >= 0)
		r = state_load(s, service->state, err);
	return r;
}

static int serve(struct server *s, struct fcvm_err *err)
{
	int r = run(s);

	if (r == -EBADMSG)
		fcvm_fail(err, r, "volume %s: the guest sent what is no FUSE message: the volume is closed", s->volume.folder);
	else if (r)
		fcvm_fail_errno(err, r, "volume %s: waiting for the guest", s->volume.folder);
	return r;
}

int fcvm_fuse_serve_for(const struct fcvm_fuse_volume *volume, const struct fcvm_fuse_service *service, struct fcvm_err *err)
{
	struct server s = {.volume = *volume, .epoll = -1, .shelf = -1, .sync.fd = -1, .pool.event = -1, .umask = -1,
		.note = service->note, .control.fd = service->control, .traces_fd = service->traces};
	struct fcvm_err own = FCVM_ERR_INIT;
	int r = set_up(&s, service, &own);

	control_end(&s, r, &own);
	if (!r)
		r = serve(&s, &own);
	server_done(&s);
	fcvm_close(service->state);
	fcvm_close(service->traces);
	if (r && err)
		*err = own;
	return r;
}

int fcvm_fuse_serve(const struct fcvm_fuse_volume *volume, const int *streams, unsigned nstreams, struct fcvm_err *err)
{
	static const struct fcvm_fuse_service alone = {.control = -1, .counters = -1, .state = -1, .traces = -1};
	struct server s = {.volume = *volume, .epoll = -1, .shelf = -1, .sync.fd = -1, .pool.event = -1, .umask = -1, .control.fd = -1,
		.traces_fd = -1};
	int r;

	if (nstreams && nstreams <= FCVM_FUSE_MAX_STREAMS)
		r = set_up(&s, &alone, err);
	else
		r = fcvm_fail(err, -EINVAL, "volume %s: %u streams: 1 to %d there may be", volume->folder, nstreams,
			FCVM_FUSE_MAX_STREAMS);
	for (unsigned i = 0; i < nstreams; i++) {
		if (r) {
			fcvm_close(streams[i]);
			continue;
		}
		r = stream_open(&s, &s.streams[s.nstreams++], streams[i]);
		if (r)
			fcvm_fail_errno(err, r, "volume %s: its streams", volume->folder);
	}
	s.control.phase = RUNNING;
	if (!r && volume->ready_fd >= 0)
		fcvm_fd_write_full(volume->ready_fd, "", 1);
	fcvm_close(volume->ready_fd);
	if (!r)
		r = serve(&s, err);
	server_done(&s);
	return r;
}
