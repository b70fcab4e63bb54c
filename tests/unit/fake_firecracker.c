/* SPDX-License-Identifier: MIT */
/*
 * Stands in for Firecracker where the real one cannot be made to fail. What it accepts is checked against the published
 * interface (firecracker-api.txt): a call, or a field, that is not in there is refused in the real one's words. Each call
 * and each connection is a line in ./requests.
 *
 * FAKE_AT=PATH[#N|~N]: at the (Nth, or first N) call of this path it does FAKE_DO: silent, fault, full, plain, empty,
 * garbage, long, headers, half, close, die. FAKE_START: deaf (says nothing of its socket, which comes late), stillborn,
 * nothing (no socket at all). FAKE_VSOCK=KIND[#N]: the first N calls to the guest (else all): eof, silent, wrong.
 * FAKE_AGENT=1: the guest calls the agent's port when it boots. FAKE_MEMORY: bytes that a saved memory file gets.
 * FAKE_VERSION: its version.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/json.h"

static const char *env(const char *name)
{
	return getenv(name) ? getenv(name) : "";
}

static void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void note(const char *fmt, ...)
{
	FILE *f = fopen("requests", "a");
	va_list args;

	va_start(args, fmt);
	if (f) {
		vfprintf(f, fmt, args);
		fclose(f);
	}
	va_end(args);
}

static void die(const char *words)
{
	fprintf(stderr, "2026-01-01T00:00:00.000000000 [anonymous-instance:main:ERROR] %s\n", words);
	fprintf(stderr, "2026-01-01T00:00:00.000000000 [anonymous-instance:main:ERROR] Firecracker exiting with error. "
		"exit_code=3\n");
	_exit(3);
}

static int listen_at(const char *path)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(at.sun_path, sizeof at.sun_path, "%s", path);
	if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 64) < 0)
		die("Address in use");
	return fd;
}

/* ---- what the interface says ---- */

/* The table's line of a call; NULL: there is none. */
static char *line_of(const char *method, const char *path)
{
	char *text = NULL, *save = NULL, *found = NULL, start[128];

	if (fcvm_file_read(AT_FDCWD, env("FAKE_API"), 1 << 20, &text, NULL) < 0)
		die("no FAKE_API");
	snprintf(start, sizeof start, "%s %s", method, strncmp(path, "/drives/", 8) == 0 ? "/drives/{drive_id}" : path);
	for (char *l = strtok_r(text, "\n", &save); l && !found; l = strtok_r(NULL, "\n", &save))
		if (strncmp(l, start, strlen(start)) == 0 && (!l[strlen(start)] || l[strlen(start)] == ' '))
			found = strdup(l + strlen(start));
	free(text);
	return found;
}

/* Each required field is there, and (by their number) no other than those that are known. */
static bool fits(const char *method, const char *path, const struct fcvm_json *body, char *why, size_t size)
{
	_cleanup_free_ char *line = line_of(method, path);
	char *save = NULL;
	size_t known = 0;

	snprintf(why, size, "Invalid request method and/or path: %s %s.", method, path);
	if (!line)
		return false;
	for (char *f = strtok_r(line, " ", &save); f; f = strtok_r(NULL, " ", &save)) {
		bool required = f[strlen(f) - 1] == '!';

		if (required)
			f[strlen(f) - 1] = 0;
		/* 1.12 knows one of the two names */
		if (strcmp(f, "track_dirty_pages") == 0 && strcmp(path, "/snapshot/load") == 0 && !*env("FAKE_NEW"))
			continue;
		known += fcvm_json_get(body, f) != NULL;
		snprintf(why, size, "missing field `%s`", f);
		if (required && !fcvm_json_get(body, f))
			return false;
	}
	snprintf(why, size, "An error occurred when deserializing the json body of a request: unknown field");
	return known == fcvm_json_count(body);
}

static void check_section(const struct fcvm_json *config, const char *name)
{
	const struct fcvm_json *section = fcvm_json_get(config, name);
	char path[64], why[200];

	snprintf(path, sizeof path, "/%s", name);
	if (section && !fits("PUT", path, section, why, sizeof why))
		die(why);
}

