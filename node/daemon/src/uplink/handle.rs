//! What the rest of the node asks of the uplink.

use std::time::Duration;

use actix::{Message, Recipient};
use godwit_shared::wire::uplink::{Verdict, VerdictQuery};

/// Ask the coordinator to find out what became of a grant.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Option<Verdict>")]
pub struct AskVerdict(pub VerdictQuery);

/// The way to the coordinator, for the migration manager. Cheap to clone.
#[derive(Clone)]
pub struct UplinkHandle {
    questions: Recipient<AskVerdict>,
}

impl std::fmt::Debug for UplinkHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UplinkHandle").finish_non_exhaustive()
    }
}

impl UplinkHandle {
    /// A handle to whoever answers: the uplink actor, or a stand-in of a test.
    pub fn new(questions: Recipient<AskVerdict>) -> Self {
        Self { questions }
    }

    /// Asks the coordinator what became of a grant. `None` when it could not
    /// find out, or cannot be reached within `deadline`; ask again then. A
    /// question that is open when a session ends is asked anew in the next one.
    pub async fn ask_verdict(&self, query: VerdictQuery, deadline: Duration) -> Option<Verdict> {
        let answer = self.questions.send(AskVerdict(query));
        tokio::time::timeout(deadline, answer)
            .await
            .ok()?
            .ok()
            .flatten()
    }
}
