# Everything generated lives in build/ and out/.

VM := build/linux/tools/testing/selftests/dmabuf/vm
OUT := $(CURDIR)/build/vm
IMAGE := $(OUT)/kernel/arch/x86/boot/bzImage
# A machine keeps one processor busy. Together they make the rounds of the storm.
MACHINES := $(shell nproc)
vm_is_there = test -f $(VM)/Makefile || \
	{ echo "error: the composed tree has no $(VM); add the tests to the series" >&2; exit 1; }
MAKEFLAGS += --no-print-directory

.PHONY: help deps base compose kernel-image demo check check-iommus fuzz stress kcsan coverage bench series \
	kernel lint lint-builds model mutants bisect test-compose clean distclean

help: ## list the targets
	@awk -F ' *[#][#] *' '/^[a-z-]+:.*##/ { sub(/:.*/, "", $$1); printf "%-14s %s\n", $$1, $$2 }' \
		$(firstword $(MAKEFILE_LIST))

deps: ## install what building and running needs
	@lab/install-deps kernel vm

base: ## fetch the kernel source into build/linux
	@lab/fetch-base

compose: base ## make the series, base + patches + overlay, in build/linux
	@lab/compose

kernel-image: ## build the kernel; make -s kernel-image prints only its path
	@$(MAKE) deps compose >&2
	@$(vm_is_there)
	@$(MAKE) -C $(VM) kernel O=$(OUT) >&2
	@echo $(IMAGE)

demo: deps compose ## show the whole path in a VM, and draw a revoke in out/timeline.svg
	@$(vm_is_there)
	@$(MAKE) -C $(VM) demo O=$(OUT) TIMELINE=$(CURDIR)/out/timeline.svg

check: ## run everything that is tested, and sum up
	@lab/check

fuzz: deps compose ## make FUZZ_CALLS random calls, a million, in a VM; FUZZ_SEED=n for others
	@$(vm_is_there)
	@$(MAKE) -C $(VM) run O=$(OUT) RESULT=$(OUT)/result-fuzz TESTS=dmabuf:fuzz_test DEBUG=yes \
		ENV="FUZZ_CALLS=$(or $(FUZZ_CALLS),1000000) $(if $(FUZZ_SEED),FUZZ_SEED=$(FUZZ_SEED))"

stress: deps compose ## revoke 100000 times with everything else going on, in MACHINES; or ROUNDS=n
	@$(vm_is_there)
	@$(MAKE) -C $(VM) kernel initramfs O=$(OUT) TESTS=dmabuf DEBUG=yes
	@seq $(MACHINES) | xargs -P 0 -I{} $(MAKE) -C $(VM) rerun O=$(OUT) RESULT=$(OUT)/result-stress-{} \
		TESTS=dmabuf:stress_test DEBUG=yes TIMEOUT=$(or $(TIMEOUT),14400) \
		ROUNDS=$$((($(or $(ROUNDS),100000) + $(MACHINES) - 1) / $(MACHINES)))

kcsan: deps compose ## look for data races while that goes on, for 3000 revokes; or ROUNDS=n
	@$(vm_is_there)
	@$(MAKE) -C $(VM) run O=$(OUT) RESULT=$(OUT)/result-kcsan TESTS=dmabuf:stress_test CHECK=kcsan \
		ROUNDS=$(or $(ROUNDS),3000) TIMEOUT=$(or $(TIMEOUT),3600)

check-iommus: deps compose ## run the tests behind virtio-iommu and, on arm64, SMMUv3
	@lab/install-deps arm64
	@lab/check virtio-all smmuv3

coverage: deps compose ## show which lines and branches of the series the tests execute
	@lab/install-deps coverage
	@lab/check coverage

bench: deps compose ## measure this kernel and an unpatched one, and compare
	@$(vm_is_there)
	@lab/bench

series: ## write the mailable series into out/
	@lab/series

kernel: ## apply the series to your own tree, KERNEL_TREE=/path/to/linux-6.12.y
	@lab/apply-to-tree $(if $(KERNEL_TREE),"$(KERNEL_TREE)")

lint: compose ## check scripts, commits, comments, documentation and code without running them
	@lab/install-deps kernel lint
	@lab/check shellcheck checkpatch kernel-doc docs coccinelle sparse test-cocci

lint-builds: compose ## what takes longer: compile with gcc and clang, with W=1; more of coccinelle
	@lab/install-deps kernel lint clang
	@lab/check coccinelle-misc gcc clang

model: compose ## check the model of the revoke protocol with spin
	@lab/install-deps model
	@lab/check model

mutants: compose ## put bugs into the kernel, one at a time, and see the tests fail
	@lab/install-deps kernel vm
	@lab/mutation-test

bisect: compose ## build each commit in each configuration
	@lab/install-deps kernel arm64
	@lab/bisect

test-compose: ## test the scripts that keep the series
	@lab/test-compose

clean: ## remove what was built, keep the kernel source
	rm -rf out $(filter-out build/linux,$(wildcard build/*))

distclean: ## remove everything generated; commits made in build/linux too
	rm -rf out build
