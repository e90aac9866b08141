#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use godwit_coordinator_logic::cluster::RebalanceMode;

use super::*;

fn check(text: &str) -> Result<Config, Problem> {
    Config::check(
        godwit_shared::config::parse(text, "test")?,
        Overrides::default(),
    )
}

#[test]
fn the_annotated_example_is_the_defaults() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/coordinator.toml");
    let example = Config::load(Some(path.as_ref()), Overrides::default()).unwrap();
    assert_eq!(example, check("").unwrap());
}

#[test]
fn every_setting_of_the_example_can_be_uncommented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/coordinator.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let active: Vec<&str> = text
        .lines()
        .map(|line| {
            line.strip_prefix("#")
                .filter(|l| !l.starts_with(' '))
                .unwrap_or(line)
        })
        .collect();
    let config = check(&active.join("\n")).unwrap();
    assert_eq!(
        config.advertise.unwrap().address(7440),
        "control.example.org:7440"
    );
}

#[test]
fn flags_win_over_the_file() {
    let raw = godwit_shared::config::parse("name = 'file'\napi = '127.0.0.1:1'", "t").unwrap();
    let flags = Overrides {
        name: Some("flag".into()),
        ..Overrides::default()
    };
    let config = Config::check(raw, flags).unwrap();
    assert_eq!((config.name.as_str(), config.api.port()), ("flag", 1));
}

#[test]
fn every_wrong_setting_is_named_at_once() {
    let problem = check(
        "name = 'No Name'\nlisten = 'here'\napi = 'localhost:1'\nadvertise = 'a b'\nlog = '=='\n\
         liveness = { keep_alive_ms = 500 }\nplacement = { spread = 5000 }",
    )
    .unwrap_err();
    let all = std::iter::once(&problem).chain(&problem.also);
    let fields: Vec<_> = all.clone().filter_map(|p| p.field.as_deref()).collect();
    let wanted = [
        "name",
        "listen",
        "api",
        "advertise",
        "placement.spread",
        "log",
        "liveness",
    ];
    assert_eq!(fields, wanted);
    assert!(all.clone().all(|p| p.remedy.is_some() && p.value.is_some()));
}

#[test]
fn unknown_settings_are_refused_with_the_nearest() {
    for (text, field, near) in [
        ("lissten = ''", "lissten", "listen"),
        ("[placement]\nmemry = 1", "placement.memry", "memory"),
        (
            "[liveness]\nkeep_alive = 1",
            "liveness.keep_alive",
            "keep_alive_ms",
        ),
    ] {
        let problem = check(text).unwrap_err();
        assert_eq!(problem.code, codes::CONFIG_INVALID);
        assert!(
            field.starts_with(problem.field.as_deref().unwrap()),
            "{problem:?}"
        );
        assert!(problem.remedy.unwrap().contains(near));
    }
}

#[test]
fn advertised_addresses_are_read_in_every_form() {
    for (text, address) in [
        ("control.example.org", "control.example.org:7440"),
        ("control.example.org:1", "control.example.org:1"),
        ("192.0.2.1", "192.0.2.1:7440"),
        ("192.0.2.1:2", "192.0.2.1:2"),
        ("2001:db8::1", "[2001:db8::1]:7440"),
        ("[2001:db8::1]:3", "[2001:db8::1]:3"),
    ] {
        assert_eq!(Advertise::read(text).expect(text).address(7440), address);
    }
    for bad in [
        "",
        ":1",
        "a:",
        "a:0",
        "192.0.2.1:0",
        "a:70000",
        "a b",
        "[::1]",
        "-a",
    ] {
        assert_eq!(Advertise::read(bad), None, "{bad:?}");
    }
}

#[test]
fn rebalancing_is_set_up_and_checked() {
    let text = "[rebalance]\nmode = \"continuous\"\ninterval_s = 60\nthreshold_percent = 8";
    let settings = check(text).unwrap().rebalance;
    assert_eq!(settings.mode, RebalanceMode::Continuous);
    assert_eq!((settings.interval_s, settings.threshold_percent), (60, 8));
    let problem = check("[rebalance]\nthreshold_percent = 0").unwrap_err();
    assert_eq!(
        problem.field.as_deref(),
        Some("rebalance.threshold_percent")
    );
    assert!(check("[rebalance]\nmode = \"always\"").is_err());
}

#[test]
fn a_limit_of_no_migrations_is_refused_by_name() {
    let problem = check("[migrations]\nper_node = 0\nper_link = 0").unwrap_err();
    assert_eq!(problem.field.as_deref(), Some("migrations.per_node"));
    assert_eq!(
        problem.also[0].field.as_deref(),
        Some("migrations.per_link")
    );
    assert!(check("[migrations]\nper_nod = 1").is_err());
    assert_eq!(
        check("[migrations]\ncluster = 2")
            .unwrap()
            .migrations
            .cluster,
        2
    );
}

#[test]
fn etcd_is_reached_with_certificates_or_on_this_host() {
    let etcd = |rest: &str| check(&format!("name = 'berlin'\n[store]\nkind = 'etcd'\n{rest}"));
    let StoreSettings::Etcd(plain) = etcd("endpoints = ['http://127.0.0.1:2379']").unwrap().store
    else {
        panic!("not etcd");
    };
    assert_eq!(
        (plain.prefix.as_str(), &plain.tls),
        ("godwit/berlin/", &None)
    );
    assert_eq!(plain.room, crate::store::Room::ETCD);
    let safe = "endpoints = ['https://a:1', 'https://[::1]:2']\nca = '/a'\ncert = '/b'\nkey = '/c'";
    assert!(etcd(safe).is_ok());
    for (rest, field) in [
        ("", "store.endpoints"),
        (
            "endpoints = ['http://etcd.example:2379']",
            "store.endpoints",
        ),
        ("endpoints = ['https://a:2379']", "store.endpoints"),
        (
            "endpoints = ['http://[::1]:1']\nca = '/a'",
            "store.endpoints",
        ),
        ("endpoints = ['a:2379']", "store.endpoints"),
        ("endpoints = ['https://a']\nca = '/a'", "store.endpoints"),
        (
            "endpoints = ['https://a:1']\nca = '/a'\ncert = '/b'",
            "store.key",
        ),
        (
            "endpoints = ['http://localhost:1']\nprefix = 'x'",
            "store.prefix",
        ),
        (
            "endpoints = ['http://localhost:1']\nlease_ms = 900",
            "store.lease_ms",
        ),
        (
            "endpoints = ['http://localhost:1']\nmax_request_bytes = 9",
            "store.max_request_bytes",
        ),
    ] {
        let problem = etcd(rest).expect_err(rest);
        assert_eq!(problem.field.as_deref(), Some(field), "{rest}");
    }
    let other = check("[store]\nkind = 'zookeeper'").unwrap_err();
    assert_eq!(other.field.as_deref(), Some("store.kind"));
    let unused = check("[store]\nendpoints = ['http://localhost:1']").unwrap_err();
    assert_eq!(unused.field.as_deref(), Some("store.endpoints"));
}
