/* SPDX-License-Identifier: MIT */
#include "fusepipe/validate.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "fusepipe/abi.h"

/* What follows the fixed part of a body. */
enum tail {
	NOTHING,
	NAME,         /* one component of a path */
	TWO_NAMES,
	NAME_TARGET,  /* a component and the text of a symlink */
	NAME_OR_ROOT, /* a component, or "/": the kernel's name of a file that has none (TMPFILE) */
	XATTR,        /* an attribute's name */
	XATTR_VALUE,  /* an attribute's name and as many bytes as the fixed part's first word says */
	COUNTED,      /* as many bytes as a word of the fixed part says */
	FORGETS,      /* as many struct fuse_forget_one as the fixed part's first word says */
	LOCK,         /* nothing; the fixed part is of a lock, whose range must be one */
	INIT,         /* of 7.36 and later, or the 16 bytes of earlier ones */
};

enum {
	KNOWN = 1,
	NO_REPLY = 2,
	NO_NODE = 4, /* the node id says nothing */
};

struct rule {
	const char *name;
	uint16_t size; /* of the fixed part */
	uint8_t tail;
	uint8_t how;
	uint8_t count_at; /* COUNTED: where the count stands in the fixed part */
};

#define RULE(op, body, follows, ...) [FUSE_##op] = {#op, body, follows, KNOWN | __VA_ARGS__}

/* Sizes are said once more as numbers by the unit test: both would have to be wrong alike. */
static const struct rule rules[FCVM_FUSE_OPCODES] = {
	RULE(LOOKUP, 0, NAME, 0),
	RULE(FORGET, sizeof(struct fuse_forget_in), NOTHING, NO_REPLY),
	RULE(GETATTR, sizeof(struct fuse_getattr_in), NOTHING, 0),
	RULE(SETATTR, sizeof(struct fuse_setattr_in), NOTHING, 0),
	RULE(READLINK, 0, NOTHING, 0),
	RULE(SYMLINK, 0, NAME_TARGET, 0),
	RULE(MKNOD, sizeof(struct fuse_mknod_in), NAME, 0),
	RULE(MKDIR, sizeof(struct fuse_mkdir_in), NAME, 0),
	RULE(UNLINK, 0, NAME, 0),
	RULE(RMDIR, 0, NAME, 0),
	RULE(RENAME, sizeof(struct fuse_rename_in), TWO_NAMES, 0),
	RULE(LINK, sizeof(struct fuse_link_in), NAME, 0),
	RULE(OPEN, sizeof(struct fuse_open_in), NOTHING, 0),
	RULE(READ, sizeof(struct fuse_read_in), NOTHING, 0),
	RULE(WRITE, sizeof(struct fuse_write_in), COUNTED, 0, offsetof(struct fuse_write_in, size)),
	RULE(STATFS, 0, NOTHING, 0),
	RULE(RELEASE, sizeof(struct fuse_release_in), NOTHING, 0),
	RULE(FSYNC, sizeof(struct fuse_fsync_in), NOTHING, 0),
	RULE(SETXATTR, sizeof(struct fuse_setxattr_in), XATTR_VALUE, 0),
	RULE(GETXATTR, sizeof(struct fuse_getxattr_in), XATTR, 0),
	RULE(LISTXATTR, sizeof(struct fuse_getxattr_in), NOTHING, 0),
	RULE(REMOVEXATTR, 0, XATTR, 0),
	RULE(FLUSH, sizeof(struct fuse_flush_in), NOTHING, 0),
	RULE(INIT, 16, INIT, NO_NODE),
	RULE(OPENDIR, sizeof(struct fuse_open_in), NOTHING, 0),
	RULE(READDIR, sizeof(struct fuse_read_in), NOTHING, 0),
	RULE(RELEASEDIR, sizeof(struct fuse_release_in), NOTHING, 0),
	RULE(FSYNCDIR, sizeof(struct fuse_fsync_in), NOTHING, 0),
	RULE(GETLK, sizeof(struct fuse_lk_in), LOCK, 0),
	RULE(SETLK, sizeof(struct fuse_lk_in), LOCK, 0),
	RULE(SETLKW, sizeof(struct fuse_lk_in), LOCK, 0),
	RULE(ACCESS, sizeof(struct fuse_access_in), NOTHING, 0),
	RULE(CREATE, sizeof(struct fuse_create_in), NAME, 0),
	RULE(INTERRUPT, sizeof(struct fuse_interrupt_in), NOTHING, NO_REPLY | NO_NODE),
	RULE(BMAP, sizeof(struct fuse_bmap_in), NOTHING, 0),
	RULE(DESTROY, 0, NOTHING, NO_NODE),
	RULE(IOCTL, sizeof(struct fuse_ioctl_in), COUNTED, 0, offsetof(struct fuse_ioctl_in, in_size)),
	RULE(POLL, sizeof(struct fuse_poll_in), NOTHING, 0),
	RULE(NOTIFY_REPLY, sizeof(struct fuse_notify_retrieve_in), COUNTED, NO_REPLY | NO_NODE,
		offsetof(struct fuse_notify_retrieve_in, size)),
	RULE(BATCH_FORGET, sizeof(struct fuse_batch_forget_in), FORGETS, NO_REPLY | NO_NODE),
	RULE(FALLOCATE, sizeof(struct fuse_fallocate_in), NOTHING, 0),
	RULE(READDIRPLUS, sizeof(struct fuse_read_in), NOTHING, 0),
	RULE(RENAME2, sizeof(struct fuse_rename2_in), TWO_NAMES, 0),
	RULE(LSEEK, sizeof(struct fuse_lseek_in), NOTHING, 0),
	RULE(COPY_FILE_RANGE, sizeof(struct fuse_copy_file_range_in), NOTHING, 0),
	/* SETUPMAPPING and REMOVEMAPPING belong to a DAX window, which a stream has not: not known. */
	RULE(SYNCFS, sizeof(struct fuse_syncfs_in), NOTHING, 0),
	RULE(TMPFILE, sizeof(struct fuse_create_in), NAME_OR_ROOT, 0),
	RULE(STATX, sizeof(struct fuse_statx_in), NOTHING, 0),
	RULE(COPY_FILE_RANGE_64, sizeof(struct fuse_copy_file_range_in), NOTHING, 0),
};

