//! What may happen next.
//!
//! *Progress* is what happens by itself as long as nothing goes wrong: tasks get
//! done, messages arrive, QEMU gets on, daemons come back. *Time* passes only
//! when there is no progress left: deadlines are far longer than anything that
//! is under way. A deadline that passes earlier, like everything else that goes
//! wrong, is a [`Fault`] and comes out of the [`Budget`](crate::fault::Budget).

use godwit_node_logic::domain::{Action as Command, Event};
use godwit_node_logic::handoff::{
    IncomingStage, SourceEvent, TargetEffect, TargetEvent, Timer, TombstoneVerdict,
};
use godwit_shared::model::MigrationPhase;
use godwit_shared::wire::uplink::Verdict;

use crate::Handoff;
use crate::coordinator::{self, Order};
use crate::disk;
use crate::host::timers;
use crate::link::Side;
use crate::mutant::Mutant;
use crate::qemu::{self, Progress};
use crate::world::{Disk, HOSTS, Host, InTask, MOVES, Move, NOW, OutTask, StayStep, Way, World};

/// One step of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A source's task goes on.
    Out(Move, OutTask),
    /// A target's task goes on.
    In(Move, InTask),
    /// What a target that has ended still does goes on.
    Close(Move),
    /// The next message of the control stream arrives.
    Deliver(Move, Side),
    /// A side notices that the connection ended.
    Notice(Move, Side),
    /// A source in doubt asks.
    Ask(Move, Way),
    /// The answer arrives.
    Hear(Move, Way),
    /// A daemon reads what QEMU said.
    Read(Host),
    /// QEMU obeys the domain's next command.
    Obey(Host),
    /// A daemon notices that QEMU has ended.
    Exit(Host),
    /// QEMU gets on.
    Qemu(Host, Progress),
    /// A daemon comes back.
    Restart(Host),
    /// A source's deadline passes.
    Fire(Move, Timer),
    /// A target has waited long enough for its source's last word.
    Enough(Move),
    /// A node opens a session with the coordinator.
    Hello(Host),
    /// A node tells the coordinator of its domain.
    Report(Host),
    /// A source tells the coordinator of its migration.
    ReportMove(Move),
    /// A node gets an order of the coordinator.
    Order(Order),
    /// The coordinator comes back.
    CoordinatorRestart,
    /// Something goes wrong, or an operator wants something.
    Fault(Fault),
}

/// What comes out of the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The connection is cut.
    Cut(Move),
    /// A daemon is killed.
    Crash(Host),
    /// A host is booted anew. What was not waited for may be lost.
    Reboot {
        /// Which.
        n: Host,
        /// It is.
        forgets: bool,
    },
    /// A QEMU is killed.
    Kill {
        /// On which host.
        n: Host,
        /// What it had said and nobody had read is gone, too.
        mute: bool,
    },
    /// A source's task cannot write.
    WriteOut(Move, OutTask),
    /// A target's task cannot write: which of its files, a bit for each.
    WriteIn(Move, InTask, u8),
    /// What a target that has ended still does cannot be written.
    WriteClose(Move),
    /// An operator calls it off.
    Cancel(Move),
    /// A deadline passes early.
    Late(Move, Timer),
    /// A target gives its source's last word up early.
    LateEnough(Move),
    /// An answer is lost.
    Lose(Move, Way),
    /// The next message arrives, and will arrive again.
    Repeat(Move, Side),
    /// An answer arrives, and will arrive again.
    HearAgain(Move, Way),
    /// Somebody asks the target.
    Stray(Move),
    /// QEMU refuses the domain's `cont`.
    Refuse(Host),
    /// QEMU refuses to go on after a migration that did not happen.
    RefuseStay(Move, OutTask),
    /// QEMU obeys the domain's `cont`, and is not heard in time.
    Silent(Host),
    /// A mirror's job fails by itself.
    BreakMirror(Host),
    /// A second migration is asked for.
    Second(Host, Host),
    /// An operator ends the doubt where nobody knows: the guest is looked at
    /// before, and runs where it has to.
    Resolve {
        /// Of which migration.
        m: Move,
        /// It is its source.
        here: bool,
    },
    /// The coordinator is killed.
    Outage,
}

