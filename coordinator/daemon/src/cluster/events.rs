//! What has happened, for those who listen.
//!
//! Each event is made into its server-sent form once, whoever listens. A
//! listener has a bounded queue; when it is full the listener is dropped, and
//! comes back with the number of the last event that it saw.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use godwit_shared::api::Event;
use tokio::sync::mpsc;

/// Events that a listener may be behind.
const QUEUE: usize = 1024;

/// One event, as it goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLine {
    /// Its number.
    pub seq: u64,
    /// The server-sent event (HTML Living Standard 9.2), with its empty line.
    pub text: Bytes,
}

/// A listener's place.
#[derive(Debug)]
pub struct Subscription {
    /// What it has missed, oldest first.
    pub replay: Vec<EventLine>,
    /// Set when events behind the asked one are no longer kept: the first
    /// number that is.
    pub gap: Option<u64>,
    /// What happens from now on; it ends when the listener is too slow, or the
    /// daemon stops.
    pub live: mpsc::Receiver<EventLine>,
}

/// Hands durable events to whoever listens. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventHub(Arc<Mutex<Hub>>);

#[derive(Debug)]
struct Hub {
    limit: usize,
    kept: VecDeque<EventLine>,
    /// The number of the newest event, kept or not.
    last: u64,
    listeners: Vec<mpsc::Sender<EventLine>>,
    closed: bool,
}

impl EventHub {
    pub(super) fn new(limit: usize, past: &[Event]) -> Self {
        let last = past.last().map_or(0, |event| event.seq);
        let skip = past.len().saturating_sub(limit);
        let kept = past.iter().skip(skip).filter_map(EventLine::of).collect();
        let hub = Hub {
            limit,
            kept,
            last,
            listeners: Vec::new(),
            closed: false,
        };
        Self(Arc::new(Mutex::new(hub)))
    }

    /// Listens: to what came after number `after`, or to what comes from now on.
    pub fn subscribe(&self, after: Option<u64>) -> Subscription {
        let mut hub = self.hub();
        let (sender, live) = mpsc::channel(QUEUE);
        if !hub.closed {
            hub.listeners.push(sender);
        }
        let after = after.unwrap_or(hub.last);
        let (replay, gap) = hub.behind(after);
        Subscription { replay, gap, live }
    }

    pub(super) fn publish(&self, event: &Event) {
        let Some(line) = EventLine::of(event) else {
            return;
        };
        let mut hub = self.hub();
        hub.last = line.seq;
        hub.listeners
            .retain(|listener| listener.try_send(line.clone()).is_ok());
        hub.kept.push_back(line);
        while hub.kept.len() > hub.limit {
            hub.kept.pop_front();
        }
    }

    /// The number of the newest event.
    pub fn last(&self) -> u64 {
        self.hub().last
    }

    /// Ends every listener's stream.
    pub fn close(&self) {
        let mut hub = self.hub();
        hub.closed = true;
        hub.listeners.clear();
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    fn behind(&self, after: u64) -> (Vec<EventLine>, Option<u64>) {
        // A number that was never given out is from another life of the store.
        if after > self.last {
            return (Vec::new(), Some(self.last + 1));
        }
        let first = self.kept.front().map_or(self.last + 1, |line| line.seq);
        let begin = self.kept.partition_point(|line| line.seq <= after);
        let gap = (after + 1 < first).then_some(first);
        (self.kept.range(begin..).cloned().collect(), gap)
    }
}

impl EventLine {
    fn of(event: &Event) -> Option<Self> {
        // JSON text has no line breaks of its own.
        let json = serde_json::to_string(event)
            .inspect_err(|error| tracing::error!(%error, "an event cannot be written"))
            .ok()?;
        let text = Bytes::from(format!("id: {}\ndata: {json}\n\n", event.seq));
        Some(Self {
            seq: event.seq,
            text,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use godwit_shared::model::UnixMillis;

    use super::*;

    fn event(seq: u64) -> Event {
        Event {
            seq,
            at: UnixMillis(seq),
            kind: "node.up".into(),
            vm: None,
            node: None,
            migration: None,
            task: None,
            message: "two\nlines".into(),
        }
    }

    fn numbers(lines: &[EventLine]) -> Vec<u64> {
        lines.iter().map(|line| line.seq).collect()
    }

    #[test]
    fn a_listener_gets_what_it_missed_or_hears_of_the_gap() {
        let hub = EventHub::new(3, &[event(1), event(2)]);
        assert_eq!(numbers(&hub.subscribe(Some(0)).replay), [1, 2]);
        (3..=5).for_each(|seq| hub.publish(&event(seq)));
        let resumed = hub.subscribe(Some(3));
        assert_eq!((numbers(&resumed.replay), resumed.gap), (vec![4, 5], None));
        let late = hub.subscribe(Some(1));
        assert_eq!((numbers(&late.replay), late.gap), (vec![3, 4, 5], Some(3)));
        let foreign = hub.subscribe(Some(99));
        assert_eq!((numbers(&foreign.replay), foreign.gap), (vec![], Some(6)));
        let fresh = hub.subscribe(None);
        assert_eq!((numbers(&fresh.replay), fresh.gap), (vec![], None));
    }

    #[tokio::test]
    async fn a_slow_listener_is_dropped_and_others_are_not() {
        let hub = EventHub::new(10, &[]);
        let mut slow = hub.subscribe(None).live;
        let mut quick = hub.subscribe(None).live;
        for seq in 1..=(QUEUE as u64 + 1) {
            hub.publish(&event(seq));
            assert_eq!(quick.recv().await.unwrap().seq, seq);
        }
        let mut got = 0;
        while slow.recv().await.is_some() {
            got += 1;
        }
        assert_eq!(got, QUEUE);
        hub.close();
        assert_eq!(quick.recv().await, None);
        assert_eq!(hub.subscribe(None).live.recv().await, None);
    }

    #[test]
    fn an_event_is_one_line_of_data() {
        let line = EventLine::of(&event(7)).unwrap();
        let text = String::from_utf8(line.text.to_vec()).unwrap();
        assert!(text.starts_with("id: 7\ndata: {\"seq\":7,"), "{text}");
        assert!(
            text.ends_with("}\n\n") && text.lines().count() == 3,
            "{text}"
        );
    }
}
