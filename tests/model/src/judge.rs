//! What is asked of every state, and of every end.
//!
//! The judge sees everything: both hosts at once, and what the guest's memory
//! holds. It notes a breach in the step in which it happens; the properties look
//! at what it noted.
//!
//! | property | it holds when |
//! |---|---|
//! | [`ONE_RUNNER`] | the CPUs run on at most one host |
//! | [`NO_PAST`] | no CPUs run on memory that is not the guest's newest: nothing is done twice |
//! | [`HIGHEST_EPOCH`] | CPUs start only under the highest right that was ever passed on, and on the host that holds it |
//! | [`WORD_STANDS`] | a refusal is never followed by a grant that is taken, nor a word that the guest ran by another word |
//! | [`WRITTEN_FIRST`] | the grant is on the source's disk before it is sent; a refusal on the target's before it is said |
//! | [`WHOLE_DISK`] | CPUs run only where the disk misses no write, and where nobody else writes to it |
//! | [`DISK_KEPT`] | a source removes its disk only when the guest has run elsewhere |
//! | [`HEALS`] | there is always a way to such an end ([`crate::heal`]) |
//! | [`SETTLES`] | when nothing more can happen without another fault: exactly one host runs the guest and nothing is left of a migration, or the operator is shown why not |
//!
//! [`WORD_STANDS`] and [`WRITTEN_FIRST`] are the rules by which the code keeps the
//! others; [`HIGHEST_EPOCH`] is both.
//!
//! Four more say what has to be possible ([`MOVES_ON`], [`CALLED_OFF`],
//! [`TAKEN_BACK`], [`SHOWN_LOST`]): a model in which nothing happens breaks no
//! rule.

use godwit_node_logic::handoff::TombstoneVerdict;
use godwit_shared::model::{DomainState, Epoch};
use godwit_shared::wire::uplink::Verdict;
use stateright::Property;

use crate::Handoff;
use crate::action;
use crate::coordinator;
use crate::disk;
use crate::heal;
use crate::qemu::{Phase, Qemu};
use crate::step::Step;
use crate::world::{End, FIRST, HOSTS, Host, MOVES, Move, World};

/// At most one host runs the CPUs.
pub const ONE_RUNNER: &str = "at most one host runs the CPUs";
/// The guest's past never comes back.
pub const NO_PAST: &str = "no CPUs run on memory that is not the newest";
/// Only the holder of the highest epoch runs the CPUs.
pub const HIGHEST_EPOCH: &str = "only the holder of the highest epoch starts the CPUs";
/// A word that was said stands.
pub const WORD_STANDS: &str = "a word that was said stands";
/// Journal first, then say.
pub const WRITTEN_FIRST: &str = "what is said was written before";
/// The guest's disk is where it runs.
pub const WHOLE_DISK: &str = "no CPUs run on a disk that misses a write or that others write to";
/// A disk that may be needed is not removed.
pub const DISK_KEPT: &str = "no disk is removed where the guest may still run";
/// In the end one runs, or it is shown why not.
pub const SETTLES: &str = "when all is healed one host runs it, or it is shown why not";

/// There is always a way to an end.
pub const HEALS: &str = "without another fault an end is reached from every state";
/// The guest moves.
pub const MOVES_ON: &str = "the guest moves";
/// An operator's cancel leaves it where it is.
pub const CALLED_OFF: &str = "the guest stays because an operator wants it so";
/// A grant is taken back.
pub const TAKEN_BACK: &str = "the source takes the guest back after its grant";
/// Nobody knows.
pub const SHOWN_LOST: &str = "nobody knows whether the guest ran, and that is shown";

/// What was noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Judge {
    /// The highest right that was passed on, and to whom.
    pub right: (Epoch, Host),
    /// Breaches, a bit for each [`Breach`].
    pub breaches: u8,
    /// What targets have said, for each migration.
    pub said: [Said; MOVES],
    /// A QEMU has ended that nobody wanted to end.
    pub killed: bool,
    /// A host has forgotten something. Where the guest has ended, only the
    /// coordinator may know that it was there.
    pub forgotten: bool,
    /// An operator has ended a doubt that was shown, and knows what is left.
    pub resolved: bool,
    /// A migration has ended with the word that its guest could not be run again.
    pub stuck: bool,
    /// Where disks are not shared: the highest right under which CPUs ran.
    pub started: Epoch,
}

/// The words that were said of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Said {
    /// Not taken, and never will be.
    pub refused: bool,
    /// Taken, and the guest ran.
    pub ran: bool,
    /// Nobody knows.
    pub lost: bool,
}

/// What must never be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// [`ONE_RUNNER`].
    TwoRunners,
    /// [`NO_PAST`].
    Past,
    /// [`HIGHEST_EPOCH`].
    Right,
    /// [`WORD_STANDS`].
    Word,
    /// [`WRITTEN_FIRST`].
    Unwritten,
    /// [`WHOLE_DISK`].
    Disk,
    /// [`DISK_KEPT`].
    GivenUp,
}

