/* SPDX-License-Identifier: MIT */
/*
 * Hashes by XXH3. That of a file tells of its content, not of its holes: file systems differ in what they keep as
 * a hole, and a copy must hash like its source.
 *
 * A file is cut into chunks of 256 KiB. A chunk's hash is over its runs of blocks (4 KiB) that are not all zero,
 * each with its place and length; the file's hash is over its size and the chunks' hashes (16 zero bytes for one
 * without any run). So several threads can share the work, at the speed of memory.
 */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <endian.h>
#include <errno.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/cleanup.h"
#include "store/store_private.h"

enum { CHUNK = 256 * 1024, BLOCK = 4096, WORKERS = 4 };

struct run {
	uint32_t offset, length; /* in the chunk; little endian */
};

struct job {
	int from, to; /* to: -1: none */
	uint64_t size, nchunks;
	_Atomic uint64_t next; /* chunk to be done */
	_Atomic int error;
	XXH128_canonical_t *chunks;
};

void fcvm_hash_strings(char ret[static 17], const char *first, ...)
{
	XXH3_state_t state;
	va_list ap;

	XXH3_64bits_reset(&state);
	va_start(ap, first);
	for (const char *s = first; s; s = va_arg(ap, const char *)) {
		uint64_t size = htole64(strlen(s));

		/* With its length, so that "ab", "c" is not "a", "bc". */
		XXH3_64bits_update(&state, &size, sizeof size);
		XXH3_64bits_update(&state, s, strlen(s));
	}
	va_end(ap);
	snprintf(ret, 17, "%016llx", (unsigned long long)XXH3_64bits_digest(&state));
}

static void print(char ret[static STORE_HASH], XXH128_hash_t hash)
{
	snprintf(ret, STORE_HASH, "%016llx%016llx", (unsigned long long)hash.high64,
		(unsigned long long)hash.low64);
}

void store_hash_bytes(char ret[static STORE_HASH], const void *data, size_t size)
{
	print(ret, XXH3_128bits(data, size));
}

static bool is_zero(const char *data, size_t size)
{
	/* One comparison of the whole with itself, shifted by a byte: memcmp is vectorised. */
	return data[0] == 0 && memcmp(data, data + 1, size - 1) == 0;
}

static int write_at(int fd, const char *data, size_t size, uint64_t offset)
{
	while (size > 0) {
		ssize_t n = pwrite(fd, data, size, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		data += n;
		size -= n;
		offset += n;
	}
	return 0;
}

static int do_chunk(struct job *j, uint64_t chunk, const char *data, size_t size)
{
	XXH3_state_t state;
	size_t start = 0, end;
	bool any = false;
	int r;

	while (start < size) {
		struct run run;
		size_t step = size - start < BLOCK ? size - start : BLOCK;

		if (is_zero(data + start, step)) {
			start += step;
			continue;
		}
		for (end = start + step; end < size; end += step) {
			step = size - end < BLOCK ? size - end : BLOCK;
			if (is_zero(data + end, step))
				break;
		}
		if (!any)
			XXH3_128bits_reset(&state);
		any = true;
		run = (struct run){.offset = htole32(start), .length = htole32(end - start)};
		XXH3_128bits_update(&state, &run, sizeof run);
		XXH3_128bits_update(&state, data + start, end - start);
		r = j->to < 0 ? 0 : write_at(j->to, data + start, end - start, chunk * CHUNK + start);
		if (r < 0)
			return r;
		start = end;
	}
	if (any)
		XXH128_canonicalFromHash(&j->chunks[chunk], XXH3_128bits_digest(&state));
	return 0;
}

/* The next chunk with data, or nchunks. */
static uint64_t take_chunk(struct job *j)
{
	uint64_t chunk = atomic_load(&j->next);

	for (;;) {
		uint64_t with_data = chunk;
		off_t data;

		if (chunk >= j->nchunks)
			return j->nchunks;
		/* Moves a file position that nobody uses. Where holes are not known, it is all data. */
		data = lseek(j->from, (off_t)(chunk * CHUNK), SEEK_DATA);
		if (data >= 0)
			with_data = (uint64_t)data / CHUNK;
		else if (errno == ENXIO)
			with_data = j->nchunks;
		/* On failure chunk is what another thread has left. */
		if (atomic_compare_exchange_weak(&j->next, &chunk, with_data + 1))
			return with_data;
	}
}

static void *work(void *data)
{
	struct job *j = data;
	_cleanup_free_ char *buffer = aligned_alloc(BLOCK, CHUNK);
	int r = buffer ? 0 : -ENOMEM;
	uint64_t chunk;

	while (r == 0 && atomic_load(&j->error) == 0 && (chunk = take_chunk(j)) < j->nchunks) {
		uint64_t at = chunk * CHUNK;
		size_t size = j->size - at < CHUNK ? j->size - at : CHUNK, have = 0;

		while (r == 0 && have < size) {
			ssize_t n = pread(j->from, buffer + have, size - have, (off_t)(at + have));

			if (n > 0)
				have += n;
			else if (n == 0 || errno != EINTR)
				r = n < 0 ? -errno : -ENODATA;
		}
		if (r == 0)
			r = do_chunk(j, chunk, buffer, size);
	}
	if (r < 0)
		atomic_store(&j->error, r);
	return NULL;
}

static void run_workers(struct job *j)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);
	pthread_t threads[WORKERS];
	unsigned n = 0;

	while (n < WORKERS - 1 && (long)n < processors - 1 && (n + 1) * 16 < j->nchunks &&
		pthread_create(&threads[n], NULL, work, j) == 0)
		n++;
	work(j);
	while (n > 0)
		pthread_join(threads[--n], NULL);
}

int store_hash_file(int from, int to, char ret[static STORE_HASH])
{
	struct job j = {.from = from, .to = to};
	_cleanup_free_ XXH128_canonical_t *chunks = NULL;
	XXH3_state_t state;
	struct stat st;
	uint64_t size;

	if (fstat(from, &st) < 0)
		return -errno;
	j.size = st.st_size;
	j.nchunks = (j.size + CHUNK - 1) / CHUNK;
	chunks = calloc(j.nchunks + 1, sizeof *chunks);
	if (!chunks)
		return -ENOMEM;
	j.chunks = chunks;
	if (to >= 0 && ioctl(to, FICLONE, from) == 0)
		j.to = -1;
	else if (to >= 0 && ftruncate(to, st.st_size) < 0)
		return -errno;
	run_workers(&j);
	if (atomic_load(&j.error) < 0)
		return atomic_load(&j.error);
	XXH3_128bits_reset(&state);
	size = htole64(j.size);
	XXH3_128bits_update(&state, &size, sizeof size);
	XXH3_128bits_update(&state, chunks, j.nchunks * sizeof *chunks);
	print(ret, XXH3_128bits_digest(&state));
	return 0;
}
