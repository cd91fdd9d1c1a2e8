// SPDX-License-Identifier: GPL-2.0-only
/*
 * dma-bufs as an origin of iopt_pages
 *
 * There are no pages here: the memory is MMIO of a device, and its exporter can
 * take it back at any time. So nothing is read back from a domain, pinned in the
 * sense of mm, accounted, or handed to an in-kernel access. The physical ranges
 * come from the exporter and do not change. What does change is whether they may
 * be mapped.
 *
 * Every (area, domain) pair that the dma-buf should be mapped in has a struct
 * iopt_dmabuf_map. The one invariant is, under both the reservation lock and
 * iopt_pages::mutex:
 *
 *	revoked: none of them is mapped
 *	else:    all of them are mapped, but for domains that cannot map it when it is
 *		 restored, or a revoke is under way
 *
 * iopt_dmabuf_invalidate() is the transition, in both directions. It is called by
 * the exporter with the reservation lock held. When it returns no domain maps memory
 * that has gone, and the IOTLBs are flushed, so there is no fence; memory that is
 * back is mapped again. It takes no lock but the mutex:
 * io_pagetable::domains_rwsem and iova_rwsem may be held while waiting for
 * userspace to fault pages in, which a revoke must not. This is what the pairs are
 * kept for, and it puts this mutex in a class of its own:
 *
 *	reservation lock -> iopt_pages::mutex (of dma-bufs)
 *	domains_rwsem -> iova_rwsem -> iopt_pages::mutex (of dma-bufs)
 *	domains_rwsem -> iova_rwsem -> iopt_pages::mutex (of others) -> mmap_lock
 *
 * Under the mutex, to map can take long as well: the tables are charged to the cgroup
 * of the importer, which at its limit has to make room for each batch of them. So
 * mapping goes by steps, and the revoke tells it to stop before it waits for a lock:
 * by iommufd_dma_buf_exporter::is_live where that is the reservation lock, which a
 * restore is made with, and by iopt_dmabuf::revoked where it is the mutex. What has
 * stopped is not mapped when the revoke comes, which knows that.
 *
 * An area of a revoked dma-buf stays where it is, mapping nothing, until the memory
 * is back or userspace unmaps it. An area that is mapped cannot be split, so there
 * is no use for small pages either, whatever io_pagetable::disable_large_pages says.
 */
#include <linux/dma-buf.h>
#include <linux/dma-resv.h>
#include <linux/iommu.h>
#include <linux/iommufd.h>
#include <linux/memcontrol.h>
#include <linux/overflow.h>
#include <linux/range.h>
#include <linux/sched/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "io_pagetable.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

/* Protects dma_buf_exporters. */
static DEFINE_MUTEX(dma_buf_exporters_lock);
static LIST_HEAD(dma_buf_exporters);

static struct lock_class_key dmabuf_pages_mutex_class;

/**
 * struct iopt_dmabuf - what iopt_pages of a dma-buf have besides
 * @attach: our attachment, pinned
 * @exporter: the exporter of the dma-buf
 * @ranges: physical ranges of the whole dma-buf, owned by the exporter
 * @start: offset in the dma-buf of the first page, in bytes
 * @revoked: nothing is to be mapped; written under the reservation lock
 * @restore_failed: at the latest restore none of @maps has been mapped for want of
 *	memory, or some have not that are still there; written under
 *	iopt_pages::mutex
 * @memcg: whom to charge, whoever it is that brings the memory back
 * @maps: iopt_dmabuf_map::node; protected by iopt_pages::mutex
 */
struct iopt_dmabuf {
	struct dma_buf_attachment *attach;
	struct iommufd_dma_buf_exporter *exporter;
	const struct range *ranges;
	unsigned long start;
	bool revoked;
	bool restore_failed;
	struct mem_cgroup *memcg;
	struct list_head maps;
};

/**
 * struct iopt_dmabuf_map - an area that should be mapped in a domain
 * @node: on iopt_dmabuf::maps, for the revoke
 * @area_node: on iopt_area::dmabuf_maps, for everything else
 * @area: the area
 * @domain: one of the domains of the area's IOAS
 * @mapped: it is
 *
 * All are protected by iopt_pages::mutex.
 */
