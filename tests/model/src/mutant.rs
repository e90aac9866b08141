//! Seeded bugs: each one has to be found.
//!
//! A mutant sits between the production state machines and the model's hosts: it
//! changes an event on its way in, an effect on its way out, or what a host does
//! with it. Production code knows nothing of it.

use godwit_node_logic::handoff::{
    OutgoingStage, QemuMigration, SourceEvent, TargetEvent, Timer, TombstoneVerdict,
};
use godwit_shared::model::{Epoch, MigrationPhase};
use godwit_shared::wire::uplink::Verdict;

use crate::link::ToTarget;
use crate::step::Step;
use crate::world::{Host, Move, Way};

/// A seeded bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A source in doubt takes the guest back when it has waited long enough.
    ResumeOnTimeout,
    /// The grant is sent before it is in the journal.
    GrantBeforeJournal,
    /// The target runs the CPUs before the grant is in its journal.
    RunBeforeJournal,
    /// The target refuses when it is asked, and takes the grant afterwards.
    GrantAfterRefusal,
    /// The target says no before that is written down.
    RefusalBeforeTombstone,
    /// The source retires when the grant was taken, whether the CPUs run or not.
    RetireWithoutWord,
    /// The source takes the guest back at the epoch that it had.
    TakeBackAtOldEpoch,
    /// A question about a migration that nobody has in hand is answered with
    /// no, and nothing is written.
    UnwrittenRefusal,
    /// A source that finds its grant in the journal goes on as if it were none.
    RecoverForgetsGrant,
    /// After a reboot of its host a target says no.
    RebootRefuses,
    /// Any failure to run the CPUs hands the right back, also where they may
    /// have run.
    UnclearHandsBack,
    /// A target's word that the guest ran is tried once, and its record is
    /// closed whether it was written or not.
    WordNotTried,
    /// A guest may leave again before the word on its arrival is written.
    LeaveBeforeArrived,
    /// The coordinator says no for a target that it cannot reach.
    RelayRefusesForAbsent,
    /// The coordinator says that the guest runs on the target as soon as the
    /// target has the right.
    RelayTakesOwnerForRunner,
    /// The guest is not stopped before QEMU switches to post-copy.
    PostcopyUnstopped,
    /// In post-copy a source whose QEMU has failed takes the guest back without
    /// the target's word.
    PostcopyTakesBackUnasked,
    /// A source that finds the grant of a post-copy in the journal goes on as if
    /// it were none.
    RecoverForgetsEarlyGrant,
    /// In post-copy the source retires when the CPUs run on the target, and not
    /// when all memory is there.
    RetireBeforeComplete,
    /// The source removes its disk when the grant is written, and does not wait
    /// for the word that the guest runs.
    DiskGivenUpEarly,
    /// The mirror is finished while the guest still runs.
    MirrorFinishedEarly,
    /// The switchover goes on when the mirror has ended, whether the target's
    /// export is still open or not.
    FinishedBeforeReleased,
    /// A target that is called off keeps its copy of the disk.
    TargetKeepsDisk,
    /// A source that stays leaves its mirror where it is.
    StayLeavesMirror,
    /// After a reboot of its host a target removes a disk to which its guest may
    /// have written.
    RebootDropsDisk,
    /// The grant of a guest that comes with its disk is not written through to
    /// the target's own disk.
    GrantNotWrittenThrough,
}

impl Mutant {
    /// Every one.
    pub const ALL: [Self; 26] = [
        Self::ResumeOnTimeout,
        Self::GrantBeforeJournal,
        Self::RunBeforeJournal,
        Self::GrantAfterRefusal,
        Self::RefusalBeforeTombstone,
        Self::RetireWithoutWord,
        Self::TakeBackAtOldEpoch,
        Self::UnwrittenRefusal,
        Self::RecoverForgetsGrant,
        Self::RebootRefuses,
        Self::UnclearHandsBack,
        Self::WordNotTried,
        Self::LeaveBeforeArrived,
        Self::RelayRefusesForAbsent,
        Self::RelayTakesOwnerForRunner,
        Self::PostcopyUnstopped,
        Self::PostcopyTakesBackUnasked,
        Self::RecoverForgetsEarlyGrant,
        Self::RetireBeforeComplete,
        Self::DiskGivenUpEarly,
        Self::MirrorFinishedEarly,
        Self::FinishedBeforeReleased,
        Self::TargetKeepsDisk,
        Self::StayLeavesMirror,
        Self::RebootDropsDisk,
        Self::GrantNotWrittenThrough,
    ];
}

