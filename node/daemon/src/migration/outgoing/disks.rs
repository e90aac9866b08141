//! Disks that move along: their mirrors run while the guest does, are ended
//! while it stands still, and are broken off when it stays.

use std::collections::BTreeSet;

use actix::prelude::*;
use godwit_node_logic::handoff::SourceEvent;
use godwit_node_logic::qmp;
use godwit_shared::model::{MigrationPhase, MigrationTuning, Problem, codes};

use super::Outgoing;
use super::inputs::Input;
use crate::fault;
use crate::migration::disks::{self, DiskRelay};
use crate::migration::mirror;

/// The mirrors of a migration's disks.
#[derive(Default)]
pub(super) struct Mirrors {
    relays: Vec<DiskRelay>,
    /// Disks whose job has not said that it is ready.
    behind: BTreeSet<u16>,
    /// Disks whose job has not ended.
    open: BTreeSet<u16>,
    finishing: bool,
}

/// What the jobs have come to.
#[derive(Debug)]
enum News {
    Ready,
    Ended,
    Failed(Problem),
}

impl Mirrors {
    /// An event of one of the jobs; news when it changes what they have come to.
    fn learn(&mut self, event: &qmp::Event) -> Option<News> {
        let index = event.text("device").and_then(mirror::disk_of)?;
        let error = event.text("error");
        match (event.name.as_str(), error) {
            ("BLOCK_JOB_READY", _) => {
                let last = self.behind.remove(&index) && self.behind.is_empty();
                last.then_some(News::Ready)
            }
            ("BLOCK_JOB_COMPLETED", None) if self.finishing => {
                let last = self.open.remove(&index) && self.open.is_empty();
                last.then_some(News::Ended)
            }
            ("BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED", _) => {
                let why = error.unwrap_or("it ended by itself");
                let text = format!("the copy of disk {index} failed: {why}");
                let problem = Problem::new(codes::MIGRATION_FAILED, text)
                    .field(format!("disks[{index}]"))
                    .remedy(
                        "see whether the target has room, and the path between the nodes holds",
                    );
                Some(News::Failed(problem))
            }
            _ => None,
        }
    }
}

impl Outgoing {
    pub(super) fn start_mirrors(&mut self) {
        if let Err(problem) = self.try_start_mirrors() {
            self.beside(async { Some(SourceEvent::MirrorFailed(problem)) });
        }
    }

    fn try_start_mirrors(&mut self) -> Result<(), Problem> {
        let (Some((facts, policy)), Some(link)) = (&self.begin, &self.link) else {
            return Ok(());
        };
        let context = &self.departure.context;
        let main = context.socket(self.migration());
        let mut mirrors = Mirrors::default();
        let mut work = Vec::new();
        for plan in &facts.disks {
            let socket = disks::socket(context, &main, Some(plan.index));
            let connection = link.connection();
            let relay = DiskRelay::of_source(context, socket.clone(), connection, plan.index)?;
            mirrors.relays.push(relay);
            mirrors.behind.insert(plan.index);
            mirrors.open.insert(plan.index);
            work.push((plan.index, socket));
        }
        self.mirrors = Some(mirrors);
        let (domain, policy) = (self.departure.domain.clone(), policy.clone());
        self.beside(async move {
            fault::reach("source.before_mirror").await;
            for (index, socket) in work {
                if let Err(problem) = mirror::start(&domain, index, &policy, &socket).await {
                    return Some(SourceEvent::MirrorFailed(problem));
                }
                fault::reach("source.in_mirror").await;
            }
            None
        });
        Ok(())
    }

    /// The guest stands still: what it wrote last goes over.
    pub(super) fn finish_mirrors(&mut self) {
        let Some(mirrors) = &mut self.mirrors else {
            return;
        };
        mirrors.finishing = true;
        let jobs = mirrors.open.clone();
        let domain = self.departure.domain.clone();
        self.beside(async move {
            fault::reach("source.before_finish_mirrors").await;
            for index in jobs {
                if let Err(problem) = mirror::finish(&domain, index).await {
                    return Some(SourceEvent::MirrorFailed(problem));
                }
            }
            None
        });
    }

