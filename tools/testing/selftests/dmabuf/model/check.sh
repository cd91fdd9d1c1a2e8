#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Usage: check.sh DIR [BUG]
#
# Checks revoke.pml in DIR: first as it is, then with each step left out that has a
# name, which must be caught by the property named with it. Prints TAP. With BUG,
# prints the steps that lead to its being caught.

set -euo pipefail
model=$(dirname "$(readlink -f "$0")")/revoke.pml

# What fails, by property: text of the assertion or of spin
bugs='
NO_FENCE_WAIT		safety	bar_answers
NO_UNMAP_WAIT		safety	bar_answers
NO_INVALIDATE		safety	bar_answers
NO_REINVALIDATE		safety	waits
NO_MAP_CHECK		safety	taken
NO_PIN_CHECK		safety	taken
CHECK_BEFORE_LOCK	safety	taken
INVALIDATE_FIRST	safety	bar_answers
LATE_REVOKE		safety	bar_answers
EARLY_RESTORE		safety	bar_answers
RESTORE_AFTER_DEAD	safety	gone
DEAD_NOT_DRAINED	safety	bar_answers
CLOSE_NOT_DRAINED	safety	bar_answers
EXPORT_UNLOCKED		safety	taken
EXPORT_AFTER_UNBIND	safety	taken
NO_REVOKED_CHECK	safety	bar_answers
UNMAP_TWICE		safety	nr_mapped
NO_RESTORE		safety	filled
RESTORE_UNASKED		safety	bar_answers
RESTORE_UNFILLED	safety	filled
WAIT_UNDER_RESV		safety	invalid end state
NO_INVALIDATE		revoke_ends	acceptance cycle
NON_REVOCABLE_ALLOWED	revoke_ends	acceptance cycle
FENCES_ADDED		revoke_ends	acceptance cycle
UNBIND_NOT_REVOKED	revoke_ends	acceptance cycle
'

# search BUG PROPERTY CFLAGS...: all states, or up to the first failure
search() {
	local bug=$1 property=$2 compile=(-DSAFETY -DNOCLAIM) run=()
	shift 2
	# shellcheck disable=SC2206 # words
	defs=(-DBUG="$bug" ${DEFS:-})
	if [ "$property" = revoke_ends ]; then
		compile=(-DNFAIR=3)
		run=(-a -f -A)
		defs+=(-DLIVENESS)
	fi
	spin "${defs[@]}" -a revoke.pml >spin.log || { cat spin.log; return; }
	"${CC:-cc}" -w "$@" -DMEMLIM=2048 "${compile[@]}" pan.c -o pan
	./pan -b -m200000 -w22 "${run[@]}"
}

n=0
result() { # OK DESCRIPTION, the log in pan.log
	n=$((n + 1))
	echo "$1 $n - $2"
	[ "$1" = ok ] || { rc=1; sed 's/^/# /' pan.log; }
}

protocol() { # PROPERTY DESCRIPTION
	local states
	search NONE "$1" -O2 -DCOLLAPSE >pan.log
	states=$(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' pan.log)
	if grep -q 'errors: 0$' pan.log && ! grep -q '^pan:1\|error:\|not completed' pan.log; then
		result ok "protocol: $2; $states states"
	else
		result 'not ok' "protocol: $2"
	fi
}

caught() { # BUG PROPERTY TEXT
	local found
	search "$1" "$2" -O0 >pan.log
	found=$(sed -n 's/^pan:1: \(.*\) (at depth.*/\1/p' pan.log)
	if [[ $found == *"$3"* ]]; then
		result ok "$1 is caught: $2, $3"
	else
		result 'not ok' "$1 is caught: $2, $3"
	fi
}

case ${1:-} in
'' | -h | --help) sed -n '/^# Usage/,/^$/s/^# \{0,1\}//p' "$0"; exit ;;
esac
command -v spin >/dev/null || { echo '1..0 # SKIP there is no spin'; exit 4; }
mkdir -p "$1"
cd "$1"
ln -sf "$model" revoke.pml

if [ $# -gt 1 ]; then
	property=$(awk -v bug="$2" '$1 == bug { print $2; exit }' <<<"$bugs")
	search "$2" "${property:-safety}" -O0 >pan.log
	grep '^pan:1' pan.log || { echo 'nothing is found'; exit; }
	exec spin "${defs[@]}" -t -p revoke.pml
fi

rc=0
echo "1..$((3 + $(grep -c . <<<"$bugs")))"
protocol safety 'no access after drain, no mapping while revoked, none left out, no deadlock'
DEFS=-DALL_AT_ONCE protocol safety 'the same with revoke, unbind and close all at once'
protocol revoke_ends 'a revoke ends'
while read -r bug property text; do
	[ -z "$bug" ] || caught "$bug" "$property" "$text"
done <<<"$bugs"
exit $rc
