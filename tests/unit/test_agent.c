/* SPDX-License-Identifier: MIT */
/*
 * The agent, spoken to in raw frames over a socketpair: FCVM_AGENT names the binary (fcvm-agent or its sanitised
 * twin). Every test starts an agent of its own and looks that it ends well.
 */
#include <netinet/in.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "test_agent.h"

static void test_handshake(void)
{
	struct host *h = start();
	uint32_t id;

	CHECK(h->welcome.version == FCVM_WIRE_VERSION && h->welcome.generation == 0);
	id = open_op(h, FCVM_WIRE_PING, "hello", 5);
	CHECK(ok(h, id) && strcmp(h->s[id].payload.data, "hello") == 0);
	id = open_op(h, FCVM_WIRE_INFO, NULL, 0);
	CHECK(ok(h, id) && h->s[id].payload.size == sizeof(struct fcvm_wire_info) + 1);
	if (h->s[id].payload.size > sizeof(struct fcvm_wire_info)) {
		struct fcvm_wire_info info;

		memcpy(&info, h->s[id].payload.data, sizeof info);
		CHECK(info.memory_total > info.memory_available && info.memory_available > 0);
		CHECK(info.processors > 0 && info.uptime_ns > 0 && *info.hostname && *info.version);
	}
	id = open_op(h, 9999, NULL, 0);
	CHECK(result(h, id)->code == ENOSYS);
	if (!sanitised())
		CHECK(rss_kb(h->pid) < 1024);
	printf("idle RSS %ld KiB\n", rss_kb(h->pid));
	stop(h);
}

static void test_spawn(void)
{
	struct host *h = start();
	uint32_t id = sh(h, "echo out; echo err >&2; exit 3");
	struct seen *s = ended(h, id);

	CHECK(s->exit == 3 && text_is(&s->data[1], "out\n") && text_is(&s->data[2], "err\n"));
	CHECK(s->eof[1] && s->eof[2]);
	frame(h, FCVM_WIRE_CLOSE, 0, id, NULL, 0, 0);
	CHECK(await(h, &s->closed));
	id = spawn(h, &(struct run){0}, (const char *[]){"/nonexistent", NULL});
	CHECK(result(h, id)->code == ENOENT);
	CHECK(strstr(h->s[id].payload.data, "/nonexistent"));
	id = sh(h, "kill -9 $$");
	CHECK(ended(h, id)->exit == 0x100 + SIGKILL);
	CHECK(said(h, spawn(h, &(struct run){.cwd = "/usr", .flags = FCVM_WIRE_NULL_STDIN},
				(const char *[]){"pwd", NULL}),
		"/usr\n"));
	CHECK(said(h, spawn(h, &(struct run){.env = (const char *[]){"A=1", "B=two", "A=3", NULL}},
				(const char *[]){"sh", "-c", "echo $A $B; test -n \"$PATH\"", NULL}),
		"3 two\n"));
	CHECK(said(h, spawn(h, &(struct run){.flags = FCVM_WIRE_CLEAR_ENV,
				.env = (const char *[]){"ONLY=1", NULL}},
				(const char *[]){"/usr/bin/env", NULL}),
		"ONLY=1\n"));
	CHECK(said(h, spawn(h, &(struct run){.flags = FCVM_WIRE_MERGE},
				(const char *[]){"sh", "-c", "echo a; echo b >&2", NULL}),
		"a\nb\n"));
	id = spawn(h, &(struct run){.cwd = "/nonexistent"}, (const char *[]){"true", NULL});
	CHECK(result(h, id)->code == ENOENT);
	stop(h);
}

