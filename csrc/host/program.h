/* SPDX-License-Identifier: MIT */
/* A program in a guest that has this process's stdin, stdout and stderr: what `run` and `exec` have
 * in common. */
#ifndef FCVM_HOST_PROGRAM_H
#define FCVM_HOST_PROGRAM_H

#include "fcvm.h"
#include "host/verb.h"

#define PROGRAM_OPTIONS \
	{'e', "env", "NAME=VALUE", \
		"set a variable in its environment; NAME alone passes ours on"}, \
		{'w', "cwd", "DIR", "start it in this folder of the guest (/)"}, \
		{'u', "user", "USER", "as this user of the guest: name, uid or uid:gid (root)"}, \
		{0, "timeout", "TIME", \
			"kill it after so long and exit with 124: 30, 1.5, 20m, 2h"}, \
		{'t', "tty", NULL, \
			"give it a terminal (the default if stdin and stdout are ones)"}, \
	{ \
		'T', "no-tty", NULL, "give it no terminal" \
	}

#define PROGRAM_HELP \
	"stdin, stdout and stderr are the program's; so is the exit status (128 +\n" \
	"signal if a signal ended it; 126 and 127 if it cannot be run or found; 124\n" \
	"after --timeout). Without a terminal, SIGINT, SIGTERM and SIGHUP are passed\n" \
	"on to it, and the second SIGINT ends it."

/* Checks the options. 0 or EXIT_MISUSE. Call before anything is started. */
int program_check(const struct args *args);
/* Runs it to its end; argv is args->operands from `first` on. Returns the exit status. */
int program_run(const struct args *args, int first, struct fcvm_vm *vm);

#endif
