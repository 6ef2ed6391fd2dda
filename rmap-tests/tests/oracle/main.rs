//! Random programs in an exporter with several threads, checked against a model and against the kernel.
//!
//! After each step some pages are looked at in three ways: as the model has them, as `process_vm_readv` reads
//! them from the exporter, and through attachments of other processes. All three must agree. Attachments are
//! made and dropped at random moments; two over everything live from the first step to the last.
//!
//! A program that fails is made as short as possible and printed, with the seed.

mod model;
mod program;
mod world;

use program::{Op, program, simpler};
use rmap_tests::{Random, rounds};
use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
    time::{Duration, Instant},
};
use world::{Setting, World};

const PAGES: Setting = Setting { unit: 1, reads_ahead: false };
/// So much memory that it is adopted in huge pages: one is four pages of the model.
const HUGE_PAGES: Setting = Setting { unit: (2 << 20) / 4 / rmap_tests::PAGE, reads_ahead: false };

/// Steps of a program.
const STEPS: usize = 100;
/// Programs in a run that is no soak.
const PROGRAMS: usize = 40;
/// How long a failing program is made shorter.
const SHORTENING: Duration = Duration::from_secs(60);

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the failures of programs off the terminal: all but the last are of no interest.
fn be_quiet_in_programs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
}

/// Runs a program and gives what is wrong.
fn run(ops: &[Op], setting: Setting) -> Result<(), String> {
    be_quiet_in_programs();
    QUIET.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(setting);
        for op in ops {
            world.step(op);
        }
        world.end();
    }));
    QUIET.set(false);
    outcome.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
    })
}

fn try_program(seed: u64, steps: usize, setting: Setting) {
    let mut ops = program(&mut Random::new(seed), steps);
    let Err(mut why) = run(&ops, setting) else { return };
    let start = Instant::now();
    while start.elapsed() < SHORTENING {
        let found = simpler(&ops).take_while(|_| start.elapsed() < SHORTENING).find_map(|ops| {
            let why = run(&ops, setting).err()?;
            Some((ops, why))
        });
        let Some((shorter, reason)) = found else { break };
        (ops, why) = (shorter, reason);
    }
    let text: Vec<String> = ops.iter().map(|op| format!("    {op:?},")).collect();
    panic!("seed {seed}: {why}\nthe shortest program found:\n{}", text.join("\n"));
}

fn try_programs(most: usize, setting: Setting) {
    let seed = rmap_tests::seed();
    let start = Instant::now();
    for number in 0.. {
        let over = rmap_tests::soak().map_or(number >= rounds(most), |time| start.elapsed() >= time);
        if over {
            break;
        }
        try_program(seed.wrapping_add(number as u64), STEPS, setting);
    }
}

#[test]
fn random_programs() {
    try_programs(PROGRAMS, PAGES);
}

#[test]
fn random_programs_of_huge_pages() {
    try_programs(PROGRAMS / 4, HUGE_PAGES);
}

/// Why the library cannot find out whether a device may write to a page, if so: then it adopts nothing there.
fn no_moving_of_pages() -> Option<String> {
    const OLDEST: (u32, u32) = (6, 8);
    if rmap_tests::goes_without("move-pages") {
        return Some("the library does without moving pages".into());
    }
    let release = nix::sys::utsname::uname().expect("uname").release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').filter_map(|number| number.parse().ok());
    let version = (numbers.next()?, numbers.next()?);
    (version < OLDEST).then(|| format!("Linux {release} does not move pages (6.8 does)"))
}

/// Each adoption asks whether a device may write to the pages.
#[test]
fn random_programs_with_asynchronous_reads() {
    if let Some(reason) = no_moving_of_pages() {
        return rmap_tests::skip("random_programs_with_asynchronous_reads", &reason);
    }
    try_programs(PROGRAMS / 4, Setting { reads_ahead: true, ..PAGES });
    try_programs(PROGRAMS / 8, Setting { reads_ahead: true, ..HUGE_PAGES });
}

#[test]
fn long_programs() {
    for number in 0..rounds(2) as u64 {
        try_program(rmap_tests::seed().wrapping_add(1_000_000 + number), 10 * STEPS, PAGES);
    }
}
