// SPDX-License-Identifier: GPL-2.0-only
/*
 * A BAR shared, used by another device, and taken back: the whole path, told
 * step by step to a person. Exit status 0 if everything was as it should be.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "edu.h"
#include "importer.h"

#define __noreturn	__attribute__((__noreturn__))

#define RAM_IOVA	0x00100000ULL
#define BAR_IOVA	0x01000000ULL
#define BAR_OFFSET	0x2000ULL
#define RAM_BYTES	4096
#define TRACING		"/sys/kernel/tracing/"
/* Whoever made the machine looks for it there */
#define TIMELINE	"/tmp/timeline.trace"
#define FAULT_WAIT_MS	1000
#define MIB		0x100000ULL

static const char first_words[] = "written by another device, straight into the BAR";
static const char late_words[] = "written too late, by a device that was not told";
static const char restored_words[] = "written again, and nobody has mapped anything";
static const char last_words[] = "written again, the buffer was imported once more";

static struct {
	int iommufd;
	int kmsg;
	__u32 ioas;
	struct edu edu;
	struct vfio_dev owner;
	volatile char *bar;
	size_t bar_size;
	char *ram;
	__u64 start;
	unsigned int steps;
} demo;

static __printf(1, 2) void step(const char *fmt, ...)
{
	va_list args;

	printf("\n[%7.3f s] %u. ", (now_us() - demo.start) / 1e6, ++demo.steps);
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
}

static __printf(1, 2) void say(const char *fmt, ...)
{
	va_list args;

	printf("             ");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
}

static __noreturn __printf(1, 2) void fail(const char *fmt, ...)
{
	va_list args;

	printf("\nFAILED: ");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
	exit(EXIT_FAILURE);
}

/* The result of @call; any error ends the demo */
static int must(int ret, const char *what)
{
	if (ret < 0)
		fail("%s: %s", what, strerror(-ret));
	return ret;
}

#define MUST(call)	must(call, #call)

/* What a call took, in a unit that suits it */
static const char *took(__u64 since)
{
	static char text[32];
	__u64 us = now_us() - since;

	if (us < 10000)
		snprintf(text, sizeof(text), "%llu us", us);
	else
		snprintf(text, sizeof(text), "%.1f ms", us / 1e3);
	return text;
}

static void find_device(const char *role, struct pci_id id, char name[PCI_NAME_LEN])
{
	const char *told = getenv(role);

	if (told && strlen(told) < PCI_NAME_LEN)
		pci_copy_name(name, told);
	else if (pci_find(id, 0, name))
		fail("there is no device %04x:%04x", id.vendor, id.device);
}

static void open_devices(void)
{
	char name[PCI_NAME_LEN];

	demo.iommufd = MUST(iommufd_open());

	find_device("VM_PEER", pci_id_ivshmem, name);
	MUST(pci_bind_vfio(name));
	MUST(vfio_dev_open(&demo.owner, name, demo.iommufd));
	demo.bar = vfio_dev_mmap(&demo.owner, PEER_BAR, &demo.bar_size);
	if (!demo.bar)
		fail("BAR%d of %s cannot be mapped", PEER_BAR, name);
	say("%s (ivshmem) owns %llu MiB of memory, its BAR%d. The CPU sees it by mmap().", name,
	    demo.bar_size / MIB, PEER_BAR);

	find_device("VM_DMA", pci_id_edu, name);
	MUST(pci_bind_vfio(name));
	MUST(edu_open(&demo.edu, name, demo.iommufd));
	say("%s (edu) has a DMA engine, and sees what the IOMMU lets it see.", name);
}

static void make_address_space(void)
{
	__u64 iova = RAM_IOVA;

	MUST(ioas_alloc(demo.iommufd, &demo.ioas));
	MUST(vfio_dev_attach(&demo.edu.dev, demo.ioas));
	demo.ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			-1, 0);
	if (demo.ram == MAP_FAILED)
		fail("no memory");
	MUST(ioas_map(demo.iommufd, demo.ioas, IOAS_RW | IOAS_FIXED, demo.ram, RAM_BYTES, &iova));
	say("edu is attached to IOAS %u, which has one page of RAM, at IOVA %#llx.", demo.ioas,
	    RAM_IOVA);
}

static int export_bar(void)
{
	__u64 start = now_us();
	int fd;

	fd = vfio_dev_export_range(&demo.owner, PEER_BAR, 0, demo.bar_size);
	must(fd, "VFIO_DEVICE_FEATURE_DMA_BUF");
	say("VFIO_DEVICE_FEATURE_DMA_BUF gave fd %d, in %s.", fd, took(start));
	return fd;
}

