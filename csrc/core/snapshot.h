/* SPDX-License-Identifier: MIT */
#ifndef FCVM_CORE_SNAPSHOT_H
#define FCVM_CORE_SNAPSHOT_H

#include "core/vm.h"

/* A snapshot's handle. Its folder is immutable; only the list of waiting VMMs and the counter change. */
struct fcvm_snapshot {
	struct runtime *rt;
	struct choice with;
	struct fcvm_manifest manifest; /* strings owned */
	char *name;                    /* "" if unnamed */
	char *dir;
	struct fcvm_lease lease; /* of an unnamed one: its folder */
	int hold;                /* of a named one */
	double pause_ms, downtime_ms;
	pthread_mutex_t lock;
	/* lock: */
	struct waiting *waiting;
	unsigned nwaiting;
	unsigned counter; /* for the clones' names */
	pthread_mutex_t template_lock; /* held while it is made or copied; taken before `lock` */
	bool cloned;              /* once already: the next one wants the template; template_lock */
	struct fcvm_vm *template; /* where the driver can copy a VMM: restored, warmed up, paused; template_lock */
};

/* clone.c: ends the waiting VMMs and the template; nobody else uses s. */
void snapshot_end_waiting(struct fcvm_snapshot *s);

#endif
