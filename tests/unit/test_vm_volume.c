/* SPDX-License-Identifier: MIT */
/*
 * Volumes by the public interface, on real guests: what a configuration may say, mounting, unmounting, what is told of
 * them, snapshots and clones, a root of this host's.
 */
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "test_vm.h"

static char top[] = "/var/tmp/fcvm-test-volume-XXXXXX";

/* A folder of this host with a file `name` in it, that says which; in a buffer that the next but three reuses. */
static const char *folder(const char *name)
{
	static char paths[4][64];
	static unsigned i;
	char *path = paths[i++ % 4], file[128];

	snprintf(path, sizeof paths[0], "%s/%s", top, name);
	mkdir(path, 0755);
	snprintf(file, sizeof file, "%s/name", path);
	CHECK(!fcvm_file_replace(AT_FDCWD, file, name, strlen(name), 0644, false));
	return path;
}

static bool holds(const char *dir, const char *name, const char *want)
{
	char path[256], *text = NULL;
	size_t size;
	bool same;

	snprintf(path, sizeof path, "%s/%s", dir, name);
	same = fcvm_file_read(AT_FDCWD, path, 65536, &text, &size) == 0 && strcmp(text, want) == 0;
	if (!same)
		fprintf(stderr, "%s: %s\n", path, text ? text : "not there");
	free(text);
	return same;
}

static struct fcvm_vm_volume volume(const char *host, const char *guest)
{
	return (struct fcvm_vm_volume){.host = host, .guest = guest, .timeout_s = -1};
}

static struct fcvm_vm *start(const char *name, const struct fcvm_vm_volume *volumes, size_t n)
{
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	struct fcvm_vm *vm = NULL;

	config.name = name;
	config.memory = 128 * FCVM_MIB;
	config.volumes = volumes;
	config.nvolumes = n;
	CHECK(ok(fcvm_vm_new(&vm, &config, &err)));
	CHECK(ok(fcvm_vm_start(vm, FCVM_DEFAULT_TIMEOUT, &err)));
	return vm;
}

/* What is told of the volume at a place of the guest: "" and -1 where it tells nothing; ret_n: of how many. */
struct told {
	char host[128], state[16], locks[8];
	int64_t number, readers, written;
	bool readonly, root;
};

static struct told told(struct fcvm_vm *vm, const char *guest, size_t *ret_n)
{
	struct told t = {.number = -1};
	struct fcvm_json *list = NULL;
	char *text = NULL;

	CHECK(ok(fcvm_vm_volumes(vm, &text, &err)) && fcvm_json_parse(text, strlen(text), &list, NULL) == 0);
	*ret_n = fcvm_json_count(list);
	for (size_t i = 0; i < *ret_n; i++) {
		const struct fcvm_json *v = fcvm_json_at(list, i);

		if (strcmp(fcvm_json_string(v, "guest", ""), guest) != 0)
			continue;
		snprintf(t.host, sizeof t.host, "%s", fcvm_json_string(v, "host", ""));
		snprintf(t.state, sizeof t.state, "%s", fcvm_json_string(v, "state", ""));
		snprintf(t.locks, sizeof t.locks, "%s", fcvm_json_string(v, "locks", ""));
		t.number = fcvm_json_int(v, "number", -1);
		t.readers = fcvm_json_int(v, "readers", -1);
		t.written = fcvm_json_int(v, "bytes_written", -1);
		t.readonly = fcvm_json_bool(v, "readonly", false);
		t.root = fcvm_json_bool(v, "root", false);
	}
	fcvm_json_free(list);
	free(text);
	return t;
}

/* Nothing is made of it, and the reason is said. */
static bool refused(const struct fcvm_vm_config *config, int code, const char *text)
{
	struct fcvm_vm *vm = NULL;
	int r = fcvm_vm_new(&vm, config, &err);

	if (r != code || vm)
		fprintf(stderr, "%d: %s\n", r, r < 0 ? err.message : "");
	fcvm_vm_free(vm);
	return r == code && !vm && says(text);
}

