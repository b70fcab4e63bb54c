/* SPDX-License-Identifier: MIT */
/*
 * The Firecracker driver: confinement. Firecracker's own jailer gives it a user, a root folder and a cgroup; what it must
 * see is put into that root before: bound, not copied, so that clones share the pages of the memory file, and in a mount
 * namespace of its own, so that nothing has to be unmounted.
 *
 *	unshare (dies with its owner: PDEATHSIG) -> sh, init of a PID namespace -> jailer, which becomes Firecracker
 *
 * A change of user clears PDEATHSIG, so it is the shell that ends Firecracker: when the stream from its owner ends, or by
 * its own end, which is that of all in its namespace.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "vmm/fc_private.h"

#define CGROUPS "/sys/fs/cgroup"

enum {
	FIRST_UID = 300000,
	UIDS = 1 << 24,
	SPARE_TASKS = 16,  /* of its cgroup, besides the vCPUs */
	INPUTS = 40,
	REMOVE_MS = 5000,
	TASKS_MAX = 4096,  /* bytes */
};

/*
 * The jailer's pivot_root(2) cannot replace a root that was mounted on nothing, as that of a guest that lives in its
 * initrd; so there a mount of the same is put on top of it, as switch_root does. Arguments: the script, and its own.
 */
static const char prelude[] =
	"set -e; script=$1; shift\n"
	"while read -r id parent dev from at rest; do\n"
	"	[ \"$at\" != / ] || [ \"$id\" != \"$parent\" ] || bare=1\n"
	"done </proc/self/mountinfo\n"
	"[ \"$bare\" ] || exec sh -c \"$script\" fcvm-jail \"$@\"\n"
	"mkdir \"$1/top\"; mount -o rbind / \"$1/top\"; cd \"$1/top\"; mount -o move . /\n"
	"exec chroot . sh -c \"$script\" fcvm-jail \"$@\"\n";

/*
 * Its arguments: the root, the user, the jail's name, the folder of jails, jailer, Firecracker, how many tasks, the
 * configuration or nothing, the cgroup; then of each input how it is made accessible (r: anybody may read it, o: it is the
 * jail's own, n: as it is), where it is and where it is to be.
 *
 * A run folder on /dev/shm has no devices, and the jailer makes /dev/kvm. The log is a FIFO: /proc is not in the jail,
 * nor could a pipe of another user's be opened. The last lines of the log are waited for; opening it for both unblocks a cat
 * that nobody ever wrote to.
 */
static const char script[] =
	"set -e; umask 022\n"
	"root=$1 uid=$2 name=$3 jails=$4 jailer=$5 vmm=$(command -v \"$6\") tasks=$7 config=$8 cgroup=$9; shift 9\n"
	"mount -o bind \"$root\" \"$root\"; mount -o remount,bind,dev,exec \"$root\"\n"
	"while [ $# -gt 0 ]; do\n"
	"	case $1 in r) chmod a+r \"$2\" ;; o) chown \"$uid:$uid\" \"$2\" ;; esac\n"
	"	case $3 in */*) mkdir -p \"$root/${3%/*}\" ;; esac\n"
	"	: >>\"$root/$3\"; mount -o bind \"$2\" \"$root/$3\"; shift 3\n"
	"done\n"
	"mkfifo \"$root/log\"\n"
	"for f in \"$root\"/log \"$root\"/" FC_CONFIG " \"$root\"/" FC_VSOCK "_*; do\n"
	"	[ ! -e \"$f\" ] || chown \"$uid:$uid\" \"$f\"\n"
	"done\n"
	"cat \"$root/log\" >&2 3<&- & log=$!\n"
	"\"$jailer\" --id \"$name\" --exec-file \"$vmm\" --uid \"$uid\" --gid \"$uid\" --chroot-base-dir \"$jails\""
	" --cgroup-version 2 --cgroup \"pids.max=$tasks\" -- --api-sock " FC_API " --log-path log --metrics-path log"
	" --level Info --show-level ${config:+--config-file} ${config:+\"$config\"} </dev/null 3<&- & vmm=$!\n"
	"{ read -r end <&3 || :; kill -9 $vmm; } &\n"
	"set +e; wait $vmm; status=$?\n"
	"rmdir \"$cgroup\"\n"
	"exec 4<>\"$root/log\" 4>&-; wait $log\n"
	"exit $status\n";

