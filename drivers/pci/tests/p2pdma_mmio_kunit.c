// SPDX-License-Identifier: GPL-2.0
/*
 * Scatterlists of BARs without struct pages, included by ../p2pdma_mmio.c
 *
 * The PCI devices exist in memory only. Nobody accesses them: all that counts is
 * where they are. Through a host bridge the DMA API maps one to one, as no IOMMU
 * knows them.
 */
#include <kunit/device.h>
#include <kunit/test.h>
#include <linux/pci.h>

#define BAR		2
#define BAR_START	SZ_1T
#define BAR_LEN		(64ULL * SZ_1G)
#define BAR_BUS_START	(3ULL * SZ_1T)	/* as seen from the bus */

/* The one register that P2PDMA reads: ACS control of a port */
#define ACS_CAP		0x100

static int read_acs(struct pci_bus *bus, unsigned int devfn, int where,
		    int size, u32 *val)
{
	*val = where == ACS_CAP + PCI_ACS_CTRL ? PCI_ACS_RR : 0;
	return PCIBIOS_SUCCESSFUL;
}

static struct pci_ops config_ops = {
	.read = read_acs,
};

static struct pci_bus *fake_bus(struct kunit *test, struct pci_dev *port)
{
	struct pci_bus *bus = kunit_kzalloc(test, sizeof(*bus), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, bus);
	INIT_LIST_HEAD(&bus->devices);
	bus->ops = &config_ops;
	if (port) {
		bus->parent = port->bus;
		bus->self = port;
	}
	return bus;
}

static struct pci_dev *fake_dev(struct kunit *test, struct pci_bus *bus)
{
	struct pci_dev *pdev = kunit_kzalloc(test, sizeof(*pdev), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, pdev);
	pdev->bus = bus;
	list_add_tail(&pdev->bus_list, &bus->devices);
	pdev->dev.init_name = "p2pdma_kunit";
	pdev->dev.bus = &pci_bus_type;
	pdev->dma_mask = DMA_BIT_MASK(64);
	pdev->dev.dma_mask = &pdev->dma_mask;
	pdev->dev.dma_parms = &pdev->dma_parms;
	dma_set_max_seg_size(&pdev->dev, UINT_MAX);
	return pdev;
}

static void free_windows(void *bridge)
{
	pci_free_resource_list(&((struct pci_host_bridge *)bridge)->windows);
}

static struct pci_bus *fake_root_bus(struct kunit *test)
{
	struct pci_host_bridge *bridge;
	struct resource *window;
	struct pci_dev *root;

	bridge = kunit_kzalloc(test, sizeof(*bridge), GFP_KERNEL);
	window = kunit_kzalloc(test, sizeof(*window), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, bridge);
	KUNIT_ASSERT_NOT_NULL(test, window);
	bridge->bus = fake_bus(test, NULL);
	bridge->bus->bridge = &bridge->dev;

	*window = DEFINE_RES_MEM(BAR_START, BAR_LEN);
	INIT_LIST_HEAD(&bridge->windows);
	pci_add_resource_offset(&bridge->windows, window,
				BAR_START - BAR_BUS_START);
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, free_windows, bridge));

	/* P2PDMA knows this host bridge to forward, on any CPU. */
	root = fake_dev(test, bridge->bus);
	root->vendor = PCI_VENDOR_ID_INTEL;
	root->device = 0x2030;
	return bridge->bus;
}

/*
 *	root bus -+- port -- switch -+- down -- provider
 *	          |                  +- down -- client[SAME_SWITCH]
 *	          +- port ---------------------- client[OTHER_PORT]
 */
enum place { SAME_SWITCH, OTHER_PORT, NR_PLACES };

struct topology {
	struct pci_dev *host_bridge;
	struct pci_dev *provider;
	struct pci_dev *provider_port;
	struct pci_dev *client[NR_PLACES];
};

static struct pci_dev *fake_dev_below_port(struct kunit *test,
					   struct pci_bus *bus)
{
	return fake_dev(test, fake_bus(test, fake_dev(test, bus)));
}

