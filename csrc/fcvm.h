/* SPDX-License-Identifier: MIT */
/*
 * fcvm: boot virtual machines, snapshot them, clone them by the dozen, run programs in them.
 *
 * Errors: functions that can fail return 0 (or a count) or exactly -errno, and fill in the caller's struct fcvm_err
 * (NULL allowed): message is one line that names the object, what was being done and what to do about it; detail
 * may hold the tail of the guest's console. Outputs (ret, ret_x) are untouched on failure.
 *
 * Threads: every function may be called from any thread. Calls on one VM that change its state (start, pause,
 * resume, snapshot, stop, mount, unmount) exclude each other (-EBUSY for the second); mounts and unmounts wait for one
 * another instead. Programs may be run, files copied and sockets connected by any number of threads at once. A snapshot may be cloned by several threads at once. An
 * object is freed when no other call on it is under way.
 *
 * Blocking: where a timeout_ms is taken, at most that many milliseconds; FCVM_DEFAULT_TIMEOUT is what the
 * function's comment says, FCVM_NO_TIMEOUT is for ever. See fcvm_cancel_by() for ending calls early.
 *
 * Ownership: what a function returns by `ret` is the caller's, to be freed by the _free or _done of its type, all
 * of which take NULL. Strings returned by pointer from an object live as long as the object.
 *
 * Nothing outlives its owner: VMs die with the process that started them, and unnamed snapshots with them.
 *
 * Folders: $FCVM_DATA (default $XDG_DATA_HOME/fcvm, ~/.local/share/fcvm) keeps images, named snapshots and an unpacked QEMU;
 * $FCVM_RUN (default /dev/shm/fcvm-UID) holds what runs.
 */
#ifndef FCVM_H
#define FCVM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define FCVM_API __attribute__((visibility("default")))

#define FCVM_MIB             (UINT64_C(1) << 20)
#define FCVM_GIB             (UINT64_C(1) << 30)
#define FCVM_NO_TIMEOUT      (-1)
#define FCVM_DEFAULT_TIMEOUT (-2)

struct fcvm_vm;
struct fcvm_snapshot;
struct fcvm_program;     /* a program running in a guest */
struct fcvm_vm_listener; /* a socket listened on in a guest */

FCVM_API const char *fcvm_version(void);

/*
 * Blocking calls that this thread makes from now on end with -ECANCELED as soon as fd is readable; -1: none. fd
 * is borrowed; an eventfd is a good choice.
 */
FCVM_API void fcvm_cancel_by(int fd);

enum fcvm_log_level {
	FCVM_LOG_WARNING = 1,  /* something the user should know */
	FCVM_LOG_PROGRESS = 2, /* long work goes on: "build image mini", "boot quiet-heron" */
	FCVM_LOG_DEBUG = 3,
};
/* Where warnings and progress go; the default is nowhere. The sink is called from any thread, one call at a time, and
 * must not call fcvm. */
FCVM_API void fcvm_set_log(void (*sink)(void *data, enum fcvm_log_level level, const char *text), void *data);

/* ---- virtual machines ---- */

/* `count` ids from `guest` on are those from `host` on. */
struct fcvm_vm_ids {
	uint32_t guest, host, count;
};

/*
 * A volume: a folder of this host, mounted in the guest, served by a process of its own that is confined to it. What one side
 * writes the other sees, at the latest after timeout_s. It goes with the VM, its snapshots and clones (which each have a
 * server over the same folder): open files, locks, and what the guest knows of names. A lock that cannot be had again (another
 * clone of the snapshot has it, say) is lost, which the guest is not told: volume-N.log in the VM's run folder tells.
 */
struct fcvm_vm_volume {
	const char *host;    /* the folder */
	const char *guest;   /* absolute; made if it is missing */
	bool readonly;
	bool devices;        /* the guest may make block and character devices there; as root */
	bool local_locks;    /* locks exclude within the guest only, not other guests and this host's processes; quicker */
	unsigned readers;    /* queues side by side, 1 to 256, by at most a thread for each processor; 0: $FCVM_FUSE_READERS, else 1 */
	double timeout_s;    /* how long the guest may take names and attributes for granted; negative: 1 s */
	/* none: ids are as they are. An id that no entry names is nobody's. As root only. */
	const struct fcvm_vm_ids *uid_map, *gid_map;
	size_t nuid_map, ngid_map;
};
#define FCVM_VM_VOLUME_INIT {.timeout_s = -1}

