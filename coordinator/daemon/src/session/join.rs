//! A host joins: one request, one answer.
//!
//! The CSR is looked at before the token is spent, and the certificate is
//! signed only when the cluster has recorded the new member.

use std::time::Duration;

use godwit_coordinator_logic::input::{Input, Output};
use godwit_coordinator_logic::record::SecretDigest;
use godwit_shared::model::{Problem, codes};
use godwit_shared::transport::{CloseCode, Connection, MessageSender, StreamKind};
use godwit_shared::wire::uplink::{JoinAnswer, JoinRequest};

use super::SessionContext;
use godwit_shared::digest::sha256;

/// How long the whole exchange may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest request, in bytes: a CSR of ours has some 500.
const LIMIT: usize = 64 * 1024;

pub(super) async fn serve(connection: Connection, context: &SessionContext) {
    match tokio::time::timeout(PATIENCE, exchange(&connection, context)).await {
        Ok(Ok(())) => connection.close(CloseCode::DONE, "answered"),
        Ok(Err(why)) => {
            tracing::info!(remote = %connection.remote_address(), why, "a join failed");
            connection.close(CloseCode::PROTOCOL, &why);
        }
        Err(_) => connection.close(CloseCode::PROTOCOL, "the join took too long"),
    }
}

async fn exchange(connection: &Connection, context: &SessionContext) -> Result<(), String> {
    let (kind, sender, receiver) = connection.accept().await.map_err(|e| e.to_string())?;
    if kind != StreamKind::Control {
        return Err(format!("a join begins with a control stream, not {kind:?}"));
    }
    let mut receiver = receiver.into_messages::<JoinRequest>().with_limit(LIMIT);
    let request = match receiver.recv().await {
        Ok(Some(request)) => request,
        Ok(None) => return Err("the stream ended before the request".into()),
        Err(error) => return Err(error.to_string()),
    };
    let node = request.node.clone();
    let answer = admit(request, context).await.unwrap_or_else(|problem| {
        tracing::warn!(%node, remote = %connection.remote_address(), %problem, "a join is refused");
        JoinAnswer::Refused(problem)
    });
    reply(sender.into_messages(), &answer).await
}

async fn admit(request: JoinRequest, context: &SessionContext) -> Result<JoinAnswer, Problem> {
    let JoinRequest {
        token,
        secret,
        node,
        csr,
        address,
    } = request;
    context.authority.check_csr(&csr, &node)?;
    if secret.len() != 32 {
        return Err(Problem::new(
            codes::TOKEN_MALFORMED,
            "the token's secret has a wrong length",
        )
        .remedy("copy the token as `godwit node token` prints it"));
    }
    let digest = SecretDigest(sha256(&secret));
    let join = Input::Join {
        token,
        digest,
        node: node.clone(),
        address,
    };
    let Output::Joined { incarnation } = context.cluster.apply(join).await? else {
        return Err(Problem::internal(
            "a join gave something else than a member",
        ));
    };
    let chain = context.authority.sign(&csr, &node, incarnation)?;
    tracing::info!(%node, incarnation, "a node has joined");
    Ok(JoinAnswer::Joined {
        incarnation,
        chain,
        cluster: context.name.clone(),
    })
}

pub(super) async fn reply(
    mut sender: MessageSender<JoinAnswer>,
    answer: &JoinAnswer,
) -> Result<(), String> {
    sender.send(answer).await.map_err(|e| e.to_string())?;
    sender.finish().map_err(|e| e.to_string())?;
    sender.acknowledged().await.map_err(|e| e.to_string())
}
