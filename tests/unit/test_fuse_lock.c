/* SPDX-License-Identifier: MIT */
/* The volume's server: whose locks are whose, what they keep from whom, and how waiting for them ends. */
#include <sys/file.h>

#include "test_fuse_serve.h"

enum { MANY = 900 };

static struct guest g;
static uint64_t node;

static uint64_t open_file(int flags)
{
	struct fuse_open_in in = {.flags = (uint32_t)flags};

	CHECK(call(&g, FUSE_OPEN, node, &in, sizeof in) == 0);
	return opened(&g);
}

static int release(uint64_t fh)
{
	struct fuse_release_in in = {.fh = fh};

	return call(&g, FUSE_RELEASE, node, &in, sizeof in);
}

static int flush(uint64_t fh, uint64_t owner)
{
	struct fuse_flush_in in = {.fh = fh, .lock_owner = owner};

	return call(&g, FUSE_FLUSH, node, &in, sizeof in);
}

static struct fuse_lk_in lock_of(uint64_t fh, uint64_t owner, uint32_t type, uint64_t start, uint64_t end)
{
	return (struct fuse_lk_in){.fh = fh, .owner = owner, .lk = {.start = start, .end = end, .type = type, .pid = 7}};
}

static int set_lock(uint64_t fh, uint64_t owner, uint32_t type, uint64_t start, uint64_t end)
{
	struct fuse_lk_in in = lock_of(fh, owner, type, start, end);

	return call(&g, FUSE_SETLK, node, &in, sizeof in);
}

/* What a process of the host finds there: F_UNLCK, F_RDLCK, F_WRLCK. */
static int host_sees(short type, off_t start, off_t length)
{
	struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
	char path[128];
	int fd, r;

	snprintf(path, sizeof path, "%s/file", inside);
	fd = open(path, O_RDWR | O_CLOEXEC);
	r = fcntl(fd, F_OFD_GETLK, &l);
	close(fd);
	return r ? -errno : l.l_type;
}

static void begin(const char *name, bool two)
{
	how.two = two;
	start(&g, &(struct fcvm_fuse_volume){.timeout_s = 0});
	CHECK(init(&g) == 0);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, name) == 0);
	node = found(&g);
}

/* A process's locks go with the first of its descriptors that it closes, no other's do. */
static void test_owners(void)
{
	uint64_t a, b;

	begin("file", false);
	a = open_file(O_RDWR);
	b = open_file(O_RDWR);
	CHECK(set_lock(a, 1, F_WRLCK, 0, 9) == 0);
	CHECK(set_lock(b, 1, F_WRLCK, 10, 19) == 0);
	CHECK(set_lock(b, 2, F_WRLCK, 20, 29) == 0);
	CHECK(set_lock(b, 2, F_WRLCK, 0, 9) == -EAGAIN);
	CHECK(flush(a, 2) == 0);
	CHECK(host_sees(F_WRLCK, 20, 10) == F_UNLCK && host_sees(F_WRLCK, 0, 10) == F_WRLCK);
	CHECK(flush(b, 1) == 0);
	CHECK(host_sees(F_WRLCK, 0, 0) == F_UNLCK);
	/* No range at all, which fcntl(2) would take for one. */
	CHECK(set_lock(b, 1, F_WRLCK, 10, 4) == -EINVAL && set_lock(b, 1, F_WRLCK, 10, 9) == -EINVAL);
	CHECK(host_sees(F_WRLCK, 0, 0) == F_UNLCK);
	CHECK(stop(&g) == 0);
}

/*
 * F_OFD_SETLK in the guest: the owner is an open file, for which no FLUSH comes. Its locks go with its handle; a flush
 * by whoever closes a descriptor of it leaves them, and so does the end of another handle.
 */
static void test_open_file_owners(void)
{
	uint64_t a, b;

	begin("file", false);
	a = open_file(O_RDWR);
	b = open_file(O_RDWR);
	CHECK(set_lock(a, 100, F_WRLCK, 0, 9) == 0);
	CHECK(set_lock(b, 200, F_WRLCK, 10, 19) == 0);
	CHECK(flush(a, 1) == 0);
	CHECK(host_sees(F_WRLCK, 0, 10) == F_WRLCK);
	CHECK(release(a) == 0);
	CHECK(host_sees(F_WRLCK, 0, 10) == F_UNLCK);
	CHECK(host_sees(F_WRLCK, 10, 10) == F_WRLCK);
	CHECK(set_lock(b, 200, F_WRLCK, 0, 9) == 0);
	CHECK(release(b) == 0);
	CHECK(host_sees(F_WRLCK, 0, 0) == F_UNLCK);
	CHECK(stop(&g) == 0);
}

