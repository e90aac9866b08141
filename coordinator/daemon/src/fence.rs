//! Fence agents: programs that switch a node off.
//!
//! The interface is that of the `fence-agents` project: options on the standard
//! input, one `name=value` a line; `action=off` ends with 0 once the node is off,
//! and `action=status` with 0 while it is on and 2 when it is off. Any agent of
//! Pacemaker's can be used.
//!
//! An agent's success is believed like the end of a lease, so what it said is
//! asked again: one that reports success while its status still says "on" has not
//! fenced anything.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use godwit_shared::model::{NodeId, Problem, codes};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// How much of what an agent prints is kept.
const KEPT: usize = 1024;
/// What `action=status` ends with when the node is off.
const STATUS_OFF: i32 = 2;

/// How one node is switched off.
#[derive(Clone, PartialEq, Eq)]
pub struct FenceAgent {
    /// The program.
    pub agent: PathBuf,
    /// Its options; passwords may be among them.
    pub options: BTreeMap<String, String>,
    /// How long it may take.
    pub timeout: Duration,
}

impl std::fmt::Debug for FenceAgent {
    /// Without the options' values: they may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FenceAgent")
            .field("agent", &self.agent)
            .field("options", &self.options.keys())
            .field("timeout", &self.timeout)
            .finish()
    }
}

impl FenceAgent {
    /// Switches the node off. Success means that it is off.
    pub async fn off(&self, node: &NodeId) -> Result<(), Problem> {
        let output = self.run(node, "off").await?;
        if !output.status.success() {
            let why = format!("it ended with {}: {}", output.status, words(&output));
            return Err(self.problem(&why));
        }
        let status = self.run(node, "status").await?;
        if status.status.code() == Some(STATUS_OFF) {
            return Ok(());
        }
        let why = format!(
            "it says that it switched the node off, but its status ended with {}: {}",
            status.status,
            words(&status)
        );
        Err(self.problem(&why))
    }

    async fn run(&self, node: &NodeId, action: &str) -> Result<Output, Problem> {
        let text = self.input(action);
        let run = async {
            let mut child = Command::new(&self.agent)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // One that reads nothing may still know what to do.
                let _ = stdin.write_all(text.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(self.timeout, run)
            .await
            .map_err(|_| self.problem(&format!("it did not end within {:?}", self.timeout)))?
            .map_err(|error| self.problem(&format!("it cannot be run: {error}")))?;
        tracing::info!(%node, agent = %self.agent.display(), action, status = %output.status, said = words(&output), "fence agent");
        Ok(output)
    }

    fn input(&self, action: &str) -> String {
        let options = self.options.iter();
        let lines = options.map(|(name, value)| format!("{name}={value}\n"));
        std::iter::once(format!("action={action}\n"))
            .chain(lines)
            .collect()
    }

    fn problem(&self, why: &str) -> Problem {
        let message = format!("`{}`: {why}", self.agent.display());
        Problem::new(codes::FENCE_FAILED, message).remedy(
            "run the agent by hand with the same options; see to the node yourself meanwhile",
        )
    }
}

/// The end of what it printed.
fn words(output: &Output) -> String {
    let all = [&output.stderr[..], &output.stdout[..]].concat();
    let end = &all[all.len().saturating_sub(KEPT)..];
    String::from_utf8_lossy(end).trim().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn agent(dir: &tempfile::TempDir, script: &str) -> FenceAgent {
        let path = dir.path().join("fence_test");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        FenceAgent {
            agent: path,
            options: BTreeMap::from([("plug".to_owned(), "7".to_owned())]),
            timeout: Duration::from_secs(5),
        }
    }

    fn node() -> NodeId {
        "node-1".parse().unwrap()
    }

    #[tokio::test]
    async fn options_go_in_and_success_comes_out() {
        let dir = tempfile::tempdir().unwrap();
        let seen = dir.path().join("seen");
        let script = format!(
            "in=$(cat); echo \"$in\" >> {}; case \"$in\" in *status*) exit 2;; esac",
            seen.display()
        );
        agent(&dir, &script).off(&node()).await.unwrap();
        let text = std::fs::read_to_string(seen).unwrap();
        assert_eq!(text, "action=off\nplug=7\naction=status\nplug=7\n");
    }

    #[tokio::test]
    async fn failure_time_out_and_a_false_word_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let cases = [
            ("echo no route >&2; exit 1", "no route"),
            ("exec sleep 60", "did not end"),
            ("exit 0", "status ended with exit status: 0"),
            (
                "case $(cat) in *status*) echo lost >&2; exit 1;; esac",
                "status: 1: lost",
            ),
        ];
        for (script, word) in cases {
            let mut agent = agent(&dir, script);
            if script.contains("sleep") {
                agent.timeout = Duration::from_millis(100);
            }
            let problem = agent.off(&node()).await.unwrap_err();
            assert_eq!(problem.code, codes::FENCE_FAILED);
            assert!(problem.message.contains(word), "{problem}");
        }
        let mut missing = agent(&dir, "");
        missing.agent = "/nonexistent/fence_none".into();
        let problem = missing.off(&node()).await.unwrap_err();
        assert!(problem.message.contains("cannot be run"), "{problem}");
    }

    #[test]
    fn a_password_is_not_printed() {
        let dir = tempfile::tempdir().unwrap();
        let mut agent = agent(&dir, "");
        agent.options.insert("passwd".into(), "s3cret".into());
        assert!(!format!("{agent:?}").contains("s3cret"));
    }
}
