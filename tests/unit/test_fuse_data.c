/* SPDX-License-Identifier: MIT */
/* A guest whose locks are its own opens and closes nothing by messages: what its server then does by itself. */
#include <sys/resource.h>

#include "base/until.h"
#include "test_fuse_serve.h"

static struct guest g;

static void begin(void)
{
	struct fuse_open_in in = {.flags = O_RDONLY};

	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 1, .local_locks = true});
	CHECK(init(&g) == 0);
	CHECK(!(((struct fuse_init_out *)g.reply)->flags & (FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS)));
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "file") == 0);
	CHECK(call(&g, FUSE_OPEN, found(&g), &in, sizeof in) == -ENOSYS);
	CHECK(call(&g, FUSE_OPENDIR, 1, &in, sizeof in) == -ENOSYS);
}

static int read_file(uint64_t node, uint64_t fh)
{
	struct fuse_read_in in = {.fh = fh, .size = 4096};

	return call(&g, FUSE_READ, node, &in, sizeof in);
}

static int write_file(uint64_t node, uint64_t fh, const char *text)
{
	struct {
		struct fuse_write_in in;
		char data[64];
	} m = {.in = {.fh = fh, .size = (uint32_t)strlen(text)}};

	memcpy(m.data, text, strlen(text));
	return call(&g, FUSE_WRITE, node, &m, sizeof m.in + strlen(text));
}

static uint64_t make_file_as(const char *name, uint32_t flags, uint32_t mode)
{
	struct {
		struct fuse_create_in in;
		char name[64];
	} m = {.in = {.flags = flags | O_CREAT, .mode = mode}};

	strcpy(m.name, name);
	CHECK(call(&g, FUSE_CREATE, 1, &m, sizeof m.in + strlen(name) + 1) == 0);
	return found(&g);
}

static uint64_t make_file(const char *name)
{
	return make_file_as(name, O_RDWR, 0755);
}

static void test_no_handles(void)
{
	struct fuse_fsync_in sync = {.fh = 0};
	struct fuse_release_in release = {.fh = 0};
	struct fuse_flush_in flush = {.fh = 0};
	struct fuse_read_in list = {.size = 4096};
	uint64_t node;

	begin();
	node = make_file("made");
	CHECK(((struct fuse_open_out *)(g.reply + sizeof(struct fuse_entry_out)))->fh == 0);
	CHECK(write_file(node, 0, "some text") == 0);
	CHECK(read_file(node, 0) == 0 && !memcmp(g.reply, "some text", 9));
	CHECK(call(&g, FUSE_FSYNC, node, &sync, sizeof sync) == 0);
	CHECK(call(&g, FUSE_FLUSH, node, &flush, sizeof flush) == -ENOSYS);
	CHECK(call(&g, FUSE_READDIR, 1, &list, sizeof list) == 0);
	/* Of what it was never given nothing can be used, nor closed. */
	for (uint64_t fh = 1; fh < 4; fh++) {
		CHECK(read_file(node, fh) == -EBADF);
		release.fh = fh;
		CHECK(call(&g, FUSE_RELEASE, node, &release, sizeof release) == 0);
		CHECK(call(&g, FUSE_RELEASEDIR, 1, &release, sizeof release) == 0);
	}
	CHECK(read_file(node, 0) == 0 && !memcmp(g.reply, "some text", 9));
	/* Of the wrong kind. */
	CHECK(call(&g, FUSE_READDIR, node, &list, sizeof list) == -EBADF);
	CHECK(read_file(1, 0) == -EBADF && write_file(1, 0, "x") == -EISDIR);
	CHECK(read_file(node + 12345, 0) == -ESTALE);
	CHECK(stop(&g) == 0);
}

/* The host can execute what the guest wrote: soon after, nobody has it open to write. */
static void test_not_busy(void)
{
	char path[128];
	bool leased = false;
	int fd;

	begin();
	CHECK(write_file(make_file("program"), 0, "#!/bin/sh\n") == 0);
	snprintf(path, sizeof path, "%s/program", inside);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	/* A lease to read is had only where there is no writer. */
	for (int64_t until = fcvm_now_ns() + 5000000000; !leased && fcvm_now_ns() < until; usleep(1000))
		leased = !fcntl(fd, F_SETLEASE, F_RDLCK);
	CHECK(leased);
	fcntl(fd, F_SETLEASE, F_UNLCK);
	close(fd);
	CHECK(stop(&g) == 0);
}

