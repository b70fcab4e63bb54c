/* SPDX-License-Identifier: MIT */
/*
 * What stands between a guest's bytes and libfuse, which trusts the kernel. Pure: reads nothing but its arguments,
 * allocates nothing.
 *
 * Checked: the length in the header is that of the message; the opcode is known; the body is that of the opcode,
 * with nothing over; names are there in their number, terminated within the body, not empty, free of '/' and
 * neither "." nor ".."; counts agree with what follows; there are no extensions (7.38). Not checked here: that
 * node ids and handles exist, flags, offsets (the tables' and the kernel's business).
 */
#ifndef FUSEPIPE_VALIDATE_H
#define FUSEPIPE_VALIDATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The length of the message that begins at buf: > 0 (may be more than size: it is not all there yet), 0: cannot be
 * told yet, -EBADMSG: not a message, and where the next one begins is not known.
 */
int fcvm_fuse_frame(const void *buf, size_t size);

/*
 * One whole message, aligned to 8 bytes. 0: libfuse may have it. -ENOSYS: an opcode that is not known. -EINVAL: its
 * body is not one of its opcode (to be answered so, if it is to be answered). -EBADMSG: not a message.
 */
int fcvm_fuse_validate(const void *message, size_t size);

/* Of a message that is at least a header: whether its sender waits for a reply. */
bool fcvm_fuse_wants_reply(const void *message);

/* "LOOKUP"; "?" for what is not known. */
const char *fcvm_fuse_opcode_name(uint32_t opcode);

/* The same for people, put into `to` and returned: "lookup", "?". */
enum { FCVM_FUSE_NAME = 24 };
const char *fcvm_fuse_operation_name(uint32_t opcode, char to[static FCVM_FUSE_NAME]);

#endif
