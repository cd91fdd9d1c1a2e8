// SPDX-License-Identifier: GPL-2.0
/*
 * dma-buf test importer: a driver for QEMU's "edu" device that imports a
 * dma-buf as ordinary drivers do and lets the device read and write it, by the
 * DMA addresses that the exporter gave.
 *
 * Tests choose how well the importer behaves: static or dynamic, pinned or not,
 * with or without the invalidate_mappings op, and how late after an invalidate
 * it is done with the memory (a fence) and unmaps it. Whatever they choose is
 * bounded by the kernel, never by userspace.
 *
 * DMA that userspace asks for runs with the reservation lock held, so that an
 * invalidate comes before or after it, never in between; the hardware is given
 * bounded time. The fence stands for the work of drivers that are not so simple.
 * It is of the kind of a preemption fence: it waits for the work to be stopped,
 * by an invalidate or by the first waiter, as a fence must not depend on either.
 *
 * The driver never binds by itself. Write its name to driver_override, or the
 * device's id to new_id.
 *
 * Lock order:
 *
 *   dbti_device.alive
 *     dma_buf.resv
 *       dbti_device.engine_lock
 *       dbti_fence.lock
 *
 * User memory is accessed with none of them held: a page fault may need the
 * reservation lock.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/dma-buf.h>
#include <linux/dma-fence.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/io.h>
#include <linux/iopoll.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/pci.h>
#include <linux/rwsem.h>
#include <linux/slab.h>
#include <linux/timer.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "dma-buf-test-importer.h"

#define EDU_VENDOR_ID		0x1234
#define EDU_DEVICE_ID		0x11e8

#define EDU_REG_ID		0x00
#define   EDU_ID_MASK		0x000000ff
#define   EDU_ID		0x000000ed
#define EDU_REG_DMA_SRC		0x80
#define EDU_REG_DMA_DST		0x88
#define EDU_REG_DMA_COUNT	0x90
#define EDU_REG_DMA_CMD		0x98
#define   EDU_DMA_START		BIT_ULL(0)
#define   EDU_DMA_TO_MEMORY	BIT_ULL(1)

#define EDU_BUFFER		0x40000

/*
 * Half of edu's buffer: QEMU's range check takes a transfer that ends exactly
 * at the end of the buffer for one beyond it, and kills the machine.
 */
#define EDU_CHUNK		2048

/* edu takes 100 ms. */
#define EDU_POLL_US		1000
#define EDU_TIMEOUT_US		(2 * USEC_PER_SEC)

/* For fences of others, which must signal before a new mapping is used. */
#define DBTI_KERNEL_FENCE_MS	10000

static unsigned int dma_bits = 64;
module_param(dma_bits, uint, 0444);
MODULE_PARM_DESC(dma_bits, "Address bits of the devices: 64, or what edu's dma_mask= is (28 without it)");

/**
 * struct dbti_device - a bound PCI device
 * @kref: one for the binding, one for each open file
 * @misc: device node
 * @name: its name
 * @index: the number in its name
 * @alive: read: held by everything that uses the PCI device or an attachment
 *	of it; write: to end that
 * @gone: unbound, there is no @pdev any more. Protected by @alive.
 * @imports: attached imports of all files, by handle. A detach begins with
 *	taking the import out, so it is done once. Has its own lock; entries are
 *	added and removed with @alive held.
 * @pdev: the PCI device. Valid while not @gone.
 * @regs: BAR 0 of it
 * @engine_lock: serialises use of the DMA engine
 * @bounce: %EDU_CHUNK bytes between CPU and device. Protected by @engine_lock.
 * @bounce_dma: address of @bounce for the device
 * @broken: the engine hangs, and is cut off. Protected by @engine_lock.
 */
struct dbti_device {
	struct kref kref;
	struct miscdevice misc;
	char name[32];
	int index;

	struct rw_semaphore alive;
	bool gone;
	struct xarray imports;
	struct pci_dev *pdev;
	void __iomem *regs;

	struct mutex engine_lock;	/* engine, bounce, segments */
	void *bounce;
	dma_addr_t bounce_dma;
	bool broken;
};

/**
 * struct dbti_fence - work of the device that is in flight
 * @base: the fence
 * @lock: lock of @base
 * @timer: ends the work; owns a reference to @base while pending
 * @delay: time from stopping the work to its end, in jiffies
 * @stopping: bit 0: the timer was started. It is, once at most.
 */
struct dbti_fence {
	struct dma_fence base;
	spinlock_t lock;		/* of base */
	struct timer_list timer;
	unsigned long delay;
	unsigned long stopping;
};

/**
 * struct dbti_segment - part of a mapping
 * @addr: DMA address
 * @len: bytes
 */
struct dbti_segment {
	dma_addr_t addr;
	unsigned int len;
};

