// SPDX-License-Identifier: GPL-2.0-only
/*
 * IOMMU_IOAS_MAP_FILE of a dma-buf: what is mapped, by the DMA that goes through
 * it, and what is refused. Revocation has a test of its own, so have memfds.
 */
#include <limits.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <linux/capability.h>
#include <linux/udmabuf.h>

#include "lab.h"

#define HOLE_AT		0x4000ULL
#define HOLE_END	0x6000ULL
#define PART		0x8000ULL
#define MAX_RANGES	256

FIXTURE(import)
{
	struct lab lab;
	int dmabuf;
};

FIXTURE_SETUP(import)
{
	lab_open(_metadata, &self->lab, LAB_NEED_NOTHING);
	ASSERT_LE(PART, self->lab.bar_size);
	self->dmabuf = test_export(0, self->lab.bar_size);
	test_load(1);
}

FIXTURE_TEARDOWN(import)
{
	lab_close(_metadata, &self->lab);
}

/* Where in the BAR the last transfer can go that the initiator can reach */
static __u64 last_offset(struct lab *lab)
{
	__u64 end = LAB_BAR_IOVA + lab->bar_size;

	if (end > EDU_IOVA_LIMIT)
		end = EDU_IOVA_LIMIT;
	return end - LAB_BAR_IOVA - XFER;
}

TEST_F_TIMEOUT(import, whole, LAB_TIMEOUT)
{
	__u64 last = last_offset(&self->lab);

	test_map_at(self->lab.ioas, self->dmabuf, 0, self->lab.bar_size, LAB_BAR_IOVA);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
	test_dma_write(LAB_BAR_IOVA + last);
	expect_landed(last, 1);
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, self->lab.bar_size);
}

TEST_F_TIMEOUT(import, kernel_chooses_iova, LAB_TIMEOUT)
{
	__u64 iova = 0;

	test_map_file(self->lab.ioas, IOAS_RW, self->dmabuf, 0, PART, &iova);
	ASSERT_NE(0, iova);
	ASSERT_GT(EDU_IOVA_LIMIT - PART, iova);
	test_dma_write(iova + SZ_4K);
	expect_landed(SZ_4K, 1);
	test_unmap(self->lab.ioas, iova, PART);
}

/*
 * Where large pages can be used, although the first page of the buffer is not at
 * the beginning of one: a hole near the beginning, or a slice from within.
 */
TEST_F_TIMEOUT(import, kernel_chooses_iova_for_large_pages, LAB_TIMEOUT)
{
	const struct vfio_region_dma_range ranges[] = {
		{ .offset = 0, .length = SZ_4K },
		{ .offset = 2 * SZ_4K, .length = SZ_4K },
		{ .offset = 3 * SZ_4K, .length = self->lab.bar_size - 3 * SZ_4K },
	};
	__u64 phys = pci_bar_start(self->lab.peer.name, PEER_BAR), iova;
	int fd = test_fd(vfio_dev_export(&self->lab.peer, PEER_BAR, O_RDWR, ranges,
					 ARRAY_SIZE(ranges)));

	test_map_file(self->lab.ioas, IOAS_RW, fd, 0, self->lab.bar_size - SZ_4K, &iova);
	EXPECT_EQ((phys + SZ_4K) % SZ_2M, iova % SZ_2M);
	test_dma_write(iova + SZ_4K);
	expect_landed(2 * SZ_4K, 1);
	test_dma_write(iova + 2 * SZ_4K - XFER / 2);
	expect_landed(3 * SZ_4K - XFER / 2, 1);

	test_map_file(self->lab.ioas, IOAS_RW, self->dmabuf, SZ_4K, self->lab.bar_size - SZ_4K,
		      &iova);
	EXPECT_EQ((phys + SZ_4K) % SZ_2M, iova % SZ_2M);
	test_dma_write(iova);
	expect_landed(SZ_4K, 1);
}

