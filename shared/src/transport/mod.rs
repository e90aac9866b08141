//! Encrypted, authenticated connections between the members of a cluster:
//! QUIC (RFC 9000) with mutual TLS 1.3.
//!
//! ```text
//!   actors (any runtime)          godwit-net-0..n (TransportRuntime)
//!   ------------------            ------------------------------------------
//!   Endpoint   accept/connect --> handshake tasks, version offer and answer
//!   Connection open/accept    --> quinn's drivers, timers, keep-alives
//!   Message-, ByteSender/Receiver  one UDP socket for each endpoint (Socket)
//!   Closed                    <-- watch task: idle timeout, ICMP, close, reset
//! ```
//!
//! Invariants:
//! * everything that keeps a connection alive runs on the transport's own
//!   threads, never behind an actor's work, and time in which those threads
//!   did not run does not count against the peer ([`clock`]);
//! * the peer of a connection is who its certificate says ([`Peer`]);
//! * before a connection is handed out, both sides have agreed on a protocol
//!   version;
//! * a lost peer ends the connection within
//!   [`TransportOptions::detection_bound`]; a peer whose process died ends it
//!   with the first datagram that its host answers with "port unreachable"
//!   (`docs/adr/0005`), and nothing else from outside of TLS ends it.

mod batch;
mod clock;
mod connection;
mod disconnect;
mod endpoint;
mod handshake;
mod ids;
mod message;
mod options;
mod peers;
mod runtime;
mod socket;
mod stream;
mod tls;

pub use connection::{Connection, Peer, Probing, Traffic};
pub use disconnect::{CloseCode, Closed, Disconnect};
pub use endpoint::{Admission, BindError, Endpoint};
pub use handshake::ConnectError;
pub use message::{MessageReceiver, MessageSender, ReceiveError, SendError};
pub use options::{OptionsError, TransportOptions};
pub use runtime::{RuntimeError, TransportRuntime};
pub use stream::{ByteReceiver, ByteSender, Receiver, Sender, StreamError, StreamKind};

#[cfg(test)]
mod tests;
