/* SPDX-License-Identifier: MIT */
/* Filling in struct fcvm_err. All of these take err == NULL, and return the code they were given. */
#ifndef FCVM_BASE_FAIL_H
#define FCVM_BASE_FAIL_H

#include "base/err.h"

#define FCVM_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* Sets the error to `code` (-errno) with the message as formatted. Clears detail. Returns code. */
int fcvm_fail(struct fcvm_err *err, int code, const char *fmt, ...) FCVM_PRINTF(3, 4);

/* The same with ": " and the text of errno appended: fcvm_fail_errno(err, -errno, "open %s", path). */
int fcvm_fail_errno(struct fcvm_err *err, int code, const char *fmt, ...) FCVM_PRINTF(3, 4);

/* Puts "<formatted>: " before the message that is there. Returns -err->code (-EIO if err is NULL). */
int fcvm_fail_prefix(struct fcvm_err *err, const char *fmt, ...) FCVM_PRINTF(2, 3);

/* Sets the detail lines (cut at the front if too long: the tail is what matters). */
void fcvm_fail_detail(struct fcvm_err *err, const char *text, unsigned long size);

#endif
