/* SPDX-License-Identifier: MIT */
/* A volume's server by its handle: streams, standing still, going on elsewhere, its end. The guest is made by hand. */
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/until.h"
#include "fusepipe/host/volume.h"
#include "test_fuse_volume.h"

enum { TRACED = 7 }; /* the number of a volume whose host wants traces */

static char top[] = "/var/tmp/fcvm-fuse-volume-XXXXXX", folder[64], run[64], state[64];
static struct fcvm_node *local;
static struct fcvm_err err;
static int run_fd = -1;
static const char *program;

static const char *path_to(const char *name)
{
	static char paths[4][160];
	static unsigned i;

	i = (i + 1) % 4;
	snprintf(paths[i], sizeof paths[i], "%s/%s", folder, name);
	return paths[i];
}

static void write_file(const char *name, const char *text)
{
	CHECK(fcvm_file_replace(AT_FDCWD, path_to(name), text, strlen(text), 0600, false) == 0);
}

static struct fcvm_volume *start_with(unsigned number, const char *state_file, struct fcvm_fuse_volume serve)
{
	struct fcvm_volume_config config = {.serve = serve, .program = program, .name = "vm:/work", .dirfd = run_fd,
		.number = number, .state_file = state_file, .traces = number == TRACED};
	struct fcvm_until until = fcvm_until_ms(20000, -1);
	struct fcvm_volume *v = NULL;

	config.serve.folder = folder;
	err = (struct fcvm_err)FCVM_ERR_INIT;
	fcvm_volume_start(&v, local, &config, &until, &err);
	return v;
}

static struct fcvm_volume *start(unsigned number, const char *state_file)
{
	struct fcvm_volume *v = start_with(number, state_file, (struct fcvm_fuse_volume){.timeout_s = 1});

	CHECK(v != NULL);
	if (!v)
		fprintf(stderr, "%s\n", err.message);
	return v;
}

static int attach(struct fcvm_volume *v, struct guest *g)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	int host[READERS];

	make_streams(g, host);
	return fcvm_volume_attach(v, host, READERS, &until, &err);
}

static void hang_up(struct guest *g)
{
	for (unsigned i = 0; i < READERS; i++)
		g->fd[i] = fcvm_close(g->fd[i]);
}

/* A new server with a guest that has begun. */
static struct fcvm_volume *begin(struct guest *g, unsigned number)
{
	struct fcvm_volume *v = start(number, NULL);

	*g = (struct guest){.unique = 100};
	CHECK(v && attach(v, g) == 0 && greeted(g) && init(g) == 0);
	return v;
}

static int pause_it(struct fcvm_volume *v, struct guest *g)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	pthread_t thread;
	void *well;
	int r;

	pthread_create(&thread, NULL, go_quiet, g);
	r = fcvm_volume_pause(v, &until, &err);
	pthread_join(thread, &well);
	CHECK(well);
	return r;
}

/* Saves, ends the first server, and has another one go on with new streams of the same guest. */
static struct fcvm_volume *go_on_elsewhere(struct fcvm_volume *v, struct guest *g)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);

	unlink(state);
	CHECK(pause_it(v, g) == 0);
	CHECK(fcvm_volume_save(v, state, &until, &err) == 0);
	fcvm_volume_free(v);
	hang_up(g);
	v = start(1, state);
	CHECK(v && attach(v, g) == 0 && greeted(g));
	return v;
}

static bool ended(struct fcvm_volume *v)
{
	struct pollfd p = {.fd = fcvm_volume_exit_fd(v), .events = POLLIN};

	return poll(&p, 1, 5000) == 1;
}

static void test_attach(void)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	struct guest g, other = {.unique = 100};
	struct fcvm_volume *v = begin(&g, 0);
	int host[READERS];

	g.at = 1;
	CHECK(look_up(&g, 1, "file"));
	/* Not while it is in use; with what it has it goes on. */
	CHECK(attach(v, &other) == -EBUSY && strstr(err.message, "vm:/work") && strstr(err.message, "paused"));
	CHECK(!greeted(&other));
	hang_up(&other);
	CHECK(look_up(&g, 1, "file"));
	CHECK(fcvm_volume_attach(v, NULL, 0, &until, &err) == -EINVAL);
	/* Quiet: others take their place, as many as there were. */
	CHECK(pause_it(v, &g) == 0);
	make_streams(&other, host);
	CHECK(fcvm_volume_attach(v, host, 1, &until, &err) == -EINVAL);
	close(host[1]);
	hang_up(&other);
	CHECK(attach(v, &other) == 0 && greeted(&other));
	CHECK(!take_reply(&g, 0, 5000));
	hang_up(&g);
	CHECK(look_up(&other, 1, "file"));
	/* A guest's word that it is over is the end, though its device stays. */
	for (unsigned i = 0; i < READERS; i++)
		send_message(&other, i, 0, FCVM_FUSE_LEFT, 0, NULL, 0);
	CHECK(ended(v));
	hang_up(&other);
	fcvm_volume_free(v);
}

