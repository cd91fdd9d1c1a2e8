// SPDX-License-Identifier: GPL-2.0-only
/*
 * Export of PCI BARs as dma-bufs
 *
 * A VFIO user may have its BARs reset, powered down or closed at any moment, and
 * no other device may be in the middle of an access then. So whatever importers
 * have mapped is taken back first:
 *
 *	no new mappings -> invalidate -> fences -> unmaps -> hardware operation
 *
 * and given back when the BARs answer again. "Taking mappings back" in
 * Documentation/driver-api/dma-buf.rst is the contract with the importers.
 *
 * A buffer is in one of three states:
 *
 *	LIVE	 the BAR answers; importers may attach and map
 *	REVOKED	 the BAR does not answer at present; attach, pin and map fail
 *	DEAD	 as REVOKED, for good: the device was closed or is gone
 *
 * LIVE and REVOKED alternate while the device is open. Both turn into DEAD, and
 * nothing leaves that. Except in between the first and the last step of a revoke,
 * a buffer that is not LIVE is drained: nothing is mapped, and no fence is pending
 * that guards an access.
 *
 * The dma-buf fd is in the hands of userspace and can outlive the device, so a
 * buffer has no pointer to the vfio_pci_core_device, and none is needed: the
 * device reaches its buffers by vfio_pci_core_device.dma_bufs, and makes them
 * DEAD and empties that list before it goes away. A buffer is refcounted apart
 * from its dma_buf for the other direction: a revoke that has found it on the
 * list can wait for it with no lock held, while the last fd is closed.
 *
 * Lock order:
 *
 *	mmap_lock, in the fault handler of a BAR
 *	  vfio_pci_core_device.memory_lock
 *	    vfio_pci_dma_buf.resv (the reservation lock of the dma-buf)
 *	      locks of importers, in their invalidate_mappings
 *	    vfio_pci_dma_bufs_lock
 *
 * All changes between LIVE and REVOKED are made with memory_lock held for write,
 * the lock under which the BARs are switched off and on; for a new buffer that
 * nobody else knows of yet, holding it for read will do. Importers have no way to
 * that lock, so it is held while they are waited for. The reservation lock is not:
 * they unmap under it, and bufinfo needs it to show whom a revoke is waiting for.
 * Only if there is no memory to remember fences are these waited for with it held.
 *
 * A change to DEAD needs the reservation lock only, and can run in parallel to
 * the others. It is made when a driver is unbound too, with locks of PCI hotplug
 * held that a reset takes inside of memory_lock. Importers that map again do so
 * with the reservation lock held, and userspace has a say in how long: the memory
 * is charged to its cgroup. vfio_pci_dma_buf_is_live() tells them to stop before the
 * lock is waited for.
 */
#include <linux/dma-buf.h>
#include <linux/dma-resv.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/iommufd.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/overflow.h>
#include <linux/pci-p2pdma.h>
#include <linux/range.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#include "vfio_pci_priv.h"

#define CREATE_TRACE_POINTS
#include "vfio_pci_trace.h"

MODULE_IMPORT_NS(DMA_BUF);
MODULE_IMPORT_NS(IOMMUFD_DMA_BUF);

/* A BAR has few holes. This keeps the array of ranges within a page of 4 KiB. */
#define VFIO_PCI_DMA_BUF_MAX_RANGES	256

/*
 * How long a revoke waits before it says for whom, and the longest time between two
 * messages, in jiffies.
 */
#define DMA_BUF_SILENCE_MIN	(1UL * HZ)
#define DMA_BUF_SILENCE_MAX	(3600UL * HZ)

/*
 * Protects vfio_pci_core_device.dma_bufs and dma_bufs_stopped of all devices, and
 * the lists that they are the heads of.
 */
static DEFINE_SPINLOCK(vfio_pci_dma_bufs_lock);

enum vfio_pci_dma_buf_state {
	VFIO_PCI_DMA_BUF_LIVE,
	VFIO_PCI_DMA_BUF_REVOKED,
	VFIO_PCI_DMA_BUF_DEAD,
};

static const char *const dma_buf_state_names[] = {
	[VFIO_PCI_DMA_BUF_LIVE] = "live",
	[VFIO_PCI_DMA_BUF_REVOKED] = "revoked",
	[VFIO_PCI_DMA_BUF_DEAD] = "dead",
};

