/* SPDX-License-Identifier: MIT */
/*
 * A client of QEMU's machine protocol (QMP; QEMU's docs/interop/qmp-spec) over one stream socket.
 *
 * One command is under way at a time; events that come meanwhile are kept (the last FCVM_QMP_EVENTS of them). The
 * peer is not trusted: lines are at most FCVM_QMP_LINE bytes, garbage ends the connection, and so does its end.
 * After that every call fails at once with the same reason.
 *
 * Threads: one at a time. Blocking: until `until`, or until exit_fd is readable. A call that was given up (time,
 * cancellation) leaves the connection usable: its late answer is dropped.
 */
#ifndef FCVM_VMM_QMP_H
#define FCVM_VMM_QMP_H

#include "base/json.h"
#include "base/until.h"

enum { FCVM_QMP_LINE = 1 << 20, FCVM_QMP_EVENTS = 64 };

struct fcvm_qmp;

/* Takes the socket over (also on failure). name: whose it is, for messages, copied. exit_fd: readable once the peer
 * has died, borrowed; -1: none. */
int fcvm_qmp_new(struct fcvm_qmp **ret, int fd, int exit_fd, const char *name, struct fcvm_err *err);
void fcvm_qmp_free(struct fcvm_qmp *q); /* NULL allowed */
/* From now on the peer is called so in messages; copied. -ENOMEM leaves the old name. */
int fcvm_qmp_rename(struct fcvm_qmp *q, const char *name);

/* Waits for the greeting and negotiates. Once, before any command. */
int fcvm_qmp_greet(struct fcvm_qmp *q, const struct fcvm_until *until, struct fcvm_err *err);
/* The peer goes on with a session that another connection of it has begun: there will be no greeting. Instead of
 * fcvm_qmp_greet. */
void fcvm_qmp_join(struct fcvm_qmp *q);
/* The peer's version from its greeting: "10.0.2"; "" before. */
const char *fcvm_qmp_version(const struct fcvm_qmp *q);

/*
 * Runs a command. arguments: an object or NULL; the reference is stolen. ret: the whole answer, its value being under
 * "return"; NULL allowed. An error of the peer becomes its description with -EIO, or -EOPNOTSUPP for a command
 * that it does not know.
 */
int fcvm_qmp_call(struct fcvm_qmp *q, const char *command, struct fcvm_json *arguments,
	const struct fcvm_until *until, struct fcvm_json **ret, struct fcvm_err *err);

/* Hands a descriptor over, for a later command to call it by that name; the caller's stays the caller's. The peer must be at
 * the other end of q's socket itself. */
int fcvm_qmp_send_fd(struct fcvm_qmp *q, const char *name, int fd, const struct fcvm_until *until, struct fcvm_err *err);

/* The oldest event of that name that was not taken yet; waits for one. ret: the whole message. */
int fcvm_qmp_event(struct fcvm_qmp *q, const char *event, const struct fcvm_until *until, struct fcvm_json **ret,
	struct fcvm_err *err);
/* Drops the events that are there. */
void fcvm_qmp_forget(struct fcvm_qmp *q);
/* It has ended or spoken nonsense: no call can succeed any more. */
bool fcvm_qmp_ended(const struct fcvm_qmp *q);

/* ---- the parser: pure, for the client and its fuzzer ---- */

enum fcvm_qmp_kind { FCVM_QMP_GREETING, FCVM_QMP_RETURN, FCVM_QMP_ERROR, FCVM_QMP_EVENT };

struct fcvm_qmp_message {
	enum fcvm_qmp_kind kind;
	struct fcvm_json *json; /* all of it; owned */
	const char *text;       /* event: its name; error: its description; borrowed from json */
	const char *class;      /* error: its class */
	int64_t id;             /* return, error: the command's; -1: none */
	int version[3];         /* greeting */
};

/* One line without its end. -EBADMSG with what is wrong. */
int fcvm_qmp_parse(const char *line, size_t size, struct fcvm_qmp_message *ret, struct fcvm_err *err);
void fcvm_qmp_message_done(struct fcvm_qmp_message *m);

FCVM_CLEANUP(struct fcvm_qmp, fcvm_qmp_free)

#endif
