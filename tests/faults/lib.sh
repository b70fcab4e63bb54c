# SPDX-License-Identifier: MIT
#
# For the tests of this folder (`. "$(dirname "$0")/lib.sh"`): a private run folder, $run, and data folder, $data, whose
# files are links to those of the shared one, so that nothing is built or fetched again; both go with the test, and so
# does every process that carries its mark.
#
# FCVM: the program (build/fcvm). FCVM_DATA: the shared data folder.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
FCVM=$(realpath "${FCVM:-$root/build/fcvm}")
[[ -x $FCVM ]] || {
	echo "there is no $FCVM; build it first (scripts/build)"
	exit 77
}
export FCVM
shared=${FCVM_DATA:-$HOME/.local/share/fcvm}
export FCVM_FAULTS=$$-$RANDOM
shm=/dev/shm
[[ -w $shm ]] || shm=${TMPDIR:-/tmp}
work=$(mktemp -d "${TMPDIR:-/tmp}/fcvm-faults-XXXXXX")
run=$(mktemp -d "$shm/fcvm-faults-XXXXXX")
data=$work/data
mkdir -m 700 "$data"
export FCVM_RUN=$run FCVM_DATA=$data
failures=0

# The VMMs and volumes' servers with this test's mark.
vmms() {
	grep -sla "FCVM_FAULTS=$FCVM_FAULTS" /proc/[0-9]*/environ | while IFS=/ read -r _ _ pid _; do
		grep -saqE 'qemu|firecracker|fcvm-volume' "/proc/$pid/comm" && echo "$pid"
	done
	return 0
}

# What is left of the test goes, whatever its result.
at_exit() {
	local status=$? pid
	((BASHPID == $$)) || exit $status # a subshell's end is not the test's
	for pid in $(jobs -p) $(vmms); do
		kill -KILL "$pid" 2>/dev/null
	done
	type tidy >/dev/null 2>&1 && tidy
	[[ -n ${KEEP:-} ]] || rm -rf "$work" "$run"
	exit $status
}
trap at_exit EXIT

# Links the shared data folder's images, kernels and QEMU into the private one. `warm`: its warm-start snapshots, too.
share() {
	[[ -d $shared/images/mini ]] || FCVM_DATA=$shared timeout -k 2 300 "$FCVM" image build mini >/dev/null ||
		skip "image mini cannot be built"
	[[ ! -d $shared/qemu ]] || ln -s "$shared/qemu" "$data/qemu"
	cp -al "$shared/images" "$shared/kernels" "$data/" 2>/dev/null || cp -a "$shared/images" "$shared/kernels" "$data/"
	[[ ! -d $shared/busybox ]] || cp -a "$shared/busybox" "$data/"
	rm -f "$data/images/.lock"
}

skip() {
	echo "$*"
	exit 77
}

fail() {
	echo "FAILED: $*"
	failures=$((failures + 1))
}

finish() {
	((failures == 0)) && exit 0
	echo "$failures failures"
	exit 1
}

now_ms() {
	echo $((${EPOCHREALTIME/./} / 1000))
}

# within MS COMMAND...: until it succeeds.
within() {
	local end=$(($(now_ms) + $1))
	shift
	until "$@"; do
		(($(now_ms) < end)) || return 1
		sleep 0.02
	done
}

gone() { # PID
	! kill -0 "$1" 2>/dev/null
}

no_vmms() {
	[[ -z $(vmms) ]]
}

# The run folder holds nothing but what is kept there on purpose.
run_is_empty() {
	[[ -z $(find "$run" -mindepth 1 ! -name .gate ! -name '.probe-*' -print -quit) ]]
}

tmp_is_empty() {
	[[ -z $(find "$data/tmp" -mindepth 1 ! -name .gate -print -quit 2>/dev/null) ]]
}
