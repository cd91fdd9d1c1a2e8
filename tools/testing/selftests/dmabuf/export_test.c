// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO_DEVICE_FEATURE_DMA_BUF: what is exported, what is refused and how, and
 * what the new file descriptor can and cannot do.
 */
#include <limits.h>
#include <sys/resource.h>

#include "lab.h"

#define MAX_RANGES	256
#define GET		(VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF)
#define PROBE		(VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_DMA_BUF)
#define SET		(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF)

/* The argument of a GET of one range, to be spoiled */
struct export_arg {
	struct vfio_device_feature header;
	struct vfio_device_feature_dma_buf get;
	struct vfio_region_dma_range range;
};

FIXTURE(export)
{
	struct lab lab;
	struct export_arg arg;
};

FIXTURE_SETUP(export)
{
	lab_open_exporter(_metadata, &self->lab, LAB_NEED_NOTHING);
	self->arg = (struct export_arg) {
		.header.argsz = sizeof(self->arg),
		.header.flags = GET,
		.get.region_index = PEER_BAR,
		.get.open_flags = O_RDWR | O_CLOEXEC,
		.get.nr_ranges = 1,
		.range.length = self->lab.bar_size,
	};
}

FIXTURE_TEARDOWN(export)
{
	lab_close(_metadata, &self->lab);
}

static int export_raw(struct vfio_dev *dev, const void *arg)
{
	int ret = ioctl(dev->fd, VFIO_DEVICE_FEATURE, arg);

	return ret < 0 ? -errno : ret;
}

#define test_err_arg(_errno)	\
	EXPECT_EQ(-(_errno), export_raw(&self->lab.peer, &self->arg))

#define test_arg()		test_fd(export_raw(&self->lab.peer, &self->arg))

TEST_F(export, probe)
{
	EXPECT_EQ(0, vfio_dev_feature(&self->lab.peer, PROBE, NULL, 0));
	EXPECT_EQ(0, vfio_dev_feature(&self->lab.peer, PROBE | VFIO_DEVICE_FEATURE_GET, NULL, 0));
	EXPECT_EQ(-EINVAL, vfio_dev_feature(&self->lab.peer, PROBE | VFIO_DEVICE_FEATURE_SET,
					    NULL, 0));
	EXPECT_EQ(-EINVAL, vfio_dev_feature(&self->lab.peer, PROBE | VFIO_DEVICE_FEATURE_SET |
					    VFIO_DEVICE_FEATURE_GET, NULL, 0));
}

/* No PROBE before it, as VMMs do */
TEST_F(export, get)
{
	int fd = test_arg();

	EXPECT_EQ(self->lab.bar_size, lseek(fd, 0, SEEK_END));
	EXPECT_EQ(self->lab.buffers + 1, dmabuf_count());
	close(fd);
	EXPECT_TRUE(wait_until(dmabuf_count() == self->lab.buffers, LEAK_WAIT_MS));
}

TEST_F(export, set_is_refused)
{
	self->arg.header.flags = SET;
	test_err_arg(EINVAL);
	self->arg.header.flags = SET | VFIO_DEVICE_FEATURE_GET;
	test_err_arg(EINVAL);
	self->arg.header.flags = VFIO_DEVICE_FEATURE_DMA_BUF;
	test_err_arg(EINVAL);
}

TEST_F(export, unknown_feature)
{
	self->arg.header.flags = VFIO_DEVICE_FEATURE_GET | 0xabcd;
	test_err_arg(ENOTTY);
}

TEST_F(export, argsz)
{
	struct export_arg *arg = &self->arg;
	__u32 size;

	for (size = 0; size < sizeof(*arg); size++) {
		arg->header.argsz = size;
		test_err_arg(EINVAL);
	}
	arg->header.argsz = sizeof(*arg);
	close(test_arg());
	/* More than is needed, up to anything */
	arg->header.argsz = sizeof(*arg) + 1;
	close(test_arg());
	arg->header.argsz = UINT_MAX;
	close(test_arg());
}

