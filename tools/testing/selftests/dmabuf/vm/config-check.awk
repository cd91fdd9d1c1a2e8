#!/usr/bin/awk -f
# SPDX-License-Identifier: GPL-2.0-only
#
# config-check.awk FRAGMENT... .config
#
# Kconfig drops what it cannot have without a word. Compare each wish with what
# the last file, the final configuration, really says; a later fragment
# overrides an earlier one.

function value(line)
{
	if (line ~ /^# CONFIG_[A-Za-z0-9_]+ is not set$/)
		return "n"
	sub(/^[^=]*=/, "", line)
	return line
}

function name(line)
{
	sub(/^# /, "", line)
	sub(/[= ].*/, "", line)
	return line
}

/^CONFIG_[A-Za-z0-9_]+=/ || /^# CONFIG_[A-Za-z0-9_]+ is not set$/ {
	if (FILENAME == ARGV[ARGC - 1])
		have[name($0)] = value($0)
	else
		want[name($0)] = value($0)
}

END {
	for (option in want) {
		is = (option in have) ? have[option] : "n"
		if (is == want[option])
			continue
		printf "%s is wanted %s but the kernel would have it %s: a dependency is missing or the option does not exist.\n",
			option, want[option], is
		bad = 1
	}
	exit bad
}
