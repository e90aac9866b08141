//! The guest agent's channel: the QEMU Guest Agent protocol over a virtio-serial
//! port.
//!
//! The other end is software inside the guest: it may be absent, slow, old or
//! hostile. So every command begins with `guest-sync-delimited`, whose answer
//! carries our number behind a 0xFF byte and thereby skips whatever an earlier,
//! forgotten command may still answer; answers are bounded in size and time; and
//! nothing that the guest sends is more than an error here.

use std::time::Duration;

use godwit_shared::model::{Problem, codes};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

/// Largest answer, in bytes.
const MAX_ANSWER: usize = 4 << 20;
/// Commands that may wait for the channel.
const WAITING: usize = 16;
/// The byte that the agent puts before the answer to `guest-sync-delimited`.
const SENTINEL: u8 = 0xFF;

/// A domain's agent channel. Cheap to clone; commands go one after another.
#[derive(Clone)]
pub(super) struct AgentChannel {
    commands: mpsc::Sender<Command>,
}

struct Command {
    name: &'static str,
    arguments: Value,
    deadline: Duration,
    /// The command ends the agent: no answer is a good answer.
    last: bool,
    answer: oneshot::Sender<Result<Value, Problem>>,
}

impl AgentChannel {
    /// Serves the channel over QEMU's socket until the last handle is dropped.
    pub(super) fn over(socket: UnixStream) -> Self {
        let (commands, queue) = mpsc::channel(WAITING);
        tokio::spawn(serve(socket, queue));
        Self { commands }
    }

    /// One command and its `return`.
    #[cfg_attr(
        not(test),
        expect(
            dead_code,
            reason = "guest information comes through it in a later step"
        )
    )]
    pub(super) async fn execute(
        &self,
        name: &'static str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, Problem> {
        self.ask(name, arguments, deadline, false).await
    }

    /// A command such as `guest-shutdown`, which the agent does not answer when
    /// it succeeds. An error within `deadline` is one.
    pub(super) async fn tell(
        &self,
        name: &'static str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<(), Problem> {
        self.ask(name, arguments, deadline, true).await.map(|_| ())
    }

    async fn ask(
        &self,
        name: &'static str,
        arguments: Value,
        deadline: Duration,
        last: bool,
    ) -> Result<Value, Problem> {
        let (answer, answered) = oneshot::channel();
        let command = Command {
            name,
            arguments,
            deadline,
            last,
            answer,
        };
        self.commands
            .try_send(command)
            .map_err(|_| trouble(name, "too many commands wait for it"))?;
        answered
            .await
            .unwrap_or_else(|_| Err(trouble(name, "its channel is closed")))
    }
}

async fn serve(socket: UnixStream, mut queue: mpsc::Receiver<Command>) {
    let (from, to) = socket.into_split();
    let mut line = Line {
        from: BufReader::new(from),
        to,
        number: 0,
    };
    while let Some(command) = queue.recv().await {
        let Command {
            name,
            arguments,
            deadline,
            last,
            answer,
        } = command;
        let result = match tokio::time::timeout(deadline, line.synchronise(name)).await {
            Err(_) => Err(silent(name, deadline)),
            Ok(Err(problem)) => Err(problem),
            Ok(Ok(())) => {
                match tokio::time::timeout(deadline, line.command(name, &arguments)).await {
                    Err(_) if last => Ok(Value::Null),
                    Err(_) => Err(silent(name, deadline)),
                    Ok(result) => result,
                }
            }
        };
        let _ = answer.send(result);
    }
}

fn silent(name: &str, deadline: Duration) -> Problem {
    trouble(
        name,
        &format!("no answer within {} ms", deadline.as_millis()),
    )
}

/// The channel as lines of JSON.
struct Line {
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
    number: u64,
}

