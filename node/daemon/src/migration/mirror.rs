//! The QMP commands of disks that move along: the target exports its fresh
//! images over NBD, the source mirrors its own onto them.
//!
//! Source of the names: QEMU's `qapi/block-core.json`, `qapi/block-export.json`.
//! A mirror's job and its NBD node are both called `mirror` and the disk's index,
//! the export is called as the disk's node. A disk that the guest only reads is
//! copied as the others are; at the target it is written through a second node of
//! its image, called `lent` and the index, for as long as the export lives.

use std::path::Path;
use std::time::Duration;

use actix::Addr;
use godwit_shared::model::spec::DiskFormat;
use godwit_shared::model::{Bytes, BytesPerSec, DiskCopy, MigrationPolicy, Problem, VmSpec, codes};
use godwit_shared::wire::peer::DiskPlan;
use serde_json::{Value, json};

use super::qemu::execute;
use crate::domain::DomainActor;
use crate::images::NewImage;

/// How long the end of a job, or of a node that a job has just left, may take.
const ENDING: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

const PREFIX: &str = "mirror";

fn disk(index: u16) -> String {
    format!("disk{index}")
}

fn mirror(index: u16) -> String {
    format!("{PREFIX}{index}")
}

fn lent(index: u16) -> String {
    format!("lent{index}")
}

/// The disk that a job's event is about.
pub(super) fn disk_of(job: &str) -> Option<u16> {
    job.strip_prefix(PREFIX)?.parse().ok()
}

/// Which disks have to come along, and what they take.
///
/// # Errors
/// When QEMU does not tell, or a disk cannot be copied as the policy wants it.
pub(super) async fn survey(
    domain: &Addr<DomainActor>,
    spec: &VmSpec,
    policy: &MigrationPolicy,
) -> Result<Vec<DiskPlan>, Problem> {
    let own = (0_u16..).zip(&spec.disks);
    let own: Vec<u16> = own
        .filter(|(_, disk)| !disk.shared)
        .map(|(index, _)| index)
        .collect();
    if own.is_empty() {
        return Ok(Vec::new());
    }
    let nodes = execute(domain, "query-named-block-nodes", json!({ "flat": true })).await?;
    let plans = own
        .into_iter()
        .map(|index| plan(&nodes, index, policy.disks));
    plans.collect()
}

fn plan(nodes: &Value, index: u16, how: DiskCopy) -> Result<DiskPlan, Problem> {
    let name = disk(index);
    let mut listed = nodes.as_array().into_iter().flatten();
    let node = listed.find(|node| node["node-name"] == name.as_str());
    let image = node.and_then(|node| node.get("image"));
    let number = |field: &str| image.and_then(|image| image.get(field)?.as_u64());
    let size = number("virtual-size").ok_or_else(|| {
        let text = format!("QEMU does not tell the size of `{name}`");
        Problem::new(codes::QEMU_COMMAND, text).field(format!("disks[{index}]"))
    })?;
    let backing = match how {
        DiskCopy::Top => Some(image.and_then(backing).ok_or_else(|| no_backing(index))?),
        DiskCopy::Full | DiskCopy::Synchronous => None,
    };
    Ok(DiskPlan {
        index,
        size: Bytes(size),
        allocated: Bytes(number("actual-size").unwrap_or(size)),
        backing,
    })
}

fn backing(image: &Value) -> Option<(String, DiskFormat)> {
    let path = image.get("full-backing-filename")?.as_str()?;
    let format = match image.get("backing-filename-format")?.as_str()? {
        "qcow2" => DiskFormat::Qcow2,
        "raw" => DiskFormat::Raw,
        _ => return None,
    };
    Some((path.to_owned(), format))
}

fn no_backing(index: u16) -> Problem {
    let text = "only the top of a disk is to be copied, and it has no backing image";
    Problem::new(codes::MIGRATION_BLOCKED, text)
        .field(format!("disks[{index}]"))
        .value("top")
        .remedy("copy all of it (`disks: full`)")
}

