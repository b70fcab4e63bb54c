/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: three flows (stdin to the program, its stdout and stderr to ours), each with
 * one buffer that is filled only when it is empty, so that a slow reader stalls its own flow and
 * nothing else. One poll(2) waits for all of them, the program's end, signals, and changes of the
 * terminal's size. It is over when the program has ended and both its outputs are at their end; a
 * child that it left behind may hold them open, so once it has ended, silence of LINGER_MS is an
 * end as well.
 */
#include "host/program.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fail.h"
#include "base/until.h"
#include "host/interrupt.h"
#include "host/progress.h"
#include "host/terminal.h"

enum { LINGER_MS = 300, BUFFER = 64 * 1024 };

struct flow {
	int from, to; /* -1: closed */
	size_t at, size;
	bool at_start; /* stdin only: what was sent last ended a line */
	char buf[BUFFER];
};

struct session {
	struct fcvm_program *program;
	struct flow flows[3];
	bool tty;
	bool ended; /* the program */
	bool timed_out;
	int left_by; /* the signal that made us leave it, or 0 */
	int interrupts;
	int trouble; /* -errno of a write to our stdout or stderr */
	int own[2];  /* our own descriptions of stdout and stderr, see own_description() */
	int resized; /* an eventfd, or -1 */
	struct fcvm_until until;
};

FCVM_CLEANUP(struct fcvm_program, fcvm_program_free)

/* ---- options ---- */

int program_check(const struct args *args)
{
	long long ms;
	const char *env;

	if (args_has(args, "tty") && args_has(args, "no-tty"))
		return misuse("%s: --tty or --no-tty, not both", args->verb->name);
	for (int i = 0; (env = args_nth(args, "env", i)); i++)
		if (*env == '=' || !*env)
			return misuse("%s: --env %s: NAME=VALUE or NAME is wanted",
				args->verb->name, env);
	return args_ms(args, "timeout", &ms);
}

/* "NAME=VALUE" as it is, NAME with our value; NULL-terminated, each and the array malloc'ed. */
static char **environment(const struct args *args, bool tty)
{
	char **env = calloc((size_t)args->ngiven + 2, sizeof *env);
	const char *given, *value;
	int n = 0;

	if (!env)
		abort();
	value = getenv("TERM");
	if (tty && asprintf(&env[n++], "TERM=%s", value && *value ? value : "vt100") < 0)
		abort();
	for (int i = 0; (given = args_nth(args, "env", i)); i++) {
		value = strchr(given, '=') ? "" : getenv(given);
		if (value && asprintf(&env[n++], strchr(given, '=') ? "%s%s" : "%s=%s", given,
				     value) < 0)
			abort();
	}
	return env;
}

static void free_environment(char ***env)
{
	for (int i = 0; *env && (*env)[i]; i++)
		free((*env)[i]);
	free(*env);
}

/* ---- flows ---- */

/*
 * A pipe or terminal that others hold as well must not become non-blocking under their feet; a
 * second description of it is ours alone. Files never block; where there is no second description,
 * writes may.
 */
static int own_description(int fd)
{
	char path[32];
	struct stat st;

	if (fstat(fd, &st) < 0 || !(S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode)))
		return -1;
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

