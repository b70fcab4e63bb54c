/* SPDX-License-Identifier: MIT */
/* The first half of test_node.c: what all of it uses, programs, and their flow. */
#ifndef FCVM_TESTS_TEST_NODE_H
#define FCVM_TESTS_TEST_NODE_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fd.h"
#include "check.h"
#include "node/node.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED
#endif

static struct fcvm_node *host;
static char host_folder[] = "/tmp/fcvm-test-node-XXXXXX";

/* The place that is tested. */
static struct fcvm_node *node;
static char folder[128]; /* on it */
static struct fcvm_node *(*fresh)(
	int *ret_carrier); /* another node of the same place; a copy of its carrier */

static struct fcvm_err err;

static bool ok(int k)
{
	if (k < 0)
		fprintf(stderr, "%s: failed: %s\n", fcvm_node_name(node), err.message);
	return k == 0;
}

static const char *in(const char *base, const char *name)
{
	static char paths[8][512];
	static unsigned i;

	i = (i + 1) % 8;
	snprintf(paths[i], sizeof paths[i], "%s/%s", base, name);
	return paths[i];
}

static const char *at(const char *name)
{
	return in(folder, name);
}

static int exec(struct fcvm_node *n, const char *script, const char *input, int timeout_ms,
	struct fcvm_output *ret)
{
	struct fcvm_until until = fcvm_until_ms(timeout_ms, -1);
	const char *argv[] = {"sh", "-c", script, NULL};
	struct fcvm_spawn spec = {.argv = argv};

	return fcvm_node_exec(
		n, &spec, input, input ? strlen(input) : 0, 1 << 20, &until, ret, &err);
}

/* Exit status of a script, -1 if there is none. */
static int status_of(const char *script)
{
	struct fcvm_output o;
	int code;

	if (!ok(exec(node, script, NULL, 30000, &o)))
		return -1;
	code = o.exit.signal ? -1 : o.exit.code;
	fcvm_output_done(&o);
	return code;
}

static bool says(const struct fcvm_spawn *how, const char *want)
{
	struct fcvm_until until = fcvm_until_ms(30000, -1);
	struct fcvm_output o;
	bool same;

	if (!ok(fcvm_node_exec(node, how, NULL, 0, 4096, &until, &o, &err)))
		return false;
	same = o.exit.code == 0 && strcmp(o.out, want) == 0;
	if (!same)
		fprintf(stderr, "%s: exit %d, said \"%s\" and \"%s\"\n", fcvm_node_name(node),
			o.exit.code, o.out, o.err ? o.err : "");
	fcvm_output_done(&o);
	return same;
}

/* Until the script succeeds, at most `ms`. */
static bool soon(const char *script, int ms)
{
	int64_t deadline = fcvm_now_ns() + ms * 1000000ll;

	while (status_of(script) != 0) {
		if (fcvm_now_ns() > deadline)
			return false;
		usleep(20000);
	}
	return true;
}

/* ---- programs ---- */

