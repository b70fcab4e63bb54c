/* SPDX-License-Identifier: MIT */
/*
 * Calls of an HTTP API over one connection that is kept alive. The only file that knows libcurl.
 *
 * libcurl makes no connections: it is handed one that the node has made, so that it works on any node. There is an answer
 * for that, CURL_SOCKOPT_ALREADY_CONNECTED, which Debian 12's 7.88 does not heed (curl/curl#10626). So it is let connect
 * to a socket that stands in, and before it sends anything its descriptor is made the connection.
 *
 * It is driven by its socket interface, since what is waited for is also the deadline, the caller's cancellation and the
 * server's end.
 *
 * It is loaded when it is first used: with the 27 libraries that it brings, being linked to it made each start of fcvm,
 * `fcvm exec` and all, take 9.8 ms instead of 3.1.
 */
#include "vmm/fc_http.h"

#define CURL_DISABLE_TYPECHECK /* its macros would call the functions by their names */
#include <curl/curl.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fail.h"
#include "base/fd.h"

/* A number, or it would be looked up. Nobody connects to it. */
#define HOST "http://127.0.0.1"

enum { ANSWER_MAX = 64 * 1024, SHOWN = 200 };

/* What is used of it: curl_NAME is curl.NAME here. */
#define FUNCTIONS(F)                                                                               \
	F(global_init) F(easy_init) F(easy_setopt) F(easy_getinfo) F(easy_strerror) F(easy_cleanup)    \
	F(multi_init) F(multi_setopt) F(multi_add_handle) F(multi_remove_handle) F(multi_socket_action) \
	F(multi_info_read) F(multi_cleanup) F(slist_append) F(slist_free_all)

static struct {
#define DECLARE(name) __typeof__(curl_##name) *name;
	FUNCTIONS(DECLARE)
#undef DECLARE
} curl;

struct fcvm_http {
	struct fcvm_node *node; /* referenced */
	char *address;
	int exit_fd;            /* borrowed */
	CURLM *multi;
	CURL *easy;
	struct curl_slist *headers;
	int ready;              /* a connection that libcurl has not got yet; -1: none */
	int dirfd;              /* where that has its name */
	int stand_in;           /* what it connects to meanwhile; -1: nothing */
	struct sockaddr_un stand_in_at;
	curl_socket_t replaced; /* its descriptor, which is to become `ready`; -1: none; not owned */
	unsigned calls, connections;
	/* of the call that is under way: */
	const struct fcvm_until *until;
	bool begun;             /* its request may have been sent */
	struct fcvm_err failure; /* of making the connection */
	struct fcvm_buf answer;
	size_t received;        /* headers and all */
	curl_socket_t fd;       /* to be watched; -1: none */
	short events;
	int64_t timer_ns;       /* when libcurl wants to be called; INT64_MAX: only for events */
};

/* ---- what libcurl asks for ---- */

/*
 * A socket that can be connected to at once, and where it is. fd or -errno. It has a name in the file system for as long
 * as that takes: libcurl keeps no connection alive whose other end has none.
 */
static int open_stand_in(int dirfd, struct sockaddr_un *ret)
{
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	unsigned tag;

	fcvm_random(&tag, sizeof tag);
	*ret = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(ret->sun_path, sizeof ret->sun_path, "/proc/self/fd/%d/http-%08x", dirfd, tag);
	if (fd < 0 || bind(fd, (struct sockaddr *)ret, sizeof *ret) < 0 || listen(fd, 1) < 0)
		return -errno;
	return fcvm_steal_fd(fd);
}

static void close_stand_in(struct fcvm_http *h)
{
	if (h->stand_in >= 0)
		unlink(h->stand_in_at.sun_path);
	h->stand_in = fcvm_close(h->stand_in);
	h->replaced = -1;
}

static curl_socket_t on_open(void *data, curlsocktype purpose, struct curl_sockaddr *address)
{
	struct fcvm_http *h = data;
	int k;

	/* libcurl repeats a request whose connection, kept alive, was closed instead of answered. It may have been obeyed. */
	if (h->begun) {
		fcvm_fail(&h->failure, -ECONNRESET, "the connection was closed before the answer was complete");
		return CURL_SOCKET_BAD;
	}
	k = h->ready >= 0 ? 0 : fcvm_node_connect(h->node, h->address, h->until, &h->ready, &h->failure);

	if (k < 0)
		return CURL_SOCKET_BAD;
	close_stand_in(h);
	h->stand_in = open_stand_in(h->dirfd, &h->stand_in_at);
	h->replaced = h->stand_in < 0 ? -1 : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (h->replaced < 0) {
		fcvm_fail_errno(&h->failure, h->stand_in < 0 ? h->stand_in : -errno, "socket");
		return CURL_SOCKET_BAD;
	}
	address->family = AF_UNIX;
	address->addrlen = sizeof h->stand_in_at;
	memcpy(&address->addr, &h->stand_in_at, sizeof h->stand_in_at);
	return h->replaced;
}

