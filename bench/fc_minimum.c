/* SPDX-License-Identifier: MIT */
/*
 * The least that can be done to have a Firecracker clone: forks it, has it load a snapshot with one request written by
 * hand, and calls the guest's agent over vsock. Prints the milliseconds from fork to the first byte of the answer ("OK
 * ..."), which the guest's kernel has caused, a line for each run; with -w to the agent's WELCOME.
 *
 *   fc_minimum [-w] FIRECRACKER SNAPSHOT FOLDER [RUNS]
 *
 * SNAPSHOT: a folder with `state` and `memory`; its vsock is the relative v.sock. FOLDER: where working folders are made.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "wire/wire.h"

static void die(const char *what)
{
	fprintf(stderr, "fc_minimum: %s: %s\n", what, errno ? strerror(errno) : "not what was expected");
	exit(1);
}

static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static pid_t start(const char *firecracker)
{
	pid_t pid = fork();

	if (pid != 0)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Its console, and on errors what it says. */
	dup2(open("/dev/null", O_RDWR), STDIN_FILENO);
	dup2(STDIN_FILENO, STDOUT_FILENO);
	execl(firecracker, "firecracker", "--api-sock", "api.sock", (char *)NULL);
	_exit(127);
}

/* A time-out on everything: who waits for ever measures nothing. */
static int connect_to(const char *path)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = 30};

	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0)
		return fd;
	close(fd);
	return -1;
}

/* It is bound a moment before it is listened on. */
static int await_api(int watch)
{
	char events[4096];
	int fd;

	if (access("api.sock", F_OK) < 0 && read(watch, events, sizeof events) <= 0)
		die("wait for the API socket");
	for (int tries = 0; (fd = connect_to("api.sock")) < 0; tries++) {
		if (tries == 10000)
			die("connect to the API socket");
		usleep(100);
	}
	return fd;
}

static void load(int fd, const char *snapshot)
{
	char body[1024], request[2048], answer[4096];
	int size = snprintf(body, sizeof body,
		"{\"snapshot_path\":\"%s/state\",\"mem_backend\":{\"backend_type\":\"File\","
		"\"backend_path\":\"%s/memory\"},\"resume_vm\":true}", snapshot, snapshot);
	ssize_t n;

	size = snprintf(request, sizeof request, "PUT /snapshot/load HTTP/1.1\r\nHost: localhost\r\n"
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", size, body);
	if (write(fd, request, size) != size)
		die("PUT /snapshot/load");
	n = read(fd, answer, sizeof answer - 1);
	answer[n > 0 ? n : 0] = 0;
	if (strncmp(answer, "HTTP/1.1 204", 12) != 0) {
		fprintf(stderr, "%s\n", answer);
		die("load the snapshot");
	}
}

/* Whether it was answered: the guest hears that its old connections are cut when it runs, and may cut this one, too. */
static int welcome(int fd)
{
	struct fcvm_wire_hello hello = {.magic = "FCVMLINK", .version = FCVM_WIRE_VERSION, .nonce = 1};
	char frame[sizeof(struct fcvm_wire_header) + sizeof hello], line[64];
	size_t n = 0;

	/* what is left of "OK 1073741824" */
	do {
		if (n == sizeof line || read(fd, line + n, 1) != 1)
			return 0;
	} while (line[n++] != '\n');
	fcvm_wire_put_header(frame, FCVM_WIRE_HELLO, 0, 0, sizeof hello, 0);
	memcpy(frame + sizeof(struct fcvm_wire_header), &hello, sizeof hello);
	return write(fd, frame, sizeof frame) == sizeof frame &&
		recv(fd, frame, sizeof frame, MSG_WAITALL) == sizeof frame && frame[1] == FCVM_WIRE_WELCOME;
}

/* A call whose number is that of a connection from before the snapshot is closed (1.12): the next one is not. */
static int call_agent(int greet)
{
	char request[32], byte;
	int size = snprintf(request, sizeof request, "CONNECT %u\n", FCVM_WIRE_VSOCK_PORT);

	for (int tries = 0; tries < 8; tries++) {
		int fd = connect_to("v.sock");

		if (fd >= 0 && write(fd, request, size) == size && read(fd, &byte, 1) == 1 && byte == 'O' &&
			(!greet || welcome(fd)))
			return fd;
		close(fd);
	}
	die("call the guest's agent");
	return -1;
}

static void run(const char *firecracker, const char *snapshot, const char *folder, int greet)
{
	char dir[256];
	double from;
	int watch = inotify_init1(IN_CLOEXEC), api, agent;
	pid_t pid;

	snprintf(dir, sizeof dir, "%s/fc_minimum-XXXXXX", folder);
	if (!mkdtemp(dir) || chdir(dir) < 0 || inotify_add_watch(watch, ".", IN_CREATE) < 0)
		die(dir);
	from = now_ms();
	pid = start(firecracker);
	api = await_api(watch);
	load(api, snapshot);
	agent = call_agent(greet);
	printf("%.3f\n", now_ms() - from);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	close(agent);
	close(api);
	close(watch);
	unlink("api.sock");
	unlink("v.sock");
	if (chdir("/") < 0 || rmdir(dir) < 0)
		die(dir);
}

int main(int argc, char **argv)
{
	int greet = argc > 1 && strcmp(argv[1], "-w") == 0, at = 1 + greet;
	int runs = argc > at + 3 ? atoi(argv[at + 3]) : 1;

	alarm(120); /* a guest that never answers is a failure, not a hang */
	if (argc < at + 3) {
		fprintf(stderr, "usage: fc_minimum [-w] FIRECRACKER SNAPSHOT FOLDER [RUNS]\n");
		return 2;
	}
	/* A VMM that has ended is an error of the next call. */
	signal(SIGPIPE, SIG_IGN);
	while (runs-- > 0)
		run(argv[at], argv[at + 1], argv[at + 2], greet);
	return 0;
}
