// SPDX-License-Identifier: GPL-2.0-only
/*
 * A storm of calls with random arguments: exports, mappings of files of all kinds,
 * copies, unmaps, whatever can be done with the fd of a dma-buf, with memory decode
 * going off and on, resets and reopens in between. A second thread exports, unmaps
 * and closes at the same time.
 *
 * What the first thread does depends on the seed alone, and it keeps a model of what
 * it has. The model does not know in which order the kernel looks at arguments: it
 * collects a reason for refusal for each thing that is wrong. With none, the call
 * must succeed, and otherwise fail for one of them. Only where the second thread can
 * come in between is a result judged by less than that.
 *
 * FUZZ_CALLS and FUZZ_SEED in the environment take the place of the defaults.
 */
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/udmabuf.h>

#include "lab.h"

#define DEFAULT_CALLS	10000
#define DEFAULT_SEED	20240612
#define STORM_TIMEOUT	3600
/* So many calls take less time than that, or never end */
#define CALLS_ALIVE	64
#define ALIVE_S		60

#define MAX_RANGES	256
#define MAX_GIVEN	(MAX_RANGES + 1)
#define NR_BUFFERS	16
#define NR_SHARED	8
#define MAX_MAPPINGS	128
#define MAX_REASONS	16
#define MAX_ERRNO	134
#define FILE_SIZE	(16 * SZ_4K)
#define MAX_SLICE	(16 * SZ_4K)

/* Fixed IOVAs are from here, where some of them collide */
#define WINDOW_AT	LAB_BAR_IOVA
#define WINDOW_PAGES	0x400

enum call {
	EXPORT, EXPORT_NO_FD, MAP, MAP_ODD_FILE, COPY, UNMAP,
	SYNC, SET_NAME, EXPORT_SYNC_FILE, IMPORT_SYNC_FILE, ODD_IOCTL, SEEK, MMAP, READ, WRITE,
	POLL, DUP,
	DECODE, RESET, REOPEN, ATTACH, DMA, SHARE, USE_SHARED,
	NR_CALLS,
};

static const struct {
	const char *name;
	/* Out of the sum of all */
	unsigned int weight;
} calls[NR_CALLS] = {
	[EXPORT]		= { "export", 200 },
	[EXPORT_NO_FD]		= { "export with no fd left", 10 },
	[MAP]			= { "map dma-buf", 200 },
	[MAP_ODD_FILE]		= { "map file of another kind", 100 },
	[COPY]			= { "copy", 80 },
	[UNMAP]			= { "unmap", 120 },
	[SYNC]			= { "sync", 20 },
	[SET_NAME]		= { "set name", 20 },
	[EXPORT_SYNC_FILE]	= { "export sync file", 20 },
	[IMPORT_SYNC_FILE]	= { "import sync file", 20 },
	[ODD_IOCTL]		= { "ioctl that is none", 20 },
	[SEEK]			= { "lseek", 20 },
	[MMAP]			= { "mmap", 20 },
	[READ]			= { "read", 10 },
	[WRITE]			= { "write", 10 },
	[POLL]			= { "poll", 20 },
	[DUP]			= { "dup", 20 },
	[DECODE]		= { "decode off or on", 30 },
	[RESET]			= { "reset", 1 },
	[REOPEN]		= { "close and open the device", 1 },
	[ATTACH]		= { "detach or attach", 4 },
	[DMA]			= { "start a DMA", 4 },
	[SHARE]			= { "share with the other thread", 20 },
	[USE_SHARED]		= { "use what is shared", 50 },
};

/* The storm has come where it should: these results must have been seen */
static const struct {
	enum call call;
	int error;
} wanted[] = {
	{ EXPORT, 0 }, { EXPORT, EINVAL }, { EXPORT, ENODEV }, { EXPORT, ENOTTY },
	{ EXPORT, EFAULT }, { EXPORT_NO_FD, EMFILE },
	{ MAP, 0 }, { MAP, EINVAL }, { MAP, ENODEV }, { MAP, EEXIST }, { MAP, ENOENT },
	{ MAP, EOPNOTSUPP }, { MAP, EOVERFLOW }, { MAP, E2BIG }, { MAP, EFAULT },
	{ MAP_ODD_FILE, 0 }, { MAP_ODD_FILE, EBADF }, { MAP_ODD_FILE, EINVAL },
	{ MAP_ODD_FILE, EPERM }, { MAP_ODD_FILE, EOPNOTSUPP },
	{ COPY, 0 }, { COPY, ENOENT }, { COPY, EPERM }, { COPY, EEXIST }, { COPY, EINVAL },
	{ UNMAP, 0 }, { UNMAP, ENOENT }, { UNMAP, EINVAL }, { UNMAP, EOVERFLOW },
	{ SYNC, 0 }, { SYNC, EINVAL }, { SET_NAME, 0 }, { SET_NAME, EINVAL },
	{ EXPORT_SYNC_FILE, 0 }, { EXPORT_SYNC_FILE, EINVAL },
	{ IMPORT_SYNC_FILE, 0 }, { IMPORT_SYNC_FILE, EINVAL },
	{ ODD_IOCTL, ENOTTY }, { SEEK, 0 }, { SEEK, EINVAL }, { MMAP, EINVAL },
	{ READ, EINVAL }, { WRITE, EINVAL }, { POLL, 0 }, { DUP, 0 },
	{ DECODE, 0 }, { RESET, 0 }, { REOPEN, 0 }, { ATTACH, 0 },
	{ SHARE, 0 }, { USE_SHARED, 0 }, { USE_SHARED, EBADF },
};

/* Why the call has to fail. Empty if it has to succeed. */
struct reasons {
	unsigned int nr;
	int errors[MAX_REASONS];
};

struct buffer {
	int fd;
	__u64 size;
	bool dead;
};

/**
 * struct odd_file - something that is no dma-buf of VFIO
 * @fd: of the file
 * @size: 0 if it has none
 * @error: of every attempt to map it, 0 if there is none
 * @write_error: of the attempt to map it for writing
 */
struct odd_file {
	int fd;
	__u64 size;
	int error;
	int write_error;
};

/* An area of iommufd; @writable is whether copies of it can be */
struct mapping {
	unsigned int ioas;
	__u64 iova;
	__u64 length;
	bool writable;
};

/* The devices come and go with the first, the third is not in the model */
enum { IOAS_ATTACHED, IOAS_EMPTY, IOAS_WILD, NR_IOAS };

struct fuzz {
	struct lab lab;
	__u64 seed;
	unsigned long nr_calls;
	unsigned long done;
	__u64 random;
	bool failed;
	unsigned long seen[NR_CALLS][MAX_ERRNO];

	__u8 *memory_end;
	bool decoding;
	bool attached;
	__u32 ioas[NR_IOAS];
	struct buffer buffers[NR_BUFFERS];
	struct odd_file odd[20];
	unsigned int nr_odd;
	int sync_file;
	struct mapping mappings[MAX_MAPPINGS];
	unsigned int nr_mappings;

	/* Held for what the other thread does, and for what it would disturb */
	pthread_mutex_t turn;
	pthread_t other;
	atomic_bool stop;
	atomic_int shared[NR_SHARED];
	unsigned long others_seen[2];
	atomic_bool other_failed;
};

