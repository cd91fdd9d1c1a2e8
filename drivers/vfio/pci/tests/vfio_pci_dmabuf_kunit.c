// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is exported, and who gets it in which state, included by
 * ../vfio_pci_dmabuf.c. No device and no dma-buf file is behind these.
 */
#include <kunit/device.h>
#include <kunit/test.h>

#define BAR		2
#define BAR_START	SZ_1T
#define BAR_LEN		(16ULL * SZ_1G)

/* In jiffies; only a failure takes the long one. */
#define LONG_TIME	(10 * HZ)
#define SHORT_TIME	(HZ / 20)

static struct pci_dev *fake_pdev(struct kunit *test)
{
	struct pci_dev *pdev = kunit_kzalloc(test, sizeof(*pdev), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, pdev);
	pdev->resource[BAR] = DEFINE_RES_MEM(BAR_START, BAR_LEN);
	return pdev;
}

struct bar_case {
	const char *name;
	u32 region;
	struct resource res;
	int ret;
};

static const struct bar_case bar_cases[] = {
	{ "memory", BAR, DEFINE_RES_MEM(BAR_START, BAR_LEN), 0 },
	{ "one page", BAR, DEFINE_RES_MEM(BAR_START, PAGE_SIZE), 0 },
	{ "first", VFIO_PCI_BAR0_REGION_INDEX,
	  DEFINE_RES_MEM(BAR_START, BAR_LEN), 0 },
	{ "last", VFIO_PCI_BAR5_REGION_INDEX,
	  DEFINE_RES_MEM(BAR_START, BAR_LEN), 0 },
	{ "ROM", VFIO_PCI_ROM_REGION_INDEX,
	  DEFINE_RES_MEM(BAR_START, BAR_LEN), -ENODEV },
	{ "config space", VFIO_PCI_CONFIG_REGION_INDEX, {}, -ENODEV },
	{ "no region", U32_MAX, {}, -ENODEV },
	{ "no BAR", BAR, {}, -ENODEV },
	{ "I/O ports", BAR, DEFINE_RES_IO(SZ_64K, PAGE_SIZE), -ENODEV },
	{ "no address", BAR,
	  { .end = BAR_LEN - 1, .flags = IORESOURCE_MEM | IORESOURCE_UNSET },
	  -ENODEV },
	{ "no size", BAR, { .flags = IORESOURCE_MEM }, -ENODEV },
	{ "shares its page", BAR, DEFINE_RES_MEM(BAR_START + SZ_1K, SZ_1K),
	  -ENODEV },
};

KUNIT_ARRAY_PARAM_DESC(bar, bar_cases, name);

static void bar_must_have_memory(struct kunit *test)
{
	const struct bar_case *bar = test->param_value;
	struct pci_dev *pdev = fake_pdev(test);

	pdev->resource[BAR] = (struct resource){};
	if (bar->region < PCI_NUM_RESOURCES)
		pdev->resource[bar->region] = bar->res;
	KUNIT_EXPECT_EQ(test, dma_buf_check_bar(pdev, bar->region), bar->ret);
}

struct ranges_case {
	const char *name;
	int ret;
	u64 size;
	struct vfio_region_dma_range ranges[3];
};

/* An aligned offset that an addition of more than this makes wrap */
#define LAST_PAGE	(U64_MAX - PAGE_SIZE + 1)

