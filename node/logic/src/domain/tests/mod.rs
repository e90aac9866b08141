#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod any_order;
mod stories;
mod world;
