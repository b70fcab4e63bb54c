/* SPDX-License-Identifier: MIT */
/* fcvm.core: snapshots and clones. Timeouts are seconds. */
#include "bind/private.h"

struct snapshot_call {
	struct fcvm_call call;
	struct fcvm_vm *vm;
	struct fcvm_snapshot *snapshot;
	struct fcvm_snapshot_config config;
	const char *name; /* kept */
	unsigned count;
	int64_t timeout_ms;
	void *made; /* owned: a snapshot or a VM */
};

static int made_push(lua_State *L, struct fcvm_call *call)
{
	return fcvm_call_push_handle(L, call, &((struct snapshot_call *)call)->made);
}

static void snapshot_drop(struct fcvm_call *call)
{
	struct snapshot_call *c = (struct snapshot_call *)call;

	fcvm_snapshot_free(c->made);
	c->made = NULL;
}

static void clone_drop(struct fcvm_call *call)
{
	struct snapshot_call *c = (struct snapshot_call *)call;

	fcvm_vm_free(c->made);
	c->made = NULL;
}

static int snapshot_run(struct fcvm_job *job)
{
	struct snapshot_call *c = (struct snapshot_call *)job;
	struct fcvm_snapshot *s = NULL;
	int r = fcvm_vm_snapshot(c->vm, &c->config, c->timeout_ms, &s, &job->err);

	c->made = s;
	return r;
}

static const struct fcvm_call_type snapshot_type = {
	"snapshot", snapshot_run, made_push, snapshot_drop};

/* vm_snapshot(vm, {name, stop}, timeout): snapshot */
static int vm_snapshot(lua_State *L)
{
	struct snapshot_call *c;

	luaL_checktype(L, 2, LUA_TTABLE);
	c = fcvm_call_on(L, &snapshot_type, sizeof *c, &fcvm_handle_vm);
	c->vm = c->call.handle->object;
	c->config = (struct fcvm_snapshot_config)FCVM_SNAPSHOT_CONFIG_INIT;
	c->config.name = fcvm_args_string(L, 2, "name", &c->call);
	c->config.stop = fcvm_args_boolean(L, 2, "stop");
	c->timeout_ms = fcvm_args_timeout(L, 3);
	fcvm_call_makes(L, &c->call, &fcvm_handle_snapshot);
	return fcvm_call_run(L, &c->call);
}

static int open_run(struct fcvm_job *job)
{
	struct snapshot_call *c = (struct snapshot_call *)job;
	struct fcvm_snapshot *s = NULL;
	int r = fcvm_snapshot_open(&s, c->name, &job->err);

	c->made = s;
	return r;
}

static const struct fcvm_call_type open_type = {"snapshot", open_run, made_push, snapshot_drop};

/* snapshot_open(name): snapshot */
static int snapshot_open(lua_State *L)
{
	const char *name = luaL_checkstring(L, 1);
	struct snapshot_call *c = fcvm_call_new(L, &open_type, sizeof *c);

	c->name = name;
	fcvm_call_makes(L, &c->call, &fcvm_handle_snapshot);
	return fcvm_call_run(L, &c->call);
}

static struct snapshot_call *call_on_snapshot(lua_State *L, const struct fcvm_call_type *type)
{
	struct snapshot_call *c = fcvm_call_on(L, type, sizeof *c, &fcvm_handle_snapshot);

	c->snapshot = c->call.handle->object;
	return c;
}

static int prepare_run(struct fcvm_job *job)
{
	struct snapshot_call *c = (struct snapshot_call *)job;

	return fcvm_snapshot_prepare(c->snapshot, c->count, c->timeout_ms, &job->err);
}

static const struct fcvm_call_type prepare_type = {"prepare", prepare_run};

/* snapshot_prepare(snapshot, count, timeout) */
static int snapshot_prepare(lua_State *L)
{
	lua_Integer count = luaL_checkinteger(L, 2);
	struct snapshot_call *c;

	luaL_argcheck(L, count >= 0 && count <= 100000, 2, "how many");
	c = call_on_snapshot(L, &prepare_type);
	c->count = (unsigned)count;
	c->timeout_ms = fcvm_args_timeout(L, 3);
	return fcvm_call_run(L, &c->call);
}

static int clone_run(struct fcvm_job *job)
{
	struct snapshot_call *c = (struct snapshot_call *)job;
	struct fcvm_vm *vm = NULL;
	int r = fcvm_snapshot_clone(c->snapshot, c->name, c->timeout_ms, &vm, &job->err);

	c->made = vm;
	return r;
}

static const struct fcvm_call_type clone_type = {"clone", clone_run, made_push, clone_drop};

/* snapshot_clone(snapshot, name or nil, timeout): vm */
static int snapshot_clone(lua_State *L)
{
	const char *name = luaL_optstring(L, 2, NULL);
	struct snapshot_call *c = call_on_snapshot(L, &clone_type);

	c->name = name;
	c->timeout_ms = fcvm_args_timeout(L, 3);
	fcvm_call_makes(L, &c->call, &fcvm_handle_vm);
	return fcvm_call_run(L, &c->call);
}

static void set_string(lua_State *L, const char *field, const char *value)
{
	lua_pushstring(L, value ? value : "");
	lua_setfield(L, -2, field);
}

static void set_number(lua_State *L, const char *field, lua_Number value)
{
	lua_pushnumber(L, value);
	lua_setfield(L, -2, field);
}

/* snapshot_info(snapshot): a table */
static int snapshot_info(lua_State *L)
{
	struct fcvm_handle *h = fcvm_handle_check(L, 1, &fcvm_handle_snapshot);
	struct fcvm_snapshot_info info = {.id = NULL};

	fcvm_snapshot_get_info(h->object, &info);
	lua_createtable(L, 0, 8);
	set_string(L, "id", info.id);
	set_string(L, "name", info.name);
	set_string(L, "dir", info.dir);
	set_number(L, "pause_ms", info.pause_ms);
	set_number(L, "downtime_ms", info.downtime_ms);
	lua_pushinteger(L, (lua_Integer)info.memory);
	lua_setfield(L, -2, "memory");
	lua_pushinteger(L, info.vcpus);
	lua_setfield(L, -2, "vcpus");
	lua_pushinteger(L, info.waiting);
	lua_setfield(L, -2, "waiting");
	return 1;
}

static const luaL_Reg functions[] = {
	{"vm_snapshot", vm_snapshot},
	{"snapshot_open", snapshot_open},
	{"snapshot_prepare", snapshot_prepare},
	{"snapshot_clone", snapshot_clone},
	{"snapshot_info", snapshot_info},
	{NULL, NULL},
};

void fcvm_bind_open_snapshot(lua_State *L)
{
	luaL_setfuncs(L, functions, 0);
}
