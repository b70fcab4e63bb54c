/* SPDX-License-Identifier: MIT */
/*
 * Other processes' links to our agent, relayed. Everything here runs under the link's lock.
 *
 * Theory of operation
 *
 * - A client speaks the protocol of wire/wire.h as if we were the agent. HELLO is answered here;
 * each of its streams is a stream of our link with a number of its own (struct relay). Frames are
 * passed on with the number exchanged, and nothing else: credit is the two ends' own, so a slow end
 * stalls its stream only.
 * - The agent holds us to account for what clients send, so a client's credit is counted here and
 * who breaks the rules is dropped. So is the agent's towards the client.
 * - A client is read only while the link has room and the client takes what was sent to it. What
 * may come for streams that it has opened all the same is bounded by OUT_TOTAL over all clients:
 * the one with most is dropped.
 * - A client that goes is marked, and buried when the lock is left (fcvm_link_unlock): then nobody
 * walks through its streams. Its streams are closed, which ends its programs; its leased folders
 * are removed.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"
#include "node/link_private.h"

enum {
	CLIENTS_MAX = 64,
	CLIENT_STREAMS = 1024,
	OWN_STREAMS = 1024, /* kept for ourselves */
	CLIENT_FOLDERS = 1024,
	CLIENT_SOFT = 1024 * 1024,     /* waiting for the client: it is not read */
	OUT_TOTAL = 128 * 1024 * 1024, /* over all clients */
	CLIENT_BUCKETS = 64,
	READ_SIZE = 64 * 1024,
};

struct folder {
	struct folder *next;
	char path[];
};

struct relay {
	struct relay *next; /* in its bucket */
	struct client *client;
	struct fcvm_stream *stream;
	uint32_t id;                        /* the client's */
	struct folder *folder;              /* MKDIR of a lease, until its RESULT */
	uint32_t tx[FCVM_WIRE_MAX_CHANNEL]; /* bytes that the client may send */
	uint32_t rx[FCVM_WIRE_MAX_CHANNEL]; /* ... the agent */
};

struct client {
	struct client *next;
	struct fcvm_link *link;
	uint64_t number;
	int fd;
	struct fcvm_source *source;
	bool gone;
	bool greeted;
	bool stalled; /* whole frames may be left in `in` */
	bool out_waits;
	uint32_t last_id;
	struct fcvm_buf in, out;
	unsigned nrelays, nfolders;
	struct relay *relays[CLIENT_BUCKETS];
	struct folder *folders;
};

static void leave(struct client *c)
{
	c->gone = true;
	c->link->clients_gone = true;
}

/* ---- to the client ---- */

static bool may_read(const struct client *c)
{
	return !c->gone && !c->stalled && fcvm_link_has_room(c->link) && c->out.size < CLIENT_SOFT;
}

static void watch_client(struct client *c)
{
	/* Its hang-up is told in any case. */
	uint32_t events = (may_read(c) ? EPOLLIN : 0) | (c->out_waits ? EPOLLOUT : 0);

	if (!c->gone && fcvm_source_set(c->source, events) < 0)
		leave(c);
}

static void flush_client(struct client *c)
{
	while (c->out.size > 0 && !c->gone) {
		ssize_t n = send(
			c->fd, fcvm_buf_head(&c->out), c->out.size, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0)
			leave(c);
		else
			fcvm_buf_consume(&c->out, n);
	}
	if (c->out_waits != (c->out.size > 0)) {
		c->out_waits = !c->out_waits;
		watch_client(c);
	}
}

static void bound_output(struct fcvm_link *l)
{
	struct client *most = NULL;
	size_t total = 0;

	for (struct client *c = l->clients; c; c = c->next) {
		if (c->gone)
			continue;
		total += c->out.size;
		if (!most || c->out.size > most->out.size)
			most = c;
	}
	if (total > OUT_TOTAL)
		leave(most);
}

static void to_client(struct client *c, unsigned type, unsigned channel, uint32_t id,
	const void *payload, size_t size, uint32_t arg)
{
	char *at;

	if (c->gone)
		return;
	at = fcvm_buf_reserve(&c->out, HEADER + size);
	if (!at) {
		leave(c);
		return;
	}
	fcvm_wire_put_header(at, type, channel, id, size, arg);
	if (size)
		memcpy(at + HEADER, payload, size);
	fcvm_buf_grew(&c->out, HEADER + size);
	if (!c->out_waits)
		flush_client(c);
	if (c->out.size > CLIENT_SOFT)
		bound_output(c->link);
}