impl Line {
    async fn synchronise(&mut self, name: &'static str) -> Result<(), Problem> {
        self.number += 1;
        let id = self.number;
        self.write(
            name,
            &json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } }),
        )
        .await?;
        loop {
            while self.byte(name).await? != SENTINEL {}
            if self.read(name).await?.get("return").and_then(Value::as_u64) == Some(id) {
                return Ok(());
            }
        }
    }

    async fn command(&mut self, name: &'static str, arguments: &Value) -> Result<Value, Problem> {
        let mut message = json!({ "execute": name });
        if !arguments.is_null() {
            message["arguments"] = arguments.clone();
        }
        self.write(name, &message).await?;
        let mut answer = self.read(name).await?;
        match answer.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => {
                let words = answer.pointer("/error/desc").and_then(Value::as_str);
                Err(trouble(
                    name,
                    words.unwrap_or("it answered neither with a return nor an error"),
                ))
            }
        }
    }

    async fn write(&mut self, name: &str, message: &Value) -> Result<(), Problem> {
        let text = format!("{message}\n");
        self.to
            .write_all(text.as_bytes())
            .await
            .map_err(|e| trouble(name, &e.to_string()))
    }

    async fn read(&mut self, name: &str) -> Result<Value, Problem> {
        let mut text = Vec::new();
        loop {
            match self.byte(name).await? {
                b'\n' if text.iter().all(u8::is_ascii_whitespace) => text.clear(),
                b'\n' => break,
                _ if text.len() >= MAX_ANSWER => {
                    return Err(trouble(name, "its answer is too long"));
                }
                byte => text.push(byte),
            }
        }
        serde_json::from_slice(&text).map_err(|_| trouble(name, "its answer is no JSON"))
    }

    async fn byte(&mut self, name: &str) -> Result<u8, Problem> {
        self.from
            .read_u8()
            .await
            .map_err(|e| trouble(name, &e.to_string()))
    }
}

fn trouble(command: &str, why: &str) -> Problem {
    Problem::new(
        codes::GUEST_AGENT,
        format!("the guest agent failed at `{command}`: {why}"),
    )
    .value(command)
    .remedy("see whether qemu-guest-agent runs in the guest")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::AsyncBufReadExt;

    const SOON: Duration = Duration::from_millis(300);

    /// An agent that first sends `noise`, then answers each command with the
    /// next of `answers`.
    fn agent(noise: &'static [u8], answers: &'static [&'static str]) -> AgentChannel {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (from, mut to) = theirs.into_split();
            let mut lines = BufReader::new(from).lines();
            let mut answers = answers.iter();
            to.write_all(noise).await.unwrap();
            while let Ok(Some(line)) = lines.next_line().await {
                let message: Value = serde_json::from_str(&line).unwrap();
                let reply = if message["execute"] == "guest-sync-delimited" {
                    let mut reply = vec![SENTINEL];
                    reply.extend(
                        json!({ "return": message["arguments"]["id"] })
                            .to_string()
                            .bytes(),
                    );
                    reply
                } else {
                    match answers.next() {
                        Some(answer) => answer.as_bytes().to_vec(),
                        None => continue,
                    }
                };
                to.write_all(&reply).await.unwrap();
                to.write_all(b"\n").await.unwrap();
            }
        });
        AgentChannel::over(ours)
    }

    #[tokio::test]
    async fn an_answer_comes_through_old_noise() {
        let noise = b"{\"return\": 1}\n\xFF{\"return\": 999}\n}}garbage";
        let agent = agent(noise, &[r#"{"return": {"version": "8.2"}}"#]);
        let info = agent
            .execute("guest-info", Value::Null, SOON)
            .await
            .unwrap();
        assert_eq!(info["version"], "8.2");
    }

    #[tokio::test]
    async fn refusals_and_garbage_are_problems() {
        let agent = agent(
            b"",
            &[
                r#"{"error": {"class": "X", "desc": "no such user"}}"#,
                "nonsense",
                "{}",
            ],
        );
        let refused = agent
            .execute("guest-set-user-password", json!({}), SOON)
            .await
            .unwrap_err();
        assert!(refused.message.ends_with("no such user"), "{refused}");
        for _ in 0..2 {
            let problem = agent
                .execute("guest-ping", Value::Null, SOON)
                .await
                .unwrap_err();
            assert_eq!(problem.code, codes::GUEST_AGENT);
        }
    }

    #[tokio::test]
    async fn silence_is_an_answer_to_a_shutdown_only() {
        let agent = agent(b"", &[]);
        agent
            .tell("guest-shutdown", Value::Null, SOON)
            .await
            .unwrap();
        assert!(
            agent
                .execute("guest-ping", Value::Null, SOON)
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_closed_channel_is_told() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let agent = AgentChannel::over(ours);
        assert!(
            agent
                .execute("guest-ping", Value::Null, SOON)
                .await
                .is_err()
        );
    }
}
