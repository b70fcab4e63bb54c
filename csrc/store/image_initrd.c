/* SPDX-License-Identifier: MIT */
/*
 * The initrd of `mini`: a newc cpio (Documentation/driver-api/early-userspace/buffer-format.rst), which is the
 * guest's root file system. Not compressed: the guest would unpack it with an emulated processor.
 *
 *   /init                       the agent
 *   /bin/busybox, and symbolic links to it for its applets
 *   /etc/modules-load           what the agent loads before it answers (guest/modules.c)
 *   /lib/modules/RELEASE/       all modules, with modules.dep and modules.alias for modprobe
 *   /etc, /dev/console, ...     what programs expect
 *
 * Same input, same bytes: everything is root's, of the year 1970, and in the order written here.
 */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/buf.h"
#include "base/fail.h"
#include "base/fd.h"
#include "store/image_private.h"

enum { PROGRAM_MAX = 64 * 1024 * 1024 };

static const struct {
	const char *path;
	mode_t mode;
} folders[] = {
	{"bin", 0755},	   {"dev", 0755},      {"etc", 0755},	 {"home", 0755},     {"lib", 0755},	  {"lib/modules", 0755},
	{"mnt", 0755},	   {"opt", 0755},      {"proc", 0555},	 {"root", 0700},     {"run", 0755},	  {"sbin", 0755},
	{"srv", 0755},	   {"sys", 0555},      {"tmp", 01777},	 {"usr", 0755},	     {"usr/bin", 0755},	  {"usr/sbin", 0755},
	{"usr/lib", 0755}, {"usr/share", 0755}, {"var", 0755},	 {"var/lib", 0755},  {"var/log", 0755},	  {"var/tmp", 01777},
};

static const struct {
	const char *path, *text;
} files[] = {
	{"etc/group", "root:x:0:\ndaemon:x:1:\ntty:x:5:\ndisk:x:6:\nkvm:x:106:\nusers:x:100:\nnogroup:x:65534:\n"},
	{"etc/hostname", "fcvm\n"},
	{"etc/hosts", "127.0.0.1\tlocalhost fcvm\n::1\tlocalhost\n"},
	{"etc/machine-id", "uninitialized\n"}, /* machine-id(5); the agent writes it */
	{"etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"},
	{"etc/os-release", "NAME=\"fcvm mini\"\nID=fcvm\nPRETTY_NAME=\"fcvm mini (busybox)\"\n"},
	{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\n"
		       "nobody:x:65534:65534:nobody:/:/bin/false\n"},
	{"etc/profile", "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"},
	{"etc/shells", "/bin/sh\n/bin/ash\n"},
};

struct writer {
	struct archive *a;
	int64_t inode;
	struct fcvm_err *err;
};

/* ---- entries ---- */

static int put(struct writer *w, const char *path, mode_t mode, const char *link, const char *data, size_t size)
{
	struct archive_entry *e = archive_entry_new();
	int r = 0;

	if (!e)
		return fcvm_fail_errno(w->err, -ENOMEM, "write initrd");
	archive_entry_set_pathname(e, path);
	archive_entry_set_mode(e, mode);
	archive_entry_set_nlink(e, S_ISDIR(mode) ? 2 : 1);
	archive_entry_set_ino64(e, ++w->inode);
	archive_entry_set_mtime(e, 0, 0);
	archive_entry_set_size(e, (int64_t)size);
	if (link)
		archive_entry_set_symlink(e, link);
	if (S_ISCHR(mode)) {
		archive_entry_set_rdevmajor(e, 5);
		archive_entry_set_rdevminor(e, 1);
	}
	if (archive_write_header(w->a, e) != ARCHIVE_OK ||
		(size > 0 && archive_write_data(w->a, data, size) != (la_ssize_t)size))
		r = fcvm_fail(w->err, archive_errno(w->a) > 0 ? -archive_errno(w->a) : -EIO, "write initrd: %s: %s",
			path, archive_error_string(w->a));
	archive_entry_free(e);
	return r;
}

static int put_program(struct writer *w, const char *path, const char *from)
{
	_cleanup_free_ char *data = NULL;
	size_t size;
	int r = fcvm_file_read(AT_FDCWD, from, PROGRAM_MAX, &data, &size);

	if (r < 0)
		return fcvm_fail_errno(w->err, r, "read %s", from);
	return put(w, path, S_IFREG | 0755, NULL, data, size);
}

