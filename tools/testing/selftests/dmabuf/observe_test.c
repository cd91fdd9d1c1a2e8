// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a person can see of a revoke, and who else is disturbed by a slow one: the
 * log, bufinfo, fdinfo and the trace events tell the same story.
 */
#include <linux/dma-buf.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "importer.h"
#include "observe.h"

#define SW_SYNC	"/sys/kernel/debug/sync/sw_sync"

/* As in drivers/dma-buf/sw_sync.c */
struct sw_sync_create_fence_data {
	__u32 value;
	char name[32];
	__s32 fence;
};

#define SW_SYNC_IOC_CREATE_FENCE	_IOWR('W', 0, struct sw_sync_create_fence_data)
#define SW_SYNC_IOC_INC			_IOW('W', 1, __u32)

#define SLOW_MS		5000	/* long enough for two messages */
#define PROMPT_MS	1500	/* not long enough to have waited for the slow one */
#define BOUND_MS	60000

FIXTURE(observe)
{
	struct lab lab;
	int fd;
	int kmsg;
	int dmabuf;
	char importer[PCI_NAME_LEN];
	char text[1 << 20];
};

/*
 * What is waited for is said twice at least, each time after a longer silence than
 * before. What is said of several importers at a time counts once.
 */
static bool grows(const char *text, const char *what)
{
	unsigned int said = 0, silence = 0, at, n = 0;

	while ((text = strstr(text, "has waited "))) {
		at = strtoul(text + strlen("has waited "), (char **)&text, 10);
		if (strncmp(text, what, strlen(what)) || (n && at == said))
			continue;
		if (at - said <= silence)
			return false;
		silence = at - said;
		said = at;
		n++;
	}
	return n >= 2;
}

#define expect_growing_silence(_text, _what)					\
do {										\
	const char *__text = (_text);						\
										\
	EXPECT_TRUE(grows(__text, _what)) {					\
		TH_LOG("%s", __text);						\
	}									\
} while (0)

/* How often the text has the word */
static unsigned int count(const char *text, const char *word)
{
	unsigned int n = 0;

	while ((text = strstr(text, word))) {
		text += strlen(word);
		n++;
	}
	return n;
}

/* What the kernel has said since the test began */
static const char *new_messages(int kmsg, char *text, size_t size)
{
	size_t len = 0;
	ssize_t n;

	/* A record each; one that was overwritten reads as EPIPE */
	while (len < size - 1 && ((n = read(kmsg, text + len, size - 1 - len)) > 0 ||
				  errno == EPIPE))
		len += n > 0 ? n : 0;
	text[len] = '\0';
	return text;
}

FIXTURE_SETUP(observe)
{
	lab_open_exporter(_metadata, &self->lab, LAB_NEED_NOTHING);
	REQUIRE(getenv("VM_KDMA") ? !lab_find("VM_KDMA", pci_id_edu, self->importer) :
				    !pci_find(pci_id_edu, 1, self->importer),
		"no second initiator");
	self->fd = importer_open(self->importer);
	REQUIRE(self->fd >= 0, "no test importer");
	self->kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	REQUIRE(self->kmsg >= 0, "no /dev/kmsg");
	lseek(self->kmsg, 0, SEEK_END);
	self->dmabuf = test_export(0, self->lab.bar_size);
}

FIXTURE_TEARDOWN(observe)
{
	trace(false);
	spit(TRACING "events/dma_buf/filter", "0");
	spit(TRACING "events/vfio_pci/filter", "0");
	lab_close(_metadata, &self->lab);
}

#define test_slurp(_path)	ASSERT_TRUE(slurp(_path, self->text, sizeof(self->text)))
/* All of it: a buffer of which somebody has the lock, if only for a moment, is not shown */
#define test_bufinfo()								\
	ASSERT_TRUE(wait_until(slurp(BUFINFO, self->text, sizeof(self->text)) &&	\
			       !line_of(self->text, "Attached Devices:", "busy"), BOUND_MS))
