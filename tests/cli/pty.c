/* SPDX-License-Identifier: MIT */
/*
 * A user at a terminal, for tests: runs a program on a pty and plays a script against it.
 *
 *	pty SCRIPT CMD [ARG...]
 *
 * SCRIPT has one step a line: "send TEXT" types it; "expect TEXT" waits until it was printed after
 *what was expected last; "absent TEXT": it was never printed; "resize ROWS COLUMNS"; "signal
 *NUMBER" to the program; "hangup" closes the terminal; "within SECONDS" is the time for each wait
 *from here on (10); "status N" waits for the program's end (128 + signal). In TEXT, \n \r \t \e
 *\\ and \xHH are as in C. Escape sequences and carriage returns are taken out of what was printed
 *before it is compared.
 *
 * Exits with 0 if all went as written; else says which step did not, and what the screen got.
 */
#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int terminal = -1;
static pid_t child;
static char *seen; /* all that was printed, without escape sequences */
static size_t seen_size, matched;
static enum { PLAIN, ESCAPE, CSI, OSC } state;
static double patience = 10;
static const char *step;
static unsigned step_number;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(const char *why)
{
	fprintf(stderr,
		"step %u, \"%s\": %s\n---- the screen got ----\n%.*s\n------------------------\n",
		step_number, step, why, (int)seen_size, seen ? seen : "");
	if (child > 0)
		kill(child, SIGKILL);
	exit(1);
}

static void take(char c)
{
	switch (state) {
	case PLAIN:
		if (c == '\033') {
			state = ESCAPE;
		} else if (c != '\r' && c != '\a' && c != 0) {
			seen = realloc(seen, seen_size + 2);
			seen[seen_size++] = c;
			seen[seen_size] = 0;
		}
		break;
	case ESCAPE:
		state = c == '[' ? CSI : c == ']' ? OSC : PLAIN;
		break;
	case CSI:
		if (c >= 0x40 && c <= 0x7e)
			state = PLAIN;
		break;
	case OSC:
		if (c == '\a' || c == '\\')
			state = PLAIN;
		break;
	}
}

/* Reads what comes within some milliseconds; 0: nothing more will. */
static int read_some(int ms)
{
	struct pollfd p = {.fd = terminal, .events = POLLIN};
	char buf[4096];
	ssize_t n;

	if (terminal < 0)
		return 0;
	if (poll(&p, 1, ms) <= 0)
		return 1;
	n = read(terminal, buf, sizeof buf);
	for (ssize_t i = 0; i < n; i++)
		take(buf[i]);
	return n > 0;
}

static void expect(const char *text)
{
	double end = now() + patience;
	const char *at;

	while (!seen || !(at = strstr(seen + matched, text))) {
		if (now() > end)
			fail("was not printed in time");
		if (!read_some(50) && (!seen || !strstr(seen + matched, text)))
			fail("was not printed before the end");
	}
	matched = (size_t)(at - seen) + strlen(text);
}

static void expect_status(int want)
{
	double end = now() + patience;
	int status, got;
	char why[64];

	while (waitpid(child, &status, WNOHANG) == 0) {
		if (now() > end)
			fail("it has not ended");
		if (!read_some(20))
			usleep(10000);
	}
	child = 0;
	while (terminal >= 0 && read_some(0) &&
		poll(&(struct pollfd){.fd = terminal, .events = POLLIN}, 1, 0) > 0)
		;
	got = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	snprintf(why, sizeof why, "it ended with %d", got);
	if (got != want)
		fail(why);
}

static int hex(char c)
{
	return isdigit((unsigned char)c) ? c - '0' : (c | 32) - 'a' + 10;
}

static size_t unescape(char *text)
{
	char *to = text;

	for (const char *c = text; *c; c++) {
		if (*c != '\\') {
			*to++ = *c;
			continue;
		}
		switch (*++c) {
		case 'n':
			*to++ = '\n';
			break;
		case 'r':
			*to++ = '\r';
			break;
		case 't':
			*to++ = '\t';
			break;
		case 'e':
			*to++ = '\033';
			break;
		case 'x':
			*to++ = (char)(hex(c[1]) << 4 | hex(c[2]));
			c += 2;
			break;
		default:
			*to++ = *c;
		}
	}
	*to = 0;
	return (size_t)(to - text);
}

static void send_text(const char *text, size_t size)
{
	while (size > 0) {
		ssize_t n = write(terminal, text, size);

		if (n < 0)
			fail(strerror(errno));
		text += n;
		size -= (size_t)n;
		read_some(0);
	}
}

static void play(char *verb, char *text)
{
	size_t size = unescape(text);

	if (strcmp(verb, "send") == 0) {
		send_text(text, size);
	} else if (strcmp(verb, "expect") == 0) {
		expect(text);
	} else if (strcmp(verb, "absent") == 0) {
		if (seen && strstr(seen, text))
			fail("was printed");
	} else if (strcmp(verb, "resize") == 0) {
		struct winsize w = {0};

		sscanf(text, "%hu %hu", &w.ws_row, &w.ws_col);
		ioctl(terminal, TIOCSWINSZ, &w);
	} else if (strcmp(verb, "signal") == 0) {
		kill(child, atoi(text));
	} else if (strcmp(verb, "hangup") == 0) {
		close(terminal);
		terminal = -1;
	} else if (strcmp(verb, "within") == 0) {
		patience = atof(text);
	} else if (strcmp(verb, "status") == 0) {
		expect_status(atoi(text));
	} else {
		fail("is no step");
	}
}

int main(int argc, char **argv)
{
	struct winsize size = {.ws_row = 24, .ws_col = 80};
	FILE *f = argc > 2 ? fopen(argv[1], "re") : NULL;
	char line[4096], copy[4096];

	if (!f) {
		fprintf(stderr, "usage: pty SCRIPT CMD [ARG...]\n");
		return 2;
	}
	setenv("TERM", "xterm", 1);
	child = forkpty(&terminal, NULL, NULL, &size);
	if (child == 0) {
		execvp(argv[2], argv + 2);
		_exit(127);
	}
	while (fgets(line, sizeof line, f)) {
		char *text;

		line[strcspn(line, "\n")] = 0;
		strcpy(copy, line);
		step = copy;
		step_number++;
		text = line + strcspn(line, " ");
		if (*text)
			*text++ = 0;
		if (*line && *line != '#')
			play(line, text);
	}
	fclose(f);
	if (child > 0)
		kill(child, SIGKILL);
	free(seen);
	return 0;
}
