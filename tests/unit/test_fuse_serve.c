/* SPDX-License-Identifier: MIT */
/* The volume's server against a guest that lies: the messages are made here, by hand. */
#include <linux/landlock.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>

#include "base/until.h"
#include "test_fuse_serve.h"

static void test_handshake(void)
{
	struct fuse_init_in old = {.major = 7, .minor = 31, .flags = 0xffffffff};
	struct fuse_getattr_in attr = {.getattr_flags = 0};
	struct guest g;

	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1});
	CHECK(call(&g, FUSE_GETATTR, 1, &attr, sizeof attr) == -EIO);
	CHECK(call(&g, FUSE_INIT, 0, &old, 16) == -EPROTO);
	CHECK(init(&g) == 0);
	CHECK(((struct fuse_init_out *)g.reply)->max_write == 1 << 20);
	CHECK(((struct fuse_init_out *)g.reply)->flags & FUSE_HANDLE_KILLPRIV_V2);
	CHECK(!(((struct fuse_init_out *)g.reply)->flags & FUSE_ATOMIC_O_TRUNC));
	CHECK(init(&g) == -EIO);
	CHECK(call(&g, FUSE_GETATTR, 1, &attr, sizeof attr) == 0);
	CHECK(call(&g, 7, 1, "", 0) == -ENOSYS);
	CHECK(call(&g, 4096, 1, "", 0) == -ENOSYS);
	CHECK(call(&g, FUSE_GETATTR, 1, &attr, 8) == -EINVAL);
	CHECK(stop(&g) == 0);
}

/* Bytes that are no message end the volume; whatever they are, the server ends of itself. */
static void test_garbage(void)
{
	for (unsigned seed = 0; seed < 40; seed++) {
		struct guest g;
		uint64_t bytes[512];
		int status;

		start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1});
		if (seed % 2)
			CHECK(init(&g) == 0);
		srand(seed);
		for (unsigned i = 0; i < 512; i++)
			bytes[i] = (uint64_t)rand() << 33 ^ (uint64_t)rand() << 8 ^ (uint64_t)rand();
		/* Some look like messages at first. */
		if (seed % 4 > 1)
			bytes[0] = (uint64_t)(seed % 60) << 32 | (40 + seed * 8);
		/* It may be gone before it has read them all. */
		(void)!fcvm_fd_write_full(g.fd, bytes, sizeof bytes);
		shutdown(g.fd, SHUT_WR);
		status = stop(&g);
		CHECK(status == 0 || status == 9);
	}
}

static void test_names(void)
{
	static const char *const bad[] = {"..", ".", "", "/", "a/b", "../outside", "/etc/passwd"};
	static const uint32_t opcodes[] = {FUSE_LOOKUP, FUSE_UNLINK, FUSE_RMDIR};
	struct fuse_open_in in = {.flags = O_RDONLY};
	struct guest g;

	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1});
	CHECK(init(&g) == 0);
	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
		for (unsigned k = 0; k < 3; k++)
			CHECK(name_call(&g, opcodes[k], 1, bad[i]) == -EINVAL);
	/* A symlink is a node to be read, never a way. */
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "out") == 0);
	CHECK(name_call(&g, FUSE_LOOKUP, found(&g), "outside") == -ENOTDIR);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "out") == 0);
	CHECK(call(&g, FUSE_OPEN, found(&g), &in, sizeof in) == -ENXIO || call(&g, FUSE_OPENDIR, found(&g), &in, sizeof in) < 0);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "fifo") == 0);
	CHECK(call(&g, FUSE_OPEN, found(&g), &in, sizeof in) == -ENXIO);
	CHECK(stop(&g) == 0);
}

