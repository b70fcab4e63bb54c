/* SPDX-License-Identifier: MIT */
/* csrc/base: trees packed and unpacked, also such as nobody of ours would pack. */
#include <errno.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/tree.h"
#include "test_base.h"

/* Packs into memory. */
static int pack(const char *path, struct fcvm_buf *ret, struct fcvm_err *err)
{
	FILE *f = tmpfile();
	int r = fcvm_tree_pack(fileno(f), path, err);
	long size;

	fseek(f, 0, SEEK_END);
	size = ftell(f);
	rewind(f);
	CHECK(fread(fcvm_buf_reserve(ret, size), 1, size, f) == (size_t)size);
	fcvm_buf_grew(ret, size);
	fclose(f);
	return r;
}

static int unpack(const void *data, size_t size, const char *path, const char *base, bool keep,
	struct fcvm_err *err)
{
	FILE *f = tmpfile();
	int r;

	fwrite(data, 1, size, f);
	rewind(f);
	fflush(f);
	lseek(fileno(f), 0, SEEK_SET);
	r = fcvm_tree_unpack(fileno(f), path, base, keep, err);
	fclose(f);
	return r;
}

static void make_tree(void)
{
	int fd;

	CHECK(fcvm_dir_make(at("t/sub/deep"), 0755) == 0 && fcvm_dir_make(at("t/ro"), 0755) == 0);
	put(at("t/sub/deep/file"), "text");
	put(at("t/empty"), "");
	put(at("t/ro/inside"), "x");
	CHECK(symlink("../outside", at("t/link")) == 0);
	CHECK(mkfifo(at("t/fifo"), 0640) == 0);
	fd = open(at("t/sparse"), O_WRONLY | O_CREAT, 0600);
	CHECK(ftruncate(fd, 5ll << 30) == 0 && pwrite(fd, "mid", 3, 3ll << 30) == 3);
	CHECK(pwrite(fd, "end", 3, (5ll << 30) - 3) == 3);
	close(fd);
	CHECK(chmod(at("t/sub/deep/file"), 06755) == 0 && chmod(at("t/ro"), 0555) == 0);
	CHECK(utimensat(AT_FDCWD, at("t/sub"), (struct timespec[]){{1, 0}, {-5, 250}}, 0) == 0);
	CHECK(mknod(at("t/socket"), S_IFSOCK | 0600, 0) == 0);
}

static void test_tree_copy(void)
{
	_cleanup_(fcvm_buf_done) struct fcvm_buf b = {0};
	struct fcvm_err err = FCVM_ERR_INIT;
	struct stat st;
	char text[64] = "";
	int fd;

	make_tree();
	CHECK(pack(at("t"), &b, &err) == 0 && b.size < 1 << 20); /* holes are not sent */
	CHECK(unpack(b.data, b.size, at("u"), NULL, false, &err) == 0);
	CHECK(holds(at("u/sub/deep/file"), "text") && holds(at("u/empty"), "") && holds(at("u/ro/inside"), "x"));
	CHECK(stat(at("u/sub/deep/file"), &st) == 0 && (st.st_mode & 07777) == 0755); /* no set-id */
	CHECK(stat(at("u/ro"), &st) == 0 && (st.st_mode & 07777) == 0555);
	CHECK(stat(at("u/sub"), &st) == 0 && st.st_mtim.tv_sec == -5 && st.st_mtim.tv_nsec == 250);
	CHECK(readlink(at("u/link"), text, sizeof text) == 10 && strcmp(text, "../outside") == 0);
	CHECK(lstat(at("u/fifo"), &st) == 0 && st.st_mode == (S_IFIFO | 0640));
	CHECK(lstat(at("u/socket"), &st) < 0);
	CHECK(stat(at("u/sparse"), &st) == 0 && st.st_size == 5ll << 30 && st.st_blocks < 1000);
	fd = open(at("u/sparse"), O_RDONLY);
	CHECK(pread(fd, text, 3, 3ll << 30) == 3 && memcmp(text, "mid", 3) == 0);
	CHECK(pread(fd, text, 9, (5ll << 30) - 3) == 3 && memcmp(text, "end", 3) == 0);
	close(fd);
	CHECK(unpack(b.data, b.size, at("k"), NULL, geteuid() == 0, &err) == 0);
	CHECK(stat(at("k/sub/deep/file"), &st) == 0 && (geteuid() || (st.st_mode & 07777) == 06755));
	/* Again, over what is there: merged; foreign files stay, a folder keeps its mode. */
	put(at("u/foreign"), "stays");
	CHECK(chmod(at("u/sub"), 0700) == 0 && chmod(at("u/ro"), 0755) == 0);
	CHECK(unpack(b.data, b.size, at("u"), NULL, false, &err) == 0);
	CHECK(holds(at("u/foreign"), "stays") && stat(at("u/sub"), &st) == 0 && (st.st_mode & 07777) == 0700);
	CHECK(pack(at("none"), &b, &err) == -ENOENT && strstr(err.message, "/none"));
}

