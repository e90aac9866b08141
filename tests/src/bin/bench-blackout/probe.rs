//! Asks a guest every millisecond whether it is there, from outside.
//!
//! When an answer came is the kernel's word (`SO_TIMESTAMPNS`, socket(7)): the
//! moment at which QEMU handed it to its tap, however late this program gets a
//! CPU. It is the same clock as that of QEMU's events.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Between two questions.
const PACE: Duration = Duration::from_millis(1);
/// Before the other programs on busy cores.
const NICE: i32 = -19;

#[derive(Debug, Default)]
struct Shared {
    answers: Mutex<Vec<Duration>>,
    ended: AtomicBool,
}

/// Asks for as long as it lives.
#[derive(Debug)]
pub(crate) struct Probe {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Probe {
    /// Begins to ask.
    pub(crate) fn start(guest: SocketAddrV4) -> Result<Self> {
        // Not connected: a guest that nobody runs yet is no error.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        let shared = Arc::new(Shared::default());
        let inside = Arc::clone(&shared);
        let thread = std::thread::spawn(move || ask(&socket, guest, &inside));
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// When each answer came, since the epoch; it begins anew with them.
    pub(crate) fn take(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.shared.lock())
    }

    /// How many answers came after `moment`.
    pub(crate) fn count_after(&self, moment: Duration) -> usize {
        let answers = self.shared.lock();
        answers.iter().filter(|at| **at > moment).count()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Duration>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ask(socket: &UdpSocket, guest: SocketAddrV4, shared: &Shared) {
    // On Linux this is the thread's own. Without it the probe is late, no more.
    let _ = rustix::process::setpriority_process(None, NICE);
    let mut due = Instant::now();
    while !shared.ended.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now >= due {
            // A question that is lost is one that is not answered.
            let _ = socket.send_to(b"there?", guest);
            due = (due + PACE).max(now);
        }
        wait(socket, due.saturating_duration_since(now));
        while let Some(at) = hear(socket) {
            shared.lock().push(at);
        }
    }
}

fn wait(socket: &UdpSocket, limit: Duration) {
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: limit.subsec_nanos().into(),
    };
    let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&limit));
}

/// When the next answer came, if there is one.
fn hear(socket: &UdpSocket) -> Option<Duration> {
    let mut bytes = [0; 64];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!(TimeSpec);
    let flags = MsgFlags::empty();
    let heard = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags).ok()?;
    heard.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(at) => Some(at.into()),
        _ => None,
    })
}