static void test_spawn(void)
{
	static const char *const pwd[] = {"pwd", NULL}, *const env[] = {"/usr/bin/env", NULL},
				 *const echo[] = {"sh", "-c", "echo $A $B; test -n \"$PATH\"",
					 NULL},
				 *const both[] = {"sh", "-c", "echo a; echo b >&2", NULL},
				 *const none[] = {"/nonexistent/program", NULL},
				 *const empty[] = {NULL},
				 *const yes[] = {"sh", "-c", "yes | head -c 10000", NULL};
	struct fcvm_output o;
	struct fcvm_process *p = NULL;

	if (ok(exec(node, "cat; echo err >&2; exit 3", "hello", 10000, &o))) {
		CHECK(o.exit.code == 3 && o.exit.signal == 0);
		CHECK(strcmp(o.out, "hello") == 0 && o.out_size == 5 &&
			strcmp(o.err, "err\n") == 0);
		fcvm_output_done(&o);
	}
	if (ok(exec(node, "kill -9 $$", NULL, 10000, &o))) {
		CHECK(o.exit.signal == SIGKILL && o.exit.code == 0);
		fcvm_output_done(&o);
	}
	CHECK(says(&(struct fcvm_spawn){.argv = pwd, .cwd = "/usr"}, "/usr\n"));
	CHECK(says(
		&(struct fcvm_spawn){.argv = echo, .env = (const char *[]){"A=1", "B=two", NULL}},
		"1 two\n"));
	CHECK(says(
		&(struct fcvm_spawn){
			.argv = env, .clear_env = true, .env = (const char *[]){"ONLY=1", NULL}},
		"ONLY=1\n"));
	CHECK(says(&(struct fcvm_spawn){.argv = both, .merge_stderr = true}, "a\nb\n"));
	CHECK(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = none}, NULL, &p, &err) == -ENOENT);
	CHECK(err.code == ENOENT && strstr(err.message, "/nonexistent/program"));
	CHECK(strstr(err.message, "exec") && !strstr(strstr(err.message, "exec") + 4, "exec"));
	CHECK(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = empty}, NULL, &p, &err) ==
		-EINVAL);
	CHECK(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = pwd, .cwd = "/nonexistent"}, NULL,
		      &p, &err) == -ENOENT);
	CHECK(fcvm_node_spawn(
		      node, &(struct fcvm_spawn){.argv = pwd, .channels = 9}, NULL, &p, &err) < 0);
	if (ok(fcvm_node_exec(
		    node, &(struct fcvm_spawn){.argv = yes}, NULL, 0, 1000, NULL, &o, &err))) {
		CHECK(o.truncated && o.out_size == 1000 && o.out[1000] == 0 && o.exit.code == 0);
		fcvm_output_done(&o);
	}
}

/* Ten megabytes through cat while its output is collected; then one that leaves its input alone. */
static void test_input(void)
{
	enum { SIZE = 10 * 1024 * 1024 };
	static const char *const cat[] = {"cat", NULL}, *const no[] = {"sh", "-c",
								"exec <&-; echo x", NULL};
	struct fcvm_until until = fcvm_until_ms(60000, -1);
	char *data = malloc(SIZE);
	struct fcvm_output o;

	for (size_t i = 0; i < SIZE; i++)
		data[i] = i * 2654435761u >> 13;
	if (ok(fcvm_node_exec(node, &(struct fcvm_spawn){.argv = cat}, data, SIZE, SIZE + 1, &until,
		    &o, &err))) {
		CHECK(o.exit.code == 0 && o.out_size == SIZE && memcmp(o.out, data, SIZE) == 0 &&
			!o.truncated);
		fcvm_output_done(&o);
	}
	if (ok(fcvm_node_exec(
		    node, &(struct fcvm_spawn){.argv = no}, data, SIZE, 100, &until, &o, &err))) {
		CHECK(o.exit.code == 0 && strcmp(o.out, "x\n") == 0);
		fcvm_output_done(&o);
	}
	free(data);
	/* A grandchild that keeps the output open does not keep us. */
	if (ok(exec(node, "sleep 20 & echo done", NULL, 5000, &o))) {
		CHECK(strcmp(o.out, "done\n") == 0);
		fcvm_output_done(&o);
	}
}

static void test_user(void)
{
	static const char *const ids[] = {"sh", "-c", "id -u; id -g; id -G", NULL};
	struct fcvm_process *p = NULL;

	if (status_of("test $(id -u) = 0") != 0) {
		printf("%s: users: not checked, needs root\n", fcvm_node_name(node));
		return;
	}
	CHECK(says(&(struct fcvm_spawn){.argv = ids, .user = "4242:4343"}, "4242\n4343\n4343\n"));
	CHECK(says(&(struct fcvm_spawn){.argv = ids, .user = "daemon"}, "1\n1\n1\n"));
	CHECK(says(&(struct fcvm_spawn){.argv = ids, .user = "0"}, "0\n0\n0\n"));
	CHECK(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = ids, .user = "no-such-user"}, NULL,
		      &p, &err) == -ENOENT);
	for (const char *const *bad = (const char *const[]){"1:x", "1:", "daemon:1", "4294967296:1", NULL}; *bad;
		bad++)
		CHECK(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = ids, .user = *bad}, NULL, &p,
			      &err) == -EINVAL);
}

