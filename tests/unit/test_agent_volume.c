/* SPDX-License-Identifier: MIT */
/*
 * An agent whose host mounts a volume and does not answer it. What wants something of the volume waits; all else is
 * served, and the end of the volume's stream is the end of the waiting. In a mount namespace of the agent's own.
 */
#include "test_agent.h"

#include <limits.h>

#include "fusepipe/control.h"

enum { NUMBER = 4711, WAITING = 12 };

static uint32_t ask_mount(struct host *h, const char *target)
{
	struct fcvm_wire_writer w = fcvm_wire_writer(h->payload, sizeof h->payload);
	struct fcvm_wire_mount m = {.number = NUMBER, .readers = 1};

	fcvm_wire_put_bytes(&w, &m, sizeof m);
	fcvm_wire_put_string(&w, "nothing");
	fcvm_wire_put_string(&w, target);
	return open_op(h, FCVM_WIRE_MOUNT, h->payload, w.at - h->payload);
}

/* The pump's stream, which takes its requests and gives no reply. */
static uint32_t connect_pump(struct host *h)
{
	struct fcvm_fuse_greeting greeting = FCVM_FUSE_GREETING_TO(0);
	char address[64];
	uint32_t id;

	snprintf(address, sizeof address, "unix:@" FCVM_FUSE_ADDRESS, NUMBER);
	id = strings(h, FCVM_WIRE_CONNECT, 0, 0, 0, address, NULL);
	CHECK(ok(h, id));
	frame(h, FCVM_WIRE_DATA, 0, id, &greeting, sizeof greeting, 0);
	return id;
}

/* One of each that looks at a path. */
static void ask_all(struct host *h, uint32_t ids[WAITING])
{
	const char *name = at("volume/name"), *other = at("other");
	char address[300];
	unsigned n = 0;

	snprintf(address, sizeof address, "unix:%s", name);
	ids[n++] = spawn(h, &(struct run){0}, (const char *[]){name, NULL});
	ids[n++] = spawn(h, &(struct run){.cwd = at("volume/folder")}, (const char *[]){"true", NULL});
	ids[n++] = spawn(h, &(struct run){.env = (const char *[]){"X=1", NULL}}, (const char *[]){at("volume/x"), "a", NULL});
	ids[n++] = strings(h, FCVM_WIRE_STAT, 0, 0, 0, name, NULL);
	ids[n++] = strings(h, FCVM_WIRE_MKDIR, 2, 0755, 2, name, NULL);
	ids[n++] = strings(h, FCVM_WIRE_RENAME, 0, 0, 0, name, other);
	ids[n++] = strings(h, FCVM_WIRE_REFLINK, 0, 0, 0, name, other);
	ids[n++] = strings(h, FCVM_WIRE_REMOVE, 0, 0, 0, name, NULL);
	ids[n++] = strings(h, FCVM_WIRE_CONNECT, 0, 0, 0, address, NULL);
	ids[n++] = strings(h, FCVM_WIRE_LISTEN, 0, 0, 0, address, NULL);
	ids[n++] = strings(h, FCVM_WIRE_MKDIR, 2, 0755, 1, at("volume/a/b"), NULL);
	ids[n++] = strings(h, FCVM_WIRE_STAT, 0, 0, 0, at("volume/other"), NULL);
	CHECK(n == WAITING);
}

/* As if there were no volume. */
static void check_served(struct host *h)
{
	CHECK(ok(h, open_op(h, FCVM_WIRE_PING, "p", 1)));
	CHECK(said(h, sh(h, "echo here"), "here\n"));
	CHECK(ok(h, strings(h, FCVM_WIRE_MKDIR, 2, 0755, 0, at("made"), NULL)));
	CHECK(ok(h, strings(h, FCVM_WIRE_STAT, 0, 0, 0, at("made"), NULL)));
	CHECK(ok(h, strings(h, FCVM_WIRE_REMOVE, 0, 0, 0, at("made"), NULL)));
}

static struct host *with_volume(void)
{
	struct host *h = start_agent(true);

	CHECK(ok(h, ask_mount(h, at("volume"))));
	return h;
}

static void check_waiting(struct host *h, const uint32_t ids[WAITING])
{
	for (unsigned i = 0; i < WAITING; i++)
		CHECK(!h->s[ids[i]].result);
}

