//! What a sibling needs besides its program: orders, and a stack, in own memory.

use crate::own::OwnMemory;
use crate::sys::SysResult;
use crate::sys::memory::{self, PAGE, ProtFlags};
use core::ffi::c_void;
use core::marker::PhantomData;

/// Orders of type `O`, all-zero at first, and a stack with a guard page.
#[derive(Debug)]
pub(crate) struct Errand<O> {
    orders: OwnMemory,
    stack: OwnMemory,
    kind: PhantomData<fn(O)>,
}

impl<O> Errand<O> {
    /// With a stack of `stack` bytes.
    pub(crate) fn new(stack: usize) -> SysResult<Self> {
        let stack = OwnMemory::new(stack + PAGE)?;
        // SAFETY: the guard page of a stack that is not in use.
        unsafe { memory::protect(stack.addr(), PAGE, ProtFlags::empty()) }?;
        Ok(Self { orders: OwnMemory::new(size_of::<O>())?, stack, kind: PhantomData })
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

    /// What to start the sibling with.
    pub(crate) fn argument(&self) -> *mut c_void {
        core::ptr::with_exposed_provenance_mut(self.orders.addr())
    }

    /// Where its stack ends.
    pub(crate) fn stack_top(&self) -> usize {
        self.stack.addr() + self.stack.len()
    }
}
