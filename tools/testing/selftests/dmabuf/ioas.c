// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/ioctl.h>

#include "ioas.h"

int iommufd_open(void)
{
	int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int iommufd_destroy(int iommufd, __u32 id)
{
	struct iommu_destroy cmd = {
		.size = sizeof(cmd),
		.id = id,
	};

	return ioctl(iommufd, IOMMU_DESTROY, &cmd) ? -errno : 0;
}

int ioas_alloc(int iommufd, __u32 *id)
{
	struct iommu_ioas_alloc cmd = {
		.size = sizeof(cmd),
	};

	if (ioctl(iommufd, IOMMU_IOAS_ALLOC, &cmd))
		return -errno;
	*id = cmd.out_ioas_id;
	return 0;
}

int ioas_map(int iommufd, __u32 ioas, __u32 prot, void *va, __u64 length, __u64 *iova)
{
	struct iommu_ioas_map cmd = {
		.size = sizeof(cmd),
		.flags = prot,
		.ioas_id = ioas,
		.user_va = (uintptr_t)va,
		.length = length,
		.iova = *iova,
	};

	if (ioctl(iommufd, IOMMU_IOAS_MAP, &cmd))
		return -errno;
	*iova = cmd.iova;
	return 0;
}

int ioas_map_file(int iommufd, __u32 ioas, __u32 prot, int fd, __u64 start, __u64 length,
		  __u64 *iova)
{
	struct iommu_ioas_map_file cmd = {
		.size = sizeof(cmd),
		.flags = prot,
		.ioas_id = ioas,
		.fd = fd,
		.start = start,
		.length = length,
		.iova = *iova,
	};

	if (ioctl(iommufd, IOMMU_IOAS_MAP_FILE, &cmd))
		return -errno;
	*iova = cmd.iova;
	return 0;
}

int ioas_copy(int iommufd, __u32 dst_ioas, __u32 src_ioas, __u32 prot, __u64 src_iova,
	      __u64 length, __u64 *dst_iova)
{
	struct iommu_ioas_copy cmd = {
		.size = sizeof(cmd),
		.flags = prot,
		.dst_ioas_id = dst_ioas,
		.src_ioas_id = src_ioas,
		.length = length,
		.dst_iova = *dst_iova,
		.src_iova = src_iova,
	};

	if (ioctl(iommufd, IOMMU_IOAS_COPY, &cmd))
		return -errno;
	*dst_iova = cmd.dst_iova;
	return 0;
}

/* @unmapped, if wanted, is how many bytes were taken out */
int ioas_unmap(int iommufd, __u32 ioas, __u64 iova, __u64 length, __u64 *unmapped)
{
	struct iommu_ioas_unmap cmd = {
		.size = sizeof(cmd),
		.ioas_id = ioas,
		.iova = iova,
		.length = length,
	};

	if (ioctl(iommufd, IOMMU_IOAS_UNMAP, &cmd))
		return -errno;
	if (unmapped)
		*unmapped = cmd.length;
	return 0;
}

/* A second domain for an IOAS, which a device can be moved to */
int hwpt_alloc(int iommufd, __u32 devid, __u32 ioas, __u32 *id)
{
	struct iommu_hwpt_alloc cmd = {
		.size = sizeof(cmd),
		.dev_id = devid,
		.pt_id = ioas,
	};

	if (ioctl(iommufd, IOMMU_HWPT_ALLOC, &cmd))
		return -errno;
	*id = cmd.out_hwpt_id;
	return 0;
}
