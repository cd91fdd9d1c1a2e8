// SPDX-License-Identifier: GPL-2.0-only
/*
 * Whatever takes a BAR away takes every mapping of it away first.
 *
 * Each trigger is a variant of one fixture, and goes through the same states:
 *
 *     usable --fire--> revoked --undo--> usable      for most
 *     usable --fire--------------------> usable      a reset is over at once
 *     usable --fire--> dead    --undo--> still dead  the owner closed the device
 *
 * The hardware gives no hint whether a DMA was stopped, and while the device
 * does not decode its BAR a DMA would change nothing either way. So the BAR is
 * looked at when it is back, and once more after a DMA at that time.
 */
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <glob.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "lab.h"
#include "observe.h"
#include "vm/hostctl.h"

#define UNPLUG_WAIT_MS		60000
#define PROMPT_US		(2 * 1000 * 1000ULL)

struct trigger {
	int (*fire)(struct lab *lab);
	int (*undo)(struct lab *lab);
	enum lab_need need;
	bool brief;		/* the memory is back when fire() returns */
	bool fatal;		/* what was exported before stays dead */
};

static int nothing_to_undo(struct lab *lab)
{
	return 0;
}

static int fire_reset(struct lab *lab)
{
	return vfio_dev_reset(&lab->peer);
}

static int fire_hot_reset(struct lab *lab)
{
	return vfio_dev_hot_reset(&lab->peer);
}

static int fire_flr(struct lab *lab)
{
	return vfio_dev_flr(&lab->peer);
}

static int fire_decode_off(struct lab *lab)
{
	return vfio_dev_decode(&lab->peer, false);
}

static int undo_decode_off(struct lab *lab)
{
	return vfio_dev_decode(&lab->peer, true);
}

static int fire_d3hot(struct lab *lab)
{
	return vfio_dev_power(&lab->peer, PCI_POWER_D3HOT);
}

static int undo_d3hot(struct lab *lab)
{
	return vfio_dev_power(&lab->peer, PCI_POWER_D0);
}

static int fire_low_power(struct lab *lab)
{
	return vfio_dev_low_power(&lab->peer, true);
}

static int undo_low_power(struct lab *lab)
{
	return vfio_dev_low_power(&lab->peer, false);
}

static bool power_is(const char *name, const char *status)
{
	char path[128], text[32];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/power/runtime_status", name);
	return slurp(path, text, sizeof(text)) && !strcmp(text, status);
}

static bool set_power_control(const char *name, const char *control)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/power/control", name);
	return spit(path, control);
}

static int fire_sleep(struct lab *lab)
{
	int wakeup = eventfd(0, 0);
	int ret;

	ret = vfio_dev_sleep(&lab->peer, wakeup);
	close(wakeup);
	if (!ret && !wait_until(power_is(lab->peer.name, "suspended\n"), LEAK_WAIT_MS))
		ret = -ETIMEDOUT;
	return ret;
}

/* Whatever needs the device wakes it up, and it does not go to sleep again */
static int undo_sleep(struct lab *lab)
{
	__u16 id;

	return vfio_dev_config_read(&lab->peer, PCI_VENDOR_ID, &id, sizeof(id));
}

static int fire_close(struct lab *lab)
{
	lab_close_peer(lab);
	return 0;
}

static int undo_close(struct lab *lab)
{
	char name[PCI_NAME_LEN];

	pci_copy_name(name, lab->peer.name);
	return lab_open_peer(lab, name);
}

static int fire_unbind(struct lab *lab)
{
	lab_close_peer(lab);
	return pci_unbind(lab->peer.name);
}

FIXTURE(revoke)
{
	struct lab lab;
	int dmabuf;
};

FIXTURE_VARIANT(revoke)
{
	struct trigger trigger;
};

FIXTURE_VARIANT_ADD(revoke, reset)
{
	.trigger = { fire_reset, nothing_to_undo, .brief = true },
};

FIXTURE_VARIANT_ADD(revoke, hot_reset)
{
	.trigger = { fire_hot_reset, nothing_to_undo, .brief = true },
};

FIXTURE_VARIANT_ADD(revoke, function_level_reset)
{
	.trigger = { fire_flr, nothing_to_undo, .brief = true, .need = LAB_NEED_FLR },
};

FIXTURE_VARIANT_ADD(revoke, decode_off)
{
	.trigger = { fire_decode_off, undo_decode_off },
};

FIXTURE_VARIANT_ADD(revoke, d3hot)
{
	.trigger = { fire_d3hot, undo_d3hot, .need = LAB_NEED_PM },
};

FIXTURE_VARIANT_ADD(revoke, low_power)
{
	.trigger = { fire_low_power, undo_low_power },
};

FIXTURE_VARIANT_ADD(revoke, low_power_until_woken_up)
{
	.trigger = { fire_sleep, undo_sleep },
};

FIXTURE_VARIANT_ADD(revoke, device_closed)
{
	.trigger = { fire_close, undo_close, .fatal = true },
};

FIXTURE_VARIANT_ADD(revoke, driver_unbound)
{
	.trigger = { fire_unbind, undo_close, .fatal = true },
};

