//! How a host becomes a node: one token, one exchange, one identity.
//!
//! ```text
//!   token: addresses, CA fingerprint, id, secret
//!     | connect (TLS; the coordinator has to show the pinned CA)
//!     | JoinRequest: token id and secret, name, CSR -->   the key stays here
//!     |  <-- Joined: certificate and CA | Refused
//!     v cluster.toml, then identity/node.pem (whole, 0600)
//! ```
//!
//! The secret leaves this host only when the other side has proved that it
//! belongs to the cluster of the token. The identity is written last: a host
//! either has joined or has not.

#[cfg(test)]
mod tests;

use std::time::Duration;

use godwit_shared::model::{NodeId, Problem, codes};
use godwit_shared::pki::{
    CaFingerprint, IdentityError, JoinToken, KeyAndCsr, NodeIdentity, PeerIdentity, StoreError,
    TokenError,
};
use godwit_shared::transport::{
    BindError, CloseCode, ConnectError, Connection, Endpoint, StreamKind, TransportOptions,
    TransportRuntime,
};
use godwit_shared::wire::uplink::{JoinAnswer, JoinRequest};

use crate::config::{DEFAULT_PORT, HostPort};
use crate::host::{self, NodePaths, StateLock};
use crate::identity::{self, JoinedCluster, chain_of};
use crate::uplink::connect::{self, Failure};

/// How long the coordinator may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long is waited for the end of the answer's stream.
const HANG_UP: Duration = Duration::from_secs(1);

/// What a join needs.
#[derive(Debug)]
pub struct Join<'a> {
    /// The token's text.
    pub token: &'a str,
    /// The name to join under.
    pub name: NodeId,
    /// Where peers will reach this node, if that was said.
    pub address: Option<HostPort>,
    /// Where the identity goes.
    pub paths: &'a NodePaths,
    /// Give up an identity that is there.
    pub force: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Who this node is now.
    pub me: NodeIdentity,
    /// The cluster's name.
    pub cluster: String,
    /// The CA's fingerprint.
    pub ca: CaFingerprint,
}

/// A host did not become a node.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is no token.
    #[error("the join token cannot be read: {0}")]
    Token(#[from] TokenError),
    /// The token names no usable address.
    #[error("the join token names no coordinator that can be used: {0}")]
    TokenAddress(Problem),
    /// The host is a node already.
    #[error("this host is {} already", .0)]
    AlreadyJoined(String),
    /// Nobody was reached.
    #[error("the coordinator cannot be reached: {0}")]
    Unreachable(String),
    /// Who answered does not belong to the token's cluster.
    #[error("who answered is not the coordinator of the token's cluster: {0}")]
    Foreign(String),
    /// The sides share no protocol version.
    #[error("{0}")]
    Version(String),
    /// The coordinator refuses; its own words.
    #[error("{0}")]
    Refused(Problem),
    /// The coordinator does not keep to the protocol.
    #[error("the coordinator broke the protocol: {0}")]
    Protocol(String),
    /// The answer did not come.
    #[error("the coordinator did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    /// No port, or no key.
    #[error("this host cannot join: {0}")]
    Local(String),
    /// The identity cannot be stored.
    #[error("the identity cannot be stored: {0}")]
    Store(String),
    /// The state directory cannot be used.
    #[error("{0}")]
    Host(Problem),
}

impl From<BindError> for JoinError {
    fn from(error: BindError) -> Self {
        Self::Local(chain_of(&error))
    }
}

impl From<StoreError> for JoinError {
    fn from(error: StoreError) -> Self {
        Self::Store(chain_of(&error))
    }
}

impl From<IdentityError> for JoinError {
    fn from(error: IdentityError) -> Self {
        Self::Protocol(chain_of(&error))
    }
}

