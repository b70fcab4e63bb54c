/* SPDX-License-Identifier: MIT */
/*
 * The host's end of a link against agents that break the rules: each is a thread with the other end
 * of a socketpair. Whatever they do must give an error in good time, and bounded memory.
 */
#include "test_link.h"

/* ---- the greeting ---- */

static void old_version(struct fake *f)
{
	welcome(f, 99);
	silent(f);
}

static void after_rubbish(struct fake *f)
{
	char rubbish[300];

	memset(rubbish, 0xfc, sizeof rubbish);
	put_raw(f, rubbish, sizeof rubbish);
	put(f, FCVM_WIRE_DATA, 1, 5, rubbish, sizeof rubbish, 0);
	welcome(f, FCVM_WIRE_VERSION);
	silent(f);
}

static void endless_rubbish(struct fake *f)
{
	static const char rubbish[4096] = "rubbish";

	while (put_raw(f, rubbish, sizeof rubbish))
		;
}

static void gone(struct fake *f)
{
	take(f, 5000);
	shutdown(f->fd, SHUT_RDWR);
}

static void test_greeting(void)
{
	static struct fake f;
	struct fcvm_node *n;
	int64_t start = fcvm_now_ns();

	n = meet(&f, silent, 300);
	CHECK(!n && err.code == ETIMEDOUT);
	part(&f, n);
	n = meet(&f, endless_rubbish, 300);
	CHECK(!n && err.code == ETIMEDOUT);
	part(&f, n);
	n = meet(&f, gone, 3000);
	CHECK(!n && err.code == ECONNRESET);
	part(&f, n);
	n = meet(&f, old_version, 3000);
	CHECK(!n && err.code == EPROTONOSUPPORT && strstr(err.message, "99"));
	part(&f, n);
	n = meet(&f, after_rubbish, 3000);
	CHECK(n && fcvm_node_generation(n) == 7);
	part(&f, n);
	/* Not the 9.6 s of all the deadlines; a loaded machine and a sanitizer take their share. */
	CHECK(fcvm_now_ns() - start < 9000000000ll);
}

/* ---- those that break the rules while a program runs ---- */

/* Answers SPAWN; the caller has the stream in f->h.stream. */
static bool started(struct fake *f)
{
	uint32_t pid = 42;

	welcome(f, FCVM_WIRE_VERSION);
	return take_type(f, FCVM_WIRE_OPEN) &&
	       put(f, FCVM_WIRE_RESULT, 0, f->h.stream, &pid, sizeof pid, 0);
}

static void no_frame(struct fake *f)
{
	if (started(f))
		put_raw(f, "no frame at all ...", 19);
	silent(f);
}

static void oversized(struct fake *f)
{
	uint8_t head[16];

	if (started(f)) {
		fcvm_wire_put_header(
			head, FCVM_WIRE_DATA, 1, f->h.stream, FCVM_WIRE_MAX_DATA + 1, 0);
		put_raw(f, head, sizeof head);
	}
	silent(f);
}

static void gives_up(struct fake *f)
{
	if (started(f))
		put(f, FCVM_WIRE_RESULT, 0, 0, "rules", 5, EPROTO);
	silent(f);
}

static void unknown_stream(struct fake *f)
{
	if (started(f))
		put(f, FCVM_WIRE_DATA, 1, f->h.stream + 1, "x", 1, 0);
	silent(f);
}

static void host_frame(struct fake *f)
{
	if (started(f))
		put(f, FCVM_WIRE_SIGNAL, 0, f->h.stream, NULL, 0, 9);
	silent(f);
}

static void second_result(struct fake *f)
{
	if (started(f))
		put(f, FCVM_WIRE_RESULT, 0, f->h.stream, NULL, 0, 0);
	silent(f);
}

static void early_data(struct fake *f)
{
	welcome(f, FCVM_WIRE_VERSION);
	if (take_type(f, FCVM_WIRE_OPEN))
		put(f, FCVM_WIRE_DATA, 1, f->h.stream, "x", 1, 0);
	silent(f);
}

static void early_exit(struct fake *f)
{
	welcome(f, FCVM_WIRE_VERSION);
	if (take_type(f, FCVM_WIRE_OPEN))
		put(f, FCVM_WIRE_EXIT, 0, f->h.stream, NULL, 0, 0);
	silent(f);
}

static void wrong_channel(struct fake *f)
{
	if (started(f))
		put(f, FCVM_WIRE_DATA, 9, f->h.stream, "x", 1, 0);
	silent(f);
}

