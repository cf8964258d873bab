# walden's Makefile: everything a developer, a packager and CI run, by the same names.
# It needs git, GNU make and Go; what the tests need beyond that, `make test` installs by itself.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

GO           ?= go
GO_MINIMUM   := $(shell sed -n 's/^go \([0-9]*\.[0-9]*\).*/\1/p' go.mod)
WALDEN_TOOLS ?= /var/tmp/walden-tools
TEST_TIMEOUT ?= 45m
PACKAGES     ?= ./...
# Of a checkout: the tag, else the commit. A release tarball holds no .git and brings VERSION=… on the command line.
VERSION      ?= $(or $(shell [ -e .git ] && git describe --tags --always --dirty 2>/dev/null),unknown)
# walden speaks no gRPC; the pages on which its library would show what it does are left out.
TAGS         ?= grpcnotrace
LDFLAGS      ?= -s -w -X main.version=$(VERSION)

GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT := $(WALDEN_TOOLS)/bin/golangci-lint-$(GOLANGCI_LINT_VERSION)
# The reference pages are written by the tests that otherwise compare them, so that there is one generator only.
DOCS_UPDATE  ?= $(GO) test ./internal/config ./internal/cli -run '^TestDocs' -count=1 -update

export WALDEN_TOOLS

# The inner loops of libraries that compress, hash and encrypt are not watched for races, which would take a fifth of the time of all tests; what
# walden itself does with their buffers is. None of them hands data to another goroutine by atomic operations, which would look like races then.
UNWATCHED := compress/flate crypto/cipher github.com/anchore/go-lzo github.com/andybalholm/brotli/... github.com/klauspost/compress/... \
	github.com/pierrec/lz4/v4/... github.com/ulikunitz/xz/... github.com/zeebo/xxh3 \
	golang.org/x/crypto/chacha20 golang.org/x/crypto/chacha20poly1305 golang.org/x/crypto/internal/poly1305
RACE      := -race $(UNWATCHED:%=-gcflags=%=-race=false)

# Where the tests write. What Go builds stays on disk: it would take the memory of the tests.
SCRATCH = GOTMPDIR=$${GOTMPDIR:-$${TMPDIR:-/tmp}} TMPDIR=$$($(CURDIR)/scripts/test-scratch)

# Packages, and tests of a package, at the same time: one more than there are processors, since some wait most of the time.
AT_ONCE = -p $$(($$(nproc) + 1)) -parallel $$(($$(nproc) + 1))

.PHONY: help
help: ## print the targets (the default)
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

.PHONY: build
build: go-version ## build bin/walden, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o bin/walden ./cmd/walden

.PHONY: demo
demo: build ## lose a PostgreSQL server on purpose and bring every row back (about half a minute)
	scripts/demo

.PHONY: test
test: go-version check ## every test, with the race detector and real servers; fails when one was skipped
	scripts/install-test-tools
	@command -v "$${CC:-gcc}" >/dev/null || { echo "the race detector needs a C compiler: apt-get install gcc libc6-dev" >&2; exit 1; }
	$(SCRATCH) CGO_ENABLED=1 $(GO) test $(RACE) $(AT_ONCE) -timeout $(TEST_TIMEOUT) -json $(PACKAGES) | $(GO) run ./scripts/testreport -no-skips
	cd test/faultfs && $(SCRATCH) CGO_ENABLED=1 $(GO) test -race -timeout $(TEST_TIMEOUT) ./...

# What speaks to a PostgreSQL server; the rest does not change with its version, and neither do data races.
MATRIX_PACKAGES := ./cmd/walden ./internal/postgres ./internal/wal ./internal/changes

# What breaks storages, disks and processes, or reads archives of one version that WAL-G or WAL-E wrote: the server's version changes nothing.
MATRIX_SKIP := Kill|Secrets|Memory|PowerLoss|Hostile|BadDisk|OfTheStorage|OfWAL[GE]|OneSegmentOneWins|RacesWith|ADamagedPart|ADeltaBackup|ReadOnlyAnd|Strange|Encrypt|Keys|PublicKey|GnuPG|GoogleCloud|ALinkCalled

