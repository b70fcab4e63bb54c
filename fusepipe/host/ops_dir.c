/* SPDX-License-Identifier: MIT */
/*
 * Reading folders. Offsets are the host's own (d_off), so that a folder can be read on at any of them, by any handle;
 * entries are made in the stream's buffer.
 */
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/cleanup.h"
#include "fusepipe/abi.h"
#include "fusepipe/host/server.h"

struct linux_dirent64 {
	uint64_t d_ino;
	int64_t d_off;
	uint16_t d_reclen;
	uint8_t d_type;
	char d_name[];
};

/* What of the host's entries fits into `size` bytes of the guest's. */
struct page {
	fuse_req_t req;
	struct node *folder;
	char *to;
	size_t size, used;
	bool plus;
};

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct server *s = server_of(req);
	struct node *n = node_get(s, ino);
	int64_t id;
	int fd;

	if (data_unopened(s)) {
		fuse_reply_err(req, ENOSYS);
		return;
	}
	fd = !n ? -ESTALE : n->type != S_IFDIR ? -ENOTDIR : node_reopen(s, n, O_RDONLY | O_DIRECTORY);
	id = fd < 0 ? fd : handle_new(s, fd, node_index(ino), true);
	if (id < 0) {
		fuse_reply_err(req, (int)-id);
		return;
	}
	fi->fh = (uint64_t)id;
	fuse_reply_open(req, fi);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct server *s = server_of(req);

	if (data_unopened(s)) {
		fuse_reply_err(req, 0);
	} else if (handle_get(s, fi->fh, true)) {
		handle_release(s, fi->fh);
		fuse_reply_err(req, 0);
	} else {
		fuse_reply_err(req, EBADF);
	}
}

/* 1: added, 0: no room. An entry that cannot be looked up (gone since) is a name without a node. */
static int add(struct page *p, const struct linux_dirent64 *d)
{
	struct server *s = server_of(p->req);
	struct fuse_entry_param e;
	size_t need, room = p->size - p->used;
	bool dots = !strcmp(d->d_name, ".") || !strcmp(d->d_name, "..");

	if (p->plus)
		need = fuse_add_direntry_plus(p->req, NULL, 0, d->d_name, NULL, 0);
	else
		need = fuse_add_direntry(p->req, NULL, 0, d->d_name, NULL, 0);
	if (need > room)
		return 0;
	if (!p->plus || dots || entry_by_name(s, p->folder, d->d_name, &e)) {
		e = (struct fuse_entry_param){.attr = {.st_ino = d->d_ino, .st_mode = (mode_t)d->d_type << 12}};
		e.attr.st_dev = p->folder->dev;
		stat_to_guest(s, &e.attr);
	}
	if (p->plus)
		fuse_add_direntry_plus(p->req, p->to + p->used, room, d->d_name, &e, d->d_off);
	else
		fuse_add_direntry(p->req, p->to + p->used, room, d->d_name, &e.attr, d->d_off);
	p->used += need;
	return 1;
}

/* -errno only if nothing was added. */
static int fill(struct page *p, struct handle *h, int64_t off)
{
	char raw[32768] __attribute__((aligned(8)));
	/* The guest's entries are the larger ones: more than this would be read for nothing. */
	size_t ask = p->size / (p->plus ? 4 : 1);

	ask = ask < 1024 ? 1024 : ask > sizeof raw ? sizeof raw : ask;
	for (;;) {
		long n;

		if (off != h->at && lseek(h->fd, off, SEEK_SET) < 0)
			return p->used ? 0 : -errno;
		h->at = off;
		n = syscall(SYS_getdents64, h->fd, raw, ask);
		if (n <= 0)
			return n < 0 && !p->used ? -errno : 0;
		for (long at = 0; at < n;) {
			const struct linux_dirent64 *d = (const void *)(raw + at);

			at += d->d_reclen;
			if (!add(p, d)) {
				/* The descriptor stands behind what was not taken. */
				h->at = -1;
				return p->used ? 0 : -EINVAL;
			}
			off = d->d_off;
		}
		h->at = off;
	}
}

static void read_folder(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi, bool plus)
{
	struct server *s = server_of(req);
	struct node *n = node_get(s, ino);
	struct handle *h = data_handle(s, ino, &fi->fh, DATA_FOLDER);
	int why = errno;
	struct page p = {.req = req, .folder = n, .to = stream_payload(s->current), .plus = plus};
	int r;

	if (!n || !h || h->node != node_index(ino)) {
		fuse_reply_err(req, !n ? ESTALE : h ? EBADF : why);
		return;
	}
	p.size = size > FCVM_FUSE_MAX_DATA ? FCVM_FUSE_MAX_DATA : size;
	r = fill(&p, h, off);
	if (r)
		fuse_reply_err(req, -r);
	else
		fuse_reply_buf(req, p.to, p.used);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	read_folder(req, ino, size, off, fi, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	read_folder(req, ino, size, off, fi, true);
}

static void sync_folder(struct job *j)
{
	j->result = fsync(j->fd) ? -errno : 0;
}

static void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct server *s = server_of(req);
	struct job *j;

	if (!data_handle(s, ino, &fi->fh, DATA_FOLDER)) {
		fuse_reply_err(req, errno);
		return;
	}
	j = job_new(s, req, fi->fh, 0);
	if (!j) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	j->run = sync_folder;
	job_start(s, j);
}

void ops_folders(struct fuse_lowlevel_ops *ops)
{
	ops->opendir = op_opendir;
	ops->releasedir = op_releasedir;
	ops->readdir = op_readdir;
	ops->readdirplus = op_readdirplus;
	ops->fsyncdir = op_fsyncdir;
}