/* A host's program that runs: whoever has it open for writing would keep it from being run. */
static void test_running_program(void)
{
	char path[128], command[400];
	struct fuse_lk_in get;
	uint64_t fh;

	snprintf(path, sizeof path, "%s/program", inside);
	snprintf(command, sizeof command, "cp /bin/true %s", path);
	CHECK(system(command) == 0);
	begin("program", false);
	fh = open_file(O_RDONLY);
	CHECK(set_lock(fh, 1, F_RDLCK, 0, 9) == 0);
	get = lock_of(fh, 2, F_WRLCK, 0, 9);
	CHECK(call(&g, FUSE_GETLK, node, &get, sizeof get) == 0 && ((struct fuse_lk_out *)g.reply)->lk.type == F_RDLCK);
	CHECK(system(path) == 0);
	/* And the other way round. */
	snprintf(command, sizeof command, "cp /bin/sleep %s.run && %s.run 5 & sleep 0.2", path, path);
	CHECK(system(command) == 0);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "program.run") == 0);
	node = found(&g);
	fh = open_file(O_RDONLY);
	CHECK(set_lock(fh, 1, F_RDLCK, 0, 9) == 0);
	CHECK(stop(&g) == 0);
}

/* By the handle that it is asked through: reading takes one that reads, writing one that writes. */
static void test_modes(void)
{
	uint64_t wo, ro, rw;

	begin("file", false);
	wo = open_file(O_WRONLY);
	ro = open_file(O_RDONLY);
	rw = open_file(O_RDWR);
	CHECK(set_lock(wo, 1, F_RDLCK, 0, 9) == -EBADF);
	CHECK(set_lock(ro, 1, F_WRLCK, 0, 9) == -EBADF);
	CHECK(set_lock(1234567, 1, F_RDLCK, 0, 9) == -EBADF);
	CHECK(host_sees(F_WRLCK, 0, 0) == F_UNLCK);
	CHECK(set_lock(ro, 1, F_RDLCK, 0, 9) == 0);
	CHECK(host_sees(F_RDLCK, 0, 10) == F_UNLCK && host_sees(F_WRLCK, 0, 10) == F_RDLCK);
	/* The same owner's, now by one that writes: what it had stays. */
	CHECK(set_lock(wo, 1, F_WRLCK, 5, 19) == 0);
	CHECK(host_sees(F_RDLCK, 0, 5) == F_UNLCK && host_sees(F_WRLCK, 0, 5) == F_RDLCK && host_sees(F_RDLCK, 5, 1) == F_WRLCK);
	CHECK(set_lock(rw, 1, F_RDLCK, 0, 19) == 0);
	CHECK(host_sees(F_RDLCK, 0, 0) == F_UNLCK && host_sees(F_WRLCK, 19, 1) == F_RDLCK);
	CHECK(set_lock(ro, 1, F_UNLCK, 0, ~0ULL >> 1) == 0);
	CHECK(host_sees(F_WRLCK, 0, 0) == F_UNLCK);
	CHECK(stop(&g) == 0);
}

/* A user who may write a file, not read it, locks it for writing. */
static void test_write_only_file(void)
{
	char path[128];
	uint64_t fh;

	if (geteuid())
		return;
	chmod(folder, 0755);
	snprintf(path, sizeof path, "%s/write-only", inside);
	CHECK(fcvm_file_replace(AT_FDCWD, path, "text", 4, 0600, false) == 0 && !chmod(path, 0222));
	how.uid = 12345;
	begin("write-only", false);
	fh = open_file(O_WRONLY);
	CHECK(set_lock(fh, 1, F_WRLCK, 0, 9) == 0);
	CHECK(set_lock(fh, 2, F_WRLCK, 0, 9) == -EAGAIN);
	CHECK(set_lock(fh, 1, F_UNLCK, 0, 9) == 0);
	CHECK(set_lock(fh, 2, F_WRLCK, 0, 9) == 0);
	CHECK(stop(&g) == 0);
	how.uid = 0;
}

/* Open to write in the guest, and not to be opened so again: no lock, and nobody else has it. */
static void test_made_readonly(void)
{
	struct {
		struct fuse_create_in in;
		char name[16];
	} m = {.in = {.flags = O_RDWR | O_CREAT, .mode = 0444}, .name = "made-readonly"};
	uint64_t fh;

	if (geteuid())
		return;
	chmod(inside, 0777);
	how.uid = 12345;
	begin("file", false);
	CHECK(call(&g, FUSE_CREATE, 1, &m, sizeof m.in + strlen(m.name) + 1) == 0);
	node = found(&g);
	fh = ((struct fuse_open_out *)(g.reply + sizeof(struct fuse_entry_out)))->fh;
	CHECK(set_lock(fh, 1, F_WRLCK, 0, 9) == -ENOLCK);
	CHECK(set_lock(fh, 1, F_RDLCK, 0, 9) == 0);
	CHECK(stop(&g) == 0);
	how.uid = 0;
}

