/* SPDX-License-Identifier: MIT */
/* fcvm cp: files and folders into and out of a running VM. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "fcvm.h"
#include "host/verb.h"

FCVM_CLEANUP(struct fcvm_vm, fcvm_vm_free)

struct place {
	char *id; /* NULL: this host */
	char *path;
};

static void place_done(struct place *p)
{
	free(p->id);
	free(p->path);
}

/* ID:PATH, unless a '/' comes before the colon: ./a:b is a file here. */
static struct place place_of(const char *text)
{
	const char *colon = strpbrk(text, ":/");
	struct place p = {0};

	if (colon && *colon == ':' && colon > text) {
		p.id = strndup(text, (size_t)(colon - text));
		/* A program's folder in a guest is / as well. */
		p.path = fcvm_asprintf("%s%s", colon[1] == '/' ? "" : "/", colon + 1);
	} else {
		p.path = strdup(text);
	}
	if (!p.path)
		abort();
	return p;
}

static int run(const struct args *args)
{
	_cleanup_(place_done) struct place from = place_of(args->operands[0]);
	_cleanup_(place_done) struct place to = place_of(args->operands[1]);
	_cleanup_(cleanup_fcvm_vm_free) struct fcvm_vm *vm = NULL;
	struct fcvm_err err = FCVM_ERR_INIT;
	int r;

	if (!from.id == !to.id)
		return misuse("cp: %s; one side is ID:PATH, the other a path here",
			from.id ? "both sides are in a VM" : "neither side is in a VM");
	r = fcvm_vm_attach(&vm, from.id ? from.id : to.id, &err);
	if (r == 0 && from.id)
		r = fcvm_vm_copy_out(vm, from.path, to.path, FCVM_DEFAULT_TIMEOUT, &err);
	else if (r == 0)
		r = fcvm_vm_copy_in(vm, from.path, to.path, FCVM_DEFAULT_TIMEOUT, &err);
	return r < 0 ? failed(&err) : 0;
}

static const struct option options[] = {{0}};

const struct verb verb_cp = {
	.name = "cp",
	.operands = "SOURCE DESTINATION",
	.summary = "Copy a file or folder into a VM or out of it",
	.help = "One side is ID:PATH, the other a path here. Modes, times, symbolic links and\n"
		"holes are kept; a folder is copied with all it holds, into the destination if\n"
		"that is a folder.\n"
		"\n"
		"Examples:\n"
		"  fcvm cp build/app quiet-heron:/usr/local/bin/\n"
		"  fcvm cp quiet-heron:/var/log logs",
	.options = options,
	.min = 2,
	.max = 2,
	.run = run,
};