static void test_ids(void)
{
	static const uint64_t bad[] = {2, 3, 511, 512, 1 << 20, 0xffffffff, 1ULL << 32 | 1, ~0ULL};
	struct fuse_getattr_in attr = {.getattr_flags = 0};
	struct fuse_open_in in = {.flags = O_RDWR};
	struct fuse_read_in rd = {.size = 4096};
	struct fuse_release_in release = {.fh = 0};
	struct guest g;
	uint64_t file;

	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1});
	CHECK(init(&g) == 0);
	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct fuse_forget_in forget = {.nlookup = ~0ULL};
		char message[64];

		CHECK(call(&g, FUSE_GETATTR, bad[i], &attr, sizeof attr) == -ESTALE);
		CHECK(name_call(&g, FUSE_LOOKUP, bad[i], "x") == -ESTALE);
		CHECK(call(&g, FUSE_OPEN, bad[i], &in, sizeof in) == -ESTALE);
		rd.fh = bad[i];
		CHECK(call(&g, FUSE_READ, 1, &rd, sizeof rd) == -EBADF);
		CHECK(call(&g, FUSE_READDIR, 1, &rd, sizeof rd) == -EBADF);
		fcvm_fd_write_full(g.fd, message, put(message, 5, FUSE_FORGET, bad[i], &forget, sizeof forget));
	}
	/* A file forgotten too often, and read by a handle that was closed, or is a folder's. */
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "file") == 0);
	file = found(&g);
	CHECK(call(&g, FUSE_OPEN, file, &in, sizeof in) == 0);
	rd.fh = release.fh = opened(&g);
	CHECK(call(&g, FUSE_READ, file, &rd, sizeof rd) == 0 && !memcmp(g.reply, "text", 4));
	CHECK(call(&g, FUSE_READDIR, file, &rd, sizeof rd) == -EBADF);
	CHECK(call(&g, FUSE_RELEASE, file, &release, sizeof release) == 0);
	CHECK(call(&g, FUSE_READ, file, &rd, sizeof rd) == -EBADF);
	CHECK(call(&g, FUSE_RELEASE, file, &release, sizeof release) == -EBADF);
	CHECK(call(&g, FUSE_OPEN, file, &in, sizeof in) == 0);
	CHECK(opened(&g) != rd.fh);
	for (int i = 0; i < 3; i++) {
		struct fuse_forget_in forget = {.nlookup = 1000};
		char message[64];

		fcvm_fd_write_full(g.fd, message, put(message, 5, FUSE_FORGET, i == 2 ? 1 : file, &forget, sizeof forget));
	}
	/* Its handle holds the node. */
	rd.fh = opened(&g);
	CHECK(call(&g, FUSE_READ, file, &rd, sizeof rd) == 0);
	release.fh = rd.fh;
	CHECK(call(&g, FUSE_RELEASE, file, &release, sizeof release) == 0);
	CHECK(call(&g, FUSE_GETATTR, file, &attr, sizeof attr) == -ESTALE);
	/* The root is there whatever was forgotten. */
	CHECK(call(&g, FUSE_GETATTR, 1, &attr, sizeof attr) == 0);
	CHECK(stop(&g) == 0);
}

/* A name that the guest took for granted and that is another file's, or nobody's, by now: to be looked up again. */
static void test_stale_names(void)
{
	struct fuse_open_in in = {.flags = O_RDWR};
	char path[128];
	struct guest g;
	uint64_t node;

	snprintf(path, sizeof path, "%s/short-lived", inside);
	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1});
	CHECK(init(&g) == 0);
	for (int opened_before = 0; opened_before < 2; opened_before++) {
		fcvm_file_replace(AT_FDCWD, path, "text", 4, 0600, false);
		CHECK(name_call(&g, FUSE_LOOKUP, 1, "short-lived") == 0);
		node = found(&g);
		if (opened_before)
			CHECK(call(&g, FUSE_OPEN, node, &in, sizeof in) == 0);
		unlink(path);
		/* Whoever has it open may mean the file without a name. */
		CHECK(call(&g, FUSE_OPEN, node, &in, sizeof in) == (opened_before ? 0 : -ESTALE));
	}
	CHECK(stop(&g) == 0);
}

/* A folder that the host moves out of the volume while the guest looks things up in it: nothing outside is found. */
static void *move_about(void *arg)
{
	atomic_bool *go = arg;
	char a[128], b[128];

	snprintf(a, sizeof a, "%s/dir", inside);
	snprintf(b, sizeof b, "%s/moved", folder);
	while (*go) {
		rename(a, b);
		(void)!symlink("..", a);
		unlink(a);
		rename(b, a);
	}
	return NULL;
}

static void test_races(void)
{
	atomic_bool go = true;
	pthread_t thread;
	unsigned outside = 0;
	struct guest g;

	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1});
	CHECK(init(&g) == 0);
	pthread_create(&thread, NULL, move_about, (void *)&go);
	for (int i = 0; i < 5000; i++) {
		if (name_call(&g, FUSE_LOOKUP, 1, "dir"))
			continue;
		if (!name_call(&g, FUSE_LOOKUP, found(&g), "outside"))
			outside++;
	}
	go = false;
	pthread_join(thread, NULL);
	CHECK(outside == 0);
	CHECK(stop(&g) == 0);
}

