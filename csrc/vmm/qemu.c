/* SPDX-License-Identifier: MIT */
/*
 * The QEMU driver: starting, watching and ending it. Everything goes by descriptors that the node hands to QEMU
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

enum {
	CONSOLE_LIMIT = 1 << 20,
	LOG_LIMIT = 64 * 1024,
	END_MS = 1000,   /* from QEMU's closing its sockets to its end */
	FREE_MS = 20000, /* after SIGKILL: large memory takes its time */
};

/* ---- its end ---- */

static bool has_ended(struct qemu *q, int timeout_ms)
{
	struct fcvm_until until = fcvm_until_ms(timeout_ms, -1);
	struct pollfd p = {.fd = fcvm_process_exit_fd(q->process), .events = POLLIN};

	return fcvm_until_poll(&until, &p, 1) > 0;
}

/* It has ended: how. */
static int collect(struct qemu *q, struct fcvm_exit *ret, struct fcvm_err *err)
{
	struct fcvm_until soon = fcvm_until_ms(END_MS, -1);
	int k;

	pthread_mutex_lock(&q->lock);
	k = fcvm_process_wait(q->process, &soon, ret, err);
	pthread_mutex_unlock(&q->lock);
	return k;
}

static void qemu_kill(struct vmm *v)
{
	struct qemu *q = qemu_of(v);

	pthread_mutex_lock(&q->lock);
	fcvm_process_signal(q->process, SIGKILL, NULL);
	pthread_mutex_unlock(&q->lock);
}

static int qemu_wait_exit(struct vmm *v, const struct fcvm_until *until, struct fcvm_exit *ret, struct fcvm_err *err)
{
	struct qemu *q = qemu_of(v);
	struct pollfd p = {.fd = fcvm_process_exit_fd(q->process), .events = POLLIN};
	int k = fcvm_until_poll(until, &p, 1);

	if (k < 0)
		return fcvm_fail_errno(err, k, "%s: waiting for QEMU's end", q->name);
	k = collect(q, ret, err);
	return k < 0 ? (fcvm_fail_prefix(err, "%s", q->name), k) : 0;
}

/* ---- what it said ---- */

/* The last line that says something. */
static const char *last_line(char *text)
{
	size_t end = strlen(text);
	char *line;

	while (end > 0 && strchr("\r\n \t", text[end - 1]))
		text[--end] = 0;
	line = strrchr(text, '\n');
	return line ? line + 1 : text;
}

static void add_detail(struct qemu *q, struct fcvm_err *err)
{
	char text[2 * 4096 + 64] = "", part[4097];
	size_t used = 0;

	if (q->log && fcvm_drain_tail(q->log, part, sizeof part) > 0)
		used += snprintf(text, sizeof text, "%s\n", part);
	if (q->console && fcvm_drain_tail(q->console, part, sizeof part) > 0)
		used += snprintf(text + used, sizeof text - used, "%s%s", used ? "console:\n" : "", part);
	if (used > 0)
		fcvm_fail_detail(err, text, used);
}

int fcvm_qemu_fail(struct qemu *q, int code, struct fcvm_err *err)
{
	char how[64], old[sizeof err->message], said[1025] = "";
	struct fcvm_exit e;
	const char *line;

	/* Its sockets close a little before it is gone, and a failed restore ends it. */
	bool dying = code == -ECONNRESET || code == -EPIPE || q->state == QEMU_BROKEN;

	if (!has_ended(q, dying ? END_MS : 0) || collect(q, &e, NULL) < 0) {
		/* Misuse and the caller's own wish need no console to be understood. */
		if (err && code != -ECANCELED && code != -EINVAL)
			add_detail(q, err);
		return code;
	}
	q->state = QEMU_BROKEN;
	if (!err)
		return code;
	if (e.signal)
		snprintf(how, sizeof how, "signal %d ended QEMU", e.signal);
	else
		snprintf(how, sizeof how, "QEMU ended with status %d", e.code);
	if (q->log)
		fcvm_drain_tail(q->log, said, sizeof said);
	line = last_line(said);
	memcpy(old, err->message, sizeof old);
	fcvm_fail(err, code, "%.700s (%s%s%.500s)", old, how, *line ? ": " : "", line);
	add_detail(q, err);
	return code;
}

static size_t qemu_tail(struct vmm *v, char *to, size_t size)
{
	return fcvm_drain_tail(qemu_of(v)->console, to, size);
}

/* ---- life ---- */

void fcvm_qemu_free(struct vmm *v)
{
	struct qemu *q = qemu_of(v);

	if (!q)
		return;
	if (q->process) {
		struct fcvm_exit e;

		qemu_kill(v);
		if (has_ended(q, FREE_MS))
			collect(q, &e, NULL);
	}
	fcvm_qmp_free(q->qmp);
	fcvm_close(q->ram.fd);
	fcvm_drain_free(q->console);
	fcvm_drain_free(q->log);
	fcvm_process_free(q->process);
	fcvm_node_unref(q->node);
	pthread_mutex_destroy(&q->lock);
	free(q->name);
	free(q->memory_path);
	free(q);
}

