//! Identities, from the CA to the file and back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// Numbers in tests are small, and their names short.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::similar_names
)]

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use base64::Engine as _;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::model::id::NodeId;

fn node(name: &str, incarnation: u32) -> NodeIdentity {
    NodeIdentity {
        node: name.parse().unwrap(),
        incarnation,
    }
}

fn identity(ca: &ClusterCa, name: &str, incarnation: u32) -> Identity {
    let request = KeyAndCsr::generate(&name.parse().unwrap()).unwrap();
    let signed = ca
        .sign_node_csr(request.csr_pem(), &node(name, incarnation), NODE_VALIDITY)
        .unwrap();
    request
        .into_identity(&signed.certificate_pem, ca.certificate_pem())
        .unwrap()
}

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_ca_survives_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("ca");
    let ca = ClusterCa::create().unwrap();
    assert!(!ClusterCa::exists(&home));
    ca.save(&home).unwrap();
    assert!(ClusterCa::exists(&home));
    assert_eq!(mode(&home.join("ca-key.pem")), 0o600);
    assert_eq!(mode(&home.join("ca.pem")), 0o644);
    let names: Vec<_> = std::fs::read_dir(&home)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "nothing is left over: {names:?}");

    let again = ClusterCa::load(&home).unwrap();
    assert_eq!(again.fingerprint(), ca.fingerprint());
    // A certificate of the loaded one is the cluster's all the same.
    assert_eq!(identity(&again, "n1", 1).ca_fingerprint(), ca.fingerprint());
    assert!(
        matches!(ca.save(&home), Err(StoreError::Exists { .. })),
        "never replaced"
    );
}

#[test]
fn an_exposed_or_foreign_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    ClusterCa::create().unwrap().save(dir.path()).unwrap();
    let key = dir.path().join("ca-key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = ClusterCa::load(dir.path()).unwrap_err();
    assert!(
        matches!(error, StoreError::Exposed { mode: 0o640, .. }),
        "{error}"
    );

    let other = tempfile::tempdir().unwrap();
    ClusterCa::create().unwrap().save(other.path()).unwrap();
    std::fs::copy(other.path().join("ca-key.pem"), &key).unwrap();
    let error = ClusterCa::load(dir.path()).unwrap_err();
    assert!(
        error.to_string().contains("belongs to another certificate"),
        "{error}"
    );

    std::fs::write(&key, "nonsense").unwrap();
    assert!(matches!(
        ClusterCa::load(dir.path()),
        Err(StoreError::Content { .. })
    ));
}

