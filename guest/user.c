/* SPDX-License-Identifier: MIT */
/*
 * Users by /etc/passwd and /etc/group, read directly: a static program has no name service. Formats: passwd(5),
 * group(5).
 */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fd.h"

enum { MAX_FILE = 4 * 1024 * 1024 };

/* Whole and unsigned, nothing behind it. */
static bool number(const char *s, uint32_t *ret)
{
	unsigned long v;
	char *end;

	if (*s < '0' || *s > '9')
		return false;
	errno = 0;
	v = strtoul(s, &end, 10);
	if (*end || errno || v >= UINT32_MAX)
		return false;
	*ret = v;
	return true;
}

/* Cuts the line at the colons, in place; missing fields are "". */
static void cut(char *line, char **fields, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		fields[i] = line ? strsep(&line, ":") : "";
}

/* Looks for the name, or for the uid if name is NULL. */
static bool find_in_passwd(const char *name, uint32_t uid, struct user *u)
{
	_cleanup_free_ char *text = NULL;
	char *rest, *line, *f[7];

	if (fcvm_file_read(AT_FDCWD, "/etc/passwd", MAX_FILE, &text, NULL) < 0)
		return false;
	for (rest = text; (line = strsep(&rest, "\n"));) {
		uint32_t id, group;

		cut(line, f, 7);
		if (!number(f[2], &id) || !number(f[3], &group))
			continue;
		if (name ? strcmp(f[0], name) != 0 : id != uid)
			continue;
		u->uid = id;
		u->gid = group;
		snprintf(u->name, sizeof u->name, "%s", f[0]);
		snprintf(u->home, sizeof u->home, "%s", *f[5] ? f[5] : "/");
		return true;
	}
	return false;
}

static bool listed(char *members, const char *name)
{
	char *member;

	while ((member = strsep(&members, ",")))
		if (strcmp(member, name) == 0)
			return true;
	return false;
}

static void find_groups(struct user *u)
{
	const unsigned max = sizeof u->groups / sizeof *u->groups;
	_cleanup_free_ char *text = NULL;
	char *rest, *line, *f[4];

	u->groups[u->ngroups++] = u->gid;
	if (fcvm_file_read(AT_FDCWD, "/etc/group", MAX_FILE, &text, NULL) < 0)
		return;
	for (rest = text; u->ngroups < max && (line = strsep(&rest, "\n"));) {
		uint32_t gid;

		cut(line, f, 4);
		if (number(f[2], &gid) && gid != u->gid && listed(f[3], u->name))
			u->groups[u->ngroups++] = gid;
	}
}

int user_find(const char *what, struct user *u, struct fcvm_err *err)
{
	const char *colon = strchr(what, ':');
	char first[32];
	uint32_t id;

	*u = (struct user){.set = *what};
	strcpy(u->home, "/");
	if (!*what)
		return 0;
	if (colon) {
		snprintf(first, sizeof first, "%.*s", (int)(colon - what), what);
		if (!number(first, &u->uid) || !number(colon + 1, &u->gid))
			return fcvm_fail(err, -EINVAL, "user %s: want a name, uid or uid:gid", what);
		id = u->gid;
		find_in_passwd(NULL, u->uid, u);
		u->gid = id;
		u->groups[u->ngroups++] = id;
		return 0;
	}
	if (number(what, &id)) {
		u->uid = u->gid = id;
		if (!find_in_passwd(NULL, id, u)) {
			u->groups[u->ngroups++] = id;
			return 0;
		}
	} else if (!find_in_passwd(what, 0, u)) {
		return fcvm_fail(err, -ENOENT, "user %s: not in /etc/passwd", what);
	}
	find_groups(u);
	return 0;
}
