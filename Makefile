# Everything works in a fresh clone on Debian 12, as root or with sudo: `make demo` and `make test` set up what is missing.

SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin

PYTHON := .venv/bin/python
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E) env PATH="$$PATH" PYTHONDONTWRITEBYTECODE=1
WORKERS ?= 6
SECONDS = 600
INPUTS ?= 100000
SEED ?= 1
SUITES ?=
ARGS ?=

# Where 'make install' puts things. DESTDIR is put before each of them.
PREFIX ?= /opt/felixpy
SYSTEMD ?= /usr/local/lib/systemd
SBIN ?= /usr/local/sbin
SYSTEM_PYTHON ?= /usr/bin/python3
IN := $(DESTDIR)$(PREFIX)
export PREFIX DESTDIR IN
RUNNING_SYSTEMD := $(if $(DESTDIR),,$(wildcard /run/systemd/system))

.PHONY: help setup demo test test-quick test-kernels soak fuzz bench lint clean cni image conformance test-api test-chart install uninstall deb

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/ready: pyproject.toml constraints.txt .ci/constraints.txt .ci/setup
	@.ci/setup

setup: .venv/ready ## install missing Debian packages and make .venv

demo: .venv/ready ## show felixpy working on real packets; make demo ARGS="--backend legacy --keep"
	@$(AS_ROOT) .venv/bin/felixpy demo $(ARGS)

PYTEST := $(AS_ROOT) FELIXPY_TEST_COMPLETE=1 $(PYTHON) -m pytest -q

test: .venv/ready ## all tests, on the real kernel in private namespaces; make test ARGS="-k nat"
	@.ci/setup tests
	@$(PYTHON) -m compileall -q felixpy tests  # a thousand processes are started; as root they compile for themselves
	-@$(AS_ROOT) .ci/debian-tree >/dev/null  # where it cannot be made, the tests that need it say so
	@$(PYTEST) -n $(WORKERS) $(ARGS)

# What tells whether the product works with the versions that are installed: every package that it imports is used.
QUICK := $(addprefix tests/,model store calc sources observe cli check agent dataplane/iptables netlink \
    test_config.py test_slices.py test_tree.py)

test-quick: .venv/ready ## the part of the tests that needs no lab, about 3 minutes; make test-quick PYTHON=/other/bin/python
	@$(PYTHON) -m compileall -q felixpy tests
	@$(PYTEST) -n $(WORKERS) $(QUICK) $(ARGS)

conformance: .venv/ready ## upstream's tests of Kubernetes on two nodes with felixpy; make conformance SUITES="netpol"
	@.ci/setup kubernetes
	@$(AS_ROOT) PYTHON=$(CURDIR)/$(PYTHON) tests/kubernetes/conformance.sh $(SUITES)

test-api: .venv/ready ## the Kubernetes source against a real API server, in a private namespace
	@.ci/setup kubernetes
	@$(AS_ROOT) tests/kubernetes/build.sh --missing kube
	@FELIXPY_TEST_API=1 $(PYTEST) tests/kubernetes/api $(ARGS)

test-chart: .venv/ready ## the Helm chart by helm itself: lint, and what its templates make; builds helm where there is none
	@command -v helm >/dev/null || PYTHON=$(CURDIR)/$(PYTHON) tests/kubernetes/build.sh --missing helm
	@PATH="$${CACHE:-$$HOME/.cache/felixpy-kubernetes}/bin:$$PATH" $(PYTHON) -m pytest -q tests/packaging/test_chart.py $(ARGS)

test-kernels: .venv/ready ## IPIP and WireGuard with packets, on a Debian kernel that is booted under qemu, 10 to 20 minutes
	@.ci/setup kernels || { echo "test-kernels: not run: qemu cannot be installed here" >&2; exit 1; }
	@$(PYTHON) -m compileall -q felixpy tests
	@$(AS_ROOT) tests/kernels/boot $(PYTHON) -m pytest -q --color=no -p no:cacheprovider $(if $(ARGS),$(ARGS),tests/kernels tests/underlay/test_wireguard.py tests/underlay/test_wireguard_hosts.py)

