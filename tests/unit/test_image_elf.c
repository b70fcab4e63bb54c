/* SPDX-License-Identifier: MIT */
/* The ELF kernel in a bzImage: whatever it was compressed by, and damaged in each place that counts. */
#include <archive.h>
#include <archive_entry.h>
#include <elf.h>

#include "store/image_private.h"
#include "test_store.h"

enum {
	SETUP = 3,
	PAYLOAD = (SETUP + 1) * 512 + 300,
	ELF_SIZE = 300000,
	RELOCATIONS = 1000, /* behind the ELF file */
	ROOM = 1 << 20,
};

#if defined(__x86_64__)
static const unsigned machine = EM_X86_64;
#else
static const unsigned machine = EM_AARCH64;
#endif

static uint8_t elf[ELF_SIZE + RELOCATIONS], image[ROOM];

static void make_elf(void)
{
	Elf64_Ehdr head = {.e_type = ET_EXEC, .e_machine = machine, .e_phoff = sizeof head, .e_phnum = 1,
		.e_phentsize = sizeof(Elf64_Phdr)};
	Elf64_Phdr part = {.p_type = PT_LOAD, .p_offset = 4096, .p_filesz = ELF_SIZE - 4096, .p_memsz = ELF_SIZE};

	srand(5);
	for (unsigned i = 0; i < sizeof elf; i++)
		elf[i] = rand() % 7;
	memcpy(head.e_ident, ELFMAG, SELFMAG);
	head.e_ident[EI_CLASS] = ELFCLASS64;
	memcpy(elf, &head, sizeof head);
	memcpy(elf + sizeof head, &part, sizeof part);
}

static void put32(size_t at, uint32_t v)
{
	memcpy(image + at, &v, sizeof v);
}

/* A bzImage of `size` bytes of elf; ret: its size, 0 if libarchive cannot compress so. */
static size_t make_image(int (*filter)(struct archive *), bool sized, size_t size)
{
	struct archive *a = archive_write_new();
	struct archive_entry *e = archive_entry_new();
	size_t packed = 0;
	bool well;

	memset(image, 0, sizeof image);
	archive_entry_set_filetype(e, AE_IFREG);
	archive_entry_set_pathname(e, "vmlinux");
	well = filter(a) == ARCHIVE_OK && archive_write_set_format_raw(a) == ARCHIVE_OK &&
	       archive_write_set_bytes_in_last_block(a, 1) == ARCHIVE_OK &&
	       archive_write_open_memory(a, image + PAYLOAD, ROOM - PAYLOAD - 8, &packed) == ARCHIVE_OK &&
	       archive_write_header(a, e) == ARCHIVE_OK &&
	       archive_write_data(a, elf, size) == (la_ssize_t)size && archive_write_close(a) == ARCHIVE_OK;
	archive_entry_free(e);
	archive_write_free(a);
	if (!well)
		return 0;
	if (sized) {
		put32(PAYLOAD + packed, size);
		packed += 4;
	}
	image[0x1f1] = SETUP;
	memcpy(image + 0x202, "HdrS\x0f\x02", 6);
	put32(0x248, PAYLOAD - (SETUP + 1) * 512);
	put32(0x24c, packed);
	memset(image + PAYLOAD + packed, 0xaa, 100); /* what else is in a bzImage */
	return PAYLOAD + packed + 100;
}

static struct fcvm_err err;

/* As an image whose kernel this is; ret_text: what came out. */
static int extract(struct fcvm_store *s, const void *kernel, size_t size, char **ret, size_t *ret_size)
{
	_cleanup_free_ char *dir = in("image"), *path = in("image/kernel"), *got = NULL;
	struct fcvm_image i = {.name = "test", .release = "1.2.3", .dir = dir, .kernel = path};
	int r;

	fcvm_tree_remove(AT_FDCWD, dir);
	CHECK(mkdir(dir, 0700) == 0);
	put(dir, "kernel", kernel, size);
	r = fcvm_image_elf_kernel(s, &i, NULL, &got, &err);
	if (r < 0) {
		CHECK(!got && !exists(dir, "vmlinux") && SAYS(err, "image test: ") && SAYS(err, path));
		return r;
	}
	if (ret)
		CHECK(fcvm_file_read(AT_FDCWD, got, ROOM, ret, ret_size) == 0);
	return 0;
}

static void test_compressions(struct fcvm_store *s)
{
	static const struct {
		const char *name;
		int (*filter)(struct archive *);
		bool sized; /* by its end; else by four bytes more */
	} all[] = {
		{"gzip", archive_write_add_filter_gzip, true}, {"bzip2", archive_write_add_filter_bzip2},
		{"lzma", archive_write_add_filter_lzma}, {"xz", archive_write_add_filter_xz},
		{"lz4", archive_write_add_filter_lz4}, {"zstd", archive_write_add_filter_zstd},
		{"none", archive_write_add_filter_none},
	};

	for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
		size_t size = make_image(all[i].filter, !all[i].sized, sizeof elf), got_size = 0;
		_cleanup_free_ char *got = NULL;
		unsigned before = check_failed;

		CHECK(size > 0 && extract(s, image, size, &got, &got_size) == 0);
		CHECK(got_size == sizeof elf && got && memcmp(got, elf, sizeof elf) == 0);
		if (check_failed > before)
			fprintf(stderr, "^ %s: %s\n", all[i].name, err.message);
	}
}

