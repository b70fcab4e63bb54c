/* SPDX-License-Identifier: MIT */
/* The public interface against real guests: life cycle, snapshots, clones, and what goes wrong with them. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test_vm.h"

static struct fcvm_vm *start(const char *name, bool cold)
{
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	struct fcvm_vm *vm = NULL;

	config.name = name;
	config.memory = 128 * FCVM_MIB;
	config.cold = cold;
	CHECK(ok(fcvm_vm_new(&vm, &config, &err)));
	CHECK(ok(fcvm_vm_start(vm, FCVM_DEFAULT_TIMEOUT, &err)));
	return vm;
}

/* A checksum of a file that must not change. */
static uint64_t sum_of(const char *dir, const char *name)
{
	char path[512], buf[65536];
	uint64_t sum = 14695981039346656037u;
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "%s/%s", dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	while ((n = read(fd, buf, sizeof buf)) > 0)
		for (ssize_t i = 0; i < n; i += 8)
			sum = (sum ^ *(uint64_t *)(buf + i)) * 1099511628211u;
	close(fd);
	return sum;
}

static void test_misuse(void)
{
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	struct fcvm_vm *vm = NULL;
	struct fcvm_exec_result out;

	config.memory = 12345;
	CHECK(fcvm_vm_new(&vm, &config, &err) == -EINVAL && says("memory of 12345 bytes"));
	config.memory = 128 * FCVM_MIB;
	config.name = "../x";
	CHECK(fcvm_vm_new(&vm, &config, &err) == -EINVAL && says("name '../x'"));
	config.name = NULL;
	config.image = "no-such-image";
	CHECK(ok(fcvm_vm_new(&vm, &config, &err)));
	CHECK(fcvm_vm_exec(vm, (const char *[]){"true", NULL}, NULL, &out, &err) == -EINVAL && says("it is new"));
	CHECK(fcvm_vm_pause(vm, &err) == -EINVAL);
	CHECK(fcvm_vm_start(vm, 1000, &err) == -ENOENT && says("no-such-image") && says("mini"));
	fcvm_vm_free(vm);
	CHECK(fcvm_vm_attach(&vm, "nobody", &err) == -ENOENT && says("nobody"));
}

static void test_life(void)
{
	struct fcvm_vm *vm = start("life", false), *second = NULL;
	struct fcvm_vm_info info;
	struct fcvm_exec_result out;
	int status = -1;

	CHECK(strcmp(sh(vm, "hostname; exit 0"), "life\n") == 0);
	CHECK(ok(fcvm_vm_exec(vm, (const char *[]){"sh", "-c", "echo out; echo err >&2; exit 3", NULL}, NULL, &out, &err)));
	CHECK(out.status == 3 && strcmp(out.stdout_data, "out\n") == 0 && strcmp(out.stderr_data, "err\n") == 0);
	fcvm_exec_result_done(&out);
	fcvm_vm_get_info(vm, &info);
	CHECK(info.state == FCVM_VM_RUNNING && info.memory == 128 * FCVM_MIB && info.pid > 0 && strlen(info.id) == 8);
	CHECK(vms_listed() == 1);
	CHECK(ok(fcvm_vm_attach(&second, "life", &err)));
	CHECK(strcmp(sh(second, "hostname"), "life\n") == 0);
	CHECK(fcvm_vm_pause(second, &err) == -EPERM);
	fcvm_vm_free(second);
	CHECK(ok(fcvm_vm_pause(vm, &err)));
	CHECK(fcvm_vm_exec(vm, (const char *[]){"true", NULL}, NULL, &out, &err) == -EINVAL && says("paused"));
	CHECK(ok(fcvm_vm_resume(vm, &err)));
	CHECK(ok(fcvm_vm_ping(vm, FCVM_DEFAULT_TIMEOUT, NULL, &err)));
	CHECK(ok(fcvm_vm_stop(vm, FCVM_DEFAULT_TIMEOUT, &err)));
	CHECK(ok(fcvm_vm_wait(vm, 1000, &status, &err)) && status == 0);
	CHECK(ok(fcvm_vm_stop(vm, FCVM_DEFAULT_TIMEOUT, &err)));
	CHECK(vms_listed() == 0);
	fcvm_vm_free(vm);
}

