//! QMP, QEMU's machine protocol, without I/O.
//!
//! [`Codec`] turns bytes into [`Message`]s, [`Command`] is one command's name
//! and arguments, and [`status`] reads the few answers that every domain needs.
//! Reference: QEMU's `docs/interop/qmp-spec.rst`.
//!
//! ```text
//!   QEMU                                client
//!    | greeting {"QMP": {...}} ---------> |
//!    | <----------- {"execute": "qmp_capabilities", "id": 0} |
//!    | {"return": {}, "id": 0} ---------> |
//!    | <----------- {"execute": ..., "id": n} |
//!    | {"return"|"error": ..., "id": n} > |   and events at any time
//! ```
//!
//! # Invariants
//! * Unknown fields, unknown events and unknown error classes are kept and
//!   passed on: QEMU 7.2 and every later release have to be understood (see
//!   `docs/adr/0001-a-qmp-layer-of-our-own.md`).
//! * No bytes make the codec panic, and it holds at most one message's limit.

mod codec;
mod command;
mod message;
pub mod status;

pub use codec::{Codec, CodecError, MAX_MESSAGE};
pub use command::Command;
pub use message::{CommandId, Event, Greeting, Message, QmpError, Reply};
