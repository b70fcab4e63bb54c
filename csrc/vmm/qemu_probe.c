/* SPDX-License-Identifier: MIT */
/*
 * Which QEMU there is on a node and what it can do. Asked of QEMU itself, over QMP with no machine: its version, the
 * accelerators that are built in, the migration URIs it knows.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fail.h"
#include "base/fd.h"
#include "store/store.h"
#include "vmm/probe.h"
#include "vmm/qemu_private.h"

#define LIBRARY "libfcvm-ram.so"

enum { PROBE_MS = 20000, TEXT = 64 * 1024 };

static const char program[] = "qemu-system-x86_64";
static const char remedy[] = "install qemu-system-x86, or run scripts/fetch-qemu, or set FCVM_QEMU";

/* ---- where ---- */

/* The lines of a file that set something. */
static struct fcvm_json *lines_of(char *text)
{
	struct fcvm_json *list = fcvm_json_array();
	char *save = NULL;

	for (char *line = strtok_r(text, "\n", &save); list && line; line = strtok_r(NULL, "\n", &save))
		if (strchr(line, '='))
			fcvm_json_append_string(list, line);
	return list;
}

/* A folder as scripts/fetch-qemu makes it, around the binary. */
static int look_around(struct fcvm_node *node, const struct fcvm_until *until, struct vmm_probe *p, struct fcvm_err *err)
{
	_cleanup_free_ char *dir = strdup(p->binary);
	_cleanup_free_ char *path = NULL, *text = NULL, *data_dir = NULL;
	char *slash;
	int k;

	for (int i = 0; i < 2; i++) {
		slash = dir ? strrchr(dir, '/') : NULL;
		if (!slash)
			return 0;
		*slash = 0;
	}
	path = fcvm_asprintf("%s/env", dir);
	data_dir = fcvm_asprintf("%s/share/qemu", dir);
	if (!path || !data_dir)
		return fcvm_fail_errno(err, -ENOMEM, "find QEMU");
	k = fcvm_node_read_file(node, path, TEXT, until, &text, NULL, NULL);
	if (fcvm_vmm_probe_gave_up(k))
		return fcvm_fail_errno(err, k, "look for %s on %s", path, fcvm_node_name(node));
	if (k < 0)
		return 0;
	fcvm_json_set(p->own, "env", lines_of(text));
	fcvm_json_set_string(p->own, "data_dir", data_dir);
	return 0;
}

static char *unpacked(void)
{
	_cleanup_free_ char *path = fcvm_probe_unpacked("qemu", program);
	struct stat st;

	return path && stat(path, &st) == 0 ? fcvm_steal_ptr(path) : NULL;
}

/* On another node first where it is here, then in its PATH. */
static int find_binary(struct fcvm_node *node, const struct fcvm_until *until, struct vmm_probe *p,
	struct fcvm_err *err)
{
	const char *named = getenv("FCVM_QEMU");
	_cleanup_free_ char *here = named && *named ? strdup(named) : unpacked();
	int k = here && !fcvm_node_is_local(node) ? fcvm_probe_exists(node, here, until, err) : 1;

	if (here && k > 0)
		p->binary = fcvm_steal_ptr(here);
	else
		p->binary = strdup(program); /* looked up in the node's PATH */
	p->own = fcvm_json_object();
	if (!p->binary || !p->own)
		return fcvm_fail_errno(err, -ENOMEM, "find QEMU");
	if (k >= 0)
		k = look_around(node, until, p, err);
	return k < 0 ? (fcvm_fail_prefix(err, "probe %s", p->binary), k) : 0;
}

/* To another node it is copied (and is mapped by QEMUs there, so never written in place). */
static int copy_library(struct fcvm_node *node, const char *here, const struct fcvm_until *until, char **ret,
	struct fcvm_err *err)
{
	_cleanup_free_ char *data = NULL;
	_cleanup_free_ char *there = NULL;
	size_t size;
	int k = fcvm_file_read(AT_FDCWD, here, 1 << 20, &data, &size);

	if (k < 0)
		return fcvm_fail_errno(err, k, "read %s", here);
	there = fcvm_asprintf("/run/fcvm-ram-%s-%zu.so", FCVM_VERSION, size);
	if (!there)
		return fcvm_fail_errno(err, -ENOMEM, "copy %s", here);
	k = fcvm_node_write_file(node, there, data, size, 0755, until, err);
	if (k == 0)
		*ret = fcvm_steal_ptr(there);
	return k;
}

