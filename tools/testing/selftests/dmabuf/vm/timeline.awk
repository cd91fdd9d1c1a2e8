#!/usr/bin/awk -f
# SPDX-License-Identifier: GPL-2.0-only
#
# timeline.awk TRACE: the trace of a revoke as a gnuplot script that draws it, one
# lane an importer. TRACE has the events of dma_buf, vfio_pci and dma_fence.

function field(name,    i)
{
	for (i = 1; i <= NF; i++)
		if (index($i, name "=") == 1)
			return substr($i, length(name) + 2)
}

function bar(lane, from, to, color)
{
	if (from == "" || to == "" || to < from)
		return
	drawn[color]++
	bars = bars sprintf("%d %.3f %.3f %d\n", lane, (from - begin) * 1e3,
			    (to - begin) * 1e3, color)
}

# Time stamp and name of the event
{
	if (!match($0, / [0-9]+\.[0-9]+: [a-z_]+: /))
		next
	split(substr($0, RSTART, RLENGTH), part, ": ")
	at = part[1] + 0
	event = part[2]
	ino = field("ino")
	key = ino " " field("dev")
}

# Later ones are those of the restore
event == "dma_buf_invalidate" && end == "" {
	if (begin == "")
		begin = at
	if (!(key in told)) {
		keys[++nr_keys] = key
		driver[key] = field("driver")
		told[key] = at
	}
}

event == "dma_buf_invalidated" && !(key in knows) { knows[key] = at; last = ino }
# The exporter makes the fences of a buffer signal when it has told all importers of it
event == "dma_fence_enable_signal" && last != "" && end == "" { fence[last] = field("context") }
event == "dma_buf_unmap" && !(key in unmapped) { unmapped[key] = at }
event == "dma_fence_signaled" {
	signaled[field("context")] = at
	signaler[field("context")] = field("driver")
}
event == "vfio_pci_dma_bufs_drained" && end == "" { end = at; owner = field("dev") }

END {
	if (begin == "" || end == "") {
		print "no revoke in the trace" >"/dev/stderr"
		exit 1
	}
	for (i = 1; i <= nr_keys; i++) {
		key = keys[i]
		split(key, part, " ")
		labels = labels sprintf("%s\"%s %s, dma-buf %s\" %d", i > 1 ? ", " : "",
					driver[key], part[2], part[1], i)
		if (signaler[fence[part[1]]] == driver[key])
			bar(i, told[key], signaled[fence[part[1]]], 1)
		bar(i, told[key], knows[key], 2)
		bar(i, told[key], unmapped[key], 3)
	}
	labels = labels sprintf(", \"vfio-pci %s\" %d", owner, nr_keys + 1)
	bar(nr_keys + 1, begin, end, 4)
	if (!drawn[1] || !drawn[3]) {
		print "no fence or no unmap in the trace of the revoke" >"/dev/stderr"
		exit 1
	}

	print "set terminal svg size 900," 200 + 50 * nr_keys " background 'white'"
	print "set title 'A revoke tells everybody, then waits for everybody'"
	print "set xlabel 'ms since the first importer was told'"
	print "set ytics (" labels ")"
	print "set yrange [" nr_keys + 1.6 ":0.4]"
	print "set xrange [0:*]"
	print "set grid x"
	print "set key at screen 0.02, screen 0.02 left bottom Left reverse vertical"
	print "set bmargin 5"
	print "set style fill solid 0.8 noborder"
	print "$bars << EOD"
	printf "%s", bars
	print "EOD"
	lane = "using 2:($4 == %d ? $1 : NaN):2:3:($1 + %s):($1 + %s) with boxxyerror"
	printf "plot $bars " lane " lc rgb '#7f3b08' title 'until its fence signals', ", 1, "-0.35", "-0.05"
	printf "'' " lane " lc rgb '#2d7dd2' title 'until it unmaps', ", 3, "0.0", "0.35"
	printf "'' " lane " lc rgb '#222222' title 'while it is told', ", 2, "-0.05", "0.0"
	printf "'' " lane " lc rgb '#97cc04' title 'the revoke'\n", 4, "-0.3", "0.3"
}
