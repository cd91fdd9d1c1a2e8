// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every allocation and every copy from or to user space fails once, for each of
 * the calls on the way from an export to a revoke. A sweep runs a call again and
 * again: undisturbed, then with its first fault point failing, its second, until
 * there is none left to fail. Whichever it is, the call does its work or says why
 * not, nothing is left behind, and the same call without a fault works.
 *
 * A revoke is the exception: it has no way to fail for want of memory. A restore has,
 * and leaves the memory unmapped then, until the next one.
 *
 * What a failed call has leaked without a name is found by kmemleak, if somebody
 * asks it afterwards.
 */
#include <linux/memfd.h>

#include "importer.h"
#include "observe.h"

#define FAIL_NTH	"/proc/self/fail-nth"
#define DEBUGFS		"/sys/kernel/debug/"
#define EVERYWHERE	"0xffffffffffffffff"

/* A sweep that is longer has most likely lost its end */
#define MAX_FAULTS	500
#define MEMFD_SIZE	(16 * SZ_4K)
#define HUGE_BYTES	(2ULL << 20)
#define DRAIN_MS	20
/* As many files as need no table of their own, NR_OPEN_DEFAULT */
#define FIRST_FD_TABLE	64

/* Whose page tables nobody has allocated yet; the border is one of table pages too */
#define TABLE_SPAN	0x200000ULL
#define fresh_iova(_nth)	(LAB_BAR_IOVA + (2 * (_nth) + 1) * TABLE_SPAN - SZ_4K)

/**
 * struct faults - one sweep
 * @fd: fail-nth of this process
 * @also: an errno, besides ENOMEM and EFAULT, that a fault may be reported as
 * @nth: which fault point is to fail, 0 is none
 * @hit: there was such a point
 * @refused: rounds in which the call failed
 */
struct faults {
	int fd;
	int also;
	unsigned int nth;
	bool hit;
	unsigned int refused;
};

static int put_setting(const char *name, const char *value)
{
	char path[128];
	int fd, ret;

	snprintf(path, sizeof(path), DEBUGFS "%s", name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ret = write(fd, value, strlen(value)) < 0 ? -errno : 0;
	close(fd);
	return ret;
}

/* Address of the first symbol above @above, or of that @name if there is one */
static unsigned long long find_symbol(unsigned long long above, const char *name)
{
	unsigned long long addr, found = 0;
	char symbol[128];
	FILE *file;

	file = fopen("/proc/kallsyms", "re");
	if (!file)
		return 0;
	while (fscanf(file, "%llx %*c %127s%*[^\n]", &addr, symbol) == 2)
		if (name ? !strcmp(symbol, name) : addr > above && (!found || addr < found))
			found = addr;
	fclose(file);
	return found;
}

/* Set a range of addresses on the stack that is "reject"ed or "require"d */
static int put_function(const char *kind, const char *what, const char *function)
{
	unsigned long long start = find_symbol(0, function);
	char name[64], value[32];
	int ret;

	if (!start)
		return -ENOENT;
	snprintf(name, sizeof(name), "%s/%s-start", kind, what);
	snprintf(value, sizeof(value), "%#llx", start);
	ret = put_setting(name, value);
	if (ret)
		return ret;
	snprintf(name, sizeof(name), "%s/%s-end", kind, what);
	snprintf(value, sizeof(value), "%#llx", find_symbol(start, NULL));
	return put_setting(name, value);
}

/* All kinds of allocations, of any size; a stack trace for each would take minutes */
static int configure_faults(void)
{
	const struct {
		const char *name, *value;
	} settings[] = {
		{ "failslab/ignore-gfp-wait", "N" },
		{ "failslab/verbose", "0" },
		{ "failslab/stacktrace-depth", "32" },
		{ "failslab/require-start", "0" },
		{ "failslab/require-end", EVERYWHERE },
		{ "fail_page_alloc/ignore-gfp-wait", "N" },
		{ "fail_page_alloc/ignore-gfp-highmem", "N" },
		{ "fail_page_alloc/min-order", "0" },
		{ "fail_page_alloc/verbose", "0" },
		{ "fail_page_alloc/stacktrace-depth", "32" },
		{ "fail_page_alloc/require-start", "0" },
		{ "fail_page_alloc/require-end", EVERYWHERE },
		{ "fail_usercopy/verbose", "0" },
	};
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < ARRAY_SIZE(settings); i++)
		ret = put_setting(settings[i].name, settings[i].value);
	return ret;
}

/*
 * The checks of the DMA API end for good when they get no memory: they get theirs.
 * Done once, it takes a while.
 */
static int dma_debug_error;

static __attribute__((constructor)) void spare_dma_debug(void)
{
	if (!access(FAIL_NTH, W_OK) && !access(DEBUGFS "dma-api", F_OK))
		dma_debug_error = put_function("failslab", "reject", "add_dma_entry");
}

/* What IOMMUFD_TEST has fail, and how, is not for want of memory */
static int spare_iommufd_hooks(bool spare)
{
	int ret;

	if (access(DEBUGFS "fail_iommufd", F_OK))
		return 0;
	ret = put_setting("fail_iommufd/stacktrace-depth", "1");
	return ret ?: put_setting("fail_iommufd/require-end", spare ? "0" : EVERYWHERE);
}

