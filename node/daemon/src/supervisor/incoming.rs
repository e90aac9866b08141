//! Making ready to receive a migration.

use std::path::Path;

use actix::prelude::*;
use godwit_shared::model::{Problem, Usage, VmSpec, codes};

use super::messages::{CheckIncoming, IncomingRequest, StartIncoming};
use super::{Supervisor, actor_gone};
use crate::domain::DomainActor;
use crate::domain::messages::{BecomeIncoming, Describe, DiscardIncoming};
use crate::images::{self, NewImage};
use crate::numa;

impl Handler<StartIncoming> for Supervisor {
    type Result = ResponseFuture<Result<Addr<DomainActor>, Problem>>;

    fn handle(&mut self, message: StartIncoming, ctx: &mut Self::Context) -> Self::Result {
        let request = message.0;
        let machine = Some(&request.machine);
        let migration = request.migration;
        let (domain, new) =
            self.find_or_make(request.vm, &request.spec, request.epoch, machine, ctx);
        let sent = domain.send(BecomeIncoming(request));
        Box::pin(async move {
            match sent.await.unwrap_or_else(|_| Err(actor_gone())) {
                Ok(()) => Ok(domain),
                Err(problem) => {
                    // Of one that was here before, only what was being received
                    // can be thrown away: the machine sees to that.
                    let receiving = domain.send(Describe).await;
                    if new
                        || receiving.is_ok_and(|report| {
                            report.migration == Some(migration)
                                && !report.owner
                                && report.pid.is_none()
                        })
                    {
                        let _ = domain.send(DiscardIncoming).await;
                    }
                    Err(problem)
                }
            }
        })
    }
}

impl Handler<CheckIncoming> for Supervisor {
    type Result = ResponseFuture<Vec<Problem>>;

    fn handle(&mut self, message: CheckIncoming, _ctx: &mut Self::Context) -> Self::Result {
        let request = message.0;
        let mut found = Vec::new();
        let usage = Usage::of(&request.spec);
        found.extend(self.node.ledger.check(request.vm, usage).err());
        if request.spec.protected() {
            found.extend(self.node.guard.check().err());
        }
        let present = self.domains.get(&request.vm).map(|d| d.send(Describe));
        Box::pin(async move {
            if let Some(present) = present
                && let Ok(report) = present.await
                && report.state.has_process()
            {
                found.push(
                    Problem::new(codes::BUSY, "the VM has a QEMU on the target already")
                        .remedy("wait until it has ended, or stop it there"),
                );
            }
            let IncomingRequest { spec, images, .. } = request;
            let look = move || {
                let mut found = missing_files(&spec, &images);
                found.extend(images::blockers(&images));
                let backing = numa::backing(&spec).err();
                found.extend(backing.map(|error| error.problem(codes::MIGRATION_BLOCKED)));
                found
            };
            let files = tokio::task::spawn_blocking(look).await;
            found.extend(files.unwrap_or_default());
            found
        })
    }
}

/// Files that the spec names and the node lacks, but for those that will be made.
/// Blocks.
fn missing_files(spec: &VmSpec, made: &[NewImage]) -> Vec<Problem> {
    let boot = [
        ("boot.kernel", &spec.boot.kernel),
        ("boot.initrd", &spec.boot.initrd),
    ];
    let boot = boot
        .into_iter()
        .filter_map(|(field, path)| Some((field.to_owned(), path.as_deref()?)));
    let comes = |index: usize| made.iter().any(|image| usize::from(image.index) == index);
    let disks = spec
        .disks
        .iter()
        .enumerate()
        .filter(|(index, _)| !comes(*index))
        .map(|(index, disk)| (format!("disks[{index}].path"), disk.path.as_str()));
    boot.chain(disks)
        .filter_map(|(field, path)| {
            let error = std::fs::File::open(Path::new(path)).err()?;
            let text = format!("`{path}` cannot be opened on the target: {error}");
            Some(
                Problem::new(codes::MIGRATION_BLOCKED, text)
                    .field(field)
                    .value(path)
                    .remedy("make the same file available at that path on the target"),
            )
        })
        .collect()
}