/* It is connected, and is about to send. */
static int on_connected(void *data, char *peer, char *local, int peer_port, int local_port)
{
	struct fcvm_http *h = data;

	h->begun = true;
	if (h->replaced < 0)
		return CURL_PREREQFUNC_OK; /* the one that is kept alive */
	if (dup3(h->ready, h->replaced, O_CLOEXEC) < 0)
		return CURL_PREREQFUNC_ABORT;
	h->ready = fcvm_close(h->ready);
	close_stand_in(h);
	h->connections++;
	return CURL_PREREQFUNC_OK;
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *data, void *unused)
{
	struct fcvm_http *h = data;

	h->fd = what == CURL_POLL_REMOVE ? -1 : fd;
	h->events = (what & CURL_POLL_IN ? POLLIN : 0) | (what & CURL_POLL_OUT ? POLLOUT : 0);
	return 0;
}

static int on_timer(CURLM *multi, long ms, void *data)
{
	struct fcvm_http *h = data;

	h->timer_ns = ms < 0 ? INT64_MAX : fcvm_now_ns() + ms * 1000000;
	return 0;
}

static size_t on_header(char *text, size_t size, size_t n, void *data)
{
	struct fcvm_http *h = data;

	h->received += size * n;
	return h->received > ANSWER_MAX ? 0 : size * n;
}

static size_t on_body(char *text, size_t size, size_t n, void *data)
{
	struct fcvm_http *h = data;

	h->received += size * n;
	return h->received > ANSWER_MAX || fcvm_buf_append(&h->answer, text, size * n) < 0 ? 0 : size * n;
}

/* ---- life ---- */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char failure[300]; /* why it cannot be used; "": it can */

static void load_functions(void *library)
{
	const char *missing = NULL;

#define LOAD(name)                                                                                 \
	curl.name = (__typeof__(curl.name))dlsym(library, "curl_" #name);                          \
	missing = curl.name ? missing : #name;
	FUNCTIONS(LOAD)
#undef LOAD
	if (missing)
		snprintf(failure, sizeof failure, "libcurl has no curl_%s", missing);
	else if (curl.global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		snprintf(failure, sizeof failure, "libcurl does not start");
}

/* Never unloaded: others in this process may have it, too. */
static void load(void)
{
	void *library = dlopen("libcurl.so.4", RTLD_NOW | RTLD_LOCAL);

	if (library)
		load_functions(library);
	else
		snprintf(failure, sizeof failure, "%.200s: apt-get install libcurl4", dlerror());
}

static bool set_up_multi(struct fcvm_http *h)
{
	return h->multi && curl.multi_setopt(h->multi, CURLMOPT_SOCKETFUNCTION, on_socket) == CURLM_OK &&
		curl.multi_setopt(h->multi, CURLMOPT_SOCKETDATA, h) == CURLM_OK &&
		curl.multi_setopt(h->multi, CURLMOPT_TIMERFUNCTION, on_timer) == CURLM_OK &&
		curl.multi_setopt(h->multi, CURLMOPT_TIMERDATA, h) == CURLM_OK &&
		curl.multi_setopt(h->multi, CURLMOPT_MAXCONNECTS, 1L) == CURLM_OK;
}

static bool set_up_easy(struct fcvm_http *h)
{
	CURLcode k = h->easy && h->headers ? CURLE_OK : CURLE_OUT_OF_MEMORY;

#define SET(option, value) (k = k == CURLE_OK ? curl.easy_setopt(h->easy, option, value) : k)
	SET(CURLOPT_OPENSOCKETFUNCTION, on_open);
	SET(CURLOPT_OPENSOCKETDATA, h);
	SET(CURLOPT_PREREQFUNCTION, on_connected);
	SET(CURLOPT_PREREQDATA, h);
	SET(CURLOPT_HEADERFUNCTION, on_header);
	SET(CURLOPT_HEADERDATA, h);
	SET(CURLOPT_WRITEFUNCTION, on_body);
	SET(CURLOPT_WRITEDATA, h);
	SET(CURLOPT_HTTPHEADER, h->headers);
	SET(CURLOPT_PROTOCOLS_STR, "http");
	SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_PROXY, "");
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_MAXAGE_CONN, 365L * 24 * 3600);
#undef SET
	return k == CURLE_OK;
}

