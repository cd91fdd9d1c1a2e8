/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests have in common: two devices, one IOAS, and a way to see which
 * bytes a DMA has changed.
 *
 *     edu (initiator) --DMA--> IOAS --+--> a page of RAM   at LAB_RAM_IOVA
 *                                     +--> BAR2 of a peer  where the test maps it
 *                                               ^
 *     CPU ----------------- mmap ---------------+
 *
 * A transfer is XFER bytes of a pattern, none of which is zero; the BAR is
 * cleared before. So every byte that lands, wherever it lands, is seen.
 *
 * Helpers come in threes: the plain function of the library, test_x() which
 * must succeed, and test_err_x(errno, ...) which must fail in just that way.
 */
#ifndef _DMABUF_SELFTEST_LAB_H
#define _DMABUF_SELFTEST_LAB_H

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/pci_regs.h>

#include "../kselftest_harness.h"

#include "edu.h"
#include "ioas.h"
#include "vfio_dev.h"

#define LAB_TIMEOUT	180
#define LEAK_WAIT_MS	5000

#define SZ_4K		0x1000ULL
#define SZ_2M		0x200000ULL
#define PAGE_BYTES	((__u64)sysconf(_SC_PAGESIZE))

#define XFER		EDU_MAX_TRANSFER
#define LAB_RAM_IOVA	0x00100000ULL
#define LAB_BAR_IOVA	0x01000000ULL
#define LAB_COPY_IOVA	0x05000000ULL
#define LAB_BIG_IOVA	(1ULL << 40)

#define NOTHING		(-1L)

/* What a test wants of its peer, beyond a BAR of memory */
enum lab_need {
	LAB_NEED_NOTHING,
	LAB_NEED_PM,
	LAB_NEED_FLR,
};

/**
 * struct lab - the devices of one test
 * @iommufd: both devices are bound to it
 * @ioas: the initiator is attached to it
 * @edu: initiator
 * @peer: owner of the memory that is exported
 * @bar: the peer's BAR as the CPU sees it, NULL while the peer is not open
 * @bar_size: its size
 * @ram: one page, mapped at LAB_RAM_IOVA
 * @buffers: dma-bufs that the system had before the test
 */
struct lab {
	int iommufd;
	__u32 ioas;
	struct edu edu;
	struct vfio_dev peer;
	__u8 *bar;
	size_t bar_size;
	__u8 *ram;
	long buffers;
};

