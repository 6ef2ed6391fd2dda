//! What a random program is made of.

use proptest::prelude::*;

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
    Attach {
        span: Span,
    },
    Detach {
        view: usize,
    },
    Fork,
    EndChild,
    /// The next steps are done by this thread of the exporter.
    Worker {
        number: usize,
    },
}

fn span() -> impl Strategy<Value = Span> {
    (
        0..PAGES,
        prop_oneof![3 => 1..4_usize, 2 => 1..17_usize, 1 => Just(PAGES)],
    )
        .prop_map(|(first, count)| Span { first, count })
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        6 => Just(Kind::Anonymous),
        2 => Just(Kind::SharedAnonymous),
        2 => Just(Kind::SharedFile),
        2 => Just(Kind::PrivateFile),
    ]
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![6 => Just(Access::Write), 2 => Just(Access::Read), 1 => Just(Access::None)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (span(), kind(), access(), 0..PAGES)
            .prop_map(|(span, kind, access, index)| Op::Map { span, kind, access, index }),
        6 => span().prop_map(|span| Op::Unmap { span }),
        6 => (span(), access()).prop_map(|(span, access)| Op::Protect { span, access }),
        5 => span().prop_map(|span| Op::Forget { span }),
        2 => span().prop_map(|span| Op::Erase { span }),
        6 => (span(), 0..PAGES, 1..9_usize, any::<bool>())
            .prop_map(|(span, to, count, keep)| Op::Move { span, to, count, keep }),
        5 => (span(), 1..17_usize).prop_map(|(span, count)| Op::Resize { span, count }),
        3 => (0..9_usize).prop_map(|pages| Op::Heap { pages }),
        14 => span().prop_map(|span| Op::Write { span }),
        14 => (0..6_usize, span()).prop_map(|(view, span)| Op::WriteThrough { view, span }),
        14 => (0..6_usize, span()).prop_map(|(view, span)| Op::Look { view, span }),
        4 => Just(Op::LookAtAll),
        5 => span().prop_map(|span| Op::Attach { span }),
        3 => (0..6_usize).prop_map(|view| Op::Detach { view }),
        2 => Just(Op::Fork),
        2 => Just(Op::EndChild),
        3 => (0..4_usize).prop_map(|number| Op::Worker { number }),
    ]
}

/// Programs of some steps.
pub(crate) fn program(steps: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), steps / 2..=steps)
}