static void test_user(void)
{
	struct host *h = start();
	uint32_t id;

	if (geteuid() != 0) {
		printf("users: not checked, needs root\n");
		stop(h);
		return;
	}
	CHECK(said(h, spawn(h, &(struct run){.user = "daemon"},
				(const char *[]){"sh", "-c", "id -u; id -g; id -G; echo $HOME $USER", NULL}),
		"1\n1\n1\n/usr/sbin daemon\n"));
	CHECK(said(h, spawn(h, &(struct run){.user = "4242:4343"},
				(const char *[]){"sh", "-c", "id -u; id -G", NULL}),
		"4242\n4343\n"));
	CHECK(said(h, spawn(h, &(struct run){.user = "1"}, (const char *[]){"id", "-g", NULL}), "1\n"));
	id = spawn(h, &(struct run){.user = "no-such-user"}, (const char *[]){"true", NULL});
	CHECK(result(h, id)->code == ENOENT && strstr(h->s[id].payload.data, "no-such-user"));
	id = spawn(h, &(struct run){.user = "1:x"}, (const char *[]){"true", NULL});
	CHECK(result(h, id)->code == EINVAL);
	stop(h);
}

/* Ten megabytes through cat, obeying the window. */
static void test_echo(void)
{
	enum { TOTAL = 10 * 1024 * 1024, CHUNK = 60000 };
	struct host *h = start();
	uint8_t *all = malloc(TOTAL);
	uint32_t id = spawn(h, &(struct run){0}, (const char *[]){"cat", NULL});
	struct seen *s = result(h, id);
	size_t sent = 0;

	for (size_t i = 0; i < TOTAL; i++)
		all[i] = i * 2654435761u >> 13;
	while (sent < TOTAL) {
		size_t n = TOTAL - sent < CHUNK ? TOTAL - sent : CHUNK;

		if (sent + n - s->credit > FCVM_WIRE_WINDOW) {
			if (!take(h, 10000))
				break;
			continue;
		}
		frame(h, FCVM_WIRE_DATA, 0, id, all + sent, n, 0);
		sent += n;
	}
	frame(h, FCVM_WIRE_EOF, 0, id, NULL, 0, 0);
	CHECK(ended(h, id)->exit == 0);
	CHECK(s->bytes[1] == TOTAL && memcmp(fcvm_buf_head(&s->data[1]), all, TOTAL) == 0);
	free(all);

	/* One that does not read: what it was sent is swallowed and the credit comes back. */
	id = spawn(h, &(struct run){0}, (const char *[]){"sh", "-c", "exec <&-; sleep 5", NULL});
	s = result(h, id);
	settle(h, 200);
	all = calloc(1, CHUNK);
	for (unsigned i = 0; i < 20; i++) {
		for (unsigned t = 0; t < 50 && (i + 1) * CHUNK - s->credit > FCVM_WIRE_WINDOW; t++)
			take(h, 100);
		frame(h, FCVM_WIRE_DATA, 0, id, all, CHUNK, 0);
	}
	settle(h, 200);
	CHECK(s->credit > 15 * CHUNK);
	free(all);
	frame(h, FCVM_WIRE_CLOSE, 0, id, NULL, 0, 0);
	CHECK(await(h, &s->closed));
	stop(h);
}

static void test_many(void)
{
	enum { N = 60 };
	struct host *h = start();
	uint32_t id[N];
	char script[64], want[32];

	for (unsigned i = 0; i < N; i++) {
		snprintf(script, sizeof script, "sleep 0.%u; echo %u; exit %u", i % 10, i, i);
		id[i] = sh(h, script);
	}
	for (unsigned i = 0; i < N; i++) {
		snprintf(want, sizeof want, "%u\n", i);
		CHECK(ended(h, id[i])->exit == i && text_is(&h->s[id[i]].data[1], want));
		frame(h, FCVM_WIRE_CLOSE, 0, id[i], NULL, 0, 0);
	}
	for (unsigned i = 0; i < N; i++)
		CHECK(await(h, &h->s[id[i]].closed));
	stop(h);
}

