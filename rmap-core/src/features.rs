//! What the library needs of the kernel, and what it makes use of: found out by trying, never from a version number.
//!
//! `RMAP_DISABLE=NAME,NAME` has the library do without features, as on a kernel that does not have them.

use crate::engine::clone;
use crate::process;
use crate::sys::features::Feature as Kind;
use crate::sys::maps::Maps;
use crate::sys::pagemap::Pagemap;
use crate::sys::uffd::{self, Userfaultfd};
use crate::sys::{Errno, SysResult, memory, numa, socket};

/// What the kernel offers, or a container leaves of it.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// As in `RMAP_DISABLE`.
    pub name: &'static str,
    /// What it is used for.
    pub purpose: &'static str,
    /// The first kernel that has it; nothing depends on this.
    pub since: &'static str,
    /// Whether nothing works without it.
    pub required: bool,
    /// What is lost without it.
    pub without: &'static str,
    /// How to get it.
    pub remedy: &'static str,
    kind: Kind,
    probe: fn() -> SysResult<()>,
}

/// Whether a feature is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It is.
    Yes,
    /// The kernel said this when it was tried.
    No(Errno),
    /// `RMAP_DISABLE` names it.
    Disabled,
}

impl Feature {
    /// Tries it, in this process and now. Nothing is left behind.
    #[must_use]
    pub fn availability(&self) -> Availability {
        process::read_environment();
        if self.kind.is_forced_off() {
            return Availability::Disabled;
        }
        match (self.probe)() {
            Ok(()) => Availability::Yes,
            Err(errno) => Availability::No(errno),
        }
    }

    /// The feature of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|feature| feature.name == name)
    }

    pub(crate) fn force_off(&self) {
        self.kind.force_off();
    }
}

/// All of them, the required ones first.
#[must_use]
pub fn all() -> &'static [Feature] {
    &ALL
}

