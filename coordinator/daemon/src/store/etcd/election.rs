//! Who of several coordinators leads: the one whose lease holds [`LEADER`].
//!
//! ```text
//!  campaign: grant a lease; if LEADER is absent, put it under that lease
//!     | Won                                     | Taken: watch LEADER, try again
//!  keep the lease alive, five times in its time
//!     | no word for so long as the lease holds, or etcd says that it is gone
//!  Leadership::lost: write nothing any more
//! ```
//!
//! The record's revision is the leader's fence: every commit of its cluster
//! expects [`LEADER`] to be at it. etcd removes the record with its lease, so a
//! leader that was cut off, stopped or slow is refused from then on, whatever it
//! believes itself; and no other leader begins before.
//!
//! The leader counts its lease from when it *sent* the last word that was
//! answered, etcd from when that arrived: so it ends here first.

use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Compare, CompareOp, LeaseClient, PutOptions, Txn, TxnOp};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{Worker, client, number};
use crate::store::{Revision, StoreError};

/// The leader's record, gone when there is none.
pub const LEADER: &str = "coordinator/leader";

/// How long giving a lease back may take.
const RESIGN: Duration = Duration::from_secs(1);

/// What came of an attempt.
#[derive(Debug)]
pub enum Campaign {
    /// This one leads.
    Won(Box<Leadership>),
    /// Another one does.
    Taken {
        /// What it says of itself; none when it has ended just now.
        leader: Option<Bytes>,
        /// Watch [`LEADER`] from here.
        seen: Revision,
    },
}

/// The right to write, while it lasts. Dropped, it ends with its lease.
pub struct Leadership {
    /// The commit that put [`LEADER`].
    pub fence: Revision,
    lost: watch::Receiver<Option<Loss>>,
    keeping: AbortHandle,
    lease: LeaseClient,
    id: i64,
}

impl std::fmt::Debug for Leadership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leadership")
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

/// Why the right was lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// etcd has ended the lease.
    #[error("etcd has ended this coordinator's lease")]
    Ended,
    /// etcd has not answered for as long as the lease holds.
    #[error("etcd has not answered for {} ms", .0.as_millis())]
    Silence(Duration),
}

impl Leadership {
    /// Resolves when the right is lost.
    pub async fn lost(&self) -> Loss {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or(Loss::Ended),
            // The store was closed.
            Err(_) => Loss::Ended,
        }
    }

    /// Gives the lease back, so that another one need not wait for its end.
    pub async fn resign(self) {
        self.keeping.abort();
        let mut lease = self.lease.clone();
        let given = tokio::time::timeout(RESIGN, lease.revoke(self.id)).await;
        if !matches!(given, Ok(Ok(_))) {
            tracing::debug!("the lease was not given back; it ends by itself");
        }
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

impl Worker {
    /// Tries once. Asks first, so that no lease is granted in vain.
    pub(super) async fn campaign(&mut self, leader: Bytes) -> Result<Campaign, StoreError> {
        let found = self.scan(LEADER).await?;
        if let Some(entry) = found.entries.into_iter().next() {
            let (leader, seen) = (Some(entry.value), found.revision);
            return Ok(Campaign::Taken { leader, seen });
        }
        let ttl = self.ttl.duration();
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let begun = Instant::now();
        let granted = client::within("ask for a lease", self.lease.grant(seconds, None)).await?;
        let id = granted.id();
        let key = self.full(LEADER);
        let put = PutOptions::new().with_lease(id);
        let txn = Txn::new()
            .when([Compare::version(key.clone(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key, leader, Some(put))]);
        let answer = client::within("campaign", self.kv.txn(txn)).await?;
        if !answer.succeeded() {
            let _ = client::within("give a lease back", self.lease.revoke(id)).await;
            let (leader, seen) = (None, found.revision);
            return Ok(Campaign::Taken { leader, seen });
        }
        let fence = number(
            answer
                .header()
                .map_or(0, etcd_client::ResponseHeader::revision),
        );
        let leadership = keep(self.lease.clone(), id, ttl, begun, fence);
        Ok(Campaign::Won(Box::new(leadership)))
    }
}

fn keep(lease: LeaseClient, id: i64, ttl: Duration, begun: Instant, fence: Revision) -> Leadership {
    let (tell, lost) = watch::channel(None);
    let keeper = Keeper {
        lease: lease.clone(),
        id,
        ttl,
        ends: begun + ttl,
    };
    let keeping = tokio::spawn(async move {
        let why = keeper.keep().await;
        tell.send_replace(Some(why));
    });
    Leadership {
        fence,
        lost,
        keeping: keeping.abort_handle(),
        lease,
        id,
    }
}

struct Keeper {
    lease: LeaseClient,
    id: i64,
    ttl: Duration,
    /// When the right ends unless etcd is heard of.
    ends: Instant,
}

impl Keeper {
    async fn keep(mut self) -> Loss {
        loop {
            if let Some(loss) = self.stream().await {
                return loss;
            }
            // It broke: another one, while the lease holds.
            let again = Instant::now() + self.ttl / 20;
            if again >= self.ends {
                tokio::time::sleep_until(self.ends).await;
                return Loss::Silence(self.ttl);
            }
            tokio::time::sleep_until(again).await;
        }
    }

    /// Until the stream breaks, or the lease is known to be over.
    async fn stream(&mut self) -> Option<Loss> {
        let opening = self.lease.keep_alive(self.id);
        let Ok(opened) = tokio::time::timeout_at(self.ends, opening).await else {
            return Some(Loss::Silence(self.ttl));
        };
        let (mut keeper, mut answers) = opened.ok()?;
        loop {
            let sent = Instant::now();
            keeper.keep_alive().await.ok()?;
            let answer = tokio::time::timeout_at(self.ends, answers.message()).await;
            let Ok(answer) = answer else {
                return Some(Loss::Silence(self.ttl));
            };
            if answer.ok()??.ttl() <= 0 {
                return Some(Loss::Ended);
            }
            self.ends = sent + self.ttl;
            tokio::time::sleep_until(sent + self.ttl / 5).await;
        }
    }
}