/* The host takes the volume's requests, so that nothing but a reply or the end can free who waits. */
static void test_unanswered(void)
{
	struct host *h = with_volume();
	uint32_t ids[WAITING], pump = connect_pump(h);

	ask_all(h, ids);
	check_served(h);
	settle(h, 300);
	CHECK(h->s[pump].bytes[0] > 0);
	check_waiting(h, ids);
	check_served(h);
	frame(h, FCVM_WIRE_CLOSE, 0, pump, NULL, 0, 0);
	for (unsigned i = 0; i < WAITING; i++)
		CHECK(result(h, ids[i])->code != 0);
	check_served(h);
	CHECK(ok(h, strings(h, FCVM_WIRE_UNMOUNT, 1, 1, 0, at("volume"), NULL)));
	stop(h);
}

/* Nobody has connected yet. */
static void test_unconnected(void)
{
	struct host *h = with_volume();
	uint32_t ids[WAITING], pump;

	ask_all(h, ids);
	check_served(h);
	check_waiting(h, ids);
	/* Given up: each has its one RESULT at once, and what comes later is nobody's. */
	for (unsigned i = 0; i < WAITING; i++)
		frame(h, FCVM_WIRE_CLOSE, 0, ids[i], NULL, 0, 0);
	for (unsigned i = 0; i < WAITING; i++)
		CHECK(result(h, ids[i])->code == ECANCELED);
	pump = connect_pump(h);
	frame(h, FCVM_WIRE_CLOSE, 0, pump, NULL, 0, 0);
	settle(h, 200);
	check_served(h);
	stop(h);
}

/* More than there are idle hands, and a host that goes in the middle. */
static void test_many(void)
{
	struct host *h = with_volume();
	uint32_t id = 0, pump = connect_pump(h);

	for (unsigned i = 0; i < 150; i++)
		id = spawn(h, &(struct run){0}, (const char *[]){at("volume/program"), NULL});
	check_served(h);
	CHECK(!h->s[id].result);
	CHECK(hello(h, 78, 0, false));
	check_served(h);
	id = strings(h, FCVM_WIRE_STAT, 0, 0, 0, at("volume/x"), NULL);
	CHECK(result(h, id)->code != 0);
	(void)pump;
	stop(h);
}

/* Whether something is mounted there in the agent's namespace. */
static bool mounted(const struct host *h, const char *target)
{
	char path[64], line[400], *text;
	bool found;

	snprintf(path, sizeof path, "/proc/%d/mounts", h->pid);
	snprintf(line, sizeof line, " %s fuse.fcvm ", target);
	if (fcvm_file_read(AT_FDCWD, path, 1 << 20, &text, NULL) < 0)
		return false;
	found = strstr(text, line) != NULL;
	free(text);
	return found;
}

/* Whenever its host loses patience, nothing is left of a mount, and the next one has its number and its place. */
static void test_given_up(void)
{
	struct host *h = start_agent(true);

	for (unsigned i = 0; i < 120; i++) {
		uint32_t id = ask_mount(h, at("volume"));

		usleep(i * 150);
		frame(h, FCVM_WIRE_CLOSE, 0, id, NULL, 0, 0);
		/* What has had its RESULT stays. */
		if (result(h, id)->code == 0)
			CHECK(ok(h, strings(h, FCVM_WIRE_UNMOUNT, 1, 1, 0, at("volume"), NULL)));
	}
	/* The host has lost its link, or is another one. */
	for (unsigned i = 0; i < 40; i++) {
		ask_mount(h, at("volume"));
		usleep(i * 400);
		CHECK(hello(h, 100 + i, 0, false));
		/* It may not be there yet, or not any more. */
		result(h, strings(h, FCVM_WIRE_UNMOUNT, 1, 1, 0, at("volume"), NULL));
	}
	for (unsigned i = 0; i < 100 && mounted(h, at("volume")); i++)
		settle(h, 50);
	CHECK(ok(h, ask_mount(h, at("volume"))));
	CHECK(mounted(h, at("volume")));
	CHECK(ok(h, strings(h, FCVM_WIRE_UNMOUNT, 1, 1, 0, at("volume"), NULL)));
	stop(h);
}

