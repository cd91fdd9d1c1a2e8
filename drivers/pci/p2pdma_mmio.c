// SPDX-License-Identifier: GPL-2.0
/*
 * Peer to peer DMA to MMIO that has no struct pages
 *
 * pci_p2pdma_add_resource() gives a BAR struct pages, which live as long as the
 * driver is bound and can be pinned by anybody. A BAR that must be taken back
 * from its users at any time cannot have them. Such a BAR is mapped for a peer
 * by its addresses, and the result is a scatterlist of DMA addresses alone.
 */
#include <linux/dma-mapping.h>
#include <linux/iommu.h>
#include <linux/overflow.h>
#include <linux/pci-p2pdma.h>
#include <linux/range.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "p2pdma.h"

/*
 * A scatterlist entry has a length of 32 bits. A power of two keeps the alignment
 * of the range in all entries, which importers need for large pages.
 */
#define P2PDMA_MMIO_MAX_SEG	SZ_2G

/* The CPU does not cache MMIO, and any number of devices can share it. */
#define P2PDMA_MMIO_ATTRS	DMA_ATTR_SKIP_CPU_SYNC

static size_t mmio_max_seg(struct device *client)
{
	size_t max_seg = min(dma_get_max_seg_size(client), P2PDMA_MMIO_MAX_SEG);

	return max(rounddown_pow_of_two(max_seg), PAGE_SIZE);
}

static int mmio_count_segs(const struct range *ranges, unsigned int nr_ranges,
			   size_t max_seg, unsigned int *nents)
{
	unsigned int i;
	u64 segs;

	*nents = 0;
	for (i = 0; i < nr_ranges; i++) {
		segs = DIV_ROUND_UP_ULL(range_len(&ranges[i]), max_seg);
		if (check_add_overflow(*nents, segs, nents))
			return -EOVERFLOW;
	}
	return 0;
}

static struct scatterlist *mmio_fill_segs(struct scatterlist *sg,
					  dma_addr_t addr, u64 len,
					  size_t max_seg, bool bus_addr)
{
	while (len) {
		u32 seg = min_t(u64, len, max_seg);

		sg_dma_address(sg) = addr;
		sg_dma_len(sg) = seg;
		if (bus_addr)
			sg_dma_mark_bus_address(sg);
		addr += seg;
		len -= seg;
		sg = sg_next(sg);
	}
	return sg;
}

/* Undo dma_map_resource() of the first @nr_ranges ranges. */
static void mmio_unmap_resources(struct sg_table *sgt,
				 const struct range *ranges,
				 unsigned int nr_ranges, struct device *client,
				 enum dma_data_direction dir)
{
	struct scatterlist *sg = sgt->sgl;
	unsigned int i;

	for (i = 0; i < nr_ranges; i++) {
		u64 len = range_len(&ranges[i]);

		dma_unmap_resource(client, sg_dma_address(sg), len, dir,
				   P2PDMA_MMIO_ATTRS);
		while (len) {
			len -= sg_dma_len(sg);
			sg = sg_next(sg);
		}
	}
}

/*
 * An IOMMU has addresses for @range that @client can reach. Without one they are
 * what they are, and the DMA API warns about those that are too high. Where an
 * architecture translates without an iommu_domain, this refuses too much.
 */
static bool mmio_is_reachable(const struct range *range, struct device *client)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(client);

	if (domain && domain->type & __IOMMU_DOMAIN_PAGING)
		return true;
	return range->end <= min_not_zero(dma_get_mask(client),
					  client->bus_dma_limit);
}

static int mmio_map_resources(struct sg_table *sgt, const struct range *ranges,
			      unsigned int nr_ranges, size_t max_seg,
			      struct device *client,
			      enum dma_data_direction dir)
{
	struct scatterlist *sg = sgt->sgl;
	unsigned int i;

	for (i = 0; i < nr_ranges; i++) {
		u64 len = range_len(&ranges[i]);
		dma_addr_t addr;

		if (!mmio_is_reachable(&ranges[i], client))
			goto err_unmap;

		addr = dma_map_resource(client, ranges[i].start, len, dir,
					P2PDMA_MMIO_ATTRS);
		if (dma_mapping_error(client, addr))
			goto err_unmap;

		sg = mmio_fill_segs(sg, addr, len, max_seg, false);
	}
	return 0;

err_unmap:
	mmio_unmap_resources(sgt, ranges, i, client, dir);
	return -EIO;
}

static int mmio_fill_bus_addrs(struct sg_table *sgt, u64 bus_offset,
			       const struct range *ranges,
			       unsigned int nr_ranges, size_t max_seg,
			       struct device *client)
{
	struct scatterlist *sg = sgt->sgl;
	unsigned int i;

