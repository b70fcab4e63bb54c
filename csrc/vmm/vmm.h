/* SPDX-License-Identifier: MIT */
/*
 * The driver seam: one vtable and one symbol per VMM. A driver turns a machine's description into a VMM process on
 * a node and moves it between states; it knows nothing of images, snapshots' folders, names or agents.
 *
 *   boot:     new -> RUNNING -> pause -> PAUSED -> save | resume -> ...
 *   wait:     new -> WAITING -> restore -> RUNNING ...
 *   kill, or its own end, from anywhere -> ENDED
 *
 * Guest RAM of a restored VM is the snapshot's memory file, mapped privately. save() leaves a finished copy of both
 * parts, memory and state, and the VM able to go on.
 *
 * Threads: calls on one vmm by one thread at a time, but fcvm_vmm_kill(), _tail() and the exit fd from any.
 * Errors: messages start with the machine's name, "quiet-heron: ..."; when the VMM has ended they say how.
 */
#ifndef FCVM_VMM_VMM_H
#define FCVM_VMM_VMM_H

#include "base/json.h"
#include "node/node.h"

struct vmm; /* what it holds is the driver's affair (process.h) */

/* What of a node matters to a driver; found once per process and node. Strings are malloc'ed. */
struct vmm_probe {
	char *binary;   /* path of the VMM on the node */
	char *version;  /* "10.0.2" */
	char *accel;    /* "kvm" or "tcg" */
	char *why;      /* why this accelerator: "KVM ran 100000 loops in 0.3 ms", "/dev/kvm: Permission denied", ... */
	char *machine;  /* CPU model and machine type, part of what a snapshot must match: "microvm host" */
	uint64_t tsc_khz; /* that guests are told; 0: none */
	struct fcvm_json *own; /* what else the driver found, of its own format; may be NULL */
};

/* A disk. The path is on the node: absolute, or beneath the machine's folder. */
struct vmm_drive {
	const char *path;
	bool readonly;
};

struct vmm_machine {
	struct fcvm_node *node;
	const char *name;    /* for messages */
	const char *dir;     /* its run folder on the node, exists; absolute */
	struct fcvm_node *local; /* this host, whose reactor keeps the logs; NULL: node is it */
	int dirfd;           /* of a folder on this host for console.log and vmm.log: dir itself if node is local */
	uint64_t memory;     /* bytes */
	unsigned vcpus;
	const struct vmm_drive *drives; /* the same, in the same order, at boot and restore */
	unsigned ndrives;
	bool nested;         /* the guest is to run VMs */
	bool balloon;        /* it has a balloon */
	bool jail;           /* the VMM runs confined, where the driver can */
	bool track;          /* a snapshot of it is likely: what makes that quick may cost a little */
	/* boot only: */
	const char *kernel, *initrd, *cmdline;
	/* restore only: */
	const char *memory_file; /* of the snapshot; mapped privately, never written */
	uint32_t ports;          /* bit n: volume n's was plugged in (vmm_ops.plug) */
};

struct vmm_ops {
	const char *name;    /* "qemu" */
	const char *remedy;  /* what makes it usable where it is not: a command or two */
	bool wants_elf;      /* it boots uncompressed ELF kernels only */
	bool can_nest;       /* its guests can run VMs (vmm_machine.nested) */
	bool can_jail;       /* it can confine the VMM (vmm_machine.jail) */
	bool save_cuts;      /* save() ends the stream to the agent: take another carrier once it goes on */

	/* Finds the VMM and chooses an accelerator: want NULL (kvm if it works, else tcg), "kvm" or "tcg". Takes up to
	 * a second; the caller keeps the answer, unless fcvm_vmm_probe_gave_up(). cache: a file on this host, not shared
	 * with other users, where it may be kept for other processes; NULL: none. until: it has limits of its own
	 * besides. -ENOENT with the remedy if there is no VMM. */
	int (*probe)(struct fcvm_node *node, const char *want, const char *cache, const struct fcvm_until *until,
		struct vmm_probe *ret, struct fcvm_err *err);

	/* A VMM that runs the machine from its kernel. The agent's carrier may be taken at once. */
	int (*boot)(const struct vmm_machine *m, const struct vmm_probe *p, const struct fcvm_until *until,
		struct vmm **ret, struct fcvm_err *err);
	/* A VMM that waits for restore(): all that can be done before it is known which clone it will be. */
	int (*wait)(const struct vmm_machine *m, const struct vmm_probe *p, const struct fcvm_until *until,
		struct vmm **ret, struct fcvm_err *err);
	/* WAITING -> RUNNING with the device state of the snapshot. */
	int (*restore)(struct vmm *v, const char *state_file, const struct fcvm_until *until, struct fcvm_err *err);
	int (*pause)(struct vmm *v, const struct fcvm_until *until, struct fcvm_err *err);
	/* PAUSED, or RUNNING: after a pause() that failed it makes sure that the guest runs. */
	int (*resume)(struct vmm *v, const struct fcvm_until *until, struct fcvm_err *err);

