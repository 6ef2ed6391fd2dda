//! What the environment sets, read once when the library first needs it.

use crate::engine::{Kind, directory};
use crate::features::Feature;
use crate::log::log;
use core::time::Duration;

/// Settings of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// `RMAP_DISABLE=1`: serve nothing.
    pub(crate) disabled: bool,
    /// `RMAP_ENGINE`: what serves this process's own segments; `None`: the best that is there.
    pub(crate) engine: Option<Kind>,
    /// `RMAP_PEER_TIMEOUT`: longest wait for a living exporter.
    pub(crate) peer_timeout: Option<Duration>,
    /// `RMAP_PINNED=move`: adopt memory although some is pinned for DMA.
    pub(crate) move_pinned: bool,
    /// `RMAP_FORK`: what a forked child has of large buffers that are adopted.
    pub(crate) fork: Inheritance,
    /// `RMAP_WINDOW_LIMIT`: how many windows are kept that nobody is attached to.
    pub(crate) window_limit: usize,
}

/// What a forked child has of large buffers that importers have reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inheritance {
    /// A copy.
    Copy,
    /// What the parent has, as it is now; what the child stores is its own.
    Share,
    /// Nothing.
    Drop,
}

/// A process may have 65530 mappings unless told otherwise, and a window may take several.
const WINDOW_LIMIT: usize = 1024;

impl Config {
    pub(crate) fn from_environment() -> Self {
        directory::set_from_environment();
        let text = |name| std::env::var(name).unwrap_or_default();
        let seconds = text("RMAP_PEER_TIMEOUT").parse().ok().filter(|s: &f64| s.is_finite() && *s > 0.0);
        Self {
            disabled: disable(&text("RMAP_DISABLE")),
            engine: engine(&text("RMAP_ENGINE")),
            peer_timeout: seconds.map(|s| Duration::from_secs_f64(s.min(1e9))),
            move_pinned: text("RMAP_PINNED") == "move",
            fork: inheritance(&text("RMAP_FORK")),
            window_limit: text("RMAP_WINDOW_LIMIT").parse().unwrap_or(WINDOW_LIMIT),
        }
    }
}

/// Whether `RMAP_DISABLE` switches the library off. If it names features instead, those are forced off.
fn disable(text: &str) -> bool {
    match text {
        "" | "0" | "n" | "no" | "false" => return false,
        "1" | "y" | "yes" | "true" | "all" => return true,
        _ => {}
    }
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match Feature::named(name) {
            Some(feature) => {
                feature.force_off();
                log!(Info, "RMAP_DISABLE: going without {name}");
            }
            None => log!(Warn, "RMAP_DISABLE: {name} is neither 1 nor the name of a feature, and is ignored"),
        }
    }
    false
}

fn inheritance(text: &str) -> Inheritance {
    match text {
        "" | "copy" => Inheritance::Copy,
        "share" => Inheritance::Share,
        "drop" => Inheritance::Drop,
        other => {
            log!(Error, "RMAP_FORK={other} is not copy, share or drop: children get copies");
            Inheritance::Copy
        }
    }
}

fn engine(text: &str) -> Option<Kind> {
    match text {
        "" | "auto" => None,
        "clone" => Some(Kind::Clone),
        "mirror" => Some(Kind::Mirror),
        "driver" => Some(Kind::Driver),
        other => {
            log!(Error, "RMAP_ENGINE={other} is not auto, clone, mirror or driver, and is not looked at");
            None
        }
    }
}
