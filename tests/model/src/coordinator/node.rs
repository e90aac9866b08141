//! What a node tells its coordinator: the daemon's notice board.

use godwit_shared::model::{
    AgentState, DomainReport, Epoch, ExitReason, MigrationFigures, MigrationPhase,
    MigrationProgress, NodeFacts, Problem, VmName,
};
use godwit_shared::wire::document::Document;
use godwit_shared::wire::uplink::{MigrationReport, NodeHello};

use super::digest::{DomainTold, MoveTold, Told};
use crate::world::{End, Host, MOVES, Move, NOW, VM, World, id_of};

/// Everything on a node's board.
pub(super) fn told(world: &World, n: Host) -> Told {
    let mut told = Told {
        domain: domain(world, n),
        ..Told::default()
    };
    for m in (0..MOVES).filter(|m| world.source_of(*m) == Some(n)) {
        told.moves[m] = migration(world, m);
    }
    told
}

/// Its domain.
pub(super) fn domain(world: &World, n: Host) -> Option<DomainTold> {
    let domain = world.hosts[n].domain.as_ref()?;
    let view = domain.machine.view();
    Some(DomainTold {
        state: view.state,
        epoch: view.epoch,
        owner: view.owner,
        migration: (0..MOVES).find(|m| view.migration == Some(id_of(*m))),
        crashed: view.exit.is_some(),
    })
}

/// A migration that leaves it.
pub(super) fn migration(world: &World, m: Move) -> Option<MoveTold> {
    let state = &world.moves[m];
    if let Some(outgoing) = &state.outgoing {
        return Some(MoveTold {
            phase: Some(outgoing.phase),
            end: None,
            epoch: outgoing.epoch,
        });
    }
    let (end, epoch) = state.end?;
    Some(MoveTold {
        phase: None,
        end: Some(end),
        epoch,
    })
}

/// The first message of a session.
pub(super) fn hello(world: &World, n: Host) -> Result<NodeHello, Problem> {
    let told = told(world, n);
    let moves = (0..MOVES).filter_map(|m| migration_report(world, m, told.moves[m]?));
    Ok(NodeHello {
        facts: Document::of(&NodeFacts::default())?,
        domains: told.domain.iter().map(report).collect(),
        migrations: moves.collect(),
    })
}

/// A report of the domain.
pub(super) fn report(told: &DomainTold) -> DomainReport {
    DomainReport {
        vm: VM,
        name: name(),
        epoch: told.epoch,
        owner: told.owner,
        state: told.state,
        since: NOW,
        exit: told.crashed.then(|| ExitReason::Crashed {
            detail: String::new(),
        }),
        problem: None,
        agent: AgentState::Absent,
        pid: told.state.has_process().then_some(1),
        migration: told.migration.map(id_of),
        machine: None,
        accelerator: None,
        usage: None,
    }
}

/// A report of a migration.
pub(super) fn migration_report(world: &World, m: Move, told: MoveTold) -> Option<MigrationReport> {
    let (from, to) = world.moves[m].route?;
    let phase = match (told.end, told.phase) {
        (Some(End::Completed), _) => MigrationPhase::Completed,
        (Some(End::Failed), _) => MigrationPhase::Failed,
        (Some(End::Cancelled), _) => MigrationPhase::Cancelled,
        (None, phase) => phase.unwrap_or(MigrationPhase::Queued),
    };
    Some(MigrationReport {
        migration: id_of(m),
        vm: VM,
        source: crate::node_id(from),
        target: crate::node_id(to),
        phase,
        since: NOW,
        started: NOW,
        progress: MigrationProgress::default(),
        blackout: None,
        figures: MigrationFigures::default(),
        failure: None,
        epoch: told.epoch,
    })
}

/// The VM's name.
pub(super) fn name() -> VmName {
    // The name is fine, so the second never comes to pass.
    "vm".parse().unwrap_or_else(|_| name())
}

/// The epoch at which it all begins.
pub(super) const FIRST: Epoch = crate::world::FIRST;
