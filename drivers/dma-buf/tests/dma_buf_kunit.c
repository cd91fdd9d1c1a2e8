// SPDX-License-Identifier: GPL-2.0
/*
 * What exporters and importers of dma-bufs may rely on
 *
 * A mock exporter meets mock importers of each kind. The rules are those of
 * "Taking mappings back" in Documentation/driver-api/dma-buf.rst and of struct
 * dma_buf_attach_ops. All mocks are checked to be back at zero after each case.
 */
#include <kunit/device.h>
#include <kunit/test.h>
#include <linux/dma-buf.h>
#include <linux/dma-fence.h>
#include <linux/dma-resv.h>
#include <linux/file.h>
#include <linux/scatterlist.h>
#include <linux/seq_file.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

/* In jiffies; only a failure takes the long one. */
#define LONG_TIME	(10 * HZ)
#define SHORT_TIME	1

struct exporter {
	struct kunit *test;
	struct dma_buf *dmabuf;
	struct scatterlist sgl;
	struct sg_table sgt;
	wait_queue_head_t unmapped;

	/* What the callbacks answer */
	bool refuses_irrevocable;
	bool revoked;
	int attach_error;
	int pin_error;
	struct sg_table *map_result;

	/* What the importers have at present */
	int nr_attached;
	int nr_pinned;
	int nr_mapped;
};

struct importer {
	struct exporter *exp;
	struct dma_buf_attachment *attach;
	struct sg_table *sgt;
	struct dma_fence *fence;
	struct delayed_work signal_work;
	struct delayed_work unmap_work;
	int nr_invalidated;
	bool pinned;
	bool unmaps_at_once;
};

static void expect_locked(struct kunit *test, struct dma_buf *dmabuf)
{
	dma_resv_assert_held(dmabuf->resv);
	/* The same without lockdep */
	KUNIT_EXPECT_TRUE(test, dma_resv_is_locked(dmabuf->resv));
}

static int exporter_attach(struct dma_buf *dmabuf,
			   struct dma_buf_attachment *attach)
{
	struct exporter *exp = dmabuf->priv;

	KUNIT_EXPECT_FALSE(exp->test, dma_resv_is_locked(dmabuf->resv));
	if (exp->refuses_irrevocable && !dma_buf_attach_revocable(attach))
		return -EOPNOTSUPP;
	if (exp->attach_error)
		return exp->attach_error;
	exp->nr_attached++;
	return 0;
}

static void exporter_detach(struct dma_buf *dmabuf,
			    struct dma_buf_attachment *attach)
{
	struct exporter *exp = dmabuf->priv;

	KUNIT_EXPECT_FALSE(exp->test, dma_resv_is_locked(dmabuf->resv));
	exp->nr_attached--;
}

static int exporter_pin(struct dma_buf_attachment *attach)
{
	struct exporter *exp = attach->dmabuf->priv;

	expect_locked(exp->test, attach->dmabuf);
	if (exp->revoked)
		return -ENODEV;
	if (exp->pin_error)
		return exp->pin_error;
	exp->nr_pinned++;
	return 0;
}

static void exporter_unpin(struct dma_buf_attachment *attach)
{
	struct exporter *exp = attach->dmabuf->priv;

	expect_locked(exp->test, attach->dmabuf);
	exp->nr_pinned--;
}

static struct sg_table *exporter_map(struct dma_buf_attachment *attach,
				     enum dma_data_direction dir)
{
	struct exporter *exp = attach->dmabuf->priv;

	expect_locked(exp->test, attach->dmabuf);
	if (exp->revoked)
		return ERR_PTR(-ENODEV);
	if (!IS_ERR_OR_NULL(exp->map_result))
		exp->nr_mapped++;
	return exp->map_result;
}

static void exporter_unmap(struct dma_buf_attachment *attach,
			   struct sg_table *sgt, enum dma_data_direction dir)
{
	struct exporter *exp = attach->dmabuf->priv;

	expect_locked(exp->test, attach->dmabuf);
	KUNIT_EXPECT_PTR_EQ(exp->test, sgt, &exp->sgt);
	exp->nr_mapped--;
	wake_up_all(&exp->unmapped);
}

static void exporter_release(struct dma_buf *dmabuf)
{
	struct exporter *exp = dmabuf->priv;

	KUNIT_EXPECT_EQ(exp->test, exp->nr_attached, 0);
	KUNIT_EXPECT_EQ(exp->test, exp->nr_pinned, 0);
	KUNIT_EXPECT_EQ(exp->test, exp->nr_mapped, 0);
	exp->dmabuf = NULL;
}

