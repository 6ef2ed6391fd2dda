//! What this process counts: a table of numbers that the service thread keeps, for programs, and for others of the same user to read.
//!
//! The numbers are in a file in memory of their own, which outlives the process for as long as somebody has its descriptor.

pub(crate) mod alone;
pub(crate) mod rows;
pub(crate) mod sheet;
mod view;

use crate::error::Error;

pub use view::{Peer, Segment, Sheet};

/// What the number of a counter means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Total,
    /// How it is now.
    Now,
    /// The largest so far.
    Largest,
}

/// A counter by its name.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    /// The name of its field in [`Counters`] and in `struct rmap_counters`.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// What the number means.
    pub kind: Kind,
}

/// Numbers of stalls by length: index `n` has those of 2^n microseconds up to twice that, the first also shorter ones, and the last longer ones.
pub const STALL_LENGTHS: usize = 32;

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $kind:ident $name:ident $cell:ident,)+) => {
        /// What a process has counted so far. All are 0 in a process that has not used the library.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        #[repr(C)]
        pub struct Counters {
            /// How many stalls were how long: see [`STALL_LENGTHS`].
            pub stalls_by_length: [u64; STALL_LENGTHS],
            $($(#[doc = $help])+ pub $name: u64,)+
        }

        /// A counter, as the places that count name it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Cell {
            $($cell,)+
        }

        /// All counters, in order, but for the lengths of stalls.
        pub const TABLE: &[Counter] = &[
            $(Counter { name: stringify!($name), help: concat!($($help),+), kind: Kind::$kind },)+
        ];

        impl Counters {
            /// The numbers in the order of [`TABLE`].
            #[must_use]
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$name,)+]
            }

            /// All numbers as `struct rmap_counters` has them behind its size.
            #[must_use]
            pub fn words(&self) -> Vec<u64> {
                let mut words = self.stalls_by_length.to_vec();
                words.extend(self.values());
                words
            }

            fn from_cells(cells: impl Fn(usize) -> u64) -> Self {
                let stalls_by_length = core::array::from_fn(|length| cells(LENGTHS + length));
                Self { stalls_by_length, $($name: cells(Cell::$cell as usize),)+ }
            }
        }
    };
}

/// The place of the first of the lengths of stalls. Room is left in front of it, so that it stays where it is when counters are added.
const LENGTHS: usize = 128;

