/* SPDX-License-Identifier: MIT */
/* fcvm exec: a program in a VM that another process owns. */
#include "base/cleanup.h"
#include "fcvm.h"
#include "host/program.h"

FCVM_CLEANUP(struct fcvm_vm, fcvm_vm_free)

static int run(const struct args *args)
{
	_cleanup_(cleanup_fcvm_vm_free) struct fcvm_vm *vm = NULL;
	struct fcvm_err err = FCVM_ERR_INIT;
	int r = program_check(args);

	if (r)
		return r;
	r = fcvm_vm_attach(&vm, args->operands[0], &err);
	return r < 0 ? failed(&err) : program_run(args, 1, vm);
}

static const struct option options[] = {PROGRAM_OPTIONS, {0}};

const struct verb verb_exec = {
	.name = "exec",
	.operands = "ID [--] CMD [ARG...]",
	.summary = "Run a program in a running VM, whoever started that",
	.help = "ID is an id or a name that fcvm ls shows.\n" PROGRAM_HELP,
	.options = options,
	.min = 2,
	.max = -1,
	.stop = 2,
	.run = run,
};
