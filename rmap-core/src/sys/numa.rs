//! Nodes of memory, and the policies that say which of them memory is taken from (`man 7 numa`).

use super::features::Feature;
use super::memory::PAGE;
use super::{Errno, SysResult, raw};
use core::ptr;

/// The most nodes a kernel can have on x86-64 (`CONFIG_NODES_SHIFT`).
const NODES: usize = 1024;
const BITS: usize = usize::BITS as usize;
/// The kernel takes the number of bits plus one.
const MOST: usize = NODES + 1;
const MPOL_PREFERRED: i32 = 1;
const MPOL_LOCAL: i32 = 4;
const MPOL_F_ADDR: usize = 1 << 1;
const MPOL_F_MEMS_ALLOWED: usize = 1 << 2;

/// A set of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nodes([usize; NODES / BITS]);

impl Nodes {
    const NONE: Self = Self([0; NODES / BITS]);

    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

/// Where memory is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// `MPOL_*`, with the flags that belong to the mode.
    mode: i32,
    nodes: Nodes,
}

impl Policy {
    /// What the thread that touches a page first wants.
    pub(crate) const DEFAULT: Self = Self { mode: 0, nodes: Nodes::NONE };

    /// The node of the core that touches a page first.
    pub(crate) const LOCAL: Self = Self { mode: MPOL_LOCAL, nodes: Nodes::NONE };

    /// Another node only where this one has no memory left.
    pub(crate) fn preferred(node: u32) -> Self {
        let node = node as usize;
        let mut nodes = Nodes::NONE;
        if let Some(word) = nodes.0.get_mut(node / BITS) {
            *word = 1 << (node % BITS);
        }
        Self { mode: MPOL_PREFERRED, nodes }
    }
}

fn get(addr: usize, flags: usize) -> SysResult<Policy> {
    Feature::Numa.check()?;
    let mut policy = Policy::DEFAULT;
    let mode = ptr::from_mut(&mut policy.mode).expose_provenance();
    let nodes = policy.nodes.0.as_mut_ptr().expose_provenance();
    // SAFETY: the kernel writes an int to `mode` and at most `MOST - 1` bits to `nodes`; both live until after the call.
    unsafe { raw::syscall(libc::SYS_get_mempolicy, [mode, nodes, MOST, addr, flags, 0]) }?;
    Ok(policy)
}

/// The nodes that this thread may have memory from.
pub(crate) fn allowed() -> SysResult<Nodes> {
    get(0, MPOL_F_MEMS_ALLOWED).map(|policy| policy.nodes)
}

/// The policy of the mapping at an address.
pub(crate) fn policy_at(addr: usize) -> SysResult<Policy> {
    get(addr, MPOL_F_ADDR)
}

/// The policy of this thread.
pub(crate) fn thread_policy() -> SysResult<Policy> {
    get(0, 0)
}

/// Sets the policy of this thread.
pub(crate) fn set_thread_policy(policy: &Policy) -> SysResult<()> {
    let nodes = policy.nodes.0.as_ptr().expose_provenance();
    // SAFETY: the kernel reads at most `MOST - 1` bits from `nodes`, which is as long.
    unsafe { raw::syscall(libc::SYS_set_mempolicy, [policy.mode as usize, nodes, MOST, 0, 0, 0]) }.map(drop)
}

/// Sets the policy of a range: of the file, if a shared one of memory is mapped there. Pages stay where they are.
pub(crate) fn bind(addr: usize, len: usize, policy: &Policy) -> SysResult<()> {
    let nodes = policy.nodes.0.as_ptr().expose_provenance();
    // SAFETY: as above; without flags mbind does not touch pages.
    unsafe { raw::syscall(libc::SYS_mbind, [addr, len, policy.mode as usize, nodes, MOST, 0]) }.map(drop)
}

/// Makes each call once that placing memory takes, and changes nothing.
pub(crate) fn can_place() -> SysResult<()> {
    set_thread_policy(&thread_policy()?)?;
    let page = ptr::from_ref(&()).addr() & !(PAGE - 1);
    nodes_of(page, &mut [0])
}

/// Asks for so many pages at a time.
pub(crate) const BATCH: usize = 512;

/// The nodes of the pages from `addr` on, as many as `nodes` has room for: negative where the kernel does not know one.
///
/// # Errors
/// `EINVAL` for more than [`BATCH`] pages, and those of the call.
pub(crate) fn nodes_of(addr: usize, nodes: &mut [i32]) -> SysResult<()> {
    let mut pages = [0; BATCH];
    let count = nodes.len();
    for (index, page) in pages.get_mut(..count).ok_or(Errno::INVAL)?.iter_mut().enumerate() {
        *page = addr + index * PAGE;
    }
    let pages = pages.as_ptr().expose_provenance();
    let nodes = nodes.as_mut_ptr().expose_provenance();
    // SAFETY: without target nodes nothing is moved. The kernel reads `count` addresses from `pages` and writes `count` ints to `nodes`;
    // both are as long and live until after the call.
    unsafe { raw::syscall(libc::SYS_move_pages, [0, count, pages, 0, nodes, 0]) }.map(drop)
}
