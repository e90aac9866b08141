//! The coordinator as nodes and operators see it: a real daemon inside the
//! test, a real HTTPS client, and nodes that the tests play themselves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub
)]

mod api;
mod backup;
mod console;
mod crash;
#[path = "../../src/store/etcd/tests/server.rs"]
mod etcd;
mod events;
mod join;
mod node;
mod restart;
mod running;
mod session;
mod several;
