/* SPDX-License-Identifier: MIT */
/*
 * The one place that talks to libfuse. Messages go in through fuse_session_process_buf(), replies come out through
 * the custom io's writev and are put in the current stream's buffer.
 *
 * libfuse 3.14 speaks no SYNCFS, TMPFILE, STATX, COPY_FILE_RANGE_64 and no extended SETXATTR: those are served here
 * from the message itself. Nor does it negotiate all that is wanted: its reply to INIT is completed on the way out.
 */
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include "base/fail.h"
#include "base/fd.h"
#include "fusepipe/abi.h"
#include "fusepipe/host/server.h"
#include "fusepipe/validate.h"

enum {
	/* Requests without a caller that waits (read-ahead, RELEASE): the kernel's 12 would throttle. */
	MAX_BACKGROUND = 512,
};

struct server *server_of(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	/* What libfuse has to believe in; the reply's flags are policy_init_flags()'. */
	conn->want = conn->capable & (FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS | FUSE_CAP_ASYNC_READ |
		FUSE_CAP_DONT_MASK | FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO |
		FUSE_CAP_IOCTL_DIR);
	conn->max_write = FCVM_FUSE_MAX_DATA;
	conn->max_background = MAX_BACKGROUND;
	conn->congestion_threshold = MAX_BACKGROUND * 3 / 4;
	conn->time_gran = 1;
}

static void complete_init(struct server *s, struct fuse_init_out *out)
{
	out->flags = (uint32_t)s->init_flags;
	out->flags2 = (uint32_t)(s->init_flags >> 32);
	out->max_pages = FCVM_FUSE_MAX_DATA / 4096;
}

static ssize_t io_writev(int fd, struct iovec *iov, int count, void *userdata)
{
	struct server *s = userdata;
	struct fuse_out_header *h = iov[0].iov_base;
	struct fuse_init_out init;
	ssize_t size = h->len;

	if (!s->current)
		return size;
	if (s->init_unique && h->unique == s->init_unique && count == 2 && iov[1].iov_len == sizeof init) {
		memcpy(&init, iov[1].iov_base, sizeof init);
		complete_init(s, &init);
		iov[1].iov_base = &init;
		s->init_unique = 0;
	}
	stream_reply(s->current, iov, count);
	return size;
}

static ssize_t io_read(int fd, void *buf, size_t size, void *userdata)
{
	errno = EAGAIN;
	return -1;
}

static void quiet(enum fuse_log_level level, const char *fmt, va_list ap)
{
}

int session_open(struct server *s, struct fcvm_err *err)
{
	static const struct fuse_custom_io io = {.writev = io_writev, .read = io_read};
	char *argv[] = {"fusepipe", NULL};
	struct fuse_args args = FUSE_ARGS_INIT(1, argv);
	struct fuse_lowlevel_ops ops = {.init = op_init};
	int fd, r;

	ops_names(&ops);
	ops_attributes(&ops);
	ops_files(&ops);
	ops_folders(&ops);
	ops_locks(&ops);
	fuse_set_log_func(quiet);
	s->session = fuse_session_new(&args, &ops, sizeof ops, s);
	fuse_opt_free_args(&args);
	if (!s->session)
		return fcvm_fail(err, -ENOMEM, "volume %s: libfuse makes no session", s->volume.folder);
	/* libfuse wants a descriptor to close. */
	fd = fcvm_fd_event();
	r = fuse_session_custom_io(s->session, &io, fd);
	if (r)
		return fcvm_fail_errno(err, r, "volume %s: libfuse session", s->volume.folder);
	return 0;
}

void session_close(struct server *s)
{
	s->current = NULL;
	if (s->session)
		fuse_session_destroy(s->session);
	s->session = NULL;
}

void session_reply(struct server *s, uint64_t unique, int error, const void *body, size_t size)
{
	struct fuse_out_header h = {.len = sizeof h + size, .error = error, .unique = unique};
	struct iovec iov[2] = {{&h, sizeof h}, {(void *)body, size}};

	if (s->current)
		stream_reply(s->current, iov, size ? 2 : 1);
}

static int take_init(struct server *s, const struct fuse_in_header *h)
{
	const struct fuse_init_in *in = (const void *)(h + 1);
	uint64_t offered = in->flags;

	/* An older major version than 7 there is none; a newer one is answered by libfuse with ours. */
	if (in->major == FUSE_KERNEL_VERSION) {
		if (in->minor < FCVM_FUSE_MINOR_MIN || h->len < sizeof *h + sizeof *in)
			return -EPROTO;
		if (offered & FUSE_INIT_EXT)
			offered |= (uint64_t)in->flags2 << 32;
		s->init_flags = policy_init_flags(s, offered);
		if (!s->init_flags)
			return -EPROTO;
	}
	s->init_unique = h->unique;
	return 0;
}

/* On a read-only volume the host's mount says EROFS as well; this is for where there is none of ours. */
static bool modifies(const struct fuse_in_header *h)
{
	switch (h->opcode) {
	case FUSE_SETATTR:
	case FUSE_SYMLINK:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_UNLINK:
	case FUSE_RMDIR:
	case FUSE_RENAME:
	case FUSE_RENAME2:
	case FUSE_LINK:
	case FUSE_WRITE:
	case FUSE_SETXATTR:
	case FUSE_REMOVEXATTR:
	case FUSE_CREATE:
	case FUSE_FALLOCATE:
	case FUSE_COPY_FILE_RANGE:
	case FUSE_COPY_FILE_RANGE_64:
	case FUSE_TMPFILE:
		return true;
	case FUSE_OPEN:
		return ((const struct fuse_open_in *)(h + 1))->flags & (O_ACCMODE | O_TRUNC);
	default:
		return false;
	}
}

static int serve(struct server *s, const struct fuse_in_header *h, size_t size)
{
	struct fuse_buf buf = {.size = size, .mem = (void *)h};
	int r;

	if (s->volume.readonly && modifies(h))
		return -EROFS;
	switch (h->opcode) {
	case FUSE_INIT:
		r = take_init(s, h);
		if (r)
			return r;
		break;
	case FUSE_INTERRUPT:
		lock_interrupt(s, ((const struct fuse_interrupt_in *)(h + 1))->unique);
		return 0;
	case FUSE_NOTIFY_REPLY: /* to a request that is never made */
		return 0;
	case FUSE_SETXATTR:
		op_setxattr_ext(s, h);
		return 0;
	case FUSE_SYNCFS:
		op_syncfs(s, h);
		return 0;
	case FUSE_TMPFILE:
		op_tmpfile(s, h);
		return 0;
	case FUSE_STATX:
		op_statx(s, h);
		return 0;
	case FUSE_COPY_FILE_RANGE_64:
		op_copy_64(s, h);
		return 0;
	default:
		break;
	}
	fuse_session_process_buf(s->session, &buf);
	return 0;
}

int session_take(struct server *s, void *message, size_t size)
{
	const struct fuse_in_header *h = message;
	int r = fcvm_fuse_validate(message, size);

	if (r == -EBADMSG)
		return r;
	s->message = h;
	s->turn++;
	/* Before INIT there is no volume, and after it no second one. */
	if (!r && (h->opcode == FUSE_INIT) == (s->init_flags != 0))
		r = -EIO;
	if (!r)
		r = serve(s, h, size);
	if (r && fcvm_fuse_wants_reply(h))
		session_reply(s, h->unique, r, NULL, 0);
	s->message = NULL;
	return 0;
}
