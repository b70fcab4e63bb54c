/* SPDX-License-Identifier: MIT */
/*
 * VMs placed on a node: QEMU driven through an agent, which is a process of this host here, so that no guest in a guest
 * is needed. The agent's VM is made of its link alone.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/vm.h"
#include "test_vm.h"

#define HEX8   "[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]"
#define PLACES "/dev/shm/fcvm-" HEX8

static pid_t agent_pid;

/* A VM object that is running as far as anybody can see. */
static struct fcvm_vm *make_node(void)
{
	struct fcvm_until until = fcvm_until_ms(20000, -1);
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	struct fcvm_vm *vm = NULL;
	int pair[2];

	config.name = "outer";
	CHECK(ok(fcvm_vm_new(&vm, &config, &err)));
	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	agent_pid = fork();
	if (agent_pid == 0) {
		dup2(pair[1], 3);
		execl(getenv("FCVM_AGENT"), "fcvm-agent", "--fd", "3", NULL);
		_exit(127);
	}
	close(pair[1]);
	CHECK(ok(fcvm_node_agent(&vm->agent, runtime_node(vm->rt), pair[0], "outer", 0, &until, &err)));
	vm->state = FCVM_VM_RUNNING;
	return vm;
}

static bool any_left(const char *what)
{
	char command[200];

	snprintf(command, sizeof command, "ls -d %s 2>/dev/null | grep -q .", what);
	return system(command) == 0;
}

static const char *hostname_of(struct fcvm_vm *vm)
{
	static char text[100];
	struct fcvm_exec_result out = FCVM_EXEC_RESULT_INIT;

	text[0] = 0;
	if (ok(fcvm_vm_exec(vm, (const char *[]){"hostname", NULL}, NULL, &out, &err)))
		snprintf(text, sizeof text, "%s", out.stdout_data);
	text[strcspn(text, "\n")] = 0;
	fcvm_exec_result_done(&out);
	return text;
}

static struct fcvm_vm *start_on(struct fcvm_vm *node, const char *name)
{
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	struct fcvm_vm *vm = NULL;

	config.name = name;
	config.memory = 128 * FCVM_MIB;
	config.node = node;
	config.driver = "qemu";
	config.accel = "tcg";
	CHECK(ok(fcvm_vm_new(&vm, &config, &err)));
	CHECK(ok(fcvm_vm_start(vm, FCVM_DEFAULT_TIMEOUT, &err)));
	return vm;
}

static void test_life(struct fcvm_vm *node)
{
	struct fcvm_vm *vm = start_on(node, "inner"), *attached = NULL;
	struct fcvm_vm_info info;
	char *json = NULL;
	int status = -1;

	CHECK(strcmp(hostname_of(vm), "inner") == 0);
	fcvm_vm_get_info(vm, &info);
	CHECK(strcmp(info.node, "outer") == 0 && info.pid > 0 && kill(info.pid, 0) == 0 && !info.warm);
	CHECK(any_left(PLACES "/" HEX8 "/memory"));

	/* Others see it and get at its guest, but do not kill what is not here. */
	CHECK(ok(fcvm_list_vms(&json, &err)) && strstr(json, "\"node\":\"outer\"") && strstr(json, "\"running\""));
	free(json);
	CHECK(fcvm_kill_vm("inner", &err) == -EPERM && says("outer"));
	if (ok(fcvm_vm_attach(&attached, "inner", &err)))
		CHECK(strcmp(hostname_of(attached), "inner") == 0);
	fcvm_vm_free(attached);

	CHECK(ok(fcvm_vm_pause(vm, &err)) && ok(fcvm_vm_resume(vm, &err)));
	CHECK(strcmp(hostname_of(vm), "inner") == 0);
	CHECK(ok(fcvm_vm_kill(vm, &err)) && ok(fcvm_vm_wait(vm, 10000, &status, &err)) && status == 0x100 + SIGKILL);
	fcvm_vm_free(vm);
}

