/* SPDX-License-Identifier: MIT */
/*
 * One loop for everything that is run to its end, and exec, its first user. The loop waits by the
 * node's own poll, so behind an agent node it is the caller that reads the link: one wake-up per
 * batch of frames.
 */
#include "node/run.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fail.h"

enum { CHUNK = 64 * 1024 };

/* ---- sinks ---- */

static int collect(struct fcvm_sink *s, const void *data, size_t size, struct fcvm_err *err)
{
	struct fcvm_collector *c = (struct fcvm_collector *)s;
	size_t room = c->limit - c->buf.size;

	if (size > room) {
		c->truncated = true;
		size = room;
	}
	if (size > 0 && fcvm_buf_append(&c->buf, data, size) < 0)
		return fcvm_fail_errno(err, -ENOMEM, "collect output");
	return 0;
}

void fcvm_collector_init(struct fcvm_collector *c, size_t limit)
{
	*c = (struct fcvm_collector){.sink.take = collect, .limit = limit};
}

const char *fcvm_collector_line(struct fcvm_collector *c)
{
	char *text;

	if (fcvm_buf_append(&c->buf, "", 1) < 0)
		return "";
	text = fcvm_buf_head(&c->buf);
	for (size_t i = 0; i + 1 < c->buf.size; i++)
		if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
			text[i] = text[i] == '\n' && i + 2 >= c->buf.size ? 0 : '?';
	return text;
}

/* ---- the loop ---- */

struct run {
	struct fcvm_process *p;
	struct iovec *input;
	unsigned ninput;
	struct fcvm_sink *sink[3]; /* of fds 1 and 2 */
	char *chunk;
};

int fcvm_run_failed(const struct fcvm_process *p, int code, struct fcvm_err *err)
{
	if (code == -ETIMEDOUT)
		return fcvm_fail(
			err, code, "%s: %s: it did not end in time", p->node->name, p->what);
	if (code == -ECANCELED)
		return fcvm_fail(err, code, "%s: %s: canceled", p->node->name, p->what);
	return fcvm_fail_errno(err, code, "%s: %s: waiting for it", p->node->name, p->what);
}

/* As much of the input as fd 0 takes. A program that does not read its input is no failure of ours.
 */
static void feed(struct run *r)
{
	int fd = r->p->fds[0];

	while (r->ninput > 0) {
		ssize_t n = 0;

		if (r->input->iov_len > 0) {
			n = send(fd, r->input->iov_base, r->input->iov_len,
				MSG_DONTWAIT | MSG_NOSIGNAL);
			if (n < 0 && errno == ENOTSOCK) /* a terminal */
				n = write(fd, r->input->iov_base, r->input->iov_len);
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0)
			break;
		r->input->iov_base = (char *)r->input->iov_base + n;
		r->input->iov_len -= n;
		if (r->input->iov_len == 0) {
			r->input++;
			r->ninput--;
		}
	}
	fcvm_process_close_fd(r->p, 0);
}

/* Reads fd i, at most `most` bytes; closes it at its end. Returns the bytes, 0 if there are none
 * now. */
static int drink(struct run *r, unsigned i, size_t most, struct fcvm_err *err)
{
	ssize_t n;

	do
		n = read(r->p->fds[i], r->chunk, most < CHUNK ? most : CHUNK);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n <= 0) { /* a terminal that hung up says EIO */
		fcvm_process_close_fd(r->p, i);
		return 0;
	}
	if (r->sink[i]) {
		int k = r->sink[i]->take(r->sink[i], r->chunk, n, err);

		if (k < 0)
			return k;
	}
	return n;
}

/* The program is gone, but others may hold its pipe open: what it holds is taken, no more is waited
 * for. */
static int drain_held(struct run *r, struct fcvm_err *err)
{
	for (unsigned i = 1; i < 3; i++) {
		int held = 0;

		if (r->p->fds[i] < 0)
			continue;
		if (ioctl(r->p->fds[i], FIONREAD, &held) < 0)
			held = 0;
		while (held > 0 && r->p->fds[i] >= 0) {
			int n = drink(r, i, held, err);

			if (n < 0)
				return n;
			if (n == 0)
				break;
			held -= n;
		}
		fcvm_process_close_fd(r->p, i);
	}
	return 0;
}

static int on_ended(struct run *r, struct fcvm_err *err)
{
	struct fcvm_process *p = r->p;
	int k = p->ops->collect(p, &p->exit, err);

	if (k < 0)
		return k;
	p->ended = true;
	fcvm_process_close_fd(p, 0);
	r->ninput = 0;
	return p->leaky ? drain_held(r, err) : 0;
}

