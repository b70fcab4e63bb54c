/* SPDX-License-Identifier: MIT */
/* From one node to another: the stream of a get into a put. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "node/run.h"

enum { CHUNK = 128 * 1024, TEXT_MAX = 1400 };

struct copy {
	struct fcvm_process *get, *put;
	struct fcvm_node *waits; /* whose poll is used */
	struct fcvm_collector get_text, put_text;
	char *chunk;
	size_t start, size; /* of what is on its way in chunk */
};

/* ---- where it goes ---- */

static bool is_folder(struct fcvm_node *n, const char *path, const struct fcvm_until *until)
{
	_cleanup_free_ char *itself = fcvm_asprintf("%s/.", path); /* follows a symlink */
	struct fcvm_node_stat st;

	return itself && fcvm_node_stat(n, itself, until, &st, NULL) == 0 && S_ISDIR(st.mode);
}

/* The name that `from` keeps inside an existing folder, malloc'ed; "" if only its content is meant.
 */
static char *own_name(const char *from)
{
	const char *slash = strrchr(from, '/');
	const char *name = slash ? slash + 1 : from;

	if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		name = "";
	return strdup(name);
}

static int find_target(const char *from, struct fcvm_node *n, const char *to,
	const struct fcvm_until *until, char **ret, struct fcvm_err *err)
{
	_cleanup_free_ char *name = own_name(from);
	size_t size = strlen(to);

	while (size > 1 && to[size - 1] == '/')
		size--;
	if (name && name[0] && is_folder(n, to, until))
		*ret = fcvm_asprintf(
			"%.*s/%s", (int)(size == 1 && to[0] == '/' ? 0 : size), to, name);
	else if (name)
		*ret = strndup(to, size);
	return *ret ? 0 : fcvm_fail_errno(err, -ENOMEM, "%s: copy to %s", n->name, to);
}

/* ---- the pump ---- */

static void read_text(struct fcvm_process *p, struct fcvm_collector *c)
{
	char scrap[2048];
	ssize_t n = read(p->fds[2], scrap, sizeof scrap);

	if (n > 0)
		c->sink.take(&c->sink, scrap, n, NULL);
	else if (n == 0 || (errno != EAGAIN && errno != EINTR))
		fcvm_process_close_fd(p, 2);
}

static void read_data(struct copy *c)
{
	ssize_t n = read(c->get->fds[1], c->chunk, CHUNK);

	if (n > 0) {
		c->start = 0;
		c->size = n;
	} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
		fcvm_process_close_fd(c->get, 1);
	}
}

static void write_data(struct copy *c)
{
	ssize_t n = send(c->put->fds[0], c->chunk + c->start, c->size, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n >= 0) {
		c->start += n;
		c->size -= n;
	} else if (errno != EAGAIN && errno != EINTR) {
		/* It has failed, and says why. */
		fcvm_process_close_fd(c->put, 0);
	}
}

static int turn(struct copy *c, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct pollfd fds[5] = {
		{.fd = c->put->ended ? -1 : c->put->exit_fd, .events = POLLIN},
		{.fd = c->get->fds[2], .events = POLLIN},
		{.fd = c->put->fds[2], .events = POLLIN},
		{.fd = c->size == 0 && c->put->fds[0] >= 0 ? c->get->fds[1] : -1, .events = POLLIN},
		{.fd = c->size > 0 ? c->put->fds[0] : -1, .events = POLLOUT},
	};
	int k = c->waits->ops->poll(c->waits, until, fds, 5);

	if (k < 0)
		return fcvm_run_failed(c->put, k, err);
	if (fds[1].revents)
		read_text(c->get, &c->get_text);
	if (fds[2].revents)
		read_text(c->put, &c->put_text);
	if (fds[3].revents)
		read_data(c);
	if (c->size > 0 && c->put->fds[0] >= 0)
		write_data(c);
	if (c->size == 0 && c->get->fds[1] < 0)
		fcvm_process_close_fd(c->put, 0);
	if (fds[0].revents)
		return fcvm_process_wait(c->put, until, &c->put->exit, err);
	return fcvm_until_passed(until) && !c->put->ended ? fcvm_run_failed(c->put, -ETIMEDOUT, err) : 0;
}

static bool went_well(const struct fcvm_exit *e)
{
	return e->code == 0 && e->signal == 0;
}

static int pump(struct copy *c, const struct fcvm_until *until, struct fcvm_err *err)
{
	struct fcvm_exit exit;
	int k = 0;

	while (k == 0 && !(c->put->ended && c->put->fds[2] < 0))
		k = turn(c, until, err);
	if (k < 0)
		return k;
	/* Who read to the stream's end can say how the sender fared; a sender whose receiver failed
	 * need not be waited for. */
	if (c->get->fds[1] < 0 || went_well(&c->put->exit)) {
		fcvm_process_close_fd(c->get, 1);
		k = fcvm_run(c->get, NULL, 0, NULL, &c->get_text.sink, until, &exit, err);
		if (k == 0 && !went_well(&exit))
			return fcvm_run_refused(c->get, &c->get_text, err);
	}
	if (k == 0 && !went_well(&c->put->exit))
		k = fcvm_run_refused(c->put, &c->put_text, err);
	return k;
}

int fcvm_node_copy(struct fcvm_node *from_node, const char *from, struct fcvm_node *to_node,
	const char *to, const struct fcvm_until *until, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_process_free) struct fcvm_process *get = NULL;
	_cleanup_(cleanup_fcvm_process_free) struct fcvm_process *put = NULL;
	_cleanup_free_ char *chunk = malloc(CHUNK), *target = NULL;
	struct copy c = {
		.waits = fcvm_node_is_local(from_node) ? to_node : from_node,
		.chunk = chunk,
	};
	int k = chunk ? 0 : fcvm_fail_errno(err, -ENOMEM, "copy %s", from);

	fcvm_collector_init(&c.get_text, TEXT_MAX);
	fcvm_collector_init(&c.put_text, TEXT_MAX);
	if (k == 0)
		k = find_target(from, to_node, to, until, &target, err);
	if (k == 0)
		k = fcvm_node_get(from_node, from, until, &get, err);
	if (k == 0)
		k = fcvm_node_put(to_node, target, NULL, false, until, &put, err);
	c.get = get;
	c.put = put;
	if (k == 0)
		k = pump(&c, until, err);
	fcvm_buf_done(&c.get_text.buf);
	fcvm_buf_done(&c.put_text.buf);
	return k;
}
