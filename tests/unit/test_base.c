/* SPDX-License-Identifier: MIT */
/* csrc/base: processes, JSON, deadlines, files. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sched.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fail.h"
#include "base/json.h"
#include "base/proc.h"
#include "base/until.h"
#include "test_base.h"

/* ---- processes ---- */

/* Runs it to its end with stdout caught; -errno of the spawn, or the exit status. */
static int run(struct fcvm_proc_spec *spec, char *out, size_t room, struct fcvm_err *err)
{
	struct fcvm_proc p = FCVM_PROC_INIT;
	struct fcvm_exit e = {0};
	int pipe_fd[2], fds[32], r;
	size_t n = 0;
	ssize_t k;

	CHECK(fcvm_fd_pipe(pipe_fd) == 0);
	for (unsigned i = 0; i < 32; i++)
		fds[i] = i < spec->nfds && spec->fds ? spec->fds[i] : -1;
	fds[1] = pipe_fd[1];
	spec->fds = fds;
	if (spec->nfds == 0)
		spec->nfds = 3;
	r = fcvm_proc_spawn(spec, &p, err);
	close(pipe_fd[1]);
	while (r == 0 && (k = read(pipe_fd[0], out + n, room - 1 - n)) > 0)
		n += k;
	out[n] = 0;
	close(pipe_fd[0]);
	if (r < 0)
		return r;
	CHECK(fcvm_proc_wait(&p, NULL, &e) == 0);
	fcvm_proc_done(&p);
	return e.signal ? 1000 + e.signal : e.code;
}

#define ARGV(...) ((const char *const[]){__VA_ARGS__, NULL})

static void test_proc_ends(void)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	char out[1000];

	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("sh", "-c", "echo hi; exit 7")}, out,
		      sizeof out, &err) == 7);
	CHECK(strcmp(out, "hi\n") == 0 && err.code == 0);
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("sh", "-c", "kill -9 $$")}, out, sizeof out,
		      &err) == 1000 + SIGKILL);
	/* Failures name the step, and leave nothing to reap. */
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("/none")}, out, sizeof out, &err) == -ENOENT);
	CHECK(err.code == ENOENT && strcmp(err.message, "exec /none: No such file or directory") == 0);
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("none-such")}, out, sizeof out, &err) == -ENOENT);
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("/etc/passwd")}, out, sizeof out, &err) == -EACCES);
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("true"), .cwd = "/none"}, out, sizeof out, &err) ==
		-ENOENT);
	CHECK(strstr(err.message, "chdir /none"));
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("true"), .ctty = true}, out, sizeof out, &err) ==
		-ENOTTY);
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("")}, out, sizeof out, &err) == -EINVAL);
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("true"), .nfds = 33}, out, sizeof out, &err) ==
		-EINVAL);
	CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
}

static void test_proc_search(void)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	char out[1000];

	CHECK(fcvm_dir_make(at("bin"), 0755) == 0);
	put(at("bin/tool"), "#!/bin/sh\necho tool $A\n");
	put(at("tool"), "not executable");
	CHECK(chmod(at("bin/tool"), 0755) == 0);
	/* PATH is that of env; relative ones count from cwd; what may not be executed is passed over. */
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("tool"), .cwd = folder,
			  .env = ARGV("PATH=/none::bin", "A=1")}, out, sizeof out, &err) == 0);
	CHECK(strcmp(out, "tool 1\n") == 0);
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("tool"), .env = ARGV("PATH=/none")}, out,
		      sizeof out, &err) == -ENOENT);
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("tool"), .cwd = folder, .env = ARGV("PATH=:")}, out,
		      sizeof out, &err) == -EACCES);
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("pwd"), .env = ARGV("A=1"), .cwd = "/usr"}, out,
		      sizeof out, &err) == 0 && strcmp(out, "/usr\n") == 0);
}

