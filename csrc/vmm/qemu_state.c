/* SPDX-License-Identifier: MIT */
/*
 * The QEMU driver: from state to state.
 *
 *	boot -> RUNNING <-resume/pause-> PAUSED; wait -> WAITING -restore-> RUNNING
 *
 * Saving is a migration to a file with RAM left out (x-ignore-shared). A booted VM's RAM is its file, which is renamed
 * and then mapped privately; from then on it is like a restored one: what it changed is found in pagemap and
 * written onto a copy of the file.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "vmm/qemu_private.h"

enum { CANCEL_MS = 1000, FILE_MS = 2000 };

static const char *const names[] = {
	[QEMU_STARTING] = "starting",
	[QEMU_RUNNING] = "running",
	[QEMU_WAITING] = "waiting for a snapshot",
	[QEMU_PAUSED] = "paused",
	[QEMU_BROKEN] = "ended or broken",
};

static int want(struct qemu *q, unsigned states, const char *verb, struct fcvm_err *err)
{
	if (states & 1u << q->state)
		return 0;
	return fcvm_qemu_fail(q, fcvm_fail(err, -EINVAL, "%s: %s: it is %s", q->vmm.name, verb, names[q->state]), err);
}

/* The only place that changes the state of one that has started: to `to` if the step went well. */
static int become(struct qemu *q, enum qemu_state to, int k, struct fcvm_err *err)
{
	if (k < 0)
		return fcvm_qemu_fail(q, k, err);
	q->state = to;
	return 0;
}

/* ---- capabilities ---- */

static int add_capability(struct fcvm_json *list, const char *name)
{
	struct fcvm_json *o = fcvm_json_object();

	if (!o || fcvm_json_set_string(o, "capability", name) < 0 || fcvm_json_set_bool(o, "state", true) < 0) {
		fcvm_json_free(o);
		return -ENOMEM;
	}
	return fcvm_json_append(list, o);
}

/* Both ends of a migration must agree on these: so always, at the start. */
int fcvm_qemu_setup(struct qemu *q, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_json *o = fcvm_json_object(), *list = fcvm_json_array();

	if (!o || !list || add_capability(list, "x-ignore-shared") < 0 || add_capability(list, "events") < 0 ||
		fcvm_json_set(o, "capabilities", fcvm_steal_ptr(list)) < 0) {
		fcvm_json_free(o);
		fcvm_json_free(list);
		return fcvm_fail_errno(err, -ENOMEM, "%s: QMP", q->vmm.name);
	}
	return fcvm_qmp_call(q->qmp, "migrate-set-capabilities", o, until, NULL, err);
}

/* ---- migration ---- */

/* For sh: each quote inside ends the quotation, adds one, begins again. */
static char *quote(const char *path)
{
	char *to = malloc(4 * strlen(path) + 3), *at = to;

	if (!to)
		return NULL;
	*at++ = '\'';
	for (; *path; path++) {
		if (*path == '\'')
			at = stpcpy(at, "'\\''");
		else
			*at++ = *path;
	}
	strcpy(at, "'");
	return to;
}

/* QEMU before 8.2 has no file: and lets cat do it. It says "completed" before cat has read it all, so what is
 * written gets its name when it is whole. */
static char *make_uri(struct qemu *q, const char *path, bool in)
{
	_cleanup_free_ char *quoted = NULL;

	if (q->file_uri)
		return fcvm_asprintf("file:%s", path);
	quoted = quote(path);
	if (!quoted)
		return NULL;
	return in ? fcvm_asprintf("exec:exec cat < %s", quoted) :
		fcvm_asprintf("exec:cat > %s.part && exec mv %s.part %s", quoted, quoted, quoted);
}

static const char *why_failed(struct qemu *q, const struct fcvm_until *until, struct fcvm_json **ret)
{
	if (fcvm_qmp_call(q->qmp, "query-migrate", NULL, until, ret, NULL) < 0)
		return "the migration failed";
	return fcvm_json_string(fcvm_json_get(*ret, "return"), "error-desc", "the migration failed");
}

