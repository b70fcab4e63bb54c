/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: libedit asks read_char() for each character, which waits by poll(2) for the
 * terminal, for a signal (interrupt.h), for a change of the terminal, and for what the caller has
 * going on in the background. So a signal ends a line that is being typed by no more than an error
 * of read_char(). libedit's own signal handling is off: it passes SIGINT on to the whole process
 * group.
 */
#include "host/line.h"

#include <errno.h>
#include <fcntl.h>
#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wchar.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "host/interrupt.h"
#include "host/progress.h"
#include "host/terminal.h"

enum { REMEMBERED = 1000, HANGUP_MS = 1000 };

struct line {
	const struct line_hooks *hooks;
	EditLine *el; /* NULL: not a terminal */
	History *history;
	char *history_file; /* NULL: none */
	FILE *out; /* the terminal itself: stdout may be guarded, and libedit wants its fd */
	const char *prompt;
	char *text; /* the last line */
	size_t capacity;
	bool interrupted;
	int changed;       /* terminal_watch() */
	mbstate_t partial; /* of a character of several bytes */
};

/* ---- history ---- */

/* $XDG_STATE_HOME/fcvm/history or ~/.local/state/fcvm/history; the folders are made. */
static char *history_path(void)
{
	const char *state = getenv("XDG_STATE_HOME");
	const char *home = getenv("HOME");
	_cleanup_free_ char *folder = NULL;

	if (state && *state == '/')
		folder = fcvm_asprintf("%s/fcvm", state);
	else if (home && *home == '/')
		folder = fcvm_asprintf("%s/.local/state/fcvm", home);
	if (!folder || fcvm_dir_make(folder, 0700) < 0)
		return NULL;
	return fcvm_asprintf("%s/history", folder);
}

/* An entry is a line of the file; newlines and backslashes in it are written as \n and \\. */
static void unescape(char *text)
{
	char *to = text;

	for (const char *c = text; *c && *c != '\n'; c++) {
		if (*c == '\\' && c[1])
			*to++ = *++c == 'n' ? '\n' : *c;
		else
			*to++ = *c;
	}
	*to = 0;
}

static void load_history(struct line *l)
{
	_cleanup_fclose_ FILE *f = NULL;
	_cleanup_free_ char *text = NULL;
	size_t capacity = 0;
	HistEvent e;

	l->history = history_init();
	if (!l->history)
		return;
	history(l->history, &e, H_SETSIZE, REMEMBERED);
	history(l->history, &e, H_SETUNIQUE, 1);
	el_set(l->el, EL_HIST, history, l->history);
	l->history_file = history_path();
	f = l->history_file ? fopen(l->history_file, "re") : NULL;
	while (f && getline(&text, &capacity, f) > 0) {
		unescape(text);
		if (*text)
			history(l->history, &e, H_ENTER, text);
	}
}

/* Entries are appended as they come, so that two prompts do not overwrite each other's, and a crash
 * loses none. Here the file is cut to what is remembered, once it is twice as long. */
static void trim_history(struct line *l)
{
	_cleanup_free_ char *text = NULL;
	size_t size, lines = 0;
	char *at;

	if (!l->history_file ||
		fcvm_file_read(AT_FDCWD, l->history_file, 64 << 20, &text, &size) < 0)
		return;
	for (size_t i = 0; i < size; i++)
		lines += text[i] == '\n';
	if (lines < 2 * REMEMBERED)
		return;
	at = text;
	for (; lines > REMEMBERED; lines--)
		at = strchr(at, '\n') + 1;
	fcvm_file_replace(AT_FDCWD, l->history_file, at, size - (size_t)(at - text), 0600, false);
}

void line_remember(struct line *l, const char *text)
{
	_cleanup_fclose_ FILE *f = NULL;
	HistEvent e;

	if (!l->history || !text[strspn(text, " \t\n")])
		return;
	if (history(l->history, &e, H_ENTER, text) < 0 || !l->history_file)
		return;
	f = fopen(l->history_file, "ae");
	if (!f || fchmod(fileno(f), 0600) < 0)
		return;
	for (const char *c = text; *c; c++) {
		if (*c == '\n' || *c == '\\')
			fputc('\\', f);
		fputc(*c == '\n' ? 'n' : *c, f);
	}
	fputc('\n', f);
}

/* ---- reading ---- */

static struct line *of(EditLine *el)
{
	struct line *l = NULL;

