/* SPDX-License-Identifier: MIT */
/* fcvm.core: programs in guests. Timeouts are seconds. */
#include <stdlib.h>
#include <string.h>

#include "bind/private.h"

enum { MAX_READ = 1 << 24 };

struct run_call {
	struct fcvm_call call;
	struct fcvm_vm *vm;
	const char *const *argv;
	struct fcvm_run_options options;
	struct fcvm_exec_result result; /* owned */
	void *program;                  /* owned */
};

struct program_call {
	struct fcvm_call call;
	struct fcvm_program *program;
	int64_t timeout_ms;
	unsigned stream;
	const char *data; /* kept */
	char *buffer;     /* owned */
	size_t size;
	int status, signal;
};

/* ---- run ---- */

/* Arguments: vm, argv, options. */
static struct run_call *run_new(lua_State *L, const struct fcvm_call_type *type)
{
	struct run_call *c;

	luaL_checktype(L, 2, LUA_TTABLE);
	luaL_checktype(L, 3, LUA_TTABLE);
	c = fcvm_call_on(L, type, sizeof *c, &fcvm_handle_vm);
	c->vm = c->call.handle->object;
	c->argv = fcvm_args_list(L, 2, &c->call);
	c->options = (struct fcvm_run_options)FCVM_RUN_OPTIONS_INIT;
	c->options.env = fcvm_args_strings(L, 3, "env", &c->call);
	c->options.cwd = fcvm_args_string(L, 3, "cwd", &c->call);
	c->options.user = fcvm_args_string(L, 3, "user", &c->call);
	c->options.clear_env = fcvm_args_boolean(L, 3, "clear_env");
	c->options.merge_stderr = fcvm_args_boolean(L, 3, "merge_stderr");
	return c;
}

static int exec_run(struct fcvm_job *job)
{
	struct run_call *c = (struct run_call *)job;

	return fcvm_vm_exec(c->vm, c->argv, &c->options, &c->result, &job->err);
}

static int exec_push(lua_State *L, struct fcvm_call *call)
{
	const struct fcvm_exec_result *r = &((struct run_call *)call)->result;

	lua_createtable(L, 0, 5);
	lua_pushinteger(L, r->status);
	lua_setfield(L, -2, "status");
	if (r->signal) {
		lua_pushinteger(L, r->signal);
		lua_setfield(L, -2, "signal");
	}
	lua_pushlstring(L, r->stdout_data ? r->stdout_data : "", r->stdout_size);
	lua_setfield(L, -2, "stdout");
	lua_pushlstring(L, r->stderr_data ? r->stderr_data : "", r->stderr_size);
	lua_setfield(L, -2, "stderr");
	if (r->truncated) {
		lua_pushboolean(L, true);
		lua_setfield(L, -2, "truncated");
	}
	return 1;
}

static void exec_drop(struct fcvm_call *call)
{
	struct run_call *c = (struct run_call *)call;

	fcvm_exec_result_done(&c->result);
	c->result = (struct fcvm_exec_result)FCVM_EXEC_RESULT_INIT;
}

static const struct fcvm_call_type exec_type = {"exec", exec_run, exec_push, exec_drop};

/* vm_exec(vm, argv, {env, cwd, user, clear_env, merge_stderr, input, limit, timeout}) */
static int vm_exec(lua_State *L)
{
	struct run_call *c = run_new(L, &exec_type);
	const char *input;
	size_t size = 0;
	int64_t timeout;

	if (lua_getfield(L, 3, "input") != LUA_TNIL) {
		input = luaL_checklstring(L, -1, &size);
		c->options.input = input;
		c->options.input_size = size;
		fcvm_call_keep(L, &c->call);
	} else {
		lua_pop(L, 1);
	}
	c->options.limit = (size_t)fcvm_args_integer(L, 3, "limit", 0);
	lua_getfield(L, 3, "timeout");
	timeout = fcvm_args_timeout(L, lua_gettop(L));
	lua_pop(L, 1);
	/* the default is for ever, and a field of the options has no other way to say so */
	c->options.timeout_ms = timeout == FCVM_DEFAULT_TIMEOUT ? FCVM_NO_TIMEOUT : timeout;
	return fcvm_call_run(L, &c->call);
}