    pub(super) fn on_job(&mut self, event: &qmp::Event, ctx: &mut Context<Self>) {
        let Some(mirrors) = &mut self.mirrors else {
            return;
        };
        match mirrors.learn(event) {
            Some(News::Ready) => self.beside(async {
                fault::reach("source.mirrors_ready").await;
                Some(SourceEvent::MirrorsReady)
            }),
            Some(News::Failed(problem)) => self.step(SourceEvent::MirrorFailed(problem), ctx),
            Some(News::Ended) => self.release_exports(),
            None => {}
        }
    }

    /// QEMU here lets go of the target's exports; it goes on when the target has
    /// ended them.
    fn release_exports(&mut self) {
        let relays = self.mirrors.take().map(|mirrors| mirrors.relays);
        let relays = relays.unwrap_or_default();
        let disks = self.begin.as_ref().map(|(facts, _)| facts.disks.clone());
        let domain = self.departure.domain.clone();
        self.beside(async move {
            let released = async {
                fault::reach("source.before_let_go").await;
                for plan in disks.unwrap_or_default() {
                    mirror::let_go(&domain, plan.index).await?;
                }
                for relay in relays {
                    relay.released().await?;
                }
                Ok(())
            };
            Some(match released.await {
                Ok(()) => SourceEvent::MirrorsFinished,
                Err(problem) => SourceEvent::MirrorFailed(problem),
            })
        });
    }

    /// While disks are mirrored QEMU's migration has not begun: what is changed
    /// for it is what it will begin with.
    pub(super) fn tune_disks(
        &mut self,
        tuning: MigrationTuning,
    ) -> ResponseFuture<Result<(), Problem>> {
        if let Some((_, policy)) = &mut self.begin {
            if let Some(rate) = tuning.bandwidth {
                policy.bandwidth = (rate.0 > 0).then_some(rate);
            }
            policy.downtime = tuning.downtime.unwrap_or(policy.downtime);
        }
        let domain = self.departure.domain.clone();
        Box::pin(async move {
            match tuning.bandwidth {
                Some(rate) => mirror::limit(&domain, rate).await,
                None => Ok(()),
            }
        })
    }

    pub(super) fn sample_disks_if_watched(&self) {
        if self.watched && self.progress.phase() == MigrationPhase::Disks {
            let (domain, inputs) = (self.departure.domain.clone(), self.inputs.clone());
            actix::spawn(async move {
                if let Ok((done, total)) = mirror::sample(&domain).await {
                    let _ = inputs.send(Input::Mirrored(done, total));
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn event(name: &str, disk: u16, error: Option<&str>) -> qmp::Event {
        let mut data = serde_json::json!({ "device": format!("mirror{disk}"), "type": "mirror" });
        if let Some(error) = error {
            data["error"] = error.into();
        }
        qmp::Event {
            name: name.to_owned(),
            data,
            timestamp: 0,
        }
    }

    fn two() -> Mirrors {
        Mirrors {
            behind: [0, 3].into(),
            open: [0, 3].into(),
            ..Mirrors::default()
        }
    }

    #[test]
    fn the_last_of_them_counts() {
        let mut mirrors = two();
        assert!(mirrors.learn(&event("BLOCK_JOB_READY", 3, None)).is_none());
        assert!(mirrors.learn(&event("BLOCK_JOB_READY", 3, None)).is_none());
        let ready = mirrors.learn(&event("BLOCK_JOB_READY", 0, None));
        assert!(matches!(ready, Some(News::Ready)));
        mirrors.finishing = true;
        assert!(
            mirrors
                .learn(&event("BLOCK_JOB_COMPLETED", 0, None))
                .is_none()
        );
        let ended = mirrors.learn(&event("BLOCK_JOB_COMPLETED", 3, None));
        assert!(matches!(ended, Some(News::Ended)));
    }

    #[test]
    fn an_end_that_nobody_wanted_is_a_failure() {
        for (name, error) in [
            ("BLOCK_JOB_COMPLETED", None),
            ("BLOCK_JOB_COMPLETED", Some("No space left on device")),
            ("BLOCK_JOB_CANCELLED", None),
        ] {
            let news = two().learn(&event(name, 0, error));
            assert!(matches!(news, Some(News::Failed(_))), "{name}");
        }
        let mut finishing = two();
        finishing.finishing = true;
        let late = finishing.learn(&event("BLOCK_JOB_COMPLETED", 0, Some("I/O error")));
        assert!(matches!(late, Some(News::Failed(_))));
        assert!(two().learn(&event("BLOCK_JOB_READY", 7, None)).is_none());
    }
}
