//! The lease under which this node runs protected VMs.
//!
//! ```text
//!              grant, or vouchers enough
//!   Never ------------------------------> Held <---+
//!                                          |  |    | grant, or vouchers enough
//!                       now reaches `until`|  +----+
//!                                          v
//!                                        Lapsed --- grant of the coordinator ---> Held
//! ```
//!
//! [`Holder`] is the node's own lease, [`Voucher`] its word for others (see
//! [`godwit_shared::wire::lease`] for what travels).
//!
//! # Invariants
//! * A lease is counted from when the request for it was *sent*, so it never ends
//!   later than the coordinator believes, however long request or answer took.
//! * The end never moves back, and what comes late or twice moves nothing.
//! * Vouchers lengthen a lease that holds and never bring one back: after a lapse
//!   only the coordinator knows whether the VMs were started elsewhere.
//! * A node vouches only while it has no session itself, and not in the first two
//!   periods of its daemon: it may have forgotten a promise.
//! * Time is an argument and comes from `CLOCK_BOOTTIME`: a host that was
//!   suspended finds its lease over.

mod guardian;
mod holder;
#[cfg(test)]
mod tests;
mod voucher;

pub use guardian::Guardian;
pub use holder::{Holder, SavedLease, Standing};
pub use voucher::Voucher;

use godwit_shared::model::Millis;

/// How long before the end of the lease protected VMs are stopped: a tenth of
/// it, and 100 ms to 2 s.
pub fn stop_early(length: Millis) -> Millis {
    Millis((length.0 / 10).clamp(100, 2_000))
}

/// How often the lease is renewed: four times in its length.
pub fn renew_every(length: Millis) -> Millis {
    Millis((length.0 / 4).max(100))
}