static const struct dma_buf_ops dynamic_exporter_ops = {
	.attach = exporter_attach,
	.detach = exporter_detach,
	.pin = exporter_pin,
	.unpin = exporter_unpin,
	.map_dma_buf = exporter_map,
	.unmap_dma_buf = exporter_unmap,
	.release = exporter_release,
};

static const struct dma_buf_ops static_exporter_ops = {
	.attach = exporter_attach,
	.detach = exporter_detach,
	.map_dma_buf = exporter_map,
	.unmap_dma_buf = exporter_unmap,
	.release = exporter_release,
};

static void exporter_exit(void *data)
{
	struct exporter *exp = data;

	/* dma_buf_put() of a kernel thread leaves the release to a work item. */
	__fput_sync(exp->dmabuf->file);
	KUNIT_EXPECT_NULL_MSG(exp->test, exp->dmabuf, "dma-buf leaked");
}

static struct exporter *exporter_create_with(struct kunit *test,
					     const struct dma_buf_ops *ops,
					     struct dma_resv *resv)
{
	DEFINE_DMA_BUF_EXPORT_INFO(exp_info);
	struct exporter *exp;

	exp = kunit_kzalloc(test, sizeof(*exp), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, exp);
	exp->test = test;
	init_waitqueue_head(&exp->unmapped);

	/* An entry for DMA and none for the CPU, as it is with device memory */
	sg_init_table(&exp->sgl, 1);
	sg_dma_address(&exp->sgl) = SZ_1G;
	sg_dma_len(&exp->sgl) = PAGE_SIZE;
	exp->sgt.sgl = &exp->sgl;
	exp->sgt.nents = 1;
	exp->map_result = &exp->sgt;

	exp_info.ops = ops;
	exp_info.size = PAGE_SIZE;
	exp_info.resv = resv;
	exp_info.priv = exp;
	exp->dmabuf = dma_buf_export(&exp_info);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, exp->dmabuf);
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, exporter_exit, exp));
	return exp;
}

static struct exporter *exporter_create(struct kunit *test)
{
	return exporter_create_with(test, &dynamic_exporter_ops, NULL);
}

static void exporter_invalidate(struct exporter *exp)
{
	dma_resv_lock(exp->dmabuf->resv, NULL);
	dma_buf_invalidate_mappings(exp->dmabuf);
	dma_resv_unlock(exp->dmabuf->resv);
}

static void exporter_set_revoked(struct exporter *exp, bool revoked)
{
	dma_resv_lock(exp->dmabuf->resv, NULL);
	exp->revoked = revoked;
	dma_buf_invalidate_mappings(exp->dmabuf);
	dma_resv_unlock(exp->dmabuf->resv);
}

static void importer_invalidate(struct dma_buf_attachment *attach)
{
	struct importer *imp = attach->importer_priv;

	expect_locked(imp->exp->test, attach->dmabuf);
	KUNIT_EXPECT_PTR_EQ(imp->exp->test, attach, imp->attach);
	imp->nr_invalidated++;
	if (imp->unmaps_at_once) {
		dma_buf_unmap_attachment(attach, imp->sgt, DMA_BIDIRECTIONAL);
		imp->sgt = NULL;
	}
}

static const struct dma_buf_attach_ops revocable_ops = {
	.invalidate_mappings = importer_invalidate,
};

static const struct dma_buf_attach_ops revocable_p2p_ops = {
	.allow_peer2peer = true,
	.invalidate_mappings = importer_invalidate,
};

static const struct dma_buf_attach_ops irrevocable_ops = {
};

static const struct dma_buf_attach_ops irrevocable_p2p_ops = {
	.allow_peer2peer = true,
};

/*
 * Kinds of importers. @core_pins says for how many pins the core sees while the
 * importer has one mapping, besides the one that a @pinned importer asked for.
 */
struct kind {
	const char *name;
	const struct dma_buf_attach_ops *ops;
	bool pinned;
	bool peer2peer;
	bool revocable;
	int core_pins;
};

static const struct kind kinds[] = {
	{ "static", NULL, .core_pins = 1 },
	{ "revocable", &revocable_ops, .revocable = true },
	{ "revocable pinned", &revocable_ops,
	  .revocable = true, .pinned = true },
	{ "revocable peer2peer", &revocable_p2p_ops,
	  .revocable = true, .peer2peer = true },
	{ "revocable peer2peer pinned", &revocable_p2p_ops,
	  .revocable = true, .peer2peer = true, .pinned = true },
	{ "irrevocable", &irrevocable_ops, .core_pins = 1 },
	{ "irrevocable pinned", &irrevocable_ops,
	  .core_pins = 1, .pinned = true },
	{ "irrevocable peer2peer", &irrevocable_p2p_ops,
	  .core_pins = 1, .peer2peer = true },
	{ "irrevocable peer2peer pinned", &irrevocable_p2p_ops,
	  .core_pins = 1, .peer2peer = true, .pinned = true },
};

