/* SPDX-License-Identifier: MIT */
/* The counters (counters.h). A clock reading for each message: one's end is the next one's beginning. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/until.h"
#include "fusepipe/host/server.h"
#include "fusepipe/validate.h"

static void add(_Atomic uint64_t *c, uint64_t n)
{
	atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + n, memory_order_relaxed);
}

static void set(_Atomic uint64_t *c, uint64_t n)
{
	atomic_store_explicit(c, n, memory_order_relaxed);
}

int count_open(struct server *s, int fd)
{
	const size_t size = sizeof *s->counters;
	void *p;

	if (fd >= 0 && ftruncate(fd, (off_t)size)) {
		int r = -errno;

		fcvm_close(fd);
		return r;
	}
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
	fcvm_close(fd);
	if (p == MAP_FAILED)
		return -errno;
	s->counters = p;
	s->counters->version = FCVM_FUSE_COUNTERS_VERSION;
	s->counters->magic = FCVM_FUSE_COUNTERS_MAGIC;
	return 0;
}

void count_done(struct server *s)
{
	if (!s->counters)
		return;
	count_state(s, FCVM_FUSE_STATE_ENDED);
	munmap(s->counters, sizeof *s->counters);
	s->counters = NULL;
}

void count_state(struct server *s, enum fcvm_fuse_counters_state state)
{
	set(&s->counters->state, state);
	set(&s->counters->files, s->nodes.used);
	set(&s->counters->handles, s->handles.used);
}

/* The reply to `unique` among what is in the buffer from `from` on, or NULL. */
static const struct fuse_out_header *reply_in(const struct stream *st, size_t from, uint64_t unique)
{
	while (from < st->out.end) {
		const struct fuse_out_header *h = (const void *)(st->out.data + from);

		if (h->unique == unique)
			return h;
		from += (h->len + 7) & ~7UL;
	}
	return NULL;
}

static void count(struct server *s, uint32_t opcode, uint64_t ns, const struct fuse_out_header *reply)
{
	struct fcvm_fuse_counters *c = s->counters;
	struct fcvm_fuse_operation *op = &c->ops[*fcvm_fuse_opcode_name(opcode) == '?' ? 0 : opcode];

	add(&op->count, 1);
	add(&op->time.bucket[fcvm_fuse_bucket(ns)], 1);
	if (ns > atomic_load_explicit(&op->max, memory_order_relaxed))
		set(&op->max, ns);
	if (!reply)
		return;
	if (reply->error)
		add(&op->errors, 1);
	else if (opcode == FUSE_READ)
		add(&c->bytes_read, reply->len - sizeof *reply);
	else if (opcode == FUSE_WRITE)
		add(&c->bytes_written, ((const struct fuse_write_out *)(reply + 1))->size);
}

void count_answer(struct server *s, struct stream *st, size_t from, const struct answered *a)
{
	const struct fuse_out_header *reply = st ? reply_in(st, from, a->unique) : NULL;

	s->now = fcvm_now_ns();
	if (!reply || !s->counters)
		return;
	count(s, a->opcode, (uint64_t)(s->now - a->began), reply);
	if (s->tracing)
		trace_answered(s, st, a->unique, a->opcode, a->fs);
}

void count_trace(struct server *s, uint32_t opcode, int64_t total, int64_t fs, int64_t to_srv, int64_t to_cli)
{
	struct fcvm_fuse_traced *t = &s->counters->traced[opcode];

	add(&t->count, 1);
	add(&t->total.bucket[fcvm_fuse_bucket((uint64_t)total)], 1);
	add(&t->fs.bucket[fcvm_fuse_bucket((uint64_t)fs)], 1);
	if (to_srv < 0)
		return;
	add(&t->to_srv.bucket[fcvm_fuse_bucket((uint64_t)to_srv)], 1);
	add(&t->to_cli.bucket[fcvm_fuse_bucket((uint64_t)to_cli)], 1);
}

/* What needs no serving: a message of the guest's pump, or by a handle that is lost. Anything else is session_take()'s. */
static int take(struct server *s, struct stream *st, const struct fuse_in_header *h, size_t size)
{
	bool begun = s->init_flags != 0;
	int r = 0;

	if (s->handles.lost && !fcvm_fuse_validate(h, size))
		r = handle_lost(s, h);
	if (r) {
		session_reply(s, h->unique, r < 0 ? r : 0, NULL, 0);
		return 0;
	}
	r = session_take(s, (void *)h, size);
	if (!begun && s->init_flags)
		memcpy(&s->init, h + 1, sizeof s->init);
	return r;
}

int count_take(struct server *s, struct stream *st, void *message, size_t size)
{
	const struct fuse_in_header *h = message;
	const uint32_t opcode = h->opcode;
	const uint64_t unique = h->unique;
	const bool wants_reply = fcvm_fuse_wants_reply(h);
	const struct fuse_out_header *reply;
	const size_t from = st->out.end;
	const int64_t began = s->now;
	int r;

	if (control_message(s, st, h))
		return 0;
	r = take(s, st, h, size);
	if (r)
		return r;
	reply = wants_reply ? reply_in(st, from, unique) : NULL;
	s->now = fcvm_now_ns();
	if (reply || !wants_reply)
		count(s, opcode, (uint64_t)(s->now - began), reply);
	if (reply && s->tracing)
		trace_answered(s, st, unique, opcode, s->now - began);
	return 0;
}
