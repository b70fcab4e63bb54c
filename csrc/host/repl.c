/* SPDX-License-Identifier: MIT */
/* fcvm repl: Lua at a prompt, with fcvm at hand. */
#include <lauxlib.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "fcvm.h"
#include "host/complete.h"
#include "host/interp.h"
#include "host/interrupt.h"
#include "host/line.h"
#include "host/progress.h"
#include "host/terminal.h"
#include "host/verb.h"

#define PROMPT "fcvm> "
#define MORE   "   >> "

struct repl {
	lua_State *L;
	struct line *line;
	struct fcvm_buf chunk; /* the lines so far, NUL-terminated once complete */
	unsigned lines;
	unsigned errors;
	int loop_fd; /* fcvm.loop()'s; borrowed */
	bool idle;   /* it is to be watched: tasks may be left */
};

/* ---- compiling what was typed ---- */

enum compiled { COMPILED, INCOMPLETE, WRONG };

static bool ends_early(lua_State *L)
{
	const char *message = lua_tostring(L, -1);
	size_t n = message ? strlen(message) : 0;

	return n >= 5 && strcmp(message + n - 5, "<eof>") == 0;
}

/* Does the message on top complain of the very first word? Then it was meant as an expression. */
static bool is_about_start(lua_State *L, const char *text)
{
	const char *near = strstr(lua_tostring(L, -1), "unexpected symbol near '");

	if (!near)
		return false;
	near += strlen("unexpected symbol near '");
	text += strspn(text, " \t\n");
	return strncmp(near, text, strcspn(near, "'")) == 0;
}

/*
 * Leaves the function, or the message if it is WRONG. As an expression first, so that its value
 * shows; text that is incomplete either way is incomplete. "= x" is the old way to say that it is
 * an expression.
 */
static enum compiled compile(lua_State *L, const char *text)
{
	bool only_expression = *text == '=';
	bool more;

	lua_pushfstring(L, "return %s", text + only_expression);
	if (luaL_loadbuffer(L, lua_tostring(L, -1), lua_rawlen(L, -1), "=stdin") == LUA_OK) {
		lua_remove(L, -2);
		return COMPILED;
	}
	lua_remove(L, -2);
	more = ends_early(L);
	if (!only_expression) {
		if (luaL_loadbuffer(L, text, strlen(text), "=stdin") == LUA_OK) {
			lua_remove(L, -2);
			return COMPILED;
		}
		more |= ends_early(L);
		/* The message that helps more stays. */
		if (is_about_start(L, text))
			lua_pop(L, 1);
		else
			lua_remove(L, -2);
	}
	if (!more)
		return WRONG;
	lua_pop(L, 1);
	return INCOMPLETE;
}

/* ---- running it ---- */

/* Addresses are registry keys: fcvm.pretty.format, and fcvm.loop(). */
static const char key_format, key_loop;

static void push_shown(lua_State *L, int index)
{
	unsigned columns = terminal_columns();

	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_format);
	lua_pushvalue(L, index);
	/* A line that is a little too long reads better than one broken into a list. */
	lua_pushinteger(L, columns > 100 ? columns : 100);
	lua_call(L, 2, 1);
	luaL_checkstring(L, -1);
}

/* Calls the function and prints what it returns. */
static int evaluate(lua_State *L)
{
	int n;

	lua_call(L, 0, LUA_MULTRET);
	n = lua_gettop(L);
	luaL_checkstack(L, 4, "too many results");
	for (int i = 1; i <= n; i++) {
		push_shown(L, i);
		fwrite(lua_tostring(L, -1), 1, lua_rawlen(L, -1), stdout);
		lua_pop(L, 1);
		fputs(i < n ? "\t" : "\n", stdout);
	}
	fflush(stdout);
	return 0;
}

static void report(struct repl *r)
{
	r->errors++;
	if (interrupt_signal()) {
		progress_clear();
		fprintf(stderr, "interrupted\n");
	} else {
		progress_clear();
		fflush(stdout);
		fprintf(stderr, "%s\n", lua_tostring(r->L, -1));
	}
	lua_settop(r->L, 0);
}

static void run_chunk(struct repl *r)
{
	lua_State *L = r->L;

	/* function -> evaluate, function */
	lua_pushcfunction(L, evaluate);
	lua_insert(L, -2);
	progress_quiet(false);
	if (interp_call(L, 1, 0, true) != LUA_OK)
		report(r);
	lua_settop(L, 0);
	progress_clear();
	/* What goes on in the background must not write over the line that is being typed. */
	progress_quiet(true);
	r->idle = true;
	if (interrupt_signal() == SIGINT)
		interrupt_clear();
}

/* ---- lines ---- */

/* Multi-line entries become one line, which libedit can edit, where that means the same. */
static void remember(struct repl *r)
{
	char *text = fcvm_buf_head(&r->chunk);

	if (r->lines > 1 && !strstr(text, "--") && !strstr(text, "[[") && !strstr(text, "[=") &&
		!strchr(text, '\\'))
		for (char *c = text; (c = strchr(c, '\n'));)
			*c = ' ';
	line_remember(r->line, text);
}

static void forget_chunk(struct repl *r)
{
	fcvm_buf_consume(&r->chunk, r->chunk.size);
	r->lines = 0;
}

