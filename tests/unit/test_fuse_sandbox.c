/* SPDX-License-Identifier: MIT */
/* What the volume's server can still do once it serves: seen from outside, and tried from within. */
#include <linux/capability.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include "test_fuse_serve.h"

static const struct fcvm_fuse_volume plain = {.timeout_s = 1};

/* What the server's process got from each of these, in its own words: errno, 0. Shared with it. */
static struct {
	bool on;
	int limits, signal, owner, own_limits;
} *tried;

/* The server's, which it calls when its guest asks for it. */
int fallocate(int fd, int mode, off_t off, off_t length)
{
	struct rlimit limit;

	if (tried->on) {
		tried->limits = prlimit(getppid(), RLIMIT_CORE, NULL, &limit) ? errno : 0;
		tried->signal = syscall(SYS_tgkill, getppid(), getppid(), 0) ? errno : 0;
		tried->owner = fcntl(fd, F_SETOWN, getppid()) ? errno : 0;
		tried->own_limits = getrlimit(RLIMIT_CORE, &limit) ? errno : 0;
	}
	return (int)syscall(SYS_fallocate, fd, mode, off, length);
}

static bool same_file(const char *a, const char *b)
{
	struct stat x, y;

	return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Its working folder is not beneath its root, and leads nowhere: above it is it. */
static void test_working_folder(void)
{
	char cwd[64], above[64];
	struct guest g;

	if (geteuid())
		return;
	start(&g, &plain);
	CHECK(init(&g) == 0);
	snprintf(cwd, sizeof cwd, "/proc/%d/cwd/.", g.server);
	snprintf(above, sizeof above, "/proc/%d/cwd/../../..", g.server);
	CHECK(same_file(cwd, above));
	CHECK(!same_file("/", above));
	snprintf(cwd, sizeof cwd, "/proc/%d/root/..", g.server);
	CHECK(same_file(cwd, inside));
	CHECK(stop(&g) == 0);
}

/* A number of its /proc/PID/status. */
static uint64_t status_of(pid_t pid, const char *name, int base)
{
	char path[64], *text = NULL, *at;
	uint64_t n = 0;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	if (!fcvm_file_read(AT_FDCWD, path, 65536, &text, NULL) && (at = strstr(text, name)))
		n = strtoull(at + strlen(name), NULL, base);
	free(text);
	return n;
}

/* Of other processes it may change nothing. */
static void test_other_processes(void)
{
	struct fuse_open_in in = {.flags = O_RDWR};
	struct fuse_fallocate_in more = {.length = 8192};
	struct guest g;
	uint64_t node;

	start(&g, &plain);
	CHECK(init(&g) == 0);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "file") == 0);
	node = found(&g);
	CHECK(call(&g, FUSE_OPEN, node, &in, sizeof in) == 0);
	more.fh = opened(&g);
	tried->on = true;
	CHECK(call(&g, FUSE_FALLOCATE, node, &more, sizeof more) == 0);
	tried->on = false;
	if (status_of(g.server, "\nSeccomp:", 10) == 2)
		CHECK(tried->limits == EPERM && tried->signal == EPERM && tried->owner == EPERM && tried->own_limits == 0);
	CHECK(stop(&g) == 0);
}

static bool has_mount(pid_t pid, const char *what)
{
	char path[64], *text = NULL;
	bool yes;

	snprintf(path, sizeof path, "/proc/%d/mountinfo", pid);
	yes = !fcvm_file_read(AT_FDCWD, path, 1 << 20, &text, NULL) && strstr(text, what);
	free(text);
	return yes;
}

/* A disk that the host unmounts is not kept by the server, nor is one that the guest uses unmounted. */
static void test_host_unmounts(void)
{
	struct fuse_forget_in forget = {.nlookup = 1};
	struct fuse_getattr_in attr = {.getattr_flags = 0};
	char disk[128], message[64];
	struct guest g;

	if (geteuid())
		return;
	snprintf(disk, sizeof disk, "%s/disk", inside);
	mkdir(disk, 0755);
	if (mount(inside, inside, NULL, MS_BIND, NULL))
		return;
	CHECK(mount(NULL, inside, NULL, MS_SHARED, NULL) == 0 && mount("disk", disk, "tmpfs", 0, NULL) == 0);
	start(&g, &plain);
	CHECK(init(&g) == 0);
	CHECK(has_mount(g.server, "/disk "));
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "disk") == 0);
	CHECK(umount2(disk, 0) < 0 && errno == EBUSY);
	fcvm_fd_write_full(g.fd, message, put(message, 5, FUSE_FORGET, found(&g), &forget, sizeof forget));
	CHECK(call(&g, FUSE_GETATTR, 1, &attr, sizeof attr) == 0);
	CHECK(umount2(disk, 0) == 0);
	CHECK(!has_mount(g.server, "/disk "));
	CHECK(stop(&g) == 0);
	umount2(disk, MNT_DETACH);
	CHECK(umount2(inside, MNT_DETACH) == 0);
}

