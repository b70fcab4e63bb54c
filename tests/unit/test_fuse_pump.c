/* SPDX-License-Identifier: MIT */
/*
 * The guest half's pump, between a device and a host that this test plays: a packet socket gives it requests and takes
 * replies one by one, as /dev/fuse does.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/until.h"
#include "check.h"
#include "fusepipe/abi.h"
#include "fusepipe/control.h"
#include "fusepipe/guest/guest.h"

enum { LONG = 300 * 1024 / 8 * 8, WAIT_MS = 10000 };

static struct {
	struct fcvm_fuse_pump config;
	pthread_t thread;
	int result;
	int kernel;  /* the other end of its device */
	int stream;
	int host;    /* the other end of its stream, or -1 */
	struct sockaddr_un address;
	socklen_t address_size;
	int end;     /* an eventfd: the agent's end */
} p;

static void *pump(void *arg)
{
	p.result = fcvm_fuse_pump(&p.config, NULL);
	return NULL;
}

static int listener(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t size = sizeof p.address;

	/* Any free abstract name. */
	p.address.sun_family = AF_UNIX;
	CHECK(bind(fd, (struct sockaddr *)&p.address, sizeof p.address.sun_family) == 0 && listen(fd, 4) == 0);
	CHECK(getsockname(fd, (struct sockaddr *)&p.address, &size) == 0);
	p.address_size = size;
	return fd;
}

/* port: its stream is there from the beginning, as a virtio port is. */
static void begin(bool port, unsigned patience_ms)
{
	int device[2], stream[2] = {-1, -1};

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, device) == 0);
	CHECK(setsockopt(device[1], SOL_SOCKET, SO_SNDBUF, &(int){1 << 20}, sizeof(int)) == 0);
	if (port)
		CHECK(fcvm_fd_pair(stream) == 0);
	p.kernel = device[1];
	p.host = stream[1];
	p.end = fcvm_fd_event();
	p.config = (struct fcvm_fuse_pump){.device = device[0], .readers = 1, .nstreams = port, .end_fd = p.end,
		.patience_ms = patience_ms};
	p.config.listeners[0] = listener();
	p.config.listeners[1] = -1;
	p.stream = stream[0];
	p.config.streams = &p.stream;
	CHECK(pthread_create(&p.thread, NULL, pump, NULL) == 0);
}

static int ended(void)
{
	pthread_join(p.thread, NULL);
	fcvm_close(p.kernel);
	fcvm_close(p.host);
	fcvm_close(p.end);
	return p.result;
}

static int end(void)
{
	fcvm_fd_write_full(p.end, &(uint64_t){1}, sizeof(uint64_t));
	return ended();
}

/* ---- the kernel ---- */

static void request(uint64_t unique, size_t size)
{
	static char message[LONG];
	struct fuse_in_header h = {.len = (uint32_t)size, .opcode = FUSE_GETATTR, .unique = unique};

	memset(message, (int)unique, sizeof message);
	memcpy(message, &h, sizeof h);
	CHECK(send(p.kernel, message, size, 0) == (ssize_t)size);
}

static bool replied(uint64_t unique, size_t size)
{
	static char message[LONG];
	struct pollfd fd = {.fd = p.kernel, .events = POLLIN};
	struct fuse_out_header h;

	if (poll(&fd, 1, WAIT_MS) != 1 || recv(p.kernel, message, sizeof message, 0) != (ssize_t)size)
		return false;
	memcpy(&h, message, sizeof h);
	return h.len == size && h.unique == unique && message[size - 1] == (char)unique;
}

/* ---- the host ---- */

static void greet(unsigned reader)
{
	struct fcvm_fuse_greeting g = FCVM_FUSE_GREETING_TO(reader);

	CHECK(fcvm_fd_write_full(p.host, &g, sizeof g) == 0);
}

static void order(int32_t code)
{
	struct fuse_out_header h = {.len = sizeof h, .error = code};

	CHECK(fcvm_fd_write_full(p.host, &h, sizeof h) == 0);
}

static bool reads(uint32_t opcode, uint64_t unique, size_t size)
{
	static char body[LONG];
	struct fuse_in_header h;
	struct pollfd fd = {.fd = p.host, .events = POLLIN};

	return poll(&fd, 1, WAIT_MS) == 1 && fcvm_fd_read_full(p.host, &h, sizeof h) == 0 && h.opcode == opcode &&
	       h.unique == unique && h.len == size && fcvm_fd_read_full(p.host, body, size - sizeof h) == 0;
}

static bool silent(int fd)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

	return poll(&poll_fd, 1, 100) == 0;
}

/* In pieces, as a virtio port gives it. */
static void reply(uint64_t unique, size_t size, size_t piece)
{
	static char message[LONG];
	struct fuse_out_header h = {.len = (uint32_t)size, .unique = unique};

	memset(message, (int)unique, sizeof message);
	memcpy(message, &h, sizeof h);
	for (size_t at = 0; at < size; at += piece) {
		size_t some = size - at < piece ? size - at : piece;

		CHECK(fcvm_fd_write_full(p.host, message + at, some) == 0);
	}
}