static int spawn_run(struct fcvm_job *job)
{
	struct run_call *c = (struct run_call *)job;
	struct fcvm_program *p = NULL;
	int r = fcvm_vm_spawn(c->vm, c->argv, &c->options, &p, &job->err);

	c->program = p;
	return r;
}

static int spawn_push(lua_State *L, struct fcvm_call *call)
{
	return fcvm_call_push_handle(L, call, &((struct run_call *)call)->program);
}

static void spawn_drop(struct fcvm_call *call)
{
	struct run_call *c = (struct run_call *)call;

	fcvm_program_free(c->program);
	c->program = NULL;
}

static const struct fcvm_call_type spawn_type = {"spawn", spawn_run, spawn_push, spawn_drop};

/* vm_spawn(vm, argv, {env, cwd, user, clear_env, merge_stderr, null_stdin, detach, tty, rows,
 * columns}) */
static int vm_spawn(lua_State *L)
{
	struct run_call *c = run_new(L, &spawn_type);
	struct fcvm_run_options *o = &c->options;

	o->null_stdin = fcvm_args_boolean(L, 3, "null_stdin");
	o->detach = fcvm_args_boolean(L, 3, "detach");
	o->tty = fcvm_args_boolean(L, 3, "tty");
	o->rows = (unsigned)fcvm_args_integer(L, 3, "rows", o->rows);
	o->columns = (unsigned)fcvm_args_integer(L, 3, "columns", o->columns);
	fcvm_call_makes(L, &c->call, &fcvm_handle_program);
	return fcvm_call_run(L, &c->call);
}

/* ---- talk to it ---- */

static struct program_call *call_on_program(lua_State *L, const struct fcvm_call_type *type)
{
	struct program_call *c = fcvm_call_on(L, type, sizeof *c, &fcvm_handle_program);

	c->program = c->call.handle->object;
	return c;
}

static struct fcvm_program *check_program(lua_State *L)
{
	return fcvm_handle_check(L, 1, &fcvm_handle_program)->object;
}

static int write_run(struct fcvm_job *job)
{
	struct program_call *c = (struct program_call *)job;

	return fcvm_program_write(c->program, c->data, c->size, c->timeout_ms, &job->err);
}

static const struct fcvm_call_type write_type = {"write", write_run};

/* program_write(program, data, timeout) */
static int program_write(lua_State *L)
{
	size_t size;
	const char *data = luaL_checklstring(L, 2, &size);
	struct program_call *c = call_on_program(L, &write_type);

	c->data = data;
	c->size = size;
	c->timeout_ms = fcvm_args_timeout(L, 3);
	return fcvm_call_run(L, &c->call);
}

static int read_run(struct fcvm_job *job)
{
	struct program_call *c = (struct program_call *)job;

	return (int)fcvm_program_read(
		c->program, c->stream, c->buffer, c->size, c->timeout_ms, &job->err);
}

static int read_push(lua_State *L, struct fcvm_call *call)
{
	lua_pushlstring(L, ((struct program_call *)call)->buffer, (size_t)call->job.result);
	return 1;
}

static void read_drop(struct fcvm_call *call)
{
	struct program_call *c = (struct program_call *)call;

	free(c->buffer);
	c->buffer = NULL;
}

static const struct fcvm_call_type read_type = {"read", read_run, read_push, read_drop};

/* program_read(program, stream, size, timeout): "" at the end */
static int program_read(lua_State *L)
{
	lua_Integer stream = luaL_checkinteger(L, 2);
	lua_Integer size = luaL_checkinteger(L, 3);
	struct program_call *c;

	luaL_argcheck(L, stream == 1 || stream == 2, 2, "1 or 2");
	luaL_argcheck(L, size > 0 && size <= MAX_READ, 3, "from 1 to 16 MiB");
	c = call_on_program(L, &read_type);
	c->stream = (unsigned)stream;
	c->size = (size_t)size;
	c->timeout_ms = fcvm_args_timeout(L, 4);
	c->buffer = malloc(c->size);
	if (!c->buffer)
		return luaL_error(L, "not enough memory");
	return fcvm_call_run(L, &c->call);
}

