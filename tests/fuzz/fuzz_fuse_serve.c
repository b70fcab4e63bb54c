/* SPDX-License-Identifier: MIT */
/*
 * libFuzzer over the volume's server behind its validator, libfuse included: a guest's messages, in any order, on a
 * folder of its own. Nothing may be found outside the folder, nothing may leak.
 */
#include "fuse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct guest g = guest_of(data, size);
	union message m;
	struct bare b;

	folder_make();
	bare_begin(&b);
	message_init(&m);
	bare_take(&b, &g, &m);
	require(b.s.init_flags);
	while (g.at < g.end) {
		guest_asks(&g, &m);
		if (m.h.opcode != FUSE_INIT)
			bare_take(&b, &g, &m);
	}
	bare_end(&b);
	folder_remove();
	return 0;
}
