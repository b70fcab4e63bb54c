/* SPDX-License-Identifier: MIT */
/*
 * The kernel and the busybox that images are made of. Both are Debian's own, taken from this machine where it has
 * them installed, else fetched once into the data folder:
 *
 *   kernels/RELEASE/{vmlinuz, modules/NAME.ko, kernel.json}   modules: what images need, decompressed
 *   busybox/busybox
 *
 * To have a newer one, remove the folder.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/log.h"
#include "store/image_private.h"

/* Of kernels/RELEASE: grows with the list of modules, so that what was kept by an older fcvm is fetched anew. */
enum { CACHE_FORMAT = 2, KERNEL_HEAD = 64 * 1024 };

#if defined(__x86_64__)
#define CLOUD "cloud-amd64"
#else
#define CLOUD "cloud-arm64"
#endif

void store_kernel_done(struct store_kernel *k)
{
	free(k->release);
	free(k->vmlinuz);
	free(k->modules);
	*k = (struct store_kernel){.release = NULL};
}

/* The boot protocol's header (Documentation/arch/x86/boot.rst): "HdrS" at 0x202, kernel_version at 0x20e. */
char *store_kernel_release(const char *data, size_t size)
{
	const unsigned char *u = (const unsigned char *)data;
	size_t at, length = 0;

	if (size < 0x210 || memcmp(data + 0x202, "HdrS", 4) != 0)
		return NULL;
	at = (u[0x20e] | (size_t)u[0x20f] << 8) + 0x200;
	while (at < size && length < size - at && length < STORE_NAME_MAX && data[at + length] > ' ' &&
		data[at + length] < 127 && data[at + length] != '/')
		length++;
	return at < size && length > 0 ? strndup(data + at, length) : NULL;
}

static char *release_of(const char *vmlinuz)
{
	_cleanup_close_ int fd = open(vmlinuz, O_RDONLY | O_CLOEXEC);
	_cleanup_free_ char *head = malloc(KERNEL_HEAD);
	ssize_t n = fd >= 0 && head ? read(fd, head, KERNEL_HEAD) : -1;

	return n > 0 ? store_kernel_release(head, n) : NULL;
}

/* ---- $FCVM_KERNEL ---- */

static int kernel_of_env(struct store_kernel *k, struct fcvm_err *err)
{
	const char *vmlinuz = getenv("FCVM_KERNEL"), *modules = getenv("FCVM_MODULES"), *slash;

	if (access(vmlinuz, R_OK) < 0)
		return fcvm_fail_errno(err, -errno, "FCVM_KERNEL=%s", vmlinuz);
	k->vmlinuz = realpath(vmlinuz, NULL);
	k->modules = modules && *modules ? realpath(modules, NULL) : NULL;
	if (modules && *modules && !k->modules)
		return fcvm_fail_errno(err, -errno, "FCVM_MODULES=%s", modules);
	k->release = release_of(vmlinuz);
	slash = k->modules ? strrchr(k->modules, '/') : NULL;
	if (!k->release)
		k->release = strdup(slash ? slash + 1 : "unknown");
	return k->release && k->vmlinuz ? 0 : fcvm_fail_errno(err, -ENOMEM, "FCVM_KERNEL=%s", vmlinuz);
}

/* ---- what the data folder has ---- */

struct newest {
	char name[256];
	const char *prefix, *suffix; /* NULL: any name, of a kernel kept by us */
};

static bool is_kept(int dirfd, const char *name)
{
	_cleanup_close_ int fd = store_open_dir(dirfd, name);
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = fd < 0 ? NULL : store_read_json(fd, "kernel.json");

	return fcvm_json_int(j, "format", -1) == CACHE_FORMAT && faccessat(fd, "vmlinuz", R_OK, 0) == 0;
}

static int compare_kept(void *data, int dirfd, const char *name)
{
	struct newest *n = data;

	if (store_name_ok(name) && is_kept(dirfd, name) && strverscmp(name, n->name) > 0)
		snprintf(n->name, sizeof n->name, "%s", name);
	return 0;
}

