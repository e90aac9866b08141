//! How Godwit's values cross a network.
//!
//! * [`codec`]: values to bytes and back; the only user of the byte format's crate.
//! * [`frame`]: length-limited frames on a stream, sans I/O.
//! * [`piece`]: how a migration's memory is put on a stream, packed or not; sans I/O.
//! * [`roster`]: whether two sides know the same members.
//! * [`version`]: the offer and answer that open a connection.
//!
//! Internal types are not wire types: what is sent is spelled out in the
//! message modules, and golden tests pin its bytes.

pub mod codec;
pub mod document;
pub mod frame;
pub mod lease;
pub mod peer;
pub mod piece;
pub mod roster;
pub mod uplink;
pub mod version;
