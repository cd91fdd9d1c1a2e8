/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Interface of the dma-buf test importer, shared with its selftests.
 *
 * This is no user ABI: it is not installed and changes with the tests.
 *
 * Each bound PCI device has a node /dev/dma_buf_test_importerN, which sysfs
 * lists in the "misc" directory of the PCI device.  An open file owns the
 * imports that it made; closing it detaches them.
 *
 * Errors of the exporter are passed through.  The driver's own are:
 *
 *   %-EINVAL  unknown flag or bad combination, reserved field not zero, length,
 *	       delay or range out of bounds
 *   %-ENOENT  no such handle in this open file
 *   %-ENODEV  not mapped, or told to unmap
 *   %-ENXIO   the PCI device was unbound from the driver
 *   %-EINTR   a signal came while waiting for a lock
 */
#ifndef _DMA_BUF_TEST_IMPORTER_H
#define _DMA_BUF_TEST_IMPORTER_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* PCI driver to write to driver_override, and prefix of the device nodes. */
#define DMA_BUF_TEST_DRIVER		"dma-buf-test-importer"
#define DMA_BUF_TEST_NODE		"dma_buf_test_importer"

#define DMA_BUF_TEST_MAX_IMPORTS	256	/* per PCI device */
#define DMA_BUF_TEST_MAX_DELAY_MS	60000
#define DMA_BUF_TEST_MAX_DMA		4096

/* What a READ returns for bytes that the device was not given. */
#define DMA_BUF_TEST_POISON		0x5a

/**
 * enum dma_buf_test_import_flags - how to attach
 * @DMA_BUF_TEST_STATIC: dma_buf_attach(), alone and without delays
 * @DMA_BUF_TEST_NO_P2P: dynamic, allow_peer2peer not set
 * @DMA_BUF_TEST_NO_INVALIDATE: dynamic, without the invalidate_mappings op;
 *	without delays
 * @DMA_BUF_TEST_PIN: pin the buffer while it is mapped
 * @DMA_BUF_TEST_WAIT_TOLD: let the unmap delay pass in the callback
 * @DMA_BUF_TEST_WAIT_LOCKED: let it pass after the callback, with the reservation
 *	lock held
 */
enum dma_buf_test_import_flags {
	DMA_BUF_TEST_STATIC		= 1 << 0,
	DMA_BUF_TEST_NO_P2P		= 1 << 1,
	DMA_BUF_TEST_NO_INVALIDATE	= 1 << 2,
	DMA_BUF_TEST_PIN		= 1 << 3,
	DMA_BUF_TEST_WAIT_TOLD		= 1 << 4,
	DMA_BUF_TEST_WAIT_LOCKED	= 1 << 5,
};

/**
 * struct dma_buf_test_import - attach the device to a dma-buf
 * @fd: in: dma-buf
 * @flags: in: enum dma_buf_test_import_flags
 * @fence_delay_ms: in: if not 0, a fence stands for work of the device that
 *	is in flight while the buffer is mapped. It is in the buffer's
 *	reservation object, usage BOOKKEEP, from map on, and signals this long
 *	after the first invalidate or the first wait for it, or at once when
 *	userspace unmaps or detaches.
 * @unmap_delay_ms: in: unmap this long after invalidate; 0 is before the
 *	callback returns
 * @handle: out: names the import in this open file
 * @reserved: in: must be 0
 * @size: out: size of the dma-buf
 *
 * The two delays are independent, so that a test can tell which of the two
 * waits an exporter leaves out. Neither is longer than
 * %DMA_BUF_TEST_MAX_DELAY_MS. The unmap needs the reservation lock, so it also
 * waits for an exporter that holds this lock until the fence has signalled.
 *
 * %-ENOSPC: the device has %DMA_BUF_TEST_MAX_IMPORTS imports.
 */
struct dma_buf_test_import {
	__s32 fd;
	__u32 flags;
	__u32 fence_delay_ms;
	__u32 unmap_delay_ms;
	__u32 handle;
	__u32 reserved;
	__aligned_u64 size;
};

/**
 * struct dma_buf_test_handle - argument of unmap and detach
 * @handle: in: the import
 * @reserved: in: must be 0
 *
 * Unmap is %-ENODEV if nothing is mapped. It needs not wait for the unmap
 * delay: it ends a pending one.
 */
struct dma_buf_test_handle {
	__u32 handle;
	__u32 reserved;
};

/**
 * enum dma_buf_test_map_flags - kinds of DMA addresses that map returned
 * @DMA_BUF_TEST_MAP_BUS_ADDRESS: at least one is a PCI bus address
 */
enum dma_buf_test_map_flags {
	DMA_BUF_TEST_MAP_BUS_ADDRESS	= 1 << 0,
};