static const struct ranges_case ranges_cases[] = {
	{ "whole BAR", 0, BAR_LEN, { { 0, BAR_LEN } } },
	{ "first page", 0, PAGE_SIZE, { { 0, PAGE_SIZE } } },
	{ "last page", 0, PAGE_SIZE, { { BAR_LEN - PAGE_SIZE, PAGE_SIZE } } },
	{ "4 GiB", 0, SZ_4G, { { 0, SZ_4G } } },
	{ "8 GiB and 1 page", 0, SZ_8G + PAGE_SIZE,
	  { { SZ_4G, SZ_8G + PAGE_SIZE } } },
	{ "around a hole", 0, BAR_LEN - PAGE_SIZE,
	  { { 0, SZ_4G }, { SZ_4G + PAGE_SIZE, BAR_LEN - SZ_4G - PAGE_SIZE } } },
	{ "adjacent, not in order", 0, BAR_LEN,
	  { { SZ_8G, SZ_8G }, { SZ_4G, SZ_4G }, { 0, SZ_4G } } },
	{ "length 0", -EINVAL, 0, { { 0, 0 } } },
	{ "length 0 after others", -EINVAL, 0,
	  { { 0, PAGE_SIZE }, { PAGE_SIZE, 0 }, { SZ_4G, PAGE_SIZE } } },
	{ "offset not aligned", -EINVAL, 0, { { SZ_1K, PAGE_SIZE } } },
	{ "length not aligned", -EINVAL, 0, { { 0, PAGE_SIZE + SZ_1K } } },
	{ "length below a page", -EINVAL, 0, { { 0, SZ_1K } } },
	{ "1 page too long", -EINVAL, 0, { { 0, BAR_LEN + PAGE_SIZE } } },
	{ "over the end", -EINVAL, 0,
	  { { BAR_LEN - PAGE_SIZE, 2 * PAGE_SIZE } } },
	{ "behind the end", -EINVAL, 0, { { BAR_LEN, PAGE_SIZE } } },
	{ "second over the end", -EINVAL, 0,
	  { { 0, PAGE_SIZE }, { BAR_LEN, PAGE_SIZE } } },
	{ "end wraps to 0", -EINVAL, 0, { { LAST_PAGE, PAGE_SIZE } } },
	{ "end wraps into the BAR", -EINVAL, 0,
	  { { LAST_PAGE, 2 * PAGE_SIZE } } },
	{ "length wraps into the BAR", -EINVAL, 0,
	  { { 2 * PAGE_SIZE, LAST_PAGE } } },
	{ "1 page more than the BAR together", -EINVAL, 0,
	  { { 0, BAR_LEN }, { 0, PAGE_SIZE } } },
};

KUNIT_ARRAY_PARAM_DESC(ranges, ranges_cases, name);

static struct vfio_pci_dma_buf *fake_buf(struct kunit *test,
					 unsigned int nr_ranges)
{
	struct vfio_pci_dma_buf *buf;

	buf = kunit_kzalloc(test, struct_size(buf, ranges, nr_ranges),
			    GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, buf);
	buf->pdev = fake_pdev(test);
	buf->bar = BAR;
	buf->nr_ranges = nr_ranges;
	return buf;
}

static void ranges_must_be_inside(struct kunit *test)
{
	const struct ranges_case *r = test->param_value;
	unsigned int nr_ranges = 1, i;
	struct vfio_pci_dma_buf *buf;
	size_t size;
	int ret;

	while (nr_ranges < ARRAY_SIZE(r->ranges) &&
	       (r->ranges[nr_ranges].offset || r->ranges[nr_ranges].length))
		nr_ranges++;

	buf = fake_buf(test, nr_ranges);
	ret = dma_buf_set_ranges(buf, r->ranges, &size);
	KUNIT_ASSERT_EQ(test, ret, r->ret);
	if (ret)
		return;

	KUNIT_EXPECT_EQ(test, size, r->size);
	for (i = 0; i < nr_ranges; i++) {
		KUNIT_EXPECT_EQ(test, buf->ranges[i].start,
				BAR_START + r->ranges[i].offset);
		KUNIT_EXPECT_EQ(test, range_len(&buf->ranges[i]),
				r->ranges[i].length);
	}
}

/* An importer without a device: it counts. */
struct importer {
	struct dma_buf dmabuf;
	struct dma_buf_attachment attach;
	unsigned int nr_invalidated;
};

static void importer_invalidate(struct dma_buf_attachment *attach)
{
	struct importer *imp = container_of(attach, struct importer, attach);

	dma_resv_assert_held(attach->dmabuf->resv);
	imp->nr_invalidated++;
}

static const struct dma_buf_attach_ops revocable_ops = {
	.invalidate_mappings = importer_invalidate,
};