/* A gigabyte to a reader that stalls first, while a neighbour works; the agent's memory stays small. */
static void test_printer(void)
{
	struct host *h = start();
	size_t total = sanitised() ? 64u << 20 : 1u << 30;
	char script[100];
	int64_t from;
	uint32_t id, other;

	snprintf(script, sizeof script, "head -c %zu /dev/zero", total);
	id = h->next;
	h->s[id].stall = h->s[id].count = true;
	CHECK(sh(h, script) == id && ok(h, id));
	settle(h, 300);
	CHECK(h->s[id].bytes[1] == FCVM_WIRE_WINDOW);
	for (unsigned i = 0; i < 20; i++) {
		other = sh(h, "echo still here");
		CHECK(said(h, other, "still here\n"));
	}
	CHECK(h->s[id].bytes[1] == FCVM_WIRE_WINDOW && !h->s[id].exited);
	if (!sanitised())
		CHECK(rss_kb(h->pid) < 3 * 1024);
	h->s[id].stall = false;
	from = fcvm_now_ns();
	frame(h, FCVM_WIRE_CREDIT, 1, id, NULL, 0, FCVM_WIRE_WINDOW);
	other = sh(h, "echo between");
	CHECK(said(h, other, "between\n"));
	CHECK(ended(h, id)->exit == 0 && h->s[id].bytes[1] == total);
	printf("printer: %.0f MB/s, RSS %ld KiB\n", total / 1e6 / ((fcvm_now_ns() - from) / 1e9),
		rss_kb(h->pid));
	if (!sanitised())
		CHECK(rss_kb(h->pid) < 3 * 1024);
	stop(h);
}

static void test_signals(void)
{
	struct host *h = start();
	uint32_t id = sh(h, "trap 'echo term; exit 9' TERM; echo up; while :; do sleep 0.05; done");
	struct seen *s = result(h, id);
	uint32_t group;

	while (s->bytes[1] == 0 && take(h, 5000))
		;
	frame(h, FCVM_WIRE_SIGNAL, 0, id, NULL, 0, SIGTERM);
	CHECK(ended(h, id)->exit == 9 && text_is(&s->data[1], "up\nterm\n"));
	/* By no shell: dash catches SIGINT, and forgets one that comes right before its exec. */
	id = spawn(h, &(struct run){.flags = FCVM_WIRE_NULL_STDIN},
		(const char *[]){"sleep", "1000", NULL});
	CHECK(ok(h, id));
	frame(h, FCVM_WIRE_SIGNAL, 0, id, NULL, 0, SIGINT);
	CHECK(ended(h, id)->exit == 0x100 + SIGINT);
	frame(h, FCVM_WIRE_SIGNAL, 0, id, NULL, 0, SIGINT); /* too late: no harm */
	frame(h, FCVM_WIRE_SIGNAL, 0, id, NULL, 0, 12345);
	/* Nobody reads: as with a pipe. */
	id = spawn(h, &(struct run){.flags = FCVM_WIRE_NULL_STDIN}, (const char *[]){"yes", NULL});
	CHECK(ok(h, id));
	frame(h, FCVM_WIRE_EOF, 1, id, NULL, 0, 0);
	CHECK(ended(h, id)->exit == 0x100 + SIGPIPE);
	/* A grandchild that keeps the pipes open does not hold up the exit. */
	id = sh(h, "sleep 1000 & echo done");
	CHECK(said(h, id, "done\n"));
	/* CLOSE kills the group. */
	group = spawn(h, &(struct run){0}, (const char *[]){"sh", "-c",
			"sleep 1000 & echo $! > $0; wait", at("grandchild"), NULL});
	CHECK(ok(h, group));
	for (unsigned i = 0; i < 100 && !alive(at("grandchild")); i++)
		usleep(10000);
	CHECK(alive(at("grandchild")));
	frame(h, FCVM_WIRE_CLOSE, 0, group, NULL, 0, 0);
	CHECK(await(h, &h->s[group].closed));
	CHECK(soon_dead(at("grandchild")));
	stop(h);
}

