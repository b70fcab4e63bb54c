/* SPDX-License-Identifier: MIT */
/* The streams of a link and the pumps of their channels. Everything here runs under the link's
 * lock. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "node/link_private.h"

bool fcvm_stream_lasts(unsigned op)
{
	switch (op) {
	case FCVM_WIRE_SPAWN:
	case FCVM_WIRE_GET:
	case FCVM_WIRE_PUT:
	case FCVM_WIRE_CONNECT:
	case FCVM_WIRE_LISTEN:
	case FCVM_WIRE_ACCEPT:
		return true;
	}
	return false;
}

static bool is_socket(const struct fcvm_stream *s)
{
	return s->op == FCVM_WIRE_CONNECT || s->op == FCVM_WIRE_ACCEPT;
}

/* ---- the table ---- */

struct fcvm_stream *fcvm_stream_find_locked(struct fcvm_link *l, uint32_t id)
{
	struct fcvm_stream *s = l->streams[id % BUCKETS];

	while (s && s->id != id)
		s = s->next;
	return s;
}

struct fcvm_stream *fcvm_stream_new_locked(struct fcvm_link *l, unsigned op, int event,
	const struct fcvm_channel_spec *channels, unsigned nchannels)
{
	struct fcvm_stream *s = calloc(1, sizeof *s + nchannels * sizeof s->channels[0]);

	if (!s || l->next_id == UINT32_MAX) {
		free(s);
		fcvm_close(event);
		for (unsigned i = 0; i < nchannels; i++)
			fcvm_close(channels[i].fd);
		return NULL;
	}
	s->link = fcvm_link_ref(l);
	s->id = l->next_id++;
	s->op = op;
	s->event = event;
	s->nchannels = nchannels;
	for (unsigned i = 0; i < nchannels; i++)
		s->channels[i] = (struct channel){
			.fd = channels[i].fd,
			.id = channels[i].id,
			.tx = channels[i].tx,
			.rx = channels[i].rx,
			.two_way = channels[i].tx && channels[i].rx,
			.tx_credit = FCVM_WIRE_WINDOW,
			.rx_credit = FCVM_WIRE_WINDOW,
		};
	s->next = l->streams[s->id % BUCKETS];
	l->streams[s->id % BUCKETS] = s;
	l->nstreams++;
	return s;
}

static void close_channel(struct channel *c)
{
	fcvm_source_remove(fcvm_steal_ptr(c->source));
	fcvm_buf_done(&c->in);
	c->fd = fcvm_close(c->fd);
	/* The agent does not know: what it still sends is dropped and its credit given back. */
	c->tx = false;
}

static void free_stream(struct fcvm_stream *s)
{
	struct fcvm_link *l = s->link;
	struct fcvm_stream **at = &l->streams[s->id % BUCKETS];

	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	if (l->nstreams-- == STREAMS_MAX)
		fcvm_link_wake_waiters_locked(l);
	for (unsigned i = 0; i < s->nchannels; i++)
		close_channel(&s->channels[i]);
	fcvm_close(s->event);
	fcvm_buf_done(&s->reply);
	free(s);
	/* Never the last one: the caller holds the lock by one of its own. */
	fcvm_link_unref(l);
}

/* The other end will send no EXIT any more. */
static void end(struct fcvm_stream *s)
{
	if (s->state == STREAM_OPENING)
		s->error = -ECONNRESET;
	s->lost = !s->exited;
	s->state = STREAM_ENDED;
	if (s->event >= 0)
		eventfd_write(s->event, 1);
}

void fcvm_stream_close_locked(struct fcvm_stream *s)
{
	if (s->state != STREAM_ENDED) {
		fcvm_link_frame_locked(s->link, FCVM_WIRE_CLOSE, 0, s->id, NULL, 0, 0);
		end(s);
	}
	for (unsigned i = 0; i < s->nchannels; i++)
		close_channel(&s->channels[i]);
	if (!s->handle)
		free_stream(s);
}

void fcvm_stream_link_ended_locked(struct fcvm_stream *s)
{
	if (s->state != STREAM_ENDED)
		end(s);
	fcvm_stream_close_locked(s);
}

/* ---- pumping ---- */

static void on_channel(void *data, uint64_t tag, uint32_t events);