/**
 * struct dbti_import - a dma-buf attached to the device
 *
 * These do not change until the last reference is gone:
 *
 * @kref: one for dbti_device.imports, one for each ioctl at work
 * @dev: the device
 * @owner: the open file that made it, only to be compared
 * @dmabuf: the buffer
 * @attach: valid until detached: while not @dying, under the reservation lock
 * @flags: enum dma_buf_test_import_flags
 * @revocable: what dma_buf_attach_revocable() said
 * @fence_delay: in jiffies, 0 is no fence
 * @unmap_delay: in jiffies, 0 is in the callback
 * @fence_context: dma_fence context
 *
 * These are protected by the reservation lock of @dmabuf; the ones marked (s)
 * are read by the status ioctl without it:
 *
 * @dying: about to be detached, must not be mapped again
 * @sgt: present mapping, or NULL
 * @state: (s) %DMA_BUF_TEST_MAPPED, _PINNED, _INVALIDATED. The latter is set
 *	only while @unmap_work is due.
 * @invalidates: (s) number of invalidate calls
 * @maps: (s) number of maps
 * @fence: of the latest mapping, or NULL if there was none with a fence
 * @fence_seqno: of @fence
 *
 * These are protected by the reservation lock and dbti_device.engine_lock: both
 * to write, one to read. They outlive the mapping, for DMA to stale addresses:
 *
 * @segs: latest mapping
 * @nr_segs: entries of @segs
 * @seg_total: bytes in all of them
 *
 * @unmap_work: the delayed unmap. Queued under the reservation lock, and takes
 *	it. Not pending if not mapped, but may be on its way to find that out.
 */
struct dbti_import {
	struct kref kref;
	struct dbti_device *dev;
	const struct file *owner;
	struct dma_buf *dmabuf;
	struct dma_buf_attachment *attach;
	u32 flags;
	bool revocable;
	unsigned long fence_delay;
	unsigned long unmap_delay;
	u64 fence_context;

	bool dying;
	struct sg_table *sgt;
	u32 state;
	u32 invalidates;
	u32 maps;
	struct dbti_fence *fence;
	u64 fence_seqno;

	struct dbti_segment *segs;
	unsigned int nr_segs;
	u64 seg_total;

	struct delayed_work unmap_work;
};

static DEFINE_IDA(dbti_indexes);

/*
 * Fence
 */

static const char *dbti_fence_driver_name(struct dma_fence *base)
{
	return DMA_BUF_TEST_DRIVER;
}

static const char *dbti_fence_timeline_name(struct dma_fence *base)
{
	return "work";
}

static struct dbti_fence *to_dbti_fence(struct dma_fence *base)
{
	return container_of(base, struct dbti_fence, base);
}

static void dbti_fence_expire(struct timer_list *timer)
{
	struct dbti_fence *fence = from_timer(fence, timer, timer);

	dma_fence_signal(&fence->base);
	dma_fence_put(&fence->base);
}

/* Stop the work: the fence signals after its delay. */
static void dbti_fence_stop(struct dbti_fence *fence)
{
	if (test_and_set_bit(0, &fence->stopping))
		return;

	dma_fence_get(&fence->base);
	mod_timer(&fence->timer, jiffies + fence->delay);
}

/* The work has ended now. */
static void dbti_fence_end(struct dbti_fence *fence)
{
	/* Signalled first: then enable_signaling() does not start the timer. */
	dma_fence_signal(&fence->base);
	if (timer_delete(&fence->timer))
		dma_fence_put(&fence->base);
}

/*
 * A wait need not follow an invalidate, and must not last until there is one:
 * that may depend on userspace.
 */
static bool dbti_fence_enable_signaling(struct dma_fence *base)
{
	dbti_fence_stop(to_dbti_fence(base));
	return true;
}

static void dbti_fence_free_rcu(struct rcu_head *rcu)
{
	struct dbti_fence *fence = container_of(rcu, struct dbti_fence, base.rcu);

	kfree(fence);
	/* Module exit waits until this function, too, has returned. */
	module_put(THIS_MODULE);
}

static void dbti_fence_release(struct dma_fence *base)
{
	call_rcu(&base->rcu, dbti_fence_free_rcu);
}

static const struct dma_fence_ops dbti_fence_ops = {
	.get_driver_name = dbti_fence_driver_name,
	.get_timeline_name = dbti_fence_timeline_name,
	.enable_signaling = dbti_fence_enable_signaling,
	.release = dbti_fence_release,
};

static struct dbti_fence *dbti_fence_create(struct dbti_import *imp)
{
	struct dbti_fence *fence;

	dma_resv_assert_held(imp->dmabuf->resv);

	fence = kzalloc(sizeof(*fence), GFP_KERNEL);
	if (!fence)
		return NULL;

	/* Others may hold the fence for longer than there are files open. */
	__module_get(THIS_MODULE);
	spin_lock_init(&fence->lock);
	timer_setup(&fence->timer, dbti_fence_expire, 0);
	fence->delay = imp->fence_delay;
	dma_fence_init(&fence->base, &dbti_fence_ops, &fence->lock,
		       imp->fence_context, ++imp->fence_seqno);
	return fence;
}

static void dbti_fence_put(struct dbti_fence *fence)
{
	if (fence)
		dma_fence_put(&fence->base);
}

/*
 * Mapping
 */

static void dbti_set_state(struct dbti_import *imp, u32 state)
{
	dma_resv_assert_held(imp->dmabuf->resv);

	/* Pairs with READ_ONCE() in dbti_ioctl_status(). */
	WRITE_ONCE(imp->state, state);
}

static void dbti_end_work(struct dbti_import *imp)
{
	dma_resv_assert_held(imp->dmabuf->resv);

	if (imp->fence)
		dbti_fence_end(imp->fence);
}