static const struct dma_buf_attach_ops irrevocable_ops = {};

static void fences_exit(void *data)
{
	struct vfio_pci_dma_buf *buf = data;

	dma_buf_put_fences(buf);
	dma_resv_fini(&buf->resv);
}

static struct importer *fake_importer(struct kunit *test,
				      enum vfio_pci_dma_buf_state state)
{
	struct vfio_pci_dma_buf *buf = fake_buf(test, 1);
	struct importer *imp;

	kref_init(&buf->kref);
	dma_resv_init(&buf->resv);
	init_waitqueue_head(&buf->unmapped);
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, fences_exit, buf));
	imp = kunit_kzalloc(test, sizeof(*imp), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, imp);

	imp->dmabuf.priv = buf;
	imp->dmabuf.resv = &buf->resv;
	INIT_LIST_HEAD(&imp->dmabuf.attachments);
	imp->attach.dmabuf = &imp->dmabuf;
	imp->attach.peer2peer = true;
	imp->attach.importer_ops = &revocable_ops;
	list_add(&imp->attach.node, &imp->dmabuf.attachments);

	buf->dmabuf = &imp->dmabuf;
	buf->state = state;
	return imp;
}

#define LIVE	VFIO_PCI_DMA_BUF_LIVE
#define REVOKED	VFIO_PCI_DMA_BUF_REVOKED
#define DEAD	VFIO_PCI_DMA_BUF_DEAD

struct change {
	const char *name;
	enum vfio_pci_dma_buf_state from;
	enum vfio_pci_dma_buf_state to;
	enum vfio_pci_dma_buf_state result;
	unsigned int nr_invalidated;
};

static const struct change changes[] = {
	{ "live to live", LIVE, LIVE, LIVE, 0 },
	{ "live to revoked", LIVE, REVOKED, REVOKED, 1 },
	{ "live to dead", LIVE, DEAD, DEAD, 1 },
	{ "revoked to live", REVOKED, LIVE, LIVE, 1 },
	{ "revoked to revoked", REVOKED, REVOKED, REVOKED, 0 },
	{ "revoked to dead", REVOKED, DEAD, DEAD, 0 },
	{ "dead to live", DEAD, LIVE, DEAD, 0 },
	{ "dead to revoked", DEAD, REVOKED, DEAD, 0 },
	{ "dead to dead", DEAD, DEAD, DEAD, 0 },
};

KUNIT_ARRAY_PARAM_DESC(change, changes, name);

static void change_of_state_is_told(struct kunit *test)
{
	const struct change *change = test->param_value;
	struct importer *imp = fake_importer(test, change->from);
	struct vfio_pci_dma_buf *buf = imp->dmabuf.priv;

	dma_buf_set_state(buf, change->to);
	KUNIT_EXPECT_EQ(test, buf->state, change->result);
	KUNIT_EXPECT_EQ(test, imp->nr_invalidated, change->nr_invalidated);
}

/* The last fd can be closed before a revoke gets to the buffer. */
static void change_of_state_without_dma_buf(struct kunit *test)
{
	const struct change *change = test->param_value;
	struct importer *imp = fake_importer(test, change->from);
	struct vfio_pci_dma_buf *buf = imp->dmabuf.priv;

	buf->dmabuf = NULL;
	dma_buf_set_state(buf, change->to);
	KUNIT_EXPECT_EQ(test, buf->state, change->result);
	KUNIT_EXPECT_EQ(test, imp->nr_invalidated, 0);
}

struct attach_case {
	const char *name;
	enum vfio_pci_dma_buf_state state;
	bool peer2peer;
	const struct dma_buf_attach_ops *ops;
	int ret;
};

static const struct attach_case attach_cases[] = {
	{ "live", LIVE, true, &revocable_ops, 0 },
	{ "revoked", REVOKED, true, &revocable_ops, -ENODEV },
	{ "dead", DEAD, true, &revocable_ops, -ENODEV },
	{ "no peer2peer", LIVE, false, &revocable_ops, -EOPNOTSUPP },
	{ "not revocable", LIVE, true, &irrevocable_ops, -EOPNOTSUPP },
	{ "static", LIVE, false, NULL, -EOPNOTSUPP },
	{ "not revocable, revoked", REVOKED, true, &irrevocable_ops,
	  -EOPNOTSUPP },
};

