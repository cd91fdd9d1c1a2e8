#!/usr/bin/awk -f
# SPDX-License-Identifier: GPL-2.0-only
#
# report.awk -v qemu=STATUS [-v functions=FILE] verdict.log console.log
#
# Pass (0) needs every proof: the plan, as many results as it promises, none of
# them bad, one at least that passed, all four leak checks, the final line, a
# clean console and a QEMU that ended by itself. Anything else is 1.
#
# With a list of functions the kernel has KCSAN, which must have shown that it works.
# A data race is a failure if one of the functions is close to one of its two ends.

function bad(text)
{
	failed = 1
	print "FAIL: " text
}

BEGIN {
	plan = -1
	while (functions && (getline name <functions) > 0)
		if (name ~ /^[A-Za-z_][A-Za-z_0-9]*$/)
			ours[name] = ++nr_ours
	# Announcements that look like complaints
	good = "DMA-API: (preallocated|debugging (enabled|disabled) by)" \
		"|RCU lockdep checking is enabled|lockdep_hardirqs_on" \
		"|kmemleak: Cannot allocate a scan area, scanning the full object"
	complaint = "BUG:|BUG |WARNING:|KASAN|UBSAN|Oops|Kernel panic" \
		"|general protection fault|unable to handle" \
		"|possible (circular|recursive|irq) lock|inconsistent lock" \
		"|lockdep|held lock freed|suspicious RCU|lock held when" \
		"|sleeping function|scheduling while atomic" \
		"|DMA-API:|refcount_t|list_(add|del) corruption" \
		"|INFO: task|hung task|blocked for more than|rcu: INFO" \
		"|kmemleak: [0-9]+ new|kmemleak: (Cannot|Kernel.*disabled)" \
		"|Bad page|Out of memory|[^ ] leaked|^not ok|\\] +not ok"
}

{ sub(/\r$/, "") }

FILENAME == ARGV[1] {
	if ($1 == "plan") {
		plan = $2
	} else if ($1 == "test") {
		results++
		count[$3]++
		pass += $5
		fail += $7
		skip += $9
		if ($3 == "PASS")
			passed = 1
		if ($3 != "PASS" && $3 != "SKIP")
			bad($0)
	} else if ($1 == "leak") {
		checks++
		if ($3 != "0")
			bad("after all tests: " $2 " " $3)
	} else if ($1 == "module") {
		bad("after all tests: " $0)
	} else if ($1 == "end") {
		end = 1
	} else {
		bad("verdict: " $0)
	}
	next
}

{ lines++ }

functions && /kcsan: enabled early/ { kcsan_on = 1 }
functions && /kcsan: selftest: [0-9]+\/[0-9]+ tests passed/ { kcsan_tested = 1 }

functions && /BUG: KCSAN: / {
	race = $0
	races++
	next
}

# An access is a heading and its stack, the innermost three functions of which count
race && /(read|write)( \(.*\))? to 0x|race at unknown origin/ { depth = 0 }
race && /Reported by Kernel Concurrency Sanitizer/ { race = "" }
race && match($0, /[A-Za-z_][A-Za-z_0-9.]*\+0x[0-9a-f]+\/0x/) {
	name = substr($0, RSTART, RLENGTH)
	sub(/[.+].*/, "", name)
	if (++depth <= 3 && name in ours) {
		complaints++
		bad("console: " race)
		race = ""
	}
}

$0 ~ complaint && $0 !~ good {
	if (++complaints <= 10)
		bad("console: " $0)
}

END {
	if (qemu == 124)
		bad("the machine ran into the outer timeout")
	else if (qemu != 0)
		bad("QEMU ended with status " qemu)
	if (plan < 0)
		bad("no plan, the machine did not get as far as the tests")
	else if (results != plan)
		bad("results of " results + 0 " of " plan " programs")
	if (!end)
		bad("no final line")
	if (checks != 4)
		bad(checks + 0 " of 4 leak checks")
	if (!passed)
		bad("nothing passed")
	if (!lines)
		bad("no console")
	if (functions && !(kcsan_on && kcsan_tested))
		bad("KCSAN is off or does not work")
	if (functions && !nr_ours)
		bad("no list of functions for KCSAN")
	if (races)
		print races " data races, ours or not"
	printf "%s: programs: %d pass, %d fail, %d skip; cases: %d pass, %d fail, %d skip; console: %d complaints\n",
		failed ? "FAIL" : "PASS", count["PASS"], count["FAIL"],
		count["SKIP"], pass, fail, skip, complaints
	exit failed
}