/* Unmap and unpin. Does nothing if not mapped. */
static void dbti_unmap(struct dbti_import *imp)
{
	dma_resv_assert_held(imp->dmabuf->resv);

	if (!imp->sgt)
		return;

	cancel_delayed_work(&imp->unmap_work);
	/* First: a revoke is over with the unmap, and nothing says mapped then. */
	dbti_set_state(imp, 0);
	dma_buf_unmap_attachment(imp->attach, imp->sgt, DMA_BIDIRECTIONAL);
	imp->sgt = NULL;
	if (imp->flags & DMA_BUF_TEST_PIN)
		dma_buf_unpin(imp->attach);
}

static void dbti_unmap_work(struct work_struct *work)
{
	struct dbti_import *imp = container_of(to_delayed_work(work),
					       struct dbti_import, unmap_work);

	dma_resv_lock(imp->dmabuf->resv, NULL);
	/*
	 * Userspace may have unmapped and mapped again while the lock was
	 * waited for. If that mapping is invalidated too, it goes early.
	 */
	if (imp->state & DMA_BUF_TEST_INVALIDATED) {
		if (imp->flags & DMA_BUF_TEST_WAIT_LOCKED)
			schedule_timeout_uninterruptible(imp->unmap_delay);
		dbti_unmap(imp);
	}
	dma_resv_unlock(imp->dmabuf->resv);
}

/* May be called before dma_buf_dynamic_attach() has returned. */
static void dbti_invalidate(struct dma_buf_attachment *attach)
{
	struct dbti_import *imp = attach->importer_priv;

	dma_resv_assert_held(imp->dmabuf->resv);

	WRITE_ONCE(imp->invalidates, imp->invalidates + 1);
	if (!imp->sgt || imp->state & DMA_BUF_TEST_INVALIDATED)
		return;

	if (imp->fence)
		dbti_fence_stop(imp->fence);

	if (imp->flags & DMA_BUF_TEST_WAIT_TOLD)
		schedule_timeout_uninterruptible(imp->unmap_delay);
	if (!imp->unmap_delay || imp->flags & DMA_BUF_TEST_WAIT_TOLD) {
		dbti_unmap(imp);
		return;
	}
	dbti_set_state(imp, imp->state | DMA_BUF_TEST_INVALIDATED);
	queue_delayed_work(system_unbound_wq, &imp->unmap_work,
			   imp->flags & DMA_BUF_TEST_WAIT_LOCKED ? 0 : imp->unmap_delay);
}

static const struct dma_buf_attach_ops dbti_ops = {
	.allow_peer2peer = true,
	.invalidate_mappings = dbti_invalidate,
};

static const struct dma_buf_attach_ops dbti_ops_no_p2p = {
	.invalidate_mappings = dbti_invalidate,
};

static const struct dma_buf_attach_ops dbti_ops_no_invalidate = {
	.allow_peer2peer = true,
};

static const struct dma_buf_attach_ops dbti_ops_nothing = {
};

static const struct dma_buf_attach_ops *dbti_attach_ops(u32 flags)
{
	if (flags & DMA_BUF_TEST_STATIC)
		return NULL;
	if (flags & DMA_BUF_TEST_NO_INVALIDATE)
		return flags & DMA_BUF_TEST_NO_P2P ? &dbti_ops_nothing :
						     &dbti_ops_no_invalidate;
	return flags & DMA_BUF_TEST_NO_P2P ? &dbti_ops_no_p2p : &dbti_ops;
}

static int dbti_wait_kernel_fences(struct dbti_import *imp)
{
	long ret;

	ret = dma_resv_wait_timeout(imp->dmabuf->resv, DMA_RESV_USAGE_KERNEL,
				    true, msecs_to_jiffies(DBTI_KERNEL_FENCE_MS));
	if (ret < 0)
		return ret;
	return ret ? 0 : -ETIMEDOUT;
}

/* Undone by dbti_unmap(). */
static int dbti_pin_and_map(struct dbti_import *imp)
{
	bool pin = imp->flags & DMA_BUF_TEST_PIN;
	struct sg_table *sgt;
	int ret;

	dma_resv_assert_held(imp->dmabuf->resv);

	if (pin) {
		ret = dma_buf_pin(imp->attach);
		if (ret)
			return ret;
	}

	sgt = dma_buf_map_attachment(imp->attach, DMA_BIDIRECTIONAL);
	if (IS_ERR(sgt)) {
		if (pin)
			dma_buf_unpin(imp->attach);
		return PTR_ERR(sgt);
	}

	imp->sgt = sgt;
	dbti_set_state(imp, DMA_BUF_TEST_MAPPED |
			    (pin ? DMA_BUF_TEST_PINNED : 0));
	return 0;
}

/* Remember the DMA addresses of the mapping in place of the former ones. */
static int dbti_save_segments(struct dbti_import *imp)
{
	struct dbti_segment *segs, *old;
	struct scatterlist *sg;
	u64 total = 0;
	unsigned int i;

	dma_resv_assert_held(imp->dmabuf->resv);

	segs = kvmalloc_array(imp->sgt->nents, sizeof(*segs), GFP_KERNEL);
	if (!segs)
		return -ENOMEM;

	for_each_sgtable_dma_sg(imp->sgt, sg, i) {
		segs[i].addr = sg_dma_address(sg);
		segs[i].len = sg_dma_len(sg);
		total += segs[i].len;
	}

	scoped_guard(mutex, &imp->dev->engine_lock) {
		old = imp->segs;
		imp->segs = segs;
		imp->nr_segs = imp->sgt->nents;
		imp->seg_total = total;
	}
	kvfree(old);
	return 0;
}