FIXTURE_SETUP(revoke)
{
	lab_open(_metadata, &self->lab, variant->trigger.need);
	self->dmabuf = test_export(0, self->lab.bar_size);
	test_load(1);
}

FIXTURE_TEARDOWN(revoke)
{
	lab_close(_metadata, &self->lab);
}

#define test_fire()	ASSERT_EQ(0, variant->trigger.fire(&self->lab))
#define test_undo()	ASSERT_EQ(0, variant->trigger.undo(&self->lab))

/* Map, and prove by DMA that it is mapped */
#define test_map_and_use(_fd)							\
do {										\
	test_map_at(self->lab.ioas, _fd, 0, self->lab.bar_size, LAB_BAR_IOVA);	\
	test_dma_write(LAB_BAR_IOVA + SZ_4K);					\
	expect_landed(SZ_4K, 1);						\
} while (0)

#define test_unmap_all()	test_unmap(self->lab.ioas, LAB_BAR_IOVA, self->lab.bar_size)

/* While the memory is away nothing lands; once it is back the same IOVA has it */
#define test_dma_while_revoked(_iova)						\
do {										\
	if (!variant->trigger.brief)						\
		test_dma_write(_iova);						\
} while (0)
#define test_dma_after_undo(_iova, _offset)					\
do {										\
	test_dma_write(_iova);							\
	if (variant->trigger.fatal) {						\
		expect_nothing_landed();					\
	} else {								\
		expect_landed(_offset, 1);					\
	}									\
} while (0)

/*
 * Before, a DMA lands. In between not a byte does, and nobody comes to harm. Of what
 * is too brief for a DMA there is the trace.
 */
TEST_F_TIMEOUT(revoke, dma_is_stopped, LAB_TIMEOUT)
{
	char text[16384], unmapped[64];

	snprintf(unmapped, sizeof(unmapped), "unmapped=0x%zx ", self->lab.bar_size);
	test_map_and_use(self->dmabuf);
	REQUIRE(trace(true), "no tracepoints");
	test_fire();
	ASSERT_TRUE(trace(false));
	ASSERT_TRUE(slurp(TRACING "trace", text, sizeof(text)));
	expect_order(text, "iommufd_dmabuf_revoked:", unmapped,
		     variant->trigger.fatal ? "state=dead" : "state=revoked",
		     "vfio_pci_dma_bufs_drained:");
	if (variant->trigger.brief)
		expect_order(text, "vfio_pci_dma_bufs_drained:", "iommufd_dmabuf_restored:",
			     "ret=0", "state=live");
	test_dma_while_revoked(LAB_BAR_IOVA);
	test_undo();
	expect_nothing_landed();

	/* The initiator works as before */
	test_dma_write(LAB_RAM_IOVA);
	EXPECT_TRUE(lab_holds(self->lab.ram, 1));
}

static atomic_bool enough;

static void *keep_writing(void *edu)
{
	int ret = 0;

	while (!ret && !enough)
		ret = edu_dma(edu, EDU_TO_MEMORY, LAB_BAR_IOVA, XFER);
	return (void *)(long)ret;
}

/* One transfer after the other: one is always under way, also when the trigger fires */
TEST_F_TIMEOUT(revoke, dma_in_flight, LAB_TIMEOUT)
{
	pthread_t writer;
	void *ret;

	test_map_and_use(self->dmabuf);
	ASSERT_EQ(0, pthread_create(&writer, NULL, keep_writing, &self->lab.edu));
	ASSERT_TRUE(wait_until(lab_holds(self->lab.bar, 1), LEAK_WAIT_MS));
	test_fire();
	test_undo();
	lab_clear_bar(&self->lab);
	/* Once it is mapped again what the initiator writes lands again */
	if (!variant->trigger.fatal)
		EXPECT_TRUE(wait_until(lab_holds(self->lab.bar, 1), LEAK_WAIT_MS));
	enough = true;
	ASSERT_EQ(0, pthread_join(writer, &ret));
	EXPECT_EQ(NULL, ret);
	EXPECT_EQ(variant->trigger.fatal, lab_first_set(&self->lab, 0) == NOTHING);
	lab_clear_bar(&self->lab);
}

/* The kernel has mapped it again when the call that brings the memory back returns */
TEST_F_TIMEOUT(revoke, mapped_again, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	test_fire();
	test_undo();
	test_dma_after_undo(LAB_BAR_IOVA + SZ_4K, SZ_4K);
}

/* With the permissions that it had */
TEST_F_TIMEOUT(revoke, mapped_again_read_only, LAB_TIMEOUT)
{
	__u64 iova = LAB_BAR_IOVA;

	test_map_file(self->lab.ioas, IOAS_RO | IOAS_FIXED, self->dmabuf, 0,
		      self->lab.bar_size, &iova);
	test_fire();
	test_undo();
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();

	/* The initiator fetches from the BAR, and brings it to RAM */
	lab_fill_bar(&self->lab, 2);
	ASSERT_EQ(0, edu_dma(&self->lab.edu, EDU_FROM_MEMORY, LAB_BAR_IOVA, XFER));
	test_dma_write(LAB_RAM_IOVA);
	EXPECT_EQ(!variant->trigger.fatal, lab_holds(self->lab.ram, 2));
	lab_clear_bar(&self->lab);
}

