/* SPDX-License-Identifier: MIT */
/*
 * The library's log: warnings are lines on stderr; progress is one line that is rewritten on a
 * terminal, and lines elsewhere.
 */
#ifndef FCVM_HOST_PROGRESS_H
#define FCVM_HOST_PROGRESS_H

#include <stdbool.h>
#include <stdio.h>

/* Takes the log. FCVM_DEBUG in the environment: everything, as lines. */
void progress_init(void);
void progress_quiet(bool quiet); /* warnings only */
/* Takes the status line off the terminal. Before anything else is written there. */
void progress_clear(void);
/*
 * For programs that write by themselves whenever they like (Lua): makes stdout and stderr, where
 * they are the terminal, streams that clear the status line first. Must come before
 * luaL_openlibs().
 */
void progress_guard_stdio(void);

#endif
