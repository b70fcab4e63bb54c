/* SPDX-License-Identifier: MIT */
/* libFuzzer over the volume's validator: what passes is walked as libfuse does, by pointers into the body. */
#include <stdlib.h>
#include <string.h>

#include "fusepipe/abi.h"
#include "fusepipe/validate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool so)
{
	if (!so)
		abort();
}

/* As libfuse finds the names of an opcode, by strlen; the sanitiser sees it run out of the message. */
static void walk(const struct fuse_in_header *h, const char *body, const char *end)
{
	const char *name = NULL, *second = NULL;

	switch (h->opcode) {
	case FUSE_LOOKUP:
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		name = body;
		break;
	case FUSE_SYMLINK:
		name = body;
		second = name + strlen(name) + 1;
		require(second + strlen(second) < end);
		second = NULL;
		break;
	case FUSE_RENAME:
		name = body + 8;
		second = name + strlen(name) + 1;
		break;
	case FUSE_RENAME2:
		name = body + 16;
		second = name + strlen(name) + 1;
		break;
	case FUSE_MKNOD:
	case FUSE_CREATE:
		name = body + 16;
		break;
	case FUSE_MKDIR:
	case FUSE_LINK:
		name = body + 8;
		break;
	case FUSE_WRITE:
		require(body + 40 + ((const struct fuse_write_in *)body)->size == end);
		break;
	case FUSE_BATCH_FORGET:
		require(body + 8 + 16UL * ((const struct fuse_batch_forget_in *)body)->count == end);
		break;
	default:
		break;
	}
	if (name)
		require(name + strlen(name) < end && !strchr(name, '/') && strcmp(name, "..") && *name);
	if (second)
		require(second + strlen(second) < end && !strchr(second, '/') && strcmp(second, "..") && *second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int frame = fcvm_fuse_frame(data, size);
	struct fuse_in_header *h;

	if (size < sizeof *h)
		return 0;
	h = malloc(size);
	memcpy(h, data, size);
	/* Two of three inputs get the length that they have, or little would be seen past it. */
	if (data[7] % 3)
		h->len = size;
	if (data[7] % 3 == 0)
		require((frame == (int)size) == (h->len == size) || size > FCVM_FUSE_MAX_MESSAGE);
	if (fcvm_fuse_validate(h, size) == 0) {
		require(h->len == size && h->opcode < FCVM_FUSE_OPCODES);
		require(h->unique || !fcvm_fuse_wants_reply(h));
		walk(h, (const char *)(h + 1), (const char *)h + size);
	}
	free(h);
	return 0;
}
