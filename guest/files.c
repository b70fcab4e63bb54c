/* SPDX-License-Identifier: MIT */
/* The operations on files that one or two system calls do. Trees are moved by process.c. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"

static void answer(struct link *l, uint32_t id, int code, const char *what, const char *path)
{
	if (code < 0)
		link_refuse(l, id, code, "%s %s: %s", what, path, strerror(-code));
	else
		link_result(l, id, NULL, 0);
}

void files_open_mkdir(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	uint32_t mode = fcvm_wire_get_u32(r);
	uint32_t flags = fcvm_wire_get_u32(r);
	const char *path = fcvm_wire_get_string(r);
	struct folder *f = NULL;
	int code;

	if (!fcvm_wire_reader_ok(r) || !*path)
		return answer(l, id, -EINVAL, "mkdir", path);
	if (flags & 2 && l->nfolders >= FOLDERS_MAX)
		return answer(l, id, -EMFILE, "mkdir", path);
	if (flags & 2) {
		f = malloc(sizeof *f + strlen(path) + 1);
		if (!f)
			return answer(l, id, -ENOMEM, "mkdir", path);
		strcpy(f->path, path);
	}
	code = fcvm_dir_create(path, mode & 07777, flags & 1);
	/* What was there is somebody's: a lease must not remove it. */
	if (code == 0 && f)
		code = -EEXIST;
	if (code > 0 && f) {
		files_forget(l, path);
		LIST_INSERT_HEAD(&l->folders, f, entry);
		l->nfolders++;
	} else {
		free(f);
	}
	answer(l, id, code, "mkdir", path);
}

void files_open_rename(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	const char *from = fcvm_wire_get_string(r);
	const char *to = fcvm_wire_get_string(r);

	if (!fcvm_wire_reader_ok(r))
		return answer(l, id, -EINVAL, "rename", from);
	if (rename(from, to) < 0)
		link_refuse(l, id, -errno, "rename %s to %s: %s", from, to, strerror(errno));
	else
		link_result(l, id, NULL, 0);
}

void files_open_stat(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	const char *path = fcvm_wire_get_string(r);
	struct fcvm_wire_stat out;
	struct stat st;

	if (!fcvm_wire_reader_ok(r))
		return answer(l, id, -EINVAL, "stat", path);
	if (lstat(path, &st) < 0)
		return answer(l, id, -errno, "stat", path);
	out = (struct fcvm_wire_stat){
		.size = st.st_size,
		.mtime_ns = st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec,
		.mode = st.st_mode,
		.uid = st.st_uid,
		.gid = st.st_gid,
	};
	link_result(l, id, &out, sizeof out);
}

void files_open_reflink(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	const char *from = fcvm_wire_get_string(r);
	const char *to = fcvm_wire_get_string(r);
	int code = fcvm_wire_reader_ok(r) ? fcvm_file_reflink(from, to) : -EINVAL;

	if (code < 0)
		link_refuse(l, id, code, "reflink %s to %s: %s", from, to, strerror(-code));
	else
		link_result(l, id, NULL, 0);
}

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
		if (removed && (last || process_remove(l->agent, paths, n) < 0))
			for (unsigned i = 0; i < n; i++)
				fcvm_tree_remove(AT_FDCWD, paths[i]);
		for (unsigned i = 0; i < n; i++)
			forget(l, LIST_FIRST(&l->folders));
	}
}