KUNIT_ARRAY_PARAM_DESC(kind, kinds, name);

/* Where one kind is as good as another */
static const struct kind *const revocable_kind = &kinds[1];
static const struct kind *const pinned_kind = &kinds[2];
static const struct kind *const irrevocable_kind = &kinds[5];
static const struct kind *const static_kind = &kinds[0];

static void importer_map(struct importer *imp)
{
	imp->sgt = dma_buf_map_attachment_unlocked(imp->attach,
						   DMA_BIDIRECTIONAL);
}

static void importer_unmap(struct importer *imp)
{
	dma_buf_unmap_attachment_unlocked(imp->attach, imp->sgt,
					  DMA_BIDIRECTIONAL);
	imp->sgt = NULL;
}

static int importer_pin(struct importer *imp)
{
	int ret;

	dma_resv_lock(imp->exp->dmabuf->resv, NULL);
	ret = dma_buf_pin(imp->attach);
	imp->pinned = !ret;
	dma_resv_unlock(imp->exp->dmabuf->resv);
	return ret;
}

static void importer_unpin(struct importer *imp)
{
	dma_resv_lock(imp->exp->dmabuf->resv, NULL);
	dma_buf_unpin(imp->attach);
	imp->pinned = false;
	dma_resv_unlock(imp->exp->dmabuf->resv);
}

static void importer_signal_work(struct work_struct *work)
{
	struct importer *imp = container_of(work, struct importer,
					    signal_work.work);

	dma_fence_signal(imp->fence);
}

static void importer_unmap_work(struct work_struct *work)
{
	importer_unmap(container_of(work, struct importer, unmap_work.work));
}

static void importer_exit(void *data)
{
	struct importer *imp = data;

	flush_delayed_work(&imp->signal_work);
	flush_delayed_work(&imp->unmap_work);
	if (!IS_ERR_OR_NULL(imp->sgt))
		importer_unmap(imp);
	if (imp->pinned)
		importer_unpin(imp);
	if (imp->fence) {
		dma_fence_signal(imp->fence);
		dma_fence_put(imp->fence);
	}
	dma_buf_detach(imp->exp->dmabuf, imp->attach);
}

/* May fail: @attach of the result can be an ERR_PTR(). */
static struct importer *importer_try_attach(struct exporter *exp,
					    const struct kind *kind)
{
	struct kunit *test = exp->test;
	struct importer *imp;

	imp = kunit_kzalloc(test, sizeof(*imp), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, imp);
	imp->exp = exp;
	INIT_DELAYED_WORK(&imp->signal_work, importer_signal_work);
	INIT_DELAYED_WORK(&imp->unmap_work, importer_unmap_work);
	imp->attach = dma_buf_dynamic_attach(exp->dmabuf, test->priv,
					     kind->ops, imp);
	if (!IS_ERR(imp->attach))
		KUNIT_ASSERT_EQ(test, 0,
				kunit_add_action_or_reset(test, importer_exit,
							  imp));
	return imp;
}

static struct importer *importer_attach(struct exporter *exp,
					const struct kind *kind)
{
	struct importer *imp = importer_try_attach(exp, kind);

	KUNIT_ASSERT_FALSE(exp->test, IS_ERR(imp->attach));
	return imp;
}

/* Attached, pinned where that is its kind, and mapped */
static struct importer *importer_create(struct exporter *exp,
					const struct kind *kind)
{
	struct importer *imp = importer_attach(exp, kind);

	if (kind->pinned)
		KUNIT_ASSERT_EQ(exp->test, importer_pin(imp), 0);
	importer_map(imp);
	KUNIT_ASSERT_PTR_EQ(exp->test, imp->sgt, &exp->sgt);
	return imp;
}

static const char *fence_name(struct dma_fence *fence)
{
	return "dma_buf_kunit";
}

static const struct dma_fence_ops fence_ops = {
	.get_driver_name = fence_name,
	.get_timeline_name = fence_name,
};

static DEFINE_SPINLOCK(fence_lock);

