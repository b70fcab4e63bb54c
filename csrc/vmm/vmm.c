/* SPDX-License-Identifier: MIT */
/* The drivers there are. */
#include "vmm/vmm.h"

#include <stdlib.h>

const struct vmm_ops *const fcvm_vmm_drivers[] = {&fcvm_vmm_qemu, NULL};

void fcvm_vmm_probe_done(struct vmm_probe *p)
{
	if (!p)
		return;
	free(p->binary);
	free(p->version);
	free(p->accel);
	free(p->why);
	free(p->machine);
	free(p->library);
	free(p->data_dir);
	for (char **at = p->env; at && *at; at++)
		free(*at);
	free(p->env);
	*p = (struct vmm_probe){0};
}
