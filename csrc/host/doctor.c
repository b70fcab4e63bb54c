/* SPDX-License-Identifier: MIT */
/* fcvm doctor: what would be used here, and what is missing. */
#include <stdio.h>
#include <string.h>

#include "fcvm.h"
#include "host/progress.h"
#include "host/table.h"

static void print_check(const struct fcvm_json *check, int width)
{
	bool ok = fcvm_json_bool(check, "ok", false);
	const char *remedy = fcvm_json_string(check, "remedy", "");

	printf("%-4s  %-*s  %s\n", ok ? "ok" : "no", width, fcvm_json_string(check, "name", "?"),
		fcvm_json_string(check, "value", ""));
	if (*remedy)
		printf("      %*s  -> %s\n", width, "", remedy);
}

static int report(char *json)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	_cleanup_free_ char *text = json;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	const struct fcvm_json *checks;
	int width = 0;

	if (fcvm_json_parse(text, strlen(text), &j, &err) < 0)
		return failed(&err);
	checks = fcvm_json_get(j, "checks");
	for (size_t i = 0; i < fcvm_json_count(checks); i++) {
		int n = (int)strlen(fcvm_json_string(fcvm_json_at(checks, i), "name", "?"));

		if (n > width)
			width = n;
	}
	progress_clear();
	for (size_t i = 0; i < fcvm_json_count(checks); i++)
		print_check(fcvm_json_at(checks, i), width);
	if (!fcvm_json_bool(j, "ok", false)) {
		printf("\nVMs cannot run here yet.\n");
		return EXIT_FAILED;
	}
	printf("\nVMs run here: driver %s, accelerator %s.\n", fcvm_json_string(j, "driver", "?"),
		fcvm_json_string(j, "accel", "?"));
	return 0;
}

static int print_json(char *json)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	bool ok = fcvm_json_parse(json, strlen(json), &j, NULL) == 0 &&
		  fcvm_json_bool(j, "ok", false);

	json_print_and_free(json);
	return ok ? 0 : EXIT_FAILED;
}

static int run(const struct args *args)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	char *json = NULL;

	if (fcvm_doctor(&json, &err) < 0)
		return failed(&err);
	return args_has(args, "json") ? print_json(json) : report(json);
}

static const struct option options[] = {{0, "json", NULL, "print the report as JSON"}, {0}};

const struct verb verb_doctor = {
	.name = "doctor",
	.operands = "",
	.summary = "Say whether VMs can run on this machine, how, and what is missing",
	.help = "Exits with 1 if they cannot.",
	.options = options,
	.run = run,
};
