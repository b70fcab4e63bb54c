/* SPDX-License-Identifier: MIT */
/*
 * What the files of the binding share: handles, calls, errors, arguments. All of it runs on the Lua
 * thread unless said otherwise, and may raise (memory) unless said otherwise.
 *
 * Contract of all functions that Lua sees: misuse raises; failure returns nil and an error table
 * {code, errno, op, msg, detail}. Checks of options, defaults and help for mistakes are lua/fcvm's.
 *
 * Raising jumps past cleanup attributes: whatever a function owns is in a userdata before the next
 * Lua call.
 */
#ifndef FCVM_BIND_PRIVATE_H
#define FCVM_BIND_PRIVATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <lauxlib.h>
#include <lua.h>

#include "base/err.h"
#include "bind/bind.h"
#include "bind/jobs.h"
#include "fcvm.h"

struct fcvm_bind {
	struct fcvm_jobs jobs;
	int interrupt_fd; /* eventfd, readable after an interrupt until somebody raised it */
	lua_State *main;
	lua_State *volatile running; /* the task's coroutine that runs now; NULL: none. Read by a
					signal handler */
	const lua_State *scheduler;  /* the coroutine where task.lua is between two tasks, and an
					interrupt must not strike; NULL: none */
};

/* ---- errors (error.c) ---- */

void fcvm_error_open(lua_State *L);
/* Pushes nil and the error table; returns 2. code: -errno. op: the name of the call, if err has
 * none. */
int fcvm_error_push(lua_State *L, const char *op, int code, const struct fcvm_err *err);
/* Raise the values fcvm.interrupted and fcvm.cancelled. */
int fcvm_error_raise_interrupted(lua_State *L, struct fcvm_bind *b);
int fcvm_error_raise_cancelled(lua_State *L);
/* To the task that is to run: an interrupt that came while the scheduler ran, and is not raised yet. */
void fcvm_error_pass_interrupt(struct fcvm_bind *b);

/* ---- handles (handle.c) ---- */

struct fcvm_handle_type {
	const char *name;              /* as users call it: "snapshot" */
	const char *meta;              /* its metatable's name in the registry */
	void (*hurry)(void *object);   /* before the wait for calls that still run; may be NULL */
	void (*release)(void *object); /* from any thread; may block a little */
};

/* A userdata. Created closed, then opened. */
struct fcvm_handle {
	void *object; /* NULL: closed */
	const struct fcvm_handle_type *type;
};

extern const struct fcvm_handle_type fcvm_handle_vm, fcvm_handle_program, fcvm_handle_snapshot,
	fcvm_handle_listener, fcvm_handle_stream;

/* Pushes a closed handle. */
struct fcvm_handle *fcvm_handle_new(lua_State *L, const struct fcvm_handle_type *type);
/* Raises unless the argument is an open handle of that type. */
struct fcvm_handle *fcvm_handle_check(lua_State *L, int arg, const struct fcvm_handle_type *type);
/* Makes the metatables. Adds close, is_open and kind to the table on top. */
void fcvm_handle_open_lib(lua_State *L);

/* A stream's fd in its object pointer, so that NULL stays "closed". */
static inline void *fcvm_stream_of(int fd)
{
	return (void *)(intptr_t)(fd + 1);
}
static inline int fcvm_stream_fd(const void *object)
{
	return (int)(intptr_t)object - 1;
}

/* ---- calls (call.c) ---- */

struct fcvm_call;

/*
 * A blocking function, written once for both ways to run: inside a task on a worker while the task
 * yields, outside on the calling thread.
 */
struct fcvm_call_type {
	const char *op;
	int (*run)(struct fcvm_job *job);                  /* any thread, no Lua; >= 0 or -errno */
	int (*push)(lua_State *L, struct fcvm_call *call); /* results of a success; NULL: true */
	void (*drop)(struct fcvm_call *call); /* frees what run made and push has not given
						 away; idempotent, no Lua; NULL: nothing */
	bool must_finish;                     /* cannot be cancelled */
};

/* A userdata, the first member of what the function needs beside it. */
struct fcvm_call {
	struct fcvm_job job;
	const struct fcvm_call_type *type;
	struct fcvm_bind *bind;
	struct fcvm_handle *handle; /* what it works on, or NULL */
	int index;                  /* its place on the stack of its C function */
	bool sleeps;                /* a timer, run by nobody */
	bool cancelled;             /* the task is to raise fcvm.cancelled */
	bool submitted;
};

/*
 * Pushes a call of `size` bytes, zeroed but for the head. It keeps all arguments of the C function
 * alive (pointers into them stay valid), but not what their tables hold: see fcvm_call_keep().
 */
void *fcvm_call_new(lua_State *L, const struct fcvm_call_type *type, size_t size);
/* The same, on an open handle in argument 1, that must not be freed while the call runs. */
void *fcvm_call_on(lua_State *L, const struct fcvm_call_type *type, size_t size,
	const struct fcvm_handle_type *handle_type);
/* Pops a value and keeps it alive as long as the call. */
void fcvm_call_keep(lua_State *L, struct fcvm_call *call);
/* Has the call make a handle: created closed now, opened by fcvm_call_push_handle(). */
void fcvm_call_makes(lua_State *L, struct fcvm_call *call, const struct fcvm_handle_type *type);
/* For push: opens the handle with the object that run made, which is taken out of *object. Does not
 * raise. */
int fcvm_call_push_handle(lua_State *L, struct fcvm_call *call, void **object);
/* Runs it: the C function ends with `return fcvm_call_run(L, &c->call)`. */
int fcvm_call_run(lua_State *L, struct fcvm_call *call);
/* Adds what task.lua needs to the table on top. */
void fcvm_call_open_lib(lua_State *L);

/* ---- arguments (args.c) ---- */

/* Seconds to milliseconds; absent: FCVM_DEFAULT_TIMEOUT, math.huge: FCVM_NO_TIMEOUT. */
int64_t fcvm_args_timeout(lua_State *L, int arg);
/* Fields of the table at arg; what they return lives as long as the call. Absent: NULL, 0, false.
 */
const char *fcvm_args_string(lua_State *L, int arg, const char *field, struct fcvm_call *call);
const char *const *fcvm_args_strings(
	lua_State *L, int arg, const char *field, struct fcvm_call *call);
lua_Integer fcvm_args_integer(lua_State *L, int arg, const char *field, lua_Integer otherwise);
bool fcvm_args_boolean(lua_State *L, int arg, const char *field);
/* The list of strings at arg itself, NULL-terminated. */
const char *const *fcvm_args_list(lua_State *L, int arg, struct fcvm_call *call);
/* A field that is a list of volumes' tables (volume.c). */
const struct fcvm_vm_volume *fcvm_args_volumes(lua_State *L, int arg, const char *field, struct fcvm_call *call, size_t *ret_n);

/* ---- the parts of fcvm.core; each adds its functions to the table on top ---- */

void fcvm_bind_open_vm(lua_State *L);
void fcvm_bind_open_program(lua_State *L);
void fcvm_bind_open_files(lua_State *L);
void fcvm_bind_open_snapshot(lua_State *L);
void fcvm_bind_open_store(lua_State *L);
void fcvm_bind_open_volume(lua_State *L);

#endif
