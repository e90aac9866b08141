//! The UDP socket of an endpoint.
//!
//! What it does beyond quinn's own:
//! * It asks the kernel for ICMP errors (`IP_RECVERR`, ip(7)) and reads them
//!   from the error queue; [`Peers`] decides what they mean. An error that is
//!   pending on a socket fails the next `sendmsg` or `recvmsg` on it, whoever
//!   that is for; here such a call is repeated, so a dead peer costs the
//!   living ones no packet, and no error ends quinn's endpoint.
//! * It sends as many datagrams in one call as UDP takes ([`Batch`]): several of
//!   quinn's transmits at once, or one that is too large (10 jumbo datagrams) in
//!   parts; quinn is then offered as many as fit. What is held for the next
//!   transmit is sent by a task of the socket at the latest when the connection's
//!   own task has yielded.
//! * It makes the kernel's buffers large.
//!
//! Readiness, and a trap: tokio takes `EPOLLERR` for "the write side is
//! closed", which it then keeps for ever, so a writer that waits on a
//! registration that saw an ICMP error would spin. So reading and errors have
//! one registration (which only looks at those two), and writing has another
//! one on a duplicate of the descriptor, made when the socket is first found
//! full and made anew after an error.

use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use nix::libc;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::batch::{self, Batch, MAX_BATCH};
use super::peers::{Peers, PortUnreachable};

/// As many datagrams as quinn makes at once.
const QUINNS_BATCH: usize = 10;
/// How often a call is repeated that failed because of somebody else's ICMP
/// error. Each repetition consumes one pending error.
const RETRIES: usize = 4;
/// How much of a datagram that an ICMP error quotes is read.
const QUOTE: usize = 64;

/// A UDP socket as quinn uses it.
pub(super) struct Socket {
    inner: Arc<Inner>,
    tasks: [AbortHandle; 2],
}

struct Inner {
    io: UdpSocket,
    state: UdpSocketState,
    peers: Arc<Peers>,
    handle: Handle,
    /// What waits for the next transmit.
    held: Mutex<Batch>,
    /// Something is held.
    holding: Notify,
    /// How many datagrams quinn may make at once, by the length of those that
    /// it made last.
    allowed: AtomicUsize,
    /// Set when a send found the socket full, until it is writable again.
    full: AtomicBool,
    /// The registration for waiting until it is writable.
    writable: Mutex<Option<Arc<UdpSocket>>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("fd", &self.inner.io.as_raw_fd())
            .finish_non_exhaustive()
    }
}

impl Socket {
    /// Binds a socket with buffers of `buffer` bytes each way. `[::]` takes
    /// IPv4 as well.
    pub(super) fn bind(
        address: SocketAddr,
        buffer: usize,
        peers: Arc<Peers>,
        handle: &Handle,
    ) -> io::Result<Self> {
        let raw = RawSocket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        if address.is_ipv6() && address.ip().is_unspecified() {
            raw.set_only_v6(false)?;
        }
        ask_for_errors(&raw, address)?;
        enlarge(&raw, buffer);
        raw.bind(&address.into())?;
        raw.set_nonblocking(true)?;
        let state = UdpSocketState::new((&raw).into())?;
        let _context = handle.enter();
        let io = UdpSocket::from_std(raw.into())?;
        let inner = Arc::new(Inner {
            io,
            state,
            peers,
            handle: handle.clone(),
            held: Mutex::default(),
            holding: Notify::new(),
            allowed: AtomicUsize::new(QUINNS_BATCH),
            full: AtomicBool::new(false),
            writable: Mutex::new(None),
        });
        let tasks = [
            handle.spawn(read_errors(Arc::clone(&inner))).abort_handle(),
            handle.spawn(send_held(Arc::clone(&inner))).abort_handle(),
        ];
        Ok(Self { inner, tasks })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        // A farewell may be held.
        let _ = self.inner.release(&mut self.inner.lock_held());
    }
}

fn ask_for_errors(raw: &RawSocket, address: SocketAddr) -> io::Result<()> {
    // IPv4 on an IPv6 socket too: its errors come with the IPv4 option.
    setsockopt(raw, sockopt::Ipv4RecvErr, &true)?;
    if address.is_ipv6() {
        setsockopt(raw, sockopt::Ipv6RecvErr, &true)?;
    }
    Ok(())
}

/// A privileged process may exceed the system's limit; others get up to it.
fn enlarge(raw: &RawSocket, buffer: usize) {
    if setsockopt(raw, sockopt::RcvBufForce, &buffer).is_err() {
        let _ = raw.set_recv_buffer_size(buffer);
    }
    if setsockopt(raw, sockopt::SndBufForce, &buffer).is_err() {
        let _ = raw.set_send_buffer_size(buffer);
    }
    // Linux doubles the number for its own bookkeeping, and reports the double.
    let got = raw.recv_buffer_size().unwrap_or(0) / 2;
    if got < buffer {
        tracing::debug!(
            wanted = buffer,
            got,
            "UDP buffer is smaller: raise net.core.rmem_max"
        );
    }
}

