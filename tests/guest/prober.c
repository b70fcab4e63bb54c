/* SPDX-License-Identifier: MIT */
/*
 * What the specs of volumes do with files, on either side; static, so that it runs in a guest from the volume itself.
 *
 *	prober lock FILE UNTIL   takes a POSIX lock on all of it, or prints "busy"; prints "locked", holds it until UNTIL is there
 *	prober flock FILE UNTIL  the same with flock(2)
 *	prober wait FILE         waits for a POSIX lock, prints "had it"
 *	prober append FILE       appends records of 64 bytes, each with its number and synced, and prints the number then
 *	prober fill FILE         writes until that fails, closes, and prints the error's name
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { RECORD = 64 };

static int failed(const char *what)
{
	printf("%s: %s\n", what, strerrorname_np(errno));
	return 1;
}

static int lock(int fd, int posix, int wait)
{
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	return posix ? fcntl(fd, wait ? F_SETLKW : F_SETLK, &l) : flock(fd, LOCK_EX | LOCK_NB);
}

static int hold(const char *path, const char *until, int posix)
{
	int fd = open(path, O_RDWR | O_CREAT, 0666);

	if (fd < 0)
		return failed("open");
	if (lock(fd, posix, 0) < 0) {
		if (errno != EAGAIN && errno != EACCES)
			return failed("lock");
		puts("busy");
		return 0;
	}
	puts("locked");
	fflush(stdout);
	while (access(until, F_OK) < 0)
		usleep(20000);
	return 0;
}

static int wait_for(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT, 0666);

	if (fd < 0 || lock(fd, 1, 1) < 0)
		return failed("lock");
	puts("had it");
	return 0;
}

static int append(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0666);
	char record[RECORD + 1];

	if (fd < 0)
		return failed("open");
	for (unsigned i = 1;; i++) {
		snprintf(record, sizeof record, "%*u\n", RECORD - 1, i);
		if (write(fd, record, RECORD) != RECORD || fsync(fd) < 0)
			return failed("append");
		printf("%u\n", i);
		fflush(stdout);
	}
}

static int fill(const char *path)
{
	static char block[65536];
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666), error = 0;

	if (fd < 0)
		return failed("open");
	while (write(fd, block, sizeof block) > 0)
		;
	error = errno;
	if (close(fd) < 0)
		error = errno;
	printf("%s\n", strerrorname_np(error));
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && (strcmp(argv[1], "lock") == 0 || strcmp(argv[1], "flock") == 0))
		return hold(argv[2], argv[3], argv[1][0] == 'l');
	if (argc == 3 && strcmp(argv[1], "wait") == 0)
		return wait_for(argv[2]);
	if (argc == 3 && strcmp(argv[1], "append") == 0)
		return append(argv[2]);
	if (argc == 3 && strcmp(argv[1], "fill") == 0)
		return fill(argv[2]);
	return 2;
}
