// SPDX-License-Identifier: GPL-2.0-only
/*
 * IOMMU_IOAS_MAP_FILE of a memfd, the other kind of file it takes: what the CPU
 * sees in the file and what the device sees at the IOVA is the same memory.
 */
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/time.h>

#include <linux/falloc.h>
#include <linux/memfd.h>

#include "lab.h"

#define PAGES		16ULL
#define HUGE_BYTES	(2ULL << 20)
#define MAP_IOVA	LAB_BAR_IOVA
#define NOBODY		65534

/* Only the initiator is needed: no device's memory is involved */
FIXTURE(memfd)
{
	struct lab lab;
	int fd;
	__u8 *va;
	__u64 size;
};

FIXTURE_VARIANT(memfd)
{
	unsigned int flags;
	bool huge;
};

FIXTURE_VARIANT_ADD(memfd, pages)
{
	.flags = MFD_ALLOW_SEALING,
};

FIXTURE_VARIANT_ADD(memfd, hugetlb)
{
	.flags = MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_HUGE_2MB,
	.huge = true,
};

FIXTURE_SETUP(memfd)
{
	self->lab.peer.fd = -1;
	self->lab.buffers = dmabuf_count();
	self->lab.iommufd = iommufd_open();
	REQUIRE(self->lab.iommufd >= 0, "no /dev/iommu");
	lab_open_importer(_metadata, &self->lab);

	self->size = variant->huge ? 2 * HUGE_BYTES : PAGES * SZ_4K;
	self->fd = memfd_create("memfd_test", variant->flags);
	REQUIRE(self->fd >= 0, "no such memfd");
	ASSERT_EQ(0, ftruncate(self->fd, self->size));
	self->va = mmap(NULL, self->size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	REQUIRE(self->va != MAP_FAILED, "too few huge pages");
	test_load(1);
}

FIXTURE_TEARDOWN(memfd)
{
	if (self->va)
		munmap(self->va, self->size);
	lab_close(_metadata, &self->lab);
}

/* A transfer to this IOVA must be seen at this offset of the file */
#define test_lands_in_file(_iova, _offset)			\
do {								\
	memset(self->va + (_offset), 0, XFER);			\
	test_dma_write(_iova);					\
	EXPECT_TRUE(lab_holds(self->va + (_offset), 1));	\
} while (0)

TEST_F_TIMEOUT(memfd, whole, LAB_TIMEOUT)
{
	test_map_at(self->lab.ioas, self->fd, 0, self->size, MAP_IOVA);
	test_lands_in_file(MAP_IOVA, 0);
	test_lands_in_file(MAP_IOVA + self->size - XFER, self->size - XFER);
	test_unmap(self->lab.ioas, MAP_IOVA, self->size);

	memset(self->va, 0, XFER);
	test_dma_write(MAP_IOVA);
	EXPECT_EQ(0, self->va[0]);
}

/* What the CPU wrote is what the device reads */
TEST_F_TIMEOUT(memfd, device_reads, LAB_TIMEOUT)
{
	test_map_at(self->lab.ioas, self->fd, 0, self->size, MAP_IOVA);
	pattern_fill(self->va + SZ_4K, 7);
	ASSERT_EQ(0, edu_dma(&self->lab.edu, EDU_FROM_MEMORY, MAP_IOVA + SZ_4K, XFER));
	test_dma_write(LAB_RAM_IOVA);
	EXPECT_TRUE(lab_holds(self->lab.ram, 7));
}

TEST_F_TIMEOUT(memfd, starts_inside_the_file, LAB_TIMEOUT)
{
	__u64 half = self->size / 2;

	test_map_at(self->lab.ioas, self->fd, half, half, MAP_IOVA);
	test_lands_in_file(MAP_IOVA + SZ_4K, half + SZ_4K);
	test_map_at(self->lab.ioas, self->fd, SZ_4K, 2 * SZ_4K, LAB_COPY_IOVA);
	test_lands_in_file(LAB_COPY_IOVA + SZ_4K, 2 * SZ_4K);
}

TEST_F_TIMEOUT(memfd, kernel_chooses_iova, LAB_TIMEOUT)
{
	__u64 iova = 0;

	test_map_file(self->lab.ioas, IOAS_RW, self->fd, 0, self->size, &iova);
	ASSERT_NE(0, iova);
	test_lands_in_file(iova + SZ_4K, SZ_4K);
	test_unmap(self->lab.ioas, iova, self->size);
}

TEST_F_TIMEOUT(memfd, mapped_twice, LAB_TIMEOUT)
{
	test_map_at(self->lab.ioas, self->fd, 0, self->size, MAP_IOVA);
	test_map_at(self->lab.ioas, self->fd, SZ_4K, SZ_4K, LAB_COPY_IOVA);
	test_lands_in_file(LAB_COPY_IOVA, SZ_4K);
	test_unmap(self->lab.ioas, LAB_COPY_IOVA, SZ_4K);
	test_lands_in_file(MAP_IOVA + SZ_4K, SZ_4K);
}

/* Neither the fd nor a CPU mapping has to stay */
TEST_F_TIMEOUT(memfd, mapping_keeps_the_memory, LAB_TIMEOUT)
{
	int again = dup(self->fd);

	test_map_at(self->lab.ioas, self->fd, 0, self->size, MAP_IOVA);
	close(self->fd);
	munmap(self->va, self->size);
	test_dma_write(MAP_IOVA);
	self->va = mmap(NULL, self->size, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0);
	ASSERT_NE(MAP_FAILED, self->va);
	EXPECT_TRUE(lab_holds(self->va, 1));
}

TEST_F_TIMEOUT(memfd, copy, LAB_TIMEOUT)
{
	__u32 other;

	test_ioas_alloc(&other);
	test_map_at(self->lab.ioas, self->fd, 0, self->size, MAP_IOVA);
	test_copy_at(other, self->lab.ioas, MAP_IOVA, self->size, MAP_IOVA);
	test_unmap(self->lab.ioas, MAP_IOVA, self->size);
	test_attach(other);
	test_lands_in_file(MAP_IOVA + SZ_4K, SZ_4K);
	test_unmap(other, MAP_IOVA, self->size);
}

TEST_F_TIMEOUT(memfd, device_attached_later, LAB_TIMEOUT)
{
	__u32 other;

	test_ioas_alloc(&other);
	test_map_at(other, self->fd, SZ_4K, SZ_4K, MAP_IOVA);
	test_attach(other);
	test_lands_in_file(MAP_IOVA, SZ_4K);
}

TEST_F_TIMEOUT(memfd, domain_attached_later, LAB_TIMEOUT)
{
	__u32 hwpt;

	test_map_at(self->lab.ioas, self->fd, 0, self->size, MAP_IOVA);
	test_hwpt_alloc(&hwpt);
	test_attach(hwpt);
	test_lands_in_file(MAP_IOVA, 0);
}

/* Whether there is a device, for which pages would be pinned, or not */
TEST_F_TIMEOUT(memfd, refused_ranges, LAB_TIMEOUT)
{
	const struct {
		__u64 start, length;
	} bad[] = {
		{ 0, 0 },
		{ 0, self->size + SZ_4K },
		{ SZ_4K, self->size },
		{ self->size, SZ_4K },
		{ 4 * self->size, SZ_4K },
		{ 1ULL << 62, SZ_4K },
	};
	__u32 ioas[] = { self->lab.ioas, 0 };
	unsigned int i, j;

	test_ioas_alloc(&ioas[1]);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		for (j = 0; j < ARRAY_SIZE(ioas); j++) {
			test_err_map_file(EINVAL, ioas[j], IOAS_RW, self->fd, bad[i].start,
					  bad[i].length, &(__u64){ 0 }) {
				TH_LOG("start %#llx length %#llx", bad[i].start, bad[i].length);
			}
		}
	}
}

