// SPDX-License-Identifier: GPL-2.0-only
/*
 * Importers other than iommufd: a kernel driver that attaches, maps, and does
 * DMA by the addresses that it was given. The test importer can be told to be
 * of a kind that has to be refused, and to take its time when told to let go.
 */
#include "importer.h"

#define DRAIN_MS	600
#define LONG_DRAIN_MS	5000
/* For timers that are coarse, in a machine that is slow */
#define SLACK_MS	20
#define BOUND_MS	60000
#define TWO_PAGES	(2 * SZ_4K)

/* A register of BAR 0 that a reset clears, as an index of 32 bits */
#define IVSHMEM_INTR_MASK	0

FIXTURE(importer)
{
	struct lab lab;
	int fd;
	int dmabuf;
	__u8 pattern[XFER];
};

FIXTURE_SETUP(importer)
{
	lab_open_exporter(_metadata, &self->lab, LAB_NEED_NOTHING);
	self->fd = importer_open_second();
	REQUIRE(self->fd >= 0, "no test importer");
	self->dmabuf = test_export(0, self->lab.bar_size);
	pattern_fill(self->pattern, 1);
}

FIXTURE_TEARDOWN(importer)
{
	lab_close(_metadata, &self->lab);
}

#define test_import(_flags)						\
({									\
	long __handle = import(self->fd, self->dmabuf, _flags);		\
									\
	ASSERT_LE(0, __handle);						\
	(__u32)__handle;						\
})
#define test_import_slow(_fence_ms, _unmap_ms)				\
({									\
	long __handle = import_slow(self->fd, self->dmabuf, GOOD, _fence_ms, _unmap_ms);	\
									\
	ASSERT_LE(0, __handle);						\
	(__u32)__handle;						\
})
/* One that is let in against all rules must not be waited for */
#define test_err_import(_errno, _flags)						\
do {										\
	long __handle = import(self->fd, self->dmabuf, _flags);			\
										\
	EXPECT_EQ(-(_errno), __handle);						\
	if (__handle >= 0)							\
		detach(self->fd, __handle);					\
} while (0)
#define test_err_map(_errno, _handle)	EXPECT_EQ(-(_errno), map(self->fd, _handle, NULL))
#define test_decode(_on)		ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, _on))
#define is_mapped(_handle)		(status(self->fd, _handle) & DMA_BUF_TEST_MAPPED)

/* The device writes there, and the CPU sees it there and nowhere else */
#define test_use(_handle, _offset)						\
do {										\
	ASSERT_EQ(0, dma(self->fd, _handle, DMA_BUF_TEST_DMA_WRITE, _offset,	\
			 self->pattern));					\
	expect_landed(_offset, 1);						\
} while (0)

/* A device that goes on using its addresses changes nothing */
#define test_stale(_handle)							\
do {										\
	ASSERT_EQ(0, dma(self->fd, _handle, DMA_BUF_TEST_DMA_WRITE |		\
			 DMA_BUF_TEST_DMA_STALE, 0, self->pattern));		\
	expect_nothing_landed();						\
} while (0)

static __u64 since_ms(__u64 start)
{
	return (now_us() - start) / 1000;
}

/* It waited for what was in flight, and not for ever */
#define expect_drained_in(_start, _ms)						\
do {										\
	__u64 __took = since_ms(_start);					\
										\
	EXPECT_LE((_ms) - SLACK_MS, __took);					\
	EXPECT_GT(BOUND_MS, __took);						\
} while (0)

TEST_F_TIMEOUT(importer, writes, LAB_TIMEOUT)
{
	__u32 handle = test_import(GOOD);
	struct dma_buf_test_map got;

	EXPECT_TRUE(status(self->fd, handle) & DMA_BUF_TEST_REVOCABLE);
	EXPECT_FALSE(is_mapped(handle));
	test_map_to(handle, &got);
	EXPECT_EQ(self->lab.bar_size, got.length);
	EXPECT_TRUE(is_mapped(handle));
	test_use(handle, 0);
	test_use(handle, self->lab.bar_size - XFER);
	ASSERT_EQ(0, unmap(self->fd, handle));
	test_stale(handle);
	ASSERT_EQ(0, detach(self->fd, handle));
}

