// SPDX-License-Identifier: GPL-2.0-only
/*
 * Everything at once, against revoke.
 *
 * The owner of a device takes its BAR away and gives it back, round after round:
 *
 *     map -> fire -> nobody has it mapped -> undo -> everybody has it mapped
 *
 * Meanwhile workers export, import, map, copy, move devices between domains, die,
 * and reset the device too, for as long as there are rounds. What they do may fail,
 * but only as it is documented, and may not make a round go wrong.
 *
 * The initiator needs 100 ms for a transfer, and touches memory at the end of that.
 * One that is at work when the BAR has been taken away must not land, nor one that
 * is started then. Both are waited for before the BAR is given back, since what
 * iommufd had mapped is mapped again by then.
 *
 * The number of rounds is the first argument, or in STRESS_ROUNDS.
 */
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>

#include "importer.h"

#define ROUNDS		2000	/* all of them: on a slow machine it takes longer */
#define SLOW_ROUNDS	13	/* one of so many has an importer that is slow to let go */
#define STUCK_ROUNDS	29	/* one of so many has one that is stuck until it is rescued */
#define RESCUE_US	200000	/* at most, until then */
#define UNMAP_MS	20
#define FENCE_MS	60	/* enough to be seen pending after a revoke that did not wait */
#define LANDING_ROUNDS	61	/* one of so many sees a transfer land */
#define TRANSFER_ROUNDS	64	/* one of so many has one under way, and one starts one too late */
#define RACE_ROUNDS	8	/* one of so many starts one to where a race has mapped, too late */
#define PROMPT_US	(30 * 1000 * 1000ULL)
#define RETRY_MS	10000
#define CHILD_LIFE_US	1000000
#define RESET_US	4000000	/* at most, between the resets of a worker */
#define HOLD_US		20000	/* at most, with something mapped */
#define REST_US		250000	/* at most, between two things that a worker does */
#define COMPLAINTS	10

/* What a transfer can reach, and nothing else that is mapped for the initiator */
#define GUARD_OFFSET	0ULL
#define GUARD_IOVA	LAB_BAR_IOVA
#define RACE_OFFSET	SZ_4K
#define RACE_IOVA	(LAB_BAR_IOVA + 0x100000)
#define DEVICE_OFFSET	(16 * SZ_4K)
/* Room for the BAR, for each worker in each IOAS */
#define WORKER_IOVA(id)	(0x100000000ULL * ((id) + 1))
#define NR_IOAS		2
#define NR_WATCHES	4
#define STUCK_WATCH	3

enum claim {
	TAKEN,
	WAITED,
	STOPPED,
	RACED,
	BACK,
	RESTORED,
	DEAD,
	PROMPT,
	DOCUMENTED,
	CLEAN,
	NR_CLAIMS,
};

static const char * const claims[NR_CLAIMS] = {
	[TAKEN] = "after a revoke no importer has anything mapped",
	[WAITED] = "a revoke does not end before an importer that is stuck has let go",
	[STOPPED] = "no DMA lands while the BAR is away",
	[RACED] = "what is made during a revoke is not usable while the BAR is away",
	[BACK] = "between revokes everything can be mapped, and DMA lands",
	[RESTORED] = "what iommufd had mapped before a revoke is mapped after it",
	[DEAD] = "a dma-buf of a device that was closed stays dead",
	[PROMPT] = "every revoke ends in time",
	[DOCUMENTED] = "workers see documented errors only",
	[CLEAN] = "nothing is left behind",
};

static struct {
	atomic_ulong seen;
	atomic_ulong wrong;
} tally[NR_CLAIMS];

/* For messages */
static struct {
	unsigned int round;
	const char *trigger;
} present = { 0, "start" };

enum transfer {
	TRANSFER_NONE,
	TRANSFER_MAY_LAND,
	TRANSFER_MUST_NOT_LAND,
};

/**
 * struct storm - what owner and workers share
 * @lab: the devices of the owner; @lab.ioas is the first of @ioas
 * @ioas: address spaces that workers share
 * @can_prepare_domains: the IOMMU fills domains before they are attached
 * @importer: node of the test importer
 * @p2p: P2PDMA lets it map; else iommufd is the only one who does
 * @dmabuf: the whole BAR; exported anew under the same number
 * @open: read: to use the peer's fd; write: to close it
 * @calm: the peer is not reset but by who holds it
 * @stop: for workers
 * @watches: imports of @dmabuf which only the owner maps
 * @stuck: how often the owner has mapped the one of them that is stuck when told
 * @rescuer_go: starts the rescuer
 * @rescued: how often it has begun to unmap that one
 * @transfer: what is known of the last one
 * @transfer_offset: where in the BAR it would land
 * @guard: GUARD_IOVA is mapped, but while the BAR is away
 * @race: RACE_IOVA, likewise
 * @racer_go: starts the racer
 * @racer_done: its results can be read
 * @racer_round: it is told
 * @racer_fd: dma-buf that it exported, or -errno
 * @racer_import: handle of its import, or -errno
 */
