/* SPDX-License-Identifier: MIT */
/* The drivers there are. */
#include "vmm/vmm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fail.h"
#include "base/kvm.h"
#include "vmm/probe.h"

enum { KVM_MS = 10000 }; /* a slow guest, and a probe that takes a second */

const struct vmm_ops *const fcvm_vmm_drivers[] = {&fcvm_vmm_firecracker, &fcvm_vmm_qemu, NULL};

void fcvm_vmm_probe_done(struct vmm_probe *p)
{
	if (!p)
		return;
	free(p->binary);
	free(p->version);
	free(p->accel);
	free(p->why);
	free(p->machine);
	fcvm_json_free(p->own);
	*p = (struct vmm_probe){0};
}

bool fcvm_vmm_probe_gave_up(int result)
{
	return result == -ETIMEDOUT || result == -ECANCELED || result == -ECONNRESET || result == -EPIPE;
}

int fcvm_probe_exists(struct fcvm_node *node, const char *path, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_node_stat st;
	int k = fcvm_node_stat(node, path, until, &st, NULL);

	if (fcvm_vmm_probe_gave_up(k))
		return fcvm_fail_errno(err, k, "look for %s on %s", path, fcvm_node_name(node));
	return k == 0 && S_ISREG(st.mode);
}

/* KVM's being too slow to answer is an answer: nobody has given up. */
static int verdict(int k)
{
	return fcvm_vmm_probe_gave_up(k) ? -EIO : k;
}

/* In a guest it is the agent that can: it is there. */
int fcvm_probe_kvm(struct fcvm_node *node, const struct fcvm_until *until, char *why, size_t size)
{
	static const char *const argv[] = {"/proc/self/exe", "--probe-kvm", NULL};
	struct fcvm_spawn spec = {.argv = argv};
	struct fcvm_until soon = fcvm_until_sooner(until, KVM_MS);
	struct fcvm_err err = FCVM_ERR_INIT;
	struct fcvm_output out = {0};
	int k;

	if (fcvm_node_is_local(node))
		return verdict(fcvm_kvm_probe(why, size));
	k = fcvm_node_exec(node, &spec, NULL, 0, 1024, &soon, &out, &err);
	if (k < 0) {
		snprintf(why, size, "%s", err.message);
		return k;
	}
	snprintf(why, size, "%.*s on %s", (int)strcspn(out.out, "\n"), out.out, fcvm_node_name(node));
	k = out.exit.signal || out.exit.code > 255 ? -EIO : verdict(-out.exit.code);
	fcvm_output_done(&out);
	return k;
}
