/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The test importer: a kernel driver that imports dma-bufs for an edu device.
 * All return 0 or what they are for, -errno on failure.
 */
#ifndef SELFTESTS_DMABUF_IMPORTER_H
#define SELFTESTS_DMABUF_IMPORTER_H

#include "lab.h"
#include "../../../../drivers/dma-buf/dma-buf-test-importer.h"

/* Of all kinds, the one that a VFIO buffer wants */
#define GOOD		0

/* Does P2PDMA send transactions through the host bridge? Of AMD, from Zen on. */
static inline bool host_bridge_is_trusted(void)
{
	char line[256], vendor[64] = "";
	int family = 0;
	FILE *file;

	file = fopen("/proc/cpuinfo", "r");
	if (!file)
		return false;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "vendor_id : %63s", vendor) == 1)
			continue;
		if (sscanf(line, "cpu family : %d", &family) == 1)
			break;
	}
	fclose(file);
	return !strcmp(vendor, "AuthenticAMD") && family >= 0x17;
}

/* The node of a device, which gets bound to the driver for that */
static inline int importer_open(char name[PCI_NAME_LEN])
{
	char node[128];
	int ret, fd;

	ret = pci_bind(name, DMA_BUF_TEST_DRIVER);
	if (!ret)
		ret = pci_find_node(name, "misc", DMA_BUF_TEST_NODE, "", node, sizeof(node));
	if (ret)
		return ret;
	if (!wait_until(!access(node, R_OK), LEAK_WAIT_MS))
		return -ENODEV;
	fd = open(node, O_RDWR | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* The second initiator, so that user space keeps the first; any one will do */
static inline int importer_open_second(void)
{
	char name[PCI_NAME_LEN];
	int ret;

	if (getenv("VM_KDMA"))
		ret = lab_find("VM_KDMA", pci_id_edu, name);
	else
		ret = pci_find(pci_id_edu, 1, name);
	return ret ?: importer_open(name);
}

/* Handle of the import, or -errno */
static inline long import_slow(int fd, int dmabuf, __u32 flags, __u32 fence_ms, __u32 unmap_ms)
{
	struct dma_buf_test_import arg = {
		.fd = dmabuf,
		.flags = flags,
		.fence_delay_ms = fence_ms,
		.unmap_delay_ms = unmap_ms,
	};

	return ioctl(fd, DMA_BUF_TEST_IOC_IMPORT, &arg) ? -errno : (long)arg.handle;
}

static inline long import(int fd, int dmabuf, __u32 flags)
{
	return import_slow(fd, dmabuf, flags, 0, 0);
}

static inline int detach(int fd, __u32 handle)
{
	struct dma_buf_test_handle arg = { .handle = handle };

	return ioctl(fd, DMA_BUF_TEST_IOC_DETACH, &arg) ? -errno : 0;
}

static inline int unmap(int fd, __u32 handle)
{
	struct dma_buf_test_handle arg = { .handle = handle };

	return ioctl(fd, DMA_BUF_TEST_IOC_UNMAP, &arg) ? -errno : 0;
}

static inline int map(int fd, __u32 handle, struct dma_buf_test_map *out)
{
	struct dma_buf_test_map arg = { .handle = handle };
	int ret;

	ret = ioctl(fd, DMA_BUF_TEST_IOC_MAP, &arg) ? -errno : 0;
	if (out)
		*out = arg;
	return ret;
}

static inline int dma(int fd, __u32 handle, __u32 flags, __u64 offset, __u8 data[XFER])
{
	struct dma_buf_test_dma arg = {
		.handle = handle,
		.flags = flags,
		.offset = offset,
		.data = (uintptr_t)data,
		.length = XFER,
	};

	return ioctl(fd, DMA_BUF_TEST_IOC_DMA, &arg) ? -errno : 0;
}

/* State flags, 0 if that could not be found out */
static inline __u32 status(int fd, __u32 handle)
{
	struct dma_buf_test_status arg = { .handle = handle };

	return ioctl(fd, DMA_BUF_TEST_IOC_STATUS, &arg) ? 0 : arg.flags;
}

/* It may be that P2PDMA lets nobody through the host bridge, and then it must say so */
#define test_map_to(_handle, _out)						\
do {										\
	int __ret = map(self->fd, _handle, _out);				\
										\
	if (__ret == -EOPNOTSUPP && !host_bridge_is_trusted())			\
		SKIP(_exit(KSFT_SKIP), "P2PDMA does not trust the host bridge");	\
	ASSERT_EQ(0, __ret);							\
} while (0)
#define test_map(_handle)		test_map_to(_handle, NULL)

#endif
