/* SPDX-License-Identifier: MIT */
#include "base/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int parse_tcp(const char *text, struct fcvm_address *ret)
{
	const char *colon = strrchr(text, ':');
	char host[64];
	size_t size;
	char *end;
	long port;

	if (!colon || colon[1] < '0' || colon[1] > '9')
		return -EINVAL;
	port = strtol(colon + 1, &end, 10);
	size = colon - text;
	if (*end || port > 65535 || size >= sizeof host)
		return -EINVAL;
	if (size > 1 && text[0] == '[' && text[size - 1] == ']') {
		text++;
		size -= 2;
	}
	memcpy(host, text, size);
	host[size] = 0;
	if (inet_pton(AF_INET, strcmp(host, "localhost") == 0 ? "127.0.0.1" : host, &ret->in.sin_addr) == 1) {
		ret->in.sin_family = AF_INET;
		ret->in.sin_port = htons(port);
		ret->size = sizeof ret->in;
		return 0;
	}
	if (inet_pton(AF_INET6, host, &ret->in6.sin6_addr) != 1)
		return -EINVAL;
	ret->in6.sin6_family = AF_INET6;
	ret->in6.sin6_port = htons(port);
	ret->size = sizeof ret->in6;
	return 0;
}

/* unix(7): the name is what the size says, NULs included. */
static int parse_abstract(const char *name, struct fcvm_address *ret)
{
	size_t size = strlen(name);

	if (!size)
		return -EINVAL;
	if (size > sizeof ret->un.sun_path - 1)
		return -ENAMETOOLONG;
	memcpy(ret->un.sun_path + 1, name, size);
	ret->size = offsetof(struct sockaddr_un, sun_path) + 1 + size;
	return 0;
}

/* A sockaddr_un holds 107 bytes; a longer path is named by way of its folder's descriptor. */
static int parse_unix(const char *path, struct fcvm_address *ret)
{
	_cleanup_free_ char *folder = NULL;
	const char *slash = strrchr(path, '/');
	int n;

	ret->un.sun_family = AF_UNIX;
	ret->size = sizeof ret->un;
	if (!path[0])
		return -EINVAL;
	if (path[0] == '@')
		return parse_abstract(path + 1, ret);
	if (strlen(path) < sizeof ret->un.sun_path) {
		strcpy(ret->un.sun_path, path);
		return 0;
	}
	folder = slash ? strndup(path, slash - path + 1) : strdup(".");
	if (!folder)
		return -ENOMEM;
	ret->dirfd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (ret->dirfd < 0)
		return -errno;
	n = snprintf(ret->un.sun_path, sizeof ret->un.sun_path, "/proc/self/fd/%d/%s", ret->dirfd,
		slash ? slash + 1 : path);
	return n < (int)sizeof ret->un.sun_path ? 0 : -ENAMETOOLONG;
}

int fcvm_address_parse(const char *text, struct fcvm_address *ret)
{
	*ret = (struct fcvm_address){.dirfd = -1};
	if (strncmp(text, "tcp:", 4) == 0)
		return parse_tcp(text + 4, ret);
	return strncmp(text, "unix:", 5) == 0 ? parse_unix(text + 5, ret) : -EINVAL;
}

void fcvm_address_done(struct fcvm_address *a)
{
	a->dirfd = fcvm_close(a->dirfd);
}

int fcvm_address_socket(const struct fcvm_address *a)
{
	int fd = socket(a->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;

	if (fd < 0)
		return -errno;
	if (a->any.sa_family != AF_UNIX)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return fd;
}