impl Judge {
    /// Nothing has happened: that host holds the first right.
    pub fn new(epoch: Epoch, owner: Host) -> Self {
        Self {
            right: (epoch, owner),
            breaches: 0,
            said: [Said::default(); MOVES],
            killed: false,
            forgotten: false,
            resolved: false,
            stuck: false,
            started: Epoch(0),
        }
    }

    /// Whether that was noted.
    pub const fn saw(&self, breach: Breach) -> bool {
        self.breaches & (1 << breach as u8) != 0
    }

    pub(crate) fn note(&mut self, breach: Breach) {
        self.breaches |= 1 << breach as u8;
    }
}

impl Step<'_> {
    /// The CPUs of that host are about to run.
    pub(crate) fn judge_start(&mut self, n: Host, epoch: Epoch) {
        if self.world.runners().any(|other| other != n) {
            self.world.judge.note(Breach::TwoRunners);
        }
        if self.world.hosts[n].qemu.as_ref().is_some_and(|q| !q.newest) {
            self.world.judge.note(Breach::Past);
        }
        if self.world.judge.right != (epoch, n) {
            self.world.judge.note(Breach::Right);
        }
    }

    /// The right has passed on: that stands in the journal of who gives it.
    pub(crate) fn judge_right(&mut self, epoch: Epoch, holder: Host) {
        let right = &mut self.world.judge.right;
        if epoch > right.0 {
            *right = (epoch, holder);
        }
    }

    /// A target's word is on its way to the source.
    pub(crate) fn judge_word(&mut self, m: Move, word: Verdict) {
        let said = self.world.judge.said[m];
        let ran = word == Verdict::Granted { running: true };
        let refused = word == Verdict::Refused;
        let stands = match word {
            Verdict::Refused => !said.ran && !said.lost,
            Verdict::Granted { .. } => !said.refused,
            // A host that was booted anew may have forgotten what it knew.
            Verdict::Lost => true,
        };
        if !stands {
            self.world.judge.note(Breach::Word);
        }
        let said = &mut self.world.judge.said[m];
        said.ran |= ran;
        said.refused |= refused;
        said.lost |= word == Verdict::Lost;
        if refused && !self.is_refused_on_disk(m) {
            self.world.judge.note(Breach::Unwritten);
        }
    }

    /// A host has forgotten what it said: its words bind it no more. (What comes
    /// of that has to be as good.)
    pub(crate) fn judge_oblivion(&mut self, n: Host) {
        for m in (0..MOVES)
            .filter(|m| self.world.target_of(*m) == Some(n))
            .collect::<Vec<_>>()
        {
            self.world.judge.said[m] = Said::default();
        }
        self.world.judge.forgotten = true;
    }

    /// A grant is taken.
    pub(crate) fn judge_taken(&mut self, m: Move) {
        if self.world.judge.said[m].refused {
            self.world.judge.note(Breach::Word);
        }
    }

    /// A grant is sent.
    pub(crate) fn judge_grant(&mut self, m: Move) {
        if !self.is_granted_on_disk(m) {
            self.world.judge.note(Breach::Unwritten);
        }
    }
}

/// The properties.
pub fn properties() -> Vec<Property<Handoff>> {
    vec![
        Property::always(ONE_RUNNER, |_, w: &World| {
            !w.judge.saw(Breach::TwoRunners) && w.runners().count() < 2
        }),
        Property::always(NO_PAST, |_, w: &World| !w.judge.saw(Breach::Past)),
        Property::always(SETTLES, |model, w: &World| {
            !action::is_quiet(model, w) || unsettled(model, w).is_none()
        }),
        Property::always(HEALS, |model, w: &World| heal::heals(model, w)),
        Property::sometimes(MOVES_ON, |_, w: &World| ends(w)[0] == Some(End::Completed)),
        Property::sometimes(CALLED_OFF, |_, w: &World| {
            ends(w)[0] == Some(End::Cancelled)
        }),
        Property::sometimes(TAKEN_BACK, |_, w: &World| {
            let twice = FIRST.next().next();
            ends(w)[0] == Some(End::Failed) && w.judge.right == (twice, 0)
        }),
        Property::sometimes(SHOWN_LOST, |_, w: &World| {
            (0..MOVES).any(|m| is_shown_lost(w, m))
        }),
        Property::always(HIGHEST_EPOCH, |_, w: &World| !w.judge.saw(Breach::Right)),
        Property::always(WORD_STANDS, |_, w: &World| !w.judge.saw(Breach::Word)),
        Property::always(WRITTEN_FIRST, |_, w: &World| {
            !w.judge.saw(Breach::Unwritten)
        }),
        Property::always(WHOLE_DISK, |_, w: &World| !w.judge.saw(Breach::Disk)),
        Property::always(DISK_KEPT, |_, w: &World| !w.judge.saw(Breach::GivenUp)),
    ]
}