TEST_F(export, argsz_covers_the_ranges)
{
	struct vfio_region_dma_range ranges[3];
	struct vfio_device_feature_dma_buf *get;
	struct vfio_device_feature *feature;
	char buf[sizeof(*feature) + sizeof(*get) + sizeof(ranges)] = {};
	int i;

	feature = (struct vfio_device_feature *)buf;
	get = (struct vfio_device_feature_dma_buf *)feature->data;
	feature->flags = GET;
	get->region_index = PEER_BAR;
	get->nr_ranges = ARRAY_SIZE(ranges);
	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		get->dma_ranges[i].offset = i * SZ_4K;
		get->dma_ranges[i].length = SZ_4K;
	}
	feature->argsz = sizeof(buf) - 1;
	EXPECT_EQ(-EINVAL, export_raw(&self->lab.peer, feature));
	feature->argsz = sizeof(buf) - sizeof(ranges[0]);
	EXPECT_EQ(-EINVAL, export_raw(&self->lab.peer, feature));
	feature->argsz = sizeof(buf);
	close(test_fd(export_raw(&self->lab.peer, feature)));
}

TEST_F(export, bad_pointer)
{
	struct export_arg *edge;
	__u8 *pages;

	EXPECT_EQ(-EFAULT, export_raw(&self->lab.peer, NULL));

	/* The argument ends where memory ends, at each of its three parts */
	pages = mmap(NULL, 2 * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		     -1, 0);
	ASSERT_NE(MAP_FAILED, pages);
	ASSERT_EQ(0, munmap(pages + PAGE_BYTES, PAGE_BYTES));
	edge = (struct export_arg *)(pages + PAGE_BYTES - sizeof(*edge));
	*edge = self->arg;
	close(test_fd(export_raw(&self->lab.peer, edge)));
	memmove(pages + PAGE_BYTES - sizeof(*edge) + sizeof(edge->range), edge,
		sizeof(*edge) - sizeof(edge->range));
	EXPECT_EQ(-EFAULT, export_raw(&self->lab.peer, (__u8 *)edge + sizeof(edge->range)));
	memcpy(pages + PAGE_BYTES - sizeof(edge->header), &self->arg.header,
	       sizeof(edge->header));
	EXPECT_EQ(-EFAULT, export_raw(&self->lab.peer,
				      pages + PAGE_BYTES - sizeof(edge->header)));
}

TEST_F(export, flags)
{
	int bit;

	for (bit = 0; bit < 32; bit++) {
		self->arg.get.flags = 1U << bit;
		test_err_arg(EINVAL);
	}
}

TEST_F(export, open_flags)
{
	__u32 known = O_ACCMODE | O_CLOEXEC;
	int bit;

	for (bit = 0; bit < 32; bit++) {
		if (known & 1U << bit)
			continue;
		self->arg.get.open_flags = O_RDWR | 1U << bit;
		test_err_arg(EINVAL);
	}
	self->arg.get.open_flags = O_ACCMODE;
	test_err_arg(EINVAL);
	self->arg.get.open_flags = O_ACCMODE | O_CLOEXEC;
	test_err_arg(EINVAL);
}

TEST_F(export, access_mode)
{
	const int modes[] = { O_RDONLY, O_WRONLY, O_RDWR };
	int i, fd;

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		self->arg.get.open_flags = modes[i];
		fd = test_arg();
		EXPECT_EQ(modes[i], fcntl(fd, F_GETFL) & O_ACCMODE);
		EXPECT_EQ(0, fcntl(fd, F_GETFD) & FD_CLOEXEC);
		close(fd);

		self->arg.get.open_flags = modes[i] | O_CLOEXEC;
		fd = test_arg();
		EXPECT_EQ(modes[i], fcntl(fd, F_GETFL) & O_ACCMODE);
		EXPECT_EQ(FD_CLOEXEC, fcntl(fd, F_GETFD) & FD_CLOEXEC);
		close(fd);
	}
}

TEST_F(export, region_without_memory)
{
	const __u32 regions[] = {
		VFIO_PCI_ROM_REGION_INDEX,
		VFIO_PCI_CONFIG_REGION_INDEX,
		VFIO_PCI_VGA_REGION_INDEX,
		VFIO_PCI_NUM_REGIONS,
		1000,
		INT_MAX,
		UINT_MAX,
	};
	int i;

	self->arg.range.length = SZ_4K;
	for (i = 0; i < ARRAY_SIZE(regions); i++) {
		self->arg.get.region_index = regions[i];
		test_err_arg(ENODEV);
	}
}