static int turn(struct run *r, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_process *p = r->p;
	struct pollfd fds[4];
	unsigned which[4], n = 0;
	int k;

	if (!p->ended) {
		fds[n] = (struct pollfd){.fd = p->exit_fd, .events = POLLIN};
		which[n++] = 3;
	}
	for (unsigned i = 0; i < 3; i++) {
		if (p->fds[i] < 0)
			continue;
		fds[n] = (struct pollfd){.fd = p->fds[i], .events = i == 0 ? POLLOUT : POLLIN};
		which[n++] = i;
	}
	k = p->node->ops->poll(p->node, until, fds, n);
	if (k < 0)
		return fcvm_run_failed(p, k, err);
	k = 0;
	for (unsigned i = n; k >= 0 && i-- > 0;) {
		if (!fds[i].revents)
			continue;
		if (which[i] == 0)
			feed(r);
		else if (which[i] == 3)
			k = on_ended(r, err);
		else
			k = drink(r, which[i], SIZE_MAX, err);
	}
	return k < 0 ? k : 0;
}

int fcvm_run(struct fcvm_process *p, struct iovec *input, unsigned ninput, struct fcvm_sink *out,
	struct fcvm_sink *text, const struct fcvm_until *until, struct fcvm_exit *ret,
	struct fcvm_err *err)
{
	_cleanup_free_ char *chunk = malloc(CHUNK);
	struct run r = {.p = p,
		.input = input,
		.ninput = ninput,
		.sink = {NULL, out, text},
		.chunk = chunk};
	int k = chunk ? 0 : fcvm_fail_errno(err, -ENOMEM, "%s: %s", p->node->name, p->what);

	if (k == 0 && p->fds[0] >= 0)
		feed(&r);
	while (k >= 0 && !(p->ended && p->fds[1] < 0 && p->fds[2] < 0)) {
		k = turn(&r, until, err);
		/* What it prints without end is not its end. */
		if (k == 0 && !p->ended && fcvm_until_passed(until))
			k = fcvm_run_failed(p, -ETIMEDOUT, err);
	}
	if (k == 0)
		*ret = p->exit;
	return k;
}

int fcvm_run_refused(
	const struct fcvm_process *p, struct fcvm_collector *text, struct fcvm_err *err)
{
	const char *line = fcvm_collector_line(text);
	int code = p->exit.signal == 0 && p->exit.code < 256 ? p->exit.code : 0;

	return fcvm_fail(err, code > 0 ? -code : -EIO, "%s: %s: %s", p->node->name, p->what,
		line[0] ? line : "it failed");
}

/* ---- exec ---- */

/* Ends the buffer with a NUL and gives it away. */
static int give(struct fcvm_collector *c, char **ret, size_t *ret_size)
{
	if (fcvm_buf_append(&c->buf, "", 1) < 0)
		return -ENOMEM;
	*ret_size = c->buf.size - 1;
	*ret = c->buf.data; /* a buffer that was only appended to starts at its front */
	c->buf = (struct fcvm_buf){0};
	return 0;
}

int fcvm_node_exec(struct fcvm_node *n, const struct fcvm_spawn *spec, const void *input,
	size_t input_size, size_t limit, const struct fcvm_until *until, struct fcvm_output *ret,
	struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_process_free) struct fcvm_process *p = NULL;
	struct iovec in = {.iov_base = (void *)input, .iov_len = input_size};
	struct fcvm_output output = {.out = NULL};
	struct fcvm_collector out, text;
	struct fcvm_spawn own = *spec;
	int k;

	own.null_stdin = !input;
	k = fcvm_node_spawn(n, &own, until, &p, err);
	if (k < 0)
		return k;
	fcvm_collector_init(&out, limit);
	fcvm_collector_init(&text, limit);
	k = fcvm_run(p, &in, input ? 1 : 0, &out.sink, &text.sink, until, &output.exit, err);
	output.truncated = out.truncated || text.truncated;
	if (k == 0 && (give(&out, &output.out, &output.out_size) < 0 ||
			      give(&text, &output.err, &output.err_size) < 0))
		k = fcvm_fail_errno(err, -ENOMEM, "%s: %s", n->name, p->what);
	fcvm_buf_done(&out.buf);
	fcvm_buf_done(&text.buf);
	if (k == 0)
		*ret = output;
	else
		fcvm_output_done(&output);
	return k;
}

void fcvm_output_done(struct fcvm_output *o)
{
	if (!o)
		return;
	free(o->out);
	free(o->err);
	o->out = o->err = NULL;
	o->out_size = o->err_size = 0;
}
