/* SPDX-License-Identifier: MIT */
/* The seam itself: counts references and passes on to the node's kind. */
#include <stdlib.h>

#include "node/node_private.h"

struct fcvm_node *fcvm_node_ref(struct fcvm_node *n)
{
	atomic_fetch_add(&n->refs, 1);
	return n;
}

void fcvm_node_unref(struct fcvm_node *n)
{
	char *name;

	if (!n || atomic_fetch_sub(&n->refs, 1) != 1)
		return;
	name = n->name;
	n->ops->free(n);
	free(name);
}

const char *fcvm_node_name(const struct fcvm_node *n)
{
	return n->name;
}

int fcvm_node_spawn(struct fcvm_node *n, const struct fcvm_spawn *spec,
	const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err)
{
	return n->ops->spawn(n, spec, until, ret, err);
}

int fcvm_node_connect(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
	int *ret_fd, struct fcvm_err *err)
{
	return n->ops->connect(n, address, until, ret_fd, err);
}

int fcvm_node_listen(struct fcvm_node *n, const char *address, const struct fcvm_until *until,
	struct fcvm_listener **ret, struct fcvm_err *err)
{
	return n->ops->listen(n, address, until, ret, err);
}

int fcvm_node_get(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
	struct fcvm_process **ret, struct fcvm_err *err)
{
	return n->ops->get(n, path, until, ret, err);
}

int fcvm_node_put(struct fcvm_node *n, const char *path, const char *base_name, bool keep_owner,
	const struct fcvm_until *until, struct fcvm_process **ret, struct fcvm_err *err)
{
	return n->ops->put(n, path, base_name, keep_owner, until, ret, err);
}

int fcvm_node_read_file(struct fcvm_node *n, const char *path, size_t max,
	const struct fcvm_until *until, char **ret, size_t *ret_size, struct fcvm_err *err)
{
	return n->ops->read_file(n, path, max, until, ret, ret_size, err);
}

int fcvm_node_write_file(struct fcvm_node *n, const char *path, const void *data, size_t size,
	mode_t mode, const struct fcvm_until *until, struct fcvm_err *err)
{
	return n->ops->write_file(n, path, data, size, mode, until, err);
}

int fcvm_node_stat(struct fcvm_node *n, const char *path, const struct fcvm_until *until,
	struct fcvm_node_stat *ret, struct fcvm_err *err)
{
	return n->ops->stat(n, path, until, ret, err);
}

int fcvm_node_mkdir(struct fcvm_node *n, const char *path, mode_t mode, bool parents, bool lease,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	return n->ops->mkdir(n, path, mode, parents, lease, until, err);
}

int fcvm_node_rename(struct fcvm_node *n, const char *from, const char *to,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	return n->ops->rename(n, from, to, until, err);
}

int fcvm_node_remove(
	struct fcvm_node *n, const char *path, const struct fcvm_until *until, struct fcvm_err *err)
{
	return n->ops->remove(n, path, until, err);
}

int fcvm_node_reflink(struct fcvm_node *n, const char *from, const char *to,
	const struct fcvm_until *until, struct fcvm_err *err)
{
	return n->ops->reflink(n, from, to, until, err);
}

int fcvm_node_info(struct fcvm_node *n, const struct fcvm_until *until, struct fcvm_node_info *ret,
	struct fcvm_err *err)
{
	return n->ops->info(n, until, ret, err);
}
