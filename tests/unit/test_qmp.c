/* SPDX-License-Identifier: MIT */
/* The QMP client against a server of ours over a socketpair, which follows a script and misbehaves in all the ways that
 * a peer can. The greeting and the answers have the form that QEMU 10.0.2 sends. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "check.h"
#include "vmm/qmp.h"

#define HELLO                                                                                      \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 0, \"major\": 10}, \"package\": " \
	"\"Debian\"}, \"capabilities\": [\"oob\"]}}\r\n"
#define STOP_EVENT                                                                                 \
	"{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"STOP\"}\r\n"

static struct fcvm_err err;

/* ---- the server: sends `greeting`, then answers[i] to the i-th line it reads ---- */

struct server {
	int fd;
	const char *greeting;
	const char *const *answers; /* NULL-terminated; "": nothing; "-": closes */
	char heard[8][256];
	unsigned nheard;
	pthread_t thread;
};

static bool hear(struct server *s, char *to, size_t size)
{
	size_t used = 0;

	while (used + 1 < size) {
		if (read(s->fd, to + used, 1) != 1)
			return false;
		if (to[used] == '\n')
			break;
		used++;
	}
	to[used] = 0;
	return true;
}

static void *serve(void *arg)
{
	struct server *s = arg;

	if (write(s->fd, s->greeting, strlen(s->greeting)) < 0)
		return NULL;
	for (unsigned i = 0; hear(s, s->heard[i], sizeof s->heard[i]); ) {
		const char *answer = s->answers[i];

		s->nheard = ++i;
		if (!answer || strcmp(answer, "-") == 0)
			break;
		/* In pieces: the client must not take reads for lines. */
		for (size_t n = strlen(answer), at = 0; at < n; at += 7)
			if (send(s->fd, answer + at, n - at < 7 ? n - at : 7, MSG_NOSIGNAL) < 0)
				return NULL;
	}
	shutdown(s->fd, SHUT_RDWR);
	return NULL;
}

static struct fcvm_qmp *begin(struct server *s, const char *greeting, const char *const *answers)
{
	struct fcvm_qmp *q = NULL;
	int fds[2];

	*s = (struct server){.greeting = greeting, .answers = answers};
	CHECK(fcvm_fd_pair(fds) == 0);
	s->fd = fds[1];
	CHECK(pthread_create(&s->thread, NULL, serve, s) == 0);
	CHECK(fcvm_qmp_new(&q, fds[0], -1, "vm", &err) == 0);
	return q;
}

static void end(struct server *s, struct fcvm_qmp *q)
{
	fcvm_qmp_free(q);
	pthread_join(s->thread, NULL);
	close(s->fd);
}

static struct fcvm_until in_ms(int ms)
{
	return fcvm_until_ms(ms, -1);
}

/* ---- */

static void test_calls(void)
{
	static const char *const answers[] = {"{\"return\": {}, \"id\": 0}\r\n",
		STOP_EVENT "{\"return\": {\"a\": 5}, \"id\": 1}\r\n",
		"{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}}\r\n",
		"{\"id\": 3, \"error\": {\"class\": \"CommandNotFound\", \"desc\": \"not found\"}}\r\n", "-", NULL};
	struct fcvm_until until = in_ms(5000), soon = in_ms(50);
	struct fcvm_json *args = fcvm_json_object(), *answer = NULL, *event = NULL;
	struct server s;
	struct fcvm_qmp *q = begin(&s, HELLO, answers);

	CHECK(fcvm_qmp_call(q, "stop", NULL, &until, NULL, &err) == -EPROTO); /* not greeted yet */
	CHECK(fcvm_qmp_greet(q, &until, &err) == 0);
	CHECK(strcmp(fcvm_qmp_version(q), "10.0.2") == 0);
	fcvm_json_set_string(args, "uri", "x\n\"y");
	CHECK(fcvm_qmp_call(q, "stop", args, &until, &answer, &err) == 0);
	CHECK(fcvm_json_int(fcvm_json_get(answer, "return"), "a", 0) == 5);
	fcvm_json_free(answer);
	CHECK(strcmp(s.heard[1], "{\"execute\":\"stop\",\"id\":1,\"arguments\":{\"uri\":\"x\\n\\\"y\"}}") == 0);
	CHECK(fcvm_qmp_call(q, "x", NULL, &until, NULL, &err) == -EIO);
	CHECK(strcmp(err.message, "vm: x: no such thing") == 0 && err.code == EIO);
	CHECK(fcvm_qmp_call(q, "y", NULL, &until, NULL, &err) == -EOPNOTSUPP);
	CHECK(fcvm_qmp_event(q, "RESUME", &soon, &event, &err) == -ETIMEDOUT && !event);
	CHECK(fcvm_qmp_event(q, "STOP", &until, &event, &err) == 0);
	fcvm_json_free(event);
	/* The end, in the middle of a call. */
	CHECK(fcvm_qmp_call(q, "z", NULL, &until, NULL, &err) == -ECONNRESET);
	CHECK(strcmp(err.message, "vm: z: it has closed its QMP connection") == 0);
	CHECK(fcvm_qmp_ended(q) && fcvm_qmp_call(q, "z", NULL, &until, NULL, &err) == -ECONNRESET);
	CHECK(fcvm_qmp_event(q, "STOP", &until, &event, &err) == -ECONNRESET);
	end(&s, q);
}

