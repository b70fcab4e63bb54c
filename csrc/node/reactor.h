/* SPDX-License-Identifier: MIT */
/*
 * One thread that waits for many descriptors by epoll and calls back.
 *
 * A source names its object by a counted reference (class->ref and ->unref) and a tag, never by a
 * raw pointer into something that another thread may free: a callback that was already on its way
 * when its source was removed still comes, finds the object alive, and looks the tag up under the
 * object's own lock.
 */
#ifndef FCVM_NODE_REACTOR_H
#define FCVM_NODE_REACTOR_H

#include <stdint.h>
#include <sys/epoll.h>

struct fcvm_reactor;
struct fcvm_source;

struct fcvm_source_class {
	void (*ready)(void *data, uint64_t tag, uint32_t events); /* on the reactor's thread */
	void (*ref)(void *data);                                  /* once the source is added */
	void (*unref)(void *data); /* some time after it was removed, on any thread */
};

int fcvm_reactor_new(struct fcvm_reactor **ret); /* starts the thread; -errno */
/* Ends and joins the thread, frees removed sources. Not from a callback. NULL allowed. */
void fcvm_reactor_free(struct fcvm_reactor *r);

/* Watches fd (borrowed; remove the source before closing it). events: EPOLLIN and the like; 0: only
 * EPOLLHUP and EPOLLERR. Level triggered. Thread safe, as are the three below; but call it with the
 * object's lock held, so that a callback waits until *ret and the reference are there. 0 or -errno:
 * then neither ref nor unref was called. */
int fcvm_reactor_add(struct fcvm_reactor *r, int fd, uint32_t events,
	const struct fcvm_source_class *class, void *data, uint64_t tag, struct fcvm_source **ret);
/* -errno: nothing is watched any more. */
int fcvm_source_set(struct fcvm_source *s, uint32_t events);
/* Not even EPOLLHUP, until the next _set. */
void fcvm_source_mute(struct fcvm_source *s);
void fcvm_source_remove(struct fcvm_source *s); /* NULL allowed */

#endif
