/* SPDX-License-Identifier: MIT */
#include "host/table.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "host/progress.h"

enum { CELL = 512 };

const char *human_bytes(char *buf, size_t size, int64_t bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
	double v = (double)bytes;
	unsigned u = 0;

	while (v >= 1024 && u < 4) {
		v /= 1024;
		u++;
	}
	if (u == 0 || v >= 100 || v == (double)(int64_t)v)
		snprintf(buf, size, "%.0f %s", v, units[u]);
	else
		snprintf(buf, size, "%.1f %s", v, units[u]);
	return buf;
}

const char *human_time(char *buf, size_t size, int64_t s)
{
	if (s < 0)
		s = 0;
	if (s < 120)
		snprintf(buf, size, "%" PRId64 " s", s);
	else if (s < 2 * 3600)
		snprintf(buf, size, "%" PRId64 " min", s / 60);
	else if (s < 2 * 86400)
		snprintf(buf, size, "%" PRId64 " h", s / 3600);
	else
		snprintf(buf, size, "%" PRId64 " d", s / 86400);
	return buf;
}

const char *human_micro(char *buf, size_t size, int64_t us)
{
	double v = (double)us;

	if (us < 1000)
		snprintf(buf, size, "%" PRId64 " µs", us);
	else if (us < 1000000)
		snprintf(buf, size, "%.*f ms", us < 100000, v / 1e3);
	else
		snprintf(buf, size, "%.1f s", v / 1e6);
	return buf;
}

/* What others wrote into a file must not reach the terminal as control characters. */
static void printable(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			*text = '?';
}

static void cell_text(char *buf, const struct fcvm_json *row, const char *key)
{
	const struct fcvm_json *v = fcvm_json_get(row, key);
	const char *text = fcvm_json_text(v);

	if (text)
		snprintf(buf, CELL, "%s", text);
	else if (v) {
		_cleanup_free_ char *printed = fcvm_json_print(v, 0);

		snprintf(buf, CELL, "%s", printed ? printed : "");
	}
	if (!*buf)
		strcpy(buf, "-");
	printable(buf);
}

static void cell(char *buf, const struct fcvm_json *row, const struct column *c)
{
	int64_t n = fcvm_json_int(row, c->key, -1);

	*buf = 0;
	if (c->kind == COLUMN_BYTES && n >= 0)
		human_bytes(buf, CELL, n);
	else if (c->kind == COLUMN_TIME && n >= 0)
		human_time(buf, CELL, n);
	else if (c->kind == COLUMN_AGE && n >= 0)
		human_time(buf, CELL, time(NULL) - n);
	else if (c->kind == COLUMN_MICRO && n >= 0)
		human_micro(buf, CELL, n);
	else
		cell_text(buf, row, c->key);
}

/* Columns on the terminal, near enough: bytes that do not continue a UTF-8 character. */
static int width_of(const char *text)
{
	int n = 0;

	for (; *text; text++)
		n += ((unsigned char)*text & 0xc0) != 0x80;
	return n;
}

static void put_cell(const char *text, const struct column *c, int width)
{
	int pad = width - width_of(text);
	bool right = c->kind != COLUMN_TEXT;

	/* No blanks at the end of a line. */
	if (!right && !c[1].title)
		pad = 0;
	printf("%*s%s%*s%s", right ? pad : 0, "", text, right ? 0 : pad, "",
		c[1].title ? "  " : "\n");
}

void table_print(const struct fcvm_json *rows, const struct column *columns, const char *nothing)
{
	int width[16] = {0};
	char buf[CELL];

	if (fcvm_json_count(rows) == 0) {
		printf("%s\n", nothing);
		return;
	}
	for (int i = 0; columns[i].title; i++) {
		width[i] = width_of(columns[i].title);
		for (size_t k = 0; k < fcvm_json_count(rows); k++) {
			cell(buf, fcvm_json_at(rows, k), &columns[i]);
			if (width_of(buf) > width[i])
				width[i] = width_of(buf);
		}
	}
	for (int i = 0; columns[i].title; i++)
		put_cell(columns[i].title, &columns[i], width[i]);
	for (size_t k = 0; k < fcvm_json_count(rows); k++)
		for (int i = 0; columns[i].title; i++) {
			cell(buf, fcvm_json_at(rows, k), &columns[i]);
			put_cell(buf, &columns[i], width[i]);
		}
}

void json_print_and_free(char *json)
{
	progress_clear();
	printf("%s\n", json);
	free(json);
}

int listing_print(const struct args *args, char *json, const struct column *columns,
	const char *quiet_key, const char *nothing)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *rows = NULL;
	char buf[CELL];

	if (args_has(args, "json")) {
		json_print_and_free(json);
		return 0;
	}
	if (fcvm_json_parse(json, strlen(json), &rows, &err) < 0) {
		free(json);
		return failed(&err);
	}
	free(json);
	progress_clear();
	if (!args_has(args, "quiet")) {
		table_print(rows, columns, nothing);
		return 0;
	}
	for (size_t k = 0; k < fcvm_json_count(rows); k++) {
		*buf = 0;
		cell_text(buf, fcvm_json_at(rows, k), quiet_key);
		printf("%s\n", buf);
	}
	return 0;
}
