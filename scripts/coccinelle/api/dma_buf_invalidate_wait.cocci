// SPDX-License-Identifier: GPL-2.0-only
///
/// dma_buf_invalidate_mappings() tells importers to let go of the memory and
/// does not wait until they have. Before an exporter moves the memory it waits
/// for the fences of the buffer, DMA_RESV_USAGE_BOOKKEEP included. Before the
/// memory goes away it waits for unmaps as well. See "Taking mappings back" in
/// Documentation/driver-api/dma-buf.rst.
///
// Confidence: Moderate
// Keywords: dma_buf_invalidate_mappings, dma_resv_wait_timeout
// Comments: An exporter that asks dma_buf_attach_revocable() is taken for one
// whose memory goes away. A wait in another file is not seen, except that TTM
// is known to wait for the fences of what it moves.
// Options: --no-includes --include-headers

virtual context
virtual org
virtual report

@ttm_move exists@
struct ttm_resource *resource;
position p;
@@

resource
... when any
dma_buf_invalidate_mappings@p(...)

@waits_for_fences@
identifier wait =~ "^dma_resv_(wait_timeout|test_signaled|get_fences|get_singleton)$";
@@

wait(..., DMA_RESV_USAGE_BOOKKEEP, ...)

@waits_for_unmaps@
identifier wait =~ "^wait_(event|for_completion|var_event|on_bit)";
@@

wait(...)

@revokes@
@@

dma_buf_attach_revocable(...)

@no_fences depends on (context || org || report) && !waits_for_fences@
position p != ttm_move.p;
@@

* dma_buf_invalidate_mappings@p(...)

@no_unmaps depends on (context || org || report) && revokes && !waits_for_unmaps@
position p;
@@

* dma_buf_invalidate_mappings@p(...)

@script:python depends on org@
p << no_fences.p;
@@

coccilib.org.print_todo(p[0], "WARNING: nobody waits for the DMA_RESV_USAGE_BOOKKEEP fences after this")

@script:python depends on org@
p << no_unmaps.p;
@@

coccilib.org.print_todo(p[0], "WARNING: nobody waits for importers to unmap after this")

@script:python depends on report@
p << no_fences.p;
@@

coccilib.report.print_report(p[0], "WARNING: nobody waits for the DMA_RESV_USAGE_BOOKKEEP fences after this")

@script:python depends on report@
p << no_unmaps.p;
@@

coccilib.report.print_report(p[0], "WARNING: nobody waits for importers to unmap after this")
