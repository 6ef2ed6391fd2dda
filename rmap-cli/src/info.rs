//! `rmap info`: what the library finds here, without any other process.

use crate::Failure;
use crate::text::Table;
use clap::Args;
use rmap_core::features::{self, Availability, Feature};
use rmap_core::process::{self, EngineState};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use std::fs;
use std::process::ExitCode;

/// What `rmap info` can be told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Machine-readable.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Engine {
    name: &'static str,
    how: &'static str,
    chosen: bool,
    usable: bool,
    why_not: Option<String>,
}

impl From<&EngineState> for Engine {
    fn from(state: &EngineState) -> Self {
        Self {
            name: state.name,
            how: state.how,
            chosen: state.chosen,
            usable: state.usable.is_ok(),
            why_not: state.usable.err().map(|error| error.to_string()),
        }
    }
}

#[derive(Serialize)]
struct Found {
    name: &'static str,
    purpose: &'static str,
    since: &'static str,
    required: bool,
    available: bool,
    /// What the kernel said.
    why_not: Option<String>,
    without: &'static str,
    remedy: &'static str,
}

impl From<&Feature> for Found {
    fn from(feature: &Feature) -> Self {
        let why_not = match feature.availability() {
            Availability::Yes => None,
            Availability::No(errno) => Some(errno.to_string()),
            Availability::Disabled => Some("switched off by RMAP_DISABLE".into()),
        };
        let Feature { name, purpose, since, required, without, remedy, .. } = *feature;
        Self { name, purpose, since, required, available: why_not.is_none(), why_not, without, remedy }
    }
}

/// A limit of the system's.
#[derive(Serialize)]
struct Limit {
    name: &'static str,
    /// `None`: there is none.
    value: Option<u64>,
    enough: bool,
    /// What it must be, and what for.
    need: &'static str,
}

/// A setting of the system's that something depends on.
#[derive(Serialize)]
struct Setting {
    name: &'static str,
    value: Option<String>,
    meaning: &'static str,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    /// Whether processes like this one are served.
    served: bool,
    why_not: Option<String>,
    engine: Option<&'static str>,
    kernel: String,
    uid: u32,
    engines: Vec<Engine>,
    features: Vec<Found>,
    limits: Vec<Limit>,
    settings: Vec<Setting>,
}

fn limits() -> Vec<Limit> {
    let soft = |resource| getrlimit(resource).current;
    let maps = fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    let maps = maps.and_then(|text| text.trim().parse().ok());
    let limit = |name, value: Option<u64>, least: u64, need| {
        let enough = value.is_none_or(|value| value >= least);
        Limit { name, value, enough, need }
    };
    vec![
        limit(
            "ulimit -f",
            soft(Resource::Fsize),
            u64::MAX,
            "unlimited: objects are sparse files as large as the address space",
        ),
        limit(
            "ulimit -v",
            soft(Resource::As),
            u64::MAX,
            "unlimited, or windows onto others are 2 MiB instead of 1 GiB",
        ),
        limit(
            "ulimit -n",
            soft(Resource::Nofile),
            256,
            "20 for each process, 1 for each importer, 2 for each exporter, and more for segments",
        ),
        limit(
            "vm.max_map_count",
            maps,
            65530,
            "a mapping for each GiB of an exporter, and for each adopted stretch",
        ),
    ]
}

fn settings() -> Vec<Setting> {
    let look = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let setting = |name, path, meaning| Setting { name, value: look(path), meaning };
    vec![
        setting(
            "kernel.yama.ptrace_scope",
            "/proc/sys/kernel/yama/ptrace_scope",
            "0 or 1; with 2 only processes with CAP_SYS_PTRACE can export, with 3 none",
        ),
        setting(
            "vm.unprivileged_userfaultfd",
            "/proc/sys/vm/unprivileged_userfaultfd",
            "either: faults of the kernel are not needed",
        ),
        setting("vm.memfd_noexec", "/proc/sys/vm/memfd_noexec", "0 or 1; with 2 objects cannot be made"),
        setting(
            "transparent_hugepage/enabled",
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "huge pages of private memory; adopted memory gets them back with the feature collapse",
        ),
        setting(
            "transparent_hugepage/shmem_enabled",
            "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
            "any: the feature collapse does not need it",
        ),
    ]
}

fn report() -> Report {
    let served = process::version();
    let engines: Vec<Engine> = process::engines().iter().map(Engine::from).collect();
    let system = rustix::system::uname();
    Report {
        version: env!("CARGO_PKG_VERSION"),
        served: served.is_ok(),
        why_not: served.err().map(|error| error.to_string()),
        engine: engines.iter().find(|engine| engine.chosen).map(|engine| engine.name),
        kernel: format!("{} {}", system.sysname().to_string_lossy(), system.release().to_string_lossy()),
        uid: rustix::process::geteuid().as_raw(),
        engines,
        features: features::all().iter().map(Found::from).collect(),
        limits: limits(),
        settings: settings(),
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let report = report();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(if report.served { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report) {
    println!("rmap {}, {}, user {}", report.version, report.kernel, report.uid);
    match (&report.engine, &report.why_not) {
        (Some(engine), None) => println!("processes are served, by the engine {engine}"),
        (_, why) => println!("processes are NOT served: {}", why.as_deref().unwrap_or("no engine works")),
    }
    let mut table = Table::new(&[], &[]);
    for engine in &report.engines {
        let state = match (engine.chosen, engine.usable) {
            (true, _) => "chosen",
            (_, true) => "works",
            _ => "no",
        };
        let why = engine.why_not.as_deref().unwrap_or(engine.how);
        table.add(vec![engine.name.into(), state.into(), why.into()]);
    }
    println!("\nengines, the first that works is taken (RMAP_ENGINE)\n{}", table.lines(2).trim_end());
    let mut table = Table::new(&[], &[]);
    for feature in &report.features {
        let state = match (feature.available, feature.required) {
            (true, _) => "yes",
            (_, true) => "MISSING",
            _ => "no",
        };
        table.add(vec![feature.name.into(), state.into(), feature.purpose.into()]);
    }
    println!("\nfeatures of the kernel (RMAP_DISABLE)\n{}", table.lines(2).trim_end());
    for feature in report.features.iter().filter(|feature| !feature.available) {
        let why = feature.why_not.as_deref().unwrap_or_default();
        println!("\n  without {} ({why}): {}", feature.name, feature.without);
        println!("  to get it: {} (Linux {})", feature.remedy, feature.since);
    }
    let mut table = Table::new(&[], &[1]);
    for limit in &report.limits {
        let value = limit.value.map_or("unlimited".into(), |value| value.to_string());
        let state = if limit.enough { "good" } else { "LOW" };
        table.add(vec![limit.name.into(), value, state.into(), limit.need.into()]);
    }
    println!("\nlimits\n{}", table.lines(2).trim_end());
    let mut table = Table::new(&[], &[]);
    for setting in &report.settings {
        let value = setting.value.as_deref().unwrap_or("not there");
        table.add(vec![setting.name.into(), value.into(), setting.meaning.into()]);
    }
    println!("\nsettings\n{}", table.lines(2).trim_end());
}
