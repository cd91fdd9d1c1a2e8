// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where the devices are in the machine decides what kind of address an importer
 * gets, if any, and what a reset takes along.
 */
#include "importer.h"
#include "observe.h"

#define DRAIN_MS	5000
#define BOUND_MS	60000

/* The tree of PCI, from the host bridge down to both devices */
FIXTURE(placement)
{
	struct lab lab;
	int fd;
	__u32 handle;
	__u8 pattern[XFER];
};

FIXTURE_VARIANT(placement)
{
	const char *importer;
	const char *owner;
	bool common_switch;
};

/*
 *	host bridge -+- root port -- owner
 *		     +- importer
 */
FIXTURE_VARIANT_ADD(placement, through_host_bridge)
{
	.importer = "VM_KDMA",
	.owner = "VM_PEER",
};

/*
 *	host bridge -- root port -- switch -+- port -- owner
 *					    +- port -- importer
 */
FIXTURE_VARIANT_ADD(placement, behind_a_switch)
{
	.importer = "VM_SWDMA2",
	.owner = "VM_SWPEER",
	.common_switch = true,
};

static int open_owner(struct lab *lab, const char *role)
{
	char name[PCI_NAME_LEN];

	return lab_find(role, pci_id_ivshmem, name) ?: lab_open_peer(lab, name);
}

FIXTURE_SETUP(placement)
{
	char name[PCI_NAME_LEN];
	long handle;

	self->lab.edu.dev.fd = -1;
	self->lab.buffers = dmabuf_count();
	if (!getenv(variant->owner))
		SKIP(return, "only a machine with roles has devices in known places");
	self->lab.iommufd = iommufd_open();
	REQUIRE(self->lab.iommufd >= 0, "no /dev/iommu");
	REQUIRE(!open_owner(&self->lab, variant->owner), "no owner of a BAR");
	lab_clear_bar(&self->lab);
	ASSERT_EQ(0, lab_find(variant->importer, pci_id_edu, name));
	self->fd = importer_open(name);
	REQUIRE(self->fd >= 0, "no test importer");
	handle = import(self->fd, test_export(0, self->lab.bar_size), GOOD);
	ASSERT_LE(0, handle);
	self->handle = handle;
	pattern_fill(self->pattern, 1);
}

FIXTURE_TEARDOWN(placement)
{
	lab_close(_metadata, &self->lab);
}

/* A switch forwards by itself. QEMU's does not, so here no DMA can be tried. */
TEST_F_TIMEOUT(placement, kind_of_address, LAB_TIMEOUT)
{
	struct dma_buf_test_map got;
	int ret;

	ret = map(self->fd, self->handle, &got);
	if (variant->common_switch) {
		ASSERT_EQ(0, ret);
		EXPECT_TRUE(got.flags & DMA_BUF_TEST_MAP_BUS_ADDRESS);
		EXPECT_EQ(pci_bar_start(self->lab.peer.name, PEER_BAR), got.dma_addr);
	} else if (host_bridge_is_trusted()) {
		ASSERT_EQ(0, ret);
		EXPECT_FALSE(got.flags & DMA_BUF_TEST_MAP_BUS_ADDRESS);
		EXPECT_NE(pci_bar_start(self->lab.peer.name, PEER_BAR), got.dma_addr);
		ASSERT_EQ(0, dma(self->fd, self->handle, DMA_BUF_TEST_DMA_WRITE, 0,
				 self->pattern));
		expect_landed(0, 1);
	} else {
		EXPECT_EQ(-EOPNOTSUPP, ret);
		return;
	}
	EXPECT_EQ(self->lab.bar_size, got.length);

	ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, false));
	EXPECT_FALSE(status(self->fd, self->handle) & DMA_BUF_TEST_MAPPED);
	EXPECT_EQ(-ENODEV, map(self->fd, self->handle, NULL));
	ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, true));
	EXPECT_EQ(0, map(self->fd, self->handle, NULL));
}

