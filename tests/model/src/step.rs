//! One step: from a state and an action to the next state.

use godwit_node_logic::domain::Domain;

use crate::Handoff;
use crate::action::{Action, Fault};
use crate::disk::Image;
use crate::judge::Judge;
use crate::link::Side;
use crate::part::Part;
use crate::qemu::Qemu;
use crate::world::{Disk, FIRST, Host, HostState, Move, MoveState, NOW, Record, Run, World};

/// A step in the making.
pub struct Step<'a> {
    /// What is checked.
    pub(crate) model: &'a Handoff,
    /// The state that becomes the next one.
    pub(crate) world: World,
    /// Which of the step's writes fail: the first by the lowest bit.
    pub(crate) failing: u8,
}

/// The state after an action; none where it makes no difference.
pub fn next(model: &Handoff, before: &World, action: Action) -> Option<World> {
    let mut step = Step {
        model,
        world: before.clone(),
        failing: 0,
    };
    step.take(action);
    let mut after = step.world;
    after.seal(before);
    (after != *before).then_some(after)
}

impl Step<'_> {
    fn take(&mut self, action: Action) {
        match action {
            Action::Out(m, task) => self.out_task(m, task),
            Action::In(m, task) => self.in_task(m, task),
            Action::Close(m) => self.close(m),
            Action::Deliver(m, side) => self.deliver(m, side, true),
            Action::Notice(m, side) => self.notice(m, side),
            Action::Ask(m, way) => self.ask(m, way),
            Action::Hear(m, way) => self.hear(m, way, true),
            Action::Read(n) => self.read(n),
            Action::Obey(n) => self.obey(n),
            Action::Exit(n) => self.exit(n, false),
            Action::Qemu(n, what) => self.qemu_progress(n, what),
            Action::Restart(n) => self.restart(n),
            Action::Fire(m, timer) => self.fire(m, timer),
            Action::Enough(m) => self.enough(m),
            Action::Hello(n) => self.hello(n),
            Action::Report(n) => self.report_domain(n),
            Action::ReportMove(m) => self.report_move(m),
            Action::Order(order) => self.carry_out(order),
            Action::CoordinatorRestart => self.coordinator_restarts(),
            Action::Fault(fault) => {
                self.pay(fault);
                self.go_wrong(fault);
            }
        }
    }

    /// Takes the fault out of the budget.
    fn pay(&mut self, fault: Fault) {
        let left = &mut self.world.left;
        let kind = match fault {
            Fault::Cut(_) => &mut left.cuts,
            Fault::Crash(_) => &mut left.crashes,
            Fault::Reboot { .. } => &mut left.reboots,
            Fault::Kill { .. } => &mut left.kills,
            Fault::WriteOut(..) | Fault::WriteIn(..) | Fault::WriteClose(_) => &mut left.writes,
            Fault::Cancel(_) => &mut left.cancels,
            Fault::Late(..) | Fault::LateEnough(_) => &mut left.lates,
            Fault::Lose(..) => &mut left.losses,
            Fault::Repeat(..) | Fault::HearAgain(..) => &mut left.repeats,
            Fault::Stray(_) => &mut left.strays,
            Fault::Refuse(_) | Fault::RefuseStay(..) => &mut left.refusals,
            Fault::Silent(_) => &mut left.silences,
            Fault::BreakMirror(_) => &mut left.jobs,
            Fault::Outage => &mut left.outages,
            Fault::Resolve { .. } => &mut left.resolves,
            // An operator's wish is no fault.
            Fault::Second(..) => {
                left.seconds -= 1;
                return;
            }
        };
        *kind -= 1;
        left.total -= 1;
        left.forget_the_rest();
    }

    fn go_wrong(&mut self, fault: Fault) {
        match fault {
            Fault::Cut(m) => self.world.moves[m].edit().link.cut(),
            Fault::Crash(n) => self.crash(n),
            Fault::Reboot { n, forgets } => self.reboot(n, forgets),
            Fault::Kill { n, mute } => {
                self.kill(n);
                if mute {
                    self.world.hosts[n].edit().news.clear();
                }
            }
            Fault::WriteOut(m, task) => {
                self.failing = 1;
                self.out_task(m, task);
            }
            Fault::WriteIn(m, task, which) => {
                self.failing = which;
                self.in_task(m, task);
            }
            Fault::WriteClose(m) => {
                self.failing = 1;
                self.close(m);
            }
            Fault::Cancel(m) => self.cancel(m),
            Fault::Late(m, timer) => self.fire(m, timer),
            Fault::LateEnough(m) => self.enough(m),
            Fault::Lose(m, way) => self.world.moves[m].edit().answers[way as usize] = None,
            Fault::Repeat(m, side) => self.deliver(m, side, false),
            Fault::HearAgain(m, way) => self.hear(m, way, false),
            Fault::Stray(m) => self.stray(m),
            Fault::Refuse(n) => self.refuse(n),
            Fault::RefuseStay(m, task) => self.refuse_stay(m, task),
            Fault::Silent(n) => self.fall_silent(n),
            Fault::BreakMirror(n) => self.break_mirror(n),
            Fault::Second(from, to) => self.begin(1, from, to),
            Fault::Outage => self.coordinator_crashes(),
            Fault::Resolve { m, here } => self.resolve(m, here),
        }
    }

    /// Whether this write goes through.
    pub(crate) fn write_goes_through(&mut self) -> bool {
        let fails = self.failing & 1 != 0;
        self.failing >>= 1;
        !fails
    }

    fn crash(&mut self, n: Host) {
        let host = self.world.hosts[n].edit();
        host.up = false;
        host.domain = None;
        host.news.clear();
        for m in 0..self.world.moves.len() {
            self.crash_sides(n, m);
        }
        self.session_ends(n);
    }

    fn crash_sides(&mut self, n: Host, m: Move) {
        let route = self.world.moves[m].route;
        if route.is_some_and(|(from, _)| from == n) {
            let state = self.world.moves[m].edit();
            state.outgoing = None;
            state.end = None;
            state.answers = [None; 2];
            state.link.cut();
            state.link.leave(Side::Source);
        }
        if route.is_some_and(|(_, to)| to == n) {
            let state = self.world.moves[m].edit();
            state.incoming = None;
            state.closing = false;
            state.link.cut();
            state.link.leave(Side::Target);
        }
    }

    fn kill(&mut self, n: Host) {
        self.world.judge.killed |= self.world.hosts[n].edit().qemu.take().is_some();
    }

    fn reboot(&mut self, n: Host, forgets: bool) {
        self.crash(n);
        self.kill(n);
        if forgets {
            self.judge_oblivion(n);
        }
        let host = self.world.hosts[n].edit();
        if forgets {
            host.disk = host.synced.clone();
        }
        if let Some(record) = &mut host.disk.record {
            record.run = record.run.former();
        }
        host.synced = host.disk.clone();
    }
}

