//! Follows a data structure in another process while that runs.
//!
//! Without arguments it starts a process of its own to look into: one that counts, and appends to a linked list now and then. With
//! `PID ADDRESS` it follows a list of the same shape there.

use rmap_inspect::{Error, Inspection};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// As C has it: a number, and where the next one is.
#[repr(C)]
#[derive(Debug)]
struct Node {
    number: AtomicUsize,
    next: AtomicUsize,
}

impl Node {
    fn lasting() -> &'static Self {
        Box::leak(Box::new(Self { number: AtomicUsize::new(0), next: AtomicUsize::new(0) }))
    }
}

/// What is looked into.
fn count() -> ! {
    let (first, mut last) = (Node::lasting(), None::<&Node>);
    println!("{}", core::ptr::from_ref(first).addr());
    loop {
        for _ in 0..5_000_000 {
            first.number.fetch_add(1, Ordering::Relaxed);
        }
        let node = Node::lasting();
        node.number.store(first.number.load(Ordering::Relaxed), Ordering::Relaxed);
        let address = core::ptr::from_ref(node).addr();
        last.unwrap_or(first).next.store(address, Ordering::Release);
        last = Some(node);
    }
}

/// The numbers of the list that begins at `address`.
fn walk(heap: &Inspection, mut address: usize) -> Result<Vec<usize>, Error> {
    let mut numbers = Vec::new();
    while address != 0 {
        let mut node = [0; size_of::<Node>()];
        heap.read(address, &mut node)?;
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&node[at..at + 8]);
            usize::from_ne_bytes(bytes)
        };
        numbers.push(word(0));
        address = word(8);
    }
    Ok(numbers)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["count"] {
        count();
    }
    let mut child = None;
    let (pid, address) = match arguments.as_slice() {
        [pid, address] => (pid.parse()?, address.parse()?),
        _ => {
            let mut process =
                Command::new(std::env::current_exe()?).arg("count").stdout(Stdio::piped()).spawn()?;
            let mut line = String::new();
            BufReader::new(process.stdout.take().ok_or("no output")?).read_line(&mut line)?;
            let pid = process.id().cast_signed();
            child = Some(process);
            (pid, line.trim().parse()?)
        }
    };
    // The heap around the first node: malloc puts the others near it.
    let heap = Inspection::open(pid, address..address + (64 << 10), false)?;
    for _ in 0..10 {
        let numbers = walk(&heap, address)?;
        println!(
            "counts {:>12}; {} marks, the last at {:?}",
            numbers[0],
            numbers.len() - 1,
            numbers[1..].last()
        );
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    heap.close()?;
    if let Some(mut child) = child {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}
