/* SPDX-License-Identifier: MIT */
/* Images: built twice with the same bytes, found again quickly, made anew when something changes. */
#include "test_store.h"

static void copy_file(const char *from, const char *to, mode_t mode)
{
	_cleanup_free_ char *data = NULL;
	size_t size;
	int fd;

	CHECK(fcvm_file_read(AT_FDCWD, from, 64 << 20, &data, &size) == 0);
	unlink(to);
	fd = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, mode);
	CHECK(fd >= 0 && fcvm_fd_write_full(fd, data, size) == 0);
	close(fd);
}

static bool same_file(const char *a_dir, const char *b_dir, const char *name)
{
	_cleanup_free_ char *a = fcvm_asprintf("%s/%s", a_dir, name), *b = fcvm_asprintf("%s/%s", b_dir, name);
	_cleanup_free_ char *a_data = NULL, *b_data = NULL;
	size_t a_size = 0, b_size = 1;

	CHECK(fcvm_file_read(AT_FDCWD, a, 128 << 20, &a_data, &a_size) == 0);
	CHECK(fcvm_file_read(AT_FDCWD, b, 128 << 20, &b_data, &b_size) == 0);
	return a_size == b_size && memcmp(a_data, b_data, a_size) == 0;
}

static bool has_bytes(const char *path, const char *text)
{
	_cleanup_free_ char *data = NULL;
	size_t size;

	return fcvm_file_read(AT_FDCWD, path, 128 << 20, &data, &size) == 0 && memmem(data, size, text, strlen(text));
}

/* The kernels of the user's own data folder serve, if there are any: nothing is fetched twice. */
static void use_own_kernel(const char *own)
{
	_cleanup_free_ char *kernels = fcvm_asprintf("%s/kernels", own);
	_cleanup_closedir_ DIR *d = opendir(kernels);
	struct dirent *e;

	while (d && (e = readdir(d))) {
		_cleanup_free_ char *vmlinuz = fcvm_asprintf("%s/%s/vmlinuz", kernels, e->d_name);
		_cleanup_free_ char *modules = fcvm_asprintf("%s/%s/modules", kernels, e->d_name);

		if (e->d_name[0] != '.' && access(vmlinuz, R_OK) == 0) {
			setenv("FCVM_KERNEL", vmlinuz, 1);
			setenv("FCVM_MODULES", modules, 1);
		}
	}
}

static void get_mini(void)
{
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *node = NULL;
	struct fcvm_image image = {0};
	struct fcvm_store *s;

	CHECK(fcvm_node_local(&node, NULL) == 0);
	s = open_store(node);
	CHECK(fcvm_image_get(s, "mini", NULL, &image, NULL, NULL) == 0);
	fcvm_image_done(&image);
	fcvm_store_close(s);
}

/* The same inputs in another data folder, and by four processes at once. */
static void test_same_bytes(struct fcvm_node *node, const struct fcvm_image *first)
{
	_cleanup_free_ char *data = strdup(getenv("FCVM_DATA")), *other = in("other-data");
	struct fcvm_image image = {0};
	struct fcvm_err err = FCVM_ERR_INIT;
	struct fcvm_store *s;
	bool built = true;
	pid_t pids[4];

	setenv("FCVM_DATA", other, 1);
	for (int i = 0; i < 4; i++)
		pids[i] = begin(get_mini);
	for (int i = 0; i < 4; i++)
		CHECK(ended_well(pids[i]));
	s = open_store(node);
	CHECK(fcvm_image_get(s, "mini", NULL, &image, &built, &err) == 0 && !built);
	CHECK(strcmp(image.key, first->key) == 0 && strcmp(image.dir, first->dir) != 0);
	CHECK(same_file(image.dir, first->dir, "initrd") && same_file(image.dir, first->dir, "kernel") &&
		same_file(image.dir, first->dir, "initrd-nested"));
	fcvm_image_done(&image);
	fcvm_store_close(s);
	setenv("FCVM_DATA", data, 1);
}

