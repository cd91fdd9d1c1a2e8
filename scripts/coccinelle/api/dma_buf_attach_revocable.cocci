// SPDX-License-Identifier: GPL-2.0-only
///
/// An exporter that waits for importers to unmap, since its memory goes away, has
/// to refuse those that cannot give their mappings up: its attach callback asks
/// dma_buf_attach_revocable(). Otherwise it waits until userspace lets go.
///
// Confidence: Moderate
// Keywords: dma_buf_ops, dma_buf_attach_revocable
// Comments: An exporter is taken for one whose memory goes away, and does not
// just move, if it calls dma_buf_invalidate_mappings() and its unmap callback
// wakes somebody up or its map callback returns -ENODEV.
// Options: --no-includes --include-headers

virtual context
virtual org
virtual report

@invalidates@
@@

dma_buf_invalidate_mappings(...)

@asks@
@@

dma_buf_attach_revocable(...)

@exporter depends on invalidates && !asks@
identifier ops, map, unmap;
position p;
@@

struct dma_buf_ops ops@p = {
	.map_dma_buf = map,
	.unmap_dma_buf = unmap,
};

@waits@
identifier exporter.unmap;
identifier wake =~ "^(wake_up|complete)";
@@

unmap(...) { <+... wake(...) ...+> }

@refuses@
identifier exporter.map;
@@

map(...) { <+... -ENODEV ...+> }

@r depends on (context || org || report) && (waits || refuses)@
identifier exporter.ops;
position exporter.p;
@@

* struct dma_buf_ops ops@p = { ... };

@script:python depends on org && r@
p << exporter.p;
ops << exporter.ops;
@@

coccilib.org.print_todo(p[0], "WARNING: %s lets importers attach that cannot give their mappings up" % ops)

@script:python depends on report && r@
p << exporter.p;
ops << exporter.ops;
@@

coccilib.report.print_report(p[0], "WARNING: %s lets importers attach that cannot give their mappings up" % ops)