static struct topology *fake_topology(struct kunit *test)
{
	struct pci_bus *root_bus = fake_root_bus(test);
	struct pci_bus *switch_bus;
	struct topology *top;

	top = kunit_kzalloc(test, sizeof(*top), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, top);
	top->host_bridge = list_first_entry(&root_bus->devices, struct pci_dev,
					    bus_list);
	switch_bus = fake_bus(test, fake_dev_below_port(test, root_bus));
	top->provider = fake_dev_below_port(test, switch_bus);
	top->provider_port = top->provider->bus->self;
	top->client[SAME_SWITCH] = fake_dev_below_port(test, switch_bus);
	top->client[OTHER_PORT] = fake_dev_below_port(test, root_bus);
	top->provider->resource[BAR] = DEFINE_RES_MEM(BAR_START, BAR_LEN);
	return top;
}

static struct sg_table *map_for(struct topology *top, enum place place,
				const struct range *ranges,
				unsigned int nr_ranges)
{
	return pci_p2pdma_map_mmio(top->provider, BAR, ranges, nr_ranges,
				   &top->client[place]->dev, DMA_BIDIRECTIONAL);
}

static void unmap_for(struct topology *top, enum place place,
		      struct sg_table *sgt, const struct range *ranges,
		      unsigned int nr_ranges)
{
	pci_p2pdma_unmap_mmio(sgt, ranges, nr_ranges, &top->client[place]->dev,
			      DMA_BIDIRECTIONAL);
}

static const struct range one_page = {
	BAR_START, BAR_START + PAGE_SIZE - 1
};

struct way {
	const char *name;
	enum place place;
	bool acs_redirect;
	dma_addr_t addr;	/* of one_page */
};

static const struct way ways[] = {
	{ "same switch", SAME_SWITCH, false, BAR_BUS_START },
	{ "same switch, ACS redirect", SAME_SWITCH, true, BAR_START },
	{ "other root port", OTHER_PORT, false, BAR_START },
	{ "other root port, ACS redirect", OTHER_PORT, true, BAR_START },
};

KUNIT_ARRAY_PARAM_DESC(way, ways, name);

static void way_decides_address(struct kunit *test)
{
	struct topology *top = fake_topology(test);
	const struct way *way = test->param_value;
	struct sg_table *sgt;

	if (way->acs_redirect)
		top->provider_port->acs_cap = ACS_CAP;
	sgt = map_for(top, way->place, &one_page, 1);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, sgt);

	KUNIT_EXPECT_EQ(test, sgt->orig_nents, 0);
	KUNIT_EXPECT_EQ(test, sgt->nents, 1);
	KUNIT_EXPECT_EQ(test, sg_dma_address(sgt->sgl), way->addr);
	KUNIT_EXPECT_EQ(test, sg_dma_len(sgt->sgl), PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, sg_dma_is_bus_address(sgt->sgl),
			way->addr == BAR_BUS_START);
	unmap_for(top, way->place, sgt, &one_page, 1);
}

static void no_way_without_pci(struct kunit *test)
{
	struct topology *top = fake_topology(test);
	struct device *client = kunit_device_register(test, "client");
	struct sg_table *sgt;

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, client);
	sgt = pci_p2pdma_map_mmio(top->provider, BAR, &one_page, 1, client,
				  DMA_BIDIRECTIONAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(sgt), -EOPNOTSUPP);
}

/* P2PDMA trusts all host bridges of these CPUs. */
static bool cpu_forwards(void)
{
#ifdef CONFIG_X86
	return boot_cpu_data.x86_vendor == X86_VENDOR_AMD &&
	       boot_cpu_data.x86 >= 0x17;
#else
	return false;
#endif
}

