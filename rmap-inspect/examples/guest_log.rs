//! Reads the kernel log of a virtual machine out of the memory of the QEMU that runs it, while it runs.
//!
//! `guest_log PID`: the machine needs no agent and is not asked; the one who looks needs the right to trace the QEMU, no more. Its memory is
//! mapped by the module `rmap`, or from the descriptor of a `memory-backend-memfd` with `share=on`; see [`rmap_inspect`].
//!
//! An x86-64 Linux describes its log for crash dumps, in a page of text ("vmcoreinfo"): where it is, and how its structures are laid out. So
//! nothing need be known about that kernel. Machines of up to 2816 MiB are understood: their physical addresses are offsets into their memory.

use procfs::process::MMPermissions;
use rmap_inspect::{Inspection, Way};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io;

type Result<T> = core::result::Result<T, Box<dyn std::error::Error>>;

const PAGE: usize = 4096;

/// Above this QEMU's machines have no memory below 4 GiB, and the rest elsewhere.
const LARGEST: usize = 2816 << 20;

/// The memory of a machine, by its physical addresses.
struct Machine {
    memory: Inspection,
    base: usize,
    size: usize,
}

impl Machine {
    /// Of the QEMU `pid`: the largest of its mappings but for code that QEMU itself makes.
    fn open(pid: i32) -> Result<Self> {
        let maps = procfs::process::Process::new(pid)?.maps()?;
        let ranges = maps.into_iter().filter_map(|map| {
            let usable =
                map.perms.contains(MMPermissions::WRITE) && !map.perms.contains(MMPermissions::EXECUTE);
            let (start, end) = (usize::try_from(map.address.0), usize::try_from(map.address.1));
            usable.then_some(start.ok()?..end.ok()?)
        });
        let range = ranges.max_by_key(|range| range.len()).ok_or("it has no memory")?;
        if range.len() > LARGEST {
            return Err("the machine has more than 2816 MiB of memory".into());
        }
        let memory = Inspection::open(pid, range.clone(), false)?;
        let how = match memory.pieces().first().map(|piece| piece.way) {
            Some(Way::Kernel) => "mapped through /dev/rmap",
            Some(Way::Descriptor) => "mapped from its descriptor",
            _ => "moved to a memfd for now",
        };
        eprintln!("{} MiB of memory, {how}", range.len() >> 20);
        Ok(Self { memory, base: range.start, size: range.len() })
    }

    fn read(&self, physical: u64, bytes: &mut [u8]) -> Result<()> {
        let offset = usize::try_from(physical)?;
        if offset.checked_add(bytes.len()).is_none_or(|end| end > self.size) {
            return Err(format!("no memory at physical address {physical:#x}").into());
        }
        Ok(self.memory.read(self.base + offset, bytes)?)
    }

    fn word(&self, physical: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.read(physical, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The page that the kernel has written for crash dumps.
    fn description(&self) -> Result<Description> {
        for page in (0..self.size as u64).step_by(PAGE) {
            let mut text = [0; PAGE];
            self.read(page, &mut text[..10])?;
            if &text[..10] != b"OSRELEASE=" {
                continue;
            }
            self.read(page, &mut text)?;
            let text = String::from_utf8_lossy(&text);
            let words: HashMap<String, String> = text
                .trim_end_matches('\0')
                .lines()
                .filter_map(|line| line.split_once('='))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            // There may be old ones, of kernels that ran before.
            if words.contains_key("SYMBOL(prb)") && words.contains_key("NUMBER(phys_base)") {
                return Ok(Description(words));
            }
        }
        Err("no kernel found that describes itself (a Linux of 5.10 or newer, with CONFIG_VMCORE_INFO)"
            .into())
    }
}

/// What the kernel says about itself.
struct Description(HashMap<String, String>);

impl Description {
    fn value(&self, key: &str) -> Result<&str> {
        self.0.get(key).map(String::as_str).ok_or_else(|| format!("the kernel does not tell {key}").into())
    }

    fn symbol(&self, name: &str) -> Result<u64> {
        Ok(u64::from_str_radix(self.value(&format!("SYMBOL({name})"))?, 16)?)
    }

    fn size(&self, name: &str) -> Result<u64> {
        Ok(self.value(&format!("SIZE({name})"))?.parse()?)
    }

    fn offset(&self, member: &str) -> Result<u64> {
        Ok(self.value(&format!("OFFSET({member})"))?.parse()?)
    }
}

/// The memory of the machine, by the addresses of its kernel.
struct Kernel {
    machine: Machine,
    description: Description,
    /// Physical address of its page table.
    table: u64,
    levels: u32,
}

impl Kernel {
    fn find(machine: Machine) -> Result<Self> {
        /// Where an x86-64 kernel believes that physical address 0 is, if it was not moved.
        const START: u64 = 0xffff_ffff_8000_0000;
        let description = machine.description()?;
        let moved: i64 = description.value("NUMBER(phys_base)")?.parse()?;
        let table = description.symbol("init_top_pgt")?.wrapping_sub(START).wrapping_add_signed(moved);
        let levels =
            if description.value("NUMBER(pgtable_l5_enabled)").is_ok_and(|on| on == "1") { 5 } else { 4 };
        Ok(Self { machine, description, table, levels })
    }

    /// Walks the page table.
    fn physical(&self, address: u64) -> Result<u64> {
        const FRAME: u64 = 0x000f_ffff_ffff_f000;
        let mut at = self.table;
        for level in (0..self.levels).rev() {
            let shift = 12 + 9 * level;
            let entry = self.machine.word(at + (address >> shift & 511) * 8)?;
            if entry & 1 == 0 {
                return Err(format!("the kernel has nothing at {address:#x}").into());
            }
            let is_leaf = level == 0 || entry & 1 << 7 != 0;
            if is_leaf {
                let within = (1 << shift) - 1;
                return Ok(entry & FRAME & !within | address & within);
            }
            at = entry & FRAME;
        }
        Err("a page table without pages".into())
    }

    fn read(&self, mut address: u64, bytes: &mut [u8]) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = (PAGE - address as usize % PAGE).min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            self.machine.read(self.physical(address)?, part)?;
            address = address.wrapping_add(len as u64);
            rest = after;
        }
        Ok(())
    }

