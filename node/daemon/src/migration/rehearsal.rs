//! A dry run: what stands against a move, and how it would go. A real move is
//! foretold as well, from smaller samples taken while the target prepares.
//!
//! Three things are found out in about a second: the target is asked, then the
//! link to it is tried on the same connection, and meanwhile QEMU samples how fast the
//! guest writes (`calc-dirty-rate`, page sampling: the guest is not slowed down).
//! QEMU sends no event when the sample is there; it is looked at when it is due.

use std::time::{Duration, Instant};

use actix::Addr;
use bytes::Bytes as Chunk;
use godwit_node_logic::forecast::{Headroom, LinkSample, Sample, forecast};
use godwit_shared::model::{Bytes, BytesPerSec, Forecast, MiB, MigrationPolicy, Problem, codes};
use godwit_shared::transport::{CloseCode, Connection, StreamKind};
use godwit_shared::wire::peer::{SourceMessage, TargetMessage};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::outgoing::{self, Departure};
use super::{peer, qemu};
use crate::domain::DomainActor;
use crate::domain::messages::OutgoingFacts;

/// How long a dry run may take.
const DRY_RUN: Duration = Duration::from_secs(10);
/// How long and with how much the link is tried.
const TRIAL: Duration = Duration::from_millis(150);
const TRIAL_BYTES: usize = 64 << 20;
const CHUNK: usize = 256 << 10;
/// How long the rest of a trial may take to arrive.
const TRIAL_REST: Duration = Duration::from_millis(1200);
/// The same for a move that begins: nobody reads it, so it has to fit into the
/// stream's window, and it must not hold up what follows.
const PEEK_BYTES: usize = 2 << 20;
const PEEK: Duration = Duration::from_millis(200);
/// How long QEMU samples, before a dry run's answer and beside a move's start.
const SAMPLE_MS: u64 = 1000;
const SHORT_SAMPLE_MS: u64 = 100;
/// How much later than it should a sample may be done.
const LATE_SAMPLE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// When its answer is looked for, beyond that.
const SAMPLE_DUE_MS: u64 = 10;
/// Pages looked at for each GiB (`sample-pages`): the most that QEMU takes, since
/// small guests would have few otherwise.
const SAMPLE_PAGES: u64 = 4096;

/// What a dry run found.
pub(super) struct Rehearsal {
    pub(super) blockers: Vec<Problem>,
    pub(super) forecast: Option<Forecast>,
}

/// Asks the target what stands against it, and samples how it would go.
pub(super) async fn rehearse(
    departure: &Departure,
    facts: &OutgoingFacts,
    policy: &MigrationPolicy,
) -> Result<Rehearsal, Problem> {
    let prepare = outgoing::prepare(departure, facts, policy, true)?;
    let mut blockers = qemu::blocked(&departure.domain).await?;
    let question = async {
        let dialled = peer::dial(&departure.context, &departure.record.target).await?;
        let connection = &dialled.connection;
        // One after the other: the stream that says more than its kind first
        // would overtake the control stream, which has to be the first.
        let asked = async {
            let found = ask(connection, prepare).await?;
            Ok::<_, Problem>((found, try_link(connection).await))
        };
        let writes = dirty_rate(&departure.domain, facts.run, SAMPLE_MS);
        let (asked, dirty_rate) = tokio::join!(asked, writes);
        connection.close(CloseCode::DONE, "answered");
        let (found, link_rate) = asked?;
        Ok((found, link_rate, dirty_rate))
    };
    let late = |_| {
        let text = "the target did not answer the dry run in time";
        Err(Problem::new(codes::TIMEOUT, text).remedy("look at the target's log"))
    };
    let answered = tokio::time::timeout(DRY_RUN, question).await;
    let (found, link_rate, dirty_rate) = answered.unwrap_or_else(late)?;
    blockers.extend(found);
    let sample = link_rate
        .zip(dirty_rate)
        .map(|(link_rate, dirty_rate)| Sample {
            memory: in_use(departure, facts),
            dirty_rate,
            link: LinkSample {
                rate: link_rate,
                headroom: Headroom::Trial,
            },
        });
    Ok(Rehearsal {
        blockers,
        forecast: sample.map(|sample| forecast(sample, policy)),
    })
}

