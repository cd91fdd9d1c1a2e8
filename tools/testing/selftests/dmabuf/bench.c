// SPDX-License-Identifier: GPL-2.0-only
/*
 * What sharing a BAR and taking it back costs: one BAR cut into n dma-bufs, each
 * of them mapped into one IOAS, and a part of it as one dma-buf of many ranges. A
 * kernel without the exporter has only the columns in which there is nothing to
 * take back.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/pci_regs.h>

#include "importer.h"
#include "observe.h"

#define ROUNDS		31
#define MAX_BUFFERS	64
#define MAX_RANGES	64
#define BAR_IOVA	0x100000000ULL
#define SLOW_MS		5
#define MIB		0x100000ULL

enum column {
	EXPORT,
	MAP,
	REVOKE_ALL,
	RESTORE_ALL,
	UNMAP_CLOSE,
	DECODE_OFF,
	RESET,
	RESET_CPU,
	REVOKE_SLOW,
	HOT_RESET,
	POLL,
	COLUMNS,
};

static struct {
	int iommufd;
	__u32 ioas;
	struct vfio_dev owner;
	struct vfio_dev pair[2];
	struct edu edu;
	int importer;
	__u64 bar_size;
	bool can_export;
	bool has_pair;
} bench;

/* Nanoseconds of one round */
static __u64 samples[COLUMNS][ROUNDS];

static void must(int ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "%s: %s\n", what, strerror(-ret));
	exit(EXIT_FAILURE);
}

#define MUST(call)	must(call, #call)