static int kernel_of_cache(struct fcvm_store *s, struct store_kernel *k, struct fcvm_err *err)
{
	_cleanup_close_ int fd = store_make_dir(s->data_fd, "kernels");
	struct newest n = {.name = ""};
	int r = fd < 0 ? fd : store_each(fd, compare_kept, &n);

	if (r < 0)
		return fcvm_fail_errno(err, r, "open %s/kernels", s->data);
	if (!n.name[0])
		return -ENOENT;
	k->cached = true;
	k->release = strdup(n.name);
	k->vmlinuz = fcvm_asprintf("%s/kernels/%s/vmlinuz", s->data, n.name);
	k->modules = fcvm_asprintf("%s/kernels/%s/modules", s->data, n.name);
	return k->release && k->vmlinuz && k->modules ? 0 : fcvm_fail_errno(err, -ENOMEM, "kernel %s", n.name);
}

/* ---- keeping one ---- */

static int copy_to(const char *from, int dirfd, const char *name)
{
	_cleanup_close_ int in = open(from, O_RDONLY | O_CLOEXEC);
	_cleanup_close_ int out = -1;
	char hash[STORE_HASH];
	int r;

	if (in < 0)
		return -errno;
	out = openat(dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (out < 0)
		return -errno;
	r = store_hash_file(in, out, hash);
	return r == 0 && fsync(out) < 0 ? -errno : r;
}

static int keep_modules(int dirfd, const struct store_modules *m)
{
	_cleanup_close_ int fd = store_make_dir(dirfd, "modules");
	int r = fd < 0 ? fd : 0;

	for (unsigned i = 0; r == 0 && i < m->n; i++) {
		_cleanup_free_ char *name = fcvm_asprintf("%s.ko", m->list[i].name);

		r = name ? fcvm_file_replace(fd, name, m->list[i].data, m->list[i].size, 0600, true) : -ENOMEM;
	}
	return r;
}

/* From vmlinuz and a tree of modules to kernels/RELEASE. source: for people who look into kernel.json. */
static int keep(struct fcvm_store *s, const char *vmlinuz, const char *modules, const char *release,
	const char *source, struct fcvm_err *err)
{
	_cleanup_(store_modules_done) struct store_modules m = {.n = 0};
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = fcvm_json_object();
	_cleanup_free_ char *text = NULL;
	_cleanup_close_ int kernels = store_make_dir(s->data_fd, "kernels"), fd = -1;
	struct fcvm_lease work = FCVM_LEASE_INIT;
	int r = store_modules_read(modules, true, &m, err);

	if (r == 0)
		r = store_work_new(s, &work, err);
	if (r < 0)
		return r;
	fcvm_json_set_int(j, "format", CACHE_FORMAT);
	fcvm_json_set_string(j, "source", source);
	text = fcvm_json_print(j, 2);
	fd = store_make_dir(work.dirfd, "new");
	r = !text ? -ENOMEM : kernels < 0 ? kernels : fd < 0 ? fd : copy_to(vmlinuz, fd, "vmlinuz");
	if (r == 0)
		r = keep_modules(fd, &m);
	if (r == 0)
		r = fcvm_file_replace(fd, "kernel.json", text, strlen(text), 0600, true);
	if (r == 0) {
		store_discard(kernels, release); /* of another format */
		r = renameat(work.dirfd, "new", kernels, release) < 0 ? -errno : 0;
	}
	store_work_done(s, &work);
	if (r == -ENOSPC || r == -EDQUOT)
		return fcvm_store_disk_full(r, s->data, 0, "keep a kernel", err);
	return r < 0 ? fcvm_fail_errno(err, r, "keep kernel %s in %s/kernels", release, s->data) : 0;
}

/* ---- installed on this machine ---- */

static int compare_installed(void *data, int dirfd, const char *name)
{
	static const char before[] = "vmlinuz-", after[] = "-" CLOUD;
	struct newest *n = data;
	size_t size = strlen(name);

	if (strncmp(name, before, sizeof before - 1) == 0 && size > sizeof before + sizeof after &&
		strcmp(name + size - (sizeof after - 1), after) == 0 && faccessat(dirfd, name, R_OK, 0) == 0 &&
		strverscmp(name, n->name) > 0)
		snprintf(n->name, sizeof n->name, "%s", name);
	return 0;
}

static int keep_installed(struct fcvm_store *s)
{
	_cleanup_close_ int boot = store_open_dir(AT_FDCWD, "/boot");
	_cleanup_free_ char *vmlinuz = NULL, *modules = NULL;
	struct fcvm_err why = FCVM_ERR_INIT;
	struct newest n = {.name = ""};
	const char *release;
	int r;

	if (boot < 0 || store_each(boot, compare_installed, &n) < 0 || !n.name[0])
		return -ENOENT;
	release = n.name + strlen("vmlinuz-");
	vmlinuz = fcvm_asprintf("/boot/%s", n.name);
	modules = fcvm_asprintf("/lib/modules/%s", release);
	if (!vmlinuz || !modules || access(modules, R_OK | X_OK) < 0 || !store_name_ok(release))
		return -ENOENT;
	fcvm_say(FCVM_SAY_PROGRESS, "take the kernel %s", vmlinuz);
	r = keep(s, vmlinuz, modules, release, vmlinuz, &why);
	if (r < 0)
		fcvm_say(FCVM_SAY_WARNING, "the kernel %s is of no use: %s", vmlinuz, why.message);
	return r;
}

/* ---- fetched ---- */

static bool take_kernel(const char *path, char to[static 256])
{
	const char *name = strrchr(path, '/');

	name = name ? name + 1 : path;
	if (strncmp(path, "usr/", 4) == 0)
		path += 4;
	if (strncmp(path, "boot/vmlinuz-", 13) == 0)
		name = "vmlinuz";
	else if (strncmp(path, "lib/modules/", 12) != 0 ||
		 (!strstr(name, ".ko") && strcmp(name, "modules.builtin") != 0))
		return false;
	return snprintf(to, 256, "%s", name) < 256;
}

/* The stub linux-image-RELEASE of newer Debians has its files in linux-binary-RELEASE and linux-modules-RELEASE. */
static int unpack_kernel(struct fcvm_store *s, const char *package, const char *work, int dirfd,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	static const char *const parts[] = {"linux-binary-", "linux-modules-", NULL};
	char **more = NULL;
	int r = store_packages_unpack(s, (const char *[]){package, NULL}, work, dirfd, take_kernel, until, err);

	if (r < 0 || faccessat(dirfd, "vmlinuz", F_OK, 0) == 0)
		return r;
	r = store_package_depends(s, package, parts, until, &more, err);
	if (r == 0)
		r = store_packages_unpack(s, (const char *const *)more, work, dirfd, take_kernel, until, err);
	store_strings_free(more);
	if (r == 0 && faccessat(dirfd, "vmlinuz", F_OK, 0) < 0)
		r = fcvm_fail(err, -ENOENT, "package %s has no boot/vmlinuz; set FCVM_KERNEL and FCVM_MODULES", package);
	return r;
}

static int fetch_kernel(struct fcvm_store *s, const struct fcvm_until *until, struct fcvm_err *err)
{
	static const char *const image[] = {"linux-image-", NULL};
	struct fcvm_lease work = FCVM_LEASE_INIT;
	_cleanup_free_ char *folder = NULL, *vmlinuz = NULL;
	_cleanup_close_ int fd = -1;
	char **packages = NULL;
	const char *release;
	int r = store_package_depends(s, "linux-image-" CLOUD, image, until, &packages, err);

	if (r == 0 && (!packages[0] || !store_name_ok(packages[0] + strlen(image[0]))))
		r = fcvm_fail(err, -ENOENT, "package linux-image-" CLOUD " depends on no kernel; set FCVM_KERNEL");
	if (r == 0)
		r = store_work_new(s, &work, err);
	if (r == 0) {
		release = packages[0] + strlen(image[0]);
		fd = store_make_dir(work.dirfd, "deb");
		folder = fcvm_asprintf("%s/deb", work.path);
		vmlinuz = fcvm_asprintf("%s/deb/vmlinuz", work.path);
		r = fd < 0 ? fd : !folder || !vmlinuz ? -ENOMEM : 0;
		r = r < 0 ? fcvm_fail_errno(err, r, "make %s/deb", work.path)
			  : unpack_kernel(s, packages[0], work.path, fd, until, err);
		if (r == 0)
			r = keep(s, vmlinuz, folder, release, packages[0], err);
	}
	store_work_done(s, &work);
	store_strings_free(packages);
	return r;
}

int store_kernel_get(struct fcvm_store *s, const struct fcvm_until *until, struct store_kernel *ret,
	struct fcvm_err *err)
{
	_cleanup_(store_kernel_done) struct store_kernel k = {.release = NULL};
	const char *env = getenv("FCVM_KERNEL");
	int r;

	if (env && *env)
		r = kernel_of_env(&k, err);
	else
		r = kernel_of_cache(s, &k, err);
	if (r == -ENOENT && !(env && *env)) {
		r = keep_installed(s);
		if (r < 0)
			r = fetch_kernel(s, until, err);
		if (r < 0)
			return r;
		r = kernel_of_cache(s, &k, err);
		if (r == -ENOENT)
			fcvm_fail(err, r, "%s/kernels was emptied meanwhile; try again", s->data);
	}
	if (r < 0)
		return r;
	*ret = k;
	k = (struct store_kernel){.release = NULL};
	return 0;
}

/* ---- busybox ---- */

/* Runs in a guest that has nothing else: of this processor, and without an interpreter (PT_INTERP). */
static bool is_static(const char *path)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	Elf64_Ehdr head;
	Elf64_Phdr part;

	if (fd < 0 || fcvm_fd_read_full(fd, &head, sizeof head) < 0 || memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 ||
		head.e_machine != STORE_MACHINE || head.e_phentsize != sizeof part)
		return false;
	for (unsigned i = 0; i < head.e_phnum; i++)
		if (pread(fd, &part, sizeof part, (off_t)(head.e_phoff + i * sizeof part)) != sizeof part ||
			part.p_type == PT_INTERP)
			return false;
	return true;
}

