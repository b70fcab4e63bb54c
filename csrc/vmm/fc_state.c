/* SPDX-License-Identifier: MIT */
/*
 * The Firecracker driver: from state to state.
 *
 *	boot -> RUNNING <-resume/pause-> PAUSED; wait -> WAITING -restore-> RUNNING
 *
 * A full snapshot writes all of the guest's memory; a diff what has changed since the last one, at its place, so
 * that onto a copy of that one's memory file it makes a whole one. Diffs are chosen wherever Firecracker counts
 * changes and such a file is known: of a VM that was booted it is one full of zeroes, so that its first diff is all
 * that was ever written to.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fail.h"
#include "base/fd.h"
#include "vmm/fc_private.h"

/* In a jail, of the state and memory that are loaded or saved. */
#define JAILED_STATE  "state"
#define JAILED_MEMORY "saved-memory"

enum { CANCEL_MS = 1000, LOOK_MS = 2000 };

static const char *const names[] = {
	[FC_STARTING] = "starting",
	[FC_RUNNING] = "running",
	[FC_WAITING] = "waiting for a snapshot",
	[FC_PAUSED] = "paused",
	[FC_BROKEN] = "ended or broken",
};

int fcvm_fc_want(struct fc *f, unsigned states, const char *verb, struct fcvm_err *err)
{
	if (states & 1u << f->state)
		return 0;
	return fcvm_fc_fail(f, fcvm_fail(err, -EINVAL, "%s: %s: it is %s", f->vmm.name, verb, names[f->state]), err);
}

/* The only place that changes the state of one that has started: to `to` if the step went well. */
static int become(struct fc *f, enum fc_state to, int k, struct fcvm_err *err)
{
	if (k < 0)
		return fcvm_fc_fail(f, k, err);
	f->state = to;
	return 0;
}

/* ---- restore ---- */

/* Firecracker's own words tell numbers only. */
static void explain_version(struct fc *f, struct fcvm_err *err)
{
	const char *words = err ? strstr(err->message, "/snapshot/load") : NULL;
	char said[700];

	if (!words || !strstr(words, "ersion"))
		return;
	snprintf(said, sizeof said, "%.*s", (int)sizeof said - 1, err->message);
	fcvm_fail(err, -err->code, "%s; the snapshot was taken by another version of Firecracker than this one (%s): take it "
		"anew", said, f->version);
}

int fcvm_fc_restore(struct vmm *v, const char *state_file, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fc *f = fc_of(v);
	int64_t from = fcvm_now_ns();
	int k = fcvm_fc_want(f, 1u << FC_WAITING, "restore", err);

	if (k < 0)
		return k;
	if (f->uid)
		k = fcvm_fc_jail_put(f, state_file, JAILED_STATE, until, err);
	if (k == 0)
		k = fcvm_fc_call(f, "restore", "PUT", "/snapshot/load", fcvm_fc_load(f->uid ? JAILED_STATE : state_file,
			f->memory_file, f->dirty_field), until, NULL, err);
	if (k < 0) {
		explain_version(f, err);
		f->state = FC_BROKEN; /* half of a state may be in it, and most failures end it */
	}
	f->load_ms = (fcvm_now_ns() - from) / 1000000;
	return become(f, FC_RUNNING, k, err);
}

/* ---- pause, resume ---- */

static int set_state(struct fc *f, const char *step, const char *state, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	return fcvm_fc_call(f, step, "PATCH", "/vm", fcvm_fc_state_of(state), until, NULL, err);
}

int fcvm_fc_pause(struct vmm *v, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fc *f = fc_of(v);
	int k = fcvm_fc_want(f, 1u << FC_RUNNING, "pause", err);

	if (k < 0)
		return k;
	k = set_state(f, "pause", "Paused", until, err);
	if (k == -ETIMEDOUT || k == -ECANCELED) {
		/* Ours was given up; Firecracker will pause, and is to go on then. If that is not acknowledged either,
		 * whether it runs is not known: resume() makes sure. */
		struct fcvm_until soon = fcvm_until_ms(CANCEL_MS, -1);

		set_state(f, "pause", "Resumed", &soon, NULL);
	}
	return become(f, FC_PAUSED, k, err);
}

