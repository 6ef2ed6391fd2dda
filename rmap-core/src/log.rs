//! One line per event on standard error, by `RMAP_LOG`. Off by default.
//!
//! Lines are formatted on the stack and written with one system call, so any thread may log at any time.

use core::fmt::Write;
use core::sync::atomic::{AtomicU8, Ordering};

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Error = 1,
    Warn,
    Info,
    Debug,
    Trace,
}

static LIMIT: AtomicU8 = AtomicU8::new(0);

/// Reads `RMAP_LOG`.
pub(crate) fn set_from_environment() {
    let limit = match std::env::var("RMAP_LOG").unwrap_or_default().to_ascii_lowercase().as_str() {
        "error" => 1,
        "warn" => 2,
        "info" => 3,
        "debug" => 4,
        "trace" => 5,
        _ => 0,
    };
    LIMIT.store(limit, Ordering::Relaxed);
}

/// Whether lines of this level are written.
pub(crate) fn enabled(level: Level) -> bool {
    level as u8 <= LIMIT.load(Ordering::Relaxed)
}

struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        // One byte is kept for the line's end.
        let room = self.bytes.len() - 1 - self.len;
        let text = &text.as_bytes()[..text.len().min(room)];
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text);
        self.len += text.len();
        Ok(())
    }
}

/// Writes a line. Use the [`log!`] macro.
pub(crate) fn write(level: Level, args: core::fmt::Arguments<'_>) {
    let name = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let mut line = Line { bytes: [0; 512], len: 0 };
    let pid = rustix::process::getpid().as_raw_nonzero();
    let _ = write!(line, "rmap {pid} {name}: ");
    let _ = line.write_fmt(args);
    line.bytes[line.len] = b'\n';
    let _ = rustix::io::write(rustix::stdio::stderr(), &line.bytes[..=line.len]);
}

/// Writes a line of the given level.
macro_rules! log {
    ($level:ident, $($args:tt)+) => {
        if $crate::log::enabled($crate::log::Level::$level) {
            $crate::log::write($crate::log::Level::$level, format_args!($($args)+));
        }
    };
}
pub(crate) use log;
