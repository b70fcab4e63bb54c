/* SPDX-License-Identifier: MIT */
/* What a server counted, as JSON, out of its file (../counters.h), which may be of another version, torn or of anybody. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/fd.h"
#include "fusepipe/abi.h"
#include "fusepipe/counters.h"
#include "fusepipe/host/volume.h"
#include "fusepipe/validate.h"

enum { OCTAVES = FCVM_FUSE_BUCKETS / 4, ROOM = sizeof(struct fcvm_fuse_counters) };

/* The time that `percent` of them did not exceed, in microseconds. */
static int64_t percentile(const struct fcvm_fuse_histogram *h, unsigned percent)
{
	uint64_t all = 0, seen = 0;
	unsigned i;

	for (i = 0; i < FCVM_FUSE_BUCKETS; i++)
		all += h->bucket[i];
	for (i = 0; i < FCVM_FUSE_BUCKETS - 1; i++) {
		seen += h->bucket[i];
		if (seen && seen >= all - all / 100 * (100 - percent) - all % 100 * (100 - percent) / 100)
			break;
	}
	return all ? (int64_t)((fcvm_fuse_bucket_ns(i) + 500) / 1000) : 0;
}

static int set_percentiles(struct fcvm_json *o, const struct fcvm_fuse_histogram *h)
{
	int r = fcvm_json_set_int(o, "p50_us", percentile(h, 50));

	return r ? r : fcvm_json_set_int(o, "p99_us", percentile(h, 99));
}

/* By octaves: the i-th counts those of 2^i to 2^(i+1) ns. */
static struct fcvm_json *octaves(const struct fcvm_fuse_histogram *h)
{
	struct fcvm_json *array = fcvm_json_array();
	int r = array ? 0 : -ENOMEM;

	for (unsigned i = 0; i < OCTAVES && !r; i++) {
		uint64_t n = 0;

		for (unsigned k = 0; k < 4; k++)
			n += h->bucket[4 * i + k];
		r = fcvm_json_append_int(array, (int64_t)n);
	}
	if (!r)
		return array;
	fcvm_json_free(array);
	return NULL;
}

static struct fcvm_json *operation(const struct fcvm_fuse_operation *op)
{
	struct fcvm_json *o = fcvm_json_object();
	int r = o ? fcvm_json_set_int(o, "count", (int64_t)op->count) : -ENOMEM;

	if (!r)
		r = fcvm_json_set_int(o, "errors", (int64_t)op->errors);
	if (!r)
		r = set_percentiles(o, &op->time);
	if (!r)
		r = fcvm_json_set_int(o, "max_us", (int64_t)((op->max + 500) / 1000));
	if (!r)
		r = fcvm_json_set(o, "histogram_ns", octaves(&op->time));
	if (!r)
		return o;
	fcvm_json_free(o);
	return NULL;
}

static int set_stage(struct fcvm_json *to, const char *name, const struct fcvm_fuse_histogram *h)
{
	struct fcvm_json *o = fcvm_json_object();
	int r = o ? set_percentiles(o, h) : -ENOMEM;

	if (!r)
		return fcvm_json_set(to, name, o);
	fcvm_json_free(o);
	return r;
}

static struct fcvm_json *traced(const struct fcvm_fuse_traced *t)
{
	struct fcvm_json *o = fcvm_json_object();
	int r = o ? fcvm_json_set_int(o, "count", (int64_t)t->count) : -ENOMEM;

	if (!r)
		r = set_stage(o, "total", &t->total);
	if (!r)
		r = set_stage(o, "to_srv", &t->to_srv);
	if (!r)
		r = set_stage(o, "fs", &t->fs);
	if (!r)
		r = set_stage(o, "to_cli", &t->to_cli);
	if (!r)
		return o;
	fcvm_json_free(o);
	return NULL;
}

/* "read", "other". */
static const char *name_of(unsigned opcode, char to[static FCVM_FUSE_NAME])
{
	return *fcvm_fuse_operation_name(opcode, to) == '?' ? "other" : to;
}

static int set_all(struct fcvm_json *o, const struct fcvm_fuse_counters *c)
{
	struct fcvm_json *ops = fcvm_json_object(), *trace = fcvm_json_object();
	char name[FCVM_FUSE_NAME];
	int r = ops && trace ? 0 : -ENOMEM;

	for (unsigned i = 0; i < FCVM_FUSE_COUNTED && !r; i++)
		if (c->ops[i].count)
			r = fcvm_json_set(ops, name_of(i, name), operation(&c->ops[i]));
	for (unsigned i = 0; i < FCVM_FUSE_COUNTED && !r; i++)
		if (c->traced[i].count)
			r = fcvm_json_set(trace, name_of(i, name), traced(&c->traced[i]));
	if (!r)
		r = fcvm_json_set(o, "ops", fcvm_steal_ptr(ops));
	if (!r)
		r = fcvm_json_set(o, "trace", fcvm_steal_ptr(trace));
	fcvm_json_free(ops);
	fcvm_json_free(trace);
	return r;
}

static int make(const struct fcvm_fuse_counters *c, struct fcvm_json **ret)
{
	static const char *const states[] = {"waiting", "running", "quiet", "ended"};
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *o = fcvm_json_object();
	int r = o ? fcvm_json_set_string(o, "state", c->state < 4 ? states[c->state] : "unknown") : -ENOMEM;

	if (!r)
		r = set_all(o, c);
	if (!r)
		r = fcvm_json_set_int(o, "bytes_read", (int64_t)c->bytes_read);
	if (!r)
		r = fcvm_json_set_int(o, "bytes_written", (int64_t)c->bytes_written);
	if (!r)
		r = fcvm_json_set_int(o, "files", (int64_t)c->files);
	if (!r)
		r = fcvm_json_set_int(o, "handles", (int64_t)c->handles);
	if (!r)
		*ret = fcvm_steal_ptr(o);
	return r;
}

int fcvm_volume_counters(int dirfd, unsigned number, struct fcvm_json **ret, struct fcvm_err *err)
{
	_cleanup_free_ char *data = NULL;
	const struct fcvm_fuse_counters *c;
	char name[32];
	size_t size;
	int r;

	snprintf(name, sizeof name, "volume-%u.counters", number);
	r = fcvm_file_read(dirfd, name, ROOM + 4096, &data, &size);
	if (r)
		return fcvm_fail_errno(err, r, "read %s", name);
	c = (const void *)data;
	if (size != sizeof *c || c->magic != FCVM_FUSE_COUNTERS_MAGIC || c->version != FCVM_FUSE_COUNTERS_VERSION)
		return fcvm_fail(err, -EPROTO, "%s: not the counters of a volume of this fcvm", name);
	r = make(c, ret);
	return r ? fcvm_fail_errno(err, r, "%s", name) : 0;
}