/* From now on only what is allocated for the sake of this function */
static int fail_only_below(const char *function)
{
	int ret;

	ret = put_function("failslab", "require", function);
	return ret ?: put_function("fail_page_alloc", "require", function);
}

#define open_faults(_faults)								\
do {											\
	if (access(FAIL_NTH, W_OK))							\
		SKIP(_exit(KSFT_SKIP), "the kernel has no " FAIL_NTH);			\
	(_faults)->fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC);				\
	ASSERT_LE(0, (_faults)->fd);							\
	ASSERT_EQ(0, dma_debug_error);							\
	ASSERT_EQ(0, configure_faults());						\
	/* A page fault is none of the calls that are tested */				\
	ASSERT_EQ(0, mlockall(MCL_CURRENT | MCL_FUTURE));				\
} while (0)

static void arm(struct faults *faults)
{
	char text[16];
	int len;

	len = snprintf(text, sizeof(text), "%u", faults->nth);
	if (faults->nth && pwrite(faults->fd, text, len, 0) != len)
		abort();
}

/*
 * What is left of the count tells whether the fault has come. Reading and clearing
 * it are user copies themselves, and may be what fails; then it had not come before.
 */
static void disarm(struct faults *faults)
{
	char text[16] = "";

	if (!faults->nth)
		return;
	faults->hit = pread(faults->fd, text, sizeof(text) - 1, 0) > 0 && !atoi(text);
	if (!faults->hit && pwrite(faults->fd, "0", 1, 0) != 1 && errno != EFAULT)
		abort();
}

#define for_each_fault(_faults)								\
	for ((_faults)->nth = 0, (_faults)->refused = 0, (_faults)->hit = true;		\
	     (_faults)->hit && (_faults)->nth < MAX_FAULTS; (_faults)->nth++)

static bool is_excused(struct faults *faults, long ret)
{
	return faults->nth && faults->hit &&
	       (ret == -ENOMEM || ret == -EFAULT || (faults->also && ret == -faults->also));
}

/* The one call of a round that is disturbed, and its result */
#define faulty(_call)								\
({										\
	struct faults *__faults = &self->faults;				\
	long __ret;								\
										\
	arm(__faults);								\
	__ret = (_call);							\
	disarm(__faults);							\
	__faults->refused += __ret < 0;						\
	ASSERT_TRUE(__ret >= 0 || is_excused(__faults, __ret)) {		\
		TH_LOG("fault %u: %ld", __faults->nth, __ret);			\
	}									\
	__ret;									\
})

/* Mappings of MMIO that the checks of the DMA API know of, -1 if there are no checks */
static long recorded_resources(void)
{
	char line[256];
	long count = 0;
	FILE *file;

	file = fopen(DEBUGFS "dma-api/dump", "re");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file))
		count += !!strstr(line, " resource idx ");
	fclose(file);
	return count;
}

/* The sweep came to its end */
#define test_end_of_sweep()								\
do {											\
	TH_LOG("%u faults, %u errors", self->faults.nth - 2, self->faults.refused);	\
	ASSERT_FALSE(self->faults.hit);							\
} while (0)

/* And was not one of something that never fails */
#define test_swept()									\
do {											\
	test_end_of_sweep();								\
	ASSERT_LT(0, self->faults.refused);						\
} while (0)

/* A round ends with as many files and as many dma-bufs as it began with */
#define expect_nothing_left(_fds, _buffers)						\
do {											\
	EXPECT_EQ(_fds, lab_count_fds()) {						\
		TH_LOG("fault %u", self->faults.nth);					\
	}										\
	EXPECT_TRUE(wait_until(dmabuf_count() == (_buffers), LEAK_WAIT_MS)) {		\
		TH_LOG("fault %u: %ld dma-bufs", self->faults.nth, dmabuf_count());	\
	}										\
} while (0)

/*
 * EFAULT can be that of the result, which is on its way to user space when the work
 * has been done. Every other error is from before.
 */
#define is_done(_ret, _undo_ret)	((_ret) >= 0 || ((_ret) == -EFAULT && !(_undo_ret)))

/*
 * Export
 */

FIXTURE(export)
{
	struct lab lab;
	struct faults faults;
};

FIXTURE_SETUP(export)
{
	open_faults(&self->faults);
	lab_open_exporter(_metadata, &self->lab, LAB_NEED_NOTHING);
}

FIXTURE_TEARDOWN(export)
{
	lab_close(_metadata, &self->lab);
}

TEST_F_TIMEOUT(export, one_range, LAB_TIMEOUT)
{
	long fds = lab_count_fds(), fd;

	for_each_fault(&self->faults) {
		fd = faulty(vfio_dev_export_range(&self->lab.peer, PEER_BAR, 0,
						  self->lab.bar_size));
		if (fd >= 0)
			close(fd);
		expect_nothing_left(fds, self->lab.buffers);
	}
	test_swept();
	EXPECT_EQ(0, vfio_dev_reset(&self->lab.peer));
}

TEST_F_TIMEOUT(export, many_ranges, LAB_TIMEOUT)
{
	struct vfio_region_dma_range ranges[256];
	long fds = lab_count_fds(), fd;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		ranges[i].offset = i * SZ_4K;
		ranges[i].length = SZ_4K;
	}
	for_each_fault(&self->faults) {
		fd = faulty(vfio_dev_export(&self->lab.peer, PEER_BAR, O_RDWR, ranges,
					    ARRAY_SIZE(ranges)));
		if (fd >= 0)
			close(fd);
		expect_nothing_left(fds, self->lab.buffers);
	}
	test_swept();
}

