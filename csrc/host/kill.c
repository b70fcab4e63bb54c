/* SPDX-License-Identifier: MIT */
/* fcvm kill: ends VMs of other processes. */
#include <errno.h>
#include <string.h>

#include "base/json.h"
#include "fcvm.h"
#include "host/verb.h"

static int kill_all(void)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *rows = NULL;
	_cleanup_free_ char *json = NULL;
	int status = 0;

	if (fcvm_list_vms(&json, &err) < 0 || fcvm_json_parse(json, strlen(json), &rows, &err) < 0)
		return failed(&err);
	for (size_t i = 0; i < fcvm_json_count(rows); i++) {
		const char *id = fcvm_json_string(fcvm_json_at(rows, i), "id", "");
		int r = fcvm_kill_vm(id, &err);

		/* What has ended meanwhile is as it was to be. */
		if (r < 0 && r != -ENOENT)
			status = failed(&err);
	}
	return status;
}

static int run(const struct args *args)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	int status = 0;

	if (args_has(args, "all") && args->count)
		return misuse("kill: --all or names, not both");
	if (args_has(args, "all"))
		return kill_all();
	if (args->count == 0)
		return misuse("kill: which one? usage: fcvm kill ID... or fcvm kill --all");
	for (int i = 0; i < args->count; i++)
		if (fcvm_kill_vm(args->operands[i], &err) < 0)
			status = failed(&err);
	return status;
}

static const struct option options[] = {
	{'a', "all", NULL, "every VM of this user"},
	{0},
};

const struct verb verb_kill = {
	.name = "kill",
	.operands = "ID...",
	.summary = "End running VMs at once",
	.help = "ID is an id or a name that fcvm ls shows. The guest is not asked: it is as if\n"
		"its power failed.",
	.options = options,
	.max = -1,
	.run = run,
};
