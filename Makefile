# Safeconduct. `make help` lists the targets; README.md says what the two of them that you need print.
SHELL := /bin/bash
.DEFAULT_GOAL := help

GO          ?= go
BUILD       := build
VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS     := -X github.com/safeconduct/safeconduct/services/version.Version=$(VERSION)
GOBUILD     := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
BUF         := $(GO) tool -modfile=tools/buf/go.mod buf
LINT        := $(GO) tool -modfile=tools/lint/go.mod golangci-lint
BENCHSTAT   := $(GO) tool -modfile=tools/go.mod benchstat

# What the demo and the end-to-end suite run: real QEMU, swtpm and a Debian kernel for the guest.
DEB_PACKAGES := qemu-system-x86 swtpm swtpm-tools iproute2 linux-image-cloud-amd64 spin gcc libc6-dev tcpdump prometheus
# What make e2e-libvirt adds: two real libvirtd.
DEB_LIBVIRT := libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients ovmf tcpdump procps util-linux

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-15s %s\n", $$1, $$2}'

.PHONY: deps
deps: ## Install what the demo and make e2e need (Debian 12; root or sudo)
	@./test/deps.sh $(DEB_PACKAGES)

.PHONY: build
build: ## Build the binaries into build/bin
	@mkdir -p $(BUILD)/bin
	$(GOBUILD) -o $(BUILD)/bin/ ./cmd/...

# What make test-nova and make lint-nova add: Nova itself with its tests, and what generates the stubs.
DEB_NOVA := python3-nova python3-libvirt python3-grpcio python3-protobuf patch protobuf-compiler protobuf-compiler-grpc libprotobuf-dev \
	python3-oslotest python3-stestr python3-testtools python3-ddt python3-requests-mock python3-gabbi python3-testresources python3-testscenarios \
	python3-wsgi-intercept python3-osprofiler python3-placement python3-flake8 python3-hacking

.PHONY: demo
demo: deps build ## The main job on this machine: a VM with a vTPM migrates under mutual attestation
	@mkdir -p $(BUILD)/demo/bin
	$(GOBUILD) -o $(BUILD)/demo/bin/ ./test/demo ./test/vm/guest ./test/vm/tap
	@$(BUILD)/demo/bin/demo --bin $(BUILD)/bin --demo-bin $(BUILD)/demo/bin --out $(BUILD)/demo

.PHONY: test
test: ## Unit and integration tests under the race detector; no root, no QEMU
	$(GO) test -race -timeout 20m ./...

.PHONY: e2e
e2e: demo ## End-to-end suite: real QEMU and swtpm, fault injection; root
	$(BUILD)/demo/bin/demo --faults --bin $(BUILD)/bin --demo-bin $(BUILD)/demo/bin --out $(BUILD)/demo
	SAFECONDUCT_E2E=1 $(GO) test -count=1 -timeout 60m -v ./test/vm/... ./test/tunnelvm/... ./services/vtpm/...

.PHONY: e2e-libvirt
e2e-libvirt: ## The helper and the tunnel under two real libvirtd, in namespaces of their own; root, half an hour
	@./test/deps.sh $(DEB_PACKAGES) $(DEB_LIBVIRT)
	@./test/deps.sh debootstrap
	@./test/suite.sh forky $(BUILD)/_suites/forky swtpm swtpm-tools
	SAFECONDUCT_SWTPM_ROOT=$(CURDIR)/$(BUILD)/_suites/forky SAFECONDUCT_E2E=1 $(GO) test -count=1 -timeout 90m -v ./test/libvirt/...

# What charts are checked and installed with; they share one go.mod.
CHART_TOOLS := $(addprefix $(BUILD)/tools/,helm helm-unittest helm-docs)
$(CHART_TOOLS) &: tools/helm/go.mod
	@mkdir -p $(BUILD)/tools
	CGO_ENABLED=0 $(GO) build -modfile=tools/helm/go.mod -o $(BUILD)/tools/ \
	  helm.sh/helm/v3/cmd/helm github.com/helm-unittest/helm-unittest/cmd/helm-unittest github.com/norwoodj/helm-docs/cmd/helm-docs
	@touch $(CHART_TOOLS)

.PHONY: lint-charts
lint-charts: $(CHART_TOOLS) ## charts/: helm lint, unit tests, schema, strict types on three Kubernetes versions, promtool
	@./test/deps.sh prometheus
	@TOOLS=$(BUILD)/tools ./test/charts.sh