/* Cannot fail and must come last: a published fence cannot be taken back. */
static void dbti_publish_fence(struct dbti_import *imp,
			       struct dbti_fence *fence)
{
	dma_resv_add_fence(imp->dmabuf->resv, &fence->base,
			   DMA_RESV_USAGE_BOOKKEEP);
	dbti_fence_put(imp->fence);
	imp->fence = fence;
}

/* On failure nothing is mapped, and the former addresses may be lost. */
static int dbti_map_with_fence(struct dbti_import *imp,
			       struct dbti_fence *fence)
{
	int ret;

	ret = dbti_pin_and_map(imp);
	if (ret)
		return ret;

	ret = dbti_wait_kernel_fences(imp);
	if (ret)
		goto err_unmap;
	ret = dbti_save_segments(imp);
	if (ret)
		goto err_unmap;

	if (fence) {
		/* Not earlier: the exporter's map could use up the slot. */
		ret = dma_resv_reserve_fences(imp->dmabuf->resv, 1);
		if (ret)
			goto err_unmap;
		dbti_publish_fence(imp, fence);
	}
	WRITE_ONCE(imp->maps, imp->maps + 1);
	return 0;

err_unmap:
	dbti_unmap(imp);
	return ret;
}

static int dbti_may_map(struct dbti_import *imp)
{
	dma_resv_assert_held(imp->dmabuf->resv);

	if (imp->dying)
		return -ENOENT;
	if (imp->state & DMA_BUF_TEST_INVALIDATED)
		return -EBUSY;
	if (imp->sgt)
		return -EALREADY;
	/* Fences of one context signal in order: one at a time. */
	if (imp->fence && !dma_fence_is_signaled(&imp->fence->base))
		return -EBUSY;
	return 0;
}

static int dbti_map(struct dbti_import *imp)
{
	struct dbti_fence *fence = NULL;
	int ret;

	ret = dbti_may_map(imp);
	if (ret)
		return ret;

	if (imp->fence_delay) {
		fence = dbti_fence_create(imp);
		if (!fence)
			return -ENOMEM;
	}

	ret = dbti_map_with_fence(imp, fence);
	if (ret)
		dbti_fence_put(fence);
	return ret;
}

static void dbti_describe_mapping(struct dbti_import *imp,
				  struct dma_buf_test_map *arg)
{
	struct scatterlist *sg;
	unsigned int i;

	dma_resv_assert_held(imp->dmabuf->resv);

	arg->flags = 0;
	for_each_sgtable_dma_sg(imp->sgt, sg, i)
		if (sg_dma_is_bus_address(sg))
			arg->flags |= DMA_BUF_TEST_MAP_BUS_ADDRESS;
	arg->nents = imp->nr_segs;
	arg->length = imp->seg_total;
	arg->dma_addr = imp->nr_segs ? imp->segs[0].addr : 0;
}

/*
 * DMA
 */

/* Run the engine once, between the device's buffer and memory. */
static int dbti_engine_run(struct dbti_device *dev, u64 src, u64 dst,
			   unsigned int len, u64 direction)
{
	u64 cmd;
	int ret;

	lockdep_assert_held(&dev->engine_lock);

	writeq(src, dev->regs + EDU_REG_DMA_SRC);
	writeq(dst, dev->regs + EDU_REG_DMA_DST);
	writeq(len, dev->regs + EDU_REG_DMA_COUNT);
	writeq(direction | EDU_DMA_START, dev->regs + EDU_REG_DMA_CMD);

	ret = read_poll_timeout(readq, cmd, !(cmd & EDU_DMA_START), EDU_POLL_US,
				EDU_TIMEOUT_US, false,
				dev->regs + EDU_REG_DMA_CMD);
	if (ret) {
		/* The caller unlocks memory that the engine may still use. */
		pci_clear_master(dev->pdev);
		dev->broken = true;
		pci_err(dev->pdev, "DMA engine hangs, turned off\n");
	}
	return ret;
}

static int dbti_from_memory(struct dbti_device *dev, dma_addr_t addr,
			    unsigned int len)
{
	return dbti_engine_run(dev, addr, EDU_BUFFER, len, 0);
}

static int dbti_to_memory(struct dbti_device *dev, dma_addr_t addr,
			  unsigned int len)
{
	return dbti_engine_run(dev, EDU_BUFFER, addr, len, EDU_DMA_TO_MEMORY);
}

static int dbti_write_chunk(struct dbti_device *dev, dma_addr_t addr,
			    const void *data, unsigned int len)
{
	int ret;

	memcpy(dev->bounce, data, len);
	ret = dbti_from_memory(dev, dev->bounce_dma, len);
	if (ret)
		return ret;
	return dbti_to_memory(dev, addr, len);
}

static int dbti_read_chunk(struct dbti_device *dev, dma_addr_t addr,
			   void *data, unsigned int len)
{
	int ret;

	/* A blocked read must not return what the device still remembers. */
	memset(dev->bounce, DMA_BUF_TEST_POISON, len);
	ret = dbti_from_memory(dev, dev->bounce_dma, len);
	if (ret)
		return ret;
	ret = dbti_from_memory(dev, addr, len);
	if (ret)
		return ret;
	ret = dbti_to_memory(dev, dev->bounce_dma, len);
	if (ret)
		return ret;
	memcpy(data, dev->bounce, len);
	return 0;
}