/* Reads fd until the text shows up. */
static bool reads(struct fcvm_process *p, int fd, const char *want)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	char all[4096];
	size_t n = 0;

	while (n < sizeof all - 1) {
		struct pollfd f = {.fd = fd, .events = POLLIN};
		ssize_t k;

		if (fcvm_until_poll(&until, &f, 1) < 0)
			break;
		k = read(fd, all + n, sizeof all - 1 - n);
		if (k <= 0 && errno != EAGAIN)
			break;
		n += k > 0 ? k : 0;
		all[n] = 0;
		if (strstr(all, want))
			return true;
	}
	all[n] = 0;
	fprintf(stderr, "%s: got \"%s\", want \"%s\"\n", fcvm_node_name(node), all, want);
	return false;
}

static void test_tty(void)
{
	static const char *const argv[] = {"sh", "-c",
		"test -t 0 && test -t 1 && test -t 2 && stty size; "
		"while read x; do echo got:$x; stty size; done; exit 7",
		NULL};
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	struct fcvm_process *p = NULL;
	struct fcvm_exit e;

	if (!ok(fcvm_node_spawn(node,
		    &(struct fcvm_spawn){.argv = argv, .tty = true, .rows = 33, .columns = 101},
		    &until, &p, &err))) {
		CHECK(!"tty");
		return;
	}
	CHECK(fcvm_process_fd(p, 2) == -1);
	CHECK(reads(p, fcvm_process_fd(p, 1), "33 101"));
	CHECK(fcvm_process_resize(p, 44, 120, &err) == 0);
	CHECK(write(fcvm_process_fd(p, 0), "one\n", 4) == 4);
	CHECK(reads(p, fcvm_process_fd(p, 1), "got:one\r\n44 120"));
	CHECK(fcvm_process_resize(p, 55, 99, &err) == 0);
	CHECK(write(fcvm_process_fd(p, 0), "two\n", 4) == 4);
	CHECK(reads(p, fcvm_process_fd(p, 1), "55 99"));
	CHECK(write(fcvm_process_fd(p, 0), "unfinished", 10) == 10);
	fcvm_process_close_fd(p, 0);
	CHECK(fcvm_process_wait(p, &until, &e, &err) == 0 && e.code == 7);
	fcvm_process_free(p);
}

static void test_signal(void)
{
	static const char *const argv[] = {"sleep", "100", NULL};
	struct fcvm_until until = fcvm_until_ms(10000, -1), now = fcvm_until_ms(0, -1);
	struct fcvm_process *p = NULL;
	struct fcvm_exit e;

	if (!ok(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = argv, .null_stdin = true},
		    &until, &p, &err)))
		return;
	CHECK(fcvm_process_pid(p) > 0 && fcvm_process_fd(p, 0) == -1);
	CHECK(fcvm_process_wait(p, &now, &e, &err) == -ETIMEDOUT);
	CHECK(fcvm_process_signal(p, 999, &err) == -EINVAL);
	CHECK(fcvm_process_resize(p, 1, 1, &err) == -ENOTTY);
	CHECK(fcvm_process_signal(p, SIGTERM, &err) == 0);
	CHECK(fcvm_process_wait(p, &until, &e, &err) == 0 && e.signal == SIGTERM);
	CHECK(fcvm_process_wait(p, &until, &e, &err) == 0 && e.signal == SIGTERM);
	CHECK(fcvm_process_signal(p, SIGTERM, &err) == 0);
	fcvm_process_free(p);
}

static void test_timeout(void)
{
	struct fcvm_until until = fcvm_until_ms(-1, -1);
	static const char *const argv[] = {"sleep", "100", NULL};
	struct fcvm_output o;
	char script[300];
	int64_t start = fcvm_now_ns();

	snprintf(script, sizeof script, "echo $$ > %s/pid; exec sleep 100", folder);
	CHECK(exec(node, script, NULL, 300, &o) == -ETIMEDOUT && err.code == ETIMEDOUT);
	CHECK(fcvm_now_ns() - start < 5000000000ll);
	snprintf(script, sizeof script, "p=$(cat %s/pid) && ! kill -0 $p", folder);
	CHECK(soon(script, 3000));
	start = fcvm_now_ns();
	CHECK(exec(node, "exec yes", NULL, 300, &o) == -ETIMEDOUT); /* it has always something to say */
	CHECK(fcvm_now_ns() - start < 5000000000ll);
	until.cancel_fd = fcvm_fd_event();
	eventfd_write(until.cancel_fd, 1);
	CHECK(fcvm_node_exec(node, &(struct fcvm_spawn){.argv = argv}, NULL, 0, 10, &until, &o,
		      &err) == -ECANCELED);
	close(until.cancel_fd);
}

