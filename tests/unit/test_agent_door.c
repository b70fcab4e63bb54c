/* SPDX-License-Identifier: MIT */
/*
 * Hosts that come in by the agent's door: one connection after another carries the same link. Over a Unix socket here;
 * vsock differs in its socket and in who may come (guest/door.c).
 */
#include <dirent.h>
#include <sys/resource.h>

#include "test_agent.h"

static void come_in(struct host *h)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};

	snprintf(to.sun_path, sizeof to.sun_path, "%s/door", folder);
	h->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	for (unsigned i = 0; i < 500 && connect(h->fd, (const struct sockaddr *)&to, sizeof to) < 0; i++)
		usleep(10000);
	fcvm_buf_done(&h->in);
	fcvm_buf_done(&h->out);
}

/* Another host, while the last one is still there; ret: the last one's connection. */
static int replace(struct host *h)
{
	int old = h->fd;

	come_in(h);
	return old;
}

static bool ended_there(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char scrap[4096];
	ssize_t n = 1;

	while (n > 0 && poll(&p, 1, 5000) > 0)
		n = recv(fd, scrap, sizeof scrap, MSG_DONTWAIT);
	close(fd);
	return n == 0 || (n < 0 && errno == ECONNRESET);
}

static struct host *open_door(void)
{
	struct host *h = calloc(1, sizeof *h);

	h->pid = fork();
	if (h->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl(agent_path, agent_path, "--listen", at("door"), NULL);
		_exit(127);
	}
	come_in(h);
	CHECK(hello(h, 77, 0, false));
	return h;
}

/* It has no other end than a signal. */
static void close_door(struct host *h)
{
	CHECK(waitpid(h->pid, NULL, WNOHANG) == 0);
	kill(h->pid, SIGTERM);
	stop(h);
	CHECK(access(at("door"), F_OK) < 0);
}

static uint32_t loop(struct host *h, const char *name, const char *what)
{
	uint32_t id = spawn(h, &(struct run){0}, (const char *[]){"sh", "-c", what, at(name), NULL});

	CHECK(ok(h, id));
	for (unsigned i = 0; i < 200 && !alive(at(name)); i++)
		usleep(10000);
	CHECK(alive(at(name)));
	return id;
}

static void end(const char *name)
{
	char *text;

	if (fcvm_file_read(AT_FDCWD, at(name), 100, &text, NULL) < 0)
		return;
	kill(atoi(text), SIGKILL);
	free(text);
}

static const char ticks[] = "echo $$ > $0; while echo x; do sleep 0.02; done";

/* The same generation: the last owner's lease ends. Another one: its programs go on, and nobody has their streams. */
static void test_generations(void)
{
	struct host *h = open_door();
	uint32_t id = loop(h, "first", ticks);
	int old;

	CHECK(ok(h, strings(h, FCVM_WIRE_MKDIR, 2, 0700, 2, at("lease"), NULL)));
	old = replace(h);
	CHECK(ended_there(old));
	usleep(100000);
	CHECK(alive(at("first")) && access(at("lease"), F_OK) == 0); /* until HELLO says what it was */
	CHECK(hello(h, 78, 5, false) && h->welcome.nonce == 78);
	settle(h, 100);
	CHECK(alive(at("first")) && access(at("lease"), F_OK) == 0 && h->s[id].bytes[1] == 0);
	CHECK(said(h, sh(h, "echo fresh"), "fresh\n"));

	loop(h, "second", ticks);
	CHECK(ok(h, strings(h, FCVM_WIRE_MKDIR, 2, 0700, 2, at("lease2"), NULL)));
	old = replace(h);
	CHECK(hello(h, 79, 0, true) && ended_there(old));
	CHECK(soon_dead(at("second")) && alive(at("first")));
	for (unsigned i = 0; i < 200 && access(at("lease2"), F_OK) == 0; i++)
		usleep(10000);
	CHECK(access(at("lease2"), F_OK) < 0 && access(at("lease"), F_OK) == 0);
	loop(h, "third", ticks);
	close_door(h);
	CHECK(soon_dead(at("third")) && alive(at("first")));
	end("first");
}

