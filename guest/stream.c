/* SPDX-License-Identifier: MIT */
/* The streams of a link: their table, their queue, their end. */
#include "agent.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"

struct stream *stream_new(struct link *l, uint32_t id, enum stream_kind kind, unsigned nchannels)
{
	struct stream *s = calloc(1, sizeof *s + nchannels * sizeof s->channels[0]);

	if (!s)
		return NULL;
	s->agent = l->agent;
	s->link = l;
	s->id = id;
	s->kind = kind;
	s->proc.pidfd = s->text = -1;
	s->nchannels = nchannels;
	for (unsigned i = 0; i < nchannels; i++)
		channel_init(&s->channels[i], s, -1);
	TAILQ_INIT(&s->waiters);
	LIST_INSERT_HEAD(&l->streams[id % BUCKETS], s, by_id);
	l->nstreams++;
	return s;
}

struct stream *stream_find(struct link *l, uint32_t id)
{
	struct stream *s;

	LIST_FOREACH(s, &l->streams[id % BUCKETS], by_id)
		if (s->id == id)
			return s;
	return NULL;
}

static struct stream_queue *queue_of(struct stream *s)
{
	return s->link ? &s->link->ready : &s->agent->orphans;
}

void stream_queue(struct stream *s)
{
	if (s->queued)
		return;
	s->queued = true;
	TAILQ_INSERT_TAIL(queue_of(s), s, ready);
}

static void unqueue(struct stream *s)
{
	if (s->queued)
		TAILQ_REMOVE(queue_of(s), s, ready);
	s->queued = false;
}

static void detach_from_link(struct stream *s)
{
	unqueue(s);
	if (!s->link)
		return;
	LIST_REMOVE(s, by_id);
	s->link->nstreams--;
	s->link = NULL;
}

static void close_all(struct stream *s)
{
	for (unsigned i = 0; i < s->nchannels; i++)
		channel_close(&s->channels[i]);
}

void stream_bury(struct stream *s)
{
	if (s->job)
		s->job->stream = NULL;
	s->job = NULL;
	detach_from_link(s);
	close_all(s);
	s->text = fcvm_close(s->text);
	if (s->proc.pid) {
		LIST_REMOVE(s, by_pid);
		s->agent->nleft -= s->group_left;
		fcvm_proc_done(&s->proc);
	}
	LIST_INSERT_HEAD(&s->agent->dead, s, by_id);
}

void stream_free_dead(struct agent *a)
{
	struct stream *s;

	while ((s = LIST_FIRST(&a->dead))) {
		LIST_REMOVE(s, by_id);
		free(s->path);
		free(s);
	}
}

/* The host lets go of a process that has not ended, or left others of its group behind. */
static void drop_process(struct stream *s, bool kill)
{
	bool ends = kill && s->lease && !s->exited;

	detach_from_link(s);
	if (ends)
		process_doom(s);
	if (ends || s->exited) {
		close_all(s);
		return;
	}
	for (unsigned i = 0; i < s->nchannels; i++) {
		struct channel *c = &s->channels[i];

		if (!c->source || c->eof_sent)
			channel_close(c);
		else if (c->readable)
			stream_queue(s);
	}
}

void stream_drop(struct stream *s, bool kill)
{
	struct stream *w;

	/* What it starts is remembered: it may have to be undone. */
	if (s->kind == STREAM_ERRAND && s->job) {
		detach_from_link(s);
		return;
	}
	process_undo(s);
	if (s->proc.pid && (!s->exited || s->group_left)) {
		drop_process(s, kill);
		return;
	}
	if (s->kind == STREAM_ACCEPTING) {
		TAILQ_REMOVE(&s->listener->waiters, s, waiter);
	} else if (s->kind == STREAM_LISTENER) {
		while ((w = TAILQ_FIRST(&s->waiters))) {
			TAILQ_REMOVE(&s->waiters, w, waiter);
			link_refuse(w->link, w->id, -ECANCELED, "accept: the listener was closed");
			stream_bury(w);
		}
		if (s->path)
			files_unlink(s->agent, s->path);
	}
	stream_bury(s);
}

void stream_end(struct stream *s)
{
	struct link *l = s->link;
	uint32_t id = s->id;

	stream_drop(s, true);
	link_frame(l, FCVM_WIRE_CLOSE, 0, id, 0);
}

/* ---- pumping ---- */

static void end_errand(struct stream *s)
{
	char text[1024];
	ssize_t n = s->text < 0 ? 0 : read(s->text, text, sizeof text - 1);

	text[n < 0 ? 0 : n] = 0;
	if (s->status == 0 && strcmp(s->verb, "remove") == 0)
		files_forget(s->link, s->path);
	if (s->status == 0)
		link_result(s->link, s->id, NULL, 0);
	else if (s->status > 255)
		link_refuse(s->link, s->id, -EIO, "%s %s: killed", s->verb, s->path);
	else if (*text)
		link_refuse(s->link, s->id, -(int)s->status, "%s", text);
	else
		link_refuse(s->link, s->id, -(int)s->status, "%s %s: %s", s->verb, s->path, strerror(s->status));
	stream_bury(s);
}