static void test_proc_fds(void)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	int a, b, low, fds[5] = {-1, -1, -1, -1, -1};
	char out[1000];

	put(at("A"), "A\n");
	put(at("B"), "B\n");
	a = open(at("A"), O_RDONLY | O_CLOEXEC);
	b = open(at("B"), O_RDONLY | O_CLOEXEC);
	low = open("/dev/null", O_RDONLY); /* inheritable: must be closed all the same */
	CHECK(a >= 0 && b >= 0 && low >= 0);
	/* 3 and 4 swapped. */
	CHECK(dup3(a, 20, O_CLOEXEC) == 20 && dup3(b, 21, O_CLOEXEC) == 21);
	CHECK(dup3(20, 3, O_CLOEXEC) == 3 && dup3(21, 4, O_CLOEXEC) == 4);
	fds[3] = 4;
	fds[4] = 3;
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("sh", "-c", "cat <&3; cat <&4; ls /proc/self/fd"),
			  .fds = fds, .nfds = 5}, out, sizeof out, &err) == 0);
	CHECK(strcmp(out, "B\nA\n0\n1\n2\n3\n4\n5\n") == 0);
	/* One source for several targets, itself among them. */
	CHECK(lseek(3, 0, SEEK_SET) == 0);
	fds[0] = 3;
	fds[3] = 3;
	fds[4] = 3;
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("sh", "-c", "read x; echo $x; cat <&4; cat <&3"),
			  .fds = fds, .nfds = 5}, out, sizeof out, &err) == 0);
	CHECK(strcmp(out, "A\n") == 0);
	fds[3] = 1000;
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("true"), .fds = fds, .nfds = 5}, out, sizeof out,
		      &err) == -EBADF);
	for (int fd = 3; fd < 24; fd++)
		close(fd);
}

static void test_proc_state(void)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	char out[8000], want[200];
	sigset_t set, old;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, &old);
	signal(SIGUSR1, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("cat", "/proc/self/status")}, out, sizeof out,
		      &err) == 0);
	CHECK(strstr(out, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"));
	sigprocmask(SIG_BLOCK, NULL, &set);
	CHECK(sigismember(&set, SIGTERM) && !sigismember(&set, SIGINT)); /* ours is as it was */
	sigprocmask(SIG_SETMASK, &old, NULL);
	signal(SIGUSR1, SIG_DFL);
	/* pid, group and session are one after setsid; else they are not. */
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("sh", "-c",
			  "read p c s pp g se r </proc/$$/stat; test $g = $$ && test $se = $$"),
			  .new_session = true, .new_group = true}, out, sizeof out, &err) == 0);
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("sh", "-c",
			  "read p c s pp g se r </proc/$$/stat; test $g = $$ && test $se != $$"),
			  .new_group = true}, out, sizeof out, &err) == 0);
	if (geteuid() != 0) {
		printf("ids: not checked, needs root\n");
		return;
	}
	snprintf(want, sizeof want, "65534 7 7 8 9\n");
	CHECK(run(&(struct fcvm_proc_spec){.argv = ARGV("sh", "-c", "echo $(id -u) $(id -g) $(id -G)"),
			  .set_ids = true, .uid = 65534, .gid = 7, .groups = (const gid_t[]){8, 9},
			  .ngroups = 2, .die_with_parent = true}, out, sizeof out, &err) == 0);
	CHECK(strcmp(out, want) == 0);
}

static bool gone_soon(pid_t pid)
{
	char path[64], stat[300];

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	for (unsigned i = 0; i < 500; i++) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? -1 : read(fd, stat, sizeof stat - 1);

		fcvm_close(fd);
		stat[n < 0 ? 0 : n] = 0;
		if (n < 0 || strstr(stat, ") Z "))
			return true;
		usleep(10000);
	}
	return false;
}

static void test_proc_parent_dies(void)
{
	int p[2];
	pid_t helper, child = 0;

	CHECK(fcvm_fd_pipe(p) == 0);
	helper = fork();
	if (helper == 0) {
		struct fcvm_proc proc = FCVM_PROC_INIT;

		fcvm_proc_spawn(&(struct fcvm_proc_spec){.argv = ARGV("sleep", "1000"),
					.fds = (const int[]){-1, -1, -1}, .nfds = 3, .die_with_parent = true},
			&proc, NULL);
		CHECK(write(p[1], &proc.pid, sizeof proc.pid) == sizeof proc.pid);
		_exit(0);
	}
	CHECK(read(p[0], &child, sizeof child) == sizeof child && child > 0);
	waitpid(helper, NULL, 0);
	CHECK(gone_soon(child));
	close(p[0]);
	close(p[1]);
}

