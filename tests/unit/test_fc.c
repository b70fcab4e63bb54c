/* SPDX-License-Identifier: MIT */
/*
 * The Firecracker driver against a fake (fake_firecracker.c): what it asks is what the published interface allows, what
 * clones cost in calls, and how each failure looks that the real one cannot be made to show. The real one is tried by
 * test_fc_real and tests/drivers.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "check.h"
#include "vmm/fc_private.h"

#define MEMORY (UINT64_C(4) << 20)

enum { PLENTY_MS = 30000 /* of what takes milliseconds, where others work, too */ };

static const struct vmm_ops *const ops = &fcvm_vmm_firecracker;
static struct fcvm_node *local;
static struct vmm_probe probe;
static char top[64];
static struct fcvm_err err;

struct guest {
	char name[32], dir[128];
	int dirfd;
	struct vmm *v;
};

static struct fcvm_until in_ms(int ms)
{
	return fcvm_until_ms(ms, -1);
}

/* The fake's behaviour of the next start; NULL: as it should. */
static void fake(const char *name, const char *value)
{
	static const char *const all[] = {"FAKE_AT", "FAKE_DO", "FAKE_START", "FAKE_VSOCK", "FAKE_AGENT", "FAKE_MEMORY",
		"FAKE_VERSION", "FAKE_NEW"};

	for (unsigned i = 0; !name && i < sizeof all / sizeof *all; i++)
		unsetenv(all[i]);
	if (name)
		setenv(name, value, 1);
}

static void put_file(const char *path, const char *text, uint64_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	CHECK(ftruncate(fd, size) == 0);
	close(fd);
}

static struct vmm_machine machine_of(struct guest *g)
{
	static unsigned counter;

