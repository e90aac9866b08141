#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;

fn read(text: &str) -> Result<NodeConfig, Problem> {
    NodeConfig::check(
        godwit_shared::config::parse(text, "node.toml")?,
        Overrides::default(),
    )
}

#[test]
fn nothing_has_to_be_set() {
    let config = read("").unwrap();
    assert_eq!(config.listen, "0.0.0.0:7441".parse().unwrap());
    assert_eq!(config.state_dir, Path::new(DEFAULT_STATE_DIR));
    assert_eq!(config.name, None);
    assert!(config.coordinator.is_empty());
    assert_eq!(
        config.transport().idle_timeout,
        TransportOptions::default().idle_timeout
    );
}

#[test]
fn the_annotated_example_says_what_it_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/node.toml");
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(
        read(&text).unwrap(),
        read("").unwrap(),
        "all is commented out, or a default"
    );
    // Every commented-out setting, uncommented, is right too.
    let settings: String = text
        .lines()
        .filter_map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(' ') || rest.is_empty() => None,
            Some(setting) => Some(format!("{setting}\n")),
            None => Some(format!("{line}\n")),
        })
        .collect();
    let config = read(&settings).unwrap();
    assert!(config.name.is_some() && config.address.is_some());
    assert!(!config.coordinator.is_empty() && !config.labels.is_empty());
    assert!(config.capacity.vcpus.is_some() && config.capacity.memory.is_some());
    assert_eq!(config.emulators.len(), 3);
    let placement = &config.placement;
    assert_eq!(placement.overcommit.cpu_percent, 400);
    assert!(!placement.taints.is_empty() && placement.storage.is_some());
    assert!(placement.networks.is_some() && !placement.images.is_empty());
}

#[test]
fn flags_win_over_the_file() {
    let raw = godwit_shared::config::parse(
        "listen = \"127.0.0.1:1\"\nname = \"a\"\nlog = \"debug\"",
        "x",
    )
    .unwrap();
    let flags = Overrides {
        listen: Some("127.0.0.1:0".into()),
        name: Some("b".into()),
        ..Overrides::default()
    };
    let config = NodeConfig::check(raw, flags).unwrap();
    assert_eq!(config.listen.port(), 0);
    assert_eq!(config.name.unwrap().as_str(), "b");
    assert_eq!(config.log, "debug");
}

#[test]
fn every_wrong_value_names_field_value_and_remedy() {
    let long = format!("run_dir = \"/{}\"", "x".repeat(58));
    for (text, field, value) in [
        ("name = \"Web\"", "name", "Web"),
        ("listen = \"7441\"", "listen", "7441"),
        ("listen = \"host:7441\"", "listen", "host:7441"),
        ("address = \"a:0\"", "address", "a:0"),
        ("coordinator = []", "coordinator", "[]"),
        ("coordinator = [\"a:1\", \"b\"]", "coordinator[1]", "b"),
        ("labels = { \"a b\" = \"c\" }", "labels", "a b"),
        ("labels = { a = \"\\n\" }", "labels.a", "\n"),
        ("capacity = { vcpus = 0 }", "capacity.vcpus", "0"),
        (
            "capacity = { memory = \"lots\" }",
            "capacity.memory",
            "lots",
        ),
        ("capacity = { memory = -1 }", "capacity.memory", "-1"),
        ("capacity = { memory = 0 }", "capacity.memory", "0"),
        (
            "overcommit = { cpu_percent = 0 }",
            "overcommit.cpu_percent",
            "0",
        ),
        (
            "overcommit = { memory_percent = 1001 }",
            "overcommit.memory_percent",
            "1001",
        ),
        ("taints = [\"a\", \"b:never\"]", "taints[1]", "b:never"),
        ("storage = [{ path = \"srv\" }]", "storage[0].path", "srv"),
        ("networks = [\"a b\"]", "networks[0]", "a b"),
        ("images = [\"srv\"]", "images[0]", "srv"),
        (
            "emulators = { x86_64 = \"qemu\" }",
            "emulators.x86_64",
            "qemu",
        ),
        (
            "liveness = { keep_alive_ms = 500 }",
            "liveness",
            "keep_alive_ms = 500, idle_timeout_ms = 600",
        ),
        ("log = \"godwit=loud\"", "log", "godwit=loud"),
        (&long, "run_dir", &long[11..70]),
    ] {
        let problem = read(text).unwrap_err();
        assert_eq!(problem.field.as_deref(), Some(field), "{text}");
        assert_eq!(problem.value.as_deref(), Some(value), "{text}");
        assert!(problem.remedy.is_some(), "{text}");
        assert!(problem.also.is_empty(), "{text}: {problem:?}");
    }
}

#[test]
fn unknown_settings_get_the_nearest_one() {
    for (text, remedy) in [
        ("lisen = \"a\"", "did you mean `listen`?"),
        ("[capacity]\nvcpu = 1", "did you mean `vcpus`?"),
        ("[overcommit]\ncpu_pct = 1", "did you mean `cpu_percent`?"),
        (
            "[liveness]\nkeepalive_ms = 1",
            "did you mean `keep_alive_ms`?",
        ),
        ("[emulators]\nx86-64 = \"/q\"", "did you mean `x86_64`?"),
    ] {
        let problem = read(text).unwrap_err();
        assert_eq!(problem.code, codes::CONFIG_INVALID);
        assert_eq!(problem.remedy.as_deref(), Some(remedy), "{text}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let problem = read("name = \"A\"\nlisten = \"x\"\nlog = \"a=b=c=d\"").unwrap_err();
    assert_eq!(problem.field.as_deref(), Some("name"));
    let also: Vec<_> = problem
        .also
        .iter()
        .map(|p| p.field.clone().unwrap())
        .collect();
    assert_eq!(also, ["listen", "log"]);
}
