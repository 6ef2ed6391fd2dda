//! `rmap completions`: what a shell needs to complete the words of `rmap`.

use crate::Failure;
use clap::{Args, Command};
use clap_complete::Shell;
use std::io::Write as _;
use std::process::ExitCode;

/// What `rmap completions` can be told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The shell.
    shell: Shell,
}

pub(crate) fn run(options: &Options, mut command: Command) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut command, "rmap", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