	*g = (struct guest){0};
	snprintf(g->name, sizeof g->name, "fake-%u", ++counter);
	snprintf(g->dir, sizeof g->dir, "%s/%s", top, g->name);
	mkdir(g->dir, 0700);
	g->dirfd = open(g->dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return (struct vmm_machine){.node = local, .name = g->name, .dir = g->dir, .dirfd = g->dirfd, .memory = MEMORY,
		.vcpus = 1};
}

static int boot(struct guest *g, bool track, int ms)
{
	static const struct vmm_drive drives[] = {{.path = "one", .readonly = true}, {.path = "/two"}};
	struct vmm_machine m = machine_of(g);
	struct fcvm_until until = in_ms(ms);

	m.kernel = "/kernel";
	m.initrd = "/initrd";
	m.cmdline = "rdinit=/init";
	m.track = track;
	m.balloon = track;
	m.drives = drives;
	m.ndrives = 2;
	return ops->boot(&m, &probe, &until, &g->v, &err);
}

static int wait_at(struct guest *g, const char *memory_file, bool track)
{
	struct vmm_machine m = machine_of(g);
	struct fcvm_until until = in_ms(PLENTY_MS);

	m.memory_file = memory_file;
	m.track = track;
	return ops->wait(&m, &probe, &until, &g->v, &err);
}

static void end(struct guest *g)
{
	fcvm_vmm_free(fcvm_steal_ptr(g->v));
	g->dirfd = fcvm_close(g->dirfd);
}

/* How often something stands in what the fake has written down. */
static unsigned asked(const struct guest *g, const char *what)
{
	_cleanup_free_ char *text = NULL;
	unsigned n = 0;

	if (fcvm_file_read(g->dirfd, "requests", 1 << 20, &text, NULL) < 0)
		return 0;
	for (char *at = text; (at = strstr(at, what)); at++)
		n++;
	return n;
}

/* Zero, or the message is shown. */
static bool ok(int k)
{
	if (k < 0)
		fprintf(stderr, "%s\n", err.message);
	return k == 0;
}

static bool says(const char *what)
{
	if (strstr(err.message, what))
		return true;
	fprintf(stderr, "\"%s\" does not say \"%s\"\n", err.message, what);
	return false;
}

/* Exactly this comes first. */
static bool reads(int fd, const char *what)
{
	struct fcvm_until until = in_ms(PLENTY_MS);
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char text[100] = "";
	ssize_t n = fcvm_until_poll(&until, &p, 1) > 0 ? read(fd, text, strlen(what)) : -1;

	return n == (ssize_t)strlen(what) && memcmp(text, what, n) == 0;
}

static char memory_file[128], state_file[128];

/* ---- what goes well ---- */

static void test_boot(void)
{
	struct guest g;
	struct fcvm_until until = in_ms(PLENTY_MS);
	int fd = -1;

	fake("FAKE_AGENT", "1");
	CHECK(boot(&g, true, PLENTY_MS) == 0);
	CHECK(asked(&g, "config ") == 1 && asked(&g, "connection") == 1 && asked(&g, "GET / ") == 1);
	CHECK(asked(&g, "fcvm.poweroff=reboot") == 1 && asked(&g, " rdinit=/init") == 1);
	CHECK(ops->carrier(g.v, &until, &fd, &err) == 0 && reads(fd, "hello from boot"));
	fd = fcvm_close(fd);
	/* From then on it is the guest that is called. */
	CHECK(faccessat(g.dirfd, "v.sock_5252", F_OK, 0) < 0 && asked(&g, "vsock CONNECT") == 0);
	CHECK(ops->carrier(g.v, &until, &fd, &err) == 0 && reads(fd, "hello from port 5252"));
	CHECK(asked(&g, "vsock CONNECT 5252") >= 1); /* where time is short it is called again */
	fd = fcvm_close(fd);
	/* Others than the agent may listen. */
	CHECK(ops->stream(g.v, 3, &until, &fd, &err) == 0 && reads(fd, "hello from port 655"));
	fd = fcvm_close(fd);
	CHECK(ops->stream(g.v, 4, &until, &fd, &err) == -ECONNREFUSED && says("nobody in the guest listens on vsock port 656"));
	end(&g);
	fake(NULL, NULL);
}

/* One call on one connection: that is all a clone costs. */
static void test_restore(void)
{
	struct guest g;
	struct fcvm_until until = in_ms(PLENTY_MS);
	int fd = -1;

	for (int track = 0; track < 2; track++) {
		CHECK(wait_at(&g, memory_file, track) == 0);
		CHECK(asked(&g, "PUT") == 0 && asked(&g, "GET") == 0);
		CHECK(ops->restore(g.v, state_file, &until, &err) == 0);
		CHECK(ops->carrier(g.v, &until, &fd, &err) == 0 && reads(fd, "hello"));
		fd = fcvm_close(fd);
		CHECK(asked(&g, "connection") == 1 && asked(&g, "/snapshot/load") == 1);
		CHECK(asked(&g, "\n") == 2 + asked(&g, "vsock CONNECT 1\n") + asked(&g, "vsock CONNECT 5252\n"));
		CHECK(asked(&g, "vsock CONNECT 1\n") == 1 && asked(&g, "vsock CONNECT 5252\n") >= 1);
		CHECK(asked(&g, "enable_diff_snapshots") == (unsigned)track);
		CHECK(ops->restore(g.v, state_file, &until, &err) == -EINVAL && says("it is running"));
		end(&g);
	}
	put_file(memory_file, "x", MEMORY - 4096);
	CHECK(wait_at(&g, memory_file, false) == -EINVAL && says("not its snapshot"));
	CHECK(asked(&g, "connection") == 0);
	fcvm_close(g.dirfd);
	put_file(memory_file, "clean", MEMORY);
}

static bool save(struct guest *g, const char *to, const char *kind)
{
	_cleanup_free_ char *memory = fcvm_asprintf("%s/%s", top, to);
	struct fcvm_until until = in_ms(PLENTY_MS);
	char type[64];
	unsigned before;

	snprintf(type, sizeof type, "\"snapshot_type\":\"%s\"", kind);
	before = asked(g, type);
	return ops->prepare_save(g->v, memory, &until, &err) == 0 && ops->save(g->v, state_file, memory, &until, &err) == 0 &&
		asked(g, type) == before + 1;
}

static bool begins(const char *file, const char *what)
{
	_cleanup_free_ char *path = fcvm_asprintf("%s/%s", top, file);
	_cleanup_free_ char *text = NULL;
	size_t size = 0;

	return fcvm_file_read(AT_FDCWD, path, 2 * MEMORY, &text, &size) == 0 && size == MEMORY &&
		memcmp(text, what, strlen(what)) == 0;
}

/* A diff wherever it makes a whole file; and it never is the base itself that is written to. */
static void test_save(void)
{
	struct guest g;
	struct fcvm_until until = in_ms(PLENTY_MS);
	char path[128];

	CHECK(boot(&g, true, PLENTY_MS) == 0);
	CHECK(ops->save(g.v, state_file, memory_file, &until, &err) == -EINVAL && says("save: it is running"));
	CHECK(ops->pause(g.v, &until, &err) == 0);
	CHECK(ops->pause(g.v, &until, &err) == -EINVAL && says("pause: it is paused"));
	CHECK(save(&g, "m1", "Diff"));
	snprintf(path, sizeof path, "%s/m1", top);
	put_file(path, "pages", MEMORY);
	/* That is another file by the same name. */
	CHECK(save(&g, "m2", "Full") && begins("m2", ""));
	CHECK(save(&g, "m3", "Diff"));
	snprintf(path, sizeof path, "%s/m3", top);
	unlink(path);
	CHECK(save(&g, "m4", "Full"));
	CHECK(ops->resume(g.v, &until, &err) == 0);
	CHECK(asked(&g, "connection") == 1);
	end(&g);
	CHECK(boot(&g, false, PLENTY_MS) == 0 && ops->pause(g.v, &until, &err) == 0);
	CHECK(save(&g, "m5", "Full") && save(&g, "m6", "Full"));
	end(&g);
	fake("FAKE_MEMORY", "4194304");
	CHECK(wait_at(&g, memory_file, true) == 0 && ops->restore(g.v, state_file, &until, &err) == 0);
	CHECK(ops->pause(g.v, &until, &err) == 0 && save(&g, "m7", "Diff") && begins("m7", "clean"));
	end(&g);
	fake(NULL, NULL);
}

/* What was saved is kept elsewhere: it is built upon there. */
static void test_moved(void)
{
	struct guest g;
	_cleanup_free_ char *from = fcvm_asprintf("%s/from", top), *to = fcvm_asprintf("%s/to", top);
	_cleanup_free_ char *other = fcvm_asprintf("%s/other", top);
	struct fcvm_until until = in_ms(PLENTY_MS);

	CHECK(boot(&g, true, PLENTY_MS) == 0 && ops->pause(g.v, &until, &err) == 0);
	put_file(other, "other", MEMORY);
	fcvm_vmm_moved(g.v, other); /* nothing was saved yet */
	CHECK(save(&g, "from", "Diff") && begins("from", ""));
	put_file(to, "moved", MEMORY);
	fcvm_vmm_moved(g.v, to);
	unlink(from);
	CHECK(save(&g, "m11", "Diff") && begins("m11", "moved"));
	put_file(other, "other", MEMORY / 2);
	fcvm_vmm_moved(g.v, other);
	CHECK(save(&g, "m12", "Diff") && begins("m12", "moved"));
	end(&g);
}

/* What went wrong once is not built upon. */
static void test_save_fails(void)
{
	struct guest g;
	struct fcvm_until until = in_ms(PLENTY_MS);
	_cleanup_free_ char *memory = fcvm_asprintf("%s/m8", top);

	fake("FAKE_AT", "/snapshot/create#1");
	fake("FAKE_DO", "fault");
	CHECK(boot(&g, true, PLENTY_MS) == 0 && ops->pause(g.v, &until, &err) == 0);
	CHECK(ops->prepare_save(g.v, memory, &until, &err) == 0);
	CHECK(ops->save(g.v, state_file, memory, &until, &err) == 0); /* a refused diff is made up for */
	CHECK(asked(&g, "\"Diff\"") == 1 && asked(&g, "\"Full\"") == 1);
	end(&g);
	fake("FAKE_DO", "half");
	CHECK(boot(&g, true, PLENTY_MS) == 0 && ops->pause(g.v, &until, &err) == 0);
	CHECK(ops->prepare_save(g.v, memory, &until, &err) == 0);
	CHECK(ops->save(g.v, state_file, memory, &until, &err) == -ECONNRESET);
	CHECK(save(&g, "m9", "Full") && save(&g, "m10", "Diff"));
	CHECK(ok(ops->resume(g.v, &until, &err)) && asked(&g, "connection") == 2);
	end(&g);
	fake(NULL, NULL);
	fake("FAKE_AT", "/snapshot/create");
	fake("FAKE_DO", "full");
	CHECK(boot(&g, true, PLENTY_MS) == 0 && ops->pause(g.v, &until, &err) == 0);
	CHECK(ops->save(g.v, state_file, memory, &until, &err) == -ENOSPC && err.code == ENOSPC && says("os error 28"));
	CHECK(ops->save(g.v, state_file, memory, &until, NULL) == -ENOSPC);
	end(&g);
	fake(NULL, NULL);
	fake("FAKE_MEMORY", "4096");
	CHECK(boot(&g, true, PLENTY_MS) == 0 && ops->pause(g.v, &until, &err) == 0);
	CHECK(ops->prepare_save(g.v, memory, &until, &err) == 0);
	unlink(memory);
	CHECK(ops->save(g.v, state_file, memory, &until, &err) == -EIO && says("has 4096 bytes"));
	end(&g);
	fake(NULL, NULL);
}

static void test_balloon_metrics(void)
{
	struct guest g;
	struct fcvm_until until = in_ms(PLENTY_MS);
	_cleanup_free_ char *text = NULL;

	CHECK(boot(&g, true, PLENTY_MS) == 0);
	CHECK(ops->balloon(g.v, UINT64_C(3) << 20, &until, &err) == 0 && asked(&g, "PATCH /balloon {\"amount_mib\":3}") == 1);
	CHECK(ops->metrics(g.v, &until, &text, &err) == 0 && text && strcmp(text, "{\"utc_timestamp_ms\":1,\"fake\":true}") == 0);
	end(&g);
	CHECK(boot(&g, false, PLENTY_MS) == 0);
	CHECK(ops->balloon(g.v, 0, &until, &err) == -EOPNOTSUPP && says("balloon = true"));
	end(&g);
}

/* ---- what goes wrong ---- */

enum step { BOOT, RESTORE, PAUSE, RESUME, SAVE, BALLOON, METRICS, STEPS };

static const char *const paths[] = {"/", "/snapshot/load", "/vm#1", "/vm#2", "/snapshot/create", "/balloon", "/actions"};
static const char *const verbs[] = {"boot", "restore", "pause", "resume", "save", "set its balloon", "metrics"};

/* Up to the step that is to fail, and that one with `until`. */
static int go(struct guest *g, enum step step, const struct fcvm_until *until)
{
	struct fcvm_until soon = in_ms(PLENTY_MS);
	char *text = NULL;
	int k;

	fake("FAKE_AT", paths[step]);
	if (step == BOOT) {
		struct vmm_machine m = machine_of(g);

		m.kernel = "/kernel";
		return ops->boot(&m, &probe, until, &g->v, &err);
	}
	if (step == RESTORE) {
		CHECK(wait_at(g, memory_file, false) == 0);
		return ops->restore(g->v, state_file, until, &err);
	}
	CHECK(boot(g, true, PLENTY_MS) == 0);
	if (step == BALLOON)
		return ops->balloon(g->v, 0, until, &err);
	if (step == METRICS) {
		k = ops->metrics(g->v, until, &text, &err);
		free(text);
		return k;
	}
	k = ops->pause(g->v, step == PAUSE ? until : &soon, &err);
	if (step == RESUME)
		k = ops->resume(g->v, until, &err);
	if (step == SAVE)
		k = ops->save(g->v, state_file, memory_file, until, &err);
	return k;
}

static void test_misbehaviour(void)
{
	static const struct {
		const char *what, *says;
		int code;
	} cases[] = {
		{"fault", "Of its own words", -EIO},
		{"plain", "HTTP status 500: no JSON  [31m at all", -EIO},
		{"empty", "HTTP status 503", -EIO},
		{"garbage", "", -EPROTO},
		{"long", "longer than 65536 bytes", -EPROTO},
		{"headers", "longer than 65536 bytes", -EPROTO},
		{"half", "closed before the answer was complete", -ECONNRESET},
		{"close", "closed before the answer was complete", -ECONNRESET},
		{"die", "Firecracker ended with status 3: ", -ECONNRESET},
		{"die", "Its last words.", -ECONNRESET},
	};

	for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
		for (enum step s = BOOT; s < STEPS; s++) {
			struct fcvm_until until = in_ms(PLENTY_MS);
			struct guest g;
			int k;

			/* Each of these waits a second for an end that does not come. */
			if (strstr("half close", cases[i].what) && s != BOOT && s != RESTORE && s != SAVE && s != PAUSE)
				continue;
			fake("FAKE_DO", cases[i].what);
			k = go(&g, s, &until);
			if (k != cases[i].code)
				fprintf(stderr, "%s at %s: %d: %s\n", cases[i].what, verbs[s], k, err.message);
			CHECK(k == cases[i].code && says(cases[i].says) && says(g.name) && says(verbs[s]));
			CHECK(!strstr(err.message, "Firecracker exiting")); /* that it ends is no reason */
			CHECK(!fcvm_until_passed(&until));
			/* A failed call has no successors in its connection. */
			if (s == PAUSE && strcmp(cases[i].what, "die") != 0)
				CHECK(ok(ops->pause(g.v, &until, &err)));
			if (s == PAUSE && strcmp(cases[i].what, "die") == 0)
				CHECK(ops->pause(g.v, &until, &err) == -EINVAL && says("ended or broken"));
			end(&g);
		}
	}
	fake(NULL, NULL);
	put_file(memory_file, "clean", MEMORY);
}

