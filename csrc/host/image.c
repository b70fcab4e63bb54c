/* SPDX-License-Identifier: MIT */
/* fcvm image ls|build|rm. */
#include <stdio.h>
#include <string.h>

#include "fcvm.h"
#include "host/progress.h"
#include "host/table.h"

static int list(const struct args *args)
{
	static const struct column columns[] = {
		{"NAME", "name", COLUMN_TEXT},
		{"AGE", "created", COLUMN_AGE},
		{"KEY", "key", COLUMN_TEXT},
		{"KERNEL", "kernel", COLUMN_TEXT},
		{"SIZE", "bytes", COLUMN_BYTES},
		{0},
	};
	struct fcvm_err err = FCVM_ERR_INIT;
	char *json = NULL;
	int r = fcvm_list_images(&json, &err);

	return r < 0 ? failed(&err)
		     : listing_print(args, json, columns, "name",
			       "no image is built; fcvm image build makes mini");
}

static int report_built(const struct args *args, char *json)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;

	if (args_has(args, "json")) {
		json_print_and_free(json);
		return 0;
	}
	if (fcvm_json_parse(json, strlen(json), &j, &err) < 0) {
		free(json);
		return failed(&err);
	}
	free(json);
	progress_clear();
	printf("%s %s %s\n", fcvm_json_string(j, "name", "?"),
		fcvm_json_bool(j, "built", false) ? "built:" : "is up to date:",
		fcvm_json_string(j, "dir", "?"));
	return 0;
}

static int build(const struct args *args)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	char *json = NULL;

	if (fcvm_build_image(args->count ? args->operands[0] : "mini", &json, &err) < 0)
		return failed(&err);
	return report_built(args, json);
}

static int rm(const struct args *args)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	int status = 0;

	for (int i = 0; i < args->count; i++)
		if (fcvm_remove_image(args->operands[i], &err) < 0)
			status = failed(&err);
	return status;
}

static const struct option list_options[] = {LISTING_OPTIONS, {0}};
static const struct option build_options[] = {{0, "json", NULL, "print the report as JSON"}, {0}};
static const struct option rm_options[] = {{0}};

const struct verb verb_image_ls = {
	.name = "image ls",
	.operands = "",
	.summary = "List the images that are built",
	.options = list_options,
	.run = list,
};

const struct verb verb_image_build = {
	.name = "image build",
	.operands = "[NAME]",
	.summary = "Build an image (mini) if what goes into it has changed",
	.help = "The first time, the kernel's package comes from this machine's Debian mirror. A\n"
		"VM's start builds what is missing by itself.",
	.options = build_options,
	.max = 1,
	.run = build,
};

const struct verb verb_image_rm = {
	.name = "image rm",
	.operands = "NAME...",
	.summary = "Remove images",
	.options = rm_options,
	.min = 1,
	.max = -1,
	.run = rm,
};
