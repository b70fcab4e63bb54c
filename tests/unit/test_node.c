/* SPDX-License-Identifier: MIT */
/* LIBS: node wire base */
/*
 * What a node must do, whatever is behind it: one suite, run over the local node, over an agent (FCVM_AGENT names
 * the binary, run on this host by --fd), over a served link to it, and over the agent that is served at the Unix
 * socket FCVM_NODE_SOCKET (a real guest), if that is set.
 */
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
static struct fcvm_node *(*fresh)(int *ret_carrier); /* another node of the same place; a copy of its carrier */

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

static int exec(struct fcvm_node *n, const char *script, const char *input, int timeout_ms, struct fcvm_output *ret)
{
	struct fcvm_until until = fcvm_until_ms(timeout_ms, -1);
	const char *argv[] = {"sh", "-c", script, NULL};
	struct fcvm_spawn spec = {.argv = argv};

	return fcvm_node_exec(n, &spec, input, input ? strlen(input) : 0, 1 << 20, &until, ret, &err);
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
		fprintf(stderr, "%s: exit %d, said \"%s\" and \"%s\"\n", fcvm_node_name(node), o.exit.code, o.out,
			o.err ? o.err : "");
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
				 *const echo[] = {"sh", "-c", "echo $A $B; test -n \"$PATH\"", NULL},
				 *const both[] = {"sh", "-c", "echo a; echo b >&2", NULL},
				 *const none[] = {"/nonexistent/program", NULL}, *const empty[] = {NULL},
				 *const yes[] = {"sh", "-c", "yes | head -c 10000", NULL};
	struct fcvm_output o;
	struct fcvm_process *p = NULL;

	if (ok(exec(node, "cat; echo err >&2; exit 3", "hello", 10000, &o))) {
		CHECK(o.exit.code == 3 && o.exit.signal == 0);
		CHECK(strcmp(o.out, "hello") == 0 && o.out_size == 5 && strcmp(o.err, "err\n") == 0);
		fcvm_output_done(&o);
	}
	if (ok(exec(node, "kill -9 $$", NULL, 10000, &o))) {
		CHECK(o.exit.signal == SIGKILL && o.exit.code == 0);
		fcvm_output_done(&o);
	}
	CHECK(says(&(struct fcvm_spawn){.argv = pwd, .cwd = "/usr"}, "/usr\n"));
	CHECK(says(&(struct fcvm_spawn){.argv = echo, .env = (const char *[]){"A=1", "B=two", NULL}}, "1 two\n"));
	CHECK(says(&(struct fcvm_spawn){.argv = env, .clear_env = true,
			.env = (const char *[]){"ONLY=1", NULL}},
		"ONLY=1\n"));
	CHECK(says(&(struct fcvm_spawn){.argv = both, .merge_stderr = true}, "a\nb\n"));
	CHECK(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = none}, NULL, &p, &err) == -ENOENT);
	CHECK(err.code == ENOENT && strstr(err.message, "/nonexistent/program"));
	CHECK(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = empty}, NULL, &p, &err) == -EINVAL);
	CHECK(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = pwd, .cwd = "/nonexistent"}, NULL, &p, &err) ==
		-ENOENT);
	CHECK(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = pwd, .channels = 9}, NULL, &p, &err) < 0);
	if (ok(fcvm_node_exec(node, &(struct fcvm_spawn){.argv = yes}, NULL, 0, 1000, NULL, &o, &err))) {
		CHECK(o.truncated && o.out_size == 1000 && o.out[1000] == 0 && o.exit.code == 0);
		fcvm_output_done(&o);
	}
}

