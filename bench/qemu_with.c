/* SPDX-License-Identifier: MIT */
/*
 * qemu-with - QEMU with further arguments, for $FCVM_QEMU: so that a bench's guest has the rivals' devices as well as ours.
 * $QEMU_WITH is a file of lines: the path of QEMU, further "NAME=value" for its environment up to an empty line, and the
 * arguments, which are for VMs only, not for a probe. Static: what fcvm has preloaded into QEMU must not begin here.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINES = 64, LINE = 4096 };

static char lines[LINES][LINE];

static unsigned read_lines(const char *path)
{
	FILE *file = path ? fopen(path, "re") : NULL;
	unsigned n = 0;

	while (file && n < LINES && fgets(lines[n], LINE, file)) {
		lines[n][strcspn(lines[n], "\n")] = 0;
		n++;
	}
	if (file)
		fclose(file);
	return n;
}

int main(int argc, char **argv)
{
	unsigned n = read_lines(getenv("QEMU_WITH")), i = 1;
	char **all = calloc((size_t)argc + LINES + 1, sizeof *all);
	int is_vm = 0, count = argc;

	if (!n || !all) {
		fprintf(stderr, "qemu-with: $QEMU_WITH names no file of lines\n");
		return 1;
	}
	memcpy(all, argv, (size_t)argc * sizeof *all);
	all[0] = lines[0];
	for (int j = 1; j < argc; j++)
		is_vm |= !strcmp(argv[j], "-smp");
	for (; i < n && lines[i][0]; i++)
		putenv(lines[i]);
	for (i++; is_vm && i < n; i++)
		all[count++] = lines[i];
	execv(all[0], all);
	perror(all[0]);
	return 1;
}
