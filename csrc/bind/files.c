/* SPDX-License-Identifier: MIT */
/* fcvm.core: files and sockets of guests. Timeouts are seconds. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "bind/private.h"

enum { MAX_READ = 1 << 24 };

struct file_call {
	struct fcvm_call call;
	struct fcvm_vm *vm;
	const char *from, *to; /* kept */
	const char *data;      /* kept */
	size_t size;
	unsigned mode;
	int64_t timeout_ms;
	char *text; /* owned */
	void *made; /* owned: a listener or a stream */
};

static struct file_call *call_on(
	lua_State *L, const struct fcvm_call_type *type, const struct fcvm_handle_type *handle)
{
	struct file_call *c = fcvm_call_on(L, type, sizeof *c, handle);

	c->vm = c->call.handle->object;
	return c;
}

/* ---- files ---- */

static int copy_in_run(struct fcvm_job *job)
{
	struct file_call *c = (struct file_call *)job;

	return fcvm_vm_copy_in(c->vm, c->from, c->to, c->timeout_ms, &job->err);
}

static int copy_out_run(struct fcvm_job *job)
{
	struct file_call *c = (struct file_call *)job;

	return fcvm_vm_copy_out(c->vm, c->from, c->to, c->timeout_ms, &job->err);
}

static const struct fcvm_call_type copy_in_type = {"copy_in", copy_in_run};
static const struct fcvm_call_type copy_out_type = {"copy_out", copy_out_run};

/* (vm, from, to, timeout) */
static int copy(lua_State *L, const struct fcvm_call_type *type)
{
	const char *from = luaL_checkstring(L, 2);
	const char *to = luaL_checkstring(L, 3);
	struct file_call *c = call_on(L, type, &fcvm_handle_vm);

	c->from = from;
	c->to = to;
	c->timeout_ms = fcvm_args_timeout(L, 4);
	return fcvm_call_run(L, &c->call);
}

static int vm_copy_in(lua_State *L)
{
	return copy(L, &copy_in_type);
}

static int vm_copy_out(lua_State *L)
{
	return copy(L, &copy_out_type);
}

static int read_file_run(struct fcvm_job *job)
{
	struct file_call *c = (struct file_call *)job;

	return fcvm_vm_read_file(
		c->vm, c->from, c->size, c->timeout_ms, &c->text, &c->size, &job->err);
}

static int text_push(lua_State *L, struct fcvm_call *call)
{
	struct file_call *c = (struct file_call *)call;

	lua_pushlstring(L, c->text ? c->text : "", c->size);
	return 1;
}

static void text_drop(struct fcvm_call *call)
{
	struct file_call *c = (struct file_call *)call;

	free(c->text);
	c->text = NULL;
}

static const struct fcvm_call_type read_file_type = {
	"read_file", read_file_run, text_push, text_drop};

/* vm_read_file(vm, path, max, timeout) */
static int vm_read_file(lua_State *L)
{
	const char *path = luaL_checkstring(L, 2);
	lua_Integer max = luaL_checkinteger(L, 3);
	struct file_call *c;

	luaL_argcheck(L, max >= 0, 3, "bytes, not negative");
	c = call_on(L, &read_file_type, &fcvm_handle_vm);
	c->from = path;
	c->size = (size_t)max;
	c->timeout_ms = fcvm_args_timeout(L, 4);
	return fcvm_call_run(L, &c->call);
}

static int write_file_run(struct fcvm_job *job)
{
	struct file_call *c = (struct file_call *)job;

	return fcvm_vm_write_file(
		c->vm, c->to, c->data, c->size, c->mode, c->timeout_ms, &job->err);
}

static const struct fcvm_call_type write_file_type = {"write_file", write_file_run};

/* vm_write_file(vm, path, data, mode, timeout) */
static int vm_write_file(lua_State *L)
{
	const char *path = luaL_checkstring(L, 2);
	size_t size;
	const char *data = luaL_checklstring(L, 3, &size);
	lua_Integer mode = luaL_optinteger(L, 4, 0644);
	struct file_call *c;

	luaL_argcheck(L, mode >= 0 && mode <= 07777, 4, "permission bits");
	c = call_on(L, &write_file_type, &fcvm_handle_vm);
	c->to = path;
	c->data = data;
	c->size = size;
	c->mode = (unsigned)mode;
	c->timeout_ms = fcvm_args_timeout(L, 5);
	return fcvm_call_run(L, &c->call);
}