static ALL: [Feature; 15] = [
    Feature {
        name: "userfaultfd",
        purpose: "following the exporter's address space, and telling which page of an attachment is touched",
        since: "5.19",
        required: true,
        without: "the process cannot be served, unless userfaultfd-device is there",
        remedy: "a kernel with CONFIG_USERFAULTFD; a seccomp profile that allows the system call",
        kind: Kind::Userfaultfd,
        probe: || uffd::system_call().and_then(|()| Userfaultfd::for_events().map(drop)),
    },
    Feature {
        name: "ptrace",
        purpose: "stopping the process's own threads for a moment while memory is adopted",
        since: "3.4",
        required: true,
        without: "the process cannot be served",
        remedy: "kernel.yama.ptrace_scope 0 or 1; no debugger or strace; a seccomp profile that allows ptrace",
        kind: Kind::Ptrace,
        probe: clone::probe_stopping,
    },
    Feature {
        name: "sealed-memory",
        purpose: "objects that importers cannot truncate, and a status word that they cannot write",
        since: "5.1",
        required: true,
        without: "the process cannot be served",
        remedy: "a newer kernel",
        kind: Kind::SealedMemory,
        probe: memory::can_seal,
    },
    Feature {
        name: "userfaultfd-device",
        purpose: "a userfaultfd where the system call is refused",
        since: "6.1",
        required: false,
        without: "nothing, where userfaultfd is there",
        remedy: "/dev/userfaultfd in the container, readable for the user (docker run --device /dev/userfaultfd)",
        kind: Kind::UserfaultfdDevice,
        probe: uffd::device,
    },
    Feature {
        name: "exact-address",
        purpose: "the very byte in si_addr of a SIGBUS",
        since: "5.18",
        required: false,
        without: "si_addr is the start of the page",
        remedy: "a newer kernel",
        kind: Kind::ExactAddress,
        probe: Userfaultfd::tells_exact_addresses,
    },
    Feature {
        name: "watch-any",
        purpose: "watching mappings of files, not of shared memory alone (UFFD_FEATURE_WP_ASYNC)",
        since: "6.7",
        required: false,
        without: "that a file is unmapped shows at the exporter's next event; of unmapped program text, too",
        remedy: "a newer kernel",
        kind: Kind::WatchAny,
        probe: || {
            let watches = Userfaultfd::for_events()?.watches_any_mapping();
            if watches { Ok(()) } else { Err(Errno::INVAL) }
        },
    },
    Feature {
        name: "move-pages",
        purpose: "telling whether a device may write to a page (UFFDIO_MOVE)",
        since: "6.8",
        required: false,
        without: "memory of a process with pinned memory, io_uring or libaio cannot be attached",
        remedy: "a newer kernel; RMAP_PINNED=move if nothing is in flight at the first touch",
        kind: Kind::MovePages,
        probe: || {
            let moves = Userfaultfd::for_pages()?.moves_pages();
            if moves { Ok(()) } else { Err(Errno::INVAL) }
        },
    },
    Feature {
        name: "pagemap-scan",
        purpose: "finding the pages that exist (PAGEMAP_SCAN)",
        since: "6.7",
        required: false,
        without: "the first touch of sparse memory takes longer: every page is looked at",
        remedy: "a newer kernel",
        kind: Kind::PagemapScan,
        probe: || Pagemap::new()?.can_scan(),
    },
    Feature {
        name: "procmap-query",
        purpose: "finding a mapping by its address (PROCMAP_QUERY)",
        since: "6.11",
        required: false,
        without: "munmap and first touches take longer in processes of many mappings: all are read",
        remedy: "a newer kernel",
        kind: Kind::ProcmapQuery,
        probe: || Maps::new()?.can_query(),
    },
    Feature {
        name: "collapse",
        purpose: "huge pages for adopted memory (MADV_COLLAPSE)",
        since: "6.1",
        required: false,
        without: "adopted memory has 4 KiB pages, unless shmem_enabled says otherwise",
        remedy: "a newer kernel, with CONFIG_TRANSPARENT_HUGEPAGE",
        kind: Kind::Collapse,
        probe: memory::can_collapse,
    },
    Feature {
        name: "populate",
        purpose: "mapping pages ahead (MADV_POPULATE_READ, MADV_POPULATE_WRITE)",
        since: "5.14",
        required: false,
        without: "importers fault on every page; pages that a child of a fork has shared count as pinned",
        remedy: "a newer kernel",
        kind: Kind::Populate,
        probe: memory::can_populate,
    },
    Feature {
        name: "numa",
        purpose: "keeping pages on their nodes (move_pages, mbind, set_mempolicy)",
        since: "2.6.18",
        required: false,
        without: "the kernel chooses the node of adopted memory",
        remedy: "a kernel with CONFIG_NUMA; CAP_SYS_NICE in containers whose seccomp profile asks for it",
        kind: Kind::Numa,
        probe: numa::can_place,
    },
    Feature {
        name: "peer-groups",
        purpose: "the group bits of a segment's mode, for supplementary groups (SO_PEERGROUPS)",
        since: "4.13",
        required: false,
        without: "the group bits count for the effective group alone",
        remedy: "a newer kernel",
        kind: Kind::PeerGroups,
        probe: socket::tells_groups,
    },
    Feature {
        name: "peer-handle",
        purpose: "being sure whose capabilities and user namespace one looks at (SO_PEERPIDFD)",
        since: "6.5",
        required: false,
        without: "in a user namespace that lacks numbers, the overflow user is nobody; a process that had user 0 may pass its place on to one with more rights",
        remedy: "a newer kernel",
        kind: Kind::PeerHandle,
        probe: socket::tells_handles,
    },
    Feature {
        name: "refuse-descriptors",
        purpose: "refusing descriptors that strangers send (SO_PASSRIGHTS)",
        since: "6.16",
        required: false,
        without: "a local process can hold the service thread up with a descriptor whose close waits",
        remedy: "a newer kernel",
        kind: Kind::PassRights,
        probe: socket::can_refuse_descriptors,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_name_and_each_kind_is_there_once() {
        let names: HashSet<_> = ALL.iter().map(|feature| feature.name).collect();
        let kinds: HashSet<_> = ALL.iter().map(|feature| feature.kind as u32).collect();
        assert_eq!((names.len(), kinds.len()), (ALL.len(), ALL.len()));
        for feature in &ALL {
            assert!(!feature.name.contains(','), "it could not be named in RMAP_DISABLE");
            assert_eq!(Feature::named(feature.name).map(|found| found.kind), Some(feature.kind));
        }
        assert!(Feature::named("none").is_none());
    }

    #[test]
    fn the_documentation_has_them_all() {
        // As it was when this was compiled: whoever runs it may not be able to enter the checkout.
        let text = include_str!("../../docs/kernels.md");
        for feature in &ALL {
            let Feature { name, since, purpose, without, remedy, .. } = feature;
            let required = if feature.required { "**required**: " } else { "" };
            let row = format!("| `{name}` | {since} | {purpose} | {required}{without} | {remedy} |");
            assert!(text.lines().any(|line| line == row), "no line {row}");
        }
    }

    #[test]
    fn required_features_are_here() {
        // The tests of this workspace run where the library does.
        for feature in ALL.iter().filter(|feature| feature.required) {
            assert_eq!(feature.availability(), Availability::Yes, "{}", feature.name);
        }
    }
}