soak: .venv/ready ## random operations under live traffic; make soak SECONDS=600 ARGS="--backend legacy --seed 1"
	@$(AS_ROOT) $(PYTHON) -m tests.soak.run $(SECONDS) $(ARGS)

fuzz: .venv/ready ## the parsers of the stream against random input; make fuzz INPUTS=100000 SEED=1
	@$(PYTHON) -m tests.model.fuzz_parse $(INPUTS) $(SEED)

cni: build/felixpy-cni ## the CNI plugin that container runtimes start: build/felixpy-cni, one file without libraries

build/felixpy-cni: felixpy/cni/stub/felixpy-cni.c
	@mkdir -p build
	gcc -static -O2 -std=c11 -Wall -Wextra -Werror -o $@ $<

# The image as an archive for nodes without a registry. CTR="ctr --address …" also loads it into that containerd;
# IMAGE_OPTIONS go to 'buildah build': what a machine needs in order to reach packages, for example.
BASE ?= debian:12.12-slim
BUILDAH ?= buildah
IMAGE_OPTIONS ?=
CTR ?=
IMAGE_NAME = docker.io/library/felixpy:$(VERSION)

image: ## the image that the manifests name: build/image.tar; make image CTR=ctr also loads it into this node's containerd
	@mkdir -p build
	$(BUILDAH) build $(IMAGE_OPTIONS) --format docker --build-arg BASE=$(BASE) --build-arg VERSION=$(VERSION) --tag $(IMAGE_NAME) .
	@rm -f build/image.tar
	$(BUILDAH) push $(IMAGE_NAME) docker-archive:build/image.tar:$(IMAGE_NAME)
	$(if $(CTR),$(CTR) --namespace k8s.io images import build/image.tar)

.venv/bench-ready: .venv/ready
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --constraint .ci/constraints.txt --editable '.[bench]'
	@touch $@

bench: .venv/bench-ready ## measure latency beside other techniques, write docs/performance.md; BENCH=quick make bench
	@$(PYTHON) -m compileall -q felixpy bench  # as pip does: as root the agent would compile itself at each start
	@$(AS_ROOT) $(PYTHON) -m bench $(if $(filter quick,$(BENCH)),--quick) $(ARGS)

lint: .venv/ready ## formatting, lint, types, import directions, and what does not belong into the tree
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@$(PYTHON) -m mypy
	@.venv/bin/lint-imports
	@.ci/check-tree

