/* SPDX-License-Identifier: MIT */
#include "host/complete.h"

#include <ctype.h>
#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

enum { DEEPEST = 8 };

static const char *const keywords[] = {"and", "break", "do", "else", "elseif", "end", "false",
	"for", "function", "goto", "if", "in", "local", "nil", "not", "or", "repeat", "return",
	"then", "true", "until", "while"};

static bool is_name_char(char c)
{
	return isalnum((unsigned char)c) || c == '_';
}

/* Inside a string or a comment there is nothing to complete. */
static bool in_text(const char *text, size_t size)
{
	char quote = 0;

	for (size_t i = 0; i < size; i++) {
		if (quote && text[i] == '\\')
			i++;
		else if (quote)
			quote = text[i] == quote ? 0 : quote;
		else if (text[i] == '"' || text[i] == '\'')
			quote = text[i];
		else if (text[i] == '-' && i + 1 < size && text[i + 1] == '-')
			return true;
	}
	return quote != 0;
}

/* Where the chain of names, as in `vms[1].info.na`, that ends at the cursor begins. */
static size_t chain_start(const char *text, size_t size)
{
	size_t i = size;

	while (i > 0) {
		char c = text[i - 1];

		if (is_name_char(c) || c == '.' || c == ':') {
			i--;
		} else if (c == ']') {
			while (i > 0 && text[i - 1] != '[')
				i--;
			if (i > 0)
				i--;
		} else {
			break;
		}
	}
	return i;
}

/* ---- looking into values ---- */

/* Is the value on top fcvm's own? Then its __index may be called: it neither blocks nor changes
 * anything. */
static bool is_ours(lua_State *L)
{
	bool ours = false;

	if (luaL_getmetafield(L, -1, "__name") != LUA_TNIL) {
		const char *name = lua_tostring(L, -1);

		ours = name && strncmp(name, "fcvm", 4) == 0;
		lua_pop(L, 1);
	}
	return ours;
}

/* Replaces the value on top by value[key], key being above it (popped). Never runs code of the
 * user's. */
static void step_into(lua_State *L)
{
	for (int depth = 0; depth < DEEPEST; depth++) {
		/* value, key */
		if (lua_istable(L, -2)) {
			lua_pushvalue(L, -1);
			lua_rawget(L, -3);
			if (!lua_isnil(L, -1))
				break;
			lua_pop(L, 1);
		}
		if (luaL_getmetafield(L, -2, "__index") == LUA_TNIL) {
			lua_pushnil(L);
			break;
		}
		if (lua_istable(L, -1)) {
			lua_replace(L, -3);
			continue;
		}
		lua_pop(L, 1);
		lua_pushvalue(L, -2);
		if (is_ours(L)) {
			lua_pushvalue(L, -2);
			lua_gettable(L, -2);
			lua_remove(L, -2);
		} else {
			lua_pop(L, 1);
			lua_pushnil(L);
		}
		break;
	}
	/* value, key, result */
	lua_replace(L, -3);
	lua_pop(L, 1);
}

struct wanted {
	const char *prefix;
	size_t size;
	bool methods; /* after a colon */
	struct line_completions *ret;
};

static void add(struct wanted *w, const char *name)
{
	char **grown;

	if (strncmp(name, w->prefix, w->size) != 0 || (*name == '_' && w->prefix[0] != '_'))
		return;
	grown = realloc(w->ret->names, (w->ret->count + 1) * sizeof *grown);
	if (!grown)
		return;
	w->ret->names = grown;
	grown[w->ret->count] = strdup(name);
	if (grown[w->ret->count])
		w->ret->count++;
}

static bool is_name(const char *text)
{
	if (!*text || isdigit((unsigned char)*text))
		return false;
	while (is_name_char(*text))
		text++;
	return !*text;
}

/* The names in the table on top. */
static void add_keys(lua_State *L, struct wanted *w)
{
	for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1))
		if (lua_type(L, -2) == LUA_TSTRING && is_name(lua_tostring(L, -2)) &&
			(!w->methods || lua_isfunction(L, -1)))
			add(w, lua_tostring(L, -2));
}