/* A copy of two areas at once, of which the first is a dma-buf */
TEST_F_TIMEOUT(import, copy_two_areas, LAB_TIMEOUT)
{
	__u64 iova;

	iova = LAB_BAR_IOVA + SZ_4K;
	test_map_at(self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
	ASSERT_EQ(0, ioas_map(self->lab.iommufd, self->lab.ioas, IOAS_RW | IOAS_FIXED,
			      self->lab.ram, PAGE_BYTES, &iova));
	ASSERT_EQ(0, ioas_copy(self->lab.iommufd, self->lab.ioas, self->lab.ioas, IOAS_RW,
			       LAB_BAR_IOVA, 2 * SZ_4K, &iova));
	test_dma_write(iova);
	expect_landed(0, 1);
	memset(self->lab.ram, 0, PAGE_BYTES);
	test_dma_write(iova + SZ_4K);
	EXPECT_TRUE(lab_holds(self->lab.ram, 1));
}

TEST_F_TIMEOUT(import, starts_inside_the_buffer, LAB_TIMEOUT)
{
	test_map_at(self->lab.ioas, self->dmabuf, 3 * SZ_4K, 2 * SZ_4K, LAB_BAR_IOVA);
	test_dma_write(LAB_BAR_IOVA + SZ_4K);
	expect_landed(4 * SZ_4K, 1);

	/* Not a byte before or after it is mapped */
	test_dma_write(LAB_BAR_IOVA - XFER);
	test_dma_write(LAB_BAR_IOVA + 2 * SZ_4K);
	expect_nothing_landed();
}

/* The offset of the export and the start of the mapping add up */
TEST_F_TIMEOUT(import, part_of_a_partial_export, LAB_TIMEOUT)
{
	int fd = test_export(5 * SZ_4K, 3 * SZ_4K);

	test_map_at(self->lab.ioas, fd, SZ_4K, SZ_4K, LAB_BAR_IOVA);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(6 * SZ_4K, 1);
	test_err_map_at(EINVAL, self->lab.ioas, fd, SZ_4K, 3 * SZ_4K, LAB_BAR_IOVA + PART);
}

/* A BAR with its MSI-X table in the middle: one buffer, mapped in two pieces */
TEST_F_TIMEOUT(import, pieces_around_a_hole, LAB_TIMEOUT)
{
	__u64 rest = self->lab.bar_size - HOLE_END;

	test_map_at(self->lab.ioas, self->dmabuf, 0, HOLE_AT, LAB_BAR_IOVA);
	test_map_at(self->lab.ioas, self->dmabuf, HOLE_END, rest, LAB_BAR_IOVA + HOLE_END);

	test_dma_write(LAB_BAR_IOVA + HOLE_AT - XFER);
	expect_landed(HOLE_AT - XFER, 1);
	test_dma_write(LAB_BAR_IOVA + HOLE_END);
	expect_landed(HOLE_END, 1);
	test_dma_write(LAB_BAR_IOVA + HOLE_AT);
	expect_nothing_landed();

	/* One piece goes, the other stays */
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, HOLE_AT);
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();
	test_dma_write(LAB_BAR_IOVA + HOLE_END);
	expect_landed(HOLE_END, 1);
}

TEST_F_TIMEOUT(import, same_range_many_times, LAB_TIMEOUT)
{
	int i;

	for (i = 0; i < 8; i++)
		test_map_at(self->lab.ioas, self->dmabuf, 0, PART, LAB_BAR_IOVA + i * PART);
	test_dma_write(LAB_BAR_IOVA + 7 * PART);
	expect_landed(0, 1);
	for (i = 0; i < 7; i++)
		test_unmap(self->lab.ioas, LAB_BAR_IOVA + i * PART, PART);
	test_dma_write(LAB_BAR_IOVA + 7 * PART + SZ_4K);
	expect_landed(SZ_4K, 1);
}

TEST_F_TIMEOUT(import, again_and_again, LAB_TIMEOUT)
{
	int i;

	for (i = 0; i < 100; i++) {
		test_map_at(self->lab.ioas, self->dmabuf, 0, self->lab.bar_size, LAB_BAR_IOVA);
		test_unmap(self->lab.ioas, LAB_BAR_IOVA, self->lab.bar_size);
	}
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();
}

