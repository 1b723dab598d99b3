//! What is written means what the documentation says, and so do defaults.

use super::*;
use crate::datapath::{Limits, OwnMode};

#[test]
fn the_good_one_is_good() {
    let config = parse(GOOD).unwrap();
    let service = &config.services()[0];
    assert_eq!(service.endpoints()[1].tier(), 1);
    assert_eq!(service.check().inter().as_millis(), 10);
    assert_eq!(service.all_down(), AllDown::Keep);
    assert_eq!(service.on_marked_down(), Connections::Reset);
    assert_eq!(service.on_failback(), Connections::Keep);
    assert_eq!(config.socket(), Path::new(DEFAULT_SOCKET));
    assert_eq!(config.metrics(), Some("127.0.0.1:9377".parse().unwrap()));
    assert_eq!(config.page(), None);
    assert_eq!(
        service.endpoints()[1].address(),
        &Address::Name {
            host: "react1.domain.com".to_owned(),
            port: 8079
        }
    );
}

#[test]
fn processes_of_the_node_are_clients_where_that_is_to_be_had() {
    let parsed = |interfaces: &str| {
        let config = parse(&GOOD.replace("edge: [\"veth*\"]", interfaces)).unwrap();
        (config.node(), config.datapath().cgroup().to_owned())
    };
    let root = Path::new("/sys/fs/cgroup").to_owned();
    assert_eq!(parsed("edge: [a]"), (OwnMode::Auto, root.clone()));
    assert_eq!(
        parsed("edge: [a]\n  node: off"),
        (OwnMode::Off, root.clone())
    );
    // Nobody else need be a client.
    assert_eq!(parsed("node: on"), (OwnMode::On, root));
    let text = GOOD.replace("services:", "datapath: {cgroup: /run/cgroup}\nservices:");
    let config = parse(&text).unwrap();
    assert_eq!(config.datapath().cgroup(), Path::new("/run/cgroup"));
}

#[test]
fn what_becomes_of_connections_is_what_is_written() {
    let service = |text: &str| {
        let text = GOOD.replace("    failback:", &format!("    {text}\n    failback:"));
        parse(&text).unwrap().services()[0].clone()
    };
    let drain = Connections::Drain(Duration::from_secs(600));
    for (text, expected) in [
        ("reset", Connections::Reset),
        ("keep", Connections::Keep),
        ("{drain: 10m}", drain),
        ("{drain: 0s}", Connections::Reset),
    ] {
        let down = service(&format!("on_marked_down: {text}"));
        assert_eq!(down.on_marked_down(), expected);
        assert_eq!(down.on_failback(), Connections::Keep);
        let back = service(&format!("on_failback: {text}"));
        assert_eq!(back.on_failback(), expected);
        assert_eq!(back.on_marked_down(), Connections::Reset);
    }
    // The older spelling keeps its meaning.
    for (text, expected) in [
        ("", Connections::Keep),
        ("drain: unlimited", Connections::Keep),
        ("drain: 0s", Connections::Reset),
        ("drain: 10m", drain),
    ] {
        assert_eq!(service(text).on_failback(), expected);
    }
}

#[test]
fn timeouts_are_what_is_written() {
    let text = GOOD.replace(
        "services:",
        "datapath: {timeouts: {established: 24h, datagrams: 5s}}\nservices:",
    );
    let expected = Limits {
        established: Duration::from_secs(86_400),
        datagrams: Duration::from_secs(5),
        ..Limits::default()
    };
    assert_eq!(parse(&text).unwrap().datapath().timeouts(), expected);
}