/**
 * struct dma_buf_test_map - map for the device, both directions
 * @handle: in: the import
 * @flags: out: enum dma_buf_test_map_flags
 * @nents: out: DMA entries of the scatterlist
 * @reserved: in: must be 0
 * @length: out: sum of their lengths
 * @dma_addr: out: address of the first
 *
 * Also maps again after an invalidate. %-EALREADY: is mapped. %-EBUSY: was
 * told to unmap, and the unmap or the fence is still due. %-ETIMEDOUT: the
 * buffer's own fences (usage KERNEL) did not signal in 10 s.
 */
struct dma_buf_test_map {
	__u32 handle;
	__u32 flags;
	__u32 nents;
	__u32 reserved;
	__aligned_u64 length;
	__aligned_u64 dma_addr;
};

/**
 * enum dma_buf_test_dma_flags - kind of DMA
 * @DMA_BUF_TEST_DMA_WRITE: to the dma-buf; without it, from the dma-buf
 * @DMA_BUF_TEST_DMA_STALE: use the addresses of the latest map, whether they
 *	are still mapped or not. Only to prove that the IOMMU, or the exporter's
 *	wait, protects the memory: a real importer must never do it.
 */
enum dma_buf_test_dma_flags {
	DMA_BUF_TEST_DMA_WRITE		= 1 << 0,
	DMA_BUF_TEST_DMA_STALE		= 1 << 1,
};

/**
 * struct dma_buf_test_dma - let the device read or write the dma-buf
 * @handle: in: the import
 * @flags: in: enum dma_buf_test_dma_flags
 * @offset: in: in the dma-buf
 * @data: in: user pointer to @length bytes, source or destination
 * @length: in: 1 to %DMA_BUF_TEST_MAX_DMA
 * @reserved: in: must be 0
 *
 * Returns when the device is done; QEMU's edu takes 100 ms for each step, and
 * 2 KiB are two steps to write, three to read. An invalidate waits meanwhile,
 * except for %DMA_BUF_TEST_DMA_STALE. The device does not report DMA that was
 * blocked: look at the data.
 *
 * %-EINVAL: outside the mapping. %-ERANGE: an address that the device cannot
 * reach. %-ETIMEDOUT: the device hangs; its DMA is turned off, and every later
 * request is %-EIO. With %DMA_BUF_TEST_DMA_STALE %-ENODEV: never mapped.
 */
struct dma_buf_test_dma {
	__u32 handle;
	__u32 flags;
	__aligned_u64 offset;
	__aligned_u64 data;
	__u32 length;
	__u32 reserved;
};

/**
 * enum dma_buf_test_status_flags - state of an import
 * @DMA_BUF_TEST_MAPPED: not unmapped yet
 * @DMA_BUF_TEST_PINNED: pinned by this import
 * @DMA_BUF_TEST_INVALIDATED: mapped, but the delayed unmap is due
 * @DMA_BUF_TEST_REVOCABLE: dma_buf_attach_revocable() says so
 */
enum dma_buf_test_status_flags {
	DMA_BUF_TEST_MAPPED		= 1 << 0,
	DMA_BUF_TEST_PINNED		= 1 << 1,
	DMA_BUF_TEST_INVALIDATED	= 1 << 2,
	DMA_BUF_TEST_REVOCABLE		= 1 << 3,
};

/**
 * struct dma_buf_test_status - state of an import
 * @handle: in: the import
 * @flags: out: enum dma_buf_test_status_flags
 * @invalidates: out: calls of the invalidate_mappings op
 * @maps: out: successful maps
 *
 * Takes no lock that a revoke holds, to be asked while one is under way. So
 * the counts may be newer than @flags.
 */
struct dma_buf_test_status {
	__u32 handle;
	__u32 flags;
	__u32 invalidates;
	__u32 maps;
};

#define DMA_BUF_TEST_MAGIC	0xdb

#define DMA_BUF_TEST_IOC_IMPORT	_IOWR(DMA_BUF_TEST_MAGIC, 0, struct dma_buf_test_import)
#define DMA_BUF_TEST_IOC_DETACH	_IOW(DMA_BUF_TEST_MAGIC, 1, struct dma_buf_test_handle)
#define DMA_BUF_TEST_IOC_MAP	_IOWR(DMA_BUF_TEST_MAGIC, 2, struct dma_buf_test_map)
#define DMA_BUF_TEST_IOC_UNMAP	_IOW(DMA_BUF_TEST_MAGIC, 3, struct dma_buf_test_handle)
#define DMA_BUF_TEST_IOC_DMA	_IOW(DMA_BUF_TEST_MAGIC, 4, struct dma_buf_test_dma)
#define DMA_BUF_TEST_IOC_STATUS	_IOWR(DMA_BUF_TEST_MAGIC, 5, struct dma_buf_test_status)

#endif /* _DMA_BUF_TEST_IMPORTER_H */
