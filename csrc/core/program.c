/* SPDX-License-Identifier: MIT */
/* Programs, files and sockets of a guest: the node's operations with the VM's name and fate in their errors. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fail.h"
#include "base/fd.h"
#include "core/vm.h"

enum {
	FILE_MS = 60000,
	CONNECT_MS = 30000,
	SPAWN_MS = 30000,
	DEFAULT_LIMIT = 64 << 20,
};

struct fcvm_program {
	struct fcvm_vm *vm; /* referenced */
	struct fcvm_process *p;
};

struct fcvm_vm_listener {
	struct fcvm_vm *vm; /* referenced */
	struct fcvm_listener *l;
};

static struct fcvm_spawn spawn_of(const char *const *argv, const struct fcvm_run_options *o)
{
	return (struct fcvm_spawn){
		.argv = argv,
		.env = o->env,
		.cwd = o->cwd,
		.user = o->user,
		.null_stdin = o->null_stdin,
		.merge_stderr = o->merge_stderr,
		.clear_env = o->clear_env,
		.detach = o->detach,
		.tty = o->tty,
		.rows = o->rows,
		.columns = o->columns,
	};
}

static int status_of(const struct fcvm_exit *e)
{
	return e->signal ? 128 + e->signal : e->code;
}

static int check_argv(const struct fcvm_vm *vm, const char *const *argv, const char *what, struct fcvm_err *err)
{
	if (argv && argv[0] && argv[0][0])
		return 0;
	return fcvm_fail(err, -EINVAL, "%s: %s: no program is named", vm->name, what);
}

/* ---- exec ---- */

int fcvm_vm_exec(struct fcvm_vm *vm, const char *const *argv, const struct fcvm_run_options *options,
	struct fcvm_exec_result *ret, struct fcvm_err *err)
{
	static const struct fcvm_run_options none = FCVM_RUN_OPTIONS_INIT;
	const struct fcvm_run_options *o = options ? options : &none;
	struct fcvm_until until = call_until(o->timeout_ms, FCVM_NO_TIMEOUT);
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *agent = NULL;
	struct fcvm_output out = {0};
	struct fcvm_spawn spec;
	char what[64];
	int r = check_argv(vm, argv, "exec", err);

	if (r == 0)
		r = vm_agent(vm, "exec", &agent, err);
	if (r < 0)
		return r;
	snprintf(what, sizeof what, "exec %s", argv[0]);
	spec = spawn_of(argv, o);
	spec.tty = false;
	r = fcvm_node_exec(agent, &spec, o->input, o->input_size, o->limit ? o->limit : DEFAULT_LIMIT, &until,
		&out, err);
	if (r < 0)
		return vm_explain(vm, r, what, err);
	*ret = (struct fcvm_exec_result){
		.stdout_data = out.out,
		.stdout_size = out.out_size,
		.stderr_data = out.err,
		.stderr_size = out.err_size,
		.status = status_of(&out.exit),
		.signal = out.exit.signal,
		.truncated = out.truncated,
	};
	return 0;
}

void fcvm_exec_result_done(struct fcvm_exec_result *result)
{
	if (!result)
		return;
	free(result->stdout_data);
	free(result->stderr_data);
	*result = (struct fcvm_exec_result)FCVM_EXEC_RESULT_INIT;
}

/* ---- spawn ---- */

int fcvm_vm_spawn(struct fcvm_vm *vm, const char *const *argv, const struct fcvm_run_options *options,
	struct fcvm_program **ret, struct fcvm_err *err)
{
	static const struct fcvm_run_options none = FCVM_RUN_OPTIONS_INIT;
	const struct fcvm_run_options *o = options ? options : &none;
	struct fcvm_until until = call_until(SPAWN_MS, SPAWN_MS);
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *agent = NULL;
	struct fcvm_program *p;
	struct fcvm_spawn spec;
	int r = check_argv(vm, argv, "spawn", err);

	if (r == 0)
		r = vm_agent(vm, "spawn", &agent, err);
	if (r < 0)
		return r;
	p = calloc(1, sizeof *p);
	if (!p)
		return fcvm_fail_errno(err, -ENOMEM, "%s: spawn %s", vm->name, argv[0]);
	spec = spawn_of(argv, o);
	r = fcvm_node_spawn(agent, &spec, &until, &p->p, err);
	if (r < 0) {
		free(p);
		return vm_explain(vm, r, "spawn", err);
	}
	p->vm = vm_ref(vm);
	*ret = p;
	return 0;
}

void fcvm_program_free(struct fcvm_program *p)
{
	if (!p)
		return;
	fcvm_process_free(p->p);
	vm_unref(p->vm);
	free(p);
}

int fcvm_program_fd(const struct fcvm_program *p, unsigned i)
{
	return fcvm_process_fd(p->p, i);
}

void fcvm_program_close_fd(struct fcvm_program *p, unsigned i)
{
	fcvm_process_close_fd(p->p, i);
}

int fcvm_program_pid(const struct fcvm_program *p)
{
	return fcvm_process_pid(p->p);
}

int fcvm_program_exit_fd(const struct fcvm_program *p)
{
	return fcvm_process_exit_fd(p->p);
}

int fcvm_program_write(struct fcvm_program *p, const void *data, size_t size, int64_t timeout_ms,
	struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, FCVM_NO_TIMEOUT);
	int fd = fcvm_process_fd(p->p, 0);
	int r = -EPIPE;

	if (fd >= 0)
		r = fcvm_fd_send_until(fd, data, size, &until);
	if (r < 0)
		return vm_explain(p->vm, fcvm_fail_errno(err, r, "%s: write to the program's stdin", p->vm->name),
			"write", err);
	return 0;
}

