//! Where the coordinator is looked for, and in which order.
//!
//! Of several coordinators one leads, and the others say which. An attempt begins
//! with the one that was named last, then goes round; each new round begins
//! one further, so that a coordinator that is there and does not lead, or one
//! that dies, holds nobody up.

use crate::config::HostPort;

/// The coordinators' addresses.
#[derive(Debug)]
pub(super) struct Places {
    known: Vec<HostPort>,
    first: usize,
    /// The leader, by a coordinator's word; tried once.
    named: Option<HostPort>,
}

impl Places {
    pub(super) const fn new(known: Vec<HostPort>) -> Self {
        Self {
            known,
            first: 0,
            named: None,
        }
    }

    /// The addresses for an attempt, in their order.
    pub(super) fn take(&mut self) -> Vec<HostPort> {
        let (before, from) = self.known.split_at(self.first.min(self.known.len()));
        let round = from.iter().chain(before).cloned();
        let named = self.named.take();
        let others = round.filter(|place| Some(place) != named.as_ref());
        named.iter().cloned().chain(others).collect()
    }

    /// The coordinator that was reached does not lead.
    pub(super) fn sent_to(&mut self, leader: Option<&str>) {
        self.named = leader.and_then(|text| HostPort::check("coordinator", text).ok());
        self.next();
    }

    /// The coordinator that was reached is no good any more.
    pub(super) fn next(&mut self) {
        self.first = (self.first + 1) % self.known.len().max(1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn places(texts: &[&str]) -> Vec<HostPort> {
        let place = |text: &&str| HostPort::check("x", text).unwrap();
        texts.iter().map(place).collect()
    }

    #[test]
    fn the_named_leader_comes_first_and_rounds_begin_one_further() {
        let mut looked = Places::new(places(&["a:1", "b:1", "c:1"]));
        assert_eq!(looked.take(), places(&["a:1", "b:1", "c:1"]));
        looked.sent_to(Some("c:1"));
        assert_eq!(looked.take(), places(&["c:1", "b:1", "a:1"]));
        looked.sent_to(None);
        assert_eq!(looked.take(), places(&["c:1", "a:1", "b:1"]));
        // One that nobody knew of.
        looked.sent_to(Some("d:1"));
        assert_eq!(looked.take(), places(&["d:1", "a:1", "b:1", "c:1"]));
        looked.next();
        assert_eq!(looked.take(), places(&["b:1", "c:1", "a:1"]));
    }

    #[test]
    fn a_lone_coordinator_is_tried_again_and_again() {
        let mut looked = Places::new(places(&["a:1"]));
        looked.next();
        looked.sent_to(Some("not an address"));
        assert_eq!(looked.take(), places(&["a:1"]));
        let mut none = Places::new(Vec::new());
        none.next();
        assert!(none.take().is_empty());
    }
}