/* Find @offset, and how many bytes follow it without a gap. */
static unsigned int dbti_find_address(struct dbti_import *imp, u64 offset,
				      dma_addr_t *addr)
{
	unsigned int i;

	lockdep_assert_held(&imp->dev->engine_lock);

	for (i = 0; i < imp->nr_segs; i++) {
		if (offset < imp->segs[i].len) {
			*addr = imp->segs[i].addr + offset;
			return imp->segs[i].len - offset;
		}
		offset -= imp->segs[i].len;
	}
	return 0;
}

/* edu drops address bits that it does not have, and uses the rest. */
static bool dbti_reachable(struct dbti_device *dev, dma_addr_t addr,
			   unsigned int len)
{
	u64 last;

	return !check_add_overflow((u64)addr, (u64)len - 1, &last) &&
	       last <= dma_get_mask(&dev->pdev->dev);
}

static int dbti_dma_chunks(struct dbti_import *imp,
			   const struct dma_buf_test_dma *arg, u8 *data)
{
	struct dbti_device *dev = imp->dev;
	unsigned int done, len;
	dma_addr_t addr;
	int ret;

	for (done = 0; done < arg->length; done += len) {
		len = dbti_find_address(imp, arg->offset + done, &addr);
		len = min3(len, arg->length - done, EDU_CHUNK);
		if (!len)
			return -EINVAL;
		if (!dbti_reachable(dev, addr, len))
			return -ERANGE;

		if (arg->flags & DMA_BUF_TEST_DMA_WRITE)
			ret = dbti_write_chunk(dev, addr, data + done, len);
		else
			ret = dbti_read_chunk(dev, addr, data + done, len);
		if (ret)
			return ret;
	}
	return 0;
}

/* DMA to the addresses of the latest mapping, mapped or not. */
static int dbti_dma_latest(struct dbti_import *imp,
			   const struct dma_buf_test_dma *arg, u8 *data)
{
	u64 end;

	guard(mutex)(&imp->dev->engine_lock);

	if (imp->dev->broken)
		return -EIO;
	if (!imp->segs)
		return -ENODEV;
	if (check_add_overflow(arg->offset, (u64)arg->length, &end) ||
	    end > imp->seg_total)
		return -EINVAL;
	return dbti_dma_chunks(imp, arg, data);
}

/* DMA to the mapping, which stays while the reservation lock is held. */
static int dbti_dma_mapped(struct dbti_import *imp,
			   const struct dma_buf_test_dma *arg, u8 *data)
{
	struct dma_resv *resv = imp->dmabuf->resv;
	int ret;

	ret = dma_resv_lock_interruptible(resv, NULL);
	if (ret)
		return ret;

	if (imp->sgt && !(imp->state & DMA_BUF_TEST_INVALIDATED))
		ret = dbti_dma_latest(imp, arg, data);
	else
		ret = -ENODEV;
	dma_resv_unlock(resv);
	return ret;
}

/*
 * Imports
 */

static void dbti_import_free(struct kref *kref)
{
	struct dbti_import *imp = container_of(kref, struct dbti_import, kref);

	dbti_fence_put(imp->fence);
	kvfree(imp->segs);
	dma_buf_put(imp->dmabuf);
	kfree(imp);
}

/*
 * Take the fence, which has signalled, out of the reservation object: the
 * buffer may live long, and the fence keeps the module from being unloaded.
 */
static void dbti_withdraw_fence(struct dbti_import *imp)
{
	struct dma_fence *stub = dma_fence_get_stub();

	dma_resv_replace_fences(imp->dmabuf->resv, imp->fence_context, stub,
				DMA_RESV_USAGE_BOOKKEEP);
	dma_fence_put(stub);
}

/*
 * Detach and drop a reference. Only for whoever took the import out of
 * dbti_device.imports, or did not put it there.
 */
static void dbti_import_detach(struct dbti_import *imp)
{
	struct dma_resv *resv = imp->dmabuf->resv;

	dma_resv_lock(resv, NULL);
	imp->dying = true;
	dbti_end_work(imp);
	dbti_unmap(imp);
	if (imp->fence)
		dbti_withdraw_fence(imp);
	dma_resv_unlock(resv);

	/* It takes the lock. Nothing queues it again: there is no mapping. */
	cancel_delayed_work_sync(&imp->unmap_work);
	dma_buf_detach(imp->dmabuf, imp->attach);
	kref_put(&imp->kref, dbti_import_free);
}

static struct dbti_import *
dbti_import_create(struct dbti_device *dev, const struct file *owner,
		   const struct dma_buf_test_import *arg)
{
	struct dma_buf_attachment *attach;
	struct dbti_import *imp;
	int ret;

	imp = kzalloc(sizeof(*imp), GFP_KERNEL);
	if (!imp)
		return ERR_PTR(-ENOMEM);

	imp->dmabuf = dma_buf_get(arg->fd);
	if (IS_ERR(imp->dmabuf)) {
		ret = PTR_ERR(imp->dmabuf);
		goto err_free;
	}

	kref_init(&imp->kref);
	imp->dev = dev;
	imp->owner = owner;
	imp->flags = arg->flags;
	imp->fence_delay = msecs_to_jiffies(arg->fence_delay_ms);
	imp->unmap_delay = msecs_to_jiffies(arg->unmap_delay_ms);
	imp->fence_context = dma_fence_context_alloc(1);
	INIT_DELAYED_WORK(&imp->unmap_work, dbti_unmap_work);

	attach = dma_buf_dynamic_attach(imp->dmabuf, &dev->pdev->dev,
					dbti_attach_ops(arg->flags), imp);
	if (IS_ERR(attach)) {
		ret = PTR_ERR(attach);
		goto err_put;
	}
	imp->attach = attach;
	imp->revocable = dma_buf_attach_revocable(attach);
	return imp;

err_put:
	dma_buf_put(imp->dmabuf);
err_free:
	kfree(imp);
	return ERR_PTR(ret);
}

