/* SPDX-License-Identifier: MIT */
/* fcvm ls: what runs. */
#include "fcvm.h"
#include "host/table.h"

static int run(const struct args *args)
{
	static const struct column columns[] = {
		{"ID", "id", COLUMN_TEXT},
		{"NAME", "name", COLUMN_TEXT},
		{"STATE", "state", COLUMN_TEXT},
		{"IMAGE", "image", COLUMN_TEXT},
		{"DRIVER", "driver", COLUMN_TEXT},
		{"ACCEL", "accel", COLUMN_TEXT},
		{"MEMORY", "memory", COLUMN_BYTES},
		{"VCPUS", "vcpus", COLUMN_COUNT},
		{"NODE", "node", COLUMN_TEXT},
		{"UP", "uptime", COLUMN_TIME},
		{"PID", "pid", COLUMN_COUNT},
		{0},
	};
	struct fcvm_err err = FCVM_ERR_INIT;
	char *json = NULL;
	int r = fcvm_list_vms(&json, &err);

	return r < 0 ? failed(&err) : listing_print(args, json, columns, "name", "no VM runs");
}

static const struct option options[] = {LISTING_OPTIONS, {0}};

const struct verb verb_ls = {
	.name = "ls",
	.operands = "",
	.summary = "List the running VMs",
	.help = "All of this user's, whichever process owns them. They end with that process.",
	.options = options,
	.run = run,
};