static bool take_busybox(const char *path, char to[static 256])
{
	if (strcmp(path, "bin/busybox") != 0 && strcmp(path, "usr/bin/busybox") != 0)
		return false;
	strcpy(to, "busybox");
	return true;
}

static int fetch_busybox(struct fcvm_store *s, const struct fcvm_until *until, struct fcvm_err *err)
{
	const char *const packages[] = {"busybox-static", NULL};
	struct fcvm_lease work = FCVM_LEASE_INIT;
	_cleanup_close_ int fd = -1;
	int r = store_work_new(s, &work, err);

	if (r < 0)
		return r;
	fd = store_make_dir(work.dirfd, "new");
	r = fd < 0 ? fcvm_fail_errno(err, fd, "make %s/new", work.path)
		   : store_packages_unpack(s, packages, work.path, fd, take_busybox, until, err);
	if (r == 0 && fchmodat(fd, "busybox", 0700, 0) < 0)
		r = fcvm_fail_errno(err, -errno, "package busybox-static: busybox");
	if (r == 0) {
		store_discard(s->data_fd, "busybox");
		if (renameat(work.dirfd, "new", s->data_fd, "busybox") < 0)
			r = fcvm_fail_errno(err, -errno, "rename into %s/busybox", s->data);
	}
	store_work_done(s, &work);
	return r;
}