TEST_F_TIMEOUT(import, two_ioas, LAB_TIMEOUT)
{
	__u32 other;

	test_ioas_alloc(&other);
	test_map_at(self->lab.ioas, self->dmabuf, 0, PART, LAB_BAR_IOVA);
	test_map_at(other, self->dmabuf, SZ_4K, SZ_4K, LAB_BAR_IOVA);

	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
	test_attach(other);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(SZ_4K, 1);

	test_unmap(self->lab.ioas, LAB_BAR_IOVA, PART);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(SZ_4K, 1);
}

/* A copy lives on without its origin, and without any fd of the buffer */
TEST_F_TIMEOUT(import, copy, LAB_TIMEOUT)
{
	__u32 other;

	test_ioas_alloc(&other);
	test_map_at(self->lab.ioas, self->dmabuf, SZ_4K, PART - SZ_4K, LAB_BAR_IOVA);
	test_copy_at(other, self->lab.ioas, LAB_BAR_IOVA, PART - SZ_4K, LAB_COPY_IOVA);
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, PART - SZ_4K);
	close(self->dmabuf);

	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();
	test_attach(other);
	test_dma_write(LAB_COPY_IOVA);
	expect_landed(SZ_4K, 1);
	test_unmap(other, LAB_COPY_IOVA, PART - SZ_4K);
	test_dma_write(LAB_COPY_IOVA);
	expect_nothing_landed();
}

TEST_F_TIMEOUT(import, copy_within_one_ioas, LAB_TIMEOUT)
{
	test_map_at(self->lab.ioas, self->dmabuf, 0, PART, LAB_BAR_IOVA);
	test_copy_at(self->lab.ioas, self->lab.ioas, LAB_BAR_IOVA, PART, LAB_COPY_IOVA);
	test_dma_write(LAB_COPY_IOVA);
	expect_landed(0, 1);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

/* Readable only: a DMA read passes, a DMA write does not */
TEST_F_TIMEOUT(import, read_only, LAB_TIMEOUT)
{
	__u64 iova = LAB_BAR_IOVA;

	test_map_file(self->lab.ioas, IOAS_RO | IOAS_FIXED, self->dmabuf, 0, PART, &iova);
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();

	lab_fill_bar(&self->lab, 2);
	ASSERT_EQ(0, edu_dma(&self->lab.edu, EDU_FROM_MEMORY, LAB_BAR_IOVA, XFER));
	test_dma_write(LAB_RAM_IOVA);
	EXPECT_TRUE(lab_holds(self->lab.ram, 2));
	lab_clear_bar(&self->lab);
}

/* Not every IOMMU knows of memory that can only be written, so no read is tried */
TEST_F_TIMEOUT(import, write_only, LAB_TIMEOUT)
{
	__u64 iova = LAB_BAR_IOVA;

	test_map_file(self->lab.ioas, IOAS_WO | IOAS_FIXED, self->dmabuf, 0, PART, &iova);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

TEST_F_TIMEOUT(import, unmap, LAB_TIMEOUT)
{
	test_map_at(self->lab.ioas, self->dmabuf, 0, PART, LAB_BAR_IOVA);
	test_err_unmap(ENOENT, self->lab.ioas, LAB_BAR_IOVA, SZ_4K);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);

	test_unmap(self->lab.ioas, LAB_BAR_IOVA, PART);
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();
	test_err_unmap(ENOENT, self->lab.ioas, LAB_BAR_IOVA, PART);
}

/* First map, then attach the first device */
TEST_F_TIMEOUT(import, device_attached_later, LAB_TIMEOUT)
{
	__u32 other;

	test_ioas_alloc(&other);
	test_map_at(other, self->dmabuf, SZ_4K, PART, LAB_BAR_IOVA);
	test_detach();
	test_attach(other);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(SZ_4K, 1);

	/* Away and back */
	test_detach();
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();
	test_attach(other);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(SZ_4K, 1);
}

/* A domain that joins an IOAS which has one already, and survives it */
TEST_F_TIMEOUT(import, domain_attached_later, LAB_TIMEOUT)
{
	__u32 hwpt;

	test_map_at(self->lab.ioas, self->dmabuf, 0, PART, LAB_BAR_IOVA);
	test_hwpt_alloc(&hwpt);
	test_attach(hwpt);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);

	test_unmap(self->lab.ioas, LAB_BAR_IOVA, PART);
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();

	/* What is mapped now is for this domain alone */
	test_map_at(self->lab.ioas, self->dmabuf, SZ_4K, SZ_4K, LAB_BAR_IOVA);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(SZ_4K, 1);
}