struct iopt_dmabuf_map {
	struct list_head node;
	struct list_head area_node;
	struct iopt_area *area;
	struct iommu_domain *domain;
	bool mapped;
};

/**
 * iommufd_register_dma_buf_exporter() - Let dma-bufs of an exporter be mapped
 * @exporter: what iommufd needs to know of it
 *
 * Context: Process context. To be undone before the module that has @exporter is
 * unloaded; dma-bufs of it must not exist any more, or hold the module.
 */
void iommufd_register_dma_buf_exporter(struct iommufd_dma_buf_exporter *exporter)
{
	mutex_lock(&dma_buf_exporters_lock);
	list_add_tail(&exporter->node, &dma_buf_exporters);
	mutex_unlock(&dma_buf_exporters_lock);
}
EXPORT_SYMBOL_NS_GPL(iommufd_register_dma_buf_exporter, IOMMUFD_DMA_BUF);

/**
 * iommufd_unregister_dma_buf_exporter() - Undo
 *	iommufd_register_dma_buf_exporter()
 * @exporter: what was registered
 */
void iommufd_unregister_dma_buf_exporter(struct iommufd_dma_buf_exporter *exporter)
{
	mutex_lock(&dma_buf_exporters_lock);
	list_del(&exporter->node);
	mutex_unlock(&dma_buf_exporters_lock);
}
EXPORT_SYMBOL_NS_GPL(iommufd_unregister_dma_buf_exporter, IOMMUFD_DMA_BUF);

/* It is this that bounds the walks over the ranges. */
static int dmabuf_check_ranges(const struct range *ranges,
			       unsigned int nr_ranges, size_t size)
{
	u64 total = 0;
	unsigned int i;

	for (i = 0; i < nr_ranges; i++) {
		if (WARN_ON(!PAGE_ALIGNED(ranges[i].start | (ranges[i].end + 1))))
			return -EINVAL;
		total += range_len(&ranges[i]);
	}
	return WARN_ON(total != size) ? -EINVAL : 0;
}

/* The reference to the dma-buf keeps the exporter that matches it registered. */
static int dmabuf_get_ranges(struct iopt_dmabuf *db, struct dma_buf *dmabuf)
{
	struct iommufd_dma_buf_exporter *exporter;
	unsigned int nr_ranges;
	int rc = -EOPNOTSUPP;

	mutex_lock(&dma_buf_exporters_lock);
	list_for_each_entry(exporter, &dma_buf_exporters, node) {
		if (exporter->ops != dmabuf->ops)
			continue;
		exporter->get_ranges(dmabuf, &db->ranges, &nr_ranges);
		rc = dmabuf_check_ranges(db->ranges, nr_ranges, dmabuf->size);
		db->exporter = exporter;
		break;
	}
	mutex_unlock(&dma_buf_exporters_lock);
	return rc;
}

/**
 * struct dmabuf_walk - a walk along pieces of contiguous physical memory
 * @range: where the present piece begins
 * @skip: bytes of @range before it
 * @left: bytes from its beginning to the end of the walk
 * @phys: its address
 * @length: its length
 */
struct dmabuf_walk {
	const struct range *range;
	u64 skip;
	u64 left;
	phys_addr_t phys;
	u64 length;
};

static struct dmabuf_walk dmabuf_walk_begin(struct iopt_dmabuf *db,
					    unsigned long start_byte,
					    unsigned long length)
{
	return (struct dmabuf_walk) {
		.range = db->ranges,
		.skip = (u64)db->start + start_byte,
		.left = length,
	};
}

/* Go on to the next piece. It can be several ranges, if they are adjacent. */
static bool dmabuf_walk_next(struct dmabuf_walk *walk)
{
	const struct range *range;

	walk->skip += walk->length;
	walk->left -= walk->length;
	if (!walk->left)
		return false;

	while (walk->skip >= range_len(walk->range))
		walk->skip -= range_len(walk->range++);

	range = walk->range;
	walk->phys = range->start + walk->skip;
	walk->length = range_len(range) - walk->skip;
	while (walk->length < walk->left && range[1].start == range->end + 1)
		walk->length += range_len(++range);
	walk->length = min(walk->length, walk->left);
	return true;
}