TEST_F_TIMEOUT(importer, reads, LAB_TIMEOUT)
{
	__u32 handle = test_import(GOOD);
	__u8 seen[XFER];

	lab_fill_bar(&self->lab, 2);
	test_map(handle);
	ASSERT_EQ(0, dma(self->fd, handle, 0, 0, seen));
	EXPECT_TRUE(lab_holds(seen, 2));
	lab_clear_bar(&self->lab);
}

TEST_F_TIMEOUT(importer, pinned, LAB_TIMEOUT)
{
	__u32 handle = test_import(DMA_BUF_TEST_PIN);

	test_map(handle);
	EXPECT_TRUE(status(self->fd, handle) & DMA_BUF_TEST_PINNED);
	test_use(handle, 0);
	ASSERT_EQ(0, vfio_dev_reset(&self->lab.peer));
	EXPECT_FALSE(is_mapped(handle));
	test_stale(handle);
	test_map(handle);
	test_use(handle, 0);
}

TEST_F_TIMEOUT(importer, several_ranges, LAB_TIMEOUT)
{
	const struct vfio_region_dma_range ranges[] = {
		{ .offset = 4 * SZ_4K, .length = TWO_PAGES },
		{ .offset = 0, .length = SZ_4K },
	};
	struct dma_buf_test_map got;
	long handle;
	int fd;

	fd = test_fd(vfio_dev_export(&self->lab.peer, PEER_BAR, O_RDWR, ranges,
				     ARRAY_SIZE(ranges)));
	handle = import(self->fd, fd, GOOD);
	ASSERT_LE(0, handle);
	test_map_to(handle, &got);
	EXPECT_EQ(3 * SZ_4K, got.length);
	ASSERT_EQ(0, dma(self->fd, handle, DMA_BUF_TEST_DMA_WRITE, SZ_4K, self->pattern));
	expect_landed(5 * SZ_4K, 1);
	ASSERT_EQ(0, dma(self->fd, handle, DMA_BUF_TEST_DMA_WRITE, 2 * SZ_4K, self->pattern));
	expect_landed(0, 1);
}