TEST_F_TIMEOUT(import, mapping_keeps_the_buffer, LAB_TIMEOUT)
{
	long before = dmabuf_count();

	test_map_at(self->lab.ioas, self->dmabuf, 0, PART, LAB_BAR_IOVA);
	close(self->dmabuf);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
	EXPECT_EQ(before, dmabuf_count());
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, PART);
	EXPECT_TRUE(wait_until(dmabuf_count() == before - 1, LEAK_WAIT_MS));
}

TEST_F_TIMEOUT(import, destroy_ioas, LAB_TIMEOUT)
{
	long before = dmabuf_count();
	__u32 other;

	test_ioas_alloc(&other);
	test_map_at(other, self->dmabuf, 0, PART, LAB_BAR_IOVA);
	test_map_at(other, self->dmabuf, SZ_4K, PART, LAB_COPY_IOVA);
	close(self->dmabuf);
	test_ioas_destroy(other);
	EXPECT_TRUE(wait_until(dmabuf_count() == before - 1, LEAK_WAIT_MS));
}

/* The ranges follow each other in the buffer in the order they were given */
TEST_F_TIMEOUT(import, several_ranges, LAB_TIMEOUT)
{
	const struct vfio_region_dma_range ranges[] = {
		{ .offset = 4 * SZ_4K, .length = 2 * SZ_4K },
		{ .offset = 0, .length = SZ_4K },
		{ .offset = 7 * SZ_4K, .length = SZ_4K },
	};
	int fd = test_fd(vfio_dev_export(&self->lab.peer, PEER_BAR, O_RDWR, ranges,
					 ARRAY_SIZE(ranges)));

	test_map_at(self->lab.ioas, fd, 0, 4 * SZ_4K, LAB_BAR_IOVA);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(4 * SZ_4K, 1);
	test_dma_write(LAB_BAR_IOVA + 2 * SZ_4K);
	expect_landed(0, 1);
	test_dma_write(LAB_BAR_IOVA + 4 * SZ_4K - XFER);
	expect_landed(8 * SZ_4K - XFER, 1);

	/* One transfer over the border between two ranges */
	test_dma_write(LAB_BAR_IOVA + 3 * SZ_4K - XFER / 2);
	EXPECT_EQ((long)(SZ_4K - XFER / 2), lab_first_set(&self->lab, 0));
	EXPECT_EQ((long)(7 * SZ_4K), lab_first_set(&self->lab, SZ_4K));
	EXPECT_EQ(NOTHING, lab_first_set(&self->lab, 7 * SZ_4K + XFER / 2));
	lab_clear_bar(&self->lab);

	/* A slice that begins in one range and ends in the next */
	test_map_at(self->lab.ioas, fd, SZ_4K, 2 * SZ_4K, LAB_COPY_IOVA);
	test_dma_write(LAB_COPY_IOVA);
	expect_landed(5 * SZ_4K, 1);
	test_dma_write(LAB_COPY_IOVA + SZ_4K);
	expect_landed(0, 1);
	test_err_map_at(EINVAL, self->lab.ioas, fd, 0, 5 * SZ_4K, LAB_COPY_IOVA + PART);
}

