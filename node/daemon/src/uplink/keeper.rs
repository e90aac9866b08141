//! Keeps a session to the coordinator: connects, serves, waits, begins again.

use actix::Addr;
use godwit_shared::model::Problem;
use godwit_shared::transport::Endpoint;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::backoff::{Backoff, chance};
use super::places::Places;
use super::services::Services;
use super::session::{self, Context, End};
use super::{SessionDown, Uplink, UplinkParams, UplinkState, connect};

/// The longest wait while coordinators are there and only the leader is sought:
/// one is elected in seconds.
const ELSEWHERE: std::time::Duration = std::time::Duration::from_millis(500);

pub(super) struct Keeper {
    context: Context,
    endpoint: Endpoint,
    places: Places,
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
            places: Places::new(params.coordinator),
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
        let connection = match connect::connect(&self.endpoint, &self.places.take()).await {
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
            End::Elsewhere { leader } => {
                self.places.sent_to(leader.as_deref());
                let reason = match leader {
                    Some(leader) => format!("the coordinator at {leader} leads"),
                    None => "no coordinator leads; guests run on".to_owned(),
                };
                if self.is_news(&reason) {
                    tracing::info!(reason, "this coordinator does not lead");
                }
                let reason = Some(reason);
                self.state.send_replace(UplinkState::Down { reason });
                self.backoff.after_failure(chance()).min(ELSEWHERE)
            }
            End::Lost { reason, welcomed } => {
                if welcomed {
                    self.backoff.reset();
                    self.complaint = None;
                }
                self.places.next();
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
