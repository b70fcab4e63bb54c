/* SPDX-License-Identifier: MIT */
/* The command line of one verb, by its table of options. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/interrupt.h"
#include "host/progress.h"
#include "host/terminal.h"
#include "host/verb.h"

/* ---- messages ---- */

int misuse(const char *fmt, ...)
{
	va_list ap;

	progress_clear();
	fputs("fcvm: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	return EXIT_MISUSE;
}

int failed(const struct fcvm_err *err)
{
	const char *line = err->detail;

	progress_clear();
	/* Who pressed Ctrl-C need not be told that something was cancelled. */
	if (interrupt_signal() && err->code == ECANCELED)
		return EXIT_SIGNAL + interrupt_signal();
	fprintf(stderr, "fcvm: %s\n", err->message);
	while (*line) {
		size_t n = strcspn(line, "\n");

		fputs("    ", stderr);
		terminal_write(stderr, line, n);
		putc('\n', stderr);
		line += n + (line[n] == '\n');
	}
	return interrupt_signal() ? EXIT_SIGNAL + interrupt_signal() : EXIT_FAILED;
}

/* ---- the nearest name ---- */

enum { LONGEST_NAME = 48 };

/* Edits (insert, delete, replace, swap two neighbours) that make b of a. */
static unsigned distance(const char *a, const char *b)
{
	unsigned d[3][LONGEST_NAME + 1]; /* the row before the last, the last, this one */
	size_t m = strlen(a), n = strlen(b);

	if (m > LONGEST_NAME || n > LONGEST_NAME)
		return LONGEST_NAME;
	for (size_t j = 0; j <= n; j++)
		d[1][j] = (unsigned)j;
	for (size_t i = 1; i <= m; i++) {
		d[2][0] = (unsigned)i;
		for (size_t j = 1; j <= n; j++) {
			unsigned best = d[1][j - 1] + (a[i - 1] != b[j - 1]);

			if (d[1][j] + 1 < best)
				best = d[1][j] + 1;
			if (d[2][j - 1] + 1 < best)
				best = d[2][j - 1] + 1;
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
				d[0][j - 2] + 1 < best)
				best = d[0][j - 2] + 1;
			d[2][j] = best;
		}
		memcpy(d[0], d[1], sizeof d[0]);
		memcpy(d[1], d[2], sizeof d[1]);
	}
	return d[1][n];
}

const char *nearest(const char *typed, const char *(*name)(const void *data, size_t i),
	const void *data, size_t count)
{
	unsigned best = 1 + (unsigned)strlen(typed) / 3;
	const char *found = NULL;

	for (size_t i = 0; i < count; i++) {
		const char *candidate = name(data, i);
		unsigned d = distance(typed, candidate);

		/* The start of a name counts as near. */
		if (strlen(typed) >= 2 && strncmp(candidate, typed, strlen(typed)) == 0)
			d = 1;
		if (d < best || (d == best && !found)) {
			best = d;
			found = candidate;
		}
	}
	return found;
}

static const char *option_name(const void *data, size_t i)
{
	return ((const struct option *)data)[i].name;
}

static int unknown_option(const struct verb *verb, const char *typed)
{
	size_t n = 0;
	const char *near;

	while (verb->options[n].name)
		n++;
	near = typed[1] == '-' ? nearest(typed + 2, option_name, verb->options, n) : NULL;
	if (near)
		return misuse("%s: unknown option %s; did you mean --%s?", verb->name, typed, near);
	return misuse("%s: unknown option %s; see fcvm %s --help", verb->name, typed, verb->name);
}

/* ---- parsing ---- */

static const struct option *by_letter(const struct verb *verb, char letter)
{
	for (const struct option *o = verb->options; o->name; o++)
		if (o->letter == letter)
			return o;
	return NULL;
}

static const struct option *by_name(const struct verb *verb, const char *name, size_t size)
{
	for (const struct option *o = verb->options; o->name; o++)
		if (strlen(o->name) == size && memcmp(o->name, name, size) == 0)
			return o;
	return NULL;
}

static void give(struct args *args, const struct option *option, const char *value)
{
	args->given[args->ngiven++] = (struct given){.option = option, .value = value};
}

/* --name, --name=value, --name value. Returns how many words it took, or EXIT_MISUSE negated. */
static int parse_long(struct args *args, char **argv)
{
	const char *name = argv[0] + 2;
	size_t size = strcspn(name, "=");
	const struct option *o = by_name(args->verb, name, size);

	if (!o)
		return -unknown_option(args->verb, argv[0]);
	if (!o->value && name[size] == '=')
		return -misuse("%s: --%s takes no value", args->verb->name, o->name);
	if (o->value && name[size] != '=' && !argv[1])
		return -misuse("%s: --%s wants a value: %s", args->verb->name, o->name, o->value);
	if (!o->value) {
		give(args, o, "");
		return 1;
	}
	give(args, o, name[size] == '=' ? name + size + 1 : argv[1]);
	return name[size] == '=' ? 1 : 2;
}

/* -a, -ab, -xVALUE, -x VALUE. */
static int parse_letters(struct args *args, char **argv)
{
	for (const char *c = argv[0] + 1; *c; c++) {
		const struct option *o = by_letter(args->verb, *c);

		if (!o)
			return -misuse("%s: unknown option -%c; see fcvm %s --help",
				args->verb->name, *c, args->verb->name);
		if (!o->value) {
			give(args, o, "");
			continue;
		}
		if (!c[1] && !argv[1])
			return -misuse("%s: -%c wants a value: %s", args->verb->name, *c, o->value);
		give(args, o, c[1] ? c + 1 : argv[1]);
		return c[1] ? 1 : 2;
	}
	return 1;
}

