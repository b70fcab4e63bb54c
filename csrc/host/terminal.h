/* SPDX-License-Identifier: MIT */
/* The user's terminal, while a program in a guest has it. */
#ifndef FCVM_HOST_TERMINAL_H
#define FCVM_HOST_TERMINAL_H

#include <stdbool.h>
#include <stdio.h>

bool terminal_here(void); /* stdin and stdout are terminals */
/* Raw mode on stdin until terminal_restore() or the end of the program, however it ends. 0 or
 * -errno. */
int terminal_raw(void);
void terminal_restore(void);
void terminal_size(unsigned *rows, unsigned *columns); /* untouched if it is not known */
unsigned terminal_columns(void);                       /* of stdout; 80 if it is none */
/* An eventfd that is readable after each change of size, and after we were stopped and continued;
 * stays ours. -errno. */
int terminal_watch(void);


/* Writes what a guest has said: to a terminal without control characters, which would be orders to it. False: nobody
 * reads that. */
bool terminal_write(FILE *to, const char *text, size_t size);

#endif