/* Splitmix64: small, and the same everywhere */
static __u64 next_random(__u64 *state)
{
	__u64 z = *state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static __u64 below(struct fuzz *fuzz, __u64 limit)
{
	return next_random(&fuzz->random) % limit;
}

static bool one_in(struct fuzz *fuzz, unsigned int n)
{
	return !below(fuzz, n);
}

#define pick(_fuzz, ...)						\
({									\
	const __u64 __choice[] = { __VA_ARGS__ };			\
									\
	__choice[below(_fuzz, ARRAY_SIZE(__choice))];			\
})

/* Borders of types, of pages and of the BAR, and what is next to them */
static __u64 odd_number(struct fuzz *fuzz)
{
	__u64 border = pick(fuzz, 0, SZ_4K, fuzz->lab.bar_size, FILE_SIZE, 1ULL << 31,
			    1ULL << 32, 1ULL << 48, 1ULL << 63, -SZ_4K, ~0ULL,
			    next_random(&fuzz->random));

	return border + pick(fuzz, 0, 0, 1, -1, SZ_4K, -SZ_4K);
}

static void refuse(struct reasons *why, int error)
{
	if (why->nr < MAX_REASONS)
		why->errors[why->nr++] = error;
}

#define refuse_if(_cond, _why, _error)					\
do {									\
	if (_cond)							\
		refuse(_why, _error);					\
} while (0)

static bool is_expected(const struct reasons *why, long ret)
{
	unsigned int i;

	if (ret >= 0)
		return !why->nr;
	for (i = 0; i < why->nr; i++)
		if (ret == -why->errors[i])
			return true;
	return false;
}

static __attribute__((format(printf, 5, 6)))
void complain(struct fuzz *fuzz, enum call call, const struct reasons *why, long ret,
	      const char *fmt, ...)
{
	unsigned int i;
	va_list ap;

	fuzz->failed = true;
	printf("# call %lu, %s: %ld", fuzz->done, calls[call].name, ret);
	printf(why->nr ? ", expected one of" : ", expected success");
	for (i = 0; i < why->nr; i++)
		printf(" -%d", why->errors[i]);
	printf("\n#   decode %d attached %d ", fuzz->decoding, fuzz->attached);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
}

#define judge(_fuzz, _call, _why, _ret, _fmt, ...)					\
do {											\
	long __ret = (_ret);								\
											\
	(_fuzz)->seen[_call][__ret < 0 && __ret > -MAX_ERRNO ? -__ret : 0]++;		\
	if (!is_expected(_why, __ret))							\
		complain(_fuzz, _call, _why, __ret, _fmt, ##__VA_ARGS__);		\
} while (0)

#define check(_fuzz, _call, _cond)							\
do {											\
	if (!(_cond))									\
		complain(_fuzz, _call, &(struct reasons){}, 0, "%s", #_cond);		\
} while (0)

static long result(long ret)
{
	return ret < 0 ? -errno : ret;
}

/*
 * Export
 */

struct export {
	struct vfio_device_feature header;
	struct vfio_device_feature_dma_buf get;
	struct vfio_region_dma_range ranges[MAX_GIVEN];
};

#define export_size(_nr)	(offsetof(struct export, ranges) +		\
				 (_nr) * sizeof(struct vfio_region_dma_range))

static void make_export(struct fuzz *fuzz, struct export *arg, unsigned int nr)
{
	__u64 pages = fuzz->lab.bar_size / SZ_4K / MAX_GIVEN, i;

	arg->header.argsz = export_size(nr);
	arg->header.flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
	arg->get = (struct vfio_device_feature_dma_buf) {
		.region_index = PEER_BAR,
		.open_flags = pick(fuzz, O_RDONLY, O_WRONLY, O_RDWR) |
			      pick(fuzz, 0, O_CLOEXEC),
		.nr_ranges = nr,
	};
	for (i = 0; i < nr; i++) {
		arg->ranges[i].length = (1 + below(fuzz, pages)) * SZ_4K;
		arg->ranges[i].offset = below(fuzz, (fuzz->lab.bar_size -
					      arg->ranges[i].length) / SZ_4K + 1) * SZ_4K;
	}
}

/* @given is how many ranges there is memory for */
static void spoil_export(struct fuzz *fuzz, struct export *arg, unsigned int *given)
{
	struct vfio_region_dma_range *range = &arg->ranges[below(fuzz, *given)];

	switch (below(fuzz, 10)) {
	case 0:
		arg->header.argsz = pick(fuzz, 0, below(fuzz, arg->header.argsz),
					 arg->header.argsz - 1, arg->header.argsz + 1, UINT_MAX);
		break;
	case 1:
		arg->header.flags = pick(fuzz, 1ULL << below(fuzz, 32) | arg->header.flags,
					 VFIO_DEVICE_FEATURE_DMA_BUF,
					 VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF);
		break;
	case 2:
		arg->header.flags = VFIO_DEVICE_FEATURE_GET | (0x1000 + below(fuzz, 0x1000));
		break;
	case 3:
		arg->get.region_index = pick(fuzz, below(fuzz, VFIO_PCI_NUM_REGIONS), UINT_MAX,
					     odd_number(fuzz));
		break;
	case 4:
		arg->get.open_flags ^= 1U << below(fuzz, 32);
		break;
	case 5:
		arg->get.flags = 1U << below(fuzz, 32);
		break;
	case 6:
		arg->get.nr_ranges = pick(fuzz, 0, MAX_RANGES + 1, 1U << 28, (1U << 28) + 1,
					  UINT_MAX, odd_number(fuzz));
		arg->header.argsz = pick(fuzz, arg->header.argsz, UINT_MAX);
		break;
	case 7:
		range->offset = pick(fuzz, range->offset, odd_number(fuzz));
		range->length = odd_number(fuzz);
		break;
	case 8:
		/* The end is in the BAR, after a wrap */
		range->offset = -(1 + below(fuzz, 4)) * SZ_4K;
		range->length = (4 + below(fuzz, 4)) * SZ_4K;
		break;
	default:
		*given -= 1;
	}
}

static void judge_ranges(struct fuzz *fuzz, const struct export *arg, unsigned int given,
			 struct reasons *why, __u64 *size)
{
	const struct vfio_region_dma_range *range;
	unsigned int i;
	__u64 end;

	for (i = 0; i < arg->get.nr_ranges && i < given; i++) {
		range = &arg->ranges[i];
		refuse_if(!range->length || range->length % SZ_4K || range->offset % SZ_4K, why,
			  EINVAL);
		if (__builtin_add_overflow(range->offset, range->length, &end) ||
		    __builtin_add_overflow(*size, range->length, size)) {
			refuse(why, EOVERFLOW);
			refuse(why, EINVAL);
		}
		refuse_if(end > fuzz->lab.bar_size || *size > fuzz->lab.bar_size, why, EINVAL);
	}
}

static void judge_get(struct fuzz *fuzz, const struct export *arg, unsigned int given,
		      struct reasons *why, __u64 *size)
{
	const struct vfio_device_feature_dma_buf *get = &arg->get;

	refuse_if(get->flags, why, EINVAL);
	refuse_if(get->open_flags & ~(O_ACCMODE | O_CLOEXEC), why, EINVAL);
	refuse_if((get->open_flags & O_ACCMODE) == O_ACCMODE, why, EINVAL);
	refuse_if(!get->nr_ranges || get->nr_ranges > MAX_RANGES, why, EINVAL);
	refuse_if(arg->header.argsz < export_size((__u64)get->nr_ranges), why, EINVAL);
	refuse_if(get->nr_ranges > given, why, EFAULT);
	if (get->region_index != PEER_BAR) {
		refuse(why, ENODEV);
		/* One of less than a page is there, but has no page to give away */
		refuse_if(get->region_index <= VFIO_PCI_BAR5_REGION_INDEX, why, EINVAL);
	}
	judge_ranges(fuzz, arg, given, why, size);
}

/* Does it get as far as to make a dma-buf? A probe does not. */
static bool judge_export(struct fuzz *fuzz, const struct export *arg, unsigned int given,
			 struct reasons *why, __u64 *size)
{
	const __u32 ops = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET;
	const __u32 known = VFIO_DEVICE_FEATURE_MASK | ops | VFIO_DEVICE_FEATURE_PROBE;
	__u32 flags = arg->header.flags;

	refuse_if(arg->header.argsz < sizeof(arg->header), why, EINVAL);
	refuse_if(flags & ~known, why, EINVAL);
	if ((flags & VFIO_DEVICE_FEATURE_MASK) != VFIO_DEVICE_FEATURE_DMA_BUF) {
		refuse(why, ENOTTY);
		return false;
	}
	refuse_if(flags & VFIO_DEVICE_FEATURE_SET, why, EINVAL);
	if (flags & VFIO_DEVICE_FEATURE_PROBE)
		return false;
	refuse_if(!(flags & VFIO_DEVICE_FEATURE_GET), why, EINVAL);
	refuse_if(arg->header.argsz < export_size(0), why, EINVAL);
	judge_get(fuzz, arg, given, why, size);
	return true;
}

static void keep_buffer(struct fuzz *fuzz, int fd, __u64 size)
{
	struct buffer *buffer = &fuzz->buffers[below(fuzz, NR_BUFFERS)];

	if (buffer->fd >= 0)
		close(buffer->fd);
	*buffer = (struct buffer) {
		.fd = fd,
		.size = size,
	};
}

static void fuzz_export(struct fuzz *fuzz)
{
	unsigned int nr = one_in(fuzz, 16) ? MAX_RANGES : 1 + below(fuzz, 4);
	unsigned int given = nr;
	struct reasons why = {};
	struct export arg;
	__u64 size = 0;
	void *at;
	bool makes;
	long ret;

	make_export(fuzz, &arg, nr);
	if (one_in(fuzz, 2))
		spoil_export(fuzz, &arg, &given);
	makes = judge_export(fuzz, &arg, given, &why, &size);

	at = fuzz->memory_end - export_size(given);
	memcpy(at, &arg, export_size(given));
	ret = result(ioctl(fuzz->lab.peer.fd, VFIO_DEVICE_FEATURE, at));
	judge(fuzz, EXPORT, &why, ret,
	      "argsz %u flags %#x region %u open_flags %#x flags %#x ranges %u of %u: %#llx+%#llx",
	      arg.header.argsz, arg.header.flags, arg.get.region_index, arg.get.open_flags,
	      arg.get.flags, given, arg.get.nr_ranges, arg.ranges[0].offset,
	      arg.ranges[0].length);
	if (ret < 0 || !makes)
		return;
	check(fuzz, EXPORT, lseek(ret, 0, SEEK_END) == (off_t)size);
	check(fuzz, EXPORT, (fcntl(ret, F_GETFL) & O_ACCMODE) ==
			    (int)(arg.get.open_flags & O_ACCMODE));
	keep_buffer(fuzz, ret, size);
}

/* No number below the limit is free while the other thread waits for its turn */
static void fuzz_export_no_fd(struct fuzz *fuzz)
{
	const struct reasons why = { 1, { EMFILE } };
	struct rlimit limit, full;
	long ret;
	int next;

	pthread_mutex_lock(&fuzz->turn);
	next = dup(fuzz->lab.iommufd);
	close(next);
	getrlimit(RLIMIT_NOFILE, &limit);
	full = limit;
	full.rlim_cur = next;
	setrlimit(RLIMIT_NOFILE, &full);
	ret = vfio_dev_export_range(&fuzz->lab.peer, PEER_BAR, 0, SZ_4K);
	setrlimit(RLIMIT_NOFILE, &limit);
	judge(fuzz, EXPORT_NO_FD, &why, ret, "limit %d", next);
	if (ret >= 0)
		close(ret);
	pthread_mutex_unlock(&fuzz->turn);
}

/*
 * The model of the IOVA spaces
 */

static bool overlaps(const struct mapping *mapping, unsigned int ioas, __u64 first, __u64 last)
{
	return mapping->ioas == ioas && mapping->iova <= last &&
	       first <= mapping->iova + (mapping->length - 1);
}

/* The one with the lowest IOVA of all in the range, NULL if there is none */
static struct mapping *find_mapping(struct fuzz *fuzz, unsigned int ioas, __u64 first,
				    __u64 last)
{
	struct mapping *mapping, *found = NULL;

	for (mapping = fuzz->mappings; mapping < fuzz->mappings + fuzz->nr_mappings; mapping++)
		if (overlaps(mapping, ioas, first, last) &&
		    (!found || mapping->iova < found->iova))
			found = mapping;
	return found;
}

static void add_mapping(struct fuzz *fuzz, enum call call, unsigned int ioas, __u64 iova,
			__u64 length, bool writable)
{
	check(fuzz, call, iova % SZ_4K == 0);
	check(fuzz, call, !find_mapping(fuzz, ioas, iova, iova + (length - 1)));
	check(fuzz, call, fuzz->nr_mappings < MAX_MAPPINGS);
	if (fuzz->failed)
		return;
	fuzz->mappings[fuzz->nr_mappings++] = (struct mapping) {
		.ioas = ioas,
		.iova = iova,
		.length = length,
		.writable = writable,
	};
}

static void remove_mapping(struct fuzz *fuzz, struct mapping *mapping)
{
	*mapping = fuzz->mappings[--fuzz->nr_mappings];
}

/* What holds for every place that a mapping is asked to be at */
static void judge_place(struct fuzz *fuzz, unsigned int ioas, __u32 flags, __u64 iova,
			__u64 length, struct reasons *why)
{
	__u64 last;

	refuse_if(iova == ~0ULL, why, EOVERFLOW);
	if (!(flags & IOAS_FIXED) || !length || ioas >= NR_IOAS)
		return;
	refuse_if(iova % SZ_4K, why, EINVAL);
	if (__builtin_add_overflow(iova, length - 1, &last))
		refuse(why, EOVERFLOW);
	else
		refuse_if(find_mapping(fuzz, ioas, iova, last), why, EEXIST);
}

static void judge_flags(__u32 flags, struct reasons *why)
{
	refuse_if(flags & ~(IOAS_RW | IOAS_FIXED), why, EOPNOTSUPP);
	refuse_if(!(flags & IOAS_RW), why, EINVAL);
}

static __u64 window_iova(struct fuzz *fuzz)
{
	return WINDOW_AT + below(fuzz, WINDOW_PAGES) * SZ_4K;
}

/*
 * Map
 */

/* The structure, @tail bytes of zeroes or not, and then the end of memory */
struct map {
	struct iommu_ioas_map_file cmd;
	unsigned int ioas;
	unsigned int tail;
	__u8 filler;
};

static void make_map(struct fuzz *fuzz, struct map *map, int fd, __u64 size)
{
	__u64 pages = size / SZ_4K ?: 1, n;

	n = 1 + below(fuzz, pages);
	if (n * SZ_4K > MAX_SLICE && !one_in(fuzz, 8))
		n = 1 + below(fuzz, MAX_SLICE / SZ_4K);
	map->ioas = below(fuzz, IOAS_WILD);
	map->cmd = (struct iommu_ioas_map_file) {
		.size = sizeof(map->cmd),
		.flags = pick(fuzz, IOAS_RW, IOAS_RO, IOAS_WO, IOAS_RW) |
			 pick(fuzz, 0, IOAS_FIXED),
		.ioas_id = fuzz->ioas[map->ioas],
		.fd = fd,
		.start = below(fuzz, pages - n + 1) * SZ_4K,
		.length = n * SZ_4K,
		.iova = window_iova(fuzz),
	};
}

/* Where there is an IOMMU it wants pages, where there is none all the space is free */
static void spoil_map(struct fuzz *fuzz, struct map *map)
{
	switch (below(fuzz, 6)) {
	case 0:
		map->tail = below(fuzz, 64);
		map->filler = pick(fuzz, 0, 1);
		map->cmd.size = pick(fuzz, below(fuzz, sizeof(map->cmd)), UINT_MAX,
				     sizeof(map->cmd) + below(fuzz, 128));
		break;
	case 1:
		map->cmd.flags = pick(fuzz, IOAS_FIXED, 0,
				      map->cmd.flags | 1ULL << below(fuzz, 32));
		break;
	case 2:
		map->ioas = NR_IOAS;
		map->cmd.ioas_id = pick(fuzz, 0, UINT_MAX, fuzz->lab.peer.devid);
		break;
	case 3:
		map->cmd.start = odd_number(fuzz);
		map->cmd.length = pick(fuzz, map->cmd.length, odd_number(fuzz));
		break;
	case 4:
		map->cmd.length = odd_number(fuzz);
		break;
	default:
		map->cmd.flags |= IOAS_FIXED;
		if (map->ioas == IOAS_EMPTY)
			map->cmd.iova = pick(fuzz, -SZ_4K, -2 * SZ_4K, ~0ULL);
		else if (fuzz->attached)
			map->cmd.iova += pick(fuzz, 1, -1, SZ_4K / 2);
	}
}

static void judge_size(const struct map *map, struct reasons *why)
{
	__u64 there = sizeof(map->cmd) + map->tail;

	refuse_if(map->cmd.size < sizeof(map->cmd), why, EINVAL);
	refuse_if(map->cmd.size > there, why, EFAULT);
	refuse_if(map->cmd.size > sizeof(map->cmd) && map->tail && map->filler, why, E2BIG);
}

static void judge_map(struct fuzz *fuzz, const struct map *map, __u64 size, struct reasons *why)
{
	const struct iommu_ioas_map_file *cmd = &map->cmd;
	__u64 end;

	judge_size(map, why);
	judge_flags(cmd->flags, why);
	refuse_if(map->ioas == NR_IOAS, why, ENOENT);
	refuse_if(cmd->start == ~0ULL || cmd->length == ~0ULL, why, EOVERFLOW);
	refuse_if(!cmd->length || cmd->start % SZ_4K || cmd->length % SZ_4K, why, EINVAL);
	if (__builtin_add_overflow(cmd->start, cmd->length, &end)) {
		refuse(why, EOVERFLOW);
		refuse(why, EINVAL);
	}
	refuse_if(end > size, why, EINVAL);
	judge_place(fuzz, map->ioas, cmd->flags, cmd->iova, cmd->length, why);
}

static void do_map(struct fuzz *fuzz, enum call call, const struct map *map,
		   const struct reasons *why)
{
	const struct iommu_ioas_map_file *cmd = &map->cmd;
	struct iommu_ioas_map_file *arg;
	long ret;

	arg = (void *)(fuzz->memory_end - map->tail - sizeof(*arg));
	*arg = *cmd;
	memset(arg + 1, map->filler, map->tail);
	ret = result(ioctl(fuzz->lab.iommufd, IOMMU_IOAS_MAP_FILE, arg));
	judge(fuzz, call, why, ret,
	      "size %u+%u flags %#x ioas %u fd %d start %#llx length %#llx iova %#llx",
	      cmd->size, map->tail, cmd->flags, map->ioas, cmd->fd, cmd->start, cmd->length,
	      cmd->iova);
	if (!ret)
		add_mapping(fuzz, call, map->ioas, arg->iova, cmd->length,
			    cmd->flags & IOAS_WO);
}

static struct buffer *any_buffer(struct fuzz *fuzz)
{
	unsigned int i = below(fuzz, NR_BUFFERS), n;

	for (n = 0; n < NR_BUFFERS; n++, i++)
		if (fuzz->buffers[i % NR_BUFFERS].fd >= 0)
			break;
	return &fuzz->buffers[i % NR_BUFFERS];
}

static void fuzz_map(struct fuzz *fuzz)
{
	struct buffer *buffer = any_buffer(fuzz);
	struct reasons why = {};
	struct map map = {};

	make_map(fuzz, &map, buffer->fd, buffer->size);
	if (one_in(fuzz, 3))
		spoil_map(fuzz, &map);
	judge_map(fuzz, &map, buffer->size, &why);
	refuse_if(buffer->fd < 0, &why, EBADF);
	refuse_if(buffer->dead || !fuzz->decoding, &why, ENODEV);
	do_map(fuzz, MAP, &map, &why);
}

/* Alignment is no matter for a memfd where there is no IOMMU that wants it */
static void fuzz_map_odd_file(struct fuzz *fuzz)
{
	struct odd_file *file = &fuzz->odd[below(fuzz, fuzz->nr_odd)];
	struct reasons why = {};
	struct map map = {};

	make_map(fuzz, &map, file->fd, file->size);
	if (one_in(fuzz, 4))
		spoil_map(fuzz, &map);
	map.cmd.start &= -SZ_4K;
	map.cmd.length &= -SZ_4K;
	judge_map(fuzz, &map, file->size, &why);
	refuse_if(file->error, &why, file->error);
	refuse_if(file->write_error && map.cmd.flags & IOAS_WO, &why, file->write_error);
	do_map(fuzz, MAP_ODD_FILE, &map, &why);
}

/*
 * Copy and unmap
 */

/* A mapping as a whole, a part of it, or some place where there may be none */
static void choose_range(struct fuzz *fuzz, unsigned int *ioas, __u64 *iova, __u64 *length)
{
	struct mapping *mapping;
	__u64 skip;

	*ioas = below(fuzz, IOAS_WILD);
	*iova = window_iova(fuzz);
	*length = (1 + below(fuzz, 64)) * SZ_4K;
	if (!fuzz->nr_mappings || one_in(fuzz, 4))
		return;
	mapping = &fuzz->mappings[below(fuzz, fuzz->nr_mappings)];
	*ioas = mapping->ioas;
	*iova = mapping->iova;
	*length = mapping->length;
	switch (below(fuzz, 8)) {
	case 0:
		skip = below(fuzz, *length / SZ_4K) * SZ_4K;
		*iova += skip;
		*length -= skip;
		break;
	case 1:
		*length = (1 + below(fuzz, *length / SZ_4K)) * SZ_4K;
		break;
	case 2:
		*length += SZ_4K;
		break;
	case 3:
		*length = pick(fuzz, 0, -*iova, ~0ULL, -SZ_4K);
		break;
	}
}

/* Areas that follow each other without a gap are as good as one */
static bool covered(struct fuzz *fuzz, unsigned int ioas, __u64 iova, __u64 length,
		    bool *writable, unsigned int *pieces)
{
	struct mapping *mapping;
	__u64 n;

	*writable = true;
	for (*pieces = 0; length; ++*pieces) {
		mapping = find_mapping(fuzz, ioas, iova, iova);
		if (!mapping)
			return false;
		*writable &= mapping->writable;
		n = mapping->length - (iova - mapping->iova);
		n = n < length ? n : length;
		iova += n;
		length -= n;
	}
	return true;
}

static void add_copies(struct fuzz *fuzz, unsigned int dst, __u64 dst_iova, unsigned int src,
		       __u64 iova, __u64 length)
{
	const struct mapping *mapping;
	struct mapping from;
	__u64 n;

	for (; length && !fuzz->failed; length -= n, iova += n, dst_iova += n) {
		mapping = find_mapping(fuzz, src, iova, iova);
		from = *mapping;
		n = from.length - (iova - from.iova);
		n = n < length ? n : length;
		add_mapping(fuzz, COPY, dst, dst_iova, n, from.writable);
	}
}

static void fuzz_copy(struct fuzz *fuzz)
{
	struct iommu_ioas_copy cmd = { .size = sizeof(cmd) };
	unsigned int src, dst = below(fuzz, IOAS_WILD), pieces;
	struct reasons why = {};
	bool writable;
	__u64 last;
	long ret;

	choose_range(fuzz, &src, &cmd.src_iova, &cmd.length);
	cmd.flags = pick(fuzz, IOAS_RO, IOAS_RW, IOAS_WO) | pick(fuzz, 0, IOAS_FIXED);
	cmd.src_ioas_id = fuzz->ioas[src];
	cmd.dst_ioas_id = fuzz->ioas[dst];
	cmd.dst_iova = window_iova(fuzz);
	if (one_in(fuzz, 8))
		/* With CONFIG_IOMMUFD_TEST bit 16 is known, as MOCK_FLAGS_ACCESS_SYZ */
		cmd.flags = pick(fuzz, 0, IOAS_FIXED,
				 cmd.flags | (1ULL << below(fuzz, 32) & ~(1ULL << 16)));

	judge_flags(cmd.flags, &why);
	refuse_if(cmd.length == ~0ULL || cmd.src_iova == ~0ULL, &why, EOVERFLOW);
	refuse_if(!cmd.length || cmd.length % SZ_4K, &why, EINVAL);
	judge_place(fuzz, dst, cmd.flags, cmd.dst_iova, cmd.length, &why);
	if (cmd.length && __builtin_add_overflow(cmd.src_iova, cmd.length - 1, &last)) {
		refuse(&why, EOVERFLOW);
	} else if (!covered(fuzz, src, cmd.src_iova, cmd.length, &writable, &pieces)) {
		refuse(&why, ENOENT);
	} else {
		refuse_if(cmd.flags & IOAS_WO && !writable, &why, EPERM);
		if (!why.nr && fuzz->nr_mappings + pieces > MAX_MAPPINGS)
			return;
	}

	ret = result(ioctl(fuzz->lab.iommufd, IOMMU_IOAS_COPY, &cmd));
	judge(fuzz, COPY, &why, ret, "ioas %u to %u flags %#x iova %#llx length %#llx to %#llx",
	      src, dst, cmd.flags, cmd.src_iova, cmd.length, cmd.dst_iova);
	if (!ret)
		add_copies(fuzz, dst, cmd.dst_iova, src, cmd.src_iova, cmd.length);
}

/* From low to high, up to the first area that sticks out */
static void model_unmap(struct fuzz *fuzz, unsigned int ioas, __u64 first, __u64 last,
			struct reasons *why, __u64 *unmapped)
{
	struct mapping *mapping;

	*unmapped = 0;
	while ((mapping = find_mapping(fuzz, ioas, first, last))) {
		if (mapping->iova < first || mapping->iova + (mapping->length - 1) > last) {
			refuse(why, ENOENT);
			return;
		}
		*unmapped += mapping->length;
		remove_mapping(fuzz, mapping);
	}
	refuse_if(!*unmapped && (first || last != ~0ULL), why, ENOENT);
}

static void fuzz_unmap(struct fuzz *fuzz)
{
	struct iommu_ioas_unmap cmd = { .size = sizeof(cmd) };
	__u64 unmapped = 0, length, last;
	struct reasons why = {};
	unsigned int ioas;
	long ret;

	choose_range(fuzz, &ioas, &cmd.iova, &length);
	if (one_in(fuzz, 256)) {
		cmd.iova = 0;
		length = ~0ULL;
	}
	if (!cmd.iova && length == ~0ULL)
		model_unmap(fuzz, ioas, 0, ~0ULL, &why, &unmapped);
	else if (!length)
		refuse(&why, EINVAL);
	else if (length == ~0ULL || __builtin_add_overflow(cmd.iova, length - 1, &last))
		refuse(&why, EOVERFLOW);
	else
		model_unmap(fuzz, ioas, cmd.iova, last, &why, &unmapped);

	cmd.ioas_id = fuzz->ioas[ioas];
	cmd.length = length;
	ret = result(ioctl(fuzz->lab.iommufd, IOMMU_IOAS_UNMAP, &cmd));
	judge(fuzz, UNMAP, &why, ret, "ioas %u iova %#llx length %#llx", ioas, cmd.iova, length);
	if (!ret)
		check(fuzz, UNMAP, cmd.length == unmapped);
}

/*
 * What can be done with the fd of a dma-buf
 */

static void fuzz_sync(struct fuzz *fuzz, int fd)
{
	struct dma_buf_sync sync = {
		.flags = pick(fuzz, below(fuzz, 8), 1ULL << below(fuzz, 64)),
	};
	struct reasons why = {};

	refuse_if(sync.flags & ~(__u64)DMA_BUF_SYNC_VALID_FLAGS_MASK ||
		  !(sync.flags & DMA_BUF_SYNC_RW), &why, EINVAL);
	judge(fuzz, SYNC, &why, result(ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync)), "flags %#llx",
	      sync.flags);
}

static void fuzz_set_name(struct fuzz *fuzz, int fd)
{
	unsigned int len = below(fuzz, 2 * DMA_BUF_NAME_LEN);
	unsigned long cmd = pick(fuzz, DMA_BUF_SET_NAME_A, DMA_BUF_SET_NAME_B);
	char name[2 * DMA_BUF_NAME_LEN + 1] = "";
	struct reasons why = {};

	memset(name, 1 + below(fuzz, 255), len);
	/* The name has the zero at its end in it */
	refuse_if(len >= DMA_BUF_NAME_LEN, &why, EINVAL);
	judge(fuzz, SET_NAME, &why, result(ioctl(fd, cmd, name)), "%u bytes", len);
}

static __u32 sync_file_flags(struct fuzz *fuzz, struct reasons *why)
{
	__u32 flags = pick(fuzz, below(fuzz, 4), 1ULL << below(fuzz, 32));

	refuse_if(flags & ~DMA_BUF_SYNC_RW || !flags, why, EINVAL);
	return flags;
}

static void fuzz_export_sync_file(struct fuzz *fuzz, int fd)
{
	struct dma_buf_export_sync_file arg = {};
	struct reasons why = {};
	long ret;

	arg.flags = sync_file_flags(fuzz, &why);
	ret = result(ioctl(fd, DMA_BUF_IOCTL_EXPORT_SYNC_FILE, &arg));
	judge(fuzz, EXPORT_SYNC_FILE, &why, ret, "flags %#x", arg.flags);
	if (ret)
		return;
	if (fuzz->sync_file >= 0)
		close(fuzz->sync_file);
	fuzz->sync_file = arg.fd;
}

static void fuzz_import_sync_file(struct fuzz *fuzz, int fd)
{
	struct dma_buf_import_sync_file arg = { .fd = fuzz->sync_file };
	struct reasons why = {};

	arg.flags = sync_file_flags(fuzz, &why);
	if (one_in(fuzz, 4))
		arg.fd = pick(fuzz, -1, fd, fuzz->lab.iommufd);
	refuse_if(arg.fd != fuzz->sync_file || arg.fd < 0, &why, EINVAL);
	judge(fuzz, IMPORT_SYNC_FILE, &why,
	      result(ioctl(fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &arg)), "flags %#x fd %d",
	      arg.flags, arg.fd);
}

static void fuzz_odd_ioctl(struct fuzz *fuzz, int fd)
{
	const struct reasons why = { 1, { ENOTTY } };
	unsigned int cmd = _IO(DMA_BUF_BASE, 16 + below(fuzz, 240));

	judge(fuzz, ODD_IOCTL, &why, result(ioctl(fd, cmd, fuzz->memory_end - SZ_4K)), "%#x",
	      cmd);
}

/* For the size, and for nothing else */
static void fuzz_seek(struct fuzz *fuzz, int fd)
{
	int whence = pick(fuzz, SEEK_SET, SEEK_END, SEEK_CUR, SEEK_DATA, SEEK_HOLE);
	off_t offset = pick(fuzz, 0, 0, odd_number(fuzz));
	struct reasons why = {};

	refuse_if((whence != SEEK_SET && whence != SEEK_END) || offset, &why, EINVAL);
	judge(fuzz, SEEK, &why, result(lseek(fd, offset, whence)), "%d %#llx", whence,
	      (unsigned long long)offset);
}

static void fuzz_mmap(struct fuzz *fuzz, int fd)
{
	int prot = pick(fuzz, PROT_NONE, PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE);
	int flags = pick(fuzz, MAP_SHARED, MAP_PRIVATE);
	size_t length = pick(fuzz, SZ_4K, odd_number(fuzz));
	/* Fails for the size, for the file or for its access mode, never works */
	const struct reasons why = { 4, { EINVAL, EACCES, ENOMEM, EOVERFLOW } };
	void *va;

	va = mmap(NULL, length, prot, flags, fd, below(fuzz, 16) * SZ_4K);
	judge(fuzz, MMAP, &why, va == MAP_FAILED ? -errno : 0, "prot %d flags %d length %#zx",
	      prot, flags, length);
}

/* What the access mode does not allow is not tried */
static void fuzz_read(struct fuzz *fuzz, int fd)
{
	const struct reasons why = { 2, { EINVAL, EBADF } };
	char byte;

	judge(fuzz, READ, &why, result(read(fd, &byte, 1)), "fd %d", fd);
}

static void fuzz_write(struct fuzz *fuzz, int fd)
{
	const struct reasons why = { 2, { EINVAL, EBADF } };

	judge(fuzz, WRITE, &why, result(write(fd, "", 1)), "fd %d", fd);
}

/* No fence is ever pending, so everything is ready */
static void fuzz_poll(struct fuzz *fuzz, int fd)
{
	struct pollfd pfd = {
		.fd = fd,
		.events = pick(fuzz, POLLIN, POLLOUT, POLLIN | POLLOUT),
	};

	judge(fuzz, POLL, &(struct reasons){}, result(poll(&pfd, 1, 0)), "%#x", pfd.events);
	check(fuzz, POLL, pfd.revents == pfd.events);
}

/* The file lives on in the copy */
static void fuzz_dup(struct fuzz *fuzz, struct buffer *buffer)
{
	long ret = result(dup(buffer->fd));

	judge(fuzz, DUP, &(struct reasons){}, ret, "fd %d", buffer->fd);
	if (ret < 0)
		return;
	close(buffer->fd);
	buffer->fd = ret;
}

static void fuzz_file(struct fuzz *fuzz, enum call call)
{
	struct buffer *buffer = any_buffer(fuzz);
	int fd = buffer->fd;

	if (fd < 0)
		return;
	switch (call) {
	case SYNC:		return fuzz_sync(fuzz, fd);
	case SET_NAME:		return fuzz_set_name(fuzz, fd);
	case EXPORT_SYNC_FILE:	return fuzz_export_sync_file(fuzz, fd);
	case IMPORT_SYNC_FILE:	return fuzz_import_sync_file(fuzz, fd);
	case ODD_IOCTL:		return fuzz_odd_ioctl(fuzz, fd);
	case SEEK:		return fuzz_seek(fuzz, fd);
	case MMAP:		return fuzz_mmap(fuzz, fd);
	case READ:		return fuzz_read(fuzz, fd);
	case WRITE:		return fuzz_write(fuzz, fd);
	case POLL:		return fuzz_poll(fuzz, fd);
	default:		return fuzz_dup(fuzz, buffer);
	}
}

/*
 * What happens to the devices meanwhile
 */

static void fuzz_decode(struct fuzz *fuzz)
{
	bool on = !fuzz->decoding;

	judge(fuzz, DECODE, &(struct reasons){}, vfio_dev_decode(&fuzz->lab.peer, on), "%d", on);
	fuzz->decoding = on;
}

/* Comes back with decode as it was */
static void fuzz_reset(struct fuzz *fuzz)
{
	judge(fuzz, RESET, &(struct reasons){}, vfio_dev_reset(&fuzz->lab.peer), "-");
}

/* All that was exported is dead, and mapped nowhere; the areas stay */
static void fuzz_reopen(struct fuzz *fuzz)
{
	char name[PCI_NAME_LEN];
	unsigned int i;

	pci_copy_name(name, fuzz->lab.peer.name);
	pthread_mutex_lock(&fuzz->turn);
	vfio_dev_close(&fuzz->lab.peer);
	judge(fuzz, REOPEN, &(struct reasons){},
	      vfio_dev_open(&fuzz->lab.peer, name, fuzz->lab.iommufd), "%s", name);
	pthread_mutex_unlock(&fuzz->turn);
	fuzz->decoding = true;
	for (i = 0; i < NR_BUFFERS; i++)
		fuzz->buffers[i].dead = true;
}

static void fuzz_attach(struct fuzz *fuzz)
{
	struct vfio_dev *dev = &fuzz->lab.edu.dev;
	long ret;

	if (fuzz->attached)
		ret = vfio_dev_detach(dev);
	else
		ret = vfio_dev_attach(dev, fuzz->ioas[IOAS_ATTACHED]);
	judge(fuzz, ATTACH, &(struct reasons){}, ret, "%d", !fuzz->attached);
	fuzz->attached = !fuzz->attached;
}

/* One is under way most of the time, wherever it goes. The device is slow. */
static void fuzz_dma(struct fuzz *fuzz)
{
	judge(fuzz, DMA, &(struct reasons){},
	      edu_dma_start(&fuzz->lab.edu, EDU_TO_MEMORY, window_iova(fuzz), XFER), "-");
}

/*
 * The other thread closes fds that this one is using. What they are then is not
 * known, so they are used for nothing that matters.
 */

static long map_wild(struct fuzz *fuzz, int fd)
{
	__u64 iova = 0;

	return ioas_map_file(fuzz->lab.iommufd, fuzz->ioas[IOAS_WILD], IOAS_RW, fd, 0, SZ_4K,
			     &iova);
}

static long unmap_wild(struct fuzz *fuzz)
{
	return ioas_unmap(fuzz->lab.iommufd, fuzz->ioas[IOAS_WILD], 0, ~0ULL, NULL);
}

static void close_shared(struct fuzz *fuzz, unsigned int slot, int next)
{
	int fd = atomic_exchange(&fuzz->shared[slot], next);

	if (fd >= 0)
		close(fd);
}

static void fuzz_share(struct fuzz *fuzz)
{
	int fd = vfio_dev_export_range(&fuzz->lab.peer, PEER_BAR, 0, SZ_4K);

	judge(fuzz, SHARE, &(struct reasons){}, fd, "-");
	if (fd >= 0)
		close_shared(fuzz, below(fuzz, NR_SHARED), fd);
}

static void fuzz_use_shared(struct fuzz *fuzz)
{
	const struct reasons possible = { 8, { EBADF, EINVAL, ENODEV, EOPNOTSUPP, EPERM, ESPIPE,
					       ENOTTY, EBUSY } };
	struct dma_buf_sync sync = { .flags = DMA_BUF_SYNC_RW };
	int fd = fuzz->shared[below(fuzz, NR_SHARED)];
	long ret;

	switch (below(fuzz, 4)) {
	case 0:
		ret = unmap_wild(fuzz);
		break;
	case 1:
		ret = result(ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync));
		break;
	default:
		ret = map_wild(fuzz, fd);
	}
	judge(fuzz, USE_SHARED, ret < 0 ? &possible : &(struct reasons){}, ret, "fd %d", fd);
}

