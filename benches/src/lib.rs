//! What the benchmarks share: the library through its C interface, memory to compare it with, medians, tables.
//!
//! The process that measures plays one side itself: what is timed has no command on its way. The other side is the
//! actor of `rmap-tests`. `docs/benchmarks.md` says what each benchmark prints.
//!
//! Environment:
//!
//! | variable | meaning |
//! |---|---|
//! | `RMAP_BENCH_LONG=1` | more rounds, larger sizes |
//! | `RMAP_TEST_LIB` | the library to measure; default: the release build, brought up to date first |

pub mod count;
pub mod device;
pub mod library;
pub mod live;
pub mod measure;
pub mod memory;
pub mod run;
pub mod table;

pub use library::Library;
pub use measure::{Samples, interleaved, per_call};
pub use memory::Memory;
pub use run::Run;
pub use table::Table;
