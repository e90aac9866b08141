//! What Godwit's daemons and its console speak.
//!
//! * [`model`] is plain data: ids, units, VM specs, states, problems.
//! * [`wire`] is how that data crosses a network: frames, versions, messages.
//! * [`api`] is what the coordinator's REST interface answers and accepts.
//! * [`config`] turns TOML into checked settings.
//! * [`prompt`] asks a person at a terminal for a name.
//! * `backup` (feature `backup`) is the file that `godwit cluster backup` writes.
//! * `pki` and `transport` (feature `transport`) are the cluster's identity and
//!   its QUIC connections. Crates that only decide go without them.

pub mod api;
#[cfg(feature = "backup")]
pub mod backup;
pub mod config;
#[cfg(any(feature = "backup", feature = "transport"))]
pub mod digest;
pub mod model;
#[cfg(feature = "transport")]
pub mod pki;
pub mod prompt;
#[cfg(feature = "transport")]
pub mod transport;
pub mod wire;
