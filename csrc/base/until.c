/* SPDX-License-Identifier: MIT */
#include "base/until.h"

#include <errno.h>
#include <string.h>
#include <time.h>

static int64_t now_of(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int64_t fcvm_now_ns(void)
{
	return now_of(CLOCK_MONOTONIC);
}

int64_t fcvm_realtime_ns(void)
{
	return now_of(CLOCK_REALTIME);
}

struct fcvm_until fcvm_until_ms(int64_t timeout_ms, int cancel_fd)
{
	struct fcvm_until until = {.deadline_ns = INT64_MAX, .cancel_fd = cancel_fd};
	int64_t now = fcvm_now_ns();

	if (timeout_ms >= 0 && timeout_ms < (INT64_MAX - now) / 1000000)
		until.deadline_ns = now + timeout_ms * 1000000;
	return until;
}

struct fcvm_until fcvm_until_sooner(const struct fcvm_until *until, int64_t timeout_ms)
{
	struct fcvm_until sooner = fcvm_until_ms(timeout_ms, until ? until->cancel_fd : -1);

	if (until && until->deadline_ns < sooner.deadline_ns)
		sooner.deadline_ns = until->deadline_ns;
	return sooner;
}

int fcvm_until_left_ms(const struct fcvm_until *until)
{
	int64_t left;

	if (!until || until->deadline_ns == INT64_MAX)
		return -1;
	left = until->deadline_ns - fcvm_now_ns();
	if (left <= 0)
		return 0;
	left = (left + 999999) / 1000000;
	return left > INT32_MAX ? INT32_MAX : (int)left;
}

bool fcvm_until_passed(const struct fcvm_until *until)
{
	return fcvm_until_left_ms(until) == 0;
}

int fcvm_until_poll(const struct fcvm_until *until, struct pollfd *fds, unsigned n)
{
	struct pollfd all[63];
	unsigned count = n;
	int r;

	if (n > 62)
		return -EINVAL;
	if (until && until->cancel_fd >= 0) {
		memcpy(all, fds, n * sizeof *fds);
		all[count++] = (struct pollfd){.fd = until->cancel_fd, .events = POLLIN};
	}
	for (;;) {
		r = poll(count > n ? all : fds, count, fcvm_until_left_ms(until));
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (r == 0) {
			/* poll takes an int of milliseconds: a far deadline needs several */
			if (fcvm_until_left_ms(until) != 0)
				continue;
			return -ETIMEDOUT;
		}
		if (count == n)
			return r;
		if (all[n].revents)
			return -ECANCELED;
		memcpy(fds, all, n * sizeof *fds);
		return r;
	}
}
