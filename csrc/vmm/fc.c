/* SPDX-License-Identifier: MIT */
/*
 * The Firecracker driver: starting it, and its end. It works in the machine's folder, where its sockets are; what it
 * writes goes through its descriptors: the guest's console on stdout, its log and its metrics on stderr. The states
 * are in fc_state.c.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "vmm/fc_private.h"

#define METRICS "{\"utc_timestamp_ms\"" /* how a line of them begins */

enum { READY_MS = 1000, LOOK_MS = 200 };

int fcvm_fc_fail(struct fc *f, int code, struct fcvm_err *err)
{
	bool ended = false;
	/* Its sockets close a little before it is gone, and a failed restore ends it. */
	bool dying = code == -ECONNRESET || code == -EPIPE || code == -ECONNREFUSED || f->state == FC_BROKEN;

	code = fcvm_vmm_fail(&f->vmm, code, dying, &ended, err);
	if (ended)
		f->state = FC_BROKEN;
	return code;
}

int fcvm_fc_call(struct fc *f, const char *step, const char *method, const char *path, struct fcvm_json *body,
	const struct fcvm_until *until, struct fcvm_json **ret, struct fcvm_err *err)
{
	int k = fcvm_http_call(f->api, method, path, body, until, ret, err);

	fcvm_json_free(body);
	return k < 0 ? (fcvm_fail_prefix(err, "%s: %s", f->vmm.name, step), k) : 0;
}

/* ---- life ---- */

static void fc_done(struct vmm *v)
{
	struct fc *f = fc_of(v);

	fcvm_http_free(f->api);
	fcvm_listener_free(f->listener);
	fcvm_fc_jail_remove(f);
	free(f->dir);
	free(f->cgroup);
	free(f->version);
	free(f->dirty_field);
	free(f->memory_file);
	free(f->base);
	free(f->prepared);
}

static struct fc *fc_new(const struct vmm_machine *m, const struct vmm_probe *p, bool wait)
{
	struct fc *f = calloc(1, sizeof *f);
	bool whole;

	if (!f)
		return NULL;
	f->vmm.farewell = "Firecracker exiting";
	f->memory = m->memory;
	f->balloon = m->balloon;
	f->track = m->track;
	f->dir = strdup(m->dir);
	f->version = strdup(p->version);
	f->memory_file = wait ? strdup(m->memory_file) : NULL;
	f->dirty_field = wait && m->track ? strdup(fcvm_json_string(p->own, "dirty_field", "")) : NULL;
	f->clean = m->track && !wait ? FC_CLEAN_ZERO : FC_CLEAN_UNKNOWN;
	whole = f->dir && f->version && (!wait || f->memory_file) && (!wait || !m->track || f->dirty_field);
	if (fcvm_vmm_init(&f->vmm, &fcvm_vmm_firecracker, "Firecracker", m) == 0 && whole)
		return f;
	fcvm_vmm_free(&f->vmm);
	return NULL;
}

static int write_config(struct fc *f, const struct vmm_machine *m, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *config = fcvm_fc_config(m);
	_cleanup_free_ char *text = config ? fcvm_json_print(config, 2) : NULL;
	_cleanup_free_ char *path = fcvm_asprintf("%s/" FC_CONFIG, f->dir);
	int k;

	if (!text || !path)
		return fcvm_fail_errno(err, -ENOMEM, "%s: configure Firecracker", m->name);
	k = fcvm_node_write_file(m->node, path, text, strlen(text), 0600, until, err);
	return k < 0 ? (fcvm_fail_prefix(err, "%s: configure Firecracker", m->name), k) : 0;
}

/* /proc/self/fd/2: both would go to stdout, or be files that grow. */
static int spawn(struct fc *f, const struct vmm_machine *m, const struct vmm_probe *p, bool wait,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	const char *argv[] = {p->binary, "--api-sock", FC_API, "--log-path", "/proc/self/fd/2", "--level", "Info",
		"--show-level", "--metrics-path", "/proc/self/fd/2", wait ? NULL : "--config-file", FC_CONFIG, NULL};
	struct fcvm_spawn spec = {.argv = argv, .cwd = m->dir, .null_stdin = true};

	return m->jail ? fcvm_fc_jail_spawn(f, m, p, wait, until, err)
		       : fcvm_node_spawn(m->node, &spec, until, &f->vmm.process, err);
}