/* Requests without end and not one reply read: the server stops reading, and its memory stays what it is. */
static void test_replies_never_read(void)
{
	static char batch[1 << 16];
	struct fuse_open_in in = {.flags = O_RDONLY};
	struct fuse_read_in rd = {.size = 1 << 20};
	size_t size = 0, sent = 0, before;
	struct guest g;
	int64_t until;

	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1});
	CHECK(init(&g) == 0);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "big") == 0);
	CHECK(call(&g, FUSE_OPEN, found(&g), &in, sizeof in) == 0);
	rd.fh = opened(&g);
	before = memory_of(g.server);
	while (size + 128 < sizeof batch)
		size += put(batch + size, 1000, FUSE_READ, 2, &rd, sizeof rd);
	fcvm_fd_nonblock(g.fd, true);
	until = fcvm_now_ns() + 700000000;
	while (fcvm_now_ns() < until && sent < 100000 * 80UL) {
		ssize_t n = write(g.fd, batch, size);

		sent += n > 0 ? n : 0;
		if (n < 0)
			usleep(1000);
	}
	CHECK(sent > size);
	CHECK(sent < 100 * size);
	CHECK(memory_of(g.server) < before + 80 * 1024);
	CHECK(stop(&g) == 0);
}

/* 100,000 requests sent before the first reply is read, by two who do not wait for each other. */
static void *send_many(void *arg)
{
	struct guest *g = arg;
	struct fuse_getattr_in attr = {.getattr_flags = 0};
	char message[64];

	for (uint64_t i = 1; i <= 100000; i++)
		if (fcvm_fd_write_full(g->fd, message, put(message, 1000 + i, FUSE_GETATTR, 1, &attr, sizeof attr)))
			break;
	return NULL;
}

static void test_many_in_flight(void)
{
	struct fuse_out_header h;
	pthread_t thread;
	uint64_t n = 0, wrong = 0;
	struct guest g;

	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1});
	CHECK(init(&g) == 0);
	pthread_create(&thread, NULL, send_many, &g);
	usleep(50000);
	while (n < 100000 && take_reply(&g, &h))
		wrong += h.unique != 1000 + ++n || h.error;
	pthread_join(thread, NULL);
	CHECK(n == 100000 && wrong == 0);
	CHECK(stop(&g) == 0);
}

/* Locks that wait for ever, and what is asked meanwhile. */
static void test_many_waiting(void)
{
	struct fuse_open_in in = {.flags = O_RDWR};
	struct fuse_lk_in lk = {.owner = 1, .lk = {.end = ~0ULL >> 1, .type = F_WRLCK}};
	struct fuse_getattr_in attr = {.getattr_flags = 0};
	struct fuse_interrupt_in interrupt = {.unique = 200001};
	struct fuse_out_header h;
	unsigned refused = 0;
	char message[128];
	struct guest g;
	uint64_t node;

	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 0});
	CHECK(init(&g) == 0);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "file") == 0);
	node = found(&g);
	CHECK(call(&g, FUSE_OPEN, node, &in, sizeof in) == 0);
	lk.fh = opened(&g);
	CHECK(call(&g, FUSE_SETLK, node, &lk, sizeof lk) == 0);
	lk.owner = 2;
	CHECK(call(&g, FUSE_SETLK, node, &lk, sizeof lk) == -EAGAIN);
	for (uint64_t i = 1; i <= 5000; i++)
		fcvm_fd_write_full(g.fd, message, put(message, 200000 + i, FUSE_SETLKW, node, &lk, sizeof lk));
	fcvm_fd_write_full(g.fd, message, put(message, 300000, FUSE_GETATTR, 1, &attr, sizeof attr));
	while (take_reply(&g, &h) && h.unique != 300000)
		refused += h.error == -ENOLCK;
	CHECK(h.unique == 300000 && refused > 0 && refused < 1000);
	fcvm_fd_write_full(g.fd, message, put(message, 300002, FUSE_INTERRUPT, 1, &interrupt, sizeof interrupt));
	CHECK(take_reply(&g, &h) && h.unique == 200001 && h.error == -EINTR);
	/* The first owner's unlock lets one in; the rest are the same owner's and follow. */
	lk.owner = 1;
	lk.lk.type = F_UNLCK;
	CHECK(call(&g, FUSE_SETLK, node, &lk, sizeof lk) == 0);
	CHECK(take_reply(&g, &h) && h.unique == 200002 && h.error == 0);
	CHECK(stop(&g) == 0);
}

static int write_call(struct guest *g, uint64_t node, uint64_t fh, uint32_t flags, uint32_t write_flags)
{
	struct fuse_write_in in = {.fh = fh, .size = 4, .flags = flags, .write_flags = write_flags};
	char body[64];

	memcpy(body, &in, sizeof in);
	memcpy(body + sizeof in, "data", 4);
	return call(g, FUSE_WRITE, node, body, sizeof in + 4);
}

