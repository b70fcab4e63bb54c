/* SPDX-License-Identifier: MIT */
/*
 * The driver seam: one vtable and one symbol per VMM. A driver turns a machine's description into a VMM process on
 * a node and moves it between states; it knows nothing of images, snapshots' folders, names or agents.
 *
 *   boot:     new -> RUNNING -> pause -> PAUSED -> save | resume -> ...
 *   restore:  new -> WAITING -> restore -> PAUSED -> resume -> RUNNING ...
 *   kill, or its own end, from anywhere -> ENDED
 *
 * Guest RAM is a file from the start: a booted VM writes to its own (`memory`, mapped shared), a restored one maps
 * the snapshot's privately. save() leaves a finished copy of both parts and the VM able to go on:
 *   booted:   the file itself is given away (renamed), and the VM maps it privately from then on;
 *   restored: what differs from the snapshot is written onto a copy made by prepare_save() before the pause.
 *
 * Threads: calls on one vmm by one thread at a time, but kill(), tail() and the exit fd from any.
 * Errors: messages start with the machine's name, "quiet-heron: ..."; when the VMM has ended they say how.
 */
#ifndef FCVM_VMM_VMM_H
#define FCVM_VMM_VMM_H

#include "node/node.h"

struct vmm; /* what it holds is the driver's affair */

/* What of the host matters to a driver; found once per process and node. Strings are malloc'ed. */
struct vmm_probe {
	char *binary;   /* path of the VMM on the node */
	char *version;  /* "10.0.2" */
	char *accel;    /* "kvm" or "tcg" */
	char *why;      /* why this accelerator: "KVM ran 100000 loops in 0.3 ms", "/dev/kvm: Permission denied", ... */
	char *machine;  /* CPU model and machine type, part of what a snapshot must match: "microvm host" */
	char *library;  /* of the driver's own, such as the preload library's path; may be NULL */
	uint64_t tsc_khz;
	bool file_uri;  /* qemu: the migration URI file: is known (8.2) */
	char **env;      /* NULL-terminated, for the VMM; may be NULL */
	char *data_dir; /* qemu: -L; may be NULL */
};

struct vmm_machine {
	struct fcvm_node *node;
	const char *name;    /* for messages */
	const char *dir;     /* its run folder on the node, exists; absolute */
	struct fcvm_node *local; /* this host, whose reactor keeps the logs; NULL: node is it */
	int dirfd;           /* of a folder on this host for console.log and vmm.log: dir itself if node is local */
	uint64_t memory;     /* bytes */
	unsigned vcpus;
	/* boot only: */
	const char *kernel, *initrd, *cmdline;
	/* restore only: */
	const char *memory_file; /* of the snapshot; mapped privately, never written */
};

struct vmm_ops {
	const char *name; /* "qemu" */

	/* Finds the VMM and chooses an accelerator: want NULL (kvm if it works, else tcg), "kvm" or "tcg". Takes up to
	 * a second; the caller keeps the answer. cache: a file on this host, not shared with other users, where it may
	 * be kept for other processes; NULL: none. -ENOENT with the remedy if there is no VMM. */
	int (*probe)(struct fcvm_node *node, const char *want, const char *cache, struct vmm_probe *ret,
		struct fcvm_err *err);

	/* A VMM that runs the machine from its kernel. The agent's carrier may be taken at once. */
	int (*boot)(const struct vmm_machine *m, const struct vmm_probe *p, const struct fcvm_until *until,
		struct vmm **ret, struct fcvm_err *err);
	/* A VMM that waits for restore(): all that can be done before it is known which clone it will be. */
	int (*wait)(const struct vmm_machine *m, const struct vmm_probe *p, const struct fcvm_until *until,
		struct vmm **ret, struct fcvm_err *err);
	/* WAITING -> PAUSED with the device state of the snapshot. */
	int (*restore)(struct vmm *v, const char *state_file, const struct fcvm_until *until, struct fcvm_err *err);
	int (*pause)(struct vmm *v, const struct fcvm_until *until, struct fcvm_err *err);
	int (*resume)(struct vmm *v, const struct fcvm_until *until, struct fcvm_err *err);

	/* RUNNING or PAUSED: what of save() can be done while the guest runs, into memory_file (made here). */
	int (*prepare_save)(struct vmm *v, const char *memory_file, const struct fcvm_until *until,
		struct fcvm_err *err);
	/* PAUSED: writes state_file and finishes memory_file (the same path as given to prepare_save). Either
	 * both are complete, or the caller removes them. The VM can go on afterwards in both cases. */
	int (*save)(struct vmm *v, const char *state_file, const char *memory_file, const struct fcvm_until *until,
		struct fcvm_err *err);

	/* The byte stream to the guest's agent: a descriptor for the caller. Once per boot or restore. */
	int (*carrier)(struct vmm *v, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err);

	/*
	 * Copying a VMM instead of starting one: under an emulator that translates, a copy has the translations, and
	 * shares their memory. can_fork: whether fork() works for VMMs of this probe on this node. fork: PAUSED, its
	 * RAM private (restored, or saved once): another VMM in the same state with a carrier of its own; v is
	 * unchanged. Both may be NULL.
	 */
	bool (*can_fork)(const struct vmm_probe *p, const struct fcvm_node *n);
	int (*fork)(struct vmm *v, const struct vmm_machine *m, const struct fcvm_until *until, struct vmm **ret,
		struct fcvm_err *err);

	/* A waiting VMM has got its clone's name, for messages. */
	void (*rename)(struct vmm *v, const char *name);

	pid_t (*pid)(const struct vmm *v);
	int (*exit_fd)(const struct vmm *v); /* readable once it has ended; borrowed */
	int (*wait_exit)(struct vmm *v, const struct fcvm_until *until, struct fcvm_exit *ret, struct fcvm_err *err);
	void (*kill)(struct vmm *v);         /* SIGKILL, returns at once */
	size_t (*tail)(struct vmm *v, char *to, size_t size); /* the console's, NUL-terminated */
	/* Kills it if it runs and waits for its end (its memory is given back then); NULL allowed. */
	void (*free)(struct vmm *v);
};

extern const struct vmm_ops fcvm_vmm_qemu;

/* All drivers, NULL-terminated. */
extern const struct vmm_ops *const fcvm_vmm_drivers[];

void fcvm_vmm_probe_done(struct vmm_probe *p);

/* Why KVM can or cannot be used here: 0 if it runs guest code at hardware speed, else -errno. why: one line either way.
 * Runs a small loop in a vCPU of its own (ARCHITECTURE.md, "The KVM probe"); bounded to about a second. */
int fcvm_kvm_probe(char *why, size_t size);

/* Host's TSC frequency in kHz (CPUID, perf's mmap page, or measured over 20 ms; the kernel's own figure where it tells). */
uint64_t fcvm_tsc_khz(void);

#endif