/* The first export of a BAR that nobody has mapped is what claims it */
TEST_F_TIMEOUT(export, claims_the_bar, LAB_TIMEOUT)
{
	char peer[PCI_NAME_LEN];
	long fds, fd;

	pci_copy_name(peer, self->lab.peer.name);
	lab_close_peer(&self->lab);
	/* A resource that could not be allocated looks like one of somebody else */
	self->faults.also = EBUSY;
	for_each_fault(&self->faults) {
		ASSERT_EQ(0, vfio_dev_open(&self->lab.peer, peer, self->lab.iommufd));
		fds = lab_count_fds();
		fd = faulty(vfio_dev_export_range(&self->lab.peer, PEER_BAR, 0, SZ_4K));
		if (fd >= 0)
			close(fd);
		expect_nothing_left(fds, self->lab.buffers);
		close(test_export(0, SZ_4K));
		vfio_dev_close(&self->lab.peer);
	}
	test_swept();
}

/*
 * With as many files open as the table has room for, the fd is what cannot be had,
 * when the dma-buf is there already. A table that has grown stays so, but not that
 * of a child which is forked before.
 */
static long export_in_child(struct lab *lab, struct faults *faults)
{
	int status;
	pid_t pid;
	long fd;

	pid = fork();
	if (pid < 0)
		return -errno;
	if (!pid) {
		close(faults->fd);
		faults->fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC);
		mlockall(MCL_CURRENT);
		arm(faults);
		fd = vfio_dev_export_range(&lab->peer, PEER_BAR, 0, SZ_4K);
		disarm(faults);
		/* An errno has seven bits */
		_exit(fd < 0 ? -fd : faults->hit << 7);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -ECHILD;
	status = WEXITSTATUS(status);
	faults->hit = status;
	return -(status & 0x7f);
}

TEST_F_TIMEOUT(export, table_of_files_is_full, LAB_TIMEOUT)
{
	long fds, ret;

	while (test_fd(dup(self->lab.iommufd)) < FIRST_FD_TABLE - 1)
		;
	fds = lab_count_fds();
	for_each_fault(&self->faults) {
		ret = export_in_child(&self->lab, &self->faults);
		self->faults.refused += ret < 0;
		ASSERT_TRUE(!ret || is_excused(&self->faults, ret)) {
			TH_LOG("fault %u: %ld", self->faults.nth, ret);
		}
		/* In the control there is none to be hit */
		self->faults.hit |= !self->faults.nth;
		expect_nothing_left(fds, self->lab.buffers);
	}
	test_swept();
}

/*
 * iommufd
 */

FIXTURE(import)
{
	struct lab lab;
	struct faults faults;
	int dmabuf;
};

static int export_with_holes(struct lab *lab)
{
	const struct vfio_region_dma_range ranges[] = {
		{ .offset = 0, .length = SZ_4K },
		{ .offset = 4 * SZ_4K, .length = 2 * SZ_4K },
		{ .offset = 8 * SZ_4K, .length = SZ_4K },
	};

	return vfio_dev_export(&lab->peer, PEER_BAR, O_RDWR, ranges, ARRAY_SIZE(ranges));
}

FIXTURE_SETUP(import)
{
	open_faults(&self->faults);
	ASSERT_EQ(0, spare_iommufd_hooks(true));
	lab_open(_metadata, &self->lab, LAB_NEED_NOTHING);
	self->dmabuf = test_fd(export_with_holes(&self->lab));
	test_load(1);
}

FIXTURE_TEARDOWN(import)
{
	EXPECT_EQ(0, spare_iommufd_hooks(false));
	lab_close(_metadata, &self->lab);
}

#define DMABUF_SIZE	(4 * SZ_4K)

/* The device sees the buffer, and when it is unmapped sees it no more */
#define test_still_works()							\
do {										\
	test_map_at(self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE, LAB_BAR_IOVA);	\
	test_dma_write(LAB_BAR_IOVA + SZ_4K);					\
	expect_landed(4 * SZ_4K, 1);						\
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, DMABUF_SIZE);			\
	test_dma_write(LAB_BAR_IOVA + SZ_4K);					\
	expect_nothing_landed();						\
} while (0)

/* @_ret is how a mapping went: it is there exactly if it should be, and gone then */
#define test_undo_map(_ret, _ioas, _iova, _length)					\
do {											\
	int __undo = ioas_unmap(self->lab.iommufd, _ioas, _iova, _length, NULL);	\
											\
	ASSERT_EQ(is_done(_ret, __undo) ? 0 : -ENOENT, __undo) {			\
		TH_LOG("fault %u", self->faults.nth);					\
	}										\
} while (0)

static long map_fixed(struct lab *lab, __u32 ioas, int fd, __u64 length, __u64 iova)
{
	return ioas_map_file(lab->iommufd, ioas, IOAS_RW | IOAS_FIXED, fd, 0, length, &iova);
}