/// Whether nothing more happens without another fault.
pub fn is_quiet(model: &Handoff, world: &World) -> bool {
    gets_on(model, world).next().is_none()
}

/// What brings things forward, where nothing else goes wrong.
pub fn gets_on(model: &Handoff, world: &World) -> impl Iterator<Item = Action> + use<> {
    let mut all = progress(model, world);
    all.retain(|action| !is_idle(world, *action));
    if all.is_empty() {
        all = time(world);
    }
    all.into_iter()
}

/// Everything that may happen.
pub fn actions(model: &Handoff, world: &World, all: &mut Vec<Action>) {
    *all = progress(model, world);
    if all.iter().all(|action| is_idle(world, *action)) {
        all.extend(time(world));
    }
    if world.left.total > 0 {
        faults(world, all);
    }
    if world.left.seconds > 0 {
        let routes = model.seconds.iter();
        all.extend(routes.map(|(from, to)| Action::Fault(Fault::Second(*from, *to))));
    }
}

/// Progress, and questions whose answer brings nothing.
pub fn progress(model: &Handoff, world: &World) -> Vec<Action> {
    let mut all = Vec::new();
    for m in (0..MOVES).filter(|m| world.moves[*m].route.is_some()) {
        of_source(model, world, m, &mut all);
        of_target(world, m, &mut all);
        of_link(world, m, &mut all);
    }
    for n in 0..HOSTS {
        of_host(world, n, &mut all);
    }
    if model.coordinator {
        coordinator::progress(world, &mut all);
    }
    // Last: it is tried again for as long as nothing else gets on.
    let reconnects = (0..MOVES).filter(|m| reconnects(world, *m));
    all.extend(reconnects.map(|m| Action::Fire(m, Timer::Reconnect)));
    all
}

fn of_source(model: &Handoff, world: &World, m: Move, all: &mut Vec<Action>) {
    let state = &world.moves[m];
    let answers = Way::ALL
        .into_iter()
        .filter(|way| state.answers[*way as usize].is_some());
    all.extend(answers.map(|way| Action::Hear(m, way)));
    let (Some(outgoing), Some(n)) = (&state.outgoing, world.source_of(m)) else {
        return;
    };
    // The domain's mailbox keeps the order: it is shown before it is ended. So
    // does QMP: what was asked of QEMU before is done before.
    let marks = outgoing.tasks.contains(&OutTask::Mark);
    let commands = &world.hosts[n]
        .domain
        .as_ref()
        .map(|d| d.commands.as_slice());
    let asked = commands.is_some_and(|commands| !commands.is_empty());
    let stop = OutTask::StopForPostcopy { stopped: false };
    let has = |task| outgoing.tasks.contains(&task);
    let starts = asked || has(OutTask::Start) || has(stop) || has(OutTask::Stop);
    let cancels = starts || has(OutTask::Cancel);
    for task in &outgoing.tasks {
        let waits = match task {
            OutTask::Stay {
                step: StayStep::Told,
                ..
            }
            | OutTask::Retire { told: true, .. } => true,
            OutTask::Journal(_) => marks,
            OutTask::StartMirror
            | OutTask::FinishMirror
            | OutTask::LetGo
            | OutTask::Start
            | OutTask::StopForPostcopy { .. }
            | OutTask::StartPostcopy
            | OutTask::Stop
            | OutTask::Continue
            | OutTask::Resume => asked,
            OutTask::Released => {
                !disk::is_released(world, m) && model.mutant != Some(Mutant::FinishedBeforeReleased)
            }
            OutTask::Cancel => starts,
            // What QEMU said before its answer is read before it.
            OutTask::Reconnect => asked || has(OutTask::Resume) || !world.hosts[n].news.is_empty(),
            OutTask::Stay { .. } => marks || cancels,
            OutTask::Retire { epoch, .. } => {
                marks || !takes(world, n, Event::Retire { epoch: *epoch })
            }
            _ => false,
        };
        if !waits {
            all.push(Action::Out(m, *task));
        }
    }
    if outgoing.phase == MigrationPhase::InDoubt && matters(world, m, Timer::Ask) {
        let ways = Way::ALL
            .into_iter()
            .filter(|way| may_ask(model, world, m, *way));
        all.extend(ways.map(|way| Action::Ask(m, way)));
    }
}