async fn read_errors(socket: Arc<Inner>) {
    while socket.io.ready(Interest::ERROR).await.is_ok() {
        // "Would block" takes the readiness back, unless a new error came.
        let _ = socket.io.try_io(Interest::ERROR, || {
            socket.drain_errors();
            Err::<(), _>(ErrorKind::WouldBlock.into())
        });
    }
}

/// Sends what is held when no more came for it.
async fn send_held(socket: Arc<Inner>) {
    loop {
        socket.holding.notified().await;
        // The connection's own task, which has more to send, goes first.
        tokio::task::yield_now().await;
        while socket.release(&mut socket.lock_held()).is_err() {
            if wait_writable(Arc::clone(&socket)).await.is_err() {
                return;
            }
            socket.full.store(false, Ordering::Release);
        }
    }
}

impl Inner {
    /// Reads the error queue until it is empty.
    fn drain_errors(&self) {
        let mut control = nix::cmsg_space!([u8; 512]);
        let mut payload = [0; QUOTE];
        loop {
            let mut parts = [IoSliceMut::new(&mut payload)];
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let fd = self.io.as_raw_fd();
            let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), flags);
            let (length, destination) = match message {
                Ok(message) => match closed_port(&message) {
                    Some(destination) => (message.bytes, destination),
                    None => continue,
                },
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => break,
            };
            let quoted = &payload[..length.min(QUOTE)];
            self.peers.unreachable(&PortUnreachable {
                destination,
                quoted,
            });
        }
    }

    /// Takes a transmit, or refuses it because the socket is full.
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.peers.sending(transmit.destination, transmit.contents);
        let mut held = self.lock_held();
        if !held.takes(transmit) {
            self.release(&mut held)?;
        }
        let goes_on = batch::goes_on(transmit, self.allow(transmit));
        if held.is_empty() && !(goes_on && held.takes(transmit)) {
            drop(held);
            return self.send_now(transmit);
        }
        held.add(transmit);
        if goes_on && !held.is_full(transmit) || self.release(&mut held).is_err() {
            self.holding.notify_one();
        }
        Ok(())
    }

    /// How many datagrams quinn may have put into this transmit. From the next
    /// one on they are as many as one call takes.
    fn allow(&self, transmit: &Transmit<'_>) -> usize {
        let allowed = self.allowed.load(Ordering::Relaxed);
        if let Some(size) = transmit.segment_size {
            let fit = (MAX_BATCH / size.max(1)).clamp(1, QUINNS_BATCH);
            if fit != allowed {
                self.allowed.store(fit, Ordering::Relaxed);
            }
        }
        allowed
    }

    fn lock_held(&self) -> MutexGuard<'_, Batch> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is held; it stays when the socket is full.
    fn release(&self, held: &mut Batch) -> io::Result<()> {
        if let Some(transmit) = held.transmit() {
            self.send_batch(&transmit)?;
            held.clear();
        }
        Ok(())
    }

    fn send_now(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let batch = match transmit.segment_size {
            Some(size) if transmit.contents.len() > MAX_BATCH => MAX_BATCH / size * size,
            _ => return self.send_batch(transmit),
        };
        // When a later part finds the socket full, quinn sends the whole again;
        // its receiver drops what it has seen.
        transmit
            .contents
            .chunks(batch.max(1))
            .try_for_each(|contents| {
                self.send_batch(&Transmit {
                    contents,
                    ..transmit.clone()
                })
            })
    }

    fn send_batch(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        for attempt in 0..RETRIES {
            match self.state.try_send((&self.io).into(), transmit) {
                Err(error) if is_icmp(&error) => {}
                // Either this one is too large, or an earlier one was and a
                // router said so only now.
                Err(error) if attempt == 0 && is_too_large(&error) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return self.send_when_full(transmit);
                }
                Err(error) => {
                    report(&error, transmit);
                    return Ok(());
                }
                Ok(()) => return Ok(()),
            }
        }
        // So many errors at once: a lost packet, which QUIC repeats.
        Ok(())
    }

    /// Tries once more under the registration, so that its readiness is right
    /// when the socket is still full.
    fn send_when_full(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let writable = self.writable()?;
        let sent = writable.try_io(Interest::WRITABLE, || {
            self.state.try_send((&*writable).into(), transmit)
        });
        match sent {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.full.store(true, Ordering::Release);
                Err(error)
            }
            // Lost, as above.
            _ => Ok(()),
        }
    }

    fn writable(&self) -> io::Result<Arc<UdpSocket>> {
        let mut slot = self.writable.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writable) = &*slot {
            return Ok(Arc::clone(writable));
        }
        let duplicate = self.io.as_fd().try_clone_to_owned()?;
        let _context = self.handle.enter();
        let new = Arc::new(UdpSocket::from_std(duplicate.into())?);
        *slot = Some(Arc::clone(&new));
        Ok(new)
    }

    /// Gives up a registration that tokio takes for closed.
    fn renew(&self, spoilt: &Arc<UdpSocket>) {
        self.drain_errors();
        let mut slot = self.writable.lock().unwrap_or_else(PoisonError::into_inner);
        if slot
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, spoilt))
        {
            *slot = None;
        }
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            socket: self,
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        for _ in 0..RETRIES {
            let inner = &self.inner;
            ready!(inner.io.poll_recv_ready(cx))?;
            let received = inner.io.try_io(Interest::READABLE, || {
                inner.state.recv((&inner.io).into(), bufs, meta)
            });
            match received {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) if is_fatal(&error) => return Poll::Ready(Err(error)),
                // A pending ICMP error, now consumed; or there was nothing to
                // read, and the next turn waits.
                Err(_) => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        let allowed = self.inner.allowed.load(Ordering::Relaxed);
        self.inner.state.max_gso_segments().min(allowed)
    }

    /// The endpoint announces the largest datagram that there is, and the
    /// kernel never merges more than that; so one is room for any batch, and
    /// quinn's receive buffer stays at 2 MiB.
    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        self.inner.state.may_fragment()
    }
}

