/* SPDX-License-Identifier: MIT */
/* Where things are kept: the data folder, the run folder, and where the agent is found. */
#include "store/store.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/statfs.h>

#include "base/fail.h"
#include "base/fd.h"
#include "store/store_private.h"

enum {
	RUN_PATH_MAX = 80, /* ID/agent.sock must fit in a socket's address, 108 bytes */
	PARENTS = 5,       /* from <prefix>/lib/TRIPLET/lua/5.4 up to <prefix> */
};
/* What guest memory could live in: a container's /dev/shm of 64 MiB could not hold a single guest. */
static const uint64_t tmpfs_least = UINT64_C(512) << 20;

/* A tmpfs of a size worth using that we may write to. */
static bool is_tmpfs(const char *path)
{
	struct statfs fs;

	if (statfs(path, &fs) < 0 || fs.f_type != TMPFS_MAGIC || access(path, W_OK | X_OK) < 0)
		return false;
	return fs.f_blocks == 0 || (uint64_t)fs.f_blocks * fs.f_bsize >= tmpfs_least; /* 0: no limit */
}

static char *data_path(void)
{
	const char *env = getenv("FCVM_DATA"), *home = getenv("HOME"), *xdg = getenv("XDG_DATA_HOME");
	struct passwd *pw;

	if (env && *env)
		return strdup(env);
	if (xdg && xdg[0] == '/')
		return fcvm_asprintf("%s/fcvm", xdg);
	if (!home || home[0] != '/') {
		pw = getpwuid(geteuid());
		home = pw ? pw->pw_dir : "/";
	}
	return fcvm_asprintf("%s/.local/share/fcvm", home);
}

static char *run_path(void)
{
	const char *env = getenv("FCVM_RUN"), *xdg = getenv("XDG_RUNTIME_DIR");
	unsigned uid = geteuid();

	if (env && *env)
		return strdup(env);
	if (is_tmpfs("/dev/shm"))
		return fcvm_asprintf("/dev/shm/fcvm-%u", uid);
	if (xdg && xdg[0] == '/' && access(xdg, W_OK | X_OK) == 0)
		return fcvm_asprintf("%s/fcvm", xdg);
	return fcvm_asprintf("/tmp/fcvm-%u", uid);
}

/* Of an open folder. */
static char *absolute(int fd)
{
	char link[40], path[PATH_MAX];
	ssize_t n;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof path);
	return n > 0 && n < (ssize_t)sizeof path ? strndup(path, n) : NULL;
}

static int open_data(struct fcvm_store *s, struct fcvm_err *err)
{
	_cleanup_free_ char *path = data_path();
	int r = path ? fcvm_dir_make(path, 0700) : -ENOMEM;
	struct stat st;

	if (r == 0) {
		/* May be a symbolic link to a larger disk. */
		s->data_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		r = s->data_fd < 0 || fstat(s->data_fd, &st) < 0 ? -errno : 0;
	}
	if (r < 0)
		return fcvm_fail_errno(err, r, "data folder %s; set FCVM_DATA to one that you can write to", path);
	if (st.st_mode & S_IWOTH)
		return fcvm_fail(err, -EPERM,
			"data folder %s can be written to by everybody; chmod 700 it, or set FCVM_DATA to another", path);
	s->data = absolute(s->data_fd);
	if (!s->data)
		return fcvm_fail_errno(err, -ENOMEM, "data folder %s", path);
	s->tmp_fd = store_make_dir(s->data_fd, "tmp");
	if (s->tmp_fd < 0)
		return fcvm_fail_errno(err, s->tmp_fd, "data folder %s/tmp; set FCVM_DATA to one that you can write to",
			s->data);
	return 0;
}

/* Others' symbolic link, folder or permissions in /dev/shm or /tmp would put them in reach of our guests. */
static int check_run(int fd, const char *path, struct fcvm_err *err)
{
	const char *remedy = "remove it, or set FCVM_RUN to a folder of your own";
	struct stat st;

	if (fd == -ENOTDIR || fd == -ELOOP)
		return fcvm_fail(err, -EPERM, "run folder %s is a symbolic link or a file; %s", path, remedy);
	if (fd < 0 || fstat(fd, &st) < 0)
		return fcvm_fail_errno(err, fd < 0 ? fd : -errno, "run folder %s; set FCVM_RUN to another", path);
	if (st.st_uid != geteuid())
		return fcvm_fail(err, -EPERM, "run folder %s belongs to user %u, not to us; %s", path,
			(unsigned)st.st_uid, remedy);
	if ((st.st_mode & 07777 & ~02000) != 0700) /* a folder may inherit set-group-id */
		return fcvm_fail(err, -EPERM, "run folder %s has mode %04o, must have 0700: chmod 700 %s", path,
			(unsigned)st.st_mode & 07777, path);
	return 0;
}