KUNIT_ARRAY_PARAM_DESC(attach, attach_cases, name);

static void attach_needs_live_and_revocable(struct kunit *test)
{
	const struct attach_case *attach = test->param_value;
	struct importer *imp = fake_importer(test, attach->state);

	imp->attach.peer2peer = attach->peer2peer;
	imp->attach.importer_ops = attach->ops;
	KUNIT_EXPECT_EQ(test,
			vfio_pci_dma_buf_attach(&imp->dmabuf, &imp->attach),
			attach->ret);
}

/* The state may have changed since attach. P2PDMA refuses the client if asked. */
static void pin_and_map_need_live(struct kunit *test)
{
	static const struct {
		enum vfio_pci_dma_buf_state state;
		int pin_ret;
		int map_ret;
	} cases[] = {
		{ LIVE, 0, -EOPNOTSUPP },
		{ REVOKED, -ENODEV, -ENODEV },
		{ DEAD, -ENODEV, -ENODEV },
	};
	struct device *client = kunit_device_register(test, "client");
	struct vfio_pci_dma_buf *buf;
	struct sg_table *sgt;
	struct importer *imp;
	int i, ret;

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, client);
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		imp = fake_importer(test, cases[i].state);
		imp->attach.dev = client;
		buf = imp->dmabuf.priv;

		dma_resv_lock(&buf->resv, NULL);
		ret = vfio_pci_dma_buf_pin(&imp->attach);
		sgt = vfio_pci_dma_buf_map(&imp->attach, DMA_BIDIRECTIONAL);
		dma_resv_unlock(&buf->resv);

		KUNIT_EXPECT_EQ(test, ret, cases[i].pin_ret);
		KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(sgt), cases[i].map_ret);
		KUNIT_EXPECT_EQ(test, buf->nr_mapped, 0);
	}
}

static struct vfio_pci_core_device *fake_vdev(struct kunit *test)
{
	struct vfio_pci_core_device *vdev =
		kunit_kzalloc(test, sizeof(*vdev), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, vdev);
	init_rwsem(&vdev->memory_lock);
	INIT_LIST_HEAD(&vdev->dma_bufs);
	vdev->pdev = fake_pdev(test);
	return vdev;
}

/* When a device has woken up, and only then, its next user restores. */
static void woken_up_is_restored_by_user(struct kunit *test)
{
	struct importer *imp = fake_importer(test, REVOKED);
	struct vfio_pci_dma_buf *buf = imp->dmabuf.priv;
	u8 vconfig[PCI_STD_HEADER_SIZEOF] = { [PCI_COMMAND] = PCI_COMMAND_MEMORY };
	struct vfio_pci_core_device *vdev = fake_vdev(test);

	vdev->vconfig = vconfig;
	list_add(&buf->node, &vdev->dma_bufs);

	vfio_pci_dma_buf_restore_woken(vdev);
	KUNIT_EXPECT_EQ(test, buf->state, REVOKED);

	vdev->dma_bufs_woken = true;
	vfio_pci_dma_buf_restore_woken(vdev);
	KUNIT_EXPECT_EQ(test, buf->state, LIVE);
	KUNIT_EXPECT_EQ(test, imp->nr_invalidated, 1);
	KUNIT_EXPECT_FALSE(test, vdev->dma_bufs_woken);
}

static void state_is_told(struct kunit *test)
{
	static const struct {
		enum vfio_pci_dma_buf_state state;
		const char *name;
		bool live;
	} cases[] = {
		{ LIVE, "live", true },
		{ REVOKED, "revoked", false },
		{ DEAD, "dead", false },
	};
	struct importer *imp;
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		imp = fake_importer(test, cases[i].state);
		KUNIT_EXPECT_STREQ(test, vfio_pci_dma_buf_state(&imp->dmabuf),
				   cases[i].name);
		KUNIT_EXPECT_EQ(test, vfio_pci_dma_buf_is_live(&imp->dmabuf),
				cases[i].live);
	}
}

