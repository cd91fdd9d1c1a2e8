// SPDX-License-Identifier: GPL-2.0-only
/*
 * IOMMU_IOAS_MAP_FILE of a memfd, the other kind of file it takes: what the CPU
 * sees in the file and what the device sees at the IOVA is the same memory.
 */
#include <stdio.h>

#include <linux/memfd.h>

#include "lab.h"

#define PAGES		16ULL
#define HUGE_BYTES	(2ULL << 20)
#define MAP_IOVA	LAB_BAR_IOVA

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
		{ 1, SZ_4K },
		{ 0, SZ_4K + 1 },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, ioas_map_file(self->lab.iommufd, self->lab.ioas, IOAS_RW,
						 self->fd, bad[i].start, bad[i].length,
						 &(__u64){ 0 })) {
			TH_LOG("start %#llx length %#llx", bad[i].start, bad[i].length);
		}
	}
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
	munmap(self->va, self->size);
	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE));
	self->va = mmap(NULL, self->size, PROT_READ, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, self->va);

	test_err_map_at(EPERM, self->lab.ioas, self->fd, 0, SZ_4K, MAP_IOVA);
	test_map_file(self->lab.ioas, IOAS_RO | IOAS_FIXED, self->fd, 0, SZ_4K, &iova);
	test_dma_write(MAP_IOVA);
	EXPECT_TRUE(lab_holds(self->va, 3));
}

/* A child maps, and is gone: the address space is the parent's as well */
TEST_F_TIMEOUT(memfd, mapped_by_a_child, LAB_TIMEOUT)
{
	__u64 iova = MAP_IOVA;
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(ioas_map_file(self->lab.iommufd, self->lab.ioas, IOAS_RW | IOAS_FIXED,
				    self->fd, 0, self->size, &iova) ? 1 : 0);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
	test_lands_in_file(MAP_IOVA, 0);
	test_unmap(self->lab.ioas, MAP_IOVA, self->size);
}

/* And the other way round: the parent maps, a child that was there unmaps */
TEST_F_TIMEOUT(memfd, unmapped_by_a_child, LAB_TIMEOUT)
{
	int status;
	pid_t pid;

	test_map_at(self->lab.ioas, self->fd, 0, self->size, MAP_IOVA);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(ioas_unmap(self->lab.iommufd, self->lab.ioas, MAP_IOVA, self->size, NULL) ?
		      1 : 0);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
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