static int open_run(struct fcvm_store *s, struct fcvm_err *err)
{
	_cleanup_free_ char *path = run_path();
	char *end, *slash;
	int r = 0;

	if (!path)
		return fcvm_fail_errno(err, -ENOMEM, "run folder");
	/* A trailing slash would follow a symbolic link. */
	for (end = path + strlen(path); end > path + 1 && end[-1] == '/'; end--)
		end[-1] = 0;
	slash = strrchr(path, '/');
	if (slash > path) {
		*slash = 0;
		r = fcvm_dir_make(path, 0700);
		*slash = '/';
	}
	if (r < 0)
		return fcvm_fail_errno(err, r, "run folder %s; set FCVM_RUN to another", path);
	s->run_fd = store_make_dir(AT_FDCWD, path);
	r = check_run(s->run_fd, path, err);
	if (r < 0)
		return r;
	s->run = absolute(s->run_fd);
	if (!s->run)
		return fcvm_fail_errno(err, -ENOMEM, "run folder %s", path);
	if (strlen(s->run) > RUN_PATH_MAX)
		return fcvm_fail(err, -ENAMETOOLONG,
			"run folder %s: the path is longer than the %d bytes that leave room for sockets; set FCVM_RUN "
			"to a shorter one",
			s->run, (int)RUN_PATH_MAX);
	return 0;
}

int fcvm_store_open(struct fcvm_store **ret, struct fcvm_node *node, struct fcvm_err *err)
{
	struct fcvm_store *s = calloc(1, sizeof *s);
	int r;

	if (!s)
		return fcvm_fail_errno(err, -ENOMEM, "open the store");
	s->data_fd = s->run_fd = s->tmp_fd = -1;
	s->node = node ? fcvm_node_ref(node) : NULL;
	r = open_data(s, err);
	if (r == 0)
		r = open_run(s, err);
	if (r < 0) {
		fcvm_store_close(s);
		return r;
	}
	*ret = s;
	return 0;
}

void fcvm_store_close(struct fcvm_store *s)
{
	if (!s)
		return;
	fcvm_close(s->data_fd);
	fcvm_close(s->run_fd);
	fcvm_close(s->tmp_fd);
	fcvm_node_unref(s->node);
	free(s->data);
	free(s->run);
	free(s);
}

const char *fcvm_store_data(const struct fcvm_store *s)
{
	return s->data;
}

const char *fcvm_store_run(const struct fcvm_store *s)
{
	return s->run;
}

/* ---- what fcvm brings along ---- */

struct places {
	char text[900]; /* where was looked, for the message */
	char *found;
};

static bool look(struct places *p, const char *dir, const char *below, const char *file)
{
	_cleanup_free_ char *path = fcvm_asprintf("%s/%s%s", dir, below, file);
	size_t used = strlen(p->text);
	struct stat st;

	if (!path)
		return false;
	/* The VMM will be made to load it, so it must be ours or the system's: a folder above may be /tmp. */
	if (stat(path, &st) == 0 && S_ISREG(st.st_mode) && (st.st_uid == geteuid() || st.st_uid == 0)) {
		p->found = fcvm_steal_ptr(path);
		return true;
	}
	snprintf(p->text + used, sizeof p->text - used, "%s%s", used ? ", " : "", path);
	return false;
}

/* Beside the object or up to two folders above (the build tree), or in libexec/fcvm of a folder above it. */
static bool look_around(struct places *p, const char *object, const char *file)
{
	_cleanup_free_ char *dir = realpath(object, NULL);
	char *slash = dir ? strrchr(dir, '/') : NULL;

	if (!slash)
		return false;
	*slash = 0;
	if (look(p, dir, "", file))
		return true;
	for (int i = 0; i < PARENTS && (slash = strrchr(dir, '/')); i++) {
		*slash = 0;
		if ((i < 2 && look(p, dir, "", file)) || look(p, dir, "libexec/fcvm/", file))
			return true;
	}
	return false;
}

int fcvm_store_libexec(const char *file, char **ret, struct fcvm_err *err)
{
	const char *env = getenv("FCVM_LIBEXEC");
	struct places p = {.found = NULL};
	Dl_info info;

	if (env && *env) {
		_cleanup_free_ char *dir = realpath(env, NULL);

		look(&p, dir ? dir : env, "", file);
	} else if (!dladdr((void *)fcvm_store_libexec, &info) || !info.dli_fname ||
		   !look_around(&p, info.dli_fname, file)) {
		look_around(&p, "/proc/self/exe", file);
	}
	if (!p.found)
		return fcvm_fail(err, -ENOENT, "%s was not found (%s); set FCVM_LIBEXEC to its folder", file, p.text);
	*ret = p.found;
	return 0;
}
