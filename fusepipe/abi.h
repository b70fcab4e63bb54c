/* SPDX-License-Identifier: MIT */
/*
 * The kernel's FUSE ABI as the guest may speak it: <linux/fuse.h>, and what later versions of that header have.
 * The system's header may be older than the guest's kernel (Debian 12's is 7.38; this knows up to 7.45).
 */
#ifndef FUSEPIPE_ABI_H
#define FUSEPIPE_ABI_H

#include <linux/fuse.h>
#include <stdint.h>

/* The oldest guest kernel: 7.36 (Linux 5.17) has all that is negotiated as a matter of course. */
#define FCVM_FUSE_MINOR_MIN 36

/* The largest payload of one message, and the largest message: 256 pages and what stands before them. */
#define FCVM_FUSE_MAX_DATA    (1U << 20)
#define FCVM_FUSE_MAX_MESSAGE (FCVM_FUSE_MAX_DATA + 4096U)

#if FUSE_KERNEL_MINOR_VERSION < 39
/* 7.39 (Linux 6.6) */
#define FUSE_STATX 52

struct fuse_sx_time {
	int64_t tv_sec;
	uint32_t tv_nsec;
	int32_t reserved;
};

struct fuse_statx {
	uint32_t mask;
	uint32_t blksize;
	uint64_t attributes;
	uint32_t nlink;
	uint32_t uid;
	uint32_t gid;
	uint16_t mode;
	uint16_t spare0[1];
	uint64_t ino;
	uint64_t size;
	uint64_t blocks;
	uint64_t attributes_mask;
	struct fuse_sx_time atime;
	struct fuse_sx_time btime;
	struct fuse_sx_time ctime;
	struct fuse_sx_time mtime;
	uint32_t rdev_major;
	uint32_t rdev_minor;
	uint32_t dev_major;
	uint32_t dev_minor;
	uint64_t spare2[14];
};

struct fuse_statx_in {
	uint32_t getattr_flags;
	uint32_t reserved;
	uint64_t fh;
	uint32_t sx_flags;
	uint32_t sx_mask;
};

struct fuse_statx_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec;
	uint32_t flags;
	uint64_t spare[2];
	struct fuse_statx stat;
};
#endif

#if FUSE_KERNEL_MINOR_VERSION < 45
/* 7.45 (Linux 6.18): as COPY_FILE_RANGE, the count in the reply has 64 bits. */
#define FUSE_COPY_FILE_RANGE_64 53

struct fuse_copy_file_range_out {
	uint64_t bytes_copied;
};
#endif

/* One more than the largest opcode that is known. */
#define FCVM_FUSE_OPCODES 54

#endif
