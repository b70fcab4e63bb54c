/* SPDX-License-Identifier: MIT */
/* Who may, by what else there is than mode bits; and what writing takes away: ACLs, groups, capabilities, sticky folders. */
#include "posix.h"

enum { USER_OBJ = 1, USER = 2, GROUP_OBJ = 4, GROUP = 8, MASK = 16, OTHER = 32, GROUPS = 40 };

struct acl {
	unsigned version;
	struct {
		unsigned short tag, perm;
		unsigned id;
	} e[6];
};

/* An ACL's form in its attribute: another user, another group, what they may. */
static int set_acl(const char *name, const char *kind, unsigned user_perm, unsigned group_perm, unsigned mask)
{
	const struct acl a = {2, {{USER_OBJ, 6, -1}, {USER, user_perm, 1000}, {GROUP_OBJ, 0, -1}, {GROUP, group_perm, 2000},
		{MASK, mask, -1}, {OTHER, 0, -1}}};

	return setxattr(name, kind, &a, sizeof a, 0);
}

static void opens(const char *name, int flags)
{
	int fd = open(name, flags, 0666);

	note("%s %x: %s\n", name, flags, fd < 0 ? strerrorname_np(errno) : "fd");
	close(fd);
}

static void by_acl(void)
{
	opens("user", O_RDONLY);
	opens("user", O_RDWR);
	opens("group", O_RDONLY);
	opens("group", O_WRONLY);
	opens("masked", O_RDONLY);
	opens("masked", O_WRONLY);
	opens("d/inherited", O_RDWR);
	DO(mkdir("d/own", 0777));
	DO(set_acl("d/own", "system.posix_acl_access", 7, 7, 7));
	DO(set_acl("user", "system.posix_acl_access", 7, 7, 7));
}

static void acls(void)
{
	static char value[1000];

	umask(027);
	make("user", 0600, "u");
	make("group", 0600, "g");
	make("masked", 0600, "m");
	DO(set_acl("user", "system.posix_acl_access", 6, 0, 7));
	DO(set_acl("group", "system.posix_acl_access", 4, 2, 7));
	DO(set_acl("masked", "system.posix_acl_access", 6, 6, 4));
	DO(mkdir("d", 0777));
	DO(chmod("d", 0777));
	DO(set_acl("d", "system.posix_acl_default", 7, 5, 7));
	DO(set_acl("user", "system.posix_acl_default", 7, 5, 7));
	make("d/inherited", 0666, "i");
	DO(mkdir("d/sub", 0777));
	look("d/inherited");
	look("d/sub");
	DO(getxattr("d/sub", "system.posix_acl_default", value, sizeof value));
	DO(getxattr("d/inherited", "system.posix_acl_access", value, sizeof value));
	as(1000, 1000, 4000, by_acl);
	as(1001, 1001, 2000, by_acl);
	/* The mode's group bits are the mask's. */
	DO(chmod("user", 0640));
	as(1000, 1000, 4000, by_acl);
	look("user");
	DO(removexattr("user", "system.posix_acl_access"));
	DO(removexattr("d", "system.posix_acl_default"));
	look("user");
	DO(set_acl("user", "system.posix_acl_access", 9, 0, 7));
}

static void by_groups(void)
{
	char name[16];

	for (int i = 0; i < 3; i++) {
		snprintf(name, sizeof name, "f%d", i);
		opens(name, O_RDWR);
	}
	opens("setgid/new", O_CREAT | O_RDWR);
	DO(chmod("setgid/new", 02770));
	look("setgid/new");
	DO(close(open("setgid/bits", O_CREAT | O_WRONLY, 02770)));
	look("setgid/bits");
	DO(mkdir("setgid/folder", 0770));
	look("setgid/folder");
}

/* Far more than fit into a request, if one has them in it. */
static void many_groups(void)
{
	gid_t all[GROUPS];
	int status;

	for (int i = 0; i < GROUPS; i++)
		all[i] = (gid_t)(5000 + i);
	for (int i = 0; i < 3; i++) {
		char name[16];

		snprintf(name, sizeof name, "f%d", i);
		make(name, 0660, "");
		DO(chown(name, 0, (gid_t)(5000 + i * (GROUPS - 1) / 2 + (i == 2 ? 100 : 0))));
	}
	mkdir("setgid", 0755);
	DO(chown("setgid", 0, 5000 + GROUPS - 1));
	DO(chmod("setgid", 02770));
	if (!fork()) {
		written = 0;
		if (setgroups(GROUPS, all) || setgid(1000) || setuid(1000))
			_exit(3);
		by_groups();
		make("said", 0600, transcript);
		int fd = open("setgid/said", O_CREAT | O_WRONLY, 0600);
		_exit(write(fd, transcript, written) != (ssize_t)written);
	}
	wait(&status);
	note("child %d\n", status);
	int fd = open("setgid/said", O_RDONLY);
	written += read(fd, transcript + written, 4096);
	close(fd);
	look("setgid/new");
	look("setgid/bits");
}