#define test_import(_flags, _fence_ms, _unmap_ms)				\
({										\
	long __handle = import_slow(self->fd, self->dmabuf, _flags, _fence_ms, _unmap_ms);	\
										\
	ASSERT_LE(0, __handle);							\
	(__u32)__handle;							\
})
#define test_decode(_on)	ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, _on))

#define start_decode_off(_pid)							\
do {										\
	(_pid) = fork();							\
	ASSERT_LE(0, (_pid));							\
	if (!(_pid))								\
		_exit(vfio_dev_decode(&self->lab.peer, false) ? 1 : 0);		\
	ASSERT_TRUE(wait_until(is_revoked(self->dmabuf), BOUND_MS));		\
} while (0)

static bool has_ended(pid_t pid, int *status)
{
	return waitpid(pid, status, WNOHANG) == pid;
}

#define test_end(_pid)								\
do {										\
	int __status = -1;							\
										\
	ASSERT_TRUE(wait_until(has_ended(_pid, &__status), BOUND_MS));		\
	ASSERT_EQ(0, __status);							\
} while (0)

static bool is_revoked(int dmabuf)
{
	return is_in_state(dmabuf, "revoked");
}

TEST_F_TIMEOUT(observe, states, LAB_TIMEOUT)
{
	EXPECT_TRUE(is_in_state(self->dmabuf, "live"));
	test_bufinfo();
	expect_line(self->text, "State: live");
	test_decode(false);
	EXPECT_TRUE(is_in_state(self->dmabuf, "revoked"));
	test_bufinfo();
	expect_line(self->text, "State: revoked");
	test_decode(true);
	EXPECT_TRUE(is_in_state(self->dmabuf, "live"));
	lab_close_peer(&self->lab);
	EXPECT_TRUE(is_in_state(self->dmabuf, "dead"));
	test_bufinfo();
	expect_line(self->text, "State: dead");
}

/* A line for each importer: iommufd, which maps by itself, and a driver */
TEST_F_TIMEOUT(observe, attachments, LAB_TIMEOUT)
{
	__u64 iova = LAB_BAR_IOVA;
	__u32 ioas, handle;

	ASSERT_EQ(0, ioas_alloc(self->lab.iommufd, &ioas));
	ASSERT_EQ(0, ioas_map_file(self->lab.iommufd, ioas, IOAS_RW | IOAS_FIXED, self->dmabuf,
				   0, SZ_4K, &iova));
	handle = test_import(DMA_BUF_TEST_PIN, 0, 0);
	test_bufinfo();
	expect_line(self->text, "pinned=1", "revocable=1", "state=live");
	expect_line(self->text, self->importer, "pinned=0 mapped=0 revocable=1");
	test_map(handle);
	ASSERT_TRUE(read_fdinfo(self->dmabuf, self->text, sizeof(self->text)));
	expect_line(self->text, "attachment:", "pinned=1", "revocable=1", "state=live");
	expect_line(self->text, "attachment:", self->importer, DMA_BUF_TEST_DRIVER,
		    "pinned=1 mapped=1");

	test_decode(false);
	test_bufinfo();
	expect_line(self->text, "pinned=1", "revocable=1", "state=revoked");
	expect_line(self->text, self->importer, "mapped=0");
	test_decode(true);
	test_bufinfo();
	expect_line(self->text, "pinned=1", "revocable=1", "state=live");
}

/* The log names who does not unmap, more and more seldom; so does bufinfo meanwhile */
TEST_F_TIMEOUT(observe, slow_unmap, LAB_TIMEOUT)
{
	pid_t pid;

	test_map(test_import(GOOD, 0, SLOW_MS));
	start_decode_off(pid);
	test_bufinfo();
	expect_line(self->text, "State: revoked");
	expect_line(self->text, self->importer, "mapped=1");
	test_end(pid);
	new_messages(self->kmsg, self->text, sizeof(self->text));
	expect_line(self->text, self->lab.peer.name, "has waited", "for the unmap of",
		    self->importer, DMA_BUF_TEST_DRIVER);
	expect_growing_silence(self->text, " s for the unmap of");
	test_decode(true);
}