static int find_library(struct fcvm_node *node, const struct fcvm_until *until, struct vmm_probe *p,
	struct fcvm_err *err)
{
	_cleanup_free_ char *here = NULL, *there = NULL;
	int k = fcvm_store_libexec(LIBRARY, &here, err);

	if (k == 0 && !fcvm_node_is_local(node))
		k = copy_library(node, here, until, &there, err);
	return k < 0 ? k : fcvm_json_set_string(p->own, "library", there ? there : here);
}

/* ---- what it can do ---- */

struct features {
	bool tcg, kvm, file_uri;
};

/* The schema's type names are numbers; the transports of a migration address are the enum that has these. */
static bool knows_file(const struct fcvm_json *schema)
{
	for (size_t i = 0; i < fcvm_json_count(schema); i++) {
		const struct fcvm_json *values = fcvm_json_get(fcvm_json_at(schema, i), "values");
		bool is_socket = false, is_exec = false, is_file = false;

		for (size_t j = 0; j < fcvm_json_count(values); j++) {
			const char *value = fcvm_json_text(fcvm_json_at(values, j));

			is_socket |= value && strcmp(value, "socket") == 0;
			is_exec |= value && strcmp(value, "exec") == 0;
			is_file |= value && strcmp(value, "file") == 0;
		}
		if (is_socket && is_exec && is_file)
			return true;
	}
	return false;
}

static int ask(struct fcvm_qmp *q, const struct fcvm_until *until, struct features *ret, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *schema = NULL, *accels = NULL;
	struct fcvm_json *arguments = fcvm_json_object();
	const struct fcvm_json *list;
	int k = fcvm_qmp_greet(q, until, err);

	if (!arguments || fcvm_json_set_string(arguments, "implements", "accel") < 0)
		k = k < 0 ? k : fcvm_fail_errno(err, -ENOMEM, "probe QEMU");
	if (k == 0)
		k = fcvm_qmp_call(q, "qom-list-types", fcvm_steal_ptr(arguments), until, &accels, err);
	fcvm_json_free(arguments);
	if (k == 0)
		k = fcvm_qmp_call(q, "query-qmp-schema", NULL, until, &schema, err);
	if (k < 0)
		return k;
	list = fcvm_json_get(accels, "return");
	for (size_t i = 0; i < fcvm_json_count(list); i++) {
		const char *name = fcvm_json_string(fcvm_json_at(list, i), "name", "");

		ret->tcg |= strcmp(name, "tcg-accel") == 0;
		ret->kvm |= strcmp(name, "kvm-accel") == 0;
	}
	ret->file_uri = knows_file(fcvm_json_get(schema, "return"));
	return 0;
}

/* What it wrote to stderr, on one line. */
static void add_stderr(struct fcvm_process *process, const char *binary, int code, struct fcvm_err *err)
{
	char text[1024];
	int fd = fcvm_process_fd(process, 2);
	struct fcvm_until soon = fcvm_until_ms(1000, -1);
	struct pollfd p = {.fd = fd, .events = POLLIN};
	ssize_t n;

	if (fd < 0 || fcvm_until_poll(&soon, &p, 1) <= 0)
		return;
	n = read(fd, text, sizeof text - 1);
	if (n <= 0)
		return;
	text[n] = 0;
	text[strcspn(text, "\n")] = 0;
	fcvm_fail(err, code, "%s does not start: %s", binary, text);
}

void fcvm_qemu_env(const struct vmm_probe *p, const char *ret[QEMU_ENV_MAX])
{
	const struct fcvm_json *list = fcvm_json_get(p->own, "env");
	unsigned n = 0;

	for (size_t i = 0; i < fcvm_json_count(list) && n + 1 < QEMU_ENV_MAX; i++)
		if (fcvm_json_text(fcvm_json_at(list, i)))
			ret[n++] = fcvm_json_text(fcvm_json_at(list, i));
	ret[n] = NULL;
}