	el_get(el, EL_CLIENTDATA, &l);
	return l;
}

/* The terminal has another size, or we have been stopped and the shell has put it into its own
 * mode. */
static void terminal_changed(struct line *l)
{
	uint64_t n;

	if (read(l->changed, &n, sizeof n) < 0)
		return;
	el_resize(l->el);
	el_set(l->el, EL_PREP_TERM, 0);
	el_set(l->el, EL_PREP_TERM, 1);
	el_set(l->el, EL_REFRESH);
}

/* Waits for a byte to read. False: interrupted. */
static bool wait_for_byte(struct line *l)
{
	for (;;) {
		struct pollfd p[] = {
			{.fd = STDIN_FILENO, .events = POLLIN},
			{.fd = interrupt_fd(), .events = POLLIN},
			{.fd = l->changed, .events = POLLIN},
			{.fd = l->hooks->idle_fd(l->hooks->data), .events = POLLIN},
		};

		if (poll(p, 4, -1) < 0 && errno != EINTR)
			return false;
		if (interrupt_signal()) {
			l->interrupted = true;
			return false;
		}
		if (p[2].revents)
			terminal_changed(l);
		if (p[3].revents) {
			/* What it prints takes the line's place, and the line comes after it again.
			 */
			fputs("\r\033[K", l->out);
			fflush(l->out);
			l->hooks->idle(l->hooks->data);
			el_set(l->el, EL_REFRESH);
		}
		if (p[0].revents)
			return true;
	}
}

/* A terminal reads as ended only when it is gone, since Ctrl-D is a key; then the SIGHUP that says so is here, or comes in
 * a moment. */
static void await_hangup(struct line *l)
{
	struct pollfd p = {.fd = interrupt_fd(), .events = POLLIN};

	while (poll(&p, 1, HANGUP_MS) < 0 && errno == EINTR)
		;
	l->interrupted = interrupt_signal() != 0;
}

static int read_char(EditLine *el, wchar_t *ret)
{
	struct line *l = of(el);

	for (;;) {
		char c;
		ssize_t n;
		size_t r;

		if (!wait_for_byte(l))
			return -1;
		n = read(STDIN_FILENO, &c, 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			await_hangup(l);
			return (int)n;
		}
		/* Ctrl-D that was typed while something ran: the terminal, not yet raw then, has
		 * made this of it. */
		if (c == 0 && el_line(el)->lastchar == el_line(el)->buffer)
			c = 4;
		r = mbrtowc(ret, &c, 1, &l->partial);
		if (r == (size_t)-2)
			continue;
		if (r != (size_t)-1)
			return 1;
		/* Not a character: drop it rather than the line. */
		memset(&l->partial, 0, sizeof l->partial);
	}
}

static char *prompt_of(EditLine *el)
{
	return (char *)of(el)->prompt;
}

/* ---- completion ---- */

/* How many bytes all names begin with alike. */
static size_t common(const struct line_completions *c)
{
	size_t n = strlen(c->names[0]);

	for (size_t i = 1; i < c->count; i++) {
		size_t k = 0;

		while (k < n && c->names[i][k] == c->names[0][k])
			k++;
		n = k;
	}
	return n;
}

static void show_names(struct line *l, const struct line_completions *c)
{
	size_t screen = terminal_columns();
	size_t width = 0, columns, rows;

	for (size_t i = 0; i < c->count; i++)
		if (strlen(c->names[i]) > width)
			width = strlen(c->names[i]);
	columns = screen / (width + 2) ? screen / (width + 2) : 1;
	rows = (c->count + columns - 1) / columns;
	fputc('\n', l->out);
	for (size_t r = 0; r < rows; r++) {
		for (size_t i = r; i < c->count; i += rows)
			fprintf(l->out, "%-*s%s", i + rows < c->count ? (int)width + 2 : 0,
				c->names[i], i + rows < c->count ? "" : "\n");
	}
	fflush(l->out);
}

static unsigned char complete(EditLine *el, int key)
{
	struct line *l = of(el);
	const LineInfo *line = el_line(el);
	struct line_completions c = {0};
	size_t size = (size_t)(line->cursor - line->buffer);
	size_t same;
	unsigned char r = CC_ERROR;

	if (strspn(line->buffer, " \t") >= size)
		return el_insertstr(el, "    ") < 0 ? CC_ERROR : CC_REFRESH;
	l->hooks->complete(l->hooks->data, line->buffer, size, &c);
	if (c.count) {
		same = common(&c);
		if (same > c.word) {
			c.names[0][same] = 0;
			r = el_insertstr(el, c.names[0] + c.word) < 0 ? CC_ERROR : CC_REFRESH;
		} else if (c.count > 1) {
			show_names(l, &c);
			r = CC_REDISPLAY;
		}
	}
	for (size_t i = 0; i < c.count; i++)
		free(c.names[i]);
	free(c.names);
	return r;
}