static void interrupt(int fd, uint64_t unique)
{
	struct fuse_interrupt_in in = {.unique = unique};
	char message[64];

	CHECK(fcvm_fd_write_full(fd, message, put(message, unique | 1, FUSE_INTERRUPT, 1, &in, sizeof in)) == 0);
}

/* By another reader's stream an INTERRUPT may overtake what it interrupts, as many as there are. */
static void test_interrupts_first(void)
{
	struct fuse_getattr_in attr = {.getattr_flags = 0};
	struct fuse_out_header h = {.unique = 0};
	struct fuse_lk_in in;
	char message[128];
	unsigned interrupted = 0;
	uint64_t fh;

	begin("file", true);
	fh = open_file(O_RDWR);
	CHECK(set_lock(fh, 1, F_WRLCK, 0, 9) == 0);
	for (unsigned i = 0; i < MANY; i++)
		interrupt(g.second, 10000 + 2 * i);
	/* Its reply says that those were taken. */
	CHECK(fcvm_fd_write_full(g.second, message, put(message, 4, FUSE_GETATTR, 1, &attr, sizeof attr)) == 0);
	CHECK(fcvm_fd_read_full(g.second, &h, sizeof h) == 0 && h.unique == 4);
	in = lock_of(fh, 2, F_WRLCK, 0, 9);
	for (unsigned i = 0; i < MANY; i++)
		CHECK(fcvm_fd_write_full(g.fd, message, put(message, 10000 + 2 * i, FUSE_SETLKW, node, &in, sizeof in)) == 0);
	CHECK(fcvm_fd_write_full(g.fd, message, put(message, 6, FUSE_GETATTR, 1, &attr, sizeof attr)) == 0);
	while (take_reply(&g, &h) && h.unique != 6)
		interrupted += h.error == -EINTR;
	CHECK(h.unique == 6 && interrupted == MANY);
	CHECK(stop(&g) == 0);
}

/* The guest reads no replies now: whoever is interrupted meanwhile hears of it when it does. */
static void test_interrupt_without_room(void)
{
	static char batch[1 << 16];
	struct fuse_read_in rd = {.size = 1 << 20};
	struct fuse_getattr_in attr = {.getattr_flags = 0};
	struct fuse_out_header h = {.unique = 0};
	struct fuse_lk_in in;
	size_t size = 0;
	char message[128];
	uint64_t fh, waiting = 5000, file;

	begin("file", true);
	fh = open_file(O_RDWR);
	file = node;
	CHECK(set_lock(fh, 1, F_WRLCK, 0, 9) == 0);
	in = lock_of(fh, 2, F_WRLCK, 0, 9);
	CHECK(fcvm_fd_write_full(g.fd, message, put(message, waiting, FUSE_SETLKW, node, &in, sizeof in)) == 0);
	CHECK(name_call(&g, FUSE_LOOKUP, 1, "big") == 0);
	node = found(&g);
	rd.fh = open_file(O_RDONLY);
	for (unsigned i = 0; i < 8; i++)
		size += put(batch + size, 7000 + i, FUSE_READ, node, &rd, sizeof rd);
	CHECK(fcvm_fd_write_full(g.fd, batch, size) == 0);
	usleep(200000);
	interrupt(g.second, waiting);
	CHECK(fcvm_fd_write_full(g.second, message, put(message, 4, FUSE_GETATTR, 1, &attr, sizeof attr)) == 0);
	CHECK(fcvm_fd_read_full(g.second, &h, sizeof h) == 0 && h.unique == 4);
	node = file;
	for (int found_it = 0; !found_it;) {
		struct pollfd p = {.fd = g.fd, .events = POLLIN};
		static char payload[1 << 20];

		if (poll(&p, 1, 3000) != 1 || fcvm_fd_read_full(g.fd, &h, sizeof h))
			break;
		if (fcvm_fd_read_full(g.fd, payload, (h.len - sizeof h + 7) & ~7UL))
			break;
		found_it = h.unique == waiting;
	}
	CHECK(h.unique == waiting && h.error == -EINTR);
	CHECK(stop(&g) == 0);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	set_up();
	test_owners();
	test_open_file_owners();
	test_running_program();
	test_modes();
	test_write_only_file();
	test_made_readonly();
	test_interrupts_first();
	test_interrupt_without_room();
	fcvm_tree_remove(AT_FDCWD, folder);
	CHECK_DONE();
}
