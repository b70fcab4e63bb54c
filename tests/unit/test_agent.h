/* SPDX-License-Identifier: MIT */
/* A host in raw frames, for test_agent.c: it starts an agent over a socketpair and keeps what comes in. */
#ifndef FCVM_TESTS_TEST_AGENT_H
#define FCVM_TESTS_TEST_AGENT_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fd.h"
#include "base/tree.h"
#include "base/until.h"
#include "check.h"
#include "wire/wire.h"

/* Not each of the programs needs all of it. */
#pragma GCC diagnostic ignored "-Wunused-function"

enum { STREAMS = 600, CHANNELS = 6 };

/* What has come in on one stream. */
struct seen {
	bool result, exited, closed;
	uint32_t code, exit;
	struct fcvm_buf payload; /* of RESULT */
	struct fcvm_buf data[CHANNELS];
	size_t bytes[CHANNELS];
	bool eof[CHANNELS];
	bool stall;     /* no credit given back */
	bool count;     /* count bytes, do not keep them */
	size_t credit;  /* that came back for channel 0 */
};

struct host {
	int fd;
	pid_t pid;
	uint32_t next;
	struct fcvm_buf in, out;
	bool sending;
	unsigned welcomes;
	struct fcvm_wire_hello welcome;
	struct seen s[STREAMS];
	uint8_t payload[FCVM_WIRE_MAX_PAYLOAD];
};

static const char *agent_path;
static char folder[] = "/tmp/fcvm-test-agent-XXXXXX";

static const char *at(const char *name)
{
	static char path[4][300];
	static unsigned i;

	i = (i + 1) % 4;
	snprintf(path[i], sizeof path[i], "%s/%s", folder, name);
	return path[i];
}

/* ---- frames ---- */

static void send_raw(struct host *h, const void *data, size_t size);

static void obey(struct host *h, const struct fcvm_wire_header *f, const uint8_t *payload);

/* Takes in what has come; waits at most ms for something. False: the end, or nothing. */
static bool take(struct host *h, int ms)
{
	struct pollfd p = {.fd = h->fd, .events = POLLIN};
	struct fcvm_wire_header f;
	const uint8_t *payload;
	size_t skip;
	ssize_t n;
	int r;

	if (poll(&p, 1, ms) <= 0)
		return false;
	n = recv(h->fd, fcvm_buf_reserve(&h->in, 128 * 1024), 128 * 1024, MSG_DONTWAIT);
	if (n <= 0)
		return false;
	fcvm_buf_grew(&h->in, n);
	while ((r = fcvm_wire_parse(fcvm_buf_head(&h->in), h->in.size, &f, &payload, &skip)) > 0) {
		/* Obeying it may send, and sending may take in more: it must be out of the buffer by then. */
		uint8_t *own = malloc(f.length + 1);

		if (f.length)
			memcpy(own, payload, f.length);
		fcvm_buf_consume(&h->in, r);
		obey(h, &f, own);
		free(own);
	}
	CHECK(r == 0);
	return r == 0;
}

/* What obeying gives rise to meanwhile queues up behind it: frames must not end up inside one another. */
static void send_raw(struct host *h, const void *data, size_t size)
{
	CHECK(fcvm_buf_append(&h->out, data, size) == 0);
	if (h->sending)
		return;
	h->sending = true;
	while (h->out.size > 0) {
		ssize_t n = send(h->fd, fcvm_buf_head(&h->out), h->out.size, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN) {
			struct pollfd p = {.fd = h->fd, .events = POLLIN | POLLOUT};

			poll(&p, 1, 1000);
			if (p.revents & POLLIN)
				take(h, 0);
			continue;
		}
		fcvm_buf_consume(&h->out, n < 0 ? h->out.size : (size_t)n);
	}
	h->sending = false;
}

static void frame(struct host *h, int type, unsigned channel, uint32_t stream, const void *payload,
	size_t size, uint32_t arg)
{
	uint8_t head[16];
	uint8_t *whole = malloc(size + sizeof head);

	fcvm_wire_put_header(whole, type, channel, stream, size, arg);
	if (size)
		memcpy(whole + 16, payload, size);
	send_raw(h, whole, size + 16);
	free(whole);
}

