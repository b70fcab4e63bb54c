/* SPDX-License-Identifier: MIT */
/*
 * What is kept: the data folder (images, named snapshots, warm-start snapshots, an unpacked QEMU) and the run
 * folder (what lives with its owner).
 *
 * Data folder:                                  Run folder (mode 0700, on tmpfs where there is one):
 *   images/NAME/KEY/{kernel,initrd,image.json}    ID/lock       flock held by the owner for as long as it lives
 *   images/NAME/current -> KEY                    ID/vm.json    what fcvm ls shows
 *   kernels/RELEASE/{vmlinuz,modules,kernel.json} ID/agent.sock other processes' way to the agent
 *   busybox/busybox, if this machine has none     .gate         see lease.c
 *   snapshots/NAME/{manifest.json,memory,state,   ID/console.log, console.log.1
 *     volume-N.state}                             ID/volume-N.{counters,log,trace}  of a volume's server
 *   warm/KEY/{manifest.json,memory,state}         ID/memory     guest RAM of a booted VM
 *   qemu/                                         ID/{manifest.json,memory,state,volume-N.state}  an unnamed snapshot
 *   tmp/                                          .trash-*      being removed
 *
 * Everything in the data folder is made in tmp/ and published by one rename; nothing is changed after. Who dies
 * leaves a folder in tmp/ or the run folder whose lock is free: fcvm_store_gc and fcvm_store_sweep remove those.
 */
#ifndef FCVM_STORE_STORE_H
#define FCVM_STORE_STORE_H

#include "base/json.h"
#include "node/node.h"

struct fcvm_store;

/* Finds ($FCVM_DATA, $FCVM_RUN) and makes both folders. A run folder that others could write to is refused. */
int fcvm_store_open(struct fcvm_store **ret, struct fcvm_node *node, struct fcvm_err *err);
void fcvm_store_close(struct fcvm_store *s);
const char *fcvm_store_data(const struct fcvm_store *s); /* absolute path */
const char *fcvm_store_run(const struct fcvm_store *s);
/* Where the agent and the preload library are: $FCVM_LIBEXEC, beside the program or library (build tree), or
 * <prefix>/libexec/fcvm. malloc'ed path of `file`, or -ENOENT with the places that were looked at. */
int fcvm_store_libexec(const char *file, char **ret, struct fcvm_err *err);

/* ---- leases: folders beneath the run folder that live as long as their owner ---- */

struct fcvm_lease {
	char id[9];  /* 8 hexadecimal digits; the folder's name */
	char *path;  /* absolute */
	int dirfd;
	int lock_fd; /* the flock */
};
#define FCVM_LEASE_INIT {.dirfd = -1, .lock_fd = -1}

int fcvm_lease_new(struct fcvm_store *s, struct fcvm_lease *ret, struct fcvm_err *err);
/* Removes the folder (renamed first, so that it is gone at once for others). An empty lease is fine. */
void fcvm_lease_done(struct fcvm_store *s, struct fcvm_lease *l);
/* Calls back for each folder: alive: its owner lives; json: its vm.json, or NULL if it has none. The callback's
 * non-zero return ends the walk and is returned. */
int fcvm_lease_each(struct fcvm_store *s,
	int (*fn)(void *data, const char *id, const char *path, bool alive, const struct fcvm_json *json),
	void *data, struct fcvm_err *err);
/* Removes the folders of dead owners; appends {what, path, bytes} to report (NULL allowed). */
int fcvm_store_sweep(struct fcvm_store *s, struct fcvm_json *report, struct fcvm_err *err);

/* ---- images ---- */

struct fcvm_image {
	char *name;
	char *key;     /* hash of all that went into it: 16 hexadecimal digits */
	char *release; /* the kernel's: "6.1.0-56-cloud-amd64" */
	char *dir;     /* the rest is beneath it */
	char *kernel;
	char *initrd;
	char *initrd_nested; /* the same with the modules of KVM, loaded at boot where the processor can */
	char *cmdline; /* what the image's kernel needs besides the driver's own words */
	int hold;      /* keeps gc and removal away until fcvm_image_done; counts only if dir is set */
};

/* The current one; builds it if it is missing or its inputs (agent, busybox, kernel) have changed. Under a lock, published
 * by rename; progress by fcvm_say. *ret_built: NULL allowed. Unknown names: -ENOENT naming the known ones. */
int fcvm_image_get(struct fcvm_store *s, const char *name, const struct fcvm_until *until, struct fcvm_image *ret,
	bool *ret_built, struct fcvm_err *err);
void fcvm_image_done(struct fcvm_image *i);
/* Its kernel as an uncompressed ELF file, for VMMs that want that (Firecracker): taken out of the bzImage the first time (under a
 * lock, published by rename), kept beside it. *ret: malloc'ed path. -EINVAL if there is none in it. */
int fcvm_image_elf_kernel(struct fcvm_store *s, const struct fcvm_image *i, const struct fcvm_until *until, char **ret,
	struct fcvm_err *err);
int fcvm_image_list(struct fcvm_store *s, struct fcvm_json *array, struct fcvm_err *err);
int fcvm_image_remove(struct fcvm_store *s, const char *name, struct fcvm_err *err);

/* ---- snapshots ---- */