static long disturb(struct fuzz *fuzz, __u64 *random)
{
	unsigned int slot = next_random(random) % NR_SHARED;
	long ret = 0;

	switch (next_random(random) % 8) {
	case 0:
		ret = vfio_dev_export_range(&fuzz->lab.peer, PEER_BAR, 0, SZ_4K);
		if (ret >= 0)
			close_shared(fuzz, slot, ret);
		break;
	case 1:
		ret = unmap_wild(fuzz);
		if (ret == -EBUSY)
			ret = 0;
		break;
	case 2:
		ret = map_wild(fuzz, fuzz->shared[slot]);
		if (ret == -ENODEV || ret == -EBADF)
			ret = 0;
		break;
	default:
		close_shared(fuzz, slot, -1);
	}
	return ret;
}

static void *other_thread(void *arg)
{
	struct fuzz *fuzz = arg;
	__u64 random = ~fuzz->seed;
	long ret;

	while (!fuzz->stop) {
		pthread_mutex_lock(&fuzz->turn);
		ret = disturb(fuzz, &random);
		pthread_mutex_unlock(&fuzz->turn);
		fuzz->others_seen[ret < 0]++;
		if (ret < 0) {
			printf("# other thread: %ld\n", ret);
			fuzz->other_failed = true;
		}
		pause_us(1 + next_random(&random) % 1000);
	}
	return NULL;
}