/* Whatever is in flight is answered before the guest is told that this was all. */
static void test_pause(void)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1), soon = fcvm_until_ms(200, -1);
	struct fuse_fsync_in sync = {.fh = 0};
	struct guest g;
	struct fcvm_volume *v = begin(&g, 0);
	uint64_t file = look_up(&g, 1, "file"), fh = open_node(&g, file, false, O_RDWR);

	sync.fh = fh;
	CHECK(file && fh);
	/* A guest that does not go quiet is told to go on, and can be asked again. */
	CHECK(fcvm_volume_pause(v, &soon, &err) == -ETIMEDOUT && strstr(err.message, "vm:/work"));
	CHECK(obeys(&g, FCVM_FUSE_PAUSE, FCVM_FUSE_PAUSED) && obeys(&g, FCVM_FUSE_RESUME, 0));
	for (uint64_t i = 0; i < 50; i++)
		send_message(&g, i % 2, 1000 + i, FUSE_FSYNC, file, &sync, sizeof sync);
	/* Answers to nothing. */
	send_message(&g, 0, 0, FCVM_FUSE_PAUSED, 0, NULL, 0);
	send_message(&g, 1, 0, FCVM_FUSE_QUIET, 0, NULL, 0);
	g.answers = 0;
	CHECK(pause_it(v, &g) == 0 && g.answers == 50);
	/* Quiet twice is quiet. */
	CHECK(fcvm_volume_pause(v, &until, &err) == 0);
	CHECK(fcvm_volume_resume(v, &until, &err) == 0 && obeys(&g, FCVM_FUSE_RESUME, 0));
	CHECK(read_node(&g, file, fh) == 0 && !memcmp(g.reply, "text", 4));
	/* Its streams end while it is quiet: it waits. */
	CHECK(pause_it(v, &g) == 0);
	hang_up(&g);
	CHECK(!kill(fcvm_volume_pid(v), 0));
	usleep(50000);
	CHECK(fcvm_volume_resume(v, &until, &err) == -ENOTCONN);
	CHECK(attach(v, &g) == 0 && greeted(&g));
	CHECK(read_node(&g, file, fh) == 0);
	fcvm_volume_free(v);
	hang_up(&g);
}

/* Saved before its kernel had sent a word: it is told to go on all the same. */
static void test_before_init(void)
{
	struct guest g = {.unique = 100};
	struct fcvm_volume *v = start(0, NULL);

	CHECK(v && attach(v, &g) == 0 && greeted(&g));
	v = go_on_elsewhere(v, &g);
	CHECK(init(&g) == 0 && look_up(&g, 1, "file"));
	fcvm_volume_free(v);
	hang_up(&g);
}