/* Nobody waits longer than he wants to. */
static void test_silence(void)
{
	int cancel = eventfd(1, EFD_CLOEXEC);

	fake("FAKE_DO", "silent");
	for (enum step s = BOOT; s < STEPS; s++) {
		struct fcvm_until until = in_ms(s == BOOT ? 2000 : 300), cancelled = fcvm_until_ms(PLENTY_MS, cancel);
		struct guest g;
		int64_t from;

		from = fcvm_now_ns();
		CHECK(go(&g, s, &until) == -ETIMEDOUT && says(g.name) && says(verbs[s]));
		CHECK(fcvm_now_ns() - from < INT64_C(1000000) * (PLENTY_MS / 2));
		/* A pause that was given up does not come later. */
		if (s == PAUSE)
			CHECK(asked(&g, "{\"state\":\"Resumed\"}") == 1);
		end(&g);
		if (s != BOOT)
			CHECK(go(&g, s, &cancelled) == -ECANCELED);
		if (s != BOOT)
			end(&g);
	}
	fake(NULL, NULL);
	close(cancel);
}

/* Neither the pause nor its withdrawal is acknowledged: it may stand still, and can be made to go on. */
static void test_pause_given_up(void)
{
	struct guest g;
	struct fcvm_until until;

	fake("FAKE_AT", "/vm~2");
	fake("FAKE_DO", "silent");
	CHECK(boot(&g, false, PLENTY_MS) == 0);
	until = in_ms(300);
	CHECK(ops->pause(g.v, &until, &err) == -ETIMEDOUT && says("pause"));
	CHECK(asked(&g, "{\"state\":\"Resumed\"}") == 1);
	until = in_ms(PLENTY_MS);
	CHECK(ops->resume(g.v, &until, &err) == 0 && asked(&g, "{\"state\":\"Resumed\"}") == 2);
	CHECK(ops->pause(g.v, &until, &err) == 0 && ops->resume(g.v, &until, &err) == 0);
	end(&g);
	fake(NULL, NULL);
}

