/* SPDX-License-Identifier: MIT */
/*
 * What a node must do, whatever is behind it: one suite, run over the local node, over an agent
 * (FCVM_AGENT names the binary, run on this host by --fd), over a served link to it, and over the
 * agent that is served at the Unix socket FCVM_NODE_SOCKET (a real guest), if that is set.
 */
#include "test_node.h"

/* ---- files ---- */

static void test_files(void)
{
	static const char data[] = "some\0bytes\n";
	struct fcvm_node_stat st;
	char *back = NULL, *big = calloc(1, 3000000), script[300];
	size_t size = 0;

	CHECK(ok(fcvm_node_write_file(node, at("f"), data, sizeof data, 0640, NULL, &err)));
	CHECK(ok(fcvm_node_stat(node, at("f"), NULL, &st, &err)));
	CHECK(st.size == sizeof data && S_ISREG(st.mode) && (st.mode & 07777) == 0640);
	CHECK(llabs((long long)(st.mtime_ns - fcvm_realtime_ns())) < 3600000000000ll);
	CHECK(ok(fcvm_node_read_file(node, at("f"), 100, NULL, &back, &size, &err)));
	CHECK(size == sizeof data && back && memcmp(back, data, size) == 0 && back[size] == 0);
	free(back);
	CHECK(fcvm_node_read_file(node, at("f"), 5, NULL, &back, &size, &err) == -EFBIG);
	CHECK(fcvm_node_read_file(node, at("none"), 5, NULL, &back, &size, &err) == -ENOENT);
	CHECK(strstr(err.message, "none") != NULL);
	CHECK(fcvm_node_read_file(node, folder, 5, NULL, &back, &size, &err) < 0);
	CHECK(ok(fcvm_node_write_file(node, at("empty"), NULL, 0, 0600, NULL, &err)));
	CHECK(ok(fcvm_node_read_file(node, at("empty"), 0, NULL, &back, &size, &err)) &&
		size == 0 && back && !*back);
	free(back);
	memcpy(big + 2999990, "end", 3);
	CHECK(ok(fcvm_node_write_file(node, at("big"), big, 3000000, 0600, NULL, &err)));
	CHECK(ok(fcvm_node_read_file(node, at("big"), 3000000, NULL, &back, &size, &err)));
	CHECK(size == 3000000 && back && memcmp(back, big, size) == 0);
	free(back);
	free(big);
	CHECK(fcvm_node_write_file(node, "/nonexistent/x", "a", 1, 0600, NULL, &err) == -ENOENT);
	CHECK(strstr(err.message, "/nonexistent/x") != NULL);
	/* A FIFO is never waited for; and why a transfer failed is told, not guessed. */
	snprintf(script, sizeof script, "mkfifo %s/fifo", folder);
	CHECK(status_of(script) == 0);
	CHECK(fcvm_node_read_file(node, at("fifo"), 5, NULL, &back, &size, &err) == -EINVAL);
	CHECK(fcvm_node_write_file(node, at("f/x"), "a", 1, 0600, NULL, &err) == -ENOTDIR);
	CHECK(fcvm_node_write_file(node, at("a"), "a", 1, 0600, NULL, &err) == 0 &&
		fcvm_node_remove(node, at("a"), NULL, &err) == 0);
	/* Symlinks are followed when read. */
	snprintf(script, sizeof script, "cd %s && mkdir -p s && ln -s s/l1 l2 && ln -s ../f s/l1",
		folder);
	CHECK(status_of(script) == 0);
	CHECK(ok(fcvm_node_read_file(node, "/proc/version", 4096, NULL, &back, &size, &err)) &&
		size > 10);
	free(back);
	CHECK(ok(fcvm_node_read_file(node, at("l2"), 100, NULL, &back, &size, &err)) &&
		size == sizeof data);
	free(back);
}