static void test_state(void)
{
	struct guest g;
	struct fcvm_volume *v;
	uint64_t file, dir, inner, gone, moved, unlinked, fh, dh, gh, uh;
	struct fuse_getattr_in attr = {.getattr_flags = 0};
	struct fuse_read_in rd = {.size = 4096};
	int held;

	write_file("file", "text");
	write_file("gone", "gone");
	write_file("moved", "moved");
	write_file("unlinked", "unlinked");
	mkdir(path_to("dir"), 0755);
	write_file("dir/inner", "inner");
	v = begin(&g, 0);
	file = look_up(&g, 1, "file");
	dir = look_up(&g, 1, "dir");
	inner = look_up(&g, dir, "inner");
	gone = look_up(&g, 1, "gone");
	moved = look_up(&g, 1, "moved");
	unlinked = look_up(&g, 1, "unlinked");
	fh = open_node(&g, file, false, O_RDWR);
	dh = open_node(&g, dir, true, O_RDONLY);
	gh = open_node(&g, gone, false, O_RDONLY);
	uh = open_node(&g, unlinked, false, O_RDONLY);
	CHECK(file && dir && inner && gone && moved && unlinked && fh && dh && gh && uh);
	/* Without a name, but somebody on this host has it open. */
	held = open(path_to("unlinked"), O_RDONLY | O_CLOEXEC);
	unlink(path_to("unlinked"));
	/* An id that was given back stays nobody's. */
	CHECK(release(&g, file, open_node(&g, file, false, O_RDONLY), false) == 0);
	v = go_on_elsewhere(v, &g);
	CHECK(look_up(&g, 1, "file") == file);
	CHECK(look_up(&g, dir, "inner") == inner);
	CHECK(call(&g, FUSE_GETATTR, moved, &attr, sizeof attr) == 0);
	CHECK(read_node(&g, file, fh) == 0 && !memcmp(g.reply, "text", 4));
	/* By its handle, which takes root and a file system that has them. */
	CHECK(read_node(&g, unlinked, uh) == (has_handles(folder) ? 0 : -ESTALE));
	rd.fh = dh;
	CHECK(call(&g, FUSE_READDIR, dir, &rd, sizeof rd) == 0 && memmem(g.reply, g.reply_size, "inner", 5));
	CHECK(open_node(&g, file, false, O_RDONLY) != fh);
	/* What is removed meanwhile is gone: ESTALE, and it can be closed. */
	CHECK(pause_it(v, &g) == 0);
	fcvm_volume_free(v);
	unlink(path_to("gone"));
	rename(path_to("moved"), path_to("dir/moved"));
	hang_up(&g);
	v = start(2, state);
	CHECK(v && attach(v, &g) == 0 && greeted(&g));
	CHECK(read_node(&g, gone, gh) == -ESTALE);
	attr = (struct fuse_getattr_in){.getattr_flags = FUSE_GETATTR_FH, .fh = gh};
	CHECK(call(&g, FUSE_GETATTR, gone, &attr, sizeof attr) == -ESTALE);
	CHECK(release(&g, gone, gh, false) == 0);
	CHECK(read_node(&g, gone, gh) == -EBADF);
	close(held);
	attr.getattr_flags = 0;
	CHECK(call(&g, FUSE_GETATTR, gone, &attr, sizeof attr) == -ESTALE);
	CHECK(look_up(&g, dir, "moved") == moved);
	CHECK(read_node(&g, file, fh) == 0);
	fcvm_volume_free(v);
	hang_up(&g);
}

/* What the guest knows of is what it was, whatever becomes of its path after the server went on. */
static void test_moved_later(void)
{
	struct fuse_getattr_in attr = {.getattr_flags = 0};
	struct {
		struct fuse_rename_in in;
		char names[16];
	} move = {.in = {.newdir = 1}, .names = "from\0to"};
	struct guest g;
	struct fcvm_volume *v;
	uint64_t inner;

	mkdir(path_to("from"), 0755);
	mkdir(path_to("from/inner"), 0755);
	write_file("from/inner/file", "text");
	v = begin(&g, 0);
	inner = look_up(&g, look_up(&g, 1, "from"), "inner");
	v = go_on_elsewhere(v, &g);
	CHECK(call(&g, FUSE_RENAME, 1, &move, sizeof move.in + 8) == 0);
	CHECK(call(&g, FUSE_GETATTR, inner, &attr, sizeof attr) == 0 && look_up(&g, inner, "file"));
	fcvm_volume_free(v);
	hang_up(&g);
}

/* A server that goes on from a state is itself saved and goes on: what nobody touched meanwhile is still there. */
static void test_saved_again(void)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	struct fuse_getattr_in attr = {.getattr_flags = 0};
	struct guest g;
	struct fcvm_volume *v;
	uint64_t file, inner;

	write_file("file", "text");
	mkdir(path_to("dir"), 0755);
	write_file("dir/inner", "inner");
	v = begin(&g, 0);
	file = look_up(&g, 1, "file");
	inner = look_up(&g, look_up(&g, 1, "dir"), "inner");
	CHECK(file && inner);
	v = go_on_elsewhere(v, &g);
	unlink(state);
	CHECK(pause_it(v, &g) == 0 && fcvm_volume_save(v, state, &until, &err) == 0);
	CHECK(fcvm_volume_resume(v, &until, &err) == 0 && obeys(&g, FCVM_FUSE_RESUME, 0));
	CHECK(call(&g, FUSE_GETATTR, file, &attr, sizeof attr) == 0);
	v = go_on_elsewhere(v, &g);
	CHECK(call(&g, FUSE_GETATTR, inner, &attr, sizeof attr) == 0);
	fcvm_volume_free(v);
	hang_up(&g);
}