static void ref_link(void *data)
{
	fcvm_link_ref(data);
}

static void unref_link(void *data)
{
	fcvm_link_unref(data);
}

static const struct fcvm_source_class channel_class = {on_channel, ref_link, unref_link};

static void watch(struct fcvm_stream *s, struct channel *c)
{
	struct fcvm_link *l = s->link;
	uint32_t events = 0;

	if (l->dead || c->fd < 0)
		return;
	if (c->tx && c->tx_credit > 0 && s->state == STREAM_OPEN && fcvm_link_has_room(l))
		events |= EPOLLIN;
	if (c->in.size > 0)
		events |= EPOLLOUT;
	/* A hang-up is reported for as long as anything is watched; from then on credit and room
	 * drive. */
	if (c->hung_up)
		events = 0;
	if (!c->source && (events || c->two_way) && !c->hung_up) {
		uint64_t tag = (uint64_t)s->id << 8 | (uint64_t)(c - s->channels);

		if (fcvm_reactor_add(
			    l->reactor, c->fd, events, &channel_class, l, tag, &c->source) < 0)
			fcvm_link_end_locked(l, -ENOMEM, "cannot watch a stream");
	} else if (c->source && (events || (c->two_way && !c->hung_up))) {
		if (fcvm_source_set(c->source, events) < 0)
			fcvm_link_end_locked(l, -ENOMEM, "cannot watch a stream");
	} else if (c->source) {
		fcvm_source_mute(c->source);
	}
}

static void give_credit(struct fcvm_stream *s, struct channel *c, size_t taken)
{
	c->rx_owed += taken;
	if (c->rx_owed < CREDIT_STEP || !c->rx || s->state != STREAM_OPEN)
		return;
	fcvm_link_frame_locked(s->link, FCVM_WIRE_CREDIT, c->id, s->id, NULL, 0, c->rx_owed);
	c->rx_credit += c->rx_owed;
	c->rx_owed = 0;
}

static void hang_up(struct fcvm_stream *s, struct channel *c)
{
	size_t dropped = c->in.size;

	c->hung_up = true;
	fcvm_buf_done(&c->in);
	give_credit(s, c, dropped);
	/* Its writer is to know that nobody reads any more, as of a pipe. */
	if (c->rx && !c->two_way && s->state == STREAM_OPEN)
		fcvm_link_frame_locked(s->link, FCVM_WIRE_EOF, c->id, s->id, NULL, 0, 0);
}