/* Two importers of one buffer, one of them iommufd */
TEST_F_TIMEOUT(importer, next_to_iommufd, LAB_TIMEOUT)
{
	__u32 handle = test_import(GOOD);

	lab_open_importer(_metadata, &self->lab);
	test_load(1);
	test_map_at(self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
	test_map(handle);
	test_use(handle, 0);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);

	ASSERT_EQ(0, vfio_dev_reset(&self->lab.peer));
	test_stale(handle);
	expect_nothing_landed();
	/* iommufd maps again by itself */
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

/* An importer that could not give the memory up never gets it */
TEST_F(importer, refused_kinds)
{
	test_err_import(EOPNOTSUPP, DMA_BUF_TEST_STATIC);
	test_err_import(EOPNOTSUPP, DMA_BUF_TEST_NO_P2P);
	test_err_import(EOPNOTSUPP, DMA_BUF_TEST_NO_INVALIDATE);
	test_err_import(EOPNOTSUPP, DMA_BUF_TEST_NO_INVALIDATE | DMA_BUF_TEST_NO_P2P);
	test_err_import(EOPNOTSUPP, DMA_BUF_TEST_NO_INVALIDATE | DMA_BUF_TEST_PIN);

	/* Nobody is in the way of a reset */
	EXPECT_EQ(0, vfio_dev_reset(&self->lab.peer));
	EXPECT_EQ(0, detach(self->fd, test_import(GOOD)));
}

/* Being of the wrong kind is no matter of the moment, being revoked is */
TEST_F(importer, refused_kinds_while_revoked)
{
	test_decode(false);
	test_err_import(EOPNOTSUPP, DMA_BUF_TEST_STATIC);
	test_err_import(EOPNOTSUPP, DMA_BUF_TEST_NO_P2P);
	test_err_import(EOPNOTSUPP, DMA_BUF_TEST_NO_INVALIDATE);
	test_err_import(ENODEV, GOOD);
	test_decode(true);
}

/* What the driver does not know, or has not got, it refuses and goes on */
TEST_F_TIMEOUT(importer, refused_arguments, LAB_TIMEOUT)
{
	const __u32 size = self->lab.bar_size, too_late = DMA_BUF_TEST_MAX_DELAY_MS + 1;
	const __u32 other = test_import(GOOD), handle = test_import(GOOD), none = 999;
	const struct {
		unsigned long cmd;
		int error;
		union {
			struct dma_buf_test_import import;
			struct dma_buf_test_handle handle;
			struct dma_buf_test_map map;
			struct dma_buf_test_dma dma;
			struct dma_buf_test_status status;
		};
	} bad[] = {
		{ DMA_BUF_TEST_IOC_IMPORT, EINVAL, .import = { self->dmabuf, 1U << 31 } },
		{ DMA_BUF_TEST_IOC_IMPORT, EINVAL, .import = { self->dmabuf, .reserved = 1 } },
		{ DMA_BUF_TEST_IOC_IMPORT, EINVAL,
		  .import = { self->dmabuf, DMA_BUF_TEST_STATIC | DMA_BUF_TEST_PIN } },
		{ DMA_BUF_TEST_IOC_IMPORT, EINVAL, .import = { self->dmabuf, DMA_BUF_TEST_STATIC, 1 } },
		{ DMA_BUF_TEST_IOC_IMPORT, EINVAL,
		  .import = { self->dmabuf, DMA_BUF_TEST_NO_INVALIDATE, 0, 1 } },
		{ DMA_BUF_TEST_IOC_IMPORT, EINVAL, .import = { self->dmabuf, GOOD, too_late } },
		{ DMA_BUF_TEST_IOC_IMPORT, EINVAL, .import = { self->dmabuf, GOOD, 0, too_late } },
		{ DMA_BUF_TEST_IOC_IMPORT, EBADF, .import = { -1 } },
		{ DMA_BUF_TEST_IOC_IMPORT, EINVAL, .import = { self->fd } },
		{ DMA_BUF_TEST_IOC_DETACH, EINVAL, .handle = { handle, 1 } },
		{ DMA_BUF_TEST_IOC_DETACH, ENOENT, .handle = { none } },
		{ DMA_BUF_TEST_IOC_MAP, EINVAL, .map = { handle, .reserved = 1 } },
		{ DMA_BUF_TEST_IOC_MAP, ENOENT, .map = { none } },
		{ DMA_BUF_TEST_IOC_MAP, EALREADY, .map = { handle } },
		{ DMA_BUF_TEST_IOC_UNMAP, EINVAL, .handle = { handle, 1 } },
		{ DMA_BUF_TEST_IOC_UNMAP, ENOENT, .handle = { none } },
		{ DMA_BUF_TEST_IOC_UNMAP, ENODEV, .handle = { other } },
		{ DMA_BUF_TEST_IOC_STATUS, ENOENT, .status = { none } },
		{ DMA_BUF_TEST_IOC_DMA, ENOENT, .dma = { none, .length = 1 } },
		{ DMA_BUF_TEST_IOC_DMA, EINVAL, .dma = { handle, 1U << 31, .length = 1 } },
		{ DMA_BUF_TEST_IOC_DMA, EINVAL, .dma = { handle, .length = 1, .reserved = 1 } },
		{ DMA_BUF_TEST_IOC_DMA, EINVAL, .dma = { handle } },
		{ DMA_BUF_TEST_IOC_DMA, EINVAL,
		  .dma = { handle, .length = DMA_BUF_TEST_MAX_DMA + 1 } },
		{ DMA_BUF_TEST_IOC_DMA, EINVAL, .dma = { handle, .offset = size, .length = 1 } },
		{ DMA_BUF_TEST_IOC_DMA, EINVAL, .dma = { handle, .offset = -1, .length = 1 } },
		{ DMA_BUF_TEST_IOC_DMA, ENODEV, .dma = { other, .length = 1 } },
		{ DMA_BUF_TEST_IOC_DMA, ENODEV,
		  .dma = { other, DMA_BUF_TEST_DMA_STALE, .length = 1 } },
		{ DMA_BUF_TEST_IOC_DMA, EFAULT, .dma = { handle, .length = 1 } },
		{ DMA_BUF_TEST_IOC_DMA, EFAULT,
		  .dma = { handle, DMA_BUF_TEST_DMA_WRITE, .length = 1 } },
		{ _IO(DMA_BUF_TEST_MAGIC, 99), ENOTTY },
		{ _IO(DMA_BUF_TEST_MAGIC + 1, 0), ENOTTY },
		{ _IOWR(DMA_BUF_TEST_MAGIC, 0, char[256]), ENOTTY },
	};
	int again = importer_open_second();
	unsigned int i;

	test_map(handle);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-1, ioctl(self->fd, bad[i].cmd, &bad[i].import));
		EXPECT_EQ(bad[i].error, errno) {
			TH_LOG("call %u", i);
		}
	}
	EXPECT_EQ(-1, ioctl(self->fd, DMA_BUF_TEST_IOC_MAP, NULL));
	EXPECT_EQ(EFAULT, errno);
	/* A handle is worth nothing in another file */
	ASSERT_LE(0, again);
	EXPECT_EQ(-ENOENT, unmap(again, handle));
	EXPECT_EQ(-ENOENT, detach(again, handle));
	test_use(handle, 0);
}

