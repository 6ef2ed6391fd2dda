//! Permits: the right to attach a segment.

use crate::attachment::Attachment;
use crate::engine::{Access, Kind};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::process;
use std::sync::Arc;

/// The right to attach a segment of another process, or of this one. It ends when the last owner, among them its
/// attachments, is dropped. After `fork`, permits are the parent's.
#[derive(Clone, Debug)]
pub struct Permit {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    id: Id,
    access: Access,
}

impl Permit {
    /// Asks the exporter for a permit. Waits for it while it lives; `RMAP_PEER_TIMEOUT` sets a limit.
    ///
    /// # Errors
    /// [`Error::NoSuchId`], [`Error::Denied`] by the segment's mode, [`Error::TimedOut`],
    /// [`Error::OutOfResources`], and those of [`Segment::new`](crate::Segment::new).
    pub fn get(segment: Id, access: Access) -> Result<Self> {
        let flags = match access {
            Access::ReadOnly => 1,
            Access::ReadWrite => 2,
        };
        let id = process::get(segment.to_raw(), flags, process::PERMIT_MODE)?;
        Ok(Self { held: Arc::new(Held { id, access }) })
    }

    /// Maps `len` bytes of the segment from `offset` on, rounded up to whole pages; `offset` is a multiple of the page size. Nothing is
    /// touched in the exporter.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a range outside the segment, [`Error::NoSuchId`] if the segment or its exporter is gone,
    /// [`Error::OutOfResources`].
    pub fn attach(&self, offset: u64, len: usize) -> Result<Attachment> {
        let offset = i64::try_from(offset).map_err(|_| Error::Invalid("the offset is beyond 2^63"))?;
        // SAFETY: the kernel chooses a free place.
        let base = unsafe { process::attach(self.held.id.to_raw(), offset, len, 0) }?;
        Ok(Attachment::new(base, len, self.clone()))
    }

    /// What the permit allows.
    #[must_use]
    pub fn access(&self) -> Access {
        self.held.access
    }

    /// Whether attachments can be pinned, for RDMA and `O_DIRECT`, and have process-shared futexes. If not, the exporter can offer the range
    /// again as [`Segment::pinnable`](crate::Segment::pinnable).
    #[must_use]
    pub fn is_pinnable(&self) -> bool {
        self.held.id.kind() == Kind::Clone
    }

    /// The id, as the C interface has it.
    #[must_use]
    pub fn id(&self) -> Id {
        self.held.id
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = process::release(self.id.to_raw());
    }
}