/* Only an IOMMU has pages of a size that matters */
TEST_F_TIMEOUT(memfd, refused_alignment, LAB_TIMEOUT)
{
	__u64 iova = MAP_IOVA;

	test_err_map_file(EINVAL, self->lab.ioas, IOAS_RW, self->fd, 1, SZ_4K, &iova);
	test_err_map_file(EINVAL, self->lab.ioas, IOAS_RW, self->fd, 0, SZ_4K + 1, &iova);
}

TEST_F_TIMEOUT(memfd, refused_arithmetic, LAB_TIMEOUT)
{
	lab_refuse_arithmetic(_metadata, &self->lab, self->fd);
}

/* Who may not write to the file may not have a device do it */
TEST_F_TIMEOUT(memfd, opened_read_only, LAB_TIMEOUT)
{
	__u64 iova = MAP_IOVA;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	fd = open(path, O_RDONLY);
	ASSERT_LE(0, fd);
	test_err_map_at(EPERM, self->lab.ioas, fd, 0, SZ_4K, MAP_IOVA);
	test_err_map_file(EPERM, self->lab.ioas, IOAS_WO, fd, 0, SZ_4K, &iova);

	test_map_file(self->lab.ioas, IOAS_RO | IOAS_FIXED, fd, 0, SZ_4K, &iova);
	pattern_fill(self->va, 3);
	test_dma_write(MAP_IOVA);
	EXPECT_TRUE(lab_holds(self->va, 3));
}

