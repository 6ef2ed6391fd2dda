//! Which engine the actors use, and how its semantics differ from the others': `docs/semantics.md` has the list.

use std::path::Path;

/// Whether actors do without a feature of the kernel's, by `RMAP_DISABLE` (`docs/kernels.md`).
pub fn goes_without(feature: &str) -> bool {
    std::env::var("RMAP_DISABLE").is_ok_and(|names| names.split(',').any(|name| name.trim() == feature))
}

/// An engine of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Stock kernels: pages are adopted.
    Clone,
    /// The kernel module's mirrors.
    Mirror,
    /// `/dev/xpmem`: here the module's own.
    Driver,
}

impl Engine {
    /// The one that actors use, by `RMAP_ENGINE` and what is there.
    ///
    /// # Panics
    ///
    /// If the environment names another.
    pub fn of_actors() -> Self {
        let there = |device: &str| Path::new(device).exists();
        match std::env::var("RMAP_ENGINE").unwrap_or_default().as_str() {
            "mirror" => Self::Mirror,
            "driver" => Self::Driver,
            "clone" => Self::Clone,
            "" | "auto" if there("/dev/rmap") => Self::Mirror,
            "" | "auto" if there("/dev/xpmem") => Self::Driver,
            "" | "auto" => Self::Clone,
            other => panic!("RMAP_ENGINE={other}"),
        }
    }

    /// Attachments are ordinary shared memory: it can be pinned, has shared futexes, and what was reached stays when the exporter ends.
    pub fn shares_ordinary_memory(self) -> bool {
        self == Self::Clone
    }

    /// A touch of memory that nobody has reached yet needs the exporter's help: it waits while that is stopped.
    pub fn asks_for_pages(self) -> bool {
        self == Self::Clone
    }

    /// A permit is the exporter's to give: it waits while that is stopped.
    pub fn asks_for_permits(self) -> bool {
        self != Self::Driver
    }

    /// Shared anonymous memory that the exporter unmaps stays with the importers that have reached it.
    pub fn leaves_shared_memory(self) -> bool {
        self == Self::Clone
    }

    /// Who attaches an attachment of another process reaches the memory behind it.
    pub fn passes_attachments_on(self) -> bool {
        self == Self::Clone
    }

    /// No id is ever used again, and none can be guessed.
    pub fn draws_ids(self) -> bool {
        self != Self::Driver
    }
}
