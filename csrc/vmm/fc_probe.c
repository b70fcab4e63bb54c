/* SPDX-License-Identifier: MIT */
/*
 * Which Firecracker there is on a node, and what it can do. Asked of Firecracker itself, over its API with no machine:
 * its version, and the names that fields have in it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fail.h"
#include "base/fd.h"
#include "vmm/fc_private.h"
#include "vmm/probe.h"

enum { PROBE_MS = 20000, OLDEST = 12 /* 1.12 */, FIRST_PAUSE_MS = 2, LAST_PAUSE_MS = 100, REMOVE_MS = 5000 };

static const char program[] = "firecracker";
static const char remedy[] = "put firecracker into PATH, or set FCVM_FIRECRACKER, or run scripts/fetch-firecracker";

/* ---- where ---- */

/* On another node first where it is here, then in its PATH, which is looked through when it is started. */
static int find_binary(struct fcvm_node *node, const struct fcvm_until *until, struct vmm_probe *p,
	struct fcvm_err *err)
{
	const char *named = fcvm_node_is_local(node) ? getenv("FCVM_FIRECRACKER") : NULL;
	char *path = named && *named ? strdup(named) : fcvm_probe_unpacked(program, program);
	int k = 1;

	if (path && (!named || !*named))
		k = *path ? fcvm_probe_exists(node, path, until, err) : 0;
	if (k == 0) {
		free(path);
		path = fcvm_node_is_local(node) ? fcvm_probe_find_program(program) : strdup(program);
	}
	p->binary = path;
	p->own = fcvm_json_object();
	if (!p->binary || !p->own)
		return fcvm_fail_errno(err, -ENOMEM, "find Firecracker");
	if (k >= 0 && fcvm_node_is_local(node)) {
		k = fcvm_probe_exists(node, p->binary, until, err);
		if (k == 0)
			return fcvm_fail(err, -ENOENT, "%s was not found: %s", p->binary, remedy);
	}
	return k < 0 ? (fcvm_fail_prefix(err, "probe %s", p->binary), k) : 0;
}

/* Beside it, as they are released together. */
static int find_jailer(struct fcvm_node *node, const struct fcvm_until *until, struct vmm_probe *p, struct fcvm_err *err)
{
	const char *slash = strrchr(p->binary, '/');
	_cleanup_free_ char *path = slash ? fcvm_asprintf("%.*s/jailer", (int)(slash - p->binary), p->binary)
					  : strdup("jailer");
	int k = !path ? fcvm_fail_errno(err, -ENOMEM, "find jailer") : slash ? fcvm_probe_exists(node, path, until, err) : 1;

	if (k > 0)
		k = fcvm_json_set_string(p->own, "jailer", path);
	return k;
}

/* ---- what it can do ---- */

static int check_version(struct vmm_probe *p, const char *version, struct fcvm_err *err)
{
	char *end;
	long major = strtol(version, &end, 10);
	long minor = *end == '.' ? strtol(end + 1, NULL, 10) : -1;

	if (minor < 0 || major < 1)
		return fcvm_fail(err, -EPROTO, "%s does not say which version it is: \"%.40s\"", p->binary, version);
	if (major == 1 && minor < OLDEST)
		return fcvm_fail(err, -EOPNOTSUPP, "%s is Firecracker %s; want 1.%d or newer: %s", p->binary, version, OLDEST,
			remedy);
	p->version = strdup(version);
	return p->version ? 0 : fcvm_fail_errno(err, -ENOMEM, "probe %s", p->binary);
}

/* Unknown fields are refused before anything else is looked at. 1, 0, or -errno: it could not be asked. */
static int knows_field(struct fcvm_http *api, const char *field, const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *body = fcvm_fc_load("/nowhere", "/nowhere", field);
	struct fcvm_err why = FCVM_ERR_INIT;
	int k = body ? fcvm_http_call(api, "PUT", "/snapshot/load", body, until, NULL, &why)
		     : fcvm_fail_errno(&why, -ENOMEM, "load a snapshot");

	if (k == 0 || k == -EIO)
		return !strstr(why.message, "unknown field");
	if (err)
		*err = why;
	return k;
}

static int ask(struct vmm_probe *p, struct fcvm_http *api, const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *answer = NULL;
	int k = fcvm_http_call(api, "GET", "/version", NULL, until, &answer, err);

	if (k < 0)
		return (fcvm_fail_prefix(err, "probe %s", p->binary), k);
	k = check_version(p, fcvm_json_string(answer, "firecracker_version", ""), err);
	if (k < 0)
		return k;
	/* The old name goes one day; 1.12 does not know the new one. */
	k = knows_field(api, "track_dirty_pages", until, err);
	if (k < 0)
		return (fcvm_fail_prefix(err, "probe %s", p->binary), k);
	return fcvm_json_set_string(p->own, "dirty_field", k ? "track_dirty_pages" : "enable_diff_snapshots");
}

/* Tries until the socket is there: this is done once. */
static int knock(struct fcvm_http *api, struct fcvm_process *process, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	struct pollfd p = {.fd = fcvm_process_exit_fd(process), .events = POLLIN};

	for (int ms = FIRST_PAUSE_MS;; ms = ms * 2 < LAST_PAUSE_MS ? ms * 2 : LAST_PAUSE_MS) {
		struct fcvm_until moment = fcvm_until_sooner(until, ms);
		int k = fcvm_http_connect(api, until, err);

		if (k != -ENOENT && k != -ECONNREFUSED)
			return k;
		k = fcvm_until_poll(&moment, &p, 1);
		if (k > 0)
			return fcvm_fail(err, -ECONNRESET, "it ended at once");
		if (k != -ETIMEDOUT || fcvm_until_passed(until))
			return fcvm_fail_errno(err, k, "its API socket did not come");
	}
}

