//! A thread that maps, unmaps, protects, fills and forgets pages of a range of its own, and checks that they are what it made
//! them.

use crate::{
    memory, system,
    threads::{Report, Work},
};
use rmap_tests::{PAGE, Random, pattern::Seen};
use std::{collections::VecDeque, ops::Range};

const RW: usize = (libc::PROT_READ | libc::PROT_WRITE) as usize;
const FRESH: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as usize;

/// How many steps a complaint tells of.
const REMEMBERED: usize = 40;

#[derive(Clone, Copy, Debug)]
enum Act {
    Unmap,
    Forget,
    Map,
    Protect,
    Fill,
}

struct Churn {
    address: usize,
    /// The stamp of each page that is there.
    model: Vec<Option<u64>>,
    random: Random,
    recent: VecDeque<(u64, Act, Range<usize>)>,
    steps: u64,
    wrong: u64,
    errno: i32,
}

/// `churn ADDRESS PAGES SEED`.
pub(crate) fn work(address: usize, pages: usize, seed: u64) -> Work {
    Box::new(move |control| {
        let _ = system::call(libc::SYS_munmap, [address, pages * PAGE, 0, 0, 0, 0]);
        let mut churn = Churn {
            address,
            model: vec![None; pages],
            random: Random::new(seed),
            recent: VecDeque::new(),
            steps: 0,
            wrong: 0,
            errno: 0,
        };
        while control.on() {
            churn.step();
            control.step();
        }
        churn.report()
    })
}

impl Churn {
    fn step(&mut self) {
        self.steps += 1;
        let pages = self.model.len();
        let first = self.random.below(pages);
        let range = first..first + 1 + self.random.below((pages - first).min(16));
        let whole = self.model[range.clone()].iter().all(Option::is_some);
        let act = match self.random.below(7) {
            0 => Act::Unmap,
            1 if whole => Act::Forget,
            2 => Act::Map,
            3 if whole => Act::Protect,
            _ => Act::Fill,
        };
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back((self.steps, act, range.clone()));
        let (at, len) = (self.address + range.start * PAGE, range.len() * PAGE);
        let outcome = match act {
            Act::Unmap => system::call(libc::SYS_munmap, [at, len, 0, 0, 0, 0]),
            Act::Forget => system::call(libc::SYS_madvise, [at, len, libc::MADV_DONTNEED as usize, 0, 0, 0]),
            Act::Map => system::call(libc::SYS_mmap, [at, len, RW, FRESH, usize::MAX, 0]),
            // And back: what is in the pages stays.
            Act::Protect => [libc::PROT_READ as usize, RW]
                .into_iter()
                .try_for_each(|prot| system::call(libc::SYS_mprotect, [at, len, prot, 0, 0, 0]).map(drop))
                .map(|()| 0),
            Act::Fill => Ok(0),
        };
        if let Err(errno) = outcome {
            self.errno = errno;
        }
        match act {
            Act::Unmap => self.model[range].fill(None),
            Act::Forget | Act::Map => self.model[range].fill(Some(0)),
            Act::Protect => {}
            Act::Fill => self.fill(range),
        }
        let page = self.random.below(pages);
        if let Some(stamp) = self.model[page] {
            self.expect(page, Seen::Stamp(stamp));
        }
    }

    fn fill(&mut self, range: Range<usize>) {
        for page in range.filter(|page| self.model[*page].is_some()).collect::<Vec<_>>() {
            let stamp = self.random.number() | 1;
            self.model[page] = Some(stamp);
            if memory::stamp_page(self.address + page * PAGE, stamp).is_err() {
                self.complain(page, "cannot be written");
            }
        }
    }

    fn expect(&mut self, page: usize, expected: Seen) {
        let seen = memory::see(self.address + page * PAGE);
        if seen != expected {
            self.complain(page, &format!("shows {seen:?} instead of {expected:?}"));
        }
    }

    fn complain(&mut self, page: usize, what: &str) {
        self.wrong += 1;
        let again = memory::see(self.address + page * PAGE);
        let history: Vec<String> = self
            .recent
            .iter()
            .filter(|(_, _, range)| range.contains(&page))
            .map(|(step, act, range)| format!("{act:?} {range:?} at step {step}"))
            .collect();
        eprintln!(
            "the exporter's own page {page} at {:#x} {what}, step {}, now {again:?}; before: {}",
            self.address + page * PAGE,
            self.steps,
            history.join(", ")
        );
    }

    fn report(&self) -> Report {
        format!("steps={} wrong={} errno={}", self.steps, self.wrong, self.errno)
    }
}
