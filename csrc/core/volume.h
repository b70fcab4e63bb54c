/* SPDX-License-Identifier: MIT */
/*
 * The volumes of a VM: what is served (a manifest's words for it) and by whom. A server runs on this host, wherever the VM does;
 * its files are in the VM's folder here, as volume-N.*. Only who is busy with the VM (vm.h) calls these, and changes them under
 * its lock.
 *
 * Standing still: before the guest is stopped for a snapshot each server brings its volume to rest, with nothing in flight
 * (fusepipe/control.h), and goes on after. Where a save has cut the guest's streams they are connected anew. A clone's servers
 * begin with what the snapshot's have saved.
 */
#ifndef FCVM_CORE_VOLUME_H
#define FCVM_CORE_VOLUME_H

#include "fcvm.h"
#include "fusepipe/host/volume.h"
#include "store/store.h"

struct fcvm_vm;

struct volumes {
	size_t n;
	struct fcvm_manifest_volume config[FCVM_MAX_VOLUMES];
	struct volume_server {
		struct fcvm_volume *handle; /* NULL: none yet, or none any more */
		bool quiet;
	} server[FCVM_MAX_VOLUMES]; /* of the same index */
};

/* What is in the guest below which the root is put together. */
#define VOLUME_ROOT "/.fcvm-root"

/* As a snapshot tells of them: those that are mounted, which all are but while the VM starts. */
size_t volumes_mounted(const struct volumes *v);

/* For vmm_machine.ports. */
uint32_t volumes_ports(const struct fcvm_manifest_volume *v, size_t n);

/* volume_config.c: what a caller wants, checked, with all that is left open decided; the root if root is not NULL. Others:
 * those it is to be beside. -EEXIST, -ENOENT, -ENOTDIR, -EINVAL, -EPERM. */
int volume_configure(struct volumes *to, const char *vm_name, const struct fcvm_vm_volume *v, struct fcvm_err *err);
int volume_configure_root(struct volumes *to, const char *vm_name, const char *folder, struct fcvm_err *err);
/* $FCVM_FUSE_TRACE_RATE, which volume_configure() looks at as well; 0: none. */
int volume_trace_rate(const char *vm_name, const char *guest, unsigned *ret, struct fcvm_err *err);
/* Those of a snapshot, for a clone of it: their folders must be there. */
int volumes_copy(struct volumes *to, const struct fcvm_manifest_volume *from, size_t n, const char *vm_name,
	struct fcvm_err *err);
void volumes_done(struct volumes *v);
/* The index of what is at `guest`, however that is written; -1: nothing. */
int volume_find(const struct fcvm_manifest_volume *v, size_t n, const char *guest);
/* -ENOENT */
int volume_fail_none(const char *vm_name, const char *doing, const char *guest, struct fcvm_err *err);
void volume_forget(struct volumes *v, size_t i);

/* Of a VM whose agent answers: all that was configured; the root first, which is the guest's from then on. */
int volumes_mount(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err);
/* The same of a clone, where they are mounted already: servers that begin with the states in that folder of this host. */
int volumes_restore(struct fcvm_vm *vm, const char *states, const struct fcvm_until *until, struct fcvm_err *err);
/* All of them at rest, or none. */
int volumes_pause(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err);
/* Whether a VM that is paused could be saved. -EBUSY: one of them is not at rest; -EIO: one has ended. */
int volumes_check_quiet(struct fcvm_vm *vm, struct fcvm_err *err);
/* At rest: into that folder of this host. */
int volumes_save(struct fcvm_vm *vm, const char *states, const struct fcvm_until *until, struct fcvm_err *err);
/* Those at rest go on, cut: by other streams. The first failure is told, but all are tried; one whose server has ended is
 * unmounted in the guest. */
int volumes_go_on(struct fcvm_vm *vm, bool cut, const struct fcvm_until *until, struct fcvm_err *err);
/* At rest, in a guest that runs: their ports there lead nowhere from now on, so that it does not see the servers' end. */
int volumes_part(struct fcvm_vm *vm, const struct fcvm_until *until, struct fcvm_err *err);
/* Ends the servers. */
void volumes_end(struct fcvm_vm *vm);

/* volume_list.c: what vm.json says of them. NULL: no memory. */
struct fcvm_json *volumes_json(const struct volumes *v);

#endif
