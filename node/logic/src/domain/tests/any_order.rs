//! Whatever is asked, and whatever QEMU does, in any order.

use godwit_shared::model::{DomainState, Epoch, LifecycleCommand};
use proptest::prelude::*;

use super::super::*;
use super::world::{MIGRATION, World, trouble};
use crate::qmp::status::RunStatus;

#[derive(Debug, Clone)]
enum Op {
    Ask(Event),
    Tell(Event),
    Deliver,
    Reorder,
    Expire(usize),
    Dies,
    Hangs(bool),
    RefusesCont(bool),
    FailWrite,
}

fn command() -> impl Strategy<Value = Event> {
    use LifecycleCommand as C;
    let all = [
        C::Start,
        C::Shutdown,
        C::Reboot,
        C::Reset,
        C::Stop,
        C::Pause,
        C::Resume,
        C::Delete,
    ];
    (prop::sample::select(all.to_vec()), 1_u64..5).prop_map(|(command, epoch)| Event::Command {
        command,
        epoch: Epoch(epoch),
    })
}

fn migration() -> impl Strategy<Value = Event> {
    let epoch = (1_u64..5).prop_map(Epoch);
    let migration = MIGRATION;
    prop_oneof![
        Just(Event::BeginOutgoing { migration }),
        Just(Event::Granted),
        epoch.clone().prop_map(|epoch| Event::Stay { epoch }),
        epoch.clone().prop_map(|epoch| Event::Retire { epoch }),
        epoch
            .clone()
            .prop_map(move |epoch| Event::Receive { migration, epoch }),
        (epoch, any::<bool>()).prop_map(|(epoch, run)| Event::Activate { epoch, run }),
        Just(Event::Discard),
    ]
}

fn happening() -> impl Strategy<Value = Event> {
    let run = prop::sample::select(vec![
        RunStatus::Running,
        RunStatus::Paused,
        RunStatus::Prelaunch,
        RunStatus::InMigrate,
        RunStatus::PostMigrate,
        RunStatus::Shutdown,
        RunStatus::GuestPanicked,
    ]);
    let happened = prop::sample::select(vec![
        Happening::Stop,
        Happening::Resume,
        Happening::Reset,
        Happening::Panicked,
        Happening::Agent { open: true },
        Happening::MigrationOver,
        Happening::IoError { what: "w".into() },
        Happening::Shutdown {
            guest: true,
            reason: "guest-shutdown".into(),
        },
        Happening::Shutdown {
            guest: false,
            reason: "host-signal".into(),
        },
    ]);
    prop_oneof![
        4 => happened.prop_map(Event::Happened),
        1 => (run, any::<bool>()).prop_map(|(run, migrating)| Event::Status { run, migrating }),
        1 => Just(Event::SessionLost),
        1 => Just(Event::Ready),
        1 => Just(Event::Silent(trouble())),
        1 => Just(Event::Heard),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => command().prop_map(Op::Ask),
        4 => migration().prop_map(Op::Ask),
        3 => happening().prop_map(Op::Tell),
        10 => Just(Op::Deliver),
        1 => Just(Op::Reorder),
        2 => (0_usize..5).prop_map(Op::Expire),
        1 => Just(Op::Dies),
        1 => any::<bool>().prop_map(Op::Hangs),
        1 => any::<bool>().prop_map(Op::RefusesCont),
        1 => Just(Op::FailWrite),
    ]
}

fn apply(world: &mut World, op: Op) -> Option<Request> {
    match op {
        Op::Ask(event) => {
            let joined = world.domain.view().pending;
            let request = request_of(&event);
            if world.feed(event).is_ok() && joined != request {
                return request;
            }
        }
        // QEMU says nothing when there is none.
        Op::Tell(event) if world.alive => drop(world.feed(event)),
        Op::Deliver => {
            if let Some(event) = world.inbox.pop_front() {
                let _ = world.feed(event);
            }
        }
        Op::Reorder if world.inbox.len() > 1 && world.alive => world.inbox.swap(0, 1),
        Op::Expire(index) => {
            let timer = world.timers.iter().nth(index).copied();
            if let Some(timer) = timer {
                world.timers.remove(&timer);
                let _ = world.feed(Event::Expired(timer));
            }
        }
        Op::Dies => world.dies(),
        Op::Hangs(hangs) => world.hangs = hangs,
        Op::RefusesCont(refuses) => world.refuses_cont = refuses,
        Op::FailWrite => world.failing_writes = 1,
        Op::Tell(_) | Op::Reorder => {}
    }
    None
}

fn request_of(event: &Event) -> Option<Request> {
    match event {
        Event::Command { command, .. } => Some(Request::Command(*command)),
        Event::Stay { .. } => Some(Request::Stay),
        Event::Retire { .. } => Some(Request::Retire),
        Event::Receive { .. } => Some(Request::Receive),
        Event::Activate { .. } => Some(Request::Activate),
        Event::Discard => Some(Request::Discard),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_accepted_request_is_answered_and_nothing_runs_without_the_right(
        ops in prop::collection::vec(op(), 1..60)
    ) {
        let mut world = World::new();
        let mut accepted = Vec::new();
        for op in ops {
            if world.forgotten {
                break;
            }
            accepted.extend(apply(&mut world, op));
            let view = world.domain.view();
            prop_assert_eq!(view.state == DomainState::Stopped, !world.domain.has_process());
        }
        if !world.forgotten {
            world.exhaust();
            prop_assert_eq!(world.domain.view().pending, None);
        }
        for request in [accepted.clone(), world.answers.iter().map(|a| a.0).collect()].concat() {
            let asked = accepted.iter().filter(|r| **r == request).count();
            let answered = world.answers.iter().filter(|a| a.0 == request).count();
            prop_assert_eq!(asked, answered, "{:?}", request);
        }
    }

    #[test]
    fn what_a_restart_finds_is_what_was_there(ops in prop::collection::vec(op(), 1..40)) {
        let mut world = World::new();
        for op in ops {
            apply(&mut world, op);
            if world.forgotten {
                return Ok(());
            }
        }
        let again = Domain::restored(world.journal.clone(), None, world.alive, true);
        prop_assert_eq!(again.saved(), world.journal.clone());
        let mut world = World::with(again);
        world.domain.step(world.now, Event::Ready, &mut Vec::new()).unwrap();
        world.inbox.push_back(Event::Status { run: RunStatus::Paused, migrating: false });
        world.exhaust();
        prop_assert_eq!(world.domain.view().pending, None);
    }
}