/* A guest that opens nothing goes on without a word, by another server that has it that way. */
static void test_unopened(void)
{
	const struct fcvm_fuse_volume serve = {.timeout_s = 1, .local_locks = true};
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	struct guest g = {.unique = 100};
	struct fcvm_volume *v = start_with(0, NULL, serve);
	uint64_t file, gone;

	write_file("file", "text");
	write_file("gone", "gone");
	CHECK(v && attach(v, &g) == 0 && greeted(&g) && init(&g) == 0);
	file = look_up(&g, 1, "file");
	gone = look_up(&g, 1, "gone");
	CHECK(read_node(&g, file, 0) == 0 && read_node(&g, gone, 0) == 0);
	unlink(state);
	CHECK(pause_it(v, &g) == 0 && fcvm_volume_save(v, state, &until, &err) == 0);
	/* The one that was saved, too, should it go on. */
	CHECK(fcvm_volume_resume(v, &until, &err) == 0 && obeys(&g, FCVM_FUSE_RESUME, 0));
	CHECK(read_node(&g, file, 0) == 0 && !memcmp(g.reply, "text", 4));
	fcvm_volume_free(v);
	hang_up(&g);
	unlink(path_to("gone"));
	v = start_with(1, state, serve);
	CHECK(v && attach(v, &g) == 0 && greeted(&g));
	CHECK(read_node(&g, file, 0) == 0 && !memcmp(g.reply, "text", 4));
	CHECK(read_node(&g, gone, 0) == -ESTALE);
	fcvm_volume_free(v);
	hang_up(&g);
	/* One that counts on being told of openings cannot take this guest over. */
	CHECK(!start_with(2, state, (struct fcvm_fuse_volume){.timeout_s = 1}));
}

/* So does one that has a file open to write, though no user's server could open it again. */
static void test_unopened_readonly(void)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	struct guest g = {.unique = 100};
	struct fcvm_volume *v = start_with(0, NULL, (struct fcvm_fuse_volume){.timeout_s = 1, .local_locks = true});
	struct {
		struct fuse_create_in in;
		char name[16];
	} made = {.in = {.flags = O_WRONLY | O_CREAT, .mode = 0444}, .name = "readonly"};
	struct {
		struct fuse_write_in in;
		char data[8];
	} write = {.in = {.size = 4}, .data = "text"};
	uint64_t node;

	CHECK(v && attach(v, &g) == 0 && greeted(&g) && init(&g) == 0);
	CHECK(call(&g, FUSE_CREATE, 1, &made, sizeof made.in + sizeof "readonly") == 0);
	node = ((struct fuse_entry_out *)g.reply)->nodeid;
	CHECK(call(&g, FUSE_WRITE, node, &write, sizeof write.in + 4) == 0);
	unlink(state);
	CHECK(pause_it(v, &g) == 0 && fcvm_volume_save(v, state, &until, &err) == 0);
	CHECK(fcvm_volume_resume(v, &until, &err) == 0 && obeys(&g, FCVM_FUSE_RESUME, 0));
	CHECK(call(&g, FUSE_WRITE, node, &write, sizeof write.in + 4) == 0);
	fcvm_volume_free(v);
	hang_up(&g);
}