static void refuse(struct client *c, uint32_t id, int code, const char *text)
{
	to_client(c, FCVM_WIRE_RESULT, 0, id, text, strlen(text), -code);
}

/* ---- relays ---- */

static struct relay *find_relay(struct client *c, uint32_t id)
{
	struct relay *r = c->relays[id % CLIENT_BUCKETS];

	while (r && r->id != id)
		r = r->next;
	return r;
}

/* Ends the stream, with CLOSE if the agent has it open. */
static void drop_relay(struct relay *r)
{
	struct relay **at = &r->client->relays[r->id % CLIENT_BUCKETS];

	while (*at != r)
		at = &(*at)->next;
	*at = r->next;
	r->client->nrelays--;
	r->stream->relay = NULL;
	fcvm_stream_close_locked(r->stream);
	free(r->folder);
	free(r);
}

static struct relay *new_relay(struct client *c, uint32_t id, unsigned op)
{
	struct relay *r = calloc(1, sizeof *r);

	if (!r)
		return NULL;
	r->stream = fcvm_stream_new_locked(c->link, op, -1, NULL, 0);
	if (!r->stream) {
		free(r);
		return NULL;
	}
	r->stream->relay = r;
	r->client = c;
	r->id = id;
	for (unsigned i = 0; i < FCVM_WIRE_MAX_CHANNEL; i++)
		r->tx[i] = r->rx[i] = FCVM_WIRE_WINDOW;
	r->next = c->relays[id % CLIENT_BUCKETS];
	c->relays[id % CLIENT_BUCKETS] = r;
	c->nrelays++;
	return r;
}

static void drop_relays(struct client *c)
{
	for (unsigned i = 0; i < CLIENT_BUCKETS; i++)
		while (c->relays[i])
			drop_relay(c->relays[i]);
}

/* The agent knows one lease only, ours; so the client's folders are removed by request. Nobody
 * waits. */
static void drop_folders(struct client *c)
{
	struct fcvm_link *l = c->link;
	uint8_t payload[PATH_MAX + 8];

	while (c->folders) {
		struct folder *f = c->folders;
		struct fcvm_wire_writer w = fcvm_wire_writer(payload, sizeof payload);

		fcvm_wire_put_string(&w, f->path);
		if (!w.bad && l->next_id < UINT32_MAX)
			fcvm_link_frame_locked(l, FCVM_WIRE_OPEN, 0, l->next_id++, payload,
				w.at - payload, FCVM_WIRE_REMOVE);
		c->folders = f->next;
		free(f);
	}
}

/* ---- frames of the agent ---- */

static void on_result(struct relay *r, const struct fcvm_wire_header *h, const uint8_t *payload)
{
	struct client *c = r->client;

	to_client(c, FCVM_WIRE_RESULT, 0, r->id, payload, h->length, h->arg);
	if (h->arg == 0 && r->folder) {
		r->folder->next = c->folders;
		c->folders = fcvm_steal_ptr(r->folder);
		c->nfolders++;
	}
	if (h->arg == 0 && fcvm_stream_lasts(r->stream->op)) {
		r->stream->state = STREAM_OPEN;
		return;
	}
	r->stream->state = STREAM_ENDED;
	drop_relay(r);
}

static void broke_rules(struct fcvm_stream *s, const char *how)
{
	fcvm_link_end_locked(s->link, -EPROTO, "the agent sent %s on stream %u, which is relayed",
		how, (unsigned)s->id);
}

void fcvm_client_frame_locked(
	struct fcvm_stream *s, const struct fcvm_wire_header *h, const uint8_t *payload)
{
	struct relay *r = s->relay;