static void test_misuse(void)
{
	struct fcvm_vm_volume v[FCVM_MAX_VOLUMES + 1], *first = v;
	struct fcvm_vm_config config = {.image = "mini", .memory = 128 * FCVM_MIB, .vcpus = 1, .volumes = v, .nvolumes = 1};
	const struct fcvm_vm_ids ids = {.guest = 1, .host = 1, .count = UINT32_MAX};
	char guests[FCVM_MAX_VOLUMES + 1][16];
	struct fcvm_vm *vm = NULL;
	char *text = NULL;
	size_t size;

	*first = volume("/no/such/folder", "/work");
	CHECK(refused(&config, -ENOENT, "/no/such/folder"));
	first->host = "/etc/passwd";
	CHECK(refused(&config, -ENOTDIR, "/etc/passwd"));
	*first = volume(folder("misuse"), "work");
	CHECK(refused(&config, -EINVAL, "work"));
	first->guest = "/";
	CHECK(refused(&config, -EINVAL, "/"));
	first->guest = NULL;
	CHECK(refused(&config, -EINVAL, "volume"));
	first->guest = "/work";
	first->readers = 257;
	CHECK(refused(&config, -EINVAL, "257"));
	first->readers = 0;
	first->timeout_s = 1e10;
	CHECK(refused(&config, -EINVAL, "timeout"));
	first->timeout_s = 0;
	if (geteuid() == 0) {
		first->uid_map = &ids;
		first->nuid_map = 1;
		CHECK(refused(&config, -EINVAL, "range 1"));
		first->nuid_map = 0;
	}
	config.root = "/no/such/root";
	CHECK(refused(&config, -ENOENT, "/no/such/root"));
	config.root = NULL;
	for (unsigned i = 0; i <= FCVM_MAX_VOLUMES; i++) {
		snprintf(guests[i], sizeof guests[i], "/work/%u", i);
		v[i] = volume(first->host, guests[i]);
	}
	config.nvolumes = FCVM_MAX_VOLUMES + 1;
	CHECK(refused(&config, -ENOSPC, "32"));
	config.nvolumes = 2;
	v[1].guest = v[0].guest;
	CHECK(refused(&config, -EEXIST, "/work/0"));
	/* One that is not running has none. */
	config.nvolumes = 1;
	CHECK(ok(fcvm_vm_new(&vm, &config, &err)));
	CHECK(fcvm_vm_mount(vm, first, FCVM_DEFAULT_TIMEOUT, &err) == -EINVAL && says("it is new"));
	CHECK(fcvm_vm_unmount(vm, "/work/0", false, FCVM_DEFAULT_TIMEOUT, &err) == -EINVAL && says("it is new"));
	CHECK(fcvm_vm_traces(vm, "/work/0", &text, &size, &err) == -ENOENT && !text);
	fcvm_vm_free(vm);
}

static void test_from_the_start(void)
{
	const struct fcvm_vm_ids me = {.guest = 5, .host = getuid(), .count = 1};
	struct fcvm_vm_volume v[] = {volume(folder("one"), "/one"), volume(folder("two"), "/deep/two")};
	struct fcvm_vm *vm, *second = NULL;
	struct told t;
	size_t n;

	v[0].uid_map = geteuid() ? NULL : &me;
	v[0].nuid_map = v[0].uid_map != NULL;
	v[1].readonly = v[1].local_locks = true;
	v[1].readers = 3;
	vm = start("from-start", v, 2);
	CHECK(strcmp(sh(vm, "cat /one/name /deep/two/name"), "onetwo") == 0);
	if (v[0].uid_map)
		CHECK(strcmp(sh(vm, "stat -c %u /one/name"), "5\n") == 0);
	CHECK(strcmp(sh(vm, "printf 12345 >/one/new; printf 1 >/deep/two/new 2>/dev/null; echo $?"), "1\n") == 0);
	CHECK(holds(v[0].host, "new", "12345"));
	/* As another process is told. */
	CHECK(ok(fcvm_vm_attach(&second, "from-start", &err)));
	t = told(second, "/one", &n);
	CHECK(n == 2 && strcmp(t.host, v[0].host) == 0 && strcmp(t.state, "running") == 0 && strcmp(t.locks, "host") == 0);
	CHECK(t.readers == 1 && t.written == 5 && !t.readonly && !t.root && t.number == 0);
	t = told(second, "/deep/two", &n);
	CHECK(t.readers == 3 && t.written == 0 && t.readonly && strcmp(t.locks, "guest") == 0 && t.number == 1);
	CHECK(fcvm_vm_mount(second, &v[0], 1000, &err) < 0 && fcvm_vm_unmount(second, "/one", true, 1000, &err) < 0);
	fcvm_vm_free(second);
	fcvm_vm_free(vm);
}

