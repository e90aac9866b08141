//! The numbers that an endpoint runs by.

use std::sync::Arc;
use std::time::Duration;

use quinn::{
    AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt,
};

use super::ids::RandomIds;
use crate::pki::Identity;

/// What both ends of every connection of an endpoint go by.
///
/// # How fast a silent cut is noticed
/// QUIC restarts the idle timer when a packet arrives, and also when the first
/// packet that asks for an acknowledgement is sent after that (RFC 9000 10.1).
/// An idle side sends its keep-alive `keep_alive` after the last packet that
/// it got or sent; if the cut happens just before, the timer starts anew there.
/// So the worst case is `keep_alive + idle_timeout`
/// ([`detection_bound`](Self::detection_bound)), 800 ms by default; a side
/// that is sending notices within `idle_timeout`. On paths whose probe timeout
/// is over a third of `idle_timeout` (round trips of some 50 ms and more),
/// three probe timeouts take the idle timeout's place, as the RFC demands.
/// A handshake has no measured round trip yet; it begins with 50 ms, so
/// that a peer which cannot be reached is given up as fast.
/// Both sides use the smaller of their idle timeouts.
#[derive(Debug, Clone)]
pub struct TransportOptions {
    /// How long a connection is quiet before a keep-alive is sent.
    pub keep_alive: Duration,
    /// How long nothing may arrive before the peer counts as lost.
    pub idle_timeout: Duration,
    /// How long a handshake may take, the version offer included.
    pub handshake_timeout: Duration,
    /// How many bytes of one stream a peer may send ahead of its reader. What
    /// lies there when a guest stops has to be read before it can run again,
    /// so more is not better: a QEMU that has to get its memory from the host
    /// takes 400 MB/s, and 16 MiB then are 40 ms of blackout.
    pub stream_window: u32,
    /// The same for all streams of a connection together.
    pub connection_window: u32,
    /// How many bytes may be sent and not yet acknowledged. It bounds what is
    /// buffered here, and the rate on long paths to this per round trip.
    pub send_window: u32,
    /// Kernel buffer for each direction of the UDP socket, in bytes; cut to
    /// the system's limit when the process may not exceed it.
    pub socket_buffer: usize,
    /// Largest UDP payload that path MTU discovery tries, in bytes. 8952 fits
    /// into a jumbo frame over IPv6; links with less cost a few lost probes.
    pub mtu_upper_bound: u16,
    /// How many streams the peer may have open at once.
    pub max_streams: u16,
    /// How many handshakes are served at once; further ones are ignored.
    pub max_handshakes: usize,
    /// Whether hosts without a certificate may connect to join the cluster.
    pub accept_join: bool,
    /// What the version offer calls this program.
    pub software: String,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_millis(200),
            idle_timeout: Duration::from_millis(600),
            handshake_timeout: Duration::from_secs(5),
            stream_window: 4 * MIB,
            connection_window: 12 * MIB,
            send_window: 4 * MIB,
            socket_buffer: 8 << 20,
            mtu_upper_bound: 8952,
            max_streams: 256,
            max_handshakes: 256,
            accept_join: false,
            software: concat!("godwit ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

const MIB: u32 = 1 << 20;
/// How many packets the peer may get before it has to acknowledge them
/// (draft-ietf-quic-ack-frequency). Each acknowledgement costs both ends about
/// as much as a data packet, and by itself quinn sends one for every other
/// packet that it finds in the socket.
const PACKETS_PER_ACK: u32 = 32;
/// How long it may wait for them. A connection begins with fewer packets than
/// that at a time: each of its first round trips would take the RFC's 25 ms.
const LATEST_ACK: Duration = Duration::from_millis(2);
/// What a connection takes for its round trip until it has measured one. The
/// RFC's 333 ms (9002 6.2.2) is for the Internet: with it, three probe timeouts
/// are 3 s, and a cut during a handshake would go unnoticed for so long. With
/// this they are 450 ms. On a longer path a first packet is sent twice.
const FIRST_RTT: Duration = Duration::from_millis(50);
/// The smallest datagram that QUIC may rely on (RFC 9000 14.1).
const MIN_MTU: u16 = 1200;
/// Largest UDP payload over IPv6; what this side is ready to receive.
pub(super) const MAX_UDP_PAYLOAD: u16 = 65527;

/// Options contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// One lost keep-alive would end a connection.
    #[error(
        "keep-alive {keep_alive:?} has to be at most half of the idle timeout {idle_timeout:?}, or one lost packet ends a connection"
    )]
    KeepAlive {
        /// The interval.
        keep_alive: Duration,
        /// The timeout.
        idle_timeout: Duration,
    },
    /// A duration is zero or absurd.
    #[error("{what} of {value:?} is outside of {least:?} to {most:?}")]
    Duration {
        /// Which one.
        what: &'static str,
        /// What was given.
        value: Duration,
        /// The least that works.
        least: Duration,
        /// The most that works.
        most: Duration,
    },
    /// The MTU bound is below what QUIC needs or above what UDP has.
    #[error("an MTU bound of {0} bytes is outside of 1200 to 65527")]
    Mtu(u16),
}

