/* SPDX-License-Identifier: MIT */
/*
 * The uncompressed kernel in a bzImage, for VMMs that take no other: its boot protocol's header says where the payload
 * is (Documentation/arch/x86/boot.rst), which is the compressed ELF file, and behind it maybe the relocations that the
 * kernel's own decompressor applies. The payload's last four bytes are its size once decompressed: what gzip ends in
 * anyway, and what the kernel's build appends to any other format (scripts/Makefile.lib, size_append).
 *
 * It is made once an image, beside its kernel, under images/.lock; images of one kernel share it by links.
 */
#include <archive.h>
#include <archive_entry.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/log.h"
#include "store/image_private.h"

enum {
	BZIMAGE_MAX = 256 * 1024 * 1024,
	CHUNK = 256 * 1024,
	SECTOR = 512,
	/* Offsets in the header. */
	SETUP_SECTS = 0x1f1,
	MAGIC = 0x202,
	PROTOCOL = 0x206,
	PAYLOAD_OFFSET = 0x248, /* since protocol 2.08, as the length */
	PAYLOAD_LENGTH = 0x24c,
	HEADER_END = 0x250,
};

#define ELF_MAX (512u * 1024 * 1024)

static uint32_t get32(const uint8_t *at)
{
	return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

int store_bzimage_find(const void *data, size_t size, struct store_payload *ret)
{
	const uint8_t *u = data, *payload;
	size_t start, length;

	if (size < HEADER_END || memcmp(u + MAGIC, "HdrS", 4) != 0 || (u[PROTOCOL] | u[PROTOCOL + 1] << 8) < 0x208)
		return -EINVAL;
	/* Of the protected-mode code, which is behind the boot sector and the set-up; 0 sectors mean 4. */
	start = ((u[SETUP_SECTS] ? u[SETUP_SECTS] : 4) + 1) * (size_t)SECTOR;
	start += get32(u + PAYLOAD_OFFSET);
	length = get32(u + PAYLOAD_LENGTH);
	if (get32(u + PAYLOAD_OFFSET) == 0 || length < 8 || start > size || length > size - start)
		return -EINVAL;
	payload = u + start;
	*ret = (struct store_payload){
		.data = payload,
		.size = payload[0] == 0x1f && payload[1] == 0x8b ? length : length - 4,
		.unpacked = get32(payload + length - 4),
	};
	return 0;
}

/* ---- decompressing ---- */

static void cleanup_archive(struct archive **a)
{
	if (*a)
		archive_read_free(*a);
}

static int unpack_fail(struct archive *a, const char *kernel, struct fcvm_err *err)
{
	const char *why = archive_error_string(a);

	return fcvm_fail(err, -EINVAL, "%s: decompress its kernel: %s", kernel, why ? why : "damaged");
}

/* All that the kernel's build may use but lzo, for which libarchive would start a program. */
static void support(struct archive *a)
{
	archive_read_support_filter_gzip(a);
	archive_read_support_filter_bzip2(a);
	archive_read_support_filter_lzma(a);
	archive_read_support_filter_xz(a);
	archive_read_support_filter_lz4(a);
	archive_read_support_filter_zstd(a);
	archive_read_support_format_raw(a);
}

/* Writes the payload, decompressed, to fd. `kernel` is for messages. */
static int unpack(const struct store_payload *p, int fd, const char *kernel, struct fcvm_err *err)
{
	_cleanup_(cleanup_archive) struct archive *a = archive_read_new();
	_cleanup_free_ char *chunk = malloc(CHUNK);
	struct archive_entry *e;
	uint64_t size = 0;
	la_ssize_t n;
	int r = 0;

	if (!a || !chunk)
		return fcvm_fail_errno(err, -ENOMEM, "%s: decompress its kernel", kernel);
	if (p->unpacked > ELF_MAX)
		return fcvm_fail(err, -EINVAL, "%s: its kernel is said to take %u bytes", kernel, p->unpacked);
	support(a);
	if (archive_read_open_memory(a, p->data, p->size) != ARCHIVE_OK || archive_read_next_header(a, &e) != ARCHIVE_OK)
		return unpack_fail(a, kernel, err);
	while (r == 0 && (n = archive_read_data(a, chunk, CHUNK)) != 0) {
		if (n < 0)
			return unpack_fail(a, kernel, err);
		size += n;
		if (size > p->unpacked)
			break;
		r = fcvm_fd_write_full(fd, chunk, n);
	}
	if (r < 0)
		return fcvm_fail_errno(err, r, "write the kernel out of %s", kernel);
	if (size != p->unpacked)
		return fcvm_fail(err, -EINVAL, "%s: its kernel takes %s than the %u bytes it should", kernel,
			size < p->unpacked ? "less" : "more", p->unpacked);
	return 0;
}

/* ---- what it must be ---- */

static bool part_fits(uint64_t offset, uint64_t size, uint64_t file)
{
	return offset <= file && size <= file - offset;
}

/* A program for this processor, all of which is there. */
static bool is_whole_elf(int fd)
{
	Elf64_Ehdr head;
	Elf64_Phdr part;
	struct stat st;
	bool loads = false;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || pread(fd, &head, sizeof head, 0) != sizeof head ||
		memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 || head.e_ident[EI_CLASS] != ELFCLASS64 ||
		head.e_machine != STORE_MACHINE || head.e_phentsize != sizeof part ||
		!part_fits(head.e_phoff, (uint64_t)head.e_phnum * sizeof part, st.st_size) ||
		!part_fits(head.e_shoff, (uint64_t)head.e_shnum * head.e_shentsize, st.st_size))
		return false;
	for (unsigned i = 0; i < head.e_phnum; i++) {
		if (pread(fd, &part, sizeof part, (off_t)(head.e_phoff + i * sizeof part)) != sizeof part ||
			!part_fits(part.p_offset, part.p_filesz, st.st_size))
			return false;
		loads |= part.p_type == PT_LOAD && part.p_filesz > 0;
	}
	return loads;
}