TEST_F(export, unimplemented_bar)
{
	int bar, found = 0;

	self->arg.range.length = SZ_4K;
	for (bar = VFIO_PCI_BAR0_REGION_INDEX; bar <= VFIO_PCI_BAR5_REGION_INDEX; bar++) {
		if (pci_bar_size(self->lab.peer.name, bar))
			continue;
		self->arg.get.region_index = bar;
		test_err_arg(ENODEV);
		found++;
	}
	EXPECT_LT(0, found);
}

TEST_F(export, io_port_bar)
{
	struct vfio_region_dma_range range = { .length = SZ_4K };
	struct vfio_dev dev;
	char name[PCI_NAME_LEN];
	int bar;

	REQUIRE(!pci_find_io_bar(name, &bar), "no idle device with an I/O port BAR");
	REQUIRE(!pci_bind_vfio(name) && !vfio_dev_open(&dev, name, self->lab.iommufd),
		"%s cannot be opened", name);
	EXPECT_EQ(-ENODEV, vfio_dev_export(&dev, bar, O_RDWR, &range, 1));
	vfio_dev_close(&dev);
	EXPECT_EQ(0, pci_unbind(name));
}

/* A BAR smaller than a page has no page to give away */
TEST_F(export, bar_of_less_than_a_page)
{
	__u64 size = pci_bar_size(self->lab.peer.name, 0);

	if (!size || size >= PAGE_BYTES)
		SKIP(return, "BAR0 of the peer is not that small");
	self->arg.get.region_index = VFIO_PCI_BAR0_REGION_INDEX;
	self->arg.range.length = PAGE_BYTES;
	test_err_arg(EINVAL);
	self->arg.range.length = size;
	test_err_arg(EINVAL);
}

TEST_F(export, ranges)
{
	__u64 size = self->lab.bar_size;
	const struct vfio_region_dma_range bad[] = {
		{ 0, 0 },
		{ SZ_4K, 0 },
		{ size, 0 },
		{ 0, 1 },
		{ 0, SZ_4K - 1 },
		{ 0, SZ_4K + 1 },
		{ 1, SZ_4K },
		{ SZ_4K / 2, SZ_4K },
		{ SZ_4K / 2, SZ_4K / 2 },
		{ 0, size + SZ_4K },
		{ SZ_4K, size },
		{ size, SZ_4K },
		{ size - SZ_4K, 2 * SZ_4K },
		{ 2 * size, SZ_4K },
		{ 1ULL << 40, SZ_4K },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		self->arg.range = bad[i];
		EXPECT_EQ(-EINVAL, export_raw(&self->lab.peer, &self->arg)) {
			TH_LOG("offset %#llx length %#llx", bad[i].offset, bad[i].length);
		}
	}
	self->arg.range.offset = size - SZ_4K;
	self->arg.range.length = SZ_4K;
	close(test_arg());
}

TEST_F(export, ranges_that_wrap)
{
	const struct vfio_region_dma_range bad[] = {
		{ -SZ_4K, SZ_4K },
		{ -SZ_4K, 2 * SZ_4K },
		{ SZ_4K, -SZ_4K },
		{ 2 * SZ_4K, -SZ_4K },
		{ 1ULL << 63, 1ULL << 63 },
		{ 0, -SZ_4K },
		{ 0, 1ULL << 63 },
	};
	int i, ret;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		self->arg.range = bad[i];
		ret = export_raw(&self->lab.peer, &self->arg);
		EXPECT_TRUE(ret == -EINVAL || ret == -EOVERFLOW) {
			TH_LOG("offset %#llx length %#llx: %d", bad[i].offset, bad[i].length,
			       ret);
		}
	}
}