/* Another agent makes another image; the former one returns with its agent. */
static void test_changed_agent(struct fcvm_store *s, const struct fcvm_image *first, const char *agent)
{
	_cleanup_free_ char *libexec = in("libexec"), *copy = in("libexec/fcvm-agent"), *old = strdup(getenv("FCVM_LIBEXEC"));
	struct fcvm_json *report = fcvm_json_array();
	struct fcvm_image image = {0};
	struct fcvm_err err = FCVM_ERR_INIT;
	bool built = true;

	CHECK(mkdir(libexec, 0700) == 0);
	copy_file(agent, copy, 0755);
	setenv("FCVM_LIBEXEC", libexec, 1);
	CHECK(fcvm_image_get(s, "mini", NULL, &image, &built, &err) == 0 && !built); /* other path, same bytes */
	CHECK(strcmp(image.key, first->key) == 0);
	fcvm_image_done(&image);
	overwrite(libexec, "fcvm-agent", 0, "\177ELF!");
	CHECK(fcvm_image_get(s, "mini", NULL, &image, &built, &err) == 0 && built && strcmp(image.key, first->key) != 0);
	CHECK(fcvm_store_gc(s, -1, report, &err) == 0 && exists(first->dir, "initrd")); /* first is still held */
	CHECK(fcvm_image_remove(s, "mini", &err) == -EBUSY);
	fcvm_image_done(&image);
	fcvm_json_free(report);
	setenv("FCVM_LIBEXEC", old, 1);
}

static void test_image_errors(struct fcvm_store *s)
{
	struct fcvm_image image = {0};
	struct fcvm_err err = FCVM_ERR_INIT;
	_cleanup_free_ char *kernel = getenv("FCVM_KERNEL") ? strdup(getenv("FCVM_KERNEL")) : NULL;

	CHECK(fcvm_image_get(s, "maxi", NULL, &image, NULL, &err) == -ENOENT && SAYS(err, "known: mini"));
	CHECK(fcvm_image_remove(s, "../tmp", &err) == -EINVAL);
	CHECK(fcvm_image_remove(s, "maxi", &err) == -ENOENT);
	setenv("FCVM_KERNEL", "/no/vmlinuz", 1);
	CHECK(fcvm_image_get(s, "mini", NULL, &image, NULL, &err) == -ENOENT && SAYS(err, "FCVM_KERNEL=/no/vmlinuz"));
	CHECK(!image.dir);
	if (kernel)
		setenv("FCVM_KERNEL", kernel, 1);
	else
		unsetenv("FCVM_KERNEL");
}

static void test_image_content(const struct fcvm_image *image)
{
	_cleanup_free_ char *load = fcvm_asprintf("/lib/modules/%s/virtio_mmio.ko\n", image->release);

	_cleanup_free_ char *vsock = fcvm_asprintf(
		"\nvirtio:19 /lib/modules/%1$s/vsock.ko\n"
		"virtio:19 /lib/modules/%1$s/vmw_vsock_virtio_transport_common.ko\n"
		"virtio:19 /lib/modules/%1$s/vmw_vsock_virtio_transport.ko\n"
		"virtio:2 /lib/modules/%1$s/virtio_blk.ko\n", image->release);
	_cleanup_free_ char *kvm = fcvm_asprintf(
		"\ncpu:svm /lib/modules/%1$s/irqbypass.ko\n"
		"cpu:svm /lib/modules/%1$s/kvm.ko\n"
		"cpu:svm /lib/modules/%1$s/kvm_amd.ko\n"
		"cpu:vmx /lib/modules/%1$s/irqbypass.ko\n"
		"cpu:vmx /lib/modules/%1$s/kvm.ko\n"
		"cpu:vmx /lib/modules/%1$s/kvm_intel.ko\n", image->release);

	CHECK(has_bytes(image->initrd, "bin/sh") && has_bytes(image->initrd_nested, "bin/sh"));
	CHECK(has_bytes(image->initrd, vsock) || !strstr(image->release, "cloud"));
	CHECK(has_bytes(image->initrd_nested, vsock) || !strstr(image->release, "cloud"));
	CHECK(!has_bytes(image->initrd, "kvm_amd.ko") && !has_bytes(image->initrd, "cpu:svm "));
	CHECK(has_bytes(image->initrd_nested, kvm) || !strstr(image->release, "cloud-amd64"));
	CHECK(has_bytes(image->initrd, load) || !strstr(image->release, "cloud"));
	CHECK(has_bytes(image->initrd, "alias net-pf-40 vmw_vsock_virtio_transport\n") || !strstr(image->release, "cloud"));
	CHECK(has_bytes(image->initrd, "root:x:0:0:"));
}