/* The importer's device is at work. */
static void importer_add_fence(struct importer *imp, enum dma_resv_usage usage)
{
	struct dma_resv *resv = imp->exp->dmabuf->resv;
	struct kunit *test = imp->exp->test;
	int ret;

	imp->fence = kzalloc(sizeof(*imp->fence), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, imp->fence);
	dma_fence_init(imp->fence, &fence_ops, &fence_lock,
		       dma_fence_context_alloc(1), 1);

	dma_resv_lock(resv, NULL);
	ret = dma_resv_reserve_fences(resv, 1);
	if (!ret)
		dma_resv_add_fence(resv, imp->fence, usage);
	dma_resv_unlock(resv);
	KUNIT_ASSERT_EQ(test, ret, 0);
}

/*
 * Attach
 */

static void attach_tells_kind_of_importer(struct kunit *test)
{
	const struct kind *kind = test->param_value;
	struct importer *imp = importer_attach(exporter_create(test), kind);

	KUNIT_EXPECT_EQ(test, dma_buf_attach_revocable(imp->attach),
			kind->revocable);
	KUNIT_EXPECT_EQ(test, imp->attach->peer2peer, kind->peer2peer);
	KUNIT_EXPECT_EQ(test, dma_buf_attachment_is_dynamic(imp->attach),
			!!kind->ops);
}

/* Whatever becomes of the buffer, and whatever the importer has of it */
static void attach_revocable_asks_importer_only(struct kunit *test)
{
	const struct kind *kind = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *imp = importer_create(exp, kind);
	int i;

	for (i = 0; i < 2; i++) {
		KUNIT_EXPECT_EQ(test, dma_buf_attach_revocable(imp->attach),
				kind->revocable);
		exporter_invalidate(exp);
		KUNIT_EXPECT_EQ(test, dma_buf_attach_revocable(imp->attach),
				kind->revocable);
		exporter_set_revoked(exp, true);
		KUNIT_EXPECT_EQ(test, dma_buf_attach_revocable(imp->attach),
				kind->revocable);
		exporter_set_revoked(exp, false);
		if (imp->sgt)
			importer_unmap(imp);
	}
}

static void attach_refused_if_irrevocable(struct kunit *test)
{
	const struct kind *kind = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *imp;

	exp->refuses_irrevocable = true;
	imp = importer_try_attach(exp, kind);
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(imp->attach),
			kind->revocable ? 0 : -EOPNOTSUPP);
	/* The mapping that is kept for a static importer is not made either. */
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 0);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 0);
}

static void attach_refused_leaves_nothing(struct kunit *test)
{
	const struct kind *kind = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *other = importer_attach(exp, revocable_kind);
	unsigned long files = file_count(exp->dmabuf->file);
	struct importer *imp;

	exp->attach_error = -ENODEV;
	imp = importer_try_attach(exp, kind);
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(imp->attach), -ENODEV);

	KUNIT_EXPECT_TRUE(test, list_is_singular(&exp->dmabuf->attachments));
	KUNIT_EXPECT_EQ(test, file_count(exp->dmabuf->file), files);
	KUNIT_EXPECT_EQ(test, exp->nr_attached, 1);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 0);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 0);

	exporter_invalidate(exp);
	KUNIT_EXPECT_EQ(test, imp->nr_invalidated, 0);
	KUNIT_EXPECT_EQ(test, other->nr_invalidated, 1);
}

/*
 * Why exporters refuse static importers: the mapping of one is kept from attach
 * to detach, whatever the importer does in between.
 */
static void attach_maps_for_static_importer(struct kunit *test)
{
	struct exporter *exp = exporter_create(test);
	struct importer *imp = importer_attach(exp, static_kind);

	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 1);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 1);

	importer_map(imp);
	importer_unmap(imp);
	exporter_invalidate(exp);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 1);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 1);

	kunit_release_action(test, importer_exit, imp);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 0);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 0);
}

/* An exporter without pin has its mappings kept for dynamic importers. */
static void attach_to_static_exporter(struct kunit *test)
{
	const struct kind *kind = test->param_value;
	struct exporter *exp = exporter_create_with(test, &static_exporter_ops,
						    NULL);
	struct importer *imp = importer_create(exp, kind);

	KUNIT_EXPECT_EQ(test, dma_buf_attach_revocable(imp->attach),
			kind->revocable);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 1);
	exporter_invalidate(exp);
	KUNIT_EXPECT_EQ(test, imp->nr_invalidated, kind->revocable);
	importer_unmap(imp);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, !!kind->ops);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 0);
}

/*
 * Pin and map
 */

