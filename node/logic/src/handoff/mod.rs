//! The passing of the right to run a domain from a source to a target.
//!
//! Two state machines, [`Source`] and [`Target`], decide everything about a
//! migration; they do no I/O and know no clock. Each is fed events and answers
//! with effects; an effect that has a result comes back as an event.
//!
//! ```text
//!  Source                                        Target
//!  Preparing --Prepared--> (Mirroring) Precopy   Checking --> Starting --> Receiving
//!  Precopy --pre-switchover--> (Finishing)
//!    Switchover                                  Receiving --completed--> Loaded
//!  Switchover --completed + Loaded--> Granting   Loaded --Grant--> Granting
//!  Granting --journaled--> Handoff               Granting --journaled--> Activating
//!  Handoff --Activated--> Retiring --> Done      Activating --ran--> Running --> Done
//!
//!  any before Granting --> Cancelling --> Done   any before Granting --> Discarding --> Done
//!  Handoff --link lost--> InDoubt                Activating --cannot--> HandingBack --> Done
//!  InDoubt --granted, running--> Retiring
//!  InDoubt/Handoff --refused, handed back--> TakingBack --> Done
//! ```
//!
//! In post-copy the grant goes over before the device state, because QEMU has no
//! way back once that is sent (see `source/postcopy.rs`):
//!
//! ```text
//!  pre-switchover --> Granting                   Receiving --Grant--> Granting
//!  Handoff --Taken: migrate-continue-->          Granting --journaled: Taken--> Waiting
//!                                                Waiting --device state is here--> Activating
//!  Handoff --Activated--> Pulling                Activating --ran--> Running { complete: false }
//!  Pulling --completed--> Retiring               Running --completed--> { complete: true }
//! ```
//!
//! # Invariants
//!
//! * The source journals the grant before it sends it, and from that line on
//!   never runs the domain at its old epoch: only [`Source`] in `TakingBack`
//!   resumes it, at the grant's epoch plus one, and only on the target's durable
//!   word (a refusal or a hand-back).
//! * The target journals the grant before it runs the CPUs, and journals a
//!   refusal before it says one. It never takes a grant after a refusal.
//! * A target that ran the CPUs does not end before that word is written where
//!   it outlives the migration's record: whoever asks later would be refused.
//! * A timeout asks again. It never resumes anything.
//! * An error of `cont` after which the CPUs may have run is no hand-back.
//! * A target whose host was rebooted between its promise (`Prepared`) and the
//!   grant's outcome answers [`Verdict::Lost`](godwit_shared::wire::uplink::Verdict):
//!   what it ran since then, if anything, left traces on disks.
//!
//! The promise is the only record that is written through to the disk; it is
//! written before memory is sent, so it costs the guest nothing. Everything
//! else has to outlive the daemon only.

mod record;
mod source;
mod target;
#[cfg(test)]
mod tests;

pub use record::{
    HandoffRecord, IncomingRecord, IncomingStage, OutgoingRecord, OutgoingStage, Tombstone,
    TombstoneVerdict,
};
pub use source::{
    Outcome, Plan, QemuMigration, Source, SourceEffect, SourceEvent, Terms, Timer, pause_limit,
};
pub use target::{SOURCE_DONE_DEADLINE, Target, TargetEffect, TargetEvent, TargetOutcome};

/// An event that the state does not allow. It changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event} does not belong into state {state}")]
pub struct Rejected {
    /// The state's name.
    pub state: &'static str,
    /// The event.
    pub event: String,
}