/* The border between two tables is in the buffer, so it can fail half way */
static void sweep_map(struct __test_metadata *_metadata, FIXTURE_DATA(import) *self,
		      __u32 ioas)
{
	long fds = lab_count_fds(), buffers = dmabuf_count(), ret;
	__u64 iova;

	for_each_fault(&self->faults) {
		iova = fresh_iova(self->faults.nth);
		ret = faulty(map_fixed(&self->lab, ioas, self->dmabuf, DMABUF_SIZE, iova));
		test_undo_map(ret, ioas, iova, DMABUF_SIZE);
		test_map_at(ioas, self->dmabuf, 0, DMABUF_SIZE, iova);
		test_unmap(ioas, iova, DMABUF_SIZE);
		expect_nothing_left(fds, buffers);
	}
	test_swept();
}

TEST_F_TIMEOUT(import, map, LAB_TIMEOUT)
{
	sweep_map(_metadata, self, self->lab.ioas);
	test_still_works();
}

TEST_F_TIMEOUT(import, map_without_domain, LAB_TIMEOUT)
{
	__u32 other;

	test_ioas_alloc(&other);
	sweep_map(_metadata, self, other);
	test_still_works();
}

TEST_F_TIMEOUT(import, map_in_two_domains, LAB_TIMEOUT)
{
	__u32 hwpt;

	test_hwpt_alloc(&hwpt);
	test_attach(hwpt);
	sweep_map(_metadata, self, self->lab.ioas);
	test_still_works();
}

static long map_anywhere(struct lab *lab, int fd, __u64 *iova)
{
	*iova = 0;
	return ioas_map_file(lab->iommufd, lab->ioas, IOAS_RW, fd, 0, DMABUF_SIZE, iova);
}

/* Where it is when the result is lost nobody knows; the IOAS takes it along */
TEST_F_TIMEOUT(import, map_where_there_is_room, LAB_TIMEOUT)
{
	long ret;
	__u64 iova;

	for_each_fault(&self->faults) {
		ret = faulty(map_anywhere(&self->lab, self->dmabuf, &iova));
		if (ret >= 0)
			test_unmap(self->lab.ioas, iova, DMABUF_SIZE);
	}
	test_swept();
	test_still_works();
}

/* What to map of which memfd: MEMFD_SIZE bytes */
struct memfd {
	unsigned int flags;
	__u64 size;
	__u64 start;
};

static const struct memfd small_pages = {
	.size = MEMFD_SIZE,
};

/* Across the border of two, of which the second can be what fails */
static const struct memfd huge_pages = {
	.flags = MFD_HUGETLB | MFD_HUGE_2MB,
	.size = 2 * HUGE_BYTES,
	.start = HUGE_BYTES - MEMFD_SIZE / 2,
};

static long map_memfd(struct lab *lab, int fd, __u64 start, __u32 prot, __u64 iova)
{
	return ioas_map_file(lab->iommufd, lab->ioas, prot | IOAS_FIXED, fd, start, MEMFD_SIZE,
			     &iova);
}

/* A new file each time, so its pages fail as well */
static void sweep_map_memfd(struct __test_metadata *_metadata, FIXTURE_DATA(import) *self,
			    const struct memfd *memfd, __u32 prot)
{
	__u64 iova;
	long ret;
	int fd;

	for_each_fault(&self->faults) {
		iova = fresh_iova(self->faults.nth);
		fd = memfd_create("fault", memfd->flags);
		ASSERT_LE(0, fd);
		ASSERT_EQ(0, ftruncate(fd, memfd->size));
		ret = faulty(map_memfd(&self->lab, fd, memfd->start, prot, iova));
		test_undo_map(ret, self->lab.ioas, iova, MEMFD_SIZE);
		test_map_at(self->lab.ioas, fd, memfd->start, MEMFD_SIZE, iova);
		test_unmap(self->lab.ioas, iova, MEMFD_SIZE);
		close(fd);
	}
	test_swept();
	test_still_works();
}

TEST_F_TIMEOUT(import, map_memfd, LAB_TIMEOUT)
{
	sweep_map_memfd(_metadata, self, &small_pages, IOAS_RW);
}

TEST_F_TIMEOUT(import, map_memfd_read_only, LAB_TIMEOUT)
{
	sweep_map_memfd(_metadata, self, &small_pages, IOAS_RO);
}

static long free_huge_pages(void)
{
	return lab_read_number("/proc/meminfo", "HugePages_Free: %ld");
}

static long reserved_huge_pages(void)
{
	return lab_read_number("/proc/meminfo", "HugePages_Rsvd: %ld");
}

/* Of the pool nothing is lost, nor promised to nobody */
TEST_F_TIMEOUT(import, map_memfd_of_huge_pages, LAB_TIMEOUT)
{
	long free_before = free_huge_pages();
	long reserved_before = reserved_huge_pages();
	int fd;

	fd = memfd_create("fault", huge_pages.flags);
	REQUIRE(fd >= 0, "no such memfd");
	close(fd);
	REQUIRE(free_before - reserved_before >= 2, "too few huge pages");
	sweep_map_memfd(_metadata, self, &huge_pages, IOAS_RW);
	EXPECT_EQ(free_before, free_huge_pages());
	EXPECT_EQ(reserved_before, reserved_huge_pages());
}

static long copy_fixed(struct lab *lab, __u32 dst, __u64 dst_iova)
{
	return ioas_copy(lab->iommufd, dst, lab->ioas, IOAS_RW | IOAS_FIXED, LAB_BAR_IOVA,
			 DMABUF_SIZE, &dst_iova);
}

