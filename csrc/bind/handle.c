/* SPDX-License-Identifier: MIT */
/*
 * Handles: one userdata for each object of fcvm.h.
 *
 * close, __close and __gc are one idempotent function. Closing while other tasks have calls running
 * on the object cancels those calls (they fail with ECANCELED), waits for them, and frees the
 * object. In a task this is itself a call, so that the task yields while a VM ends; elsewhere, and
 * in a finalizer, it happens on the spot.
 *
 * lua_close() finalizes one object after the other, the youngest first. So that VMs do not end one
 * after the other as well, there is a herald: an object that only the registry holds, made anew
 * with each VM so as to be younger, whose finalizer hurries all of them.
 */
#include <unistd.h>

#include "bind/private.h"

/* Another process's VM is only let go of. */
static void vm_hurry(void *object)
{
	struct fcvm_vm_info info = {.pid = 0};

	fcvm_vm_get_info(object, &info);
	if (!info.attached)
		fcvm_vm_kill(object, NULL);
}

static void vm_release(void *object)
{
	fcvm_vm_free(object);
}

static void program_release(void *object)
{
	fcvm_program_free(object);
}

static void snapshot_release(void *object)
{
	fcvm_snapshot_free(object);
}

static void listener_release(void *object)
{
	fcvm_vm_listener_free(object);
}

static void stream_release(void *object)
{
	close(fcvm_stream_fd(object));
}

const struct fcvm_handle_type fcvm_handle_vm = {"vm", "fcvm.vm", vm_hurry, vm_release};
const struct fcvm_handle_type fcvm_handle_program = {
	"program", "fcvm.program", NULL, program_release};
const struct fcvm_handle_type fcvm_handle_snapshot = {
	"snapshot", "fcvm.snapshot", NULL, snapshot_release};
const struct fcvm_handle_type fcvm_handle_listener = {
	"listener", "fcvm.listener", NULL, listener_release};
const struct fcvm_handle_type fcvm_handle_stream = {"stream", "fcvm.stream", NULL, stream_release};

static const struct fcvm_handle_type *const types[] = {
	&fcvm_handle_vm,
	&fcvm_handle_program,
	&fcvm_handle_snapshot,
	&fcvm_handle_listener,
	&fcvm_handle_stream,
};
enum { NTYPES = sizeof types / sizeof types[0] };

static const char meta_herald[] = "fcvm.herald";

/* Addresses are registry keys: a table with the handles to be hurried as weak keys; the herald. */
static const char key_hurried, key_herald;

static int herald_gc(lua_State *L)
{
	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_herald);
	/* there is a younger one: this is no more than garbage */
	if (!lua_rawequal(L, 1, -1))
		return 0;
	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_hurried);
	for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
		struct fcvm_handle *h = lua_touserdata(L, -2);

		if (h->object)
			h->type->hurry(h->object);
	}
	return 0;
}

/* The handle is on top. */
static void announce(lua_State *L)
{
	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_hurried);
	lua_pushvalue(L, -2);
	lua_pushboolean(L, true);
	lua_rawset(L, -3);
	lua_newuserdatauv(L, 0, 0);
	luaL_setmetatable(L, meta_herald);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &key_herald);
	lua_pop(L, 1);
}

struct fcvm_handle *fcvm_handle_new(lua_State *L, const struct fcvm_handle_type *type)
{
	struct fcvm_handle *h = lua_newuserdatauv(L, sizeof *h, 0);

	*h = (struct fcvm_handle){.type = type};
	luaL_setmetatable(L, type->meta);
	if (type->hurry)
		announce(L);
	return h;
}

struct fcvm_handle *fcvm_handle_check(lua_State *L, int arg, const struct fcvm_handle_type *type)
{
	struct fcvm_handle *h = luaL_checkudata(L, arg, type->meta);

	if (!h->object)
		luaL_error(L, "the %s is closed", type->name);
	return h;
}

/* ---- closing ---- */

struct close_call {
	struct fcvm_call call;
	const struct fcvm_handle_type *type;
	const void *subject; /* the handle whose calls are to end first */
	void *object;        /* owned; NULL when released */
};

