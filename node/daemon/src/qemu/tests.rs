#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::collections::BTreeMap;
use std::time::Duration;

use godwit_node_logic::qmp::Command;
use godwit_shared::model::codes;
use godwit_shared::model::spec::{Accelerator, Architecture};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::probe::probe_all;
use super::session::{Session, SessionEvent};

const GREETING: &[u8] = b"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 9, \"minor\": 1, \"micro\": 0}, \"package\": \"\"}, \"capabilities\": []}}\n";
const SOON: Duration = Duration::from_secs(10);

struct Peer {
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    to: OwnedWriteHalf,
}

impl Peer {
    fn of(stream: UnixStream) -> Self {
        let (from, to) = stream.into_split();
        let lines = BufReader::new(from).lines();
        Self { lines, to }
    }

    async fn asked(&mut self) -> (String, u64) {
        let line = self.lines.next_line().await.unwrap().unwrap();
        let message: serde_json::Value = serde_json::from_str(&line).unwrap();
        let name = message["execute"].as_str().unwrap().to_owned();
        (name, message["id"].as_u64().unwrap())
    }

    async fn says(&mut self, text: &str) {
        self.to.write_all(text.as_bytes()).await.unwrap();
        self.to.write_all(b"\n").await.unwrap();
    }
}

async fn session() -> (Session, tokio::sync::mpsc::Receiver<SessionEvent>, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Peer::of(theirs);
    peer.to.write_all(GREETING).await.unwrap();
    let negotiate = async {
        let (name, id) = peer.asked().await;
        assert_eq!(name, "qmp_capabilities");
        peer.says(&format!("{{\"return\": {{}}, \"id\": {id}}}"))
            .await;
    };
    let (opened, ()) = tokio::join!(Session::over(ours), negotiate);
    let (session, greeting, events) = opened.unwrap();
    assert_eq!(greeting.release(), "9.1.0");
    (session, events, peer)
}

#[tokio::test]
async fn replies_find_their_commands_in_any_order() {
    let (session, _events, mut peer) = session().await;
    let (stop, cont) = (Command::stop(), Command::cont());
    let asked = async { tokio::join!(session.execute(&stop, SOON), session.execute(&cont, SOON)) };
    let answered = async {
        let (first, second) = (peer.asked().await, peer.asked().await);
        peer.says(&format!(
            "{{\"return\": \"{}\", \"id\": {}}}",
            second.0, second.1
        ))
        .await;
        let error = "{\"class\": \"GenericError\", \"desc\": \"not now\"}";
        peer.says(&format!("{{\"error\": {error}, \"id\": {}}}", first.1))
            .await;
    };
    let ((stopped, continued), ()) = tokio::join!(asked, answered);
    let refused = stopped.unwrap_err();
    assert_eq!(
        (&*refused.code, refused.message.as_str()),
        (codes::QEMU_COMMAND, "not now")
    );
    assert_eq!(continued.unwrap(), "cont");
}

#[tokio::test]
async fn a_deadline_passes_and_the_late_answer_is_dropped() {
    let (session, _events, mut peer) = session().await;
    let slow = session
        .execute(&Command::stop(), Duration::from_millis(20))
        .await;
    assert_eq!(slow.unwrap_err().code, codes::QEMU_TIMEOUT);
    let (_, late) = peer.asked().await;
    peer.says(&format!("{{\"return\": 1, \"id\": {late}}}"))
        .await;
    let cont = Command::cont();
    let answered = async {
        let (_, id) = peer.asked().await;
        peer.says(&format!("{{\"return\": 2, \"id\": {id}}}")).await;
    };
    let (continued, ()) = tokio::join!(session.execute(&cont, SOON), answered);
    assert_eq!(continued.unwrap(), 2);
}

#[tokio::test]
async fn a_closed_session_fails_what_waits_and_what_comes() {
    let (session, mut events, peer) = session().await;
    let stop = Command::stop();
    let (waiting, ()) = tokio::join!(session.execute(&stop, SOON), async { drop(peer) });
    assert_eq!(waiting.unwrap_err().code, codes::QEMU_GONE);
    assert_eq!(events.recv().await, Some(SessionEvent::Closed));
    let later = session.execute(&stop, SOON).await;
    assert_eq!(later.unwrap_err().code, codes::QEMU_GONE);
}

