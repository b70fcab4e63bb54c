/* SPDX-License-Identifier: MIT */
/* Contents: flags, sizes, holes, copies, files without a name, mappings. */
#include "posix.h"

static void open_flags(void)
{
	char text[8] = "";

	make("f", 0644, "hello");
	OPEN(r, "f", O_RDONLY);
	OPEN(w, "f", O_WRONLY);
	OPEN(a, "f", O_WRONLY | O_APPEND);
	DO(write(r, "x", 1));
	DO(read(w, text, 1));
	DO(pwrite(w, "J", 1, 0));
	DO(write(a, "!", 1));
	DO(lseek(a, 0, SEEK_CUR));
	DO(pwrite(a, "?", 1, 0));
	DO(pread(r, text, 7, 0));
	note("%s\n", text);
	DO(fcntl(w, F_SETFL, O_APPEND));
	DO(write(w, "+", 1));
	DO(fcntl(w, F_SETFL, 0));
	DO(pwrite(w, "-", 1, 1));
	memset(text, 0, sizeof text);
	DO(pread(r, text, 7, 1));
	note("%.7s\n", text);
	DO(ftruncate(r, 1));
	DO(ftruncate(w, 2));
	look("f");
	OPEN(t, "f", O_WRONLY | O_TRUNC);
	look("f");
	OPEN(d, "f", O_RDONLY | O_TRUNC);
	DO(open("f", O_CREAT | O_EXCL | O_RDWR, 0600));
	OPEN(ro, "readonly", O_CREAT | O_RDWR, 0400);
	DO(write(ro, "kept", 4));
	look("readonly");
	close(r);
	close(w);
	close(a);
	close(t);
	close(d);
	close(ro);
}

static void truncation(void)
{
	static char big[20000], back[20000];
	int fd;
	int bad = 0;

	memset(big, 'b', sizeof big);
	fd = open("f", O_CREAT | O_RDWR, 0644);
	DO(write(fd, big, sizeof big));
	DO(ftruncate(fd, 5000));
	DO(ftruncate(fd, 15000));
	look("f");
	DO(pread(fd, back, sizeof back, 0));
	for (int i = 0; i < 15000; i++)
		bad += back[i] != (i < 5000 ? 'b' : 0);
	note("bad %d\n", bad);
	DO(truncate("f", 10));
	DO(truncate("f", -1));
	DO(truncate("missing", 0));
	look("f");
	mkdir("d", 0755);
	DO(truncate("d", 0));
	/* By the open file, when the name is another's: ftruncate is not truncate. */
	rename("f", "g");
	make("f", 0644, "other");
	DO(ftruncate(fd, 3));
	look("f");
	look("g");
	unlink("g");
	DO(ftruncate(fd, 7));
	struct stat st;
	DO(fstat(fd, &st));
	note("%ld %lu\n", st.st_size, st.st_nlink);
	close(fd);
}

static void sparse(void)
{
	int fd = open("f", O_CREAT | O_RDWR, 0644);
	char text[8] = "";
	struct stat st;

	DO(pwrite(fd, "far", 3, (5LL << 30) + 1));
	look("f");
	DO(pread(fd, text, 5, (5LL << 30)));
	note("%d%s\n", text[0], text + 1);
	DO(lseek(fd, 0, SEEK_DATA));
	DO(lseek(fd, 5LL << 30, SEEK_HOLE));
	DO(lseek(fd, 6LL << 30, SEEK_DATA));
	DO(lseek(fd, 0, SEEK_END));
	DO(fallocate(fd, 0, 0, 65536));
	fstat(fd, &st);
	note("blocks %d\n", st.st_blocks >= 128);
	DO(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 65536));
	fstat(fd, &st);
	note("blocks %d\n", st.st_blocks < 128);
	DO(fallocate(fd, FALLOC_FL_KEEP_SIZE, 6LL << 30, 4096));
	DO(fallocate(fd, 0, 6LL << 30, 4096));
	look("f");
	DO(fallocate(fd, FALLOC_FL_ZERO_RANGE, (5LL << 30), 4));
	DO(pread(fd, text, 5, (5LL << 30)));
	note("%d%d%d%d\n", text[0], text[1], text[2], text[3]);
	DO(fallocate(fd, 0, 0, 0));
	DO(ftruncate(fd, (4LL << 30) + 5));
	look("f");
	DO(posix_fallocate(fd, 0, 10));
	close(fd);
}

