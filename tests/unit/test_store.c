/* SPDX-License-Identifier: MIT */
/* The store: leases, manifests, published snapshots. In temporary folders of its own. */
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>

#include "test_store.h"

/* ---- folders ---- */

static void expect_refusal(const char *run, const char *says)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	struct fcvm_store *s = NULL;

	setenv("FCVM_RUN", run, 1);
	CHECK(fcvm_store_open(&s, NULL, &err) < 0);
	CHECK(!s && SAYS(err, says) && SAYS(err, run));
	fcvm_store_close(s);
}

static void test_folders(void)
{
	_cleanup_free_ char *run = in("run"), *other = in("other"), *link = in("link"), *data = in("data");
	_cleanup_free_ char *slash = fcvm_asprintf("%s/", link), *longer = NULL;
	struct fcvm_err err = FCVM_ERR_INIT;
	struct fcvm_store *s = NULL;
	char many[90];
	struct stat st;

	CHECK(mkdir(other, 0700) == 0 && symlink(other, link) == 0);
	expect_refusal(link, "symbolic link");
	setenv("FCVM_RUN", slash, 1);
	CHECK(fcvm_store_open(&s, NULL, &err) == -EPERM);
	chmod(other, 0755);
	expect_refusal(other, "chmod 700");
	chmod(other, 0700);
	if (geteuid() == 0 && chown(other, 1, 1) == 0) {
		expect_refusal(other, "belongs to user 1");
		CHECK(chown(other, 0, 0) == 0);
	}
	memset(many, 'x', sizeof many - 1);
	many[sizeof many - 1] = 0;
	longer = in(many);
	expect_refusal(longer, "FCVM_RUN to a shorter one");
	setenv("FCVM_DATA", "/proc/no", 1);
	setenv("FCVM_RUN", run, 1);
	CHECK(fcvm_store_open(&s, NULL, &err) < 0 && SAYS(err, "set FCVM_DATA"));
	setenv("FCVM_DATA", data, 1);
	s = open_store(NULL);
	CHECK(strcmp(fcvm_store_run(s), run) == 0 && strcmp(fcvm_store_data(s), data) == 0);
	CHECK(stat(run, &st) == 0 && (st.st_mode & 07777) == 0700);
	fcvm_store_close(s);
	chmod(data, 0777);
	CHECK(fcvm_store_open(&s, NULL, &err) == -EPERM && SAYS(err, "by everybody"));
	chmod(data, 0700);
}

static void test_libexec(void)
{
	_cleanup_free_ char *saved = getenv("FCVM_LIBEXEC") ? strdup(getenv("FCVM_LIBEXEC")) : NULL, *path = NULL;
	_cleanup_free_ char *want = in("data/program");
	struct fcvm_err err = FCVM_ERR_INIT;

	unsetenv("FCVM_LIBEXEC");
	CHECK(fcvm_store_libexec("no-such-program", &path, &err) == -ENOENT && !path);
	CHECK(SAYS(err, "FCVM_LIBEXEC") && SAYS(err, "libexec/fcvm/no-such-program"));
	setenv("FCVM_LIBEXEC", getenv("FCVM_DATA"), 1);
	put(getenv("FCVM_DATA"), "program", "x", 1);
	CHECK(fcvm_store_libexec("program", &path, &err) == 0 && strcmp(path, want) == 0);
	unlink(want);
	if (saved)
		setenv("FCVM_LIBEXEC", saved, 1);
	else
		unsetenv("FCVM_LIBEXEC");
}

/* ---- leases ---- */

struct seen {
	unsigned alive, dead;
	char name[64]; /* of the vm.json seen last */
};

static int see(void *data, const char *id, const char *path, bool alive, const struct fcvm_json *json)
{
	struct seen *seen = data;

	if (alive)
		seen->alive++;
	else
		seen->dead++;
	if (json)
		snprintf(seen->name, sizeof seen->name, "%s", fcvm_json_string(json, "name", ""));
	CHECK(strlen(id) == 8 && strstr(path, id));
	return 0;
}

static struct seen look(struct fcvm_store *s)
{
	struct seen seen = {.alive = 0};

	CHECK(fcvm_lease_each(s, see, &seen, NULL) == 0);
	return seen;
}