static void test_start(void)
{
	struct guest g;

	fake("FAKE_START", "deaf");
	CHECK(boot(&g, false, PLENTY_MS) == 0);
	end(&g);
	fake("FAKE_START", "stillborn");
	CHECK(boot(&g, false, PLENTY_MS) == -ECONNRESET && says("It was not to be.") && says("status 3"));
	end(&g);
	fake("FAKE_START", "nothing");
	CHECK(boot(&g, false, 1000) == -ETIMEDOUT && says("API socket"));
	end(&g);
	fake(NULL, NULL);
	free(probe.binary);
	probe.binary = strdup("/no/such/firecracker");
	CHECK(boot(&g, false, PLENTY_MS) == -ENOENT && says("/no/such/firecracker"));
	end(&g);
	free(probe.binary);
	probe.binary = strdup(getenv("FAKE_FIRECRACKER"));
}

/* A file that all clones would write to. */
static void test_drives(void)
{
	static const struct vmm_drive drives[] = {{.path = "/one", .readonly = true}, {.path = "two"}, {.path = "/three"}};
	struct guest g;
	struct vmm_machine m = machine_of(&g);
	struct fcvm_until until = in_ms(PLENTY_MS);

	m.memory_file = memory_file;
	m.drives = drives;
	m.ndrives = 3;
	CHECK(ops->wait(&m, &probe, &until, &g.v, &err) == -EOPNOTSUPP && !g.v && says("/three") && says(g.name));
	m.ndrives = 2;
	CHECK(ops->wait(&m, &probe, &until, &g.v, &err) == 0);
	end(&g);
}

