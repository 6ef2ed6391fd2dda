//! Copies of pages are made on the nodes where the pages are.
//!
//! The kernel takes the pages of an object from where the policy of that part of the file says (`mbind`), and where there is none,
//! from where the policy of the thread that writes says. So the policy of the old mapping becomes that of the part of the file, but
//! only after the copy; and while pages are copied, their node is the one that this thread prefers.

use super::object::Object;
use crate::log::log;
use crate::own::OwnVec;
use crate::range::Range;
use crate::sys::memory::{self, HUGE_PAGE, MapFlags, PAGE, ProtFlags};
use crate::sys::numa::{self, Policy};
use crate::sys::{Errno, SysResult};

/// Where copies go.
#[derive(Debug)]
pub(crate) struct Placement {
    /// There is a choice, and the kernel lets us make it.
    matters: bool,
    /// Blocks of the huge page size that were copied last and have pages of several nodes, in ascending order.
    mixed: OwnVec<usize>,
}

impl Placement {
    pub(crate) fn new() -> Self {
        let matters = match probe() {
            Ok(matters) => matters,
            // No NUMA in the kernel, or a container that refuses these calls.
            Err(errno) => {
                log!(Debug, "pages cannot be kept on their nodes: {errno}");
                false
            }
        };
        Self { matters, mixed: OwnVec::new() }
    }

    /// Begins the copy of `range` to its place in the object: pages that it gets are placed by this thread's policy. Returns the policy
    /// of what is mapped there now.
    pub(crate) fn begin(&mut self, object: &Object, range: Range) -> Option<Policy> {
        if !self.matters {
            return None;
        }
        self.mixed.clear();
        if let Err(errno) = forget_policy(object, range) {
            log!(Debug, "the memory policy of {range} stays: {errno}");
        }
        numa::policy_at(range.start()).ok()
    }

    /// Has `copy` copy `range`, whose pages are asked for their nodes.
    pub(crate) fn copy(
        &mut self,
        range: Range,
        mut copy: impl FnMut(Range) -> SysResult<()>,
    ) -> SysResult<()> {
        if !self.matters {
            return copy(range);
        }
        let mixed = &mut self.mixed;
        each_part(range, |part| {
            // Only another node makes a part begin inside a block.
            let block = part.start() & !(HUGE_PAGE - 1);
            if part.start() > block.max(range.start()) && mixed.last() != Some(&block) {
                mixed.push(block)?;
            }
            copy(part)
        })
    }

    /// Whether the block that was copied last has pages of several nodes.
    pub(crate) fn is_mixed(&self, block: Range) -> bool {
        self.mixed.last() == Some(&block.start())
    }

    /// As [`copy`](Self::copy), to where no huge pages are made afterwards.
    pub(crate) fn copy_elsewhere(
        &self,
        range: Range,
        mut copy: impl FnMut(Range) -> SysResult<()>,
    ) -> SysResult<()> {
        if self.matters { each_part(range, copy) } else { copy(range) }
    }

    /// Calls `each` with the parts of `blocks` that have no block with pages of several nodes in them, until it fails: a huge page can be
    /// on one node only.
    pub(crate) fn uniform(
        &self,
        blocks: Range,
        mut each: impl FnMut(Range) -> SysResult<()>,
    ) -> SysResult<()> {
        let mut start = blocks.start();
        for block in self.mixed.iter().copied().filter(|block| blocks.contains(*block)) {
            if let Some(part) = Range::between(start, block) {
                each(part)?;
            }
            start = block + HUGE_PAGE;
        }
        Range::between(start, blocks.end()).map_or(Ok(()), each)
    }

    /// Gives the mapping of `range` this policy.
    pub(crate) fn give(&self, range: Range, policy: Option<Policy>) {
        if let Some(policy) = policy.filter(|policy| *policy != Policy::DEFAULT)
            && let Err(errno) = numa::bind(range.start(), range.len(), &policy)
        {
            log!(Debug, "{range} loses its memory policy: {errno}");
        }
    }

    /// Gives `range` the policy of what is mapped at `from`.
    pub(crate) fn carry(&self, from: usize, range: Range) {
        if self.matters {
            self.give(range, numa::policy_at(from).ok());
        }
    }
}

/// Whether there is more than one node. Makes each call once that is needed then, and changes nothing.
fn probe() -> SysResult<bool> {
    if numa::allowed()?.count() <= 1 {
        return Ok(false);
    }
    numa::can_place().map(|()| true)
}

/// An object may have a policy for a part of it: of memory that was there before, or because the application has bound its mapping.
fn forget_policy(object: &Object, range: Range) -> SysResult<()> {
    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
    let view = memory::map(range.len(), ProtFlags::empty(), flags, object.own(), range.start() as u64)?;
    // The kernel does nothing where the mapping has the policy already, whatever the file has.
    let forgotten = numa::bind(view, range.len(), &Policy::LOCAL)
        .and_then(|()| numa::bind(view, range.len(), &Policy::DEFAULT));
    // SAFETY: the view is ours.
    let _ = unsafe { memory::unmap(view, range.len()) };
    forgotten
}