/* ---- sockets ---- */

static int made_push(lua_State *L, struct fcvm_call *call)
{
	return fcvm_call_push_handle(L, call, &((struct file_call *)call)->made);
}

static void stream_drop(struct fcvm_call *call)
{
	struct file_call *c = (struct file_call *)call;

	if (c->made)
		close(fcvm_stream_fd(c->made));
	c->made = NULL;
}

static void listener_drop(struct fcvm_call *call)
{
	struct file_call *c = (struct file_call *)call;

	fcvm_vm_listener_free(c->made);
	c->made = NULL;
}

static int connect_run(struct fcvm_job *job)
{
	struct file_call *c = (struct file_call *)job;
	int fd = -1;
	int r = fcvm_vm_connect(c->vm, c->to, c->timeout_ms, &fd, &job->err);

	if (r >= 0)
		c->made = fcvm_stream_of(fd);
	return r;
}

static const struct fcvm_call_type connect_type = {"connect", connect_run, made_push, stream_drop};

/* vm_connect(vm, address, timeout): stream */
static int vm_connect(lua_State *L)
{
	const char *address = luaL_checkstring(L, 2);
	struct file_call *c = call_on(L, &connect_type, &fcvm_handle_vm);

	c->to = address;
	c->timeout_ms = fcvm_args_timeout(L, 3);
	fcvm_call_makes(L, &c->call, &fcvm_handle_stream);
	return fcvm_call_run(L, &c->call);
}

static int listen_run(struct fcvm_job *job)
{
	struct file_call *c = (struct file_call *)job;
	struct fcvm_vm_listener *l = NULL;
	int r = fcvm_vm_listen(c->vm, c->to, &l, &job->err);

	c->made = l;
	return r;
}

static const struct fcvm_call_type listen_type = {"listen", listen_run, made_push, listener_drop};

/* vm_listen(vm, address): listener */
static int vm_listen(lua_State *L)
{
	const char *address = luaL_checkstring(L, 2);
	struct file_call *c = call_on(L, &listen_type, &fcvm_handle_vm);

	c->to = address;
	fcvm_call_makes(L, &c->call, &fcvm_handle_listener);
	return fcvm_call_run(L, &c->call);
}

static int accept_run(struct fcvm_job *job)
{
	struct file_call *c = (struct file_call *)job;
	struct fcvm_vm_listener *l = (struct fcvm_vm_listener *)c->data;
	int fd = -1;
	int r = fcvm_vm_listener_accept(l, c->timeout_ms, &fd, &job->err);

	if (r >= 0)
		c->made = fcvm_stream_of(fd);
	return r;
}

static const struct fcvm_call_type accept_type = {"accept", accept_run, made_push, stream_drop};

/* listener_accept(listener, timeout): stream */
static int listener_accept(lua_State *L)
{
	struct file_call *c = call_on(L, &accept_type, &fcvm_handle_listener);

	c->data = c->call.handle->object;
	c->timeout_ms = fcvm_args_timeout(L, 2);
	fcvm_call_makes(L, &c->call, &fcvm_handle_stream);
	return fcvm_call_run(L, &c->call);
}

/* ---- streams ---- */

struct stream_call {
	struct fcvm_call call;
	int fd; /* the handle's */
	int64_t timeout_ms;
	const char *data; /* kept */
	char *buffer;     /* owned */
	size_t size;
};

static struct stream_call *call_on_stream(lua_State *L, const struct fcvm_call_type *type)
{
	struct stream_call *c = fcvm_call_on(L, type, sizeof *c, &fcvm_handle_stream);

	c->fd = fcvm_stream_fd(c->call.handle->object);
	return c;
}

static struct fcvm_until until_of(struct stream_call *c)
{
	return fcvm_until_ms(c->timeout_ms, c->call.job.cancel_fd);
}

static int recv_run(struct fcvm_job *job)
{
	struct stream_call *c = (struct stream_call *)job;
	struct fcvm_until until = until_of(c);
	struct pollfd p = {.fd = c->fd, .events = POLLIN};
	ssize_t n;
	int r;

	for (;;) {
		n = read(c->fd, c->buffer, c->size);
		if (n >= 0)
			return (int)n;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return fcvm_fail_errno(&job->err, -errno, "read from a stream");
		r = fcvm_until_poll(&until, &p, 1);
		if (r < 0)
			return fcvm_fail_errno(&job->err, r, "read from a stream");
	}
}

