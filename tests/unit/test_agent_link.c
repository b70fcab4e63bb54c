/* SPDX-License-Identifier: MIT */
/* The agent's end of a link: who owns it, what breaks its rules, freezing, identity (test_agent.c has the rest). */
#include "test_agent.h"

static void test_takeover(void)
{
	struct host *h = start();
	const char *loop = "echo $$ > $0; while echo x; do sleep 0.02; done";
	uint32_t id;

	id = spawn(h, &(struct run){0}, (const char *[]){"sh", "-c", loop, at("leased"), NULL});
	CHECK(ok(h, id));
	id = spawn(h, &(struct run){.flags = FCVM_WIRE_DETACH},
		(const char *[]){"sh", "-c", loop, at("detached"), NULL});
	CHECK(ok(h, id));
	CHECK(said(h, spawn(h, &(struct run){0}, (const char *[]){"sh", "-c",
				"sleep 1000 & echo $! > $0", at("left"), NULL}), ""));
	CHECK(ok(h, strings(h, FCVM_WIRE_MKDIR, 2, 0700, 2, at("lease"), NULL)));
	settle(h, 100);
	/* Another generation: all go on, and are nobody's now. */
	CHECK(hello(h, 78, 5, false) && h->welcome.generation == 0);
	usleep(200000);
	CHECK(alive(at("leased")) && alive(at("detached")) && access(at("lease"), F_OK) == 0);
	CHECK(said(h, sh(h, "echo fresh"), "fresh\n"));
	/* The same one: the lease of the last owner ends; what was there before is not of it. */
	id = spawn(h, &(struct run){0}, (const char *[]){"sh", "-c", loop, at("second"), NULL});
	CHECK(ok(h, id));
	CHECK(said(h, spawn(h, &(struct run){0}, (const char *[]){"sh", "-c",
				"sleep 1000 & echo $! > $0", at("left2"), NULL}), ""));
	CHECK(ok(h, strings(h, FCVM_WIRE_MKDIR, 2, 0700, 2, at("lease2"), NULL)));
	settle(h, 50);
	CHECK(alive(at("second")) && alive(at("left2")));
	CHECK(hello(h, 79, 0, true));
	CHECK(soon_dead(at("second")) && soon_dead(at("left2")));
	for (unsigned i = 0; i < 200 && access(at("lease2"), F_OK) == 0; i++)
		usleep(10000);
	CHECK(access(at("lease2"), F_OK) < 0);
	CHECK(alive(at("leased")) && alive(at("detached")) && alive(at("left")));
	id = spawn(h, &(struct run){0}, (const char *[]){"sh", "-c", loop, at("third"), NULL});
	CHECK(ok(h, id));
	settle(h, 30);
	stop(h);
	CHECK(soon_dead(at("third")) && alive(at("detached")));
	for (unsigned i = 0; i < 3; i++) {
		char *text;

		if (fcvm_file_read(AT_FDCWD, at((const char *[]){"leased", "detached", "left"}[i]), 100,
				&text, NULL) == 0) {
			kill(atoi(text), SIGKILL);
			free(text);
		}
	}
}

/* A predecessor died in the middle of a frame, at every place of it. */
static void test_resync(void)
{
	struct host *h = start();
	uint8_t whole[16 + 100];
	uint32_t id;

	for (unsigned cut = 1; cut < 16 + 100; cut += 7) {
		memset(whole, 'x', sizeof whole);
		fcvm_wire_put_header(whole, FCVM_WIRE_OPEN, 0, h->next, 100, FCVM_WIRE_PING);
		send_raw(h, whole, cut);
		if (cut % 2)
			usleep(1000);
		CHECK(hello(h, 1000 + cut, 0, true));
		settle(h, 0);
		CHECK(h->welcome.nonce == 1000 + cut && !h->s[1].result);
		id = open_op(h, FCVM_WIRE_PING, "p", 1);
		CHECK(ok(h, id));
	}
	/* The header of a POWER whose payload never came must not be filled up with zeros and obeyed, nor any
	 * other; a ping tells: its result must not come. */
	fcvm_wire_put_header(whole, FCVM_WIRE_OPEN, 0, h->next, 4, FCVM_WIRE_PING);
	send_raw(h, whole, 16);
	usleep(20000);
	send_raw(h, "\0\0\0\0\0\0\0\0", 8);
	settle(h, 100);
	CHECK(!h->s[h->next].result);
	CHECK(hello(h, 5, 0, true));
	/* A frame that promises the most and never comes. */
	fcvm_wire_put_header(whole, FCVM_WIRE_OPEN, 0, 7, FCVM_WIRE_MAX_PAYLOAD, FCVM_WIRE_PING);
	send_raw(h, whole, 16);
	CHECK(hello(h, 6, 0, true));
	CHECK(ok(h, open_op(h, FCVM_WIRE_PING, "p", 1)));
	stop(h);
}