	if ((h->type == FCVM_WIRE_RESULT) != (s->state == STREAM_OPENING)) {
		broke_rules(s, "a frame out of order");
		return;
	}
	switch (h->type) {
	case FCVM_WIRE_RESULT:
		on_result(r, h, payload);
		return;
	case FCVM_WIRE_DATA:
		if (h->length > r->rx[h->channel]) {
			broke_rules(s, "more than its credit");
			return;
		}
		r->rx[h->channel] -= h->length;
		break;
	case FCVM_WIRE_CREDIT:
		if (h->arg > FCVM_WIRE_WINDOW - r->tx[h->channel]) {
			broke_rules(s, "more credit than there is");
			return;
		}
		r->tx[h->channel] += h->arg;
		break;
	}
	to_client(r->client, h->type, h->channel, r->id, payload, h->length, h->arg);
	if (h->type == FCVM_WIRE_CLOSE)
		drop_relay(r); /* ...with our CLOSE in answer; the client's finds nothing */
}

/* ---- frames of the client ---- */

static void obey_hello(struct client *c, const struct fcvm_wire_header *h, const uint8_t *payload)
{
	struct fcvm_wire_hello hello;

	if (h->length != sizeof hello || memcmp(payload, "FCVMLINK", 8) != 0) {
		leave(c);
		return;
	}
	memcpy(&hello, payload, sizeof hello);
	drop_relays(c);
	c->greeted = true;
	c->last_id = 0;
	hello.version = FCVM_WIRE_VERSION;
	hello.flags = 0;
	hello.generation = c->link->serve_generation;
	to_client(c, FCVM_WIRE_WELCOME, 0, 0, &hello, sizeof hello, 0);
}

/* The folder of a MKDIR whose lease the client wants. 0, or what refuses it. */
static int leased_folder(struct client *c, const uint8_t *payload, size_t size, struct folder **ret)
{
	struct fcvm_wire_reader r = fcvm_wire_reader(payload, size);
	uint32_t flags;
	const char *path;

	fcvm_wire_get_u32(&r);
	flags = fcvm_wire_get_u32(&r);
	path = fcvm_wire_get_string(&r);
	if (!fcvm_wire_reader_ok(&r) || !(flags & 2))
		return 0; /* malformed: the agent will say so */
	if (strlen(path) >= PATH_MAX)
		return -ENAMETOOLONG;
	if (c->nfolders >= CLIENT_FOLDERS)
		return -EMFILE;
	*ret = malloc(sizeof **ret + strlen(path) + 1);
	if (!*ret)
		return -ENOMEM;
	strcpy((*ret)->path, path);
	return 0;
}

/* The listener's number among ours, in place of the client's. */
static int map_listener(
	struct client *c, const uint8_t *payload, size_t size, uint8_t mapped[static 4])
{
	struct fcvm_wire_reader r = fcvm_wire_reader(payload, size);
	struct fcvm_wire_writer w = fcvm_wire_writer(mapped, 4);
	struct relay *listener = find_relay(c, fcvm_wire_get_u32(&r));

	if (!fcvm_wire_reader_ok(&r) || !listener || listener->stream->op != FCVM_WIRE_LISTEN)
		return -EBADF;
	fcvm_wire_put_u32(&w, listener->stream->id);
	return 0;
}

static int may_open(const struct client *c, unsigned op)
{
	switch (op) {
	case FCVM_WIRE_IDENTITY:
	case FCVM_WIRE_CLOCK:
	case FCVM_WIRE_FREEZE:
	case FCVM_WIRE_THAW:
	case FCVM_WIRE_POWER:
		return -EPERM;
	}
	if (c->nrelays >= CLIENT_STREAMS || c->link->nstreams >= STREAMS_MAX - OWN_STREAMS)
		return -EMFILE;
	return 0;
}

static void obey_open(struct client *c, const struct fcvm_wire_header *h, const uint8_t *payload)
{
	struct folder *folder = NULL;
	uint8_t mapped[4];
	size_t size = h->length;
	struct relay *r = NULL;
	int k;

	if (h->stream <= c->last_id) {
		leave(c);
		return;
	}
	c->last_id = h->stream;
	k = may_open(c, h->arg);
	if (k == 0 && h->arg == FCVM_WIRE_MKDIR)
		k = leased_folder(c, payload, size, &folder);
	if (k == 0 && h->arg == FCVM_WIRE_ACCEPT) {
		k = map_listener(c, payload, size, mapped);
		payload = mapped;
		size = sizeof mapped;
	}
	if (k == 0) {
		r = new_relay(c, h->stream, h->arg);
		k = r ? 0 : -ENOMEM;
	}
	if (k < 0) {
		free(folder);
		refuse(c, h->stream, k,
			k == -EPERM ? "only the process that runs the VM may do that"
				    : strerror(-k));
		return;
	}
	r->folder = folder;
	fcvm_link_frame_locked(c->link, FCVM_WIRE_OPEN, 0, r->stream->id, payload, size, h->arg);
}