/* What fd takes of the bytes; 0 when it is gone. */
static size_t pass_on(struct fcvm_stream *s, struct channel *c, const void *data, size_t size)
{
	ssize_t n;

	do
		n = send(c->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return n;
	if (errno != EAGAIN)
		hang_up(s, c);
	return 0;
}

static void receive(struct fcvm_stream *s, struct channel *c, const uint8_t *data, size_t size)
{
	struct fcvm_link *l = s->link;
	size_t n = 0;

	if (size > c->rx_credit || !c->rx) {
		fcvm_link_end_locked(l, -EPROTO, "the agent sent %s on stream %u, channel %u",
			c->rx ? "more than its credit" : "data after the end", (unsigned)s->id,
			c->id);
		return;
	}
	c->rx_credit -= size;
	if (c->fd >= 0 && !c->hung_up && c->in.size == 0)
		n = pass_on(s, c, data, size);
	if (c->fd < 0 || c->hung_up)
		n = size;
	if (n < size && fcvm_buf_append(&c->in, data + n, size - n) < 0)
		fcvm_link_end_locked(l, -ENOMEM, "out of memory");
	give_credit(s, c, n);
}

static void flush(struct fcvm_stream *s, struct channel *c)
{
	size_t n;

	if (c->in.size == 0 || c->fd < 0)
		return;
	n = pass_on(s, c, fcvm_buf_head(&c->in), c->in.size);
	if (c->hung_up)
		return;
	fcvm_buf_consume(&c->in, n);
	give_credit(s, c, n);
}

static void send_eof(struct fcvm_stream *s, struct channel *c)
{
	c->tx = false;
	if (s->state == STREAM_OPEN)
		fcvm_link_frame_locked(s->link, FCVM_WIRE_EOF, c->id, s->id, NULL, 0, 0);
}

/* One chunk from fd to the agent. Returns true if there may be more. */
static bool transmit(struct fcvm_stream *s, struct channel *c)
{
	struct fcvm_link *l = s->link;
	size_t want = c->tx_credit < FCVM_WIRE_MAX_DATA ? c->tx_credit : FCVM_WIRE_MAX_DATA;
	char *at;
	ssize_t n;

	if (!c->tx || c->fd < 0 || want == 0 || s->state != STREAM_OPEN || !fcvm_link_has_room(l))
		return false;
	at = fcvm_buf_reserve(&l->out, HEADER + want);
	if (!at)
		return false;
	n = recv(c->fd, at + HEADER, want, MSG_DONTWAIT);
	if (n < 0 && errno == EINTR)
		return true;
	if (n < 0 && errno == EAGAIN)
		return false;
	if (n <= 0) {
		send_eof(s, c);
		return false;
	}
	fcvm_wire_put_header(at, FCVM_WIRE_DATA, c->id, s->id, n, 0);
	fcvm_buf_grew(&l->out, HEADER + n);
	c->tx_credit -= n;
	fcvm_link_flush_locked(l);
	return true;
}

/* Takes stock after anything happened to the channel: what is over is closed, the rest watched. */
static void settle_channel(struct fcvm_stream *s, struct channel *c)
{
	bool rx = c->rx && !(c->hung_up && !is_socket(s));

	if (c->fd < 0)
		return;
	if (!rx && c->in.size == 0 && !c->tx)
		close_channel(c);
	else if (!c->rx && c->in.size == 0 && c->two_way && !c->hung_up)
		shutdown(c->fd, SHUT_WR);
	watch(s, c);
}

/* A stream without handle ends when none of its channels has anything left to do. May free it. */
void fcvm_stream_settle_locked(struct fcvm_stream *s)
{
	if (s->handle)
		return;
	for (unsigned i = 0; i < s->nchannels; i++)
		if (s->channels[i].fd >= 0)
			return;
	fcvm_stream_close_locked(s);
}

static void on_channel(void *data, uint64_t tag, uint32_t events)
{
	struct fcvm_link *l = data;
	struct fcvm_stream *s;
	unsigned index = tag & 0xff;

	fcvm_link_lock(l);
	s = l->dead ? NULL : fcvm_stream_find_locked(l, tag >> 8);
	if (s && index < s->nchannels && s->channels[index].fd >= 0) {
		struct channel *c = &s->channels[index];

		if (events & EPOLLOUT)
			flush(s, c);
		if (events & (EPOLLHUP | EPOLLERR) && !c->hung_up)
			hang_up(s, c);
		/* Once hung up it must be emptied here: nothing will tell of it again. */
		for (int i = 0; (i < 4 || c->hung_up) && transmit(s, c); i++)
			;
		settle_channel(s, c);
		fcvm_stream_settle_locked(s);
	}
	fcvm_link_unlock(l);
}

static void pump_stream(struct fcvm_stream *s)
{
	for (unsigned i = 0; i < s->nchannels; i++) {
		struct channel *c = &s->channels[i];

		if (c->fd < 0 || !c->tx)
			continue;
		/* A live one is asked by epoll; one that hung up must be emptied from here. */
		while (c->hung_up && transmit(s, c))
			;
		settle_channel(s, c);
	}
	fcvm_stream_settle_locked(s);
}

void fcvm_stream_pump_all_locked(struct fcvm_link *l)
{
	for (unsigned i = 0; i < BUCKETS; i++) {
		struct fcvm_stream *s = l->streams[i];

		while (s && fcvm_link_has_room(l)) {
			struct fcvm_stream *next = s->next;

			if (!s->relay)
				pump_stream(s);
			s = next;
		}
	}
}

/* ---- frames of the agent ---- */

static void obey_result(
	struct fcvm_stream *s, const struct fcvm_wire_header *h, const uint8_t *payload)
{
	if (s->state != STREAM_OPENING) {
		if (s->state == STREAM_OPEN)
			fcvm_link_end_locked(s->link, -EPROTO,
				"the agent answered twice on stream %u", (unsigned)s->id);
		return;
	}
	if (h->length > 0 && fcvm_buf_append(&s->reply, payload, h->length) < 0) {
		fcvm_link_end_locked(s->link, -ENOMEM, "out of memory");
		return;
	}
	s->state = h->arg == 0 && fcvm_stream_lasts(s->op) ? STREAM_OPEN : STREAM_ENDED;
	if (h->arg)
		s->error = h->arg < 4096 ? -(int)h->arg : -EIO;
	eventfd_write(s->event, 1);
	if (s->state == STREAM_ENDED) {
		fcvm_stream_close_locked(s);
		return;
	}
	for (unsigned i = 0; i < s->nchannels; i++)
		watch(s, &s->channels[i]);
}

static void obey_exit(struct fcvm_stream *s, uint32_t status)
{
	if (s->exited) {
		fcvm_link_end_locked(
			s->link, -EPROTO, "the agent ended stream %u twice", (unsigned)s->id);
		return;
	}
	s->exited = true;
	if (status >= 0x100)
		s->exit = (struct fcvm_exit){.signal = status & 0x7f};
	else
		s->exit = (struct fcvm_exit){.code = status};
	if (s->event >= 0)
		eventfd_write(s->event, 1);
	/* All of its output came before, so its end is the output's. Writing to its stdin fails
	 * from now on, as with a pipe. */
	for (unsigned i = 0; i < s->nchannels; i++) {
		struct channel *c = &s->channels[i];

		c->rx = false;
		if (c->fd >= 0 && !c->two_way && c->tx)
			close_channel(c);
		else
			settle_channel(s, c);
	}
	fcvm_stream_settle_locked(s);
}

static void obey_close(struct fcvm_stream *s)
{
	fcvm_link_frame_locked(s->link, FCVM_WIRE_CLOSE, 0, s->id, NULL, 0, 0);
	end(s);
	for (unsigned i = 0; i < s->nchannels; i++) {
		s->channels[i].tx = s->channels[i].rx = false;
		settle_channel(s, &s->channels[i]);
	}
	fcvm_stream_settle_locked(s);
}

static void obey_channel(struct fcvm_stream *s, struct channel *c, const struct fcvm_wire_header *h,
	const uint8_t *payload)
{
	if (h->type == FCVM_WIRE_DATA) {
		/* Nobody will read it, and the peer has not understood: like a reset of TCP's. */
		if (c->hung_up && !c->tx && is_socket(s) && !s->handle) {
			fcvm_stream_close_locked(s);
			return;
		}
		receive(s, c, payload, h->length);
	} else if (h->type == FCVM_WIRE_EOF) {
		c->rx = false;
	} else {
		if (h->arg > FCVM_WIRE_WINDOW - c->tx_credit) {
			fcvm_link_end_locked(s->link, -EPROTO,
				"the agent gave more credit than there is on stream %u",
				(unsigned)s->id);
			return;
		}
		c->tx_credit += h->arg;
		while (c->hung_up && transmit(s, c))
			;
	}
	settle_channel(s, c);
	fcvm_stream_settle_locked(s);
}

void fcvm_stream_frame_locked(
	struct fcvm_stream *s, const struct fcvm_wire_header *h, const uint8_t *payload)
{
	if (h->type == FCVM_WIRE_RESULT) {
		obey_result(s, h, payload);
		return;
	}
	if (s->state == STREAM_ENDED)
		return;
	if (s->state == STREAM_OPENING) {
		fcvm_link_end_locked(s->link, -EPROTO,
			"the agent sent a frame of type %u before its RESULT", h->type);
		return;
	}
	if (h->type == FCVM_WIRE_EXIT) {
		obey_exit(s, h->arg);
		return;
	}
	if (h->type == FCVM_WIRE_CLOSE) {
		obey_close(s);
		return;
	}
	for (unsigned i = 0; i < s->nchannels; i++) {
		struct channel *c = &s->channels[i];

		/* The two ends of a one-way channel tell themselves apart by number. */
		if (c->id == h->channel) {
			obey_channel(s, c, h, payload);
			return;
		}
	}
	fcvm_link_end_locked(s->link, -EPROTO,
		"the agent sent a frame on channel %u of stream %u, which has none", h->channel,
		(unsigned)s->id);
}
