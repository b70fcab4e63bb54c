/* SPDX-License-Identifier: MIT */
/*
 * Addresses of stream sockets as text: "unix:/path", "unix:@name" (Linux's abstract namespace: no file) or
 * "tcp:ADDRESS:PORT", of the local node and of the agent.
 */
#ifndef FCVM_BASE_ADDRESS_H
#define FCVM_BASE_ADDRESS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/cleanup.h"

struct fcvm_address {
	union {
		struct sockaddr any;
		struct sockaddr_un un;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	};
	socklen_t size;
	int dirfd; /* the folder of a path that does not fit a sockaddr_un, which goes by it; -1 */
};

static inline bool fcvm_address_has_file(const struct fcvm_address *a)
{
	return a->any.sa_family == AF_UNIX && a->un.sun_path[0];
}

/* 0, -EINVAL: not an address, or -errno. In either case *ret is to be given to _done. */
int fcvm_address_parse(const char *text, struct fcvm_address *ret);
void fcvm_address_done(struct fcvm_address *a);
/* A non-blocking stream socket of its family; fd or -errno. */
int fcvm_address_socket(const struct fcvm_address *a);

#endif