static void test_names(void)
{
	struct fcvm_node_stat st;

	CHECK(fcvm_node_mkdir(node, at("a/b/c"), 0755, false, false, NULL, &err) == -ENOENT);
	CHECK(ok(fcvm_node_mkdir(node, at("a/b/c"), 0755, true, false, NULL, &err)));
	CHECK(ok(fcvm_node_mkdir(node, at("a/b/c"), 0755, true, false, NULL, &err)));
	CHECK(fcvm_node_mkdir(node, at("a"), 0755, false, false, NULL, &err) == -EEXIST);
	CHECK(ok(fcvm_node_mkdir(node, at("open"), 0777, false, false, NULL, &err)));
	CHECK(ok(fcvm_node_stat(node, at("open"), NULL, &st, &err)) && S_ISDIR(st.mode) &&
		(st.mode & 0777) == 0777);
	CHECK(ok(fcvm_node_rename(node, at("a"), at("z"), NULL, &err)));
	CHECK(fcvm_node_stat(node, at("a"), NULL, &st, &err) == -ENOENT &&
		strstr(err.message, "/a"));
	CHECK(ok(fcvm_node_stat(node, at("z/b/c"), NULL, &st, &err)));
	CHECK(ok(fcvm_node_remove(node, at("z"), NULL, &err)));
	CHECK(ok(fcvm_node_remove(node, at("z"), NULL, &err)));
	CHECK(fcvm_node_stat(node, at("z"), NULL, &st, &err) == -ENOENT);
	CHECK(fcvm_node_rename(node, at("none"), at("z"), NULL, &err) == -ENOENT);
	CHECK(ok(fcvm_node_write_file(node, at("src"), "x", 1, 0600, NULL, &err)));
	switch (fcvm_node_reflink(node, at("src"), at("clone"), NULL, &err)) {
	case 0:
		CHECK(ok(fcvm_node_stat(node, at("clone"), NULL, &st, &err)) && st.size == 1);
		break;
	case -EOPNOTSUPP:
		CHECK(fcvm_node_stat(node, at("clone"), NULL, &st, &err) == -ENOENT);
		break;
	default:
		CHECK(!"reflink");
	}
}

static void set_mtime(const char *path, time_t t)
{
	struct timespec times[2] = {{.tv_sec = t}, {.tv_sec = t, .tv_nsec = 123456789}};

	utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW);
}