/* One that leads no group is killed all the same. */
static void test_proc_kill(void)
{
	struct fcvm_proc_spec spec = {
		.argv = ARGV("sleep", "1000"), .fds = (const int[]){-1, -1, -1}, .nfds = 3};
	struct fcvm_until until = fcvm_until_ms(5000, -1);
	struct fcvm_proc p = FCVM_PROC_INIT;
	struct fcvm_exit e = {.code = 55};

	for (unsigned i = 0; i < 2; i++) {
		CHECK(fcvm_proc_spawn(&spec, &p, NULL) == 0);
		CHECK(fcvm_proc_kill(&p, i ? SIGKILL : SIGTERM, true) == 0);
		CHECK(fcvm_proc_wait(&p, &until, &e) == 0 && e.signal == (i ? SIGKILL : SIGTERM));
		kill(p.pid, SIGKILL);
		fcvm_proc_done(&p);
	}
}

static void test_proc_wait(void)
{
	struct fcvm_proc_spec spec = {
		.argv = ARGV("sh", "-c", "sleep 1000 & echo $!; wait"), .nfds = 3, .new_group = true};
	struct fcvm_until soon = fcvm_until_ms(30, -1), cancelled = FCVM_UNTIL_NEVER;
	struct fcvm_proc p = FCVM_PROC_INIT;
	struct fcvm_exit e = {.code = 55};
	int fd[2], event = fcvm_fd_event();
	char text[20] = "";

	CHECK(fcvm_fd_pipe(fd) == 0);
	spec.fds = (const int[]){-1, fd[1], -1};
	CHECK(fcvm_proc_spawn(&spec, &p, NULL) == 0);
	CHECK(fcntl(p.pidfd, F_GETFD) == FD_CLOEXEC);
	CHECK(read(fd[0], text, sizeof text - 1) > 0 && atoi(text) > 0);
	CHECK(fcvm_proc_wait(&p, &soon, &e) == -ETIMEDOUT);
	CHECK(write(event, &(uint64_t){1}, 8) == 8);
	cancelled.cancel_fd = event;
	CHECK(fcvm_proc_wait(&p, &cancelled, &e) == -ECANCELED && e.code == 55);
	/* The group goes as a whole. */
	CHECK(fcvm_proc_kill(&p, SIGKILL, true) == 0);
	CHECK(fcvm_proc_wait(&p, NULL, &e) == 0 && e.signal == SIGKILL && e.code == 0);
	CHECK(gone_soon(atoi(text)));
	CHECK(fcvm_proc_kill(&p, SIGTERM, false) == 0); /* gone is no error */
	CHECK(fcvm_proc_wait(&p, NULL, &e) == -ECHILD);
	fcvm_proc_done(&p);
	fcvm_proc_done(&p);
	fcvm_proc_done(NULL);
	CHECK(p.pidfd == -1 && fcvm_proc_kill(&p, SIGTERM, true) == 0);
	close(fd[0]);
	close(fd[1]);
	close(event);
}

/* ---- JSON ---- */

static int parse(const char *text, struct fcvm_json **ret, struct fcvm_err *err)
{
	return fcvm_json_parse(text, strlen(text), ret, err);
}

static void test_json_read(void)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	struct fcvm_err err = FCVM_ERR_INIT;
	const struct fcvm_json *a;
	const char *key = NULL;

	CHECK(parse(" {\"s\":\"t\\u00e9\",\"i\":-9007199254740993,\"b\":true,\"n\":null,\"r\":1.5,"
		    "\"a\":[1,\"two\"]} ", &j, &err) == 0 && err.code == 0);
	CHECK(strcmp(fcvm_json_string(j, "s", "?"), "t\303\251") == 0);
	CHECK(fcvm_json_int(j, "i", 0) == -9007199254740993);
	CHECK(fcvm_json_bool(j, "b", false) && fcvm_json_get(j, "n"));
	/* Missing or of another type: the default. */
	CHECK(!fcvm_json_string(j, "i", NULL) && !fcvm_json_string(j, "none", NULL));
	CHECK(fcvm_json_int(j, "r", 7) == 7 && fcvm_json_int(j, "s", 7) == 7);
	CHECK(!fcvm_json_bool(j, "i", false) && !fcvm_json_bool(j, "n", false));
	a = fcvm_json_get(j, "a");
	CHECK(fcvm_json_count(a) == 2 && fcvm_json_count(j) == 6 && fcvm_json_count(NULL) == 0);
	CHECK(strcmp(fcvm_json_text(fcvm_json_at(a, 1)), "two") == 0 && !fcvm_json_text(a));
	CHECK(!fcvm_json_at(a, 2) && !fcvm_json_at(j, 0) && !fcvm_json_at(NULL, 0));
	CHECK(!fcvm_json_get(a, "x") && !fcvm_json_get(NULL, "x") && fcvm_json_int(NULL, "x", 3) == 3);
	CHECK(fcvm_json_next(j, &key) == fcvm_json_get(j, "s") && strcmp(key, "s") == 0);
	for (unsigned i = 1; i < 6; i++)
		CHECK(fcvm_json_next(j, &key));
	CHECK(strcmp(key, "a") == 0 && !fcvm_json_next(j, &key));
	key = NULL;
	CHECK(!fcvm_json_next(a, &key) && !fcvm_json_next(NULL, &key) && !key);
}