/* As far as it is that of one call each. */
static uint64_t read_config(const char *path)
{
	static const char *const sections[] = {"boot-source", "machine-config", "vsock", "entropy", "balloon"};
	struct fcvm_json *config = NULL;
	const struct fcvm_json *drives;
	char *text = NULL, why[200];
	size_t size, known = 0;

	if (fcvm_file_read(AT_FDCWD, path, 1 << 20, &text, &size) < 0 || fcvm_json_parse(text, size, &config, NULL) < 0)
		die("Configuration for VMM from one single json failed");
	for (unsigned i = 0; i < sizeof sections / sizeof *sections; i++) {
		check_section(config, sections[i]);
		known += fcvm_json_get(config, sections[i]) != NULL;
	}
	drives = fcvm_json_get(config, "drives");
	for (size_t i = 0; i < fcvm_json_count(drives); i++)
		if (!fits("PUT", "/drives/x", fcvm_json_at(drives, i), why, sizeof why))
			die(why);
	if (!drives || known + 1 != fcvm_json_count(config))
		die("unknown section");
	note("config %s\n", fcvm_json_print(config, 0));
	return fcvm_json_int(fcvm_json_get(config, "machine-config"), "mem_size_mib", 0) << 20;
}

/* ---- the guest ---- */

/* KIND#N: whether this is one of the first N times; without a number it always is. */
static bool is_turn(const char *text, unsigned nth)
{
	const char *number = strchr(text, '#');

	return !number || nth <= strtoul(number + 1, NULL, 10);
}

static void *serve_vsock(void *data)
{
	int l = (int)(intptr_t)data;

	for (unsigned n = 1;;) {
		const char *how = env("FAKE_VSOCK");
		int fd = accept4(l, NULL, NULL, SOCK_CLOEXEC);
		char text[64] = "";
		ssize_t got = read(fd, text, sizeof text - 1);

		text[got > 0 ? got : 0] = 0;
		note("vsock %.*s\n", (int)strcspn(text, "\n"), text);
		if (strcmp(text, "CONNECT 655\n") == 0) { /* somebody else than the agent */
			dprintf(fd, "OK 1073741825\nhello from port 655");
			continue;
		}
		if (strcmp(text, "CONNECT 5252\n") != 0) { /* nobody listens there */
			close(fd);
			continue;
		}
		if (!is_turn(how, n++))
			how = "";
		if (strncmp(how, "eof", 3) == 0)
			close(fd);
		else if (strncmp(how, "wrong", 5) == 0)
			dprintf(fd, "NO\n");
		else if (strncmp(how, "silent", 6) != 0)
			/* the stream's first bytes are right behind it */
			dprintf(fd, "OK 1073741824\nhello from port 5252");
	}
	return NULL;
}

static void call_agent_port(void)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "v.sock_5252"};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (connect(fd, (struct sockaddr *)&at, sizeof at) == 0)
		dprintf(fd, "hello from boot");
}

/* ---- HTTP ---- */

static void answer(int fd, int status, const char *body)
{
	dprintf(fd, "HTTP/1.1 %d \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n%s%s", status,
		*body ? "Content-Type: application/json\r\n" : "", status == 204 ? "\r\n" : "");
	if (status != 204)
		dprintf(fd, "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
}

static void fault(int fd, const char *words)
{
	char text[600];

	snprintf(text, sizeof text, "{\"fault_message\":\"%s\"}", words);
	answer(fd, 400, text);
}

/* False: the connection is done with. */
static bool misbehave(int fd, const char *how)
{
	if (strcmp(how, "silent") == 0)
		return true;
	if (strcmp(how, "die") == 0)
		die("Its last words.");
	if (strcmp(how, "fault") == 0)
		fault(fd, "Of its\\nown words");
	else if (strcmp(how, "full") == 0)
		fault(fd, "Cannot write the memory file: No space left on device (os error 28)");
	else if (strcmp(how, "plain") == 0)
		answer(fd, 500, "no\tJSON \033[31m at all");
	else if (strcmp(how, "empty") == 0)
		answer(fd, 503, "");
	else if (strcmp(how, "garbage") == 0)
		dprintf(fd, "\001\002\003 what is this\r\n\r\n");
	else if (strcmp(how, "half") == 0)
		dprintf(fd, "HTTP/1.1 200 \r\nContent-Length: 100\r\n\r\n{\"half");
	if (strcmp(how, "long") == 0)
		dprintf(fd, "HTTP/1.1 200 \r\nContent-Length: 100000000\r\n\r\n");
	if (strcmp(how, "headers") == 0)
		dprintf(fd, "HTTP/1.1 200 \r\n");
	while (strcmp(how, "long") == 0 || strcmp(how, "headers") == 0)
		if (dprintf(fd, "X-And-So: on and on and on\r\n") < 0)
			return false;
	return strcmp(how, "fault") == 0 || strcmp(how, "full") == 0 || strcmp(how, "plain") == 0 || strcmp(how, "empty") == 0;
}

static uint64_t memory;
static const char *state = "Not started";

static void make_file(const char *path, uint64_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, size) < 0)
		die("cannot write a snapshot");
	close(fd);
}

