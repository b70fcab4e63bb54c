/* SPDX-License-Identifier: MIT */
#include "host/interp.h"

#include <lauxlib.h>
#include <lualib.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bind/bind.h"
#include "fcvm.h"
#include "host/interrupt.h"
#include "host/places.h"
#include "host/progress.h"

/* What the signal handler works on; written on the main thread before the handler may see it. */
static lua_State *whole;                 /* what interp_call runs */
static lua_State *volatile running;      /* it, or the coroutine that runs now */
static struct fcvm_bind *volatile bound; /* NULL until the script requires fcvm */

/* What the source of our own Lua modules begins with, "@/usr/share/lua/5.4/fcvm/"; "": not known.
 */
static char library[4096];

/* ---- signals ---- */

static void raise_interrupted(lua_State *L, lua_Debug *ar)
{
	lua_sethook(L, NULL, 0, 0);
	luaL_error(L, "interrupted");
}

/* In the signal handler. The binding knows which task runs and what it waits for; without it there
 * is only Lua. */
static void interrupt_call(void)
{
	const int always = LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE | LUA_MASKCOUNT;

	if (bound) {
		fcvm_bind_interrupt(bound, running);
		return;
	}
	lua_sethook(whole, raise_interrupted, always, 1);
	lua_sethook(running, raise_interrupted, always, 1);
}

/* ---- coroutines ---- */

/*
 * coroutine.resume and coroutine.wrap as Lua has them, but for noting which coroutine runs: hooks
 * are each coroutine's own, so that a signal would not strike in one whose end or yield others wait
 * for.
 */

/* The arguments are on top of L. How many results are there instead; -1: an error object. */
static int resume(lua_State *L, lua_State *co, int nargs)
{
	lua_State *before = running;
	int n, r;

	if (!lua_checkstack(co, nargs)) {
		lua_pushliteral(L, "too many arguments to resume");
		return -1;
	}
	lua_xmove(L, co, nargs);
	running = co;
	r = lua_resume(co, L, nargs, &n);
	running = before;
	if (r != LUA_OK && r != LUA_YIELD) {
		lua_xmove(co, L, 1);
		return -1;
	}
	if (!lua_checkstack(L, n + 1)) {
		lua_pop(co, n);
		lua_pushliteral(L, "too many results to resume");
		return -1;
	}
	lua_xmove(co, L, n);
	return n;
}

static int coroutine_resume(lua_State *L)
{
	lua_State *co = lua_tothread(L, 1);
	int n;

	luaL_argexpected(L, co, 1, "coroutine");
	n = resume(L, co, lua_gettop(L) - 1);
	lua_pushboolean(L, n >= 0);
	n = n < 0 ? 1 : n;
	lua_insert(L, -(n + 1));
	return n + 1;
}

/* What coroutine.wrap returns; the coroutine is its upvalue. */
static int wrapped(lua_State *L)
{
	lua_State *co = lua_tothread(L, lua_upvalueindex(1));
	int n = resume(L, co, lua_gettop(L));
	int status = lua_status(co);

	if (n >= 0)
		return n;
	if (status != LUA_OK && status != LUA_YIELD) {
		/* It died: its variables are closed, which may be another error. */
		lua_pop(L, 1);
		status = lua_resetthread(co);
		lua_xmove(co, L, 1);
	}
	if (status != LUA_ERRMEM && lua_type(L, -1) == LUA_TSTRING) {
		luaL_where(L, 1);
		lua_insert(L, -2);
		lua_concat(L, 2);
	}
	return lua_error(L);
}

static int coroutine_wrap(lua_State *L)
{
	lua_State *co;

	luaL_checktype(L, 1, LUA_TFUNCTION);
	co = lua_newthread(L);
	lua_pushvalue(L, 1);
	lua_xmove(L, co, 1);
	lua_pushcclosure(L, wrapped, 1);
	return 1;
}

/* ---- errors ---- */

/* Is it Lua code of the user's, at which an error message can point? */
static bool is_users(const lua_Debug *ar)
{
	return ar->currentline > 0 &&
	       (!*library || strncmp(ar->source, library, strlen(library)) != 0);
}

/* "file:line: " of the user's innermost Lua function, pushed; "" if there is none. */
static void push_where(lua_State *L)
{
	lua_Debug ar;

	for (int level = 1; lua_getstack(L, level, &ar); level++) {
		lua_getinfo(L, "Sl", &ar);
		if (is_users(&ar)) {
			lua_pushfstring(L, "%s:%d: ", ar.short_src, ar.currentline);
			return;
		}
	}
	lua_pushliteral(L, "");
}

/* Does it begin as error() and the compiler begin theirs, "file:line: "? */
static bool says_where(const char *message)
{
	const char *colon = strchr(message, ':');
	size_t digits = colon ? strspn(colon + 1, "0123456789") : 0;

	return digits > 0 && colon[1 + digits] == ':' &&
	       memchr(message, '\n', (size_t)(colon - message)) == NULL;
}

/* More than the line that was typed is involved. */
static bool is_deep(lua_State *L)
{
	lua_Debug ar;
	int n = 0;

	for (int level = 1; n < 2 && lua_getstack(L, level, &ar); level++) {
		lua_getinfo(L, "Slt", &ar);
		/* A tail call has taken its caller's place. */
		n += is_users(&ar) ? 1 + ar.istailcall : 0;
	}
	return n >= 2;
}