static void test_tty(void)
{
	struct host *h = start();
	uint32_t id = spawn(h, &(struct run){.flags = FCVM_WIRE_TTY, .rows = 33, .columns = 101},
		(const char *[]){"sh", "-c", "stty -echo; stty size; echo $TERM; read x; stty size; "
					     "tty >/dev/null && cat", NULL});
	struct seen *s = result(h, id);

	if (s->code == ENOENT || s->code == EACCES) {
		printf("tty: not checked, no /dev/ptmx\n");
		stop(h);
		return;
	}
	while (s->bytes[1] < 13 && take(h, 5000))
		;
	frame(h, FCVM_WIRE_RESIZE, 0, id, NULL, 0, 44u << 16 | 122);
	frame(h, FCVM_WIRE_DATA, 0, id, "\n", 1, 0);
	frame(h, FCVM_WIRE_DATA, 0, id, "typed\n", 6, 0);
	frame(h, FCVM_WIRE_EOF, 0, id, NULL, 0, 0);
	CHECK(ended(h, id)->exit == 0);
	CHECK(text_is(&s->data[1], "33 101\r\nlinux\r\n44 122\r\ntyped\r\n"));
	CHECK(s->eof[1]);
	/* A large output right before the end is not cut off. */
	id = spawn(h, &(struct run){.flags = FCVM_WIRE_TTY, .rows = 24, .columns = 80},
		(const char *[]){"sh", "-c", "head -c 30000 /dev/zero | tr '\\0' x", NULL});
	CHECK(ended(h, id)->exit == 0 && h->s[id].bytes[1] == 30000);
	/* The end of input after an unfinished line, and behind more than the terminal takes at once. */
	id = spawn(h, &(struct run){.flags = FCVM_WIRE_TTY},
		(const char *[]){"sh", "-c", "stty -echo; echo up; sleep 0.3; cat >/dev/null; exit 6", NULL});
	s = result(h, id);
	while (s->bytes[1] < 3 && take(h, 5000))
		;
	memset(h->payload, 'x', 50000);
	for (unsigned i = 0; i < 50000; i += 50)
		h->payload[i] = '\n';
	for (unsigned i = 0; i < 3; i++)
		frame(h, FCVM_WIRE_DATA, 0, id, h->payload, 50000, 0);
	frame(h, FCVM_WIRE_EOF, 0, id, NULL, 0, 0);
	CHECK(ended(h, id)->exit == 6);
	stop(h);
}

static void test_channels(void)
{
	struct host *h = start();
	uint32_t id = spawn(h, &(struct run){.channels = 2}, (const char *[]){"bash", "-c",
			"read -u 3 x; echo got $x >&4; echo back >&3; cat <&4", NULL});
	struct seen *s = result(h, id);

	frame(h, FCVM_WIRE_DATA, 3, id, "three\n", 6, 0);
	frame(h, FCVM_WIRE_DATA, 4, id, "four\n", 5, 0);
	frame(h, FCVM_WIRE_EOF, 4, id, NULL, 0, 0);
	CHECK(ended(h, id)->exit == 0);
	CHECK(text_is(&s->data[3], "back\n") && text_is(&s->data[4], "got three\n"));
	CHECK(text_is(&s->data[1], "four\n") && s->eof[3] && s->eof[4]);
	id = spawn(h, &(struct run){.channels = 9}, (const char *[]){"true", NULL});
	CHECK(result(h, id)->code == EINVAL);
	stop(h);
}

/* ---- files and sockets ---- */

static void test_files(void)
{
	struct host *h = start();
	uint32_t id = strings(h, FCVM_WIRE_MKDIR, 2, 0750, 1, at("a/b/c"), NULL);
	struct fcvm_wire_stat st;

	CHECK(ok(h, id));
	CHECK(result(h, strings(h, FCVM_WIRE_MKDIR, 2, 0755, 0, at("a"), NULL))->code == EEXIST);
	CHECK(ok(h, strings(h, FCVM_WIRE_MKDIR, 2, 0755, 1, at("a"), NULL)));
	id = strings(h, FCVM_WIRE_STAT, 0, 0, 0, at("a/b/c"), NULL);
	CHECK(ok(h, id));
	memcpy(&st, h->s[id].payload.data, sizeof st);
	CHECK(st.mode == (S_IFDIR | 0750) && st.uid == geteuid());
	CHECK(ok(h, strings(h, FCVM_WIRE_RENAME, 0, 0, 0, at("a/b"), at("a/z"))));
	CHECK(access(at("a/z/c"), F_OK) == 0);
	id = strings(h, FCVM_WIRE_RENAME, 0, 0, 0, at("none"), at("z"));
	CHECK(result(h, id)->code == ENOENT && strstr(h->s[id].payload.data, "none"));
	CHECK(ok(h, strings(h, FCVM_WIRE_REMOVE, 0, 0, 0, at("a"), NULL)));
	CHECK(access(at("a"), F_OK) < 0);
	CHECK(ok(h, strings(h, FCVM_WIRE_REMOVE, 0, 0, 0, at("a"), NULL)));
	CHECK(result(h, strings(h, FCVM_WIRE_STAT, 0, 0, 0, at("a"), NULL))->code == ENOENT);
	id = strings(h, FCVM_WIRE_REFLINK, 0, 0, 0, "/etc/passwd", at("copy"));
	CHECK(result(h, id)->code == 0 || h->s[id].code == EOPNOTSUPP);
	CHECK(h->s[id].code == 0 || access(at("copy"), F_OK) < 0);
	/* Malformed ones. */
	CHECK(result(h, open_op(h, FCVM_WIRE_MKDIR, "x", 1))->code == EINVAL);
	CHECK(result(h, open_op(h, FCVM_WIRE_RENAME, "\1\0\0\0a\0", 6))->code == EINVAL);
	CHECK(result(h, open_op(h, FCVM_WIRE_SPAWN, "xxxx", 4))->code == EINVAL);
	CHECK(result(h, open_op(h, FCVM_WIRE_GET, NULL, 0))->code == EINVAL);
	stop(h);
}

