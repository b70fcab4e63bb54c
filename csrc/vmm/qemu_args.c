/* SPDX-License-Identifier: MIT */
/*
 * QEMU's command line. What boots and what restores differ in as little as can be (a snapshot's devices must all be
 * there): a restored one has no kernel, initrd and command line, which it would keep in memory for nothing.
 *
 * Figures behind the choices (Debian's 6.1 kernel under TCG, exec to panic for want of a root, 2.0 s in all):
 * the full kernel log costs nothing measurable against `quiet`; rtc=off costs 2 s (the kernel waits for one);
 * x-option-roms=off does not boot; cryptomgr.notests saves 0.25 s; mitigations=off 0.05 s, and TCG has no
 * speculation to mitigate. Told the TSC's frequency, the kernel never sets the PIT up, which then wakes an idle guest
 * 36 times a second: without it fifty idle clones take 11% of a core, with it 24%. Emulated rep stosb is slow, and so
 * is clearing each page twice: init_on_alloc=0 and a CPU without erms and fsrm take 16% off an exec.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "vmm/qemu_private.h"
#include "wire/wire.h"

static void put(struct qemu_args *a, char **list, unsigned *n, unsigned max, char *text)
{
	if (!text || *n + 1 >= max) {
		a->failed = a->failed ? a->failed : text ? -E2BIG : -ENOMEM;
		free(text);
		return;
	}
	list[(*n)++] = text;
}

static void arg(struct qemu_args *a, char *text) /* takes text */
{
	put(a, a->argv, &a->nargv, sizeof a->argv / sizeof *a->argv, text);
}

static void args(struct qemu_args *a, const char *option, char *value) /* takes value */
{
	arg(a, strdup(option));
	arg(a, value);
}

static void env(struct qemu_args *a, char *text) /* takes text */
{
	put(a, a->env, &a->nenv, sizeof a->env / sizeof *a->env, text);
}

/* In QEMU's option lists a comma is written twice. */
static char *escape(const char *text)
{
	char *to = malloc(2 * strlen(text) + 1), *at = to;

	for (; to && *text; text++) {
		*at++ = *text;
		if (*text == ',')
			*at++ = ',';
	}
	if (to)
		*at = 0;
	return to;
}

static bool is_tcg(const struct vmm_probe *p)
{
	return strcmp(p->accel, "tcg") == 0;
}

static void add_machine(struct qemu_args *a, const struct vmm_machine *m, const struct vmm_probe *p, bool wait,
	const char *memory_path)
{
	_cleanup_free_ char *path = escape(memory_path);
	_cleanup_free_ char *name = escape(m->name);

	args(a, "-name", name ? fcvm_asprintf("guest=%s", name) : NULL);
	/* One I/O APIC has room for all the devices there are, and makes 8 virtio transports instead of 24. */
	args(a, "-machine", fcvm_asprintf("microvm,acpi=on,ioapic2=off,memory-backend=ram,mem-merge=off,"
		"dump-guest-core=off,suppress-vmdesc=on%s", is_tcg(p) ? ",pit=off" : ""));
	arg(a, strdup("-nodefaults"));
	arg(a, strdup("-no-user-config"));
	args(a, "-display", strdup("none"));
	arg(a, strdup("-no-reboot"));
	/* A restored guest runs little new code, but never give it less: below 16 MiB it translates for ever. One with
	 * guests of its own runs their kernels as well: with 16 MiB such a boot takes 22 s of processor time, with 64 or
	 * 256 MiB 8. Only what is translated takes memory. */
	if (is_tcg(p))
		args(a, "-accel", strdup(!wait ? "tcg" : m->nested ? "tcg,tb-size=128" : "tcg,tb-size=16"));
	else
		args(a, "-accel", strdup(p->accel));
	/* Without a need for it the guest has no virtualization: its state is one thing less that a snapshot depends on. */
	args(a, "-cpu", strdup(is_tcg(p) ? QEMU_TCG_CPU : m->nested ? "host" : "host,svm=off,vmx=off"));
	args(a, "-smp", fcvm_asprintf("%u", m->vcpus));
	args(a, "-m", fcvm_asprintf("size=%lluM", (unsigned long long)(m->memory >> 20)));
	args(a, "-object", path ? fcvm_asprintf("memory-backend-file,id=ram,size=%llu,share=on,mem-path=%s",
		(unsigned long long)m->memory, path) : NULL);
}

/* ports: those of the snapshot, which lead nowhere yet. */
static void add_devices(struct qemu_args *a, uint32_t ports)
{
	args(a, "-chardev", fcvm_asprintf("socket,id=qmp,fd=%d", QEMU_QMP));
	args(a, "-mon", strdup("chardev=qmp,mode=control"));
	args(a, "-chardev", strdup("stdio,id=console,signal=off"));
	args(a, "-serial", strdup("chardev:console"));
	args(a, "-chardev", fcvm_asprintf("socket,id=agent,fd=%d", QEMU_AGENT));
	args(a, "-device", fcvm_asprintf("virtio-serial-device,max_ports=%d", QEMU_PORT_FIRST + QEMU_PORTS));
	args(a, "-device", strdup("virtserialport,nr=1,chardev=agent,name=" FCVM_WIRE_PORT_NAME));
	for (unsigned i = 0; i < QEMU_PORTS; i++) {
		if (!(ports & 1u << i))
			continue;
		args(a, "-chardev", fcvm_asprintf("ringbuf,id=" QEMU_PORT_CHARDEV ",size=%d", i, QEMU_PORT_NOWHERE));
		args(a, "-device", fcvm_asprintf("virtserialport,id=" QEMU_PORT_DEVICE ",nr=%u,chardev=" QEMU_PORT_CHARDEV
			",name=" FCVM_WIRE_PORT_STREAM, i, QEMU_PORT_FIRST + i, i, i));
	}
}

