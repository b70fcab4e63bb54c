/* SPDX-License-Identifier: MIT */
/* LIBS: base */
/* csrc/base: processes, trees, JSON, deadlines, files. Works in a folder of its own under /tmp. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sched.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/proc.h"
#include "base/tree.h"
#include "base/until.h"
#include "check.h"

static char folder[] = "/tmp/fcvm-test-base-XXXXXX";

static const char *at(const char *name)
{
	static char path[4][300];
	static unsigned i;

	i = (i + 1) % 4;
	snprintf(path[i], sizeof path[i], "%s/%s", folder, name);
	return path[i];
}

static bool holds(const char *path, const char *text)
{
	_cleanup_free_ char *data = NULL;
	size_t size;

	return fcvm_file_read(AT_FDCWD, path, 1 << 20, &data, &size) == 0 && strcmp(data, text) == 0;
}

static void put(const char *path, const char *text)
{
	CHECK(fcvm_file_replace(AT_FDCWD, path, text, strlen(text), 0644, false) == 0);
}

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

/* ---- trees ---- */

/* Packs into memory. */
static int pack(const char *path, struct fcvm_buf *ret, struct fcvm_err *err)
{
	FILE *f = tmpfile();
	int r = fcvm_tree_pack(fileno(f), path, err);
	long size;

	fseek(f, 0, SEEK_END);
	size = ftell(f);
	rewind(f);
	CHECK(fread(fcvm_buf_reserve(ret, size), 1, size, f) == (size_t)size);
	fcvm_buf_grew(ret, size);
	fclose(f);
	return r;
}

static int unpack(const void *data, size_t size, const char *path, const char *base, bool keep,
	struct fcvm_err *err)
{
	FILE *f = tmpfile();
	int r;

	fwrite(data, 1, size, f);
	rewind(f);
	fflush(f);
	lseek(fileno(f), 0, SEEK_SET);
	r = fcvm_tree_unpack(fileno(f), path, base, keep, err);
	fclose(f);
	return r;
}

static void make_tree(void)
{
	int fd;

	CHECK(fcvm_dir_make(at("t/sub/deep"), 0755) == 0 && fcvm_dir_make(at("t/ro"), 0755) == 0);
	put(at("t/sub/deep/file"), "text");
	put(at("t/empty"), "");
	put(at("t/ro/inside"), "x");
	CHECK(symlink("../outside", at("t/link")) == 0);
	CHECK(mkfifo(at("t/fifo"), 0640) == 0);
	fd = open(at("t/sparse"), O_WRONLY | O_CREAT, 0600);
	CHECK(ftruncate(fd, 5ll << 30) == 0 && pwrite(fd, "mid", 3, 3ll << 30) == 3);
	CHECK(pwrite(fd, "end", 3, (5ll << 30) - 3) == 3);
	close(fd);
	CHECK(chmod(at("t/sub/deep/file"), 06755) == 0 && chmod(at("t/ro"), 0555) == 0);
	CHECK(utimensat(AT_FDCWD, at("t/sub"), (struct timespec[]){{1, 0}, {-5, 250}}, 0) == 0);
	CHECK(mknod(at("t/socket"), S_IFSOCK | 0600, 0) == 0);
}