/* A tmpfs there, in the agent's namespace, by this program, "cover": mount(8) would look at it first. */
static void cover(const struct host *h, const char *target)
{
	char agent[12], self[PATH_MAX] = "";
	int status = -1;
	pid_t pid;

	snprintf(agent, sizeof agent, "%d", h->pid);
	CHECK(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
	mkdir(target, 0755);
	pid = fork();
	if (pid == 0) {
		execlp("nsenter", "nsenter", "-m", "-t", agent, self, "cover", target, NULL);
		_exit(2);
	}
	waitpid(pid, &status, 0);
	CHECK(status == 0);
}

static bool refused(struct host *h, uint32_t id, uint32_t code, const char *text)
{
	struct seen *s = result(h, id);
	bool so = s->code == code && strstr((char *)fcvm_buf_head(&s->payload), text);

	if (!so)
		fprintf(stderr, "%u: %s\n", s->code, (char *)fcvm_buf_head(&s->payload));
	return so;
}

/* A place has one name, however it is called. */
static void test_linked(void)
{
	struct host *h = start_agent(true);
	const char *real = at("folder"), *link = at("link");
	char within[300];

	snprintf(within, sizeof within, "%s/volume", link);
	CHECK(mkdir(real, 0755) == 0 && symlink("folder", link) == 0);
	CHECK(refused(h, ask_mount(h, link), ELOOP, "symbolic link"));
	CHECK(ok(h, ask_mount(h, within)));
	CHECK(refused(h, ask_mount(h, at("folder/volume")), EBUSY, "mounted there already"));
	CHECK(ok(h, strings(h, FCVM_WIRE_UNMOUNT, 1, 1, 0, within, NULL)));
	CHECK(refused(h, strings(h, FCVM_WIRE_UNMOUNT, 1, 1, 0, at("folder/volume"), NULL), EINVAL, ""));
	stop(h);
}

/* Nothing but a volume goes. */
static void test_another(void)
{
	struct host *h = start_agent(true);
	/* A space would end its field in mountinfo. */
	const char *target = at("a \\volume");

	cover(h, target);
	CHECK(refused(h, strings(h, FCVM_WIRE_UNMOUNT, 1, 1, 0, target, NULL), EINVAL, "no volume"));
	CHECK(ok(h, ask_mount(h, target)));
	cover(h, target);
	CHECK(refused(h, strings(h, FCVM_WIRE_UNMOUNT, 1, 1, 0, target, NULL), EBUSY, "mounted over it"));
	CHECK(ended(h, spawn(h, &(struct run){0}, (const char *[]){"umount", target, NULL}))->exit == 0);
	CHECK(ok(h, strings(h, FCVM_WIRE_UNMOUNT, 1, 1, 0, target, NULL)));
	CHECK(refused(h, strings(h, FCVM_WIRE_UNMOUNT, 1, 1, 0, target, NULL), EINVAL, "no volume"));
	stop(h);
}

/* What a program does before its RESULT could be sent comes behind it, and its end is not lost. */
static void test_quick_programs(void)
{
	struct host *h = with_volume();
	int64_t from;

	for (unsigned i = 0; i < 300; i++) {
		uint32_t id = sh(h, i % 3 ? "echo out" : "exit 3");
		struct seen *s = ended(h, id);

		CHECK(s->result && s->code == 0 && s->exit == (i % 3 ? 0 : 3));
		CHECK(i % 3 == 0 || text_is(&s->data[1], "out\n"));
		frame(h, FCVM_WIRE_CLOSE, 0, id, NULL, 0, 0);
		if (i % 10 == 0)
			CHECK(result(h, spawn(h, &(struct run){0}, (const char *[]){"/does/not/exist", NULL}))->code == ENOENT);
	}
	from = fcvm_now_ns();
	for (unsigned i = 0; i < 50; i++)
		CHECK(ended(h, spawn(h, &(struct run){0}, (const char *[]){"true", NULL}))->exit == 0);
	printf("exec of true beside a volume: %.2f ms\n", (double)(fcvm_now_ns() - from) / 50e6);
	CHECK(ok(h, strings(h, FCVM_WIRE_UNMOUNT, 1, 1, 0, at("volume"), NULL)));
	stop(h);
}

/* Programs are being started by other threads while what belongs to earlier ones is closed and freed. */
static void test_storm(void)
{
	struct host *h = with_volume();

	for (unsigned i = 0; i < 150; i++) {
		for (unsigned k = 0; k < 12; k++)
			sh(h, "echo x; sleep 0.02; echo y; echo z >&2");
		usleep(i * 7919 % 6000);
		CHECK(hello(h, 1000 + i, 0, false));
	}
	CHECK(ok(h, open_op(h, FCVM_WIRE_PING, "p", 1)));
	stop(h);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{"quick programs", test_quick_programs}, {"unconnected", test_unconnected},
		{"unanswered", test_unanswered}, {"given up", test_given_up}, {"another", test_another},
		{"linked", test_linked}, {"many", test_many},
		{"storm", test_storm},
	};

	if (argc == 3)
		return mount("none", argv[2], "tmpfs", 0, NULL) < 0;
	if (geteuid() != 0 || access("/dev/fuse", R_OK | W_OK) < 0) {
		printf("volumes: wants root and /dev/fuse\n");
		return 77;
	}
	return run_tests(tests, sizeof tests / sizeof *tests);
}
