/* SPDX-License-Identifier: MIT */
/* The module fcvm.core. Not for users: lua/fcvm is their interface. */
#include "bind/private.h"

int luaopen_fcvm_core(lua_State *L)
{
	luaL_checkversion(L);
	lua_createtable(L, 0, 88);
	fcvm_error_open(L);
	/* before any handle: finalizers run in the reverse order, and handles need the jobs */
	fcvm_call_open_lib(L);
	fcvm_handle_open_lib(L);
	fcvm_bind_open_vm(L);
	fcvm_bind_open_program(L);
	fcvm_bind_open_files(L);
	fcvm_bind_open_snapshot(L);
	fcvm_bind_open_store(L);
	fcvm_bind_open_volume(L);
	return 1;
}

void fcvm_bind_preload(lua_State *L)
{
	luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
	lua_pushcfunction(L, luaopen_fcvm_core);
	lua_setfield(L, -2, "fcvm.core");
	lua_pop(L, 1);
}
