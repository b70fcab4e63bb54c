/* SPDX-License-Identifier: MIT */
/*
 * What a manifest says of volumes. The input chooses members and their values, of which most fit; what parses is in
 * bounds, and is the same when it is written and parsed again.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/store.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

struct input {
	const unsigned char *at, *end;
};

static void require(bool so)
{
	if (!so)
		abort();
}

static unsigned char byte(struct input *in)
{
	return in->at < in->end ? *in->at++ : 0;
}

static void put_value(FILE *f, struct input *in, const char *usual)
{
	static const char *const others[] = {"null", "-1", "0", "1", "31", "32", "256", "257", "1e9", "1e10", "-0.5",
		"4294967295", "4294967296", "9223372036854775807", "true", "\"\"", "\"/\"", "\"/a\\u0001\"", "\"a/..\"", "{}", "[[0,0,1]]",
		"[0,0]", "[4294967295,0,1]", "[4294967295,0,2]", "[0,0,4294967295,1.5,0,1]", "{\"0\":0,\"1\":0,\"2\":1}"};
	unsigned char how = byte(in);

	if (how < 192) {
		fputs(usual, f);
	} else if (how < 250) {
		fputs(others[how % (sizeof others / sizeof *others)], f);
	} else if (how < 253) {
		/* About as many as there may be. */
		fputc('[', f);
		for (unsigned i = 0, n = 1010 + byte(in) % 16; i < n; i++)
			fputs(i ? ",1" : "1", f);
		fputc(']', f);
	} else {
		fputc('"', f);
		for (unsigned n = byte(in); n; n--)
			fputc("/./aZ \\\"\x7f\xc3\xa9"[byte(in) % 11], f);
		fputc('"', f);
	}
}

static void put_volume(FILE *f, struct input *in, unsigned i)
{
	char number[16];
	const char *const members[][2] = {{"number", number}, {"host", "\"/srv\""}, {"guest", "\"/work\""},
		{"readonly", "true"}, {"devices", "false"}, {"locks", "\"guest\""}, {"readers", "2"}, {"timeout_s", "1.5"}, {"root", "false"},
		{"port", "true"}, {"uid_map", "[0,1000,1]"}, {"gid_map", "[]"}};

	snprintf(number, sizeof number, "%u", i);
	for (unsigned m = 0; m < sizeof members / sizeof *members; m++) {
		fprintf(f, "%c\"%s\":", m ? ',' : '{', members[m][0]);
		put_value(f, in, members[m][1]);
	}
	fputc('}', f);
}

static bool same_ids(const struct fcvm_manifest_ids *a, size_t na, const struct fcvm_manifest_ids *b, size_t nb)
{
	return na == nb && na <= FCVM_MANIFEST_IDS && (!na || !memcmp(a, b, na * sizeof *a));
}

/* v is in bounds, and again what it is once it was written. */
static void look_at(const struct fcvm_manifest_volume *v)
{
	struct fcvm_json *list = fcvm_json_array();
	struct fcvm_manifest_volume *again = NULL;
	size_t n = 0;

	require(v->number < FCVM_MANIFEST_VOLUMES && v->readers >= 1 && v->readers <= FCVM_MANIFEST_READERS);
	require(*v->host == '/' && *v->guest == '/' && v->timeout_s >= 0);
	require(!fcvm_json_append(list, fcvm_manifest_volume_json(v)));
	require(!fcvm_manifest_volumes_parse(list, &again, &n, NULL) && n == 1);
	require(again->number == v->number && again->readers == v->readers && !strcmp(again->host, v->host) &&
		!strcmp(again->guest, v->guest) && again->readonly == v->readonly && again->devices == v->devices &&
		again->local_locks == v->local_locks && again->root == v->root && again->port == v->port);
	require(same_ids(again->uids, again->nuids, v->uids, v->nuids));
	require(same_ids(again->gids, again->ngids, v->gids, v->ngids));
	fcvm_manifest_volume_done(again);
	free(again);
	fcvm_json_free(list);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
	struct input in = {data, data + size};
	struct fcvm_manifest_volume *v = NULL;
	struct fcvm_err err = FCVM_ERR_INIT;
	struct fcvm_json *list = NULL;
	char *text = NULL;
	size_t length, n = 0;
	FILE *f = open_memstream(&text, &length);
	int r;

	fputc('[', f);
	for (unsigned i = 0, volumes = byte(&in) % 36; i < volumes; i++) {
		if (i)
			fputc(',', f);
		put_volume(f, &in, i);
	}
	fputc(']', f);
	fclose(f);
	/* Not all text is UTF-8. */
	if (!fcvm_json_parse(text, length, &list, NULL)) {
		r = fcvm_manifest_volumes_parse(list, &v, &n, &err);
		require(r == 0 || (r == -22 && err.message[0] && !v && !n));
		for (size_t i = 0; i < n; i++) {
			look_at(&v[i]);
			fcvm_manifest_volume_done(&v[i]);
		}
		free(v);
		fcvm_json_free(list);
	}
	free(text);
	return 0;
}
