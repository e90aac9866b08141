//! The daemon's `MigrationManager`: beginnings, questions, restarts, and the
//! words that outlive a migration.

use godwit_node_logic::domain::Event;
use godwit_node_logic::handoff::{
    IncomingStage, OutgoingStage, SourceEvent, TargetEvent, TombstoneVerdict,
};
use godwit_shared::model::{Epoch, ExitReason};
use godwit_shared::wire::uplink::Verdict;

use super::lost;
use crate::link::{Side, ToSource, ToTarget};
use crate::mutant::Mutant;
use crate::step::Step;
use crate::world::{Handoff, Host, Move, Way, id_of};

impl Step<'_> {
    /// A migration is asked for. A node that does not take it on says so, and
    /// nothing has happened.
    pub(crate) fn begin(&mut self, m: Move, from: Host, to: Host) {
        let known = self.world.moves[m].route.is_some();
        if known || !self.world.hosts[from].up {
            return;
        }
        let Some(domain) = &self.world.hosts[from].domain else {
            return;
        };
        let settled = match domain.handoff {
            Some(Handoff::Incoming { stage, .. }) => {
                stage == (IncomingStage::Running { complete: true })
            }
            _ => true,
        };
        if !settled && !self.mutates(Mutant::LeaveBeforeArrived) {
            return;
        }
        let (run, epoch) = (domain.machine.wanted(), domain.machine.view().epoch);
        let begin = Event::BeginOutgoing {
            migration: id_of(m),
        };
        if self.tell_domain(from, begin).is_err() {
            return;
        }
        let (stage, plan) = (OutgoingStage::Sending, self.model.plan);
        let record = Handoff::Outgoing {
            m,
            stage,
            epoch,
            run,
            plan,
            images: self.mirrors(),
        };
        if self.record_handoff(from, m, Some(record)) {
            self.world.moves[m].edit().route = Some((from, to));
            self.new_outgoing(m, epoch, (run, plan, plan.mirrors), None);
        } else {
            let _ = self.tell_domain(from, Event::Stay { epoch });
        }
    }

    /// The next message of the control stream arrives; the last of its kind, or
    /// not.
    pub(crate) fn deliver(&mut self, m: Move, side: Side, last: bool) {
        let link = &mut self.world.moves[m].edit().link;
        match side {
            Side::Source => {
                let Some(message) = next(&mut link.to_source, last) else {
                    return;
                };
                self.source_reads(m, message);
            }
            Side::Target => {
                let Some(message) = next(&mut link.to_target, last) else {
                    return;
                };
                match message {
                    ToTarget::Prepare(epoch) => self.arrive(m, Epoch(epoch)),
                    ToTarget::Resume => self.reunite(m),
                    _ => self.target_reads(m, message),
                }
            }
        }
    }

    /// A source asks to send a guest. Asked for once, answered once.
    fn arrive(&mut self, m: Move, epoch: Epoch) {
        let known = self.world.moves[m].incoming.is_some() || self.stone(m).is_some();
        if !known {
            return self.begin_incoming(m, epoch);
        }
        if self.world.moves[m].incoming.is_none() {
            let link = &mut self.world.moves[m].edit().link;
            link.cut();
            link.leave(Side::Target);
        }
    }

    /// The source of a post-copy is back, with a new connection. One that is
    /// over here was complete, or its host was booted anew.
    fn reunite(&mut self, m: Move) {
        if self.world.moves[m].incoming.is_some() {
            return self.tell_target(m, TargetEvent::Resume);
        }
        let word = self.stone(m);
        let link = &mut self.world.moves[m].edit().link;
        match word {
            Some(TombstoneVerdict::Granted) => link.tell_source(ToSource::Complete),
            Some(TombstoneVerdict::Refused | TombstoneVerdict::Lost) => {
                link.tell_source(ToSource::Failed);
            }
            None => link.cut(),
        }
        link.leave(Side::Target);
    }

    /// A side learns that the connection ended.
    pub(crate) fn notice(&mut self, m: Move, side: Side) {
        self.world.moves[m].edit().link.leave(side);
        match side {
            Side::Source => {
                self.out_mut(m, |o| o.reconnecting = false);
                self.tell_source(m, SourceEvent::LinkLost(lost()));
            }
            Side::Target => self.tell_target(m, TargetEvent::LinkLost(lost())),
        }
    }

    /// A source in doubt asks.
    pub(crate) fn ask(&mut self, m: Move, way: Way) {
        match way {
            Way::Direct => self.question(m, way),
            Way::Relayed => self.ask_coordinator(m),
        }
    }

    /// A question reaches the target's node.
    pub(crate) fn question(&mut self, m: Move, way: Way) {
        if self.world.moves[m].incoming.is_some() {
            self.in_mut(m, |i| i.open[way as usize] = true);
            return self.tell_target(m, TargetEvent::Query);
        }
        if let Some(word) = self.settled_verdict(m) {
            self.put_answer(m, way, word);
        }
    }

    /// Somebody asks who is not the source. The answer goes the same way.
    pub(crate) fn stray(&mut self, m: Move) {
        self.question(m, Way::Relayed);
    }

    /// The word on a migration that no actor has in hand. One that was never
    /// heard of is refused for good.
    fn settled_verdict(&mut self, m: Move) -> Option<Verdict> {
        if self.mutates(Mutant::UnwrittenRefusal) && self.stone(m).is_none() {
            return Some(Verdict::Refused);
        }
        self.write_stone(m, TombstoneVerdict::Refused)
            .map(Verdict::from)
    }

    /// An answer leaves for the source's node; one that is down never hears it.
    pub(crate) fn put_answer(&mut self, m: Move, way: Way, word: Verdict) {
        self.judge_word(m, word);
        if way == Way::Relayed && self.model.coordinator {
            return self.relay(m, word);
        }
        let Some(n) = self.world.source_of(m) else {
            return;
        };
        if self.world.hosts[n].up {
            self.world.moves[m].edit().answers[way as usize] = Some(word);
        }
    }

    /// The word on a migration, as the target has written it.
    pub(crate) fn stone(&self, m: Move) -> Option<TombstoneVerdict> {
        let n = self.world.target_of(m)?;
        self.world.hosts[n].disk.stones[m]
    }

    /// Writes a word down. The first one stands, and is the answer; none when it
    /// cannot be written.
    pub(crate) fn write_stone(
        &mut self,
        m: Move,
        word: TombstoneVerdict,
    ) -> Option<TombstoneVerdict> {
        let n = self.world.target_of(m)?;
        if let Some(before) = self.stone(m) {
            return Some(before);
        }
        if !self.write_goes_through() {
            return None;
        }
        self.world.hosts[n].edit().disk.stones[m] = Some(word);
        Some(word)
    }

    pub(crate) fn is_refused_on_disk(&self, m: Move) -> bool {
        self.stone(m) == Some(TombstoneVerdict::Refused)
    }

    pub(crate) fn is_granted_on_disk(&self, m: Move) -> bool {
        let record = self
            .world
            .source_of(m)
            .and_then(|n| self.world.hosts[n].disk.record.as_ref());
        record.is_some_and(|record| {
            matches!(
                record.handoff,
                Some(Handoff::Outgoing {
                    m: of,
                    stage: OutgoingStage::Granted | OutgoingStage::GrantedEarly,
                    ..
                }) if of == m
            )
        })
    }

    /// A daemon comes back: it takes its QEMU over, and goes on with the
    /// migration that it finds in the record.
    pub(crate) fn restart(&mut self, n: Host) {
        self.world.hosts[n].edit().up = true;
        self.adopt(n);
        let found = self.world.hosts[n].domain.as_ref().and_then(|d| d.handoff);
        match found {
            None => {}
            Some(Handoff::Outgoing {
                m,
                stage,
                epoch,
                run,
                plan,
                images,
            }) => self.new_outgoing(m, epoch, (run, plan, images), Some(stage)),
            Some(Handoff::Incoming {
                m, stage, epoch, ..
            }) => self.go_on_receiving(n, m, stage, epoch),
        }
    }

    fn go_on_receiving(&mut self, n: Host, m: Move, stage: IncomingStage, epoch: Epoch) {
        let exit = self.world.hosts[n]
            .domain
            .as_ref()
            .and_then(|d| d.machine.view().exit);
        if exit == Some(ExitReason::HostReboot) {
            return self.bury(n, m, stage);
        }
        // A refusal that was written before the domain was removed stands.
        let stage = match self.stone(m) {
            Some(TombstoneVerdict::Refused) => IncomingStage::Prepared,
            _ => stage,
        };
        self.recover_incoming(m, epoch, stage);
    }

    /// The host was booted anew: an outcome that was open then can be neither
    /// confirmed nor denied.
    fn bury(&mut self, n: Host, m: Move, stage: IncomingStage) {
        let ran = matches!(stage, IncomingStage::Running { .. });
        let word = self.mutated_burial(match ran {
            true => TombstoneVerdict::Granted,
            false => TombstoneVerdict::Lost,
        });
        if self.write_stone(m, word).is_none() {
            return;
        }
        // Where the right was taken the guest may have written to its disk.
        if matches!(stage, IncomingStage::Granted { .. })
            && self.keeps_disk()
            && !self.keep_arrived_image(n, m)
        {
            return;
        }
        let gone = !ran && self.tell_domain(n, Event::Discard).is_ok();
        if !gone {
            let _ = self.record_handoff(n, m, None);
        }
    }
}

impl Step<'_> {
    /// The fate of a guest is unknown: its record forgets the image, which stays.
    fn keep_arrived_image(&mut self, n: Host, m: Move) -> bool {
        let mut record = self.world.hosts[n].domain.as_ref().and_then(|d| d.handoff);
        if let Some(Handoff::Incoming { images, .. }) = &mut record {
            *images = false;
        }
        let written = self.record_handoff(n, m, record);
        if written {
            self.keep_image_for_good(n);
        }
        written
    }
}

fn next<T: Copy>(queue: &mut Vec<T>, last: bool) -> Option<T> {
    let message = *queue.first()?;
    if last {
        queue.remove(0);
    }
    Some(message)
}