/*
 * The storm
 */

static enum call choose_call(struct fuzz *fuzz)
{
	unsigned int sum = 0, i;
	__u64 at;

	for (i = 0; i < NR_CALLS; i++)
		sum += calls[i].weight;
	at = below(fuzz, sum);
	for (i = 0; at >= calls[i].weight; i++)
		at -= calls[i].weight;
	return i;
}

static void one_call(struct fuzz *fuzz)
{
	enum call call = choose_call(fuzz);

	/* Off for a while, on for longer: more can be done then */
	if (!fuzz->decoding && one_in(fuzz, 16))
		call = DECODE;
	if (fuzz->nr_mappings == MAX_MAPPINGS && (call == MAP || call == MAP_ODD_FILE))
		call = UNMAP;
	switch (call) {
	case EXPORT:		return fuzz_export(fuzz);
	case EXPORT_NO_FD:	return fuzz_export_no_fd(fuzz);
	case MAP:		return fuzz_map(fuzz);
	case MAP_ODD_FILE:	return fuzz_map_odd_file(fuzz);
	case COPY:		return fuzz_copy(fuzz);
	case UNMAP:		return fuzz_unmap(fuzz);
	case DECODE:		return fuzz_decode(fuzz);
	case RESET:		return fuzz_reset(fuzz);
	case REOPEN:		return fuzz_reopen(fuzz);
	case ATTACH:		return fuzz_attach(fuzz);
	case DMA:		return fuzz_dma(fuzz);
	case SHARE:		return fuzz_share(fuzz);
	case USE_SHARED:	return fuzz_use_shared(fuzz);
	default:		return fuzz_file(fuzz, call);
	}
}