/* Locks are held on, those that wait get theirs from the server that goes on. */
static void test_locks(void)
{
	struct guest g;
	struct fcvm_volume *v = begin(&g, 0);
	uint64_t file = look_up(&g, 1, "file"), fh = open_node(&g, file, false, O_RDWR), other = open_node(&g, file, false, O_RDWR);
	struct fuse_lk_in lk = lock_of(other, 2, F_WRLCK, 0, 9), fl = lock_of(other, 9, F_WRLCK, 0, ~0ULL >> 1);
	struct flock mine = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 5, .l_len = 1};
	int fd = open(path_to("file"), O_RDWR | O_CLOEXEC);
	struct fcvm_until until = fcvm_until_ms(10000, -1);

	/* 0-9 and 20-29, of which 5-6 is given back and 7-8 is for reading only. */
	CHECK(set_lock(&g, file, lock_of(fh, 1, F_WRLCK, 0, 29)) == 0);
	CHECK(set_lock(&g, file, lock_of(fh, 1, F_UNLCK, 10, 19)) == 0);
	CHECK(set_lock(&g, file, lock_of(fh, 1, F_UNLCK, 5, 6)) == 0);
	CHECK(set_lock(&g, file, lock_of(fh, 1, F_RDLCK, 7, 8)) == 0);
	fl.fh = fh;
	fl.lk_flags = FUSE_LK_FLOCK;
	CHECK(call(&g, FUSE_SETLK, file, &fl, sizeof fl) == 0);
	send_message(&g, 1, 5000, FUSE_SETLKW, file, &lk, sizeof lk);
	CHECK(!take_reply(&g, 1, 100) || !g.h.unique);
	v = go_on_elsewhere(v, &g);
	CHECK(flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK);
	CHECK(fcntl(fd, F_OFD_SETLK, &mine) == 0);
	mine = (struct flock){.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 7, .l_len = 2};
	CHECK(fcntl(fd, F_OFD_SETLK, &mine) == 0);
	for (unsigned i = 0; i < 30; i++) {
		mine = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = i, .l_len = 1};
		CHECK(!fcntl(fd, F_OFD_GETLK, &mine));
		CHECK((mine.l_type == F_UNLCK) == (i == 5 || i == 6 || (i >= 10 && i < 20)));
	}
	mine = (struct flock){.l_type = F_UNLCK, .l_whence = SEEK_SET};
	CHECK(fcntl(fd, F_OFD_SETLK, &mine) == 0);
	/* Still waiting; the owner's unlock lets it in. */
	CHECK(!take_reply(&g, 1, 100) || !g.h.unique);
	CHECK(set_lock(&g, file, lock_of(fh, 1, F_UNLCK, 0, ~0ULL >> 1)) == 0);
	do
		CHECK(take_reply(&g, 1, 5000));
	while (!g.h.unique);
	CHECK(g.h.unique == 5000 && g.h.error == 0);
	/* Somebody else has it when it goes on: lost, said so in the log, and the handle stays. */
	CHECK(pause_it(v, &g) == 0);
	unlink(state);
	CHECK(fcvm_volume_save(v, state, &until, &err) == 0);
	fcvm_volume_free(v);
	hang_up(&g);
	CHECK(flock(fd, LOCK_EX | LOCK_NB) == 0);
	mine = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET};
	CHECK(fcntl(fd, F_OFD_SETLK, &mine) == 0);
	v = start(3, state);
	CHECK(v && attach(v, &g) == 0 && greeted(&g));
	CHECK(read_node(&g, file, fh) == 0);
	/* But what the guest takes for its own is saved again, for one that finds it free. */
	CHECK(pause_it(v, &g) == 0);
	unlink(state);
	CHECK(fcvm_volume_save(v, state, &until, &err) == 0);
	fcvm_volume_free(v);
	{
		char *text = NULL;

		CHECK(fcvm_file_read(run_fd, "volume-3.log", 65536, &text, NULL) == 0 && strstr(text, "flock: somebody else") &&
			strstr(text, "POSIX lock: somebody else"));
		free(text);
	}
	hang_up(&g);
	close(fd);
	fd = open(path_to("file"), O_RDWR | O_CLOEXEC);
	v = start(1, state);
	CHECK(v && attach(v, &g) == 0 && greeted(&g));
	CHECK(flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK);
	for (unsigned i = 0; i < 30; i++) {
		mine = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = i, .l_len = 1};
		CHECK(!fcntl(fd, F_OFD_GETLK, &mine) && (mine.l_type == F_UNLCK) == (i >= 10));
	}
	fcvm_volume_free(v);
	hang_up(&g);
	close(fd);
}

/* Torn, changed, of another format: refused with words. */
static void test_bad_state(void)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	struct guest g;
	struct fcvm_volume *v = begin(&g, 0);
	char *data = NULL;
	size_t size = 0;

	CHECK(look_up(&g, 1, "file"));
	CHECK(fcvm_volume_save(v, state, &until, &err) == -EEXIST);
	unlink(state);
	CHECK(fcvm_volume_save(v, state, &until, &err) == -EBUSY && strstr(err.message, "not quiet") && access(state, F_OK));
	CHECK(pause_it(v, &g) == 0 && fcvm_volume_save(v, state, &until, &err) == 0);
	fcvm_volume_free(v);
	hang_up(&g);
	CHECK(fcvm_file_read(AT_FDCWD, state, 1 << 20, &data, &size) == 0 && size > 200);
	for (unsigned i = 0; i < 4; i++) {
		size_t less = i == 0 ? size / 2 : i == 1 ? 0 : size, at = i == 2 ? size - 20 : 8;

		data[at] ^= i >= 2;
		CHECK(fcvm_file_replace(AT_FDCWD, state, data, less, 0600, false) == 0);
		data[at] ^= i >= 2;
		v = start_with(1, state, (struct fcvm_fuse_volume){.timeout_s = 1});
		CHECK(!v && err.code == (i == 3 ? EPROTO : EBADMSG) && strstr(err.message, "vm:/work") &&
			strstr(err.message, i == 3 ? "format" : "damaged"));
	}
	/* Other options than those that the guest has agreed on. */
	{
		static const struct fcvm_fuse_ids ids = {.guest = 0, .host = 0, .count = 10};

		CHECK(fcvm_file_replace(AT_FDCWD, state, data, size, 0600, false) == 0);
		v = start_with(1, state, (struct fcvm_fuse_volume){.uids = &ids, .nuids = 1, .timeout_s = 1});
		CHECK(!v && err.code == EPROTO && strstr(err.message, "options"));
		CHECK((v = start(1, state)) != NULL);
		fcvm_volume_free(v);
	}
	free(data);
}

