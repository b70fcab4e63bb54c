/* SPDX-License-Identifier: MIT */
/*
 * What the serving process can still do once it reads what a guest sends: its root is the volume's folder in a mount
 * namespace of its own (no devices, no set-id; read-only if the volume is), its capabilities are those that acting for
 * callers takes, it gains none by exec, and most system calls do not exist for it. Two ways are left to a server of root's
 * that was taken over: by open_by_handle_at(2), which nodes are shelved by, to the rest of the folder's file system; and
 * what the host mounts beneath the folder later is there as the host has it, with its devices and to be written.
 *
 * For a user who is not root it is Landlock that keeps the process beneath the folder: a mount namespace would take a
 * user namespace, in which everybody else's files are nobody's. Where the kernel has no Landlock (5.19 and newer have
 * what it takes) the rest still holds, and openat2 keeps every look-up beneath the folder.
 */
#include <cap-ng.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/fs.h>
#include <linux/landlock.h>
#include <linux/securebits.h>
#include <sched.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"
#include "fusepipe/host/server.h"

enum {
	NODES_MAX = 1000000, /* about 150 bytes each, those beyond NODES_OPEN */
	FDS_WANTED = 1 << 20,
	FDS_OTHER = 64, /* not nodes' nor handles' */
	FD_TABLE = 16384,
};

static void descriptors(struct server *s)
{
	struct rlimit limit = {.rlim_cur = FDS_WANTED, .rlim_max = FDS_WANTED};
	int fd;

	if (setrlimit(RLIMIT_NOFILE, &limit) && !getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	getrlimit(RLIMIT_NOFILE, &limit);
	/* A quarter is left for open files, so that a guest that knows many files can still open some. */
	s->max_open = (unsigned)((limit.rlim_cur - FDS_OTHER) / 4 * 3);
	s->data.max = (s->max_open < NODES_OPEN ? s->max_open : NODES_OPEN) / 6;
	if (!s->volume.max_nodes)
		s->volume.max_nodes = NODES_MAX;
	/* With threads about, each doubling of the table would wait for an RCU grace period, tens of ms in all. */
	fd = fcntl(0, F_DUPFD_CLOEXEC, limit.rlim_cur > FD_TABLE ? FD_TABLE : (int)limit.rlim_cur - 1);
	fcvm_close(fd);
}

/* The tree on top of the root is the root. */
static int take_root(int tree)
{
	if (move_mount(tree, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) || fchdir(tree))
		return -errno;
	if (syscall(SYS_pivot_root, ".", ".") == 0)
		return umount2(".", MNT_DETACH) ? -errno : 0;
	/* An initramfs, as a lab has it, cannot be left: it stays, covered. */
	return errno != EINVAL || chroot(".") ? -errno : 0;
}

/* Makes the folder the root of a mount namespace. */
static int own_root(struct server *s)
{
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC};
	_cleanup_close_ int tree = -1;
	int r;

	if (s->volume.devices)
		attr.attr_set &= ~(uint64_t)MOUNT_ATTR_NODEV;
	if (s->volume.readonly)
		attr.attr_set |= MOUNT_ATTR_RDONLY;
	/*
	 * Not private: what the host unmounts would live on here, in use by nobody whom the host knows of. So what it mounts
	 * beneath the folder from now on is here, too, as it has mounted it: session.c sees to a read-only volume.
	 */
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL))
		return -errno;
	/* By its path: a descriptor from before belongs to the other namespace's mount. */
	tree = open_tree(AT_FDCWD, s->volume.folder, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
	if (tree < 0 || mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr))
		return -errno;
	r = take_root(tree);
	return r ? r : chdir("/") ? -errno : 0;
}

/* Landlock: what of files is to be read, written, made and removed is beneath the folder. */
static int only_beneath(struct server *s, int folder)
{
	const uint64_t reading = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;
	const struct landlock_ruleset_attr all = {.handled_access_fs = reading | LANDLOCK_ACCESS_FS_WRITE_FILE |
		LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_CHAR |
		LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK |
		LANDLOCK_ACCESS_FS_MAKE_FIFO | LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM |
		LANDLOCK_ACCESS_FS_REFER};
	const struct landlock_path_beneath_attr here = {.parent_fd = folder,
		.allowed_access = s->volume.readonly ? reading : all.handled_access_fs};
	_cleanup_close_ int rules = -1;

	/* Version 2 has REFER: under an older one nothing could be renamed to another folder. */
	if (syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) < 2)
		return 0;
	rules = (int)syscall(SYS_landlock_create_ruleset, &all, sizeof all, 0);
	if (rules < 0 || syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &here, 0) ||
		syscall(SYS_landlock_restrict_self, rules, 0))
		return -errno;
	return 0;
}

