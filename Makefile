# Builds, installs and tests rmap. SPDX-License-Identifier: Apache-2.0 OR MIT
#
#   make                  the release build
#   make install          library, headers, pkg-config files, man pages, module file, rmap and its completions, with-rmap
#   make demo             installs into target/prefix and runs unmodified MPI programs on it
#   make plots            measures those programs (about 15 minutes), draws docs/mpi-*.svg, writes docs/mpi-results.md
#                         and the crossover sizes in docs/tuning.md; RMAP_PLOT_QUICK=1: a quick pass into target/plots-quick
#   make profile          as root: system calls, faults and times of a ping-pong, into docs/profile.md
#   make test             everything that ci/ has; as root: each test as root and as an ordinary user
#   make check            formatting, lints, documentation
#   make fuzz             what peers may send, mutated for long (RMAP_FUZZ_SECONDS for each target, 3600)
#   make test-kernel      the kernel module's tests, and those of the semantics on all engines, on Debian kernels in QEMU
#   make test-kernel-debug  the former on a kernel with lockdep, KASAN and more, which is built first (half an hour)
#   make test-kernel-next  the module's tests and those of the engines on the kernel that Debian has next (as root)
#   make test-numa        memory on the nodes of a machine with two of them, in QEMU
#   make test-features    the tests of the semantics without each feature of the kernel that the library can do without (two hours)
#   make test-pressure    the oracle and others on a machine with too little memory, with zram, KSM and khugepaged, in QEMU
#   make soak             the random tests for long (RMAP_SOAK_SECONDS each, 600), the C tests often

PREFIX       ?= /usr/local
LIBDIR       ?= $(PREFIX)/lib
INCLUDEDIR   ?= $(PREFIX)/include
BINDIR       ?= $(PREFIX)/bin
DATADIR      ?= $(PREFIX)/share
MANDIR       ?= $(DATADIR)/man
MODULEDIR    ?= $(DATADIR)/modulefiles
PKGCONFIGDIR ?= $(LIBDIR)/pkgconfig
DESTDIR      ?=

CARGO   ?= cargo
INSTALL ?= install
STRIP   ?= strip

TARGET  := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/release
STAMP   := $(RELEASE)/.rmap-built
SOURCES := Cargo.toml $(wildcard Cargo.lock) $(shell find rmap-core xpmem-compat rmap-cli benches/src rmap-tests/src -name target -prune -o -type f -print)

# Paths that go into files are absolute.
prefix       = $(abspath $(PREFIX))
libdir       = $(abspath $(LIBDIR))
includedir   = $(abspath $(INCLUDEDIR))
bindir       = $(abspath $(BINDIR))
datadir      = $(abspath $(DATADIR))
mandir       = $(abspath $(MANDIR))
moduledir    = $(abspath $(MODULEDIR))
pkgconfigdir = $(abspath $(PKGCONFIGDIR))

# With the usual folders the pkg-config files name them in terms of the prefix, so that it can be overridden.
fill = sed -e 's|@PREFIX@|$(prefix)|g' -e 's|@LIBDIR@|$(libdir)|g' -e 's|@INCLUDEDIR@|$(includedir)|g' \
	-e 's|@BINDIR@|$(bindir)|g' -e 's|@MANDIR@|$(mandir)|g' \
	-e 's|@PC_LIBDIR@|$(patsubst $(prefix)/%,$${exec_prefix}/%,$(libdir))|g' \
	-e 's|@PC_INCLUDEDIR@|$(patsubst $(prefix)/%,$${prefix}/%,$(includedir))|g'

# What each shell completes the words of the command with.
COMPLETIONS = bash:bash-completion/completions/rmap zsh:zsh/site-functions/_rmap fish:fish/vendor_completions.d/rmap.fish

