//! Waiting with a deadline that names what was waited for.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks at a state that sends no event.
pub const STEP: Duration = Duration::from_millis(20);

/// Looks every [`STEP`] until `look` finds something.
///
/// # Errors
/// When it has not within `limit`; the error says `what`, and what the last
/// look saw where it said so.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let seen = look().await;
        if let Ok(Some(found)) = seen {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            let last = seen.err().map_or(String::new(), |e| format!(": {e:#}"));
            bail!("{what} did not happen within {limit:?}{last}");
        }
        tokio::time::sleep(STEP).await;
    }
}

/// [`until`] for places that cannot be async, such as a destructor.
pub fn until_blocking(limit: Duration, mut look: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !look() {
        if Instant::now() >= deadline {
            return false;
        }
        pause();
    }
    true
}

#[expect(
    clippy::disallowed_methods,
    reason = "between two looks, with a deadline, where nothing can be awaited"
)]
fn pause() {
    std::thread::sleep(STEP);
}