struct storm {
	struct lab lab;
	__u32 ioas[NR_IOAS];
	bool can_prepare_domains;
	int importer;
	bool p2p;
	int dmabuf;
	pthread_rwlock_t open;
	pthread_mutex_t calm;
	atomic_bool stop;
	long watches[NR_WATCHES];
	unsigned long stuck;
	sem_t rescuer_go;
	atomic_ulong rescued;
	enum transfer transfer;
	__u64 transfer_offset;
	bool guard;
	bool race;
	sem_t racer_go;
	sem_t racer_done;
	unsigned int racer_round;
	int racer_fd;
	long racer_import;
};

struct worker {
	const char *name;
	void (*play)(struct worker *worker);
	struct storm *storm;
	unsigned int id;
	unsigned int seed;
	unsigned long times;
	/* Its own device, if it has one */
	struct vfio_dev dev;
	char dev_name[PCI_NAME_LEN];
	pthread_t thread;
};

static void tell(enum claim claim, bool right, const char *what, long ret)
{
	atomic_fetch_add(&tally[claim].seen, 1);
	if (!right && atomic_fetch_add(&tally[claim].wrong, 1) < COMPLAINTS)
		ksft_print_msg("round %u, %s: not true that %s: %s: %ld\n", present.round,
			       present.trigger, claims[claim], what, ret);
}

