/* SPDX-License-Identifier: MIT */
/*
 * Volumes as people write them: "HOST:GUEST[:OPTION,...]", such as "src:/work:ro". The same text stands after --volume and
 * in Lua. GUEST begins with the first '/' that follows a colon, so that HOST may have colons, too, if no '/' follows them.
 *
 * Options: ro, rw, devices, locks=host|guest, readers=N, timeout=SECONDS, uid_map=GUEST:HOST:COUNT and gid_map= (both may be
 * repeated).
 */
#ifndef FCVM_BIND_VOLUME_TEXT_H
#define FCVM_BIND_VOLUME_TEXT_H

#include <limits.h>

#include "fcvm.h"

/* Points into itself: stays where it is. */
struct fcvm_volume_text {
	struct fcvm_vm_volume volume;
	char host[PATH_MAX], guest[PATH_MAX];
	struct fcvm_vm_ids uid_map[FCVM_MAX_IDS], gid_map[FCVM_MAX_IDS];
};

/* 0, or -EINVAL with a message that says what is wrong and what is wanted. host: as by fcvm_volume_host(). */
int fcvm_volume_parse(struct fcvm_volume_text *ret, const char *text, struct fcvm_err *err);

/* Where a folder of this host is: absolute, without symbolic links if it is there. 0 or -errno: there can be no such path. */
int fcvm_volume_host(char ret[static PATH_MAX], const char *path);

#endif
