//! What a source learns, and what it wants done.

use godwit_shared::model::{Bytes, DoubtDecision, Epoch, MigrationPhase, Millis, Problem};
use godwit_shared::wire::peer::SourceMessage;
use godwit_shared::wire::uplink::Verdict;

use crate::handoff::record::OutgoingStage;

/// QEMU's migration as QMP `MIGRATION` events tell it, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QemuMigration {
    /// `active`: memory is being sent.
    Active,
    /// `postcopy-active`: the device state was sent, and the guest's memory
    /// follows as the target asks for it.
    PostcopyActive,
    /// `postcopy-paused`: in post-copy, and the channels are broken.
    PostcopyPaused,
    /// `pre-switchover`: the guest is stopped and QEMU waits to be told to go on.
    PreSwitchover,
    /// `completed`: all was sent and the target's QEMU has loaded it.
    Completed,
    /// `failed`, with QEMU's words.
    Failed(String),
    /// `cancelled`.
    Cancelled,
    /// `none`: there is no migration (a look after a restart).
    Idle,
    /// `setup`: it connects, and must not be cancelled yet (a look after a
    /// restart).
    Connecting,
}

/// What a source can learn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceEvent {
    /// The target's QEMU waits.
    Prepared,
    /// The target cannot receive it, and why.
    Blocked(Vec<Problem>),
    /// The target has loaded everything.
    Loaded,
    /// The target gave up before any grant.
    TargetFailed(Problem),
    /// Post-copy: the target has taken the grant and waits for the device state.
    Taken(Epoch),
    /// The target runs the CPUs at this epoch.
    Activated(Epoch),
    /// Post-copy: the target's QEMU waits for the rest, after a lost connection.
    ResumeReady,
    /// Post-copy: the target has everything.
    Complete,
    /// The target gives the right back; the source may take this epoch.
    HandBack {
        /// The grant's epoch plus one.
        epoch: Epoch,
        /// Why.
        reason: Problem,
    },
    /// The word on the grant, from the target or relayed.
    Verdict(Verdict),
    /// The connection to the target ended.
    LinkLost(Problem),
    /// QEMU's migration changed.
    Qemu(QemuMigration),
    /// A pass over the memory has begun (QMP `MIGRATION_PASS`).
    Pass {
        /// Its number, from 1.
        number: u32,
        /// What is left to send.
        remaining: Bytes,
    },
    /// [`SourceEffect::StartMirrors`] is done: every disk is the same on both sides.
    MirrorsReady,
    /// [`SourceEffect::FinishMirrors`] is done: nothing more is written to either side.
    MirrorsFinished,
    /// A disk cannot be mirrored.
    MirrorFailed(Problem),
    /// The guest was stopped while QEMU was still sending memory: QEMU's switch
    /// to post-copy, which follows, will never resume it by itself.
    StoppedForPostcopy,
    /// An operator wants the switch to post-copy.
    SwitchToPostcopy,
    /// An operator ends the doubt about the grant.
    Resolve(DoubtDecision),
    /// QEMU's process ended.
    QemuGone(Problem),
    /// The guest powered off or crashed of its own accord.
    GuestEnded(Problem),
    /// An operator calls it off.
    Cancel,
    /// [`SourceEffect::StartMigration`] or [`SourceEffect::ContinueMigration`] was refused.
    CommandFailed(Problem),
    /// [`SourceEffect::Journal`] is written.
    Journaled(OutgoingStage),
    /// It could not be.
    JournalFailed(Problem),
    /// [`SourceEffect::Stay`] is done: the guest is as it was before.
    Stayed,
    /// It is not.
    StayFailed(Problem),
    /// [`SourceEffect::Retire`] is done.
    Retired,
    /// A timer ran out.
    Timeout(Timer),
}

/// What a source may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Timer {
    /// The target's preparation.
    Prepare,
    /// The target's word that the CPUs run.
    Activate,
    /// The next question in doubt.
    Ask,
    /// QEMU's confirmation of a cancel.
    Cancel,
    /// The end of the switchover.
    Switchover,
    /// The target's word, before the operator is told that it does not come.
    Doubt,
    /// The switchover, as the policy wants it.
    Limit,
    /// The next attempt to connect to the target in post-copy.
    Reconnect,
}

/// What a source wants done. Those that have a result are answered by an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceEffect {
    /// Say this to the target over the migration's own connection, if it stands.
    Send(SourceMessage),
    /// Mirror the disks that are not shared to the target's exports; answers
    /// [`SourceEvent::MirrorsReady`].
    StartMirrors,
    /// The guest stands still: end the mirrors, so that both sides are the
    /// same; answers [`SourceEvent::MirrorsFinished`].
    FinishMirrors,
    /// Set capabilities and parameters and start QEMU's migration.
    StartMigration,
    /// QMP `stop`: what is left can be sent then.
    StopGuest,
    /// Stop the guest, and when QEMU still sends memory then
    /// ([`SourceEvent::StoppedForPostcopy`]), let it switch to post-copy (QMP
    /// `migrate-start-postcopy`).
    StartPostcopy,
    /// Pre-copy does not get anywhere: tell the operator.
    Stalled,
    /// Let QEMU switch over at once, however long the pause will be.
    HurryUp,
    /// QMP `migrate-continue`.
    ContinueMigration,
    /// QMP `migrate_cancel`; its end comes as [`SourceEvent::Qemu`].
    CancelMigration,
    /// Write the stage to the domain's record; answers [`SourceEvent::Journaled`].
    Journal(OutgoingStage),
    /// Show the domain as being in the handoff.
    MarkInHandoff,
    /// Ask the target over a fresh connection, and the coordinator beside it.
    Ask,
    /// Post-copy: close what is left of the connection, connect to the target
    /// anew and ask it to make ready for the rest.
    Reconnect,
    /// Post-copy: QMP `migrate` with `resume`, over the new connection.
    ResumeMigration,
    /// Keep the domain at this epoch, end its mirrors, and make sure that its
    /// CPUs run if they shall.
    Stay {
        /// The epoch to run at.
        epoch: Epoch,
    },
    /// End QEMU; the domain is the target's at this epoch.
    Retire {
        /// The target's epoch.
        epoch: Epoch,
    },
    /// Post-copy has failed for good: the guest's memory is on two hosts, and
    /// the domain, which is the target's, cannot go on.
    GuestLost(Problem),
    /// Wake me after this time; a timer armed anew replaces the former.
    Arm(Timer, Millis),
    /// The phase changed.
    Phase(MigrationPhase),
    /// Something the operator should know while it goes on.
    Alarm(Problem),
    /// It is over; the connection may go.
    Finish(Outcome),
}

/// How a migration ended, for its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest is the target's.
    Completed,
    /// The guest is the source's.
    Failed {
        /// The phase in which the cause came up.
        phase: MigrationPhase,
        /// The cause.
        problem: Problem,
    },
    /// The guest is the source's because an operator wanted it so.
    Cancelled,
}
