/* SPDX-License-Identifier: MIT */
/* What drivers' probes share. */
#ifndef FCVM_VMM_PROBE_H
#define FCVM_VMM_PROBE_H

#include "vmm/vmm.h"

/* Where PATH leads to; name itself if it is a path, or is nowhere. malloc'ed. */
char *fcvm_probe_find_program(const char *name);

/* Where scripts/fetch-... puts a VMM: FOLDER/bin/PROGRAM in the data folder, whether it is there or not; "" if there is no such
 * folder. malloc'ed. */
char *fcvm_probe_unpacked(const char *folder, const char *program);

/* A key of this host's state: the program and the file (NULL: none), the boot, /dev/kvm; and `what` was asked. */
int fcvm_probe_key(char ret[static 17], const char *binary, const char *file, const char *what);
/* True if the file `cache` (NULL: none) has an answer of that key: *p is replaced by it. */
bool fcvm_probe_cache_read(const char *cache, const char *key, struct vmm_probe *p);
void fcvm_probe_cache_write(const char *cache, const char *key, const struct vmm_probe *p);

/* 1 if there is such a file, 0 if not, -errno if there was no telling (fcvm_vmm_probe_gave_up). */
int fcvm_probe_exists(struct fcvm_node *node, const char *path, const struct fcvm_until *until, struct fcvm_err *err);

/* fcvm_kvm_probe() on a node. why: one line either way. */
int fcvm_probe_kvm(struct fcvm_node *node, const struct fcvm_until *until, char *why, size_t size);

#endif
