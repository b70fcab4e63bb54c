/* SPDX-License-Identifier: MIT */
/*
 * Images: images/NAME/KEY/{kernel, initrd, initrd-nested, image.json}, and images/NAME/current, a symbolic
 * link to a KEY; beside the kernel there may be vmlinux, the ELF file in it (image_elf.c).
 *
 * image.json says which files the image was made of (path, size, mtime, inode), so that it takes a few stat(2) to
 * see that nothing has changed. If something has, it is made anew; the key is a hash over what came out, and if that
 * is what was there already, only image.json is written again. Building, removing and gc exclude each other by a
 * flock on images/.lock; whoever uses an image holds a shared flock on its folder.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/log.h"
#include "store/image_private.h"

static const char *const known[] = {"mini"};
#define KNOWN  "mini"
/* Grows with each change of image_initrd.c and of what image_modules.c chooses: what is there is built anew then. */
#define FORMAT "mini 4"

/* What a kernel under a VMM wants is the driver's to say; this one needs nothing else. */
static const char cmdline[] = "";

static bool is_key(const char *name)
{
	return strlen(name) == 16 && strspn(name, "0123456789abcdef") == 16;
}

static int open_images(struct fcvm_store *s, struct fcvm_err *err)
{
	int fd = store_make_dir(s->data_fd, "images");

	return fd < 0 ? fcvm_fail_errno(err, fd, "open %s/images", s->data) : fd;
}

static int check_known(const char *name, struct fcvm_err *err)
{
	for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
		if (strcmp(known[i], name) == 0)
			return 0;
	return fcvm_fail(err, -ENOENT, "there is no image \"%.80s\"; known: " KNOWN, name);
}

/* Of images/NAME; ret: the key. */
static int read_current(int fd, char ret[static 17])
{
	char key[18];
	ssize_t n = readlinkat(fd, "current", key, sizeof key);

	if (n < 0)
		return -errno;
	if (n != 16)
		return -EINVAL;
	key[16] = 0;
	if (!is_key(key))
		return -EINVAL;
	memcpy(ret, key, 17);
	return 0;
}

char *store_image_current(struct fcvm_store *s, const char *name)
{
	_cleanup_close_ int images = store_open_dir(s->data_fd, "images");
	_cleanup_close_ int fd = images < 0 ? -1 : store_open_dir(images, name);
	char key[17];

	return fd >= 0 && read_current(fd, key) == 0 ? strdup(key) : NULL;
}

void fcvm_image_done(struct fcvm_image *i)
{
	if (i->dir) /* else hold may be anything: a zeroed struct is empty too */
		fcvm_close(i->hold);
	free(i->name);
	free(i->key);
	free(i->release);
	free(i->dir);
	free(i->kernel);
	free(i->initrd);
	free(i->initrd_nested);
	free(i->cmdline);
	*i = (struct fcvm_image){.hold = -1};
}

/* ---- what an image was made of ---- */

static int add_input(struct fcvm_json *list, const char *path)
{
	struct fcvm_json *input;
	struct stat st;

	if (stat(path, &st) < 0)
		return -errno;
	input = fcvm_json_object();
	if (fcvm_json_set_string(input, "path", path) < 0 || fcvm_json_set_int(input, "size", st.st_size) < 0 ||
		fcvm_json_set_int(input, "mtime", st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec) < 0 ||
		fcvm_json_set_int(input, "inode", (int64_t)st.st_ino) < 0) {
		fcvm_json_free(input);
		return -ENOMEM;
	}
	return fcvm_json_append(list, input);
}

static bool is_same_input(const struct fcvm_json *input)
{
	const char *path = fcvm_json_string(input, "path", "");
	struct stat st;

	return stat(path, &st) == 0 && st.st_size == fcvm_json_int(input, "size", -1) &&
	       st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec == fcvm_json_int(input, "mtime", -1) &&
	       (int64_t)st.st_ino == fcvm_json_int(input, "inode", -1);
}

static const char *env(const char *name)
{
	const char *value = getenv(name);

	return value ? value : "";
}

static const char *const variables[] = {"FCVM_KERNEL", "FCVM_MODULES", "FCVM_BUSYBOX"};
enum { VARIABLES = sizeof variables / sizeof *variables };