static void test_going_on(void)
{
	struct fcvm_vm *vm = start("source", false), *clone = NULL, *grandchild = NULL;
	struct fcvm_snapshot_config config = FCVM_SNAPSHOT_CONFIG_INIT;
	struct fcvm_run_options options = FCVM_RUN_OPTIONS_INIT;
	struct fcvm_snapshot *first = NULL, *second = NULL;
	struct fcvm_snapshot_info info;
	struct fcvm_program *p = NULL;
	char buf[256];
	uint64_t sum;

	options.null_stdin = true;
	CHECK(ok(fcvm_vm_spawn(vm, (const char *[]){"sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done", NULL},
		&options, &p, &err)));
	CHECK(fcvm_program_read(p, 1, buf, sizeof buf, 5000, &err) > 0);
	sh(vm, "echo one > /tmp/mark");
	CHECK(ok(fcvm_vm_snapshot(vm, &config, FCVM_DEFAULT_TIMEOUT, &first, &err)));
	fcvm_snapshot_get_info(first, &info);
	printf("snapshot: published %.1f ms after the pause, source down %.1f ms\n", info.pause_ms, info.downtime_ms);
	sum = sum_of(info.dir, "memory");
	/* The source has lost nothing, least of all its streams. */
	for (unsigned i = 0; i < 5; i++)
		CHECK(fcvm_program_read(p, 1, buf, sizeof buf, 5000, &err) > 0);
	sh(vm, "echo two > /tmp/mark");
	CHECK(ok(fcvm_snapshot_clone(first, NULL, FCVM_DEFAULT_TIMEOUT, &clone, &err)));
	CHECK(strcmp(sh(clone, "cat /tmp/mark; hostname"), "one\nsource-1\n") == 0);
	CHECK(strcmp(sh(vm, "cat /tmp/mark; hostname"), "two\nsource\n") == 0);
	CHECK(strcmp(sh(vm, "cat /etc/machine-id"), sh(clone, "cat /etc/machine-id")) != 0);
	CHECK(strcmp(sh(vm, "head -c 16 /dev/urandom | md5sum"), sh(clone, "head -c 16 /dev/urandom | md5sum")) != 0);
	/* A clone's snapshot, and its clone; the source's second one. */
	sh(clone, "echo three > /tmp/mark; head -c 8000000 /dev/urandom > /tmp/noise; md5sum /tmp/noise > /tmp/sum");
	CHECK(ok(fcvm_vm_snapshot(clone, &config, FCVM_DEFAULT_TIMEOUT, &second, &err)));
	CHECK(ok(fcvm_snapshot_clone(second, "grandchild", FCVM_DEFAULT_TIMEOUT, &grandchild, &err)));
	CHECK(strcmp(sh(grandchild, "cat /tmp/mark; hostname; md5sum -c /tmp/sum"), "three\ngrandchild\n/tmp/noise: OK\n") == 0);
	CHECK(strcmp(sh(clone, "cat /tmp/mark; md5sum -c /tmp/sum"), "three\n/tmp/noise: OK\n") == 0);
	CHECK(sum_of(info.dir, "memory") == sum);
	fcvm_vm_free(grandchild);
	fcvm_snapshot_free(second);
	config.stop = true;
	CHECK(ok(fcvm_vm_snapshot(vm, &config, FCVM_DEFAULT_TIMEOUT, &second, &err)));
	CHECK(ok(fcvm_snapshot_clone(second, NULL, FCVM_DEFAULT_TIMEOUT, &grandchild, &err)));
	CHECK(strcmp(sh(grandchild, "cat /tmp/mark"), "two\n") == 0);
	fcvm_program_free(p);
	fcvm_vm_free(grandchild);
	fcvm_vm_free(clone);
	fcvm_vm_free(vm);
	fcvm_snapshot_free(first);
	fcvm_snapshot_free(second);
}

static void damage(const char *dir, const char *name, off_t at, const char *text)
{
	char path[600];
	int fd;

	snprintf(path, sizeof path, "%s/%s", dir, name);
	chmod(path, 0600);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	CHECK(fd >= 0 && pwrite(fd, text, strlen(text), at) == (ssize_t)strlen(text));
	close(fd);
}