TEST_F_TIMEOUT(memfd, sealed, LAB_TIMEOUT)
{
	__u64 iova = MAP_IOVA;

	pattern_fill(self->va, 3);
	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	test_err_map_at(EPERM, self->lab.ioas, self->fd, 0, SZ_4K, MAP_IOVA);

	munmap(self->va, self->size);
	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE));
	self->va = mmap(NULL, self->size, PROT_READ, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, self->va);

	test_err_map_at(EPERM, self->lab.ioas, self->fd, 0, SZ_4K, MAP_IOVA);
	test_map_file(self->lab.ioas, IOAS_RO | IOAS_FIXED, self->fd, 0, SZ_4K, &iova);
	test_dma_write(MAP_IOVA);
	EXPECT_TRUE(lab_holds(self->va, 3));
}

#define test_in_child(_call)				\
do {							\
	int __status;					\
	pid_t __pid;					\
							\
	__pid = fork();					\
	ASSERT_LE(0, __pid);				\
	if (!__pid)					\
		_exit((_call) ? 1 : 0);			\
	ASSERT_EQ(__pid, waitpid(__pid, &__status, 0));	\
	ASSERT_EQ(0, __status);				\
} while (0)

/* DMA that can write keeps the seal away, even if it cannot start yet */
TEST_F_TIMEOUT(memfd, sealed_while_mapped, LAB_TIMEOUT)
{
	__u64 iova = MAP_IOVA;
	__u32 other;

	munmap(self->va, self->size);
	self->va = NULL;
	test_ioas_alloc(&other);
	test_map_at(other, self->fd, 0, self->size, MAP_IOVA);
	EXPECT_EQ(-1, fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE));
	EXPECT_EQ(EBUSY, errno);
	test_unmap(other, MAP_IOVA, self->size);

	test_map_file(other, IOAS_RO | IOAS_FIXED, self->fd, 0, self->size, &iova);
	EXPECT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE));
	test_attach(other);
}

/* An IOAS that loses its device lets go of the pages, and looks for them again later */
TEST_F_TIMEOUT(memfd, changed_between_attaches, LAB_TIMEOUT)
{
	const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	__u64 half = self->size / 2;
	__u32 other;

	test_ioas_alloc(&other);
	test_map_at(other, self->fd, 0, self->size, MAP_IOVA);
	test_attach(other);
	test_lands_in_file(MAP_IOVA + half, half);

	test_attach(self->lab.ioas);
	ASSERT_EQ(0, fallocate(self->fd, punch, half, half));
	test_attach(other);
	EXPECT_EQ(0, self->va[half]);
	test_lands_in_file(MAP_IOVA + half, half);

	test_attach(self->lab.ioas);
	ASSERT_EQ(0, ftruncate(self->fd, half));
	EXPECT_EQ(-EINVAL, lab_attach(&self->lab, other));
	test_unmap(other, MAP_IOVA, self->size);

	/* Where the device is now it is none the worse */
	test_attach(self->lab.ioas);
	test_map_at(self->lab.ioas, self->fd, 0, half, MAP_IOVA);
	test_lands_in_file(MAP_IOVA, 0);
}

