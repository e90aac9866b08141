//! The target's part in the recovery of a broken post-copy.
//!
//! ```text
//!  Resume --(QEMU believes in its channels: migrate-pause)--> postcopy-paused, or refused
//!    --> migrate-recover --waits--> ResumeReady
//!                        --refused--> the connection is closed; the source comes again
//! ```
//!
//! What QEMU is known to do may be older than what it does: an event that is
//! still to be read says that the recovery before this one had worked. So a
//! refusal is no end. It takes back what was believed, and the source begins anew.
//!
//! A daemon that was restarted may get no session while QEMU's main loop hangs, so
//! neither events nor an answer to `query-migrate`; only these two commands reach
//! QEMU ([`rescue`](crate::qemu::rescue)). A QEMU that refuses to be paused has
//! noticed already that its channels are gone, or has all: `migrate-recover` tells.

use std::sync::Arc;

use actix::prelude::*;
use godwit_node_logic::handoff::{QemuMigration, TargetEvent};
use godwit_shared::model::codes;
use godwit_shared::transport::CloseCode;
use tokio_util::sync::CancellationToken;

use super::{Incoming, Input};
use crate::migration::{qemu, relay};

impl Incoming {
    /// The channels' ends that are left go, so that QEMU notices; when it has, it
    /// is made to wait for new ones.
    pub(super) fn recover_qemu(&mut self) {
        // Its socket stays: QEMU may wait at it already, and then waits on.
        if let Some(relay) = &self.relay {
            relay.stop.cancel();
        }
        if self.broken {
            return self.listen_again();
        }
        self.recovery_waits = true;
        let Some(domain) = self.domain.clone() else {
            return;
        };
        let inputs = self.inputs.clone();
        actix::spawn(async move {
            if let Err(problem) = qemu::pause_postcopy(&domain).await {
                tracing::debug!(%problem, "QEMU is not told that its channels are gone");
                if problem.code == codes::QEMU_COMMAND {
                    let _ = inputs.send(Input::Looked(QemuMigration::PostcopyPaused));
                }
            }
        });
    }

    /// QEMU waits for the channels, and the new connection carries them to it.
    pub(super) fn listen_again(&mut self) {
        self.recovery_waits = false;
        let (Some(domain), Some(link)) = (self.domain.clone(), &self.link) else {
            return;
        };
        // Until the answer, or an event that comes before it, says so anew.
        self.broken = false;
        let socket = self.context.socket(self.migration);
        let stop = CancellationToken::new();
        match &mut self.relay {
            Some(relay) => relay.stop = stop.clone(),
            None => {
                self.relay = Some(relay::Relay {
                    stop: stop.clone(),
                    socket: socket.clone(),
                });
            }
        }
        let (context, connection) = (Arc::clone(&self.context), link.connection.clone());
        let (generation, inputs) = (self.generation, self.inputs.clone());
        actix::spawn(async move {
            let recovered = qemu::recover_incoming(&domain, &socket).await;
            if let Err(problem) = &recovered {
                tracing::warn!(%problem, "QEMU does not wait for the rest of its post-copy");
            } else {
                let serving = relay::serve_target(connection, Arc::from(socket), None, stop);
                context.runtime.spawn(serving);
            }
            let _ = inputs.send(Input::ListensAgain(generation, recovered.is_ok()));
        });
    }

    /// One that waits is still broken, for as long as nobody has come.
    pub(super) fn on_listens_again(
        &mut self,
        generation: u32,
        listens: bool,
        ctx: &mut Context<Self>,
    ) {
        self.broken |= listens;
        if generation != self.generation {
            if self.recovery_waits && self.broken {
                self.listen_again();
            }
        } else if listens {
            self.step(TargetEvent::Recovered, ctx);
        } else if let Some(link) = &self.link {
            link.connection
                .close(CloseCode::DONE, "QEMU is not ready for it: once more");
        }
    }
}
