/* SPDX-License-Identifier: MIT */
/* fcvm gc: removes what nobody needs any more. */
#include <stdio.h>
#include <string.h>

#include "fcvm.h"
#include "host/progress.h"
#include "host/table.h"

static int report(char *json)
{
	static const struct column columns[] = {
		{"REMOVED", "what", COLUMN_TEXT},
		{"SIZE", "bytes", COLUMN_BYTES},
		{"PATH", "path", COLUMN_TEXT},
		{0},
	};
	struct fcvm_err err = FCVM_ERR_INIT;
	_cleanup_free_ char *text = json;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	const struct fcvm_json *removed;
	char buf[32];

	if (fcvm_json_parse(text, strlen(text), &j, &err) < 0)
		return failed(&err);
	removed = fcvm_json_get(j, "removed");
	progress_clear();
	table_print(removed, columns, "nothing to remove");
	if (fcvm_json_count(removed))
		printf("%s in all\n", human_bytes(buf, sizeof buf, fcvm_json_int(j, "bytes", 0)));
	return 0;
}

static int run(const struct args *args)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	long long age_ms = -1;
	char *json = NULL;
	int r = args_ms(args, "older-than", &age_ms);

	if (r)
		return r;
	if (fcvm_gc(age_ms < 0 ? -1 : age_ms / 1000, &json, &err) < 0)
		return failed(&err);
	if (!args_has(args, "json"))
		return report(json);
	json_print_and_free(json);
	return 0;
}

static const struct option options[] = {
	{0, "older-than", "AGE",
		"drop warm-start snapshots unused for so long: 0, 12h, 3d (two weeks)"},
	{0, "json", NULL, "print the report as JSON"},
	{0},
};

const struct verb verb_gc = {
	.name = "gc",
	.operands = "",
	.summary = "Remove leftovers of programs that were killed, and old warm-start snapshots",
	.help = "What runs, images in use and named snapshots are not touched.",
	.options = options,
	.run = run,
};
