//! The threads that the transport runs on.
//!
//! Liveness must not depend on what else a daemon does, so quinn's drivers,
//! timers and sockets run on a tokio runtime of their own with threads named
//! `godwit-net-N`, preferred by the scheduler where that is permitted.
//!
//! The trap: quinn's own tokio adapter spawns with `tokio::spawn`, that is on
//! whatever runtime calls `connect` or `accept` (an actix arbiter, a single
//! thread). [`QuinnRuntime`] spawns on the handle that it holds.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use quinn::{AsyncTimer, AsyncUdpSocket};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use super::clock::{BEAT, Clock};

/// How much the transport's threads are preferred, where permitted.
const NICENESS: i32 = -10;
/// A stall of this length is worth a line in the log.
const NOTABLE_STALL: Duration = Duration::from_millis(200);

/// The transport's threads. Clones share them; they end when the last clone,
/// endpoint and connection is gone. Dropping it is fine anywhere, also inside
/// of another runtime.
#[derive(Debug, Clone)]
pub struct TransportRuntime(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Taken by `drop` alone.
    runtime: Option<Runtime>,
    handle: Handle,
    clock: Arc<Clock>,
}

/// The transport's threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the {threads} threads of the transport")]
pub struct RuntimeError {
    threads: usize,
    #[source]
    source: io::Error,
}

impl TransportRuntime {
    /// Starts `threads` threads, at least one. One QUIC connection is driven by
    /// one of them at a time.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn start(threads: usize) -> Result<Self, RuntimeError> {
        let threads = threads.max(1);
        let number = AtomicUsize::new(0);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name_fn(move || {
                format!("godwit-net-{}", number.fetch_add(1, Ordering::Relaxed))
            })
            .on_thread_start(prefer_this_thread)
            .enable_all()
            .build()
            .map_err(|source| RuntimeError { threads, source })?;
        let handle = runtime.handle().clone();
        let clock = Arc::new(Clock::new(Instant::now()));
        handle.spawn(keep_beating(Arc::clone(&clock)));
        Ok(Self(Arc::new(Inner {
            runtime: Some(runtime),
            handle,
            clock,
        })))
    }

    /// Runs a future on the transport's threads. For I/O next to a connection
    /// (relays); it must not block.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.0.handle.spawn(future)
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.0.handle
    }

    pub(super) fn quinn(&self) -> Arc<QuinnRuntime> {
        Arc::new(QuinnRuntime {
            handle: self.0.handle.clone(),
            clock: Arc::clone(&self.0.clock),
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Plain dropping would block, which tokio forbids inside of any
            // runtime; the tasks are dropped all the same.
            runtime.shutdown_background();
        }
    }
}

/// On Linux a priority belongs to a thread, and "the calling process" means
/// the calling thread (setpriority(2), "C library/kernel differences").
fn prefer_this_thread() {
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "the transport's threads run at normal priority");
    }
}

async fn keep_beating(clock: Arc<Clock>) {
    let mut beats = tokio::time::interval(BEAT);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        let stalled = clock.beat(Instant::now());
        if stalled >= NOTABLE_STALL {
            tracing::warn!(
                milliseconds = stalled.as_millis(),
                "the transport did not run: this host is overloaded or was paused"
            );
        }
    }
}

/// What quinn runs on: always this handle, always this clock. It holds no
/// [`TransportRuntime`], since quinn's tasks hold it.
#[derive(Debug)]
pub(super) struct QuinnRuntime {
    handle: Handle,
    clock: Arc<Clock>,
}

impl quinn::Runtime for QuinnRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _context = self.handle.enter();
        let sleep = Box::pin(tokio::time::sleep_until(self.clock.real(at).into()));
        Box::pin(Timer {
            sleep,
            clock: Arc::clone(&self.clock),
        })
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.handle.spawn(future);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        // Endpoints bring their own socket; quinn asks only in `rebind`.
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "sockets are made by the endpoint",
        ))
    }

    fn now(&self) -> Instant {
        self.clock.at(Instant::now())
    }
}

/// A timer in the transport's clock. After a stall it fires early by that
/// clock; quinn then looks at the clock and sets it again.
#[derive(Debug)]
struct Timer {
    sleep: Pin<Box<Sleep>>,
    clock: Arc<Clock>,
}

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        let real = self.clock.real(at);
        self.sleep.as_mut().reset(real.into());
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.sleep.as_mut(), cx)
    }
}
