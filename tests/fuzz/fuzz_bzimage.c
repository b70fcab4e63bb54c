/* SPDX-License-Identifier: MIT */
/* Kernels are the user's: what a bzImage's header says of its payload must lie within it. */
#include <stdlib.h>

#include "store/image_private.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
	struct store_payload p = {.data = NULL};
	char *release = store_kernel_release((const char *)data, size);
	int r = store_bzimage_find(data, size, &p);

	free(release);
	if (r != 0 && (r != -22 || p.data))
		abort();
	if (r == 0 && ((const unsigned char *)p.data < data || p.size > size ||
			      (size_t)((const unsigned char *)p.data - data) > size - p.size))
		abort();
	return 0;
}