TEST_F(export, number_of_ranges)
{
	struct vfio_region_dma_range ranges[MAX_RANGES + 1];
	int i, fd;

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		ranges[i].offset = i * SZ_4K;
		ranges[i].length = SZ_4K;
	}
	test_err_export(EINVAL, PEER_BAR, O_RDWR, ranges, 0);
	test_err_export(EINVAL, PEER_BAR, O_RDWR, ranges, MAX_RANGES + 1);
	fd = test_fd(vfio_dev_export(&self->lab.peer, PEER_BAR, O_RDWR, ranges, MAX_RANGES));
	EXPECT_EQ(MAX_RANGES * SZ_4K, lseek(fd, 0, SEEK_END));
	close(fd);

	/* Believed, this would be a lot of memory, or none after a wrap */
	self->arg.header.argsz = UINT_MAX;
	self->arg.get.nr_ranges = UINT_MAX;
	test_err_arg(EINVAL);
	self->arg.get.nr_ranges = 1U << 28;
	test_err_arg(EINVAL);
	self->arg.get.nr_ranges = (1U << 28) + 1;
	test_err_arg(EINVAL);
}

/* One bad range among good ones, wherever it is */
TEST_F(export, one_bad_range)
{
	struct vfio_region_dma_range ranges[3] = {};
	int i, bad;

	for (bad = 0; bad < ARRAY_SIZE(ranges); bad++) {
		for (i = 0; i < ARRAY_SIZE(ranges); i++) {
			ranges[i].offset = i * SZ_4K;
			ranges[i].length = SZ_4K;
		}
		ranges[bad].offset = self->lab.bar_size;
		test_err_export(EINVAL, PEER_BAR, O_RDWR, ranges, ARRAY_SIZE(ranges));
	}
}

/* What is wrong with the request itself comes before the region, that before the ranges */
TEST_F(export, order_of_checks)
{
	struct export_arg *arg = &self->arg;

	arg->range.length = 1;
	arg->get.region_index = VFIO_PCI_CONFIG_REGION_INDEX;
	arg->get.flags = 1;
	arg->header.argsz = 1;
	arg->header.flags = VFIO_DEVICE_FEATURE_GET | 0xabcd;
	test_err_arg(EINVAL);
	arg->header.argsz = sizeof(*arg);
	test_err_arg(ENOTTY);
	arg->header.flags = GET;
	test_err_arg(EINVAL);
	arg->get.flags = 0;
	arg->get.open_flags = O_RDWR | O_APPEND;
	test_err_arg(EINVAL);
	arg->get.open_flags = O_RDWR;
	arg->get.nr_ranges = 0;
	test_err_arg(EINVAL);
	arg->get.nr_ranges = MAX_RANGES + 1;
	test_err_arg(EINVAL);
	arg->get.nr_ranges = 1;
	test_err_arg(ENODEV);
	arg->get.region_index = PEER_BAR;
	test_err_arg(EINVAL);
	arg->range.length = SZ_4K;
	close(test_arg());
}

/* Who owns the memory at an address, as /proc/iomem has it innermost */
static bool is_claimed(unsigned long long start, const char *by)
{
	unsigned long long from;
	char line[256], name[128];
	bool claimed = false;
	FILE *f;

	f = fopen("/proc/iomem", "re");
	if (!f)
		return false;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, " %llx-%*x : %127[^\n]", &from, name) == 2 && from == start)
			claimed = !strcmp(name, by);
	fclose(f);
	return claimed;
}

/* No driver that comes later can take the BAR, as if userspace had mapped it */
TEST_F(export, claims_the_bar)
{
	unsigned long long start = pci_bar_start(self->lab.peer.name, PEER_BAR);
	char name[PCI_NAME_LEN];

	pci_copy_name(name, self->lab.peer.name);
	lab_close_peer(&self->lab);
	ASSERT_EQ(0, vfio_dev_open(&self->lab.peer, name, self->lab.iommufd));
	ASSERT_FALSE(is_claimed(start, "vfio"));
	close(test_arg());
	EXPECT_TRUE(is_claimed(start, "vfio"));
}

