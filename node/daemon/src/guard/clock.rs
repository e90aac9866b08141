//! The clock that leases are counted in.

use std::time::Duration;

use godwit_shared::model::BootMillis;
use rustix::time::{ClockId, clock_gettime};

/// Now, in `CLOCK_BOOTTIME`: it goes on while the host sleeps.
pub fn boot_now() -> BootMillis {
    let now = clock_gettime(ClockId::Boottime);
    let millis = now.tv_sec.saturating_mul(1_000) + now.tv_nsec / 1_000_000;
    BootMillis(u64::try_from(millis).unwrap_or_default())
}

/// How long until then.
pub fn until(at: BootMillis) -> Duration {
    Duration::from_millis(boot_now().until(at).0)
}