/* A child maps, and is gone: the address space is the parent's as well */
TEST_F_TIMEOUT(memfd, mapped_by_a_child, LAB_TIMEOUT)
{
	__u64 iova = MAP_IOVA;

	test_in_child(ioas_map_file(self->lab.iommufd, self->lab.ioas, IOAS_RW | IOAS_FIXED,
				    self->fd, 0, self->size, &iova));
	test_lands_in_file(MAP_IOVA, 0);
	test_unmap(self->lab.ioas, MAP_IOVA, self->size);
}

/* And the other way round: the parent maps, a child that was there unmaps */
TEST_F_TIMEOUT(memfd, unmapped_by_a_child, LAB_TIMEOUT)
{
	test_map_at(self->lab.ioas, self->fd, 0, self->size, MAP_IOVA);
	test_in_child(ioas_unmap(self->lab.iommufd, self->lab.ioas, MAP_IOVA, self->size, NULL));
	test_err_unmap(ENOENT, self->lab.ioas, MAP_IOVA, self->size);
}

/* Pages that nobody has touched yet come into being */
TEST_F_TIMEOUT(memfd, untouched, LAB_TIMEOUT)
{
	__u64 at = self->size / 2;

	test_map_at(self->lab.ioas, self->fd, at, SZ_4K, MAP_IOVA);
	test_dma_write(MAP_IOVA);
	EXPECT_TRUE(lab_holds(self->va + at, 1));
	EXPECT_EQ(0, self->va[at - 1]);
}

/* What fallocate() has left to be cleared later is cleared before the device writes there */
TEST_F_TIMEOUT(memfd, allocated_beforehand, LAB_TIMEOUT)
{
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			       self->size));
	ASSERT_EQ(0, fallocate(self->fd, 0, 0, self->size));
	test_map_at(self->lab.ioas, self->fd, 0, self->size, MAP_IOVA);
	test_dma_write(MAP_IOVA + SZ_4K);
	EXPECT_TRUE(lab_holds(self->va + SZ_4K, 1));
	EXPECT_EQ(0, self->va[0]);
}

/* What was there when the file was mapped is gone when it is to be pinned */
TEST_F_TIMEOUT(memfd, shortened, LAB_TIMEOUT)
{
	__u64 half = self->size / 2;
	__u32 other;

	test_ioas_alloc(&other);
	test_map_at(other, self->fd, half, half, MAP_IOVA);
	ASSERT_EQ(0, ftruncate(self->fd, half));
	ASSERT_EQ(-EINVAL, lab_attach(&self->lab, other));
	ASSERT_EQ(0, ftruncate(self->fd, self->size));
	test_attach(other);
	test_lands_in_file(MAP_IOVA, half);
}

/* Memory that this process has locked, in kB */
static long locked_kb(void)
{
	return lab_read_number("/proc/self/status", "VmLck: %ld kB");
}

/*
 * Who has no privilege has it counted; as VFIO does it, where that was asked for: as
 * locked by the process that has mapped it, whoever else has it pinned and unpinned.
 */
