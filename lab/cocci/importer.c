/* An importer that gives its mapping up; see lab/test-cocci. */

static void example_invalidate(struct dma_buf_attachment *attach)
{
	struct example *example = to_example(attach->importer_priv);

	dma_resv_assert_held(attach->dmabuf->resv);
	example->invalid = true;
	dev_warn_ratelimited(attach->dev, "the buffer moves\n");
	queue_work(system_unbound_wq, &example->work);
	dma_buf_unmap_attachment(attach, example->sgt, DMA_BIDIRECTIONAL);
}

static const struct dma_buf_attach_ops example_attach_ops = {
	.allow_peer2peer = true,
	.invalidate_mappings = example_invalidate,
};