/* Ten megabytes through cat while its output is collected; then one that leaves its input alone. */
static void test_input(void)
{
	enum { SIZE = 10 * 1024 * 1024 };
	static const char *const cat[] = {"cat", NULL}, *const no[] = {"sh", "-c", "exec <&-; echo x", NULL};
	struct fcvm_until until = fcvm_until_ms(60000, -1);
	char *data = malloc(SIZE);
	struct fcvm_output o;

	for (size_t i = 0; i < SIZE; i++)
		data[i] = i * 2654435761u >> 13;
	if (ok(fcvm_node_exec(node, &(struct fcvm_spawn){.argv = cat}, data, SIZE, SIZE + 1, &until, &o, &err))) {
		CHECK(o.exit.code == 0 && o.out_size == SIZE && memcmp(o.out, data, SIZE) == 0 && !o.truncated);
		fcvm_output_done(&o);
	}
	if (ok(fcvm_node_exec(node, &(struct fcvm_spawn){.argv = no}, data, SIZE, 100, &until, &o, &err))) {
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
	CHECK(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = ids, .user = "no-such-user"}, NULL, &p, &err) ==
		-ENOENT);
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

	if (!ok(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = argv, .tty = true, .rows = 33, .columns = 101},
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

	if (!ok(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = argv, .null_stdin = true}, &until, &p, &err)))
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
	until.cancel_fd = fcvm_fd_event();
	eventfd_write(until.cancel_fd, 1);
	CHECK(fcvm_node_exec(node, &(struct fcvm_spawn){.argv = argv}, NULL, 0, 10, &until, &o, &err) == -ECANCELED);
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

	if (!ok(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = argv, .null_stdin = true, .channels = 2}, &until,
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
	if (ok(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = argv, .detach = true}, NULL, &p, &err))) {
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

static void test_gigabyte(void)
{
	enum { CHUNK = 256 * 1024 };
	static const char *const argv[] = {"head", "-c", "1G", "/dev/zero", NULL};
	struct fcvm_until until = fcvm_until_ms(120000, -1);
	struct fcvm_process *p = NULL;
	struct fcvm_exit e;
	char *chunk = malloc(CHUNK);
	long before = rss_kb(), most = before;
	size_t total = 0;
	int64_t start;

	if (!ok(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = argv, .null_stdin = true}, &until, &p, &err)))
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

		if (n == 0 || (n < 0 && errno != EAGAIN) || (n < 0 && fcvm_until_poll(&until, &f, 1) < 0))
			break;
		total += n > 0 ? n : 0;
		if (n > 0 && total % (64 << 20) < (size_t)n && rss_kb() > most)
			most = rss_kb();
		if (n > 0 && total / (256 << 20) != (total - n) / (256 << 20))
			CHECK(status_of("exit 6") == 6);
	}
	CHECK(total == 1 << 30);
	CHECK(fcvm_process_wait(p, &until, &e, &err) == 0 && e.code == 0);
	printf("%s: a gigabyte at %.0f MB/s, %ld KiB more of memory\n", fcvm_node_name(node),
		total / 1e6 / ((fcvm_now_ns() - start) / 1e9), most - before);
#ifndef SANITIZED
	CHECK(most - before < 8 * 1024);
#endif
	fcvm_process_free(p);
	free(chunk);
	/* Whose output is closed sees that, and the link survives it. */
	if (ok(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = argv, .null_stdin = true}, &until, &p, &err))) {
		fcvm_process_close_fd(p, 1);
		CHECK(fcvm_process_wait(p, &until, &e, &err) == 0);
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
		CHECK(ok(fcvm_node_spawn(node, &(struct fcvm_spawn){.argv = argv}, &until, &p[i], &err)));
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
		if (fcvm_process_wait(p[i], &until, &e, &err) == 0 && read(fcvm_process_fd(p[i], 1), line, 15) > 0)
			good += e.code == (int)i % 100 && atoi(line) == (int)i;
		fcvm_process_free(p[i]);
	}
	CHECK(good == N);
	printf("%s: %d programs at once in %.0f ms\n", fcvm_node_name(node), N, (fcvm_now_ns() - start) / 1e6);
}