impl From<JoinError> for Problem {
    fn from(error: JoinError) -> Self {
        let words = error.to_string();
        let new_token = "print a new one with `godwit node token`";
        let (code, remedy) = match error {
            JoinError::Host(problem) => return problem,
            JoinError::Refused(problem) => return with_remedy(problem),
            JoinError::Token(_) => (
                codes::TOKEN_MALFORMED,
                "copy it whole, as `godwit node token` prints it",
            ),
            JoinError::TokenAddress(_) => (codes::TOKEN_MALFORMED, new_token),
            JoinError::AlreadyJoined(_) => (
                codes::STATE_CONFLICT,
                "run it with `godwit-node run`; to give that identity up, add --force",
            ),
            JoinError::Unreachable(_) => (
                codes::COORDINATOR_UNREACHABLE,
                "check that the coordinator runs, and that its UDP port is reachable from here; the token stays good",
            ),
            JoinError::Foreign(_) => (
                codes::CA_MISMATCH,
                "check that the token is from this coordinator and that both clocks are right; nothing was sent to it",
            ),
            JoinError::Version(_) => (
                codes::VERSION_MISMATCH,
                "upgrade the older side; the coordinator goes first",
            ),
            JoinError::Protocol(_) => (
                codes::PROTOCOL,
                "bring both sides to the same release, and take a new token",
            ),
            JoinError::Timeout => (
                codes::TIMEOUT,
                "look at the coordinator's log; if the token counts as used, take a new one",
            ),
            JoinError::Local(_) => (codes::HOST_IO, "look at the cause; the token stays good"),
            JoinError::Store(_) => (
                codes::HOST_IO,
                "put the directory right, and join with a new token",
            ),
        };
        Problem::new(code, words).remedy(remedy)
    }
}

/// The coordinator says what is wrong; this says what to do, if it did not.
fn with_remedy(problem: Problem) -> Problem {
    if problem.remedy.is_some() {
        return problem;
    }
    let remedy = match problem.code.as_ref() {
        codes::NODE_NAME_TAKEN => {
            "choose another name with --name, or remove the old node with `godwit node remove`"
        }
        _ => "print a new token with `godwit node token`",
    };
    problem.remedy(remedy)
}

impl Join<'_> {
    /// Joins, or says why not.
    pub async fn run(self, runtime: &TransportRuntime) -> Result<Joined, JoinError> {
        let token: JoinToken = self.token.parse()?;
        let coordinators = coordinators(&token)?;
        let _lock = StateLock::acquire(&self.paths.state_dir).map_err(JoinError::Host)?;
        self.check_identity()?;
        let endpoint = Endpoint::joining(runtime, TransportOptions::default())?;
        let connection = reach(&endpoint, &coordinators, token.ca).await?;
        let key = KeyAndCsr::generate(&self.name)?;
        let request = self.request(&token, &key, &connection);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, exchange(&connection, &request)).await;
        let answer = answer.map_err(|_| JoinError::Timeout)??;
        let joined = self.keep(&token, key, answer)?;
        connection.close(CloseCode::DONE, "joined");
        endpoint.close().await;
        Ok(joined)
    }

    fn check_identity(&self) -> Result<(), JoinError> {
        let path = self.paths.identity();
        if self.force || !path.exists() {
            return Ok(());
        }
        Err(JoinError::AlreadyJoined(match identity::load(&path) {
            Ok((_, me)) => me.to_string(),
            Err(_) => format!("a node, with the identity in {}", path.display()),
        }))
    }

    fn request(&self, token: &JoinToken, key: &KeyAndCsr, connection: &Connection) -> JoinRequest {
        let address = self
            .address
            .clone()
            .unwrap_or_else(|| host::address_towards(connection.remote_address(), DEFAULT_PORT));
        JoinRequest {
            token: token.id.clone(),
            secret: token.secret.reveal().to_vec(),
            node: self.name.clone(),
            csr: key.csr_pem().to_owned(),
            address: address.to_string(),
        }
    }

    fn keep(
        &self,
        token: &JoinToken,
        key: KeyAndCsr,
        answer: JoinAnswer,
    ) -> Result<Joined, JoinError> {
        let (incarnation, chain, cluster) = match answer {
            JoinAnswer::Joined {
                incarnation,
                chain,
                cluster,
            } => (incarnation, chain, cluster),
            JoinAnswer::Refused(problem) => return Err(JoinError::Refused(problem)),
        };
        let identity = identity::assemble(key, &chain)?;
        let me = NodeIdentity {
            node: self.name.clone(),
            incarnation,
        };
        if identity.ca_fingerprint() != token.ca {
            let found = identity.ca_fingerprint();
            return Err(JoinError::Foreign(format!(
                "its certificate is of CA {found}"
            )));
        }
        if *identity.peer() != PeerIdentity::from(me.clone()) {
            let found = identity.peer();
            return Err(JoinError::Protocol(format!(
                "its certificate is for {found}"
            )));
        }
        let joined = JoinedCluster {
            cluster: cluster.clone(),
            coordinator: token.coordinator.clone(),
            address: self.address.as_ref().map(HostPort::to_string),
        };
        host::make_dir(&self.paths.state_dir.join("identity")).map_err(JoinError::Host)?;
        joined
            .save(&self.paths.cluster())
            .map_err(JoinError::Host)?;
        // Members of a cluster that this host was in before are strangers now.
        let _ = std::fs::remove_file(self.paths.members());
        identity.save(&self.paths.identity())?;
        Ok(Joined {
            me,
            cluster,
            ca: token.ca,
        })
    }
}

