//! One exporter that takes memory away and one importer that must not see it afterwards.
//!
//! They meet on the board. Word 0 is the round whose number is in the memory, word 1 the last round that is
//! over, word 2 the last round that the importer has seen in the memory. The number of a round that was over
//! before a load must not be what the load gives.

use crate::{
    command::{Arguments, Failure, Outcome},
    memory::board_word,
    system,
    threads::Work,
    trap,
};
use rmap_tests::PAGE;
use std::sync::atomic::Ordering::SeqCst;

const ROUND: usize = 0;
const OVER: usize = 1;
const SEEN: usize = 2;

const RW: usize = (libc::PROT_READ | libc::PROT_WRITE) as usize;
const FRESH: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as usize;

/// `revoke ADDRESS`, in the importer: loads the word all the time.
pub(crate) fn look(address: usize) -> Work {
    Box::new(move |control| {
        let (mut seen, mut late, mut zeros, mut holes, mut faults) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
        while control.on() {
            let over = board_word(OVER).load(SeqCst);
            match trap::load(address) {
                Ok(0) => zeros += 1,
                Ok(value) if value <= over => late += 1,
                Ok(value) => {
                    if board_word(SEEN).swap(value, SeqCst) != value {
                        seen += 1;
                    }
                }
                Err(fault) if fault.is_hole_at(address) => holes += 1,
                Err(_) => faults += 1,
            }
            control.step();
        }
        format!("seen={seen} late={late} zeros={zeros} holes={holes} faults={faults}")
    })
}

/// How a round ends.
enum Way {
    Unmap,
    Forget,
    Replace,
    Move,
    Shrink,
    UnmapFile,
    ReplaceFile,
}

impl Way {
    fn of_file(&self) -> bool {
        matches!(self, Self::UnmapFile | Self::ReplaceFile)
    }
}

/// Maps two pages of a new memory file, whose second page begins with `word`.
fn map_file(lower: usize, word: u64) -> Result<usize, Failure> {
    let call = |number, arguments| system::call(number, arguments).map_err(Failure::Errno);
    let fd = call(libc::SYS_memfd_create, [c"rounds".as_ptr().addr(), 0, 0, 0, 0, 0])?;
    call(libc::SYS_ftruncate, [fd, 2 * PAGE, 0, 0, 0, 0])?;
    call(libc::SYS_pwrite64, [fd, (&raw const word).addr(), size_of::<u64>(), PAGE, 0, 0])?;
    let shared = (libc::MAP_SHARED | libc::MAP_FIXED) as usize;
    call(libc::SYS_mmap, [lower, 2 * PAGE, RW, shared, fd, 0])?;
    Ok(fd)
}

/// `rounds WAY ADDRESS COUNT`, in the exporter: as many rounds at this page, which is not mapped before.
pub(crate) fn rounds(arguments: &mut Arguments<'_>) -> Outcome {
    let way = match arguments.word()? {
        "munmap" => Way::Unmap,
        "dontneed" => Way::Forget,
        "replace" => Way::Replace,
        "move" => Way::Move,
        "shrink" => Way::Shrink,
        "munmap-file" => Way::UnmapFile,
        "replace-file" => Way::ReplaceFile,
        other => return Err(Failure::Usage(format!("no way {other}"))),
    };
    let (address, count): (usize, u64) = (arguments.number()?, arguments.number()?);
    let call = |number, arguments| system::call(number, arguments).map_err(Failure::Errno);
    let aside = address + 64 * PAGE;
    // A page before it, so that the mapping can shrink.
    let lower = address - PAGE;
    for round in 1..=count {
        let kept = matches!(way, Way::Forget | Way::Replace) && round > 1;
        let mut file = None;
        if way.of_file() {
            file = Some(map_file(lower, round)?);
        } else if !kept {
            call(libc::SYS_mmap, [lower, 2 * PAGE, RW, FRESH, usize::MAX, 0])?;
        }
        let stored = trap::store(address, round);
        board_word(ROUND).store(round, SeqCst);
        stored?;
        while board_word(SEEN).load(SeqCst) != round {
            std::thread::yield_now();
        }
        match way {
            Way::Unmap | Way::UnmapFile => call(libc::SYS_munmap, [address, PAGE, 0, 0, 0, 0])?,
            Way::Forget => call(libc::SYS_madvise, [address, PAGE, libc::MADV_DONTNEED as usize, 0, 0, 0])?,
            Way::Replace | Way::ReplaceFile => {
                call(libc::SYS_mmap, [address, PAGE, RW, FRESH, usize::MAX, 0])?
            }
            Way::Move => {
                let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as usize;
                call(libc::SYS_mremap, [address, PAGE, PAGE, flags, aside, 0])?
            }
            Way::Shrink => call(libc::SYS_mremap, [lower, 2 * PAGE, PAGE, 0, 0, 0])?,
        };
        board_word(OVER).store(round, SeqCst);
        match way {
            Way::Forget | Way::Replace | Way::ReplaceFile if trap::load(address)? != 0 => {
                return Err(Failure::Usage(format!("round {round}: the exporter sees its old bytes")));
            }
            Way::Move if trap::load(aside)? != round => {
                return Err(Failure::Usage(format!("round {round}: the exporter lost what it moved")));
            }
            _ => {}
        }
        if let Some(file) = file {
            call(libc::SYS_close, [file, 0, 0, 0, 0, 0])?;
        }
    }
    Ok(String::new())
}
