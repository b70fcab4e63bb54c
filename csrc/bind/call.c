/* SPDX-License-Identifier: MIT */
/*
 * Blocking functions, run in one of two ways.
 *
 * Outside a task: on the calling thread, cancelled by the interrupt fd. Inside a task: submitted as
 * a job, and the coroutine yields the call to the scheduler in task.lua, which resumes it when the
 * job is done; the continuation then returns the results. A coroutine is a task's if task.lua has
 * adopted it. Where a task cannot yield (in a metamethod or a sort's comparison) the call just
 * blocks.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/until.h"
#include "bind/private.h"

static const char meta_call[] = "fcvm.call";

/* Addresses are registry keys: the tasks' coroutines; the submitted calls by address; the struct
 * fcvm_bind. */
static const char key_tasks, key_submitted, key_bind;

enum { KEPT = 1, MADE = 2 }; /* user values: table of what must live; the handle it makes */

struct fcvm_bind *fcvm_bind_of(lua_State *L)
{
	struct fcvm_bind *b;

	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_bind);
	b = lua_touserdata(L, -1);
	lua_pop(L, 1);
	return b;
}

/* ---- making a call ---- */

void *fcvm_call_new(lua_State *L, const struct fcvm_call_type *type, size_t size)
{
	int nargs = lua_gettop(L);
	struct fcvm_call *call = lua_newuserdatauv(L, size, 2);

	memset(call, 0, size);
	call->job = (struct fcvm_job)FCVM_JOB_INIT;
	call->job.run = type->run;
	call->job.must_finish = type->must_finish;
	call->type = type;
	call->bind = fcvm_bind_of(L);
	call->index = lua_gettop(L);
	luaL_setmetatable(L, meta_call);
	lua_createtable(L, nargs, 0);
	for (int i = 1; i <= nargs; i++) {
		lua_pushvalue(L, i);
		lua_rawseti(L, -2, i);
	}
	lua_setiuservalue(L, call->index, KEPT);
	return call;
}

void *fcvm_call_on(lua_State *L, const struct fcvm_call_type *type, size_t size,
	const struct fcvm_handle_type *handle_type)
{
	struct fcvm_handle *h = fcvm_handle_check(L, 1, handle_type);
	struct fcvm_call *call = fcvm_call_new(L, type, size);

	call->handle = h;
	call->job.subject = h;
	return call;
}

void fcvm_call_keep(lua_State *L, struct fcvm_call *call)
{
	lua_getiuservalue(L, call->index, KEPT);
	lua_insert(L, -2);
	lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
	lua_pop(L, 1);
}

void fcvm_call_makes(lua_State *L, struct fcvm_call *call, const struct fcvm_handle_type *type)
{
	fcvm_handle_new(L, type);
	lua_setiuservalue(L, call->index, MADE);
}

int fcvm_call_push_handle(lua_State *L, struct fcvm_call *call, void **object)
{
	struct fcvm_handle *h;

	lua_getiuservalue(L, call->index, MADE);
	h = lua_touserdata(L, -1);
	h->object = *object;
	*object = NULL;
	return 1;
}

/* ---- its end ---- */

static void drop(struct fcvm_call *call)
{
	if (call->type->drop)
		call->type->drop(call);
}

/* Submitted calls are kept in a registry table until they are taken, whatever becomes of their
 * coroutine. */
static void unregister(lua_State *L, struct fcvm_call *call)
{
	if (!call->submitted)
		return;
	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_submitted);
	if (lua_istable(L, -1)) {
		lua_pushnil(L);
		lua_rawsetp(L, -2, call);
	}
	lua_pop(L, 1);
	call->submitted = false;
}

static int call_gc(lua_State *L)
{
	struct fcvm_call *call = lua_touserdata(L, 1);

	if (call->bind)
		fcvm_jobs_forget(&call->bind->jobs, &call->job);
	drop(call);
	return 0;
}

static int finish(lua_State *L, struct fcvm_call *call)
{
	int r = call->job.result;
	int n;

	if (call->cancelled) {
		drop(call);
		return fcvm_error_raise_cancelled(L);
	}
	if (call->handle && !call->handle->object && r == -ECANCELED)
		fcvm_fail(&call->job.err, r, "%s: the %s was closed while the call ran",
			call->type->op, call->handle->type->name);
	if (r < 0) {
		drop(call);
		return fcvm_error_push(L, call->type->op, r, &call->job.err);
	}
	if (!call->type->push) {
		lua_pushboolean(L, true);
		n = 1;
	} else {
		n = call->type->push(L, call);
	}
	drop(call);
	return n;
}

