//! Each system call of the library fails once, or its process is killed or stopped there: nobody hangs, no memory is lost or shown wrongly,
//! a failure is an errno that the log explains, and what failed works when it is tried again.
//!
//! `RMAP_TEST_FAULTS=all` goes through all of them. `RMAP_TEST_FAULT` names one: as a failure names it.

mod play;
mod player;

use play::{Blow, Case, Outcome, Side, Traces, play};
use rmap_tests::{Call, Caller, Engine, Random, seed};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long a test goes on with further calls.
const TIME: Duration = Duration::from_secs(15);

/// What has failed once, or others like it: these come first.
const FOUND: [&str; 30] = [
    "Exporter/Application/eventfd2/0/Fail(24)",
    "Exporter/Service/accept4/0/Fail(12)",
    "Exporter/Service/accept4/1/Fail(23)",
    "Exporter/Service/EPOLL_CTL_ADD/12/Fail(12)",
    "Exporter/Service/EPOLL_CTL_ADD/14/Fail(28)",
    "Exporter/Service/EPOLL_CTL_ADD/15/Kill",
    "Exporter/Service/FALLOC_FL_PUNCH_HOLE/17/Fail(4)",
    "Exporter/Service/MADV_DONTFORK/32/Fail(12)",
    "Exporter/Service/PROCMAP_QUERY/59/Fail(12)",
    "Exporter/Service/PROCMAP_QUERY/67/Fail(12)",
    "Exporter/Service/UFFDIO_REGISTER/9/Fail(12)",
    "Exporter/Service/UFFDIO_UNREGISTER/8/Fail(12)",
    "Exporter/Service/UFFDIO_UNREGISTER/22/Fail(12)",
    "Exporter/Service/UFFDIO_UNREGISTER/36/Fail(12)",
    "Exporter/Service/clone/4/Fail(11)",
    "Exporter/Service/getdents64/9/Fail(12)",
    "Exporter/Service/mmap of a file/48/Fail(11)",
    "Exporter/Service/mmap of memory/5/Fail(12)",
    "Exporter/Service/mmap of memory/8/Fail(12)",
    "Exporter/Service/mmap over/3/Fail(12)",
    "Exporter/Service/mmap over/5/Fail(12)",
    "Exporter/Service/pwrite64/1/Fail(28)",
    "Exporter/Service/pwrite64/2/Fail(12)",
    "Exporter/Service/pwrite64/2/Starve(28)",
    "Exporter/Service/write/9/Stop",
    "Importer/Service/UFFDIO_REGISTER/2/Fail(12)",
    "Importer/Service/read/17/Fail(12)",
    "Importer/Service/sendmsg/0/Fail(105)",
    "Importer/Service/sendmsg/2/Fail(12)",
    "Importer/Sibling/mremap/1/Fail(12)",
];

/// What a call may say for want of something, or because the moment is bad.
fn errnos(call: &str) -> &'static [i32] {
    match call {
        "openat" => &[libc::ENOMEM, libc::EMFILE, libc::ENFILE],
        "memfd_create" | "userfaultfd" | "eventfd2" | "signalfd4" | "epoll_create1" | "socket" => {
            &[libc::ENOMEM, libc::EMFILE, libc::ENFILE]
        }
        "pidfd_open" | "pidfd_getfd" | "F_DUPFD_CLOEXEC" => &[libc::ENOMEM, libc::EMFILE, libc::EPERM],
        "accept4" => &[libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::EINTR],
        "clone" | "clone3" => &[libc::EAGAIN, libc::ENOMEM],
        "connect" => &[libc::ENOMEM, libc::EINTR],
        "sendmsg" => &[libc::ENOBUFS, libc::ENOMEM, libc::ETOOMANYREFS, libc::EINTR],
        "recvmsg" => &[libc::EAGAIN, libc::EINTR],
        "mremap" | "madvise" | "MADV_DONTFORK" | "MADV_DONTDUMP" | "mprotect" | "munmap" => &[libc::ENOMEM],
        "mmap of a file" | "mmap over" | "mmap of memory" => &[libc::ENOMEM, libc::EAGAIN],
        "UFFDIO_REGISTER" | "UFFDIO_UNREGISTER" | "UFFDIO_WRITEPROTECT" => &[libc::ENOMEM],
        "UFFDIO_COPY" => &[libc::ENOMEM, libc::EEXIST, libc::EAGAIN],
        "UFFDIO_MOVE" => &[libc::ENOMEM, libc::EBUSY, libc::EAGAIN],
        "UFFDIO_API" => &[libc::ENOMEM],
        "MADV_COLLAPSE" => &[libc::ENOMEM, libc::EAGAIN, libc::EINVAL],
        "MADV_POPULATE_READ" | "MADV_POPULATE_WRITE" => &[libc::ENOMEM, libc::EINVAL],
        "PAGEMAP_SCAN" | "PROCMAP_QUERY" => &[libc::ENOMEM, libc::EINTR],
        "FALLOC" => &[libc::ENOSPC, libc::ENOMEM, libc::EINTR],
        "FALLOC_FL_PUNCH_HOLE" | "poll" | "epoll_pwait" | "wait4" | "getrandom" | "call 61" => &[libc::EINTR],
        "pwrite64" => &[libc::ENOSPC, libc::ENOMEM, libc::EINTR],
        "read" | "pread64" => &[libc::ENOMEM, libc::EINTR],
        "EPOLL_CTL_ADD" => &[libc::ENOMEM, libc::ENOSPC],
        "close_range" | "ftruncate" | "getdents64" => &[libc::ENOMEM],
        "rt_tgsigqueueinfo" => &[libc::EAGAIN],
        "PTRACE_SEIZE" => &[libc::EPERM],
        "move_pages" | "mbind" | "set_mempolicy" => &[libc::ENOMEM, libc::EPERM],
        "mlock" => &[libc::ENOMEM, libc::EAGAIN],
        _ => &[],
    }
}