struct killer {
	struct work_struct work;
	struct vfio_pci_dma_buf *buf;
};

static void killer_work(struct work_struct *work)
{
	struct killer *killer = container_of(work, struct killer, work);

	dma_buf_set_state(killer->buf, DEAD);
}

/* An importer that maps with the lock held can see that it should stop. */
static void dying_is_seen_with_lock_held(struct kunit *test)
{
	struct importer *imp = fake_importer(test, LIVE);
	struct killer killer = { .buf = imp->dmabuf.priv };
	unsigned long timeout = jiffies + LONG_TIME;

	INIT_WORK_ONSTACK(&killer.work, killer_work);
	dma_resv_lock(imp->dmabuf.resv, NULL);
	schedule_work(&killer.work);
	while (vfio_pci_dma_buf_is_live(&imp->dmabuf) &&
	       time_before(jiffies, timeout))
		schedule_timeout_uninterruptible(1);
	KUNIT_EXPECT_FALSE(test, vfio_pci_dma_buf_is_live(&imp->dmabuf));
	KUNIT_EXPECT_EQ(test, imp->nr_invalidated, 0);
	dma_resv_unlock(imp->dmabuf.resv);
	flush_work(&killer.work);
	destroy_work_on_stack(&killer.work);
	KUNIT_EXPECT_EQ(test, imp->nr_invalidated, 1);
}

static const char *fence_name(struct dma_fence *fence)
{
	return "vfio_pci_dmabuf_kunit";
}

static bool fence_enable_signaling(struct dma_fence *fence)
{
	return true;
}

static unsigned int nr_fence_waits;

static signed long fence_wait(struct dma_fence *fence, bool intr, long timeout)
{
	nr_fence_waits++;
	return dma_fence_default_wait(fence, intr, timeout);
}

static const struct dma_fence_ops fence_ops = {
	.get_driver_name = fence_name,
	.get_timeline_name = fence_name,
	.enable_signaling = fence_enable_signaling,
	.wait = fence_wait,
};

static DEFINE_SPINLOCK(fence_lock);

static struct dma_fence *new_fence(void)
{
	struct dma_fence *fence = kzalloc(sizeof(*fence),
					  GFP_KERNEL | __GFP_NOFAIL);

	dma_fence_init(fence, &fence_ops, &fence_lock,
		       dma_fence_context_alloc(1), 1);
	return fence;
}

static struct dma_fence *add_fence(struct kunit *test,
				   struct vfio_pci_dma_buf *buf,
				   struct dma_fence *fence)
{
	dma_resv_lock(&buf->resv, NULL);
	KUNIT_EXPECT_EQ(test, 0, dma_resv_reserve_fences(&buf->resv, 1));
	dma_resv_add_fence(&buf->resv, fence, DMA_RESV_USAGE_BOOKKEEP);
	dma_resv_unlock(&buf->resv);
	return fence;
}

#define NR_BUFS		3

/* Has buffers mapped, and lets go of all of them when all importers were told. */
struct late_importer {
	struct kunit *test;
	struct dma_buf_attachment attach[NR_BUFS];
	unsigned int nr_bufs;
	unsigned int nr_invalidated;
	struct dma_fence *fence;
	struct completion *all_told;
	unsigned long signal_delay;
	unsigned long unmap_delay;
	struct work_struct let_go;
};

static void late_importer_invalidate(struct dma_buf_attachment *attach)
{
	struct late_importer *late = attach->importer_priv;

	if (!late->nr_invalidated++)
		schedule_work(&late->let_go);
}

static const struct dma_buf_attach_ops late_importer_ops = {
	.invalidate_mappings = late_importer_invalidate,
};