fn coordinators(token: &JoinToken) -> Result<Vec<HostPort>, JoinError> {
    let read = |text: &String| HostPort::check("token", text).map_err(JoinError::TokenAddress);
    let found = token
        .coordinator
        .iter()
        .map(read)
        .collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        let none = Problem::new(codes::TOKEN_MALFORMED, "it has no address");
        return Err(JoinError::TokenAddress(none));
    }
    Ok(found)
}

/// Tries the addresses in turn. The first that shows the cluster's CA is taken;
/// when none does, a wrong one says more than silence.
async fn reach(
    endpoint: &Endpoint,
    coordinators: &[HostPort],
    ca: CaFingerprint,
) -> Result<Connection, JoinError> {
    let mut worst: Option<JoinError> = None;
    for host in coordinators {
        let addresses = match connect::resolve(host, endpoint.local_addr().ok()).await {
            Ok(addresses) => addresses,
            Err(Failure::Unreachable(problem) | Failure::Refused(problem)) => {
                worst.get_or_insert(JoinError::Unreachable(problem.message));
                continue;
            }
        };
        for address in addresses {
            match endpoint.connect_join(address, ca).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    let error = refusal(&error);
                    match worst {
                        None | Some(JoinError::Unreachable(_)) => worst = Some(error),
                        Some(_) => {}
                    }
                }
            }
        }
    }
    Err(worst.unwrap_or_else(|| JoinError::Unreachable("no address is known".into())))
}

fn refusal(error: &ConnectError) -> JoinError {
    let words = chain_of(error);
    match error {
        ConnectError::Tls { .. }
        | ConnectError::WrongPeer { .. }
        | ConnectError::Nameless { .. } => JoinError::Foreign(words),
        ConnectError::Version { .. } => JoinError::Version(words),
        ConnectError::NotAdmitted { .. } | ConnectError::Malformed { .. } => {
            JoinError::Protocol(words)
        }
        ConnectError::NobodyThere(_)
        | ConnectError::Timeout { .. }
        | ConnectError::Ended { .. }
        | ConnectError::Unable { .. } => JoinError::Unreachable(words),
    }
}

async fn exchange(connection: &Connection, request: &JoinRequest) -> Result<JoinAnswer, JoinError> {
    let broken = |error: &dyn std::error::Error| JoinError::Protocol(chain_of(error));
    let (sender, receiver) = connection
        .open(StreamKind::Control)
        .await
        .map_err(|error| broken(&error))?;
    let mut sender = sender.into_messages::<JoinRequest>();
    sender.send(request).await.map_err(|error| broken(&error))?;
    let mut receiver = receiver.into_messages::<JoinAnswer>();
    match receiver.recv().await {
        Ok(Some(answer)) => {
            // Hung up before its end, the coordinator could not know that the
            // answer has arrived.
            let _ = tokio::time::timeout(HANG_UP, receiver.recv()).await;
            Ok(answer)
        }
        Ok(None) => Err(JoinError::Protocol("it ended the stream".into())),
        Err(error) => Err(broken(&error)),
    }
}