/* Only what userspace has left mapped */
TEST_F_TIMEOUT(revoke, mapped_again_in_part, LAB_TIMEOUT)
{
	test_map_at(self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
	test_map_at(self->lab.ioas, self->dmabuf, SZ_4K, SZ_4K, LAB_COPY_IOVA);
	test_fire();
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, SZ_4K);
	test_undo();
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();
	test_dma_after_undo(LAB_COPY_IOVA, SZ_4K);
}

/* The area stays: userspace unmaps what it mapped, in either state */
TEST_F_TIMEOUT(revoke, unmap_while_revoked, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	test_fire();
	test_unmap_all();
	test_err_unmap(ENOENT, self->lab.ioas, LAB_BAR_IOVA, self->lab.bar_size);
	test_undo();
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();
}

TEST_F_TIMEOUT(revoke, unmap_after_it, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	test_fire();
	test_undo();
	test_unmap_all();
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();
}

/* The IOVA is taken as long as userspace has not given it back */
TEST_F_TIMEOUT(revoke, area_stays, LAB_TIMEOUT)
{
	__u64 iova = LAB_BAR_IOVA + SZ_4K;

	test_map_and_use(self->dmabuf);
	test_fire();
	EXPECT_EQ(-EEXIST, ioas_map(self->lab.iommufd, self->lab.ioas, IOAS_RW | IOAS_FIXED,
				    self->lab.ram, PAGE_BYTES, &iova));
	test_undo();
	EXPECT_EQ(-EEXIST, ioas_map(self->lab.iommufd, self->lab.ioas, IOAS_RW | IOAS_FIXED,
				    self->lab.ram, PAGE_BYTES, &iova));
}

TEST_F_TIMEOUT(revoke, import_while_revoked, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	test_fire();
	test_unmap_all();
	if (variant->trigger.brief)
		test_map_at(self->lab.ioas, self->dmabuf, 0, self->lab.bar_size, LAB_BAR_IOVA);
	else
		test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, self->lab.bar_size,
				LAB_BAR_IOVA);
	test_undo();
}

/* The old fd works again, or is dead while a new one works */
TEST_F_TIMEOUT(revoke, import_again, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	test_fire();
	test_undo();
	test_unmap_all();
	if (variant->trigger.fatal) {
		test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, self->lab.bar_size,
				LAB_BAR_IOVA);
		test_map_and_use(test_export(0, self->lab.bar_size));
		test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_COPY_IOVA);
	} else {
		test_map_and_use(self->dmabuf);
	}
}

/* All the buffers of the device, however they are mapped */
TEST_F_TIMEOUT(revoke, every_buffer, LAB_TIMEOUT)
{
	int i, fds[4];

	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = test_export(i * SZ_4K, SZ_4K);
		test_map_at(self->lab.ioas, fds[i], 0, SZ_4K, LAB_BAR_IOVA + 2 * i * SZ_4K);
	}
	/* The last one twice, and one fd is closed already */
	test_map_at(self->lab.ioas, fds[3], 0, SZ_4K, LAB_COPY_IOVA);
	close(fds[0]);
	test_dma_write(LAB_COPY_IOVA);
	expect_landed(3 * SZ_4K, 1);

	test_fire();
	for (i = 0; i < ARRAY_SIZE(fds); i++)
		test_dma_while_revoked(LAB_BAR_IOVA + 2 * i * SZ_4K);
	test_dma_while_revoked(LAB_COPY_IOVA);
	test_undo();
	expect_nothing_landed();
	for (i = 0; i < ARRAY_SIZE(fds); i++)
		test_dma_after_undo(LAB_BAR_IOVA + 2 * i * SZ_4K, i * SZ_4K);
	test_dma_after_undo(LAB_COPY_IOVA, 3 * SZ_4K);
	for (i = 0; i < ARRAY_SIZE(fds); i++)
		test_unmap(self->lab.ioas, LAB_BAR_IOVA + 2 * i * SZ_4K, SZ_4K);
	test_unmap(self->lab.ioas, LAB_COPY_IOVA, SZ_4K);
}

/* All the ranges of a buffer, between which there are holes */
TEST_F_TIMEOUT(revoke, every_range, LAB_TIMEOUT)
{
	const struct vfio_region_dma_range ranges[] = {
		{ .offset = 4 * SZ_4K, .length = 2 * SZ_4K },
		{ .offset = 0, .length = SZ_4K },
		{ .offset = 7 * SZ_4K, .length = SZ_4K },
	};
	const __u64 iovas[] = { LAB_BAR_IOVA, LAB_BAR_IOVA + 2 * SZ_4K, LAB_BAR_IOVA + 3 * SZ_4K };
	int i, fd = test_fd(vfio_dev_export(&self->lab.peer, PEER_BAR, O_RDWR, ranges,
					    ARRAY_SIZE(ranges)));

	test_map_at(self->lab.ioas, fd, 0, 4 * SZ_4K, LAB_BAR_IOVA);
	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		test_dma_write(iovas[i]);
		expect_landed(ranges[i].offset, 1);
	}

	test_fire();
	for (i = 0; i < ARRAY_SIZE(ranges); i++)
		test_dma_while_revoked(iovas[i]);
	test_undo();
	expect_nothing_landed();
	for (i = 0; i < ARRAY_SIZE(ranges); i++)
		test_dma_after_undo(iovas[i], ranges[i].offset);
	test_unmap(self->lab.ioas, LAB_BAR_IOVA, 4 * SZ_4K);
}

