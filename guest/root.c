/* SPDX-License-Identifier: MIT */
/*
 * ROOT: a mount becomes, under a tmpfs that takes all that is written, the root of whatever is started from then on.
 *
 * The loop stays in the initramfs, which no volume can hold up and where the kernel's modules are; the new root is
 * mounted over the old one's, so that programs in it are not in what the kernel takes for a chroot (where none may make
 * user namespaces), and hands go there (hands_set_root).
 */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"

/* Of <linux/mount.h>, which does not go with <sys/mount.h>; Linux 5.2. */
enum { TREE_CLONE = 1, TREE_CLOEXEC = O_CLOEXEC, TREE_RECURSIVE = 0x8000, MOVE_FROM_FD = 4, MOVE_TO_FD = 0x40 };

static const char scratch[] = "/.fcvm-over", overlay[] = "/.fcvm-over/root";

/* What goes along, with what is mounted beneath it. A tree without a place for it can do without those that need not be. */
static const struct {
	const char *where;
	bool must;
} along[] = {{"/proc", true}, {"/sys", true}, {"/dev", true}, {"/run", false}, {"/tmp", false}};

enum { ALONG = sizeof along / sizeof *along };

struct root_job {
	struct job job;
	int fd; /* of the new root, or -1 */
};

static int mount_overlay(const char *lower, struct fcvm_err *err)
{
	char options[PATH_MAX + 128];
	int r = modules_need("overlay");

	if (r < 0)
		return fcvm_fail_errno(err, r, "load the kernel module overlay");
	if (strpbrk(lower, ":,\\") || strlen(lower) >= PATH_MAX)
		return fcvm_fail(err, -EINVAL, "the path has a colon, comma or backslash, or is too long");
	mkdir(scratch, 0700);
	if (mount("tmpfs", scratch, "tmpfs", 0, "mode=0755") < 0)
		return fcvm_fail_errno(err, -errno, "mount a tmpfs");
	if (mkdir("/.fcvm-over/upper", 0755) < 0 || mkdir("/.fcvm-over/work", 0700) < 0 || mkdir(overlay, 0755) < 0)
		return fcvm_fail_errno(err, -errno, "make folders in the tmpfs");
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=/.fcvm-over/upper,workdir=/.fcvm-over/work", lower);
	if (mount("fcvm-root", overlay, "overlay", 0, options) < 0)
		return fcvm_fail_errno(err, -errno, "mount an overlay");
	return 0;
}

/* From within the new root, so that its links lead to where they do for its programs. */
static int attach(const int trees[ALONG], struct fcvm_err *err)
{
	for (unsigned i = 0; i < ALONG; i++) {
		mkdir(along[i].where, 0755);
		if (syscall(SYS_move_mount, trees[i], "", AT_FDCWD, along[i].where, MOVE_FROM_FD) < 0 && along[i].must)
			return fcvm_fail_errno(err, -errno, "mount %s in it", along[i].where);
	}
	return 0;
}

static int enter(int fd)
{
	return fchdir(fd) < 0 || chroot(".") < 0 ? -errno : 0;
}

/* Takes this hand into the new root, and puts that over the old one. */
static int go_over(int old, int new, struct fcvm_err *err)
{
	int trees[ALONG], r = 0;

	for (unsigned i = 0; i < ALONG; i++)
		trees[i] = (int)syscall(SYS_open_tree, AT_FDCWD, along[i].where, TREE_CLONE | TREE_RECURSIVE | TREE_CLOEXEC);
	r = enter(new);
	if (r < 0)
		fcvm_fail_errno(err, r, "enter it");
	if (r == 0)
		r = attach(trees, err);
	if (r == 0 && syscall(SYS_move_mount, new, "", old, "", MOVE_FROM_FD | MOVE_TO_FD) < 0)
		r = fcvm_fail_errno(err, -errno, "mount it over the old one");
	for (unsigned i = 0; i < ALONG; i++)
		fcvm_close(trees[i]);
	return r;
}

static void root_work(struct job *j)
{
	struct root_job *k = (struct root_job *)j;
	const char *path = fcvm_wire_get_string(&j->request);
	_cleanup_close_ int old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), new = -1;

	if (!fcvm_wire_reader_ok(&j->request) || *path != '/')
		j->code = fcvm_fail(&j->err, -EINVAL, "malformed request");
	else
		j->code = mount_overlay(path, &j->err);
	if (j->code == 0) {
		new = open(overlay, O_PATH | O_DIRECTORY | O_CLOEXEC);
		j->code = old < 0 || new < 0 ? fcvm_fail_errno(&j->err, -errno, "open it") : go_over(old, new, &j->err);
	}
	if (j->code == 0) {
		k->fd = fcvm_steal_fd(new);
		return;
	}
	fcvm_fail_prefix(&j->err, "switch the root to %s", path);
	enter(old);
	umount2(overlay, MNT_DETACH);
	umount2(scratch, MNT_DETACH);
}

static void root_done(struct job *j)
{
	struct root_job *k = (struct root_job *)j;

	if (k->fd >= 0)
		hands_set_root(k->fd);
	else
		j->agent->rooted = false;
	job_answer(j);
}

void root_open(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	struct agent *a = l->agent;
	struct root_job *k;

	if (!a->init || a->rooted)
		return link_refuse(l, id, -EPERM, "switch the root: %s", a->init ? "it was switched already" :
			"only an agent that is PID 1 of its machine may");
	k = job_new_stream(l, id, STREAM_JOB, 0, sizeof *k, r);
	if (!k)
		return;
	/* Only hands have a root of their own. */
	a->rooted = a->volumes = true;
	k->fd = -1;
	k->job.work = root_work;
	k->job.done = root_done;
	job_run(&k->job, false);
}