/* The same for a fence, which does not keep bufinfo from being read either */
TEST_F_TIMEOUT(observe, slow_fence, LAB_TIMEOUT)
{
	__u64 start;
	pid_t pid;

	test_map(test_import(GOOD, SLOW_MS, SLOW_MS));
	start_decode_off(pid);
	start = now_us();
	test_bufinfo();
	EXPECT_GT(PROMPT_MS, (now_us() - start) / 1000);
	expect_line(self->text, "State: revoked");
	expect_line(self->text, "fence:", DMA_BUF_TEST_DRIVER, "unsignalled");
	test_end(pid);
	new_messages(self->kmsg, self->text, sizeof(self->text));
	expect_line(self->text, self->lab.peer.name, "has waited", "for a fence of",
		    DMA_BUF_TEST_DRIVER " (work)");
	expect_line(self->text, self->lab.peer.name, "has waited", "for the unmap of",
		    self->importer, DMA_BUF_TEST_DRIVER);
	expect_growing_silence(self->text, " s for");
	test_decode(true);
}

/*
 * A fence that userspace adds after the revoke has begun guards nothing. It is in a
 * buffer whose turn to be waited for has not come, and signals when the timeline is
 * closed.
 */
TEST_F_TIMEOUT(observe, late_fence, LAB_TIMEOUT)
{
	struct sw_sync_create_fence_data data = { .value = 1 };
	struct dma_buf_import_sync_file late = { .flags = DMA_BUF_SYNC_RW };
	int timeline, second, status = -1;
	pid_t pid;

	timeline = open(SW_SYNC, O_RDWR | O_CLOEXEC);
	REQUIRE(timeline >= 0, "no sw_sync");
	ASSERT_EQ(0, ioctl(timeline, SW_SYNC_IOC_CREATE_FENCE, &data));
	late.fd = data.fence;
	second = test_export(0, SZ_4K);
	test_map(test_import(GOOD, SLOW_MS, 0));

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(timeline);
		/* The second time there is nothing to be waited for at all */
		_exit(vfio_dev_decode(&self->lab.peer, false) ||
		      vfio_dev_reset(&self->lab.peer));
	}
	ASSERT_TRUE(wait_until(is_revoked(second), BOUND_MS));
	ASSERT_EQ(0, ioctl(second, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &late));
	EXPECT_TRUE(wait_until(has_ended(pid, &status), 3 * SLOW_MS));
	close(timeline);
	if (status < 0)
		test_end(pid);
	close(late.fd);
	close(second);
	test_decode(true);
}

/* A buffer is ready when its fences have signalled, and who polls it is told then */
TEST_F_TIMEOUT(observe, poll_waits_for_fences, LAB_TIMEOUT)
{
	struct sw_sync_create_fence_data data = { .value = 1 };
	struct dma_buf_import_sync_file sync = { .flags = DMA_BUF_SYNC_RW };
	struct pollfd ready = { .fd = self->dmabuf, .events = POLLIN | POLLOUT };
	int timeline, status;
	pid_t pid;

	timeline = open(SW_SYNC, O_RDWR | O_CLOEXEC);
	REQUIRE(timeline >= 0, "no sw_sync");
	EXPECT_EQ(1, poll(&ready, 1, 0));
	EXPECT_EQ(POLLIN | POLLOUT, ready.revents);
	ASSERT_EQ(0, ioctl(timeline, SW_SYNC_IOC_CREATE_FENCE, &data));
	sync.fd = data.fence;
	ASSERT_EQ(0, ioctl(self->dmabuf, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &sync));
	EXPECT_EQ(0, poll(&ready, 1, 0));

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(timeline);
		_exit(poll(&ready, 1, BOUND_MS) != 1);
	}
	pause_us(100000);
	EXPECT_FALSE(has_ended(pid, &status));
	close(timeline);
	test_end(pid);
	EXPECT_EQ(1, poll(&ready, 1, 0));
	EXPECT_EQ(POLLIN | POLLOUT, ready.revents);
	close(sync.fd);
}

