/* SPDX-License-Identifier: MIT */
/* What the tests of links share: an agent that is made by hand, in a thread of its own. */
#ifndef FCVM_TESTS_TEST_LINK_H
#define FCVM_TESTS_TEST_LINK_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fd.h"
#include "base/tree.h"
#include "check.h"
#include "node/node.h"
#include "node/reactor.h"
#include "wire/wire.h"

static struct fcvm_node *host;
static struct fcvm_err err;

struct fake {
	int fd;
	pthread_t thread;
	void (*behave)(struct fake *f);
	struct fcvm_buf in;
	struct fcvm_wire_header h; /* of the last frame taken */
	uint8_t payload[FCVM_WIRE_MAX_PAYLOAD];
	uint64_t generation;
	_Atomic bool late;
};

static inline bool put_raw(struct fake *f, const void *data, size_t size)
{
	struct fcvm_until until = fcvm_until_ms(5000, -1);

	return fcvm_fd_send_until(f->fd, data, size, &until) == 0;
}

static inline bool put(struct fake *f, unsigned type, unsigned channel, uint32_t stream,
	const void *payload, size_t size, uint32_t arg)
{
	uint8_t head[16];

	fcvm_wire_put_header(head, type, channel, stream, size, arg);
	return put_raw(f, head, sizeof head) && put_raw(f, payload, size);
}

/* The next frame into f->h and f->payload; false at the end, or after `ms`. */
static inline bool take(struct fake *f, int ms)
{
	struct fcvm_until until = fcvm_until_ms(ms, -1);

	for (;;) {
		struct pollfd p = {.fd = f->fd, .events = POLLIN};
		const uint8_t *payload;
		size_t skip;
		ssize_t n;
		int k = fcvm_wire_parse(f->in.data ? fcvm_buf_head(&f->in) : "", f->in.size, &f->h,
			&payload, &skip);

		if (k > 0) {
			if (f->h.length)
				memcpy(f->payload, payload, f->h.length);
			fcvm_buf_consume(&f->in, k);
			return true;
		}
		if (k < 0 || fcvm_until_poll(&until, &p, 1) < 0)
			return false;
		n = recv(f->fd, fcvm_buf_reserve(&f->in, 65536), 65536, 0);
		if (n <= 0)
			return false;
		fcvm_buf_grew(&f->in, n);
	}
}

static inline bool take_type(struct fake *f, unsigned type)
{
	while (take(f, 10000))
		if (f->h.type == type)
			return true;
	return false;
}

static inline void welcome(struct fake *f, uint32_t version)
{
	struct fcvm_wire_hello hello;

	if (!take_type(f, FCVM_WIRE_HELLO))
		return;
	memcpy(&hello, f->payload, sizeof hello);
	hello.version = version;
	hello.generation = f->generation;
	put(f, FCVM_WIRE_WELCOME, 0, 0, &hello, sizeof hello, 0);
}

static inline void *run_fake(void *arg)
{
	struct fake *f = arg;

	f->behave(f);
	return NULL;
}

/* A link to one that behaves so, or NULL. */
static inline struct fcvm_node *meet(struct fake *f, void (*behave)(struct fake *), int timeout_ms)
{
	struct fcvm_until until = fcvm_until_ms(timeout_ms, -1);
	struct fcvm_node *n = NULL;
	int p[2];

	CHECK(fcvm_fd_pair(p) == 0);
	memset(f, 0, sizeof *f);
	f->fd = p[1];
	f->behave = behave;
	f->generation = 7;
	pthread_create(&f->thread, NULL, run_fake, f);
	fcvm_node_agent(&n, host, p[0], "fake", 0, &until, &err);
	return n;
}

static inline void part(struct fake *f, struct fcvm_node *n)
{
	fcvm_node_unref(n);
	shutdown(f->fd, SHUT_RDWR);
	pthread_join(f->thread, NULL);
	close(f->fd);
	fcvm_buf_done(&f->in);
}

static inline void silent(struct fake *f)
{
	while (take(f, 10000))
		;
}

#endif