/*
 * Of different sizes, and with holes of different sizes between most of them, so that
 * one is aligned in another way than the next. Returns where in the BAR they end.
 */
static __u64 spread_ranges(struct vfio_region_dma_range *ranges, unsigned int nr)
{
	static const unsigned int pages[] = { 1, 3, 2, 16, 5 };
	static const unsigned int hole_pages[] = { 1, 0, 2 };
	__u64 offset = SZ_4K, end = offset;
	unsigned int i;

	for (i = 0; i < nr; i++) {
		ranges[i].offset = offset;
		ranges[i].length = pages[i % ARRAY_SIZE(pages)] * SZ_4K;
		end = offset + ranges[i].length;
		offset = end + hole_pages[i % ARRAY_SIZE(hole_pages)] * SZ_4K;
	}
	return end;
}

static void use_ranges(struct __test_metadata *_metadata, FIXTURE_DATA(import) *self,
		       const struct vfio_region_dma_range *ranges, unsigned int nr)
{
	const unsigned int middle = nr / 2, last = nr - 1;
	int fd = test_fd(vfio_dev_export(&self->lab.peer, PEER_BAR, O_RDWR, ranges, nr));
	__u64 iova = LAB_BAR_IOVA, size = 0;
	unsigned int i;

	for (i = 0; i < nr; i++)
		size += ranges[i].length;
	test_map_at(self->lab.ioas, fd, 0, size, LAB_BAR_IOVA);
	for (i = 0; i < nr; i++) {
		if (i == 0 || i == middle || i == last) {
			test_dma_write(iova);
			expect_landed(ranges[i].offset, 1);
		}
		iova += ranges[i].length;
	}
	test_dma_write(iova - XFER);
	expect_landed(ranges[last].offset + ranges[last].length - XFER, 1);
	test_dma_write(iova);
	expect_nothing_landed();
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, size);
	close(fd);
}

/* As few and as many as there can be */
TEST_F_TIMEOUT(import, numbers_of_ranges, LAB_TIMEOUT)
{
	static const unsigned int numbers[] = { 1, 2, MAX_RANGES - 1, MAX_RANGES };
	struct vfio_region_dma_range ranges[MAX_RANGES];
	unsigned int i;

	if (spread_ranges(ranges, MAX_RANGES) > self->lab.bar_size)
		SKIP(return, "the BAR is too small for %u ranges", MAX_RANGES);
	for (i = 0; i < ARRAY_SIZE(numbers); i++)
		use_ranges(_metadata, self, ranges, numbers[i]);
}

static int drop_capability(int cap)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	if (syscall(SYS_capget, &header, data))
		return -errno;
	data[CAP_TO_INDEX(cap)].effective &= ~CAP_TO_MASK(cap);
	return syscall(SYS_capset, &header, data) ? -errno : 0;
}

/* Memory is pinned, and that is limited; MMIO is not */
TEST_F_TIMEOUT(import, not_accounted, LAB_TIMEOUT)
{
	int memfd = test_fd(memfd_create("not_accounted", 0));

	ASSERT_EQ(0, ftruncate(memfd, PART));
	ASSERT_EQ(0, setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){ 0 }));
	ASSERT_EQ(0, drop_capability(CAP_IPC_LOCK));
	test_err_map_at(ENOMEM, self->lab.ioas, memfd, 0, PART, LAB_COPY_IOVA);
	test_map_at(self->lab.ioas, self->dmabuf, 0, PART, LAB_BAR_IOVA);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

TEST_F_TIMEOUT(import, refused_flags, LAB_TIMEOUT)
{
	__u64 iova = LAB_BAR_IOVA;
	int bit;

	for (bit = 3; bit < 32; bit++)
		test_err_map_file(EOPNOTSUPP, self->lab.ioas, IOAS_RW | IOAS_FIXED | 1U << bit,
				  self->dmabuf, 0, PART, &iova);
	test_err_map_file(EINVAL, self->lab.ioas, IOAS_FIXED, self->dmabuf, 0, PART, &iova);
	test_err_map_file(EINVAL, self->lab.ioas, 0, self->dmabuf, 0, PART, &iova);
	test_err_unmap(ENOENT, self->lab.ioas, LAB_BAR_IOVA, PART);
}

