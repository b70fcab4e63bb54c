/* SPDX-License-Identifier: MIT */
#ifndef FCVM_BASE_KVM_H
#define FCVM_BASE_KVM_H

#include <stddef.h>

/* Why KVM can or cannot be used here: 0 if it runs guest code at hardware speed, else -errno. why: one line either way.
 * Runs a small loop in a vCPU of its own (ARCHITECTURE.md, "The KVM probe"); bounded to about a second. */
int fcvm_kvm_probe(char *why, size_t size);

#endif
