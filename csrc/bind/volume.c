/* SPDX-License-Identifier: MIT */
/* fcvm.core: volumes. Timeouts are seconds; the reports are JSON text. */
#include <stdlib.h>
#include <string.h>

#include "bind/private.h"
#include "bind/volume_text.h"

struct volume_call {
	struct fcvm_call call;
	struct fcvm_vm *vm;
	const struct fcvm_vm_volume *volume; /* kept */
	const char *guest;                   /* kept */
	bool force;
	int64_t timeout_ms;
	char *text; /* owned */
	size_t size;
};

static struct volume_call *call_on_vm(lua_State *L, const struct fcvm_call_type *type)
{
	struct volume_call *c = fcvm_call_on(L, type, sizeof *c, &fcvm_handle_vm);

	c->vm = c->call.handle->object;
	return c;
}

/* ---- a volume's table ---- */

/* Pushes the field of the table at arg, a list of at most max, and room for as many things of that size, and one more:
 * the room, or NULL if there is no such field; then nothing is pushed. */
static void *push_list(lua_State *L, int arg, const char *field, int max, const char *what, size_t size, lua_Integer *ret_n)
{
	int at;

	*ret_n = 0;
	if (lua_getfield(L, arg, field) == LUA_TNIL) {
		lua_pop(L, 1);
		return NULL;
	}
	at = lua_gettop(L);
	luaL_checktype(L, at, LUA_TTABLE);
	*ret_n = luaL_len(L, at);
	if (*ret_n < 0 || *ret_n > max)
		luaL_error(L, "%s: at most %d%s", field, max, what);
	return lua_newuserdatauv(L, ((size_t)*ret_n + 1) * size, 0);
}

/* The field of the table at arg, a list of {guest=, host=, count=}; kept by the call. */
static const struct fcvm_vm_ids *ids(lua_State *L, int arg, const char *field, struct fcvm_call *call, size_t *ret_n)
{
	lua_Integer n;
	struct fcvm_vm_ids *list = push_list(L, arg, field, FCVM_MAX_IDS, " entries", sizeof *list, &n);
	int at = lua_gettop(L) - 1;

	*ret_n = (size_t)n;
	if (!list)
		return NULL;
	for (lua_Integer i = 0; i < n; i++) {
		if (lua_rawgeti(L, at, i + 1) != LUA_TTABLE)
			luaL_error(L, "%s: a list of tables expected", field);
		list[i].guest = (uint32_t)fcvm_args_integer(L, lua_gettop(L), "guest", 0);
		list[i].host = (uint32_t)fcvm_args_integer(L, lua_gettop(L), "host", 0);
		list[i].count = (uint32_t)fcvm_args_integer(L, lua_gettop(L), "count", 1);
		lua_pop(L, 1);
	}
	fcvm_call_keep(L, call);
	lua_pop(L, 1);
	return list;
}

static void fill_volume(lua_State *L, int arg, struct fcvm_call *call, struct fcvm_vm_volume *v)
{
	const char *locks;

	luaL_checktype(L, arg, LUA_TTABLE);
	*v = (struct fcvm_vm_volume)FCVM_VM_VOLUME_INIT;
	v->host = fcvm_args_string(L, arg, "host", call);
	v->guest = fcvm_args_string(L, arg, "guest", call);
	if (!v->host || !v->guest)
		luaL_error(L, "a volume has host and guest");
	v->readonly = fcvm_args_boolean(L, arg, "readonly");
	v->devices = fcvm_args_boolean(L, arg, "devices");
	locks = fcvm_args_string(L, arg, "locks", call);
	v->local_locks = locks && strcmp(locks, "guest") == 0;
	v->readers = (unsigned)fcvm_args_integer(L, arg, "readers", 0);
	if (lua_getfield(L, arg, "timeout") != LUA_TNIL)
		v->timeout_s = luaL_checknumber(L, -1);
	lua_pop(L, 1);
	v->uid_map = ids(L, arg, "uid_map", call, &v->nuid_map);
	v->gid_map = ids(L, arg, "gid_map", call, &v->ngid_map);
}

const struct fcvm_vm_volume *fcvm_args_volumes(lua_State *L, int arg, const char *field, struct fcvm_call *call, size_t *ret_n)
{
	lua_Integer n;
	struct fcvm_vm_volume *list = push_list(L, arg, field, FCVM_MAX_VOLUMES, "", sizeof *list, &n);
	int at = lua_gettop(L) - 1;

	*ret_n = (size_t)n;
	if (!list)
		return NULL;
	for (lua_Integer i = 0; i < n; i++) {
		lua_rawgeti(L, at, i + 1);
		fill_volume(L, lua_gettop(L), call, &list[i]);
		lua_pop(L, 1);
	}
	fcvm_call_keep(L, call);
	lua_pop(L, 1);
	return list;
}

/* ---- as text ---- */

static void set_string(lua_State *L, const char *field, const char *value)
{
	lua_pushstring(L, value);
	lua_setfield(L, -2, field);
}

static void set_ids(lua_State *L, const char *field, const struct fcvm_vm_ids *list, size_t n)
{
	if (n == 0)
		return;
	lua_createtable(L, (int)n, 0);
	for (size_t i = 0; i < n; i++) {
		lua_createtable(L, 0, 3);
		lua_pushinteger(L, list[i].guest);
		lua_setfield(L, -2, "guest");
		lua_pushinteger(L, list[i].host);
		lua_setfield(L, -2, "host");
		lua_pushinteger(L, list[i].count);
		lua_setfield(L, -2, "count");
		lua_rawseti(L, -2, (lua_Integer)i + 1);
	}
	lua_setfield(L, -2, field);
}

