//! Keeps a session to the coordinator: connects, serves, waits, begins again.

use actix::Addr;
use godwit_shared::model::Problem;
use godwit_shared::transport::Endpoint;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::backoff::{Backoff, chance};
use super::services::Services;
use super::session::{self, Context, End};
use super::{SessionDown, Uplink, UplinkParams, UplinkState, connect};
use crate::config::HostPort;

pub(super) struct Keeper {
    context: Context,
    endpoint: Endpoint,
    coordinator: Vec<HostPort>,
    backoff: Backoff,
    state: watch::Sender<UplinkState>,
    /// Set when the daemon ends: the session is the last one.
    ending: CancellationToken,
    /// What was last complained of, so that the log says it once.
    complaint: Option<String>,
}

impl Keeper {
    pub(super) fn new(
        params: UplinkParams,
        services: Services,
        uplink: Addr<Uplink>,
        state: watch::Sender<UplinkState>,
        ending: CancellationToken,
    ) -> Result<Self, Problem> {
        Ok(Self {
            context: Context {
                facts: Context::facts(&params.facts)?,
                bus: params.bus,
                identity: params.identity,
                members_file: params.members_file,
                services,
                uplink,
                lease: params.lease,
            },
            endpoint: params.endpoint,
            coordinator: params.coordinator,
            backoff: Backoff::new(params.pace),
            state,
            ending,
            complaint: None,
        })
    }

    /// Until the daemon ends, and the session with it.
    pub(super) async fn keep(mut self) {
        let ending = self.ending.clone();
        loop {
            let end = self.attempt().await;
            if ending.is_cancelled() {
                return;
            }
            let wait = self.consider(end);
            if tokio::time::timeout(wait, ending.cancelled()).await.is_ok() {
                return;
            }
        }
    }

    async fn attempt(&mut self) -> End {
        let connection = match connect::connect(&self.endpoint, &self.coordinator).await {
            Ok(connection) => connection,
            Err(failure) => return failure.into(),
        };
        let state = &self.state;
        let remote = connection.remote_address();
        let end = session::run(&self.context, &connection, |cluster| {
            tracing::info!(cluster, coordinator = %remote, "in touch with the coordinator");
            let cluster = cluster.to_owned();
            state.send_replace(UplinkState::Up { cluster });
        })
        .await;
        // Only gone when the daemon stops.
        let _ = self.context.uplink.send(SessionDown).await;
        end
    }

    /// Tells what happened, and how long to wait.
    fn consider(&mut self, end: End) -> std::time::Duration {
        match end {
            End::Refused(problem) => {
                let wait = self.backoff.after_refusal(chance());
                if self.is_news(&problem.message) {
                    tracing::error!(code = %problem.code, %problem, "the coordinator refuses this node");
                }
                self.state.send_replace(UplinkState::Refused(problem));
                wait
            }
            End::Lost { reason, welcomed } => {
                if welcomed {
                    self.backoff.reset();
                    self.complaint = None;
                }
                let wait = self.backoff.after_failure(chance());
                if self.is_news(&reason) {
                    tracing::warn!(reason, "out of touch with the coordinator; guests run on");
                }
                let reason = Some(reason);
                self.state.send_replace(UplinkState::Down { reason });
                wait
            }
        }
    }

    fn is_news(&mut self, complaint: &str) -> bool {
        let news = self.complaint.as_deref() != Some(complaint);
        self.complaint = Some(complaint.to_owned());
        news
    }
}