static void come_to_rest(void)
{
	order(FCVM_FUSE_PAUSE);
	CHECK(reads(FCVM_FUSE_PAUSED, 0, sizeof(struct fuse_in_header)));
	order(FCVM_FUSE_END);
	CHECK(reads(FCVM_FUSE_QUIET, 0, sizeof(struct fuse_in_header)));
}

static void call_on(void)
{
	p.host = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(connect(p.host, (struct sockaddr *)&p.address, p.address_size) == 0);
	greet(0);
}

/* ---- */

static void test_messages(void)
{
	begin(false, 0);
	call_on();
	request(1, 64);
	CHECK(reads(FUSE_GETATTR, 1, 64));
	reply(1, 24, 24);
	CHECK(replied(1, 24));
	/* Many at a time, all of them without a reply. */
	for (uint64_t i = 2; i < 40; i++)
		request(i, 64);
	for (uint64_t i = 2; i < 40; i++)
		CHECK(reads(FUSE_GETATTR, i, 64));
	for (uint64_t i = 2; i < 40; i++)
		reply(i, 24, 24);
	for (uint64_t i = 2; i < 40; i++)
		CHECK(replied(i, 24));
	request(40, 64);
	CHECK(reads(FUSE_GETATTR, 40, 64));
	reply(40, 132 * 1024, 4096);
	CHECK(replied(40, 132 * 1024));
	fcvm_fd_write_full(p.end, &(uint64_t){1}, sizeof(uint64_t));
	CHECK(reads(FCVM_FUSE_LEFT, 0, sizeof(struct fuse_in_header))); /* its last word */
	CHECK(ended() == -ECANCELED);
}

/* A port is the reader's from the start, also through a rest after which another host is at its other end. */
static void test_port(void)
{
	begin(true, 0);
	request(1, 64);
	CHECK(reads(FUSE_GETATTR, 1, 64)); /* before the host has said anything */
	greet(0);
	reply(1, 24, 24);
	CHECK(replied(1, 24));
	come_to_rest();
	request(2, 64);
	CHECK(silent(p.host));
	greet(0);
	CHECK(silent(p.host));
	order(FCVM_FUSE_RESUME);
	CHECK(reads(FUSE_GETATTR, 2, 64));
	reply(2, 24, 24);
	CHECK(replied(2, 24));
	greet(1); /* nobody's */
	CHECK(ended() == -EBADMSG);
}

/* At rest it may also be left for a connection: where a snapshot is restored there may be no port. */
static void test_port_left(void)
{
	int port;

	begin(true, 0);
	greet(0);
	come_to_rest();
	port = p.host;
	call_on();
	order(FCVM_FUSE_RESUME);
	request(1, 64);
	CHECK(reads(FUSE_GETATTR, 1, 64));
	CHECK(fcvm_fd_read_full(port, (char[1]){0}, 1) != 0); /* closed */
	fcvm_close(port);
	CHECK(end() == -ECANCELED);
}

static void test_patience(void)
{
	begin(false, 100);
	CHECK(ended() == -ETIMEDOUT); /* nobody has ever come */

	begin(false, 1500);
	call_on();
	come_to_rest();
	p.host = fcvm_close(p.host);
	call_on(); /* one who comes in time */
	order(FCVM_FUSE_RESUME);
	request(1, 64);
	CHECK(reads(FUSE_GETATTR, 1, 64));
	reply(1, 24, 24);
	CHECK(replied(1, 24));
	come_to_rest();
	p.host = fcvm_close(p.host);
	CHECK(ended() == -EPIPE); /* and nobody after that */

	begin(true, 0);
	p.host = fcvm_close(p.host);
	CHECK(ended() == -EPIPE); /* it was not at rest */
}

static unsigned count_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* Whatever it comes to, nothing stays open. */
static void test_refused(void)
{
	unsigned before = count_fds(), readers[] = {0, FCVM_FUSE_MAX_READERS + 1};

	for (unsigned i = 0; i < 2; i++) {
		int device[2], stream[2];
		struct fcvm_fuse_pump config = {.readers = readers[i], .streams = stream, .nstreams = 1, .end_fd = -1};

		CHECK(fcvm_fd_pair(device) == 0 && fcvm_fd_pair(stream) == 0);
		config.device = device[0];
		config.listeners[0] = config.listeners[1] = -1;
		CHECK(fcvm_fuse_pump(&config, NULL) == -EINVAL);
		fcvm_close(device[1]);
		fcvm_close(stream[1]);
	}
	CHECK(count_fds() == before);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	test_messages();
	test_port();
	test_port_left();
	test_patience();
	test_refused();
	CHECK_DONE();
}