/* File capabilities count on the host whoever has set them: not for a guest whose root is none of the host's. */
static void test_file_capabilities(void)
{
	static const struct fcvm_fuse_ids ids[] = {{.guest = 0, .host = 100000, .count = 1000}};
	static const char name[] = "security.capability";
	/* VFS_CAP_REVISION_2, effective, cap_sys_admin */
	static const uint32_t value[5] = {0x02000001, 1U << 21};
	struct {
		struct fuse_setxattr_in in;
		char rest[sizeof name + sizeof value];
	} m = {.in = {.size = sizeof value}};
	char path[128];
	struct guest g;
	uint64_t node;

	if (geteuid())
		return;
	memcpy(m.rest, name, sizeof name);
	memcpy(m.rest + sizeof name, value, sizeof value);
	snprintf(path, sizeof path, "%s/file", inside);
	for (unsigned mapped = 0; mapped < 3; mapped++) {
		start(&g, &(struct fcvm_fuse_volume){.uids = ids, .nuids = mapped == 1, .gids = ids, .ngids = mapped == 2});
		CHECK(init(&g) == 0);
		CHECK(name_call(&g, FUSE_LOOKUP, 1, "file") == 0);
		node = found(&g);
		CHECK((status_of(g.server, "\nCapPrm:", 16) >> CAP_SETFCAP & 1) == !mapped);
		CHECK(call(&g, FUSE_SETXATTR, node, &m, sizeof m.in + sizeof m.rest) == (mapped ? -EOPNOTSUPP : 0));
		CHECK((getxattr(path, name, NULL, 0) > 0) == !mapped);
		CHECK(name_call(&g, FUSE_REMOVEXATTR, node, name) == (mapped ? -EOPNOTSUPP : 0));
		CHECK(stop(&g) == 0);
	}
}

/* The kernel's first root, which cannot be left: an initramfs, and all that is mounted on it taken off. */
static void into_rootfs(void)
{
	int ns = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);

	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		_exit(3);
	close(ns);
	ns = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	if (umount2("/", MNT_DETACH) || setns(ns, CLONE_NEWNS))
		_exit(3);
	close(ns);
	mkdir("/proc", 0755);
	mkdir("/fcvm-test", 0755);
	mkdir("/fcvm-test/inner", 0755);
	if (mount("proc", "/proc", "proc", 0, NULL))
		_exit(3);
}

/* The whole root as the folder, and a root that cannot be left. */
static void test_roots(void)
{
	char keep[sizeof inside], root[64];
	struct guest g;

	if (geteuid())
		return;
	memcpy(keep, inside, sizeof keep);
	strcpy(inside, "/");
	start(&g, &plain);
	CHECK(init(&g) == 0 && name_call(&g, FUSE_LOOKUP, 1, "proc") == 0);
	CHECK(stop(&g) == 0);
	how.first = into_rootfs;
	for (unsigned whole = 0; whole < 2; whole++) {
		strcpy(inside, whole ? "/" : "/fcvm-test");
		start(&g, &plain);
		CHECK(init(&g) == 0 && name_call(&g, FUSE_LOOKUP, 1, whole ? "fcvm-test" : "inner") == 0);
		snprintf(root, sizeof root, "/proc/%d/root/../inner", g.server);
		CHECK(!access(root, F_OK) == !whole);
		CHECK(stop(&g) == 0);
	}
	how.first = NULL;
	memcpy(inside, keep, sizeof keep);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	tried = mmap(NULL, sizeof *tried, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	set_up();
	test_working_folder();
	test_other_processes();
	test_host_unmounts();
	test_file_capabilities();
	test_roots();
	fcvm_tree_remove(AT_FDCWD, folder);
	CHECK_DONE();
}