static void late_importer_let_go(struct work_struct *work)
{
	struct late_importer *late = container_of(work, struct late_importer,
						  let_go);
	int i;

	if (!wait_for_completion_timeout(late->all_told, LONG_TIME)) {
		KUNIT_FAIL(late->test, "waited for before all others are told");
		complete_all(late->all_told);
	}
	schedule_timeout_uninterruptible(late->signal_delay);
	dma_fence_signal(late->fence);

	schedule_timeout_uninterruptible(late->unmap_delay);
	for (i = late->nr_bufs - 1; i >= 0; i--) {
		struct dma_buf_attachment *attach = &late->attach[i];

		dma_resv_lock(attach->dmabuf->resv, NULL);
		vfio_pci_dma_buf_unmap(attach, attach->sgt, DMA_BIDIRECTIONAL);
		dma_resv_unlock(attach->dmabuf->resv);
	}
}

static void late_importer_init(struct late_importer *late, struct kunit *test,
			       struct completion *all_told)
{
	late->test = test;
	late->fence = new_fence();
	late->all_told = all_told;
	INIT_WORK(&late->let_go, late_importer_let_go);
}

/* Bus addresses are what is mapped, of which the unmap is the real one. */
static void late_importer_map(struct late_importer *late,
			      struct vfio_pci_dma_buf *buf)
{
	struct dma_buf_attachment *attach = &late->attach[late->nr_bufs++];

	attach->sgt = kzalloc(sizeof(*attach->sgt), GFP_KERNEL | __GFP_NOFAIL);
	KUNIT_ASSERT_EQ(late->test, 0,
			sg_alloc_table(attach->sgt, 1, GFP_KERNEL));
	sg_dma_mark_bus_address(attach->sgt->sgl);
	buf->nr_mapped++;

	attach->dmabuf = buf->dmabuf;
	attach->importer_ops = &late_importer_ops;
	attach->importer_priv = late;
	list_add_tail(&attach->node, &buf->dmabuf->attachments);
	add_fence(late->test, buf, late->fence);
}

/* Of the devices of one reset. Each buffer has an importer that is not mapped too. */
struct revoke {
	unsigned int nr_vdevs;
	unsigned int nr_lates;
	struct vfio_pci_core_device *vdevs[NR_BUFS];
	struct vfio_pci_dma_buf *bufs[NR_BUFS];
	struct importer *imps[NR_BUFS];
	struct late_importer lates[NR_BUFS];
	struct completion all_told;
};

/* Devices and importers that are fewer than the buffers have several, in turn. */
struct revoke_case {
	const char *name;
	unsigned int nr_vdevs;
	unsigned int nr_lates;
	unsigned int last;		/* importer that lets go last */
	unsigned long signal_delay;
	unsigned long unmap_delay;
};

static const struct revoke_case revoke_cases[] = {
	{ "fence of first is last", 1, 3, 0, SHORT_TIME, 0 },
	{ "fence of last is last", 1, 3, 2, SHORT_TIME, 0 },
	{ "unmap of first is last", 1, 3, 0, 0, SHORT_TIME },
	{ "unmap of last is last", 1, 3, 2, 0, SHORT_TIME },
	{ "importer of two buffers", 1, 2, 0, SHORT_TIME, SHORT_TIME },
	{ "importer of one buffer, another has two", 1, 2, 1,
	  SHORT_TIME, SHORT_TIME },
	{ "two devices, first is last", 2, 3, 0, SHORT_TIME, SHORT_TIME },
	{ "two devices, second is last", 2, 3, 1, SHORT_TIME, SHORT_TIME },
	{ "two devices, one importer", 2, 1, 0, SHORT_TIME, SHORT_TIME },
};

KUNIT_ARRAY_PARAM_DESC(revoke, revoke_cases, name);