static void *worker(void *arg)
{
	unsigned *good = arg;

	for (int i = 0; i < 20; i++) {
		struct fcvm_err own = FCVM_ERR_INIT;
		struct fcvm_until until = fcvm_until_ms(30000, -1);
		const char *argv[] = {"sh", "-c", "cat; exit 4", NULL};
		struct fcvm_output o;

		if (fcvm_node_exec(node, &(struct fcvm_spawn){.argv = argv}, "abc", 3, 10, &until, &o, &own) < 0)
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

/* ---- files ---- */

static void test_files(void)
{
	static const char data[] = "some\0bytes\n";
	struct fcvm_node_stat st;
	char *back = NULL, *big = calloc(1, 3000000), script[300];
	size_t size = 0;

	CHECK(ok(fcvm_node_write_file(node, at("f"), data, sizeof data, 0640, NULL, &err)));
	CHECK(ok(fcvm_node_stat(node, at("f"), NULL, &st, &err)));
	CHECK(st.size == sizeof data && S_ISREG(st.mode) && (st.mode & 07777) == 0640);
	CHECK(llabs((long long)(st.mtime_ns - fcvm_realtime_ns())) < 3600000000000ll);
	CHECK(ok(fcvm_node_read_file(node, at("f"), 100, NULL, &back, &size, &err)));
	CHECK(size == sizeof data && back && memcmp(back, data, size) == 0 && back[size] == 0);
	free(back);
	CHECK(fcvm_node_read_file(node, at("f"), 5, NULL, &back, &size, &err) == -EFBIG);
	CHECK(fcvm_node_read_file(node, at("none"), 5, NULL, &back, &size, &err) < 0);
	CHECK(strstr(err.message, "none") != NULL);
	CHECK(fcvm_node_read_file(node, folder, 5, NULL, &back, &size, &err) < 0);
	CHECK(ok(fcvm_node_write_file(node, at("empty"), NULL, 0, 0600, NULL, &err)));
	CHECK(ok(fcvm_node_read_file(node, at("empty"), 0, NULL, &back, &size, &err)) && size == 0 && back && !*back);
	free(back);
	memcpy(big + 2999990, "end", 3);
	CHECK(ok(fcvm_node_write_file(node, at("big"), big, 3000000, 0600, NULL, &err)));
	CHECK(ok(fcvm_node_read_file(node, at("big"), 3000000, NULL, &back, &size, &err)));
	CHECK(size == 3000000 && back && memcmp(back, big, size) == 0);
	free(back);
	free(big);
	CHECK(fcvm_node_write_file(node, "/nonexistent/x", "a", 1, 0600, NULL, &err) < 0);
	CHECK(strstr(err.message, "/nonexistent/x") != NULL);
	/* Symlinks are followed when read. */
	snprintf(script, sizeof script, "cd %s && mkdir -p s && ln -s s/l1 l2 && ln -s ../f s/l1", folder);
	CHECK(status_of(script) == 0);
	CHECK(ok(fcvm_node_read_file(node, at("l2"), 100, NULL, &back, &size, &err)) && size == sizeof data);
	free(back);
}

static void test_names(void)
{
	struct fcvm_node_stat st;

	CHECK(fcvm_node_mkdir(node, at("a/b/c"), 0755, false, false, NULL, &err) == -ENOENT);
	CHECK(ok(fcvm_node_mkdir(node, at("a/b/c"), 0755, true, false, NULL, &err)));
	CHECK(ok(fcvm_node_mkdir(node, at("a/b/c"), 0755, true, false, NULL, &err)));
	CHECK(fcvm_node_mkdir(node, at("a"), 0755, false, false, NULL, &err) == -EEXIST);
	CHECK(ok(fcvm_node_mkdir(node, at("open"), 0777, false, false, NULL, &err)));
	CHECK(ok(fcvm_node_stat(node, at("open"), NULL, &st, &err)) && S_ISDIR(st.mode) && (st.mode & 0777) == 0777);
	CHECK(ok(fcvm_node_rename(node, at("a"), at("z"), NULL, &err)));
	CHECK(fcvm_node_stat(node, at("a"), NULL, &st, &err) == -ENOENT && strstr(err.message, "/a"));
	CHECK(ok(fcvm_node_stat(node, at("z/b/c"), NULL, &st, &err)));
	CHECK(ok(fcvm_node_remove(node, at("z"), NULL, &err)));
	CHECK(ok(fcvm_node_remove(node, at("z"), NULL, &err)));
	CHECK(fcvm_node_stat(node, at("z"), NULL, &st, &err) == -ENOENT);
	CHECK(fcvm_node_rename(node, at("none"), at("z"), NULL, &err) == -ENOENT);
	CHECK(ok(fcvm_node_write_file(node, at("src"), "x", 1, 0600, NULL, &err)));
	switch (fcvm_node_reflink(node, at("src"), at("clone"), NULL, &err)) {
	case 0:
		CHECK(ok(fcvm_node_stat(node, at("clone"), NULL, &st, &err)) && st.size == 1);
		break;
	case -EOPNOTSUPP:
		CHECK(fcvm_node_stat(node, at("clone"), NULL, &st, &err) == -ENOENT);
		break;
	default:
		CHECK(!"reflink");
	}
}

static void set_mtime(const char *path, time_t t)
{
	struct timespec times[2] = {{.tv_sec = t}, {.tv_sec = t, .tv_nsec = 123456789}};

	utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW);
}

static void make_tree(const char *top)
{
	int fd;

	mkdir(top, 0755);
	mkdir(in(top, "sub"), 0750);
	CHECK(fcvm_file_replace(AT_FDCWD, in(top, "sub/file"), "content", 7, 0600, false) == 0);
	chmod(in(top, "sub/file"), 0751);
	set_mtime(in(top, "sub/file"), 1000000000);
	CHECK(symlink("sub/file", in(top, "link")) == 0 && symlink("/nowhere", in(top, "dangling")) == 0);
	fd = open(in(top, "sparse"), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	CHECK(ftruncate(fd, 5ll << 30) == 0 && pwrite(fd, "abc", 3, (4ll << 30) + 12345) == 3);
	close(fd);
	set_mtime(top, 1200000000);
}

static void check_tree(const char *top)
{
	char text[100] = "";
	struct stat st;
	int fd;

	CHECK(lstat(in(top, "sub/file"), &st) == 0 && (st.st_mode & 07777) == 0751 && st.st_size == 7);
	CHECK(st.st_mtim.tv_sec == 1000000000 && st.st_mtim.tv_nsec == 123456789);
	CHECK(lstat(in(top, "sub"), &st) == 0 && (st.st_mode & 07777) == 0750);
	CHECK(readlink(in(top, "link"), text, 99) == 8 && strcmp(text, "sub/file") == 0);
	CHECK(readlink(in(top, "dangling"), text, 99) == 8);
	CHECK(stat(in(top, "sparse"), &st) == 0 && st.st_size == 5ll << 30 && st.st_blocks < 1024);
	fd = open(in(top, "sparse"), O_RDONLY | O_CLOEXEC);
	CHECK(pread(fd, text, 5, (4ll << 30) + 12344) == 5 && memcmp(text, "\0abc", 5) == 0);
	close(fd);
}

static void test_tree(void)
{
	struct fcvm_until until = fcvm_until_ms(60000, -1);
	char tree[200], back[200];
	struct stat top;
	struct fcvm_node_stat st;

	snprintf(tree, sizeof tree, "%s/tree", host_folder);
	snprintf(back, sizeof back, "%s/back", host_folder);
	make_tree(tree);
	CHECK(ok(fcvm_node_copy(host, tree, node, at("new"), &until, &err))); /* gets the name */
	CHECK(ok(fcvm_node_stat(node, at("new/sub/file"), &until, &st, &err)));
	CHECK((st.mode & 07777) == 0751 && st.mtime_ns == 1000000000123456789ll);
	CHECK(ok(fcvm_node_stat(node, at("new/sparse"), &until, &st, &err)) && st.size == 5ull << 30);
	CHECK(ok(fcvm_node_mkdir(node, at("into"), 0755, false, false, NULL, &err)));
	CHECK(ok(fcvm_node_copy(node, at("new"), node, at("into"), &until, &err))); /* goes into it */
	CHECK(ok(fcvm_node_copy(node, at("into/new"), host, back, &until, &err)));
	check_tree(back);
	CHECK(lstat(back, &top) == 0 && top.st_mtim.tv_sec == 1200000000);
	CHECK(ok(fcvm_node_copy(node, at("into/new/."), host, back, &until, &err))); /* its content, once more */
	check_tree(back);
	CHECK(ok(fcvm_node_copy(host, in(tree, "sub/file"), node, at("into/"), &until, &err)));
	CHECK(ok(fcvm_node_stat(node, at("into/file"), &until, &st, &err)) && st.size == 7);
	CHECK(fcvm_node_copy(host, in(tree, "none"), node, at("x"), &until, &err) < 0 && strstr(err.message, "none"));
	CHECK(fcvm_node_copy(node, at("none"), host, in(host_folder, "x"), &until, &err) < 0);
	CHECK(fcvm_node_copy(host, tree, node, "/proc/none/x", &until, &err) < 0);
	CHECK(strstr(err.message, "/proc/none/x") != NULL);
	CHECK(fcvm_tree_remove(AT_FDCWD, tree) == 0 && fcvm_tree_remove(AT_FDCWD, back) == 0);
	CHECK(ok(fcvm_node_remove(node, at("new"), &until, &err)));
}

static void test_copy_speed(void)
{
	struct fcvm_until until = fcvm_until_ms(60000, -1);
	enum { SIZE = 128 * 1024 * 1024 };
	char *data = malloc(SIZE);
	int64_t start;

	memset(data, 'x', SIZE);
	CHECK(fcvm_file_replace(AT_FDCWD, in(host_folder, "speed"), data, SIZE, 0600, false) == 0);
	free(data);
	start = fcvm_now_ns();
	CHECK(ok(fcvm_node_copy(host, in(host_folder, "speed"), node, at("speed"), &until, &err)));
	printf("%s: files to it at %.0f MB/s", fcvm_node_name(node), SIZE / 1e6 / ((fcvm_now_ns() - start) / 1e9));
	start = fcvm_now_ns();
	CHECK(ok(fcvm_node_copy(node, at("speed"), host, in(host_folder, "speed"), &until, &err)));
	printf(", from it at %.0f MB/s\n", SIZE / 1e6 / ((fcvm_now_ns() - start) / 1e9));
	CHECK(ok(fcvm_node_remove(node, at("speed"), &until, &err)));
}

/* ---- sockets ---- */

/* Sends `size` bytes into one end while the other is read; then EOF. */
static bool pour(int from, int to, size_t size)
{
	struct fcvm_until until = fcvm_until_ms(30000, -1);
	static char chunk[65536], in_chunk[65536];
	size_t sent = 0, got = 0;
	bool good = true, end = false;

	if (size == 0)
		shutdown(from, SHUT_WR);
	while (!end) {
		struct pollfd f[2] = {{.fd = sent < size ? from : -1, .events = POLLOUT}, {.fd = to, .events = POLLIN}};
		ssize_t n;

		if (fcvm_until_poll(&until, f, 2) < 0)
			return false;
		if (f[0].revents) {
			size_t step = size - sent < sizeof chunk ? size - sent : sizeof chunk;

			for (size_t i = 0; i < step; i++)
				chunk[i] = (sent + i) % 251;
			n = send(from, chunk, step, MSG_NOSIGNAL | MSG_DONTWAIT);
			sent += n > 0 ? n : 0;
			if (sent == size)
				shutdown(from, SHUT_WR);
		}
		n = f[1].revents ? recv(to, in_chunk, sizeof in_chunk, MSG_DONTWAIT) : -1;
		for (ssize_t i = 0; i < n; i++)
			good &= in_chunk[i] == (char)((got + i) % 251);
		got += n > 0 ? n : 0;
		end = f[1].revents && n == 0;
	}
	return good && got == size;
}

static void test_socket(const char *address)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1), now = fcvm_until_ms(0, -1);
	struct fcvm_listener *l;
	int a = -1, b = -1;

	CHECK(fcvm_node_connect(node, address, &until, &a, &err) < 0 && strstr(err.message, address));
	if (!ok(fcvm_node_listen(node, address, &until, &l, &err))) {
		CHECK(!"listen");
		return;
	}
	CHECK(fcvm_listener_accept(l, &now, &b, &err) == -ETIMEDOUT);
	for (int i = 0; i < 3; i++) {
		CHECK(ok(fcvm_node_connect(node, address, &until, &a, &err)));
		CHECK(ok(fcvm_listener_accept(l, &until, &b, &err)));
		CHECK(pour(a, b, 3000000));
		CHECK(pour(b, a, i == 0 ? 0 : 3000000));
		close(a);
		close(b);
	}
	fcvm_listener_free(l);
	CHECK(fcvm_node_connect(node, address, &until, &a, &err) < 0);
}