static void obey(struct host *h, const struct fcvm_wire_header *f, const uint8_t *payload)
{
	struct seen *s = &h->s[f->stream % STREAMS];

	switch (f->type) {
	case FCVM_WIRE_WELCOME:
		CHECK(f->length == sizeof h->welcome);
		memcpy(&h->welcome, payload, sizeof h->welcome);
		h->welcomes++;
		break;
	case FCVM_WIRE_RESULT:
		CHECK(!s->result);
		s->result = true;
		s->code = f->arg;
		fcvm_buf_append(&s->payload, payload, f->length);
		fcvm_buf_append(&s->payload, "", 1);
		break;
	case FCVM_WIRE_DATA:
		CHECK(s->result && !s->exited && !s->eof[f->channel]);
		s->bytes[f->channel] += f->length;
		if (!s->count)
			fcvm_buf_append(&s->data[f->channel], payload, f->length);
		if (!s->stall)
			frame(h, FCVM_WIRE_CREDIT, f->channel, f->stream, NULL, 0, f->length);
		break;
	case FCVM_WIRE_EOF:
		CHECK(!s->eof[f->channel]);
		s->eof[f->channel] = true;
		break;
	case FCVM_WIRE_CREDIT:
		s->credit += f->arg;
		break;
	case FCVM_WIRE_EXIT:
		CHECK(!s->exited);
		s->exited = true;
		s->exit = f->arg;
		break;
	case FCVM_WIRE_CLOSE:
		s->closed = true;
		break;
	default:
		CHECK(!"a frame that the host alone sends");
	}
}