# PREFIX is made as a whole by 'make install' and removed as a whole by 'make uninstall': it must be a folder of felixpy's
# own, such as /opt/felixpy, and never one that others use, such as /usr/local. MARK says whose it is.
MARK := .felixpy-prefix
define check_prefix
@refuse() { echo "make $@: PREFIX '$$PREFIX': $$1" >&2; exit 1; }; \
case "$$DESTDIR$$PREFIX" in *[!A-Za-z0-9_./+,:@~-]*) refuse "it or DESTDIR has characters that no such folder needs";; esac; \
case "$$PREFIX/" in */./*|*/../*) refuse "write it without . and ..";; esac; \
case "$$PREFIX" in /*[!/]/[!/]*) ;; *) refuse "must be an absolute path of at least two names, like /opt/felixpy";; esac
endef

install: ## the agent and its systemd units on this machine, also over an older one; starts nothing
	$(check_prefix); \
	if [ -e "$$IN" ] && [ ! -d "$$IN" ]; then refuse "$$IN is not a folder; name another PREFIX"; fi; \
	if [ -d "$$IN" ] && [ ! -e "$$IN/$(MARK)" ] && [ -n "$$(ls -A "$$IN")" ]; then \
	    refuse "$$IN exists and 'make install' did not make it; name a folder of its own (one of a felixpy before the mark: touch $$IN/$(MARK))"; fi
	install -d $(IN)
	echo "'make uninstall' removes this folder with all that is in it" >$(IN)/$(MARK)
	test -x $(IN)/bin/pip || $(SYSTEM_PYTHON) -m venv $(IN)
	$(IN)/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 --constraint constraints.txt .
	sed -i '1s|^#!.*|#!$(PREFIX)/bin/python3|' $(IN)/bin/felixpy
	install -d $(DESTDIR)/etc/felixpy/resources $(DESTDIR)$(SBIN)
	ln -sfn $(PREFIX)/bin/felixpy $(DESTDIR)$(SBIN)/felixpy
	install -D -m 644 -t $(IN)/share/doc README.md CHANGELOG.md LICENSE docs/*.md
	install -D -m 644 -t $(DESTDIR)$(SYSTEMD)/system systemd/felixpy.service systemd/felixpy-wait.service
	sed -i 's|/opt/felixpy|$(PREFIX)|' $(DESTDIR)$(SYSTEMD)/system/felixpy.service
	install -D -m 644 systemd/networkd.conf $(DESTDIR)$(SYSTEMD)/networkd.conf.d/50-felixpy.conf
	install -D -m 644 systemd/workloads.network $(DESTDIR)$(SYSTEMD)/network/05-felixpy.network
	install -D -m 644 systemd/NetworkManager.conf $(DESTDIR)/etc/NetworkManager/conf.d/50-felixpy.conf
	test -e $(DESTDIR)/etc/default/felixpy || install -D -m 600 systemd/felixpy.env $(DESTDIR)/etc/default/felixpy
	test -e $(DESTDIR)/etc/felixpy/felixpy.toml || install -m 600 config/felixpy.toml $(DESTDIR)/etc/felixpy/felixpy.toml
	$(if $(RUNNING_SYSTEMD),systemctl daemon-reload)

uninstall: ## stop the service and remove what install made; settings and the kernel's state stay (first: felixpy cleanup)
	$(check_prefix); \
	if [ -e "$$IN" ] && { [ ! -e "$$IN/$(MARK)" ] || [ ! -e "$$IN/pyvenv.cfg" ]; }; then \
	    refuse "$$IN is not removed: 'make install' did not make it (no $(MARK) or no pyvenv.cfg in it); name the PREFIX of the installation"; fi
	$(if $(RUNNING_SYSTEMD),-systemctl disable --quiet --now felixpy.service felixpy-wait.service)
	rm -rf $(IN)
	rm -f $(DESTDIR)$(SBIN)/felixpy $(DESTDIR)/etc/NetworkManager/conf.d/50-felixpy.conf
	rm -f $(addprefix $(DESTDIR)$(SYSTEMD)/,system/felixpy.service system/felixpy-wait.service)
	rm -f $(addprefix $(DESTDIR)$(SYSTEMD)/,networkd.conf.d/50-felixpy.conf network/05-felixpy.network)
	$(if $(RUNNING_SYSTEMD),systemctl daemon-reload)

DEB = $(CURDIR)/build/deb
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
python_is = $(shell $(SYSTEM_PYTHON) -c 'import sys; a, b = sys.version_info[:2]; print(f"$(1)")')

deb: ## a Debian package of it, for nodes without compiler and pip: dist/felixpy_VERSION_ARCHITECTURE.deb
	rm -rf $(DEB)
	$(MAKE) install DESTDIR=$(DEB) PREFIX=/usr/lib/felixpy SYSTEMD=/usr/lib/systemd SBIN=/usr/sbin
	$(DEB)/usr/lib/felixpy/bin/python -m pip uninstall --quiet --yes pip setuptools
	find $(DEB)/usr/lib/felixpy/bin -type f ! -name felixpy -delete
	install -D -m 755 -t $(DEB)/DEBIAN config/deb/postinst config/deb/prerm config/deb/postrm
	install -m 644 -t $(DEB)/DEBIAN config/deb/conffiles
	sed -e 's/@VERSION@/$(VERSION)/; s/@PYTHON@/$(call python_is,{a}.{b})/; s/@NEXT_PYTHON@/$(call python_is,{a}.{b + 1})/' \
	    -e "s/@ARCHITECTURE@/$$(dpkg --print-architecture)/" config/deb/control >$(DEB)/DEBIAN/control
	mkdir -p dist
	dpkg-deb --root-owner-group -Zzstd --build $(DEB) dist

clean: ## remove .venv and every cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