static int interview(struct fcvm_node *node, const struct fcvm_until *until, struct vmm_probe *p, struct features *ret,
	struct fcvm_err *err)
{
	const char *argv[24] = {p->binary};
	unsigned n = 1;
	_cleanup_(cleanup_fcvm_process_free) struct fcvm_process *process = NULL;
	_cleanup_(cleanup_fcvm_qmp_free) struct fcvm_qmp *q = NULL;
	const char *env[QEMU_ENV_MAX];
	const char *data_dir = fcvm_json_string(p->own, "data_dir", NULL);
	struct fcvm_spawn spec = {.argv = argv, .env = env, .null_stdin = true, .channels = 1};
	static const char *const rest[] = {"-machine", "none", "-nodefaults", "-no-user-config", "-display", "none",
		"-S", "-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control"};
	int k;

	fcvm_qemu_env(p, env);
	if (data_dir) {
		argv[n++] = "-L";
		argv[n++] = data_dir;
	}
	for (unsigned i = 0; i < sizeof rest / sizeof *rest; i++)
		argv[n++] = rest[i];
	k = fcvm_node_spawn(node, &spec, until, &process, err);
	if (k == -ENOENT)
		return fcvm_fail(err, k, "%s was not found: %s", p->binary, remedy);
	if (k < 0)
		return k;
	k = fcvm_qmp_new(&q, fcvm_process_take_fd(process, QEMU_QMP), fcvm_process_exit_fd(process), p->binary, err);
	if (k < 0)
		return k;
	k = ask(q, until, ret, err);
	if (k < 0) {
		add_stderr(process, p->binary, k, err);
		return k;
	}
	p->version = strdup(fcvm_qmp_version(q));
	fcvm_json_set_bool(p->own, "file_uri", ret->file_uri);
	return p->version ? 0 : fcvm_fail_errno(err, -ENOMEM, "probe %s", p->binary);
}

/* ---- which accelerator ---- */

static int choose(struct fcvm_node *node, const char *want, const struct features *f, const struct fcvm_until *until,
	struct vmm_probe *p, struct fcvm_err *err)
{
	char why[200] = "asked for";
	bool kvm = false;
	int k = 0;

	if (!want || strcmp(want, "kvm") == 0) {
		if (f->kvm) {
			k = fcvm_probe_kvm(node, until, why, sizeof why);
		} else {
			k = -EOPNOTSUPP;
			snprintf(why, sizeof why, "%s was built without KVM", p->binary);
		}
		kvm = k == 0;
	}
	/* Who gives up has not found that there is none; its own limit without an answer is an answer. */
	if (k < 0 && (want || (fcvm_vmm_probe_gave_up(k) && (k != -ETIMEDOUT || fcvm_until_passed(until)))))
		return fcvm_fail(err, k, "qemu: KVM cannot be used: %s", why);
	if (!kvm && !f->tcg)
		return fcvm_fail(err, -EOPNOTSUPP, "%s was built without TCG, and KVM cannot be used: %s; %s", p->binary,
			why, remedy);
	p->accel = strdup(kvm ? "kvm" : "tcg");
	p->why = strdup(why);
	p->machine = strdup(kvm ? "microvm host 3" : "microvm,pit=off 2 " QEMU_TCG_CPU);
	p->tsc_khz = kvm ? 0 : fcvm_tsc_khz();
	return p->accel && p->why && p->machine ? 0 : fcvm_fail_errno(err, -ENOMEM, "probe %s", p->binary);
}

int fcvm_qemu_probe(struct fcvm_node *node, const char *want, const char *cache, const struct fcvm_until *until,
	struct vmm_probe *ret, struct fcvm_err *err)
{
	struct fcvm_until soon = fcvm_until_sooner(until, PROBE_MS);
	struct vmm_probe p = {0};
	struct features f = {0};
	char key[17], what[64];
	int k = find_binary(node, &soon, &p, err);

	if (k == 0)
		k = find_library(node, &soon, &p, err);
	if (!fcvm_node_is_local(node))
		cache = NULL;
	snprintf(what, sizeof what, "%s %s", QEMU_TCG_CPU, want ? want : "");
	if (k == 0 && cache && fcvm_probe_key(key, p.binary, fcvm_json_string(p.own, "library", ""), what) < 0)
		cache = NULL;
	if (k == 0 && fcvm_probe_cache_read(cache, key, &p)) {
		*ret = p;
		return 0;
	}
	if (k == 0)
		k = interview(node, &soon, &p, &f, err);
	if (k == 0)
		k = choose(node, want, &f, until, &p, err);
	if (k < 0) {
		fcvm_vmm_probe_done(&p);
		return k;
	}
	fcvm_probe_cache_write(cache, key, &p);
	*ret = p;
	return 0;
}