static void test_while_it_runs(void)
{
	struct fcvm_vm_volume v = volume(folder("later"), "/later"), none = volume("/no/such", "/x");
	struct fcvm_run_options options = FCVM_RUN_OPTIONS_INIT;
	struct fcvm_vm *vm = start("later", NULL, 0);
	struct fcvm_program *p = NULL;
	char line[8];
	size_t n;

	CHECK(told(vm, "/later", &n).number < 0 && n == 0);
	CHECK(fcvm_vm_mount(vm, &none, FCVM_DEFAULT_TIMEOUT, &err) == -ENOENT && says("/no/such"));
	for (unsigned round = 0; round < 2; round++) {
		CHECK(ok(fcvm_vm_mount(vm, &v, FCVM_DEFAULT_TIMEOUT, &err)));
		CHECK(strcmp(sh(vm, "cat /later/name"), "later") == 0);
		CHECK(fcvm_vm_mount(vm, &v, FCVM_DEFAULT_TIMEOUT, &err) == -EEXIST && says("/later"));
		CHECK(told(vm, "/later", &n).number == 0 && n == 1);
		CHECK(fcvm_vm_unmount(vm, "/elsewhere", false, FCVM_DEFAULT_TIMEOUT, &err) == -ENOENT && says("/elsewhere"));
		CHECK(ok(fcvm_vm_unmount(vm, "/later", false, FCVM_DEFAULT_TIMEOUT, &err)));
		CHECK(told(vm, "/later", &n).number < 0 && n == 0);
		CHECK(strcmp(sh(vm, "cat /later/name 2>/dev/null"), "") == 0);
	}
	/* One that is in use. */
	CHECK(ok(fcvm_vm_mount(vm, &v, FCVM_DEFAULT_TIMEOUT, &err)));
	CHECK(ok(fcvm_vm_spawn(vm, (const char *[]){"sh", "-c", "cd /later; echo; read x", NULL}, &options, &p, &err)));
	CHECK(fcvm_program_read(p, 1, line, sizeof line, 10000, &err) > 0);
	CHECK(fcvm_vm_unmount(vm, "/later", false, FCVM_DEFAULT_TIMEOUT, &err) == -EBUSY && says("/later"));
	CHECK(strcmp(sh(vm, "cat /later/name"), "later") == 0);
	CHECK(ok(fcvm_vm_unmount(vm, "/later", true, FCVM_DEFAULT_TIMEOUT, &err)));
	CHECK(told(vm, "/later", &n).number < 0 && n == 0);
	fcvm_program_free(p);
	fcvm_vm_free(vm);
}

static void test_traces(void)
{
	struct fcvm_vm_volume v = volume(folder("traced"), "/traced");
	char *text = NULL;
	struct fcvm_vm *vm;
	size_t size = 0;

	setenv("FCVM_FUSE_TRACE_RATE", "1", 1);
	vm = start("traced", &v, 1);
	unsetenv("FCVM_FUSE_TRACE_RATE");
	CHECK(strcmp(sh(vm, "cat /traced/name"), "traced") == 0);
	CHECK(ok(fcvm_vm_traces(vm, "//traced/", &text, &size, &err)));
	/* A line for each request. */
	CHECK(text && strlen(text) == size && size && text[size - 1] == '\n');
	CHECK(text && strstr(text, "read") && strstr(text, "lookup"));
	free(text);
	text = NULL;
	CHECK(fcvm_vm_traces(vm, "/seven", &text, &size, &err) == -ENOENT && says("/seven") && !text);
	fcvm_vm_free(vm);
}