/* The names in the value on top, and in what its metatables' __index say. Pops it. */
static void add_names(lua_State *L, struct wanted *w)
{
	for (int depth = 0; depth < DEEPEST; depth++) {
		if (lua_istable(L, -1))
			add_keys(L, w);
		/* A handle's fields come from a function, which a list of them stands beside. */
		if (luaL_getmetafield(L, -1, "__fields") == LUA_TTABLE && !w->methods)
			add_keys(L, w);
		lua_settop(L, 2);
		if (luaL_getmetafield(L, -1, "__methods") != LUA_TTABLE) {
			lua_settop(L, 2);
			if (luaL_getmetafield(L, -1, "__index") != LUA_TTABLE)
				break;
		}
		lua_replace(L, 2);
	}
	lua_settop(L, 1);
}

/* ---- */

/* Pushes the key of `[12]`, `["x"]` or `['x']` at *at, which is moved past it. */
static bool push_bracket(lua_State *L, const char *text, size_t size, size_t *at)
{
	const char *end = memchr(text + *at, ']', size - *at);
	const char *inside = text + *at + 1;
	size_t n = end ? (size_t)(end - inside) : 0;

	if (n == 0)
		return false;
	if (n >= 2 && (*inside == '"' || *inside == '\'') && inside[n - 1] == *inside)
		lua_pushlstring(L, inside + 1, n - 2);
	else if (n < 16 && strspn(inside, "0123456789") == n)
		lua_pushinteger(L, strtoll(inside, NULL, 10));
	else
		return false;
	*at += n + 2;
	return true;
}

/* With the value that the chain text[0..size) stands for on top of the stack; false: not such a
 * chain. `name` is where the name that is to be completed begins. */
static bool resolve(lua_State *L, const char *text, size_t size, size_t name)
{
	size_t at = 0;

	lua_pushglobaltable(L);
	while (at < name) {
		size_t n = 0;

		if (text[at] == '[') {
			if (at == 0 || !push_bracket(L, text, name, &at))
				return false;
			step_into(L);
			continue;
		}
		if (at > 0) {
			if (text[at] != '.' && text[at] != ':')
				return false;
			if (++at == name)
				return true;
		}
		while (at + n < name && is_name_char(text[at + n]))
			n++;
		if (n == 0)
			return false;
		lua_pushlstring(L, text + at, n);
		step_into(L);
		at += n;
	}
	return name == 0;
}

struct question {
	const char *text;
	size_t size;
	struct line_completions *ret;
};

static int answer(lua_State *L)
{
	const struct question *q = lua_touserdata(L, 1);
	size_t start = chain_start(q->text, q->size);
	const char *chain = q->text + start;
	size_t size = q->size - start, name = size;
	struct wanted w = {.ret = q->ret};

	while (name > 0 && is_name_char(chain[name - 1]))
		name--;
	q->ret->word = size - name;
	w.prefix = chain + name;
	w.size = size - name;
	w.methods = name > 0 && chain[name - 1] == ':';
	if (!resolve(L, chain, size, name) || (name == 0 && w.size == 0))
		return 0;
	lua_settop(L, 2);
	add_names(L, &w);
	for (size_t i = 0; name == 0 && i < sizeof keywords / sizeof *keywords; i++)
		add(&w, keywords[i]);
	return 0;
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

void complete_names(lua_State *L, const char *text, size_t size, struct line_completions *ret)
{
	struct question q = {.text = text, .size = size, .ret = ret};
	size_t kept = 0;

	*ret = (struct line_completions){0};
	if (in_text(text, size) || !lua_checkstack(L, 8))
		return;
	lua_pushcfunction(L, answer);
	lua_pushlightuserdata(L, &q);
	if (lua_pcall(L, 1, 0, 0) != LUA_OK)
		lua_pop(L, 1);
	if (ret->count)
		qsort(ret->names, ret->count, sizeof *ret->names, by_text);
	for (size_t i = 0; i < ret->count; i++) {
		if (kept && strcmp(ret->names[kept - 1], ret->names[i]) == 0)
			free(ret->names[i]);
		else
			ret->names[kept++] = ret->names[i];
	}
	ret->count = kept;
}