static int start_process(struct fc *f, const struct vmm_machine *m, const struct vmm_probe *p, bool wait,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_free_ char *address = fcvm_asprintf("unix:%s/" FC_API, f->dir);
	int k = spawn(f, m, p, wait, until, err);

	if (k < 0)
		return (fcvm_fail_prefix(err, "%s: start Firecracker", f->vmm.name), k);
	k = fcvm_vmm_hook_up(&f->vmm, m, err);
	if (k < 0)
		return k;
	if (!address || fcvm_drain_set_aside(f->vmm.log, METRICS) < 0)
		return fcvm_fail_errno(err, -ENOMEM, "%s: start Firecracker", f->vmm.name);
	return fcvm_http_new(&f->api, m->node, address, m->dirfd, fcvm_vmm_exit_fd(&f->vmm), err);
}

/*
 * Its API can be called. Fifty that start at once have better to do than to look for sockets: it says when. One that does
 * not is looked for all the same, now and then.
 */
static int await_api(struct fc *f, const struct fcvm_until *until, struct fcvm_err *err)
{
	int k, ms = READY_MS;

	for (;; ms = LOOK_MS) {
		struct fcvm_until moment = fcvm_until_sooner(until, ms);
		bool said;

		k = fcvm_drain_await(f->vmm.log, "Listening on API socket", fcvm_vmm_exit_fd(&f->vmm), &moment);
		said = k == 0;
		if (k == 0 || (k == -ETIMEDOUT && !fcvm_until_passed(until)))
			k = fcvm_http_connect(f->api, until, err);
		if (said || (k != -ENOENT && k != -ECONNREFUSED))
			break;
	}
	if (k == -ECONNRESET)
		return fcvm_fail(err, k, "%s: start Firecracker", f->vmm.name);
	return k < 0 ? fcvm_fail_errno(err, k, "%s: start Firecracker: reach its API socket", f->vmm.name) : 0;
}

/* The API answers after the machine has been made: either it runs, or Firecracker has said why not and ended. */
static int await_running(struct fc *f, const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *answer = NULL;
	const char *state;
	int k = fcvm_http_call(f->api, "GET", "/", NULL, until, &answer, err);

	if (k < 0)
		return (fcvm_fail_prefix(err, "%s: boot", f->vmm.name), k);
	state = fcvm_json_string(answer, "state", "in an unknown state");
	if (strcmp(state, "Running") != 0)
		return fcvm_fail(err, -EIO, "%s: boot: Firecracker says that it is %s", f->vmm.name, state);
	return 0;
}

static int launch(struct fc *f, const struct vmm_machine *m, const struct vmm_probe *p, bool wait,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	int k = m->jail ? fcvm_fc_jail_make(f, m, p, until, err) : 0;

	if (k == 0 && !wait)
		k = write_config(f, m, until, err);
	if (k == 0 && !wait)
		k = fcvm_fc_listen(f, until, err);
	if (k == 0)
		k = start_process(f, m, p, wait, until, err);
	if (k == 0)
		k = await_api(f, until, err);
	if (k == 0 && m->jail)
		fcvm_fc_jail_find(f, until);
	if (k == 0 && !wait)
		k = await_running(f, until, err);
	if (k < 0 && f->vmm.process)
		fcvm_fc_fail(f, k, err);
	return k;
}

/* The snapshot names its drives' files, and clones of it must not write to the same one. */
static int check_drives(const struct vmm_machine *m, struct fcvm_err *err)
{
	for (unsigned i = 0; i < m->ndrives; i++)
		if (!m->drives[i].readonly && m->drives[i].path[0] == '/')
			return fcvm_fail(err, -EOPNOTSUPP, "%s: restore: drive %s is written to, and would be by all clones: make it "
				"readonly, or put it into the machine's folder", m->name, m->drives[i].path);
	return 0;
}

