/* SPDX-License-Identifier: MIT */
/* The one mutable global: where warnings and progress go. Library code prints nothing itself. */
#ifndef FCVM_BASE_LOG_H
#define FCVM_BASE_LOG_H

enum { FCVM_SAY_WARNING = 1, FCVM_SAY_PROGRESS = 2, FCVM_SAY_DEBUG = 3 }; /* = enum fcvm_log_level */

void fcvm_log_to(void (*sink)(void *data, int level, const char *text), void *data);
void fcvm_say(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
