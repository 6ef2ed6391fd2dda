//! Copies of pages are made on the nodes where the pages are.
//!
//! The kernel takes the pages of an object from where the policy of that part of the file says (`mbind`), and where there is none,
//! from where the policy of the task that copies says, which a sibling inherits. So the policy of the old mapping becomes that of the part of the file, but
//! only after the copy; and while pages are copied, their node is the one that this thread prefers.

use super::object::Object;
use crate::log::log;
use crate::range::Range;
use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
use crate::sys::numa::{self, Policy};
use crate::sys::{Errno, Said, SysResult};

/// Where copies go.
#[derive(Debug)]
pub(crate) struct Placement {
    /// There is a choice, and the kernel lets us make it.
    matters: bool,
}

impl Placement {
    pub(crate) fn new() -> Self {
        let matters = match probe() {
            Ok(matters) => matters,
            // No NUMA in the kernel, or a container that refuses these calls.
            Err(errno) => {
                log!(Debug, "pages cannot be kept on their nodes: {errno}", errno = Said(errno));
                false
            }
        };
        Self { matters }
    }

    /// Begins the copy of `range` to its place in the object: pages that it gets are placed by this thread's policy. Returns the policy
    /// of what is mapped there now.
    pub(crate) fn begin(&self, object: &Object, range: Range) -> Option<Policy> {
        if !self.matters {
            return None;
        }
        if let Err(errno) = forget_policy(object, range) {
            log!(Debug, "the memory policy of {range} stays: {errno}", errno = Said(errno));
        }
        numa::policy_at(range.start()).ok()
    }

    /// Has `copy` copy `range`, in parts that are each on one node.
    pub(crate) fn copy(&self, range: Range, mut copy: impl FnMut(Range) -> SysResult<()>) -> SysResult<()> {
        if self.matters { each_part(range, copy) } else { copy(range) }
    }

    /// Gives the mapping of `range` this policy.
    pub(crate) fn give(&self, range: Range, policy: Option<Policy>) {
        if let Some(policy) = policy.filter(|policy| *policy != Policy::DEFAULT)
            && let Err(errno) = numa::bind(range.start(), range.len(), &policy)
        {
            log!(Debug, "{range} loses its memory policy: {errno}", errno = Said(errno));
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

/// Calls `each` with the parts of `range` whose pages are on one node, while new memory comes from there, until it fails.
fn each_part(range: Range, mut each: impl FnMut(Range) -> SysResult<()>) -> SysResult<()> {
    let mut preference = Preference { before: None, node: None };
    let mut known = [0; numa::BATCH];
    let (mut used, mut count, mut rest) = (0, 0, Some(range));
    let nodes = core::iter::from_fn(|| {
        if used == count {
            let batch = Range::new(rest?.start(), rest?.len().min(known.len() * PAGE))?;
            rest = Range::between(batch.end(), range.end());
            (used, count) = (0, batch.len() / PAGE);
            ask(batch, known.get_mut(..count)?);
        }
        used += 1;
        known.get(used - 1).copied()
    });
    runs(nodes, |node, first, end| {
        if let Some(node) = node {
            preference.set(node);
        }
        let start = range.start() + first * PAGE;
        each(Range::new(start, (end - first) * PAGE).ok_or(Errno::INVAL)?)
    })
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
fn runs(
    nodes: impl Iterator<Item = i32>,
    mut each: impl FnMut(Option<u32>, usize, usize) -> SysResult<()>,
) -> SysResult<()> {
    let (mut current, mut first, mut count) = (None, 0, 0);
    for node in nodes {
        let node = u32::try_from(node).ok();
        if node.is_some() && node != current {
            if current.is_some() {
                each(current, first, count)?;
                first = count;
            }
            current = node;
        }
        count += 1;
    }
    if count > 0 { each(current, first, count) } else { Ok(()) }
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
        runs(nodes.iter().copied(), |node, first, end| {
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
        let result = runs([0, 1, 0].into_iter(), |_, _, _| {
            calls += 1;
            Err(Errno::IO)
        });
        assert_eq!((result, calls), (Err(Errno::IO), 1));
    }
}