static void test_sockets(void)
{
	char address[200];
	struct fcvm_node_stat st;
	int fd;

	snprintf(address, sizeof address, "unix:%s/sock", folder);
	test_socket(address);
	CHECK(fcvm_node_stat(node, at("sock"), NULL, &st, &err) == -ENOENT);
	snprintf(address, sizeof address, "tcp:127.0.0.1:%d", 20000 + getpid() % 10000);
	test_socket(address);
	CHECK(fcvm_node_connect(node, "nonsense", NULL, &fd, &err) == -EINVAL);
}

/* ---- the node itself ---- */

static void test_info(void)
{
	struct fcvm_node_info info;

	CHECK(ok(fcvm_node_info(node, NULL, &info, &err)));
	CHECK(info.memory_total > info.memory_available && info.memory_available > 0 && info.processors > 0);
	CHECK(info.uptime_ns > 0 && info.realtime_ns > 0 && info.version[0] && info.hostname[0]);
	CHECK(fcvm_node_ping(node, NULL, &err) == (fcvm_node_is_local(node) ? -EOPNOTSUPP : 0));
}

/* What a node spawned and leased goes with it. */
static void test_lease(void)
{
	char script[300];
	const char *argv[] = {"sh", "-c", script, NULL};
	struct fcvm_process *p = NULL;
	struct fcvm_node *n = fresh(NULL);
	struct fcvm_node_stat st;

	if (!n)
		return;
	CHECK(ok(fcvm_node_mkdir(n, at("lease"), 0700, false, true, NULL, &err)));
	CHECK(ok(fcvm_node_write_file(n, at("lease/x"), "x", 1, 0600, NULL, &err)));
	snprintf(script, sizeof script, "echo $$ > %s/pid2; exec sleep 100", folder);
	CHECK(ok(fcvm_node_spawn(n, &(struct fcvm_spawn){.argv = argv}, NULL, &p, &err)));
	snprintf(script, sizeof script, "test -s %s/pid2", folder);
	CHECK(soon(script, 5000));
	fcvm_process_free(p);
	fcvm_node_unref(n);
	snprintf(script, sizeof script, "! test -e %s/lease && ! kill -0 $(cat %s/pid2)", folder, folder);
	CHECK(soon(script, 5000));
	CHECK(fcvm_node_stat(node, at("lease"), NULL, &st, &err) == -ENOENT);
}