/* The importing device goes, and leaves nothing mapped */
TEST_F_TIMEOUT(importer, importer_unbound, LAB_TIMEOUT)
{
	__u32 handle = test_import_slow(0, LONG_DRAIN_MS);
	char name[PCI_NAME_LEN];

	test_map(handle);
	ASSERT_EQ(0, lab_find("VM_KDMA", pci_id_edu, name));
	ASSERT_EQ(0, pci_unbind(name));
	test_err_map(ENXIO, handle);
	test_err_import(ENXIO, GOOD);
	EXPECT_EQ(-ENXIO, detach(self->fd, handle));
	test_decode(false);
	test_decode(true);
}

TEST_F_TIMEOUT(importer, attach_while_revoked, LAB_TIMEOUT)
{
	__u32 handle;

	test_decode(false);
	test_err_import(ENODEV, GOOD);
	test_err_import(ENODEV, DMA_BUF_TEST_PIN);
	test_decode(true);
	handle = test_import(GOOD);
	test_map(handle);
	test_use(handle, 0);
}

/* Attached before, mapped after */
TEST_F_TIMEOUT(importer, map_while_revoked, LAB_TIMEOUT)
{
	__u32 handle = test_import(GOOD), pinning = test_import(DMA_BUF_TEST_PIN);

	test_decode(false);
	test_err_map(ENODEV, handle);
	test_err_map(ENODEV, pinning);
	EXPECT_FALSE(status(self->fd, pinning) & DMA_BUF_TEST_PINNED);
	test_decode(true);
	test_map(handle);
	test_use(handle, 0);
	test_map(pinning);
	test_use(pinning, SZ_4K);
}

/* The old attachment is good for a new mapping */
TEST_F_TIMEOUT(importer, mapped_again_after_reset, LAB_TIMEOUT)
{
	__u32 handle = test_import(GOOD);

	test_map(handle);
	test_use(handle, 0);
	ASSERT_EQ(0, vfio_dev_reset(&self->lab.peer));
	EXPECT_FALSE(is_mapped(handle));
	EXPECT_EQ(-ENODEV, dma(self->fd, handle, DMA_BUF_TEST_DMA_WRITE, 0, self->pattern));
	test_stale(handle);
	test_map(handle);
	test_use(handle, 0);
}

TEST_F_TIMEOUT(importer, toggled, LAB_TIMEOUT)
{
	__u32 handle = test_import(GOOD);
	int i;

	for (i = 0; i < 100; i++) {
		test_map(handle);
		test_decode(false);
		EXPECT_FALSE(is_mapped(handle));
		test_err_map(ENODEV, handle);
		test_decode(true);
	}
	test_map(handle);
	test_use(handle, 0);
}

TEST_F_TIMEOUT(importer, dead_after_close, LAB_TIMEOUT)
{
	__u32 handle = test_import(GOOD);
	char peer[PCI_NAME_LEN];

	pci_copy_name(peer, self->lab.peer.name);
	test_map(handle);
	lab_close_peer(&self->lab);
	EXPECT_FALSE(is_mapped(handle));
	test_err_map(ENODEV, handle);
	test_err_import(ENODEV, GOOD);
	ASSERT_EQ(0, lab_open_peer(&self->lab, peer));
	test_err_map(ENODEV, handle);
	test_err_import(ENODEV, GOOD);
	test_stale(handle);
	ASSERT_EQ(0, detach(self->fd, handle));
}