static __u64 read_clock(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static __u64 now_ns(void)
{
	return read_clock(CLOCK_MONOTONIC);
}

static void find_device(const char *role, struct pci_id id, char name[PCI_NAME_LEN])
{
	const char *told = getenv(role);

	if (told && strlen(told) < PCI_NAME_LEN)
		pci_copy_name(name, told);
	else
		must(pci_find(id, 0, name), role);
	MUST(pci_bind_vfio(name));
}

/* Without the series there is none */
static void find_importer(char name[PCI_NAME_LEN])
{
	const char *told = getenv("VM_KDMA");

	bench.importer = -ENODEV;
	if (!told || strlen(told) >= PCI_NAME_LEN)
		return;
	pci_copy_name(name, told);
	bench.importer = importer_open(name);
}

/* Two functions that are reset together. Only the machine of the tests says where. */
static void open_pair(void)
{
	static const char * const roles[] = { "VM_PAIR0", "VM_PAIR1" };
	char name[PCI_NAME_LEN];
	unsigned int i;

	bench.has_pair = getenv(roles[0]) && getenv(roles[1]);
	for (i = 0; bench.has_pair && i < ARRAY_SIZE(roles); i++) {
		find_device(roles[i], pci_id_ivshmem, name);
		MUST(vfio_dev_open(&bench.pair[i], name, bench.iommufd));
	}
}

static void open_devices(void)
{
	struct vfio_region_info info;
	char name[PCI_NAME_LEN];

	bench.iommufd = iommufd_open();
	must(bench.iommufd, "/dev/iommu");

	find_device("VM_PEER", pci_id_ivshmem, name);
	MUST(vfio_dev_open(&bench.owner, name, bench.iommufd));
	MUST(vfio_dev_region(&bench.owner, PEER_BAR, &info));
	bench.bar_size = info.size;
	bench.can_export = !vfio_dev_feature(&bench.owner, VFIO_DEVICE_FEATURE_PROBE |
					     VFIO_DEVICE_FEATURE_GET |
					     VFIO_DEVICE_FEATURE_DMA_BUF, NULL, 0);

	find_device("VM_DMA", pci_id_edu, name);
	MUST(edu_open(&bench.edu, name, bench.iommufd));
	find_importer(name);
	open_pair();
	MUST(ioas_alloc(bench.iommufd, &bench.ioas));
	MUST(vfio_dev_attach(&bench.edu.dev, bench.ioas));
}

static int compare(const void *a, const void *b)
{
	__u64 x = *(const __u64 *)a, y = *(const __u64 *)b;

	return x < y ? -1 : x > y;
}

static double median_us(enum column column)
{
	qsort(samples[column], ROUNDS, sizeof(__u64), compare);
	return samples[column][ROUNDS / 2] / 1e3;
}

/*
 * The config offset of the command register is found out beforehand, and the
 * whole register written, so that one system call is measured.
 */
struct command_register {
	off_t offset;
	__u16 off;
	__u16 on;
};

static struct command_register read_command(void)
{
	struct command_register command;
	struct vfio_region_info info;

	MUST(vfio_dev_region(&bench.owner, VFIO_PCI_CONFIG_REGION_INDEX, &info));
	command.offset = info.offset + PCI_COMMAND;
	MUST(vfio_dev_config_read(&bench.owner, PCI_COMMAND, &command.on, sizeof(command.on)));
	command.on |= PCI_COMMAND_MEMORY;
	command.off = command.on & ~PCI_COMMAND_MEMORY;
	return command;
}

static __u64 write_command(const struct command_register *command, bool on)
{
	const __u16 *val = on ? &command->on : &command->off;
	__u64 start = now_ns();

	if (pwrite(bench.owner.fd, val, sizeof(*val), command->offset) != sizeof(*val))
		must(-EIO, "command register");
	return now_ns() - start;
}

static void export_all(int *fds, unsigned int count, __u64 size, unsigned int round)
{
	__u64 start = now_ns();
	unsigned int i;

	for (i = 0; i < count; i++)
		fds[i] = vfio_dev_export_range(&bench.owner, PEER_BAR, i * size, size);
	samples[EXPORT][round] = (now_ns() - start) / count;
	for (i = 0; i < count; i++)
		must(fds[i], "export");
}

static void map_all(const int *fds, unsigned int count, __u64 size, unsigned int round)
{
	__u64 start = now_ns();
	unsigned int i;
	int ret = 0;

	for (i = 0; i < count && !ret; i++) {
		__u64 iova = BAR_IOVA + i * size;

		ret = ioas_map_file(bench.iommufd, bench.ioas, IOAS_RW | IOAS_FIXED, fds[i], 0,
				    size, &iova);
	}
	samples[MAP][round] = (now_ns() - start) / count;
	must(ret, "IOMMU_IOAS_MAP_FILE");
}

static void unmap_all(const int *fds, unsigned int count, __u64 size, unsigned int round)
{
	__u64 start = now_ns();
	unsigned int i;
	int ret = 0;

	for (i = 0; i < count && !ret; i++) {
		ret = ioas_unmap(bench.iommufd, bench.ioas, BAR_IOVA + i * size, size, NULL);
		close(fds[i]);
	}
	samples[UNMAP_CLOSE][round] = (now_ns() - start) / count;
	must(ret, "IOMMU_IOAS_UNMAP");
}

/* What is unmapped has been taken away before, as the reference has it */
static void measure_round(const struct command_register *command, const int *fds,
			  unsigned int count, __u64 size, unsigned int round)
{
	map_all(fds, count, size, round);
	samples[REVOKE_ALL][round] = write_command(command, false);
	samples[RESTORE_ALL][round] = write_command(command, true);
	write_command(command, false);
	unmap_all(fds, count, size, round);
	write_command(command, true);
}

static void measure_buffers(const struct command_register *command, unsigned int count)
{
	__u64 size = bench.bar_size / count;
	int fds[MAX_BUFFERS];
	unsigned int round;

	for (round = 0; round < ROUNDS; round++) {
		export_all(fds, count, size, round);
		measure_round(command, fds, count, size, round);
	}
}

/* One dma-buf of half of the BAR: of its first half, or of pieces from all over it */
static void measure_ranges(const struct command_register *command, bool holes)
{
	const __u64 size = bench.bar_size / 2 / MAX_RANGES;
	struct vfio_region_dma_range ranges[MAX_RANGES];
	unsigned int round, i;
	int fd;

	for (i = 0; i < MAX_RANGES; i++) {
		ranges[i].offset = i * size * (holes ? 2 : 1);
		ranges[i].length = size;
	}
	for (round = 0; round < ROUNDS; round++) {
		fd = vfio_dev_export(&bench.owner, PEER_BAR, O_RDWR | O_CLOEXEC, ranges,
				     MAX_RANGES);
		must(fd, "export of ranges");
		measure_round(command, &fd, 1, MAX_RANGES * size, round);
	}
}

static void measure_decode_off(const struct command_register *command)
{
	unsigned int round;

	for (round = 0; round < ROUNDS; round++) {
		samples[DECODE_OFF][round] = write_command(command, false);
		write_command(command, true);
	}
}

/* Nearly all of it is sleep between reset and first use; what is not, shows in CPU time */
static void measure_reset(void)
{
	unsigned int round;
	__u64 start, cpu;

	for (round = 0; round < ROUNDS; round++) {
		start = now_ns();
		cpu = read_clock(CLOCK_PROCESS_CPUTIME_ID);
		MUST(vfio_dev_reset(&bench.owner));
		samples[RESET_CPU][round] = read_clock(CLOCK_PROCESS_CPUTIME_ID) - cpu;
		samples[RESET][round] = now_ns() - start;
	}
}

/* An importer with a fence and an unmap that take their time */
static long import_slowly(int fd)
{
	long handle = import_slow(bench.importer, fd, GOOD, SLOW_MS, SLOW_MS);

	must(handle, "import by the test importer");
	MUST(map(bench.importer, handle, NULL));
	return handle;
}

static void let_go(const long *handles, const int *fds, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		MUST(detach(bench.importer, handles[i]));
		close(fds[i]);
	}
}

