/* SPDX-License-Identifier: MIT */
/* What would be used here, and why not the other. */
#include <errno.h>
#include <linux/landlock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/kvm.h"
#include "core/runtime.h"

struct report {
	struct fcvm_json *checks;
	bool ok; /* nothing that is needed is missing */
};

static void add(struct report *to, const char *name, bool ok, const char *value, const char *remedy)
{
	struct fcvm_json *c = fcvm_json_object();

	if (!c)
		return;
	fcvm_json_set_string(c, "name", name);
	fcvm_json_set_bool(c, "ok", ok);
	fcvm_json_set_string(c, "value", value);
	fcvm_json_set_string(c, "remedy", remedy);
	fcvm_json_append(to->checks, c);
}

static void check_kvm(struct report *to)
{
	char why[256] = "";
	int r = fcvm_kvm_probe(why, sizeof why);
	const char *remedy = "";

	if (r == -EACCES || r == -EPERM)
		remedy = "adduser $USER kvm, and log in again";
	else if (r == -ENOENT)
		remedy = "enable virtualization in the firmware, or nested virtualization in the host; 'modprobe "
			 "kvm_amd' or 'kvm_intel'";
	else if (r < 0)
		remedy = "none: QEMU's emulation (tcg) is quicker here";
	/* Not being there is no fault: tcg works, too. */
	add(to, "kvm", r == 0, why, remedy);
}

static void check_folder(struct report *to, const char *name, const char *path, uint64_t want,
	const char *remedy)
{
	struct statvfs st;
	struct statfs fs;
	uint64_t left;
	char value[512];

	if (statvfs(path, &st) < 0 || statfs(path, &fs) < 0) {
		snprintf(value, sizeof value, "%s: %s", path, strerror(errno));
		add(to, name, false, value, remedy);
		to->ok = false;
		return;
	}
	left = (uint64_t)st.f_bavail * st.f_frsize;
	snprintf(value, sizeof value, "%s (%s, %.1f GiB free)", path, fs.f_type == 0x01021994 ? "tmpfs" : "disk",
		left / (double)FCVM_GIB);
	add(to, name, left >= want, value, left >= want ? "" : remedy);
}

static void check_file(struct report *to, const char *file)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	_cleanup_free_ char *path = NULL;

	if (fcvm_store_libexec(file, &path, &err) == 0) {
		add(to, file, true, path, "");
		return;
	}
	add(to, file, false, err.message, "install fcvm, or set FCVM_LIBEXEC to its build folder");
	to->ok = false;
}

/* What keeps a volume's server in its folder once its guest has taken it over (fusepipe/host/sandbox.c). */
static void check_confinement(struct report *to)
{
	bool root = geteuid() == 0;
	bool landlock = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) >= 2;

	/* Volumes work without. */
	add(to, "volumes' sandbox", root || landlock,
		root ? "mount namespace, system call filter" : landlock ? "Landlock, system call filter"
									: "system call filter; no Landlock",
		root || landlock ? "" : "a guest that takes a volume's server over reaches all files that you can: Linux 5.19 or "
					"newer, with landlock among the kernel's lsm=");
}

static void describe(const struct choice *with, char *to, size_t size)
{
	snprintf(to, size, "%s %s, %s: %s (%s)", with->driver->name, with->probe->version, with->probe->accel,
		with->probe->why, with->probe->binary);
}

/* As fcvm_vm_new() has it. */
static const char *wanted(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

/* Each of them, and the one that is chosen where nobody asks for another. */
static void check_drivers(struct report *to, struct runtime *rt, struct fcvm_json *all)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	struct choice with;
	char value[512], name[64];

	for (unsigned i = 0; fcvm_vmm_drivers[i]; i++) {
		snprintf(name, sizeof name, "driver %s", fcvm_vmm_drivers[i]->name);
		if (place_choose(runtime_here(rt), fcvm_vmm_drivers[i]->name, NULL, NULL, &with, &err) < 0) {
			add(to, name, false, err.message, fcvm_vmm_drivers[i]->remedy);
			continue;
		}
		describe(&with, value, sizeof value);
		add(to, name, true, value, "");
	}
	if (place_choose(runtime_here(rt), wanted("FCVM_DRIVER"), wanted("FCVM_ACCEL"), NULL, &with, &err) < 0) {
		add(to, "vmm", false, err.message, "scripts/fetch-qemu, or apt-get install qemu-system-x86");
		to->ok = false;
		return;
	}
	describe(&with, value, sizeof value);
	add(to, "vmm", true, value, "");
	fcvm_json_set_string(all, "driver", with.driver->name);
	fcvm_json_set_string(all, "version", with.probe->version);
	fcvm_json_set_string(all, "accel", with.probe->accel);
	fcvm_json_set_string(all, "binary", with.probe->binary);
}

static void check_images(struct report *to, struct runtime *rt)
{
	struct fcvm_json *images = fcvm_json_array();

	if (images && fcvm_image_list(runtime_store(rt), images, NULL) == 0 && fcvm_json_count(images) > 0)
		add(to, "image", true, fcvm_json_string(fcvm_json_at(images, 0), "name", "?"), "");
	else
		add(to, "image", false, "none is built", "fcvm image build mini (the first start does it, too)");
	fcvm_json_free(images);
}

int fcvm_doctor(char **ret_json, struct fcvm_err *err)
{
	struct fcvm_json *all = fcvm_json_object();
	struct report to = {.checks = fcvm_json_array(), .ok = true};
	struct runtime *rt = NULL;
	int r = all && to.checks ? runtime_get(&rt, err) : fcvm_fail_errno(err, -ENOMEM, "doctor");

	if (r < 0) {
		fcvm_json_free(all);
		fcvm_json_free(to.checks);
		return r;
	}
	check_kvm(&to);
	check_drivers(&to, rt, all);
	check_file(&to, "fcvm-agent");
	check_file(&to, "fcvm-volume");
	check_file(&to, "libfcvm-ram.so");
	check_confinement(&to);
	check_folder(&to, "data folder", fcvm_store_data(runtime_store(rt)), FCVM_GIB,
		"make room, or set FCVM_DATA to a folder on a larger disk");
	check_folder(&to, "run folder", fcvm_store_run(runtime_store(rt)), FCVM_GIB,
		"guests' memory lives there: make room, or set FCVM_RUN to a folder on a larger tmpfs");
	check_images(&to, rt);
	runtime_put(rt);
	fcvm_json_set_bool(all, "ok", to.ok);
	fcvm_json_set(all, "checks", to.checks);
	*ret_json = fcvm_json_print(all, 0);
	fcvm_json_free(all);
	return *ret_json ? 0 : fcvm_fail_errno(err, -ENOMEM, "doctor");
}