static void drain(struct __test_metadata *_metadata, FIXTURE_DATA(importer) *self,
		  __u32 fence_ms, __u32 unmap_ms)
{
	__u32 handle = test_import_slow(fence_ms, unmap_ms);
	__u64 start;

	test_map(handle);
	start = now_us();
	test_decode(false);
	expect_drained_in(start, DRAIN_MS);
	EXPECT_FALSE(is_mapped(handle));
	test_decode(true);
	test_stale(handle);
	test_map(handle);
	test_use(handle, 0);
}

/* The fence of a device at work: the BAR goes when it has signalled */
TEST_F_TIMEOUT(importer, slow_fence, LAB_TIMEOUT)
{
	drain(_metadata, self, DRAIN_MS, 0);
}

/* A mapping that lives on after the invalidate: the BAR goes when it is gone */
TEST_F_TIMEOUT(importer, slow_unmap, LAB_TIMEOUT)
{
	drain(_metadata, self, 0, DRAIN_MS);
}

/* Whichever comes last */
TEST_F_TIMEOUT(importer, slow_both, LAB_TIMEOUT)
{
	__u32 fence_last = test_import_slow(2 * DRAIN_MS, DRAIN_MS);
	__u32 unmap_last = test_import_slow(DRAIN_MS, 2 * DRAIN_MS);
	__u64 start;

	test_map(fence_last);
	test_map(unmap_last);
	start = now_us();
	ASSERT_EQ(0, vfio_dev_reset(&self->lab.peer));
	expect_drained_in(start, 2 * DRAIN_MS);
	EXPECT_FALSE(is_mapped(fence_last));
	EXPECT_FALSE(is_mapped(unmap_last));
	test_map(fence_last);
	test_use(fence_last, 0);
}

/* An importer that is slow only when it has something mapped holds nobody up */
TEST_F(importer, slow_but_not_mapped)
{
	__u32 handle = test_import_slow(LONG_DRAIN_MS, LONG_DRAIN_MS);
	__u64 start;

	test_map(handle);
	ASSERT_EQ(0, unmap(self->fd, handle));
	start = now_us();
	test_decode(false);
	EXPECT_GT(LONG_DRAIN_MS, since_ms(start));
	test_decode(true);
}

TEST_F_TIMEOUT(importer, slow_twice, LAB_TIMEOUT)
{
	__u32 handle = test_import_slow(0, DRAIN_MS);
	__u64 start;
	int i;

	for (i = 0; i < 2; i++) {
		test_map(handle);
		start = now_us();
		test_decode(false);
		expect_drained_in(start, DRAIN_MS);
		test_decode(true);
	}
}

/* The same by another trigger, the one that nobody can refuse */
TEST_F_TIMEOUT(importer, slow_when_closed, LAB_TIMEOUT)
{
	__u32 handle = test_import_slow(DRAIN_MS, DRAIN_MS);
	__u64 start;

	test_map(handle);
	start = now_us();
	lab_close_peer(&self->lab);
	expect_drained_in(start, DRAIN_MS);
	EXPECT_FALSE(is_mapped(handle));
	test_err_map(ENODEV, handle);
}

/* In a child, as it takes long */
#define start(_pid, _call)						\
do {									\
	(_pid) = fork();						\
	ASSERT_LE(0, (_pid));						\
	if (!(_pid))							\
		_exit((_call) ? 1 : 0);					\
} while (0)
#define start_decode_off(_pid)	start(_pid, vfio_dev_decode(&self->lab.peer, false))

static bool has_ended(pid_t pid, int *status)
{
	return waitpid(pid, status, WNOHANG) == pid;
}

#define test_end(_pid)							\
do {									\
	int __status = -1;						\
									\
	ASSERT_TRUE(wait_until(has_ended(_pid, &__status), BOUND_MS));	\
	ASSERT_EQ(0, __status);						\
} while (0)

#define wait_for_invalidate(_handle)					\
	ASSERT_TRUE(wait_until(status(self->fd, _handle) & DMA_BUF_TEST_INVALIDATED, BOUND_MS))

/* While one importer drains nobody else gets in */
TEST_F_TIMEOUT(importer, no_new_mapping_while_draining, LAB_TIMEOUT)
{
	__u32 slow = test_import_slow(0, LONG_DRAIN_MS), other = test_import(GOOD);
	pid_t pid;

	test_map(slow);
	start_decode_off(pid);
	wait_for_invalidate(slow);
	test_err_map(ENODEV, other);
	test_err_import(ENODEV, GOOD);
	test_end(pid);
	EXPECT_FALSE(is_mapped(slow));
	test_decode(true);
	test_map(other);
	test_use(other, 0);
}

