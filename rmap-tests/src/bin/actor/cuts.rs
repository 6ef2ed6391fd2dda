//! Forks under threads that count: what the child has must be what was there at one moment.

use crate::{
    system,
    threads::{Control, Report, Work},
    work::{Child, Pipe},
};
use std::ptr;

/// Counters that threads increment one after the other, over and over: word `slot` of every so many bytes.
#[derive(Clone, Copy)]
struct Counters {
    address: usize,
    count: usize,
    stride: usize,
    slots: usize,
}

impl Counters {
    fn load(&self, index: usize, slot: usize) -> u64 {
        let word = ptr::with_exposed_provenance::<u64>(self.address + index * self.stride + slot * 8);
        // SAFETY: the test gives memory for this.
        unsafe { word.read_volatile() }
    }

    fn all(&self) -> Vec<Vec<u64>> {
        (0..self.slots).map(|slot| (0..self.count).map(|index| self.load(index, slot)).collect()).collect()
    }
}

/// Whether a thread that increments the counters in order has them like this at some moment.
fn is_cut(counters: &[u64]) -> bool {
    let ends = counters.first().zip(counters.last());
    counters.is_sorted_by(|before, after| before >= after)
        && ends.is_none_or(|(first, last)| first - last <= 1)
}

/// `cuts ADDRESS COUNT STRIDE SLOTS`: children must find the counters of each slot as they were at one moment, and find them so
/// until they end.
pub(crate) fn work(address: usize, count: usize, stride: usize, slots: usize) -> Work {
    let counters = Counters { address, count, stride, slots };
    Box::new(move |control| forks(counters, control))
}

fn forks(counters: Counters, control: &Control) -> Report {
    let (mut steps, mut torn, mut changed, mut other) = (0_u64, 0_u64, 0_u64, 0_u64);
    while control.on() {
        let pipe = Pipe::new();
        let child = Child::fork(|| {
            let before = counters.all();
            if !before.iter().all(|slot| is_cut(slot)) {
                return 1;
            }
            let mut byte = 0_u8;
            let place = (&raw mut byte).addr();
            let _ = system::call(libc::SYS_read, [pipe.reader, place, 1, 0, 0, 0]);
            if counters.all() == before { 0 } else { 2 }
        });
        let now = counters.load(0, 0);
        // Until the counters are others than the child has.
        while control.on() && counters.load(0, 0) < now + 2 {
            std::thread::yield_now();
        }
        let byte = 1_u8;
        let _ = system::call(libc::SYS_write, [pipe.writer, (&raw const byte).addr(), 1, 0, 0, 0]);
        match child.and_then(Child::wait) {
            Ok(0) => {}
            Ok(1) => torn += 1,
            Ok(2) => changed += 1,
            ended => {
                other += 1;
                eprintln!("a child that looks at counters: {ended:?}");
            }
        }
        steps += 1;
        control.step();
    }
    format!("steps={steps} torn={torn} changed={changed} other={other}")
}
