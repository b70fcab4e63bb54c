/* SPDX-License-Identifier: MIT */
/*
 * The error record of every fcvm call. Part of the public interface: fcvm.h includes it.
 *
 * Caller-owned, fixed size, NULL allowed wherever one is taken. A call that succeeds leaves it untouched.
 */
#ifndef FCVM_BASE_ERR_H
#define FCVM_BASE_ERR_H

struct fcvm_err {
	int code;           /* a positive errno value; 0: no error */
	char op[24];        /* the operation that failed: "start", "exec", ... */
	char message[1500]; /* one line: object, what was being done, cause, remedy; no newline at its end */
	char detail[2048];  /* further lines, such as the tail of a guest's console; often empty */
};

#define FCVM_ERR_INIT {.code = 0}

#endif
