/* SPDX-License-Identifier: MIT */
/*
 * The QEMU driver on a real QEMU with a real kernel and the real agent: boot, pause, save, restore, clones that diverge,
 * snapshots of clones, and how each failure looks. Skips without QEMU or an image to boot.
 *
 * The kernel: image mini's. FCVM_TEST_ACCEL: kvm or tcg. FCVM_TEST_VCPUS: else 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "check.h"
#include "store/store.h"
#include "vmm/vmm.h"

#define MEMORY (UINT64_C(256) << 20)

static const struct vmm_ops *const ops = &fcvm_vmm_qemu;
static struct fcvm_node *local;
static struct vmm_probe probe;
static char top[64];
static struct fcvm_image image; /* mini */
static const char *kernel, *initrd;
static struct fcvm_err err;

struct guest {
	char name[24], dir[128], shared[200];
	struct vmm_drive drives[2];
	int dirfd;
	struct vmm *v;
	struct fcvm_node *node;
};

#define OK(call) CHECK_ok((call), #call, __LINE__)

static bool CHECK_ok(int k, const char *what, int line)
{
	if (k >= 0) {
		check_passed++;
		return true;
	}
	check_failed++;
	fprintf(stderr, "test_qemu.c:%d: %s: %d: %s\n%s\n", line, what, k, err.message, err.detail);
	return false;
}

static double ms_since(int64_t start)
{
	return (fcvm_now_ns() - start) / 1e6;
}

static struct fcvm_until in_ms(int ms)
{
	return fcvm_until_ms(ms, -1);
}

/* ---- a guest ---- */

enum { DISK = 1 << 20 };

/* Two disks: one that all share, and one of its own in its folder, empty. */
static void make_drives(struct guest *g)
{
	char path[200];
	int fd;

	snprintf(path, sizeof path, "%s/shared.img", top);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd >= 0)
		CHECK(write(fd, "shared\n", 7) == 7 && ftruncate(fd, DISK) == 0);
	fcvm_close(fd);
	snprintf(g->shared, sizeof g->shared, "%s", path);
	snprintf(path, sizeof path, "%s/disk0", g->dir);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && ftruncate(fd, DISK) == 0);
	fcvm_close(fd);
	g->drives[0] = (struct vmm_drive){.path = g->shared, .readonly = true};
	g->drives[1] = (struct vmm_drive){.path = "disk0"};
}

