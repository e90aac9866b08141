//! Datagrams that go out in one call. Sans I/O.
//!
//! quinn offers at most 10 datagrams at a time; segmentation offload takes as
//! many as fit into 65,507 bytes. A call costs the way through the kernel once,
//! so at 1452 bytes one call for 40 datagrams takes a third less of a core for
//! each than four calls for 10 do (`docs/adr/0008`).
//!
//! Only a transmit that is as long as quinn makes them is held, since the next
//! one then comes at once; a shorter one goes out immediately, with what is held.
//!
//! Invariants:
//! * all datagrams of a batch have one destination, source, mark and length;
//!   the last may be shorter (`UDP_SEGMENT`, udp(7)), and then ends the batch;
//! * a batch is never longer than UDP takes, unless one transmit alone is.

use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, Transmit};

/// Largest payload of one UDP datagram over IPv4, and so of one batch for
/// segmentation offload.
pub(super) const MAX_BATCH: usize = 65_507;

/// The datagrams that are held.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    like: Option<Like>,
}

/// What all datagrams of a batch have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Like {
    destination: SocketAddr,
    source: Option<IpAddr>,
    mark: Option<EcnCodepoint>,
    length: usize,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.like.is_none()
    }

    /// Whether `transmit` may go out in one call with what is held.
    pub(super) fn takes(&self, transmit: &Transmit<'_>) -> bool {
        let Some(like) = self.like else {
            return transmit.contents.len() <= MAX_BATCH;
        };
        let other = Like::of(transmit);
        let alone = transmit.segment_size.is_none();
        let length = if alone && other.length <= like.length {
            like.length
        } else {
            other.length
        };
        like == Like { length, ..other }
            && self.ends_whole()
            && self.bytes.len() + transmit.contents.len() <= MAX_BATCH
    }

    /// Adds a transmit that it takes.
    pub(super) fn add(&mut self, transmit: &Transmit<'_>) {
        self.like.get_or_insert_with(|| Like::of(transmit));
        self.bytes.extend_from_slice(transmit.contents);
    }

    /// Whether another transmit like this one would not fit any more.
    pub(super) fn is_full(&self, transmit: &Transmit<'_>) -> bool {
        !self.ends_whole() || self.bytes.len() + transmit.contents.len() > MAX_BATCH
    }

    /// What is held, as one transmit.
    pub(super) fn transmit(&self) -> Option<Transmit<'_>> {
        self.like.map(|like| Transmit {
            destination: like.destination,
            ecn: like.mark,
            contents: &self.bytes,
            segment_size: (self.bytes.len() > like.length).then_some(like.length),
            src_ip: like.source,
        })
    }

    /// Forgets what was held; its room stays.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.like = None;
    }

    fn ends_whole(&self) -> bool {
        self.like
            .is_none_or(|like| self.bytes.len().is_multiple_of(like.length))
    }
}

impl Like {
    fn of(transmit: &Transmit<'_>) -> Self {
        Self {
            destination: transmit.destination,
            source: transmit.src_ip,
            mark: transmit.ecn,
            length: transmit
                .segment_size
                .unwrap_or(transmit.contents.len())
                .max(1),
        }
    }
}

/// Whether quinn has more to send than this: it is as many whole datagrams as
/// it was allowed to make.
pub(super) fn goes_on(transmit: &Transmit<'_>, allowed: usize) -> bool {
    transmit
        .segment_size
        .is_some_and(|size| transmit.contents.len() >= size * allowed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: &str = "192.0.2.1:7441";

    fn transmit(to: &str, contents: &'static [u8], size: Option<usize>) -> Transmit<'static> {
        Transmit {
            destination: to.parse().unwrap(),
            ecn: Some(EcnCodepoint::Ect0),
            contents,
            segment_size: size,
            src_ip: None,
        }
    }

    fn held(first: &Transmit<'_>) -> Batch {
        let mut batch = Batch::default();
        assert!(batch.takes(first));
        batch.add(first);
        batch
    }

    #[test]
    fn what_is_alike_goes_together() {
        let first = transmit(A, &[1; 20], Some(10));
        let mut batch = held(&first);
        assert!(!batch.is_full(&first));
        batch.add(&first);
        let whole = batch.transmit().unwrap();
        assert_eq!(whole.contents, [1; 40]);
        assert_eq!(whole.segment_size, Some(10));
        assert_eq!(whole.destination, first.destination);
        assert_eq!(whole.ecn, first.ecn);
        batch.clear();
        assert!(batch.is_empty() && batch.transmit().is_none());
    }

    #[test]
    fn what_differs_does_not() {
        let first = transmit(A, &[1; 20], Some(10));
        let batch = held(&first);
        let unmarked = Transmit {
            ecn: None,
            ..first.clone()
        };
        let moved = Transmit {
            src_ip: Some([192, 0, 2, 9].into()),
            ..first.clone()
        };
        for other in [
            transmit("192.0.2.2:7441", &[1; 20], Some(10)),
            transmit(A, &[1; 20], Some(5)),
            transmit(A, &[1; 24], Some(12)),
            transmit(A, &[1; 11], None),
            unmarked,
            moved,
        ] {
            assert!(!batch.takes(&other), "{other:?}");
        }
    }

    #[test]
    fn a_shorter_datagram_is_the_last() {
        let first = transmit(A, &[1; 20], Some(10));
        for last in [transmit(A, &[2; 3], None), transmit(A, &[2; 13], Some(10))] {
            let mut batch = held(&first);
            assert!(batch.takes(&last));
            batch.add(&last);
            assert!(batch.is_full(&first));
            assert!(!batch.takes(&first) && !batch.takes(&last));
        }
        let mut batch = held(&transmit(A, &[1; 10], None));
        batch.add(&transmit(A, &[1; 10], None));
        assert_eq!(batch.transmit().unwrap().segment_size, Some(10));
    }

    #[test]
    fn no_batch_is_longer_than_udp_takes() {
        static MANY: [u8; 14_520] = [1; 14_520];
        static JUMBO: [u8; 89_520] = [1; 89_520];
        let ten = transmit(A, &MANY, Some(1452));
        let mut batch = Batch::default();
        while batch.takes(&ten) && !batch.is_full(&ten) {
            batch.add(&ten);
        }
        assert_eq!(batch.transmit().unwrap().contents.len(), 4 * 14_520);
        assert!(!Batch::default().takes(&transmit(A, &JUMBO, Some(8952))));
    }

    #[test]
    fn only_a_transmit_that_goes_on_is_worth_waiting() {
        assert!(goes_on(&transmit(A, &[1; 20], Some(10)), 2));
        assert!(!goes_on(&transmit(A, &[1; 19], Some(10)), 2));
        assert!(!goes_on(&transmit(A, &[1; 10], Some(10)), 2));
        assert!(!goes_on(&transmit(A, &[1; 20], None), 2));
    }
}
