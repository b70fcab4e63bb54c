/* SPDX-License-Identifier: MIT */
/* The program: finds the verb, shows help. What a verb does is in its own file. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/fail.h"
#include "fcvm.h"
#include "host/interrupt.h"
#include "host/progress.h"
#include "host/verb.h"

/* In the order of the help. */
static const struct verb *const verbs[] = {
	&verb_script,
	&verb_repl,
	&verb_run,
	&verb_ls,
	&verb_exec,
	&verb_cp,
	&verb_logs,
	&verb_kill,
	&verb_volumes,
	&verb_trace,
	&verb_snapshot_ls,
	&verb_snapshot_inspect,
	&verb_snapshot_rm,
	&verb_image_ls,
	&verb_image_build,
	&verb_image_rm,
	&verb_gc,
	&verb_doctor,
};
enum { VERBS = sizeof verbs / sizeof *verbs, FDS_WANTED = 65536 };

/* ---- finding the verb ---- */

static const char *verb_name(const void *data, size_t i)
{
	return verbs[i]->name;
}

/* The first word of a verb of two words ("snapshot ls"), or the whole. */
static size_t first_word(const struct verb *verb)
{
	return strcspn(verb->name, " ");
}

static bool is_group(const char *word)
{
	for (size_t i = 0; i < VERBS; i++)
		if (verbs[i]->name[first_word(verbs[i])] && strlen(word) == first_word(verbs[i]) &&
			memcmp(verbs[i]->name, word, strlen(word)) == 0)
			return true;
	return false;
}

static const struct verb *find(const char *first, const char *second)
{
	char name[64];
	int n = snprintf(
		name, sizeof name, "%s%s%s", first, second ? " " : "", second ? second : "");

	if (n >= (int)sizeof name)
		return NULL;
	for (size_t i = 0; i < VERBS; i++)
		if (strcmp(verbs[i]->name, name) == 0)
			return verbs[i];
	return NULL;
}

static int unknown_verb(const char *first, const char *second)
{
	char name[128];
	const char *near;

	snprintf(name, sizeof name, "%s%s%s", first, second ? " " : "", second ? second : "");
	near = nearest(name, verb_name, NULL, VERBS);
	if (near)
		return misuse("unknown verb '%s'; did you mean '%s'?", name, near);
	return misuse("unknown verb '%s'; fcvm --help lists them", name);
}

/* ---- help ---- */

static void print_verbs(FILE *to, const char *group)
{
	size_t width = 0;

	for (size_t i = 0; i < VERBS; i++)
		if (strlen(verbs[i]->name) > width)
			width = strlen(verbs[i]->name);
	for (size_t i = 0; i < VERBS; i++)
		if (!group || strncmp(verbs[i]->name, group, strlen(group)) == 0)
			fprintf(to, "  %-*s  %s\n", (int)width, verbs[i]->name, verbs[i]->summary);
}

static void print_help(void)
{
	printf("usage: fcvm VERB [options] ...\n"
	       "Boots virtual machines, snapshots them, clones them, runs programs in them.\n\n");
	print_verbs(stdout, NULL);
	printf("\nfcvm VERB --help says more about each; the manual is fcvm(1).\n");
}

static void print_group_help(FILE *to, const char *group)
{
	fprintf(to, "usage: fcvm %s VERB ...\n\n", group);
	print_verbs(to, group);
}

static void print_verb_help(const struct verb *verb)
{
	char left[64];

	printf("usage: fcvm %s%s%s%s\n%s.\n\nOptions:\n", verb->name,
		verb->options[0].name ? " [options]" : "", *verb->operands ? " " : "",
		verb->operands, verb->summary);
	for (const struct option *o = verb->options; o->name; o++) {
		snprintf(left, sizeof left, "%c%c%s --%s%s%s", o->letter ? '-' : ' ',
			o->letter ? o->letter : ' ', o->letter ? "," : " ", o->name,
			o->value ? " " : "", o->value ? o->value : "");
		printf("  %-24s  %s\n", left, o->help);
	}
	printf("  -h, --help                this help\n");
	if (verb->help)
		printf("\n%s\n", verb->help);
}