static bool would_block(void)
{
	return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

/* Ends flow i at both ends; the program's end may be shared by stdin and stdout of a terminal. */
static void end_flow(struct session *s, unsigned i)
{
	struct flow *f = &s->flows[i];

	f->from = f->to = -1;
	f->size = 0;
	if (!s->tty)
		fcvm_program_close_fd(s->program, i);
}

/* A terminal has no end of file: the character that means it, twice if it has to end a line first.
 */
static void end_input(struct session *s)
{
	struct flow *f = &s->flows[0];

	if (s->tty && f->to >= 0 && write(f->to, "\4\4", f->at_start ? 1 : 2) < 0)
		f->to = -1; /* it does not read, and will be hung up */
	end_flow(s, 0);
}

static void fill(struct session *s, unsigned i)
{
	struct flow *f = &s->flows[i];
	ssize_t n = read(f->from, f->buf, sizeof f->buf);

	if (n < 0 && would_block())
		return;
	if (n <= 0 && i == 0)
		end_input(s);
	else if (n <= 0)
		end_flow(s, i);
	if (n <= 0)
		return;
	f->at = 0;
	f->size = (size_t)n;
	f->at_start = f->buf[n - 1] == '\n';
}

static void drain(struct session *s, unsigned i)
{
	struct flow *f = &s->flows[i];
	ssize_t n = write(f->to, f->buf + f->at, f->size);

	if (n < 0 && would_block())
		return;
	if (n < 0) {
		/* Our reader has left, as in `fcvm exec ... | head`: no error. The program's next
		 * write raises SIGPIPE, as its end is closed; a terminal has no such thing. */
		if (i > 0 && errno == EPIPE && s->tty)
			fcvm_program_signal(s->program, SIGPIPE, NULL);
		else if (i > 0 && errno != EPIPE)
			s->trouble = -errno;
		end_flow(s, i);
		return;
	}
	f->at += (size_t)n;
	f->size -= (size_t)n;
}

/* ---- signals ---- */

static void pass_signal_on(struct session *s)
{
	int signo = interrupt_signal();

	/* Before the call, which it would cancel. */
	interrupt_clear();
	if (signo == 0 || signo == SIGPIPE)
		return;
	fcvm_program_signal(s->program, signo, NULL);
	if (signo == SIGHUP || ++s->interrupts > 1)
		s->left_by = signo;
}

static void resize(struct session *s)
{
	unsigned rows = 0, columns = 0;
	uint64_t n;

	if (read(s->resized, &n, sizeof n) < 0)
		return;
	terminal_size(&rows, &columns);
	if (rows)
		fcvm_program_resize(s->program, rows, columns, NULL);
}

/* ---- the loop ---- */

static bool flowing(const struct session *s)
{
	return s->flows[1].from >= 0 || s->flows[2].from >= 0;
}

/* Waits once and does what can be done. False: it is over. */
static bool step(struct session *s)
{
	enum { EXIT = 3, SIGNALS, SIZE, N };
	struct pollfd p[N];
	bool blocked = false;
	int left = fcvm_until_left_ms(&s->until);
	int n;

	for (unsigned i = 0; i < 3; i++) {
		const struct flow *f = &s->flows[i];

		p[i] = (struct pollfd){
			.fd = f->size ? f->to : f->from, .events = f->size ? POLLOUT : POLLIN};
		blocked |= i > 0 && f->size > 0;
	}
	p[EXIT] = (struct pollfd){
		.fd = s->ended ? -1 : fcvm_program_exit_fd(s->program), .events = POLLIN};
	p[SIGNALS] = (struct pollfd){.fd = interrupt_fd(), .events = POLLIN};
	p[SIZE] = (struct pollfd){.fd = s->resized, .events = POLLIN};
	/* Once it has ended, our stdin concerns nobody. */
	if (s->ended) {
		p[0].fd = -1;
		if (!blocked && (left < 0 || left > LINGER_MS))
			left = LINGER_MS;
	}
	n = poll(p, N, left);
	if (n == 0) {
		s->timed_out = !s->ended;
		return false;
	}
	if (n < 0)
		return errno == EINTR;
	for (unsigned i = 0; i < 3; i++)
		if (p[i].fd >= 0 && p[i].revents)
			(s->flows[i].size ? drain : fill)(s, i);
	if (p[EXIT].revents)
		s->ended = true;
	if (p[SIGNALS].revents)
		pass_signal_on(s);
	if (p[SIZE].revents)
		resize(s);
	return !s->left_by && !(s->ended && !flowing(s));
}

static void stream(struct session *s)
{
	s->flows[0].from = STDIN_FILENO;
	s->flows[0].to = fcvm_program_fd(s->program, 0);
	s->flows[0].at_start = true;
	for (unsigned i = 1; i < 3; i++) {
		s->own[i - 1] = own_description((int)i);
		s->flows[i].from = fcvm_program_fd(s->program, i);
		s->flows[i].to = s->own[i - 1] >= 0 ? s->own[i - 1] : (int)i;
	}
	while (step(s))
		;
	for (unsigned i = 0; i < 2; i++)
		s->own[i] = fcvm_close(s->own[i]);
}

/* ---- its end ---- */

static int exit_status(struct session *s, const char *name, struct fcvm_err *err)
{
	int status = 0, signal = 0, r;

	if (s->left_by)
		return EXIT_SIGNAL + s->left_by;
	if (s->timed_out) {
		fcvm_program_signal(s->program, SIGKILL, NULL);
		fprintf(stderr,
			"fcvm: %s was killed: it had not ended when its time was over "
			"(--timeout)\n",
			name);
		return EXIT_TIMEOUT;
	}
	r = fcvm_program_wait(s->program, 10000, &status, &signal, err);
	if (r < 0)
		return failed(err);
	if (s->trouble) {
		fprintf(stderr, "fcvm: cannot write what %s printed: %s\n", name,
			strerror(-s->trouble));
		return status ? status : EXIT_FAILED;
	}
	return status;
}

static int not_started(const struct fcvm_err *err)
{
	int r = failed(err);

	if (r != EXIT_FAILED)
		return r;
	return err->code == ENOENT                           ? EXIT_NOT_FOUND
	       : err->code == EACCES || err->code == ENOEXEC ? EXIT_NOT_RUN
							     : r;
}

int program_run(const struct args *args, int first, struct fcvm_vm *vm)
{
	_cleanup_(free_environment) char **env = NULL;
	_cleanup_free_ struct session *s = calloc(1, sizeof *s);
	_cleanup_(cleanup_fcvm_program_free) struct fcvm_program *program = NULL;
	struct fcvm_run_options options = FCVM_RUN_OPTIONS_INIT;
	struct fcvm_err err = FCVM_ERR_INIT;
	long long timeout_ms = -1;
	const char *const *argv = (const char *const *)args->operands + first;
	bool here = terminal_here();
	int r;

	if (!s)
		abort();
	args_ms(args, "timeout", &timeout_ms);
	s->tty = !args_has(args, "no-tty") && (args_has(args, "tty") || here);
	s->resized = -1;
	env = environment(args, s->tty);
	options.env = (const char *const *)env;
	options.cwd = args_value(args, "cwd", NULL);
	options.user = args_value(args, "user", NULL);
	options.tty = s->tty;
	if (s->tty && here) {
		s->resized = terminal_watch();
		terminal_size(&options.rows, &options.columns);
	}
	r = fcvm_vm_spawn(vm, argv, &options, &program, &err);
	if (r < 0)
		return not_started(&err);
	s->program = program;
	s->until = fcvm_until_ms(timeout_ms, -1);
	progress_clear();
	progress_quiet(true);
	if (s->tty && here && (r = terminal_raw()) < 0)
		return fcvm_fail_errno(&err, r, "cannot set the terminal to raw mode"),
		       failed(&err);
	stream(s);
	terminal_restore();
	return exit_status(s, argv[0], &err);
}