int fcvm_http_new(struct fcvm_http **ret, struct fcvm_node *node, const char *address, int dirfd,
	int exit_fd, struct fcvm_err *err)
{
	struct fcvm_http *h = calloc(1, sizeof *h);
	struct curl_slist *more;

	pthread_once(&once, load);
	if (!h)
		return fcvm_fail_errno(err, -ENOMEM, "reach %s", address);
	if (failure[0]) {
		free(h);
		return fcvm_fail(err, -ELIBACC, "reach %s: %s", address, failure);
	}
	h->node = fcvm_node_ref(node);
	h->address = strdup(address);
	h->exit_fd = exit_fd;
	h->dirfd = fcntl(dirfd, F_DUPFD_CLOEXEC, 3);
	h->ready = h->fd = h->stand_in = h->replaced = -1;
	h->timer_ns = INT64_MAX;
	h->multi = curl.multi_init();
	h->easy = curl.easy_init();
	/* Without these it would send more, and wait for a "100 Continue" before a long body. */
	h->headers = curl.slist_append(NULL, "Expect:");
	more = h->headers ? curl.slist_append(h->headers, "Content-Type: application/json") : NULL;
	if (!h->address || h->dirfd < 0 || !more || !set_up_multi(h) || !set_up_easy(h)) {
		fcvm_http_free(h);
		return fcvm_fail_errno(err, -ENOMEM, "set libcurl up for %s", address);
	}
	*ret = h;
	return 0;
}

void fcvm_http_free(struct fcvm_http *h)
{
	if (!h)
		return;
	curl.easy_cleanup(h->easy);
	curl.multi_cleanup(h->multi);
	curl.slist_free_all(h->headers);
	fcvm_close(h->ready);
	fcvm_close(h->dirfd);
	fcvm_buf_done(&h->answer);
	fcvm_node_unref(h->node);
	free(h->address);
	free(h);
}

int fcvm_http_connect(struct fcvm_http *h, const struct fcvm_until *until, struct fcvm_err *err)
{
	return h->ready >= 0 ? 0 : fcvm_node_connect(h->node, h->address, until, &h->ready, err);
}

unsigned fcvm_http_calls(const struct fcvm_http *h)
{
	return h->calls;
}

unsigned fcvm_http_connections(const struct fcvm_http *h)
{
	return h->connections;
}

/* ---- a call ---- */

/* One event, or the time for which libcurl has asked. */
static int turn(struct fcvm_http *h, int *running)
{
	struct fcvm_until slice = *h->until;
	struct pollfd fds[2] = {{.fd = h->exit_fd, .events = POLLIN}, {.fd = h->fd, .events = h->events}};
	int k, what = 0;

	if (h->timer_ns < slice.deadline_ns)
		slice.deadline_ns = h->timer_ns;
	k = fcvm_until_poll(&slice, fds, 2);
	if (k == -ETIMEDOUT && h->timer_ns <= fcvm_now_ns()) {
		h->timer_ns = INT64_MAX;
		curl.multi_socket_action(h->multi, CURL_SOCKET_TIMEOUT, 0, running);
		return fcvm_until_passed(h->until) ? -ETIMEDOUT : 0;
	}
	if (k < 0)
		return k;
	/* Its answer may have come before its end. */
	if (!fds[1].revents)
		return -ECONNRESET;
	what |= fds[1].revents & POLLIN ? CURL_CSELECT_IN : 0;
	what |= fds[1].revents & POLLOUT ? CURL_CSELECT_OUT : 0;
	what |= fds[1].revents & (POLLERR | POLLHUP | POLLNVAL) ? CURL_CSELECT_ERR : 0;
	curl.multi_socket_action(h->multi, fds[1].fd, what, running);
	/* A server that never stops sending. */
	return *running && fcvm_until_passed(h->until) ? -ETIMEDOUT : 0;
}

/* What became of it, by libcurl's word. */
static int outcome(struct fcvm_http *h, const char *what, struct fcvm_err *err)
{
	int left;
	CURLMsg *m = curl.multi_info_read(h->multi, &left);
	CURLcode code = m && m->msg == CURLMSG_DONE ? m->data.result : CURLE_GOT_NOTHING;

	switch (code) {
	case CURLE_OK:
		return 0;
	case CURLE_COULDNT_CONNECT:
		if (h->failure.code) {
			fcvm_fail(err, -h->failure.code, "%s: %s", what, h->failure.message);
			return -h->failure.code;
		}
		break;
	case CURLE_WRITE_ERROR:
		return fcvm_fail(err, -EPROTO, "%s: the answer is longer than %d bytes", what, ANSWER_MAX);
	case CURLE_GOT_NOTHING:
	case CURLE_RECV_ERROR:
	case CURLE_SEND_ERROR:
	case CURLE_PARTIAL_FILE:
		return fcvm_fail(err, -ECONNRESET, "%s: the connection was closed before the answer was complete", what);
	default:
		break;
	}
	return fcvm_fail(err, -EPROTO, "%s: %s", what, curl.easy_strerror(code));
}

