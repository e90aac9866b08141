//! A few nodes and the least coordinator that follows the rule, in virtual time:
//! clocks drift, messages are delayed, repeated and lost, sessions and daemons
//! come and go. Node 0 runs a protected VM.

use std::collections::BTreeMap;

use godwit_shared::model::{BootMillis, Millis, NodeId};
use godwit_shared::wire::lease::{Circle, LeaseAnswer, LeaseAsk, LeaseGrant, LeaseRequest};

use super::super::{Holder, Voucher};
use super::{circle, node};

const LENGTH: Millis = Millis(4_000);
const MARGIN: Millis = Millis(1_000);
const PERIOD: Millis = Millis(5_000);
const TICK: u64 = 50;

enum Message {
    /// To the coordinator, by the session of that node.
    Renew(usize, LeaseRequest),
    /// From the coordinator, by the session of that node.
    Grant(usize, LeaseGrant),
    Ask(usize, LeaseAsk),
    Answer(usize, LeaseAnswer),
    Withhold(usize),
    Withheld(usize, Millis),
}

pub(super) struct World {
    now: u64,
    chance: u64,
    /// Thousandths of a second that each clock counts in a second.
    rates: Vec<u64>,
    holder: Holder,
    vouchers: Vec<Voucher>,
    /// Whether the node has a session, as the node sees it and as the
    /// coordinator does.
    sessions: Vec<(bool, bool)>,
    coordinator: Option<Coordinator>,
    flying: Vec<(u64, Message)>,
    circle: Circle,
}

/// What the coordinator knows of node 0.
struct Coordinator {
    until: u64,
    withheld: BTreeMap<NodeId, (u64, u64)>,
}

impl World {
    pub(super) fn new(seed: u64, nodes: usize) -> Self {
        Self {
            now: 1_000_000,
            chance: seed | 1,
            rates: (0..=nodes).map(|n| 990 + (seed >> (n * 5)) % 21).collect(),
            holder: Holder::new(node(0)),
            vouchers: (0..nodes).map(|_| Voucher::new(BootMillis(0))).collect(),
            sessions: vec![(true, true); nodes],
            coordinator: Some(Coordinator {
                until: 0,
                withheld: BTreeMap::new(),
            }),
            flying: Vec::new(),
            circle: circle(nodes),
        }
    }

    /// Whether the coordinator took node 0 for lost.
    pub(super) fn run(mut self, steps: u32) -> bool {
        for _ in 0..steps {
            self.now += TICK;
            self.disturb();
            self.deliver();
            if self.now.is_multiple_of(1_000) {
                self.renew();
                self.withhold();
            }
            if self.taken_for_lost() {
                let here = self.clock(0);
                assert!(
                    !self.holder.holds(here),
                    "it runs, and is started elsewhere"
                );
                return true;
            }
        }
        false
    }

    fn clock(&self, of: usize) -> BootMillis {
        BootMillis(self.now * self.rates[of] / 1_000)
    }

    fn coordinator_clock(&self) -> u64 {
        self.clock(self.sessions.len()).0
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % sides
    }

    fn pick(&mut self) -> usize {
        let count = self.sessions.len() as u64;
        usize::try_from(self.roll(count)).unwrap()
    }

    /// Now and then something breaks or heals.
    fn disturb(&mut self) {
        if self.roll(40) != 0 {
            return;
        }
        let at = self.pick();
        match self.roll(8) {
            0 => self.sessions[at].0 = false,
            1 => self.sessions[at].1 = false,
            2 | 3 => self.sessions[at] = (false, false),
            4 | 5 if self.coordinator.is_some() => self.sessions[at] = (true, true),
            6 => self.vouchers[at] = Voucher::new(self.clock(at)),
            7 if self.coordinator.is_some() => self.coordinator = None,
            7 => {
                // It assumes that every lease is a full one.
                let until = self.coordinator_clock() + LENGTH.0;
                self.coordinator = Some(Coordinator {
                    until,
                    withheld: BTreeMap::new(),
                });
                self.sessions.fill((false, false));
            }
            _ => {}
        }
    }

    fn send(&mut self, message: impl Fn() -> Message) {
        for _ in 0..=self.roll(2) {
            if self.roll(5) != 0 {
                let delay = self.roll(3_000);
                self.flying.push((self.now + delay, message()));
            }
        }
    }

    fn renew(&mut self) {
        let here = self.clock(0);
        let request = self.holder.ask(here);
        if self.sessions[0].0 {
            return self.send(|| Message::Renew(0, request.clone()));
        }
        let Some((ask, peers)) = self.holder.ask_peers(&request) else {
            return;
        };
        for peer in 1..=peers.len() {
            self.send(|| Message::Ask(peer, ask.clone()));
        }
    }

    /// The coordinator asks those whom it takes for connected.
    fn withhold(&mut self) {
        let now = self.coordinator_clock();
        let waits = self.coordinator.as_ref().is_none_or(|c| now < c.until);
        if waits || self.sessions[0].1 {
            return;
        }
        for peer in 1..self.sessions.len() {
            if self.sessions[peer].1 {
                self.send(|| Message::Withhold(peer));
            }
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let due: Vec<_> = self.flying.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, message) in due {
            self.take(message);
        }
    }

    fn take(&mut self, message: Message) {
        let clock = self.coordinator_clock();
        match message {
            Message::Renew(by, request) => {
                let Some(coordinator) = self.coordinator.as_mut() else {
                    return;
                };
                coordinator.until = coordinator.until.max(clock + LENGTH.0);
                let grant = LeaseGrant {
                    number: request.number,
                    length: LENGTH,
                    margin: MARGIN,
                    circle: self.circle.clone(),
                };
                self.send(|| Message::Grant(by, grant.clone()));
            }
            Message::Grant(0, grant) => drop(self.holder.on_grant(grant)),
            Message::Grant(by, grant) => {
                self.send(|| Message::Answer(by, LeaseAnswer::Granted(grant.clone())));
            }
            Message::Ask(by, ask) => self.asked(by, &ask),
            Message::Answer(by, answer) => {
                let here = self.clock(0);
                self.holder.on_answer(here, &node(by), answer);
            }
            Message::Withhold(by) => {
                let here = self.clock(by);
                let left = self.vouchers[by].withhold(here, node(0), PERIOD);
                self.send(|| Message::Withheld(by, left));
            }
            Message::Withheld(by, left) => {
                if let Some(coordinator) = self.coordinator.as_mut() {
                    let word = (clock, clock + left.0);
                    coordinator.withheld.insert(node(by), word);
                }
            }
        }
    }

    fn asked(&mut self, by: usize, ask: &LeaseAsk) {
        if self.sessions[by].0 {
            return self.send(|| Message::Renew(by, ask.request.clone()));
        }
        let here = self.clock(by);
        if self.vouchers[by].vouch(here, &node(0), ask, false) {
            let number = ask.request.number;
            self.send(|| Message::Answer(by, LeaseAnswer::Vouched { number }));
        }
    }

    fn taken_for_lost(&self) -> bool {
        let now = self.coordinator_clock();
        let Some(coordinator) = &self.coordinator else {
            return false;
        };
        let words: Vec<_> = coordinator
            .withheld
            .values()
            .filter(|(at, _)| now < at + PERIOD.0)
            .collect();
        let rest = self.circle.members.len() - words.len();
        let ends = words.iter().map(|(_, left)| *left);
        let last = ends.chain([coordinator.until]).max().unwrap_or_default();
        !self.sessions[0].1 && rest < self.circle.majority() && now >= last + MARGIN.0
    }
}