static void obey_close(struct relay *r)
{
	/* What ends with its RESULT ends so: a folder that was made has to be known. */
	if (!fcvm_stream_lasts(r->stream->op))
		return;
	to_client(r->client, FCVM_WIRE_CLOSE, 0, r->id, NULL, 0, 0);
	drop_relay(r);
}

static void obey_stream(struct relay *r, const struct fcvm_wire_header *h, const uint8_t *payload)
{
	struct client *c = r->client;

	switch (h->type) {
	case FCVM_WIRE_CLOSE:
		obey_close(r);
		return;
	case FCVM_WIRE_DATA:
		if (h->length > r->tx[h->channel]) {
			leave(c);
			return;
		}
		r->tx[h->channel] -= h->length;
		break;
	case FCVM_WIRE_CREDIT:
		if (h->arg > FCVM_WIRE_WINDOW - r->rx[h->channel]) {
			leave(c);
			return;
		}
		r->rx[h->channel] += h->arg;
		break;
	}
	fcvm_link_frame_locked(
		c->link, h->type, h->channel, r->stream->id, payload, h->length, h->arg);
}

static void obey(struct client *c, const struct fcvm_wire_header *h, const uint8_t *payload)
{
	struct relay *r;

	if (h->type != FCVM_WIRE_HELLO && !c->greeted) {
		leave(c);
		return;
	}
	switch (h->type) {
	case FCVM_WIRE_HELLO:
		obey_hello(c, h, payload);
		return;
	case FCVM_WIRE_OPEN:
		obey_open(c, h, payload);
		return;
	case FCVM_WIRE_DATA:
	case FCVM_WIRE_EOF:
	case FCVM_WIRE_CREDIT:
	case FCVM_WIRE_SIGNAL:
	case FCVM_WIRE_RESIZE:
	case FCVM_WIRE_CLOSE:
		r = find_relay(c, h->stream);
		if (r)
			obey_stream(r, h, payload);
		return;
	default:
		leave(c); /* only agents send these */
	}
}

static void obey_all(struct client *c)
{
	c->stalled = false;
	while (c->in.size > 0 && !c->gone) {
		struct fcvm_wire_header h;
		const uint8_t *payload;
		size_t skip = 0;
		int n;

		if (!may_read(c)) {
			c->stalled = true;
			return;
		}
		n = fcvm_wire_parse(fcvm_buf_head(&c->in), c->in.size, &h, &payload, &skip);
		if (n <= 0) {
			if (n < 0)
				leave(c);
			else
				fcvm_buf_consume(&c->in, skip);
			return;
		}
		obey(c, &h, payload);
		fcvm_buf_consume(&c->in, n);
	}
}

static void read_client(struct client *c)
{
	char *at = fcvm_buf_reserve(&c->in, READ_SIZE);
	ssize_t n = at ? recv(c->fd, at, READ_SIZE, MSG_DONTWAIT) : 0;

	if (n > 0) {
		fcvm_buf_grew(&c->in, n);
		obey_all(c);
	} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
		leave(c);
	}
}

static void on_client(void *data, uint64_t tag, uint32_t events)
{
	struct fcvm_link *l = data;
	struct client *c;

	fcvm_link_lock(l);
	for (c = l->clients; c && c->number != tag; c = c->next)
		;
	if (c && !c->gone) {
		if (events & EPOLLOUT)
			flush_client(c);
		if (c->stalled)
			obey_all(c);
		if (events & EPOLLIN && may_read(c))
			read_client(c);
		else if (events & (EPOLLHUP | EPOLLERR))
			leave(c);
		watch_client(c);
	}
	fcvm_link_unlock(l);
}

void fcvm_client_room_locked(struct fcvm_link *l)
{
	for (struct client *c = l->clients; c; c = c->next) {
		if (c->stalled)
			obey_all(c);
		watch_client(c);
	}
}