TEST_F_TIMEOUT(memfd, counted_as_locked, LAB_TIMEOUT)
{
	struct iommu_option rlimit_mode = {
		.size = sizeof(rlimit_mode),
		.option_id = IOMMU_OPTION_RLIMIT_MODE,
		.op = IOMMU_OPTION_OP_SET,
		.val64 = 1,
	};
	const long want = (self->size + PAGE_BYTES) / 1024;
	__u64 iova = LAB_RAM_IOVA;
	long before;
	__u32 other;

	edu_close(&self->lab.edu);
	close(self->lab.iommufd);
	self->lab.iommufd = iommufd_open();
	ASSERT_EQ(0, ioctl(self->lab.iommufd, IOMMU_OPTION, &rlimit_mode));
	lab_open_importer(_metadata, &self->lab);
	ASSERT_EQ(0, seteuid(NOBODY));

	test_ioas_alloc(&other);
	test_map_at(other, self->fd, 0, self->size, MAP_IOVA);
	ASSERT_EQ(0, ioas_map(self->lab.iommufd, other, IOAS_RW | IOAS_FIXED, self->lab.ram,
			      PAGE_BYTES, &iova));
	before = locked_kb();
	test_in_child(lab_attach(&self->lab, other));
	EXPECT_EQ(before + want, locked_kb());
	test_in_child(ioas_unmap(self->lab.iommufd, other, MAP_IOVA, self->size, NULL));
	test_in_child(ioas_unmap(self->lab.iommufd, other, LAB_RAM_IOVA, PAGE_BYTES, NULL));
	EXPECT_EQ(before, locked_kb());

	test_map_at(other, self->fd, 0, self->size, MAP_IOVA);
	ASSERT_EQ(0, ioas_map(self->lab.iommufd, other, IOAS_RW | IOAS_FIXED, self->lab.ram,
			      PAGE_BYTES, &iova));
	EXPECT_EQ(before + want, locked_kb());
	test_unmap(other, MAP_IOVA, self->size);
	test_unmap(other, LAB_RAM_IOVA, PAGE_BYTES);
	EXPECT_EQ(before, locked_kb());
	ASSERT_EQ(0, seteuid(0));
}

/*
 * The pool of huge pages, and what of it is promised to whom. Everything is back
 * at the end of a test, which the teardown looks at.
 */
struct pool {
	long free;
	long reserved;
};

static struct pool pool_read(void)
{
	return (struct pool){
		.free = lab_read_number("/proc/meminfo", "HugePages_Free: %ld"),
		.reserved = lab_read_number("/proc/meminfo", "HugePages_Rsvd: %ld"),
	};
}

FIXTURE(huge)
{
	struct lab lab;
	struct pool before;
	int fd;
	__u64 size;
	volatile __u8 *va;
	__u64 va_size;
};

FIXTURE_SETUP(huge)
{
	self->before = pool_read();
	self->lab.peer.fd = -1;
	self->lab.buffers = dmabuf_count();
	self->lab.iommufd = iommufd_open();
	REQUIRE(self->lab.iommufd >= 0, "no /dev/iommu");
	lab_open_importer(_metadata, &self->lab);
	self->size = 2 * HUGE_BYTES;
	REQUIRE(self->before.free - self->before.reserved >= 8, "too few huge pages");
	self->fd = memfd_create("huge", MFD_HUGETLB | MFD_HUGE_2MB);
	REQUIRE(self->fd >= 0, "no such memfd");
	ASSERT_EQ(0, ftruncate(self->fd, self->size));
}

FIXTURE_TEARDOWN(huge)
{
	struct pool pool;

	if (self->va_size)
		munmap((void *)self->va, self->va_size);
	lab_close(_metadata, &self->lab);
	pool = pool_read();
	EXPECT_EQ(self->before.free, pool.free);
	EXPECT_EQ(self->before.reserved, pool.reserved);
}

/* Of what there was before the test, so many are used and so many reserved */
#define expect_pool(_used, _reserved)						\
do {										\
	struct pool __pool = pool_read();					\
										\
	EXPECT_EQ(self->before.free - (_used), __pool.free);			\
	EXPECT_EQ(self->before.reserved + (_reserved), __pool.reserved);	\
} while (0)

/* Reserves as many pages, of the file or of nobody's */
#define test_reserve(_flags, _fd, _size)					\
do {										\
	self->va = mmap(NULL, _size, PROT_READ | PROT_WRITE, _flags, _fd, 0);	\
	ASSERT_NE(MAP_FAILED, self->va);					\
	self->va_size = (_size);						\
} while (0)