/* Leases a folder; the answer. Ids may go beyond what is kept of them. */
static unsigned lease(struct host *h, const char *path)
{
	struct seen *s = &h->s[strings(h, FCVM_WIRE_MKDIR, 2, 0700, 2, path, NULL) % STREAMS];
	unsigned code;

	CHECK(await(h, &s->result));
	code = s->code;
	fcvm_buf_done(&s->payload);
	*s = (struct seen){0};
	return code;
}

static void test_leases(void)
{
	struct host *h = start();
	char script[400], name[32], *text = NULL;
	unsigned n = 0;

	/* What a program leaves behind comes to the agent, which is not PID 1 here. */
	snprintf(script, sizeof script,
		"(sleep 0.2; read a b c p r </proc/self/stat; echo $p >%s) & sleep 0", at("parent"));
	CHECK(said(h, sh(h, script), ""));
	for (unsigned i = 0; i < 100 && access(at("parent"), F_OK) < 0; i++)
		usleep(10000);
	usleep(10000);
	CHECK(fcvm_file_read(AT_FDCWD, at("parent"), 100, &text, NULL) == 0 && atoi(text) == h->pid);
	free(text);
	/* Removed by request, and made anew by somebody: not the lease's. */
	CHECK(lease(h, at("l")) == 0);
	CHECK(ok(h, strings(h, FCVM_WIRE_REMOVE, 0, 0, 0, at("l"), NULL)));
	CHECK(mkdir(at("l"), 0700) == 0 && mkdir(at("many"), 0700) == 0);
	CHECK(hello(h, 300, 0, false));
	do
		snprintf(name, sizeof name, "many/%u", n);
	while (lease(h, at(name)) == 0 && n++ < 2000);
	CHECK(n == 1024);
	stop(h);
	CHECK(rmdir(at("l")) == 0 && rmdir(at("many")) == 0);
}