struct fcvm_vm_config {
	const char *name;    /* unique among running VMs; NULL: made up, such as "quiet-heron" */
	const char *image;   /* NULL: "mini" */
	uint64_t memory;     /* bytes, whole MiB, at least 96; default 256 MiB */
	unsigned vcpus;      /* default 1, at most 64 */
	const char *driver;  /* "firecracker" or "qemu"; NULL: $FCVM_DRIVER, else the first that works */
	const char *accel;   /* "kvm" or "tcg"; NULL: $FCVM_ACCEL, else kvm if it works, else tcg */
	const char *cmdline; /* added to the kernel's command line; NULL: nothing */
	bool cold;           /* boot, even if a snapshot of such a VM taken right after its boot is kept */
	struct fcvm_vm *node; /* runs on this VM, which is running and may run VMs (nested) and holds the VMM; it ends with it. NULL: on
	                      * this host. May be freed before. */
	bool nested;         /* it is to run VMs: the guest loads KVM where the processor has it */
	bool balloon;        /* for fcvm_vm_balloon(); firecracker */
	bool jail;           /* the VMM runs as a user, and in a file system and a cgroup, of its own; firecracker, as root */
	const struct fcvm_vm_volume *volumes; /* mounted before anything runs in it */
	size_t nvolumes;
	const char *root;    /* a folder of this host that is the guest's root, read-only beneath a tmpfs: "/", or a Debian tree.
	                      * NULL: the image's own */
};
#define FCVM_VM_CONFIG_INIT {.image = "mini", .memory = 256 * FCVM_MIB, .vcpus = 1}

enum fcvm_vm_state {
	FCVM_VM_NEW,
	FCVM_VM_STARTING,
	FCVM_VM_RUNNING,  /* and its agent answers */
	FCVM_VM_PAUSED,
	FCVM_VM_ENDED,    /* stopped, killed, or died: its process is gone */
};

struct fcvm_vm_info {
	char id[16];        /* 8 hexadecimal digits; "" before start */
	char image[160];    /* name, once it has started with the image's key: "mini/0123456789abcdef" */
	char dir[160];      /* its run folder; "" before start and after its end */
	const char *name;   /* this and the next two live as long as the VM */
	const char *driver; /* "" before start */
	const char *accel;
	enum fcvm_vm_state state;
	uint64_t memory;     /* bytes */
	unsigned vcpus;
	int pid;             /* of the VMM, on its node; 0: none */
	const char *node;    /* the name of the VM that it runs on; "": this host */
	uint64_t generation; /* grows with each restore */
	int64_t uptime_ms;   /* since start; 0 before */
	double start_ms;     /* what starting or cloning it took, without waiting for its turn */
	bool warm;           /* started from a snapshot */
	bool attached;       /* another process owns it */
};

/* Checks the configuration; starts nothing. */
FCVM_API int fcvm_vm_new(struct fcvm_vm **ret, const struct fcvm_vm_config *config, struct fcvm_err *err);
/* A VM that another process of this user owns, by id or name. Free detaches. -ENOENT. */
FCVM_API int fcvm_vm_attach(struct fcvm_vm **ret, const char *id, struct fcvm_err *err);
/* Ends the VM if it still runs (killed, and waited for), and frees it. */
FCVM_API void fcvm_vm_free(struct fcvm_vm *vm);

/*
 * Starts it and waits until its agent answers. From a kept snapshot of such a VM if there is one; else, unless
 * `cold`, it is booted, and such a snapshot is kept. Builds the image if it is missing. Default: 120 s. On failure
 * nothing runs, and detail has the console's tail.
 */
FCVM_API int fcvm_vm_start(struct fcvm_vm *vm, int64_t timeout_ms, struct fcvm_err *err);
FCVM_API int fcvm_vm_pause(struct fcvm_vm *vm, struct fcvm_err *err);
FCVM_API int fcvm_vm_resume(struct fcvm_vm *vm, struct fcvm_err *err);
/* Asks the guest to power off; what has not ended after timeout_ms is killed, which is no error. Default: 10 s. */
FCVM_API int fcvm_vm_stop(struct fcvm_vm *vm, int64_t timeout_ms, struct fcvm_err *err);
/* Sends SIGKILL to the VMM and returns at once: kill many, then wait for or free each. */
FCVM_API int fcvm_vm_kill(struct fcvm_vm *vm, struct fcvm_err *err);
/* Waits until its VMM has ended. ret_status: 0 after an orderly end, else exit status or 0x100 + signal. Default:
 * for ever. */
