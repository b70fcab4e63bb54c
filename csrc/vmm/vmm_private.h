/* SPDX-License-Identifier: MIT */
/* What this layer's own tests look at. */
#ifndef FCVM_VMM_VMM_PRIVATE_H
#define FCVM_VMM_VMM_PRIVATE_H

#include <stdint.h>

uint64_t fcvm_tsc_khz_perf(void);     /* 0: not allowed or not told */
uint64_t fcvm_tsc_khz_measured(void);

#endif
