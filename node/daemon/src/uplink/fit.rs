//! Keeps a hello within one frame.
//!
//! A report is some 300 bytes, so a node with thousands of domains fits. What
//! could burst it are the words of many failures, QEMU's last 4 KiB each. When
//! a hello would be too large, the words are cut; the operator still finds them
//! in full with `godwit vm logs`.

use godwit_shared::model::{DomainReport, ExitReason, Problem};
use godwit_shared::wire::codec::encode;
use godwit_shared::wire::frame::MAX_FRAME;
use godwit_shared::wire::uplink::{MigrationReport, NodeHello};

/// What a cut text keeps, in bytes.
const KEPT: usize = 160;
/// Room for what surrounds a hello in its frame, in bytes.
const SLACK: usize = 64;

/// The hello as it was, or with its texts cut when it is too large for a frame.
pub(super) fn hello(mut hello: NodeHello) -> NodeHello {
    if fits(&hello) {
        return hello;
    }
    tracing::warn!(
        domains = hello.domains.len(),
        "so much has failed here that the coordinator is told in short"
    );
    hello.domains.iter_mut().for_each(cut_domain);
    hello.migrations.iter_mut().for_each(cut_migration);
    hello
}

fn fits(hello: &NodeHello) -> bool {
    encode(hello).is_ok_and(|bytes| bytes.len() + SLACK <= MAX_FRAME)
}

fn cut_domain(report: &mut DomainReport) {
    match &mut report.exit {
        Some(ExitReason::FailedToStart { error }) => cut(error),
        Some(ExitReason::Crashed { detail }) => cut(detail),
        _ => {}
    }
    if let Some(problem) = &mut report.problem {
        cut_problem(problem);
    }
}

fn cut_migration(report: &mut MigrationReport) {
    if let Some(failure) = &mut report.failure {
        cut_problem(&mut failure.problem);
    }
}

fn cut_problem(problem: &mut Problem) {
    cut(&mut problem.message);
    for text in [&mut problem.value, &mut problem.remedy]
        .into_iter()
        .flatten()
    {
        cut(text);
    }
    problem.also.clear();
}

fn cut(text: &mut String) {
    if text.len() > KEPT {
        let end = (0..=KEPT).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use godwit_shared::model::{AgentState, DomainState, Epoch, UnixMillis, VmId, codes};
    use godwit_shared::wire::document::Document;

    use super::*;

    fn failed(vm: u128, words: usize) -> DomainReport {
        DomainReport {
            vm: VmId::from_u128(vm),
            name: "a".parse().unwrap(),
            epoch: Epoch::FIRST,
            owner: true,
            state: DomainState::Stopped,
            since: UnixMillis(1),
            exit: Some(ExitReason::FailedToStart {
                error: "ä".repeat(words / 2),
            }),
            problem: Some(Problem::new(codes::QEMU_START, "x".repeat(words))),
            agent: AgentState::Absent,
            pid: None,
            migration: None,
            machine: None,
            accelerator: None,
            usage: None,
        }
    }

    fn of(domains: Vec<DomainReport>) -> NodeHello {
        NodeHello {
            facts: Document::of(&1).unwrap(),
            domains,
            migrations: Vec::new(),
        }
    }

    #[test]
    fn a_hello_that_fits_stays_as_it_is() {
        let small = of(vec![failed(1, 4096)]);
        assert_eq!(hello(small.clone()), small);
    }

    #[test]
    fn a_hello_full_of_failures_is_made_to_fit() {
        let large = of((0..1000).map(|vm| failed(vm, 4096)).collect());
        assert!(!fits(&large));
        let told = hello(large);
        assert!(fits(&told));
        assert_eq!(told.domains.len(), 1000);
        let Some(ExitReason::FailedToStart { error }) = &told.domains[0].exit else {
            panic!("{:?}", told.domains[0]);
        };
        assert!(error.ends_with('…') && error.len() < 200);
    }
}