static void test_tree_copy(void)
{
	_cleanup_(fcvm_buf_done) struct fcvm_buf b = {0};
	struct fcvm_err err = FCVM_ERR_INIT;
	struct stat st;
	char text[64] = "";
	int fd;

	make_tree();
	CHECK(pack(at("t"), &b, &err) == 0 && b.size < 1 << 20); /* holes are not sent */
	CHECK(unpack(b.data, b.size, at("u"), NULL, false, &err) == 0);
	CHECK(holds(at("u/sub/deep/file"), "text") && holds(at("u/empty"), "") && holds(at("u/ro/inside"), "x"));
	CHECK(stat(at("u/sub/deep/file"), &st) == 0 && (st.st_mode & 07777) == 0755); /* no set-id */
	CHECK(stat(at("u/ro"), &st) == 0 && (st.st_mode & 07777) == 0555);
	CHECK(stat(at("u/sub"), &st) == 0 && st.st_mtim.tv_sec == -5 && st.st_mtim.tv_nsec == 250);
	CHECK(readlink(at("u/link"), text, sizeof text) == 10 && strcmp(text, "../outside") == 0);
	CHECK(lstat(at("u/fifo"), &st) == 0 && st.st_mode == (S_IFIFO | 0640));
	CHECK(lstat(at("u/socket"), &st) < 0);
	CHECK(stat(at("u/sparse"), &st) == 0 && st.st_size == 5ll << 30 && st.st_blocks < 1000);
	fd = open(at("u/sparse"), O_RDONLY);
	CHECK(pread(fd, text, 3, 3ll << 30) == 3 && memcmp(text, "mid", 3) == 0);
	CHECK(pread(fd, text, 9, (5ll << 30) - 3) == 3 && memcmp(text, "end", 3) == 0);
	close(fd);
	CHECK(unpack(b.data, b.size, at("k"), NULL, geteuid() == 0, &err) == 0);
	CHECK(stat(at("k/sub/deep/file"), &st) == 0 && (geteuid() || (st.st_mode & 07777) == 06755));
	/* Again, over what is there: merged; foreign files stay, a folder keeps its mode. */
	put(at("u/foreign"), "stays");
	CHECK(chmod(at("u/sub"), 0700) == 0 && chmod(at("u/ro"), 0755) == 0);
	CHECK(unpack(b.data, b.size, at("u"), NULL, false, &err) == 0);
	CHECK(holds(at("u/foreign"), "stays") && stat(at("u/sub"), &st) == 0 && (st.st_mode & 07777) == 0700);
	CHECK(pack(at("none"), &b, &err) == -ENOENT && strstr(err.message, "/none"));
}

static void test_tree_file(void)
{
	_cleanup_(fcvm_buf_done) struct fcvm_buf b = {0}, proc = {0};
	struct fcvm_err err = FCVM_ERR_INIT;
	struct stat st;

	put(at("one"), "content");
	CHECK(pack(at("one"), &b, &err) == 0);
	CHECK(unpack(b.data, b.size, at("two"), "ignored", false, &err) == 0 && holds(at("two"), "content"));
	CHECK(fcvm_dir_make(at("d"), 0755) == 0);
	CHECK(unpack(b.data, b.size, at("d"), "named", false, &err) == 0 && holds(at("d/named"), "content"));
	CHECK(unpack(b.data, b.size, at("d"), "../named", false, &err) == -EINVAL);
	CHECK(unpack(b.data, b.size, at("d"), "..", false, &err) == -EINVAL);
	CHECK(unpack(b.data, b.size, at("d"), NULL, false, &err) < 0);
	/* Cut off anywhere: an error, what was there stays, and nothing is left beside it. */
	put(at("d/named"), "old");
	for (size_t n = 0; n < b.size; n++) {
		CHECK(unpack(b.data, n, at("d/named"), NULL, false, &err) == -ENODATA);
		CHECK(holds(at("d/named"), "old"));
	}
	CHECK(unlink(at("d/named")) == 0 && rmdir(at("d")) == 0);
	/* Files of /proc say that they are empty. */
	CHECK(pack("/proc/version", &proc, &err) == 0);
	CHECK(unpack(proc.data, proc.size, at("version"), NULL, false, &err) == 0);
	CHECK(stat(at("version"), &st) == 0 && st.st_size > 10);
}