/// How a move that has just begun will go; none when that cannot be sampled.
pub(super) async fn foretell(
    connection: Connection,
    writes: oneshot::Receiver<BytesPerSec>,
    memory: Bytes,
    policy: MigrationPolicy,
) -> Option<Forecast> {
    let (link_rate, dirty_rate) = tokio::join!(peek(&connection), writes);
    let (Some(link_rate), Ok(dirty_rate)) = (link_rate, &dirty_rate) else {
        tracing::info!(?link_rate, ?dirty_rate, "no forecast: a sample is missing");
        return None;
    };
    let sample = Sample {
        memory,
        dirty_rate: *dirty_rate,
        link: LinkSample {
            rate: link_rate,
            headroom: Headroom::Peek,
        },
    };
    Some(forecast(sample, &policy))
}

/// Samples what a guest writes that is about to move. Begun with the migration:
/// a small guest is gone before a sample that begins later is done.
pub(super) fn sample_writes(
    domain: Addr<DomainActor>,
    runs: bool,
) -> oneshot::Receiver<BytesPerSec> {
    let (word, sampled) = oneshot::channel();
    actix::spawn(async move {
        if let Some(rate) = dirty_rate(&domain, runs, SHORT_SAMPLE_MS).await {
            let _ = word.send(rate);
        }
    });
    sampled
}

/// What the link takes at least, from a little. One that is slower than a peek
/// can tell is taken for as fast as would just have passed.
async fn peek(connection: &Connection) -> Option<BytesPerSec> {
    let (sender, _receiver) = connection.open(StreamKind::Bulk).await.ok()?;
    let mut sender = sender.into_bytes();
    let began = Instant::now();
    let passed = tokio::time::timeout(PEEK, async {
        let chunk = Chunk::from(vec![0x5a; PEEK_BYTES]);
        sender.write_chunk(chunk).await?;
        sender.finish()?;
        sender.acknowledged().await
    });
    match passed.await {
        Ok(passed) => passed.ok()?,
        Err(_) => sender.reset(CloseCode::NONE),
    }
    rate(PEEK_BYTES, began.elapsed())
}

async fn ask(connection: &Connection, prepare: SourceMessage) -> Result<Vec<Problem>, Problem> {
    let lost = |what: String| Problem::new(codes::CONNECTION_LOST, what);
    let (sender, receiver) = connection
        .open(StreamKind::Control)
        .await
        .map_err(|e| lost(e.to_string()))?;
    let mut sender = sender.into_messages::<SourceMessage>();
    sender
        .send(&prepare)
        .await
        .map_err(|e| lost(e.to_string()))?;
    let answer = receiver.into_messages::<TargetMessage>().recv().await;
    match answer.map_err(|e| lost(e.to_string()))? {
        Some(TargetMessage::Blocked { blockers, .. }) => Ok(blockers),
        _ => Err(Problem::new(
            codes::PROTOCOL,
            "the target gave no answer to a dry run",
        )),
    }
}

/// What the link takes: as much as gets through in a short time.
async fn try_link(connection: &Connection) -> Option<BytesPerSec> {
    let (sender, _receiver) = connection.open(StreamKind::Bulk).await.ok()?;
    let mut sender = sender.into_bytes();
    let chunk = Chunk::from(vec![0x5a; CHUNK]);
    let (began, before) = (Instant::now(), connection.traffic().sent);
    let mut sent = 0;
    while sent < TRIAL_BYTES && began.elapsed() < TRIAL {
        sender.write_chunk(chunk.clone()).await.ok()?;
        sent += CHUNK;
    }
    sender.finish().ok()?;
    match tokio::time::timeout(TRIAL_REST, sender.acknowledged()).await {
        Ok(arrived) => arrived.ok()?,
        // On a slow link what was put on the wire tells.
        Err(_) => {
            sender.reset(CloseCode::NONE);
            sent = usize::try_from(connection.traffic().sent - before).ok()?;
        }
    }
    rate(sent, began.elapsed())
}