    fn word(&self, address: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn half(&self, address: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// The ring that `printk` writes to: records with numbers, and text that they point to.
struct Log<'a> {
    kernel: &'a Kernel,
    records: u64,
    infos: u64,
    text: u64,
    /// Powers of two.
    count: u64,
    size: u64,
    /// The numbers of the oldest and the newest record.
    range: (u64, u64),
}

/// What is above it in a record's word is its state.
const NUMBER: u64 = u64::MAX >> 2;

impl<'a> Log<'a> {
    fn find(kernel: &'a Kernel) -> Result<Self> {
        let about = &kernel.description;
        let ring = kernel.word(kernel.description.symbol("prb")?)?;
        let records = ring + about.offset("printk_ringbuffer.desc_ring")?;
        let data = ring + about.offset("printk_ringbuffer.text_data_ring")?;
        let counter = about.offset("atomic_long_t.counter")?;
        let power = |address| Ok::<_, Box<dyn std::error::Error>>(1 << kernel.half(address)?.min(32));
        let number = |member| {
            let word = kernel.word(records + about.offset(member)? + counter)?;
            Ok::<_, Box<dyn std::error::Error>>(word & NUMBER)
        };
        Ok(Self {
            kernel,
            records: kernel.word(records + about.offset("prb_desc_ring.descs")?)?,
            infos: kernel.word(records + about.offset("prb_desc_ring.infos")?)?,
            text: kernel.word(data + about.offset("prb_data_ring.data")?)?,
            count: power(records + about.offset("prb_desc_ring.count_bits")?)?,
            size: power(data + about.offset("prb_data_ring.size_bits")?)?,
            range: (number("prb_desc_ring.tail_id")?, number("prb_desc_ring.head_id")?),
        })
    }

    /// The record with this number, and when it was made, if it is whole.
    fn record(&self, number: u64) -> Result<Option<(u64, Vec<u8>)>> {
        let (kernel, about) = (self.kernel, &self.kernel.description);
        let slot = number % self.count;
        let record = self.records + slot * about.size("prb_desc")?;
        let state = record + about.offset("prb_desc.state_var")? + about.offset("atomic_long_t.counter")?;
        // Committed or finished, and still this one.
        let is_it = |word: u64| matches!(word >> 62, 1 | 2) && word & NUMBER == number;
        if !is_it(kernel.word(state)?) {
            return Ok(None);
        }
        let place = record + about.offset("prb_desc.text_blk_lpos")?;
        let begin = kernel.word(place + about.offset("prb_data_blk_lpos.begin")?)?;
        let next = kernel.word(place + about.offset("prb_data_blk_lpos.next")?)?;
        let info = self.infos + slot * about.size("printk_info")?;
        let time = kernel.word(info + about.offset("printk_info.ts_nsec")?)?;
        let mut len = [0; 2];
        kernel.read(info + about.offset("printk_info.text_len")?, &mut len)?;
        // Odd positions stand for "no text".
        let mut text = Vec::new();
        if begin % 2 == 0 {
            // A block that would run over the end lies at the beginning.
            let wraps = begin / self.size != next.wrapping_sub(1) / self.size;
            let start = if wraps { 0 } else { begin % self.size };
            // The number of the record comes first.
            let room = self.size.saturating_sub(start + 8);
            text.resize(usize::from(u16::from_le_bytes(len)).min(usize::try_from(room)?), 0);
            kernel.read(self.text + start + 8, &mut text)?;
        }
        // The kernel runs on, and may have used the place for another.
        Ok(is_it(kernel.word(state)?).then_some((time, text)))
    }

    fn print(&self, out: &mut impl io::Write) -> Result<()> {
        let (oldest, newest) = self.range;
        let count = newest.wrapping_sub(oldest) & NUMBER;
        for index in 0..=count.min(self.count) {
            let Some((time, text)) = self.record(oldest.wrapping_add(index) & NUMBER)? else { continue };
            let text: Cow<'_, str> = String::from_utf8_lossy(&text);
            let (seconds, micros) = (time / 1_000_000_000, time / 1000 % 1_000_000);
            writeln!(out, "[{seconds:5}.{micros:06}] {}", text.trim_end())?;
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let pid = std::env::args().nth(1).ok_or("usage: guest_log PID")?.parse()?;
    let kernel = Kernel::find(Machine::open(pid)?)?;
    eprintln!("Linux {}", kernel.description.value("OSRELEASE")?);
    let printed = Log::find(&kernel)?.print(&mut io::stdout().lock());
    kernel.machine.memory.close()?;
    printed
}