static void test_channels(void)
{
	static const char *const argv[] = {"sh", "-c",
		"read x <&3; echo three:$x >&3; read y <&4; echo four:$y >&4; cat <&4 >&4", NULL};
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	struct fcvm_process *p = NULL;
	struct fcvm_exit e;
	int fd;

	if (!ok(fcvm_node_spawn(node,
		    &(struct fcvm_spawn){.argv = argv, .null_stdin = true, .channels = 2}, &until,
		    &p, &err)))
		return;
	CHECK(send(fcvm_process_fd(p, 3), "a\n", 2, MSG_NOSIGNAL) == 2);
	CHECK(reads(p, fcvm_process_fd(p, 3), "three:a"));
	CHECK(send(fcvm_process_fd(p, 4), "b\n", 2, MSG_NOSIGNAL) == 2);
	CHECK(reads(p, fcvm_process_fd(p, 4), "four:b"));
	fd = fcvm_process_take_fd(p, 4);
	CHECK(fd >= 0 && fcvm_process_fd(p, 4) == -1);
	CHECK(send(fd, "rest", 4, MSG_NOSIGNAL) == 4 && shutdown(fd, SHUT_WR) == 0);
	CHECK(reads(p, fd, "rest"));
	CHECK(fcvm_process_wait(p, &until, &e, &err) == 0 && e.code == 0);
	close(fd);
	fcvm_process_free(p);
}

/* A handle that is freed kills its program, unless that is detached. */
static void test_free(void)
{
	struct fcvm_process *p = NULL;
	char script[300], look[300];
	const char *argv[] = {"sh", "-c", script, NULL};

	snprintf(script, sizeof script, "echo $$ > %s/pid1; sleep 100 & wait", folder);
	if (ok(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = argv}, NULL, &p, &err))) {
		snprintf(look, sizeof look, "test -s %s/pid1", folder);
		CHECK(soon(look, 5000));
		fcvm_process_free(p);
		snprintf(look, sizeof look, "! kill -0 $(cat %s/pid1)", folder);
		CHECK(soon(look, 5000));
	}
	snprintf(script, sizeof script, "sleep 0.2; echo there > %s/detached", folder);
	if (ok(fcvm_node_spawn(
		    node, &(struct fcvm_spawn){.argv = argv, .detach = true}, NULL, &p, &err))) {
		fcvm_process_free(p);
		snprintf(look, sizeof look, "test -s %s/detached", folder);
		CHECK(soon(look, 5000));
	}
}

/* ---- flow ---- */

static long rss_kb(void)
{
	char *text;
	long kb = -1;

	if (fcvm_file_read(AT_FDCWD, "/proc/self/status", 65536, &text, NULL) == 0) {
		char *line = strstr(text, "VmRSS:");

		kb = line ? strtol(line + 6, NULL, 10) : -1;
		free(text);
	}
	return kb;
}

static size_t gigabyte = 1 << 30; /* an emulated guest has less patience */

