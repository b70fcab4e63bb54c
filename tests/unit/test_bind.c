/* SPDX-License-Identifier: MIT */
/* The Lua binding under allocation failure, interrupts, and lua_close at a bad moment. Needs no VM.
 */
#include <dirent.h>
#include <lauxlib.h>
#include <lualib.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/until.h"
#include "bind/bind.h"
#include "check.h"

/* ---- a state with an allocator that can be made to fail ---- */

struct memory {
	long left; /* allocations that still succeed; < 0: all */
};

static void *allocate(void *data, void *p, size_t old, size_t size)
{
	struct memory *m = data;

	(void)old;
	if (size == 0) {
		free(p);
		return NULL;
	}
	/* what shrinks must not fail */
	if (m->left >= 0 && !(p && size <= old)) {
		if (m->left == 0)
			return NULL;
		m->left--;
	}
	return realloc(p, size);
}

static int set_up(lua_State *L)
{
	luaL_openlibs(L);
	fcvm_bind_preload(L);
	lua_getglobal(L, "package");
	lua_pushstring(L, __FILE__);
	/* the source tree's lua/, from where this file is */
	luaL_gsub(L, lua_tostring(L, -1), "tests/unit/test_bind.c", "lua/");
	lua_pushfstring(L, "%s?.lua;%s?/init.lua", lua_tostring(L, -1), lua_tostring(L, -1));
	lua_setfield(L, -4, "path");
	lua_settop(L, 0);
	if (luaL_loadstring(L, "fcvm, core = require 'fcvm', require 'fcvm.core'") != LUA_OK)
		return lua_error(L);
	lua_call(L, 0, 0);
	return 0;
}

static lua_State *new_state(struct memory *m)
{
	lua_State *L;

	m->left = -1;
	L = lua_newstate(allocate, m);
	if (!L)
		abort();
	lua_pushcfunction(L, set_up);
	if (lua_pcall(L, 0, 0, 0) != LUA_OK) {
		fprintf(stderr, "%s\n", lua_tostring(L, -1));
		exit(1);
	}
	return L;
}

/* Runs code; its error, or NULL. Valid until the next call. */
static const char *run(lua_State *L, const char *code)
{
	lua_settop(L, 0);
	if (luaL_loadstring(L, code) == LUA_OK && lua_pcall(L, 0, 0, 0) == LUA_OK)
		return NULL;
	return luaL_tolstring(L, -1, NULL);
}

static int open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* ---- under every allocation limit ---- */

static const char *const operations[] = {
	"local a, b = core.stream_pair() a:close() b:close()",
	"local a, b = core.stream_pair() a:write 'x' assert(b:read() == 'x') a:close() b:close()",
	"local t <close> = fcvm.spawn(function() fcvm.sleep(0) end)",
	"assert(fcvm.spawn(function() fcvm.sleep(0) return 7 end):await() == 7)",
	"fcvm.loop():step(0)",
	"assert(fcvm.parallel({1, 2, 3}, function(x) fcvm.sleep(0) return x end)[3] == 3)",
	"for x, y in fcvm.each({1, 2}, function(x) fcvm.sleep(0) return x end) do assert(x == y) "
	"end",
	"local a, b = core.stream_pair()\n"
	"local t = fcvm.spawn(function() return a:read() end)\n"
	"b:write 'x' assert(t:await() == 'x') a:close() b:close()",
	"local a, b = core.stream_pair()\n"
	"local t = fcvm.spawn(function() return a:read() end)\n"
	"a:close() local x, e = t:await() assert(e.code == 'ECANCELED') b:close()",
	"local a, b = core.stream_pair()\n"
	"local t = fcvm.spawn(function() return a:read() end)\n"
	"t:cancel() assert(not pcall(t.await, t)) a:close() b:close()",
	"local x, e = fcvm.snapshot('there-is-no-such-snapshot') assert(e.code == 'ENOENT' and "
	"#tostring(e) > 0)",
};

static const char usable[] =
	"collectgarbage() collectgarbage()\n"
	"assert(fcvm.parallel({1, 2, 3}, function(x) fcvm.sleep(0) return x end)[2] == 2)\n"
	"local a, b = core.stream_pair()\n"
	"local t = fcvm.spawn(function() return a:read() end)\n"
	"b:write 'x' assert(t:await() == 'x') a:close() b:close()\n"
	"collectgarbage()";