static int check_count(const struct args *args)
{
	const struct verb *verb = args->verb;

	if (args->count < verb->min)
		return misuse("%s: something is missing; usage: fcvm %s %s", verb->name, verb->name,
			verb->operands);
	if (verb->max >= 0 && args->count > verb->max)
		return misuse("%s: did not expect %s; usage: fcvm %s%s%s", verb->name,
			args->operands[verb->max], verb->name, *verb->operands ? " " : "",
			verb->operands);
	return 0;
}

static bool asks_for_help(const struct verb *verb, const char *word)
{
	return strcmp(word, "--help") == 0 || (strcmp(word, "-h") == 0 && !by_letter(verb, 'h'));
}

int args_parse(struct args *ret, const struct verb *verb, char **argv)
{
	bool options = true;
	size_t words = 0, letters = 0;
	int n;

	for (; argv[words]; words++)
		letters += strlen(argv[words]);
	*ret = (struct args){.verb = verb};
	ret->operands = calloc(words + 1, sizeof *ret->operands);
	ret->given = calloc(letters + 1, sizeof *ret->given);
	if (!ret->operands || !ret->given)
		abort();
	for (; *argv; argv += n) {
		n = 1;
		if (options && asks_for_help(verb, *argv))
			return -1;
		if (options && strcmp(*argv, "--") == 0)
			options = false;
		else if (options && strncmp(*argv, "--", 2) == 0)
			n = parse_long(ret, argv);
		else if (options && argv[0][0] == '-' && argv[0][1])
			n = parse_letters(ret, argv);
		else
			ret->operands[ret->count++] = *argv;
		if (n < 0)
			return -n;
		if (verb->stop && ret->count == verb->stop)
			options = false;
	}
	return check_count(ret);
}

void args_done(struct args *args)
{
	free(args->operands);
	free(args->given);
	*args = (struct args){0};
}

/* ---- reading ---- */

const char *args_nth(const struct args *args, const char *name, int i)
{
	for (int k = 0; k < args->ngiven; k++)
		if (strcmp(args->given[k].option->name, name) == 0 && i-- == 0)
			return args->given[k].value;
	return NULL;
}

bool args_has(const struct args *args, const char *name)
{
	return args_nth(args, name, 0) != NULL;
}

const char *args_value(const struct args *args, const char *name, const char *otherwise)
{
	const char *value = otherwise, *v;

	for (int i = 0; (v = args_nth(args, name, i)); i++)
		value = v;
	return value;
}

struct unit {
	char letter; /* 0: none was given; ends the list */
	double factor;
};

/* A number and at most one unit letter, for sizes with an optional tail ("B", "iB"). */
static bool number_with_unit(const char *text, const struct unit *units, bool tail, double *ret)
{
	const struct unit *unit = units;
	char *end;
	double v;

	errno = 0;
	v = strtod(text, &end);
	/* Nor hexadecimal numbers, infinity and the like. */
	if (end == text || errno || !(v >= 0) || v > 1e15 || strpbrk(text, "xXnN"))
		return false;
	while (unit->letter && unit->letter != *end)
		unit++;
	if (unit->letter)
		end++;
	if (unit->letter && tail && (strcmp(end, "B") == 0 || strcmp(end, "iB") == 0))
		end = strchr(end, 0);
	*ret = v * unit->factor;
	return *end == 0;
}

int args_size(const struct args *args, const char *name, unsigned long long *ret)
{
	static const struct unit units[] = {{'k', 1 << 10}, {'K', 1 << 10}, {'m', 1 << 20},
		{'M', 1 << 20}, {'g', 1 << 30}, {'G', 1 << 30}, {0, 1 << 20}};
	const char *text = args_value(args, name, NULL);
	double v;

	if (!text)
		return 0;
	if (!number_with_unit(text, units, true, &v))
		return misuse("%s: --%s %s: a size such as 512M or 2G is wanted", args->verb->name,
			name, text);
	if (v > 9e18)
		return misuse("%s: --%s %s is too large", args->verb->name, name, text);
	*ret = (unsigned long long)v;
	return 0;
}

int args_ms(const struct args *args, const char *name, long long *ret)
{
	static const struct unit units[] = {
		{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}, {'w', 7 * 86400}, {0, 1}};
	const char *text = args_value(args, name, NULL);
	double v;

	if (!text)
		return 0;
	if (!number_with_unit(text, units, false, &v))
		return misuse("%s: --%s %s: a time such as 30, 1.5, 20m, 2h or 3d is wanted",
			args->verb->name, name, text);
	if (v > 1e13)
		return misuse("%s: --%s %s is too long", args->verb->name, name, text);
	*ret = (long long)(v * 1000);
	return 0;
}

int args_count(const struct args *args, const char *name, unsigned *ret)
{
	const char *text = args_value(args, name, NULL);
	unsigned long v;
	char *end;

	if (!text)
		return 0;
	errno = 0;
	v = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || !v || v > 1000000)
		return misuse(
			"%s: --%s %s: a number from 1 on is wanted", args->verb->name, name, text);
	*ret = (unsigned)v;
	return 0;
}