static int transfer(struct fcvm_http *h, const char *what, struct fcvm_err *err)
{
	int running = 1, k = 0;

	h->fd = -1;
	h->timer_ns = INT64_MAX;
	h->received = 0;
	h->failure.code = 0;
	h->begun = false;
	fcvm_buf_consume(&h->answer, h->answer.size);
	if (curl.multi_add_handle(h->multi, h->easy) != CURLM_OK)
		return fcvm_fail_errno(err, -ENOMEM, "%s", what);
	h->calls++;
	while (k == 0 && running)
		k = turn(h, &running);
	if (!running)
		k = outcome(h, what, err);
	else if (k == -ECONNRESET)
		fcvm_fail(err, k, "%s: it ended before it answered", what);
	else
		fcvm_fail_errno(err, k, "%s: no answer", what);
	/* If it is not complete this closes the connection: what comes later is nobody's answer. */
	curl.multi_remove_handle(h->multi, h->easy);
	close_stand_in(h);
	return k;
}

/* A server's text, fit for a message: one line, no control characters. */
static void shorten(char *to, size_t size, const char *from, size_t n)
{
	size_t used = 0;

	for (size_t i = 0; i < n && used + 1 < size; i++)
		to[used++] = (unsigned char)from[i] < ' ' || from[i] == 127 ? ' ' : from[i];
	to[used] = 0;
}

/* The status is no success: the message is the server's own. */
static int refusal(struct fcvm_http *h, long status, const char *what, struct fcvm_err *err)
{
	_cleanup_(cleanup_fcvm_json_free) struct fcvm_json *j = NULL;
	char text[SHOWN + 1] = "", fault[1000];
	const char *said = NULL;

	if (h->answer.size > 0 && fcvm_json_parse(fcvm_buf_head(&h->answer), h->answer.size, &j, NULL) == 0)
		said = fcvm_json_string(j, "fault_message", NULL);
	if (said) {
		shorten(fault, sizeof fault, said, strlen(said));
		return fcvm_fail(err, -EIO, "%s: %s", what, fault);
	}
	if (h->answer.size > 0)
		shorten(text, sizeof text, fcvm_buf_head(&h->answer), h->answer.size);
	return fcvm_fail(err, -EIO, "%s: HTTP status %ld%s%s", what, status, text[0] ? ": " : "", text);
}

int fcvm_http_call(struct fcvm_http *h, const char *method, const char *path, const struct fcvm_json *body,
	const struct fcvm_until *until, struct fcvm_json **ret, struct fcvm_err *err)
{
	static const struct fcvm_until never = FCVM_UNTIL_NEVER;
	_cleanup_free_ char *text = body ? fcvm_json_print(body, 0) : NULL;
	_cleanup_free_ char *url = fcvm_asprintf(HOST "%s", path);
	_cleanup_free_ char *what = fcvm_asprintf("%s %s", method, path);
	CURLcode code = !url || !what || (body && !text) ? CURLE_OUT_OF_MEMORY : CURLE_OK;
	long status = 0;
	int k;

	if (code == CURLE_OK)
		code = curl.easy_setopt(h->easy, CURLOPT_URL, url);
	if (code == CURLE_OK)
		code = curl.easy_setopt(h->easy, text ? CURLOPT_POST : CURLOPT_HTTPGET, 1L);
	if (code == CURLE_OK)
		code = curl.easy_setopt(h->easy, CURLOPT_CUSTOMREQUEST, method);
	if (code == CURLE_OK && text)
		code = curl.easy_setopt(h->easy, CURLOPT_COPYPOSTFIELDS, text);
	if (code != CURLE_OK)
		return fcvm_fail_errno(err, -ENOMEM, "%s %s", method, path);
	h->until = until ? until : &never;
	k = transfer(h, what, err);
	h->until = NULL;
	if (k < 0)
		return k;
	curl.easy_getinfo(h->easy, CURLINFO_RESPONSE_CODE, &status);
	if (status < 200 || status > 299)
		return refusal(h, status, what, err);
	if (!ret)
		return 0;
	k = fcvm_json_parse(h->answer.size > 0 ? fcvm_buf_head(&h->answer) : "", h->answer.size, ret, err);
	return k < 0 ? (fcvm_fail_prefix(err, "%s: the answer", what), k) : 0;
}