/* The continuation of a call that yielded. */
static int resumed(lua_State *L, int status, lua_KContext context)
{
	struct fcvm_call *call = (struct fcvm_call *)context;

	(void)status;
	/* somebody else has resumed the coroutine: the scheduler takes a call before it resumes */
	if (call->submitted)
		return luaL_error(L, "a task was resumed by other than its loop");
	return finish(L, call);
}

static bool interrupted(const struct fcvm_bind *b)
{
	struct pollfd p = {.fd = b->interrupt_fd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

static int sleep_here(struct fcvm_call *call, int cancel_fd)
{
	struct fcvm_until until = {.deadline_ns = call->job.wake_ns, .cancel_fd = cancel_fd};
	struct pollfd none;
	int r = fcvm_until_poll(&until, &none, 0);

	return r == -ETIMEDOUT ? 0 : r;
}

static int run_here(lua_State *L, struct fcvm_call *call)
{
	int fd = call->type->must_finish ? -1 : call->bind->interrupt_fd;

	if (call->sleeps) {
		call->job.result = sleep_here(call, fd);
	} else {
		call->job.cancel_fd = fd;
		fcvm_cancel_by(fd);
		call->job.result = call->job.run(&call->job);
		fcvm_cancel_by(-1);
		call->job.cancel_fd = -1;
	}
	if (call->job.result == -ECANCELED && interrupted(call->bind)) {
		drop(call);
		return fcvm_error_raise_interrupted(L, call->bind);
	}
	return finish(L, call);
}

static bool in_task(lua_State *L)
{
	bool is;

	if (!lua_isyieldable(L))
		return false;
	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_tasks);
	lua_pushthread(L);
	is = lua_rawget(L, -2) != LUA_TNIL;
	lua_pop(L, 2);
	return is;
}

int fcvm_call_run(lua_State *L, struct fcvm_call *call)
{
	int r = 0;

	luaL_checkstack(L, 8, "fcvm call");
	if (!call->bind)
		return luaL_error(L, "fcvm is closed");
	if (!in_task(L))
		return run_here(L, call);
	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_submitted);
	lua_pushvalue(L, call->index);
	lua_rawsetp(L, -2, call);
	lua_pop(L, 1);
	call->submitted = true;
	if (call->sleeps)
		fcvm_jobs_sleep(&call->bind->jobs, &call->job, call->job.wake_ns);
	else
		r = fcvm_jobs_submit(&call->bind->jobs, &call->job);
	if (r < 0) {
		unregister(L, call);
		/* what must finish does so without a worker */
		if (call->type->must_finish)
			return run_here(L, call);
		call->job.result = fcvm_fail_errno(
			&call->job.err, r, "%s: start a worker thread", call->type->op);
		return finish(L, call);
	}
	lua_pushvalue(L, call->index);
	return lua_yieldk(L, 1, (lua_KContext)call, resumed);
}

/* ---- for task.lua ---- */

/* adopt(coroutine): its calls yield from now on. */
static int adopt(lua_State *L)
{
	luaL_checktype(L, 1, LUA_TTHREAD);
	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_tasks);
	lua_pushvalue(L, 1);
	lua_pushboolean(L, true);
	lua_rawset(L, -3);
	return 0;
}

/* running(coroutine or nil): where an interrupt has to strike. */
static int running(lua_State *L)
{
	struct fcvm_bind *b = fcvm_bind_of(L);

	if (b) {
		b->running = lua_tothread(L, 1);
		fcvm_error_pass_interrupt(b);
	}
	return 0;
}

/* scheduling(true): this coroutine does from now on. Returns what is to be given to scheduling() in
 * the end. */
static int scheduling(lua_State *L)
{
	struct fcvm_bind *b = fcvm_bind_of(L);

	lua_pushlightuserdata(L, b ? (void *)b->scheduler : NULL);
	if (b)
		b->scheduler = lua_isboolean(L, 1) ? L : lua_touserdata(L, 1);
	return 1;
}

static int is_call(lua_State *L)
{
	lua_pushboolean(L, luaL_testudata(L, 1, meta_call) != NULL);
	return 1;
}

/* cancel(call): its task is going to raise fcvm.cancelled as soon as the call has ended. False: not
 * out of this one, which must finish, and so must what its caller does after it. */
static int cancel(lua_State *L)
{
	struct fcvm_call *call = luaL_checkudata(L, 1, meta_call);

	call->cancelled = !call->type->must_finish;
	if (call->bind)
		fcvm_jobs_cancel(&call->bind->jobs, &call->job);
	lua_pushboolean(L, call->cancelled);
	return 1;
}

/* take(): a call that is done, or nil. Allocates nothing, so that none is lost. */
static int take(lua_State *L)
{
	struct fcvm_bind *b = fcvm_bind_of(L);
	struct fcvm_job *job = b ? fcvm_jobs_take(&b->jobs) : NULL;

	if (!job)
		return 0;
	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_submitted);
	lua_rawgetp(L, -1, job);
	unregister(L, (struct fcvm_call *)job);
	return 1;
}