FCVM_API int fcvm_vm_wait(struct fcvm_vm *vm, int64_t timeout_ms, int *ret_status, struct fcvm_err *err);
/* What is known at this moment. */
FCVM_API void fcvm_vm_get_info(struct fcvm_vm *vm, struct fcvm_vm_info *ret);
/* Takes this much of the guest's memory and gives it to the host, until told otherwise; what the guest cannot spare comes later or
 * not at all. Needs balloon. Default: 10 s. */
FCVM_API int fcvm_vm_balloon(struct fcvm_vm *vm, uint64_t bytes, int64_t timeout_ms, struct fcvm_err *err);
/* What its VMM counts: malloc'ed JSON text in the VMM's own format. -EOPNOTSUPP where it does not. Default: 10 s. */
FCVM_API int fcvm_vm_metrics(struct fcvm_vm *vm, int64_t timeout_ms, char **ret_json, struct fcvm_err *err);
/* The last console output, at most size - 1 bytes, NUL-terminated; returns the bytes written. */
FCVM_API size_t fcvm_vm_console(struct fcvm_vm *vm, char *to, size_t size);
/* A round trip to the agent; returns its time in nanoseconds. Default: 5 s. */
FCVM_API int fcvm_vm_ping(struct fcvm_vm *vm, int64_t timeout_ms, int64_t *ret_ns, struct fcvm_err *err);

/* ---- programs ---- */

struct fcvm_run_options {
	const char *const *env; /* "NAME=value", NULL-terminated, added to the guest's default; NULL: none */
	const char *cwd;        /* NULL: "/" */
	const char *user;       /* NULL: root; "name", "uid" or "uid:gid" */
	bool clear_env;
	bool merge_stderr;      /* stderr goes into stdout */
	/* fcvm_vm_exec only: */
	const void *input;      /* stdin; NULL: /dev/null */
	size_t input_size;
	size_t limit;           /* bytes kept of stdout and of stderr each; 0: 64 MiB; the rest is dropped */
	int64_t timeout_ms;     /* then the program is killed and -ETIMEDOUT returned; default: for ever */
	/* fcvm_vm_spawn only: */
	bool null_stdin;
	bool detach;            /* it outlives the handle */
	bool tty;               /* a terminal of rows x columns on stdin and stdout; no stderr */
	unsigned rows, columns;
};
#define FCVM_RUN_OPTIONS_INIT {.timeout_ms = FCVM_NO_TIMEOUT, .rows = 24, .columns = 80}

struct fcvm_exec_result {
	char *stdout_data; /* NUL-terminated for convenience; may hold NULs */
	size_t stdout_size;
	char *stderr_data;
	size_t stderr_size;
	int status;        /* exit status; 128 + signal if a signal ended it */
	int signal;        /* that signal, or 0 */
	bool truncated;    /* output over the limit was dropped */
};
#define FCVM_EXEC_RESULT_INIT {.stdout_data = NULL}

/* Runs a program to its end. A non-zero status is a result, not a failure. options: NULL allowed. */
FCVM_API int fcvm_vm_exec(struct fcvm_vm *vm, const char *const *argv, const struct fcvm_run_options *options,
	struct fcvm_exec_result *ret, struct fcvm_err *err);
FCVM_API void fcvm_exec_result_done(struct fcvm_exec_result *result);

/* Starts a program. It is killed when its handle is freed, unless detached. */
FCVM_API int fcvm_vm_spawn(struct fcvm_vm *vm, const char *const *argv, const struct fcvm_run_options *options,
	struct fcvm_program **ret, struct fcvm_err *err);
FCVM_API void fcvm_program_free(struct fcvm_program *p);
/* Our end of its stdin (0), stdout (1), stderr (2): non-blocking sockets or pipes, borrowed; -1: none. */
FCVM_API int fcvm_program_fd(const struct fcvm_program *p, unsigned i);
FCVM_API void fcvm_program_close_fd(struct fcvm_program *p, unsigned i);
/* Writes all of it to stdin. -EPIPE: it reads no more. Default: for ever. */
FCVM_API int fcvm_program_write(struct fcvm_program *p, const void *data, size_t size, int64_t timeout_ms,
	struct fcvm_err *err);
/* At most size bytes of stdout (i = 1) or stderr (2) as soon as some are there; 0: end. Default: for ever. */
FCVM_API int64_t fcvm_program_read(struct fcvm_program *p, unsigned i, void *to, size_t size, int64_t timeout_ms,
	struct fcvm_err *err);