/* Revoked in an IOAS that has no device yet */
TEST_F_TIMEOUT(revoke, without_a_domain, LAB_TIMEOUT)
{
	__u32 other;

	test_ioas_alloc(&other);
	test_map_at(other, self->dmabuf, 0, self->lab.bar_size, LAB_BAR_IOVA);
	test_fire();
	test_detach();
	test_attach(other);
	test_dma_while_revoked(LAB_BAR_IOVA);
	test_undo();
	expect_nothing_landed();
	test_dma_after_undo(LAB_BAR_IOVA, 0);
	test_unmap(other, LAB_BAR_IOVA, self->lab.bar_size);
}

/* A domain that joins while the buffer is revoked gets nothing of it */
TEST_F_TIMEOUT(revoke, domain_attached_while_revoked, LAB_TIMEOUT)
{
	__u32 hwpt;

	test_map_and_use(self->dmabuf);
	test_fire();
	test_hwpt_alloc(&hwpt);
	test_attach(hwpt);
	test_dma_write(LAB_RAM_IOVA);
	EXPECT_TRUE(lab_holds(self->lab.ram, 1));
	test_dma_while_revoked(LAB_BAR_IOVA);
	test_undo();
	expect_nothing_landed();
	test_dma_after_undo(LAB_BAR_IOVA, 0);
	test_unmap_all();
}

/* The only device leaves the IOAS while the buffer is revoked, and comes back */
TEST_F_TIMEOUT(revoke, detach_while_revoked, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	test_fire();
	test_detach();
	test_undo();
	test_attach(self->lab.ioas);
	test_dma_write(LAB_RAM_IOVA);
	EXPECT_TRUE(lab_holds(self->lab.ram, 1));
	test_dma_after_undo(LAB_BAR_IOVA, 0);
	test_unmap_all();
}

/* The copy of a revoked area is an area, too, revoked and mapped again as it is */
TEST_F_TIMEOUT(revoke, copy_while_revoked, LAB_TIMEOUT)
{
	__u32 other;

	test_ioas_alloc(&other);
	test_map_and_use(self->dmabuf);
	test_fire();
	test_copy_at(other, self->lab.ioas, LAB_BAR_IOVA, self->lab.bar_size, LAB_COPY_IOVA);
	test_attach(other);
	test_dma_while_revoked(LAB_COPY_IOVA);
	test_undo();
	expect_nothing_landed();
	test_dma_after_undo(LAB_COPY_IOVA, 0);
	test_unmap_all();
	test_unmap(other, LAB_COPY_IOVA, self->lab.bar_size);
}

/* Two address spaces share the buffer, one as a copy */
TEST_F_TIMEOUT(revoke, copies_too, LAB_TIMEOUT)
{
	__u32 other;

	test_ioas_alloc(&other);
	test_map_and_use(self->dmabuf);
	test_copy_at(other, self->lab.ioas, LAB_BAR_IOVA, self->lab.bar_size, LAB_BAR_IOVA);
	test_fire();
	test_attach(other);
	test_dma_while_revoked(LAB_BAR_IOVA);
	test_undo();
	expect_nothing_landed();
	test_dma_after_undo(LAB_BAR_IOVA, 0);
	test_unmap(other, LAB_BAR_IOVA, self->lab.bar_size);
	test_unmap_all();
}

TEST_F_TIMEOUT(revoke, destroy_ioas_while_revoked, LAB_TIMEOUT)
{
	__u32 other;

	test_ioas_alloc(&other);
	test_map_at(other, self->dmabuf, 0, self->lab.bar_size, LAB_BAR_IOVA);
	test_map_and_use(self->dmabuf);
	test_fire();
	test_ioas_destroy(other);
	test_undo();
	test_unmap_all();
}

TEST_F_TIMEOUT(revoke, twice, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	test_fire();
	test_undo();
	test_fire();
	test_undo();
	test_dma_after_undo(LAB_BAR_IOVA, 0);
	test_unmap_all();
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();
}

/* With nothing mapped a revoke has nothing to do, and remembers what it did not do */
TEST_F_TIMEOUT(revoke, never_mapped, LAB_TIMEOUT)
{
	test_fire();
	test_undo();
	if (variant->trigger.fatal)
		test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
	else
		test_map_and_use(self->dmabuf);
}

/* What depends on the order of triggers: memory decode and friends */
FIXTURE(decode)
{
	struct lab lab;
	int dmabuf;
};

FIXTURE_SETUP(decode)
{
	lab_open(_metadata, &self->lab, LAB_NEED_NOTHING);
	self->dmabuf = test_export(0, self->lab.bar_size);
	test_load(1);
}

FIXTURE_TEARDOWN(decode)
{
	lab_close(_metadata, &self->lab);
}

#define test_decode(_on)	ASSERT_EQ(0, vfio_dev_decode(&self->lab.peer, _on))