static void copies(void)
{
	int a = open("a", O_CREAT | O_RDWR, 0644), b = open("b", O_CREAT | O_RDWR, 0644);
	off64_t from = 2, to = 5LL << 30;
	char text[8] = "";

	DO(write(a, "0123456789", 10));
	DO(copy_file_range(a, &from, b, &to, 6, 0));
	note("%ld %ld\n", (long)from, (long)to);
	look("b");
	DO(pread(b, text, 8, 5LL << 30));
	note("%s\n", text);
	DO(copy_file_range(a, &from, b, &to, 100, 0));
	DO(copy_file_range(a, &from, b, &to, 100, 0));
	from = 0;
	to = 1;
	DO(copy_file_range(a, &from, a, &to, 5, 0));
	DO(copy_file_range(a, &from, b, &to, 5, 1));
	close(a);
	close(b);
}

static void unlinked_but_open(void)
{
	char text[8] = "";
	struct stat st;
	int fd = open("f", O_CREAT | O_RDWR, 0644);

	DO(write(fd, "still", 5));
	DO(unlink("f"));
	DO(fstat(fd, &st));
	note("%lu %ld\n", st.st_nlink, st.st_size);
	DO(pread(fd, text, 5, 0));
	note("%s\n", text);
	DO(fchmod(fd, 0751));
	DO(fchown(fd, 3, 4));
	DO(fsetxattr(fd, "user.x", "1", 1, 0));
	DO(fgetxattr(fd, "user.x", text, 8));
	DO(fstat(fd, &st));
	note("%o %u %u\n", st.st_mode, st.st_uid, st.st_gid);
	make("f", 0600, "another");
	DO(pread(fd, text, 5, 0));
	note("%s\n", text);
	close(fd);
	mkdir("d", 0755);
	fd = open("d", O_RDONLY);
	DO(rmdir("d"));
	DO(fstat(fd, &st));
	note("%lu\n", st.st_nlink);
	DO(openat(fd, "x", O_CREAT | O_WRONLY, 0644));
	close(fd);
}