static void entry(struct fcvm_buf *b, int type, const char *path, uint64_t size, const char *target)
{
	struct fcvm_tree_entry e = {
		.magic = 0xf5,
		.type = type,
		.path_len = strlen(path),
		.mode = type == FCVM_TREE_DIR ? S_IFDIR | 0755 :
			type == FCVM_TREE_DEVICE ? S_IFCHR | 0666 : S_IFREG | 0644,
		.size = size,
		.target_len = target ? strlen(target) : 0,
		.rdev = 0x103,
	};

	fcvm_buf_append(b, &e, sizeof e);
	fcvm_buf_append(b, path, e.path_len);
	fcvm_buf_append(b, target, e.target_len);
}

static void file(struct fcvm_buf *b, const char *path, uint64_t size, uint64_t offset, const char *data)
{
	uint64_t head[2] = {offset, data ? strlen(data) : 0}, end[2] = {0};

	entry(b, FCVM_TREE_FILE, path, size, NULL);
	if (data) {
		fcvm_buf_append(b, head, sizeof head);
		fcvm_buf_append(b, data, head[1]);
	}
	fcvm_buf_append(b, end, sizeof end);
}

/* A stream of a root folder and what `add` puts into it must be refused with `code`, and leave nothing. */
static void refuse(int line, int code, const struct fcvm_buf *entries)
{
	_cleanup_(fcvm_buf_done) struct fcvm_buf b = {0};
	struct fcvm_err err = FCVM_ERR_INIT;
	int r;

	entry(&b, FCVM_TREE_DIR, "", 0, NULL);
	fcvm_buf_append(&b, entries->data, entries->size);
	entry(&b, FCVM_TREE_END, "", 0, NULL);
	r = unpack(b.data, b.size, at("evil"), NULL, false, &err);
	if (r != code)
		fprintf(stderr, "line %d: %d %s\n", line, r, err.message);
	CHECK(r == code && err.code == -code && *err.message);
	CHECK(access(at("evil"), F_OK) < 0 && access(at("escaped"), F_OK) < 0);
}

#define REFUSE(code, make)                                                                         \
	do {                                                                                       \
		struct fcvm_buf b = {0};                                                           \
		make;                                                                              \
		refuse(__LINE__, code, &b);                                                        \
		fcvm_buf_done(&b);                                                                 \
	} while (0)

static void test_tree_hostile(void)
{
	static const char *const paths[] = {"..", ".", "/escaped", "../escaped", "a/../../escaped", "a//b",
		"d/..", "d/.", "d/", "d//x", "missing/x", "", "d/x/y"};
	char *deep = malloc(5000);

	for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
		REFUSE(-EBADMSG, (entry(&b, FCVM_TREE_DIR, "d", 0, NULL), file(&b, paths[i], 1, 0, "x")));
		REFUSE(-EBADMSG, (entry(&b, FCVM_TREE_DIR, "d", 0, NULL),
				entry(&b, FCVM_TREE_DIR, paths[i], 0, NULL)));
	}
	/* A folder that was closed already, and one that only looks like it. */
	REFUSE(-EBADMSG, (entry(&b, FCVM_TREE_DIR, "d", 0, NULL), file(&b, "e", 0, 0, NULL),
			file(&b, "d/x", 0, 0, NULL)));
	REFUSE(-EBADMSG, (entry(&b, FCVM_TREE_DIR, "d", 0, NULL), file(&b, "dd/x", 0, 0, NULL)));
	/* By way of a symlink. */
	REFUSE(-EBADMSG, (entry(&b, FCVM_TREE_SYMLINK, "l", 0, ".."), file(&b, "l/escaped", 0, 0, NULL)));
	REFUSE(-ENOTDIR, (entry(&b, FCVM_TREE_SYMLINK, "l", 0, ".."), entry(&b, FCVM_TREE_DIR, "l", 0, NULL),
			file(&b, "l/escaped", 0, 0, NULL)));
	/* Data outside of its file, sizes that wrap. */
	REFUSE(-EBADMSG, file(&b, "f", 2, 1, "xx"));
	REFUSE(-EBADMSG, file(&b, "f", 2, UINT64_MAX, "xx"));
	REFUSE(-EFBIG, file(&b, "f", UINT64_MAX, 0, "xx"));
	/* Types, targets, devices, magic. */
	REFUSE(-EBADMSG, entry(&b, 6, "f", 0, NULL));
	REFUSE(-EBADMSG, entry(&b, FCVM_TREE_SYMLINK, "f", 0, NULL));
	REFUSE(-EBADMSG, entry(&b, FCVM_TREE_DIR, "f", 0, "target"));
	REFUSE(-EPERM, entry(&b, FCVM_TREE_DEVICE, "null", 0, NULL));
	REFUSE(-EBADMSG, fcvm_buf_append(&b, "0123456789012345678901234567890123456789", 40));
	/* Paths too long, or with a NUL. */
	memset(deep, 'x', 4999);
	deep[4999] = 0;
	REFUSE(-EBADMSG, entry(&b, FCVM_TREE_DIR, deep, 0, NULL));
	deep[300] = 0;
	REFUSE(-ENAMETOOLONG, file(&b, deep, 0, 0, NULL));
	REFUSE(-EBADMSG, (entry(&b, FCVM_TREE_DIR, "ab", 0, NULL), fcvm_buf_head(&b)[b.size - 1] = 0));
	REFUSE(-ELOOP, ({
		       for (unsigned i = 0; i < 600; i++) {
			       memcpy(deep + 2 * i, "x/", 2);
			       deep[2 * i + 1] = 0;
			       entry(&b, FCVM_TREE_DIR, deep, 0, NULL);
			       deep[2 * i + 1] = '/';
		       }
	       }));
	free(deep);
}