static void test_snapshot(void)
{
	struct fcvm_snapshot_config config = {.stop = true};
	struct fcvm_vm_volume v = volume(folder("snapshot"), "/work"), more = volume(folder("more"), "/more");
	struct fcvm_vm *vm = start("origin", &v, 1), *clones[2] = {NULL};
	struct fcvm_snapshot *s = NULL;
	size_t n;

	sh(vm, "setsid sh -c 'exec 3>>/work/open; until [ -e /tmp/go ]; do sleep 0.1; done; hostname >&3; touch /tmp/gone' "
	       ">/dev/null 2>&1 </dev/null &");
	sh(vm, "until [ -e /work/open ]; do sleep 0.05; done");
	CHECK(ok(fcvm_vm_snapshot(vm, &config, FCVM_DEFAULT_TIMEOUT, &s, &err)));
	fcvm_vm_free(vm);
	for (unsigned i = 0; i < 2; i++) {
		CHECK(ok(fcvm_snapshot_clone(s, NULL, FCVM_DEFAULT_TIMEOUT, &clones[i], &err)));
		CHECK(strcmp(told(clones[i], "/work", &n).state, "running") == 0 && n == 1);
	}
	/* By a file that was open before. */
	for (unsigned i = 0; i < 2; i++)
		sh(clones[i], "touch /tmp/go; until [ -e /tmp/gone ]; do sleep 0.1; done");
	CHECK(holds(v.host, "open", "origin-1\norigin-2\n"));
	CHECK(ok(fcvm_vm_mount(clones[0], &more, FCVM_DEFAULT_TIMEOUT, &err)));
	CHECK(strcmp(sh(clones[0], "cat /more/name"), "more") == 0 && strcmp(sh(clones[1], "ls /more 2>/dev/null"), "") == 0);
	CHECK(told(clones[0], "/more", &n).number == 1 && n == 2);
	for (unsigned i = 0; i < 2; i++)
		fcvm_vm_free(clones[i]);
	fcvm_snapshot_free(s);
}

static void test_root(void)
{
	struct fcvm_vm_volume v = volume(folder("beside"), "/work");
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	char release[4096] = "", path[128];
	struct fcvm_vm *vm = NULL;
	struct told t;
	FILE *f = fopen("/etc/os-release", "re");
	size_t n;

	CHECK(f && fread(release, 1, sizeof release - 1, f) > 0);
	if (f)
		fclose(f);
	config.name = "on-root";
	config.root = "/";
	config.volumes = &v;
	config.nvolumes = 1;
	CHECK(ok(fcvm_vm_new(&vm, &config, &err)));
	CHECK(ok(fcvm_vm_start(vm, FCVM_DEFAULT_TIMEOUT, &err)));
	CHECK(strcmp(sh(vm, "cat /etc/os-release"), release) == 0);
	t = told(vm, "/", &n);
	CHECK(n == 2 && t.root && t.readonly && strcmp(t.host, "/") == 0);
	snprintf(path, sizeof path, "echo guest >%s/new; cat %s/new", top, top);
	CHECK(strcmp(sh(vm, path), "guest\n") == 0);
	snprintf(path, sizeof path, "%s/new", top);
	CHECK(access(path, F_OK) < 0);
	CHECK(strcmp(sh(vm, "cat /work/name; echo new >/work/new"), "beside") == 0 && holds(v.host, "new", "new\n"));
	CHECK(fcvm_vm_unmount(vm, "/", true, FCVM_DEFAULT_TIMEOUT, &err) == -EBUSY && says("root"));
	fcvm_vm_free(vm);
}

int main(void)
{
	static const struct test tests[] = {
		{"misuse", test_misuse}, {"from the start", test_from_the_start}, {"while it runs", test_while_it_runs},
		{"traces", test_traces}, {"snapshot", test_snapshot}, {"root", test_root},
	};

	CHECK(mkdtemp(top));
	run_tests(tests, sizeof tests / sizeof *tests);
	CHECK(!fcvm_tree_remove(AT_FDCWD, top));
	CHECK_DONE();
}