/*
 * How much to map in one step. With pages of 4 KiB and more, that takes no more
 * than about eight tables, and it ends where the largest of pages can follow.
 */
static size_t dmabuf_map_step(struct iommu_domain *domain, u64 iova, u64 phys,
			      u64 length)
{
	u64 differ = iova ^ phys;
	/* The page sizes for which both are at the same place in a page */
	u64 pgsizes = domain->pgsize_bitmap & (differ ^ (differ - 1));
	u64 step = SZ_16M;

	if (pgsizes >= SZ_2M)
		step = max_t(u64, SZ_8G, BIT_ULL(fls64(pgsizes) - 1));

	return min(length, step - (iova & (step - 1)));
}

/*
 * Map the part of the dma-buf that the area covers, which can be many ranges, or
 * nothing of it. -ECANCELED says that it is revoked, or about to be.
 */
static int dmabuf_map_area(struct iopt_pages *pages,
			   struct iopt_dmabuf_map *map)
{
	struct iopt_dmabuf *db = pages->dmabuf;
	struct iopt_area *area = map->area;
	int prot = (area->iommu_prot & ~IOMMU_CACHE) | IOMMU_MMIO;
	unsigned long first = iopt_area_iova(area);
	unsigned long iova = first;
	struct dmabuf_walk walk;
	u64 at, n;
	int rc;

	lockdep_assert_held(&pages->mutex);

	walk = dmabuf_walk_begin(db, iopt_area_start_byte(area, first),
				 iopt_area_length(area));
	while (dmabuf_walk_next(&walk)) {
		for (at = 0; at < walk.length; at += n) {
			if (READ_ONCE(db->revoked) ||
			    !db->exporter->is_live(db->attach->dmabuf)) {
				rc = -ECANCELED;
				goto out_unmap;
			}
			n = dmabuf_map_step(map->domain, iova, walk.phys + at,
					    walk.length - at);
			rc = iommu_map(map->domain, iova, walk.phys + at, n,
				       prot, GFP_KERNEL_ACCOUNT);
			if (rc)
				goto out_unmap;
			iova += n;
			cond_resched();
		}
	}
	map->mapped = true;
	return 0;

out_unmap:
	if (iova != first)
		iommu_unmap(map->domain, first, iova - first);
	return rc;
}

static size_t dmabuf_unmap_area(struct iopt_pages *pages,
				struct iopt_dmabuf_map *map)
{
	size_t length = iopt_area_length(map->area);

	lockdep_assert_held(&pages->mutex);

	if (!map->mapped)
		return 0;
	WARN_ON(iommu_unmap(map->domain, iopt_area_iova(map->area), length) !=
		length);
	map->mapped = false;
	return length;
}

/**
 * iopt_dmabuf_fill_domain() - Map an area of a dma-buf into a domain
 * @area: Area to map
 * @pages: Pages of the area, area->pages may still be NULL
 * @domain: Domain to map into
 *
 * Succeeds without mapping anything if the dma-buf is revoked, or if there has been
 * no memory to map it again. All of it is mapped the next time that there is.
 *
 * Return: 0, or a negative errno with the domain left unchanged
 */
int iopt_dmabuf_fill_domain(struct iopt_area *area, struct iopt_pages *pages,
			    struct iommu_domain *domain)
{
	struct iopt_dmabuf_map *map;
	int rc;

	lockdep_assert_held(&pages->mutex);

	map = kzalloc(sizeof(*map), GFP_KERNEL_ACCOUNT);
	if (!map)
		return -ENOMEM;
	map->area = area;
	map->domain = domain;

	rc = dmabuf_map_area(pages, map);
	if (rc && rc != -ECANCELED) {
		kfree(map);
		return rc;
	}
	list_add_tail(&map->node, &pages->dmabuf->maps);
	list_add_tail(&map->area_node, &area->dmabuf_maps);
	return 0;
}

static bool dmabuf_all_mapped(struct iopt_pages *pages)
{
	struct iopt_dmabuf_map *map;

	lockdep_assert_held(&pages->mutex);

	list_for_each_entry(map, &pages->dmabuf->maps, node)
		if (!map->mapped)
			return false;
	return true;
}