/**
 * struct vfio_pci_dma_buf - ranges of a BAR that are exported as one dma-buf
 * @kref: held by @dmabuf until it is released, and by who works on a buffer that
 *	it has found on the list; drops to zero under vfio_pci_dma_bufs_lock
 * @node: on vfio_pci_core_device.dma_bufs until the device is closed, empty
 *	afterwards; protected by vfio_pci_dma_bufs_lock
 * @resv: reservation object of @dmabuf; here so that it lives as long as @kref
 * @dmabuf: the dma-buf, NULL after its release; protected by @resv
 * @state: what importers may do; written under @resv
 * @dying: about to become DEAD; written before @resv is waited for
 * @revoke_start: when importers had been told at the latest revoke, in jiffies;
 *	written under @resv
 * @fences: those that there were at the latest revoke, which guard all accesses
 *	there can be; written under @resv, and not while anybody waits for them
 * @nr_fences: number of @fences
 * @nr_mapped: mappings that importers have; written under @resv
 * @unmapped: woken when @nr_mapped drops to zero
 * @ino: inode number of @dmabuf, its name in debugfs, traces and messages
 * @pdev: the device that has the BAR
 * @size: total length of @ranges, in bytes
 * @bar: index of the BAR
 * @nr_ranges: number of @ranges
 * @ranges: physical addresses, page aligned, inside of the BAR
 */
struct vfio_pci_dma_buf {
	struct kref kref;
	struct list_head node;
	struct dma_resv resv;
	struct dma_buf *dmabuf;
	enum vfio_pci_dma_buf_state state;
	bool dying;
	unsigned long revoke_start;
	struct dma_fence **fences;
	unsigned int nr_fences;
	unsigned int nr_mapped;
	wait_queue_head_t unmapped;
	unsigned long ino;
	struct pci_dev *pdev;
	size_t size;
	unsigned int bar;
	unsigned int nr_ranges;
	struct range ranges[] __counted_by(nr_ranges);
};

static void dma_buf_put_fences(struct vfio_pci_dma_buf *buf)
{
	while (buf->nr_fences)
		dma_fence_put(buf->fences[--buf->nr_fences]);
	kfree(buf->fences);
	buf->fences = NULL;
}

static void dma_buf_free(struct vfio_pci_dma_buf *buf)
{
	dma_buf_put_fences(buf);
	dma_resv_fini(&buf->resv);
	pci_dev_put(buf->pdev);
	kfree(buf);
}

static void dma_buf_kref_release(struct kref *kref)
	__releases(&vfio_pci_dma_bufs_lock)
{
	struct vfio_pci_dma_buf *buf =
		container_of(kref, struct vfio_pci_dma_buf, kref);

	list_del(&buf->node);
	spin_unlock(&vfio_pci_dma_bufs_lock);
	dma_buf_free(buf);
}

static void dma_buf_put_ref(struct vfio_pci_dma_buf *buf)
{
	kref_put_lock(&buf->kref, dma_buf_kref_release,
		      &vfio_pci_dma_bufs_lock);
}

/*
 * Step through the buffers of a device, with a reference on the present one and
 * no lock held in between. A buffer stays on the list for as long as somebody has
 * a reference, so there is a next one to go to, unless vfio_pci_dma_buf_close()
 * has emptied the list in the meantime, when there is nothing left to do. NULL is
 * before the first and after the last.
 */
static struct vfio_pci_dma_buf *
dma_buf_next(struct vfio_pci_core_device *vdev, struct vfio_pci_dma_buf *prev)
{
	struct list_head *pos = prev ? &prev->node : &vdev->dma_bufs;
	struct vfio_pci_dma_buf *next = NULL;

	spin_lock(&vfio_pci_dma_bufs_lock);
	if (!list_empty(pos) && !list_is_last(pos, &vdev->dma_bufs)) {
		next = list_entry(pos->next, struct vfio_pci_dma_buf, node);
		kref_get(&next->kref);
	}
	spin_unlock(&vfio_pci_dma_bufs_lock);

	if (prev)
		dma_buf_put_ref(prev);
	return next;
}

#define for_each_dma_buf(vdev, buf)				\
	for (buf = dma_buf_next(vdev, NULL); buf; buf = dma_buf_next(vdev, buf))

/*
 * Can be asked with and without the reservation lock. Once it is false importers are
 * told, or have been.
 */
static bool vfio_pci_dma_buf_is_live(struct dma_buf *dmabuf)
{
	struct vfio_pci_dma_buf *buf = dmabuf->priv;

	return READ_ONCE(buf->state) == VFIO_PCI_DMA_BUF_LIVE &&
	       !READ_ONCE(buf->dying);
}

static int dma_buf_usable(struct vfio_pci_dma_buf *buf)
{
	dma_resv_assert_held(&buf->resv);

	return buf->state == VFIO_PCI_DMA_BUF_LIVE ? 0 : -ENODEV;
}

static int vfio_pci_dma_buf_attach(struct dma_buf *dmabuf,
				   struct dma_buf_attachment *attach)
{
	struct vfio_pci_dma_buf *buf = dmabuf->priv;
	int ret;

	if (!attach->peer2peer || !dma_buf_attach_revocable(attach))
		return -EOPNOTSUPP;