static void make_tree(const char *top)
{
	int fd;

	mkdir(top, 0755);
	mkdir(in(top, "sub"), 0750);
	CHECK(fcvm_file_replace(AT_FDCWD, in(top, "sub/file"), "content", 7, 0600, false) == 0);
	chmod(in(top, "sub/file"), 0751);
	set_mtime(in(top, "sub/file"), 1000000000);
	CHECK(symlink("sub/file", in(top, "link")) == 0 &&
		symlink("/nowhere", in(top, "dangling")) == 0);
	fd = open(in(top, "sparse"), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	CHECK(ftruncate(fd, 5ll << 30) == 0 && pwrite(fd, "abc", 3, (4ll << 30) + 12345) == 3);
	close(fd);
	set_mtime(top, 1200000000);
}

static void check_tree(const char *top)
{
	char text[100] = "";
	struct stat st;
	int fd;

	CHECK(lstat(in(top, "sub/file"), &st) == 0 && (st.st_mode & 07777) == 0751 &&
		st.st_size == 7);
	CHECK(st.st_mtim.tv_sec == 1000000000 && st.st_mtim.tv_nsec == 123456789);
	CHECK(lstat(in(top, "sub"), &st) == 0 && (st.st_mode & 07777) == 0750);
	CHECK(readlink(in(top, "link"), text, 99) == 8 && strcmp(text, "sub/file") == 0);
	CHECK(readlink(in(top, "dangling"), text, 99) == 8);
	CHECK(stat(in(top, "sparse"), &st) == 0 && st.st_size == 5ll << 30 && st.st_blocks < 1024);
	fd = open(in(top, "sparse"), O_RDONLY | O_CLOEXEC);
	CHECK(pread(fd, text, 5, (4ll << 30) + 12344) == 5 && memcmp(text, "\0abc", 5) == 0);
	close(fd);
}

static void test_tree(void)
{
	struct fcvm_until until = fcvm_until_ms(60000, -1);
	char tree[200], back[200];
	struct stat top;
	struct fcvm_node_stat st;

	snprintf(tree, sizeof tree, "%s/tree", host_folder);
	snprintf(back, sizeof back, "%s/back", host_folder);
	make_tree(tree);
	CHECK(ok(fcvm_node_copy(host, tree, node, at("new"), &until, &err))); /* gets the name */
	CHECK(ok(fcvm_node_stat(node, at("new/sub/file"), &until, &st, &err)));
	CHECK((st.mode & 07777) == 0751 && st.mtime_ns == 1000000000123456789ll);
	CHECK(ok(fcvm_node_stat(node, at("new/sparse"), &until, &st, &err)) &&
		st.size == 5ull << 30);
	CHECK(ok(fcvm_node_mkdir(node, at("into"), 0755, false, false, NULL, &err)));
	CHECK(ok(fcvm_node_copy(
		node, at("new"), node, at("into"), &until, &err))); /* goes into it */
	CHECK(ok(fcvm_node_copy(node, at("into/new"), host, back, &until, &err)));
	check_tree(back);
	CHECK(lstat(back, &top) == 0 && top.st_mtim.tv_sec == 1200000000);
	CHECK(ok(fcvm_node_copy(
		node, at("into/new/."), host, back, &until, &err))); /* its content, once more */
	check_tree(back);
	CHECK(ok(fcvm_node_copy(host, in(tree, "sub/file"), node, at("into/"), &until, &err)));
	CHECK(ok(fcvm_node_stat(node, at("into/file"), &until, &st, &err)) && st.size == 7);
	CHECK(fcvm_node_copy(host, in(tree, "none"), node, at("x"), &until, &err) == -ENOENT);
	CHECK(strstr(err.message, "none") != NULL);
	CHECK(fcvm_node_copy(node, at("none"), host, in(host_folder, "x"), &until, &err) ==
		-ENOENT);
	CHECK(fcvm_node_copy(host, tree, node, "/proc/none/x", &until, &err) < 0);
	CHECK(strstr(err.message, "/proc/none/x") != NULL);
	CHECK(fcvm_tree_remove(AT_FDCWD, tree) == 0 && fcvm_tree_remove(AT_FDCWD, back) == 0);
	CHECK(ok(fcvm_node_remove(node, at("new"), &until, &err)));
}

static void test_copy_speed(void)
{
	struct fcvm_until until = fcvm_until_ms(60000, -1);
	enum { SIZE = 128 * 1024 * 1024 };
	char *data = malloc(SIZE);
	int64_t start;

	memset(data, 'x', SIZE);
	CHECK(fcvm_file_replace(AT_FDCWD, in(host_folder, "speed"), data, SIZE, 0600, false) == 0);
	free(data);
	start = fcvm_now_ns();
	CHECK(ok(fcvm_node_copy(host, in(host_folder, "speed"), node, at("speed"), &until, &err)));
	printf("%s: files to it at %.0f MB/s", fcvm_node_name(node),
		SIZE / 1e6 / ((fcvm_now_ns() - start) / 1e9));
	start = fcvm_now_ns();
	CHECK(ok(fcvm_node_copy(node, at("speed"), host, in(host_folder, "speed"), &until, &err)));
	printf(", from it at %.0f MB/s\n", SIZE / 1e6 / ((fcvm_now_ns() - start) / 1e9));
	CHECK(ok(fcvm_node_remove(node, at("speed"), &until, &err)));
}

/* ---- sockets ---- */

/* Sends `size` bytes into one end while the other is read; then EOF. */
static bool pour(int from, int to, size_t size)
{
	struct fcvm_until until = fcvm_until_ms(30000, -1);
	static char chunk[65536], in_chunk[65536];
	size_t sent = 0, got = 0;
	bool good = true, end = false;

	if (size == 0)
		shutdown(from, SHUT_WR);
	while (!end) {
		struct pollfd f[2] = {{.fd = sent < size ? from : -1, .events = POLLOUT},
			{.fd = to, .events = POLLIN}};
		ssize_t n;

		if (fcvm_until_poll(&until, f, 2) < 0)
			return false;
		if (f[0].revents) {
			size_t step = size - sent < sizeof chunk ? size - sent : sizeof chunk;

			for (size_t i = 0; i < step; i++)
				chunk[i] = (sent + i) % 251;
			n = send(from, chunk, step, MSG_NOSIGNAL | MSG_DONTWAIT);
			sent += n > 0 ? n : 0;
			if (sent == size)
				shutdown(from, SHUT_WR);
		}
		n = f[1].revents ? recv(to, in_chunk, sizeof in_chunk, MSG_DONTWAIT) : -1;
		for (ssize_t i = 0; i < n; i++)
			good &= in_chunk[i] == (char)((got + i) % 251);
		got += n > 0 ? n : 0;
		end = f[1].revents && n == 0;
	}
	return good && got == size;
}

static void test_socket(const char *address)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1), now = fcvm_until_ms(0, -1);
	struct fcvm_listener *l;
	int a = -1, b = -1;

	CHECK(fcvm_node_connect(node, address, &until, &a, &err) < 0 &&
		strstr(err.message, address));
	if (!ok(fcvm_node_listen(node, address, &until, &l, &err))) {
		CHECK(!"listen");
		return;
	}
	CHECK(fcvm_listener_accept(l, &now, &b, &err) == -ETIMEDOUT);
	for (int i = 0; i < 3; i++) {
		CHECK(ok(fcvm_node_connect(node, address, &until, &a, &err)));
		CHECK(ok(fcvm_listener_accept(l, &until, &b, &err)));
		CHECK(pour(a, b, 3000000));
		CHECK(pour(b, a, i == 0 ? 0 : 3000000));
		close(a);
		close(b);
	}
	fcvm_listener_free(l);
	CHECK(fcvm_node_connect(node, address, &until, &a, &err) < 0);
}