static int wait_run(struct fcvm_job *job)
{
	struct program_call *c = (struct program_call *)job;

	return fcvm_program_wait(c->program, c->timeout_ms, &c->status, &c->signal, &job->err);
}

static int wait_push(lua_State *L, struct fcvm_call *call)
{
	struct program_call *c = (struct program_call *)call;

	lua_createtable(L, 0, 2);
	lua_pushinteger(L, c->status);
	lua_setfield(L, -2, "status");
	if (c->signal) {
		lua_pushinteger(L, c->signal);
		lua_setfield(L, -2, "signal");
	}
	return 1;
}

static const struct fcvm_call_type wait_type = {"wait", wait_run, wait_push};

/* program_wait(program, timeout): {status, signal} */
static int program_wait(lua_State *L)
{
	struct program_call *c = call_on_program(L, &wait_type);

	c->timeout_ms = fcvm_args_timeout(L, 2);
	return fcvm_call_run(L, &c->call);
}

static int signal_run(struct fcvm_job *job)
{
	struct program_call *c = (struct program_call *)job;

	return fcvm_program_signal(c->program, c->signal, &job->err);
}

static const struct fcvm_call_type signal_type = {"signal", signal_run};

/* program_signal(program, number) */
static int program_signal(lua_State *L)
{
	lua_Integer n = luaL_checkinteger(L, 2);
	struct program_call *c;

	luaL_argcheck(L, n >= 0 && n <= 64, 2, "a signal's number");
	c = call_on_program(L, &signal_type);
	c->signal = (int)n;
	return fcvm_call_run(L, &c->call);
}

static int resize_run(struct fcvm_job *job)
{
	struct program_call *c = (struct program_call *)job;

	return fcvm_program_resize(c->program, c->stream, (unsigned)c->size, &job->err);
}

static const struct fcvm_call_type resize_type = {"resize", resize_run};

/* program_resize(program, rows, columns) */
static int program_resize(lua_State *L)
{
	lua_Integer rows = luaL_checkinteger(L, 2);
	lua_Integer columns = luaL_checkinteger(L, 3);
	struct program_call *c;

	luaL_argcheck(L, rows > 0 && rows < 1 << 16, 2, "from 1 to 65535");
	luaL_argcheck(L, columns > 0 && columns < 1 << 16, 3, "from 1 to 65535");
	c = call_on_program(L, &resize_type);
	c->stream = (unsigned)rows;
	c->size = (size_t)columns;
	return fcvm_call_run(L, &c->call);
}

/* program_close_fd(program, 0 .. 2) */
static int program_close_fd(lua_State *L)
{
	struct fcvm_program *p = check_program(L);
	lua_Integer i = luaL_checkinteger(L, 2);

	luaL_argcheck(L, i >= 0 && i <= 2, 2, "0, 1 or 2");
	fcvm_program_close_fd(p, (unsigned)i);
	lua_pushboolean(L, true);
	return 1;
}

/* program_fd(program, 0 .. 2): -1: none. program_fd(program): of its exit */
static int program_fd(lua_State *L)
{
	struct fcvm_program *p = check_program(L);
	lua_Integer i = luaL_optinteger(L, 2, 3);

	luaL_argcheck(L, i >= 0 && i <= 3, 2, "0, 1 or 2");
	lua_pushinteger(L, i == 3 ? fcvm_program_exit_fd(p) : fcvm_program_fd(p, (unsigned)i));
	return 1;
}

static int program_pid(lua_State *L)
{
	lua_pushinteger(L, fcvm_program_pid(check_program(L)));
	return 1;
}

static const luaL_Reg functions[] = {
	{"vm_exec", vm_exec},
	{"vm_spawn", vm_spawn},
	{"program_write", program_write},
	{"program_read", program_read},
	{"program_wait", program_wait},
	{"program_signal", program_signal},
	{"program_resize", program_resize},
	{"program_close_fd", program_close_fd},
	{"program_fd", program_fd},
	{"program_pid", program_pid},
	{NULL, NULL},
};

void fcvm_bind_open_program(lua_State *L)
{
	luaL_setfuncs(L, functions, 0);
}