/* ---- before ---- */

int fcvm_fc_jail_make(struct fc *f, const struct vmm_machine *m, const struct vmm_probe *p,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	const char *slash = strrchr(p->binary, '/'), *program = slash ? slash + 1 : p->binary;
	unsigned tag;
	char *root;
	int k;

	if (!fcvm_json_string(p->own, "jailer", NULL))
		return fcvm_fail(err, -ENOENT, "%s: jail: there is no jailer beside %s: put the one of the same release there",
			m->name, p->binary);
	if (fcvm_node_is_local(m->node) && geteuid() != 0)
		return fcvm_fail(err, -EPERM, "%s: jail: only root can give Firecracker a user, a root folder and a cgroup of its "
			"own; run as root, or without jail", m->name);
	fcvm_random(&tag, sizeof tag);
	f->uid = FIRST_UID + tag % UIDS;
	root = fcvm_asprintf("%s/%s/fcvm-%u/root", m->dir, program, f->uid);
	f->cgroup = fcvm_asprintf(CGROUPS "/%s/fcvm-%u", program, f->uid);
	free(f->dir);
	f->dir = root;
	if (!f->dir || !f->cgroup)
		return fcvm_fail_errno(err, -ENOMEM, "%s: jail", m->name);
	k = fcvm_node_mkdir(m->node, f->dir, 0755, true, false, until, err);
	return k < 0 ? (fcvm_fail_prefix(err, "%s: jail", m->name), k) : 0;
}

/* ---- starting ---- */

struct inputs {
	const char *argv[16 + 3 * INPUTS];
	char *made[INPUTS]; /* malloc'ed ones of them */
	unsigned n, nmade;
};

static int add_input(struct inputs *in, const char *how, const char *from, const char *to)
{
	if (in->nmade + 1 >= INPUTS)
		return -E2BIG;
	in->argv[in->n++] = how;
	in->argv[in->n++] = from;
	in->argv[in->n++] = to + strspn(to, "/");
	return 0;
}

/* A disk of the machine's own folder is named relative to it; another is its user's, who sees to its being readable. */
static int add_drive(struct inputs *in, const struct vmm_machine *m, const char *path)
{
	if (path[0] == '/')
		return add_input(in, "n", path, path);
	if (in->nmade + 1 >= INPUTS)
		return -E2BIG;
	in->made[in->nmade] = fcvm_asprintf("%s/%s", m->dir, path);
	return in->made[in->nmade] ? add_input(in, "o", in->made[in->nmade++], path) : -ENOMEM;
}

static int add_inputs(struct inputs *in, const struct vmm_machine *m, bool wait)
{
	int k = wait ? add_input(in, "r", m->memory_file, m->memory_file) : add_input(in, "r", m->kernel, m->kernel);

	if (k == 0 && !wait && m->initrd)
		k = add_input(in, "r", m->initrd, m->initrd);
	for (unsigned i = 0; k == 0 && i < m->ndrives; i++)
		k = in->n + 4 < sizeof in->argv / sizeof *in->argv ? add_drive(in, m, m->drives[i].path) : -E2BIG;
	return k;
}

