/* SPDX-License-Identifier: MIT */
#ifndef FCVM_VMM_PRELOAD_IGNNE_H
#define FCVM_VMM_PRELOAD_IGNNE_H

/* Mends QEMU's text, before it has threads; what it is, or that it is not there, makes no difference to a caller. */
void fcvm_ignne_never(void);

#endif