static void sweep_copy(struct __test_metadata *_metadata, FIXTURE_DATA(import) *self,
		       __u32 dst)
{
	long fds = lab_count_fds(), buffers = dmabuf_count(), ret;
	__u64 iova;

	test_map_at(self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE, LAB_BAR_IOVA);
	for_each_fault(&self->faults) {
		iova = fresh_iova(self->faults.nth);
		ret = faulty(copy_fixed(&self->lab, dst, iova));
		test_undo_map(ret, dst, iova, DMABUF_SIZE);
		test_copy_at(dst, self->lab.ioas, LAB_BAR_IOVA, DMABUF_SIZE, iova);
		test_unmap(dst, iova, DMABUF_SIZE);
		expect_nothing_left(fds, buffers);
	}
	test_swept();
	/* The origin is none the worse */
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, DMABUF_SIZE);
	test_still_works();
}

TEST_F_TIMEOUT(import, copy, LAB_TIMEOUT)
{
	sweep_copy(_metadata, self, self->lab.ioas);
}

TEST_F_TIMEOUT(import, copy_to_another_ioas, LAB_TIMEOUT)
{
	__u32 other;

	test_ioas_alloc(&other);
	sweep_copy(_metadata, self, other);
}

/* Two buffers at once, of which the second can be what fails */
TEST_F_TIMEOUT(import, copy_of_two_areas, LAB_TIMEOUT)
{
	int second = test_export(0, DMABUF_SIZE);
	__u64 iova;
	long ret;

	test_map_at(self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE, LAB_BAR_IOVA);
	test_map_at(self->lab.ioas, second, 0, DMABUF_SIZE, LAB_BAR_IOVA + DMABUF_SIZE);
	for_each_fault(&self->faults) {
		iova = fresh_iova(self->faults.nth);
		ret = faulty(ioas_copy(self->lab.iommufd, self->lab.ioas, self->lab.ioas,
				       IOAS_RW | IOAS_FIXED, LAB_BAR_IOVA, 2 * DMABUF_SIZE,
				       &iova));
		test_undo_map(ret, self->lab.ioas, iova, 2 * DMABUF_SIZE);
	}
	test_swept();
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, 2 * DMABUF_SIZE);
	test_still_works();
}

/* An IOAS with a piece of RAM, the buffer, and the buffer once more as a copy */
static void fill_ioas(struct __test_metadata *_metadata, FIXTURE_DATA(import) *self,
		      __u32 ioas)
{
	ASSERT_EQ(0, lab_map_ram(&self->lab, ioas));
	test_map_at(ioas, self->dmabuf, 0, DMABUF_SIZE, LAB_BAR_IOVA);
	test_copy_at(ioas, ioas, LAB_BAR_IOVA, DMABUF_SIZE, LAB_COPY_IOVA);
}

#define test_filled_ioas()							\
do {										\
	test_dma_write(LAB_BAR_IOVA);						\
	expect_landed(0, 1);							\
	test_dma_write(LAB_COPY_IOVA);						\
	expect_landed(0, 1);							\
} while (0)

TEST_F_TIMEOUT(import, attach, LAB_TIMEOUT)
{
	__u32 other;
	long ret;

	test_ioas_alloc(&other);
	fill_ioas(_metadata, self, other);
	test_detach();
	for_each_fault(&self->faults) {
		ret = faulty(vfio_dev_attach(&self->lab.edu.dev, other));
		if (ret >= 0)
			test_detach();
	}
	test_swept();
	test_attach(other);
	test_filled_ioas();
}

/* A domain joins another one in the same IOAS */
static long join(struct lab *lab, __u32 ioas, __u32 *hwpt)
{
	return hwpt_alloc(lab->iommufd, lab->edu.dev.devid, ioas, hwpt);
}

TEST_F_TIMEOUT(import, second_domain, LAB_TIMEOUT)
{
	__u32 other, hwpt;
	long ret;

	need_prepared_domains();
	test_ioas_alloc(&other);
	fill_ioas(_metadata, self, other);
	test_attach(other);
	for_each_fault(&self->faults) {
		ret = faulty(join(&self->lab, other, &hwpt));
		if (ret >= 0)
			ASSERT_EQ(0, iommufd_destroy(self->lab.iommufd, hwpt));
	}
	test_swept();
	ASSERT_EQ(0, join(&self->lab, other, &hwpt));
	test_attach(hwpt);
	test_filled_ioas();
}

/*
 * Revoke: if the hardware operation has been done, the memory was taken away before
 */

static bool is_decoding(struct lab *lab)
{
	__u16 command = 0;

	return !vfio_dev_config_read(&lab->peer, PCI_COMMAND, &command, sizeof(command)) &&
	       (command & PCI_COMMAND_MEMORY);
}

TEST_F_TIMEOUT(import, decode_off, LAB_TIMEOUT)
{
	long ret;

	for_each_fault(&self->faults) {
		test_map_at(self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE, LAB_BAR_IOVA);
		ret = faulty(vfio_dev_decode(&self->lab.peer, false));
		ASSERT_EQ(ret < 0, is_decoding(&self->lab));
		if (ret < 0)
			ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, false));
		test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE,
				LAB_COPY_IOVA);
		test_dma_write(LAB_BAR_IOVA);
		ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, true));
		expect_nothing_landed();
		test_unmap(self->lab.ioas, LAB_BAR_IOVA, DMABUF_SIZE);
	}
	test_swept();
	test_still_works();
}

