/* SPDX-License-Identifier: MIT */
/*
 * Between a volume's handle (volume.c) and its server (control.c): a SOCK_SEQPACKET socket, one message each. Every command
 * has one reply with its number; an ATTACH of many streams comes in several messages, the last of which is replied to. The
 * server speaks first: the reply 0 says that it is set up, or why not.
 */
#ifndef FUSEPIPE_HOST_COMMAND_H
#define FUSEPIPE_HOST_COMMAND_H

#include <stdint.h>

enum {
	FCVM_VOLUME_FDS = 128, /* in one message */
	FCVM_VOLUME_TEXT = 1024,
};

enum fcvm_volume_command {
	FCVM_VOLUME_ATTACH = 1, /* with streams */
	FCVM_VOLUME_PAUSE,      /* replied to when all is quiet; another command ends it (-ECANCELED) */
	FCVM_VOLUME_SAVE,       /* with a file */
	FCVM_VOLUME_RESUME,
};

struct fcvm_volume_request {
	uint32_t command;
	uint32_t number;
	uint32_t total; /* ATTACH: streams in all */
	uint32_t first; /* and which the first one here is */
};

struct fcvm_volume_reply {
	uint32_t number;
	int32_t result; /* 0 or -errno, with the text of what went wrong */
	char text[FCVM_VOLUME_TEXT];
};

#endif
