/* SPDX-License-Identifier: MIT */
/* Arguments from Lua. Mistakes raise, but in words for lua/fcvm's authors: users' mistakes are
 * caught there. */
#include <string.h>

#include "bind/private.h"

int64_t fcvm_args_timeout(lua_State *L, int arg)
{
	lua_Number s;
	int64_t ms;

	if (lua_isnoneornil(L, arg))
		return FCVM_DEFAULT_TIMEOUT;
	s = luaL_checknumber(L, arg);
	luaL_argcheck(L, s >= 0, arg, "seconds, not negative");
	/* beyond a hundred years it is for ever */
	if (s > 3.2e9)
		return FCVM_NO_TIMEOUT;
	ms = (int64_t)(s * 1000);
	return (lua_Number)ms < s * 1000 ? ms + 1 : ms;
}

const char *fcvm_args_string(lua_State *L, int arg, const char *field, struct fcvm_call *call)
{
	const char *s;

	lua_getfield(L, arg, field);
	if (lua_isnil(L, -1)) {
		lua_pop(L, 1);
		return NULL;
	}
	if (lua_type(L, -1) != LUA_TSTRING)
		luaL_error(L, "%s: a string expected", field);
	s = lua_tostring(L, -1);
	fcvm_call_keep(L, call);
	return s;
}

lua_Integer fcvm_args_integer(lua_State *L, int arg, const char *field, lua_Integer otherwise)
{
	lua_Integer n = otherwise;
	int is = 1;

	if (lua_getfield(L, arg, field) != LUA_TNIL)
		n = lua_tointegerx(L, -1, &is);
	if (!is || n < 0)
		luaL_error(L, "%s: a whole number expected, not negative", field);
	lua_pop(L, 1);
	return n;
}

bool fcvm_args_boolean(lua_State *L, int arg, const char *field)
{
	bool b;

	lua_getfield(L, arg, field);
	b = lua_toboolean(L, -1);
	lua_pop(L, 1);
	return b;
}

/*
 * The strings are copied into one block with the pointers before them: the caller's table may
 * change while a worker reads them.
 */
const char *const *fcvm_args_list(lua_State *L, int arg, struct fcvm_call *call)
{
	lua_Integer n = luaL_len(L, arg);
	size_t size = 0, length;
	const char **list, *s;
	char *to;

	arg = lua_absindex(L, arg);
	luaL_argcheck(L, n >= 0 && n < 1 << 20, arg, "too many strings");
	for (lua_Integer i = 1; i <= n; i++) {
		if (lua_rawgeti(L, arg, i) != LUA_TSTRING)
			luaL_error(L, "string expected at place %d of the list, got %s", (int)i,
				luaL_typename(L, -1));
		s = lua_tolstring(L, -1, &length);
		if (strlen(s) != length)
			luaL_error(
				L, "the string at place %d of the list holds a NUL byte", (int)i);
		size += length + 1;
		lua_pop(L, 1);
	}
	list = lua_newuserdatauv(L, ((size_t)n + 1) * sizeof *list + size, 0);
	to = (char *)(list + n + 1);
	for (lua_Integer i = 1; i <= n; i++) {
		lua_rawgeti(L, arg, i);
		s = lua_tolstring(L, -1, &length);
		list[i - 1] = memcpy(to, s, length + 1);
		to += length + 1;
		lua_pop(L, 1);
	}
	list[n] = NULL;
	fcvm_call_keep(L, call);
	return list;
}

const char *const *fcvm_args_strings(
	lua_State *L, int arg, const char *field, struct fcvm_call *call)
{
	const char *const *list = NULL;

	if (lua_getfield(L, arg, field) != LUA_TNIL) {
		if (!lua_istable(L, -1))
			luaL_error(L, "%s: a list of strings expected", field);
		list = fcvm_args_list(L, lua_gettop(L), call);
	}
	lua_pop(L, 1);
	return list;
}