/* A descriptor goes with the line that names it. */
static void test_fd(void)
{
	static const char hello[] = HELLO "{\"return\": {}, \"id\": 0}\n", answer[] = "{\"return\": {}, \"id\": 1}\n";
	char line[256] = "", control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
	struct iovec v = {line, sizeof line - 1};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct fcvm_until until = in_ms(5000);
	struct fcvm_qmp *q = NULL;
	int fds[2], given[2], taken = -1;

	CHECK(fcvm_fd_pair(fds) == 0 && pipe(given) == 0);
	CHECK(write(fds[1], hello, sizeof hello - 1) == sizeof hello - 1);
	CHECK(fcvm_qmp_new(&q, fds[0], -1, "vm", &err) == 0 && fcvm_qmp_greet(q, &until, &err) == 0);
	CHECK(read(fds[1], line, sizeof line) > 0 && strstr(line, "qmp_capabilities"));
	CHECK(write(fds[1], answer, sizeof answer - 1) == sizeof answer - 1);
	CHECK(fcvm_qmp_send_fd(q, "volume", given[1], &until, &err) == 0);
	memset(line, 0, sizeof line);
	CHECK(recvmsg(fds[1], &m, 0) > 0);
	CHECK(strcmp(line, "{\"execute\":\"getfd\",\"id\":1,\"arguments\":{\"fdname\":\"volume\"}}\n") == 0);
	CHECK(CMSG_FIRSTHDR(&m) && CMSG_FIRSTHDR(&m)->cmsg_type == SCM_RIGHTS);
	if (CMSG_FIRSTHDR(&m))
		memcpy(&taken, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof taken);
	CHECK(write(taken, "x", 1) == 1 && read(given[0], line, 1) == 1);
	fcvm_qmp_free(q);
	close(taken);
	close(given[0]);
	close(given[1]);
	close(fds[1]);
}

static void test_given_up(void)
{
	static const char *const answers[] = {"{\"return\": {}, \"id\": 0}\n", "",
		"{\"return\": 1, \"id\": 1}\n{\"return\": 2, \"id\": 2}\n", "", NULL};
	struct fcvm_until until = in_ms(5000), soon = in_ms(50), cancelled;
	struct fcvm_json *answer = NULL;
	struct server s;
	struct fcvm_qmp *q = begin(&s, HELLO, answers);
	int64_t start = fcvm_now_ns();
	int event = fcvm_fd_event();
	uint64_t one = 1;

	CHECK(fcvm_qmp_greet(q, &until, &err) == 0);
	CHECK(fcvm_qmp_call(q, "slow", NULL, &soon, NULL, &err) == -ETIMEDOUT);
	CHECK(fcvm_now_ns() - start < 2000000000);
	CHECK(fcvm_qmp_call(q, "next", NULL, &until, &answer, &err) == 0); /* the late answer is not taken for it */
	CHECK(fcvm_json_int(answer, "return", 0) == 2);
	fcvm_json_free(answer);
	CHECK(write(event, &one, sizeof one) == sizeof one);
	cancelled = fcvm_until_ms(5000, event);
	CHECK(fcvm_qmp_call(q, "cancelled", NULL, &cancelled, NULL, &err) == -ECANCELED);
	CHECK(!fcvm_qmp_ended(q));
	close(event);
	end(&s, q);
}

/* Each of these ends the connection, with a reason. */
static void test_nonsense(void)
{
	static const struct {
		const char *greeting, *answer, *reason;
	} cases[] = {
		{"hello\n", "", ""},
		{"{}\n", "", "neither greeting"},
		{"{\"event\": \"STOP\"}\n", "", "before its greeting"},
		{"{\"return\": {}, \"id\": 0}\n", "", "nobody had asked"},
		{HELLO HELLO, "", "second greeting"},
		{HELLO, "{\"return\": {}, \"id\": 7}\n", "nobody had asked"},
		{HELLO, "{\"error\": {\"desc\": \"will not\"}, \"id\": 0}\n", "will not"},
		{HELLO, "{\"return\": {}, \"id\": \"0\"}\n", "nobody had asked"},
		{HELLO, "{\"return\": {}, \"id\": 0\n", ""},
		{"[1, 2]\n", "", "neither greeting"},
		{"{\"QMP\": 5}{\n", "", ""},
	};

	for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
		const char *answers[] = {cases[i].answer, NULL};
		struct fcvm_until until = in_ms(5000);
		struct server s;
		struct fcvm_qmp *q = begin(&s, cases[i].greeting, answers);

		CHECK(fcvm_qmp_greet(q, &until, &err) == -EPROTO);
		CHECK(fcvm_qmp_ended(q) && strstr(err.message, cases[i].reason));
		CHECK(fcvm_qmp_greet(q, &until, &err) == -EPROTO);
		end(&s, q);
	}
}