/// Waits for one connection until the socket is writable.
struct Poller {
    socket: Arc<Socket>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller")
            .field("waiting", &self.waiting.is_some())
            .finish_non_exhaustive()
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let inner = &this.socket.inner;
        if this.waiting.is_none() && !inner.full.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        let waiting = this
            .waiting
            .get_or_insert_with(|| Box::pin(wait_writable(Arc::clone(inner))));
        let result = ready!(waiting.as_mut().poll(cx));
        this.waiting = None;
        inner.full.store(false, Ordering::Release);
        Poll::Ready(result)
    }
}

async fn wait_writable(inner: Arc<Inner>) -> io::Result<()> {
    let writable = inner.writable()?;
    if writable.ready(Interest::WRITABLE).await?.is_write_closed() {
        inner.renew(&writable);
    }
    Ok(())
}

/// Where a datagram was sent that met a closed port at its very destination;
/// `None` for all other errors, among them those that a router or firewall on
/// the way reports.
fn closed_port(message: &nix::sys::socket::RecvMsg<'_, '_, SockaddrStorage>) -> Option<SocketAddr> {
    let destination = socket_address(message.address.as_ref()?)?;
    let reporter = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, from) if is_closed_port(&error) => {
            Some(from.map(|from| IpAddr::from(from.sin_addr.s_addr.to_ne_bytes())))
        }
        ControlMessageOwned::Ipv6RecvErr(error, from) if is_closed_port(&error) => {
            Some(from.map(|from| IpAddr::from(from.sin6_addr.s6_addr)))
        }
        _ => None,
    })?;
    let by_destination =
        reporter.is_some_and(|from| from.to_canonical() == destination.ip().to_canonical());
    by_destination.then_some(destination)
}

/// ICMP type 3 code 3 (RFC 792), ICMPv6 type 1 code 4 (RFC 4443 3.1).
fn is_closed_port(error: &libc::sock_extended_err) -> bool {
    matches!(
        (error.ee_origin, error.ee_type, error.ee_code),
        (libc::SO_EE_ORIGIN_ICMP, 3, 3) | (libc::SO_EE_ORIGIN_ICMP6, 1, 4)
    )
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::from((v4.ip(), v4.port())));
    }
    address
        .as_sockaddr_in6()
        .map(|v6| SocketAddr::from((v6.ip(), v6.port())))
}

/// Whether a call failed because of what happened to an earlier datagram.
fn is_icmp(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::ENOPROTOOPT
                | libc::EPROTO
                | libc::EOPNOTSUPP
                | libc::EACCES
        )
    )
}

/// Whether no later call can succeed.
fn is_fatal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT)
    )
}

fn is_too_large(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// A datagram that could not be sent is a lost one. That it is too large is
/// what path MTU discovery asks for.
fn report(error: &io::Error, transmit: &Transmit<'_>) {
    if !is_too_large(error) {
        tracing::debug!(%error, to = %transmit.destination, "a datagram was not sent");
    }
}

#[cfg(test)]
#[path = "socket_tests.rs"]
pub(super) mod tests;
