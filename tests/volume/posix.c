/* SPDX-License-Identifier: MIT */
/*
 * posix HOST MOUNT [SUBSTRING] - POSIX's rules one by one. Each case makes the same calls in two folders, one on the
 * host's own file system and one on a volume, and writes down what they returned and what the files are like
 * afterwards; the two transcripts must be the same. A case that writes nothing down has failed.
 *
 * posix --write FILE HOST - the host's transcripts only, into a file, which stands for HOST where the host's own file
 * system is out of reach: in a guest.
 *
 * As root, callers without privileges are children with another uid.
 */
#include "posix.h"

char transcript[1 << 16];
size_t written;

void note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	written += vsnprintf(transcript + written, sizeof transcript - written, fmt, ap);
	va_end(ap);
	if (written >= sizeof transcript)
		exit(3);
}

long said(const char *what, long r)
{
	note("%s=%ld %s\n", what, r < 0 ? -1 : r, r < 0 ? strerrorname_np(errno) : "");
	return r;
}

void look(const char *name)
{
	struct stat st;

	if (lstat(name, &st))
		note("%s: %s\n", name, strerrorname_np(errno));
	else
		note("%s: %o links %lu uid %u gid %u size %ld rdev %lx\n", name, st.st_mode, S_ISDIR(st.st_mode) ? 0 : st.st_nlink,
			st.st_uid, st.st_gid, S_ISDIR(st.st_mode) ? 0 : st.st_size, st.st_rdev);
}

void make(const char *name, mode_t mode, const char *text)
{
	int fd = open(name, O_CREAT | O_WRONLY | O_TRUNC, 0600);

	if (fd < 0 || write(fd, text, strlen(text)) < 0 || fchmod(fd, mode))
		note("make %s: %s\n", name, strerrorname_np(errno));
	close(fd);
}

void as(uid_t uid, gid_t gid, gid_t more, void (*f)(void))
{
	int out[2], status;
	pid_t pid;
	ssize_t n;

	if (pipe(out))
		exit(3);
	pid = fork();
	if (!pid) {
		written = 0;
		if (setgroups(1, &more) || setgid(gid) || setuid(uid))
			_exit(3);
		f();
		if (write(out[1], transcript, written) < 0)
			_exit(3);
		_exit(0);
	}
	close(out[1]);
	while ((n = read(out[0], transcript + written, sizeof transcript - written)) > 0)
		written += n;
	close(out[0]);
	waitpid(pid, &status, 0);
	note("child %d\n", status);
}

/* In a child, with a folder of its own as the working folder. The transcript, malloc'ed. */
static char *transcript_of(const char *where, const struct posix_case *c)
{
	char folder[PATH_MAX], *text = malloc(sizeof transcript);
	size_t size = 0;
	int out[2], status;
	ssize_t n;

	snprintf(folder, sizeof folder, "%s/%s", where, c->name);
	if (pipe(out) || !text)
		exit(3);
	if (!fork()) {
		umask(022);
		/* Others must get at it too. */
		if (mkdir(folder, 0755) || chdir(folder))
			_exit(3);
		alarm(60);
		c->run();
		for (size_t put = 0; put < written;)
			put += write(out[1], transcript + put, written - put);
		_exit(0);
	}
	close(out[1]);
	while ((n = read(out[0], text + size, sizeof transcript - 1 - size)) > 0)
		size += n;
	close(out[0]);
	wait(&status);
	if (status)
		size += snprintf(text + size, sizeof transcript - size, "%s: the case ended with status %x\n", where, status);
	text[size] = 0;
	return text;
}

static bool same(const char *a, const char *b)
{
	while (*a || *b) {
		size_t n = strcspn(a, "\n"), m = strcspn(b, "\n");

		if (n != m || strncmp(a, b, n)) {
			printf("    host:  %.*s\n    mount: %.*s\n", (int)n, a, (int)m, b);
			return false;
		}
		a += n + (a[n] == '\n');
		b += m + (b[m] == '\n');
	}
	return true;
}

static const struct posix_case *const all[] = {posix_names, posix_data, posix_attributes, posix_access, posix_locks};

/* Names and transcripts, each with its NUL. */
static int write_transcripts(const char *path, const char *host)
{
	FILE *f = fopen(path, "w");

	for (unsigned i = 0; f && i < sizeof all / sizeof *all; i++) {
		for (const struct posix_case *c = all[i]; c->name; c++) {
			char *text = transcript_of(host, c);

			fwrite(c->name, strlen(c->name) + 1, 1, f);
			fwrite(text, strlen(text) + 1, 1, f);
			free(text);
		}
	}
	return !f || fclose(f);
}

/* Malloc'ed; "": there is none. */
static char *written_transcript(const char *path, const struct posix_case *c)
{
	char *name = NULL, *text = NULL;
	size_t name_size = 0, text_size = 0;
	FILE *f = fopen(path, "r");
	bool found = false;

	while (f && !found && getdelim(&name, &name_size, 0, f) > 0 && getdelim(&text, &text_size, 0, f) > 0)
		found = !strcmp(name, c->name);
	if (f)
		fclose(f);
	free(name);
	if (found)
		return text;
	free(text);
	return strdup("");
}

static bool passes(const char *host_path, const char *mount_path, const struct posix_case *c)
{
	struct stat st;
	bool is_folder = !stat(host_path, &st) && S_ISDIR(st.st_mode), ok;
	char *host = is_folder ? transcript_of(host_path, c) : written_transcript(host_path, c);
	char *mount = transcript_of(mount_path, c);

	ok = *host && !strstr(host, "status") && same(host, mount);
	printf("%s %s\n", ok ? "ok" : "not ok", c->name);
	free(host);
	free(mount);
	return ok;
}

int main(int argc, char **argv)
{
	unsigned passed = 0, failed = 0;

	if (argc < 3)
		return 2;
	if (argc == 4 && !strcmp(argv[1], "--write"))
		return write_transcripts(argv[2], argv[3]);
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
		for (const struct posix_case *c = all[i]; c->name; c++) {
			if (argc > 3 && !strstr(c->name, argv[3]))
				continue;
			passes(argv[1], argv[2], c) ? passed++ : failed++;
		}
	}
	printf("%u passed, %u failed\n", passed, failed);
	return failed || !passed;
}