/* The same choice would be made now, of files that are the same. */
static bool is_fresh(const struct fcvm_json *j, const char *agent)
{
	const struct fcvm_json *inputs = fcvm_json_get(j, "inputs");
	size_t n = fcvm_json_count(inputs);

	if (n == 0 || strcmp(fcvm_json_string(j, "format", ""), FORMAT) != 0 ||
		strcmp(fcvm_json_string(j, "agent", ""), agent) != 0)
		return false;
	for (unsigned i = 0; i < VARIABLES; i++)
		if (strcmp(fcvm_json_string(j, variables[i], ""), env(variables[i])) != 0)
			return false;
	for (size_t i = 0; i < n; i++)
		if (!is_same_input(fcvm_json_at(inputs, i)))
			return false;
	return true;
}

static const struct {
	const char *name, *bytes; /* the member of image.json that has its size */
} parts[] = {{"kernel", "kernel_bytes"}, {"initrd", "initrd_bytes"}, {"initrd-nested", "initrd_nested_bytes"}};
enum { PARTS = sizeof parts / sizeof *parts };

/* All parts are there, in the size that image.json has. */
static bool is_whole(int fd, const struct fcvm_json *j)
{
	struct stat st;

	for (unsigned i = 0; i < PARTS; i++)
		if (fstatat(fd, parts[i].name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode) ||
			st.st_size != fcvm_json_int(j, parts[i].bytes, -1))
			return false;
	return true;
}

/* ---- the current one ---- */

static int fill(struct fcvm_store *s, const char *name, const char *key, const struct fcvm_json *j, int *hold,
	struct fcvm_image *ret, struct fcvm_err *err)
{
	struct fcvm_image i = {.hold = -1};

	i.name = strdup(name);
	i.key = strdup(key);
	i.release = strdup(fcvm_json_string(j, "release", "unknown"));
	i.dir = fcvm_asprintf("%s/images/%s/%s", s->data, name, key);
	i.kernel = fcvm_asprintf("%s/images/%s/%s/kernel", s->data, name, key);
	i.initrd = fcvm_asprintf("%s/images/%s/%s/initrd", s->data, name, key);
	i.initrd_nested = fcvm_asprintf("%s/images/%s/%s/initrd-nested", s->data, name, key);
	i.cmdline = strdup(cmdline);
	if (!i.name || !i.key || !i.release || !i.dir || !i.kernel || !i.initrd || !i.initrd_nested || !i.cmdline) {
		fcvm_image_done(&i);
		return fcvm_fail_errno(err, -ENOMEM, "image %s", name);
	}
	i.hold = fcvm_steal_fd(*hold);
	*ret = i;
	return 0;
}

/* -ENOENT without a message: there is none, or it is not what would be made now. */
static int get_current(struct fcvm_store *s, int dir, const char *name, const char *agent, struct fcvm_image *ret,
	struct fcvm_err *err)
{
	_cleanup_close_ int fd = -1;
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	char key[17];

	if (read_current(dir, key) < 0)
		return -ENOENT;
	fd = store_open_dir(dir, key);
	if (fd < 0 || flock(fd, LOCK_SH | LOCK_NB) < 0)
		return -ENOENT;
	j = store_read_json(fd, "image.json");
	if (!j || !is_fresh(j, agent) || !is_whole(fd, j))
		return -ENOENT;
	return fill(s, name, key, j, &fd, ret, err);
}

/* ---- building ---- */

struct build {
	struct fcvm_store *s;
	const char *name, *agent;
	struct store_kernel kernel;
	struct store_modules modules;
	char *busybox, *applets;
	struct fcvm_lease work;
	int fd; /* work/new */
	char key[17];
};

static void build_done(struct build *b)
{
	fcvm_close(b->fd);
	store_work_done(b->s, &b->work);
	store_modules_done(&b->modules);
	store_kernel_done(&b->kernel);
	free(b->busybox);
	free(b->applets);
}

static int list_applets(struct build *b, const struct fcvm_until *until, struct fcvm_err *err)
{
	const struct fcvm_spawn spec = {
		.argv = (const char *[]){b->busybox, "--list-full", NULL},
		.null_stdin = true,
	};
	struct fcvm_output o = {.out = NULL};
	int r = fcvm_node_exec(b->s->node, &spec, NULL, 0, 1024 * 1024, until, &o, err);

	if (r < 0)
		return r;
	if (o.exit.code != 0 || o.exit.signal != 0)
		r = fcvm_fail(err, -EIO, "%s --list-full failed; set FCVM_BUSYBOX to another", b->busybox);
	else
		b->applets = fcvm_steal_ptr(o.out);
	fcvm_output_done(&o);
	return r;
}