.PHONY: test-openstack-helm
test-openstack-helm: $(CHART_TOOLS) ## Render others' charts with deploy/openstack-helm: OPENSTACK_HELM=DIR ATMOSPHERE=DIR GENESTACK=DIR, checkouts of yours
	cd test/kubernetes && OPENSTACK_HELM=$(OPENSTACK_HELM) ATMOSPHERE=$(ATMOSPHERE) GENESTACK=$(GENESTACK) $(GO) test -count=1 -v ./handover

.PHONY: generate-charts
generate-charts: $(CHART_TOOLS) ## charts/safeconduct/README.md by helm-docs
	$(BUILD)/tools/helm-docs --chart-search-root charts --log-level warning

.PHONY: images
IMAGE_TAG ?= 0.1.0
images: build ## Container images and their SBOMs into build/images, without a container engine; the same bytes each time
	$(GO) -C deploy/images run . --bin $(CURDIR)/$(BUILD)/bin --out $(CURDIR)/$(BUILD)/images --tag $(IMAGE_TAG) --licence $(CURDIR)/LICENSE

.PHONY: test-images
test-images: ## What is in the images, and that they are the same each time
	@./test/deps.sh binutils
	cd deploy/images && $(GO) test -count=1 ./...

# What make e2e-kubernetes adds. Kubernetes itself is built from its module, once: about a quarter of an hour on two free cores.
DEB_KUBERNETES := etcd-server containerd runc containernetworking-plugins iproute2 util-linux swtpm
KUBERNETES := $(addprefix $(BUILD)/kubernetes/,kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl)
KUBERNETES_LDFLAGS := -s -w -X k8s.io/component-base/version.gitVersion=v1.34.4 -X k8s.io/component-base/version.gitMajor=1 \
	-X k8s.io/component-base/version.gitMinor=34
$(KUBERNETES) &: test/kubernetes/binaries/go.mod
	@mkdir -p $(BUILD)/kubernetes
	cd test/kubernetes/binaries && CGO_ENABLED=0 nice $(GO) build -trimpath -ldflags '$(KUBERNETES_LDFLAGS)' -o $(CURDIR)/$(BUILD)/kubernetes/ \
	  $(addprefix k8s.io/kubernetes/cmd/,$(notdir $(KUBERNETES)))
	@touch $(KUBERNETES)

.PHONY: e2e-kubernetes
e2e-kubernetes: build $(CHART_TOOLS) $(KUBERNETES) ## The chart's life on a real cluster of two nodes on this machine: root
	@./test/deps.sh $(DEB_KUBERNETES)
	cd test/kubernetes && SAFECONDUCT_E2E=1 $(GO) test -count=1 -timeout 60m -v .

.PHONY: test-nova
test-nova: ## deploy/nova under Nova's fixtures, Nova's own tests with our driver; SUITE=trixie|forky|sid: with that suite's Nova
	@./test/deps.sh $(DEB_NOVA)
	@./deploy/nova/patches/check.sh
	@./deploy/nova/test.sh

.PHONY: lint-nova
lint-nova: ## deploy/nova by OpenStack's rules (flake8, hacking); stale stubs, sample and documentation
	@./test/deps.sh $(DEB_NOVA)
	cd deploy/nova && /usr/bin/python3 -m flake8 .
	@./deploy/nova/generate.sh --check

.PHONY: e2e-nova
e2e-nova: build ## deploy/nova's client against real node services, under eventlet; root
	@./test/deps.sh $(DEB_PACKAGES) $(DEB_NOVA)
	SAFECONDUCT_E2E=1 $(GO) test -count=1 -timeout 10m -v ./test/nova/...