/* ---- the way to the agent ---- */

static int call(struct guest *g, const char *how, int ms, int *fd)
{
	struct fcvm_until until = in_ms(PLENTY_MS);

	fake("FAKE_VSOCK", how);
	CHECK(wait_at(g, memory_file, false) == 0 && ops->restore(g->v, state_file, &until, &err) == 0);
	until = in_ms(ms);
	return ops->carrier(g->v, &until, fd, &err);
}

static void test_vsock(void)
{
	struct guest g;
	int fd = -1;

	/* The first calls met a number that the guest has in use: refused, or ignored. */
	CHECK(call(&g, "eof#2", PLENTY_MS, &fd) == 0 && reads(fd, "hello") && asked(&g, "vsock CONNECT 5252") >= 3);
	fd = fcvm_close(fd);
	end(&g);
	CHECK(call(&g, "silent#2", PLENTY_MS, &fd) == 0 && reads(fd, "hello") && asked(&g, "vsock CONNECT 5252") >= 3);
	fd = fcvm_close(fd);
	end(&g);
	CHECK(call(&g, "eof", 1500, &fd) == -ETIMEDOUT && says("nobody in the guest listens on vsock port 5252"));
	/* Without agent it is tried on, without a storm of calls. */
	CHECK(asked(&g, "vsock CONNECT 5252") > 2 && asked(&g, "vsock CONNECT 5252") < 40);
	end(&g);
	CHECK(call(&g, "silent", 300, &fd) == -ETIMEDOUT && says("reach its agent"));
	end(&g);
	CHECK(call(&g, "wrong", PLENTY_MS, &fd) == -EPROTO && says("not OK"));
	end(&g);
	fake(NULL, NULL);
}

