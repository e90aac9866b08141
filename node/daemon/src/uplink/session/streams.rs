//! Takes the streams that the coordinator opens: consoles.

use std::sync::Arc;

use godwit_shared::transport::{Connection, StreamKind};
use tokio::sync::Semaphore;

use super::SessionError;
use super::reader::overloaded;
use crate::identity::chain_of;
use crate::uplink::console;
use crate::uplink::services::Services;

/// Consoles served at once; further ones are refused.
const MAX_CONSOLES: usize = 64;

/// Takes the streams that the coordinator opens: consoles.
pub(super) async fn accept_streams(connection: &Connection, services: &Services) -> SessionError {
    let places = Arc::new(Semaphore::new(MAX_CONSOLES));
    loop {
        let (kind, sender, receiver) = match connection.accept().await {
            Ok(stream) => stream,
            Err(error) => return error.into(),
        };
        if !matches!(kind, StreamKind::Console { .. }) {
            tracing::warn!(
                ?kind,
                "the coordinator opened a stream that nodes do not serve"
            );
            continue;
        }
        let place = Arc::clone(&places).try_acquire_owned();
        let consoles = services.console.clone();
        actix::spawn(async move {
            let served = match place {
                Ok(_place) => console::serve(consoles, sender, receiver).await,
                Err(_) => console::refuse(sender, overloaded("consoles", MAX_CONSOLES)).await,
            };
            if let Err(error) = served {
                tracing::debug!(?kind, error = chain_of(&error), "a console ended");
            }
        });
    }
}