#[test]
fn an_identity_says_who_it_is_and_comes_back_from_its_file() {
    let ca = ClusterCa::create().unwrap();
    let n1 = identity(&ca, "n1", 3);
    assert_eq!(*n1.peer(), PeerIdentity::from(node("n1", 3)));
    assert_eq!(
        *n1.peer(),
        PeerIdentity::from_certificate(&n1.chain()[0]).unwrap()
    );
    assert_eq!(n1.ca_fingerprint(), ca.fingerprint());

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.pem");
    n1.save(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    let loaded = Identity::load(&path).unwrap();
    assert_eq!(loaded.peer(), n1.peer());
    assert_eq!(loaded.not_after(), n1.not_after());
    // Rotation replaces the file.
    identity(&ca, "n1", 4).save(&path).unwrap();
    assert_eq!(
        *Identity::load(&path).unwrap().peer(),
        PeerIdentity::from(node("n1", 4))
    );

    std::fs::write(&path, "").unwrap();
    let error = Identity::load(&path).unwrap_err();
    assert!(error.to_string().contains("no certificate"), "{error}");
}

#[test]
fn rotation_is_due_in_the_last_third() {
    let ca = ClusterCa::create().unwrap();
    let n1 = identity(&ca, "n1", 1);
    let after = |part: f64| {
        let life = n1.not_after().as_second() - n1.not_before().as_second();
        let seconds = (life as f64 * part) as i64;
        n1.not_before() + SignedDuration::from_secs(seconds)
    };
    assert!(!n1.needs_rotation(Timestamp::now()));
    assert!(!n1.needs_rotation(after(0.66)));
    assert!(n1.needs_rotation(after(0.67)));
    assert!(n1.needs_rotation(after(2.0)));
    let life = n1.not_after().as_second() - Timestamp::now().as_second();
    assert!((NODE_VALIDITY.as_secs() as i64 - life).abs() <= 2, "{life}");
}

#[test]
fn the_coordinator_gets_its_names_and_no_others() {
    let ca = ClusterCa::create().unwrap();
    let further = [
        "cluster.example.org".to_owned(),
        "192.0.2.7".to_owned(),
        "localhost".to_owned(),
    ];
    let coordinator = ca
        .issue_coordinator(&further, COORDINATOR_VALIDITY)
        .unwrap();
    assert_eq!(*coordinator.peer(), PeerIdentity::Coordinator);
    for bad in ["n1.i1.node.godwit.internal", "x.Godwit.Internal"] {
        let error = ca
            .issue_coordinator(&[bad.into()], COORDINATOR_VALIDITY)
            .unwrap_err();
        assert!(matches!(error, IssueError::ReservedName(_)), "{error}");
    }
    let error = ca
        .issue_coordinator(&["a b".into()], COORDINATOR_VALIDITY)
        .unwrap_err();
    assert!(matches!(error, IssueError::BadName(_)), "{error}");
    let never = ca
        .issue_coordinator(&[], Duration::from_secs(u64::MAX))
        .unwrap_err();
    assert!(matches!(never, IssueError::Validity), "{never}");
}

#[test]
fn a_request_cannot_choose_its_names() {
    let ca = ClusterCa::create().unwrap();
    // A request that asks to be the coordinator and a CA.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![COORDINATOR_NAME.to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let signed = ca
        .sign_node_csr(&csr, &node("n1", 1), NODE_VALIDITY)
        .unwrap();
    let der = files::certificates(&signed.certificate_pem)
        .unwrap()
        .remove(0);
    assert_eq!(
        PeerIdentity::from_certificate(&der).unwrap(),
        node("n1", 1).into()
    );
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    assert!(!parsed.is_ca());
    assert!(!parsed.subject().to_string().contains("coordinator"));
}

#[test]
fn a_request_must_be_signed_by_its_own_key() {
    let ca = ClusterCa::create().unwrap();
    let request = KeyAndCsr::generate(&"n1".parse().unwrap()).unwrap();
    let body: String = request
        .csr_pem()
        .lines()
        .filter(|line| !line.starts_with("---"))
        .collect();
    let mut der = base64::engine::general_purpose::STANDARD
        .decode(body)
        .unwrap();
    *der.last_mut().unwrap() ^= 1;
    let forged = files::to_pem("CERTIFICATE REQUEST", &der);
    for bad in [forged.as_str(), "", "nonsense", ca.certificate_pem()] {
        let error = ca
            .sign_node_csr(bad, &node("n1", 1), NODE_VALIDITY)
            .unwrap_err();
        assert!(matches!(error, IssueError::BadRequest(_)), "{error}");
    }
    let long = "x".repeat(20_000);
    let error = ca
        .sign_node_csr(&long, &node("n1", 1), NODE_VALIDITY)
        .unwrap_err();
    assert!(
        matches!(error, IssueError::RequestTooLarge { size: 20_000, .. }),
        "{error}"
    );
}

#[test]
fn parts_that_do_not_belong_together_are_no_identity() {
    let (ca, other) = (ClusterCa::create().unwrap(), ClusterCa::create().unwrap());
    let request = KeyAndCsr::generate(&"n1".parse().unwrap()).unwrap();
    let signed = ca
        .sign_node_csr(request.csr_pem(), &node("n1", 1), NODE_VALIDITY)
        .unwrap();
    let stranger = KeyAndCsr::generate(&"n1".parse().unwrap()).unwrap();
    let error = stranger
        .into_identity(&signed.certificate_pem, ca.certificate_pem())
        .unwrap_err();
    assert!(matches!(error, IdentityError::WrongKey), "{error}");
    let error = request
        .into_identity(&signed.certificate_pem, other.certificate_pem())
        .unwrap_err();
    assert!(matches!(error, IdentityError::WrongCa), "{error}");
    let request = KeyAndCsr::generate(&"n1".parse().unwrap()).unwrap();
    let error = request
        .into_identity("nothing", ca.certificate_pem())
        .unwrap_err();
    assert!(matches!(error, IdentityError::Unreadable { .. }), "{error}");
}

#[test]
fn names_have_one_form() {
    let good = [
        (PeerIdentity::Coordinator, "coordinator.godwit.internal"),
        (node("n1", 1).into(), "n1.i1.node.godwit.internal"),
        (
            node("a-b", 4_000_000_000).into(),
            "a-b.i4000000000.node.godwit.internal",
        ),
    ];
    for (identity, name) in good {
        assert_eq!(identity.dns_name(), name);
        assert_eq!(PeerIdentity::from_dns_name(name).unwrap(), identity);
    }
    for bad in [
        "n1.i01.node.godwit.internal",
        "n1.i+1.node.godwit.internal",
        "n1.node.godwit.internal",
        "N1.i1.node.godwit.internal",
        "x.n1.i1.node.godwit.internal",
        "n1.i1.node.godwit.internal.example.org",
        "x.coordinator.godwit.internal",
        "",
    ] {
        assert!(PeerIdentity::from_dns_name(bad).is_err(), "{bad}");
    }
}

#[test]
fn certificates_of_nobody_or_of_two_are_refused() {
    let make = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        rcgen::generate_simple_self_signed(names)
            .unwrap()
            .cert
            .der()
            .clone()
    };
    let nobody = PeerIdentity::from_certificate(&make(&["example.org"]));
    assert!(matches!(nobody, Err(NameError::Missing)));
    let two = make(&["n1.i1.node.godwit.internal", COORDINATOR_NAME]);
    assert!(matches!(
        PeerIdentity::from_certificate(&two),
        Err(NameError::Ambiguous { .. })
    ));
    assert!(matches!(
        PeerIdentity::from_certificate(b"x"),
        Err(NameError::Unreadable(_))
    ));
}

