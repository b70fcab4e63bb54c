/* SPDX-License-Identifier: MIT */
/* Names: errors, symlinks, links, renames, special files. */
#include "posix.h"

static void names_errors(void)
{
	char longest[258], path[5000];
	struct stat st;

	memset(longest, 'n', sizeof longest);
	longest[255] = 0;
	DO(mkdir(longest, 0755));
	DO(rmdir(longest));
	longest[255] = 'n';
	longest[256] = 0;
	DO(mkdir(longest, 0755));
	DO(stat(longest, &st));
	DO(open(longest, O_CREAT | O_WRONLY, 0644));
	DO(symlink("x", longest));
	make("f", 0644, "x");
	DO(rename("f", longest));
	DO(link("f", longest));
	memset(path, 'p', sizeof path);
	path[4999] = 0;
	DO(symlink(path, "l"));
	DO(stat("f/x", &st));
	DO(mkdir("f/x", 0755));
	DO(mkdir("missing/x", 0755));
	DO(mkdir("f", 0755));
	DO(rmdir("f"));
	DO(unlink("missing"));
	mkdir("d", 0755);
	DO(unlink("d"));
	DO(open("d", O_WRONLY));
	DO(open("f", O_RDONLY | O_DIRECTORY));
	DO(open("f", O_CREAT | O_EXCL, 0644));
	DO(rmdir("d/."));
	DO(rmdir("d/.."));
	make("d/e", 0644, "");
	DO(rmdir("d"));
	look("d");
}

static void symlinks(void)
{
	char text[300];
	struct stat st;
	ssize_t n;

	DO(symlink("loop2", "loop1"));
	DO(symlink("loop1", "loop2"));
	DO(stat("loop1", &st));
	DO(open("loop1", O_RDONLY));
	DO(open("loop1", O_CREAT | O_EXCL, 0644));
	DO(symlink("target", "l"));
	DO(open("l", O_RDONLY | O_NOFOLLOW));
	n = readlink("l", text, sizeof text);
	note("%.*s %zd\n", (int)n, text, n);
	DO(readlink("l", text, 3));
	DO(symlink("", "empty"));
	DO(symlink("x", "l"));
	make("target", 0600, "t");
	DO(chmod("l", 0640));
	look("target");
	look("l");
	DO(lchown("l", 5, 6));
	look("l");
	look("target");
	DO(chown("l", 7, 8));
	look("target");
	DO(link("l", "hard"));
	look("hard");
	DO(linkat(AT_FDCWD, "l", AT_FDCWD, "hard2", AT_SYMLINK_FOLLOW));
	look("hard2");
	DO(symlink("..", "up"));
	DO(stat("up/.", &st));
	DO(unlink("l"));
	look("target");
}

static void links(void)
{
	make("a", 0644, "text");
	DO(link("a", "b"));
	look("a");
	look("b");
	DO(link("a", "b"));
	mkdir("d", 0755);
	DO(link("d", "e"));
	DO(link("a", "d/c"));
	look("a");
	DO(unlink("a"));
	look("b");
	DO(rename("b", "d/c"));
	look("b");
	look("d/c");
	DO(unlink("b"));
	look("d/c");
	DO(link("missing", "x"));
	DO(link("d/c", "missing/x"));
}

static void renames(void)
{
	struct stat before, after;

	mkdir("d", 0755);
	mkdir("e", 0755);
	make("d/f", 0644, "1");
	make("g", 0600, "22");
	stat("g", &before);
	DO(rename("g", "d/f"));
	stat("d/f", &after);
	note("same inode %d\n", before.st_ino == after.st_ino);
	look("d/f");
	look("g");
	DO(rename("d", "e"));
	look("e/f");
	DO(rename("e", "e/sub"));
	make("h", 0644, "");
	DO(rename("h", "e"));
	DO(rename("e", "h"));
	mkdir("full", 0755);
	make("full/x", 0644, "");
	DO(rename("e", "full"));
	DO(rename("missing", "x"));
	DO(rename("h", "h"));
	DO(renameat2(AT_FDCWD, "h", AT_FDCWD, "full", RENAME_NOREPLACE));
	DO(renameat2(AT_FDCWD, "h", AT_FDCWD, "new", RENAME_NOREPLACE));
	DO(renameat2(AT_FDCWD, "new", AT_FDCWD, "full", RENAME_EXCHANGE));
	look("new");
	look("full");
	DO(renameat2(AT_FDCWD, "new", AT_FDCWD, "missing", RENAME_EXCHANGE));
	DO(renameat2(AT_FDCWD, "new", AT_FDCWD, "x", RENAME_EXCHANGE | RENAME_NOREPLACE));
	DO(rename("e", "."));
	DO(rename("full", "/dev/shm/fcvm-posix-other"));
}

static void link_counts(void)
{
	struct stat st;

	mkdir("d", 0755);
	for (int i = 0; i < 3; i++) {
		char name[8];

		snprintf(name, sizeof name, "d/%d", i);
		mkdir(name, 0755);
		stat("d", &st);
		note("%lu\n", st.st_nlink);
	}
	DO(rmdir("d/1"));
	stat("d", &st);
	note("%lu\n", st.st_nlink);
	DO(rename("d/2", "moved"));
	stat("d", &st);
	note("%lu\n", st.st_nlink);
	DO(rename("moved", "d/0"));
	stat("d", &st);
	note("%lu\n", st.st_nlink);
}

static void special_files(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "sock"};
	int s = socket(AF_UNIX, SOCK_STREAM, 0), c = socket(AF_UNIX, SOCK_STREAM, 0);
	char text[4] = "";

	DO(mkfifo("fifo", 0640));
	look("fifo");
	OPEN(r, "fifo", O_RDONLY | O_NONBLOCK);
	OPEN(w, "fifo", O_WRONLY);
	DO(write(w, "abc", 3));
	DO(read(r, text, 3));
	note("%s\n", text);
	DO(bind(s, (struct sockaddr *)&a, sizeof a));
	DO(listen(s, 1));
	look("sock");
	DO(connect(c, (struct sockaddr *)&a, sizeof a));
	DO(mknod("regular", S_IFREG | 0604, 0));
	look("regular");
	DO(open("sock", O_RDONLY));
	close(r);
	close(w);
	close(s);
	close(c);
}

const struct posix_case posix_names[] = {
	CASE(names_errors), CASE(symlinks), CASE(links), CASE(renames), CASE(link_counts), CASE(special_files),
	{NULL, NULL},
};
