/* SPDX-License-Identifier: MIT */
/* The checks of the unit tests: CHECK(expr) counts and prints what failed; end main with CHECK_DONE(). */
#ifndef FCVM_TESTS_CHECK_H
#define FCVM_TESTS_CHECK_H

#include <stdio.h>

static unsigned check_passed, check_failed;

#define CHECK(e)                                                                                   \
	do {                                                                                       \
		if (e) {                                                                           \
			check_passed++;                                                            \
		} else {                                                                           \
			check_failed++;                                                            \
			fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__,   \
				#e);                                                               \
		}                                                                                  \
	} while (0)
#define CHECK_DONE()                                                                               \
	return (printf("%u passed, %u failed\n", check_passed, check_failed), check_failed != 0)

#endif
