//! What the installed QEMUs can do.
//!
//! Once at the daemon's start every emulator is run without a machine
//! (`-machine none`), asked over QMP on its standard input and output, and
//! ended. An emulator that cannot be probed is left out, with the reason in the
//! log; it never keeps the daemon from starting.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use godwit_node_logic::qemu::facts::{self, Answers, KvmEvidence};
use godwit_node_logic::qmp::{Codec, Command, CommandId, Message};
use godwit_shared::model::spec::Architecture;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdout};

pub use godwit_node_logic::qemu::facts::Emulator;

/// How long one probe may take. A first start reads tens of megabytes from a
/// cold disk.
const DEADLINE: Duration = Duration::from_secs(30);
const ARCHITECTURES: [Architecture; 3] = [
    Architecture::X86_64,
    Architecture::Aarch64,
    Architecture::Ppc64,
];

/// An emulator that could not be asked.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("it cannot be run")]
    Run(#[source] std::io::Error),
    #[error("it did not answer within {} s", DEADLINE.as_secs())]
    Silent,
    #[error("it ended without an answer: {0}")]
    Ended(String),
    #[error(transparent)]
    Facts(#[from] facts::ProbeError),
}

/// Probes `qemu-system-ARCH` for each architecture: the program named in
/// `overrides`, else the one found in `PATH`.
pub async fn probe_all(overrides: &BTreeMap<Architecture, PathBuf>) -> Vec<Emulator> {
    let evidence = kvm_evidence();
    let probes = ARCHITECTURES.into_iter().filter_map(|architecture| {
        let program = overrides
            .get(&architecture)
            .cloned()
            .or_else(|| in_path(&format!("qemu-system-{architecture}")))?;
        Some(async move {
            match probe(architecture, &program, evidence).await {
                Ok(emulator) => Some(emulator),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(error, program = %program.display(), "an emulator is left out");
                    None
                }
            }
        })
    });
    join_all(probes).await.into_iter().flatten().collect()
}

async fn probe(
    architecture: Architecture,
    program: &Path,
    evidence: KvmEvidence,
) -> Result<Emulator, Failure> {
    let replies = ask(
        program,
        &["-machine", "none"],
        &[
            Command::plain("query-version"),
            Command::plain("query-machines"),
            Command::new("query-command-line-options", json!({"option": "sandbox"})),
            Command::plain("query-cpu-definitions"),
            postcopy_on(),
            largest_cpu(architecture),
        ],
    )
    .await?;
    let [version, machines, sandbox, cpus, postcopy, features] =
        <[Value; 6]>::try_from(replies).unwrap_or_default();
    let mut answers = Answers {
        version,
        machines,
        sandbox,
        cpus,
        postcopy,
        features,
        kvm_cpus: Value::Null,
        kvm_features: Value::Null,
    };
    let kvm = evidence.worth_asking(architecture) && {
        let questions = [
            Command::plain("query-kvm"),
            Command::plain("query-cpu-definitions"),
            largest_cpu(architecture),
        ];
        let args = ["-machine", "none", "-accel", "kvm"];
        let replies = ask(program, &args, &questions).await.unwrap_or_default();
        let [works, cpus, features] = <[Value; 3]>::try_from(replies).unwrap_or_default();
        answers.kvm_cpus = cpus;
        answers.kvm_features = features;
        evidence.works(architecture, &works)
    };
    Ok(facts::read(
        architecture,
        &program.display().to_string(),
        &answers,
        kvm,
    )?)
}

/// Asks for every feature that a guest can be given. Only x86 tells them by
/// themselves (`static`); the other architectures know the full expansion only,
/// and Power knows neither.
fn largest_cpu(architecture: Architecture) -> Command {
    let kind = match architecture {
        Architecture::X86_64 => "static",
        Architecture::Aarch64 | Architecture::Ppc64 => "full",
    };
    let arguments = json!({"type": kind, "model": {"name": "max"}});
    Command::new("query-cpu-model-expansion", arguments)
}

/// QEMU tries here whether the host has what post-copy needs.
fn postcopy_on() -> Command {
    let capability = json!({"capability": "postcopy-ram", "state": true});
    Command::new(
        "migrate-set-capabilities",
        json!({"capabilities": [capability]}),
    )
}

/// Runs the program and asks it; a refused command answers null.
async fn ask(program: &Path, args: &[&str], commands: &[Command]) -> Result<Vec<Value>, Failure> {
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-S"])
        .args(["-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_remove("NOTIFY_SOCKET")
        .kill_on_drop(true)
        .spawn()
        .map_err(Failure::Run)?;
    tokio::time::timeout(DEADLINE, converse(&mut child, commands))
        .await
        .unwrap_or(Err(Failure::Silent))
}

async fn converse(child: &mut Child, commands: &[Command]) -> Result<Vec<Value>, Failure> {
    let (Some(mut to), Some(mut from)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Failure::Ended("its pipes are closed".to_owned()));
    };
    let negotiate = Command::capabilities(false);
    let all = std::iter::once(&negotiate).chain(commands);
    let mut text: Vec<u8> = Vec::new();
    for (id, command) in (0..).zip(all) {
        text.extend(command.line(CommandId(id), false));
    }
    let wrote = to.write_all(&text).await;
    let mut codec = Codec::new();
    let mut answers = vec![None; commands.len() + 1];
    while answers.iter().any(Option::is_none) {
        match next_reply(&mut codec, &mut from).await {
            Some((id, value)) => {
                if let Some(slot) = answers.get_mut(id) {
                    *slot = Some(value);
                }
            }
            None => return Err(Failure::Ended(last_words(child, wrote).await)),
        }
    }
    let _ = to
        .write_all(&Command::quit().line(CommandId(u64::MAX), false))
        .await;
    let _ = child.wait().await;
    Ok(answers.into_iter().skip(1).flatten().collect())
}

async fn next_reply(codec: &mut Codec, from: &mut ChildStdout) -> Option<(usize, Value)> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match codec.next() {
            Ok(Some(Message::Reply(reply))) => {
                let id = usize::try_from(reply.id?.0).ok()?;
                return Some((id, reply.outcome.unwrap_or_default()));
            }
            Ok(Some(_)) => continue,
            Err(_) => return None,
            Ok(None) => {}
        }
        match from.read(&mut buffer).await {
            Ok(read @ 1..) => codec.push(buffer.get(..read)?),
            _ => return None,
        }
    }
}

async fn last_words(child: &mut Child, wrote: std::io::Result<()>) -> String {
    const SHOWN: u64 = 1024;
    let mut words = String::new();
    if let Some(errors) = child.stderr.take() {
        let _ = errors.take(SHOWN).read_to_string(&mut words).await;
    }
    match (words.trim(), wrote) {
        ("", Err(error)) => error.to_string(),
        ("", Ok(())) => "it said nothing".to_owned(),
        (words, _) => words.to_owned(),
    }
}

fn kvm_evidence() -> KvmEvidence {
    let opens = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    KvmEvidence {
        host: host_architecture(std::env::consts::ARCH),
        opens,
        cpu_flag: facts::cpu_flag(&cpuinfo),
    }
}

fn host_architecture(name: &str) -> Option<Architecture> {
    match name {
        "x86_64" => Some(Architecture::X86_64),
        "aarch64" => Some(Architecture::Aarch64),
        "powerpc64" => Some(Architecture::Ppc64),
        _ => None,
    }
}

/// The first program of that name in `PATH`.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}
