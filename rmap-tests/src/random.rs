//! A small random generator with seeds that can be told, and the length of the random tests.

use std::time::Duration;

/// splitmix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.number() % bound as u64).expect("below a usize")
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// The numbers below `count` in random order.
    pub fn order(&mut self, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..count).collect();
        for at in (1..count).rev() {
            all.swap(at, self.below(at + 1));
        }
        all
    }
}

/// The seed of the random tests: fixed, but for `RMAP_TEST_SEED` and for a soak, where time decides.
pub fn seed() -> u64 {
    if let Some(text) = std::env::var_os("RMAP_TEST_SEED") {
        return text.to_str().and_then(|text| text.parse().ok()).expect("RMAP_TEST_SEED is a number");
    }
    if soak().is_some() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        return now.expect("after 1970").as_nanos() as u64;
    }
    1
}

/// How often a test does something: so many times, and more in a soak; fewer with `RMAP_TEST_DIVISOR`, on a slow machine, but once at least.
pub fn rounds(normal: usize) -> usize {
    let divisor = std::env::var("RMAP_TEST_DIVISOR").ok();
    let divisor: usize = divisor.map_or(1, |text| text.parse().expect("RMAP_TEST_DIVISOR is a number"));
    (normal * factor() / divisor.max(1)).max(1)
}

/// The factor of a soak on rounds and on time limits.
pub(crate) fn factor() -> usize {
    const SOAK: usize = 10;
    if soak().is_some() { SOAK } else { 1 }
}

/// How long a soak runs, if this is one.
pub fn soak() -> Option<Duration> {
    let text = std::env::var("RMAP_SOAK_SECONDS").ok()?;
    Some(Duration::from_secs(text.parse().expect("RMAP_SOAK_SECONDS is a number")))
}
