/* SPDX-License-Identifier: MIT */
/*
 * A race in QEMU's emulation (seen in 10.0; the code is that of 8 to 11). Whenever a processor loads the state of its
 * FPU without a pending error, cpu_clear_ignne() takes a bit out of hflags2 of the *first* processor, whoever calls, by a
 * plain read and write. In hflags2 are also the bits that say whether nested paging and interrupts are on. If the first
 * processor leaves a guest of its own at that moment, its leaving is undone: it goes on with its guest's page tables, and
 * one of the two kernels dies. With two processors and two guests that was one boot in five.
 *
 * The bit is set by a write to port 0xF0 of the chipset of a PC only, which the microvm has not: the function has nothing
 * to clear, and so returns at once.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ignne.h"

void fcvm_ignne_never(void)
{
	const uint8_t ret = 0xc3;
	uint8_t *function = dlsym(RTLD_DEFAULT, "cpu_clear_ignne");
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	void *start = (void *)((uintptr_t)function & ~(page - 1));

	if (!function || mprotect(start, page, PROT_READ | PROT_WRITE | PROT_EXEC))
		return;
	*function = ret;
	mprotect(start, page, PROT_READ | PROT_EXEC);
}
