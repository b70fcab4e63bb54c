/* SPDX-License-Identifier: MIT */
#include "host/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "base/fd.h"
#include "host/interrupt.h"

/* All of it is the main thread's. */
static struct termios before;
static bool raw;
static int changed = -1; /* also written by the signal handler */

bool terminal_here(void)
{
	return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
}

void terminal_restore(void)
{
	if (!raw)
		return;
	tcsetattr(STDIN_FILENO, TCSADRAIN, &before);
	interrupt_restores(-1, NULL);
	raw = false;
}

int terminal_raw(void)
{
	static bool registered;
	struct termios t;

	if (tcgetattr(STDIN_FILENO, &before) < 0)
		return -errno;
	if (!registered && atexit(terminal_restore) == 0)
		registered = true;
	t = before;
	cfmakeraw(&t);
	interrupt_restores(STDIN_FILENO, &before);
	raw = true;
	if (tcsetattr(STDIN_FILENO, TCSADRAIN, &t) < 0)
		return -errno;
	return 0;
}

void terminal_size(unsigned *rows, unsigned *columns)
{
	struct winsize w;

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) < 0 || !w.ws_row || !w.ws_col)
		return;
	*rows = w.ws_row;
	*columns = w.ws_col;
}

unsigned terminal_columns(void)
{
	unsigned rows, columns = 80;

	terminal_size(&rows, &columns);
	return columns;
}

static void note_change(int signo)
{
	int saved = errno;
	uint64_t one = 1;

	if (write(changed, &one, sizeof one) < 0)
		errno = 0; /* it is readable already */
	errno = saved;
}

int terminal_watch(void)
{
	struct sigaction sa = {.sa_handler = note_change, .sa_flags = SA_RESTART};

	if (changed < 0) {
		changed = fcvm_fd_event();
		if (changed < 0)
			return changed;
		sigemptyset(&sa.sa_mask);
		sigaction(SIGWINCH, &sa, NULL);
		sigaction(SIGCONT, &sa, NULL);
	}
	return changed;
}

bool terminal_write(FILE *to, const char *text, size_t size)
{
	if (!isatty(fileno(to)))
		return fwrite(text, 1, size, to) == size;
	for (size_t i = 0; i < size; i++) {
		unsigned char c = text[i];
		bool order = (c < ' ' && c != '\n' && c != '\t' && c != '\r') || c == 127;

		if (putc(order ? '?' : c, to) == EOF)
			return false;
	}
	return true;
}
