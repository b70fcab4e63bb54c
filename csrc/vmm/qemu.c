/* SPDX-License-Identifier: MIT */
/*
 * The QEMU driver: starting it. Everything goes by descriptors that the node hands to QEMU
 * (qemu_private.h), so there are no socket files and it works on any node. The states are in qemu_state.c.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fail.h"
#include "base/fd.h"
#include "vmm/qemu_private.h"

int fcvm_qemu_fail(struct qemu *q, int code, struct fcvm_err *err)
{
	bool ended = false;

	/* Its sockets close a little before it is gone, and a failed restore ends it. */
	bool dying = code == -ECONNRESET || code == -EPIPE || q->state == QEMU_BROKEN;

	code = fcvm_vmm_fail(&q->vmm, code, dying, &ended, err);
	if (ended)
		q->state = QEMU_BROKEN;
	return code;
}

/* ---- life ---- */

static void qemu_done(struct vmm *v)
{
	struct qemu *q = qemu_of(v);

	fcvm_qmp_free(q->qmp);
	fcvm_close(q->ram.fd);
	free(q->memory_path);
}

struct qemu *fcvm_qemu_new(const struct vmm_machine *m, bool file_uri, bool private)
{
	struct qemu *q = calloc(1, sizeof *q);

	if (!q)
		return NULL;
	q->ram = (struct qemu_ram){.fd = -1, .exit_fd = -1};
	q->memory_path = private ? strdup(m->memory_file) : fcvm_asprintf("%s/memory", m->dir);
	q->memory = m->memory;
	q->file_uri = file_uri;
	q->ports = private ? m->ports : 0;
	if (fcvm_vmm_init(&q->vmm, &fcvm_vmm_qemu, "QEMU", m) == 0 && q->memory_path) {
		q->ram.name = q->vmm.name;
		return q;
	}
	fcvm_vmm_free(&q->vmm);
	return NULL;
}

int fcvm_qemu_hook_up(struct qemu *q, const struct vmm_machine *m, struct fcvm_err *err)
{
	struct fcvm_process *process = q->vmm.process;
	int k = fcvm_vmm_hook_up(&q->vmm, m, err);

	if (k < 0)
		return k;
	q->ram.fd = fcvm_process_take_fd(process, QEMU_CONTROL);
	q->ram.exit_fd = fcvm_process_exit_fd(process);
	return fcvm_qmp_new(&q->qmp, fcvm_process_take_fd(process, QEMU_QMP), q->ram.exit_fd, q->vmm.name, err);
}

static int start(struct qemu *q, const struct vmm_machine *m, const struct qemu_args *a,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_spawn spec = {
		.argv = (const char *const *)a->argv,
		.env = (const char *const *)a->env,
		.null_stdin = true,
		.channels = QEMU_CHANNELS,
	};
	int k = fcvm_node_spawn(m->node, &spec, until, &q->vmm.process, err);

	return k < 0 ? (fcvm_fail_prefix(err, "%s: start QEMU", q->vmm.name), k) : fcvm_qemu_hook_up(q, m, err);
}

static int launch(const struct vmm_machine *m, const struct vmm_probe *p, bool wait, const struct fcvm_until *until,
	struct vmm **ret, struct fcvm_err *err)
{
	struct qemu *q;
	struct qemu_args a = {0};
	int k = wait ? fcvm_vmm_check_memory(m, until, err) : 0;

	if (k < 0)
		return k;
	q = fcvm_qemu_new(m, fcvm_json_bool(p->own, "file_uri", false), wait);
	if (!q)
		return fcvm_fail_errno(err, -ENOMEM, "%s: start QEMU", m->name);
	k = fcvm_qemu_args_make(&a, m, p, wait, q->memory_path, err);
	if (k == 0)
		k = start(q, m, &a, until, err);
	fcvm_qemu_args_done(&a);
	if (k == 0)
		k = fcvm_qmp_greet(q->qmp, until, err);
	if (k == 0)
		k = fcvm_qemu_ram_greet(&q->ram, m->memory, wait, until, err);
	if (k == 0)
		k = fcvm_qemu_setup(q, until, err);
	if (k < 0 && q->vmm.process)
		fcvm_qemu_fail(q, k, err);
	if (k < 0) {
		fcvm_vmm_free(&q->vmm);
		return k;
	}
	q->state = wait ? QEMU_WAITING : QEMU_RUNNING;
	*ret = &q->vmm;
	return 0;
}

static int qemu_boot(const struct vmm_machine *m, const struct vmm_probe *p, const struct fcvm_until *until,
	struct vmm **ret, struct fcvm_err *err)
{
	return launch(m, p, false, until, ret, err);
}

static int qemu_wait(const struct vmm_machine *m, const struct vmm_probe *p, const struct fcvm_until *until,
	struct vmm **ret, struct fcvm_err *err)
{
	return launch(m, p, true, until, ret, err);
}

static int qemu_carrier(struct vmm *v, const struct fcvm_until *until, int *ret_fd, struct fcvm_err *err)
{
	int fd = fcvm_process_take_fd(v->process, QEMU_AGENT);

	if (fd < 0)
		return fcvm_fail(err, -EBUSY, "%s: the stream to its agent was taken already", v->name);
	*ret_fd = fd;
	return 0;
}

/* In messages; QEMU's own command line goes on saying the first one. */
static void qemu_renamed(struct vmm *v)
{
	struct qemu *q = qemu_of(v);

	q->ram.name = v->name;
	fcvm_qmp_rename(q->qmp, v->name);
}

const struct vmm_ops fcvm_vmm_qemu = {
	.name = "qemu",
	.can_nest = true,
	.remedy = "scripts/fetch-qemu, or apt-get install qemu-system-x86",
	.probe = fcvm_qemu_probe,
	.boot = qemu_boot,
	.wait = qemu_wait,
	.restore = fcvm_qemu_restore,
	.pause = fcvm_qemu_pause,
	.resume = fcvm_qemu_resume,
	.prepare_save = fcvm_qemu_prepare_save,
	.save = fcvm_qemu_save,
	.carrier = qemu_carrier,
	.plug = fcvm_qemu_plug,
	.unplug = fcvm_qemu_unplug,
	.can_fork = fcvm_qemu_can_fork,
	.fork = fcvm_qemu_fork,
	.renamed = qemu_renamed,
	.done = qemu_done,
};