/* Missing hardware is a reason to skip, but not in the VM that was made for these tests */
#define REQUIRE(cond, fmt, ...)						\
do {									\
	if (cond)							\
		break;							\
	if (!getenv("VMTEST"))						\
		SKIP(_exit(KSFT_SKIP), fmt, ##__VA_ARGS__);		\
	TH_LOG("The test VM should have it: " fmt, ##__VA_ARGS__);	\
	ASSERT_TRUE(!#cond);						\
} while (0)

/* Raw fds are -errno on failure */
#define test_fd(_fd)							\
({									\
	int __fd = (_fd);						\
									\
	ASSERT_LE(0, __fd);						\
	__fd;								\
})

#define test_export(_offset, _length)					\
	test_fd(vfio_dev_export_range(&self->lab.peer, PEER_BAR, _offset, _length))
#define test_err_export(_errno, _region, _flags, _ranges, _nr)		\
	EXPECT_EQ(-(_errno), vfio_dev_export(&self->lab.peer, _region, _flags, _ranges, _nr))

#define test_ioas_alloc(_id)						\
	ASSERT_EQ(0, ioas_alloc(self->lab.iommufd, _id))
#define test_ioas_destroy(_id)						\
	ASSERT_EQ(0, iommufd_destroy(self->lab.iommufd, _id))

#define test_map_file(_ioas, _prot, _fd, _start, _length, _iova)	\
	ASSERT_EQ(0, ioas_map_file(self->lab.iommufd, _ioas, _prot, _fd, _start, _length, _iova))
#define test_err_map_file(_errno, _ioas, _prot, _fd, _start, _length, _iova)		\
	EXPECT_EQ(-(_errno), ioas_map_file(self->lab.iommufd, _ioas, _prot, _fd,	\
					   _start, _length, _iova))

/* At a fixed IOVA, read-write: what most tests do */
#define test_map_at(_ioas, _fd, _start, _length, _at)					\
do {											\
	__u64 __iova = (_at);								\
											\
	test_map_file(_ioas, IOAS_RW | IOAS_FIXED, _fd, _start, _length, &__iova);	\
} while (0)
#define test_err_map_at(_errno, _ioas, _fd, _start, _length, _at)			\
do {											\
	__u64 __iova = (_at);								\
											\
	test_err_map_file(_errno, _ioas, IOAS_RW | IOAS_FIXED, _fd, _start, _length,	\
			  &__iova);							\
} while (0)

#define test_copy_at(_dst, _src, _src_iova, _length, _at)				\
do {											\
	__u64 __iova = (_at);								\
											\
	ASSERT_EQ(0, ioas_copy(self->lab.iommufd, _dst, _src, IOAS_RW | IOAS_FIXED,	\
			       _src_iova, _length, &__iova));				\
} while (0)

/* The whole of it must have been there to be unmapped */
#define test_unmap(_ioas, _iova, _length)						\
do {											\
	__u64 __unmapped = 0;								\
											\
	ASSERT_EQ(0, ioas_unmap(self->lab.iommufd, _ioas, _iova, _length, &__unmapped));	\
	ASSERT_EQ(_length, __unmapped);							\
} while (0)
#define test_err_unmap(_errno, _ioas, _iova, _length)					\
	EXPECT_EQ(-(_errno), ioas_unmap(self->lab.iommufd, _ioas, _iova, _length, NULL))

#define test_attach(_pt)	ASSERT_EQ(0, lab_attach(&self->lab, _pt))
#define need_prepared_domains()								\
do {											\
	if (!lab_can_prepare_domains(&self->lab))					\
		SKIP(_exit(KSFT_SKIP), "this IOMMU fills no domain before it is attached");	\
} while (0)
#define test_hwpt_alloc(_id)								\
do {											\
	need_prepared_domains();							\
	ASSERT_EQ(0, hwpt_alloc(self->lab.iommufd, self->lab.edu.dev.devid,		\
				self->lab.ioas, _id));					\
} while (0)
#define test_detach()		ASSERT_EQ(0, vfio_dev_detach(&self->lab.edu.dev))

/* Load the initiator with a pattern; it must be attached to where lab.ram is mapped */
#define test_load(_seed)	ASSERT_EQ(0, lab_load(&self->lab, _seed))
/* Have it written to memory. Whether it lands is another question. */
#define test_dma_write(_iova)	ASSERT_EQ(0, edu_dma(&self->lab.edu, EDU_TO_MEMORY, _iova, XFER))

/* The BAR holds one pattern at an offset and zeroes everywhere else. Clears it. */
#define expect_landed(_offset, _seed)							\
do {											\
	EXPECT_EQ((long)(_offset), lab_first_set(&self->lab, 0));			\
	EXPECT_TRUE(lab_holds(self->lab.bar + (_offset), _seed));			\
	lab_clear(&self->lab, _offset);							\
	EXPECT_EQ(NOTHING, lab_first_set(&self->lab, (_offset) + XFER));		\
} while (0)

#define expect_nothing_landed()	EXPECT_EQ(NOTHING, lab_first_set(&self->lab, 0))

static inline __u8 pattern_byte(__u8 seed, unsigned int i)
{
	return (seed * 37 + i * 11 + (i >> 8) * 5) | 1;
}

static inline void pattern_fill(__u8 *buf, __u8 seed)
{
	unsigned int i;

	for (i = 0; i < XFER; i++)
		buf[i] = pattern_byte(seed, i);
}

static inline bool lab_holds(const volatile __u8 *buf, __u8 seed)
{
	unsigned int i;

	for (i = 0; i < XFER; i++)
		if (buf[i] != pattern_byte(seed, i))
			return false;
	return true;
}

/* Offset of the first word of the BAR that is not zero */
static inline long lab_first_set(struct lab *lab, size_t from)
{
	volatile __u64 *word;

	for (; from < lab->bar_size; from += sizeof(*word)) {
		word = (volatile __u64 *)(lab->bar + from);
		if (*word)
			return from;
	}
	return NOTHING;
}

/* What one transfer has left */
static inline void lab_clear(struct lab *lab, size_t from)
{
	size_t at;

	for (at = from; at < from + XFER; at += sizeof(__u64))
		*(volatile __u64 *)(lab->bar + at) = 0;
}

/* Only where it is needed: a BAR is slow to write */
static inline void lab_clear_bar(struct lab *lab)
{
	long at;

	for (at = lab_first_set(lab, 0); at != NOTHING; at = lab_first_set(lab, at))
		*(volatile __u64 *)(lab->bar + at) = 0;
}

/* The CPU puts a pattern at the start of the BAR */
static inline void lab_fill_bar(struct lab *lab, __u8 seed)
{
	unsigned int i;

	for (i = 0; i < XFER; i++)
		((volatile __u8 *)lab->bar)[i] = pattern_byte(seed, i);
}

static inline int lab_load(struct lab *lab, __u8 seed)
{
	pattern_fill(lab->ram, seed);
	return edu_dma(&lab->edu, EDU_FROM_MEMORY, LAB_RAM_IOVA, XFER);
}

static inline int lab_map_ram(struct lab *lab, __u32 ioas)
{
	__u64 iova = LAB_RAM_IOVA;

	return ioas_map(lab->iommufd, ioas, IOAS_RW | IOAS_FIXED, lab->ram, PAGE_BYTES, &iova);
}

/*
 * Some IOMMU drivers know the aperture of a domain only once it is attached to. To
 * iommufd nothing lies within it until then, not even a page of RAM.
 */
static inline bool lab_can_prepare_domains(struct lab *lab)
{
	__u32 ioas, hwpt;
	int ret;

	if (ioas_alloc(lab->iommufd, &ioas) || lab_map_ram(lab, ioas))
		return true;
	ret = hwpt_alloc(lab->iommufd, lab->edu.dev.devid, ioas, &hwpt);
	if (!ret)
		iommufd_destroy(lab->iommufd, hwpt);
	iommufd_destroy(lab->iommufd, ioas);
	return ret != -EADDRINUSE;
}

/*
 * From one IOAS to the next at once, or by way of none if the IOMMU cannot do that: a
 * domain without aperture leaves its IOAS no IOVA, if it is let in.
 */
static inline int lab_attach(struct lab *lab, __u32 pt)
{
	int ret = 0;

	if (!lab_can_prepare_domains(lab))
		ret = vfio_dev_detach(&lab->edu.dev);
	return ret ?: vfio_dev_attach(&lab->edu.dev, pt);
}

static inline int lab_open_peer(struct lab *lab, const char *name)
{
	int ret;

	ret = pci_bind_vfio(name);
	if (!ret)
		ret = vfio_dev_open(&lab->peer, name, lab->iommufd);
	if (ret)
		return ret;
	lab->bar = vfio_dev_mmap(&lab->peer, PEER_BAR, &lab->bar_size);
	if (lab->bar)
		return 0;
	vfio_dev_close(&lab->peer);
	return -ENODEV;
}

/* A mapped BAR would keep the device file open */
static inline void lab_close_peer(struct lab *lab)
{
	if (lab->bar)
		munmap(lab->bar, lab->bar_size);
	lab->bar = NULL;
	vfio_dev_close(&lab->peer);
}

static inline bool lab_meets(struct lab *lab, enum lab_need need)
{
	switch (need) {
	case LAB_NEED_PM:
		return vfio_dev_find_cap(&lab->peer, PCI_CAP_ID_PM) > 0;
	case LAB_NEED_FLR:
		return vfio_dev_has_flr(&lab->peer);
	default:
		return true;
	}
}

/* A machine with several devices of a kind says in the environment which is meant */
static inline int lab_find(const char *role, struct pci_id id, char name[PCI_NAME_LEN])
{
	const char *told = getenv(role);

	if (!told)
		return pci_find(id, 0, name);
	if (strlen(told) >= PCI_NAME_LEN)
		return -EINVAL;
	pci_copy_name(name, told);
	return pci_present(name) ? 0 : -ENODEV;
}

/* The first device with memory in its BAR that can do what is needed */
static inline int lab_choose_peer(struct lab *lab, enum lab_need need)
{
	const struct {
		const char *role;
		struct pci_id id;
	} candidates[] = {
		{ "VM_PEER", pci_id_ivshmem },
		{ "VM_NVME", pci_id_nvme },
	};
	char name[PCI_NAME_LEN];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(candidates); i++) {
		if (lab_find(candidates[i].role, candidates[i].id, name) ||
		    !pci_bar_size(name, PEER_BAR))
			continue;
		if (lab_open_peer(lab, name))
			continue;
		if (lab_meets(lab, need))
			return 0;
		lab_close_peer(lab);
	}
	return -ENODEV;
}

/* The number that a line of such a @format has in a file of /proc, or -1 */
static inline long lab_read_number(const char *path, const char *format)
{
	char line[128];
	long number = -1;
	FILE *file;

	file = fopen(path, "re");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file) && sscanf(line, format, &number) != 1)
		;
	fclose(file);
	return number;
}