impl Step<'_> {
    pub(crate) fn mutates(&self, mutant: Mutant) -> bool {
        self.model.mutant == Some(mutant)
    }

    /// What a source's machine is told.
    pub(crate) fn mutated_event(&self, m: Move, event: SourceEvent) -> SourceEvent {
        let granted = self.world.moves[m]
            .outgoing
            .as_ref()
            .is_some_and(|o| o.source.is_granted());
        match event {
            SourceEvent::Timeout(Timer::Doubt)
                if granted && self.mutates(Mutant::ResumeOnTimeout) =>
            {
                SourceEvent::Verdict(Verdict::Refused)
            }
            SourceEvent::Verdict(Verdict::Granted { .. })
                if self.mutates(Mutant::RetireWithoutWord) =>
            {
                SourceEvent::Verdict(Verdict::Granted { running: true })
            }
            SourceEvent::Qemu(QemuMigration::Failed(_))
                if granted && self.mutates(Mutant::PostcopyTakesBackUnasked) =>
            {
                SourceEvent::Verdict(Verdict::Refused)
            }
            event => event,
        }
    }

    /// What a source finds in its journal.
    pub(crate) fn mutated_stage(&self, stage: OutgoingStage) -> OutgoingStage {
        match stage {
            OutgoingStage::Granted if self.mutates(Mutant::RecoverForgetsGrant) => {
                OutgoingStage::Sending
            }
            OutgoingStage::GrantedEarly if self.mutates(Mutant::RecoverForgetsEarlyGrant) => {
                OutgoingStage::Sending
            }
            stage => stage,
        }
    }

    /// Takes the beginning of a post-copy for its end.
    pub(crate) fn mutant_has_it_complete(&mut self, m: Move) {
        let pulls = |o: &crate::world::Outgoing| o.phase == MigrationPhase::Postcopy;
        let pulls = self.world.moves[m].outgoing.as_ref().is_some_and(pulls);
        if self.mutates(Mutant::RetireBeforeComplete) && pulls {
            self.out_mut(m, |o| o.phase = MigrationPhase::Handoff);
            self.tell_source(m, SourceEvent::Complete);
        }
    }

    /// Finishes the mirror before the guest is stopped.
    pub(crate) fn mutant_finishes_mirror(&mut self, m: Move) {
        if self.mutates(Mutant::MirrorFinishedEarly) {
            self.want_mirror_finished(m);
        }
    }

    /// Removes the source's disk as soon as the right is given.
    pub(crate) fn mutant_gives_disk_up(&mut self, n: Host, epoch: Epoch) {
        if self.mutates(Mutant::DiskGivenUpEarly) {
            self.give_up_disk(n, epoch);
        }
    }

    /// The epoch at which a source stays.
    pub(crate) fn mutated_epoch(&self, m: Move, epoch: Epoch) -> Epoch {
        match &self.world.moves[m].outgoing {
            Some(outgoing) if self.mutates(Mutant::TakeBackAtOldEpoch) => outgoing.epoch,
            _ => epoch,
        }
    }

    pub(crate) fn send_grant_early(&mut self, m: Move) {
        if let Some((epoch, run)) = self.world.moves[m]
            .outgoing
            .as_ref()
            .map(|o| (o.epoch, o.run))
        {
            self.judge_grant(m);
            let grant = ToTarget::Grant {
                epoch: epoch.next().0,
                run,
                early: false,
            };
            self.world.moves[m].edit().link.tell_target(grant);
        }
    }

    pub(crate) fn run_early(&mut self, m: Move) {
        let epoch = self.world.moves[m].incoming.as_ref().map(|i| i.epoch);
        if let (Some(n), Some(epoch)) = (self.world.target_of(m), epoch) {
            self.start_cpus(n, epoch);
        }
    }

    /// Answers in the machine's place. Whether it did.
    pub(crate) fn mutant_answers(&mut self, m: Move, event: &TargetEvent) -> bool {
        let takes = self.world.moves[m]
            .incoming
            .as_ref()
            .is_some_and(|i| !i.target.is_granted());
        let lies = self.mutates(Mutant::GrantAfterRefusal) && *event == TargetEvent::Query && takes;
        if lies {
            let open = self.world.moves[m]
                .incoming
                .as_ref()
                .map(|i| i.open)
                .unwrap_or_default();
            self.in_mut(m, |i| i.open = [false; 2]);
            for way in Way::ALL.into_iter().filter(|way| open[*way as usize]) {
                self.put_answer(m, way, Verdict::Refused);
            }
        }
        lies
    }

    /// How a target's machine is told of an activation.
    pub(crate) fn mutated_activation(&self, event: TargetEvent) -> TargetEvent {
        match event {
            TargetEvent::ActivateUnclear(problem) if self.mutates(Mutant::UnclearHandsBack) => {
                TargetEvent::ActivateFailed(problem)
            }
            event => event,
        }
    }

    /// Says no before anything is written.
    pub(crate) fn mutant_refuses_early(&mut self, m: Move) {
        if self.mutates(Mutant::RefusalBeforeTombstone) {
            self.put_answer(m, Way::Direct, Verdict::Refused);
        }
    }

    /// The word after a reboot.
    pub(crate) fn mutated_burial(&self, word: TombstoneVerdict) -> TombstoneVerdict {
        match word {
            TombstoneVerdict::Lost if self.mutates(Mutant::RebootRefuses) => {
                TombstoneVerdict::Refused
            }
            word => word,
        }
    }
}
