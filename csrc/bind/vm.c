/* SPDX-License-Identifier: MIT */
/* fcvm.core: virtual machines. Timeouts are seconds. */
#include <stdlib.h>
#include <string.h>

#include "bind/private.h"

struct vm_call {
	struct fcvm_call call;
	struct fcvm_vm *vm;
	int64_t timeout_ms;
	int status;
	int64_t ns;
	uint64_t bytes;
	char *text; /* owned */
	void *made; /* owned: a VM */
	const char *id;
};

static struct vm_call *call_on_vm(lua_State *L, const struct fcvm_call_type *type)
{
	struct vm_call *c = fcvm_call_on(L, type, sizeof *c, &fcvm_handle_vm);

	c->vm = c->call.handle->object;
	return c;
}

static int run_timed(lua_State *L, const struct fcvm_call_type *type)
{
	struct vm_call *c = call_on_vm(L, type);

	c->timeout_ms = fcvm_args_timeout(L, 2);
	return fcvm_call_run(L, &c->call);
}

/* ---- made ---- */

/* Never run: fcvm_vm_new() waits for nothing but the folders of its volumes, which volume_host() has just looked at. It keeps
 * the strings alive. */
static const struct fcvm_call_type new_type = {.op = "vm"};

/* vm_new{name, image, memory, vcpus, driver, accel, cmdline, cold, node, nested, balloon, jail, volumes, root}: a VM, not
 * started. */
static int vm_new(lua_State *L)
{
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	struct fcvm_err err = FCVM_ERR_INIT;
	struct fcvm_handle *h;
	struct fcvm_call *call;
	const char *image;
	struct fcvm_vm *vm;
	int r;

	luaL_checktype(L, 1, LUA_TTABLE);
	lua_settop(L, 1);
	call = fcvm_call_new(L, &new_type, sizeof *call);
	config.name = fcvm_args_string(L, 1, "name", call);
	image = fcvm_args_string(L, 1, "image", call);
	if (image)
		config.image = image;
	config.memory = (uint64_t)fcvm_args_integer(L, 1, "memory", (lua_Integer)config.memory);
	config.vcpus = (unsigned)fcvm_args_integer(L, 1, "vcpus", config.vcpus);
	config.driver = fcvm_args_string(L, 1, "driver", call);
	config.accel = fcvm_args_string(L, 1, "accel", call);
	config.cmdline = fcvm_args_string(L, 1, "cmdline", call);
	config.cold = fcvm_args_boolean(L, 1, "cold");
	config.nested = fcvm_args_boolean(L, 1, "nested");
	config.balloon = fcvm_args_boolean(L, 1, "balloon");
	config.jail = fcvm_args_boolean(L, 1, "jail");
	config.volumes = fcvm_args_volumes(L, 1, "volumes", call, &config.nvolumes);
	config.root = fcvm_args_string(L, 1, "root", call);
	if (lua_getfield(L, 1, "node") != LUA_TNIL)
		config.node = fcvm_handle_check(L, lua_gettop(L), &fcvm_handle_vm)->object;
	lua_pop(L, 1);
	h = fcvm_handle_new(L, &fcvm_handle_vm);
	r = fcvm_vm_new(&vm, &config, &err);
	if (r < 0)
		return fcvm_error_push(L, "vm", r, &err);
	h->object = vm;
	return 1;
}

static int attach_run(struct fcvm_job *job)
{
	struct vm_call *c = (struct vm_call *)job;
	struct fcvm_vm *vm = NULL;
	int r = fcvm_vm_attach(&vm, c->id, &job->err);

	c->made = vm;
	return r;
}

static int push_made(lua_State *L, struct fcvm_call *call)
{
	return fcvm_call_push_handle(L, call, &((struct vm_call *)call)->made);
}

static void drop_made(struct fcvm_call *call)
{
	struct vm_call *c = (struct vm_call *)call;

	fcvm_vm_free(c->made);
	c->made = NULL;
}

static const struct fcvm_call_type attach_type = {"attach", attach_run, push_made, drop_made};

