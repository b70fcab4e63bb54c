/* SPDX-License-Identifier: MIT */
/*
 * A verb of the program: one struct in one small file; main.c has the table of all of them, and
 * help, option parsing and shell completion read nothing else.
 */
#ifndef FCVM_HOST_VERB_H
#define FCVM_HOST_VERB_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

enum {
	EXIT_FAILED = 1,    /* what was asked for did not work */
	EXIT_MISUSE = 2,    /* it was not understood */
	EXIT_TIMEOUT = 124, /* --timeout ended the program, as timeout(1) has it */
	EXIT_NOT_RUN = 126, /* the guest has the program, but it cannot be run, as sh(1) has it */
	EXIT_NOT_FOUND = 127,
	EXIT_SIGNAL = 128, /* + the signal's number */
};

struct option {
	char letter;       /* 0: none */
	const char *name;  /* without "--"; NULL ends the list */
	const char *value; /* what the help calls its value; NULL: a flag */
	const char *help;
};

struct args;

struct verb {
	const char *name;     /* "ls", "snapshot ls" */
	const char *operands; /* for the usage line: "ID -- CMD [ARG...]"; "" if there are none */
	const char *summary;  /* half a line, in `fcvm --help` */
	const char *help;     /* more, after the options; NULL: nothing more to say */
	const struct option *options;
	int min, max; /* operands; max < 0: any number */
	int stop; /* this many operands end the options: what follows is somebody else's; 0: none
		     does */
	int (*run)(const struct args *args); /* returns the exit status */
};

struct args {
	const struct verb *verb;
	char **operands; /* NULL-terminated */
	int count;
	struct given {
		const struct option *option;
		const char *value;
	} * given;
	int ngiven;
};

bool args_has(const struct args *args, const char *name);
/* The last one given, or otherwise. */
const char *args_value(const struct args *args, const char *name, const char *otherwise);
/* The i-th of those given, from 0; NULL: no more. */
const char *args_nth(const struct args *args, const char *name, int i);

/* Values with units; 0, or EXIT_MISUSE after having said what is wrong. Sizes: bytes, "512M", "2G"
 * (a bare number is MiB). Times: "90", "1.5", "20m", "2h", "3d" (a bare number is seconds); ret is
 * untouched if it was not given. */
int args_size(const struct args *args, const char *name, unsigned long long *ret);
int args_ms(const struct args *args, const char *name, long long *ret);
/* From 1 on. */
int args_count(const struct args *args, const char *name, unsigned *ret);

/* Parses what follows the verb. 0; EXIT_MISUSE after having said so; -1: help was asked for. */
int args_parse(struct args *ret, const struct verb *verb, char **argv);
void args_done(struct args *args);

/* ---- what verbs say ---- */

/* The name nearest to what was typed, or NULL: names[i] for i < count. */
const char *nearest(const char *typed, const char *(*name)(const void *data, size_t i),
	const void *data, size_t count);
/* "fcvm: ..." on stderr; returns EXIT_MISUSE. */
int misuse(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Prints "fcvm: message" and the detail lines indented; returns EXIT_FAILED, or 128 + the signal if
 * one has ended it. */
int failed(const struct fcvm_err *err);

extern const struct verb verb_script, verb_repl, verb_run, verb_exec, verb_ls, verb_cp, verb_logs,
	verb_kill, verb_snapshot_ls, verb_snapshot_rm, verb_snapshot_inspect, verb_image_build,
	verb_image_ls, verb_image_rm, verb_gc, verb_doctor, verb_volumes, verb_trace;

#endif