static int recv_push(lua_State *L, struct fcvm_call *call)
{
	lua_pushlstring(L, ((struct stream_call *)call)->buffer, (size_t)call->job.result);
	return 1;
}

static void recv_drop(struct fcvm_call *call)
{
	struct stream_call *c = (struct stream_call *)call;

	free(c->buffer);
	c->buffer = NULL;
}

static const struct fcvm_call_type recv_type = {"read", recv_run, recv_push, recv_drop};

/* stream_read(stream, size, timeout): "" at the end */
static int stream_read(lua_State *L)
{
	lua_Integer size = luaL_checkinteger(L, 2);
	struct stream_call *c;

	luaL_argcheck(L, size > 0 && size <= MAX_READ, 2, "from 1 to 16 MiB");
	c = call_on_stream(L, &recv_type);
	c->size = (size_t)size;
	c->timeout_ms = fcvm_args_timeout(L, 3);
	c->buffer = malloc(c->size);
	if (!c->buffer)
		return luaL_error(L, "not enough memory");
	return fcvm_call_run(L, &c->call);
}

static int send_run(struct fcvm_job *job)
{
	struct stream_call *c = (struct stream_call *)job;
	struct fcvm_until until = until_of(c);
	int r = fcvm_fd_send_until(c->fd, c->data, c->size, &until);

	return r < 0 ? fcvm_fail_errno(&job->err, r, "write to a stream") : 0;
}

static const struct fcvm_call_type send_type = {"write", send_run};

/* stream_write(stream, data, timeout): all of it */
static int stream_write(lua_State *L)
{
	size_t size;
	const char *data = luaL_checklstring(L, 2, &size);
	struct stream_call *c = call_on_stream(L, &send_type);

	c->data = data;
	c->size = size;
	c->timeout_ms = fcvm_args_timeout(L, 3);
	return fcvm_call_run(L, &c->call);
}

/* stream_shutdown(stream): no more is written */
static int stream_shutdown(lua_State *L)
{
	int fd = fcvm_stream_fd(fcvm_handle_check(L, 1, &fcvm_handle_stream)->object);
	struct fcvm_err err = FCVM_ERR_INIT;
	int r;

	if (shutdown(fd, SHUT_WR) < 0) {
		r = fcvm_fail_errno(&err, -errno, "shut a stream down");
		return fcvm_error_push(L, "shutdown", r, &err);
	}
	lua_pushboolean(L, true);
	return 1;
}

static int stream_get_fd(lua_State *L)
{
	lua_pushinteger(L, fcvm_stream_fd(fcvm_handle_check(L, 1, &fcvm_handle_stream)->object));
	return 1;
}

/* stream_pair(): two streams, each the other's peer. */
static int stream_pair(lua_State *L)
{
	struct fcvm_handle *a = fcvm_handle_new(L, &fcvm_handle_stream);
	struct fcvm_handle *b = fcvm_handle_new(L, &fcvm_handle_stream);
	struct fcvm_err err = FCVM_ERR_INIT;
	int fds[2];
	int r = fcvm_fd_pair(fds);

	if (r < 0) {
		fcvm_fail_errno(&err, r, "make a pair of sockets");
		return fcvm_error_push(L, "pair", r, &err);
	}
	fcvm_fd_nonblock(fds[0], true);
	fcvm_fd_nonblock(fds[1], true);
	a->object = fcvm_stream_of(fds[0]);
	b->object = fcvm_stream_of(fds[1]);
	return 2;
}

static const luaL_Reg functions[] = {
	{"vm_copy_in", vm_copy_in},
	{"vm_copy_out", vm_copy_out},
	{"vm_read_file", vm_read_file},
	{"vm_write_file", vm_write_file},
	{"vm_connect", vm_connect},
	{"vm_listen", vm_listen},
	{"listener_accept", listener_accept},
	{"stream_read", stream_read},
	{"stream_write", stream_write},
	{"stream_shutdown", stream_shutdown},
	{"stream_fd", stream_get_fd},
	{"stream_pair", stream_pair},
	{NULL, NULL},
};

void fcvm_bind_open_files(lua_State *L)
{
	luaL_setfuncs(L, functions, 0);
}
