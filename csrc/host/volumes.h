/* SPDX-License-Identifier: MIT */
/* The volumes of running VMs, for the verbs that show them. */
#ifndef FCVM_HOST_VOLUMES_H
#define FCVM_HOST_VOLUMES_H

#include "base/json.h"
#include "fcvm.h"

/* fcvm_vm_volumes() of a VM (NULL: of all that run), each with `vm`, its name. */
int volumes_gather(const char *id, struct fcvm_json **ret, struct fcvm_err *err);

#endif