/// What is wrong with a state in which nothing more happens; nothing, where the
/// guest is where it belongs or the operator is shown why it is not.
pub fn unsettled(model: &Handoff, world: &World) -> Option<&'static str> {
    // A source that keeps its guest paused, because nobody knows, and says so.
    if (0..MOVES).any(|m| is_shown_lost(world, m)) {
        return None;
    }
    let hangs = |m: Move| {
        let state = &world.moves[m];
        // Its guest waits for memory that is no more, until somebody ends it.
        let over = state.lost || world.judge.forgotten;
        let waits = over && world.target_of(m).is_some_and(|n| pulls(world, n));
        state.outgoing.is_some() || (state.incoming.is_some() && !waits)
    };
    if (0..MOVES).any(hangs) {
        return Some("a migration hangs, and no alarm tells of it");
    }
    let owner = world.judge.right.1;
    for n in (0..HOSTS).filter(|n| *n != owner) {
        let host = &world.hosts[n];
        if host.qemu.is_some() {
            return Some("a QEMU is left where the guest is not");
        }
        if host
            .disk
            .record
            .as_ref()
            .is_some_and(|r| r.handoff.is_some())
        {
            return Some("a record of a migration is left where the guest is not");
        }
    }
    if let Some(what) = disks_unsettled(model, world, owner) {
        return Some(what);
    }
    if world.hosts.iter().all(|host| host.qemu.is_none())
        && world.judge.killed
        && (world.judge.forgotten || world.judge.resolved || is_shown_dead(world))
    {
        return None;
    }
    let believed = if model.coordinator {
        coordinator::unsettled(world)
    } else {
        None
    };
    settled_at(world, owner).or(believed)
}

fn disks_unsettled(model: &Handoff, world: &World, owner: Host) -> Option<&'static str> {
    model.plan.mirrors.then(|| disk::unsettled(world, owner))?
}

fn is_shown_lost(world: &World, m: Move) -> bool {
    let alarmed = world.moves[m].outgoing.as_ref().is_some_and(|o| o.alarmed);
    let target = world.target_of(m).map(|n| &world.hosts[n]);
    alarmed && target.is_some_and(|host| host.disk.stones[m] == Some(TombstoneVerdict::Lost))
}

/// The guest is lost with the process that held it, and some host says so.
fn is_shown_dead(world: &World) -> bool {
    let domains = world.hosts.iter().filter_map(|host| host.domain.as_ref());
    let mut views = domains.map(|domain| domain.machine.view());
    views.any(|view| view.owner && view.exit.is_some())
}

/// The guest's memory is not complete.
fn pulls(world: &World, n: Host) -> bool {
    let lacks = |q: &Qemu| {
        matches!(
            q.phase,
            Phase::Pulling(_) | Phase::PullBroken(_) | Phase::PullListening(_)
        )
    };
    world.hosts[n].qemu.as_ref().is_some_and(lacks)
}

fn settled_at(world: &World, owner: Host) -> Option<&'static str> {
    let host = &world.hosts[owner];
    if pulls(world, owner) {
        // The rest of its memory is gone with the other QEMU.
        let told = world.judge.forgotten || world.moves.iter().any(|m| m.lost);
        return (!told).then_some("the owner's guest lacks memory");
    }
    let Some(domain) = &host.domain else {
        return Some("the owner has no domain");
    };
    let view = domain.machine.view();
    if !view.owner || view.epoch != world.judge.right.0 {
        return Some("the domain does not know that it is the owner");
    }
    if view.migration.is_some() || domain.handoff.is_some() {
        return Some("the owner's domain is still in a migration");
    }
    match &host.qemu {
        None => Some("the owner has no QEMU, and does not say why"),
        Some(qemu) if !domain.machine.wanted() => qemu.running.then_some("a paused guest runs"),
        // QEMU refused, and the domain shows what it said.
        Some(qemu) if !qemu.running && view.problem.is_some() => None,
        // Post-copy: the device state had left. QEMU takes it back no more, and
        // the migration's outcome says so.
        Some(qemu) if qemu.refuses() && world.judge.stuck => None,
        Some(qemu) if !qemu.running => Some("the owner's guest stands still"),
        Some(_) if view.state != DomainState::Running => {
            Some("the owner's guest runs, but is shown otherwise")
        }
        Some(_) => None,
    }
}

/// How the migrations of a state ended.
pub fn ends(world: &World) -> [Option<End>; MOVES] {
    [0, 1].map(|m: Move| world.moves[m].end.map(|(end, _)| end))
}
