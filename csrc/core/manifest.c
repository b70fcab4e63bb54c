/* SPDX-License-Identifier: MIT */
/* What a snapshot of a VM says of itself, and whether this host can use it. */
#include <fcntl.h>
#include <pthread.h>
#include <string.h>

#include "base/fd.h"
#include "core/vm.h"

static char cpu_model[256]; /* written once */

static void read_cpu_model(void)
{
	char *text = NULL, *at;

	if (fcvm_file_read(AT_FDCWD, "/proc/cpuinfo", 16 << 20, &text, NULL) < 0)
		return;
	at = strstr(text, "model name");
	at = at ? strchr(at, ':') : NULL;
	if (at)
		snprintf(cpu_model, sizeof cpu_model, "%.*s", (int)strcspn(at + 2, "\n"), at + 2);
	free(text);
}

const char *host_cpu(const struct vmm_probe *p)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	if (strcmp(p->accel, "kvm") != 0)
		return "";
	pthread_once(&once, read_cpu_model);
	return cpu_model;
}

struct fcvm_manifest vm_manifest(const struct fcvm_vm *vm)
{
	return (struct fcvm_manifest){
		.driver = (char *)vm->with.driver->name,
		.version = vm->with.probe->version,
		.accel = vm->with.probe->accel,
		.machine = vm->with.probe->machine,
		.image = vm->image,
		.kernel = vm->kernel,
		.agent = FCVM_VERSION,
		.vm_name = vm->name,
		.host_cpu = (char *)host_cpu(vm->with.probe),
		.memory = vm->memory,
		.vcpus = vm->vcpus,
		.generation = vm->generation,
		.created_ns = fcvm_realtime_ns(),
		.tsc_khz = vm->with.probe->tsc_khz,
		.nested = vm->nested,
		.balloon = vm->balloon,
		.jail = vm->jail,
		.volumes = (struct fcvm_manifest_volume *)vm->volumes.config,
		.nvolumes = volumes_mounted(&vm->volumes),
	};
}

int manifest_fits_choice(const struct fcvm_manifest *m, const char *snapshot, const struct choice *with,
	struct fcvm_err *err)
{
	struct fcvm_manifest_differs here = {
		.driver = with->driver->name,
		.version = with->probe->version,
		.accel = with->probe->accel,
		.machine = with->probe->machine,
		.host_cpu = host_cpu(with->probe),
		.tsc_khz = with->probe->tsc_khz,
	};

	return fcvm_manifest_fits(m, snapshot, &here, err);
}
