// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who holds what for how long: processes that die at any time, fds that travel,
 * and everything closed in every order. Each test ends with a look for dma-bufs
 * that nobody has any more.
 */
#include <signal.h>

#include "lab.h"

#define PROMPT_US	(20 * 1000 * 1000ULL)
#define CHILD_WAIT_MS	30000
#define LOOPS		5

/* A message of one byte with an fd */
struct fd_message {
	char byte;
	char control[CMSG_SPACE(sizeof(int))];
	struct iovec iov;
	struct msghdr msg;
};

static void fd_message_init(struct fd_message *m)
{
	*m = (struct fd_message) {
		.iov = { .iov_base = &m->byte, .iov_len = 1 },
		.msg = {
			.msg_iov = &m->iov,
			.msg_iovlen = 1,
			.msg_control = m->control,
			.msg_controllen = sizeof(m->control),
		},
	};
}

static int send_fd(int sock, int fd)
{
	struct cmsghdr *cmsg;
	struct fd_message m;

	fd_message_init(&m);
	cmsg = CMSG_FIRSTHDR(&m.msg);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	return sendmsg(sock, &m.msg, 0) == 1 ? 0 : -errno;
}

static int receive_fd(int sock)
{
	struct cmsghdr *cmsg;
	struct fd_message m;
	int fd;

	fd_message_init(&m);
	if (recvmsg(sock, &m.msg, MSG_CMSG_CLOEXEC) != 1)
		return -EPIPE;
	cmsg = CMSG_FIRSTHDR(&m.msg);
	if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS)
		return -EBADMSG;
	memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
	return fd;
}

static int send_byte(int sock)
{
	return send(sock, "", 1, MSG_NOSIGNAL) == 1 ? 0 : -errno;
}

/* A receive that cannot take for ever */
static int receive_byte(int sock)
{
	char byte;

	return recv(sock, &byte, 1, 0) == 1 ? 0 : -EPIPE;
}

static int make_sockets(int socks[2])
{
	struct timeval limit = { .tv_sec = CHILD_WAIT_MS / 1000 };

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks))
		return -errno;
	if (setsockopt(socks[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) ||
	    setsockopt(socks[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)))
		return -errno;
	return 0;
}

static bool is_dead(pid_t pid)
{
	return waitpid(pid, NULL, WNOHANG) == pid;
}

static int kill_hard(pid_t pid)
{
	if (kill(pid, SIGKILL))
		return -errno;
	return wait_until(is_dead(pid), CHILD_WAIT_MS) ? 0 : -ETIMEDOUT;
}

/* Tests of this file open the devices themselves, some of them in a child */
FIXTURE(lifetime)
{
	struct lab lab;
	char edu[PCI_NAME_LEN];
	int socks[2];
	pid_t child;
};

FIXTURE_SETUP(lifetime)
{
	lab_open_exporter(_metadata, &self->lab, LAB_NEED_NOTHING);
	REQUIRE(!lab_find("VM_DMA", pci_id_edu, self->edu) && !pci_bind_vfio(self->edu),
		"no DMA initiator");
	self->lab.ram = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->lab.ram);
	ASSERT_EQ(0, make_sockets(self->socks));
}

FIXTURE_TEARDOWN(lifetime)
{
	if (self->child > 0)
		kill_hard(self->child);
	lab_close(_metadata, &self->lab);
}

/* An importer from scratch, without the harness so that a child can use it */
static int open_importer(struct lab *lab, const char *edu, int iommufd)
{
	int ret;

	ret = edu_open(&lab->edu, edu, iommufd);
	if (!ret)
		ret = ioas_alloc(iommufd, &lab->ioas);
	if (!ret)
		ret = vfio_dev_attach(&lab->edu.dev, lab->ioas);
	lab->iommufd = iommufd;
	if (!ret)
		ret = lab_map_ram(lab, lab->ioas);
	return ret ?: lab_load(lab, 1);
}

static int import(struct lab *lab, int dmabuf)
{
	__u64 iova = LAB_BAR_IOVA;

	return ioas_map_file(lab->iommufd, lab->ioas, IOAS_RW | IOAS_FIXED, dmabuf, 0, SZ_4K,
			     &iova);
}

/* An importing process: gets a dma-buf, and reports after each DMA. Never returns. */
static void run_importer(const char *edu, int sock)
{
	struct lab lab = { .edu.dev.fd = -1 };
	int dmabuf, iommufd, ret;

	lab.ram = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);
	dmabuf = receive_fd(sock);
	iommufd = iommufd_open();
	if (dmabuf < 0 || iommufd < 0)
		_exit(1);
	ret = open_importer(&lab, edu, iommufd);
	if (!ret)
		ret = import(&lab, dmabuf);
	while (!ret) {
		ret = edu_dma(&lab.edu, EDU_TO_MEMORY, LAB_BAR_IOVA, XFER);
		if (!ret)
			ret = send_byte(sock);
	}
	_exit(2);
}

