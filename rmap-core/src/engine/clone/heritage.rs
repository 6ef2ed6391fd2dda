//! What a forked child takes over from its parent: views of buffers that stay adopted (`RMAP_FORK=share`).
//!
//! A child that had the mapping of the parent would store into it. So the parent maps each buffer once more, privately and somewhere else,
//! the child inherits that, and moves it to where the buffer is. It has no page of its own there before it stores to one.

use crate::range::Range;
use crate::sys::memory::{self, MapFlags, ProtFlags};
use crate::sys::{Errno, SysResult};
use std::os::fd::BorrowedFd;

#[derive(Clone, Copy)]
struct View {
    at: usize,
    home: usize,
    len: usize,
}

#[derive(Clone, Copy)]
struct Head {
    bytes: usize,
    room: usize,
    count: usize,
}

/// A list of views, in memory that a child has as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heritage(usize);

impl Heritage {
    /// An empty list with room for so many.
    pub(crate) fn with_room(room: usize) -> SysResult<Self> {
        let bytes = size_of::<Head>() + room * size_of::<View>();
        let list = memory::map_anonymous(bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::empty())?;
        let new = Self(list);
        // SAFETY: fresh memory with room for it, which is nobody else's.
        unsafe { new.head().write(Head { bytes, room, count: 0 }) };
        Ok(new)
    }

    /// The list at this address, if it is one.
    pub(crate) fn at(addr: usize) -> Option<Self> {
        (addr != 0).then_some(Self(addr))
    }

    pub(crate) fn addr(self) -> usize {
        self.0
    }

    fn head(self) -> *mut Head {
        core::ptr::with_exposed_provenance_mut(self.0)
    }

    fn place(self, index: usize) -> *mut View {
        core::ptr::with_exposed_provenance_mut(self.0 + size_of::<Head>() + index * size_of::<View>())
    }

    /// Adds a view of a file that shows at `home` what it has at the offset that is the same number.
    pub(crate) fn add(self, file: BorrowedFd<'_>, home: Range, prot: ProtFlags) -> SysResult<()> {
        // SAFETY: written by `with_room`, and nobody else uses the list meanwhile.
        let head = unsafe { &mut *self.head() };
        if head.count == head.room {
            return Err(Errno::NOMEM);
        }
        // Huge pages of the file can be mapped as such.
        let at = memory::map_agreeing(home.len(), home.start(), ProtFlags::empty())?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: our own reservation.
        let mapped = unsafe { memory::map_over(at, home.len(), prot, flags, file, home.start() as u64) };
        if let Err(errno) = mapped {
            // SAFETY: as above.
            let _ = unsafe { memory::unmap(at, home.len()) };
            return Err(errno);
        }
        // SAFETY: there is room, and nobody else uses it.
        unsafe { self.place(head.count).write(View { at, home: home.start(), len: home.len() }) };
        head.count += 1;
        Ok(())
    }

    fn each(self, mut act: impl FnMut(View)) {
        // SAFETY: written by `with_room`; nobody adds any more.
        let Head { bytes, count, .. } = unsafe { self.head().read() };
        for index in 0..count {
            // SAFETY: written by `add`.
            act(unsafe { self.place(index).read() });
        }
        // SAFETY: the list is ours, and is not used any more.
        let _ = unsafe { memory::unmap(self.0, bytes) };
    }

    /// In the child: has the buffers be where they are in the parent.
    pub(crate) fn take(self) {
        self.each(|view| {
            // SAFETY: the child has nothing at the home, and knows the view by this list alone.
            let _ = unsafe { memory::move_over(view.at, view.len, view.home) };
        });
    }

    /// In the parent: nobody needs the views any more.
    pub(crate) fn give_up(self) {
        self.each(|view| {
            // SAFETY: the view is ours, and known by this list alone.
            let _ = unsafe { memory::unmap(view.at, view.len) };
        });
    }
}