#[test]
fn defaults_are_those_that_the_documentation_names() {
    let text = "interfaces: {uplink: [eth0]}\nservices: [{name: a, listeners: ['10.0.0.1:80'], \
                endpoints: [{name: b, address: '10.0.0.2:80'}], check: {http: {}}}]";
    let config = parse(text).unwrap();
    let check = config.services()[0].check();
    assert_eq!(
        check.to_string(),
        "GET /, status 200-399, every 2s, timeout 1s, rise 2, fall 3"
    );
    assert_eq!(
        config.services()[0].failback(),
        Failback::Auto {
            hold: Duration::from_secs(5),
            max_hold: Duration::from_secs(300)
        }
    );
    assert_eq!(config.resolve_every().as_secs(), 10);
}

#[test]
fn intervals_are_what_is_written_or_inter() {
    let check = |text: &str| {
        let text = GOOD.replace("inter: 10ms", text);
        parse(&text).unwrap().services()[0].check().clone()
    };
    let plain = check("inter: 70ms");
    assert_eq!(plain.fastinter(), Duration::from_millis(70));
    assert_eq!(plain.downinter(), Duration::from_millis(70));
    assert_eq!(plain.spread(), 0);
    let said =
        check("inter: 2s\n      fastinter: 50ms\n      downinter: 5s\n      spread_checks: 20");
    let asked = said.to_string();
    let timing = "every 2s, 50ms in transition, 5s while down, up to 20 % later, timeout 100ms, rise 2, fall 3";
    assert!(asked.ends_with(timing), "{asked}");
}

#[test]
fn signals_have_the_policy_that_is_written() {
    let service = |text: &str| {
        let text = GOOD.replace("failback:", &format!("{text}\n    failback:"));
        let service = parse(&text).unwrap().services()[0].clone();
        (service.sentinel(), service.observe())
    };
    assert_eq!(service(""), (true, Observe::Trigger));
    assert_eq!(service("sentinel: on"), (true, Observe::Trigger));
    assert_eq!(service("sentinel: off"), (false, Observe::Trigger));
    assert_eq!(service("observe: off"), (true, Observe::Off));
    assert_eq!(service("observe: trigger"), (true, Observe::Trigger));
    let down = |error_limit| (true, Observe::MarkDown { error_limit });
    assert_eq!(service("observe: mark-down"), down(10));
    assert_eq!(service("observe: mark-down\n    error_limit: 3"), down(3));
}

#[test]
fn only_connections_are_observed() {
    let config = |observe: &str, listeners: &str, direct: &str| {
        let text = format!(
            "interfaces: {{edge: [a]}}\nservices: [{{name: a, listeners: [{listeners}], observe: \
             {observe}, endpoints: [{{name: b, address: '10.0.0.2:53', listeners: [{direct}]}}], \
             check: {{http: {{}}}}}}]"
        );
        parse(&text).map_err(|fault| fault.to_string())
    };
    let (udp, tcp) = ("'10.96.0.1:53/udp'", "'10.96.0.2:53'");
    assert_eq!(
        config("mark-down", udp, "").unwrap_err(),
        "services[0].observe: `mark-down`: the service has no TCP listener, and only connections \
         are observed; accepted: off, or a TCP listener"
    );
    config("trigger", udp, "").unwrap();
    config("mark-down", udp, tcp).unwrap();
    config("mark-down", &format!("{udp}, {tcp}"), "").unwrap();
}

/// Endpoints as `{tier, weight}`; the message if it is refused.
fn tiers(endpoints: &[&str]) -> Result<Config, String> {
    let endpoints: String = endpoints
        .iter()
        .enumerate()
        .map(|(i, rest)| {
            let at = format!("10.{}.{}.2:80", i / 256, i % 256);
            format!("  - {{name: e{i}, address: '{at}', {rest}}}\n")
        })
        .collect();
    let text = format!(
        "interfaces: {{edge: [a]}}\nservices:\n- name: a\n  listeners: ['10.96.0.1:80']\n  check: \
         {{http: {{}}}}\n  endpoints:\n{endpoints}"
    );
    parse(&text).map_err(|fault| fault.to_string())
}

