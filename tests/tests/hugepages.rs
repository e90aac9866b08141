//! A real guest whose memory is made of huge pages of one NUMA node: it boots,
//! moves, and gives them back. Needs root: it lets the host keep more pages of
//! 2 MiB for as long as it lasts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use godwit_shared::model::spec::{Hugepages, MemoryBacking, NumaFit};
use godwit_shared::model::{LifecycleCommand, MiB, VmSpec};
use godwit_tests::guest::{self, Work};
use godwit_tests::harness::ClusterOptions;
use godwit_tests::scene::{SETTLE, Scene};
use godwit_tests::wait;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Pages that the host keeps beside those that it kept before.
struct Reserved {
    before: u64,
}

fn number(file: &str) -> Result<u64> {
    let path = Path::new(POOL).join(file);
    let text = std::fs::read_to_string(&path);
    let text = text.with_context(|| format!("{}: no huge pages here", path.display()))?;
    Ok(text.trim().parse()?)
}

fn keep(pages: u64) -> Result<()> {
    std::fs::write(Path::new(POOL).join("nr_hugepages"), pages.to_string())
        .context("this test needs root, to let the host keep huge pages")
}

impl Reserved {
    fn of(memory: MiB) -> Result<Self> {
        let reserved = Self {
            before: number("nr_hugepages")?,
        };
        let wanted = reserved.before + memory.0 / 2;
        keep(wanted)?;
        let kept = number("nr_hugepages")?;
        ensure!(
            kept == wanted,
            "the host keeps {kept} huge pages instead of {wanted}: its memory is too scattered"
        );
        Ok(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // The sweep of the harness would not see pages that stay.
        let _ = keep(self.before);
    }
}

fn spec(name: &str, memory: MiB) -> VmSpec {
    let mut spec = guest::spec(name, &Work::default()).unwrap();
    spec.memory = memory;
    spec.memory_backing = MemoryBacking {
        hugepages: Hugepages::Mib2,
        numa_fit: NumaFit::Required,
    };
    spec
}

/// Huge pages of a process (proc_pid_status(5)).
fn huge(pid: u32) -> MiB {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("HugetlbPages:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    MiB(kib.parse::<u64>().unwrap() >> 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_on_huge_pages_boots_moves_and_gives_them_back() {
    let memory = Work::default().memory;
    // The source's and the target's, both on this host.
    let both = MiB(memory.0 * 2);
    let _reserved = Reserved::of(both).unwrap();
    let free = number("free_hugepages").unwrap();
    let mut scene = Scene::start(ClusterOptions::nodes(2)).await.unwrap();
    scene.boot_as(spec("huge", memory), 0).await.unwrap();
    let (view, _) = scene.whereabouts("huge").await.unwrap();
    assert_eq!(huge(view.pid.unwrap()), memory);

    // There are not enough for another one, and it is told before QEMU fails.
    let large = spec("large", both);
    let api = scene.cluster.api.clone();
    let why = match api.create(large, true, Some(scene.cluster.name(0))).await {
        Err(refused) => format!("{refused:?}"),
        Ok(task) => format!("{:?}", api.ended(task.id, SETTLE).await.unwrap().problem),
    };
    assert!(why.contains("huge pages"), "{why}");

    scene.move_to("huge", 1).await.unwrap();
    let (view, _) = scene.whereabouts("huge").await.unwrap();
    assert_eq!(huge(view.pid.unwrap()), memory);
    api.done("huge", LifecycleCommand::Stop, SETTLE)
        .await
        .unwrap();
    wait::until("the pages back", SETTLE, || async {
        Ok((number("free_hugepages")? == free).then_some(()))
    })
    .await
    .unwrap();
}
