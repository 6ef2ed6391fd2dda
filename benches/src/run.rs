//! The start of a benchmark: what it measures, and on what machine.

use crate::Library;
use rmap_tests::Stage;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// One benchmark program that runs.
#[derive(Debug)]
pub struct Run {
    /// The library, in this process.
    pub library: Library,
    /// Where the other processes are.
    pub stage: Stage,
    /// Whether it may take long.
    pub long: bool,
}

impl Run {
    /// Starts one, or gives `None` if this is not a benchmark run: `cargo test --benches` starts the same program.
    ///
    /// # Panics
    ///
    /// If the library or the actor cannot be built or do not work here.
    pub fn start(name: &str) -> Option<Self> {
        if !env::args().any(|argument| argument == "--bench") {
            println!("{name}: nothing is measured without --bench");
            return None;
        }
        let long = env::var_os("RMAP_BENCH_LONG").is_some_and(|value| value != "0");
        let library = Self::library();
        let path = rmap_tests::library();
        println!("\n==== {name} ====\n{}", machine(&path));
        if let Err(why) = library.version() {
            panic!("the library does not work here: {why}. RMAP_LOG=error says why");
        }
        let seconds = if long { 1800 } else { 300 };
        Some(Self { library, stage: Stage::new(name, seconds), long })
    }

    /// The library, brought up to date and loaded, but not used yet.
    pub fn library() -> Library {
        build();
        Library::load(&rmap_tests::library())
    }

    /// One of two numbers: for a short run, and for a long one.
    pub fn scaled(&self, short: usize, long: usize) -> usize {
        if self.long { long } else { short }
    }
}

/// Brings the release build of the C library and the actor up to date, where this was started by cargo.
fn build() {
    let Some(cargo) = env::var_os("CARGO") else { return };
    if env::var_os("RMAP_TEST_LIB").is_some() && env::var_os("RMAP_TEST_ACTOR").is_some() {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["build", "--release", "--quiet"]);
    command.args(["-p", "xpmem-compat", "-p", "rmap-tests"]);
    if let Some(target) = target() {
        command.arg("--target-dir").arg(target);
    }
    let built = command.status().is_ok_and(|status| status.success());
    if !built {
        println!("cargo build failed: what was built before is measured");
    }
}

/// The target folder that this program lies in: `target/release/deps`.
fn target() -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    let folder = program.ancestors().find(|folder| folder.ends_with("deps"))?;
    Some(folder.parent()?.parent()?.to_path_buf())
}

fn look(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

/// What the figures were measured on.
fn machine(library: &Path) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpus = look("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let user = if rmap_tests::is_root() { "root" } else { "an ordinary user" };
    let tail: Vec<_> = library.iter().rev().take(2).collect();
    let library: PathBuf = tail.into_iter().rev().collect();
    format!(
        "library {}\n{} with {cores} cores, Linux {}, as {user}; load {}\nhuge pages: {}; of shared memory: {}",
        library.display(),
        model.map_or("unknown processor", |(_, model)| model.trim()),
        look("/proc/sys/kernel/osrelease"),
        look("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        look("/sys/kernel/mm/transparent_hugepage/enabled"),
        look("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
    )
}