static void test_named(void)
{
	struct fcvm_snapshot_config config = {.name = "test-vm-named", .stop = true};
	struct fcvm_snapshot *s = NULL, *again = NULL;
	struct fcvm_vm *vm = start("named", false), *clone = NULL;
	struct fcvm_snapshot_info info;
	char *json = NULL, dir[512];

	fcvm_remove_snapshot(config.name, NULL);
	sh(vm, "echo kept > /tmp/mark");
	CHECK(ok(fcvm_vm_snapshot(vm, &config, FCVM_DEFAULT_TIMEOUT, &s, &err)));
	fcvm_vm_free(vm);
	fcvm_snapshot_free(s);
	CHECK(ok(fcvm_inspect_snapshot(config.name, &json, &err)) && strstr(json, "\"qemu\""));
	free(json);
	CHECK(ok(fcvm_snapshot_open(&s, config.name, &err)));
	CHECK(ok(fcvm_snapshot_clone(s, NULL, FCVM_DEFAULT_TIMEOUT, &clone, &err)));
	CHECK(strcmp(sh(clone, "cat /tmp/mark"), "kept\n") == 0);
	fcvm_vm_free(clone);
	fcvm_snapshot_get_info(s, &info);
	snprintf(dir, sizeof dir, "%s", info.dir);
	fcvm_snapshot_free(s);
	damage(dir, "state", 100, "damage");
	CHECK(fcvm_snapshot_open(&again, config.name, &err) == -EINVAL && says(config.name) && says("state"));
	CHECK(ok(fcvm_remove_snapshot(config.name, &err)));
	CHECK(fcvm_snapshot_open(&again, config.name, &err) == -ENOENT && says(config.name));
}

static void test_vmm_killed(void)
{
	struct fcvm_vm *vm = start("victim", false);
	struct fcvm_exec_result out;
	struct fcvm_vm_info info;
	int64_t from;
	pid_t killer;
	int status, r;

	fcvm_vm_get_info(vm, &info);
	killer = fork();
	if (killer == 0) {
		usleep(300000);
		kill(info.pid, SIGKILL);
		_exit(0);
	}
	from = fcvm_now_ns();
	r = fcvm_vm_exec(vm, (const char *[]){"sleep", "100", NULL}, NULL, &out, &err);
	CHECK(r < 0 && says("victim") && says("signal 9"));
	CHECK(fcvm_now_ns() - from < 1300000000);
	r = fcvm_vm_exec(vm, (const char *[]){"true", NULL}, NULL, &out, &err);
	CHECK(r < 0 && says("victim"));
	CHECK(ok(fcvm_vm_wait(vm, 1000, &status, &err)) && status == 0x100 + SIGKILL);
	fcvm_vm_free(vm);
}

static void test_boot_hangs(void)
{
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	struct fcvm_vm *vm = NULL;
	int64_t from = fcvm_now_ns();

	config.name = "hangs";
	config.memory = 128 * FCVM_MIB;
	config.cmdline = "rdinit=/bin/sh";
	CHECK(ok(fcvm_vm_new(&vm, &config, &err)));
	CHECK(fcvm_vm_start(vm, 8000, &err) == -ETIMEDOUT && says("hangs"));
	CHECK(strlen(err.detail) > 20);
	CHECK(fcvm_now_ns() - from < 9500000000);
	CHECK(vms_listed() == 0);
	fcvm_vm_free(vm);
}

static void test_cold(void)
{
	struct fcvm_vm *vm = start("cold", true);
	struct fcvm_vm_info info;

	fcvm_vm_get_info(vm, &info);
	CHECK(!info.warm);
	CHECK(strcmp(sh(vm, "hostname"), "cold\n") == 0);
	fcvm_vm_free(vm);
}

int main(void)
{
	static const struct test tests[] = {
		{"misuse", test_misuse}, {"cold", test_cold}, {"life", test_life}, {"going on", test_going_on},
		{"named", test_named}, {"vmm killed", test_vmm_killed}, {"boot hangs", test_boot_hangs},
	};

	run_tests(tests, sizeof tests / sizeof *tests);
	CHECK_DONE();
}