/* One such importer a buffer */
static void measure_slow(const struct command_register *command, unsigned int count)
{
	__u64 size = bench.bar_size / count;
	long handles[MAX_BUFFERS];
	unsigned int round, i;
	int fds[MAX_BUFFERS];

	for (round = 0; round < ROUNDS; round++) {
		export_all(fds, count, size, round);
		for (i = 0; i < count; i++)
			handles[i] = import_slowly(fds[i]);
		samples[REVOKE_SLOW][round] = write_command(command, false);
		write_command(command, true);
		let_go(handles, fds, count);
	}
}

/* One such importer for each of the first @count functions */
static void measure_hot_reset(unsigned int count)
{
	long handles[ARRAY_SIZE(bench.pair)];
	int fds[ARRAY_SIZE(bench.pair)];
	unsigned int round, i;
	__u64 start;

	for (round = 0; round < ROUNDS; round++) {
		for (i = 0; i < count; i++) {
			fds[i] = vfio_dev_export_range(&bench.pair[i], PEER_BAR, 0, MIB);
			must(fds[i], "export");
			handles[i] = import_slowly(fds[i]);
		}
		start = now_ns();
		MUST(vfio_dev_hot_reset(&bench.pair[0]));
		samples[HOT_RESET][round] = now_ns() - start;
		let_go(handles, fds, count);
	}
}

/* Another device waits for an importer all the time. Who has that buffer polls it. */
static void measure_beside_a_stuck_one(const struct command_register *command)
{
	int fd = vfio_dev_export_range(&bench.pair[0], PEER_BAR, 0, MIB), status;
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	unsigned int round;
	__u64 start;
	long handle;
	pid_t pid;

	must(fd, "export");
	handle = import_slow(bench.importer, fd, GOOD, 0, DMA_BUF_TEST_MAX_DELAY_MS);
	must(handle, "import by the test importer");
	MUST(map(bench.importer, handle, NULL));
	pid = fork();
	if (!pid)
		_exit(vfio_dev_decode(&bench.pair[0], false) ? 1 : 0);
	if (pid < 0 || !wait_until(is_in_state(fd, "revoked"), LEAK_WAIT_MS))
		must(-EIO, "revoke by another process");

	measure_buffers(command, 1);
	for (round = 0; round < ROUNDS; round++) {
		start = now_ns();
		poll(&ready, 1, 0);
		samples[POLL][round] = now_ns() - start;
	}
	if (waitpid(pid, &status, WNOHANG) || unmap(bench.importer, handle))
		must(-EIO, "revoke that lasts");
	waitpid(pid, &status, 0);
	MUST(vfio_dev_decode(&bench.pair[0], true));
	MUST(detach(bench.importer, handle));
	close(fd);
}

