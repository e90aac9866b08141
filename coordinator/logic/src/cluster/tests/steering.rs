//! Changing a migration under way, and ending a doubt.

use godwit_shared::model::{BytesPerSec, DoubtDecision, MigrationTuning, codes};

use super::migration::{accepted, phase};
use super::*;
use crate::effect::Answer;
use crate::record::Resolution;

const TUNING: MigrationTuning = MigrationTuning {
    bandwidth: Some(BytesPerSec(1 << 20)),
    downtime: None,
    postcopy: false,
};

#[test]
fn a_migration_is_changed_by_its_source_while_it_sends_memory() {
    let (mut bench, _, migration, _) = accepted();
    let tune = || Input::TuneMigration {
        migration,
        ticket: Ticket(9),
        tuning: TUNING,
    };
    let early = bench.step(tune()).unwrap_err();
    assert_eq!(early.code, codes::STATE_CONFLICT, "{early}");
    phase(&mut bench, migration, MigrationPhase::Precopy);
    assert_eq!(bench.step(tune()), Ok(Output::Waiting));
    let asked = bench.asked();
    let body = NodeRequest::TuneMigration {
        migration,
        tuning: TUNING,
    };
    assert_eq!(asked.body, body);
    let refusal = Problem::new(codes::QEMU_COMMAND, "no");
    bench.reply(&asked, Err(refusal.clone()));
    assert_eq!(bench.answers.remove(0), (Ticket(9), Err(refusal)));
    bench.step(tune()).unwrap();
    let asked = bench.asked();
    bench.reply(&asked, Ok(NodeReply::Done));
    let (_, answer) = bench.answers.remove(0);
    assert!(matches!(answer, Ok(Answer::Migration(view)) if view.id == migration));
}

#[test]
fn an_operators_decision_is_the_sources_to_carry_out_and_written_down() {
    let (mut bench, _, migration, _) = accepted();
    let resolution = Resolution {
        decision: DoubtDecision::RunOnSource,
        by: "admin".into(),
        at: UnixMillis(7),
    };
    let resolve = || Input::ResolveMigration {
        migration,
        ticket: Ticket(9),
        resolution: resolution.clone(),
    };
    phase(&mut bench, migration, MigrationPhase::Handoff);
    let early = bench.step(resolve()).unwrap_err();
    assert_eq!(early.code, codes::STATE_CONFLICT, "{early}");
    phase(&mut bench, migration, MigrationPhase::InDoubt);
    bench.step(resolve()).unwrap();
    let asked = bench.asked();
    assert!(matches!(asked.body, NodeRequest::ResolveMigration { .. }));
    let view = bench.cluster.migration(migration).unwrap();
    let before = Some(resolution.clone());
    assert_eq!(
        view.resolution, before,
        "written down before it can be acted on"
    );
    let refusal = Problem::new(codes::STATE_CONFLICT, "it is not in doubt");
    bench.reply(&asked, Err(refusal));
    let view = bench.cluster.migration(migration).unwrap();
    assert_eq!(view.resolution, None, "it was not done");
    bench.step(resolve()).unwrap();
    let asked = bench.asked();
    bench.reply(&asked, Ok(NodeReply::Done));
    let view = bench.cluster.migration(migration).unwrap();
    assert_eq!(view.resolution, Some(resolution));
}