static void *kill_soon(void *data)
{
	usleep(100 * 1000);
	fcvm_vmm_kill(data);
	return NULL;
}

/* It has ended, or its owner has no more time, before its agent is called. */
static void test_vsock_too_late(void)
{
	int cancel = eventfd(1, EFD_CLOEXEC), fd = -1;
	struct guest g;
	struct fcvm_until until = in_ms(PLENTY_MS), cancelled = fcvm_until_ms(PLENTY_MS, cancel);
	struct fcvm_exit how;

	fake("FAKE_VSOCK", "silent"); /* an answer that is there comes first */
	CHECK(wait_at(&g, memory_file, false) == 0 && ops->restore(g.v, state_file, &until, &err) == 0);
	err = (struct fcvm_err)FCVM_ERR_INIT;
	CHECK(ops->carrier(g.v, &cancelled, &fd, &err) == -ECANCELED && says(g.name) && says("reach its agent"));
	fcvm_vmm_kill(g.v);
	CHECK(fcvm_vmm_wait_exit(g.v, &until, &how, &err) == 0 && how.signal == SIGKILL);
	err = (struct fcvm_err)FCVM_ERR_INIT;
	CHECK(ops->carrier(g.v, &until, &fd, &err) == -ECONNRESET && says(g.name) && says("reach its agent"));
	/* What it said last has nothing to do with it. */
	CHECK(says("(signal 9 ended Firecracker)") && strstr(err.detail, "Listening on API socket"));
	end(&g);
	fake(NULL, NULL);
	close(cancel);
}