int store_busybox_get(struct fcvm_store *s, const struct fcvm_until *until, char **ret, struct fcvm_err *err)
{
	const char *env = getenv("FCVM_BUSYBOX");
	_cleanup_free_ char *kept = fcvm_asprintf("%s/busybox/busybox", s->data);
	const char *const places[] = {"/usr/bin/busybox", "/bin/busybox", kept};
	int r;

	if (env && *env && !is_static(env))
		return fcvm_fail(err, -EINVAL, "FCVM_BUSYBOX=%s is no static program for this processor", env);
	if (env && *env)
		return (*ret = realpath(env, NULL)) ? 0 : fcvm_fail_errno(err, -errno, "FCVM_BUSYBOX=%s", env);
	if (!kept)
		return fcvm_fail_errno(err, -ENOMEM, "busybox");
	for (unsigned i = 0; i < sizeof places / sizeof *places; i++)
		if (is_static(places[i]))
			return (*ret = strdup(places[i])) ? 0 : fcvm_fail_errno(err, -ENOMEM, "busybox");
	r = fetch_busybox(s, until, err);
	if (r == 0 && !is_static(kept))
		r = fcvm_fail(err, -EINVAL, "%s is no static program for this processor", kept);
	if (r == 0)
		*ret = fcvm_steal_ptr(kept);
	return r;
}
