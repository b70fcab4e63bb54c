/* SPDX-License-Identifier: MIT */
/* The JSON reports of fcvm.h as tables for people. */
#ifndef FCVM_HOST_TABLE_H
#define FCVM_HOST_TABLE_H

#include <stdint.h>

#include "base/json.h"
#include "host/verb.h"

enum column_kind {
	COLUMN_TEXT,
	COLUMN_BYTES, /* right-aligned, humanised */
	COLUMN_COUNT, /* right-aligned */
	COLUMN_TIME,  /* seconds: "5 min" */
	COLUMN_AGE,   /* the same, since a time given in seconds since 1970 */
	COLUMN_MICRO, /* microseconds, right-aligned: "12 µs", "3.4 ms" */
};

struct column {
	const char *title; /* NULL ends the list */
	const char *key;
	enum column_kind kind;
};

/* Prints a JSON array of objects with a line of titles; an empty one prints `nothing`. */
void table_print(const struct fcvm_json *rows, const struct column *columns, const char *nothing);

/* "512 MiB", "1.5 GiB"; "8 s", "5 min", "3 h", "2 d"; "12 µs", "3.4 ms", "1.2 s". Returns buf. */
const char *human_bytes(char *buf, size_t size, int64_t bytes);
const char *human_time(char *buf, size_t size, int64_t seconds);
const char *human_micro(char *buf, size_t size, int64_t microseconds);

/* The options that every listing has, and what they do: */
#define LISTING_OPTIONS \
	{0, "json", NULL, "print the report as JSON"}, \
	{ \
		'q', "quiet", NULL, "print names only" \
	}
/*
 * Prints a listing (`json`, malloc'ed, is freed) as --json, --quiet or neither wants it; quiet_key:
 * what --quiet prints of each. Returns the exit status.
 */
int listing_print(const struct args *args, char *json, const struct column *columns,
	const char *quiet_key, const char *nothing);
/* Prints JSON text and a newline, and frees it. */
void json_print_and_free(char *json);

#endif