/// How often each call is made in a play in which nothing happens.
fn count(calls: &[Call]) -> BTreeMap<Call, usize> {
    let mut counts = BTreeMap::new();
    for call in calls.iter().filter(|call| call.caller != Caller::Child) {
        *counts.entry(call.clone()).or_default() += 1;
    }
    counts
}

/// All cases: those that are known, and then those first that differ most.
fn cases(side: Side, calls: &[Call], blows: impl Fn(&str) -> Vec<Blow>) -> Vec<Case> {
    let mut random = Random::new(seed());
    let mut cases = Vec::new();
    for (call, count) in count(calls) {
        for blow in blows(&call.name) {
            for (rank, nth) in random.order(count).into_iter().enumerate() {
                cases.push((rank, random.number(), Case { side, call: call.clone(), nth, blow }));
            }
        }
    }
    cases.sort_by_key(|(rank, number, case)| (!FOUND.contains(&describe(case).as_str()), *rank, *number));
    cases.into_iter().map(|(_, _, case)| case).collect()
}

fn describe(case: &Case) -> String {
    let Case { side, call, nth, blow } = case;
    format!("{side:?}/{:?}/{}/{nth}/{blow:?}", call.caller, call.name)
}

/// In a thread, so that a failure does not keep the others from being tried.
fn try_case(side: Side, case: Option<&Case>) -> Result<Outcome, ()> {
    let case = case.cloned();
    std::thread::spawn(move || play(side, case.as_ref())).join().map_err(drop)
}

fn go_through(test: &str, side: Side, blows: impl Fn(&str) -> Vec<Blow>) {
    if Engine::of_actors() != Engine::Clone {
        return rmap_tests::skip(test, "these are the calls of the clone engine");
    }
    let usual = try_case(side, None).expect("nothing happens");
    let traces = usual.traces.expect("played to the end");
    let one = std::env::var("RMAP_TEST_FAULT").ok();
    let all = std::env::var("RMAP_TEST_FAULTS").is_ok_and(|text| text == "all");
    let mut cases = cases(side, &usual.calls, blows);
    let known = cases.len();
    cases.retain(|case| one.as_ref().is_none_or(|one| *one == describe(case)));
    let start = Instant::now();
    let (mut tried, mut happened, mut failed) = (0, 0, Vec::new());
    for case in &cases {
        if !all && one.is_none() && start.elapsed() > TIME {
            break;
        }
        tried += 1;
        match try_case(side, Some(case)) {
            Ok(outcome) => {
                happened += usize::from(outcome.happened);
                if let Some(left) = outcome.traces.and_then(|now| leftover(traces, now)) {
                    eprintln!("{}: {left}", describe(case));
                    failed.push(describe(case));
                }
            }
            Err(()) => {
                eprintln!("^ {}", describe(case));
                failed.push(describe(case));
            }
        }
    }
    println!("{test}: {tried} of {known} tried, {happened} happened");
    assert!(failed.is_empty(), "{} failed:\n  {}", failed.len(), failed.join("\n  "));
}

/// What is there more than in a play in which nothing happens.
fn leftover(usual: [Traces; 2], now: [Traces; 2]) -> Option<String> {
    let more = usual.iter().zip(now).any(|(usual, now)| now.exceeds(usual));
    more.then(|| format!("exporter and importer have {now:?}, usually {usual:?}"))
}

fn failures(call: &str) -> Vec<Blow> {
    let mut blows: Vec<Blow> = errnos(call).iter().map(|errno| Blow::Fail(*errno)).collect();
    // Memory may be missing for a while.
    blows.extend((call == "pwrite64").then_some(Blow::Starve(libc::ENOSPC)));
    blows
}

#[test]
fn a_call_of_an_exporter_fails() {
    go_through("a_call_of_an_exporter_fails", Side::Exporter, failures);
}

#[test]
fn a_call_of_an_importer_fails() {
    go_through("a_call_of_an_importer_fails", Side::Importer, failures);
}

#[test]
fn an_exporter_is_killed() {
    go_through("an_exporter_is_killed", Side::Exporter, |_| vec![Blow::Kill]);
}

#[test]
fn an_importer_is_killed() {
    go_through("an_importer_is_killed", Side::Importer, |_| vec![Blow::Kill]);
}

#[test]
fn all_stop_at_a_call_of_an_exporter() {
    go_through("all_stop_at_a_call_of_an_exporter", Side::Exporter, |_| vec![Blow::Stop]);
}

#[test]
fn all_stop_at_a_call_of_an_importer() {
    go_through("all_stop_at_a_call_of_an_importer", Side::Importer, |_| vec![Blow::Stop]);
}
