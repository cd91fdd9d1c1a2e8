/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A PCI device driven from userspace through VFIO, by its character device.
 *
 * Functions return 0 or a positive result, and -errno on failure. Nothing here
 * waits without a bound, and nothing here knows about a test harness: the demo
 * and the benchmark use it too.
 */
#ifndef _DMABUF_SELFTEST_VFIO_DEV_H
#define _DMABUF_SELFTEST_VFIO_DEV_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <linux/types.h>
#include <linux/vfio.h>

/* Of "domain:bus:device.function", as sysfs names a device */
#define PCI_NAME_LEN 16

struct pci_id {
	__u16 vendor;
	__u16 device;
};

/* The parts that devices play in these tests */
extern const struct pci_id pci_id_edu;		/* initiator: a DMA engine */
extern const struct pci_id pci_id_ivshmem;	/* peer: BAR2 is memory */
extern const struct pci_id pci_id_nvme;		/* peer: has PM and FLR too */

#define PEER_BAR 2

enum {
	PCI_POWER_D0 = 0,
	PCI_POWER_D1 = 1,
	PCI_POWER_D3HOT = 3,
};

/**
 * struct vfio_dev - an open device, bound to an iommufd
 * @name: PCI name
 * @fd: character device, -1 if not open
 * @devid: object ID of the device in its iommufd
 */
struct vfio_dev {
	char name[PCI_NAME_LEN];
	int fd;
	__u32 devid;
};

/* Time */
__u64 now_us(void);
void pause_us(unsigned int us);

/* True as soon as @cond is, false after @ms of it being false */
#define wait_until(cond, ms)						\
({									\
	__u64 __end = now_us() + (ms) * 1000ULL;			\
	bool __done;							\
									\
	while (!(__done = !!(cond)) && now_us() < __end)		\
		pause_us(500);						\
	__done;								\
})

/* PCI through sysfs */
bool pci_matches(const char *name, struct pci_id id);
void pci_copy_name(char to[PCI_NAME_LEN], const char *from);
int pci_find(struct pci_id id, int nth, char name[PCI_NAME_LEN]);
int pci_find_below(const char *bridge, struct pci_id id, char name[PCI_NAME_LEN]);
int pci_find_io_bar(char name[PCI_NAME_LEN], int *bar);
int pci_parent(const char *name, char parent[PCI_NAME_LEN]);
bool pci_present(const char *name);
__u64 pci_bar_size(const char *name, int bar);
__u64 pci_bar_start(const char *name, int bar);
int pci_open(const char *name, const char *attr, int flags);
int pci_bind(const char *name, const char *driver);
int pci_bind_vfio(const char *name);
int pci_find_node(const char *name, const char *class, const char *prefix, const char *folder,
		  char *node, size_t len);
int pci_unbind(const char *name);

/* Open and close */
int vfio_dev_open(struct vfio_dev *dev, const char *name, int iommufd);
void vfio_dev_close(struct vfio_dev *dev);
int vfio_dev_attach(struct vfio_dev *dev, __u32 pt_id);
int vfio_dev_detach(struct vfio_dev *dev);

/* Regions */
int vfio_dev_region(struct vfio_dev *dev, __u32 index, struct vfio_region_info *info);
void *vfio_dev_mmap(struct vfio_dev *dev, __u32 index, size_t *size);

/* Config space */
int vfio_dev_config_read(struct vfio_dev *dev, int pos, void *val, int len);
int vfio_dev_config_write(struct vfio_dev *dev, int pos, const void *val, int len);
int vfio_dev_find_cap(struct vfio_dev *dev, __u8 id);
int vfio_dev_command(struct vfio_dev *dev, __u16 bits, bool on);
int vfio_dev_decode(struct vfio_dev *dev, bool on);
int vfio_dev_bus_master(struct vfio_dev *dev, bool on);
int vfio_dev_power(struct vfio_dev *dev, int state);
bool vfio_dev_has_flr(struct vfio_dev *dev);
int vfio_dev_flr(struct vfio_dev *dev);

/* Device ioctls */
int vfio_dev_reset(struct vfio_dev *dev);
int vfio_dev_hot_reset(struct vfio_dev *dev);
int vfio_dev_low_power(struct vfio_dev *dev, bool enter);
int vfio_dev_sleep(struct vfio_dev *dev, int eventfd);
int vfio_dev_request_eventfd(struct vfio_dev *dev, int eventfd);
int vfio_dev_feature(struct vfio_dev *dev, __u32 flags, const void *data, size_t len);

/* The exporter: a new dma-buf fd or -errno */
int vfio_dev_export(struct vfio_dev *dev, __u32 region, __u32 open_flags,
		    const struct vfio_region_dma_range *ranges, __u32 nr_ranges);
int vfio_dev_export_range(struct vfio_dev *dev, __u32 region, __u64 offset, __u64 length);

/* How many dma-bufs the whole system has, -errno if it does not tell */
long dmabuf_count(void);

#endif
