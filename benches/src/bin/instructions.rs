//! Counts what `xpmem_attach` and `xpmem_detach` execute for memory that was attached before, and fails beyond a limit.
//!
//! ```text
//! rmap-bench-instructions [--limit INSTRUCTIONS] [--calls SYSTEM_CALLS] [COUNT...]
//! ```
//!
//! COUNT is a number of other attachments that the process has meanwhile; default: 1 and 100000. Counts do not depend on
//! what else the machine does, so a script can insist on them. The limits are for the pair.

use rmap_bench::{
    Library, Run,
    count::{Count, counted},
    live::{self, Live},
};
use rmap_tests::{PAGE, Stage};
use std::process::ExitCode;

/// How often the pair is counted.
const ROUNDS: usize = 25;

struct Options {
    limit: Option<u64>,
    calls: Option<u64>,
    attachments: Vec<usize>,
}

fn options() -> Result<Options, String> {
    let mut options = Options { limit: None, calls: None, attachments: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|word| word.parse().ok()).ok_or(format!("{word} NUMBER"));
        match word.as_str() {
            "--limit" => options.limit = Some(number()?),
            "--calls" => options.calls = Some(number()?),
            _ => options.attachments.push(word.parse().map_err(|_| format!("{word}: not a number"))?),
        }
    }
    if options.attachments.is_empty() {
        options.attachments = vec![1, 100_000];
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}\nusage: rmap-bench-instructions [--limit NUMBER] [--calls NUMBER] [COUNT...]");
            return ExitCode::from(2);
        }
    };
    let library = Run::library();
    let stage = Stage::new("instructions", 240);
    let mut exporter = stage.actor();
    let heap = exporter.anon(2 << 20);
    exporter.fill(heap, (2 << 20) / PAGE, 1);
    let segid = exporter.make_all();
    let mut failed = false;
    println!("attach + detach of 64 KiB, attached before; calling thread only, {ROUNDS} times");
    for &attachments in &options.attachments {
        let pieces = live::reserve(&mut exporter, attachments);
        let with = format!("with {attachments} other attachments");
        match pairs(library, segid, heap, pieces, attachments) {
            Ok(mut counts) => {
                counts.sort_unstable_by_key(|(attach, detach)| *attach + *detach);
                let (attach, detach) = counts[counts.len() / 2];
                let (most, pair) = (counts[counts.len() - 1], attach + detach);
                println!("{with}: attach {attach}; detach {detach}");
                println!("{with}: pair {pair} (median); {} (most)", most.0 + most.1);
                for (what, count, limit) in [
                    ("instructions", pair.instructions, options.limit),
                    ("system calls", pair.calls, options.calls),
                ] {
                    if let Some(limit) = limit.filter(|limit| count > *limit) {
                        println!("{with}: FAILED: {count} {what}, {limit} allowed");
                        failed = true;
                    }
                }
            }
            Err(why) => {
                println!("{with}: FAILED: {why}");
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The counts of attach and of detach, of each pair.
fn pairs(
    library: Library,
    segid: i64,
    heap: usize,
    pieces: usize,
    attachments: usize,
) -> std::io::Result<Vec<(Count, Count)>> {
    const LEN: usize = 64 << 10;
    let (attach, detach) = library.entries();
    let counts = counted(&[attach as usize, detach as usize], |gate| {
        let apid = library.get(segid).expect("xpmem_get");
        let mut live = Live::new(library, apid, pieces);
        if let Err(why) = live.grow_to(attachments) {
            println!("with {attachments} other attachments: attachment {} failed: {why}", live.count() + 1);
            return false;
        }
        library.pair(apid, heap, LEN);
        library.pair(apid, heap, LEN);
        gate.open();
        for _ in 0..ROUNDS {
            library.pair(apid, heap, LEN);
        }
        gate.close();
        true
    })?;
    let pairs: Vec<_> = counts.chunks_exact(2).map(|pair| (pair[0].1, pair[1].1)).collect();
    let as_expected = counts.iter().enumerate().all(|(at, (function, _))| *function == at % 2);
    assert!(as_expected && pairs.len() == ROUNDS, "{} calls were counted", counts.len());
    Ok(pairs)
}