static int punch_hole(int fd, __u64 size)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, size);
}

/* Nobody has reserved anything, and nothing is taken from who has */
TEST_F_TIMEOUT(huge, sparse, LAB_TIMEOUT)
{
	test_map_at(self->lab.ioas, self->fd, HUGE_BYTES, HUGE_BYTES, MAP_IOVA);
	expect_pool(1, 0);
	test_map_at(self->lab.ioas, self->fd, 0, self->size, LAB_COPY_IOVA);
	expect_pool(2, 0);
	test_unmap(self->lab.ioas, MAP_IOVA, HUGE_BYTES);
	test_unmap(self->lab.ioas, LAB_COPY_IOVA, self->size);
	expect_pool(2, 0);
	ASSERT_EQ(0, punch_hole(self->fd, self->size));
	expect_pool(0, 0);
}

/* The hole takes the pages from the file, and they are freed with the mapping */
TEST_F_TIMEOUT(huge, hole_punched_while_mapped, LAB_TIMEOUT)
{
	test_map_at(self->lab.ioas, self->fd, 0, self->size, MAP_IOVA);
	ASSERT_EQ(0, punch_hole(self->fd, self->size));
	expect_pool(2, 0);
	test_map_at(self->lab.ioas, self->fd, 0, self->size, LAB_COPY_IOVA);
	expect_pool(4, 0);
	test_unmap(self->lab.ioas, MAP_IOVA, self->size);
	expect_pool(2, 0);
}

/* What mmap() has reserved for the file is used up */
TEST_F_TIMEOUT(huge, reserved, LAB_TIMEOUT)
{
	test_reserve(MAP_SHARED, self->fd, self->size);
	expect_pool(0, 2);
	test_map_at(self->lab.ioas, self->fd, 0, HUGE_BYTES, MAP_IOVA);
	expect_pool(1, 1);
	self->va[0] = 1;
	self->va[HUGE_BYTES] = 1;
	expect_pool(2, 0);
}

/* What is reserved for others is not, even if nothing else is left */
TEST_F_TIMEOUT(huge, none_left, LAB_TIMEOUT)
{
	long left = self->before.free - self->before.reserved - 1;
	__u64 at;

	test_reserve(MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, left * HUGE_BYTES);
	test_err_map_at(ENOMEM, self->lab.ioas, self->fd, 0, self->size, MAP_IOVA);
	expect_pool(1, left);
	ASSERT_EQ(0, punch_hole(self->fd, self->size));
	expect_pool(0, left);
	for (at = 0; at < left * HUGE_BYTES; at += HUGE_BYTES)
		self->va[at] = 1;
	expect_pool(left, 0);
}

#define ROUNDS 100

/* Each round allocates the pages anew: the child before has punched a hole */
static void map_and_punch(struct lab *lab, int fd, __u64 size, __u64 iova)
{
	int i;

	for (i = 0; i < ROUNDS; i++) {
		if (ioas_map_file(lab->iommufd, lab->ioas, IOAS_RW | IOAS_FIXED, fd, 0, size,
				  &iova))
			_exit(1);
		if (ioas_unmap(lab->iommufd, lab->ioas, iova, size, NULL) ||
		    punch_hole(fd, size))
			_exit(2);
	}
	_exit(0);
}

/* Three at once: two map and punch holes, the third has page faults */
TEST_F_TIMEOUT(huge, races, LAB_TIMEOUT)
{
	const __u64 iovas[] = { MAP_IOVA, LAB_COPY_IOVA };
	int i, status, running = ARRAY_SIZE(iovas);

	test_reserve(MAP_SHARED, self->fd, self->size);
	for (i = 0; i < ARRAY_SIZE(iovas); i++)
		if (!fork())
			map_and_punch(&self->lab, self->fd, self->size, iovas[i]);
	while (running) {
		self->va[0] = 1;
		self->va[HUGE_BYTES] = 1;
		if (waitpid(-1, &status, WNOHANG) > 0) {
			EXPECT_EQ(0, status);
			running--;
		}
	}
}