static void test_trees(void)
{
	struct host *h = start();
	uint32_t get, put;
	struct seen *s;
	struct fcvm_buf tree;
	size_t sent = 0;

	CHECK(mkdir(at("src"), 0755) == 0 && mkdir(at("src/d"), 0700) == 0);
	CHECK(fcvm_file_replace(AT_FDCWD, at("src/d/f"), "content\n", 8, 0640, false) == 0);
	CHECK(symlink("d/f", at("src/l")) == 0);
	CHECK(said(h, sh(h, "true"), ""));
	get = strings(h, FCVM_WIRE_GET, 0, 0, 0, at("src"), NULL);
	s = ended(h, get);
	CHECK(s->exit == 0 && s->bytes[1] > 100 && s->bytes[2] == 0);
	tree = s->data[1];
	put = strings(h, FCVM_WIRE_PUT, 1, 1, 0, at("dst"), "");
	CHECK(ok(h, put));
	while (sent < tree.size) { /* it is smaller than the window */
		size_t n = tree.size - sent < 1000 ? tree.size - sent : 1000;

		frame(h, FCVM_WIRE_DATA, 0, put, fcvm_buf_head(&tree) + sent, n, 0);
		sent += n;
	}
	frame(h, FCVM_WIRE_EOF, 0, put, NULL, 0, 0);
	CHECK(ended(h, put)->exit == 0);
	CHECK(said(h, spawn(h, &(struct run){.cwd = folder},
				(const char *[]){"sh", "-c", "diff -r src dst && readlink dst/l && "
							     "stat -c %a dst/d/f", NULL}),
		"d/f\n640\n"));
	get = strings(h, FCVM_WIRE_GET, 0, 0, 0, at("missing"), NULL);
	s = ended(h, get);
	CHECK(s->exit == ENOENT && s->bytes[2] > 0);
	/* Cut off: it fails and leaves nothing half written. */
	put = strings(h, FCVM_WIRE_PUT, 1, 0, 0, at("half"), "");
	CHECK(ok(h, put));
	frame(h, FCVM_WIRE_DATA, 0, put, fcvm_buf_head(&tree), tree.size / 2, 0);
	frame(h, FCVM_WIRE_EOF, 0, put, NULL, 0, 0);
	s = ended(h, put);
	CHECK(s->exit > 0 && s->exit < 256 && s->bytes[2] > 0);
	put = strings(h, FCVM_WIRE_PUT, 1, 0, 0, at("closed"), "");
	CHECK(ok(h, put));
	frame(h, FCVM_WIRE_CLOSE, 0, put, NULL, 0, 0);
	CHECK(await(h, &h->s[put].closed));
	stop(h);
	CHECK(access(at("closed"), F_OK) < 0);
}

/* One that nobody listens on, as the kernel gives them out. */
static int free_port(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof a;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(bind(fd, (struct sockaddr *)&a, size) == 0 && getsockname(fd, (struct sockaddr *)&a, &size) == 0);
	close(fd);
	return ntohs(a.sin_port);
}