/* ---- keeping it ---- */

static const char elf_name[] = "vmlinux";

static bool is_there(int dir)
{
	_cleanup_close_ int fd = openat(dir, elf_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

	return fd >= 0 && is_whole_elf(fd);
}

/* kernels/RELEASE, if the image's kernel is the one of it; else -1. */
static int open_home(struct fcvm_store *s, const struct fcvm_image *i)
{
	_cleanup_close_ int kernels = store_open_dir(s->data_fd, "kernels");
	_cleanup_close_ int home = kernels >= 0 && store_name_ok(i->release) ? store_open_dir(kernels, i->release) : -1;
	struct stat own, kept;

	if (home < 0 || stat(i->kernel, &own) < 0 || fstatat(home, "vmlinuz", &kept, AT_SYMLINK_NOFOLLOW) < 0 ||
		own.st_dev != kept.st_dev || own.st_ino != kept.st_ino)
		return -1;
	return fcvm_steal_fd(home);
}

static int extract(struct fcvm_store *s, const struct fcvm_image *i, int dir, int home, struct fcvm_err *err)
{
	struct fcvm_lease work = FCVM_LEASE_INIT;
	_cleanup_free_ char *data = NULL;
	_cleanup_close_ int fd = -1;
	struct store_payload payload;
	size_t size;
	int r = fcvm_file_read(AT_FDCWD, i->kernel, BZIMAGE_MAX, &data, &size);

	if (r < 0)
		return fcvm_fail_errno(err, r, "read %s", i->kernel);
	if (store_bzimage_find(data, size, &payload) < 0)
		return fcvm_fail(err, -EINVAL, "%s is neither a bzImage nor an ELF file, or is cut off", i->kernel);
	r = store_work_new(s, &work, err);
	if (r < 0)
		return r;
	fd = openat(work.dirfd, elf_name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	r = fd < 0 ? fcvm_fail_errno(err, -errno, "make %s/%s", work.path, elf_name) : unpack(&payload, fd, i->kernel, err);
	if (r == 0 && !is_whole_elf(fd))
		r = fcvm_fail(err, -EINVAL, "%s: what it holds is no whole ELF file for this processor", i->kernel);
	if (r == 0 && (fsync(fd) < 0 || renameat(work.dirfd, elf_name, dir, elf_name) < 0))
		r = fcvm_fail_errno(err, -errno, "keep %s/%s", i->dir, elf_name);
	/* For the images to come; without it they do the work again. */
	if (r == 0 && home >= 0 && linkat(dir, elf_name, home, elf_name, 0) < 0 && errno == EEXIST &&
		unlinkat(home, elf_name, 0) == 0)
		linkat(dir, elf_name, home, elf_name, 0);
	store_work_done(s, &work);
	return r;
}

static int make(struct fcvm_store *s, const struct fcvm_image *i, int dir, const struct fcvm_until *until,
	struct fcvm_err *err)
{
	_cleanup_close_ int images = store_make_dir(s->data_fd, "images");
	_cleanup_close_ int lock = images < 0 ? images : store_lock(images, ".lock", until);
	_cleanup_close_ int home = -1;
	int r;

	if (lock < 0)
		return fcvm_fail_errno(err, lock, "wait for another process that builds an image");
	if (is_there(dir))
		return 0;
	unlinkat(dir, elf_name, 0);
	home = open_home(s, i);
	if (home >= 0 && is_there(home) && linkat(home, elf_name, dir, elf_name, 0) == 0)
		return 0;
	fcvm_say(FCVM_SAY_PROGRESS, "unpack the kernel of image %s", i->name);
	r = extract(s, i, dir, home, err);
	if (r == -ENOSPC || r == -EDQUOT)
		return fcvm_store_disk_full(r, s->data, 0, "keep a kernel", err);
	return r;
}

int fcvm_image_elf_kernel(struct fcvm_store *s, const struct fcvm_image *i, const struct fcvm_until *until, char **ret,
	struct fcvm_err *err)
{
	_cleanup_close_ int dir = store_open_dir(AT_FDCWD, i->dir);
	_cleanup_close_ int kernel = open(i->kernel, O_RDONLY | O_CLOEXEC);
	_cleanup_free_ char *path = NULL;
	int r = 0;

	if (dir < 0 || kernel < 0)
		r = fcvm_fail_errno(err, dir < 0 ? dir : -errno, "open %s", dir < 0 ? i->dir : i->kernel);
	/* Somebody's own kernel may be one already. */
	else if (is_whole_elf(kernel))
		path = strdup(i->kernel);
	else if (is_there(dir) || (r = make(s, i, dir, until, err)) == 0)
		path = fcvm_asprintf("%s/%s", i->dir, elf_name);
	if (r == 0 && !path)
		r = fcvm_fail_errno(err, -ENOMEM, "find its ELF kernel");
	if (r < 0)
		return fcvm_fail_prefix(err, "image %s", i->name);
	*ret = fcvm_steal_ptr(path);
	return 0;
}
