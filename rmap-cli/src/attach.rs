//! `rmap attach`: live memory of a process that does not cooperate.

use crate::Failure;
use clap::Args;
use core::ops::Range;
use rmap_inspect::{Error, Inspection, Way};
use std::io::{self, Write as _};
use std::process::ExitCode;

/// What `rmap attach` can be told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The process.
    pid: i32,
    /// Where, in its address space: hexadecimal with 0x, or decimal.
    #[arg(value_parser = number)]
    address: usize,
    /// How many bytes; K, M and G are understood.
    #[arg(value_parser = number)]
    len: usize,
    /// Store these bytes at the address first, as hexadecimal digits.
    #[arg(long, value_name = "HEX", value_parser = bytes)]
    store: Option<Bytes>,
    /// Show what changes, until interrupted or the process ends.
    #[arg(short, long)]
    watch: bool,
    /// Look every so many seconds.
    #[arg(short = 'd', long, value_name = "SECONDS", default_value_t = 1.0, requires = "watch")]
    interval: f64,
    /// The bytes themselves; zeroes where nothing is shown.
    #[arg(long, conflicts_with = "watch")]
    raw: bool,
}

#[derive(Clone, Debug)]
struct Bytes(Vec<u8>);

fn number(word: &str) -> Result<usize, String> {
    let (digits, unit) = match word.char_indices().last() {
        Some((end, 'K' | 'k')) => (&word[..end], 1 << 10),
        Some((end, 'M' | 'm')) => (&word[..end], 1 << 20),
        Some((end, 'G' | 'g')) => (&word[..end], 1 << 30),
        _ => (word, 1),
    };
    let number = match digits.strip_prefix("0x") {
        Some(digits) => usize::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    number.ok().and_then(|number| number.checked_mul(unit)).ok_or_else(|| "not a number".to_owned())
}

fn bytes(word: &str) -> Result<Bytes, String> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    let pair = |pair: &[u8]| Some(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?);
    let bytes: Option<Vec<u8>> = word.as_bytes().chunks(2).map(pair).collect();
    bytes.map(Bytes).ok_or_else(|| "not pairs of hexadecimal digits".to_owned())
}

/// Bytes in a line.
const LINE: usize = 16;

pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let end = options.address.checked_add(options.len).ok_or("the range runs past the end of addresses")?;
    let range = options.address..end;
    let signals = Signals::hold_back();
    let mut inspection = Inspection::open(options.pid, range.clone(), options.store.is_some())?;
    let shown = show(options, &range, &mut inspection, &signals);
    // Also if showing failed: the process gets its memory back.
    inspection.close()?;
    shown.map(|()| ExitCode::SUCCESS)
}

fn show(
    options: &Options,
    range: &Range<usize>,
    inspection: &mut Inspection,
    signals: &Signals,
) -> Result<(), Failure> {
    if let Some(Bytes(bytes)) = &options.store {
        inspection.write(range.start, bytes)?;
    }
    let mut out = io::stdout().lock();
    if options.raw {
        out.write_all(
            &look(inspection, range).into_iter().map(Option::unwrap_or_default).collect::<Vec<u8>>(),
        )?;
        return Ok(());
    }
    for piece in inspection.pieces() {
        let how = match piece.way {
            Way::Kernel => "through /dev/rmap",
            Way::Descriptor => "in the file that the process shares it from",
            Way::Moved => "moved to a memfd until rmap attach ends",
        };
        eprintln!("{:#x}-{:#x} {how}", piece.range.start, piece.range.end);
    }
    let mut before = Vec::new();
    loop {
        let now = look(inspection, range);
        for (index, line) in now.chunks(LINE).enumerate() {
            if before.chunks(LINE).nth(index) != Some(line) {
                print_line(&mut out, range.start + index * LINE, line)?;
            }
        }
        out.flush()?;
        if !options.watch || signals.came_within(options.interval) {
            return Ok(());
        }
        match inspection.refresh() {
            Ok(()) => {}
            Err(Error::NoProcess(pid)) => {
                eprintln!("process {pid} has ended");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        before = now;
    }
}

/// The bytes of a range, `None` where nothing is shown.
fn look(inspection: &Inspection, range: &Range<usize>) -> Vec<Option<u8>> {
    let mut seen = Vec::with_capacity(range.len());
    while seen.len() < range.len() {
        let at = range.start + seen.len();
        // To the end, or as far as it goes.
        let mut bytes = vec![0; range.end - at];
        let (count, hole) = match inspection.read(at, &mut bytes) {
            Ok(()) => (bytes.len(), 0),
            Err(Error::Hole(hole)) if hole > at && inspection.read(at, &mut bytes[..hole - at]).is_ok() => {
                (hole - at, 0)
            }
            Err(_) => (0, (at + 1).next_multiple_of(4096).min(range.end) - at),
        };
        seen.extend(bytes.into_iter().take(count).map(Some));
        seen.extend(std::iter::repeat_n(None, hole));
    }
    seen
}

fn print_line(out: &mut impl io::Write, address: usize, line: &[Option<u8>]) -> io::Result<()> {
    write!(out, "{address:016x} ")?;
    for index in 0..LINE {
        if index % 8 == 0 {
            write!(out, " ")?;
        }
        match line.get(index) {
            Some(Some(byte)) => write!(out, "{byte:02x} ")?,
            Some(None) => write!(out, "-- ")?,
            None => write!(out, "   ")?,
        }
    }
    let letter = |byte: &Option<u8>| match byte {
        Some(byte @ 0x20..=0x7e) => char::from(*byte),
        Some(_) => '.',
        None => ' ',
    };
    writeln!(out, " |{}|", line.iter().map(letter).collect::<String>())
}

/// The signals that end a program: memory is given back first.
struct Signals(libc::sigset_t);

impl Signals {
    fn hold_back() -> Self {
        // SAFETY: plain calls on a local set.
        unsafe {
            let mut set = core::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
                libc::sigaddset(&mut set, signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &set, core::ptr::null_mut());
            Self(set)
        }
    }

    /// Waits for one of them.
    fn came_within(&self, seconds: f64) -> bool {
        let time = std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let limit = libc::timespec {
            tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        // SAFETY: plain call on live variables.
        unsafe { libc::sigtimedwait(&self.0, core::ptr::null_mut(), &limit) > 0 }
    }
}
