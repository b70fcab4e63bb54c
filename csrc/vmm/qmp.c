/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: the connection is in one state, and step() is the only place that changes it for a message of
 * the peer's. A call sends its command and pumps messages through step() until its answer is there. Ids only grow;
 * an answer with an older id belongs to a call that was given up.
 *
 *	GREETING --greeting--> NEGOTIATING --answer--> READY <--answer-- BUSY
 *	                                               READY ---call---> BUSY
 *	ENDED from anywhere: end of stream, the peer's death, garbage, a command half sent
 */
#include "vmm/qmp.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/fail.h"
#include "base/fd.h"

enum { CHUNK = 16 * 1024 };

enum state { GREETING, NEGOTIATING, READY, BUSY, ENDED };

struct fcvm_qmp {
	enum state state;
	int fd;
	int exit_fd;
	char *name;
	char version[24];
	int64_t id;             /* of the command under way or the last one */
	struct fcvm_buf in;
	size_t scanned;         /* bytes at in's front that hold no end of line */
	struct fcvm_qmp_message answer; /* json != NULL: there is one */
	struct fcvm_json *events[FCVM_QMP_EVENTS]; /* a ring */
	unsigned first, count;
	struct fcvm_err end;    /* why it is ENDED */
};

int fcvm_qmp_new(struct fcvm_qmp **ret, int fd, int exit_fd, const char *name, struct fcvm_err *err)
{
	struct fcvm_qmp *q = calloc(1, sizeof *q);

	if (q)
		q->name = strdup(name);
	if (!q || !q->name || fcvm_fd_nonblock(fd, true) < 0) {
		if (q)
			free(q->name);
		free(q);
		fcvm_close(fd);
		return fcvm_fail_errno(err, -ENOMEM, "%s: QMP", name);
	}
	q->fd = fd;
	q->exit_fd = exit_fd;
	q->answer.id = -1;
	*ret = q;
	return 0;
}

void fcvm_qmp_forget(struct fcvm_qmp *q)
{
	while (q->count > 0) {
		fcvm_json_free(fcvm_steal_ptr(q->events[q->first]));
		q->first = (q->first + 1) % FCVM_QMP_EVENTS;
		q->count--;
	}
}

void fcvm_qmp_free(struct fcvm_qmp *q)
{
	if (!q)
		return;
	fcvm_qmp_forget(q);
	fcvm_qmp_message_done(&q->answer);
	fcvm_buf_done(&q->in);
	fcvm_close(q->fd);
	free(q->name);
	free(q);
}

const char *fcvm_qmp_version(const struct fcvm_qmp *q)
{
	return q->version;
}

bool fcvm_qmp_ended(const struct fcvm_qmp *q)
{
	return q->state == ENDED;
}

/* ---- states ---- */

static int end(struct fcvm_qmp *q, int code, const char *why)
{
	if (q->state != ENDED)
		fcvm_fail(&q->end, code, "%s", why);
	q->state = ENDED;
	return code;
}

static void keep_event(struct fcvm_qmp *q, struct fcvm_json *json)
{
	if (q->count == FCVM_QMP_EVENTS) { /* the oldest goes */
		fcvm_json_free(fcvm_steal_ptr(q->events[q->first]));
		q->first = (q->first + 1) % FCVM_QMP_EVENTS;
		q->count--;
	}
	q->events[(q->first + q->count++) % FCVM_QMP_EVENTS] = json;
}

/* Returns 0, or -errno with the connection ended. Takes what it needs out of m. */
static int step(struct fcvm_qmp *q, struct fcvm_qmp_message *m)
{
	static const char hello[] = "{\"execute\":\"qmp_capabilities\",\"id\":0}\n";
	struct fcvm_until soon = fcvm_until_ms(1000, -1);

	switch (m->kind) {
	case FCVM_QMP_GREETING:
		if (q->state != GREETING)
			return end(q, -EPROTO, "it sent a second greeting");
		snprintf(q->version, sizeof q->version, "%d.%d.%d", m->version[0], m->version[1], m->version[2]);
		if (fcvm_fd_send_until(q->fd, hello, sizeof hello - 1, &soon) < 0)
			return end(q, -ECONNRESET, "it does not read its QMP connection");
		q->state = NEGOTIATING;
		return 0;
	case FCVM_QMP_EVENT:
		if (q->state == GREETING)
			return end(q, -EPROTO, "it sent an event before its greeting");
		keep_event(q, fcvm_steal_ptr(m->json));
		return 0;
	case FCVM_QMP_RETURN:
	case FCVM_QMP_ERROR:
		if (q->state == NEGOTIATING && m->id == 0 && m->kind == FCVM_QMP_RETURN) {
			q->state = READY;
			return 0;
		}
		if (q->state == BUSY && m->id == q->id) {
			q->answer = *m;
			m->json = NULL;
			q->state = READY;
			return 0;
		}
		if ((q->state == BUSY || q->state == READY) && m->id > 0 && m->id <= q->id)
			return 0; /* of a call that was given up */
		return end(q, -EPROTO, m->kind == FCVM_QMP_ERROR ? m->text : "it answered what nobody had asked");
	}
	return 0;
}