static void test_json_hostile(void)
{
	static const char *const bad[] = {"", " ", "{", "[1,]", "{\"a\":1,\"a\":2}", "1 2", "{\"a\":1}x", "nul",
		"\"\\u0000\"", "\"\xff\"", "\"a", "{1:2}", "[1e999]", "99999999999999999999", "{\"a\" 1}"};
	struct fcvm_json *j = (void *)1;
	struct fcvm_err err;
	char deep[200];

	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
		err.code = 0;
		CHECK(parse(bad[i], &j, &err) == -EBADMSG && err.code == EBADMSG);
	}
	CHECK(strncmp(err.message, "JSON: line 1, column ", 21) == 0);
	CHECK(fcvm_json_parse("1\0", 2, &j, &err) == -EBADMSG && j == (void *)1);
	memset(deep, '[', 65);
	memset(deep + 65, ']', 65);
	CHECK(fcvm_json_parse(deep, 130, &j, &err) == -EBADMSG);
	CHECK(fcvm_json_parse(deep + 1, 128, &j, &err) == 0);
	fcvm_json_free(j);
	/* Brackets in strings are none. */
	memset(deep, '[', 100);
	memcpy(deep, "\"\\\"", 3);
	deep[100] = '"';
	CHECK(fcvm_json_parse(deep, 101, &j, &err) == 0 && strlen(fcvm_json_text(j)) == 98);
	fcvm_json_free(j);
	fcvm_json_free(NULL);
}

static void test_json_write(void)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *o = fcvm_json_object();
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *a = fcvm_json_array();
	_cleanup_free_ char *line = NULL, *pretty = NULL;
	struct fcvm_json *list = fcvm_json_array();

	CHECK(fcvm_json_set_string(o, "z", "1/2\"") == 0 && fcvm_json_set_int(o, "y", INT64_MIN) == 0);
	CHECK(fcvm_json_set_bool(o, "x", false) == 0 && fcvm_json_append_string(list, "e") == 0);
	CHECK(fcvm_json_append(list, fcvm_json_object()) == 0 && fcvm_json_set(o, "w", list) == 0);
	/* Refused, with the value freed (the leak checker sees to it). */
	CHECK(fcvm_json_set_string(o, "v", "\xc3(") == -EINVAL && fcvm_json_set_int(o, "\xff", 1) == -EINVAL);
	CHECK(fcvm_json_append_string(list, "\xff") == -EINVAL && fcvm_json_set(o, "u", NULL) == -ENOMEM);
	CHECK(fcvm_json_set(a, "k", fcvm_json_object()) == -EINVAL);
	CHECK(fcvm_json_append(o, fcvm_json_object()) == -EINVAL);
	line = fcvm_json_print(o, 0);
	CHECK(strcmp(line, "{\"z\":\"1/2\\\"\",\"y\":-9223372036854775808,\"x\":false,\"w\":[\"e\",{}]}") == 0);
	pretty = fcvm_json_print(o, 2);
	CHECK(strncmp(pretty, "{\n  \"z\"", 7) == 0);
}

/* ---- deadlines ---- */