static void dmabuf_unfill(struct iopt_pages *pages, struct iopt_dmabuf_map *map)
{
	struct iopt_dmabuf *db = pages->dmabuf;

	lockdep_assert_held(&pages->mutex);

	dmabuf_unmap_area(pages, map);
	list_del(&map->area_node);
	list_del(&map->node);
	kfree(map);

	/* It may have been the last one that could not be restored. */
	if (db->restore_failed && !READ_ONCE(db->revoked))
		WRITE_ONCE(db->restore_failed, !dmabuf_all_mapped(pages));
}

/**
 * iopt_dmabuf_unfill_domain() - Undo iopt_dmabuf_fill_domain()
 * @area: Area to unmap
 * @pages: Pages of the area, area->pages may be NULL
 * @domain: Domain to unmap from, may be one that was never filled
 */
void iopt_dmabuf_unfill_domain(struct iopt_area *area, struct iopt_pages *pages,
			       struct iommu_domain *domain)
{
	struct iopt_dmabuf_map *map;

	lockdep_assert_held(&pages->mutex);

	list_for_each_entry(map, &area->dmabuf_maps, area_node) {
		if (map->domain != domain)
			continue;
		dmabuf_unfill(pages, map);
		return;
	}
}

/**
 * iopt_dmabuf_unfill_domains() - Undo iopt_dmabuf_fill_domains()
 * @area: Area to unmap from all domains of its IOAS
 * @pages: Pages of the area, area->pages is NULL
 */
void iopt_dmabuf_unfill_domains(struct iopt_area *area,
				struct iopt_pages *pages)
{
	struct iopt_dmabuf_map *map, *next;

	lockdep_assert_held(&area->iopt->domains_rwsem);
	lockdep_assert_held(&pages->mutex);

	list_for_each_entry_safe(map, next, &area->dmabuf_maps, area_node)
		dmabuf_unfill(pages, map);
}

/**
 * iopt_dmabuf_fill_domains() - Map an area of a dma-buf into all domains
 * @area: Area to map, freshly created
 * @pages: Pages of the area, area->pages is NULL
 *
 * Return: 0, or a negative errno with all domains left unchanged
 */
int iopt_dmabuf_fill_domains(struct iopt_area *area, struct iopt_pages *pages)
{
	struct iommu_domain *domain;
	unsigned long index;
	int rc;

	lockdep_assert_held(&area->iopt->domains_rwsem);
	lockdep_assert_held(&pages->mutex);

	xa_for_each(&area->iopt->domains, index, domain) {
		rc = iopt_dmabuf_fill_domain(area, pages, domain);
		if (rc) {
			iopt_dmabuf_unfill_domains(area, pages);
			return rc;
		}
	}
	return 0;
}

/**
 * iopt_dmabuf_iova_alignment() - What IOVA lets large pages of an IOMMU be used
 * @pages: Pages of a dma-buf
 * @start_byte: First byte of @pages to be mapped
 * @length: How many bytes
 * @remainder: Set to the remainder that the IOVA should have
 *
 * Where there are several pieces the largest one decides.
 *
 * Return: the power of two that @remainder is to.
 */
unsigned long iopt_dmabuf_iova_alignment(struct iopt_pages *pages,
					 unsigned long start_byte,
					 unsigned long length,
					 unsigned long *remainder)
{
	struct dmabuf_walk walk =
		dmabuf_walk_begin(pages->dmabuf, start_byte, length);
	unsigned long alignment;
	u64 origin = 0;
	u64 most = 0;

	while (dmabuf_walk_next(&walk)) {
		if (walk.length <= most)
			continue;
		most = walk.length;
		origin = walk.phys - (length - walk.left);
	}

	/* What larger pages some IOMMUs have would make little difference. */
	alignment = min_t(u64, rounddown_pow_of_two(most), SZ_1G);
	*remainder = origin & (alignment - 1);
	return alignment;
}