/* Taken over in the middle of a frame, in either direction. */
static void test_halves(void)
{
	struct host *h = open_door();
	uint8_t whole[16 + 100];
	uint32_t id;
	int old;

	for (unsigned cut = 1; cut < sizeof whole; cut += 7) {
		memset(whole, 'x', sizeof whole);
		fcvm_wire_put_header(whole, FCVM_WIRE_OPEN, 0, h->next, 100, FCVM_WIRE_PING);
		send_raw(h, whole, cut);
		if (cut % 2)
			usleep(1000);
		old = replace(h);
		CHECK(hello(h, 1000 + cut, 0, cut % 4 == 0) && h->welcome.nonce == 1000 + cut);
		CHECK(ok(h, open_op(h, FCVM_WIRE_PING, "p", 1)));
		close(old);
	}
	/* Much of a program's output was on its way, and a frame half written. */
	id = sh(h, "while echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; do :; done");
	usleep(300000);
	CHECK(!h->s[id].result);
	old = replace(h);
	CHECK(hello(h, 3000, 0, false) && h->welcome.nonce == 3000 && said(h, sh(h, "echo fine"), "fine\n"));
	close(old);
	/* Who comes next hears nothing of the last one's programs before he has said who he is. */
	loop(h, "ticker", "echo $$ > $0; while echo tick; do sleep 0.02; done");
	old = replace(h);
	usleep(200000);
	CHECK(recv(h->fd, &(char){0}, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN);
	close(old);
	/* What comes before HELLO is nobody's. */
	old = replace(h);
	id = open_op(h, FCVM_WIRE_PING, "p", 1);
	settle(h, 100);
	CHECK(!h->s[id].result && hello(h, 3001, 0, false));
	close(old);
	close_door(h);
}

/* User and system time in clock ticks (proc(5)). */
static long cpu_ticks(pid_t pid)
{
	char path[64], *text, *rest;
	unsigned long user = 0, kernel = 0;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	if (fcvm_file_read(AT_FDCWD, path, 4096, &text, NULL) < 0)
		return -1;
	rest = strrchr(text, ')');
	CHECK(rest && sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel) == 2);
	free(text);
	return (long)(user + kernel);
}

/* The carrier ends, as in a snapshot: programs go on, their output bounds itself, and nothing spins. */
static void test_nobody(void)
{
	struct host *h = open_door();
	long before;

	loop(h, "quiet", "echo $$ > $0; while :; do sleep 0.1; done");
	loop(h, "loud", "echo $$ > $0; while echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; do :; done");
	close(h->fd);
	usleep(500000);
	before = cpu_ticks(h->pid);
	usleep(1000000);
	CHECK(cpu_ticks(h->pid) - before <= 1);
	CHECK(waitpid(h->pid, NULL, WNOHANG) == 0 && alive(at("quiet")) && alive(at("loud")));
	if (!sanitised())
		CHECK(rss_kb(h->pid) < 3 * 1024);
	come_in(h);
	CHECK(hello(h, 80, 9, false) && said(h, sh(h, "echo back"), "back\n"));
	CHECK(alive(at("quiet")) && alive(at("loud")));
	/* Nobody again, and this time it is the end of the lease that comes. */
	loop(h, "leased", ticks);
	close(h->fd);
	usleep(100000);
	come_in(h);
	CHECK(hello(h, 81, 0, false) && soon_dead(at("leased")));
	end("quiet");
	end("loud");
	close_door(h);
}

static void test_frozen(void)
{
	struct host *h = open_door();
	uint32_t id;
	int old;

	loop(h, "ticking", "echo $$ > $0; while :; do echo tick; sleep 0.01; done");
	settle(h, 5);
	CHECK(ok(h, open_op(h, FCVM_WIRE_FREEZE, NULL, 0)));
	/* Who comes in finds it silent until HELLO. */
	old = replace(h);
	id = open_op(h, FCVM_WIRE_PING, "p", 1);
	CHECK(!take(h, 200) && !h->s[id].result);
	CHECK(hello(h, 82, 3, true) && said(h, sh(h, "echo thawed"), "thawed\n") && alive(at("ticking")));
	close(old);
	/* The same with nobody there meanwhile. */
	CHECK(ok(h, open_op(h, FCVM_WIRE_FREEZE, NULL, 0)));
	close(h->fd);
	usleep(50000);
	come_in(h);
	CHECK(hello(h, 83, 4, false) && said(h, sh(h, "echo thawed"), "thawed\n") && alive(at("ticking")));
	/* No machine's own carrier: */
	CHECK(result(h, open_op(h, FCVM_WIRE_POWER, "\0\0\0\0", 4))->code == EPERM);
	end("ticking");
	close_door(h);
}