static void test_until(void)
{
	struct fcvm_until never = FCVM_UNTIL_NEVER, u = fcvm_until_ms(-1, 5), soon = fcvm_until_ms(20, -1);
	struct pollfd none = {.fd = -1};
	int64_t start = fcvm_now_ns();
	int event = fcvm_fd_event();

	CHECK(u.deadline_ns == INT64_MAX && u.cancel_fd == 5);
	CHECK(fcvm_until_left_ms(NULL) == -1 && fcvm_until_left_ms(&never) == -1);
	u = fcvm_until_ms(0, -1);
	CHECK(fcvm_until_left_ms(&u) == 0);
	u = fcvm_until_ms(INT64_MAX, -1);
	CHECK(fcvm_until_left_ms(&u) == -1);
	u = fcvm_until_ms(50ll * 24 * 3600 * 1000, -1);
	CHECK(fcvm_until_left_ms(&u) == INT32_MAX);
	CHECK(fcvm_until_poll(&soon, &none, 1) == -ETIMEDOUT);
	CHECK(fcvm_now_ns() - start >= 20000000);
	u = fcvm_until_sooner(&soon, 1000);
	CHECK(u.deadline_ns == soon.deadline_ns);
	u = fcvm_until_sooner(NULL, 1000);
	CHECK(u.deadline_ns != INT64_MAX && u.cancel_fd == -1);
	never.cancel_fd = event;
	CHECK(write(event, &(uint64_t){1}, 8) == 8);
	CHECK(fcvm_until_poll(&never, &none, 1) == -ECANCELED);
	none = (struct pollfd){.fd = event, .events = POLLIN};
	CHECK(fcvm_until_poll(NULL, &none, 1) == 1 && none.revents == POLLIN);
	CHECK(fcvm_until_poll(NULL, &none, 63) == -EINVAL);
	close(event);
}

/* ---- files, buffers, errors ---- */

static unsigned entries(const char *path)
{
	_cleanup_closedir_ DIR *d = opendir(path);
	unsigned n = 0;

	while (d && readdir(d))
		n++;
	return n;
}

static void test_files(void)
{
	struct stat st;
	char *text;

	CHECK(fcvm_dir_make(at("f/g/h"), 0755) == 0 && fcvm_dir_make(at("f/g"), 0755) == 0);
	CHECK(fcvm_file_replace(AT_FDCWD, at("f/x"), "one", 3, 0600, true) == 0);
	CHECK(fcvm_file_replace(AT_FDCWD, at("f/x"), "two!", 4, 0640, false) == 0);
	CHECK(holds(at("f/x"), "two!") && stat(at("f/x"), &st) == 0 && (st.st_mode & 0777) == 0640);
	/* What cannot be put in place leaves nothing behind. */
	CHECK(fcvm_file_replace(AT_FDCWD, at("f/g"), "x", 1, 0600, false) == -EISDIR && entries(at("f")) == 4);
	CHECK(fcvm_file_replace(AT_FDCWD, at("none/x"), "x", 1, 0600, false) == -ENOENT);
	CHECK(fcvm_file_read(AT_FDCWD, at("f/x"), 3, &text, NULL) == -EFBIG);
	CHECK(fcvm_file_read(AT_FDCWD, at("f/x"), 4, &text, NULL) == 0);
	free(text);
	CHECK(fcvm_dir_create(at("f/n/m"), 0777, false) == -ENOENT);
	CHECK(fcvm_dir_create(at("f/n/m/"), 0777, true) == 1 && stat(at("f/n/m"), &st) == 0);
	CHECK((st.st_mode & 07777) == 0777 && fcvm_dir_create(at("f/n/m"), 0700, true) == 0);
	CHECK(fcvm_dir_create(at("f/n/m"), 0700, false) == -EEXIST);
	CHECK(fcvm_dir_make(at("f/x"), 0755) == -ENOTDIR && fcvm_dir_make(at("f/x/y"), 0755) < 0);
	CHECK(fcvm_tree_remove(AT_FDCWD, at("nothing")) == 0);
	put(at("keep"), "kept");
	CHECK(symlink("../keep", at("f/link")) == 0 && symlink("..", at("f/g/up")) == 0);
	CHECK(chmod(at("f/g"), 0500) == 0);
	CHECK(fcvm_tree_remove(AT_FDCWD, at("f")) == 0);
	CHECK(access(at("f"), F_OK) < 0 && holds(at("keep"), "kept"));
}

static void test_remove_mount(void)
{
	pid_t pid = fork();
	int status = 0;

	if (pid == 0) {
		CHECK(fcvm_dir_make(at("m/mnt"), 0755) == 0);
		CHECK(fcvm_dir_make(at("m/bound"), 0755) == 0 && fcvm_dir_make(at("bound"), 0755) == 0);
		put(at("bound/f"), "x");
		if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
			mount("tmpfs", at("m/mnt"), "tmpfs", 0, NULL) < 0 ||
			mount(at("bound"), at("m/bound"), NULL, MS_BIND, NULL) < 0)
			_exit(77);
		check_failed = 0;
		put(at("m/mnt/f"), "x");
		put(at("m/beside"), "x");
		CHECK(fcvm_tree_remove(AT_FDCWD, at("m")) < 0);
		CHECK(holds(at("bound/f"), "x")); /* the same file system, yet not of the tree */
		CHECK(holds(at("m/mnt/f"), "x") && access(at("m/beside"), F_OK) < 0);
		_exit(check_failed != 0);
	}
	waitpid(pid, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		printf("remove and mounts: not checked, needs root and namespaces\n");
	else
		CHECK(status == 0);
}

