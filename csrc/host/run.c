/* SPDX-License-Identifier: MIT */
/* fcvm run: a VM for one program. */
#include "base/cleanup.h"
#include "fcvm.h"
#include "host/program.h"

FCVM_CLEANUP(struct fcvm_vm, fcvm_vm_free)
FCVM_CLEANUP(struct fcvm_snapshot, fcvm_snapshot_free)

/* Options that say what kind of VM to boot, and mean nothing for a clone. */
static const char *const boot_only[] = {
	"image", "memory", "vcpus", "cold", "driver", "accel", "cmdline"};

static int check(const struct args *args, struct fcvm_vm_config *config)
{
	unsigned long long memory = config->memory;
	int r = args_size(args, "memory", &memory);

	if (r == 0)
		r = args_count(args, "vcpus", &config->vcpus);
	if (r == 0)
		r = program_check(args);
	if (r)
		return r;
	for (unsigned i = 0; args_has(args, "snapshot") && i < sizeof boot_only / sizeof *boot_only;
		i++)
		if (args_has(args, boot_only[i]))
			return misuse(
				"run: --%s has no meaning for a clone of a snapshot", boot_only[i]);
	config->memory = memory;
	config->name = args_value(args, "name", NULL);
	config->image = args_value(args, "image", NULL);
	config->driver = args_value(args, "driver", NULL);
	config->accel = args_value(args, "accel", NULL);
	config->cmdline = args_value(args, "cmdline", NULL);
	config->cold = args_has(args, "cold");
	return 0;
}

static int clone(const char *snapshot, const char *name, struct fcvm_vm **ret, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_snapshot_free) struct fcvm_snapshot *s = NULL;
	int r = fcvm_snapshot_open(&s, snapshot, err);

	return r < 0 ? r : fcvm_snapshot_clone(s, name, FCVM_DEFAULT_TIMEOUT, ret, err);
}

static int run(const struct args *args)
{
	_cleanup_(cleanup_fcvm_vm_free) struct fcvm_vm *vm = NULL;
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	struct fcvm_err err = FCVM_ERR_INIT;
	const char *snapshot = args_value(args, "snapshot", NULL);
	int r = check(args, &config);

	if (r)
		return r;
	if (snapshot) {
		r = clone(snapshot, config.name, &vm, &err);
	} else {
		r = fcvm_vm_new(&vm, &config, &err);
		if (r == 0)
			r = fcvm_vm_start(vm, FCVM_DEFAULT_TIMEOUT, &err);
	}
	return r < 0 ? failed(&err) : program_run(args, 0, vm);
}

static const struct option options[] = {
	{'m', "memory", "SIZE", "the guest's memory: 512M, 2G (256M)"},
	{'c', "vcpus", "N", "its processors (1)"},
	{'i', "image", "NAME", "what it boots (mini)"},
	{'n', "name", "NAME", "its name among running VMs (made up)"},
	{0, "snapshot", "NAME", "clone this snapshot instead of booting an image"},
	{0, "cold", NULL, "boot it, even if a snapshot of such a VM is kept from an earlier boot"},
	{0, "driver", "NAME", "the virtual machine monitor: qemu (what works here)"},
	{0, "accel", "NAME", "kvm or tcg (kvm if it works here)"},
	{0, "cmdline", "WORDS", "add to the kernel's command line"},
	PROGRAM_OPTIONS,
	{0},
};

const struct verb verb_run = {
	.name = "run",
	.operands = "[--] CMD [ARG...]",
	.summary = "Start a VM, run a program in it, and end it",
	.help = PROGRAM_HELP "\n\n"
			     "Examples:\n"
			     "  fcvm run -- uname -a\n"
			     "  fcvm run --memory 1G -- sh\n"
			     "  tar c src | fcvm run -- sh -c 'tar x; ls src'",
	.options = options,
	.min = 1,
	.max = -1,
	.stop = 1,
	.run = run,
};
