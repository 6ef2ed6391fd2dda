//! The interleavings of threads that attach and detach, and of the thread that gives windows back, over the gate that the library uses.
//!
//! loom, for the memory orderings are what could be wrong. The source is the library's own; only atomics are replaced.

use atomics::{AtomicI32, AtomicUsize, Ordering};
use gate::Gate;
use loom::cell::UnsafeCell;
use loom::thread;
use std::sync::Arc;

/// loom takes sequentially consistent accesses for weaker ones, but knows the fences. So one such fence stands in for the order
/// between counting in and looking at the gate; on the other side, the code has it itself.
mod atomics {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{Ordering, fence};

    pub(crate) const PATIENCE: usize = 1;

    fn for_load(order: Ordering) -> Ordering {
        if order == Ordering::SeqCst { Ordering::Acquire } else { order }
    }

    #[derive(Debug)]
    pub(crate) struct AtomicUsize(loom::sync::atomic::AtomicUsize);

    impl AtomicUsize {
        pub(crate) fn new(value: usize) -> Self {
            Self(loom::sync::atomic::AtomicUsize::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> usize {
            self.0.load(for_load(order))
        }

        pub(crate) fn store(&self, value: usize, order: Ordering) {
            self.0.store(value, order);
        }

        pub(crate) fn swap(&self, value: usize, order: Ordering) -> usize {
            self.0.swap(value, order)
        }
    }

    #[derive(Debug)]
    pub(crate) struct AtomicI32(loom::sync::atomic::AtomicI32);

    impl AtomicI32 {
        pub(crate) fn new(value: i32) -> Self {
            Self(loom::sync::atomic::AtomicI32::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> i32 {
            self.0.load(for_load(order))
        }

        pub(crate) fn fetch_add(&self, value: i32, order: Ordering) -> i32 {
            let before = self.0.fetch_add(value, order);
            if order == Ordering::SeqCst {
                fence(Ordering::SeqCst);
            }
            before
        }

        pub(crate) fn fetch_sub(&self, value: i32, order: Ordering) -> i32 {
            self.0.fetch_sub(value, order)
        }
    }
}

#[path = "../src/engine/clone/gate.rs"]
mod gate;

/// A table of one window, and the window.
struct World {
    gate: Gate,
    listed: AtomicUsize,
    counts: [AtomicI32; 2],
    /// loom fails if somebody reads it while it is unmapped.
    memory: UnsafeCell<bool>,
}

// SAFETY: loom looks who uses the memory when.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            gate: Gate::from(AtomicUsize::new(0)),
            listed: AtomicUsize::new(1),
            counts: [AtomicI32::new(0), AtomicI32::new(0)],
            memory: UnsafeCell::new(true),
        })
    }

    /// Attaches, reads and detaches; false if there is no window, or nobody knows at the moment.
    fn use_it(&self, shard: usize) -> bool {
        let Some(pass) = self.gate.pass() else { return false };
        if self.listed.load(Ordering::Relaxed) == 0 || !self.gate.count_in(pass, &self.counts[shard]) {
            return false;
        }
        // SAFETY: loom looks whether anybody writes at the same time.
        assert!(self.memory.with(|mapped| unsafe { *mapped }), "attached to what is not mapped");
        assert!(gate::count_out(&self.counts[shard]), "detached before");
        true
    }

    /// Gives the window back if nobody is attached.
    fn give_back(&self) -> bool {
        let shut = self.gate.shut();
        let unused = gate::total(self.counts.iter()) == 0;
        if unused {
            self.listed.store(0, Ordering::Relaxed);
        }
        self.gate.open(shut);
        if unused {
            // SAFETY: loom looks whether anybody reads at the same time.
            self.memory.with_mut(|mapped| unsafe { *mapped = false });
        }
        unused
    }
}

/// Goes through what up to three preemptions can do.
fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