static void test_buffer(void)
{
	_cleanup_(fcvm_buf_done) struct fcvm_buf b = {0};
	unsigned char in = 0, out = 0;

	CHECK(!fcvm_buf_reserve(&b, SIZE_MAX) && !fcvm_buf_reserve(&b, SIZE_MAX / 2 + 1));
	for (unsigned round = 0; round < 20000; round++) {
		for (unsigned i = 0; i < round % 97; i++, in++)
			if (fcvm_buf_append(&b, &in, 1) < 0)
				CHECK(!"out of memory");
		for (unsigned i = 0; i < round % 89 && b.size > 0; i++, out++) {
			if ((unsigned char)*fcvm_buf_head(&b) != out)
				CHECK(!"order lost");
			fcvm_buf_consume(&b, 1);
		}
	}
	CHECK((unsigned char)(in - out) == b.size % 256);
}

static void test_plain_paths(void)
{
	static const char *const pairs[][2] = {{"/a", "/a"}, {"//a/./b//", "/a/b"}, {"/", "/"}, {"", "/"}, {"/..a/.b", "/..a/.b"},
		{"/a/../b", NULL}};

	for (unsigned i = 0; i < sizeof pairs / sizeof *pairs; i++) {
		char *plain = fcvm_path_plain(pairs[i][0]);

		CHECK(!plain == !pairs[i][1] && (!plain || strcmp(plain, pairs[i][1]) == 0));
		free(plain);
	}
}

static void test_errors(void)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	char big[4000];
	int p[2];
	struct fcvm_until soon = fcvm_until_ms(30, -1);

	memset(big, 'a', sizeof big);
	big[sizeof big - 1] = 'z';
	CHECK(fcvm_fail(NULL, -EIO, "x") == -EIO && fcvm_fail_prefix(NULL, "x") == -EIO);
	CHECK(fcvm_fail_errno(&err, -EMFILE, "open %s", "f") == -EMFILE && strstr(err.message, "ulimit -n"));
	CHECK(fcvm_fail_errno(&err, -ENOENT, "open %s", "f") == -ENOENT);
	CHECK(fcvm_fail_prefix(&err, "start %d", 3) == -ENOENT);
	CHECK(strcmp(err.message, "start 3: open f: No such file or directory") == 0);
	fcvm_fail_detail(&err, big, sizeof big);
	CHECK(strlen(err.detail) == sizeof err.detail - 1 && err.detail[sizeof err.detail - 2] == 'z');
	fcvm_fail(&err, -EIO, "%.*s", (int)sizeof big, big);
	CHECK(strlen(err.message) == sizeof err.message - 1 && !*err.detail);
	/* A peer that does not read ends at the deadline. */
	CHECK(fcvm_fd_pair(p) == 0);
	for (unsigned i = 0; i < 1000; i++)
		if (fcvm_fd_send_until(p[0], big, sizeof big, &soon) == -ETIMEDOUT)
			break;
	CHECK(fcvm_fd_send_until(p[0], big, 1, &soon) == -ETIMEDOUT);
	close(p[1]);
	CHECK(fcvm_fd_send_until(p[0], big, 1, NULL) == -EPIPE);
	close(p[0]);
}

static void test_empty_append(void)
{
	struct fcvm_buf b = {.data = NULL};

	CHECK(fcvm_buf_append(&b, "", 0) == 0 && b.size == 0);
	CHECK(fcvm_buf_append(&b, "x", 1) == 0 && fcvm_buf_append(&b, NULL, 0) == 0 && b.size == 1);
	fcvm_buf_done(&b);
}

int main(void)
{
	if (!mkdtemp(folder))
		return 1;
	test_proc_ends();
	test_proc_search();
	test_proc_fds();
	test_proc_state();
	test_proc_parent_dies();
	test_proc_kill();
	test_proc_wait();
	test_json_read();
	test_json_hostile();
	test_json_write();
	test_until();
	test_files();
	test_remove_mount();
	test_buffer();
	test_plain_paths();
	test_errors();
	fcvm_tree_remove(AT_FDCWD, folder);
	test_empty_append();
	CHECK_DONE();
}