static void after_eof(struct fake *f)
{
	if (started(f)) {
		put(f, FCVM_WIRE_EOF, 1, f->h.stream, NULL, 0, 0);
		put(f, FCVM_WIRE_DATA, 1, f->h.stream, "x", 1, 0);
	}
	silent(f);
}

static void too_much_credit(struct fake *f)
{
	if (started(f))
		put(f, FCVM_WIRE_CREDIT, 0, f->h.stream, NULL, 0,
			100); /* of two that it may have got */
	silent(f);
}

static void huge_credit(struct fake *f)
{
	if (started(f))
		put(f, FCVM_WIRE_CREDIT, 0, f->h.stream, NULL, 0, UINT32_MAX);
	silent(f);
}

static void two_exits(struct fake *f)
{
	if (started(f)) {
		put(f, FCVM_WIRE_EXIT, 0, f->h.stream, NULL, 0, 0);
		put(f, FCVM_WIRE_EXIT, 0, f->h.stream, NULL, 0, 1);
	}
	silent(f);
}

static void no_pid(struct fake *f)
{
	welcome(f, FCVM_WIRE_VERSION);
	if (take_type(f, FCVM_WIRE_OPEN))
		put(f, FCVM_WIRE_RESULT, 0, f->h.stream, "abc", 3, 0);
	silent(f);
}

static void zero_data(struct fake *f)
{
	if (started(f))
		for (int i = 0; i < 1000; i++)
			put(f, FCVM_WIRE_DATA, 1, f->h.stream, NULL, 0, 0);
	put(f, FCVM_WIRE_CLOSE, 0, f->h.stream, NULL, 0, 0);
	silent(f);
}

static int exec(struct fcvm_node *n, int timeout_ms, struct fcvm_output *o)
{
	static const char *const argv[] = {"/bin/true", NULL};
	struct fcvm_until until = fcvm_until_ms(timeout_ms, -1);

	return fcvm_node_exec(
		n, &(struct fcvm_spawn){.argv = argv}, "in", 2, 1000, &until, o, &err);
}

static void test_breakers(void)
{
	static void (*const breakers[])(struct fake *) = {no_frame, oversized, unknown_stream,
		host_frame, second_result, early_data, early_exit, wrong_channel, after_eof,
		too_much_credit, huge_credit, zero_data, gives_up};
	static struct fake f;

	for (unsigned i = 0; i < sizeof breakers / sizeof *breakers; i++) {
		struct fcvm_node *n = meet(&f, breakers[i], 3000);
		struct fcvm_output o;
		int64_t start = fcvm_now_ns();
		int k = -1;

		if (n)
			k = exec(n, 5000, &o);
		CHECK(n && k == -ECONNRESET);
		if (k != -ECONNRESET)
			fprintf(stderr, "breaker %u: %d %s\n", i, k, err.message);
		if (k == 0)
			fcvm_output_done(&o);
		CHECK(fcvm_now_ns() - start < 1000000000);
		part(&f, n);
	}
}

/* Some oddities harm nobody but the one operation. */
static void test_oddities(void)
{
	static struct fake f;
	struct fcvm_node *n = meet(&f, no_pid, 3000);
	struct fcvm_output o;

	CHECK(n && exec(n, 5000, &o) == -EPROTO);
	part(&f, n);
	n = meet(&f, two_exits, 3000);
	if (n && exec(n, 5000, &o) == 0)
		fcvm_output_done(&o);
	else
		CHECK(err.code == ECONNRESET);
	part(&f, n);
}

/* An EXIT without the ends of its streams ends them. */
static void exit_only(struct fake *f)
{
	if (started(f)) {
		put(f, FCVM_WIRE_DATA, 1, f->h.stream, "some", 4, 0);
		put(f, FCVM_WIRE_EXIT, 0, f->h.stream, NULL, 0, 0x100 + 9);
	}
	silent(f);
}

static void test_exit_only(void)
{
	static struct fake f;
	struct fcvm_node *n = meet(&f, exit_only, 3000);
	struct fcvm_output o;

	if (n && exec(n, 5000, &o) == 0) {
		CHECK(o.exit.signal == 9 && strcmp(o.out, "some") == 0);
		fcvm_output_done(&o);
	} else {
		CHECK(!"exit only");
	}
	part(&f, n);
}

/* ---- memory ---- */

static size_t flooded; /* written by the fake before its end */