/* What the function has in its register, not what VFIO shows of it */
#define test_command(_config, _command)	\
	ASSERT_EQ(sizeof(__u16), pread(_config, _command, sizeof(__u16), PCI_COMMAND))

/* The device has its memory, and is not touched, for as long as somebody may use it */
TEST_F_TIMEOUT(importer, drained_before_decode_goes, LAB_TIMEOUT)
{
	__u32 handle = test_import_slow(0, LONG_DRAIN_MS);
	int config = test_fd(pci_open(self->lab.peer.name, "config", O_RDONLY));
	__u16 command = 0;
	pid_t pid;

	test_map(handle);
	start_decode_off(pid);
	wait_for_invalidate(handle);
	test_command(config, &command);
	ASSERT_TRUE(is_mapped(handle));
	EXPECT_TRUE(command & PCI_COMMAND_MEMORY);
	unmap(self->fd, handle);
	test_end(pid);
	test_command(config, &command);
	EXPECT_FALSE(command & PCI_COMMAND_MEMORY);
	test_decode(true);
	close(config);
}

TEST_F_TIMEOUT(importer, drained_before_reset, LAB_TIMEOUT)
{
	__u32 handle = test_import_slow(0, LONG_DRAIN_MS), seen;
	int bar = test_fd(pci_open(self->lab.peer.name, "resource0", O_RDWR));
	volatile __u32 *regs;
	pid_t pid;

	if (!pci_matches(self->lab.peer.name, pci_id_ivshmem))
		SKIP(return, "only ivshmem has a register that tells of a reset");
	regs = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, bar, 0);
	ASSERT_NE(MAP_FAILED, regs);
	regs[IVSHMEM_INTR_MASK] = 1;
	test_map(handle);
	start(pid, vfio_dev_reset(&self->lab.peer));
	wait_for_invalidate(handle);
	seen = regs[IVSHMEM_INTR_MASK];
	ASSERT_TRUE(is_mapped(handle));
	EXPECT_EQ(1, seen);
	unmap(self->fd, handle);
	test_end(pid);
	EXPECT_EQ(0, regs[IVSHMEM_INTR_MASK]);
	munmap((void *)regs, PAGE_BYTES);
	close(bar);
}

/* The end of a process does the last close */
TEST_F_TIMEOUT(importer, drained_before_close, LAB_TIMEOUT)
{
	__u32 handle = test_import_slow(0, LONG_DRAIN_MS);
	int config = test_fd(pci_open(self->lab.peer.name, "config", O_RDONLY));
	__u16 command = 0;
	int ignored;
	pid_t pid;

	ASSERT_EQ(0, vfio_dev_bus_master(&self->lab.peer, true));
	test_map(handle);
	start(pid, pause());
	lab_close_peer(&self->lab);
	ASSERT_EQ(0, kill(pid, SIGKILL));
	wait_for_invalidate(handle);
	test_command(config, &command);
	ASSERT_TRUE(is_mapped(handle));
	EXPECT_TRUE(command & PCI_COMMAND_MASTER);
	unmap(self->fd, handle);
	ASSERT_TRUE(wait_until(has_ended(pid, &ignored), BOUND_MS));
	test_command(config, &command);
	EXPECT_FALSE(command & PCI_COMMAND_MASTER);
	close(config);
}

static int unbind_only(struct lab *lab)
{
	lab_close_peer(lab);
	return pci_unbind(lab->peer.name);
}

/* Unbinding waits for userspace to close the device. Taking the memory back does not. */
TEST_F_TIMEOUT(importer, drained_by_unbind, LAB_TIMEOUT)
{
	__u32 handle = test_import_slow(0, DRAIN_MS), other = test_import(GOOD);
	int unused;
	pid_t pid;

	test_map(handle);
	start(pid, unbind_only(&self->lab));
	wait_for_invalidate(handle);
	test_err_map(ENODEV, other);
	test_err_import(ENODEV, GOOD);
	EXPECT_TRUE(wait_until(!is_mapped(handle), BOUND_MS));
	test_stale(handle);

	test_decode(false);
	test_decode(true);
	test_err_map(ENODEV, handle);
	EXPECT_EQ(-ENODEV, vfio_dev_export_range(&self->lab.peer, PEER_BAR, 0, SZ_4K));
	EXPECT_FALSE(has_ended(pid, &unused));
	lab_close_peer(&self->lab);
	test_end(pid);
	test_err_map(ENODEV, handle);
}

