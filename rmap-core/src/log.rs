//! One line per event on standard error, by `RMAP_LOG`. Off by default.
//!
//! Lines are formatted on the stack and written with one system call that does not wait, so any thread may log at any time. A line for which there is
//! no room in a pipe is lost, and the next one says so.
//!
//! | level | says |
//! |---|---|
//! | `error` | that something cannot be done that must be, or that a process cannot be served |
//! | `warn` | what somebody should look after: peers that do not answer or break the protocol, memory that cannot be shown, threads that get a signal because an exporter is gone |
//! | `info` | what begins and ends: the engine, segments, exporters that are gone; what the library goes without |
//! | `debug` | why a call fails and why an address is a hole, one line for each; what is adopted, and for how long threads stand still |
//! | `trace` | each range that is followed |

use crate::sys::{Errno, SysResult, stderr};
use core::fmt::Write;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

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
/// How many lines were lost since the last that was not.
static LOST: AtomicU32 = AtomicU32::new(0);

/// Reads `RMAP_LOG`. Where there is no standard error now, or is another one later, what has its number is not for lines.
pub(crate) fn set_from_environment() {
    let limit = match std::env::var("RMAP_LOG").unwrap_or_default().to_ascii_lowercase().as_str() {
        "error" => 1,
        "warn" => 2,
        "info" => 3,
        "debug" => 4,
        "trace" => 5,
        _ => 0,
    };
    LIMIT.store(if stderr::remember() { limit } else { 0 }, Ordering::Relaxed);
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

fn try_to_write(level: Level, args: core::fmt::Arguments<'_>) -> SysResult<()> {
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
    stderr::write_at_once(&line.bytes[..=line.len])
}

/// Writes a line. Use the [`log!`] macro.
pub(crate) fn write(level: Level, args: core::fmt::Arguments<'_>) {
    let lost = LOST.swap(0, Ordering::Relaxed);
    if lost > 0
        && try_to_write(
            Level::Warn,
            format_args!("{lost} lines were lost: standard error is read too slowly"),
        ) == Err(Errno::AGAIN)
    {
        LOST.fetch_add(lost, Ordering::Relaxed);
    }
    if try_to_write(level, args) == Err(Errno::AGAIN) {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
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