/* Truncation would take a page that it does not see for a reservation, and give that back */
TEST_F_TIMEOUT(huge, truncated_meanwhile, LAB_TIMEOUT)
{
	__u64 iova = MAP_IOVA;
	int i, ret, failed = 0;
	pid_t pid;

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (!ftruncate(self->fd, 0) && !ftruncate(self->fd, self->size))
			;
		_exit(1);
	}
	for (i = 0; i < ROUNDS || !failed; i++) {
		ret = ioas_map_file(self->lab.iommufd, self->lab.ioas, IOAS_RW | IOAS_FIXED,
				    self->fd, 0, self->size, &iova);
		if (ret) {
			ASSERT_EQ(-EINVAL, ret);
			failed++;
		} else {
			test_unmap(self->lab.ioas, MAP_IOVA, self->size);
		}
		ASSERT_EQ(self->before.reserved, pool_read().reserved);
	}
	kill(pid, SIGKILL);
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
}

static volatile sig_atomic_t ticks;

static void tick(int signal)
{
	ticks++;
}

/* Signals that do not kill are none of a mapping's business */
TEST_F_TIMEOUT(huge, interrupted, LAB_TIMEOUT)
{
	const struct itimerval interval = { { 0, 1000 }, { 0, 1000 } };
	const struct sigaction action = { .sa_handler = tick };
	__u32 other;
	int i;

	test_ioas_alloc(&other);
	test_map_at(other, self->fd, 0, self->size, MAP_IOVA);
	ASSERT_EQ(0, sigaction(SIGALRM, &action, NULL));
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &interval, NULL));
	for (i = 0; i < ROUNDS || ticks < ROUNDS; i++) {
		test_map_at(self->lab.ioas, self->fd, 0, self->size, MAP_IOVA);
		test_unmap(self->lab.ioas, MAP_IOVA, self->size);
		if (i % 4 == 0) {
			test_attach(other);
			test_attach(self->lab.ioas);
		}
	}
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL));
}

/* Files that are no memfds */
FIXTURE(other_file)
{
	struct lab lab;
};

FIXTURE_SETUP(other_file)
{
	self->lab.peer.fd = -1;
	self->lab.buffers = dmabuf_count();
	self->lab.iommufd = iommufd_open();
	REQUIRE(self->lab.iommufd >= 0, "no /dev/iommu");
	lab_open_importer(_metadata, &self->lab);
}

FIXTURE_TEARDOWN(other_file)
{
	lab_close(_metadata, &self->lab);
}

TEST_F_TIMEOUT(other_file, no_memory_behind_it, LAB_TIMEOUT)
{
	const char * const paths[] = { "/dev/zero", "/dev/null", "/proc/self/maps", "/" };
	unsigned int i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(paths); i++) {
		fd = open(paths[i], O_RDONLY);
		ASSERT_LE(0, fd);
		EXPECT_EQ(-EINVAL, ioas_map_file(self->lab.iommufd, self->lab.ioas, IOAS_RO, fd,
						 0, SZ_4K, &(__u64){ 0 })) {
			TH_LOG("%s", paths[i]);
		}
		close(fd);
	}
}

/* A file on tmpfs is what a memfd is, with a name */
TEST_F_TIMEOUT(other_file, tmpfs, LAB_TIMEOUT)
{
	char path[] = "/dev/shm/memfd_test.XXXXXX";
	__u8 *va;
	int fd;

	fd = mkstemp(path);
	REQUIRE(fd >= 0, "no tmpfs at /dev/shm");
	unlink(path);
	ASSERT_EQ(0, ftruncate(fd, SZ_4K));
	va = mmap(NULL, SZ_4K, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, va);
	test_load(1);
	test_map_at(self->lab.ioas, fd, 0, SZ_4K, MAP_IOVA);
	test_dma_write(MAP_IOVA);
	EXPECT_TRUE(lab_holds(va, 1));
}

TEST_HARNESS_MAIN
