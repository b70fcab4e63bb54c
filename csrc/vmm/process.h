/* SPDX-License-Identifier: MIT */
/* What every driver's VMM begins with. For drivers; vmm.h has what others may do with it. */
#ifndef FCVM_VMM_PROCESS_H
#define FCVM_VMM_PROCESS_H

#include <pthread.h>

#include "vmm/vmm.h"

/* First member of each driver's own struct. */
struct vmm {
	const struct vmm_ops *ops;
	const char *title;            /* "QEMU", for messages */
	struct fcvm_node *node;       /* referenced */
	char *name;                   /* the machine's */
	struct fcvm_process *process; /* NULL: not started */
	pid_t pid;                    /* the VMM's own, which may be a child of process */
	struct fcvm_drain *console, *log;
	const char *farewell;         /* in a log line that only tells that it ends: not its last words; NULL: none */
	pthread_mutex_t lock;         /* of the process's end: it is collected and killed by different threads */
};

/* Fills in a zeroed one. -ENOMEM. Whatever happens, fcvm_vmm_free() is due then. */
int fcvm_vmm_init(struct vmm *v, const struct vmm_ops *ops, const char *title, const struct vmm_machine *m);
/* v->process is there: its standard output becomes console.log, its standard error vmm.log. */
int fcvm_vmm_hook_up(struct vmm *v, const struct vmm_machine *m, struct fcvm_err *err);

/*
 * Completes an error: if the VMM has ended (dying: or is about to), says how, with its last words, and *ended is set;
 * in any case the log's and the console's tails become its detail. Returns code.
 */
int fcvm_vmm_fail(struct vmm *v, int code, bool dying, bool *ended, struct fcvm_err *err);

/* -EINVAL unless m->memory_file is a file of exactly the guest's memory. */
int fcvm_vmm_check_memory(const struct vmm_machine *m, const struct fcvm_until *until, struct fcvm_err *err);

#endif
