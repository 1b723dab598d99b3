//! Every bad input and its one message; the reference configuration.

use std::time::Duration;

use super::*;
use crate::datapath::{Limits, OwnMode};

const GOOD: &str = r#"
interfaces:
  edge: ["veth*"]
services:
  - name: sense
    listeners: ["10.96.0.10:8079"]
    endpoints:
      - name: sen2
        address: 10.0.0.2:8079
        listeners: ["10.96.0.12:8079"]
      - name: sen1
        address: react1.domain.com:8079
    check:
      http: {path: /status, expect: {status: 200, body: {contains: version}}}
      inter: 10ms
      timeout: 100ms
      rise: 2
      fall: 3
    failback: {mode: auto, hold: 5s}
"#;

/// Parses, and the schema takes what the parser takes.
fn parse(text: &str) -> Result<Config, Fault> {
    let config = super::parse(text);
    if config.is_ok() {
        schema::tests::takes(text);
    }
    config
}

/// The message for `GOOD` with one piece of it replaced.
fn message(from: &str, to: &str) -> String {
    assert_eq!(GOOD.matches(from).count(), 1, "{from:?} must be there once");
    match parse(&GOOD.replace(from, to)) {
        Ok(_) => panic!("{from:?} -> {to:?} was accepted"),
        Err(fault) => fault.to_string(),
    }
}

/// The only check of the first service, which is by HTTP.
fn http(config: &Config) -> &HttpCheck {
    match config.services()[0].check().each() {
        [each] => match each.kind() {
            Kind::Http(http) => http,
            other => panic!("by {other}"),
        },
        each => panic!("{} checks", each.len()),
    }
}

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

