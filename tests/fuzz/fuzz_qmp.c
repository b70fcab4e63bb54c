/* SPDX-License-Identifier: MIT */
/* What a QEMU may send: lines, cut as the client cuts them. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/qmp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	while (size > 0) {
		const uint8_t *newline = memchr(data, '\n', size);
		size_t line = newline ? (size_t)(newline - data) : size;
		struct fcvm_err err = FCVM_ERR_INIT;
		struct fcvm_qmp_message m;

		if (fcvm_qmp_parse((const char *)data, line, &m, &err) == 0) {
			if ((m.kind == FCVM_QMP_EVENT || m.kind == FCVM_QMP_ERROR) && !m.text)
				abort();
			fcvm_qmp_message_done(&m);
		} else if (err.code == 0) {
			abort();
		}
		line += newline ? 1 : 0;
		data += line;
		size -= line;
	}
	return 0;
}
