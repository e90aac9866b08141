//! NBD between the two QEMUs of a migration, one QUIC stream a disk.
//!
//! The end of a stream from the target says more than that its QEMU has closed
//! the socket: it comes when the target's export is no more, so that a source
//! that has seen it knows that nothing writes to the images any longer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix::Addr;
use godwit_shared::model::{NodeId, Problem, VmSpec, codes};
use godwit_shared::transport::{Connection, Receiver, Sender, StreamKind};
use godwit_shared::wire::peer::{DiskPlan, Prepare};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::carry::{CarryError, pump, receive, send};
use super::manager::MigrationContext;
use super::mirror;
use super::relay::{Relay, listen_at};
use crate::domain::DomainActor;
use crate::fault;
use crate::images::NewImage;
use crate::supervisor::messages::IncomingRequest;

/// How long the target may take to end its exports.
const RELEASE: Duration = Duration::from_secs(10);

/// The source's side of one disk.
pub(super) struct DiskRelay {
    _relay: Relay,
    released: oneshot::Receiver<()>,
}

impl DiskRelay {
    /// Listens for QEMU's NBD client and lets it out on the connection.
    pub(super) fn of_source(
        context: &MigrationContext,
        socket: PathBuf,
        connection: &Connection,
        index: u16,
    ) -> Result<Self, Problem> {
        let listener = listen_at(&socket)?;
        let stop = CancellationToken::new();
        let (word, released) = oneshot::channel();
        let (connection, stopped) = (connection.clone(), stop.clone());
        context.runtime.spawn(async move {
            let carried = serve(listener, connection, index);
            let ended = stopped.run_until_cancelled_owned(carried).await;
            match ended {
                Some(Ok(())) => {
                    let _ = word.send(());
                }
                Some(Err(error)) => tracing::debug!(index, %error, "a disk's stream broke"),
                None => {}
            }
        });
        Ok(Self {
            _relay: Relay { stop, socket },
            released,
        })
    }

    /// Resolves when the target has ended its export, once QEMU here has let go.
    pub(super) async fn released(mut self) -> Result<(), Problem> {
        let word = tokio::time::timeout(RELEASE, &mut self.released).await;
        if let Ok(Ok(())) = word {
            return Ok(());
        }
        let text = "the target did not confirm that a disk's copy is complete";
        Err(Problem::new(codes::MIGRATION_FAILED, text)
            .remedy("look at the target's log, then try again"))
    }
}

async fn serve(
    listener: std::os::unix::net::UnixListener,
    connection: Connection,
    index: u16,
) -> Result<(), CarryError> {
    let (socket, _) = UnixListener::from_std(listener)?.accept().await?;
    let (sender, receiver) = connection.open(StreamKind::Disk { index }).await?;
    let (mut from_qemu, mut to_qemu) = socket.into_split();
    let up = send(&mut from_qemu, sender.into_bytes());
    tokio::try_join!(up, receive(receiver.into_bytes(), &mut to_qemu))?;
    Ok(())
}

/// The target's side of all disks.
pub(super) struct Exports {
    domain: Addr<DomainActor>,
    socket: PathBuf,
    /// Disks that QEMU serves from nodes made for that only.
    lent: Vec<u16>,
    /// Disks that are still being written.
    left: AtomicUsize,
}

impl Exports {
    fn new(domain: Addr<DomainActor>, socket: PathBuf, images: &[NewImage]) -> Arc<Self> {
        let lent = images.iter().filter(|image| image.read_only);
        Arc::new(Self {
            domain,
            socket,
            lent: lent.map(|image| image.index).collect(),
            left: AtomicUsize::new(images.len()),
        })
    }

    /// Carries one disk's stream to QEMU's NBD server, and ends that with the last.
    pub(super) async fn serve(self: Arc<Self>, sender: Sender, receiver: Receiver) {
        if let Err(error) = self.carry(sender, receiver).await {
            tracing::debug!(%error, "a disk's stream broke");
        }
    }

    async fn carry(&self, sender: Sender, receiver: Receiver) -> Result<(), CarryError> {
        let socket = UnixStream::connect(&self.socket).await?;
        let (mut from_qemu, mut to_qemu) = socket.into_split();
        let mut sender = sender.into_bytes();
        let up = receive(receiver.into_bytes(), &mut to_qemu);
        tokio::try_join!(up, pump(&mut from_qemu, &mut sender))?;
        let others = self
            .left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
        if others == Ok(1) {
            fault::reach("target.before_end_exports").await;
            mirror::end_exports(&self.domain, &self.lent).await?;
            fault::reach("target.after_end_exports").await;
        }
        Ok(sender.finish()?)
    }
}

impl Drop for Exports {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Where the target's QEMU serves NBD, or the source's reaches one disk's export.
pub(super) fn socket(context: &MigrationContext, main: &Path, disk: Option<u16>) -> PathBuf {
    let stem = main.file_stem().unwrap_or_default().to_string_lossy();
    let of = disk.map_or_else(|| "nbd".to_owned(), |index| format!("d{index}"));
    context.run_dir.join(format!("{stem}-{of}.sock"))
}

/// The disks that the target has to make; what does not fit the spec is left to
/// the blockers.
pub(super) fn new_images(spec: &VmSpec, plans: &[DiskPlan]) -> Vec<NewImage> {
    let made = plans.iter().filter_map(|plan| {
        let disk = spec.disks.get(usize::from(plan.index))?;
        let backed = plan.backing.as_ref();
        let sound = backed.is_none_or(|(path, _)| path.starts_with('/'));
        (!disk.shared && sound).then(|| NewImage {
            index: plan.index,
            path: disk.path.clone(),
            format: disk.format,
            read_only: disk.read_only,
            size: plan.size,
            allocated: plan.allocated,
            backing: plan.backing.clone(),
        })
    });
    made.collect()
}

pub(super) fn image_paths(images: &[NewImage]) -> Vec<String> {
    images.iter().map(|image| image.path.clone()).collect()
}

/// Lets the source's mirrors in; nothing where no disk comes along.
pub(super) async fn export(
    context: &MigrationContext,
    domain: &Addr<DomainActor>,
    images: &[NewImage],
    main: &Path,
) -> Result<Option<Arc<Exports>>, Problem> {
    if images.is_empty() {
        return Ok(None);
    }
    let socket = socket(context, main, None);
    let exports = Exports::new(domain.clone(), socket.clone(), images);
    fault::reach("target.before_export").await;
    mirror::export(domain, images, &socket).await?;
    fault::reach("target.after_export").await;
    Ok(Some(exports))
}

/// What the supervisor is asked for.
pub(super) fn incoming_request(
    prepare: &Prepare,
    spec: VmSpec,
    images: Vec<NewImage>,
    source: NodeId,
) -> IncomingRequest {
    IncomingRequest {
        source,
        migration: prepare.migration,
        vm: prepare.vm,
        spec,
        epoch: prepare.epoch,
        machine: prepare.machine.clone(),
        accelerator: prepare.accelerator.clone(),
        cpu_model: prepare.cpu_model.clone(),
        images,
    }
}
