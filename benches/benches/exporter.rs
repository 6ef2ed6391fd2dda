//! What the library costs the process whose memory is shared.

use rmap_bench::{
    Run, Samples, Table, interleaved,
    measure::{Way, once, size},
    memory::touch,
};
use rmap_tests::{Actor, PAGE, maps, tasks};
use std::cell::RefCell;

/// What is adopted, and given back.
const PIECE: usize = 64 << 10;

fn main() {
    let Some(run) = Run::start("exporter") else { return };
    nobody_attached(&run);
    segments(&run);
    mappings(&run, "adopted extents elsewhere", true);
    mappings(&run, "other mappings, nothing of them adopted", false);
}

fn cost(actor: &mut Actor, command: &str) -> f64 {
    actor.ok(&format!("cost {command}")).parse().expect("nanoseconds")
}

/// The usual costs of memory in three processes.
fn nobody_attached(run: &Run) {
    const ADOPTED: usize = 64 << 20;
    let [plain, mut made, mut attached] = [(); 3].map(|()| run.stage.actor());
    let mut threads = vec![tasks(plain.pid()).len()];
    made.make_all();
    threads.push(tasks(made.pid()).len());
    let memory = attached.anon(ADOPTED);
    attached.fill_same(memory, ADOPTED / PAGE, 1);
    let segid = attached.make_all();
    let apid = run.library.get(segid).expect("xpmem_get");
    let here = run.library.attach(apid, memory, ADOPTED).expect("xpmem_attach");
    touch(here, ADOPTED);
    threads.push(tasks(attached.pid()).len());
    let columns = ["", "no call of the library", "after xpmem_make", "attached, 64 MiB adopted"];
    let mut table = Table::new(
        "Memory of the exporter's that nobody has attached (time, and ratio to the first)",
        &columns,
    );
    let actors = [plain, made, attached].map(RefCell::new);
    let rows = [
        ("malloc + free of 64 bytes", "malloc 64 200000"),
        ("malloc + free of 1 MiB", "malloc 1048576 2000"),
        ("mmap + store + munmap, 4 KiB", "map 4096 2000"),
        ("mmap + stores + munmap, 1 MiB", "map 1048576 20"),
        ("page fault", "fault 4194304 4"),
    ];
    for (name, command) in rows {
        let mut ways: Vec<Way<'_>> = actors
            .iter()
            .map(|actor| Box::new(move || cost(&mut actor.borrow_mut(), command)) as Way<'_>)
            .collect();
        let samples = interleaved(run.scaled(41, 301), &mut ways);
        let cells = [samples[0].as_time(), samples[1].over(&samples[0]).as_ratio()];
        table.row([name.into()].into_iter().chain(cells).chain([samples[2].over(&samples[0]).as_ratio()]));
    }
    table.row(["threads".into()].into_iter().chain(threads.iter().map(usize::to_string)));
    println!("{table}");
    run.library.release(apid).expect("xpmem_release");
}

/// Costs of a piece of memory that comes, is attached, and goes.
#[derive(Debug, Default)]
struct Life {
    private: Samples,
    attach: Samples,
    adoption: Samples,
    munmap: Samples,
}

impl Life {
    const COLUMNS: [&'static str; 4] =
        ["munmap, not adopted", "attach", "first touch: adoption", "munmap, adopted"];

    fn measure(run: &Run, exporter: &mut Actor, apid: i64) -> Self {
        let mut life = Self::default();
        let address = exporter.place(PIECE);
        for round in 0..=run.scaled(21, 201) {
            exporter.anon_at(address, PIECE);
            exporter.fill_same(address, PIECE / PAGE, 1);
            let private = cost(exporter, &format!("munmap {address:#x} {PIECE}"));
            exporter.anon_at(address, PIECE);
            exporter.fill_same(address, PIECE / PAGE, 1);
            let mut here = 0;
            let attach = once(|| {
                here = run.library.attach(apid, address, PIECE).expect("xpmem_attach");
            });
            let adoption = once(|| _ = touch(here, PIECE));
            let munmap = cost(exporter, &format!("munmap {address:#x} {PIECE}"));
            run.library.detach(here).expect("xpmem_detach");
            if round > 0 {
                life.private.push(private);
                life.attach.push(attach);
                life.adoption.push(adoption);
                life.munmap.push(munmap);
            }
        }
        life
    }

    fn all(&self) -> [&Samples; 4] {
        [&self.private, &self.attach, &self.adoption, &self.munmap]
    }

    fn cells(&self) -> [String; 4] {
        self.all().map(Samples::as_time)
    }
}

/// What grows, and by how much: the last row over the first.
fn growth(table: &mut Table, lives: &[Life], what: &str) {
    let [Some(first), Some(last)] = [lives.first(), lives.last()] else { return };
    let names = ["munmap, not adopted (control)", "attach", "adoption", "munmap, adopted"];
    let words: Vec<String> = names
        .into_iter()
        .zip(first.all().into_iter().zip(last.all()))
        .map(|(name, (first, last))| format!("{name} {:.1}", last.median() / first.median()))
        .collect();
    table.note(format!("With the most {what}, times as long as with the fewest: {}", words.join("; ")));
}

fn table(title: &str, what: &str) -> Table {
    let columns: Vec<&str> = [what].into_iter().chain(Life::COLUMNS).collect();
    Table::new(format!("{} of memory, {title}", size(PIECE)), &columns)
}

/// The same with more and more segments.
fn segments(run: &Run) {
    let mut table = table("with more and more segments of the whole address space", "segments");
    let mut exporter = run.stage.actor();
    let apid = run.library.get(exporter.make_all()).expect("xpmem_get");
    let (mut lives, mut there) = (Vec::new(), 1);
    for count in [1, 10, 100, 1000] {
        while there < count {
            exporter.make_all();
            there += 1;
        }
        let life = Life::measure(run, &mut exporter, apid);
        table.row([count.to_string()].into_iter().chain(life.cells()));
        lives.push(life);
    }
    growth(&mut table, &lives, "segments");
    println!("{table}");
    run.library.release(apid).expect("xpmem_release");
}

/// The same with more and more mappings in the exporter that have nothing to do with it.
fn mappings(run: &Run, title: &str, adopted: bool) {
    let mut table = table(&format!("with more and more {title}"), "of them");
    let mut exporter = run.stage.actor();
    let apid = run.library.get(exporter.make_all()).expect("xpmem_get");
    let mut lives = Vec::new();
    const MOST: usize = 10_000;
    // Pages of two kinds by turns are as many mappings.
    let elsewhere = exporter.anon(MOST * PAGE);
    let mut here = 0;
    if adopted {
        exporter.fill_same(elsewhere, MOST, 1);
        here = run.library.attach(apid, elsewhere, MOST * PAGE).expect("xpmem_attach");
        touch(here, MOST * PAGE);
    }
    let before = maps(exporter.pid()).len();
    let mut there = 1;
    for count in [1, 100, 1000, MOST] {
        while there < count {
            exporter.mprotect(elsewhere + there * PAGE, PAGE, libc::PROT_READ);
            there += 2;
        }
        let life = Life::measure(run, &mut exporter, apid);
        let mapped = maps(exporter.pid()).len() - before + 1;
        table.row([mapped.to_string()].into_iter().chain(life.cells()));
        lives.push(life);
    }
    growth(&mut table, &lives, "mappings");
    println!("{table}");
    if adopted {
        run.library.detach(here).expect("xpmem_detach");
    }
    run.library.release(apid).expect("xpmem_release");
}