/* An exporting process: opens the device, gives the dma-buf away, and waits to be killed */
static void run_exporter(const char *peer, int sock)
{
	struct vfio_dev dev;
	int dmabuf, iommufd;

	iommufd = iommufd_open();
	if (iommufd < 0 || vfio_dev_open(&dev, peer, iommufd))
		_exit(1);
	dmabuf = vfio_dev_export_range(&dev, PEER_BAR, 0, SZ_4K);
	if (dmabuf < 0 || send_fd(sock, dmabuf))
		_exit(2);
	receive_byte(sock);
	_exit(3);
}

#define start_child(_run, _name)						\
do {										\
	self->child = fork();							\
	ASSERT_LE(0, self->child);						\
	if (!self->child) {							\
		close_range(STDERR_FILENO + 1, self->socks[1] - 1, 0);		\
		close_range(self->socks[1] + 1, ~0U, 0);			\
		_run(_name, self->socks[1]);					\
	}									\
	close(self->socks[1]);							\
} while (0)

#define kill_child()								\
do {										\
	ASSERT_EQ(0, kill_hard(self->child));					\
	self->child = 0;							\
} while (0)

#define test_open_importer()	\
	ASSERT_EQ(0, open_importer(&self->lab, self->edu, self->lab.iommufd))

/* As soon as the importer has done some DMA, and in the middle of the next */
TEST_F_TIMEOUT(lifetime, importer_killed, LAB_TIMEOUT)
{
	int dmabuf, i;
	__u64 start;

	start_child(run_importer, self->edu);
	dmabuf = test_export(0, SZ_4K);
	ASSERT_EQ(0, send_fd(self->socks[0], dmabuf));
	for (i = 0; i < LOOPS; i++)
		ASSERT_EQ(0, receive_byte(self->socks[0]));
	expect_landed(0, 1);
	kill_child();

	/* Nobody has to be waited for, and the memory is the owner's alone */
	start = now_us();
	EXPECT_EQ(0, vfio_dev_reset(&self->lab.peer));
	EXPECT_GT(PROMPT_US, now_us() - start);
	close(dmabuf);
	EXPECT_TRUE(wait_until(dmabuf_count() == self->lab.buffers, LEAK_WAIT_MS));

	/* Both devices are as good as new */
	lab_clear_bar(&self->lab);
	test_open_importer();
	dmabuf = test_export(0, SZ_4K);
	ASSERT_EQ(0, import(&self->lab, dmabuf));
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

/* With its mappings revoked at that time */
TEST_F_TIMEOUT(lifetime, importer_killed_while_revoked, LAB_TIMEOUT)
{
	int dmabuf;

	start_child(run_importer, self->edu);
	dmabuf = test_export(0, SZ_4K);
	ASSERT_EQ(0, send_fd(self->socks[0], dmabuf));
	ASSERT_EQ(0, receive_byte(self->socks[0]));
	ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, false));
	kill_child();
	close(dmabuf);
	EXPECT_TRUE(wait_until(dmabuf_count() == self->lab.buffers, LEAK_WAIT_MS));
	ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, true));
}

/* The owner resets again and again under an importer that goes on writing */
TEST_F_TIMEOUT(lifetime, importer_killed_during_revokes, LAB_TIMEOUT)
{
	int dmabuf, i;

	start_child(run_importer, self->edu);
	dmabuf = test_export(0, SZ_4K);
	ASSERT_EQ(0, send_fd(self->socks[0], dmabuf));
	ASSERT_EQ(0, receive_byte(self->socks[0]));
	for (i = 0; i < 2 * LOOPS; i++) {
		if (i == LOOPS)
			ASSERT_EQ(0, kill(self->child, SIGKILL));
		ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, false));
		ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, true));
	}
	ASSERT_TRUE(wait_until(is_dead(self->child), CHILD_WAIT_MS));
	self->child = 0;
	close(dmabuf);
}

/* What the exporter gave away is dead with it, and says so */
TEST_F_TIMEOUT(lifetime, exporter_killed, LAB_TIMEOUT)
{
	char peer[PCI_NAME_LEN];
	int dmabuf;

	pci_copy_name(peer, self->lab.peer.name);
	lab_close_peer(&self->lab);
	start_child(run_exporter, peer);
	dmabuf = test_fd(receive_fd(self->socks[0]));
	test_open_importer();
	ASSERT_EQ(0, import(&self->lab, dmabuf));
	ASSERT_EQ(0, edu_dma_start(&self->lab.edu, EDU_TO_MEMORY, LAB_BAR_IOVA, XFER));
	kill_child();
	ASSERT_EQ(0, edu_dma_wait(&self->lab.edu));

	ASSERT_EQ(0, lab_open_peer(&self->lab, peer));
	lab_clear_bar(&self->lab);
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, SZ_4K);
	EXPECT_EQ(-ENODEV, import(&self->lab, dmabuf));
}