static void test_tree_existing(void)
{
	_cleanup_(fcvm_buf_done) struct fcvm_buf b = {0};
	struct fcvm_err err = FCVM_ERR_INIT;
	char text[64];

	/* A symlink that stands in the destination is not followed; a file's is replaced. */
	CHECK(fcvm_dir_make(at("dest"), 0755) == 0 && fcvm_dir_make(at("target"), 0755) == 0);
	CHECK(symlink("../target", at("dest/d")) == 0 && symlink("../target/f", at("dest/f")) == 0);
	entry(&b, FCVM_TREE_DIR, "", 0, NULL);
	file(&b, "f", 3, 0, "new");
	entry(&b, FCVM_TREE_DIR, "d", 0, NULL);
	file(&b, "d/f", 3, 0, "new");
	entry(&b, FCVM_TREE_END, "", 0, NULL);
	CHECK(unpack(b.data, b.size, at("dest"), NULL, false, &err) == -ENOTDIR && strstr(err.message, "dest/d"));
	CHECK(access(at("target/f"), F_OK) < 0 && holds(at("dest/f"), "new"));
	CHECK(readlink(at("dest/f"), text, sizeof text) < 0);
	/* Sending to somebody who has gone is an error, not SIGPIPE. */
	{
		int p[2];

		signal(SIGPIPE, SIG_DFL);
		CHECK(fcvm_fd_pair(p) == 0);
		close(p[1]);
		CHECK(fcvm_tree_pack(p[0], at("dest"), &err) == -EPIPE);
		close(p[0]);
	}
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

static void test_errors(void)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	char big[4000];
	int p[2];
	struct fcvm_until soon = fcvm_until_ms(30, -1);

	memset(big, 'a', sizeof big);
	big[sizeof big - 1] = 'z';
	CHECK(fcvm_fail(NULL, -EIO, "x") == -EIO && fcvm_fail_prefix(NULL, "x") == -EIO);
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
	test_tree_copy();
	test_tree_file();
	test_tree_hostile();
	test_tree_existing();
	test_json_read();
	test_json_hostile();
	test_json_write();
	test_until();
	test_files();
	test_remove_mount();
	test_buffer();
	test_errors();
	fcvm_tree_remove(AT_FDCWD, folder);
	test_empty_append();
	CHECK_DONE();
}
