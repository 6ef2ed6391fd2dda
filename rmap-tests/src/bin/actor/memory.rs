//! Commands that read and write memory. All accesses are trapped.

use crate::{
    command::{Arguments, Failure, Outcome},
    trap::{self, Fault},
};
use rmap_tests::{
    BOARD_LEN, PAGE,
    pattern::{self, Page, Seen},
};
use std::{
    fmt::Write as _,
    hint::black_box,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// A command of this module, or `None` if it is another's.
pub(crate) fn command(verb: &str, arguments: &mut Arguments<'_>) -> Option<Outcome> {
    Some(match verb {
        "load" => load(arguments),
        "store" => store(arguments),
        "bareload" => bare_load(arguments),
        "barestore" => bare_store(arguments),
        "add" => add(arguments),
        "copy" => copy(arguments),
        "fill" => fill(arguments),
        "check" => check(arguments),
        "look" => look(arguments),
        "touch" => touch(arguments),
        "ints" => ints(arguments),
        "addints" => add_ints(arguments),
        "checkints" => check_ints(arguments),
        "sumints" => sum_ints(arguments),
        "text" => put_text(arguments),
        "board" => Ok(board().to_string()),
        "place" => place(arguments),
        _ => return None,
    })
}

fn load(arguments: &mut Arguments<'_>) -> Outcome {
    Ok(trap::load(arguments.number()?)?.to_string())
}

fn store(arguments: &mut Arguments<'_>) -> Outcome {
    trap::store(arguments.number()?, arguments.number()?)?;
    Ok(String::new())
}

/// `bareload ADDRESS`: a load that no handler saves the process from.
fn bare_load(arguments: &mut Arguments<'_>) -> Outcome {
    trap::uninstall();
    let word = ptr::with_exposed_provenance::<u16>(arguments.number()?);
    // SAFETY: the test knows what happens.
    Ok(unsafe { word.read_volatile() }.to_string())
}

/// `barestore ADDRESS`: a store that no handler saves the process from.
fn bare_store(arguments: &mut Arguments<'_>) -> Outcome {
    trap::uninstall();
    let word = ptr::with_exposed_provenance_mut::<u16>(arguments.number()?);
    // SAFETY: the test knows what happens.
    unsafe { word.write_volatile(1) };
    Ok(String::new())
}

fn add(arguments: &mut Arguments<'_>) -> Outcome {
    Ok(trap::add(arguments.number()?, arguments.number()?)?.to_string())
}

fn copy(arguments: &mut Arguments<'_>) -> Outcome {
    trap::copy(arguments.number()?, arguments.number()?, arguments.number()?)?;
    Ok(String::new())
}

/// Reads a page.
pub(crate) fn page(address: usize) -> Result<Page, Fault> {
    let mut page = [0; PAGE];
    trap::copy(page.as_mut_ptr() as usize, address, PAGE)?;
    Ok(page)
}

/// Writes a page.
pub(crate) fn set_page(address: usize, page: &Page) -> Result<(), Fault> {
    trap::copy(address, page.as_ptr() as usize, PAGE)
}

/// Writes the pattern of a stamp into a page.
pub(crate) fn stamp_page(address: usize, stamp: u64) -> Result<(), Fault> {
    let mut page = [0; PAGE];
    pattern::draw(stamp, &mut page);
    set_page(address, &page)
}

/// What a page shows.
pub(crate) fn see(address: usize) -> Seen {
    match page(address) {
        Ok(page) => Seen::of(&page),
        Err(fault) if fault.is_hole_at(address) => Seen::Hole,
        Err(_) => Seen::Fault,
    }
}

/// `fill ADDRESS PAGES STAMP STEP`: page `i` gets stamp `STAMP + i * STEP`.
fn fill(arguments: &mut Arguments<'_>) -> Outcome {
    let (address, pages): (usize, usize) = (arguments.number()?, arguments.number()?);
    let (stamp, step): (u64, u64) = (arguments.number()?, arguments.number()?);
    for index in 0..pages {
        stamp_page(address + index * PAGE, stamp + step * index as u64)?;
    }
    Ok(String::new())
}

/// `check ADDRESS PAGES STAMP STEP`: the first page that does not carry its stamp, and what it shows.
fn check(arguments: &mut Arguments<'_>) -> Outcome {
    let (address, pages): (usize, usize) = (arguments.number()?, arguments.number()?);
    let (stamp, step): (u64, u64) = (arguments.number()?, arguments.number()?);
    for index in 0..pages {
        let seen = see(address + index * PAGE);
        if seen != Seen::Stamp(stamp + step * index as u64) {
            return Ok(format!("{index} {seen:?}"));
        }
    }
    Ok(String::new())
}

/// `look ADDRESS PAGES`: what each page shows.
fn look(arguments: &mut Arguments<'_>) -> Outcome {
    let (address, pages): (usize, usize) = (arguments.number()?, arguments.number()?);
    let words: Vec<String> = (0..pages).map(|index| see(address + index * PAGE).token()).collect();
    Ok(words.join(" "))
}

/// `touch ADDRESS COUNT STRIDE`: loads a word every so many bytes and gives the sum.
fn touch(arguments: &mut Arguments<'_>) -> Outcome {
    let (address, count, stride): (usize, usize, usize) =
        (arguments.number()?, arguments.number()?, arguments.number()?);
    let mut sum = 0_u64;
    for index in 0..count {
        sum = sum.wrapping_add(trap::load(address + index * stride)?);
    }
    Ok(sum.to_string())
}

/// Integers in memory: where they are, how many, and the line `i * factor + add` that they lie on.
struct Line {
    address: usize,
    count: usize,
    factor: u32,
    add: u32,
}

impl Line {
    fn parse(arguments: &mut Arguments<'_>) -> Result<Self, Failure> {
        Ok(Self {
            address: arguments.number()?,
            count: arguments.number()?,
            factor: arguments.number()?,
            add: arguments.number()?,
        })
    }

    fn value(&self, index: usize) -> u32 {
        (index as u32).wrapping_mul(self.factor).wrapping_add(self.add)
    }

    /// Shows each integer to `act`, which may change it, and writes them back if asked to.
    fn each(&self, write: bool, mut act: impl FnMut(usize, &mut u32)) -> Result<(), Fault> {
        const CHUNK: usize = PAGE / 4;
        let mut chunk = [0_u32; CHUNK];
        for first in (0..self.count).step_by(CHUNK) {
            let count = CHUNK.min(self.count - first);
            let (here, there) = (chunk.as_mut_ptr() as usize, self.address + first * 4);
            trap::copy(here, there, count * 4)?;
            for (index, integer) in chunk[..count].iter_mut().enumerate() {
                act(first + index, integer);
            }
            if write {
                trap::copy(there, here, count * 4)?;
            }
        }
        Ok(())
    }
}

/// `ints ADDRESS COUNT FACTOR ADD`: writes integers.
fn ints(arguments: &mut Arguments<'_>) -> Outcome {
    let line = Line::parse(arguments)?;
    line.each(true, |index, integer| *integer = line.value(index))?;
    Ok(String::new())
}

/// `addints ADDRESS COUNT FACTOR ADD`: adds to integers.
fn add_ints(arguments: &mut Arguments<'_>) -> Outcome {
    let line = Line::parse(arguments)?;
    line.each(true, |index, integer| *integer = integer.wrapping_add(line.value(index)))?;
    Ok(String::new())
}

/// `checkints ADDRESS COUNT FACTOR ADD`: how many integers are not what they should be.
fn check_ints(arguments: &mut Arguments<'_>) -> Outcome {
    let line = Line::parse(arguments)?;
    let mut wrong = 0_usize;
    line.each(false, |index, integer| wrong += usize::from(*integer != line.value(index)))?;
    Ok(wrong.to_string())
}

/// `sumints ADDRESS COUNT`: the sum of integers.
fn sum_ints(arguments: &mut Arguments<'_>) -> Outcome {
    let line = Line { address: arguments.number()?, count: arguments.number()?, factor: 0, add: 0 };
    let mut sum = 0_u64;
    line.each(false, |_, integer| sum += u64::from(*integer))?;
    Ok(sum.to_string())
}

/// `text HEX`: puts bytes into the scratch memory and gives its address.
fn put_text(arguments: &mut Arguments<'_>) -> Outcome {
    static SCRATCH: [AtomicU64; PAGE / 8] = [const { AtomicU64::new(0) }; PAGE / 8];
    let hex = arguments.word()?.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
    let bytes: Vec<u8> = hex.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
    assert!(bytes.len() <= PAGE, "the text is too long");
    let scratch = SCRATCH.as_ptr() as usize;
    trap::copy(scratch, bytes.as_ptr() as usize, bytes.len())?;
    Ok(scratch.to_string())
}

/// Where the board is mapped.
pub(crate) fn board() -> usize {
    static BOARD: OnceLock<usize> = OnceLock::new();
    *BOARD.get_or_init(|| {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping where the kernel likes.
        let address = unsafe { libc::mmap(ptr::null_mut(), BOARD_LEN, prot, flags, 0, 0) };
        assert_ne!(address, libc::MAP_FAILED, "the board is on descriptor 0");
        address as usize
    })
}

/// Word `index` of the board.
pub(crate) fn board_word(index: usize) -> &'static AtomicU64 {
    let address = ptr::with_exposed_provenance_mut(board() + index * 8);
    // SAFETY: the board is mapped as long as the process lives, and all use it by atomic words.
    unsafe { AtomicU64::from_ptr(address) }
}