/* A dma-buf in flight in a socket is open, too, and hinders nobody */
TEST_F_TIMEOUT(lifetime, fd_in_a_socket, LAB_TIMEOUT)
{
	int dmabuf = test_export(0, SZ_4K);

	ASSERT_EQ(0, send_fd(self->socks[1], dmabuf));
	close(dmabuf);
	EXPECT_EQ(self->lab.buffers + 1, dmabuf_count());
	test_open_importer();
	dmabuf = test_fd(receive_fd(self->socks[0]));
	ASSERT_EQ(0, import(&self->lab, dmabuf));
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, SZ_4K);

	ASSERT_EQ(0, send_fd(self->socks[1], dmabuf));
	close(dmabuf);
	lab_close_peer(&self->lab);
	ASSERT_EQ(0, pci_unbind(self->lab.peer.name));
	ASSERT_EQ(0, pci_bind_vfio(self->lab.peer.name));
	dmabuf = test_fd(receive_fd(self->socks[0]));
	EXPECT_EQ(-ENODEV, import(&self->lab, dmabuf));

	/* Never received */
	ASSERT_EQ(0, send_fd(self->socks[1], dmabuf));
}

TEST_F_TIMEOUT(lifetime, dup, LAB_TIMEOUT)
{
	int dmabuf = test_export(0, SZ_4K);
	int copy = dup(dmabuf);

	test_open_importer();
	ASSERT_EQ(0, import(&self->lab, dmabuf));
	close(dmabuf);
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, SZ_4K);
	ASSERT_EQ(0, vfio_dev_reset(&self->lab.peer));
	ASSERT_EQ(0, import(&self->lab, copy));
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

/* A child has all the fds as well: the device is closed when both have closed it */
TEST_F_TIMEOUT(lifetime, fork_keeps_the_device, LAB_TIMEOUT)
{
	int dmabuf = test_export(0, SZ_4K);
	char peer[PCI_NAME_LEN];

	pci_copy_name(peer, self->lab.peer.name);
	test_open_importer();
	self->child = fork();
	ASSERT_LE(0, self->child);
	if (!self->child) {
		receive_byte(self->socks[1]);
		_exit(0);
	}
	ASSERT_EQ(0, import(&self->lab, dmabuf));
	vfio_dev_close(&self->lab.peer);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);

	munmap(self->lab.bar, self->lab.bar_size);
	self->lab.bar = NULL;
	kill_child();
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, SZ_4K);
	EXPECT_EQ(-ENODEV, import(&self->lab, dmabuf));
	ASSERT_EQ(0, lab_open_peer(&self->lab, peer));
}

/* A mapped BAR is an open device, so that the dma-buf lives on */
TEST_F_TIMEOUT(lifetime, mmap_keeps_the_device, LAB_TIMEOUT)
{
	int dmabuf = test_export(0, SZ_4K);

	test_open_importer();
	vfio_dev_close(&self->lab.peer);
	ASSERT_EQ(0, import(&self->lab, dmabuf));
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
	lab_close_peer(&self->lab);
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, SZ_4K);
	EXPECT_EQ(-ENODEV, import(&self->lab, dmabuf));
}

/* The leak of VMMs: the device goes, the fd stays. Unbinding does not wait for it. */
TEST_F_TIMEOUT(lifetime, unbind_with_leaked_fd, LAB_TIMEOUT)
{
	int dmabuf = test_export(0, SZ_4K);
	char peer[PCI_NAME_LEN];
	__u64 start;

	pci_copy_name(peer, self->lab.peer.name);
	test_open_importer();
	ASSERT_EQ(0, import(&self->lab, dmabuf));
	lab_close_peer(&self->lab);
	start = now_us();
	ASSERT_EQ(0, pci_unbind(peer));
	EXPECT_GT(PROMPT_US, now_us() - start);
	EXPECT_EQ(self->lab.buffers + 1, dmabuf_count());
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, SZ_4K);
	EXPECT_EQ(-ENODEV, import(&self->lab, dmabuf));

	/* Closed when the driver is long gone */
	close(dmabuf);
	EXPECT_TRUE(wait_until(dmabuf_count() == self->lab.buffers, LEAK_WAIT_MS));
	ASSERT_EQ(0, lab_open_peer(&self->lab, peer));
}