static void add_odd_file(struct fuzz *fuzz, int fd, __u64 size, int error, int write_error)
{
	fuzz->odd[fuzz->nr_odd++] = (struct odd_file) {
		.fd = fd,
		.size = size,
		.error = error,
		.write_error = write_error,
	};
}

static int new_memfd(unsigned int seals)
{
	int fd = memfd_create("fuzz", MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, FILE_SIZE) || fcntl(fd, F_ADD_SEALS, seals))
		return -1;
	return fd;
}

static int open_again(int fd, int flags)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, flags);
}

static int new_udmabuf(int memfd)
{
	struct udmabuf_create create = {
		.memfd = memfd,
		.size = FILE_SIZE,
	};
	int dev = open("/dev/udmabuf", O_RDWR), fd;

	fd = dev < 0 ? -1 : ioctl(dev, UDMABUF_CREATE, &create);
	close(dev);
	return fd;
}

static int new_heap_buffer(void)
{
	struct dma_heap_allocation_data alloc = {
		.len = FILE_SIZE,
		.fd_flags = O_RDWR,
	};
	int dev = open("/dev/dma_heap/system", O_RDWR), ret;

	ret = dev < 0 ? -1 : ioctl(dev, DMA_HEAP_IOCTL_ALLOC, &alloc);
	close(dev);
	return ret ? -1 : (int)alloc.fd;
}