/* Who polls a buffer meanwhile, of which an importer has the lock, can be killed */
TEST_F_TIMEOUT(observe, killed_in_a_poll, LAB_TIMEOUT)
{
	struct sw_sync_create_fence_data data = { .value = 1 };
	struct dma_buf_import_sync_file sync = { .flags = DMA_BUF_SYNC_RW };
	struct pollfd ready = { .fd = self->dmabuf, .events = POLLIN | POLLOUT };
	int timeline, status = 0;
	pid_t pid, poller;
	__u64 start;

	timeline = open(SW_SYNC, O_RDWR | O_CLOEXEC);
	REQUIRE(timeline >= 0, "no sw_sync");
	test_map(test_import(DMA_BUF_TEST_WAIT_TOLD, 0, SLOW_MS));
	ASSERT_EQ(0, ioctl(timeline, SW_SYNC_IOC_CREATE_FENCE, &data));
	sync.fd = data.fence;
	ASSERT_EQ(0, ioctl(self->dmabuf, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &sync));
	start_decode_off(pid);
	poller = fork();
	ASSERT_LE(0, poller);
	if (!poller)
		_exit(poll(&ready, 1, BOUND_MS));
	pause_us(100000);
	EXPECT_FALSE(has_ended(poller, &status));
	ASSERT_EQ(0, kill(poller, SIGKILL));
	start = now_us();
	ASSERT_TRUE(wait_until(has_ended(poller, &status), BOUND_MS));
	EXPECT_GT(PROMPT_MS, (now_us() - start) / 1000);
	EXPECT_TRUE(WIFSIGNALED(status));
	ASSERT_EQ(0, ioctl(timeline, SW_SYNC_IOC_INC, &data.value));
	test_end(pid);
	test_decode(true);
	close(sync.fd);
	close(timeline);
}

/* One that waits with the reservation lock held cannot be named, and is not waited for silently */
TEST_F_TIMEOUT(observe, slow_with_lock, LAB_TIMEOUT)
{
	pid_t pid;

	test_map(test_import(DMA_BUF_TEST_WAIT_LOCKED, 0, SLOW_MS));
	start_decode_off(pid);
	test_end(pid);
	new_messages(self->kmsg, self->text, sizeof(self->text));
	expect_line(self->text, self->lab.peer.name, "has waited", "for the unmap of an importer",
		    "reservation lock is busy");
	expect_growing_silence(self->text, " s for the unmap of an importer");
	test_decode(true);
}

/* Nor is it waited for silently by one who has not told it anything yet */
TEST_F_TIMEOUT(observe, lock_is_taken, LAB_TIMEOUT)
{
	pid_t revoker, unbinder;

	test_map(test_import(DMA_BUF_TEST_WAIT_LOCKED, 0, 2 * SLOW_MS));
	start_decode_off(revoker);
	/* The importer has the lock from here on, and the next change needs it. */
	ASSERT_TRUE(wait_until(line_of(new_messages(self->kmsg, self->text, sizeof(self->text)),
				       "reservation lock is busy"), BOUND_MS));
	unbinder = fork();
	ASSERT_LE(0, unbinder);
	if (!unbinder) {
		lab_close_peer(&self->lab);
		_exit(pci_unbind(self->lab.peer.name) ? 1 : 0);
	}
	test_end(revoker);
	ASSERT_TRUE(wait_until(is_in_state(self->dmabuf, "dead"), BOUND_MS));
	lab_close_peer(&self->lab);
	test_end(unbinder);
	new_messages(self->kmsg, self->text, sizeof(self->text));
	expect_line(self->text, self->lab.peer.name, "revoke of dma-buf", "has waited",
		    "for its reservation lock");
	expect_growing_silence(self->text, " s for its reservation lock");
}

