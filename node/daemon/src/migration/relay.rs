//! Between QEMU's migration channels (unix stream sockets) and QUIC streams.
//!
//! Both directions of a channel are carried, because the main channel's return
//! path comes back on it. An end of either side is passed on as an end, an error
//! as an error: a channel never looks complete when it was cut.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use godwit_shared::model::{Problem, codes};
use godwit_shared::transport::{Connection, Receiver, Sender, StreamKind};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::carry::{CarryError, receive, receive_memory, send, send_memory};
use super::disks::Exports;
use super::manager::MigrationContext;
use super::packing::Choice;

/// Thrown away at once of what only measures the link.
const DISCARDED: usize = 64 * 1024;

/// How long QEMU may take to connect its channels to a socket of this host.
const CONNECTING: Duration = Duration::from_millis(30);

/// QEMU's side of a migration's relay: stopped, and its socket removed, when
/// this goes.
pub(super) struct Relay {
    pub(super) stop: CancellationToken,
    pub(super) socket: PathBuf,
}

impl Relay {
    /// Listens at `socket` for QEMU's channels and lets them out on the connection.
    pub(super) fn of_source(
        context: &MigrationContext,
        socket: &Path,
        connection: &Connection,
    ) -> Result<Self, Problem> {
        let listener = listen_at(socket)?;
        let stop = CancellationToken::new();
        let serving = serve_source(listener, connection.clone(), stop.clone());
        context.runtime.spawn(serving);
        Ok(Self {
            stop,
            socket: socket.to_owned(),
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Accepts QEMU's channels on `listener` and carries each over a stream of its
/// own, until `stop`. QEMU connects its main channel first; streams are numbered
/// in that order. Runs on the transport's threads, beside no actor's work.
async fn serve_source(
    listener: std::os::unix::net::UnixListener,
    connection: Connection,
    stop: CancellationToken,
) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "QEMU's channels cannot be accepted");
            return;
        }
    };
    let mut carriers = JoinSet::new();
    let choice = Choice::new();
    let mut channel: u16 = 0;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else { return };
        let (connection, stop) = (connection.clone(), stop.clone());
        let opened = connection.open(StreamKind::Memory { channel }).await;
        channel = channel.wrapping_add(1);
        let choice = choice.clone();
        carriers.spawn(async move {
            match opened {
                Ok((sender, receiver)) => carry_out(socket, sender, receiver, choice, stop).await,
                Err(error) => {
                    tracing::debug!(%error, "a migration channel could not be opened");
                    linger(&stop).await;
                    drop(socket);
                }
            }
        });
    }
}

/// Carries one of QEMU's channels out. When the connection breaks, QEMU's socket
/// stays open for a moment: a QEMU whose channels break while it still connects
/// (`setup`, some milliseconds) forgets to free its yank instance (10.0), and
/// refuses every later migration of the guest.
async fn carry_out(
    socket: UnixStream,
    sender: Sender,
    receiver: Receiver,
    choice: Choice,
    stop: CancellationToken,
) {
    let (mut from_qemu, mut to_qemu) = socket.into_split();
    let up = send_memory(&mut from_qemu, sender.into_bytes(), choice);
    let down = receive(receiver.into_bytes(), &mut to_qemu);
    let (up, down) = tokio::join!(up, down);
    let broken = [up.err(), down.err()].into_iter().flatten();
    let broken: Vec<CarryError> = broken.collect();
    for error in &broken {
        tracing::debug!(%error, "a migration channel broke");
    }
    if !broken.is_empty() {
        linger(&stop).await;
    }
}

/// Gives a QEMU that still connects the time to be through with it.
async fn linger(stop: &CancellationToken) {
    let _ = tokio::time::timeout(CONNECTING, stop.cancelled()).await;
}

/// Accepts the source's streams and connects each to QEMU's socket at `path`,
/// until `stop`. QEMU before 8.0 takes the first connection for the main channel,
/// so channel 0 goes first, also when another stream's first packet overtook its.
/// Disks' streams go to their exports, when there are any.
pub(super) async fn serve_target(
    connection: Connection,
    path: Arc<Path>,
    exports: Option<Arc<Exports>>,
    stop: CancellationToken,
) {
    let mut carriers = JoinSet::new();
    let mut early: Vec<(Sender, Receiver)> = Vec::new();
    let mut main_connected = false;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = connection.accept() => accepted,
        };
        let Ok((kind, upward, downward)) = accepted else {
            return;
        };
        let channel = match kind {
            StreamKind::Memory { channel } => channel,
            StreamKind::Disk { .. } => {
                if let Some(exports) = &exports {
                    carriers.spawn(Arc::clone(exports).serve(upward, downward));
                }
                continue;
            }
            StreamKind::Bulk => {
                carriers.spawn(discard(downward));
                continue;
            }
            _ => continue,
        };
        if channel != 0 && !main_connected {
            early.push((upward, downward));
            continue;
        }
        main_connected = true;
        let waiting = std::mem::take(&mut early);
        for (sender, receiver) in std::iter::once((upward, downward)).chain(waiting) {
            match UnixStream::connect(&path).await {
                Ok(socket) => {
                    carriers.spawn(carry(socket, sender, receiver));
                }
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "QEMU's migration socket refuses");
                    return;
                }
            }
        }
    }
}

/// What the source sends to measure the link.
async fn discard(receiver: Receiver) {
    let mut receiver = receiver.into_bytes();
    while let Ok(Some(_)) = receiver.read_chunk(DISCARDED).await {}
}

/// Carries one channel until both directions have ended.
async fn carry(socket: UnixStream, sender: Sender, receiver: Receiver) {
    let (mut from_qemu, mut to_qemu) = socket.into_split();
    let up = send(&mut from_qemu, sender.into_bytes());
    let down = receive_memory(receiver.into_bytes(), &mut to_qemu);
    let (up, down) = tokio::join!(up, down);
    for error in [up.err(), down.err()].into_iter().flatten() {
        tracing::debug!(%error, "a migration channel broke");
    }
}

pub(super) fn listen_at(socket: &Path) -> Result<std::os::unix::net::UnixListener, Problem> {
    let failed = |e: std::io::Error| {
        let path = socket.display().to_string();
        Problem::new(
            codes::HOST_IO,
            format!("QEMU's migration socket `{path}`: {e}"),
        )
        .value(path)
        .remedy("make the run directory writable, and its path shorter than 80 bytes")
    };
    let _ = std::fs::remove_file(socket);
    let listener = std::os::unix::net::UnixListener::bind(socket).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}
