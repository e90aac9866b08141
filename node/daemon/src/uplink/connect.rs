//! From the coordinator's addresses to a connection.

use std::net::SocketAddr;

use godwit_shared::model::{Problem, codes};
use godwit_shared::pki::PeerIdentity;
use godwit_shared::transport::{ConnectError, Connection, Endpoint};

use crate::config::HostPort;
use crate::identity::chain_of;

/// No connection to the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody was reached. It may be otherwise in a moment.
    Unreachable(Problem),
    /// Somebody answered and refused, or was the wrong one. It stays so until
    /// a person does something.
    Refused(Problem),
}

#[cfg(test)]
impl Failure {
    fn problem(&self) -> &Problem {
        match self {
            Self::Unreachable(problem) | Self::Refused(problem) => problem,
        }
    }
}

/// Tries the addresses in turn. When all fail, a refusal says more than
/// silence, and of several of a kind the first one counts.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    addresses: &[HostPort],
) -> Result<Connection, Failure> {
    let mut worst = None;
    for address in addresses {
        match try_host(endpoint, address).await {
            Ok(connection) => return Ok(connection),
            Err(failure) => keep_worse(&mut worst, failure),
        }
    }
    Err(worst.unwrap_or_else(no_address))
}

async fn try_host(endpoint: &Endpoint, host: &HostPort) -> Result<Connection, Failure> {
    let mut worst = None;
    for address in resolve(host, endpoint.local_addr().ok()).await? {
        match endpoint.connect(address, &PeerIdentity::Coordinator).await {
            Ok(connection) => return Ok(connection),
            Err(error) => keep_worse(&mut worst, classify(&error)),
        }
    }
    Err(worst.unwrap_or_else(no_address))
}

fn keep_worse(worst: &mut Option<Failure>, new: Failure) {
    let replaces = match (&worst, &new) {
        (None, _) | (Some(Failure::Unreachable(_)), Failure::Refused(_)) => true,
        (Some(_), _) => false,
    };
    if replaces {
        *worst = Some(new);
    }
}

/// Looks a host up, and leaves out what a socket bound to `local` cannot reach.
pub(crate) async fn resolve(
    host: &HostPort,
    local: Option<SocketAddr>,
) -> Result<Vec<SocketAddr>, Failure> {
    let found: Vec<SocketAddr> = tokio::net::lookup_host((host.host(), host.port()))
        .await
        .map_err(|error| unresolved(host, &error.to_string()))?
        .filter(|address| local.is_none_or(|local| local.is_ipv6() || address.is_ipv4()))
        .collect();
    if found.is_empty() {
        let why = "it has no IPv4 address, and this node listens on an IPv4 address";
        return Err(unresolved(host, why));
    }
    Ok(found)
}

fn unresolved(host: &HostPort, why: &str) -> Failure {
    Failure::Unreachable(
        Problem::new(
            codes::COORDINATOR_UNREACHABLE,
            format!("the coordinator's address {host} cannot be used: {why}"),
        )
        .field("coordinator")
        .value(host.to_string())
        .remedy(
            "correct the name or the name service, or set `coordinator` in the node's settings",
        ),
    )
}

fn no_address() -> Failure {
    Failure::Refused(
        Problem::new(
            codes::CONFIG_INVALID,
            "no address of a coordinator is known",
        )
        .field("coordinator")
        .remedy("set `coordinator` in the node's settings"),
    )
}

/// What a failed attempt means to an operator of a member.
pub(crate) fn classify(error: &ConnectError) -> Failure {
    let words = chain_of(error);
    let refused =
        |code, remedy: &str| Failure::Refused(Problem::new(code, words.clone()).remedy(remedy));
    match error {
        ConnectError::NotAdmitted { .. } => refused(
            codes::NODE_REVOKED,
            "if the node should belong to the cluster, join it again: `godwit node token`, then `godwit-node join --force TOKEN`",
        ),
        ConnectError::Version { .. } => refused(
            codes::VERSION_MISMATCH,
            "upgrade the older side; the coordinator goes first",
        ),
        ConnectError::Tls { .. }
        | ConnectError::WrongPeer { .. }
        | ConnectError::Nameless { .. } => refused(
            codes::CA_MISMATCH,
            "check that the address is this cluster's coordinator and that both clocks are right; after a new installation of the coordinator the node has to join again",
        ),
        ConnectError::Malformed { .. } => refused(
            codes::PROTOCOL,
            "check that the address is a coordinator's UDP port",
        ),
        ConnectError::NobodyThere(_)
        | ConnectError::Timeout { .. }
        | ConnectError::Ended { .. }
        | ConnectError::Unable { .. } => {
            Failure::Unreachable(Problem::new(codes::COORDINATOR_UNREACHABLE, words).remedy(
                "check that the coordinator runs, and that its UDP port is reachable from here",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::time::Duration;

    use super::*;

    fn address() -> SocketAddr {
        "192.0.2.1:7440".parse().unwrap()
    }

    #[test]
    fn a_refusal_is_told_from_silence() {
        let address = address();
        let message = "bye".to_owned();
        for (error, code, refused) in [
            (
                ConnectError::NotAdmitted {
                    address,
                    message: message.clone(),
                },
                codes::NODE_REVOKED,
                true,
            ),
            (
                ConnectError::Version { address, message },
                codes::VERSION_MISMATCH,
                true,
            ),
            (
                ConnectError::Tls {
                    address,
                    reason: "x".into(),
                },
                codes::CA_MISMATCH,
                true,
            ),
            (
                ConnectError::NobodyThere(address),
                codes::COORDINATOR_UNREACHABLE,
                false,
            ),
            (
                ConnectError::Timeout {
                    address,
                    after: Duration::from_secs(1),
                },
                codes::COORDINATOR_UNREACHABLE,
                false,
            ),
        ] {
            let failure = classify(&error);
            assert_eq!(failure.problem().code, code);
            assert_eq!(matches!(failure, Failure::Refused(_)), refused, "{code}");
            assert!(failure.problem().remedy.is_some(), "{code}");
        }
    }

    #[test]
    fn of_several_failures_the_most_telling_counts() {
        let mut worst = None;
        let silent = classify(&ConnectError::NobodyThere(address()));
        let refused = classify(&ConnectError::Malformed { address: address() });
        keep_worse(&mut worst, silent.clone());
        keep_worse(&mut worst, refused.clone());
        keep_worse(&mut worst, silent);
        assert_eq!(worst, Some(refused));
    }
}