TEST_F_TIMEOUT(import, refused_ioas, LAB_TIMEOUT)
{
	test_err_map_at(ENOENT, 0, self->dmabuf, 0, PART, LAB_BAR_IOVA);
	test_err_map_at(ENOENT, UINT_MAX, self->dmabuf, 0, PART, LAB_BAR_IOVA);
	/* It exists, but as a device */
	test_err_map_at(ENOENT, self->lab.edu.dev.devid, self->dmabuf, 0, PART, LAB_BAR_IOVA);
}

TEST_F_TIMEOUT(import, refused_fd, LAB_TIMEOUT)
{
	int fds[] = {
		open("/dev/null", O_RDWR),
		open("/dev/zero", O_RDWR),
		open("/proc/self/maps", O_RDONLY),
		eventfd(0, 0),
		socket(AF_UNIX, SOCK_STREAM, 0),
		self->lab.iommufd,
		self->lab.peer.fd,
	};
	int closed = dup(self->dmabuf);
	unsigned int i;

	test_err_map_at(EBADF, self->lab.ioas, -1, 0, PART, LAB_BAR_IOVA);
	test_err_map_at(EBADF, self->lab.ioas, INT_MIN, 0, PART, LAB_BAR_IOVA);
	close(closed);
	test_err_map_at(EBADF, self->lab.ioas, closed, 0, PART, LAB_BAR_IOVA);

	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		ASSERT_LE(0, fds[i]);
		EXPECT_EQ(-EINVAL, ioas_map_file(self->lab.iommufd, self->lab.ioas, IOAS_RW,
						 fds[i], 0, SZ_4K, &(__u64){ 0 })) {
			TH_LOG("file %u", i);
		}
	}
}

static int udmabuf_create(__u64 size)
{
	struct udmabuf_create create = {
		.size = size,
	};
	int dev, memfd, fd;

	dev = open("/dev/udmabuf", O_RDWR);
	if (dev < 0)
		return -errno;
	memfd = memfd_create("udmabuf", MFD_ALLOW_SEALING);
	if (memfd < 0 || ftruncate(memfd, size) || fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK))
		return -errno;
	create.memfd = memfd;
	fd = ioctl(dev, UDMABUF_CREATE, &create);
	return fd < 0 ? -errno : fd;
}

TEST_F_TIMEOUT(import, refused_exporter, LAB_TIMEOUT)
{
	int fd = udmabuf_create(PART);

	REQUIRE(fd >= 0, "no /dev/udmabuf");
	test_err_map_at(EOPNOTSUPP, self->lab.ioas, fd, 0, PART, LAB_BAR_IOVA);
	test_err_unmap(ENOENT, self->lab.ioas, LAB_BAR_IOVA, PART);
}

/* Both with and without a domain, which knows of an alignment */
static void refuse_ranges(struct __test_metadata *_metadata, FIXTURE_DATA(import) *self,
			  __u32 ioas)
{
	const struct {
		__u64 start, length;
	} bad[] = {
		{ 0, 0 },
		{ SZ_4K, 0 },
		{ 0, self->lab.bar_size + SZ_4K },
		{ SZ_4K, self->lab.bar_size },
		{ self->lab.bar_size, SZ_4K },
		{ self->lab.bar_size - SZ_4K, 2 * SZ_4K },
		{ 1ULL << 62, SZ_4K },
		{ 1, SZ_4K },
		{ SZ_4K / 2, SZ_4K },
		{ 0, SZ_4K - 1 },
		{ 0, SZ_4K + 1 },
		{ SZ_4K, SZ_4K / 2 },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, ioas_map_file(self->lab.iommufd, ioas, IOAS_RW, self->dmabuf,
						 bad[i].start, bad[i].length, &(__u64){ 0 })) {
			TH_LOG("start %#llx length %#llx", bad[i].start, bad[i].length);
		}
	}
}

