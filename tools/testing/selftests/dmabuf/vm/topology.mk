# SPDX-License-Identifier: GPL-2.0-only
#
# The machine, one variable per role. A role's name is the QEMU id of its
# device, so that a test can say it to host_qmp(), and init.c puts its PCI
# address into the environment: VM_PEER=0000:01:00.0 and so on.
#
#   root bus 0
#   +-- dma                     edu, DMA initiator for user space
#   +-- kdma                    edu, DMA initiator for a kernel driver
#   +-- slot 1 -- peer          ivshmem, hot-unpluggable, own group, bus reset
#   +-- slot 2 -+ pair0         ivshmem, function 0 \ one bus reset, and one
#   |           + pair1         ivshmem, function 1 / group, covers both
#   +-- slot 3 -- switch -+-- slot 4 -- swdma     edu      \ no ACS: reach each
#   |                     +-- slot 5 -- swdma2    edu      | other by bus, yet
#   |                     +-- slot 6 -- swpeer    ivshmem  / in groups apart
#   +-- slot 7 -- bigbar        pci-testdev, 16 GiB BAR 2; BAR 1 is I/O ports
#   +-- slot 8 -- nvme          nvme, memory in BAR 2; with PM, FLR and MSI-X
#
# The slot number, in the capability of the port, is what a role is found by.

comma := ,
PEER_SIZE ?= 16M
BIGBAR_SIZE ?= 16G
MEMORY ?= 1G
SMP ?= 2
# With a thread for each CPU QEMU 7.2 sometimes forgets that a timer interrupt was
# acknowledged: the CPU is idle, its local APIC holds the vector in service, and no timer
# fires there again.
ACCEL ?= tcg$(comma)thread=single
HOTPLUG ?= acpi
IOMMU ?= intel

ifeq ($(filter intel virtio smmuv3 none,$(IOMMU)),)
$(error IOMMU=$(IOMMU) is none of intel, virtio, smmuv3 and none)
endif

COMMON := -accel $(ACCEL) -m $(MEMORY) -nodefaults -no-user-config -display none \
	-no-reboot

ifeq ($(IOMMU),smmuv3)
MACHINE_ARCH := arm64
# Without firmware there is a device tree and no ACPI; MSIs are the GICv3's.
MACHINE := -machine virt,gic-version=3,iommu=smmuv3 -cpu cortex-a57 $(COMMON)
# A device tree asks for ACS too late for the root ports, which would then be in a
# group with what is behind them, and lose their own interrupts to VFIO.
BOOTARGS := console=ttyAMA0 pci=config_acs=xx111x1@pci:1b36:000c
# The first of the four has nothing to do.
PORTS := -serial chardev:console -chardev null,id=nobody \
	-device pci-serial-4x,chardev1=nobody,chardev2=verdict,chardev3=host,chardev4=out
else
MACHINE_ARCH := x86_64
# P2PDMA trusts the host bridge of AMD family 0x17 and later; QEMU's own
# qemu64 is an older AMD and is refused.
CPU := $(if $(filter yes,$(NOP2P)),qemu64,EPYC)
# On a busy host the guest mistakes the frequency of the TSC by any factor, and
# every timeout with it. Where instructions are counted it is right.
CPU := $(CPU)$(if $(ICOUNT),,$(comma)-tsc)
# Unplugging is by ACPI: pciehp of 6.12 has a lock order of its own that lockdep
# rightly reports, and is silent about our locks from then on.
# The IOMMU comes first: devices made before it would not be behind it.
MACHINE := -machine q35,kernel-irqchip=split -cpu $(CPU) $(COMMON) \
	-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=$(if $(filter native,$(HOTPLUG)),off,on) \
	$(if $(filter intel,$(IOMMU)),-device intel-iommu$(comma)intremap=on$(comma)aw-bits=48) \
	$(if $(filter virtio,$(IOMMU)),-device virtio-iommu-pci)
# virtio-iommu remaps no interrupts, and iommufd wants to be told that this is known.
BOOTARGS := console=ttyS0 $(if $(filter virtio,$(IOMMU)),iommufd.allow_unsafe_interrupts=1)
# An interrupt each: ISA lines cannot be shared with the first two.
PORTS := -device isa-serial,chardev=console,index=0 \
	-device isa-serial,chardev=verdict,index=1 \
	-device isa-serial,chardev=host,index=2,irq=5 \
	-device isa-serial,chardev=out,index=3,irq=7
endif

# port ID,SLOT: a hotplug-capable root port
port = -device pcie-root-port,id=$(1),chassis=$(2),slot=$(2)
downstream = -device xio3130-downstream,bus=up,id=$(1),chassis=$(2),slot=$(2)
# ivshmem ROLE,BUS[,OPTIONS]: memory that can be seen from both sides
ivshmem = -object memory-backend-memfd,id=$(1)-mem,size=$(PEER_SIZE),share=on \
	-device ivshmem-plain,id=$(1),memdev=$(1)-mem,bus=$(2)$(3)
# edu ROLE,BUS: a DMA engine, freed of its 28 bits
edu = -device edu,id=$(1),bus=$(2),dma_mask=0xffffffffffffffff

DMA := $(call edu,dma,pcie.0)
KDMA := $(call edu,kdma,pcie.0)
PEER := $(call port,rp1,1) $(call ivshmem,peer,rp1)
PAIR := $(call port,rp2,2) \
	$(call ivshmem,pair0,rp2,$(comma)addr=0.0$(comma)multifunction=on) \
	$(call ivshmem,pair1,rp2,$(comma)addr=0.1)
SWITCH := $(call port,rp3,3) -device x3130-upstream,id=up,bus=rp3
SWDMA := $(call downstream,dp4,4) $(call edu,swdma,dp4)
SWDMA2 := $(call downstream,dp5,5) $(call edu,swdma2,dp5)
SWPEER := $(call downstream,dp6,6) $(call ivshmem,swpeer,dp6)
BIGBAR := $(call port,rp7,7) \
	-device pci-testdev,id=bigbar,bus=rp7,membar=$(BIGBAR_SIZE)

# No drive: it is here for what it can do to itself
NVME := $(call port,rp8,8) \
	-device nvme,id=nvme,bus=rp8,serial=vmtest,cmb_size_mb=16

DEVICES := $(DMA) $(KDMA) $(PEER) $(PAIR) \
	$(SWITCH) $(SWDMA) $(SWDMA2) $(SWPEER) $(BIGBAR) $(NVME)

# role:vendor:device:slot.function; slot 0 is the root bus, and there the
# function counts the devices of that kind.
ROLES := dma:1234:11e8:0.0 kdma:1234:11e8:0.1 peer:1af4:1110:1.0 \
	pair0:1af4:1110:2.0 pair1:1af4:1110:2.1 \
	swdma:1234:11e8:4.0 swdma2:1234:11e8:5.0 swpeer:1af4:1110:6.0 \
	bigbar:1b36:0005:7.0 nvme:1b36:0010:8.0

# The iommu collection has a mock device, which finds its mock IOMMU only where
# there is no real one. It needs nothing else.
ifeq ($(IOMMU),none)
DEVICES :=
ROLES :=
endif