static void import_bar(int fd)
{
	__u64 iova = BAR_IOVA, start = now_us();

	must(ioas_map_file(demo.iommufd, demo.ioas, IOAS_RW | IOAS_FIXED, fd, 0, demo.bar_size,
			   &iova), "IOMMU_IOAS_MAP_FILE");
	say("IOMMU_IOAS_MAP_FILE put all of it at IOVA %#llx, in %s.", iova, took(start));
}

static void let_edu_write(const char *words, size_t len)
{
	memcpy(demo.ram, words, len);
	MUST(edu_dma(&demo.edu, EDU_FROM_MEMORY, RAM_IOVA, len));
	say("edu fetched from RAM:      \"%s\"", words);
	MUST(edu_dma(&demo.edu, EDU_TO_MEMORY, BAR_IOVA + BAR_OFFSET, len));
	say("edu was told to write it to IOVA %#llx.", BAR_IOVA + BAR_OFFSET);
}

/* Byte by byte: string functions may access memory in ways that a BAR does not take */
static void expect_words(const char *words)
{
	char seen[RAM_BYTES] = "";
	size_t i;

	for (i = 0; i < sizeof(seen) - 1; i++)
		seen[i] = demo.bar[BAR_OFFSET + i];
	if (strcmp(seen, words))
		fail("at offset %#llx of the BAR there is something else", BAR_OFFSET);
	say("The CPU reads in the BAR:  \"%s\"", seen);
}

static bool bar_is_empty(void)
{
	volatile __u64 *word = (volatile __u64 *)demo.bar;
	size_t i;

	for (i = 0; i < demo.bar_size / sizeof(*word); i++)
		if (word[i])
			return false;
	return true;
}

static void wipe_bar(void)
{
	size_t i;

	for (i = 0; i < RAM_BYTES; i++)
		demo.bar[BAR_OFFSET + i] = 0;
	if (!bar_is_empty())
		fail("the BAR holds something that the demo did not put there");
}

/* From here on the kernel log is new to us; without one, there is less to show */
static void watch_faults(void)
{
	demo.kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (demo.kmsg >= 0)
		lseek(demo.kmsg, 0, SEEK_END);
}

static bool read_fault(char *record, size_t size)
{
	char *text;
	ssize_t len;

	while ((len = read(demo.kmsg, record, size - 1)) > 0) {
		record[len] = '\0';
		text = strchr(record, ';');
		if (!text || (!strstr(text, "fault addr") && !strstr(text, "fault from EP") &&
			      !strstr(text, "event 0x10 received")))
			continue;
		text[strcspn(text, "\n")] = '\0';
		memmove(record, text + 1, strlen(text));
		return true;
	}
	return false;
}

static void report_fault(void)
{
	char record[8192];

	if (demo.kmsg < 0)
		return;
	if (wait_until(read_fault(record, sizeof(record)), FAULT_WAIT_MS))
		say("The kernel saw the fault:  %s", record);
	close(demo.kmsg);
}

/* In case that other tests have used the memory before */
static void wipe_everything(void)
{
	volatile __u64 *word = (volatile __u64 *)demo.bar;
	size_t i;

	for (i = 0; i < demo.bar_size / sizeof(*word); i++)
		if (word[i])
			word[i] = 0;
}

static void switch_memory(bool on)
{
	__u64 start = now_us();

	must(vfio_dev_decode(&demo.owner, on), "PCI_COMMAND");
	say("One write to its command register %s, in %s.",
	    on ? "switched the memory on and mapped it again" :
		 "took every mapping of the BAR away and switched the memory off",
	    took(start));
}

static void reset_owner(void)
{
	__u64 start = now_us();

	must(vfio_dev_reset(&demo.owner), "VFIO_DEVICE_RESET");
	say("VFIO_DEVICE_RESET took every mapping away, reset the device, and mapped it again.");
	say("It took %s; most of that is what PCI wants between reset and first use.",
	    took(start));
}

static void expect_stopped(void)
{
	if (!bar_is_empty())
		fail("a DMA landed in the BAR while it was revoked");
	say("The CPU looked at all of the %llu MiB: not a byte has landed.",
	    demo.bar_size / MIB);
}

static void unmap_bar(void)
{
	__u64 unmapped;

	must(ioas_unmap(demo.iommufd, demo.ioas, BAR_IOVA, demo.bar_size, &unmapped),
	     "IOMMU_IOAS_UNMAP");
	if (unmapped != demo.bar_size)
		fail("only %#llx bytes were unmapped", unmapped);
	say("IOMMU_IOAS_UNMAP of the old mapping: fine, %llu MiB.", unmapped / MIB);
}

