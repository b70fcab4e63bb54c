/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "fusepipe/guest/guest.h"

int fcvm_fuse_mount(const char *source, const char *target, bool readonly, struct fcvm_err *err)
{
	_cleanup_close_ int device = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	unsigned long flags = MS_NODEV | (readonly ? MS_RDONLY : 0);
	char options[160];

	if (device < 0)
		return fcvm_fail_errno(err, -errno, "mount %s: open /dev/fuse (does the kernel have FUSE?)", target);
	/* The host leaves permissions to this kernel, which knows callers, their groups and capabilities. */
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
		device);
	if (mount(source, target, "fuse.fcvm", flags, options))
		return fcvm_fail_errno(err, -errno, "mount %s: FUSE", target);
	return fcvm_steal_fd(device);
}