/* It ends while its agent is waited for. */
static void test_vsock_ends(void)
{
	struct guest g;
	struct fcvm_until until = in_ms(PLENTY_MS);
	pthread_t thread;
	int fd = -1;

	for (int booted = 0; booted < 2; booted++) {
		fake("FAKE_VSOCK", "silent");
		if (booted)
			CHECK(boot(&g, false, PLENTY_MS) == 0);
		else
			CHECK(wait_at(&g, memory_file, false) == 0 && ops->restore(g.v, state_file, &until, &err) == 0);
		CHECK(pthread_create(&thread, NULL, kill_soon, g.v) == 0);
		CHECK(ops->carrier(g.v, &until, &fd, &err) == -ECONNRESET && says("signal 9 ended Firecracker"));
		pthread_join(thread, NULL);
		end(&g);
	}
	CHECK(boot(&g, false, PLENTY_MS) == 0);
	until = in_ms(100);
	CHECK(ops->carrier(g.v, &until, &fd, &err) == -ETIMEDOUT && says("its agent has not called on vsock port 5252"));
	end(&g);
	fake(NULL, NULL);
}

/* ---- the probe ---- */

static int interview(const char *binary, const char *version, struct vmm_probe *p)
{
	*p = (struct vmm_probe){.binary = strdup(binary), .own = fcvm_json_object()};
	fake(NULL, NULL);
	if (version)
		fake("FAKE_VERSION", version);
	return fcvm_fc_interview(local, NULL, p, &err);
}

static void test_interview(void)
{
	const char *binary = getenv("FAKE_FIRECRACKER");
	struct vmm_probe p;

	CHECK(interview(binary, NULL, &p) == 0 && strcmp(p.version, "1.12.1") == 0);
	CHECK(strcmp(fcvm_json_string(p.own, "dirty_field", ""), "enable_diff_snapshots") == 0);
	fcvm_vmm_probe_done(&p);
	CHECK(interview(binary, "1.11.0", &p) == -EOPNOTSUPP && says("want 1.12 or newer"));
	fcvm_vmm_probe_done(&p);
	CHECK(interview(binary, "2.0.0-dev", &p) == 0);
	fcvm_vmm_probe_done(&p);
	CHECK(interview(binary, "soon", &p) == -EPROTO && says("soon"));
	fcvm_vmm_probe_done(&p);
	CHECK(interview("/bin/true", NULL, &p) == -ECONNRESET && says("/bin/true"));
	fcvm_vmm_probe_done(&p);
	CHECK(interview("/no/such", NULL, &p) == -ENOENT && says("FCVM_FIRECRACKER"));
	fcvm_vmm_probe_done(&p);
	setenv("FAKE_NEW", "1", 1);
	*(&p) = (struct vmm_probe){.binary = strdup(binary), .own = fcvm_json_object()};
	CHECK(fcvm_fc_interview(local, NULL, &p, &err) == 0);
	CHECK(strcmp(fcvm_json_string(p.own, "dirty_field", ""), "track_dirty_pages") == 0);
	fcvm_vmm_probe_done(&p);
	fake(NULL, NULL);
}