TEST_F_TIMEOUT(import, decode_on, LAB_TIMEOUT)
{
	long ret;

	for_each_fault(&self->faults) {
		test_map_at(self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE, LAB_BAR_IOVA);
		ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, false));
		test_unmap(self->lab.ioas, LAB_BAR_IOVA, DMABUF_SIZE);
		ret = faulty(vfio_dev_decode(&self->lab.peer, true));
		ASSERT_EQ(ret >= 0, is_decoding(&self->lab));
		if (ret < 0) {
			test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE,
					LAB_BAR_IOVA);
			ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, true));
		}
		test_map_at(self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE, LAB_BAR_IOVA);
		test_unmap(self->lab.ioas, LAB_BAR_IOVA, DMABUF_SIZE);
	}
	test_swept();
	test_still_works();
}

#define RESTORED_SIZE	(2 * TABLE_SPAN)
#define test_toggle()								\
do {										\
	ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, false));			\
	ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, true));			\
} while (0)
#define test_both_mapped()							\
do {										\
	test_dma_write(LAB_BAR_IOVA + SZ_4K);					\
	expect_landed(0, 1);							\
	test_dma_write(LAB_COPY_IOVA + SZ_4K);					\
	expect_landed(0, 1);							\
} while (0)
#define test_map_both(_dmabuf)							\
do {										\
	test_map_at(self->lab.ioas, _dmabuf, 0, RESTORED_SIZE, LAB_BAR_IOVA + SZ_4K);	\
	test_copy_at(self->lab.ioas, self->lab.ioas, LAB_BAR_IOVA + SZ_4K,	\
		     RESTORED_SIZE, LAB_COPY_IOVA + SZ_4K);			\
} while (0)
#define test_unmap_both()							\
do {										\
	test_unmap(self->lab.ioas, LAB_BAR_IOVA + SZ_4K, RESTORED_SIZE);	\
	test_unmap(self->lab.ioas, LAB_COPY_IOVA + SZ_4K, RESTORED_SIZE);	\
} while (0)

/*
 * An area and its copy, with tables of their own, which a revoke frees: both are mapped
 * again or none is. What has failed is told, and done the next time, or by a VMM that
 * unmaps and maps, as it has to with mainline.
 */
TEST_F_TIMEOUT(import, restore, LAB_TIMEOUT)
{
	int dmabuf = test_export(0, RESTORED_SIZE);
	unsigned int failures, sweeps = 0;
	char text[8192];

	test_map_both(dmabuf);
again:
	failures = 0;
	for_each_fault(&self->faults) {
		ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, false));
		REQUIRE(trace(true), "no tracepoints");
		if (faulty(vfio_dev_decode(&self->lab.peer, true)) < 0)
			ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, true));
		ASSERT_TRUE(trace(false));
		ASSERT_TRUE(read_fdinfo(dmabuf, text, sizeof(text)));
		if (!line_of(text, "attachment:", "state=restore-failed")) {
			expect_line(text, "attachment:", "state=live");
			continue;
		}
		failures++;
		ASSERT_TRUE(slurp(BUFINFO, text, sizeof(text)));
		expect_line(text, "\tiommu ", "state=restore-failed");
		ASSERT_TRUE(slurp(TRACING "trace", text, sizeof(text)));
		expect_line(text, "iommufd_dmabuf_restored:", "ret=-12");
		test_dma_write(LAB_BAR_IOVA + SZ_4K);
		test_dma_write(LAB_COPY_IOVA + SZ_4K);
		expect_nothing_landed();
		if (failures % 2) {
			test_toggle();
		} else {
			test_unmap_both();
			test_map_both(dmabuf);
		}
		test_both_mapped();
	}
	test_end_of_sweep();
	/* A slab that is refilled in one round shifts what the next one is about. */
	if (failures < 2 && ++sweeps < 3)
		goto again;
	/* One for each of the two ways to mend it */
	ASSERT_LE(2, failures);
	test_both_mapped();
	test_unmap_both();
	test_still_works();
}

static bool restore_has_failed(int dmabuf)
{
	char text[8192];

	return read_fdinfo(dmabuf, text, sizeof(text)) &&
	       line_of(text, "attachment:", "state=restore-failed");
}

/*
 * A reset that fails leaves everything mapped, and one that does not maps it again. That
 * takes memory where an IOMMU has a request, and no tables, for it.
 */
static void sweep_reset(struct __test_metadata *_metadata, FIXTURE_DATA(import) *self,
			int (*reset)(struct vfio_dev *dev))
{
	long ret;

	for_each_fault(&self->faults) {
		test_map_at(self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE, LAB_BAR_IOVA);
		ret = faulty(reset(&self->lab.peer));
		test_dma_write(LAB_BAR_IOVA);
		if (restore_has_failed(self->dmabuf)) {
			ASSERT_EQ(0, ret);
			expect_nothing_landed();
			ASSERT_EQ(0, reset(&self->lab.peer));
			test_dma_write(LAB_BAR_IOVA);
		}
		expect_landed(0, 1);
		test_unmap(self->lab.ioas, LAB_BAR_IOVA, DMABUF_SIZE);
	}
}

TEST_F_TIMEOUT(import, reset, LAB_TIMEOUT)
{
	sweep_reset(_metadata, self, vfio_dev_reset);
	test_end_of_sweep();
	test_still_works();
}

