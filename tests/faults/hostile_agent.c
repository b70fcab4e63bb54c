/* SPDX-License-Identifier: MIT */
/*
 * A guest's /init that is no friend of the host. It is well-behaved until it is told otherwise: running "WORD", or
 * reading the file /WORD, is answered in WORD's way; running "next-WORD" is for the greeting that comes next.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/tree.h"
#include "wire/wire.h"

static char word[64];
static int port = -1;
static uint8_t junk[FCVM_WIRE_MAX_PAYLOAD];

static int is(const char *w)
{
	return strcmp(word, w) == 0;
}

static void load_modules(void)
{
	char path[300];
	FILE *f = fopen("/etc/modules-load", "r");

	while (f && fgets(path, sizeof path, f)) {
		const char *dot, *file;
		int fd;

		path[strcspn(path, "\n")] = 0;
		/* "virtio:3 /lib/...": its port's module has a condition, which holds */
		file = strchr(path, ' ');
		file = !file ? path : strncmp(path, "virtio:3 ", 9) == 0 ? file + 1 : NULL;
		if (!file)
			continue;
		dot = strrchr(file, '.');
		fd = open(file, O_RDONLY);
		if (fd >= 0)
			syscall(SYS_finit_module, fd, "", dot && strcmp(dot, ".ko") != 0 ? 4 : 0);
		close(fd);
	}
}

static void start(void)
{
	int fd;

	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	fd = open("/dev/console", O_RDWR);
	dup2(fd, 1);
	dup2(fd, 2);
	load_modules();
	for (int i = 0; port < 0 && i < 2000; i++) {
		port = open("/dev/vport0p1", O_RDWR);
		usleep(5000);
	}
	dprintf(2, "hostile: port %d\n", port);
}

static void put(const void *data, size_t size)
{
	for (const char *at = data; size > 0;) {
		ssize_t n = write(port, at, size);

		if (n <= 0) {
			usleep(1000);
			continue;
		}
		at += n;
		size -= n;
	}
}

static void frame(int type, unsigned channel, uint32_t stream, uint32_t length, uint32_t arg, const void *payload)
{
	static uint8_t all[16 + FCVM_WIRE_MAX_PAYLOAD];

	fcvm_wire_put_header(all, type, channel, stream, length, arg);
	memcpy(all + 16, payload ? payload : junk, length);
	put(all, 16 + length);
}

static void for_ever(void)
{
	for (;;)
		pause();
}

static void greet(const struct fcvm_wire_hello *hello)
{
	struct fcvm_wire_hello w = *hello;

	w.flags = 1;
	if (is("garbage") || is("zeros"))
		for (memset(junk, is("zeros") ? 0 : 7, sizeof junk);;)
			put(junk, sizeof junk);
	if (is("blind"))
		for_ever();
	if (is("silent"))
		return;
	if (is("version"))
		w.version = 99;
	if (is("nonce"))
		w.nonce++;
	if (is("magic"))
		memcpy(w.magic, "NOTALINK", 8);
	if (is("half-welcome")) {
		uint8_t head[16];

		fcvm_wire_put_header(head, FCVM_WIRE_WELCOME, 0, 0, sizeof w, 0);
		put(head, sizeof head);
		put(&w, 7);
		for_ever();
	}
	do
		frame(FCVM_WIRE_WELCOME, 0, 0, sizeof w, 0, &w);
	while (is("welcomes"));
}

static void tree(uint32_t id, const char *path, uint64_t size)
{
	struct fcvm_tree_entry e = {.magic = 0xf5, .type = FCVM_TREE_FILE, .path_len = strlen(path), .mode = S_IFREG | 0644,
		.size = size};
	uint8_t all[400];
	uint64_t extent[2] = {0, 6};
	size_t n = sizeof e;

	memcpy(all, &e, n);
	memcpy(all + n, path, e.path_len);
	n += e.path_len;
	memcpy(all + n, extent, sizeof extent);
	n += sizeof extent;
	memcpy(all + n, "pwned\n", 6);
	n += 6;
	frame(FCVM_WIRE_DATA, 1, id, n, 0, all);
}