static inline bool lab_can_export(struct lab *lab)
{
	return vfio_dev_feature(&lab->peer, VFIO_DEVICE_FEATURE_PROBE |
				VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
				NULL, 0) == 0;
}

/* An argument that is wrong in any case tells whether the ioctl is known */
static inline bool lab_can_map_file(struct lab *lab)
{
	return ioas_map_file(lab->iommufd, 0, 0, -1, 0, 0, &(__u64){ 0 }) != -ENOTTY;
}

/* Files that this process has open; the folder is one of them, once */
static inline long lab_count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	long count = 0;

	if (!dir)
		return -errno;
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

/* iommufd and the peer, enough for tests in which nothing is transferred */
static inline void lab_open_exporter(struct __test_metadata *_metadata, struct lab *lab,
				     enum lab_need need)
{
	lab->edu.dev.fd = -1;
	lab->peer.fd = -1;
	lab->buffers = dmabuf_count();
	REQUIRE(lab->buffers >= 0, "no /sys/kernel/debug/dma_buf/bufinfo");
	lab->iommufd = iommufd_open();
	REQUIRE(lab->iommufd >= 0, "no /dev/iommu");
	REQUIRE(!lab_choose_peer(lab, need), "no peer with memory in BAR%d", PEER_BAR);
	REQUIRE(lab_can_export(lab), "vfio-pci does not export dma-bufs");
	lab_clear_bar(lab);
}

