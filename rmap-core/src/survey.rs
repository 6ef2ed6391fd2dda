//! Who uses the library on this machine, and how: what `rmap ls` shows.

pub use crate::engine::clone::{Process, Silence, processes};