static void test_death(void)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	struct guest g;
	struct fcvm_volume *v = begin(&g, 0);
	struct fcvm_volume_config config = {.serve = {.folder = "/nonexistent/folder"}, .program = program, .name = "vm:/none",
		.dirfd = run_fd, .number = 4};

	kill(fcvm_volume_pid(v), SIGKILL);
	CHECK(ended(v));
	CHECK(!take_reply(&g, 0, 1000));
	CHECK(fcvm_volume_pause(v, &until, &err) == -EPIPE && strstr(err.message, "killed by signal 9"));
	fcvm_volume_free(v);
	hang_up(&g);
	v = NULL;
	CHECK(fcvm_volume_start(&v, local, &config, &until, &err) == -ENOENT && !v && strstr(err.message, "/nonexistent/folder"));
	config.program = "/nonexistent/fcvm-volume";
	CHECK(fcvm_volume_start(&v, local, &config, &until, &err) == -ENOENT && strstr(err.message, "fcvm-volume"));
	/* A guest that breaks the protocol: the end of the volume, and its log says why. */
	v = begin(&g, 5);
	CHECK(fcvm_fd_write_full(g.fd[0], "this is no message, is it", 24) == 0);
	CHECK(ended(v));
	CHECK(fcvm_volume_pause(v, &until, &err) == -EPIPE && strstr(err.message, "no FUSE message"));
	fcvm_volume_free(v);
	hang_up(&g);
}

/* ---- counters and traces ---- */

static const struct fcvm_json *counted(const struct fcvm_json *j, const char *kind, const char *op)
{
	return fcvm_json_get(fcvm_json_get(j, kind), op);
}

static void test_counters(void)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	struct guest g;
	struct fcvm_volume *v = begin(&g, 6);
	struct fcvm_json *j = NULL;
	uint64_t file = look_up(&g, 1, "file"), fh = open_node(&g, file, false, O_RDWR);
	struct {
		struct fuse_write_in in;
		char data[8];
	} write = {.in = {.fh = fh, .size = 5}, .data = "12345"};
	struct fuse_fsync_in sync = {.fh = fh};
	const struct fcvm_json *op;
	int64_t in_histogram = 0;

	for (unsigned i = 0; i < 20; i++)
		CHECK(read_node(&g, file, fh) == 0);
	CHECK(!look_up(&g, 1, "no such file"));
	CHECK(call(&g, FUSE_WRITE, file, &write, sizeof write.in + 5) == 0);
	CHECK(call(&g, FUSE_FSYNC, file, &sync, sizeof sync) == 0);
	CHECK(call(&g, 4000, file, NULL, 0) == -ENOSYS);
	/* The last of them is counted after its reply. */
	CHECK(pause_it(v, &g) == 0);
	CHECK(fcvm_volume_counters(run_fd, 6, &j, &err) == 0);
	op = counted(j, "ops", "read");
	CHECK(fcvm_json_int(op, "count", 0) == 20 && fcvm_json_int(op, "errors", -1) == 0);
	for (size_t i = 0; i < 40; i++) {
		char *text = fcvm_json_print(fcvm_json_at(fcvm_json_get(op, "histogram_ns"), i), 0);

		in_histogram += text ? atoi(text) : 0;
		free(text);
	}
	CHECK(in_histogram == 20);
	CHECK(fcvm_json_int(op, "p99_us", -1) >= fcvm_json_int(op, "p50_us", -1) && fcvm_json_int(op, "p50_us", -1) >= 0);
	CHECK(fcvm_json_int(op, "max_us", -1) >= 0);
	op = counted(j, "ops", "lookup");
	CHECK(fcvm_json_int(op, "count", 0) == 2 && fcvm_json_int(op, "errors", 0) == 1);
	CHECK(fcvm_json_int(counted(j, "ops", "fsync"), "count", 0) == 1);
	CHECK(fcvm_json_int(counted(j, "ops", "other"), "errors", 0) == 1);
	CHECK(fcvm_json_int(j, "bytes_read", 0) == 80 && fcvm_json_int(j, "bytes_written", 0) == 5);
	CHECK(fcvm_json_int(j, "files", 0) == 2 && fcvm_json_int(j, "handles", 0) == 1);
	CHECK(!strcmp(fcvm_json_string(j, "state", ""), "quiet"));
	fcvm_json_free(j);
	CHECK(fcvm_volume_resume(v, &until, &err) == 0);
	CHECK(obeys(&g, FCVM_FUSE_RESUME, 0) && read_node(&g, file, fh) == 0);
	fcvm_volume_free(v);
	hang_up(&g);
	CHECK(fcvm_volume_counters(run_fd, 6, &j, &err) == 0 && !strcmp(fcvm_json_string(j, "state", ""), "ended"));
	CHECK(fcvm_json_int(counted(j, "ops", "read"), "count", 0) == 21);
	fcvm_json_free(j);
	CHECK(fcvm_volume_counters(run_fd, 99, &j, &err) == -ENOENT);
	CHECK(fcvm_file_replace(run_fd, "volume-98.counters", "text", 4, 0600, false) == 0);
	CHECK(fcvm_volume_counters(run_fd, 98, &j, &err) == -EPROTO);
	write_file("file", "text");
}