static void open_odd_files(struct __test_metadata *_metadata, struct fuzz *fuzz)
{
	int memfd = new_memfd(F_SEAL_SHRINK), foreign, pipes[2], i;

	ASSERT_EQ(0, pipe(pipes));
	add_odd_file(fuzz, memfd, FILE_SIZE, 0, 0);
	add_odd_file(fuzz, new_memfd(F_SEAL_SHRINK | F_SEAL_GROW), FILE_SIZE, 0, 0);
	add_odd_file(fuzz, new_memfd(F_SEAL_WRITE), FILE_SIZE, 0, EPERM);
	add_odd_file(fuzz, new_memfd(F_SEAL_FUTURE_WRITE), FILE_SIZE, 0, EPERM);
	add_odd_file(fuzz, open_again(memfd, O_RDONLY), FILE_SIZE, 0, EPERM);
	add_odd_file(fuzz, open_again(memfd, O_WRONLY), FILE_SIZE, EPERM, 0);
	add_odd_file(fuzz, open_again(memfd, O_PATH), FILE_SIZE, EBADF, 0);
	add_odd_file(fuzz, pipes[0], 0, EINVAL, 0);
	add_odd_file(fuzz, pipes[1], 0, EINVAL, 0);
	add_odd_file(fuzz, open("/", O_RDONLY | O_DIRECTORY), 0, EINVAL, 0);
	add_odd_file(fuzz, open("/dev/null", O_RDWR), 0, EINVAL, 0);
	add_odd_file(fuzz, eventfd(0, 0), 0, EINVAL, 0);
	add_odd_file(fuzz, epoll_create1(0), 0, EINVAL, 0);
	add_odd_file(fuzz, dup(fuzz->lab.iommufd), 0, EINVAL, 0);
	add_odd_file(fuzz, dup(fuzz->lab.edu.dev.fd), 0, EINVAL, 0);
	for (i = 0; i < fuzz->nr_odd; i++)
		ASSERT_LE(0, fuzz->odd[i].fd);

	foreign = new_udmabuf(memfd);
	if (foreign >= 0)
		add_odd_file(fuzz, foreign, FILE_SIZE, EOPNOTSUPP, 0);
	foreign = new_heap_buffer();
	if (foreign >= 0)
		add_odd_file(fuzz, foreign, FILE_SIZE, EOPNOTSUPP, 0);
	add_odd_file(fuzz, -1, FILE_SIZE, EBADF, 0);
	add_odd_file(fuzz, INT_MAX, FILE_SIZE, EBADF, 0);
}

