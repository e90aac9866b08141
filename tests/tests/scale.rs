//! `scripts/bench-scale` on a small cluster: every part of it still ends, and
//! tells every figure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use godwit_tests::harness::programs;
use serde_json::Value;
use tokio::process::Command;

const SMALL: &str = "--json --nodes 20 --vms 60 --events 20 --watchers 5 --rest 1 --restarts 1";
/// It takes three seconds.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn twenty_simulated_nodes_join_run_vms_and_outlive_the_coordinator() {
    let program = programs::find("godwit-bench-scale").unwrap();
    let mut command = Command::new(program);
    let command = command.args(SMALL.split(' ')).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await;
    let output = output.expect("the benchmark ends").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");

    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let figure = |key: &str| {
        let value = found[key].as_f64();
        value.unwrap_or_else(|| panic!("no {key}: {found}"))
    };
    assert!((figure("nodes"), figure("vms")) == (20.0, 60.0), "{found}");
    for key in ["rss_mib", "restart_ready_s", "event_fanout_p99_ms"] {
        assert!(figure(key) > 0.0, "{key}: {found}");
    }
    assert!(figure("cpu_cores_at_rest") < 0.5, "{found}");
}