static void test_tree_file(void)
{
	_cleanup_(fcvm_buf_done) struct fcvm_buf b = {0}, proc = {0};
	struct fcvm_err err = FCVM_ERR_INIT;
	struct stat st;

	put(at("one"), "content");
	CHECK(pack(at("one"), &b, &err) == 0);
	CHECK(unpack(b.data, b.size, at("two"), "ignored", false, &err) == 0 && holds(at("two"), "content"));
	CHECK(fcvm_dir_make(at("d"), 0755) == 0);
	CHECK(unpack(b.data, b.size, at("d"), "named", false, &err) == 0 && holds(at("d/named"), "content"));
	CHECK(unpack(b.data, b.size, at("d"), "../named", false, &err) == -EINVAL);
	CHECK(unpack(b.data, b.size, at("d"), "..", false, &err) == -EINVAL);
	CHECK(unpack(b.data, b.size, at("d"), NULL, false, &err) < 0);
	/* Cut off anywhere: an error, what was there stays, and nothing is left beside it. */
	put(at("d/named"), "old");
	for (size_t n = 0; n < b.size; n++) {
		CHECK(unpack(b.data, n, at("d/named"), NULL, false, &err) == -ENODATA);
		CHECK(holds(at("d/named"), "old"));
	}
	CHECK(unlink(at("d/named")) == 0 && rmdir(at("d")) == 0);
	/* Files of /proc say that they are empty. */
	CHECK(pack("/proc/version", &proc, &err) == 0);
	CHECK(unpack(proc.data, proc.size, at("version"), NULL, false, &err) == 0);
	CHECK(stat(at("version"), &st) == 0 && st.st_size > 10);
}

static void entry(struct fcvm_buf *b, int type, const char *path, uint64_t size, const char *target)
{
	struct fcvm_tree_entry e = {
		.magic = 0xf5,
		.type = type,
		.path_len = strlen(path),
		.mode = type == FCVM_TREE_DIR ? S_IFDIR | 0755 :
			type == FCVM_TREE_DEVICE ? S_IFCHR | 0666 : S_IFREG | 0644,
		.size = size,
		.target_len = target ? strlen(target) : 0,
		.rdev = 0x103,
	};

	fcvm_buf_append(b, &e, sizeof e);
	fcvm_buf_append(b, path, e.path_len);
	fcvm_buf_append(b, target, e.target_len);
}

static void file(struct fcvm_buf *b, const char *path, uint64_t size, uint64_t offset, const char *data)
{
	uint64_t head[2] = {offset, data ? strlen(data) : 0}, end[2] = {0};

	entry(b, FCVM_TREE_FILE, path, size, NULL);
	if (data) {
		fcvm_buf_append(b, head, sizeof head);
		fcvm_buf_append(b, data, head[1]);
	}
	fcvm_buf_append(b, end, sizeof end);
}

/* A stream of a root folder and what `add` puts into it must be refused with `code`, and leave nothing. */
static void refuse(int line, int code, const struct fcvm_buf *entries)
{
	_cleanup_(fcvm_buf_done) struct fcvm_buf b = {0};
	struct fcvm_err err = FCVM_ERR_INIT;
	int r;

	entry(&b, FCVM_TREE_DIR, "", 0, NULL);
	fcvm_buf_append(&b, entries->data, entries->size);
	entry(&b, FCVM_TREE_END, "", 0, NULL);
	r = unpack(b.data, b.size, at("evil"), NULL, false, &err);
	if (r != code)
		fprintf(stderr, "line %d: %d %s\n", line, r, err.message);
	CHECK(r == code && err.code == -code && *err.message);
	CHECK(access(at("evil"), F_OK) < 0 && access(at("escaped"), F_OK) < 0);
}

#define REFUSE(code, make)                                                                         \
	do {                                                                                       \
		struct fcvm_buf b = {0};                                                           \
		make;                                                                              \
		refuse(__LINE__, code, &b);                                                        \
		fcvm_buf_done(&b);                                                                 \
	} while (0)