/* Made once, and by whoever comes first; images of one kernel share it. */
static void test_elf_kernel(struct fcvm_store *s, const struct fcvm_image *image)
{
	_cleanup_free_ char *path = NULL, *again = NULL, *damaged = NULL;
	struct fcvm_err err = FCVM_ERR_INIT;
	struct stat st, now;
	int r = fcvm_image_elf_kernel(s, image, NULL, &path, &err);

	if (r == -EINVAL && !strstr(image->release, "amd64")) {
		printf("ELF kernel: not checked: %s\n", err.message);
		return;
	}
	CHECK(r == 0 && path && strncmp(path, image->dir, strlen(image->dir)) == 0);
	if (r < 0) {
		fprintf(stderr, "%s\n", err.message);
		return;
	}
	CHECK(has_bytes(path, "Linux version ") && stat(path, &st) == 0);
	CHECK(fcvm_image_elf_kernel(s, image, NULL, &again, &err) == 0 && strcmp(path, again) == 0);
	CHECK(stat(path, &now) == 0 && now.st_ino == st.st_ino);
	free(fcvm_steal_ptr(again));
	/* What is there but is not all of it is made anew. */
	damaged = fcvm_asprintf("%s.cut", path);
	copy_file(path, damaged, 0600);
	CHECK(truncate(damaged, st.st_size / 2) == 0 && rename(damaged, path) == 0);
	CHECK(fcvm_image_elf_kernel(s, image, NULL, &again, &err) == 0);
	CHECK(stat(path, &now) == 0 && now.st_size == st.st_size);
}

static int test_image(const char *own)
{
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *node = NULL;
	_cleanup_free_ char *agent = NULL;
	struct fcvm_image image = {0}, again = {0};
	struct fcvm_err err = FCVM_ERR_INIT;
	struct fcvm_store *s;
	bool built = false;
	int64_t start;
	int r;

	if (fcvm_store_libexec("fcvm-agent", &agent, &err) < 0) {
		printf("skipped: no agent: %s\n", err.message);
		return 77;
	}
	use_own_kernel(own);
	CHECK(fcvm_node_local(&node, &err) == 0);
	s = open_store(node);
	test_image_errors(s);
	r = fcvm_image_get(s, "mini", NULL, &image, &built, &err);
	if (r < 0) {
		CHECK(SAYS(err, "image mini") && (SAYS(err, "apt") || SAYS(err, "FCVM_KERNEL")));
		printf("skipped: neither kernel nor network: %s\n", err.message);
		fcvm_store_close(s);
		return 77;
	}
	CHECK(built);
	start = fcvm_now_ns();
	CHECK(fcvm_image_get(s, "mini", NULL, &again, &built, &err) == 0 && !built);
	CHECK(fcvm_now_ns() - start < 20 * 1000000); /* 0.1 ms on an idle machine */
	fcvm_image_done(&again);
	fcvm_image_done(&again);
	test_image_content(&image);
	test_elf_kernel(s, &image);
	test_same_bytes(node, &image);
	test_changed_agent(s, &image, agent);
	fcvm_image_done(&image);
	CHECK(fcvm_image_remove(s, "mini", &err) == 0);
	fcvm_store_close(s);
	return 0;
}

int main(void)
{
	const char *data = getenv("FCVM_DATA"), *home = getenv("HOME");
	_cleanup_free_ char *own = data ? strdup(data) : fcvm_asprintf("%s/.local/share/fcvm", home ? home : "/");
	int r = begin_store_test();

	if (r < 0)
		return perror("make a folder in /tmp"), 1;
	r = test_image(own);
	fcvm_tree_remove(AT_FDCWD, base);
	if (r == 77 && check_failed == 0)
		return r;
	CHECK_DONE();
}