/* What could not be asked is neither waited for nor guessed. */
static void test_interview_given_up(void)
{
	static const char *const at[] = {"/version", "/snapshot/load"};
	struct vmm_probe p = {.binary = strdup(getenv("FAKE_FIRECRACKER")), .own = fcvm_json_object()};

	for (unsigned i = 0; i < 2; i++) {
		struct fcvm_until until = in_ms(1000);
		int64_t from = fcvm_now_ns();

		fake("FAKE_NEW", "1"); /* or the second is refused */
		fake("FAKE_AT", at[i]);
		fake("FAKE_DO", "silent");
		CHECK(fcvm_fc_interview(local, &until, &p, &err) == -ETIMEDOUT && says("probe ") && says(at[i]));
		CHECK(fcvm_now_ns() - from < INT64_C(1000000) * 15000);
		CHECK(!fcvm_json_get(p.own, "dirty_field"));
		free(fcvm_steal_ptr(p.version));
		fake("FAKE_DO", "close");
		CHECK(fcvm_fc_interview(local, NULL, &p, NULL) == -ECONNRESET);
		free(fcvm_steal_ptr(p.version));
	}
	fake(NULL, NULL);
	fcvm_vmm_probe_done(&p);
}

static void test_probe(void)
{
	struct vmm_probe p;

	setenv("FCVM_FIRECRACKER", "/no/such/firecracker", 1);
	CHECK(ops->probe(local, NULL, NULL, NULL, &p, &err) == -ENOENT && says("/no/such/firecracker was not found") &&
		says("scripts/fetch-firecracker"));
	setenv("FCVM_FIRECRACKER", getenv("FAKE_FIRECRACKER"), 1);
	CHECK(ops->probe(local, "tcg", NULL, NULL, &p, &err) == -EOPNOTSUPP && says("needs KVM"));
	unsetenv("FCVM_FIRECRACKER");
}

static unsigned open_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

int main(void)
{
	unsigned fds;

	if (!getenv("FAKE_FIRECRACKER") || !getenv("FAKE_API")) {
		printf("no FAKE_FIRECRACKER and FAKE_API\n");
		return 77;
	}
	strcpy(top, "/tmp/fcvm-test-fc-XXXXXX");
	if (!mkdtemp(top) || fcvm_node_local(&local, &err) < 0)
		return 1;
	probe = (struct vmm_probe){.binary = strdup(getenv("FAKE_FIRECRACKER")), .version = "1.12.1", .accel = "kvm",
		.own = fcvm_json_object()};
	fcvm_json_set_string(probe.own, "dirty_field", "enable_diff_snapshots");
	snprintf(memory_file, sizeof memory_file, "%s/memory", top);
	snprintf(state_file, sizeof state_file, "%s/state", top);
	put_file(memory_file, "clean", MEMORY);
	test_boot();
	fds = open_fds();
	test_restore();
	test_save();
	test_moved();
	test_save_fails();
	test_balloon_metrics();
	test_misbehaviour();
	test_silence();
	test_pause_given_up();
	test_start();
	test_drives();
	test_vsock();
	test_vsock_too_late();
	test_vsock_ends();
	test_interview();
	test_interview_given_up();
	test_probe();
	/* Logs are closed by their thread. */
	for (int i = 0; i < 200 && open_fds() > fds; i++)
		usleep(10 * 1000);
	CHECK(open_fds() <= fds);
	free(probe.binary);
	fcvm_json_free(probe.own);
	fcvm_node_unref(local);
	fcvm_tree_remove(AT_FDCWD, top);
	CHECK_DONE();
}
