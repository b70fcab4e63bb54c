/* SPDX-License-Identifier: MIT */
/*
 * fcvm-volume - serves one host folder to a guest. Started by a volume's handle (volume.c), whose command line and
 * descriptors these are; not for people. Its stderr is a log, its stdout takes the lines of traces.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "fusepipe/host/host.h"

static struct fcvm_fuse_ids uids[FCVM_FUSE_MAX_IDS], gids[FCVM_FUSE_MAX_IDS];

static int usage(void)
{
	fprintf(stderr, "usage: fcvm-volume --control FD [--counters FD] [--state FD] [--readonly] [--devices] [--local-locks]\n"
		"       [--traces] [--timeout SECONDS] [--max-nodes N] [--uid GUEST:HOST:COUNT]... [--gid GUEST:HOST:COUNT]... FOLDER\n");
	return 2;
}

static bool add_ids(struct fcvm_fuse_ids *all, unsigned *n, const char *text)
{
	struct fcvm_fuse_ids *ids = &all[*n];

	if (*n == FCVM_FUSE_MAX_IDS || sscanf(text, "%u:%u:%u", &ids->guest, &ids->host, &ids->count) != 3)
		return false;
	++*n;
	return true;
}

static bool take_option(int c, struct fcvm_fuse_volume *v, struct fcvm_fuse_service *s)
{
	switch (c) {
	case 'c':
		s->control = atoi(optarg);
		return true;
	case 'n':
		s->counters = atoi(optarg);
		return true;
	case 's':
		s->state = atoi(optarg);
		return true;
	case 'r':
		return v->readonly = true;
	case 'd':
		return v->devices = true;
	case 'l':
		return v->local_locks = true;
	case 'T':
		s->traces = STDOUT_FILENO;
		return true;
	case 't':
		v->timeout_s = strtod(optarg, NULL);
		return true;
	case 'm':
		v->max_nodes = (unsigned)strtoul(optarg, NULL, 10);
		return true;
	case 'u':
		return add_ids(uids, &v->nuids, optarg);
	case 'g':
		return add_ids(gids, &v->ngids, optarg);
	default:
		return false;
	}
}

static bool parse(int argc, char **argv, struct fcvm_fuse_volume *v, struct fcvm_fuse_service *s)
{
	static const struct option options[] = {
		{"control", required_argument, NULL, 'c'},   {"counters", required_argument, NULL, 'n'},
		{"state", required_argument, NULL, 's'},     {"readonly", no_argument, NULL, 'r'},
		{"devices", no_argument, NULL, 'd'},         {"local-locks", no_argument, NULL, 'l'},
		{"timeout", required_argument, NULL, 't'},   {"max-nodes", required_argument, NULL, 'm'},
		{"uid", required_argument, NULL, 'u'},       {"gid", required_argument, NULL, 'g'},
		{"traces", no_argument, NULL, 'T'},          {NULL, 0, NULL, 0},
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
		if (!take_option(c, v, s))
			return false;
	v->uids = uids;
	v->gids = gids;
	v->folder = argv[optind];
	return optind + 1 == argc && s->control >= 0;
}

#ifdef FCVM_FUSE_NO_LEAKS
/* LeakSanitizer looks from a process of its own by /proc, which a server does not see; what it says then would be the log's last
 * line. The tests that serve in their own process look for leaks. */
int __lsan_is_turned_off(void);
__attribute__((visibility("default"))) int __lsan_is_turned_off(void)
{
	return 1;
}
#endif

static void note(const char *text)
{
	fprintf(stderr, "%s\n", text);
}

int main(int argc, char **argv)
{
	struct fcvm_fuse_volume volume = {.ready_fd = -1};
	struct fcvm_fuse_service service = {.control = -1, .counters = -1, .state = -1, .traces = -1, .note = note};
	struct fcvm_err err = FCVM_ERR_INIT;
	int r;

	if (!parse(argc, argv, &volume, &service))
		return usage();
	signal(SIGPIPE, SIG_IGN);
	/* A terminal's interrupt is its owner's to handle. */
	signal(SIGINT, SIG_IGN);
	if (service.traces >= 0)
		fcvm_fd_nonblock(service.traces, true);
	r = fcvm_fuse_serve_for(&volume, &service, &err);
	if (r)
		fprintf(stderr, "%s\n", err.message);
	return r != 0;
}