static void test_sockets(void)
{
	char address[200];
	struct fcvm_node_stat st;
	int fd;

	snprintf(address, sizeof address, "unix:%s/sock", folder);
	test_socket(address);
	CHECK(fcvm_node_stat(node, at("sock"), NULL, &st, &err) == -ENOENT);
	snprintf(address, sizeof address, "tcp:127.0.0.1:%d", 20000 + getpid() % 10000);
	test_socket(address);
	CHECK(fcvm_node_connect(node, "nonsense", NULL, &fd, &err) == -EINVAL);
}

/* ---- the node itself ---- */

static void test_info(void)
{
	struct fcvm_node_info info;

	CHECK(ok(fcvm_node_info(node, NULL, &info, &err)));
	CHECK(info.memory_total > info.memory_available && info.memory_available > 0 &&
		info.processors > 0);
	CHECK(info.uptime_ns > 0 && info.realtime_ns > 0 && info.version[0] && info.hostname[0]);
	CHECK(fcvm_node_ping(node, NULL, &err) == (fcvm_node_is_local(node) ? -EOPNOTSUPP : 0));
}

/* What a node spawned and leased goes with it. */
static void test_lease(void)
{
	char script[300];
	const char *argv[] = {"sh", "-c", script, NULL};
	struct fcvm_process *p = NULL;
	struct fcvm_node *n = fresh(NULL);
	struct fcvm_node_stat st;

	if (!n)
		return;
	CHECK(ok(fcvm_node_mkdir(n, at("lease"), 0700, false, true, NULL, &err)));
	CHECK(ok(fcvm_node_write_file(n, at("lease/x"), "x", 1, 0600, NULL, &err)));
	/* Not what it has not made. */
	CHECK(ok(fcvm_node_mkdir(node, at("others"), 0700, false, false, NULL, &err)));
	CHECK(fcvm_node_mkdir(n, at("others"), 0700, true, true, NULL, &err) == -EEXIST);
	snprintf(script, sizeof script, "echo $$ > %s/pid2; exec sleep 100", folder);
	CHECK(ok(fcvm_node_spawn(n, &(struct fcvm_spawn){.argv = argv}, NULL, &p, &err)));
	snprintf(script, sizeof script, "test -s %s/pid2", folder);
	CHECK(soon(script, 5000));
	fcvm_process_free(p);
	fcvm_node_unref(n);
	snprintf(script, sizeof script, "! test -e %s/lease && ! kill -0 $(cat %s/pid2)", folder,
		folder);
	CHECK(soon(script, 5000));
	CHECK(fcvm_node_stat(node, at("lease"), NULL, &st, &err) == -ENOENT);
	CHECK(ok(fcvm_node_stat(node, at("others"), NULL, &st, &err)));
}

static void *kill_link(void *arg)
{
	usleep(200000);
	shutdown(*(int *)arg, SHUT_RDWR);
	return NULL;
}

static void test_death(void)
{
	static const char *const argv[] = {"sleep", "100", NULL};
	int carrier = -1, fd = -1;
	struct fcvm_node *n = fresh(&carrier);
	struct fcvm_listener *l = NULL;
	struct fcvm_output o;
	pthread_t t;
	char address[200], byte;
	int64_t start = fcvm_now_ns();

	if (!n || carrier < 0) {
		fcvm_node_unref(n);
		return;
	}
	snprintf(address, sizeof address, "unix:%s/sock2", folder);
	CHECK(ok(fcvm_node_listen(n, address, NULL, &l, &err)) &&
		ok(fcvm_node_connect(n, address, NULL, &fd, &err)));
	pthread_create(&t, NULL, kill_link, &carrier);
	CHECK(fcvm_node_exec(n, &(struct fcvm_spawn){.argv = argv}, NULL, 0, 100, NULL, &o, &err) ==
		-ECONNRESET);
	CHECK(fcvm_now_ns() - start < 1200000000ll);
	pthread_join(t, NULL);
	CHECK(fcvm_node_ping(n, NULL, &err) == -ECONNRESET && err.message[0]);
	CHECK(recv(fd, &byte, 1, 0) == 0);
	close(fd);
	close(carrier);
	fcvm_listener_free(l);
	fcvm_node_unref(n);
}