/* What bufinfo shows of the only importer is what the exporter knows */
static void expect_counted(struct importer *imp)
{
	struct kunit *test = imp->exp->test;

	KUNIT_EXPECT_EQ(test, imp->attach->nr_pinned, imp->exp->nr_pinned);
	KUNIT_EXPECT_EQ(test, imp->attach->nr_mapped, imp->exp->nr_mapped);
}

static void map_pins_for_irrevocable(struct kunit *test)
{
	const struct kind *kind = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *imp = importer_create(exp, kind);

	KUNIT_EXPECT_EQ(test, exp->nr_pinned, kind->pinned + kind->core_pins);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 1);
	expect_counted(imp);
	if (!kind->ops)
		return;

	importer_unmap(imp);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, kind->pinned);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 0);
	expect_counted(imp);
}

static void map_twice_pins_twice(struct kunit *test)
{
	struct exporter *exp = exporter_create(test);
	struct importer *imp = importer_create(exp, irrevocable_kind);

	importer_map(imp);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 2);
	dma_buf_unmap_attachment_unlocked(imp->attach, imp->sgt,
					  DMA_BIDIRECTIONAL);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 1);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 1);
}

static void pin_is_balanced(struct kunit *test)
{
	struct exporter *exp = exporter_create(test);
	struct importer *imp = importer_attach(exp, revocable_kind);

	KUNIT_EXPECT_EQ(test, importer_pin(imp), 0);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 1);
	expect_counted(imp);
	importer_unpin(imp);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 0);
	expect_counted(imp);
}

static void pin_error_is_passed_on(struct kunit *test)
{
	struct exporter *exp = exporter_create(test);
	struct importer *imp = importer_attach(exp, revocable_kind);

	exp->pin_error = -EBUSY;
	KUNIT_EXPECT_EQ(test, importer_pin(imp), -EBUSY);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 0);
	expect_counted(imp);
}

/* Ways in which an exporter fails to map, and what the importer is told */
struct map_failure {
	const char *name;
	int pin_error;
	int map_error;	/* 0: the exporter returns NULL */
	int result_if_pinned_by_core;
	int result;
};

static const struct map_failure map_failures[] = {
	{ "map fails", 0, -ENOSPC, -ENOSPC, -ENOSPC },
	{ "map returns NULL", 0, 0, -ENOMEM, -ENOMEM },
	{ "pin fails", -EBUSY, -ENOSPC, -EBUSY, -ENOSPC },
};

KUNIT_ARRAY_PARAM_DESC(map_failure, map_failures, name);

static void exporter_fail(struct exporter *exp, const struct map_failure *fail)
{
	exp->pin_error = fail->pin_error;
	exp->map_result = ERR_PTR(fail->map_error);
}

static void map_failure_leaves_nothing(struct kunit *test)
{
	const struct map_failure *fail = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *with_op = importer_attach(exp, revocable_kind);
	struct importer *without_op = importer_attach(exp, irrevocable_kind);

	exporter_fail(exp, fail);
	importer_map(with_op);
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(with_op->sgt), fail->result);
	importer_map(without_op);
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(without_op->sgt),
			fail->result_if_pinned_by_core);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 0);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 0);
	expect_counted(with_op);
	expect_counted(without_op);
}

/* The same while a static importer attaches, which maps for it */
static void map_failure_ends_static_attach(struct kunit *test)
{
	const struct map_failure *fail = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *imp;

	exporter_fail(exp, fail);
	imp = importer_try_attach(exp, static_kind);
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(imp->attach),
			fail->result_if_pinned_by_core);
	KUNIT_EXPECT_TRUE(test, list_empty(&exp->dmabuf->attachments));
	KUNIT_EXPECT_EQ(test, exp->nr_attached, 0);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 0);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 0);
}

/*
 * Invalidate
 */

static void invalidate_calls_op_if_any(struct kunit *test)
{
	const struct kind *kind = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *imp = importer_create(exp, kind);

	exporter_invalidate(exp);
	KUNIT_EXPECT_EQ(test, imp->nr_invalidated, kind->revocable);
}

static void expect_invalidated(struct importer *imp, const struct kind *kind)
{
	int before = imp->nr_invalidated;

	exporter_invalidate(imp->exp);
	KUNIT_EXPECT_EQ(imp->exp->test, imp->nr_invalidated,
			before + kind->revocable);
}

static void invalidate_is_legal_at_any_time(struct kunit *test)
{
	const struct kind *kind = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *imp = importer_attach(exp, kind);

	expect_invalidated(imp, kind);
	if (kind->pinned)
		KUNIT_ASSERT_EQ(test, importer_pin(imp), 0);
	expect_invalidated(imp, kind);

	importer_map(imp);
	KUNIT_ASSERT_PTR_EQ(test, imp->sgt, &exp->sgt);
	expect_invalidated(imp, kind);
	expect_invalidated(imp, kind);

	importer_unmap(imp);
	expect_invalidated(imp, kind);
}