FCVM_API int fcvm_program_pid(const struct fcvm_program *p); /* in the guest */
/* status as in fcvm_exec_result. May be called again with the same answer. Default: for ever. */
FCVM_API int fcvm_program_wait(struct fcvm_program *p, int64_t timeout_ms, int *ret_status, int *ret_signal,
	struct fcvm_err *err);
FCVM_API int fcvm_program_exit_fd(const struct fcvm_program *p); /* readable once it has ended; borrowed */
FCVM_API int fcvm_program_signal(struct fcvm_program *p, int signo, struct fcvm_err *err); /* to its group */
FCVM_API int fcvm_program_resize(struct fcvm_program *p, unsigned rows, unsigned columns, struct fcvm_err *err);

/* ---- files and sockets of the guest ---- */

/* Copies a file or folder with modes, times, symlinks and holes, as cp -a does: into `to` if that is a folder.
 * Default: for ever. */
FCVM_API int fcvm_vm_copy_in(struct fcvm_vm *vm, const char *from, const char *to, int64_t timeout_ms,
	struct fcvm_err *err);
FCVM_API int fcvm_vm_copy_out(struct fcvm_vm *vm, const char *from, const char *to, int64_t timeout_ms,
	struct fcvm_err *err);
/* ret: malloc'ed, NUL-terminated. Files of more than max bytes: -EFBIG. Default: 60 s. */
FCVM_API int fcvm_vm_read_file(struct fcvm_vm *vm, const char *path, size_t max, int64_t timeout_ms, char **ret,
	size_t *ret_size, struct fcvm_err *err);
FCVM_API int fcvm_vm_write_file(struct fcvm_vm *vm, const char *path, const void *data, size_t size,
	unsigned mode, int64_t timeout_ms, struct fcvm_err *err);
/* address: "unix:/path" or "tcp:127.0.0.1:80". ret_fd: a non-blocking stream socket. Default: 30 s. */
FCVM_API int fcvm_vm_connect(struct fcvm_vm *vm, const char *address, int64_t timeout_ms, int *ret_fd,
	struct fcvm_err *err);
FCVM_API int fcvm_vm_listen(struct fcvm_vm *vm, const char *address, struct fcvm_vm_listener **ret,
	struct fcvm_err *err);
FCVM_API int fcvm_vm_listener_accept(struct fcvm_vm_listener *l, int64_t timeout_ms, int *ret_fd,
	struct fcvm_err *err);
FCVM_API void fcvm_vm_listener_free(struct fcvm_vm_listener *l);

/* ---- volumes ---- */

enum { FCVM_MAX_VOLUMES = 32 }; /* of a VM, the root among them */
enum { FCVM_MAX_IDS = 340 };    /* entries of a map, as the kernel has it */

/* Default: 30 s. -EEXIST: something of this VM is mounted at v->guest already; -ENOENT, -ENOTDIR: v->host is no folder. */
FCVM_API int fcvm_vm_mount(struct fcvm_vm *vm, const struct fcvm_vm_volume *v, int64_t timeout_ms, struct fcvm_err *err);
/* guest: where it is mounted. -EBUSY while a program uses it; force: it goes all the same. -ENOENT: no volume is there.
 * Default: 30 s. */
FCVM_API int fcvm_vm_unmount(struct fcvm_vm *vm, const char *guest, bool force, int64_t timeout_ms, struct fcvm_err *err);
/*
 * Those of a VM, also of another process's: malloc'ed JSON text, [{number, host, guest, readonly, devices, locks ("host" or
 * "guest"), readers, timeout (s), uid_map and gid_map ([{guest, host, count}]), root, port (its first stream is a virtio port
 * of its own), pid (of its server), state ("waiting", "running", "quiet", "ended"), files, handles, bytes_read, bytes_written,
 * ops: {read: {count, errors, p50_us, p99_us, max_us, histogram_ns}, ...}, trace: {read: {count, total: {p50_us, p99_us},
 * to_srv, fs, to_cli}, ...}}].
 */
FCVM_API int fcvm_vm_volumes(struct fcvm_vm *vm, char **ret_json, struct fcvm_err *err);
/* What was traced last (FCVM_FUSE_TRACE_RATE=N in the environment of the process that mounts: every Nth request; after a
 * restore only with one that is not 0 there, too), a line each, of the volume that is mounted there; malloc'ed, NUL-terminated.
 * -ENOENT: no volume is there. */