static void test_hostile(void)
{
	struct host *h = start();
	uint8_t *junk = malloc(1 << 20);

	srand(3);
	for (unsigned round = 0; round < 5; round++) {
		for (unsigned i = 0; i < 1 << 20; i++)
			junk[i] = round < 4 ? rand() : rand() % 12 ? 0xfc : rand() % 12;
		send_raw(h, junk, 1 << 20);
		CHECK(hello(h, 100 + round, 0, true));
		CHECK(ok(h, open_op(h, FCVM_WIRE_PING, "p", 1)));
	}
	/* Valid heads, random insides: random types, ids and operations, none of them POWER or IDENTITY. */
	for (unsigned i = 0; i < 3000; i++) {
		uint32_t op = rand() % 20;
		size_t n = rand() % 60;

		if (op == FCVM_WIRE_POWER || op == FCVM_WIRE_IDENTITY || op == FCVM_WIRE_CLOCK ||
			op == FCVM_WIRE_FREEZE)
			op = FCVM_WIRE_SPAWN;
		memset(junk, rand() % 3, n);
		if (rand() % 2)
			frame(h, FCVM_WIRE_OPEN, 0, 1000 + i, junk, n, op);
		else
			frame(h, 2 + rand() % 10, rand() % 16, 1000 + rand() % (i + 1), junk, n, rand());
		if (i % 50 == 0)
			CHECK(hello(h, i, 0, true));
		if (i % 10 == 0)
			take(h, 0);
	}
	CHECK(hello(h, 9, 0, true));
	CHECK(said(h, sh(h, "echo fine"), "fine\n"));
	if (!sanitised())
		CHECK(rss_kb(h->pid) < 4 * 1024);
	free(junk);
	stop(h);
}

/* Well formed, but against the rules of wire.h. */
static void test_rules(void)
{
	struct host *h = start();
	uint8_t *junk = calloc(1, 65536);
	uint32_t id;

	/* More than the window: the link is out of trust until HELLO. */
	id = spawn(h, &(struct run){0}, (const char *[]){"sleep", "1000", NULL});
	CHECK(ok(h, id));
	for (unsigned i = 0; i < 8; i++)
		frame(h, FCVM_WIRE_DATA, 0, id, junk, 65536, 0);
	id = open_op(h, FCVM_WIRE_PING, "p", 1);
	settle(h, 200);
	CHECK(!h->s[id].result);
	CHECK(h->s[0].result && h->s[0].code == EPROTO);
	CHECK(hello(h, 10, 0, true));
	/* Ids that do not grow. */
	CHECK(ok(h, open_op(h, FCVM_WIRE_PING, "p", 1)));
	h->next = 1;
	h->s[1].result = false;
	open_op(h, FCVM_WIRE_PING, "p", 1);
	settle(h, 100);
	CHECK(!h->s[1].result);
	CHECK(hello(h, 11, 0, true));
	/* Credit nobody owed. */
	id = sh(h, "sleep 1000");
	CHECK(ok(h, id));
	frame(h, FCVM_WIRE_CREDIT, 1, id, NULL, 0, UINT32_MAX);
	id = open_op(h, FCVM_WIRE_PING, "p", 1);
	settle(h, 100);
	CHECK(!h->s[id].result);
	CHECK(hello(h, 12, 0, true));
	CHECK(said(h, sh(h, "echo fine"), "fine\n"));
	if (!sanitised())
		CHECK(rss_kb(h->pid) < 4 * 1024);
	free(junk);
	stop(h);
}

/* Honest windows of many streams are more than the agent holds: it ends some of those that hold most, the link goes on. */
static void test_windows(void)
{
	enum { N = 200 };
	struct host *h = start();
	uint8_t *data = calloc(1, 65536);
	uint32_t id[N], modest = spawn(h, &(struct run){0}, (const char *[]){"sleep", "1000", NULL});
	unsigned closed = 0;

	CHECK(ok(h, modest));
	for (unsigned i = 0; i < N; i++) {
		id[i] = spawn(h, &(struct run){0}, (const char *[]){"sleep", "1000", NULL});
		CHECK(ok(h, id[i]));
		for (unsigned j = 0; j < FCVM_WIRE_WINDOW / 65536; j++)
			frame(h, FCVM_WIRE_DATA, 0, id[i], data, 65536, 0);
		/* Pipes hold 64 KiB: 170 of these leave room for 128 KiB beyond that. */
		for (unsigned j = 0; i == 169 && j < 7; j++)
			frame(h, FCVM_WIRE_DATA, 0, modest, data, 32768, 0);
	}
	CHECK(said(h, sh(h, "echo fine"), "fine\n"));
	for (unsigned i = 0; i < N; i++)
		closed += h->s[id[i]].closed;
	CHECK(closed > 0 && closed < N / 2 && !h->s[modest].closed);
	free(data);
	stop(h);
}