static void no_way_through_unknown_bridge(struct kunit *test)
{
	struct topology *top = fake_topology(test);
	const struct way *way = test->param_value;
	struct sg_table *sgt;

	if (cpu_forwards())
		kunit_skip(test, "any host bridge of this CPU is known");

	top->host_bridge->device = 0;
	if (way->acs_redirect)
		top->provider_port->acs_cap = ACS_CAP;
	sgt = map_for(top, way->place, &one_page, 1);

	/* A switch that routes by itself has no need of the bridge. */
	if (way->addr == BAR_BUS_START) {
		KUNIT_ASSERT_NOT_ERR_OR_NULL(test, sgt);
		unmap_for(top, way->place, sgt, &one_page, 1);
	} else {
		KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(sgt), -EOPNOTSUPP);
	}
}

/* Ranges, from the start of the BAR, and into how many entries they go */
struct split {
	const char *name;
	unsigned int max_seg;
	unsigned int nents;
	struct {
		u64 offset;
		u64 len;
	} ranges[3];
};

#define NO_MAX	UINT_MAX

static const struct split splits[] = {
	{ "1 page", NO_MAX, 1, { { 0, PAGE_SIZE } } },
	{ "2 GiB", NO_MAX, 1, { { 0, SZ_2G } } },
	{ "2 GiB and 1 page", NO_MAX, 2, { { 0, SZ_2G + PAGE_SIZE } } },
	{ "4 GiB less 1 page", NO_MAX, 2, { { 0, SZ_4G - PAGE_SIZE } } },
	{ "4 GiB", NO_MAX, 2, { { 0, SZ_4G } } },
	{ "4 GiB and 1 page", NO_MAX, 3, { { 0, SZ_4G + PAGE_SIZE } } },
	{ "8 GiB", NO_MAX, 4, { { 0, SZ_8G } } },
	{ "8 GiB and 1 page", NO_MAX, 5, { { 0, SZ_8G + PAGE_SIZE } } },
	{ "64 GiB", NO_MAX, 32, { { 0, BAR_LEN } } },
	{ "adjacent ranges", NO_MAX, 2,
	  { { 0, PAGE_SIZE }, { PAGE_SIZE, PAGE_SIZE } } },
	{ "ranges with a hole, not in order", NO_MAX, 8,
	  { { SZ_8G, SZ_8G + PAGE_SIZE }, { 0, PAGE_SIZE },
	    { SZ_1G, SZ_4G } } },
	{ "segments of 64 KiB", SZ_64K, 17, { { 0, SZ_1M + PAGE_SIZE } } },
	{ "segments of 100 KiB", 100 * SZ_1K, 16, { { 0, SZ_1M } } },
	{ "segments of 1 page", PAGE_SIZE, 3, { { 0, 3 * PAGE_SIZE } } },
	{ "segments below a page", 512, 3, { { 0, 3 * PAGE_SIZE } } },
};

KUNIT_ARRAY_PARAM_DESC(split, splits, name);

static unsigned int split_ranges(const struct split *split,
				 struct range *ranges)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(split->ranges) && split->ranges[i].len; i++) {
		ranges[i].start = BAR_START + split->ranges[i].offset;
		ranges[i].end = ranges[i].start + split->ranges[i].len - 1;
	}
	return i;
}

/* The entries are the ranges, one after the other, no byte less or more. */
static void expect_covered(struct kunit *test, struct sg_table *sgt,
			   const struct range *ranges, unsigned int nr_ranges,
			   u64 offset, u64 max_seg)
{
	struct scatterlist *sg = sgt->sgl;
	unsigned int nents = 0, i;

	for (i = 0; i < nr_ranges; i++) {
		u64 len = range_len(&ranges[i]), done = 0;

		while (done < len) {
			KUNIT_ASSERT_NOT_NULL(test, sg);
			KUNIT_ASSERT_EQ(test, sg_dma_address(sg),
					ranges[i].start + offset + done);
			KUNIT_ASSERT_NE(test, sg_dma_len(sg), 0);
			KUNIT_ASSERT_LE(test, sg_dma_len(sg), max_seg);
			KUNIT_ASSERT_TRUE(test, PAGE_ALIGNED(sg_dma_len(sg)));
			done += sg_dma_len(sg);
			nents++;
			sg = sg_next(sg);
		}
		KUNIT_EXPECT_EQ(test, done, len);
	}
	KUNIT_EXPECT_NULL(test, sg);
	KUNIT_EXPECT_EQ(test, sgt->nents, nents);
}