static void close_object(
	struct fcvm_bind *b, const struct fcvm_handle_type *type, const void *subject, void *object)
{
	if (type->hurry)
		type->hurry(object);
	if (b)
		fcvm_jobs_end_calls_on(&b->jobs, subject);
	type->release(object);
}

static int close_run(struct fcvm_job *job)
{
	struct close_call *c = (struct close_call *)job;

	close_object(c->call.bind, c->type, c->subject, c->object);
	c->object = NULL;
	return 0;
}

static void close_drop(struct fcvm_call *call)
{
	struct close_call *c = (struct close_call *)call;

	if (c->object)
		close_run(&call->job);
}

static const struct fcvm_call_type close_type = {
	.op = "close",
	.run = close_run,
	.drop = close_drop,
	.must_finish = true,
};

static struct fcvm_handle *any_handle(lua_State *L, int arg)
{
	for (int i = 0; i < NTYPES; i++) {
		struct fcvm_handle *h = luaL_testudata(L, arg, types[i]->meta);

		if (h)
			return h;
	}
	return NULL;
}

/* close(handle); also __close(handle, error). */
static int handle_close(lua_State *L)
{
	struct fcvm_handle *h = any_handle(L, 1);
	struct close_call *c;

	luaL_argexpected(L, h, 1, "handle");
	if (!h->object)
		return 0;
	lua_settop(L, 1);
	c = fcvm_call_new(L, &close_type, sizeof *c);
	c->type = h->type;
	c->subject = h;
	c->object = h->object;
	h->object = NULL;
	/* now, not when a worker comes round to it: all of them may be busy with these very calls
	 */
	if (c->call.bind)
		fcvm_jobs_cancel_on(&c->call.bind->jobs, h);
	return fcvm_call_run(L, &c->call);
}

/* __gc: neither allocates nor yields, both of which a finalizer cannot rely on. */
static int handle_gc(lua_State *L)
{
	struct fcvm_handle *h = lua_touserdata(L, 1);
	void *object = h->object;

	h->object = NULL;
	if (object)
		close_object(fcvm_bind_of(L), h->type, h, object);
	return 0;
}

static int handle_is_open(lua_State *L)
{
	struct fcvm_handle *h = any_handle(L, 1);

	lua_pushboolean(L, h && h->object);
	return 1;
}

/* "vm", "snapshot", ...; nil for anything else. */
static int handle_kind(lua_State *L)
{
	struct fcvm_handle *h = any_handle(L, 1);

	if (h)
		lua_pushstring(L, h->type->name);
	else
		lua_pushnil(L);
	return 1;
}

static int handle_tostring(lua_State *L)
{
	struct fcvm_handle *h = any_handle(L, 1);

	luaL_argexpected(L, h, 1, "handle");
	lua_pushfstring(L, h->object ? "%s: %p" : "%s (closed)", h->type->name, (void *)h);
	return 1;
}

static const luaL_Reg meta_functions[] = {
	{"__gc", handle_gc},
	{"__close", handle_close},
	{"__tostring", handle_tostring},
	{NULL, NULL},
};

static const luaL_Reg functions[] = {
	{"close", handle_close},
	{"is_open", handle_is_open},
	{"kind", handle_kind},
	{NULL, NULL},
};

void fcvm_handle_open_lib(lua_State *L)
{
	/* metatables, for lua/fcvm to add methods to: core.meta.vm */
	lua_createtable(L, 0, NTYPES);
	for (int i = 0; i < NTYPES; i++) {
		luaL_newmetatable(L, types[i]->meta);
		luaL_setfuncs(L, meta_functions, 0);
		lua_setfield(L, -2, types[i]->name);
	}
	lua_setfield(L, -2, "meta");
	luaL_setfuncs(L, functions, 0);
	luaL_newmetatable(L, meta_herald);
	lua_pushcfunction(L, herald_gc);
	lua_setfield(L, -2, "__gc");
	lua_pop(L, 1);
	lua_newtable(L);
	lua_createtable(L, 0, 1);
	lua_pushliteral(L, "k");
	lua_setfield(L, -2, "__mode");
	lua_setmetatable(L, -2);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &key_hurried);
}
