/* SPDX-License-Identifier: MIT */
/* LIBS: node wire base */
/*
 * The host's end of a link against agents that break the rules: each is a thread with the other end
 * of a socketpair. Whatever they do must give an error in good time, and bounded memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fd.h"
#include "base/tree.h"
#include "check.h"
#include "node/node.h"
#include "node/reactor.h"
#include "wire/wire.h"

static struct fcvm_node *host;
static struct fcvm_err err;

/* ---- the fake ---- */

struct fake {
	int fd;
	pthread_t thread;
	void (*behave)(struct fake *f);
	struct fcvm_buf in;
	struct fcvm_wire_header h; /* of the last frame taken */
	uint8_t payload[FCVM_WIRE_MAX_PAYLOAD];
	uint64_t generation;
	_Atomic bool late;
};

static bool put_raw(struct fake *f, const void *data, size_t size)
{
	struct fcvm_until until = fcvm_until_ms(5000, -1);

	return fcvm_fd_send_until(f->fd, data, size, &until) == 0;
}

static bool put(struct fake *f, unsigned type, unsigned channel, uint32_t stream,
	const void *payload, size_t size, uint32_t arg)
{
	uint8_t head[16];

	fcvm_wire_put_header(head, type, channel, stream, size, arg);
	return put_raw(f, head, sizeof head) && put_raw(f, payload, size);
}

/* The next frame into f->h and f->payload; false at the end, or after `ms`. */
static bool take(struct fake *f, int ms)
{
	struct fcvm_until until = fcvm_until_ms(ms, -1);

	for (;;) {
		struct pollfd p = {.fd = f->fd, .events = POLLIN};
		const uint8_t *payload;
		size_t skip;
		ssize_t n;
		int k = fcvm_wire_parse(f->in.data ? fcvm_buf_head(&f->in) : "", f->in.size, &f->h,
			&payload, &skip);

		if (k > 0) {
			if (f->h.length)
				memcpy(f->payload, payload, f->h.length);
			fcvm_buf_consume(&f->in, k);
			return true;
		}
		if (k < 0 || fcvm_until_poll(&until, &p, 1) < 0)
			return false;
		n = recv(f->fd, fcvm_buf_reserve(&f->in, 65536), 65536, 0);
		if (n <= 0)
			return false;
		fcvm_buf_grew(&f->in, n);
	}
}

static bool take_type(struct fake *f, unsigned type)
{
	while (take(f, 10000))
		if (f->h.type == type)
			return true;
	return false;
}

static void welcome(struct fake *f, uint32_t version)
{
	struct fcvm_wire_hello hello;

	if (!take_type(f, FCVM_WIRE_HELLO))
		return;
	memcpy(&hello, f->payload, sizeof hello);
	hello.version = version;
	hello.generation = f->generation;
	put(f, FCVM_WIRE_WELCOME, 0, 0, &hello, sizeof hello, 0);
}

static void *run_fake(void *arg)
{
	struct fake *f = arg;

	f->behave(f);
	return NULL;
}

/* A link to one that behaves so, or NULL. */
static struct fcvm_node *meet(struct fake *f, void (*behave)(struct fake *), int timeout_ms)
{
	struct fcvm_until until = fcvm_until_ms(timeout_ms, -1);
	struct fcvm_node *n = NULL;
	int p[2];

	CHECK(fcvm_fd_pair(p) == 0);
	memset(f, 0, sizeof *f);
	f->fd = p[1];
	f->behave = behave;
	f->generation = 7;
	pthread_create(&f->thread, NULL, run_fake, f);
	fcvm_node_agent(&n, host, p[0], "fake", 0, &until, &err);
	return n;
}

static void part(struct fake *f, struct fcvm_node *n)
{
	fcvm_node_unref(n);
	shutdown(f->fd, SHUT_RDWR);
	pthread_join(f->thread, NULL);
	close(f->fd);
	fcvm_buf_done(&f->in);
}

/* ---- the greeting ---- */

static void silent(struct fake *f)
{
	while (take(f, 10000))
		;
}

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

/* ---- replies ---- */

/* Guards the three below, and the fake's last frame. */
static pthread_mutex_t reply_lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t reply[256];
static size_t reply_size;
static uint32_t reply_error;

static void reply_so(struct fake *f)
{
	welcome(f, FCVM_WIRE_VERSION);
	while (take(f, 10000)) {
		pthread_mutex_lock(&reply_lock);
		if (f->h.type == FCVM_WIRE_OPEN)
			put(f, FCVM_WIRE_RESULT, 0, f->h.stream, reply, reply_size, reply_error);
		pthread_mutex_unlock(&reply_lock);
	}
}

static void set_reply(int byte, size_t size, uint32_t error)
{
	pthread_mutex_lock(&reply_lock);
	memset(reply, byte, sizeof reply);
	reply_size = size;
	reply_error = error;
	pthread_mutex_unlock(&reply_lock);
}

