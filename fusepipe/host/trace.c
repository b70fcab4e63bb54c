/* SPDX-License-Identifier: MIT */
/*
 * Requests whose way is measured (../control.h): two stamps of the guest's clock and two of ours, then two more of the
 * guest's. How far the clocks are apart is told by the request that was the least time under way, as NTP does; crystals
 * drift, so that one counts for less as it ages. Until a few have come it is not known, nor are the two ways.
 *
 * A line and the counters are all that comes of it. The guest may say what it likes: numbers that make no sense are none.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/until.h"
#include "fusepipe/host/server.h"
#include "fusepipe/validate.h"

enum {
	SLOTS = 256,         /* under way at a time; more push out the oldest */
	ENOUGH = 4,          /* of samples */
	DRIFT = 20000,       /* one in so many: 50 ppm */
	LINE = 160,
};

static const int64_t longest = 3600000000000LL;

struct traced {
	uint64_t unique; /* 0: free */
	uint64_t dequeued;
	int64_t read, replied; /* 0: not yet */
	int64_t fs;
	uint32_t opcode;
};

struct traces {
	struct traced slot[SLOTS];
	unsigned next, live;
	/* the guest's clock */
	unsigned samples;
	int64_t ahead; /* ours of theirs */
	int64_t delay, at; /* of the sample that says so, and when it was taken */
};

void trace_done(struct server *s)
{
	free(s->traces);
	s->traces = NULL;
}

void trace_forget(struct server *s)
{
	if (!s->traces)
		return;
	memset(s->traces->slot, 0, sizeof s->traces->slot);
	s->traces->samples = s->traces->live = 0;
	s->tracing = false;
}

static struct traced *find(struct server *s, uint64_t unique)
{
	struct traces *t = s->traces;

	for (unsigned i = 0; i < SLOTS; i++)
		if (t->slot[i].unique == unique)
			return &t->slot[i];
	return NULL;
}

static void begin(struct server *s, const struct fcvm_fuse_trace *in)
{
	struct traces *t = s->traces ? s->traces : calloc(1, sizeof *t);
	struct traced *slot;

	s->traces = t;
	if (!t || !in->unique)
		return;
	slot = &t->slot[t->next++ % SLOTS];
	t->live += !slot->unique;
	*slot = (struct traced){.unique = in->unique, .dequeued = in->dequeued, .read = s->turn_at};
	s->tracing = true;
}

void trace_answered(struct server *s, struct stream *st, uint64_t unique, uint32_t opcode, int64_t fs)
{
	struct traced *t = find(s, unique);

	if (!t || t->replied)
		return;
	t->fs = fs;
	t->opcode = opcode < FCVM_FUSE_OPCODES ? opcode : 0;
	t->replied = s->now;
	stream_control(st, FCVM_FUSE_TRACE_BACK, &unique, sizeof unique);
}

/* A difference that may be nonsense, but is one. */
static int64_t since(uint64_t from, uint64_t to)
{
	return (int64_t)(to - from);
}

static void set_clock(struct traces *c, const struct traced *t, const struct fcvm_fuse_trace *in)
{
	int64_t delay = since(t->dequeued, in->received) - (t->replied - t->read);
	int64_t to = since(t->dequeued, (uint64_t)t->read), from = since(in->received, (uint64_t)t->replied);

	if (delay < 0)
		return;
	if (!c->samples || delay <= c->delay + (t->replied - c->at) / DRIFT) {
		c->ahead = to / 2 + from / 2;
		c->delay = delay;
		c->at = t->replied;
	}
	c->samples += c->samples < ENOUGH;
}

static void put_line(int fd, const struct traced *t, int64_t total, int64_t to_srv, int64_t to_cli)
{
	char line[LINE], name[FCVM_FUSE_NAME], ways[2][24] = {"?", "?"};
	int n;

	if (to_srv >= 0) {
		snprintf(ways[0], sizeof ways[0], "%lld", (long long)to_srv / 1000);
		snprintf(ways[1], sizeof ways[1], "%lld", (long long)to_cli / 1000);
	}
	n = snprintf(line, sizeof line, "[TRACE %12s] total=%lldµs srv=%lldµs | fs=%lld | to_srv=%s to_cli=%s\n",
		fcvm_fuse_operation_name(t->opcode, name), (long long)total / 1000, (long long)(t->replied - t->read) / 1000,
		(long long)t->fs / 1000, ways[0], ways[1]);
	/* Nobody waits for a line: one that has no room is lost. */
	(void)!write(fd, line, (size_t)n);
}

static void end(struct server *s, const struct fcvm_fuse_trace *in)
{
	struct traces *c = s->traces;
	struct traced *slot = c && in->unique ? find(s, in->unique) : NULL;
	struct traced t;
	int64_t total, served, to_srv = -1, to_cli = -1;

	if (!slot || !slot->replied)
		return;
	t = *slot;
	slot->unique = 0;
	s->tracing = --c->live > 0;
	total = since(t.dequeued, in->delivered);
	served = t.replied - t.read;
	if (!in->received || since(t.dequeued, in->received) < 0 || total < served || total > longest)
		return;
	set_clock(c, &t, in);
	if (c->samples == ENOUGH) {
		to_srv = since(t.dequeued, (uint64_t)t.read - (uint64_t)c->ahead);
		to_srv = to_srv < 0 ? 0 : to_srv > total - served ? total - served : to_srv;
		to_cli = total - served - to_srv;
	}
	put_line(s->traces_fd, &t, total, to_srv, to_cli);
	count_trace(s, t.opcode, total, t.fs, to_srv, to_cli);
}

void trace_message(struct server *s, const struct fuse_in_header *h)
{
	const struct fcvm_fuse_trace *in = (const void *)(h + 1);

	/* How often is the guest's to say, whether at all is its host's. */
	if (s->traces_fd < 0 || h->len != sizeof *h + sizeof *in)
		return;
	if (h->opcode == FCVM_FUSE_TRACE)
		begin(s, in);
	else
		end(s, in);
}
