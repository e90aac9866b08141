//! Server-sent events: live, resumed, and with a gap.

use futures_util::StreamExt as _;
use godwit_shared::api::{ClusterStatus, Event};
use reqwest::{Method, Response, StatusCode};
use serde_json::json;

use super::node::Node;
use super::running::{PATIENCE, Running, spec};

/// A stream of events, read line by line.
struct Stream {
    response: futures_util::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
}

#[derive(Debug, PartialEq)]
struct Frame {
    id: Option<u64>,
    event: Option<String>,
    data: String,
}

impl Stream {
    fn of(response: Response) -> Self {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            response: response.bytes_stream().boxed(),
            text: String::new(),
        }
    }

    /// The next frame with data; none when the stream has ended.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            while let Some((frame, rest)) = self.text.split_once("\n\n") {
                let (frame, rest) = (read(frame), rest.to_owned());
                self.text = rest;
                if !frame.data.is_empty() {
                    return Some(frame);
                }
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.next())
                .await
                .unwrap()?;
            self.text
                .push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
    }

    async fn event(&mut self) -> Event {
        let frame = self.next().await.expect("an event");
        assert_eq!(frame.event, None);
        let event: Event = serde_json::from_str(&frame.data).unwrap();
        assert_eq!(frame.id, Some(event.seq));
        event
    }
}

fn read(text: &str) -> Frame {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(str::to_owned)
    };
    Frame {
        id: field("id").map(|id| id.parse().unwrap()),
        event: field("event"),
        data: field("data").unwrap_or_default(),
    }
}

async fn events(cluster: &Running, query: &str) -> Stream {
    let path = format!("/api/v1/events{query}");
    Stream::of(cluster.request(Method::GET, &path).send().await.unwrap())
}

#[actix::test]
async fn a_client_sees_everything_once_over_a_break() {
    let cluster = Running::start().await;
    let mut live = events(&cluster, "").await;
    let (mut node, _) = Node::join(&cluster, "n1").await;
    let first = live.event().await;
    assert_eq!(first.seq, 1);
    drop(live);
    let body = json!({"spec": spec("web"), "start": true});
    let task = cluster.begin("/api/v1/vms", body).await;
    node.start_one().await;
    cluster.ended(&task).await;
    let status: ClusterStatus = cluster.get("/api/v1/cluster").await;
    let mut resumed = Stream::of(
        cluster
            .request(Method::GET, "/api/v1/events?after=999")
            .header("Last-Event-ID", first.seq)
            .send()
            .await
            .unwrap(),
    );
    let mut seen = Vec::new();
    for seq in 2..=status.last_event {
        let event = resumed.event().await;
        assert_eq!(event.seq, seq);
        seen.push(event.kind);
    }
    assert!(seen.iter().any(|kind| kind == "node.up"), "{seen:?}");
    assert!(seen.iter().any(|kind| kind == "vm.state"), "{seen:?}");
    // And what happens from now on, right behind it.
    let answer = cluster.post("/api/v1/nodes/n1/cordon", json!({})).await;
    assert_eq!(answer.0, StatusCode::OK);
    assert_eq!(resumed.event().await.seq, status.last_event + 1);
    cluster.stop().await;
    assert_eq!(
        resumed.next().await,
        None,
        "a stopping coordinator ends the stream"
    );
}

#[actix::test]
async fn events_outlive_the_coordinator_and_a_foreign_number_is_a_gap() {
    let mut cluster = Running::start().await;
    let (_node, _) = Node::join(&cluster, "n1").await;
    let before: ClusterStatus = cluster.get("/api/v1/cluster").await;
    cluster.restart().await;
    let mut past = events(&cluster, "?after=0&follow=false").await;
    for seq in 1..=before.last_event {
        assert_eq!(past.event().await.seq, seq);
    }
    while let Some(frame) = past.next().await {
        assert!(frame.id.unwrap() > before.last_event);
    }
    let mut foreign = events(&cluster, "?after=100000&follow=false").await;
    let gap = foreign.next().await.unwrap();
    assert_eq!(gap.event.as_deref(), Some("gap"));
    assert!(gap.data.contains("not known"), "{gap:?}");
    assert_eq!(foreign.next().await, None);
    cluster.stop().await;
}
