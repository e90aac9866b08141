//! Joining with good, used, expired and unknown tokens.

use std::time::Duration;

use godwit_shared::model::{Problem, codes};
use godwit_shared::pki::{CaFingerprint, ClusterCa, JoinSecret, JoinToken, PeerIdentity};
use godwit_shared::wire::uplink::{JoinAnswer, JoinRequest};
use serde_json::json;

use super::node::{join, join_request, send_join};
use super::running::Running;

fn refusal(answer: Result<JoinAnswer, String>) -> Problem {
    match answer {
        Ok(JoinAnswer::Refused(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

#[actix::test]
async fn a_token_is_good_once() {
    let cluster = Running::start().await;
    let token = cluster.token().await;
    let (key, answer) = join_request(&token, "n1").await;
    let Ok(JoinAnswer::Joined {
        incarnation,
        chain,
        cluster: name,
    }) = answer
    else {
        panic!("{answer:?}")
    };
    assert_eq!((incarnation, name.as_str()), (1, "godwit"));
    let (leaf, ca) = chain.split_at(chain.rfind("-----BEGIN").unwrap());
    let identity = key.into_identity(leaf, ca).unwrap();
    assert_eq!(identity.ca_fingerprint(), token.ca);
    assert!(matches!(
        identity.peer(),
        PeerIdentity::Node { incarnation: 1, .. }
    ));
    let again = refusal(join_request(&token, "n2").await.1);
    assert_eq!(again.code, codes::TOKEN_USED);
    assert!(again.remedy.is_some());
    cluster.stop().await;
}

#[actix::test]
async fn wrong_tokens_are_told_apart_and_a_good_one_is_not_spent_on_them() {
    let cluster = Running::start().await;
    let good = cluster.token().await;
    let unknown = JoinToken {
        id: "nobody".into(),
        ..good.clone()
    };
    assert_eq!(
        refusal(join_request(&unknown, "n1").await.1).code,
        codes::TOKEN_UNKNOWN
    );
    let guessed = JoinToken {
        secret: JoinSecret::from_bytes([7; 32]),
        ..good.clone()
    };
    assert_eq!(
        refusal(join_request(&guessed, "n1").await.1).code,
        codes::TOKEN_UNKNOWN
    );
    let request = JoinRequest {
        token: good.id.clone(),
        secret: good.secret.reveal().to_vec(),
        node: "n1".parse().unwrap(),
        csr: "no request".into(),
        address: "127.0.0.1:7441".into(),
    };
    let problem = refusal(send_join(&good, &request).await);
    assert_eq!(problem.field.as_deref(), Some("csr"));
    let short = JoinRequest {
        secret: vec![1, 2, 3],
        ..request
    };
    assert_eq!(
        refusal(send_join(&good, &short).await).field.as_deref(),
        Some("csr")
    );
    assert!(matches!(
        join_request(&good, "n1").await.1,
        Ok(JoinAnswer::Joined { .. })
    ));
    cluster.stop().await;
}

#[actix::test]
async fn an_expired_token_is_refused_by_that_name() {
    let cluster = Running::start().await;
    let token = cluster.token_with(json!({"valid": 1})).await;
    // Its millisecond has to pass.
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_millis(3) {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        refusal(join_request(&token, "n1").await.1).code,
        codes::TOKEN_EXPIRED
    );
    cluster.stop().await;
}

#[actix::test]
async fn a_taken_name_and_a_foreign_ca_are_refused() {
    let cluster = Running::start().await;
    join(&cluster, "n1").await;
    let token = cluster.token().await;
    assert_eq!(
        refusal(join_request(&token, "n1").await.1).code,
        codes::NODE_NAME_TAKEN
    );
    let foreign: CaFingerprint = ClusterCa::create().unwrap().fingerprint();
    let token = JoinToken {
        ca: foreign,
        ..token
    };
    assert!(join_request(&token, "n2").await.1.is_err());
    cluster.stop().await;
}
