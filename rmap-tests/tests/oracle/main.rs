//! Random programs in an exporter with several threads, checked against a model and against the kernel.
//!
//! After each step some pages are looked at in three ways: as the model has them, as `process_vm_readv` reads
//! them from the exporter, and through attachments of other processes. All three must agree. Attachments are
//! made and dropped at random moments; one over everything lives from the first step to the last.
//!
//! A program that fails is made as short as possible and printed, with the seed.

mod model;
mod program;
mod world;

use program::{Op, program};
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use std::time::Instant;
use world::World;

/// Steps of a program.
const STEPS: usize = 100;
/// Programs in a run that is no soak.
const PROGRAMS: u32 = 30;

fn run(ops: &[Op]) {
    let mut world = World::new();
    for op in ops {
        world.step(op);
    }
    world.end();
}

fn search(seed: u64, programs: u32, steps: usize) {
    let config = Config {
        cases: programs,
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let outcome = TestRunner::new_with_rng(config, random).run(&program(steps), |ops| {
        run(&ops);
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, ops)) => {
            let text: Vec<String> = ops.iter().map(|op| format!("    {op:?},")).collect();
            panic!(
                "seed {seed}: {why}\nthe shortest program found:\n{}",
                text.join("\n")
            );
        }
        Err(other) => panic!("seed {seed}: {other}"),
    }
}

#[test]
fn random_programs() {
    let seed = rmap_tests::seed();
    let Some(time) = rmap_tests::soak() else {
        return search(seed, PROGRAMS, STEPS);
    };
    let start = Instant::now();
    for number in 0.. {
        if start.elapsed() >= time {
            break;
        }
        search(seed.wrapping_add(number), 10, 4 * STEPS);
    }
}

#[test]
fn long_programs() {
    search(rmap_tests::seed().wrapping_add(1000), 2, 10 * STEPS);
}