	/*
	 * The attachment gets on the list of the dma-buf after this. A revoke in
	 * between does not call the importer, which has nothing mapped yet and
	 * is refused by pin and map.
	 */
	dma_resv_lock(&buf->resv, NULL);
	ret = dma_buf_usable(buf);
	dma_resv_unlock(&buf->resv);
	return ret;
}

static int vfio_pci_dma_buf_pin(struct dma_buf_attachment *attach)
{
	return dma_buf_usable(attach->dmabuf->priv);
}

static void vfio_pci_dma_buf_unpin(struct dma_buf_attachment *attach)
{
	struct vfio_pci_dma_buf *buf = attach->dmabuf->priv;

	/* A BAR never moves. */
	dma_resv_assert_held(&buf->resv);
}

static struct sg_table *vfio_pci_dma_buf_map(struct dma_buf_attachment *attach,
					     enum dma_data_direction dir)
{
	struct vfio_pci_dma_buf *buf = attach->dmabuf->priv;
	struct sg_table *sgt;
	int ret;

	ret = dma_buf_usable(buf);
	if (ret)
		return ERR_PTR(ret);

	sgt = pci_p2pdma_map_mmio(buf->pdev, buf->bar, buf->ranges,
				  buf->nr_ranges, attach->dev, dir);
	if (!IS_ERR(sgt))
		WRITE_ONCE(buf->nr_mapped, buf->nr_mapped + 1);
	return sgt;
}

static void vfio_pci_dma_buf_unmap(struct dma_buf_attachment *attach,
				   struct sg_table *sgt,
				   enum dma_data_direction dir)
{
	struct vfio_pci_dma_buf *buf = attach->dmabuf->priv;

	dma_resv_assert_held(&buf->resv);

	pci_p2pdma_unmap_mmio(sgt, buf->ranges, buf->nr_ranges, attach->dev,
			      dir);

	/* Pairs with dma_buf_is_unmapped(): who sees zero sees the unmap as well. */
	smp_store_release(&buf->nr_mapped, buf->nr_mapped - 1);
	if (!buf->nr_mapped)
		wake_up_all(&buf->unmapped);
}

static const char *vfio_pci_dma_buf_state(struct dma_buf *dmabuf)
{
	struct vfio_pci_dma_buf *buf = dmabuf->priv;

	return dma_buf_state_names[READ_ONCE(buf->state)];
}

static void vfio_pci_dma_buf_release(struct dma_buf *dmabuf)
{
	struct vfio_pci_dma_buf *buf = dmabuf->priv;

	dma_resv_lock(&buf->resv, NULL);
	buf->dmabuf = NULL;
	dma_resv_unlock(&buf->resv);
	dma_buf_put_ref(buf);
}

static const struct dma_buf_ops vfio_pci_dma_buf_ops = {
	.attach = vfio_pci_dma_buf_attach,
	.pin = vfio_pci_dma_buf_pin,
	.unpin = vfio_pci_dma_buf_unpin,
	.map_dma_buf = vfio_pci_dma_buf_map,
	.unmap_dma_buf = vfio_pci_dma_buf_unmap,
	.state = vfio_pci_dma_buf_state,
	.release = vfio_pci_dma_buf_release,
};

/*
 * Tell iommufd where a dma-buf is in physical memory. iommufd maps only after it
 * has pinned, and has unmapped when dma_buf_invalidate_mappings() returns, so its
 * mappings are not counted in nr_mapped.
 */
static void vfio_pci_dma_buf_get_ranges(struct dma_buf *dmabuf,
					const struct range **ranges,
					unsigned int *nr_ranges)
{
	struct vfio_pci_dma_buf *buf = dmabuf->priv;

	*ranges = buf->ranges;
	*nr_ranges = buf->nr_ranges;
}

static struct iommufd_dma_buf_exporter vfio_pci_dma_buf_exporter = {
	.ops = &vfio_pci_dma_buf_ops,
	.get_ranges = vfio_pci_dma_buf_get_ranges,
	.is_live = vfio_pci_dma_buf_is_live,
};

void vfio_pci_dma_buf_init(void)
{
	iommufd_register_dma_buf_exporter(&vfio_pci_dma_buf_exporter);
}

void vfio_pci_dma_buf_exit(void)
{
	iommufd_unregister_dma_buf_exporter(&vfio_pci_dma_buf_exporter);
}

/* The time for an event that may be traced when it is over, 0 if it is not */
static u64 dma_buf_trace_clock(bool traced)
{
	return traced ? ktime_get_ns() : 0;
}

/**
 * struct dma_buf_drain - a wait for importers that reports when it gets long
 * @start: when the wait began, in jiffies
 * @report: when to say the next time whom it is waiting for, in jiffies
 * @locked: who waits holds the reservation lock
 */
