// SPDX-License-Identifier: GPL-2.0-only
/*
 * How the ranges of a dma-buf are mapped, and mapped again, included by ../dmabuf.c.
 * There is no dma-buf file and no IOMMU behind these.
 */
#include <kunit/test.h>

#define PHYS	SZ_1T

struct walk_case {
	const char *name;
	unsigned long start;
	unsigned long length;
	struct range ranges[4];
	struct {
		u64 phys;
		u64 length;
	} pieces[4];
	unsigned long alignment;
	unsigned long remainder;
};

#define RANGE(_start, _length) { (_start), (_start) + (_length) - 1 }

static const struct walk_case walk_cases[] = {
	{ "one range", 0, SZ_4M,
	  { RANGE(PHYS, SZ_4M) },
	  { { PHYS, SZ_4M } }, SZ_4M, 0 },
	{ "inside of a range", SZ_4K, SZ_64K,
	  { RANGE(PHYS, SZ_4M) },
	  { { PHYS + SZ_4K, SZ_64K } }, SZ_64K, SZ_4K },
	{ "adjacent ranges are one piece", 0, SZ_4M,
	  { RANGE(PHYS, SZ_4K), RANGE(PHYS + SZ_4K, SZ_1M),
	    RANGE(PHYS + SZ_4K + SZ_1M, SZ_4M - SZ_1M - SZ_4K) },
	  { { PHYS, SZ_4M } }, SZ_4M, 0 },
	{ "a hole", 0, SZ_4K + SZ_2M,
	  { RANGE(PHYS, SZ_4K), RANGE(PHYS + SZ_2M, SZ_2M) },
	  { { PHYS, SZ_4K }, { PHYS + SZ_2M, SZ_2M } }, SZ_2M, SZ_2M - SZ_4K },
	{ "adjacent, but not in order", 0, SZ_8K,
	  { RANGE(PHYS + SZ_4K, SZ_4K), RANGE(PHYS, SZ_4K) },
	  { { PHYS + SZ_4K, SZ_4K }, { PHYS, SZ_4K } }, SZ_4K, 0 },
	{ "the same twice", 0, SZ_8K,
	  { RANGE(PHYS, SZ_4K), RANGE(PHYS, SZ_4K) },
	  { { PHYS, SZ_4K }, { PHYS, SZ_4K } }, SZ_4K, 0 },
	{ "from one range to the next", SZ_4K, SZ_8K,
	  { RANGE(PHYS, SZ_8K), RANGE(PHYS + SZ_64K, SZ_8K) },
	  { { PHYS + SZ_4K, SZ_4K }, { PHYS + SZ_64K, SZ_4K } }, SZ_4K, 0 },
	{ "not from the first range", SZ_8K, SZ_4K,
	  { RANGE(PHYS, SZ_8K), RANGE(PHYS + SZ_64K, SZ_8K) },
	  { { PHYS + SZ_64K, SZ_4K } }, SZ_4K, 0 },
	{ "larger than any page", 0, SZ_8G,
	  { RANGE(PHYS + SZ_2M, SZ_4G), RANGE(PHYS + SZ_2M + SZ_4G, SZ_4G) },
	  { { PHYS + SZ_2M, SZ_8G } }, SZ_1G, SZ_2M },
};

KUNIT_ARRAY_PARAM_DESC(walk, walk_cases, name);

static void ranges_are_merged(struct kunit *test)
{
	const struct walk_case *c = test->param_value;
	struct iopt_dmabuf db = { .ranges = c->ranges };
	struct dmabuf_walk walk = dmabuf_walk_begin(&db, c->start, c->length);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(c->pieces) && c->pieces[i].length; i++) {
		KUNIT_ASSERT_TRUE(test, dmabuf_walk_next(&walk));
		KUNIT_EXPECT_EQ(test, walk.phys, c->pieces[i].phys);
		KUNIT_EXPECT_EQ(test, walk.length, c->pieces[i].length);
	}
	KUNIT_EXPECT_FALSE(test, dmabuf_walk_next(&walk));
}

