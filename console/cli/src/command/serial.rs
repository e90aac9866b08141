//! A guest's serial line that outlives its connection.
//!
//! The line belongs to the VM, not to a node: when the connection ends and the
//! VM still has a QEMU somewhere (it was moved, the coordinator was restarted),
//! it is attached anew. What comes first then may be scrollback; [`Seen`]
//! leaves out what was handed on before, so that no byte comes twice.

use std::time::Duration;

use godwit_shared::api::VmView;
use godwit_shared::model::{Problem, codes};
use tokio::time::{Instant, sleep, timeout_at};

use super::splice::Seen;
use crate::args::VmRef;
use crate::client::Client;
use crate::client::console::{Attached, Incoming};
use crate::failure::Failure;
use crate::output::Item;

/// Scrollback asked for when attaching anew: more than a move lets by.
pub(super) const SCROLLBACK: u32 = 64 * 1024;

/// For so long after attaching, what comes may be scrollback.
const SETTLING: Duration = Duration::from_millis(200);

/// How long it is tried to attach anew.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that lasts for less than this was none.
const LASTING: Duration = Duration::from_secs(1);

/// First and longest wait between two tries.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A serial line.
pub(super) struct SerialLine<'a> {
    client: &'a Client,
    vm: &'a VmRef,
    attached: Attached,
    /// When this connection came about.
    since: Instant,
    /// When the row of tries began that has not led to a lasting connection.
    trying_since: Option<Instant>,
    wait: Duration,
    seen: Seen,
    /// Scrollback may come until then ...
    settling: Option<Instant>,
    /// ... and this much has come.
    fresh: Vec<u8>,
}

/// What became of a line whose connection has ended.
pub(super) enum Again {
    /// It is attached again.
    Attached,
    /// The VM has no QEMU any more; in words.
    Off(String),
}

impl<'a> SerialLine<'a> {
    /// Attaches, with so many bytes of scrollback, all of which is handed on.
    pub(super) async fn attach(
        client: &'a Client,
        vm: &'a VmRef,
        scrollback: u32,
    ) -> Result<Self, Failure> {
        let attached = client.attach(vm, scrollback).await?;
        Ok(Self {
            client,
            vm,
            attached,
            since: Instant::now(),
            trying_since: None,
            wait: RETRY.0,
            seen: Seen::default(),
            settling: None,
            fresh: Vec::new(),
        })
    }

    /// Attaches behind what has been handed on already.
    pub(super) async fn attach_behind(
        client: &'a Client,
        vm: &'a VmRef,
        seen: Seen,
    ) -> Result<Self, Failure> {
        let mut line = Self::attach(client, vm, SCROLLBACK).await?;
        line.seen = seen;
        line.settling = Some(Instant::now() + SETTLING);
        Ok(line)
    }

    /// The guest's next bytes; `Err` when the connection has ended, with the
    /// reason where one was given. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Vec<u8>, Option<Problem>> {
        while let Some(until) = self.settling {
            match timeout_at(until, self.attached.next()).await {
                Ok(Incoming::Bytes(bytes)) => self.fresh.extend_from_slice(&bytes),
                Ok(Incoming::Closed(_) | Incoming::Lost) | Err(_) => {
                    self.settling = None;
                    let fresh = std::mem::take(&mut self.fresh);
                    let news = self.seen.news(&fresh).to_vec();
                    if !news.is_empty() {
                        return Ok(news);
                    }
                }
            }
        }
        match self.attached.next().await {
            Incoming::Bytes(bytes) => {
                self.seen.add(&bytes);
                Ok(bytes)
            }
            Incoming::Closed(reason) => Err(reason),
            Incoming::Lost => Err(None),
        }
    }

    /// Sends bytes to the guest; false when the connection is gone.
    pub(super) async fn send(&mut self, bytes: Vec<u8>) -> bool {
        self.attached.send(bytes).await
    }

    /// Takes leave.
    pub(super) async fn close(self) {
        self.attached.close().await;
    }

    /// Attaches anew, unless the VM is off. `reason` is why the connection
    /// ended; one that no new try can mend is handed back.
    pub(super) async fn again(&mut self, reason: Option<Problem>) -> Result<Again, Failure> {
        if let Some(problem) = &reason
            && !matches!(
                problem.code.as_ref(),
                codes::CONNECTION_LOST | codes::NODE_UNREACHABLE | codes::STATE_CONFLICT
            )
        {
            return Err(problem.clone().into());
        }
        if self.since.elapsed() >= LASTING {
            self.trying_since = None;
            self.wait = RETRY.0;
        }
        let trying_since = *self.trying_since.get_or_insert_with(Instant::now);
        while trying_since.elapsed() < PATIENCE {
            sleep(self.wait).await;
            self.wait = (self.wait * 2).min(RETRY.1);
            if let Some(outcome) = self.once_more().await? {
                return Ok(outcome);
            }
        }
        let lost = || Problem::new(codes::CONNECTION_LOST, "the console's connection was lost");
        let problem = reason.unwrap_or_else(lost);
        Err(problem
            .remedy("attach to it again; the VM itself may well be running")
            .into())
    }

    /// One try.
    async fn once_more(&mut self) -> Result<Option<Again>, Failure> {
        let path = format!("/vms/{}", self.vm);
        match self.client.one::<VmView>(&path).await {
            Ok(Item { view, .. }) if !view.state.has_process() => {
                let why = view
                    .exit
                    .map_or_else(String::new, |exit| format!(": {exit}"));
                return Ok(Some(Again::Off(format!("is {}{why}", view.state))));
            }
            Ok(_) => {}
            Err(failure) if failure.is_unreachable() => return Ok(None),
            Err(failure) => return Err(failure),
        }
        match self.client.attach(self.vm, SCROLLBACK).await {
            Ok(attached) => {
                self.attached = attached;
                self.since = Instant::now();
                self.settling = Some(self.since + SETTLING);
                Ok(Some(Again::Attached))
            }
            Err(failure) if failure.code() == Some(codes::NOT_FOUND) => Err(failure),
            Err(_) => Ok(None),
        }
    }
}