/* The host sends and never reads: bounded memory, no busy loop, and all is answered once it reads. */
static void test_never_reads(void)
{
	struct host *h = start();
	uint8_t whole[16 + 4096];
	unsigned sent = 0, got = 0;
	size_t offset = 0;

	CHECK(ok(h, sh(h, "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done")));
	memset(whole, 'p', sizeof whole);
	for (unsigned idle = 0; idle < 20 && sent < 20000;) {
		ssize_t n;

		if (offset == 0)
			fcvm_wire_put_header(whole, FCVM_WIRE_OPEN, 0, h->next + sent, 4096,
				FCVM_WIRE_PING);
		n = send(h->fd, whole + offset, sizeof whole - offset, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0) {
			idle++;
			usleep(10000);
			continue;
		}
		idle = 0;
		offset += n;
		if (offset == sizeof whole)
			sent++, offset = 0;
	}
	CHECK(sent < 2000);
	if (!sanitised())
		CHECK(rss_kb(h->pid) < 3 * 1024);
	send_raw(h, whole + offset, offset ? sizeof whole - offset : 0);
	sent += offset > 0;
	for (unsigned i = 0; i < 3000 && got < sent; i++) {
		take(h, 1000);
		for (got = 0; got < sent && h->s[(h->next + got) % STREAMS].result; got++)
			;
	}
	CHECK(got == sent);
	stop(h);
}

static void test_freeze(void)
{
	struct host *h = start();
	uint32_t id = sh(h, "while :; do echo tick; sleep 0.01; done"), other;
	size_t bytes;

	CHECK(ok(h, id));
	settle(h, 5);
	CHECK(ok(h, open_op(h, FCVM_WIRE_FREEZE, NULL, 0)));
	CHECK(h->in.size == 0);
	bytes = h->s[id].bytes[1];
	other = open_op(h, FCVM_WIRE_PING, "p", 1);
	CHECK(!take(h, 200) && h->s[id].bytes[1] == bytes && !h->s[other].result);
	CHECK(ok(h, open_op(h, FCVM_WIRE_THAW, NULL, 0)));
	CHECK(h->s[other].result);
	for (unsigned i = 0; i < 50 && h->s[id].bytes[1] == bytes; i++)
		take(h, 100);
	CHECK(h->s[id].bytes[1] > bytes);
	CHECK(ok(h, open_op(h, FCVM_WIRE_FREEZE, NULL, 0)));
	CHECK(hello(h, 80, 1, true) && said(h, sh(h, "echo thawed"), "thawed\n"));
	/* Nothing but an end of the machine's own port may end the machine. */
	CHECK(result(h, open_op(h, FCVM_WIRE_POWER, "\0\0\0\0", 4))->code == EPERM);
	stop(h);
}

/* In a private /etc and host name; the clock is left alone (0). */
static void identity_in_private(void)
{
	struct fcvm_wire_identity who = {.generation = 42};
	struct fcvm_wire_writer w;
	struct host *h;
	uint8_t payload[200];
	uint32_t id;
	char name[64] = "", *text = NULL;

	h = start();
	memset(who.seed, 7, sizeof who.seed);
	w = fcvm_wire_writer(payload, sizeof payload);
	fcvm_wire_put_bytes(&w, &who, sizeof who);
	fcvm_wire_put_string(&w, "clone-7");
	fcvm_wire_put_string(&w, "0123456789abcdef0123456789abcdef");
	id = open_op(h, FCVM_WIRE_IDENTITY, payload, w.at - payload);
	CHECK(ok(h, id));
	gethostname(name, sizeof name);
	CHECK(strcmp(name, "clone-7") == 0);
	CHECK(fcvm_file_read(AT_FDCWD, "/etc/machine-id", 100, &text, NULL) == 0 &&
		strcmp(text, "0123456789abcdef0123456789abcdef\n") == 0);
	free(text);
	CHECK(hello(h, 90, 42, false) && h->welcome.generation == 42);
	CHECK(result(h, open_op(h, FCVM_WIRE_IDENTITY, "x", 1))->code == EINVAL);
	stop(h);
}

static void test_identity(void)
{
	pid_t pid = fork();
	int status = 0;

	if (pid == 0) {
		check_failed = 0;
		if (unshare(CLONE_NEWUTS | CLONE_NEWNS) < 0 ||
			mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
			mount("tmpfs", "/etc", "tmpfs", 0, NULL) < 0)
			_exit(77);
		identity_in_private();
		_exit(check_failed != 0);
	}
	waitpid(pid, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		printf("identity: not checked, needs root and namespaces\n");
	else
		CHECK(status == 0);
}

int main(void)
{
	static const struct test tests[] = {
		{"takeover", test_takeover}, {"resync", test_resync}, {"hostile", test_hostile},
		{"rules", test_rules}, {"windows", test_windows},
		{"never reads", test_never_reads}, {"freeze", test_freeze}, {"identity", test_identity},
	};

	return run_tests(tests, sizeof tests / sizeof *tests);
}
