//! A batch system suspends and resumes a job whose processes all share memory with each other: nobody fails, and no byte is wrong.

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use rmap_tests::pattern::Seen;
use rmap_tests::{Actor, PAGE, Random, Setup, Stage, expect_clean, rounds, seed};
use std::time::Duration;

const RANKS: usize = 4;
const PAGES: usize = 64;
const ARENA: usize = 0x2000_0000_0000;

/// Longer than an importer that is stopped is waited for.
const LONG: Duration = Duration::from_millis(1300);

/// A process of the job, which shows a heap and a file to all others.
struct Rank {
    actor: Actor,
    /// Segments: of the heap alone, and of everything.
    heap: i64,
    segid: i64,
    file: i32,
    shared: usize,
    threads: Vec<usize>,
    progress: Vec<usize>,
}

impl Rank {
    fn new(stage: &Stage) -> Self {
        let mut actor = stage.actor_with(&Setup::default().leading());
        actor.label(ARENA, PAGES);
        let (heap, segid) = (actor.make(ARENA, PAGES * PAGE), actor.make_all());
        let file = actor.memfd(4 * PAGE);
        let shared = actor.place(4 * PAGE);
        Self { actor, heap, segid, file, shared, threads: Vec::new(), progress: Vec::new() }
    }

    fn map_file(&mut self, stamp: u64) {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        self.actor.mmap(self.shared, 4 * PAGE, prot, flags, self.file, 0);
        self.actor.fill(self.shared, 4, stamp);
    }

    /// All threads have gone on.
    fn has_gone_on(&mut self) -> bool {
        let now: Vec<usize> =
            self.threads.iter().map(|thread| self.actor.number(&format!("progress {thread}"))).collect();
        now.iter().zip(&self.progress).all(|(now, before)| *now > before + 20)
    }

    fn note_progress(&mut self) {
        let threads = self.threads.clone();
        self.progress =
            threads.iter().map(|thread| self.actor.number(&format!("progress {thread}"))).collect();
    }
}

fn signal(ranks: &[Rank], order: Vec<usize>, signal: Signal) {
    for rank in order {
        // The helpers of the library are in the group, too.
        killpg(Pid::from_raw(ranks[rank].actor.pid()), signal).expect("killpg");
    }
}

#[test]
fn a_job_is_suspended_and_resumed() {
    let stage = Stage::new("a_job_is_suspended_and_resumed", 240);
    let mut random = Random::new(seed());
    let mut ranks: Vec<Rank> = (0..RANKS).map(|_| Rank::new(&stage)).collect();
    let heaps: Vec<i64> = ranks.iter().map(|rank| rank.heap).collect();
    let segids: Vec<i64> = ranks.iter().map(|rank| rank.segid).collect();
    for (own, rank) in ranks.iter_mut().enumerate() {
        for thread in 0..2 {
            let others = (1..RANKS).map(|number| heaps[(own + number) % RANKS]);
            let targets: String = others.map(|heap| format!(" {heap} {ARENA} {PAGES}")).collect();
            let work = format!("api {}{targets}", seed() + 10 * own as u64 + thread);
            rank.threads.push(rank.actor.start(&work));
        }
    }
    let permits: Vec<Vec<i64>> =
        ranks.iter_mut().map(|rank| segids.iter().map(|segid| rank.actor.get(*segid)).collect()).collect();
    for round in 0..rounds(8) {
        // Everybody has seen the file of one.
        let owner = random.below(RANKS);
        let stamp = 100 * (round as u64 + 1);
        ranks[owner].map_file(stamp);
        let shared = ranks[owner].shared;
        let mut shown = Vec::new();
        for number in (0..RANKS).filter(|number| *number != owner) {
            let here = ranks[number].actor.attach(permits[number][owner], shared, 4 * PAGE);
            ranks[number].actor.check(here, 4, stamp);
            shown.push((number, here));
        }
        for rank in &mut ranks {
            rank.note_progress();
        }
        // It goes while the job stops, one after the other: as fast as that is, or so slowly that those who are stopped are given up.
        ranks[owner].actor.tell(&format!("sys {} {shared:#x} {:#x}", libc::SYS_munmap, 4 * PAGE));
        let slowly = round % 4 == 1;
        for rank in random.order(RANKS) {
            signal(&ranks, vec![rank], Signal::SIGSTOP);
            if slowly {
                // What is tested is that time passes.
                std::thread::sleep(LONG / 2);
            }
        }
        if slowly {
            std::thread::sleep(LONG);
        }
        signal(&ranks, random.order(RANKS), Signal::SIGCONT);
        assert_eq!(ranks[owner].actor.answer(), rmap_tests::Reply::Ok("0".into()));
        for (number, here) in shown {
            let actor = &mut ranks[number].actor;
            let mut seen = actor.look(here, 4);
            // Who was given up sees the file until it has read that it is gone.
            while slowly && seen != [Seen::Hole; 4] {
                assert!(seen.iter().enumerate().all(|(page, seen)| {
                    *seen == Seen::Hole || *seen == Seen::Stamp(stamp + page as u64)
                }));
                seen = actor.look(here, 4);
            }
            assert_eq!(seen, [Seen::Hole; 4], "round {round}");
            actor.detach(here);
        }
        for rank in &mut ranks {
            while !rank.has_gone_on() {
                std::thread::yield_now();
            }
        }
    }
    for rank in &mut ranks {
        for thread in std::mem::take(&mut rank.threads) {
            let report = rank.actor.stop(thread);
            expect_clean(&report);
            assert!(report["holes"] == 0 && report["loads"] > 0, "{report:?}");
        }
    }
    for rank in &mut ranks {
        for page in 0..PAGES {
            let address = ARENA + page * PAGE;
            assert_eq!(rank.actor.load(address), Ok(address as u64));
        }
    }
    for rank in ranks {
        rank.actor.exit();
    }
}
