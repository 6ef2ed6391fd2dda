//! Times, and what is said of many of them.

use rmap_tests::Random;
use std::time::{Duration, Instant};

/// Measurements of one thing: nanoseconds, or ratios.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds one.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The value below which this part of all lies.
    ///
    /// # Panics
    ///
    /// If there are none.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1).expect("a sample");
        let place = part * last as f64;
        let (below, above) = (place.floor() as usize, place.ceil() as usize);
        sorted[below] + (sorted[above] - sorted[below]) * place.fract()
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Each divided by its neighbour of the same round: what slows a whole round down drops out.
    pub fn over(&self, base: &Self) -> Self {
        Self(self.0.iter().zip(&base.0).map(|(value, base)| value / base).collect())
    }

    /// Median and quartiles, as times.
    pub fn as_time(&self) -> String {
        format!("{} [{}..{}]", time(self.median()), time(self.quantile(0.25)), time(self.quantile(0.75)))
    }

    /// Median and quartiles, as plain numbers.
    pub fn as_ratio(&self) -> String {
        let (low, high) = (self.quantile(0.25), self.quantile(0.75));
        format!("{:.3} [{low:.3}..{high:.3}]", self.median())
    }

    /// Median and quartiles of the rate, for so many bytes.
    pub fn as_rate(&self, bytes: usize) -> String {
        let rate = |nanoseconds: f64| bytes as f64 / nanoseconds;
        let (low, high) = (rate(self.quantile(0.75)), rate(self.quantile(0.25)));
        format!("{:.2} GB/s [{low:.2}..{high:.2}]", rate(self.median()))
    }
}

/// Nanoseconds in a unit that suits them.
pub fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        n if n < 1e3 => format!("{n:.1} ns"),
        n if n < 1e6 => format!("{:.2} us", n / 1e3),
        n if n < 1e9 => format!("{:.2} ms", n / 1e6),
        n => format!("{:.2} s", n / 1e9),
    }
}

/// A number of bytes in a unit that suits it.
pub fn size(bytes: usize) -> String {
    match bytes {
        b if b < 1 << 20 && b.is_multiple_of(1 << 10) => format!("{} KiB", b >> 10),
        b if b < 1 << 30 && b.is_multiple_of(1 << 20) => format!("{} MiB", b >> 20),
        b if b.is_multiple_of(1 << 30) => format!("{} GiB", b >> 30),
        b => format!("{b} B"),
    }
}

/// How long something takes, in nanoseconds.
pub fn once(act: impl FnOnce()) -> f64 {
    let start = Instant::now();
    act();
    start.elapsed().as_nanos() as f64
}

/// How long one of `count` calls takes, in nanoseconds.
pub fn per_call(count: usize, mut act: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..count {
        act();
    }
    start.elapsed().as_nanos() as f64 / count as f64
}

/// How many calls take about this long, by the fastest of a few tries: the first may have something to set up,
/// and others lose the core meanwhile.
pub fn calls_in(span: Duration, mut act: impl FnMut()) -> usize {
    const TRIES: usize = 4;
    let wanted = span.as_nanos() as f64;
    let mut count = 1;
    loop {
        let tries = (0..TRIES).map(|_| per_call(count, &mut act));
        let each = tries.fold(f64::INFINITY, f64::min).max(1.0);
        if each * count as f64 * 8.0 >= wanted {
            return ((wanted / each) as usize).max(1);
        }
        count *= 4;
    }
}

/// Something that is timed.
pub type Act<'a> = Box<dyn FnMut() + 'a>;

/// A way of doing something that gives its own time in nanoseconds.
pub type Way<'a> = Box<dyn FnMut() -> f64 + 'a>;

/// Measures several ways by turns, so that a slow moment of the machine meets all of them. Each round has another order, so that
/// none always follows the one that spoils the caches. One round before is not counted.
pub fn interleaved(rounds: usize, ways: &mut [Way<'_>]) -> Vec<Samples> {
    let mut samples = vec![Samples::default(); ways.len()];
    let mut order: Vec<usize> = (0..ways.len()).collect();
    let mut random = Random::new(1);
    for round in 0..=rounds {
        for place in (1..order.len()).rev() {
            order.swap(place, random.below(place + 1));
        }
        for &at in &order {
            let value = ways[at]();
            if round > 0 {
                samples[at].push(value);
            }
        }
    }
    samples
}
