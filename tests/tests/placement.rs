//! Three nodes in three zones, one of them tainted: rules hold for real guests,
//! an explanation's advice helps, and a what-if leaves no trace.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Output;

use godwit_shared::api::{Change, SimulationView, VmView};
use godwit_shared::model::{MiB, VmSpec};
use godwit_tests::guest::{self, Work};
use godwit_tests::harness::ClusterOptions;
use godwit_tests::scene::{BOOT, Scene};
use serde_json::{Value, json};

const NODES: [&str; 3] = [
    "labels = { zone = \"a\" }",
    "labels = { zone = \"b\" }",
    "labels = { zone = \"c\" }\ntaints = [\"gpu=a100\"]",
];

fn spec(name: &str, app: &str, placement: Value) -> VmSpec {
    let mut spec = guest::spec(name, &Work::default()).unwrap();
    spec.labels = [("app".to_owned(), app.to_owned())].into();
    spec.placement = serde_json::from_value(placement).unwrap();
    spec
}

/// No two on a host, and evenly over the zones.
fn web(name: &str) -> VmSpec {
    let group = json!({ "app": "web" });
    let apart = json!({ "name": "web-apart", "group": group });
    let even = json!({ "name": "web-even", "group": group, "topology": "zone" });
    let placement = json!({ "anti_affinity": [apart], "topology_spread": [even] });
    spec(name, "web", placement)
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// What of the VMs a what-if could have touched.
async fn picture(scene: &Scene) -> Vec<String> {
    let vms = scene.cluster.api.vms().await.unwrap();
    let told = |vm: &VmView| {
        let VmView {
            name,
            state,
            node,
            epoch,
            desired,
            ..
        } = vm;
        format!("{name} {state} {desired:?} {node:?} {epoch}")
    };
    vms.iter().map(told).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_hold_advice_helps_and_a_what_if_leaves_no_trace() {
    let options = ClusterOptions {
        node_settings: NODES.map(str::to_owned).to_vec(),
        ..ClusterOptions::nodes(3).memory(&[MiB(1024); 3])
    };
    let mut scene = Scene::start(options).await.unwrap();
    let near = json!({ "affinity": [{ "name": "near-web", "vm": "web-1", "topology": "zone" }] });
    let guests = [web("web-1"), web("web-2"), spec("cache", "cache", near)];
    let guests = guests.map(|spec| (spec, None)).to_vec();
    scene.boot_all(guests).await.unwrap();
    let at = async |scene: &Scene, name: &str| scene.whereabouts(name).await.unwrap().1;
    let first = at(&scene, "web-1").await;
    let second = at(&scene, "web-2").await;
    assert_ne!(first, second, "two of the group on one host");
    assert!(first < 2 && second < 2, "a taint that nobody tolerates");
    assert_eq!(at(&scene, "cache").await, first);

    third_is_refused_and_advised(&mut scene).await;
    marks_change_where_vms_go(&scene).await;
    what_if(&scene, first).await;
}

/// Two nodes have one of the group, and the third is tainted.
async fn third_is_refused_and_advised(scene: &mut Scene) {
    let cluster = &scene.cluster;
    let mut third = web("web-3");
    let document = serde_json::to_string(&third).unwrap();
    let place = ["vm", "place", "-f", "-", "--explain"];
    let told = cluster.godwit_typed(&place, &document).await.unwrap();
    assert_eq!(told.status.code(), Some(1), "{}", text(&told));
    for words in ["web-apart", "node-3 fits tolerating the taint gpu=a100"] {
        assert!(text(&told).contains(words), "{words}: {}", text(&told));
    }
    let view = cluster.api.place(third.clone()).await.unwrap();
    let verdict = view.nodes.iter().find(|v| v.node == cluster.name(2));
    let [Change::Tolerate { taint }] = &verdict.unwrap().changes[..] else {
        panic!("{verdict:?}");
    };
    // The advice, as an operator follows it.
    third.placement.tolerations = serde_json::from_value(json!([
        { "key": taint.key, "value": taint.value }
    ]))
    .unwrap();
    let document = serde_json::to_string(&third).unwrap();
    let create = ["vm", "create", "-f", "-", "--start"];
    let made = cluster.godwit_typed(&create, &document).await.unwrap();
    assert!(made.status.success(), "{}", text(&made));
    let shown = cluster.godwit(&["vm", "show", "web-3"]).await.unwrap();
    assert!(
        text(&shown).contains("best of 1 node that fitted"),
        "{}",
        text(&shown)
    );
    let view = cluster.api.vm("web-3").await.unwrap();
    assert_eq!(view.node, Some(cluster.name(2)));
    assert_eq!(view.decision.unwrap().refused, Some(2));
    let log = cluster.nodes[2].serial_log(view.id);
    godwit_tests::wait::until("the guest's word", BOOT, || async {
        Ok(std::fs::read_to_string(&log)?
            .contains("count ")
            .then_some(()))
    })
    .await
    .unwrap();
}

/// A taint at run time keeps VMs away; one of the settings is changed there.
async fn marks_change_where_vms_go(scene: &Scene) {
    let cluster = &scene.cluster;
    let run = async |args: &[&str]| cluster.godwit(args).await.unwrap();
    let small = spec("small", "small", json!({}));
    let before = cluster
        .api
        .place(small.clone())
        .await
        .unwrap()
        .node
        .unwrap();
    let marked = run(&["node", "taint", before.as_str(), "busy"]).await;
    assert!(marked.status.success(), "{}", text(&marked));
    let after = cluster
        .api
        .place(small.clone())
        .await
        .unwrap()
        .node
        .unwrap();
    assert_ne!(after, before);
    let unmarked = run(&["node", "untaint", before.as_str(), "busy"]).await;
    assert!(unmarked.status.success(), "{}", text(&unmarked));
    let again = cluster.api.place(small).await.unwrap().node;
    assert_eq!(again, Some(before));
    let settings = run(&["node", "untaint", "node-3", "gpu"]).await;
    assert!(text(&settings).contains("node.toml"), "{}", text(&settings));
}

/// A node is lost and another one added.
async fn what_if(scene: &Scene, lost: usize) {
    let cluster = &scene.cluster;
    let before = (
        picture(scene).await,
        cluster.api.cluster().await.unwrap().last_event,
    );
    let (lost, kept) = (cluster.name(lost), cluster.name(1 - lost));
    let like = format!("{kept}=1");
    let args = [
        "placement",
        "simulate",
        "--lose",
        lost.as_str(),
        "--add-like",
        &like,
    ];
    let rest = ["--room-for", "1,128MiB", "-o", "json"];
    let told = cluster
        .godwit(&[&args[..], &rest[..]].concat())
        .await
        .unwrap();
    let view: SimulationView = serde_json::from_slice(&told.stdout).unwrap();
    let web = view
        .placed
        .iter()
        .find(|placed| placed.vm.as_str() == "web-1");
    let web = web.unwrap_or_else(|| panic!("{view:?}"));
    assert_eq!(web.node.as_str(), format!("{kept}-like-1"));
    assert_eq!(web.from.as_ref(), Some(&lost));
    assert_eq!(view.placed.len() + view.unplaced.len(), 2, "{view:?}");
    assert!(view.more > Some(0), "{view:?}");
    // Without the new node the group has no host of its own left.
    let told = cluster.godwit(&args[..4]).await.unwrap();
    assert_eq!(told.status.code(), Some(1), "{}", text(&told));
    assert!(text(&told).contains("web-apart"), "{}", text(&told));
    let after = (
        picture(scene).await,
        cluster.api.cluster().await.unwrap().last_event,
    );
    assert_eq!(before, after, "a what-if left a trace");
    let profiles = cluster.godwit(&["placement", "profiles"]).await.unwrap();
    assert!(text(&profiles).contains("(default)"), "{}", text(&profiles));
}
