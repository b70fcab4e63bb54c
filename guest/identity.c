/* SPDX-License-Identifier: MIT */
/* Who and when this machine is: IDENTITY, CLOCK, INFO. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static int set_clock(uint64_t ns)
{
	struct timespec t = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};

	return clock_settime(CLOCK_REALTIME, &t) < 0 ? -errno : 0;
}

/* The value in bytes of a line such as "MemTotal:  123 kB". */
static uint64_t meminfo(const char *text, const char *name)
{
	const char *at = text ? strstr(text, name) : NULL;

	return at ? strtoull(at + strlen(name), NULL, 10) * 1024 : 0;
}

void identity_open_info(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	_cleanup_free_ char *text = NULL;
	struct agent *a = l->agent;
	struct fcvm_wire_info info = {
		.generation = a->generation,
		.uptime_ns = clock_ns(CLOCK_BOOTTIME),
		.realtime_ns = clock_ns(CLOCK_REALTIME),
		.processors = sysconf(_SC_NPROCESSORS_ONLN),
		.version = FCVM_VERSION,
	};

	fcvm_file_read(AT_FDCWD, "/proc/meminfo", 64 * 1024, &text, NULL);
	info.memory_total = meminfo(text, "MemTotal:");
	info.memory_available = meminfo(text, "MemAvailable:");
	gethostname(info.hostname, sizeof info.hostname - 1);
	for (unsigned i = 0; i < LINKS; i++)
		info.streams += a->links[i] ? a->links[i]->nstreams : 0;
	link_result(l, id, &info, sizeof info);
}

void identity_open_clock(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	uint64_t ns = fcvm_wire_get_u64(r);
	int code = fcvm_wire_reader_ok(r) ? set_clock(ns) : -EINVAL;

	if (code < 0)
		link_refuse(l, id, code, "set the clock: %s", strerror(-code));
	else
		link_result(l, id, NULL, 0);
}

/* Mixes the seed into the kernel's pool and has the generator use it at once. */
static int seed_random(const uint8_t *seed, size_t size)
{
	_cleanup_close_ int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	struct {
		struct rand_pool_info head;
		uint8_t bytes[64];
	} pool = {.head = {.entropy_count = size * 8, .buf_size = size}};

	if (fd < 0)
		return -errno;
	memcpy(pool.head.buf, seed, size);
	if (ioctl(fd, RNDADDENTROPY, &pool) < 0)
		return -errno;
	/* Kernels before 4.14 have it not, and take new entropy in by themselves. */
	if (ioctl(fd, RNDRESEEDCRNG) < 0 && errno != EINVAL && errno != ENOTTY)
		return -errno;
	return 0;
}

/* A line into a file of /etc, which may be absent or read-only: then nothing reads a stale one from there that
 * was not in the image already. */
static int write_line(const char *path, const char *line)
{
	char text[256];
	int n = snprintf(text, sizeof text, "%s\n", line);
	int r;

	if (n >= (int)sizeof text)
		return -ENAMETOOLONG;
	r = fcvm_file_replace(AT_FDCWD, path, text, n, 0644, false);
	return r == -EROFS || r == -ENOENT ? 0 : r;
}

struct identity_job {
	struct job job;
	uint64_t generation;
};

static int take_identity(const struct fcvm_wire_identity *who, const char *hostname, const char *machine_id,
	const char **ret_step)
{
	int r = 0;

	*ret_step = "seed the random pool";
	r = seed_random(who->seed, sizeof who->seed);
	if (r == 0 && who->realtime_ns) {
		*ret_step = "set the clock";
		r = set_clock(who->realtime_ns);
	}
	if (r == 0 && *hostname) {
		*ret_step = "set the hostname";
		r = sethostname(hostname, strlen(hostname)) < 0 ? -errno : 0;
		if (r == 0)
			r = write_line("/etc/hostname", hostname);
	}
	if (r == 0 && *machine_id) {
		*ret_step = "write /etc/machine-id";
		r = write_line("/etc/machine-id", machine_id);
	}
	return r;
}

static void identity_work(struct job *j)
{
	const char *hostname, *machine_id, *step = "read the request";
	struct fcvm_wire_identity who;

	fcvm_wire_get_bytes(&j->request, &who, sizeof who);
	hostname = fcvm_wire_get_string(&j->request);
	machine_id = fcvm_wire_get_string(&j->request);
	((struct identity_job *)j)->generation = who.generation;
	j->code = -EINVAL;
	if (fcvm_wire_reader_ok(&j->request))
		j->code = take_identity(&who, hostname, machine_id, &step);
	if (j->code < 0)
		fcvm_fail_errno(&j->err, j->code, "identity: %s", step);
}

static void identity_done(struct job *j)
{
	if (j->code == 0)
		j->agent->generation = ((struct identity_job *)j)->generation;
	job_answer(j);
}

void identity_open_identity(struct link *l, uint32_t id, struct fcvm_wire_reader *r)
{
	struct job *j = job_new_stream(l, id, STREAM_JOB, 0, sizeof(struct identity_job), r);

	if (!j)
		return;
	j->work = identity_work;
	j->done = identity_done;
	job_run(j, false);
}
