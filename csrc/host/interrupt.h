/* SPDX-License-Identifier: MIT */
/*
 * Ctrl-C and its like (SIGINT, SIGTERM, SIGHUP, and SIGPIPE once nobody reads stdout any more).
 *
 * A signal makes interrupt_fd() readable, which ends the main thread's blocking fcvm calls
 * (fcvm_cancel_by), and calls the hook. What holds things then takes them down in order and the
 * program exits with 128 + the signal. Who presses Ctrl-C once more than is allowed leaves at once,
 * and so does who sends SIGTERM or SIGHUP after another signal: VMs die with their owner all the
 * same.
 */
#ifndef FCVM_HOST_INTERRUPT_H
#define FCVM_HOST_INTERRUPT_H

/* Installs the handlers; call once, on the main thread. 0 or -errno. */
int interrupt_init(void);
int interrupt_fd(void);     /* readable after a signal; -1 before interrupt_init() */
int interrupt_signal(void); /* the first one since the last clear, or 0 */
void interrupt_clear(void);
/* How many SIGINTs are borne before the next one ends the program at once. Default: 1. */
void interrupt_bear(int count);
/* fn is called in the signal handler, on the main thread: async-signal-safe functions only. NULL:
 * none. */
void interrupt_hook(void (*fn)(void));
/* A terminal that is to be put back whenever the program ends; state (struct termios *) must stay.
 * NULL: none. */
struct termios;
void interrupt_restores(int fd, const struct termios *state);

#endif