#define expect(claim, cond)	tell(claim, cond, #cond, 0)
#define expect_ok(claim, call)	expect_err(claim, 0, call)
#define expect_err(claim, err, call)					\
({									\
	long __ret = (call);						\
									\
	tell(claim, __ret == -(err), #call, __ret);			\
	__ret;								\
})

/* A worker's call. It fails as it may, or does not fail. */
#define may_fail(call, err1, err2)					\
({									\
	long __ret = (call);						\
									\
	tell(DOCUMENTED, __ret >= 0 || __ret == -(err1) || __ret == -(err2), #call, __ret);	\
	__ret;								\
})
#define may_be_revoked(call)	may_fail(call, ENODEV, ENODEV)
#define must_work(call)		may_fail(call, 0, 0)

static unsigned int any(unsigned int *seed, unsigned int below)
{
	return rand_r(seed) % below;
}

static long try_map_at(struct storm *storm, __u32 ioas, int dmabuf, __u64 start, __u64 length,
		       __u64 iova)
{
	return ioas_map_file(storm->lab.iommufd, ioas, IOAS_RW | IOAS_FIXED, dmabuf, start,
			     length, &iova);
}

/* 0 if all of it had been mapped, which a revoke does not change */
static long try_unmap(struct storm *storm, __u32 ioas, __u64 iova, __u64 length)
{
	__u64 unmapped = 0;
	int ret;

	ret = ioas_unmap(storm->lab.iommufd, ioas, iova, length, &unmapped);
	return ret ?: unmapped == length ? 0 : -ENODATA;
}

/*
 * Workers
 */

/* Whole and slices, in either IOAS or copied from one to the other */
static void play_mapper(struct worker *worker)
{
	struct storm *storm = worker->storm;
	__u64 pages = storm->lab.bar_size / SZ_4K;
	__u64 iova = WORKER_IOVA(worker->id);
	__u64 length = storm->lab.bar_size;
	unsigned int first = any(&worker->seed, NR_IOAS);
	__u32 from = storm->ioas[first];
	__u32 to = storm->ioas[!first];
	__u64 start = 0, at = iova;
	bool copied = false;

	if (any(&worker->seed, 4)) {
		start = any(&worker->seed, pages) * SZ_4K;
		length = (1 + any(&worker->seed, 64)) * SZ_4K;
		if (start + length > storm->lab.bar_size)
			length = storm->lab.bar_size - start;
	}
	if (may_be_revoked(try_map_at(storm, from, storm->dmabuf, start, length, iova)))
		return;
	if (any(&worker->seed, 2))
		copied = !must_work(ioas_copy(storm->lab.iommufd, to, from, IOAS_RW | IOAS_FIXED,
					      iova, length, &at));
	pause_us(any(&worker->seed, HOLD_US));
	if (any(&worker->seed, 2)) {
		must_work(try_unmap(storm, from, iova, length));
		if (copied)
			must_work(try_unmap(storm, to, iova, length));
	} else {
		if (copied)
			must_work(try_unmap(storm, to, iova, length));
		must_work(try_unmap(storm, from, iova, length));
	}
}

static int export_some(struct worker *worker, __u64 *size)
{
	struct storm *storm = worker->storm;
	struct vfio_region_dma_range ranges[3];
	unsigned int nr = 1 + any(&worker->seed, ARRAY_SIZE(ranges));
	unsigned int i;
	int fd;

	*size = 0;
	for (i = 0; i < nr; i++) {
		ranges[i].offset = (2 + i * 8) * SZ_4K;
		ranges[i].length = (1 + any(&worker->seed, 7)) * SZ_4K;
		*size += ranges[i].length;
	}
	pthread_rwlock_rdlock(&storm->open);
	fd = vfio_dev_export(&storm->lab.peer, PEER_BAR, O_RDWR, ranges, nr);
	pthread_rwlock_unlock(&storm->open);
	return fd;
}

/* A dma-buf of its own, whose fd goes at any time */
static void play_exporter(struct worker *worker)
{
	struct storm *storm = worker->storm;
	__u64 iova = WORKER_IOVA(worker->id);
	bool early = any(&worker->seed, 2);
	long handle, mapped;
	__u64 size;
	int fd, copy;

	fd = may_be_revoked(export_some(worker, &size));
	if (fd < 0)
		return;
	copy = dup(fd);
	close(fd);
	mapped = may_be_revoked(try_map_at(storm, storm->ioas[0], copy, 0, size, iova));
	handle = storm->p2p ? may_be_revoked(import(storm->importer, copy, DMA_BUF_TEST_PIN)) :
			      -EOPNOTSUPP;
	if (early)
		close(copy);
	if (handle >= 0)
		may_be_revoked(map(storm->importer, handle, NULL));
	if (!mapped)
		must_work(try_unmap(storm, storm->ioas[0], iova, size));
	if (handle >= 0)
		must_work(detach(storm->importer, handle));
	if (!early)
		close(copy);
}

/* The good ones, fast and slow; now and then one that has to be refused, or DMA */
static void play_importer(struct worker *worker)
{
	static const __u32 refused[] = {
		DMA_BUF_TEST_STATIC, DMA_BUF_TEST_NO_P2P, DMA_BUF_TEST_NO_INVALIDATE,
	};
	unsigned int slow = any(&worker->seed, 16) ? 0 : UNMAP_MS;
	struct storm *storm = worker->storm;
	__u8 data[XFER] = {};
	long handle;

	expect_err(DOCUMENTED, EOPNOTSUPP,
		   import(storm->importer, storm->dmabuf,
			  refused[any(&worker->seed, ARRAY_SIZE(refused))]));
	handle = may_be_revoked(import_slow(storm->importer, storm->dmabuf,
					    any(&worker->seed, 2) ? DMA_BUF_TEST_PIN : GOOD,
					    any(&worker->seed, 2) * slow,
					    any(&worker->seed, 2) * slow));
	if (handle < 0)
		return;
	may_be_revoked(map(storm->importer, handle, NULL));
	pause_us(any(&worker->seed, HOLD_US));
	if (!any(&worker->seed, 128))
		may_be_revoked(dma(storm->importer, handle, DMA_BUF_TEST_DMA_WRITE,
				   DEVICE_OFFSET, data));
	if (any(&worker->seed, 2))
		may_be_revoked(unmap(storm->importer, handle));
	/* Still mapped, told to unmap, or unmapped and perhaps revoked */
	if (any(&worker->seed, 2))
		tell(DOCUMENTED, true, "", map(storm->importer, handle, NULL));
	must_work(detach(storm->importer, handle));
}

/* Domains come and go below what is mapped */
static void play_mover(struct worker *worker)
{
	struct storm *storm = worker->storm;
	__u64 iova = WORKER_IOVA(worker->id);
	int iommufd = storm->lab.iommufd;
	__u32 ioas, hwpt;

	must_work(vfio_dev_attach(&worker->dev, storm->ioas[any(&worker->seed, NR_IOAS)]));
	if (storm->can_prepare_domains &&
	    !must_work(hwpt_alloc(iommufd, worker->dev.devid, storm->ioas[1], &hwpt))) {
		must_work(vfio_dev_attach(&worker->dev, hwpt));
		must_work(vfio_dev_attach(&worker->dev, storm->ioas[1]));
		must_work(iommufd_destroy(iommufd, hwpt));
	}
	must_work(vfio_dev_detach(&worker->dev));

	/* Mapped before there is a domain, and until the IOAS goes */
	if (must_work(ioas_alloc(iommufd, &ioas)))
		return;
	may_be_revoked(try_map_at(storm, ioas, storm->dmabuf, 0, 8 * SZ_4K, iova));
	must_work(vfio_dev_attach(&worker->dev, ioas));
	pause_us(any(&worker->seed, HOLD_US));
	must_work(vfio_dev_detach(&worker->dev));
	must_work(iommufd_destroy(iommufd, ioas));
}

static void play_resetter(struct worker *worker)
{
	struct storm *storm = worker->storm;

	pause_us(any(&worker->seed, RESET_US));
	pthread_mutex_lock(&storm->calm);
	may_fail(vfio_dev_reset(&storm->lab.peer), EAGAIN, EAGAIN);
	pthread_mutex_unlock(&storm->calm);
}

/* An importing process with a device, iommufd and importer of its own. Never returns. */
static void run_child(struct worker *worker, int dmabuf, int ready)
{
	struct storm *storm = worker->storm;
	unsigned int seed = worker->seed;
	char name[PCI_NAME_LEN];
	struct vfio_dev dev;
	int iommufd, node;
	long handle;
	__u32 ioas;

	/* What the owner closes must be closed then */
	munmap((void *)storm->lab.edu.regs, storm->lab.edu.regs_size);
	if (dup2(dmabuf, 1000) < 0 || dup2(ready, 1001) < 0 || close_range(3, 999, 0) ||
	    write(1001, "", 1) != 1)
		_exit(1);

	iommufd = iommufd_open();
	if (iommufd < 0 || vfio_dev_open(&dev, worker->dev_name, iommufd) ||
	    ioas_alloc(iommufd, &ioas) || vfio_dev_attach(&dev, ioas) ||
	    lab_find("VM_KDMA", pci_id_edu, name))
		_exit(2);
	node = importer_open(name);
	if (node < 0)
		_exit(3);
	for (;;) {
		__u64 iova = LAB_BAR_IOVA;

		ioas_map_file(iommufd, ioas, IOAS_RW | IOAS_FIXED, 1000, 0, storm->lab.bar_size,
			      &iova);
		/* Stuck, until it detaches or is killed */
		handle = import_slow(node, 1000, any(&seed, 2) ? DMA_BUF_TEST_PIN : GOOD, 0,
				     any(&seed, 4) ? 1 : DMA_BUF_TEST_MAX_DELAY_MS);
		if (handle >= 0)
			map(node, handle, NULL);
		pause_us(any(&seed, HOLD_US));
		if (handle >= 0)
			detach(node, handle);
		ioas_unmap(iommufd, ioas, iova, storm->lab.bar_size, NULL);
	}
}

/* Has a child that is killed wherever it is */
static void play_parent(struct worker *worker)
{
	struct storm *storm = worker->storm;
	int ready[2], status = 0;
	char byte;
	pid_t pid;

	if (must_work(pipe2(ready, O_CLOEXEC) ? -errno : 0))
		return;
	pthread_rwlock_rdlock(&storm->open);
	pid = fork();
	if (!pid)
		run_child(worker, storm->dmabuf, ready[1]);
	close(ready[1]);
	must_work(read(ready[0], &byte, 1) == 1 ? 0 : -EPIPE);
	pthread_rwlock_unlock(&storm->open);
	close(ready[0]);

	pause_us(any(&worker->seed, CHILD_LIFE_US));
	must_work(kill(pid, SIGKILL) ? -errno : 0);
	must_work(waitpid(pid, &status, 0) == pid ? 0 : -ECHILD);
	must_work(WIFSIGNALED(status) ? 0 : -WEXITSTATUS(status));
}

static void *run_worker(void *arg)
{
	struct worker *worker = arg;

	while (!atomic_load(&worker->storm->stop)) {
		worker->play(worker);
		worker->times++;
		pause_us(any(&worker->seed, REST_US));
	}
	return NULL;
}

/*
 * The racer, one step of which runs at the same time as the owner's revoke
 */

static void race(struct storm *storm)
{
	storm->racer_fd = -EAGAIN;
	storm->racer_import = -EAGAIN;
	switch (storm->racer_round % 3) {
	case 0:
		/* If there is nothing in the way to be mistaken for a success */
		if (storm->transfer == TRANSFER_NONE && !storm->race)
			storm->race = !may_be_revoked(try_map_at(storm, storm->ioas[0],
								 storm->dmabuf, RACE_OFFSET,
								 SZ_4K, RACE_IOVA));
		break;
	case 1:
		if (!storm->p2p)
			break;
		storm->racer_import = may_be_revoked(import(storm->importer, storm->dmabuf,
							    DMA_BUF_TEST_PIN));
		if (storm->racer_import >= 0)
			may_be_revoked(map(storm->importer, storm->racer_import, NULL));
		break;
	default:
		storm->racer_fd = must_work(vfio_dev_export_range(&storm->lab.peer, PEER_BAR,
								  RACE_OFFSET, SZ_4K));
	}
}

static void *run_racer(void *arg)
{
	struct storm *storm = arg;
	unsigned int seed = 99;

	for (;;) {
		sem_wait(&storm->racer_go);
		if (atomic_load(&storm->stop))
			return NULL;
		if (any(&seed, 2))
			pause_us(any(&seed, 200));
		race(storm);
		sem_post(&storm->racer_done);
	}
}

/*
 * The rescuer, without whom an importer that is stuck would stay so for longer than a
 * revoke may take. It is told when there is one, which is not detached before the revoke
 * is over.
 */
static void *run_rescuer(void *arg)
{
	struct storm *storm = arg;
	unsigned int seed = 98;
	long handle;

	for (;;) {
		sem_wait(&storm->rescuer_go);
		if (atomic_load(&storm->stop))
			return NULL;
		handle = storm->watches[STUCK_WATCH];
		expect(WAITED, wait_until(status(storm->importer, handle) &
					  DMA_BUF_TEST_INVALIDATED, PROMPT_US / 1000));
		pause_us(any(&seed, RESCUE_US));
		atomic_fetch_add(&storm->rescued, 1);
		expect_ok(WAITED, unmap(storm->importer, handle));
	}
}

static bool is_mapped(struct storm *storm, long handle)
{
	return status(storm->importer, handle) & DMA_BUF_TEST_MAPPED;
}

/* The BAR is still away */
static void check_raced(struct storm *storm)
{
	if (storm->racer_import >= 0) {
		expect(RACED, !is_mapped(storm, storm->racer_import));
		expect_ok(RACED, detach(storm->importer, storm->racer_import));
	}
	if (storm->racer_fd >= 0) {
		expect_err(RACED, ENODEV, import(storm->importer, storm->racer_fd, GOOD));
		expect_err(RACED, ENODEV, try_map_at(storm, storm->ioas[0], storm->racer_fd, 0,
						     SZ_4K, WORKER_IOVA(0) - SZ_4K));
		close(storm->racer_fd);
	}
}

/*
 * The owner
 */

static int import_watches(struct storm *storm)
{
	static const struct {
		__u32 flags, fence_ms, unmap_ms;
	} kinds[NR_WATCHES] = {
		{ GOOD, 0, 0 },
		{ DMA_BUF_TEST_PIN, FENCE_MS, 0 },
		{ GOOD, 0, UNMAP_MS },
		[STUCK_WATCH] = { GOOD, 0, DMA_BUF_TEST_MAX_DELAY_MS },
	};
	unsigned int i;

	for (i = 0; i < NR_WATCHES; i++) {
		storm->watches[i] = import_slow(storm->importer, storm->dmabuf, kinds[i].flags,
						kinds[i].fence_ms, kinds[i].unmap_ms);
		if (storm->watches[i] < 0)
			return storm->watches[i];
	}
	return 0;
}

/* Export the whole BAR, in place of what has been that so far */
static int export_bar(struct storm *storm)
{
	int fd;

	fd = vfio_dev_export_range(&storm->lab.peer, PEER_BAR, 0, storm->lab.bar_size);
	if (fd < 0)
		return fd;
	if (dup2(fd, storm->dmabuf) < 0)
		return -errno;
	close(fd);
	return import_watches(storm);
}

static int open_peer(struct storm *storm, const char *name)
{
	int ret;

	ret = lab_open_peer(&storm->lab, name);
	if (ret)
		return ret;
	/* A child would keep the device open */
	return madvise(storm->lab.bar, storm->lab.bar_size, MADV_DONTFORK) ? -errno : 0;
}

struct trigger {
	const char *name;
	unsigned int of_256;	/* how often */
	int (*fire)(struct storm *storm);
	int (*undo)(struct storm *storm);
	bool rough;		/* for who holds calm only */
	bool fatal;
	unsigned int times;
};

static int fire_decode(struct storm *storm)
{
	return vfio_dev_decode(&storm->lab.peer, false);
}

static int undo_decode(struct storm *storm)
{
	return vfio_dev_decode(&storm->lab.peer, true);
}

static int fire_d3hot(struct storm *storm)
{
	return vfio_dev_power(&storm->lab.peer, PCI_POWER_D3HOT);
}

static int undo_d3hot(struct storm *storm)
{
	return vfio_dev_power(&storm->lab.peer, PCI_POWER_D0);
}

static int fire_low_power(struct storm *storm)
{
	return vfio_dev_low_power(&storm->lab.peer, true);
}

static int undo_low_power(struct storm *storm)
{
	return vfio_dev_low_power(&storm->lab.peer, false);
}

static int fire_reset(struct storm *storm)
{
	return vfio_dev_reset(&storm->lab.peer);
}

static int fire_flr(struct storm *storm)
{
	return vfio_dev_flr(&storm->lab.peer);
}

/*
 * Gives up where somebody else has one of the locks. When it is over, a port of QEMU
 * may not tell that the link is up again.
 */
static int fire_hot_reset(struct storm *storm)
{
	int ret;

	wait_until((ret = vfio_dev_hot_reset(&storm->lab.peer)) != -EBUSY, RETRY_MS);
	return ret == -ENOTTY ? 0 : ret;
}

static int fire_close(struct storm *storm)
{
	pthread_rwlock_wrlock(&storm->open);
	lab_close_peer(&storm->lab);
	return 0;
}

static int undo_close(struct storm *storm)
{
	char name[PCI_NAME_LEN];
	int ret;

	pci_copy_name(name, storm->lab.peer.name);
	ret = open_peer(storm, name);
	pthread_rwlock_unlock(&storm->open);
	return ret;
}

static void *run_unbind(void *name)
{
	return (void *)(long)pci_unbind(name);
}

/* It waits for the device to be closed, not so the revoke that it begins with */
static int fire_unbind(struct storm *storm)
{
	struct vfio_dev *peer = &storm->lab.peer;
	bool revoked;
	void *unbound;
	pthread_t thread;
	int fd;

	if (pthread_create(&thread, NULL, run_unbind, peer->name))
		return -EAGAIN;
	revoked = wait_until((fd = vfio_dev_export_range(peer, PEER_BAR, 0, SZ_4K)) == -ENODEV ||
			     (fd >= 0 && close(fd)), RETRY_MS);
	fire_close(storm);
	pthread_join(thread, &unbound);
	return revoked ? (long)unbound : -ETIMEDOUT;
}

/* The first gets what the others leave */
static struct trigger triggers[] = {
	{ "decode", 0, fire_decode, undo_decode },
	{ "d3hot", 6, fire_d3hot, undo_d3hot, .rough = true },
	{ "low power", 4, fire_low_power, undo_low_power, .rough = true },
	{ "reset", 4, fire_reset, .rough = true },
	{ "hot reset", 1, fire_hot_reset, .rough = true },
	{ "flr", 4, fire_flr, .rough = true },
	{ "close", 1, fire_close, undo_close, .rough = true, .fatal = true },
	{ "unbind", 1, fire_unbind, undo_close, .rough = true, .fatal = true },
};

/* All of them in every 256 rounds, and not in a row */
static struct trigger *choose_trigger(unsigned int round)
{
	unsigned int nr = round * 41 % 256;
	unsigned int i;

	for (i = 1; i < ARRAY_SIZE(triggers); i++) {
		if (nr < triggers[i].of_256)
			return &triggers[i];
		nr -= triggers[i].of_256;
	}
	return &triggers[0];
}

static bool page_is_clear(struct storm *storm, __u64 offset)
{
	unsigned int i;

	for (i = 0; i < XFER; i += sizeof(__u64))
		if (*(volatile __u64 *)(storm->lab.bar + offset + i))
			return false;
	return true;
}

/* When the BAR answers. Where the transfer was to land is clean afterwards. */
static void end_transfer(struct storm *storm, enum claim claim)
{
	if (storm->transfer == TRANSFER_NONE || !edu_dma_is_idle(&storm->lab.edu))
		return;
	if (storm->transfer == TRANSFER_MUST_NOT_LAND)
		expect(claim, page_is_clear(storm, storm->transfer_offset));
	lab_clear(&storm->lab, storm->transfer_offset);
	storm->transfer = TRANSFER_NONE;
}

static void start_transfer(struct storm *storm, bool race, enum transfer transfer)
{
	if (storm->transfer != TRANSFER_NONE)
		return;
	expect_ok(BACK, edu_dma_start(&storm->lab.edu, EDU_TO_MEMORY,
				      race ? RACE_IOVA : GUARD_IOVA, XFER));
	storm->transfer_offset = race ? RACE_OFFSET : GUARD_OFFSET;
	storm->transfer = transfer;
}

static void check_landing(struct storm *storm, enum claim claim)
{
	expect_ok(claim, edu_dma(&storm->lab.edu, EDU_TO_MEMORY, GUARD_IOVA, XFER));
	expect(claim, lab_holds(storm->lab.bar + GUARD_OFFSET, 1));
	lab_clear(&storm->lab, GUARD_OFFSET);
}

/* A mapping that a transfer may still use is left as it is */
static void check_iommufd_maps(struct storm *storm)
{
	if (storm->transfer != TRANSFER_NONE)
		return;
	if (storm->race)
		expect_ok(BACK, try_unmap(storm, storm->ioas[0], RACE_IOVA, SZ_4K));
	if (storm->guard)
		expect_ok(BACK, try_unmap(storm, storm->ioas[0], GUARD_IOVA, SZ_4K));
	storm->race = false;
	storm->guard = !expect_ok(BACK, try_map_at(storm, storm->ioas[0], storm->dmabuf,
						   GUARD_OFFSET, SZ_4K, GUARD_IOVA));
}

static void map_stuck(struct storm *storm)
{
	if (expect_ok(BACK, map(storm->importer, storm->watches[STUCK_WATCH], NULL)))
		return;
	storm->stuck++;
	sem_post(&storm->rescuer_go);
}

static void check_watches_map(struct storm *storm, unsigned int round)
{
	/* One of the slow ones: with both, a wait for one would do for the other */
	unsigned int slow = 1 + round / SLOW_ROUNDS % (STUCK_WATCH - 1);

	expect_ok(BACK, map(storm->importer, storm->watches[0], NULL));
	if (round % SLOW_ROUNDS == 0)
		expect_ok(BACK, map(storm->importer, storm->watches[slow], NULL));
	if (round % STUCK_ROUNDS == 0)
		map_stuck(storm);
}

static void check_back(struct storm *storm, unsigned int round)
{
	end_transfer(storm, STOPPED);
	if (storm->transfer == TRANSFER_NONE && storm->guard && round % LANDING_ROUNDS == 1)
		check_landing(storm, RESTORED);
	check_iommufd_maps(storm);
	if (storm->p2p)
		check_watches_map(storm, round);
	if (storm->transfer == TRANSFER_NONE && round % LANDING_ROUNDS == 0)
		check_landing(storm, BACK);
	if (round % TRANSFER_ROUNDS == 1)
		start_transfer(storm, false, TRANSFER_MAY_LAND);
}

/* The BAR is away, and stays so until a transfer that must not land is over */
static void check_stopped(struct storm *storm, unsigned int round)
{
	/* Started in good time, but too late now */
	if (storm->transfer == TRANSFER_MAY_LAND && !edu_dma_is_idle(&storm->lab.edu))
		storm->transfer = TRANSFER_MUST_NOT_LAND;
	if (storm->race ? round % RACE_ROUNDS == 0 : round % TRANSFER_ROUNDS == 5)
		start_transfer(storm, storm->race, TRANSFER_MUST_NOT_LAND);
	if (storm->transfer == TRANSFER_MUST_NOT_LAND)
		expect_ok(STOPPED, edu_dma_wait(&storm->lab.edu));
}

/* A fence that is pending still would make the test importer say EBUSY */
static void check_taken(struct storm *storm, bool lasting)
{
	unsigned int i;

	for (i = 0; i < NR_WATCHES; i++) {
		expect(TAKEN, !is_mapped(storm, storm->watches[i]));
		if (lasting)
			expect_err(TAKEN, ENODEV, map(storm->importer, storm->watches[i], NULL));
	}
}

/* The device is open again: the old buffer is of no use, the new one is */
static void check_dead(struct storm *storm)
{
	unsigned int i;

	expect_err(DEAD, ENODEV, try_map_at(storm, storm->ioas[0], storm->dmabuf, 0, SZ_4K,
					    RACE_IOVA + SZ_4K));
	for (i = 0; i < NR_WATCHES; i++) {
		expect_err(DEAD, ENODEV, map(storm->importer, storm->watches[i], NULL));
		expect_ok(DEAD, detach(storm->importer, storm->watches[i]));
	}
	start_transfer(storm, false, TRANSFER_MUST_NOT_LAND);
	expect_ok(DEAD, edu_dma_wait(&storm->lab.edu));
	end_transfer(storm, DEAD);
	expect_ok(DEAD, try_unmap(storm, storm->ioas[0], GUARD_IOVA, SZ_4K));
	storm->guard = false;
	expect_ok(BACK, export_bar(storm));
}

static void fire(struct storm *storm, struct trigger *trigger, unsigned int round)
{
	bool racing = !trigger->rough;
	__u64 start = now_us();

	if (racing) {
		storm->racer_round = round;
		sem_post(&storm->racer_go);
	}
	expect_ok(TAKEN, trigger->fire(storm));
	expect(WAITED, atomic_load(&storm->rescued) == storm->stuck);
	expect(PROMPT, now_us() - start < PROMPT_US);
	check_taken(storm, trigger->undo);
	if (racing) {
		sem_wait(&storm->racer_done);
		check_raced(storm);
	}
	trigger->times++;
}

static void play_round(struct storm *storm, unsigned int round)
{
	struct trigger *trigger = choose_trigger(round);

	present.round = round;
	present.trigger = trigger->name;
	pthread_mutex_lock(&storm->calm);
	check_back(storm, round);
	if (!trigger->rough)
		pthread_mutex_unlock(&storm->calm);

	fire(storm, trigger, round);
	if (trigger->undo) {
		check_stopped(storm, round);
		expect_ok(BACK, trigger->undo(storm));
		end_transfer(storm, STOPPED);
	}
	if (trigger->fatal)
		check_dead(storm);
	if (trigger->rough)
		pthread_mutex_unlock(&storm->calm);
}

static void play_rounds(struct storm *storm, unsigned int rounds)
{
	__u64 start = now_us();
	unsigned int round;

	for (round = 1; round <= rounds; round++) {
		play_round(storm, round);
		if (round % 500 == 0)
			ksft_print_msg("%u rounds, %llu s\n", round,
				       (now_us() - start) / 1000000);
	}
}

/*
 * Setting up, and what is left
 */

static struct worker workers[] = {
	{ "map", play_mapper },
	{ "map", play_mapper },
	{ "export", play_exporter },
	{ "import", play_importer },
	{ "import", play_importer },
	{ "move", play_mover },
	{ "reset", play_resetter },
	{ "kill", play_parent },
};

static void must(int ret, const char *what)
{
	if (ret < 0)
		ksft_exit_fail_msg("%s: %s\n", what, strerror(-ret));
}

#define MUST(call) must(call, #call)

static void need(int ret, const char *what)
{
	if (ret >= 0)
		return;
	if (getenv("VMTEST"))
		must(ret, what);
	ksft_exit_skip("%s: %s\n", what, strerror(-ret));
}

#define NEED(call) need(call, #call)

/* Where it is not, whoever needs it is left out: watches are attached, and never map */
static bool p2p_is_possible(struct storm *storm)
{
	long handle;
	int ret;

	MUST(handle = import(storm->importer, storm->dmabuf, GOOD));
	ret = map(storm->importer, handle, NULL);
	if (ret != -EOPNOTSUPP || host_bridge_is_trusted())
		MUST(ret);
	MUST(detach(storm->importer, handle));
	return !ret;
}

static bool takes_part(struct worker *worker)
{
	return worker->storm->p2p || worker->play != play_importer;
}

static void open_worker_devices(struct storm *storm)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(workers); i++) {
		struct worker *worker = &workers[i];

		worker->storm = storm;
		worker->id = i;
		worker->seed = i + 1;
		worker->dev.fd = -1;
		if (worker->play == play_mover) {
			NEED(lab_find("VM_SWDMA", pci_id_edu, worker->dev_name));
			NEED(pci_bind_vfio(worker->dev_name));
			NEED(vfio_dev_open(&worker->dev, worker->dev_name, storm->lab.iommufd));
		} else if (worker->play == play_parent) {
			NEED(lab_find("VM_SWDMA2", pci_id_edu, worker->dev_name));
			NEED(pci_bind_vfio(worker->dev_name));
		}
	}
}