/// The guest runs on the first host, and its migration to the second is asked
/// for.
pub fn first(model: &Handoff) -> World {
    let mut domain = Domain::new(NOW, FIRST, false).saved();
    domain.wanted = !model.paused;
    let up = || HostState {
        up: true,
        ..HostState::default()
    };
    let disk = Disk {
        record: Some(Record {
            saved: domain,
            run: Run::ThisBoot,
            handoff: None,
        }),
        ..Disk::default()
    };
    let owner = HostState {
        synced: disk.clone(),
        disk,
        image: model.plan.mirrors.then_some(Image::FIRST),
        qemu: Some(Qemu {
            running: !model.paused,
            ..Qemu::running(FIRST)
        }),
        ..up()
    };
    let world = World {
        hosts: [owner, up(), up()].map(Part::new),
        moves: [MoveState::default(), MoveState::default()].map(Part::new),
        coordinator: Part::new(crate::coordinator::Coordinator::default()),
        left: model.budget,
        judge: Judge::new(FIRST, 0),
    };
    let mut step = Step {
        model,
        world: world.clone(),
        failing: 0,
    };
    step.restart(0);
    step.begin(0, 0, 1);
    if model.coordinator {
        step.first_coordinator();
    }
    let mut first = step.world;
    first.seal(&world);
    first
}