int64_t fcvm_program_read(struct fcvm_program *p, unsigned i, void *to, size_t size, int64_t timeout_ms,
	struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, FCVM_NO_TIMEOUT);
	int fd = i == 1 || i == 2 ? fcvm_process_fd(p->p, i) : -1;
	struct pollfd poll = {.fd = fd, .events = POLLIN};

	if (fd < 0)
		return 0;
	for (;;) {
		ssize_t n = read(fd, to, size);
		int r = n < 0 ? -errno : 0;

		if (n >= 0)
			return n;
		if (r == -EIO) /* a terminal whose programs have gone */
			return 0;
		if (r == -EAGAIN)
			r = fcvm_until_poll(&until, &poll, 1);
		else if (r == -EINTR)
			r = 0;
		if (r < 0)
			return fcvm_fail_errno(err, r, "%s: read from the program", p->vm->name);
	}
}

int fcvm_program_wait(struct fcvm_program *p, int64_t timeout_ms, int *ret_status, int *ret_signal,
	struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, FCVM_NO_TIMEOUT);
	struct fcvm_exit e;
	int r = fcvm_process_wait(p->p, &until, &e, err);

	if (r < 0)
		return vm_explain(p->vm, r, "wait for a program", err);
	*ret_status = status_of(&e);
	if (ret_signal)
		*ret_signal = e.signal;
	return 0;
}

int fcvm_program_signal(struct fcvm_program *p, int signo, struct fcvm_err *err)
{
	return vm_explain(p->vm, fcvm_process_signal(p->p, signo, err), "signal a program", err);
}

int fcvm_program_resize(struct fcvm_program *p, unsigned rows, unsigned columns, struct fcvm_err *err)
{
	return vm_explain(p->vm, fcvm_process_resize(p->p, rows, columns, err), "resize a terminal", err);
}

/* ---- files ---- */

/* A relative path on this side is meant from the caller's folder, which is the local node's, too. */
int fcvm_vm_copy_in(struct fcvm_vm *vm, const char *from, const char *to, int64_t timeout_ms,
	struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, FCVM_NO_TIMEOUT);
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *agent = NULL;
	int r = vm_agent(vm, "copy", &agent, err);

	return r < 0 ? r : vm_explain(vm, fcvm_node_copy(runtime_node(vm->rt), from, agent, to, &until, err),
				   "copy", err);
}

int fcvm_vm_copy_out(struct fcvm_vm *vm, const char *from, const char *to, int64_t timeout_ms,
	struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, FCVM_NO_TIMEOUT);
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *agent = NULL;
	int r = vm_agent(vm, "copy", &agent, err);

	return r < 0 ? r : vm_explain(vm, fcvm_node_copy(agent, from, runtime_node(vm->rt), to, &until, err),
				   "copy", err);
}

int fcvm_vm_read_file(struct fcvm_vm *vm, const char *path, size_t max, int64_t timeout_ms, char **ret,
	size_t *ret_size, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, FILE_MS);
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *agent = NULL;
	int r = vm_agent(vm, "read a file", &agent, err);

	return r < 0 ? r : vm_explain(vm, fcvm_node_read_file(agent, path, max, &until, ret, ret_size, err),
				   "read a file", err);
}

int fcvm_vm_write_file(struct fcvm_vm *vm, const char *path, const void *data, size_t size, unsigned mode,
	int64_t timeout_ms, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, FILE_MS);
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *agent = NULL;
	int r = vm_agent(vm, "write a file", &agent, err);

	return r < 0 ? r : vm_explain(vm, fcvm_node_write_file(agent, path, data, size, mode, &until, err),
				   "write a file", err);
}

/* ---- sockets ---- */

int fcvm_vm_connect(struct fcvm_vm *vm, const char *address, int64_t timeout_ms, int *ret_fd,
	struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, CONNECT_MS);
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *agent = NULL;
	int r = vm_agent(vm, "connect", &agent, err);

	return r < 0 ? r : vm_explain(vm, fcvm_node_connect(agent, address, &until, ret_fd, err), "connect", err);
}

int fcvm_vm_listen(struct fcvm_vm *vm, const char *address, struct fcvm_vm_listener **ret, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(CONNECT_MS, CONNECT_MS);
	_cleanup_(cleanup_fcvm_node_unref) struct fcvm_node *agent = NULL;
	struct fcvm_vm_listener *l;
	int r = vm_agent(vm, "listen", &agent, err);

	if (r < 0)
		return r;
	l = calloc(1, sizeof *l);
	if (!l)
		return fcvm_fail_errno(err, -ENOMEM, "%s: listen", vm->name);
	r = vm_explain(vm, fcvm_node_listen(agent, address, &until, &l->l, err), "listen", err);
	if (r < 0) {
		free(l);
		return r;
	}
	l->vm = vm_ref(vm);
	*ret = l;
	return 0;
}

int fcvm_vm_listener_accept(struct fcvm_vm_listener *l, int64_t timeout_ms, int *ret_fd, struct fcvm_err *err)
{
	struct fcvm_until until = call_until(timeout_ms, FCVM_NO_TIMEOUT);

	return vm_explain(l->vm, fcvm_listener_accept(l->l, &until, ret_fd, err), "accept", err);
}

void fcvm_vm_listener_free(struct fcvm_vm_listener *l)
{
	if (!l)
		return;
	fcvm_listener_free(l->l);
	vm_unref(l->vm);
	free(l);
}