static void test_sockets(void)
{
	int port;
	struct host *h = start();
	char address[320];
	uint32_t listener, waiting, in, out;
	struct stat st;

	snprintf(address, sizeof address, "unix:%s", at("sock"));
	listener = strings(h, FCVM_WIRE_LISTEN, 0, 0, 0, address, NULL);
	CHECK(ok(h, listener));
	CHECK(lstat(at("sock"), &st) == 0 && st.st_mode == (S_IFSOCK | 0600));
	in = strings(h, FCVM_WIRE_ACCEPT, 1, listener, 0, NULL, NULL);
	waiting = strings(h, FCVM_WIRE_ACCEPT, 1, listener, 0, NULL, NULL);
	out = strings(h, FCVM_WIRE_CONNECT, 0, 0, 0, address, NULL);
	CHECK(ok(h, out) && ok(h, in) && !h->s[waiting].result);
	frame(h, FCVM_WIRE_DATA, 0, out, "to", 2, 0);
	frame(h, FCVM_WIRE_EOF, 0, out, NULL, 0, 0);
	frame(h, FCVM_WIRE_DATA, 0, in, "fro", 3, 0);
	CHECK(await(h, &h->s[in].eof[0]) && text_is(&h->s[in].data[0], "to"));
	frame(h, FCVM_WIRE_CLOSE, 0, in, NULL, 0, 0);
	CHECK(await(h, &h->s[out].eof[0]) && text_is(&h->s[out].data[0], "fro"));
	/* One that connects before anybody accepts. */
	out = strings(h, FCVM_WIRE_CONNECT, 0, 0, 0, address, NULL);
	CHECK(ok(h, out) && ok(h, waiting));
	out = strings(h, FCVM_WIRE_CONNECT, 0, 0, 0, address, NULL);
	CHECK(ok(h, out));
	settle(h, 50);
	in = strings(h, FCVM_WIRE_ACCEPT, 1, listener, 0, NULL, NULL);
	CHECK(ok(h, in));
	/* Closing the listener ends who waits, and removes the file. */
	waiting = strings(h, FCVM_WIRE_ACCEPT, 1, listener, 0, NULL, NULL);
	frame(h, FCVM_WIRE_CLOSE, 0, listener, NULL, 0, 0);
	CHECK(result(h, waiting)->code == ECANCELED && await(h, &h->s[listener].closed));
	CHECK(lstat(at("sock"), &st) < 0);
	CHECK(result(h, strings(h, FCVM_WIRE_CONNECT, 0, 0, 0, address, NULL))->code == ENOENT);
	CHECK(result(h, strings(h, FCVM_WIRE_ACCEPT, 1, listener, 0, NULL, NULL))->code == EBADF);
	CHECK(result(h, strings(h, FCVM_WIRE_CONNECT, 0, 0, 0, "tcp:127.0.0.1:1", NULL))->code ==
		ECONNREFUSED);
	CHECK(result(h, strings(h, FCVM_WIRE_CONNECT, 0, 0, 0, "what:1", NULL))->code == EINVAL);
	port = free_port();
	snprintf(address, sizeof address, "tcp:127.0.0.1:%d", port);
	listener = strings(h, FCVM_WIRE_LISTEN, 0, 0, 0, address, NULL);
	CHECK(ok(h, listener));
	in = strings(h, FCVM_WIRE_ACCEPT, 1, listener, 0, NULL, NULL);
	snprintf(address, sizeof address, "tcp:localhost:%d", port);
	out = strings(h, FCVM_WIRE_CONNECT, 0, 0, 0, address, NULL);
	CHECK(ok(h, out) && ok(h, in));
	/* Whose other side is gone both ways is closed, once that shows. */
	snprintf(address, sizeof address, "unix:%s", at("sock"));
	listener = strings(h, FCVM_WIRE_LISTEN, 0, 0, 0, address, NULL);
	in = strings(h, FCVM_WIRE_ACCEPT, 1, listener, 0, NULL, NULL);
	out = strings(h, FCVM_WIRE_CONNECT, 0, 0, 0, address, NULL);
	CHECK(ok(h, listener) && ok(h, out) && ok(h, in));
	frame(h, FCVM_WIRE_CLOSE, 0, in, NULL, 0, 0);
	CHECK(await(h, &h->s[out].eof[0]) && !h->s[out].closed);
	frame(h, FCVM_WIRE_DATA, 0, out, "x", 1, 0);
	CHECK(await(h, &h->s[out].closed));
	stop(h);
}

/* On a machine without a device to be reached by it ends, and so that nobody starts it again. */
static void test_no_device(void)
{
	int64_t from = fcvm_now_ns();
	int status = -1;
	pid_t pid = fork();

	if (pid == 0) {
		if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
			mount("none", "/sys", "tmpfs", 0, NULL) < 0)
			_exit(77);
		execl(agent_path, "fcvm-agent", NULL);
		_exit(127);
	}
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status));
	if (WEXITSTATUS(status) == 77) {
		printf("not without root\n");
		return;
	}
	CHECK(WEXITSTATUS(status) == 3 && fcvm_now_ns() - from < INT64_C(30000000000));
}

/* What a host waits for: request to exit. */
static void measure_exec(void)
{
	struct host *h = start();
	int64_t from = fcvm_now_ns();

	for (unsigned i = 0; i < 200; i++) {
		uint32_t id = spawn(h, &(struct run){.flags = FCVM_WIRE_NULL_STDIN},
			(const char *[]){"/bin/true", NULL});

		CHECK(ended(h, id)->exit == 0);
		frame(h, FCVM_WIRE_CLOSE, 0, id, NULL, 0, 0);
	}
	printf("exec of true: %.2f ms\n", (fcvm_now_ns() - from) / 200e6);
	stop(h);
}

int main(void)
{
	static const struct test tests[] = {
		{"handshake", test_handshake}, {"spawn", test_spawn}, {"user", test_user},
		{"echo", test_echo}, {"many", test_many}, {"printer", test_printer},
		{"signals", test_signals}, {"tty", test_tty}, {"channels", test_channels},
		{"files", test_files}, {"leases", test_leases}, {"trees", test_trees}, {"sockets", test_sockets},
		{"no device", test_no_device},
		{"exec", measure_exec},
	};

	return run_tests(tests, sizeof tests / sizeof *tests);
}
