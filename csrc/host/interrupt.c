/* SPDX-License-Identifier: MIT */
#include "host/interrupt.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <termios.h>
#include <unistd.h>

#include "base/fd.h"
#include "fcvm.h"
#include "host/verb.h"

/* All of this belongs to the main thread and its signal handler. */
static pthread_t main_thread;
static int event = -1;
static volatile sig_atomic_t first;   /* signal */
static volatile sig_atomic_t presses; /* of keys, and other signals, since the last clear */
static volatile sig_atomic_t borne = 1;
static void (*volatile hook)(void);
static int terminal = -1;
static const struct termios *volatile terminal_state;

static void leave_at_once(int signo)
{
	static const char clear[] = "\r\033[K";

	if (terminal_state)
		tcsetattr(terminal, TCSANOW, terminal_state);
	if (isatty(STDERR_FILENO) && write(STDERR_FILENO, clear, sizeof clear - 1) < 0)
		_exit(EXIT_SIGNAL + signo);
	_exit(EXIT_SIGNAL + signo);
}

static bool somebody_reads_stdout(void)
{
	struct pollfd p = {.fd = STDOUT_FILENO, .events = POLLOUT};

	return poll(&p, 1, 0) <= 0 || !(p.revents & POLLERR);
}

static void handle(int signo)
{
	int saved = errno;
	uint64_t one = 1;

	/* The hook changes what the main thread is in the middle of. */
	if (!pthread_equal(pthread_self(), main_thread)) {
		if (signo != SIGPIPE)
			pthread_kill(main_thread, signo);
		errno = saved;
		return;
	}
	/* Sockets of ours that broke are errors of the calls that used them, and nothing else. */
	if (signo == SIGPIPE && somebody_reads_stdout()) {
		errno = saved;
		return;
	}
	if (!first)
		first = signo;
	if (signo != SIGPIPE && ++presses > (signo == SIGINT ? borne : 1))
		leave_at_once(signo);
	if (write(event, &one, sizeof one) < 0)
		leave_at_once(signo); /* cannot be: it is an eventfd that does not block */
	if (hook)
		hook();
	errno = saved;
}

int interrupt_init(void)
{
	struct sigaction sa = {.sa_handler = handle};
	struct sigaction old;

	main_thread = pthread_self();
	event = fcvm_fd_event();
	if (event < 0)
		return event;
	/* One at a time: the handler counts them. */
	sigemptyset(&sa.sa_mask);
	sigaddset(&sa.sa_mask, SIGINT);
	sigaddset(&sa.sa_mask, SIGTERM);
	sigaddset(&sa.sa_mask, SIGHUP);
	sigaddset(&sa.sa_mask, SIGPIPE);
	/* SIGINT even where it was ignored (a shell's `fcvm ... &`): who sends it to us by hand
	 * means us. */
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGPIPE, &sa, NULL);
	if (sigaction(SIGHUP, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
		sigaction(SIGHUP, &sa, NULL);
	fcvm_cancel_by(event);
	return 0;
}

int interrupt_fd(void)
{
	return event;
}

int interrupt_signal(void)
{
	return first;
}

void interrupt_clear(void)
{
	uint64_t n;

	if (event >= 0 && read(event, &n, sizeof n) < 0)
		n = 0;
	presses = 0;
	first = 0;
}

void interrupt_bear(int count)
{
	borne = count;
}

void interrupt_hook(void (*fn)(void))
{
	hook = fn;
}

void interrupt_restores(int fd, const struct termios *state)
{
	terminal_state = NULL;
	terminal = fd;
	terminal_state = state;
}
