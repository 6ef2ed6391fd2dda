//! What an actor writes to standard error.

use nix::sys::memfd::{MFdFlags, memfd_create};
use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    process::Stdio,
    sync::Arc,
};

/// Collects the standard error of actors.
#[derive(Clone, Debug)]
pub struct Log(Arc<File>);

impl Log {
    /// An empty one.
    ///
    /// # Panics
    ///
    /// If there is no room for it.
    #[expect(clippy::new_without_default, reason = "it makes a file")]
    pub fn new() -> Self {
        let file = File::from(memfd_create("rmap-log", MFdFlags::MFD_CLOEXEC).expect("memfd_create"));
        // Several processes write: each behind what is there.
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_APPEND))
            .expect("append to a memory file");
        Self(Arc::new(file))
    }

    /// What goes to this descriptor instead, and is read elsewhere.
    pub fn to(descriptor: OwnedFd) -> Self {
        Self(Arc::new(File::from(descriptor)))
    }

    pub(crate) fn stdio(&self) -> Stdio {
        Stdio::from(self.0.try_clone().expect("another descriptor"))
    }

    /// All that was written so far.
    ///
    /// # Panics
    ///
    /// If it cannot be read.
    pub fn text(&self) -> String {
        let len = usize::try_from(self.0.metadata().expect("fstat").len()).expect("a length");
        let mut bytes = vec![0; len];
        self.0.read_exact_at(&mut bytes, 0).expect("pread");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The lines that contain this.
    pub fn lines_with(&self, part: &str) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
    }
}
