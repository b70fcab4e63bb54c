/* SPDX-License-Identifier: MIT */
/* What of the drivers needs no VMM: the TSC, the KVM probe's bounds, QEMU's command line, and the driver's end of the
 * preload library's channel against a peer that lies. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/kvm.h"
#include "check.h"
#include "vmm/qemu_private.h"
#include "vmm/vmm_private.h"

static struct fcvm_err err;

static void test_tsc(void)
{
#if defined(__x86_64__)
	uint64_t told = fcvm_tsc_khz_perf(), measured = fcvm_tsc_khz_measured(), again = fcvm_tsc_khz_measured();
	uint64_t khz = fcvm_tsc_khz();

	CHECK(khz > 100000 && khz < 20000000);
	CHECK(measured > again - again / 1000 && measured < again + again / 1000);
	CHECK(khz > measured - measured / 1000 && khz < measured + measured / 1000);
	printf("TSC: %llu kHz told, %llu measured\n", (unsigned long long)told, (unsigned long long)measured);
#endif
}

static void test_kvm(void)
{
	char why[200] = "";
	int64_t start = fcvm_now_ns();
	int k = fcvm_kvm_probe(why, sizeof why);

	CHECK(fcvm_now_ns() - start < 2500000000);
	CHECK(why[0] && !strchr(why, '\n'));
	CHECK(access("/dev/kvm", F_OK) == 0 || k == -ENOENT);
	printf("%s\n", why);
	/* Its child is gone, and nobody else's wait() has seen it. */
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
	CHECK(waitpid(-1, NULL, WNOHANG | __WALL) == -1 && errno == ECHILD);
}

static const char *after(const struct qemu_args *a, const char *option)
{
	for (unsigned i = 0; i + 1 < a->nargv; i++)
		if (strcmp(a->argv[i], option) == 0)
			return a->argv[i + 1];
	return "";
}

static bool has(const struct qemu_args *a, const char *word)
{
	for (unsigned i = 0; i < a->nargv; i++)
		if (strcmp(a->argv[i], word) == 0)
			return true;
	return false;
}

static void test_args(void)
{
	struct vmm_probe p = {.binary = "/q", .accel = "tcg", .own = fcvm_json_object(), .tsc_khz = 1234567};
	struct vmm_machine m = {.name = "a,b", .memory = 64 << 20, .vcpus = 2, .kernel = "/k,1", .initrd = "/i",
		.cmdline = "x=1"};
	struct qemu_args a;

	fcvm_json_set_string(p.own, "library", "/lib/x.so");
	CHECK(fcvm_qemu_args_make(&a, &m, &p, false, "/m,n", &err) == 0);
	CHECK(strcmp(after(&a, "-name"), "guest=a,,b") == 0);
	CHECK(strstr(after(&a, "-object"), "size=67108864,share=on,mem-path=/m,,n"));
	CHECK(strstr(after(&a, "-append"), " tsc_early_khz=1234567 x=1"));
	CHECK(strcmp(after(&a, "-kernel"), "/k,1") == 0 && strcmp(after(&a, "-cpu"), QEMU_TCG_CPU) == 0 &&
		strstr(after(&a, "-machine"), ",pit=off"));
	CHECK(a.nenv == 2 && a.argv[a.nargv] == NULL);
	fcvm_qemu_args_done(&a);

	/* A restored one keeps no kernel and maps privately. */
	CHECK(fcvm_qemu_args_make(&a, &m, &p, true, "/m,n", &err) == 0);
	CHECK(!*after(&a, "-append") && !*after(&a, "-kernel") && !*after(&a, "-initrd"));
	CHECK(strcmp(after(&a, "-incoming"), "defer") == 0);
	CHECK(a.nenv == 3 && strcmp(a.env[2], FCVM_RAM_ENV_PRIVATE "=/m,n") == 0);
	CHECK(!has(&a, "virtserialport,id=port0,nr=2,chardev=volume0,name=fcvm.volume.0"));
	fcvm_qemu_args_done(&a);

	/* What was plugged in when the snapshot was taken is there; a VM that boots has nothing yet. */
	m.ports = 1u << 0 | 1u << 7;
	CHECK(fcvm_qemu_args_make(&a, &m, &p, true, "/m,n", &err) == 0);
	CHECK(has(&a, "ringbuf,id=volume0,size=4096") && has(&a, "virtserialport,id=port0,nr=2,chardev=volume0,name=fcvm.volume.0"));
	CHECK(has(&a, "virtserialport,id=port7,nr=9,chardev=volume7,name=fcvm.volume.7"));
	CHECK(has(&a, "virtio-serial-device,max_ports=10"));
	fcvm_qemu_args_done(&a);
	CHECK(fcvm_qemu_args_make(&a, &m, &p, false, "/m,n", &err) == 0);
	CHECK(!has(&a, "ringbuf,id=volume0,size=4096"));
	fcvm_qemu_args_done(&a);
	m.ports = 0;

	m.drives = (const struct vmm_drive[]){{"/d,1", true}, {"disk1", false}};
	m.ndrives = 2;
	m.dir = "/run/x";
	CHECK(fcvm_qemu_args_make(&a, &m, &p, true, "/m,n", &err) == 0);
	CHECK(strstr(after(&a, "-blockdev"), "node-name=drive0,read-only=on") &&
		strstr(after(&a, "-blockdev"), "file.filename=/d,,1"));
	CHECK(has(&a, "virtio-blk-device,drive=drive1"));
	fcvm_qemu_args_done(&a);
	m.ndrives = 0;

	p.accel = "kvm";
	CHECK(fcvm_qemu_args_make(&a, &m, &p, false, "/m", &err) == 0);
	CHECK(!strstr(after(&a, "-append"), "tsc") && strcmp(after(&a, "-cpu"), "host,svm=off,vmx=off") == 0 &&
		!strstr(after(&a, "-machine"), "pit="));
	fcvm_qemu_args_done(&a);

	/* The dynamic linker takes a space for the end. */
	fcvm_json_set_string(p.own, "library", "/a folder/x.so");
	CHECK(fcvm_qemu_args_make(&a, &m, &p, false, "/m", &err) == -EINVAL);
	fcvm_qemu_args_done(&a);
	fcvm_json_set_string(p.own, "library", "/x.so");
	m.memory += 4096;
	CHECK(fcvm_qemu_args_make(&a, &m, &p, false, "/m", &err) == -EINVAL);
	fcvm_qemu_args_done(&a);
	fcvm_json_free(p.own);
}