/*
 * What the guest's kernel leaves to the host: an append goes to the end as it is by now, but not a page that comes
 * from its cache; set-id bits go if it says that the writer may not keep them.
 */
static void test_write_flags(void)
{
	struct fuse_open_in in = {.flags = O_RDWR | O_APPEND};
	char path[128], *text;
	struct stat st;
	struct guest g;
	uint64_t node, fh;
	size_t size;

	snprintf(path, sizeof path, "%s/appended", inside);
	fcvm_file_replace(AT_FDCWD, path, "0123456789", 10, 0600, false);
	chmod(path, 06755);
	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1});
	CHECK(init(&g) == 0);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "appended") == 0);
	node = found(&g);
	CHECK(call(&g, FUSE_OPEN, node, &in, sizeof in) == 0);
	fh = opened(&g);
	CHECK(write_call(&g, node, fh, O_RDWR | O_APPEND, 0) == 0);
	CHECK(write_call(&g, node, fh, O_RDWR | O_APPEND, FUSE_WRITE_CACHE) == 0);
	CHECK(!fcvm_file_read(AT_FDCWD, path, 100, &text, &size) && size == 14 && !memcmp(text, "data456789data", 14));
	free(text);
	if (!geteuid())
		CHECK(!stat(path, &st) && (st.st_mode & 07777) == 06755);
	CHECK(write_call(&g, node, fh, O_RDWR, FUSE_WRITE_KILL_SUIDGID) == 0);
	CHECK(!stat(path, &st) && (st.st_mode & 07777) == 0755);
	CHECK(stop(&g) == 0);
}

/* More files than may be known: refused, and room again when some are forgotten. */
static void test_too_many_nodes(void)
{
	struct fuse_mknod_in in = {.mode = S_IFREG | 0600};
	struct fuse_forget_in forget = {.nlookup = 1};
	uint64_t last = 0;
	char body[64], message[64];
	struct guest g;
	int made = 0, r = 0;

	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1, .max_nodes = 100});
	CHECK(init(&g) == 0);
	for (; made < 200; made++) {
		memcpy(body, &in, sizeof in);
		r = call(&g, FUSE_MKNOD, 1, body, sizeof in + snprintf(body + sizeof in, 32, "node-%d", made) + 1);
		if (r)
			break;
		last = found(&g);
	}
	CHECK(made == 99 && r == -ENFILE);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "file") == -ENFILE);
	fcvm_fd_write_full(g.fd, message, put(message, 5, FUSE_FORGET, last, &forget, sizeof forget));
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "file") == 0);
	CHECK(stop(&g) == 0);
}

static void test_readonly(void)
{
	struct fuse_open_in in = {.flags = O_WRONLY};
	struct fuse_mkdir_in dir = {.mode = 0755};
	char body[32];
	struct guest g;

	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1, .readonly = true});
	CHECK(init(&g) == 0);
	memcpy(body, &dir, sizeof dir);
	memcpy(body + sizeof dir, "new", 4);
	CHECK(call(&g, FUSE_MKDIR, 1, body, sizeof dir + 4) == -EROFS);
	CHECK(name_call(&g, FUSE_UNLINK, 1, "file") == -EROFS);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "file") == 0);
	CHECK(call(&g, FUSE_OPEN, found(&g), &in, sizeof in) == -EROFS);
	in.flags = O_RDONLY;
	CHECK(call(&g, FUSE_OPEN, found(&g), &in, sizeof in) == 0);
	CHECK(stop(&g) == 0);
}

/* A device made by a guest would be one of the host's. */
static void test_devices(void)
{
	struct fuse_mknod_in in = {.mode = S_IFBLK | 0666, .rdev = 8 << 8};
	char body[32];
	struct guest g;

	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1});
	CHECK(init(&g) == 0);
	memcpy(body, &in, sizeof in);
	memcpy(body + sizeof in, "sda", 4);
	CHECK(call(&g, FUSE_MKNOD, 1, body, sizeof in + 4) == -EPERM);
	in.mode = S_IFCHR | 0666;
	memcpy(body, &in, sizeof in);
	CHECK(call(&g, FUSE_MKNOD, 1, body, sizeof in + 4) == -EPERM);
	CHECK(stop(&g) == 0);
}