/* For the shell's completion: the verbs, the verbs of a group, or the options of a verb, one a
 * line. An option that takes a value ends in "=". */
static int complete(char **argv)
{
	const struct verb *verb = argv[0] ? find(argv[0], argv[1]) : NULL;

	if (!verb && argv[0])
		verb = find(argv[0], NULL);
	if (verb) {
		for (const struct option *o = verb->options; o->name; o++)
			printf("--%s%s\n", o->name, o->value ? "=" : "");
		printf("--help\n");
		return 0;
	}
	for (size_t i = 0; i < VERBS; i++) {
		size_t n = first_word(verbs[i]);

		if (argv[0] && strlen(argv[0]) == n && memcmp(verbs[i]->name, argv[0], n) == 0)
			printf("%s\n", verbs[i]->name + n + 1);
		else if (!argv[0] &&
			 (i == 0 || strncmp(verbs[i]->name, verbs[i - 1]->name, n + 1) != 0))
			printf("%.*s\n", (int)n, verbs[i]->name);
	}
	return 0;
}

/* ---- */

static int run_verb(const struct verb *verb, char **argv)
{
	struct fcvm_err err = FCVM_ERR_INIT;
	struct args args;
	int r = args_parse(&args, verb, argv);

	if (r < 0)
		print_verb_help(verb);
	if (r == 0) {
		r = interrupt_init();
		if (r < 0)
			fcvm_fail_errno(&err, r, "cannot watch for signals"), r = failed(&err);
		else
			r = verb->run(&args);
	}
	args_done(&args);
	return r < 0 ? 0 : r;
}

static int dispatch(char **argv)
{
	const char *first = argv[0];
	const char *second = first ? argv[1] : NULL;
	const struct verb *verb;

	if (!first) {
		fprintf(stderr, "usage: fcvm VERB [options] ...\n\n");
		print_verbs(stderr, NULL);
		return EXIT_MISUSE;
	}
	if (strcmp(first, "help") == 0 && second) {
		bool two = argv[2] && is_group(second);
		char *words[] = {argv[1], two ? argv[2] : (char *)"--help",
			two ? (char *)"--help" : NULL, NULL};

		return dispatch(words);
	}
	if (strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0 ||
		strcmp(first, "help") == 0) {
		print_help();
		return 0;
	}
	if (strcmp(first, "--version") == 0 || strcmp(first, "-V") == 0) {
		printf("fcvm %s\n", fcvm_version());
		return 0;
	}
	if (strcmp(first, "--complete") == 0)
		return complete(argv + 1);
	if (first[0] == '-')
		return misuse("unknown option %s; fcvm --help lists the verbs", first);
	if (is_group(first)) {
		if (second && (strcmp(second, "--help") == 0 || strcmp(second, "-h") == 0)) {
			print_group_help(stdout, first);
			return 0;
		}
		if (!second) {
			print_group_help(stderr, first);
			return EXIT_MISUSE;
		}
		verb = find(first, second);
		return verb ? run_verb(verb, argv + 2) : unknown_verb(first, second);
	}
	verb = find(first, NULL);
	return verb ? run_verb(verb, argv + 1) : unknown_verb(first, NULL);
}

/* Else what is opened first becomes stdin, stdout or stderr. */
static bool have_stdio(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			return false;
	return true;
}

/* A VM with a volume takes about 25. Not all that may be had: children have the same limit, and some close as many. */
static void allow_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= FDS_WANTED)
		return;
	limit.rlim_cur = limit.rlim_max < FDS_WANTED ? limit.rlim_max : FDS_WANTED;
	setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
	int r;

	if (argc < 1 || !have_stdio())
		return EXIT_MISUSE;
	allow_descriptors();
	progress_init();
	r = dispatch(argv + 1);
	progress_clear();
	if (fflush(stdout) != 0 && r == 0)
		r = EXIT_FAILED; /* such as a full disk behind `> file` */
	return r;
}