static unsigned long long setting(const char *name, unsigned long long otherwise)
{
	const char *value = getenv(name);

	return value ? strtoull(value, NULL, 0) : otherwise;
}

FIXTURE(storm)
{
	struct lab lab;
	struct fuzz *fuzz;
	long fds;
	long buffers;
};

FIXTURE_SETUP(storm)
{
	const struct rlimit memlock = { RLIM_INFINITY, RLIM_INFINITY };
	struct fuzz *fuzz;
	__u8 *memory;
	int i;

	lab_open(_metadata, &self->lab, LAB_NEED_NOTHING);
	/* A mapping of the BAR would keep the device open, and be away while it is revoked */
	munmap(self->lab.bar, self->lab.bar_size);
	self->lab.bar = NULL;
	ASSERT_EQ(0, setrlimit(RLIMIT_MEMLOCK, &memlock));
	self->fds = lab_count_fds();
	self->buffers = dmabuf_count();

	fuzz = calloc(1, sizeof(*fuzz));
	ASSERT_NE(NULL, fuzz);
	self->fuzz = fuzz;
	fuzz->lab = self->lab;
	fuzz->seed = setting("FUZZ_SEED", DEFAULT_SEED);
	fuzz->nr_calls = setting("FUZZ_CALLS", DEFAULT_CALLS);
	fuzz->random = fuzz->seed;
	fuzz->decoding = true;
	fuzz->attached = true;
	fuzz->sync_file = -1;
	pthread_mutex_init(&fuzz->turn, NULL);
	for (i = 0; i < NR_BUFFERS; i++)
		fuzz->buffers[i].fd = -1;
	for (i = 0; i < NR_SHARED; i++)
		fuzz->shared[i] = -1;
	for (i = 0; i < NR_IOAS; i++)
		test_ioas_alloc(&fuzz->ioas[i]);
	test_attach(fuzz->ioas[IOAS_ATTACHED]);
	open_odd_files(_metadata, fuzz);

	memory = mmap(NULL, 4 * SZ_4K, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		      0);
	ASSERT_NE(MAP_FAILED, memory);
	fuzz->memory_end = memory + 3 * SZ_4K;
	ASSERT_EQ(0, mprotect(fuzz->memory_end, SZ_4K, PROT_NONE));
}