const STATIC_PAGES: usize = 8;

#[repr(align(4096))]
struct Aligned<T>(T);

/// `.data`: not zero and not constant.
static DATA: Aligned<[AtomicUsize; STATIC_PAGES * PAGE / 8]> =
    Aligned([const { AtomicUsize::new(0x6461_7461) }; STATIC_PAGES * PAGE / 8]);
/// `.bss`.
static BSS: Aligned<[AtomicUsize; STATIC_PAGES * PAGE / 8]> =
    Aligned([const { AtomicUsize::new(0) }; STATIC_PAGES * PAGE / 8]);
/// `.rodata`.
static RODATA: Aligned<[u64; STATIC_PAGES * PAGE / 8]> = Aligned([0x726f_6461_7461; STATIC_PAGES * PAGE / 8]);

/// `place KIND`: the address and length of something of the program: data, bss, rodata, text, stack.
fn place(arguments: &mut Arguments<'_>) -> Outcome {
    let whole = STATIC_PAGES * PAGE;
    let (address, len) = match arguments.word()? {
        "data" => (DATA.0.as_ptr() as usize, whole),
        "bss" => (BSS.0.as_ptr() as usize, whole),
        "rodata" => (black_box(&RODATA).0.as_ptr() as usize, whole),
        "text" => (crate::serve as *const () as usize & !(PAGE - 1), PAGE),
        "stack" => {
            let local = black_box([0_u64; 4 * PAGE / 8]);
            ((local.as_ptr() as usize + PAGE - 1) & !(PAGE - 1), 2 * PAGE)
        }
        other => return Err(Failure::Usage(format!("no place {other}"))),
    };
    let mut words = String::new();
    let _ = write!(words, "{address} {len}");
    // All of them are used by atomic operations or not at all.
    DATA.0[0].fetch_add(0, Ordering::Relaxed);
    BSS.0[0].fetch_add(0, Ordering::Relaxed);
    Ok(words)
}
