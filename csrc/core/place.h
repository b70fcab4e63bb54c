/* SPDX-License-Identifier: MIT */
/*
 * Where VMs run: this host, or a running VM whose agent makes it a node. A place knows what was probed of the drivers
 * there and how many restores may go on at once. On a VM it has a folder that holds what was copied there and the
 * folders of the VMs and snapshots; it goes with the last of those, or with the VM.
 */
#ifndef FCVM_CORE_PLACE_H
#define FCVM_CORE_PLACE_H

#include "store/store.h"
#include "vmm/vmm.h"

struct place;

/* here: of this host, with its store. Takes no references to either. */
int place_new_here(struct place **ret, struct fcvm_node *node, struct fcvm_store *store, struct fcvm_err *err);
/* On a node other than this host, to which `here` belongs. References node. */
int place_new_on(struct place **ret, struct fcvm_node *node, struct place *here, const struct fcvm_until *until,
	struct fcvm_err *err);
struct place *place_ref(struct place *p);
void place_put(struct place *p); /* NULL allowed */

struct fcvm_node *place_node(const struct place *p);
bool place_is_here(const struct place *p);
const char *place_name(const struct place *p); /* "" for this host */

struct choice {
	const struct vmm_ops *driver;
	const struct vmm_probe *probe; /* lives as long as the place */
};

/* The driver (NULL: the first that works) and its accelerator (NULL: the best); probed once, but anew after a probe that
 * was given up. *ret is written to on success only. */
int place_choose(struct place *p, const char *driver, const char *accel, const struct fcvm_until *until,
	struct choice *ret, struct fcvm_err *err);

/* A turn at restoring: as many at a time as there are processors. Over-subscribing them only makes each slower. */
int place_turn_take(struct place *p, const struct fcvm_until *until, struct fcvm_err *err);
void place_turn_give(struct place *p);

/* The path there of a file of this host that does not change any more: copied once. malloc'ed. */
int place_file(struct place *p, const char *path, const struct fcvm_until *until, char **ret, struct fcvm_err *err);

/* A VM's or snapshot's folder: always one on this host (logs, vm.json, agent.sock), and one there. */
struct folder {
	struct fcvm_lease lease;
	char *there; /* NULL: the lease's is it */
};
#define FOLDER_INIT {.lease = FCVM_LEASE_INIT}

int folder_new(struct place *p, const struct fcvm_until *until, struct folder *ret, struct fcvm_err *err);
void folder_done(struct place *p, struct folder *f); /* an empty one is fine */
const char *folder_path(const struct folder *f);     /* there; NULL if empty */

/* Turns in general: a lock (n = 1) or semaphore that can be waited for with a deadline and a cancel fd. */
int turns_new(unsigned n); /* a descriptor, to be closed; -errno */
int turns_take(int turns, const struct fcvm_until *until, const char *what, struct fcvm_err *err);
void turns_give(int turns);

#endif
