/* SPDX-License-Identifier: MIT */
/* For cc and pkg-config with fcvm installed: boots a VM and runs a program. */
#include <fcvm.h>
#include <stdio.h>

int main(void)
{
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	struct fcvm_exec_result out = FCVM_EXEC_RESULT_INIT;
	struct fcvm_err err = FCVM_ERR_INIT;
	struct fcvm_vm *vm = NULL;
	int r = fcvm_vm_new(&vm, &config, &err);

	if (r == 0)
		r = fcvm_vm_start(vm, FCVM_DEFAULT_TIMEOUT, &err);
	if (r == 0)
		r = fcvm_vm_exec(vm, (const char *[]){"uname", "-s", NULL}, NULL, &out, &err);
	if (r == 0)
		fwrite(out.stdout_data, 1, out.stdout_size, stdout);
	else
		fprintf(stderr, "%s\n", err.message);
	fcvm_exec_result_done(&out);
	fcvm_vm_free(vm);
	return r != 0;
}