struct qemu *fcvm_qemu_new(const struct vmm_machine *m, bool file_uri, bool private)
{
	struct qemu *q = calloc(1, sizeof *q);

	if (!q)
		return NULL;
	pthread_mutex_init(&q->lock, NULL);
	q->node = fcvm_node_ref(m->node);
	q->name = strdup(m->name);
	q->memory_path = private ? strdup(m->memory_file) : fcvm_asprintf("%s/memory", m->dir);
	q->memory = m->memory;
	q->file_uri = file_uri;
	q->ram = (struct qemu_ram){.fd = -1, .exit_fd = -1, .name = q->name};
	if (q->name && q->memory_path)
		return q;
	fcvm_qemu_free((struct vmm *)q);
	return NULL;
}

int fcvm_qemu_hook_up(struct qemu *q, const struct vmm_machine *m, struct fcvm_err *err)
{
	struct fcvm_node *local = m->local ? m->local : m->node;
	int k;

	q->pid = fcvm_process_pid(q->process);
	k = fcvm_node_drain(local, fcvm_process_take_fd(q->process, 1), m->dirfd, "console.log", CONSOLE_LIMIT,
		&q->console, err);
	if (k == 0)
		k = fcvm_node_drain(local, fcvm_process_take_fd(q->process, 2), m->dirfd, "vmm.log", LOG_LIMIT, &q->log,
			err);
	if (k < 0)
		return fcvm_fail_prefix(err, "%s", q->name);
	q->ram.fd = fcvm_process_take_fd(q->process, QEMU_CONTROL);
	q->ram.exit_fd = fcvm_process_exit_fd(q->process);
	return fcvm_qmp_new(&q->qmp, fcvm_process_take_fd(q->process, QEMU_QMP), q->ram.exit_fd, q->name, err);
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
	int k = fcvm_node_spawn(m->node, &spec, until, &q->process, err);

	return k < 0 ? fcvm_fail_prefix(err, "%s: start QEMU", q->name) : fcvm_qemu_hook_up(q, m, err);
}

static int check_snapshot(const struct vmm_machine *m, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_node_stat st;
	int k = fcvm_node_stat(m->node, m->memory_file, until, &st, err);

	if (k < 0)
		return fcvm_fail_prefix(err, "%s", m->name);
	if (!S_ISREG(st.mode) || st.size != m->memory)
		return fcvm_fail(err, -EINVAL, "%s: %s has %llu bytes, a guest of this memory has %llu: not its snapshot",
			m->name, m->memory_file, (unsigned long long)st.size, (unsigned long long)m->memory);
	return 0;
}

static int launch(const struct vmm_machine *m, const struct vmm_probe *p, bool wait, const struct fcvm_until *until,
	struct vmm **ret, struct fcvm_err *err)
{
	struct qemu *q;
	struct qemu_args a = {0};
	int k = wait ? check_snapshot(m, until, err) : 0;

	if (k < 0)
		return k;
	q = fcvm_qemu_new(m, p->file_uri, wait);
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
	if (k < 0 && q->process)
		fcvm_qemu_fail(q, k, err);
	if (k < 0) {
		fcvm_qemu_free((struct vmm *)q);
		return k;
	}
	q->state = wait ? QEMU_WAITING : QEMU_RUNNING;
	*ret = (struct vmm *)q;
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
	struct qemu *q = qemu_of(v);
	int fd = fcvm_process_take_fd(q->process, QEMU_AGENT);

	if (fd < 0)
		return fcvm_fail(err, -EBUSY, "%s: the stream to its agent was taken already", q->name);
	*ret_fd = fd;
	return 0;
}

/* The messages' name; QEMU's own command line goes on saying the first one. */
static void qemu_rename(struct vmm *v, const char *name)
{
	struct qemu *q = qemu_of(v);
	char *copy = strdup(name);

	if (!copy)
		return;
	free(q->name);
	q->name = copy;
	q->ram.name = copy;
	fcvm_qmp_rename(q->qmp, name);
}

static pid_t qemu_pid(const struct vmm *v)
{
	return ((const struct qemu *)v)->pid;
}

static int qemu_exit_fd(const struct vmm *v)
{
	return fcvm_process_exit_fd(((const struct qemu *)v)->process);
}

const struct vmm_ops fcvm_vmm_qemu = {
	.name = "qemu",
	.probe = fcvm_qemu_probe,
	.boot = qemu_boot,
	.wait = qemu_wait,
	.restore = fcvm_qemu_restore,
	.pause = fcvm_qemu_pause,
	.resume = fcvm_qemu_resume,
	.prepare_save = fcvm_qemu_prepare_save,
	.save = fcvm_qemu_save,
	.carrier = qemu_carrier,
	.pid = qemu_pid,
	.exit_fd = qemu_exit_fd,
	.wait_exit = qemu_wait_exit,
	.kill = qemu_kill,
	.tail = qemu_tail,
	.free = fcvm_qemu_free,
	.can_fork = fcvm_qemu_can_fork,
	.fork = fcvm_qemu_fork,
	.rename = qemu_rename,
};
