//! A domain's serial console: one socket to QEMU, many attachments.
//!
//! QEMU itself writes everything to the log file, so nothing is lost while the
//! daemon is away; the hub reads the same bytes for those who watch, and keeps
//! the last of them as scrollback. It always reads, so that a guest never waits
//! for an operator: an attachment that does not keep up is ended.

use std::collections::VecDeque;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Notify, mpsc};

use crate::supervisor::messages::Console;

/// Scrollback kept in memory, in bytes.
const SCROLLBACK: usize = 64 * 1024;
/// How far an attachment may lag behind, in bytes. Counted in bytes because a
/// serial port may hand them over one by one.
const LAG: usize = 256 * 1024;
/// Pieces on their way to an attachment's reader.
const PIECES: usize = 4;
/// Pieces of input that wait for the guest.
const TYPED: usize = 64;
/// The log is put aside (one former log is kept) when it is larger than this.
const LOG_LIMIT: u64 = 16 << 20;

/// The console of one domain. Cheap to clone.
#[derive(Clone)]
pub(super) struct ConsoleHub(Arc<Hub>);

struct Hub {
    log: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    scrollback: VecDeque<u8>,
    attached: Vec<Attachment>,
    /// Where input goes while QEMU is connected.
    input: Option<mpsc::Sender<Bytes>>,
    logged: u64,
    generation: u64,
}

impl ConsoleHub {
    /// A hub without QEMU; scrollback begins with the end of the log at `log`.
    pub(super) fn new(log: PathBuf) -> Self {
        let (tail, logged) = tail(&log, SCROLLBACK).unwrap_or_default();
        let state = State {
            scrollback: tail.into(),
            logged,
            ..State::default()
        };
        Self(Arc::new(Hub {
            log,
            state: Mutex::new(state),
        }))
    }

    /// Begins to carry a QEMU's console. The former one, if any, is let go.
    pub(super) fn connect(&self, socket: UnixStream) {
        let (input, typed) = mpsc::channel(TYPED);
        let generation = {
            let mut state = self.state();
            state.input = Some(input);
            state.generation += 1;
            state.generation
        };
        let (mut from_guest, to_guest) = socket.into_split();
        tokio::spawn(type_into(to_guest, typed));
        let hub = self.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(read) = from_guest.read(&mut buffer).await {
                if read == 0 {
                    break;
                }
                hub.printed(&buffer[..read]);
            }
            hub.disconnected(generation);
        });
    }

    /// Joins the console. Without a QEMU only the scrollback comes, and the end.
    pub(super) fn attach(&self, scrollback: u32) -> Console {
        let (sender, output) = mpsc::channel(PIECES);
        let mut state = self.state();
        let wanted = usize::try_from(scrollback).unwrap_or(usize::MAX);
        let skip = state.scrollback.len().saturating_sub(wanted);
        let backlog: Vec<u8> = state.scrollback.iter().skip(skip).copied().collect();
        let input = match state.input.clone() {
            Some(input) => {
                state.attached.push(Attachment::carrying_to(sender));
                input
            }
            None => mpsc::channel(1).0,
        };
        Console {
            backlog: backlog.into(),
            output,
            input,
        }
    }

    fn printed(&self, bytes: &[u8]) {
        let mut state = self.state();
        state.scrollback.extend(bytes);
        let surplus = state.scrollback.len().saturating_sub(SCROLLBACK);
        state.scrollback.drain(..surplus);
        state.attached.retain(|attachment| attachment.push(bytes));
        state.logged += bytes.len() as u64;
        if state.logged > LOG_LIMIT {
            state.logged = 0;
            let log = self.0.log.clone();
            tokio::task::spawn_blocking(move || put_aside(&log));
        }
    }

    fn disconnected(&self, generation: u64) {
        let mut state = self.state();
        if state.generation == generation {
            state.input = None;
            state.attached.clear();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was printed and one reader has not yet taken. A task of its own carries
/// it over; dropping this ends that task once everything is read.
struct Attachment(Arc<Lag>);

#[derive(Default)]
struct Lag {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    bytes: BytesMut,
    /// Nothing more comes: the console has ended, or the reader is too slow.
    over: bool,
    /// The reader has gone.
    left: bool,
}

impl Attachment {
    fn carrying_to(reader: mpsc::Sender<Bytes>) -> Self {
        let lag = Arc::new(Lag::default());
        tokio::spawn(carry(Arc::clone(&lag), reader));
        Self(lag)
    }

    /// False when the reader has gone, or lags too far behind.
    fn push(&self, bytes: &[u8]) -> bool {
        let mut waiting = self.0.waiting();
        if waiting.left || waiting.bytes.len() + bytes.len() > LAG {
            return false;
        }
        waiting.bytes.extend_from_slice(bytes);
        self.0.wake.notify_one();
        true
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.0.waiting().over = true;
        self.0.wake.notify_one();
    }
}

impl Lag {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> (Bytes, bool) {
        let mut waiting = self.waiting();
        (std::mem::take(&mut waiting.bytes).freeze(), waiting.over)
    }
}

async fn carry(lag: Arc<Lag>, reader: mpsc::Sender<Bytes>) {
    loop {
        let (piece, over) = lag.take();
        if !piece.is_empty() {
            if reader.send(piece).await.is_err() {
                break;
            }
        } else if over {
            break;
        } else {
            tokio::select! {
                () = lag.wake.notified() => {}
                () = reader.closed() => break,
            }
        }
    }
    lag.waiting().left = true;
}

async fn type_into(mut guest: OwnedWriteHalf, mut typed: mpsc::Receiver<Bytes>) {
    while let Some(piece) = typed.recv().await {
        if guest.write_all(&piece).await.is_err() {
            return;
        }
    }
}

/// At most the last `limit` bytes of a file, and its size.
pub(super) fn tail(path: &Path, limit: usize) -> std::io::Result<(Vec<u8>, u64)> {
    let mut file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(limit as u64)))?;
    let mut bytes = Vec::with_capacity(limit.min(usize::try_from(size).unwrap_or(limit)));
    file.take(limit as u64).read_to_end(&mut bytes)?;
    Ok((bytes, size))
}

