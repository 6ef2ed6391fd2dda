//! What memory costs in this process, in nanoseconds. For benchmarks, which compare processes with one another.

use crate::{
    command::{Arguments, Failure, Outcome},
    system,
    work::Child,
};
use rmap_tests::PAGE;
use std::{hint::black_box, ptr, time::Instant};

const RW: usize = (libc::PROT_READ | libc::PROT_WRITE) as usize;
const PRIVATE: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;

/// `cost malloc LEN COUNT`, `cost map LEN COUNT`, `cost fault LEN COUNT`: the time of one `malloc` with `free`, of one `mmap` with a
/// store to each page and `munmap`, of one page fault. `cost munmap ADDRESS LEN`: the time of this one call. `cost fork 0 0`: the time of
/// `fork` in the parent.
pub(crate) fn cost(arguments: &mut Arguments<'_>) -> Outcome {
    let what = arguments.word()?;
    let (first, second): (usize, usize) = (arguments.number()?, arguments.number()?);
    let nanoseconds = match what {
        "malloc" => malloc(first, second),
        "map" => map(first, second, false)?,
        "fault" => map(first, second, true)?,
        "munmap" => {
            let start = Instant::now();
            system::call(libc::SYS_munmap, [first, second, 0, 0, 0, 0]).map_err(Failure::Errno)?;
            start.elapsed().as_nanos() as f64
        }
        "fork" => {
            let start = Instant::now();
            let child = Child::fork(|| 0).map_err(Failure::Errno)?;
            let forked = start.elapsed();
            child.wait().map_err(Failure::Errno)?;
            forked.as_nanos() as f64
        }
        other => return Err(Failure::Usage(format!("no cost of {other}"))),
    };
    Ok(format!("{nanoseconds}"))
}

fn malloc(len: usize, count: usize) -> f64 {
    let start = Instant::now();
    for _ in 0..count {
        // SAFETY: the block is written inside its length, and freed once.
        unsafe {
            let block = black_box(libc::malloc(len)).cast::<u8>();
            block.write_volatile(1);
            libc::free(block.cast());
        }
    }
    start.elapsed().as_nanos() as f64 / count as f64
}

/// The time of one round, or of one of its faults alone.
fn map(len: usize, count: usize, faults_only: bool) -> Result<f64, Failure> {
    let (mut all, mut faults) = (0, 0);
    for _ in 0..count {
        let start = Instant::now();
        let address =
            system::call(libc::SYS_mmap, [0, len, RW, PRIVATE, usize::MAX, 0]).map_err(Failure::Errno)?;
        let mapped = Instant::now();
        for at in (0..len).step_by(PAGE) {
            // SAFETY: inside the new mapping, which nobody else knows.
            unsafe { ptr::with_exposed_provenance_mut::<u8>(address + at).write_volatile(1) };
        }
        faults += mapped.elapsed().as_nanos();
        system::call(libc::SYS_munmap, [address, len, 0, 0, 0, 0]).map_err(Failure::Errno)?;
        all += start.elapsed().as_nanos();
    }
    let count = count as f64;
    Ok(if faults_only { faults as f64 / count / (len / PAGE) as f64 } else { all as f64 / count })
}