/* As VMMs do it while firmware and guest look for devices */
TEST_F_TIMEOUT(decode, toggled_by_a_vmm, LAB_TIMEOUT)
{
	int i;

	for (i = 0; i < 100; i++) {
		test_map_at(self->lab.ioas, self->dmabuf, 0, self->lab.bar_size, LAB_BAR_IOVA);
		test_decode(false);
		test_unmap_all();
		test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, self->lab.bar_size,
				LAB_BAR_IOVA);
		test_decode(true);
	}
	test_map_and_use(self->dmabuf);
}

TEST_F_TIMEOUT(decode, toggled_under_one_mapping, LAB_TIMEOUT)
{
	int i;

	test_map_and_use(self->dmabuf);
	for (i = 0; i < 100; i++) {
		test_decode(false);
		test_decode(true);
	}
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
	test_unmap_all();
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();
	test_map_and_use(self->dmabuf);
}

/* Writing the same value again changes nothing */
TEST_F_TIMEOUT(decode, on_and_on_again, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	test_decode(true);
	ASSERT_EQ(0, vfio_dev_bus_master(&self->lab.peer, true));
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);

	test_decode(false);
	test_decode(false);
	test_decode(true);
	test_unmap_all();
	test_map_and_use(self->dmabuf);
}

/* A byte that does not hold the memory bit is not a revoke, one that does is */
TEST_F_TIMEOUT(decode, written_by_bytes, LAB_TIMEOUT)
{
	__u8 command[2];

	test_map_and_use(self->dmabuf);
	ASSERT_EQ(0, vfio_dev_config_read(&self->lab.peer, PCI_COMMAND, command, 2));
	ASSERT_EQ(0, vfio_dev_config_write(&self->lab.peer, PCI_COMMAND + 1, &command[1], 1));
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);

	command[0] &= ~PCI_COMMAND_MEMORY;
	ASSERT_EQ(0, vfio_dev_config_write(&self->lab.peer, PCI_COMMAND, command, 1));
	test_unmap_all();
	test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
	command[0] |= PCI_COMMAND_MEMORY;
	ASSERT_EQ(0, vfio_dev_config_write(&self->lab.peer, PCI_COMMAND, command, 1));
	test_map_and_use(self->dmabuf);
}

/* Not by waking up, which an unbind waits for, but by who uses the device then */
TEST_F_TIMEOUT(decode, mapped_again_by_user_only, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	ASSERT_EQ(0, fire_sleep(&self->lab));
	ASSERT_TRUE(set_power_control(self->lab.peer.name, "on"));
	EXPECT_TRUE(power_is(self->lab.peer.name, "active\n"));
	EXPECT_TRUE(is_in_state(self->dmabuf, "revoked"));
	test_dma_write(LAB_BAR_IOVA);
	EXPECT_TRUE(set_power_control(self->lab.peer.name, "auto"));
	ASSERT_EQ(0, undo_sleep(&self->lab));
	EXPECT_TRUE(is_in_state(self->dmabuf, "live"));
	expect_nothing_landed();
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

/* The end of a reset gives nothing back that was off before */
TEST_F_TIMEOUT(decode, off_during_reset, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	test_decode(false);
	ASSERT_EQ(0, vfio_dev_reset(&self->lab.peer));
	test_unmap_all();
	test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
	ASSERT_EQ(0, vfio_dev_hot_reset(&self->lab.peer));
	test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
	test_decode(true);
	test_map_and_use(self->dmabuf);
}

/* Nor does the end of low power */
TEST_F_TIMEOUT(decode, off_during_low_power, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	test_decode(false);
	ASSERT_EQ(0, vfio_dev_low_power(&self->lab.peer, true));
	ASSERT_EQ(0, vfio_dev_low_power(&self->lab.peer, false));
	test_unmap_all();
	test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
	test_decode(true);
	test_map_and_use(self->dmabuf);
}

/* Exported while off: born revoked */
TEST_F_TIMEOUT(decode, off_during_export, LAB_TIMEOUT)
{
	int fd;

	test_decode(false);
	fd = test_export(0, self->lab.bar_size);
	test_err_map_at(ENODEV, self->lab.ioas, fd, 0, self->lab.bar_size, LAB_BAR_IOVA);
	test_decode(true);
	test_map_and_use(fd);
	test_unmap_all();
	test_decode(false);
	test_err_map_at(ENODEV, self->lab.ioas, fd, 0, self->lab.bar_size, LAB_BAR_IOVA);
	test_decode(true);
}

/* Only the owner's buffers are revoked, and RAM is nobody's */
TEST_F_TIMEOUT(decode, others_are_not_disturbed, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	ASSERT_EQ(0, vfio_dev_command(&self->lab.edu.dev, PCI_COMMAND_MEMORY, false));
	ASSERT_EQ(0, vfio_dev_command(&self->lab.edu.dev, PCI_COMMAND_MEMORY, true));
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
	test_decode(false);
	test_dma_write(LAB_RAM_IOVA);
	EXPECT_TRUE(lab_holds(self->lab.ram, 1));
	test_decode(true);
}

/* iommufd unmaps at once: nobody has to be waited for */
TEST_F_TIMEOUT(decode, revoke_is_prompt, LAB_TIMEOUT)
{
	__u64 start;

	test_map_and_use(self->dmabuf);
	start = now_us();
	test_decode(false);
	EXPECT_GT(PROMPT_US, now_us() - start);
	test_decode(true);
}

/* A device that sleeps does not give its memory back when decode is turned on */
FIXTURE(asleep)
{
	struct lab lab;
	int dmabuf;
};

FIXTURE_SETUP(asleep)
{
	lab_open(_metadata, &self->lab, LAB_NEED_PM);
	self->dmabuf = test_export(0, self->lab.bar_size);
	test_load(1);
}

FIXTURE_TEARDOWN(asleep)
{
	lab_close(_metadata, &self->lab);
}

#define test_power(_state)	ASSERT_EQ(0, vfio_dev_power(&self->lab.peer, _state))

/*
 * Memory answers in D0 only. Few devices have D1, but nobody asks before the revoke,
 * and where it is not there the memory is back at once.
 */
TEST_F_TIMEOUT(asleep, in_d1, LAB_TIMEOUT)
{
	char text[8192];

	test_map_and_use(self->dmabuf);
	REQUIRE(trace(true), "no tracepoints");
	test_power(PCI_POWER_D1);
	ASSERT_TRUE(trace(false));
	ASSERT_TRUE(slurp(TRACING "trace", text, sizeof(text)));
	expect_order(text, "iommufd_dmabuf_revoked:", "state=revoked",
		     "vfio_pci_dma_bufs_drained:");
	test_power(PCI_POWER_D0);
	test_dma_write(LAB_BAR_IOVA);
	expect_landed(0, 1);
}

TEST_F_TIMEOUT(asleep, decode_turned_on, LAB_TIMEOUT)
{
	test_decode(false);
	test_power(PCI_POWER_D3HOT);
	test_decode(true);
	test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
	test_power(PCI_POWER_D0);
	test_map_and_use(self->dmabuf);
}

TEST_F_TIMEOUT(asleep, decode_turned_off, LAB_TIMEOUT)
{
	test_power(PCI_POWER_D3HOT);
	test_decode(false);
	test_power(PCI_POWER_D0);
	test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_BAR_IOVA);
	test_decode(true);
	test_map_and_use(self->dmabuf);
}

