//! What the processes do while something befalls one of them: all that programs do with the library, once.

use crate::player::{Failure, Fate, Played, Player, stamps};
use rmap_tests::{
    Action, Actor, Call, Log, MAXADDR, PAGE, Plan, Setup, Stage, Supervisor, Watch, library_descriptors,
    maps, pattern::Seen,
};
use std::sync::Arc;

/// Small memory, on which the address space changes.
const SMALL: usize = 32;
/// As much as two copy at once; without huge pages, which would be copied by one.
const LARGE: usize = 512;
const FILE: usize = 8;
/// How often a call fails for a want that lasts.
const LONG: usize = 20;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Whose calls are supervised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Exporter,
    Importer,
}

/// What befalls a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    Fail(i32),
    /// It fails, and so do the next of its kind.
    Starve(i32),
    Kill,
    Stop,
}

/// A call, and what befalls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) side: Side,
    pub(crate) call: Call,
    pub(crate) nth: usize,
    pub(crate) blow: Blow,
}

/// What the library has in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Traces {
    descriptors: usize,
    mappings: usize,
}

impl Traces {
    /// Whether this is more than what is usual. A mapping may be in two pieces, and an object be idle.
    pub(crate) fn exceeds(self, usual: &Self) -> bool {
        self.descriptors > usual.descriptors + 3 || self.mappings > usual.mappings + 8
    }

    fn of(actor: &Actor) -> Self {
        let mut ours = maps(actor.pid());
        ours.retain(|mapping| mapping.name.contains("rmap"));
        // An object that is shown in pieces, for what befell the advice to one of them, is shown once.
        ours.dedup_by(|next, last| {
            let goes_on = next.name == last.name && next.range.start == last.range.end;
            last.range.end = if goes_on { next.range.end } else { last.range.end };
            goes_on
        });
        Self { descriptors: library_descriptors(actor.pid()).len(), mappings: ours.len() }
    }
}

/// How a play has ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The calls that were watched.
    pub(crate) calls: Vec<Call>,
    /// What was to happen has happened.
    pub(crate) happened: bool,
    /// Of exporter and importer, at the end.
    pub(crate) traces: Option<[Traces; 2]>,
}

struct Play<'a> {
    stage: &'a Stage,
    side: Side,
    fate: Fate,
    exporter: Player,
    importer: Player,
    small: usize,
    large: usize,
}

/// Has exporter and importer play, with a supervisor on one of them.
pub(crate) fn play(side: Side, case: Option<&Case>) -> Outcome {
    let stage = Stage::new("play", 100);
    let log = Log::new();
    let setup = Setup::logging("debug", &log).leading();
    let [mut exporter, mut importer] = [(); 2].map(|()| stage.actor_with(&setup));
    let mut groups = vec![exporter.pid(), importer.pid()];
    // Also one alone.
    let alone = usize::from(side == Side::Importer);
    if case.is_some_and(|case| case.nth % 3 == 2) {
        groups = vec![groups[alone]];
    }
    let blow = case.map(|case| case.blow);
    let plan = case.map(|Case { call, nth, blow, .. }| Plan {
        call: call.clone(),
        nth: *nth,
        times: if matches!(blow, Blow::Starve(_)) { LONG } else { 1 },
        action: match blow {
            Blow::Fail(errno) | Blow::Starve(errno) => Action::Fail(*errno),
            Blow::Kill => Action::Kill,
            Blow::Stop => Action::Stop(groups),
        },
    });
    let supervised = if side == Side::Exporter { &mut exporter } else { &mut importer };
    let supervisor = Arc::new(Supervisor::new(supervised, plan));
    let sibling = case.is_some_and(|case| case.call.caller == rmap_tests::Caller::Sibling);
    let (kill, fail) = (blow == Some(Blow::Kill), matches!(blow, Some(Blow::Fail(_) | Blow::Starve(_))));
    let fate = Fate {
        supervisor: Arc::clone(&supervisor),
        log: log.clone(),
        // A sibling that is killed is a call of the library's that fails.
        fails: fail || (kill && sibling),
        kills: kill && !sibling,
        stops: blow == Some(Blow::Stop),
        looks: if matches!(blow, Some(Blow::Starve(_))) { LONG } else { 1 },
    };
    let (exporter, importer) = (Player::new(exporter, &fate), Player::new(importer, &fate));
    let mut play = Play { stage: &stage, side, fate, exporter, importer, small: 0, large: 0 };
    play.set_up();
    let played = play.act();
    let mut traces = None;
    if played.is_ok() {
        play.explain(case);
        traces = Some([&play.exporter, &play.importer].map(|player| Traces::of(&player.actor)));
    }
    assert_eq!(supervisor.restless(), None, "a process does not stop");
    let outcome = Outcome { calls: supervisor.calls(), happened: supervisor.has_happened(), traces };
    play.aftermath();
    outcome
}