int fcvm_fc_resume(struct vmm *v, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fc *f = fc_of(v);
	/* Of one that runs it changes nothing, and it may be a pause that was given up. */
	int k = fcvm_fc_want(f, 1u << FC_RUNNING | 1u << FC_PAUSED, "resume", err);

	if (k < 0)
		return k;
	return become(f, FC_RUNNING, set_state(f, "resume", "Resumed", until, err), err);
}

/* ---- save ---- */

static bool is_same(const struct fcvm_node_stat *a, const struct fcvm_node_stat *b)
{
	return a->size == b->size && a->mtime_ns == b->mtime_ns;
}

void fcvm_fc_set_base(struct fc *f, const char *path, const struct fcvm_until *until)
{
	free(f->base);
	f->base = f->track && path ? strdup(path) : NULL;
	f->clean = FC_CLEAN_UNKNOWN;
	if (f->base && fcvm_node_stat(f->vmm.node, f->base, until, &f->base_stat, NULL) == 0)
		f->clean = FC_CLEAN_FILE;
}

void fcvm_fc_moved(struct vmm *v, const char *memory_file)
{
	struct fc *f = fc_of(v);
	struct fcvm_until soon = fcvm_until_ms(LOOK_MS, -1);
	struct fcvm_node_stat st;

	/* What the next save would not build upon is not made its base by a copy. */
	if (f->clean != FC_CLEAN_FILE || fcvm_node_stat(v->node, memory_file, &soon, &st, NULL) < 0 ||
		!S_ISREG(st.mode) || st.size != f->memory)
		return;
	fcvm_fc_set_base(f, memory_file, &soon);
}

/* Sparse, with blocks shared where the file system can; whoever has no such cp gets what the node can do itself. */
static int copy(struct fc *f, const char *from, const char *to, const struct fcvm_until *until, struct fcvm_err *err)
{
	const char *argv[] = {"cp", "--sparse=always", "--", from, to, NULL};
	struct fcvm_spawn spec = {.argv = argv, .null_stdin = true};
	struct fcvm_output out = {0};
	int k = fcvm_node_reflink(f->vmm.node, from, to, until, NULL);

	if (k == 0 || k == -ENOENT || k == -ENOSPC || k == -ETIMEDOUT || k == -ECANCELED)
		return k < 0 ? fcvm_fail_errno(err, k, "%s: copy %s to %s", f->vmm.name, from, to) : 0;
	k = fcvm_node_exec(f->vmm.node, &spec, NULL, 0, 1000, until, &out, NULL);
	if (k == 0) {
		k = out.exit.signal || out.exit.code ? -EIO : 0;
		fcvm_output_done(&out);
	}
	if (k == 0)
		return 0;
	fcvm_node_remove(f->vmm.node, to, until, NULL);
	k = fcvm_node_copy(f->vmm.node, from, f->vmm.node, to, until, err);
	return k < 0 ? (fcvm_fail_prefix(err, "%s", f->vmm.name), k) : 0;
}

/* Another file may have got the base's name; then there is none, and a full save it is. */
static bool has_base(struct fc *f, const struct fcvm_until *until)
{
	struct fcvm_node_stat st;

	return f->clean == FC_CLEAN_FILE && fcvm_node_stat(f->vmm.node, f->base, until, &st, NULL) == 0 &&
		is_same(&st, &f->base_stat);
}

/* What Firecracker is to write on is moved to where it can; the way out is the same. */
static int move(struct fc *f, const char *inside, const char *path, bool out, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	_cleanup_free_ char *jailed = fcvm_asprintf("%s/%s", f->dir, inside);
	int k = jailed ? fcvm_node_rename(f->vmm.node, out ? jailed : path, out ? path : jailed, until, err) : -ENOMEM;

	return k < 0 ? (fcvm_fail_prefix(err, "%s: save", f->vmm.name), k) : 0;
}

