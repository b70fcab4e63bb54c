/* SPDX-License-Identifier: MIT */
#include "base/fail.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int fcvm_fail(struct fcvm_err *err, int code, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return code;
	err->code = -code;
	err->detail[0] = 0;
	va_start(ap, fmt);
	vsnprintf(err->message, sizeof err->message, fmt, ap);
	va_end(ap);
	return code;
}

int fcvm_fail_errno(struct fcvm_err *err, int code, const char *fmt, ...)
{
	va_list ap;
	size_t used;

	if (!err)
		return code;
	err->code = -code;
	err->detail[0] = 0;
	va_start(ap, fmt);
	vsnprintf(err->message, sizeof err->message, fmt, ap);
	va_end(ap);
	used = strlen(err->message);
	snprintf(err->message + used, sizeof err->message - used, ": %s%s", strerror(-code),
		code == -EMFILE ? "; raise the limit by 'ulimit -n'" : "");
	return code;
}

int fcvm_fail_prefix(struct fcvm_err *err, const char *fmt, ...)
{
	char old[sizeof err->message];
	va_list ap;
	size_t used;

	if (!err)
		return -EIO;
	memcpy(old, err->message, sizeof old);
	va_start(ap, fmt);
	vsnprintf(err->message, sizeof err->message, fmt, ap);
	va_end(ap);
	used = strlen(err->message);
	snprintf(err->message + used, sizeof err->message - used, ": %s", old);
	return -err->code;
}

void fcvm_fail_detail(struct fcvm_err *err, const char *text, unsigned long size)
{
	if (!err)
		return;
	if (size >= sizeof err->detail) {
		text += size - (sizeof err->detail - 1);
		size = sizeof err->detail - 1;
	}
	memcpy(err->detail, text, size);
	err->detail[size] = 0;
}
