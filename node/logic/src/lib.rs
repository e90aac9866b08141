//! Every decision of a Godwit node, without I/O.
//!
//! No tokio, no actix, no quinn, no clock: time and randomness come in as
//! arguments, so the same code runs in production, under a model checker and
//! in a simulation.

pub mod clock;
pub mod compat;
pub mod domain;
pub mod forecast;
pub mod handoff;
pub mod lease;
pub mod numa;
pub mod packing;
pub mod qemu;
pub mod qmp;