static struct vmm_machine machine_of(struct guest *g, const char *name)
{
	snprintf(g->name, sizeof g->name, "%s", name);
	snprintf(g->dir, sizeof g->dir, "%s/%s", top, name);
	mkdir(g->dir, 0700);
	g->dirfd = open(g->dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	make_drives(g);
	return (struct vmm_machine){.node = local, .name = g->name, .dir = g->dir, .dirfd = g->dirfd,
		.drives = g->drives, .ndrives = 2,
		.memory = MEMORY, .vcpus = getenv("FCVM_TEST_VCPUS") ? atoi(getenv("FCVM_TEST_VCPUS")) : 1};
}

static bool meet(struct guest *g, uint64_t generation)
{
	struct fcvm_until until = in_ms(20000);
	char tail[4097];
	int fd = -1;

	if (!OK(ops->carrier(g->v, &until, &fd, &err)))
		return false;
	if (OK(fcvm_node_agent(&g->node, local, fd, g->name, generation, &until, &err)))
		return true;
	fcvm_vmm_tail(g->v, tail, sizeof tail);
	fprintf(stderr, "%s\n", tail);
	return false;
}

static bool boot(struct guest *g, const char *name)
{
	struct vmm_machine m = machine_of(g, name);
	struct fcvm_until until = in_ms(60000);

	m.kernel = kernel;
	m.initrd = initrd;
	m.cmdline = "rdinit=/init";
	return OK(ops->boot(&m, &probe, &until, &g->v, &err)) && meet(g, 0);
}

static void end(struct guest *g)
{
	fcvm_node_unref(fcvm_steal_ptr(g->node));
	fcvm_vmm_free(fcvm_steal_ptr(g->v));
	g->dirfd = fcvm_close(g->dirfd);
}

static char *sh(struct guest *g, const char *script)
{
	const char *argv[] = {"/bin/busybox", "sh", "-c", script, NULL};
	struct fcvm_spawn spec = {.argv = argv};
	struct fcvm_until until = in_ms(60000);
	struct fcvm_output o;
	static char text[4096];

	text[0] = 0;
	if (!g->node || !OK(fcvm_node_exec(g->node, &spec, NULL, 0, 4000, &until, &o, &err)))
		return text;
	snprintf(text, sizeof text, "%s", o.out);
	text[strcspn(text, "\n")] = 0;
	if (o.exit.code)
		fprintf(stderr, "%s: %s: status %d: %s\n", g->name, script, o.exit.code, o.err);
	fcvm_output_done(&o);
	return text;
}

/* ---- snapshots ---- */

static void paths_of(const char *snapshot, char *memory, char *state)
{
	snprintf(memory, 160, "%s/%s.memory", top, snapshot);
	snprintf(state, 160, "%s/%s.state", top, snapshot);
}

static bool snapshot(struct guest *g, const char *name)
{
	char memory[160], state[160];
	struct fcvm_until until = in_ms(30000);
	int64_t start = fcvm_now_ns(), paused;
	double prepare, pause, save;
	bool ok;

	paths_of(name, memory, state);
	ok = OK(ops->prepare_save(g->v, memory, &until, &err));
	prepare = ms_since(start);
	ok = ok && OK(fcvm_node_freeze(g->node, &until, &err));
	paused = start = fcvm_now_ns();
	ok = ok && OK(ops->pause(g->v, &until, &err));
	pause = ms_since(start);
	start = fcvm_now_ns();
	ok = ok && OK(ops->save(g->v, state, memory, &until, &err));
	save = ms_since(start);
	ok = ok && OK(ops->resume(g->v, &until, &err));
	printf("%s of %s: prepare %.1f ms, pause %.1f, save %.1f, pause to resumed %.1f\n", name, g->name, prepare,
		pause, save, ms_since(paused));
	return ok && OK(fcvm_node_thaw(g->node, &until, &err));
}

static bool clone_of(struct guest *g, const char *name, const char *snapshot)
{
	char memory[160], state[160];
	struct vmm_machine m = machine_of(g, name);
	struct fcvm_until until = in_ms(60000);
	int64_t start = fcvm_now_ns();
	double wait, restore;

	paths_of(snapshot, memory, state);
	m.memory_file = memory;
	if (!OK(ops->wait(&m, &probe, &until, &g->v, &err)))
		return false;
	wait = ms_since(start);
	start = fcvm_now_ns();
	if (!OK(ops->restore(g->v, state, &until, &err)))
		return false;
	restore = ms_since(start);
	start = fcvm_now_ns();
	if (!meet(g, 0))
		return false;
	printf("clone %s: start %.1f ms, restore %.1f, agent %.1f\n", name, wait, restore,
		ms_since(start));
	return true;
}

static uint64_t hash_of(const char *snapshot)
{
	char memory[160], state[160];
	uint64_t hash = 14695981039346656037u;
	const uint64_t *at;
	int fd;

	paths_of(snapshot, memory, state);
	fd = open(memory, O_RDONLY | O_CLOEXEC);
	at = mmap(NULL, MEMORY, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (at == MAP_FAILED)
		return 0;
	for (size_t i = 0; i < MEMORY / sizeof *at; i++)
		hash = (hash ^ at[i]) * 1099511628211u;
	munmap((void *)at, MEMORY);
	return hash;
}

/* ---- what is tested ---- */

static const char dirtying[] = "dd if=/dev/urandom of=/tmp/junk bs=64k count=320 2>/dev/null; cat /tmp/who";

static void say_who(struct guest *g, const char *who)
{
	char script[100];

	snprintf(script, sizeof script, "echo %s > /tmp/who; cat /tmp/who", who);
	CHECK(strcmp(sh(g, script), who) == 0);
	CHECK(strcmp(sh(g, dirtying), who) == 0);
}

static void test_clones(struct guest *alpha)
{
	struct guest one = {.dirfd = -1}, two = {.dirfd = -1}, three = {.dirfd = -1}, four = {.dirfd = -1};
	uint64_t first, second, third;

	say_who(alpha, "alpha");
	if (!snapshot(alpha, "first"))
		return;
	first = hash_of("first");
	if (clone_of(&one, "one", "first") && clone_of(&two, "two", "first")) {
		CHECK(strcmp(sh(&one, "cat /tmp/who"), "alpha") == 0);
		say_who(&one, "one");
		say_who(&two, "two");
		say_who(alpha, "beta");
		CHECK(strcmp(sh(&one, "cat /tmp/who"), "one") == 0);
		CHECK(hash_of("first") == first);

		/* Snapshots of a clone, and of the source, which is one by now. */
		if (snapshot(&one, "second") && snapshot(alpha, "third")) {
			second = hash_of("second");
			third = hash_of("third");
			say_who(&one, "uno");
			CHECK(clone_of(&three, "three", "second") && clone_of(&four, "four", "third"));
			CHECK(strcmp(sh(&three, "cat /tmp/who"), "one") == 0);
			CHECK(strcmp(sh(&four, "cat /tmp/who"), "beta") == 0);
			say_who(&three, "three");
			say_who(&four, "four");
			CHECK(strcmp(sh(&one, "cat /tmp/who"), "uno") == 0);
			CHECK(hash_of("second") == second && hash_of("third") == third);
			/* And once more: of the clone of the clone's snapshot. */
			end(&two);
			if (snapshot(&three, "fourth") && clone_of(&two, "two", "fourth"))
				CHECK(strcmp(sh(&two, "cat /tmp/who"), "three") == 0);
		}
	}
	CHECK(hash_of("first") == first);
	end(&one);
	end(&two);
	end(&three);
	end(&four);
}

/* What is on the first sectors of a guest's own disk, as this host sees it. */
static bool disk_says(const struct guest *g, const char *text)
{
	char path[200], found[16] = "";
	int fd;

	snprintf(path, sizeof path, "%s/disk0", g->dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0 && read(fd, found, sizeof found - 1) > 0);
	fcvm_close(fd);
	return strcmp(found, text) == 0;
}

/* Each has its own, and all have the shared one, which nobody can write to. */
static void test_drives(struct guest *alpha)
{
	struct guest one = {.dirfd = -1};

	CHECK(strcmp(sh(alpha, "head -n 1 /dev/vda"), "shared") == 0);
	CHECK(strcmp(sh(alpha, "echo no 2>/dev/null >/dev/vda && echo written; true"), "") == 0);
	CHECK(strcmp(sh(alpha, "echo alpha >/dev/vdb; sync; head -n 1 /dev/vdb"), "alpha") == 0);
	CHECK(disk_says(alpha, "alpha\n"));
	if (snapshot(alpha, "disks") && clone_of(&one, "disked", "disks")) {
		CHECK(disk_says(&one, ""));
		CHECK(strcmp(sh(&one, "head -n 1 /dev/vda; echo one >/dev/vdb; sync"), "shared") == 0);
		CHECK(disk_says(&one, "one\n") && disk_says(alpha, "alpha\n"));
	}
	end(&one);
}

static void test_states(struct guest *g)
{
	struct fcvm_until until = in_ms(5000);
	int fd;

	CHECK(ops->resume(g->v, &until, &err) == -EINVAL && strstr(err.message, "alpha: resume: it is running"));
	CHECK(ops->save(g->v, "/nonexistent/state", "/nonexistent/memory", &until, &err) == -EINVAL);
	CHECK(ops->carrier(g->v, &until, &fd, &err) == -EBUSY);
	CHECK(ops->restore(g->v, "/nonexistent", &until, &err) == -EINVAL);
	/* A snapshot that cannot be written leaves the VM as it was. */
	OK(ops->pause(g->v, &until, &err));
	CHECK(ops->save(g->v, "/nonexistent/state", "/nonexistent/memory", &until, &err) == -EIO);
	CHECK(strstr(err.message, "alpha: ") == err.message && strstr(err.message, "/nonexistent/state"));
	printf("as wanted: %s\n", err.message);
	OK(ops->resume(g->v, &until, &err));
	CHECK(strcmp(sh(g, "echo here"), "here") == 0);
}

static void test_no_way_to_rename(struct guest *g)
{
	char state[160], unused[160], memory[] = "/tmp/fcvm-test-memory.XXXXXX";
	struct fcvm_until until = in_ms(30000);
	struct stat shm, tmp;

	paths_of("far", unused, state);
	if (stat("/dev/shm", &shm) < 0 || stat("/tmp", &tmp) < 0 || shm.st_dev == tmp.st_dev)
		return;
	close(mkstemp(memory));
	unlink(memory);
	OK(ops->pause(g->v, &until, &err));
	OK(ops->save(g->v, state, memory, &until, &err));
	OK(ops->resume(g->v, &until, &err));
	CHECK(stat(memory, &tmp) == 0 && (uint64_t)tmp.st_size == MEMORY && tmp.st_blocks > 1000);
	unlink(memory);
	CHECK(strcmp(sh(g, "echo here"), "here") == 0);
}

static void test_death(struct guest *g)
{
	struct fcvm_until until = in_ms(20000);
	struct fcvm_exit e;
	int64_t start = fcvm_now_ns();

	fcvm_vmm_kill(g->v);
	CHECK(ms_since(start) < 100);
	CHECK(ops->pause(g->v, &until, &err) < 0);
	CHECK(strstr(err.message, "signal 9 ended QEMU") && strstr(err.message, g->name) == err.message);
	CHECK(strstr(err.detail, "Linux version") || strstr(err.detail, "fcvm-agent"));
	CHECK(ops->resume(g->v, &until, &err) < 0);
	CHECK(ms_since(start) < 3000);
	OK(fcvm_vmm_wait_exit(g->v, &until, &e, &err));
	CHECK(e.signal == SIGKILL);
	printf("as wanted: %s\n", err.message);
}

static void test_bad_starts(void)
{
	struct guest g = {.dirfd = -1};
	struct vmm_machine m = machine_of(&g, "bad");
	struct fcvm_until until = in_ms(20000);
	char memory[160], state[160];
	int fd;

	m.kernel = "/nonexistent/kernel";
	CHECK(ops->boot(&m, &probe, &until, &g.v, &err) < 0 && !g.v);
	CHECK(strstr(err.message, "bad: ") == err.message && strstr(err.message, "/nonexistent/kernel"));
	printf("as wanted: %s\n", err.message);

	m.memory_file = "/nonexistent/memory";
	CHECK(ops->wait(&m, &probe, &until, &g.v, &err) == -ENOENT && access(m.memory_file, F_OK) < 0);
	paths_of("short", memory, state);
	fd = open(memory, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	CHECK(ftruncate(fd, MEMORY / 2) == 0);
	m.memory_file = memory;
	CHECK(ops->wait(&m, &probe, &until, &g.v, &err) == -EINVAL && strstr(err.message, "not its snapshot"));
	CHECK(ftruncate(fd, MEMORY) == 0);
	close(fd);
	/* A state that is none: QEMU ends itself. */
	fcvm_file_replace(AT_FDCWD, state, "garbage, garbage, garbage", 25, 0600, false);
	if (OK(ops->wait(&m, &probe, &until, &g.v, &err))) {
		CHECK(ops->restore(g.v, state, &until, &err) < 0 && strstr(err.message, "bad: ") == err.message);
		printf("as wanted: %s\n", err.message);
		CHECK(ops->resume(g.v, &until, &err) < 0);
	}
	end(&g);
}

/* One that never gets to its agent: the tail tells. */
static void test_panic(void)
{
	struct guest g = {.dirfd = -1};
	struct vmm_machine m = machine_of(&g, "panic");
	struct fcvm_until until = in_ms(60000);
	struct fcvm_exit e = {.code = -1};
	struct vmm *copy = NULL;
	char tail[4097];

	m.kernel = kernel;
	if (!OK(ops->boot(&m, &probe, &until, &g.v, &err)))
		return;
	m.drives = &(struct vmm_drive){.path = "shared"};
	m.ndrives = 1;
	CHECK(ops->fork(g.v, &m, &until, &copy, &err) == -EOPNOTSUPP && strstr(err.message, "drive shared") && !copy);
	OK(fcvm_vmm_wait_exit(g.v, &until, &e, &err)); /* it reboots, which ends it */
	CHECK(e.code == 0 && e.signal == 0);
	CHECK(ops->pause(g.v, &until, &err) < 0 && strstr(err.message, "QEMU ended with status 0"));
	CHECK(strstr(err.detail, "Kernel panic"));
	CHECK(fcvm_vmm_tail(g.v, tail, sizeof tail) > 1000 && strstr(tail, "Kernel panic"));
	end(&g);
}

static void test_wrong_library(void)
{
	struct vmm_probe other = probe;
	struct guest g = {.dirfd = -1};
	struct vmm_machine m = machine_of(&g, "bare");
	struct fcvm_until until = in_ms(20000);
	char memory[160], state[160];

	paths_of("short", memory, state);
	m.memory_file = memory;
	other.own = fcvm_json_object();
	fcvm_json_set_string(other.own, "library", "/nonexistent/libfcvm-ram.so");
	fcvm_json_set_bool(other.own, "file_uri", fcvm_json_bool(probe.own, "file_uri", false));
	if (fcvm_json_get(probe.own, "data_dir"))
		fcvm_json_set_string(other.own, "data_dir", fcvm_json_string(probe.own, "data_dir", ""));
	if (fcvm_json_get(probe.own, "env"))
		fcvm_json_set(other.own, "env", fcvm_json_take(probe.own, "env"));
	CHECK(ops->wait(&m, &other, &until, &g.v, &err) < 0 && !g.v);
	printf("as wanted: %s\n", err.message);
	fcvm_json_free(other.own);
	end(&g);
}

/* ---- */

/* Of the image that is in the data folder, or is built there. */
static bool prepare_kernel(void)
{
	struct fcvm_until until = in_ms(300000);
	struct fcvm_store *s = NULL;
	bool ok = fcvm_store_open(&s, local, &err) == 0 && fcvm_image_get(s, "mini", &until, &image, NULL, &err) == 0;

	fcvm_store_close(s);
	kernel = image.kernel;
	initrd = image.initrd;
	return ok;
}

static bool childless(void)
{
	return system("for t in /proc/$PPID/task/*; do cat $t/children; done 2>/dev/null | tr ' ' '\\n' | "
		"while read p; do [ -z \"$p\" ] || [ $p = $$ ] || tr '\\0' ' ' < /proc/$p/cmdline; done | grep qemu") != 0;
}

static int skip(const char *why)
{
	printf("skipped: %s\n", why);
	fcvm_node_unref(local);
	if (top[0])
		fcvm_tree_remove(AT_FDCWD, top);
	return 77;
}

int main(void)
{
	struct guest alpha = {.dirfd = -1};
	int64_t start;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (fcvm_node_local(&local, &err) < 0)
		return skip(err.message);
	start = fcvm_now_ns();
	if (ops->probe(local, getenv("FCVM_TEST_ACCEL"), NULL, NULL, &probe, &err) < 0)
		return skip(err.message);
	printf("%s %s, %s (%s), file: %s, TSC %llu kHz; probed in %.0f ms\n", probe.binary, probe.version, probe.accel,
		probe.why, fcvm_json_bool(probe.own, "file_uri", false) ? "yes" : "no", (unsigned long long)probe.tsc_khz, ms_since(start));
	snprintf(top, sizeof top, "%s/fcvm-qemu-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	if (!mkdtemp(top) || !prepare_kernel())
		return skip(err.message);
	start = fcvm_now_ns();
	if (boot(&alpha, "alpha")) {
		printf("boot to agent: %.0f ms\n", ms_since(start));
		test_states(&alpha);
		test_no_way_to_rename(&alpha);
		test_drives(&alpha);
		test_clones(&alpha);
		test_death(&alpha);
	}
	end(&alpha);
	test_bad_starts();
	test_wrong_library();
	test_panic();
	CHECK(childless());
	fcvm_vmm_probe_done(&probe);
	fcvm_node_unref(local);
	fcvm_image_done(&image);
	fcvm_tree_remove(AT_FDCWD, top);
	CHECK_DONE();
}