/// Exports the disks of a QEMU that waits for its migration, at `socket`.
pub(super) async fn export(
    domain: &Addr<DomainActor>,
    images: &[NewImage],
    socket: &Path,
) -> Result<(), Problem> {
    let address = json!({ "type": "unix", "data": { "path": socket } });
    execute(domain, "nbd-server-start", json!({ "addr": address })).await?;
    for image in images {
        let name = disk(image.index);
        let node = if image.read_only {
            execute(domain, "blockdev-add", writable(image)).await?;
            lent(image.index)
        } else {
            name.clone()
        };
        let export = json!({
            "type": "nbd", "id": name, "node-name": node, "name": name, "writable": true,
        });
        execute(domain, "block-export-add", export).await?;
    }
    Ok(())
}

/// A second node of an image, to write through: the guest's own has it open to
/// read only. QEMU looks at that one anew once the guest's memory has arrived, as
/// at every disk, and by then this one is gone.
fn writable(image: &NewImage) -> Value {
    json!({
        "driver": image.driver(),
        "node-name": lent(image.index),
        "discard": "unmap",
        "file": { "driver": "file", "filename": image.path, "discard": "unmap" },
    })
}

/// Ends the exports; when this resolves nobody writes to the images any more.
/// Those of `read_only` disks had nodes of their own.
pub(super) async fn end_exports(
    domain: &Addr<DomainActor>,
    read_only: &[u16],
) -> Result<(), Problem> {
    execute(domain, "nbd-server-stop", Value::Null).await?;
    for index in read_only {
        delete_node(domain, &lent(*index)).await?;
    }
    Ok(())
}

/// Begins to mirror a disk to the export behind `socket`. Its job says
/// `BLOCK_JOB_READY` once both sides are the same.
pub(super) async fn start(
    domain: &Addr<DomainActor>,
    index: u16,
    policy: &MigrationPolicy,
    socket: &Path,
) -> Result<(), Problem> {
    let target = json!({
        "driver": "nbd",
        "node-name": mirror(index),
        "server": { "type": "unix", "path": socket },
        "export": disk(index),
        // What is zero is not sent, and takes no room there.
        "detect-zeroes": "unmap",
        "discard": "unmap",
    });
    execute(domain, "blockdev-add", target).await?;
    let sync = match policy.disks {
        DiskCopy::Full | DiskCopy::Synchronous => "full",
        DiskCopy::Top => "top",
    };
    let mode = match policy.disks {
        DiskCopy::Synchronous => "write-blocking",
        DiskCopy::Full | DiskCopy::Top => "background",
    };
    let job = json!({
        "job-id": mirror(index),
        "device": disk(index),
        "target": mirror(index),
        "sync": sync,
        "copy-mode": mode,
        // Zero is no limit.
        "speed": policy.bandwidth.map_or(0, |limit| limit.0),
        "on-source-error": "report",
        "on-target-error": "report",
    });
    execute(domain, "blockdev-mirror", job).await?;
    Ok(())
}

/// Changes what the mirrors may take; 0 lifts the limit.
pub(super) async fn limit(domain: &Addr<DomainActor>, rate: BytesPerSec) -> Result<(), Problem> {
    for job in jobs(domain).await? {
        let arguments = json!({ "device": job.name, "speed": rate.0 });
        execute(domain, "block-job-set-speed", arguments).await?;
    }
    Ok(())
}

/// Ends a mirror that is ready, with both sides the same. The guest stands still.
pub(super) async fn finish(domain: &Addr<DomainActor>, index: u16) -> Result<(), Problem> {
    execute(
        domain,
        "block-job-cancel",
        json!({ "device": mirror(index) }),
    )
    .await?;
    Ok(())
}

/// Lets go of the export, once its job has ended.
pub(super) async fn let_go(domain: &Addr<DomainActor>, index: u16) -> Result<(), Problem> {
    delete_node(domain, &mirror(index)).await
}

