//! Live memory of a process that does not cooperate: shown and edited with loads and stores, without stopping it for each look.
//!
//! [`Inspection::open`] maps a range of another process here. From then on the process runs as before, and both see what either stores.
//! There are three ways, and each range is shown by the first that works:
//!
//! - **The kernel.** With the module `rmap` loaded (`/dev/rmap`) the kernel maps the range and keeps the mapping true, holes
//!   included. Nothing is changed in the process.
//! - **The descriptor.** Memory that the process shares with others (`/dev/shm`, a memfd, a file) is mapped from its own file.
//! - **Moving it.** The process is stopped for as long as it takes to copy its private memory to a memfd, and is made to map that in place,
//!   by system calls that one of its threads is led through. [`Inspection::close`] gives it private memory again.
//!
//! The right to do so is the kernel's right to trace the process (`man 2 ptrace`, "Ptrace access mode checking"): the same user and a process
//! that is dumpable, as Yama allows it, or `CAP_SYS_PTRACE`.
//!
//! # Limits
//! Moved memory is shared memory until it is given back. A child that the process forks meanwhile shares it with the process. If the inspecting
//! process is killed, it stays so. A private mapping of a file comes back as anonymous memory with the same bytes.
//! Memory that a device may be writing to, or that is sealed, is not moved.

mod error;
mod inspection;
mod mirror;
mod moving;
mod plan;
mod process;
mod remote_call;
mod stopped;
mod view;

pub use error::{Error, Result};
pub use inspection::{Inspection, Piece, Way};
