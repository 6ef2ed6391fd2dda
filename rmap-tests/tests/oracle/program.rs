//! What a random program is made of.

use rmap_tests::Random;

/// Pages of the arena.
pub(crate) const PAGES: usize = 64;

/// What a mapping is of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Anonymous,
    SharedAnonymous,
    /// A memory file that is mapped and written in several places.
    SharedFile,
    /// A file that nobody writes.
    PrivateFile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    None,
    Read,
    Write,
}

/// What an attachment is made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Everything,
    Own,
    OwnForReading,
}

/// A range of the arena. The end may lie behind the arena's and is then cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) first: usize,
    pub(crate) count: usize,
}

/// One step. What does not apply to the state at hand does nothing, so that any part of a program is a program.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Map {
        span: Span,
        kind: Kind,
        access: Access,
        index: usize,
    },
    Unmap {
        span: Span,
    },
    Protect {
        span: Span,
        access: Access,
    },
    Forget {
        span: Span,
    },
    /// `MADV_REMOVE`
    Erase {
        span: Span,
    },
    Move {
        span: Span,
        to: usize,
        count: usize,
        keep: bool,
    },
    Resize {
        span: Span,
        count: usize,
    },
    Heap {
        pages: usize,
    },
    Write {
        span: Span,
    },
    WriteThrough {
        view: usize,
        span: Span,
    },
    Look {
        view: usize,
        span: Span,
    },
    LookAtAll,
    /// Through the permit for everything, or by a segment of its own over just this.
    Attach {
        span: Span,
        segment: Segment,
    },
    Detach {
        view: usize,
    },
    Fork,
    EndChild,
    /// A pipe holds a page of an attachment.
    Hold {
        view: usize,
        page: usize,
    },
    /// The pipe is closed.
    LetGo,
    /// The next steps are done by this thread of the exporter.
    Worker {
        number: usize,
    },
}

fn span(random: &mut Random) -> Span {
    let first = random.below(PAGES);
    let count = match random.below(6) {
        0..3 => 1 + random.below(3),
        3..5 => 1 + random.below(16),
        _ => PAGES,
    };
    Span { first, count }
}

fn kind(random: &mut Random) -> Kind {
    match random.below(12) {
        0..6 => Kind::Anonymous,
        6..8 => Kind::SharedAnonymous,
        8..10 => Kind::SharedFile,
        _ => Kind::PrivateFile,
    }
}

fn access(random: &mut Random) -> Access {
    match random.below(9) {
        0..6 => Access::Write,
        6..8 => Access::Read,
        _ => Access::None,
    }
}

fn op(random: &mut Random) -> Op {
    let view = random.below(6);
    let span = span(random);
    match random.below(100) {
        0..10 => Op::Map { span, kind: kind(random), access: access(random), index: random.below(PAGES) },
        10..16 => Op::Unmap { span },
        16..22 => Op::Protect { span, access: access(random) },
        22..27 => Op::Forget { span },
        27..29 => Op::Erase { span },
        29..35 => {
            let (to, count) = (random.below(PAGES), 1 + random.below(8));
            Op::Move { span, to, count, keep: random.below(2) == 0 }
        }
        35..40 => Op::Resize { span, count: 1 + random.below(16) },
        40..43 => Op::Heap { pages: random.below(9) },
        43..57 => Op::Write { span },
        57..71 => Op::WriteThrough { view, span },
        71..83 => Op::Look { view, span },
        83..86 => Op::LookAtAll,
        86..90 => {
            let segment = *random.pick(&[
                Segment::Everything,
                Segment::Everything,
                Segment::Own,
                Segment::OwnForReading,
            ]);
            Op::Attach { span, segment }
        }
        90..93 => Op::Detach { view },
        93..95 => Op::Fork,
        95..97 => Op::EndChild,
        97 => {
            let page = random.below(PAGES);
            if random.below(4) == 0 { Op::LetGo } else { Op::Hold { view, page } }
        }
        _ => Op::Worker { number: random.below(4) },
    }
}

/// A program of so many steps.
pub(crate) fn program(random: &mut Random, steps: usize) -> Vec<Op> {
    (0..steps).map(|_| op(random)).collect()
}

/// Programs that are a little simpler than this one, the simplest first.
pub(crate) fn simpler(ops: &[Op]) -> impl Iterator<Item = Vec<Op>> + '_ {
    let lengths = std::iter::successors(Some(ops.len() / 2), |len| (*len > 1).then_some(len / 2));
    let shorter = lengths.filter(|len| *len > 0).flat_map(move |len| {
        (0..ops.len()).step_by(len).map(move |start| {
            let end = (start + len).min(ops.len());
            [&ops[..start], &ops[end..]].concat()
        })
    });
    let smaller = (0..ops.len()).filter_map(|at| {
        let mut ops = ops.to_vec();
        let span = ops[at].span().filter(|span| span.count > 1)?;
        span.count = span.count.min(PAGES) / 2;
        Some(ops)
    });
    shorter.chain(smaller)
}

impl Op {
    fn span(&mut self) -> Option<&mut Span> {
        match self {
            Self::Map { span, .. }
            | Self::Unmap { span }
            | Self::Protect { span, .. }
            | Self::Forget { span }
            | Self::Erase { span }
            | Self::Move { span, .. }
            | Self::Resize { span, .. }
            | Self::Write { span }
            | Self::WriteThrough { span, .. }
            | Self::Look { span, .. }
            | Self::Attach { span, .. } => Some(span),
            _ => None,
        }
    }
}