/// Copies the log away and empties it. QEMU appends, so it writes on at the
/// new end; what it writes between the two steps is in neither file.
fn put_aside(log: &Path) {
    let mut former = log.as_os_str().to_owned();
    former.push(".1");
    let done = std::fs::copy(log, former).and_then(|_| {
        std::fs::OpenOptions::new()
            .write(true)
            .open(log)?
            .set_len(0)
    });
    if let Err(error) = done {
        tracing::warn!(%error, log = %log.display(), "the console's log cannot be put aside");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn hub() -> (tempfile::TempDir, ConsoleHub, UnixStream) {
        let folder = tempfile::tempdir().unwrap();
        let hub = ConsoleHub::new(folder.path().join("serial.log"));
        let (ours, theirs) = UnixStream::pair().unwrap();
        hub.connect(ours);
        (folder, hub, theirs)
    }

    #[tokio::test]
    async fn everybody_reads_and_anybody_types() {
        let (_folder, hub, mut guest) = hub();
        let (mut one, mut two) = (hub.attach(0), hub.attach(0));
        guest.write_all(b"login: ").await.unwrap();
        assert_eq!(one.output.recv().await.unwrap(), "login: ");
        assert_eq!(two.output.recv().await.unwrap(), "login: ");
        two.input.send(Bytes::from_static(b"root\n")).await.unwrap();
        let mut typed = [0; 5];
        guest.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"root\n");
        assert_eq!(hub.attach(3).backlog, "n: ");
    }

    #[tokio::test]
    async fn an_attachment_ends_with_qemu() {
        let (_folder, hub, guest) = hub();
        let mut console = hub.attach(0);
        drop(guest);
        assert_eq!(console.output.recv().await, None);
        assert_eq!(hub.attach(10).output.recv().await, None);
    }

    #[tokio::test]
    async fn who_does_not_read_is_let_go_and_the_guest_goes_on() {
        let (_folder, hub, mut guest) = hub();
        let mut slow = hub.attach(0);
        let mut quick = hub.attach(0);
        for _ in 0..128 {
            guest.write_all(&[b'x'; 4096]).await.unwrap();
            let mut read = 0;
            while read < 4096 {
                read += quick.output.recv().await.unwrap().len();
            }
        }
        let mut read = 0;
        while let Some(piece) = slow.output.recv().await {
            read += piece.len();
        }
        assert!(read <= LAG + (PIECES + 1) * 16 * 1024, "{read}");
        assert_eq!(hub.attach(u32::MAX).backlog.len(), SCROLLBACK);
    }

    #[tokio::test]
    async fn single_bytes_lose_nobody() {
        let (_folder, hub, mut guest) = hub();
        let mut late = hub.attach(0);
        for _ in 0..5_000 {
            guest.write_all(b"x").await.unwrap();
        }
        let mut read = 0;
        while read < 5_000 {
            read += late.output.recv().await.unwrap().len();
        }
        drop(late);
        while !hub.state().attached.is_empty() {
            guest.write_all(b"y").await.unwrap();
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn scrollback_outlives_the_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("serial.log");
        std::fs::write(&log, vec![b'y'; SCROLLBACK + 5]).unwrap();
        assert_eq!(
            ConsoleHub::new(log.clone()).attach(u32::MAX).backlog.len(),
            SCROLLBACK
        );
        put_aside(&log);
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
        assert_eq!(
            std::fs::metadata(folder.path().join("serial.log.1"))
                .unwrap()
                .len(),
            65541
        );
    }
}