/* vm_attach(id or name) */
static int vm_attach(lua_State *L)
{
	struct vm_call *c;
	const char *id = luaL_checkstring(L, 1);

	c = fcvm_call_new(L, &attach_type, sizeof *c);
	c->id = id;
	fcvm_call_makes(L, &c->call, &fcvm_handle_vm);
	return fcvm_call_run(L, &c->call);
}

/* ---- its life ---- */

static int start_run(struct fcvm_job *job)
{
	struct vm_call *c = (struct vm_call *)job;

	return fcvm_vm_start(c->vm, c->timeout_ms, &job->err);
}

static const struct fcvm_call_type start_type = {"start", start_run};

static int vm_start(lua_State *L)
{
	return run_timed(L, &start_type);
}

static int pause_run(struct fcvm_job *job)
{
	return fcvm_vm_pause(((struct vm_call *)job)->vm, &job->err);
}

static const struct fcvm_call_type pause_type = {"pause", pause_run};

static int vm_pause(lua_State *L)
{
	return fcvm_call_run(L, &call_on_vm(L, &pause_type)->call);
}

static int resume_run(struct fcvm_job *job)
{
	return fcvm_vm_resume(((struct vm_call *)job)->vm, &job->err);
}

static const struct fcvm_call_type resume_type = {"resume", resume_run};

static int vm_resume(lua_State *L)
{
	return fcvm_call_run(L, &call_on_vm(L, &resume_type)->call);
}

static int stop_run(struct fcvm_job *job)
{
	struct vm_call *c = (struct vm_call *)job;

	return fcvm_vm_stop(c->vm, c->timeout_ms, &job->err);
}

static const struct fcvm_call_type stop_type = {"stop", stop_run};

static int vm_stop(lua_State *L)
{
	return run_timed(L, &stop_type);
}

/* Does not block, so that a list of clones can be killed from a finalizer as well. */
static int vm_kill(lua_State *L)
{
	struct fcvm_handle *h = fcvm_handle_check(L, 1, &fcvm_handle_vm);
	struct fcvm_err err = FCVM_ERR_INIT;
	int r = fcvm_vm_kill(h->object, &err);

	if (r < 0)
		return fcvm_error_push(L, "kill", r, &err);
	lua_pushboolean(L, true);
	return 1;
}

static int wait_run(struct fcvm_job *job)
{
	struct vm_call *c = (struct vm_call *)job;

	return fcvm_vm_wait(c->vm, c->timeout_ms, &c->status, &job->err);
}

static int wait_push(lua_State *L, struct fcvm_call *call)
{
	lua_pushinteger(L, ((struct vm_call *)call)->status);
	return 1;
}

static const struct fcvm_call_type wait_type = {"wait", wait_run, wait_push};

/* vm_wait(vm, timeout): 0, exit status, or 0x100 + signal */
static int vm_wait(lua_State *L)
{
	return run_timed(L, &wait_type);
}

static int balloon_run(struct fcvm_job *job)
{
	struct vm_call *c = (struct vm_call *)job;

	return fcvm_vm_balloon(c->vm, c->bytes, c->timeout_ms, &job->err);
}

static const struct fcvm_call_type balloon_type = {"balloon", balloon_run};

/* vm_balloon(vm, bytes, timeout) */
static int vm_balloon(lua_State *L)
{
	struct vm_call *c = call_on_vm(L, &balloon_type);

	c->bytes = (uint64_t)luaL_checkinteger(L, 2);
	c->timeout_ms = fcvm_args_timeout(L, 3);
	return fcvm_call_run(L, &c->call);
}

static int metrics_run(struct fcvm_job *job)
{
	struct vm_call *c = (struct vm_call *)job;

	return fcvm_vm_metrics(c->vm, c->timeout_ms, &c->text, &job->err);
}

static int metrics_push(lua_State *L, struct fcvm_call *call)
{
	lua_pushstring(L, ((struct vm_call *)call)->text);
	return 1;
}

static void metrics_drop(struct fcvm_call *call)
{
	struct vm_call *c = (struct vm_call *)call;

	free(c->text);
	c->text = NULL;
}

static const struct fcvm_call_type metrics_type = {"metrics", metrics_run, metrics_push, metrics_drop};

/* vm_metrics(vm, timeout): JSON text */
static int vm_metrics(lua_State *L)
{
	return run_timed(L, &metrics_type);
}

