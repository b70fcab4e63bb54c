/* SPDX-License-Identifier: MIT */
/* LIBS: node wire base */
/* Logs of bounded size (fcvm_node_drain). */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "check.h"
#include "node/node.h"

static struct fcvm_node *host;
static struct fcvm_err err;
static int dir;

static off_t size_of(const char *name)
{
	struct stat st;

	return fstatat(dir, name, &st, 0) == 0 ? st.st_size : -1;
}

static struct fcvm_drain *start(const char *name, size_t limit, int *ret_writer)
{
	struct fcvm_drain *d = NULL;
	int p[2];

	CHECK(fcvm_fd_pipe(p) == 0);
	CHECK(fcvm_node_drain(host, p[0], dir, name, limit, &d, &err) == 0);
	*ret_writer = p[1];
	return d;
}

/* A few lines are in the file and in the tail when the handle is freed, though the writer lives on.
 */
static void test_short(void)
{
	char tail[100], *text = NULL;
	size_t size = 0;
	int fd;
	struct fcvm_drain *d = start("short", 10000, &fd);

	CHECK(write(fd, "one\ntwo\n", 8) == 8);
	for (int i = 0; i < 500 && fcvm_drain_tail(d, tail, sizeof tail) < 8; i++)
		usleep(2000);
	CHECK(strcmp(tail, "one\ntwo\n") == 0);
	CHECK(fcvm_drain_tail(d, tail, 5) == 4 && strcmp(tail, "two\n") == 0);
	CHECK(write(fd, "three\n", 6) == 6);
	fcvm_drain_free(d);
	CHECK(fcvm_file_read(dir, "short", 100, &text, &size) == 0 &&
		strcmp(text, "one\ntwo\nthree\n") == 0);
	free(text);
	close(fd);
}

static void test_rotation(void)
{
	char tail[5000], line[64];
	int fd, n;
	struct fcvm_drain *d = start("long", 64 * 1024, &fd);

	for (int i = 0; i < 20000; i++) {
		n = snprintf(line, sizeof line, "line %d\n", i);
		CHECK(write(fd, line, n) == n);
	}
	close(fd);
	fcvm_drain_free(d);
	CHECK(size_of("long") > 0 && size_of("long") <= 32 * 1024 &&
		size_of("long.1") == 32 * 1024);
	/* It goes on where the last one stopped. */
	d = start("long", 64 * 1024, &fd);
	close(fd);
	CHECK(fcvm_drain_tail(d, tail, sizeof tail) == 0);
	fcvm_drain_free(d);
	CHECK(size_of("long") > 0);
	d = start("tail", 64 * 1024, &fd);
	for (int i = 0; i < 2000; i++)
		CHECK(write(fd, "0123456789", 10) == 10);
	for (int i = 0; i < 500 && fcvm_drain_tail(d, tail, sizeof tail) < 4096; i++)
		usleep(2000);
	close(fd);
	CHECK(fcvm_drain_tail(d, tail, sizeof tail) == 4096);
	fcvm_drain_free(d);
}

/* A program's output outlives nothing: its end ends the drain. */
static void test_program(void)
{
	static const char *const argv[] = {"sh", "-c", "echo out; echo err >&2", NULL};
	struct fcvm_process *p = NULL;
	struct fcvm_drain *d = NULL;
	struct fcvm_exit e;
	char tail[100];

	CHECK(fcvm_node_spawn(host,
		      &(struct fcvm_spawn){.argv = argv, .null_stdin = true, .merge_stderr = true},
		      NULL, &p, &err) == 0);
	CHECK(fcvm_node_drain(host, fcvm_process_take_fd(p, 1), dir, "program", 1000, &d, &err) ==
		0);
	CHECK(fcvm_process_wait(p, NULL, &e, &err) == 0 && e.code == 0);
	for (int i = 0; i < 500 && fcvm_drain_tail(d, tail, sizeof tail) < 8; i++)
		usleep(2000);
	CHECK(strcmp(tail, "out\nerr\n") == 0);
	fcvm_drain_free(d);
	fcvm_process_free(p);
	CHECK(size_of("program") == 8);
	CHECK(fcvm_node_drain(host, dup(0), dir, "no/such/folder", 1000, &d, &err) < 0 &&
		err.message[0]);
}

/* Whoever has seen a program's end has its last words, whether the reactor has had its turn or not. */
static void test_last_words(void)
{
	char line[32], tail[100];
	unsigned missed = 0;
	int fd;
	struct fcvm_drain *d = start("words", 1 << 20, &fd);

	for (unsigned i = 0; i < 2000; i++) {
		int n = snprintf(line, sizeof line, "word %u\n", i);

		CHECK(write(fd, line, n) == n);
		fcvm_drain_tail(d, tail, sizeof tail);
		missed += !strstr(tail, line);
	}
	CHECK(missed == 0);
	close(fd);
	fcvm_drain_free(d);
}

struct late {
	int fd, exit_fd;
	const char *text;
};