#[test]
fn nothing_is_unmapped_under_who_is_attached() {
    model(|| {
        let world = World::new();
        let users: Vec<_> = (0..2)
            .map(|shard| {
                let world = Arc::clone(&world);
                thread::spawn(move || world.use_it(shard))
            })
            .collect();
        let gone = world.give_back();
        let used = users.into_iter().map(|user| user.join().unwrap()).filter(|used| *used).count();
        assert_eq!(gate::total(world.counts.iter()), 0, "counts that are left");
        if !gone {
            assert!(used > 0 || world.give_back(), "kept for nobody");
        }
    });
}

#[test]
fn one_thread_detaches_what_another_has_attached() {
    model(|| {
        let world = World::new();
        // Two attachments of one thread; another ends one of them, and must ask for it.
        for _ in 0..2 {
            let pass = world.gate.pass().unwrap();
            assert!(world.gate.count_in(pass, &world.counts[0]));
        }
        let other = {
            let world = Arc::clone(&world);
            thread::spawn(move || assert!(!gate::count_out(&world.counts[1]), "nothing is counted there"))
        };
        let gone = world.give_back();
        assert!(!gone, "two are attached");
        other.join().unwrap();
        assert_eq!(gate::total(world.counts.iter()), 2);
    });
}

#[test]
fn what_is_read_is_of_one_time() {
    model(|| {
        let gate = Arc::new((Gate::from(AtomicUsize::new(0)), AtomicUsize::new(1), AtomicUsize::new(1)));
        let reader = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || {
                let (gate, one, two) = &*gate;
                let Some(pass) = gate.pass() else { return };
                let (one, two) = (one.load(Ordering::Relaxed), two.load(Ordering::Relaxed));
                if gate.is_valid(pass) {
                    assert_eq!(one, two, "a mixture");
                }
            })
        };
        let (gate, one, two) = &*gate;
        for value in 2..4 {
            let shut = gate.shut();
            // Within another change, as when a report of the kernel's is seen to.
            let within = gate.shut();
            one.store(value, Ordering::Relaxed);
            gate.open(within);
            two.store(value, Ordering::Relaxed);
            gate.open(shut);
        }
        reader.join().unwrap();
    });
}

/// Windows by what they show, in the order of that, as `windows.rs` has them: rows that are shifted, tables that are outgrown, and slots
/// that another window gets.
struct Cache {
    gate: Gate,
    /// Which table is in use: the other is too small, and stays for who is still in it.
    table: AtomicUsize,
    tables: [Table; 2],
    counts: [AtomicI32; 2],
    /// What the window of each slot shows; 0 while there is none.
    memory: [UnsafeCell<usize>; 2],
}

struct Table {
    len: AtomicUsize,
    /// What is shown, and the slot.
    rows: [[AtomicUsize; 2]; 2],
}

// SAFETY: loom looks who uses the memory when.
unsafe impl Sync for Cache {}
// SAFETY: as above.
unsafe impl Send for Cache {}

impl Cache {
    /// With a window in slot 0 that shows 5.
    fn new() -> Arc<Self> {
        let zero = || AtomicUsize::new(0);
        let table = || Table { len: zero(), rows: [[zero(), zero()], [zero(), zero()]] };
        let cache = Self {
            gate: Gate::from(zero()),
            table: zero(),
            tables: [table(), table()],
            counts: [AtomicI32::new(0), AtomicI32::new(0)],
            memory: [UnsafeCell::new(5), UnsafeCell::new(0)],
        };
        cache.tables[0].insert(0, 5, 0);
        Arc::new(cache)
    }

    /// Attaches, reads and detaches; false if there is no such window, or nobody knows at the moment.
    fn use_it(&self, shown: usize) -> bool {
        let Some(pass) = self.gate.pass() else { return false };
        let table = &self.tables[self.table.load(Ordering::Relaxed)];
        let len = table.len.load(Ordering::Relaxed);
        let row = table.rows.iter().take(len).find(|row| row[0].load(Ordering::Relaxed) == shown);
        let Some(slot) = row.map(|row| row[1].load(Ordering::Relaxed)) else { return false };
        if !self.gate.count_in(pass, &self.counts[slot]) {
            return false;
        }
        // SAFETY: loom looks whether anybody writes at the same time.
        let found = self.memory[slot].with(|memory| unsafe { *memory });
        assert_eq!(found, shown, "attached to another window");
        assert!(gate::count_out(&self.counts[slot]), "detached before");
        true
    }

