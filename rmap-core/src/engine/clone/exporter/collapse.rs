//! Collapsing blocks of an object while the next ones are filled.
//!
//! Filling a block and collapsing it take about as long as each other, and the cores of the threads that stand still are free. So a
//! sibling collapses what is filled; what it has not begun when all is filled, the service thread does itself.

use super::super::errand::Errand;
use super::object::Object;
use crate::range::Range;
use crate::sys::futex::{self, Word};
use crate::sys::memory::{self, HUGE_PAGE, MapFlags, PAGE, ProtFlags};
use crate::sys::thread::{self, Sibling};
use crate::sys::{Errno, SysResult};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Blocks in one call. Each call has the kernel empty the lists of all cores first. No more than two: what is left of a batch without those
/// to be left alone is one piece.
const BATCH: u32 = 2;

/// Work for both.
#[derive(Debug)]
struct Order {
    /// Where the blocks are mapped for it.
    view: usize,
    /// How many blocks are filled, and whether no more will be.
    filled: Word,
    /// How many are collapsed, or somebody's work.
    claimed: AtomicU32,
    /// Those to be left as they are, by their bits.
    left_alone: AtomicU64,
    /// Why one could not be; the rest is left alone then.
    errno: AtomicU32,
}

const ALL: u32 = 1 << 31;

impl Order {
    /// The next blocks that are filled and nobody's work.
    fn claim(&self) -> Option<(u32, u32)> {
        let mut behind = 0;
        let claimed = self.claimed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |claimed| {
            behind = (self.filled.load(Ordering::Acquire) & !ALL).min(claimed.saturating_add(BATCH));
            (claimed < behind).then_some(behind)
        });
        claimed.ok().map(|first| (first, behind))
    }

    /// Collapses what is filled, until there is no more to claim.
    fn work(&self) {
        while let Some((first, behind)) = self.claim() {
            let alone = |block: &u32| self.left_alone.load(Ordering::Relaxed) & 1 << *block != 0;
            let first = (first..behind).find(|block| !alone(block)).unwrap_or(behind);
            let behind = (first..behind).find(alone).unwrap_or(behind);
            let start = self.view + first as usize * HUGE_PAGE;
            let Some(blocks) = Range::new(start, (behind - first) as usize * HUGE_PAGE) else { continue };
            match collapse(blocks) {
                // Somebody has a page in hand: the rest is huge.
                Ok(()) | Err(Errno::AGAIN) => {}
                Err(errno) => {
                    self.errno.store(errno.raw_os_error().cast_unsigned(), Ordering::Relaxed);
                    self.claimed.store(!ALL, Ordering::Relaxed);
                }
            }
        }
    }
}

extern "C" fn sibling_main(order: *mut c_void) -> i32 {
    // SAFETY: `Collapser::fill` passes its order, and waits for the end of the sibling.
    let order = unsafe { &*order.cast::<Order>() };
    thread::die_with_parent();
    loop {
        let filled = order.filled.load(Ordering::Acquire);
        order.work();
        if filled & ALL != 0 {
            return 0;
        }
        futex::wait(&order.filled, filled, None);
    }
}

/// Who collapses what is filled.
#[derive(Debug)]
pub(crate) struct Collapser(Errand<Order>);

impl Collapser {
    pub(crate) fn new() -> SysResult<Self> {
        Errand::new(16 << 10).map(Self)
    }

    /// How much can be filled in one go.
    pub(crate) const MOST: usize = u64::BITS as usize * HUGE_PAGE;

    /// Has `fill` fill one block of the object after the other, and collapses those of which it says so. The blocks are aligned, and
    /// whole when filled.
    ///
    /// # Errors
    /// What `fill` fails with. Whether collapsing has worked is in the value.
    pub(crate) fn fill(
        &mut self,
        object: &Object,
        blocks: Range,
        mut fill: impl FnMut(Range) -> SysResult<bool>,
    ) -> SysResult<SysResult<()>> {
        let each = || {
            let block = |start| Range::new(start, HUGE_PAGE);
            (blocks.start()..blocks.end()).step_by(HUGE_PAGE).filter_map(block)
        };
        let view = View::of(object, blocks);
        // SAFETY: every sibling is reaped below.
        let order = unsafe {
            self.0.give(Order {
                view: view.as_ref().map_or(0, |view| view.start()),
                filled: Word::new(0),
                claimed: AtomicU32::new(0),
                left_alone: AtomicU64::new(0),
                errno: AtomicU32::new(0),
            })
        };
        if let Err(errno) = view {
            return each().try_for_each(|block| fill(block).map(drop)).map(|()| Err(errno));
        }
        // SAFETY: the stack is ours and idle; `sibling_main` makes raw system calls only. Without a sibling all is done here.
        let sibling = unsafe { Sibling::spawn(self.0.stack_top(), sibling_main, self.0.argument()) };
        let mut filled = 0;
        let result = each().try_for_each(|block| {
            if !fill(block)? {
                order.left_alone.fetch_or(1 << filled, Ordering::Relaxed);
            }
            filled += 1;
            order.filled.store(filled, Ordering::Release);
            if filled.is_multiple_of(BATCH) {
                futex::wake(&order.filled);
            }
            Ok(())
        });
        order.filled.store(filled | ALL, Ordering::Release);
        futex::wake(&order.filled);
        if result.is_ok() {
            order.work();
        }
        if let Ok(sibling) = sibling {
            sibling.reap();
        }
        drop(view);
        result.map(|()| match order.errno.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(Errno::from_raw_os_error(errno.cast_signed())),
        })
    }
}

/// A mapping of blocks for the collapsing alone: the kernel collapses what is mapped at addresses that agree.
struct View(Range);

impl View {
    fn of(object: &Object, blocks: Range) -> SysResult<Self> {
        let start = memory::map_agreeing(blocks.len(), blocks.start(), ProtFlags::empty())?;
        let view = Self(Range::new(start, blocks.len()).ok_or(Errno::NOMEM)?);
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        // SAFETY: our own reservation.
        unsafe { memory::map_over(start, blocks.len(), prot, flags, object.own(), blocks.start() as u64) }?;
        Ok(view)
    }

    fn start(&self) -> usize {
        self.0.start()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: our own mapping; whoever worked on it is done.
        let _ = unsafe { memory::unmap(self.0.start(), self.0.len()) };
    }
}

/// Collapses blocks that are mapped; once more where pages were on their way to a list of another core.
pub(crate) fn collapse(blocks: Range) -> SysResult<()> {
    // Linux 6.1 collapses only where something is mapped.
    for block in (blocks.start()..blocks.end()).step_by(HUGE_PAGE) {
        let _ = memory::populate_for_loads(block, PAGE);
    }
    match memory::collapse(blocks.start(), blocks.len()) {
        Err(Errno::AGAIN) => memory::collapse(blocks.start(), blocks.len()),
        collapsed => collapsed,
    }
}
