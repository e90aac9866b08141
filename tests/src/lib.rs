//! Whole clusters for tests: real daemons, real QEMUs, real sockets.
//!
//! * [`harness`] starts a coordinator and nodes as processes in a private
//!   folder, kills them the way a test asks, and takes everything down again.
//! * [`api`] is a client of the REST interface; [`events`] collects its events
//!   with the moment of their arrival.
//! * [`bench`] is what the benchmarks have in common; [`bare`] is QEMU without a manager, to measure against.
//! * [`fault`] lets something go wrong at a chosen moment of a migration.
//! * [`guest`] makes specs for the counting guest and checks its count.
//! * [`disks`] makes images, and looks at what became of them.
//! * [`netns`] makes network namespaces and links between them.
//! * [`points`] holds a daemon between two steps of a migration; [`matrix`] lets
//!   every fault happen there.
//! * [`relay`] stands between nodes and loses, delays or swallows datagrams.
//! * [`scene`] is what most cases begin with: a cluster with guests that count.
//! * [`swarm`] is thousands of simulated nodes with real sessions, without a guest.
//!
//! Invariants:
//! * nothing here sleeps for a state to come about: it waits for an event, or
//!   polls with a deadline that names what did not happen;
//! * only processes whose arguments name the cluster's own folder are signalled;
//! * when a [`harness::Cluster`] is gone, so is everything that it started.

pub mod api;
pub mod bare;
pub mod bench;
pub mod disks;
pub mod events;
pub mod fault;
pub mod guest;
pub mod harness;
pub mod matrix;
pub mod netns;
pub mod points;
pub mod relay;
pub mod scene;
pub mod swarm;
pub mod usage;
pub mod wait;