/* Whoever calls in the guest, here it is the one user, who is not let do more than he may. */
static void test_unprivileged(void)
{
	struct fuse_open_in in = {.flags = O_RDONLY};
	struct fuse_mkdir_in dir = {.mode = 0755};
	struct fuse_setattr_in owner = {.valid = FATTR_UID, .uid = 0};
	char body[32], path[128], outside[128];
	struct stat st;
	struct guest g;
	uint64_t made;

	if (geteuid())
		return;
	chmod(folder, 0755);
	mkdir((snprintf(path, sizeof path, "%s/open", inside), path), 0777);
	chmod(path, 0777);
	how.uid = 12345;
	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1});
	CHECK(init(&g) == 0);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "file") == 0);
	CHECK(call(&g, FUSE_OPEN, found(&g), &in, sizeof in) == -EACCES);
	memcpy(body, &dir, sizeof dir);
	memcpy(body + sizeof dir, "new", 4);
	CHECK(call(&g, FUSE_MKDIR, 1, body, sizeof dir + 4) == -EACCES);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "open") == 0);
	CHECK(call(&g, FUSE_MKDIR, found(&g), body, sizeof dir + 4) == 0);
	made = found(&g);
	CHECK(((struct fuse_entry_out *)g.reply)->attr.uid == 12345);
	CHECK(!stat((snprintf(path, sizeof path, "%s/open/new", inside), path), &st) && st.st_uid == 12345);
	CHECK(call(&g, FUSE_SETATTR, made, &owner, sizeof owner) == -EPERM);
	CHECK(name_call(&g, FUSE_LOOKUP, made, "..") == -EINVAL);
	/* Everybody's ids are as they are. */
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "file") == 0);
	CHECK(((struct fuse_entry_out *)g.reply)->attr.uid == 0);
	/* The host moves it out of the volume; all may read it, but Landlock lets this process no more. */
	fcvm_file_replace(AT_FDCWD, (snprintf(path, sizeof path, "%s/all", inside), path), "text", 4, 0644, false);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "all") == 0);
	made = found(&g);
	CHECK(call(&g, FUSE_OPEN, made, &in, sizeof in) == 0);
	CHECK(rename(path, (snprintf(outside, sizeof outside, "%s/all", folder), outside)) == 0);
	if (syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) >= 2)
		CHECK(call(&g, FUSE_OPEN, made, &in, sizeof in) == -EACCES);
	CHECK(stop(&g) == 0);
	how.uid = 0;
}

/* Ids as the map says; whom it does not name is nobody, and owns nothing. */
static void test_ids_mapped(void)
{
	static const struct fcvm_fuse_ids ids[] = {{.guest = 0, .host = 100000, .count = 1000}};
	struct fuse_setattr_in owner = {.valid = FATTR_UID | FATTR_GID, .uid = 7, .gid = 8};
	struct fuse_mkdir_in dir = {.mode = 0755};
	char body[32], path[128];
	struct stat st;
	struct guest g;
	uint64_t made;

	if (geteuid())
		return;
	start(&g, &(struct fcvm_fuse_volume){.uids = ids, .nuids = 1, .gids = ids, .ngids = 1, .timeout_s = 1});
	CHECK(init(&g) == 0);
	CHECK(!(((struct fuse_init_out *)g.reply)->flags & FUSE_POSIX_ACL));
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "file") == 0);
	CHECK(((struct fuse_entry_out *)g.reply)->attr.uid == 65534);
	memcpy(body, &dir, sizeof dir);
	memcpy(body + sizeof dir, "mapped", 7);
	CHECK(call(&g, FUSE_MKDIR, 1, body, sizeof dir + 7) == 0);
	made = found(&g);
	CHECK(((struct fuse_entry_out *)g.reply)->attr.uid == 0);
	CHECK(!stat((snprintf(path, sizeof path, "%s/mapped", inside), path), &st) && st.st_uid == 100000 && st.st_gid == 100000);
	CHECK(call(&g, FUSE_SETATTR, made, &owner, sizeof owner) == 0);
	CHECK(!stat(path, &st) && st.st_uid == 100007 && st.st_gid == 100008);
	owner.uid = 1000;
	CHECK(call(&g, FUSE_SETATTR, made, &owner, sizeof owner) == -EOVERFLOW);
	CHECK(stop(&g) == 0);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	set_up();
	test_handshake();
	test_garbage();
	test_names();
	test_ids();
	test_stale_names();
	test_races();
	test_replies_never_read();
	test_many_in_flight();
	test_many_waiting();
	test_write_flags();
	test_too_many_nodes();
	test_readonly();
	test_devices();
	test_unprivileged();
	test_ids_mapped();
	fcvm_tree_remove(AT_FDCWD, folder);
	CHECK_DONE();
}