static void flood(struct fake *f)
{
	static const char data[FCVM_WIRE_MAX_DATA];

	flooded = 0;
	if (started(f))
		while (flooded < 1 << 30 &&
			put(f, FCVM_WIRE_DATA, 1, f->h.stream, data, sizeof data, 0))
			flooded += sizeof data;
}

/* Over its credit, to somebody who does not read. */
static void test_flood(void)
{
	static const char *const argv[] = {"/bin/true", NULL};
	static struct fake f;
	struct fcvm_node *n = meet(&f, flood, 3000);
	struct fcvm_until until = fcvm_until_ms(5000, -1);
	struct fcvm_process *p = NULL;
	struct fcvm_exit e;

	CHECK(n && fcvm_node_spawn(n, &(struct fcvm_spawn){.argv = argv}, &until, &p, &err) == 0);
	CHECK(p && fcvm_process_wait(p, &until, &e, &err) == -ECONNRESET &&
		strstr(err.message, "credit"));
	fcvm_process_free(p);
	part(&f, n);
	CHECK(flooded < 4 << 20);
}

/* Never stops sending what is allowed. */
static void chatter(struct fake *f)
{
	static uint8_t frames[4096 * 16];

	if (!started(f))
		return;
	for (int i = 0; i < 4096; i++)
		fcvm_wire_put_header(frames + i * 16, FCVM_WIRE_CREDIT, 0, f->h.stream, 0, 0);
	while (put_raw(f, frames, sizeof frames))
		;
}

static void *part_soon(void *arg)
{
	struct fake *f = arg;

	for (int i = 0; i < 50 && !f->late; i++)
		usleep(100000);
	shutdown(f->fd, SHUT_RDWR);
	return NULL;
}

static void test_chatter(void)
{
	static struct fake f;
	struct fcvm_node *n = meet(&f, chatter, 3000);
	struct fcvm_output o;
	pthread_t t;

	pthread_create(&t, NULL, part_soon, &f);
	CHECK(n && exec(n, 300, &o) == -ETIMEDOUT);
	f.late = true;
	pthread_join(t, NULL);
	part(&f, n);
}

/* Takes the SPAWN, then nothing any more. */
static void deaf(struct fake *f)
{
	if (started(f))
		usleep(1500000);
}

static void test_deaf(void)
{
	static const char *const argv[] = {"/bin/true", NULL};
	static char data[65536];
	static struct fake f;
	struct fcvm_node *n = meet(&f, deaf, 3000);
	struct fcvm_until until = fcvm_until_ms(5000, -1);
	struct fcvm_process *p = NULL;
	struct fcvm_output o;
	size_t sent = 0;
	int64_t start = fcvm_now_ns();
	ssize_t k;

	CHECK(n && fcvm_node_spawn(n, &(struct fcvm_spawn){.argv = argv}, &until, &p, &err) == 0);
	if (!p)
		return;
	for (int i = 0; i < 50; i++) {
		while ((k = send(fcvm_process_fd(p, 0), data, sizeof data,
				MSG_DONTWAIT | MSG_NOSIGNAL)) > 0)
			sent += k;
		usleep(2000);
	}
	CHECK(sent < 2 << 20); /* the window, and what the sockets hold */
	/* Each gives up in time; what they leave behind is bounded too. */
	for (int i = 0; i < 50; i++)
		CHECK(exec(n, 10, &o) == -ETIMEDOUT);
	CHECK(fcvm_now_ns() - start < 4000000000ll);
	fcvm_process_free(p);
	part(&f, n);
}

/* ---- the reactor ---- */

static int references;

static void count_ref(void *data)
{
	references++;
}

static void count_unref(void *data)
{
	references = -1;
}

/* Adding that fails leaves the object alone: its owner does. */
static void test_reactor(void)
{
	static const struct fcvm_source_class class = {NULL, count_ref, count_unref};
	struct fcvm_source *s = NULL;
	struct fcvm_reactor *r;
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC); /* epoll takes no files */

	CHECK(fcvm_reactor_new(&r) == 0);
	references = 0;
	CHECK(fcvm_reactor_add(r, fd, EPOLLIN, &class, NULL, 0, &s) == -EPERM && !s);
	CHECK(references == 0);
	fcvm_reactor_free(r);
	close(fd);
}

int main(void)
{
	if (fcvm_node_local(&host, &err) < 0)
		return 1;
	test_reactor();
	test_greeting();
	test_breakers();
	test_oddities();
	test_exit_only();
	test_flood();
	test_chatter();
	test_deaf();
	fcvm_node_unref(host);
	CHECK_DONE();
}