static void one_operation(lua_State *L, struct memory *m, const char *code)
{
	const char *error = "";
	long limit;

	for (limit = 0; error && limit < 5000; limit++) {
		lua_settop(L, 0);
		if (luaL_loadstring(L, code) != LUA_OK)
			break;
		m->left = limit;
		error = lua_pcall(L, 0, 0, 0) == LUA_OK ? NULL : "failed";
		m->left = -1;
		if (error && lua_type(L, -1) != LUA_TSTRING && lua_type(L, -1) != LUA_TTABLE)
			break;
		/* whatever was cut short, the next one works */
		if (run(L, usable) != NULL) {
			fprintf(stderr, "after %ld allocations: %s\n", limit, lua_tostring(L, -1));
			break;
		}
	}
	if (error)
		fprintf(stderr, "%s\n", code);
	CHECK(error == NULL);
}

static void test_memory(void)
{
	int fds = open_fds();
	struct memory m;
	lua_State *L = new_state(&m);

	for (size_t i = 0; i < sizeof operations / sizeof operations[0]; i++)
		one_operation(L, &m, operations[i]);
	lua_close(L);
	CHECK(open_fds() == fds);
}

static int open_core(lua_State *L)
{
	luaopen_fcvm_core(L);
	return 0;
}

/* The module itself, opened anew each time. */
static void test_memory_open(void)
{
	int fds = open_fds();
	struct memory m;
	int r = LUA_ERRMEM;

	for (long limit = 0; r != LUA_OK && limit < 5000; limit++) {
		lua_State *L;

		m.left = -1;
		L = lua_newstate(allocate, &m);
		m.left = limit;
		lua_pushcfunction(L, open_core);
		r = lua_pcall(L, 0, 0, 0);
		m.left = -1;
		lua_close(L);
	}
	CHECK(r == LUA_OK);
	CHECK(open_fds() == fds);
}

/* ---- interrupts ---- */

#ifdef __SANITIZE_THREAD__
#define SANITIZES_THREADS 1
#else
#define SANITIZES_THREADS 0
#endif

static struct fcvm_bind *bound;

static void on_alarm(int signo)
{
	(void)signo;
	fcvm_bind_interrupt(bound, NULL);
}

static const char *const interrupted[] = {
	"fcvm.sleep(100)",
	"while true do end",
	"fcvm.spawn(function() while true do end end)",
	"fcvm.spawn(function() fcvm.sleep(0) while true do end end):await()",
	"fcvm.parallel({1, 2, 3}, fcvm.sleep, {limit = 2}) fcvm.parallel({100, 200}, fcvm.sleep)",
	"local a, b = core.stream_pair() a:read()",
	"local a, b = core.stream_pair() fcvm.parallel({1, 2}, function() a:read() end)",
	"fcvm.spawn(function() table.sort({1, 2, 3}, function() fcvm.sleep(100) end) end):await()",
	/* many tasks that do nothing but switch: the interrupt lands in the scheduler as often as
	   not */
	"fcvm.parallel({1, 2, 3, 4}, function() while true do fcvm.sleep(0) end end)",
	"fcvm.parallel({1, 2, 3, 4}, function() while true do coroutine.yield() end end)",
};

static const char guarded[] =
	"closed = false\n"
	"local guard <close> = setmetatable({}, {__close = function() closed = true end})\n";

static void one_interrupt(lua_State *L, const char *code, int us)
{
	struct itimerval soon = {.it_value = {.tv_usec = us}};
	int64_t start = fcvm_now_ns();
	char whole[1024];
	bool is;

	snprintf(whole, sizeof whole, "%s%s", guarded, code);
	lua_settop(L, 0);
	CHECK(luaL_loadstring(L, whole) == LUA_OK);
	setitimer(ITIMER_REAL, &soon, NULL);
	CHECK(lua_pcall(L, 0, 0, 0) != LUA_OK);
	is = fcvm_bind_is_interrupted(L, -1);
	CHECK(is);
	if (!is)
		fprintf(stderr, "%s: %s\n", code, luaL_tolstring(L, -1, NULL));
	CHECK(fcvm_now_ns() - start < 2000000000);
	CHECK(lua_getglobal(L, "closed") == LUA_TBOOLEAN && lua_toboolean(L, -1));
	fcvm_bind_interrupt_clear(bound);
	is = run(L, usable) == NULL;
	CHECK(is);
	if (!is)
		fprintf(stderr, "after %s: %s\n", code, lua_tostring(L, -1));
}