static void *kill_link(void *arg)
{
	usleep(200000);
	shutdown(*(int *)arg, SHUT_RDWR);
	return NULL;
}

static void test_death(void)
{
	static const char *const argv[] = {"sleep", "100", NULL};
	int carrier = -1, fd = -1;
	struct fcvm_node *n = fresh(&carrier);
	struct fcvm_listener *l = NULL;
	struct fcvm_output o;
	pthread_t t;
	char address[200], byte;
	int64_t start = fcvm_now_ns();

	if (!n || carrier < 0) {
		fcvm_node_unref(n);
		return;
	}
	snprintf(address, sizeof address, "unix:%s/sock2", folder);
	CHECK(ok(fcvm_node_listen(n, address, NULL, &l, &err)) && ok(fcvm_node_connect(n, address, NULL, &fd, &err)));
	pthread_create(&t, NULL, kill_link, &carrier);
	CHECK(fcvm_node_exec(n, &(struct fcvm_spawn){.argv = argv}, NULL, 0, 100, NULL, &o, &err) == -ECONNRESET);
	CHECK(fcvm_now_ns() - start < 1200000000ll);
	pthread_join(t, NULL);
	CHECK(fcvm_node_ping(n, NULL, &err) == -ECONNRESET && err.message[0]);
	CHECK(recv(fd, &byte, 1, 0) == 0);
	close(fd);
	close(carrier);
	fcvm_listener_free(l);
	fcvm_node_unref(n);
}