TEST_F_TIMEOUT(asleep, exported, LAB_TIMEOUT)
{
	int fd;

	test_power(PCI_POWER_D3HOT);
	fd = test_export(0, self->lab.bar_size);
	test_err_map_at(ENODEV, self->lab.ioas, fd, 0, SZ_4K, LAB_BAR_IOVA);
	test_power(PCI_POWER_D0);
	test_map_and_use(fd);
}

/* A reset wakes the device up */
TEST_F_TIMEOUT(asleep, reset, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	test_power(PCI_POWER_D3HOT);
	ASSERT_EQ(0, vfio_dev_reset(&self->lab.peer));
	test_unmap_all();
	test_map_and_use(self->dmabuf);
}

/* A BAR of many GiB. There is no memory behind it that a DMA could change. */
FIXTURE(big)
{
	struct lab lab;
	int dmabuf;
};

FIXTURE_SETUP(big)
{
	const struct pci_id pci_id_testdev = { 0x1b36, 0x0005 };
	char name[PCI_NAME_LEN];

	self->lab.peer.fd = -1;
	self->lab.buffers = dmabuf_count();
	self->lab.iommufd = iommufd_open();
	REQUIRE(self->lab.iommufd >= 0, "no /dev/iommu");
	REQUIRE(!lab_find("VM_BIGBAR", pci_id_testdev, name) &&
		!lab_open_peer(&self->lab, name), "no big BAR");
	lab_open_importer(_metadata, &self->lab);
	self->dmabuf = test_export(0, self->lab.bar_size);
}

FIXTURE_TEARDOWN(big)
{
	lab_close(_metadata, &self->lab);
}

/* Pages that IOMMU tables are made of, give or take what each CPU has not told yet */
static long iommu_pages(void)
{
	return lab_read_number("/proc/vmstat", "nr_iommu_pages %ld");
}

#define SOME_PAGES	500
#define NR_AREAS	4

/* Where IOVA and BAR are aligned alike, next to no tables are needed */
TEST_F_TIMEOUT(big, large_pages, LAB_TIMEOUT)
{
	const __u64 size = self->lab.bar_size;
	long before = iommu_pages();

	test_map_at(self->lab.ioas, self->dmabuf, 0, size, LAB_BIG_IOVA);
	EXPECT_GT(before + SOME_PAGES, iommu_pages());
	test_decode(false);
	test_decode(true);
	EXPECT_GT(before + SOME_PAGES, iommu_pages());
	test_unmap(self->lab.ioas, LAB_BIG_IOVA, size);
}