struct dma_buf_drain {
	unsigned long start;
	unsigned long report;
	bool locked;
};

static struct dma_buf_drain dma_buf_drain_begin(struct vfio_pci_dma_buf *buf)
{
	return (struct dma_buf_drain) {
		.start = buf->revoke_start,
		.report = buf->revoke_start + DMA_BUF_SILENCE_MIN,
	};
}

static unsigned long dma_buf_drain_silence(struct dma_buf_drain *drain)
{
	unsigned long now = jiffies;

	return time_before(now, drain->report) ? drain->report - now : 1;
}

/* The longer it takes, the longer until the next time. */
static void dma_buf_drain_reported(struct dma_buf_drain *drain)
{
	unsigned long now = jiffies;

	drain->report = now + min(now - drain->start + DMA_BUF_SILENCE_MIN,
				  DMA_BUF_SILENCE_MAX);
}

static void dma_buf_report(struct dma_buf_drain *drain,
			   struct vfio_pci_dma_buf *buf, const char *what,
			   const char *who, const char *whose)
{
	pci_warn(buf->pdev,
		 "revoke of dma-buf %lu (BAR %u) has waited %lu s for %s of %s (%s)\n",
		 buf->ino, buf->bar,
		 (jiffies - drain->start) / HZ, what, who, whose);
}

static void dma_buf_report_fence(struct dma_buf_drain *drain,
				 struct vfio_pci_dma_buf *buf,
				 struct dma_fence *fence)
{
	char driver[32], timeline[32];

	if (dma_fence_copy_names(fence, driver, timeline, sizeof(driver)))
		dma_buf_report(drain, buf, "a fence", driver, timeline);
}

static bool dma_buf_is_unmapped(struct vfio_pci_dma_buf *buf)
{
	/* Pairs with vfio_pci_dma_buf_unmap(). */
	return !smp_load_acquire(&buf->nr_mapped);
}

static void dma_buf_report_mapped(struct dma_buf_drain *drain,
				  struct vfio_pci_dma_buf *buf)
{
	struct dma_buf_attachment *attach;

	if (dma_buf_is_unmapped(buf))
		return;

	/* An importer that hangs may do so with the lock held. */
	if (!drain->locked && !dma_resv_trylock(&buf->resv)) {
		dma_buf_report(drain, buf, "the unmap", "an importer",
			       "reservation lock is busy");
		return;
	}
	/* Without a dma-buf there is no importer, and the wait is over. */
	if (buf->dmabuf)
		list_for_each_entry(attach, &buf->dmabuf->attachments, node)
			if (attach->nr_mapped)
				dma_buf_report(drain, buf, "the unmap",
					       dev_name(attach->dev),
					       dev_driver_string(attach->dev));
	if (!drain->locked)
		dma_resv_unlock(&buf->resv);
}

static void dma_buf_wait_fence(struct dma_buf_drain *drain,
			       struct vfio_pci_dma_buf *buf,
			       struct dma_fence *fence)
{
	long left;
	u64 start;

	/* Of one that has signalled long ago the driver may be gone. */
	if (dma_fence_is_signaled(fence))
		return;

	start = dma_buf_trace_clock(trace_vfio_pci_dma_buf_fence_wait_enabled());
	for (;;) {
		left = dma_fence_wait_timeout(fence, false,
					      dma_buf_drain_silence(drain));
		/* A driver's own wait can fail. The fence will signal for all that. */
		if (left < 0)
			left = dma_fence_default_wait(fence, false,
						      dma_buf_drain_silence(drain));
		if (left)
			break;
		dma_buf_report_fence(drain, buf, fence);
		/* Whoever has the device that the fence is for is nearly always mapped. */
		dma_buf_report_mapped(drain, buf);
		dma_buf_drain_reported(drain);
	}
	if (start)
		trace_vfio_pci_dma_buf_fence_wait(buf->pdev, buf->ino, fence,
						  ktime_get_ns() - start);
}

/* For want of memory: nobody can add fences before the lock is released. */
static void dma_buf_wait_fences_locked(struct vfio_pci_dma_buf *buf)
{
	struct dma_buf_drain drain = dma_buf_drain_begin(buf);
	struct dma_resv_iter cursor;
	struct dma_fence *fence;

	drain.locked = true;
	dma_resv_for_each_fence(&cursor, &buf->resv, DMA_RESV_USAGE_BOOKKEEP,
				fence)
		dma_buf_wait_fence(&drain, buf, fence);
}

/*
 * Remember what has to be waited for. Fences that DMA_BUF_IOCTL_IMPORT_SYNC_FILE adds
 * later have nothing to guard, and must not make a revoke last for as long as
 * userspace likes. All fences are sent on their way, and not each once it is waited
 * for.
 */
