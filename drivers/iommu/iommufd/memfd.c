// SPDX-License-Identifier: GPL-2.0-only
/*
 * memfds as an origin of iopt_pages
 *
 * The pages are those of the file, whoever has it mapped or not. The address space
 * of the process that asked for the mapping is needed for nothing but accounting,
 * and that only with IOPT_PAGES_ACCOUNT_MM.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/memfd.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <uapi/linux/fcntl.h>

#include "io_pagetable.h"

#define MEMFD_PIN_BATCH 32

static bool memfd_sealed_against_future_writes(struct file *file)
{
#ifdef CONFIG_HUGETLBFS
	if (is_file_hugepages(file))
		return HUGETLBFS_I(file_inode(file))->seals & F_SEAL_FUTURE_WRITE;
#endif
	return SHMEM_I(file_inode(file))->seals & F_SEAL_FUTURE_WRITE;
}

/*
 * DMA writes to the file as a shared mapping does. Be counted as one, which fails
 * under F_SEAL_WRITE, and keeps it from being set before iopt_memfd_release().
 */
static int memfd_get_write(struct file *file)
{
	int rc;

	if (!(file->f_mode & FMODE_WRITE))
		return -EPERM;

	rc = mapping_map_writable(file->f_mapping);
	if (rc)
		return rc;

	if (memfd_sealed_against_future_writes(file)) {
		mapping_unmap_writable(file->f_mapping);
		return -EPERM;
	}
	return 0;
}

static int memfd_check_range(struct file *file, unsigned long start,
			     unsigned long length)
{
	unsigned long end;

	if (!shmem_file(file) && !is_file_hugepages(file))
		return -EINVAL;
	if (check_add_overflow(start, length, &end))
		return -EOVERFLOW;
	if (end > (u64)i_size_read(file_inode(file)))
		return -EINVAL;
	return 0;
}

/**
 * iopt_alloc_memfd_pages() - Allocate pages of a memfd
 * @fd: File descriptor of a memfd, or of any other file of shmem or hugetlbfs
 * @start: Offset in the file to start from
 * @length: Number of bytes, must not go beyond the end of the file
 * @writable: IOMMU_WRITE is allowed
 *
 * Return: as iopt_alloc_pages()
 */
struct iopt_pages *iopt_alloc_memfd_pages(int fd, unsigned long start,
					  unsigned long length, bool writable)
{
	struct iopt_pages *pages;
	struct file *file;
	int rc;

	file = fget(fd);
	if (!file)
		return ERR_PTR(-EBADF);

	rc = memfd_check_range(file, start, length);
	if (rc)
		goto err_fput;

	/* As with mmap(), there is no access without being able to read */
	if (!(file->f_mode & FMODE_READ)) {
		rc = -EPERM;
		goto err_fput;
	}

	if (writable) {
		rc = memfd_get_write(file);
		if (rc)
			goto err_fput;
	}

	pages = iopt_alloc_pages(start, length, writable);
	if (IS_ERR(pages)) {
		rc = PTR_ERR(pages);
		goto err_put_write;
	}
	pages->file = file;
	pages->file_start = ALIGN_DOWN(start, PAGE_SIZE);
	return pages;

err_put_write:
	if (writable)
		mapping_unmap_writable(file->f_mapping);
err_fput:
	fput(file);
	return ERR_PTR(rc);
}

/**
 * iopt_memfd_release() - Let go of the file of pages that are being freed
 * @pages: from iopt_alloc_memfd_pages()
 */
void iopt_memfd_release(struct iopt_pages *pages)
{
	if (pages->writable)
		mapping_unmap_writable(pages->file->f_mapping);
	fput(pages->file);
}

/*
 * memfd_pin_folios() pins a folio once, however many of its pages are asked for.
 * iopt_pages unpin page by page, so give each page a pin of its own.
 */
static unsigned long memfd_folios_to_pages(struct folio **folios,
					   unsigned long nr_folios,
					   unsigned long first_page,
					   unsigned long npages,
					   struct page **out_pages)
{
	unsigned long done = 0;
	unsigned long i, j, n;

	for (i = 0; i < nr_folios; i++) {
		n = min(folio_nr_pages(folios[i]) - first_page, npages - done);
		if (n > 1)
			folio_add_pins(folios[i], n - 1);
		for (j = 0; j < n; j++)
			out_pages[done++] = folio_page(folios[i],
						       first_page + j);
		first_page = 0;
	}
	return done;
}

/**
 * iopt_memfd_pin() - Pin pages of a file
 * @pages: from iopt_alloc_memfd_pages()
 * @start_index: Index of the first page
 * @npages: How many to pin
 * @out_pages: Output list of pages, each with one pin
 *
 * Return: the number of pages pinned, which may be less than asked for, or an
 * errno if there are none. -EINVAL if the file has become too short, -EINTR if the
 * caller is being killed.
 */
long iopt_memfd_pin(struct iopt_pages *pages, unsigned long start_index,
		    unsigned long npages, struct page **out_pages)
{
	struct inode *inode = file_inode(pages->file);
	struct folio *folios[MEMFD_PIN_BATCH];
	unsigned long done = 0;
	loff_t start, last;
	pgoff_t offset;
	long nr;

	start = pages->file_start + start_index * PAGE_SIZE;
	last = start + npages * PAGE_SIZE - 1;
	/* A file need not end with a page, but must not be pinned beyond. */
	last = min(last, i_size_read(inode) - 1);
	if (start > last)
		return -EINVAL;

	while (done != npages) {
		if (fatal_signal_pending(current))
			return done ?: -EINTR;
		cond_resched();
		/* Who writes to the file may be at a page fault, for as long as it likes. */
		if (inode_lock_shared_killable(inode))
			return done ?: -EINTR;
		nr = memfd_pin_folios(pages->file, start + done * PAGE_SIZE,
				      last, folios, ARRAY_SIZE(folios),
				      &offset);
		inode_unlock_shared(inode);
		if (nr <= 0)
			return done ?: nr ?: -EFAULT;
		done += memfd_folios_to_pages(folios, nr, PHYS_PFN(offset),
					      npages - done, out_pages + done);
	}
	return done;
}
