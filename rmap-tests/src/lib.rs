//! Real processes that share memory through `libxpmem.so`, driven from a test.
//!
//! A test makes a [`Stage`], starts [`Actor`]s on it and tells them what to do, one line a command and one
//! line an answer. All sharing is done by the actors. The test itself maps nothing: it looks at an actor with
//! `process_vm_readv`, which is the oracle for what an attachment must show.
//!
//! Nothing here waits a fixed time. Each wait is for an event and has a deadline. A stage kills what was
//! started on it when it is dropped, when a test panics, and when its time is up.
//!
//! Environment:
//!
//! | variable | meaning |
//! |---|---|
//! | `RMAP_TEST_LIB` | the library to test; default: the newest `libxpmem.so` in `target/{release,debug}` |
//! | `RMAP_TEST_ACTOR` | the actor program; default: next to the test |
//! | `RMAP_TEST_PATIENCE` | factor on all deadlines, for slow machines |
//! | `RMAP_TEST_SEED` | seed of the random tests |
//! | `RMAP_SOAK_SECONDS` | run the random tests this long |
//! | `RMAP_TEST_DIVISOR` | do what is done several times so many times less often |

mod actor;
mod calls;
mod descriptors;
mod engine;
mod log;
mod maps;
mod namespaces;
pub mod pattern;
mod random;
/// The library's own.
#[path = "../../rmap-core/src/engine/secret.rs"]
mod secret;
/// The library's own.
#[path = "../../rmap-core/src/engine/siphash.rs"]
mod siphash;
mod stage;
mod supervisor;
mod tracer;
mod wire;

pub use actor::{Actor, Fault, Reply, Report, Setup, expect_clean};
pub use descriptors::{application_descriptors, library_descriptors, service_thread};
pub use engine::{Engine, goes_without};
pub use log::Log;
pub use maps::{
    Mapping, maps, maps_if_alive, parent_of, state_of, task_blocked_in, tasks, vm_flags, waits_for_page,
};
pub use namespaces::{Contained, Ids};
pub use random::{Random, rounds, seed, soak};
pub use stage::{BOARD_LEN, Board, Stage};
pub use supervisor::{Action, Call, Caller, Plan, Supervisor, Watch};
pub use tracer::{Entered, Tracer};
pub use wire::{Door, Parcel, Wire, counter, socket_name};

use std::path::PathBuf;

/// The size of a page.
pub const PAGE: usize = 4096;

/// `XPMEM_MAXADDR_SIZE`.
pub const MAXADDR: usize = usize::MAX;
/// `XPMEM_RDONLY`.
pub const RDONLY: i32 = 1;
/// `XPMEM_RDWR`.
pub const RDWR: i32 = 2;
/// `XPMEM_PERMIT_MODE`.
pub const PERMIT_MODE: i32 = 1;

/// Whether the tests run with effective uid 0.
pub fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// Says on the terminal why a test is not run.
pub fn skip(test: &str, reason: &str) {
    use std::io::Write as _;
    // Not eprintln!, which the test harness captures and drops for a test that passes.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
}

/// The folder that cargo builds into, found from the running test.
fn build_folder() -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its own path");
    let folder = test.parent().expect("a program lies in a folder");
    if folder.ends_with("deps") { folder.parent().expect("deps has a parent").into() } else { folder.into() }
}

/// The library under test.
///
/// # Panics
///
/// If there is none.
pub fn library() -> PathBuf {
    if let Some(path) = std::env::var_os("RMAP_TEST_LIB") {
        return path.into();
    }
    let here = build_folder();
    let mut targets = vec![here.parent().expect("a profile folder has a parent").to_path_buf()];
    targets.push(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")));
    let newest = |target: &PathBuf| {
        ["release", "debug"]
            .iter()
            .map(|profile| target.join(profile).join("libxpmem.so"))
            .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
            .max()
    };
    targets.iter().find_map(newest).map(|(_, path)| path).unwrap_or_else(|| {
        panic!("no libxpmem.so in target/release or target/debug: build it, or name it in RMAP_TEST_LIB")
    })
}

/// The program that plays exporters and importers.
fn actor_program() -> PathBuf {
    std::env::var_os("RMAP_TEST_ACTOR").map_or_else(|| build_folder().join("rmap-test-actor"), PathBuf::from)
}

/// What is wrong with the view that an importer has of an exporter.
///
/// A page that the exporter cannot read itself, by the oracle, must be a hole in the attachment, and the other
/// way round. All others must have the same bytes. The exporter must be quiet meanwhile.
///
/// # Errors
///
/// The first page that differs, and how.
pub fn compare(
    exporter: &Actor,
    importer: &mut Actor,
    remote: usize,
    here: usize,
    pages: usize,
) -> Result<(), String> {
    let shown = importer.look(here, pages);
    let real = exporter.oracle(remote, pages);
    for (page, (shown, real)) in shown.into_iter().zip(real).enumerate() {
        let same = match (shown, real) {
            (pattern::Seen::Hole, None) => true,
            (shown, Some(real)) => shown == real,
            _ => false,
        };
        if !same {
            let address = remote + page * PAGE;
            return Err(format!(
                "page {page} at {address:#x}: {shown:?} through the attachment, really {real:?}"
            ));
        }
    }
    Ok(())
}
