/* SPDX-License-Identifier: MIT */
/* fcvm snapshot ls|inspect|rm: the named ones. */
#include <stdio.h>
#include <string.h>

#include "fcvm.h"
#include "host/table.h"

static int list(const struct args *args)
{
	static const struct column columns[] = {
		{"NAME", "name", COLUMN_TEXT},
		{"AGE", "created", COLUMN_AGE},
		{"OF", "vm_name", COLUMN_TEXT},
		{"IMAGE", "image", COLUMN_TEXT},
		{"DRIVER", "driver", COLUMN_TEXT},
		{"ACCEL", "accel", COLUMN_TEXT},
		{"MEMORY", "memory", COLUMN_BYTES},
		{"ON DISK", "bytes", COLUMN_BYTES},
		{0},
	};
	struct fcvm_err err = FCVM_ERR_INIT;
	char *json = NULL;
	int r = fcvm_list_snapshots(&json, &err);

	return r < 0 ? failed(&err)
		     : listing_print(args, json, columns, "name", "no snapshot is kept");
}

static int inspect(const struct args *args)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	char *json = NULL;

	if (fcvm_inspect_snapshot(args->operands[0], &json, &err) < 0)
		return failed(&err);
	/* A manifest has no other form than JSON; for people it is indented. */
	if (!args_has(args, "json") && fcvm_json_parse(json, strlen(json), &j, NULL) == 0) {
		char *indented = fcvm_json_print(j, 2);

		if (indented) {
			free(json);
			json = indented;
		}
	}
	json_print_and_free(json);
	return 0;
}

static int rm(const struct args *args)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	int status = 0;

	for (int i = 0; i < args->count; i++)
		if (fcvm_remove_snapshot(args->operands[i], &err) < 0)
			status = failed(&err);
	return status;
}

static const struct option list_options[] = {LISTING_OPTIONS, {0}};
static const struct option inspect_options[] = {{0, "json", NULL, "as it is, not indented"}, {0}};
static const struct option rm_options[] = {{0}};

const struct verb verb_snapshot_ls = {
	.name = "snapshot ls",
	.operands = "",
	.summary = "List the snapshots that are kept",
	.help = "A script keeps one by giving it a name: vm:snapshot { name = \"ready\" }.",
	.options = list_options,
	.run = list,
};

const struct verb verb_snapshot_inspect = {
	.name = "snapshot inspect",
	.operands = "NAME",
	.summary = "Print what is known of a snapshot",
	.options = inspect_options,
	.min = 1,
	.max = 1,
	.run = inspect,
};

const struct verb verb_snapshot_rm = {
	.name = "snapshot rm",
	.operands = "NAME...",
	.summary = "Remove snapshots",
	.help = "Clones of it that run are not disturbed.",
	.options = rm_options,
	.min = 1,
	.max = -1,
	.run = rm,
};