fn rate(bytes: usize, took: Duration) -> Option<BytesPerSec> {
    let micros = took.as_micros().max(1);
    let rate = u128::try_from(bytes).ok()? * 1_000_000 / micros;
    Some(BytesPerSec(u64::try_from(rate).unwrap_or(u64::MAX)))
}

/// On the target: takes what the source sends to try the link, and throws it away.
pub(super) async fn take_trial(connection: Connection) {
    let mut left = TRIAL_BYTES + CHUNK;
    while let Ok((kind, _sender, receiver)) = connection.accept().await {
        if kind != StreamKind::Bulk {
            continue;
        }
        let mut receiver = receiver.into_bytes();
        while let Ok(Some(chunk)) = receiver.read_chunk(CHUNK).await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                return connection.close(CloseCode::PROTOCOL, "that is no trial any more");
            }
        }
    }
}

/// One sample of QEMU; a guest that stands still dirties nothing.
async fn dirty_rate(domain: &Addr<DomainActor>, runs: bool, millis: u64) -> Option<BytesPerSec> {
    if !runs {
        return Some(BytesPerSec(0));
    }
    let fine = json!({
        "calc-time": millis, "calc-time-unit": "millisecond", "sample-pages": SAMPLE_PAGES,
    });
    let mut due = millis + SAMPLE_DUE_MS;
    if qemu::execute(domain, "calc-dirty-rate", fine)
        .await
        .is_err()
    {
        // QEMU before 8.2 counts in seconds only.
        due = SAMPLE_MS + SAMPLE_DUE_MS;
        let coarse = json!({ "calc-time": 1, "sample-pages": SAMPLE_PAGES });
        let told = qemu::execute(domain, "calc-dirty-rate", coarse).await;
        if let Err(problem) = told {
            tracing::info!(%problem, "no forecast: QEMU does not sample the guest's writes");
            return None;
        }
    }
    tokio::time::sleep(Duration::from_millis(due)).await;
    let patience = Instant::now() + LATE_SAMPLE;
    loop {
        // No event tells of it, and a busy host is late.
        let answer = qemu::execute(domain, "query-dirty-rate", Value::Null).await;
        let answer = answer.ok()?;
        if answer.get("status")?.as_str()? != "measuring" || Instant::now() > patience {
            return measured(&answer);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Reads `query-dirty-rate`, which counts in MiB a second.
fn measured(answer: &Value) -> Option<BytesPerSec> {
    if answer.get("status")?.as_str()? != "measured" {
        return None;
    }
    let mebibytes = answer.get("dirty-rate")?.as_u64()?;
    Some(BytesPerSec(mebibytes.saturating_mul(1 << 20)))
}

/// Memory that QEMU has touched for the guest, as far as that is known.
pub(super) fn in_use(departure: &Departure, facts: &OutgoingFacts) -> Bytes {
    let report = departure.context.bus.domain(departure.vm);
    let resident = report.and_then(|report| Some(report.usage?.resident));
    let MiB(size) = resident.map_or(facts.spec.memory, |r| r.min(facts.spec.memory));
    Bytes(size.saturating_mul(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_read_only_when_it_is_done() {
        let done = json!({"status": "measured", "dirty-rate": 3, "calc-time": 1});
        assert_eq!(measured(&done), Some(BytesPerSec(3 << 20)));
        let early = json!({"status": "measuring", "calc-time": 1});
        assert_eq!(measured(&early), None);
        assert_eq!(measured(&json!({"status": "measured"})), None);
        assert_eq!(measured(&Value::Null), None);
    }

    #[test]
    fn a_rate_is_bytes_by_time() {
        assert_eq!(
            rate(1_000, Duration::from_millis(10)),
            Some(BytesPerSec(100_000))
        );
        assert!(rate(usize::MAX, Duration::ZERO).is_some());
    }
}
