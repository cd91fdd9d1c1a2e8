// SPDX-License-Identifier: GPL-2.0-only
#include <sys/mman.h>

#include "edu.h"

#define EDU_BAR			0
#define EDU_ID			0x00
#define EDU_ID_MASK		0x0000ffff
#define EDU_ID_VALUE		0x00ed
#define EDU_DMA_SOURCE		0x80
#define EDU_DMA_DESTINATION	0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_COMMAND		0x98
#define EDU_DMA_RUN		0x1
#define EDU_DMA_TO_MEMORY	0x2
#define EDU_BUFFER		0x40000
#define EDU_DMA_WAIT_MS		10000

static __u32 edu_read32(struct edu *edu, size_t reg)
{
	return *(volatile __u32 *)(edu->regs + reg);
}

static __u64 edu_read64(struct edu *edu, size_t reg)
{
	return *(volatile __u64 *)(edu->regs + reg);
}

static void edu_write64(struct edu *edu, size_t reg, __u64 val)
{
	*(volatile __u64 *)(edu->regs + reg) = val;
}

static int edu_start_up(struct edu *edu)
{
	int ret;

	edu->regs = vfio_dev_mmap(&edu->dev, EDU_BAR, &edu->regs_size);
	if (!edu->regs)
		return -ENODEV;
	if ((edu_read32(edu, EDU_ID) & EDU_ID_MASK) != EDU_ID_VALUE)
		return -ENODEV;
	ret = vfio_dev_bus_master(&edu->dev, true);
	if (ret)
		return ret;
	/* Its last owner may have been killed in the middle of a transfer */
	return edu_dma_wait(edu);
}

int edu_open(struct edu *edu, const char *name, int iommufd)
{
	int ret;

	edu->regs = NULL;
	ret = vfio_dev_open(&edu->dev, name, iommufd);
	if (ret)
		return ret;
	ret = edu_start_up(edu);
	if (ret)
		edu_close(edu);
	return ret;
}

void edu_close(struct edu *edu)
{
	if (edu->regs)
		munmap((void *)edu->regs, edu->regs_size);
	edu->regs = NULL;
	vfio_dev_close(&edu->dev);
}

/* The device wraps addresses that are too high for it, silently: refuse them here */
int edu_dma_start(struct edu *edu, enum edu_direction direction, __u64 iova, __u32 length)
{
	bool to_memory = direction == EDU_TO_MEMORY;

	if (length > EDU_MAX_TRANSFER || iova + length > EDU_IOVA_LIMIT)
		return -ERANGE;
	edu_write64(edu, EDU_DMA_SOURCE, to_memory ? EDU_BUFFER : iova);
	edu_write64(edu, EDU_DMA_DESTINATION, to_memory ? iova : EDU_BUFFER);
	edu_write64(edu, EDU_DMA_COUNT, length);
	/* Memory that it is to fetch must have been written by then */
	__sync_synchronize();
	edu_write64(edu, EDU_DMA_COMMAND, EDU_DMA_RUN | (to_memory ? EDU_DMA_TO_MEMORY : 0));
	return 0;
}

bool edu_dma_is_idle(struct edu *edu)
{
	return !(edu_read64(edu, EDU_DMA_COMMAND) & EDU_DMA_RUN);
}

int edu_dma_wait(struct edu *edu)
{
	bool idle = wait_until(edu_dma_is_idle(edu), EDU_DMA_WAIT_MS);

	/* No memory that it was to write is read before */
	__sync_synchronize();
	return idle ? 0 : -ETIMEDOUT;
}

int edu_dma(struct edu *edu, enum edu_direction direction, __u64 iova, __u32 length)
{
	int ret;

	ret = edu_dma_start(edu, direction, iova, length);
	return ret ?: edu_dma_wait(edu);
}
