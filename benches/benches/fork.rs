//! What `fork` costs a process whose memory importers have touched, by `RMAP_FORK`.

use rmap_bench::{
    Run, Samples, Table,
    measure::{once, size},
    memory::{self, touch},
};
use rmap_tests::{Actor, PAGE, Setup};

/// Both kinds of private memory, and what the table calls them.
const KINDS: [(bool, &str); 2] = [(false, "4 KiB"), (true, "huge asked for")];
const POLICIES: [&str; 3] = ["copy", "share", "drop"];

fn main() {
    let Some(run) = Run::start("fork") else { return };
    let columns = [
        "size",
        "pages",
        "fork, nothing attached",
        "copy",
        "touched again",
        "share",
        "drop",
        "copy, for each GiB",
    ];
    let mut table =
        Table::new("fork of a process with memory that an importer has touched, by RMAP_FORK", &columns);
    for len in [256 << 20, 1 << 30] {
        for (huge, pages) in KINDS {
            let mut costs = POLICIES.map(|policy| Costs::measure(&run, policy, len, huge)).into_iter();
            let [Some(copy), Some(share), Some(dropped)] = [costs.next(), costs.next(), costs.next()] else {
                continue;
            };
            let gib = len as f64 / f64::from(1 << 30);
            let more = copy.attached.median() - copy.private.median();
            table.row([
                size(len),
                pages.to_owned(),
                copy.private.as_time(),
                copy.attached.as_time(),
                copy.again.as_time(),
                share.attached.as_time(),
                dropped.attached.as_time(),
                rmap_bench::measure::time(more / gib),
            ]);
        }
    }
    table.note("All threads of the parent stand still for most of the time that copy takes. Touched again: the importer's next look at all of it.");
    println!("{table}");
}

/// Times of forks and touches.
#[derive(Debug, Default)]
struct Costs {
    private: Samples,
    attached: Samples,
    again: Samples,
}

fn fork(actor: &mut Actor) -> f64 {
    actor.ok("cost fork 0 0").parse().expect("nanoseconds")
}

impl Costs {
    fn measure(run: &Run, policy: &str, len: usize, huge: bool) -> Self {
        let mut costs = Self::default();
        let mut exporter = run.stage.actor_with(&Setup::with_env("RMAP_FORK", policy));
        let address = exporter.anon(len);
        exporter.madvise(address, len, memory::advice(huge));
        exporter.fill_same(address, len / PAGE, 1);
        let apid = run.library.get(exporter.make_all()).expect("xpmem_get");
        let here = run.library.attach(apid, address, len).expect("xpmem_attach");
        for round in 0..=run.scaled(3, 11) {
            // The child of the last fork has made the pages of both; a store makes them the parent's again.
            exporter.fill_same(address, len / PAGE, 1);
            let private = fork(&mut exporter);
            exporter.fill_same(address, len / PAGE, 1);
            let again = once(|| _ = touch(here, len));
            let attached = fork(&mut exporter);
            if round > 0 {
                costs.private.push(private);
                costs.again.push(again);
                costs.attached.push(attached);
            }
        }
        run.library.release(apid).expect("xpmem_release");
        costs
    }
}