/* Both sides of each bound of the header, and the payload at fault. */
static void test_damage(struct fcvm_store *s)
{
	size_t size = make_image(archive_write_add_filter_zstd, true, sizeof elf);
	_cleanup_free_ uint8_t *good = malloc(size);
	uint32_t offset, length;

	CHECK(size > 0 && good);
	memcpy(good, image, size);
	memcpy(&offset, image + 0x248, 4);
	memcpy(&length, image + 0x24c, 4);
	CHECK(extract(s, good, size - 100, NULL, NULL) == 0);
	CHECK(extract(s, good, size - 101, NULL, NULL) == -EINVAL && SAYS(err, "neither a bzImage nor an ELF file"));
	CHECK(extract(s, good, 0x24f, NULL, NULL) == -EINVAL && extract(s, "", 0, NULL, NULL) == -EINVAL);
	image[0x202] = 'h';
	CHECK(extract(s, image, size, NULL, NULL) == -EINVAL);
	memcpy(image, good, size);
	image[0x206] = 7; /* protocol 2.07: no payload is named */
	CHECK(extract(s, image, size, NULL, NULL) == -EINVAL);
	memcpy(image, good, size);
	for (unsigned i = 0; i < 6; i++) {
		put32(0x248, (const uint32_t[]){0, UINT32_MAX, offset + 1, offset, offset, offset}[i]);
		put32(0x24c, (const uint32_t[]){length, length, length, UINT32_MAX, 0, 7}[i]);
		CHECK(extract(s, image, size, NULL, NULL) == -EINVAL);
	}
	memcpy(image, good, size);
	for (unsigned i = 0; i < 4; i++) {
		put32(PAYLOAD + length - 4, (const uint32_t[]){sizeof elf - 1, sizeof elf + 1, 0, UINT32_MAX}[i]);
		CHECK(extract(s, image, size, NULL, NULL) == -EINVAL && SAYS(err, "its kernel"));
	}
	memcpy(image, good, size);
	put32(0x24c, length / 2); /* cut off within the stream */
	CHECK(extract(s, image, size, NULL, NULL) == -EINVAL);
	for (unsigned i = 0; i < 40; i++) {
		memcpy(image, good, size);
		image[PAYLOAD + i] ^= 0x55;
		(void)extract(s, image, size, NULL, NULL); /* any end but a crash; a checksum would be needed for more */
	}
}

static void test_no_elf(struct fcvm_store *s)
{
	_cleanup_free_ char *got = NULL;
	size_t size, got_size = 0;
	Elf64_Phdr part;

	/* Half of it, well compressed. */
	size = make_image(archive_write_add_filter_gzip, false, ELF_SIZE / 2);
	CHECK(extract(s, image, size, NULL, NULL) == -EINVAL && SAYS(err, "no whole ELF file"));
	elf[EI_CLASS] = ELFCLASS32;
	size = make_image(archive_write_add_filter_gzip, false, sizeof elf);
	CHECK(extract(s, image, size, NULL, NULL) == -EINVAL && SAYS(err, "no whole ELF file"));
	make_elf();
	elf[offsetof(Elf64_Ehdr, e_machine)] = EM_RISCV;
	size = make_image(archive_write_add_filter_gzip, false, sizeof elf);
	CHECK(extract(s, image, size, NULL, NULL) == -EINVAL && SAYS(err, "for this processor"));
	make_elf();
	memcpy(&part, elf + sizeof(Elf64_Ehdr), sizeof part);
	part.p_offset = UINT64_MAX - 100;
	memcpy(elf + sizeof(Elf64_Ehdr), &part, sizeof part);
	size = make_image(archive_write_add_filter_gzip, false, sizeof elf);
	CHECK(extract(s, image, size, NULL, NULL) == -EINVAL);
	make_elf();
	/* A kernel that is one already stays what it is. */
	CHECK(extract(s, elf, sizeof elf, &got, &got_size) == 0 && got_size == sizeof elf);
}

int main(void)
{
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *node = NULL;
	struct fcvm_store *s;
	_cleanup_free_ char *tmp = NULL;

	if (begin_store_test() < 0)
		return perror("make a folder in /tmp"), 1;
	CHECK(fcvm_node_local(&node, &err) == 0);
	s = open_store(node);
	make_elf();
	test_compressions(s);
	test_damage(s);
	test_no_elf(s);
	tmp = in("data/tmp");
	CHECK(count(tmp, ".gate") == 0);
	fcvm_store_close(s);
	fcvm_tree_remove(AT_FDCWD, base);
	CHECK_DONE();
}