static void print_head(void)
{
	printf("BAR%d of %s, %llu MiB; us, median of %d; export, map, unmap: for each dma-buf\n\n",
	       PEER_BAR, bench.owner.name, bench.bar_size / MIB, ROUNDS);
	printf("| n | export | map into iommufd | revoke all (decode off) | unmap + close | decode off with no dma-buf |\n");
	printf("| --- | --- | --- | --- | --- | --- |\n");
}

static void print_row(unsigned int count)
{
	printf("| %u ", count);
	if (bench.can_export)
		printf("| %.1f | %.1f | %.1f | %.1f ", median_us(EXPORT), median_us(MAP),
		       median_us(REVOKE_ALL), median_us(UNMAP_CLOSE));
	else
		printf("| - | - | - | - ");
	printf("| %.1f |\n", median_us(DECODE_OFF));
}

int main(void)
{
	const unsigned int counts[] = { 1, 16, MAX_BUFFERS };
	double restore_us[ARRAY_SIZE(counts)];
	struct command_register command;
	unsigned int i;

	setvbuf(stdout, NULL, _IOLBF, 0);
	open_devices();
	command = read_command();
	print_head();
	for (i = 0; i < ARRAY_SIZE(counts); i++) {
		if (bench.can_export)
			measure_buffers(&command, counts[i]);
		measure_decode_off(&command);
		print_row(counts[i]);
		restore_us[i] = median_us(RESTORE_ALL);
	}
	for (i = 0; bench.can_export && i < ARRAY_SIZE(counts); i++)
		printf("%sRestore of all (decode on), %u dma-bufs: %.1f\n", i ? "" : "\n", counts[i],
		       restore_us[i]);
	for (i = 0; bench.can_export && i < 2; i++) {
		measure_ranges(&command, i);
		printf("One dma-buf of %u ranges %s: map %.1f, revoke %.1f, restore %.1f\n",
		       MAX_RANGES, i ? "with holes" : "side by side", median_us(MAP),
		       median_us(REVOKE_ALL), median_us(RESTORE_ALL));
	}
	measure_reset();
	printf("\nVFIO_DEVICE_RESET with no dma-buf: %.1f, of which CPU time: %.1f\n",
	       median_us(RESET), median_us(RESET_CPU));
	for (i = 0; bench.importer >= 0 && i < ARRAY_SIZE(counts); i++) {
		measure_slow(&command, counts[i]);
		printf("Revoke with %u importers that take %u ms each: %.1f\n", counts[i],
		       SLOW_MS, median_us(REVOKE_SLOW));
	}
	for (i = 0; bench.importer >= 0 && bench.has_pair && i <= ARRAY_SIZE(bench.pair); i++) {
		measure_hot_reset(i);
		printf("Hot reset of 2 functions, %u with an importer that takes %u ms: %.1f\n", i,
		       SLOW_MS, median_us(HOT_RESET));
	}
	if (bench.importer >= 0 && bench.has_pair) {
		measure_beside_a_stuck_one(&command);
		printf("Beside a device that waits for an importer: revoke of 1: %.1f, poll of what is waited for: %.1f\n",
		       median_us(REVOKE_ALL), median_us(POLL));
	}
	if (!bench.can_export)
		printf("This kernel does not export dma-bufs from vfio-pci.\n");
	return EXIT_SUCCESS;
}
