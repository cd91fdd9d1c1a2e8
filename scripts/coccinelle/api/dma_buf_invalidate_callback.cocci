// SPDX-License-Identifier: GPL-2.0-only
///
/// An importer that has &dma_buf_attach_ops.invalidate_mappings promises to unmap
/// in bounded time after it was called. A callback that only warns breaks that
/// promise: the exporter waits for ever. An importer that cannot give its
/// mappings up leaves the callback out.
///
// Confidence: High
// Keywords: dma_buf_attach_ops, invalidate_mappings
// Comments: Any call but those that print, assert or convert a pointer may
// lead to an unmap, at once or from a work item.
// Options: --no-includes --include-headers

virtual context
virtual org
virtual report

@importer@
identifier ops, callback;
@@

struct dma_buf_attach_ops ops = {
	.invalidate_mappings = callback,
};

@acts@
identifier importer.callback;
identifier f !~ "(^|_)(printk|dbg|debug|info|notice|warn|err|error|WARN|BUG|DEBUG|ERROR)(_once|_ratelimited|_ON|_ONCE|_ON_ONCE)?$|assert|^(might|trace|to)_|_to_|^container_of$|^(un)?likely$|^(READ|WRITE)_ONCE$";
identifier method;
expression object;
position p;
@@

callback@p(...)
{
<+...
\( f(...) \| object->method(...) \| object.method(...) \)
...+>
}

@idle depends on context || org || report@
identifier importer.callback;
position p != acts.p;
@@

* callback@p(...) { ... }

@script:python depends on org@
p << idle.p;
callback << importer.callback;
@@

coccilib.org.print_todo(p[0], "WARNING: %s neither unmaps nor has anybody do so" % callback)

@script:python depends on report@
p << idle.p;
callback << importer.callback;
@@

coccilib.report.print_report(p[0], "WARNING: %s neither unmaps nor has anybody do so" % callback)