static void open_storm(struct storm *storm)
{
	struct lab *lab = &storm->lab;
	char name[PCI_NAME_LEN];

	lab->edu.dev.fd = -1;
	lab->peer.fd = -1;
	lab->buffers = dmabuf_count();
	NEED(lab->buffers);
	NEED(lab->iommufd = iommufd_open());
	/* Has all kinds of reset and power states */
	NEED(lab_choose_peer(lab, LAB_NEED_PM));
	NEED(lab_can_export(lab) && lab_can_map_file(lab) ? 0 : -ENOTTY);
	pci_copy_name(name, lab->peer.name);
	lab_close_peer(lab);
	MUST(open_peer(storm, name));
	lab_clear_bar(lab);

	NEED(lab_find("VM_DMA", pci_id_edu, name));
	NEED(pci_bind_vfio(name));
	NEED(edu_open(&lab->edu, name, lab->iommufd));
	MUST(ioas_alloc(lab->iommufd, &storm->ioas[0]));
	MUST(ioas_alloc(lab->iommufd, &storm->ioas[1]));
	lab->ioas = storm->ioas[0];
	MUST(vfio_dev_attach(&lab->edu.dev, lab->ioas));
	lab->ram = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			-1, 0);
	MUST(lab->ram == MAP_FAILED ? -errno : 0);
	MUST(lab_map_ram(lab, lab->ioas));
	MUST(lab_load(lab, 1));
	storm->can_prepare_domains = lab_can_prepare_domains(lab);

	NEED(lab_find("VM_KDMA", pci_id_edu, name));
	NEED(storm->importer = importer_open(name));
	/* Only the number: export_bar() puts the dma-buf there */
	MUST(storm->dmabuf = dup(STDOUT_FILENO));
	MUST(export_bar(storm));
	storm->p2p = p2p_is_possible(storm);
	open_worker_devices(storm);
}