/* Take an import of @file out, so that the caller may detach it. */
static struct dbti_import *dbti_import_take(struct dbti_device *dev,
					    const struct file *file,
					    unsigned long handle)
{
	struct dbti_import *imp;

	lockdep_assert_held(&dev->alive);

	xa_lock(&dev->imports);
	imp = xa_load(&dev->imports, handle);
	if (imp && imp->owner == file)
		__xa_erase(&dev->imports, handle);
	else
		imp = NULL;
	xa_unlock(&dev->imports);
	return imp;
}

/*
 * Begin to use an import, for an ioctl: the device stays, the import stays
 * allocated. It may be detached meanwhile, see dbti_import.dying.
 */
static struct dbti_import *dbti_enter(const struct file *file, u32 handle)
{
	struct dbti_device *dev = file->private_data;
	struct dbti_import *imp;

	if (down_read_interruptible(&dev->alive))
		return ERR_PTR(-EINTR);
	if (dev->gone) {
		up_read(&dev->alive);
		return ERR_PTR(-ENXIO);
	}

	xa_lock(&dev->imports);
	imp = xa_load(&dev->imports, handle);
	if (imp && imp->owner == file)
		kref_get(&imp->kref);
	else
		imp = NULL;
	xa_unlock(&dev->imports);

	if (!imp) {
		up_read(&dev->alive);
		return ERR_PTR(-ENOENT);
	}
	return imp;
}

static void dbti_leave(struct dbti_import *imp)
{
	struct dbti_device *dev = imp->dev;

	kref_put(&imp->kref, dbti_import_free);
	up_read(&dev->alive);
}

/*
 * Device node
 */

union dbti_arg {
	struct dma_buf_test_import import;
	struct dma_buf_test_handle handle;
	struct dma_buf_test_map map;
	struct dma_buf_test_dma dma;
	struct dma_buf_test_status status;
};

static bool dbti_import_valid(const struct dma_buf_test_import *arg)
{
	const u32 known = DMA_BUF_TEST_STATIC | DMA_BUF_TEST_NO_P2P |
			  DMA_BUF_TEST_NO_INVALIDATE | DMA_BUF_TEST_PIN |
			  DMA_BUF_TEST_WAIT_TOLD | DMA_BUF_TEST_WAIT_LOCKED;

	if (arg->flags & ~known || arg->reserved)
		return false;
	if (arg->flags & DMA_BUF_TEST_STATIC &&
	    arg->flags != DMA_BUF_TEST_STATIC)
		return false;
	if (arg->flags & (DMA_BUF_TEST_STATIC | DMA_BUF_TEST_NO_INVALIDATE))
		return !arg->fence_delay_ms && !arg->unmap_delay_ms;
	return arg->fence_delay_ms <= DMA_BUF_TEST_MAX_DELAY_MS &&
	       arg->unmap_delay_ms <= DMA_BUF_TEST_MAX_DELAY_MS;
}

static int dbti_import_publish(struct dbti_device *dev,
			       struct dbti_import *imp, u32 *handle)
{
	int ret;

	ret = xa_alloc(&dev->imports, handle, imp,
		       XA_LIMIT(1, DMA_BUF_TEST_MAX_IMPORTS), GFP_KERNEL);
	return ret == -EBUSY ? -ENOSPC : ret;
}

static int dbti_ioctl_import(struct file *file, union dbti_arg *arg)
{
	struct dbti_device *dev = file->private_data;
	struct dbti_import *imp;
	u64 size;
	int ret;

	if (!dbti_import_valid(&arg->import))
		return -EINVAL;

	if (down_read_interruptible(&dev->alive))
		return -EINTR;
	if (dev->gone) {
		ret = -ENXIO;
		goto out;
	}

	imp = dbti_import_create(dev, file, &arg->import);
	if (IS_ERR(imp)) {
		ret = PTR_ERR(imp);
		goto out;
	}
	/* Once published, another thread may detach it. */
	size = imp->dmabuf->size;
	ret = dbti_import_publish(dev, imp, &arg->import.handle);
	if (ret)
		dbti_import_detach(imp);
	else
		arg->import.size = size;
out:
	up_read(&dev->alive);
	return ret;
}

static int dbti_ioctl_detach(struct file *file, union dbti_arg *arg)
{
	struct dbti_device *dev = file->private_data;
	struct dbti_import *imp;
	int ret = 0;

	if (arg->handle.reserved)
		return -EINVAL;
	if (down_read_interruptible(&dev->alive))
		return -EINTR;

	imp = dbti_import_take(dev, file, arg->handle.handle);
	if (imp)
		dbti_import_detach(imp);
	else
		ret = dev->gone ? -ENXIO : -ENOENT;
	up_read(&dev->alive);
	return ret;
}