/* Two functions, each with a BAR of its own, that one bus reset is for */
FIXTURE(pair)
{
	struct lab lab;
	struct lab other;
};

FIXTURE_SETUP(pair)
{
	if (!getenv("VM_PAIR0"))
		SKIP(return, "only a machine with roles has devices in known places");
	self->lab.edu.dev.fd = -1;
	self->lab.buffers = dmabuf_count();
	self->lab.iommufd = iommufd_open();
	REQUIRE(self->lab.iommufd >= 0, "no /dev/iommu");
	self->other.iommufd = self->lab.iommufd;
	REQUIRE(!open_owner(&self->lab, "VM_PAIR0"), "no first function");
	REQUIRE(!open_owner(&self->other, "VM_PAIR1"), "no second function");
	lab_clear_bar(&self->lab);
	lab_clear_bar(&self->other);
	lab_open_importer(_metadata, &self->lab);
	test_load(1);
}

FIXTURE_TEARDOWN(pair)
{
	lab_close_peer(&self->other);
	lab_close(_metadata, &self->lab);
}

TEST_F_TIMEOUT(pair, hot_reset_takes_both, LAB_TIMEOUT)
{
	char text[16384];
	int second;

	test_map_at(self->lab.ioas, test_export(0, SZ_4K), 0, SZ_4K, LAB_BAR_IOVA);
	second = test_fd(vfio_dev_export_range(&self->other.peer, PEER_BAR, 0, SZ_4K));
	test_map_at(self->lab.ioas, second, 0, SZ_4K, LAB_COPY_IOVA);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
	test_dma_write(LAB_COPY_IOVA);
	EXPECT_TRUE(lab_holds(self->other.bar, 1));
	lab_clear_bar(&self->other);

	REQUIRE(trace(true), "no tracepoints");
	ASSERT_EQ(0, vfio_dev_hot_reset(&self->lab.peer));
	ASSERT_TRUE(trace(false));
	ASSERT_TRUE(slurp(TRACING "trace", text, sizeof(text)));
	expect_line(text, "vfio_pci_dma_buf_state:", self->lab.peer.name, "state=revoked");
	expect_line(text, "vfio_pci_dma_buf_state:", self->other.peer.name, "state=revoked");
	expect_line(text, "vfio_pci_dma_bufs_drained:", self->lab.peer.name);
	expect_line(text, "vfio_pci_dma_bufs_drained:", self->other.peer.name);
	expect_order(text, "iommufd_dmabuf_revoked:", "unmapped=0x1000", "state=revoked",
		     "iommufd_dmabuf_revoked:", "unmapped=0x1000", "state=revoked",
		     "vfio_pci_dma_bufs_drained:", "vfio_pci_dma_bufs_drained:",
		     "iommufd_dmabuf_restored:", "ret=0", "iommufd_dmabuf_restored:", "ret=0");

	/* Both are back */
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
	test_dma_write(LAB_COPY_IOVA);
	EXPECT_TRUE(lab_holds(self->other.bar, 1));
	lab_clear_bar(&self->other);
}

/* Importers of the second function are told before those of the first are waited for */
TEST_F_TIMEOUT(pair, functions_drain_together, LAB_TIMEOUT)
{
	int fd, buffers[2], i, ended = -1;
	__u32 handles[2];
	pid_t pid;

	fd = importer_open_second();
	REQUIRE(fd >= 0, "no test importer");
	buffers[0] = test_export(0, SZ_4K);
	buffers[1] = test_fd(vfio_dev_export_range(&self->other.peer, PEER_BAR, 0, SZ_4K));
	for (i = 0; i < ARRAY_SIZE(handles); i++) {
		handles[i] = test_fd(import_slow(fd, buffers[i], GOOD, 0, DRAIN_MS));
		if (map(fd, handles[i], NULL) == -EOPNOTSUPP && !host_bridge_is_trusted())
			SKIP(return, "P2PDMA does not trust the host bridge");
	}
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(vfio_dev_hot_reset(&self->lab.peer) ? 1 : 0);
	for (i = 0; i < ARRAY_SIZE(handles); i++)
		ASSERT_TRUE(wait_until(status(fd, handles[i]) & DMA_BUF_TEST_INVALIDATED,
				       BOUND_MS));
	for (i = 0; i < ARRAY_SIZE(handles); i++)
		EXPECT_TRUE(status(fd, handles[i]) & DMA_BUF_TEST_MAPPED);
	for (i = 0; i < ARRAY_SIZE(handles); i++)
		unmap(fd, handles[i]);
	ASSERT_EQ(pid, waitpid(pid, &ended, 0));
	EXPECT_EQ(0, ended);
}