/* ---- */

/* Text that is not ASCII needs a UTF-8 locale; LC_CTYPE only, as Lua wants its decimal point. */
static void want_utf8(void)
{
	if (!setlocale(LC_CTYPE, "") || strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
		setlocale(LC_CTYPE, "C.UTF-8");
}

static bool open_terminal(struct line *l)
{
	static const char *const keys[][2] = {
		{"\033[H", "ed-move-to-beg"},
		{"\033[1~", "ed-move-to-beg"},
		{"\033OH", "ed-move-to-beg"},
		{"\033[F", "ed-move-to-end"},
		{"\033[4~", "ed-move-to-end"},
		{"\033OF", "ed-move-to-end"},
		{"\033[3~", "ed-delete-next-char"},
		{"\033[1;5C", "em-next-word"},
		{"\033[1;5D", "ed-prev-word"},
		{"^R", "em-inc-search-prev"},
	};

	want_utf8();
	l->out = fdopen(fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3), "w");
	l->el = l->out ? el_init("fcvm", stdin, l->out, stderr) : NULL;
	if (!l->el)
		return false;
	el_set(l->el, EL_CLIENTDATA, l);
	el_set(l->el, EL_EDITOR, "emacs");
	el_set(l->el, EL_SIGNAL, 0);
	el_set(l->el, EL_PROMPT, prompt_of);
	el_set(l->el, EL_GETCFN, read_char);
	/* el_set() would leak copies of the two. */
	el_wset(l->el, EL_ADDFN, L"fcvm-complete", L"complete a name", complete);
	el_set(l->el, EL_BIND, "^I", "fcvm-complete", NULL);
	for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
		el_set(l->el, EL_BIND, keys[i][0], keys[i][1], NULL);
	load_history(l);
	trim_history(l);
	el_source(l->el, NULL);
	l->changed = terminal_watch();
	return true;
}

struct line *line_new(const struct line_hooks *hooks)
{
	struct line *l = calloc(1, sizeof *l);

	if (!l)
		return NULL;
	l->hooks = hooks;
	l->changed = -1;
	if (terminal_here() && !open_terminal(l)) {
		line_free(l);
		return NULL;
	}
	return l;
}

void line_free(struct line *l)
{
	if (!l)
		return;
	if (l->el)
		el_end(l->el);
	if (l->history)
		history_end(l->history);
	if (l->out)
		fclose(l->out);
	free(l->history_file);
	free(l->text);
	free(l);
}

bool line_is_terminal(const struct line *l)
{
	return l->el != NULL;
}

static enum line_result read_plain(struct line *l, const char **ret)
{
	ssize_t n;

	/* What stdio has buffered is not seen by poll(2), so the wait is getline's own; a signal
	 * ends it. */
	errno = 0;
	n = getline(&l->text, &l->capacity, stdin);
	if (interrupt_signal())
		return LINE_INTERRUPTED;
	if (n < 0)
		return LINE_END;
	if (n > 0 && l->text[n - 1] == '\n')
		l->text[n - 1] = 0;
	*ret = l->text;
	return LINE_READ;
}

enum line_result line_read(struct line *l, const char *prompt, const char **ret)
{
	const char *text;
	int n = 0;

	if (!l->el)
		return read_plain(l, ret);
	progress_clear();
	fflush(stdout);
	l->prompt = prompt;
	l->interrupted = false;
	/* libedit would print the prompt first: what is typed at once would be echoed twice. */
	el_set(l->el, EL_PREP_TERM, 1);
	text = el_gets(l->el, &n);
	if (l->interrupted) {
		el_reset(l->el);
		fputs(interrupt_signal() == SIGINT ? "^C\n" : "\n", l->out);
		fflush(l->out);
		return LINE_INTERRUPTED;
	}
	if (!text || n <= 0)
		return LINE_END;
	free(l->text);
	l->text = strndup(text, strcspn(text, "\n"));
	if (!l->text)
		return LINE_END;
	*ret = l->text;
	return LINE_READ;
}
