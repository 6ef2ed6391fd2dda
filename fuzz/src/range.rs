//! Where the library's own sources expect it.

pub(crate) use rmap_core::Range;