    fn add(&self, index: usize, shown: usize, slot: usize) {
        // SAFETY: loom looks whether anybody reads at the same time.
        self.memory[slot].with_mut(|memory| unsafe { *memory = shown });
        let shut = self.gate.shut();
        self.tables[self.table.load(Ordering::Relaxed)].insert(index, shown, slot);
        self.gate.open(shut);
    }

    /// Gives up the window in the first row if nobody is attached to it.
    fn give_up_first(&self, slot: usize) -> bool {
        let shut = self.gate.shut();
        let unused = gate::total([&self.counts[slot]].into_iter()) == 0;
        if unused {
            self.tables[self.table.load(Ordering::Relaxed)].remove_first();
        }
        self.gate.open(shut);
        if unused {
            // SAFETY: loom looks whether anybody reads at the same time.
            self.memory[slot].with_mut(|memory| unsafe { *memory = 0 });
        }
        unused
    }

    /// Has a larger table used.
    fn grow(&self) {
        let (small, large) = (&self.tables[0], &self.tables[1]);
        for (from, to) in small.rows.iter().zip(&large.rows) {
            for (from, to) in from.iter().zip(to) {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        large.len.store(small.len.load(Ordering::Relaxed), Ordering::Relaxed);
        let shut = self.gate.shut();
        self.table.store(1, Ordering::Relaxed);
        self.gate.open(shut);
    }
}

impl Table {
    fn copy(&self, from: usize, to: usize) {
        for (from, to) in self.rows[from].iter().zip(&self.rows[to]) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn insert(&self, index: usize, shown: usize, slot: usize) {
        let len = self.len.load(Ordering::Relaxed);
        self.len.store(len + 1, Ordering::Relaxed);
        for at in (index..len).rev() {
            self.copy(at, at + 1);
        }
        self.rows[index][0].store(shown, Ordering::Relaxed);
        self.rows[index][1].store(slot, Ordering::Relaxed);
    }

    fn remove_first(&self) {
        let len = self.len.load(Ordering::Relaxed);
        for at in 1..len {
            self.copy(at, at - 1);
        }
        self.len.store(len - 1, Ordering::Relaxed);
    }
}

#[test]
fn a_row_that_is_shifted_is_still_its_window() {
    model(|| {
        let cache = Cache::new();
        let user = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.use_it(5))
        };
        // In front of the other.
        cache.add(0, 3, 1);
        let used = cache.use_it(3);
        assert!(used);
        user.join().unwrap();
        assert!(cache.use_it(5));
        assert_eq!(gate::total(cache.counts.iter()), 0, "counts that are left");
    });
}

#[test]
fn nobody_attaches_to_the_next_window_of_a_slot() {
    model(|| {
        let cache = Cache::new();
        let user = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.use_it(5))
        };
        if cache.give_up_first(0) {
            // The user may be late with its count, which is then on a slot of another.
            cache.add(0, 7, 0);
            assert!(cache.use_it(7));
        }
        user.join().unwrap();
        assert_eq!(gate::total(cache.counts.iter()), 0, "counts that are left");
    });
}

#[test]
fn a_table_that_is_outgrown_leads_nowhere() {
    model(|| {
        let cache = Cache::new();
        let user = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.use_it(5))
        };
        cache.grow();
        let gone = cache.give_up_first(0);
        let used = user.join().unwrap();
        assert!(gone || used || cache.give_up_first(0), "kept for nobody");
        assert_eq!(gate::total(cache.counts.iter()), 0, "counts that are left");
    });
}
