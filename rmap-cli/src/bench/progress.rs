//! A bar that shows how far it is, on a terminal. Elsewhere nothing is shown: logs of jobs are files.

use std::io::{IsTerminal as _, Write as _};

/// Characters of the whole bar.
const WIDTH: usize = 30;

/// How far it is.
#[derive(Debug)]
pub(super) struct Progress {
    steps: usize,
    done: usize,
    shown: bool,
}

impl Progress {
    /// For so many steps.
    pub(super) fn new(steps: usize) -> Self {
        Self { steps, done: 0, shown: std::io::stderr().is_terminal() }
    }

    /// One more begins.
    pub(super) fn step(&mut self, what: &str) {
        self.done = (self.done + 1).min(self.steps);
        if self.shown {
            let len = self.done * WIDTH / self.steps.max(1);
            let _ = write!(std::io::stderr(), "\r[{:<WIDTH$}] {what:<20}", "=".repeat(len));
        }
    }

    /// All are done: the line is free again.
    pub(super) fn end(&self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r{:<1$}\r", "", WIDTH + 24);
        }
    }
}
