/* SPDX-License-Identifier: MIT */
/* JSON by jansson: struct fcvm_json is a json_t, and only this file knows. */
#include "base/json.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "base/fail.h"

enum { MAX_DEPTH = 64, REAL_DIGITS = 15 };

static json_t *of(struct fcvm_json *j)
{
	return (json_t *)j;
}

static const json_t *of_const(const struct fcvm_json *j)
{
	return (const json_t *)j;
}

static struct fcvm_json *from(json_t *j)
{
	return (struct fcvm_json *)j;
}

/* ---- text ---- */

/* The library's own bound on nesting, 2,048, is deeper than what recursion over values should bear. */
static bool too_deep(const char *buf, size_t size)
{
	bool in_string = false;
	unsigned depth = 0;

	for (size_t i = 0; i < size; i++) {
		char c = buf[i];

		if (in_string) {
			if (c == '\\')
				i++;
			else if (c == '"')
				in_string = false;
		} else if (c == '"') {
			in_string = true;
		} else if (c == '[' || c == '{') {
			if (++depth > MAX_DEPTH)
				return true;
		} else if ((c == ']' || c == '}') && depth > 0) {
			depth--;
		}
	}
	return false;
}

int fcvm_json_parse(const char *buf, size_t size, struct fcvm_json **ret, struct fcvm_err *err)
{
	json_error_t e;
	json_t *j;

	/* The library takes a NUL behind the value for the end. */
	if (size > 0 && memchr(buf, 0, size))
		return fcvm_fail(err, -EBADMSG, "JSON: a NUL in the text");
	if (too_deep(buf, size))
		return fcvm_fail(err, -EBADMSG, "JSON: nested more than %d deep", (int)MAX_DEPTH);
	j = json_loadb(buf, size, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &e);
	if (!j && json_error_code(&e) == json_error_out_of_memory)
		return fcvm_fail_errno(err, -ENOMEM, "JSON");
	if (!j)
		return fcvm_fail(err, -EBADMSG, "JSON: line %d, column %d: %s", e.line, e.column, e.text);
	*ret = from(j);
	return 0;
}

char *fcvm_json_print(const struct fcvm_json *j, int indent)
{
	return json_dumps(of_const(j), JSON_ENCODE_ANY | JSON_REAL_PRECISION(REAL_DIGITS) |
		(indent > 0 ? JSON_INDENT(indent) : JSON_COMPACT));
}

struct fcvm_json *fcvm_json_ref(struct fcvm_json *j)
{
	json_incref(of(j));
	return j;
}

void fcvm_json_free(struct fcvm_json *j)
{
	json_decref(of(j));
}

/* ---- making ---- */

struct fcvm_json *fcvm_json_object(void)
{
	return from(json_object());
}

struct fcvm_json *fcvm_json_array(void)
{
	return from(json_array());
}

/* The library says no more than that it failed: memory, unless the text cannot be in JSON. */
static int why_not(const char *text)
{
	json_t *checked = json_string(text);
	json_t *unchecked = checked ? NULL : json_string_nocheck(text);
	int r = unchecked ? -EINVAL : -ENOMEM;

	json_decref(checked);
	json_decref(unchecked);
	return r;
}

static int set_new(struct fcvm_json *o, const char *key, json_t *value)
{
	if (!value)
		return -ENOMEM;
	if (!json_is_object(of(o))) {
		json_decref(value);
		return -EINVAL;
	}
	return json_object_set_new(of(o), key, value) < 0 ? why_not(key) : 0;
}

int fcvm_json_set_string(struct fcvm_json *o, const char *key, const char *value)
{
	json_t *j = json_string(value);

	return j ? set_new(o, key, j) : why_not(value);
}

int fcvm_json_set_int(struct fcvm_json *o, const char *key, int64_t value)
{
	return set_new(o, key, json_integer(value));
}

int fcvm_json_set_bool(struct fcvm_json *o, const char *key, bool value)
{
	return set_new(o, key, json_boolean(value));
}

int fcvm_json_set_real(struct fcvm_json *o, const char *key, double value)
{
	return set_new(o, key, json_real(value));
}

int fcvm_json_set(struct fcvm_json *o, const char *key, struct fcvm_json *value)
{
	return set_new(o, key, of(value));
}

int fcvm_json_append(struct fcvm_json *array, struct fcvm_json *value)
{
	if (!value)
		return -ENOMEM;
	if (!json_is_array(of(array))) {
		fcvm_json_free(value);
		return -EINVAL;
	}
	return json_array_append_new(of(array), of(value)) < 0 ? -ENOMEM : 0;
}

int fcvm_json_append_string(struct fcvm_json *array, const char *value)
{
	json_t *j = json_string(value);

	return j ? fcvm_json_append(array, from(j)) : why_not(value);
}

int fcvm_json_append_int(struct fcvm_json *array, int64_t value)
{
	return fcvm_json_append(array, from(json_integer(value)));
}

/* ---- reading ---- */

const char *fcvm_json_string(const struct fcvm_json *j, const char *key, const char *otherwise)
{
	const json_t *v = json_object_get(of_const(j), key);

	return json_is_string(v) ? json_string_value(v) : otherwise;
}

int64_t fcvm_json_int(const struct fcvm_json *j, const char *key, int64_t otherwise)
{
	const json_t *v = json_object_get(of_const(j), key);

	return json_is_integer(v) ? json_integer_value(v) : otherwise;
}

bool fcvm_json_bool(const struct fcvm_json *j, const char *key, bool otherwise)
{
	const json_t *v = json_object_get(of_const(j), key);

	return json_is_boolean(v) ? json_is_true(v) : otherwise;
}

double fcvm_json_real(const struct fcvm_json *j, const char *key, double otherwise)
{
	const json_t *v = json_object_get(of_const(j), key);

	return json_is_number(v) ? json_number_value(v) : otherwise;
}

const struct fcvm_json *fcvm_json_get(const struct fcvm_json *j, const char *key)
{
	return from(json_object_get(of_const(j), key));
}

struct fcvm_json *fcvm_json_take(struct fcvm_json *j, const char *key)
{
	json_t *value = json_object_get(of(j), key);

	return value ? from(json_incref(value)) : NULL;
}

size_t fcvm_json_count(const struct fcvm_json *j)
{
	return json_is_array(of_const(j)) ? json_array_size(of_const(j)) : json_object_size(of_const(j));
}

const struct fcvm_json *fcvm_json_at(const struct fcvm_json *array, size_t i)
{
	return from(json_array_get(of_const(array), i));
}

const struct fcvm_json *fcvm_json_next(const struct fcvm_json *object, const char **key)
{
	json_t *o = (json_t *)of_const(object);
	void *at = *key ? json_object_iter_next(o, json_object_key_to_iter(*key)) : json_object_iter(o);

	if (!at)
		return NULL;
	*key = json_object_iter_key(at);
	return from(json_object_iter_value(at));
}

int64_t fcvm_json_whole(const struct fcvm_json *j, int64_t otherwise)
{
	return json_is_integer(of_const(j)) ? json_integer_value(of_const(j)) : otherwise;
}

const char *fcvm_json_text(const struct fcvm_json *j)
{
	return json_string_value(of_const(j));
}
