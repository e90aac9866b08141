//! The event log: numbered without gaps, bounded, persisted with its cause.

use godwit_shared::api::Event;

use super::Cluster;
use super::turn::{About, Turn};
use crate::record::Key;

/// Events after a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// The events, oldest first.
    pub events: Vec<Event>,
    /// Some of those asked for are no longer kept, or the number is one that
    /// this log has not reached.
    pub gap: bool,
}

impl Cluster {
    /// The kept events with a number above `seq`.
    pub fn events_after(&self, seq: u64) -> Replay {
        let log = &self.records.events;
        let first = log.front().map_or(1, |event| event.seq);
        let skip = seq.saturating_add(1).saturating_sub(first);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(log.len());
        Replay {
            events: log.range(skip..).cloned().collect(),
            gap: seq.saturating_add(1) < first || seq > self.last_event(),
        }
    }

    /// The newest event's number; 0 before the first.
    pub fn last_event(&self) -> u64 {
        self.records.events.back().map_or(0, |event| event.seq)
    }

    pub(super) fn event(&self, seq: u64) -> Option<&Event> {
        let first = self.records.events.front()?.seq;
        let index = usize::try_from(seq.checked_sub(first)?).ok()?;
        self.records.events.get(index)
    }

    /// Writes an event down.
    pub(super) fn note(&mut self, turn: &mut Turn, kind: &str, about: About, message: String) {
        let event = Event {
            seq: self.last_event() + 1,
            at: turn.now,
            kind: kind.to_owned(),
            vm: about.vm,
            node: about.node,
            migration: about.migration,
            task: about.task,
            message,
        };
        self.records.events.push_back(event.clone());
        turn.emit(event);
        while self.records.events.len() > self.settings.limits.events.max(1) {
            if let Some(old) = self.records.events.pop_front() {
                turn.touch(Key::Event(old.seq));
            }
        }
    }
}
