/* SPDX-License-Identifier: MIT */
/* fcvm run: a VM for one program. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "bind/volume_text.h"
#include "fcvm.h"
#include "host/program.h"

FCVM_CLEANUP(struct fcvm_vm, fcvm_vm_free)
FCVM_CLEANUP(struct fcvm_snapshot, fcvm_snapshot_free)

/* Options that say what kind of VM to boot, and mean nothing for a clone. */
static const char *const boot_only[] = {
	"image", "memory", "vcpus", "cold", "driver", "accel", "cmdline", "node", "nested", "balloon", "jail",
	"root"};

/* What --volume and --root say. */
struct folders {
	struct fcvm_volume_text *texts; /* what the other points into */
	struct fcvm_vm_volume *volumes;
	size_t n;
	char root[PATH_MAX];
};

static void folders_done(struct folders *f)
{
	free(f->texts);
	free(f->volumes);
}

static int folders_check(const struct args *args, struct folders *f)
{
	const char *root = args_value(args, "root", NULL), *text;
	struct fcvm_err err = FCVM_ERR_INIT;

	while (args_nth(args, "volume", (int)f->n))
		f->n++;
	if (f->n > FCVM_MAX_VOLUMES)
		return misuse("run: %zu volumes; at most %d are possible", f->n, FCVM_MAX_VOLUMES);
	f->texts = calloc(f->n + 1, sizeof *f->texts);
	f->volumes = calloc(f->n + 1, sizeof *f->volumes);
	if (!f->texts || !f->volumes)
		abort();
	for (size_t i = 0; (text = args_nth(args, "volume", (int)i)); i++) {
		if (fcvm_volume_parse(&f->texts[i], text, &err) < 0)
			return misuse("run: %s", err.message);
		f->volumes[i] = f->texts[i].volume;
	}
	if (root && (!*root || fcvm_volume_host(f->root, root) < 0))
		return misuse("run: --root '%.60s': a folder is wanted", root);
	return 0;
}

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
	config->nested = args_has(args, "nested");
	config->balloon = args_has(args, "balloon");
	config->jail = args_has(args, "jail");
	return 0;
}

static int clone(const char *snapshot, const struct fcvm_vm_config *config, struct fcvm_vm **ret, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_snapshot_free) struct fcvm_snapshot *s = NULL;
	int r = fcvm_snapshot_open(&s, snapshot, err);

	if (r == 0)
		r = fcvm_snapshot_clone(s, config->name, FCVM_DEFAULT_TIMEOUT, ret, err);
	for (size_t i = 0; r == 0 && i < config->nvolumes; i++)
		r = fcvm_vm_mount(*ret, &config->volumes[i], FCVM_DEFAULT_TIMEOUT, err);
	return r;
}

static int run(const struct args *args)
{
	/* What runs on it goes first. */
	_cleanup_(cleanup_fcvm_vm_free) struct fcvm_vm *node = NULL;
	_cleanup_(cleanup_fcvm_vm_free) struct fcvm_vm *vm = NULL;
	_cleanup_(folders_done) struct folders folders = {0};
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	struct fcvm_err err = FCVM_ERR_INIT;
	const char *snapshot = args_value(args, "snapshot", NULL);
	int r = check(args, &config);

	if (r == 0)
		r = folders_check(args, &folders);
	if (r)
		return r;
	config.volumes = folders.volumes;
	config.nvolumes = folders.n;
	config.root = *folders.root ? folders.root : NULL;
	if (snapshot) {
		r = clone(snapshot, &config, &vm, &err);
	} else {
		if (args_has(args, "node"))
			r = fcvm_vm_attach(&node, args_value(args, "node", ""), &err);
		config.node = node;
		if (r == 0)
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
	{0, "driver", "NAME", "the virtual machine monitor: firecracker or qemu (what works here)"},
	{0, "accel", "NAME", "kvm or tcg (kvm if it works here)"},
	{0, "cmdline", "WORDS", "add to the kernel's command line"},
	{0, "node", "ID", "run it on this VM, which runs already and was started with --nested"},
	{0, "nested", NULL, "let it run VMs: its guest loads KVM where the processor has it"},
	{0, "balloon", NULL, "give it a balloon (firecracker)"},
	{0, "jail", NULL, "confine the VMM: user, file system and cgroup of its own (firecracker, as root)"},
	{'v', "volume", "HOST:GUEST", "mount this folder there, HOST:GUEST:ro read-only; may be repeated"},
	{0, "root", "DIR", "a folder here as its root, read-only beneath a tmpfs: /, or a Debian tree"},
	PROGRAM_OPTIONS,
	{0},
};

const struct verb verb_run = {
	.name = "run",
	.operands = "[--] CMD [ARG...]",
	.summary = "Start a VM, run a program in it, and end it",
	.help = PROGRAM_HELP "\n\n"
			     "What follows HOST:GUEST: are ro or rw, devices, locks=guest (they exclude in\n"
			     "the guest only), readers=N, timeout=SECONDS (of names and attributes),\n"
			     "uid_map=GUEST:HOST:COUNT and gid_map=, with commas between them.\n\n"
			     "Examples:\n"
			     "  fcvm run -- uname -a\n"
			     "  fcvm run --memory 1G -- sh\n"
			     "  tar c src | fcvm run -- sh -c 'tar x; ls src'\n"
			     "  fcvm run -v src:/work:ro -w /work -- ls\n"
			     "  fcvm run --root / -v .:$PWD -w $PWD -- make",
	.options = options,
	.min = 1,
	.max = -1,
	.stop = 1,
	.run = run,
};