/* ---- a lying preload library ---- */

static int greet(struct fcvm_ram_hello hello, size_t size, bool close_it)
{
	struct fcvm_until until = fcvm_until_ms(300, -1);
	struct qemu_ram r = {.exit_fd = -1, .name = "vm"};
	int fds[2], k;

	CHECK(fcvm_fd_pair(fds) == 0);
	CHECK(write(fds[1], &hello, size) == (ssize_t)size);
	if (close_it)
		shutdown(fds[1], SHUT_RDWR);
	r.fd = fds[0];
	k = fcvm_qemu_ram_greet(&r, 1 << 20, true, &until, &err);
	CHECK(r.private == (k == 0));
	close(fds[0]);
	close(fds[1]);
	return k;
}

static void test_hello(void)
{
	struct fcvm_ram_hello good = {FCVM_RAM_MAGIC, FCVM_RAM_VERSION, FCVM_RAM_IS_PRIVATE, 0, 1 << 20}, bad = good;

	CHECK(greet(good, sizeof good, false) == 0);
	CHECK(greet(good, sizeof good - 1, false) == -ETIMEDOUT);
	CHECK(greet(good, sizeof good - 1, true) == -ECONNRESET);
	bad.mode = FCVM_RAM_IS_SHARED; /* it would write into the snapshot */
	CHECK(greet(bad, sizeof bad, false) == -EPROTO && strstr(err.message, "in mode 1"));
	bad = good;
	bad.size = 2 << 20;
	CHECK(greet(bad, sizeof bad, false) == -EPROTO);
	bad = good;
	bad.version++;
	CHECK(greet(bad, sizeof bad, false) == -EPROTO && strstr(err.message, "speaks version"));
	bad.magic = 0;
	CHECK(greet(bad, sizeof bad, false) == -EPROTO);
}

static int call(struct fcvm_ram_reply reply, struct qemu_ram *r)
{
	struct fcvm_until until = fcvm_until_ms(300, -1);
	struct fcvm_ram_request request;
	char path[8] = "";
	int fds[2], k;

	CHECK(fcvm_fd_pair(fds) == 0);
	CHECK(write(fds[1], &reply, sizeof reply) == sizeof reply);
	*r = (struct qemu_ram){.fd = fds[0], .exit_fd = -1, .name = "vm"};
	k = fcvm_qemu_ram_call(r, FCVM_RAM_COPY, "/a/b", &until, &err);
	CHECK(read(fds[1], &request, sizeof request) == sizeof request && request.path_length == 4);
	CHECK(read(fds[1], path, 4) == 4 && strcmp(path, "/a/b") == 0);
	if (r->broken)
		CHECK(fcvm_qemu_ram_call(r, FCVM_RAM_COPY, "/a/b", &until, &err) == -EPIPE);
	close(fds[0]);
	close(fds[1]);
	return k;
}

static void test_replies(void)
{
	struct fcvm_ram_reply good = {FCVM_RAM_MAGIC, 1, 0, FCVM_RAM_IS_PRIVATE, 5}, bad = good;
	struct qemu_ram r;

	CHECK(call(good, &r) == 0 && r.private && !r.broken);
	bad.error = ENOSPC;
	CHECK(call(bad, &r) == -ENOSPC && !r.private && !r.broken && strstr(err.message, "vm: copy"));
	bad.error = -5;
	CHECK(call(bad, &r) == -EPROTO);
	bad = good;
	bad.id = 2;
	CHECK(call(bad, &r) == -EPROTO && r.broken && !r.private);
	bad = good;
	bad.magic = 1;
	CHECK(call(bad, &r) == -EPROTO && r.broken);
}

int main(void)
{
	test_tsc();
	test_kvm();
	test_args();
	test_hello();
	test_replies();
	CHECK_DONE();
}
