/* SPDX-License-Identifier: MIT */
/*
 * The one place that decides which operations the guest sends at all, and what a reply lets it keep.
 *
 * Now: plain time-outs for names and attributes, contents kept from open to open while the file's time and size stay
 * the same (as git tells: not by a time that is too new), nothing else.
 *
 * A handle carries flock locks, a flush gives POSIX locks back: so a guest tells of every opening and closing. Not one whose
 * locks are its own: OPEN, OPENDIR and FLUSH are answered ENOSYS, once, and it sends none of them again, nor RELEASE
 * (data.c). Then contents are kept from open to open for as long as the attributes are taken for granted.
 */
#include <errno.h>
#include <sys/stat.h>
#include <time.h>

#include "fusepipe/abi.h"
#include "fusepipe/host/server.h"

enum { TICK_NS = 20 * 1000 * 1000 }; /* and more than one, wherever it is 10 ms */

/* Without these the protocol has other messages than fcvm_fuse_validate() knows. */
static const uint64_t needed = FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_SETXATTR_EXT | FUSE_HANDLE_KILLPRIV_V2;

static const uint64_t wanted = FUSE_ASYNC_READ | FUSE_DONT_MASK |
	FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS |
	FUSE_CACHE_SYMLINKS | FUSE_ABORT_ERROR | FUSE_INIT_EXT;

static const uint64_t host_locks = FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS;
static const uint64_t unopened = FUSE_NO_OPEN_SUPPORT | FUSE_NO_OPENDIR_SUPPORT;

uint64_t policy_init_flags(const struct server *s, uint64_t offered)
{
	uint64_t flags = needed | wanted;

	if (!s->volume.local_locks)
		flags |= host_locks;
	else if ((offered & unopened) == unopened)
		flags |= unopened;

	/* ACLs hold ids, which are not translated: with a map of ids there are none. */
	if (!cred_mapped(s))
		flags |= FUSE_POSIX_ACL;
	return (offered & needed) == needed ? flags & offered : 0;
}

void policy_entry(const struct server *s, struct fuse_entry_param *e)
{
	e->entry_timeout = e->attr_timeout = s->volume.timeout_s;
}

double policy_attr_timeout(const struct server *s)
{
	return s->volume.timeout_s;
}

/* Whatever is written now may leave a file with this time: the clock of a file's times has ticks. */
static bool is_recent(const struct timespec *mtime)
{
	struct timespec ago;

	clock_gettime(CLOCK_REALTIME, &ago);
	ago.tv_sec -= ago.tv_nsec < TICK_NS;
	ago.tv_nsec += ago.tv_nsec < TICK_NS ? 1000000000 - TICK_NS : -TICK_NS;
	return mtime->tv_sec > ago.tv_sec || (mtime->tv_sec == ago.tv_sec && mtime->tv_nsec > ago.tv_nsec);
}

int policy_open(struct server *s, struct node *n, int fd, bool *ret_keep_cache)
{
	struct stat st;
	bool same;

	if (fstat(fd, &st))
		return -errno;
	/*
	 * The guest went by a name that it took for granted, and it is gone: ESTALE makes its kernel look it up again. Not
	 * so if it has the file open, then it may well mean this one (/proc/self/fd).
	 */
	if (!st.st_nlink && !n->handles)
		return -ESTALE;
	same = n->kept_size == st.st_size && n->kept_mtime.tv_sec == st.st_mtim.tv_sec &&
		n->kept_mtime.tv_nsec == st.st_mtim.tv_nsec;
	n->kept_size = is_recent(&st.st_mtim) ? -1 : st.st_size;
	n->kept_mtime = st.st_mtim;
	*ret_keep_cache = same && s->volume.timeout_s > 0;
	return 0;
}

/*
 * Who has got a lock reads what others wrote under theirs, and what clears set-id bits here does not there: the guest
 * is told to ask for the attributes when it next needs them, and then drops its pages if time or size changed. Not to
 * drop pages itself: that waits for reads under way, whose replies may be behind this in the stream.
 */
void policy_changed(struct server *s, uint64_t node)
{
	if (s->volume.timeout_s > 0 && s->current)
		fuse_lowlevel_notify_inval_inode(s->session, node, -1, 0);
}
