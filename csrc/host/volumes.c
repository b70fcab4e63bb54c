/* SPDX-License-Identifier: MIT */
/* fcvm volumes: what is mounted in the VMs, and what their servers have counted. */
#include "host/volumes.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "host/table.h"

FCVM_CLEANUP(struct fcvm_vm, fcvm_vm_free)

/* ---- gathering ---- */

static int gather_of(const char *id, struct fcvm_json *to, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_vm_free) struct fcvm_vm *vm = NULL;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *list = NULL;
	_cleanup_free_ char *text = NULL;
	struct fcvm_vm_info info;
	int r = fcvm_vm_attach(&vm, id, err);

	if (r == 0)
		r = fcvm_vm_volumes(vm, &text, err);
	if (r == 0)
		r = fcvm_json_parse(text, strlen(text), &list, err);
	if (r < 0)
		return r;
	fcvm_vm_get_info(vm, &info);
	for (size_t i = 0; r == 0 && i < fcvm_json_count(list); i++) {
		/* const because of the list that it is taken out of, which is ours */
		struct fcvm_json *volume = fcvm_json_ref((struct fcvm_json *)fcvm_json_at(list, i));

		r = fcvm_json_set_string(volume, "vm", info.name);
		if (r == 0)
			r = fcvm_json_append(to, volume);
		else
			fcvm_json_free(volume);
	}
	return r < 0 ? fcvm_fail_errno(err, r, "list the volumes of %s", id) : 0;
}

static int gather_all(struct fcvm_json *to, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *vms = NULL;
	_cleanup_free_ char *text = NULL;
	int r = fcvm_list_vms(&text, err);

	if (r == 0)
		r = fcvm_json_parse(text, strlen(text), &vms, err);
	for (size_t i = 0; r == 0 && i < fcvm_json_count(vms); i++) {
		const struct fcvm_json *vm = fcvm_json_at(vms, i);

		if (strcmp(fcvm_json_string(vm, "state", ""), "ended") == 0)
			continue;
		r = gather_of(fcvm_json_string(vm, "id", ""), to, err);
		/* It, or its owner, has ended meanwhile. */
		if (r == -ENOENT || r == -ECONNREFUSED || r == -ECONNRESET)
			r = 0;
	}
	return r;
}

int volumes_gather(const char *id, struct fcvm_json **ret, struct fcvm_err *err)
{
	struct fcvm_json *list = fcvm_json_array();
	int r = !list ? fcvm_fail_errno(err, -ENOMEM, "list volumes") : id ? gather_of(id, list, err) : gather_all(list, err);

	if (r < 0)
		fcvm_json_free(list);
	else
		*ret = list;
	return r;
}

/* ---- tables ---- */

static void add_flag(char *to, size_t size, const char *fmt, long long n)
{
	size_t used = strlen(to);

	if (used && used + 1 < size)
		to[used++] = ',';
	snprintf(to + used, size - used, fmt, n);
}

/* "ro,locks=guest": what is not as it is by default. */
static const char *flags_of(const struct fcvm_json *volume, char *to, size_t size)
{
	int64_t readers = fcvm_json_int(volume, "readers", 1);

	*to = 0;
	if (fcvm_json_bool(volume, "root", false))
		add_flag(to, size, "root", 0);
	if (fcvm_json_bool(volume, "readonly", false))
		add_flag(to, size, "ro", 0);
	if (fcvm_json_bool(volume, "devices", false))
		add_flag(to, size, "devices", 0);
	if (strcmp(fcvm_json_string(volume, "locks", "host"), "guest") == 0)
		add_flag(to, size, "locks=guest", 0);
	if (readers > 1)
		add_flag(to, size, "readers=%lld", readers);
	return to;
}

static int64_t operations(const struct fcvm_json *volume)
{
	const struct fcvm_json *ops = fcvm_json_get(volume, "ops"), *op;
	const char *name = NULL;
	int64_t n = 0;

	while ((op = fcvm_json_next(ops, &name)))
		n += fcvm_json_int(op, "count", 0);
	return n;
}

/* One row of the short table. */
static struct fcvm_json *row_of(const struct fcvm_json *volume)
{
	static const char *const strings[] = {"vm", "guest", "host", "state"};
	static const char *const numbers[] = {"bytes_read", "bytes_written"};
	struct fcvm_json *row = fcvm_json_object();
	char flags[80];

