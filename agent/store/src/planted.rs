//! Bugs on purpose, compiled by `tests/planted` alone, which shows that the simulator finds each of them.

use std::cell::Cell;

/// What is wrong with the stores of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bug {
    /// Nothing.
    #[default]
    None,
    /// A batch is acknowledged before it is synced.
    AckBeforeSync,
    /// A batch counts although its commit record is missing.
    MissingCommitCheck,
    /// A checkpoint leaves out what lies in the newest segment.
    ForgottenSegment,
    /// A start builds on what a killed process wrote without making it durable.
    NoSettle,
    /// A sync that failed is done once more, and believed.
    SyncRetried,
    /// What a file held in an earlier use is taken for its own.
    OldGeneration,
}

thread_local! {
    static PLANTED: Cell<Bug> = Cell::default();
}

/// Plants a bug for this thread.
pub fn plant(bug: Bug) {
    PLANTED.set(bug);
}

pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.get() == bug
}
