/* SPDX-License-Identifier: MIT */
/* Names of VMs. */
#include <errno.h>
#include <string.h>

#include "base/fail.h"
#include "base/fd.h"
#include "core/vm.h"

static const char *const first[] = {"amber", "bold", "brave", "brisk", "calm", "clear", "clever", "cosy",
	"crisp", "dapper", "eager", "early", "fair", "fleet", "fond", "gentle", "glad", "grand", "green",
	"happy", "hardy", "honest", "jolly", "keen", "kind", "light", "lively", "loyal", "lucky", "mellow",
	"merry", "mild", "modest", "neat", "noble", "patient", "placid", "plucky", "polite", "proud", "quick",
	"quiet", "rapid", "ready", "rosy", "sharp", "silent", "smart", "snug", "sober", "spry", "steady",
	"still", "sunny", "swift", "tidy", "trusty", "vivid", "warm", "wary", "wise", "witty", "young", "zesty"};
static const char *const second[] = {"auk", "badger", "bear", "beaver", "bee", "bison", "crane", "crow",
	"curlew", "deer", "dipper", "dove", "duck", "eagle", "egret", "elk", "falcon", "finch", "fox", "frog",
	"gannet", "goose", "grebe", "gull", "hare", "hawk", "heron", "hobby", "ibis", "jay", "kestrel", "kite",
	"lapwing", "lark", "linnet", "lynx", "magpie", "martin", "merlin", "mole", "moose", "newt", "osprey",
	"otter", "owl", "pipit", "plover", "puffin", "quail", "raven", "robin", "rook", "seal", "shrew",
	"snipe", "stoat", "stork", "swan", "swift", "tern", "thrush", "toad", "wren", "yak"};

char *make_name(void)
{
	uint8_t dice[4];

	fcvm_random(dice, sizeof dice);
	return fcvm_asprintf("%s-%s-%u", first[dice[0] % 64], second[dice[1] % 64],
		(dice[2] << 8 | dice[3]) % 1000);
}

int check_name(const char *what, const char *name, struct fcvm_err *err)
{
	static const char letters[] =
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
	size_t size = strlen(name);

	if (size == 0 || size > 64 || strspn(name, letters) != size || name[0] == '.' || name[0] == '-')
		return fcvm_fail(err, -EINVAL,
			"%s '%.80s': want 1 to 64 letters, digits, '.', '_' or '-', starting with a letter, "
			"digit or '_'",
			what, name);
	return 0;
}
