//! A node's lease: the production holder, voucher and guardian. The guardian
//! outlives the daemon, and not the host.

use godwit_coordinator_logic::input::SessionId;
use godwit_node_logic::domain::Event;
use godwit_node_logic::lease::{Guardian, Holder, SavedLease, Voucher};
use godwit_shared::model::{BootMillis, NodeId, Problem, VmId, codes};
use godwit_shared::wire::lease::{LeaseAnswer, LeaseAsk, LeaseGrant};
use godwit_shared::wire::uplink::{NodeMessage, NodeReply};

use crate::agenda::{N, ToNode, What, node_id};
use crate::mutant::Mutant;
use crate::sim::{NODES, Sim};

/// What a daemon knows of leases.
#[derive(Debug)]
pub struct Lease {
    holder: Holder,
    voucher: Voucher,
    /// Requests of peers that were carried to the coordinator.
    carried: Vec<(N, u64)>,
    granted: Option<BootMillis>,
}

/// What outlives the daemon.
#[derive(Debug, Default)]
pub struct Guarded {
    guardian: Guardian<u64>,
    terms: Option<SavedLease>,
    /// For which moment an alarm is set.
    alarm: Option<BootMillis>,
}

impl Sim {
    /// The clock of that host: each was booted at another time.
    fn boot_clock(&self, n: N) -> BootMillis {
        BootMillis(self.now + 7_919 * (n as u64 + 1))
    }

    /// A daemon begins.
    pub(super) fn begin_lease(&mut self, n: N) {
        let now = self.boot_clock(n);
        let guarded = &self.nodes[n].guarded;
        let holder = match guarded.terms.clone() {
            Some(terms) => Holder::restored(node_id(n), terms, guarded.guardian.stop_at()),
            None => Holder::new(node_id(n)),
        };
        self.nodes[n].lease = Some(Lease {
            holder,
            voucher: Voucher::new(now),
            carried: Vec::new(),
            granted: None,
        });
        self.renew_lease(n);
    }

    /// The host was booted anew.
    pub(super) fn lose_guardian(&mut self, n: N) {
        self.nodes[n].guarded.guardian = Guardian::default();
        self.nodes[n].guarded.alarm = None;
    }

    /// Asks for more of it, and again after its pace.
    pub(super) fn renew_lease(&mut self, n: N) {
        let pace = self.nodes[n].lease.as_ref().map(|l| l.holder.pace().0);
        self.ask_for_lease(n);
        if let Some(pace) = pace {
            self.wake(n, pace, ToNode::Renew);
        }
    }

    /// Asks for more of it.
    pub(super) fn ask_for_lease(&mut self, n: N) {
        let now = self.boot_clock(n);
        let up = self.nodes[n].session.is_some();
        let Some(lease) = self.nodes[n].lease.as_mut() else {
            return;
        };
        let pace = lease.holder.pace().0;
        let request = lease.holder.ask(now);
        let overdue = lease.granted.is_none_or(|at| now.0 > at.0 + 2 * pace);
        let ask = lease.holder.ask_peers(&request);
        if !up {
            lease.holder.alone(now);
            self.tell_guardian(n);
        }
        let renew = NodeMessage::RenewLease { of: None, request };
        self.say_up(n, renew);
        if let Some((ask, peers)) = ask.filter(|_| !up || overdue) {
            for peer in (0..NODES).filter(|peer| peers.contains(&node_id(*peer))) {
                self.ask_peer(n, peer, &ask);
            }
        }
    }

    fn ask_peer(&mut self, n: N, peer: N, ask: &LeaseAsk) {
        if self.reach(n + 1, peer + 1) && self.nodes[peer].up {
            let life = self.nodes[peer].life;
            let at = self.now + self.lag(peer, 2, 60);
            let asked = ToNode::LeaseAsked(n, Box::new(ask.clone()));
            self.agenda.add(at, What::Node(peer, life, asked));
        }
    }

    /// A peer without a session asks.
    pub(super) fn lease_asked(&mut self, n: N, by: N, ask: LeaseAsk) {
        let (now, up) = (self.boot_clock(n), self.nodes[n].session.is_some());
        let careless = self.mutates(Mutant::VouchForAll);
        let Some(lease) = self.nodes[n].lease.as_mut() else {
            return;
        };
        let number = ask.request.number;
        if up {
            lease.carried.push((by, number));
            let of = Some(node_id(by));
            let request = ask.request;
            return self.say_up(n, NodeMessage::RenewLease { of, request });
        }
        let answer = match lease.voucher.vouch(now, &node_id(by), &ask, false) || careless {
            true => LeaseAnswer::Vouched { number },
            false => LeaseAnswer::Refused,
        };
        self.answer_peer(n, by, answer);
    }

