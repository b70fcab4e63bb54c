/* SPDX-License-Identifier: MIT */
/*
 * The Lua interpreter inside the program: what `script` and `repl` have in common. One at a time,
 * on the main thread.
 */
#ifndef FCVM_HOST_INTERP_H
#define FCVM_HOST_INTERP_H

#include <stdbool.h>

#include <lua.h>

/*
 * An interpreter with the standard libraries, fcvm.core preloaded and the module fcvm in
 * package.path; nothing of fcvm is loaded yet. os.exit() always closes the state first, so that
 * what a script holds ends in order. NULL: out of memory.
 */
lua_State *interp_new(void);
/* Closes it, and with it all that the script left open. */
void interp_close(lua_State *L);

/*
 * As lua_pcall, but signals interrupt the call, and the error is a string to be shown: message and
 * traceback (not if `brief` is set and it would tell nothing). An interrupted call leaves an error
 * as well.
 */
int interp_call(lua_State *L, int nargs, int nresults, bool brief);
/* Prints and pops the error that interp_call left; nothing for an interrupt. */
void interp_report(lua_State *L);

#endif