static int ping_run(struct fcvm_job *job)
{
	struct vm_call *c = (struct vm_call *)job;

	return fcvm_vm_ping(c->vm, c->timeout_ms, &c->ns, &job->err);
}

static int ping_push(lua_State *L, struct fcvm_call *call)
{
	lua_pushnumber(L, (lua_Number)((struct vm_call *)call)->ns / 1e9);
	return 1;
}

static const struct fcvm_call_type ping_type = {"ping", ping_run, ping_push};

/* vm_ping(vm, timeout): seconds */
static int vm_ping(lua_State *L)
{
	return run_timed(L, &ping_type);
}

/* ---- what is known about it ---- */

static void set_string(lua_State *L, const char *field, const char *value)
{
	lua_pushstring(L, value ? value : "");
	lua_setfield(L, -2, field);
}

static void set_integer(lua_State *L, const char *field, lua_Integer value)
{
	lua_pushinteger(L, value);
	lua_setfield(L, -2, field);
}

static void set_boolean(lua_State *L, const char *field, bool value)
{
	lua_pushboolean(L, value);
	lua_setfield(L, -2, field);
}

static const char *state_name(enum fcvm_vm_state state)
{
	switch (state) {
	case FCVM_VM_NEW:
		return "new";
	case FCVM_VM_STARTING:
		return "starting";
	case FCVM_VM_RUNNING:
		return "running";
	case FCVM_VM_PAUSED:
		return "paused";
	case FCVM_VM_ENDED:
		return "ended";
	}
	return "unknown";
}

/* vm_info(vm): a table */
static int vm_info(lua_State *L)
{
	struct fcvm_handle *h = fcvm_handle_check(L, 1, &fcvm_handle_vm);
	struct fcvm_vm_info info = {.pid = 0};

	fcvm_vm_get_info(h->object, &info);
	lua_createtable(L, 0, 16);
	set_string(L, "id", info.id);
	set_string(L, "name", info.name);
	set_string(L, "image", info.image);
	set_string(L, "driver", info.driver);
	set_string(L, "accel", info.accel);
	set_string(L, "dir", info.dir);
	set_string(L, "node", info.node ? info.node : "");
	set_string(L, "state", state_name(info.state));
	set_integer(L, "memory", (lua_Integer)info.memory);
	set_integer(L, "vcpus", info.vcpus);
	set_integer(L, "pid", info.pid);
	set_integer(L, "generation", (lua_Integer)info.generation);
	lua_pushnumber(L, (lua_Number)info.uptime_ms / 1e3);
	lua_setfield(L, -2, "uptime");
	lua_pushnumber(L, info.start_ms);
	lua_setfield(L, -2, "start_ms");
	set_boolean(L, "warm", info.warm);
	set_boolean(L, "attached", info.attached);
	return 1;
}

/* vm_console(vm, max): text */
static int vm_console(lua_State *L)
{
	struct fcvm_handle *h = fcvm_handle_check(L, 1, &fcvm_handle_vm);
	lua_Integer max = luaL_optinteger(L, 2, 64 * 1024);
	luaL_Buffer b;
	char *to;

	luaL_argcheck(L, max >= 0 && max <= 1 << 26, 2, "from 0 to 64 MiB");
	to = luaL_buffinitsize(L, &b, (size_t)max + 1);
	luaL_pushresultsize(&b, fcvm_vm_console(h->object, to, (size_t)max + 1));
	return 1;
}

static const luaL_Reg functions[] = {
	{"vm_new", vm_new},
	{"vm_attach", vm_attach},
	{"vm_start", vm_start},
	{"vm_pause", vm_pause},
	{"vm_resume", vm_resume},
	{"vm_stop", vm_stop},
	{"vm_kill", vm_kill},
	{"vm_wait", vm_wait},
	{"vm_balloon", vm_balloon},
	{"vm_metrics", vm_metrics},
	{"vm_ping", vm_ping},
	{"vm_info", vm_info},
	{"vm_console", vm_console},
	{NULL, NULL},
};

void fcvm_bind_open_vm(lua_State *L)
{
	luaL_setfuncs(L, functions, 0);
}
