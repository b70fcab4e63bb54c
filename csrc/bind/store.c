/* SPDX-License-Identifier: MIT */
/*
 * fcvm.core: what there is. The reports come as JSON text, as fcvm.h gives them; lua/fcvm/json.lua
 * makes tables of them.
 */
#include <stdlib.h>
#include <string.h>

#include "bind/private.h"

struct report_call {
	struct fcvm_call call;
	const char *name; /* kept; NULL: none */
	int64_t seconds;
	int (*report)(char **ret, struct fcvm_err *err);
	char *text; /* owned */
	size_t size;
};

static int text_push(lua_State *L, struct fcvm_call *call)
{
	struct report_call *c = (struct report_call *)call;

	lua_pushlstring(L, c->text ? c->text : "", c->text ? c->size : 0);
	return 1;
}

static void text_drop(struct fcvm_call *call)
{
	struct report_call *c = (struct report_call *)call;

	free(c->text);
	c->text = NULL;
}

/* What a function returned, and its length if all went well. */
static int measured(struct report_call *c, int r)
{
	if (r >= 0 && c->text)
		c->size = strlen(c->text);
	return r;
}

/* (name): of a call that takes a name. */
static int call_named(lua_State *L, const struct fcvm_call_type *type)
{
	const char *name = luaL_checkstring(L, 1);
	struct report_call *c = fcvm_call_new(L, type, sizeof *c);

	c->name = name;
	return fcvm_call_run(L, &c->call);
}

/* ---- reports without arguments ---- */

static int report_run(struct fcvm_job *job)
{
	struct report_call *c = (struct report_call *)job;

	return measured(c, c->report(&c->text, &job->err));
}

static int report(lua_State *L, const struct fcvm_call_type *type,
	int (*function)(char **ret, struct fcvm_err *err))
{
	struct report_call *c = fcvm_call_new(L, type, sizeof *c);

	c->report = function;
	return fcvm_call_run(L, &c->call);
}

static const struct fcvm_call_type list_type = {"list", report_run, text_push, text_drop};
static const struct fcvm_call_type snapshots_type = {"snapshots", report_run, text_push, text_drop};
static const struct fcvm_call_type images_type = {"images", report_run, text_push, text_drop};
static const struct fcvm_call_type doctor_type = {"doctor", report_run, text_push, text_drop};

static int list_vms(lua_State *L)
{
	return report(L, &list_type, fcvm_list_vms);
}

static int list_snapshots(lua_State *L)
{
	return report(L, &snapshots_type, fcvm_list_snapshots);
}

static int list_images(lua_State *L)
{
	return report(L, &images_type, fcvm_list_images);
}

static int doctor(lua_State *L)
{
	return report(L, &doctor_type, fcvm_doctor);
}

/* ---- by name ---- */

static int inspect_run(struct fcvm_job *job)
{
	struct report_call *c = (struct report_call *)job;

	return measured(c, fcvm_inspect_snapshot(c->name, &c->text, &job->err));
}

static const struct fcvm_call_type inspect_type = {"inspect", inspect_run, text_push, text_drop};

static int inspect_snapshot(lua_State *L)
{
	return call_named(L, &inspect_type);
}

static int remove_snapshot_run(struct fcvm_job *job)
{
	return fcvm_remove_snapshot(((struct report_call *)job)->name, &job->err);
}

static const struct fcvm_call_type remove_snapshot_type = {"remove_snapshot", remove_snapshot_run};

static int remove_snapshot(lua_State *L)
{
	return call_named(L, &remove_snapshot_type);
}

static int build_image_run(struct fcvm_job *job)
{
	struct report_call *c = (struct report_call *)job;

	return measured(c, fcvm_build_image(c->name, &c->text, &job->err));
}

static const struct fcvm_call_type build_image_type = {
	"build_image", build_image_run, text_push, text_drop};

static int build_image(lua_State *L)
{
	return call_named(L, &build_image_type);
}

static int remove_image_run(struct fcvm_job *job)
{
	return fcvm_remove_image(((struct report_call *)job)->name, &job->err);
}

static const struct fcvm_call_type remove_image_type = {"remove_image", remove_image_run};

static int remove_image(lua_State *L)
{
	return call_named(L, &remove_image_type);
}

static int kill_run(struct fcvm_job *job)
{
	return fcvm_kill_vm(((struct report_call *)job)->name, &job->err);
}

static const struct fcvm_call_type kill_type = {"kill", kill_run};

static int kill_vm(lua_State *L)
{
	return call_named(L, &kill_type);
}

static int log_run(struct fcvm_job *job)
{
	struct report_call *c = (struct report_call *)job;

	return fcvm_vm_log(c->name, &c->text, &c->size, &job->err);
}

static const struct fcvm_call_type log_type = {"log", log_run, text_push, text_drop};

static int vm_log(lua_State *L)
{
	return call_named(L, &log_type);
}

/* ---- tidying ---- */

static int gc_run(struct fcvm_job *job)
{
	struct report_call *c = (struct report_call *)job;

	return measured(c, fcvm_gc(c->seconds, &c->text, &job->err));
}

static const struct fcvm_call_type gc_type = {"gc", gc_run, text_push, text_drop};

/* gc(seconds or nil) */
static int gc(lua_State *L)
{
	lua_Integer seconds = luaL_optinteger(L, 1, -1);
	struct report_call *c = fcvm_call_new(L, &gc_type, sizeof *c);

	c->seconds = seconds;
	return fcvm_call_run(L, &c->call);
}

static int version(lua_State *L)
{
	lua_pushstring(L, fcvm_version());
	return 1;
}

static const luaL_Reg functions[] = {
	{"list_vms", list_vms},
	{"list_snapshots", list_snapshots},
	{"list_images", list_images},
	{"doctor", doctor},
	{"inspect_snapshot", inspect_snapshot},
	{"remove_snapshot", remove_snapshot},
	{"build_image", build_image},
	{"remove_image", remove_image},
	{"kill_vm", kill_vm},
	{"vm_log", vm_log},
	{"gc", gc},
	{"version", version},
	{NULL, NULL},
};

void fcvm_bind_open_store(lua_State *L)
{
	luaL_setfuncs(L, functions, 0);
}
