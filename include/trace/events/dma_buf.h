/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM dma_buf

#if !defined(_TRACE_DMA_BUF_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_DMA_BUF_H

#include <linux/dma-buf.h>
#include <linux/tracepoint.h>

TRACE_EVENT(dma_buf_export,

	TP_PROTO(struct dma_buf *dmabuf),

	TP_ARGS(dmabuf),

	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__field(size_t, size)
		__string(exp_name, dmabuf->exp_name)
	),

	TP_fast_assign(
		__entry->ino = file_inode(dmabuf->file)->i_ino;
		__entry->size = dmabuf->size;
		__assign_str(exp_name);
	),

	TP_printk("ino=%lu size=%zu exp_name=%s", __entry->ino, __entry->size,
		  __get_str(exp_name))
);

/* What an importer asked for, with the errno if the exporter refused it */
DECLARE_EVENT_CLASS(dma_buf_request,

	TP_PROTO(struct dma_buf_attachment *attach, int ret),

	TP_ARGS(attach, ret),

	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__field(size_t, size)
		__string(exp_name, attach->dmabuf->exp_name)
		__string(dev, dev_name(attach->dev))
		__string(driver, dev_driver_string(attach->dev))
		__field(bool, dynamic)
		__field(bool, peer2peer)
		__field(bool, revocable)
		__field(int, ret)
	),

	TP_fast_assign(
		__entry->ino = file_inode(attach->dmabuf->file)->i_ino;
		__entry->size = attach->dmabuf->size;
		__assign_str(exp_name);
		__assign_str(dev);
		__assign_str(driver);
		__entry->dynamic = dma_buf_attachment_is_dynamic(attach);
		__entry->peer2peer = attach->peer2peer;
		__entry->revocable = dma_buf_attach_revocable(attach);
		__entry->ret = ret;
	),

	TP_printk("ino=%lu size=%zu exp_name=%s dev=%s driver=%s dynamic=%d peer2peer=%d revocable=%d ret=%d",
		  __entry->ino, __entry->size, __get_str(exp_name),
		  __get_str(dev), __get_str(driver), __entry->dynamic,
		  __entry->peer2peer, __entry->revocable, __entry->ret)
);

DEFINE_EVENT(dma_buf_request, dma_buf_attach,
	TP_PROTO(struct dma_buf_attachment *attach, int ret),
	TP_ARGS(attach, ret)
);

DEFINE_EVENT(dma_buf_request, dma_buf_pin,
	TP_PROTO(struct dma_buf_attachment *attach, int ret),
	TP_ARGS(attach, ret)
);

DEFINE_EVENT(dma_buf_request, dma_buf_map,
	TP_PROTO(struct dma_buf_attachment *attach, int ret),
	TP_ARGS(attach, ret)
);

/*
 * What an importer has: before it is told, and without what it is letting go of. A
 * dma_buf_unmap comes before the exporter has undone the mapping, the others after.
 */
DECLARE_EVENT_CLASS(dma_buf_attachment,

	TP_PROTO(struct dma_buf_attachment *attach),

	TP_ARGS(attach),

	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__string(dev, dev_name(attach->dev))
		__string(driver, dev_driver_string(attach->dev))
		__field(unsigned int, pinned)
		__field(unsigned int, mapped)
	),

	TP_fast_assign(
		__entry->ino = file_inode(attach->dmabuf->file)->i_ino;
		__assign_str(dev);
		__assign_str(driver);
		__entry->pinned = attach->nr_pinned;
		__entry->mapped = attach->nr_mapped;
	),

	TP_printk("ino=%lu dev=%s driver=%s pinned=%u mapped=%u",
		  __entry->ino, __get_str(dev), __get_str(driver),
		  __entry->pinned, __entry->mapped)
);

DEFINE_EVENT(dma_buf_attachment, dma_buf_unmap,
	TP_PROTO(struct dma_buf_attachment *attach),
	TP_ARGS(attach)
);

DEFINE_EVENT(dma_buf_attachment, dma_buf_unpin,
	TP_PROTO(struct dma_buf_attachment *attach),
	TP_ARGS(attach)
);

DEFINE_EVENT(dma_buf_attachment, dma_buf_detach,
	TP_PROTO(struct dma_buf_attachment *attach),
	TP_ARGS(attach)
);

DEFINE_EVENT(dma_buf_attachment, dma_buf_invalidate,
	TP_PROTO(struct dma_buf_attachment *attach),
	TP_ARGS(attach)
);

/* It has been told, which took so long */
TRACE_EVENT(dma_buf_invalidated,

	TP_PROTO(struct dma_buf_attachment *attach, u64 ns),

	TP_ARGS(attach, ns),

	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__string(dev, dev_name(attach->dev))
		__string(driver, dev_driver_string(attach->dev))
		__field(unsigned int, pinned)
		__field(unsigned int, mapped)
		__field(u64, ns)
	),

	TP_fast_assign(
		__entry->ino = file_inode(attach->dmabuf->file)->i_ino;
		__assign_str(dev);
		__assign_str(driver);
		__entry->pinned = attach->nr_pinned;
		__entry->mapped = attach->nr_mapped;
		__entry->ns = ns;
	),

	TP_printk("ino=%lu dev=%s driver=%s pinned=%u mapped=%u ns=%llu",
		  __entry->ino, __get_str(dev), __get_str(driver),
		  __entry->pinned, __entry->mapped, __entry->ns)
);

#endif /* _TRACE_DMA_BUF_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