int fcvm_fc_jail_spawn(struct fc *f, const struct vmm_machine *m, const struct vmm_probe *p, bool wait,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	char uid[16], name[32], tasks[16];
	struct inputs in = {.argv = {"unshare", "-m", "-p", "-f", "sh", "-c", prelude, "fcvm-jail", script, f->dir, uid, name, m->dir,
		fcvm_json_string(p->own, "jailer", ""), p->binary, tasks, wait ? "" : FC_CONFIG}};
	struct fcvm_spawn spec = {.argv = in.argv, .null_stdin = true, .channels = 1};
	int k;

	snprintf(uid, sizeof uid, "%u", f->uid);
	snprintf(name, sizeof name, "fcvm-%u", f->uid);
	snprintf(tasks, sizeof tasks, "%u", m->vcpus + SPARE_TASKS);
	while (in.argv[in.n])
		in.n++;
	in.argv[in.n++] = f->cgroup;
	k = add_inputs(&in, m, wait);
	if (k == 0)
		k = fcvm_node_spawn(m->node, &spec, until, &f->vmm.process, err);
	else
		fcvm_fail_errno(err, k, "jail");
	for (unsigned i = 0; i < in.nmade; i++)
		free(in.made[i]);
	return k;
}

/* It is the only one in its cgroup. */
void fcvm_fc_jail_find(struct fc *f, const struct fcvm_until *until)
{
	_cleanup_free_ char *path = fcvm_asprintf("%s/cgroup.procs", f->cgroup);
	_cleanup_free_ char *text = NULL;
	pid_t pid = 0;

	if (path && fcvm_node_read_file(f->vmm.node, path, TASKS_MAX, until, &text, NULL, NULL) == 0)
		pid = strtol(text, NULL, 10);
	if (pid > 0)
		f->vmm.pid = pid;
}

/* The shell does that, unless it was killed with Firecracker; those that were may take a moment to be gone. */
void fcvm_fc_jail_remove(struct fc *f)
{
	static const char remove[] =
		"n=0; while [ -d \"$1\" ] && ! rmdir \"$1\" && [ $n -lt 100 ]; do sleep 0.05; n=$((n + 1)); done 2>/dev/null";
	struct fcvm_until soon = fcvm_until_ms(REMOVE_MS, -1);
	const char *argv[] = {"sh", "-c", remove, "fcvm-jail", f->cgroup, NULL};
	struct fcvm_spawn spec = {.argv = argv, .null_stdin = true};
	struct fcvm_output out = {0};

	if (f->cgroup && f->vmm.process && fcvm_node_exec(f->vmm.node, &spec, NULL, 0, 1000, &soon, &out, NULL) == 0)
		fcvm_output_done(&out);
}

/* ---- files that are wanted later ---- */

int fcvm_fc_jail_own(struct fc *f, const char *path, const struct fcvm_until *until, struct fcvm_err *err)
{
	char user[32];
	const char *argv[] = {"chown", user, path, NULL};
	struct fcvm_spawn spec = {.argv = argv, .null_stdin = true};
	struct fcvm_output out = {0};
	int k;

	snprintf(user, sizeof user, "%u:%u", f->uid, f->uid);
	k = fcvm_node_exec(f->vmm.node, &spec, NULL, 0, 1000, until, &out, err);
	if (k < 0)
		return (fcvm_fail_prefix(err, "%s: jail", f->vmm.name), k);
	if (out.exit.signal || out.exit.code)
		k = fcvm_fail(err, -EPERM, "%s: jail: %.*s", f->vmm.name, (int)strcspn(out.err, "\n"), out.err);
	fcvm_output_done(&out);
	return k;
}

int fcvm_fc_jail_put(struct fc *f, const char *path, const char *name, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	_cleanup_free_ char *inside = fcvm_asprintf("%s/%s", f->dir, name);
	int k = inside ? fcvm_node_copy(f->vmm.node, path, f->vmm.node, inside, until, err)
		       : fcvm_fail_errno(err, -ENOMEM, "copy %s", path);

	return k < 0 ? (fcvm_fail_prefix(err, "%s: jail", f->vmm.name), k) : fcvm_fc_jail_own(f, inside, until, err);
}