static void take_line(struct repl *r, const char *text)
{
	enum compiled c;

	if ((r->lines && fcvm_buf_append(&r->chunk, "\n", 1) < 0) ||
		fcvm_buf_append(&r->chunk, text, strlen(text)) < 0 ||
		fcvm_buf_append(&r->chunk, "", 1) < 0)
		abort();
	r->lines++;
	r->chunk.size--; /* the NUL is there, and not part of it */
	c = compile(r->L, fcvm_buf_head(&r->chunk));
	if (c == INCOMPLETE)
		return;
	remember(r);
	forget_chunk(r);
	if (c == COMPILED)
		run_chunk(r);
	else
		report(r);
}

/* Input that ended in the middle of something: says what is missing. */
static void end_of_input(struct repl *r)
{
	if (r->lines &&
		luaL_loadbuffer(r->L, fcvm_buf_head(&r->chunk), r->chunk.size, "=stdin") != LUA_OK)
		report(r);
}

static int loop(struct repl *r)
{
	const char *text;

	for (;;) {
		switch (line_read(r->line, r->lines ? MORE : PROMPT, &text)) {
		case LINE_READ:
			take_line(r, text);
			break;
		case LINE_END:
			if (line_is_terminal(r->line))
				printf("\n");
			end_of_input(r);
			return !line_is_terminal(r->line) && r->errors ? EXIT_FAILED : 0;
		case LINE_INTERRUPTED:
			if (interrupt_signal() == SIGINT && line_is_terminal(r->line))
				interrupt_clear();
			forget_chunk(r);
			break;
		}
		/* SIGTERM, SIGHUP; any, if nobody is there to go on typing. */
		if (interrupt_signal())
			return EXIT_SIGNAL + interrupt_signal();
	}
}

/* ---- set-up ---- */

static void complete(void *data, const char *text, size_t size, struct line_completions *ret)
{
	complete_names(((struct repl *)data)->L, text, size, ret);
}

/* Tasks that were started at the prompt go on while a line is being typed. */
static int idle_fd(void *data)
{
	const struct repl *r = data;

	return r->idle ? r->loop_fd : -1;
}

/* fcvm.loop():step(0); returns whether tasks are left. */
static int step_loop(lua_State *L)
{
	lua_rawgetp(L, LUA_REGISTRYINDEX, &key_loop);
	lua_getfield(L, -1, "step");
	lua_insert(L, -2);
	lua_call(L, 1, 1);
	lua_pushboolean(L, lua_tointeger(L, -1) > 0);
	return 1;
}

static void idle(void *data)
{
	struct repl *r = data;

	lua_settop(r->L, 0);
	lua_pushcfunction(r->L, step_loop);
	if (interp_call(r->L, 0, 1, true) != LUA_OK) {
		r->idle = false;
		report(r);
		return;
	}
	r->idle = lua_toboolean(r->L, 1);
	fflush(stdout);
}

/* Loads fcvm and what the prompt makes of it; returns the loop's fd. */
static int load_fcvm(lua_State *L)
{
	static const char code[] = "fcvm = require 'fcvm'; help = require 'fcvm.doc'.help\n"
				   "local loop = fcvm.loop()\n"
				   "return require 'fcvm.pretty'.format, loop, loop:fd()\n";

	if (luaL_loadbuffer(L, code, sizeof code - 1, "=repl") != LUA_OK)
		return lua_error(L);
	lua_call(L, 0, 3);
	lua_insert(L, -3);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &key_loop);
	lua_rawsetp(L, LUA_REGISTRYINDEX, &key_format);
	return 1;
}

static int set_up(struct repl *r)
{
	lua_pushcfunction(r->L, load_fcvm);
	if (interp_call(r->L, 0, 1, false) == LUA_OK) {
		r->loop_fd = (int)lua_tointeger(r->L, -1);
		lua_settop(r->L, 0);
		return 0;
	}
	interp_report(r->L);
	return interrupt_signal() ? EXIT_SIGNAL + interrupt_signal() : EXIT_FAILED;
}

static int run(const struct args *args)
{
	struct repl r = {0};
	struct line_hooks hooks = {
		.data = &r, .complete = complete, .idle_fd = idle_fd, .idle = idle};
	int status;

	interrupt_bear(1 << 30);
	r.L = interp_new();
	r.line = r.L ? line_new(&hooks) : NULL;
	if (!r.line) {
		if (r.L)
			interp_close(r.L);
		misuse("repl: the terminal cannot be set up");
		return EXIT_FAILED;
	}
	status = set_up(&r);
	if (status == 0) {
		if (line_is_terminal(r.line))
			printf("fcvm %s, %s. help() helps, Ctrl-D leaves.\n", fcvm_version(),
				LUA_RELEASE);
		status = loop(&r);
	}
	line_free(r.line);
	/* What was started takes its time to end, which need not be waited for. */
	interrupt_bear(1);
	interp_close(r.L);
	fcvm_buf_done(&r.chunk);
	return status;
}

static const struct option options[] = {{0}};

const struct verb verb_repl = {
	.name = "repl",
	.operands = "",
	.summary = "Lua at a prompt, with fcvm loaded",
	.help = "Expressions show their value, help(x) the documentation of x, Tab completes\n"
		"names, fields and methods. Ctrl-C stops what runs, or drops what is typed;\n"
		"Ctrl-D leaves, and ends what was started; so does Ctrl-\\, at once. Without a\n"
		"terminal it reads and runs lines, and exits with 1 if one of them failed.",
	.options = options,
	.run = run,
};
