/* SPDX-License-Identifier: MIT */
/* One descriptor of a stream: bytes from it to the host (source), from the host to it (sink), or both. */
#include "agent.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static void on_ready(struct agent *a, struct watch *w, uint32_t events)
{
	struct channel *c = (struct channel *)w; /* its first member */

	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP))
		c->readable = true;
	if (events & EPOLLHUP)
		c->hung_up = true;
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		c->blocked = false;
	stream_queue(c->stream);
}

void channel_init(struct channel *c, struct stream *s, int fd)
{
	c->stream = s;
	c->watch.fd = fd;
	c->watch.ready = on_ready;
}

void channel_source(struct channel *c, uint8_t id)
{
	c->source = true;
	c->source_id = id;
	c->credit = FCVM_WIRE_WINDOW;
}

void channel_sink(struct channel *c, uint8_t id)
{
	c->sink = true;
	c->sink_id = id;
}

int channel_watch(struct channel *c)
{
	return watch_set(c->stream->agent, &c->watch, EPOLLIN);
}

static void forget_pending(struct channel *c)
{
	c->stream->agent->pending -= c->pending.size;
	c->consumed += c->pending.size;
	fcvm_buf_done(&c->pending);
}

void channel_close(struct channel *c)
{
	forget_pending(c);
	watch_close(&c->watch);
	c->source = false;
	c->deaf = true;
}

/* ---- source ---- */

static void send_eof(struct channel *c)
{
	link_frame(c->stream->link, FCVM_WIRE_EOF, c->source_id, c->stream->id, 0);
	c->eof_sent = true;
	c->readable = false;
	if (!c->sink)
		watch_close(&c->watch);
}

/* What the pipe held when its process ended is sent; what a grandchild may add is not waited for. */
void channel_process_ended(struct channel *c)
{
	int held = 0;

	if (c->sink && !c->source)
		channel_close(c);
	if (!c->source || c->eof_sent)
		return;
	c->readable = true;
	if (c->type == CHANNEL_TTY)
		/* The slave hangs up with its session's leader, so what is there is finite; the kernel may
		 * still be moving it, so its amount is not known. */
		c->drain = UINT32_MAX;
	else if (ioctl(c->watch.fd, FIONREAD, &held) == 0)
		c->drain = held;
}

bool channel_pull(struct channel *c)
{
	struct stream *s = c->stream;
	size_t want = c->credit < FCVM_WIRE_MAX_DATA ? c->credit : FCVM_WIRE_MAX_DATA;
	uint8_t *at;
	ssize_t n;

	if (!c->source || c->eof_sent || !c->readable)
		return false;
	if (s->exited && want > c->drain)
		want = c->drain;
	if (s->exited && c->drain == 0) {
		send_eof(c);
		return false;
	}
	if (want == 0 || !link_has_room(s->link))
		return want > 0;
	at = link_build(s->link, HEADER + want);
	n = read(c->watch.fd, at + HEADER, want);
	if (n < 0 && errno == EINTR)
		return true;
	if (n < 0 && errno == EAGAIN) {
		c->readable = false;
		if (s->exited)
			send_eof(c);
		return false;
	}
	if (n <= 0) {
		send_eof(c);
		return false;
	}
	fcvm_wire_put_header(at, FCVM_WIRE_DATA, c->source_id, s->id, n, 0);
	link_built(s->link, HEADER + n);
	c->credit -= n;
	if (s->exited && c->type != CHANNEL_TTY)
		c->drain -= n;
	if (c->type == CHANNEL_PIPE && (size_t)n < want) {
		/* A pipe gives all it has: it is empty now. */
		if (c->hung_up)
			send_eof(c);
		c->readable = s->exited && !c->eof_sent;
	}
	return c->readable && c->credit > 0;
}

bool channel_discard(struct channel *c)
{
	char scrap[16 * 1024];
	ssize_t n;

	if (!c->source || !c->readable)
		return false;
	n = read(c->watch.fd, scrap, sizeof scrap);
	if (n > 0 || (n < 0 && errno == EINTR))
		return true;
	c->readable = false;
	if (n == 0 || errno != EAGAIN)
		channel_close(c);
	return false;
}

/* ---- sink ---- */

void channel_return_credit(struct channel *c)
{
	if (c->consumed == 0)
		return;
	link_frame(c->stream->link, FCVM_WIRE_CREDIT, c->sink_id, c->stream->id, c->consumed);
	c->owed -= c->consumed;
	c->consumed = 0;
}

static void go_deaf(struct channel *c)
{
	forget_pending(c);
	c->deaf = true;
	if (!c->source)
		watch_close(&c->watch);
}

/* Writes what it takes; returns how much. */
static size_t write_some(struct channel *c, const void *data, size_t size)
{
	ssize_t n;

	do
		n = c->type == CHANNEL_SOCKET ? send(c->watch.fd, data, size, MSG_NOSIGNAL)
					      : write(c->watch.fd, data, size);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return n;
	if (errno != EAGAIN) {
		go_deaf(c);
		return 0;
	}
	c->blocked = true;
	watch_set(c->stream->agent, &c->watch, EPOLLOUT | (c->source ? EPOLLIN : 0));
	return 0;
}

/* All of the host's bytes are through, and it has said that there will be no more. */
static void finish(struct channel *c)
{
	/* As somebody at the terminal would tell it: the first may only send off an unfinished line. */
	while (c->type == CHANNEL_TTY && c->eot < 2 && !c->blocked && !c->deaf)
		c->eot += write_some(c, "\4\4", 2 - c->eot);
	if (c->deaf || (c->type == CHANNEL_TTY && c->eot < 2))
		return;
	if (c->type == CHANNEL_SOCKET)
		shutdown(c->watch.fd, SHUT_WR);
	c->deaf = true;
	if (!c->source)
		watch_close(&c->watch);
}

void channel_flush(struct channel *c)
{
	while (c->sink && c->pending.size > 0 && !c->blocked && !c->deaf) {
		size_t n = write_some(c, fcvm_buf_head(&c->pending), c->pending.size);

		if (c->deaf)
			break;
		fcvm_buf_consume(&c->pending, n);
		c->stream->agent->pending -= n;
		c->consumed += n;
	}
	if (c->sink && c->eof && !c->deaf && !c->blocked && c->pending.size == 0)
		finish(c);
}

void channel_push(struct channel *c, const uint8_t *data, size_t size)
{
	size_t n = 0;

	c->owed += size;
	if (!c->deaf && !c->blocked && c->pending.size == 0)
		n = write_some(c, data, size);
	c->consumed += n;
	if (n == size)
		return;
	if (!c->deaf && fcvm_buf_append(&c->pending, data + n, size - n) < 0)
		go_deaf(c);
	if (c->deaf) {
		c->consumed += size - n;
		return;
	}
	c->stream->agent->pending += size - n;
	if (!c->blocked)
		stream_queue(c->stream);
}
