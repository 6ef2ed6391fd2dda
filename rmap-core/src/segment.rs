//! Segments: ranges that others may attach.

use crate::error::Result;
use crate::id::Id;
use crate::process;
use crate::range::Range;

/// A range of this process that others may attach. Dropping it ends that.
///
/// A segment is a promise: making one touches no memory, and nothing need be mapped in it. After `fork`, segments are
/// the parent's.
#[derive(Debug)]
pub struct Segment {
    id: Id,
}

impl Segment {
    /// Offers a range to everyone whom `mode`, nine octal permission bits, allows: `0o600` to the same user.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for other bits or a range past the end of the address space, [`Error::Unsupported`](crate::Error::Unsupported),
    /// [`Error::Disabled`](crate::Error::Disabled), [`Error::OutOfIds`](crate::Error::OutOfIds),
    /// [`Error::OutOfResources`](crate::Error::OutOfResources).
    pub fn new(range: Range, mode: u32) -> Result<Self> {
        let id = process::make(range.start(), range.len(), process::PERMIT_MODE, mode as usize)?;
        Ok(Self { id })
    }

    /// Offers all that this process has mapped and will map; offsets are addresses.
    ///
    /// # Errors
    /// As [`Segment::new`].
    pub fn whole_address_space(mode: u32) -> Result<Self> {
        let id = process::make(0, process::MAX_SIZE, process::PERMIT_MODE, mode as usize)?;
        Ok(Self { id })
    }

    /// Offers a range such that importers can pin it, for RDMA and `O_DIRECT`, and find process-shared futexes in it. What [`Segment::new`] offers
    /// is like that where the clone engine serves this process; the kernel's mirrors cannot be pinned.
    ///
    /// # Errors
    /// As [`Segment::new`]; also where memory cannot be adopted ([`Error::Unsupported`](crate::Error::Unsupported)).
    pub fn pinnable(range: Range, mode: u32) -> Result<Self> {
        let id = process::make_pinnable(range.start(), range.len(), process::PERMIT_MODE, mode as usize)?;
        Ok(Self { id })
    }

    /// The id to tell others.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // In a forked child the id is the parent's, and stays.
        let _ = process::remove(self.id.to_raw());
    }
}
