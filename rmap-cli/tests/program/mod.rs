//! The program, and what it says.

use serde_json::Value;
use std::process::{Command, Output};

/// `rmap` with these arguments, whatever the environment of the tests is.
pub(crate) fn rmap(arguments: &[&str]) -> Command {
    let program = std::env::var_os("RMAP_TEST_CLI").unwrap_or_else(|| env!("CARGO_BIN_EXE_rmap").into());
    let mut command = Command::new(program);
    command.args(arguments).env_remove("RMAP_DISABLE").env_remove("RMAP_ENGINE");
    command
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}
