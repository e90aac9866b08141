//! The sessions that nodes have with this coordinator.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use actix::prelude::*;
use godwit_coordinator_logic::input::SessionId;
use godwit_shared::model::NodeId;
use godwit_shared::transport::{CloseCode, Connection};

use crate::session::Deliver;

/// One session.
#[derive(Debug, Clone)]
pub struct SessionEntry {
    /// The node.
    pub node: NodeId,
    /// The session's number.
    pub id: SessionId,
    /// Takes what is to be sent.
    pub outlet: Recipient<Deliver>,
    /// The connection, for streams beside the session's own.
    pub connection: Connection,
}

/// The sessions by number. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Sessions(Arc<RwLock<HashMap<SessionId, SessionEntry>>>);

impl Sessions {
    /// The connection of a session, if it still stands.
    pub fn connection(&self, session: SessionId) -> Option<Connection> {
        let sessions = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&session).map(|entry| entry.connection.clone())
    }

    /// Closes every connection: the nodes look for the leader.
    pub(crate) fn end(&self, why: &str) {
        let mut sessions = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (_, entry) in sessions.drain() {
            entry.connection.close(CloseCode::SHUTDOWN, why);
        }
    }

    pub(super) fn insert(&self, entry: SessionEntry) {
        let mut sessions = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sessions.insert(entry.id, entry);
    }

    pub(super) fn remove(&self, session: SessionId) {
        let mut sessions = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(&session);
    }

    /// Hands something over to a session. One that takes no more is ended: its
    /// node connects anew and says where it stands.
    pub(super) fn deliver(&self, session: SessionId, deliver: Deliver) {
        let entry = {
            let sessions = self.0.read().unwrap_or_else(PoisonError::into_inner);
            sessions.get(&session).cloned()
        };
        let Some(entry) = entry else { return };
        if let Err(SendError::Full(_)) = entry.outlet.try_send(deliver) {
            tracing::warn!(node = %entry.node, "the session is too slow and is closed");
            entry
                .connection
                .close(CloseCode::PROTOCOL, "the session takes no more messages");
        }
    }
}
