/* SPDX-License-Identifier: MIT */
/*
 * libFuzzer over a volume's server as it runs: its loop in a thread, one or two streams and its owner's socket in ours.
 * The input says what comes by them: bytes as they are, messages that mostly pass, what the halves tell each other, the
 * owner's commands; and whether the guest reads, obeys, and ends its streams. It may stop and go on from its saved
 * state.
 *
 * After each step the owner asks what is no command: what came before it has been taken when the reply is there.
 */
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "fuse.h"
#include "fusepipe/host/command.h"

enum {
	STREAMS = 2,
	BYTES = 1 << 21, /* of a stream, that are read at a time */
	SYNC = 1 << 30,  /* numbers of commands from here on are ours */
};

struct run {
	struct guest g;
	pthread_t server;
	struct fcvm_fuse_service service;
	int result;
	int owner, streams[STREAMS];
	unsigned nstreams;
	uint32_t number, saves;
	int state;
	bool ended, saved, reads, obeys;
};

/* In the sandbox's place: the process is not to be changed for good. */
int sandbox_enter(struct server *s, int *ret_root, struct fcvm_err *err)
{
	s->privileged = false;
	s->max_open = 16;
	s->data.max = 4;
	s->volume.max_nodes = 64;
	*ret_root = open(s->volume.folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return *ret_root < 0 ? -errno : 0;
}

int sandbox_confine(struct server *s, struct fcvm_err *err)
{
	return 0;
}

static void *serve(void *arg)
{
	struct run *run = arg;
	const struct fcvm_fuse_volume volume = {.folder = folder, .timeout_s = 1, .ready_fd = -1};
	struct fcvm_err err = FCVM_ERR_INIT;

	run->result = fcvm_fuse_serve_for(&volume, &run->service, &err);
	require(run->result == 0 || err.message[0]);
	return NULL;
}

static void server_begin(struct run *run, int state)
{
	int pair[2];

	require(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
	run->owner = pair[0];
	run->service = (struct fcvm_fuse_service){.control = pair[1], .counters = -1, .state = state,
		.traces = open("/dev/null", O_WRONLY | O_CLOEXEC)};
	run->ended = false;
	require(!pthread_create(&run->server, NULL, serve, run));
}

static void server_end(struct run *run)
{
	for (unsigned i = 0; i < STREAMS; i++)
		run->streams[i] = fcvm_close(run->streams[i]);
	run->owner = fcvm_close(run->owner);
	require(!pthread_join(run->server, NULL));
	require(run->result == 0 || run->result == -EBADMSG);
}

/* ---- the guest's side ---- */

static void send_bytes(struct run *run, unsigned i, const void *data, size_t size)
{
	(void)!send(run->streams[i], data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void send_message(struct run *run, unsigned i, const union message *m)
{
	send_bytes(run, i, m, padded(m->h.len));
}

static void obey(struct run *run, unsigned i, const struct fuse_out_header *h, const char *body)
{
	struct fcvm_fuse_trace t = {.dequeued = 1};
	union message m;

	if (h->error == FCVM_FUSE_PAUSE) {
		message_make(&m, FCVM_FUSE_PAUSED, 0, 0, NULL, 0);
	} else if (h->error == FCVM_FUSE_END) {
		message_make(&m, FCVM_FUSE_QUIET, 0, 0, NULL, 0);
	} else if (h->error == FCVM_FUSE_TRACE_BACK) {
		require(h->len == sizeof *h + sizeof t.unique);
		memcpy(&t.unique, body, sizeof t.unique);
		t.received = t.delivered = 1000000;
		message_make(&m, FCVM_FUSE_TRACED, 0, 0, &t, sizeof t);
	} else {
		return;
	}
	if (run->obeys)
		send_message(run, i, &m);
}

/* Whole replies from a stream: what is written at once is not always whole. */
static void hear_stream(struct run *run, unsigned i)
{
	static char rest[STREAMS][BYTES];
	static size_t had[STREAMS];
	ssize_t n;

	if (!run->reads || run->streams[i] < 0) {
		had[i] = run->streams[i] < 0 ? 0 : had[i];
		return;
	}
	while ((n = recv(run->streams[i], rest[i] + had[i], BYTES - had[i], MSG_DONTWAIT)) > 0) {
		const struct fuse_out_header *h = (const void *)rest[i];
		size_t at = 0;

		had[i] += (size_t)n;
		while (had[i] - at >= sizeof *h) {
			h = (const void *)(rest[i] + at);
			require(h->len >= sizeof *h && h->len <= FCVM_FUSE_MAX_MESSAGE);
			if (had[i] - at < padded(h->len))
				break;
			guest_hears(&run->g, h, (const char *)(h + 1));
			if (!h->unique)
				obey(run, i, h, (const char *)(h + 1));
			at += padded(h->len);
		}
		memmove(rest[i], rest[i] + at, had[i] - at);
		had[i] -= at;
	}
}

/* ---- the owner's ---- */

/* Has so many descriptors with it, all of which are the receiver's. */
static void command(struct run *run, struct fcvm_volume_request *q, const int *fds, unsigned n)
{
	union {
		struct cmsghdr h;
		char space[CMSG_SPACE(4 * sizeof(int))];
	} u = {.h = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(n * sizeof(int))}};
	struct iovec iov = {q, sizeof *q};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = n ? &u : NULL,
		.msg_controllen = n ? CMSG_SPACE(n * sizeof(int)) : 0};

	for (unsigned i = 0; i < n; i++)
		memcpy(CMSG_DATA(&u.h) + i * sizeof *fds, &fds[i], sizeof *fds);
	if (!q->number)
		q->number = ++run->number;
	(void)!sendmsg(run->owner, &m, MSG_NOSIGNAL);
}

static void hear_reply(struct run *run, const struct fcvm_volume_reply *r, ssize_t size)
{
	ssize_t text = size - (ssize_t)offsetof(struct fcvm_volume_reply, text);

	require(text > 0 && !r->text[text - 1]);
	require(r->result <= 0 && (r->result == 0) == !r->text[0]);
	if (r->number == run->saves && !r->result)
		run->saved = true;
}

/* All that was sent has been taken. */
static void sync_with(struct run *run)
{
	struct fcvm_volume_request q = {.command = 99, .number = SYNC + ++run->number};
	struct fcvm_volume_reply r;
	ssize_t n;

	if (run->ended)
		return;
	command(run, &q, NULL, 0);
	do {
		n = recv(run->owner, &r, sizeof r, 0);
		if (n <= 0)
			run->ended = true;
		else
			hear_reply(run, &r, n);
	} while (n > 0 && r.number != q.number);
	for (unsigned i = 0; i < STREAMS; i++)
		hear_stream(run, i);
}

static void attach(struct run *run, unsigned total)
{
	struct fcvm_volume_request q = {.command = FCVM_VOLUME_ATTACH, .total = total};
	int pair[2];

	for (unsigned i = 0; i < total; i++) {
		run->streams[i] = fcvm_close(run->streams[i]);
		hear_stream(run, i);
		require(!fcvm_fd_pair(pair));
		run->streams[i] = pair[0];
		q.number = 0;
		q.first = i;
		command(run, &q, &pair[1], 1);
		close(pair[1]);
	}
	run->nstreams = total;
}

static void save(struct run *run)
{
	struct fcvm_volume_request q = {.command = FCVM_VOLUME_SAVE};

	require(!ftruncate(run->state, 0) && lseek(run->state, 0, SEEK_SET) == 0);
	run->saved = false;
	command(run, &q, &run->state, 1);
	run->saves = q.number;
	sync_with(run);
}

/* Another server over the same folder, from what this one saved, as it is. */
static void go_on(struct run *run)
{
	save(run);
	if (!run->saved)
		return;
	server_end(run);
	require(lseek(run->state, 0, SEEK_SET) == 0);
	server_begin(run, fcntl(run->state, F_DUPFD_CLOEXEC, 0));
	attach(run, run->nstreams);
}

/* ---- the input ---- */

static void send_raw(struct run *run, unsigned i)
{
	uint8_t bytes[256];
	size_t n = byte(&run->g);

	for (size_t at = 0; at < n; at++)
		bytes[at] = byte(&run->g);
	send_bytes(run, i, bytes, n);
}

static void send_control(struct run *run, unsigned i)
{
	struct fcvm_fuse_trace t = {.unique = 8 + byte(&run->g), .dequeued = byte(&run->g), .received = byte(&run->g)};
	union message m;
	uint8_t how = byte(&run->g);

	message_make(&m, FCVM_FUSE_PAUSED + how % 5, how & 64, how & 32, &t, how & 16 ? byte(&run->g) % sizeof t : sizeof t);
	if (how % 5 < 2 && !(how & 16))
		m.h.len = sizeof m.h;
	send_message(run, i, &m);
}

static void send_command(struct run *run)
{
	struct fcvm_volume_request q = {.command = byte(&run->g) % 8, .total = byte(&run->g), .first = byte(&run->g) % 4};
	int fds[4];
	unsigned n = byte(&run->g) % 4;

	for (unsigned i = 0; i < n; i++)
		fds[i] = run->state;
	command(run, &q, fds, n);
}

static void pause_server(struct run *run)
{
	command(run, &(struct fcvm_volume_request){.command = FCVM_VOLUME_PAUSE}, NULL, 0);
	/* The guest's answers are on their way: it is asked twice, by PAUSE and END. */
	for (unsigned i = 0; i < 3; i++)
		sync_with(run);
}

static void step(struct run *run)
{
	uint8_t how = byte(&run->g);
	unsigned i = how / 16 % STREAMS;
	union message m;

	switch (how % 16) {
	case 0:
		send_raw(run, i);
		break;
	case 1:
		send_control(run, i);
		break;
	case 2:
		send_command(run);
		break;
	case 3:
		pause_server(run);
		break;
	case 4:
		command(run, &(struct fcvm_volume_request){.command = FCVM_VOLUME_RESUME}, NULL, 0);
		break;
	case 5:
		go_on(run);
		break;
	case 6:
		attach(run, 1 + i);
		break;
	case 7:
		run->streams[i] = fcvm_close(run->streams[i]);
		break;
	case 8:
		run->reads = !run->reads;
		break;
	case 9:
		run->obeys = !run->obeys;
		break;
	case 10:
		message_make(&m, FCVM_FUSE_TRACE, 0, 0,
			&(struct fcvm_fuse_trace){.unique = 8 + byte(&run->g) % 16, .dequeued = 1},
			sizeof(struct fcvm_fuse_trace));
		send_message(run, i, &m);
		break;
	default:
		guest_asks(&run->g, &m);
		send_message(run, i, &m);
	}
	sync_with(run);
}

/* The next descriptor that is free. */
static int next_fd(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	fcvm_close(fd);
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct run run = {.g = guest_of(data, size), .owner = -1, .streams = {-1, -1}, .reads = true, .obeys = true};
	uint8_t how = byte(&run.g);
	int first = next_fd();
	union message m;

	run.state = memfd_create("state", MFD_CLOEXEC);
	folder_make();
	server_begin(&run, -1);
	attach(&run, 1 + how % STREAMS);
	message_init(&m);
	if (how / STREAMS % 4)
		send_message(&run, 0, &m);
	sync_with(&run);
	while (run.g.at < run.g.end && !run.ended)
		step(&run);
	server_end(&run);
	fcvm_close(run.state);
	folder_remove();
	require(next_fd() == first);
	return 0;
}
