/* SPDX-License-Identifier: MIT */
/*
 * What all objects of this process share: the local node, the store, what was probed of the drivers, and how many
 * restores may go on at once. Made by the first object, gone with the last.
 */
#ifndef FCVM_CORE_RUNTIME_H
#define FCVM_CORE_RUNTIME_H

#include "fcvm.h"
#include "store/store.h"
#include "vmm/vmm.h"

struct runtime;

int runtime_get(struct runtime **ret, struct fcvm_err *err); /* counts a reference */
void runtime_put(struct runtime *rt); /* NULL allowed */

struct fcvm_node *runtime_node(struct runtime *rt);
struct fcvm_store *runtime_store(struct runtime *rt);

struct choice {
	const struct vmm_ops *driver;
	const struct vmm_probe *probe; /* lives as long as the runtime */
};

/* The driver (NULL: the first that works) and its accelerator (NULL: the best); probed once. */
int runtime_choose(struct runtime *rt, const char *driver, const char *accel, struct choice *ret,
	struct fcvm_err *err);

/* A turn at restoring: as many at a time as there are processors. Over-subscribing them only makes each slower. */
int runtime_turn_take(struct runtime *rt, const struct fcvm_until *until, struct fcvm_err *err);
void runtime_turn_give(struct runtime *rt);

/* Turns in general: a lock (n = 1) or semaphore that can be waited for with a deadline and a cancel fd. */
int turns_new(unsigned n); /* a descriptor, to be closed; -errno */
int turns_take(int turns, const struct fcvm_until *until, const char *what, struct fcvm_err *err);
void turns_give(int turns);

/* The calling thread's deadline: timeout_ms as the public calls take it, and the thread's cancel fd. */
struct fcvm_until call_until(int64_t timeout_ms, int64_t otherwise_ms);

#endif
