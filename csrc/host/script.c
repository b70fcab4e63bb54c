/* SPDX-License-Identifier: MIT */
/* fcvm script: runs a Lua program. */
#include <dirent.h>
#include <lauxlib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "host/interp.h"
#include "host/interrupt.h"
#include "host/places.h"
#include "host/verb.h"

static bool is_file(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && !S_ISDIR(st.st_mode);
}

/* ---- the shipped scripts ---- */

static int is_script(const struct dirent *d)
{
	size_t n = strlen(d->d_name);

	return n > 4 && d->d_name[0] != '.' && strcmp(d->d_name + n - 4, ".lua") == 0;
}

/* Names, without ".lua", sorted; *ret and each entry are malloc'ed. Returns how many. */
static int scripts(const char *folder, struct dirent ***ret)
{
	int n = folder ? scandir(folder, ret, is_script, alphasort) : 0;

	for (int i = 0; i < n; i++)
		*strrchr((*ret)[i]->d_name, '.') = 0;
	return n < 0 ? 0 : n;
}

static void free_scripts(struct dirent **found, int n)
{
	for (int i = 0; i < n; i++)
		free(found[i]);
	free(found);
}

/* The first line that is a comment and not "#!" or a licence, without its dashes; "" if there is
 * none. */
static void first_comment(const char *folder, const char *name, char *ret, size_t size)
{
	_cleanup_free_ char *path = fcvm_asprintf("%s/%s.lua", folder, name);
	_cleanup_fclose_ FILE *f = path ? fopen(path, "re") : NULL;
	char line[512];

	*ret = 0;
	while (f && !*ret && fgets(line, sizeof line, f)) {
		const char *text = line + strspn(line, "-[ \t");

		if (strncmp(line, "#!", 2) == 0 || strstr(line, "SPDX"))
			continue;
		if (strncmp(line, "--", 2) != 0 && line[strspn(line, " \t\r\n")])
			return;
		snprintf(ret, size, "%.*s", (int)strcspn(text, "\r\n"), text);
	}
}

static int list(bool quiet)
{
	_cleanup_free_ char *folder = place_of_scripts();
	struct dirent **found = NULL;
	int n = scripts(folder, &found);
	int width = 0;
	char comment[256];

	for (int i = 0; i < n; i++)
		if ((int)strlen(found[i]->d_name) > width)
			width = (int)strlen(found[i]->d_name);
	for (int i = 0; i < n; i++) {
		first_comment(folder, found[i]->d_name, comment, sizeof comment);
		if (quiet || !*comment)
			printf("%s\n", found[i]->d_name);
		else
			printf("%-*s  %s\n", width, found[i]->d_name, comment);
	}
	free_scripts(found, n);
	return 0;
}

static const char *script_name(const void *data, size_t i)
{
	return ((struct dirent *const *)data)[i]->d_name;
}

static void not_found(const char *name, const char *folder)
{
	struct dirent **found = NULL;
	int n = scripts(folder, &found);
	const char *near = nearest(name, script_name, found, (size_t)n);

	misuse("script: there is no file %s, nor a shipped script of that name; %s%s%s", name,
		near ? "did you mean " : "fcvm script --list shows those", near ? near : "",
		near ? "?" : "");
	free_scripts(found, n);
}

/* malloc'ed path of the script; NULL after having said that there is none. */
static char *find(const char *name)
{
	_cleanup_free_ char *folder = NULL;
	char *path;

	if (strchr(name, '/') || strcmp(name, "-") == 0 || is_file(name))
		return strdup(name);
	folder = place_of_scripts();
	for (int i = 0; folder && i < 2; i++) {
		path = fcvm_asprintf("%s/%s%s", folder, name, i ? ".lua" : "");
		if (path && is_file(path))
			return path;
		free(path);
	}
	not_found(name, folder);
	return NULL;
}

/* ---- running one ---- */

/* The global `arg` as the standalone interpreter has it: 0 is the script, from 1 on its arguments.
 */
