//! Clients that follow the events, each over a connection of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use godwit_shared::model::{DomainState, VmName};
use godwit_tests::api::Api;
use godwit_tests::events::{Arrived, each, says};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// When each VM's change was handed to its node.
pub(crate) type Begun = Arc<Mutex<HashMap<VmName, Instant>>>;

/// The clients. They hang up when this is dropped.
pub(crate) struct Watchers {
    begun: Begun,
    took: mpsc::UnboundedReceiver<Duration>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Watchers {
    /// Connects them all; they hear of what happens from now on.
    pub(crate) async fn connect(api: &Api, count: usize) -> Result<Self> {
        let begun = Begun::default();
        let (tell, took) = mpsc::unbounded_channel();
        let after = api.cluster().await?.last_event;
        let mut tasks = Vec::new();
        for _ in 0..count {
            let stream = api.event_stream(after).await?;
            let watch = watch(stream, Arc::clone(&begun), tell.clone());
            tasks.push(AbortOnDropHandle::new(tokio::spawn(watch)));
        }
        Ok(Self {
            begun,
            took,
            _tasks: tasks,
        })
    }

    /// To be called right before the node is told.
    pub(crate) fn begin(&self, vm: &VmName) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        begun.insert(vm.clone(), Instant::now());
    }

    /// How long each event took to each watcher, shortest first.
    pub(crate) async fn finish(mut self, count: usize) -> Result<Vec<Duration>> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            let next = tokio::time::timeout(Duration::from_secs(30), self.took.recv()).await;
            let Ok(next) = next else {
                bail!("{} of {count} arrivals", all.len());
            };
            all.push(next.context("every watcher was cut off")?);
        }
        all.sort_unstable();
        Ok(all)
    }
}

async fn watch(stream: reqwest::Response, begun: Begun, took: mpsc::UnboundedSender<Duration>) {
    let take = |Arrived { at, event }: Arrived| {
        if event.kind != "vm.state" || !says(&event, DomainState::Paused.as_str()) {
            return;
        }
        let begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(begun) = event.vm.and_then(|vm| begun.get(&vm)) {
            let _ = took.send(at - *begun);
        }
    };
    each(stream, take).await;
}
