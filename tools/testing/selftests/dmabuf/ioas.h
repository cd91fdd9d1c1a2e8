/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * iommufd, as far as these tests use it. Functions return 0 or -errno.
 *
 * A @prot of 0 cannot be mapped; IOAS_RW is what nearly everybody wants. An IOVA
 * that is not NULL is input and output, and is fixed if @prot says so.
 */
#ifndef _DMABUF_SELFTEST_IOAS_H
#define _DMABUF_SELFTEST_IOAS_H

#include <linux/types.h>
#include <linux/iommufd.h>

#define IOAS_RO		IOMMU_IOAS_MAP_READABLE
#define IOAS_WO		IOMMU_IOAS_MAP_WRITEABLE
#define IOAS_RW		(IOAS_RO | IOAS_WO)
#define IOAS_FIXED	IOMMU_IOAS_MAP_FIXED_IOVA

int iommufd_open(void);
int iommufd_destroy(int iommufd, __u32 id);
int ioas_alloc(int iommufd, __u32 *id);
int ioas_map(int iommufd, __u32 ioas, __u32 prot, void *va, __u64 length, __u64 *iova);
int ioas_map_file(int iommufd, __u32 ioas, __u32 prot, int fd, __u64 start, __u64 length,
		  __u64 *iova);
int ioas_copy(int iommufd, __u32 dst_ioas, __u32 src_ioas, __u32 prot, __u64 src_iova,
	      __u64 length, __u64 *dst_iova);
int ioas_unmap(int iommufd, __u32 ioas, __u64 iova, __u64 length, __u64 *unmapped);
int hwpt_alloc(int iommufd, __u32 devid, __u32 ioas, __u32 *id);

#endif
