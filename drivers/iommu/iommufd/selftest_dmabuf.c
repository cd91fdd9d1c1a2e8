// SPDX-License-Identifier: GPL-2.0
/*
 * Mock exporter of dma-bufs that can be revoked
 *
 * It stands in for vfio-pci, with ranges of physical addresses where the test wants
 * them. No machine has anything there, so nobody gets these addresses but iommufd,
 * for a mock domain.
 */
#include <linux/dma-buf.h>
#include <linux/dma-resv.h>
#include <linux/iommufd.h>
#include <linux/overflow.h>
#include <linux/range.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "iommufd_private.h"
#include "iommufd_test.h"

#define MOCK_DMABUF_MAX_RANGES 64

/**
 * struct mock_dmabuf - private data of a mock dma-buf
 * @revoked: pin fails; written under the reservation lock
 * @nr_pinned: attachments that are pinned; protected by the reservation lock
 * @nr_ranges: number of @ranges
 * @ranges: physical addresses
 */
struct mock_dmabuf {
	bool revoked;
	unsigned int nr_pinned;
	unsigned int nr_ranges;
	struct range ranges[] __counted_by(nr_ranges);
};

/* A real exporter refuses while it is revoked. Here the pin does, so that it is tested. */
static int mock_dmabuf_attach(struct dma_buf *dmabuf,
			      struct dma_buf_attachment *attach)
{
	if (!attach->peer2peer || !dma_buf_attach_revocable(attach))
		return -EOPNOTSUPP;
	return 0;
}

static int mock_dmabuf_pin(struct dma_buf_attachment *attach)
{
	struct mock_dmabuf *mock = attach->dmabuf->priv;

	dma_resv_assert_held(attach->dmabuf->resv);

	if (mock->revoked)
		return -ENODEV;
	if (iommufd_should_fail())
		return -ENOMEM;
	mock->nr_pinned++;
	return 0;
}

static void mock_dmabuf_unpin(struct dma_buf_attachment *attach)
{
	struct mock_dmabuf *mock = attach->dmabuf->priv;

	dma_resv_assert_held(attach->dmabuf->resv);

	WARN_ON(!mock->nr_pinned);
	mock->nr_pinned--;
}

static struct sg_table *mock_dmabuf_map(struct dma_buf_attachment *attach,
					enum dma_data_direction dir)
{
	return ERR_PTR(-EOPNOTSUPP);
}

static void mock_dmabuf_unmap(struct dma_buf_attachment *attach,
			      struct sg_table *sgt, enum dma_data_direction dir)
{
}

static void mock_dmabuf_release(struct dma_buf *dmabuf)
{
	struct mock_dmabuf *mock = dmabuf->priv;

	WARN_ON(mock->nr_pinned);
	kfree(mock);
}

static const struct dma_buf_ops mock_dmabuf_ops = {
	.attach = mock_dmabuf_attach,
	.pin = mock_dmabuf_pin,
	.unpin = mock_dmabuf_unpin,
	.map_dma_buf = mock_dmabuf_map,
	.unmap_dma_buf = mock_dmabuf_unmap,
	.release = mock_dmabuf_release,
};

static void mock_dmabuf_get_ranges(struct dma_buf *dmabuf,
				   const struct range **ranges,
				   unsigned int *nr_ranges)
{
	struct mock_dmabuf *mock = dmabuf->priv;

	*ranges = mock->ranges;
	*nr_ranges = mock->nr_ranges;
}

static bool mock_dmabuf_is_live(struct dma_buf *dmabuf)
{
	struct mock_dmabuf *mock = dmabuf->priv;

	return !READ_ONCE(mock->revoked);
}

static struct iommufd_dma_buf_exporter mock_dmabuf_exporter = {
	.ops = &mock_dmabuf_ops,
	.get_ranges = mock_dmabuf_get_ranges,
	.is_live = mock_dmabuf_is_live,
};

static int
mock_dmabuf_set_ranges(struct mock_dmabuf *mock,
		       const struct iommu_test_dmabuf_range __user *uranges,
		       size_t *size)
{
	struct iommu_test_dmabuf_range range;
	unsigned int i;
	u64 last;

	*size = 0;
	for (i = 0; i != mock->nr_ranges; i++) {
		if (copy_from_user(&range, &uranges[i], sizeof(range)))
			return -EFAULT;
		if (!range.length || !PAGE_ALIGNED(range.start) ||
		    !PAGE_ALIGNED(range.length) ||
		    check_add_overflow(range.start, range.length - 1, &last) ||
		    range.start < MOCK_MMIO_START || last > MOCK_MMIO_LAST)
			return -EINVAL;
		mock->ranges[i].start = range.start;
		mock->ranges[i].end = last;
		*size += range.length;
	}
	return 0;
}

/* Make a dma-buf of these ranges and return its fd */
int iommufd_test_dmabuf_get(struct iommu_test_cmd *cmd)
{
	unsigned int nr_ranges = cmd->dmabuf_get.nr_ranges;
	DEFINE_DMA_BUF_EXPORT_INFO(exp_info);
	struct mock_dmabuf *mock;
	struct dma_buf *dmabuf;
	int rc;

	if (!nr_ranges || nr_ranges > MOCK_DMABUF_MAX_RANGES)
		return -EINVAL;

	mock = kzalloc(struct_size(mock, ranges, nr_ranges),
		       GFP_KERNEL_ACCOUNT);
	if (!mock)
		return -ENOMEM;
	mock->nr_ranges = nr_ranges;
	rc = mock_dmabuf_set_ranges(mock,
				    u64_to_user_ptr(cmd->dmabuf_get.ranges_uptr),
				    &exp_info.size);
	if (rc)
		goto err_free;

	exp_info.ops = &mock_dmabuf_ops;
	exp_info.flags = O_RDWR;
	exp_info.priv = mock;
	dmabuf = dma_buf_export(&exp_info);
	if (IS_ERR(dmabuf)) {
		rc = PTR_ERR(dmabuf);
		goto err_free;
	}

	/* From here on it is the release of the dma-buf that frees mock */
	rc = dma_buf_fd(dmabuf, O_CLOEXEC);
	if (rc < 0)
		dma_buf_put(dmabuf);
	return rc;

err_free:
	kfree(mock);
	return rc;
}

/* Take the memory of a mock dma-buf away, or give it back */
int iommufd_test_dmabuf_revoke(struct iommu_test_cmd *cmd)
{
	bool revoked = cmd->dmabuf_revoke.revoked;
	struct mock_dmabuf *mock;
	struct dma_buf *dmabuf;
	int rc = 0;

	dmabuf = dma_buf_get(cmd->dmabuf_revoke.fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);

	if (dmabuf->ops != &mock_dmabuf_ops) {
		rc = -EINVAL;
		goto out_put;
	}

	mock = dmabuf->priv;
	dma_resv_lock(dmabuf->resv, NULL);
	if (mock->revoked != revoked) {
		WRITE_ONCE(mock->revoked, revoked);
		dma_buf_invalidate_mappings(dmabuf);
	}
	dma_resv_unlock(dmabuf->resv);
out_put:
	dma_buf_put(dmabuf);
	return rc;
}

void __init iommufd_test_dmabuf_init(void)
{
	iommufd_register_dma_buf_exporter(&mock_dmabuf_exporter);
}

void iommufd_test_dmabuf_exit(void)
{
	iommufd_unregister_dma_buf_exporter(&mock_dmabuf_exporter);
}
