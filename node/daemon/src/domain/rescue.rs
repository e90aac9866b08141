//! The domain's second QMP session, for when the ordinary one cannot be opened.

use actix::prelude::*;
use godwit_node_logic::qmp::Command;
use godwit_shared::model::Problem;
use tokio::sync::oneshot;

use super::DomainActor;
use crate::qemu::rescue::{self, Begun};
use crate::qemu::session::Session;

impl DomainActor {
    /// Opens it, where QEMU has one, and keeps it for as long as QEMU lives.
    pub(super) fn open_rescue(&mut self, begun: Begun, ctx: &mut Context<Self>) {
        let Some(process) = self.process.clone() else {
            return;
        };
        let opened = rescue::open(process, begun);
        self.later(opened, ctx, |actor, opened, _| match opened {
            Ok(session) => actor.rescue = session,
            Err(problem) => {
                tracing::warn!(vm = %actor.vm(), %problem, "a post-copy that breaks now may not outlive a restart of godwit-node");
            }
        });
    }

    /// The session for a command, once there is one. What overtakes does not
    /// wait for the ordinary one: it may be needed for that one to open.
    pub(super) fn session_for(
        &mut self,
        command: &Command,
    ) -> oneshot::Receiver<Result<Session, Problem>> {
        match &self.rescue {
            Some(rescue) if self.session.is_none() && command.may_overtake() => {
                tracing::info!(vm = %self.vm(), command = command.name, "over the second QMP session");
                let (sender, receiver) = oneshot::channel();
                let _ = sender.send(Ok(rescue.clone()));
                receiver
            }
            _ => self.session_soon(),
        }
    }
}
