//! Tokens, joining, sessions, cordons, removal.

use super::*;
use godwit_shared::model::codes;
use godwit_shared::wire::roster::RosterMark;
use godwit_shared::wire::uplink::Member;

fn token(bench: &mut Bench, id: &str, valid: Option<Millis>) -> Result<Output, Problem> {
    bench.step(Input::CreateToken {
        id: id.into(),
        digest: SecretDigest([1; 32]),
        valid,
    })
}

fn join(bench: &mut Bench, token: &str, digest: u8, name: &str) -> Result<Output, Problem> {
    bench.step(Input::Join {
        token: token.into(),
        digest: SecretDigest([digest; 32]),
        node: node(name),
        address: "192.0.2.1:7441".into(),
    })
}

#[test]
fn a_token_is_good_once_and_for_its_time() {
    let mut bench = Bench::new();
    let expires = UnixMillis(1_000 + 3_600_000);
    assert_eq!(token(&mut bench, "a", None), Ok(Output::Token { expires }));
    token(&mut bench, "b", Some(Millis(5_000))).unwrap();

    let unknown = join(&mut bench, "z", 1, "node-1").unwrap_err();
    assert_eq!(unknown.code, codes::TOKEN_UNKNOWN);
    let wrong = join(&mut bench, "a", 2, "node-1").unwrap_err();
    assert_eq!(
        wrong, unknown,
        "a wrong secret says no more than an unknown token"
    );

    let member = join(&mut bench, "a", 1, "node-1");
    assert_eq!(member, Ok(Output::Joined { incarnation: 1 }));
    let used = join(&mut bench, "a", 1, "node-2").unwrap_err();
    assert_eq!(used.code, codes::TOKEN_USED);
    assert!(used.message.contains("node-1"));

    bench.now = UnixMillis(6_000);
    let late = join(&mut bench, "b", 1, "node-2").unwrap_err();
    assert_eq!(late.code, codes::TOKEN_EXPIRED);
}

#[test]
fn a_token_is_good_for_a_week_at_most() {
    let mut bench = Bench::new();
    for valid in [Millis(0), Millis(7 * 24 * 3_600_000 + 1)] {
        let refused = token(&mut bench, "a", Some(valid)).unwrap_err();
        assert_eq!(refused.code, codes::BODY_INVALID);
        assert_eq!(refused.field.as_deref(), Some("valid"));
    }
}

#[test]
fn old_tokens_are_forgotten() {
    let mut bench = Bench::new();
    token(&mut bench, "a", None).unwrap();
    bench.now = bench.now.after(Millis(8 * 24 * 3_600_000));
    token(&mut bench, "b", None).unwrap();
    let kept: Vec<&String> = bench.cluster.records.tokens.keys().collect();
    assert_eq!(kept, ["b"]);
}

#[test]
fn a_name_in_use_is_refused_and_the_token_stays_good() {
    let mut bench = Bench::of(&["node-1"]);
    token(&mut bench, "a", None).unwrap();
    let taken = join(&mut bench, "a", 1, "node-1").unwrap_err();
    assert_eq!(taken.code, codes::NODE_NAME_TAKEN);
    assert!(join(&mut bench, "a", 1, "node-2").is_ok());
}

#[test]
fn a_removed_node_is_refused_and_may_join_again_as_another_incarnation() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    bench.pass(Millis(200));
    bench.told.clear();
    bench
        .step(Input::RemoveNode {
            node: node("node-1"),
        })
        .unwrap();
    let (closed, _, problem) = bench.closed.remove(0);
    assert_eq!(
        (closed, &*problem.code),
        (node("node-1"), codes::NODE_REVOKED)
    );
    let (told, message) = bench.told.remove(0);
    assert_eq!(told, node("node-2"));
    let removed = CoordinatorMessage::MembersChanged {
        set: vec![],
        gone: vec![node("node-1")],
    };
    assert_eq!(message, removed, "at once");
    assert_eq!(bench.cluster.nodes().len(), 1);

    let hello = || NodeHello {
        facts: Document::of(&facts(1024)).unwrap(),
        domains: vec![],
        migrations: vec![],
    };
    let refused = bench.hello("node-1", 1, hello()).unwrap_err();
    assert_eq!(refused.code, codes::NODE_REVOKED);
    assert_eq!(bench.join("node-1"), Ok(Output::Joined { incarnation: 2 }));
    let refused = bench.hello("node-1", 1, hello()).unwrap_err();
    assert_eq!(
        refused.code,
        codes::NODE_REVOKED,
        "the old certificate stays out"
    );
    assert!(bench.hello("node-1", 2, hello()).is_ok());
    let stranger = bench.hello("node-9", 1, hello()).unwrap_err();
    assert_eq!(stranger.code, codes::NODE_REVOKED);
}