/* The operation of the fake's last frame, the first bytes of its payload to `first`. */
static unsigned last_frame(struct fake *f, void *first, size_t size)
{
	unsigned op;

	pthread_mutex_lock(&reply_lock);
	op = f->h.arg;
	memcpy(first, f->payload, size);
	pthread_mutex_unlock(&reply_lock);
	return op;
}

static void test_replies(void)
{
	static struct fake f;
	struct fcvm_node *n = meet(&f, reply_so, 3000);
	struct fcvm_node_info info;
	struct fcvm_node_stat st;
	struct fcvm_process *p;
	int fd;

	if (!n)
		return;
	set_reply(0, 3, 0);
	CHECK(fcvm_node_stat(n, "/x", NULL, &st, &err) == -EPROTO && strstr(err.message, "/x"));
	set_reply(0x9b, sizeof(struct fcvm_wire_info), 0);
	CHECK(fcvm_node_info(n, NULL, &info, &err) == 0);
	CHECK(info.hostname[sizeof info.hostname - 1] == 0 &&
		info.version[sizeof info.version - 1] == 0);
	CHECK(fcvm_node_ping(n, NULL, &err) == -EPROTO);
	set_reply('\033', 30, ENOENT);
	CHECK(fcvm_node_remove(n, "/x", NULL, &err) == -ENOENT && !strchr(err.message, '\033'));
	set_reply('\033', 30, UINT32_MAX);
	CHECK(fcvm_node_remove(n, "/x", NULL, &err) == -EIO);
	set_reply(0, 0, UINT32_MAX);
	CHECK(fcvm_node_connect(n, "unix:/x", NULL, &fd, &err) == -EIO);
	set_reply(0, 0, EACCES);
	CHECK(fcvm_node_get(n, "/x", NULL, &p, &err) == -EACCES && strstr(err.message, "/x"));
	part(&f, n);
}

static void test_identity(void)
{
	static const char id[] = "0123456789abcdef0123456789abcdef";
	static struct fake f;
	struct fcvm_node *n = meet(&f, reply_so, 3000);
	uint8_t payload[300];
	struct fcvm_wire_identity head;
	struct fcvm_wire_reader r;

	if (!n)
		return;
	set_reply(0, 0, 0);
	CHECK(fcvm_node_identify(n,
		      &(struct fcvm_identity){
			      .generation = 9, .hostname = "clone", .machine_id = id},
		      NULL, &err) == 0);
	CHECK(fcvm_node_generation(n) == 9);
	CHECK(last_frame(&f, payload, sizeof payload) == FCVM_WIRE_IDENTITY);
	r = fcvm_wire_reader(payload, sizeof head + 4 + sizeof "clone" + 4 + sizeof id);
	fcvm_wire_get_bytes(&r, &head, sizeof head);
	CHECK(head.generation == 9 &&
		llabs((long long)(head.realtime_ns - fcvm_realtime_ns())) < 10000000000ll);
	CHECK(strcmp(fcvm_wire_get_string(&r), "clone") == 0 &&
		strcmp(fcvm_wire_get_string(&r), id) == 0);
	CHECK(fcvm_wire_reader_ok(&r));
	CHECK(fcvm_node_set_clock(n, 12345, NULL, &err) == 0 &&
		last_frame(&f, payload, 8) == FCVM_WIRE_CLOCK);
	CHECK(payload[0] == (12345 & 0xff) && payload[1] == 12345 >> 8 && payload[7] == 0);
	CHECK(fcvm_node_power(n, true, NULL, &err) == 0 &&
		last_frame(&f, payload, 4) == FCVM_WIRE_POWER);
	CHECK(payload[0] == 1);
	part(&f, n);
}

/* ---- trees ---- */

static struct fcvm_buf tree;

static void send_tree(struct fake *f)
{
	welcome(f, FCVM_WIRE_VERSION);
	if (!take_type(f, FCVM_WIRE_OPEN))
		return;
	put(f, FCVM_WIRE_RESULT, 0, f->h.stream, NULL, 0, 0);
	put(f, FCVM_WIRE_DATA, 1, f->h.stream, fcvm_buf_head(&tree), tree.size, 0);
	put(f, FCVM_WIRE_EOF, 1, f->h.stream, NULL, 0, 0);
	put(f, FCVM_WIRE_EOF, 2, f->h.stream, NULL, 0, 0);
	put(f, FCVM_WIRE_EXIT, 0, f->h.stream, NULL, 0, 0);
	silent(f);
}

static int read_tree(struct fcvm_tree_entry e, uint64_t offset, uint64_t length, char **ret)
{
	static struct fake f;
	struct fcvm_until until = fcvm_until_ms(5000, -1);
	struct fcvm_node *n;
	size_t size;
	int k = -1;

	fcvm_buf_append(&tree, &e, sizeof e);
	fcvm_buf_append(&tree, &offset, 8);
	fcvm_buf_append(&tree, &length, 8);
	fcvm_buf_append(&tree, "abcdefgh", 8);
	n = meet(&f, send_tree, 3000);
	if (n)
		k = fcvm_node_read_file(n, "/x", 100, &until, ret, &size, &err);
	part(&f, n);
	fcvm_buf_done(&tree);
	return k;
}

