/* SPDX-License-Identifier: MIT */
/* Manifests come from disks and other machines. What parses must be whole, and must say the same when compared. */
#include <stdlib.h>

#include "store/store.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
	struct fcvm_manifest m = {.memory = 0};
	struct fcvm_err err = FCVM_ERR_INIT;
	struct fcvm_json *j = NULL;
	int r = fcvm_manifest_parse((const char *)data, size, &m, &j, &err);

	if (r == 0) {
		struct fcvm_manifest_differs here = {m.driver, m.version, m.accel, m.machine, m.host_cpu};

		if (!j || !m.driver[0] || !m.agent || m.memory == 0 || m.vcpus == 0 ||
			fcvm_manifest_fits(&m, "x", &here, &err) != 0)
			abort();
		fcvm_manifest_done(&m);
		fcvm_json_free(j);
	} else if (r != -22 || err.code != 22 || !err.message[0] || j) {
		abort();
	}
	return 0;
}
