/* SPDX-License-Identifier: MIT */
/* The volume's server and guests that know of many files: what of them stays open, what is refused, what it costs. */
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "fusepipe/host/server.h"
#include "test_fuse_serve.h"

enum { FEW = 320, SOME = 500, BATCH = 256 };

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { BYTES_EACH = 2000 }; /* the sanitizer's own */
#else
enum { BYTES_EACH = 200 };
#endif

static struct guest g;

/* So many descriptors and no more, though it be root's. */
static void few_descriptors(void)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	syscall(SYS_capget, &h, data);
	data[0].effective &= ~(1U << CAP_SYS_RESOURCE);
	data[0].permitted &= ~(1U << CAP_SYS_RESOURCE);
	syscall(SYS_capset, &h, data);
	setrlimit(RLIMIT_NOFILE, &(struct rlimit){.rlim_cur = FEW, .rlim_max = FEW});
}

static void begin(struct server_how with, struct fcvm_fuse_volume serve)
{
	struct fuse_open_in in = {.flags = O_RDONLY};

	how = with;
	start(&g, &serve);
	CHECK(init(&g) == 0);
	if (serve.local_locks)
		CHECK(call(&g, FUSE_OPEN, 1, &in, sizeof in) == -ENOSYS);
}

static uint64_t make_folder(const char *name)
{
	char path[128];

	CHECK(!mkdir((snprintf(path, sizeof path, "%s/%s", inside, name), path), 0777) && !chmod(path, 0777));
	CHECK(name_call(&g, FUSE_LOOKUP, 1, name) == 0);
	return found(&g);
}

static uint64_t create(uint64_t parent, const char *name)
{
	struct {
		struct fuse_create_in in;
		char name[64];
	} m = {.in = {.flags = O_RDWR | O_CREAT, .mode = 0644}};

	strcpy(m.name, name);
	CHECK(call(&g, FUSE_CREATE, parent, &m, sizeof m.in + strlen(name) + 1) == 0);
	return found(&g);
}

/* Files 0 to count - 1 are made there, as many as may be, and known from then on. How many. */
static unsigned make_many(uint64_t parent, unsigned count)
{
	static char batch[BATCH * 128];
	unsigned made = 0;

	for (unsigned first = 0; first < count; first += BATCH) {
		unsigned n = count - first < BATCH ? count - first : BATCH;
		struct fuse_out_header h;
		size_t size = 0;

		for (unsigned i = 0; i < n; i++) {
			struct fuse_mknod_in in = {.mode = S_IFREG | 0600};
			char body[64];

			memcpy(body, &in, sizeof in);
			size += put(batch + size, ++g.unique, FUSE_MKNOD, parent, body,
				sizeof in + (size_t)snprintf(body + sizeof in, 32, "%u", first + i) + 1);
		}
		CHECK(fcvm_fd_write_full(g.fd, batch, size) == 0);
		for (unsigned i = 0; i < n && take_reply(&g, &h); i++)
			made += !h.error;
	}
	return made;
}

/* A file without a name that is open in the guest, which does not say so: the server has its last descriptor. */
static void test_removed_but_open(void)
{
	struct fuse_read_in rd = {.size = 4096};
	struct {
		struct fuse_write_in in;
		char data[8];
	} m = {.in = {.size = 4}, .data = "text"};
	uint64_t node, dir;

	begin((struct server_how){.first = few_descriptors},
		(struct fcvm_fuse_volume){.timeout_s = 1, .local_locks = true});
	dir = make_folder("removed");
	node = create(1, "unlinked");
	CHECK(call(&g, FUSE_WRITE, node, &m, sizeof m.in + 4) == 0);
	CHECK(name_call(&g, FUSE_UNLINK, 1, "unlinked") == 0);
	usleep(100000); /* its descriptor to write by is closed */
	make_many(dir, SOME);
	CHECK(call(&g, FUSE_READ, node, &rd, sizeof rd) == 0 && g.reply_size == 4 && !memcmp(g.reply, "text", 4));
	CHECK(stop(&g) == 0);
}

static unsigned descriptors_of_root(void)
{
	char path[64];
	struct stat root, st;
	unsigned n = 0;

	CHECK(!stat(inside, &root));
	for (int fd = 0; fd < FEW; fd++)
		n += !stat((snprintf(path, sizeof path, "/proc/%d/fd/%d", g.server, fd), path), &st) &&
			st.st_ino == root.st_ino && st.st_dev == root.st_dev;
	return n;
}