static void split_for(struct kunit *test, enum place place, u64 offset)
{
	const struct split *split = test->param_value;
	struct topology *top = fake_topology(test);
	struct range ranges[ARRAY_SIZE(split->ranges)];
	unsigned int nr_ranges = split_ranges(split, ranges);
	struct sg_table *sgt;

	dma_set_max_seg_size(&top->client[place]->dev, split->max_seg);
	sgt = map_for(top, place, ranges, nr_ranges);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, sgt);
	KUNIT_EXPECT_EQ(test, sgt->nents, split->nents);
	expect_covered(test, sgt, ranges, nr_ranges, offset,
		       max_t(u64, split->max_seg, PAGE_SIZE));
	unmap_for(top, place, sgt, ranges, nr_ranges);
}

static void split_of_bus_addresses(struct kunit *test)
{
	split_for(test, SAME_SWITCH, BAR_BUS_START - BAR_START);
}

static void split_of_dma_mappings(struct kunit *test)
{
	split_for(test, OTHER_PORT, 0);
}

/* The number of entries has 32 bits, too. */
static void too_many_entries(struct kunit *test)
{
	const u64 most = (u64)UINT_MAX * PAGE_SIZE;
	const struct range fits[] = {
		{ 0, most - PAGE_SIZE - 1 }, { 0, PAGE_SIZE - 1 }
	};
	const struct range sum[] = { { 0, most - 1 }, { 0, PAGE_SIZE - 1 } };
	const struct range one = { 0, most + PAGE_SIZE - 1 };
	struct topology *top = fake_topology(test);
	struct pci_dev *client = top->client[SAME_SWITCH];
	unsigned int nents;

	KUNIT_EXPECT_EQ(test, mmio_count_segs(fits, 2, PAGE_SIZE, &nents), 0);
	KUNIT_EXPECT_EQ(test, nents, UINT_MAX);

	dma_set_max_seg_size(&client->dev, PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(map_for(top, SAME_SWITCH, sum, 2)),
			-EOVERFLOW);
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(map_for(top, SAME_SWITCH, &one, 1)),
			-EOVERFLOW);
}

/* As it sees it. Of several ranges those before one out of reach are undone. */
static void client_must_reach_last_byte(struct kunit *test)
{
	const struct range pages[] = {
		one_page, { BAR_START + PAGE_SIZE, BAR_START + 2 * PAGE_SIZE - 1 }
	};
	const struct way *way = test->param_value;
	struct topology *top = fake_topology(test);
	struct pci_dev *client = top->client[way->place];
	struct sg_table *sgt;

	if (way->acs_redirect)
		top->provider_port->acs_cap = ACS_CAP;
	client->dma_mask = way->addr + 2 * PAGE_SIZE - 1;
	sgt = map_for(top, way->place, pages, 2);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, sgt);
	unmap_for(top, way->place, sgt, pages, 2);

	client->dma_mask--;
	sgt = map_for(top, way->place, pages, 2);
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(sgt), -EIO);
}

static struct kunit_case p2pdma_mmio_cases[] = {
	KUNIT_CASE_PARAM(way_decides_address, way_gen_params),
	KUNIT_CASE(no_way_without_pci),
	KUNIT_CASE_PARAM(no_way_through_unknown_bridge, way_gen_params),
	KUNIT_CASE_PARAM(split_of_bus_addresses, split_gen_params),
	KUNIT_CASE_PARAM(split_of_dma_mappings, split_gen_params),
	KUNIT_CASE(too_many_entries),
	KUNIT_CASE_PARAM(client_must_reach_last_byte, way_gen_params),
	{}
};

static struct kunit_suite p2pdma_mmio_suite = {
	.name = "pci_p2pdma_mmio",
	.test_cases = p2pdma_mmio_cases,
};
kunit_test_suite(p2pdma_mmio_suite);