static void dma_buf_get_fences(struct vfio_pci_dma_buf *buf)
{
	unsigned int i;

	dma_resv_assert_held(&buf->resv);

	if (dma_resv_get_fences(&buf->resv, DMA_RESV_USAGE_BOOKKEEP,
				&buf->nr_fences, &buf->fences)) {
		dma_buf_wait_fences_locked(buf);
		return;
	}
	for (i = 0; i < buf->nr_fences; i++)
		dma_fence_enable_sw_signaling(buf->fences[i]);
}

/* A wait for the reservation lock, of a buffer that is to get into @state */
struct dma_buf_lock_wait {
	struct timer_list timer;
	struct dma_buf_drain drain;
	struct vfio_pci_dma_buf *buf;
	enum vfio_pci_dma_buf_state state;
};

static void dma_buf_report_lock(struct timer_list *timer)
{
	struct dma_buf_lock_wait *wait = from_timer(wait, timer, timer);

	pci_warn(wait->buf->pdev,
		 "%s of dma-buf %lu (BAR %u) has waited %lu s for its reservation lock\n",
		 wait->state == VFIO_PCI_DMA_BUF_LIVE ? "restore" : "revoke",
		 wait->buf->ino, wait->buf->bar,
		 (jiffies - wait->drain.start) / HZ);
	dma_buf_drain_reported(&wait->drain);
	mod_timer(timer, wait->drain.report);
}

/* Some importers wait for their hardware with the lock held, and cannot be named then. */
static void dma_buf_lock(struct vfio_pci_dma_buf *buf,
			 enum vfio_pci_dma_buf_state state)
{
	struct dma_buf_lock_wait wait;

	might_lock(&buf->resv.lock.base);

	if (dma_resv_trylock(&buf->resv))
		return;

	wait.buf = buf;
	wait.state = state;
	wait.drain.start = jiffies;
	wait.drain.report = wait.drain.start + DMA_BUF_SILENCE_MIN;
	timer_setup_on_stack(&wait.timer, dma_buf_report_lock, 0);
	mod_timer(&wait.timer, wait.drain.report);
	dma_resv_lock(&buf->resv, NULL);
	del_timer_sync(&wait.timer);
	destroy_timer_on_stack(&wait.timer);
}

/*
 * The fences change only on the way from and to LIVE, when nobody waits for them: who
 * has made a buffer REVOKED waits with memory_lock held, and who has made it DEAD has
 * made LIVE impossible.
 */
static void dma_buf_set_state(struct vfio_pci_dma_buf *buf,
			      enum vfio_pci_dma_buf_state state)
{
	enum vfio_pci_dma_buf_state old;

	/* Most writes to the command register. To be DEAD others can be on the way. */
	if (state != VFIO_PCI_DMA_BUF_DEAD && READ_ONCE(buf->state) == state)
		return;

	/* An importer that is mapping with the lock held stops at this. */
	if (state == VFIO_PCI_DMA_BUF_DEAD)
		WRITE_ONCE(buf->dying, true);

	dma_buf_lock(buf, state);
	old = buf->state;
	if (old == VFIO_PCI_DMA_BUF_DEAD || old == state)
		goto out_unlock;

	/* Pairs with vfio_pci_dma_buf_state() and vfio_pci_dma_buf_is_live(). */
	WRITE_ONCE(buf->state, state);
	/* From REVOKED to DEAD there is nothing to tell. */
	if (buf->dmabuf &&
	    (old == VFIO_PCI_DMA_BUF_LIVE || state == VFIO_PCI_DMA_BUF_LIVE))
		dma_buf_invalidate_mappings(buf->dmabuf);

	if (state == VFIO_PCI_DMA_BUF_LIVE) {
		dma_buf_put_fences(buf);
	} else if (old == VFIO_PCI_DMA_BUF_LIVE) {
		buf->revoke_start = jiffies;
		dma_buf_get_fences(buf);
	}
	trace_vfio_pci_dma_buf_state(buf->pdev, buf->ino, buf->size,
				     dma_buf_state_names[state], buf->nr_mapped);
out_unlock:
	dma_resv_unlock(&buf->resv);
}

static void dma_bufs_set_state(struct vfio_pci_core_device *vdev,
			       enum vfio_pci_dma_buf_state state)
{
	struct vfio_pci_dma_buf *buf;

	for_each_dma_buf(vdev, buf)
		dma_buf_set_state(buf, state);
}

static void dma_buf_wait_fences(struct dma_buf_drain *drain,
				struct vfio_pci_dma_buf *buf)
{
	unsigned int i;

	for (i = 0; i < buf->nr_fences; i++)
		dma_buf_wait_fence(drain, buf, buf->fences[i]);
}