static void test_gigabyte(void)
{
	enum { CHUNK = 256 * 1024 };
	char count[24];
	const char *const argv[] = {"head", "-c", count, "/dev/zero", NULL};
	struct fcvm_until until = fcvm_until_ms(120000, -1);
	struct fcvm_process *p = NULL;
	struct fcvm_exit e;
	char *chunk = malloc(CHUNK);
	long before = rss_kb(), most = before;
	size_t total = 0;
	int64_t start;

	snprintf(count, sizeof count, "%zu", gigabyte);
	if (!ok(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = argv, .null_stdin = true},
		    &until, &p, &err)))
		return;
	/* Nobody reads: a neighbour goes on all the same. */
	usleep(100000);
	start = fcvm_now_ns();
	for (int i = 0; i < 10; i++)
		CHECK(status_of("exit 5") == 5);
	CHECK(fcvm_now_ns() - start < 5000000000ll);
	start = fcvm_now_ns();
	for (;;) {
		struct pollfd f = {.fd = fcvm_process_fd(p, 1), .events = POLLIN};
		ssize_t n = read(f.fd, chunk, CHUNK);

		if (n == 0 || (n < 0 && errno != EAGAIN) ||
			(n < 0 && fcvm_until_poll(&until, &f, 1) < 0))
			break;
		total += n > 0 ? n : 0;
		if (n > 0 && total % (64 << 20) < (size_t)n && rss_kb() > most)
			most = rss_kb();
		if (n > 0 && total / (gigabyte / 4) != (total - n) / (gigabyte / 4))
			CHECK(status_of("exit 6") == 6);
	}
	CHECK(total == gigabyte);
	CHECK(fcvm_process_wait(p, &until, &e, &err) == 0 && e.code == 0);
	printf("%s: much output at %.0f MB/s, %ld KiB more of memory\n", fcvm_node_name(node),
		total / 1e6 / ((fcvm_now_ns() - start) / 1e9), most - before);
#ifndef SANITIZED
	CHECK(most - before < 8 * 1024);
#endif
	fcvm_process_free(p);
	free(chunk);
	/* Whose output is closed sees that, and the link survives it. */
	if (ok(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = argv, .null_stdin = true}, &until,
		    &p, &err))) {
		fcvm_process_close_fd(p, 1);
		CHECK(fcvm_process_wait(p, &until, &e, &err) == 0 && e.signal == SIGPIPE);
		fcvm_process_free(p);
	}
	CHECK(status_of("exit 5") == 5);
}

static void test_many(void)
{
	enum { N = 200 };
	static struct fcvm_process *p[N];
	struct fcvm_until until = fcvm_until_ms(60000, -1);
	int64_t start = fcvm_now_ns();
	unsigned good = 0;

	for (unsigned i = 0; i < N; i++) {
		char script[64];
		const char *argv[] = {"sh", "-c", script, NULL};

		snprintf(script, sizeof script, "read x; echo $x; exit %u", i % 100);
		p[i] = NULL;
		CHECK(ok(fcvm_node_spawn(
			node, &(struct fcvm_spawn){.argv = argv}, &until, &p[i], &err)));
	}
	for (unsigned i = 0; i < N; i++) {
		char line[16];
		int n = snprintf(line, sizeof line, "%u\n", i);

		CHECK(p[i] && send(fcvm_process_fd(p[i], 0), line, n, MSG_NOSIGNAL) == n);
	}
	for (unsigned i = 0; i < N; i++) {
		struct fcvm_exit e = {.code = -1};
		char line[16] = "";

		if (!p[i])
			continue;
		if (fcvm_process_wait(p[i], &until, &e, &err) == 0 &&
			read(fcvm_process_fd(p[i], 1), line, 15) > 0)
			good += e.code == (int)i % 100 && atoi(line) == (int)i;
		fcvm_process_free(p[i]);
	}
	CHECK(good == N);
	printf("%s: %d programs at once in %.0f ms\n", fcvm_node_name(node), N,
		(fcvm_now_ns() - start) / 1e6);
}

static void *worker(void *arg)
{
	unsigned *good = arg;

	for (int i = 0; i < 20; i++) {
		struct fcvm_err own = FCVM_ERR_INIT;
		struct fcvm_until until = fcvm_until_ms(30000, -1);
		const char *argv[] = {"sh", "-c", "cat; exit 4", NULL};
		struct fcvm_output o;

		if (fcvm_node_exec(node, &(struct fcvm_spawn){.argv = argv}, "abc", 3, 10, &until,
			    &o, &own) < 0)
			continue;
		*good += o.exit.code == 4 && strcmp(o.out, "abc") == 0;
		fcvm_output_done(&o);
	}
	return NULL;
}

static void test_threads(void)
{
	enum { N = 8 };
	pthread_t t[N];
	unsigned good[N] = {0};

	for (int i = 0; i < N; i++)
		pthread_create(&t[i], NULL, worker, &good[i]);
	for (int i = 0; i < N; i++) {
		pthread_join(t[i], NULL);
		CHECK(good[i] == 20);
	}
}

#endif