static void push_arguments(lua_State *L, const struct args *args, const char *path)
{
	lua_createtable(L, args->count - 1, 3);
	lua_pushliteral(L, "fcvm");
	lua_rawseti(L, -2, -2);
	lua_pushliteral(L, "script");
	lua_rawseti(L, -2, -1);
	lua_pushstring(L, path);
	lua_rawseti(L, -2, 0);
	for (int i = 1; i < args->count; i++) {
		lua_pushstring(L, args->operands[i]);
		lua_rawseti(L, -2, i);
	}
	lua_setglobal(L, "arg");
	luaL_checkstack(L, args->count, "too many arguments");
	for (int i = 1; i < args->count; i++)
		lua_pushstring(L, args->operands[i]);
}

/* status(first, second): the exit status for what the chunk returned. Nothing or true: 0; a number:
 * that; nil or false and a reason: that is raised, to be reported as an error is. */
static int status_of(lua_State *L)
{
	if (lua_isinteger(L, 1))
		lua_pushinteger(L, lua_tointeger(L, 1) & 0xff);
	else if (lua_toboolean(L, 1) || (lua_isnil(L, 1) && lua_isnil(L, 2)))
		lua_pushinteger(L, 0);
	else if (lua_isnil(L, 2))
		lua_pushinteger(L, EXIT_FAILED);
	else
		return luaL_tolstring(L, 2, NULL), lua_error(L);
	return 1;
}

struct job {
	const struct args *args;
	const char *path;
};

/* Loads the script and leaves function and arguments. */
static int load(lua_State *L)
{
	const struct job *job = lua_touserdata(L, 1);

	lua_settop(L, 0);
	if (luaL_loadfile(L, strcmp(job->path, "-") == 0 ? NULL : job->path) != LUA_OK)
		return lua_error(L);
	push_arguments(L, job->args, job->path);
	return lua_gettop(L);
}

/* Tasks that the script has started and not waited for. */
static int wait_for_tasks(lua_State *L)
{
	luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
	if (lua_getfield(L, -1, "fcvm") == LUA_TTABLE) {
		lua_getfield(L, -1, "run");
		lua_call(L, 0, 0);
	}
	return 0;
}

static int run_file(lua_State *L, const struct args *args, const char *path)
{
	struct job job = {.args = args, .path = path};
	int r;

	lua_settop(L, 0);
	lua_pushcfunction(L, load);
	lua_pushlightuserdata(L, &job);
	r = lua_pcall(L, 1, LUA_MULTRET, 0);
	if (r == LUA_OK)
		r = interp_call(L, lua_gettop(L) - 1, 2, false);
	if (r == LUA_OK) {
		lua_pushcfunction(L, wait_for_tasks);
		r = interp_call(L, 0, 0, false);
	}
	if (r == LUA_OK) {
		lua_pushcfunction(L, status_of);
		lua_insert(L, 1);
		r = lua_pcall(L, 2, 1, 0);
	}
	if (r == LUA_OK)
		return (int)lua_tointeger(L, 1);
	interp_report(L);
	return EXIT_FAILED;
}

static int run(const struct args *args)
{
	_cleanup_free_ char *path = NULL;
	lua_State *L;
	int status;

	if (args_has(args, "list"))
		return args->count ? misuse("script: --list takes no file")
				   : list(args_has(args, "quiet"));
	if (args->count == 0)
		return misuse("script: which one? usage: fcvm script FILE [ARG...]; --list lists "
			      "the shipped ones");
	path = find(args->operands[0]);
	if (!path)
		return EXIT_FAILED;
	L = interp_new();
	if (!L) {
		misuse("script: not enough memory for an interpreter");
		return EXIT_FAILED;
	}
	status = run_file(L, args, path);
	interp_close(L);
	return interrupt_signal() ? EXIT_SIGNAL + interrupt_signal() : status;
}

static const struct option options[] = {
	{'l', "list", NULL, "list the scripts that come with fcvm"},
	{'q', "quiet", NULL, "with --list: names only"},
	{0},
};

const struct verb verb_script = {
	.name = "script",
	.operands = "FILE [ARG...]",
	.summary = "Run a Lua program; a bare name finds the shipped ones",
	.help = "FILE may be -, stdin. The program finds its arguments in `arg` and `...`,\n"
		"and `require \"fcvm\"` finds the library. However it ends, what it started\n"
		"ends with it: VMs, snapshots without a name, clones. It exits with what the\n"
		"program returns or gives os.exit(), 1 after an error, 130 after Ctrl-C (a\n"
		"second one does not wait for anything).",
	.options = options,
	.max = -1,
	.stop = 1,
	.run = run,
};