static void in_sticky(void)
{
	opens("t/roots", O_CREAT | O_RDWR);
	opens("t/roots", O_RDWR);
	opens("t/others", O_CREAT | O_RDWR);
	opens("t/others", O_CREAT | O_RDWR | O_EXCL);
	opens("t/own", O_CREAT | O_RDWR | O_TRUNC);
	opens("t/others-fifo", O_CREAT | O_RDWR | O_NONBLOCK);
	opens("t/link", O_CREAT | O_RDWR);
	opens("t/dir", O_CREAT | O_RDWR);
	DO(link("t/roots", "t/mine"));
	DO(rename("t/own", "t/others"));
	DO(renameat2(AT_FDCWD, "t/own", AT_FDCWD, "t/others", RENAME_EXCHANGE));
	DO(rmdir("t/dir"));
}

/* What fs.protected_* are about. */
static void sticky(void)
{
	mkdir("t", 0755);
	chmod("t", 01777);
	make("t/roots", 0666, "r");
	make("t/others", 0666, "o");
	chown("t/others", 2000, 2000);
	make("t/own", 0644, "own");
	chown("t/own", 1000, 1000);
	mkfifo("t/others-fifo", 0600);
	chown("t/others-fifo", 2000, 2000);
	chmod("t/others-fifo", 0666);
	symlink("own", "t/link");
	lchown("t/link", 2000, 2000);
	mkdir("t/dir", 0777);
	as(1000, 1000, 1000, in_sticky);
	look("t/own");
	look("t/others");
}

static void writers(void)
{
	int from = open("from", O_RDONLY), fd = open("copied", O_RDWR);

	DO(copy_file_range(from, NULL, fd, NULL, 4, 0));
	close(fd);
	fd = open("mapped", O_RDWR);
	DO(pwrite(fd, "w", 1, 0));
	close(fd);
	fd = open("zeroed", O_RDWR);
	DO(fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, 2));
	close(fd);
	fd = open("punched", O_RDWR);
	DO(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2));
	close(fd);
	fd = open("appended", O_WRONLY | O_APPEND);
	DO(write(fd, "w", 1));
	close(fd);
	fd = open("only-group", O_WRONLY);
	DO(write(fd, "w", 1));
	close(fd);
	close(from);
}

/* security.capability, as setcap leaves it, and set-id bits, by each way of writing. */
static void writing_clears(void)
{
	static const char *const all[] = {"copied", "mapped", "zeroed", "punched", "appended", "only-group"};
	static const unsigned cap[] = {0x02000001, 0x400, 0, 0, 0};
	char value[40];

	make("from", 0644, "from");
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
		make(all[i], 0666, "text");
		DO(setxattr(all[i], "security.capability", cap, sizeof cap, 0));
		DO(chmod(all[i], i == 5 ? 02666 : 06777));
	}
	as(1000, 1000, 1000, writers);
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
		look(all[i]);
		DO(getxattr(all[i], "security.capability", value, sizeof value));
	}
	make("chowned", 0755, "");
	DO(setxattr("chowned", "security.capability", cap, sizeof cap, 0));
	DO(chown("chowned", 1000, 1000));
	DO(getxattr("chowned", "security.capability", value, sizeof value));
}

static void no_owner(void)
{
	opens("f", O_RDONLY | O_NOATIME);
	opens("own", O_RDONLY | O_NOATIME);
	opens("f", O_PATH);
	DO(linkat(open("own", O_PATH), "", AT_FDCWD, "linked", AT_EMPTY_PATH));
	DO(chroot("."));
	DO(mknod("dev", S_IFCHR | 0600, makedev(1, 3)));
	DO(mknod("whiteout", S_IFCHR | 0600, 0));
}

static void odd_opens(void)
{
	DO(chmod(".", 0777));
	make("f", 0644, "");
	make("own", 0644, "");
	DO(chown("own", 1000, 1000));
	as(1000, 1000, 1000, no_owner);
	look("whiteout");
	make("old", 0644, "old");
	DO(renameat2(AT_FDCWD, "old", AT_FDCWD, "new", RENAME_WHITEOUT));
	look("old");
	look("new");
	DO(renameat2(AT_FDCWD, "new", AT_FDCWD, "f", RENAME_WHITEOUT | RENAME_NOREPLACE));
	DO(linkat(open("f", O_PATH), "", AT_FDCWD, "by-descriptor", AT_EMPTY_PATH));
	look("by-descriptor");
	opens("f", O_RDONLY | O_CREAT | O_DIRECTORY);
	opens(".", O_RDONLY | O_CREAT);
	opens("f/", O_RDONLY);
	opens("none/", O_CREAT | O_WRONLY);
}

const struct posix_case posix_access[] = {
	CASE(acls), CASE(many_groups), CASE(sticky), CASE(writing_clears), CASE(odd_opens),
	{NULL, NULL},
};