/* A function that waits for an importer which is stuck holds up no other one */
TEST_F_TIMEOUT(pair, stuck_alone, LAB_TIMEOUT)
{
	int fd, second, ended = -1;
	__u8 pattern[XFER];
	__u32 stuck, other;
	pid_t pid;

	fd = importer_open_second();
	REQUIRE(fd >= 0, "no test importer");
	stuck = test_fd(import_slow(fd, test_export(0, SZ_4K), GOOD, 0,
				    DMA_BUF_TEST_MAX_DELAY_MS));
	if (map(fd, stuck, NULL) == -EOPNOTSUPP && !host_bridge_is_trusted())
		SKIP(return, "P2PDMA does not trust the host bridge");
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(vfio_dev_decode(&self->lab.peer, false) ? 1 : 0);
	ASSERT_TRUE(wait_until(status(fd, stuck) & DMA_BUF_TEST_INVALIDATED, BOUND_MS));

	/* A reset of both does not wait to get the one that waits. */
	EXPECT_EQ(-EBUSY, vfio_dev_hot_reset(&self->other.peer));

	/* Both importers reach the other one, before it is revoked and after that */
	second = test_fd(vfio_dev_export_range(&self->other.peer, PEER_BAR, 0, 2 * SZ_4K));
	test_map_at(self->lab.ioas, second, 0, 2 * SZ_4K, LAB_BAR_IOVA);
	other = test_fd(import(fd, second, GOOD));
	ASSERT_EQ(0, map(fd, other, NULL));
	ASSERT_EQ(0, vfio_dev_decode(&self->other.peer, false));
	EXPECT_FALSE(status(fd, other) & DMA_BUF_TEST_MAPPED);
	ASSERT_EQ(0, vfio_dev_decode(&self->other.peer, true));
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, 2 * SZ_4K);
	test_map_at(self->lab.ioas, second, 0, 2 * SZ_4K, LAB_BAR_IOVA);
	test_dma_write(LAB_BAR_IOVA);
	EXPECT_TRUE(lab_holds(self->other.bar, 1));
	pattern_fill(pattern, 2);
	ASSERT_EQ(0, map(fd, other, NULL));
	ASSERT_EQ(0, dma(fd, other, DMA_BUF_TEST_DMA_WRITE, SZ_4K, pattern));
	EXPECT_TRUE(lab_holds(self->other.bar + SZ_4K, 2));
	lab_clear_bar(&self->other);

	EXPECT_EQ(0, waitpid(pid, &ended, WNOHANG));
	EXPECT_TRUE(status(fd, stuck) & DMA_BUF_TEST_MAPPED);
	ASSERT_EQ(0, unmap(fd, stuck));
	ASSERT_EQ(pid, waitpid(pid, &ended, 0));
	EXPECT_EQ(0, ended);
	ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, true));
}

/* Less than all functions of a bus reset: nobody is told to let go */
TEST_F_TIMEOUT(pair, reset_refused_changes_nothing, LAB_TIMEOUT)
{
	struct vfio_pci_hot_reset reset = { .argsz = sizeof(reset), .count = 1 };

	test_map_at(self->lab.ioas, test_export(0, SZ_4K), 0, SZ_4K, LAB_BAR_IOVA);
	ASSERT_NE(0, ioctl(self->lab.peer.fd, VFIO_DEVICE_PCI_HOT_RESET, &reset));
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

TEST_HARNESS_MAIN