/*
 * One that waits when it is told is named meanwhile. Until it returns nobody else waits,
 * nor is anybody else held to account for it then.
 */
TEST_F_TIMEOUT(observe, slow_callback, LAB_TIMEOUT)
{
	struct pollfd readable = { .fd = self->dmabuf, .events = POLLIN };
	unsigned int said;
	int status;
	pid_t pid;

	/* Who was the last to attach is told first. */
	test_map(test_import(GOOD, 0, 100));
	test_map(test_import(DMA_BUF_TEST_WAIT_TOLD, 0, SLOW_MS));
	start_decode_off(pid);
	ASSERT_TRUE(read_fdinfo(self->dmabuf, self->text, sizeof(self->text)));
	expect_line(self->text, "attachments:", "busy", "invalidate_mappings of",
		    self->importer, DMA_BUF_TEST_DRIVER, "is taking");
	test_slurp(BUFINFO);
	expect_line(self->text, "Attached Devices:", "busy", "invalidate_mappings of",
		    self->importer, DMA_BUF_TEST_DRIVER, "is taking");
	EXPECT_EQ(1, poll(&readable, 1, 0));
	EXPECT_TRUE(wait_until(line_of(new_messages(self->kmsg, self->text, sizeof(self->text)),
				       "invalidate_mappings of", self->importer,
				       DMA_BUF_TEST_DRIVER, "is taking"), SLOW_MS / 2));
	EXPECT_FALSE(has_ended(pid, &status));
	said = count(self->text, "is taking");
	test_end(pid);
	new_messages(self->kmsg, self->text, sizeof(self->text));
	expect_line(self->text, "invalidate_mappings of", "is taking");
	said += count(self->text, "is taking");
	/* After 1, 2 and 4 of 5 seconds */
	EXPECT_LE(2, said);
	EXPECT_GE(3, said);
	EXPECT_FALSE(line_of(self->text, "has waited"));
	test_decode(true);
}

/* Nothing is said of an importer that lets go in time */
TEST_F_TIMEOUT(observe, silence, LAB_TIMEOUT)
{
	test_map(test_import(GOOD, 100, 100));
	test_map(test_import(DMA_BUF_TEST_WAIT_TOLD, 0, 100));
	test_decode(false);
	new_messages(self->kmsg, self->text, sizeof(self->text));
	EXPECT_FALSE(line_of(self->text, "has waited"));
	EXPECT_FALSE(line_of(self->text, "invalidate_mappings of"));
	test_decode(true);
}

/* In a wait that signals do not end, as /proc has it */
static bool sleeps_for_good(pid_t pid)
{
	char path[64], text[1024];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	return slurp(path, text, sizeof(text)) && line_of(text, "State:", "D (disk sleep)");
}

/* A thread that touches the BAR meanwhile waits, and can be killed */
TEST_F_TIMEOUT(observe, killed_in_a_fault, LAB_TIMEOUT)
{
	pid_t pid, toucher;
	int status = 0;
	__u64 start;

	test_map(test_import(GOOD, 0, SLOW_MS));
	start_decode_off(pid);
	toucher = fork();
	ASSERT_LE(0, toucher);
	if (!toucher) {
		*(volatile __u8 *)self->lab.bar = 1;
		_exit(0);
	}
	ASSERT_TRUE(wait_until(sleeps_for_good(toucher), BOUND_MS));
	ASSERT_EQ(0, kill(toucher, SIGKILL));
	start = now_us();
	ASSERT_TRUE(wait_until(has_ended(toucher, &status), BOUND_MS));
	EXPECT_GT(PROMPT_MS, (now_us() - start) / 1000);
	EXPECT_TRUE(WIFSIGNALED(status));
	test_end(pid);
	test_decode(true);
	lab_clear_bar(&self->lab);
}

