/* SPDX-License-Identifier: MIT */
/* rehash FILE: gives a manifest.json that was changed by hand the hash that it should have. */
#define XXH_INLINE_ALL
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

int main(int argc, char **argv)
{
	static char text[1 << 20];
	static const char mark[] = "\n  \"hash\": \"";
	FILE *f = argc == 2 ? fopen(argv[1], "r+") : NULL;
	size_t size = f ? fread(text, 1, sizeof text - 1, f) : 0;
	char *at = NULL, hash[33];
	XXH128_hash_t h;

	for (char *next = text; (next = strstr(next, mark)); next++)
		at = next + 1; /* the files' hashes are deeper */
	if (!at || (size_t)(at - text) + 44 > size)
		return 1;
	h = XXH3_128bits(text, at - text);
	snprintf(hash, sizeof hash, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
	memcpy(at + sizeof mark - 2, hash, 32);
	rewind(f);
	return fwrite(text, 1, size, f) == size && fclose(f) == 0 ? 0 : 1;
}
