/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * QEMU's educational device: a DMA engine between its own 4 KiB buffer and
 * memory. It tells nobody whether the IOMMU let a transfer pass, so the result
 * has to be looked for where the bytes should have landed.
 */
#ifndef _DMABUF_SELFTEST_EDU_H
#define _DMABUF_SELFTEST_EDU_H

#include "vfio_dev.h"

/* Transfers that touch the last byte of the buffer abort some versions of QEMU */
#define EDU_MAX_TRANSFER	2048
/* Only so many bits of an IOVA arrive, unless the device was told otherwise */
#define EDU_IOVA_LIMIT		0x10000000ULL

enum edu_direction {
	EDU_FROM_MEMORY,
	EDU_TO_MEMORY,
};

struct edu {
	struct vfio_dev dev;
	volatile __u8 *regs;
	size_t regs_size;
};

int edu_open(struct edu *edu, const char *name, int iommufd);
void edu_close(struct edu *edu);

/* A transfer has been started when this returns, and takes some 100 ms */
int edu_dma_start(struct edu *edu, enum edu_direction direction, __u64 iova, __u32 length);
bool edu_dma_is_idle(struct edu *edu);
int edu_dma_wait(struct edu *edu);
int edu_dma(struct edu *edu, enum edu_direction direction, __u64 iova, __u32 length);

#endif