/* All are told before the first is waited for */
TEST_F_TIMEOUT(importer, buffers_drain_together, LAB_TIMEOUT)
{
	__u32 handles[4];
	pid_t pid;
	int i;

	for (i = 0; i < ARRAY_SIZE(handles); i++) {
		self->dmabuf = test_export(i * SZ_4K, SZ_4K);
		handles[i] = test_import_slow(0, LONG_DRAIN_MS);
		test_map(handles[i]);
	}
	start_decode_off(pid);
	for (i = 0; i < ARRAY_SIZE(handles); i++)
		wait_for_invalidate(handles[i]);
	for (i = 0; i < ARRAY_SIZE(handles); i++)
		EXPECT_TRUE(is_mapped(handles[i]));
	for (i = 0; i < ARRAY_SIZE(handles); i++)
		unmap(self->fd, handles[i]);
	test_end(pid);
	test_decode(true);
}

/* An importer that lets go early ends the wait early */
TEST_F_TIMEOUT(importer, unmaps_while_draining, LAB_TIMEOUT)
{
	__u32 handle = test_import_slow(0, LONG_DRAIN_MS);
	__u64 start = now_us();
	pid_t pid;

	test_map(handle);
	start_decode_off(pid);
	wait_for_invalidate(handle);
	unmap(self->fd, handle);
	test_end(pid);
	EXPECT_GT(LONG_DRAIN_MS, since_ms(start));
	test_decode(true);
}

TEST_F_TIMEOUT(importer, detaches_while_draining, LAB_TIMEOUT)
{
	__u32 handle = test_import_slow(0, LONG_DRAIN_MS);
	pid_t pid;

	test_map(handle);
	start_decode_off(pid);
	wait_for_invalidate(handle);
	ASSERT_EQ(0, detach(self->fd, handle));
	test_end(pid);
	test_decode(true);
}

/* The whole importer goes, and with it everything it had */
TEST_F_TIMEOUT(importer, closed_while_draining, LAB_TIMEOUT)
{
	__u32 handle = test_import_slow(0, LONG_DRAIN_MS);
	pid_t pid;

	test_map(handle);
	start_decode_off(pid);
	wait_for_invalidate(handle);
	close(self->fd);
	test_end(pid);
	test_decode(true);
}

/* A process that is killed in a drain ends with it, and has not done half a revoke */
TEST_F_TIMEOUT(importer, owner_killed_while_draining, LAB_TIMEOUT)
{
	__u32 handle = test_import_slow(0, DRAIN_MS);
	int ignored;
	pid_t pid;

	test_map(handle);
	start_decode_off(pid);
	wait_for_invalidate(handle);
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_TRUE(wait_until(has_ended(pid, &ignored), BOUND_MS));
	test_decode(false);
	EXPECT_FALSE(is_mapped(handle));
	test_decode(true);
	test_map(handle);
	test_use(handle, 0);
}

/* All at once take about as long as one: far from what they take one after the other */
TEST_F_TIMEOUT(importer, many_slow_ones, LAB_TIMEOUT)
{
	__u32 handles[8];
	__u64 start;
	int i;

	for (i = 0; i < ARRAY_SIZE(handles); i++) {
		self->dmabuf = test_export(i * SZ_4K, SZ_4K);
		handles[i] = test_import_slow(i & 1 ? LONG_DRAIN_MS : 0,
					      i & 1 ? 0 : LONG_DRAIN_MS);
		test_map(handles[i]);
	}
	start = now_us();
	test_decode(false);
	expect_drained_in(start, LONG_DRAIN_MS);
	EXPECT_GT(ARRAY_SIZE(handles) * LONG_DRAIN_MS / 2, since_ms(start));
	for (i = 0; i < ARRAY_SIZE(handles); i++)
		EXPECT_FALSE(is_mapped(handles[i]));
	test_decode(true);
}

TEST_HARNESS_MAIN