static void iova_is_aligned_as_largest_piece(struct kunit *test)
{
	const struct walk_case *c = test->param_value;
	struct iopt_dmabuf db = { .ranges = c->ranges };
	struct iopt_pages pages = { .dmabuf = &db };
	unsigned long remainder;

	KUNIT_EXPECT_EQ(test,
			iopt_dmabuf_iova_alignment(&pages, c->start, c->length,
						   &remainder),
			c->alignment);
	KUNIT_EXPECT_EQ(test, remainder, c->remainder);
}

/* A page table that knows how much it maps, and when to be out of memory */
struct table {
	struct iommu_domain domain;
	size_t mapped;
	int prot;
	bool full;
	bool refuses;		/* to map anything, whatever the memory */
	bool *kills;		/* what to clear when it is mapped */
};

static int table_map(struct iommu_domain *domain, unsigned long iova,
		     phys_addr_t paddr, size_t pgsize, size_t pgcount, int prot,
		     gfp_t gfp, size_t *mapped)
{
	struct table *table = container_of(domain, struct table, domain);

	if (table->full && table->mapped)
		return -ENOMEM;
	if (table->refuses)
		return -EINVAL;
	if (table->kills)
		*table->kills = false;
	table->prot = prot;
	table->mapped += pgsize;
	*mapped = pgsize;
	return 0;
}

static size_t table_unmap(struct iommu_domain *domain, unsigned long iova,
			  size_t pgsize, size_t pgcount,
			  struct iommu_iotlb_gather *gather)
{
	struct table *table = container_of(domain, struct table, domain);

	table->mapped -= pgsize * pgcount;
	return pgsize * pgcount;
}

static const struct iommu_domain_ops table_ops = {
	.map_pages = table_map,
	.unmap_pages = table_unmap,
};

/* One area of a dma-buf of two pages, in two domains, read-only */
struct import {
	struct dma_resv resv;
	struct dma_buf dmabuf;
	struct dma_buf_attachment attach;
	struct iopt_dmabuf db;
	struct iopt_pages pages;
	struct iopt_area area;
	struct table tables[2];
	bool live;
};

static bool import_is_live(struct dma_buf *dmabuf)
{
	return container_of(dmabuf, struct import, dmabuf)->live;
}

static struct iommufd_dma_buf_exporter import_exporter = {
	.is_live = import_is_live,
};

static const struct range import_ranges[] = { RANGE(PHYS, 2 * PAGE_SIZE) };

static void unfill(struct import *imp, unsigned int i)
{
	mutex_lock(&imp->pages.mutex);
	iopt_dmabuf_unfill_domain(&imp->area, &imp->pages,
				  &imp->tables[i].domain);
	mutex_unlock(&imp->pages.mutex);
}

static void import_exit(void *data)
{
	struct import *imp = data;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(imp->tables); i++)
		unfill(imp, i);
	dma_resv_fini(&imp->resv);
}

static struct import *import_create(struct kunit *test)
{
	struct import *imp = kunit_kzalloc(test, sizeof(*imp), GFP_KERNEL);
	unsigned int i;
	int rc = 0;