TEST_F_TIMEOUT(import, refused_ranges, LAB_TIMEOUT)
{
	__u32 empty;

	test_ioas_alloc(&empty);
	refuse_ranges(_metadata, self, empty);
	refuse_ranges(_metadata, self, self->lab.ioas);
}

TEST_F_TIMEOUT(import, refused_arithmetic, LAB_TIMEOUT)
{
	lab_refuse_arithmetic(_metadata, &self->lab, self->dmabuf);
}

TEST_F_TIMEOUT(import, refused_iova, LAB_TIMEOUT)
{
	test_map_at(self->lab.ioas, self->dmabuf, 0, PART, LAB_BAR_IOVA);
	test_err_map_at(EEXIST, self->lab.ioas, self->dmabuf, 0, PART, LAB_BAR_IOVA);
	test_err_map_at(EEXIST, self->lab.ioas, self->dmabuf, 0, SZ_4K,
			LAB_BAR_IOVA + PART - SZ_4K);
	test_err_map_at(EEXIST, self->lab.ioas, self->dmabuf, 0, PART,
			LAB_BAR_IOVA - PART + SZ_4K);
	test_err_map_at(EINVAL, self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_COPY_IOVA + 1);
	test_err_map_at(EOVERFLOW, self->lab.ioas, self->dmabuf, 0, 2 * SZ_4K, -SZ_4K);
	test_err_map_at(EOVERFLOW, self->lab.ioas, self->dmabuf, 0, SZ_4K, ULLONG_MAX);

	/* The one that was there is none the worse */
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

/* Structures grow: too short is refused, longer is fine as long as it asks for nothing */
TEST_F_TIMEOUT(import, size_of_the_structure, LAB_TIMEOUT)
{
	struct {
		struct iommu_ioas_map_file cmd;
		__u8 tail[64];
	} arg = {
		.cmd.flags = IOAS_RW,
		.cmd.ioas_id = self->lab.ioas,
		.cmd.fd = self->dmabuf,
		.cmd.length = PART,
	};
	unsigned int size;

	for (size = 0; size < sizeof(arg.cmd); size++) {
		arg.cmd.size = size;
		EXPECT_EQ(-1, ioctl(self->lab.iommufd, IOMMU_IOAS_MAP_FILE, &arg));
		EXPECT_EQ(EINVAL, errno);
	}
	for (size = sizeof(arg.cmd) + 1; size <= sizeof(arg); size++) {
		arg.cmd.size = size;
		arg.tail[size - sizeof(arg.cmd) - 1] = 1;
		EXPECT_EQ(-1, ioctl(self->lab.iommufd, IOMMU_IOAS_MAP_FILE, &arg));
		EXPECT_EQ(E2BIG, errno);
		arg.tail[size - sizeof(arg.cmd) - 1] = 0;
		EXPECT_EQ(0, ioctl(self->lab.iommufd, IOMMU_IOAS_MAP_FILE, &arg));
	}
	EXPECT_EQ(-1, ioctl(self->lab.iommufd, IOMMU_IOAS_MAP_FILE, NULL));
	EXPECT_EQ(EFAULT, errno);
}

/* An argument that is wrong in two ways: what is checked first is part of the ABI */
TEST_F_TIMEOUT(import, order_of_checks, LAB_TIMEOUT)
{
	__u64 iova = 0;

	test_err_map_file(EOPNOTSUPP, 0, IOAS_RW | 1U << 31, -1, 1, 0, &iova);
	test_err_map_file(EOVERFLOW, 0, 0, -1, 0, ULLONG_MAX, &iova);
	test_err_map_file(EINVAL, 0, 0, -1, 0, SZ_4K, &iova);
	test_err_map_file(ENOENT, 0, IOAS_RW, -1, 1, 0, &iova);
	test_err_map_file(EBADF, self->lab.ioas, IOAS_RW, -1, 1, SZ_4K, &iova);
}

TEST_HARNESS_MAIN
