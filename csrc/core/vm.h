/* SPDX-License-Identifier: MIT */
/* A virtual machine as the core's own files see it. */
#ifndef FCVM_CORE_VM_H
#define FCVM_CORE_VM_H

#include <pthread.h>
#include <stdatomic.h>

#include "core/runtime.h"
#include "core/volume.h"

/*
 * Theory of operation
 *
 * One mutex guards the fields below that say so, and is never held while anything blocks. Calls that change the
 * state first take `busy` (-EBUSY for the second), then own vmm, lease and state without the lock; whoever only
 * uses the VM (programs, files, ping) takes a reference to the agent's node under the lock and works on that.
 * Programs and listeners keep the struct alive by a reference, so that their errors can tell how the VM ended.
 *
 *   NEW -> STARTING -> RUNNING <-> PAUSED -> ENDED, and a failed start goes back to NEW with nothing left.
 */
struct fcvm_vm {
	atomic_uint refs;
	struct runtime *rt;
	/* fixed by fcvm_vm_new: */
	char *name;
	char *image_name;
	char *accel_wanted, *driver_wanted, *cmdline;
	uint64_t memory;
	unsigned vcpus;
	bool cold;
	bool nested, balloon, jail;
	bool clone; /* one of perhaps many of a snapshot */
	bool attached;
	int mount_turn;          /* who has it may mount and unmount; taken before `busy` */
	struct fcvm_vm *host;    /* the VM that it runs on, referenced; NULL: this host */
	/* lock: */
	pthread_mutex_t lock;
	bool busy;
	bool killed;             /* fcvm_vm_kill came while it was starting */
	bool frozen;             /* its agent, while it is paused */
	bool cut;                /* a save has ended the stream to its agent: another is due */
	enum fcvm_vm_state state;
	struct fcvm_node *agent; /* NULL: none */
	struct vmm *vmm;         /* written by the busy one, under the lock */
	struct place *place;     /* where it runs; the same */
	struct folder folder;    /* the same */
	struct volumes volumes;  /* the same; those that were asked for, also before it starts */
	struct place *node;      /* itself as a place for other VMs; NULL: it was not used as one */
	char *attached_id, *attached_dir, *attached_node;
	struct choice with;
	char *image;             /* name/key; "" before start */
	char *kernel;            /* its release; "" before start */
	uint64_t generation;
	int64_t started_ns;
	int64_t ready_ns;        /* when start or clone was done */
	bool warm;
	int pid;
	bool collected;          /* `exit` is of the VMM, which has ended */
	struct fcvm_exit exit;
};

/* Takes the VM for a change of state. want: bit mask of 1 << state; what: "pause", for messages. */
int vm_begin(struct fcvm_vm *vm, unsigned want, const char *what, struct fcvm_err *err);
void vm_finish(struct fcvm_vm *vm, enum fcvm_vm_state state);
/* The agent's node, referenced; -EINVAL if the VM does not run. */
int vm_agent(struct fcvm_vm *vm, const char *what, struct fcvm_node **ret, struct fcvm_err *err);
/* After a failure with code r: if the VMM has ended (or does within half a second of a lost link), says how, with the
 * console's tail. Returns r. */
int vm_explain(struct fcvm_vm *vm, int r, const char *what, struct fcvm_err *err);
struct fcvm_vm *vm_ref(struct fcvm_vm *vm);
void vm_unref(struct fcvm_vm *vm);

/* Whether its VMM has ended, or does so in that time. */
bool vm_ends_within(struct fcvm_vm *vm, int ms);
/* An empty VM object, named; the strings are copied. */
int vm_alloc(struct fcvm_vm **ret, const struct fcvm_vm_config *config, struct fcvm_err *err);
/* What the driver is told about it, with the strings of vm. */
struct vmm_machine vm_machine(const struct fcvm_vm *vm);
/* Gives up VMM, agent and run folder, whatever there is of them. The caller is the busy one. */
void vm_tear_down(struct fcvm_vm *vm);
/* The agent's link over the driver's carrier. */
int vm_connect_agent(struct fcvm_vm *vm, uint64_t generation_before, const struct fcvm_until *until,
	struct fcvm_err *err);
/* After a save that has cut the stream to its agent, and those of its volumes: others, as the next generation of the same
 * guest. */
int vm_reconnect(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err);
/* Tells the guest who it is: a random machine-id, seed, the clock. */
int vm_give_identity(struct fcvm_vm *vm, uint64_t generation, const char *hostname, const struct fcvm_until *until,
	struct fcvm_err *err);
/* The same with its own name; from then on it is a VM that others see. */
int vm_identify(struct fcvm_vm *vm, uint64_t generation, const struct fcvm_until *until, struct fcvm_err *err);
int vm_publish(struct fcvm_vm *vm, const char *state, struct fcvm_err *err); /* writes vm.json */

/* Console's tail into an error that has no detail yet. */
void vm_add_tail(struct fcvm_vm *vm, struct fcvm_err *err);
/* Stops the guest with nothing in flight on its volumes and its agent's link, so that a snapshot holds that at a frame's boundary; and
 * has it go on, whatever ended the caller's patience. The caller is the busy one. */
int vm_quiesce(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err);
int vm_go_on(struct fcvm_vm *vm, struct fcvm_err *err);
/* vm as a place for other VMs, referenced. -EINVAL if it does not run. */
int vm_as_place(struct fcvm_vm *vm, const struct fcvm_until *until, struct place **ret, struct fcvm_err *err);
/* Whether a running VM has this name already: -EEXIST. */
int vm_check_name_free(struct runtime *rt, const char *name, struct fcvm_err *err);
/* The driver's new VMM is the VM's from now on. */
void vm_adopt(struct fcvm_vm *vm, struct vmm *vmm);
int vm_set_image(struct fcvm_vm *vm, const struct fcvm_image *image, struct fcvm_err *err);

/* manifest.c: what a snapshot of vm says of itself (strings borrowed from vm), and whether one fits this host. */
struct fcvm_manifest vm_manifest(const struct fcvm_vm *vm);
int manifest_fits_choice(const struct fcvm_manifest *m, const char *snapshot, const struct choice *with,
	struct fcvm_err *err);
/* The host's CPU where the guest sees it, else "". */
const char *host_cpu(const struct vmm_probe *p);

/* list.c: when the process was started, in clock ticks since boot; 0: there is none. With the pid it names a process
 * for good. */
int64_t process_start(int pid);

/* snapshot.c: into an empty folder where it runs; its volumes' states into that here. The caller is the busy one. */
int vm_save(struct fcvm_vm *vm, const struct folder *to, bool stop, const struct fcvm_until *until, double *ret_pause_ms,
	double *ret_downtime_ms, struct fcvm_err *err);

/* clone.c: a VM out of a snapshot's folder, with the VMM `waiting` (taken over) or a new one if NULL. It runs, its agent answers;
 * its volumes wait for volumes_restore(), and it is nobody until vm_identify(). */
struct waiting {
	struct waiting *next;
	struct vmm *vmm;
	struct folder folder;
};
int vm_restore(struct fcvm_vm *vm, const char *dir, const struct fcvm_manifest *m, struct waiting *waiting,
	const struct fcvm_until *until, struct fcvm_err *err);

/* name.c: "quiet-heron"; malloc'ed. */
char *make_name(void);
/* Letters, digits, ".", "_", "-", not starting with "." or "-", at most 64. */
int check_name(const char *what, const char *name, struct fcvm_err *err);

#endif
