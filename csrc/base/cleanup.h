/* SPDX-License-Identifier: MIT */
/*
 * Scope cleanup. `_cleanup_(fn) struct x *v = NULL;` calls fn(&v) when the scope is left. Never live across a
 * Lua call that can raise: longjmp skips cleanup attributes.
 */
#ifndef FCVM_BASE_CLEANUP_H
#define FCVM_BASE_CLEANUP_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(fn) __attribute__((cleanup(fn)))

/* Gives the value away: the variable is left empty, so that its cleanup does nothing. */
#define fcvm_steal_ptr(p)                                                                          \
	({                                                                                         \
		__typeof__(p) stolen_ = (p);                                                       \
		(p) = NULL;                                                                        \
		stolen_;                                                                           \
	})
#define fcvm_steal_fd(fd)                                                                          \
	({                                                                                         \
		int stolen_ = (fd);                                                                \
		(fd) = -1;                                                                         \
		stolen_;                                                                           \
	})

/* Closes what is >= 0, keeps errno, returns -1: fd = fcvm_close(fd). */
int fcvm_close(int fd);

static inline void fcvm_cleanup_free(void *p)
{
	free(*(void **)p);
}

static inline void fcvm_cleanup_close(int *fd)
{
	*fd = fcvm_close(*fd);
}

static inline void fcvm_cleanup_fclose(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void fcvm_cleanup_closedir(DIR **d)
{
	if (*d)
		closedir(*d);
}

/* Defines cleanup_<fn>(T **) for a destructor fn(T *) that takes NULL. */
#define FCVM_CLEANUP(T, fn)                                                                        \
	static inline void cleanup_##fn(T **p)                                                     \
	{                                                                                          \
		fn(*p);                                                                            \
	}

#define _cleanup_free_     _cleanup_(fcvm_cleanup_free)
#define _cleanup_close_    _cleanup_(fcvm_cleanup_close)
#define _cleanup_fclose_   _cleanup_(fcvm_cleanup_fclose)
#define _cleanup_closedir_ _cleanup_(fcvm_cleanup_closedir)

#endif