    fn answer_peer(&mut self, n: N, to: N, answer: LeaseAnswer) {
        if self.reach(n + 1, to + 1) {
            let life = self.nodes[to].life;
            let at = self.now + self.lag(to, 2, 60);
            let answered = ToNode::LeaseAnswered(n, Box::new(answer));
            self.agenda.add(at, What::Node(to, life, answered));
        }
    }

    pub(super) fn lease_answered(&mut self, n: N, from: N, answer: LeaseAnswer) {
        let now = self.boot_clock(n);
        if let Some(lease) = self.nodes[n].lease.as_mut() {
            lease.holder.on_answer(now, &node_id(from), answer);
        }
        self.tell_guardian(n);
    }

    /// The coordinator grants.
    pub(super) fn lease_granted(&mut self, n: N, of: Option<&NodeId>, grant: LeaseGrant) {
        let now = self.boot_clock(n);
        let Some(lease) = self.nodes[n].lease.as_mut() else {
            return;
        };
        let Some(of) = of else {
            lease.granted = Some(now);
            lease.holder.on_grant(grant);
            return self.tell_guardian(n);
        };
        let number = grant.number;
        let wanted = |(by, of_number): &(N, u64)| node_id(*by) == *of && *of_number == number;
        let place = lease.carried.iter().position(wanted);
        if let Some((by, _)) = place.map(|place| lease.carried.remove(place)) {
            self.answer_peer(n, by, LeaseAnswer::Granted(grant));
        }
    }

    /// The coordinator wants no voucher for that node.
    pub(super) fn withhold(
        &mut self,
        n: N,
        node: NodeId,
        period: godwit_shared::model::Millis,
    ) -> Result<NodeReply, Problem> {
        let now = self.boot_clock(n);
        let lease = self.nodes[n].lease.as_mut();
        let lease = lease.ok_or_else(|| Problem::internal("no lease"))?;
        let left = lease.voucher.withhold(now, node, period);
        Ok(NodeReply::Withheld { left })
    }

    pub(super) fn lost_session(&mut self, n: N, _: SessionId) {
        if let Some(lease) = self.nodes[n].lease.as_mut() {
            lease.carried.clear();
        }
    }

    fn tell_guardian(&mut self, n: N) {
        let now = self.boot_clock(n);
        let node = &mut self.nodes[n];
        let Some(lease) = &node.lease else { return };
        node.guarded.terms = lease.holder.terms().cloned();
        if let Some(stop_at) = lease.holder.stop_at() {
            node.guarded.guardian.extend(now, stop_at);
        }
        self.watch_over(n);
    }

    /// The guardian ends whoever outlived the lease, and sets its alarm.
    pub(crate) fn watch_over(&mut self, n: N) {
        let now = self.boot_clock(n);
        let asleep = self.mutates(Mutant::NoGuardian);
        let boot = self.nodes[n].boot;
        let guarded = &mut self.nodes[n].guarded;
        let due = guarded.guardian.due(now);
        let next = guarded.guardian.stop_at().filter(|at| *at > now);
        let set = next.filter(|next| guarded.alarm.is_none_or(|at| at <= now || at > *next));
        if let Some(at) = set {
            guarded.alarm = Some(at);
            let ring = self.now + now.until(at).0;
            self.agenda.add(ring, What::Guardian(n, boot));
        }
        for pid in due {
            let qemu = self.nodes[n].qemus.get(&pid).cloned();
            if let Some(qemu) = qemu.filter(|_| !asleep) {
                self.note(&format!("node {} ends QEMU {pid} with its lease", n + 1));
                self.report.ended_by_lease += 1;
                self.lost_guest(&qemu);
                self.end_qemu(n, pid);
            }
            self.nodes[n].guarded.guardian.gone(&pid);
        }
    }

    /// Whether a protected VM may run there; watches it from then on.
    pub(super) fn guard(&mut self, n: N, vm: VmId, pid: u64) {
        let actor = self.nodes[n].domains.get(&vm);
        if actor.is_some_and(|actor| actor.spec.protected()) {
            let now = self.boot_clock(n);
            self.nodes[n].guarded.guardian.watch(now, pid);
            self.watch_over(n);
        }
    }

    /// What stands against a protected VM.
    pub(super) fn check_lease(&self, n: N, protected: bool) -> Result<(), Problem> {
        let now = self.boot_clock(n);
        let stop_at = self.nodes[n].guarded.guardian.stop_at();
        match !protected || stop_at.is_some_and(|stop| now < stop) {
            true => Ok(()),
            false => Err(Problem::new(codes::LEASE_LOST, "the node holds no lease")),
        }
    }

    /// Tells a domain why its QEMU is gone, where the guardian knows.
    pub(super) fn tell_of_lease(&mut self, n: N, vm: VmId, pid: u64) {
        if self.nodes[n].guarded.guardian.ended(&pid) {
            let _ = self.tell_domain(n, vm, Event::LeaseLost);
        }
    }
}