/* How long it takes to map is up to userspace: its cgroup pays for the tables */
TEST_F_TIMEOUT(big, map_under_way_is_not_waited_for, LAB_TIMEOUT)
{
	const __u64 size = self->lab.bar_size;
	/* For large pages it would have to be aligned as the BAR is */
	__u64 iova = LAB_BIG_IOVA + SZ_4K;
	__u64 start, whole, revoke;
	long before, full;
	int status;
	pid_t pid;

	before = iommu_pages();
	start = now_us();
	test_map_at(self->lab.ioas, self->dmabuf, 0, size, iova);
	whole = now_us() - start;
	full = iommu_pages();
	test_unmap(self->lab.ioas, iova, size);
	if (full == before)
		SKIP(return, "an IOMMU without tables has none to be charged for");
	ASSERT_LT(before + 2 * SOME_PAGES, full);

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(-ioas_map_file(self->lab.iommufd, self->lab.ioas, IOAS_RW | IOAS_FIXED,
				     self->dmabuf, 0, size, &iova));
	ASSERT_TRUE(wait_until(iommu_pages() > before + SOME_PAGES, LEAK_WAIT_MS));
	start = now_us();
	test_decode(false);
	revoke = now_us() - start;
	EXPECT_GT(whole / 2, revoke);
	EXPECT_GT(before + SOME_PAGES, iommu_pages());
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	TH_LOG("mapped in %llu us, revoked in %llu us", whole, revoke);

	/* All of it is mapped when the memory is back */
	test_decode(true);
	EXPECT_LT(full - SOME_PAGES, iommu_pages());
	test_unmap(self->lab.ioas, iova, size);
}

/*
 * Nor is how long it takes to map again. The device is closed by all but the one who
 * brings the memory back; to unbind the driver waits for the others to do so as well.
 */
TEST_F_TIMEOUT(big, restore_under_way_is_not_waited_for, LAB_TIMEOUT)
{
	const __u64 iova = LAB_BIG_IOVA + SZ_4K;
	const __u64 distance = 2 * self->lab.bar_size;
	pid_t restorer, unbinder;
	long before, full;
	char text[16384];
	int i, status;

	before = iommu_pages();
	test_map_at(self->lab.ioas, self->dmabuf, 0, self->lab.bar_size, iova);
	full = iommu_pages();
	if (full == before)
		SKIP(return, "an IOMMU without tables has none to be charged for");
	ASSERT_LT(before + 2 * SOME_PAGES, full);
	/* Enough for the unbind to come in time */
	for (i = 1; i < NR_AREAS; i++)
		test_copy_at(self->lab.ioas, self->lab.ioas, iova, self->lab.bar_size,
			     iova + i * distance);
	test_decode(false);

	REQUIRE(trace(true), "no tracepoints");
	restorer = fork();
	ASSERT_LE(0, restorer);
	if (!restorer)
		_exit(-vfio_dev_decode(&self->lab.peer, true));
	ASSERT_TRUE(wait_until(iommu_pages() > before + SOME_PAGES, LEAK_WAIT_MS));
	unbinder = fork();
	ASSERT_LE(0, unbinder);
	if (!unbinder)
		_exit(-fire_unbind(&self->lab));
	ASSERT_TRUE(wait_until(is_in_state(self->dmabuf, "dead"), LAB_TIMEOUT * 1000));
	EXPECT_GT(before + SOME_PAGES, iommu_pages());

	ASSERT_EQ(restorer, waitpid(restorer, &status, 0));
	EXPECT_EQ(0, status);
	lab_close_peer(&self->lab);
	ASSERT_EQ(unbinder, waitpid(unbinder, &status, 0));
	EXPECT_EQ(0, status);
	ASSERT_TRUE(trace(false));
	ASSERT_TRUE(slurp(TRACING "trace", text, sizeof(text)));
	expect_line(text, "iommufd_dmabuf_restored:", "ret=-125");
	for (i = 0; i < NR_AREAS; i++)
		test_unmap(self->lab.ioas, iova + i * distance, self->lab.bar_size);
}

#define CGROUPS		"/sys/fs/cgroup/"

static bool make_memory_cgroup(const char *path)
{
	return (!mount("cgroup2", CGROUPS, "cgroup2", 0, NULL) || errno == EBUSY) &&
	       spit(CGROUPS "cgroup.subtree_control", "+memory") && !mkdir(path, 0755);
}

/* Pages that IOMMU tables are made of and a memory cgroup is charged for, give or take */
static long charged_pages(const char *cgroup)
{
	static const char name[] = "\nsec_pagetables ";
	char path[128], text[8192], *line;

	snprintf(path, sizeof(path), "%s/memory.stat", cgroup);
	line = slurp(path, text, sizeof(text)) ? strstr(text, name) : NULL;
	return line ? strtol(line + strlen(name), NULL, 10) / SZ_4K : -1;
}

/* It is the owner who switches memory on, but not to his account that others map it */
TEST_F_TIMEOUT(big, restore_is_charged_to_importer, LAB_TIMEOUT)
{
	static const char importer[] = CGROUPS "importer";
	__u64 iova = LAB_BIG_IOVA + SZ_4K;
	long before, most;
	int status;
	pid_t pid;

	if (!make_memory_cgroup(importer))
		SKIP(return, "no memory cgroups");
	before = iommu_pages();
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (!spit(CGROUPS "importer/cgroup.procs", "0"))
			_exit(EIO);
		_exit(-ioas_map_file(self->lab.iommufd, self->lab.ioas, IOAS_RW | IOAS_FIXED,
				     self->dmabuf, 0, self->lab.bar_size, &iova));
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
	most = iommu_pages() - before;
	if (most) {
		ASSERT_LT(2 * SOME_PAGES, most);
		EXPECT_LT(most - SOME_PAGES, charged_pages(importer));
		test_decode(false);
		EXPECT_GT(SOME_PAGES, charged_pages(importer));
		test_decode(true);
		EXPECT_LT(most - SOME_PAGES, charged_pages(importer));
	}
	test_unmap(self->lab.ioas, iova, self->lab.bar_size);
	EXPECT_EQ(0, rmdir(importer));
	if (!most)
		SKIP(return, "an IOMMU without tables has none to be charged for");
}

