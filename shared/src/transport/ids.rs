//! Connection ids.

use std::time::Duration;

use quinn::{ConnectionId, ConnectionIdGenerator};

/// Length of every connection id that Godwit chooses, in bytes.
const LEN: usize = 8;

/// Eight random bytes for each connection id. Quinn's own generator has three
/// and derives the rest, which a peer could invert; here they are what an
/// attacker outside of the path would have to guess to forge an ICMP error
/// (see [`super::peers`]).
#[derive(Debug)]
pub(super) struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        // A version 4 UUID has 122 random bits; the two halves' fixed bits
        // don't meet.
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        let bytes: [u8; LEN] = (high ^ low).to_le_bytes();
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The first eight bytes of the destination connection id of a packet that
/// this side sent, as a number; `None` when it has none of that length.
///
/// Layouts: RFC 9000 17.2 (long header: flags, version, length, id) and 17.3
/// (short header: flags, id of the length that its owner chose, ours is 8).
pub(super) fn destination_id(packet: &[u8]) -> Option<u64> {
    let long = packet.first()? & 0x80 != 0;
    let id = if long {
        if usize::from(*packet.get(5)?) < LEN {
            return None;
        }
        packet.get(6..6 + LEN)?
    } else {
        packet.get(1..=LEN)?
    };
    id.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_id_is_found_behind_both_headers() {
        let id = 0x0807_0605_0403_0201;
        assert_eq!(
            destination_id(&[0x40, 1, 2, 3, 4, 5, 6, 7, 8, 0xff]),
            Some(id)
        );
        let long = [0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0];
        assert_eq!(destination_id(&long), Some(id));
        assert_eq!(destination_id(&long[..13]), None, "cut off");
        assert_eq!(
            destination_id(&[0xc0, 0, 0, 0, 1, 4, 1, 2, 3, 4, 5, 6, 7, 8]),
            None
        );
        assert_eq!(destination_id(&[0x40, 1, 2]), None);
        assert_eq!(destination_id(&[]), None);
    }

    #[test]
    fn ids_differ() {
        let mut ids = RandomIds;
        assert_ne!(ids.generate_cid(), ids.generate_cid());
        assert_eq!(ids.generate_cid().len(), ids.cid_len());
    }
}