static void suite(const char *name)
{
	int64_t start = fcvm_now_ns();

	snprintf(folder, sizeof folder, "/tmp/fcvm-suite-%d-%s", (int)getpid(), name);
	fcvm_node_remove(node, folder, NULL, NULL);
	CHECK(ok(fcvm_node_mkdir(node, folder, 0777, false, true, NULL, &err)));
	test_info();
	test_spawn();
	test_input();
	test_user();
	test_tty();
	test_signal();
	test_timeout();
	test_channels();
	test_free();
	test_many();
	test_threads();
	test_files();
	test_names();
	test_tree();
	test_copy_speed();
	test_sockets();
	test_gigabyte();
	test_lease();
	test_death();
	printf("%s: suite %s took %.1f s\n", fcvm_node_name(node), name, (fcvm_now_ns() - start) / 1e9);
}

/* ---- the places ---- */

static struct fcvm_node *fresh_local(int *ret_carrier)
{
	struct fcvm_node *n = NULL;

	CHECK(ok(fcvm_node_local(&n, &err)));
	return n;
}

static struct fcvm_node *link_over(int fd, const char *name, int *ret_carrier)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	struct fcvm_node *n = NULL;

	if (ret_carrier)
		*ret_carrier = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	CHECK(ok(fcvm_node_agent(&n, host, fd, name, 0, &until, &err)));
	return n;
}