/* Of an error that comes from a task, that of the task: pushed, and true. */
static bool push_own_traceback(lua_State *L)
{
	if (lua_istable(L, 1)) {
		lua_pushliteral(L, "traceback");
		if (lua_rawget(L, 1) == LUA_TSTRING)
			return true;
		lua_pop(L, 1);
	}
	return false;
}

static int describe(lua_State *L, bool brief)
{
	const char *message;

	if (fcvm_bind_is_interrupted(L, 1)) {
		lua_pushliteral(L, "interrupted");
		return 1;
	}
	message = luaL_tolstring(L, 1, NULL);
	if (!says_where(message)) {
		push_where(L);
		lua_insert(L, -2);
		lua_concat(L, 2);
	}
	if (push_own_traceback(L)) {
		lua_pushliteral(L, "\n");
		lua_insert(L, -2);
		lua_concat(L, 3);
	} else if (!strstr(lua_tostring(L, -1), "\nstack traceback:\n") && (!brief || is_deep(L)))
		luaL_traceback(L, L, lua_tostring(L, -1), 1);
	return 1;
}

static int describe_fully(lua_State *L)
{
	return describe(L, false);
}

static int describe_briefly(lua_State *L)
{
	return describe(L, true);
}

int interp_call(lua_State *L, int nargs, int nresults, bool brief)
{
	int handler = lua_gettop(L) - nargs;
	int r;

	lua_pushcfunction(L, brief ? describe_briefly : describe_fully);
	lua_insert(L, handler);
	running = whole = L;
	fcvm_bind_interrupt_clear(bound);
	interrupt_hook(interrupt_call);
	/* One that came just before. */
	if (interrupt_signal())
		interrupt_call();
	r = lua_pcall(L, nargs, nresults, handler);
	interrupt_hook(NULL);
	lua_sethook(L, NULL, 0, 0);
	fcvm_bind_interrupt_clear(bound);
	lua_remove(L, handler);
	return r;
}

void interp_report(lua_State *L)
{
	const char *message = lua_tostring(L, -1);

	progress_clear();
	fflush(stdout);
	if (!interrupt_signal())
		fprintf(stderr, "fcvm: %s\n", message ? message : "error object is not a string");
	else if (interrupt_signal() != SIGPIPE)
		fprintf(stderr, "fcvm: interrupted\n");
	lua_pop(L, 1);
}

/* ---- the state ---- */

/* os.exit([code]): Lua's own leaves VMs to the kernel, which ends them but not their folders. */
static int exit_in_order(lua_State *L)
{
	int status;

	if (lua_isboolean(L, 1))
		status = lua_toboolean(L, 1) ? EXIT_SUCCESS : EXIT_FAILURE;
	else
		status = (int)luaL_optinteger(L, 1, EXIT_SUCCESS);
	interp_close(L);
	exit(status);
}

static int open_core(lua_State *L)
{
	int n = luaopen_fcvm_core(L);

	bound = fcvm_bind_of(L);
	return n;
}

/* In front of whatever a script would find otherwise: the modules must be of the same make as the
 * program. */
static void set_path(lua_State *L, const char *folder)
{
	lua_getglobal(L, "package");
	lua_getfield(L, -1, "path");
	lua_pushfstring(L, "%s/?.lua;%s/?/init.lua;%s", folder, folder, lua_tostring(L, -1));
	lua_setfield(L, -3, "path");
	lua_pop(L, 2);
}

static const luaL_Reg coroutines[] = {
	{"resume", coroutine_resume},
	{"wrap", coroutine_wrap},
	{NULL, NULL},
};

static int set_up(lua_State *L)
{
	const char *folder = lua_touserdata(L, 1);

	luaL_openlibs(L);
	fcvm_bind_preload(L);
	luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
	lua_pushcfunction(L, open_core);
	lua_setfield(L, -2, "fcvm.core");
	if (folder) {
		set_path(L, folder);
		if (snprintf(library, sizeof library, "@%s/fcvm/", folder) >= (int)sizeof library)
			*library = 0;
	}
	lua_getglobal(L, "os");
	lua_pushcfunction(L, exit_in_order);
	lua_setfield(L, -2, "exit");
	lua_getglobal(L, "coroutine");
	luaL_setfuncs(L, coroutines, 0);
	/* An error in a finalizer has nowhere else to go. */
	lua_warning(L, "@on", 0);
	return 0;
}

lua_State *interp_new(void)
{
	lua_State *L = luaL_newstate();
	char *folder = place_of_lua();
	int r;

	if (!L) {
		free(folder);
		return NULL;
	}
	/* What waits in the binding has its own way to be ended; closing in order must not be
	 * cancelled. */
	fcvm_cancel_by(-1);
	progress_guard_stdio();
	lua_pushcfunction(L, set_up);
	lua_pushlightuserdata(L, folder);
	r = lua_pcall(L, 1, 0, 0);
	free(folder);
	if (r == LUA_OK)
		return L;
	lua_close(L);
	return NULL;
}

void interp_close(lua_State *L)
{
	interrupt_hook(NULL);
	bound = NULL;
	running = whole = NULL;
	fflush(stdout);
	lua_close(L);
}