counters! {
    /// Segments that this process has made.
    Total segments_made SegmentsMade,
    /// Segments that it has removed.
    Total segments_removed SegmentsRemoved,
    /// Permits that others have got from it.
    Total permits_given PermitsGiven,
    /// Permits that it has refused by the segment's mode.
    Total permits_denied PermitsDenied,
    /// Permits that it has refused because there is no such segment.
    Total permits_unknown PermitsUnknown,
    /// Permits that it has refused for want of something.
    Total permits_failed PermitsFailed,
    /// Permits that this process has got from others.
    Total permits_got PermitsGot,
    /// Permits that others have refused it.
    Total permits_refused PermitsRefused,
    /// Permits that it has given back.
    Total permits_released PermitsReleased,
    /// Attachments found mapped: no system call, no message.
    Total attach_hits AttachHits,
    /// Attachments that the service thread was asked for.
    Total attach_misses AttachMisses,
    /// Detachments that left the memory mapped, without asking.
    Total detach_hits DetachHits,
    /// Detachments that the service thread was asked for.
    Total detach_misses DetachMisses,
    /// Windows onto exporters that were mapped.
    Total windows_made WindowsMade,
    /// First touches of memory that was not there yet: questions to exporters.
    Total touches_asked TouchesAsked,
    /// Those that were answered with memory of an object.
    Total touches_object TouchesObject,
    /// Those that were answered with a file.
    Total touches_file TouchesFile,
    /// Those that were answered with a System V segment.
    Total touches_system_v TouchesSystemV,
    /// Those where the exporter has nothing.
    Total touches_hole TouchesHole,
    /// Those that were stores to memory that the exporter may only read.
    Total touches_read_only TouchesReadOnly,
    /// Nanoseconds between questions and answers, together.
    Total touches_ns TouchesNs,
    /// The longest time between a question and its answer, in nanoseconds.
    Largest touch_longest_ns TouchLongestNs,
    /// Questions of importers answered with memory of an object.
    Total answers_object AnswersObject,
    /// Questions of importers answered with a file.
    Total answers_file AnswersFile,
    /// Questions of importers answered with a System V segment.
    Total answers_system_v AnswersSystemV,
    /// Questions of importers answered with nothing.
    Total answers_hole AnswersHole,
    /// Questions of importers answered with memory that this process may only read.
    Total answers_read_only AnswersReadOnly,
    /// Chunks of memory that were adopted.
    Total adoptions Adoptions,
    /// Bytes of address space that were adopted.
    Total adopted_bytes AdoptedBytes,
    /// Bytes of program text and constants that were copied for importers.
    Total copied_bytes CopiedBytes,
    /// Bytes that were made private again: for a fork, or because a segment was removed.
    Total evicted_bytes EvictedBytes,
    /// Blocks of 2 MiB that became huge pages.
    Total huge_pages HugePages,
    /// Times that becoming huge pages has failed.
    Total huge_pages_failed HugePagesFailed,
    /// Times that all threads stood still.
    Total stalls Stalls,
    /// Times that they could not be stopped.
    Total stalls_failed StallsFailed,
    /// Threads that were stopped, together.
    Total threads_stopped ThreadsStopped,
    /// Nanoseconds that they stood still, with the time it took to stop them.
    Total stall_ns StallNs,
    /// The longest of those times, in nanoseconds.
    Largest stall_longest_ns StallLongestNs,
    /// Events of the address space that were followed: unmapping, moving and dropping of memory.
    Total events Events,
    /// Ranges that were taken from importers because of them.
    Total punches Punches,
    /// Notices to importers that files or segments have gone.
    Total notices Notices,
    /// Forks that were followed.
    Total forks Forks,
    /// Calls that failed because of an argument.
    Total errors_invalid ErrorsInvalid,
    /// Calls that failed because there is no such segment or permit.
    Total errors_no_such_id ErrorsNoSuchId,
    /// Calls that failed by a segment's mode, or with an id of another process.
    Total errors_denied ErrorsDenied,
    /// Calls that failed because memory, mappings or descriptors had run out.
    Total errors_resources ErrorsResources,
    /// Calls that failed because an exporter did not answer in time.
    Total errors_timed_out ErrorsTimedOut,
    /// Calls that failed otherwise.
    Total errors_other ErrorsOther,
    /// Segments of this process.
    Now segments Segments,
    /// Processes that hold permits of this one.
    Now importers Importers,
    /// Permits that they hold.
    Now permits_given_now PermitsGivenNow,
    /// Processes of which this one holds permits.
    Now exporters Exporters,
    /// Permits that it holds.
    Now permits_held PermitsHeld,
    /// Windows that are mapped.
    Now windows Windows,
    /// Bytes of address space that they take.
    Now window_bytes WindowBytes,
    /// Bytes of address space that objects show to importers.
    Now shown_bytes ShownBytes,
    /// Bytes of memory in objects.
    Now object_bytes ObjectBytes,
    /// Ranges that were made private again.
    Total evictions Evictions,
    /// Windows that were given up: their permit or exporter was gone, the application took them, or there were too many.
    Total windows_removed WindowsRemoved,
}

const _: () = assert!(TABLE.len() <= LENGTHS);

/// Counts where the service thread runs: nowhere before it is started.
pub(crate) fn add(cell: Cell, more: u64) {
    sheet::update(cell as usize, |now| now.wrapping_add(more));
}

/// Counts one.
pub(crate) fn count(cell: Cell) {
    add(cell, 1);
}

/// Notes how it is now.
pub(crate) fn set(cell: Cell, value: u64) {
    sheet::update(cell as usize, |_| value);
}

/// Notes the largest.
pub(crate) fn raise(cell: Cell, value: u64) {
    sheet::update(cell as usize, |now| now.max(value));
}

/// Counts one, in any thread: where no service thread has all in its hands.
pub(crate) fn count_anywhere(cell: Cell) {
    sheet::add_anywhere(cell as usize);
}

/// Counts a call that has failed. In any thread.
pub(crate) fn count_failure(error: &Error) {
    let cell = match error {
        Error::Invalid(_) | Error::RangeTaken(_) => Cell::ErrorsInvalid,
        Error::NoSuchId => Cell::ErrorsNoSuchId,
        Error::Denied => Cell::ErrorsDenied,
        Error::OutOfResources { .. } => Cell::ErrorsResources,
        Error::TimedOut => Cell::ErrorsTimedOut,
        _ => Cell::ErrorsOther,
    };
    count_anywhere(cell);
}

/// Counts a time that all threads stood still.
pub(crate) fn count_stall(length: core::time::Duration, threads: u32) {
    let ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
    count(Cell::Stalls);
    add(Cell::StallNs, ns);
    raise(Cell::StallLongestNs, ns);
    add(Cell::ThreadsStopped, u64::from(threads));
    let index = (ns / 1000).checked_ilog2().unwrap_or(0) as usize;
    sheet::update(LENGTHS + index.min(STALL_LENGTHS - 1), |now| now.wrapping_add(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_its_own_cell() {
        let counters = Counters::from_cells(|cell| cell as u64);
        let expected: Vec<u64> = (0..TABLE.len() as u64).collect();
        assert_eq!(counters.values(), expected);
        assert_eq!(counters.stalls_by_length[3], (LENGTHS + 3) as u64);
        assert_eq!(size_of::<Counters>(), (TABLE.len() + STALL_LENGTHS) * 8);
    }
}