static int dbti_ioctl_map(struct file *file, union dbti_arg *arg)
{
	struct dbti_import *imp;
	int ret;

	if (arg->map.reserved)
		return -EINVAL;
	imp = dbti_enter(file, arg->map.handle);
	if (IS_ERR(imp))
		return PTR_ERR(imp);

	ret = dma_resv_lock_interruptible(imp->dmabuf->resv, NULL);
	if (ret)
		goto out;
	ret = dbti_map(imp);
	if (!ret)
		dbti_describe_mapping(imp, &arg->map);
	dma_resv_unlock(imp->dmabuf->resv);
out:
	dbti_leave(imp);
	return ret;
}

static int dbti_ioctl_unmap(struct file *file, union dbti_arg *arg)
{
	struct dbti_import *imp;
	int ret;

	if (arg->handle.reserved)
		return -EINVAL;
	imp = dbti_enter(file, arg->handle.handle);
	if (IS_ERR(imp))
		return PTR_ERR(imp);

	ret = dma_resv_lock_interruptible(imp->dmabuf->resv, NULL);
	if (ret)
		goto out;
	if (imp->sgt) {
		dbti_end_work(imp);
		dbti_unmap(imp);
	} else {
		ret = -ENODEV;
	}
	dma_resv_unlock(imp->dmabuf->resv);
out:
	dbti_leave(imp);
	return ret;
}

static bool dbti_dma_valid(const struct dma_buf_test_dma *arg)
{
	const u32 known = DMA_BUF_TEST_DMA_WRITE | DMA_BUF_TEST_DMA_STALE;

	return !(arg->flags & ~known) && !arg->reserved && arg->length &&
	       arg->length <= DMA_BUF_TEST_MAX_DMA;
}

static int dbti_dma(struct file *file, const struct dma_buf_test_dma *arg,
		    u8 *data)
{
	struct dbti_import *imp;
	int ret;

	imp = dbti_enter(file, arg->handle);
	if (IS_ERR(imp))
		return PTR_ERR(imp);

	if (arg->flags & DMA_BUF_TEST_DMA_STALE)
		ret = dbti_dma_latest(imp, arg, data);
	else
		ret = dbti_dma_mapped(imp, arg, data);
	dbti_leave(imp);
	return ret;
}

static int dbti_ioctl_dma(struct file *file, union dbti_arg *arg)
{
	void __user *user = u64_to_user_ptr(arg->dma.data);
	bool write = arg->dma.flags & DMA_BUF_TEST_DMA_WRITE;
	u8 *data;
	int ret;

	if (!dbti_dma_valid(&arg->dma))
		return -EINVAL;

	data = kzalloc(arg->dma.length, GFP_KERNEL);
	if (!data)
		return -ENOMEM;

	if (write && copy_from_user(data, user, arg->dma.length)) {
		ret = -EFAULT;
		goto out;
	}
	ret = dbti_dma(file, &arg->dma, data);
	if (!ret && !write && copy_to_user(user, data, arg->dma.length))
		ret = -EFAULT;
out:
	kfree(data);
	return ret;
}

static int dbti_ioctl_status(struct file *file, union dbti_arg *arg)
{
	struct dma_buf_test_status *status = &arg->status;
	struct dbti_import *imp;

	imp = dbti_enter(file, status->handle);
	if (IS_ERR(imp))
		return PTR_ERR(imp);

	/* Not locked: the exporter may hold the lock while it waits for us. */
	status->flags = READ_ONCE(imp->state);
	if (imp->revocable)
		status->flags |= DMA_BUF_TEST_REVOCABLE;
	status->invalidates = READ_ONCE(imp->invalidates);
	status->maps = READ_ONCE(imp->maps);
	dbti_leave(imp);
	return 0;
}

static int dbti_dispatch(struct file *file, unsigned int cmd,
			 union dbti_arg *arg)
{
	switch (cmd) {
	case DMA_BUF_TEST_IOC_IMPORT:
		return dbti_ioctl_import(file, arg);
	case DMA_BUF_TEST_IOC_DETACH:
		return dbti_ioctl_detach(file, arg);
	case DMA_BUF_TEST_IOC_MAP:
		return dbti_ioctl_map(file, arg);
	case DMA_BUF_TEST_IOC_UNMAP:
		return dbti_ioctl_unmap(file, arg);
	case DMA_BUF_TEST_IOC_DMA:
		return dbti_ioctl_dma(file, arg);
	case DMA_BUF_TEST_IOC_STATUS:
		return dbti_ioctl_status(file, arg);
	default:
		return -ENOTTY;
	}
}

static long dbti_ioctl(struct file *file, unsigned int cmd, unsigned long p)
{
	void __user *user = (void __user *)p;
	size_t size = _IOC_SIZE(cmd);
	union dbti_arg arg = {};
	int ret;

	if (_IOC_TYPE(cmd) != DMA_BUF_TEST_MAGIC || size > sizeof(arg))
		return -ENOTTY;
	if (copy_from_user(&arg, user, size))
		return -EFAULT;

	ret = dbti_dispatch(file, cmd, &arg);
	if (ret)
		return ret;

	/* If this fails an import stays, nameless, until the file is closed. */
	if (_IOC_DIR(cmd) & _IOC_READ && copy_to_user(user, &arg, size))
		return -EFAULT;
	return 0;
}

static void dbti_device_free(struct kref *kref)
{
	struct dbti_device *dev = container_of(kref, struct dbti_device, kref);

	ida_free(&dbti_indexes, dev->index);
	xa_destroy(&dev->imports);
	mutex_destroy(&dev->engine_lock);
	kfree(dev);
}

