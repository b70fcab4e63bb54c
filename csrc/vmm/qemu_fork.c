/* SPDX-License-Identifier: MIT */
/* A QEMU that copies itself (preload/fork.c): under TCG, and on this host, where descriptors can be passed. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "base/fail.h"
#include "base/fd.h"
#include "vmm/qemu_private.h"

enum { QMP, AGENT, CONTROL, OUT, LOG, PIPES = FCVM_RAM_FORK_FDS };

enum { LOST_MS = 2000 }; /* for a copy to say hello that its template has not announced */

bool fcvm_qemu_can_fork(const struct vmm_probe *p, const struct fcvm_node *n)
{
	/* KVM's descriptors belong to one address space: a copy of it can do nothing with them. */
	return strcmp(p->accel, "tcg") == 0 && fcvm_node_is_local(n);
}

static void close_all(int fds[PIPES])
{
	for (unsigned i = 0; i < PIPES; i++)
		fds[i] = fcvm_close(fds[i]);
}

static int make_pairs(int ours[PIPES], int theirs[PIPES])
{
	int k = 0;

	for (unsigned i = 0; i < PIPES; i++)
		ours[i] = theirs[i] = -1;
	for (unsigned i = 0; i < PIPES && k == 0; i++) {
		int pair[2];

		k = i < OUT ? fcvm_fd_pair(pair) : fcvm_fd_pipe(pair);
		if (k == 0) {
			ours[i] = pair[0];
			theirs[i] = pair[1];
			k = fcvm_fd_nonblock(pair[0], true);
		}
	}
	return k;
}

/* Who the copy is, by its hello. Its control channel stays ours. */
static int meet(struct qemu *from, const struct vmm_machine *m, int control, const struct fcvm_until *until, pid_t *ret,
	struct fcvm_err *err)
{
	struct qemu_ram ram = {.fd = control, .exit_fd = -1, .name = from->vmm.name};
	int k = fcvm_qemu_ram_greet(&ram, m->memory, true, until, err);

	*ret = ram.pid;
	return k;
}

/* The copy's process, with our ends where those of one that was spawned would be. ours: taken over. */
static int take_over(struct qemu *q, const struct vmm_machine *m, pid_t pid, int ours[PIPES], struct fcvm_err *err)
{
	int fds[QEMU_CONTROL + 1] = {-1, ours[OUT], ours[LOG], ours[QMP], ours[AGENT], ours[CONTROL]};
	int k;

	for (unsigned i = 0; i < PIPES; i++)
		ours[i] = -1;
	k = fcvm_node_adopt(q->vmm.node, pid, fds, QEMU_CONTROL + 1, "copy of", "QEMU", &q->vmm.process, err);
	if (k == 0)
		k = fcvm_qemu_hook_up(q, m, err);
	if (k < 0)
		return q->vmm.process ? fcvm_qemu_fail(q, k, err) : k;
	q->ram.private = true;
	fcvm_qmp_join(q->qmp);
	return 0;
}

/* Asks for the copy and takes it over, whatever the asking came to: one that nobody knows of must not live. */
static int make_copy(struct qemu *from, struct qemu *q, const struct vmm_machine *m, int ours[PIPES], int theirs[PIPES],
	const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_until soon = fcvm_until_ms(LOST_MS, -1);
	pid_t pid = 0;
	int k = fcvm_qemu_ram_fork(&from->ram, theirs, until, err);
	bool lost = k < 0 && from->ram.broken;

	/* Until these are closed here, nobody would see the copy's end. */
	close_all(theirs);
	if (k < 0 && !lost)
		return k;
	if (lost) {
		/* Taken over only to be ended with q. */
		if (meet(from, m, ours[CONTROL], &soon, &pid, NULL) == 0)
			take_over(q, m, pid, ours, NULL);
		return k;
	}
	k = meet(from, m, ours[CONTROL], until, &pid, err);
	return k < 0 ? k : take_over(q, m, pid, ours, err);
}

int fcvm_qemu_fork(struct vmm *v, const struct vmm_machine *m, const struct fcvm_until *until, struct vmm **ret,
	struct fcvm_err *err)
{
	struct qemu *from = qemu_of(v), *q = NULL;
	int ours[PIPES], theirs[PIPES];
	int k;

	for (unsigned i = 0; i < m->ndrives; i++)
		if (!m->drives[i].readonly)
			return fcvm_fail(err, -EOPNOTSUPP, "%s: copy QEMU: both would write to drive %s; restore a snapshot instead",
				m->name, m->drives[i].path);
	if (from->state != QEMU_PAUSED || !from->ram.private)
		return fcvm_fail(err, -EINVAL, "%s: copy QEMU: it is not paused, or has a file of its own as RAM", from->vmm.name);
	k = make_pairs(ours, theirs);
	if (k == 0) {
		q = fcvm_qemu_new(m, from->file_uri, true);
		k = q ? 0 : -ENOMEM;
	}
	if (k < 0)
		fcvm_fail_errno(err, k, "%s: copy QEMU", m->name);
	else
		k = make_copy(from, q, m, ours, theirs, until, err);
	if (k < 0) {
		close_all(ours);
		close_all(theirs);
		fcvm_vmm_free(q ? &q->vmm : NULL);
		return k;
	}
	q->state = QEMU_PAUSED;
	*ret = &q->vmm;
	return 0;
}