/* Returns the number of bytes that were mapped, in all domains. */
static u64 dmabuf_revoke(struct iopt_pages *pages)
{
	struct iopt_dmabuf *db = pages->dmabuf;
	struct iopt_dmabuf_map *map;
	u64 unmapped = 0;

	lockdep_assert_held(&pages->mutex);

	WRITE_ONCE(db->revoked, true);
	list_for_each_entry(map, &db->maps, node) {
		unmapped += dmabuf_unmap_area(pages, map);
		cond_resched();
	}
	return unmapped;
}

/*
 * Map all of what one IOMMU_IOAS_MAP_FILE has mapped again, with its copies, or
 * nothing of it if there is no memory. A domain that cannot map it at all, which
 * could be attached while there was nothing to map, keeps no other from it. What
 * fails is tried again the next time that the exporter calls.
 */
static int dmabuf_restore(struct iopt_pages *pages)
{
	struct iopt_dmabuf *db = pages->dmabuf;
	struct iopt_dmabuf_map *map;
	int failed = 0;
	int rc;

	lockdep_assert_held(&pages->mutex);

	WRITE_ONCE(db->revoked, false);
	list_for_each_entry(map, &db->maps, node) {
		rc = dmabuf_map_area(pages, map);
		if (rc == -ENOMEM || rc == -ECANCELED) {
			dmabuf_revoke(pages);
			return rc;
		}
		if (rc)
			failed = rc;
		cond_resched();
	}
	return failed;
}

static void dmabuf_revoke_traced(struct iopt_pages *pages,
				 struct dma_buf *dmabuf)
{
	u64 start = trace_iommufd_dmabuf_revoked_enabled() ? ktime_get_ns() : 0;
	u64 unmapped = dmabuf_revoke(pages);

	/* A restore begins with this as well. */
	if (start && !pages->dmabuf->exporter->is_live(dmabuf))
		trace_iommufd_dmabuf_revoked(dmabuf, pages->dmabuf->start,
					     pages->npages * PAGE_SIZE,
					     unmapped, ktime_get_ns() - start);
}

static int dmabuf_restore_traced(struct iopt_pages *pages,
				 struct dma_buf *dmabuf)
{
	u64 start = trace_iommufd_dmabuf_restored_enabled() ? ktime_get_ns() : 0;
	int rc = dmabuf_restore(pages);

	if (start)
		trace_iommufd_dmabuf_restored(dmabuf, pages->dmabuf->start,
					      pages->npages * PAGE_SIZE, rc,
					      ktime_get_ns() - start);
	return rc;
}

static void iopt_dmabuf_invalidate(struct dma_buf_attachment *attach)
{
	struct iopt_pages *pages = attach->importer_priv;
	struct iopt_dmabuf *db = pages->dmabuf;
	struct mem_cgroup *old_memcg;
	int rc = 0;

	dma_resv_assert_held(attach->dmabuf->resv);

	WRITE_ONCE(db->revoked, true);
	mutex_lock(&pages->mutex);
	dmabuf_revoke_traced(pages, attach->dmabuf);
	if (db->exporter->is_live(attach->dmabuf)) {
		old_memcg = set_active_memcg(db->memcg);
		rc = dmabuf_restore_traced(pages, attach->dmabuf);
		set_active_memcg(old_memcg);
	}
	WRITE_ONCE(db->restore_failed, rc && rc != -ECANCELED);
	mutex_unlock(&pages->mutex);
}

static const char *iopt_dmabuf_state(struct dma_buf_attachment *attach)
{
	struct iopt_pages *pages = attach->importer_priv;

	dma_resv_assert_held(attach->dmabuf->resv);

	if (READ_ONCE(pages->dmabuf->restore_failed))
		return "restore-failed";
	return pages->dmabuf->revoked ? "revoked" : "live";
}

static const struct dma_buf_attach_ops iopt_dmabuf_attach_ops = {
	.allow_peer2peer = true,
	.invalidate_mappings = iopt_dmabuf_invalidate,
	.state = iopt_dmabuf_state,
};

static int dmabuf_attach_and_pin(struct iopt_pages *pages,
				 struct dma_buf *dmabuf)
{
	struct iopt_dmabuf *db = pages->dmabuf;
	int rc;