static const struct rule *rule_of(uint32_t opcode)
{
	return opcode < FCVM_FUSE_OPCODES && rules[opcode].how ? &rules[opcode] : NULL;
}

const char *fcvm_fuse_opcode_name(uint32_t opcode)
{
	const struct rule *rule = rule_of(opcode);

	return rule ? rule->name : "?";
}

const char *fcvm_fuse_operation_name(uint32_t opcode, char to[static FCVM_FUSE_NAME])
{
	const char *name = fcvm_fuse_opcode_name(opcode);
	size_t i = 0;

	for (; name[i] && i < FCVM_FUSE_NAME - 1; i++)
		to[i] = (char)tolower((unsigned char)name[i]);
	to[i] = 0;
	return to;
}

bool fcvm_fuse_wants_reply(const void *message)
{
	const struct fuse_in_header *h = message;
	const struct rule *rule = rule_of(h->opcode);

	return !rule || !(rule->how & NO_REPLY);
}

int fcvm_fuse_frame(const void *buf, size_t size)
{
	uint32_t length;

	if (size < sizeof length)
		return 0;
	memcpy(&length, buf, sizeof length);
	if (length < sizeof(struct fuse_in_header) || length > FCVM_FUSE_MAX_MESSAGE)
		return -EBADMSG;
	return (int)length;
}

static uint32_t word_at(const char *p)
{
	uint32_t word;

	memcpy(&word, p, sizeof word);
	return word;
}

/* Past the text's NUL, or NULL: empty or without an end. */
static const char *text(const char *p, const char *end)
{
	const char *nul = p < end ? memchr(p, 0, end - p) : NULL;

	return nul && nul > p ? nul + 1 : NULL;
}

static const char *component(const char *p, const char *end)
{
	const char *next = text(p, end);

	if (!next || memchr(p, '/', next - p))
		return NULL;
	return p[0] == '.' && (!p[1] || (p[1] == '.' && !p[2])) ? NULL : next;
}

/* As a kernel has it: both ends in it, beneath 2^63. */
static bool is_range(const char *body)
{
	struct fuse_lk_in in;

	memcpy(&in, body, sizeof in);
	return in.lk.start <= in.lk.end && in.lk.end <= INT64_MAX;
}

/* Past what follows the fixed part, or NULL if it is not that. */
static const char *tail(const struct rule *rule, const char *body, const char *end)
{
	const char *p = body + rule->size;

	switch ((enum tail)rule->tail) {
	case NOTHING:
		return p;
	case NAME:
		return component(p, end);
	case TWO_NAMES:
		return (p = component(p, end)) ? component(p, end) : NULL;
	case NAME_TARGET:
		return (p = component(p, end)) ? text(p, end) : NULL;
	case NAME_OR_ROOT:
		return end - p >= 2 && p[0] == '/' && !p[1] ? p + 2 : component(p, end);
	case XATTR:
		return text(p, end);
	case XATTR_VALUE:
		return (p = text(p, end)) && (size_t)(end - p) >= word_at(body) ? p + word_at(body) : NULL;
	case COUNTED:
		return (size_t)(end - p) == word_at(body + rule->count_at) ? end : NULL;
	case FORGETS:
		return (size_t)(end - p) == (uint64_t)word_at(body) * sizeof(struct fuse_forget_one) ? end : NULL;
	case LOCK:
		return is_range(body) ? p : NULL;
	case INIT:
		return end - body == sizeof(struct fuse_init_in) || end == p ? end : NULL;
	}
	return NULL;
}

int fcvm_fuse_validate(const void *message, size_t size)
{
	const struct fuse_in_header *h = message;
	const char *body = (const char *)(h + 1), *end;
	const struct rule *rule;
	size_t left;

	if (size < sizeof *h || size > FCVM_FUSE_MAX_MESSAGE || h->len != size)
		return -EBADMSG;
	rule = rule_of(h->opcode);
	/* A reply to 0 would be a notification. */
	if (!h->unique && (!rule || !(rule->how & NO_REPLY)))
		return -EBADMSG;
	if (!rule)
		return -ENOSYS;
	left = size - sizeof *h;
	/* Extensions are not negotiated (policy.c): no message has any. */
	if (rule->size > left || h->total_extlen)
		return -EINVAL;
	if (!h->nodeid && !(rule->how & NO_NODE))
		return -EINVAL;
	end = body + left;
	return tail(rule, body, end) == end ? 0 : -EINVAL;
}