static int capabilities(struct server *s)
{
	static const int wanted[] = {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_SETUID,
		CAP_SETGID, CAP_SETFCAP};
	bool have[sizeof wanted / sizeof *wanted], mknod_too;

	/* Ids are changed by fsuid; that is not to touch capabilities. */
	if (s->privileged && prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED))
		return -errno;
	if (s->privileged && setgroups(0, NULL))
		return -errno;
	/* In a container root may have some of them only: what is there counts. */
	if (capng_get_caps_process())
		return -EPERM;
	mknod_too = s->volume.devices && capng_have_capability(CAPNG_EFFECTIVE, CAP_MKNOD);
	for (unsigned i = 0; i < sizeof wanted / sizeof *wanted; i++)
		have[i] = s->privileged && capng_have_capability(CAPNG_EFFECTIVE, wanted[i]);
	capng_clear(CAPNG_SELECT_ALL);
	for (unsigned i = 0; i < sizeof wanted / sizeof *wanted; i++)
		if (have[i])
			capng_update(CAPNG_ADD, CAPNG_EFFECTIVE | CAPNG_PERMITTED, wanted[i]);
	/* A file's count on the host, whoever has set them: not for a guest whose root is none of the host's. */
	if (cred_mapped(s))
		capng_update(CAPNG_DROP, CAPNG_EFFECTIVE | CAPNG_PERMITTED, CAP_SETFCAP);
	if (s->privileged && mknod_too)
		capng_update(CAPNG_ADD, CAPNG_EFFECTIVE | CAPNG_PERMITTED, CAP_MKNOD);
	s->fsetid = s->privileged;
	/* Without root there are none, nor can the bounding set be shrunk. */
	return capng_apply(s->privileged ? CAPNG_SELECT_BOTH : CAPNG_SELECT_CAPS) < 0 ? -EPERM : 0;
}

