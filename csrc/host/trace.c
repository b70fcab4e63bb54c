/* SPDX-License-Identifier: MIT */
/* fcvm trace: where the time of the traced requests of volumes went. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "host/progress.h"
#include "host/table.h"
#include "host/terminal.h"
#include "host/volumes.h"

FCVM_CLEANUP(struct fcvm_vm, fcvm_vm_free)

/* Only the volume that was asked for, if one was. */
static bool is_wanted(const struct args *args, const struct fcvm_json *volume)
{
	const char *guest = args_value(args, "volume", NULL);
	_cleanup_free_ char *plain = fcvm_path_plain(guest ? guest : "/");

	return !guest || (plain && strcmp(plain, fcvm_json_string(volume, "guest", "")) == 0);
}

/* ---- the summary ---- */

static struct fcvm_json *row_of(const struct fcvm_json *volume, const char *operation, const struct fcvm_json *traced)
{
	static const char *const stages[] = {"total", "to_srv", "fs", "to_cli"};
	struct fcvm_json *row = fcvm_json_object();
	char key[32];

	fcvm_json_set_string(row, "guest", fcvm_json_string(volume, "guest", ""));
	fcvm_json_set_string(row, "operation", operation);
	fcvm_json_set_int(row, "count", fcvm_json_int(traced, "count", 0));
	for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
		const struct fcvm_json *stage = fcvm_json_get(traced, stages[i]);

		snprintf(key, sizeof key, "%s_p50", stages[i]);
		fcvm_json_set_int(row, key, fcvm_json_int(stage, "p50_us", 0));
		snprintf(key, sizeof key, "%s_p99", stages[i]);
		fcvm_json_set_int(row, key, fcvm_json_int(stage, "p99_us", 0));
	}
	return row;
}

static struct fcvm_json *rows_of(const struct args *args, const struct fcvm_json *volumes)
{
	struct fcvm_json *rows = fcvm_json_array();

	for (size_t i = 0; rows && i < fcvm_json_count(volumes); i++) {
		const struct fcvm_json *volume = fcvm_json_at(volumes, i), *all = fcvm_json_get(volume, "trace"), *traced;
		const char *operation = NULL;

		while (is_wanted(args, volume) && (traced = fcvm_json_next(all, &operation)))
			fcvm_json_append(rows, row_of(volume, operation, traced));
	}
	return rows;
}

static const struct column columns[] = {
	{"VOLUME", "guest", COLUMN_TEXT},
	{"OPERATION", "operation", COLUMN_TEXT},
	{"COUNT", "count", COLUMN_COUNT},
	{"TOTAL P50", "total_p50", COLUMN_MICRO},
	{"P99", "total_p99", COLUMN_MICRO},
	{"TO_SRV P50", "to_srv_p50", COLUMN_MICRO},
	{"P99", "to_srv_p99", COLUMN_MICRO},
	{"FS P50", "fs_p50", COLUMN_MICRO},
	{"P99", "fs_p99", COLUMN_MICRO},
	{"TO_CLI P50", "to_cli_p50", COLUMN_MICRO},
	{"P99", "to_cli_p99", COLUMN_MICRO},
	{0},
};

static const char nothing[] = "nothing was traced; FCVM_FUSE_TRACE_RATE=N in the environment of the process that mounts traces "
			      "every Nth request";

/* ---- the lines ---- */

/* Where the last `n` lines begin. */
static size_t last_lines(const char *text, size_t size, unsigned n)
{
	size_t at = size;

	for (at -= size && text[size - 1] == '\n'; at > 0; at--)
		if (text[at - 1] == '\n' && --n == 0)
			break;
	return at;
}

static int print_lines(const struct args *args, const struct fcvm_json *volumes, unsigned n, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_vm_free) struct fcvm_vm *vm = NULL;
	bool several = fcvm_json_count(volumes) > 1 && !args_has(args, "volume"), any = false;
	int r = fcvm_vm_attach(&vm, args->operands[0], err);

	for (size_t i = 0; r == 0 && i < fcvm_json_count(volumes); i++) {
		const struct fcvm_json *volume = fcvm_json_at(volumes, i);
		_cleanup_free_ char *text = NULL;
		size_t size = 0, at;

		if (!is_wanted(args, volume))
			continue;
		r = fcvm_vm_traces(vm, fcvm_json_string(volume, "guest", ""), &text, &size, err);
		if (r < 0 || size == 0)
			continue;
		at = last_lines(text, size, n);
		progress_clear();
		if (several)
			printf("%s==> %s <==\n", any ? "\n" : "", fcvm_json_string(volume, "guest", ""));
		terminal_write(stdout, text + at, size - at);
		any = true;
	}
	if (r == 0 && !any)
		printf("%s\n", nothing);
	return r;
}

/* ---- */

static bool none_is_wanted(const struct args *args, const struct fcvm_json *volumes)
{
	for (size_t i = 0; i < fcvm_json_count(volumes); i++)
		if (is_wanted(args, fcvm_json_at(volumes, i)))
			return false;
	return args_has(args, "volume");
}

static int run(const struct args *args)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *volumes = NULL;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *rows = NULL;
	struct fcvm_err err = FCVM_ERR_INIT;
	unsigned lines = 0;
	int r = args_count(args, "lines", &lines);

	if (r)
		return r;
	if (lines && args_has(args, "json"))
		return misuse("trace: --lines or --json, not both");
	if (volumes_gather(args->operands[0], &volumes, &err) < 0)
		return failed(&err);
	if (none_is_wanted(args, volumes)) {
		fprintf(stderr, "fcvm: %s: no volume is mounted at %s; fcvm volumes shows those that are\n", args->operands[0],
			args_value(args, "volume", ""));
		return EXIT_FAILED;
	}
	if (lines)
		return print_lines(args, volumes, lines, &err) < 0 ? failed(&err) : 0;
	rows = rows_of(args, volumes);
	if (args_has(args, "json")) {
		json_print_and_free(fcvm_json_print(rows, 0));
		return 0;
	}
	progress_clear();
	table_print(rows, columns, fcvm_json_count(volumes) ? nothing : "no volume is mounted");
	return 0;
}

static const struct option options[] = {
	{'n', "lines", "N", "the last N lines as they are, instead of the summary"},
	{0, "volume", "GUEST", "only of the volume that is mounted there"},
	{0, "json", NULL, "print the summary as JSON"},
	{0},
};

const struct verb verb_trace = {
	.name = "trace",
	.operands = "ID",
	.summary = "Show where the time of a VM's volumes goes",
	.help = "FCVM_FUSE_TRACE_RATE=N in the environment of the process that mounts traces every\n"
		"Nth request, from its dequeueing in the guest to the reply. to_srv is the way to\n"
		"the server, fs what the file system here took, to_cli the way back; srv in the\n"
		"lines is all of the server's time.\n"
		"\n"
		"Example:\n"
		"  FCVM_FUSE_TRACE_RATE=100 fcvm run -n build -v .:/work -w /work -- make &\n"
		"  fcvm trace build",
	.options = options,
	.min = 1,
	.max = 1,
	.run = run,
};
