/* SPDX-License-Identifier: MIT */
/*
 * How fast the TSC runs. The kernel's own figure is in the page that perf maps for user space (cap_user_time:
 * ns = cycles * time_mult >> time_shift; linux/perf_event.h). A software counter of one's own process is allowed up to
 * perf_event_paranoid 2; where even that is refused, it is measured.
 */
#include <errno.h>
#include <linux/perf_event.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "vmm/vmm.h"
#include "vmm/vmm_private.h"

#if defined(__x86_64__)
#include <x86intrin.h>

uint64_t fcvm_tsc_khz_perf(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof attr,
		.config = PERF_COUNT_SW_DUMMY,
		.exclude_kernel = 1,
		.exclude_hv = 1,
	};
	_cleanup_close_ int fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
	size_t size = sysconf(_SC_PAGESIZE);
	volatile struct perf_event_mmap_page *page;
	uint64_t khz = 0;

	if (fd < 0)
		return 0;
	page = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		return 0;
	if (page->cap_user_time && page->time_mult != 0 && page->time_shift < 40)
		khz = ((UINT64_C(1000000) << page->time_shift) + page->time_mult / 2) / page->time_mult;
	munmap((void *)page, size);
	return khz;
}

/* A pair of readings as close to each other as can be had: who is preempted between them tries again. */
static void read_both(uint64_t *ret_tsc, uint64_t *ret_ns)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < 50; i++) {
		struct timespec ts;
		uint64_t before = __rdtsc(), after;

		clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
		after = __rdtsc();
		if (after - before >= best)
			continue;
		best = after - before;
		*ret_tsc = before + best / 2;
		*ret_ns = ts.tv_sec * UINT64_C(1000000000) + ts.tv_nsec;
	}
}

uint64_t fcvm_tsc_khz_measured(void)
{
	uint64_t tsc[2] = {0}, ns[2] = {0};

	read_both(&tsc[0], &ns[0]);
	nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
	read_both(&tsc[1], &ns[1]);
	if (ns[1] <= ns[0] || tsc[1] <= tsc[0])
		return 0;
	return (tsc[1] - tsc[0]) * 1000000 / (ns[1] - ns[0]);
}

uint64_t fcvm_tsc_khz(void)
{
	uint64_t khz = fcvm_tsc_khz_perf();

	return khz ? khz : fcvm_tsc_khz_measured();
}

#else

uint64_t fcvm_tsc_khz(void)
{
	return 0; /* no TSC to tell the guest's kernel about */
}

#endif