static struct revoke *revoke_create(struct kunit *test,
				    const struct revoke_case *c)
{
	struct revoke *revoke = kunit_kzalloc(test, sizeof(*revoke), GFP_KERNEL);
	int i;

	KUNIT_ASSERT_NOT_NULL(test, revoke);
	init_completion(&revoke->all_told);
	revoke->nr_vdevs = c->nr_vdevs;
	revoke->nr_lates = c->nr_lates;
	for (i = 0; i < c->nr_vdevs; i++)
		revoke->vdevs[i] = fake_vdev(test);
	for (i = 0; i < c->nr_lates; i++)
		late_importer_init(&revoke->lates[i], test, &revoke->all_told);
	revoke->lates[c->last].signal_delay = c->signal_delay;
	revoke->lates[c->last].unmap_delay = c->unmap_delay;

	for (i = 0; i < NR_BUFS; i++) {
		revoke->imps[i] = fake_importer(test, LIVE);
		revoke->bufs[i] = revoke->imps[i]->dmabuf.priv;
		list_add_tail(&revoke->bufs[i]->node,
			      &revoke->vdevs[i % c->nr_vdevs]->dma_bufs);
		late_importer_map(&revoke->lates[i % c->nr_lates],
				  revoke->bufs[i]);
	}
	return revoke;
}

/* As a hot reset does it, and any other revoke of one device */
static void revoke_begin(struct kunit *test, struct revoke *revoke)
{
	int i;

	for (i = 0; i < revoke->nr_vdevs; i++)
		KUNIT_EXPECT_TRUE(test,
				  down_write_trylock(&revoke->vdevs[i]->memory_lock));
	for (i = 0; i < revoke->nr_vdevs; i++)
		vfio_pci_dma_buf_revoke_begin(revoke->vdevs[i]);
}

static void revoke_wait(struct revoke *revoke)
{
	int i;

	for (i = 0; i < revoke->nr_vdevs; i++)
		vfio_pci_dma_buf_revoke_wait(revoke->vdevs[i]);
	for (i = 0; i < revoke->nr_vdevs; i++)
		up_write(&revoke->vdevs[i]->memory_lock);
}

static void revoke_end(struct revoke *revoke)
{
	int i;

	for (i = 0; i < revoke->nr_lates; i++) {
		flush_work(&revoke->lates[i].let_go);
		dma_fence_put(revoke->lates[i].fence);
	}
}

/*
 * All importers of all buffers are told before any of them is waited for, and none
 * is left when the wait is over.
 */
static void all_are_told_before_the_wait(struct kunit *test)
{
	struct revoke *revoke = revoke_create(test, test->param_value);
	int i;

	revoke_begin(test, revoke);
	for (i = 0; i < revoke->nr_lates; i++) {
		KUNIT_EXPECT_EQ(test, revoke->lates[i].nr_invalidated,
				revoke->lates[i].nr_bufs);
		KUNIT_EXPECT_FALSE(test,
				   dma_fence_is_signaled(revoke->lates[i].fence));
	}
	for (i = 0; i < NR_BUFS; i++) {
		KUNIT_EXPECT_EQ(test, revoke->bufs[i]->state, REVOKED);
		KUNIT_EXPECT_EQ(test, revoke->imps[i]->nr_invalidated, 1);
		KUNIT_EXPECT_EQ(test, revoke->bufs[i]->nr_mapped, 1);
	}

	complete_all(&revoke->all_told);
	revoke_wait(revoke);
	for (i = 0; i < revoke->nr_lates; i++)
		KUNIT_EXPECT_TRUE(test,
				  dma_fence_is_signaled(revoke->lates[i].fence));
	for (i = 0; i < NR_BUFS; i++)
		KUNIT_EXPECT_EQ(test, revoke->bufs[i]->nr_mapped, 0);
	revoke_end(revoke);
}

static void expect_enabled(struct kunit *test, struct dma_fence *fence,
			   bool enabled)
{
	KUNIT_EXPECT_EQ(test, enabled,
			test_bit(DMA_FENCE_FLAG_ENABLE_SIGNAL_BIT, &fence->flags));
}

/*
 * What there is at the revoke is waited for, and is on its way before the first one
 * is. What comes later guards nothing, in that revoke nor in those after it, until
 * the buffer has been LIVE.
 */
