//! `rmap`: what the library finds on this machine, who shares memory with whom, and whether a job makes use of it.

mod attach;
mod bench;
mod completions;
mod doctor;
mod info;
mod ls;
mod text;
mod top;

use clap::{CommandFactory as _, Parser, Subcommand};
use std::process::ExitCode;

/// Looks at, checks and measures memory that processes share by rmap's libxpmem.so.0.
#[derive(Debug, Parser)]
#[command(name = "rmap", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What the kernel offers, which engine is chosen and why, and what each missing feature costs.
    Info(info::Options),
    /// The processes that share memory: their segments, importers and exporters.
    Ls(ls::Options),
    /// What they do now, again and again.
    Top(top::Options),
    /// Runs a job and says whether its processes used the library, and how.
    Doctor(doctor::Options),
    /// What this machine does: attaching, first touches and copies, beside memcpy and process_vm_readv.
    Bench(bench::Options),
    /// Shows and edits live memory of a process that does not cooperate.
    Attach(attach::Options),
    /// Prints what a shell needs to complete the words of rmap.
    Completions(completions::Options),
}

/// What went wrong, for a person to read.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    // A reader that goes away, like `head`, is no error.
    // SAFETY: no other thread runs.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let result = match Arguments::parse().command {
        Command::Info(options) => info::run(&options),
        Command::Ls(options) => ls::run(&options),
        Command::Top(options) => top::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Attach(options) => attach::run(&options),
        Command::Completions(options) => completions::run(&options, Arguments::command()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("rmap: {error}");
        ExitCode::FAILURE
    })
}