impl Play<'_> {
    /// Memory of the exporter's, before the library is used.
    fn set_up(&mut self) {
        let exporter = &mut self.exporter.actor;
        self.small = exporter.anon(SMALL * PAGE);
        exporter.fill(self.small, SMALL, 1000);
        self.large = exporter.anon(LARGE * PAGE);
        exporter.madvise(self.large, LARGE * PAGE, libc::MADV_NOHUGEPAGE);
        exporter.fill(self.large, LARGE, 2000);
    }

    /// The play itself.
    fn act(&mut self) -> Played<()> {
        let Self { exporter, importer, small, large, .. } = self;
        let (small, large) = (*small, *large);
        let name = exporter.actor.text("rmap-tests");
        let descriptor = exporter.sys(libc::SYS_memfd_create, &[name, 0])?;
        exporter.sys(libc::SYS_ftruncate, &[descriptor, FILE * PAGE])?;
        let file = exporter.actor.place(FILE * PAGE);
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as usize;
        exporter.sys(libc::SYS_mmap, &[file, FILE * PAGE, RW as usize, flags, descriptor, 0])?;
        exporter.fill(file, FILE, 4000)?;

        let segid = exporter.make(0, MAXADDR)?;
        let apid = importer.get(segid)?;
        let here = importer.attach(apid, small, SMALL)?;
        importer.sees_stamps(here, SMALL, 1000)?;
        importer.store(here + 20 * PAGE, 77)?;
        exporter.loads(small + 20 * PAGE, 77)?;
        importer.store(here + 20 * PAGE, rmap_tests::pattern::word(1020, 0))?;
        let there = importer.attach(apid, large, LARGE)?;
        importer.sees_stamps(there, LARGE, 2000)?;
        let shown = importer.attach(apid, file, FILE)?;
        importer.sees_stamps(shown, FILE, 4000)?;

        // The address space changes.
        exporter.sys(libc::SYS_munmap, &[small, 8 * PAGE])?;
        importer.sees(here, &[Seen::Hole; 8])?;
        let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as usize;
        exporter.sys(libc::SYS_mmap, &[small, 8 * PAGE, RW as usize, private, usize::MAX, 0])?;
        exporter.fill(small, 8, 5000)?;
        importer.sees_stamps(here, 8, 5000)?;
        exporter.sys(libc::SYS_madvise, &[small + 8 * PAGE, 4 * PAGE, libc::MADV_DONTNEED as usize])?;
        importer.sees(here + 8 * PAGE, &[Seen::Stamp(0); 4])?;
        let target = exporter.actor.place(4 * PAGE);
        let moves = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as usize;
        exporter.sys(libc::SYS_mremap, &[small + 12 * PAGE, 4 * PAGE, 4 * PAGE, moves, target])?;
        importer.sees(here + 12 * PAGE, &[Seen::Hole; 4])?;
        let moved = importer.attach(apid, target, 4)?;
        importer.sees_stamps(moved, 4, 1012)?;
        exporter.sys(libc::SYS_munmap, &[file, 4 * PAGE])?;
        importer.sees_no_file(shown, 4)?;
        importer.sees_stamps(shown + 4 * PAGE, 4, 4004)?;

        // A child has a copy.
        exporter.forks(|child| {
            child.check(large, LARGE, 2000);
            child.fill(large, LARGE, 9000);
        })?;
        exporter.sees_stamps(large, LARGE, 2000)?;
        importer.sees_stamps(there, LARGE, 2000)?;

        self.exporter_is_whole(target)?;
        let Self { exporter, importer, .. } = self;
        importer.call(&format!("detach {there:#x}"))?;
        importer.call(&format!("release {apid}"))?;
        // Two permits at once, of which one ends.
        let apid = importer.get(segid)?;
        let part = exporter.make(large, 4 * PAGE)?;
        let narrow = importer.get(part)?;
        let there = importer.attach(apid, large, 16)?;
        importer.sees_stamps(there, 16, 2000)?;
        let less = importer.attach(narrow, 0, 4)?;
        importer.sees_stamps(less, 4, 2000)?;
        exporter.call(&format!("remove {part}"))?;
        importer.sees(less, &[Seen::Hole; 4])?;
        importer.sees_stamps(there, 16, 2000)?;
        importer.call(&format!("release {narrow}"))?;
        importer.call(&format!("release {apid}"))?;
        exporter.call(&format!("remove {segid}"))?;
        self.exporter_is_whole(target)
    }

    /// The exporter's memory is what it should be, as the exporter itself and the kernel see it.
    fn exporter_is_whole(&mut self, moved: usize) -> Played<()> {
        let (small, rest) = (self.small, SMALL - 16);
        let all = [
            (small, stamps(8, 5000)),
            (small + 8 * PAGE, vec![Seen::Stamp(0); 4]),
            (small + 16 * PAGE, stamps(rest, 1016)),
            (self.large, stamps(LARGE, 2000)),
            (moved, stamps(4, 1012)),
        ];
        for (address, wanted) in &all {
            self.exporter.sees(*address, wanted)?;
            let oracle = self.exporter.actor.oracle(*address, wanted.len());
            let oracle: Vec<Seen> = oracle.into_iter().map(|page| page.unwrap_or(Seen::Hole)).collect();
            if oracle != *wanted {
                self.fate
                    .wrong::<()>(&format!("the exporter's memory at {address:#x} is not what it was"))?;
            }
        }
        Ok(())
    }

    /// What failed is in the log.
    fn explain(&self, case: Option<&Case>) {
        let errno = match case.map(|case| case.blow) {
            Some(Blow::Fail(errno) | Blow::Starve(errno)) => errno,
            // Of a sibling that was killed.
            _ => libc::EAGAIN,
        };
        for failure in [&self.exporter, &self.importer].iter().flat_map(|player| &player.failures) {
            let Failure { call, what } = failure;
            let said =
                call.as_ref().map_or(format!("os error {errno})"), |call| format!("xpmem_{call} fails"));
            let lines = self.fate.log.lines_with(&said);
            assert!(!lines.is_empty(), "no line with `{said}` explains: {what}\n{}", self.fate.log.text());
        }
    }

    /// Who has survived goes on: with new peers, to an orderly end.
    fn aftermath(self) {
        let Self { stage, side, fate, exporter, importer, .. } = self;
        fate.supervisor.watch(Watch::Nothing);
        let killed = fate.kills && fate.supervisor.has_happened();
        let (victim, survivor) = match side {
            Side::Exporter => (exporter.actor, importer.actor),
            Side::Importer => (importer.actor, exporter.actor),
        };
        let mut all = vec![survivor];
        if killed {
            victim.kill();
        } else {
            all.push(victim);
        }
        for mut actor in all {
            let mut other = stage.actor();
            serve(&mut actor, &mut other);
            serve(&mut other, &mut actor);
            actor.exit();
            other.exit();
        }
    }
}

/// One shows memory to the other.
fn serve(exporter: &mut Actor, importer: &mut Actor) {
    let address = exporter.anon(4 * PAGE);
    exporter.fill(address, 4, 300);
    let segid = exporter.make(address, 4 * PAGE);
    let apid = importer.get(segid);
    let here = importer.attach(apid, 0, 4 * PAGE);
    importer.check(here, 4, 300);
    exporter.munmap(address, PAGE);
    assert_eq!(importer.look(here, 1), [Seen::Hole]);
    assert_eq!(exporter.remove(segid), Ok(0));
    assert_eq!(importer.release(apid), Ok(0));
}
