/* SPDX-License-Identifier: MIT */
/*
 * The Firecracker driver on the real one with a real kernel and the real agent, where KVM is (the lab has it): what
 * tests/drivers cannot see from outside. Diffs are whole memory files, what a clone costs in calls, what it says of
 * snapshots that are damaged or another version's. The rest is there.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "check.h"
#include "store/store.h"
#include "vmm/fc_private.h"

#define MEMORY (UINT64_C(128) << 20)

enum { PAGE = 4096, LONG_MS = 120000 /* an emulated host is slow */ };

static const struct vmm_ops *const ops = &fcvm_vmm_firecracker;
static struct fcvm_node *local;
static struct vmm_probe probe;
static char top[64], *kernel, *initrd;
static struct fcvm_err err;

struct guest {
	char name[32], dir[128];
	int dirfd;
	struct vmm *v;
	struct fcvm_node *node;
};

#define OK(e) ((e) == 0 || (fprintf(stderr, "%s\n%s\n", err.message, err.detail), false))

static bool says(const char *what)
{
	if (strstr(err.message, what))
		return true;
	fprintf(stderr, "\"%s\" does not say \"%s\"\n", err.message, what);
	return false;
}

static struct vmm_machine machine_of(struct guest *g, const char *name)
{
	static const struct vmm_drive drives[] = {{.path = "disk"}};
	int fd;