/* How many descriptors of its server are on this file. */
static unsigned descriptors(const char *name)
{
	char path[64], target[256];
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++) {
		ssize_t size = readlink((snprintf(path, sizeof path, "/proc/%d/fd/%d", g.server, fd), path), target, sizeof target - 1);

		target[size < 0 ? 0 : size] = 0;
		n += strstr(target, name) != NULL;
	}
	return n;
}

static void forget(uint64_t node, const char *name)
{
	struct fuse_forget_in in = {.nlookup = 1};
	char message[64];
	size_t size = put(message, 1, FUSE_FORGET, node, &in, sizeof in);

	CHECK(descriptors(name) > 0);
	CHECK(fcvm_fd_write_full(g.fd, message, size) == 0);
	for (int64_t until = fcvm_now_ns() + 5000000000; descriptors(name) && fcvm_now_ns() < until;)
		usleep(1000);
	CHECK(descriptors(name) == 0);
	CHECK(read_file(node, 0) == -ESTALE);
}

/* What is forgotten is closed: a removed file's space is the host's again. */
static void test_forgotten(void)
{
	uint64_t node;

	begin();
	node = make_file("again");
	CHECK(write_file(node, 0, "text") == 0 && read_file(node, 0) == 0);
	CHECK(name_call(&g, FUSE_UNLINK, 1, "again") == 0);
	CHECK(read_file(node, 0) == 0 && !memcmp(g.reply, "text", 4));
	CHECK(descriptors("/again") >= 2);
	forget(node, "/again");
	CHECK(stop(&g) == 0);
}

/* Made read-only and open to write, as git makes its packs: no user's server could open it again. */
static void test_made_readonly(void)
{
	uint64_t node, others;

	if (geteuid())
		return;
	chmod(folder, 0755);
	chmod(inside, 0777);
	how.uid = 12345;
	begin();
	others = make_file("writable");
	node = make_file_as("readonly", O_WRONLY, 0444);
	CHECK(write_file(others, 0, "text") == 0 && write_file(node, 0, "text") == 0);
	usleep(100000);
	CHECK(descriptors("/writable") == 1 && descriptors("/readonly") == 2);
	CHECK(write_file(node, 0, "more") == 0);
	CHECK(read_file(node, 0) == 0 && !memcmp(g.reply, "more", 4));
	forget(node, "/readonly");
	CHECK(stop(&g) == 0);
	how.uid = 0;
}

static void few_descriptors(void)
{
	setrlimit(RLIMIT_NOFILE, &(struct rlimit){.rlim_cur = 320, .rlim_max = 320});
}

/* There may be more of them than descriptors: those not used lately are given up. */
static void test_many_made_readonly(void)
{
	struct {
		uint64_t node;
		char name[16];
	} files[150];
	unsigned open_now = 0;

	if (geteuid())
		return;
	how = (struct server_how){.uid = 12345, .first = few_descriptors};
	begin();
	for (unsigned i = 0; i < 150; i++) {
		snprintf(files[i].name, sizeof files[i].name, "many-%u", i);
		files[i].node = make_file_as(files[i].name, O_WRONLY, 0444);
		if (i % 10 == 9)
			usleep(30000);
	}
	usleep(100000);
	for (unsigned i = 0; i < 150; i++)
		open_now += write_file(files[i].node, 0, "text") == 0;
	CHECK(open_now > 20 && open_now < 40);
	CHECK(write_file(files[149].node, 0, "text") == 0);
	for (unsigned i = 0; i < 150; i++)
		CHECK(read_file(files[i].node, 0) == 0);
	CHECK(stop(&g) == 0);
	how = (struct server_how){.uid = 0};
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	set_up();
	test_no_handles();
	test_not_busy();
	test_forgotten();
	test_made_readonly();
	test_many_made_readonly();
	fcvm_tree_remove(AT_FDCWD, folder);
	CHECK_DONE();
}
