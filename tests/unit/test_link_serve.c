/* SPDX-License-Identifier: MIT */
/*
 * A link that is served to others (fcvm_node_serve), over a real agent that FCVM_AGENT names:
 * several clients at once, hostile ones, and ones that are killed.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fd.h"
#include "check.h"
#include "node/node.h"
#include "wire/wire.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED
#endif

static struct fcvm_node *host, *agent;
static struct fcvm_err err;
static char folder[] = "/tmp/fcvm-test-serve-XXXXXX";
static struct sockaddr_un address = {.sun_family = AF_UNIX};

static int dial(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		perror("connect");
	return fd;
}

static struct fcvm_node *client(void)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	struct fcvm_node *n = NULL;

	if (fcvm_node_agent(&n, host, dial(), "client", 0, &until, &err) < 0)
		fprintf(stderr, "client: %s\n", err.message);
	return n;
}

static int run(struct fcvm_node *n, const char *script)
{
	const char *argv[] = {"sh", "-c", script, NULL};
	struct fcvm_until until = fcvm_until_ms(20000, -1);
	struct fcvm_err own = FCVM_ERR_INIT;
	struct fcvm_output o;
	int code;

	if (fcvm_node_exec(n, &(struct fcvm_spawn){.argv = argv}, NULL, 0, 100, &until, &o, &own) <
		0)
		return -own.code;
	code = o.exit.code;
	fcvm_output_done(&o);
	return code;
}

static bool soon(const char *script)
{
	for (int i = 0; i < 250; i++) {
		if (run(agent, script) == 0)
			return true;
		usleep(20000);
	}
	return false;
}

/* ---- good ones ---- */

static void *work(void *arg)
{
	struct fcvm_node *n = client();
	intptr_t good = 0;

	for (int i = 0; n && i < 20; i++)
		good += run(n, "exit 9") == 9;
	fcvm_node_unref(n);
	return (void *)good;
}

static void test_several(void)
{
	enum { N = 8 };
	pthread_t t[N];
	void *good;

	for (int i = 0; i < N; i++)
		pthread_create(&t[i], NULL, work, NULL);
	for (int i = 0; i < N; i++) {
		pthread_join(t[i], &good);
		CHECK((intptr_t)good == 20);
	}
}

static void test_refused(void)
{
	struct fcvm_node *n = client();

	if (!n)
		return;
	CHECK(fcvm_node_ping(n, NULL, &err) == 0);
	CHECK(fcvm_node_freeze(n, NULL, &err) == -EPERM && fcvm_node_ping(n, NULL, &err) == 0);
	CHECK(fcvm_node_identify(n, &(struct fcvm_identity){.generation = 1}, NULL, &err) ==
		-EPERM);
	CHECK(fcvm_node_set_clock(n, 1, NULL, &err) == -EPERM);
	CHECK(fcvm_node_power(n, false, NULL, &err) == -EPERM);
	fcvm_node_unref(n);
}

static void *run_later(void *arg)
{
	return (void *)(intptr_t)run(arg, "exit 3");
}

/* While the owner has frozen the link, clients wait. */
static void test_frozen(void)
{
	struct fcvm_until soon_over = fcvm_until_ms(200, -1);
	struct fcvm_node *n = client();
	pthread_t t;
	void *code;

	if (!n)
		return;
	CHECK(fcvm_node_freeze(agent, NULL, &err) == 0);
	CHECK(fcvm_node_ping(n, &soon_over, &err) == -ETIMEDOUT);
	pthread_create(&t, NULL, run_later, n);
	usleep(50000);
	CHECK(fcvm_node_thaw(agent, NULL, &err) == 0);
	pthread_join(t, &code);
	CHECK((intptr_t)code == 3);
	fcvm_node_unref(n);
}

/* ---- those that are killed ---- */

/* A process of its own, forked before there are threads. */
static pid_t victim;
static int victim_go[2];

static void be_killed(void)
{
	struct fcvm_process *p;
	struct fcvm_node *n;
	char script[200], lease[200];
	const char *argv[] = {"sh", "-c", script, NULL};

	close(victim_go[1]);
	if (read(victim_go[0], lease, 1) != 1 || fcvm_node_local(&host, &err) < 0)
		_exit(1);
	n = client();
	snprintf(lease, sizeof lease, "%s/lease", folder);
	snprintf(script, sizeof script, "echo $$ > %s/pid; yes > /dev/null", folder);
	if (!n || fcvm_node_mkdir(n, lease, 0700, false, true, NULL, &err) < 0 ||
		fcvm_node_spawn(n, &(struct fcvm_spawn){.argv = argv}, NULL, &p, &err) < 0)
		_exit(1);
	for (;;)
		pause();
}

