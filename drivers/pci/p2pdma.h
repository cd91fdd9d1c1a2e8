/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _DRIVERS_PCI_P2PDMA_H
#define _DRIVERS_PCI_P2PDMA_H

#include <linux/dma-map-ops.h>

struct device;
struct pci_dev;

enum pci_p2pdma_map_type pci_p2pdma_mmio_map_type(struct pci_dev *provider,
						  struct device *client);

#endif