/* A link where the file is ours and never changed, else a copy. */
static int put_kernel(struct build *b, char hash[static STORE_HASH])
{
	_cleanup_close_ int from = open(b->kernel.vmlinuz, O_RDONLY | O_CLOEXEC);
	_cleanup_close_ int to = -1;
	int r;

	if (from < 0)
		return -errno;
	if (!b->kernel.cached || linkat(AT_FDCWD, b->kernel.vmlinuz, b->fd, "kernel", 0) < 0) {
		to = openat(b->fd, "kernel", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (to < 0)
			return -errno;
	}
	r = store_hash_file(from, to, hash);
	return r == 0 && to >= 0 && fsync(to) < 0 ? -errno : r;
}

static int put_initrd(struct build *b, bool nested, char hash[static STORE_HASH], struct fcvm_err *err)
{
	const struct store_initrd in = {
		.release = b->kernel.release,
		.agent = b->agent,
		.busybox = b->busybox,
		.applets = b->applets,
		.modules = &b->modules,
		.nested = nested,
	};
	const char *name = nested ? "initrd-nested" : "initrd";
	_cleanup_close_ int fd = openat(b->fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int r;

	if (fd < 0)
		return fcvm_fail_errno(err, -errno, "make %s in %s", name, b->work.path);
	r = store_initrd_write(fd, &in, err);
	if (r < 0)
		return r;
	r = store_hash_file(fd, -1, hash);
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	return r < 0 ? fcvm_fail_errno(err, r, "write %s in %s", name, b->work.path) : 0;
}

static struct fcvm_json *list_inputs(const struct build *b)
{
	struct fcvm_json *list = fcvm_json_array();
	int r = list ? add_input(list, b->agent) : -ENOMEM;

	if (r == 0)
		r = add_input(list, b->busybox);
	if (r == 0)
		r = add_input(list, b->kernel.vmlinuz);
	for (unsigned i = 0; r == 0 && i < b->modules.n; i++)
		r = add_input(list, b->modules.list[i].path);
	if (r < 0) {
		fcvm_json_free(list);
		list = NULL;
	}
	return list;
}

static int put_json(const struct build *b, int fd, struct fcvm_json *inputs)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = fcvm_json_object();
	_cleanup_free_ char *text = NULL;
	struct stat st;
	int r = j ? fcvm_json_set(j, "inputs", inputs) : -ENOMEM;

	for (unsigned i = 0; r == 0 && i < PARTS; i++)
		r = fstatat(b->fd, parts[i].name, &st, 0) < 0 ? -errno : fcvm_json_set_int(j, parts[i].bytes, st.st_size);
	for (unsigned i = 0; r == 0 && i < VARIABLES; i++)
		r = fcvm_json_set_string(j, variables[i], env(variables[i]));
	if (r < 0 || fcvm_json_set_string(j, "format", FORMAT) < 0 ||
		fcvm_json_set_string(j, "release", b->kernel.release) < 0 ||
		fcvm_json_set_string(j, "agent", b->agent) < 0 ||
		fcvm_json_set_string(j, "busybox", b->busybox) < 0 ||
		fcvm_json_set_int(j, "created", time(NULL)) < 0 || !(text = fcvm_json_print(j, 2)))
		return r < 0 ? r : -ENOMEM;
	return fcvm_file_replace(fd, "image.json", text, strlen(text), 0600, true);
}

/* Gathers the inputs and writes all parts; the key is known then. */
static int make(struct build *b, const struct fcvm_until *until, struct fcvm_err *err)
{
	char kernel[STORE_HASH], initrd[STORE_HASH], nested[STORE_HASH];
	int r = store_kernel_get(b->s, until, &b->kernel, err);

	if (r == 0 && b->kernel.modules)
		r = store_modules_read(b->kernel.modules, false, &b->modules, err);
	if (r == 0)
		r = store_busybox_get(b->s, until, &b->busybox, err);
	if (r == 0)
		r = list_applets(b, until, err);
	if (r == 0)
		r = store_work_new(b->s, &b->work, err);
	if (r < 0)
		return r;
	b->fd = store_make_dir(b->work.dirfd, "new");
	r = b->fd < 0 ? b->fd : put_kernel(b, kernel);
	if (r < 0)
		return fcvm_fail_errno(err, r, "copy %s to %s", b->kernel.vmlinuz, b->work.path);
	r = put_initrd(b, false, initrd, err);
	if (r == 0)
		r = put_initrd(b, true, nested, err);
	if (r == 0)
		fcvm_hash_strings(b->key, FORMAT, cmdline, b->kernel.release, kernel, initrd, nested, NULL);
	return r;
}

static int point_current(int dir, const char *key)
{
	char temporary[32];
	unsigned tag;

	fcvm_random(&tag, sizeof tag);
	snprintf(temporary, sizeof temporary, ".current-%08x", tag);
	if (symlinkat(key, dir, temporary) < 0)
		return -errno;
	if (renameat(dir, temporary, dir, "current") < 0) {
		int r = -errno;

		unlinkat(dir, temporary, 0);
		return r;
	}
	fsync(dir);
	return 0;
}

/* Is images/NAME/KEY there and whole? What is not whole is removed. */
static bool is_there(int dir, const char *key)
{
	_cleanup_close_ int fd = store_open_dir(dir, key);
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = fd < 0 ? NULL : store_read_json(fd, "image.json");

	if (j && is_whole(fd, j))
		return true;
	store_discard(dir, key);
	return false;
}

static int publish(struct build *b, int dir, bool *ret_built)
{
	struct fcvm_json *inputs = list_inputs(b);
	_cleanup_close_ int fd = -1;
	int r;

	if (!inputs)
		return -ENOMEM;
	*ret_built = !is_there(dir, b->key);
	if (*ret_built) {
		r = put_json(b, b->fd, inputs);
		if (r == 0 && renameat(b->work.dirfd, "new", dir, b->key) < 0)
			r = -errno;
	} else {
		fd = store_open_dir(dir, b->key);
		if (fd < 0) {
			fcvm_json_free(inputs);
			return fd;
		}
		r = put_json(b, fd, inputs);
	}
	return r == 0 ? point_current(dir, b->key) : r;
}

static int build(struct fcvm_store *s, int dir, const char *name, const char *agent, const struct fcvm_until *until,
	bool *ret_built, struct fcvm_err *err)
{
	struct build b = {.s = s, .name = name, .agent = agent, .fd = -1, .work = FCVM_LEASE_INIT};
	int r;

	fcvm_say(FCVM_SAY_PROGRESS, "build image %s", name);
	r = make(&b, until, err);
	if (r < 0)
		goto out;
	r = publish(&b, dir, ret_built);
	if (r == -ENOSPC || r == -EDQUOT)
		fcvm_store_disk_full(r, s->data, 0, "keep it", err);
	else if (r < 0)
		fcvm_fail_errno(err, r, "keep it in %s/images", s->data);
out:
	build_done(&b);
	if (r < 0)
		fcvm_fail_prefix(err, "image %s", name);
	return r;
}

int fcvm_image_get(struct fcvm_store *s, const char *name, const struct fcvm_until *until, struct fcvm_image *ret,
	bool *ret_built, struct fcvm_err *err)
{
	_cleanup_close_ int images = -1, dir = -1, lock = -1;
	_cleanup_free_ char *agent = NULL;
	bool built = false;
	int r = check_known(name, err);

	if (r == 0)
		r = fcvm_store_libexec("fcvm-agent", &agent, err);
	if (r < 0)
		return r;
	images = open_images(s, err);
	if (images < 0)
		return images;
	dir = store_make_dir(images, name);
	if (dir < 0)
		return fcvm_fail_errno(err, dir, "image %s: open %s/images/%s", name, s->data, name);
	r = get_current(s, dir, name, agent, ret, err);
	if (r == -ENOENT) {
		lock = store_lock(images, ".lock", until);
		if (lock < 0)
			return fcvm_fail_errno(err, lock, "image %s: wait for another process that builds it", name);
		/* That other one may have built what we need. */
		r = get_current(s, dir, name, agent, ret, err);
	}
	if (r == -ENOENT) {
		r = build(s, dir, name, agent, until, &built, err);
		if (r < 0)
			return r;
		r = get_current(s, dir, name, agent, ret, err);
		if (r == -ENOENT)
			fcvm_fail(err, r, "image %s: its inputs change while it is built; try again", name);
	}
	if (r == 0 && ret_built)
		*ret_built = built;
	return r;
}
