// SPDX-License-Identifier: GPL-2.0-only
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/pci_regs.h>

#include "vfio_dev.h"

#define SYSFS_DEVICES	"/sys/bus/pci/devices"
#define SYSFS_PATH_MAX	256
#define NODE_PATH_MAX	128
#define CDEV_WAIT_MS	5000
#define CLASS_BRIDGE	0x06
#define RESOURCE_IO	0x100
#define RESOURCE_MEM	0x200
#define STD_BARS	6

const struct pci_id pci_id_edu = { 0x1234, 0x11e8 };
const struct pci_id pci_id_ivshmem = { 0x1af4, 0x1110 };
const struct pci_id pci_id_nvme = { 0x1b36, 0x0010 };

__u64 now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000ULL + ts.tv_nsec / 1000;
}

void pause_us(unsigned int us)
{
	struct timespec ts = {
		.tv_sec = us / 1000000,
		.tv_nsec = us % 1000000 * 1000L,
	};

	nanosleep(&ts, NULL);
}

/* A name that is too long is no device's, and finds none when it is cut off */
void pci_copy_name(char to[PCI_NAME_LEN], const char *from)
{
	snprintf(to, PCI_NAME_LEN, "%.*s", PCI_NAME_LEN - 1, from);
}

static int write_string(const char *path, const char *text)
{
	int fd, ret = 0;

	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

static int read_hex(const char *name, const char *attr, unsigned int *val)
{
	char path[SYSFS_PATH_MAX];
	FILE *file;
	int ret;

	snprintf(path, sizeof(path), SYSFS_DEVICES "/%s/%s", name, attr);
	file = fopen(path, "re");
	if (!file)
		return -errno;
	ret = fscanf(file, "%x", val) == 1 ? 0 : -EIO;
	fclose(file);
	return ret;
}

bool pci_matches(const char *name, struct pci_id id)
{
	unsigned int vendor, device;

	return !read_hex(name, "vendor", &vendor) && vendor == id.vendor &&
	       !read_hex(name, "device", &device) && device == id.device;
}

static int is_pci_name(const struct dirent *entry)
{
	return entry->d_name[0] != '.' && strlen(entry->d_name) < PCI_NAME_LEN;
}

/* Call @match for every device in the order of their addresses, until it says yes */
static int pci_search(bool (*match)(const char *name, void *arg), void *arg,
		      char name[PCI_NAME_LEN])
{
	struct dirent **list;
	int count, i, ret = -ENODEV;

	count = scandir(SYSFS_DEVICES, &list, is_pci_name, alphasort);
	if (count < 0)
		return -errno;
	for (i = 0; i < count; i++) {
		if (ret && match(list[i]->d_name, arg)) {
			pci_copy_name(name, list[i]->d_name);
			ret = 0;
		}
		free(list[i]);
	}
	free(list);
	return ret;
}

struct nth_match {
	struct pci_id id;
	int left;
};

static bool match_nth(const char *name, void *arg)
{
	struct nth_match *nth = arg;

	return pci_matches(name, nth->id) && nth->left-- == 0;
}

/* The @nth (from 0) device with this @id */
int pci_find(struct pci_id id, int nth, char name[PCI_NAME_LEN])
{
	struct nth_match match = { .id = id, .left = nth };

	return pci_search(match_nth, &match, name);
}

struct below_match {
	struct pci_id id;
	const char *bridge;
};

static bool match_below(const char *name, void *arg)
{
	struct below_match *below = arg;
	char parent[PCI_NAME_LEN];

	return pci_matches(name, below->id) && !pci_parent(name, parent) &&
	       !strcmp(parent, below->bridge);
}

/* The first device with this @id directly below the bridge of that name */
int pci_find_below(const char *bridge, struct pci_id id, char name[PCI_NAME_LEN])
{
	struct below_match match = { .id = id, .bridge = bridge };

	return pci_search(match_below, &match, name);
}

/* One line of the file "resource"; false if there is none for this BAR */
static bool pci_bar_resource(const char *name, int bar, __u64 *start, __u64 *size,
			     __u64 *flags)
{
	char path[SYSFS_PATH_MAX];
	uint64_t first, last, type;
	FILE *file;
	int i;

	snprintf(path, sizeof(path), SYSFS_DEVICES "/%s/resource", name);
	file = fopen(path, "re");
	if (!file)
		return false;
	for (i = 0; i <= bar; i++) {
		if (fscanf(file, "%" SCNx64 " %" SCNx64 " %" SCNx64, &first, &last, &type) != 3)
			break;
	}
	fclose(file);
	if (i <= bar || !last)
		return false;
	*start = first;
	*size = last - first + 1;
	*flags = type;
	return true;
}

/* Size of a memory BAR, 0 if it is none */
__u64 pci_bar_size(const char *name, int bar)
{
	__u64 start, size, flags;

	if (!pci_bar_resource(name, bar, &start, &size, &flags) || !(flags & RESOURCE_MEM))
		return 0;
	return size;
}

/* Where a memory BAR is, 0 if it is none */
__u64 pci_bar_start(const char *name, int bar)
{
	__u64 start, size, flags;

	if (!pci_bar_resource(name, bar, &start, &size, &flags) || !(flags & RESOURCE_MEM))
		return 0;
	return start;
}

/* What a device has in sysfs goes round VFIO, and is there while VFIO keeps everybody waiting */
int pci_open(const char *name, const char *attr, int flags)
{
	char path[SYSFS_PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), SYSFS_DEVICES "/%s/%s", name, attr);
	fd = open(path, flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static bool pci_has_driver(const char *name)
{
	char path[SYSFS_PATH_MAX];

	snprintf(path, sizeof(path), SYSFS_DEVICES "/%s/driver", name);
	return !access(path, F_OK);
}

static bool match_io_bar(const char *name, void *arg)
{
	unsigned int class;
	__u64 start, size, flags;
	int *bar = arg;

	if (read_hex(name, "class", &class) || class >> 16 == CLASS_BRIDGE ||
	    pci_has_driver(name))
		return false;
	for (*bar = 0; *bar < STD_BARS; ++*bar)
		if (pci_bar_resource(name, *bar, &start, &size, &flags) &&
		    (flags & RESOURCE_IO))
			return true;
	return false;
}

/* Some device that nobody drives and that has an I/O port BAR */
int pci_find_io_bar(char name[PCI_NAME_LEN], int *bar)
{
	return pci_search(match_io_bar, bar, name);
}

/* The bridge that the device is behind */
int pci_parent(const char *name, char parent[PCI_NAME_LEN])
{
	char link[SYSFS_PATH_MAX], path[PATH_MAX];
	char *base;

	snprintf(link, sizeof(link), SYSFS_DEVICES "/%s", name);
	if (!realpath(link, path))
		return -errno;
	base = basename(dirname(path));
	if (strlen(base) >= PCI_NAME_LEN)
		return -ENODEV;
	pci_copy_name(parent, base);
	return 0;
}

bool pci_present(const char *name)
{
	char path[SYSFS_PATH_MAX];

	snprintf(path, sizeof(path), SYSFS_DEVICES "/%s", name);
	return !access(path, F_OK);
}

int pci_unbind(const char *name)
{
	char path[SYSFS_PATH_MAX];

	if (!pci_has_driver(name))
		return 0;
	snprintf(path, sizeof(path), SYSFS_DEVICES "/%s/driver/unbind", name);
	return write_string(path, name);
}

static bool pci_driver_is(const char *name, const char *driver)
{
	char link[SYSFS_PATH_MAX], path[PATH_MAX];

	snprintf(link, sizeof(link), SYSFS_DEVICES "/%s/driver", name);
	return realpath(link, path) && !strcmp(basename(path), driver);
}

/* Give the device to this driver, whichever it has now; "" is its natural one */
int pci_bind(const char *name, const char *driver)
{
	char path[SYSFS_PATH_MAX];
	int ret;

	if (pci_driver_is(name, driver))
		return 0;
	snprintf(path, sizeof(path), SYSFS_DEVICES "/%s/driver_override", name);
	ret = write_string(path, *driver ? driver : "\n");
	if (!ret)
		ret = pci_unbind(name);
	if (!ret)
		ret = write_string("/sys/bus/pci/drivers_probe", name);
	if (ret)
		return ret;
	return !*driver || pci_driver_is(name, driver) ? 0 : -ENODEV;
}

int pci_bind_vfio(const char *name)
{
	return pci_bind(name, "vfio-pci");
}

/* Path of the node that the device has: class "misc", "frob" -> /dev/ @folder frob0 */
int pci_find_node(const char *name, const char *class, const char *prefix, const char *folder,
		  char *node, size_t len)
{
	char path[SYSFS_PATH_MAX];
	struct dirent *entry;
	int ret = -ENODEV;
	DIR *dir;

	snprintf(path, sizeof(path), SYSFS_DEVICES "/%s/%s", name, class);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while (ret && (entry = readdir(dir))) {
		if (strncmp(entry->d_name, prefix, strlen(prefix)))
			continue;
		snprintf(node, len, "/dev/%s%.64s", folder, entry->d_name);
		ret = 0;
	}
	closedir(dir);
	return ret;
}

/* The node of a device that is still being probed may be missing, or refuse */
static int vfio_dev_open_cdev(const char *name)
{
	char cdev[NODE_PATH_MAX];
	int ret, fd;

	ret = pci_find_node(name, "vfio-dev", "vfio", "vfio/devices/", cdev, sizeof(cdev));
	if (ret)
		return ret;
	fd = open(cdev, O_RDWR | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int vfio_dev_bind_iommufd(struct vfio_dev *dev, int iommufd)
{
	struct vfio_device_bind_iommufd bind = {
		.argsz = sizeof(bind),
		.iommufd = iommufd,
	};

	if (ioctl(dev->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind))
		return -errno;
	dev->devid = bind.out_devid;
	return 0;
}

/* Open the device, which must be vfio-pci's, with memory decode on */
int vfio_dev_open(struct vfio_dev *dev, const char *name, int iommufd)
{
	int ret;

	pci_copy_name(dev->name, name);
	wait_until((dev->fd = vfio_dev_open_cdev(name)) >= 0, CDEV_WAIT_MS);
	if (dev->fd < 0)
		return dev->fd;
	ret = vfio_dev_bind_iommufd(dev, iommufd);
	if (!ret)
		ret = vfio_dev_decode(dev, true);
	if (ret)
		vfio_dev_close(dev);
	return ret;
}

void vfio_dev_close(struct vfio_dev *dev)
{
	if (dev->fd >= 0)
		close(dev->fd);
	dev->fd = -1;
}

int vfio_dev_attach(struct vfio_dev *dev, __u32 pt_id)
{
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.pt_id = pt_id,
	};

	return ioctl(dev->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) ? -errno : 0;
}

int vfio_dev_detach(struct vfio_dev *dev)
{
	struct vfio_device_detach_iommufd_pt detach = {
		.argsz = sizeof(detach),
	};

	return ioctl(dev->fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach) ? -errno : 0;
}

int vfio_dev_region(struct vfio_dev *dev, __u32 index, struct vfio_region_info *info)
{
	*info = (struct vfio_region_info) {
		.argsz = sizeof(*info),
		.index = index,
	};
	return ioctl(dev->fd, VFIO_DEVICE_GET_REGION_INFO, info) ? -errno : 0;
}

/* Map a whole BAR; NULL if that is not possible */
void *vfio_dev_mmap(struct vfio_dev *dev, __u32 index, size_t *size)
{
	struct vfio_region_info info;
	void *va;

	if (vfio_dev_region(dev, index, &info) || !(info.flags & VFIO_REGION_INFO_FLAG_MMAP))
		return NULL;
	va = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, dev->fd, info.offset);
	if (va == MAP_FAILED)
		return NULL;
	*size = info.size;
	return va;
}

static int vfio_dev_config_offset(struct vfio_dev *dev, int pos, off_t *offset)
{
	struct vfio_region_info info;
	int ret;

	ret = vfio_dev_region(dev, VFIO_PCI_CONFIG_REGION_INDEX, &info);
	*offset = info.offset + pos;
	return ret;
}

/* 0, or why less than @len bytes were @done */
static int transferred(ssize_t done, int len)
{
	if (done < 0)
		return -errno;
	return done == len ? 0 : -EIO;
}

int vfio_dev_config_read(struct vfio_dev *dev, int pos, void *val, int len)
{
	off_t offset;

	return vfio_dev_config_offset(dev, pos, &offset) ?:
	       transferred(pread(dev->fd, val, len, offset), len);
}

int vfio_dev_config_write(struct vfio_dev *dev, int pos, const void *val, int len)
{
	off_t offset;

	return vfio_dev_config_offset(dev, pos, &offset) ?:
	       transferred(pwrite(dev->fd, val, len, offset), len);
}

/* Position of a capability, -ENOENT if the device has none of that kind */
int vfio_dev_find_cap(struct vfio_dev *dev, __u8 id)
{
	__u8 pos, cap[2];
	__u16 status;
	int ret, left;

	ret = vfio_dev_config_read(dev, PCI_STATUS, &status, sizeof(status));
	if (ret)
		return ret;
	if (!(status & PCI_STATUS_CAP_LIST))
		return -ENOENT;
	ret = vfio_dev_config_read(dev, PCI_CAPABILITY_LIST, &pos, sizeof(pos));
	for (left = 48; !ret && pos && left; left--) {
		ret = vfio_dev_config_read(dev, pos, cap, sizeof(cap));
		if (!ret && cap[PCI_CAP_LIST_ID] == id)
			return pos;
		pos = cap[PCI_CAP_LIST_NEXT];
	}
	return ret ?: -ENOENT;
}

/* Switch bits of the command register */
int vfio_dev_command(struct vfio_dev *dev, __u16 bits, bool on)
{
	__u16 command;
	int ret;

	ret = vfio_dev_config_read(dev, PCI_COMMAND, &command, sizeof(command));
	if (ret)
		return ret;
	command = on ? command | bits : command & ~bits;
	return vfio_dev_config_write(dev, PCI_COMMAND, &command, sizeof(command));
}

int vfio_dev_decode(struct vfio_dev *dev, bool on)
{
	return vfio_dev_command(dev, PCI_COMMAND_MEMORY, on);
}

int vfio_dev_bus_master(struct vfio_dev *dev, bool on)
{
	return vfio_dev_command(dev, PCI_COMMAND_MASTER, on);
}

/* Write a power state to the PM capability; -ENOENT if there is none */
int vfio_dev_power(struct vfio_dev *dev, int state)
{
	__u16 control;
	int cap, ret;

	cap = vfio_dev_find_cap(dev, PCI_CAP_ID_PM);
	if (cap < 0)
		return cap;
	ret = vfio_dev_config_read(dev, cap + PCI_PM_CTRL, &control, sizeof(control));
	if (ret)
		return ret;
	control = (control & ~PCI_PM_CTRL_STATE_MASK) | state;
	return vfio_dev_config_write(dev, cap + PCI_PM_CTRL, &control, sizeof(control));
}

bool vfio_dev_has_flr(struct vfio_dev *dev)
{
	__u32 devcap;
	int cap;

	cap = vfio_dev_find_cap(dev, PCI_CAP_ID_EXP);
	return cap > 0 &&
	       !vfio_dev_config_read(dev, cap + PCI_EXP_DEVCAP, &devcap, sizeof(devcap)) &&
	       (devcap & PCI_EXP_DEVCAP_FLR);
}

/* Function level reset, the way a guest driver asks for it */
int vfio_dev_flr(struct vfio_dev *dev)
{
	__u16 control;
	int cap, ret;

	cap = vfio_dev_find_cap(dev, PCI_CAP_ID_EXP);
	if (cap < 0)
		return cap;
	ret = vfio_dev_config_read(dev, cap + PCI_EXP_DEVCTL, &control, sizeof(control));
	if (ret)
		return ret;
	control |= PCI_EXP_DEVCTL_BCR_FLR;
	return vfio_dev_config_write(dev, cap + PCI_EXP_DEVCTL, &control, sizeof(control));
}

int vfio_dev_reset(struct vfio_dev *dev)
{
	return ioctl(dev->fd, VFIO_DEVICE_RESET) ? -errno : 0;
}

/* Is everything that a hot reset would hit ours? */
static int vfio_dev_hot_reset_owned(struct vfio_dev *dev)
{
	struct {
		struct vfio_pci_hot_reset_info info;
		struct vfio_pci_dependent_device devices[32];
	} arg = {
		.info.argsz = sizeof(arg),
	};

	if (ioctl(dev->fd, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &arg))
		return -errno;
	return arg.info.flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED ? 0 : -EPERM;
}

/* Reset of the bus; a device that was opened by cdev proves ownership by its iommufd */
int vfio_dev_hot_reset(struct vfio_dev *dev)
{
	struct vfio_pci_hot_reset reset = {
		.argsz = sizeof(reset),
	};
	int ret;

	ret = vfio_dev_hot_reset_owned(dev);
	if (ret)
		return ret;
	return ioctl(dev->fd, VFIO_DEVICE_PCI_HOT_RESET, &reset) ? -errno : 0;
}

/* VFIO_DEVICE_FEATURE with @len bytes of @data behind the header */
int vfio_dev_feature(struct vfio_dev *dev, __u32 flags, const void *data, size_t len)
{
	struct vfio_device_feature *feature;
	int ret;

	feature = malloc(sizeof(*feature) + len);
	if (!feature)
		return -ENOMEM;
	feature->argsz = sizeof(*feature) + len;
	feature->flags = flags;
	if (len)
		memcpy(feature->data, data, len);
	ret = ioctl(dev->fd, VFIO_DEVICE_FEATURE, feature);
	if (ret < 0)
		ret = -errno;
	free(feature);
	return ret;
}

int vfio_dev_low_power(struct vfio_dev *dev, bool enter)
{
	__u32 feature = enter ? VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY :
				VFIO_DEVICE_FEATURE_LOW_POWER_EXIT;

	return vfio_dev_feature(dev, VFIO_DEVICE_FEATURE_SET | feature, NULL, 0);
}

/* Let the device sleep until somebody needs it, and have @eventfd signalled then */
int vfio_dev_sleep(struct vfio_dev *dev, int eventfd)
{
	struct vfio_device_low_power_entry_with_wakeup entry = { .wakeup_eventfd = eventfd };

	return vfio_dev_feature(dev, VFIO_DEVICE_FEATURE_SET |
				VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP,
				&entry, sizeof(entry));
}

/* Have @eventfd signalled when the kernel wants the device back */
int vfio_dev_request_eventfd(struct vfio_dev *dev, int eventfd)
{
	char buf[sizeof(struct vfio_irq_set) + sizeof(__s32)];
	struct vfio_irq_set *set = (struct vfio_irq_set *)buf;

	*set = (struct vfio_irq_set) {
		.argsz = sizeof(buf),
		.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
		.index = VFIO_PCI_REQ_IRQ_INDEX,
		.count = 1,
	};
	memcpy(set->data, &eventfd, sizeof(eventfd));
	return ioctl(dev->fd, VFIO_DEVICE_SET_IRQS, set) ? -errno : 0;
}

int vfio_dev_export(struct vfio_dev *dev, __u32 region, __u32 open_flags,
		    const struct vfio_region_dma_range *ranges, __u32 nr_ranges)
{
	size_t len = sizeof(struct vfio_device_feature_dma_buf) + nr_ranges * sizeof(*ranges);
	struct vfio_device_feature_dma_buf *get;
	int ret;

	get = malloc(len);
	if (!get)
		return -ENOMEM;
	*get = (struct vfio_device_feature_dma_buf) {
		.region_index = region,
		.open_flags = open_flags,
		.nr_ranges = nr_ranges,
	};
	memcpy(get->dma_ranges, ranges, nr_ranges * sizeof(*ranges));
	ret = vfio_dev_feature(dev, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
			       get, len);
	free(get);
	return ret;
}

/* As VMMs do it: one range, read-write, and no O_CLOEXEC */
int vfio_dev_export_range(struct vfio_dev *dev, __u32 region, __u64 offset, __u64 length)
{
	struct vfio_region_dma_range range = {
		.offset = offset,
		.length = length,
	};

	return vfio_dev_export(dev, region, O_RDWR, &range, 1);
}

long dmabuf_count(void)
{
	char line[512];
	long count = -EIO;
	FILE *file;

	file = fopen("/sys/kernel/debug/dma_buf/bufinfo", "re");
	if (!file)
		return -errno;
	while (fgets(line, sizeof(line), file))
		sscanf(line, "Total %ld objects", &count);
	fclose(file);
	return count;
}
