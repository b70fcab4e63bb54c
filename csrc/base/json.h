/* SPDX-License-Identifier: MIT */
/*
 * JSON values. The one place that knows the JSON library (jansson). Getters are forgiving about absence and
 * strict about type: they return the default when the key is missing or of another type, so that hostile input
 * needs no checks of its own before it is read.
 */
#ifndef FCVM_BASE_JSON_H
#define FCVM_BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/err.h"

struct fcvm_json; /* opaque; a reference-counted value */

/* One complete value from (buf, size). Nesting at most 64, duplicate keys and NULs refused. -EBADMSG with the place. */
int fcvm_json_parse(const char *buf, size_t size, struct fcvm_json **ret, struct fcvm_err *err);
/* malloc'ed text, caller frees; indent 0: one line. NULL when out of memory. Keys in order of insertion. */
char *fcvm_json_print(const struct fcvm_json *j, int indent);
struct fcvm_json *fcvm_json_ref(struct fcvm_json *j); /* one more reference */
void fcvm_json_free(struct fcvm_json *j); /* drops one reference; NULL allowed */

struct fcvm_json *fcvm_json_object(void);
struct fcvm_json *fcvm_json_array(void);
/* Setters copy what they are given, and return 0 or -ENOMEM (also for a string that is not UTF-8: -EINVAL). */
int fcvm_json_set_string(struct fcvm_json *o, const char *key, const char *value);
int fcvm_json_set_int(struct fcvm_json *o, const char *key, int64_t value);
int fcvm_json_set_bool(struct fcvm_json *o, const char *key, bool value);
int fcvm_json_set_real(struct fcvm_json *o, const char *key, double value); /* finite; 15 digits of it are printed */
/* Steals the reference to value, also on failure. */
int fcvm_json_set(struct fcvm_json *o, const char *key, struct fcvm_json *value);
int fcvm_json_append(struct fcvm_json *array, struct fcvm_json *value);
int fcvm_json_append_string(struct fcvm_json *array, const char *value);
int fcvm_json_append_int(struct fcvm_json *array, int64_t value);

/* Borrowed, NULL when missing or of another type; j may be NULL in all getters. */
const char *fcvm_json_string(const struct fcvm_json *j, const char *key, const char *otherwise);
int64_t fcvm_json_int(const struct fcvm_json *j, const char *key, int64_t otherwise);
bool fcvm_json_bool(const struct fcvm_json *j, const char *key, bool otherwise);
double fcvm_json_real(const struct fcvm_json *j, const char *key, double otherwise); /* whole numbers as well */
const struct fcvm_json *fcvm_json_get(const struct fcvm_json *j, const char *key); /* of any type */
struct fcvm_json *fcvm_json_take(struct fcvm_json *j, const char *key); /* the same, the caller's to free */
size_t fcvm_json_count(const struct fcvm_json *j);                                 /* array or object */
const struct fcvm_json *fcvm_json_at(const struct fcvm_json *array, size_t i);
/* The members of an object in their order: *key is NULL for the first, else where the last call left it; NULL: no more. */
const struct fcvm_json *fcvm_json_next(const struct fcvm_json *object, const char **key);
int64_t fcvm_json_whole(const struct fcvm_json *j, int64_t otherwise); /* a whole number itself */
const char *fcvm_json_text(const struct fcvm_json *j); /* of a string value itself, else NULL */

FCVM_CLEANUP(struct fcvm_json, fcvm_json_free)

#endif