static void revoke_waits_for_fences_of_its_time(struct kunit *test)
{
	struct importer *imp = fake_importer(test, LIVE);
	struct vfio_pci_dma_buf *buf = imp->dmabuf.priv;
	struct dma_fence *fences[3];
	int i;

	fences[0] = add_fence(test, buf, new_fence());
	fences[1] = add_fence(test, buf, new_fence());
	dma_buf_set_state(buf, REVOKED);
	fences[2] = add_fence(test, buf, new_fence());
	dma_buf_set_state(buf, REVOKED);
	KUNIT_EXPECT_EQ(test, buf->nr_fences, 2);
	for (i = 0; i < ARRAY_SIZE(fences); i++)
		expect_enabled(test, fences[i], i < 2);

	dma_buf_set_state(buf, LIVE);
	KUNIT_EXPECT_EQ(test, buf->nr_fences, 0);
	expect_enabled(test, fences[2], false);
	dma_buf_set_state(buf, DEAD);
	KUNIT_EXPECT_EQ(test, buf->nr_fences, 3);
	expect_enabled(test, fences[2], true);

	for (i = 0; i < ARRAY_SIZE(fences); i++) {
		dma_fence_signal(fences[i]);
		dma_fence_put(fences[i]);
	}
}

/* The driver of a fence can be gone when that has signalled. */
static void signalled_fence_is_left_alone(struct kunit *test)
{
	struct importer *imp = fake_importer(test, LIVE);
	struct vfio_pci_dma_buf *buf = imp->dmabuf.priv;
	struct dma_fence *fence = add_fence(test, buf, new_fence());
	struct dma_buf_drain drain;

	dma_buf_set_state(buf, REVOKED);
	dma_fence_signal(fence);
	nr_fence_waits = 0;
	drain = dma_buf_drain_begin(buf);
	dma_buf_wait_fences(&drain, buf);
	KUNIT_EXPECT_EQ(test, nr_fence_waits, 0);
	dma_fence_put(fence);
}

/* At about 1, 3, 7, 15 s, and so on, and at least once an hour */
static void silence_grows(struct kunit *test)
{
	static const struct {
		unsigned long waited;
		unsigned long silence;
	} cases[] = {
		{ 1, 2 }, { 3, 4 }, { 7, 8 }, { 3600, 3600 }, { 100000, 3600 },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		struct dma_buf_drain drain = {
			.start = jiffies - cases[i].waited * HZ,
		};
		unsigned long silence;

		dma_buf_drain_reported(&drain);
		silence = dma_buf_drain_silence(&drain);
		KUNIT_EXPECT_LE(test, silence, (cases[i].silence + 1) * HZ);
		KUNIT_EXPECT_GE(test, silence, (cases[i].silence - 1) * HZ);
	}
}

/* What is due is not waited for with a timeout of 0, which would only poll. */
static void silence_is_never_zero(struct kunit *test)
{
	struct dma_buf_drain drain = { .report = jiffies - 1 };

	KUNIT_EXPECT_EQ(test, dma_buf_drain_silence(&drain), 1);
}

static struct kunit_case dma_buf_cases[] = {
	KUNIT_CASE_PARAM(bar_must_have_memory, bar_gen_params),
	KUNIT_CASE_PARAM(ranges_must_be_inside, ranges_gen_params),
	KUNIT_CASE_PARAM(change_of_state_is_told, change_gen_params),
	KUNIT_CASE_PARAM(change_of_state_without_dma_buf, change_gen_params),
	KUNIT_CASE_PARAM(attach_needs_live_and_revocable, attach_gen_params),
	KUNIT_CASE(pin_and_map_need_live),
	KUNIT_CASE(woken_up_is_restored_by_user),
	KUNIT_CASE(state_is_told),
	KUNIT_CASE(dying_is_seen_with_lock_held),
	KUNIT_CASE_PARAM(all_are_told_before_the_wait, revoke_gen_params),
	KUNIT_CASE(revoke_waits_for_fences_of_its_time),
	KUNIT_CASE(signalled_fence_is_left_alone),
	KUNIT_CASE(silence_grows),
	KUNIT_CASE(silence_is_never_zero),
	{}
};

static struct kunit_suite dma_buf_suite = {
	.name = "vfio_pci_dmabuf",
	.test_cases = dma_buf_cases,
};
kunit_test_suite(dma_buf_suite);
