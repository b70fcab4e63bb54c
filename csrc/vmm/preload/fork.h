/* SPDX-License-Identifier: MIT */
#ifndef FCVM_VMM_PRELOAD_FORK_H
#define FCVM_VMM_PRELOAD_FORK_H

/*
 * Copies this process with all its threads, as a child of its own parent. Returns the pid, in the child 0, or -errno
 * with nothing changed. In the child the descriptors targets[i] are what fds[i] is here, and its eventfds are its own.
 */
long fcvm_fork(const int *fds, const int *targets, unsigned n);

#endif
