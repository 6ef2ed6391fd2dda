//! What a sibling needs besides its program: orders, and a stack, in own memory.

use crate::detector::Storage;
use crate::own::OwnMemory;
use crate::sys::SysResult;
use crate::sys::memory::{self, PAGE, ProtFlags};
use crate::sys::thread::Sibling;
use core::ffi::c_void;
use core::marker::PhantomData;
use std::os::fd::OwnedFd;

/// What a sibling does with its orders.
type Program = extern "C" fn(*mut c_void) -> i32;

/// Orders of type `O`, all-zero at first, and a stack with a guard page.
#[derive(Debug)]
pub(crate) struct Errand<O> {
    orders: OwnMemory,
    stack: OwnMemory,
    storage: Storage,
    kind: PhantomData<fn(O)>,
}

impl<O> Errand<O> {
    /// With a stack of `stack` bytes.
    pub(crate) fn new(stack: usize) -> SysResult<Self> {
        let stack = OwnMemory::new(stack + PAGE)?;
        // SAFETY: the guard page of a stack that is not in use.
        unsafe { memory::protect(stack.addr(), PAGE, ProtFlags::empty()) }?;
        Ok(Self {
            orders: OwnMemory::new(size_of::<O>())?,
            stack,
            storage: Storage::new()?,
            kind: PhantomData,
        })
    }

    /// Gives orders for the next sibling.
    ///
    /// # Safety
    /// The sibling of the last ones must have been reaped, nobody may use the last reference any more, and this one not after `self`.
    pub(crate) unsafe fn give<'a>(&self, orders: O) -> &'a O {
        let place: *mut O = core::ptr::with_exposed_provenance_mut(self.orders.addr());
        // SAFETY: page-aligned own memory with room for them, which is nobody else's by the caller's promise.
        unsafe {
            place.write(orders);
            &*place
        }
    }

    /// The orders.
    pub(crate) fn orders(&self) -> *const O {
        core::ptr::with_exposed_provenance(self.orders.addr())
    }

    /// Starts the sibling, which gets the address of its orders.
    ///
    /// # Safety
    /// The last one must have been reaped. `program` makes raw system calls only: it has no thread-local storage of its own.
    pub(crate) unsafe fn send(&self, program: Program) -> SysResult<Sibling> {
        // SAFETY: the stack is idle by the caller's promise, and lives as long as the orders.
        unsafe { Sibling::spawn(self.stack_top(), program, self.argument(), self.storage.address()) }
    }

    /// Like [`Self::send`]; also gives a descriptor that is readable once the sibling has ended.
    ///
    /// # Safety
    /// As [`Self::send`].
    pub(crate) unsafe fn send_with_end(&self, program: Program) -> SysResult<(Sibling, OwnedFd)> {
        // SAFETY: as in `send`.
        unsafe { Sibling::spawn_with_end(self.stack_top(), program, self.argument(), self.storage.address()) }
    }

    fn argument(&self) -> *mut c_void {
        core::ptr::with_exposed_provenance_mut(self.orders.addr())
    }

    fn stack_top(&self) -> usize {
        self.stack.addr() + self.stack.len()
    }
}