static void let_loose(struct storm *storm, unsigned int rounds)
{
	pthread_t racer, rescuer;
	unsigned int i;

	MUST(-pthread_create(&racer, NULL, run_racer, storm));
	MUST(-pthread_create(&rescuer, NULL, run_rescuer, storm));
	for (i = 0; i < ARRAY_SIZE(workers); i++)
		if (takes_part(&workers[i]))
			MUST(-pthread_create(&workers[i].thread, NULL, run_worker, &workers[i]));

	play_rounds(storm, rounds);

	atomic_store(&storm->stop, true);
	sem_post(&storm->racer_go);
	sem_post(&storm->rescuer_go);
	pthread_join(racer, NULL);
	pthread_join(rescuer, NULL);
	for (i = 0; i < ARRAY_SIZE(workers); i++) {
		if (!takes_part(&workers[i]))
			continue;
		pthread_join(workers[i].thread, NULL);
		ksft_print_msg("%s: %lu times\n", workers[i].name, workers[i].times);
		expect(CLEAN, workers[i].times > 0);
	}
	for (i = 0; i < ARRAY_SIZE(triggers); i++)
		ksft_print_msg("%s: %u rounds\n", triggers[i].name, triggers[i].times);
}

static void close_storm(struct storm *storm)
{
	struct lab *lab = &storm->lab;
	__u64 unmapped;
	unsigned int i;

	/* As good as new */
	edu_dma_wait(&lab->edu);
	end_transfer(storm, STOPPED);
	expect(CLEAN, lab_first_set(lab, DEVICE_OFFSET + SZ_4K) == NOTHING);
	expect_ok(CLEAN, lab_load(lab, 1));
	check_iommufd_maps(storm);
	check_landing(storm, BACK);

	/* Nothing but what the owner has mapped */
	expect_ok(CLEAN, try_unmap(storm, lab->ioas, GUARD_IOVA, SZ_4K));
	expect_ok(CLEAN, try_unmap(storm, lab->ioas, LAB_RAM_IOVA, PAGE_BYTES));
	for (i = 0; i < NR_IOAS; i++) {
		expect_ok(CLEAN, ioas_unmap(lab->iommufd, storm->ioas[i], 0, UINT64_MAX,
					    &unmapped));
		expect(CLEAN, unmapped == 0);
	}
	lab_close_peer(lab);
	edu_close(&lab->edu);
	close_range(STDERR_FILENO + 1, ~0U, 0);
	expect(CLEAN, wait_until(dmabuf_count() == lab->buffers, LEAK_WAIT_MS));
}