TEST_F_TIMEOUT(import, hot_reset, LAB_TIMEOUT)
{
	REQUIRE(!vfio_dev_hot_reset(&self->lab.peer), "no hot reset of the peer");
	sweep_reset(_metadata, self, vfio_dev_hot_reset);
	test_swept();
	test_still_works();
}

/* A peer that can do more, in place of the one that the other tests are content with */
static void need_peer(struct __test_metadata *_metadata, FIXTURE_DATA(import) *self,
		      enum lab_need need)
{
	close(self->dmabuf);
	lab_close_peer(&self->lab);
	REQUIRE(!lab_choose_peer(&self->lab, need), "no peer with %s",
		need == LAB_NEED_FLR ? "FLR" : "power management");
	lab_clear_bar(&self->lab);
	self->dmabuf = test_fd(export_with_holes(&self->lab));
}

TEST_F_TIMEOUT(import, function_level_reset, LAB_TIMEOUT)
{
	need_peer(_metadata, self, LAB_NEED_FLR);
	sweep_reset(_metadata, self, vfio_dev_flr);
	test_swept();
	test_still_works();
}

/* It lasts until the device is woken up, as decode_off does: @change to true, and back */
static void sweep_lasting(struct __test_metadata *_metadata, FIXTURE_DATA(import) *self,
			  int (*change)(struct vfio_dev *dev, bool away))
{
	long ret;

	for_each_fault(&self->faults) {
		test_map_at(self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE, LAB_BAR_IOVA);
		ret = faulty(change(&self->lab.peer, true));
		if (ret < 0) {
			test_dma_write(LAB_BAR_IOVA);
			expect_landed(0, 1);
			ASSERT_EQ(0, change(&self->lab.peer, true));
		}
		test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE,
				LAB_COPY_IOVA);
		test_dma_write(LAB_BAR_IOVA);
		ASSERT_EQ(0, change(&self->lab.peer, false));
		expect_nothing_landed();
		test_unmap(self->lab.ioas, LAB_BAR_IOVA, DMABUF_SIZE);
	}
	test_swept();
	test_still_works();
}

static int put_to_d3hot(struct vfio_dev *dev, bool down)
{
	return vfio_dev_power(dev, down ? PCI_POWER_D3HOT : PCI_POWER_D0);
}

TEST_F_TIMEOUT(import, d3hot, LAB_TIMEOUT)
{
	need_peer(_metadata, self, LAB_NEED_PM);
	sweep_lasting(_metadata, self, put_to_d3hot);
}

TEST_F_TIMEOUT(import, low_power, LAB_TIMEOUT)
{
	sweep_lasting(_metadata, self, vfio_dev_low_power);
}

/* A device that has not got to another IOAS is left, and revoked, where it was */
TEST_F_TIMEOUT(import, move, LAB_TIMEOUT)
{
	__u32 other;
	long ret;

	for_each_fault(&self->faults) {
		test_ioas_alloc(&other);
		test_map_at(self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE, LAB_BAR_IOVA);
		ret = faulty(vfio_dev_attach(&self->lab.edu.dev, other));
		if (ret == -ENOMEM) {
			test_dma_write(LAB_BAR_IOVA);
			expect_landed(0, 1);
		}
		/* Mapped again, for a device that has not moved */
		ASSERT_EQ(0, vfio_dev_reset(&self->lab.peer));
		test_dma_write(LAB_BAR_IOVA);
		/* After another error it may have moved, or not, or be detached */
		if (!ret || ret == -ENOMEM)
			EXPECT_EQ(ret ? 0 : NOTHING, lab_first_set(&self->lab, 0));
		lab_clear_bar(&self->lab);
		test_attach(self->lab.ioas);
		test_unmap(self->lab.ioas, LAB_BAR_IOVA, DMABUF_SIZE);
		test_ioas_destroy(other);
	}
	test_swept();
	test_still_works();
}

/*
 * Nobody can be told that the last close has failed, so it does not. Giving the
 * device back to its default domain is done with a warning instead, when there is
 * no memory for it. That comes later, and is a matter of the IOMMU core.
 */