/* volume_parse(text): its table, or nil and why not. */
static int volume_parse(lua_State *L)
{
	const char *text = luaL_checkstring(L, 1);
	struct fcvm_volume_text *t = lua_newuserdatauv(L, sizeof *t, 0);
	struct fcvm_err err = FCVM_ERR_INIT;

	if (fcvm_volume_parse(t, text, &err) < 0) {
		lua_pushnil(L);
		lua_pushstring(L, err.message);
		return 2;
	}
	lua_createtable(L, 0, 8);
	set_string(L, "host", t->host);
	set_string(L, "guest", t->guest);
	lua_pushboolean(L, t->volume.readonly);
	lua_setfield(L, -2, "readonly");
	lua_pushboolean(L, t->volume.devices);
	lua_setfield(L, -2, "devices");
	set_string(L, "locks", t->volume.local_locks ? "guest" : "host");
	if (t->volume.readers) {
		lua_pushinteger(L, t->volume.readers);
		lua_setfield(L, -2, "readers");
	}
	if (t->volume.timeout_s >= 0) {
		lua_pushnumber(L, t->volume.timeout_s);
		lua_setfield(L, -2, "timeout");
	}
	set_ids(L, "uid_map", t->uid_map, t->volume.nuid_map);
	set_ids(L, "gid_map", t->gid_map, t->volume.ngid_map);
	return 1;
}

/* volume_host(path): where that is, absolute; nil: there can be no such path. */
static int volume_host(lua_State *L)
{
	char path[PATH_MAX];

	if (fcvm_volume_host(path, luaL_checkstring(L, 1)) < 0)
		return 0;
	lua_pushstring(L, path);
	return 1;
}

/* ---- of a VM ---- */

static int mount_run(struct fcvm_job *job)
{
	struct volume_call *c = (struct volume_call *)job;

	return fcvm_vm_mount(c->vm, c->volume, c->timeout_ms, &job->err);
}

static const struct fcvm_call_type mount_type = {"mount", mount_run};

/* vm_mount(vm, {host, guest, readonly, devices, locks, readers, timeout, uid_map, gid_map}, timeout) */
static int vm_mount(lua_State *L)
{
	struct volume_call *c;
	struct fcvm_vm_volume *v;

	luaL_checktype(L, 2, LUA_TTABLE);
	lua_settop(L, 3); /* the timeout may have been left out */
	c = call_on_vm(L, &mount_type);
	v = lua_newuserdatauv(L, sizeof *v, 0);
	fill_volume(L, 2, &c->call, v);
	c->volume = v;
	fcvm_call_keep(L, &c->call);
	c->timeout_ms = fcvm_args_timeout(L, 3);
	return fcvm_call_run(L, &c->call);
}

static int unmount_run(struct fcvm_job *job)
{
	struct volume_call *c = (struct volume_call *)job;

	return fcvm_vm_unmount(c->vm, c->guest, c->force, c->timeout_ms, &job->err);
}

static const struct fcvm_call_type unmount_type = {"unmount", unmount_run};

/* vm_unmount(vm, guest, force, timeout) */
static int vm_unmount(lua_State *L)
{
	const char *guest = luaL_checkstring(L, 2);
	struct volume_call *c = call_on_vm(L, &unmount_type);

	c->guest = guest;
	c->force = lua_toboolean(L, 3);
	c->timeout_ms = fcvm_args_timeout(L, 4);
	return fcvm_call_run(L, &c->call);
}

static int text_push(lua_State *L, struct fcvm_call *call)
{
	struct volume_call *c = (struct volume_call *)call;

	lua_pushlstring(L, c->text ? c->text : "", c->size);
	return 1;
}

static void text_drop(struct fcvm_call *call)
{
	struct volume_call *c = (struct volume_call *)call;

	free(c->text);
	c->text = NULL;
}

static int volumes_run(struct fcvm_job *job)
{
	struct volume_call *c = (struct volume_call *)job;
	int r = fcvm_vm_volumes(c->vm, &c->text, &job->err);

	if (r >= 0)
		c->size = strlen(c->text);
	return r;
}

static const struct fcvm_call_type volumes_type = {"volumes", volumes_run, text_push, text_drop};

/* vm_volumes(vm): JSON text */
static int vm_volumes(lua_State *L)
{
	struct volume_call *c = call_on_vm(L, &volumes_type);

	return fcvm_call_run(L, &c->call);
}

static int traces_run(struct fcvm_job *job)
{
	struct volume_call *c = (struct volume_call *)job;

	return fcvm_vm_traces(c->vm, c->guest, &c->text, &c->size, &job->err);
}

static const struct fcvm_call_type traces_type = {"traces", traces_run, text_push, text_drop};

/* vm_traces(vm, guest): lines */
static int vm_traces(lua_State *L)
{
	const char *guest = luaL_checkstring(L, 2);
	struct volume_call *c = call_on_vm(L, &traces_type);

	c->guest = guest;
	return fcvm_call_run(L, &c->call);
}

static const luaL_Reg functions[] = {
	{"volume_parse", volume_parse},
	{"volume_host", volume_host},
	{"vm_mount", vm_mount},
	{"vm_unmount", vm_unmount},
	{"vm_volumes", vm_volumes},
	{"vm_traces", vm_traces},
	{NULL, NULL},
};

void fcvm_bind_open_volume(lua_State *L)
{
	luaL_setfuncs(L, functions, 0);
}
