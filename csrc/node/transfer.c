/* SPDX-License-Identifier: MIT */
/* Files by way of get and put: from and to memory. The stream is base/tree.h's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/tree.h"
#include "node/run.h"

enum {
	TEXT_MAX = 1400,
	LINKS_MAX = 40, /* symlinks followed, as by the kernel */
	TARGET_MAX = 4096,
};

/* ---- read_file: takes one regular file out of a tree stream, which may be hostile ---- */

enum read_state { READ_ENTRY, READ_TARGET, READ_EXTENT, READ_DATA, READ_REST };

struct file_sink {
	struct fcvm_sink sink;
	const char *path;
	size_t max;
	enum read_state state;
	uint8_t head[TARGET_MAX]; /* of what is being read in one piece: entry, target or extent */
	size_t have, want;
	uint64_t at, left; /* of the extent */
	char *data;
	size_t size;
	size_t room;
	char *target; /* it is a symlink */
};

/* Room for `size` bytes and a NUL; what is new is zero: holes are not sent. */
static int grow(struct file_sink *f, uint64_t size, struct fcvm_err *err)
{
	size_t room = f->room ? f->room : 4096;
	char *bigger;

	if (size > f->max)
		return fcvm_fail(
			err, -EFBIG, "read %s: it has more than %zu bytes", f->path, f->max);
	if (size > f->size)
		f->size = size;
	if (f->size < f->room)
		return 0;
	while (room <= f->size)
		room *= 2;
	bigger = realloc(f->data, room);
	if (!bigger)
		return fcvm_fail_errno(err, -ENOMEM, "read %s", f->path);
	memset(bigger + f->room, 0, room - f->room);
	f->data = bigger;
	f->room = room;
	return 0;
}

static void expect(struct file_sink *f, enum read_state state, size_t want)
{
	f->state = state;
	f->have = 0;
	f->want = want;
}

static int on_entry(struct file_sink *f, struct fcvm_err *err)
{
	struct fcvm_tree_entry e;

	memcpy(&e, f->head, sizeof e);
	if (e.magic == 0xf5 && e.path_len == 0 && e.type == FCVM_TREE_FILE && e.target_len == 0) {
		expect(f, READ_EXTENT, 16);
		return grow(f, e.size, err);
	}
	if (e.magic == 0xf5 && e.path_len == 0 && e.type == FCVM_TREE_SYMLINK && e.target_len > 0 &&
		e.target_len < TARGET_MAX) {
		expect(f, READ_TARGET, e.target_len);
		return 0;
	}
	if (e.magic == 0xf5 && e.type == FCVM_TREE_DIR)
		return fcvm_fail_errno(err, -EISDIR, "read %s", f->path);
	return fcvm_fail(err, -EINVAL, "read %s: it is no regular file", f->path);
}

static int on_target(struct file_sink *f, struct fcvm_err *err)
{
	f->target = strndup((char *)f->head, f->want);
	f->state = READ_REST;
	return f->target ? 0 : fcvm_fail_errno(err, -ENOMEM, "read %s", f->path);
}

static int on_extent(struct file_sink *f, struct fcvm_err *err)
{
	memcpy(&f->at, f->head, sizeof f->at);
	memcpy(&f->left, f->head + 8, sizeof f->left);
	if (f->left == 0) {
		f->state = READ_REST;
		return 0;
	}
	if (f->at + f->left < f->at)
		return fcvm_fail(err, -EPROTO, "read %s: the stream is malformed", f->path);
	f->state = READ_DATA;
	return grow(f, f->at + f->left, err);
}

static int take_piece(struct file_sink *f, struct fcvm_err *err)
{
	switch (f->state) {
	case READ_ENTRY:
		return on_entry(f, err);
	case READ_TARGET:
		return on_target(f, err);
	default:
		return on_extent(f, err);
	}
}

static int take_file(struct fcvm_sink *s, const void *data, size_t size, struct fcvm_err *err)
{
	struct file_sink *f = (struct file_sink *)s;
	const char *at = data;
	int k = 0;

	while (k == 0 && size > 0) {
		size_t step = size;

		if (f->state == READ_REST)
			return 0; /* the end entry; whether all came, EXIT tells */
		if (f->state == READ_DATA) {
			step = f->left < size ? f->left : size;
			memcpy(f->data + f->at, at, step);
			f->at += step;
			f->left -= step;
			if (f->left == 0)
				expect(f, READ_EXTENT, 16);
		} else {
			step = f->want - f->have < size ? f->want - f->have : size;
			memcpy(f->head + f->have, at, step);
			f->have += step;
			if (f->have == f->want)
				k = take_piece(f, err);
		}
		at += step;
		size -= step;
	}
	return k;
}

