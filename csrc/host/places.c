/* SPDX-License-Identifier: MIT */
#include "host/places.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"

/* Folder of this program's file, malloc'ed. */
static char *own_folder(void)
{
	char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
	char *slash;

	if (n <= 0)
		return NULL;
	path[n] = 0;
	slash = strrchr(path, '/');
	if (!slash)
		return NULL;
	*slash = 0;
	return strdup(path);
}

/* "<base>/<rest>" if it holds `what`. */
static char *if_there(const char *base, const char *rest, const char *what)
{
	char *folder = fcvm_asprintf("%s/%s", base, rest);
	_cleanup_free_ char *probe = folder ? fcvm_asprintf("%s/%s", folder, what) : NULL;

	if (probe && access(probe, F_OK) == 0)
		return folder;
	free(folder);
	return NULL;
}

/* Installed: <prefix>/bin/fcvm; built: <source>/build/fcvm, or wherever the build folder was put.
 */
static char *find(const char *installed, const char *in_source, const char *what)
{
	_cleanup_free_ char *folder = own_folder();
	char *found = NULL;

	if (folder && strcmp(strrchr(folder, '/') ? strrchr(folder, '/') : "", "/bin") == 0)
		found = if_there(folder, installed, what);
	if (!found && folder)
		found = if_there(folder, in_source, what);
#ifdef FCVM_SOURCE_DIR
	if (!found)
		found = if_there(FCVM_SOURCE_DIR, in_source + strlen("../"), what);
#endif
	return found;
}

char *place_of_lua(void)
{
	return find("../share/lua/5.4", "../lua", "fcvm/init.lua");
}

char *place_of_scripts(void)
{
	return find("../share/fcvm/scripts", "../scripts", ".");
}
