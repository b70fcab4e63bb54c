/* SPDX-License-Identifier: MIT */
/* The parts of the QEMU driver: finding one, its command line, its RAM, its states. */
#ifndef FCVM_VMM_QEMU_PRIVATE_H
#define FCVM_VMM_QEMU_PRIVATE_H

#include "vmm/preload/ram_wire.h"
#include "vmm/process.h"
#include "vmm/qmp.h"

/* The CPU under TCG; part of what a snapshot must match. */
#define QEMU_TCG_CPU "max,-erms,-fsrm"

/* QEMU's descriptors. */
enum { QEMU_QMP = 3, QEMU_AGENT = 4, QEMU_CONTROL = FCVM_RAM_CONTROL, QEMU_CHANNELS = 3 };

/* The ports that are plugged in (qemu_port.c), for volumes 0 ...: one costs a guest half a megabyte once it is there, and
 * 16 KiB before. The agent's is number 1, and one more number there must be. */
enum { QEMU_PORTS = 8, QEMU_PORT_FIRST = 2, QEMU_PORT_NOWHERE = 4096 };
#define QEMU_PORT_CHARDEV "volume%u"
#define QEMU_PORT_DEVICE  "port%u"

/* ---- qemu_args.c: pure ---- */

struct qemu_args {
	char *argv[128]; /* NULL-terminated, malloc'ed */
	char *env[40];
	unsigned nargv, nenv;
	int failed; /* -errno of the first addition that failed; later ones do nothing */
};
/* memory_path: of the RAM's file. wait: for a restore, with memory_path as the snapshot's. */
int fcvm_qemu_args_make(struct qemu_args *a, const struct vmm_machine *m, const struct vmm_probe *p, bool wait,
	const char *memory_path, struct fcvm_err *err);
void fcvm_qemu_args_done(struct qemu_args *a);

/* ---- qemu_probe.c: what it finds of its own: library, the preload library's path; data_dir, for -L; env, a list of what
 * belongs in QEMU's environment; file_uri, whether it knows migration to file: (8.2). ---- */

enum { QEMU_ENV_MAX = 16 };
void fcvm_qemu_env(const struct vmm_probe *p, const char *ret[QEMU_ENV_MAX]); /* NULL-terminated; borrowed */
int fcvm_qemu_probe(struct fcvm_node *node, const char *want, const char *cache, const struct fcvm_until *until,
	struct vmm_probe *ret, struct fcvm_err *err);

/* ---- qemu_ram.c: the preload library's other end ---- */

struct qemu_ram {
	int fd;            /* non-blocking; owned */
	int exit_fd;       /* borrowed */
	const char *name;  /* the machine's; borrowed */
	uint32_t id;
	bool broken;       /* a request was given up: answers would be mixed up */
	bool private;
	pid_t pid;         /* QEMU's, by its own word */
};
/* Waits for the hello and checks it: size, version, and that RAM is private if it must be. */
int fcvm_qemu_ram_greet(struct qemu_ram *r, uint64_t memory, bool private, const struct fcvm_until *until,
	struct fcvm_err *err);
/* Has QEMU make a copy of itself with these descriptors (ram_wire.h), which stay the caller's. The copy's own hello tells
 * its pid; after a failure other than QEMU's refusal there may be one all the same. */
int fcvm_qemu_ram_fork(struct qemu_ram *r, const int fds[FCVM_RAM_FORK_FDS], const struct fcvm_until *until,
	struct fcvm_err *err);
/* One request. path: NULL for none. */
int fcvm_qemu_ram_call(struct qemu_ram *r, enum fcvm_ram_command command, const char *path,
	const struct fcvm_until *until, struct fcvm_err *err);

/* ---- qemu.c, qemu_state.c ---- */

enum qemu_state { QEMU_STARTING, QEMU_RUNNING, QEMU_WAITING, QEMU_PAUSED, QEMU_BROKEN };

struct qemu {
	struct vmm vmm;
	enum qemu_state state;
	char *memory_path;        /* booted: of the file that it writes to */
	uint64_t memory;
	bool file_uri;
	bool saved;               /* since it was paused */
	uint32_t ports;           /* bit n: volume n's is plugged in */
	struct fcvm_qmp *qmp;
	struct qemu_ram ram;
};

static inline struct qemu *qemu_of(struct vmm *v)
{
	return (struct qemu *)v;
}

/* Completes an error: if QEMU has ended or is about to, says how, with its last words and the console's. Returns
 * code. */
int fcvm_qemu_fail(struct qemu *q, int code, struct fcvm_err *err);

/* A record without a process. private: its RAM is m's memory_file, mapped privately; else a file of its own. */
struct qemu *fcvm_qemu_new(const struct vmm_machine *m, bool file_uri, bool private);
/* Takes its process's descriptors to where they belong: logs, control channel, QMP. */
int fcvm_qemu_hook_up(struct qemu *q, const struct vmm_machine *m, struct fcvm_err *err);

bool fcvm_qemu_can_fork(const struct vmm_probe *p, const struct fcvm_node *n);
int fcvm_qemu_fork(struct vmm *v, const struct vmm_machine *m, const struct fcvm_until *until, struct vmm **ret,
	struct fcvm_err *err);

int fcvm_qemu_plug(struct vmm *v, unsigned number, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err);
int fcvm_qemu_unplug(struct vmm *v, unsigned number, const struct fcvm_until *until, struct fcvm_err *err);

int fcvm_qemu_setup(struct qemu *q, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_qemu_restore(struct vmm *v, const char *state_file, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_qemu_pause(struct vmm *v, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_qemu_resume(struct vmm *v, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_qemu_prepare_save(struct vmm *v, const char *memory_file, const struct fcvm_until *until,
	struct fcvm_err *err);
int fcvm_qemu_save(struct vmm *v, const char *state_file, const char *memory_file, const struct fcvm_until *until,
	struct fcvm_err *err);

#endif