static void tmpfiles(void)
{
	int fd = open(".", O_TMPFILE | O_RDWR, 0640), excl;
	char path[40], text[8] = "";
	struct stat st;

	DO(fd < 0 ? -1 : 0);
	DO(write(fd, "temp", 4));
	DO(fstat(fd, &st));
	note("%lu %o\n", st.st_nlink, st.st_mode);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	said("linkat", linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
	look("named");
	close(fd);
	fd = open("named", O_RDONLY);
	DO(read(fd, text, 8));
	note("%s\n", text);
	close(fd);
	excl = open(".", O_TMPFILE | O_EXCL | O_RDWR, 0640);
	snprintf(path, sizeof path, "/proc/self/fd/%d", excl);
	said("linkat", linkat(AT_FDCWD, path, AT_FDCWD, "never", AT_SYMLINK_FOLLOW));
	close(excl);
	DO(open(".", O_TMPFILE | O_RDONLY, 0640) < 0 ? -1 : 0);
}

static void mappings(void)
{
	int fd = open("f", O_CREAT | O_RDWR, 0644), other = open("f", O_RDWR | O_APPEND);
	char *shared, *private, text[8] = "";

	DO(ftruncate(fd, 10000));
	shared = mmap(NULL, 10000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	private = mmap(NULL, 10000, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	note("%d %d\n", shared != MAP_FAILED, private != MAP_FAILED);
	memcpy(shared + 5000, "map", 3);
	memcpy(private + 6000, "own", 3);
	DO(pread(fd, text, 3, 5000));
	note("%s\n", text);
	DO(pread(fd, text, 3, 6000));
	note("%d\n", text[0]);
	DO(pwrite(fd, "wri", 3, 7000));
	note("%.3s %.3s\n", shared + 7000, private + 7000);
	/* Goes out by some handle of the file; were that the appending one, to its end. */
	close(fd);
	DO(msync(shared, 10000, MS_SYNC));
	munmap(shared, 10000);
	munmap(private, 10000);
	DO(lseek(other, 0, SEEK_END));
	DO(pread(other, text, 3, 5000));
	note("%s\n", text);
	close(other);
	/* And as the other side sees it, which has no page of it. */
	look("f");
}

static void vectors(void)
{
	int fd = open("f", O_CREAT | O_RDWR, 0644);
	static char big[3 << 20], back[3 << 20];

	for (size_t i = 0; i < sizeof big; i++)
		big[i] = (char)(i * 7 + i / 4096);
	DO(pwrite(fd, big, sizeof big, 3));
	DO(fsync(fd));
	DO(fdatasync(fd));
	DO(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	DO(pread(fd, back, sizeof back, 3));
	note("same %d\n", !memcmp(big, back, sizeof big));
	DO(pread(fd, back, 100, 10 << 20));
	DO(pread(fd, back, 100, -1));
	DO(pwrite(fd, back, 0, 0));
	look("f");
	close(fd);
	fd = open("direct", O_CREAT | O_RDWR | O_DIRECT, 0644);
	char *aligned = aligned_alloc(4096, 8192);
	memset(aligned, 'd', 8192);
	DO(pwrite(fd, aligned, 8192, 4096));
	DO(pread(fd, aligned, 4096, 0));
	note("%d\n", aligned[0]);
	DO(pread(fd, aligned, 8192, 4096));
	note("%c\n", aligned[8191]);
	free(aligned);
	close(fd);
}

/* Two processes that append, each by an open file of its own: no line is lost, none is torn. */
static void two_append(void)
{
	char text[64], line[64], seen[2][200] = {{0}};
	unsigned bad = 0, n = 0;

	close(open("log", O_CREAT | O_WRONLY, 0644));
	for (int k = 0; k < 2; k++) {
		if (fork())
			continue;
		int fd = open("log", O_WRONLY | O_APPEND);

		for (int i = 0; i < 200; i++)
			if (write(fd, line, snprintf(line, sizeof line, "%d %03d the rest of a line\n", k, i)) != 25)
				_exit(1);
		_exit(0);
	}
	for (int k = 0, status; k < 2; k++, bad += status != 0)
		wait(&status);
	FILE *f = fopen("log", "r");

	while (f && fgets(text, sizeof text, f)) {
		int k = -1, i = -1;

		if (sscanf(text, "%d %d the rest of a line", &k, &i) == 2 && k >= 0 && k < 2 && i >= 0 && i < 200)
			bad += seen[k][i]++;
		else
			bad++;
		n++;
	}
	fclose(f);
	note("%u lines, bad %u\n", n, bad);
	look("log");
}

/* A mapping that two processes share, one that is cut under it, and a program that is run from the volume. */
static void shared_mappings(void)
{
	int fd = open("f", O_CREAT | O_RDWR, 0644), status;
	volatile char *map;
	char text[8] = "";

	DO(ftruncate(fd, 16384));
	map = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	note("%d\n", map != MAP_FAILED);
	if (!fork()) {
		int own = open("f", O_RDWR);
		char *theirs = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, own, 0);

		memcpy(theirs + 8192, "theirs", 6);
		_exit(msync(theirs, 16384, MS_SYNC) != 0);
	}
	wait(&status);
	note("%d %.6s\n", status, (const char *)map + 8192);
	DO(pread(fd, text, 6, 8192));
	note("%s\n", text);
	DO(ftruncate(fd, 4096));
	if (!fork()) {
		alarm(10);
		map[0] = 'x';
		map[8192] = 'x';
		_exit(0);
	}
	wait(&status);
	note("beyond the end: signal %d\n", WTERMSIG(status));
	DO(ftruncate(fd, 16384));
	note("%d\n", map[8192]);
	munmap((void *)map, 16384);
	close(fd);
	DO(system("cp /bin/true program && ./program"));
	fd = open("program", O_RDWR);
	DO(fd < 0 ? -1 : 0);
	DO(system("./program 2>/dev/null") >> 8);
	close(fd);
}

/* Holes: where they begin and end, and what is asked beyond the end. Blocks as large as any file system's. */
static void holes(void)
{
	enum { B = 65536 };
	int fd = open("f", O_CREAT | O_RDWR, 0644);

	DO(ftruncate(fd, 10 * B));
	DO(lseek(fd, 0, SEEK_DATA));
	DO(lseek(fd, 0, SEEK_HOLE));
	DO(pwrite(fd, "x", 1, 4 * B));
	DO(fsync(fd));
	note("%ld\n", (long)lseek(fd, 0, SEEK_DATA) / B);
	note("%ld\n", ((long)lseek(fd, 4 * B, SEEK_HOLE) + B - 1) / B);
	DO(lseek(fd, 5 * B, SEEK_DATA));
	DO(lseek(fd, 10 * B, SEEK_HOLE));
	DO(lseek(fd, 11 * B, SEEK_DATA));
	DO(lseek(fd, -1, SEEK_HOLE));
	DO(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4 * B, B));
	DO(lseek(fd, 0, SEEK_DATA));
	DO(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, B));
	DO(fallocate(fd, 0, -1, 5));
	close(fd);
	fd = open("f", O_RDONLY);
	DO(fallocate(fd, 0, 0, 5));
	DO(fsync(fd));
	close(fd);
	fd = open(".", O_RDONLY);
	DO(fsync(fd));
	DO(syncfs(fd));
	close(fd);
}

const struct posix_case posix_data[] = {
	CASE(open_flags), CASE(truncation), CASE(sparse), CASE(copies), CASE(unlinked_but_open), CASE(tmpfiles),
	CASE(mappings), CASE(vectors), CASE(two_append), CASE(shared_mappings), CASE(holes),
	{NULL, NULL},
};
