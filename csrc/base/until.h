/* SPDX-License-Identifier: MIT */
/*
 * How long a blocking call may take, and what may end it early. Every blocking function of the inner layers
 * takes a `const struct fcvm_until *`; the public API makes one from its timeout_ms and the object's cancel fd.
 */
#ifndef FCVM_BASE_UNTIL_H
#define FCVM_BASE_UNTIL_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct fcvm_until {
	int64_t deadline_ns; /* CLOCK_MONOTONIC; INT64_MAX: never */
	int cancel_fd;       /* readable when the call is to end with -ECANCELED; -1: none; not owned */
};

#define FCVM_UNTIL_NEVER {.deadline_ns = INT64_MAX, .cancel_fd = -1}

int64_t fcvm_now_ns(void);          /* CLOCK_MONOTONIC */
int64_t fcvm_realtime_ns(void);     /* CLOCK_REALTIME */

/* timeout_ms < 0: never. */
struct fcvm_until fcvm_until_ms(int64_t timeout_ms, int cancel_fd);

/* The earlier of `until` and timeout_ms from now, with the same cancel fd. until may be NULL. */
struct fcvm_until fcvm_until_sooner(const struct fcvm_until *until, int64_t timeout_ms);

/* Milliseconds left, rounded up, at least 0; -1: for ever (as poll takes it). */
int fcvm_until_left_ms(const struct fcvm_until *until);

/* For loops whose poll has always something to report, as when a peer never stops sending. */
bool fcvm_until_passed(const struct fcvm_until *until);

/*
 * poll(2) that obeys `until` (NULL: never) and is restarted after EINTR. Returns the number of ready entries
 * (> 0; also when the deadline has passed: what is there comes first), -ETIMEDOUT, -ECANCELED, or -errno. At most
 * 62 entries. Sets no error message: the caller knows what
 * was being waited for.
 */
int fcvm_until_poll(const struct fcvm_until *until, struct pollfd *fds, unsigned n);

#endif