#[test]
fn a_node_with_vms_is_not_removed() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-1");
    let refused = |bench: &mut Bench, name| {
        bench
            .step(Input::RemoveNode { node: node(name) })
            .unwrap_err()
    };
    let problem = refused(&mut bench, "node-1");
    assert_eq!(problem.code, codes::NODE_NOT_EMPTY);
    assert_eq!(problem.message, "node-1 still has 1 VM: web");
    bench.migrate(vm, Some("node-2")).unwrap();
    let problem = refused(&mut bench, "node-2");
    assert_eq!(
        problem.code,
        codes::NODE_NOT_EMPTY,
        "one is on its way there"
    );
}

#[test]
fn a_newer_session_takes_the_place_of_the_older() {
    let mut bench = Bench::of(&["node-1"]);
    let old = bench.cluster.session(&node("node-1")).unwrap();
    bench.connect("node-1", 1024, vec![]);
    assert_eq!(bench.closed[0].1, old);
    let late = Input::SessionClosed {
        node: node("node-1"),
        session: old,
        reason: "closed here".into(),
    };
    bench.step(late).unwrap();
    assert!(
        bench.cluster.is_up(&node("node-1")),
        "the end of the old is no news"
    );
    assert_eq!(
        bench
            .kinds()
            .iter()
            .filter(|kind| **kind == "node.up")
            .count(),
        1
    );
}

#[test]
fn members_are_told_of_a_new_address() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    bench.pass(Millis(200));
    bench.told.clear();
    let moved = NodeFacts {
        address: "192.0.2.9:7441".into(),
        ..facts(1024)
    };
    bench.say("node-1", NodeMessage::Facts(Document::of(&moved).unwrap()));
    assert_eq!(bench.told, [], "others may come");
    bench.pass(Millis(200));
    let told: Vec<&NodeId> = bench.told.iter().map(|(node, _)| node).collect();
    assert_eq!(told, [&node("node-1"), &node("node-2")]);
    let set = &changed(&bench.told[1].1)[..];
    assert_eq!(set[0].address, "192.0.2.9:7441");
    assert_eq!(set.len(), 1);
}

fn changed(message: &CoordinatorMessage) -> &Vec<Member> {
    let CoordinatorMessage::MembersChanged { set, .. } = message else {
        panic!("members were expected");
    };
    set
}

/// What a node is told that knows those members.
fn asked(bench: &mut Bench, known: &[Member]) -> CoordinatorMessage {
    bench.told.clear();
    let known = RosterMark::of(known);
    bench.say("node-1", NodeMessage::AskMembers { known });
    bench.told.remove(0).1
}

#[test]
fn a_node_is_told_what_it_has_missed() {
    let mut bench = Bench::of(&["node-1"]);
    let listed = |bench: &mut Bench| match asked(bench, &[]) {
        CoordinatorMessage::Members(all) => all,
        CoordinatorMessage::MembersChanged { set, gone } if gone.is_empty() => set,
        other => panic!("members were expected, not {other:?}"),
    };
    let first = listed(&mut bench);
    assert_eq!(first.len(), 1);
    bench.join("node-2").unwrap();
    bench.join("node-3").unwrap();
    let then = listed(&mut bench);
    let gone = Input::RemoveNode {
        node: node("node-2"),
    };
    bench.step(gone).unwrap();
    let (third, second) = (then[2].clone(), node("node-2"));
    let said = |set, gone| CoordinatorMessage::MembersChanged { set, gone };
    let missed = asked(&mut bench, &first);
    assert_eq!(missed, said(vec![third.clone()], vec![second.clone()]));
    let missed = asked(&mut bench, &then);
    assert_eq!(missed, said(vec![], vec![second]));
    let now = [first[0].clone(), third];
    assert_eq!(asked(&mut bench, &now), said(vec![], vec![]));
    bench.restart_connected(&["node-1"]);
    let welcomed = bench.told.iter().find_map(|(_, message)| match message {
        CoordinatorMessage::Welcome { members, .. } => Some(*members),
        _ => None,
    });
    assert_eq!(welcomed, Some(RosterMark::of(&now)), "nothing is asked for");
    let unknown = asked(&mut bench, &then);
    assert_eq!(unknown, CoordinatorMessage::Members(now.to_vec()));
}

