/* SPDX-License-Identifier: MIT */
/* Processes that were started (start.c): signalled, reaped. */
#include "agent.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

/* ---- signals and the end ---- */

void process_signal(struct stream *s, uint32_t signo)
{
	if (s->proc.pid && !s->exited && signo > 0 && signo < NSIG)
		fcvm_proc_kill(&s->proc, signo, true);
}

void process_resize(struct stream *s, uint32_t size)
{
	struct winsize w = {.ws_row = size >> 16, .ws_col = size & 0xffff};

	if (s->nchannels > 0 && s->channels[0].type == CHANNEL_TTY && s->channels[0].watch.fd >= 0)
		ioctl(s->channels[0].watch.fd, TIOCSWINSZ, &w);
}

static bool mounts(const struct stream *s)
{
	return s->kind == STREAM_ERRAND && strcmp(s->verb, "mount") == 0;
}

/* Ends a process that runs. A tree worker ends by itself, tidily, once its pipes are closed; one that mounts, unless it is just
 * doing so. */
void process_doom(struct stream *s)
{
	s->doomed = true;
	s->lease = NULL;
	if (mounts(s))
		fcvm_proc_kill(&s->proc, SIGTERM, false);
	if (s->kind != STREAM_PROCESS)
		return;
	if (s->exited)
		kill(-s->proc.pid, SIGKILL); /* the number is safe while others of the group are left */
	else
		fcvm_proc_kill(&s->proc, SIGKILL, true);
}

void process_undo(struct stream *s)
{
	if (mounts(s) && s->exited && s->status == 0)
		process_unmount(s->agent, s->path);
}

static struct stream *find_running(struct agent *a, pid_t pid)
{
	struct stream *s;

	LIST_FOREACH(s, &a->by_pid[pid % BUCKETS], by_pid)
		if (s->proc.pid == pid && !s->exited)
			return s;
	return NULL;
}

void process_ended(struct stream *s, const siginfo_t *si)
{
	s->exited = true;
	s->status = si->si_code == CLD_EXITED ? (uint32_t)si->si_status & 0xff : 0x100u + si->si_status;
	if (s->lease && kill(-s->proc.pid, 0) == 0) {
		s->group_left = true;
		s->agent->nleft++;
	}
	if (!s->link) {
		process_undo(s);
		for (unsigned i = 0; i < s->nchannels; i++)
			channel_close(&s->channels[i]);
		if (!s->group_left)
			stream_bury(s);
		return;
	}
	for (unsigned i = 0; i < s->nchannels; i++)
		channel_process_ended(&s->channels[i]);
	stream_queue(s);
}

/* Groups whose last member is gone: their number is free for others now, and must not be signalled. */
static void forget_empty_groups(struct agent *a)
{
	for (unsigned i = 0; i < BUCKETS && a->nleft > 0; i++) {
		struct stream *s, *next;

		for (s = LIST_FIRST(&a->by_pid[i]); s; s = next) {
			next = LIST_NEXT(s, by_pid);
			if (!s->group_left || kill(-s->proc.pid, 0) == 0)
				continue;
			s->group_left = false;
			a->nleft--;
			if (!s->link)
				stream_bury(s);
		}
	}
}

void process_reap(struct agent *a)
{
	siginfo_t si;

	for (;;) {
		struct stream *s;

		si.si_pid = 0;
		if (waitid(P_ALL, 0, &si, WEXITED | WNOHANG) < 0 || si.si_pid == 0)
			break;
		s = find_running(a, si.si_pid);
		if (s)
			process_ended(s, &si);
		else
			process_ended_early(a, &si); /* or an orphan that came to PID 1 */
	}
	if (a->nleft > 0)
		forget_empty_groups(a);
}

void process_end_lease(struct link *l, bool kill_all)
{
	struct agent *a = l->agent;

	forget_empty_groups(a);
	for (unsigned i = 0; i < BUCKETS; i++) {
		struct stream *s, *next;

		for (s = LIST_FIRST(&a->by_pid[i]); s; s = next) {
			next = LIST_NEXT(s, by_pid);
			if (s->lease != l)
				continue;
			if (kill_all)
				process_doom(s);
			s->lease = NULL;
			if (s->exited)
				stream_bury(s);
		}
	}
}