static void test_trees(void)
{
	const struct fcvm_tree_entry file = {.magic = 0xf5, .type = FCVM_TREE_FILE, .size = 10};
	struct fcvm_tree_entry e = file;
	char *text = NULL;

	CHECK(read_tree(file, 0, 8, &text) == -EPROTO); /* cut off */
	CHECK(read_tree(file, 0, 0, &text) == 0 && text && !text[0]);
	free(text);
	CHECK(read_tree(file, 0, UINT64_MAX, &text) == -EFBIG);
	CHECK(read_tree(file, UINT64_MAX - 3, 8, &text) == -EPROTO);
	CHECK(read_tree(file, 1ull << 40, 8, &text) == -EFBIG);
	e.size = UINT64_MAX;
	CHECK(read_tree(e, 0, 8, &text) == -EFBIG);
	e = file;
	e.magic = 0;
	CHECK(read_tree(e, 0, 8, &text) == -EINVAL);
	e = file;
	e.type = FCVM_TREE_DIR;
	CHECK(read_tree(e, 0, 8, &text) == -EISDIR);
	e.type = FCVM_TREE_SYMLINK;
	e.target_len = UINT32_MAX;
	CHECK(read_tree(e, 0, 8, &text) == -EINVAL);
}

/* ---- freeze ---- */

static char order[64]; /* what came, in order */
static _Atomic bool is_frozen;
static bool came_frozen;

static void freezable(struct fake *f)
{
	size_t n = 0;

	welcome(f, FCVM_WIRE_VERSION);
	while (take(f, 10000)) {
		if (f->h.type != FCVM_WIRE_OPEN)
			continue;
		came_frozen |= is_frozen && f->h.arg != FCVM_WIRE_THAW;
		if (n < sizeof order - 1)
			order[n++] = f->h.arg == FCVM_WIRE_FREEZE ? 'F'
				     : f->h.arg == FCVM_WIRE_THAW ? 'T'
								  : '.';
		if (f->h.arg == FCVM_WIRE_FREEZE || f->h.arg == FCVM_WIRE_THAW)
			is_frozen = f->h.arg == FCVM_WIRE_FREEZE;
		put(f, FCVM_WIRE_RESULT, 0, f->h.stream, NULL, 0, 0);
	}
}

static _Atomic int waiters;

static void *call_frozen(void *arg)
{
	struct fcvm_err own = FCVM_ERR_INIT;

	waiters++;
	return (void *)(intptr_t)fcvm_node_rename(arg, "/a", "/b", NULL, &own);
}

static void test_freeze(void)
{
	enum { N = 4 };
	static struct fake f;
	struct fcvm_node *n = meet(&f, freezable, 3000);
	struct fcvm_until soon = fcvm_until_ms(100, -1);
	pthread_t t[N];
	void *k;

	if (!n)
		return;
	CHECK(fcvm_node_thaw(n, NULL, &err) == 0);
	CHECK(fcvm_node_freeze(n, NULL, &err) == 0);
	CHECK(fcvm_node_remove(n, "/x", &soon, &err) == -ETIMEDOUT &&
		strstr(err.message, "frozen"));
	for (int i = 0; i < N; i++)
		pthread_create(&t[i], NULL, call_frozen, n);
	while (waiters < N)
		usleep(1000);
	usleep(100000);
	CHECK(!came_frozen && is_frozen);
	CHECK(fcvm_node_thaw(n, NULL, &err) == 0);
	for (int i = 0; i < N; i++) {
		pthread_join(t[i], &k);
		CHECK((intptr_t)k == 0);
	}
	CHECK(fcvm_node_freeze(n, NULL, &err) == 0 && fcvm_node_thaw(n, NULL, &err) == 0);
	part(&f, n);
	CHECK(!came_frozen && strcmp(order, "FT....FT") == 0);
}

static void no_freeze(struct fake *f)
{
	welcome(f, FCVM_WIRE_VERSION);
	while (take(f, 10000))
		if (f->h.type == FCVM_WIRE_OPEN)
			put(f, FCVM_WIRE_RESULT, 0, f->h.stream, "no", 2,
				f->h.arg == FCVM_WIRE_FREEZE ? EBUSY : 0);
}

/* A freeze that fails leaves the link usable. */
static void test_no_freeze(void)
{
	static struct fake f;
	struct fcvm_until until = fcvm_until_ms(3000, -1);
	struct fcvm_node *n = meet(&f, no_freeze, 3000);

	CHECK(n && fcvm_node_freeze(n, &until, &err) == -EBUSY);
	CHECK(n && fcvm_node_rename(n, "/a", "/b", &until, &err) == 0);
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
	test_replies();
	test_identity();
	test_trees();
	test_freeze();
	test_no_freeze();
	fcvm_node_unref(host);
	CHECK_DONE();
}