static void *write_late(void *data)
{
	struct late *l = data;

	bool written;

	usleep(30 * 1000);
	written = write(l->fd, l->text, strlen(l->text)) == (ssize_t)strlen(l->text);
	if (l->exit_fd >= 0)
		written = write(l->exit_fd, "x", 1) == 1 && written;
	return written ? l : NULL; /* checks are the main thread's */
}

static int await_late(struct fcvm_drain *d, struct late l, const char *awaited, int also)
{
	struct fcvm_until until = fcvm_until_ms(5000, -1);
	void *written = NULL;
	pthread_t thread;
	int k;

	CHECK(pthread_create(&thread, NULL, write_late, &l) == 0);
	k = fcvm_drain_await(d, awaited, also, &until);
	pthread_join(thread, &written);
	CHECK(written);
	return k;
}

/* What is waited for is there already, comes in pieces, comes with the end, or does not come. */
static void test_await(void)
{
	struct fcvm_until soon = fcvm_until_ms(20, -1);
	int fd, p[2], cancel[2];
	struct fcvm_drain *d = start("await", 10000, &fd);

	CHECK(fcvm_fd_pipe(p) == 0 && fcvm_fd_pipe(cancel) == 0);
	CHECK(write(fd, "it is rea", 9) == 9);
	CHECK(fcvm_drain_await(d, "ready", p[0], &soon) == -ETIMEDOUT);
	CHECK(await_late(d, (struct late){fd, -1, "dy\n"}, "ready", p[0]) == 0);
	CHECK(fcvm_drain_await(d, "ready", p[0], &soon) == 0);
	CHECK(write(cancel[1], "x", 1) == 1);
	CHECK(fcvm_drain_await(d, "more", p[0], &(struct fcvm_until){INT64_MAX, cancel[0]}) == -ECANCELED);
	CHECK(await_late(d, (struct late){fd, p[1], "last words\n"}, "words", p[0]) == 0);
	CHECK(fcvm_drain_await(d, "more", p[0], NULL) == -ECONNRESET);
	close(fd);
	CHECK(fcvm_drain_await(d, "more", -1, NULL) == -ECONNRESET);
	fcvm_drain_free(d);
	for (int i = 0; i < 2; i++) {
		close(p[i]);
		close(cancel[i]);
	}
}

static bool log_is(const char *name, const char *expected)
{
	_cleanup_free_ char *text = NULL;

	return fcvm_file_read(dir, name, 100000, &text, NULL) == 0 && strcmp(text, expected) == 0;
}

/* Lines of a kind are not in the log, however they are cut into pieces, and the last one can be had. */
static void test_aside(void)
{
	static const char *const pieces[] = {"a\n{\"m", "\":1}\nb{\"m\":2}\n", "{", "x}\n{\"m\":3", "}\n", "{\"m\":"};
	struct fcvm_until until = fcvm_until_ms(5000, -1);
	char *line = NULL;
	int fd;
	struct fcvm_drain *d = start("aside", 10000, &fd);

	CHECK(fcvm_drain_set_aside(d, "{\"m\"") == 0);
	CHECK(fcvm_drain_asides(d) == 0);
	for (unsigned i = 0; i < sizeof pieces / sizeof *pieces; i++) {
		CHECK(write(fd, pieces[i], strlen(pieces[i])) == (ssize_t)strlen(pieces[i]));
		usleep(5000);
	}
	CHECK(fcvm_drain_await_aside(d, 1, -1, &until, &line) == 0);
	CHECK(fcvm_drain_asides(d) == 2 && line && strcmp(line, "{\"m\":3}") == 0);
	free(line);
	until = fcvm_until_ms(20, -1);
	CHECK(fcvm_drain_await_aside(d, 2, -1, &until, &line) == -ETIMEDOUT);
	close(fd);
	CHECK(fcvm_drain_await_aside(d, 2, -1, NULL, &line) == -ECONNRESET);
	fcvm_drain_free(d);
	CHECK(log_is("aside", "a\nb{\"m\":2}\n{x}\n{\"m\":"));
}

/* One that never ends is not collected for ever. */
static void test_aside_endless(void)
{
	char block[1000];
	int fd;
	struct fcvm_drain *d = start("endless", 1 << 20, &fd);

	memset(block, 'x', sizeof block);
	CHECK(fcvm_drain_set_aside(d, "{") == 0);
	CHECK(write(fd, "{", 1) == 1);
	for (int i = 0; i < 100; i++)
		CHECK(write(fd, block, sizeof block) == sizeof block);
	for (int i = 0; i < 500 && size_of("endless") < 100001; i++)
		usleep(2000);
	CHECK(size_of("endless") == 100001 && fcvm_drain_asides(d) == 0);
	close(fd);
	fcvm_drain_free(d);
}

int main(void)
{
	char folder[] = "/tmp/fcvm-test-drain-XXXXXX";

	if (!mkdtemp(folder) || fcvm_node_local(&host, &err) < 0)
		return 1;
	dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	test_short();
	test_rotation();
	test_program();
	test_last_words();
	test_await();
	test_aside();
	test_aside_endless();
	close(dir);
	fcvm_node_unref(host);
	fcvm_tree_remove(AT_FDCWD, folder);
	CHECK_DONE();
}