/// Whether the domain takes that event; one that is gone lets everything pass.
fn takes(world: &World, n: Host, event: Event) -> bool {
    let Some(domain) = &world.hosts[n].domain else {
        return true;
    };
    domain
        .machine
        .clone()
        .step(NOW, event, &mut Vec::new())
        .is_ok()
}

/// Whether a source in post-copy tries to connect anew.
fn reconnects(world: &World, m: Move) -> bool {
    world.moves[m].outgoing.as_ref().is_some_and(|o| {
        let armed = timers::armed(o.timers).any(|timer| timer == Timer::Reconnect);
        o.phase == MigrationPhase::PostcopyPaused && !o.reconnecting && armed
    })
}

fn may_ask(model: &Handoff, world: &World, m: Move, way: Way) -> bool {
    let state = &world.moves[m];
    let waits = state
        .incoming
        .as_ref()
        .is_some_and(|i| i.open[way as usize]);
    let up = world.target_of(m).is_some_and(|n| world.hosts[n].up);
    match way {
        Way::Direct => up && !waits && state.answers[0].is_none(),
        Way::Relayed => {
            let relays = model.coordinator && coordinator::relays(world, m);
            relays && !waits && state.answers[1].is_none()
        }
    }
}

/// A question whose answer changes nothing: the target has taken the grant and
/// does not run yet, or nobody knows and that was shown.
fn is_idle(world: &World, action: Action) -> bool {
    let (Action::Ask(m, way) | Action::Hear(m, way)) = action else {
        return false;
    };
    let state = &world.moves[m];
    let alarmed = state.outgoing.as_ref().is_some_and(|o| o.alarmed);
    let answer = expected(world, m);
    if matches!(action, Action::Hear(..)) && state.answers[way as usize] != answer {
        return false;
    }
    match answer {
        Some(Verdict::Granted { running }) => !running,
        Some(Verdict::Lost) => alarmed,
        Some(Verdict::Refused) => false,
        None => false,
    }
}

/// What the target would answer at once.
fn expected(world: &World, m: Move) -> Option<Verdict> {
    let Some(incoming) = &world.moves[m].incoming else {
        let stones = world.target_of(m).map(|n| &world.hosts[n].disk.stones);
        return stones.and_then(|stones| stones[m]).map(Verdict::from);
    };
    let mut effects = Vec::new();
    let _ = incoming
        .target
        .clone()
        .step(TargetEvent::Query, &mut effects);
    effects.into_iter().find_map(|effect| match effect {
        TargetEffect::Answer(verdict) => Some(verdict),
        _ => None,
    })
}

fn of_target(world: &World, m: Move, all: &mut Vec<Action>) {
    let state = &world.moves[m];
    if state.closing {
        all.push(Action::Close(m));
    }
    let (Some(incoming), Some(n)) = (&state.incoming, world.target_of(m)) else {
        return;
    };
    for task in &incoming.tasks {
        let waits = match task {
            InTask::Activate { told: true, .. } | InTask::Discard { told: true } => true,
            InTask::Activate { .. } => is_busy(world, n),
            InTask::Discard { .. } => !takes(world, n, Event::Discard),
            // What QEMU said before its answer is read before it.
            InTask::ListenAgain => !world.hosts[n].news.is_empty(),
            _ => false,
        };
        if !waits {
            all.push(Action::In(m, *task));
        }
    }
}

/// The domain would say: not yet.
fn is_busy(world: &World, n: Host) -> bool {
    let Some(domain) = &world.hosts[n].domain else {
        return false;
    };
    let view = domain.machine.view();
    view.pending.is_some() || view.ending
}

