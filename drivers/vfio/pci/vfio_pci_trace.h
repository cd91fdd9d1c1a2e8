/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM vfio_pci

#if !defined(_VFIO_PCI_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _VFIO_PCI_TRACE_H

#include <linux/dma-fence.h>
#include <linux/pci.h>
#include <linux/tracepoint.h>

TRACE_EVENT(vfio_pci_dma_buf_export,

	TP_PROTO(struct pci_dev *pdev, unsigned long ino, unsigned int bar,
		 size_t size, unsigned int nr_ranges),

	TP_ARGS(pdev, ino, bar, size, nr_ranges),

	TP_STRUCT__entry(
		__string(dev, pci_name(pdev))
		__field(unsigned long, ino)
		__field(unsigned int, bar)
		__field(size_t, size)
		__field(unsigned int, nr_ranges)
	),

	TP_fast_assign(
		__assign_str(dev);
		__entry->ino = ino;
		__entry->bar = bar;
		__entry->size = size;
		__entry->nr_ranges = nr_ranges;
	),

	TP_printk("dev=%s ino=%lu bar=%u size=%zu nr_ranges=%u", __get_str(dev),
		  __entry->ino, __entry->bar, __entry->size, __entry->nr_ranges)
);

/*
 * A new state, of which the importers have been told, but for revoked to dead, of which
 * there is nothing to tell; mapped: yet to be unmapped
 */
TRACE_EVENT(vfio_pci_dma_buf_state,

	TP_PROTO(struct pci_dev *pdev, unsigned long ino, size_t size,
		 const char *state, unsigned int mapped),

	TP_ARGS(pdev, ino, size, state, mapped),

	TP_STRUCT__entry(
		__string(dev, pci_name(pdev))
		__field(unsigned long, ino)
		__field(size_t, size)
		__string(state, state)
		__field(unsigned int, mapped)
	),

	TP_fast_assign(
		__assign_str(dev);
		__entry->ino = ino;
		__entry->size = size;
		__assign_str(state);
		__entry->mapped = mapped;
	),

	TP_printk("dev=%s ino=%lu size=%zu state=%s mapped=%u", __get_str(dev),
		  __entry->ino, __entry->size, __get_str(state),
		  __entry->mapped)
);

/* The names that a fence has had can be gone: join with dma_fence_init */
TRACE_EVENT(vfio_pci_dma_buf_fence_wait,

	TP_PROTO(struct pci_dev *pdev, unsigned long ino,
		 struct dma_fence *fence, u64 ns),

	TP_ARGS(pdev, ino, fence, ns),

	TP_STRUCT__entry(
		__string(dev, pci_name(pdev))
		__field(unsigned long, ino)
		__field(u64, context)
		__field(u64, seqno)
		__field(u64, ns)
	),

	TP_fast_assign(
		__assign_str(dev);
		__entry->ino = ino;
		__entry->context = fence->context;
		__entry->seqno = fence->seqno;
		__entry->ns = ns;
	),

	TP_printk("dev=%s ino=%lu context=%llu seqno=%llu ns=%llu",
		  __get_str(dev), __entry->ino, __entry->context,
		  __entry->seqno, __entry->ns)
);

/* mapped: when the wait began */
TRACE_EVENT(vfio_pci_dma_buf_unmap_wait,

	TP_PROTO(struct pci_dev *pdev, unsigned long ino, unsigned int mapped,
		 u64 ns),

	TP_ARGS(pdev, ino, mapped, ns),

	TP_STRUCT__entry(
		__string(dev, pci_name(pdev))
		__field(unsigned long, ino)
		__field(unsigned int, mapped)
		__field(u64, ns)
	),

	TP_fast_assign(
		__assign_str(dev);
		__entry->ino = ino;
		__entry->mapped = mapped;
		__entry->ns = ns;
	),

	TP_printk("dev=%s ino=%lu mapped=%u ns=%llu", __get_str(dev),
		  __entry->ino, __entry->mapped, __entry->ns)
);

/* Nobody accesses any of the buffers, which took so long to wait for */
TRACE_EVENT(vfio_pci_dma_bufs_drained,

	TP_PROTO(struct pci_dev *pdev, unsigned int nr_buffers, u64 size,
		 u64 ns),

	TP_ARGS(pdev, nr_buffers, size, ns),

	TP_STRUCT__entry(
		__string(dev, pci_name(pdev))
		__field(unsigned int, nr_buffers)
		__field(u64, size)
		__field(u64, ns)
	),

	TP_fast_assign(
		__assign_str(dev);
		__entry->nr_buffers = nr_buffers;
		__entry->size = size;
		__entry->ns = ns;
	),

	TP_printk("dev=%s nr_buffers=%u size=%llu ns=%llu", __get_str(dev),
		  __entry->nr_buffers, __entry->size, __entry->ns)
);

#endif /* _VFIO_PCI_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH ../../drivers/vfio/pci
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE vfio_pci_trace

/* This part must be outside protection */
#include <trace/define_trace.h>