TEST_F(export, several_ranges)
{
	const struct vfio_region_dma_range ranges[] = {
		{ .offset = 5 * SZ_4K, .length = 2 * SZ_4K },
		{ .offset = 0, .length = SZ_4K },
		/* Twice the same is strange, and nobody's loss */
		{ .offset = 0, .length = SZ_4K },
	};
	int fd;

	fd = test_fd(vfio_dev_export(&self->lab.peer, PEER_BAR, O_RDWR, ranges,
				     ARRAY_SIZE(ranges)));
	EXPECT_EQ(4 * SZ_4K, lseek(fd, 0, SEEK_END));
	close(fd);
}

/* Not one byte of it is for the CPU */
TEST_F(export, no_cpu_access)
{
	int prots[] = { PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE };
	int fd = test_arg();
	char byte = 0;
	int i;

	for (i = 0; i < ARRAY_SIZE(prots); i++) {
		EXPECT_EQ(MAP_FAILED, mmap(NULL, SZ_4K, prots[i], MAP_SHARED, fd, 0));
		EXPECT_EQ(EINVAL, errno);
	}
	EXPECT_EQ(-1, read(fd, &byte, 1));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, write(fd, &byte, 1));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, pread(fd, &byte, 1, 0));
	EXPECT_EQ(-1, pwrite(fd, &byte, 1, 0));
	close(fd);
}

/* With every fd in use nothing is exported, and nothing is left behind */
TEST_F(export, no_fd_left)
{
	struct rlimit limit, full;
	int next, i;

	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &limit));
	next = dup(self->lab.iommufd);
	ASSERT_LE(0, next);
	close(next);

	full = limit;
	full.rlim_cur = next;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &full));
	for (i = 0; i < 10; i++)
		test_err_arg(EMFILE);
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));
	EXPECT_TRUE(wait_until(dmabuf_count() == self->lab.buffers, LEAK_WAIT_MS));

	/* Neither is the device, which can be reset, exported from, and let go of */
	close(test_arg());
	EXPECT_EQ(0, vfio_dev_reset(&self->lab.peer));
	close(test_arg());
	lab_close_peer(&self->lab);
	EXPECT_EQ(0, pci_unbind(self->lab.peer.name));
	EXPECT_EQ(0, pci_bind_vfio(self->lab.peer.name));
}

TEST_F(export, many_buffers)
{
	int fds[64], i;

	for (i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = test_arg();
	EXPECT_EQ(self->lab.buffers + ARRAY_SIZE(fds), dmabuf_count());
	for (i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	EXPECT_TRUE(wait_until(dmabuf_count() == self->lab.buffers, LEAK_WAIT_MS));
}

/* The refusals of all of the above have left nothing in the kernel */
TEST_F(export, nothing_is_leaked_by_errors)
{
	int i;

	for (i = 0; i < 100; i++) {
		self->arg.range.offset = i & 1 ? self->lab.bar_size : 0;
		self->arg.range.length = i & 1 ? SZ_4K : 0;
		test_err_arg(EINVAL);
	}
	EXPECT_EQ(self->lab.buffers, dmabuf_count());
}

/* Memory decode is off: a buffer can be had, and cannot be used until it is on */
FIXTURE(born_revoked)
{
	struct lab lab;
	int dmabuf;
};

FIXTURE_SETUP(born_revoked)
{
	lab_open(_metadata, &self->lab, LAB_NEED_NOTHING);
	test_load(1);
	ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, false));
	self->dmabuf = test_export(0, self->lab.bar_size);
}

FIXTURE_TEARDOWN(born_revoked)
{
	lab_close(_metadata, &self->lab);
}

TEST_F_TIMEOUT(born_revoked, import, LAB_TIMEOUT)
{
	test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
	test_err_unmap(ENOENT, self->lab.ioas, LAB_BAR_IOVA, SZ_4K);
	ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, true));
	test_map_at(self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

TEST_F_TIMEOUT(born_revoked, closed_in_that_state, LAB_TIMEOUT)
{
	close(self->dmabuf);
	EXPECT_TRUE(wait_until(dmabuf_count() == self->lab.buffers, LEAK_WAIT_MS));
	ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, true));
}

TEST_F_TIMEOUT(born_revoked, device_closed_in_that_state, LAB_TIMEOUT)
{
	lab_close_peer(&self->lab);
	test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
}

TEST_HARNESS_MAIN