static void test_killed(void)
{
	char script[200];

	CHECK(write(victim_go[1], "x", 1) == 1);
	snprintf(script, sizeof script, "test -s %s/pid && test -d %s/lease", folder, folder);
	CHECK(soon(script));
	kill(victim, SIGKILL);
	waitpid(victim, NULL, 0);
	snprintf(script, sizeof script, "! kill -0 $(cat %s/pid) && ! test -e %s/lease", folder,
		folder);
	CHECK(soon(script));
}

/* ---- hostile ones, in raw frames ---- */

static void put(int fd, unsigned type, unsigned channel, uint32_t stream, const void *payload,
	size_t size, uint32_t arg)
{
	struct fcvm_until until = fcvm_until_ms(1000, -1);
	uint8_t head[16];

	fcvm_wire_put_header(head, type, channel, stream, size, arg);
	fcvm_fd_send_until(fd, head, sizeof head, &until);
	fcvm_fd_send_until(fd, payload, size, &until);
}

static int dial_raw(void)
{
	struct fcvm_wire_hello hello = {
		.magic = "FCVMLIN", .version = FCVM_WIRE_VERSION, .nonce = 5};
	uint8_t answer[48];
	int fd = dial();

	hello.magic[7] = 'K';
	put(fd, FCVM_WIRE_HELLO, 0, 0, &hello, sizeof hello, 0);
	CHECK(recv(fd, answer, sizeof answer, MSG_WAITALL) == sizeof answer &&
		answer[1] == FCVM_WIRE_WELCOME);
	return fd;
}

static void spawn_raw(int fd, uint32_t id, const char *script)
{
	struct fcvm_wire_spawn s = {.nargv = 3};
	uint8_t payload[500];
	struct fcvm_wire_writer w = fcvm_wire_writer(payload, sizeof payload);

	fcvm_wire_put_bytes(&w, &s, sizeof s);
	fcvm_wire_put_string(&w, "/");
	fcvm_wire_put_string(&w, "");
	fcvm_wire_put_string(&w, "/bin/sh");
	fcvm_wire_put_string(&w, "-c");
	fcvm_wire_put_string(&w, script);
	put(fd, FCVM_WIRE_OPEN, 0, id, payload, w.at - payload, FCVM_WIRE_SPAWN);
}

/* The client is shown the door, at once. */
static bool dropped(int fd)
{
	struct timeval second = {.tv_sec = 3};
	char scrap[65536];
	ssize_t n;

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
	while ((n = recv(fd, scrap, sizeof scrap, 0)) > 0)
		;
	n = n == 0 || errno == ECONNRESET;
	close(fd);
	return n;
}

static void test_hostile(void)
{
	static const uint8_t data[FCVM_WIRE_MAX_DATA];
	int fd = dial();

	put(fd, FCVM_WIRE_OPEN, 0, 1, NULL, 0, FCVM_WIRE_PING);
	CHECK(dropped(fd));
	fd = dial();
	send(fd, "GET / HTTP/1.0\r\n\r\n", 18, MSG_NOSIGNAL);
	CHECK(dropped(fd));
	fd = dial_raw();
	put(fd, FCVM_WIRE_RESULT, 0, 1, NULL, 0, 0);
	CHECK(dropped(fd));
	fd = dial_raw();
	put(fd, FCVM_WIRE_OPEN, 0, 5, NULL, 0, FCVM_WIRE_PING);
	put(fd, FCVM_WIRE_OPEN, 0, 5, NULL, 0, FCVM_WIRE_PING);
	CHECK(dropped(fd));
	fd = dial_raw();
	spawn_raw(fd, 1, "sleep 20");
	for (int i = 0; i < 20; i++) /* the window, what a pipe takes, and more */
		put(fd, FCVM_WIRE_DATA, 0, 1, data, sizeof data, 0);
	CHECK(dropped(fd));
	fd = dial_raw();
	spawn_raw(fd, 1, "sleep 20");
	put(fd, FCVM_WIRE_CREDIT, 1, 1, NULL, 0, 1);
	CHECK(dropped(fd));
	/* A listener of somebody else's is none of this client's. */
	fd = dial_raw();
	put(fd, FCVM_WIRE_OPEN, 0, 1, "\1\0\0\0", 4, FCVM_WIRE_ACCEPT);
	{
		struct fcvm_wire_header h;

		CHECK(recv(fd, &h, sizeof h, MSG_WAITALL) == sizeof h &&
			h.type == FCVM_WIRE_RESULT && h.arg == EBADF);
	}
	/* Frames of streams that are not open are dropped; the client may stay. */
	put(fd, FCVM_WIRE_DATA, 0, 77, data, 100, 0);
	put(fd, FCVM_WIRE_CLOSE, 0, 77, NULL, 0, 0);
	close(fd);
	CHECK(run(agent, "exit 4") == 4);
}

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

