//! Attachments: another process's memory, at an address of this one.

use crate::engine::Access;
use crate::error::{Error, Result};
use crate::permit::Permit;
use crate::process;
use crate::volatile;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// A mapping of another process's memory. Dropping it removes the mapping.
///
/// It shows what the exporter has at those addresses, now and as that changes. Others write to it at any time, so it is never lent as
/// a slice: bytes are copied in and out, or reached as atomics. Touching an address where the exporter has nothing raises
/// `SIGBUS`, as does touching what was never touched before the exporter's end. A forked child does not have the mapping.
#[derive(Debug)]
pub struct Attachment {
    base: NonNull<u8>,
    len: usize,
    permit: Permit,
}

// SAFETY: the mapping belongs to the process, not to a thread; all access is volatile or atomic.
unsafe impl Send for Attachment {}
// SAFETY: as above.
unsafe impl Sync for Attachment {}

impl Attachment {
    pub(crate) fn new(base: usize, len: usize, permit: Permit) -> Self {
        let base = NonNull::new(core::ptr::with_exposed_provenance_mut(base)).unwrap_or(NonNull::dangling());
        Self { base, len, permit }
    }

    /// The address of the first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes attached.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no bytes are attached; never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, offset: usize, len: usize) -> Result<*mut u8> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::Invalid("outside the attachment"));
        }
        Ok(self.base.as_ptr().wrapping_add(offset))
    }

    fn writable(&self) -> Result<()> {
        match self.permit.access() {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Error::Denied),
        }
    }

    /// Copies bytes out of the attachment. Bytes that the exporter writes meanwhile may be old or new, each for itself.
    ///
    /// # Errors
    /// [`Error::Invalid`] outside the attachment.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        let from = self.at(offset, into.len())?;
        // SAFETY: inside the mapping, which lives as long as `self`.
        unsafe { volatile::read(from, into) };
        Ok(())
    }

    /// Copies bytes into the attachment.
    ///
    /// # Errors
    /// [`Error::Invalid`] outside the attachment, [`Error::Denied`] with a read-only permit.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.writable()?;
        let to = self.at(offset, from.len())?;
        // SAFETY: inside the mapping, which is writable and lives as long as `self`.
        unsafe { volatile::write(to, from) };
        Ok(())
    }

    fn aligned<T>(&self, offset: usize) -> Result<*mut T> {
        self.writable()?;
        let at: *mut T = self.at(offset, size_of::<T>())?.cast();
        if at.is_aligned() { Ok(at) } else { Err(Error::Invalid("not aligned for an atomic")) }
    }

    /// Four bytes as an atomic, shared with the exporter.
    ///
    /// # Errors
    /// [`Error::Invalid`] outside the attachment or not aligned, [`Error::Denied`] with a read-only permit.
    pub fn atomic_u32(&self, offset: usize) -> Result<&AtomicU32> {
        let at = self.aligned(offset)?;
        // SAFETY: aligned, inside the mapping, which lives as long as `self`; this process reaches it otherwise
        // only by volatile access.
        Ok(unsafe { AtomicU32::from_ptr(at) })
    }

    /// Eight bytes as an atomic, shared with the exporter.
    ///
    /// # Errors
    /// As [`Attachment::atomic_u32`].
    pub fn atomic_u64(&self, offset: usize) -> Result<&AtomicU64> {
        let at = self.aligned(offset)?;
        // SAFETY: as in `atomic_u32`.
        Ok(unsafe { AtomicU64::from_ptr(at) })
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // SAFETY: nobody can use the mapping through `self` any more; pointers from `as_ptr` end with it.
        let _ = unsafe { process::detach(self.base.as_ptr().expose_provenance()) };
    }
}
