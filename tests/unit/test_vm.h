/* SPDX-License-Identifier: MIT */
/* What the tests of the public interface share: errors that are shown, programs of guests, a run folder of their own. */
#ifndef FCVM_TESTS_TEST_VM_H
#define FCVM_TESTS_TEST_VM_H

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/until.h"
#include "check.h"
#include "fcvm.h"

static struct fcvm_err err;

/* Zero, or the message is shown. */
static inline bool ok(int r)
{
	if (r < 0)
		fprintf(stderr, "%s\n%s\n", err.message, err.detail);
	return r == 0;
}

static inline bool says(const char *text)
{
	bool found = strstr(err.message, text) != NULL;

	if (!found)
		fprintf(stderr, "no '%s' in: %s\n", text, err.message);
	return found;
}

/* The stdout of a shell command, in a buffer that the next call reuses. */
static inline const char *sh(struct fcvm_vm *vm, const char *command)
{
	static char text[4][4096];
	static unsigned i;
	struct fcvm_exec_result out = FCVM_EXEC_RESULT_INIT;
	char *to = text[i++ % 4];
	int r = fcvm_vm_exec(vm, (const char *[]){"sh", "-c", command, NULL}, NULL, &out, &err);

	to[0] = 0;
	if (ok(r))
		snprintf(to, sizeof text[0], "%s", out.stdout_data);
	fcvm_exec_result_done(&out);
	return to;
}

static inline unsigned vms_listed(void)
{
	char *json = NULL, *at;
	unsigned n = 0;

	CHECK(ok(fcvm_list_vms(&json, &err)));
	for (at = json; at && (at = strstr(at, "\"vcpus\"")); at++)
		n++;
	free(json);
	return n;
}

/* But for what is kept there on purpose: the gate, and what a probe found. */
static inline bool is_empty(const char *run)
{
	DIR *dir = opendir(run);
	struct dirent *e;
	bool empty = dir != NULL;

	while (dir && (e = readdir(dir))) {
		if (e->d_name[0] == '.')
			continue;
		fprintf(stderr, "left: %s/%s\n", run, e->d_name);
		empty = false;
	}
	if (dir)
		closedir(dir);
	return empty;
}

struct test {
	const char *name;
	void (*run)(void);
};

/* $ONLY, or all n of them, in a run folder of their own, so that it can be seen to be empty at the end. */
static inline void run_tests(const struct test *tests, unsigned n)
{
	char run[] = "/dev/shm/fcvm-test-vm-XXXXXX";

	CHECK(mkdtemp(run));
	setenv("FCVM_RUN", run, 1);
	signal(SIGPIPE, SIG_IGN);
	for (unsigned i = 0; i < n; i++) {
		unsigned before = check_failed;
		int64_t from = fcvm_now_ns();

		if (getenv("ONLY") && strcmp(getenv("ONLY"), tests[i].name) != 0)
			continue;
		tests[i].run();
		printf("%s: %s, %.1f s\n", tests[i].name, check_failed > before ? "FAILED" : "passed",
			(fcvm_now_ns() - from) / 1e9);
		fflush(stdout);
	}
	CHECK(is_empty(run));
	fcvm_tree_remove(AT_FDCWD, run);
}

#endif