static int jobs_fd(lua_State *L)
{
	struct fcvm_bind *b = fcvm_bind_of(L);

	lua_pushinteger(L, b ? b->jobs.fd : -1);
	return 1;
}

static int wake(lua_State *L)
{
	struct fcvm_bind *b = fcvm_bind_of(L);

	if (b)
		fcvm_jobs_wake(&b->jobs);
	return 0;
}

/* wait(seconds or nil): until there may be something to take; false: nothing in that time. */
static int wait_for_jobs(lua_State *L)
{
	int64_t ms = fcvm_args_timeout(L, 1);
	struct fcvm_bind *b = fcvm_bind_of(L);
	struct fcvm_until until;
	struct pollfd p;
	int r;

	if (!b)
		return 0;
	until = fcvm_until_ms(ms, b->interrupt_fd);
	p = (struct pollfd){.fd = b->jobs.fd, .events = POLLIN};
	r = fcvm_until_poll(&until, &p, 1);
	if (r == -ECANCELED)
		return fcvm_error_raise_interrupted(L, b);
	if (r < 0 && r != -ETIMEDOUT)
		return luaL_error(L, "wait for tasks: %s", strerror(-r));
	lua_pushboolean(L, r > 0);
	return 1;
}

static const struct fcvm_call_type sleep_type = {.op = "sleep"};

/* sleep(seconds) */
static int sleep_for(lua_State *L)
{
	lua_Number s = luaL_checknumber(L, 1);
	struct fcvm_call *call;
	int64_t now = fcvm_now_ns();

	luaL_argcheck(L, s >= 0, 1, "seconds, not negative");
	call = fcvm_call_new(L, &sleep_type, sizeof *call);
	call->sleeps = true;
	call->job.wake_ns = s > 3.2e9 ? INT64_MAX : now + (int64_t)(s * 1e9);
	return fcvm_call_run(L, call);
}

static int processors(lua_State *L)
{
	lua_pushinteger(L, sysconf(_SC_NPROCESSORS_ONLN));
	return 1;
}

/* now(): seconds of a clock that only runs forward. */
static int now(lua_State *L)
{
	lua_pushnumber(L, (lua_Number)fcvm_now_ns() / 1e9);
	return 1;
}

static const luaL_Reg functions[] = {
	{"adopt", adopt},
	{"running", running},
	{"scheduling", scheduling},
	{"is_call", is_call},
	{"cancel", cancel},
	{"take", take},
	{"wait", wait_for_jobs},
	{"wake", wake},
	{"fd", jobs_fd},
	{"sleep", sleep_for},
	{"now", now},
	{"processors", processors},
	{NULL, NULL},
};

/* ---- the state's own part ---- */

static int bind_gc(lua_State *L)
{
	struct fcvm_bind *b = lua_touserdata(L, 1);

	/* the last object of ours to go, as it was the first to be made; what comes later finds
	 * nothing */
	lua_pushnil(L);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &key_bind);
	fcvm_jobs_done(&b->jobs);
	b->interrupt_fd = fcvm_close(b->interrupt_fd);
	return 0;
}

static void set_gc(lua_State *L, const char *name, lua_CFunction gc)
{
	luaL_newmetatable(L, name);
	lua_pushcfunction(L, gc);
	lua_setfield(L, -2, "__gc");
	lua_pop(L, 1);
}

static void open_bind(lua_State *L)
{
	struct fcvm_bind *b = lua_newuserdatauv(L, sizeof *b, 0);
	int r;

	memset(b, 0, sizeof *b);
	b->interrupt_fd = -1;
	luaL_setmetatable(L, "fcvm.bind");
	/* nothing between the two collects garbage */
	r = fcvm_jobs_init(&b->jobs);
	b->interrupt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r == 0 && b->interrupt_fd < 0)
		r = -errno;
	if (r < 0)
		luaL_error(L, "fcvm: open an event fd: %s", strerror(-r));
	lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
	b->main = lua_tothread(L, -1);
	lua_pop(L, 1);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &key_bind);
}

void fcvm_call_open_lib(lua_State *L)
{
	set_gc(L, "fcvm.bind", bind_gc);
	set_gc(L, meta_call, call_gc);
	luaL_setfuncs(L, functions, 0);
	/* required a second time, after somebody emptied package.loaded */
	if (fcvm_bind_of(L))
		return;
	lua_newtable(L);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &key_submitted);
	lua_newtable(L);
	lua_createtable(L, 0, 1);
	lua_pushliteral(L, "k");
	lua_setfield(L, -2, "__mode");
	lua_setmetatable(L, -2);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &key_tasks);
	open_bind(L);
}
