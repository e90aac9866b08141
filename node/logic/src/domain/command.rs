//! Which lifecycle command is accepted, ignored or denied in which state.
//!
//! A pure decision, apart from what then happens: [`decide`] looks at a
//! [`View`] and changes nothing.

use godwit_shared::model::{DomainState, Epoch, LifecycleCommand, Problem, codes};

use super::effect::Request;
use super::machine::View;

/// What becomes of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is carried out.
    Accept,
    /// The same command is under way: its answer is this one's too.
    Join,
    /// What it asks for is already so.
    Ignore,
    /// It is refused.
    Deny(Problem),
}

/// Decides over a command.
pub fn decide(view: &View, command: LifecycleCommand, epoch: Epoch) -> Verdict {
    use LifecycleCommand as C;
    if let Some(problem) = wrong_epoch(view, command, epoch) {
        return Verdict::Deny(problem);
    }
    if view.migration.is_some() {
        return Verdict::Deny(in_migration(command));
    }
    match view.pending {
        Some(Request::Command(pending)) if pending == command => return Verdict::Join,
        Some(pending) if command != C::Stop => return Verdict::Deny(busy(command, pending)),
        _ => {}
    }
    if view.ending && view.state.has_process() {
        return match command {
            C::Stop => Verdict::Accept,
            C::Shutdown => Verdict::Ignore,
            _ => Verdict::Deny(conflict(command, "is ending", "wait until it has stopped")),
        };
    }
    by_state(view.state, view.owner, command)
}

fn by_state(state: DomainState, owner: bool, command: LifecycleCommand) -> Verdict {
    use DomainState as S;
    use LifecycleCommand as C;
    let no = |why: &str, remedy: &str| Verdict::Deny(conflict(command, why, remedy));
    match (state, command) {
        (S::Stopped, C::Start | C::Delete) => Verdict::Accept,
        (S::Stopped, C::Stop | C::Shutdown) => Verdict::Ignore,
        (S::Stopped, _) => no("is stopped", "start it first"),
        (_, C::Stop) => Verdict::Accept,
        (_, C::Delete) => no("has a running QEMU", "stop it first"),
        _ if !owner => no(
            "may not be run by this node",
            "ask the node that holds the right to run it",
        ),
        (S::Running, C::Start | C::Resume) => Verdict::Ignore,
        (S::Running, _) => Verdict::Accept,
        (S::Paused, C::Pause) => Verdict::Ignore,
        (S::Paused, C::Resume | C::Reset) => Verdict::Accept,
        (S::Paused, _) => no("is paused", "resume it, or stop it"),
        (S::ShuttingDown, C::Shutdown | C::Reset | C::Pause) => Verdict::Accept,
        (S::ShuttingDown, C::Resume) => Verdict::Ignore,
        (S::ShuttingDown, _) => no("is shutting down", "wait until it has stopped, or reset it"),
        (S::Crashed, C::Reset) => Verdict::Accept,
        (S::Crashed, _) => no("has panicked", "reset it, or stop it"),
        (S::IoError, C::Resume | C::Reset) => Verdict::Accept,
        (S::IoError, _) => no(
            "stands still because a disk failed",
            "put the storage right and resume it, or stop it",
        ),
        (S::Starting, C::Start) => Verdict::Ignore,
        (S::Starting, _) => no("is starting", "wait until it runs, or stop it"),
        (S::Unresponsive, _) => no(
            "does not answer",
            "wait until QEMU answers again, or stop it",
        ),
        (S::Incoming | S::InHandoff, _) => Verdict::Deny(in_migration(command)),
    }
}

/// An older epoch than the node's is always refused: it comes from somebody who
/// has missed a handoff. A newer one means that the node has missed one; then
/// only what cannot run the guest is done.
fn wrong_epoch(view: &View, command: LifecycleCommand, epoch: Epoch) -> Option<Problem> {
    if epoch < view.epoch {
        let text = format!(
            "`{command}` was meant for epoch {epoch}, and the domain is at epoch {}",
            view.epoch
        );
        return Some(
            Problem::new(codes::STATE_CONFLICT, text)
                .field("epoch")
                .value(epoch.to_string())
                .remedy("look at the VM's current state and try again"),
        );
    }
    let harmless = matches!(
        (command, view.state),
        (
            LifecycleCommand::Stop | LifecycleCommand::Delete | LifecycleCommand::Shutdown,
            _
        ) | (LifecycleCommand::Start, DomainState::Stopped)
    );
    if epoch > view.epoch && !harmless {
        let text = format!(
            "`{command}` was meant for epoch {epoch}, and this node only holds epoch {}",
            view.epoch
        );
        return Some(
            Problem::new(codes::STATE_CONFLICT, text)
                .field("epoch")
                .value(epoch.to_string())
                .remedy("the right to run it has passed on; stop it here"),
        );
    }
    None
}

fn conflict(command: LifecycleCommand, why: &str, remedy: &str) -> Problem {
    Problem::new(
        codes::STATE_CONFLICT,
        format!("`{command}` is not possible: the domain {why}"),
    )
    .remedy(remedy)
}

fn in_migration(command: LifecycleCommand) -> Problem {
    Problem::new(
        codes::BUSY,
        format!("`{command}` is not possible: a migration has the domain in hand"),
    )
    .remedy("wait for the migration, or cancel it")
}

fn busy(command: LifecycleCommand, pending: Request) -> Problem {
    let what = match pending {
        Request::Command(pending) => format!("`{pending}` is under way"),
        _ => "a migration has the domain in hand".to_owned(),
    };
    Problem::new(codes::BUSY, format!("`{command}` is not possible: {what}"))
        .remedy("wait for it, or stop the domain")
}