static struct fcvm_node *fresh_agent(int *ret_carrier)
{
	int p[2];
	pid_t pid;

	CHECK(fcvm_fd_pair(p) == 0);
	pid = fork();
	if (pid == 0) {
		char number[12];

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fcntl(p[1], F_SETFD, 0);
		snprintf(number, sizeof number, "%d", p[1]);
		execl(getenv("FCVM_AGENT"), "fcvm-agent", "--fd", number, NULL);
		_exit(127);
	}
	close(p[1]);
	return link_over(p[0], "agent", ret_carrier);
}

static char socket_address[200];

static struct fcvm_node *fresh_socket(int *ret_carrier)
{
	int fd = -1;

	CHECK(ok(fcvm_node_connect(host, socket_address, NULL, &fd, &err)));
	return fd < 0 ? NULL : link_over(fd, "served", ret_carrier);
}

static void suite_over(struct fcvm_node *(*make)(int *), const char *name)
{
	fresh = make;
	node = make(NULL);
	if (!node)
		return;
	suite(name);
	fcvm_node_unref(node);
	node = host;
}

/* A relay in front of an agent of this host. */
static void suite_relayed(void)
{
	struct fcvm_node *agent = fresh_agent(NULL);
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(un.sun_path, sizeof un.sun_path, "%s/agent", host_folder);
	snprintf(socket_address, sizeof socket_address, "unix:%s/agent", host_folder);
	CHECK(bind(fd, (struct sockaddr *)&un, sizeof un) == 0 && listen(fd, 64) == 0);
	CHECK(ok(fcvm_node_serve(agent, fd, &err)));
	suite_over(fresh_socket, "relay");
	CHECK(fcvm_node_ping(agent, NULL, &err) == 0);
	fcvm_node_unref(agent);
}

int main(void)
{
	const char *guest = getenv("FCVM_NODE_SOCKET"), *agent = getenv("FCVM_AGENT");

	if (!agent && !guest) {
		printf("skipped: FCVM_AGENT names no agent\n");
		return 77;
	}
	signal(SIGPIPE, SIG_IGN); /* of write(2) to a terminal's stand-in */
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!mkdtemp(host_folder) || fcvm_node_local(&host, &err) < 0)
		return 1;
	node = host;
	if (guest) {
		snprintf(socket_address, sizeof socket_address, "unix:%s", guest);
		suite_over(fresh_socket, "guest");
	} else {
		suite_over(fresh_local, "local");
		suite_over(fresh_agent, "agent");
		suite_relayed();
	}
	fcvm_node_unref(host);
	fcvm_tree_remove(AT_FDCWD, host_folder);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	CHECK_DONE();
}
