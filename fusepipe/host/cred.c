/* SPDX-License-Identifier: MIT */
/*
 * Whose files are made, and which ids the guest sees.
 *
 * The guest's kernel checks permissions (mount option default_permissions: mode bits, ACLs, the caller's groups and
 * capabilities, all of which it knows and the host does not). Left to the host are the owner of what is made, and
 * whether writing clears set-id bits. So as root, creations run with the caller's fsuid and fsgid, and capabilities
 * stay as they are (sandbox.c has set SECBIT_NO_SETUID_FIXUP). CAP_FSETID is up when the guest's kernel has decided
 * already that bits are to stay.
 *
 * Raw system calls: glibc's wrappers would change all threads. The pool's have what the loop had when they began.
 */
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fusepipe/host/server.h"

enum { NOBODY = 65534 };

static bool map(const struct fcvm_fuse_ids *ids, unsigned n, uint32_t id, bool to_host, uint32_t *ret)
{
	if (!n) {
		*ret = id;
		return true;
	}
	for (unsigned i = 0; i < n; i++) {
		uint32_t from = to_host ? ids[i].guest : ids[i].host, to = to_host ? ids[i].host : ids[i].guest;

		if (id - from < ids[i].count) {
			*ret = to + (id - from);
			return true;
		}
	}
	return false;
}

bool cred_mapped(const struct server *s)
{
	return s->volume.nuids || s->volume.ngids;
}

uint32_t uid_to_guest(const struct server *s, uint32_t uid)
{
	uint32_t id;

	return map(s->volume.uids, s->volume.nuids, uid, false, &id) ? id : NOBODY;
}

uint32_t gid_to_guest(const struct server *s, uint32_t gid)
{
	uint32_t id;

	return map(s->volume.gids, s->volume.ngids, gid, false, &id) ? id : NOBODY;
}

bool uid_to_host(const struct server *s, uint32_t uid, uint32_t *ret)
{
	return map(s->volume.uids, s->volume.nuids, uid, true, ret);
}

bool gid_to_host(const struct server *s, uint32_t gid, uint32_t *ret)
{
	return map(s->volume.gids, s->volume.ngids, gid, true, ret);
}

void cred_take(struct server *s, const struct fuse_ctx *caller)
{
	uint32_t uid, gid;

	if (caller->umask != s->umask) {
		umask(caller->umask & 07777);
		s->umask = caller->umask;
	}
	if (!s->privileged)
		return;
	if (!uid_to_host(s, caller->uid, &uid))
		uid = NOBODY;
	if (!gid_to_host(s, caller->gid, &gid))
		gid = NOBODY;
	if (gid != s->fsgid)
		syscall(SYS_setfsgid, gid);
	if (uid != s->fsuid)
		syscall(SYS_setfsuid, uid);
	s->fsuid = uid;
	s->fsgid = gid;
}

bool cred_thread_fsetid(bool on)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &head, data))
		return false;
	data[0].effective &= ~(1U << CAP_FSETID);
	if (on)
		data[0].effective |= 1U << CAP_FSETID;
	return syscall(SYS_capset, &head, data) == 0;
}

void cred_fsetid(struct server *s, bool on)
{
	if (s->privileged && s->fsetid != on && cred_thread_fsetid(on))
		s->fsetid = on;
}

bool cred_powers(struct server *s, bool on)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	if (!s->privileged)
		return true;
	if (syscall(SYS_capget, &head, data))
		return false;
	for (unsigned i = 0; i < 2; i++)
		data[i].effective = on ? data[i].permitted : 0;
	if (syscall(SYS_capset, &head, data))
		return false;
	s->fsetid = on;
	return true;
}