fn of_link(world: &World, m: Move, all: &mut Vec<Action>) {
    let link = &world.moves[m].link;
    if link.source_hears && !link.to_source.is_empty() {
        all.push(Action::Deliver(m, Side::Source));
    }
    let up = world.target_of(m).is_some_and(|n| world.hosts[n].up);
    if up && link.target_hears && !link.to_target.is_empty() {
        all.push(Action::Deliver(m, Side::Target));
    }
    let sides = Side::ALL.into_iter().filter(|side| link.may_notice(*side));
    all.extend(sides.map(|side| Action::Notice(m, side)));
}

fn of_host(world: &World, n: Host, all: &mut Vec<Action>) {
    let host = &world.hosts[n];
    if !host.up {
        all.push(Action::Restart(n));
    }
    all.extend(
        qemu::progress(world, n)
            .into_iter()
            .map(|what| Action::Qemu(n, what)),
    );
    if !host.news.is_empty() {
        all.push(Action::Read(n));
    }
    let Some(domain) = &host.domain else { return };
    if host.qemu.is_some() && !domain.commands.is_empty() {
        all.push(Action::Obey(n));
    }
    if host.qemu.is_none() && host.news.is_empty() && domain.machine.has_process() {
        all.push(Action::Exit(n));
    }
}

/// Deadlines that make a difference.
fn time(world: &World) -> Vec<Action> {
    let mut all = Vec::new();
    for m in 0..MOVES {
        let state = &world.moves[m];
        if let Some(outgoing) = &state.outgoing {
            let due = timers::armed(outgoing.timers).filter(|timer| !is_periodic(*timer));
            let due = due.filter(|timer| matters(world, m, *timer));
            all.extend(due.map(|timer| Action::Fire(m, timer)));
        }
        if state.incoming.as_ref().is_some_and(|i| i.waits_for_source) {
            all.push(Action::Enough(m));
        }
    }
    all
}

/// What is tried again and again gets on by itself.
const fn is_periodic(timer: Timer) -> bool {
    matches!(timer, Timer::Ask | Timer::Reconnect)
}

fn matters(world: &World, m: Move, timer: Timer) -> bool {
    world.moves[m].outgoing.as_ref().is_some_and(|outgoing| {
        let mut effects = Vec::new();
        let _ = outgoing
            .source
            .clone()
            .step(SourceEvent::Timeout(timer), &mut effects);
        !effects.is_empty()
    })
}

fn faults(world: &World, all: &mut Vec<Action>) {
    let begin = all.len();
    for n in 0..HOSTS {
        faults_of_host(world, n, all);
    }
    for m in (0..MOVES).filter(|m| world.moves[*m].route.is_some()) {
        faults_of_link(world, m, all);
        faults_of_actors(world, m, all);
    }
    if world.left.outages > 0 && world.coordinator.digest.up {
        all.push(Action::Fault(Fault::Outage));
    }
    debug_assert!(all[begin..].iter().all(|a| matches!(a, Action::Fault(_))));
}

fn faults_of_host(world: &World, n: Host, all: &mut Vec<Action>) {
    let (host, left) = (&world.hosts[n], &world.left);
    // A host that has no part in anything needs no faults.
    let idle = host.qemu.is_none() && host.domain.is_none() && host.disk == Disk::default();
    let awaited = world
        .moves
        .iter()
        .any(|m| m.incoming.is_some() || m.link.is_up());
    if host.up && idle && !awaited {
        return;
    }
    let mut add = |can: bool, fault| {
        if can {
            all.push(Action::Fault(fault));
        }
    };
    let lives = host.qemu.is_some();
    add(left.crashes > 0 && host.up, Fault::Crash(n));
    add(left.reboots > 0, Fault::Reboot { n, forgets: false });
    let forgets = left.reboots > 0 && host.synced != host.disk;
    add(forgets, Fault::Reboot { n, forgets: true });
    let killed = left.kills > 0 && lives;
    add(killed, Fault::Kill { n, mute: false });
    add(
        killed && !host.news.is_empty(),
        Fault::Kill { n, mute: true },
    );
    add(
        left.jobs > 0 && disk::may_fail(world, n),
        Fault::BreakMirror(n),
    );
    let next = host.domain.as_ref().and_then(|d| d.commands.first());
    let runs = lives && next == Some(&Command::Cont);
    add(runs && left.refusals > 0, Fault::Refuse(n));
    add(runs && left.silences > 0, Fault::Silent(n));
}