/* Fetches path itself: its content, or where it points. */
static int fetch(struct fcvm_node *n, struct file_sink *f, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_process_free) struct fcvm_process *p = NULL;
	struct fcvm_collector text;
	struct fcvm_exit exit;
	int k = fcvm_node_get(n, f->path, until, &p, err);

	if (k < 0)
		return k;
	fcvm_collector_init(&text, TEXT_MAX);
	expect(f, READ_ENTRY, sizeof(struct fcvm_tree_entry));
	k = fcvm_run(p, NULL, 0, &f->sink, &text.sink, until, &exit, err);
	if (k == 0 && (exit.code || exit.signal)) {
		k = fcvm_run_refused(p, &text, err);
	} else if (k == 0 && f->state != READ_REST) {
		k = fcvm_fail(err, -EPROTO, "%s: %s: the stream ended too early", n->name, p->what);
	}
	fcvm_buf_done(&text.buf);
	return k;
}

/* Where a symlink at path leads. */
static char *follow(const char *path, const char *target)
{
	const char *slash = strrchr(path, '/');

	if (target[0] == '/' || !slash)
		return strdup(target);
	return fcvm_asprintf("%.*s/%s", (int)(slash - path), path, target);
}

int fcvm_transfer_read_file(struct fcvm_node *n, const char *path, size_t max,
	const struct fcvm_until *until, char **ret, size_t *ret_size, struct fcvm_err *err)
{
	_cleanup_free_ struct file_sink *f = calloc(1, sizeof *f);
	_cleanup_free_ char *real = strdup(path);
	int k = f && real ? 0 : fcvm_fail_errno(err, -ENOMEM, "%s: read %s", n->name, path);

	for (int links = 0; k == 0; links++) {
		_cleanup_free_ char *target = NULL;
		char *next;

		*f = (struct file_sink){.sink.take = take_file, .path = real, .max = max};
		k = fetch(n, f, until, err);
		target = f->target;
		if (k < 0 || !target)
			break;
		next = follow(real, target);
		free(real);
		real = next;
		if (!real || links == LINKS_MAX)
			k = fcvm_fail_errno(
				err, real ? -ELOOP : -ENOMEM, "%s: read %s", n->name, path);
	}
	if (k < 0) {
		if (f)
			free(f->data);
		return k;
	}
	*ret = f->data;
	if (ret_size)
		*ret_size = f->size;
	return 0;
}

/* ---- write_file ---- */

struct __attribute__((packed)) file_head {
	struct fcvm_tree_entry entry;
	uint64_t offset, length;
};

struct __attribute__((packed)) file_tail {
	uint64_t offset, length; /* zero */
	struct fcvm_tree_entry end;
};

int fcvm_transfer_write_file(struct fcvm_node *n, const char *path, const void *data, size_t size,
	mode_t mode, const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_process_free) struct fcvm_process *p = NULL;
	struct file_head head = {
		.entry = {.magic = 0xf5,
			.type = FCVM_TREE_FILE,
			.mode = S_IFREG | (mode & 07777),
			.mtime_ns = fcvm_realtime_ns(),
			.size = size},
		.length = size,
	};
	struct file_tail tail = {.end = {.magic = 0xf5, .type = FCVM_TREE_END}};
	/* An empty extent would be the end of them. */
	struct iovec in[] = {
		{.iov_base = &head, .iov_len = size > 0 ? sizeof head : sizeof head.entry},
		{.iov_base = (void *)data, .iov_len = size},
		{.iov_base = &tail, .iov_len = sizeof tail},
	};
	struct fcvm_collector text;
	struct fcvm_exit exit;
	int k = fcvm_node_put(n, path, NULL, false, until, &p, err);

	if (k < 0)
		return k;
	fcvm_collector_init(&text, TEXT_MAX);
	k = fcvm_run(p, in, 3, NULL, &text.sink, until, &exit, err);
	if (k == 0 && (exit.code || exit.signal))
		k = fcvm_run_refused(p, &text, err);
	fcvm_buf_done(&text.buf);
	return k;
}
