/* SPDX-License-Identifier: MIT */
/*
 * What Firecracker is asked, in the words of its API. Only what 1.12 knows: a field that a version does not know is
 * refused.
 */
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "vmm/fc_private.h"

/* A field that could not be set leaves the whole NULL: half a request must not be sent. */
static struct fcvm_json *object_or_null(struct fcvm_json *o, int failed)
{
	if (o && !failed)
		return o;
	fcvm_json_free(o);
	return NULL;
}

/*
 * reboot=k: Firecracker has no way to power off, and takes the keyboard controller's reset for the end; the agent is
 * told so. Of that controller nothing else is wanted, nor is a PCI bus looked for.
 */
static char *boot_args(const struct vmm_machine *m)
{
	return fcvm_asprintf("console=ttyS0 reboot=k panic=-1 pci=off tsc=nowatchdog i8042.noaux i8042.nomux i8042.dumbkbd "
		"cryptomgr.notests fcvm.poweroff=reboot%s%s", m->cmdline && m->cmdline[0] ? " " : "",
		m->cmdline ? m->cmdline : "");
}

static struct fcvm_json *boot_source(const struct vmm_machine *m)
{
	_cleanup_free_ char *text = boot_args(m);
	struct fcvm_json *o = text ? fcvm_json_object() : NULL;
	int failed = 0;

	if (o) {
		failed |= fcvm_json_set_string(o, "kernel_image_path", m->kernel);
		if (m->initrd)
			failed |= fcvm_json_set_string(o, "initrd_path", m->initrd);
		failed |= fcvm_json_set_string(o, "boot_args", text);
	}
	return object_or_null(o, failed);
}

static struct fcvm_json *machine_config(const struct vmm_machine *m)
{
	struct fcvm_json *o = fcvm_json_object();
	int failed = 0;

	if (o) {
		failed |= fcvm_json_set_int(o, "vcpu_count", m->vcpus);
		failed |= fcvm_json_set_int(o, "mem_size_mib", m->memory >> 20);
		failed |= fcvm_json_set_bool(o, "smt", false);
		failed |= fcvm_json_set_bool(o, "track_dirty_pages", m->track);
	}
	return object_or_null(o, failed);
}

static struct fcvm_json *vsock(void)
{
	struct fcvm_json *o = fcvm_json_object();
	int failed = 0;

	if (o) {
		failed |= fcvm_json_set_int(o, "guest_cid", 3);
		failed |= fcvm_json_set_string(o, "uds_path", FC_VSOCK);
	}
	return object_or_null(o, failed);
}

static struct fcvm_json *drive(const struct vmm_drive *d, unsigned i)
{
	struct fcvm_json *o = fcvm_json_object();
	char id[16];
	int failed = 0;

	snprintf(id, sizeof id, "drive%u", i);
	if (o) {
		failed |= fcvm_json_set_string(o, "drive_id", id);
		failed |= fcvm_json_set_bool(o, "is_root_device", false);
		failed |= fcvm_json_set_string(o, "path_on_host", d->path);
		failed |= fcvm_json_set_bool(o, "is_read_only", d->readonly);
	}
	return object_or_null(o, failed);
}

static struct fcvm_json *drives(const struct vmm_machine *m)
{
	struct fcvm_json *list = fcvm_json_array();
	int failed = 0;

	for (unsigned i = 0; list && i < m->ndrives; i++) {
		struct fcvm_json *d = drive(&m->drives[i], i);

		failed |= d ? fcvm_json_append(list, d) : -1;
	}
	return object_or_null(list, failed);
}

/* Without statistics: they would wake the guest, and nobody asks for them. */
static struct fcvm_json *balloon(void)
{
	struct fcvm_json *o = fcvm_json_object();
	int failed = 0;

	if (o) {
		failed |= fcvm_json_set_int(o, "amount_mib", 0);
		failed |= fcvm_json_set_bool(o, "deflate_on_oom", true);
		failed |= fcvm_json_set_int(o, "stats_polling_interval_s", 0);
	}
	return object_or_null(o, failed);
}

static int add(struct fcvm_json *o, const char *key, struct fcvm_json *value) /* steals value */
{
	return value ? fcvm_json_set(o, key, value) : -1;
}

struct fcvm_json *fcvm_fc_config(const struct vmm_machine *m)
{
	struct fcvm_json *o = fcvm_json_object();
	int failed = 0;

	if (o) {
		failed |= add(o, "boot-source", boot_source(m));
		failed |= add(o, "machine-config", machine_config(m));
		failed |= add(o, "drives", drives(m));
		failed |= add(o, "vsock", vsock());
		failed |= add(o, "entropy", fcvm_json_object());
		if (m->balloon)
			failed |= add(o, "balloon", balloon());
	}
	return object_or_null(o, failed);
}

struct fcvm_json *fcvm_fc_load(const char *state_file, const char *memory_file, const char *dirty_field)
{
	struct fcvm_json *o = fcvm_json_object(), *backend = fcvm_json_object();
	int failed = !backend;

	if (backend) {
		failed |= fcvm_json_set_string(backend, "backend_type", "File");
		failed |= fcvm_json_set_string(backend, "backend_path", memory_file);
	}
	if (o) {
		failed |= fcvm_json_set_string(o, "snapshot_path", state_file);
		failed |= add(o, "mem_backend", fcvm_steal_ptr(backend));
		failed |= fcvm_json_set_bool(o, "resume_vm", true);
		if (dirty_field)
			failed |= fcvm_json_set_bool(o, dirty_field, true);
	}
	fcvm_json_free(backend);
	return object_or_null(o, failed);
}

struct fcvm_json *fcvm_fc_create(const char *type, const char *state_file, const char *memory_file)
{
	struct fcvm_json *o = fcvm_json_object();
	int failed = 0;

	if (o) {
		failed |= fcvm_json_set_string(o, "snapshot_type", type);
		failed |= fcvm_json_set_string(o, "snapshot_path", state_file);
		failed |= fcvm_json_set_string(o, "mem_file_path", memory_file);
	}
	return object_or_null(o, failed);
}

static struct fcvm_json *one_string(const char *key, const char *value)
{
	struct fcvm_json *o = fcvm_json_object();

	return object_or_null(o, o ? fcvm_json_set_string(o, key, value) : 0);
}

struct fcvm_json *fcvm_fc_state_of(const char *state)
{
	return one_string("state", state);
}

struct fcvm_json *fcvm_fc_action(const char *action)
{
	return one_string("action_type", action);
}

struct fcvm_json *fcvm_fc_balloon(uint64_t bytes)
{
	struct fcvm_json *o = fcvm_json_object();

	return object_or_null(o, o ? fcvm_json_set_int(o, "amount_mib", bytes >> 20) : 0);
}