static void run(uint32_t id)
{
	uint32_t pid = 1;
	uint8_t head[16];

	if (is("never"))
		return;
	if (is("short-result")) {
		frame(FCVM_WIRE_RESULT, 0, id, 1, 0, NULL);
		return;
	}
	if (is("huge-errno")) {
		frame(FCVM_WIRE_RESULT, 0, id, FCVM_WIRE_MAX_PAYLOAD, 0xfffffff0, NULL);
		return;
	}
	frame(FCVM_WIRE_RESULT, 0, id, 4, 0, &pid);
	if (is("result-twice"))
		for (;;)
			frame(FCVM_WIRE_RESULT, 0, id, 4, 0, &pid);
	if (is("over-window"))
		for (;;)
			frame(FCVM_WIRE_DATA, 1, id, FCVM_WIRE_MAX_DATA, 0, NULL);
	if (is("wrong-channel"))
		for (;;)
			frame(FCVM_WIRE_DATA, 9, id, 1000, 0, NULL);
	if (is("credits"))
		for (;;)
			frame(FCVM_WIRE_CREDIT, 0, id, 0, 0xffffffff, NULL);
	if (is("after-eof")) {
		frame(FCVM_WIRE_EOF, 1, id, 0, 0, NULL);
		for (;;)
			frame(FCVM_WIRE_DATA, 1, id, 1000, 0, NULL);
	}
	if (is("strangers"))
		for (uint32_t i = 0;; i++)
			frame(i % 2 ? FCVM_WIRE_DATA : FCVM_WIRE_RESULT, 1, id + 100000 + i, 1000, 0, NULL);
	if (is("oversized")) {
		fcvm_wire_put_header(head, FCVM_WIRE_DATA, 1, id, 0xfffffff0, 0);
		put(head, sizeof head);
		for (;;)
			put(junk, sizeof junk);
	}
	if (is("half")) {
		fcvm_wire_put_header(head, FCVM_WIRE_DATA, 1, id, 1000, 0);
		put(head, sizeof head);
		put(junk, 10);
		for_ever();
	}
	if (is("late-garbage"))
		for (;;)
			put(junk, sizeof junk);
	if (is("late-zeros")) {
		memset(junk, 0, sizeof junk);
		for (;;)
			put(junk, sizeof junk);
	}
	if (is("deaf"))
		for_ever();
	if (is("no-exit")) {
		frame(FCVM_WIRE_EOF, 1, id, 0, 0, NULL);
		frame(FCVM_WIRE_EOF, 2, id, 0, 0, NULL);
		frame(FCVM_WIRE_CLOSE, 0, id, 0, 0, NULL);
	}
}

static void answer(const struct fcvm_wire_header *h, const uint8_t *payload)
{
	if (h->type == FCVM_WIRE_HELLO && h->length >= sizeof(struct fcvm_wire_hello)) {
		greet((const struct fcvm_wire_hello *)payload);
		return;
	}
	if (h->type != FCVM_WIRE_OPEN)
		return;
	if (h->arg == FCVM_WIRE_SPAWN || h->arg == FCVM_WIRE_GET) {
		struct fcvm_wire_reader r = fcvm_wire_reader(payload, h->length);

		if (h->arg == FCVM_WIRE_SPAWN) {
			struct fcvm_wire_spawn spawn;

			fcvm_wire_get_bytes(&r, &spawn, sizeof spawn);
			fcvm_wire_get_string(&r);
			fcvm_wire_get_string(&r);
		}
		snprintf(word, sizeof word, "%s", fcvm_wire_get_string(&r));
		dprintf(2, "hostile: %s\n", word);
	}
	if (h->arg == FCVM_WIRE_SPAWN && strncmp(word, "next-", 5) == 0) {
		memmove(word, word + 5, strlen(word + 5) + 1);
		frame(FCVM_WIRE_RESULT, 0, h->stream, 0, 2, NULL);
	} else if (h->arg == FCVM_WIRE_SPAWN)
		run(h->stream);
	else if (h->arg == FCVM_WIRE_GET) {
		frame(FCVM_WIRE_RESULT, 0, h->stream, 0, 0, NULL);
		tree(h->stream, is("/escape") ? "../escaped" : is("/escape-root") ? "/tmp/escaped" : "", 1ull << 62);
		frame(FCVM_WIRE_EOF, 1, h->stream, 0, 0, NULL);
		frame(FCVM_WIRE_EXIT, 0, h->stream, 0, 0, NULL);
	} else if (h->arg == FCVM_WIRE_PING) {
		frame(FCVM_WIRE_RESULT, 0, h->stream, is("ping") ? 4096 : h->length, 0, is("ping") ? NULL : payload);
	} else {
		frame(FCVM_WIRE_RESULT, 0, h->stream, 0, 0, NULL);
	}
}

int main(void)
{
	static uint8_t in[1 << 20];
	size_t size = 0;

	start();
	for (size_t i = 0; i < sizeof junk; i++)
		junk[i] = 1 + rand() % 255;
	for (;;) {
		struct fcvm_wire_header h;
		const uint8_t *payload;
		ssize_t n = read(port, in + size, sizeof in - size);
		size_t skip;
		int k;

		if (n <= 0) {
			usleep(1000);
			continue;
		}
		size += n;
		while ((k = fcvm_wire_parse(in, size, &h, &payload, &skip)) > 0) {
			answer(&h, payload);
			memmove(in, in + k, size - k);
			size -= k;
		}
		memmove(in, in + skip, size - skip);
		size -= skip;
	}
}