/* Waits for the MIGRATION events of one that was begun: 0 when it is complete. */
static int await_migration(struct qemu *q, const char *verb, const char *path, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	for (;;) {
		_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *event = NULL, *info = NULL;
		const char *status;
		int k = fcvm_qmp_event(q->qmp, "MIGRATION", until, &event, err);

		if (k < 0)
			return k;
		status = fcvm_json_string(fcvm_json_get(event, "data"), "status", "");
		if (strcmp(status, "completed") == 0)
			return 0;
		if (strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0) {
			const char *why = why_failed(q, until, &info);

			return fcvm_fail(err, strstr(why, "No space left") ? -ENOSPC : -EIO, "%s: %s %s: %s", q->vmm.name,
				verb, path, why);
		}
	}
}

/* For the mv of make_uri. */
static int await_file(struct qemu *q, const char *path, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_until soon = fcvm_until_sooner(until, FILE_MS);

	for (;;) {
		struct fcvm_until moment = fcvm_until_sooner(&soon, 1);
		struct fcvm_node_stat st;
		int k = fcvm_node_stat(q->vmm.node, path, &soon, &st, err);

		if (k != -ENOENT)
			return k;
		k = fcvm_until_poll(&moment, NULL, 0);
		if (k != -ETIMEDOUT)
			return fcvm_fail_errno(err, k, "%s: wait for %s to be written", q->vmm.name, path);
		if (fcvm_until_left_ms(&soon) == 0)
			return fcvm_fail(err, -EIO, "%s: the shell that QEMU started did not write %s", q->vmm.name, path);
	}
}

static int migrate(struct qemu *q, const char *command, const char *verb, const char *path,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_free_ char *uri = make_uri(q, path, strcmp(command, "migrate-incoming") == 0);
	struct fcvm_json *o = fcvm_json_object();
	int k;

	if (!uri || !o || fcvm_json_set_string(o, "uri", uri) < 0) {
		fcvm_json_free(o);
		return fcvm_fail_errno(err, -ENOMEM, "%s: %s %s", q->vmm.name, verb, path);
	}
	fcvm_qmp_forget(q->qmp);
	k = fcvm_qmp_call(q->qmp, command, o, until, NULL, err);
	if (k == 0)
		k = await_migration(q, verb, path, until, err);
	if (k == -ETIMEDOUT || k == -ECANCELED) {
		/* Ours was given up, QEMU's was not. */
		struct fcvm_until soon = fcvm_until_ms(CANCEL_MS, -1);

		fcvm_qmp_call(q->qmp, "migrate_cancel", NULL, &soon, NULL, NULL);
	}
	return k;
}

int fcvm_qemu_restore(struct vmm *v, const char *state_file, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct qemu *q = qemu_of(v);
	struct fcvm_node_stat st;
	int k = want(q, 1u << QEMU_WAITING, "restore", err);

	if (k < 0)
		return k;
	/* QEMU ends itself when a restore fails: what can be seen before is not left to that. */
	k = fcvm_node_stat(q->vmm.node, state_file, until, &st, err);
	if (k < 0)
		return (fcvm_fail_prefix(err, "%s: restore", q->vmm.name), k);
	k = migrate(q, "migrate-incoming", "restore from", state_file, until, err);
	if (k < 0)
		q->state = QEMU_BROKEN; /* half of a state may be in it */
	k = become(q, QEMU_PAUSED, k, err);
	return k < 0 ? k : fcvm_qemu_resume(v, until, err);
}

/* ---- pause, resume ---- */

int fcvm_qemu_pause(struct vmm *v, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct qemu *q = qemu_of(v);
	int k = want(q, 1u << QEMU_RUNNING, "pause", err);

	if (k < 0)
		return k;
	k = fcvm_qmp_call(q->qmp, "stop", NULL, until, NULL, err);
	if (k == -ETIMEDOUT || k == -ECANCELED) {
		/* Ours was given up; QEMU will stop, and is to go on then. */
		struct fcvm_until soon = fcvm_until_ms(CANCEL_MS, -1);

		fcvm_qmp_call(q->qmp, "cont", NULL, &soon, NULL, NULL);
	}
	return become(q, QEMU_PAUSED, k, err);
}

