/* SPDX-License-Identifier: MIT */
#include "host/progress.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "fcvm.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool shown; /* lock: a status line is on the terminal */
static bool on_terminal;
static bool quiet_on;
static bool debug;

/* One write per line, so that several processes do not mix theirs. */
static void put(const char *before, const char *text, size_t size, const char *after)
{
	char line[1200];
	int n = snprintf(line, sizeof line, "%s%.*s%s", before, (int)size, text, after);

	if (n > (int)sizeof line - 1)
		n = sizeof line - 1;
	if (n > 0 && write(STDERR_FILENO, line, (size_t)n) < 0)
		shown = false;
}

static void clear_locked(void)
{
	if (!shown)
		return;
	put("\r\033[K", "", 0, "");
	shown = false;
}

void progress_clear(void)
{
	pthread_mutex_lock(&lock);
	clear_locked();
	pthread_mutex_unlock(&lock);
}

void progress_quiet(bool quiet)
{
	pthread_mutex_lock(&lock);
	quiet_on = quiet;
	pthread_mutex_unlock(&lock);
}

static size_t columns(void)
{
	struct winsize w;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) < 0 || w.ws_col < 20)
		return 79;
	return w.ws_col - 1u;
}

/* Bytes of text that fill at most `max` columns: UTF-8 continuation bytes take none. */
static size_t fitting(const char *text, size_t max)
{
	size_t i = 0;

	for (size_t used = 0; text[i]; i++)
		if (((unsigned char)text[i] & 0xc0) != 0x80 && used++ == max)
			break;
	return i;
}

static void show_log(void *data, enum fcvm_log_level level, const char *text)
{
	int saved = errno;

	pthread_mutex_lock(&lock);
	if (level == FCVM_LOG_WARNING) {
		clear_locked();
		put("fcvm: warning: ", text, strlen(text), "\n");
	} else if (level == FCVM_LOG_DEBUG && debug) {
		clear_locked();
		put("fcvm: ", text, strlen(text), "\n");
	} else if (level == FCVM_LOG_PROGRESS && !quiet_on) {
		if (on_terminal) {
			put("\r\033[K", text, fitting(text, columns()), "");
			shown = true;
		} else {
			put("fcvm: ", text, strlen(text), "\n");
		}
	}
	pthread_mutex_unlock(&lock);
	errno = saved;
}

void progress_init(void)
{
	const char *term = getenv("TERM");
	const char *want = getenv("FCVM_DEBUG");

	debug = want && *want && strcmp(want, "0") != 0;
	on_terminal = !debug && isatty(STDERR_FILENO) && term && *term && strcmp(term, "dumb") != 0;
	fcvm_set_log(show_log, NULL);
	atexit(progress_clear);
}

/* ---- streams that clear first ---- */

static ssize_t guarded_write(void *cookie, const char *data, size_t size)
{
	ssize_t n;

	progress_clear();
	do
		n = write((int)(intptr_t)cookie, data, size);
	while (n < 0 && errno == EINTR);
	return n < 0 ? 0 : n; /* 0 is what fopencookie(3) takes for an error */
}

static FILE *guarded(int fd)
{
	return fopencookie(
		(void *)(intptr_t)fd, "w", (cookie_io_functions_t){.write = guarded_write});
}

void progress_guard_stdio(void)
{
	FILE *f;

	if (!on_terminal)
		return;
	if (isatty(STDOUT_FILENO) && (f = guarded(STDOUT_FILENO))) {
		fflush(stdout);
		setvbuf(f, NULL, _IOLBF, BUFSIZ);
		stdout = f;
	}
	f = guarded(STDERR_FILENO);
	if (f) {
		setvbuf(f, NULL, _IONBF, 0);
		stderr = f;
	}
}
