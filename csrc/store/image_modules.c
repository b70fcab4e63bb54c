/* SPDX-License-Identifier: MIT */
/* Kernel modules: which ones, and what they depend on (ELF(5); "depends=" in .modinfo, as depmod reads it). */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "store/image_private.h"

enum { MODULE_MAX = 64 * 1024 * 1024, DEPTH_MAX = 16 };

/* What is loaded before the agent answers, in this order. Devices by their number in linux/virtio_ids.h. */
static const struct root {
	const char *name, *when;
	bool must; /* what it takes to answer at all */
} boot_roots[] = {
	{"virtio_mmio", "", true},
	{"virtio_console", "virtio:3", true},
	{"vmw_vsock_virtio_transport", "virtio:19"},
	{"virtio_blk", "virtio:2"},
	{"virtio_net", "virtio:1"},
	{"virtio_rng", "virtio:4"},
	{"virtio_balloon", "virtio:5"},
	{NULL},
};
/* In the image, for modprobe, for the kernel when it is asked for a file system of such a kind, and for the agent when
 * it needs it. */
static const struct root demand_roots[] = {
	{"virtio_pci"}, {"fuse", "need:fuse"}, {"overlay", "need:overlay"}, {NULL}};
/* Of initrd-nested. kvm_amd has nested=1 by default, kvm_intel as well. */
static const struct root nested_roots[] = {{"kvm_amd", "cpu:svm"}, {"kvm_intel", "cpu:vmx"}, {NULL}};
static const struct root spare_roots[] = {{"virtiofs"}, {NULL}};

/* ---- .modinfo ---- */

const char *store_modinfo_find(const char *elf, size_t size, size_t *ret_size)
{
	Elf64_Ehdr head;
	Elf64_Shdr strings, section;
	const char name[] = ".modinfo";

	if (size < sizeof head)
		return NULL;
	memcpy(&head, elf, sizeof head);
	if (memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 || head.e_ident[EI_CLASS] != ELFCLASS64 ||
		head.e_shentsize != sizeof section || head.e_shstrndx >= head.e_shnum || head.e_shoff > size ||
		(size - head.e_shoff) / sizeof section < head.e_shnum)
		return NULL;
	memcpy(&strings, elf + head.e_shoff + head.e_shstrndx * sizeof section, sizeof section);
	if (strings.sh_offset > size || strings.sh_size > size - strings.sh_offset)
		return NULL;
	for (unsigned i = 0; i < head.e_shnum; i++) {
		memcpy(&section, elf + head.e_shoff + i * sizeof section, sizeof section);
		if (section.sh_name > strings.sh_size || strings.sh_size - section.sh_name < sizeof name ||
			memcmp(elf + strings.sh_offset + section.sh_name, name, sizeof name) != 0)
			continue;
		if (section.sh_type == SHT_NOBITS || section.sh_offset > size || section.sh_size == 0 ||
			section.sh_size > size - section.sh_offset || elf[section.sh_offset + section.sh_size - 1])
			return NULL;
		*ret_size = section.sh_size;
		return elf + section.sh_offset;
	}
	return NULL;
}

const char *store_modinfo_next(const struct store_module *m, const char *key, size_t *at)
{
	size_t length = strlen(key);

	while (*at < m->info_size) {
		const char *entry = m->info + *at;

		*at += strlen(entry) + 1;
		if (strncmp(entry, key, length) == 0 && entry[length] == '=')
			return entry + length + 1;
	}
	return NULL;
}

/* ---- finding them ---- */

struct index {
	struct found {
		char *name, *path;
	} *list;
	size_t n, room;
	char *builtin; /* modules.builtin, or NULL */
};

/* "virtio-rng.ko.xz" -> "virtio_rng"; NULL: no module. */
static char *module_name(const char *file)
{
	static const char *const ends[] = {".ko", ".ko.xz", ".ko.gz", ".ko.zst"};
	size_t size = strlen(file);

	for (unsigned i = 0; i < sizeof ends / sizeof *ends; i++) {
		size_t end = strlen(ends[i]);
		char *name;

		if (size <= end || strcmp(file + size - end, ends[i]) != 0)
			continue;
		name = strndup(file, size - end);
		for (char *c = name; c && *c; c++)
			if (*c == '-')
				*c = '_';
		return name;
	}
	return NULL;
}

static int index_add(struct index *x, const char *file, const char *path)
{
	char *name = module_name(file);

	if (strcmp(file, "modules.builtin") == 0 && !x->builtin)
		fcvm_file_read(AT_FDCWD, path, STORE_MANIFEST_MAX, &x->builtin, NULL);
	if (!name)
		return 0;
	if (x->n == x->room) {
		size_t room = x->room ? x->room * 2 : 512;
		struct found *bigger = realloc(x->list, room * sizeof *bigger);

		if (!bigger) {
			free(name);
			return -ENOMEM;
		}
		x->list = bigger;
		x->room = room;
	}
	x->list[x->n].name = name;
	x->list[x->n].path = strdup(path);
	return x->list[x->n++].path ? 0 : -ENOMEM;
}

static int index_build(const char *folder, struct index *x)
{
	char *const roots[] = {(char *)folder, NULL};
	FTS *fts = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR | FTS_XDEV, NULL);
	FTSENT *e;
	int r = fts ? 0 : -errno;

	while (r == 0 && (e = fts_read(fts))) {
		if (e->fts_info == FTS_F)
			r = index_add(x, e->fts_name, e->fts_path);
		else if (e->fts_level == 0 && (e->fts_info == FTS_NS || e->fts_info == FTS_DNR))
			r = -e->fts_errno;
	}
	if (fts)
		fts_close(fts);
	return r;
}