/* ---- input ---- */

/* Feeds the complete lines of q->in to step(). */
static int digest(struct fcvm_qmp *q)
{
	for (;;) {
		struct fcvm_qmp_message m;
		struct fcvm_err err = FCVM_ERR_INIT;
		char *head, *newline;
		size_t size;
		int k = 0;

		if (q->in.size == 0)
			return 0;
		head = fcvm_buf_head(&q->in);
		newline = memchr(head + q->scanned, '\n', q->in.size - q->scanned);
		q->scanned = q->in.size;
		if (!newline && q->in.size > FCVM_QMP_LINE)
			return end(q, -EPROTO, "it sent a line of more than a megabyte");
		if (!newline)
			return 0;
		size = newline - head;
		q->scanned = 0;
		if (size > 0 && head[size - 1] == '\r')
			size--;
		if (size > 0) {
			if (fcvm_qmp_parse(head, size, &m, &err) < 0)
				return end(q, -EPROTO, err.message);
			k = step(q, &m);
			fcvm_qmp_message_done(&m);
		}
		fcvm_buf_consume(&q->in, newline + 1 - head);
		if (k < 0)
			return k;
	}
}

/* Reads what is there. *ret_end: the peer has closed. */
static int slurp(struct fcvm_qmp *q, bool *ret_end)
{
	for (;;) {
		void *to = fcvm_buf_reserve(&q->in, CHUNK);
		ssize_t n;
		int k;

		if (!to)
			return end(q, -ENOMEM, "no memory for what it says");
		n = recv(q->fd, to, CHUNK, MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n <= 0) {
			*ret_end = true;
			return 0;
		}
		fcvm_buf_grew(&q->in, n);
		k = digest(q);
		/* One who talks without a pause is not waited for: the caller looks at its clock in between. */
		if (k < 0 || n < CHUNK)
			return k;
	}
}

/* Waits for input and takes it in. 0, or -errno: the connection's end, or time's. */
static int pump(struct fcvm_qmp *q, const struct fcvm_until *until)
{
	struct pollfd fds[2] = {{.fd = q->fd, .events = POLLIN}, {.fd = q->exit_fd, .events = POLLIN}};
	enum state before = q->state;
	unsigned count = q->count;
	bool ended = false;
	int k;

	k = fcvm_until_poll(until, fds, q->exit_fd >= 0 ? 2 : 1);
	if (k < 0)
		return k;
	ended = q->exit_fd >= 0 && fds[1].revents;
	k = slurp(q, &ended);
	if (k < 0)
		return k;
	/* Its last words may be the answer: then the end is found by the next call. */
	if (ended && q->state == before && q->count == count)
		return end(q, -ECONNRESET, "it has closed its QMP connection");
	/* One who never stops talking keeps the poll from seeing what time it is. */
	if (q->state == before && until && fcvm_now_ns() >= until->deadline_ns)
		return -ETIMEDOUT;
	return 0;
}

static int tell(struct fcvm_qmp *q, int code, const char *doing, struct fcvm_err *err)
{
	if (q->state == ENDED)
		return fcvm_fail(err, code, "%s: %s: %s", q->name, doing, q->end.message);
	return fcvm_fail_errno(err, code, "%s: %s", q->name, doing);
}

/* ---- calls ---- */

int fcvm_qmp_greet(struct fcvm_qmp *q, const struct fcvm_until *until, struct fcvm_err *err)
{
	while (q->state == GREETING || q->state == NEGOTIATING) {
		int k = pump(q, until);

		if (k < 0)
			return tell(q, k, "wait for QMP", err);
	}
	return q->state == ENDED ? tell(q, -q->end.code, "wait for QMP", err) : 0;
}

int fcvm_qmp_rename(struct fcvm_qmp *q, const char *name)
{
	char *copy = strdup(name);

	if (!copy)
		return -ENOMEM;
	free(q->name);
	q->name = copy;
	return 0;
}

void fcvm_qmp_join(struct fcvm_qmp *q)
{
	if (q->state == GREETING)
		q->state = READY;
}

/* The line to be sent, malloc'ed; takes arguments. */
static char *make_command(const char *command, int64_t id, struct fcvm_json *arguments)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *o = fcvm_json_object();
	_cleanup_free_ char *text = NULL;
	int k = o ? 0 : -ENOMEM;

	if (k == 0)
		k = fcvm_json_set_string(o, "execute", command);
	if (k == 0)
		k = fcvm_json_set_int(o, "id", id);
	if (k == 0 && arguments)
		k = fcvm_json_set(o, "arguments", fcvm_steal_ptr(arguments));
	fcvm_json_free(arguments);
	if (k < 0)
		return NULL;
	text = fcvm_json_print(o, 0);
	return text ? fcvm_asprintf("%s\n", text) : NULL;
}