/* Open another device, of another reset, share its memory, take it back, and close */
static void use_other_device(struct __test_metadata *_metadata, FIXTURE_DATA(observe) *self)
{
	struct lab other = { .iommufd = self->lab.iommufd };
	char name[PCI_NAME_LEN];
	int fd;

	REQUIRE(!lab_find("VM_NVME", pci_id_nvme, name) && !lab_open_peer(&other, name),
		"no other device with memory");
	lab_clear_bar(&other);
	fd = test_fd(vfio_dev_export_range(&other.peer, PEER_BAR, 0, SZ_4K));
	test_map_at(self->lab.ioas, fd, 0, SZ_4K, LAB_BAR_IOVA);
	test_dma_write(LAB_BAR_IOVA);
	EXPECT_TRUE(lab_holds(other.bar, 1));
	lab_clear_bar(&other);
	ASSERT_EQ(0, vfio_dev_decode(&other.peer, false));
	ASSERT_EQ(0, vfio_dev_decode(&other.peer, true));
	test_dma_write(LAB_BAR_IOVA);
	EXPECT_TRUE(lab_holds(other.bar, 1));
	lab_clear_bar(&other);
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, SZ_4K);
	close(fd);
	lab_close_peer(&other);
}

/* The buffers of another device have nothing to do with it */
TEST_F_TIMEOUT(observe, others_go_on, LAB_TIMEOUT)
{
	int status = -1;
	__u32 stuck;
	pid_t pid;

	lab_open_importer(_metadata, &self->lab);
	test_load(1);
	stuck = test_import(GOOD, 0, DMA_BUF_TEST_MAX_DELAY_MS);
	test_map(stuck);
	start_decode_off(pid);
	use_other_device(_metadata, self);
	EXPECT_FALSE(has_ended(pid, &status));
	ASSERT_EQ(0, unmap(self->fd, stuck));
	test_end(pid);
	test_decode(true);
}

/* Nor with one that waits when it is told, and is not to be had meanwhile */
TEST_F_TIMEOUT(observe, others_go_on_beside_a_callback, LAB_TIMEOUT)
{
	int status = -1;
	pid_t pid;

	lab_open_importer(_metadata, &self->lab);
	test_load(1);
	test_map(test_import(DMA_BUF_TEST_WAIT_TOLD, 0, 4 * SLOW_MS));
	start_decode_off(pid);
	use_other_device(_metadata, self);
	EXPECT_FALSE(has_ended(pid, &status));
	test_end(pid);
	test_decode(true);
}

/* Nor has it to do with a close, which cannot but wait; the end of a process does that one */
TEST_F_TIMEOUT(observe, others_go_on_beside_a_close, LAB_TIMEOUT)
{
	int status = -1;
	__u32 stuck;
	pid_t pid;

	lab_open_importer(_metadata, &self->lab);
	test_load(1);
	stuck = test_import(GOOD, 0, DMA_BUF_TEST_MAX_DELAY_MS);
	test_map(stuck);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		pause();
		_exit(1);
	}
	lab_close_peer(&self->lab);
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_TRUE(wait_until(is_in_state(self->dmabuf, "dead"), BOUND_MS));
	use_other_device(_metadata, self);
	EXPECT_FALSE(has_ended(pid, &status));
	ASSERT_EQ(0, unmap(self->fd, stuck));
	ASSERT_TRUE(wait_until(has_ended(pid, &status), BOUND_MS));
}