	KUNIT_ASSERT_NOT_NULL(test, imp);
	imp->live = true;
	dma_resv_init(&imp->resv);
	imp->dmabuf.resv = &imp->resv;
	imp->attach.dmabuf = &imp->dmabuf;
	imp->attach.importer_priv = &imp->pages;
	imp->db.attach = &imp->attach;
	imp->db.exporter = &import_exporter;
	imp->db.ranges = import_ranges;
	INIT_LIST_HEAD(&imp->db.maps);
	mutex_init(&imp->pages.mutex);
	imp->pages.dmabuf = &imp->db;
	imp->pages.npages = 2;
	INIT_LIST_HEAD(&imp->area.dmabuf_maps);
	imp->area.node.start = SZ_1G;
	imp->area.node.last = SZ_1G + 2 * PAGE_SIZE - 1;
	imp->area.iommu_prot = IOMMU_READ | IOMMU_CACHE;
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, import_exit, imp));

	mutex_lock(&imp->pages.mutex);
	for (i = 0; i < ARRAY_SIZE(imp->tables) && !rc; i++) {
		imp->tables[i].domain.type = IOMMU_DOMAIN_UNMANAGED;
		imp->tables[i].domain.ops = &table_ops;
		imp->tables[i].domain.pgsize_bitmap = PAGE_SIZE;
		rc = iopt_dmabuf_fill_domain(&imp->area, &imp->pages,
					     &imp->tables[i].domain);
	}
	mutex_unlock(&imp->pages.mutex);
	KUNIT_ASSERT_EQ(test, rc, 0);
	return imp;
}

static void expect_state(struct kunit *test, struct import *imp,
			 const char *state)
{
	dma_resv_lock(&imp->resv, NULL);
	KUNIT_EXPECT_STREQ(test, iopt_dmabuf_state(&imp->attach), state);
	dma_resv_unlock(&imp->resv);
}

/* What the exporter does, and what is told then */
static void tell_live(struct kunit *test, struct import *imp, bool live,
		      const char *state)
{
	dma_resv_lock(&imp->resv, NULL);
	imp->live = live;
	iopt_dmabuf_invalidate(&imp->attach);
	dma_resv_unlock(&imp->resv);
	expect_state(test, imp, state);
}

/* The same, and what is mapped in each domain then */
static void set_live(struct kunit *test, struct import *imp, bool live,
		     size_t mapped, const char *state)
{
	unsigned int i;

	tell_live(test, imp, live, state);
	for (i = 0; i < ARRAY_SIZE(imp->tables); i++)
		KUNIT_EXPECT_EQ(test, imp->tables[i].mapped, mapped);
}

static void restore_is_for_all_domains(struct kunit *test)
{
	struct import *imp = import_create(test);
	unsigned int i;

	set_live(test, imp, false, 0, "revoked");
	for (i = 0; i < ARRAY_SIZE(imp->tables); i++)
		imp->tables[i].prot = 0;
	set_live(test, imp, true, 2 * PAGE_SIZE, "live");
	for (i = 0; i < ARRAY_SIZE(imp->tables); i++)
		KUNIT_EXPECT_EQ(test, imp->tables[i].prot,
				IOMMU_READ | IOMMU_MMIO);
	set_live(test, imp, false, 0, "revoked");
}

/* Whichever domain is out of memory, nothing is mapped in any until the next time. */
static void restore_is_for_all_or_none(struct kunit *test)
{
	struct import *imp = import_create(test);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(imp->tables); i++) {
		set_live(test, imp, false, 0, "revoked");
		imp->tables[i].full = true;
		set_live(test, imp, true, 0, "restore-failed");
		set_live(test, imp, false, 0, "revoked");
		set_live(test, imp, true, 0, "restore-failed");
		imp->tables[i].full = false;
		set_live(test, imp, true, 2 * PAGE_SIZE, "live");
	}
}

/* A domain that cannot map it keeps no other from it, and is tried again. */
static void restore_is_for_those_who_can(struct kunit *test)
{
	struct import *imp = import_create(test);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(imp->tables); i++) {
		set_live(test, imp, false, 0, "revoked");
		imp->tables[i].refuses = true;
		tell_live(test, imp, true, "restore-failed");
		KUNIT_EXPECT_EQ(test, imp->tables[i].mapped, 0);
		KUNIT_EXPECT_EQ(test, imp->tables[!i].mapped, 2 * PAGE_SIZE);

		imp->tables[i].refuses = false;
		set_live(test, imp, true, 2 * PAGE_SIZE, "live");
	}
}

