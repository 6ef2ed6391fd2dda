//! A growable array in own memory.

use super::OwnMemory;
use crate::sys::SysResult;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// Like `Vec`, but never calls the application's allocator, and says so when memory runs out.
///
/// Empty arrays take no memory.
pub(crate) struct OwnVec<T> {
    memory: Option<OwnMemory>,
    len: usize,
    items: PhantomData<T>,
}

impl<T> OwnVec<T> {
    pub(crate) const fn new() -> Self {
        const { assert!(align_of::<T>() <= 4096 && size_of::<T>() > 0) };
        Self { memory: None, len: 0, items: PhantomData }
    }

    fn base(&self) -> *mut T {
        match &self.memory {
            Some(memory) => core::ptr::with_exposed_provenance_mut(memory.addr()),
            None => core::ptr::dangling_mut(),
        }
    }

    fn capacity(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.len() / size_of::<T>())
    }

    /// Makes room for `more` further items.
    pub(crate) fn reserve(&mut self, more: usize) -> SysResult<()> {
        let wanted = self.len + more;
        if wanted <= self.capacity() {
            return Ok(());
        }
        let bytes = (wanted * size_of::<T>()).max(self.capacity() * size_of::<T>() * 2);
        let memory = OwnMemory::new(bytes)?;
        let to: *mut T = core::ptr::with_exposed_provenance_mut(memory.addr());
        // SAFETY: `len` items are initialised in the old memory and fit into the new; they are moved bitwise.
        unsafe { core::ptr::copy_nonoverlapping(self.base(), to, self.len) };
        self.memory = Some(memory);
        Ok(())
    }

    pub(crate) fn push(&mut self, item: T) -> SysResult<()> {
        self.insert(self.len, item)
    }

    /// Inserts before `index`, at the end if that is past it.
    pub(crate) fn insert(&mut self, index: usize, item: T) -> SysResult<()> {
        self.reserve(1)?;
        let index = index.min(self.len);
        // SAFETY: there is room for one more item; the tail moves up by one.
        unsafe {
            let at = self.base().add(index);
            core::ptr::copy(at, at.add(1), self.len - index);
            at.write(item);
        }
        self.len += 1;
        Ok(())
    }

    /// Takes the item at `index` out, keeping the order.
    pub(crate) fn remove(&mut self, index: usize) -> Option<T> {
        if index >= self.len {
            return None;
        }
        // SAFETY: the item is initialised; the tail moves down over it.
        let item = unsafe {
            let at = self.base().add(index);
            let item = at.read();
            core::ptr::copy(at.add(1), at, self.len - index - 1);
            item
        };
        self.len -= 1;
        Some(item)
    }

    /// Drops the items that `keep` refuses.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        let mut index = 0;
        while index < self.len {
            if keep(&mut self[index]) {
                index += 1;
            } else {
                drop(self.remove(index));
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.retain(|_| false);
    }
}

impl<T> Deref for OwnVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` items are initialised at the base.
        unsafe { core::slice::from_raw_parts(self.base(), self.len) }
    }
}

impl<T> DerefMut for OwnVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the array is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.base(), self.len) }
    }
}

impl<T> Drop for OwnVec<T> {
    fn drop(&mut self) {
        while self.len > 0 {
            drop(self.remove(self.len - 1));
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for OwnVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

// SAFETY: it owns its items, as Vec does.
unsafe impl<T: Send> Send for OwnVec<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_like_vec() {
        let mut ours = OwnVec::new();
        let mut theirs = Vec::new();
        for n in 0..5000u64 {
            let at = (n * 7919) as usize % (theirs.len() + 1);
            ours.insert(at, n).unwrap();
            theirs.insert(at, n);
            if n % 3 == 0 {
                let at = (n * 31) as usize % theirs.len();
                assert_eq!(ours.remove(at), Some(theirs.remove(at)));
            }
        }
        assert_eq!(&*ours, &*theirs);
        ours.retain(|n| *n % 2 == 0);
        theirs.retain(|n| *n % 2 == 0);
        assert_eq!(&*ours, &*theirs);
        assert_eq!(ours.remove(ours.len()), None);
    }

    #[test]
    fn drops_its_items() {
        let item = std::rc::Rc::new(());
        let mut array = OwnVec::new();
        array.push(item.clone()).unwrap();
        array.push(item.clone()).unwrap();
        drop(array.remove(0));
        assert_eq!(std::rc::Rc::strong_count(&item), 2);
        drop(array);
        assert_eq!(std::rc::Rc::strong_count(&item), 1);
    }
}