/* The initiator, attached to an IOAS with a page of RAM in it */
static inline void lab_open_importer(struct __test_metadata *_metadata, struct lab *lab)
{
	char name[PCI_NAME_LEN];

	REQUIRE(lab_can_map_file(lab), "iommufd does not map files");
	REQUIRE(!lab_find("VM_DMA", pci_id_edu, name) && !pci_bind_vfio(name),
		"no DMA initiator");
	ASSERT_EQ(0, edu_open(&lab->edu, name, lab->iommufd));
	ASSERT_EQ(0, ioas_alloc(lab->iommufd, &lab->ioas));
	ASSERT_EQ(0, vfio_dev_attach(&lab->edu.dev, lab->ioas));
	lab->ram = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			-1, 0);
	ASSERT_NE(MAP_FAILED, lab->ram);
	ASSERT_EQ(0, lab_map_ram(lab, lab->ioas));
}

static inline void lab_open(struct __test_metadata *_metadata, struct lab *lab,
			    enum lab_need need)
{
	lab_open_exporter(_metadata, lab, need);
	lab_open_importer(_metadata, lab);
}

/* Let go of everything, and expect that the kernel does so too */
static inline void lab_close(struct __test_metadata *_metadata, struct lab *lab)
{
	lab_close_peer(lab);
	edu_close(&lab->edu);
	close_range(STDERR_FILENO + 1, ~0U, 0);
	EXPECT_TRUE(wait_until(dmabuf_count() == lab->buffers, LEAK_WAIT_MS)) {
		TH_LOG("%ld dma-bufs, there were %ld", dmabuf_count(), lab->buffers);
	}
}

/* MAP_FILE of ranges whose end is beyond what 64 bits can say, or far from any file */
static inline void lab_refuse_arithmetic(struct __test_metadata *_metadata, struct lab *lab,
					 int fd)
{
	const struct {
		__u64 start, length;
	} bad[] = {
		{ -SZ_4K, SZ_4K },
		{ -SZ_4K, 2 * SZ_4K },
		{ SZ_4K, -SZ_4K },
		{ 2 * SZ_4K, -SZ_4K },
		{ 1ULL << 63, SZ_4K },
		{ 1ULL << 63, 1ULL << 63 },
		{ 0, ULLONG_MAX },
	};
	unsigned int i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		ret = ioas_map_file(lab->iommufd, lab->ioas, IOAS_RW, fd, bad[i].start,
				    bad[i].length, &(__u64){ 0 });
		EXPECT_TRUE(ret == -EOVERFLOW || ret == -EINVAL) {
			TH_LOG("start %#llx length %#llx: %d", bad[i].start, bad[i].length, ret);
		}
	}
}

#endif