/* Once the domains that cannot map it have gone, nothing has failed. */
static void restore_failed_goes_with_domain(struct kunit *test)
{
	struct import *imp = import_create(test);

	set_live(test, imp, false, 0, "revoked");
	imp->tables[0].refuses = true;
	tell_live(test, imp, true, "restore-failed");

	unfill(imp, 0);
	expect_state(test, imp, "live");
	KUNIT_EXPECT_EQ(test, imp->tables[1].mapped, 2 * PAGE_SIZE);
}

static void restore_failed_stays_with_domain(struct kunit *test)
{
	struct import *imp = import_create(test);

	set_live(test, imp, false, 0, "revoked");
	imp->tables[0].refuses = true;
	tell_live(test, imp, true, "restore-failed");

	unfill(imp, 1);
	expect_state(test, imp, "restore-failed");
	unfill(imp, 0);
	expect_state(test, imp, "live");
}

/* Without memory nothing is mapped, whichever domains have gone. */
static void restore_failed_stays_without_memory(struct kunit *test)
{
	struct import *imp = import_create(test);

	set_live(test, imp, false, 0, "revoked");
	imp->tables[0].full = true;
	set_live(test, imp, true, 0, "restore-failed");

	unfill(imp, 0);
	expect_state(test, imp, "restore-failed");
	imp->tables[0].full = false;
	tell_live(test, imp, true, "live");
	KUNIT_EXPECT_EQ(test, imp->tables[1].mapped, 2 * PAGE_SIZE);
}

/* What is mapped after a restore has failed is not mapped either. */
static void restore_failed_is_revoked(struct kunit *test)
{
	struct import *imp = import_create(test);

	set_live(test, imp, false, 0, "revoked");
	imp->tables[0].full = true;
	set_live(test, imp, true, 0, "restore-failed");

	unfill(imp, 1);
	mutex_lock(&imp->pages.mutex);
	KUNIT_EXPECT_EQ(test, 0,
			iopt_dmabuf_fill_domain(&imp->area, &imp->pages,
						&imp->tables[1].domain));
	mutex_unlock(&imp->pages.mutex);
	KUNIT_EXPECT_EQ(test, imp->tables[1].mapped, 0);

	imp->tables[0].full = false;
	set_live(test, imp, true, 2 * PAGE_SIZE, "live");
}

/* What userspace has unmapped in the meantime is not. */
static void restore_spares_unmapped(struct kunit *test)
{
	struct import *imp = import_create(test);

	set_live(test, imp, false, 0, "revoked");
	unfill(imp, 0);
	unfill(imp, 1);
	set_live(test, imp, true, 0, "live");
}

/* Before the exporter gets the lock to tell, there is no use in mapping more. */
static void restore_stops_when_memory_goes(struct kunit *test)
{
	struct import *imp = import_create(test);

	set_live(test, imp, false, 0, "revoked");
	imp->tables[0].kills = &imp->live;
	set_live(test, imp, true, 0, "revoked");
	set_live(test, imp, false, 0, "revoked");
	imp->tables[0].kills = NULL;
	set_live(test, imp, true, 2 * PAGE_SIZE, "live");
}

static struct kunit_case dmabuf_cases[] = {
	KUNIT_CASE_PARAM(ranges_are_merged, walk_gen_params),
	KUNIT_CASE_PARAM(iova_is_aligned_as_largest_piece, walk_gen_params),
	KUNIT_CASE(restore_is_for_all_domains),
	KUNIT_CASE(restore_is_for_all_or_none),
	KUNIT_CASE(restore_is_for_those_who_can),
	KUNIT_CASE(restore_failed_is_revoked),
	KUNIT_CASE(restore_failed_goes_with_domain),
	KUNIT_CASE(restore_failed_stays_with_domain),
	KUNIT_CASE(restore_failed_stays_without_memory),
	KUNIT_CASE(restore_spares_unmapped),
	KUNIT_CASE(restore_stops_when_memory_goes),
	{}
};

static struct kunit_suite dmabuf_suite = {
	.name = "iommufd_dmabuf",
	.test_cases = dmabuf_cases,
};
kunit_test_suite(dmabuf_suite);