static void obey(int fd, const char *method, const char *path, const struct fcvm_json *body)
{
	char text[200];

	if (strcmp(path, "/version") == 0) {
		snprintf(text, sizeof text, "{\"firecracker_version\":\"%s\"}",
			*env("FAKE_VERSION") ? env("FAKE_VERSION") : "1.12.1");
		return answer(fd, 200, text);
	}
	if (strcmp(path, "/") == 0) {
		snprintf(text, sizeof text, "{\"app_name\":\"Firecracker\",\"id\":\"x\",\"state\":\"%s\",\"vmm_version\":\"1\"}",
			state);
		return answer(fd, 200, text);
	}
	if (strcmp(path, "/snapshot/create") == 0) {
		const char *size = env("FAKE_MEMORY");

		make_file(fcvm_json_string(body, "snapshot_path", ""), 100);
		make_file(fcvm_json_string(body, "mem_file_path", ""), *size ? strtoull(size, NULL, 10) : memory);
	} else if (strcmp(path, "/actions") == 0) {
		fprintf(stderr, "{\"utc_timestamp_ms\":1,\"fake\":true}\n");
	}
	answer(fd, 204, "");
}

/* PATH#N: the Nth of them only; PATH~N: the first N. */
static bool is_due(const char *path)
{
	static unsigned calls;
	const char *at = env("FAKE_AT");
	size_t n = strcspn(at, "#~");

	if (!n || strncmp(path, at, n) != 0 || path[n])
		return false;
	calls++;
	if (!at[n])
		return true;
	return at[n] == '#' ? calls == strtoul(at + n + 1, NULL, 10) : calls <= strtoul(at + n + 1, NULL, 10);
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void take(int fd, const char *method, const char *path, const char *text)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *body = NULL;
	char why[300];

	bool due;

	note("%s %s %s\n", method, path, text);
	if (*text && fcvm_json_parse(text, strlen(text), &body, NULL) < 0)
		return fault(fd, "no JSON");
	/* Connections are served by a thread each, and share what the machine is like. */
	pthread_mutex_lock(&lock);
	if (!fits(method, path, body, why, sizeof why)) {
		pthread_mutex_unlock(&lock);
		return fault(fd, why);
	}
	due = is_due(path);
	if (!due)
		obey(fd, method, path, body);
	pthread_mutex_unlock(&lock);
	if (due && !misbehave(fd, env("FAKE_DO")))
		shutdown(fd, SHUT_RDWR);
}

static void serve(int fd)
{
	char text[65536], method[16], path[200];
	size_t used = 0;

	note("connection\n");
	for (;;) {
		char *end, *length;
		ssize_t got = read(fd, text + used, sizeof text - 1 - used);
		size_t size;

		if (got <= 0)
			break;
		text[used += got] = 0;
		end = strstr(text, "\r\n\r\n");
		if (!end || sscanf(text, "%15s %199s", method, path) != 2)
			continue;
		length = strcasestr(text, "content-length:");
		size = length && length < end ? strtoul(length + 15, NULL, 10) : 0;
		if (used < end + 4 - text + size)
			continue;
		take(fd, method, path, end + 4);
		used = 0;
	}
	close(fd);
}

static void *serve_thread(void *data)
{
	serve((int)(intptr_t)data);
	return NULL;
}

int main(int argc, char **argv)
{
	const char *api = NULL, *config = NULL, *start = env("FAKE_START");
	pthread_t thread;
	int l, vsock;

	signal(SIGPIPE, SIG_IGN);
	for (int i = 1; i + 1 < argc; i++) {
		if (strcmp(argv[i], "--api-sock") == 0)
			api = argv[i + 1];
		if (strcmp(argv[i], "--config-file") == 0)
			config = argv[i + 1];
	}
	if (strcmp(start, "stillborn") == 0)
		die("It was not to be.");
	if (strcmp(start, "nothing") == 0)
		pause();
	if (strcmp(start, "deaf") == 0)
		usleep(50 * 1000);
	vsock = listen_at("v.sock");
	l = listen_at(api);
	if (strcmp(start, "deaf") != 0)
		fprintf(stderr, "2026-01-01T00:00:00.000000000 [x:main] Listening on API socket (\"%s\").\n", api);
	memory = config ? read_config(config) : strtoull(env("FAKE_MEMORY"), NULL, 10);
	state = config ? "Running" : state;
	pthread_create(&thread, NULL, serve_vsock, (void *)(intptr_t)vsock);
	if (config && *env("FAKE_AGENT"))
		call_agent_port();
	for (;;) {
		int fd = accept4(l, NULL, NULL, SOCK_CLOEXEC);

		pthread_create(&thread, NULL, serve_thread, (void *)(intptr_t)fd);
	}
}
