/* SPDX-License-Identifier: MIT */
/*
 * libFuzzer over the guest's half: one reader's turns, with packets in the device's place. The input says what the host
 * sends by the stream, whole or in pieces, and what the kernel gives. To the device go whole replies, to the host what the
 * kernel gave, in its order, and each PAUSE and END has at most one answer.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "fusepipe/abi.h"
#include "fusepipe/control.h"
#include "fusepipe/guest/reader.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct run {
	const uint8_t *at, *end;
	struct reader reader;
	int result;
	int host, kernel; /* our ends */
	uint64_t given, taken; /* requests by the kernel, and as many the host has seen */
	unsigned pauses, ends, paused, quiet;
};

static void require(bool so)
{
	if (!so)
		abort();
}

static uint8_t byte(struct run *run)
{
	return run->at < run->end ? *run->at++ : 0;
}

/* Not the pump's: this is one reader. */
static void turns(struct run *run)
{
	struct epoll_event e[8];
	int n;

	while (!run->result && (n = epoll_wait(run->reader.epoll, e, 8, 0)) > 0) {
		bool news = false;

		for (int i = 0; i < n && !run->result; i++) {
			uint32_t number = (uint32_t)(e[i].data.u64 >> 32);

			/* Room to write is no news. */
			news |= e[i].events != EPOLLOUT || number & READER_OFFERED;
			run->result = reader_turn(&run->reader, number & READER_OFFERED, (int)(uint32_t)e[i].data.u64, e[i].events);
		}
		if (!news)
			break;
	}
}

/* What has come out at either end. */
static void look(struct run *run)
{
	static _Alignas(8) char buffer[2 * FCVM_FUSE_MAX_MESSAGE];
	static size_t had;
	ssize_t n;

	while ((n = recv(run->kernel, buffer, sizeof buffer, MSG_DONTWAIT)) > 0) {
		const struct fuse_out_header *h = (const void *)buffer;

		require(n >= (ssize_t)sizeof *h && h->len == (uint32_t)n);
		require(h->unique || h->error < (int)FCVM_FUSE_PAUSE);
	}
	for (had = 0; (n = recv(run->host, buffer + had, sizeof buffer - had, MSG_DONTWAIT)) > 0;)
		had += (size_t)n;
	for (size_t at = 0; at < had;) {
		const struct fuse_in_header *h = (const void *)(buffer + at);

		require(had - at >= sizeof *h && h->len >= sizeof *h && h->len <= had - at);
		run->paused += h->opcode == FCVM_FUSE_PAUSED;
		run->quiet += h->opcode == FCVM_FUSE_QUIET;
		if (h->opcode < FCVM_FUSE_OPCODES)
			require(h->unique == ++run->taken);
		at += (h->len + 7) & ~7UL;
	}
	require(run->paused <= run->pauses && run->quiet <= run->ends && run->taken <= run->given);
}

/* ---- the host ---- */

static void host_sends(struct run *run, const void *data, size_t size)
{
	if (run->host >= 0)
		(void)!send(run->host, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void host_raw(struct run *run)
{
	uint8_t bytes[256];
	size_t n = byte(run);

	for (size_t i = 0; i < n; i++)
		bytes[i] = byte(run);
	/* They may be anything. */
	run->pauses += 1 << 20;
	run->ends += 1 << 20;
	host_sends(run, bytes, n);
}

static void host_message(struct run *run, int32_t error, uint64_t unique, size_t size)
{
	union {
		struct fuse_out_header h;
		char bytes[sizeof(struct fuse_out_header) + 256];
	} m = {.h = {.len = sizeof m.h + size, .error = error, .unique = unique}};

	memset(m.bytes + sizeof m.h, 0, sizeof m.bytes - sizeof m.h);
	if (size >= 8)
		m.bytes[sizeof m.h] = (char)byte(run);
	run->pauses += error == FCVM_FUSE_PAUSE && !unique;
	run->ends += error == FCVM_FUSE_END && !unique;
	host_sends(run, m.bytes, (m.h.len + 7) & ~7UL);
}

static void host_connects(struct run *run)
{
	int pair[2];

	require(!fcvm_fd_pair(pair));
	require(!reader_offer(&run->reader, pair[1]));
	turns(run);
	look(run);
	fcvm_close(run->host);
	run->host = pair[0];
}

/* ---- the kernel ---- */

static void kernel_gives(struct run *run)
{
	struct {
		struct fuse_in_header h;
		char body[256];
	} m = {.h = {.opcode = byte(run) % FCVM_FUSE_OPCODES, .unique = run->given + 1}};

	m.h.len = (uint32_t)(sizeof m.h + byte(run));
	if (send(run->kernel, &m, m.h.len, MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
		run->given++;
}

static void step(struct run *run)
{
	uint8_t how = byte(run);

	switch (how % 8) {
	case 0:
		host_raw(run);
		break;
	case 1:
	case 2:
		host_message(run, (int32_t)(FCVM_FUSE_PAUSE + how / 8 % 6), 0, how & 128 ? 8 : how & 64 ? byte(run) : 0);
		break;
	case 3:
		host_message(run, -(int32_t)(how / 8), 1 + byte(run), byte(run));
		break;
	case 4:
		host_connects(run);
		break;
	case 5:
		run->host = fcvm_close(run->host);
		break;
	default:
		kernel_gives(run);
	}
	if (how & 32)
		return;
	turns(run);
	look(run);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct run run = {.at = data, .end = data + size, .host = -1};
	uint8_t how = byte(&run);
	struct pump pump = {.stop = -1, .reconnects = how & 1, .trace_rate = how / 2 % 4};
	int device[2], epoll = epoll_create1(EPOLL_CLOEXEC);

	signal(SIGPIPE, SIG_IGN);
	require(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, device));
	run.kernel = device[0];
	require(!reader_init(&run.reader, &pump, 0, epoll, device[1]) && !reader_begin(&run.reader));
	host_connects(&run);
	while (run.at < run.end && !run.result)
		step(&run);
	turns(&run);
	look(&run);
	require(run.result <= 0);
	reader_trim(&run.reader);
	reader_done(&run.reader);
	fcvm_close(run.host);
	fcvm_close(run.kernel);
	fcvm_close(epoll);
	return 0;
}