static void test_long_line(void)
{
	static const char *const none[] = {NULL};
	size_t size = FCVM_QMP_LINE + 100000;
	char *line = malloc(size + 1);
	struct fcvm_until until = in_ms(20000);
	struct server s;
	struct fcvm_qmp *q;

	memset(line, ' ', size);
	line[size] = 0;
	q = begin(&s, line, none);
	CHECK(fcvm_qmp_greet(q, &until, &err) == -EPROTO && strstr(err.message, "megabyte"));
	end(&s, q);
	/* A long one within bounds is fine. */
	strcpy(line + FCVM_QMP_LINE - 1000, HELLO);
	q = begin(&s, line, (const char *const[]){"{\"return\": {}, \"id\": 0}\n", NULL});
	CHECK(fcvm_qmp_greet(q, &until, &err) == 0);
	end(&s, q);
	free(line);
}

/* More events than are kept: the newest stay. And one who never stops talking does not stop the clock. */
static void test_flood(void)
{
	struct fcvm_until until = in_ms(5000);
	char *flood = calloc(1, 300000), *at;
	const char *answers[] = {"{\"return\": {}, \"id\": 0}\n", flood, NULL};
	struct fcvm_json *event = NULL;
	struct server s;
	struct fcvm_qmp *q;
	int n = 0;

	at = flood;
	for (int i = 0; i < 1000; i++)
		at += sprintf(at, "{\"event\": \"E\", \"data\": {\"n\": %d}}\n", i);
	strcpy(at, "{\"return\": {}, \"id\": 1}\n");
	q = begin(&s, HELLO, answers);
	CHECK(fcvm_qmp_greet(q, &until, &err) == 0);
	CHECK(fcvm_qmp_call(q, "x", NULL, &until, NULL, &err) == 0);
	for (; n < FCVM_QMP_EVENTS; n++) {
		if (fcvm_qmp_event(q, "E", &until, &event, &err) < 0)
			break;
		CHECK(fcvm_json_int(fcvm_json_get(event, "data"), "n", -1) == 1000 - FCVM_QMP_EVENTS + n);
		fcvm_json_free(event);
	}
	CHECK(n == FCVM_QMP_EVENTS);
	until = in_ms(50);
	CHECK(fcvm_qmp_event(q, "E", &until, &event, &err) == -ETIMEDOUT);
	end(&s, q);
	free(flood);
}

static void *chatter(void *arg)
{
	int fd = *(int *)arg;

	while (send(fd, "{\"event\": \"E\"}\n", 15, MSG_NOSIGNAL) > 0)
		;
	return NULL;
}

static void test_chatter(void)
{
	struct fcvm_until until = in_ms(200);
	struct fcvm_qmp *q = NULL;
	struct fcvm_json *event;
	pthread_t thread;
	int64_t start;
	int fds[2];

	CHECK(fcvm_fd_pair(fds) == 0);
	CHECK(write(fds[1], HELLO, strlen(HELLO)) > 0);
	CHECK(fcvm_qmp_new(&q, fds[0], -1, "vm", &err) == 0);
	CHECK(write(fds[1], "{\"return\": {}, \"id\": 0}\n", 24) == 24 || true);
	CHECK(fcvm_qmp_greet(q, &until, &err) <= 0);
	pthread_create(&thread, NULL, chatter, &fds[1]);
	start = fcvm_now_ns();
	until = in_ms(200);
	CHECK(fcvm_qmp_event(q, "F", &until, &event, &err) < 0);
	CHECK(fcvm_now_ns() - start < 3000000000);
	fcvm_qmp_free(q);
	pthread_join(thread, NULL);
	close(fds[1]);
}

/* The process has gone while something still holds its end of the socket. */
static void test_exit_fd(void)
{
	struct fcvm_until until = in_ms(5000);
	struct fcvm_qmp *q = NULL;
	int fds[2], gone[2];

	CHECK(fcvm_fd_pair(fds) == 0 && fcvm_fd_pipe(gone) == 0);
	CHECK(fcvm_qmp_new(&q, fds[0], gone[0], "vm", &err) == 0);
	close(gone[1]);
	CHECK(fcvm_qmp_greet(q, &until, &err) == -ECONNRESET);
	fcvm_qmp_free(q);
	close(gone[0]);
	close(fds[1]);
}

int main(void)
{
	test_calls();
	test_fd();
	test_given_up();
	test_nonsense();
	test_long_line();
	test_flood();
	test_chatter();
	test_exit_fd();
	CHECK_DONE();
}
