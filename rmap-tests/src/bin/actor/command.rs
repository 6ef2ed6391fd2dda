//! Taking commands apart, and the shape of answers.

use crate::trap::Fault;

/// Why a command gave nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A system call failed.
    Errno(i32),
    /// An access got a signal.
    Fault(Fault),
    /// The test asked for something that does not exist.
    Usage(String),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What a command gives.
pub(crate) type Outcome = Result<String, Failure>;

/// An answer as a line.
pub(crate) fn text(outcome: Outcome) -> String {
    match outcome {
        Ok(words) => format!("ok {words}\n"),
        Err(Failure::Errno(errno)) => format!("errno {errno}\n"),
        Err(Failure::Fault(fault)) => {
            format!("fault {} {} {}\n", fault.signal, fault.code, fault.address.cast_signed())
        }
        Err(Failure::Usage(what)) => format!("usage {what}\n"),
    }
}

/// The words after the verb.
#[derive(Debug)]
pub(crate) struct Arguments<'a> {
    rest: &'a str,
}

/// A number that a command can carry. Negative ones are taken in two's complement.
pub(crate) trait Number: Sized {
    fn from_word(word: i128) -> Option<Self>;
}

macro_rules! number {
    ($($kind:ty),*) => {$(
        impl Number for $kind {
            fn from_word(word: i128) -> Option<Self> {
                word.try_into().ok()
            }
        }
    )*};
}
number!(usize, u64, i64, i32, u32);

impl<'a> Arguments<'a> {
    pub(crate) fn new(line: &'a str) -> Self {
        Self { rest: line.trim() }
    }

    /// The next word, or `None` at the end.
    pub(crate) fn next(&mut self) -> Option<&'a str> {
        let (word, rest) = self.rest.split_once(' ').unwrap_or((self.rest, ""));
        self.rest = rest.trim_start();
        (!word.is_empty()).then_some(word)
    }

    pub(crate) fn word(&mut self) -> Result<&'a str, Failure> {
        self.next().ok_or_else(|| Failure::Usage("a word is missing".into()))
    }

    /// Whether the next word is this one; if so, it is taken.
    pub(crate) fn take(&mut self, word: &str) -> bool {
        let mut ahead = Self { rest: self.rest };
        let found = ahead.next() == Some(word);
        if found {
            self.rest = ahead.rest;
        }
        found
    }

    pub(crate) fn number<T: Number>(&mut self) -> Result<T, Failure> {
        let word = self.word()?;
        parse(word)
            .and_then(T::from_word)
            .ok_or_else(|| Failure::Usage(format!("{word} is not such a number")))
    }

    pub(crate) fn rest(&mut self) -> &'a str {
        std::mem::take(&mut self.rest)
    }
}

fn parse(word: &str) -> Option<i128> {
    if let Some(digits) = word.strip_prefix('-') {
        return parse(digits).map(|number| -number);
    }
    if let Some(digits) = word.strip_prefix("0x") {
        return i128::from_str_radix(digits, 16).ok();
    }
    if let Some(digits) = word.strip_prefix("0o") {
        return i128::from_str_radix(digits, 8).ok();
    }
    word.parse().ok()
}