#[tokio::test]
async fn a_flood_loses_chatter_only_and_replies_come_through() {
    let (session, mut events, mut peer) = session().await;
    let flood = async {
        let mut text = String::new();
        for _ in 0..5_000 {
            text.push_str("{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 1}}\n");
        }
        text.push_str("{\"event\": \"STOP\"}\n");
        peer.to.write_all(text.as_bytes()).await.unwrap();
        let (_, id) = peer.asked().await;
        peer.says(&format!("{{\"return\": {{}}, \"id\": {id}}}"))
            .await;
    };
    let cont = Command::cont();
    let (reply, ()) = tokio::join!(session.execute(&cont, SOON), flood);
    reply.unwrap();
    let (mut chatter, mut stops) = (0, 0);
    while let Ok(event) = events.try_recv() {
        match event {
            SessionEvent::Qmp(event) if event.name == "STOP" => stops += 1,
            _ => chatter += 1,
        }
    }
    assert_eq!(stops, 1);
    assert!(chatter <= 128, "{chatter}");
}

#[tokio::test]
async fn garbage_is_survived_up_to_a_point() {
    let (session, mut events, mut peer) = session().await;
    for _ in 0..100 {
        peer.says("what is this").await;
    }
    peer.says("{\"event\": \"STOP\"}").await;
    assert!(matches!(events.recv().await, Some(SessionEvent::Qmp(_))));
    peer.says("what is this").await;
    assert_eq!(events.recv().await, Some(SessionEvent::Closed));
    drop(session);
}

#[tokio::test]
async fn what_was_left_of_an_earlier_daemons_session_is_skipped() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Peer::of(theirs);
    // The end of a line, an event, and the answer to that daemon's first command.
    peer.says("rn\": {\"status\": \"running\"}, \"id\": 7}\r")
        .await;
    peer.says("{\"event\": \"STOP\"}").await;
    peer.says("{\"return\": 1, \"id\": 0}").await;
    let (session, mut events) = Session::go_on(ours);
    let pause = Command::plain("migrate-pause");
    let answered = async {
        let line = peer.lines.next_line().await.unwrap().unwrap();
        let message: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(message["exec-oob"], "migrate-pause", "no negotiation first");
        peer.says(&format!("{{\"return\": 2, \"id\": {}}}", message["id"]))
            .await;
    };
    let (answer, ()) = tokio::join!(session.execute(&pause, SOON), answered);
    assert_eq!(answer.unwrap(), 2);
    assert!(matches!(events.recv().await, Some(SessionEvent::Qmp(_))));
}

#[tokio::test]
async fn the_installed_qemu_is_probed() {
    let emulators = probe_all(&BTreeMap::new()).await;
    let x86 = emulators
        .iter()
        .find(|emulator| emulator.facts.architecture == Architecture::X86_64)
        .expect("qemu-system-x86_64 is installed: scripts/test sees to it");
    assert!(x86.facts.machine_aliases["q35"].starts_with("pc-q35-"));
    assert!(x86.facts.accelerators.contains(&Accelerator::Tcg));
    let mut cpus = x86.facts.cpus.iter();
    let tcg = cpus
        .find(|cpus| cpus.accelerator == Accelerator::Tcg)
        .unwrap();
    assert!(tcg.models.iter().any(|model| model == "qemu64"));
    assert!(
        tcg.features.iter().any(|feature| feature == "cx16"),
        "{:?}",
        tcg.features
    );
    let lacking = tcg.lacking.values();
    assert!(lacking.clone().all(|features| !features.is_empty()) && lacking.count() > 0);
}

#[tokio::test]
async fn what_is_no_qemu_is_left_out() {
    let overrides: BTreeMap<_, _> = [
        (Architecture::X86_64, "/bin/true".into()),
        (Architecture::Aarch64, "/nonexistent".into()),
        (Architecture::Ppc64, "/bin/cat".into()),
    ]
    .into();
    assert_eq!(probe_all(&overrides).await, []);
}
