//! Map another process's memory and use it with loads and stores, on a stock Linux kernel, as an ordinary user.
//!
//! One process makes a [`Segment`], a promise about a range of its address space, and tells another its [`Id`]. The other gets a
//! [`Permit`] and makes an [`Attachment`]: a mapping that shows what the first has at those addresses, now and as it
//! changes. These are XPMEM's objects, without its kernel module; `libxpmem.so.0` is a thin shell around [`process`].
//!
//! ```no_run
//! use rmap_core::{Access, Permit, Range, Segment};
//!
//! // The exporter.
//! let segment = Segment::whole_address_space(0o600)?;
//! let data = vec![1u8; 4096];
//! println!("{} {:p}", segment.id().to_raw(), data.as_ptr());
//!
//! // The importer, with the two numbers; offsets are addresses of the exporter.
//! # let (id, addr) = (segment.id(), data.as_ptr().addr());
//! let permit = Permit::get(id, Access::ReadWrite)?;
//! let page = addr & !4095;
//! let attachment = permit.attach(page as u64, 8192)?;
//! let mut byte = [0];
//! attachment.read(addr - page, &mut byte)?;
//! # Ok::<(), rmap_core::Error>(())
//! ```
//!
//! # How
//! The exporter's pages move into a memfd, in place, while its threads stand still for a moment; importers map that. What the exporter
//! unmaps, moves or drops is taken from importers before its call returns. `docs/architecture.md` has the whole
//! story, `docs/semantics.md` the differences from XPMEM.
//!
//! # Threads, fork, signals
//! Every call may be made from any thread. The first one that needs it starts a service thread. After `fork` the child
//! has copies of its parent's memory, and no segments, permits or attachments. No signal handler is installed.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("rmap runs on Linux, on x86-64");

pub mod abi;
mod attachment;
mod config;
pub mod counters;
mod detector;
mod engine;
mod error;
pub mod features;
mod id;
mod log;
mod own;
mod permit;
pub mod process;
mod range;
pub mod report;
mod segment;
pub mod survey;
mod sys;
mod volatile;

pub use attachment::Attachment;
pub use counters::Counters;
pub use engine::Access;
pub use error::{Error, Result};
pub use id::Id;
pub use permit::Permit;
pub use range::Range;
pub use segment::Segment;