/* ---- coming and going ---- */

static void ref_link(void *data)
{
	fcvm_link_ref(data);
}

static void unref_link(void *data)
{
	fcvm_link_unref(data);
}

static const struct fcvm_source_class client_class = {on_client, ref_link, unref_link};

static void bury(struct client *c)
{
	fcvm_source_remove(fcvm_steal_ptr(c->source));
	c->fd = fcvm_close(c->fd);
	drop_relays(c);
	drop_folders(c);
	fcvm_buf_done(&c->in);
	fcvm_buf_done(&c->out);
	c->link->nclients--;
	free(c);
}

void fcvm_client_bury_locked(struct fcvm_link *l)
{
	struct client **at = &l->clients;

	l->clients_gone = false;
	while (*at) {
		struct client *c = *at;

		if (c->gone) {
			*at = c->next;
			bury(c);
		} else {
			at = &c->next;
		}
	}
}

void fcvm_client_close_all_locked(struct fcvm_link *l)
{
	for (struct client *c = l->clients; c; c = c->next)
		c->gone = true;
	fcvm_client_bury_locked(l);
	fcvm_source_remove(fcvm_steal_ptr(l->listen_source));
	l->listen_fd = fcvm_close(l->listen_fd);
	l->spare_fd = fcvm_close(l->spare_fd);
}

static void add_client(struct fcvm_link *l, int fd)
{
	struct client *c = l->nclients < CLIENTS_MAX ? calloc(1, sizeof *c) : NULL;

	if (!c) {
		fcvm_close(fd);
		return;
	}
	c->link = l;
	c->fd = fd;
	c->number = l->next_client++;
	if (fcvm_reactor_add(l->reactor, fd, EPOLLIN, &client_class, l, c->number, &c->source) <
		0) {
		fcvm_close(fd);
		free(c);
		return;
	}
	c->next = l->clients;
	l->clients = c;
	l->nclients++;
}

/* Out of descriptors: who waits is accepted by the spare one and turned away, lest the listener
 * stay ready. */
static void turn_away(struct fcvm_link *l)
{
	l->spare_fd = fcvm_close(l->spare_fd);
	fcvm_close(accept4(l->listen_fd, NULL, NULL, SOCK_CLOEXEC));
	l->spare_fd = fcvm_fd_event();
}

static void on_listener(void *data, uint64_t tag, uint32_t events)
{
	struct fcvm_link *l = data;

	fcvm_link_lock(l);
	for (int i = 0; i < 8 && !l->dead && l->listen_fd >= 0; i++) {
		int fd = accept4(l->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0)
			add_client(l, fd);
		else if (errno == EMFILE || errno == ENFILE)
			turn_away(l);
		else if (errno != EINTR && errno != ECONNABORTED)
			break;
	}
	fcvm_link_unlock(l);
}

static const struct fcvm_source_class listener_class = {on_listener, ref_link, unref_link};

int fcvm_link_serve(struct fcvm_link *l, int listen_fd, uint64_t generation, struct fcvm_err *err)
{
	int k = fcvm_fd_nonblock(listen_fd, true);

	fcvm_link_lock(l);
	if (k < 0)
		fcvm_fail_errno(err, k, "%s: serve", l->name);
	else if (l->dead)
		k = fcvm_link_why_locked(l, "serve", err);
	else if (l->listen_fd >= 0)
		k = fcvm_fail(err, -EBUSY, "%s: serve: it is served already", l->name);
	if (k == 0) {
		k = fcvm_reactor_add(
			l->reactor, listen_fd, EPOLLIN, &listener_class, l, 0, &l->listen_source);
		if (k < 0)
			fcvm_fail_errno(err, k, "%s: serve: watch the listener", l->name);
	}
	if (k == 0) {
		l->listen_fd = listen_fd;
		l->spare_fd = fcvm_fd_event();
		l->serve_generation = generation;
	} else {
		fcvm_close(listen_fd);
	}
	fcvm_link_unlock(l);
	return k;
}

void fcvm_link_serve_generation(struct fcvm_link *l, uint64_t generation)
{
	fcvm_link_lock(l);
	l->serve_generation = generation;
	fcvm_link_unlock(l);
}