#[test]
fn those_who_join_together_are_told_of_together() {
    let mut bench = Bench::of(&["node-1"]);
    bench.pass(Millis(200));
    bench.told.clear();
    for name in ["node-2", "node-3"] {
        bench.join(name).unwrap();
    }
    bench.pass(Millis(200));
    assert_eq!(bench.told.len(), 1, "{:?}", bench.told);
    assert_eq!(changed(&bench.told[0].1).len(), 2);
    bench.pass(Millis(1_000));
    assert_eq!(bench.told.len(), 1);
}

#[test]
fn both_ends_of_a_migration_know_each_other_when_it_begins() {
    let mut bench = Bench::of(&["node-1", "node-2"]);
    let vm = bench.running("web", "node-1");
    bench.pass(Millis(200));
    let moved = NodeFacts {
        address: "192.0.2.9:7441".into(),
        ..facts(1024)
    };
    bench.say("node-1", NodeMessage::Facts(Document::of(&moved).unwrap()));
    bench.told.clear();
    bench.migrate(vm, Some("node-2")).unwrap();
    assert_eq!(changed(&bench.told[1].1)[0].address, "192.0.2.9:7441");
}

#[test]
fn facts_that_cannot_be_read_refuse_the_session() {
    let mut bench = Bench::of(&["node-1"]);
    let hello = NodeHello {
        facts: Document::of(&"no facts").unwrap(),
        domains: vec![],
        migrations: vec![],
    };
    let refused = bench.hello("node-1", 1, hello).unwrap_err();
    assert_eq!(refused.code, codes::PROTOCOL);
}

#[test]
fn a_cordoned_node_gets_no_new_vms() {
    let mut bench = Bench::of(&["node-1"]);
    let cordon = |cordoned| Input::Cordon {
        node: node("node-1"),
        cordoned,
    };
    bench.step(cordon(true)).unwrap();
    bench.step(cordon(true)).unwrap();
    assert_eq!(
        bench
            .kinds()
            .iter()
            .filter(|kind| **kind == "node.cordoned")
            .count(),
        1
    );
    let refused = bench.create(spec("web", 256), true, None).unwrap_err();
    assert_eq!(refused.code, codes::NO_NODE_FITS);
    assert_eq!(refused.also[0].message, "node-1 is cordoned");
    bench.step(cordon(false)).unwrap();
    assert!(bench.create(spec("web", 256), true, None).is_ok());
}

#[test]
fn an_address_that_is_none_is_refused_and_the_token_stays_good() {
    let mut bench = Bench::new();
    token(&mut bench, "a", None).unwrap();
    for address in [
        "",
        "host",
        ":7441",
        "host:0",
        "host:99999",
        "a b:1",
        "host:",
    ] {
        let refused = bench.step(Input::Join {
            token: "a".into(),
            digest: SecretDigest([1; 32]),
            node: node("node-1"),
            address: address.into(),
        });
        let problem = refused.unwrap_err();
        assert_eq!(problem.field.as_deref(), Some("address"), "{address:?}");
    }
    for (number, address) in ["192.0.2.1:7441", "[2001:db8::1]:7441", "host:1"]
        .iter()
        .enumerate()
    {
        let id = format!("token-{number}");
        token(&mut bench, &id, None).unwrap();
        let joined = bench.step(Input::Join {
            token: id,
            digest: SecretDigest([1; 32]),
            node: node(&format!("node-{number}")),
            address: (*address).into(),
        });
        assert!(joined.is_ok(), "{address}");
    }
}
