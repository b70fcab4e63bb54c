/* SPDX-License-Identifier: MIT */
/*
 * What an interpreter host needs of the Lua binding. Everything here belongs to one lua_State and
 * is used on its thread, but for fcvm_bind_interrupt().
 *
 *	luaL_openlibs(L);
 *	fcvm_bind_preload(L);                         require "fcvm.core" finds this copy
 *	... package.path gets <prefix>/share/lua/5.4, or the source tree's lua/ ...
 *	require "fcvm"
 *	b = fcvm_bind_of(L);                          for the handler of SIGINT
 *
 * Ctrl-C: the handler calls fcvm_bind_interrupt(b, L). A blocking call, a wait for tasks and pure
 *Lua code all end by raising the value fcvm.interrupted (fcvm_bind_is_interrupted() knows it), so
 *that <close> variables are closed on the way out. A prompt calls fcvm_bind_interrupt_clear()
 *before it runs a line, so that an interrupt that came between two lines hits nothing.
 */
#ifndef FCVM_BIND_H
#define FCVM_BIND_H

#include <stdbool.h>

#include <lua.h>

struct fcvm_bind; /* of one lua_State; freed with it */

__attribute__((visibility("default"))) int luaopen_fcvm_core(lua_State *L);

/* Puts luaopen_fcvm_core into package.preload. May raise (memory). */
void fcvm_bind_preload(lua_State *L);

/* NULL until fcvm.core was required. */
struct fcvm_bind *fcvm_bind_of(lua_State *L);

/* Async-signal-safe, as far as lua_sethook is (lua.c relies on the same). running: the coroutine
 * that runs now, if the host knows; without it, only the main one and tasks are interrupted. Both
 * may be NULL. */
void fcvm_bind_interrupt(struct fcvm_bind *b, lua_State *running);

/* Forgets an interrupt that nobody has seen yet. Takes NULL. */
void fcvm_bind_interrupt_clear(struct fcvm_bind *b);

/* Is the value at index fcvm.interrupted? Neither raises nor allocates. */
bool fcvm_bind_is_interrupted(lua_State *L, int index);

#endif