/* Takes frames until *flag or twenty seconds have gone. */
static bool await(struct host *h, const bool *flag)
{
	int64_t deadline = fcvm_now_ns() + 20000000000ll;

	while (!*flag && fcvm_now_ns() < deadline)
		if (!take(h, 1000) && recv(h->fd, &(char){0}, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
			return false;
	return *flag;
}

/* Until nothing comes for that long; somebody may go on for ever. */
static void settle(struct host *h, int ms)
{
	int64_t deadline = fcvm_now_ns() + ms * 5 * 1000000ll;

	while (take(h, ms) && fcvm_now_ns() < deadline)
		;
}

/* ---- the agent ---- */

static void hello_frame(uint8_t to[48], uint64_t nonce, uint64_t generation)
{
	struct fcvm_wire_hello hello = {
		.version = FCVM_WIRE_VERSION, .nonce = nonce, .generation = generation};

	memcpy(hello.magic, "FCVMLINK", 8);
	fcvm_wire_put_header(to, FCVM_WIRE_HELLO, 0, 0, sizeof hello, 0);
	memcpy(to + 16, &hello, sizeof hello);
}

static bool hello(struct host *h, uint64_t nonce, uint64_t generation, bool resync)
{
	uint8_t *all = calloc(1, FCVM_WIRE_RESYNC + 48);
	unsigned before = h->welcomes;
	bool welcome = false;

	hello_frame(all + FCVM_WIRE_RESYNC, nonce, generation);
	send_raw(h, all + (resync ? 0 : FCVM_WIRE_RESYNC), resync ? FCVM_WIRE_RESYNC + 48 : 48);
	free(all);
	for (unsigned i = 0; i < 50 && !welcome; i++) {
		take(h, 100);
		welcome = h->welcomes > before;
	}
	for (unsigned i = 0; welcome && i < STREAMS; i++) {
		fcvm_buf_done(&h->s[i].payload);
		for (unsigned j = 0; j < CHANNELS; j++)
			fcvm_buf_done(&h->s[i].data[j]);
	}
	memset(h->s, 0, sizeof h->s);
	h->next = 1;
	return welcome && h->welcome.nonce == nonce;
}

/* apart: in a mount namespace of its own. */
static struct host *start_agent(bool apart)
{
	struct host *h = calloc(1, sizeof *h);
	int p[2];

	CHECK(fcvm_fd_pair(p) == 0);
	h->pid = fork();
	if (h->pid == 0) {
		char number[12];

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (apart && (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0))
			_exit(126);
		fcntl(p[1], F_SETFD, 0);
		snprintf(number, sizeof number, "%d", p[1]);
		execl(agent_path, agent_path, "--fd", number, NULL);
		_exit(127);
	}
	close(p[1]);
	h->fd = p[0];
	CHECK(hello(h, 77, 0, false));
	return h;
}

static struct host *start(void)
{
	return start_agent(false);
}

/* Ends the link: the agent must end by itself, well. */
static void stop(struct host *h)
{
	int status = -1, tries = 0;

	close(h->fd);
	while (waitpid(h->pid, &status, WNOHANG) == 0 && tries++ < 1000)
		usleep(5000);
	CHECK(tries < 1000);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	for (unsigned i = 0; i < STREAMS; i++) {
		fcvm_buf_done(&h->s[i].payload);
		for (unsigned j = 0; j < CHANNELS; j++)
			fcvm_buf_done(&h->s[i].data[j]);
	}
	fcvm_buf_done(&h->in);
	fcvm_buf_done(&h->out);
	free(h);
}

static long rss_kb(pid_t pid)
{
	char path[64], *text;
	long kb = -1;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	if (fcvm_file_read(AT_FDCWD, path, 65536, &text, NULL) == 0) {
		char *at_rss = strstr(text, "VmRSS:");

		kb = at_rss ? strtol(at_rss + 6, NULL, 10) : -1;
		free(text);
	}
	return kb;
}

static bool sanitised(void)
{
	return strstr(agent_path, "asan") != NULL;
}

/* ---- requests ---- */

static uint32_t open_op(struct host *h, uint32_t op, const void *payload, size_t size)
{
	uint32_t id = h->next++;

	frame(h, FCVM_WIRE_OPEN, 0, id, payload, size, op);
	return id;
}

struct run {
	uint32_t flags, channels;
	unsigned rows, columns;
	const char *cwd, *user;
	const char *const *env;
};

static uint32_t spawn(struct host *h, const struct run *how, const char *const *argv)
{
	struct fcvm_wire_writer w = fcvm_wire_writer(h->payload, sizeof h->payload);
	struct fcvm_wire_spawn head = {.flags = how->flags,
		.rows = how->rows,
		.columns = how->columns,
		.channels = how->channels};

	while (argv[head.nargv])
		head.nargv++;
	while (how->env && how->env[head.nenv])
		head.nenv++;
	fcvm_wire_put_bytes(&w, &head, sizeof head);
	fcvm_wire_put_string(&w, how->cwd);
	fcvm_wire_put_string(&w, how->user);
	for (unsigned i = 0; i < head.nargv; i++)
		fcvm_wire_put_string(&w, argv[i]);
	for (unsigned i = 0; i < head.nenv; i++)
		fcvm_wire_put_string(&w, how->env[i]);
	return open_op(h, FCVM_WIRE_SPAWN, h->payload, w.at - h->payload);
}

static uint32_t sh(struct host *h, const char *script)
{
	return spawn(h, &(struct run){.flags = FCVM_WIRE_NULL_STDIN},
		(const char *[]){"sh", "-c", script, NULL});
}

static uint32_t strings(struct host *h, uint32_t op, int nwords, uint32_t a, uint32_t b, const char *s,
	const char *t)
{
	struct fcvm_wire_writer w = fcvm_wire_writer(h->payload, sizeof h->payload);

	if (nwords > 0)
		fcvm_wire_put_u32(&w, a);
	if (nwords > 1)
		fcvm_wire_put_u32(&w, b);
	if (s)
		fcvm_wire_put_string(&w, s);
	if (t)
		fcvm_wire_put_string(&w, t);
	return open_op(h, op, h->payload, w.at - h->payload);
}

static struct seen *result(struct host *h, uint32_t id)
{
	CHECK(await(h, &h->s[id].result));
	return &h->s[id];
}

static bool ok(struct host *h, uint32_t id)
{
	struct seen *s = result(h, id);

	if (s->code)
		fprintf(stderr, "refused: %u %s\n", s->code, (char *)s->payload.data);
	return s->result && s->code == 0;
}

static struct seen *ended(struct host *h, uint32_t id)
{
	CHECK(await(h, &h->s[id].exited));
	return &h->s[id];
}

static bool text_is(struct fcvm_buf *b, const char *text)
{
	bool same = b->size == strlen(text) && (b->size == 0 || memcmp(b->data + b->start, text, b->size) == 0);

	if (!same)
		fprintf(stderr, "got \"%.*s\"\n", (int)b->size, b->data ? b->data + b->start : "");
	return same;
}

static bool said(struct host *h, uint32_t id, const char *text)
{
	struct seen *s = ended(h, id);

	return s->exit == 0 && text_is(&s->data[1], text);
}

static bool alive(const char *pid_file)
{
	char *text;
	bool yes;

	if (fcvm_file_read(AT_FDCWD, pid_file, 100, &text, NULL) < 0)
		return false;
	yes = atoi(text) > 0 && kill(atoi(text), 0) == 0;
	free(text);
	return yes;
}

/* Until it is so, at most two seconds. */
static bool soon_dead(const char *pid_file)
{
	for (unsigned i = 0; i < 200 && alive(pid_file); i++)
		usleep(10000);
	return !alive(pid_file);
}

/* ---- a program of tests ---- */

struct test {
	const char *name;
	void (*run)(void);
};

/* Main's work; ONLY=name runs one. */
static int run_tests(const struct test *tests, unsigned n)
{
	agent_path = getenv("FCVM_AGENT");
	if (!agent_path || access(agent_path, X_OK) < 0) {
		printf("skipped: FCVM_AGENT does not name the agent\n");
		return 77;
	}
	signal(SIGPIPE, SIG_IGN);
	if (!mkdtemp(folder))
		return 1;
	for (unsigned i = 0; i < n; i++) {
		unsigned before = check_failed;

		if (getenv("ONLY") && strcmp(getenv("ONLY"), tests[i].name) != 0)
			continue;
		tests[i].run();
		if (check_failed > before)
			fprintf(stderr, "^ %s\n", tests[i].name);
	}
	fcvm_tree_remove(AT_FDCWD, folder);
	CHECK_DONE();
}

#endif