/* ret: its lowest free descriptor. */
static unsigned count_fds(pid_t pid, unsigned *ret)
{
	char path[64];
	unsigned n = 0;
	bool used[64] = {false};
	struct dirent *e;
	DIR *d;

	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	d = opendir(path);
	while (d && (e = readdir(d))) {
		n += e->d_name[0] != '.';
		if (e->d_name[0] != '.' && atoi(e->d_name) < 64)
			used[atoi(e->d_name)] = true;
	}
	if (d)
		closedir(d);
	for (*ret = 0; *ret < 64 && used[*ret]; ++*ret)
		;
	return n;
}

static void test_many(void)
{
	struct host *h = open_door();
	unsigned lowest, before;
	struct rlimit few;
	int old;

	CHECK(ok(h, open_op(h, FCVM_WIRE_PING, "p", 1)));
	before = count_fds(h->pid, &lowest);
	for (unsigned i = 0; i < 100; i++) {
		old = replace(h);
		if (i % 3 == 0)
			send_raw(h, "\374\1", 2);
		else if (i % 3 == 1)
			CHECK(hello(h, 100 + i, i % 2, false) && ok(h, open_op(h, FCVM_WIRE_PING, "p", 1)));
		close(old);
	}
	CHECK(hello(h, 300, 0, true) && count_fds(h->pid, &lowest) == before);
	/* No descriptor is left for the next one but the last one's, which must be within the limit. */
	for (unsigned i = 0; i < 3 && count_fds(h->pid, &lowest) != lowest; i++) {
		old = replace(h);
		CHECK(hello(h, 390 + i, 0, false) && ended_there(old));
	}
	few = (struct rlimit){lowest, lowest};
	CHECK(prlimit(h->pid, RLIMIT_NOFILE, &few, NULL) == 0);
	for (unsigned i = 0; i < 5; i++) {
		old = replace(h);
		CHECK(hello(h, 400 + i, 0, false) && ended_there(old));
	}
	close_door(h);
}

/* What a node's KVM is good for is found out by the agent itself, under the name that leads to it from anywhere. */
static void test_probe(void)
{
	struct host *h = open_door();
	struct seen *s;
	uint32_t id = spawn(h, &(struct run){.flags = FCVM_WIRE_NULL_STDIN},
		(const char *[]){"/proc/self/exe", "--version", NULL});
	const char *line;

	s = ended(h, id);
	CHECK(s->exit == 0 && s->data[1].size > 11 &&
		memcmp(s->data[1].data + s->data[1].start, "fcvm-agent ", 11) == 0);
	id = spawn(h, &(struct run){.flags = FCVM_WIRE_NULL_STDIN},
		(const char *[]){"/proc/self/exe", "--probe-kvm", NULL});
	s = ended(h, id);
	line = s->data[1].data + s->data[1].start;
	CHECK(s->data[1].size > 5 && memchr(line, '\n', s->data[1].size) == line + s->data[1].size - 1);
	CHECK(s->exit < 256 && (access("/dev/kvm", F_OK) == 0 || s->exit == ENOENT));
	printf("KVM: %u, %.*s", s->exit, (int)s->data[1].size, line);
	close_door(h);
}

int main(void)
{
	static const struct test tests[] = {
		{"generations", test_generations}, {"halves", test_halves}, {"nobody", test_nobody},
		{"frozen", test_frozen}, {"many", test_many}, {"probe", test_probe},
	};

	return run_tests(tests, sizeof tests / sizeof *tests);
}