/// Ends whatever mirrors there are, of this daemon or of an earlier one. The
/// source's own disks are as they were.
pub(super) async fn abort(domain: &Addr<DomainActor>) -> Result<(), Problem> {
    let patience = tokio::time::Instant::now() + ENDING;
    loop {
        let jobs = jobs(domain).await?;
        for job in &jobs {
            let arguments = json!({ "device": job.name, "force": true });
            // It may have ended just now.
            let _ = execute(domain, "block-job-cancel", arguments).await;
        }
        if jobs.is_empty() {
            break;
        }
        if tokio::time::Instant::now() > patience {
            let text = "QEMU does not end the mirrors of the guest's disks";
            return Err(Problem::new(codes::QEMU_TIMEOUT, text)
                .remedy("look at the VM's QEMU log, then restart the VM"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let nodes = execute(domain, "query-named-block-nodes", json!({ "flat": true })).await?;
    for node in nodes.as_array().into_iter().flatten() {
        let name = node.get("node-name").and_then(Value::as_str);
        if let Some(name) = name.filter(|name| disk_of(name).is_some()) {
            delete_node(domain, name).await?;
        }
    }
    Ok(())
}

/// A job lets go of its nodes a moment after it has said that it ended.
async fn delete_node(domain: &Addr<DomainActor>, name: &str) -> Result<(), Problem> {
    let patience = tokio::time::Instant::now() + ENDING;
    loop {
        match execute(domain, "blockdev-del", json!({ "node-name": name })).await {
            Err(problem)
                if problem.code == codes::QEMU_COMMAND
                    && tokio::time::Instant::now() < patience =>
            {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            other => return other.map(|_| ()),
        }
    }
}

struct Job {
    name: String,
    done: u64,
    total: u64,
}

async fn jobs(domain: &Addr<DomainActor>) -> Result<Vec<Job>, Problem> {
    Ok(read_jobs(
        &execute(domain, "query-block-jobs", Value::Null).await?,
    ))
}

fn read_jobs(answer: &Value) -> Vec<Job> {
    let listed = answer.as_array().into_iter().flatten();
    let ours = listed.filter_map(|job| {
        let name = job.get("device")?.as_str()?;
        disk_of(name)?;
        let number = |field: &str| job.get(field).and_then(Value::as_u64).unwrap_or(0);
        Some(Job {
            name: name.to_owned(),
            done: number("offset"),
            total: number("len"),
        })
    });
    ours.collect()
}

/// What is mirrored so far, and what there is to mirror.
pub(super) async fn sample(domain: &Addr<DomainActor>) -> Result<(Bytes, Bytes), Problem> {
    let jobs = jobs(domain).await?;
    let sum = |part: fn(&Job) -> u64| jobs.iter().map(part).fold(0, u64::saturating_add);
    Ok((Bytes(sum(|job| job.done)), Bytes(sum(|job| job.total))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn nodes() -> Value {
        json!([
            {"node-name": "disk0", "image": {"virtual-size": 1000, "actual-size": 10}},
            {"node-name": "disk1", "image": {
                "virtual-size": 2000, "actual-size": 20,
                "full-backing-filename": "/base.raw", "backing-filename-format": "raw",
            }},
        ])
    }

    #[test]
    fn a_disk_is_planned_from_what_qemu_says() {
        let full = plan(&nodes(), 0, DiskCopy::Full).unwrap();
        assert_eq!((full.size, full.allocated), (Bytes(1000), Bytes(10)));
        assert_eq!(full.backing, None);
        let top = plan(&nodes(), 1, DiskCopy::Top).unwrap();
        assert_eq!(top.backing, Some(("/base.raw".to_owned(), DiskFormat::Raw)));
        let refused = plan(&nodes(), 0, DiskCopy::Top).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("disks[0]"));
        assert!(plan(&json!(null), 0, DiskCopy::Full).is_err());
    }

    #[test]
    fn a_read_only_disk_is_written_through_a_node_of_its_own() {
        let node = writable(&NewImage {
            index: 3,
            path: "/images/seed.raw".to_owned(),
            format: DiskFormat::Raw,
            read_only: true,
            size: Bytes(1),
            allocated: Bytes(1),
            backing: None,
        });
        assert_eq!(node["node-name"], "lent3");
        assert_eq!(node["driver"], "raw");
        assert_eq!(node["file"]["filename"], "/images/seed.raw");
        assert_eq!(node.get("read-only"), None);
    }

    #[test]
    fn only_our_jobs_count() {
        let answer = json!([
            {"device": "mirror3", "offset": 5, "len": 9},
            {"device": "backup0", "offset": 1, "len": 1},
            {"device": "mirrored", "offset": 1, "len": 1},
        ]);
        let jobs = read_jobs(&answer);
        assert_eq!(jobs.len(), 1);
        assert_eq!(
            (jobs[0].name.as_str(), jobs[0].done, jobs[0].total),
            ("mirror3", 5, 9)
        );
        assert!(read_jobs(&json!({"a": 1})).is_empty());
    }
}