static void test_clones(struct fcvm_vm *node)
{
	struct fcvm_snapshot_config named = {.name = "of-a-node"}, config = FCVM_SNAPSHOT_CONFIG_INIT;
	struct fcvm_vm *vm = start_on(node, "base"), *clones[3] = {NULL};
	struct fcvm_snapshot *s = NULL;
	char want[32];

	CHECK(fcvm_vm_snapshot(vm, &named, FCVM_DEFAULT_TIMEOUT, &s, &err) == -EOPNOTSUPP && says("outer"));
	CHECK(ok(fcvm_vm_snapshot(vm, &config, FCVM_DEFAULT_TIMEOUT, &s, &err)));
	CHECK(strcmp(hostname_of(vm), "base") == 0);
	CHECK(ok(fcvm_snapshot_prepare(s, 1, FCVM_DEFAULT_TIMEOUT, &err)));
	for (unsigned i = 0; i < 3; i++) {
		CHECK(ok(fcvm_snapshot_clone(s, NULL, FCVM_DEFAULT_TIMEOUT, &clones[i], &err)));
		snprintf(want, sizeof want, "base-%u", i + 1);
		CHECK(clones[i] && strcmp(hostname_of(clones[i]), want) == 0);
	}
	fcvm_vm_free(vm);
	fcvm_snapshot_free(s);
	CHECK(strcmp(hostname_of(clones[2]), "base-3") == 0);
	for (unsigned i = 0; i < 3; i++)
		fcvm_vm_free(clones[i]);
	CHECK(!any_left(PLACES "/" HEX8));
}

/* A node that does not answer while it is asked what it has is waited for only so long, and asked again. */
static void test_slow_probe(struct fcvm_vm *node)
{
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	struct fcvm_vm *vm = NULL;
	int64_t from;

	config.name = "slow";
	config.node = node;
	config.driver = "qemu";
	config.accel = "kvm"; /* which nobody has asked for yet */
	CHECK(ok(fcvm_vm_new(&vm, &config, &err)));
	kill(agent_pid, SIGSTOP);
	from = fcvm_now_ns();
	CHECK(fcvm_vm_start(vm, 1000, &err) == -ETIMEDOUT);
	CHECK(fcvm_now_ns() - from < INT64_C(10000000000));
	kill(agent_pid, SIGCONT);
	if (fcvm_vm_start(vm, FCVM_DEFAULT_TIMEOUT, &err) < 0)
		CHECK(err.code != ETIMEDOUT && says("KVM cannot be used"));
	fcvm_vm_free(vm);
}

/* What runs on it ends with it, and whoever waits is told. */
static void test_lost(struct fcvm_vm *node)
{
	struct fcvm_vm *vm = start_on(node, "orphan");
	struct fcvm_vm_info info;
	int status;

	fcvm_vm_get_info(vm, &info);
	kill(agent_pid, SIGTERM);
	waitpid(agent_pid, NULL, 0);
	CHECK(fcvm_vm_wait(vm, 10000, &status, &err) == -ECONNRESET && says("outer"));
	CHECK(fcvm_vm_exec(vm, (const char *[]){"true", NULL}, NULL, &(struct fcvm_exec_result){0}, &err) < 0);
	CHECK(kill(info.pid, 0) < 0 && errno == ESRCH);
	fcvm_vm_free(vm);
}

static void test_refused(struct fcvm_vm *node)
{
	struct fcvm_vm_config config = FCVM_VM_CONFIG_INIT;
	struct fcvm_vm *vm = NULL, *never = NULL;

	CHECK(ok(fcvm_vm_new(&never, &config, &err)));
	config.node = never;
	CHECK(ok(fcvm_vm_new(&vm, &config, &err)));
	CHECK(fcvm_vm_start(vm, FCVM_DEFAULT_TIMEOUT, &err) == -EINVAL && says("run a VM on it: it is new"));
	fcvm_vm_free(never);
	fcvm_vm_free(vm);
}

int main(void)
{
	struct fcvm_vm *node;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!getenv("FCVM_AGENT")) {
		printf("FCVM_AGENT is not set\n");
		return 77;
	}
	node = make_node();
	if (node && node->agent) {
		test_refused(node);
		test_life(node);
		test_clones(node);
		test_slow_probe(node);
		test_lost(node);
	}
	fcvm_vm_free(node);
	CHECK(!any_left(PLACES));
	CHECK_DONE();
}