static bool set_trace(const char *event, const char *value)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), TRACING "%s", event);
	f = fopen(path, "we");
	if (!f)
		return false;
	fputs(value, f);
	return !fclose(f);
}

static bool trace(const char *on)
{
	return set_trace("events/dma_buf/enable", on) &&
	       set_trace("events/vfio_pci/enable", on) &&
	       set_trace("events/dma_fence/enable", on);
}

static void save_trace(void)
{
	FILE *from = fopen(TRACING "trace", "re"), *to = fopen(TIMELINE, "we");
	char line[1024];

	while (from && to && fgets(line, sizeof(line), from))
		if (line[0] != '#')
			fputs(line, to);
	if (from)
		fclose(from);
	if (to)
		fclose(to);
}

/* Importers that take their time: a fence that signals late, an unmap that comes late */
static void import_slowly(int importer, __u64 offset, __u32 fence_ms, __u32 unmap_ms)
{
	int fd = vfio_dev_export_range(&demo.owner, PEER_BAR, offset, RAM_BYTES);
	long handle;

	must(fd, "VFIO_DEVICE_FEATURE_DMA_BUF");
	handle = import_slow(importer, fd, GOOD, fence_ms, unmap_ms);
	must(handle, "import by the test importer");
	must(map(importer, handle, NULL), "map by the test importer");
	say("A driver has mapped another dma-buf, will signal its fence after %u ms and unmap after %u ms.",
	    fence_ms, unmap_ms);
	close(fd);
}

static void revoke_slowly(void)
{
	char name[PCI_NAME_LEN];
	int importer;

	find_device("VM_KDMA", pci_id_edu, name);
	importer = importer_open(name);
	if (importer < 0 || !set_trace("trace", "") || !set_trace("trace_clock", "mono") ||
	    !trace("1")) {
		say("This kernel has no test importer, or no trace events.");
		return;
	}
	import_slowly(importer, 0, 40, 0);
	import_slowly(importer, RAM_BYTES, 0, 70);
	import_slowly(importer, 2 * RAM_BYTES, 50, 90);
	switch_memory(false);
	say("It waited for the slowest of them, not for one after the other.");
	trace("0");
	save_trace();
	switch_memory(true);
	close(importer);
}

static void close_owner(int fd)
{
	__u64 iova = BAR_IOVA;
	int ret;

	unmap_bar();
	munmap((void *)demo.bar, demo.bar_size);
	vfio_dev_close(&demo.owner);
	say("The owner closed its device, the dma-buf fd is still open.");
	ret = ioas_map_file(demo.iommufd, demo.ioas, IOAS_RW | IOAS_FIXED, fd, 0, demo.bar_size,
			    &iova);
	if (ret != -ENODEV)
		fail("IOMMU_IOAS_MAP_FILE of a dead buffer: %s", strerror(-ret));
	say("IOMMU_IOAS_MAP_FILE now says: %s. It will never say anything else.", strerror(-ret));
	close(fd);
}

int main(void)
{
	int fd;

	setvbuf(stdout, NULL, _IOLBF, 0);
	demo.start = now_us();
	printf("A PCI BAR is shared with another device, and taken back.\n");

	step("Two devices, both driven by this process through VFIO");
	open_devices();
	wipe_everything();

	step("An address space for the one with the DMA engine");
	make_address_space();

	step("The owner exports its BAR as a dma-buf, iommufd imports it");
	fd = export_bar();
	import_bar(fd);

	step("Device to device: edu writes into the BAR");
	let_edu_write(first_words, sizeof(first_words));
	expect_words(first_words);

	step("The owner's memory is switched off");
	wipe_bar();
	watch_faults();
	switch_memory(false);

	step("Nobody told edu, which goes on writing");
	let_edu_write(late_words, sizeof(late_words));
	report_fault();

	step("The owner's memory is switched on");
	switch_memory(true);
	expect_stopped();
	let_edu_write(restored_words, sizeof(restored_words));
	expect_words(restored_words);
	wipe_bar();

	step("The owner is reset");
	reset_owner();
	let_edu_write(restored_words, sizeof(restored_words));
	expect_words(restored_words);
	wipe_bar();

	step("The same dma-buf is imported again, as other kernels want it");
	unmap_bar();
	import_bar(fd);
	let_edu_write(last_words, sizeof(last_words));
	expect_words(last_words);
	wipe_bar();

	step("Some importers take their time");
	revoke_slowly();

	step("The owner goes away for good");
	close_owner(fd);
	edu_close(&demo.edu);
	close(demo.iommufd);

	printf("\n[%7.3f s] Everything was as it should be.\n", (now_us() - demo.start) / 1e6);
	return EXIT_SUCCESS;
}
