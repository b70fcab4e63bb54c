/* SPDX-License-Identifier: MIT */
/* The operations on files that one or two system calls do. Trees are moved by process.c. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"

/* The errno's text behind what was tried, unless it went well. */
static void set_result(struct job *j, int code, const char *what, const char *path)
{
	j->code = code < 0 ? fcvm_fail_errno(&j->err, code, "%s %s", what, path) : 0;
}

/* ---- MKDIR ---- */

struct mkdir_job {
	struct job job;
	bool leased;
	bool made;
	const char *path;
};

static void mkdir_work(struct job *j)
{
	struct mkdir_job *m = (struct mkdir_job *)j;
	uint32_t mode = fcvm_wire_get_u32(&j->request);
	uint32_t flags = fcvm_wire_get_u32(&j->request);
	int code;

	m->path = fcvm_wire_get_string(&j->request);
	m->leased = flags & 2;
	if (!fcvm_wire_reader_ok(&j->request) || !*m->path)
		return set_result(j, -EINVAL, "mkdir", m->path);
	code = fcvm_dir_create(m->path, mode & 07777, flags & 1);
	m->made = code > 0;
	/* What was there is somebody's: a lease must not remove it. */
	set_result(j, code == 0 && m->leased ? -EEXIST : code, "mkdir", m->path);
}

/* 0 or -errno. */
static int lease(struct link *l, const char *path)
{
	struct folder *f = l->nfolders < FOLDERS_MAX ? malloc(sizeof *f + strlen(path) + 1) : NULL;

	if (!f)
		return l->nfolders < FOLDERS_MAX ? -ENOMEM : -EMFILE;
	strcpy(f->path, path);
	files_forget(l, path);
	LIST_INSERT_HEAD(&l->folders, f, entry);
	l->nfolders++;
	return 0;
}

static void mkdir_done(struct job *j)
{
	struct mkdir_job *m = (struct mkdir_job *)j;
	int code = 0;

	if (m->made && m->leased)
		code = j->stream ? lease(j->stream->link, m->path) : -ECANCELED;
	if (code < 0) {
		process_remove(j->agent, &m->path, 1);
		set_result(j, code, "mkdir", m->path);
	}
	job_answer(j);
}

/* ---- the others ---- */

static void rename_work(struct job *j)
{
	const char *from = fcvm_wire_get_string(&j->request);
	const char *to = fcvm_wire_get_string(&j->request);

	if (!fcvm_wire_reader_ok(&j->request))
		set_result(j, -EINVAL, "rename", from);
	else if (rename(from, to) < 0)
		j->code = fcvm_fail_errno(&j->err, -errno, "rename %s to %s", from, to);
}

struct stat_job {
	struct job job;
	struct stat st;
};

static void stat_work(struct job *j)
{
	struct stat_job *t = (struct stat_job *)j;
	const char *path = fcvm_wire_get_string(&j->request);

	if (!fcvm_wire_reader_ok(&j->request))
		set_result(j, -EINVAL, "stat", path);
	else if (lstat(path, &t->st) < 0)
		set_result(j, -errno, "stat", path);
}

static void stat_done(struct job *j)
{
	const struct stat *st = &((struct stat_job *)j)->st;
	struct stream *s = j->stream;
	struct fcvm_wire_stat out = {
		.size = st->st_size,
		.mtime_ns = st->st_mtim.tv_sec * 1000000000ll + st->st_mtim.tv_nsec,
		.mode = st->st_mode,
		.uid = st->st_uid,
		.gid = st->st_gid,
	};

	if (j->code < 0 || !s)
		return job_answer(j);
	link_result(s->link, s->id, &out, sizeof out);
	stream_bury(s);
}

static void reflink_work(struct job *j)
{
	const char *from = fcvm_wire_get_string(&j->request);
	const char *to = fcvm_wire_get_string(&j->request);

	j->code = fcvm_wire_reader_ok(&j->request) ? fcvm_file_reflink(from, to) : -EINVAL;
	if (j->code < 0)
		fcvm_fail_errno(&j->err, j->code, "reflink %s to %s", from, to);
}

static void unlink_work(struct job *j)
{
	unlink(fcvm_wire_get_string(&j->request));
}

static void nobody_asks(struct job *j)
{
	(void)j;
}

void files_unlink(struct agent *a, const char *path)
{
	uint8_t text[PATH_MAX + 8];
	struct fcvm_wire_writer w = {.at = text, .end = text + sizeof text};
	struct fcvm_wire_reader r;
	struct job *j;

	fcvm_wire_put_string(&w, path);
	r = fcvm_wire_reader(text, (size_t)(w.at - text));
	j = w.bad ? NULL : job_new(a, NULL, sizeof *j, &r);
	if (!j)
		return;
	j->work = unlink_work;
	j->done = nobody_asks;
	job_run(j, false);
}

static void open_job(struct link *l, uint32_t id, struct fcvm_wire_reader *r, size_t size, void (*work)(struct job *),
	void (*done)(struct job *))
{
	struct job *j = job_new_stream(l, id, STREAM_JOB, 0, size, r);

	if (!j)
		return;
	j->work = work;
	j->done = done;
	job_run(j, false);
}

void files_open_mkdir(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	open_job(l, id, r, sizeof(struct mkdir_job), mkdir_work, mkdir_done);
}

void files_open_rename(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	open_job(l, id, r, sizeof(struct job), rename_work, job_answer);
}

void files_open_stat(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	open_job(l, id, r, sizeof(struct stat_job), stat_work, stat_done);
}

void files_open_reflink(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	open_job(l, id, r, sizeof(struct job), reflink_work, job_answer);
}

/* ---- leases ---- */

static void forget(struct link *l, struct folder *f)
{
	LIST_REMOVE(f, entry);
	l->nfolders--;
	free(f);
}

void files_forget(struct link *l, const char *path)
{
	struct folder *f, *next;

	for (f = LIST_FIRST(&l->folders); f; f = next) {
		next = LIST_NEXT(f, entry);
		if (strcmp(f->path, path) == 0)
			forget(l, f);
	}
}

/* A tree can take long; meanwhile the next host wants its WELCOME. */
void files_end_lease(struct link *l, bool removed, bool last)
{
	while (!LIST_EMPTY(&l->folders)) {
		const char *paths[REMOVE_MAX];
		struct folder *f;
		unsigned n = 0;

		LIST_FOREACH(f, &l->folders, entry)
			if (n < REMOVE_MAX)
				paths[n++] = f->path;
		if (removed && !last)
			process_remove(l->agent, paths, n);
		for (unsigned i = 0; removed && last && i < n; i++)
			fcvm_tree_remove(AT_FDCWD, paths[i]);
		for (unsigned i = 0; i < n; i++)
			forget(l, LIST_FIRST(&l->folders));
	}
}