TEST_F_TIMEOUT(observe, traced, LAB_TIMEOUT)
{
	__u64 iova = LAB_BAR_IOVA;
	char drained[96];
	__u32 ioas;
	int fd;

	REQUIRE(trace(true), "no tracepoints");
	/* Those that take next to no time are not what the importer below is waited for. */
	ASSERT_TRUE(spit(TRACING "events/vfio_pci/vfio_pci_dma_buf_fence_wait/filter",
			 "ns > 10000000"));
	ASSERT_TRUE(spit(TRACING "events/vfio_pci/vfio_pci_dma_buf_unmap_wait/filter",
			 "ns > 10000000"));
	ASSERT_TRUE(spit(TRACING "events/dma_buf/dma_buf_invalidated/filter", "ns > 0"));
	ASSERT_TRUE(spit(TRACING "events/iommufd/iommufd_dmabuf_revoked/filter", "ns > 0"));
	ASSERT_TRUE(spit(TRACING "events/iommufd/iommufd_dmabuf_restored/filter", "ns > 0"));
	EXPECT_EQ(-EOPNOTSUPP, import(self->fd, self->dmabuf, DMA_BUF_TEST_NO_P2P));
	/* Its fence is over before it unmaps, so that both are waited for */
	test_map(test_import(DMA_BUF_TEST_PIN, 50, 200));
	ASSERT_EQ(0, ioas_alloc(self->lab.iommufd, &ioas));
	ASSERT_EQ(0, ioas_map_file(self->lab.iommufd, ioas, IOAS_RW | IOAS_FIXED, self->dmabuf,
				   SZ_4K, SZ_4K, &iova));
	fd = test_export(0, SZ_4K);
	test_decode(false);
	test_decode(true);
	ASSERT_EQ(0, ioas_unmap(self->lab.iommufd, ioas, iova, SZ_4K, NULL));
	lab_close_peer(&self->lab);
	ASSERT_TRUE(trace(false));
	close(fd);
	test_slurp(TRACING "trace");

	/* Each event, with who it is about. A refusal has its reason. */
	expect_line(self->text, "dma_buf_export:", "size=4096 exp_name=");
	expect_line(self->text, "dma_buf_attach:", self->importer, "peer2peer=0", "ret=-95");
	expect_line(self->text, "dma_buf_attach:", self->importer,
		    "dynamic=1 peer2peer=1 revocable=1 ret=0");
	expect_line(self->text, "dma_buf_pin:", self->importer, DMA_BUF_TEST_DRIVER, "ret=0");
	expect_line(self->text, "dma_buf_map:", "size=", self->importer, DMA_BUF_TEST_DRIVER,
		    "ret=0");
	expect_line(self->text, "dma_buf_invalidate:", self->importer, "pinned=1 mapped=1");
	expect_line(self->text, "dma_buf_invalidated:", self->importer, "pinned=1 mapped=1 ns=");
	expect_line(self->text, "dma_buf_unmap:", self->importer, "pinned=1 mapped=0");
	expect_line(self->text, "dma_buf_unpin:", self->importer, "pinned=0 mapped=0");
	expect_line(self->text, "dma_buf_detach:", "iommu", "pinned=0 mapped=0");
	expect_line(self->text, "vfio_pci_dma_buf_export:", self->lab.peer.name,
		    "bar=2 size=4096 nr_ranges=1");
	expect_line(self->text, "vfio_pci_dma_buf_state:", self->lab.peer.name,
		    "size=", "state=revoked mapped=1");
	expect_line(self->text, "vfio_pci_dma_buf_fence_wait:", self->lab.peer.name, "context=");
	expect_line(self->text, "vfio_pci_dma_buf_unmap_wait:", self->lab.peer.name,
		    "mapped=1 ns=");
	expect_line(self->text, "iommufd_dmabuf_revoked:",
		    "start=0x1000 length=0x1000 unmapped=0x0 ns=");
	expect_line(self->text, "iommufd_dmabuf_restored:",
		    "start=0x1000 length=0x1000 ret=0 ns=");
	snprintf(drained, sizeof(drained), "dev=%s nr_buffers=2 size=%llu ns=",
		 self->lab.peer.name, self->lab.bar_size + SZ_4K);
	expect_line(self->text, "vfio_pci_dma_bufs_drained:", drained);
	expect_order(self->text, "state=live", "dma_buf_invalidate:", "dma_buf_invalidated:",
		     "state=revoked", "vfio_pci_dma_buf_fence_wait:",
		     "vfio_pci_dma_buf_unmap_wait:", "vfio_pci_dma_bufs_drained:",
		     "iommufd_dmabuf_restored:", "state=live", "state=dead");
}