TEST_F_TIMEOUT(import, close, LAB_TIMEOUT)
{
	char peer[PCI_NAME_LEN];

	pci_copy_name(peer, self->lab.peer.name);
	ASSERT_EQ(0, fail_only_below("vfio_pci_core_close_device"));
	for_each_fault(&self->faults) {
		test_map_at(self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE, LAB_BAR_IOVA);
		munmap(self->lab.bar, self->lab.bar_size);
		self->lab.bar = NULL;
		ASSERT_EQ(0, faulty(close(self->lab.peer.fd)));
		self->lab.peer.fd = -1;
		test_dma_write(LAB_BAR_IOVA);
		test_unmap(self->lab.ioas, LAB_BAR_IOVA, DMABUF_SIZE);
		test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, DMABUF_SIZE,
				LAB_BAR_IOVA);
		ASSERT_EQ(0, lab_open_peer(&self->lab, peer));
		expect_nothing_landed();
		close(self->dmabuf);
		self->dmabuf = test_export(0, self->lab.bar_size);
	}
	test_end_of_sweep();
	test_map_at(self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

/* Gone with everything in it, in whichever order that is taken down */
TEST_F_TIMEOUT(import, unmap_and_destroy, LAB_TIMEOUT)
{
	long fds = lab_count_fds(), buffers = dmabuf_count();
	__u32 other;

	for_each_fault(&self->faults) {
		test_ioas_alloc(&other);
		fill_ioas(_metadata, self, other);
		test_attach(other);
		test_attach(self->lab.ioas);
		if (faulty(iommufd_destroy(self->lab.iommufd, other)) < 0)
			test_ioas_destroy(other);
		expect_nothing_left(fds, buffers);
	}
	test_swept();
	test_still_works();
}

/*
 * Other importers
 */

FIXTURE(importer)
{
	struct lab lab;
	struct faults faults;
	int fd;
	int dmabuf;
	__u8 pattern[XFER];
};

FIXTURE_VARIANT(importer)
{
	__u32 flags;
	__u32 fence_ms;
	__u32 unmap_ms;
};

FIXTURE_VARIANT_ADD(importer, plain) {};

FIXTURE_VARIANT_ADD(importer, pinned)
{
	.flags = DMA_BUF_TEST_PIN,
};

FIXTURE_VARIANT_ADD(importer, slow)
{
	.fence_ms = 3 * DRAIN_MS,
	.unmap_ms = DRAIN_MS,
};

FIXTURE_SETUP(importer)
{
	/* Across large pages of the IOMMU, so that there are tables to allocate each time */
	const struct vfio_region_dma_range ranges[] = {
		{ .offset = SZ_4K, .length = 2 * TABLE_SPAN },
		{ .offset = 3 * TABLE_SPAN + SZ_4K, .length = 2 * TABLE_SPAN },
	};

	open_faults(&self->faults);
	lab_open_exporter(_metadata, &self->lab, LAB_NEED_NOTHING);
	self->fd = importer_open_second();
	REQUIRE(self->fd >= 0, "no test importer");
	REQUIRE(self->lab.bar_size >= 6 * TABLE_SPAN, "the BAR of the peer is too small");
	self->dmabuf = test_fd(vfio_dev_export(&self->lab.peer, PEER_BAR, O_RDWR, ranges,
					       ARRAY_SIZE(ranges)));
	pattern_fill(self->pattern, 1);
}

FIXTURE_TEARDOWN(importer)
{
	lab_close(_metadata, &self->lab);
}

#define import_variant()	import_slow(self->fd, self->dmabuf, variant->flags,	\
					    variant->fence_ms, variant->unmap_ms)
#define is_mapped(_handle)	(status(self->fd, _handle) & DMA_BUF_TEST_MAPPED)

#define test_use(_handle)							\
do {										\
	test_map(_handle);							\
	ASSERT_EQ(0, dma(self->fd, _handle, DMA_BUF_TEST_DMA_WRITE, 0,		\
			 self->pattern));					\
	expect_landed(SZ_4K, 1);						\
} while (0)

/* An import that nobody was told the handle of goes when the node is closed */
TEST_F_TIMEOUT(importer, attach, LAB_TIMEOUT)
{
	long handle;

	for_each_fault(&self->faults) {
		handle = faulty(import_variant());
		if (handle >= 0)
			ASSERT_EQ(0, detach(self->fd, handle));
	}
	test_swept();
	close(self->fd);
	self->fd = importer_open_second();
	ASSERT_LE(0, self->fd);
	handle = import_variant();
	ASSERT_LE(0, handle);
	test_use(handle);
}

TEST_F_TIMEOUT(importer, map, LAB_TIMEOUT)
{
	long handle = import_variant(), recorded = recorded_resources(), ret;

	ASSERT_LE(0, handle);
	test_map(handle);
	ASSERT_EQ(0, unmap(self->fd, handle));
	/* dma_map_resource() does not tell why it fails */
	self->faults.also = EIO;
	for_each_fault(&self->faults) {
		ret = faulty(map(self->fd, handle, NULL));
		ASSERT_EQ(is_done(ret, !is_mapped(handle)), !!is_mapped(handle));
		unmap(self->fd, handle);
		ASSERT_FALSE(status(self->fd, handle) &
			     (DMA_BUF_TEST_MAPPED | DMA_BUF_TEST_PINNED));
	}
	test_swept();
	EXPECT_EQ(recorded, recorded_resources());
	/* No failed mapping is counted, and waited for */
	ASSERT_EQ(0, vfio_dev_reset(&self->lab.peer));
	test_use(handle);
}

TEST_F_TIMEOUT(importer, revoke, LAB_TIMEOUT)
{
	long handle = import_variant(), ret;

	ASSERT_LE(0, handle);
	for_each_fault(&self->faults) {
		test_map(handle);
		ret = faulty(vfio_dev_decode(&self->lab.peer, false));
		ASSERT_EQ(ret < 0, is_decoding(&self->lab));
		ASSERT_EQ(ret < 0, !!is_mapped(handle));
		if (ret < 0)
			ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, false));
		ASSERT_FALSE(is_mapped(handle));
		ASSERT_EQ(-ENODEV, map(self->fd, handle, NULL));
		ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, true));
	}
	test_swept();
	ASSERT_EQ(0, dma(self->fd, handle, DMA_BUF_TEST_DMA_WRITE | DMA_BUF_TEST_DMA_STALE, 0,
			 self->pattern));
	expect_nothing_landed();
	test_use(handle);
}

TEST_HARNESS_MAIN