#[test]
fn fingerprints_read_what_they_print() {
    let fingerprint = CaFingerprint::of(b"certificate");
    let text = fingerprint.to_string();
    assert_eq!(text.len(), 64);
    assert_eq!(text.parse(), Ok(fingerprint));
    let colons: Vec<_> = text
        .to_uppercase()
        .as_bytes()
        .chunks(2)
        .map(|p| String::from_utf8_lossy(p).into_owned())
        .collect();
    assert_eq!(colons.join(":").parse(), Ok(fingerprint));
    assert_eq!(
        "12".parse::<CaFingerprint>(),
        Err(FingerprintError::Length(2))
    );
    assert_eq!(
        "zz".parse::<CaFingerprint>(),
        Err(FingerprintError::Digit('z'))
    );
}

fn token() -> JoinToken {
    JoinToken {
        coordinator: vec!["10.0.0.1:7400".into(), "[2001:db8::1]:7400".into()],
        ca: CaFingerprint::from_bytes([7; 32]),
        id: "0198f1".into(),
        secret: JoinSecret::from_bytes([9; 32]),
    }
}

const GOLDEN_TOKEN: &str = "gwt1_TAABA2M6MQcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBjAxOThmMQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJ6sbXxg";

#[test]
fn golden_token() {
    // Tokens are copied between releases, so their form is pinned.
    let token = JoinToken {
        coordinator: vec!["c:1".into()],
        ..token()
    };
    let text = token.to_string();
    assert_eq!(text, GOLDEN_TOKEN);
    assert_eq!(text.parse::<JoinToken>(), Ok(token));
}

#[test]
fn a_bad_token_says_what_is_wrong() {
    let text = token().to_string();
    let parse = |text: &str| text.parse::<JoinToken>().unwrap_err();
    assert_eq!(
        format!("  {text}\n").parse::<JoinToken>(),
        Ok(token()),
        "blanks around it are fine"
    );
    for end in 1..text.len() {
        assert_eq!(parse(&text[..end]), TokenError::Truncated, "{end}");
    }
    assert_eq!(parse(&format!("{text}AAAA")), TokenError::TooLong);
    assert_eq!(parse(""), TokenError::WrongPrefix);
    assert_eq!(parse("hello"), TokenError::WrongPrefix);
    assert_eq!(parse("gwtx_AAAA"), TokenError::WrongPrefix);
    assert_eq!(
        parse("gwt2_AAAA"),
        TokenError::UnsupportedVersion("2".into())
    );
    let spaced = format!("{} {}", &text[..20], &text[20..]);
    assert_eq!(
        parse(&spaced),
        TokenError::Character {
            character: ' ',
            position: 21
        }
    );
    let changed = text.replacen('A', "B", 3);
    assert_ne!(changed, text);
    assert!(changed.parse::<JoinToken>().is_err());
    let middle = text.len() / 2;
    let flipped: String = text
        .chars()
        .enumerate()
        .map(|(index, c)| {
            if index == middle {
                if c == 'A' { 'B' } else { 'A' }
            } else {
                c
            }
        })
        .collect();
    assert_eq!(parse(&flipped), TokenError::Damaged);
}

#[test]
fn secrets_are_not_printed_and_only_their_hash_matches() {
    let token = token();
    let shown = format!("{token:?} {:?}", token.secret);
    assert!(shown.contains("hidden"), "{shown}");
    assert!(
        !shown.contains("9, 9") && !shown.contains("0909"),
        "{shown}"
    );
    let ca = ClusterCa::create().unwrap();
    let shown = format!("{ca:?} {:?}", identity(&ca, "n1", 1));
    assert!(
        !shown.contains("PRIVATE") && shown.contains(".."),
        "{shown}"
    );

    let secret = JoinSecret::generate().unwrap();
    assert!(secret.hash().matches(&secret));
    assert!(!secret.hash().matches(&JoinSecret::generate().unwrap()));
    assert_ne!(
        format!("{:?}", secret.hash()),
        format!("{:?}", secret.reveal())
    );
}

proptest! {
    #[test]
    fn tokens_come_back(coordinator in prop::collection::vec("[a-z0-9.:]{1,40}", 0..5), id in "[a-z0-9-]{0,36}", secret: [u8; 32], ca: [u8; 32]) {
        let token = JoinToken {
            coordinator,
            ca: CaFingerprint::from_bytes(ca),
            id,
            secret: JoinSecret::from_bytes(secret),
        };
        prop_assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
    }

    #[test]
    fn arbitrary_tokens_never_panic(text in "(gwt1_)?.{0,80}") {
        let _ = text.parse::<JoinToken>();
    }

    #[test]
    fn node_names_come_back(name in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", incarnation: u32) {
        let node: NodeId = name.parse().unwrap();
        let identity = PeerIdentity::Node { node, incarnation };
        prop_assert_eq!(PeerIdentity::from_dns_name(&identity.dns_name()).unwrap(), identity);
    }
}