static void dma_buf_wait_unmaps(struct dma_buf_drain *drain,
				struct vfio_pci_dma_buf *buf)
{
	u64 start = dma_buf_trace_clock(trace_vfio_pci_dma_buf_unmap_wait_enabled());
	unsigned int mapped = READ_ONCE(buf->nr_mapped);

	while (!wait_event_timeout(buf->unmapped, dma_buf_is_unmapped(buf),
				   dma_buf_drain_silence(drain))) {
		dma_buf_report_mapped(drain, buf);
		dma_buf_drain_reported(drain);
	}
	if (start)
		trace_vfio_pci_dma_buf_unmap_wait(buf->pdev, buf->ino, mapped,
						  ktime_get_ns() - start);
}

/*
 * Wait until no importer can access the memory any more. Importers signal their
 * fences and unmap in a time that is bounded by kernel and hardware: the ones
 * that cannot are not let in by vfio_pci_dma_buf_attach().
 *
 * All importers of all buffers have been told before, so what is waited for here
 * goes on in parallel, in whichever order it is waited for. That two buffers have an
 * importer in common does no harm: nothing is held that an importer could need to let
 * go of either. A reservation object in common they never have.
 */
static void dma_bufs_drain(struct vfio_pci_core_device *vdev)
{
	u64 start = dma_buf_trace_clock(trace_vfio_pci_dma_bufs_drained_enabled());
	struct vfio_pci_dma_buf *buf;
	unsigned int nr_buffers = 0;
	u64 size = 0;

	for_each_dma_buf(vdev, buf) {
		struct dma_buf_drain drain = dma_buf_drain_begin(buf);

		dma_buf_wait_fences(&drain, buf);
		dma_buf_wait_unmaps(&drain, buf);
		nr_buffers++;
		size += buf->size;
	}
	if (start && nr_buffers)
		trace_vfio_pci_dma_bufs_drained(vdev->pdev, nr_buffers, size,
						ktime_get_ns() - start);
}

/**
 * vfio_pci_dma_buf_revoke_begin - tell importers that the BARs are going away
 * @vdev: the device
 *
 * When this returns no new access is possible and importers are letting go. To be
 * followed by vfio_pci_dma_buf_revoke_wait(). There are two functions so that the
 * importers of all buffers of all devices of a reset let go at the same time.
 *
 * Context: memory_lock is held for write. If the BARs answer, they do until
 * vfio_pci_dma_buf_revoke_wait() has returned.
 */
void vfio_pci_dma_buf_revoke_begin(struct vfio_pci_core_device *vdev)
{
	lockdep_assert_held_write(&vdev->memory_lock);

	if (!list_empty(&vdev->dma_bufs))
		dma_bufs_set_state(vdev, VFIO_PCI_DMA_BUF_REVOKED);
}

/**
 * vfio_pci_dma_buf_revoke_wait - wait until nobody accesses the BARs any more
 * @vdev: the device
 *
 * Context: memory_lock is held for write, since before
 * vfio_pci_dma_buf_revoke_begin(). Waits for importers, bounded by kernel and
 * hardware.
 */
void vfio_pci_dma_buf_revoke_wait(struct vfio_pci_core_device *vdev)
{
	lockdep_assert_held_write(&vdev->memory_lock);

	if (!list_empty(&vdev->dma_bufs))
		dma_bufs_drain(vdev);
}

/**
 * vfio_pci_dma_buf_restore - let importers map again, if the BARs answer
 * @vdev: the device
 *
 * Does nothing while memory is not accessible, so it can be called whenever
 * memory_lock is about to be released.
 *
 * Context: memory_lock is held for write.
 */
void vfio_pci_dma_buf_restore(struct vfio_pci_core_device *vdev)
{
	lockdep_assert_held_write(&vdev->memory_lock);

	WRITE_ONCE(vdev->dma_bufs_woken, false);
	if (!list_empty(&vdev->dma_bufs) && vfio_pci_memory_accessible(vdev))
		dma_bufs_set_state(vdev, VFIO_PCI_DMA_BUF_LIVE);
}

/**
 * vfio_pci_dma_buf_restore_woken - let importers map again after a wake-up
 * @vdev: the device, which the caller is about to use for userspace
 *
 * The resume by which a device wakes up may not do it, nor may who enables its
 * virtual functions. An unbind waits for the end of either before
 * vfio_pci_dma_buf_unbind() can stop anybody, and a memory cgroup may have to make
 * room for each page table of those who map.
 *
 * Context: the device is resumed, and memory_lock is not held.
 */
void vfio_pci_dma_buf_restore_woken(struct vfio_pci_core_device *vdev)
{
	if (!READ_ONCE(vdev->dma_bufs_woken))
		return;

	down_write(&vdev->memory_lock);
	vfio_pci_restore_and_up_write_memory_lock(vdev);
}