/* The same with the mapping and not the fd left */
TEST_F_TIMEOUT(lifetime, unbind_with_leaked_mapping, LAB_TIMEOUT)
{
	int dmabuf = test_export(0, SZ_4K);
	char peer[PCI_NAME_LEN];

	pci_copy_name(peer, self->lab.peer.name);
	test_open_importer();
	ASSERT_EQ(0, import(&self->lab, dmabuf));
	close(dmabuf);
	lab_close_peer(&self->lab);
	ASSERT_EQ(0, pci_unbind(peer));
	ASSERT_EQ(0, lab_open_peer(&self->lab, peer));
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, SZ_4K);
	EXPECT_TRUE(wait_until(dmabuf_count() == self->lab.buffers, LEAK_WAIT_MS));
}

/* Dead buffers of several lives of a device, next to a living one */
TEST_F_TIMEOUT(lifetime, dead_buffers_pile_up, LAB_TIMEOUT)
{
	int dmabufs[LOOPS], i;
	char peer[PCI_NAME_LEN];

	pci_copy_name(peer, self->lab.peer.name);
	test_open_importer();
	for (i = 0; i < LOOPS; i++) {
		dmabufs[i] = test_export(0, SZ_4K);
		if (i == LOOPS - 1)
			break;
		lab_close_peer(&self->lab);
		ASSERT_EQ(0, lab_open_peer(&self->lab, peer));
	}
	for (i = 0; i < LOOPS - 1; i++)
		EXPECT_EQ(-ENODEV, import(&self->lab, dmabufs[i]));
	ASSERT_EQ(0, import(&self->lab, dmabufs[LOOPS - 1]));
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

/* Everything that can be closed, in every order */
enum closeable {
	CLOSE_DMABUF,
	CLOSE_PEER,
	CLOSE_EDU,
	CLOSE_IOMMUFD,
	CLOSEABLES,
};

static void close_one(struct lab *lab, int dmabuf, enum closeable which)
{
	switch (which) {
	case CLOSE_DMABUF:
		close(dmabuf);
		break;
	case CLOSE_PEER:
		lab_close_peer(lab);
		break;
	case CLOSE_EDU:
		edu_close(&lab->edu);
		break;
	default:
		close(lab->iommufd);
		break;
	}
}

/* The @nth of the 24 orders */
static void nth_order(unsigned int nth, enum closeable order[CLOSEABLES])
{
	enum closeable left[CLOSEABLES] = {
		CLOSE_DMABUF, CLOSE_PEER, CLOSE_EDU, CLOSE_IOMMUFD,
	};
	unsigned int i, pick, nr_left;

	for (i = 0, nr_left = CLOSEABLES; nr_left; i++, nr_left--) {
		pick = nth % nr_left;
		nth /= nr_left;
		order[i] = left[pick];
		left[pick] = left[nr_left - 1];
	}
}

FIXTURE(close_order)
{
	struct lab lab;
};

FIXTURE_VARIANT(close_order)
{
	bool revoked;
};

FIXTURE_VARIANT_ADD(close_order, mapped)
{
};

FIXTURE_VARIANT_ADD(close_order, revoked)
{
	.revoked = true,
};

FIXTURE_SETUP(close_order)
{
	lab_open_exporter(_metadata, &self->lab, LAB_NEED_NOTHING);
}

FIXTURE_TEARDOWN(close_order)
{
	lab_close(_metadata, &self->lab);
}

TEST_F_TIMEOUT(close_order, all, 2 * LAB_TIMEOUT)
{
	enum closeable order[CLOSEABLES];
	long buffers = self->lab.buffers;
	unsigned int nth, i;
	char peer[PCI_NAME_LEN];
	int dmabuf;

	pci_copy_name(peer, self->lab.peer.name);
	for (nth = 0; nth < 24; nth++) {
		if (nth) {
			self->lab.iommufd = test_fd(iommufd_open());
			ASSERT_EQ(0, lab_open_peer(&self->lab, peer));
		}
		lab_open_importer(_metadata, &self->lab);
		dmabuf = test_export(0, self->lab.bar_size);
		test_map_at(self->lab.ioas, dmabuf, 0, self->lab.bar_size, LAB_BAR_IOVA);
		if (variant->revoked)
			ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, false));
		nth_order(nth, order);
		for (i = 0; i < CLOSEABLES; i++)
			close_one(&self->lab, dmabuf, order[i]);
		munmap(self->lab.ram, PAGE_BYTES);
		EXPECT_TRUE(wait_until(dmabuf_count() == buffers, LEAK_WAIT_MS)) {
			TH_LOG("order %u%u%u%u", order[0], order[1], order[2], order[3]);
		}
	}
}

TEST_HARNESS_MAIN
