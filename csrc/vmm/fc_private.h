/* SPDX-License-Identifier: MIT */
/* The parts of the Firecracker driver: finding one, what it is asked, its life, its states. */
#ifndef FCVM_VMM_FC_PRIVATE_H
#define FCVM_VMM_FC_PRIVATE_H

#include "vmm/fc_http.h"
#include "vmm/process.h"

/* Its files, beneath the machine's folder, which is also its working directory: so each clone has its own, though the
 * snapshot says where the guest's vsock is. */
#define FC_API    "api.sock"
#define FC_VSOCK  "v.sock"
#define FC_CONFIG "config.json"

/* ---- fc_probe.c: what it finds of its own: dirty_field, the name that "track dirty pages" has when a snapshot is
 * loaded; jailer, its path, if there is one. ---- */

int fcvm_fc_probe(struct fcvm_node *node, const char *want, const char *cache, const struct fcvm_until *until,
	struct vmm_probe *ret, struct fcvm_err *err);
/* Its part that needs no KVM: p has binary and own, and gets version and dirty_field. */
int fcvm_fc_interview(struct fcvm_node *node, const struct fcvm_until *until, struct vmm_probe *p, struct fcvm_err *err);

/* ---- fc_ask.c: the bodies of its API's calls; pure. NULL when out of memory. ---- */

struct fcvm_json *fcvm_fc_config(const struct vmm_machine *m); /* of a machine to be booted, for --config-file */
struct fcvm_json *fcvm_fc_load(const char *state_file, const char *memory_file, const char *dirty_field);
struct fcvm_json *fcvm_fc_create(const char *type, const char *state_file, const char *memory_file);
struct fcvm_json *fcvm_fc_state_of(const char *state); /* PATCH /vm */
struct fcvm_json *fcvm_fc_action(const char *action);
struct fcvm_json *fcvm_fc_balloon(uint64_t bytes);

/* ---- fc.c, fc_state.c, fc_vsock.c, fc_jail.c ---- */

enum fc_state { FC_STARTING, FC_RUNNING, FC_WAITING, FC_PAUSED, FC_BROKEN };

/*
 * What the pages equal that the guest has not written to since its VMM took to counting them: a diff of the others
 * makes a whole memory file out of a copy of that.
 */
enum fc_clean {
	FC_CLEAN_UNKNOWN, /* nothing is counted, or a save has failed: only a full copy will do */
	FC_CLEAN_ZERO,    /* booted */
	FC_CLEAN_FILE,    /* base: what it was restored from, or was saved into last */
};

struct fc {
	struct vmm vmm;
	enum fc_state state;
	char *dir;                 /* where it works: the machine's folder on its node, or its root in there */
	unsigned uid;              /* as which it runs, in a jail; 0: in none */
	char *cgroup;              /* of the jail; NULL: none */
	char *version;
	uint64_t memory;
	bool balloon, track;
	char *dirty_field;         /* restored: NULL if nothing is counted */
	char *memory_file;         /* restored: of the snapshot */
	struct fcvm_http *api;
	int load_ms;               /* restored: how long that took */
	struct fcvm_listener *listener; /* booted: for the agent's first call; NULL: it has been taken */
	enum fc_clean clean;
	char *base;
	struct fcvm_node_stat base_stat; /* it is that file as long as it looks like this */
	char *prepared;            /* the memory file that a diff is to be written onto */
};

static inline struct fc *fc_of(struct vmm *v)
{
	return (struct fc *)v;
}

/* Completes an error: if Firecracker has ended or is about to, says how, with its last words. Returns code. */
int fcvm_fc_fail(struct fc *f, int code, struct fcvm_err *err);
/* One call of its API; the message begins with the machine's name and the step. Steals body (NULL: out of memory). */
int fcvm_fc_call(struct fc *f, const char *step, const char *method, const char *path, struct fcvm_json *body,
	const struct fcvm_until *until, struct fcvm_json **ret, struct fcvm_err *err);
/* -EINVAL unless it is in one of the states. */
int fcvm_fc_want(struct fc *f, unsigned states, const char *verb, struct fcvm_err *err);

/* Before it boots: so that the agent's call is not refused. */
int fcvm_fc_listen(struct fc *f, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_fc_carrier(struct vmm *v, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err);
int fcvm_fc_stream(struct vmm *v, unsigned number, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err);

/* A jail: makes its folder, which becomes f->dir; starts Firecracker in it; finds its pid, for who looks at its memory;
 * removes what does not go by itself. */
int fcvm_fc_jail_make(struct fc *f, const struct vmm_machine *m, const struct vmm_probe *p,
	const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_fc_jail_spawn(struct fc *f, const struct vmm_machine *m, const struct vmm_probe *p, bool wait,
	const struct fcvm_until *until, struct fcvm_err *err);
void fcvm_fc_jail_find(struct fc *f, const struct fcvm_until *until);
void fcvm_fc_jail_remove(struct fc *f);
/* Firecracker's user becomes the file's. */
int fcvm_fc_jail_own(struct fc *f, const char *path, const struct fcvm_until *until, struct fcvm_err *err);
/* Copies a file that is wanted when the jail is closed already into it. */
int fcvm_fc_jail_put(struct fc *f, const char *path, const char *name, const struct fcvm_until *until,
	struct fcvm_err *err);

/* The guest's clean pages equal this file from now on (NULL: nothing known). */
void fcvm_fc_set_base(struct fc *f, const char *path, const struct fcvm_until *until);
void fcvm_fc_moved(struct vmm *v, const char *memory_file);

int fcvm_fc_restore(struct vmm *v, const char *state_file, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_fc_pause(struct vmm *v, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_fc_resume(struct vmm *v, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_fc_prepare_save(struct vmm *v, const char *memory_file, const struct fcvm_until *until, struct fcvm_err *err);
int fcvm_fc_save(struct vmm *v, const char *state_file, const char *memory_file, const struct fcvm_until *until,
	struct fcvm_err *err);

#endif