.PHONY: deb
DEB_VERSION ?= $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//; s/-/+/g' | grep . || echo 0~git$$(git log -1 --format=%cd.%h --date=format:%Y%m%d))
deb: build ## Debian packages into build/deb (ENCLAVE=DIR adds the signed production node service)
	@./deploy/packaging/build.sh $(BUILD)/deb $(DEB_VERSION)
	@ls $(BUILD)/deb/*.deb

.PHONY: test-deb
test-deb: deb ## Install, upgrade, remove and purge the packages in a Debian 12 root directory of their own; root
	@./test/deps.sh debootstrap
	@./test/packaging.sh $(BUILD)/_packaging

# What make test-agent adds: Keystone and Placement as Debian packages them, and what serves them.
DEB_OPENSTACK := python3-keystone python3-placement uwsgi-core uwsgi-plugin-python3

.PHONY: test-agent
test-agent: build ## safeconduct-agent against real Keystone, Placement and nova-api, with two node services; root
	@./test/deps.sh $(DEB_PACKAGES) $(DEB_NOVA) $(DEB_OPENSTACK)
	SAFECONDUCT_E2E=1 $(GO) test -count=1 -timeout 15m -v ./test/agent/...

.PHONY: verify-model
verify-model: ## Check the session's model and its mutants with Spin (minutes)
	@./test/model/run.sh

.PHONY: test-metrics
test-metrics: ## promtool: metrics, alert rules and their tests; catalogue, docs/metrics.md and dashboard agree
	@command -v promtool >/dev/null || { echo 'promtool is missing: make deps'; exit 1; }
	$(GO) test -count=1 ./services/node/metrics ./deploy/monitoring

.PHONY: wycheproof
wycheproof: ## Every primitive in use against the Wycheproof vectors
	cd test/wycheproof && $(GO) test -count=1 ./...

.PHONY: fuzz
FUZZTIME ?= 20s
fuzz: ## Every fuzz target for FUZZTIME (20s)
	@./test/fuzz.sh $(FUZZTIME)

.PHONY: bench
BENCHCOUNT ?= 5
bench: ## Benchmarks, summarised by benchstat (BENCHCOUNT runs, 5)
	@mkdir -p $(BUILD)
	$(GO) test -run '^$$' -bench . -benchmem -count $(BENCHCOUNT) ./... | tee $(BUILD)/bench.txt
	cd test/streambench && $(GO) test -run '^$$' -bench . -count $(BENCHCOUNT) ./... | tee -a ../../$(BUILD)/bench.txt
	$(BENCHSTAT) $(BUILD)/bench.txt

.PHONY: bench-migration
BENCHROUNDS ?= 5
BENCHMEMORY ?= 1024
bench-migration: deps build ## What the tunnel costs beside TCP, QEMU's TLS and a plain relay (BENCHROUNDS, 5; BENCHMEMORY, 1024 MiB)
	@mkdir -p $(BUILD)/demo/bin
	$(GOBUILD) -o $(BUILD)/demo/bin/ ./test/vm/guest ./test/migrationbench
	$(BUILD)/demo/bin/migrationbench --bin $(BUILD)/bin --guest $(BUILD)/demo/bin/guest --out $(BUILD) --rounds $(BENCHROUNDS) --memory $(BENCHMEMORY)

.PHONY: lint
lint: lint-charts ## gofmt, vet, golangci-lint, buf lint, stale stubs, tidy go.mod, lint-charts
	@test -z "$$(gofmt -l $$(git ls-files '*.go' | grep -v '^api/'))" || { gofmt -l $$(git ls-files '*.go' | grep -v '^api/'); echo 'not formatted: run gofmt -w'; exit 1; }
	$(GO) vet ./...
	$(LINT) run ./...
	$(BUF) lint
	@./test/stale.sh
	$(GO) mod tidy -diff

.PHONY: generate
generate: ## Generate api/ from proto/ with the pinned tools
	rm -rf api/safeconduct
	$(BUF) generate

.PHONY: generate-nova
generate-nova: ## Generate the Python stubs of deploy/nova, nova.conf's sample and its documentation
	@./test/deps.sh $(DEB_NOVA)
	@./deploy/nova/generate.sh

.PHONY: breaking
breaking: ## Check proto/ for breaking changes against BASE (main)
BASE ?= main
breaking:
	$(BUF) breaking --against '.git#branch=$(BASE)'

.PHONY: e2e-openstack
SUITE ?= bookworm
e2e-openstack: build ## Two compute nodes of a real OpenStack on this machine (SUITE=bookworm|trixie|forky|sid, ARGS=--list); root
	@./test/deps.sh debootstrap iproute2 swtpm
	@./test/openstack/rootfs.sh $(SUITE) $(CURDIR)/$(BUILD)/openstack/_rootfs/$(SUITE)
	@mkdir -p $(BUILD)/openstack/bin
	$(GOBUILD) -o $(BUILD)/openstack/bin/ ./test/openstack ./test/vm/guest
	@$(BUILD)/openstack/bin/openstack --suite $(SUITE) $(ARGS)

.PHONY: bench-openstack
bench-openstack: ## Migration time and downtime under Nova, protected and unprotected in turns, as a table; root
	@$(MAKE) --no-print-directory e2e-openstack ARGS='--only 91'

.PHONY: clean
clean: ## Remove build/
	rm -rf $(BUILD)