FIXTURE_TEARDOWN(storm)
{
	lab_close(_metadata, &self->lab);
}

static void print_seen(struct fuzz *fuzz)
{
	unsigned int i, error;

	for (i = 0; i < NR_CALLS; i++) {
		printf("# %s:", calls[i].name);
		for (error = 0; error < MAX_ERRNO; error++)
			if (fuzz->seen[i][error])
				printf(" %s %lu", error ? strerrorname_np(error) : "ok",
				       fuzz->seen[i][error]);
		printf("\n");
	}
	printf("# other thread: ok %lu\n", fuzz->others_seen[0]);
}

static void end_storm(struct fuzz *fuzz)
{
	unsigned int i;

	fuzz->stop = true;
	pthread_join(fuzz->other, NULL);
	for (i = 0; i < NR_IOAS; i++)
		ioas_unmap(fuzz->lab.iommufd, fuzz->ioas[i], 0, ~0ULL, NULL);
	for (i = 0; i < NR_BUFFERS; i++)
		close(fuzz->buffers[i].fd);
	for (i = 0; i < NR_SHARED; i++)
		close_shared(fuzz, i, -1);
	for (i = 0; i < fuzz->nr_odd; i++)
		close(fuzz->odd[i].fd);
	close(fuzz->sync_file);
}

TEST_F_TIMEOUT(storm, of_calls, STORM_TIMEOUT)
{
	struct fuzz *fuzz = self->fuzz;
	unsigned int i;
	int fd;

	TH_LOG("FUZZ_SEED=%llu FUZZ_CALLS=%lu", fuzz->seed, fuzz->nr_calls);
	ASSERT_EQ(0, pthread_create(&fuzz->other, NULL, other_thread, fuzz));
	for (; fuzz->done < fuzz->nr_calls && !fuzz->failed; fuzz->done++) {
		if (fuzz->done % CALLS_ALIVE == 0)
			alarm(ALIVE_S);
		one_call(fuzz);
	}
	alarm(0);
	end_storm(fuzz);
	self->lab.peer = fuzz->lab.peer;
	print_seen(fuzz);
	ASSERT_FALSE(fuzz->failed);
	ASSERT_FALSE(fuzz->other_failed);
	for (i = 0; i < ARRAY_SIZE(wanted); i++) {
		EXPECT_LE(1, fuzz->seen[wanted[i].call][wanted[i].error]) {
			TH_LOG("%s never %s", calls[wanted[i].call].name,
			       wanted[i].error ? strerrorname_np(wanted[i].error) : "succeeded");
		}
	}

	/* Nothing is left of it */
	EXPECT_TRUE(wait_until(dmabuf_count() == self->buffers, LEAK_WAIT_MS)) {
		TH_LOG("%ld dma-bufs, there were %ld", dmabuf_count(), self->buffers);
	}
	EXPECT_EQ(self->fds, lab_count_fds());

	/* And everything works */
	ASSERT_EQ(0, edu_dma_wait(&self->lab.edu));
	test_attach(self->lab.ioas);
	ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, true));
	self->lab.bar = vfio_dev_mmap(&self->lab.peer, PEER_BAR, &self->lab.bar_size);
	ASSERT_NE(NULL, self->lab.bar);
	lab_clear_bar(&self->lab);
	test_load(1);
	fd = test_export(0, self->lab.bar_size);
	test_map_at(self->lab.ioas, fd, 0, self->lab.bar_size, LAB_BAR_IOVA);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
	ASSERT_EQ(0, vfio_dev_reset(&self->lab.peer));
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

TEST_HARNESS_MAIN