static int into_jail(struct fc *f, const char *memory_file, const struct fcvm_until *until, struct fcvm_err *err)
{
	int k = fcvm_fc_jail_own(f, memory_file, until, err);

	return k < 0 ? k : move(f, JAILED_MEMORY, memory_file, false, until, err);
}

static int out_of_jail(struct fc *f, const char *state_file, const char *memory_file, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	int k = move(f, JAILED_STATE, state_file, true, until, err);

	return k < 0 ? k : move(f, JAILED_MEMORY, memory_file, true, until, err);
}

int fcvm_fc_prepare_save(struct vmm *v, const char *memory_file, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fc *f = fc_of(v);
	int k = fcvm_fc_want(f, 1u << FC_RUNNING | 1u << FC_PAUSED, "save", err);

	if (k < 0)
		return k;
	free(fcvm_steal_ptr(f->prepared));
	if (f->clean == FC_CLEAN_FILE && !has_base(f, until))
		f->clean = FC_CLEAN_UNKNOWN;
	if (f->clean == FC_CLEAN_UNKNOWN)
		return 0;
	if (f->clean == FC_CLEAN_FILE)
		k = copy(f, f->base, memory_file, until, err);
	if (k == 0 && f->uid && f->clean == FC_CLEAN_FILE)
		k = into_jail(f, memory_file, until, err);
	if (k < 0)
		return fcvm_fc_fail(f, k, err);
	f->prepared = strdup(memory_file);
	return f->prepared ? 0 : fcvm_fail_errno(err, -ENOMEM, "%s: save", v->name);
}

static int create(struct fc *f, const char *type, const char *state_file, const char *memory_file,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_err why = FCVM_ERR_INIT; /* it tells what is the matter only in words */
	struct fcvm_node_stat st;
	int k = fcvm_fc_call(f, "save", "PUT", "/snapshot/create", fcvm_fc_create(type, f->uid ? JAILED_STATE : state_file,
		f->uid ? JAILED_MEMORY : memory_file), until, NULL, &why);

	if (k == -EIO && strstr(why.message, "os error 28"))
		why.code = ENOSPC;
	if (k < 0) {
		if (err)
			*err = why;
		return -why.code;
	}
	if (f->uid)
		k = out_of_jail(f, state_file, memory_file, until, err);
	if (k < 0)
		return k;
	k = fcvm_node_stat(f->vmm.node, memory_file, until, &st, err);
	if (k < 0)
		return (fcvm_fail_prefix(err, "%s: save", f->vmm.name), k);
	if (st.size != f->memory)
		return fcvm_fail(err, -EIO, "%s: save: %s has %llu bytes, the guest's memory has %llu", f->vmm.name,
			memory_file, (unsigned long long)st.size, (unsigned long long)f->memory);
	return 0;
}

int fcvm_fc_save(struct vmm *v, const char *state_file, const char *memory_file, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	struct fc *f = fc_of(v);
	int k = fcvm_fc_want(f, 1u << FC_PAUSED, "save", err);
	bool diff = k == 0 && f->prepared && strcmp(f->prepared, memory_file) == 0;

	if (k < 0)
		return k;
	free(fcvm_steal_ptr(f->prepared));
	/* Until it is done nobody knows which pages Firecracker takes for clean. */
	f->clean = FC_CLEAN_UNKNOWN;
	k = -EIO;
	if (diff)
		k = create(f, "Diff", state_file, memory_file, until, err);
	if (k == -EIO)
		k = create(f, "Full", state_file, memory_file, until, err);
	if (k < 0)
		return fcvm_fc_fail(f, k, err);
	fcvm_fc_set_base(f, memory_file, until);
	return 0;
}
