//! A store's queue: requests to the one thread that carries them out, `R` each.

use tokio::sync::{mpsc, oneshot};

use super::{Pending, StoreError};

/// Puts a request into the queue at once. One that is not taken, or is dropped,
/// is answered with [`StoreError::Closed`].
pub(super) fn ask<R, T, E>(
    queue: &mpsc::UnboundedSender<R>,
    make: impl FnOnce(oneshot::Sender<Result<T, E>>) -> R,
) -> Pending<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    let (sender, answer) = oneshot::channel();
    // A request that was not taken drops its sender.
    let _ = queue.send(make(sender));
    Box::pin(async move {
        answer
            .await
            .unwrap_or_else(|_| Err(StoreError::Closed.into()))
    })
}

/// Asks the thread to end; resolves when it has, or had before.
pub(super) fn close<R>(
    queue: &mpsc::UnboundedSender<R>,
    make: impl FnOnce(oneshot::Sender<()>) -> R,
) -> Pending<(), StoreError> {
    let (sender, done) = oneshot::channel();
    let _ = queue.send(make(sender));
    Box::pin(async move {
        // A store that was closed before drops the sender.
        let _ = done.await;
        Ok(())
    })
}