/// Calls `each` with the parts of `range` whose pages are on one node, while new memory comes from there, until it fails. No part
/// reaches over the border of a block of the huge page size.
fn each_part(range: Range, mut each: impl FnMut(Range) -> SysResult<()>) -> SysResult<()> {
    let mut preference = Preference { before: None, node: None };
    let mut nodes = [0; numa::BATCH];
    let mut rest = Some(range);
    while let Some(batch) = rest {
        let end = batch.end().min((batch.start() + 1).next_multiple_of(HUGE_PAGE));
        let batch = Range::between(batch.start(), end).ok_or(Errno::INVAL)?;
        let nodes = nodes.get_mut(..batch.len() / PAGE).ok_or(Errno::INVAL)?;
        ask(batch, nodes);
        runs(nodes, |node, first, end| {
            if let Some(node) = node {
                preference.set(node);
            }
            let start = batch.start() + first * PAGE;
            each(Range::new(start, (end - first) * PAGE).ok_or(Errno::INVAL)?)
        })?;
        rest = Range::between(end, range.end());
    }
    Ok(())
}

/// The nodes of the pages of a range, negative where there is none.
fn ask(range: Range, nodes: &mut [i32]) {
    for _ in 0..2 {
        if numa::nodes_of(range.start(), nodes).is_err() {
            return nodes.fill(-1);
        }
        if nodes.iter().all(|node| *node >= 0) {
            return;
        }
        // In the file or in swap, but not mapped here: the copy will map it.
        let _ = memory::populate_for_loads(range.start(), range.len());
    }
}

/// Calls `each` for runs of pages of one node, with their first index and that behind the last, until it fails. Pages whose node
/// is not known go with those before them, the first ones with those after them.
fn runs(nodes: &[i32], mut each: impl FnMut(Option<u32>, usize, usize) -> SysResult<()>) -> SysResult<()> {
    let (mut current, mut first) = (None, 0);
    for (index, node) in nodes.iter().enumerate() {
        let node = u32::try_from(*node).ok();
        if node.is_none() || node == current {
            continue;
        }
        if current.is_some() {
            each(current, first, index)?;
            first = index;
        }
        current = node;
    }
    each(current, first, nodes.len())
}

/// The node that this thread prefers, until this is dropped.
#[derive(Debug)]
struct Preference {
    before: Option<Policy>,
    node: Option<u32>,
}

impl Preference {
    /// Pages on the wrong node are better than none, so that it does not work is no error.
    fn set(&mut self, node: u32) {
        if self.node == Some(node) {
            return;
        }
        if self.before.is_none() {
            self.before = numa::thread_policy().ok();
        }
        if self.before.is_some() && numa::set_thread_policy(&Policy::preferred(node)).is_ok() {
            self.node = Some(node);
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        if let (Some(before), Some(_)) = (&self.before, self.node) {
            let _ = numa::set_thread_policy(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_runs(nodes: &[i32]) -> Vec<(Option<u32>, usize, usize)> {
        let mut all = Vec::new();
        runs(nodes, |node, first, end| {
            all.push((node, first, end));
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn pages_of_one_node_are_one_run() {
        assert_eq!(all_runs(&[1, 1, 1]), [(Some(1), 0, 3)]);
    }

    #[test]
    fn a_run_ends_where_another_node_begins() {
        assert_eq!(all_runs(&[0, 1, 1, 0]), [(Some(0), 0, 1), (Some(1), 1, 3), (Some(0), 3, 4)]);
    }

    #[test]
    fn unknown_pages_go_with_their_neighbours() {
        let (absent, zero) = (-libc::ENOENT, -libc::EFAULT);
        assert_eq!(all_runs(&[absent, 1, zero, 1, absent, 0, zero]), [(Some(1), 0, 5), (Some(0), 5, 7)]);
        assert_eq!(all_runs(&[absent, zero]), [(None, 0, 2)]);
    }

    #[test]
    fn nothing_comes_after_a_failure() {
        let mut calls = 0;
        let result = runs(&[0, 1, 0], |_, _, _| {
            calls += 1;
            Err(Errno::IO)
        });
        assert_eq!((result, calls), (Err(Errno::IO), 1));
    }

    #[test]
    fn blocks_of_several_nodes_are_left_out() {
        let block = |number: usize| number * HUGE_PAGE;
        let mut placement = Placement { matters: true, mixed: OwnVec::new() };
        let parts = |placement: &Placement, first: usize, end: usize| {
            let mut parts = Vec::new();
            placement
                .uniform(Range::between(block(first), block(end)).unwrap(), |part| {
                    parts.push((part.start() / HUGE_PAGE, part.end() / HUGE_PAGE));
                    Ok(())
                })
                .unwrap();
            parts
        };
        assert_eq!(parts(&placement, 4, 9), [(4, 9)]);
        for number in [4, 6, 7, 20] {
            placement.mixed.push(block(number)).unwrap();
        }
        assert_eq!(parts(&placement, 4, 9), [(5, 6), (8, 9)]);
        assert_eq!(parts(&placement, 6, 8), []);
        assert_eq!(parts(&placement, 5, 6), [(5, 6)]);
    }
}
