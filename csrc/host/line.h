/* SPDX-License-Identifier: MIT */
/*
 * Lines from the user: by libedit on a terminal, with history and completion; as they are from
 * anything else. The only file that knows libedit.
 */
#ifndef FCVM_HOST_LINE_H
#define FCVM_HOST_LINE_H

#include <stdbool.h>
#include <stddef.h>

struct line;

enum line_result {
	LINE_READ,
	LINE_END,         /* Ctrl-D on an empty line, or the end of the input */
	LINE_INTERRUPTED, /* Ctrl-C, SIGTERM or SIGHUP: interrupt_signal() tells */
};

struct line_completions {
	size_t word; /* bytes before the cursor that are to be replaced */
	size_t count;
	char **names; /* malloc'ed, each of them too; sorted */
};

struct line_hooks {
	void *data;
	/* What could stand at the end of text[0..size): fills in ret. */
	void (*complete)(void *data, const char *text, size_t size, struct line_completions *ret);
	/* While waiting: an fd to watch (-1: none), and what to do when it is readable. */
	int (*idle_fd)(void *data);
	void (*idle)(void *data);
};

/* NULL: out of memory, or a terminal that libedit cannot use. hooks are borrowed. */
struct line *line_new(const struct line_hooks *hooks);
void line_free(struct line *l);
bool line_is_terminal(const struct line *l);
/* ret: without its newline, valid until the next call. */
enum line_result line_read(struct line *l, const char *prompt, const char **ret);
/* Remembers an entry, in memory and in the history file. */
void line_remember(struct line *l, const char *text);

#endif