static void suite(const char *name)
{
	int64_t start = fcvm_now_ns();

	snprintf(folder, sizeof folder, "/tmp/fcvm-suite-%d-%s", (int)getpid(), name);
	fcvm_node_remove(node, folder, NULL, NULL);
	CHECK(ok(fcvm_node_mkdir(node, folder, 0777, false, true, NULL, &err)));
	test_info();
	test_spawn();
	test_input();
	test_user();
	test_tty();
	test_signal();
	test_timeout();
	test_channels();
	test_free();
	test_many();
	test_threads();
	test_files();
	test_names();
	test_tree();
	test_copy_speed();
	test_sockets();
	test_gigabyte();
	test_lease();
	test_death();
	printf("%s: suite %s took %.1f s\n", fcvm_node_name(node), name,
		(fcvm_now_ns() - start) / 1e9);
}

/* ---- the places ---- */

static struct fcvm_node *fresh_local(int *ret_carrier)
{
	struct fcvm_node *n = NULL;

	CHECK(ok(fcvm_node_local(&n, &err)));
	return n;
}

static struct fcvm_node *link_over(int fd, const char *name, int *ret_carrier)
{
	struct fcvm_until until = fcvm_until_ms(10000, -1);
	struct fcvm_node *n = NULL;

	if (ret_carrier)
		*ret_carrier = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	CHECK(ok(fcvm_node_agent(&n, host, fd, name, 0, &until, &err)));
	return n;
}

static struct fcvm_node *fresh_agent(int *ret_carrier)
{
	int p[2];
	pid_t pid;

	CHECK(fcvm_fd_pair(p) == 0);
	pid = fork();
	if (pid == 0) {
		char number[12];

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fcntl(p[1], F_SETFD, 0);
		snprintf(number, sizeof number, "%d", p[1]);
		execl(getenv("FCVM_AGENT"), "fcvm-agent", "--fd", number, NULL);
		_exit(127);
	}
	close(p[1]);
	return link_over(p[0], "agent", ret_carrier);
}

static char socket_address[200];

static struct fcvm_node *fresh_socket(int *ret_carrier)
{
	int fd = -1;

	CHECK(ok(fcvm_node_connect(host, socket_address, NULL, &fd, &err)));
	return fd < 0 ? NULL : link_over(fd, "served", ret_carrier);
}

static void suite_over(struct fcvm_node *(*make)(int *), const char *name)
{
	fresh = make;
	node = make(NULL);
	if (!node)
		return;
	suite(name);
	fcvm_node_unref(node);
	node = host;
}

/* A relay in front of an agent of this host. */
static void suite_relayed(void)
{
	struct fcvm_node *agent = fresh_agent(NULL);
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(un.sun_path, sizeof un.sun_path, "%s/agent", host_folder);
	snprintf(socket_address, sizeof socket_address, "unix:%s/agent", host_folder);
	CHECK(bind(fd, (struct sockaddr *)&un, sizeof un) == 0 && listen(fd, 64) == 0);
	CHECK(ok(fcvm_node_serve(agent, fd, &err)));
	suite_over(fresh_socket, "relay");
	CHECK(fcvm_node_ping(agent, NULL, &err) == 0);
	fcvm_node_unref(agent);
}

int main(void)
{
	const char *guest = getenv("FCVM_NODE_SOCKET"), *agent = getenv("FCVM_AGENT");

	if (!agent && !guest) {
		printf("skipped: FCVM_AGENT names no agent\n");
		return 77;
	}
	signal(SIGPIPE, SIG_IGN); /* of write(2) to a terminal's stand-in */
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!mkdtemp(host_folder) || fcvm_node_local(&host, &err) < 0)
		return 1;
	node = host;
	if (guest) {
		snprintf(socket_address, sizeof socket_address, "unix:%s", guest);
		gigabyte = 256 << 20;
		suite_over(fresh_socket, "guest");
	} else {
		suite_over(fresh_local, "local");
		suite_over(fresh_agent, "agent");
		suite_relayed();
	}
	fcvm_node_unref(host);
	fcvm_tree_remove(AT_FDCWD, host_folder);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	CHECK_DONE();
}