/* In the guest /dev/vda, vdb, ... in this order. */
static void add_drives(struct qemu_args *a, const struct vmm_machine *m)
{
	for (unsigned i = 0; i < m->ndrives; i++) {
		const struct vmm_drive *d = &m->drives[i];
		_cleanup_free_ char *full = *d->path == '/' ? strdup(d->path) : fcvm_asprintf("%s/%s", m->dir, d->path);
		_cleanup_free_ char *path = full ? escape(full) : NULL;

		args(a, "-blockdev", path ? fcvm_asprintf("driver=raw,node-name=drive%u,read-only=%s,discard=unmap,"
			"file.driver=file,file.filename=%s", i, d->readonly ? "on" : "off", path) : NULL);
		args(a, "-device", fcvm_asprintf("virtio-blk-device,drive=drive%u", i));
	}
}

static void add_kernel(struct qemu_args *a, const struct vmm_machine *m, const struct vmm_probe *p)
{
	/* Without its frequency the kernel calibrates the TSC against the PIT, which hangs in one boot of five
	 * under TCG; there it is the host's. A vCPU that waited for a processor makes the watchdog call it
	 * unstable, and the timer interrupt broken. */
	char tcg[160] = "";

	if (is_tcg(p))
		snprintf(tcg, sizeof tcg, " mitigations=off init_on_alloc=0 no_timer_check tsc=reliable tsc_early_khz=%llu",
			(unsigned long long)p->tsc_khz);
	args(a, "-kernel", strdup(m->kernel));
	if (m->initrd)
		args(a, "-initrd", strdup(m->initrd));
	args(a, "-append", fcvm_asprintf("console=ttyS0 earlyprintk=ttyS0 reboot=t panic=-1 cryptomgr.notests%s%s%s",
		tcg, m->cmdline && m->cmdline[0] ? " " : "", m->cmdline ? m->cmdline : ""));
}

static void add_env(struct qemu_args *a, const struct vmm_machine *m, const struct vmm_probe *p, bool wait,
	const char *memory_path)
{
	const char *list[QEMU_ENV_MAX];

	fcvm_qemu_env(p, list);
	for (unsigned i = 0; list[i]; i++)
		env(a, strdup(list[i]));
	env(a, fcvm_asprintf("LD_PRELOAD=%s", fcvm_json_string(p->own, "library", "")));
	env(a, fcvm_asprintf(FCVM_RAM_ENV_SIZE "=%llu", (unsigned long long)m->memory));
	if (wait)
		env(a, fcvm_asprintf(FCVM_RAM_ENV_PRIVATE "=%s", memory_path));
}

int fcvm_qemu_args_make(struct qemu_args *a, const struct vmm_machine *m, const struct vmm_probe *p, bool wait,
	const char *memory_path, struct fcvm_err *err)
{
	const char *library = fcvm_json_string(p->own, "library", "");
	const char *data_dir = fcvm_json_string(p->own, "data_dir", NULL);

	*a = (struct qemu_args){0};
	if (!*library || strpbrk(library, " :"))
		return fcvm_fail(err, -EINVAL, "%s: %s: no path that the dynamic linker preloads (FCVM_LIBEXEC)",
			m->name, *library ? library : "(no library)");
	if (strlen(memory_path) >= FCVM_RAM_PATH)
		return fcvm_fail_errno(err, -ENAMETOOLONG, "%s: %s", m->name, memory_path);
	if (m->memory == 0 || m->memory % (1 << 20) != 0)
		return fcvm_fail(err, -EINVAL, "%s: memory of %llu bytes: want whole MiB", m->name,
			(unsigned long long)m->memory);
	arg(a, strdup(p->binary));
	if (data_dir)
		args(a, "-L", strdup(data_dir));
	add_machine(a, m, p, wait, memory_path);
	add_devices(a, wait ? m->ports : 0);
	add_drives(a, m);
	if (wait) {
		args(a, "-incoming", strdup("defer"));
		arg(a, strdup("-S"));
	} else {
		add_kernel(a, m, p);
	}
	add_env(a, m, p, wait, memory_path);
	if (a->failed)
		return fcvm_fail_errno(err, a->failed, "%s: QEMU's command line", m->name);
	return 0;
}

void fcvm_qemu_args_done(struct qemu_args *a)
{
	for (unsigned i = 0; i < a->nargv; i++)
		free(a->argv[i]);
	for (unsigned i = 0; i < a->nenv; i++)
		free(a->env[i]);
	*a = (struct qemu_args){0};
}