impl TransportOptions {
    /// The longest that a silent cut goes unnoticed: `keep_alive + idle_timeout`.
    pub fn detection_bound(&self) -> Duration {
        self.keep_alive + self.idle_timeout
    }

    /// Checks that the options fit together.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), OptionsError> {
        let range = |what, value: Duration, least, most| {
            let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(OptionsError::Duration {
                    what,
                    value,
                    least,
                    most,
                })
            }
        };
        range("a keep-alive", self.keep_alive, 10, 60_000)?;
        range("an idle timeout", self.idle_timeout, 50, 600_000)?;
        range("a handshake timeout", self.handshake_timeout, 100, 600_000)?;
        if self.keep_alive * 2 > self.idle_timeout {
            let (keep_alive, idle_timeout) = (self.keep_alive, self.idle_timeout);
            return Err(OptionsError::KeepAlive {
                keep_alive,
                idle_timeout,
            });
        }
        if !(MIN_MTU..=MAX_UDP_PAYLOAD).contains(&self.mtu_upper_bound) {
            return Err(OptionsError::Mtu(self.mtu_upper_bound));
        }
        Ok(())
    }

    pub(super) fn transport(&self) -> Arc<TransportConfig> {
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(self.mtu_upper_bound);
        let mut config = TransportConfig::default();
        config
            .initial_rtt(FIRST_RTT)
            .keep_alive_interval(Some(self.keep_alive))
            .max_idle_timeout(IdleTimeout::try_from(self.idle_timeout).ok())
            .stream_receive_window(VarInt::from_u32(self.stream_window))
            .receive_window(VarInt::from_u32(self.connection_window))
            .send_window(u64::from(self.send_window))
            .ack_frequency_config(Some(acknowledgements()))
            .max_concurrent_bidi_streams(VarInt::from_u32(self.max_streams.into()))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            // Only for the probes of `Connection::probe_every`, which nobody
            // reads: quinn drops the oldest when there is no room.
            .datagram_receive_buffer_size(Some(1024))
            .datagram_send_buffer_size(1024)
            .mtu_discovery_config(Some(mtu));
        Arc::new(config)
    }

    /// With an identity, a daemon that comes back after a crash can prove to
    /// its old peers that their connections are gone (stateless reset, RFC
    /// 9000 10.3): the key for that is derived from its own.
    pub(super) fn endpoint(identity: Option<&Identity>) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        // The bounds are constants that quinn accepts.
        let _ = config.max_udp_payload_size(MAX_UDP_PAYLOAD);
        config.cid_generator(|| Box::new(RandomIds));
        if let Some(identity) = identity {
            let secret = identity.derive("godwit stateless reset v1");
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &secret);
            config.reset_key(Arc::new(key));
        }
        config
    }
}

fn acknowledgements() -> AckFrequencyConfig {
    let mut acks = AckFrequencyConfig::default();
    acks.max_ack_delay(Some(LATEST_ACK));
    acks.ack_eliciting_threshold(VarInt::from_u32(PACKETS_PER_ACK));
    acks
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_default_notices_a_cut_within_850_ms() {
        let options = TransportOptions::default();
        options.check().unwrap();
        assert!(options.detection_bound() <= Duration::from_millis(850));
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let default = TransportOptions::default;
        let slow = TransportOptions {
            keep_alive: Duration::from_millis(400),
            ..default()
        };
        assert!(matches!(slow.check(), Err(OptionsError::KeepAlive { .. })));
        let never = TransportOptions {
            idle_timeout: Duration::ZERO,
            ..default()
        };
        assert!(matches!(never.check(), Err(OptionsError::Duration { .. })));
        let small = TransportOptions {
            mtu_upper_bound: 500,
            ..default()
        };
        assert_eq!(small.check(), Err(OptionsError::Mtu(500)));
    }
}
