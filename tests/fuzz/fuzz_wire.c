/* SPDX-License-Identifier: MIT */
/* libFuzzer over the link's protocol: frames as both ends take them, and each payload reader over the rest. */
#include <stdlib.h>
#include <string.h>

#include "wire/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool so)
{
	if (!so)
		abort();
}

static void read_payload(uint32_t how, const uint8_t *payload, size_t size)
{
	struct fcvm_wire_reader r = fcvm_wire_reader(payload, size);
	uint8_t bytes[80];

	/* arg serves as the script: two bits a step. */
	for (unsigned i = 0; i < 16; i++, how >>= 2) {
		bool bad = r.bad;

		if ((how & 3) == 0)
			fcvm_wire_get_u32(&r);
		else if ((how & 3) == 1)
			fcvm_wire_get_u64(&r);
		else if ((how & 3) == 2)
			fcvm_wire_get_bytes(&r, bytes, sizeof bytes >> (i & 3));
		else
			require(strlen(fcvm_wire_get_string(&r)) < FCVM_WIRE_MAX_PAYLOAD);
		require(r.at <= r.end && (!bad || r.bad));
	}
	require(!fcvm_wire_reader_ok(&r) || r.at == r.end);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	while (size > 0) {
		struct fcvm_wire_header h;
		const uint8_t *payload;
		size_t skip;
		int n = fcvm_wire_parse(data, size, &h, &payload, &skip);
		uint8_t again[16];

		require(skip <= size);
		if (n <= 0)
			break;
		require((size_t)n == skip + sizeof again + h.length && (size_t)n <= size);
		require(payload == data + skip + sizeof again);
		fcvm_wire_put_header(again, h.type, h.channel, h.stream, h.length, h.arg);
		require(memcmp(again, data + skip, sizeof again) == 0);
		read_payload(h.arg, payload, h.length);
		data += n;
		size -= n;
	}
	return 0;
}