/* Of an event that has a filter is seen what the filter lets pass, and nothing else */
TEST_F_TIMEOUT(observe, traced_by_field, LAB_TIMEOUT)
{
	char filter[128], state[128];
	struct stat second;
	int fd;

	fd = test_export(0, SZ_4K);
	ASSERT_EQ(0, fstat(fd, &second));
	REQUIRE(trace(true), "no tracepoints");
	snprintf(filter, sizeof(filter), "ino == %llu", (unsigned long long)second.st_ino);
	ASSERT_TRUE(spit(TRACING "events/vfio_pci/vfio_pci_dma_buf_state/filter", filter));
	snprintf(filter, sizeof(filter), "dev == \"%s\" && nr_buffers == 1 && ns > 0",
		 self->lab.peer.name);
	ASSERT_TRUE(spit(TRACING "events/vfio_pci/vfio_pci_dma_bufs_drained/filter", filter));
	ASSERT_TRUE(spit(TRACING "events/dma_buf/dma_buf_attach/filter", "ret < 0"));

	test_import(GOOD, 0, 0);
	EXPECT_EQ(-EOPNOTSUPP, import(self->fd, self->dmabuf, DMA_BUF_TEST_NO_P2P));
	test_decode(false);
	test_decode(true);
	close(fd);
	test_decode(false);
	test_decode(true);
	ASSERT_TRUE(trace(false));
	test_slurp(TRACING "trace");

	/* One buffer of two, the one revoke of two that was of one buffer, and the refusal */
	snprintf(state, sizeof(state), "vfio_pci_dma_buf_state: dev=%s ino=%llu ",
		 self->lab.peer.name, (unsigned long long)second.st_ino);
	EXPECT_EQ(2, count(self->text, state));
	EXPECT_EQ(2, count(self->text, "vfio_pci_dma_buf_state:"));
	expect_line(self->text, "vfio_pci_dma_bufs_drained:", "nr_buffers=1");
	EXPECT_EQ(1, count(self->text, "vfio_pci_dma_bufs_drained:"));
	expect_line(self->text, "dma_buf_attach:", "ret=-95");
	EXPECT_EQ(1, count(self->text, "dma_buf_attach:"));
}

/* Counts the events that pass the filter, as perf and bpftrace do; or -1 */
static int open_event(const char *event, const char *filter)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_TRACEPOINT, .size = sizeof(attr) };
	char path[128];
	int fd;

	snprintf(path, sizeof(path), TRACING "events/%s/id", event);
	attr.config = lab_read_number(path, "%ld");
	fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
	if (fd >= 0 && ioctl(fd, PERF_EVENT_IOC_SET_FILTER, filter)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static __u64 events_of(int fd)
{
	__u64 n = 0;

	return read(fd, &n, sizeof(n)) == sizeof(n) ? n : ~0ULL;
}

TEST_F_TIMEOUT(observe, counted_by_field, LAB_TIMEOUT)
{
	int refused, drained;

	REQUIRE(!access(TRACING "events/dma_buf", F_OK), "no tracepoints");
	REQUIRE(!access("/proc/sys/kernel/perf_event_paranoid", F_OK), "no perf events");
	refused = test_fd(open_event("dma_buf/dma_buf_attach", "ret < 0"));
	drained = test_fd(open_event("vfio_pci/vfio_pci_dma_bufs_drained",
				     "nr_buffers == 1 && ns > 0"));
	test_import(GOOD, 0, 0);
	EXPECT_EQ(-EOPNOTSUPP, import(self->fd, self->dmabuf, DMA_BUF_TEST_NO_P2P));
	test_decode(false);
	test_decode(true);
	EXPECT_EQ(1, events_of(refused));
	EXPECT_EQ(1, events_of(drained));
	close(refused);
	close(drained);
}

TEST_HARNESS_MAIN