	*g = (struct guest){0};
	snprintf(g->name, sizeof g->name, "%s", name);
	snprintf(g->dir, sizeof g->dir, "%s/%s", top, name);
	mkdir(g->dir, 0700);
	g->dirfd = open(g->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(fcvm_file_replace(g->dirfd, "disk", "a disk of its own\n", 18, 0600, false) == 0);
	fd = openat(g->dirfd, "disk", O_WRONLY | O_CLOEXEC);
	CHECK(ftruncate(fd, 1 << 20) == 0);
	close(fd);
	return (struct vmm_machine){.node = local, .name = g->name, .dir = g->dir, .dirfd = g->dirfd, .memory = MEMORY,
		.vcpus = 1, .balloon = true, .track = true, .drives = drives, .ndrives = 1};
}

/* As core does: a stream that the guest, hearing of the snapshot late, drops is replaced. */
static bool meet(struct guest *g, uint64_t generation)
{
	struct fcvm_until until = fcvm_until_ms(LONG_MS, -1);
	int k = -ECONNRESET, fd;

	for (int i = 0; i < 8 && k == -ECONNRESET; i++) {
		if (!OK(ops->carrier(g->v, &until, &fd, &err)))
			return false;
		k = fcvm_node_agent(&g->node, local, fd, g->name, generation, &until, &err);
	}
	return OK(k);
}

static void end(struct guest *g)
{
	fcvm_node_unref(fcvm_steal_ptr(g->node));
	fcvm_vmm_free(fcvm_steal_ptr(g->v));
	g->dirfd = fcvm_close(g->dirfd);
}

static char *sh(struct guest *g, const char *script)
{
	const char *argv[] = {"sh", "-c", script, NULL};
	struct fcvm_spawn spec = {.argv = argv};
	struct fcvm_until until = fcvm_until_ms(LONG_MS, -1);
	struct fcvm_output o;
	static char text[4096];

	text[0] = 0;
	if (!g->node || !OK(fcvm_node_exec(g->node, &spec, NULL, 0, 4000, &until, &o, &err)))
		return text;
	snprintf(text, sizeof text, "%s", o.out);
	text[strcspn(text, "\n")] = 0;
	fcvm_output_done(&o);
	return text;
}

static const char *path_of(const char *name)
{
	static char paths[4][160];
	static unsigned n;
	char *path = paths[n++ % 4];

	snprintf(path, sizeof paths[0], "%s/%s", top, name);
	return path;
}

static bool jailed;

static bool boot(struct guest *g, const char *name)
{
	struct vmm_machine m = machine_of(g, name);
	struct fcvm_until until = fcvm_until_ms(LONG_MS, -1);

	m.jail = jailed;

	m.kernel = kernel;
	m.initrd = initrd;
	m.cmdline = "rdinit=/init";
	return OK(ops->boot(&m, &probe, &until, &g->v, &err)) && meet(g, 0);
}

static int clone_of(struct guest *g, const char *name, const char *memory, const char *state)
{
	struct vmm_machine m = machine_of(g, name);
	struct fcvm_until until = fcvm_until_ms(LONG_MS, -1);
	int k;

	m.jail = jailed;
	m.memory_file = path_of(memory);
	k = ops->wait(&m, &probe, &until, &g->v, &err);
	return k < 0 ? k : ops->restore(g->v, path_of(state), &until, &err);
}

/* ---- ---- */

/* How many pages of two memory files differ; -1: they are not both of the guest's size. */
static long differing(const char *a, const char *b)
{
	_cleanup_close_ int fa = open(path_of(a), O_RDONLY | O_CLOEXEC), fb = open(path_of(b), O_RDONLY | O_CLOEXEC);
	static char pa[PAGE], pb[PAGE];
	struct stat sa, sb;
	long n = 0;

	if (fstat(fa, &sa) < 0 || fstat(fb, &sb) < 0 || sa.st_size != MEMORY || sb.st_size != MEMORY)
		return -1;
	for (uint64_t i = 0; i < MEMORY / PAGE; i++)
		n += pread(fa, pa, PAGE, i * PAGE) != PAGE || pread(fb, pb, PAGE, i * PAGE) != PAGE || memcmp(pa, pb, PAGE) != 0;
	return n;
}

static long blocks_of(const char *name)
{
	struct stat st;

	return stat(path_of(name), &st) < 0 ? -1 : st.st_blocks / 8;
}

static bool save(struct guest *g, const char *memory)
{
	char state[64];
	struct fcvm_until until = fcvm_until_ms(LONG_MS, -1);
	int64_t from = fcvm_now_ns();
	bool ok = OK(ops->prepare_save(g->v, path_of(memory), &until, &err));
	double prepared = (fcvm_now_ns() - from) / 1e6;

	snprintf(state, sizeof state, "%s.state", memory);
	from = fcvm_now_ns();
	ok = ok && OK(ops->save(g->v, path_of(state), path_of(memory), &until, &err));
	printf("%s of %s: prepared in %.1f ms, saved in %.1f ms\n", memory, g->name, prepared, (fcvm_now_ns() - from) / 1e6);
	return ok;
}

/* As core does with one that is published: the next diff is made onto the copy. */
static void keep_elsewhere(struct guest *g, const char *memory)
{
	_cleanup_free_ char *kept = fcvm_asprintf("%s.kept", memory);
	_cleanup_free_ char *next = fcvm_asprintf("%s.next", memory);
	struct fcvm_until until = fcvm_until_ms(LONG_MS, -1);

	CHECK(OK(fcvm_node_copy(local, path_of(memory), local, path_of(kept), &until, &err)));
	fcvm_vmm_moved(g->v, path_of(kept));
	CHECK(strcmp(fc_of(g->v)->base, path_of(kept)) == 0);
	CHECK(save(g, next) && fc_of(g->v)->base && strcmp(fc_of(g->v)->base, path_of(next)) == 0);
	CHECK(differing(kept, next) >= 0 && differing(kept, next) <= 4);
	unlink(path_of(kept)); /* the other is the base of what comes next */
}

/*
 * A diff of a paused guest, and a full copy of the same moment. Each save tells the guest, in a page or two of its memory,
 * that its vsock streams are gone.
 */
static void test_diff(struct guest *g, const char *diff, const char *full)
{
	struct fcvm_until until = fcvm_until_ms(LONG_MS, -1);
	char away[64];
	long n;

	CHECK(OK(ops->pause(g->v, &until, &err)));
	CHECK(save(g, diff));
	snprintf(away, sizeof away, "%s.away", diff);
	CHECK(rename(path_of(diff), path_of(away)) == 0); /* so that the next one knows no base */
	CHECK(save(g, full));
	CHECK(rename(path_of(away), path_of(diff)) == 0);
	n = differing(diff, full);
	printf("%s has %ld pages, %s %ld; %ld differ\n", diff, blocks_of(diff), full, blocks_of(full), n);
	CHECK(n >= 0 && n <= 4);
	CHECK(blocks_of(diff) < blocks_of(full) * 3 / 4);
	keep_elsewhere(g, full);
	CHECK(OK(ops->resume(g->v, &until, &err)));
	fcvm_node_unref(fcvm_steal_ptr(g->node));
	CHECK(meet(g, 0) && strcmp(sh(g, "echo $((6*7))"), "42") == 0);
}

/* Load, and nothing else; and what it restores is what was saved. */
static void test_clone(struct guest *g)
{
	CHECK(OK(clone_of(g, "beta", "diff1", "diff1.state")));
	CHECK(fcvm_http_calls(fc_of(g->v)->api) == 1 && fcvm_http_connections(fc_of(g->v)->api) == 1);
	CHECK(meet(g, 1));
	CHECK(strcmp(sh(g, "sha256sum </run/random | cmp - /run/sum && echo same"), "same") == 0);
	CHECK(strcmp(sh(g, "head -n 1 /dev/vda"), "a disk of its own") == 0);
}

static void test_balloon(struct guest *g)
{
	struct fcvm_until until = fcvm_until_ms(LONG_MS, -1);
	long before = atol(sh(g, "awk '/MemFree/ { print $2 }' /proc/meminfo")), after = before;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	_cleanup_free_ char *text = NULL;

	CHECK(before > 40 * 1024);
	CHECK(OK(ops->balloon(g->v, UINT64_C(32) << 20, &until, &err)));
	for (int i = 0; i < 100 && before - after < 24 * 1024; i++)
		after = atol(sh(g, "sleep 0.1; awk '/MemFree/ { print $2 }' /proc/meminfo"));
	printf("the balloon of 32 MiB took %ld kB\n", before - after);
	CHECK(before - after >= 24 * 1024);
	CHECK(ops->balloon(g->v, MEMORY * 4, &until, &err) == -EIO && says("set its balloon"));
	CHECK(OK(ops->metrics(g->v, &until, &text, &err)));
	CHECK(text && OK(fcvm_json_parse(text, strlen(text), &j, &err)) &&
		fcvm_json_int(fcvm_json_get(j, "balloon"), "inflate_count", 0) > 0);
}

/* Its checksum, the last eight bytes: CRC-64 with Jones's polynomial, as Redis has it. */
static void seal(char *text, size_t size)
{
	uint64_t crc = 0;

	for (size_t i = 0; i < size - 8; i++) {
		crc ^= (unsigned char)text[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc & 1 ? crc >> 1 ^ UINT64_C(0x95ac9329ac4bc9b5) : crc >> 1;
	}
	memcpy(text + size - 8, &crc, 8);
}

static void test_bad_snapshots(void)
{
	_cleanup_free_ char *text = NULL;
	struct guest g;
	size_t size = 0;

	CHECK(fcvm_file_read(AT_FDCWD, path_of("diff1.state"), 16 << 20, &text, &size) == 0 && size > 100);
	CHECK(fcvm_file_replace(AT_FDCWD, path_of("half.state"), text, size / 2, 0600, false) == 0);
	CHECK(clone_of(&g, "half", "diff1", "half.state") < 0 && says("half: restore: ") && says("ended with status"));
	printf("half: %s\n", err.message);
	end(&g);
	CHECK(clone_of(&g, "none", "diff1", "none.state") < 0 && says("none: restore: "));
	printf("none: %s\n", err.message);
	end(&g);
	text[16]++; /* the first digit of its version, behind a magic number and the length */
	seal(text, size);
	CHECK(fcvm_file_replace(AT_FDCWD, path_of("old.state"), text, size, 0600, false) == 0);
	CHECK(clone_of(&g, "old", "diff1", "old.state") < 0 && says("another version of Firecracker") && says("anew"));
	printf("old: %s\n", err.message);
	end(&g);
	CHECK(fcvm_file_replace(AT_FDCWD, path_of("too-short"), text, size, 0600, false) == 0);
	CHECK(clone_of(&g, "short", "too-short", "diff1.state") == -EINVAL && says("not its snapshot"));
	end(&g);
}

/* Its own words, and the console's, are the error's. */
static void test_bad_boots(void)
{
	struct fcvm_until until = fcvm_until_ms(LONG_MS, -1);
	struct guest g;
	struct vmm_machine m = machine_of(&g, "no-kernel");
	int fd = -1;

	m.kernel = "/no/such/kernel";
	CHECK(ops->boot(&m, &probe, &until, &g.v, &err) == -ECONNRESET && says("no-kernel: boot") && says("ended with status"));
	printf("no kernel: %s\n", err.message);
	end(&g);
	m = machine_of(&g, "panic");
	m.kernel = kernel;
	CHECK(OK(ops->boot(&m, &probe, &until, &g.v, &err)));
	CHECK(g.v && ops->carrier(g.v, &until, &fd, &err) == -ECONNRESET && says("Firecracker ended with status") &&
		strstr(err.detail, "panic"));
	printf("panic: %s\n", err.message);
	end(&g);
}

/* ---- in a jail ---- */

/* Of a process, what stands behind the name in a file of /proc. */
static char *proc_of(pid_t pid, const char *file, const char *name)
{
	_cleanup_free_ char *path = fcvm_asprintf("/proc/%d/%s", pid, file), *text = NULL;
	static char value[300];
	const char *at;

	value[0] = 0;
	if (fcvm_file_read(AT_FDCWD, path, 64 * 1024, &text, NULL) == 0 && (at = strstr(text, name)))
		snprintf(value, sizeof value, "%.*s", (int)strcspn(at + strlen(name), "\n"), at + strlen(name));
	return value;
}

/* A user, a root and a cgroup of its own. */
static bool is_confined(struct guest *g)
{
	pid_t pid = fcvm_vmm_pid(g->v);
	_cleanup_free_ char *kernel_inside = fcvm_asprintf("/proc/%d/root/bin/sh", pid);
	char uid[32];

	snprintf(uid, sizeof uid, "%u", fc_of(g->v)->uid);
	return fc_of(g->v)->uid >= 300000 && strcmp(proc_of(pid, "comm", "fire"), "cracker") == 0 &&
		strstr(proc_of(pid, "status", "Uid:"), uid) && strstr(proc_of(pid, "status", "Gid:"), uid) &&
		strstr(proc_of(pid, "cgroup", "0::/"), uid) && access(kernel_inside, F_OK) < 0 &&
		strcmp(proc_of(pid, "status", "CapEff:\t"), "0000000000000000") == 0;
}

static bool is_gone(pid_t pid, const char *cgroup)
{
	_cleanup_free_ char *path = fcvm_asprintf("/proc/%d", pid);

	for (int i = 0; i < 500; i++) {
		if (access(path, F_OK) < 0 && access(cgroup, F_OK) < 0)
			return true;
		usleep(20 * 1000);
	}
	return false;
}

/* Nothing of the way from boot to a clone's clone is different for who looks from outside. */
static void test_jail(void)
{
	struct guest g, c;
	_cleanup_free_ char *cgroup = NULL;
	struct fcvm_until until = fcvm_until_ms(LONG_MS, -1);
	_cleanup_free_ char *text = NULL;
	pid_t pid;

	jailed = true;
	if (boot(&g, "jailed")) {
		CHECK(is_confined(&g));
		CHECK(strcmp(sh(&g, "head -n 1 /dev/vda"), "a disk of its own") == 0);
		CHECK(OK(ops->metrics(g.v, &until, &text, &err)) && text[0] == '{');
		test_diff(&g, "diff4", "full4");
		pid = fcvm_vmm_pid(g.v);
		cgroup = strdup(fc_of(g.v)->cgroup);
		CHECK(access(cgroup, F_OK) == 0);
		CHECK(OK(clone_of(&c, "jailed-clone", "diff4", "diff4.state")) && meet(&c, 1));
		CHECK(c.v && is_confined(&c) && fc_of(c.v)->uid != fc_of(g.v)->uid);
		CHECK(strcmp(sh(&c, "head -n 1 /dev/vda"), "a disk of its own") == 0);
		test_diff(&c, "diff5", "full5");
		end(&c);
		end(&g);
		CHECK(is_gone(pid, cgroup));
		CHECK(OK(clone_of(&c, "jailed-clones-clone", "diff5", "diff5.state")) && meet(&c, 2));
		end(&c);
	} else {
		CHECK(!"it boots in a jail");
		end(&g);
	}
	jailed = false;
}

/* A user other than its owner's hears nothing of the owner's end. */
static int own_a_jailed_one(void)
{
	struct guest g;

	jailed = true;
	if (!boot(&g, "owned"))
		return 1;
	printf("%d %s\n", (int)fcvm_vmm_pid(g.v), fc_of(g.v)->cgroup);
	pause();
	return 0;
}

static void test_owner_killed(const char *self)
{
	struct fcvm_until until = fcvm_until_ms(LONG_MS, -1);
	const char *argv[] = {self, "--owner", top, NULL};
	struct fcvm_spawn spec = {.argv = argv, .null_stdin = true};
	_cleanup_(cleanup_fcvm_process_free) struct fcvm_process *p = NULL;
	char line[300] = "", cgroup[250] = "";
	struct pollfd ready;
	int pid = 0;

	CHECK(OK(fcvm_node_spawn(local, &spec, &until, &p, &err)));
	ready = (struct pollfd){.fd = fcvm_process_fd(p, 1), .events = POLLIN};
	CHECK(fcvm_until_poll(&until, &ready, 1) > 0 && read(ready.fd, line, sizeof line - 1) > 0);
	CHECK(sscanf(line, "%d %249s", &pid, cgroup) == 2 && kill(pid, 0) == 0);
	/* It alone, not its group. */
	CHECK(pid > 0 && kill(fcvm_process_pid(p), SIGKILL) == 0);
	CHECK(pid > 0 && is_gone(pid, cgroup));
}

/* Where it must run (FCVM_TEST_REQUIRE=1) that it cannot is a failure. */
static int skip(const char *why)
{
	const char *required = getenv("FCVM_TEST_REQUIRE");

	printf("%s\n", why);
	return required && strcmp(required, "1") == 0 ? 1 : 77;
}

static int prepare(void)
{
	struct fcvm_until until = fcvm_until_ms(600000, -1);
	struct fcvm_image image = {0};
	struct fcvm_store *s = NULL;
	int k = fcvm_store_open(&s, local, &err);

	if (k == 0)
		k = fcvm_image_get(s, "mini", &until, &image, NULL, &err);
	if (k == 0)
		k = fcvm_image_elf_kernel(s, &image, &until, &kernel, &err);
	if (k == 0)
		initrd = strdup(image.initrd);
	fcvm_image_done(&image);
	fcvm_store_close(s);
	return k;
}

int main(int argc, char **argv)
{
	struct guest alpha = {.dirfd = -1}, beta = {.dirfd = -1};

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (fcvm_node_local(&local, &err) < 0 || ops->probe(local, NULL, NULL, NULL, &probe, &err) < 0)
		return skip(err.message);
	if (argc == 3) {
		snprintf(top, sizeof top, "%s", argv[2]);
		return prepare() < 0 || own_a_jailed_one();
	}
	printf("%s %s (%s)\n", probe.binary, probe.version, probe.why);
	snprintf(top, sizeof top, "%s/fcvm-fc-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	if (!mkdtemp(top) || prepare() < 0)
		return skip(err.message);
	if (boot(&alpha, "alpha")) {
		sh(&alpha, "head -c 3000000 /dev/urandom >/run/random; sha256sum </run/random >/run/sum");
		test_diff(&alpha, "diff1", "full1");
		sh(&alpha, "head -c 3000000 /dev/urandom >/run/more");
		test_diff(&alpha, "diff2", "full2");
		end(&alpha);
		test_clone(&beta);
		sh(&beta, "head -c 3000000 /dev/urandom >/run/more");
		test_diff(&beta, "diff3", "full3");
		test_balloon(&beta);
		test_bad_snapshots();
	} else {
		CHECK(!"it boots");
	}
	end(&alpha);
	end(&beta);
	test_bad_boots();
	if (geteuid() == 0 && fcvm_json_string(probe.own, "jailer", NULL) && access("/sys/fs/cgroup/cgroup.procs", F_OK) == 0) {
		test_jail();
		test_owner_killed(argv[0]);
	} else {
		printf("no jail without root, jailer and cgroup v2\n");
	}
	fcvm_vmm_probe_done(&probe);
	fcvm_node_unref(local);
	fcvm_tree_remove(AT_FDCWD, top);
	free(kernel);
	free(initrd);
	CHECK_DONE();
}
