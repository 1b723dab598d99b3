//! The configurations that are given away: the commented example and the ConfigMap.

use super::*;

/// The commented example is the reference set-up, and good.
#[test]
fn the_example_says_what_the_reference_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/probe.yaml");
    let config = load(&file).unwrap();
    let service = &config.services()[0];
    assert_eq!(service.name(), "sense");
    let endpoints: Vec<_> = service
        .endpoints()
        .iter()
        .map(|e| {
            (
                e.name(),
                e.tier(),
                e.address().to_string(),
                e.listeners().len(),
            )
        })
        .collect();
    assert_eq!(
        endpoints,
        [
            ("sen2", 0, "react2.domain.com:8079".to_owned(), 1),
            ("sen1", 1, "react1.domain.com:8079".to_owned(), 1),
        ]
    );
    assert_eq!(
        service.check().to_string(),
        "GET /status, status 200, body `version`, fresh connection every 25, every 10ms, timeout \
         100ms, rise 2, fall 3"
    );
    assert_eq!(http(&config).reach().port(), Some(8079));
    assert_eq!(http(&config).host(), Some("react.domain.com"));
    assert!(service.sentinel());
    assert_eq!(service.observe(), Observe::Trigger);
    // What it calls defaults are the defaults.
    let bare = parse(
        "interfaces: {edge: [a]}\nservices: [{name: a, listeners: ['10.0.0.1:80'], endpoints: \
         [{name: b, address: '10.0.0.2:80'}], check: {http: {}}}]",
    )
    .unwrap();
    for same in [
        format!("{:?}", config.datapath()) == format!("{:?}", bare.datapath()),
        config.socket() == bare.socket(),
        config.metrics() == bare.metrics(),
        config.page() == bare.page(),
        config.resolve_every() == bare.resolve_every(),
    ] {
        assert!(same);
    }
}

/// The ConfigMap of the DaemonSet holds a good configuration.
#[test]
fn the_configmap_is_good() {
    let manifest = include_str!("../../../../deploy/daemonset.yaml");
    let (_, after) = manifest.split_once("probe.yaml: |\n").unwrap();
    let (block, _) = after.split_once("\n---").unwrap();
    let config = parse(block).unwrap();
    assert_eq!(config.services()[0].name(), "sense");
    assert!(config.metrics().is_some(), "its probes ask /healthz");
}

/// What the example shows of checks is good too.
#[test]
fn the_examples_of_checks_are_good() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let text = include_str!("../../../../deploy/probe.yaml");
    let mut examples: Vec<String> = Vec::new();
    for line in text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("#| "))
    {
        if line.starts_with("check") {
            examples.push(String::new());
        }
        let example = examples.last_mut().expect("it begins with check");
        *example += &format!("  {line}\n");
    }
    assert_eq!(examples.len(), 10);
    let shown: Vec<_> = examples
        .iter()
        .map(|example| {
            let folder = folder.path().display().to_string();
            let config = with_check(&example.replace("/etc/probe", &folder)).unwrap();
            config.services()[0].check().to_string()
        })
        .collect();
    assert_eq!(
        shown,
        [
            "TCP, every 2s, timeout 1s, rise 2, fall 3",
            "GET / over TLS, status 200-399, every 2s, timeout 1s, rise 2, fall 3",
            "POST /rpc at 10.0.0.9, status 200-299, 404 but 204, header x-ready, header x-role: \
             `primary`, no header x-maintenance, body `version`, body without regex `(?i)error`, \
             fresh connection every 20, every 100ms, timeout 1s, rise 2, fall 3",
            "script of 6 steps, every 2s, timeout 1s, rise 2, fall 3",
            "Redis over TLS, role master, fresh connection every 100, every 2s, timeout 1s, rise 2, \
             fall 3",
            "PostgreSQL as probe, role primary, fresh connection every 600, every 100ms, timeout \
             1s, rise 2, fall 3",
            "gRPC over TLS, service chat.Chat, every 2s, timeout 1s, rise 2, fall 3",
            r"UDP `\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01`, expects regex `^\x00\x01`, every 2s, timeout 1s, rise 2, fall 3",
            "command /usr/local/bin/is-fit, every 5s, timeout 3s, rise 2, fall 3",
            "all of GET /status, status 200-399, fresh connection every 25; TCP, every 10ms, \
             timeout 100ms, rise 2, fall 3",
        ]
    );
}
