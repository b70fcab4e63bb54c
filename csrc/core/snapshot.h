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
	struct place *place;   /* where it is and its clones run; referenced */
	struct folder folder;  /* of an unnamed one */
	int hold;                /* of a named one */
	double pause_ms, downtime_ms;
	pthread_mutex_t lock;
	/* lock: */
	struct waiting *waiting;
	unsigned nwaiting;
	unsigned counter; /* for the clones' names */
	int template_turn; /* who has it may make, copy and drop the template; taken before `lock` */
	bool several;     /* another clone is likely: it wants the template; lock */
	struct fcvm_vm *template; /* where the driver can copy a VMM: restored, warmed up, paused; template_turn */
};

/* clone.c: ends the waiting VMMs and the template; nobody else uses s. */
void snapshot_end_waiting(struct fcvm_snapshot *s);

#endif