.PHONY: test-matrix
test-matrix: go-version ## the tests with a PostgreSQL server on each of its versions; MAJORS="13 18" for some
	scripts/install-test-tools --all-majors
	@majors="$${MAJORS:-$$(scripts/install-test-tools --list-majors)}"; status=0; \
	for major in $$majors; do \
		echo "== PostgreSQL $$major"; \
		$(SCRATCH) WALDEN_TEST_PG=$$major WALDEN_TEST_CHAINS=$${WALDEN_TEST_CHAINS:-10} $(GO) test $(AT_ONCE) -timeout $(TEST_TIMEOUT) -skip '$(MATRIX_SKIP)' -json $(MATRIX_PACKAGES) \
			| $(GO) run ./scripts/testreport -no-skips || status=1; \
	done; exit $$status

.PHONY: test-full
test-full: export WALDEN_TEST_FULL := 1
test-full: export TMPDIR := $(or $(TMPDIR),/tmp)
test-full: ## test without samples: every fault, every moment of a kill, every size (hours; see docs/reliability.md)
	$(MAKE) test TEST_TIMEOUT=5h

.PHONY: test-short
test-short: go-version check ## the tests that need no server and no C compiler
	$(GO) test -short -timeout $(TEST_TIMEOUT) -json $(PACKAGES) | $(GO) run ./scripts/testreport

.PHONY: check
check: go-version ## gofmt, go vet and the syntax of the scripts
	@bad=$$("$$($(GO) env GOROOT)/bin/gofmt" -l cmd internal $(wildcard pkg) scripts test); [ -z "$$bad" ] || { echo "not formatted, run gofmt -w on:" $$bad >&2; exit 1; }
	$(GO) vet ./...
	cd test/faultfs && $(GO) vet ./...
	@for f in .ci/run scripts/*; do if [ -f "$$f" ]; then bash -n "$$f"; fi; done

.PHONY: lint
lint: check $(GOLANGCI_LINT) ## check, and golangci-lint with the short list of .golangci.yml
	$(GOLANGCI_LINT) run ./...

$(GOLANGCI_LINT):
	@mkdir -p $(@D)
	dir=$$(mktemp -d) && GOBIN=$$dir $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION) \
		&& mv $$dir/golangci-lint $@ && rmdir $$dir

.PHONY: docs
docs: go-version ## write docs/configuration.md and docs/commands/ anew
	$(DOCS_UPDATE)

.PHONY: bench
bench: build ## compare with pgBackRest, pg_basebackup and tar on this machine; BENCH_JOBS="wal fetch" for some (see docs/benchmarks.md)
	scripts/bench

.PHONY: bench-figures
bench-figures: ## print the table of the newest `make bench` again from its raw figures
	@$(GO) run ./scripts/benchreport table "$$(ls -t bench-results/*.tsv | head -n 1)"

.PHONY: bench-charts
bench-charts: ## draw the newest `make bench` as docs/benchmarks/*.svg
	$(GO) run ./scripts/benchreport charts "$$(ls -t bench-results/*.tsv | head -n 1)" docs/benchmarks

.PHONY: bench-compare
bench-compare: build ## compare this build with the binary OLD=… by turns; fails when this one is more than a tenth worse
	@[ -n "$(OLD)" ] || { echo "name the other binary: make bench-compare OLD=path/to/walden" >&2; exit 2; }
	scripts/bench-compare "$(OLD)"

.PHONY: clean
clean: ## remove what the other targets made in this folder
	rm -rf bin bench-results

.PHONY: go-version
go-version:
	@have=$$($(GO) env GOVERSION 2>/dev/null | sed 's/^go//') || have=; \
	if [ "$$(printf '%s\n' $(GO_MINIMUM) "$${have:-0}" | sort -V | head -n 1)" != "$(GO_MINIMUM)" ]; then \
		echo "walden needs Go $(GO_MINIMUM) or newer, found: $${have:-none}. Install it from https://go.dev/dl/ and put it first in PATH." >&2; \
		exit 1; \
	fi
