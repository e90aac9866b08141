//! The connection of a migration that leaves: made once, and in post-copy made
//! anew for as long as the target cannot be reached.

use std::sync::Arc;

use godwit_node_logic::handoff::{QemuMigration, SourceEvent};
use godwit_shared::model::{MigrationPolicy, Problem, codes};
use godwit_shared::transport::{CloseCode, Connection, Probing, StreamKind};
use godwit_shared::wire::document::Document;
use godwit_shared::wire::peer::{Prepare, SourceMessage};
use godwit_shared::wire::uplink::Member;
use tokio::sync::mpsc;

use super::inputs::Input;
use super::{Departure, Outgoing, PROBE};
use crate::domain::messages::OutgoingFacts;
use crate::migration::manager::MigrationContext;
use crate::migration::peer::{self, Closer, Dialled};
use crate::migration::progress::now_us;
use crate::migration::{qemu, rehearsal};

/// The connection to the target while it stands.
pub(super) struct Link {
    pub(super) outbox: mpsc::UnboundedSender<SourceMessage>,
    dialled: Dialled,
    _probing: Probing,
}

impl Link {
    pub(super) fn new(dialled: Dialled, outbox: mpsc::UnboundedSender<SourceMessage>) -> Self {
        let probing = dialled.connection.probe_every(PROBE);
        Self {
            outbox,
            dialled,
            _probing: probing,
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.dialled.connection
    }
}

impl Outgoing {
    /// Dials the target and asks it to prepare.
    pub(super) fn connect(&mut self) {
        let Some((facts, policy)) = &self.begin else {
            return;
        };
        match prepare(&self.departure, facts, policy, false) {
            Ok(prepare) => self.dial(prepare),
            Err(problem) => self.beside(async { Some(SourceEvent::CommandFailed(problem)) }),
        }
    }

    /// Opens a connection that begins with this message.
    fn dial(&mut self, first: SourceMessage) {
        self.generation += 1;
        let generation = self.generation;
        let context = Arc::clone(&self.departure.context);
        let target = self.departure.record.target.clone();
        let inputs = self.inputs.clone();
        actix::spawn(async move {
            let connected = Connecting {
                generation,
                inputs: inputs.clone(),
            };
            if let Err(problem) = converse(&context, &target, first, connected).await {
                let _ = inputs.send(Input::LinkLost(generation, problem));
            }
        });
    }

    /// Asks what time it is at the target: the pause ends there.
    pub(super) fn ask_time(&self) {
        if let Some(link) = &self.link {
            let _ = link.outbox.send(SourceMessage::AskTime {
                migration: self.migration(),
                sent_us: now_us(),
            });
        }
    }

    /// Begins to sample what the guest writes.
    pub(super) fn sample_writes(&mut self) {
        if let Some((facts, _)) = &self.begin {
            let domain = self.departure.domain.clone();
            self.writes = Some(rehearsal::sample_writes(domain, facts.run));
        }
    }

    /// Foretells how it will go, while the target prepares: once it has answered
    /// for the first time, and so has the control stream.
    pub(super) fn foretell(&mut self) {
        let first = !std::mem::replace(&mut self.foretelling, true);
        let writes = self.writes.take();
        let (Some((facts, policy)), Some(link), Some(writes), true) =
            (&self.begin, &self.link, writes, first)
        else {
            return;
        };
        let memory = rehearsal::in_use(&self.departure, facts);
        let connection = link.connection().clone();
        let foretold = rehearsal::foretell(connection, writes, memory, policy.clone());
        let inputs = self.inputs.clone();
        actix::spawn(async move {
            if let Some(forecast) = foretold.await {
                let _ = inputs.send(Input::Foretold(forecast));
            }
        });
    }

    /// Post-copy: what is left of the old connection goes, so that QEMU notices;
    /// once it has, the target is asked to make ready for the rest.
    pub(super) fn reconnect(&mut self) {
        if std::mem::replace(&mut self.reconnecting, true) {
            return;
        }
        if let Some(link) = self.link.take() {
            link.connection().close(CloseCode::DONE, "to connect anew");
        }
        self.relay = None;
        let (domain, inputs) = (self.departure.domain.clone(), self.inputs.clone());
        actix::spawn(async move {
            let _ = inputs.send(match qemu::pause_outgoing(&domain).await {
                Ok(Some(QemuMigration::PostcopyPaused)) => Input::MayDial,
                Ok(Some(other)) => Input::StaysApart(Some(other)),
                Ok(None) => Input::StaysApart(None),
                Err(problem) => {
                    tracing::warn!(%problem, "QEMU does not say how its post-copy stands");
                    Input::StaysApart(None)
                }
            });
        });
    }

    /// QEMU waits for new channels.
    pub(super) fn on_may_dial(&mut self) {
        let migration = self.migration();
        self.dial(SourceMessage::Resume { migration });
    }
}

/// What the target is asked.
pub(in crate::migration) fn prepare(
    departure: &Departure,
    facts: &OutgoingFacts,
    policy: &MigrationPolicy,
    dry_run: bool,
) -> Result<SourceMessage, Problem> {
    Ok(SourceMessage::Prepare(Prepare {
        migration: departure.record.migration,
        vm: departure.vm,
        spec: Document::of(&facts.spec)?,
        epoch: facts.epoch,
        policy: policy.clone(),
        dry_run,
        machine: facts.machine.clone(),
        accelerator: facts.accelerator.clone(),
        cpu_model: facts.cpu_model.clone(),
        qemu_version: facts.qemu_version.clone(),
        disks: facts.disks.clone(),
    }))
}

/// A connection that is being made.
struct Connecting {
    generation: u32,
    inputs: mpsc::UnboundedSender<Input>,
}

/// Opens the control stream, sends the first message and reads from then on.
async fn converse(
    context: &MigrationContext,
    target: &Member,
    first: SourceMessage,
    connecting: Connecting,
) -> Result<(), Problem> {
    let Connecting { generation, inputs } = connecting;
    let dialled = peer::dial(context, target).await?;
    let connection = dialled.connection.clone();
    let broken = |e: godwit_shared::transport::StreamError| {
        Problem::new(codes::CONNECTION_LOST, e.to_string())
    };
    let (sender, receiver) = connection.open(StreamKind::Control).await.map_err(broken)?;
    let outbox = peer::outbox(
        sender.into_messages(),
        connection.clone(),
        Closer::Here,
        |_| "source.before_send",
    );
    let _ = outbox.send(first);
    let _ = inputs.send(Input::Connected(generation, dialled, outbox));
    let take = |message| {
        let _ = inputs.send(Input::Message(generation, message));
    };
    let end = peer::listen(receiver.into_messages(), connection, take).await;
    Err(end)
}
