/* SPDX-License-Identifier: MIT */
/* How an image is made: kernel and modules, busybox, agent -> initrd. */
#ifndef FCVM_STORE_IMAGE_PRIVATE_H
#define FCVM_STORE_IMAGE_PRIVATE_H

#include <elf.h>

#include "store/store_private.h"

/* ---- modules (image_modules.c) ---- */

struct store_module {
	char *name; /* with '_', as in depends= */
	char *path; /* where it was read */
	char *data; /* the ELF file, decompressed */
	size_t size;
	const char *info; /* its .modinfo: NUL-separated "key=value", in data */
	size_t info_size;
	const char *when; /* it is loaded before the agent answers (image_initrd.c): "": always; NULL: on demand */
};

struct store_modules {
	struct store_module *list; /* each behind all that it depends on, those for the boot first */
	unsigned n;
	unsigned nplain; /* of them, from the first on: what an initrd without KVM has */
};

/*
 * Reads the modules that images are made of, and what they depend on, from a folder (searched deeply; *.ko, also
 * compressed). spare: those too that are kept in the cache only. What is not there is taken for built into the
 * kernel, unless the folder has a modules.builtin that says otherwise and the boot needs it (-ENOENT).
 */
int store_modules_read(const char *folder, bool spare, struct store_modules *ret, struct fcvm_err *err);
void store_modules_done(struct store_modules *m);
/* The next value of a key in (info, size) after *at (start with 0), or NULL. */
const char *store_modinfo_next(const struct store_module *m, const char *key, size_t *at);
/* Pure. The section .modinfo of a 64-bit ELF file, NUL-terminated; NULL if it has none. */
const char *store_modinfo_find(const char *elf, size_t size, size_t *ret_size);

/* ---- packages (image_package.c), by the machine's own apt ---- */

/*
 * Downloads Debian packages with all configured sources into a folder and hands each regular file in them to
 * `take` (path without leading "./"; return true to have it written to dirfd under the name put into `to`).
 */
typedef bool store_take_fn(const char *path, char to[static 256]);
int store_packages_unpack(struct fcvm_store *s, const char *const *packages, const char *work, int dirfd,
	store_take_fn *take, const struct fcvm_until *until, struct fcvm_err *err);
/* The names that begin with one of the prefixes among the Depends of a package: NULL-terminated, malloc'ed. */
int store_package_depends(struct fcvm_store *s, const char *package, const char *const *prefixes,
	const struct fcvm_until *until, char ***ret, struct fcvm_err *err);
void store_strings_free(char **list);
/* What uncompressed or compressed data is, at most max bytes. -EBADMSG. */
int store_decompress(const char *path, size_t max, char **ret, size_t *ret_size, struct fcvm_err *err);

/* ---- kernels (image_kernel.c) ---- */

#if defined(__x86_64__)
enum { STORE_MACHINE = EM_X86_64 };
#elif defined(__aarch64__)
enum { STORE_MACHINE = EM_AARCH64 };
#else
#error "fcvm knows x86-64 and arm64"
#endif

struct store_kernel {
	char *release; /* "6.1.0-56-cloud-amd64" */
	char *vmlinuz;
	char *modules; /* folder; NULL: none */
	bool cached;   /* beneath the data folder, never changed */
};

/* $FCVM_KERNEL and $FCVM_MODULES, else the newest one in the data folder, which may have to be fetched. */
int store_kernel_get(struct fcvm_store *s, const struct fcvm_until *until, struct store_kernel *ret,
	struct fcvm_err *err);
void store_kernel_done(struct store_kernel *k);
/* Pure. From the header of a bzImage; malloc'ed, NULL if it is none. */
char *store_kernel_release(const char *data, size_t size);
/* The static busybox of $FCVM_BUSYBOX, of this machine, of the data folder, or fetched into that. */
int store_busybox_get(struct fcvm_store *s, const struct fcvm_until *until, char **ret, struct fcvm_err *err);

/* The ELF file in a bzImage (image_elf.c). */
struct store_payload {
	const void *data; /* compressed, in the bzImage */
	size_t size;
	uint32_t unpacked; /* bytes, as the bzImage says */
};
/* Pure. -EINVAL if it is no bzImage, or not all of it. */
int store_bzimage_find(const void *data, size_t size, struct store_payload *ret);

/* ---- initrd (image_initrd.c) ---- */

struct store_initrd {
	const char *release;
	const char *agent, *busybox; /* paths */
	const char *applets;         /* lines of `busybox --list-full` */
	const struct store_modules *modules;
	bool nested; /* with those of KVM */
};
/* Same input, same bytes. */
int store_initrd_write(int fd, const struct store_initrd *in, struct fcvm_err *err);

#endif