/* fd, unless it is -1, goes with the line's first bytes. */
static int send_line(struct fcvm_qmp *q, const char *line, int fd, const struct fcvm_until *until)
{
	char control[CMSG_SPACE(sizeof fd)] __attribute__((aligned(8))) = {0};
	struct iovec v = {(void *)line, strlen(line)};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	ssize_t n;

	if (fd < 0)
		return fcvm_fd_send_until(q->fd, line, v.iov_len, until);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	while ((n = sendmsg(q->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT)) < 0 && (errno == EINTR || errno == EAGAIN)) {
		struct pollfd p = {.fd = q->fd, .events = POLLOUT};
		int k = errno == EAGAIN ? fcvm_until_poll(until, &p, 1) : 0;

		if (k < 0)
			return k;
	}
	return n < 0 ? -errno : fcvm_fd_send_until(q->fd, line + n, v.iov_len - n, until);
}

static int send_command(struct fcvm_qmp *q, const char *command, struct fcvm_json *arguments, int fd,
	const struct fcvm_until *until)
{
	_cleanup_free_ char *line = make_command(command, ++q->id, arguments);
	int k;

	if (!line)
		return -ENOMEM;
	k = send_line(q, line, fd, until);
	if (k < 0) /* perhaps half of it: what would be sent next were garbage */
		return end(q, k == -EPIPE ? -ECONNRESET : k, "it does not read its QMP connection");
	q->state = BUSY;
	return 0;
}

static int code_of(const char *class)
{
	return strcmp(class, "CommandNotFound") == 0 ? -EOPNOTSUPP : -EIO;
}

static int call(struct fcvm_qmp *q, const char *command, struct fcvm_json *arguments, int fd,
	const struct fcvm_until *until, struct fcvm_json **ret, struct fcvm_err *err)
{
	struct fcvm_qmp_message answer;
	int k;

	if (q->state != READY) {
		fcvm_json_free(arguments);
		return tell(q, q->state == ENDED ? -q->end.code : -EPROTO, command, err);
	}
	k = send_command(q, command, arguments, fd, until);
	while (k == 0 && q->state == BUSY)
		k = pump(q, until);
	if (k < 0 && q->state == BUSY)
		q->state = READY; /* given up; the answer will be dropped */
	if (!q->answer.json)
		return tell(q, k < 0 ? k : -ECONNRESET, command, err);
	answer = q->answer;
	q->answer = (struct fcvm_qmp_message){.id = -1};
	k = 0;
	if (answer.kind == FCVM_QMP_ERROR)
		k = fcvm_fail(err, code_of(answer.class), "%s: %s: %s", q->name, command, answer.text);
	else if (ret)
		*ret = fcvm_steal_ptr(answer.json);
	fcvm_qmp_message_done(&answer);
	return k;
}

int fcvm_qmp_call(struct fcvm_qmp *q, const char *command, struct fcvm_json *arguments,
	const struct fcvm_until *until, struct fcvm_json **ret, struct fcvm_err *err)
{
	return call(q, command, arguments, -1, until, ret, err);
}

int fcvm_qmp_send_fd(struct fcvm_qmp *q, const char *name, int fd, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_json *arguments = fcvm_json_object();

	if (!arguments || fcvm_json_set_string(arguments, "fdname", name) < 0) {
		fcvm_json_free(arguments);
		return tell(q, -ENOMEM, "getfd", err);
	}
	return call(q, "getfd", arguments, fd, until, NULL, err);
}

static struct fcvm_json *take_event(struct fcvm_qmp *q, const char *event)
{
	for (unsigned i = 0; i < q->count; i++) {
		struct fcvm_json *found = q->events[(q->first + i) % FCVM_QMP_EVENTS];

		if (strcmp(fcvm_json_string(found, "event", ""), event) != 0)
			continue;
		for (unsigned j = i; j + 1 < q->count; j++)
			q->events[(q->first + j) % FCVM_QMP_EVENTS] = q->events[(q->first + j + 1) % FCVM_QMP_EVENTS];
		q->events[(q->first + --q->count) % FCVM_QMP_EVENTS] = NULL;
		return found;
	}
	return NULL;
}

int fcvm_qmp_event(struct fcvm_qmp *q, const char *event, const struct fcvm_until *until, struct fcvm_json **ret,
	struct fcvm_err *err)
{
	for (;;) {
		struct fcvm_json *found = take_event(q, event);
		int k;

		if (found) {
			*ret = found;
			return 0;
		}
		k = q->state == ENDED ? -q->end.code : pump(q, until);
		if (k < 0)
			return tell(q, k, event, err);
	}
}
