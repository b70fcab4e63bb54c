/* SPDX-License-Identifier: MIT */
/* A VMM's process: its logs, its end, and what is said of it. */
#include "vmm/process.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fail.h"
#include "base/fd.h"

enum {
	CONSOLE_LIMIT = 1 << 20,
	LOG_LIMIT = 64 * 1024,
	END_MS = 1000,   /* from a VMM's closing its sockets to its end */
	FREE_MS = 20000, /* after SIGKILL: large memory takes its time */
};

int fcvm_vmm_init(struct vmm *v, const struct vmm_ops *ops, const char *title, const struct vmm_machine *m)
{
	v->ops = ops;
	v->title = title;
	pthread_mutex_init(&v->lock, NULL);
	v->node = fcvm_node_ref(m->node);
	v->name = strdup(m->name);
	return v->name ? 0 : -ENOMEM;
}

int fcvm_vmm_hook_up(struct vmm *v, const struct vmm_machine *m, struct fcvm_err *err)
{
	struct fcvm_node *local = m->local ? m->local : m->node;
	int k;

	v->pid = fcvm_process_pid(v->process);
	k = fcvm_node_drain(local, fcvm_process_take_fd(v->process, 1), m->dirfd, "console.log", CONSOLE_LIMIT,
		&v->console, err);
	if (k == 0)
		k = fcvm_node_drain(local, fcvm_process_take_fd(v->process, 2), m->dirfd, "vmm.log", LOG_LIMIT, &v->log,
			err);
	return k < 0 ? (fcvm_fail_prefix(err, "%s", v->name), k) : 0;
}

int fcvm_vmm_check_memory(const struct vmm_machine *m, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_node_stat st;
	int k = fcvm_node_stat(m->node, m->memory_file, until, &st, err);

	if (k < 0)
		return (fcvm_fail_prefix(err, "%s", m->name), k);
	if (!S_ISREG(st.mode) || st.size != m->memory)
		return fcvm_fail(err, -EINVAL, "%s: %s has %llu bytes, a guest of this memory has %llu: not its snapshot",
			m->name, m->memory_file, (unsigned long long)st.size, (unsigned long long)m->memory);
	return 0;
}

/* ---- its end ---- */

static bool has_ended(struct vmm *v, int timeout_ms)
{
	struct fcvm_until until = fcvm_until_ms(timeout_ms, -1);
	struct pollfd p = {.fd = fcvm_process_exit_fd(v->process), .events = POLLIN};

	return fcvm_until_poll(&until, &p, 1) > 0;
}

/* It has ended: how. */
static int collect(struct vmm *v, struct fcvm_exit *ret, struct fcvm_err *err)
{
	struct fcvm_until soon = fcvm_until_ms(END_MS, -1);
	int k;

	pthread_mutex_lock(&v->lock);
	k = fcvm_process_wait(v->process, &soon, ret, err);
	pthread_mutex_unlock(&v->lock);
	return k;
}

void fcvm_vmm_kill(struct vmm *v)
{
	pthread_mutex_lock(&v->lock);
	fcvm_process_signal(v->process, SIGKILL, NULL);
	pthread_mutex_unlock(&v->lock);
}

int fcvm_vmm_wait_exit(struct vmm *v, const struct fcvm_until *until, struct fcvm_exit *ret, struct fcvm_err *err)
{
	struct pollfd p = {.fd = fcvm_process_exit_fd(v->process), .events = POLLIN};
	int k = fcvm_until_poll(until, &p, 1);

	if (k < 0)
		return fcvm_fail_errno(err, k, "%s: waiting for %s's end", v->name, v->title);
	k = collect(v, ret, err);
	return k < 0 ? (fcvm_fail_prefix(err, "%s", v->name), k) : 0;
}

void fcvm_vmm_free(struct vmm *v)
{
	if (!v)
		return;
	if (v->process) {
		struct fcvm_exit e;

		fcvm_vmm_kill(v);
		if (has_ended(v, FREE_MS))
			collect(v, &e, NULL);
	}
	v->ops->done(v);
	fcvm_drain_free(v->console);
	fcvm_drain_free(v->log);
	fcvm_process_free(v->process);
	fcvm_node_unref(v->node);
	pthread_mutex_destroy(&v->lock);
	free(v->name);
	free(v);
}

/* ---- what it said ---- */

/* The last line that says something. */
static const char *last_line(const struct vmm *v, char *text)
{
	for (size_t end = strlen(text);;) {
		char *line;

		while (end > 0 && strchr("\r\n \t", text[end - 1]))
			text[--end] = 0;
		line = strrchr(text, '\n');
		line = line ? line + 1 : text;
		if (line == text || !v->farewell || !strstr(line, v->farewell))
			return line;
		end = line - text;
	}
}

static void add_detail(struct vmm *v, struct fcvm_err *err)
{
	char text[2 * 4096 + 64] = "", part[4097];
	size_t used = 0;

	if (v->log && fcvm_drain_tail(v->log, part, sizeof part) > 0)
		used += snprintf(text, sizeof text, "%s\n", part);
	if (v->console && fcvm_drain_tail(v->console, part, sizeof part) > 0)
		used += snprintf(text + used, sizeof text - used, "%s%s", used ? "console:\n" : "", part);
	if (used > 0)
		fcvm_fail_detail(err, text, used);
}

int fcvm_vmm_fail(struct vmm *v, int code, bool dying, bool *ended, struct fcvm_err *err)
{
	char how[64], old[sizeof err->message], said[1025] = "";
	struct fcvm_exit e;
	const char *line;

	if (!has_ended(v, dying ? END_MS : 0) || collect(v, &e, NULL) < 0) {
		/* Misuse and the caller's own wish need no console to be understood. */
		if (err && code != -ECANCELED && code != -EINVAL)
			add_detail(v, err);
		return code;
	}
	*ended = true;
	if (!err)
		return code;
	if (e.signal)
		snprintf(how, sizeof how, "signal %d ended %s", e.signal, v->title);
	else
		snprintf(how, sizeof how, "%s ended with status %d", v->title, e.code);
	/* What it said before others ended it is no reason; the detail has it. */
	if (v->log && (!e.signal || e.signal == SIGABRT))
		fcvm_drain_tail(v->log, said, sizeof said);
	line = last_line(v, said);
	memcpy(old, err->message, sizeof old);
	fcvm_fail(err, code, "%.700s (%s%s%.500s)", old, how, *line ? ": " : "", line);
	add_detail(v, err);
	return code;
}

size_t fcvm_vmm_tail(struct vmm *v, char *to, size_t size)
{
	return fcvm_drain_tail(v->console, to, size);
}

/* ---- what others ask ---- */

void fcvm_vmm_rename(struct vmm *v, const char *name)
{
	char *copy = strdup(name);

	if (!copy)
		return; /* the messages go on saying the old one */
	free(v->name);
	v->name = copy;
	if (v->ops->renamed)
		v->ops->renamed(v);
}

void fcvm_vmm_moved(struct vmm *v, const char *memory_file)
{
	if (v->ops->moved)
		v->ops->moved(v, memory_file);
}

pid_t fcvm_vmm_pid(const struct vmm *v)
{
	return v->pid;
}

int fcvm_vmm_exit_fd(const struct vmm *v)
{
	return fcvm_process_exit_fd(v->process);
}
