/* SPDX-License-Identifier: MIT */
/* Calls of a link to an agent that answers what it likes: replies, identity, trees, freezing. */
#include "test_link.h"

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

int main(void)
{
	if (fcvm_node_local(&host, &err) < 0)
		return 1;
	test_replies();
	test_identity();
	test_trees();
	test_freeze();
	test_no_freeze();
	fcvm_node_unref(host);
	CHECK_DONE();
}
