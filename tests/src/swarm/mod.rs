//! Simulated nodes by the thousand, against a real coordinator.
//!
//! A simulated node has everything of a node that a coordinator can see, and
//! nothing else: it has joined with a token of its own, it has a certificate and
//! a UDP port of its own, says hello with facts and domains, answers every
//! request as a node does whose guests never fail, and comes back with the real
//! daemon's backoff. No QEMU and no process is behind it, so two thousand of
//! them take one machine, and what is measured is the coordinator.
//!
//! ```text
//!  Swarm --join--> coordinator (one token each)
//!    |
//!    +-- one task per node: connect, hello, welcome, [request -> reply]*, backoff
//!    +-- Guests of each node, in one map that a migration passes domains through
//! ```

mod facts;
mod guests;
mod joining;
mod node;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use godwit_shared::model::{DomainReport, DomainState, NodeId, VmId};
use godwit_shared::transport::{TransportOptions, TransportRuntime};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::api::Api;
use guests::Guests;
use node::SimulatedNode;

/// Hosts that join at once; the coordinator serves 32.
const JOINING: usize = 16;
/// The kernel's buffer of each node's socket, in bytes: messages are small here.
const SOCKET_BUFFER: usize = 256 << 10;

/// Nodes of one swarm, by name: a migration's source finds its target there.
type Everybody = Arc<RwLock<HashMap<NodeId, Arc<Guests>>>>;

/// Simulated nodes. They end when this is dropped.
#[derive(Debug)]
pub struct Swarm {
    guests: Vec<Arc<Guests>>,
    everybody: Everybody,
    connected: watch::Sender<usize>,
    runtime: TransportRuntime,
    api: Api,
    tasks: Vec<AbortOnDropHandle<()>>,
}

impl Swarm {
    /// A swarm without nodes; `threads` drive the transport of all that come.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new(api: Api, threads: usize) -> Result<Self> {
        Ok(Self {
            guests: Vec::new(),
            everybody: Everybody::default(),
            connected: watch::Sender::new(0),
            runtime: TransportRuntime::start(threads)?,
            api,
            tasks: Vec::new(),
        })
    }

    /// Lets `count` more hosts join and connect.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn grow(&mut self, count: usize) -> Result<()> {
        let from = self.guests.len();
        let joined = stream::iter(from..from + count)
            .map(|index| self.join(index))
            .buffered(JOINING)
            .try_collect::<Vec<_>>()
            .await?;
        for (guests, task) in joined {
            self.guests.push(guests);
            self.tasks.push(task);
        }
        Ok(())
    }

    async fn join(&self, index: usize) -> Result<(Arc<Guests>, AbortOnDropHandle<()>)> {
        let name: NodeId = format!("sim-{index:04}").parse()?;
        let address = format!("127.0.0.1:{}", 10_000 + index);
        let token = self.api.token().await?;
        let joined = joining::join(&self.runtime, options(), &token, &name, &address);
        let joined = joined.await.with_context(|| format!("{name} joins"))?;
        let guests = Arc::new(Guests::new(name.clone()));
        self.everybody
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, Arc::clone(&guests));
        let node = SimulatedNode::new(
            &self.runtime,
            options(),
            joined,
            facts::of(index, &address)?,
            Arc::clone(&guests),
            Arc::clone(&self.everybody),
            self.connected.clone(),
        )?;
        let task = AbortOnDropHandle::new(tokio::spawn(node.keep()));
        Ok((guests, task))
    }

    /// How many have been welcomed and not been cut off since.
    pub fn connected(&self) -> usize {
        *self.connected.borrow()
    }

    /// Waits until so many are connected.
    ///
    /// # Errors
    /// When they are not within `limit`.
    pub async fn wait_connected(&self, count: usize, limit: Duration) -> Result<()> {
        let mut connected = self.connected.subscribe();
        let enough = connected.wait_for(|connected| *connected >= count);
        match tokio::time::timeout(limit, enough).await {
            Ok(Ok(_)) => Ok(()),
            _ => anyhow::bail!("{} of {count} connected within {limit:?}", self.connected()),
        }
    }

    /// How many guests run on all nodes together.
    pub fn running(&self) -> usize {
        let running = self.guests.iter().map(|guests| guests.running());
        running.sum()
    }

    /// Every domain of every node.
    pub fn domains(&self) -> Vec<(NodeId, DomainReport)> {
        let all = self.guests.iter();
        let of_node = |guests: &Arc<Guests>| {
            let name = guests.name().clone();
            let reports = guests.reports().into_iter();
            reports
                .map(|report| (name.clone(), report))
                .collect::<Vec<_>>()
        };
        all.flat_map(of_node).collect()
    }

    /// Something happens to a guest by itself: its node tells the coordinator.
    pub fn happen(&self, node: &NodeId, vm: VmId, state: DomainState) {
        let all = self
            .everybody
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(guests) = all.get(node) {
            guests.happen(vm, state);
        }
    }
}

/// As a node's daemon has them, but for the size of the socket's buffers.
fn options() -> TransportOptions {
    TransportOptions {
        socket_buffer: SOCKET_BUFFER,
        ..TransportOptions::default()
    }
}