int sandbox_enter(struct server *s, int *ret_root, struct fcvm_err *err)
{
	_cleanup_close_ int folder = -1, self = -1;
	const char *path = s->volume.folder;
	int r;

	s->privileged = geteuid() == 0;
	folder = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (folder < 0)
		return fcvm_fail_errno(err, -errno, "volume %s: open", path);
	/* By way of it a descriptor is opened again. As root a mount that hangs nowhere, which ".." does not lead out of. */
	self = s->privileged ? open_tree(AT_FDCWD, "/proc/self/fd", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
			     : open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (self < 0)
		return fcvm_fail_errno(err, -errno, "volume %s: open /proc/self/fd (is /proc mounted?)", path);
	descriptors(s);
	if (s->privileged) {
		r = own_root(s);
		if (r)
			return fcvm_fail_errno(err, r, "volume %s: making it the root of a mount namespace", path);
		close(folder);
		folder = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	}
	if (folder < 0 || fchdir(self))
		return fcvm_fail_errno(err, -errno, "volume %s: entering it", path);
	r = capabilities(s);
	if (r)
		return fcvm_fail_errno(err, r, "volume %s: giving up capabilities", path);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return fcvm_fail_errno(err, -errno, "volume %s: giving up privileges of programs", path);
	r = s->privileged ? 0 : only_beneath(s, folder);
	if (r)
		return fcvm_fail_errno(err, r, "volume %s: Landlock", path);
	*ret_root = fcvm_steal_fd(folder);
	return 0;
}

static const int calls[] = {
	/* the loop, the pool, memory */
	SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(epoll_wait), SCMP_SYS(epoll_pwait), SCMP_SYS(epoll_ctl), SCMP_SYS(close),
	SCMP_SYS(futex), SCMP_SYS(clone), SCMP_SYS(clone3), SCMP_SYS(set_robust_list), SCMP_SYS(rseq), SCMP_SYS(exit),
	SCMP_SYS(exit_group), SCMP_SYS(mmap), SCMP_SYS(munmap), SCMP_SYS(mprotect), SCMP_SYS(mremap), SCMP_SYS(madvise),
	SCMP_SYS(brk), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn), SCMP_SYS(restart_syscall), SCMP_SYS(getrandom),
	SCMP_SYS(sched_yield), SCMP_SYS(sched_getaffinity), SCMP_SYS(getpid), SCMP_SYS(gettid), SCMP_SYS(clock_gettime),
	/* its owner's commands and their replies */
	SCMP_SYS(recvmsg), SCMP_SYS(sendto),
	/* files; glibc makes renameat of renameat2 without flags */
	SCMP_SYS(openat), SCMP_SYS(openat2), SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(statx),
	SCMP_SYS(fstatfs), SCMP_SYS(readlinkat), SCMP_SYS(pread64), SCMP_SYS(preadv2), SCMP_SYS(pwritev2), SCMP_SYS(lseek),
	SCMP_SYS(getdents64), SCMP_SYS(faccessat2), SCMP_SYS(fsync), SCMP_SYS(fdatasync), SCMP_SYS(syncfs), SCMP_SYS(ftruncate),
	SCMP_SYS(fallocate), SCMP_SYS(copy_file_range), SCMP_SYS(flock), SCMP_SYS(fchmodat), SCMP_SYS(fchownat),
	SCMP_SYS(utimensat), SCMP_SYS(unlinkat), SCMP_SYS(mkdirat), SCMP_SYS(mknodat), SCMP_SYS(symlinkat),
	SCMP_SYS(linkat), SCMP_SYS(renameat), SCMP_SYS(renameat2), SCMP_SYS(getxattr), SCMP_SYS(setxattr), SCMP_SYS(listxattr),
	SCMP_SYS(removexattr), SCMP_SYS(name_to_handle_at), SCMP_SYS(open_by_handle_at),
	/* whose they are */
	SCMP_SYS(umask), SCMP_SYS(setfsuid), SCMP_SYS(setfsgid), SCMP_SYS(capget), SCMP_SYS(capset),
};

/* Those of which some uses reach other processes, or are not known: with this argument only. */
static int allow_some(scmp_filter_ctx filter)
{
	const struct {
		int call;
		unsigned argument;
		uint64_t value;
	} some[] = {
		{SCMP_SYS(ioctl), 1, FS_IOC_GETFLAGS}, {SCMP_SYS(ioctl), 1, FS_IOC_SETFLAGS},
		{SCMP_SYS(ioctl), 1, FS_IOC_FSGETXATTR}, {SCMP_SYS(ioctl), 1, FS_IOC_FSSETXATTR},
		{SCMP_SYS(fcntl), 1, F_DUPFD_CLOEXEC}, {SCMP_SYS(fcntl), 1, F_GETFL}, {SCMP_SYS(fcntl), 1, F_SETFL},
		{SCMP_SYS(fcntl), 1, F_OFD_GETLK}, {SCMP_SYS(fcntl), 1, F_OFD_SETLK},
		{SCMP_SYS(prlimit64), 0, 0}, {SCMP_SYS(tgkill), 0, (uint64_t)getpid()},
	};
	int r = 0;

	for (unsigned i = 0; i < sizeof some / sizeof *some && !r; i++)
		r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, some[i].call, 1,
			SCMP_CMP(some[i].argument, SCMP_CMP_EQ, some[i].value));
	return r;
}

int sandbox_confine(struct server *s, struct fcvm_err *err)
{
	scmp_filter_ctx filter;
	int r = 0;

#ifdef FCVM_FUSE_UNCONFINED
	/* A sanitizer's runtime makes system calls of its own. */
	return 0;
#endif
	filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	if (!filter)
		return fcvm_fail(err, -ENOMEM, "volume %s: system call filter: out of memory", s->volume.folder);
	for (unsigned i = 0; i < sizeof calls / sizeof *calls && !r; i++)
		r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, calls[i], 0);
	if (!r)
		r = allow_some(filter);
	/* A tree of comparisons: the list is long, and each call walks it. */
	if (!r)
		r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (!r)
		r = seccomp_load(filter);
	seccomp_release(filter);
	return r ? fcvm_fail_errno(err, r, "volume %s: loading the system call filter", s->volume.folder) : 0;
}