/* A volume of the VM: what is served (fcvm.h, struct fcvm_vm_volume), and how. */
struct fcvm_manifest_ids {
	uint32_t guest, host, count;
};
struct fcvm_manifest_volume {
	unsigned number; /* in the guest, and of its files: volume-0.state */
	char *host, *guest;
	bool readonly, devices, local_locks;
	bool port; /* its first reader's stream is a device of the guest's (vmm_ops.plug) */
	bool root;        /* it is beneath the guest's root, "/" */
	unsigned readers;
	double timeout_s;
	struct fcvm_manifest_ids *uids, *gids;
	size_t nuids, ngids;
};
enum {
	FCVM_MANIFEST_VOLUMES = 32,
	FCVM_MANIFEST_IDS = 340, /* of a map, as the kernel has it */
	FCVM_MANIFEST_READERS = 256,
};

/* What manifest.json says (format 3). Strings are malloc'ed, never NULL once read. */
struct fcvm_manifest {
	char *driver;   /* "qemu" */
	char *version;  /* of the VMM */
	char *accel;
	char *machine;  /* vmm_probe's: CPU model and machine type */
	char *image;    /* name/key */
	char *kernel;   /* the kernel's release */
	char *agent;    /* the agent's version */
	char *vm_name;  /* of the VM it was taken from */
	char *host_cpu; /* the host's CPU model where the guest sees it (accel kvm), else "" */
	uint64_t memory;     /* bytes */
	unsigned vcpus;
	uint64_t generation; /* of the guest at the snapshot */
	int64_t created_ns;  /* CLOCK_REALTIME */
	uint64_t tsc_khz;    /* that the guest was told; 0: none */
	bool nested;         /* it is to run VMs */
	bool balloon;        /* it has one */
	bool jail;           /* its VMM was confined, as its clones' are to be */
	struct fcvm_manifest_volume *volumes;
	size_t nvolumes;
};

struct fcvm_manifest_differs { /* what this host has, to be compared; NULL members are not */
	const char *driver, *version, *accel, *machine, *host_cpu;
	uint64_t tsc_khz; /* 0: does not matter */
};

void fcvm_manifest_done(struct fcvm_manifest *m);
int fcvm_manifest_volume_copy(struct fcvm_manifest_volume *to, const struct fcvm_manifest_volume *from); /* -ENOMEM: nothing */
void fcvm_manifest_volume_done(struct fcvm_manifest_volume *v);
/* {number, host, guest, readonly, devices, locks, readers, timeout, root, port, uid_map, gid_map}; NULL: no memory, or a path that
 * is not UTF-8. */
struct fcvm_json *fcvm_manifest_volume_json(const struct fcvm_manifest_volume *v);
/* An array of such, from anybody. -EINVAL naming the member. ret: malloc'ed, each to be done with, too; NULL if there are none. */
int fcvm_manifest_volumes_parse(const struct fcvm_json *array, struct fcvm_manifest_volume **ret, size_t *ret_n,
	struct fcvm_err *err);
/* Pure: parses and checks types and bounds. -EINVAL naming the member. */
int fcvm_manifest_parse(const char *text, size_t size, struct fcvm_manifest *ret, struct fcvm_json **ret_json,
	struct fcvm_err *err);
/* -EINVAL: "snapshot x was taken with qemu 7.2.0, here is 10.0.2; take it anew ..." for the first that differs. */
int fcvm_manifest_fits(const struct fcvm_manifest *m, const char *snapshot, const struct fcvm_manifest_differs *here,
	struct fcvm_err *err);

/* Writes manifest.json into dir, which holds `memory`, `state` and each volume's state: sizes of all, hashes (of memory if
 * full), and the manifest's own hash. */
int fcvm_manifest_write(const char *dir, const struct fcvm_manifest *m, bool full, struct fcvm_err *err);
/* Reads it and checks the files against it. Damage: -EINVAL saying which file and how it differs. */
int fcvm_manifest_read(const char *dir, const char *snapshot, struct fcvm_manifest *ret, struct fcvm_err *err);

/* Copies a snapshot folder (sparse, hashing on the way, fsynced) into the data folder and publishes it as
 * snapshots/NAME or warm/KEY: kind "snapshots" or "warm". An existing snapshot: -EEXIST; an existing warm one is
 * left and 0 returned. A full disk leaves nothing. ret_dir: malloc'ed. Names: letters, digits, "._-", at most 64. */
int fcvm_snapshot_publish(struct fcvm_store *s, const char *from_dir, const struct fcvm_manifest *m,
	const char *kind, const char *name, char **ret_dir, struct fcvm_err *err);
/* malloc'ed folder of a published one, -ENOENT; touches it, so that gc sees that it is used. */
int fcvm_snapshot_find(struct fcvm_store *s, const char *kind, const char *name, char **ret_dir,
	struct fcvm_err *err);
int fcvm_snapshot_list(struct fcvm_store *s, struct fcvm_json *array, struct fcvm_err *err);
/* Held (shared) by who uses a published snapshot, so that gc and removal leave its files until then. fd. */
int fcvm_snapshot_hold(const char *dir);
int fcvm_snapshot_remove(struct fcvm_store *s, const char *kind, const char *name, struct fcvm_err *err);

/* Warm-start snapshots unused for max_age_s seconds (< 0: two weeks), unfinished things in tmp/, images' old keys, and
 * fcvm_store_sweep. */
int fcvm_store_gc(struct fcvm_store *s, int64_t max_age_s, struct fcvm_json *report, struct fcvm_err *err);

/* -ENOSPC and -EDQUOT: which disk, how much is there, how much was needed (0: not known). Returns code. */
int fcvm_store_disk_full(int code, const char *path, uint64_t needed, const char *what, struct fcvm_err *err);

/* A hash for keys: 16 hexadecimal digits of XXH3 over all strings (NULL ends the list). */
void fcvm_hash_strings(char ret[static 17], const char *first, ...) __attribute__((sentinel));

#endif