/*
 * A claim that was never put to the test is not true. One about importers that map is
 * not put to the test where they cannot, but is wrong there if what else it has seen is.
 */
static void report(struct storm *storm)
{
	unsigned int i;

	for (i = 0; i < NR_CLAIMS; i++) {
		if (!storm->p2p && (i == TAKEN || i == WAITED) && !tally[i].wrong)
			ksft_test_result_skip("%s: P2PDMA does not trust the host bridge\n",
					      claims[i]);
		else
			ksft_test_result(tally[i].seen && !tally[i].wrong, "%s (%lu of %lu)\n",
					 claims[i], tally[i].seen - tally[i].wrong, tally[i].seen);
	}
}

int main(int argc, char **argv)
{
	static struct storm storm = {
		.open = PTHREAD_RWLOCK_INITIALIZER,
		.calm = PTHREAD_MUTEX_INITIALIZER,
	};
	const char *rounds = argc > 1 ? argv[1] : getenv("STRESS_ROUNDS");

	ksft_print_header();
	ksft_set_plan(NR_CLAIMS);
	sem_init(&storm.racer_go, 0, 0);
	sem_init(&storm.racer_done, 0, 0);
	sem_init(&storm.rescuer_go, 0, 0);
	open_storm(&storm);
	let_loose(&storm, rounds ? atoi(rounds) : ROUNDS);
	close_storm(&storm);
	report(&storm);
	ksft_finished();
}
