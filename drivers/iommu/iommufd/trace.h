/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM iommufd

#if !defined(_IOMMUFD_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _IOMMUFD_TRACE_H

#include <linux/dma-buf.h>
#include <linux/tracepoint.h>

/*
 * What one IOMMU_IOAS_MAP_FILE has mapped of a dma-buf was unmapped, with its copies;
 * unmapped: in all domains together
 */
TRACE_EVENT(iommufd_dmabuf_revoked,

	TP_PROTO(struct dma_buf *dmabuf, unsigned long start,
		 unsigned long length, u64 unmapped, u64 ns),

	TP_ARGS(dmabuf, start, length, unmapped, ns),

	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__field(unsigned long, start)
		__field(unsigned long, length)
		__field(u64, unmapped)
		__field(u64, ns)
	),

	TP_fast_assign(
		__entry->ino = file_inode(dmabuf->file)->i_ino;
		__entry->start = start;
		__entry->length = length;
		__entry->unmapped = unmapped;
		__entry->ns = ns;
	),

	TP_printk("ino=%lu start=0x%lx length=0x%lx unmapped=0x%llx ns=%llu",
		  __entry->ino, __entry->start, __entry->length,
		  __entry->unmapped, __entry->ns)
);

/*
 * What one IOMMU_IOAS_MAP_FILE has mapped of a dma-buf whose memory is back was mapped
 * again, with its copies, or nothing of it: ret is -ENOMEM, or -ECANCELED if the memory
 * was going away again meanwhile. Any other errno is of a domain that was left out.
 */
TRACE_EVENT(iommufd_dmabuf_restored,

	TP_PROTO(struct dma_buf *dmabuf, unsigned long start,
		 unsigned long length, int ret, u64 ns),

	TP_ARGS(dmabuf, start, length, ret, ns),

	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__field(unsigned long, start)
		__field(unsigned long, length)
		__field(int, ret)
		__field(u64, ns)
	),

	TP_fast_assign(
		__entry->ino = file_inode(dmabuf->file)->i_ino;
		__entry->start = start;
		__entry->length = length;
		__entry->ret = ret;
		__entry->ns = ns;
	),

	TP_printk("ino=%lu start=0x%lx length=0x%lx ret=%d ns=%llu",
		  __entry->ino, __entry->start, __entry->length, __entry->ret,
		  __entry->ns)
);

#endif /* _IOMMUFD_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH ../../drivers/iommu/iommufd
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace

/* This part must be outside protection */
#include <trace/define_trace.h>
