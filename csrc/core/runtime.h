/* SPDX-License-Identifier: MIT */
/*
 * What all objects of this process share: the local node, the store, this host as a place. Made by the first object,
 * gone with the last.
 */
#ifndef FCVM_CORE_RUNTIME_H
#define FCVM_CORE_RUNTIME_H

#include "core/place.h"
#include "fcvm.h"

struct runtime;

int runtime_get(struct runtime **ret, struct fcvm_err *err); /* counts a reference */
void runtime_put(struct runtime *rt); /* NULL allowed */

struct fcvm_node *runtime_node(struct runtime *rt);
struct fcvm_store *runtime_store(struct runtime *rt);
struct place *runtime_here(struct runtime *rt);

/* The calling thread's deadline: timeout_ms as the public calls take it, and the thread's cancel fd. */
struct fcvm_until call_until(int64_t timeout_ms, int64_t otherwise_ms);

#endif
