//! A host becomes a member, as `godwit-node join` does it.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail};
use godwit_node::identity::assemble;
use godwit_shared::model::NodeId;
use godwit_shared::pki::{Identity, JoinToken, KeyAndCsr};
use godwit_shared::transport::{
    CloseCode, Endpoint, StreamKind, TransportOptions, TransportRuntime,
};
use godwit_shared::wire::uplink::{JoinAnswer, JoinRequest};

/// A member that has not connected yet.
pub(super) struct Joined {
    pub(super) identity: Identity,
    pub(super) coordinator: SocketAddr,
}

pub(super) async fn join(
    runtime: &TransportRuntime,
    options: TransportOptions,
    token: &str,
    name: &NodeId,
    address: &str,
) -> Result<Joined> {
    let token: JoinToken = token.parse()?;
    let first = token.coordinator.first().context("an address")?;
    let coordinator: SocketAddr = first.parse()?;
    let endpoint = Endpoint::joining(runtime, options)?;
    let connection = endpoint.connect_join(coordinator, token.ca).await?;
    let key = KeyAndCsr::generate(name)?;
    let (sender, receiver) = connection.open(StreamKind::Control).await?;
    let request = JoinRequest {
        token: token.id.clone(),
        secret: token.secret.reveal().to_vec(),
        node: name.clone(),
        csr: key.csr_pem().to_owned(),
        address: address.to_owned(),
    };
    sender.into_messages().send(&request).await?;
    let mut receiver = receiver.into_messages::<JoinAnswer>();
    let identity = match receiver.recv().await?.context("no answer")? {
        JoinAnswer::Joined { chain, .. } => assemble(key, &chain)?,
        JoinAnswer::Refused(problem) => bail!("refused: {problem}"),
    };
    // The end of the stream tells the coordinator that its answer has come.
    receiver.recv().await?;
    connection.close(CloseCode::DONE, "joined");
    Ok(Joined {
        identity,
        coordinator,
    })
}