static void index_done(struct index *x)
{
	for (size_t i = 0; i < x->n; i++) {
		free(x->list[i].name);
		free(x->list[i].path);
	}
	free(x->list);
	free(x->builtin);
}

static const char *index_find(const struct index *x, const char *name)
{
	for (size_t i = 0; i < x->n; i++)
		if (strcmp(x->list[i].name, name) == 0)
			return x->list[i].path;
	return NULL;
}

/* modules.builtin has "kernel/drivers/char/virtio-console.ko" on a line. */
static bool is_builtin(const struct index *x, const char *name)
{
	_cleanup_free_ char *copy = x->builtin ? strdup(x->builtin) : NULL;
	char *rest = copy, *line;

	while ((line = strsep(&rest, "\n"))) {
		char *slash = strrchr(line, '/');
		_cleanup_free_ char *builtin = module_name(slash ? slash + 1 : line);

		if (builtin && strcmp(builtin, name) == 0)
			return true;
	}
	return !x->builtin;
}

/* ---- reading them ---- */

static struct store_module *find_read(const struct store_modules *m, const char *name)
{
	for (unsigned i = 0; i < m->n; i++)
		if (strcmp(m->list[i].name, name) == 0)
			return &m->list[i];
	return NULL;
}

static void module_done(struct store_module *m)
{
	free(m->name);
	free(m->path);
	free(m->data);
}

void store_modules_done(struct store_modules *m)
{
	for (unsigned i = 0; i < m->n; i++)
		module_done(&m->list[i]);
	free(m->list);
	*m = (struct store_modules){.n = 0};
}

static int append(struct store_modules *m, struct store_module *one)
{
	struct store_module *bigger = realloc(m->list, (m->n + 1) * sizeof *bigger);

	if (!bigger)
		return -ENOMEM;
	m->list = bigger;
	m->list[m->n++] = *one;
	*one = (struct store_module){.name = NULL};
	return 0;
}

static int read_module(const char *name, const char *path, struct store_module *ret, struct fcvm_err *err)
{
	int r;

	ret->name = strdup(name);
	ret->path = strdup(path);
	if (!ret->name || !ret->path)
		return fcvm_fail_errno(err, -ENOMEM, "read %s", path);
	r = store_decompress(path, MODULE_MAX, &ret->data, &ret->size, err);
	if (r < 0)
		return r;
	ret->info = store_modinfo_find(ret->data, ret->size, &ret->info_size);
	return ret->info ? 0 : fcvm_fail(err, -EBADMSG, "%s is no kernel module", path);
}

/* Depth first: what it depends on comes before it. */
static int visit(const struct index *x, const char *name, unsigned depth, struct store_modules *to,
	struct fcvm_err *err)
{
	_cleanup_(module_done) struct store_module m = {.name = NULL};
	_cleanup_free_ char *depends = NULL;
	const char *path = index_find(x, name), *text;
	char *rest, *one;
	size_t at = 0;
	int r;

	if (!path || find_read(to, name))
		return 0;
	if (depth == DEPTH_MAX)
		return fcvm_fail(err, -ELOOP, "kernel module %s: dependencies nested more than %d deep", path,
			(int)DEPTH_MAX);
	r = read_module(name, path, &m, err);
	if (r < 0)
		return r;
	text = store_modinfo_next(&m, "depends", &at);
	depends = strdup(text ? text : "");
	if (!depends)
		return fcvm_fail_errno(err, -ENOMEM, "kernel module %s", path);
	for (rest = depends; (one = strsep(&rest, ","));) {
		for (char *c = one; *c; c++)
			if (*c == '-')
				*c = '_';
		r = *one ? visit(x, one, depth + 1, to, err) : 0;
		if (r < 0)
			return r;
	}
	r = append(to, &m);
	return r < 0 ? fcvm_fail_errno(err, r, "kernel module %s", path) : 0;
}

static int read_roots(const struct index *x, const char *folder, const struct root *roots, struct store_modules *to,
	struct fcvm_err *err)
{
	for (const struct root *one = roots; one->name; one++) {
		struct store_module *m;
		int r;

		if (one->must && !index_find(x, one->name) && !is_builtin(x, one->name))
			return fcvm_fail(err, -ENOENT,
				"%s has no kernel module %s; set FCVM_KERNEL and FCVM_MODULES to a kernel that does",
				folder, one->name);
		r = visit(x, one->name, 0, to, err);
		if (r < 0)
			return r;
		m = find_read(to, one->name);
		if (m)
			m->when = one->when;
	}
	return 0;
}

int store_modules_read(const char *folder, bool spare, struct store_modules *ret, struct fcvm_err *err)
{
	_cleanup_(index_done) struct index x = {.n = 0};
	_cleanup_(store_modules_done) struct store_modules m = {.n = 0};
	int r = index_build(folder, &x);

	if (r < 0)
		return fcvm_fail_errno(err, r, "look for kernel modules in %s", folder);
	r = read_roots(&x, folder, boot_roots, &m, err);
	if (r == 0)
		r = read_roots(&x, folder, demand_roots, &m, err);
	m.nplain = m.n;
	if (r == 0)
		r = read_roots(&x, folder, nested_roots, &m, err);
	if (r == 0 && spare)
		r = read_roots(&x, folder, spare_roots, &m, err);
	if (r < 0)
		return r;
	*ret = m;
	m = (struct store_modules){.n = 0};
	return 0;
}