	if (!row)
		abort();
	for (size_t i = 0; i < sizeof strings / sizeof *strings; i++)
		fcvm_json_set_string(row, strings[i], fcvm_json_string(volume, strings[i], ""));
	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		fcvm_json_set_int(row, numbers[i], fcvm_json_int(volume, numbers[i], 0));
	fcvm_json_set_string(row, "flags", flags_of(volume, flags, sizeof flags));
	fcvm_json_set_int(row, "ops", operations(volume));
	return row;
}

static struct fcvm_json *rows_of(const struct fcvm_json *volumes)
{
	struct fcvm_json *rows = fcvm_json_array();

	for (size_t i = 0; rows && i < fcvm_json_count(volumes); i++)
		fcvm_json_append(rows, row_of(fcvm_json_at(volumes, i)));
	return rows;
}

/* Of the long one: a row for each operation of each volume. */
static struct fcvm_json *operation_rows(const struct fcvm_json *volumes)
{
	static const char *const numbers[] = {"count", "errors", "p50_us", "p99_us", "max_us"};
	struct fcvm_json *rows = fcvm_json_array();

	for (size_t i = 0; rows && i < fcvm_json_count(volumes); i++) {
		const struct fcvm_json *volume = fcvm_json_at(volumes, i), *ops = fcvm_json_get(volume, "ops"), *op;
		const char *name = NULL;

		while ((op = fcvm_json_next(ops, &name))) {
			struct fcvm_json *row = fcvm_json_object();

			fcvm_json_set_string(row, "vm", fcvm_json_string(volume, "vm", ""));
			fcvm_json_set_string(row, "guest", fcvm_json_string(volume, "guest", ""));
			fcvm_json_set_string(row, "operation", name);
			for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
				fcvm_json_set_int(row, numbers[k], fcvm_json_int(op, numbers[k], 0));
			fcvm_json_append(rows, row);
		}
	}
	return rows;
}

static const struct column columns[] = {
	{"VM", "vm", COLUMN_TEXT},
	{"GUEST", "guest", COLUMN_TEXT},
	{"HOST", "host", COLUMN_TEXT},
	{"FLAGS", "flags", COLUMN_TEXT},
	{"STATE", "state", COLUMN_TEXT},
	{"OPS", "ops", COLUMN_COUNT},
	{"READ", "bytes_read", COLUMN_BYTES},
	{"WRITTEN", "bytes_written", COLUMN_BYTES},
	{0},
};

static const struct column long_columns[] = {
	{"VM", "vm", COLUMN_TEXT},
	{"GUEST", "guest", COLUMN_TEXT},
	{"OPERATION", "operation", COLUMN_TEXT},
	{"COUNT", "count", COLUMN_COUNT},
	{"ERRORS", "errors", COLUMN_COUNT},
	{"P50", "p50_us", COLUMN_MICRO},
	{"P99", "p99_us", COLUMN_MICRO},
	{"MAX", "max_us", COLUMN_MICRO},
	{0},
};

static int run(const struct args *args)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *volumes = NULL;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *rows = NULL;
	bool longer = args_has(args, "long");
	struct fcvm_err err = FCVM_ERR_INIT;
	char *text;

	if (longer && args_has(args, "quiet"))
		return misuse("volumes: --long or --quiet, not both");
	if (volumes_gather(args->operands[0], &volumes, &err) < 0)
		return failed(&err);
	if (!args_has(args, "json"))
		rows = longer ? operation_rows(volumes) : rows_of(volumes);
	text = fcvm_json_print(rows ? rows : volumes, 0);
	if (!text)
		abort();
	return listing_print(args, text, longer ? long_columns : columns, "guest",
		longer && fcvm_json_count(volumes) ? "no operation was asked for yet" : "no volume is mounted");
}

static const struct option options[] = {
	{'l', "long", NULL, "what was asked of them: each operation's count, errors and times"},
	LISTING_OPTIONS,
	{0},
};

const struct verb verb_volumes = {
	.name = "volumes",
	.operands = "[ID]",
	.summary = "List the folders that are mounted in running VMs",
	.help = "Of one VM, an id or a name that fcvm ls shows, or of all. The names that --quiet\n"
		"prints are the places in the guest. Times are those that the server took; P50:\n"
		"half of the operations took no longer, P99: 99 of 100.",
	.options = options,
	.max = 1,
	.run = run,
};