static int start(const struct vmm_machine *m, const struct vmm_probe *p, bool wait, const struct fcvm_until *until,
	struct vmm **ret, struct fcvm_err *err)
{
	struct fc *f;
	int k;

	if (m->memory == 0 || m->memory % (1 << 20) != 0)
		return fcvm_fail(err, -EINVAL, "%s: memory of %llu bytes: want whole MiB", m->name,
			(unsigned long long)m->memory);
	/* A smaller file would be loaded, and read back as something else. */
	k = wait ? fcvm_vmm_check_memory(m, until, err) : 0;
	if (k == 0 && wait)
		k = check_drives(m, err);
	if (k < 0)
		return k;
	f = fc_new(m, p, wait);
	if (!f)
		return fcvm_fail_errno(err, -ENOMEM, "%s: start Firecracker", m->name);
	k = launch(f, m, p, wait, until, err);
	if (k < 0) {
		fcvm_vmm_free(&f->vmm);
		return k;
	}
	if (wait && m->track)
		fcvm_fc_set_base(f, m->memory_file, until);
	f->state = wait ? FC_WAITING : FC_RUNNING;
	*ret = &f->vmm;
	return 0;
}

static int fc_boot(const struct vmm_machine *m, const struct vmm_probe *p, const struct fcvm_until *until,
	struct vmm **ret, struct fcvm_err *err)
{
	return start(m, p, false, until, ret, err);
}

static int fc_wait(const struct vmm_machine *m, const struct vmm_probe *p, const struct fcvm_until *until,
	struct vmm **ret, struct fcvm_err *err)
{
	return start(m, p, true, until, ret, err);
}

/* ---- what it has besides ---- */

static int fc_balloon(struct vmm *v, uint64_t bytes, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fc *f = fc_of(v);
	int k = fcvm_fc_want(f, 1u << FC_RUNNING | 1u << FC_PAUSED, "set its balloon", err);

	if (k < 0)
		return k;
	if (!f->balloon)
		return fcvm_fail(err, -EOPNOTSUPP, "%s: it has no balloon; start it with balloon = true", v->name);
	k = fcvm_fc_call(f, "set its balloon", "PATCH", "/balloon", fcvm_fc_balloon(bytes), until, NULL, err);
	return k < 0 ? fcvm_fc_fail(f, k, err) : 0;
}

/* It answers when the line is written, which then has a pipe, and perhaps a link, to go through. */
static int fc_metrics(struct vmm *v, const struct fcvm_until *until, char **ret, struct fcvm_err *err)
{
	struct fc *f = fc_of(v);
	int k = fcvm_fc_want(f, 1u << FC_RUNNING | 1u << FC_PAUSED, "metrics", err);
	unsigned seen;

	if (k < 0)
		return k;
	seen = fcvm_drain_asides(v->log);
	k = fcvm_fc_call(f, "metrics", "PUT", "/actions", fcvm_fc_action("FlushMetrics"), until, NULL, err);
	if (k == 0) {
		k = fcvm_drain_await_aside(v->log, seen, fcvm_vmm_exit_fd(v), until, ret);
		if (k < 0)
			fcvm_fail_errno(err, k, "%s: metrics: Firecracker has not written them", v->name);
	}
	return k < 0 ? fcvm_fc_fail(f, k, err) : 0;
}

const struct vmm_ops fcvm_vmm_firecracker = {
	.name = "firecracker",
	.remedy = "scripts/fetch-firecracker, or put firecracker into PATH; it needs KVM",
	.wants_elf = true,
	.can_jail = true,
	.save_cuts = true,
	.probe = fcvm_fc_probe,
	.boot = fc_boot,
	.wait = fc_wait,
	.restore = fcvm_fc_restore,
	.pause = fcvm_fc_pause,
	.resume = fcvm_fc_resume,
	.prepare_save = fcvm_fc_prepare_save,
	.save = fcvm_fc_save,
	.carrier = fcvm_fc_carrier,
	.stream = fcvm_fc_stream,
	.balloon = fc_balloon,
	.metrics = fc_metrics,
	.moved = fcvm_fc_moved,
	.done = fc_done,
};