	/* RUNNING or PAUSED: what of save() can be done while the guest runs, into memory_file (made here). */
	int (*prepare_save)(struct vmm *v, const char *memory_file, const struct fcvm_until *until,
		struct fcvm_err *err);
	/* PAUSED: writes state_file and finishes memory_file (the same path as given to prepare_save). Either
	 * both are complete, or the caller removes them. The VM can go on afterwards in both cases. */
	int (*save)(struct vmm *v, const char *state_file, const char *memory_file, const struct fcvm_until *until,
		struct fcvm_err *err);

	/* RUNNING: the byte stream to the guest's agent: a descriptor for the caller. Once per boot, restore, and resume after
	 * a save that cuts; with such a driver again after the guest has cut it. */
	int (*carrier)(struct vmm *v, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err);

	/* RUNNING: another byte stream, beside the agent's link: to whoever listens in the guest on vsock port
	 * FCVM_WIRE_VSOCK_STREAMS + number (0 ...). Any number of times, until a save cuts them all. -ECONNREFUSED: nobody
	 * listens. NULL: there is the agent's carrier only. */
	int (*stream)(struct vmm *v, unsigned number, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err);

	/* RUNNING: a byte stream to a device of the guest's, the virtio port FCVM_WIRE_PORT_STREAM of volume `number`,
	 * which is plugged in unless it is there. Saved, restored and copied with the VM (vmm_machine.ports), but then it leads
	 * nowhere until this is called again, which also gives it another stream in place of the one it has; the guest sees
	 * nothing of either. ret_fd NULL: one that leads nowhere, so that the other end can be closed, which the guest does
	 * see. -EOPNOTSUPP: there is none for this number, or on this node. unplug: it goes, if it is there. NULL: never. */
	int (*plug)(struct vmm *v, unsigned number, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err);
	int (*unplug)(struct vmm *v, unsigned number, const struct fcvm_until *until, struct fcvm_err *err);

	/*
	 * Copying a VMM instead of starting one: under an emulator that translates, a copy has the translations, and
	 * shares their memory. can_fork: whether fork() works for VMMs of this probe on this node. fork: PAUSED, its
	 * RAM private (restored, or saved once): another VMM in the same state with a carrier of its own; v is
	 * unchanged. -EOPNOTSUPP if there is a writable drive, which would be both's. Both may be NULL.
	 */
	bool (*can_fork)(const struct vmm_probe *p, const struct fcvm_node *n);
	int (*fork)(struct vmm *v, const struct vmm_machine *m, const struct fcvm_until *until, struct vmm **ret,
		struct fcvm_err *err);

	/* RUNNING or PAUSED: the memory that the balloon takes from the guest from now on, in bytes. NULL: there is none. */
	int (*balloon)(struct vmm *v, uint64_t bytes, const struct fcvm_until *until, struct fcvm_err *err);
	/* What the VMM counts, in its own format: malloc'ed JSON text. NULL: it does not count. */
	int (*metrics)(struct vmm *v, const struct fcvm_until *until, char **ret, struct fcvm_err *err);

	/* fcvm_vmm_moved(); may be NULL. */
	void (*moved)(struct vmm *v, const char *memory_file);
	/* v->name has changed; may be NULL. */
	void (*renamed)(struct vmm *v);
	/* Frees what is the driver's own of it, after its process has ended. */
	void (*done)(struct vmm *v);
};

extern const struct vmm_ops fcvm_vmm_firecracker;
extern const struct vmm_ops fcvm_vmm_qemu;

/* All drivers, NULL-terminated, the preferred ones first. */
extern const struct vmm_ops *const fcvm_vmm_drivers[];

void fcvm_vmm_probe_done(struct vmm_probe *p);
/* Whether a probe failed because it could not go on asking, which says nothing of what there is. */
bool fcvm_vmm_probe_gave_up(int result);

/* ---- what is the same for all of them: a process with a console and a log (process.c) ---- */

/* A waiting VMM has got its clone's name, for messages. */
void fcvm_vmm_rename(struct vmm *v, const char *name);
/* What save() wrote last is now in another file of its node, byte for byte, that will not change: the next save builds
 * on that one, as the first may be removed. */
void fcvm_vmm_moved(struct vmm *v, const char *memory_file);
pid_t fcvm_vmm_pid(const struct vmm *v);   /* on its node */
int fcvm_vmm_exit_fd(const struct vmm *v); /* readable once it has ended; borrowed */
int fcvm_vmm_wait_exit(struct vmm *v, const struct fcvm_until *until, struct fcvm_exit *ret, struct fcvm_err *err);
void fcvm_vmm_kill(struct vmm *v);         /* SIGKILL, returns at once */
size_t fcvm_vmm_tail(struct vmm *v, char *to, size_t size); /* the console's, NUL-terminated */
/* Kills it if it runs and waits for its end (its memory is given back then); NULL allowed. */
void fcvm_vmm_free(struct vmm *v);

/* Host's TSC frequency in kHz (CPUID, perf's mmap page, or measured over 20 ms; the kernel's own figure where it tells). */
uint64_t fcvm_tsc_khz(void);

#endif