static int put_skeleton(struct writer *w)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < sizeof folders / sizeof *folders; i++)
		r = put(w, folders[i].path, S_IFDIR | folders[i].mode, NULL, NULL, 0);
	for (unsigned i = 0; r == 0 && i < sizeof files / sizeof *files; i++)
		r = put(w, files[i].path, S_IFREG | 0644, NULL, files[i].text, strlen(files[i].text));
	/* The kernel opens it for PID 1, before that could make it. */
	return r == 0 ? put(w, "dev/console", S_IFCHR | 0600, NULL, NULL, 0) : r;
}

/* ---- busybox ---- */

/* "usr/bin/awk": in one of the folders above, and a name. */
static bool is_applet(const char *line)
{
	static const char *const places[] = {"bin/", "sbin/", "usr/bin/", "usr/sbin/"};

	for (unsigned i = 0; i < sizeof places / sizeof *places; i++) {
		size_t size = strlen(places[i]);

		if (strncmp(line, places[i], size) == 0)
			return line[size] && line[size] != '.' && !strchr(line + size, '/') &&
			       strcmp(line, "bin/busybox") != 0;
	}
	return false;
}

static int put_applets(struct writer *w, const char *applets)
{
	_cleanup_free_ char *copy = strdup(applets);
	char *rest = copy, *line;
	int r = copy ? 0 : fcvm_fail_errno(w->err, -ENOMEM, "write initrd");

	while (r == 0 && (line = strsep(&rest, "\n")))
		if (is_applet(line))
			r = put(w, line, S_IFLNK | 0777, "/bin/busybox", NULL, 0);
	return r;
}

/* ---- modules ---- */

static int add_text(struct fcvm_buf *b, const char *first, const char *second, const char *third)
{
	int r = fcvm_buf_append(b, first, strlen(first));

	if (r == 0)
		r = fcvm_buf_append(b, second, strlen(second));
	return r == 0 ? fcvm_buf_append(b, third, strlen(third)) : r;
}

/* Of all[0 .. self], those that all[self] needs, itself among them. malloc'ed; NULL: out of memory. */
static bool *find_needed(const struct store_module *all, unsigned self)
{
	bool *needed = calloc(self + 1, sizeof *needed);

	if (!needed)
		return NULL;
	needed[self] = true;
	/* Whatever is needed stands before who needs it. */
	for (unsigned i = self + 1; i-- > 0;) {
		size_t at = 0;
		const char *depends = needed[i] ? store_modinfo_next(&all[i], "depends", &at) : NULL;

		for (unsigned j = 0; depends && j < i; j++) {
			size_t size = strlen(all[j].name);

			for (const char *one = depends; *one; one += strcspn(one, ","), one += *one == ',')
				if (strcspn(one, ",") == size && strncmp(one, all[j].name, size) == 0)
					needed[j] = true;
		}
	}
	return needed;
}

/* modules.dep(5): "NAME.ko: all that it needs, the last to be loaded first". */
static int add_dependencies(struct fcvm_buf *b, const struct store_module *all, unsigned self)
{
	_cleanup_free_ bool *needed = find_needed(all, self);
	int r = needed ? add_text(b, all[self].name, ".ko:", "") : -ENOMEM;

	for (unsigned i = self; r == 0 && i-- > 0;)
		if (needed[i])
			r = add_text(b, " ", all[i].name, ".ko");
	return r == 0 ? fcvm_buf_append(b, "\n", 1) : r;
}

/* Lines of /etc/modules-load: what it needs and itself, each under its condition; but what is loaded always stands
 * there once. What two conditions want stands there twice: the second time it is there already. */
static int add_load(struct fcvm_buf *b, const char *folder, const struct store_module *all, unsigned self,
	bool *always)
{
	_cleanup_free_ bool *needed = find_needed(all, self);
	const char *when = all[self].when;
	int r = needed ? 0 : -ENOMEM;

	for (unsigned i = 0; r == 0 && i <= self; i++) {
		if (!needed[i] || always[i])
			continue;
		always[i] = !*when;
		r = *when ? add_text(b, when, " ", "") : 0;
		if (r == 0)
			r = add_text(b, "/", folder, "/");
		if (r == 0)
			r = add_text(b, all[i].name, ".ko\n", "");
	}
	return r;
}

