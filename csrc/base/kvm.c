/* SPDX-License-Identifier: MIT */
/*
 * Whether KVM is KVM. /dev/kvm may open, make VMs and vCPUs, run a few instructions, and still be a thousand times
 * slower than TCG (a software KVM), so a vCPU in long mode counts to LOOPS and is timed.
 *
 * It runs in a child, so that a KVM that never returns from KVM_RUN costs a second and not the caller. The child is a
 * plain fork of a process that may have threads: it calls nothing but the kernel. It is made without an exit
 * signal, so neither a SIGCHLD handler nor a wait() of the embedding program sees it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/kvm.h"
#include "base/until.h"

#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif
enum { WAIT_PIDFD = 3 };

enum {
	LOOPS = 100000,
	LIMIT_MS = 1000, /* then it hangs */
	QUICK_US = 1000, /* what hardware never exceeds */
	SLOW_US = 20000, /* nested in an emulated machine 1 ms, software 110 to 135 */
	RUNS = 3,        /* at most, as long as none was quick */
	MEMORY = 64 * 1024,
};

enum step { STEP_OPEN, STEP_VERSION, STEP_VM, STEP_MEMORY, STEP_VCPU, STEP_REGISTERS, STEP_RUN, STEP_DONE };

/* Shared by child and parent. */
struct outcome {
	volatile enum step step; /* the one that was begun last */
	volatile int error;
	volatile uint32_t exit_reason;
	volatile uint64_t us;
};

#if defined(__x86_64__)

enum { PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, CODE = 0x4000 };

static const uint8_t code[] = {
	0xb9, LOOPS & 0xff, LOOPS >> 8 & 0xff, LOOPS >> 16 & 0xff, 0, /* mov ecx, LOOPS */
	0xff, 0xc9,                                                   /* dec ecx */
	0x75, 0xfc,                                                   /* jnz dec */
	0xf4,                                                         /* hlt */
	0xeb, 0xf4,                                                   /* jmp to the beginning */
};

/* The first 2 MiB mapped to themselves, and the program. */
static void fill_memory(uint8_t *memory)
{
	uint64_t pml4 = PDPT | 3, pdpt = PD | 3, pd = 0x83;

	memcpy(memory + PML4, &pml4, sizeof pml4);
	memcpy(memory + PDPT, &pdpt, sizeof pdpt);
	memcpy(memory + PD, &pd, sizeof pd);
	memcpy(memory + CODE, code, sizeof code);
}