/* Of the machine in vm/topology.mk; unplugging takes seconds, so all is in few tests */
#define UNPLUG_PEER	"{\"execute\":\"device_del\",\"arguments\":{\"id\":\"peer\"}}"
#define PLUG_PEER	"{\"execute\":\"device_add\",\"arguments\":{\"id\":\"peer\"," \
			"\"driver\":\"ivshmem-plain\",\"bus\":\"rp1\"}}"

/* As a VMM does it: let go of the device when asked to, and keep the dma-buf */
static int fire_unplug(struct lab *lab)
{
	struct pollfd request = {
		.fd = eventfd(0, 0),
		.events = POLLIN,
	};
	int ret;

	ret = vfio_dev_request_eventfd(&lab->peer, request.fd);
	if (!ret)
		ret = host_qmp(UNPLUG_PEER);
	if (ret)
		return ret;
	ret = poll(&request, 1, UNPLUG_WAIT_MS) == 1 ? 0 : -ETIMEDOUT;
	close(request.fd);
	lab_close_peer(lab);
	if (ret)
		return ret;
	return wait_until(!pci_present(lab->peer.name), UNPLUG_WAIT_MS) ? 0 : -ETIMEDOUT;
}

static int undo_unplug(struct lab *lab)
{
	int ret;

	ret = host_qmp(PLUG_PEER);
	if (ret)
		return ret;
	/* It shows up step by step, and cannot be bound before the last of them */
	if (!wait_until(!pci_bind_vfio(lab->peer.name), UNPLUG_WAIT_MS))
		return -ETIMEDOUT;
	/* VFIO resets what it opens, and does not wait for who has the device locked */
	wait_until((ret = undo_close(lab)) != -EAGAIN, UNPLUG_WAIT_MS);
	return ret;
}

/* The unplugged device is the one that QEMU knows as "peer", and no other */
static bool host_listens(struct lab *lab)
{
	const char *peer = getenv("VM_PEER");

	return getenv("VM_HOST") && peer && !strcmp(peer, lab->peer.name);
}

/*
 * 6.12 opens, and resets, a device with the lock of VFIO's device set held, and lets go of
 * it with those of pciehp, which a reset takes too: lockdep stops there.
 */
static bool lockdep_minds_pciehp(void)
{
	glob_t slots;
	bool found;

	found = !glob("/sys/bus/pci_express/drivers/pciehp/*:pcie*", GLOB_NOSORT, NULL, &slots);
	globfree(&slots);
	return found && !access("/proc/lockdep_stats", F_OK);
}

FIXTURE(hot_unplug)
{
	struct lab lab;
	int dmabuf;
};

FIXTURE_SETUP(hot_unplug)
{
	if (lockdep_minds_pciehp())
		SKIP(_exit(KSFT_SKIP), "lockdep finds fault with the locks of pciehp and VFIO");
	lab_open(_metadata, &self->lab, LAB_NEED_NOTHING);
	REQUIRE(host_listens(&self->lab), "no host that unplugs devices");
	self->dmabuf = test_export(0, self->lab.bar_size);
	test_load(1);
}

FIXTURE_TEARDOWN(hot_unplug)
{
	lab_close(_metadata, &self->lab);
}

TEST_F_TIMEOUT(hot_unplug, mapping_is_dead, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	ASSERT_EQ(0, fire_unplug(&self->lab));
	test_dma_write(LAB_BAR_IOVA);
	test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_COPY_IOVA);

	/* The new device has the addresses of the old one */
	ASSERT_EQ(0, undo_unplug(&self->lab));
	test_dma_write(LAB_BAR_IOVA);
	expect_nothing_landed();
	test_unmap_all();
	test_err_map_at(ENODEV, self->lab.ioas, self->dmabuf, 0, SZ_4K, LAB_COPY_IOVA);
	test_map_and_use(test_export(0, self->lab.bar_size));
}

TEST_F_TIMEOUT(hot_unplug, everything_unmapped_while_gone, LAB_TIMEOUT)
{
	test_map_and_use(self->dmabuf);
	ASSERT_EQ(0, edu_dma_start(&self->lab.edu, EDU_TO_MEMORY, LAB_BAR_IOVA, XFER));
	ASSERT_EQ(0, fire_unplug(&self->lab));
	ASSERT_EQ(0, edu_dma_wait(&self->lab.edu));
	test_unmap_all();
	close(self->dmabuf);
	EXPECT_TRUE(wait_until(dmabuf_count() == self->lab.buffers, LEAK_WAIT_MS));
	ASSERT_EQ(0, undo_unplug(&self->lab));
	lab_clear_bar(&self->lab);
	test_map_and_use(test_export(0, self->lab.bar_size));
}

TEST_HARNESS_MAIN
