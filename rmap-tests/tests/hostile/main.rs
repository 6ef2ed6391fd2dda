//! Peers that speak the library's protocol, or something like it, with bad intentions. The test plays them.

mod exporters;
mod importers;
mod passed_on;
/// The library's own.
#[path = "../../../rmap-core/src/engine/protocol.rs"]
mod protocol;

mod range {
    pub(crate) use rmap_core::Range;
}

mod sys {
    pub(crate) mod memory {
        pub(crate) use rmap_tests::PAGE;
    }
}

use protocol::Message;
use rmap_tests::{Actor, Parcel, Wire};
use std::time::Duration;

const ARENA: usize = 0x2000_0000_0000;
/// No answer takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The next message but for the status word, or `None` if the other side has hung up.
#[track_caller]
fn hear(wire: &Wire) -> Option<(Message, Parcel)> {
    loop {
        let parcel = wire.receive(PATIENCE).expect("an answer")?;
        let message = Message::decode(&parcel.bytes).expect("a message");
        match message {
            // It may come at any time.
            Message::Adopted { .. } => {}
            Message::Status => assert_eq!(parcel.descriptors.len(), 1, "a status word is in a file"),
            message => return Some((message, parcel)),
        }
    }
}

/// Sends a message.
#[track_caller]
fn say(wire: &Wire, message: Message) {
    wire.send(&message.encode(), &[]).expect("the other side listens");
}

fn descriptors(actor: &Actor) -> usize {
    rmap_tests::library_descriptors(actor.pid()).len()
}

/// Memory of a process's own, in bytes: what is shared is not in it.
fn anonymous(actor: &Actor) -> usize {
    status(actor, "RssAnon:")
}

/// Shared memory that a process has touched, in bytes.
fn shared(actor: &Actor) -> usize {
    status(actor, "RssShmem:")
}

fn status(actor: &Actor, field: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", actor.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let kib: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib << 10
}