static void test_lease(void)
{
	struct fcvm_store *s = open_store(NULL);
	struct fcvm_lease a = FCVM_LEASE_INIT, b = FCVM_LEASE_INIT, empty = FCVM_LEASE_INIT;
	struct fcvm_err err = FCVM_ERR_INIT;
	_cleanup_free_ char *path = NULL;

	CHECK(fcvm_lease_new(s, &a, &err) == 0 && fcvm_lease_new(s, &b, &err) == 0);
	CHECK(strcmp(a.id, b.id) != 0);
	put(a.path, "vm.json", "{\"name\": \"quiet-heron\"}", 23);
	CHECK(look(s).alive == 2 && look(s).dead == 0 && strcmp(look(s).name, "quiet-heron") == 0);
	put(a.path, "vm.json", "{\"name\":", 8); /* torn */
	CHECK(look(s).alive == 2 && look(s).name[0] == 0);
	CHECK(fcvm_store_sweep(s, NULL, &err) == 0 && exists(a.path, "lock") && exists(b.path, "lock"));
	path = strdup(a.path);
	fcvm_lease_done(s, &a);
	CHECK(access(path, F_OK) < 0 && a.dirfd == -1 && a.lock_fd == -1 && !a.path);
	fcvm_lease_done(s, &a);
	fcvm_lease_done(s, &empty);
	fcvm_lease_done(s, &b);
	CHECK(count(fcvm_store_run(s), ".gate") == 0);
	fcvm_store_close(s);
}

static void own_and_sleep(void)
{
	struct fcvm_store *s = open_store(NULL);
	struct fcvm_lease l = FCVM_LEASE_INIT;

	CHECK(fcvm_lease_new(s, &l, NULL) == 0);
	put(l.path, "vm.json", "{\"name\": \"sleeper\"}", 19);
	put(l.path, "memory", "0123456789", 10);
	for (;;)
		pause();
}