static int set_registers(int vcpu)
{
	struct kvm_segment cs = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
	struct kvm_segment ds = {.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
	struct kvm_regs regs = {.rip = CODE, .rflags = 2, .rsp = MEMORY};
	struct kvm_sregs s;

	if (ioctl(vcpu, KVM_GET_SREGS, &s) < 0)
		return -errno;
	s.cs = cs;
	s.ds = s.es = s.fs = s.gs = s.ss = ds;
	s.cr3 = PML4;
	s.cr4 = 0x20;        /* PAE */
	s.cr0 = 0x80000011;  /* PG, ET, PE */
	s.efer = 0x500;      /* LMA, LME */
	if (ioctl(vcpu, KVM_SET_SREGS, &s) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
		return -errno;
	return 0;
}

/* The guest's time is its thread's. Unlike the clock on the wall it is the same on a machine that is busy. */
static int64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int run_once(int vcpu, struct kvm_run *shared, struct outcome *o)
{
	int64_t start = cpu_ns();
	uint64_t us;

	while (ioctl(vcpu, KVM_RUN, 0) < 0)
		if (errno != EINTR && errno != EAGAIN)
			return -errno;
	us = (cpu_ns() - start) / 1000;
	o->us = us < o->us ? us : o->us;
	o->exit_reason = shared->exit_reason;
	return shared->exit_reason == KVM_EXIT_HLT ? 0 : -EIO;
}

/* The first time may be slow because of what is done once: where the processor is emulated, as in the KVM lab, it
 * translates the loop. A software KVM is as slow every time. */
static int run(int vcpu, struct kvm_run *shared, struct outcome *o)
{
	int k = 0;

	o->us = UINT64_MAX;
	for (unsigned i = 0; k == 0 && i < RUNS && o->us > QUICK_US; i++)
		k = run_once(vcpu, shared, o);
	return k;
}

static int try_kvm(struct outcome *o)
{
	struct kvm_userspace_memory_region region = {.memory_size = MEMORY};
	uint8_t *memory;
	struct kvm_run *shared;
	int kvm, vm, vcpu, size;

	o->step = STEP_OPEN;
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		return -errno;
	o->step = STEP_VERSION;
	if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return -EPROTO;
	o->step = STEP_VM;
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		return -errno;
	o->step = STEP_MEMORY;
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return -errno;
	fill_memory(memory);
	region.userspace_addr = (uintptr_t)memory;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		return -errno;
	o->step = STEP_VCPU;
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (vcpu < 0 || size < (int)sizeof *shared)
		return vcpu < 0 ? -errno : -EPROTO;
	shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (shared == MAP_FAILED)
		return -errno;
	o->step = STEP_REGISTERS;
	if (set_registers(vcpu) < 0)
		return -errno;
	o->step = STEP_RUN;
	return run(vcpu, shared, o);
}

#else

static int try_kvm(struct outcome *o)
{
	o->step = STEP_OPEN;
	return -ENOSYS; /* the loop is written for x86-64 only */
}

#endif

/* What the child does; it does not return. */
static void child(struct outcome *o)
{
	int k;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 0);
	k = try_kvm(o);
	o->error = -k;
	if (k == 0)
		o->step = STEP_DONE;
	_exit(0);
}

/* 0 when the child has ended, -ETIMEDOUT if it had to be killed. */
static int run_child(struct outcome *o)
{
	struct fcvm_until until = fcvm_until_ms(LIMIT_MS, -1), soon;
	_cleanup_close_ int pidfd = -1;
	struct pollfd p = {.events = POLLIN};
	siginfo_t info;
	long pid;
	int k;

	pid = syscall(SYS_clone, CLONE_PIDFD, NULL, &pidfd, NULL, NULL);
	if (pid < 0)
		return -errno;
	if (pid == 0)
		child(o);
	p.fd = pidfd;
	k = fcvm_until_poll(&until, &p, 1);
	if (k < 0)
		kill(pid, SIGKILL); /* ours until it is waited for */
	soon = fcvm_until_ms(200, -1);
	/* One that a broken KVM holds for good is left to init. */
	if (fcvm_until_poll(&soon, &p, 1) > 0)
		waitid((idtype_t)WAIT_PIDFD, pidfd, &info, WEXITED | __WALL);
	return k < 0 ? k : 0;
}

static const char *const steps[] = {
	[STEP_OPEN] = "open /dev/kvm",
	[STEP_VERSION] = "KVM_GET_API_VERSION",
	[STEP_VM] = "KVM_CREATE_VM",
	[STEP_MEMORY] = "give a VM memory",
	[STEP_VCPU] = "KVM_CREATE_VCPU",
	[STEP_REGISTERS] = "set a vCPU's registers",
	[STEP_RUN] = "KVM_RUN",
	[STEP_DONE] = "KVM",
};

static int judge(const struct outcome *o, int ran, char *why, size_t size)
{
	/* Where the processor is emulated and busy, tearing the VM down may take longer than running it. */
	if (ran == -ETIMEDOUT && o->step != STEP_DONE) {
		snprintf(why, size, "KVM hangs: %s did not return in %d ms", steps[o->step], LIMIT_MS);
		return -ETIMEDOUT;
	}
	if (ran < 0 && o->step != STEP_DONE) {
		snprintf(why, size, "start the KVM probe: %s", strerror(-ran));
		return ran;
	}
	if (o->step == STEP_RUN && o->exit_reason && o->error) {
		snprintf(why, size, "KVM does not run long-mode code: a loop ended with exit reason %u", o->exit_reason);
		return -o->error;
	}
	if (o->step != STEP_DONE) {
		snprintf(why, size, "%s: %s", steps[o->step], o->error ? strerror(o->error) : "the probe died");
		return o->error ? -o->error : -EIO;
	}
	if (o->us > SLOW_US) {
		snprintf(why, size, "KVM is emulated in software: %d loops took %.1f ms (hardware: less than 1 ms)",
			LOOPS, o->us / 1000.0);
		return -ENODEV;
	}
	snprintf(why, size, "KVM ran %d loops in %.2f ms", LOOPS, o->us / 1000.0);
	return 0;
}

int fcvm_kvm_probe(char *why, size_t size)
{
	struct outcome *o = mmap(NULL, sizeof *o, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int k;

	if (o == MAP_FAILED) {
		snprintf(why, size, "start the KVM probe: %s", strerror(errno));
		return -ENOMEM;
	}
	k = judge(o, run_child(o), why, size);
	munmap(o, sizeof *o);
	return k;
}