/* The root stays open, whatever is used and not. */
static void test_root_stays(void)
{
	unsigned before;
	uint64_t dir;

	begin((struct server_how){.first = few_descriptors}, (struct fcvm_fuse_volume){.timeout_s = 1});
	dir = make_folder("root-stays");
	before = descriptors_of_root();
	CHECK(make_many(dir, SOME) == (has_handles(inside) ? SOME : (FEW - 64) / 4 * 3 - 2));
	CHECK(before > 0 && descriptors_of_root() == before);
	CHECK(stop(&g) == 0);
}

/* Who may know of no more makes no more: nothing is left of what was refused. */
static void test_refused_is_not_made(void)
{
	struct fuse_mkdir_in dir = {.mode = 0755};
	struct {
		struct fuse_create_in in;
		char name[8];
	} file = {.in = {.flags = O_RDWR | O_CREAT, .mode = 0644}, .name = "file-no"};
	char body[64], path[128];

	begin((struct server_how){.uid = 0}, (struct fcvm_fuse_volume){.timeout_s = 1, .max_nodes = 50});
	CHECK(make_many(1, 100) == 49);
	CHECK(access((snprintf(path, sizeof path, "%s/48", inside), path), F_OK) == 0);
	CHECK(access((snprintf(path, sizeof path, "%s/49", inside), path), F_OK) < 0);
	memcpy(body, &dir, sizeof dir);
	memcpy(body + sizeof dir, "dir-no", 7);
	CHECK(call(&g, FUSE_MKDIR, 1, body, sizeof dir + 7) == -ENFILE);
	CHECK(access((snprintf(path, sizeof path, "%s/dir-no", inside), path), F_OK) < 0);
	CHECK(call(&g, FUSE_CREATE, 1, &file, sizeof file) == -ENFILE);
	CHECK(access((snprintf(path, sizeof path, "%s/file-no", inside), path), F_OK) < 0);
	CHECK(call(&g, FUSE_SYMLINK, 1, "link-no\0there", 14) == -ENFILE);
	CHECK(access((snprintf(path, sizeof path, "%s/link-no", inside), path), F_OK) < 0);
	CHECK(stop(&g) == 0);
}

/* What a million of files that a guest knows of may cost, told by fewer. Who is not root holds each open. */
static void test_many(uid_t uid)
{
	struct rlimit limit;
	unsigned count = 10000;
	char name[16];
	size_t before, each;
	uint64_t dir;

	CHECK(!getrlimit(RLIMIT_NOFILE, &limit));
	if ((uid || !has_handles(inside)) && limit.rlim_max / 2 < count)
		count = (unsigned)limit.rlim_max / 2;
	begin((struct server_how){.uid = uid}, (struct fcvm_fuse_volume){.timeout_s = 1});
	dir = make_folder((snprintf(name, sizeof name, "many-%u", uid), name));
	before = memory_of(g.server);
	CHECK(make_many(dir, count) == count);
	each = (memory_of(g.server) - before) * 1024 / count;
	CHECK(each > 0 && each < BYTES_EACH);
	CHECK(name_call(&g, FUSE_LOOKUP, dir, "0") == 0);
	CHECK(stop(&g) == 0);
}

/* Where nothing can be shelved more are open than should be, as many as there may be descriptors. */
static void test_unshelved(void)
{
	struct server s = {.volume.max_nodes = 1000, .max_open = 200, .shelf = -1};
	struct stat st;
	unsigned known = 0;
	int fd = open(inside, O_PATH | O_CLOEXEC);

	CHECK(fd >= 0 && !fstat(fd, &st) && !nodes_init(&s, fd, &st));
	s.root_dev = st.st_dev;
	s.nodes.max_open = 64;
	while (known < 1000 && (fd = open(inside, O_PATH | O_CLOEXEC)) >= 0) {
		st.st_ino++;
		if (node_know(&s, fd, &st) < 0)
			break;
		known++;
	}
	CHECK(known == 199);
	nodes_done(&s);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	set_up();
	chmod(folder, 0755);
	chmod(inside, 0777);
	test_removed_but_open();
	test_root_stays();
	test_refused_is_not_made();
	test_unshelved();
	test_many(geteuid());
	if (!geteuid())
		test_many(12345);
	fcvm_tree_remove(AT_FDCWD, folder);
	CHECK_DONE();
}