FCVM_API int fcvm_vm_traces(struct fcvm_vm *vm, const char *guest, char **ret_text, size_t *ret_size, struct fcvm_err *err);

/* ---- snapshots and clones ---- */

struct fcvm_snapshot_config {
	const char *name; /* kept in the data folder under this name; NULL: it goes with its last handle and clone */
	bool stop;        /* the VM ends with the snapshot; else it goes on at once, its streams undisturbed */
};
#define FCVM_SNAPSHOT_CONFIG_INIT {.name = NULL}

struct fcvm_snapshot_info {
	const char *id;
	const char *name; /* "" if unnamed */
	const char *dir;
	uint64_t memory;  /* bytes of the guest's RAM */
	unsigned vcpus;
	double pause_ms;     /* from the VM's pause to the snapshot's publication; 0 if opened */
	double downtime_ms;  /* from the VM's pause until it went on; 0 if stopped or opened */
	unsigned waiting;    /* VMMs that wait for a clone; 0 where clones are copies of a template */
};

/* Default: 60 s. */
FCVM_API int fcvm_vm_snapshot(struct fcvm_vm *vm, const struct fcvm_snapshot_config *config,
	int64_t timeout_ms, struct fcvm_snapshot **ret, struct fcvm_err *err);
/* A named one. Refused (-EINVAL, naming what differs) if it is damaged or does not fit this host. */
FCVM_API int fcvm_snapshot_open(struct fcvm_snapshot **ret, const char *name, struct fcvm_err *err);
/* Ends the waiting VMMs. Clones live on. */
FCVM_API void fcvm_snapshot_free(struct fcvm_snapshot *s);
FCVM_API void fcvm_snapshot_get_info(struct fcvm_snapshot *s, struct fcvm_snapshot_info *ret);
/* Has `count` VMMs started and waiting, so that as many clones take no start-up time. Under emulation it is one, the
 * template, of which any number of clones are copies: it runs the guest for a moment, so clones begin a moment after
 * the snapshot. Default: 60 s. */
FCVM_API int fcvm_snapshot_prepare(struct fcvm_snapshot *s, unsigned count, int64_t timeout_ms,
	struct fcvm_err *err);
/*
 * One clone, running, with an identity of its own (host name, machine-id, random seed, clock, generation). name:
 * NULL: the snapshot's VM's with a number. As many restores go on at once as there are processors; further
 * callers wait their turn. Default: 60 s.
 */
FCVM_API int fcvm_snapshot_clone(struct fcvm_snapshot *s, const char *name, int64_t timeout_ms,
	struct fcvm_vm **ret, struct fcvm_err *err);

/* ---- what is there; all of these return malloc'ed JSON text in *ret_json (NULL allowed where it is a report) ---- */

FCVM_API int fcvm_list_vms(char **ret_json, struct fcvm_err *err);       /* [{id, name, state, ...}] */
FCVM_API int fcvm_list_snapshots(char **ret_json, struct fcvm_err *err); /* [{name, created, memory, ...}] */
FCVM_API int fcvm_inspect_snapshot(const char *name, char **ret_json, struct fcvm_err *err); /* its manifest */
FCVM_API int fcvm_remove_snapshot(const char *name, struct fcvm_err *err);
FCVM_API int fcvm_list_images(char **ret_json, struct fcvm_err *err);    /* [{name, key, kernel, bytes, ...}] */
/* Builds it if its inputs have changed. Report: {name, key, built, dir}. Needs the Debian mirror the first time. */
FCVM_API int fcvm_build_image(const char *name, char **ret_json, struct fcvm_err *err);
FCVM_API int fcvm_remove_image(const char *name, struct fcvm_err *err);
/* Removes what dead owners left in the run folder, warm-start snapshots unused for max_age_s seconds (< 0: two weeks) or made
 * for other inputs, and half-made files. Report: {removed: [{what, path, bytes}], bytes}. */
FCVM_API int fcvm_gc(int64_t max_age_s, char **ret_json, struct fcvm_err *err);
/* {ok, checks: [{name, ok, value, remedy}], driver, accel, ...}: what would be used, and why not the other. */
FCVM_API int fcvm_doctor(char **ret_json, struct fcvm_err *err);
/* Kills a VM of another process by id or name. */
FCVM_API int fcvm_kill_vm(const char *id, struct fcvm_err *err);
/* The kept part of its console log, oldest first. */
FCVM_API int fcvm_vm_log(const char *id, char **ret_text, size_t *ret_size, struct fcvm_err *err);

#ifdef __cplusplus
}
#endif

#endif