	for (i = 0; i < nr_ranges; i++) {
		if (ranges[i].end + bus_offset > dma_get_mask(client))
			return -EIO;
		sg = mmio_fill_segs(sg, ranges[i].start + bus_offset,
				    range_len(&ranges[i]), max_seg, true);
	}
	return 0;
}

/**
 * pci_p2pdma_map_mmio - map ranges of a BAR for DMA by a peer
 * @provider: device that has the BAR
 * @bar: index of the BAR
 * @ranges: page aligned ranges of CPU physical addresses inside of the BAR
 * @nr_ranges: number of @ranges, not 0
 * @client: device that is to access them
 * @dir: direction of the access
 *
 * The entries are PCI bus addresses, marked with sg_dma_mark_bus_address(), where
 * a switch routes from @client to @provider by itself. Otherwise they are what
 * dma_map_resource() returns for @client. They follow @ranges in order. None is
 * longer than the segment size of @client, or a page if that is less, nor 4 GiB or
 * more. As with dma_map_resource(), the segment boundary of @client is not heeded.
 *
 * There are no struct pages behind the result: it has no entries for the CPU
 * (&sg_table.orig_nents is 0), only &sg_table.nents for DMA.
 *
 * Context: May sleep. @provider must be bound to the driver that calls this, and
 * must stay so until the mapping is undone with pci_p2pdma_unmap_mmio().
 *
 * Return: the table, or an ERR_PTR: -EOPNOTSUPP if P2PDMA does not know a way from
 * @client to @provider, -ENOMEM, -EOVERFLOW if there were too many entries, -EIO
 * if @client cannot address the BAR, or has no DMA addresses left for it.
 */
struct sg_table *pci_p2pdma_map_mmio(struct pci_dev *provider, int bar,
				     const struct range *ranges,
				     unsigned int nr_ranges,
				     struct device *client,
				     enum dma_data_direction dir)
{
	size_t max_seg = mmio_max_seg(client);
	enum pci_p2pdma_map_type type;
	struct sg_table *sgt;
	unsigned int nents;
	int ret;

	type = pci_p2pdma_mmio_map_type(provider, client);
	if (type == PCI_P2PDMA_MAP_NOT_SUPPORTED)
		return ERR_PTR(-EOPNOTSUPP);

	ret = mmio_count_segs(ranges, nr_ranges, max_seg, &nents);
	if (ret)
		return ERR_PTR(ret);

	sgt = kzalloc(sizeof(*sgt), GFP_KERNEL);
	if (!sgt)
		return ERR_PTR(-ENOMEM);

	ret = sg_alloc_table(sgt, nents, GFP_KERNEL);
	if (ret)
		goto err_free_sgt;

	if (type == PCI_P2PDMA_MAP_BUS_ADDR)
		ret = mmio_fill_bus_addrs(sgt, pci_bus_address(provider, bar) -
					  pci_resource_start(provider, bar),
					  ranges, nr_ranges, max_seg, client);
	else
		ret = mmio_map_resources(sgt, ranges, nr_ranges, max_seg,
					 client, dir);
	if (ret)
		goto err_free_table;

	sgt->orig_nents = 0;
	return sgt;

err_free_table:
	sg_free_table(sgt);
err_free_sgt:
	kfree(sgt);
	return ERR_PTR(ret);
}
EXPORT_SYMBOL_GPL(pci_p2pdma_map_mmio);

/**
 * pci_p2pdma_unmap_mmio - undo pci_p2pdma_map_mmio()
 * @sgt: what pci_p2pdma_map_mmio() returned, with the lengths that it had then; freed
 * @ranges: the ranges that it was called with
 * @nr_ranges: number of @ranges
 * @client: the device that it was called with
 * @dir: the direction that it was called with
 *
 * Context: May sleep.
 */
void pci_p2pdma_unmap_mmio(struct sg_table *sgt, const struct range *ranges,
			   unsigned int nr_ranges, struct device *client,
			   enum dma_data_direction dir)
{
	if (!sg_dma_is_bus_address(sgt->sgl))
		mmio_unmap_resources(sgt, ranges, nr_ranges, client, dir);

	sgt->orig_nents = sgt->nents;
	sg_free_table(sgt);
	kfree(sgt);
}
EXPORT_SYMBOL_GPL(pci_p2pdma_unmap_mmio);

#ifdef CONFIG_PCI_P2PDMA_KUNIT_TEST
#include "tests/p2pdma_mmio_kunit.c"
#endif
