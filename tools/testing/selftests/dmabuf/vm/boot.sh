#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# boot.sh MODE QEMU-ARGUMENTS...: boot the machine once, as test, demo, bench or
# shell. The Makefile sets RESULT, a directory, and QEMU, KERNEL, INITRD, APPEND
# and TIMEOUT; FUNCTIONS, a file that lists them, if KCSAN is to look at those.
#
# Exit status: of tests, 0 pass, 1 fail, 4 no QEMU here; of demo and bench, the
# program's own. It is in $RESULT/status too, because make has but 0 and 2.
#
# Commas are QEMU's, upper case variables make's, and a trap calls cleanup:
# shellcheck disable=SC2054,SC2153,SC2317
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
mode=$1
shift

finish()
{
	echo "$1" >"$RESULT/status"
	exit "$1"
}

mkdir -p "$RESULT"
exec 9>"$RESULT/lock"
if ! flock -n 9; then
	echo "FAIL: another machine runs in $RESULT"
	exit 1
fi
# What an interrupted run leaves behind must not look like a pass.
echo 1 >"$RESULT/status"
for log in console verdict out; do
	: >"$RESULT/$log.log"
done

if ! command -v "$QEMU" >/dev/null; then
	echo "SKIP: $QEMU is not installed"
	finish 4
fi

# Path names of sockets are short, those of build directories may not be.
sockets=$(mktemp -d)
children=()
cleanup()
{
	for child in "${children[@]}"; do
		kill "$child" 2>/dev/null || true
	done
	rm -rf "$sockets"
}
trap cleanup EXIT

console=file,id=console,path=$RESULT/console.log
if [ "$mode" = shell ]; then
	console=stdio,id=console,signal=off,logfile=$RESULT/console.log
fi

host=no
if command -v python3 >/dev/null; then
	host=yes
	"$here/qemu-agent" "$sockets/qmp" "$sockets/host" \
		>"$RESULT/agent.log" 2>&1 9>&- &
	children+=($!)
else
	echo "no python3: tests of hot unplug will skip"
fi

# KCSAN warns of the races of others too: go on, the console is judged afterwards.
panic="panic_on_warn=1"
if [ -n "$FUNCTIONS" ]; then
	panic="panic_on_warn=0"
fi

qemu=("$QEMU" "$@" -kernel "$KERNEL" -initrd "$INITRD"
	-append "panic=-1 $panic oops=panic $APPEND vmtest.mode=$mode vmtest.host=$host"
	-chardev "$console"
	-chardev "file,id=verdict,path=$RESULT/verdict.log"
	-chardev "socket,id=host,path=$sockets/host,server=on,wait=off"
	-chardev "file,id=out,path=$RESULT/out.log"
	-qmp "unix:$sockets/qmp,server=on,wait=off")
if [ "${V:-}" = 1 ]; then
	printf '%q ' "${qemu[@]}" >&2
	echo >&2
fi

if [ "$mode" = shell ]; then
	"${qemu[@]}"
	finish 0
fi

timeout -k 5 "$TIMEOUT" "${qemu[@]}" </dev/null >"$RESULT/qemu.log" 2>&1 &
job=$!
children+=("$job")

# Tests show a line for each program, the others the program's output.
watch=verdict
if [ "$mode" != test ]; then
	watch=out
fi
tail -n +1 -s 0.2 --pid=$job -f "$RESULT/$watch.log" 9>&- &
tail=$!
while sleep 60; do
	echo "  ... $mode: $SECONDS s" >&2
done 9>&- &
children+=($!)

status=0
wait $job || status=$?
wait $tail || true
if [ "${V:-}" = 1 ]; then
	cat "$RESULT/console.log" >&2
fi
if [ $status -ne 0 ]; then
	# EPYC has more than TCG can do, and QEMU says so each time.
	grep -v "TCG doesn't support" "$RESULT/qemu.log" >&2 || true
fi

if [ "$mode" = test ]; then
	awk -v qemu=$status -v functions="$FUNCTIONS" -f "$here/report.awk" \
		"$RESULT/verdict.log" "$RESULT/console.log" && finish 0
	echo "See verdict.log, out.log and console.log in $RESULT"
	finish 1
fi

code=$(sed -n 's/^exit \([0-9]\{1,3\}\)$/\1/p' "$RESULT/verdict.log")
if [ -z "$code" ]; then
	echo "FAIL: the machine ended before $mode did (QEMU status $status)" >&2
	tail -n 20 "$RESULT/console.log" >&2
	finish 1
fi
finish "$code"