static int interview_in(struct fcvm_node *node, const char *dir, struct vmm_probe *p, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	const char *argv[] = {p->binary, "--api-sock", FC_API, NULL};
	struct fcvm_spawn spec = {.argv = argv, .cwd = dir, .null_stdin = true, .merge_stderr = true};
	_cleanup_(cleanup_fcvm_process_free) struct fcvm_process *process = NULL;
	_cleanup_(cleanup_fcvm_http_free) struct fcvm_http *api = NULL;
	_cleanup_free_ char *address = fcvm_asprintf("unix:%s/" FC_API, dir);
	_cleanup_close_ int tmp = open("/tmp", O_PATH | O_DIRECTORY | O_CLOEXEC); /* this host's */
	int k = address ? fcvm_node_spawn(node, &spec, until, &process, err) : -ENOMEM;

	if (k == -ENOENT)
		return fcvm_fail(err, k, "%s was not found on %s: %s", p->binary, fcvm_node_name(node), remedy);
	if (k == 0)
		k = fcvm_http_new(&api, node, address, tmp, fcvm_process_exit_fd(process), err);
	if (k < 0)
		return k;
	k = knock(api, process, until, err);
	return k < 0 ? (fcvm_fail_prefix(err, "probe %s", p->binary), k) : ask(p, api, until, err);
}

int fcvm_fc_interview(struct fcvm_node *node, const struct fcvm_until *until, struct vmm_probe *p, struct fcvm_err *err)
{
	struct fcvm_until soon = fcvm_until_sooner(until, PROBE_MS), after;
	_cleanup_free_ char *dir = NULL;
	uint64_t tag;
	int k;

	fcvm_random(&tag, sizeof tag);
	dir = fcvm_asprintf("/tmp/fcvm-probe-%016llx", (unsigned long long)tag);
	if (!dir)
		return fcvm_fail_errno(err, -ENOMEM, "probe %s", p->binary);
	k = fcvm_node_mkdir(node, dir, 0700, false, true, &soon, err);
	if (k < 0)
		return (fcvm_fail_prefix(err, "probe %s", p->binary), k);
	k = interview_in(node, dir, p, &soon, err);
	/* Of one that was given up, too, which leaves no time. */
	after = fcvm_until_ms(REMOVE_MS, -1);
	fcvm_node_remove(node, dir, &after, NULL);
	return k;
}

/* ---- */

static int check_kvm(struct fcvm_node *node, const struct fcvm_until *until, struct vmm_probe *p, struct fcvm_err *err)
{
	char why[200] = "";
	int k = fcvm_probe_kvm(node, until, why, sizeof why);

	if (k < 0)
		return fcvm_fail(err, k, "firecracker: it needs KVM, which cannot be used: %s", why);
	p->why = strdup(why);
	p->accel = strdup("kvm");
	p->machine = strdup("firecracker");
	return p->why && p->accel && p->machine ? 0 : fcvm_fail_errno(err, -ENOMEM, "probe %s", p->binary);
}

/* That KVM is emulated in software is kept, too: finding that out takes longest. */
static void keep(const char *cache, const char *key, const struct vmm_probe *p, int code, const struct fcvm_err *why)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *own = code < 0 ? fcvm_json_object() : NULL;
	struct vmm_probe failed = {.binary = p->binary, .version = "", .accel = "", .why = (char *)why->message,
		.machine = "", .own = own};

	if (code < 0 && code != -ENODEV)
		return;
	if (own)
		fcvm_json_set_int(own, "error", code);
	fcvm_probe_cache_write(cache, key, code < 0 ? &failed : p);
}

static int find_out(struct fcvm_node *node, const struct fcvm_until *until, struct vmm_probe *p, struct fcvm_err *err)
{
	int k = check_kvm(node, until, p, err);

	if (k == 0)
		k = fcvm_fc_interview(node, until, p, err);
	if (k == 0)
		k = find_jailer(node, until, p, err);
	return k;
}

int fcvm_fc_probe(struct fcvm_node *node, const char *want, const char *cache, const struct fcvm_until *until,
	struct vmm_probe *ret, struct fcvm_err *err)
{
	struct fcvm_until soon = fcvm_until_sooner(until, PROBE_MS);
	struct fcvm_err why = FCVM_ERR_INIT;
	struct vmm_probe p = {0};
	char key[17];
	int k = find_binary(node, &soon, &p, &why);

	if (k == 0 && want && strcmp(want, "tcg") == 0)
		k = fcvm_fail(&why, -EOPNOTSUPP, "firecracker: it needs KVM, and knows no tcg; driver qemu does");
	if (!fcvm_node_is_local(node) || (k == 0 && fcvm_probe_key(key, p.binary, NULL, program) < 0))
		cache = NULL;
	if (k == 0 && fcvm_probe_cache_read(cache, key, &p)) {
		k = fcvm_json_int(p.own, "error", 0);
		if (k < 0)
			fcvm_fail(&why, k, "%s", p.why);
	} else if (k == 0) {
		k = find_out(node, until, &p, &why);
		keep(cache, key, &p, k, &why);
	}
	if (k == 0) {
		*ret = p;
		return 0;
	}
	fcvm_vmm_probe_done(&p);
	if (err)
		*err = why;
	return k;
}
