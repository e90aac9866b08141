//! Seeded bugs: each has to be found within the seeds of a test.

/// A seeded bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A source in doubt takes its guest back when it has waited for long.
    ResumeOnTimeout,
    /// The coordinator answers before its records are durable.
    AnswerBeforeCommit,
    /// A node starts whatever it is told to, whether there is room or not, and
    /// the coordinator is told that it is larger than it is.
    NoLedger,
    /// A guardian that ends nobody.
    NoGuardian,
    /// A node that vouches for anybody at any time.
    VouchForAll,
}

impl Mutant {
    /// Every one.
    pub const ALL: [Self; 5] = [
        Self::ResumeOnTimeout,
        Self::AnswerBeforeCommit,
        Self::NoLedger,
        Self::NoGuardian,
        Self::VouchForAll,
    ];
}