#[test]
fn endpoints_share_a_tier_by_weights() {
    let config = tiers(&["tier: 0, weight: 256", "tier: 0, weight: 0", "tier: 0", ""]);
    let message = config.unwrap_err();
    assert!(
        message.contains("there is no endpoint in tier 1"),
        "{message}"
    );
    let config = tiers(&[
        "tier: 0, weight: 256",
        "tier: 0, weight: 0",
        "tier: 1",
        "tier: 1",
    ]);
    let config = config.unwrap();
    let of: Vec<_> = config.services()[0]
        .endpoints()
        .iter()
        .map(|e| (e.tier(), e.weight()))
        .collect();
    assert_eq!(of, [(0, 256), (0, 0), (1, 1), (1, 1)]);
    let message = tiers(&["weight: 0", "weight: 0"]).unwrap_err();
    assert_eq!(
        message,
        "services[0].endpoints[*].weight: `0`: no endpoint of the service may have new \
         connections; accepted: a weight above 0 for at least one endpoint"
    );
    let most = probe_ebpf::abi::MAX_TIER;
    tiers(&vec!["tier: 0"; most]).unwrap();
    let message = tiers(&vec!["tier: 0"; most + 1]).unwrap_err();
    assert_eq!(
        message,
        "services[0].endpoints[256].tier: `0`: too many endpoints are in this tier; accepted: at \
         most 256 endpoints in a tier"
    );
    let message = tiers(&[""; 256]).unwrap_err();
    assert!(message.contains("at most 255 tiers"), "{message}");
}

#[test]
fn affinity_has_the_default_of_kubernetes() {
    let affinity = |text: &str| {
        let text = GOOD.replace("failback:", &format!("{text}\n    failback:"));
        parse(&text).unwrap().services()[0].affinity()
    };
    assert_eq!(affinity(""), None);
    assert_eq!(affinity("affinity: {}"), None);
    let hours = |h: u64| Some(Duration::from_secs(h * 3600));
    assert_eq!(affinity("affinity: {client_ip: }"), hours(3));
    assert_eq!(affinity("affinity: {client_ip}"), hours(3));
    assert_eq!(affinity("affinity: {client_ip: 24h}"), hours(24));
}

#[test]
fn services_that_share_need_rings() {
    let service = |s: usize, second: u8| {
        format!(
            "- {{name: s{s}, listeners: ['10.1.{}.{}:80'], check: {{http: {{}}}}, endpoints: \
             [{{name: a, address: 'a{s}:80', tier: 0}}, {{name: b, address: 'b{s}:80', tier: \
             {second}}}]}}\n",
            s / 256,
            s % 256
        )
    };
    let config = |sharing: usize| {
        let all: String = (0..600)
            .map(|s| service(s, u8::from(s >= sharing)))
            .collect();
        parse(&format!("interfaces: {{edge: [a]}}\nservices:\n{all}"))
    };
    config(512).unwrap();
    assert_eq!(
        config(513).unwrap_err().to_string(),
        "services with several endpoints in a tier: `513`: more than the kernel's tables hold, \
         512; accepted: at most 512"
    );
}

#[test]
fn status_sets_and_bodies_judge() {
    let text = GOOD
        .replace("status: 200", "status: [200-204, 301]")
        .replace("{contains: version}", r#"{regex: '"version":\s*"\d'}"#);
    let config = parse(&text).unwrap();
    let http = http(&config);
    for (status, good) in [
        (199, false),
        (200, true),
        (204, true),
        (205, false),
        (301, true),
    ] {
        assert_eq!(http.expect().status().contains(status), good, "{status}");
    }
    let body = http.expect().body().unwrap();
    assert!(body.matches(br#"{"version": "7"}"#));
    assert!(body.matches(b"\xff\"version\":\"7"), "not UTF-8");
    assert!(!body.matches(br#"{"version": "x"}"#));
    let contains = BodyMatch::contains(b"a\0b");
    assert!(contains.matches(b"xa\0by"));
    assert!(!contains.matches(b"a"));
}