/**
 * vfio_pci_dma_buf_close - revoke all buffers of a device for good
 * @vdev: the device, of which the last file descriptor has been closed
 *
 * Leaves no buffer that refers to @vdev, and nothing to do for a second call. Called
 * before the function is disabled.
 *
 * Context: The lock of the device set is held. Waits for importers, bounded by
 * kernel and hardware.
 */
void vfio_pci_dma_buf_close(struct vfio_pci_core_device *vdev)
{
	struct vfio_pci_dma_buf *buf, *tmp;

	lockdep_assert_held(&vdev->vdev.dev_set->lock);

	dma_bufs_set_state(vdev, VFIO_PCI_DMA_BUF_DEAD);
	dma_bufs_drain(vdev);

	spin_lock(&vfio_pci_dma_bufs_lock);
	list_for_each_entry_safe(buf, tmp, &vdev->dma_bufs, node)
		list_del_init(&buf->node);
	spin_unlock(&vfio_pci_dma_bufs_lock);
}

/**
 * vfio_pci_dma_buf_unbind - revoke for good, and export nothing from now on
 * @vdev: the device, whose driver is being unbound
 *
 * Unbinding waits for userspace to close @vdev, and until then userspace can go on
 * calling in. The revoke must not wait for that.
 *
 * Context: Takes neither memory_lock nor any other lock that is held across a
 * reset. Waits for importers, bounded by kernel and hardware.
 */
void vfio_pci_dma_buf_unbind(struct vfio_pci_core_device *vdev)
{
	spin_lock(&vfio_pci_dma_bufs_lock);
	vdev->dma_bufs_stopped = true;
	spin_unlock(&vfio_pci_dma_bufs_lock);

	dma_bufs_set_state(vdev, VFIO_PCI_DMA_BUF_DEAD);
	dma_bufs_drain(vdev);
}

static int dma_buf_check_bar(struct pci_dev *pdev, u32 region_index)
{
	unsigned long flags;

	if (region_index >= VFIO_PCI_ROM_REGION_INDEX)
		return -ENODEV;

	flags = pci_resource_flags(pdev, region_index);
	if (!(flags & IORESOURCE_MEM) || (flags & IORESOURCE_UNSET) ||
	    !pci_resource_len(pdev, region_index) ||
	    !PAGE_ALIGNED(pci_resource_start(pdev, region_index)))
		return -ENODEV;
	return 0;
}

/*
 * Turn ranges of userspace, which are offsets into the BAR, to physical ones and
 * return their total length in @size.
 */
static int dma_buf_set_ranges(struct vfio_pci_dma_buf *buf,
			      const struct vfio_region_dma_range *dma_ranges,
			      size_t *size)
{
	u64 bar_start = pci_resource_start(buf->pdev, buf->bar);
	u64 bar_len = pci_resource_len(buf->pdev, buf->bar);
	unsigned int i;

	*size = 0;
	for (i = 0; i < buf->nr_ranges; i++) {
		u64 offset = dma_ranges[i].offset;
		u64 length = dma_ranges[i].length;
		u64 end;

		if (!length || !PAGE_ALIGNED(offset) || !PAGE_ALIGNED(length))
			return -EINVAL;
		if (check_add_overflow(offset, length, &end) || end > bar_len)
			return -EINVAL;
		if (check_add_overflow(*size, length, size) || *size > bar_len)
			return -EINVAL;

		buf->ranges[i].start = bar_start + offset;
		buf->ranges[i].end = bar_start + end - 1;
	}
	return 0;
}

static struct vfio_pci_dma_buf *
dma_buf_alloc(struct vfio_pci_core_device *vdev,
	      const struct vfio_device_feature_dma_buf *get,
	      const struct vfio_region_dma_range *dma_ranges, size_t *size)
{
	struct vfio_pci_dma_buf *buf;
	int ret;

	buf = kzalloc(struct_size(buf, ranges, get->nr_ranges),
		      GFP_KERNEL_ACCOUNT);
	if (!buf)
		return ERR_PTR(-ENOMEM);

	kref_init(&buf->kref);
	INIT_LIST_HEAD(&buf->node);
	dma_resv_init(&buf->resv);
	init_waitqueue_head(&buf->unmapped);
	buf->state = VFIO_PCI_DMA_BUF_REVOKED;
	buf->pdev = pci_dev_get(vdev->pdev);
	buf->bar = get->region_index;
	buf->nr_ranges = get->nr_ranges;

	ret = dma_buf_set_ranges(buf, dma_ranges, size);
	if (ret) {
		dma_buf_free(buf);
		return ERR_PTR(ret);
	}
	return buf;
}