static int interrupt_now(lua_State *L)
{
	(void)L;
	fcvm_bind_interrupt(bound, NULL);
	return 0;
}

/* One that comes where the scheduler is, just before a task runs that never waits. The alarm is only there to end
 * it, should it not be seen. */
static void between_tasks(lua_State *L)
{
	static const char code[] = "local running, n = core.running, 0\n"
				   "core.running = function(co)\n"
				   "    n = n + 1\n"
				   "    if n == 2 then core.running = running interrupt_now() end\n"
				   "    running(co)\n"
				   "end\n"
				   "fcvm.spawn(function() while true do end end)";
	int64_t start = fcvm_now_ns();

	lua_register(L, "interrupt_now", interrupt_now);
	one_interrupt(L, code, 990000);
	CHECK(fcvm_now_ns() - start < 900000000);
	setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
}

static void test_interrupt(void)
{
	struct sigaction sa = {.sa_handler = on_alarm};
	struct memory m;
	lua_State *L = new_state(&m);

	bound = fcvm_bind_of(L);
	sigaction(SIGALRM, &sa, NULL);
	for (size_t i = 0; i < sizeof interrupted / sizeof interrupted[0]; i++) {
		/* the thread sanitizer delivers signals at system calls only */
		if (SANITIZES_THREADS && strstr(interrupted[i], "while true do end"))
			continue;
		for (int k = 0; k < 10; k++)
			one_interrupt(L, interrupted[i], 3000 + 331 * k);
	}
	between_tasks(L);
	/* one that nobody has seen is forgotten, and hits nothing */
	fcvm_bind_interrupt(bound, NULL);
	fcvm_bind_interrupt_clear(bound);
	CHECK(run(L, "fcvm.sleep(0.001) local x = 0 for i = 1, 1000 do x = x + i end") == NULL);
	bound = NULL;
	lua_close(L);
}

/* ---- the end at a bad moment ---- */

static void test_close(void)
{
	int fds = open_fds();
	struct memory m;
	int64_t start;

	for (int i = 0; i < 20; i++) {
		lua_State *L = new_state(&m);

		CHECK(run(L, "pairs_ = {}\n"
			     "for i = 1, 10 do\n"
			     "  local a, b = core.stream_pair()\n"
			     "  pairs_[i] = b\n"
			     "  fcvm.spawn(function() a:read() end)\n"
			     "  fcvm.spawn(function() fcvm.sleep(100) end)\n"
			     "  if i % 2 == 0 then b:write 'x' end\n"
			     "end") == NULL);
		start = fcvm_now_ns();
		lua_close(L);
		CHECK(fcvm_now_ns() - start < 2000000000);
	}
	CHECK(open_fds() == fds);
}

static const char many[] = "local list = {}\n"
			   "for i = 1, 300 do list[i] = i end\n"
			   "fcvm.parallel(list, function(i)\n"
			   "  local a, b = core.stream_pair()\n"
			   "  local reader <close> = fcvm.spawn(function() return a:read() end)\n"
			   "  if i % 3 == 0 then a:close()\n"
			   "  elseif i % 3 == 1 then b:write 'x' assert(reader:await() == 'x')\n"
			   "  else fcvm.sleep(0.001) reader:cancel() end\n"
			   "  pcall(reader.await, reader) a:close() b:close()\n"
			   "end)";

static void *one_thread(void *arg)
{
	struct memory m;
	lua_State *L = new_state(&m);
	const char *error = run(L, many);

	(void)arg;
	if (error)
		fprintf(stderr, "%s\n", error);
	lua_close(L);
	return (void *)error;
}

/* Two states in one process share nothing. */
static void test_threads(void)
{
	int fds = open_fds();
	pthread_t t[2];
	void *failed;

	for (int i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, one_thread, NULL);
	for (int i = 0; i < 2; i++) {
		pthread_join(t[i], &failed);
		CHECK(!failed);
	}
	CHECK(open_fds() == fds);
}

int main(void)
{
	/* a call that never returns is the failure to be feared here */
	signal(SIGPIPE, SIG_IGN);
	test_close();
	test_threads();
	test_interrupt();
	test_memory_open();
	test_memory();
	CHECK_DONE();
}
