/* SPDX-License-Identifier: MIT */
/*
 * fuse-volume - the workloads of the guide on a folder, as JSON. Static, so that it runs in any guest.
 *
 *   fuse-volume fill DIR         makes the files that the others use, from the side that serves the folder
 *   fuse-volume throughput DIR   256 threads, 1,024 files of 4 KiB, one open and read each, twice (the first time this
 *                                mount sees them, and again), then one open, write and fsync each: ms
 *   fuse-volume operations DIR   single operations, the median of 2,000 or [COUNT]: us. What the kernel would answer itself is asked
 *                                for in such a way that it cannot: other names, other pages, forced attributes
 *   fuse-volume cached DIR       the same as programs call them, most often on what was just used
 *   fuse-volume large DIR        10 MiB written with an fsync each MiB and without, and read; 100 stats, 100 small reads: ms
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/stat.h>

#include "base/until.h"

enum { FILES = 1024, THREADS = 256, SIZE = 4096, SINGLE = 2000, SMALL = 100, MIB = 1 << 20, LARGE = 10 };

static const char *dir;
static int failed;
static unsigned waiting; /* threads that are ready to begin */

static const char *path_of(char path[static 256], const char *name, unsigned i)
{
	snprintf(path, 256, "%s/%s-%04u", dir, name, i);
	return path;
}

static int open_file(const char *name, unsigned i, int flags)
{
	char path[256];
	int fd = open(path_of(path, name, i), flags | O_CLOEXEC, 0644);

	if (fd < 0)
		failed = 1;
	return fd;
}

static void put(const char *name, unsigned i, size_t size)
{
	static char data[MIB];
	int fd = open_file(name, i, O_CREAT | O_WRONLY | O_TRUNC);

	memset(data, 'v', sizeof data);
	while (size && !failed) {
		size_t n = size < MIB ? size : MIB;

		failed |= write(fd, data, n) != (ssize_t)n;
		size -= n;
	}
	close(fd);
}

static void fill(void)
{
	char path[256];

	for (unsigned i = 0; i < FILES; i++)
		put("file", i, SIZE);
	put("pages", 0, (size_t)SINGLE * SIZE);
	put("large", 0, LARGE * MIB);
	put("written", 0, SIZE);
	snprintf(path, sizeof path, "%s/ten", dir);
	failed |= mkdir(path, 0755) && errno != EEXIST;
	for (unsigned i = 0; i < 10; i++)
		put("ten/file", i, 0);
	sync();
}

/* ---- many at a time ---- */

struct worker {
	pthread_t thread;
	pthread_barrier_t *start;
	unsigned index;
	bool write;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	char data[SIZE];

	memset(data, 'w', sizeof data);
	__atomic_add_fetch(&waiting, 1, __ATOMIC_RELAXED);
	pthread_barrier_wait(w->start);
	for (unsigned i = w->index; i < FILES; i += THREADS) {
		int fd = open_file("file", i, w->write ? O_WRONLY : O_RDONLY);

		errno = 0; /* of a short read */
		if (fd < 0 || (w->write ? write(fd, data, SIZE) != SIZE || fsync(fd) : read(fd, data, SIZE) != SIZE)) {
			fprintf(stderr, "fuse-volume: file %u: %s: %m\n", i, w->write ? "write and fsync" : "read");
			failed = 1;
		}
		close(fd);
	}
	return NULL;
}

/* ms of all threads' work. */
static double parallel(bool write)
{
	static struct worker workers[THREADS];
	pthread_barrier_t start;
	pthread_attr_t attr;
	int64_t from;

	pthread_barrier_init(&start, NULL, THREADS + 1);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 65536);
	for (unsigned i = 0; i < THREADS; i++) {
		workers[i] = (struct worker){.start = &start, .index = i, .write = write};
		if (pthread_create(&workers[i].thread, &attr, work, &workers[i]))
			exit(1);
	}
	/* The clock starts before they do, whenever this thread is scheduled again. */
	while (__atomic_load_n(&waiting, __ATOMIC_RELAXED) < THREADS)
		usleep(1000);
	waiting = 0;
	from = fcvm_now_ns();
	pthread_barrier_wait(&start);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(workers[i].thread, NULL);
	pthread_barrier_destroy(&start);
	return (double)(fcvm_now_ns() - from) / 1e6;
}

static void throughput(void)
{
	double cold = parallel(false), again = parallel(false);

	printf("{\"read\": %.3f, \"again\": %.3f, \"write_fsync\": %.3f}\n", cold, again, parallel(true));
}

/* ---- one at a time ---- */

struct single {
	const char *name;
	void (*one)(int fd, unsigned i);
	const char *file; /* opened for it */
};

static void stat_forced(int fd, unsigned i)
{
	struct statx x;

	failed |= syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &x) != 0;
}

static void stat_again(int fd, unsigned i)
{
	struct stat st;

	failed |= fstat(fd, &st) != 0;
}

static void lookup_other(int fd, unsigned i)
{
	struct stat st;
	char path[256];

	failed |= stat(path_of(path, "file", i % FILES), &st) != 0;
}

static void lookup_missing(int fd, unsigned i)
{
	struct stat st;
	char path[256];

	failed |= stat(path_of(path, "missing", i), &st) == 0;
}

static void lookup_missing_again(int fd, unsigned i)
{
	lookup_missing(fd, i % 16);
}

