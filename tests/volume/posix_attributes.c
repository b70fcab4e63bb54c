/* SPDX-License-Identifier: MIT */
/* What files are: times, owners, modes, who may do what, extended attributes, folders. */
#include "posix.h"

static void times(void)
{
	struct timespec t[2] = {{1000000001, 123456789}, {2000000002, 987654321}};
	struct timespec before[2] = {{-5, 1}, {4294967300, 999999999}};
	struct stat st, later;

	make("f", 0644, "x");
	DO(utimensat(AT_FDCWD, "f", t, 0));
	stat("f", &st);
	note("%ld.%09ld %ld.%09ld\n", st.st_atim.tv_sec, st.st_atim.tv_nsec, st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
	t[0].tv_nsec = UTIME_OMIT;
	t[1].tv_sec = 3;
	DO(utimensat(AT_FDCWD, "f", t, 0));
	stat("f", &st);
	note("%ld.%09ld %ld.%09ld\n", st.st_atim.tv_sec, st.st_atim.tv_nsec, st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
	DO(utimensat(AT_FDCWD, "f", before, 0));
	stat("f", &st);
	note("%ld.%09ld %ld.%09ld\n", st.st_atim.tv_sec, st.st_atim.tv_nsec, st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
	DO(utimensat(AT_FDCWD, "f", NULL, 0));
	stat("f", &later);
	note("%d\n", later.st_mtim.tv_sec > 1700000000 && later.st_ctim.tv_sec >= st.st_ctim.tv_sec);
	DO(symlink("f", "l"));
	DO(utimensat(AT_FDCWD, "l", before, AT_SYMLINK_NOFOLLOW));
	lstat("l", &st);
	note("%ld.%09ld\n", st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
	t[0].tv_nsec = 1000000000;
	DO(utimensat(AT_FDCWD, "f", t, 0));
}

/* Which of a file's times move, and a folder's. */
static void times_move(void)
{
	struct timespec old[2] = {{1000, 0}, {1000, 0}};
	struct stat a, b;
	int fd;

	mkdir("d", 0755);
	make("d/f", 0644, "x");
	utimensat(AT_FDCWD, "d", old, 0);
	utimensat(AT_FDCWD, "d/f", old, 0);
	stat("d/f", &a);
	usleep(20000);
	DO(chmod("d/f", 0600));
	stat("d/f", &b);
	note("chmod: m %d c %d\n", a.st_mtime != b.st_mtime, a.st_ctim.tv_nsec != b.st_ctim.tv_nsec || a.st_ctime != b.st_ctime);
	stat("d", &b);
	note("folder m %ld\n", b.st_mtime);
	fd = open("d/f", O_WRONLY);
	DO(write(fd, "y", 1));
	close(fd);
	stat("d/f", &b);
	note("write: m %d\n", b.st_mtime != 1000);
	DO(link("d/f", "d/g"));
	stat("d", &b);
	note("link: folder m %d\n", b.st_mtime != 1000);
	utimensat(AT_FDCWD, "d/f", old, 0);
	DO(truncate("d/f", 1));
	stat("d/f", &b);
	note("truncate to the same: m %d\n", b.st_mtime != 1000);
	utimensat(AT_FDCWD, "d", old, 0);
	DO(rename("d/f", "d/h"));
	stat("d", &b);
	note("rename: folder m %d\n", b.st_mtime != 1000);
	utimensat(AT_FDCWD, "d", old, 0);
	DO(unlink("d/h"));
	stat("d", &b);
	note("unlink: folder m %d\n", b.st_mtime != 1000);
}

static void unprivileged_writes(void)
{
	char text[4];
	int fd = open("w", O_WRONLY);

	DO(write(fd, "x", 1));
	close(fd);
	look("w");
	DO(truncate("t", 1));
	look("t");
	DO(open("o", O_WRONLY | O_TRUNC) < 0 ? -1 : 0);
	look("o");
	fd = open("a", O_RDWR);
	DO(fallocate(fd, 0, 0, 100));
	look("a");
	DO(read(fd, text, 1));
	close(fd);
}

static void set_ids(void)
{
	static const char *names[] = {"w", "t", "o", "a"};
	int fd;

	for (int i = 0; i < 4; i++) {
		make(names[i], 0666, "text");
		chmod(names[i], 06777);
		look(names[i]);
	}
	as(1000, 1000, 1000, unprivileged_writes);
	for (int i = 0; i < 4; i++)
		look(names[i]);
	/* Group's bit without group's execute means mandatory locking, and stays. */
	make("m", 0666, "text");
	chmod("m", 02666);
	/* Root's writes leave them. */
	make("r", 0666, "text");
	chmod("r", 06755);
	fd = open("r", O_WRONLY);
	DO(write(fd, "x", 1));
	close(fd);
	look("r");
	DO(truncate("r", 1));
	look("r");
	DO(chown("r", 1, 1));
	look("r");
	chmod("r", 06755);
	DO(chown("r", -1, -1));
	look("r");
	mkdir("d", 0755);
	chmod("d", 06755);
	DO(chown("d", 1, 1));
	look("d");
}

static void user_chmod(void)
{
	DO(chmod("mine", 02755));
	look("mine");
	DO(chmod("foreign-group", 02755));
	look("foreign-group");
	DO(chmod("more-group", 02755));
	look("more-group");
	DO(chmod("roots", 0777));
	DO(chown("mine", 0, -1));
	DO(chown("mine", 1000, 2000));
	look("mine");
	DO(chown("mine", -1, 3000));
	DO(chown("roots", 1000, 1000));
}

static void owners(void)
{
	make("mine", 0644, "");
	chown("mine", 1000, 1000);
	make("foreign-group", 0644, "");
	chown("foreign-group", 1000, 3000);
	make("more-group", 0644, "");
	chown("more-group", 1000, 2000);
	make("roots", 0644, "");
	as(1000, 1000, 2000, user_chmod);
	DO(chown("mine", 4294967294U, 12));
	look("mine");
}

static void user_access(void)
{
	struct stat st;

	DO(open("600", O_RDONLY) < 0 ? -1 : 0);
	DO(open("644", O_RDONLY) < 0 ? -1 : 0);
	DO(open("644", O_WRONLY) < 0 ? -1 : 0);
	DO(open("group", O_WRONLY) < 0 ? -1 : 0);
	DO(open("more", O_WRONLY) < 0 ? -1 : 0);
	DO(open("owner-none", O_RDONLY) < 0 ? -1 : 0);
	DO(access("644", R_OK));
	DO(access("644", W_OK));
	DO(access("644", X_OK));
	DO(stat("700/x", &st));
	DO(stat("711/x", &st));
	DO(open("711", O_RDONLY) < 0 ? -1 : 0);
	DO(mkdir("711/new", 0755));
	DO(unlink("711/x"));
	DO(rename("711/x", "tmp/x"));
	DO(unlink("tmp/roots"));
	DO(rename("tmp/roots", "tmp/r"));
	DO(rename("tmp/mine", "tmp/m"));
	DO(rename("tmp/m", "tmp/roots"));
	DO(unlink("tmp/m"));
	DO(utimensat(AT_FDCWD, "644", NULL, 0));
	DO(utimensat(AT_FDCWD, "more", NULL, 0));
	DO(utimensat(AT_FDCWD, "more", (struct timespec[2]){{1, 1}, {1, 1}}, 0));
	DO(truncate("644", 0));
	DO(setxattr("644", "user.x", "", 0, 0));
	DO(setxattr("tmp/m", "trusted.x", "", 0, 0));
}

static void permissions(void)
{
	mkdir("700", 0700);
	mkdir("711", 0711);
	make("700/x", 0644, "");
	make("711/x", 0644, "");
	make("600", 0600, "");
	make("644", 0644, "");
	make("group", 0664, "");
	chown("group", 0, 1000);
	make("more", 0664, "");
	chown("more", 0, 2000);
	make("owner-none", 0044, "");
	chown("owner-none", 1000, 1000);
	mkdir("tmp", 0755);
	chmod("tmp", 01777);
	make("tmp/roots", 0666, "");
	make("tmp/mine", 0644, "");
	chown("tmp/mine", 1000, 1000);
	as(1000, 1000, 2000, user_access);
}

static void user_makes(void)
{
	umask(027);
	DO(mkdir("open/d", 0777));
	DO(open("open/f", O_CREAT | O_WRONLY, 0666) < 0 ? -1 : 0);
	DO(mkfifo("open/p", 0666));
	DO(symlink("x", "open/l"));
	DO(open("open", O_TMPFILE | O_RDWR, 0666) < 0 ? -1 : 0);
	DO(mkdir("setgid/d", 0777));
	DO(open("setgid/f", O_CREAT | O_WRONLY, 02776) < 0 ? -1 : 0);
	DO(mkdir("more/d", 0777));
	DO(open("more/f", O_CREAT | O_WRONLY, 0777) < 0 ? -1 : 0);
	DO(open("more/s", O_CREAT | O_WRONLY, 02777) < 0 ? -1 : 0);
	DO(open("more-only/f", O_CREAT | O_WRONLY, 0777) < 0 ? -1 : 0);
}

static void creation(void)
{
	static const char *all[] = {"open/d", "open/f", "open/p", "open/l", "setgid/d", "setgid/f", "more/d", "more/f",
		"more/s", "more-only/f"};

	mkdir("open", 0755);
	chmod("open", 0777);
	mkdir("setgid", 0755);
	chown("setgid", 0, 3000);
	chmod("setgid", 02777);
	mkdir("more", 0755);
	chown("more", 0, 2000);
	chmod("more", 02777);
	/* Only a supplementary group lets in here. */
	mkdir("more-only", 0755);
	chown("more-only", 0, 2000);
	chmod("more-only", 0770);
	as(1000, 1000, 2000, user_makes);
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
		look(all[i]);
	umask(077);
	DO(mkdir("u", 0777));
	look("u");
	umask(022);
}

static void attributes(void)
{
	static char value[65537], back[65537];
	char list[200];
	ssize_t n;

	memset(value, 'v', sizeof value);
	make("f", 0644, "");
	DO(setxattr("f", "user.a", "1", 1, 0));
	DO(setxattr("f", "user.a", "2", 1, XATTR_CREATE));
	DO(setxattr("f", "user.b", "2", 1, XATTR_REPLACE));
	DO(setxattr("f", "user.b", value, 3000, XATTR_CREATE));
	DO(getxattr("f", "user.b", back, sizeof back - 1));
	DO(getxattr("f", "user.b", back, 5));
	DO(getxattr("f", "user.b", NULL, 0));
	DO(getxattr("f", "user.none", back, 5));
	DO(setxattr("f", "user.huge", value, 65537, 0));
	DO(setxattr("f", "user.", "", 0, 0));
	DO(setxattr("f", "nonsense.x", "", 0, 0));
	DO(setxattr("f", "user.empty", "", 0, 0));
	DO(getxattr("f", "user.empty", back, 5));
	n = listxattr("f", list, sizeof list);
	note("%zd\n", n);
	for (ssize_t i = 0; i < n; i += strlen(list + i) + 1)
		note("%s\n", list + i);
	DO(listxattr("f", list, 3));
	DO(listxattr("f", NULL, 0));
	DO(removexattr("f", "user.a"));
	DO(removexattr("f", "user.a"));
	DO(symlink("f", "l"));
	DO(lsetxattr("l", "user.x", "", 0, 0));
	DO(mkfifo("p", 0644));
	DO(setxattr("p", "user.x", "", 0, 0));
	mkdir("d", 0755);
	DO(setxattr("d", "user.x", "1", 1, 0));
	DO(getxattr("d", "user.x", back, 5));
}

static void lists_and_figures(void)
{
	struct statvfs a;
	struct statx x;

	make("f", 0640, "12345");
	DO(statvfs("f", &a));
	note("%lu %lu %d\n", a.f_bsize, a.f_namemax, a.f_blocks > 0);
	DO(statx(AT_FDCWD, "f", 0, STATX_BASIC_STATS | STATX_BTIME, &x));
	note("%o %llu btime %d %d\n", x.stx_mode, x.stx_size, !!(x.stx_mask & STATX_BTIME), x.stx_btime.tv_sec > 1700000000);
	DO(statx(AT_FDCWD, "f", AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &x));
	note("%llu\n", x.stx_size);
}

static void folders(void)
{
	char name[300];
	long at = 0, again;
	unsigned n = 0, bad = 0;
	struct dirent *e;
	DIR *d;

	for (int i = 0; i < 500; i++) {
		snprintf(name, sizeof name, "%03d-%.*s", i, i % 250, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
			"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
			"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
		make(name, 0644, "");
	}
	d = opendir(".");
	while ((e = readdir(d))) {
		struct stat st;

		if (!lstat(e->d_name, &st))
			bad += st.st_ino != e->d_ino || (e->d_type != DT_UNKNOWN && e->d_type != st.st_mode >> 12);
		if (++n == 100)
			at = telldir(d);
		if (n == 101)
			strcpy(name, e->d_name);
	}
	note("%u bad %u\n", n, bad);
	seekdir(d, at);
	e = readdir(d);
	note("again %d\n", e && !strcmp(e->d_name, name));
	rewinddir(d);
	for (again = 0; readdir(d); again++)
		;
	note("%ld\n", again);
	unlink(name);
	rewinddir(d);
	for (again = 0; readdir(d); again++)
		;
	note("%ld\n", again);
	closedir(d);
}

const struct posix_case posix_attributes[] = {
	CASE(times), CASE(times_move), CASE(set_ids), CASE(owners), CASE(permissions), CASE(creation),
	CASE(attributes), CASE(lists_and_figures), CASE(folders),
	{NULL, NULL},
};