/* One that starts printers and reads nothing. */
static void test_stalled(void)
{
	enum { PRINTERS = 40 };
	struct fcvm_node *other = client();
	long before = rss_kb();
	int fd = dial_raw();

	for (uint32_t i = 1; i <= PRINTERS; i++)
		spawn_raw(fd, i, "exec yes");
	usleep(300000);
	CHECK(run(agent, "exit 4") == 4);
	CHECK(other && run(other, "exit 5") == 5);
	printf("%d printers nobody reads: %ld KiB\n", PRINTERS, rss_kb() - before);
#ifndef SANITIZED
	CHECK(rss_kb() - before < PRINTERS * 256 + 16 * 1024);
#endif
	close(fd);
	CHECK(soon("! pgrep -x yes") || run(agent, "which pgrep") != 0);
	CHECK(other && run(other, "exit 5") == 5);
	fcvm_node_unref(other);
}

static void test_crowd(void)
{
	enum { N = 70 };
	int fd[N], let_in = 0;

	for (int i = 0; i < N; i++)
		fd[i] = dial();
	for (int i = 0; i < N; i++) {
		struct fcvm_wire_hello hello = {.version = FCVM_WIRE_VERSION};
		uint8_t answer[48];

		memcpy(hello.magic, "FCVMLINK", 8);
		put(fd[i], FCVM_WIRE_HELLO, 0, 0, &hello, sizeof hello, 0);
		let_in += recv(fd[i], answer, sizeof answer, MSG_WAITALL) == sizeof answer;
	}
	CHECK(let_in == 64);
	for (int i = 0; i < N; i++)
		close(fd[i]);
	for (int i = 0; i < 100 && let_in > 0; i++) {
		struct fcvm_until until = fcvm_until_ms(1000, -1);
		struct fcvm_node *n = NULL;

		/* Those that went are noticed in a moment. */
		if (fcvm_node_agent(&n, host, dial(), "client", 0, &until, &err) == 0)
			let_in = 0;
		fcvm_node_unref(n);
		usleep(10000);
	}
	CHECK(let_in == 0);
}

/* When the owner goes its clients' links end, whatever they wait for. */
static void *run_long(void *arg)
{
	return (void *)(intptr_t)run(arg, "sleep 15");
}

static void test_owner_goes(void)
{
	struct fcvm_node *n = client();
	pthread_t t;
	void *code;

	pthread_create(&t, NULL, run_long, n);
	usleep(100000);
	fcvm_node_unref(agent);
	pthread_join(t, &code);
	CHECK((intptr_t)code == -ECONNRESET);
	fcvm_node_unref(n);
}

static bool start_agent(void)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	int p[2], fd;

	CHECK(fcvm_fd_pair(p) == 0);
	if (fork() == 0) {
		char number[12];

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fcntl(p[1], F_SETFD, 0);
		snprintf(number, sizeof number, "%d", p[1]);
		execl(getenv("FCVM_AGENT"), "fcvm-agent", "--fd", number, NULL);
		_exit(127);
	}
	close(p[1]);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 100) == 0);
	return fcvm_node_agent(&agent, host, p[0], "agent", 0, &until, &err) == 0 &&
	       fcvm_node_serve(agent, fd, &err) == 0;
}

int main(void)
{
	if (!getenv("FCVM_AGENT")) {
		printf("skipped: FCVM_AGENT names no agent\n");
		return 77;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!mkdtemp(folder) || fcvm_fd_pipe(victim_go) < 0)
		return 1;
	snprintf(address.sun_path, sizeof address.sun_path, "%s/sock", folder);
	victim = fork();
	if (victim == 0)
		be_killed();
	if (fcvm_node_local(&host, &err) < 0 || !start_agent()) {
		fprintf(stderr, "%s\n", err.message);
		return 1;
	}
	test_killed();
	test_several();
	test_refused();
	test_frozen();
	test_hostile();
	test_stalled();
	test_crowd();
	test_owner_goes();
	fcvm_node_unref(host);
	fcvm_tree_remove(AT_FDCWD, folder);
	CHECK_DONE();
}
