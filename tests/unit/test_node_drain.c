/* SPDX-License-Identifier: MIT */
/* LIBS: node wire base */
/* Logs of bounded size (fcvm_node_drain). */
#include <fcntl.h>
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

int main(void)
{
	char folder[] = "/tmp/fcvm-test-drain-XXXXXX";

	if (!mkdtemp(folder) || fcvm_node_local(&host, &err) < 0)
		return 1;
	dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	test_short();
	test_rotation();
	test_program();
	close(dir);
	fcvm_node_unref(host);
	fcvm_tree_remove(AT_FDCWD, folder);
	CHECK_DONE();
}