/* Only an exporter that is asked to attach, pin or map says no. */
static void invalidate_leaves_no_state(struct kunit *test)
{
	const struct kind *kind = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *imp = importer_create(exp, kind);

	exporter_invalidate(exp);
	importer_unmap(imp);
	importer_map(imp);
	KUNIT_ASSERT_PTR_EQ(test, imp->sgt, &exp->sgt);
	importer_create(exp, kind);
	KUNIT_EXPECT_EQ(test, exp->nr_attached, 2);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 2);
}

/* In the callback, where the reservation lock is held already */
static void invalidate_lets_unmap_at_once(struct kunit *test)
{
	const struct kind *kind = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *imps[2];
	int i;

	for (i = 0; i < ARRAY_SIZE(imps); i++) {
		imps[i] = importer_create(exp, kind);
		imps[i]->unmaps_at_once = true;
	}
	exporter_invalidate(exp);
	for (i = 0; i < ARRAY_SIZE(imps); i++)
		KUNIT_EXPECT_EQ(test, imps[i]->nr_invalidated, kind->revocable);
	KUNIT_EXPECT_EQ(test, exp->nr_attached, 2);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned,
			2 * (kind->pinned + kind->core_pins));
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, kind->revocable ? 0 : 2);
}

static void invalidate_tells_all_importers(struct kunit *test)
{
	struct exporter *exp = exporter_create(test);
	struct importer *imps[2 * ARRAY_SIZE(kinds)];
	int i;

	for (i = 0; i < ARRAY_SIZE(imps); i++)
		imps[i] = importer_create(exp, &kinds[i / 2]);
	exporter_invalidate(exp);
	for (i = 0; i < ARRAY_SIZE(imps); i++)
		KUNIT_EXPECT_EQ_MSG(test, imps[i]->nr_invalidated,
				    kinds[i / 2].revocable, "%s",
				    kinds[i / 2].name);
}

static void invalidate_spares_detached(struct kunit *test)
{
	struct exporter *exp = exporter_create(test);
	struct importer *stays = importer_create(exp, revocable_kind);
	struct importer *leaves = importer_create(exp, revocable_kind);

	kunit_release_action(test, importer_exit, leaves);
	exporter_invalidate(exp);
	KUNIT_EXPECT_EQ(test, stays->nr_invalidated, 1);
	KUNIT_EXPECT_EQ(test, leaves->nr_invalidated, 0);
}

static void resv_exit(void *resv)
{
	dma_resv_fini(resv);
}

/* Buffers may share a reservation object, and still move one by one. */
static void invalidate_spares_other_buffers(struct kunit *test)
{
	struct exporter *exp, *other;
	struct importer *imp, *other_imp;
	struct dma_resv *resv;

	resv = kunit_kzalloc(test, sizeof(*resv), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, resv);
	dma_resv_init(resv);
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, resv_exit, resv));

	exp = exporter_create_with(test, &dynamic_exporter_ops, resv);
	other = exporter_create_with(test, &dynamic_exporter_ops, resv);
	imp = importer_create(exp, revocable_kind);
	other_imp = importer_create(other, revocable_kind);

	exporter_invalidate(exp);
	KUNIT_EXPECT_EQ(test, imp->nr_invalidated, 1);
	KUNIT_EXPECT_EQ(test, other_imp->nr_invalidated, 0);
}

/*
 * Move and revoke
 */

static void revoke_leaves_attached_and_pinned(struct kunit *test)
{
	const struct kind *kind = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *imp = importer_create(exp, kind);
	unsigned long files = file_count(exp->dmabuf->file);

	exporter_set_revoked(exp, true);
	KUNIT_EXPECT_EQ(test, exp->nr_attached, 1);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, kind->pinned + kind->core_pins);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 1);
	KUNIT_EXPECT_EQ(test, file_count(exp->dmabuf->file), files);
	/* The unmap of the mapping works on a revoked buffer, later on. */
	importer_unmap(imp);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, !kind->ops);
}