/* QEMU says that a migration is complete a little before it is done with it, and refuses to go on in between. */
static bool is_finishing(struct qemu *q, const struct fcvm_until *until)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *answer = NULL;

	if (fcvm_qmp_call(q->qmp, "query-status", NULL, until, &answer, NULL) < 0)
		return false;
	return strcmp(fcvm_json_string(fcvm_json_get(answer, "return"), "status", ""), "finish-migrate") == 0;
}

static void await_finished(struct qemu *q, const struct fcvm_until *until)
{
	struct fcvm_until moment;

	do
		moment = fcvm_until_sooner(until, 1);
	while (is_finishing(q, until) && fcvm_until_poll(&moment, NULL, 0) == -ETIMEDOUT);
}

int fcvm_qemu_resume(struct vmm *v, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct qemu *q = qemu_of(v);
	int k = want(q, 1u << QEMU_PAUSED, "resume", err);

	if (k < 0)
		return k;
	k = fcvm_qmp_call(q->qmp, "cont", NULL, until, NULL, err);
	if (k < 0) {
		await_finished(q, until);
		k = fcvm_qmp_call(q->qmp, "cont", NULL, until, NULL, err);
	}
	q->saved = q->saved && k < 0;
	return become(q, QEMU_RUNNING, k, err);
}

/* ---- save ---- */

int fcvm_qemu_prepare_save(struct vmm *v, const char *memory_file, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	struct qemu *q = qemu_of(v);
	int k = want(q, 1u << QEMU_RUNNING | 1u << QEMU_PAUSED, "save", err);

	if (k < 0 || !q->ram.private)
		return k; /* a booted one gives its file away */
	k = fcvm_qemu_ram_call(&q->ram, FCVM_RAM_COPY, memory_file, until, err);
	return k < 0 ? fcvm_qemu_fail(q, k, err) : 0;
}

/* The VM's file becomes the snapshot's; the VM goes on as the first of its clones. */
static int give_away(struct qemu *q, const char *memory_file, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_err renaming = FCVM_ERR_INIT;
	int k = fcvm_node_rename(q->vmm.node, q->memory_path, memory_file, until, &renaming);

	if (k == -EXDEV) /* another file system: a copy is the snapshot's, and the VM keeps its file */
		return fcvm_qemu_ram_call(&q->ram, FCVM_RAM_COPY, memory_file, until, err);
	if (k < 0)
		return fcvm_fail(err, k, "%s: %s", q->vmm.name, renaming.message);
	k = fcvm_qemu_ram_call(&q->ram, FCVM_RAM_PRIVATE, NULL, until, err);
	if (k == 0)
		return 0;
	/* It still writes to the file, which must not become a snapshot then. If even that is in doubt, it ends. */
	if (q->ram.broken || fcvm_node_rename(q->vmm.node, memory_file, q->memory_path, NULL, NULL) < 0) {
		fcvm_vmm_kill(&q->vmm);
		q->state = QEMU_BROKEN;
	}
	return k;
}

int fcvm_qemu_save(struct vmm *v, const char *state_file, const char *memory_file, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	struct qemu *q = qemu_of(v);
	int k = want(q, 1u << QEMU_PAUSED, "save", err);

	if (k < 0)
		return k;
	/* QEMU lets nobody migrate twice what is paused: so it runs for a moment. */
	if (q->saved) {
		k = fcvm_qemu_resume(v, until, err);
		if (k == 0)
			k = fcvm_qemu_pause(v, until, err);
		if (k < 0)
			return k;
	}
	q->saved = true;
	k = migrate(q, "migrate", "save its devices to", state_file, until, err);
	if (k == 0 && !q->file_uri)
		k = await_file(q, state_file, until, err);
	if (k == 0 && q->ram.private)
		k = fcvm_qemu_ram_call(&q->ram, FCVM_RAM_DIRTY, memory_file, until, err);
	else if (k == 0)
		k = give_away(q, memory_file, until, err);
	return k < 0 ? fcvm_qemu_fail(q, k, err) : 0;
}