static void test_tree_hostile(void)
{
	static const char *const paths[] = {"..", ".", "/escaped", "../escaped", "a/../../escaped", "a//b",
		"d/..", "d/.", "d/", "d//x", "missing/x", "", "d/x/y"};
	char *deep = malloc(5000);

	for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
		REFUSE(-EBADMSG, (entry(&b, FCVM_TREE_DIR, "d", 0, NULL), file(&b, paths[i], 1, 0, "x")));
		REFUSE(-EBADMSG, (entry(&b, FCVM_TREE_DIR, "d", 0, NULL),
				entry(&b, FCVM_TREE_DIR, paths[i], 0, NULL)));
	}
	/* A folder that was closed already, and one that only looks like it. */
	REFUSE(-EBADMSG, (entry(&b, FCVM_TREE_DIR, "d", 0, NULL), file(&b, "e", 0, 0, NULL),
			file(&b, "d/x", 0, 0, NULL)));
	REFUSE(-EBADMSG, (entry(&b, FCVM_TREE_DIR, "d", 0, NULL), file(&b, "dd/x", 0, 0, NULL)));
	/* By way of a symlink. */
	REFUSE(-EBADMSG, (entry(&b, FCVM_TREE_SYMLINK, "l", 0, ".."), file(&b, "l/escaped", 0, 0, NULL)));
	REFUSE(-ENOTDIR, (entry(&b, FCVM_TREE_SYMLINK, "l", 0, ".."), entry(&b, FCVM_TREE_DIR, "l", 0, NULL),
			file(&b, "l/escaped", 0, 0, NULL)));
	/* Data outside of its file, sizes that wrap. */
	REFUSE(-EBADMSG, file(&b, "f", 2, 1, "xx"));
	REFUSE(-EBADMSG, file(&b, "f", 2, UINT64_MAX, "xx"));
	REFUSE(-EFBIG, file(&b, "f", UINT64_MAX, 0, "xx"));
	/* Types, targets, devices, magic. */
	REFUSE(-EBADMSG, entry(&b, 6, "f", 0, NULL));
	REFUSE(-EBADMSG, entry(&b, FCVM_TREE_SYMLINK, "f", 0, NULL));
	REFUSE(-EBADMSG, entry(&b, FCVM_TREE_DIR, "f", 0, "target"));
	REFUSE(-EPERM, entry(&b, FCVM_TREE_DEVICE, "null", 0, NULL));
	REFUSE(-EBADMSG, fcvm_buf_append(&b, "0123456789012345678901234567890123456789", 40));
	/* Paths too long, or with a NUL. */
	memset(deep, 'x', 4999);
	deep[4999] = 0;
	REFUSE(-EBADMSG, entry(&b, FCVM_TREE_DIR, deep, 0, NULL));
	deep[300] = 0;
	REFUSE(-ENAMETOOLONG, file(&b, deep, 0, 0, NULL));
	REFUSE(-EBADMSG, (entry(&b, FCVM_TREE_DIR, "ab", 0, NULL), fcvm_buf_head(&b)[b.size - 1] = 0));
	REFUSE(-ELOOP, ({
		       for (unsigned i = 0; i < 600; i++) {
			       memcpy(deep + 2 * i, "x/", 2);
			       deep[2 * i + 1] = 0;
			       entry(&b, FCVM_TREE_DIR, deep, 0, NULL);
			       deep[2 * i + 1] = '/';
		       }
	       }));
	free(deep);
}

static void test_tree_existing(void)
{
	_cleanup_(fcvm_buf_done) struct fcvm_buf b = {0};
	struct fcvm_err err = FCVM_ERR_INIT;
	char text[64];

	/* A symlink that stands in the destination is not followed; a file's is replaced. */
	CHECK(fcvm_dir_make(at("dest"), 0755) == 0 && fcvm_dir_make(at("target"), 0755) == 0);
	CHECK(symlink("../target", at("dest/d")) == 0 && symlink("../target/f", at("dest/f")) == 0);
	entry(&b, FCVM_TREE_DIR, "", 0, NULL);
	file(&b, "f", 3, 0, "new");
	entry(&b, FCVM_TREE_DIR, "d", 0, NULL);
	file(&b, "d/f", 3, 0, "new");
	entry(&b, FCVM_TREE_END, "", 0, NULL);
	CHECK(unpack(b.data, b.size, at("dest"), NULL, false, &err) == -ENOTDIR && strstr(err.message, "dest/d"));
	CHECK(access(at("target/f"), F_OK) < 0 && holds(at("dest/f"), "new"));
	CHECK(readlink(at("dest/f"), text, sizeof text) < 0);
	/* Sending to somebody who has gone is an error, not SIGPIPE. */
	{
		int p[2];

		signal(SIGPIPE, SIG_DFL);
		CHECK(fcvm_fd_pair(p) == 0);
		close(p[1]);
		CHECK(fcvm_tree_pack(p[0], at("dest"), &err) == -EPIPE);
		close(p[0]);
	}
}

int main(void)
{
	if (!mkdtemp(folder))
		return 1;
	test_tree_copy();
	test_tree_file();
	test_tree_hostile();
	test_tree_existing();
	fcvm_tree_remove(AT_FDCWD, folder);
	CHECK_DONE();
}