static void revoked_is_enodev(struct kunit *test)
{
	const struct kind *kind = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *imp;

	if (!kind->ops) {
		exp->revoked = true;
		imp = importer_try_attach(exp, kind);
		KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(imp->attach), -ENODEV);
		return;
	}

	imp = importer_attach(exp, kind);
	exporter_set_revoked(exp, true);
	KUNIT_EXPECT_EQ(test, importer_pin(imp), -ENODEV);
	importer_map(imp);
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(imp->sgt), -ENODEV);
	KUNIT_EXPECT_EQ(test, exp->nr_pinned, 0);
}

static void restore_is_another_invalidate(struct kunit *test)
{
	const struct kind *kind = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *imp = importer_create(exp, kind);
	int i;

	/* The mapping of a static importer does not go. */
	if (!kind->ops)
		return;

	for (i = 1; i <= 3; i++) {
		exporter_set_revoked(exp, true);
		KUNIT_EXPECT_EQ(test, imp->nr_invalidated,
				kind->revocable * (2 * i - 1));
		importer_unmap(imp);
		importer_map(imp);
		KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(imp->sgt), -ENODEV);

		exporter_set_revoked(exp, false);
		KUNIT_EXPECT_EQ(test, imp->nr_invalidated, kind->revocable * 2 * i);
		importer_map(imp);
		KUNIT_ASSERT_PTR_EQ(test, imp->sgt, &exp->sgt);
		KUNIT_EXPECT_EQ(test, exp->nr_mapped, 1);
	}
}

struct usage {
	const char *name;
	enum dma_resv_usage usage;
	bool pinned;
};

static const struct usage usages[] = {
	{ "kernel", DMA_RESV_USAGE_KERNEL },
	{ "write", DMA_RESV_USAGE_WRITE },
	{ "read", DMA_RESV_USAGE_READ },
	{ "bookkeep", DMA_RESV_USAGE_BOOKKEEP },
	{ "bookkeep pinned", DMA_RESV_USAGE_BOOKKEEP, .pinned = true },
};

KUNIT_ARRAY_PARAM_DESC(usage, usages, name);

static long exporter_wait_fences(struct exporter *exp, long timeout)
{
	return dma_resv_wait_timeout(exp->dmabuf->resv, DMA_RESV_USAGE_BOOKKEEP,
				     false, timeout);
}

static long exporter_wait_unmaps(struct exporter *exp, long timeout)
{
	return wait_event_timeout(exp->unmapped, !READ_ONCE(exp->nr_mapped),
				  timeout);
}

/*
 * Reads of the old place do no harm, so the unmap is not waited for. The importer
 * finds the new one by itself.
 */
static void move_waits_for_fences_only(struct kunit *test)
{
	const struct usage *usage = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *imp = importer_create(exp, usage->pinned ? pinned_kind :
								    revocable_kind);

	importer_add_fence(imp, usage->usage);
	exporter_invalidate(exp);
	KUNIT_EXPECT_FALSE(test, dma_fence_is_signaled(imp->fence));
	schedule_delayed_work(&imp->signal_work, SHORT_TIME);
	KUNIT_EXPECT_GT(test, exporter_wait_fences(exp, LONG_TIME), 0);
	KUNIT_EXPECT_TRUE(test, dma_fence_is_signaled(imp->fence));
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 1);

	sg_dma_address(&exp->sgl) = SZ_2G;
	importer_unmap(imp);
	importer_map(imp);
	KUNIT_ASSERT_PTR_EQ(test, imp->sgt, &exp->sgt);
	KUNIT_EXPECT_EQ(test, sg_dma_address(imp->sgt->sgl), SZ_2G);
	KUNIT_EXPECT_EQ(test, imp->nr_invalidated, 1);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 1);
}

/*
 * The importer does not end the one nor the other by itself here, so that each is
 * seen to be waited for alone.
 */
static void revoke_drains_fences_then_unmaps(struct kunit *test)
{
	const struct usage *usage = test->param_value;
	struct exporter *exp = exporter_create(test);
	struct importer *imp = importer_create(exp, usage->pinned ? pinned_kind :
								    revocable_kind);

	importer_add_fence(imp, usage->usage);
	exporter_set_revoked(exp, true);
	KUNIT_EXPECT_FALSE(test, dma_fence_is_signaled(imp->fence));
	KUNIT_EXPECT_EQ(test, exporter_wait_fences(exp, SHORT_TIME), 0);

	schedule_delayed_work(&imp->signal_work, SHORT_TIME);
	KUNIT_EXPECT_GT(test, exporter_wait_fences(exp, LONG_TIME), 0);
	KUNIT_EXPECT_TRUE(test, dma_fence_is_signaled(imp->fence));
	KUNIT_EXPECT_EQ(test, exporter_wait_unmaps(exp, SHORT_TIME), 0);
	KUNIT_EXPECT_EQ(test, exp->nr_mapped, 1);

	schedule_delayed_work(&imp->unmap_work, SHORT_TIME);
	KUNIT_EXPECT_GT(test, exporter_wait_unmaps(exp, LONG_TIME), 0);
}