/* A traced read by a guest whose clock is `skew` ahead of this host's; the reply is read after `late` ns. */
static bool trace_read(struct guest *g, uint64_t file, uint64_t fh, int64_t skew, int64_t late)
{
	struct fcvm_fuse_trace t = {.unique = g->unique + 2, .dequeued = (uint64_t)(fcvm_now_ns() + skew)};

	send_message(g, 0, 0, FCVM_FUSE_TRACE, 0, &t, sizeof t);
	if (read_node(g, file, fh))
		return false;
	if (late)
		usleep((unsigned)(late / 1000));
	t.received = (uint64_t)(fcvm_now_ns() + skew);
	t.delivered = t.received + 1000;
	if (!take_reply(g, 0, 5000) || g->h.unique || g->h.error != FCVM_FUSE_TRACE_BACK || memcmp(g->reply, &t.unique, 8))
		return false;
	send_message(g, 0, 0, FCVM_FUSE_TRACED, 0, &t, sizeof t);
	return true;
}

static void test_traces(void)
{
	struct guest g;
	struct fcvm_volume *v = begin(&g, TRACED);
	uint64_t file = look_up(&g, 1, "file"), fh = open_node(&g, file, false, O_RDWR);
	struct fcvm_fuse_trace lie = {.unique = ~0ULL, .dequeued = ~0ULL, .received = 1ULL << 63, .delivered = 3};
	struct fuse_fsync_in sync = {.fh = fh};
	const char *line;
	struct fcvm_json *j = NULL;
	char *text = NULL;
	unsigned lines = 0, unknown = 0;

	for (unsigned i = 0; i < 20; i++)
		CHECK(trace_read(&g, file, fh, 123456789012345, i < 10 ? 0 : 50000000));
	/* Nonsense is none: of what was never asked, and of what was. */
	send_message(&g, 0, 0, FCVM_FUSE_TRACED, 0, &lie, sizeof lie);
	send_message(&g, 0, 0, FCVM_FUSE_TRACE, 0, &lie, 8);
	lie.unique = g.unique + 2;
	send_message(&g, 0, 0, FCVM_FUSE_TRACE, 0, &lie, sizeof lie);
	CHECK(call(&g, FUSE_FSYNC, file, &sync, sizeof sync) == 0);
	CHECK(take_reply(&g, 0, 5000) && g.h.error == FCVM_FUSE_TRACE_BACK);
	send_message(&g, 0, 0, FCVM_FUSE_TRACED, 0, &lie, sizeof lie);
	CHECK(read_node(&g, file, fh) == 0);
	fcvm_volume_free(v);
	hang_up(&g);
	CHECK(fcvm_file_read(run_fd, "volume-7.trace", 1 << 20, &text, NULL) == 0);
	for (line = text; line && *line; line = strchr(line, '\n') + 1, lines++) {
		long total, srv, fs, to_srv, to_cli;

		CHECK(!strncmp(line, "[TRACE         read] total=", 27));
		if (strstr(line, "to_srv=?") && strstr(line, "to_srv=?") < strchr(line, '\n')) {
			unknown++;
			continue;
		}
		CHECK(sscanf(line, "[TRACE read] total=%ldµs srv=%ldµs | fs=%ld | to_srv=%ld to_cli=%ld", &total, &srv, &fs,
			&to_srv, &to_cli) == 5);
		/* The way that was slow is known, though the clocks are days apart and the machine may be busy. */
		CHECK(lines < 10 || (to_cli > to_srv && total >= 50000));
		CHECK(srv >= fs && labs(total - srv - to_srv - to_cli) < 5);
	}
	CHECK(lines == 20 && unknown == 3);
	free(text);
	CHECK(fcvm_volume_counters(run_fd, 7, &j, &err) == 0);
	CHECK(fcvm_json_int(counted(j, "trace", "read"), "count", 0) == 20 && !counted(j, "trace", "fsync"));
	CHECK(fcvm_json_int(fcvm_json_get(counted(j, "trace", "read"), "total"), "p99_us", 0) >= 15000);
	CHECK(fcvm_json_int(fcvm_json_get(counted(j, "trace", "read"), "to_cli"), "p99_us", 0) >= 15000);
	CHECK(fcvm_json_int(fcvm_json_get(counted(j, "trace", "read"), "to_srv"), "p50_us", -1) < 20000);
	fcvm_json_free(j);
}