static int add_aliases(struct fcvm_buf *b, const struct store_module *m)
{
	/* AF_VSOCK: only VMware's transport, which is not ours, says that it wants to be loaded for it. */
	bool is_vsock = strcmp(m->name, "vmw_vsock_virtio_transport") == 0;
	const char *alias;
	size_t at = 0;
	int r = is_vsock ? add_text(b, "alias net-pf-40 ", m->name, "\n") : 0;

	while (r == 0 && (alias = store_modinfo_next(m, "alias", &at))) {
		r = add_text(b, "alias ", alias, " ");
		if (r == 0)
			r = add_text(b, m->name, "\n", "");
	}
	return r;
}

static int put_text(struct writer *w, const char *folder, const char *name, const struct fcvm_buf *b)
{
	_cleanup_free_ char *path = fcvm_asprintf("%s/%s", folder, name);

	return path ? put(w, path, S_IFREG | 0644, NULL, b->size ? b->data + b->start : "", b->size)
		    : fcvm_fail_errno(w->err, -ENOMEM, "write initrd");
}

/* Texts that the first n modules give rise to. */
static int describe(const char *folder, const struct store_module *all, unsigned n, struct fcvm_buf *load,
	struct fcvm_buf *dep, struct fcvm_buf *alias)
{
	_cleanup_free_ bool *always = calloc(n + 1, sizeof *always);
	int r = always ? 0 : -ENOMEM;

	for (unsigned i = 0; r == 0 && i < n; i++) {
		if (all[i].when)
			r = add_load(load, folder, all, i, always);
		if (r == 0)
			r = add_dependencies(dep, all, i);
		if (r == 0)
			r = add_aliases(alias, &all[i]);
	}
	return r;
}

static int put_modules(struct writer *w, const struct store_initrd *in)
{
	_cleanup_(fcvm_buf_done) struct fcvm_buf load = {.data = NULL}, dep = {.data = NULL}, alias = {.data = NULL};
	_cleanup_free_ char *folder = fcvm_asprintf("lib/modules/%s", in->release);
	const struct store_module *all = in->modules->list;
	unsigned n = in->nested ? in->modules->n : in->modules->nplain;
	int r = folder ? describe(folder, all, n, &load, &dep, &alias) : -ENOMEM;

	if (r < 0)
		return fcvm_fail_errno(w->err, r, "write initrd");
	r = put(w, folder, S_IFDIR | 0755, NULL, NULL, 0);
	for (unsigned i = 0; r == 0 && i < n; i++) {
		_cleanup_free_ char *path = fcvm_asprintf("%s/%s.ko", folder, all[i].name);

		if (!path)
			return fcvm_fail_errno(w->err, -ENOMEM, "write initrd");
		r = put(w, path, S_IFREG | 0644, NULL, all[i].data, all[i].size);
	}
	if (r == 0)
		r = put_text(w, folder, "modules.dep", &dep);
	if (r == 0)
		r = put_text(w, folder, "modules.alias", &alias);
	return r == 0 ? put_text(w, "etc", "modules-load", &load) : r;
}

int store_initrd_write(int fd, const struct store_initrd *in, struct fcvm_err *err)
{
	struct writer w = {.a = archive_write_new(), .err = err};
	int r = 0;

	if (!w.a)
		return fcvm_fail_errno(err, -ENOMEM, "write initrd");
	/* No padding behind the last entry. */
	if (archive_write_set_format_cpio_newc(w.a) != ARCHIVE_OK ||
		archive_write_set_bytes_in_last_block(w.a, 1) != ARCHIVE_OK ||
		archive_write_open_fd(w.a, fd) != ARCHIVE_OK)
		r = fcvm_fail(err, -EIO, "write initrd: %s", archive_error_string(w.a));
	if (r == 0)
		r = put_skeleton(&w);
	if (r == 0)
		r = put_program(&w, "init", in->agent);
	if (r == 0)
		r = put_program(&w, "bin/busybox", in->busybox);
	if (r == 0)
		r = put_applets(&w, in->applets);
	if (r == 0)
		r = put_modules(&w, in);
	if (r == 0 && archive_write_close(w.a) != ARCHIVE_OK)
		r = fcvm_fail(err, archive_errno(w.a) > 0 ? -archive_errno(w.a) : -EIO, "write initrd: %s",
			archive_error_string(w.a));
	archive_write_free(w.a);
	return r;
}