/// Each row: what is replaced, by what, and the whole message.
#[test]
fn each_bad_input_has_its_one_message() {
    let rows: &[(&str, &str, &str)] = &[
        // Shape.
        (
            "rise: 2",
            "rize: 2",
            "services[0].check.rize: `rize: 2`: unknown field `rize` at line 17, column 7; \
             accepted: tcp, http, script, redis, postgres, grpc, udp, exec, inter, fastinter, downinter, spread_checks, in_flight, timeout, rise, fall",
        ),
        (
            "services:",
            "datapath: {tcp: auto}\nservices:",
            "datapath.tcp: `datapath: {tcp: auto}`: unknown field `tcp` at line 4, column 12; \
             accepted: bpffs, tc, xdp, flows, learn, timeouts, source, xdp_send, cgroup, log",
        ),
        (
            "    check:",
            "    slow_start: 30\n    check:",
            "services[0].slow_start: `30`: a duration needs a unit; accepted: a whole number with a unit (ms, s, m, h), from 0s to 24h",
        ),
        (
            "    check:",
            "    agent_check: {port: 0}\n    check:",
            "services[0].agent_check.port: `0`: not a number in range; accepted: a whole number from 1 to 65535",
        ),
        (
            "    check:",
            "    agent_check: {port: 1, inter: 10ms}\n    check:",
            "services[0].agent_check.inter: `10ms`: too short; accepted: a whole number with a unit (ms, s, m, h), from 100ms to 24h",
        ),
        (
            "    check:",
            "    agent_check: {port: 1, address: host}\n    check:",
            "services[0].agent_check.address: `host`: not an IP address; accepted: an IPv4 or IPv6 address",
        ),
        (
            "    check:",
            "    chek:",
            "services[0].chek: `chek:`: unknown field `chek` at line 13, column 5; accepted: name, \
             listeners, endpoints, check, checks, failback, all_down, on_marked_down, on_failback, drain, \
             forward, affinity, sentinel, observe, life_signs, error_limit, single_writer, slow_start, agent_check, mode",
        ),
        (
            "    check:\n      http: {path: /status, expect: {status: 200, body: {contains: version}}}\n      inter: 10ms\n      timeout: 100ms\n      rise: 2\n      fall: 3\n",
            "",
            "services[0]: nothing is checked; accepted: either `check` or `checks`",
        ),
        (
            "[\"veth*\"]",
            "[\"veth*\"",
            "interfaces.edge: `services:`: illegal placement of ':' indicator at line 4, column 9",
        ),
        // Full NAT.
        (
            "    check:",
            "    forward: full-nat\n    check:",
            "services[0].forward: `full-nat`: datapath.source has no IPv4 address, and 10.96.0.10:8079 \
             is IPv4; accepted: a source in every family of the service's listeners, or forward: nat",
        ),
        (
            "services:",
            "datapath: {source: [10.0.0.5, 10.0.0.6]}\nservices:",
            "datapath.source[1]: `10.0.0.6`: a second address of this family; accepted: at most one \
             IPv4 and one IPv6 address of this node that nothing else on it uses",
        ),
        (
            "services:",
            "datapath: {source: 127.0.0.1}\nservices:",
            "datapath.source[0]: `127.0.0.1`: not an address that packets can come back to; accepted: \
             at most one IPv4 and one IPv6 address of this node that nothing else on it uses",
        ),
        (
            "services:",
            "datapath: {source: 10.96.0.10}\nservices:",
            "services[0].listeners[0]: `10.96.0.10:8079`: the address of this listener of service sense \
             is in datapath.source; accepted: an address that is not a source of full NAT",
        ),
        // Durations and counts.
        (
            "inter: 10ms",
            "inter: 0",
            "services[0].check.inter: `0`: too short; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
        ),
        (
            "inter: 10ms",
            "inter: 500us",
            "services[0].check.inter: `500us`: shorter than a millisecond; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
        ),
        (
            "inter: 10ms",
            "inter: 10",
            "services[0].check.inter: `10`: a duration needs a unit; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
        ),
        (
            "inter: 10ms",
            "inter: -1s",
            "services[0].check.inter: `-1s`: not a duration; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
        ),
        (
            "timeout: 100ms",
            "timeout: 0ms",
            "services[0].check.timeout: `0ms`: too short; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
        ),
        (
            "timeout: 100ms",
            "timeout: 99999999999999999999h",
            "services[0].check.timeout: `99999999999999999999h`: not a duration; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
        ),
        (
            "timeout: 100ms",
            "timeout: 25h",
            "services[0].check.timeout: `25h`: too long; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
        ),
        (
            "rise: 2",
            "fastinter: 0ms\n      rise: 2",
            "services[0].check.fastinter: `0ms`: too short; accepted: a whole number with a unit (ms, s, m, h), from 1ms to 24h",
        ),
        (
            "rise: 2",
            "spread_checks: 51\n      rise: 2",
            "services[0].check.spread_checks: `51`: not a number in range; accepted: a whole number from 0 to 50",
        ),
        (
            "rise: 2",
            "rise: 0",
            "services[0].check.rise: `0`: not a number in range; accepted: a whole number from 1 to 1000",
        ),
        (
            "fall: 3",
            "fall: 0",
            "services[0].check.fall: `0`: not a number in range; accepted: a whole number from 1 to 1000",
        ),
        (
            "hold: 5s",
            "hold: soon",
            "services[0].failback.hold: `soon`: not a duration; accepted: a whole number with a unit (ms, s, m, h), from 0s to 24h",
        ),
        (
            "hold: 5s",
            "hold: 5s, max_hold: 4999ms",
            "services[0].failback.max_hold: `4999ms`: less than `hold`, which is 5s; accepted: at least as long as `hold`; as long as it, fail-backs never wait longer",
        ),
        (
            "mode: auto, hold: 5s",
            "mode: manual, max_hold: 5m",
            "services[0].failback.max_hold: `5m`: a manual fail-back has no hold time; accepted: no `max_hold`, or mode: auto",
        ),
        (
            "mode: auto, hold",
            "mode: manual, hold",
            "services[0].failback.hold: `5s`: a manual fail-back has no hold time; accepted: no `hold`, or mode: auto",
        ),
        (
            "mode: auto",
            "mode: never",
            "services[0].failback.mode: `never`: not known; accepted: auto, manual",
        ),
        // Listeners.
        (
            "\"10.96.0.10:8079\"",
            "\"10.96.0.10:8079\", \"10.96.0.10:8079\"",
            "services[0].listeners[1]: `10.96.0.10:8079`: already a listener of service sense (services[0].listeners[0]); accepted: each VIP:port once",
        ),
        (
            "10.96.0.12:8079",
            "10.96.0.10:8079",
            "services[0].endpoints[0].listeners[0]: `10.96.0.10:8079`: already a listener of service sense (services[0].listeners[0]); accepted: each VIP:port once",
        ),
        (
            "\"10.96.0.12:8079\"",
            "\"10.96.0.12:8079\", \"10.96.0.12:8079\"",
            "services[0].endpoints[0].listeners[1]: `10.96.0.12:8079`: already a listener of endpoint sense/sen2 (services[0].endpoints[0].listeners[0]); accepted: each VIP:port once",
        ),
        (
            "10.96.0.10:8079",
            "10.0.0.2:8079",
            "services[0].listeners[0]: `10.0.0.2:8079`: is the own address of endpoint sense/sen2: what is sent to it would be steered in a circle; accepted: a VIP:port at which no endpoint listens",
        ),
        (
            "10.96.0.10:8079",
            "10.96.0.10",
            "services[0].listeners[0]: `10.96.0.10`: a listener needs a port; accepted: ADDRESS:PORT as 10.96.0.10:8079 or [fd00:96::10]:8079, port 1 to 65535, with /udp behind it for datagrams",
        ),
        (
            "10.96.0.10:8079",
            "10.96.0.10:0",
            "services[0].listeners[0]: `10.96.0.10:0`: port 0; accepted: ADDRESS:PORT as 10.96.0.10:8079 or [fd00:96::10]:8079, port 1 to 65535",
        ),
        (
            "10.96.0.10:8079",
            "vip.domain.com:8079",
            "services[0].listeners[0]: `vip.domain.com:8079`: not an address with a port; accepted: ADDRESS:PORT as 10.96.0.10:8079 or [fd00:96::10]:8079, port 1 to 65535, with /udp behind it for datagrams",
        ),
        (
            "10.96.0.10:8079",
            "0.0.0.0:8079",
            "services[0].listeners[0]: `0.0.0.0:8079`: the unspecified address is nobody's: clients connect to one address; accepted: a unicast address",
        ),
        (
            "10.96.0.10:8079",
            "[::]:8079",
            "services[0].listeners[0]: `[::]:8079`: the unspecified address is nobody's: clients connect to one address; accepted: a unicast address",
        ),
        (
            "10.96.0.10:8079",
            "[ff02::1]:8079",
            "services[0].listeners[0]: `[ff02::1]:8079`: TCP has no multicast; accepted: a unicast address",
        ),
        (
            "10.96.0.10:8079",
            "224.0.0.1:8079",
            "services[0].listeners[0]: `224.0.0.1:8079`: TCP has no multicast; accepted: a unicast address",
        ),
        (
            "10.96.0.10:8079",
            "127.0.0.2:8079",
            "services[0].listeners[0]: `127.0.0.2:8079`: loopback packets never cross an interface that is managed; accepted: a unicast address",
        ),
        (
            "10.96.0.10:8079",
            "255.255.255.255:8079",
            "services[0].listeners[0]: `255.255.255.255:8079`: TCP has no broadcast; accepted: a unicast address",
        ),
        (
            "10.96.0.10:8079",
            "[fe80::1]:8079",
            "services[0].listeners[0]: `[fe80::1]:8079`: a link-local address means something else on every link; accepted: a unicast address",
        ),
        (
            "10.96.0.10:8079",
            "[::ffff:10.96.0.10]:8079",
            "services[0].listeners[0]: `[::ffff:10.96.0.10]:8079`: an IPv4-mapped address never is in a packet: write the IPv4 address; accepted: a unicast address",
        ),
        (
            "[\"10.96.0.10:8079\"]",
            "[]",
            "services[0].listeners: nobody could reach the service; accepted: at least one VIP:port",
        ),
        // Endpoints.
        (
            "react1.domain.com:8079",
            "react1.domain.com",
            "services[0].endpoints[1].address: `react1.domain.com`: an endpoint needs a port; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
        ),
        (
            "address: 10.0.0.2:8079",
            "address: 10.0.0.2",
            "services[0].endpoints[0].address: `10.0.0.2`: an endpoint needs a port; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
        ),
        (
            "address: 10.0.0.2:8079",
            "address: \"[fd00::2]\"",
            "services[0].endpoints[0].address: `[fd00::2]`: an endpoint needs a port; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
        ),
        (
            "react1.domain.com:8079",
            "react1.domain.com:0",
            "services[0].endpoints[1].address: `react1.domain.com:0`: port 0; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
        ),
        (
            "react1.domain.com:8079",
            "react1.domain.com:70000",
            "services[0].endpoints[1].address: `react1.domain.com:70000`: not a port; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
        ),
        (
            "react1.domain.com:8079",
            "re_act!.domain:80",
            "services[0].endpoints[1].address: `re_act!.domain:80`: neither an address nor a DNS name; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
        ),
        (
            "react1.domain.com:8079",
            "10.0.0.256:80",
            "services[0].endpoints[1].address: `10.0.0.256:80`: neither an address nor a DNS name; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
        ),
        (
            "address: 10.0.0.2:8079",
            "address: 127.0.0.1:8079",
            "services[0].endpoints[0].address: `127.0.0.1:8079`: loopback packets never cross an interface that is managed; accepted: a unicast address",
        ),
        (
            "react1.domain.com:8079",
            "10.0.0.2:8079",
            "services[0].endpoints[1].address: `10.0.0.2:8079`: endpoint sen2 has this address; accepted: an address of its own for each endpoint of a service",
        ),
        (
            "address: 10.0.0.2:8079",
            "address: [\"10.0.0.2:8079\", \"10.0.0.3:8079\"]",
            "services[0].endpoints[0].address[1]: `10.0.0.3:8079`: a second address of the same family; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
        ),
        (
            "address: 10.0.0.2:8079",
            "address: [\"10.0.0.2:8079\", \"[fd00::2]:80\"]",
            "services[0].endpoints[0].address[1]: `[fd00::2]:80`: the addresses' ports differ; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
        ),
        (
            "address: 10.0.0.2:8079",
            "address: [\"10.0.0.2:8079\", \"a.b:8079\"]",
            "services[0].endpoints[0].address[1]: `a.b:8079`: a DNS name in a list: a name brings both families by itself; accepted: ADDRESS:PORT, [IPV6]:PORT or NAME:PORT, port 1 to 65535; or a list of one IPv4 and one IPv6 address with equal ports",
        ),
        // Families.
        (
            "\"10.96.0.10:8079\"",
            "\"10.96.0.10:8079\", \"[fd00:96::10]:8079\"",
            "services[0].endpoints[0].address: `10.0.0.2:8079`: no IPv6 address, and the listener [fd00:96::10]:8079 is IPv6; accepted: an address in every family of the service's listeners, as [IPV4:PORT, \"[IPV6]:PORT\"]",
        ),
        (
            "10.96.0.12:8079",
            "[fd00:96::12]:8079",
            "services[0].endpoints[0].address: `10.0.0.2:8079`: no IPv6 address, and the listener [fd00:96::12]:8079 is IPv6; accepted: an address in every family of the service's listeners, as [IPV4:PORT, \"[IPV6]:PORT\"]",
        ),
        // Tiers and names.
        (
            "address: react1.domain.com:8079",
            "address: react1.domain.com:8079\n        tier: 2",
            "services[0].endpoints[1].tier: `2`: there is no endpoint in tier 1; accepted: tiers 0, 1, 2, ... without a gap; an endpoint without `tier` is in that of its place in the list, from 0",
        ),
        (
            "address: react1.domain.com:8079",
            "address: react1.domain.com:8079\n        tier: -1",
            "services[0].endpoints[1].tier: `-1`: not a number in range; accepted: a whole number from 0 to 254",
        ),
        (
            "address: react1.domain.com:8079",
            "address: react1.domain.com:8079\n        weight: 257",
            "services[0].endpoints[1].weight: `257`: not a number in range; accepted: a whole number from 0 to 256",
        ),
        (
            "failback:",
            "affinity: {client_ip: 0s}\n    failback:",
            "services[0].affinity.client_ip: `0s`: too short; accepted: a whole number with a unit (ms, s, m, h), from 1s to 24h",
        ),
        (
            "failback:",
            "affinity: {cookie: a}\n    failback:",
            "services[0].affinity.cookie: `affinity: {cookie: a}`: unknown field `cookie` at line 19, column 16; accepted: client_ip",
        ),
        (
            "name: sen1",
            "name: sen2",
            "services[0].endpoints[1].name: `sen2`: another endpoint of the service has this name; accepted: a name that is unique within the service",
        ),
        (
            "name: sense",
            "name: \"\"",
            "services[0].name: ``: empty name; accepted: 1 to 63 of a-z A-Z 0-9 . _ - that begin with a letter or digit",
        ),
        (
            "name: sense",
            "name: a/b",
            "services[0].name: `a/b`: '/' in a name; accepted: 1 to 63 of a-z A-Z 0-9 . _ - that begin with a letter or digit",
        ),
        (
            "name: sense",
            "name: \"-a\"",
            "services[0].name: `-a`: a name begins with a letter or digit; accepted: 1 to 63 of a-z A-Z 0-9 . _ - that begin with a letter or digit",
        ),
        (
            "name: sen1",
            "name: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "services[0].endpoints[1].name: `aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa`: name of 64 bytes; accepted: 1 to 63 of a-z A-Z 0-9 . _ - that begin with a letter or digit",
        ),
        // The check.
        (
            "{contains: version}",
            "{regex: \"(\"}",
            "services[0].check.http.expect.body.regex: `(`: invalid regex: unclosed group; accepted: a regular expression without look-around and back-references",
        ),
        (
            "{contains: version}",
            "{contains: a, regex: b}",
            "services[0].check.http.expect.body: both `contains` and `regex` are given; accepted: one of `contains: TEXT`, `hex: BYTES` and `regex: EXPRESSION`",
        ),
        (
            "{contains: version}",
            "{contains: \"\"}",
            "services[0].check.http.expect.body.contains: ``: every body contains the empty text; accepted: the text to look for",
        ),
        (
            "status: 200",
            "status: 20",
            "services[0].check.http.expect.status: `20`: not a status; accepted: a status as 200, a range as 200-299, several as 200-299,404, or a list of these; 100 to 599",
        ),
        (
            "status: 200",
            "status: [200, 299-200]",
            "services[0].check.http.expect.status[1]: `299-200`: the range is empty; accepted: a status as 200, a range as 200-299, several as 200-299,404, or a list of these; 100 to 599",
        ),
        (
            "path: /status",
            "path: status",
            "services[0].check.http.path: `status`: not a request path; accepted: / and visible ASCII characters without blanks, others percent-encoded",
        ),
        (
            "path: /status",
            "path: \"/a\\r\\nX: y\"",
            "services[0].check.http.path: `/a\r\nX: y`: not a request path; accepted: / and visible ASCII characters without blanks, others percent-encoded",
        ),
        (
            "path: /status",
            "method: HEAD",
            "services[0].check.http.method: `HEAD`: an answer to HEAD has no body, and `expect` says something of one; accepted: GET, or no body in `expect`",
        ),
        (
            "path: /status",
            "method: PATCH",
            "services[0].check.http.method: `PATCH`: not known; accepted: GET, HEAD, OPTIONS, POST, PUT",
        ),
        (
            "path: /status",
            "host: \"a b\"",
            "services[0].check.http.host: `a b`: not a Host header; accepted: a host name or address, with a port if need be",
        ),
        (
            "path: /status",
            "port: 0",
            "services[0].check.http.port: `0`: not a number in range; accepted: a whole number from 1 to 65535",
        ),
        // The rest.
        (
            "\"veth*\"",
            "\"veth[0-9]\"",
            "interfaces.edge[0]: `veth[0-9]`: only * and ? are special; accepted: an interface name of 1 to 15 bytes; * stands for any text, ? for one character",
        ),
        (
            "edge: [\"veth*\"]",
            "edge: []",
            "interfaces: no interface is named, so nothing would be steered; accepted: edge: [PATTERN, ...] for pods' links, uplink: [NAME, ...] for outside clients, node: on for processes of the node itself",
        ),
        (
            "edge: [\"veth*\"]",
            "edge: [eth0]\n  uplink: [eth0]",
            "interfaces.uplink[0]: `eth0`: is an edge too; accepted: each interface either as edge or as uplink",
        ),
        (
            "edge: [\"veth*\"]",
            "node: yes",
            "interfaces.node: `yes`: not known; accepted: auto, on, off",
        ),
        (
            "services:",
            "datapath: {cgroup: cgroup}\nservices:",
            "datapath.cgroup: `cgroup`: not an absolute path; accepted: an absolute path as /sys/fs/cgroup",
        ),
        (
            "services:",
            "datapath: {tc: fast}\nservices:",
            "datapath.tc: `fast`: not known; accepted: auto, tcx, clsact",
        ),
        (
            "services:",
            "datapath: {flows: 0}\nservices:",
            "datapath.flows: `0`: not a number in range; accepted: a whole number from 1024 to 16777216",
        ),
        (
            "services:",
            "datapath: {timeouts: {opening: 999ms}}\nservices:",
            "datapath.timeouts.opening: `999ms`: too short; accepted: a whole number with a unit (ms, s, m, h), from 1s to 24h",
        ),
        (
            "services:",
            "datapath: {timeouts: {datagrams_answered: 2d}}\nservices:",
            "datapath.timeouts.datagrams_answered: `2d`: not a duration; accepted: a whole number with a unit (ms, s, m, h), from 1s to 24h",
        ),
        (
            "services:",
            "datapath: {timeouts: {idle: 1m}}\nservices:",
            "datapath.timeouts.idle: `datapath: {timeouts: {idle: 1m}}`: unknown field `idle` at line 4, column 23; accepted: opening, established, closing, datagrams, datagrams_answered",
        ),
        (
            "    failback:",
            "    drain: never\n    failback:",
            "services[0].drain: `never`: not a duration; accepted: unlimited, or a whole number with a unit (ms, s, m, h), from 0s to 24h",
        ),
        (
            "services:",
            "control: {state: orders}\nservices:",
            "control.state: `orders`: not an absolute path; accepted: an absolute path as /var/lib/probe",
        ),
        (
            "services:",
            "control: {group: ''}\nservices:",
            "control.group: ``: names nobody; accepted: a group's name or number",
        ),
        (
            "services:",
            "control: {socket: probe.sock}\nservices:",
            "control.socket: `probe.sock`: not an absolute path; accepted: an absolute path as /run/probe/probe.sock",
        ),
        (
            "services:",
            "metrics: {listen: \"9377\"}\nservices:",
            "metrics.listen: `9377`: not an address with a port; accepted: ADDRESS:PORT as 127.0.0.1:9377 or [::]:9377, or off",
        ),
        (
            "services:",
            "page: {listen: localhost:9378}\nservices:",
            "page.listen: `localhost:9378`: not an address with a port; accepted: ADDRESS:PORT as 127.0.0.1:9378 or [::1]:9378, or off",
        ),
        (
            "services:",
            "resolve: {every: 10ms}\nservices:",
            "resolve.every: `10ms`: too short; accepted: a whole number with a unit (ms, s, m, h), from 100ms to 24h",
        ),
        (
            "    failback:",
            "    all_down: drop\n    failback:",
            "services[0].all_down: `drop`: not known; accepted: keep, refuse",
        ),
        (
            "    failback:",
            "    on_marked_down: drain\n    failback:",
            "services[0].on_marked_down: `drain`: not known; accepted: reset, keep, {drain: TIME}",
        ),
        (
            "    failback:",
            "    on_marked_down: {drain: 10}\n    failback:",
            "services[0].on_marked_down.drain: `10`: a duration needs a unit; accepted: a whole number with a unit (ms, s, m, h), from 0s to 24h",
        ),
        (
            "    failback:",
            "    on_failback: {drian: 10s}\n    failback:",
            "services[0].on_failback.drian: `on_failback: {drian: 10s}`: unknown field `drian` at line 19, column 19; accepted: drain",
        ),
        (
            "    failback:",
            "    on_failback: unlimited\n    failback:",
            "services[0].on_failback: `unlimited`: not known; accepted: reset, keep, {drain: TIME}",
        ),
        (
            "    failback:",
            "    on_failback: reset\n    drain: 10s\n    failback:",
            "services[0].drain: `10s`: says the same as `on_failback`, which is there too; accepted: no `drain`",
        ),
        (
            "services:",
            "suspect_self: yes\nservices:",
            "suspect_self: `yes`: not known; accepted: on, off",
        ),
        (
            "services:",
            "checking: {realtime: yes}\nservices:",
            "checking.realtime: `yes`: not known; accepted: auto, on, off",
        ),
        (
            "services:",
            "checking: {per_second: 0}\nservices:",
            "checking.per_second: `0`: not a number in range; accepted: a whole number from 1 to 4294967295",
        ),
        // Signals.
        (
            "    failback:",
            "    sentinel: yes\n    failback:",
            "services[0].sentinel: `yes`: not known; accepted: on, off",
        ),
        (
            "    failback:",
            "    observe: layer4\n    failback:",
            "services[0].observe: `layer4`: not known; accepted: off, trigger, mark-down",
        ),
        (
            "    failback:",
            "    observe: mark-down\n    error_limit: 0\n    failback:",
            "services[0].error_limit: `0`: not a number in range; accepted: a whole number from 1 to 1000",
        ),
        (
            "    failback:",
            "    observe: mark-down\n    error_limit: ten\n    failback:",
            "services[0].error_limit: `ten`: not a number in range; accepted: a whole number from 1 to 1000",
        ),
        (
            "    failback:",
            "    error_limit: 5\n    failback:",
            "services[0].error_limit: `5`: observe: trigger counts no errors; accepted: no `error_limit`, or observe: mark-down",
        ),
        (
            "    failback:",
            "    observe: off\n    error_limit: 5\n    failback:",
            "services[0].error_limit: `5`: observe: off counts no errors; accepted: no `error_limit`, or observe: mark-down",
        ),
    ];
    let wrong: Vec<_> = rows
        .iter()
        .map(|(from, to, expected)| (message(from, to), *expected))
        .filter(|(message, expected)| message != expected)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn listeners_may_not_overlap_across_services() {
    let second = GOOD.split_once("services:\n").unwrap().1;
    let both = |second: &str| parse(&format!("{GOOD}{second}")).unwrap_err().to_string();
    let renamed = second.replace("name: sense", "name: other");
    assert_eq!(
        both(&renamed),
        "services[1].listeners[0]: `10.96.0.10:8079`: already a listener of service sense \
         (services[0].listeners[0]); accepted: each VIP:port once"
    );
    // One service's VIP is another service's endpoint.
    let circle = renamed
        .replace("10.96.0.10:8079", "10.96.0.20:8079")
        .replace("10.96.0.12:8079", "10.0.0.2:8079")
        .replace("address: 10.0.0.2:8079", "address: 10.0.0.9:8079");
    assert!(both(&circle).contains("own address of endpoint sense/sen2"));
    assert_eq!(
        both(second),
        "services[1].name: `sense`: another service has this name; accepted: a unique name"
    );
}

#[test]
fn other_shapes_of_nothing_are_refused() {
    for text in ["", "---\n", "[]", "services: 1", "a: b\n---\nc: d"] {
        parse(text).unwrap_err();
    }
    let none = "interfaces: {edge: [a]}\nservices: []";
    assert_eq!(
        parse(none).unwrap_err().to_string(),
        "services: there is nothing to steer; accepted: at least one service"
    );
}

#[test]
fn an_error_names_the_file() {
    let missing = load(Path::new("/nonexistent/probe.yaml")).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("/nonexistent/probe.yaml: cannot read the configuration: No such file"),
        "{missing}"
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("probe.yaml");
    std::fs::write(&file, GOOD.replace("fall: 3", "fall: 0")).unwrap();
    assert_eq!(
        load(&file).unwrap_err().to_string(),
        format!(
            "{}: services[0].check.fall: `0`: not a number in range; accepted: a whole number \
             from 1 to 1000",
            file.display()
        )
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
    let manifest = include_str!("../../../deploy/daemonset.yaml");
    let (_, after) = manifest.split_once("probe.yaml: |\n").unwrap();
    let (block, _) = after.split_once("\n---").unwrap();
    let config = parse(block).unwrap();
    assert_eq!(config.services()[0].name(), "sense");
    assert!(config.metrics().is_some(), "its probes ask /healthz");
}

/// A service with this check, or these checks.
fn with_check(check: &str) -> Result<Config, String> {
    let text = format!(
        "interfaces: {{edge: [a]}}\nservices:\n- name: a\n  listeners: ['10.0.0.1:80']\n  \
         endpoints: [{{name: b, address: '10.0.0.2:80'}}]\n{check}"
    );
    parse(&text).map_err(|fault| fault.to_string())
}

/// The message about a check by HTTP, without what it is about.
fn about_http(http: &str) -> String {
    let message = with_check(&format!("  check: {{http: {http}}}")).unwrap_err();
    let rest = message.strip_prefix("services[0].check.http");
    rest.unwrap_or(&message).to_owned()
}

/// A CA, and a key with its certificate, as files.
fn pki(folder: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(["a".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    for (name, text) in [
        ("ca.pem", made.pem()),
        ("client.pem", made.pem()),
        ("client.key", key.serialize_pem()),
        (
            "other.key",
            rcgen::KeyPair::generate().unwrap().serialize_pem(),
        ),
        ("none.pem", "nothing\n".to_owned()),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

/// What the example shows of checks is good too.
#[test]
fn the_examples_of_checks_are_good() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let text = include_str!("../../../deploy/probe.yaml");
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

#[test]
fn a_check_is_of_one_kind_or_several_of_one_each() {
    for (check, message) in [
        (
            "  check: {inter: 1s}",
            "services[0].check: what is checked is not said; accepted: one of tcp, http, script, redis, \
             postgres, grpc, udp, exec",
        ),
        (
            "  check: {tcp: , http: }",
            "services[0].check: two kinds of check; accepted: one of tcp, http, script, redis, \
             postgres, grpc, udp, exec; for several see \
             `checks`",
        ),
        (
            "  check: {tcp: }\n  checks: {all: [{tcp: }]}",
            "services[0]: both `check` and `checks` are given; accepted: either `check` or `checks`",
        ),
        (
            "  checks: {inter: 1s}",
            "services[0].checks: nothing is checked; accepted: either `all` or `any`, with a list \
             of checks",
        ),
        (
            "  checks: {all: [{tcp: }], any: [{tcp: }]}",
            "services[0].checks: both `all` and `any` are given; accepted: either `all` or `any`, \
             with a list of checks",
        ),
        (
            "  checks: {any: []}",
            "services[0].checks.any: `0`: not so many checks; accepted: 1 to 16 checks",
        ),
        (
            "  checks: {all: [{tcp: , rise: 3}]}",
            "services[0].checks.all[0].rise: `3`: belongs to all checks of the endpoint, which are \
             made at the same time; accepted: `rise` beside `all` or `any`",
        ),
        (
            "  checks: {all: [{tcp: }, {tcp: {port: 70000}}]}",
            "services[0].checks.all[1].tcp.port: `70000`: not a number in range; accepted: a whole \
             number from 1 to 65535",
        ),
        (
            "  check: {tcp: {address: 0.0.0.0}}",
            "services[0].check.tcp.address: `0.0.0.0`: not an address that one can connect to; \
             accepted: an IP address, without a port",
        ),
        (
            "  check: {tcp: {send_proxy: v3}}",
            "services[0].check.tcp.send_proxy: `v3`: not known; accepted: off, v1, v2",
        ),
    ] {
        assert_eq!(with_check(check).unwrap_err(), message);
    }
    let config = with_check("  checks: {any: [{tcp: , timeout: 3s}, {http: }], timeout: 2s}");
    let config = config.unwrap();
    let check = config.services()[0].check();
    assert_eq!(check.combine(), Combine::Any);
    let timeouts = check.each().iter().map(|each| each.timeout().as_secs());
    assert!(timeouts.eq([3, 2]));
    assert_eq!(check.timeout().as_secs(), 3);
}

#[test]
fn http_checks_that_cannot_be_are_refused() {
    for (http, message) in [
        (
            "{expect: {body: {hex: 0}}}",
            ".expect.body.hex: `0`: not bytes in hexadecimal; accepted: pairs of hexadecimal \
             digits as 00ff or `00 ff`, at least one",
        ),
        (
            "{expect: {body: {hex: 00, contains: a}}}",
            ".expect.body: two things to look for are given; accepted: one of `contains: TEXT`, \
             `hex: BYTES` and `regex: EXPRESSION`",
        ),
        (
            "{expect: {status: 200, not: {status: 100-300}}}",
            ".expect.not.status: `100-300`: no status would be good; accepted: a set that leaves \
             some of `expect.status`",
        ),
        (
            "{expect: {body_replaces_status: on}}",
            ".expect.body_replaces_status: `on`: the body is to be judged instead of the status; \
             accepted: a `body` and no `status` beside it, or off",
        ),
        (
            "{expect: {headers: [{name: 'a b'}]}}",
            ".expect.headers[0].name: `a b`: not the name of a header; accepted: letters, digits \
             and - as in Content-Type",
        ),
        (
            "{expect: {headers: [{name: a, equals: b, regex: c}]}}",
            ".expect.headers[0]: two ways to match one value; accepted: at most one of `equals`, \
             `contains` and `regex`",
        ),
        (
            "{expect: {not: {headers: [{name: a, regex: '('}]}}}",
            ".expect.not.headers[0].regex: `(`: invalid regex: unclosed group; accepted: a regular \
             expression without look-around and back-references",
        ),
        (
            "{headers: {Host: a}}",
            ".headers.Host: `a`: is set by the check itself; accepted: another header; see `host`, \
             `connection` and `body`",
        ),
        (
            "{headers: {A: \"b\\r\\nC: d\"}}",
            ".headers.A: `b\r\nC: d`: not the value of a header; accepted: visible ASCII and \
             blanks",
        ),
        (
            "{body: a}",
            ".method: `GET`: such a request has no body, and `body` is given; accepted: POST or \
             PUT, or no `body`",
        ),
        (
            "{connection: reuse, fresh_every: 5}",
            ".fresh_every: `5`: only mixed connections are replaced now and then; accepted: no \
             `fresh_every`, or connection: mixed",
        ),
        (
            "{connection: keep}",
            ".connection: `keep`: not known; accepted: fresh, reuse, mixed",
        ),
        (
            "{redirects: 11}",
            ".redirects: `11`: not a number in range; accepted: a whole number from 0 to 10",
        ),
        (
            "{version: 3}",
            ".version: `3`: not known; accepted: auto, 1, 1.1, 2",
        ),
    ] {
        assert_eq!(about_http(http), message, "{http}");
    }
}

#[test]
fn files_of_tls_are_read_and_judged() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let at = |name: &str| folder.path().join(name).display().to_string();
    let about = |tls: &str| about_http(&format!("{{tls: {{{tls}}}}}"));
    let (ca, none, missing) = (at("ca.pem"), at("none.pem"), at("missing.pem"));
    let (client, key, other) = (at("client.pem"), at("client.key"), at("other.key"));
    assert_eq!(
        about(&format!("ca: '{missing}'")),
        format!(
            ".tls.ca: `{missing}`: cannot be read: No such file or directory (os error 2); \
             accepted: a file in PEM"
        )
    );
    assert_eq!(
        about(&format!("ca: '{none}'")),
        format!(".tls.ca: `{none}`: holds no certificate; accepted: certificates, PEM")
    );
    assert_eq!(
        about("ca: ca.pem"),
        ".tls.ca: `ca.pem`: not an absolute path; accepted: an absolute path as /etc/probe/ca.pem"
    );
    assert_eq!(
        about(&format!("ca: '{ca}', certificate: '{client}'")),
        ".tls: one of `certificate` and `key` without the other; accepted: both, or neither"
    );
    let wrong = about(&format!(
        "ca: '{ca}', certificate: '{client}', key: '{other}'"
    ));
    assert!(
        wrong.starts_with(&format!(".tls.key: `{other}`: "))
            && wrong.ends_with("; accepted: the private key of `certificate`"),
        "{wrong}"
    );
    assert_eq!(
        about(&format!("ca: '{ca}', verify: false")),
        format!(
            ".tls.ca: `{ca}`: with verify: false nothing is verified; accepted: no `ca`, or \
             verify: true"
        )
    );
    assert_eq!(
        about("verify: false, sni: 'a b'"),
        ".tls.sni: `a b`: not a name that a certificate could have; accepted: a DNS name or an IP \
         address"
    );
    let good = format!(
        "  check: {{http: {{tls: {{ca: '{ca}', certificate: '{client}', key: '{key}'}}}}}}"
    );
    let config = with_check(&good).unwrap();
    assert!(http(&config).reach().tls().is_some_and(Tls::verify));
    // The key is nobody's business.
    let shown = format!("{config:?}");
    assert!(
        shown.contains("Tls { sni: None, verify: true, .. }"),
        "{shown}"
    );
}

#[test]
fn other_kinds_that_cannot_be_are_refused() {
    for (check, message) in [
        (
            "script: {}",
            "script.steps: nothing is expected; accepted: a step with `expect`; for a connection \
             alone `tcp`",
        ),
        (
            "script: {steps: [{send: a}]}",
            "script.steps: nothing is expected; accepted: a step with `expect`; for a connection \
             alone `tcp`",
        ),
        (
            "script: {steps: [{expect: a}, {}]}",
            "script.steps[1]: a step that does nothing; accepted: one of `send`, `send_hex`, \
             `expect`, `expect_hex` and `expect_regex`",
        ),
        (
            "script: {steps: [{send: a, expect: b}]}",
            "script.steps[0]: a step does one thing; accepted: one of `send`, `send_hex`, \
             `expect`, `expect_hex` and `expect_regex`",
        ),
        (
            "script: {steps: [{send: a, min_recv: 3}, {expect: a}]}",
            "script.steps[0].min_recv: `3`: belongs to what is expected; accepted: a step that \
             sends nothing",
        ),
        (
            r"script: {steps: [{expect: 'a\q'}]}",
            r"script.steps[0].expect: `a\q`: not an escape; accepted: text with the escapes \r \n \t \0 \\ and \x00 to \xff, not empty",
        ),
        (
            "script: {steps: [{expect_regex: '('}]}",
            "script.steps[0].expect_regex: `(`: invalid regex: unclosed group; accepted: a \
             regular expression without look-around and back-references",
        ),
        (
            "script: {steps: [{expect_hex: 0g}]}",
            "script.steps[0].expect_hex: `0g`: not bytes in hexadecimal; accepted: pairs of \
             hexadecimal digits as 00ff or `00 ff`, at least one",
        ),
        (
            "script: {steps: [{expect: a, min_recv: 20000}]}",
            "script.steps[0].min_recv: `20000`: not a number in range; accepted: a whole number \
             from 0 to 16384",
        ),
        (
            "redis: {role: primary}",
            "redis.role: `primary`: not known; accepted: any, master, replica",
        ),
        (
            "redis: {user: probe}",
            "redis.user: `probe`: a user without a password; accepted: `password` or \
             `password_file` beside it",
        ),
        (
            "redis: {password: hunter2, password_file: /a}",
            "redis: two passwords are given; accepted: either `password` or `password_file`",
        ),
        (
            "redis: {password: ''}",
            "redis.password: empty, too long, or with a NUL; accepted: 1 to 4096 bytes without NUL",
        ),
        (
            "redis: {password_file: password}",
            "redis.password_file: `password`: not an absolute path; accepted: an absolute path as \
             /etc/probe/password",
        ),
        (
            "postgres: {role: primary}",
            "postgres.role: nobody logs in without a user; accepted: `user` beside it",
        ),
        (
            "postgres: {user: '', role: primary}",
            "postgres.user: ``: not a name of PostgreSQL's; accepted: 1 to 63 bytes",
        ),
        (
            "postgres: {user: a, role: master}",
            "postgres.role: `master`: not known; accepted: any, primary, standby",
        ),
        (
            "grpc: {host: 'a b'}",
            "grpc.host: `a b`: not an authority; accepted: a host name or address, with a port if \
             need be",
        ),
        (
            "udp: {expect: a}",
            "udp: nothing is sent; accepted: `send` or `send_hex`, which the endpoint answers",
        ),
        (
            "udp: {send: a, not: true}",
            "udp.not: `true`: of nothing; accepted: what is not to come beside it",
        ),
        (
            "exec: {}",
            "exec.command: no command is given; accepted: a list of the program's absolute path \
             and its arguments",
        ),
        (
            "exec: {command: [curl]}",
            "exec.command: `curl`: not an absolute path; accepted: a list of the program's \
             absolute path and its arguments",
        ),
    ] {
        let told = with_check(&format!("  check: {{{check}}}")).unwrap_err();
        assert_eq!(told, format!("services[0].check.{message}"), "{check}");
    }
}

#[test]
fn passwords_are_shown_nowhere() {
    for check in [
        "redis: {password: hunter2}",
        "postgres: {user: a, password: hunter2}",
        "exec: {command: [/bin/check, hunter2]}",
    ] {
        let config = with_check(&format!("  check: {{{check}}}")).unwrap();
        let check = config.services()[0].check();
        assert!(!check.to_string().contains("hunter2"), "{check}");
        if !check.to_string().contains("command") {
            assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
        }
    }
}

#[test]
fn a_sentinel_is_off_where_it_does_harm_unless_it_is_ordered() {
    for (check, sentinel) in [
        ("tcp: {}", true),
        ("redis: {}", true),
        ("postgres: {}", false),
        ("udp: {send: a}", false),
        ("exec: {command: [/bin/true]}", false),
    ] {
        let check = format!("  check: {{{check}}}\n");
        let config = with_check(&check).unwrap();
        assert_eq!(config.services()[0].sentinel(), sentinel, "{check}");
        let config = with_check(&format!("{check}  sentinel: on")).unwrap();
        assert!(config.services()[0].sentinel(), "{check}");
    }
    let both = with_check("  checks: {all: [{tcp: {}}, {exec: {command: [/bin/true]}}]}").unwrap();
    assert!(both.services()[0].sentinel());
}