/* Where the host wants none a guest's traces are nothing, and cost nothing. */
static void test_untraced(void)
{
	struct guest g;
	struct fcvm_volume *v = begin(&g, 8);
	uint64_t file = look_up(&g, 1, "file"), fh = open_node(&g, file, false, O_RDWR);
	struct fcvm_fuse_trace t = {.unique = g.unique + 2, .dequeued = 1, .received = 2, .delivered = 3};
	struct fcvm_json *j = NULL;
	char *text = NULL;

	send_message(&g, 0, 0, FCVM_FUSE_TRACE, 0, &t, sizeof t);
	CHECK(read_node(&g, file, fh) == 0);
	CHECK(!take_reply(&g, 0, 50));
	send_message(&g, 0, 0, FCVM_FUSE_TRACED, 0, &t, sizeof t);
	CHECK(read_node(&g, file, fh) == 0);
	fcvm_volume_free(v);
	hang_up(&g);
	CHECK(fcvm_file_read(run_fd, "volume-8.trace", 1 << 20, &text, NULL) == 0 && !*text);
	free(text);
	CHECK(fcvm_volume_counters(run_fd, 8, &j, &err) == 0 && !counted(j, "trace", "read"));
	fcvm_json_free(j);
}

static void set_up(void)
{
	static char beside[256];
	const char *libexec = getenv("FCVM_LIBEXEC");

	snprintf(beside, sizeof beside, "%s/fcvm-volume", libexec ? libexec : "build");
	program = beside;
	if (!mkdtemp(top))
		exit(1);
	snprintf(folder, sizeof folder, "%s/folder", top);
	snprintf(run, sizeof run, "%s/run", top);
	snprintf(state, sizeof state, "%s/state", top);
	mkdir(folder, 0755);
	mkdir(run, 0755);
	run_fd = open(run, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	write_file("file", "text");
	if (fcvm_node_local(&local, &err))
		exit(1);
}

static void tear_down(void)
{
	fcvm_node_unref(local);
	close(run_fd);
	fcvm_tree_remove(AT_FDCWD, top);
}

/* By a server of one who is not root, which finds files by their paths. In this program anew: it has threads. */
static void (*const as_user[])(void) = {test_state, test_saved_again, test_moved_later, test_unopened_readonly};

static void run_as_user(unsigned i)
{
	char number[12];
	int status = -1;
	pid_t child;

	snprintf(number, sizeof number, "%u", i);
	child = fork();
	if (!child) {
		execl("/proc/self/exe", "test_fuse_volume", number, NULL);
		_exit(2);
	}
	waitpid(child, &status, 0);
	CHECK(status == 0);
}

static int be_user(unsigned i)
{
	if (!geteuid() && (setgroups(0, NULL) || setgid(12345) || setuid(12345)))
		return 3;
	set_up();
	as_user[i]();
	tear_down();
	return check_failed != 0;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 2)
		return be_user((unsigned)atoi(argv[1]) % (sizeof as_user / sizeof *as_user));
	set_up();
	test_attach();
	test_pause();
	test_before_init();
	test_state();
	test_saved_again();
	test_moved_later();
	test_unopened();
	test_locks();
	test_bad_state();
	test_death();
	test_counters();
	test_traces();
	test_untraced();
	tear_down();
	for (unsigned i = 0; i < sizeof as_user / sizeof *as_user; i++)
		run_as_user(i);
	CHECK_DONE();
}
