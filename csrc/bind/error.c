/* SPDX-License-Identifier: MIT */
/* Error tables, and the two values that unwind a script: fcvm.interrupted and fcvm.cancelled. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "bind/private.h"

static const char meta_error[] = "fcvm.error";
static const char meta_signal[] = "fcvm.signal"; /* of the two values */

/* Addresses are registry keys. */
static const char key_interrupted, key_cancelled;

/* One line, and the detail's lines after it. */
static int error_tostring(lua_State *L)
{
	luaL_checktype(L, 1, LUA_TTABLE);
	lua_getfield(L, 1, "msg");
	if (!lua_isstring(L, -1)) {
		lua_pushliteral(L, "unknown error");
		lua_replace(L, -2);
	}
	if (lua_getfield(L, 1, "detail") == LUA_TSTRING && lua_rawlen(L, -1) > 0) {
		lua_pushliteral(L, "\n");
		lua_insert(L, -2);
		lua_concat(L, 3);
	} else {
		lua_pop(L, 1);
	}
	return 1;
}

static int signal_tostring(lua_State *L)
{
	luaL_checktype(L, 1, LUA_TTABLE);
	lua_getfield(L, 1, "msg");
	return 1;
}

static void make_signal(lua_State *L, const char *name, const void *key)
{
	lua_createtable(L, 0, 2);
	lua_pushstring(L, name);
	lua_setfield(L, -2, "msg");
	lua_pushliteral(L, "ECANCELED");
	lua_setfield(L, -2, "code");
	luaL_setmetatable(L, meta_signal);
	lua_pushvalue(L, -1);
	lua_rawsetp(L, LUA_REGISTRYINDEX, key);
	lua_setfield(L, -2, name);
}

static void make_meta(lua_State *L, const char *name, lua_CFunction tostring)
{
	luaL_newmetatable(L, name);
	lua_pushcfunction(L, tostring);
	lua_setfield(L, -2, "__tostring");
	lua_pop(L, 1);
}

void fcvm_error_open(lua_State *L)
{
	make_meta(L, meta_error, error_tostring);
	make_meta(L, meta_signal, signal_tostring);
	make_signal(L, "interrupted", &key_interrupted);
	make_signal(L, "cancelled", &key_cancelled);
	luaL_getmetatable(L, meta_error);
	lua_setfield(L, -2, "error");
}

static void set_text(lua_State *L, const char *field, const char *text)
{
	lua_pushstring(L, text);
	lua_setfield(L, -2, field);
}

int fcvm_error_push(lua_State *L, const char *op, int code, const struct fcvm_err *err)
{
	const char *name = strerrorname_np(-code);

	lua_pushnil(L);
	lua_createtable(L, 0, 5);
	if (name)
		set_text(L, "code", name);
	else
		lua_pushfstring(L, "E%d", -code), lua_setfield(L, -2, "code");
	lua_pushinteger(L, -code);
	lua_setfield(L, -2, "errno");
	set_text(L, "op", err && err->op[0] ? err->op : op);
	if (err && err->message[0]) {
		set_text(L, "msg", err->message);
	} else {
		lua_pushfstring(L, "%s: %s", op, strerror(-code));
		lua_setfield(L, -2, "msg");
	}
	set_text(L, "detail", err ? err->detail : "");
	luaL_setmetatable(L, meta_error);
	return 2;
}

/* ---- interrupts ---- */

/* The hook that fcvm_bind_interrupt() sets: raises from within whatever Lua code runs next. */
static void interrupted_hook(lua_State *L, lua_Debug *ar)
{
	struct fcvm_bind *b = fcvm_bind_of(L);

	(void)ar;
	/* later: the scheduler's next wait sees the fd, and the hook stays */
	if (b && L == b->scheduler)
		return;
	lua_sethook(L, NULL, 0, 0);
	if (b)
		fcvm_error_raise_interrupted(L, b);
}

static void set_hook(lua_State *L)
{
	if (L)
		lua_sethook(L, interrupted_hook,
			LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE | LUA_MASKCOUNT, 1);
}

void fcvm_bind_interrupt(struct fcvm_bind *b, lua_State *running)
{
	int saved = errno;
	ssize_t r;

	if (!b)
		return;
	r = write(b->interrupt_fd, &(uint64_t){1}, sizeof(uint64_t));
	(void)r;
	/* hooks are each coroutine's own: the task that computes has one to itself, and so has a
	 * coroutine that it runs */
	set_hook(b->main);
	set_hook(b->running);
	set_hook(running);
	errno = saved;
}

void fcvm_error_pass_interrupt(struct fcvm_bind *b)
{
	/* the handler has set the main one's hook in any case; the scheduler may be there, and then it waits */
	if (b->running && lua_gethook(b->main) == interrupted_hook)
		set_hook(b->running);
}

static void clear_hook(lua_State *L)
{
	/* not somebody else's hook, a debugger's say */
	if (L && lua_gethook(L) == interrupted_hook)
		lua_sethook(L, NULL, 0, 0);
}

void fcvm_bind_interrupt_clear(struct fcvm_bind *b)
{
	uint64_t n;
	ssize_t r;

	if (!b)
		return;
	r = read(b->interrupt_fd, &n, sizeof n);
	(void)r;
	clear_hook(b->main);
	clear_hook(b->running);
}

int fcvm_error_raise_interrupted(lua_State *L, struct fcvm_bind *b)
{
	fcvm_bind_interrupt_clear(b);
	clear_hook(L);
	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_interrupted);
	return lua_error(L);
}

bool fcvm_bind_is_interrupted(lua_State *L, int index)
{
	bool same;

	index = lua_absindex(L, index);
	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_interrupted);
	same = !lua_isnil(L, -1) && lua_rawequal(L, -1, index);
	lua_pop(L, 1);
	return same;
}

int fcvm_error_raise_cancelled(lua_State *L)
{
	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_cancelled);
	return lua_error(L);
}