/*
 * Fences in bufinfo
 */

struct named_fence {
	struct dma_fence base;
	spinlock_t lock;	/* of base */
	bool nameless;
};

/* The names go when the fence has signalled, with the queue that they are of. */
static const char *named_fence_name(struct dma_fence *base)
{
	struct named_fence *fence = container_of(base, struct named_fence, base);

	fence->nameless |= test_bit(DMA_FENCE_FLAG_SIGNALED_BIT, &base->flags);
	return "queue";
}

static const struct dma_fence_ops named_fence_ops = {
	.get_driver_name = named_fence_name,
	.get_timeline_name = named_fence_name,
};

static void describe_names_pending_fences(struct kunit *test)
{
	struct named_fence *fence = kzalloc(sizeof(*fence),
					    GFP_KERNEL | __GFP_NOFAIL);
	char text[64] = "";
	struct seq_file seq = { .buf = text, .size = sizeof(text) };

	spin_lock_init(&fence->lock);
	dma_fence_init(&fence->base, &named_fence_ops, &fence->lock, 1, 7);
	dma_fence_describe(&fence->base, &seq);
	KUNIT_EXPECT_STREQ(test, text, "queue queue seq 7 unsignalled\n");

	dma_fence_signal(&fence->base);
	memset(text, 0, sizeof(text));
	seq.count = 0;
	dma_fence_describe(&fence->base, &seq);
	KUNIT_EXPECT_STREQ(test, text, "seq 7 signalled\n");
	KUNIT_EXPECT_FALSE(test, fence->nameless);
	dma_fence_put(&fence->base);
}

static struct kunit_case dma_buf_cases[] = {
	KUNIT_CASE_PARAM(attach_tells_kind_of_importer, kind_gen_params),
	KUNIT_CASE_PARAM(attach_revocable_asks_importer_only, kind_gen_params),
	KUNIT_CASE_PARAM(attach_refused_if_irrevocable, kind_gen_params),
	KUNIT_CASE_PARAM(attach_refused_leaves_nothing, kind_gen_params),
	KUNIT_CASE(attach_maps_for_static_importer),
	KUNIT_CASE_PARAM(attach_to_static_exporter, kind_gen_params),
	KUNIT_CASE_PARAM(map_pins_for_irrevocable, kind_gen_params),
	KUNIT_CASE(map_twice_pins_twice),
	KUNIT_CASE(pin_is_balanced),
	KUNIT_CASE(pin_error_is_passed_on),
	KUNIT_CASE_PARAM(map_failure_leaves_nothing, map_failure_gen_params),
	KUNIT_CASE_PARAM(map_failure_ends_static_attach, map_failure_gen_params),
	KUNIT_CASE_PARAM(invalidate_calls_op_if_any, kind_gen_params),
	KUNIT_CASE_PARAM(invalidate_is_legal_at_any_time, kind_gen_params),
	KUNIT_CASE_PARAM(invalidate_leaves_no_state, kind_gen_params),
	KUNIT_CASE_PARAM(invalidate_lets_unmap_at_once, kind_gen_params),
	KUNIT_CASE(invalidate_tells_all_importers),
	KUNIT_CASE(invalidate_spares_detached),
	KUNIT_CASE(invalidate_spares_other_buffers),
	KUNIT_CASE_PARAM(revoke_leaves_attached_and_pinned, kind_gen_params),
	KUNIT_CASE_PARAM(revoked_is_enodev, kind_gen_params),
	KUNIT_CASE_PARAM(restore_is_another_invalidate, kind_gen_params),
	KUNIT_CASE_PARAM(move_waits_for_fences_only, usage_gen_params),
	KUNIT_CASE_PARAM(revoke_drains_fences_then_unmaps, usage_gen_params),
	KUNIT_CASE(describe_names_pending_fences),
	{}
};

static int dma_buf_init(struct kunit *test)
{
	test->priv = kunit_device_register(test, "importer");
	return PTR_ERR_OR_ZERO(test->priv);
}

static struct kunit_suite dma_buf_suite = {
	.name = "dma_buf",
	.init = dma_buf_init,
	.test_cases = dma_buf_cases,
};
kunit_test_suite(dma_buf_suite);

MODULE_DESCRIPTION("KUnit tests for the contract of dma-buf importers and exporters");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS(DMA_BUF);