static struct dma_buf *dma_buf_create(struct vfio_pci_core_device *vdev,
				      const struct vfio_device_feature_dma_buf *get,
				      const struct vfio_region_dma_range *dma_ranges)
{
	DEFINE_DMA_BUF_EXPORT_INFO(exp_info);
	struct vfio_pci_dma_buf *buf;
	struct dma_buf *dmabuf;

	buf = dma_buf_alloc(vdev, get, dma_ranges, &exp_info.size);
	if (IS_ERR(buf))
		return ERR_CAST(buf);

	exp_info.ops = &vfio_pci_dma_buf_ops;
	exp_info.flags = get->open_flags & O_ACCMODE;
	exp_info.resv = &buf->resv;
	exp_info.priv = buf;
	dmabuf = dma_buf_export(&exp_info);
	if (IS_ERR(dmabuf)) {
		dma_buf_free(buf);
		return dmabuf;
	}

	/* From here on it is the release of the dma-buf that frees the buffer. */
	buf->dmabuf = dmabuf;
	buf->ino = file_inode(dmabuf->file)->i_ino;
	buf->size = dmabuf->size;
	return dmabuf;
}

static void dma_buf_trace_export(struct dma_buf *dmabuf)
{
	struct vfio_pci_dma_buf *buf = dmabuf->priv;

	trace_vfio_pci_dma_buf_export(buf->pdev, buf->ino, buf->bar, dmabuf->size,
				      buf->nr_ranges);
}

/* From here on the buffer is LIVE and REVOKED as the device is. */
static int dma_buf_publish(struct vfio_pci_core_device *vdev,
			   struct vfio_pci_dma_buf *buf)
{
	int ret = 0;

	down_read(&vdev->memory_lock);
	if (vfio_pci_memory_accessible(vdev))
		dma_buf_set_state(buf, VFIO_PCI_DMA_BUF_LIVE);

	spin_lock(&vfio_pci_dma_bufs_lock);
	if (vdev->dma_bufs_stopped)
		ret = -ENODEV;
	else
		list_add_tail(&buf->node, &vdev->dma_bufs);
	spin_unlock(&vfio_pci_dma_bufs_lock);
	up_read(&vdev->memory_lock);
	return ret;
}

/**
 * vfio_pci_core_feature_dma_buf - VFIO_DEVICE_FEATURE_DMA_BUF
 * @device: the device
 * @flags: of the feature ioctl
 * @arg: &struct vfio_device_feature_dma_buf of userspace
 * @argsz: size of @arg with the ranges that follow it
 *
 * See include/uapi/linux/vfio.h for what it does and for the errors.
 *
 * Return: the new fd or an errno.
 */
int vfio_pci_core_feature_dma_buf(struct vfio_device *device, u32 flags,
				  struct vfio_device_feature_dma_buf __user *arg,
				  size_t argsz)
{
	struct vfio_pci_core_device *vdev =
		container_of(device, struct vfio_pci_core_device, vdev);
	struct vfio_region_dma_range *dma_ranges;
	struct vfio_device_feature_dma_buf get;
	struct dma_buf *dmabuf;
	int ret;

	if (!vdev->export_dma_bufs)
		return -ENOTTY;

	ret = vfio_check_feature(flags, argsz, VFIO_DEVICE_FEATURE_GET,
				 sizeof(get));
	if (ret != 1)
		return ret;

	if (copy_from_user(&get, arg, sizeof(get)))
		return -EFAULT;

	if (get.flags || (get.open_flags & ~(O_ACCMODE | O_CLOEXEC)) ||
	    (get.open_flags & O_ACCMODE) == O_ACCMODE)
		return -EINVAL;

	if (!get.nr_ranges || get.nr_ranges > VFIO_PCI_DMA_BUF_MAX_RANGES ||
	    argsz < struct_size(arg, dma_ranges, get.nr_ranges))
		return -EINVAL;

	ret = dma_buf_check_bar(vdev->pdev, get.region_index);
	if (ret)
		return ret;

	/* Claims the BAR. */
	ret = vfio_pci_core_setup_barmap(vdev, get.region_index);
	if (ret)
		return ret;

	dma_ranges = memdup_array_user(arg->dma_ranges, get.nr_ranges,
				       sizeof(*dma_ranges));
	if (IS_ERR(dma_ranges))
		return PTR_ERR(dma_ranges);

	dmabuf = dma_buf_create(vdev, &get, dma_ranges);
	kfree(dma_ranges);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);

	dma_buf_trace_export(dmabuf);
	ret = dma_buf_publish(vdev, dmabuf->priv);
	if (!ret)
		ret = dma_buf_fd(dmabuf, get.open_flags);
	if (ret < 0)
		dma_buf_put(dmabuf);
	return ret;
}

#ifdef CONFIG_VFIO_PCI_DMABUF_KUNIT_TEST
#include "tests/vfio_pci_dmabuf_kunit.c"
#endif