static void test_dead_owner(void)
{
	struct fcvm_store *s = open_store(NULL);
	struct fcvm_json *report = fcvm_json_array();
	struct fcvm_err err = FCVM_ERR_INIT;
	pid_t pid = begin(own_and_sleep);
	const struct fcvm_json *entry;

	for (int i = 0; i < 500 && !look(s).name[0]; i++)
		usleep(10000);
	CHECK(look(s).alive == 1 && strcmp(look(s).name, "sleeper") == 0);
	CHECK(fcvm_store_sweep(s, report, &err) == 0 && fcvm_json_count(report) == 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	CHECK(look(s).dead == 1 && look(s).alive == 0);
	CHECK(fcvm_store_sweep(s, report, &err) == 0 && fcvm_json_count(report) == 1);
	entry = fcvm_json_at(report, 0);
	CHECK(strcmp(fcvm_json_string(entry, "what", ""), "vm") == 0 && fcvm_json_int(entry, "bytes", 0) > 0);
	CHECK(count(fcvm_store_run(s), ".gate") == 0);
	fcvm_json_free(report);
	fcvm_store_close(s);
}

/* What could lie around: remains of those who died at each step, and what somebody has put there. */
static void test_strange_entries(void)
{
	struct fcvm_store *s = open_store(NULL);
	const char *run = fcvm_store_run(s);
	_cleanup_free_ char *precious = in("precious"), *new = fcvm_asprintf("%s/.new-0badcafe", run);
	_cleanup_free_ char *trash = fcvm_asprintf("%s/.trash-0badcafe", run), *link = fcvm_asprintf("%s/00c0ffee", run);
	_cleanup_free_ char *bare = fcvm_asprintf("%s/00000bad", run), *foreign = fcvm_asprintf("%s/readme", run);
	_cleanup_free_ char *linked = fcvm_asprintf("%s/1badcafe", run), *inner = fcvm_asprintf("%s/inner", linked);
	_cleanup_free_ char *lock = fcvm_asprintf("%s/lock", linked);
	struct fcvm_err err = FCVM_ERR_INIT;

	CHECK(mkdir(precious, 0700) == 0 && mkdir(new, 0700) == 0 && mkdir(trash, 0700) == 0 && mkdir(bare, 0700) == 0);
	CHECK(mkdir(foreign, 0700) == 0 && mkdir(linked, 0700) == 0);
	put(precious, "file", "x", 1);
	put(trash, "file", "x", 1);
	CHECK(symlink(precious, link) == 0 && symlink(precious, inner) == 0 && symlink("/dev/null", lock) == 0);
	CHECK(look(s).alive == 0 && look(s).dead == 2);
	CHECK(fcvm_store_sweep(s, NULL, &err) == 0);
	CHECK(exists(precious, "file"));
	CHECK(!exists(run, ".new-0badcafe") && !exists(run, ".trash-0badcafe") && !exists(run, "00000bad"));
	CHECK(!exists(run, "1badcafe"));
	CHECK(exists(run, "00c0ffee") && exists(run, "readme")); /* not ours to judge */
	unlink(link);
	rmdir(foreign);
	fcvm_store_close(s);
}

static void make_and_drop(void)
{
	struct fcvm_store *s = open_store(NULL);

	for (int i = 0; i < 100; i++) {
		struct fcvm_lease l = FCVM_LEASE_INIT;

		CHECK(fcvm_lease_new(s, &l, NULL) == 0);
		put(l.path, "vm.json", "{}", 2);
		sched_yield();
		CHECK(exists(l.path, "vm.json") && exists(l.path, "lock"));
		fcvm_lease_done(s, &l);
	}
	fcvm_store_close(s);
}

static void sweep_often(void)
{
	struct fcvm_store *s = open_store(NULL);

	for (int i = 0; i < 400; i++)
		CHECK(fcvm_store_sweep(s, NULL, NULL) == 0);
	fcvm_store_close(s);
}

static void test_at_once(void)
{
	struct fcvm_store *s = open_store(NULL);
	pid_t pids[6];

	for (int i = 0; i < 6; i++)
		pids[i] = begin(i < 4 ? make_and_drop : sweep_often);
	for (int i = 0; i < 6; i++)
		CHECK(ended_well(pids[i]));
	CHECK(fcvm_store_sweep(s, NULL, NULL) == 0 && count(fcvm_store_run(s), ".gate") == 0);
	fcvm_store_close(s);
}

/* ---- manifests ---- */

static const struct fcvm_manifest sample = {
	.driver = "qemu",
	.version = "10.0.2",
	.accel = "tcg",
	.machine = "microvm max",
	.image = "mini/0123456789abcdef",
	.kernel = "6.1.0",
	.agent = "0.1.0",
	.vm_name = "quiet-heron",
	.host_cpu = "",
	.memory = 64 << 20,
	.vcpus = 2,
	.tsc_khz = 2600000,
	.generation = 7,
	.created_ns = 1700000000000000000,
};

/* A folder with `memory`, sparse: 1 MiB of text and a byte near the end, and `state`. */
static char *make_snapshot(const char *name)
{
	char *dir = in(name);
	_cleanup_free_ char *memory = fcvm_asprintf("%s/memory", dir), *block = malloc(1 << 20);
	int fd;

	CHECK(mkdir(dir, 0700) == 0);
	put(dir, "state", "the state of some devices", 25);
	fd = open(memory, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	for (int i = 0; i < 1 << 20; i++)
		block[i] = (char)(i * 7 + i / 4096 + 1);
	CHECK(ftruncate(fd, 64 << 20) == 0 && pwrite(fd, block, 1 << 20, 5 << 20) == 1 << 20);
	CHECK(pwrite(fd, "!", 1, (60 << 20) + 1234) == 1);
	close(fd);
	return dir;
}

static void put_zeros(const char *dir, off_t at)
{
	_cleanup_free_ char *path = fcvm_asprintf("%s/memory", dir), *zeros = calloc(1, 1 << 20);
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	CHECK(pwrite(fd, zeros, 1 << 20, at) == 1 << 20);
	close(fd);
}

/* The one byte that make_snapshot has put near the end: the same block elsewhere. */
static void move_mark(const char *dir, off_t from, off_t to)
{
	_cleanup_free_ char *path = fcvm_asprintf("%s/memory", dir);
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	CHECK(pwrite(fd, "", 1, from) == 1 && pwrite(fd, "!", 1, to) == 1);
	close(fd);
}

static bool is_damaged(const char *dir, const char *says)
{
	struct fcvm_manifest m = {.memory = 0};
	struct fcvm_err err = FCVM_ERR_INIT;
	int r = fcvm_manifest_read(dir, "heron1", &m, &err);

	if (r == 0)
		fcvm_manifest_done(&m);
	return r == -EINVAL && SAYS(err, says) && SAYS(err, "snapshot heron1") && SAYS(err, "take it anew");
}

/* Puts `with` for the first `what` in text; malloc'ed. */
static char *replaced(const char *text, const char *what, const char *with)
{
	const char *at = strstr(text, what);

	CHECK(at);
	return at ? fcvm_asprintf("%.*s%s%s", (int)(at - text), text, with, at + strlen(what)) : strdup(text);
}

/* Each member, away or of a wrong kind, is named by the parser; any change at all is found by the reader. */
static void test_damaged_members(const char *dir, const char *text)
{
	static const char *const changes[][3] = {
		{"\"format\": 3", "\"format\": 4", "newer"},
		{"\"format\"", "\"formal\"", "\"format\""},
		{"\"driver\": \"qemu\"", "\"driver\": \"\"", "\"driver\" is empty"},
		{"\"driver\": \"qemu\"", "\"driver\": 1", "\"driver\""},
		{"\"version\"", "\"x\"", "\"version\""},
		{"\"accel\"", "\"x\"", "\"accel\""},
		{"\"machine\"", "\"x\"", "\"machine\""},
		{"\"image\"", "\"x\"", "\"image\""},
		{"\"kernel\"", "\"x\"", "\"kernel\""},
		{"\"agent\"", "\"x\"", "\"agent\""},
		{"\"vm_name\"", "\"x\"", "\"vm_name\""},
		{"quiet-heron", "quiet\\u001b[2J", "control character"},
		{"\"host_cpu\"", "\"x\"", "\"host_cpu\""},
		{"\"memory\": 67108864", "\"memory\": 1", "\"memory\""},
		{"\"memory\": 67108864", "\"memory\": -67108864", "\"memory\""},
		{"\"memory\": 67108864", "\"memory\": 6.5", "\"memory\""},
		{"\"vcpus\": 2", "\"vcpus\": 0", "\"vcpus\""},
		{"\"vcpus\": 2", "\"vcpus\": 2000000", "\"vcpus\""},
		{"\"generation\": 7", "\"generation\": \"7\"", "\"generation\""},
		{"\"created_ns\"", "\"x\"", "\"created_ns\""},
		{"\"files\"", "\"x\"", "\"files\""},
		{"\"state\"", "\"x\"", "\"state\""},
		{"\"size\": 25", "\"size\": -25", "\"state\""},
		{"\"hash\": \"", "\"hash\": \"x", "32 hexadecimal"},
		{"{", "[", "manifest.json"},
	};

	for (unsigned i = 0; i < sizeof changes / sizeof *changes; i++) {
		_cleanup_free_ char *bad = replaced(text, changes[i][0], changes[i][1]);
		struct fcvm_manifest m = {.memory = 0};
		struct fcvm_err err = FCVM_ERR_INIT;

		CHECK(fcvm_manifest_parse(bad, strlen(bad), &m, NULL, &err) == -EINVAL);
		CHECK(err.code == EINVAL && SAYS(err, changes[i][2]) && !m.driver);
		put(dir, "manifest.json", bad, strlen(bad));
		CHECK(is_damaged(dir, "manifest.json"));
	}
	for (size_t size = 0; size < strlen(text); size++) {
		put(dir, "manifest.json", text, size);
		CHECK(is_damaged(dir, "manifest.json"));
	}
	for (size_t at = 0; at < strlen(text); at += 3) { /* one bit */
		_cleanup_free_ char *bad = strdup(text);

		bad[at] ^= 1;
		put(dir, "manifest.json", bad, strlen(bad));
		CHECK(is_damaged(dir, "manifest.json"));
	}
	put(dir, "manifest.json", text, strlen(text));
}

static void test_manifest(void)
{
	_cleanup_free_ char *dir = make_snapshot("taken"), *text = NULL, *path = fcvm_asprintf("%s/manifest.json", dir);
	_cleanup_free_ char *memory = fcvm_asprintf("%s/memory", dir), *state = fcvm_asprintf("%s/state", dir);
	struct fcvm_manifest m = {.memory = 0};
	struct fcvm_err err = FCVM_ERR_INIT;

	CHECK(is_damaged(dir, "manifest.json is missing"));
	CHECK(fcvm_manifest_write(dir, &sample, true, &err) == 0);
	CHECK(fcvm_manifest_read(dir, "heron1", &m, &err) == 0);
	CHECK(strcmp(m.driver, "qemu") == 0 && strcmp(m.machine, "microvm max") == 0 && !*m.host_cpu &&
		m.memory == 64 << 20 && m.vcpus == 2 && m.generation == 7 && m.created_ns == sample.created_ns &&
		strcmp(m.vm_name, "quiet-heron") == 0);
	fcvm_manifest_done(&m);
	CHECK(fcvm_file_read(AT_FDCWD, path, 1 << 20, &text, NULL) == 0);
	test_damaged_members(dir, text);
	CHECK(fcvm_manifest_read(dir, "heron1", &m, &err) == 0);
	fcvm_manifest_done(&m);

	overwrite(dir, "state", 4, "S");
	CHECK(is_damaged(dir, "state was changed"));
	overwrite(dir, "state", 4, "s");
	put_zeros(dir, 20 << 20); /* a hole that is none any more holds the same */
	CHECK(fcvm_manifest_read(dir, "heron1", &m, &err) == 0);
	fcvm_manifest_done(&m);
	move_mark(dir, (60 << 20) + 1234, (60 << 20) + 1234 + 3 * 4096);
	CHECK(is_damaged(dir, "memory was changed"));
	move_mark(dir, (60 << 20) + 1234 + 3 * 4096, (60 << 20) + 1234);
	CHECK(fcvm_manifest_read(dir, "heron1", &m, &err) == 0);
	fcvm_manifest_done(&m);
	overwrite(dir, "memory", 40 << 20, "?"); /* in a hole */
	CHECK(is_damaged(dir, "memory was changed"));
	CHECK(fcvm_manifest_write(dir, &sample, false, &err) == 0); /* not full: only its size counts */
	overwrite(dir, "memory", 41 << 20, "?");
	CHECK(fcvm_manifest_read(dir, "heron1", &m, &err) == 0);
	fcvm_manifest_done(&m);
	CHECK(truncate(memory, 32 << 20) == 0);
	CHECK(is_damaged(dir, "memory has 33554432 bytes, had 67108864"));
	CHECK(truncate(memory, 64 << 20) == 0 && rename(state, memory) == 0);
	CHECK(is_damaged(dir, "memory has 25"));
	CHECK(unlink(memory) == 0 && symlink("/etc/passwd", memory) == 0);
	CHECK(is_damaged(dir, "memory is a symbolic link"));
	CHECK(unlink(path) == 0 && symlink("/etc/passwd", path) == 0);
	CHECK(is_damaged(dir, "manifest.json"));
	CHECK(unlink(path) == 0 && mkfifo(path, 0600) == 0); /* must not wait for a writer */
	CHECK(is_damaged(dir, "manifest.json"));
	fcvm_tree_remove(AT_FDCWD, dir);
}

static void test_fits(void)
{
	struct fcvm_manifest_differs here = {"qemu", "10.0.2", "tcg", "microvm max", NULL};
	struct fcvm_err err = FCVM_ERR_INIT;

	CHECK(fcvm_manifest_fits(&sample, "heron1", &here, &err) == 0);
	here.version = "7.2.0";
	CHECK(fcvm_manifest_fits(&sample, "heron1", &here, &err) == -EINVAL);
	CHECK(SAYS(err, "snapshot heron1 was taken with qemu 10.0.2, here is 7.2.0; take it anew"));
	here = (struct fcvm_manifest_differs){.host_cpu = "AMD EPYC"};
	CHECK(fcvm_manifest_fits(&sample, "heron1", &here, &err) == -EINVAL && SAYS(err, "here is AMD EPYC"));
	here = (struct fcvm_manifest_differs){.tsc_khz = 2600500};
	CHECK(fcvm_manifest_fits(&sample, "heron1", &here, &err) == 0);
	here.tsc_khz = 3000000;
	CHECK(fcvm_manifest_fits(&sample, "heron1", &here, &err) == -EINVAL && SAYS(err, "2600000 kHz, here it is 3000000"));
}

/* ---- published ones ---- */

static uint64_t blocks(const char *dir, const char *file)
{
	_cleanup_free_ char *path = fcvm_asprintf("%s/%s", dir, file);
	struct stat st;

	return stat(path, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

static void test_names(struct fcvm_store *s, const char *from)
{
	static const char *const bad[] = {"", ".", "..", "a/b", "../x", ".hidden", "-rf", "a b", "a\n", "\xc3\xa4",
		"0123456789012345678901234567890123456789012345678901234567890123x"};
	struct fcvm_err err = FCVM_ERR_INIT;
	char *dir = NULL;

	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
		CHECK(fcvm_snapshot_publish(s, from, &sample, "snapshots", bad[i], &dir, &err) == -EINVAL);
		CHECK(fcvm_snapshot_find(s, "snapshots", bad[i], &dir, &err) == -EINVAL);
		CHECK(fcvm_snapshot_remove(s, "snapshots", bad[i], &err) == -EINVAL && SAYS(err, "use letters"));
	}
	CHECK(fcvm_snapshot_find(s, "../run", "x", &dir, &err) == -EINVAL && !dir);
}

static void test_list(struct fcvm_store *s)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *list = fcvm_json_array();
	_cleanup_free_ char *torn = in("data/snapshots/torn"), *link = in("data/snapshots/link");
	const struct fcvm_json *a, *b;
	struct fcvm_err err = FCVM_ERR_INIT;
	char *dir = NULL;

	CHECK(mkdir(torn, 0700) == 0 && symlink("/etc", link) == 0);
	put(torn, "manifest.json", "{\"format\"", 9);
	CHECK(fcvm_snapshot_list(s, list, &err) == 0 && fcvm_json_count(list) == 2);
	a = fcvm_json_at(list, 0);
	b = fcvm_json_at(list, 1);
	if (strcmp(fcvm_json_string(a, "name", ""), "torn") == 0) {
		const struct fcvm_json *c = a;

		a = b;
		b = c;
	}
	CHECK(strcmp(fcvm_json_string(a, "name", ""), "heron1") == 0 && fcvm_json_int(a, "memory", 0) == 64 << 20 &&
		fcvm_json_int(a, "created", 0) == 1700000000 && fcvm_json_int(a, "bytes", 0) > 1 << 20);
	CHECK(fcvm_json_string(b, "damaged", NULL));
	CHECK(fcvm_snapshot_find(s, "snapshots", "link", &dir, &err) == -EINVAL && SAYS(err, "symbolic link"));
	CHECK(fcvm_snapshot_remove(s, "snapshots", "link", &err) == 0 && access("/etc/passwd", F_OK) == 0);
	CHECK(fcvm_snapshot_remove(s, "snapshots", "torn", &err) == 0 && access(torn, F_OK) < 0);
}

static void test_publish(void)
{
	_cleanup_free_ char *from = make_snapshot("source"), *dir = NULL, *found = NULL, *warm = NULL, *tmp = in("data/tmp");
	struct fcvm_store *s = open_store(NULL);
	struct fcvm_manifest m = {.memory = 0};
	struct fcvm_err err = FCVM_ERR_INIT;
	int hold;

	test_names(s, from);
	CHECK(fcvm_snapshot_find(s, "snapshots", "heron1", &found, &err) == -ENOENT && SAYS(err, "heron1"));
	CHECK(fcvm_snapshot_publish(s, from, &sample, "snapshots", "heron1", &dir, &err) == 0);
	CHECK(blocks(dir, "memory") >= 1 << 20 && blocks(dir, "memory") < 4 << 20);
	CHECK(fcvm_manifest_read(dir, "heron1", &m, &err) == 0);
	fcvm_manifest_done(&m);
	CHECK(count(tmp, ".gate") == 0);
	CHECK(fcvm_snapshot_publish(s, from, &sample, "snapshots", "heron1", NULL, &err) == -EEXIST);
	CHECK(SAYS(err, "exists already"));
	CHECK(fcvm_snapshot_publish(s, from, &sample, "warm", "00ff", &warm, &err) == 0);
	CHECK(fcvm_snapshot_publish(s, from, &sample, "warm", "00ff", NULL, &err) == 0);
	CHECK(fcvm_snapshot_find(s, "snapshots", "heron1", &found, &err) == 0 && strcmp(found, dir) == 0);
	test_list(s);

	hold = fcvm_snapshot_hold(dir);
	CHECK(hold >= 0);
	CHECK(fcvm_snapshot_remove(s, "snapshots", "heron1", &err) == -EBUSY && SAYS(err, "in use"));
	CHECK(exists(dir, "memory"));
	fcvm_close(hold);
	CHECK(fcvm_snapshot_remove(s, "snapshots", "heron1", &err) == 0 && access(dir, F_OK) < 0);
	CHECK(fcvm_snapshot_hold(dir) == -ENOENT);
	CHECK(fcvm_snapshot_remove(s, "snapshots", "heron1", &err) == -ENOENT);
	CHECK(count(tmp, ".gate") == 0);
	fcvm_store_close(s);
	fcvm_tree_remove(AT_FDCWD, from);
}

static void publish_on_full_disk(void)
{
	_cleanup_free_ char *from = in("source"), *full = in("full"), *memory = in("source/memory"), *tmp = in("full/tmp");
	_cleanup_free_ char *block = malloc(1 << 20), *dir = NULL;
	struct fcvm_err err = FCVM_ERR_INIT;
	struct fcvm_store *s;
	int fd;

	CHECK(mkdir(full, 0700) == 0);
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
		mount("tmpfs", full, "tmpfs", 0, "size=3m,mode=0700") < 0) {
		printf("skipped: publishing on a full disk: mount a tmpfs: %s\n", strerror(errno));
		return;
	}
	setenv("FCVM_DATA", full, 1);
	s = open_store(NULL);
	fd = open(memory, O_WRONLY | O_CLOEXEC);
	fcvm_random(block, 1 << 20);
	for (int i = 20; i < 28; i++)
		CHECK(pwrite(fd, block, 1 << 20, i << 20) == 1 << 20);
	CHECK(fcvm_snapshot_publish(s, from, &sample, "snapshots", "heron1", &dir, &err) == -ENOSPC && !dir);
	CHECK(SAYS(err, "snapshot heron1") && SAYS(err, full) && SAYS(err, "needs 9") && SAYS(err, "free"));
	CHECK(count(tmp, ".gate") == 0 && !exists(full, "snapshots/heron1"));
	CHECK(ftruncate(fd, 0) == 0 && ftruncate(fd, 64 << 20) == 0);
	CHECK(fcvm_snapshot_publish(s, from, &sample, "snapshots", "heron1", &dir, &err) == 0);
	close(fd);
	fcvm_store_close(s);
}

static void test_full_disk(void)
{
	_cleanup_free_ char *from = make_snapshot("source");

	CHECK(ended_well(begin(publish_on_full_disk)));
	fcvm_tree_remove(AT_FDCWD, from);
}

static void test_gc(void)
{
	_cleanup_free_ char *from = make_snapshot("source"), *old = NULL, *held = NULL, *young = NULL;
	_cleanup_free_ char *left = in("data/tmp/0badcafe"), *tmp = in("data/tmp");
	const struct timespec long_ago[2] = {{.tv_sec = 1000000}, {.tv_sec = 1000000}};
	struct fcvm_json *report = fcvm_json_array();
	struct fcvm_store *s = open_store(NULL);
	struct fcvm_err err = FCVM_ERR_INIT;
	int hold;

	CHECK(fcvm_snapshot_publish(s, from, &sample, "warm", "old", &old, &err) == 0);
	CHECK(fcvm_snapshot_publish(s, from, &sample, "warm", "held", &held, &err) == 0);
	CHECK(fcvm_snapshot_publish(s, from, &sample, "warm", "young", &young, &err) == 0);
	CHECK(mkdir(left, 0700) == 0);
	utimensat(AT_FDCWD, old, long_ago, 0);
	utimensat(AT_FDCWD, held, long_ago, 0);
	utimensat(AT_FDCWD, young, long_ago, 0);
	free(fcvm_steal_ptr(young));
	CHECK(fcvm_snapshot_find(s, "warm", "young", &young, &err) == 0); /* makes it young */
	hold = fcvm_snapshot_hold(held);
	CHECK(fcvm_store_gc(s, 3600, report, &err) == 0 && fcvm_json_count(report) == 2);
	CHECK(access(old, F_OK) < 0 && access(held, F_OK) == 0 && access(young, F_OK) == 0 && count(tmp, ".gate") == 0);
	fcvm_close(hold);
	CHECK(fcvm_store_gc(s, 3600, NULL, &err) == 0 && access(held, F_OK) < 0);
	fcvm_json_free(report);
	fcvm_store_close(s);
	fcvm_tree_remove(AT_FDCWD, from);
}

int main(void)
{
	if (begin_store_test() < 0)
		return perror("make a folder in /tmp"), 1;
	test_folders();
	test_libexec();
	test_lease();
	test_dead_owner();
	test_strange_entries();
	test_at_once();
	test_manifest();
	test_fits();
	test_publish();
	test_full_disk();
	test_gc();
	fcvm_tree_remove(AT_FDCWD, base);
	CHECK_DONE();
}