static void lookup_again(int fd, unsigned i)
{
	struct stat st;
	char path[256];

	failed |= stat(path_of(path, "file", i % 16), &st) != 0;
}

static void read_next(int fd, unsigned i)
{
	static char data[SIZE];

	/* Backwards, and said to be at random: nothing is read ahead. */
	failed |= pread(fd, data, SIZE, (off_t)(SINGLE - 1 - i % SINGLE) * SIZE) != SIZE;
}

static void read_again(int fd, unsigned i)
{
	static char data[SIZE];

	failed |= pread(fd, data, SIZE, 0) != SIZE;
}

static void write_page(int fd, unsigned i)
{
	static char data[SIZE];

	failed |= pwrite(fd, data, SIZE, 0) != SIZE;
}

static void open_close(int fd, unsigned i)
{
	close(open_file("file", 1, O_RDONLY));
}

static void list_ten(int fd, unsigned i)
{
	char path[256];
	unsigned n = 0;
	DIR *d;

	snprintf(path, sizeof path, "%s/ten", dir);
	d = opendir(path);
	while (d && readdir(d))
		n++;
	failed |= n != 12;
	if (d)
		closedir(d);
}

static void create_unlink(int fd, unsigned i)
{
	char path[256];
	int other = open(path_of(path, "created", i), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);

	failed |= other < 0 || unlink(path);
	close(other);
}

static const struct single forced[] = {
	{"getattr", stat_forced, "file"}, {"lookup", lookup_other, "file"}, {"lookup_missing", lookup_missing, "file"},
	{"read_4k", read_next, "pages"}, {"write_4k", write_page, "written"}, {"open_close", open_close, "file"},
	{"readdir", list_ten, "file"},
	{"create_unlink", create_unlink, "file"}, {NULL},
};
static const struct single cached[] = {
	{"getattr", stat_again, "file"}, {"lookup", lookup_again, "file"}, {"lookup_missing", lookup_missing_again, "file"},
	{"read_4k", read_again, "file"},
	{"write_4k", write_page, "written"}, {"open_close", open_close, "file"}, {"readdir", list_ten, "file"},
	{"create_unlink", create_unlink, "file"}, {NULL},
};

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void singles(const struct single *s, unsigned count)
{
	static double us[SINGLE];
	const char *before = "{";

	for (; s->name; s++, before = ", ") {
		int fd = open_file(s->file, 0, O_RDWR);

		posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
		for (unsigned i = 0; i < count; i++) {
			int64_t from = fcvm_now_ns();

			s->one(fd, i);
			us[i] = (double)(fcvm_now_ns() - from) / 1e3;
		}
		close(fd);
		qsort(us, count, sizeof *us, by_value);
		printf("%s\"%s\": %.3f", before, s->name, us[count / 2]);
	}
	printf("}\n");
}

/* ---- large ones ---- */

static void copy_large(int fd, bool reads, bool syncs)
{
	static char data[MIB];

	memset(data, 'l', sizeof data);
	for (unsigned i = 0; i < LARGE; i++) {
		failed |= (reads ? read(fd, data, MIB) : write(fd, data, MIB)) != MIB;
		failed |= syncs && fsync(fd);
	}
}

static double ms_since(int64_t *from)
{
	int64_t before = *from;

	*from = fcvm_now_ns();
	return (double)(*from - before) / 1e6;
}

static void large(void)
{
	int fd = open_file("large", 0, O_RDONLY);
	int64_t from = fcvm_now_ns();

	copy_large(fd, true, false);
	printf("{\"read\": %.3f", ms_since(&from));
	close(fd);
	fd = open_file("synced", 0, O_CREAT | O_RDWR);
	from = fcvm_now_ns();
	copy_large(fd, false, true);
	printf(", \"write_sync\": %.3f", ms_since(&from));
	close(fd);
	fd = open_file("unsynced", 0, O_CREAT | O_RDWR);
	from = fcvm_now_ns();
	copy_large(fd, false, false);
	printf(", \"write\": %.3f", ms_since(&from));
	close(fd);
	from = fcvm_now_ns();
	for (unsigned i = 0; i < SMALL; i++)
		lookup_again(-1, i);
	printf(", \"stat\": %.3f", ms_since(&from));
	for (unsigned i = 0; i < SMALL; i++) {
		fd = open_file("file", i, O_RDONLY);
		read_again(fd, i);
		close(fd);
	}
	printf(", \"small_read\": %.3f}\n", ms_since(&from));
}

int main(int argc, char **argv)
{
	unsigned count = argc == 4 ? (unsigned)atoi(argv[3]) : SINGLE;

	dir = argc >= 3 && argc <= 4 && count >= 1 && count <= SINGLE ? argv[2] : NULL;
	if (dir && !strcmp(argv[1], "fill"))
		fill();
	else if (dir && !strcmp(argv[1], "throughput"))
		throughput();
	else if (dir && !strcmp(argv[1], "operations"))
		singles(forced, count);
	else if (dir && !strcmp(argv[1], "cached"))
		singles(cached, count);
	else if (dir && !strcmp(argv[1], "large"))
		large();
	else {
		fprintf(stderr, "usage: fuse-volume fill|throughput|operations|cached|large DIR [COUNT]\n");
		return 2;
	}
	if (failed)
		fprintf(stderr, "fuse-volume: %s: something failed there\n", dir);
	return failed;
}