	/* Can be revoked from here on, but is not until it has been pinned. */
	db->revoked = true;
	db->attach = dma_buf_dynamic_attach(dmabuf, iommufd_misc_device(),
					    &iopt_dmabuf_attach_ops, pages);
	if (IS_ERR(db->attach))
		return PTR_ERR(db->attach);

	dma_resv_lock(dmabuf->resv, NULL);
	rc = dma_buf_pin(db->attach);
	if (!rc)
		db->revoked = false;
	dma_resv_unlock(dmabuf->resv);
	if (rc)
		dma_buf_detach(dmabuf, db->attach);
	return rc;
}

static struct iopt_pages *dmabuf_alloc_pages(struct dma_buf *dmabuf,
					     unsigned long start,
					     unsigned long length,
					     bool writable)
{
	struct iopt_dmabuf *db;
	struct iopt_pages *pages;
	unsigned long end;
	int rc;

	if (!PAGE_ALIGNED(start) || !PAGE_ALIGNED(length))
		return ERR_PTR(-EINVAL);
	if (check_add_overflow(start, length, &end))
		return ERR_PTR(-EOVERFLOW);
	if (end > dmabuf->size)
		return ERR_PTR(-EINVAL);

	db = kzalloc(sizeof(*db), GFP_KERNEL_ACCOUNT);
	if (!db)
		return ERR_PTR(-ENOMEM);
	INIT_LIST_HEAD(&db->maps);
	db->start = start;
	db->memcg = get_mem_cgroup_from_mm(current->mm);

	/* Attaching to another exporter can have side effects. */
	rc = dmabuf_get_ranges(db, dmabuf);
	if (rc)
		goto err_free;

	pages = iopt_alloc_pages(start, length, writable);
	if (IS_ERR(pages)) {
		rc = PTR_ERR(pages);
		goto err_free;
	}
	lockdep_set_class(&pages->mutex, &dmabuf_pages_mutex_class);
	pages->account_mode = IOPT_PAGES_ACCOUNT_NONE;

	pages->dmabuf = db;
	rc = dmabuf_attach_and_pin(pages, dmabuf);
	if (rc)
		goto err_put_pages;
	return pages;

err_put_pages:
	pages->dmabuf = NULL;
	iopt_put_pages(pages);
err_free:
	mem_cgroup_put(db->memcg);
	kfree(db);
	return ERR_PTR(rc);
}

/**
 * iopt_alloc_dmabuf_pages() - Allocate pages of a dma-buf
 * @fd: File descriptor
 * @start: Offset in the dma-buf to start from, page aligned
 * @length: Number of bytes, page aligned
 * @writable: IOMMU_WRITE is allowed
 *
 * Return: as iopt_alloc_pages(), or NULL if @fd is of another kind of file
 */
struct iopt_pages *iopt_alloc_dmabuf_pages(int fd, unsigned long start,
					   unsigned long length, bool writable)
{
	struct iopt_pages *pages;
	struct dma_buf *dmabuf;

	dmabuf = dma_buf_get(fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf) == -EINVAL ? NULL : ERR_CAST(dmabuf);

	pages = dmabuf_alloc_pages(dmabuf, start, length, writable);
	if (IS_ERR(pages))
		dma_buf_put(dmabuf);
	return pages;
}

/**
 * iopt_dmabuf_release() - Let go of the dma-buf of pages that are being freed
 * @pages: from iopt_alloc_dmabuf_pages()
 *
 * Nothing of @pages may have been freed yet: they can still be revoked until this
 * has detached them.
 */
void iopt_dmabuf_release(struct iopt_pages *pages)
{
	struct iopt_dmabuf *db = pages->dmabuf;
	struct dma_buf *dmabuf = db->attach->dmabuf;

	dma_resv_lock(dmabuf->resv, NULL);
	dma_buf_unpin(db->attach);
	dma_resv_unlock(dmabuf->resv);
	dma_buf_detach(dmabuf, db->attach);
	dma_buf_put(dmabuf);

	WARN_ON(!list_empty(&db->maps));
	mem_cgroup_put(db->memcg);
	kfree(db);
}

MODULE_IMPORT_NS(DMA_BUF);

#ifdef CONFIG_IOMMUFD_DMABUF_KUNIT_TEST
#include "tests/dmabuf_kunit.c"
#endif