/* The process is gone and its output is out. */
static void send_exit(struct stream *s)
{
	s->exit_sent = true;
	if (s->kind == STREAM_ERRAND)
		end_errand(s);
	else
		link_frame(s->link, FCVM_WIRE_EXIT, 0, s->id, s->status);
}

/* Returns true if it could go on at once. */
static bool pump_channels(struct stream *s)
{
	bool more = false, quiet = true;

	for (unsigned i = 0; i < s->nchannels; i++) {
		struct channel *c = &s->channels[i];

		channel_flush(c);
		if (c->consumed >= CREDIT_STEP)
			channel_return_credit(c);
		more |= channel_pull(c);
		quiet &= !c->source || c->eof_sent;
	}
	if (s->exited && !s->exit_sent && quiet)
		send_exit(s);
	return more;
}

/* The other side has closed the socket, or both sides have said that they are through. */
static bool end_if_over(struct stream *s)
{
	struct channel *c = &s->channels[0];
	bool over = s->kind == STREAM_SOCKET && c->deaf && c->eof_sent;

	if (over)
		stream_end(s);
	return over;
}

static bool pump(struct stream *s)
{
	bool more;

	if (s->job)
		return false;
	switch (s->kind) {
	case STREAM_CONNECTING:
		socket_pump_connecting(s);
		return false;
	case STREAM_LISTENER:
		socket_pump_listener(s);
		return false;
	default:
		more = pump_channels(s);
		return !end_if_over(s) && more;
	}
}

void stream_pump_link(struct link *l)
{
	struct stream *last = TAILQ_LAST(&l->ready, stream_queue), *s = NULL;

	while (s != last && (s = TAILQ_FIRST(&l->ready)) && link_has_room(l)) {
		unqueue(s);
		if (pump(s))
			stream_queue(s);
	}
}

void stream_pump_orphans(struct agent *a)
{
	struct stream *last = TAILQ_LAST(&a->orphans, stream_queue), *s = NULL;

	while (s != last && (s = TAILQ_FIRST(&a->orphans))) {
		bool more = false;

		unqueue(s);
		for (unsigned i = 0; i < s->nchannels; i++)
			more |= channel_discard(&s->channels[i]);
		if (more)
			stream_queue(s);
	}
}

/* ---- frames of a stream ---- */

static struct channel *sink_of(struct stream *s, unsigned id)
{
	for (unsigned i = 0; i < s->nchannels; i++)
		if (s->channels[i].sink && s->channels[i].sink_id == id)
			return &s->channels[i];
	return NULL;
}

static size_t pending_of(const struct stream *s)
{
	size_t sum = 0;

	for (unsigned i = 0; i < s->nchannels; i++)
		sum += s->channels[i].pending.size;
	return sum;
}

static struct stream *most_pending(struct agent *a)
{
	struct stream *most = NULL, *s;

	for (unsigned i = 0; i < LINKS * BUCKETS; i++) {
		struct link *l = a->links[i / BUCKETS];

		if (!l)
			continue;
		LIST_FOREACH(s, &l->streams[i % BUCKETS], by_id)
			if (!most || pending_of(s) > pending_of(most))
				most = s;
	}
	return most;
}

void stream_data(struct stream *s, unsigned channel, const uint8_t *data, size_t size)
{
	struct channel *c = sink_of(s, channel);

	if (!c || c->eof || s->kind == STREAM_CONNECTING)
		return;
	if (size > FCVM_WIRE_WINDOW - c->owed) {
		link_lose_sync(s->link);
		return;
	}
	/* Windows of many streams may add up to more than we hold: that is no fault of the host's, nor of who is read. */
	while (s->agent->pending + size > PENDING_MAX) {
		struct stream *most = most_pending(s->agent);

		/* What is pending elsewhere, of nobody's link, cannot be had. */
		if (pending_of(most) == 0)
			most = s;
		stream_end(most);
		if (most == s)
			return;
	}
	channel_push(c, data, size);
	if (c->consumed >= CREDIT_STEP)
		channel_return_credit(c);
	end_if_over(s);
}

/* Nobody reads what the program writes here. */
static void source_unread(struct stream *s, unsigned channel)
{
	for (unsigned i = 0; i < s->nchannels; i++) {
		struct channel *c = &s->channels[i];

		if (c->source && !c->sink && c->source_id == channel)
			channel_close(c);
	}
	/* Its EXIT may have waited for this. */
	stream_queue(s);
}

void stream_eof(struct stream *s, unsigned channel)
{
	struct channel *c = sink_of(s, channel);

	if (s->kind == STREAM_CONNECTING)
		return;
	if (!c) {
		source_unread(s, channel);
		return;
	}
	c->eof = true;
	channel_flush(c);
	end_if_over(s);
}

void stream_credit(struct stream *s, unsigned channel, uint32_t bytes)
{
	for (unsigned i = 0; i < s->nchannels; i++) {
		struct channel *c = &s->channels[i];

		if (!c->source || c->source_id != channel)
			continue;
		if (bytes > FCVM_WIRE_WINDOW - c->credit) {
			link_lose_sync(s->link);
			return;
		}
		c->credit += bytes;
		if (c->readable)
			stream_queue(s);
	}
}
