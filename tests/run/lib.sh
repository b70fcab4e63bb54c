# SPDX-License-Identifier: MIT
# What the steps share. A step is run by scripts/test in the source folder; it prints whatever helps, and tells the
# outcome of each test in $RESULTS, a line each: passed, failed, skipped or note, TAB, name, TAB, reason.
set -uo pipefail

pass() { printf 'passed\t%s\n' "$1" >>"$RESULTS"; }
fail() { printf 'failed\t%s\t%s\n' "$1" "${2:-}" >>"$RESULTS"; }
skip() { printf 'skipped\t%s\t%s\n' "$1" "$2" >>"$RESULTS"; }
# note WHAT TEXT: to be seen, and not counted.
note() { printf 'note\t%s\t%s\n' "$1" "$2" >>"$RESULTS"; }

# reason FILE: why a program failed that has printed this: its last line, or if that is a traceback's, as fcvm and Lua print
# them, the message above.
reason() {
	awk '/^(fcvm|lua[0-9.]*): / { said = $0 }
		/^[^[:space:]]/ { why = /^stack traceback:/ ? said : "" }
		/[^[:space:]]/ { last = $0 }
		END { print why != "" ? why : last }' "$1" | tr '\t' ' ' | cut -c1-200
}

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
	124) fail "$name" "not done in time; its last line: $(reason "$out")" ;;
	*) fail "$name" "$(reason "$out")" ;;
	esac
	rm -f "$out"
	return $((status != 0 && status != 77))
}

# check_in_lab NAME COMMAND...: check for what runs in the KVM lab. Of the VMs that are booted or restored there now and then one is
# lost (tests/drivers/support.lua), and such a program cannot tell that from a fault of ours: it is run once more, and that is noted.
# A fault comes back. Where KVM is real there is one try.
check_in_lab() {
	local name=$1 all=$RESULTS RESULTS why
	RESULTS=$(mktemp)
	if ! check "$@" && ! build/fcvm doctor | grep -q '^ok *kvm '; then
		why=$(awk -F'\t' '$1 == "failed" { print $3; exit }' "$RESULTS")
		RESULTS=$all note "$name" "done once more: $why"
		build/fcvm gc
		: >"$RESULTS"
		check "$@"
	fi
	cat "$RESULTS" >>"$all"
	rm -f "$RESULTS"
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

# busted_in DIR [COMMAND...]: the specs of a folder, one result each; by COMMAND (the built interpreter) SCRIPT [ARG...].
busted_in() {
	local dir=$1 tap=$RESULTS.tap.$BASHPID status
	shift
	(($#)) || set -- build/fcvm script
	"$@" "$(command -v busted)" -o TAP "$dir" 2>&1 | tee "$tap"
	status=${PIPESTATUS[0]}
	awk '
		{ gsub(/\t/, " ") }
		/^ok [0-9]+ - # SKIP / { sub(/^ok [0-9]+ - # SKIP /, ""); print "skipped\ta spec\t" $0; next }
		/^ok [0-9]+ - / { sub(/^ok [0-9]+ - /, ""); print "passed\t" $0; next }
		/^# note: / { sub(/^# note: /, ""); sub(/: /, "\t"); print "note\t" $0; next }
		/^not ok [0-9]+ - / { sub(/^not ok [0-9]+ - /, ""); name = $0; where = ""; next }
		name != "" && /^# .* @ [0-9]+$/ { where = substr($0, 3); next }
		name != "" && /^# Failure message: / { print "failed\t" name "\t" where ": " substr($0, 20, 160); name = "" }
		END { if (name != "") print "failed\t" name }' "$tap" >>"$RESULTS"
	grep -q '^1\.\.' "$tap" || fail "specs of $dir by $*" "ended early, exit status $status"
	rm -f "$tap"
}

# The sanitizers stop at the first finding and say so on stderr.
export ASAN_OPTIONS=abort_on_error=0:detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
# A test that forks itself (two processes building one image) is a process with threads that forks, to TSan.
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:die_after_fork=0
