# SPDX-License-Identifier: MIT
# What the steps share. A step is run by scripts/test in the source folder; it prints whatever helps, and tells the
# outcome of each test in $RESULTS, a line each: passed, failed or skipped, TAB, name, TAB, reason.
set -uo pipefail

pass() { printf 'passed\t%s\n' "$1" >>"$RESULTS"; }
fail() { printf 'failed\t%s\t%s\n' "$1" "${2:-}" >>"$RESULTS"; }
skip() { printf 'skipped\t%s\t%s\n' "$1" "$2" >>"$RESULTS"; }

# check NAME COMMAND...: in a subshell; passed if it exits with 0, skipped if with 77 (its last line says why).
check() {
	local name=$1 out status
	shift
	out=$(mktemp)
	echo "== $name"
	("$@") >"$out" 2>&1
	status=$?
	cat "$out"
	case $status in
	0) pass "$name" ;;
	77) skip "$name" "$(tail -n 1 "$out")" ;;
	*) fail "$name" "$(grep -v '^[[:space:]]*$' "$out" | tail -n 1 | tr '\t' ' ' | cut -c1-200)" ;;
	esac
	rm -f "$out"
	return $((status != 0 && status != 77))
}

# ctest_in DIR [ARG...]: ctest's tests, one result each. A skipped test's last line is the reason.
ctest_in() {
	ctest --test-dir "$1" -V --no-tests=error "${@:2}" 2>&1 | tee "$RESULTS.ctest"
	awk -v dir="$1" '
		/^[0-9]+: / { i = $0; sub(/:.*/, "", i); line = $0; sub(/^[0-9]+: /, "", line)
			if (line !~ /^[[:space:]]*$/) last[i] = line }
		/^ *[0-9]+\/[0-9]+ Test +#[0-9]+: / {
			i = $0; sub(/^[^#]*#/, "", i); sub(/:.*/, "", i); i += 0
			name = $0; sub(/^[^#]*#[0-9]+: +/, "", name); sub(/[ .*].*/, "", name)
			how = $0; sub(/^[^#]*#[0-9]+: +[^ .*]+[ .]*/, "", how); sub(/ +[0-9.]+ sec.*/, "", how); gsub(/\*/, "", how)
			gsub(/\t/, " ", last[i])
			if (how ~ /^ *Passed/) print "passed\t" name
			else if (how ~ /Skipped/) print "skipped\t" name "\t" last[i]
			else print "failed\t" name "\t" how ": " substr(last[i], 1, 160)
		}' "$RESULTS.ctest" >>"$RESULTS"
	rm -f "$RESULTS.ctest"
}

# busted_in DIR: the specs of a folder in the built interpreter, one result each.
busted_in() {
	build/fcvm script "$(command -v busted)" -o TAP "$1" 2>&1 | tee "$RESULTS.tap"
	local status=${PIPESTATUS[0]}
	awk '
		{ gsub(/\t/, " ") }
		/^ok [0-9]+ - # SKIP / { sub(/^ok [0-9]+ - # SKIP /, ""); print "skipped\ta spec\t" $0; next }
		/^ok [0-9]+ - / { sub(/^ok [0-9]+ - /, ""); print "passed\t" $0; next }
		/^not ok [0-9]+ - / { sub(/^not ok [0-9]+ - /, ""); name = $0; where = ""; next }
		name != "" && /^# .* @ [0-9]+$/ { where = substr($0, 3); next }
		name != "" && /^# Failure message: / { print "failed\t" name "\t" where ": " substr($0, 20, 160); name = "" }
		END { if (name != "") print "failed\t" name }' "$RESULTS.tap" >>"$RESULTS"
	grep -q '^1\.\.' "$RESULTS.tap" || fail "specs of $1" "ended early, exit status $status"
	rm -f "$RESULTS.tap"
}

# The sanitizers stop at the first finding and say so on stderr.
export ASAN_OPTIONS=abort_on_error=0:detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
# A test that forks itself (two processes building one image) is a process with threads that forks, to TSan.
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:die_after_fork=0
