//! What a peer may send to a process, and that the process bears it.
//!
//! | target | input |
//! |---|---|
//! | [`decode`] | the bytes of a message |
//! | [`exporter`] | what several importers send to an exporter, and what it does to its memory meanwhile |
//! | [`importer`] | what an importer does, and what an exporter that lies answers |
//!
//! The process under test is the one that libFuzzer drives. A child of it is an honest peer, which must be served all the time.
//!
//! `ci/fuzz.sh` runs them. A target that dies without libFuzzer's knowledge leaves its input in the file that `RMAP_FUZZ_LAST`
//! names.

mod child;
mod exporter;
mod importer;
mod input;
mod process;
/// The library's own.
#[path = "../../rmap-core/src/engine/protocol.rs"]
mod protocol;
mod range;
mod system;
#[expect(dead_code, reason = "the tests use more of it")]
/// Loads and stores that report a signal instead of dying of it: the tests' own.
#[path = "../../rmap-tests/src/bin/actor/trap.rs"]
mod trap;

pub use exporter::exporter;
pub use importer::importer;

use protocol::Message;

/// Bytes of a message: whatever they are, they are refused or mean one thing.
pub fn decode(data: &[u8]) {
    if let Some(message) = Message::decode(data) {
        assert_eq!(Message::decode(&message.encode()), Some(message));
    }
}
