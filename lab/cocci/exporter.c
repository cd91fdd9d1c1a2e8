/* An exporter whose memory goes away; see lab/test-cocci. */

static int example_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attach)
{
	if (!dma_buf_attach_revocable(attach))
		return -EOPNOTSUPP;
	return 0;
}

static struct sg_table *example_map(struct dma_buf_attachment *attach, enum dma_data_direction dir)
{
	struct example *example = attach->dmabuf->priv;

	if (example->revoked)
		return ERR_PTR(-ENODEV);
	example->nr_mapped++;
	return example_sgt(example, attach->dev, dir);
}

static void example_unmap(struct dma_buf_attachment *attach, struct sg_table *sgt,
			  enum dma_data_direction dir)
{
	struct example *example = attach->dmabuf->priv;

	example_free_sgt(sgt);
	if (!--example->nr_mapped)
		wake_up(&example->unmapped);
}

static const struct dma_buf_ops example_ops = {
	.attach = example_attach,
	.map_dma_buf = example_map,
	.unmap_dma_buf = example_unmap,
	.release = example_release,
};

static void example_revoke(struct example *example)
{
	struct dma_resv *resv = example->dmabuf->resv;

	dma_resv_lock(resv, NULL);
	example->revoked = true;
	dma_buf_invalidate_mappings(example->dmabuf);
	dma_resv_wait_timeout(resv, DMA_RESV_USAGE_BOOKKEEP, false, MAX_SCHEDULE_TIMEOUT);
	dma_resv_unlock(resv);
	wait_event(example->unmapped, !example->nr_mapped);
}