fn faults_of_link(world: &World, m: Move, all: &mut Vec<Action>) {
    let (state, left) = (&world.moves[m], &world.left);
    let link = &state.link;
    let mut add = |can: bool, fault| {
        if can {
            all.push(Action::Fault(fault));
        }
    };
    let stands = matches!(
        link.state,
        crate::link::State::Up | crate::link::State::Closing
    );
    add(left.cuts > 0 && stands, Fault::Cut(m));
    let up = world.target_of(m).is_some_and(|n| world.hosts[n].up);
    let again = left.repeats > 0;
    add(
        again && link.source_hears && !link.to_source.is_empty(),
        Fault::Repeat(m, Side::Source),
    );
    add(
        again && up && link.target_hears && !link.to_target.is_empty(),
        Fault::Repeat(m, Side::Target),
    );
    for way in Way::ALL {
        let on_its_way = state.answers[way as usize].is_some();
        add(left.losses > 0 && on_its_way, Fault::Lose(m, way));
        add(again && on_its_way, Fault::HearAgain(m, way));
    }
    let unasked = state.incoming.as_ref().is_none_or(|i| !i.open[1]) && state.answers[1].is_none();
    add(left.strays > 0 && up && unasked, Fault::Stray(m));
}

fn faults_of_actors(world: &World, m: Move, all: &mut Vec<Action>) {
    let (state, left) = (&world.moves[m], &world.left);
    let mut add = |can: bool, fault| {
        if can {
            all.push(Action::Fault(fault));
        }
    };
    if let Some(outgoing) = &state.outgoing {
        add(left.cancels > 0, Fault::Cancel(m));
        let unknown = world.target_of(m).map(|n| world.hosts[n].disk.stones[m]);
        let unknown = unknown == Some(Some(TombstoneVerdict::Lost));
        let doubts = outgoing.phase == MigrationPhase::InDoubt && unknown;
        let here = world
            .source_of(m)
            .and_then(|n| world.hosts[n].qemu.as_ref());
        let here = here.is_some_and(|q| q.newest);
        add(left.resolves > 0 && doubts, Fault::Resolve { m, here });
        for timer in timers::armed(outgoing.timers).filter(|timer| !is_periodic(*timer)) {
            add(
                left.lates > 0 && matters(world, m, timer),
                Fault::Late(m, timer),
            );
        }
        for task in &outgoing.tasks {
            add(
                left.writes > 0 && writes_out(task),
                Fault::WriteOut(m, *task),
            );
            let runs = matches!(
                task,
                OutTask::Stay {
                    step: StayStep::Run,
                    ..
                }
            );
            add(
                left.refusals > 0 && runs && outgoing.run,
                Fault::RefuseStay(m, *task),
            );
        }
    }
    if let Some(incoming) = &state.incoming {
        add(
            left.lates > 0 && incoming.waits_for_source,
            Fault::LateEnough(m),
        );
        for task in &incoming.tasks {
            let once = left.writes > 0 && writes_in(task);
            add(once, Fault::WriteIn(m, *task, 1));
            let marks = matches!(task, InTask::Journal(IncomingStage::Running { .. }));
            add(once && marks, Fault::WriteIn(m, *task, 2));
            add(once && marks, Fault::WriteIn(m, *task, 3));
        }
    }
    add(left.writes > 0 && state.closing, Fault::WriteClose(m));
}

fn writes_out(task: &OutTask) -> bool {
    match task {
        OutTask::Journal(_) | OutTask::Mark | OutTask::Retire { told: false, .. } => true,
        OutTask::Stay { step, .. } => matches!(step, StayStep::LetGo | StayStep::Clear),
        _ => false,
    }
}

fn writes_in(task: &InTask) -> bool {
    matches!(
        task,
        InTask::Start
            | InTask::Promise
            | InTask::Journal(_)
            | InTask::Activate { told: false, .. }
            | InTask::Bury(_)
    )
}