/* The misc core holds a lock that keeps misc_deregister() waiting. */
static int dbti_open(struct inode *inode, struct file *file)
{
	struct dbti_device *dev = container_of(file->private_data,
					       struct dbti_device, misc);

	kref_get(&dev->kref);
	file->private_data = dev;
	return 0;
}

static int dbti_release(struct inode *inode, struct file *file)
{
	struct dbti_device *dev = file->private_data;
	struct dbti_import *imp;
	unsigned long handle;

	down_read(&dev->alive);
	xa_for_each(&dev->imports, handle, imp) {
		imp = dbti_import_take(dev, file, handle);
		if (imp)
			dbti_import_detach(imp);
	}
	up_read(&dev->alive);
	kref_put(&dev->kref, dbti_device_free);
	return 0;
}

static const struct file_operations dbti_fops = {
	.owner = THIS_MODULE,
	.open = dbti_open,
	.release = dbti_release,
	.unlocked_ioctl = dbti_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

/*
 * PCI driver
 */

/* Devices and their addresses, all released by the driver core. */
static int dbti_setup_hardware(struct dbti_device *dev)
{
	struct pci_dev *pdev = dev->pdev;
	int ret;

	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	dev->regs = pcim_iomap_region(pdev, 0, DMA_BUF_TEST_DRIVER);
	if (IS_ERR(dev->regs))
		return PTR_ERR(dev->regs);
	if ((readl(dev->regs + EDU_REG_ID) & EDU_ID_MASK) != EDU_ID)
		return -ENODEV;

	ret = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(dma_bits));
	if (ret)
		return ret;
	dma_set_max_seg_size(&pdev->dev, UINT_MAX);
	dev->bounce = dmam_alloc_coherent(&pdev->dev, EDU_CHUNK,
					  &dev->bounce_dma, GFP_KERNEL);
	return dev->bounce ? 0 : -ENOMEM;
}

static struct dbti_device *dbti_device_create(struct pci_dev *pdev)
{
	struct dbti_device *dev;

	dev = kzalloc(sizeof(*dev), GFP_KERNEL);
	if (!dev)
		return ERR_PTR(-ENOMEM);

	dev->index = ida_alloc(&dbti_indexes, GFP_KERNEL);
	if (dev->index < 0) {
		int ret = dev->index;

		kfree(dev);
		return ERR_PTR(ret);
	}

	kref_init(&dev->kref);
	init_rwsem(&dev->alive);
	mutex_init(&dev->engine_lock);
	xa_init_flags(&dev->imports, XA_FLAGS_ALLOC1);
	dev->pdev = pdev;
	snprintf(dev->name, sizeof(dev->name), DMA_BUF_TEST_NODE "%d",
		 dev->index);
	dev->misc.minor = MISC_DYNAMIC_MINOR;
	dev->misc.name = dev->name;
	dev->misc.fops = &dbti_fops;
	dev->misc.parent = &pdev->dev;
	return dev;
}

static int dbti_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct dbti_device *dev;
	int ret;

	/* driver_override matches anything. */
	if (pdev->vendor != EDU_VENDOR_ID || pdev->device != EDU_DEVICE_ID)
		return -ENODEV;

	dev = dbti_device_create(pdev);
	if (IS_ERR(dev))
		return PTR_ERR(dev);

	ret = dbti_setup_hardware(dev);
	if (ret)
		goto err_put;

	pci_set_drvdata(pdev, dev);
	pci_set_master(pdev);
	ret = misc_register(&dev->misc);
	if (ret)
		goto err_clear_master;

	/* Root can let the device write where it must not. */
	add_taint(TAINT_TEST, LOCKDEP_STILL_OK);
	return 0;

err_clear_master:
	pci_clear_master(pdev);
err_put:
	kref_put(&dev->kref, dbti_device_free);
	return ret;
}

static void dbti_remove(struct pci_dev *pdev)
{
	struct dbti_device *dev = pci_get_drvdata(pdev);
	struct dbti_import *imp;
	unsigned long handle;

	misc_deregister(&dev->misc);

	/* Waits for what is under way, and turns away what comes later. */
	down_write(&dev->alive);
	dev->gone = true;
	pci_clear_master(pdev);
	xa_for_each(&dev->imports, handle, imp) {
		xa_erase(&dev->imports, handle);
		dbti_import_detach(imp);
	}
	up_write(&dev->alive);

	kref_put(&dev->kref, dbti_device_free);
}

static struct pci_driver dbti_driver = {
	.name = DMA_BUF_TEST_DRIVER,
	.probe = dbti_probe,
	.remove = dbti_remove,
};

static int __init dbti_init(void)
{
	if (dma_bits < 28 || dma_bits > 64) {
		pr_err("dma_bits=%u: not from 28 to 64\n", dma_bits);
		return -EINVAL;
	}
	return pci_register_driver(&dbti_driver);
}
module_init(dbti_init);

static void __exit dbti_exit(void)
{
	pci_unregister_driver(&dbti_driver);
	ida_destroy(&dbti_indexes);
	/* No fence is left, but its RCU callback may still be returning. */
	rcu_barrier();
}
module_exit(dbti_exit);

MODULE_DESCRIPTION("dma-buf test importer, for QEMU's edu device");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS(DMA_BUF);