MAN1 := $(wildcard packaging/man/*.1)
MAN3 := $(wildcard packaging/man/*.3)
MAN7 := $(wildcard packaging/man/*.7)

all: $(STAMP)

# Cargo decides what has to be compiled; make only decides whether to ask it. So `sudo make install` after `make` needs no cargo.
$(STAMP): $(SOURCES)
	$(CARGO) build --release
	touch $@

install: $(STAMP)
	$(INSTALL) -d '$(DESTDIR)$(libdir)' '$(DESTDIR)$(includedir)/linux-rmap' '$(DESTDIR)$(pkgconfigdir)' '$(DESTDIR)$(bindir)' \
		'$(DESTDIR)$(mandir)/man1' '$(DESTDIR)$(mandir)/man3' '$(DESTDIR)$(mandir)/man7' '$(DESTDIR)$(moduledir)/xpmem'
	$(INSTALL) -m 755 $(RELEASE)/libxpmem.so '$(DESTDIR)$(libdir)/libxpmem.so.0.0.0'
	ln -sfn libxpmem.so.0.0.0 '$(DESTDIR)$(libdir)/libxpmem.so.0'
	ln -sfn libxpmem.so.0.0.0 '$(DESTDIR)$(libdir)/libxpmem.so'
	$(INSTALL) -m 644 $(RELEASE)/libxpmem.a '$(DESTDIR)$(libdir)/libxpmem.a'
	$(STRIP) --strip-debug '$(DESTDIR)$(libdir)/libxpmem.a'
	$(INSTALL) -m 644 ffi/include/xpmem.h '$(DESTDIR)$(includedir)/xpmem.h'
	$(INSTALL) -m 644 ffi/include/rmap.h '$(DESTDIR)$(includedir)/rmap.h'
	$(INSTALL) -m 644 ffi/include/linux-rmap/rmap.h '$(DESTDIR)$(includedir)/linux-rmap/rmap.h'
	$(fill) packaging/xpmem.pc.in > '$(DESTDIR)$(pkgconfigdir)/xpmem.pc'
	$(fill) packaging/xpmem.pc.in > '$(DESTDIR)$(pkgconfigdir)/cray-xpmem.pc'
	$(fill) packaging/xpmem.module.in > '$(DESTDIR)$(moduledir)/xpmem/rmap'
	chmod 644 '$(DESTDIR)$(pkgconfigdir)/xpmem.pc' '$(DESTDIR)$(pkgconfigdir)/cray-xpmem.pc' \
		'$(DESTDIR)$(moduledir)/xpmem/rmap'
	$(fill) packaging/with-rmap.in > '$(DESTDIR)$(bindir)/with-rmap'
	chmod 755 '$(DESTDIR)$(bindir)/with-rmap'
	$(INSTALL) -m 755 $(RELEASE)/rmap '$(DESTDIR)$(bindir)/rmap'
	$(STRIP) --strip-debug '$(DESTDIR)$(bindir)/rmap'
	for pair in $(COMPLETIONS); do \
		file='$(DESTDIR)$(datadir)'/$${pair#*:}; \
		$(INSTALL) -d "$${file%/*}" && $(RELEASE)/rmap completions $${pair%%:*} > "$$file" && chmod 644 "$$file" || exit 1; \
	done
	$(INSTALL) -m 644 $(MAN1) '$(DESTDIR)$(mandir)/man1'
	$(INSTALL) -m 644 $(MAN3) '$(DESTDIR)$(mandir)/man3'
	$(INSTALL) -m 644 $(MAN7) '$(DESTDIR)$(mandir)/man7'

# Removes what `install` with the same variables made; folders stay if something else is in them.
uninstall:
	rm -f $(foreach f,libxpmem.so libxpmem.so.0 libxpmem.so.0.0.0 libxpmem.a,'$(DESTDIR)$(libdir)/$(f)') \
		$(foreach f,xpmem.h rmap.h linux-rmap/rmap.h,'$(DESTDIR)$(includedir)/$(f)') \
		'$(DESTDIR)$(bindir)/with-rmap' '$(DESTDIR)$(bindir)/rmap' '$(DESTDIR)$(moduledir)/xpmem/rmap' \
		$(foreach f,xpmem.pc cray-xpmem.pc,'$(DESTDIR)$(pkgconfigdir)/$(f)') \
		$(foreach c,$(COMPLETIONS),'$(DESTDIR)$(datadir)/$(lastword $(subst :, ,$(c)))') \
		$(foreach f,$(notdir $(MAN1)),'$(DESTDIR)$(mandir)/man1/$(f)') \
		$(foreach f,$(notdir $(MAN3)),'$(DESTDIR)$(mandir)/man3/$(f)') \
		$(foreach f,$(notdir $(MAN7)),'$(DESTDIR)$(mandir)/man7/$(f)')
	-rmdir '$(DESTDIR)$(includedir)/linux-rmap' '$(DESTDIR)$(moduledir)/xpmem' '$(DESTDIR)$(pkgconfigdir)' 2>/dev/null

# The installation that `demo` and `test` use.
LOCAL := $(abspath $(TARGET))/prefix

local-install: all
	$(MAKE) --no-print-directory -s install DESTDIR= PREFIX='$(LOCAL)' LIBDIR='$(LOCAL)/lib' INCLUDEDIR='$(LOCAL)/include' \
		BINDIR='$(LOCAL)/bin' DATADIR='$(LOCAL)/share' MANDIR='$(LOCAL)/share/man' MODULEDIR='$(LOCAL)/share/modulefiles' \
		PKGCONFIGDIR='$(LOCAL)/lib/pkgconfig'

demo: local-install
	XPMEM_PREFIX='$(LOCAL)' mpi-tests/demo.sh

plots: local-install
	XPMEM_PREFIX='$(LOCAL)' mpi-tests/plots.sh

profile: local-install
	XPMEM_PREFIX='$(LOCAL)' mpi-tests/profile.sh

test: local-install
	ci/test-all.sh '$(LOCAL)'

test-kernel: all
	kernel/test/run.sh
	ci/test-engines.sh 6.1
	ci/test-engines.sh 6.12
	ci/test-introspection.sh
	ci/test-mpi-kernel.sh
	kernel/test/speed/run.sh

test-kernel-debug:
	kernel/test/run.sh 6.1-debug
	kernel/test/check.sh

test-kernel-next: all
	kernel/test/run.sh 7
	ci/test-engines.sh 7

test-numa: all
	ci/test-numa.sh

test-features: all
	ci/test-features.sh

test-pressure: all
	ci/test-pressure.sh

soak: all
	ci/soak.sh

fuzz:
	RMAP_FUZZ_SECONDS=$(or $(RMAP_FUZZ_SECONDS),3600) ci/fuzz.sh

check:
	ci/fmt.sh
	ci/lint.sh

clean:
	$(CARGO) clean

.PHONY: all install uninstall local-install demo plots profile test test-kernel test-kernel-debug test-kernel-next test-numa test-pressure test-features soak fuzz check clean
